//! Rolling passwords (seed B): a temporary code on the terminal, an identity code in the user's head, and a password of
//! both that tells whose it is.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::caller::Tenant;
use super::credential::StoredSecret;
use super::enc::enc;
use super::id::CredentialId;
use super::text::DisplayText;

/// The bank's own reference of what it has checked: card, identity, person. The appliance sees nothing of those.
pub type Evidence = DisplayText<128>;

/// How many bytes a salt has.
pub const SALT_BYTES: usize = 16;
/// How many bytes an identity key has.
pub const IDENTITY_KEY_BYTES: usize = 32;
/// How many bytes a temporary code has.
pub const TEMPORARY_CODE_BYTES: usize = 16;
/// How many bytes of a password say whose it is.
pub const LOOKUP_BYTES: usize = 12;
/// How many bytes of a password prove the identity code.
pub const PROOF_BYTES: usize = 16;
/// How many bytes prove that a terminal has a temporary code.
pub const ROTATION_PROOF_BYTES: usize = 32;

/// What T(`epoch`) is the HMAC-SHA-256 of, under the binding's secret; its first [`TEMPORARY_CODE_BYTES`] are the code.
pub fn code_message(id: CredentialId, epoch: u64) -> Vec<u8> {
    enc(&[b"hsm-authd/rolling/code/v1", id.to_string().as_bytes(), epoch.to_string().as_bytes()])
}

/// What an epoch's passwords begin with is the HMAC-SHA-256 of this, under its temporary code: the first
/// [`LOOKUP_BYTES`].
pub fn lookup_message() -> Vec<u8> {
    enc(&[b"hsm-authd/rolling/lookup/v1"])
}

/// What the identity key's HMAC-SHA-256 of the HMAC-SHA-256 of this, under the temporary code, proves a transaction by:
/// the first [`PROOF_BYTES`].
pub fn proof_message(digest: &[u8; 32]) -> Vec<u8> {
    enc(&[b"hsm-authd/rolling/proof/v1", HEXLOWER.encode(digest).as_bytes()])
}

/// What a terminal shows by the HMAC-SHA-256 of, under a temporary code, that it has that code.
pub fn rotation_message() -> Vec<u8> {
    enc(&[b"hsm-authd/rolling/rotate/v1"])
}

/// A rolling password, taken apart. A secret: what it proves is worth an approval.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RollingPassword {
    /// Whose it is.
    pub lookup: [u8; LOOKUP_BYTES],
    /// That its user knows the identity code.
    pub proof: [u8; PROOF_BYTES],
}

impl RollingPassword {
    /// `None` unless `text` is base64url without padding of both, one after the other.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; LOOKUP_BYTES + PROOF_BYTES]);
        if BASE64URL_NOPAD.decode_len(text.len()) != Ok(bytes.len()) {
            return None;
        }
        BASE64URL_NOPAD.decode_mut(text.as_bytes(), bytes.as_mut_slice()).ok()?;
        let (lookup, proof) = bytes.split_first_chunk()?;
        Some(Self { lookup: *lookup, proof: proof.try_into().ok()? })
    }
}

/// A binding's secrets. In sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// What temporary codes are derived from, 32 bytes; `None` in a tombstone.
    pub secret: Option<StoredSecret>,
    /// What the terminal derives the identity key with; another one with each binding.
    pub salt: [u8; SALT_BYTES],
    /// PBKDF2 of the identity code; `None` until it is activated, and in a tombstone.
    pub identity_key: Option<StoredSecret>,
    /// What the bank checked before it activated it.
    pub evidence: Option<Evidence>,
}

impl Rolling {
    /// A new one, which waits for its activation.
    pub fn new(secret: StoredSecret, salt: [u8; SALT_BYTES]) -> Self {
        Self { secret: Some(secret), salt, identity_key: None, evidence: None }
    }

    /// With what its activation brings.
    pub fn activated(self, identity_key: StoredSecret, evidence: Evidence) -> Self {
        Self { identity_key: Some(identity_key), evidence: Some(evidence), ..self }
    }

    /// What is left of it in a tombstone.
    pub fn deleted(self) -> Self {
        Self { secret: None, identity_key: None, ..self }
    }
}

/// What a rotation's epoch means to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It is the consumed one before the open one, whose temporary code the terminal has not acknowledged: that is
    /// handed out again.
    HandOut,
    /// It is the open one: the terminal has its temporary code.
    Acknowledge,
}

/// The row that a password is found by: of which epoch the next one has to be. Made by an activation, replaced by each
/// use, gone with a rebinding. In sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The credential.
    pub credential: CredentialId,
    /// The tenant it belongs to; within it no two lookups are equal.
    pub tenant: Tenant,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// The epoch whose password is accepted; those before it are consumed.
    pub epoch: u64,
    /// Whether the terminal has said that it has this epoch's temporary code: it is handed out no more.
    pub acknowledged: bool,
    /// What this epoch's passwords begin with.
    pub lookup: [u8; LOOKUP_BYTES],
}

impl Binding {
    /// That of an activation: epoch 1.
    pub fn first(credential: CredentialId, tenant: Tenant, lookup: [u8; LOOKUP_BYTES]) -> Self {
        Self { credential, tenant, version: 1, epoch: 1, acknowledged: false, lookup }
    }

    /// After its epoch's password was accepted; `lookup` is the next epoch's.
    pub fn used(&self, lookup: [u8; LOOKUP_BYTES]) -> Self {
        Self {
            version: self.version.saturating_add(1),
            epoch: self.epoch.saturating_add(1),
            acknowledged: false,
            lookup,
            ..self.clone()
        }
    }

    /// Whether its epoch's temporary code may leave the appliance.
    pub fn is_handed_out(&self) -> bool {
        !self.acknowledged
    }

    /// What a rotation with this epoch asks for; `None`: it is of no use any more, or not yet.
    pub fn rotation(&self, epoch: u64) -> Option<Rotation> {
        if epoch == self.epoch {
            Some(Rotation::Acknowledge)
        } else if epoch > 0 && epoch.checked_add(1) == Some(self.epoch) && self.is_handed_out() {
            Some(Rotation::HandOut)
        } else {
            None
        }
    }

    /// After the terminal said that it has the temporary code.
    pub fn acknowledged(&self) -> Self {
        Self { version: self.version.saturating_add(1), acknowledged: true, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use hmac::{Hmac, KeyInit, Mac};
    use proptest::prelude::*;
    use serde_json::Value;
    use sha2::Sha256;

    use super::*;

    fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
        Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(message).finalize().into_bytes().into()
    }

    /// T(n), as 16 bytes, of a secret.
    fn temporary_code(secret: &[u8], id: CredentialId, epoch: u64) -> Vec<u8> {
        mac(secret, &code_message(id, epoch))[..TEMPORARY_CODE_BYTES].to_vec()
    }

    #[test]
    fn what_a_terminal_makes_is_that_of_a_second_implementation() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/methods.json")).unwrap();
        let vector = &vectors["rolling"];
        let bytes = |value: &Value| HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap();
        let id = CredentialId::parse(vector["credential"].as_str().unwrap()).unwrap();
        let (secret, identity_key) = (bytes(&vector["secret_hex"]), bytes(&vector["identity_key_hex"]));
        let digest = bytes(&vector["digest"]).try_into().unwrap();
        let epochs = vector["epochs"].as_array().unwrap();
        assert_eq!(epochs.len(), 2);
        for epoch in epochs {
            let code = temporary_code(&secret, id, epoch["epoch"].as_u64().unwrap());
            assert_eq!(code, bytes(&epoch["temporary_code"]));
            let lookup = &mac(&code, &lookup_message())[..LOOKUP_BYTES];
            let proof = &mac(&identity_key, &mac(&code, &proof_message(&digest)))[..PROOF_BYTES];
            assert_eq!((lookup, proof), (&*bytes(&epoch["lookup_hex"]), &*bytes(&epoch["proof_hex"])));
            let password = RollingPassword::parse(epoch["password"].as_str().unwrap()).unwrap();
            assert_eq!((&password.lookup[..], &password.proof[..]), (lookup, proof));
            assert_eq!(mac(&code, &rotation_message()).to_vec(), bytes(&epoch["rotation_proof_hex"]));
        }
    }

    #[test]
    fn a_password_is_28_bytes_in_one_spelling() {
        let good = BASE64URL_NOPAD.encode(&[0xfb; LOOKUP_BYTES + PROOF_BYTES]);
        assert_eq!(good.len(), 38);
        assert!(RollingPassword::parse(&good).is_some_and(|password| password.proof == [0xfb; 16]));
        let other_last = format!("{}_", &good[..37]);
        for bad in
            ["", &good[1..], &format!("{good}A"), &format!("{good}=="), &good.replace('-', "+"), &other_last]
        {
            assert!(RollingPassword::parse(bad).is_none(), "{bad}");
        }
    }

    fn binding() -> Binding {
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        Binding::first(CredentialId::from_random([1; 16]), tenant, [1; LOOKUP_BYTES])
    }

    #[test]
    fn a_rotation_is_of_the_open_epoch_or_of_the_one_before_it() {
        let first = binding();
        let asked = |binding: &Binding| [0, 1, 2, 3, u64::MAX].map(|epoch| binding.rotation(epoch));
        let (give, take) = (Some(Rotation::HandOut), Some(Rotation::Acknowledge));
        assert_eq!(asked(&first), [None, take, None, None, None], "no epoch 0 was ever consumed");
        assert_eq!(asked(&first.acknowledged()), [None, take, None, None, None]);
        let second = first.used([2; LOOKUP_BYTES]);
        assert_eq!(asked(&second), [None, give, take, None, None]);
        assert_eq!(asked(&second.acknowledged()), [None, None, take, None, None]);
        assert_eq!(asked(&second.used([3; LOOKUP_BYTES])), [None, None, give, take, None]);
    }

    /// What can come to a binding, from its terminal or from elsewhere.
    #[derive(Clone, Copy, Debug)]
    enum Message {
        /// A password of this epoch.
        Use(u64),
        /// A rotation with this epoch.
        Rotate(u64),
    }

    proptest! {
        /// However messages are repeated, lost and reordered: each epoch approves once, what was acknowledged is
        /// handed out no more, and a terminal that has the code of the epoch before gets on.
        #[test]
        fn no_epoch_approves_twice_and_no_terminal_is_stuck(
            messages in prop::collection::vec(
                prop_oneof![(0u64..12).prop_map(Message::Use), (0u64..12).prop_map(Message::Rotate)], 0..60),
        ) {
            let (mut now, mut approved, mut acknowledged) = (binding(), HashSet::new(), HashSet::new());
            for message in messages {
                let before = now.clone();
                match message {
                    Message::Use(epoch) if epoch == now.epoch => {
                        prop_assert!(approved.insert(epoch));
                        acknowledged.insert(epoch);
                        now = now.used([epoch as u8; LOOKUP_BYTES]);
                        prop_assert_eq!(now.epoch, epoch + 1);
                    }
                    Message::Use(_) => {}
                    Message::Rotate(epoch) => match now.rotation(epoch) {
                        Some(Rotation::HandOut) => {
                            prop_assert!(approved.contains(&epoch), "only who has used it asks for the next");
                            prop_assert!(!acknowledged.contains(&now.epoch));
                        }
                        Some(Rotation::Acknowledge) => {
                            acknowledged.insert(epoch);
                            now = now.acknowledged();
                            prop_assert_eq!((now.epoch, now.lookup), (before.epoch, before.lookup));
                        }
                        None => {}
                    },
                }
                prop_assert_eq!(now.version > before.version, now != before);
                // Who has the code before the open one, and no newer, has not acknowledged it.
                let gets_on = now.acknowledged || now.epoch == 1
                    || now.rotation(now.epoch - 1) == Some(Rotation::HandOut);
                prop_assert!(gets_on);
            }
        }
    }
}
