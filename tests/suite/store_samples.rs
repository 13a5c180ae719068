//! Rows and commits to put into a store, with seals and weights that stand in for the custodian's.

use hsm_authd::domain::account::{Account, AccountRef};
use hsm_authd::domain::audit::{Actor, AuditEntry, Event};
use hsm_authd::domain::caller::{ClientName, Tenant};
use hsm_authd::domain::credential::{Credential, CredentialState, WrappedSecret};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
use hsm_authd::domain::otp::{Algorithm, Digits, MovingFactor};
use hsm_authd::domain::row::{Row, RowKey, RowSum, Seal, Sealed};
use hsm_authd::store::{Commit, CredentialRows, Store};
use sha2::{Digest, Sha256};

pub fn tenant(name: &str) -> Tenant {
    Tenant::try_from(name.to_owned()).unwrap()
}

pub fn account(name: &str) -> AccountRef {
    AccountRef::try_from(name.to_owned()).unwrap()
}

pub fn client(name: &str) -> ClientName {
    ClientName::try_from(name.to_owned()).unwrap()
}

pub fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::parse(text).unwrap()
}

/// Ids in the order of their numbers.
pub fn id(number: u128) -> CredentialId {
    CredentialId::from_random(number.to_be_bytes())
}

pub fn credential(number: u128, tenant_name: &str, account_name: &str) -> Credential {
    Credential {
        id: id(number),
        tenant: tenant(tenant_name),
        account: account(account_name),
        version: 1,
        created_unix_ms: 1_000,
        algorithm: Algorithm::Sha1,
        digits: Digits::default(),
        moving_factor: MovingFactor::Hotp { look_ahead: 10 },
        secret: Some(WrappedSecret { kek_version: 1, blob: vec![7; 40] }),
        deleted_unix_ms: None,
    }
}

pub fn state(number: u128, tenant_name: &str) -> CredentialState {
    CredentialState::new(id(number), tenant(tenant_name), 0, 0)
}

pub fn record(client_name: &str, key_text: &str, expires_unix_ms: u64) -> IdempotencyRecord {
    IdempotencyRecord {
        client: client(client_name),
        key: key(key_text),
        version: 1,
        fingerprint: Fingerprint([9; 32]),
        answer: b"{}".to_vec(),
        expires_unix_ms,
    }
}

/// With a seal that depends on every byte of the row.
pub fn sealed<T: Into<Row> + Clone>(row: T) -> Sealed<T> {
    let mac = Sha256::digest(row.clone().into().encode().as_bytes()).into();
    Sealed { row, seal: Seal { key_version: 3, mac } }
}

pub fn any<T: Into<Row>>(sealed: Sealed<T>) -> Sealed<Row> {
    Sealed { row: sealed.row.into(), seal: sealed.seal }
}

pub fn row(row: impl Into<Row>) -> Sealed<Row> {
    sealed(row.into())
}

/// What a row adds to the sum over all rows.
pub fn weight(row: &Sealed<Row>) -> RowSum {
    let bytes = row.row.encode();
    RowSum(Sha256::new().chain_update(bytes.as_bytes()).chain_update(row.seal.mac).finalize().into())
}

pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Sealed<Row>>) -> RowSum {
    rows.into_iter().map(weight).fold(RowSum::default(), RowSum::plus)
}

pub fn entry(event: Event, unix_ms: u64) -> AuditEntry {
    let actor = Actor { tenant: tenant("bank-a"), client: client("backend"), request_id: "req-1".to_owned() };
    AuditEntry { unix_ms, event, actor: Some(actor), credential: Some(id(1)) }
}

/// Writes `rows` in place of `before`.
pub fn change(before: &[Sealed<Row>], rows: &[Sealed<Row>]) -> Commit {
    Commit {
        standing: Vec::new(),
        rows: rows.to_vec(),
        removed: Vec::new(),
        sum_change: sum(rows).minus(sum(before)),
        audit: entry(Event::Verified, 5_000),
    }
}

/// Writes new rows.
pub fn insert(rows: &[Sealed<Row>]) -> Commit {
    change(&[], rows)
}

/// Removes `rows`.
pub fn remove(rows: &[Sealed<Row>]) -> Commit {
    Commit {
        removed: rows.iter().map(|row| (row.row.key(), row.row.version())).collect(),
        ..change(rows, &[])
    }
}

/// Only stands on a row.
pub fn stand(key: RowKey, version: u64) -> Commit {
    Commit { standing: vec![(key, version)], ..insert(&[]) }
}

/// A state with the next version.
pub fn next(state: &Sealed<Row>, next_factor: u64) -> Sealed<Row> {
    let Row::State(state) = &state.row else { panic!("no state") };
    row(CredentialState { next_factor, ..state.next() })
}

/// The three rows of an enrolment on a new account.
pub fn enrolment(number: u128, tenant_name: &str, account_name: &str) -> CredentialRows {
    CredentialRows {
        credential: sealed(credential(number, tenant_name, account_name)),
        state: sealed(state(number, tenant_name)),
        account: sealed(Account::new(tenant(tenant_name), account(account_name))),
    }
}

pub fn rows_of(rows: &CredentialRows) -> Vec<Sealed<Row>> {
    vec![any(rows.credential.clone()), any(rows.state.clone()), any(rows.account.clone())]
}

/// Every row, read in pages.
pub async fn every_row(store: &Store, page: u16) -> Vec<Sealed<Row>> {
    let mut rows: Vec<Sealed<Row>> = Vec::new();
    loop {
        let cursor = rows.last().map(|row| row.row.key());
        let more = store.rows_after(cursor, page).await.unwrap();
        let last = more.len() < usize::from(page);
        rows.extend(more);
        if last {
            return rows;
        }
    }
}

/// What holds at any time: the kept sum is the sum over the rows.
pub async fn assert_sum_adds_up(store: &Store) {
    assert_eq!(store.row_sum().await.unwrap(), sum(&every_row(store, 1_000).await));
}
