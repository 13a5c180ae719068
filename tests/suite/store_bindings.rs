//! What a store says of bindings: by whose password they are found, and that no two have the same.

use hsm_authd::domain::credential::{Credential, Kind};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::rolling::Binding;
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::store::{BoundRows, Commit, CommitError, CredentialRows, ReadError, Store};

use crate::scratch::Scratch;
use crate::store_samples::*;

fn open(scratch: &Scratch) -> Store {
    Store::open(&scratch.join("store.db")).unwrap()
}

async fn outcome(store: &Store, commit: Commit) -> Result<(), CommitError> {
    store.commit(commit).await.map(|_| ())
}

/// A rolling credential's enrolment on an account of its own.
fn rolling(number: u128, tenant_name: &str) -> CredentialRows {
    let kind = other_kinds().into_iter().find(|kind| matches!(kind, Kind::Rolling(_))).unwrap();
    let rows = enrolment(number, tenant_name, &format!("acct-{number}"));
    CredentialRows { credential: sealed(Credential { kind, ..rows.credential.row }), ..rows }
}

fn of(number: u128, tenant_name: &str, lookup: u8) -> Sealed<Binding> {
    sealed(Binding { tenant: tenant(tenant_name), lookup: [lookup; 12], ..binding(number) })
}

#[tokio::test]
async fn one_is_found_by_what_its_password_begins_with_and_by_its_tenant_alone() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let all = [(1, "bank-a", 7), (2, "bank-a", 8), (3, "bank-b", 7)];
    let all = all.map(|(number, name, lookup)| (rolling(number, name), of(number, name, lookup)));
    for (credential, binding) in &all {
        let rows: Vec<_> = rows_of(credential).into_iter().chain([any(binding.clone())]).collect();
        assert_eq!(outcome(&store, insert(&rows)).await, Ok(()));
    }
    let bound = async |name, lookup| store.bound(&tenant(name), [lookup; 12]).await;
    let rows = |place: usize| {
        let (credential, binding) = all[place].clone();
        Ok(Some(BoundRows { credential, binding }))
    };
    assert_eq!(bound("bank-a", 7).await, rows(0));
    assert_eq!(bound("bank-a", 8).await, rows(1));
    assert_eq!(bound("bank-b", 7).await, rows(2));
    assert_eq!(bound("bank-b", 8).await, Ok(None));
    assert_eq!(bound("bank-c", 7).await, Ok(None));
    assert_eq!(bound("bank-a", 9).await, Ok(None));
    assert_eq!(store.binding(id(2)).await, Ok(Some(all[1].1.clone())));
    assert_eq!(store.binding(id(4)).await, Ok(None));

    // Used, it is found by the next epoch's password only.
    let used = sealed(all[0].1.row.used([9; 12]));
    assert_eq!(outcome(&store, change(&[any(all[0].1.clone())], &[any(used.clone())])).await, Ok(()));
    assert_eq!(bound("bank-a", 7).await, Ok(None));
    assert_eq!(bound("bank-a", 9).await.unwrap().unwrap().binding, used);
    assert_eq!(store.binding(id(1)).await, Ok(Some(used.clone())));
    // With a rebinding it is gone.
    assert_eq!(outcome(&store, remove(&[any(used)])).await, Ok(()));
    assert_eq!(bound("bank-a", 9).await, Ok(None));
    assert_eq!(store.binding(id(1)).await, Ok(None));
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn one_without_all_that_its_verdicts_stand_on_is_an_error() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let rows = rolling(1, "bank-a");
    let stripped = |without: usize| {
        let mut rows = rows_of(&rows);
        rows.remove(without);
        rows.push(any(of(1, "bank-a", 7)));
        rows
    };
    for without in 0..3 {
        let rows = stripped(without);
        assert_eq!(outcome(&store, insert(&rows)).await, Ok(()));
        assert_eq!(store.bound(&tenant("bank-a"), [7; 12]).await, Err(ReadError), "{without}");
        assert_eq!(store.bound(&tenant("bank-a"), [8; 12]).await, Ok(None));
        assert_eq!(outcome(&store, remove(&rows)).await, Ok(()));
    }
    // A binding that was given to another tenant leads to nobody's credential.
    let mut given: Vec<Sealed<Row>> = rows_of(&rows);
    given.push(any(of(1, "bank-b", 7)));
    assert_eq!(outcome(&store, insert(&given)).await, Ok(()));
    assert_eq!(store.bound(&tenant("bank-b"), [7; 12]).await, Err(ReadError));
    assert_eq!(store.bound(&tenant("bank-a"), [7; 12]).await, Ok(None));
}

#[tokio::test]
async fn no_two_of_a_tenant_are_found_by_the_same() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let (first, second) = (any(of(1, "bank-a", 7)), any(of(2, "bank-a", 8)));
    assert_eq!(outcome(&store, insert(&[first.clone(), second.clone()])).await, Ok(()));
    // A new one, and one that moves on; each with a row that would be written otherwise.
    let taken = insert(&[row(state(1, "bank-a")), any(of(3, "bank-a", 7))]);
    assert_eq!(outcome(&store, taken).await, Err(CommitError::Unavailable));
    let Row::Binding(of_second) = &second.row else { panic!() };
    let moved = [any(sealed(of_second.used([7; 12]))), row(state(2, "bank-a"))];
    let before = std::slice::from_ref(&second);
    assert_eq!(outcome(&store, change(before, &moved)).await, Err(CommitError::Unavailable));
    assert_eq!(every_row(&store, 10).await, [first.clone(), second.clone()]);
    assert_sum_adds_up(&store).await;

    // It is told to that commit alone: the writer goes on, whoever shared the group is written.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64u128 {
        let store = store.clone();
        let is_taken = number % 8 == 0;
        let lookup = if is_taken { 8 } else { 100 + number as u8 };
        let commit = insert(&[row(state(100 + number, "bank-a")), any(of(100 + number, "bank-a", lookup))]);
        tasks.spawn(async move { (is_taken, outcome(&store, commit).await) });
    }
    for (is_taken, outcome) in tasks.join_all().await {
        assert_eq!(outcome, if is_taken { Err(CommitError::Unavailable) } else { Ok(()) });
    }
    assert_eq!(every_row(&store, 1_000).await.len(), 2 + 2 * 56);
    assert_sum_adds_up(&store).await;

    // Another tenant may have it, and so may this one, once it is free.
    assert_eq!(outcome(&store, insert(&[any(of(3, "bank-b", 7))])).await, Ok(()));
    let again = of(4, "bank-a", 7);
    let freed = remove(&[first]);
    assert_eq!(outcome(&store, freed).await, Ok(()));
    assert_eq!(outcome(&store, insert(&[any(again.clone())])).await, Ok(()));
    assert_eq!(store.binding(CredentialId::from_random(4u128.to_be_bytes())).await, Ok(Some(again)));
    assert_sum_adds_up(&store).await;
}
