//! What a store says of transactions, beyond what it says of every row.

use hsm_authd::domain::transaction::{State, Transaction};
use hsm_authd::store::{Commit, Page, ReadError, Store, TransactionRows};

use crate::scratch::Scratch;
use crate::store_samples::*;

fn open(scratch: &Scratch) -> Store {
    Store::open(&scratch.join("store.db")).unwrap()
}

async fn given(store: &Store, commit: Commit) {
    let _ = store.commit(commit).await.unwrap();
}

#[tokio::test]
async fn one_comes_with_its_attestation_and_to_its_tenant_alone() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let pending = sealed(transaction(1, "acct-1", 1_000));
    let approved = sealed(Transaction { state: State::Approved, ..transaction(2, "acct-1", 1_000) });
    let attested = sealed(attestation(2, "h.c.s"));
    let rows = [any(pending.clone()), any(approved.clone()), any(attested.clone())];
    given(&store, insert(&rows)).await;

    let read = async |name, number| store.transaction(&tenant(name), transaction_id(number)).await;
    let rows = TransactionRows { transaction: pending, attestation: None };
    assert_eq!(read("bank-a", 1).await, Ok(Some(rows)));
    let rows = TransactionRows { transaction: approved, attestation: Some(attested.clone()) };
    assert_eq!(read("bank-a", 2).await, Ok(Some(rows)));
    assert_eq!(read("bank-a", 3).await, Ok(None));
    assert_eq!(read("bank-b", 1).await, Ok(None));

    // An approval without what was signed of it: somebody removed that.
    given(&store, remove(&[any(attested.clone())])).await;
    assert_eq!(read("bank-a", 2).await, Err(ReadError));
    assert!(read("bank-a", 1).await.is_ok());
    // What was signed of no approval: somebody put an old row back.
    given(&store, insert(&[row(attestation(1, "h.c.s"))])).await;
    assert_eq!(read("bank-a", 1).await, Err(ReadError));
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn lists_are_paged_in_the_order_of_making() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut expected: Vec<(u64, u128)> = Vec::new();
    for number in (0..20u128).rev() {
        let created = (20 - number as u64) / 3;
        let payer = format!("acct-{}", number % 2);
        given(&store, insert(&[row(transaction(number, &payer, created))])).await;
        expected.push((created, number));
    }
    let other = Transaction { tenant: tenant("bank-b"), ..transaction(99, "acct-1", 3) };
    given(&store, insert(&[row(other)])).await;
    expected.sort_unstable();
    let listed = async |payer: Option<&str>, limit| {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let payer = payer.map(account);
            let page = Page { after, limit };
            let found = store.transactions(&tenant("bank-a"), payer.as_ref(), page).await.unwrap().unwrap();
            assert!(found.len() <= usize::from(limit));
            let Some(last) = found.last() else { return ids };
            after = Some(*last);
            ids.extend(found);
        }
    };
    let ids = |some: &dyn Fn(u128) -> bool| -> Vec<_> {
        expected
            .iter()
            .filter(|(_, number)| some(*number))
            .map(|(_, number)| transaction_id(*number))
            .collect()
    };
    let (all, odd) = (ids(&|_| true), ids(&|number| number % 2 == 1));
    for limit in [1, 3, 20, 100] {
        assert_eq!(listed(None, limit).await, all);
        assert_eq!(listed(Some("acct-1"), limit).await, odd);
    }
    for (name, after) in [("bank-a", 999), ("bank-a", 99), ("bank-b", 1)] {
        let page = Page { after: Some(transaction_id(after)), limit: 1 };
        assert_eq!(store.transactions(&tenant(name), None, page).await, Ok(None), "{name} after {after}");
    }
}

#[tokio::test]
async fn what_is_over_is_found() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    // Open until 301 s, 302 s and 303 s; the last one has ended.
    for (number, state) in [(1, State::Pending), (2, State::Pending), (3, State::Cancelled)] {
        let paid = transaction(number, "acct-1", number as u64 * 1_000);
        given(&store, insert(&[row(Transaction { state, ..paid })])).await;
    }
    let overdue = async |unix_ms, limit| store.overdue(unix_ms, limit).await.unwrap();
    let numbered = |number| (tenant("bank-a"), transaction_id(number));
    assert_eq!(overdue(300_999, 10).await, []);
    assert_eq!(overdue(301_000, 10).await, [numbered(1)]);
    assert_eq!(overdue(u64::MAX, 10).await, [numbered(1), numbered(2)]);
    assert_eq!(overdue(u64::MAX, 1).await, [numbered(1)]);

    for (number, ended) in [(11, Some(300)), (12, Some(100)), (13, None)] {
        let state = if number == 12 { State::Approved } else { State::Failed };
        let paid = Transaction { ended_unix_ms: ended, state, ..transaction(number, "acct-1", 1) };
        given(&store, insert(&[row(paid)])).await;
    }
    given(&store, insert(&[row(attestation(12, "h.c.s"))])).await;
    let ended = async |before, limit| -> Vec<_> {
        let rows = store.transactions_ended(before, limit).await.unwrap();
        rows.into_iter().map(|rows| (rows.transaction.row.id, rows.attestation.is_some())).collect()
    };
    assert_eq!(ended(100, 10).await, []);
    assert_eq!(ended(101, 10).await, [(transaction_id(12), true)]);
    assert_eq!(ended(u64::MAX, 10).await, [(transaction_id(12), true), (transaction_id(11), false)]);
    assert_eq!(ended(u64::MAX, 1).await, [(transaction_id(12), true)]);
}
