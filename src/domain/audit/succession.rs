//! What the log may say of a row next.

use super::super::row::Table;

/// Rows whose keys may come again after they were removed: they begin anew then. No other ones do.
const RECURRING: [Table; 4] = [Table::Idempotency, Table::Binding, Table::Authorization, Table::ImportedSeed];

/// Whether the key of a removed row of this table may come again.
pub fn comes_again(table: Table) -> bool {
    RECURRING.contains(&table)
}

/// Whether an entry may give a row this version, 0 if it removes it, after the last one that `before` is of.
///
/// `None`: no entry has told of it. Then it begins with 1, unless `may_be_older`: entries of an earlier release did not
/// name rows, and a recovery takes rows as it finds them.
pub fn may_follow(table: Table, before: Option<u64>, version: u64, may_be_older: bool) -> bool {
    match before {
        None => version == 1 || may_be_older,
        Some(0) => version == 1 && comes_again(table),
        Some(before) => version == 0 || before.checked_add(1) == Some(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_follows_the_one_before_it() {
        for table in Table::ALL {
            let follows = |before, version| may_follow(*table, before, version, false);
            assert_eq!([0, 1, 2].map(|version| follows(None, version)), [false, true, false]);
            assert!([0, 7, u64::MAX].into_iter().all(|version| may_follow(*table, None, version, true)));
            for may_be_older in [false, true] {
                let follows = |before, version| may_follow(*table, Some(before), version, may_be_older);
                assert_eq!(
                    [0, 1, 4, 5, 6, 7].map(|version| follows(5, version)),
                    [true, false, false, false, true, false]
                );
                assert!(follows(u64::MAX, 0) && !follows(u64::MAX, u64::MAX) && !follows(u64::MAX, 1));
                let is_recurring = ["idempotency", "binding", "device_authorization", "imported_seed"]
                    .contains(&table.name());
                assert_eq!([0, 1, 2].map(|version| follows(0, version)), [false, is_recurring, false]);
            }
        }
    }
}
