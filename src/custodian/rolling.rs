//! Rolling credentials: temporary codes, what is derived from them, and when one may leave.
//!
//! T(n) is the HSM's HMAC under the credential's secret. What is derived from it is computed here: as a key for the HSM
//! its 16 bytes would have to be padded, and they are in this process in any case.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::attest::validated;
use super::checks::credential_of;
use super::operations::{Operations, replaced};
use super::pkcs11::{Object, Session};
use crate::domain::credential::{Credential, CredentialState, Kind, Status, StoredSecret};
use crate::domain::enc::enc;
use crate::domain::id::CredentialId;
use crate::domain::otp::Algorithm;
use crate::domain::rolling::{
    Binding, IDENTITY_KEY_BYTES, LOOKUP_BYTES, PROOF_BYTES, ROTATION_PROOF_BYTES, Rolling, Rotation,
    TEMPORARY_CODE_BYTES, code_message, lookup_message, proof_message, rotation_message,
};
use crate::domain::row::{Row, SealedBytes};
use crate::domain::transaction::Method;
use crate::hsm::messages::{Attest, CheckRolling, Fault, OpenedEpoch, Response, RollingClaim};
use crate::secret::{MacKey, SecretBytes};

/// Two identity keys are the same if they make the same HMAC of this.
const COMPARED: &[u8] = b"hsm-authd/rolling/identity-key/v1";

impl Operations {
    /// Whether somebody knows what only the right one knows.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn check_rolling(&mut self, check: &CheckRolling) -> Result<Response, Fault> {
        // Everything that can be wrong with the message, whether the claim is right or not.
        self.verify_seals(&check.standing)?;
        let credential = credential_of(&check.standing)?;
        let rolling = rolling_of(&credential)?;
        let (place, binding) = binding_of(&credential, &check.standing)?.ok_or_else(no_binding)?;
        for outcome in [&check.accepted, &check.missed] {
            replaced(&check.standing, &outcome.replaces)?;
        }
        let attest = validated(check.attest.as_ref(), &credential, None, &check.standing)?;
        let asked = Asked::new(&check.claim, &binding, attest, &check.standing)?;
        if matches!(asked, Asked::Payment { .. }) && !check.accepted.replaces.contains(&place) {
            return request("an accepted payment leaves its binding as it is");
        }
        let secret = rolling.secret.ok_or_else(|| refused("the credential has no secret"))?;
        let identity_key = match &asked {
            Asked::Rotation { .. } => None,
            _ => Some(rolling.identity_key.ok_or_else(|| refused("the credential has no identity key"))?),
        };

        let secret = self.hmac_key(secret)?;
        let code = TemporaryCode::of(&self.session, secret, credential.id, binding.epoch)?;
        if code.lookup() != binding.lookup {
            // Its seal is right, and it is no binding of this secret: it is of an earlier one, and was put back.
            return Err(Fault::Seal(place));
        }
        // All that needs the secret comes before the next key is opened: a small cache holds no more than one.
        let neighbour = match &asked {
            Asked::Payment { .. } => Some(binding.epoch.saturating_add(1)),
            Asked::Rotation { rotation: Rotation::HandOut, .. } => Some(binding.epoch.saturating_sub(1)),
            Asked::Rotation { rotation: Rotation::Acknowledge, .. } | Asked::IdentityKey(_) => None,
        };
        let neighbour = match neighbour {
            Some(epoch) => Some((epoch, TemporaryCode::of(&self.session, secret, credential.id, epoch)?)),
            None => None,
        };
        let identity_key = identity_key.map(|key| self.hmac_key(key)).transpose()?;
        let valid = match (&asked, identity_key) {
            (Asked::Payment { proof, digest }, Some(key)) => {
                let inner = code.mac(&proof_message(digest));
                let mac = self.session.hmac(Algorithm::Sha256, key, inner.as_slice())?;
                first::<PROOF_BYTES>(&mac)?.ct_eq(proof.expose()).into()
            }
            (Asked::IdentityKey(presented), Some(key)) => {
                let message = enc(&[COMPARED, credential.id.to_string().as_bytes()]);
                let own = self.session.hmac(Algorithm::Sha256, key, &message)?;
                let shown = Zeroizing::new(MacKey::new(presented.expose()).mac(&message));
                shown.as_slice().ct_eq(own.as_slice()).into()
            }
            (Asked::Rotation { proof, .. }, None) => {
                let asked = neighbour.as_ref().map_or(&code, |(_, before)| before);
                asked.mac(&rotation_message()).as_slice().ct_eq(proof.expose()).into()
            }
            _ => return request("a claim without its key"),
        };
        let next = match (&asked, valid) {
            (Asked::Payment { .. }, true) => neighbour,
            _ => None,
        };
        let used = next.as_ref().map(|(_, code)| Row::Binding(binding.used(code.lookup())).encode());
        let opened = match (next, &asked, valid) {
            (Some((epoch, code)), ..) => Some(code.opened(epoch)),
            (None, Asked::Rotation { rotation: Rotation::Acknowledge, .. }, _) | (None, _, false) => None,
            (None, _, true) => Some(code.opened(binding.epoch)),
        };
        let (outcome, attest) = if valid { (&check.accepted, attest) } else { (&check.missed, None) };
        let attested = self.attest(attest)?;
        let rows = outcome.rows.iter().chain(&used).chain(attested.as_ref().map(|attested| &attested.row));
        let sealed = self.seal_outcome(&check.standing, &outcome.replaces, rows)?;
        let attestation = attested.map(|attested| attested.jws);
        Ok(Response::RollingChecked { valid, sealed, attestation, opened })
    }

    /// The open epoch, while its temporary code may leave.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn open_epoch(&mut self, standing: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(standing)?;
        let credential = credential_of(standing)?;
        let rolling = rolling_of(&credential)?;
        let bound = binding_of(&credential, standing)?;
        let epoch = match &bound {
            Some((_, binding)) if binding.is_handed_out() => binding.epoch,
            Some(_) => return request("a temporary code that its terminal has acknowledged"),
            None if state_of(&credential, standing)?.status == Status::Pending => 1,
            None => return Err(no_binding()),
        };
        let secret = rolling.secret.ok_or_else(|| refused("the credential has no secret"))?;
        let secret = self.hmac_key(secret)?;
        let code = TemporaryCode::of(&self.session, secret, credential.id, epoch)?;
        match bound {
            Some((place, binding)) if binding.lookup != code.lookup() => Err(Fault::Seal(place)),
            _ => Ok(Response::Epoch(code.opened(epoch))),
        }
    }

    fn hmac_key(&mut self, secret: StoredSecret) -> Result<Object, Fault> {
        self.open(secret, Algorithm::Sha256)
    }
}

/// A claim that this binding can be asked about.
enum Asked<'a> {
    /// For the transaction with this digest.
    Payment {
        proof: &'a SecretBytes,
        digest: [u8; 32],
    },
    Rotation {
        proof: &'a SecretBytes,
        rotation: Rotation,
    },
    IdentityKey(&'a SecretBytes),
}

impl<'a> Asked<'a> {
    /// # Errors
    /// [`Fault::Request`].
    fn new(
        claim: &'a RollingClaim,
        binding: &Binding,
        attest: Option<&Attest>,
        standing: &[SealedBytes],
    ) -> Result<Self, Fault> {
        match (claim, attest) {
            (RollingClaim::Payment { proof }, Some(attest)) if proof.len() == PROOF_BYTES => {
                // Validated: it is pending, and of this tenant.
                let transaction = standing.iter().find_map(|row| match row.bytes.decode() {
                    Some(Row::Transaction(transaction)) if transaction.id == attest.transaction => {
                        Some(transaction)
                    }
                    _ => None,
                });
                match transaction.filter(|transaction| transaction.method == Method::RollingPassword) {
                    Some(transaction) => Ok(Self::Payment { proof, digest: transaction.digest() }),
                    None => request("a password for a transaction that takes none"),
                }
            }
            (RollingClaim::Rotation { epoch, proof }, None) if proof.len() == ROTATION_PROOF_BYTES => {
                match binding.rotation(*epoch) {
                    Some(rotation) => Ok(Self::Rotation { proof, rotation }),
                    None => request("a rotation with an epoch that is of no use"),
                }
            }
            (RollingClaim::IdentityKey(key), None) if key.len() == IDENTITY_KEY_BYTES => {
                match binding.epoch == 1 && binding.is_handed_out() {
                    true => Ok(Self::IdentityKey(key)),
                    false => request("an identity key, after the first temporary code was acknowledged"),
                }
            }
            (RollingClaim::Payment { .. }, None) => request("an approval that is not attested"),
            (RollingClaim::Rotation { .. } | RollingClaim::IdentityKey(_), Some(_)) => {
                request("an attestation of no payment")
            }
            _ => request("a claim of another length"),
        }
    }
}

/// T(n): who has it speaks for its epoch.
struct TemporaryCode(Zeroizing<[u8; TEMPORARY_CODE_BYTES]>);

impl TemporaryCode {
    /// # Errors
    /// [`Fault::Hsm`].
    fn of(session: &Session, secret: Object, id: CredentialId, epoch: u64) -> Result<Self, Fault> {
        let mac = session.hmac(Algorithm::Sha256, secret, &code_message(id, epoch))?;
        Ok(Self(Zeroizing::new(first(&mac)?)))
    }

    /// HMAC-SHA-256 under it.
    fn mac(&self, message: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(MacKey::new(self.0.as_slice()).mac(message))
    }

    /// What the passwords of its epoch begin with: the database has it, so it is no secret.
    fn lookup(&self) -> [u8; LOOKUP_BYTES] {
        let mac = self.mac(&lookup_message());
        std::array::from_fn(|place| mac.get(place).copied().unwrap_or_default())
    }

    /// Hands it out. It declassifies the code: its terminal is to have it.
    fn opened(self, epoch: u64) -> OpenedEpoch {
        let lookup = self.lookup();
        OpenedEpoch { epoch, lookup, temporary_code: SecretBytes::new(self.0.to_vec()) }
    }
}

/// The first bytes of an HMAC.
fn first<const BYTES: usize>(mac: &[u8]) -> Result<[u8; BYTES], Fault> {
    mac.first_chunk().copied().ok_or_else(|| Fault::hsm("C_Sign: no HMAC"))
}

fn rolling_of(credential: &Credential) -> Result<Rolling, Fault> {
    match &credential.kind {
        Kind::Rolling(rolling) => Ok(rolling.clone()),
        _ => request("the credential has no temporary codes"),
    }
}

fn state_of(credential: &Credential, standing: &[SealedBytes]) -> Result<CredentialState, Fault> {
    let state = standing.iter().find_map(|row| match row.bytes.decode() {
        Some(Row::State(state)) if state.id == credential.id => Some(state),
        _ => None,
    });
    state.ok_or_else(|| refused("the credential's state is not there"))
}

/// The credential's binding and its place. One that its state does not speak of was put back.
fn binding_of(credential: &Credential, standing: &[SealedBytes]) -> Result<Option<(u8, Binding)>, Fault> {
    let found = (0u8..=u8::MAX).zip(standing).find_map(|(place, row)| match row.bytes.decode() {
        Some(Row::Binding(binding)) => Some((place, binding)),
        _ => None,
    });
    let Some((place, binding)) = found else { return Ok(None) };
    if binding.credential != credential.id || binding.tenant != credential.tenant {
        return request("a binding of another credential's");
    }
    match state_of(credential, standing)?.next_factor == binding.version {
        true => Ok(Some((place, binding))),
        false => Err(Fault::Seal(place)),
    }
}

fn no_binding() -> Fault {
    refused("the credential is not bound")
}

fn refused(reason: &str) -> Fault {
    Fault::Request(reason.to_owned())
}

fn request<T>(reason: &str) -> Result<T, Fault> {
    Err(refused(reason))
}
