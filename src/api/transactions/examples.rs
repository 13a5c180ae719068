//! The examples of these routes. Answers are made of the types that real ones are made of.

use serde_json::json;

use crate::domain::account::AccountRef;
use crate::domain::attestation::{Claims, compose, signing_input};
use crate::domain::caller::Tenant;
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::money::Money;
use crate::domain::multi_terminal::{EntryOrder, EntryRule, FrozenTerminal, MultiTerminal, Round};
use crate::domain::ocra::Suite;
use crate::domain::otp::{Digits, Otp};
use crate::domain::signer::PublicKey;
use crate::domain::time::{BootId, Now, RunId};
use crate::domain::transaction::{
    AuthenticatorReport, CODES_MAX, Device, LIFETIME_S_DEFAULT, Label, Method, Parent, Progress, State,
    Terms, Transaction, deadline,
};
use crate::service::transaction_view::TransactionView;

use super::super::answer::ApprovedBody;
use super::super::attestations::JwkSetBody;
use super::super::credentials::examples::{
    CODE_2, OCRA_ID, PEM, ROLLING_ID, SIGNER_ID, TERMINAL_IDS, THUMBPRINT, TRANSACTION_SUITE,
};
use super::super::credentials::rolling::CodeBody;
use super::super::openapi::operation::{Named, example, named};
use super::{AttestationBody, ListBody, ShownBody};

/// A presented code.
pub const CODE: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY";

const CREATED_UNIX_MS: u64 = 1_893_456_000_000;
const APPROVED_UNIX_S: u64 = 1_893_456_042;

/// Requests to make one.
pub fn creations() -> Vec<Named> {
    vec![
        example(
            "ocra",
            "An order, to be approved by a token that answers a question about it",
            json!({ "method": "challenge_response", "credential": OCRA_ID, "payee": "DE89370400440532013000",
                "amount": "1250.00", "currency": "EUR", "order": "order-77", "platform": "market.example",
                "remark": "two pallets" }),
        ),
        example(
            "device",
            "A payment, to be approved by a device that signs it, within a minute",
            json!({ "method": "device_signature", "credential": SIGNER_ID, "payer": "account-1004",
                "payee": "DE89370400440532013000", "amount": "1250.00", "currency": "EUR", "order": "order-77",
                "expires_in": 60 }),
        ),
        example(
            "second",
            "What a second user says to a first one's order",
            json!({ "method": "device_signature", "credential": SIGNER_ID, "payee": "DE89370400440532013000",
                "amount": "1250.00", "currency": "EUR", "order": "order-77", "parent": attestation() }),
        ),
        example(
            "rolling",
            "A payment, by whoever has a rolling password for it",
            json!({ "method": "rolling_password", "payee": "DE89370400440532013000", "amount": "1250.00",
                "currency": "EUR", "order": "order-77" }),
        ),
        example(
            "presented",
            "What a merchant asks for with the string that a payer showed",
            json!({ "method": "presented_code", "presentation": CODE, "payee": "DE89370400440532013000",
                "amount": "1250.00", "currency": "EUR", "order": "order-77" }),
        ),
        example(
            "terminals",
            "A payment, to be approved by codes to all terminals of the payer, one after the other, 10 seconds apart",
            json!({ "method": "multi_terminal", "payer": "account-1007", "payee": "DE89370400440532013000",
                "amount": "1250.00", "currency": "EUR", "order": "order-77",
                "rule": { "type": "preset_order", "interval_seconds": 10, "tolerance_seconds": 3 } }),
        ),
        example(
            "target",
            "The same by the weighted sum of the codes, within a minute",
            json!({ "method": "multi_terminal", "payer": "account-1007", "payee": "DE89370400440532013000",
                "amount": "1250.00", "currency": "EUR", "order": "order-77",
                "rule": { "type": "target", "window_seconds": 60 } }),
        ),
    ]
}

/// What is presented.
pub fn responses() -> Vec<Named> {
    let (signature, data) = (SIGNATURE, AUTHENTICATOR_DATA);
    vec![
        example("code", "An OCRA token\'s code", json!({ "otp": "72443804" })),
        example("password", "A rolling password", json!({ "password": PASSWORD })),
        example("der", "A signature in DER", json!({ "format": "der", "signature": DER })),
        example("p1363", "The same as r and s", json!({ "format": "p1363", "signature": signature })),
        example("jws", "A compact JWS", json!({ "format": "jws", "signature": JWS })),
        example(
            "webauthn",
            "An assertion",
            json!({ "format": "webauthn", "signature": DER, "authenticator_data": data,
                "client_data_json": CLIENT_DATA }),
        ),
        example(
            "approve",
            "What the user of a presented code decides",
            json!({ "decision": "approve", "format": "p1363", "signature": signature }),
        ),
        example(
            "decline",
            "The same, a no",
            json!({ "decision": "decline", "format": "p1363", "signature": signature }),
        ),
        example("codes", "The codes of all terminals", json!({ "codes": CODES })),
        example("entry", "The next code of a terminal", json!({ "code": CODES[0] })),
        example("target", "What the codes of all terminals come to", json!({ "target": TARGET })),
    ]
}

const PASSWORD: &str = "EatfDs4IU686CakD5c7_gV0GpA82Ry6DUBZZ8g";
/// r and s of RFC 7515, appendix A.3; the same in DER; and that appendix\'s JWS.
const SIGNATURE: &str =
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const DER: &str =
    "MEUCIA7RIVN5Y2xIPC9_FVgH1AKjsigDOvl8fheBmsMWnqZlAiEAxQoH04w8cOXY8S2vCEpUgKZlkMXyk1Cajz9_ioOjVNU";
const JWS: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNv\
    bS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
/// `bank.example`, user present and verified, the seventh signature.
const AUTHENTICATOR_DATA: &str = "Bb5Vr1CMVVXYBtW9VJD14h2rmhAbiDZ_jR0GP4w7_D8FAAAABw";
const CLIENT_DATA: &str = "eyJ0eXBlIjoid2ViYXV0aG4uZ2V0IiwiY2hhbGxlbmdlIjoiVHZ5ZVRONENQODRCOVlPeVFKdklmcDhic29Kd2\
    5ZNjJVaE1rU0kzOXRQaC0iLCJvcmlnaW4iOiJodHRwczovL3BheS5iYW5rLmV4YW1wbGUifQ";

/// Codes of terminals, and what three of 8 digits come to.
const CODES: [&str; 3] = ["978554", "253531", "140804"];
const TARGET: &str = "85724775";

fn terminals() -> Option<Method> {
    let frozen = |(id, address): (&str, &str)| {
        let address = address.to_owned().try_into().ok()?;
        Some(FrozenTerminal { credential: CredentialId::parse(id)?, address })
    };
    let addresses = ["+49 30 5550100", "+49 30 5550101", "push:t1mC-7"];
    Some(Method::MultiTerminal(MultiTerminal {
        terminals: TERMINAL_IDS.into_iter().zip(addresses).map(frozen).collect::<Option<_>>()?,
        rule: EntryRule { order: EntryOrder::Ascending, interval: None },
        digits: Digits::default(),
        generation: 1,
        window: None,
    }))
}

/// One whose codes are asked for, so many of which were entered.
fn sent(entered: u8) -> Option<Transaction> {
    made(0x44, terminals()).map(|mut sent| {
        sent.terms.payer = AccountRef::try_from("account-1007".to_owned()).ok();
        sent.progress = Progress::Entry(Round { entered, ..Round::default() });
        sent
    })
}

/// As a client sees it that sends the codes.
fn with_codes(name: &str, summary: &str, transaction: Option<Transaction>) -> Option<Named> {
    let codes: Vec<_> = CODES.into_iter().filter_map(|code| Otp::parse(code.to_owned())).collect();
    let view = TransactionView::new(&transaction?, None);
    Some(named(name, summary, &ShownBody { view: &view, codes: Some(&codes) }))
}

/// One of its codes was entered.
pub fn entered() -> Vec<Named> {
    let plain = sent(1).map(|sent| named("entered", "Entered", &TransactionView::new(&sent, None)));
    let with_codes = with_codes("sender", "The same for a client that sends the codes", sent(2));
    plain.into_iter().chain(with_codes).collect()
}

fn ocra() -> Option<Method> {
    let suite = Suite::try_from(TRANSACTION_SUITE.to_owned()).ok()?;
    Some(Method::ChallengeResponse { credential: CredentialId::parse(OCRA_ID)?, suite })
}

fn device(device: Device) -> Option<Method> {
    Some(Method::DeviceSignature { credential: CredentialId::parse(SIGNER_ID)?, device })
}

/// A transaction that was just made.
fn made(id: u8, method: Option<Method>) -> Option<Transaction> {
    let boot_id = BootId([0; 16]);
    let now = Now {
        unix_ms: CREATED_UNIX_MS,
        boot_ms: 0,
        boot_id,
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    };
    let label = |text: &str| Label::try_from(text.to_owned()).ok();
    Some(Transaction {
        id: TransactionId::from_random([id; 16]),
        tenant: Tenant::try_from("bank-a".to_owned()).ok()?,
        version: 1,
        created_unix_ms: CREATED_UNIX_MS,
        method: method?,
        terms: Terms {
            payer: AccountRef::try_from("account-1004".to_owned()).ok(),
            payee: label("DE89370400440532013000")?,
            money: Money::new("1250.00", "EUR").ok()?,
            order: label("order-77")?,
            platform: label("market.example"),
            remark: None,
            parent: None,
            nonce: [id; 32],
        },
        expires: deadline(&now, LIFETIME_S_DEFAULT),
        state: State::Pending,
        attempts_left: CODES_MAX,
        ended_unix_ms: None,
        authenticator: None,
        progress: Progress::None,
    })
}

/// One that claimed a code.
fn presented() -> Option<Transaction> {
    let method = Method::PresentedCode {
        presentation: PresentationId::from_random([0x44; 16]),
        credential: CredentialId::parse(SIGNER_ID)?,
        account: AccountRef::try_from("account-1004".to_owned()).ok()?,
    };
    let made = made(0x55, Some(method))?;
    Some(Transaction { terms: Terms { payer: None, ..made.terms.clone() }, ..made })
}

/// The same as its bank sees it.
pub fn claiming() -> Option<TransactionView> {
    presented().map(|transaction| TransactionView::new(&transaction, None))
}

/// The same, declined.
pub fn rejected() -> Vec<Named> {
    let rejected = claiming().map(|mut view| {
        view.state = State::Rejected;
        view.ended_at = Some(crate::domain::time::rfc3339(APPROVED_UNIX_S * 1_000));
        named("rejected", "A presented code's user declined", &view)
    });
    rejected.into_iter().collect()
}

/// One of each kind, some with what became of them.
fn transactions() -> Vec<(&'static str, &'static str, Transaction, Option<Transaction>)> {
    let first = made(0x11, ocra());
    let second = made(0x22, device(Device::Signature)).map(|mut second| {
        let id = TransactionId::from_random([0x11; 16]);
        second.terms.parent = Some(Parent { id, hash: [0x11; 32] });
        second.attempts_left = 1;
        second
    });
    let third = made(0x33, device(Device::Assertion)).map(|third| Transaction {
        state: State::Approved,
        attempts_left: 1,
        ended_unix_ms: Some(APPROVED_UNIX_S * 1_000),
        authenticator: Some(AuthenticatorReport { sign_count: 7, backup_eligible: false, backed_up: false }),
        ..third
    });
    let rolling = made(0x44, Some(Method::RollingPassword)).map(|mut rolling| {
        rolling.terms.payer = None;
        rolling
    });
    let of = |name, summary, transaction: &Option<Transaction>, parent| {
        transaction.clone().map(|transaction| (name, summary, transaction, parent))
    };
    let all = [
        of("ocra", "A question for a token", &first, None),
        of("second", "One that follows another, for a device to sign", &second, first.clone()),
        of("rolling", "One that waits for a rolling password", &rolling, None),
        of("presented", "One that claimed a presented code", &presented(), None),
        of("terminals", "Codes were sent to several terminals", &sent(0), None),
        of("approved", "Approved by a WebAuthn authenticator", &third, None),
    ];
    all.into_iter().flatten().collect()
}

fn views() -> Vec<(&'static str, &'static str, TransactionView)> {
    let view = |(name, summary, transaction, parent): (_, _, Transaction, Option<Transaction>)| {
        (name, summary, TransactionView::new(&transaction, parent.as_ref()))
    };
    transactions().into_iter().map(view).collect()
}

fn named_views(wanted: impl Fn(&str) -> bool) -> Vec<Named> {
    let views = views().into_iter().filter(|(name, ..)| wanted(name));
    views.map(|(name, summary, view)| named(name, summary, &view)).collect()
}

/// As they were made.
pub fn created() -> Vec<Named> {
    let sent = with_codes("sent", "Codes for several terminals, for a client that sends them", sent(0));
    named_views(|name| name != "approved").into_iter().chain(sent).collect()
}

/// As they are.
pub fn read() -> Vec<Named> {
    named_views(|_| true)
}

/// One that was taken back.
pub fn cancelled() -> Vec<Named> {
    let first = views().into_iter().next();
    let cancelled = first.map(|(.., mut view)| {
        view.state = State::Cancelled;
        view.ended_at = Some(crate::domain::time::rfc3339(APPROVED_UNIX_S * 1_000));
        named("cancelled", "Taken back", &view)
    });
    cancelled.into_iter().collect()
}

/// One that was approved, with its attestation.
pub fn approved() -> Vec<Named> {
    let attestation = attestation();
    let example = |(name, _, mut view): (&str, _, TransactionView)| match name {
        "approved" => {
            let body = ApprovedBody { view: &view, attestation: &attestation, next: None };
            Some(named("approved", "Right", &body))
        }
        "rolling" => {
            view.state = State::Approved;
            view.ended_at = Some(crate::domain::time::rfc3339(APPROVED_UNIX_S * 1_000));
            view.account = Some("account-1007".to_owned());
            view.credential = Some(ROLLING_ID.to_owned());
            let next = Some(CodeBody { epoch: 2, temporary_code: Some(CODE_2) });
            let body = ApprovedBody { view: &view, attestation: &attestation, next };
            Some(named("password", "By a rolling password", &body))
        }
        _ => None,
    };
    views().into_iter().filter_map(example).collect()
}

/// A page with more behind it, and an empty one.
pub fn pages() -> Vec<Named> {
    let items: Vec<_> = views().into_iter().map(|(.., view)| view).collect();
    let next = items.last().map(|view| view.id.clone());
    vec![
        named("page", "A page, and there are more", &ListBody { items, next }),
        named("none", "There is none", &ListBody { items: Vec::new(), next: None }),
    ]
}

fn claims() -> Option<Claims> {
    let (.., transaction, _) = transactions().into_iter().next_back()?;
    Some(Claims::new(&transaction, "hsm-authd", APPROVED_UNIX_S, 24 * 3_600))
}

/// Its signature is none: the key that would make one is in no HSM.
fn attestation() -> String {
    let claims = claims().map(|claims| claims.to_json()).unwrap_or_default();
    compose(&signing_input(THUMBPRINT, &claims), &[0x5a; 64])
}

/// What the appliance signed.
pub fn attestations() -> Vec<Named> {
    vec![named("attestation", "A compact JWS", &AttestationBody { attestation: attestation() })]
}

/// What it says.
pub fn verified() -> Vec<Named> {
    claims().iter().map(|claims| named("claims", "What was approved", claims)).collect()
}

/// The keys to verify it with.
pub fn keys() -> Vec<Named> {
    let keys = PublicKey::from_pem(PEM).iter().map(PublicKey::to_jwk).collect();
    vec![named("keys", "One key", &JwkSetBody { keys })]
}
