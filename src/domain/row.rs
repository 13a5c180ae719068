//! Rows as they are sealed: one canonical encoding, and a sum over all of them.

mod spelling;

use serde::{Deserialize, Serialize};

use self::spelling::Spelling;
use super::account::{Account, AccountRef};
use super::attestation::Attestation;
use super::authorization::Authorization;
use super::caller::{ClientName, Tenant};
use super::credential::{Credential, CredentialState, UsedInput};
use super::id::{CredentialId, PresentationId, TransactionId};
use super::idempotency::{IdempotencyKey, IdempotencyRecord};
use super::presentation::Presentation;
use super::rolling::Binding;
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
    /// Table `binding`.
    Binding(Binding),
    /// Table `presentation`.
    Presentation(Presentation),
    /// Table `device_authorization`.
    Authorization(Authorization),
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
    /// Table `binding`.
    Binding(CredentialId),
    /// Table `presentation`.
    Presentation(PresentationId),
    /// Table `device_authorization`.
    Authorization(CredentialId),
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
            Self::Binding(row) => RowKey::Binding(row.credential),
            Self::Presentation(row) => RowKey::Presentation(row.id),
            Self::Authorization(row) => RowKey::Authorization(row.credential),
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
            Self::Binding(row) => row.version,
            Self::Presentation(row) => row.version,
            Self::Authorization(row) => row.version,
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
    Transaction => Transaction,
    Binding => Binding,
    Presentation => Presentation,
    Authorization => Authorization
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
