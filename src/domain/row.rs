//! Rows as they are sealed: one canonical encoding, and a sum over all of them.

mod spelling;
mod sums;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::spelling::Spelling;
use super::account::{Account, AccountRef};
use super::attestation::Attestation;
use super::authorization::Authorization;
use super::caller::{ClientName, Tenant};
use super::credential::{Credential, CredentialState, ImportedSeed, UsedInput};
use super::enc::enc;
use super::id::{CredentialId, PresentationId, TransactionId};
use super::idempotency::{IdempotencyKey, IdempotencyRecord};
use super::presentation::Presentation;
use super::rolling::Binding;
use super::transaction::Transaction;

pub use sums::{LANES, RowSum, SumDigest, TableSums};

/// What every encoding begins with: a seal made here fits nothing else that the key ever seals.
const DOMAIN: &str = "hsm-authd/row/v1";

macro_rules! tables {
    ($($(#[$about:meta])* $variant:ident $name:literal,)+) => {
        /// A table of rows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Table {
            $($(#[$about])* $variant,)+
        }

        impl Table {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in the database.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

tables! {
    /// Of [`Row::Credential`].
    Credential "credential",
    /// Of [`Row::State`].
    State "credential_state",
    /// Of [`Row::Account`].
    Account "account",
    /// Of [`Row::Idempotency`].
    Idempotency "idempotency",
    /// Of [`Row::UsedInput`].
    UsedInput "used_input",
    /// Of [`Row::Attestation`].
    Attestation "attestation",
    /// Of [`Row::Transaction`].
    Transaction "payment",
    /// Of [`Row::Binding`].
    Binding "binding",
    /// Of [`Row::Presentation`].
    Presentation "presentation",
    /// Of [`Row::Authorization`].
    Authorization "device_authorization",
    /// Of [`Row::ImportedSeed`].
    ImportedSeed "imported_seed",
}

impl Table {
    /// The table of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|table| table.name() == name)
    }
}

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
    /// Table `imported_seed`.
    ImportedSeed(ImportedSeed),
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
    /// Table `imported_seed`: the tenant, and the fingerprint of what came.
    ImportedSeed(Tenant, [u8; 32]),
}

impl RowKey {
    /// Its table.
    pub fn table(&self) -> Table {
        match self {
            Self::Credential(_) => Table::Credential,
            Self::State(_) => Table::State,
            Self::Account(..) => Table::Account,
            Self::Idempotency(..) => Table::Idempotency,
            Self::UsedInput(..) => Table::UsedInput,
            Self::Attestation(_) => Table::Attestation,
            Self::Transaction(_) => Table::Transaction,
            Self::Binding(_) => Table::Binding,
            Self::Presentation(_) => Table::Presentation,
            Self::Authorization(_) => Table::Authorization,
            Self::ImportedSeed(..) => Table::ImportedSeed,
        }
    }

    /// The first 16 bytes of the SHA-256 of its parts: what the log calls the row. Clients choose some parts, and find no
    /// two rows of one name.
    pub fn digest(&self) -> [u8; 16] {
        let parts = match self {
            Self::Credential(id) | Self::State(id) | Self::Binding(id) | Self::Authorization(id) => {
                enc(&[&id.to_bytes()])
            }
            Self::Account(tenant, account) => enc(&[tenant.as_str().as_bytes(), account.as_str().as_bytes()]),
            Self::Idempotency(client, key) => enc(&[client.as_str().as_bytes(), key.as_str().as_bytes()]),
            Self::UsedInput(id, fingerprint) => enc(&[&id.to_bytes(), fingerprint]),
            Self::Attestation(id) | Self::Transaction(id) => enc(&[&id.to_bytes()]),
            Self::Presentation(id) => enc(&[&id.to_bytes()]),
            Self::ImportedSeed(tenant, fingerprint) => enc(&[tenant.as_str().as_bytes(), fingerprint]),
        };
        let digest: [u8; 32] = Sha256::digest(parts).into();
        let mut first = [0; 16];
        first.iter_mut().zip(digest).for_each(|(place, byte)| *place = byte);
        first
    }
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
            Self::ImportedSeed(row) => RowKey::ImportedSeed(row.tenant.clone(), row.fingerprint),
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
            Self::ImportedSeed(row) => row.version,
        }
    }

    /// Becomes its next version, otherwise the same.
    pub fn succeed(&mut self) {
        let version = match self {
            Self::Credential(row) => &mut row.version,
            Self::State(row) => &mut row.version,
            Self::Account(row) => &mut row.version,
            Self::Idempotency(row) => &mut row.version,
            Self::UsedInput(row) => &mut row.version,
            Self::Attestation(row) => &mut row.version,
            Self::Transaction(row) => &mut row.version,
            Self::Binding(row) => &mut row.version,
            Self::Presentation(row) => &mut row.version,
            Self::Authorization(row) => &mut row.version,
            Self::ImportedSeed(row) => &mut row.version,
        };
        *version = version.saturating_add(1);
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

    /// The table of the row they encode, by what they begin with; `None` for anything that [`Row::encode`] does not
    /// begin with. The rest is not looked at.
    pub fn table(&self) -> Option<Table> {
        // The purpose's length and text, then the spelling's number, below 128: one byte.
        let (purpose, rest) = self.0.split_at_checked(1 + DOMAIN.len())?;
        let is_ours = purpose.split_first()? == (&(DOMAIN.len() as u8), DOMAIN.as_bytes());
        Spelling::table(*rest.first()?).filter(|_| is_ours)
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
    Authorization => Authorization,
    ImportedSeed => ImportedSeed
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_never_panics_and_has_one_spelling(bytes: Vec<u8>) {
            let bytes = RowBytes(bytes);
            if let Some(row) = bytes.decode() {
                prop_assert_eq!(bytes.table(), Some(row.key().table()));
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
