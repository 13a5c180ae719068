//! Which row stands where, as the one writer knows: in memory, out of reach of whoever edits the file.
//!
//! A seal says that a row is one of ours, and not that it is the last one. So the writer remembers of each row how its
//! seal begins, and holds against that what it finds before it writes, and what the decision was made on: an old row that
//! was put back, or one that was removed, is then not built upon.
//!
//! Some 20 to 40 bytes a row. Names are kept as 64-bit hashes under a key that is another with each start, so that
//! nobody can choose two rows of one name; by chance it happens once in 3 million starts over ten million rows, and then
//! one of the two rows is refused until the next start.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::domain::row::{RowKey, Seal};

/// The first eight bytes of a row's seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag([u8; 8]);

impl Tag {
    /// Of a seal.
    pub fn of(seal: &Seal) -> Self {
        Self::of_bytes(&seal.mac)
    }

    /// Of what stands in the column, whatever it is.
    pub(super) fn of_bytes(mac: &[u8]) -> Self {
        Self(mac.first_chunk().copied().unwrap_or_default())
    }
}

/// The rows that there are.
#[derive(Default)]
pub struct Inventory {
    names: RandomState,
    rows: HashMap<u64, Tag>,
    /// What the transaction that is under way made of some; `None`: it removed the row.
    pending: HashMap<u64, Option<Tag>>,
}

impl Inventory {
    /// Takes a row down that was found and checked.
    pub fn take(&mut self, key: &RowKey, seal: &Seal) {
        self.rows.insert(self.name(key), Tag::of(seal));
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What must stand at `key`.
    pub(super) fn at(&self, key: &RowKey) -> Option<Tag> {
        let name = self.name(key);
        self.pending.get(&name).copied().unwrap_or_else(|| self.rows.get(&name).copied())
    }

    /// What stands at `key` once the transaction is committed.
    pub(super) fn put(&mut self, key: &RowKey, tag: Option<Tag>) {
        self.pending.insert(self.name(key), tag);
    }

    /// The transaction was committed.
    pub(super) fn settle(&mut self) {
        for (name, tag) in self.pending.drain() {
            match tag {
                Some(tag) => self.rows.insert(name, tag),
                None => self.rows.remove(&name),
            };
        }
    }

    /// It was not.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
    }

    fn name(&self, key: &RowKey) -> u64 {
        self.names.hash_one((key.table(), key.digest()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::CredentialId;

    #[test]
    fn what_was_not_committed_is_forgotten() {
        let (one, other) = (CredentialId::from_random([1; 16]), CredentialId::from_random([2; 16]));
        let seal = |byte| Seal { key_version: 1, mac: [byte; 32] };
        let (credential, state) = (RowKey::Credential(one), RowKey::State(one));
        let mut rows = Inventory::default();
        rows.take(&credential, &seal(1));
        assert_eq!(rows.at(&credential), Some(Tag([1; 8])));
        assert_eq!((rows.at(&state), rows.at(&RowKey::Credential(other))), (None, None));
        rows.put(&credential, None);
        rows.put(&state, Some(Tag::of(&seal(2))));
        assert_eq!((rows.at(&credential), rows.at(&state)), (None, Some(Tag([2; 8]))));
        rows.forget();
        assert_eq!((rows.at(&credential), rows.at(&state)), (Some(Tag([1; 8])), None));
        rows.put(&credential, None);
        rows.put(&state, Some(Tag::of(&seal(2))));
        rows.settle();
        assert_eq!((rows.at(&credential), rows.at(&state)), (None, Some(Tag([2; 8]))));
        assert_eq!((rows.len(), rows.is_empty()), (1, false));
    }
}
