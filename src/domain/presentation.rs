//! Presented codes (seed C): a string that a payer shows and a payee claims, once.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::account::AccountRef;
use super::caller::Tenant;
use super::enc::enc;
use super::id::{CredentialId, PresentationId, TransactionId};
use super::time::{Deadline, Now, parse_rfc3339, rfc3339};

/// How long a presentation can be claimed, in seconds.
pub const LIFETIME_S: u32 = 60;
/// How far a device's clock may be away when it asks for one, in milliseconds.
pub const ISSUED_WITHIN_MS: u64 = 30_000;
/// How many bytes a code has.
pub const CODE_BYTES: usize = 16;

/// The row of a presentation: made by the payer's device, replaced once by its claim. In sealed rows: its fields never
/// change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presentation {
    /// Its id.
    pub id: PresentationId,
    /// The tenant it belongs to; within it no two codes are equal.
    pub tenant: Tenant,
    /// 1 when made, 2 when claimed.
    pub version: u64,
    /// The device that asked for it, and decides.
    pub credential: CredentialId,
    /// The account that the device speaks for.
    pub account: AccountRef,
    /// When it was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// What its code is derived from, besides the id and a key.
    pub nonce: [u8; 32],
    /// SHA-256 of its code's text: it is found by that, and the code is stored nowhere.
    pub code_hash: [u8; 32],
    /// Until when it can be claimed.
    pub expires: Deadline,
    /// The transaction that claimed it.
    pub transaction: Option<TransactionId>,
}

/// What a presentation is good for. In JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresentationState {
    /// Waits for its claim.
    Open,
    /// A transaction has claimed it: for ever.
    Claimed,
    /// Its time was over first.
    Expired,
}

impl PresentationState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Open, Self::Claimed, Self::Expired];
}

/// A code that a payer shows. Whoever has it can claim it, once: it has one owner, and is never shown by mistake.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PresentationCode(String);

impl PresentationCode {
    /// The code of these bits.
    pub fn new(bits: &[u8; CODE_BYTES]) -> Self {
        Self(BASE32_NOPAD.encode(bits))
    }

    /// What it is found by.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// Declassifies: for the answer to whom it is made for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// SHA-256 of a code's text, which it is found by; `None` for a text that is none: a code is 26 characters of RFC 4648's
/// base32, upper case, which spell 128 bits in one way only.
pub fn code_hash(text: &str) -> Option<[u8; 32]> {
    let bits = Zeroizing::new(BASE32_NOPAD.decode(text.as_bytes()).ok()?);
    (bits.len() == CODE_BYTES).then(|| Sha256::digest(text).into())
}

/// When a device asked for a presentation, by its own clock: a whole second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IssuedAt {
    unix_s: u64,
}

impl IssuedAt {
    /// `None` unless it is `YYYY-MM-DDTHH:MM:SSZ`, of a moment that there is, from 1970 on.
    pub fn parse(text: &str) -> Option<Self> {
        parse_rfc3339(text).map(|unix_s| Self { unix_s })
    }

    /// In the one form that is signed.
    pub fn text(self) -> String {
        rfc3339(self.unix_s.saturating_mul(1_000))
    }

    /// Whether it is no further away than a device's clock may be.
    pub fn is_near(self, now: &Now) -> bool {
        self.unix_s.saturating_mul(1_000).abs_diff(now.unix_ms) <= ISSUED_WITHIN_MS
    }

    /// The first second of which the same device may ask for the next one.
    pub fn next_s(self) -> u64 {
        self.unix_s.saturating_add(1)
    }

    /// Whether it is later than the credential's last: `next_s` is that one's [`Self::next_s`].
    pub fn is_new(self, next_s: u64) -> bool {
        self.unix_s >= next_s
    }
}

/// The bytes that a device signs to ask for a presentation.
pub fn signing_input(
    tenant: &Tenant,
    account: &AccountRef,
    credential: CredentialId,
    issued_at: IssuedAt,
) -> Vec<u8> {
    enc(&[
        b"hsm-authd/presentation/v1",
        tenant.as_str().as_bytes(),
        account.as_str().as_bytes(),
        credential.to_string().as_bytes(),
        issued_at.text().as_bytes(),
    ])
}

/// The bytes that a device signs to decline the transaction of this digest.
pub fn decline_input(digest: &[u8; 32]) -> Vec<u8> {
    enc(&[b"hsm-authd/decline/v1", HEXLOWER.encode(digest).as_bytes()])
}

impl Presentation {
    /// What it is good for now. A claim stays that: its time is over for others only.
    pub fn state(&self, now: &Now) -> PresentationState {
        match self.transaction {
            Some(_) => PresentationState::Claimed,
            None if self.expires.left_ms(now) == 0 => PresentationState::Expired,
            None => PresentationState::Open,
        }
    }

    /// After its claim.
    pub fn claimed(&self, transaction: TransactionId) -> Self {
        Self { version: self.version.saturating_add(1), transaction: Some(transaction), ..self.clone() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::transaction::tests::{at, golden};
    use data_encoding::BASE64URL_NOPAD;

    pub fn vector(name: &str) -> String {
        let vectors = include_str!("../../tests/vectors/transaction.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        vectors["signed_by_devices"][name].as_str().unwrap().to_owned()
    }

    pub fn device() -> CredentialId {
        CredentialId::parse("cred_00000000000000000000000004").unwrap()
    }

    fn presentation() -> Presentation {
        Presentation {
            id: PresentationId::from_random([1; 16]),
            tenant: golden().tenant,
            version: 1,
            credential: device(),
            account: "acct-0001".to_owned().try_into().unwrap(),
            created_unix_ms: 1_000,
            nonce: [2; 32],
            code_hash: [3; 32],
            expires: Deadline::after(&at(1_000), u64::from(LIFETIME_S) * 1_000),
            transaction: None,
        }
    }

    #[test]
    fn what_devices_sign_is_what_a_second_implementation_signs() {
        let issued_at = IssuedAt::parse("2030-01-01T00:00:00Z").unwrap();
        let account = "acct-0001".to_owned().try_into().unwrap();
        let input = signing_input(&golden().tenant, &account, device(), issued_at);
        assert_eq!(BASE64URL_NOPAD.encode(&input), vector("presentation_b64u"));
        let decline = decline_input(&golden().digest());
        assert_eq!(BASE64URL_NOPAD.encode(&decline), vector("decline_b64u"));
    }

    #[test]
    fn a_moment_has_one_spelling() {
        assert_eq!(IssuedAt::parse("1970-01-01T00:00:00Z"), Some(IssuedAt { unix_s: 0 }));
        assert_eq!(IssuedAt::parse("2030-01-01T00:00:00Z"), Some(IssuedAt { unix_s: 1_893_456_000 }));
        assert!(IssuedAt::parse("2028-02-29T23:59:59Z").is_some());
        assert!(IssuedAt::parse("9999-12-31T23:59:59Z").is_some());
        for bad in [
            "",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00z",
            "2030-01-01t00:00:00Z",
            "2030-01-01 00:00:00Z",
            "2030-01-01T00:00:00.0Z",
            "2030-01-01T00:00:00.000Z",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01T00:00:00-00:00",
            "2030-01-01T01:00:00+01:00",
            "2030-01-01T24:00:00Z",
            "2030-01-01T00:60:00Z",
            "2016-12-31T23:59:60Z",
            "2029-02-29T00:00:00Z",
            "2030-13-01T00:00:00Z",
            "2030-1-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "0000-01-01T00:00:00Z",
            "12030-01-01T00:00:00Z",
            "+2030-01-01T00:00:00Z",
            " 2030-01-01T00:00:00Z",
            "2030-01-01T00:00:00Z ",
            "2030-01-01T00:00:00Z\n",
            "1893456000",
        ] {
            assert_eq!(IssuedAt::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn it_may_be_30_seconds_away_and_has_to_be_later_than_the_last() {
        let issued_at = IssuedAt { unix_s: 1_000 };
        for (now, near) in
            [(969_999, false), (970_000, true), (1_000_000, true), (1_030_000, true), (1_030_001, false)]
        {
            assert_eq!(issued_at.is_near(&at(now)), near, "{now}");
        }
        assert!(!IssuedAt { unix_s: u64::MAX }.is_near(&at(0)));
        assert!(issued_at.is_new(0) && issued_at.is_new(1_000));
        assert!(!issued_at.is_new(issued_at.next_s()));
        assert!(IssuedAt { unix_s: 1_001 }.is_new(issued_at.next_s()));
    }

    #[test]
    fn it_is_open_for_a_minute_by_both_clocks_and_claimed_for_ever() {
        let open = presentation();
        for (now, state) in [
            (1_000, PresentationState::Open),
            (60_999, PresentationState::Open),
            (61_000, PresentationState::Expired),
            (u64::MAX, PresentationState::Expired),
        ] {
            assert_eq!(open.state(&at(now)), state, "{now}");
            assert_eq!(open.claimed(golden().id).state(&at(now)), PresentationState::Claimed);
            for one in [Now { unix_ms: 1_000, ..at(now) }, Now { boot_ms: 1_000, ..at(now) }] {
                assert_eq!(open.state(&one), state, "one of the clocks at {now}");
            }
        }
        let claimed = open.claimed(golden().id);
        assert_eq!((claimed.version, claimed.transaction), (2, Some(golden().id)));
        assert_eq!(Presentation { version: 1, transaction: None, ..claimed }, open);
    }

    #[test]
    fn a_code_has_26_characters_in_one_spelling() {
        let code = PresentationCode::new(&[0xff; CODE_BYTES]);
        assert_eq!(code.expose(), "77777777777777777777777774");
        assert_eq!(code_hash(code.expose()), Some(code.hash()));
        assert_eq!(code.hash(), <[u8; 32]>::from(Sha256::digest("77777777777777777777777774")));
        assert!(code_hash("AAAAAAAAAAAAAAAAAAAAAAAAAA").is_some());
        for bad in [
            "",
            "7777777777777777777777777",
            "777777777777777777777777744",
            "77777777777777777777777777",
            "77777777777777777777777775",
            "aaaaaaaaaaaaaaaaaaaaaaaaaa",
            "AAAAAAAAAAAAAAAAAAAAAAAAA1",
            "AAAAAAAAAAAAAAAAAAAAAAAAAA======",
            " AAAAAAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAA AAAAAAAAAAAAA",
        ] {
            assert_eq!(code_hash(bad), None, "{bad}");
        }
    }
}
