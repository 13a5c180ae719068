//! Rows that a round goes on without.

use std::collections::HashSet;

use crate::domain::row::{Row, RowKey, Sealed};

use super::{BATCH, Refused};

/// A round ends at so many: each costs the HSM and the writer one attempt.
const LEFT_MAX: usize = 200;

/// Rows that are not what was written last: they stay, and keep no other. Whoever found them out has raised the alarm.
#[derive(Default)]
pub(in crate::service) struct Left {
    rows: HashSet<RowKey>,
}

impl Left {
    /// How many rows are looked for, so that as many as go at once are found besides these.
    pub fn limit(&self) -> u16 {
        BATCH.saturating_add(self.count())
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.rows.len()).unwrap_or(u16::MAX)
    }

    /// Whether it is one of them.
    pub fn has(&self, key: &RowKey) -> bool {
        self.rows.contains(key)
    }

    /// Whether a row is one of them.
    pub fn has_row<T: Clone + Into<Row>>(&self, row: &Sealed<T>) -> bool {
        !self.rows.is_empty() && self.has(&row.row.clone().into().key())
    }

    /// One more.
    ///
    /// # Errors
    /// There are too many; or it was left before, and met again.
    pub fn leave(&mut self, key: RowKey) -> Result<(), Refused> {
        match self.rows.len() < LEFT_MAX && self.rows.insert(key) {
            true => Ok(()),
            false => Err(Refused::unavailable("too many rows are not what was written last")),
        }
    }
}
