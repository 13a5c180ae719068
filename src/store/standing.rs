//! What a decision stood on, held against what is there when it is committed.

use super::Commit;
use super::inventory::{Inventory, Tag};
use crate::domain::row::{Row, RowKey, Sealed, Table};

/// A row as it was read: its version, and how its seal begins. A version alone would not say which row it was: there can
/// be two of ours with one version, of before and after a database was turned back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    key: RowKey,
    version: u64,
    tag: Tag,
}

impl<T: Clone + Into<Row>> From<&Sealed<T>> for Standing {
    fn from(sealed: &Sealed<T>) -> Self {
        let row = sealed.row.clone().into();
        Self { key: row.key(), version: row.version(), tag: Tag::of(&sealed.seal) }
    }
}

/// Whether what was read is what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It is.
    Same,
    /// No longer: somebody has to read again.
    Changed,
    /// One of them is not what was written last.
    Altered,
}

impl Standing {
    /// Its key.
    pub fn key(&self) -> &RowKey {
        &self.key
    }

    /// Whether it is what `next` replaces.
    fn is_before(&self, next: &Row) -> bool {
        self.version.checked_add(1) == Some(next.version()) && self.key == next.key()
    }

    /// Holds what was read against what is `found` at its key now. The inventory, if there is one, knows what has to be
    /// there.
    ///
    /// | found | read | |
    /// |---|---|---|
    /// | not what the inventory has | whatever | altered |
    /// | nothing | something | changed: it was removed since, or was not ours to be there |
    /// | the same seal | the same version | the same |
    /// | the same seal | another version | altered: a version was edited, there or when it was read |
    /// | another seal, a higher version | a lower version | changed: it was replaced since |
    /// | another seal, no higher version | of what comes once | altered: it was never ours to be read |
    /// | another seal, no higher version | of what may come again | changed: it may have been removed and made again |
    ///
    /// Without an inventory nobody knows which of two is right, so what would be altered is changed. Neither is
    /// committed: what is changed is read again, and that is what is there, or again not.
    pub(super) fn fit(&self, found: Option<(u64, Tag)>, inventory: Option<&Inventory>) -> Fit {
        let is_known = inventory.is_some();
        if inventory.is_some_and(|inventory| inventory.at(&self.key) != found.map(|(_, tag)| tag)) {
            return Fit::Altered;
        }
        let is_honest =
            |version, tag| tag != self.tag && (version > self.version || !comes_once(self.key.table()));
        match found {
            Some((version, tag)) if (version, tag) == (self.version, self.tag) => Fit::Same,
            Some((version, tag)) if is_known && !is_honest(version, tag) => Fit::Altered,
            Some(_) | None => Fit::Changed,
        }
    }
}

impl Commit {
    /// The keys at which it writes where there was nothing.
    pub(super) fn new_keys(&self) -> impl Iterator<Item = RowKey> {
        self.rows.iter().filter(|sealed| is_new(&sealed.row)).map(|sealed| sealed.row.key())
    }

    /// Whether it says that it has read all that it replaces or removes.
    pub(super) fn has_read_all(&self) -> bool {
        let is_read = |next: &Sealed<Row>| self.before.iter().any(|before| before.is_before(&next.row));
        self.rows.iter().all(|sealed| is_new(&sealed.row) || is_read(sealed))
            && self.removed.iter().all(|key| self.before.iter().any(|before| before.key == *key))
    }
}

fn is_new(row: &Row) -> bool {
    row.version() == 1
}

/// Whether a key that had a row, and has none any more, never has one again: ids are drawn, and an account stays.
fn comes_once(table: Table) -> bool {
    match table {
        Table::Credential
        | Table::State
        | Table::Account
        | Table::Attestation
        | Table::Transaction
        | Table::Presentation => true,
        Table::Idempotency
        | Table::UsedInput
        | Table::Binding
        | Table::Authorization
        | Table::ImportedSeed => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::credential::CredentialState;
    use crate::domain::id::CredentialId;
    use crate::domain::rolling::{Binding, LOOKUP_BYTES};
    use crate::domain::row::Seal;

    fn seal(byte: u8) -> Seal {
        Seal { key_version: 1, mac: [byte; 32] }
    }

    fn state(version: u64, byte: u8) -> Sealed<CredentialState> {
        let state = CredentialState::new(
            CredentialId::from_random([1; 16]),
            "t".to_owned().try_into().unwrap(),
            0,
            0,
        );
        Sealed { row: CredentialState { version, ..state }, seal: seal(byte) }
    }

    fn binding(version: u64, byte: u8) -> Sealed<Binding> {
        let (id, tenant) = (CredentialId::from_random([1; 16]), "t".to_owned().try_into().unwrap());
        let binding = Binding::first(id, tenant, [0; LOOKUP_BYTES]);
        Sealed { row: Binding { version, ..binding }, seal: seal(byte) }
    }

    /// How what was read fits what is found, where the inventory has `known`; and without one.
    fn fits(read: Standing, found: Option<(u64, u8)>, known: Option<u8>) -> (Fit, Fit) {
        let found = found.map(|(version, byte)| (version, Tag::of(&seal(byte))));
        let mut inventory = Inventory::default();
        known.iter().for_each(|byte| inventory.take(read.key(), &seal(*byte)));
        (read.fit(found, Some(&inventory)), read.fit(found, None))
    }

    #[test]
    fn each_case_is_what_the_table_says() {
        use Fit::{Altered, Changed, Same};
        for read in [Standing::from(&state(2, 7)), (&binding(2, 7)).into()] {
            let fits = |found, known| fits(read.clone(), found, known);
            // What is there is not what was written last.
            assert_eq!(fits(Some((2, 7)), Some(8)), (Altered, Same));
            assert_eq!(fits(Some((2, 7)), None), (Altered, Same));
            assert_eq!(fits(Some((2, 8)), Some(7)), (Altered, Changed));
            assert_eq!(fits(None, Some(7)), (Altered, Changed));
            // It is, and what was read is not there any more.
            assert_eq!(fits(None, None), (Changed, Changed));
            assert_eq!(fits(Some((3, 8)), Some(8)), (Changed, Changed));
            assert_eq!(fits(Some((2, 7)), Some(7)), (Same, Same));
            // One seal is of one version.
            assert_eq!(fits(Some((1, 7)), Some(7)), (Altered, Changed));
            assert_eq!(fits(Some((3, 7)), Some(7)), (Altered, Changed));
        }
        for version in [1, 2] {
            assert_eq!(fits((&state(2, 7)).into(), Some((version, 8)), Some(8)), (Altered, Changed));
            assert_eq!(fits((&binding(2, 7)).into(), Some((version, 8)), Some(8)), (Changed, Changed));
        }
    }
}
