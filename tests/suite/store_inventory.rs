//! What the writer remembers of rows, against who races for them and who shows others.

use std::sync::atomic::{AtomicUsize, Ordering};

use hsm_authd::domain::authorization::Authorization;
use hsm_authd::domain::credential::{CredentialState, UsedInput};
use hsm_authd::domain::idempotency::IdempotencyRecord;
use hsm_authd::domain::rolling::Binding;
use hsm_authd::domain::row::{Row, Sealed, TableSums};
use hsm_authd::domain::time::RunId;
use hsm_authd::secret::MacKey;
use hsm_authd::store::{Commit, CommitError, Inventory, RunKey, Store};
use tokio::task::JoinSet;

use crate::scratch::Scratch;
use crate::store_samples::*;

/// A store that knows of these rows, which it has.
async fn holding(scratch: &Scratch, rows: &[Sealed<Row>]) -> Store {
    let store = Store::open(&scratch.join("store.db")).unwrap();
    let _durable = store.commit(insert(rows)).await.unwrap();
    let mut inventory = Inventory::default();
    rows.iter().for_each(|row| inventory.take(&row.row.key(), &row.seal));
    let key = RunKey { key_version: 1, run: RunId([1; 16]), key: MacKey::new(b"a key") };
    let mut sums = TableSums::default();
    rows.iter().for_each(|row| sums.add(row.row.key().table(), weight(row)));
    store.hold(key, Some((sums, inventory))).await.unwrap();
    store
}

async fn outcome(store: &Store, commit: Commit) -> Result<(), CommitError> {
    store.commit(commit).await.map(|_| ())
}

/// Another row of ours of the same version.
fn twin(row: &Sealed<Row>) -> Sealed<Row> {
    let mut twin = row.clone();
    twin.seal.mac = [0xee; 32];
    twin
}

#[tokio::test]
async fn what_was_only_shown_is_named_wherever_it_can_have_been_nothing_else() {
    let scratch = Scratch::new();
    let rows = one_of_each();
    let store = holding(&scratch, &rows).await;
    let mut alarms = store.changed_rows().unwrap();
    for row in &rows {
        let key = row.row.key();
        let comes_again = matches!(
            row.row,
            Row::Idempotency(_)
                | Row::UsedInput(_)
                | Row::Binding(_)
                | Row::Authorization(_)
                | Row::ImportedSeed(_)
        );
        let expected = match comes_again {
            true => Err(CommitError::Conflict),
            false => Err(CommitError::Altered(key.clone())),
        };
        let mut next = row.clone();
        next.row.succeed();
        let shown = twin(row);
        for commit in [stand(&shown), change(std::slice::from_ref(&shown), &[next]), remove(&[shown])] {
            assert_eq!(outcome(&store, commit).await, expected);
            assert_eq!(alarms.try_recv().ok().and_then(|row| row.key), (!comes_again).then(|| key.clone()));
        }
        assert_eq!(outcome(&store, stand(row)).await, Ok(()));
    }
    assert_eq!(every_row(&store, 100).await.len(), rows.len());
}

/// The version that a row of these races has next, with another content each time.
fn made(kind: usize, version: u64, number: usize) -> Sealed<Row> {
    let unix_ms = number as u64;
    match kind {
        0 => row(CredentialState { version, next_factor: unix_ms, ..state(1, "bank-a") }),
        1 => row(IdempotencyRecord { version, expires_unix_ms: unix_ms, ..record("backend", "k", 0) }),
        2 => row(UsedInput { version, time_step: Some(unix_ms), ..used_input(1, 7, None) }),
        3 => row(Binding { version, epoch: unix_ms + 1, ..binding(1) }),
        _ => row(Authorization { version, nonce: [number as u8; 32], ..authorization(1) }),
    }
}

/// Rows are replaced, removed and made again by many at once, each by what it read: who loses is told so, and nobody else
/// is accused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_loses_a_race_alarms_nobody() {
    let scratch = Scratch::new();
    let store = holding(&scratch, &[made(0, 1, 0)]).await;
    let mut alarms = store.changed_rows().unwrap();
    let (won, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let counts = std::sync::Arc::new((won, lost));
    let mut racers = JoinSet::new();
    for racer in 0..16 {
        let (store, counts) = (store.clone(), counts.clone());
        racers.spawn(async move {
            for round in 0..60 {
                let number = racer * 1_000 + round;
                let kind = number % 5;
                let key = made(kind, 1, 0).row.key();
                let there = every_row(&store, 100).await.into_iter().find(|row| row.row.key() == key);
                let commit = match &there {
                    None => insert(&[made(kind, 1, number)]),
                    Some(before) if kind > 0 && number % 3 == 0 => remove(std::slice::from_ref(before)),
                    Some(before) if number % 3 == 1 => stand(before),
                    Some(before) => {
                        let next = made(kind, before.row.version() + 1, number);
                        change(std::slice::from_ref(before), &[next])
                    }
                };
                match outcome(&store, commit).await {
                    Ok(()) => counts.0.fetch_add(1, Ordering::Relaxed),
                    Err(CommitError::Conflict) => counts.1.fetch_add(1, Ordering::Relaxed),
                    Err(error) => panic!("{error:?}"),
                };
            }
        });
    }
    racers.join_all().await;
    let (won, lost) = (counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed));
    assert!(won > 100 && lost > 100, "{won} won, {lost} lost");
    assert!(alarms.try_recv().is_err());
    assert_sum_adds_up(&store).await;
}
