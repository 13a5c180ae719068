//! What a custodian signs with a `tls` key: a server's CertificateVerify, and nothing else.

use fault_module::{Fault, Function, Kind};
use hsm_authd::custodian::token::Setup;
use hsm_authd::domain::handshake::TranscriptHash;
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::signer::signature::Signature;
use hsm_authd::hsm::messages::{Request, Response};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature as Raw, VerifyingKey};
use serde::{Serialize, Serializer};

use crate::intruder::intrude;
use crate::token::{Custodian, TestToken};

fn with_tls() -> TestToken {
    let token = TestToken::new();
    let setup = Setup {
        boot: token.boot.clone(),
        needed: Vec::new(),
        so_pin_file: None,
        so_pin_handed: false,
        token_only: false,
        serves_tls: true,
    };
    let output = token.set_up_with(&setup);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("key hsm-authd/tls/v1: made\n"), "{said}");
    token
}

fn hash(bytes: Vec<u8>) -> TranscriptHash {
    TranscriptHash::try_from(bytes).unwrap()
}

fn keys(custodian: &mut Custodian) -> Vec<PublicKey> {
    match custodian.call(Request::TlsKeys) {
        Ok(Response::TlsKeys(keys)) => keys,
        _ => panic!("no keys"),
    }
}

fn sign(custodian: &mut Custodian, key: &PublicKey, transcript: TranscriptHash) -> Option<Signature> {
    match custodian.call(Request::SignHandshake { key: key.clone(), transcript }) {
        Ok(Response::HandshakeSigned(signature)) => signature,
        Ok(_) => panic!("another answer"),
        Err(fault) => panic!("{fault}"),
    }
}

fn verifies(key: &PublicKey, content: &[u8], signature: &Signature) -> bool {
    let PublicKey::P256(point) = key else { panic!("an RSA key") };
    let key = VerifyingKey::from_sec1_bytes(&point.point()).unwrap();
    key.verify(content, &Raw::from_slice(signature.as_bytes()).unwrap()).is_ok()
}

/// RFC 8446, section 4.4.3, spelt by the test.
fn content(hash: &[u8]) -> Vec<u8> {
    [&[0x20; 64][..], b"TLS 1.3, server CertificateVerify", &[0], hash].concat()
}

#[test]
fn it_signs_a_servers_certificate_verify() {
    let token = with_tls();
    let mut custodian = token.custodian();
    let [key] = &keys(&mut custodian)[..] else { panic!("one key") };
    for bytes in [vec![1; 32], vec![0xfe; 48]] {
        let signature = sign(&mut custodian, key, hash(bytes.clone())).unwrap();
        assert!(verifies(key, &content(&bytes), &signature));
        // Neither the hash itself, nor as if it were what was signed, nor as a client's.
        assert!(!verifies(key, &bytes, &signature));
        let clients = String::from_utf8_lossy(&content(&bytes)).replace("server", "client");
        assert!(!verifies(key, clients.as_bytes(), &signature));
    }
    // Nor with a key that signs something else, nor with a stranger's.
    let attest = match custodian.call(Request::AttestationKeys) {
        Ok(Response::AttestationKeys(keys)) => keys,
        _ => panic!("no keys"),
    };
    let audit = match custodian.call(Request::AuditKeys) {
        Ok(Response::AuditKeys(keys)) => keys,
        _ => panic!("no keys"),
    };
    for other in attest.iter().chain(&audit) {
        assert_eq!(sign(&mut custodian, other, hash(vec![1; 32])), None);
    }
    assert!(!attest.contains(key) && !audit.contains(key));
    assert!(custodian.end().0.success());
}

/// A transcript's hash of any length, as only an attacker would send it.
struct AnyHash(Vec<u8>);

impl Serialize for AnyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A hash of another length, which could be content for something else, is no message at all.
#[test]
fn what_is_no_transcripts_hash_does_not_arrive() {
    let token = with_tls();
    let mut custodian = token.custodian();
    let [key] = &keys(&mut custodian)[..] else { panic!("one key") };
    let right = Request::SignHandshake { key: key.clone(), transcript: hash(vec![7; 32]) };
    let right = postcard::to_stdvec(&right).unwrap();
    let head = right.len() - postcard::to_stdvec(&AnyHash(vec![7; 32])).unwrap().len();
    for bytes in [vec![], vec![7; 31], vec![7; 33], vec![7; 64], content(&[7; 32]), vec![0x30; 400]] {
        let request = [&right[..head], &postcard::to_stdvec(&AnyHash(bytes)).unwrap()].concat();
        assert!(postcard::from_bytes::<Request>(&request).is_err());
    }
    assert!(postcard::from_bytes::<Request>(&right).is_ok());
}

#[test]
fn each_version_signs_what_is_asked_of_it_and_a_new_one_is_found() {
    let token = with_tls();
    let mut custodian = token.custodian();
    let first = keys(&mut custodian).remove(0);
    // Another process makes one, beside it.
    intrude(&token, "right hsm-authd/tls/v2");
    let mut other = token.custodian();
    let both = keys(&mut other);
    assert!(both.len() == 2 && both[1] == first, "the newest first");
    for key in &both {
        let signature = sign(&mut other, key, hash(vec![3; 32])).unwrap();
        assert!(verifies(key, &content(&[3; 32]), &signature));
        let signature =
            sign(&mut custodian, key, hash(vec![4; 32])).expect("it looks for what it does not know");
        assert!(verifies(key, &content(&[4; 32]), &signature));
    }
}

#[test]
fn a_signature_that_came_out_wrong_does_not_leave() {
    let mut token = with_tls();
    let faults = token.with_faults();
    for bit in [0, 5, 255, 256, 511] {
        let mut custodian = token.custodian();
        let [key] = &keys(&mut custodian)[..] else { panic!("one key") };
        assert!(sign(&mut custodian, key, hash(vec![1; 32])).is_some());
        let lie = faults.set(Fault::of(Function::C_Sign, Kind::Corrupt { bit }));
        let request = Request::SignHandshake { key: key.clone(), transcript: hash(vec![1; 32]) };
        match custodian.call(request) {
            Err(hsm_authd::hsm::messages::Fault::Hsm(failure)) => {
                assert!(failure.to_string().contains("C_Sign"), "{failure}");
            }
            Ok(_) => panic!("bit {bit}: it left"),
            Err(fault) => panic!("bit {bit}: {fault}"),
        }
        assert!(lie.count() > 0);
        lie.lift();
    }
}

/// A key that need not be there keeps nobody from serving when its making was interrupted.
#[test]
fn one_that_was_interrupted_is_not_used_and_is_made_anew() {
    let token = TestToken::new();
    intrude(&token, "mark hsm-authd/unfinished/tls/v1");
    assert_eq!(keys(&mut token.custodian()), []);
    // Both halves, and their mark still there.
    intrude(&token, "right hsm-authd/tls/v1");
    assert_eq!(keys(&mut token.custodian()), []);
    let output = token.set_up(false);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("key hsm-authd/tls/v1: unfinished, removed\n"),
        "{said}"
    );
    assert!(!said.contains("tls/v1: made"), "the server's key is in a file: {said}");
    let mut custodian = token.custodian();
    assert_eq!(keys(&mut custodian), []);
    intrude(&token, "right hsm-authd/tls/v1");
    assert_eq!(keys(&mut token.custodian()).len(), 1);
}
