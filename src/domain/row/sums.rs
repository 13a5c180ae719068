//! Sums over all rows: what shows that a row was deleted, doubled or put back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Table;

/// How many numbers a sum has. The sum of keyed hashes alone is not enough where its changes can be seen: with 256 bits,
/// some ten thousand changes of rows suffice to find old rows that together add up to nothing new, in about 2^33 steps
/// (Wagner, "A Generalized Birthday Problem", CRYPTO 2002). With 2,048 bits it takes some 2^90.
pub const LANES: usize = 8;

/// A multiset hash: the sum of a keyed hash of every live row, in [`LANES`] numbers modulo 2^256, big-endian.
///
/// Adding and taking away rows in any order gives the same sum for the same rows, so a row that was
/// deleted, doubled or put back from an old copy shows, although its own seal is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSum([[u8; 32]; LANES]);

impl RowSum {
    /// How long it is, in bytes.
    pub const BYTES: usize = LANES * 32;

    /// Of its numbers.
    pub fn new(lanes: [[u8; 32]; LANES]) -> Self {
        Self(lanes)
    }

    /// As an earlier release knew it: the first number alone.
    pub fn of_first(lane: [u8; 32]) -> Self {
        let mut lanes = [[0; 32]; LANES];
        if let Some(first) = lanes.first_mut() {
            *first = lane;
        }
        Self(lanes)
    }

    /// The first number, which an earlier release knew alone.
    pub fn first(&self) -> [u8; 32] {
        self.0.first().copied().unwrap_or_default()
    }

    /// Of the bytes of its numbers, one after the other; `None` for another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut lanes = [[0; 32]; LANES];
        let (chunks, []) = bytes.as_chunks() else { return None };
        (chunks.len() == LANES).then(|| {
            lanes.copy_from_slice(chunks);
            Self(lanes)
        })
    }

    /// The bytes of its numbers, one after the other.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }

    /// What stands for it where it is signed.
    pub fn digest(&self) -> SumDigest {
        SumDigest::All(Sha256::digest(self.as_bytes()).into())
    }

    /// `self + other`.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = plus(*lane, other));
        self
    }

    /// `self - other`.
    #[must_use]
    pub fn minus(mut self, other: Self) -> Self {
        let mut one = [0; 32];
        one[31] = 1;
        let negative = |lane: [u8; 32]| plus(lane.map(|byte| !byte), one);
        self.0.iter_mut().zip(other.0).for_each(|(lane, other)| *lane = plus(*lane, negative(other)));
        self
    }
}

/// What stands for a sum where it is signed. Which of the two it is, is signed as well: the one is not taken for the
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SumDigest {
    /// The only number that an earlier release knew.
    First([u8; 32]),
    /// The SHA-256 of all of them.
    All([u8; 32]),
}

impl SumDigest {
    /// Its 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        let (Self::First(bytes) | Self::All(bytes)) = self;
        bytes
    }
}

impl Default for SumDigest {
    /// Of no rows, before any release has summed up.
    fn default() -> Self {
        Self::First([0; 32])
    }
}

/// `a + b` modulo 2^256.
fn plus(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    let (mut sum, mut carry) = ([0u8; 32], 0u16);
    for ((place, a), b) in sum.iter_mut().zip(a).zip(b).rev() {
        let digit = u16::from(a) + u16::from(b) + carry;
        *place = digit as u8;
        carry = digit >> 8;
    }
    sum
}

/// A sum a table, so that a wrong one names its table; a table that is not named has the sum zero. It is a change of
/// the sums as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSums(BTreeMap<Table, RowSum>);

impl TableSums {
    /// Adds to a table's sum.
    pub fn add(&mut self, table: Table, summand: RowSum) {
        self.set(table, self.of(table).plus(summand));
    }

    /// Takes away from a table's sum.
    pub fn subtract(&mut self, table: Table, summand: RowSum) {
        self.set(table, self.of(table).minus(summand));
    }

    /// Adds every table's sum of the other.
    pub fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(table, sum)| self.add(*table, *sum));
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.add_all(other);
        both
    }

    /// A table's sum.
    pub fn of(&self, table: Table) -> RowSum {
        self.0.get(&table).copied().unwrap_or_default()
    }

    /// Over all tables.
    pub fn total(&self) -> RowSum {
        self.0.values().copied().fold(RowSum::default(), RowSum::plus)
    }

    /// The tables that it names.
    pub fn tables(&self) -> impl Iterator<Item = Table> + '_ {
        self.0.keys().copied()
    }

    /// As an earlier release knew them: of each sum the first number alone.
    #[must_use]
    pub fn of_first(&self) -> Self {
        let mut first = Self::default();
        self.0.iter().for_each(|(table, sum)| first.set(*table, RowSum::of_first(sum.first())));
        first
    }

    /// Zero is not named, so that equal sums are equal values.
    fn set(&mut self, table: Table, sum: RowSum) {
        match sum == RowSum::default() {
            true => self.0.remove(&table),
            false => self.0.insert(table, sum),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(low: u128) -> RowSum {
        let mut bytes = [0u8; 32];
        bytes[16..].copy_from_slice(&low.to_be_bytes());
        RowSum([bytes; LANES])
    }

    proptest! {
        #[test]
        fn sums_are_a_group(a: [[u8; 32]; LANES], b: [[u8; 32]; LANES], c: [[u8; 32]; LANES]) {
            let (a, b, c) = (RowSum(a), RowSum(b), RowSum(c));
            prop_assert_eq!(a.plus(b), b.plus(a));
            prop_assert_eq!(a.plus(b).plus(c), a.plus(b.plus(c)));
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.minus(a), RowSum::default());
            prop_assert_eq!(RowSum::from_bytes(a.as_bytes()), Some(a));
            prop_assert_eq!(RowSum::of_first(a.first()).plus(RowSum::of_first(b.first())).first(), a.plus(b).first());
        }

        #[test]
        fn sums_are_arithmetic(a in 0..u128::MAX / 2, b in 0..u128::MAX / 2) {
            prop_assert_eq!(sum(a).plus(sum(b)), sum(a + b));
        }

        #[test]
        fn each_table_has_its_own(a: [[u8; 32]; LANES], b: [[u8; 32]; LANES]) {
            let (a, b, mut sums) = (RowSum(a), RowSum(b), TableSums::default());
            sums.add(Table::State, a);
            sums.add(Table::Account, b);
            prop_assert_eq!((sums.of(Table::State), sums.of(Table::Account)), (a, b));
            prop_assert_eq!(sums.total(), a.plus(b));
            let mut twice = sums.clone();
            twice.add_all(&sums);
            prop_assert_eq!(twice.of(Table::State), a.plus(a));
            twice.subtract(Table::State, a);
            twice.subtract(Table::Account, b);
            prop_assert_eq!(&twice, &sums);
            let first = sums.of_first();
            prop_assert_eq!(first.of(Table::State), RowSum::of_first(a.first()));
            sums.subtract(Table::State, a);
            sums.subtract(Table::Account, b);
            prop_assert_eq!(sums, TableSums::default());
        }
    }
}
