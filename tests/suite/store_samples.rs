//! Rows and commits to put into a store, with seals and weights that stand in for the custodian's.

use hsm_authd::domain::account::{Account, AccountRef};
use hsm_authd::domain::attestation::Attestation;
use hsm_authd::domain::audit::{Actor, AuditEntry, Event};
use hsm_authd::domain::authorization::{Authorization, Means};
use hsm_authd::domain::caller::{ClientName, Tenant};
use hsm_authd::domain::certificate::CertificateChain;
use hsm_authd::domain::credential::{
    Authenticator, CertifiedSigner, Credential, CredentialState, EncryptedPinHash, ImportedSeed, Kind,
    OcraToken, OcraUse, OtpToken, Signer, StoredSecret, Terminal, UsedInput,
};
use hsm_authd::domain::id::{CredentialId, PresentationId, TransactionId};
use hsm_authd::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
use hsm_authd::domain::money::Money;
use hsm_authd::domain::multi_terminal::{
    Address, EntryOrder, EntryRule, FrozenTerminal, Interval, MultiTerminal, Round,
};
use hsm_authd::domain::ocra::Suite;
use hsm_authd::domain::otp::{Algorithm, Digits, MovingFactor};
use hsm_authd::domain::presentation::Presentation;
use hsm_authd::domain::rolling::{Binding, Evidence, LOOKUP_BYTES, Rolling, SALT_BYTES};
use hsm_authd::domain::row::{Row, RowSum, Seal, Sealed, TableSums};
use hsm_authd::domain::signer::{PublicKey, SignatureAlgorithm};
use hsm_authd::domain::time::{BootId, Deadline, Now, RunId};
use hsm_authd::domain::transaction::{
    Approver, AuthenticatorReport, Device, Method, Parent, Progress, State, Terms, Transaction, deadline,
};
use hsm_authd::domain::webauthn::RelyingParty;
use hsm_authd::store::{Commit, CredentialRows, Standing, Store};
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
        kind: Kind::Otp(OtpToken {
            algorithm: Algorithm::Sha1,
            digits: Digits::default(),
            moving_factor: MovingFactor::Hotp { look_ahead: 10 },
            secret: Some(StoredSecret::Wrapped { kek_version: 1, blob: vec![7; 40] }),
        }),
        deleted_unix_ms: None,
    }
}

pub fn state(number: u128, tenant_name: &str) -> CredentialState {
    CredentialState::new(id(number), tenant(tenant_name), 0, 0)
}

/// The kinds besides HOTP and TOTP, with and without what is optional in them.
pub fn other_kinds() -> Vec<Kind> {
    let token = |suite: &str, pin_hash| OcraToken {
        suite: Suite::parse(suite).unwrap(),
        look_ahead: 3,
        skew_steps: 2,
        usage: OcraUse::Verify,
        secret: Some(StoredSecret::Wrapped { kek_version: 2, blob: vec![8; 40] }),
        pin_hash,
    };
    let pin_hash = EncryptedPinHash { data_version: 1, blob: vec![9; 48] };
    let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let key = PublicKey::from_jwk(&serde_json::from_str(jwk).unwrap()).unwrap();
    let signer = |key| Signer { algorithm: SignatureAlgorithm::Es256, key };
    let origins = vec!["https://bank.example".to_owned()];
    let party = RelyingParty::new(vec![4; 16], "bank.example".to_owned(), origins).unwrap();
    let chain: CertificateChain = serde_json::from_str("[[1, 2], [3]]").unwrap();
    let secret = |byte| Some(StoredSecret::Wrapped { kek_version: 2, blob: vec![byte; 40] });
    let rolling = Rolling::new(StoredSecret::Wrapped { kek_version: 2, blob: vec![1; 40] }, [6; SALT_BYTES]);
    vec![
        Kind::Ocra(token("OCRA-1:HOTP-SHA512-8:C-QN08-PSHA1", Some(pin_hash))),
        Kind::Ocra(OcraToken {
            usage: OcraUse::Transaction,
            ..token("OCRA-1:HOTP-SHA256-10:QH64-T1M", None)
        }),
        Kind::Signer(signer(Some(key.clone()))),
        Kind::CertifiedSigner(CertifiedSigner { signer: signer(Some(key.clone())), chain: Some(chain) }),
        Kind::CertifiedSigner(CertifiedSigner { signer: signer(None), chain: None }),
        Kind::Authenticator(Authenticator { signer: signer(Some(key)), party }),
        Kind::Signer(Signer { algorithm: SignatureAlgorithm::Rs256, key: None }),
        Kind::Terminal(Terminal { address: address("+49 170 1234567"), secret: secret(2) }),
        Kind::Terminal(Terminal { address: address("\u{20ac}"), secret: None }),
        Kind::Rolling(rolling.clone()),
        Kind::Rolling(Rolling { identity_key: secret(3), evidence: Some(evidence("case 4711")), ..rolling }),
    ]
}

pub fn address(text: &str) -> Address {
    text.to_owned().try_into().unwrap()
}

pub fn evidence(text: &str) -> Evidence {
    text.to_owned().try_into().unwrap()
}

/// The binding of a credential: the first, whose lookup is its number.
pub fn binding(number: u128) -> Binding {
    let mut lookup = [0; LOOKUP_BYTES];
    lookup.copy_from_slice(&number.to_be_bytes()[16 - LOOKUP_BYTES..]);
    Binding::first(id(number), tenant("bank-a"), lookup)
}

pub fn presentation_id(number: u128) -> PresentationId {
    PresentationId::from_random(number.to_be_bytes())
}

/// The hash of the presentation's code: no two of these presentations have the same.
pub fn code_hash(number: u128) -> [u8; 32] {
    Sha256::digest(number.to_be_bytes()).into()
}

/// An open presentation, made at 1 s, of the credential with the same number.
pub fn presentation(number: u128) -> Presentation {
    Presentation {
        id: presentation_id(number),
        tenant: tenant("bank-a"),
        version: 1,
        credential: id(number),
        account: account("acct-1"),
        created_unix_ms: 1_000,
        nonce: [4; 32],
        code_hash: code_hash(number),
        expires: Deadline::after(&now(1_000), 60_000),
        transaction: None,
    }
}

/// The authorization of a device by SMS, open until 301 s.
pub fn authorization(number: u128) -> Authorization {
    Authorization {
        credential: id(number),
        tenant: tenant("bank-a"),
        account: account("acct-1"),
        version: 1,
        means: Means::Sms { terminal: id(99) },
        nonce: [8; 32],
        expires: Deadline::after(&now(1_000), 300_000),
        uplink_seen: false,
        attempts_left: 3,
    }
}

/// Authorizations by either means, with and without what is optional in them, numbered from `first`.
pub fn every_authorization(first: u128) -> [Authorization; 3] {
    let by_password = Means::Password { evidence: evidence("Ausweis gepr\u{fc}ft") };
    [
        authorization(first),
        Authorization { uplink_seen: true, attempts_left: 0, ..authorization(first + 1) },
        Authorization { means: by_password, ..authorization(first + 2) },
    ]
}

pub fn used_input(number: u128, byte: u8, expires_unix_ms: Option<u64>) -> UsedInput {
    UsedInput {
        id: id(number),
        fingerprint: [byte; 32],
        tenant: tenant("bank-a"),
        version: 1,
        time_step: expires_unix_ms.map(|ms| ms / 60_000),
        expires_unix_ms,
    }
}

pub fn transaction_id(number: u128) -> TransactionId {
    TransactionId::from_random(number.to_be_bytes())
}

pub fn attestation(number: u128, jws: &str) -> Attestation {
    Attestation {
        transaction: transaction_id(number),
        tenant: tenant("bank-a"),
        version: 1,
        jws: jws.to_owned(),
    }
}

/// A reading of both clocks.
fn now(unix_ms: u64) -> Now {
    Now {
        unix_ms,
        boot_ms: 7,
        boot_id: BootId([3; 16]),
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    }
}

/// A pending transaction of a payer, made at `created_unix_ms` and open for five minutes.
pub fn transaction(number: u128, payer: &str, created_unix_ms: u64) -> Transaction {
    let now = now(created_unix_ms);
    let text = |text: &str| text.to_owned().try_into().unwrap();
    Transaction {
        id: transaction_id(number),
        tenant: tenant("bank-a"),
        version: 1,
        created_unix_ms,
        method: Method::DeviceSignature { credential: id(number), device: Device::Signature },
        terms: Terms {
            payer: Some(account(payer)),
            payee: text("DE89370400440532013000"),
            money: Money::new("1250.00", "EUR").unwrap(),
            order: text("order-77"),
            platform: None,
            remark: None,
            parent: None,
            nonce: [5; 32],
        },
        expires: deadline(&now, 300),
        state: State::Pending,
        attempts_left: 3,
        ended_unix_ms: None,
        authenticator: None,
        progress: Progress::None,
    }
}

/// Transactions of every method and state, with and without what is optional in them, numbered from `first`.
pub fn every_transaction(first: u128) -> Vec<Transaction> {
    let suite = || Suite::parse("OCRA-1:HOTP-SHA512-8:C-QN08-PSHA1-S064-T1M").unwrap();
    let methods = [
        Method::ChallengeResponse { credential: id(1), suite: suite() },
        Method::DeviceSignature { credential: id(2), device: Device::Signature },
        Method::DeviceSignature { credential: id(3), device: Device::Assertion },
        Method::DeviceSignature { credential: id(4), device: Device::Ocra(suite()) },
    ];
    let text = |text: &str| text.to_owned().try_into().unwrap();
    let plain = |number| transaction(number, "acct-1", 1_000);
    let by_method = methods.into_iter().zip(first..).map(|(method, number)| Transaction {
        method,
        terms: Terms {
            platform: Some(text("market.example")),
            remark: Some("M\u{fc}ller & S\u{f6}hne, Gru\u{df}".to_owned().try_into().unwrap()),
            parent: Some(Parent { id: transaction_id(9), hash: [6; 32] }),
            ..plain(number).terms
        },
        ..plain(number)
    });
    let by_state = State::ALL.into_iter().zip(first + 4..).map(|(state, number)| Transaction {
        state,
        attempts_left: 0,
        ended_unix_ms: (state != State::Pending).then_some(9_000),
        terms: Terms { payer: None, ..plain(number).terms },
        ..plain(number)
    });
    let report = AuthenticatorReport { sign_count: u32::MAX, backup_eligible: true, backed_up: false };
    let authenticated = Transaction { authenticator: Some(report), ..plain(first + 10) };
    by_method.chain(by_state).chain([authenticated]).chain(of_later_methods(first + 11)).collect()
}

/// Transactions for several terminals, by rolling passwords and by presented codes, at each point that they can reach.
fn of_later_methods(first: u128) -> Vec<Transaction> {
    let frozen = |number| FrozenTerminal { credential: id(number), address: address(&format!("+{number}")) };
    let plain = MultiTerminal {
        terminals: (1..=8).map(frozen).collect(),
        rule: EntryRule { order: EntryOrder::Target, interval: None },
        digits: Digits::try_from(10).unwrap(),
        generation: u32::MAX,
        window: None,
    };
    let interval = Some(Interval { interval_s: 600, tolerance_s: 2 });
    let in_time = MultiTerminal {
        terminals: vec![frozen(u128::MAX), frozen(0)],
        rule: EntryRule { order: EntryOrder::Ascending, interval },
        window: Some(Deadline::after(&now(1_000), 60_000)),
        ..plain.clone()
    };
    let begun = in_time.begin(RunId([9; 16]));
    let middle = Round { entered: 1, wrong: true, arrived_boot_ms: u64::MAX, run: begun.run };
    let by = Approver { credential: id(5), account: account("acct-5"), epoch: u64::MAX };
    let presented = Method::PresentedCode {
        presentation: presentation_id(1),
        credential: id(6),
        account: account("acct-6"),
    };
    let made = [
        (Method::MultiTerminal(plain), Progress::Entry(Round::default())),
        (Method::MultiTerminal(in_time.clone()), Progress::Entry(begun)),
        (Method::MultiTerminal(in_time), Progress::Entry(middle)),
        (Method::RollingPassword, Progress::None),
        (Method::RollingPassword, Progress::Approver(by)),
        (presented, Progress::None),
    ];
    made.into_iter()
        .zip(first..)
        .map(|((method, progress), number)| {
            let plain = transaction(number, "acct-1", 1_000);
            let payer = plain.terms.payer.filter(|_| matches!(method, Method::MultiTerminal(_)));
            Transaction { method, progress, terms: Terms { payer, ..plain.terms }, ..plain }
        })
        .collect()
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
    RowSum::new(std::array::from_fn(|place| {
        let sealed = Sha256::new().chain_update(bytes.as_bytes()).chain_update(row.seal.mac);
        sealed.chain_update([place as u8]).finalize().into()
    }))
}

pub fn sum<'a>(rows: impl IntoIterator<Item = &'a Sealed<Row>>) -> RowSum {
    rows.into_iter().map(weight).fold(RowSum::default(), RowSum::plus)
}

/// How the sums change when `before` makes way for `rows`.
fn difference(rows: &[Sealed<Row>], before: &[Sealed<Row>]) -> TableSums {
    let mut sums = TableSums::default();
    rows.iter().for_each(|row| sums.add(row.row.key().table(), weight(row)));
    before.iter().for_each(|row| sums.subtract(row.row.key().table(), weight(row)));
    sums
}

pub fn entry(event: Event, unix_ms: u64) -> AuditEntry {
    let actor = Actor { tenant: tenant("bank-a"), client: client("backend"), request_id: "req-1".to_owned() };
    AuditEntry {
        unix_ms,
        event,
        actor: Some(actor),
        credential: Some(id(1)),
        transaction: None,
        detail: None,
    }
}

/// A row of each table: an enrolment on a new account, an answer, a used input, an attestation, a
/// transaction, a binding, a presentation, an authorization, a seed that came wrapped.
pub fn one_of_each() -> Vec<Sealed<Row>> {
    let mut rows = rows_of(&enrolment(1, "bank-a", "acct-1"));
    rows.push(row(record("backend", "k-1", 9_000)));
    rows.push(row(used_input(1, 7, Some(9_000))));
    rows.push(row(attestation(1, "h.c.s")));
    rows.push(row(transaction(1, "acct-1", 1_000)));
    rows.extend([row(binding(1)), row(presentation(1)), row(authorization(1)), row(imported_seed(1))]);
    rows
}

pub fn imported_seed(number: u128) -> ImportedSeed {
    let fingerprint = [number as u8; 32];
    ImportedSeed { tenant: tenant("bank-a"), fingerprint, version: 1, credential: id(number) }
}

/// An enrolment of every kind, each on an account of its own, numbered from `first`.
pub fn every_kind(first: u128) -> Vec<CredentialRows> {
    let totp = OtpToken {
        algorithm: Algorithm::Sha256,
        digits: Digits::try_from(8).unwrap(),
        moving_factor: MovingFactor::Totp { period_s: 30, skew_steps: 1 },
        secret: Some(StoredSecret::Wrapped { kek_version: 1, blob: vec![6; 40] }),
    };
    let hotp = credential(0, "bank-a", "acct").kind;
    let kinds = [hotp, Kind::Otp(totp)].into_iter().chain(other_kinds());
    kinds
        .zip(first..)
        .map(|(kind, number)| {
            let rows = enrolment(number, "bank-a", &format!("kind-{number}"));
            CredentialRows { credential: sealed(Credential { kind, ..rows.credential.row }), ..rows }
        })
        .collect()
}

/// Writes `rows` in place of `before`.
pub fn change(before: &[Sealed<Row>], rows: &[Sealed<Row>]) -> Commit {
    Commit {
        before: before.iter().map(Standing::from).collect(),
        rows: rows.to_vec(),
        removed: Vec::new(),
        sum_change: difference(rows, before),
        audit: entry(Event::Verified, 5_000),
    }
}

/// Writes new rows.
pub fn insert(rows: &[Sealed<Row>]) -> Commit {
    change(&[], rows)
}

/// Removes `rows`.
pub fn remove(rows: &[Sealed<Row>]) -> Commit {
    Commit { removed: rows.iter().map(|row| row.row.key()).collect(), ..change(rows, &[]) }
}

/// Only stands on a row.
pub fn stand(row: &Sealed<Row>) -> Commit {
    Commit { before: vec![row.into()], ..insert(&[]) }
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
