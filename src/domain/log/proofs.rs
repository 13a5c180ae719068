//! Proofs of RFC 6962, sections 2.1.1 and 2.1.2: that an entry is in the tree of a checkpoint, and that one checkpoint's
//! tree goes on from another's. And the root at any size that the tree had.
//!
//! They are made from what the store keeps: the hashes of leaves, and of complete subtrees of 256, 65,536, … of them.

use std::ops::Range;

use super::{LEVELS_A_TILE, TreeHash};

/// Reads hashes of the tree: `count` (at most 128) from `place` on, of a level that is kept: 0, 8, 16, …. It gives as
/// many as it is asked for, or an error: it is asked for complete subtrees of the tree alone.
pub trait ReadHashes<E>: FnMut(u8, u64, u64) -> Result<Vec<TreeHash>, E> {}

impl<E, F: FnMut(u8, u64, u64) -> Result<Vec<TreeHash>, E>> ReadHashes<E> for F {}

/// That leaf `leaf` is one of the first `size`: hashes from below. `None` if it is not.
///
/// # Errors
/// Those of `read`.
pub fn inclusion<E>(leaf: u64, size: u64, read: impl ReadHashes<E>) -> Result<Option<Vec<TreeHash>>, E> {
    if leaf >= size {
        return Ok(None);
    }
    let (mut all, mut path) = (0..size, Vec::new());
    while let Some(split) = split(&all) {
        if leaf < split {
            path.push(split..all.end);
            all.end = split;
        } else {
            path.push(all.start..split);
            all.start = split;
        }
    }
    hashes(path, read).map(Some)
}

/// That the tree of `size` leaves goes on from that of the first `from`: hashes from below. `None` if there are not so
/// many, or `from` is zero: of a tree without leaves there is nothing to prove.
///
/// # Errors
/// Those of `read`.
pub fn consistency<E>(from: u64, size: u64, read: impl ReadHashes<E>) -> Result<Option<Vec<TreeHash>>, E> {
    if from == 0 || from > size {
        return Ok(None);
    }
    let (mut all, mut path) = (0..size, Vec::new());
    while all.end != from
        && let Some(split) = split(&all)
    {
        if from <= split {
            path.push(split..all.end);
            all.end = split;
        } else {
            path.push(all.start..split);
            all.start = split;
        }
    }
    // Who checks it has the old root, which is this one, if the old tree is a subtree on the left edge.
    if all.start > 0 {
        path.push(all);
    }
    hashes(path, read).map(Some)
}

/// The root over the first `size` leaves.
///
/// # Errors
/// Those of `read`.
pub fn root<E>(size: u64, mut read: impl ReadHashes<E>) -> Result<TreeHash, E> {
    hash(0..size, &mut read)
}

/// Whether these hashes prove that `leaf_hash` is leaf `leaf` of the tree of `size` leaves with this root (RFC 9162,
/// section 2.1.3.2).
pub fn is_included(leaf: u64, size: u64, leaf_hash: TreeHash, proof: &[TreeHash], root: TreeHash) -> bool {
    if leaf >= size {
        return false;
    }
    let mut climb = Climb { place: leaf, last: size - 1 };
    let mut hash = leaf_hash;
    for sibling in proof {
        match climb.up() {
            None => return false,
            Some(Side::Left) => hash = TreeHash::of_node(*sibling, hash),
            Some(Side::Right) => hash = TreeHash::of_node(hash, *sibling),
        }
    }
    climb.last == 0 && hash == root
}

/// Whether these hashes prove that the tree of `size` leaves with root `root` goes on from that of `from` leaves with
/// root `from_root` (RFC 9162, section 2.1.4.2).
pub fn is_consistent(
    (from, from_root): (u64, TreeHash),
    (size, root): (u64, TreeHash),
    proof: &[TreeHash],
) -> bool {
    if from == 0 || from > size {
        return false;
    }
    if from == size {
        return proof.is_empty() && from_root == root;
    }
    // What both trees begin with: the whole old one, or the first hash.
    let (first, rest) = match (from.is_power_of_two(), proof) {
        (true, rest) => (from_root, rest),
        (false, [first, rest @ ..]) => (*first, rest),
        (false, []) => return false,
    };
    let level = (from - 1).trailing_ones();
    let mut climb = Climb { place: shifted(from - 1, level), last: shifted(size - 1, level) };
    let (mut old, mut new) = (first, first);
    for sibling in rest {
        match climb.up() {
            None => return false,
            Some(Side::Left) => {
                old = TreeHash::of_node(*sibling, old);
                new = TreeHash::of_node(*sibling, new);
            }
            Some(Side::Right) => new = TreeHash::of_node(new, *sibling),
        }
    }
    climb.last == 0 && old == from_root && new == root
}

/// A way up the tree: where it is on its level, and which place is the last one there.
struct Climb {
    place: u64,
    last: u64,
}

/// On which side of it the next hash belongs.
enum Side {
    Left,
    Right,
}

impl Climb {
    /// To the next node that has a sibling and one level above; `None` at the root.
    fn up(&mut self) -> Option<Side> {
        if self.last == 0 {
            return None;
        }
        let mut side = Side::Right;
        if self.place % 2 == 1 || self.place == self.last {
            // At the right edge a node without a sibling is its own parent.
            let alone = self.place.trailing_zeros();
            (self.place, self.last) = (shifted(self.place, alone), shifted(self.last, alone));
            side = Side::Left;
        }
        (self.place, self.last) = (self.place >> 1, self.last >> 1);
        Some(side)
    }
}

/// Where the tree over these leaves is split: after the largest power of two that is less than their number. `None` of
/// a leaf.
fn split(leaves: &Range<u64>) -> Option<u64> {
    let below = leaves.end.checked_sub(leaves.start)?.checked_sub(1)?;
    leaves.start.checked_add(1_u64.checked_shl(below.checked_ilog2()?)?)
}

fn hashes<E>(path: Vec<Range<u64>>, mut read: impl ReadHashes<E>) -> Result<Vec<TreeHash>, E> {
    path.into_iter().rev().map(|leaves| hash(leaves, &mut read)).collect()
}

/// The root over these leaves, which are a subtree of some tree: only one at its right edge is not complete.
fn hash<E>(leaves: Range<u64>, read: &mut impl ReadHashes<E>) -> Result<TreeHash, E> {
    let (mut at, mut peaks) = (leaves.start, Vec::new());
    while let Some(level) = leaves.end.saturating_sub(at).checked_ilog2() {
        peaks.push(complete(level, shifted(at, level), read)?);
        at = at.saturating_add(1_u64 << level);
    }
    let mut peaks = peaks.into_iter().rev();
    let Some(last) = peaks.next() else { return Ok(TreeHash::of_nothing()) };
    Ok(peaks.fold(last, |right, left| TreeHash::of_node(left, right)))
}

/// The hash of a complete subtree, from the kept ones below it.
fn complete<E>(level: u32, place: u64, read: &mut impl ReadHashes<E>) -> Result<TreeHash, E> {
    let above = level % u32::from(LEVELS_A_TILE);
    let kept = u8::try_from(level - above).unwrap_or(u8::MAX);
    let mut hashes = read(kept, place << above, 1 << above)?;
    while hashes.len() > 1 {
        let pair = |pair: &[TreeHash]| match pair {
            [left, right] => TreeHash::of_node(*left, *right),
            [one, ..] => *one,
            [] => TreeHash::of_nothing(),
        };
        hashes = hashes.chunks(2).map(pair).collect();
    }
    Ok(hashes.first().copied().unwrap_or(TreeHash::of_nothing()))
}

fn shifted(number: u64, places: u32) -> u64 {
    number.checked_shr(places).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::LazyLock;

    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use sha2::Sha256;

    use super::super::{Frontier, Subtree};
    use super::*;

    /// Past a subtree of 65,536, two of 256, and three.
    const LEAVES: u64 = 65_536 + 2 * 256 + 3;

    fn leaf(number: u64) -> [u8; 8] {
        number.to_be_bytes()
    }

    /// What a store keeps of a tree.
    struct Kept {
        leaves: Vec<TreeHash>,
        subtrees: BTreeMap<(u8, u64), TreeHash>,
        roots: Vec<TreeHash>,
    }

    impl Kept {
        fn of(leaves: impl Iterator<Item = TreeHash>) -> Self {
            let (mut frontier, mut kept) = (
                Frontier::default(),
                Self { leaves: Vec::new(), subtrees: BTreeMap::new(), roots: Vec::new() },
            );
            for leaf in leaves {
                kept.roots.push(frontier.root());
                kept.leaves.push(leaf);
                for Subtree { level, place, hash } in frontier.push(leaf) {
                    kept.subtrees.insert((level, place), hash);
                }
            }
            kept.roots.push(frontier.root());
            kept
        }

        fn read(&self, level: u8, place: u64, count: u64) -> Vec<TreeHash> {
            assert!((1..=128).contains(&count) && level.is_multiple_of(8), "{level} {count}");
            (place..place + count)
                .map(|place| match level {
                    0 => self.leaves[place as usize],
                    _ => self.subtrees[&(level, place)],
                })
                .collect()
        }

        /// As the proof of a tree of `size` leaves is made: with nothing of what came later. And how much was read of
        /// the level that was read most.
        fn reading<T>(
            &self,
            size: u64,
            prove: impl FnOnce(
                &mut dyn FnMut(u8, u64, u64) -> Result<Vec<TreeHash>, Infallible>,
            ) -> Result<T, Infallible>,
        ) -> (T, u64) {
            let mut read_of = BTreeMap::<u8, u64>::new();
            let mut read = |level, place, count| {
                assert!((place + count) << level <= size, "{level} {place} {count} of {size}");
                *read_of.entry(level).or_default() += count;
                Ok(self.read(level, place, count))
            };
            let Ok(made) = prove(&mut read);
            (made, read_of.into_values().max().unwrap_or(0))
        }

        fn inclusion(&self, leaf: u64, size: u64) -> Vec<TreeHash> {
            let (proof, most) = self.reading(size, |read| inclusion(leaf, size, read));
            assert!(most <= 2 * 256, "{most} hashes of a level");
            proof.unwrap()
        }

        fn consistency(&self, from: u64, size: u64) -> Vec<TreeHash> {
            let (proof, most) = self.reading(size, |read| consistency(from, size, read));
            assert!(most <= 2 * 256, "{most} hashes of a level");
            proof.unwrap()
        }
    }

    static KEPT: LazyLock<Kept> =
        LazyLock::new(|| Kept::of((0..LEAVES).map(|number| TreeHash::of_leaf(&leaf(number)))));

    type Oracle = MemoryBackedTree<Sha256, [u8; 8]>;

    fn oracle(size: u64) -> Oracle {
        let mut tree = Oracle::new();
        (0..size).for_each(|number| tree.push(leaf(number)));
        tree
    }

    fn bytes(proof: &[TreeHash]) -> Vec<u8> {
        proof.iter().flat_map(|hash| hash.0).collect()
    }

    /// By somebody else's code: these are the proofs that it makes, and it verifies them.
    fn agrees_with_the_oracle(tree: &Oracle, size: u64, leaf_number: u64, from: u64) {
        let kept = &*KEPT;
        let root = kept.roots[size as usize];
        assert_eq!(tree.root().as_bytes()[..], root.0);
        let proof = kept.inclusion(leaf_number, size);
        assert_eq!(
            tree.prove_inclusion(leaf_number as usize).as_bytes(),
            bytes(&proof),
            "{leaf_number} {size}"
        );
        let theirs = InclusionProof::<Sha256>::try_from_bytes(bytes(&proof)).unwrap();
        let their_root = RootHash::<Sha256>::new(root.0.into(), size);
        their_root.verify_inclusion(&leaf(leaf_number), leaf_number, &theirs).unwrap();
        let leaf_hash = kept.leaves[leaf_number as usize];
        assert!(is_included(leaf_number, size, leaf_hash, &proof, root), "{leaf_number} {size}");

        let proof = kept.consistency(from, size);
        let from_root = kept.roots[from as usize];
        assert!(is_consistent((from, from_root), (size, root), &proof), "{from} {size}");
        if from < size {
            let theirs = tree.prove_consistency((size - from) as usize);
            assert_eq!(theirs.as_bytes(), bytes(&proof), "{from} {size}");
            let old = RootHash::<Sha256>::new(from_root.0.into(), from);
            their_root.verify_consistency(&old, &theirs).unwrap();
            ConsistencyProof::<Sha256>::try_from_bytes(bytes(&proof)).unwrap();
        }
    }

    #[test]
    fn every_proof_of_a_small_tree_is_the_oracles() {
        for size in 1..=40 {
            let tree = oracle(size);
            for number in 0..size {
                agrees_with_the_oracle(&tree, size, number, number + 1);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn proofs_are_the_oracles((size, leaf, from) in (1_u64..4_000).prop_flat_map(|size| {
            (Just(size), 0..size, 1..=size)
        })) {
            agrees_with_the_oracle(&oracle(size), size, leaf, from);
        }

        #[test]
        fn what_proves_nothing_is_refused(
            size in 1_u64..2_000, leaf: u64, from: u64, place: usize, bit in 0..256_usize, other: u64,
        ) {
            let kept = &*KEPT;
            let (leaf, from) = (leaf % size, 1 + from % size);
            let (root, leaf_hash) = (kept.roots[size as usize], kept.leaves[leaf as usize]);
            let flip = |hash: &mut TreeHash| hash.0[bit / 8] ^= 1 << (bit % 8);
            let flipped = |mut hash: TreeHash| { flip(&mut hash); hash };

            let proof = kept.inclusion(leaf, size);
            prop_assert!(!is_included(leaf, size, flipped(leaf_hash), &proof, root));
            prop_assert!(!is_included(leaf, size, leaf_hash, &proof, flipped(root)));
            prop_assert!(!is_included(leaf, size, leaf_hash, &[&proof[..], &[root]].concat(), root));
            prop_assert!(!is_included(size, size, leaf_hash, &proof, root));
            let other = other % size;
            prop_assert!(other == leaf || !is_included(other, size, leaf_hash, &proof, root));
            if !proof.is_empty() {
                let mut changed = proof.clone();
                flip(&mut changed[place % proof.len()]);
                prop_assert!(!is_included(leaf, size, leaf_hash, &changed, root));
                prop_assert!(!is_included(leaf, size, leaf_hash, &proof[1..], root));
            }

            let (old, new) = ((from, kept.roots[from as usize]), (size, root));
            let proof = kept.consistency(from, size);
            prop_assert!(!is_consistent((from, flipped(old.1)), new, &proof));
            prop_assert!(!is_consistent(old, (size, flipped(root)), &proof));
            prop_assert!(!is_consistent(old, new, &[&proof[..], &[root]].concat()));
            prop_assert!(from == size || !is_consistent(new, old, &proof));
            prop_assert!(!is_consistent((0, TreeHash::of_nothing()), new, &proof));
            if !proof.is_empty() {
                let mut changed = proof.clone();
                flip(&mut changed[place % proof.len()]);
                prop_assert!(!is_consistent(old, new, &changed));
                prop_assert!(!is_consistent(old, new, &proof[1..]));
            }
        }
    }

    #[test]
    fn proofs_go_across_subtrees_of_65536() {
        let kept = &*KEPT;
        let edges = [1, 255, 256, 257, 511, 32_768, 65_535, 65_536, 65_537, 65_792, 65_793, 66_047, LEAVES];
        let tree = oracle(LEAVES);
        for from in edges {
            agrees_with_the_oracle(&tree, LEAVES, from - 1, from);
        }
        for size in [65_536, 65_537] {
            for from in edges.into_iter().filter(|from| *from <= size) {
                let [old, new] = [from, size].map(|size| (size, kept.roots[size as usize]));
                assert!(is_consistent(old, new, &kept.consistency(from, size)), "{from} {size}");
                let leaf = kept.leaves[from as usize - 1];
                assert!(
                    is_included(from - 1, size, leaf, &kept.inclusion(from - 1, size), new.1),
                    "{from} {size}"
                );
            }
        }
        assert_eq!(kept.subtrees.len(), 259);
        for size in edges.into_iter().chain([0]) {
            assert_eq!(kept.reading(size, |read| root(size, read)).0, kept.roots[size as usize], "{size}");
        }
    }

    #[test]
    fn there_is_no_proof_of_what_is_not_there() {
        let kept = &*KEPT;
        for (leaf, size) in [(0, 0), (1, 1), (9, 8), (u64::MAX, 3)] {
            assert_eq!(kept.reading(size, |read| inclusion(leaf, size, read)).0, None);
        }
        for (from, size) in [(0, 0), (0, 1), (9, 8), (u64::MAX, 3)] {
            assert_eq!(kept.reading(size, |read| consistency(from, size, read)).0, None);
        }
        let root = kept.roots[1];
        assert!(!is_included(0, 0, root, &[], root));
        assert!(!is_consistent((0, root), (0, root), &[]));
        assert!(is_consistent((1, root), (1, root), &[]));
        let huge = [root; 70];
        assert!(!is_included(u64::MAX - 1, u64::MAX, root, &huge, root));
        assert!(!is_consistent((u64::MAX, root), (u64::MAX, root), &huge));
        assert!(!is_consistent((u64::MAX - 1, root), (u64::MAX, root), &huge));
    }

    /// The leaves, roots and proofs of Certificate Transparency's own reference tests.
    #[test]
    fn the_known_tree_of_eight_leaves_has_its_known_proofs() {
        let leaves = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let hashes = leaves.map(|leaf| TreeHash::of_leaf(&HEXLOWER.decode(leaf.as_bytes()).unwrap()));
        let kept = Kept::of(hashes.into_iter());
        let hex =
            |hashes: &[TreeHash]| hashes.iter().map(|hash| HEXLOWER.encode(&hash.0)).collect::<Vec<_>>();
        assert_eq!(
            hex(&kept.roots[1..]),
            [
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
                "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
                "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
                "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
                "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            ]
        );
        assert_eq!(
            hex(&kept.inclusion(5, 8)),
            [
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
        assert_eq!(
            hex(&kept.consistency(6, 8)),
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
    }
}
