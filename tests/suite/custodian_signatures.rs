//! What a custodian answers about signatures, against SoftHSM, over its socket.

use hsm_authd::domain::account::AccountRef;
use hsm_authd::domain::credential::{Credential, Kind, Signer};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::signer::signature::Signature;
use hsm_authd::hsm::messages::{CheckSignature, Fault, Request, Response, SealedRows};
use sha2::{Digest, Sha256};

use crate::custodian::{account, outcome, request_fault, sealed, state, tenant};
use crate::signers::{Device, PAYLOAD, hex, rsa_keys};
use crate::token::{Custodian, TestToken};

fn credential(kind: Kind) -> Row {
    Row::Credential(Credential {
        id: CredentialId::from_random([1; 16]),
        tenant: tenant(),
        account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
        version: 1,
        created_unix_ms: 0,
        kind,
        deleted_unix_ms: None,
    })
}

fn signer(pem: &str) -> Row {
    let key = PublicKey::from_pem(pem).unwrap();
    credential(Kind::Signer(Signer { algorithm: key.algorithm(), key: Some(key) }))
}

/// As it stands in a message, whatever it is.
pub fn bytes(signature: &[u8]) -> Option<Signature> {
    Some(postcard::from_bytes(&postcard::to_stdvec(signature).unwrap()).unwrap())
}

/// Each outcome writes other versions, so that one shows from another.
pub fn check(standing: &[SealedBytes], signature: Option<Signature>) -> CheckSignature {
    CheckSignature {
        standing: standing.to_vec(),
        digest: Sha256::digest(PAYLOAD).into(),
        jws_header: None,
        signature,
        accepted: outcome(&[], &[]),
        refused: outcome(&[1, 2], &[state(2), account(3)]),
        attest: None,
    }
}

impl Custodian {
    fn signed(&mut self, check: CheckSignature) -> Result<(bool, SealedRows), Fault> {
        match self.call(Request::CheckSignature(check))? {
            Response::SignatureChecked { valid, sealed, attestation: None } => Ok((valid, sealed)),
            _ => panic!("another response"),
        }
    }

    fn says(&mut self, standing: &[SealedBytes], signature: &[u8]) -> bool {
        self.signed(check(standing, bytes(signature))).unwrap().0
    }

    pub fn enrolled_signer(&mut self, pem: &str) -> Vec<SealedBytes> {
        self.seal(&[signer(pem), state(1), account(1)])
    }
}

#[test]
fn a_signature_is_right_or_wrong_and_each_outcome_seals_its_own_rows() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let standing = custodian.enrolled_signer(&device.pem());
    let before = custodian.sum(&standing);
    let (right, other) = (device.p1363(PAYLOAD), Device::new(2).p1363(PAYLOAD));
    for (signature, expected) in [(bytes(&right), true), (bytes(&other), false), (None, false)] {
        let (valid, seals) = custodian.signed(check(&standing, signature)).unwrap();
        assert_eq!(valid, expected);
        let mut after = standing.clone();
        if !valid {
            after.truncate(1);
            after.extend(sealed(&seals, &[state(2), account(3)]));
        }
        // Sum checks the seals, too.
        assert_eq!(before.plus(&seals.sum_change), custodian.sum(&after));
    }
    let digest = Sha256::digest(b"another payload").into();
    let another = CheckSignature { digest, ..check(&standing, bytes(&right)) };
    assert!(!custodian.signed(another).unwrap().0);
}

#[test]
fn bytes_that_are_no_signature_are_wrong_and_no_fault() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let rsa = &rsa_keys()[0];
    let es256 = custodian.enrolled_signer(&device.pem());
    let rs256 = custodian.enrolled_signer(rsa["pem"].as_str().unwrap());
    let right = hex(&rsa["right_hex"]);
    for length in [0, 1, 31, 62, 63, 64, 65, 66, 96, 128, 255, 256, 257, 512, 4_096, 40_000] {
        for fill in [0, 1, 0x30, 0xff] {
            let garbage = vec![fill; length];
            assert!(!custodian.says(&es256, &garbage), "ES256, {length} bytes of {fill}");
            assert!(!custodian.says(&rs256, &garbage), "RS256, {length} bytes of {fill}");
        }
        assert!(custodian.says(&es256, &device.p1363(PAYLOAD)), "after {length} bytes");
        assert!(custodian.says(&rs256, &right), "after {length} bytes");
    }
    // What one kind of key makes says nothing to the other.
    assert!(!custodian.says(&rs256, &device.p1363(PAYLOAD)));
    assert!(!custodian.says(&es256, &right));
    assert!(custodian.end().0.success());
}

#[test]
fn every_seal_is_checked_before_a_key_is_used() {
    let (here, there) = (TestToken::made(), TestToken::made());
    let (mut here, mut there) = (here.custodian(), there.custodian());
    let device = Device::new(1);
    let standing = here.enrolled_signer(&device.pem());
    let right = || bytes(&device.p1363(PAYLOAD));
    let foreign = there.enrolled_signer(&device.pem());
    assert_eq!(here.signed(check(&foreign, right())).err(), Some(Fault::Seal(0)));
    for position in 0..3 {
        let mut flipped = standing.clone();
        flipped[position].seal.mac[0] ^= 1;
        let mut moved = standing.clone();
        moved[position].seal = standing[(position + 1) % 3].seal.clone();
        let mut one_foreign = standing.clone();
        one_foreign[position] = foreign[position].clone();
        for tampered in [flipped, moved, one_foreign] {
            for signature in [right(), None] {
                let fault = here.signed(check(&tampered, signature)).err();
                assert_eq!(fault, Some(Fault::Seal(position as u8)));
            }
        }
    }
    // A row that has another's key under its own seal.
    let mut stolen = standing.clone();
    stolen[0].bytes = signer(&Device::new(2).pem()).encode();
    let theirs = bytes(&Device::new(2).p1363(PAYLOAD));
    assert_eq!(here.signed(check(&stolen, theirs)).err(), Some(Fault::Seal(0)));
    assert!(here.signed(check(&standing, right())).unwrap().0, "it goes on serving");
}

#[test]
fn messages_without_sense_are_refused_and_cost_nothing() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let device = Device::new(1);
    let standing = custodian.enrolled_signer(&device.pem());
    let right = || bytes(&device.p1363(PAYLOAD));
    let Row::Credential(buried) = signer(&device.pem()) else { panic!() };
    let Kind::Signer(buried) = buried.kind else { panic!() };
    let tombstone = credential(Kind::Signer(Signer { key: None, ..buried }));
    let hotp = custodian.enrolled();
    let buried = custodian.seal(&[tombstone, state(1), account(1)]);
    let later = custodian.seal(&[state(1), signer(&device.pem()), account(1)]);
    for rows in [&hotp[..], &buried, &later, &[]] {
        for signature in [right(), None] {
            let check = CheckSignature { refused: outcome(&[], &[]), ..check(rows, signature) };
            request_fault(custodian.signed(check));
            assert!(custodian.signed(self::check(&standing, right())).unwrap().0);
        }
    }
    // Also in the outcome that does not come to pass.
    for replaces in [&[3][..], &[255], &[1, 1]] {
        for signature in [right(), None] {
            let bad = || outcome(replaces, &[]);
            let good = || check(&standing, signature.clone());
            request_fault(custodian.signed(CheckSignature { accepted: bad(), ..good() }));
            request_fault(custodian.signed(CheckSignature { refused: bad(), ..good() }));
        }
    }
    assert!(custodian.signed(check(&standing, right())).unwrap().0);
    assert!(custodian.end().0.success());
}

#[test]
fn a_small_cache_changes_no_answer() {
    let mut token = TestToken::new();
    token.boot.secrets_cached_max = 2;
    let mut custodian = token.custodian();
    let mut enrolled = Vec::new();
    for number in 1..=4 {
        let device = Device::new(number);
        enrolled.push((custodian.enrolled_signer(&device.pem()), device.p1363(PAYLOAD)));
    }
    for key in rsa_keys() {
        let standing = custodian.enrolled_signer(key["pem"].as_str().unwrap());
        enrolled.push((standing, hex(&key["right_hex"])));
    }
    for _ in 0..3 {
        for (place, (standing, right)) in enrolled.iter().enumerate() {
            assert!(custodian.says(standing, right));
            let (_, others) = &enrolled[(place + 1) % enrolled.len()];
            assert!(!custodian.says(standing, others));
        }
    }
}
