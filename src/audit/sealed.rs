//! What the HSM alone can say of a database: whether every row is as it was sealed, and what all of them add up to.

use std::ops::ControlFlow;

use super::told;
use super::verification::Misfit;
use crate::domain::row::{Row, Sealed, TableSums};
use crate::hsm::HsmError;
use crate::hsm::messages::portions;
use crate::offline::Offline;
use crate::store::offline::OfflineStore;

/// So many rows are held in memory at once.
const ROWS_AT_ONCE: usize = 2_000;

/// Checks every row's seal, and holds the sums over all rows against those that are kept; how many rows there are.
///
/// # Errors
/// The first thing that does not fit, or a database or an HSM that does not answer.
pub fn check(store: &OfflineStore, offline: &Offline) -> Result<u64, Misfit> {
    let (mut rows, mut sums, mut waiting) = (0_u64, TableSums::default(), Vec::with_capacity(ROWS_AT_ONCE));
    let stopped = store.rows(|_, row| {
        rows = rows.saturating_add(1);
        match row {
            Ok(row) => waiting.push(row),
            Err(fault) => return ControlFlow::Break(Misfit::Other(fault)),
        }
        if waiting.len() < ROWS_AT_ONCE {
            return ControlFlow::Continue(());
        }
        add(offline, &std::mem::take(&mut waiting), &mut sums)
            .map_or_else(ControlFlow::Break, ControlFlow::Continue)
    })?;
    stopped.map_or(Ok(()), Err)?;
    add(offline, &waiting, &mut sums)?;

    // An earlier release left one sum over all tables.
    if let Some(tables) = store.ledger()?.differing(&sums) {
        let names: Vec<_> = tables.iter().map(|table| table.name()).collect();
        let of = if names.is_empty() { "all tables".to_owned() } else { names.join(", ") };
        return Err(Misfit::Other(format!(
            "the rows of {of} do not add up to what is kept: some were removed, added or put back"
        )));
    }
    Ok(rows)
}

fn add(offline: &Offline, rows: &[Sealed<Row>], sums: &mut TableSums) -> Result<(), Misfit> {
    let mut rest = rows.iter();
    for portion in portions(rows.iter().map(Sealed::to_bytes).collect()) {
        let of_it: Vec<_> = rest.by_ref().take(portion.len()).collect();
        if of_it.is_empty() {
            continue;
        }
        match offline.runtime.block_on(offline.hsm.sum(portion)) {
            Ok(part) => sums.add_all(&part),
            Err(HsmError::Tampered(place)) => {
                let row = of_it.get(usize::from(place)).map(|row| told::name(&row.row.key()));
                return Err(Misfit::Other(format!("row {} has a wrong seal", row.unwrap_or_default())));
            }
            Err(error) => return Err(Misfit::Other(error.to_string())),
        }
    }
    Ok(())
}
