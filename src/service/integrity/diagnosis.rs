//! Which rows are wrong, in one line for the operator.

use std::collections::BTreeSet;

use super::history::History;
use super::sums::Found;
use crate::domain::row::{RowKey, Table};
use crate::service::Service;
use crate::store::Unreadable;

/// So many rows are named in the line; all that were looked for are in the log.
const NAMED_MAX: usize = 3;

/// Names a row that cannot be read.
pub fn unreadable(row: &Unreadable) -> String {
    match &row.key {
        Some(key) => format!("{}: {}", History::default().describe(key), row.fault),
        None => format!("a row of {}: {}", row.table.name(), row.fault),
    }
}

/// Names the tables that do not add up, and the first rows that are not what they must be.
///
/// # Errors
/// Database or log cannot be read.
pub async fn name(
    service: &Service,
    fault: Option<String>,
    tables: &[Table],
    found: &Found,
) -> Result<String, String> {
    let history = History::read(service).await?;
    let mut parts: Vec<String> = fault.into_iter().collect();
    if !tables.is_empty() {
        let names: Vec<_> = tables.iter().map(|table| table.name()).collect();
        parts.push(format!("rows of {} do not add up", names.join(", ")));
    }
    let wrong_seals: BTreeSet<&RowKey> = found.tampered.iter().map(|(key, _)| key).collect();
    let mut rows: Vec<String> = found
        .tampered
        .iter()
        .map(|(key, version)| format!("{}: version {version} has a wrong seal", history.describe(key)))
        .collect();
    let misfits = history.misfits(service).await?;
    let is_new = |key: &Option<RowKey>| key.as_ref().is_none_or(|key| !wrong_seals.contains(key));
    rows.extend(misfits.into_iter().filter(|(key, _)| is_new(key)).map(|(_, text)| text));
    for row in &rows {
        tracing::error!(row, "not what the service left");
    }
    let beyond = rows.len().saturating_sub(NAMED_MAX);
    rows.truncate(NAMED_MAX);
    parts.extend(rows);
    if beyond > 0 {
        parts.push(format!("and {beyond} more rows (see the log)"));
    }
    match parts.is_empty() {
        true => Ok("its rows do not add up".to_owned()),
        false => Ok(parts.join("; ")),
    }
}
