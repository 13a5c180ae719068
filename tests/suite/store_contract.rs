//! Every clause of `src/store.rs`, for any backend: a clause gets a way to open the same database
//! again and again. Each ends by adding up the rows.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use hsm_authd::domain::account::Account;
use hsm_authd::domain::attestation::Attestation;
use hsm_authd::domain::audit::{AuditEntry, Event, Logged, RowMark, RowMarks};
use hsm_authd::domain::authorization::{Authorization, Means};
use hsm_authd::domain::credential::{
    Credential, CredentialState, EncryptedPinHash, ImportedSeed, Kind, OcraToken, OcraUse, OtpToken, Status,
    StoredSecret, Terminal, UsedInput,
};
use hsm_authd::domain::idempotency::IdempotencyRecord;
use hsm_authd::domain::ledger::Aftermath;
use hsm_authd::domain::lockout::{Attempts, Lock};
use hsm_authd::domain::log::TreeHash;
use hsm_authd::domain::ocra::Suite;
use hsm_authd::domain::otp::{Algorithm, COUNTER_END, Digits, MovingFactor};
use hsm_authd::domain::presentation::Presentation;
use hsm_authd::domain::rolling::{Binding, LOOKUP_BYTES, Rolling, SALT_BYTES};
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::domain::time::{BootId, Deadline, Now, RunId};
use hsm_authd::domain::transaction::Transaction;
use hsm_authd::lifeline::Lifeline;
use hsm_authd::metrics;
use hsm_authd::store::{Commit, CommitError, Page, Standing, Store};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::scratch::Scratch;
use crate::store_samples::*;

/// Runs the clauses over one backend.
macro_rules! contract {
    ($open:expr; $($clause:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $clause() {
            let scratch = Scratch::new();
            let open = || $open(&scratch);
            super::$clause(&open).await;
            assert_sum_adds_up(&open()).await;
        }
    )*};
}

mod sqlite {
    use super::*;

    fn open(scratch: &Scratch) -> Store {
        Store::open(&scratch.join("store.db")).unwrap()
    }

    contract!(open;
        a_new_row_is_read_back,
        a_row_is_replaced_by_its_next_version_only,
        a_new_row_must_not_exist,
        what_a_commit_stands_on_must_hold,
        a_row_is_removed_at_its_version_only,
        a_conflict_in_the_last_row_writes_nothing,
        of_many_that_race_exactly_one_wins,
        the_sum_adds_up_over_concurrent_commits,
        a_commit_that_names_a_row_twice_fails_alone,
        an_entry_is_in_the_log_for_each_commit_and_no_other,
        a_commit_goes_on_when_its_caller_stops_waiting,
        a_request_is_not_dropped_before_it_knows_that_nothing_was_written,
        reopening_sees_everything,
        extreme_values_survive,
        every_kind_survives_and_its_tombstone,
        a_used_input_is_found_until_it_is_removed,
        a_blob_that_was_taken_is_found_in_its_tenant_alone,
        another_tenant_sees_nothing,
        lists_are_paged_in_the_order_of_making,
        what_is_over_is_found,
        inputs_out_of_reach_are_found,
        every_row_is_seen_once,
        what_events_left_is_told_when_it_is_opened_again,
    );
}

type Open<'a> = &'a dyn Fn() -> Store;

async fn given(store: &Store, commit: Commit) {
    let _ = store.commit(commit).await.expect("what the test starts from");
}

async fn outcome(store: &Store, commit: Commit) -> Result<(), CommitError> {
    store.commit(commit).await.map(|_| ())
}

/// Asserts that `commit` is refused as a conflict and leaves no trace.
async fn assert_conflict(store: &Store, commit: Commit) {
    assert_nothing(store, commit, CommitError::Conflict).await;
}

/// Asserts that `commit` is refused as one that nobody may make, and leaves no trace.
async fn assert_refused(store: &Store, commit: Commit) {
    assert_nothing(store, commit, CommitError::Unavailable).await;
}

async fn assert_nothing(store: &Store, commit: Commit, error: CommitError) {
    let before = (every_row(store, 100).await, store.row_sum().await, store.audit_entries(0, 1_000).await);
    assert_eq!(outcome(store, commit).await, Err(error));
    let after = (every_row(store, 100).await, store.row_sum().await, store.audit_entries(0, 1_000).await);
    assert_eq!(before, after, "it writes nothing");
}

async fn a_new_row_is_read_back(open: Open<'_>) {
    let store = open();
    let rows = enrolment(1, "bank-a", "acct-1");
    let answer = sealed(record("backend", "k-1", 9_000));
    let mut all = rows_of(&rows);
    all.push(any(answer.clone()));
    given(&store, insert(&all)).await;

    assert_eq!(store.credential(&tenant("bank-a"), id(1)).await, Ok(Some(rows.clone())));
    assert_eq!(store.account(&tenant("bank-a"), &account("acct-1")).await, Ok(Some(rows.account)));
    assert_eq!(store.idempotency(&client("backend"), &key("k-1")).await, Ok(Some(answer)));
    assert_eq!(store.credential(&tenant("bank-a"), id(2)).await, Ok(None));
    assert_eq!(store.account(&tenant("bank-a"), &account("acct-2")).await, Ok(None));
    assert_eq!(store.idempotency(&client("backend"), &key("k-2")).await, Ok(None));
    assert_eq!(store.idempotency(&client("other"), &key("k-1")).await, Ok(None));
}

async fn a_row_is_replaced_by_its_next_version_only(open: Open<'_>) {
    let store = open();
    let rows = enrolment(1, "bank-a", "acct-1");
    given(&store, insert(&rows_of(&rows))).await;
    let v1 = any(rows.state);
    let v2 = next(&v1, 1);
    let v3 = next(&v2, 2);

    assert_refused(&store, change(std::slice::from_ref(&v1), std::slice::from_ref(&v3))).await;
    given(&store, change(std::slice::from_ref(&v1), std::slice::from_ref(&v2))).await;
    assert_conflict(&store, change(&[v1], std::slice::from_ref(&v2))).await;
    given(&store, change(&[v2], std::slice::from_ref(&v3))).await;

    let missing = next(&row(state(2, "bank-a")), 1);
    assert_refused(&store, insert(std::slice::from_ref(&missing))).await;
    assert_conflict(&store, change(&[row(state(2, "bank-a"))], &[missing])).await;
    let read = store.credential(&tenant("bank-a"), id(1)).await.unwrap().unwrap();
    assert_eq!(any(read.state), v3);

    // Each table has its own statements.
    let tombstone = row(rows.credential.row.deleted(8_000));
    let unlocked = row(rows.account.row.unlocked());
    let before = [any(rows.credential), any(rows.account)];
    given(&store, change(&before, &[tombstone.clone(), unlocked.clone()])).await;
    let read = store.credential(&tenant("bank-a"), id(1)).await.unwrap().unwrap();
    assert_eq!((any(read.credential), any(read.account)), (tombstone, unlocked));
    let old = record("backend", "k-1", 9_000);
    let new = IdempotencyRecord { version: 2, answer: b"[]".to_vec(), ..old.clone() };
    given(&store, insert(&[row(old.clone())])).await;
    given(&store, change(&[row(old)], &[row(new.clone())])).await;
    assert_eq!(store.idempotency(&new.client, &new.key).await, Ok(Some(sealed(new))));
    let old = used_input(1, 7, Some(9_000));
    let new = UsedInput { version: 2, time_step: None, expires_unix_ms: None, ..old.clone() };
    given(&store, insert(&[row(old.clone())])).await;
    given(&store, change(&[row(old)], &[row(new.clone())])).await;
    assert_eq!(store.inputs_of(id(1), 10).await, Ok(vec![sealed(new)]));
    let old = row(attestation(1, "h.c.s"));
    let new = row(Attestation { version: 2, tenant: tenant("bank-b"), ..attestation(1, "h.c.t") });
    given(&store, insert(std::slice::from_ref(&old))).await;
    given(&store, change(&[old], std::slice::from_ref(&new))).await;
    assert_eq!(every_row(&store, 100).await.pop(), Some(new));
    let old = transaction(7, "acct-1", 1_000);
    given(&store, insert(&[row(old.clone())])).await;
    let mut before = row(old);
    for next in every_transaction(100) {
        let next = Transaction { id: transaction_id(7), version: before.row.version() + 1, ..next };
        let next = row(next);
        given(&store, change(std::slice::from_ref(&before), std::slice::from_ref(&next))).await;
        assert_eq!(every_row(&store, 100).await.pop().as_ref(), Some(&next));
        before = next;
    }
    let old = binding(1);
    let acknowledged = Binding { tenant: tenant("bank-b"), ..old.acknowledged() };
    a_row_becomes(&store, vec![row(old), row(acknowledged.clone()), row(acknowledged.used([9; 12]))]).await;
    let old = presentation(1);
    let other = Presentation {
        tenant: tenant("bank-b"),
        credential: id(7),
        account: account("other"),
        created_unix_ms: 9,
        nonce: [0; 32],
        code_hash: [1; 32],
        expires: authorization(1).expires,
        ..old.claimed(transaction_id(3))
    };
    let again = Presentation { version: 3, ..presentation(1) };
    a_row_becomes(&store, vec![row(old), row(other), row(again)]).await;
    let [old, seen, by_password] = every_authorization(1);
    let next = |version, next: Authorization| Authorization { credential: old.credential, version, ..next };
    let seen = Authorization { tenant: tenant("bank-b"), nonce: [0; 32], ..next(2, seen) };
    let by_password = Authorization { account: account("other"), ..next(3, by_password) };
    let by_password = Authorization { expires: presentation(1).expires, ..by_password };
    a_row_becomes(&store, vec![row(old), row(seen), row(by_password)]).await;
}

/// Writes each version of a row over the one before it, each read back as it was written.
async fn a_row_becomes(store: &Store, versions: Vec<Sealed<Row>>) {
    given(store, insert(&versions[..1])).await;
    for versions in versions.windows(2) {
        given(store, change(&versions[..1], &versions[1..])).await;
        let rows = every_row(store, 100).await;
        assert!(rows.contains(&versions[1]) && !rows.contains(&versions[0]), "{:?}", versions[1].row);
    }
}

async fn a_new_row_must_not_exist(open: Open<'_>) {
    let store = open();
    let rows = one_of_each();
    given(&store, insert(&rows)).await;
    for existing in rows {
        assert_conflict(&store, insert(&[existing])).await;
    }
    let nought = CredentialState { version: 0, ..state(2, "bank-a") };
    assert_refused(&store, insert(&[row(nought)])).await;
}

async fn what_a_commit_stands_on_must_hold(open: Open<'_>) {
    let store = open();
    let rows = one_of_each();
    given(&store, insert(&rows)).await;
    for row in &rows {
        assert_eq!(outcome(&store, stand(row)).await, Ok(()));
        let mut next = row.clone();
        next.row.succeed();
        assert_conflict(&store, stand(&next)).await;
        // A version says not yet which row it is.
        let mut twin = row.clone();
        twin.seal.mac[0] ^= 1;
        assert_conflict(&store, stand(&twin)).await;
        assert_conflict(&store, change(&[twin.clone()], &[next.clone()])).await;
        assert_conflict(&store, remove(&[twin])).await;
        // Nor is it enough to say what comes of it.
        assert_refused(&store, insert(&[next])).await;
        assert_refused(&store, Commit { before: Vec::new(), ..remove(std::slice::from_ref(row)) }).await;
    }
    let others = [
        any(sealed(credential(2, "bank-a", "acct-1"))),
        row(Account::new(tenant("bank-a"), account("other"))),
        row(used_input(1, 8, None)),
        row(used_input(2, 7, None)),
        row(attestation(2, "h.c.s")),
        row(transaction(2, "acct-1", 1_000)),
        row(binding(2)),
        row(presentation(2)),
        row(authorization(2)),
    ];
    for other in others {
        assert_conflict(&store, stand(&other)).await;
    }
}

async fn a_row_is_removed_at_its_version_only(open: Open<'_>) {
    let store = open();
    let all = one_of_each();
    given(&store, insert(&all)).await;
    for row in &all {
        let mut next = row.clone();
        next.row.succeed();
        assert_conflict(&store, remove(&[next])).await;
    }
    given(&store, remove(&all)).await;
    assert_eq!(every_row(&store, 10).await, []);
    for row in all {
        assert_conflict(&store, remove(&[row])).await;
    }
}

async fn a_conflict_in_the_last_row_writes_nothing(open: Open<'_>) {
    let store = open();
    let first = rows_of(&enrolment(1, "bank-a", "acct-1"));
    let answer = row(record("backend", "k-1", 9_000));
    given(&store, insert(&first)).await;
    given(&store, insert(std::slice::from_ref(&answer))).await;

    let mut rows = rows_of(&enrolment(2, "bank-a", "acct-2"));
    rows.push(row(record("backend", "k-1", 9_001)));
    assert_conflict(&store, insert(&rows)).await;

    rows.pop();
    let mut moved = first[0].clone();
    moved.row.succeed();
    let before: Vec<_> = [&first[1], &answer, &moved].map(Standing::from).into();
    assert_conflict(&store, Commit { before: before.clone(), ..insert(&rows) }).await;
    let removed = vec![answer.row.key(), moved.row.key()];
    assert_conflict(&store, Commit { before, removed, ..insert(&rows) }).await;
    given(&store, insert(&rows)).await;

    // One that replaces rows: the first is as it was read, the last has moved on since.
    let now = store.credential(&tenant("bank-a"), id(1)).await.unwrap().unwrap();
    let before = [any(now.state), any(now.account.clone())];
    let after = [next(&before[0], 1), row(now.account.row.unlocked())];
    given(&store, change(&before[1..], &after[1..])).await;
    assert_conflict(&store, change(&before, &after)).await;
    assert_conflict(&store, change(&before[1..], &after[1..])).await;
}

async fn of_many_that_race_exactly_one_wins(open: Open<'_>) {
    const RACERS: u64 = 64;
    let store = open();
    let rows = enrolment(1, "bank-a", "acct-1");
    given(&store, insert(&rows_of(&rows))).await;
    for round in 0..20 {
        let now = store.credential(&tenant("bank-a"), id(1)).await.unwrap().unwrap();
        let before = [any(now.state.clone()), any(now.account.clone())];
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (store, before) = (store.clone(), before.clone());
            let charged = now.account.row.unlocked();
            racers.spawn(async move {
                let after = [next(&before[0], round * RACERS + racer), row(charged)];
                (outcome(&store, change(&before, &after)).await, after)
            });
        }
        let outcomes = racers.join_all().await;
        let winners: Vec<_> = outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        let losers = outcomes.iter().filter(|(outcome, _)| *outcome == Err(CommitError::Conflict));
        assert_eq!(losers.count() as u64, RACERS - 1, "round {round}");
        let read = store.credential(&tenant("bank-a"), id(1)).await.unwrap().unwrap();
        assert_eq!(any(read.state), winners[0].1[0]);
    }
}

async fn the_sum_adds_up_over_concurrent_commits(open: Open<'_>) {
    let store = open();
    let mut tasks = JoinSet::new();
    for number in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut state = row(state(number, "bank-a"));
            given(&store, insert(std::slice::from_ref(&state))).await;
            for factor in 1..10 {
                let after = next(&state, factor);
                given(&store, change(&[state], std::slice::from_ref(&after))).await;
                state = after;
            }
            if number % 2 == 0 {
                given(&store, remove(&[state])).await;
                return None;
            }
            Some(state)
        });
    }
    let expected: Vec<Sealed<Row>> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(expected.len(), 32);
    assert_eq!(store.row_sum().await, Ok(sum(&expected)));
}

async fn a_commit_that_names_a_row_twice_fails_alone(open: Open<'_>) {
    let store = open();
    let double = row(state(1, "bank-a"));
    let mut tasks = JoinSet::new();
    for number in 0..64u128 {
        let store = store.clone();
        let bad = number % 8 == 0;
        let commit = match bad {
            true => insert(&[row(state(100 + number, "bank-a")), double.clone(), double.clone()]),
            false => insert(&[row(state(100 + number, "bank-a"))]),
        };
        tasks.spawn(async move { (bad, outcome(&store, commit).await) });
    }
    for (bad, outcome) in tasks.join_all().await {
        assert_eq!(outcome, if bad { Err(CommitError::Unavailable) } else { Ok(()) });
    }
    assert_eq!(every_row(&store, 100).await.len(), 56);
    assert_eq!(store.audit_entries(0, 100).await.unwrap().len(), 56);

    // The same of an update and of a removal.
    let (before, after) = (row(state(101, "bank-a")), next(&row(state(101, "bank-a")), 1));
    let twice = change(std::slice::from_ref(&before), &[after.clone(), after]);
    assert_eq!(outcome(&store, twice).await, Err(CommitError::Unavailable));
    let twice = remove(&[before.clone(), before]);
    assert_eq!(outcome(&store, twice).await, Err(CommitError::Unavailable));
    assert_eq!(every_row(&store, 100).await.len(), 56);
}

async fn an_entry_is_in_the_log_for_each_commit_and_no_other(open: Open<'_>) {
    let store = open();
    let state = row(state(1, "bank-a"));
    let first = entry(Event::Enrolled, 1);
    let second = AuditEntry { actor: None, credential: None, ..entry(Event::Pruned, u64::MAX) };
    let commit = |audit: &AuditEntry, rows: &[Sealed<Row>]| Commit { audit: audit.clone(), ..insert(rows) };
    given(&store, commit(&first, std::slice::from_ref(&state))).await;
    assert_conflict(&store, commit(&entry(Event::Refused, 2), std::slice::from_ref(&state))).await;
    given(&store, commit(&second, &[])).await;

    let rows = RowMarks(vec![RowMark::written(&state.row.key(), 1)]);
    let first = Logged { seq: 1, entry: first, rows };
    let second = Logged { seq: 2, entry: second, rows: RowMarks::default() };
    assert_eq!(store.audit_entries(0, 10).await, Ok(vec![first.clone(), second.clone()]));
    assert_eq!(store.audit_entries(0, 1).await, Ok(vec![first.clone()]));
    assert_eq!(store.audit_entries(1, 10).await, Ok(vec![second.clone()]));
    let (size, root) = (store.head().borrow().size, store.head().borrow().root);
    assert_eq!((size, root), (2, TreeHash::of_node(first.leaf(), second.leaf())));
}

async fn a_commit_goes_on_when_its_caller_stops_waiting(open: Open<'_>) {
    let store = open();
    let mut waiting = Box::pin(store.commit(insert(&[row(state(1, "bank-a"))])));
    // Polled once, it is in the queue.
    let polled = std::future::poll_fn(|context| std::task::Poll::Ready(waiting.as_mut().poll(context)));
    let _ = polled.await;
    drop(waiting);
    // The queue is served in its order.
    given(&store, insert(&[row(state(2, "bank-a"))])).await;
    assert_eq!(every_row(&store, 10).await.len(), 2);
}

async fn reopening_sees_everything(open: Open<'_>) {
    let rows = enrolment(1, "bank-a", "acct-1");
    let log = {
        let store = open();
        given(&store, insert(&rows_of(&rows))).await;
        given(&store, insert(&[row(record("backend", "k-1", 9_000))])).await;
        store.audit_entries(0, 10).await.unwrap()
    };
    for _ in 0..2 {
        let store = open();
        assert_eq!(store.credential(&tenant("bank-a"), id(1)).await, Ok(Some(rows.clone())));
        assert_eq!(every_row(&store, 10).await.len(), 4);
        assert_eq!(store.audit_entries(0, 10).await.unwrap(), log);
        assert_sum_adds_up(&store).await;
    }
}

async fn extreme_values_survive(open: Open<'_>) {
    let store = open();
    let now = Now {
        unix_ms: u64::MAX,
        boot_ms: u64::MAX,
        boot_id: BootId([0xff; 16]),
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    };
    let long = "\u{1f3e6}".repeat(128);
    let movers = [
        MovingFactor::Hotp { look_ahead: u8::MAX },
        MovingFactor::Totp { period_s: u16::MAX, skew_steps: u8::MAX },
    ];
    let locks = [None, Some(Lock::UntilUnlocked), Some(Lock::Until(Deadline::after(&now, u64::MAX)))];
    let mut number = 0;
    for value in [0, 1, COUNTER_END - 1, COUNTER_END, u64::MAX] {
        for (moving_factor, lock) in
            movers.into_iter().flat_map(|moving_factor| locks.map(|lock| (moving_factor, lock)))
        {
            number += 1;
            let attempts = Attempts { failures: u32::MAX, lock };
            let name = format!("{}{number:03}", "x".repeat(61));
            let mut rows = enrolment(number, &name, &long);
            rows.credential = sealed(Credential {
                created_unix_ms: value,
                kind: Kind::Otp(OtpToken {
                    algorithm: Algorithm::Sha512,
                    digits: Digits::try_from(8).unwrap(),
                    moving_factor,
                    secret: Some(StoredSecret::Wrapped { kek_version: u16::MAX, blob: vec![0xff; 1_000] }),
                }),
                deleted_unix_ms: Some(value),
                ..rows.credential.row
            });
            rows.state = sealed(CredentialState {
                status: Status::Suspended,
                next_factor: value,
                last_accepted: Some(value),
                drift_steps: i16::MIN,
                attempts,
                account_share: u32::MAX,
                account_epoch: u32::MAX,
                ..rows.state.row
            });
            rows.account = sealed(Account { attempts, epoch: u32::MAX, ..rows.account.row });
            rows.account.seal.key_version = u16::MAX;
            given(&store, insert(&rows_of(&rows))).await;
            assert_eq!(store.credential(&tenant(&name), id(number)).await, Ok(Some(rows)));
            let answer = sealed(IdempotencyRecord {
                answer: vec![0; 100_000],
                ..record(&name, &"k".repeat(255), value)
            });
            given(&store, insert(&[any(answer.clone())])).await;
            assert_eq!(store.idempotency(&answer.row.client, &answer.row.key).await, Ok(Some(answer)));
        }
    }

    for (number, value) in [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX].into_iter().enumerate() {
        let name = "y".repeat(64);
        for (byte, time_step) in [(0, None), (255, Some(value))] {
            let input = sealed(UsedInput {
                fingerprint: [byte; 32],
                tenant: tenant(&name),
                time_step,
                expires_unix_ms: time_step,
                ..used_input(u128::MAX - number as u128, 0, None)
            });
            given(&store, insert(&[any(input.clone())])).await;
            assert_eq!(store.used_inputs(input.row.id, vec![[byte; 32]]).await, Ok(vec![input]));
        }
    }
    for (number, jws) in [(0, String::new()), (u128::MAX, "j".repeat(100_000))] {
        let mut attestation =
            row(Attestation { tenant: tenant(&"z".repeat(64)), ..attestation(number, &jws) });
        attestation.seal.key_version = u16::MAX;
        given(&store, insert(std::slice::from_ref(&attestation))).await;
        assert_eq!(every_row(&store, 1_000).await.pop(), Some(attestation));
    }
    let blob = |length| Some(StoredSecret::Wrapped { kek_version: u16::MAX, blob: vec![0xff; length] });
    let terminal =
        Kind::Terminal(Terminal { address: address(&"\u{1f4f1}".repeat(64)), secret: blob(1_000) });
    let rolling = Kind::Rolling(Rolling {
        secret: blob(0),
        salt: [0xff; SALT_BYTES],
        identity_key: blob(1_000),
        evidence: Some(evidence(&"\u{1faaa}".repeat(128))),
    });
    for (number, kind) in [(9_996, terminal), (9_997, rolling)] {
        let mut rows = enrolment(number, &"z".repeat(64), &format!("{}{number}", "\u{1f3e6}".repeat(124)));
        rows.credential = sealed(Credential { kind, ..rows.credential.row });
        given(&store, insert(&rows_of(&rows))).await;
        assert_eq!(store.credential(&rows.credential.row.tenant, id(number)).await, Ok(Some(rows)));
    }
    for (number, value) in [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX].into_iter().enumerate() {
        let name = tenant(&format!("{}{number}", "y".repeat(63)));
        let number = u128::MAX - number as u128;
        let bound = sealed(Binding {
            tenant: name.clone(),
            epoch: value,
            acknowledged: value % 2 == 1,
            lookup: [if value > 1 { 0xff } else { 0 }; LOOKUP_BYTES],
            ..binding(number)
        });
        let expires = Deadline::after(&Now { unix_ms: 0, ..now }, value);
        let shown = sealed(Presentation {
            tenant: name.clone(),
            account: account(&long),
            created_unix_ms: value,
            expires,
            transaction: Some(transaction_id(number)),
            ..presentation(number)
        });
        let asked = sealed(Authorization {
            tenant: name.clone(),
            account: account(&long),
            means: Means::Password { evidence: evidence(&"\u{1faaa}".repeat(128)) },
            expires,
            uplink_seen: value % 2 == 1,
            attempts_left: if value > 1 { u8::MAX } else { 0 },
            ..authorization(number)
        });
        given(&store, insert(&[any(bound.clone()), any(shown.clone()), any(asked.clone())])).await;
        assert_eq!(store.binding(id(number)).await, Ok(Some(bound)));
        assert_eq!(store.presentation(&name, shown.row.id).await, Ok(Some(shown)));
        assert_eq!(store.authorization(id(number)).await, Ok(Some(asked)));
    }
    let suite = "OCRA-1:HOTP-SHA512-10:C-QH64-PSHA512-S512-T48H";
    let ocra = Kind::Ocra(OcraToken {
        suite: Suite::parse(suite).unwrap(),
        look_ahead: u8::MAX,
        skew_steps: u8::MAX,
        usage: OcraUse::Transaction,
        secret: Some(StoredSecret::Wrapped { kek_version: u16::MAX, blob: vec![0xff; 1_000] }),
        pin_hash: Some(EncryptedPinHash { data_version: u16::MAX, blob: vec![0xff; 1_000] }),
    });
    let mut rows = enrolment(9_998, &"z".repeat(64), &long);
    rows.credential = sealed(Credential { kind: ocra, ..rows.credential.row });
    given(&store, insert(&rows_of(&rows))).await;
    assert_eq!(store.credential(&rows.credential.row.tenant, id(9_998)).await, Ok(Some(rows)));

    for (number, status) in (8_000..).zip(Status::ALL) {
        let state = row(CredentialState { status, ..state(number, "bank-a") });
        given(&store, insert(std::slice::from_ref(&state))).await;
        assert!(every_row(&store, 1_000).await.contains(&state), "{status:?}");
    }

    // A version is a u64 too, compared as one.
    let last = |version| row(CredentialState { version, ..state(9_999, "bank-a") });
    assert_refused(&store, insert(&[last(u64::MAX)])).await;
    assert_conflict(&store, stand(&last(u64::MAX))).await;
}

async fn every_kind_survives_and_its_tombstone(open: Open<'_>) {
    let every = every_kind(1);
    given(&open(), insert(&every.iter().flat_map(rows_of).collect::<Vec<_>>())).await;
    let store = open();
    for rows in every {
        let number = rows.credential.row.id;
        assert_eq!(store.credential(&tenant("bank-a"), number).await, Ok(Some(rows.clone())));
        let page = Page { after: None, limit: 10 };
        let listed = store.credentials(&tenant("bank-a"), Some(&rows.account.row.account), page).await;
        assert_eq!(listed, Ok(Some(vec![rows.clone()])));

        let tombstone = sealed(rows.credential.row.deleted(8_000));
        match &tombstone.row.kind {
            Kind::Otp(token) => assert_eq!(token.secret, None),
            Kind::Ocra(token) => assert_eq!((&token.secret, &token.pin_hash), (&None, &None)),
            Kind::Terminal(terminal) => assert_eq!(terminal.secret, None),
            Kind::Rolling(rolling) => assert_eq!((&rolling.secret, &rolling.identity_key), (&None, &None)),
            kind => assert_eq!(kind.signer().unwrap().key, None),
        }
        given(&store, change(&[any(rows.credential)], &[any(tombstone.clone())])).await;
        let read = store.credential(&tenant("bank-a"), number).await.unwrap().unwrap();
        assert_eq!(read.credential, tombstone);
    }
    assert_eq!(store.tombstones(u64::MAX, 100).await.unwrap().len(), 13);
}

async fn a_used_input_is_found_until_it_is_removed(open: Open<'_>) {
    let one =
        [1, 2, 3].map(|byte| sealed(used_input(1, byte, (byte != 3).then_some(u64::from(byte) * 60_000))));
    // Of another credential, but with an equal fingerprint: another row.
    let other = sealed(used_input(2, 1, None));
    let all: Vec<Sealed<Row>> = one.iter().cloned().chain([other.clone()]).map(any).collect();
    given(&open(), insert(&all)).await;
    let store = open();
    let found = async |number, bytes: &[u8]| {
        store.used_inputs(id(number), bytes.iter().map(|byte| [*byte; 32]).collect()).await.unwrap()
    };
    assert_eq!(found(1, &[2]).await, [one[1].clone()]);
    assert_eq!(found(1, &[9, 3, 8, 1]).await, [one[2].clone(), one[0].clone()]);
    assert_eq!(found(2, &[1, 2, 3]).await, std::slice::from_ref(&other));
    assert_eq!(found(3, &[1, 2, 3]).await, []);
    assert_eq!(found(1, &[]).await, []);
    assert_eq!(store.inputs_of(id(1), 10).await, Ok(one.to_vec()));
    assert_eq!(store.inputs_of(id(1), 2).await, Ok(one[..2].to_vec()));
    assert_eq!(store.inputs_of(id(3), 10).await, Ok(vec![]));

    given(&store, remove(&[any(one[1].clone())])).await;
    assert_eq!(found(1, &[1, 2]).await, [one[0].clone()]);
    assert_conflict(&store, remove(&[any(one[1].clone())])).await;
    // Once it is forgotten, it may come again.
    given(&store, insert(&[any(one[1].clone())])).await;
    assert_eq!(store.inputs_of(id(1), 10).await, Ok(one.to_vec()));
}

async fn a_blob_that_was_taken_is_found_in_its_tenant_alone(open: Open<'_>) {
    let store = open();
    let [first, second] = [1, 2].map(|number| sealed(imported_seed(number)));
    let theirs = sealed(ImportedSeed { tenant: tenant("bank-b"), credential: id(3), ..imported_seed(1) });
    given(&store, insert(&[&first, &second, &theirs].map(|seed| any(seed.clone())))).await;
    let taken = async |name, number: u8| store.imported_seed(&tenant(name), [number; 32]).await;
    assert_eq!(taken("bank-a", 1).await, Ok(Some(first.clone())));
    assert_eq!(taken("bank-b", 1).await, Ok(Some(theirs.clone())));
    for (name, number) in [("bank-b", 2), ("bank-a", 3), ("bank-c", 1)] {
        assert_eq!(taken(name, number).await, Ok(None), "{name} {number}");
    }
    // By another credential it is the same row: of two that bring it one is refused.
    let again = ImportedSeed { credential: id(9), ..first.row.clone() };
    assert_conflict(&store, insert(&[row(again)])).await;
    for (number, seeds) in [(1, vec![first.clone()]), (2, vec![second]), (3, vec![theirs]), (4, vec![])] {
        assert_eq!(store.imported_seeds_of(id(number)).await, Ok(seeds));
    }
    given(&store, remove(&[any(first)])).await;
    assert_eq!((taken("bank-a", 1).await, store.imported_seeds_of(id(1)).await), (Ok(None), Ok(vec![])));
}

async fn another_tenant_sees_nothing(open: Open<'_>) {
    let store = open();
    given(&store, insert(&rows_of(&enrolment(1, "bank-a", "acct-1")))).await;
    assert_eq!(store.credential(&tenant("bank-b"), id(1)).await, Ok(None));
    assert_eq!(store.account(&tenant("bank-b"), &account("acct-1")).await, Ok(None));
    let page = |after| Page { after, limit: 10 };
    assert_eq!(store.credentials(&tenant("bank-b"), None, page(None)).await, Ok(Some(Vec::new())));
    let theirs = store.credentials(&tenant("bank-b"), Some(&account("acct-1")), page(None)).await;
    assert_eq!(theirs, Ok(Some(Vec::new())));
    assert_eq!(store.credentials(&tenant("bank-b"), None, page(Some(id(1)))).await, Ok(None));
}

async fn lists_are_paged_in_the_order_of_making(open: Open<'_>) {
    let store = open();
    // Made in an order that is not that of the ids, several at the same time, on two accounts.
    let mut expected: Vec<(u64, u128)> = Vec::new();
    for number in (0..20u128).rev() {
        let created = (20 - number as u64) / 3;
        let mut rows = enrolment(number, "bank-a", &format!("acct-{}", number % 2));
        rows.credential = sealed(Credential { created_unix_ms: created, ..rows.credential.row });
        let mut all = rows_of(&rows);
        if number < 18 {
            all.pop(); // Both accounts have their rows.
        }
        given(&store, insert(&all)).await;
        expected.push((created, number));
    }
    expected.sort_unstable();
    let listed = async |name: Option<&str>, limit| {
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let account = name.map(account);
            let page = Page { after, limit };
            let rows = store.credentials(&tenant("bank-a"), account.as_ref(), page).await.unwrap().unwrap();
            assert!(rows.len() <= usize::from(limit));
            let Some(last) = rows.last() else { return numbers };
            after = Some(last.credential.row.id);
            numbers.extend(rows.iter().map(|rows| u128::from_be_bytes(rows.credential.row.id.to_bytes())));
        }
    };
    let all: Vec<u128> = expected.iter().map(|(_, number)| *number).collect();
    let odd: Vec<u128> = all.iter().copied().filter(|number| number % 2 == 1).collect();
    for limit in [1, 3, 20, 100] {
        assert_eq!(listed(None, limit).await, all);
        assert_eq!(listed(Some("acct-1"), limit).await, odd);
    }

    // A deleted one is listed no more, but still marks its place.
    let gone = id(all[4]);
    let rows = store.credential(&tenant("bank-a"), gone).await.unwrap().unwrap();
    let tombstone = row(rows.credential.row.deleted(9_000));
    given(&store, change(&[any(rows.credential)], &[tombstone])).await;
    let left: Vec<u128> = all.iter().copied().filter(|number| id(*number) != gone).collect();
    assert_eq!(listed(None, 3).await, left);
    let page = Page { after: Some(gone), limit: 1 };
    let rows = store.credentials(&tenant("bank-a"), None, page).await.unwrap().unwrap();
    assert_eq!(rows[0].credential.row.id, id(all[5]));
    let page = Page { after: Some(id(999)), limit: 1 };
    assert_eq!(store.credentials(&tenant("bank-a"), None, page).await, Ok(None));
}

async fn what_is_over_is_found(open: Open<'_>) {
    let store = open();
    for (number, expires) in [(1, 300), (2, 100), (3, 200), (4, u64::MAX)] {
        given(&store, insert(&[row(record("backend", &format!("k-{number}"), expires))])).await;
    }
    let expired = async |unix_ms, limit| -> Vec<String> {
        let rows = store.expired(unix_ms, limit).await.unwrap();
        rows.into_iter()
            .map(|row| match row.row {
                Row::Idempotency(record) => record.key.as_str().to_owned(),
                other => panic!("{other:?} does not expire"),
            })
            .collect()
    };
    assert_eq!(expired(99, 10).await, [""; 0]);
    assert_eq!(expired(100, 10).await, ["k-2"]);
    assert_eq!(expired(u64::MAX, 10).await, ["k-2", "k-3", "k-1"]);
    assert_eq!(expired(u64::MAX, 2).await, ["k-2", "k-3"]);

    for (number, deleted) in [(1, Some(300)), (2, Some(100)), (3, None)] {
        let name = format!("acct-{number}");
        let mut rows = enrolment(number, "bank-a", &name);
        rows.credential = sealed(Credential { deleted_unix_ms: deleted, ..rows.credential.row });
        given(&store, insert(&rows_of(&rows))).await;
    }
    let tombstones = async |before, limit| -> Vec<_> {
        let rows = store.tombstones(before, limit).await.unwrap();
        rows.into_iter().map(|rows| rows.credential.row.id).collect()
    };
    assert_eq!(tombstones(100, 10).await, []);
    assert_eq!(tombstones(101, 10).await, [id(2)]);
    assert_eq!(tombstones(u64::MAX, 10).await, [id(2), id(1)]);
    assert_eq!(tombstones(u64::MAX, 1).await, [id(2)]);
}

async fn inputs_out_of_reach_are_found(open: Open<'_>) {
    let store = open();
    let expiries = [(1, Some(300)), (2, Some(100)), (3, Some(200)), (4, None), (5, Some(u64::MAX))];
    for (byte, expires) in expiries {
        given(&store, insert(&[row(used_input(1, byte, expires))])).await;
    }
    let found = async |unix_ms, limit| -> Vec<u8> {
        let inputs = store.inputs_out_of_reach(unix_ms, limit).await.unwrap();
        inputs.into_iter().map(|input| input.row.fingerprint[0]).collect()
    };
    assert_eq!(found(99, 10).await, [0; 0]);
    assert_eq!(found(100, 10).await, [2]);
    assert_eq!(found(299, 10).await, [2, 3]);
    assert_eq!(found(u64::MAX, 10).await, [2, 3, 1]);
    assert_eq!(found(u64::MAX, 2).await, [2, 3]);
}

async fn every_row_is_seen_once(open: Open<'_>) {
    let store = open();
    assert_eq!(every_row(&store, 1).await, []);
    let mut expected = Vec::new();
    for number in 0..7u128 {
        let rows = enrolment(number, "bank-a", &format!("acct-{number}"));
        expected.extend(rows_of(&rows));
        expected.push(row(record(&format!("client-{}", number % 2), &format!("k-{number}"), 1)));
        expected.push(row(used_input(number / 3, number as u8, (number % 2 == 0).then_some(60_000))));
        expected.push(row(attestation(number, "h.c.s")));
        expected.push(row(transaction(number, "acct-1", 1_000)));
        expected.extend([row(binding(number)), row(presentation(number)), row(authorization(number))]);
    }
    expected.extend(every_kind(20).iter().flat_map(rows_of));
    given(&store, insert(&expected)).await;
    expected.sort_by_key(|row| row.row.key());
    assert_eq!(expected.len(), 109);
    for page in (1..=110).chain([1_000]) {
        assert_eq!(every_row(&store, page).await, expected, "{page} a page");
    }
}

async fn what_events_left_is_told_when_it_is_opened_again(open: Open<'_>) {
    let left = |events: &[Event]| {
        let events = events.to_vec();
        async move {
            let store = open();
            for event in events {
                given(&store, Commit { audit: entry(event, 7), ..insert(&[]) }).await;
            }
            drop(store);
            open().left().0.aftermath
        }
    };
    assert_eq!(left(&[]).await, Aftermath::default());
    let stepped = left(&[Event::ClockStepped, Event::Verified]).await;
    assert!(stepped.clock_stepped && !stepped.ended && stepped.last_unix_ms == 7);
    let accepted = left(&[Event::ClockAccepted, Event::StartedUnclean, Event::Stopped]).await;
    assert!(!accepted.clock_stepped && accepted.ended && accepted.floor.lost_unix_ms == 7);
}

/// Objects in the HSM hang on that: whoever asked for them has them destroyed again.
async fn a_request_is_not_dropped_before_it_knows_that_nothing_was_written(open: Open<'_>) {
    let store = open();
    let rows = one_of_each();
    given(&store, insert(&rows)).await;
    let conflicts = || store.metrics().commits.get_or_create(&metrics::Commit::Conflict).get();
    for _ in 0..1_000 {
        let line = Lifeline::until(Instant::now() + Duration::from_secs(3_600));
        let before = conflicts();
        let mut commit = pin!(line.clone().hold(store.commit(insert(&rows[..1]))));
        let first = poll_fn(|context| Poll::Ready(commit.as_mut().poll(context))).await;
        if first.is_ready() {
            // The writer was quicker than this thread.
            continue;
        }
        while conflicts() == before {
            tokio::task::yield_now().await;
        }
        assert!(!line.let_go(), "dropped with an outcome that it has not seen");
        let outcome = commit.await.map(drop);
        assert_eq!(outcome, Err(CommitError::Abandoned), "it is not tried again for nobody");
        return;
    }
    panic!("the writer was always quicker");
}
