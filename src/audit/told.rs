//! What the log says of rows, held against the rows: each has the version that the last entry about it gave it.
//!
//! The memory for it is bounded, whatever the length of the log and the number of rows: if there is more than fits, only
//! keys up to a point are looked at, and the rest in another pass.

use std::collections::BTreeMap;

use crate::domain::audit::{Event, Logged, RowMark};
use crate::domain::row::{Row, RowKey, Table};

/// So many rows are held in memory at once, at about 50 bytes each.
pub const ROWS_MAX: usize = 1_000_000;

/// By its digest, which spreads evenly, and its table.
type Key = (u128, Table);

/// The last word of the log on a row.
#[derive(Clone, Copy)]
struct Word {
    /// 0: it was removed.
    version: u64,
    seq: u64,
}

/// What the log says of the rows whose digests lie in a range.
pub struct Told {
    words: BTreeMap<Key, Word>,
    words_max: usize,
    /// Keys of this digest and above are of this pass.
    from: u128,
    /// Keys of this digest and above are of a later pass.
    until: Option<u128>,
    age: Age,
    found: u64,
    older: u64,
}

/// Whether entries were written before entries named rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    /// No entry names a row yet.
    Unknown { enrolled: bool },
    /// An earlier release wrote some: of rows that it wrote and nobody changed since, nothing is said.
    Old,
    /// Every row has its entry.
    New,
}

impl Told {
    /// Of nothing yet.
    pub fn new(words_max: usize) -> Self {
        let age = Age::Unknown { enrolled: false };
        Self { words: BTreeMap::new(), words_max, from: 0, until: None, age, found: 0, older: 0 }
    }

    /// Takes the next entry of the log.
    pub fn hear(&mut self, logged: &Logged) {
        if let Age::Unknown { enrolled } = self.age {
            self.age = match (logged.rows.0.is_empty(), enrolled) {
                (true, _) => Age::Unknown { enrolled: enrolled || logged.entry.event == Event::Enrolled },
                (false, true) => Age::Old,
                (false, false) => Age::New,
            };
        }
        for RowMark { table, key, version } in &logged.rows.0 {
            let digest = u128::from_be_bytes(*key);
            if digest < self.from || self.until.is_some_and(|until| digest >= until) {
                continue;
            }
            // Of a row that is gone nothing has to be known but where rows may be that nothing is said of.
            if *version == 0 && self.age == Age::New {
                self.words.remove(&(digest, *table));
            } else {
                self.words.insert((digest, *table), Word { version: *version, seq: logged.seq });
            }
            if self.words.len() > self.words_max {
                self.leave_half_for_later();
            }
        }
    }

    fn leave_half_for_later(&mut self) {
        let middle = self.words.keys().nth(self.words.len() / 2).map(|(digest, _)| *digest);
        if let Some(middle) = middle.filter(|middle| *middle > self.from) {
            self.until = Some(middle);
            drop(self.words.split_off(&(middle, Table::Credential)));
        }
    }

    /// Takes a row, after the last entry. Says what is wrong with it, if something is.
    pub fn see(&mut self, row: &Row) -> Option<String> {
        let key = row.key();
        let digest = u128::from_be_bytes(key.digest());
        if digest < self.from || self.until.is_some_and(|until| digest >= until) {
            return None;
        }
        let (name, version) = (name(&key), row.version());
        match self.words.remove(&(digest, key.table())) {
            Some(word) if word.version == version => {
                self.found += 1;
                None
            }
            Some(Word { version: 0, seq }) => {
                Some(format!("row {name} is there, and entry {seq} says that it was removed"))
            }
            Some(word) => Some(format!(
                "row {name} has version {version}, and entry {} says {}",
                word.seq, word.version
            )),
            None if self.age == Age::New => {
                Some(format!("no entry tells of row {name}, or one says that it was removed"))
            }
            None => {
                self.older += 1;
                None
            }
        }
    }

    /// After the last row: a row that the log tells of and that was not seen.
    pub fn missing(&self) -> Option<String> {
        let mut left = self.words.iter().filter(|(_, word)| word.version > 0);
        let ((digest, table), Word { version, seq }) = left.next()?;
        Some(format!(
            "row {}:{digest:032x} is missing: entry {seq} says that it has version {version}",
            table.name()
        ))
    }

    /// Goes on to the keys that were left for later; false if there are none.
    pub fn next_pass(&mut self) -> bool {
        let Some(from) = self.until.take() else { return false };
        self.from = from;
        self.words.clear();
        true
    }

    /// How many rows are as the log says, and how many it says nothing of because they are older.
    pub fn counts(&self) -> (u64, u64) {
        (self.found, self.older)
    }
}

/// A row as the log names it, with its id if that is its key.
fn name(key: &RowKey) -> String {
    let digest = u128::from_be_bytes(key.digest());
    let name = format!("{}:{digest:032x}", key.table().name());
    match key {
        RowKey::Credential(id) | RowKey::State(id) | RowKey::Binding(id) | RowKey::Authorization(id) => {
            format!("{name} ({id})")
        }
        RowKey::Attestation(id) | RowKey::Transaction(id) => format!("{name} ({id})"),
        RowKey::Presentation(id) => format!("{name} ({id})"),
        RowKey::Account(..) | RowKey::Idempotency(..) | RowKey::UsedInput(..) | RowKey::ImportedSeed(..) => {
            name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::{Account, AccountRef};
    use crate::domain::audit::{AuditEntry, RowMarks};
    use crate::domain::caller::Tenant;

    fn row(number: usize, version: u64) -> Row {
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        let account = AccountRef::try_from(format!("acct-{number}")).unwrap();
        Row::Account(Account { version, ..Account::new(tenant, account) })
    }

    fn entry(seq: u64, event: Event, rows: Vec<RowMark>) -> Logged {
        Logged { seq, entry: AuditEntry::of_appliance(1, event), rows: RowMarks(rows) }
    }

    fn written(number: usize, version: u64) -> RowMark {
        RowMark::written(&row(number, version).key(), version)
    }

    fn removed(number: usize) -> RowMark {
        RowMark::removed(&row(number, 1).key())
    }

    /// What is found in as many passes as it takes, and in how many.
    fn checked(words_max: usize, log: &[Logged], rows: &[Row]) -> (Vec<String>, (u64, u64), u32) {
        let (mut told, mut wrong, mut passes) = (Told::new(words_max), Vec::new(), 0);
        loop {
            passes += 1;
            for logged in log {
                told.hear(logged);
                assert!(told.words.len() <= words_max);
            }
            wrong.extend(rows.iter().filter_map(|row| told.see(row)));
            wrong.extend(told.missing());
            if !told.next_pass() {
                return (wrong, told.counts(), passes);
            }
        }
    }

    /// 200 rows, of which every third has gone, and every fifth of these has come again.
    fn life() -> (Vec<Logged>, Vec<Row>) {
        let (mut log, mut rows) = (Vec::new(), Vec::new());
        let mut add = |marks| log.push(entry(log.len() as u64 + 1, Event::Verified, marks));
        for number in 0..200 {
            add(vec![written(number, 1), written((number + 1) % 200 + 200, 1)]);
            add(vec![written(number, 2), removed((number + 1) % 200 + 200)]);
            let is_gone = number % 3 == 0;
            let comes_again = number % 15 == 0;
            if is_gone {
                add(vec![removed(number)]);
            }
            if comes_again {
                add(vec![written(number, 1)]);
            }
            if !is_gone || comes_again {
                rows.push(row(number, if comes_again { 1 } else { 2 }));
            }
        }
        (log, rows)
    }

    #[test]
    fn it_takes_more_passes_where_there_is_less_memory() {
        let (log, rows) = life();
        for (words_max, least) in [(1_000, 1), (100, 2), (10, 10)] {
            let (wrong, counts, passes) = checked(words_max, &log, &rows);
            assert_eq!((wrong, counts), (vec![], (rows.len() as u64, 0)), "{words_max}");
            assert!(passes >= least, "{words_max}: {passes} passes");
        }
    }

    #[test]
    fn what_does_not_fit_is_found_in_whichever_pass() {
        let (log, rows) = life();
        for words_max in [1_000, 10] {
            for place in [0, 1, 50, rows.len() - 1] {
                let mut fewer = rows.clone();
                fewer.remove(place);
                let (wrong, ..) = checked(words_max, &log, &fewer);
                assert!(wrong.len() == 1 && wrong[0].contains("is missing: entry "), "{wrong:?}");
                let mut older = rows.clone();
                older[place] = row(place_of(&rows[place]), rows[place].version() + 7);
                let (wrong, ..) = checked(words_max, &log, &older);
                assert!(wrong.len() == 1 && wrong[0].contains(" has version "), "{wrong:?}");
            }
            for number in [3, 250, 999] {
                let more = [&rows[..], &[row(number, 2)]].concat();
                let (wrong, ..) = checked(words_max, &log, &more);
                assert!(wrong.len() == 1 && wrong[0].contains("no entry tells of row account:"), "{wrong:?}");
            }
        }
    }

    fn place_of(row: &Row) -> usize {
        let Row::Account(account) = row else { panic!() };
        account.account.as_str().trim_start_matches("acct-").parse().unwrap()
    }

    #[test]
    fn rows_of_an_earlier_release_are_passed_over_until_an_entry_tells_of_them() {
        let log = [
            entry(1, Event::Enrolled, vec![]),
            entry(2, Event::Verified, vec![]),
            entry(3, Event::Verified, vec![written(1, 9)]),
            entry(4, Event::Pruned, vec![removed(2)]),
        ];
        let (wrong, counts, _) = checked(100, &log, &[row(1, 9), row(3, 4)]);
        assert_eq!((wrong, counts), (vec![], (1, 1)));
        let (wrong, ..) = checked(100, &log, &[row(1, 9), row(2, 4)]);
        assert!(wrong[0].contains("entry 4 says that it was removed"), "{wrong:?}");
        let (wrong, ..) = checked(100, &log, &[row(1, 8)]);
        assert!(wrong[0].contains("entry 3 says 9"), "{wrong:?}");
    }
}
