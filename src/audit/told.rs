//! What the log says of rows: each entry held against the one before it that tells of the same row, and each row against
//! the last entry about it.
//!
//! The memory for it is bounded, whatever the length of the log and the number of rows: if there is more than fits, only
//! keys up to a point are looked at, and the rest in another pass.

use std::collections::BTreeMap;

use crate::domain::audit::succession::{comes_again, may_follow};
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
    /// A recovery is believed if its entry is one of the first so many.
    believed: u64,
    /// Where a recovery that has not ended begins.
    recovery_from_seq: Option<u64>,
    /// Whether one has ended: it takes rows as it finds them.
    is_recovered: bool,
    /// The first entry of this pass that cannot be next, and why.
    fault: Option<(u64, String)>,
    /// The first one of all passes.
    first_fault: Option<(u64, String)>,
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
    /// Of nothing yet. A recovery is believed if its entry is one of the first `believed`: behind what is signed anybody
    /// may have written it.
    pub fn new(words_max: usize, believed: u64) -> Self {
        Self {
            words: BTreeMap::new(),
            words_max,
            from: 0,
            until: None,
            age: Age::Unknown { enrolled: false },
            believed,
            recovery_from_seq: None,
            is_recovered: false,
            fault: None,
            first_fault: None,
            found: 0,
            older: 0,
        }
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
        match logged.entry.event {
            Event::CredentialRecovered => drop(self.recovery_from_seq.get_or_insert(logged.seq)),
            Event::Recovered if logged.seq <= self.believed => self.recover(logged.seq),
            _ => {}
        }
        for mark in &logged.rows.0 {
            self.hear_of(mark, logged.seq);
        }
    }

    /// An operator accepted what had become of the database: nothing is known of rows that were not written since.
    fn recover(&mut self, seq: u64) {
        let from_seq = self.recovery_from_seq.take().unwrap_or(seq);
        self.words.retain(|_, word| word.seq >= from_seq);
        self.is_recovered = true;
        self.fault = None;
    }

    fn hear_of(&mut self, mark: &RowMark, seq: u64) {
        let RowMark { table, key, version } = *mark;
        let digest = u128::from_be_bytes(key);
        if digest < self.from || self.until.is_some_and(|until| digest >= until) {
            return;
        }
        let before = self.words.get(&(digest, table)).map(|word| word.version);
        if !may_follow(table, before, version, self.may_be_older()) && self.fault.is_none() {
            let is = match version {
                0 => "removes".to_owned(),
                _ => format!("gives version {version} to"),
            };
            let was = match before {
                None => "no entry before it tells of that row".to_owned(),
                Some(0) => "that row was removed before".to_owned(),
                Some(before) => format!("that row has version {before} before"),
            };
            let name = format!("{}:{digest:032x}", table.name());
            self.fault = Some((seq, format!("it {is} row {name}, and {was}")));
        }
        // Of a row that is gone nothing has to be known if it may come again like any that never was.
        if version == 0 && comes_again(table) && !self.may_be_older() {
            self.words.remove(&(digest, table));
        } else {
            self.words.insert((digest, table), Word { version, seq });
        }
        if self.words.len() > self.words_max {
            self.leave_half_for_later();
        }
    }

    /// Whether rows may be there that no entry tells of.
    fn may_be_older(&self) -> bool {
        self.age != Age::New || self.is_recovered
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
            None if !self.may_be_older() => {
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
        self.end_pass();
        let Some(from) = self.until.take() else { return false };
        self.from = from;
        self.words.clear();
        (self.recovery_from_seq, self.is_recovered) = (None, false);
        true
    }

    fn end_pass(&mut self) {
        let faults = [self.first_fault.take(), self.fault.take()];
        self.first_fault = faults.into_iter().flatten().min_by_key(|(seq, _)| *seq);
    }

    /// The first entry that cannot be next, and why; `None`: each can be. For when the last pass is over.
    pub fn first_fault(self) -> Option<(u64, String)> {
        self.first_fault
    }

    /// How many rows are as the log says, and how many it says nothing of because they are older.
    pub fn counts(&self) -> (u64, u64) {
        (self.found, self.older)
    }
}

/// A row as the log names it, with its id if that is its key.
pub(super) fn name(key: &RowKey) -> String {
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
    use crate::domain::caller::{ClientName, Tenant};
    use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};

    const BELIEVED: u64 = 10_000;

    /// One of those that may come again.
    fn row(number: usize, version: u64) -> Row {
        let client = ClientName::try_from("client".to_owned()).unwrap();
        let key = IdempotencyKey::parse(&format!("key-{number}")).unwrap();
        let (fingerprint, answer) = (Fingerprint([0; 32]), Vec::new());
        Row::Idempotency(IdempotencyRecord { client, key, version, fingerprint, answer, expires_unix_ms: 0 })
    }

    /// One of those that do not.
    fn account(number: usize) -> Account {
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        Account::new(tenant, AccountRef::try_from(format!("acct-{number}")).unwrap())
    }

    fn account_mark(number: usize, version: u64) -> RowMark {
        RowMark::written(&Row::from(account(number)).key(), version)
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
        let (mut told, mut wrong, mut passes) = (Told::new(words_max, BELIEVED), Vec::new(), 0);
        loop {
            passes += 1;
            for logged in log {
                told.hear(logged);
                assert!(told.words.len() <= words_max);
            }
            wrong.extend(rows.iter().filter_map(|row| told.see(row)));
            wrong.extend(told.missing());
            if !told.next_pass() {
                let counts = told.counts();
                wrong.extend(told.first_fault().map(|(seq, fault)| format!("entry {seq}: {fault}")));
                return (wrong, counts, passes);
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
                assert!(
                    wrong.len() == 1 && wrong[0].contains("no entry tells of row idempotency:"),
                    "{wrong:?}"
                );
            }
        }
    }

    fn place_of(row: &Row) -> usize {
        let Row::Idempotency(record) = row else { panic!() };
        record.key.as_str().trim_start_matches("key-").parse().unwrap()
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
    #[test]
    fn the_first_entry_that_cannot_be_next_is_named_in_whichever_pass() {
        let (log, rows) = life();
        let first_of = |log: &[Logged], seq: u64| {
            for words_max in [1_000, 10] {
                let (wrong, ..) = checked(words_max, log, &rows);
                let said = wrong.iter().any(|wrong| wrong.starts_with(&format!("entry {seq}: it ")));
                assert!(said, "{words_max}: {wrong:?}");
            }
        };
        for seq in [1, 2, 3, 77, log.len()] {
            for (number, version) in [(0, 9), (1_000, 2), (1_000, 0), (198, 5)] {
                let mut forged = log.clone();
                forged[seq - 1].rows.0.push(written(number, version));
                first_of(&forged, seq as u64);
                // The first one, whichever rows they are of.
                if let Some(later) = forged.get_mut(seq + 40) {
                    later.rows.0.insert(0, written(1, 40));
                    first_of(&forged, seq as u64);
                }
            }
        }
        // What was removed stays so, if it is none of those that come again.
        for (versions, fits) in [
            (&[1, 2, 3, 0][..], true),
            (&[1, 0, 1], false),
            (&[1, 0, 0], false),
            (&[1, 1], false),
            (&[2], false),
        ] {
            let marks = versions.iter().map(|version| account_mark(7, *version));
            let log: Vec<_> =
                marks.zip(1..).map(|(mark, seq)| entry(seq, Event::Pruned, vec![mark])).collect();
            let rows = match versions.last() {
                Some(0) => vec![],
                last => vec![Row::from(Account { version: *last.unwrap(), ..account(7) })],
            };
            let (wrong, ..) = checked(100, &log, &rows);
            let last = format!("entry {}: it ", log.len());
            assert_eq!(wrong.is_empty(), fits, "{versions:?}: {wrong:?}");
            assert!(fits || wrong[0].starts_with(&last), "{versions:?}: {wrong:?}");
        }
    }

    #[test]
    fn a_recovery_takes_rows_as_it_finds_them_if_something_signed_says_that_it_was_one() {
        let log = |recovered: u64| {
            vec![
                entry(1, Event::Enrolled, vec![account_mark(1, 1), account_mark(2, 1), account_mark(3, 1)]),
                entry(2, Event::Verified, vec![account_mark(1, 2)]),
                entry(3, Event::CredentialRecovered, vec![account_mark(1, 2)]),
                entry(4, Event::CredentialRecovered, vec![account_mark(4, 8)]),
                entry(recovered, Event::Recovered, vec![]),
                entry(6, Event::Verified, vec![account_mark(5, 7), account_mark(4, 9)]),
            ]
        };
        let rows = |versions: &[(usize, u64)]| -> Vec<Row> {
            let row =
                |(number, version): &(usize, u64)| Account { version: *version, ..account(*number) }.into();
            versions.iter().map(row).collect()
        };
        // The second is gone, the third another version, and the sixth was never told of.
        let found = rows(&[(1, 2), (3, 5), (4, 9), (5, 7), (6, 1)]);
        for words_max in [100, 2] {
            let (wrong, counts, _) = checked(words_max, &log(5), &found);
            assert_eq!((wrong, counts), (vec![], (3, 2)));
            let (wrong, ..) = checked(words_max, &log(5), &rows(&[(1, 2), (4, 8), (5, 7)]));
            assert!(wrong.len() == 1 && wrong[0].contains("has version 8, and entry 6 says 9"), "{wrong:?}");
        }
        // Behind what is signed it may have been anybody.
        let (wrong, ..) = checked(100, &log(BELIEVED + 1), &found);
        assert!(wrong.iter().any(|wrong| wrong.starts_with("entry 3: it gives version 2 ")), "{wrong:?}");
    }
}
