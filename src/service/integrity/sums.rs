//! The sums over all rows, computed anew by the custodians.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::domain::row::{Row, RowKey, Sealed, SealedBytes, TableSums};
use crate::hsm::messages::portions;
use crate::hsm::{Hsm, HsmError};
use crate::service::Service;
use crate::service::patience::persist;
use crate::store::Inventory;

/// So many rows are read at once.
const PAGE: u16 = 2_000;
/// So many messages a custodian are under way at once: it has the next one before it has answered the last.
const MESSAGES_A_CUSTODIAN: usize = 4;
/// After so many rows with wrong seals nobody asks for more of them.
const TAMPERED_MAX: usize = 100;

/// What was found in all tables.
#[derive(Default)]
pub struct Found {
    /// The rows.
    pub inventory: Inventory,
    /// What they add up to.
    pub sums: TableSums,
    /// Rows whose seals are wrong, with their versions; they add to no sum.
    pub tampered: Vec<(RowKey, u64)>,
}

impl Found {
    fn add(&mut self, part: Part) {
        self.sums.add_all(&part.sums);
        self.tampered.extend(part.tampered);
    }
}

/// Reads every row once, and has all custodians check the seals and add up.
///
/// # Errors
/// The database cannot be read, or the HSM does not answer.
pub async fn over_all_rows(service: &Service) -> Result<Found, String> {
    let room = Arc::new(Semaphore::new(service.hsm.custodians().saturating_mul(MESSAGES_A_CUSTODIAN)));
    let (mut found, mut tasks) = (Found::default(), JoinSet::new());
    let mut cursor = None;
    loop {
        let page = service.store.rows_after(cursor, PAGE).await.map_err(|error| error.to_string())?;
        let is_last = page.len() < usize::from(PAGE);
        cursor = page.last().map(|row| row.row.key());
        page.iter().for_each(|row| found.inventory.take(&row.row.key(), &row.seal));
        // Cut into messages: in each a row is named by its place.
        let mut rows = page.into_iter();
        for portion in portions(rows.as_slice().iter().map(Sealed::to_bytes).collect()) {
            let sealed: Vec<_> = rows.by_ref().take(portion.len()).collect();
            let permit = room.clone().acquire_owned().await.map_err(|error| error.to_string())?;
            let hsm = service.hsm.clone();
            tasks.spawn(async move {
                let part = sum(&hsm, &sealed, portion).await;
                drop(permit);
                part
            });
        }
        while let Some(part) = tasks.try_join_next() {
            found.add(part.map_err(|error| error.to_string())??);
        }
        if is_last || found.tampered.len() >= TAMPERED_MAX {
            break;
        }
    }
    while let Some(part) = tasks.join_next().await {
        found.add(part.map_err(|error| error.to_string())??);
    }
    Ok(found)
}

/// What was found in a message's rows.
#[derive(Default)]
struct Part {
    sums: TableSums,
    tampered: Vec<(RowKey, u64)>,
}

async fn sum(hsm: &Hsm, rows: &[Sealed<Row>], bytes: Vec<SealedBytes>) -> Result<Part, String> {
    let mut part = Part::default();
    let (mut rows, mut rest) = (rows, bytes);
    loop {
        let place = match ask(hsm, rest.clone()).await? {
            Ok(sums) => {
                part.sums.add_all(&sums);
                return Ok(part);
            }
            Err(place) => place,
        };
        // Those before it are right. It is named, and what is behind it is asked of by itself.
        let behind = rest.split_off(place.saturating_add(1).min(rest.len()));
        rest.pop();
        if let Ok(sums) = ask(hsm, rest).await? {
            part.sums.add_all(&sums);
        }
        let Some(row) = rows.get(place) else {
            return Err("the custodian names a row that is not there".to_owned());
        };
        part.tampered.push((row.row.key(), row.row.version()));
        rows = rows.get(place.saturating_add(1)..).unwrap_or_default();
        rest = behind;
    }
}

/// The inner error: the place of the first row whose seal is wrong.
async fn ask(hsm: &Hsm, rows: Vec<SealedBytes>) -> Result<Result<TableSums, usize>, String> {
    match persist(hsm, || hsm.sum(rows.clone())).await {
        Ok(sums) => Ok(Ok(sums)),
        Err(HsmError::Tampered(place)) => Ok(Err(place.into())),
        Err(error) => Err(error.to_string()),
    }
}
