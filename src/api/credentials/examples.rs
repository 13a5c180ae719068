//! The examples of these routes. Answers are made of the types that real ones are made of.

use serde_json::json;

use crate::domain::credential::{OcraUse, Status};
use crate::domain::otp::{Algorithm, Digits};
use crate::domain::signer::SignatureAlgorithm;
use crate::domain::time::rfc3339;
use crate::service::credential_view::{CredentialView, KindView, RelyingPartyView};

use super::super::answer::EnrolledBody;
use super::super::openapi::operation::{Named, example, named};
use super::rolling::{ActivatedBody, CodeBody, RotatedBody};

pub const HOTP_ID: &str = "cred_0htt0zhawqx4kqtnakpjs4ttxy";
const TOTP_ID: &str = "cred_26daj92h7tg6acttawtvk6360e";
pub const OCRA_ID: &str = "cred_3w9m7zrdq0hkx1n5tb8c2f4gvj";
pub const SIGNER_ID: &str = "cred_5s2k8pyx0v7c3gq9zb1m4t6hnd";

pub const ROLLING_ID: &str = "cred_1d4x7n0r3w6c9h2m5t8ybevjsk";
/// Of an identity code that the terminal keeps to itself.
const SALT: &str = "55555555555555555555555555555555";
const IDENTITY_KEY: &str = "ad21c765ce9f929e5ede8807a776fe77748f672b7ef921d7d0ee08727cd7d604";
const EVIDENCE: &str = "case 2030-0007";
/// Of two epochs the temporary code, and the proof of it.
const CODE_1: &str = "9b37ab14e2fd250388e9c1b93730dc33";
pub const CODE_2: &str = "2180a1276d0ee08ecc18702ba4b9089d";
const PROOF_1: &str = "9a57ba70d8df657f0ca61395578ca57f2f89c706ceb3a3e44314f1cbfa753ec9";
const PROOF_2: &str = "f358994124fb2f1bfd61c359cc6b88c7c45390b6862676f001fbc0065f8a3683";
pub const TERMINAL_IDS: [&str; 3] =
    ["cred_1f8h2kq0w5z7xr3vbn6ytm4cgd", "cred_6j3t9n1pq8s0wzc5xk2hvrb7fm", "cred_4c7v0ydm2h9gqt6kx1ns8wzb3r"];

/// A question of the digest's first 160 bits.
pub const TRANSACTION_SUITE: &str = "OCRA-1:HOTP-SHA256-8:QH40";
pub const TERMINAL_ID: &str = "cred_1q8r5t0w2y4k6n9b3d7f1h5jzx";
const WEBAUTHN_ID: &str = "ZXhhbXBsZS1jcmVkZW50aWFs";

/// RFC 4226's test seed, encrypted to the example of `/v1/import-key`.
const WRAPPED: &str = "\
    Ms7CTtdxRodvrMK6DKJwRMIzgFD2NRJqZ8Y0o7DgvecbLQOw53S5KcwsFWOj5s1Ug4bzqXmVa/mB/nGFlUSdetak1gHt6ypDgyPr\
    DjO7ksiP5Xyc1gHqPL6Bi1+x6yAON/CKDpcsmejaPXaZBWLu5MNzaLOUIWrbQ2akc5jc/Ie/bXcBxKxkCbDWK5V9rB2GPrFTd+OM\
    Z71/gA1vgevYxVqJkgLdEdlPSLvM26tOxiQ4+D0GKm7u/Ht+dVYE9SHQ1csSl7iWwvBMeFCHESRd/VkqeB9V06u6SHXoeboUGqoM\
    ay+/cBXKsPJ+4eZtX0yOWrsYPSw/jsNajwkk90biHETDRp5qm6neDR3ACjPwYNDgmNFBd6bJ1ivE/u7nYw7bd6EtZ/rWDWBOouUF\
    Yx/0ifiyfTAj/wKP/W4YHU3s0VTD0ixshQWCfNJGXvaoxS4mq1M/NR3krjMhcG8mvHtQVrwLWI8BqXDJHqNzj5IB6XpIWr8cohbj\
    3FZLP1dur53x";
const SUITE: &str = "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1";
const OTPAUTH: &str = "otpauth://totp/bank-a:account-1002?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=bank-a\
    &algorithm=SHA1&digits=6&period=30";

/// RFC 7515, appendix A.3: a point on P-256; then the same as SubjectPublicKeyInfo, and its thumbprint.
const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
pub const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n\
    6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n\
    -----END PUBLIC KEY-----\n";
/// A certificate of the same key, by an authority of the tests' own.
const CHAIN: &str = "-----BEGIN CERTIFICATE-----\n\
    MIIBajCCARCgAwIBAgICA+kwCgYIKoZIzj0EAwIwHjEcMBoGA1UEAwwTZXhhbXBs\n\
    ZSBkZXZpY2Ugcm9vdDAgFw0yNDAxMDEwMDAwMDBaGA8yMDk5MTIzMTIzNTk1OVow\n\
    GTEXMBUGA1UEAwwOZXhhbXBsZSBkZXZpY2UwWTATBgcqhkjOPQIBBggqhkjOPQMB\n\
    BwNCAAR/zc4ncPbEXUGDy+5v20t7WAczNXvp7xO6z248e9FURcfxRM0bvZt+hyzf\n\
    7bnuufSzaV1uqQskrYpGIyiFiOWto0EwPzAMBgNVHRMBAf8EAjAAMA4GA1UdDwEB\n\
    /wQEAwIHgDAfBgNVHSMEGDAWgBQtkpxi46kuN3wiBccSmmsq4Jfk0jAKBggqhkjO\n\
    PQQDAgNIADBFAiAdN3GL9zIX+IAlhhU392Ns2IwAvGH8T9AkQ/4bcLXNawIhANLj\n\
    P9tADCqcNOJG4MztTeDo3pGWRcz+2gbi67HdSUt7\n\
    -----END CERTIFICATE-----\n";
pub const THUMBPRINT: &str = "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U";

/// The same appendix: what was signed, and the signature.
const PAYLOAD: &str = "ZXlKaGJHY2lPaUpGVXpJMU5pSjkuZXlKcGMzTWlPaUpxYjJVaUxBMEtJQ0psZUhBaU9qRXpNREE0TV\
    Rrek9EQXNEUW9nSW1oMGRIQTZMeTlsZUdGdGNHeGxMbU52YlM5cGMxOXliMjkwSWpwMGNuVmxmUQ==";
const SIGNATURE: &str =
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6+Xx+F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3+Kg6NU1Q==";

/// Requests to enrol.
pub fn enrolments() -> Vec<Named> {
    vec![
        example(
            "hotp",
            "A counter, with RFC 4226's test seed",
            json!({ "type": "hotp", "account": "account-1001",
                "seed_hex": "3132333435363738393031323334353637383930" }),
        ),
        example(
            "hotp-wrapped",
            "The same, the seed encrypted to the key of `/v1/import-key`: not taken by an appliance with another key",
            json!({ "type": "hotp", "account": "account-1001", "seed_wrapped_base64": WRAPPED }),
        ),
        example(
            "totp",
            "A clock; the HSM makes the seed, and the answer holds it once",
            json!({ "type": "totp", "account": "account-1002", "export": "otpauth" }),
        ),
        example(
            "ocra",
            "Questions of 8 digits, with a counter and a PIN, and with RFC 6287's test seed",
            json!({ "type": "ocra", "account": "account-1003", "suite": SUITE, "use": "verify", "pin": "1234",
                "seed_hex": "3132333435363738393031323334353637383930313233343536373839303132" }),
        ),
        example(
            "signer",
            "A device's public key in PEM",
            json!({ "type": "signer", "account": "account-1004", "algorithm": "ES256", "public_key_pem": PEM }),
        ),
        example(
            "signer-jwk",
            "The same as a JWK",
            json!({ "type": "signer", "account": "account-1004",
                "jwk": { "kty": "EC", "crv": "P-256", "x": X, "y": Y } }),
        ),
        example(
            "signer-chain",
            "The same in a certificate, by an authority that is a configured trust anchor",
            json!({ "type": "signer", "account": "account-1004", "certificate_chain_pem": CHAIN }),
        ),
        example(
            "signer-webauthn",
            "The same as the key of a WebAuthn authenticator",
            json!({ "type": "signer", "account": "account-1004", "webauthn": { "credential_id": WEBAUTHN_ID,
                "public_key_pem": PEM, "rp_id": "bank.example", "origins": ["https://pay.bank.example"] } }),
        ),
        example(
            "signer-authorization",
            "A device that has to be authorized before it is used",
            json!({ "type": "signer", "account": "account-1004", "public_key_pem": PEM,
                "authorization": "required" }),
        ),
        example(
            "ocra-transactions",
            "Questions that the appliance derives from transactions, with RFC 6287's test seed",
            json!({ "type": "ocra", "account": "account-1005", "suite": TRANSACTION_SUITE,
                "seed_hex": "3132333435363738393031323334353637383930313233343536373839303132" }),
        ),
        example(
            "terminal",
            "A telephone that codes are sent to",
            json!({ "type": "terminal", "account": "account-1007", "address": "+49 30 5550100" }),
        ),
        example(
            "rolling",
            "A terminal that is to have a temporary code",
            json!({ "type": "rolling", "account": "account-1007" }),
        ),
    ]
}

/// What a terminal is bound by.
pub fn activations() -> Vec<Named> {
    let body = json!({ "identity_key_hex": IDENTITY_KEY, "evidence": EVIDENCE });
    vec![example("identity-key", "The identity key, and what the bank has checked", body)]
}

/// That a terminal has a temporary code.
pub fn rotations() -> Vec<Named> {
    vec![
        example("consumed", "Its successor is to be told again", json!({ "epoch": 1, "proof_hex": PROOF_1 })),
        example("open", "The terminal has it", json!({ "epoch": 2, "proof_hex": PROOF_2 })),
    ]
}

/// What it is told first.
pub fn activated() -> Vec<Named> {
    let view = CredentialView { state: Status::Active, ..rolling(Some(EVIDENCE.to_owned())) };
    let body = |temporary_code| ActivatedBody { view: &view, code: CodeBody { epoch: 1, temporary_code } };
    vec![
        named("activated", "Bound", &body(Some(CODE_1))),
        named("replay", "A replay, after the terminal has acknowledged it", &body(None)),
    ]
}

/// What it is told later.
pub fn rotated() -> Vec<Named> {
    let body = |temporary_code, acknowledged| {
        let (id, account) = (ROLLING_ID.to_owned(), "account-1007".to_owned());
        RotatedBody { account, acknowledged, id, code: CodeBody { epoch: 2, temporary_code } }
    };
    vec![
        named("consumed", "The next temporary code again", &body(Some(CODE_2), None)),
        named("open", "Acknowledged", &body(None, Some(true))),
    ]
}

/// What is presented to `verify`.
pub fn verifications() -> Vec<Named> {
    vec![
        example("otp", "A code of hotp or totp", json!({ "otp": "755224" })),
        example("ocra", "A code of ocra", json!({ "otp": "65347737", "challenge": "12345678" })),
        example(
            "signature",
            "A signature",
            json!({ "payload_base64": PAYLOAD, "signature_base64": SIGNATURE, "format": "p1363" }),
        ),
    ]
}

/// Pairs of codes.
pub fn resyncs() -> Vec<Named> {
    vec![
        example("otps", "Two codes of hotp or totp", json!({ "otps": ["359152", "969429"] })),
        example(
            "ocra",
            "Two codes of ocra, to one question",
            json!({ "otps": ["65347737", "86775851"], "challenge": "12345678" }),
        ),
    ]
}

/// A credential with a counter.
pub fn hotp() -> CredentialView {
    let (algorithm, digits) = (Algorithm::Sha1, Digits::default());
    credential(HOTP_ID, "account-1001", KindView::Hotp { algorithm, digits, counter: 0, look_ahead: 10 })
}

fn totp() -> CredentialView {
    let kind = KindView::Totp {
        algorithm: Algorithm::Sha1,
        digits: Digits::default(),
        period: 30,
        skew_steps: 1,
        drift_steps: 0,
    };
    credential(TOTP_ID, "account-1002", kind)
}

fn ocra() -> CredentialView {
    let kind = KindView::Ocra {
        suite: SUITE.to_owned(),
        r#use: OcraUse::Verify,
        counter: Some(0),
        look_ahead: Some(10),
        skew_steps: None,
    };
    credential(OCRA_ID, "account-1003", kind)
}

fn signer(certificate_expires_at: Option<String>, webauthn: Option<RelyingPartyView>) -> CredentialView {
    let kind = KindView::Signer {
        algorithm: SignatureAlgorithm::Es256,
        thumbprint: THUMBPRINT.to_owned(),
        certificate_expires_at,
        webauthn,
    };
    credential(SIGNER_ID, "account-1004", kind)
}

/// One that waits for its activation.
pub fn rolling(evidence: Option<String>) -> CredentialView {
    let kind = KindView::Rolling { salt: SALT.to_owned(), evidence };
    CredentialView { state: Status::Pending, ..credential(ROLLING_ID, "account-1007", kind) }
}

/// A device that was authorized.
pub fn authorized() -> CredentialView {
    signer(None, None)
}

fn signers() -> [(&'static str, &'static str, CredentialView); 3] {
    let party = RelyingPartyView {
        credential_id: WEBAUTHN_ID.to_owned(),
        rp_id: "bank.example".to_owned(),
        origins: vec!["https://pay.bank.example".to_owned()],
    };
    [
        ("signer", "A device that signs", signer(None, None)),
        ("signer-chain", "One with a certificate", signer(Some(rfc3339(4_102_444_799_000)), None)),
        ("signer-webauthn", "A WebAuthn authenticator", signer(None, Some(party))),
    ]
}

fn terminal() -> CredentialView {
    let kind = KindView::Terminal { address: "+49 30 5550100".to_owned() };
    credential(TERMINAL_IDS[0], "account-1007", kind)
}

fn credential(id: &str, account: &str, kind: KindView) -> CredentialView {
    CredentialView {
        id: id.to_owned(),
        account: account.to_owned(),
        tenant: "bank-a".to_owned(),
        state: Status::Active,
        resumable: None,
        kind,
        failures: 0,
        created_at: rfc3339(1_893_456_000_000),
    }
}

/// A credential of each type.
pub fn views() -> Vec<Named> {
    let mut all = vec![
        named("hotp", "A counter", &hotp()),
        named("totp", "A clock", &totp()),
        named("ocra", "Questions", &ocra()),
    ];
    all.extend(signers().map(|(name, summary, view)| named(name, summary, &view)));
    all.push(named("rolling", "A terminal that waits for its activation", &rolling(None)));
    all.push(named("terminal", "A terminal", &terminal()));
    all
}

/// The same, just enrolled.
pub fn enrolled() -> Vec<Named> {
    fn plain(view: &CredentialView) -> EnrolledBody<'_> {
        EnrolledBody { view, otpauth: None }
    }
    let mut all = vec![
        named("hotp", "A counter", &plain(&hotp())),
        named("totp", "A clock, with its seed", &EnrolledBody { view: &totp(), otpauth: Some(OTPAUTH) }),
        named("ocra", "Questions", &plain(&ocra())),
    ];
    all.extend(signers().map(|(name, summary, view)| named(name, summary, &plain(&view))));
    all.push(named("rolling", "A terminal that waits for its activation", &plain(&rolling(None))));
    all.push(named("terminal", "A terminal", &plain(&terminal())));
    all
}
