//! What a store says of an account's terminals, and of several credentials at once.

use hsm_authd::domain::account::Account;
use hsm_authd::domain::credential::{Credential, Kind};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::store::{CredentialRows, ReadError, Store};

use crate::scratch::Scratch;
use crate::store_samples::*;

fn open(scratch: &Scratch) -> Store {
    Store::open(&scratch.join("store.db")).unwrap()
}

async fn given(store: &Store, rows: &[Sealed<Row>]) {
    let _ = store.commit(insert(rows)).await.unwrap();
}

/// A terminal of an account that is there.
fn terminal(number: u128, tenant_name: &str, account_name: &str, created_unix_ms: u64) -> CredentialRows {
    let kind = other_kinds().into_iter().find(|kind| matches!(kind, Kind::Terminal(_))).unwrap();
    let rows = enrolment(number, tenant_name, account_name);
    let credential = sealed(Credential { kind, created_unix_ms, ..rows.credential.row });
    CredentialRows { credential, ..rows }
}

fn ids(rows: &[CredentialRows]) -> Vec<CredentialId> {
    rows.iter().map(|rows| rows.credential.row.id).collect()
}

#[tokio::test]
async fn an_account_has_its_terminals_in_the_order_of_their_enrolment_and_nothing_else() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    for (tenant_name, account_name) in [("bank-a", "acct-1"), ("bank-a", "acct-2"), ("bank-b", "acct-1")] {
        given(&store, &[row(Account::new(tenant(tenant_name), account(account_name)))]).await;
    }
    let mut all = vec![
        terminal(1, "bank-a", "acct-1", 300),
        terminal(2, "bank-a", "acct-1", 100),
        terminal(3, "bank-a", "acct-1", 200),
        terminal(4, "bank-a", "acct-1", 100),
        terminal(5, "bank-a", "acct-2", 100),
        terminal(6, "bank-b", "acct-1", 100),
    ];
    let of_every_kind = (20..).zip(other_kinds()).filter(|(_, kind)| !matches!(kind, Kind::Terminal(_)));
    all.extend(of_every_kind.map(|(number, kind)| {
        let rows = enrolment(number, "bank-a", "acct-1");
        CredentialRows { credential: sealed(Credential { kind, ..rows.credential.row }), ..rows }
    }));
    all.push(enrolment(50, "bank-a", "acct-1"));
    for rows in &all {
        given(&store, &[any(rows.credential.clone()), any(rows.state.clone())]).await;
    }
    let found = async |tenant_name, account_name, limit| {
        store.terminals(&tenant(tenant_name), &account(account_name), limit).await.unwrap()
    };
    let in_order = [2, 4, 3, 1].map(|number: usize| all[number - 1].clone());
    assert_eq!(found("bank-a", "acct-1", 10).await, in_order);
    assert_eq!(found("bank-a", "acct-1", 3).await, in_order[..3]);
    assert_eq!(ids(&found("bank-a", "acct-2", 10).await), [id(5)]);
    assert_eq!(ids(&found("bank-b", "acct-1", 10).await), [id(6)]);
    assert_eq!(found("bank-b", "acct-2", 10).await, []);
    // A deleted one is none any more.
    let tombstone = row(all[2].credential.row.deleted(9_000));
    let _ = store.commit(change(&[any(all[2].credential.clone())], &[tombstone])).await.unwrap();
    assert_eq!(ids(&found("bank-a", "acct-1", 10).await), [id(2), id(4), id(1)]);
    // One whose guesses are not limited is an error, not one terminal less.
    let _ = store.commit(remove(&[any(all[3].state.clone())])).await.unwrap();
    assert_eq!(store.terminals(&tenant("bank-a"), &account("acct-1"), 10).await, Err(ReadError));
}

#[tokio::test]
async fn several_credentials_are_all_there_in_the_order_asked_for_or_none() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut all: Vec<_> =
        (1..=3).map(|number| enrolment(number, "bank-a", &format!("acct-{number}"))).collect();
    all.push(enrolment(4, "bank-b", "acct-4"));
    all[1].credential = sealed(Credential { deleted_unix_ms: Some(9_000), ..all[1].credential.row.clone() });
    given(&store, &all.iter().flat_map(rows_of).collect::<Vec<_>>()).await;
    let found = async |numbers: &[u128]| {
        store.all_credentials(&tenant("bank-a"), numbers.iter().map(|number| id(*number)).collect()).await
    };
    let rows =
        |places: &[usize]| Ok(Some(places.iter().map(|place| all[*place].clone()).collect::<Vec<_>>()));
    assert_eq!(found(&[]).await, rows(&[]));
    assert_eq!(found(&[3, 1]).await, rows(&[2, 0]));
    assert_eq!(found(&[1, 2, 3]).await, rows(&[0, 1, 2]), "a deleted one is there");
    assert_eq!(found(&[1, 9]).await, Ok(None));
    assert_eq!(found(&[4, 1]).await, Ok(None), "another tenant's");
    let _ = store.commit(remove(&[any(all[2].state.clone())])).await.unwrap();
    assert_eq!(found(&[1, 3]).await, Err(ReadError));
}
