//! What a database says of itself besides rows, as one value that is sealed: the log's head, the sums over all rows, and
//! what the log's events left for the next start to heed.
//!
//! A seal of it is an HMAC under a key of one run of the service. So after an end that nobody wrote down, a start knows
//! that these are the sums and the log of some commit of that run, and that nobody else put them there.

use super::audit::Event;
use super::checkpoint::{Head, Origin};
use super::enc::enc;
use super::log::TreeHash;
use super::row::{RowSum, SumDigest, Table, TableSums};
use super::time::{Floor, RunId};

/// What every encoding begins with.
const DOMAIN: &[u8] = b"hsm-authd/ledger/v1";
/// A loss that is so far in the future was written down by a clock that was wrong: it does not lock anybody out until
/// then. In milliseconds.
const AHEAD_MS_MAX: u64 = 86_400_000;

/// What events leave for later starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aftermath {
    /// Up to when what was accepted may be forgotten: the latest that any loss says, whatever its clock said before
    /// others, but not beyond what an operator accepted since.
    pub floor: Floor,
    /// The wall clock stepped, and no operator accepted it since.
    pub clock_stepped: bool,
    /// The last entry says that the service ended, or there is none.
    pub ended: bool,
    /// When the last entry was made, in milliseconds since 1970.
    pub last_unix_ms: u64,
}

impl Default for Aftermath {
    /// Of a log without entries.
    fn default() -> Self {
        Self { floor: Floor::default(), clock_stepped: false, ended: true, last_unix_ms: 0 }
    }
}

impl Aftermath {
    /// Takes the next event of the log.
    pub fn heed(&mut self, event: Event, unix_ms: u64) {
        self.ended = event == Event::Stopped;
        self.last_unix_ms = unix_ms;
        let Floor { lost_unix_ms, recovered_unix_ms } = &mut self.floor;
        match event {
            Event::StartedUnclean => *lost_unix_ms = unix_ms.max(*lost_unix_ms),
            Event::Recovered => *recovered_unix_ms = unix_ms.max(*recovered_unix_ms),
            Event::ClockStepped => self.clock_stepped = true,
            Event::ClockAccepted => {
                *lost_unix_ms = unix_ms.min(*lost_unix_ms);
                *recovered_unix_ms = unix_ms.min(*recovered_unix_ms);
                self.clock_stepped = false;
            }
            _ => {}
        }
    }

    /// The floor that can be true now.
    pub fn floor_at(&self, now_unix_ms: u64) -> Floor {
        let possible = |unix_ms: u64| match unix_ms <= now_unix_ms.saturating_add(AHEAD_MS_MAX) {
            true => unix_ms,
            false => now_unix_ms,
        };
        let Floor { lost_unix_ms, recovered_unix_ms } = self.floor;
        Floor { lost_unix_ms: possible(lost_unix_ms), recovered_unix_ms: possible(recovered_unix_ms) }
    }
}

/// The whole of it, as of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerState {
    /// Which log.
    pub origin: Origin,
    /// How many entries it has.
    pub size: u64,
    /// The root over them.
    pub root: TreeHash,
    /// The sums over all rows.
    pub sums: TableSums,
    /// The sum over all tables that an earlier release left, until it is split.
    pub unsplit: RowSum,
    /// Whether an earlier release left the sums: of each only the first number is known.
    pub is_of_first: bool,
    /// What events left.
    pub aftermath: Aftermath,
}

impl LedgerState {
    /// What of it is signed and anchored.
    pub fn head(&self) -> Head {
        let sum = self.sums.total().plus(self.unsplit);
        let sum = if self.is_of_first { SumDigest::First(sum.first()) } else { sum.digest() };
        Head { origin: self.origin.clone(), size: self.size, root: self.root, sum }
    }

    /// The tables whose rows do not add up to these sums, as far as they are known by table; `None`: all of them do.
    pub fn differing(&self, found: &TableSums) -> Option<Vec<Table>> {
        let found = if self.is_of_first { found.of_first() } else { found.clone() };
        let is_split = self.unsplit == RowSum::default();
        let differs = |table: &Table| is_split && found.of(*table) != self.sums.of(*table);
        let tables: Vec<Table> = Table::ALL.iter().copied().filter(differs).collect();
        let adds_up = tables.is_empty() && found.total() == self.sums.total().plus(self.unsplit);
        (!adds_up).then_some(tables)
    }

    /// The bytes that are sealed.
    pub fn encode(&self) -> Vec<u8> {
        let Aftermath { floor, clock_stepped, ended, last_unix_ms } = self.aftermath;
        let flags = [self.is_of_first, clock_stepped, ended].map(u64::from);
        let numbers = [self.size, floor.lost_unix_ms, floor.recovered_unix_ms, last_unix_ms];
        let numbers = [numbers.as_slice(), &flags].concat().into_iter().map(u64::to_be_bytes);
        let numbers: Vec<_> = numbers.collect();
        let sums: Vec<_> = Table::ALL.iter().map(|table| (table.name(), self.sums.of(*table))).collect();
        let mut parts: Vec<&[u8]> =
            vec![DOMAIN, self.origin.as_str().as_bytes(), &self.root.0, self.unsplit.as_bytes()];
        parts.extend(numbers.iter().map(<[u8; 8]>::as_slice));
        for (name, sum) in &sums {
            parts.extend([name.as_bytes(), sum.as_bytes()]);
        }
        enc(&parts)
    }
}

/// The seal of a [`LedgerState`], and whose key made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerSeal {
    /// The version of `row` that the run's key comes from.
    pub key_version: u16,
    /// The run.
    pub run: RunId,
    /// HMAC-SHA-256 of [`LedgerState::encode`].
    pub mac: [u8; 32],
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;

    fn after(events: &[(Event, u64)]) -> Aftermath {
        let mut aftermath = Aftermath::default();
        events.iter().for_each(|(event, unix_ms)| aftermath.heed(*event, *unix_ms));
        aftermath
    }

    #[test]
    fn the_latest_loss_counts_up_to_what_an_operator_accepted() {
        use Event::{ClockAccepted, ClockStepped, Recovered, StartedUnclean};
        let of = |events: &[(Event, u64)]| {
            let Floor { lost_unix_ms, recovered_unix_ms } = after(events).floor_at(NOW);
            (lost_unix_ms, recovered_unix_ms)
        };
        assert_eq!(of(&[]), (0, 0));
        let behind = [(StartedUnclean, 5), (StartedUnclean, 3), (Recovered, 4)];
        assert_eq!(of(&behind), (5, 4), "a clock was behind");
        assert_eq!(of(&[(StartedUnclean, 9), (Recovered, 8), (ClockStepped, 1), (ClockAccepted, 7)]), (7, 7));
        assert_eq!(of(&[(ClockAccepted, 7), (StartedUnclean, 9)]), (9, 0));
        assert_eq!(of(&[(StartedUnclean, NOW + AHEAD_MS_MAX)]), (NOW + AHEAD_MS_MAX, 0));
        assert_eq!(of(&[(StartedUnclean, NOW + AHEAD_MS_MAX + 1)]), (NOW, 0));
        assert!(after(&[(ClockAccepted, 1), (ClockStepped, 2), (StartedUnclean, 3)]).clock_stepped);
        assert!(!after(&[(ClockStepped, 2), (ClockAccepted, 1)]).clock_stepped);
        assert!(after(&[]).ended && after(&[(StartedUnclean, 1), (Event::Stopped, 2)]).ended);
        let on = after(&[(Event::Stopped, 9), (Event::KeyRotated, 3)]);
        assert!(!on.ended && on.last_unix_ms == 3);
    }

    #[test]
    fn each_part_changes_the_bytes() {
        let state = LedgerState {
            origin: Origin::unclaimed(),
            size: 7,
            root: TreeHash([1; 32]),
            sums: TableSums::default(),
            unsplit: RowSum::default(),
            is_of_first: false,
            aftermath: Aftermath::default(),
        };
        let mut others: Vec<LedgerState> = vec![
            LedgerState { origin: Origin::from_random([0; 16]), ..state.clone() },
            LedgerState { size: 8, ..state.clone() },
            LedgerState { root: TreeHash([2; 32]), ..state.clone() },
            LedgerState { unsplit: RowSum::of_first([1; 32]), ..state.clone() },
        ];
        for (lost_unix_ms, recovered_unix_ms, clock_stepped) in [(1, 0, false), (0, 1, false), (0, 0, true)] {
            let floor = Floor { lost_unix_ms, recovered_unix_ms };
            let aftermath = Aftermath { floor, clock_stepped, ..Aftermath::default() };
            others.push(LedgerState { aftermath, ..state.clone() });
        }
        for aftermath in [
            Aftermath { ended: false, ..Aftermath::default() },
            Aftermath { last_unix_ms: 1, ..Aftermath::default() },
        ] {
            others.push(LedgerState { aftermath, ..state.clone() });
        }
        others.push(LedgerState { is_of_first: true, ..state.clone() });
        for table in Table::ALL {
            let mut sums = TableSums::default();
            sums.add(*table, RowSum::of_first([1; 32]));
            others.push(LedgerState { sums, ..state.clone() });
        }
        let mut seen = std::collections::HashSet::from([state.encode()]);
        assert!(others.iter().all(|other| seen.insert(other.encode())));
        assert_eq!(seen.len(), 11 + Table::ALL.len());
    }
}
