//! The audit log as a Merkle tree (RFC 6962, section 2): hashes, and the frontier that it grows by.
//!
//! Leaf n is entry n + 1. Complete subtrees of 256, 65,536, … leaves are kept in the store, so that no proof reads
//! more than 512 hashes of a level.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub mod proofs;

/// So many levels of the tree lie between two that are kept: a kept subtree has 256 of the kept ones below it.
pub const LEVELS_A_TILE: u8 = 8;

/// A hash of the tree: of a leaf, of a subtree, or its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TreeHash(pub [u8; 32]);

impl TreeHash {
    /// Of a leaf: SHA-256(0x00 || leaf).
    pub fn of_leaf(leaf: &[u8]) -> Self {
        Self(Sha256::new().chain_update([0]).chain_update(leaf).finalize().into())
    }

    /// Of a subtree: SHA-256(0x01 || left || right).
    #[must_use]
    pub fn of_node(left: Self, right: Self) -> Self {
        Self(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
    }

    /// Of the tree without leaves: SHA-256 of nothing.
    pub fn of_nothing() -> Self {
        Self(Sha256::digest([]).into())
    }
}

/// A complete subtree of 2^`level` leaves, the first of which is leaf `place` * 2^`level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// How high it is; leaves are level 0.
    pub level: u8,
    /// Which of its level, from 0.
    pub place: u64,
    /// Its hash.
    pub hash: TreeHash,
}

/// The right edge of the tree: the complete subtrees that its leaves make up, the largest first. At most 64 hashes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<(u8, TreeHash)>,
}

impl Frontier {
    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf. Gives the subtrees to keep that it completes: seldom any.
    pub fn push(&mut self, leaf: TreeHash) -> Vec<Subtree> {
        self.append(0, leaf)
    }

    /// Adds a complete subtree; every level below it must be empty at the right edge, which is so if the tree is put
    /// together again from its largest subtrees on. Gives the subtrees to keep that it completes.
    pub fn append(&mut self, level: u8, hash: TreeHash) -> Vec<Subtree> {
        self.size = self.size.saturating_add(1_u64.checked_shl(level.into()).unwrap_or(0));
        let (mut level, mut hash, mut completed) = (level, hash, Vec::new());
        while let Some((_, left)) = self.peaks.pop_if(|(height, _)| *height == level) {
            hash = TreeHash::of_node(left, hash);
            level = level.saturating_add(1);
            if level.is_multiple_of(LEVELS_A_TILE) {
                let place = self.size.checked_shr(level.into()).unwrap_or(0).saturating_sub(1);
                completed.push(Subtree { level, place, hash });
            }
        }
        self.peaks.push((level, hash));
        completed
    }

    /// The root over all leaves.
    pub fn root(&self) -> TreeHash {
        let mut peaks = self.peaks.iter().rev().map(|(_, hash)| *hash);
        let Some(last) = peaks.next() else { return TreeHash::of_nothing() };
        peaks.fold(last, |right, left| TreeHash::of_node(left, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962, section 2.1, word for word.
    fn root_of(leaves: &[TreeHash]) -> TreeHash {
        match leaves {
            [] => TreeHash::of_nothing(),
            [leaf] => *leaf,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                TreeHash::of_node(root_of(&leaves[..split]), root_of(&leaves[split..]))
            }
        }
    }

    fn leaves(count: u64) -> Vec<TreeHash> {
        (0..count).map(|number| TreeHash::of_leaf(&number.to_be_bytes())).collect()
    }

    #[test]
    fn the_root_is_that_of_rfc_6962_at_every_size() {
        let leaves = leaves(600);
        let mut frontier = Frontier::default();
        for size in 0..leaves.len() {
            assert_eq!(frontier.root(), root_of(&leaves[..size]), "{size}");
            let completed = frontier.push(leaves[size]);
            assert_eq!(frontier.size(), size as u64 + 1);
            let whole_tiles = (size + 1).is_multiple_of(256);
            assert_eq!(completed.len(), usize::from(whole_tiles), "{size}");
            for Subtree { level, place, hash } in completed {
                assert_eq!((level, place), (8, size as u64 / 256));
                assert_eq!(hash, root_of(&leaves[size - 255..=size]));
            }
        }
    }

    #[test]
    fn a_tree_is_put_together_again_from_its_largest_subtrees_on() {
        let leaves = leaves(65_536 + 2 * 256 + 3);
        let (mut grown, mut kept) = (Frontier::default(), Vec::new());
        for leaf in &leaves {
            kept.extend(grown.push(*leaf));
        }
        assert_eq!(kept.iter().filter(|subtree| subtree.level == 16).count(), 1);
        assert_eq!(kept.iter().filter(|subtree| subtree.level == 8).count(), 258);
        let mut again = Frontier::default();
        for (level, from) in [(16, 0), (8, 256)] {
            for subtree in kept.iter().filter(|subtree| subtree.level == level && subtree.place >= from) {
                again.append(level, subtree.hash);
            }
        }
        for leaf in &leaves[65_536 + 512..] {
            again.push(*leaf);
        }
        assert_eq!(again, grown);
        assert_eq!(again.root(), root_of(&leaves));
    }

    #[test]
    fn hashes_are_those_of_the_rfc() {
        let hex = |hash: TreeHash| data_encoding::HEXLOWER.encode(&hash.0);
        assert_eq!(
            hex(TreeHash::of_nothing()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(TreeHash::of_leaf(b"")),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }
}
