//! Sums over all rows: what shows that a row was deleted, doubled or put back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Table;

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
        for ((place, a), b) in sum.iter_mut().zip(self.0).zip(other.0).rev() {
            let digit = u16::from(a) + u16::from(b) + carry;
            *place = digit as u8;
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
        fn each_table_has_its_own(a: [u8; 32], b: [u8; 32]) {
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
            sums.subtract(Table::State, a);
            sums.subtract(Table::Account, b);
            prop_assert_eq!(sums, TableSums::default());
        }
    }
}
