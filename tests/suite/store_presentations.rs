//! What a store says of presentations and of authorizations.

use hsm_authd::domain::authorization::Authorization;
use hsm_authd::domain::presentation::Presentation;
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::domain::time::{BootId, Deadline, Now, RunId};
use hsm_authd::store::{Commit, CommitError, Store};

use crate::scratch::Scratch;
use crate::store_samples::*;

fn open(scratch: &Scratch) -> Store {
    Store::open(&scratch.join("store.db")).unwrap()
}

async fn outcome(store: &Store, commit: Commit) -> Result<(), CommitError> {
    store.commit(commit).await.map(|_| ())
}

async fn given(store: &Store, rows: impl IntoIterator<Item = Sealed<Row>>) {
    let rows: Vec<_> = rows.into_iter().collect();
    assert_eq!(outcome(store, insert(&rows)).await, Ok(()));
}

#[tokio::test]
async fn one_is_found_by_its_id_and_its_code_and_by_its_tenant_alone() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mine = sealed(presentation(1));
    let theirs = sealed(Presentation { tenant: tenant("bank-b"), ..presentation(2) });
    given(&store, [any(mine.clone()), any(theirs.clone())]).await;
    let by_id = async |name, number| store.presentation(&tenant(name), presentation_id(number)).await;
    let by_code = async |name, number| store.presented(&tenant(name), code_hash(number)).await;
    assert_eq!(
        (by_id("bank-a", 1).await, by_code("bank-a", 1).await),
        (Ok(Some(mine.clone())), Ok(Some(mine.clone())))
    );
    assert_eq!(
        (by_id("bank-b", 2).await, by_code("bank-b", 2).await),
        (Ok(Some(theirs.clone())), Ok(Some(theirs)))
    );
    for (name, number) in [("bank-b", 1), ("bank-a", 2), ("bank-a", 3), ("bank-c", 1)] {
        assert_eq!(
            (by_id(name, number).await, by_code(name, number).await),
            (Ok(None), Ok(None)),
            "{name} {number}"
        );
    }
    // Claimed, it is still there, and says by what.
    let claimed = sealed(mine.row.claimed(transaction_id(7)));
    assert_eq!(outcome(&store, change(&[any(mine.clone())], &[any(claimed.clone())])).await, Ok(()));
    assert_eq!(
        (by_id("bank-a", 1).await, by_code("bank-a", 1).await),
        (Ok(Some(claimed.clone())), Ok(Some(claimed.clone())))
    );
    // Of two claims one comes too late.
    let second = sealed(mine.row.claimed(transaction_id(8)));
    assert_eq!(outcome(&store, change(&[any(mine)], &[any(second)])).await, Err(CommitError::Conflict));
    assert_eq!(by_id("bank-a", 1).await, Ok(Some(claimed)));
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn no_two_of_a_tenant_have_the_same_code() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let with_code_1 = |number, name| {
        row(Presentation { tenant: tenant(name), code_hash: code_hash(1), ..presentation(number) })
    };
    given(&store, [row(presentation(1)), row(presentation(2))]).await;
    let taken = insert(&[row(state(1, "bank-a")), with_code_1(3, "bank-a")]);
    assert_eq!(outcome(&store, taken).await, Err(CommitError::Unavailable));
    let moved = row(Presentation { version: 2, code_hash: code_hash(1), ..presentation(2) });
    let moved = change(&[row(presentation(2))], &[moved]);
    assert_eq!(outcome(&store, moved).await, Err(CommitError::Unavailable));
    assert_eq!(every_row(&store, 10).await, [row(presentation(1)), row(presentation(2))]);
    assert_sum_adds_up(&store).await;

    // The writer goes on, another tenant may have it, and so may this one once it is free.
    given(&store, [with_code_1(3, "bank-b"), row(state(1, "bank-a"))]).await;
    assert_eq!(outcome(&store, remove(&[row(presentation(1))])).await, Ok(()));
    given(&store, [with_code_1(4, "bank-a")]).await;
    let found = async |name| store.presented(&tenant(name), code_hash(1)).await.unwrap().unwrap().row.id;
    assert_eq!((found("bank-a").await, found("bank-b").await), (presentation_id(4), presentation_id(3)));
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn those_made_before_a_moment_are_found_oldest_first() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    for (number, name, created) in
        [(1, "bank-a", 300), (2, "bank-b", 100), (3, "bank-a", 200), (4, "bank-a", u64::MAX)]
    {
        let tenant = tenant(name);
        given(&store, [row(Presentation { tenant, created_unix_ms: created, ..presentation(number) })]).await;
    }
    let made = async |before, limit| -> Vec<_> {
        let rows = store.presentations_made_before(before, limit).await.unwrap();
        rows.into_iter().map(|presentation| presentation.row.id).collect()
    };
    let ids =
        |numbers: &[u128]| -> Vec<_> { numbers.iter().map(|number| presentation_id(*number)).collect() };
    assert_eq!(made(0, 10).await, []);
    assert_eq!(made(100, 10).await, []);
    assert_eq!(made(101, 10).await, ids(&[2]));
    assert_eq!(made(300, 10).await, ids(&[2, 3]));
    assert_eq!(made(u64::MAX, 10).await, ids(&[2, 3, 1]));
    assert_eq!(made(u64::MAX, 2).await, ids(&[2, 3]));
    assert_eq!(made(u64::MAX, 0).await, []);
}

#[tokio::test]
async fn a_device_has_one_authorization_until_it_is_removed() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let [by_sms, seen, by_password] = every_authorization(1).map(sealed);
    given(&store, [any(by_sms.clone()), any(seen.clone()), any(by_password.clone())]).await;
    assert_eq!(store.authorization(id(1)).await, Ok(Some(by_sms.clone())));
    assert_eq!(store.authorization(id(2)).await, Ok(Some(seen)));
    assert_eq!(store.authorization(id(3)).await, Ok(Some(by_password)));
    assert_eq!(store.authorization(id(4)).await, Ok(None));

    // Another tenant's is another row; no tenant makes a second one of the same device.
    let second = Authorization { tenant: tenant("bank-b"), ..authorization(1) };
    assert_eq!(outcome(&store, insert(&[row(second)])).await, Err(CommitError::Conflict));
    let next = Authorization { version: 2, attempts_left: 2, ..authorization(1) };
    let next = sealed(next);
    assert_eq!(outcome(&store, change(&[any(by_sms)], &[any(next.clone())])).await, Ok(()));
    assert_eq!(store.authorization(id(1)).await, Ok(Some(next.clone())));
    assert_eq!(outcome(&store, remove(&[any(next)])).await, Ok(()));
    assert_eq!(store.authorization(id(1)).await, Ok(None));
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn authorizations_past_their_time_are_found_the_longest_over_first() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let at = |unix_ms| {
        let now = Now {
            unix_ms,
            boot_ms: 0,
            boot_id: BootId([0; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        };
        Deadline::after(&now, 0)
    };
    for (number, expires) in [(1, 300), (2, 100), (3, 200), (4, u64::MAX)] {
        given(&store, [row(Authorization { expires: at(expires), ..authorization(number) })]).await;
    }
    let past = async |unix_ms, limit| -> Vec<_> {
        let rows = store.authorizations_past(unix_ms, limit).await.unwrap();
        rows.into_iter().map(|authorization| authorization.row.credential).collect()
    };
    assert_eq!(past(99, 10).await, []);
    assert_eq!(past(100, 10).await, [id(2)]);
    assert_eq!(past(299, 10).await, [id(2), id(3)]);
    assert_eq!(past(u64::MAX, 10).await, [id(2), id(3), id(1)]);
    assert_eq!(past(u64::MAX, 2).await, [id(2), id(3)]);
}
