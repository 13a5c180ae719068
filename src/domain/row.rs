//! Rows as they are sealed: one canonical encoding, and a sum over all of them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::account::{Account, AccountRef};
use super::attestation::Attestation;
use super::caller::{ClientName, Tenant};
use super::credential::{Credential, CredentialState, Kind, OtpToken, UsedInput, WrappedSecret};
use super::id::{CredentialId, TransactionId};
use super::idempotency::{IdempotencyKey, IdempotencyRecord};
use super::otp::{Algorithm, Digits, MovingFactor};
use super::transaction::Transaction;

/// What every encoding begins with: a seal made here fits nothing else that the key ever seals.
const DOMAIN: &str = "hsm-authd/row/v1";

/// Any stored row. The variant is the table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a verdict has a handful of rows, each moved a few times")]
pub enum Row {
    /// Table `credential`.
    Credential(Credential),
    /// Table `credential_state`.
    State(CredentialState),
    /// Table `account`.
    Account(Account),
    /// Table `idempotency`.
    Idempotency(IdempotencyRecord),
    /// Table `used_input`.
    UsedInput(UsedInput),
    /// Table `attestation`.
    Attestation(Attestation),
    /// Table `payment`.
    Transaction(Transaction),
}

/// How rows are spelt. It outlives releases: new variants go to the end, and a variant's fields never
/// change, because a row is encoded again to check its seal (`docs/decisions/0005-sealed-rows.md`).
#[derive(Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one lives while a row is encoded")]
enum Spelling<'a> {
    /// A HOTP or TOTP credential, as it was spelt when there was no other kind.
    OtpCredential(OtpCredential<'a>),
    State(Cow<'a, CredentialState>),
    Account(Cow<'a, Account>),
    Idempotency(Cow<'a, IdempotencyRecord>),
    /// A credential of any other kind.
    Credential(Cow<'a, Credential>),
    UsedInput(Cow<'a, UsedInput>),
    Attestation(Cow<'a, Attestation>),
    Transaction(Cow<'a, Transaction>),
}

#[derive(Serialize, Deserialize)]
struct OtpCredential<'a> {
    id: CredentialId,
    tenant: Cow<'a, Tenant>,
    account: Cow<'a, AccountRef>,
    version: u64,
    created_unix_ms: u64,
    algorithm: Algorithm,
    digits: Digits,
    moving_factor: MovingFactor,
    secret: Cow<'a, Option<WrappedSecret>>,
    deleted_unix_ms: Option<u64>,
}

impl<'a> Spelling<'a> {
    fn of(row: &'a Row) -> Self {
        match row {
            Row::Credential(row) => match &row.kind {
                Kind::Otp(token) => Self::OtpCredential(OtpCredential {
                    id: row.id,
                    tenant: Cow::Borrowed(&row.tenant),
                    account: Cow::Borrowed(&row.account),
                    version: row.version,
                    created_unix_ms: row.created_unix_ms,
                    algorithm: token.algorithm,
                    digits: token.digits,
                    moving_factor: token.moving_factor,
                    secret: Cow::Borrowed(&token.secret),
                    deleted_unix_ms: row.deleted_unix_ms,
                }),
                Kind::Ocra(_) | Kind::Signer(_) | Kind::CertifiedSigner(_) | Kind::Authenticator(_) => {
                    Self::Credential(Cow::Borrowed(row))
                }
            },
            Row::State(row) => Self::State(Cow::Borrowed(row)),
            Row::Account(row) => Self::Account(Cow::Borrowed(row)),
            Row::Idempotency(row) => Self::Idempotency(Cow::Borrowed(row)),
            Row::UsedInput(row) => Self::UsedInput(Cow::Borrowed(row)),
            Row::Attestation(row) => Self::Attestation(Cow::Borrowed(row)),
            Row::Transaction(row) => Self::Transaction(Cow::Borrowed(row)),
        }
    }

    fn into_row(self) -> Row {
        match self {
            Self::OtpCredential(row) => Row::Credential(Credential {
                id: row.id,
                tenant: row.tenant.into_owned(),
                account: row.account.into_owned(),
                version: row.version,
                created_unix_ms: row.created_unix_ms,
                kind: Kind::Otp(OtpToken {
                    algorithm: row.algorithm,
                    digits: row.digits,
                    moving_factor: row.moving_factor,
                    secret: row.secret.into_owned(),
                }),
                deleted_unix_ms: row.deleted_unix_ms,
            }),
            Self::Credential(row) => Row::Credential(row.into_owned()),
            Self::State(row) => Row::State(row.into_owned()),
            Self::Account(row) => Row::Account(row.into_owned()),
            Self::Idempotency(row) => Row::Idempotency(row.into_owned()),
            Self::UsedInput(row) => Row::UsedInput(row.into_owned()),
            Self::Attestation(row) => Row::Attestation(row.into_owned()),
            Self::Transaction(row) => Row::Transaction(row.into_owned()),
        }
    }
}

/// A row's primary key, with its table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKey {
    /// Table `credential`.
    Credential(CredentialId),
    /// Table `credential_state`.
    State(CredentialId),
    /// Table `account`.
    Account(Tenant, AccountRef),
    /// Table `idempotency`.
    Idempotency(ClientName, IdempotencyKey),
    /// Table `used_input`: the credential, and the input's fingerprint.
    UsedInput(CredentialId, [u8; 32]),
    /// Table `attestation`.
    Attestation(TransactionId),
    /// Table `payment`.
    Transaction(TransactionId),
}

impl Row {
    /// Its primary key.
    pub fn key(&self) -> RowKey {
        match self {
            Self::Credential(row) => RowKey::Credential(row.id),
            Self::State(row) => RowKey::State(row.id),
            Self::Account(row) => RowKey::Account(row.tenant.clone(), row.account.clone()),
            Self::Idempotency(row) => RowKey::Idempotency(row.client.clone(), row.key.clone()),
            Self::UsedInput(row) => RowKey::UsedInput(row.id, row.fingerprint),
            Self::Attestation(row) => RowKey::Attestation(row.transaction),
            Self::Transaction(row) => RowKey::Transaction(row.id),
        }
    }

    /// 1 when made, one more with each change.
    pub fn version(&self) -> u64 {
        match self {
            Self::Credential(row) => row.version,
            Self::State(row) => row.version,
            Self::Account(row) => row.version,
            Self::Idempotency(row) => row.version,
            Self::UsedInput(row) => row.version,
            Self::Attestation(row) => row.version,
            Self::Transaction(row) => row.version,
        }
    }

    /// The bytes that are sealed: every column, the table and the purpose.
    pub fn encode(&self) -> RowBytes {
        // Serialising these types to memory cannot fail: no map, no length unknown beforehand.
        RowBytes(postcard::to_allocvec(&(DOMAIN, Spelling::of(self))).unwrap_or_default())
    }
}

/// A row's canonical encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowBytes(Vec<u8>);

impl RowBytes {
    /// The bytes themselves, to be sealed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The row they encode; `None` for anything that [`Row::encode`] does not write.
    pub fn decode(&self) -> Option<Row> {
        let (domain, row): (&str, Spelling<'_>) = postcard::from_bytes(&self.0).ok()?;
        let row = row.into_row();
        (domain == DOMAIN && row.encode() == *self).then_some(row)
    }
}

/// An HMAC-SHA-256 over a row's bytes, under a key derived from one version of the HSM's `row` key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Version of the `row` key.
    pub key_version: u16,
    /// The HMAC.
    pub mac: [u8; 32],
}

/// A row with its seal, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<T> {
    /// The row.
    pub row: T,
    /// Its seal.
    pub seal: Seal,
}

impl<T: Clone + Into<Row>> Sealed<T> {
    /// The bytes to check the seal against.
    pub fn to_bytes(&self) -> SealedBytes {
        SealedBytes { bytes: self.row.clone().into().encode(), seal: self.seal.clone() }
    }
}

/// A row's bytes with their seal, as they travel to a custodian.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedBytes {
    /// The row's canonical encoding.
    pub bytes: RowBytes,
    /// The seal to check.
    pub seal: Seal,
}

impl SealedBytes {
    /// At most how many bytes it takes in a message.
    pub fn message_bytes(&self) -> usize {
        // The row's length before it; the seal is a number and 32 bytes.
        const BESIDES: usize = 40;
        self.bytes.0.len().saturating_add(BESIDES)
    }
}

macro_rules! into_row {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Row {
            fn from(row: $type) -> Row {
                Row::$variant(row)
            }
        }
    )*};
}

into_row!(
    Credential => Credential,
    CredentialState => State,
    Account => Account,
    IdempotencyRecord => Idempotency,
    UsedInput => UsedInput,
    Attestation => Attestation,
    Transaction => Transaction
);

/// A multiset hash: the sum of a keyed hash of every live row, modulo 2^256, big-endian.
///
/// Adding and taking away rows in any order gives the same sum for the same rows, so a row that was
/// deleted, doubled or put back from an old copy shows, although its own seal is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSum(pub [u8; 32]);

impl RowSum {
    /// `self + other` modulo 2^256.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let (mut sum, mut carry) = ([0u8; 32], 0u16);
        for (place, (a, b)) in self.0.iter().zip(other.0).enumerate().rev() {
            let digit = u16::from(*a) + u16::from(b) + carry;
            sum[place] = digit as u8;
            carry = digit >> 8;
        }
        Self(sum)
    }

    /// `self - other` modulo 2^256.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        let complement = Self(other.0.map(|byte| !byte));
        let mut one = Self::default();
        one.0[31] = 1;
        self.plus(complement).plus(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::certificate::CertificateChain;
    use crate::domain::credential::{
        Authenticator, CertifiedSigner, EncryptedPinHash, OcraToken, OcraUse, Signer,
    };
    use crate::domain::ocra::Suite;
    use crate::domain::signer::SignatureAlgorithm;
    use crate::domain::transaction::{self, AuthenticatorReport, Device, Method, Parent, State, Terms};
    use crate::domain::webauthn::RelyingParty;
    use proptest::prelude::*;

    fn sum(low: u128) -> RowSum {
        let mut bytes = [0u8; 32];
        bytes[16..].copy_from_slice(&low.to_be_bytes());
        RowSum(bytes)
    }

    proptest! {
        #[test]
        fn sums_are_a_group(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
            let (a, b, c) = (RowSum(a), RowSum(b), RowSum(c));
            prop_assert_eq!(a.plus(b), b.plus(a));
            prop_assert_eq!(a.plus(b).plus(c), a.plus(b.plus(c)));
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.minus(a), RowSum::default());
        }

        #[test]
        fn sums_are_arithmetic(a in 0..u128::MAX / 2, b in 0..u128::MAX / 2) {
            prop_assert_eq!(sum(a).plus(sum(b)), sum(a + b));
        }

        #[test]
        fn decoding_never_panics_and_has_one_spelling(bytes: Vec<u8>) {
            let bytes = RowBytes(bytes);
            if let Some(row) = bytes.decode() {
                prop_assert_eq!(row.encode(), bytes);
            }
        }
    }

    /// Spelt by the first release. Should one of these change, no seal made before fits any more.
    const FIRST_SPELLINGS: [&str; 6] = [
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3101e8070006000a010128070707\
         0707070707070707070707070707070707070707070707070707070707070707070707070700",
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3101e8070208013c020101280707\
         070707070707070707070707070707070707070707070707070707070707070707070707070700",
        "1068736d2d61757468642f726f772f763100010662616e6b2d6106616363742d3102e8070208013c020001a846",
        "1068736d2d61757468642f726f772f763101010662616e6b2d610100ac0201ab0203050100a5f736a6f736030303\
         03030303030303030303030303a0f7360000",
        "1068736d2d61757468642f726f772f7631020662616e6b2d6106616363742d3101000000",
        "1068736d2d61757468642f726f772f763103076261636b656e64036b2d3101090909090909090909090909090909\
         0909090909090909090909090909090909027b7da846",
    ];

    #[test]
    fn rows_are_spelt_as_ever() {
        for (number, spelling) in FIRST_SPELLINGS.into_iter().enumerate() {
            let bytes = RowBytes(data_encoding::HEXLOWER.decode(spelling.as_bytes()).unwrap());
            let row = bytes.decode().unwrap_or_else(|| panic!("{number}"));
            let is_table = match row {
                Row::Credential(row) => number < 3 && matches!(row.kind, Kind::Otp(_)),
                Row::State(_) => number == 3,
                Row::Account(_) => number == 4,
                Row::Idempotency(_) => number == 5,
                Row::UsedInput(_) | Row::Attestation(_) | Row::Transaction(_) => false,
            };
            assert!(is_table, "{number}");
        }
    }

    /// OCRA and what it used up, spelt by the release that brought them; likewise.
    const OCRA_SPELLINGS: [&str; 3] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d610661\
         6363742d3101e80701234f4352412d313a484f54502d534841312d363a432d514e30382d50534841312d54314d\
         0a0101010120070707070707070707070707070707070707070707070707070707070707070701013009090909\
         090909090909090909090909090909090909090909090909090909090909090909090909090909090909090900",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d610661\
         6363742d3101e80701174f4352412d313a484f54502d534841312d363a514e30380a0100000000",
        "1068736d2d61757468642f726f772f763105878e9cb8f0e0c183878e9cb8f0e0c183870e050505050505050505\
         05050505050505050505050505050505050505050505050662616e6b2d6101016401c0c4f502",
    ];

    #[test]
    fn ocra_is_spelt_as_ever() {
        let credential = |suite: &str, usage, secret, pin_hash| {
            let suite = Suite::parse(suite).unwrap();
            let token = OcraToken { suite, look_ahead: 10, skew_steps: 1, usage, secret, pin_hash };
            Row::Credential(Credential {
                id: CredentialId::from_random([7; 16]),
                tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
                account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
                version: 1,
                created_unix_ms: 1_000,
                kind: Kind::Ocra(token),
                deleted_unix_ms: None,
            })
        };
        let secret = Some(WrappedSecret { kek_version: 1, blob: vec![7; 32] });
        let pin_hash = Some(EncryptedPinHash { data_version: 1, blob: vec![9; 48] });
        let input = UsedInput {
            id: CredentialId::from_random([7; 16]),
            fingerprint: [5; 32],
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            version: 1,
            time_step: Some(100),
            expires_unix_ms: Some(6_120_000),
        };
        let rows = [
            credential("OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-T1M", OcraUse::Verify, secret, pin_hash),
            credential("OCRA-1:HOTP-SHA1-6:QN08", OcraUse::Transaction, None, None),
            Row::UsedInput(input),
        ];
        for (row, spelling) in rows.into_iter().zip(OCRA_SPELLINGS) {
            assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), spelling);
            assert_eq!(row.encode().decode(), Some(row));
        }
    }

    /// An attestation, likewise.
    const ATTESTATION_SPELLING: &str = "1068736d2d61757468642f726f772f763106878e9cb8f0e0c183878e9cb8f0e0c183870e06\
         62616e6b2d610105682e632e73";

    #[test]
    fn an_attestation_is_spelt_as_ever() {
        let row = Row::Attestation(Attestation {
            transaction: TransactionId::from_random([7; 16]),
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            version: 1,
            jws: "h.c.s".to_owned(),
        });
        assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), ATTESTATION_SPELLING);
        assert_eq!(row.encode().decode(), Some(row));
    }

    /// Transactions, and the signers that came with them, spelt by the release that brought them; likewise.
    const TRANSACTION_SPELLINGS: [&str; 4] = [
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d61066163\
         63742d3101e8070301000102020102010300",
        "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d61066163\
         63742d3101e807040100100404040404040404040404040404040409612e6578616d706c65011168747470733a2f\
         2f612e6578616d706c6500",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d3700878e9cb8f0e0c183878e9cb8\
         f0e0c183870e194f4352412d313a484f54502d5348413235362d383a514836340109616363742d30303031164445\
         383933373034303034343035333230313330303007313235302e303003455552086f726465722d37370000002020\
         20202020202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d3701010101\
         010101010101010101010101e0a71200030000",
        "1068736d2d61757468642f726f772f763107010662616e6b2d6102a0c084d68d3701878e9cb8f0e0c183878e9cb8\
         f0e0c183870e0100164445383933373034303034343035333230313330303007313235302e303003455552086f72\
         6465722d3737010170010172018890a0c0808182848890a0c0808182848810090909090909090909090909090909\
         09090909090909090909090909090909092020202020202020202020202020202020202020202020202020202020\
         20202080e896d68d3780e896d68d3701010101010101010101010101010101e0a712010101ac0201ac020100",
    ];

    #[test]
    fn transactions_and_their_signers_are_spelt_as_ever() {
        let credential = |kind| {
            Row::Credential(Credential {
                id: CredentialId::from_random([7; 16]),
                tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
                account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
                version: 1,
                created_unix_ms: 1_000,
                kind,
                deleted_unix_ms: None,
            })
        };
        let signer = || Signer { algorithm: SignatureAlgorithm::Rs256, key: None };
        let chain: CertificateChain = serde_json::from_str("[[1, 2], [3]]").unwrap();
        let origins = vec!["https://a.example".to_owned()];
        let party = RelyingParty::new(vec![4; 16], "a.example".to_owned(), origins).unwrap();
        let plain = transaction::tests::golden();
        let device = Device::Assertion;
        let full = Transaction {
            version: 2,
            method: Method::DeviceSignature { credential: CredentialId::from_random([7; 16]), device },
            terms: Terms {
                payer: None,
                platform: Some("p".to_owned().try_into().unwrap()),
                remark: Some("r".to_owned().try_into().unwrap()),
                parent: Some(Parent { id: TransactionId::from_random([8; 16]), hash: [9; 32] }),
                ..plain.terms.clone()
            },
            state: State::Approved,
            attempts_left: 1,
            ended_unix_ms: Some(300),
            authenticator: Some(AuthenticatorReport {
                sign_count: 300,
                backup_eligible: true,
                backed_up: false,
            }),
            ..plain.clone()
        };
        let rows = [
            credential(Kind::CertifiedSigner(CertifiedSigner { signer: signer(), chain: Some(chain) })),
            credential(Kind::Authenticator(Authenticator { signer: signer(), party })),
            Row::Transaction(plain),
            Row::Transaction(full),
        ];
        for (row, spelling) in rows.into_iter().zip(TRANSACTION_SPELLINGS) {
            assert_eq!(data_encoding::HEXLOWER.encode(row.encode().as_bytes()), spelling);
            assert_eq!(row.encode().decode(), Some(row));
        }
    }

    #[test]
    fn a_credential_has_one_spelling() {
        let credential = Credential {
            id: CredentialId::from_random([7; 16]),
            tenant: Tenant::try_from("bank-a".to_owned()).unwrap(),
            account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
            version: 1,
            created_unix_ms: 0,
            kind: Kind::Otp(OtpToken {
                algorithm: Algorithm::Sha1,
                digits: Digits::default(),
                moving_factor: MovingFactor::Hotp { look_ahead: 1 },
                secret: None,
            }),
            deleted_unix_ms: None,
        };
        let other = Spelling::Credential(Cow::Borrowed(&credential));
        let other = RowBytes(postcard::to_allocvec(&(DOMAIN, other)).unwrap());
        assert_eq!(other.decode(), None, "that of the other kinds is not its own");
        assert!(Row::Credential(credential).encode().decode().is_some());
    }

    #[test]
    fn a_row_survives_its_encoding_and_no_two_tables_share_one() {
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        let account = AccountRef::try_from("acct-1".to_owned()).unwrap();
        let row = Row::Account(Account::new(tenant.clone(), account));
        assert_eq!(row.encode().decode(), Some(row.clone()));
        let state = Row::State(CredentialState::new(CredentialId::from_random([7; 16]), tenant, 0, 0));
        assert_ne!(row.encode(), state.encode());
        assert_eq!(state.encode().decode(), Some(state));
    }
}
