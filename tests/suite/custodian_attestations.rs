//! What a custodian attests, against SoftHSM, over its socket.

use std::collections::BTreeSet;

use data_encoding::BASE64URL_NOPAD;
use hsm_authd::domain::attestation::Attestation;
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::id::{CredentialId, PresentationId, TransactionId};
use hsm_authd::domain::presentation::decline_input;
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::transaction::{Device as MethodDevice, Method, State, Transaction};
use hsm_authd::hsm::messages::{
    Attest, CLAIMS_BYTES_MAX, CheckOtp, CheckSignature, Fault, Request, Response, SealedRows,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Verifier;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::custodian::{account, check, outcome, request_fault, sealed, state, tenant};
use crate::custodian_signatures::{bytes, check as check_of};
use crate::intruder::intrude;
use crate::signers::{Device, PAYLOAD};
use crate::store_samples::transaction;
use crate::token::{Custodian, TestToken};

const TRANSACTION: TransactionId = TransactionId::from_random([5; 16]);

pub fn claims() -> Value {
    json!({ "iss": "hsm-authd", "jti": TRANSACTION.to_string(), "amount": "12.50", "payee": "Ålice \u{1f600}" })
}

fn attest() -> Option<Attest> {
    attest_of(claims().to_string().into_bytes())
}

fn attest_of(claims: Vec<u8>) -> Option<Attest> {
    Some(Attest { transaction: TRANSACTION, tenant: tenant(), claims })
}

/// The row that keeps a JWS.
fn row(jws: &str) -> Row {
    Row::Attestation(Attestation {
        transaction: TRANSACTION,
        tenant: tenant(),
        version: 1,
        jws: jws.to_owned(),
    })
}

/// The transaction that is responded to.
fn asked() -> Transaction {
    let method = Method::DeviceSignature {
        credential: CredentialId::from_random([1; 16]),
        device: MethodDevice::Signature,
    };
    Transaction { id: TRANSACTION, tenant: tenant(), method, ..transaction(5, "acct-1", 1_000) }
}

impl Custodian {
    /// The same rows, with the transaction that is responded to.
    fn asked(&mut self, standing: &[SealedBytes], transaction: Transaction) -> Vec<SealedBytes> {
        [standing, &self.seal(&[transaction.into()])].concat()
    }

    fn attested_check(&mut self, check: CheckOtp) -> (Option<u16>, SealedRows, Option<String>) {
        match self.call(Request::CheckOtp(check)) {
            Ok(Response::Checked { matched, sealed, attestation }) => (matched, sealed, attestation),
            other => panic!("{:?}", other.err()),
        }
    }

    fn attested_signature(&mut self, check: CheckSignature) -> (bool, SealedRows, Option<String>) {
        match self.call(Request::CheckSignature(check)) {
            Ok(Response::SignatureChecked { valid, sealed, attestation }) => (valid, sealed, attestation),
            other => panic!("{:?}", other.err()),
        }
    }

    pub fn keys(&mut self) -> Vec<PublicKey> {
        match self.call(Request::AttestationKeys) {
            Ok(Response::AttestationKeys(keys)) => keys,
            other => panic!("{:?}", other.err()),
        }
    }

    pub fn verifies(&mut self, kid: &str, digest: [u8; 32], signature: &[u8]) -> bool {
        let signature = bytes(signature).unwrap();
        match self.call(Request::VerifyAttestation { kid: kid.to_owned(), digest, signature }) {
            Ok(Response::AttestationVerified(verified)) => verified,
            other => panic!("{:?}", other.err()),
        }
    }

    /// Has claims attested by an accepted code.
    pub fn attestation(&mut self, standing: &[SealedBytes], claims: Vec<u8>) -> String {
        let standing = self.asked(standing, asked());
        let check = CheckOtp { attest: attest_of(claims), ..check(&standing, &["755224"], &[0], &[]) };
        self.attested_check(check).2.unwrap()
    }
}

/// A JWS's digest and signature, as a verifier takes it apart.
pub fn taken_apart(jws: &str) -> ([u8; 32], Vec<u8>) {
    let (input, signature) = jws.rsplit_once('.').unwrap();
    (Sha256::digest(input).into(), BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap())
}

fn point(key: &PublicKey) -> [u8; 65] {
    let PublicKey::P256(key) = key else { panic!("no P-256") };
    key.point()
}

#[test]
fn an_accepted_code_is_attested_and_nothing_else_is() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let standing = custodian.asked(&standing, asked());
    let before = custodian.sum(&standing);
    // As in the test of the outcomes: accepted, repeated, missed.
    for (code, repeats, accepted, replaced, written) in [
        ("287082", &[][..], true, true, vec![state(101), account(2)]),
        ("755224", &[0][..], false, false, vec![]),
        ("755225", &[0][..], false, true, vec![state(2), account(3)]),
    ] {
        let check = CheckOtp { attest: attest(), ..check(&standing, &[code], &[0, 1, 2], repeats) };
        let (_, seals, attestation) = custodian.attested_check(check);
        assert_eq!(attestation.is_some(), accepted, "{code}");
        let mut written = written;
        written.extend(attestation.as_deref().map(row));
        let mut after = standing.clone();
        if replaced {
            after.drain(1..3);
        }
        after.extend(sealed(&seals, &written));
        // Sum checks the seals, too: the attestation's is the last.
        assert_eq!(before.plus(&seals.sum_change), custodian.sum(&after), "{code}");
    }
    let unasked = check(&standing, &["287082"], &[0, 1, 2], &[]);
    assert_eq!(custodian.attested_check(unasked).2, None);
}

#[test]
fn a_right_signature_is_attested_and_no_other() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let standing = custodian.enrolled_signer(&device.pem());
    let standing = custodian.asked(&standing, asked());
    let before = custodian.sum(&standing);
    let input = asked().signing_input();
    let (right, other) = (device.p1363(&input), Device::new(2).p1363(&input));
    let of_it = |signature| CheckSignature { digest: asked().digest(), ..check_of(&standing, signature) };
    let accepted = || outcome(&[1], &[state(7)]);
    for (signature, expected) in [(bytes(&right), true), (bytes(&other), false), (None, false)] {
        let check = CheckSignature { attest: attest(), accepted: accepted(), ..of_it(signature) };
        let (valid, seals, attestation) = custodian.attested_signature(check);
        assert_eq!((valid, attestation.is_some()), (expected, expected));
        let mut after = vec![standing[0].clone(), standing[3].clone()];
        let written = match &attestation {
            Some(jws) => {
                after.push(standing[2].clone());
                vec![state(7), row(jws)]
            }
            None => vec![state(2), account(3)],
        };
        after.extend(sealed(&seals, &written));
        assert_eq!(before.plus(&seals.sum_change), custodian.sum(&after));
    }
    assert_eq!(custodian.attested_signature(of_it(bytes(&right))).2, None);
}

#[test]
fn two_libraries_of_others_verify_an_attestation() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let keys = custodian.keys();
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let kid = key.thumbprint();
    for claims in [claims(), json!({}), json!({ "long": "x".repeat(4_000) })] {
        let text = claims.to_string();
        let jws = custodian.attestation(&standing, text.clone().into_bytes());
        let parts: Vec<_> = jws.split('.').collect();
        let [header, payload, _] = parts.as_slice() else { panic!("{jws}") };
        let decoded =
            |part: &str| String::from_utf8(BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap();
        assert_eq!(decoded(header), format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"attestation+jwt"}}"#));
        assert_eq!(decoded(payload), text, "byte for byte");

        let (digest, signature) = taken_apart(&jws);
        let (input, _) = jws.rsplit_once('.').unwrap();
        let by_p256 = VerifyingKey::from_sec1_bytes(&point(key)).unwrap();
        let parsed = p256::ecdsa::Signature::from_slice(&signature).unwrap();
        by_p256.verify(input.as_bytes(), &parsed).unwrap();

        let [x, y] = [1, 33].map(|at| BASE64URL_NOPAD.encode(&point(key)[at..at + 32]));
        let by_jose = DecodingKey::from_ec_components(&x, &y).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        let token = decode::<Value>(&jws, &by_jose, &validation).unwrap();
        assert_eq!(token.claims, claims);
        assert_eq!(
            (token.header.typ.as_deref(), token.header.kid.as_deref()),
            (Some("attestation+jwt"), Some(&*kid))
        );
        assert!(custodian.verifies(&kid, digest, &signature));
    }
}

#[test]
fn what_no_key_of_ours_signed_does_not_verify() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let kid = custodian.keys()[0].thumbprint();
    let jws = custodian.attestation(&standing, claims().to_string().into_bytes());
    let (digest, signature) = taken_apart(&jws);
    for bit in 0..512 {
        let mut flipped = signature.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!custodian.verifies(&kid, digest, &flipped), "bit {bit}");
    }
    let mut another = digest;
    another[31] ^= 1;
    assert!(!custodian.verifies(&kid, another, &signature));
    for length in [0, 1, 63, 65, 4_096] {
        for fill in [0, 0xff] {
            assert!(!custodian.verifies(&kid, digest, &vec![fill; length]), "{length} bytes of {fill}");
        }
    }
    let theirs = Device::new(1);
    let (input, _) = jws.rsplit_once('.').unwrap();
    assert!(!custodian.verifies(&kid, digest, &theirs.p1363(input.as_bytes())));
    for unknown in ["", &kid[1..], &format!("{kid}="), &kid.to_uppercase(), &theirs.thumbprint()] {
        assert!(!custodian.verifies(unknown, digest, &signature), "{unknown}");
    }
    // A key of another token is unknown here.
    let other = TestToken::made();
    let mut other = other.custodian();
    assert!(!other.verifies(&kid, digest, &signature));
    let of_other = other.keys()[0].thumbprint();
    assert!(!other.verifies(&of_other, digest, &signature));
    assert!(custodian.verifies(&kid, digest, &signature), "after all that");
    assert!(custodian.end().0.success());
}

#[test]
fn the_newest_key_signs_and_older_ones_still_verify() {
    let token = TestToken::new();
    let mut old = token.custodian();
    let standing = old.enrolled();
    let jws = old.attestation(&standing, claims().to_string().into_bytes());
    let first = old.keys().remove(0);
    intrude(&token, "right hsm-authd/attest/v2");

    let mut new = token.custodian();
    let keys = new.keys();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[1], first, "the newest comes first");
    let again = new.attestation(&standing, claims().to_string().into_bytes());
    for (jws, by, not_by) in [(&jws, &keys[1], &keys[0]), (&again, &keys[0], &keys[1])] {
        let (digest, signature) = taken_apart(jws);
        assert!(new.verifies(&by.thumbprint(), digest, &signature));
        assert!(!new.verifies(&not_by.thumbprint(), digest, &signature));
    }
    // The old one looks for a key that it does not know.
    let (digest, signature) = taken_apart(&again);
    assert!(old.verifies(&keys[0].thumbprint(), digest, &signature));
}

/// Whatever the code or the signature is: whether a message is refused tells nothing of it.
#[test]
fn what_cannot_be_attested_is_refused_before_anything_is_checked() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let (codes, signer) = (custodian.enrolled(), custodian.enrolled_signer(&device.pem()));
    let (codes, signer) = (custodian.asked(&codes, asked()), custodian.asked(&signer, asked()));
    let object = |length: usize| format!("{{\"c\":\"{}\"}}", "x".repeat(length - 8)).into_bytes();
    let foreign = Tenant::try_from("bank-b".to_owned()).unwrap();
    let bad = [
        attest_of(object(CLAIMS_BYTES_MAX + 1)),
        attest_of(object(30_000)),
        attest_of(vec![]),
        attest_of(b"[]".to_vec()),
        attest_of(b"{} ,".to_vec()),
        attest_of(b"{\"a\":\"\xff\"}".to_vec()),
        attest_of(b"\"claims\"".to_vec()),
        Some(Attest { tenant: foreign, ..attest().unwrap() }),
    ];
    for bad in bad {
        for (code, repeats) in [("755224", &[][..]), ("755224", &[0]), ("000000", &[])] {
            let check = CheckOtp { attest: bad.clone(), ..check(&codes, &[code], &[0], repeats) };
            request_fault(custodian.call(Request::CheckOtp(check)));
        }
        for signature in [bytes(&device.p1363(PAYLOAD)), bytes(&[1; 64]), None] {
            let check = CheckSignature { attest: bad.clone(), ..check_of(&signer, signature) };
            request_fault(custodian.call(Request::CheckSignature(check)));
        }
    }
    let check_of_it =
        CheckOtp { attest: attest_of(object(CLAIMS_BYTES_MAX)), ..check(&codes, &["755224"], &[0], &[]) };
    assert!(custodian.attested_check(check_of_it).2.is_some());
    // A wrong seal comes first.
    let mut tampered = codes.clone();
    tampered[2].seal.mac[0] ^= 1;
    let check = CheckOtp { attest: attest(), ..check(&tampered, &["755224"], &[0], &[]) };
    assert_eq!(custodian.call(Request::CheckOtp(check)).err(), Some(Fault::Seal(2)));
    assert!(custodian.end().0.success());
}

#[test]
fn only_what_the_credential_is_asked_about_is_attested() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let (codes, signer) = (custodian.enrolled(), custodian.enrolled_signer(&device.pem()));
    let other = CredentialId::from_random([2; 16]);
    let others = Method::DeviceSignature { credential: other, device: MethodDevice::Signature };
    let foreign = Tenant::try_from("bank-b".to_owned()).unwrap();
    let mut bad: Vec<Vec<Transaction>> = State::ALL
        .into_iter()
        .filter(|state| *state != State::Pending)
        .map(|state| vec![Transaction { state, ..asked() }])
        .collect();
    bad.push(vec![]);
    bad.push(vec![Transaction { id: TransactionId::from_random([6; 16]), ..asked() }]);
    bad.push(vec![Transaction { method: others, ..asked() }]);
    bad.push(vec![Transaction { tenant: foreign, ..asked() }]);
    for transactions in bad {
        let (mut codes, mut signer) = (codes.clone(), signer.clone());
        for transaction in transactions {
            codes = custodian.asked(&codes, transaction.clone());
            signer = custodian.asked(&signer, transaction);
        }
        let check = CheckOtp { attest: attest(), ..check(&codes, &["755224"], &[0], &[]) };
        request_fault(custodian.call(Request::CheckOtp(check)));
        let signature = bytes(&device.p1363(&asked().signing_input()));
        let digest = asked().digest();
        let check = CheckSignature { attest: attest(), digest, ..check_of(&signer, signature) };
        request_fault(custodian.call(Request::CheckSignature(check)));
    }
}

/// A right signature of something else approves nothing, whatever the front says that it is.
#[test]
fn only_a_signature_of_the_transaction_is_attested() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let signer = custodian.enrolled_signer(&device.pem());
    let presented = Method::PresentedCode {
        presentation: PresentationId::from_random([4; 16]),
        credential: CredentialId::from_random([1; 16]),
        account: "acct-1".to_owned().try_into().unwrap(),
    };
    let header = BASE64URL_NOPAD.encode(br#"{"alg":"ES256"}"#);
    for method in [asked().method, presented] {
        let transaction = Transaction { method, ..asked() };
        let standing = custodian.asked(&signer, transaction.clone());
        let input = transaction.signing_input();
        let decline = decline_input(&transaction.digest());
        let other = Transaction { id: TransactionId::from_random([6; 16]), ..transaction }.signing_input();
        let mut attested = |header: Option<&str>, signed: &[u8]| {
            let (header, signature) = (header.map(str::to_owned), bytes(&device.p1363(signed)));
            let digest = Sha256::digest(signed).into();
            let check = CheckSignature {
                attest: attest(),
                digest,
                jws_header: header,
                accepted: outcome(&[], &[]),
                ..check_of(&standing, signature)
            };
            custodian.call(Request::CheckSignature(check))
        };
        let jws = |payload: &[u8]| format!("{header}.{}", BASE64URL_NOPAD.encode(payload)).into_bytes();
        for what in [&decline, &other, &PAYLOAD.to_vec(), &transaction_digest(&input)] {
            request_fault(attested(None, what));
            request_fault(attested(Some(&header), what));
            request_fault(attested(None, &jws(what)));
            request_fault(attested(Some(&header), &jws(what)));
        }
        request_fault(attested(None, &jws(&input)));
        request_fault(attested(Some(&header), &input));
        request_fault(attested(Some(&header[1..]), &jws(&input)));
        for (header, signed) in [(None, input.clone()), (Some(&*header), jws(&input))] {
            match attested(header, &signed) {
                Ok(Response::SignatureChecked { valid: true, attestation: Some(_), .. }) => {}
                other => panic!("{:?}", other.err()),
            }
        }
    }
}

fn transaction_digest(input: &[u8]) -> Vec<u8> {
    Sha256::digest(input).to_vec()
}

#[test]
fn a_check_of_a_resynchronisation_attests_only_what_it_accepts() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let standing = custodian.asked(&standing, asked());
    for (codes, accepted) in [(["287082", "359152"], true), (["287082", "969429"], false)] {
        let check = CheckOtp { attest: attest(), ..check(&standing, &codes, &[0, 1, 2], &[]) };
        assert_eq!(custodian.attested_check(check).2.is_some(), accepted);
    }
}

#[test]
fn random_bytes_are_new_each_time() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let Ok(Response::Random(bytes)) = custodian.call(Request::Random) else { panic!() };
        assert!(seen.insert(bytes));
    }
    let ones: u32 = seen.iter().flatten().map(|byte| byte.count_ones()).sum();
    assert!((12_000..13_600).contains(&ones), "{ones} of 25600 bits");
}

#[test]
fn a_setup_completes_a_token_that_has_no_attest_key_and_keeps_its_others() {
    let token = TestToken::new();
    let (standing, kid) = {
        let mut custodian = token.custodian();
        (custodian.enrolled(), custodian.keys()[0].thumbprint())
    };
    intrude(&token, "remove hsm-authd/attest/v1");
    let (_, words) = token.refused(&token.boot);
    assert!(words.contains("there is no key hsm-authd/attest/v1: run `hsm-authd init`"), "{words}");
    assert!(token.set_up(false).status.success());
    let mut custodian = token.custodian();
    let keys = custodian.keys();
    assert_eq!(keys.len(), 1);
    assert_ne!(keys[0].thumbprint(), kid);
    custodian.attestation(&standing, b"{}".to_vec());
    drop(custodian);
    assert!(token.set_up(false).status.success());
    assert_eq!(token.custodian().keys(), keys, "a second setup changes nothing");
}
