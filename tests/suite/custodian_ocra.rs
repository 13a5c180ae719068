//! OCRA inside a custodian, against SoftHSM: codes, PIN hashes, and messages without sense.

use data_encoding::HEXLOWER;
use hsm_authd::domain::credential::{Credential, EncryptedPinHash, Kind, OcraToken, OcraUse};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::ocra::{Challenge, Suite};
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::transaction::{Method, Transaction};
use hsm_authd::domain::verification::Factor;
use hsm_authd::hsm::messages::{Attest, Candidate, CheckOtp, Fault, Request, Response};
use hsm_authd::secret::SecretBytes;

use crate::custodian::{account, otp, outcome, request_fault, state, tenant};
use crate::intruder::intrude;
use crate::ocra_token::{self, Input, question};
use crate::store_samples;
use crate::token::{Custodian, TestToken};

pub const ONE: CredentialId = CredentialId::from_random([1; 16]);
const OTHER: CredentialId = CredentialId::from_random([2; 16]);

fn suite(text: &str) -> Suite {
    Suite::parse(text).unwrap()
}

/// What an enrolment writes, from a token as its user has it.
pub struct Enrolled {
    pub token: ocra_token::OcraToken,
    pub row: OcraToken,
}

impl Enrolled {
    pub fn sealed(&self, custodian: &mut Custodian, id: CredentialId) -> Vec<SealedBytes> {
        let credential = Row::Credential(Credential {
            id,
            tenant: tenant(),
            account: "acct-1".to_owned().try_into().unwrap(),
            version: 1,
            created_unix_ms: 0,
            kind: Kind::Ocra(self.row.clone()),
            deleted_unix_ms: None,
        });
        custodian.seal(&[credential, state(1), account(1)])
    }

    pub fn challenge(&self, input: Input<'_>) -> Challenge {
        Challenge::new(&self.row.suite, input.question, input.session).unwrap()
    }

    /// Whether `code` is the token's for `input`.
    fn matches(
        &self,
        custodian: &mut Custodian,
        id: CredentialId,
        input: Input<'_>,
        code: &str,
    ) -> Result<bool, Fault> {
        let standing = self.sealed(custodian, id);
        let check = check(&standing, code, Some(self.challenge(input)), &[factor(input.counter, input.step)]);
        custodian.check(check).map(|(matched, _)| matched.is_some())
    }
}

impl Custodian {
    fn pin_hash(&mut self, id: CredentialId, hash: Algorithm, pin: &str) -> EncryptedPinHash {
        let pin = SecretBytes::new(pin.as_bytes().to_vec());
        match self.call(Request::EncryptPinHash { id, hash, pin }) {
            Ok(Response::PinHash(encrypted)) => encrypted,
            other => panic!("{:?}", other.err()),
        }
    }

    /// Of the credential [`ONE`].
    pub fn enrol_ocra(&mut self, token: ocra_token::OcraToken) -> Enrolled {
        let suite = suite(&token.suite);
        let secret = Some(self.import(suite.algorithm(), &token.seed));
        let hash = suite.pin_hash().zip(token.pin.as_ref());
        let pin_hash = hash.map(|(hash, pin)| self.pin_hash(ONE, hash, pin));
        let row = OcraToken { suite, look_ahead: 0, skew_steps: 0, usage: OcraUse::Verify, secret, pin_hash };
        Enrolled { token, row }
    }
}

pub fn factor(counter: Option<u64>, time_step: Option<u64>) -> Factor {
    Factor { counter, time_step }
}

pub fn check(
    standing: &[SealedBytes],
    code: &str,
    challenge: Option<Challenge>,
    factors: &[Factor],
) -> CheckOtp {
    let candidate = |factor: &Factor| Candidate { factor: *factor, rows: Some(vec![state(2).encode()]) };
    CheckOtp {
        standing: standing.to_vec(),
        codes: vec![otp(code)],
        challenge,
        candidates: factors.iter().map(candidate).collect(),
        accepted: outcome(&[1], &[]),
        repeated: outcome(&[], &[]),
        missed: outcome(&[1, 2], &[state(2), account(2)]),
        attest: None,
    }
}

#[test]
fn a_code_is_attested_for_the_transaction_that_it_answers() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let text = "OCRA-1:HOTP-SHA256-8:QH64";
    let enrolled = custodian.enrol_ocra(ocra_token::OcraToken::new(text));
    let method = Method::ChallengeResponse { credential: ONE, suite: suite(text) };
    let asked = Transaction { method, tenant: tenant(), ..store_samples::transaction(5, "acct-1", 1_000) };
    let mut standing = enrolled.sealed(&mut custodian, ONE);
    standing.extend(custodian.seal(&[asked.clone().into()]));
    let own = HEXLOWER.encode(&asked.digest());
    let other =
        HEXLOWER.encode(&Transaction { id: store_samples::transaction_id(6), ..asked.clone() }.digest());
    for (text, is_its) in [(&own, true), (&other, false)] {
        let input = question(text);
        let code = enrolled.token.code(input);
        let check = CheckOtp {
            attest: Some(Attest { transaction: asked.id, tenant: tenant(), claims: b"{}".to_vec() }),
            ..check(&standing, &code, Some(enrolled.challenge(input)), &[factor(None, None)])
        };
        match custodian.call(Request::CheckOtp(check)) {
            Ok(Response::Checked { matched: Some(0), attestation: Some(_), .. }) => assert!(is_its),
            refused => {
                assert!(!is_its);
                request_fault(refused);
            }
        }
    }
}

#[test]
fn known_codes_verify_through_the_hsm_with_every_input() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let mut sessions = 0;
    for vector in ocra_token::rfc().into_iter().chain(ocra_token::golden()) {
        let what = vector.token.suite.clone();
        let enrolled = custodian.enrol_ocra(vector.token.clone());
        let input = vector.input();
        assert_eq!(enrolled.matches(&mut custodian, ONE, input, &vector.code), Ok(true), "{what}");
        // Each input counts.
        let first = if input.question.starts_with('7') { "8" } else { "7" };
        let other = format!("{first}{}", &input.question[1..]);
        let (counter, step) = (input.counter.map(|c| c + 1), input.step.map(|s| s + 1));
        let mut others = vec![Input { question: &other, ..input }];
        others.extend(counter.map(|_| Input { counter, ..input }));
        others.extend(step.map(|_| Input { step, ..input }));
        others.extend(input.session.map(|_| Input { session: Some(b"another"), ..input }));
        sessions += usize::from(input.session.is_some());
        for other in others {
            assert_eq!(enrolled.matches(&mut custodian, ONE, other, &vector.code), Ok(false), "{what}");
        }
    }
    assert_eq!(sessions, 2);
}

#[test]
fn a_pin_hash_is_new_each_time_and_its_credentials_alone() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for (hash, bytes) in [(Algorithm::Sha1, 20), (Algorithm::Sha256, 32), (Algorithm::Sha512, 64)] {
        let (first, second) = (custodian.pin_hash(ONE, hash, "1234"), custodian.pin_hash(ONE, hash, "1234"));
        assert_eq!((first.data_version, first.blob.len()), (1, 12 + bytes + 16));
        assert_ne!(first.blob, second.blob);
        let nonces = [&first.blob[..12], &second.blob[..12]];
        assert_ne!(nonces[0], nonces[1], "a nonce comes once under a key");
    }
    let mut shown = ocra_token::OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA256");
    let enrolled = custodian.enrol_ocra(shown.clone());
    let code = shown.code(question("12345678"));
    assert_eq!(enrolled.matches(&mut custodian, ONE, question("12345678"), &code), Ok(true));
    shown.pin = Some("1235".to_owned());
    let with_another_pin = shown.code(question("12345678"));
    let matched = enrolled.matches(&mut custodian, ONE, question("12345678"), &with_another_pin);
    assert_eq!(matched, Ok(false));

    // Moved to another credential, with a right seal: it does not open, and no code is compared.
    let reason = request_fault(enrolled.matches(&mut custodian, OTHER, question("12345678"), &code));
    // Each module has its own word for it.
    assert!(reason.starts_with("an encrypted PIN hash that does not open (C_Decrypt: CKR_"), "{reason}");
    assert_eq!(enrolled.matches(&mut custodian, ONE, question("12345678"), &code), Ok(true));
    assert!(custodian.end().0.success());
}

#[test]
fn an_edited_pin_hash_does_not_open() {
    let token = TestToken::new();
    let shown = ocra_token::OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA1");
    let code = shown.code(question("12345678"));
    let mut custodian = token.custodian();
    for place in [0, 12, 31, 32, 47] {
        let mut enrolled = custodian.enrol_ocra(shown.clone());
        enrolled.row.pin_hash.as_mut().unwrap().blob[place] ^= 1;
        let checked = enrolled.matches(&mut custodian, ONE, question("12345678"), &code);
        assert!(request_fault(checked).contains("does not open"), "{place}");
    }
}

#[test]
fn a_rotation_of_data_leaves_what_was_encrypted_before() {
    let token = TestToken::new();
    let mut old = token.custodian();
    let shown = ocra_token::OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA1");
    let code = shown.code(question("12345678"));
    let enrolled = old.enrol_ocra(shown.clone());
    intrude(&token, "right hsm-authd/data/v2");
    let mut new = token.custodian();
    assert_eq!(enrolled.matches(&mut new, ONE, question("12345678"), &code), Ok(true));
    let later = new.enrol_ocra(shown);
    assert_eq!(later.row.pin_hash.as_ref().unwrap().data_version, 2);
    assert_eq!(later.matches(&mut new, ONE, question("12345678"), &code), Ok(true));
    // One that started before looks for the key, and finds it.
    assert_eq!(later.matches(&mut old, ONE, question("12345678"), &code), Ok(true));
}

#[test]
fn messages_without_sense_are_refused_whatever_the_code_and_cost_nothing() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let full = ocra_token::OcraToken::new("OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-S008-T1M");
    let input = Input { question: "12345678", counter: Some(5), session: Some(b"session"), step: Some(7) };
    let plain = ocra_token::OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08");
    let (full_code, plain_code) = (full.code(input), plain.code(question("12345678")));
    let (full, plain) = (custodian.enrol_ocra(full), custodian.enrol_ocra(plain));
    let full_rows = full.sealed(&mut custodian, ONE);
    let plain_rows = plain.sealed(&mut custodian, ONE);
    let asked = Challenge::new(&full.row.suite, input.question, input.session).unwrap();
    let asked_plainly = plain.challenge(question("12345678"));
    let both = factor(Some(5), Some(7));
    let of = |text: &str, session: Option<&[u8]>| Challenge::new(&suite(text), "12345678", session).unwrap();

    let mut refused = |check: CheckOtp, said: &str| {
        let reason = request_fault(custodian.check(check));
        assert!(reason.contains(said), "{said}: {reason}");
    };
    for code in [&*full_code, "000000"] {
        let full = |challenge: &Challenge, factors: &[Factor]| {
            check(&full_rows, code, Some(challenge.clone()), factors)
        };
        refused(check(&full_rows, code, None, &[both]), "no such codes");
        refused(full(&asked_plainly, &[both]), "the suite has a session");
        let longer = of("OCRA-1:HOTP-SHA1-6:QN08-S009", Some(b"session"));
        refused(full(&longer, &[both]), "the session has another length");
        // Also behind the right one: whether it is refused must not depend on the code.
        for (wrong, said) in [
            (factor(None, Some(7)), "the suite has a counter"),
            (factor(Some(5), None), "the suite has a time step"),
            (factor(None, None), "the suite has a counter"),
        ] {
            refused(full(&asked, &[wrong]), said);
            refused(full(&asked, &[both, wrong]), said);
        }
    }
    for code in [&*plain_code, "000000"] {
        let right = factor(None, None);
        let plain = |challenge: &Challenge, factors: &[Factor]| {
            check(&plain_rows, code, Some(challenge.clone()), factors)
        };
        refused(plain(&asked, &[right]), "a session is given");
        for wrong in [factor(Some(0), None), factor(None, Some(0)), factor(Some(0), Some(0))] {
            refused(plain(&asked_plainly, &[wrong]), "is given, and the suite has none");
            refused(plain(&asked_plainly, &[right, wrong]), "is given, and the suite has none");
        }
    }
    // A PIN hash where the suite has none, none where it has one, one of another hash, none at all.
    let encrypted = custodian.pin_hash(ONE, Algorithm::Sha256, "1234");
    let short = EncryptedPinHash { data_version: 1, blob: vec![7; 11] };
    let mut rows = |row: OcraToken| Enrolled { token: plain.token.clone(), row }.sealed(&mut custodian, ONE);
    let with = |enrolled: &Enrolled, pin_hash| OcraToken { pin_hash, ..enrolled.row.clone() };
    let unwanted = rows(with(&plain, Some(encrypted.clone())));
    let missing = rows(with(&full, None));
    let other = rows(with(&full, Some(encrypted)));
    let short = rows(with(&full, Some(short)));
    let tombstone = rows(OcraToken { secret: None, ..plain.row.clone() });
    let mut refused = |check: CheckOtp, said: &str| {
        let reason = request_fault(custodian.check(check));
        assert!(reason.contains(said), "{said}: {reason}");
    };
    refused(
        check(&unwanted, &plain_code, Some(asked_plainly.clone()), &[factor(None, None)]),
        "a PIN hash is given",
    );
    refused(check(&missing, &full_code, Some(asked.clone()), &[both]), "the suite has a PIN hash");
    refused(check(&other, &full_code, Some(asked.clone()), &[both]), "the PIN hash has another length");
    refused(check(&short, &full_code, Some(asked.clone()), &[both]), "impossible length");
    refused(check(&tombstone, &plain_code, Some(asked_plainly.clone()), &[factor(None, None)]), "no secret");
    refused(check(&plain_rows, "0000000", Some(asked_plainly), &[factor(None, None)]), "another length");
    // HOTP is asked no question, and has one factor.
    let hotp = custodian.enrolled();
    let hotp_check = |challenge, factors: &[Factor]| check(&hotp, "755224", challenge, factors);
    let reason = request_fault(custodian.check(hotp_check(Some(asked.clone()), &[factor(Some(0), None)])));
    assert!(reason.contains("no such codes"), "{reason}");
    for wrong in [factor(None, None), factor(Some(0), Some(0))] {
        request_fault(custodian.check(hotp_check(None, &[wrong])));
        request_fault(custodian.check(hotp_check(None, &[factor(Some(0), None), wrong])));
    }
    // It goes on serving.
    assert_eq!(full.matches(&mut custodian, ONE, input, &full_code), Ok(true));
    assert_eq!(plain.matches(&mut custodian, ONE, question("12345678"), &plain_code), Ok(true));
    let (status, words) = custodian.end();
    assert!(status.success(), "{words}");
}
