//! The versions of a key.

use std::collections::BTreeMap;

/// The versions of one thing: at least one.
pub struct Versions<T> {
    pub newest: (u16, T),
    older: BTreeMap<u16, T>,
}

impl<T> Versions<T> {
    pub fn new(mut all: BTreeMap<u16, T>) -> Option<Self> {
        Some(Self { newest: all.pop_last()?, older: all })
    }

    pub fn get(&self, version: u16) -> Option<&T> {
        if version == self.newest.0 { Some(&self.newest.1) } else { self.older.get(&version) }
    }

    /// Adds versions that are not there yet; the highest of all is the newest from then on.
    pub fn extend(&mut self, more: BTreeMap<u16, T>) {
        for (version, value) in more {
            if version > self.newest.0 {
                let (before, value) = std::mem::replace(&mut self.newest, (version, value));
                self.older.insert(before, value);
            } else {
                self.older.insert(version, value);
            }
        }
    }

    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.older.keys().copied().chain([self.newest.0])
    }

    pub fn newest_first(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.newest.1).chain(self.older.values().rev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_is_the_newest_and_all_are_found() {
        let versions = Versions::new(BTreeMap::from([(2, 'b'), (10, 'c'), (1, 'a')])).unwrap();
        assert_eq!(versions.newest, (10, 'c'));
        assert_eq!([1, 2, 10].map(|version| *versions.get(version).unwrap()), ['a', 'b', 'c']);
        assert!(versions.get(3).is_none());
        assert_eq!(versions.newest_first().collect::<String>(), "cba");
        assert!(Versions::<char>::new(BTreeMap::new()).is_none());
        let mut grown = versions;
        grown.extend(BTreeMap::from([(3, 'd'), (11, 'e')]));
        assert_eq!(grown.newest, (11, 'e'));
        assert_eq!(grown.newest_first().collect::<String>(), "ecdba");
    }
}
