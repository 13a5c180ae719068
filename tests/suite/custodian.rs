//! What a custodian answers, against SoftHSM, over its socket.

use std::time::{Duration, Instant};

use hsm_authd::domain::account::Account;
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::credential::{Credential, CredentialState, Kind, OtpToken, StoredSecret};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::otp::{Algorithm, Digits, MovingFactor, Otp, time_step, truncate};
use hsm_authd::domain::row::{Row, RowBytes, SealedBytes, TableSums};
use hsm_authd::domain::verification::Factor;
use hsm_authd::hsm::messages::{
    Candidate, CheckOtp, Custody, Fault, Outcome, Request, Response, SealRows, SealedRows, decode,
};
use hsm_authd::secret::SecretBytes;
use serde_json::Value;

use crate::intruder::intrude;
use crate::token::{Custodian, TestToken};

const SEED: &[u8] = b"12345678901234567890";

pub fn tenant() -> Tenant {
    Tenant::try_from("bank-a".to_owned()).unwrap()
}

pub fn credential(algorithm: Algorithm, digits: u8, secret: Option<StoredSecret>) -> Row {
    Row::Credential(Credential {
        id: CredentialId::from_random([1; 16]),
        tenant: tenant(),
        account: "acct-1".to_owned().try_into().unwrap(),
        version: 1,
        created_unix_ms: 0,
        kind: Kind::Otp(OtpToken {
            algorithm,
            digits: Digits::try_from(digits).unwrap(),
            moving_factor: MovingFactor::Hotp { look_ahead: 9 },
            secret,
        }),
        deleted_unix_ms: None,
    })
}

pub fn state(version: u64) -> Row {
    let id = CredentialId::from_random([1; 16]);
    Row::State(CredentialState { version, ..CredentialState::new(id, tenant(), 0, 0) })
}

pub fn account(version: u64) -> Row {
    Row::Account(Account { version, ..Account::new(tenant(), "acct-1".to_owned().try_into().unwrap()) })
}

pub fn otp(text: &str) -> Otp {
    Otp::parse(text.to_owned()).unwrap()
}

fn secret_of(response: Result<Response, Fault>) -> (StoredSecret, Option<SecretBytes>) {
    match response {
        Ok(Response::Secret { stored, exported }) => (stored, exported),
        other => panic!("{:?}", other.err()),
    }
}

pub fn request_fault<T>(result: Result<T, Fault>) -> String {
    match result {
        Err(Fault::Request(reason)) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was done"),
    }
}

impl Custodian {
    pub fn import(&mut self, algorithm: Algorithm, seed: &[u8]) -> StoredSecret {
        let (wrapped, exported) = secret_of(self.call(Request::Import {
            algorithm,
            seed: SecretBytes::new(seed.to_vec()),
            custody: Custody::Wrapped,
        }));
        assert!(exported.is_none());
        wrapped
    }

    pub fn seal(&mut self, rows: &[Row]) -> Vec<SealedBytes> {
        sealed(&self.seal_rows(&[], &[], rows).unwrap(), rows)
    }

    pub fn seal_rows(
        &mut self,
        standing: &[SealedBytes],
        replaces: &[u8],
        rows: &[Row],
    ) -> Result<SealedRows, Fault> {
        let outcome = outcome(replaces, rows);
        match self.call(Request::Seal(SealRows { standing: standing.to_vec(), outcome }))? {
            Response::Sealed(sealed) => Ok(sealed),
            _ => panic!("another response"),
        }
    }

    pub fn sum(&mut self, rows: &[SealedBytes]) -> TableSums {
        match self.call(Request::Sum(rows.to_vec())) {
            Ok(Response::Sum(sum)) => sum,
            other => panic!("{:?}", other.err()),
        }
    }

    pub fn check(&mut self, check: CheckOtp) -> Result<(Option<u16>, SealedRows), Fault> {
        match self.call(Request::CheckOtp(check))? {
            Response::Checked { matched, sealed, attestation: None } => Ok((matched, sealed)),
            _ => panic!("another response"),
        }
    }

    /// The RFC's seed as a credential, with its state and account.
    pub fn enrolled(&mut self) -> Vec<SealedBytes> {
        let wrapped = self.import(Algorithm::Sha1, SEED);
        self.seal(&[credential(Algorithm::Sha1, 6, Some(wrapped)), state(1), account(1)])
    }
}

pub fn sealed(seals: &SealedRows, rows: &[Row]) -> Vec<SealedBytes> {
    assert_eq!(seals.seals.len(), rows.len());
    let pairs = rows.iter().zip(seals.seals.iter().cloned());
    pairs.map(|(row, seal)| SealedBytes { bytes: row.encode(), seal }).collect()
}

pub fn outcome(replaces: &[u8], rows: &[Row]) -> Outcome {
    Outcome { replaces: replaces.to_vec(), rows: rows.iter().map(Row::encode).collect() }
}

fn counter(counter: u64) -> Factor {
    Factor { counter: Some(counter), time_step: None }
}

/// Of the credential at position 0, the state at 1 and the account at 2. Factors of `repeats` are
/// repeats; each outcome writes other versions, so that one shows from another.
pub fn check(standing: &[SealedBytes], codes: &[&str], factors: &[u64], repeats: &[u64]) -> CheckOtp {
    let candidate = |factor: &u64| Candidate {
        factor: counter(*factor),
        rows: (!repeats.contains(factor)).then(|| vec![state(factor.wrapping_add(100)).encode()]),
    };
    CheckOtp {
        standing: standing.to_vec(),
        codes: codes.iter().map(|code| otp(code)).collect(),
        challenge: None,
        candidates: factors.iter().map(candidate).collect(),
        accepted: outcome(&[1, 2], &[account(2)]),
        repeated: outcome(&[], &[]),
        missed: outcome(&[1, 2], &[state(2), account(3)]),
        attest: None,
    }
}

fn vectors(text: &str) -> Vec<Value> {
    let document: Value = serde_json::from_str(text).unwrap();
    document["vectors"].as_array().unwrap().clone()
}

#[test]
fn the_rfcs_codes_verify_through_the_hsm() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let hotp = vectors(include_str!("../vectors/hotp.json")).into_iter().map(|v| (v["counter"].as_u64(), v));
    let totp = vectors(include_str!("../vectors/totp.json")).into_iter().map(|v| {
        let step = time_step(v["unix_time"].as_u64().unwrap() * 1_000, v["period"].as_u64().unwrap() as u32);
        (Some(step), v)
    });
    let mut count = 0;
    for (factor, vector) in hotp.chain(totp) {
        let factor = factor.unwrap();
        let seed = data_encoding::HEXLOWER.decode(vector["key_hex"].as_str().unwrap().as_bytes()).unwrap();
        let algorithm: Algorithm = serde_json::from_value(vector["algorithm"].clone()).unwrap();
        let wrapped = custodian.import(algorithm, &seed);
        assert_eq!(wrapped.parts().0, 1);
        assert_eq!(wrapped.parts().1.len(), seed.len().next_multiple_of(8) + 8);
        let digits = vector["digits"].as_u64().unwrap() as u8;
        let standing = custodian.seal(&[credential(algorithm, digits, Some(wrapped)), state(1), account(1)]);
        let code = vector["expected"].as_str().unwrap();
        let (matched, _) = custodian.check(check(&standing, &[code], &[factor], &[])).unwrap();
        assert_eq!(matched, Some(0), "{vector}");
        let (matched, _) = custodian.check(check(&standing, &[code], &[factor + 1], &[])).unwrap();
        assert_eq!(matched, None, "{vector}");
        count += 1;
    }
    assert_eq!(count, 28);
}

#[test]
fn the_first_match_decides_and_each_outcome_seals_its_own_rows() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let before = custodian.sum(&standing);
    // Counters 0, 1 and 2 give 755224, 287082 and 359152 (RFC 4226, appendix D).
    for (code, repeats, matched, replaced, written) in [
        ("287082", &[][..], Some(1), true, vec![state(101), account(2)]),
        ("359152", &[0][..], Some(2), true, vec![state(102), account(2)]),
        ("755224", &[0][..], Some(0), false, vec![]),
        ("755225", &[0][..], None, true, vec![state(2), account(3)]),
        // Counter 3's code, which is not among the candidates.
        ("969429", &[][..], None, true, vec![state(2), account(3)]),
    ] {
        let (which, seals) = custodian.check(check(&standing, &[code], &[0, 1, 2], repeats)).unwrap();
        assert_eq!(which, matched, "{code}");
        let mut after = standing.clone();
        if replaced {
            after.truncate(1);
        }
        after.extend(sealed(&seals, &written));
        // Sum checks the seals, too.
        assert_eq!(before.plus(&seals.sum_change), custodian.sum(&after), "{code}");
    }
    let twice = check(&standing, &["287082"], &[1, 1], &[]);
    assert_eq!(custodian.check(twice).unwrap().0, Some(0));
    let none = check(&standing, &["287082"], &[], &[]);
    assert_eq!(custodian.check(none).unwrap().0, None);
}

#[test]
fn two_codes_must_be_consecutive() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    for (codes, matched) in [
        (["287082", "359152"], Some(1)),
        (["755224", "287082"], Some(0)),
        (["287082", "969429"], None),
        (["287082", "287082"], None),
        (["359152", "287082"], None),
        (["000000", "359152"], None),
    ] {
        let (which, _) = custodian.check(check(&standing, &codes, &[0, 1, 2], &[])).unwrap();
        assert_eq!(which, matched, "{codes:?}");
    }
    // After the last factor there is no next one.
    let last = hmac_code(SEED, u64::MAX);
    let first = hmac_code(SEED, 0);
    let (which, _) = custodian.check(check(&standing, &[&last, &first], &[u64::MAX], &[])).unwrap();
    assert_eq!(which, None);
    let (which, _) = custodian.check(check(&standing, &[&last], &[u64::MAX], &[])).unwrap();
    assert_eq!(which, Some(0));
}

fn hmac_code(seed: &[u8], factor: u64) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(seed).unwrap();
    mac.update(&factor.to_be_bytes());
    let code = truncate(&mac.finalize().into_bytes(), Digits::default()).unwrap();
    (0..1_000_000).map(|n| format!("{n:06}")).find(|text| otp(text).matches(&code)).unwrap()
}

#[test]
fn a_wrong_seal_is_named_by_its_position_whatever_is_asked() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    for position in 0..3 {
        let mut flipped = standing.clone();
        flipped[position].seal.mac[31] ^= 1;
        let mut version = standing.clone();
        version[position].seal.key_version = 2;
        let mut edited = standing.clone();
        edited[position].bytes = account(9).encode();
        for tampered in [flipped, version, edited] {
            let fault = Some(Fault::Seal(position as u8));
            assert_eq!(custodian.check(check(&tampered, &["755224"], &[0], &[])).err(), fault);
            assert_eq!(custodian.seal_rows(&tampered, &[], &[]).err(), fault);
            assert_eq!(custodian.call(Request::Sum(tampered)).err(), fault);
        }
    }
    let mut swapped = standing.clone();
    let seal = swapped[1].seal.clone();
    swapped[1].seal = std::mem::replace(&mut swapped[2].seal, seal);
    assert_eq!(custodian.seal_rows(&swapped, &[], &[]).err(), Some(Fault::Seal(1)));
    // It goes on serving.
    assert_eq!(custodian.check(check(&standing, &["755224"], &[0], &[])).unwrap().0, Some(0));
}

#[test]
fn another_tokens_rows_and_blobs_are_worth_nothing() {
    let (here, there) = (TestToken::made(), TestToken::made());
    let (mut here, mut there) = (here.custodian(), there.custodian());
    let foreign = there.enrolled();
    assert_eq!(here.check(check(&foreign, &["755224"], &[0], &[])).err(), Some(Fault::Seal(0)));
    // Even properly sealed here, a blob from there does not unwrap; the custodian's own do, and it stays.
    let Some(Row::Credential(stolen)) = foreign[0].bytes.decode() else { panic!() };
    let Kind::Otp(stolen) = stolen.kind else { panic!() };
    let standing = here.seal(&[credential(Algorithm::Sha1, 6, stolen.secret), state(1), account(1)]);
    let reason = request_fault(here.check(check(&standing, &["755224"], &[0], &[])));
    // Each module has its own word for it.
    assert!(reason.starts_with("a wrapped secret that does not open (C_UnwrapKey: CKR_"), "{reason}");
    let own = here.enrolled();
    assert_eq!(here.check(check(&own, &["755224"], &[0], &[])).unwrap().0, Some(0));
    assert!(here.end().0.success());
}

#[test]
fn messages_without_sense_are_refused_and_cost_nothing() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let good = || check(&standing, &["755224"], &[0], &[]);
    let wrapped = |blob: usize| StoredSecret::Wrapped { kek_version: 1, blob: vec![7; blob] };

    for rows in [vec![], vec![state(1)], vec![credential(Algorithm::Sha1, 6, None)]] {
        let standing = custodian.seal(&rows);
        let odd = CheckOtp { standing, accepted: outcome(&[], &[]), missed: outcome(&[], &[]), ..good() };
        request_fault(custodian.check(odd));
    }
    for blob in [0, 8, 24, 31, 33, 80] {
        let standing =
            custodian.seal(&[credential(Algorithm::Sha1, 6, Some(wrapped(blob))), state(1), account(1)]);
        let reason = request_fault(custodian.check(CheckOtp { standing, ..good() }));
        assert!(reason.contains("impossible length"), "{blob}: {reason}");
    }
    for codes in [&[][..], &["7552240"], &["755224", "2870822"], &["755224", "287082", "359152"]] {
        let codes = codes.iter().map(|code| otp(code)).collect();
        request_fault(custodian.check(CheckOtp { codes, ..good() }));
    }
    let many = |count| (0..count).map(|factor| Candidate { factor: counter(factor), rows: None }).collect();
    request_fault(custodian.check(CheckOtp { candidates: many(1_025), ..good() }));
    assert!(custodian.check(CheckOtp { candidates: many(1_024), ..good() }).is_ok());
    // Also in outcomes that do not come to pass: whether it is refused must not depend on the code.
    for replaces in [&[3][..], &[255], &[1, 1]] {
        let bad = || outcome(replaces, &[]);
        request_fault(custodian.check(CheckOtp { accepted: bad(), ..good() }));
        request_fault(custodian.check(CheckOtp { repeated: bad(), ..good() }));
        request_fault(custodian.check(CheckOtp { missed: bad(), ..good() }));
        request_fault(custodian.seal_rows(&standing, replaces, &[]));
    }
    let rows = |count| vec![standing[1].clone(); count];
    request_fault(custodian.call(Request::Sum(rows(257))));
    assert!(custodian.call(Request::Sum(rows(256))).is_ok());
    for seed in [0, 15, 65] {
        let seed = SecretBytes::new(vec![1; seed]);
        request_fault(custodian.call(Request::Import {
            algorithm: Algorithm::Sha1,
            seed,
            custody: Custody::Wrapped,
        }));
    }
    assert_eq!(custodian.check(good()).unwrap().0, Some(0));
    let (status, _) = custodian.end();
    assert!(status.success());
}

#[test]
fn seeds_of_any_length_and_hash_are_what_they_were() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for length in [16, 19, 20, 21, 32, 63, 64] {
        let seed: Vec<u8> = (1..=length).collect();
        let wrapped = custodian.import(Algorithm::Sha1, &seed);
        let standing = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(wrapped)), state(1), account(1)]);
        let code = hmac_code(&seed, 5);
        assert_eq!(custodian.check(check(&standing, &[&code], &[4, 5], &[])).unwrap().0, Some(1), "{length}");
    }
}

#[test]
fn a_generated_seed_is_new_each_time_and_leaves_only_when_asked() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for (algorithm, blob_bytes) in [(Algorithm::Sha1, 32), (Algorithm::Sha256, 40), (Algorithm::Sha512, 72)] {
        let mut generate = |export| {
            secret_of(custodian.call(Request::Generate { algorithm, export, custody: Custody::Wrapped }))
        };
        let ((first, none), (second, _)) = (generate(false), generate(false));
        assert!(none.is_none());
        assert_ne!(first, second);
        assert_eq!((first.parts().1.len(), second.parts().1.len()), (blob_bytes, blob_bytes));
        let (_, exported) = generate(true);
        assert_eq!(exported.unwrap().len(), algorithm.output_bytes());
        // It can be used: some code among all of them is right.
        let standing = custodian.seal(&[credential(algorithm, 6, Some(first)), state(1), account(1)]);
        assert!(custodian.check(check(&standing, &["000000"], &[0], &[])).is_ok());
    }
    let (wrapped, seed) = secret_of(custodian.call(Request::Generate {
        algorithm: Algorithm::Sha1,
        export: true,
        custody: Custody::Wrapped,
    }));
    let code = hmac_code(seed.unwrap().expose(), 0);
    let standing = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(wrapped)), state(1), account(1)]);
    assert_eq!(custodian.check(check(&standing, &[&code], &[0], &[])).unwrap().0, Some(0));
}

#[test]
fn a_small_cache_changes_no_answer() {
    let mut token = TestToken::new();
    token.boot.secrets_cached_max = 2;
    let mut custodian = token.custodian();
    let mut enrolled = Vec::new();
    for number in 0..5u8 {
        let seed = [number + 1; 20];
        let wrapped = custodian.import(Algorithm::Sha1, &seed);
        let rows = [credential(Algorithm::Sha1, 6, Some(wrapped)), state(1), account(1)];
        enrolled.push((custodian.seal(&rows), hmac_code(&seed, 0)));
    }
    for _ in 0..3 {
        for (standing, code) in &enrolled {
            assert_eq!(custodian.check(check(standing, &[code], &[0], &[])).unwrap().0, Some(0));
        }
    }
}

#[test]
fn a_rotation_leaves_what_was_sealed_and_wrapped_before() {
    let token = TestToken::new();
    let mut old = token.custodian();
    let standing = old.enrolled();
    let before = old.sum(&standing);
    let fingerprint = |custodian: &mut Custodian| match custodian
        .call(Request::Fingerprint(SecretBytes::new(b"POST /v1".to_vec())))
    {
        Ok(Response::Fingerprints(all)) => all,
        other => panic!("{:?}", other.err()),
    };
    let known = fingerprint(&mut old);
    intrude(&token, "right hsm-authd/kek/v2");
    intrude(&token, "right hsm-authd/row/v2");

    let mut new = token.custodian();
    let both = fingerprint(&mut new);
    assert_eq!((both.len(), &both[1..]), (2, &known[..]), "under every version, the newest first");
    assert_ne!(both[0], both[1]);
    assert_eq!(new.import(Algorithm::Sha1, SEED).parts().0, 2);
    let (matched, seals) = new.check(check(&standing, &["755224"], &[0], &[])).unwrap();
    assert_eq!(matched, Some(0));
    assert!(seals.seals.iter().all(|seal| seal.key_version == 2));
    let mut after = vec![standing[0].clone()];
    after.extend(sealed(&seals, &[state(100), account(2)]));
    assert_eq!(before.plus(&seals.sum_change), new.sum(&after));
    // One that started before meets a version that it does not know, and finds it.
    old.seal_rows(&after, &[], &[]).unwrap();
    let wrapped = new.import(Algorithm::Sha1, SEED);
    let standing = old.seal(&[credential(Algorithm::Sha1, 6, Some(wrapped)), state(1), account(1)]);
    assert!(standing.iter().all(|row| row.seal.key_version == 2), "it uses what it has found");
    assert_eq!(old.check(check(&standing, &["755224"], &[0], &[])).unwrap().0, Some(0));
}

/// Whoever edits the database can name any version: that is tampering, and costs next to nothing.
/// What is answered in the end: the token is looked through once a second.
pub fn once_it_has_looked<T>(mut ask: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ask() {
            Err(Fault::Later) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            answer => return answer,
        }
    }
}

#[test]
fn an_unknown_version_is_tampering_and_cheap() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let mut forged = standing.clone();
    forged[1].seal.key_version = 9;
    let begun = Instant::now();
    for _ in 0..200 {
        assert_eq!(custodian.check(check(&forged, &["755224"], &[0], &[])).err(), Some(Fault::Seal(1)));
    }
    let forged_took = begun.elapsed();
    let begun = Instant::now();
    for _ in 0..200 {
        custodian.check(check(&standing, &["000000"], &[0], &[])).unwrap();
    }
    let right_took = begun.elapsed();
    assert!(forged_took < right_took * 2, "{forged_took:?} against {right_took:?}");

    // A secret of a key that is not there is no reason for a custodian to end: the next one has it neither.
    let blob = custodian.import(Algorithm::Sha1, SEED).parts().1.to_vec();
    let gone = StoredSecret::Wrapped { kek_version: 9, blob };
    let rows = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(gone)), state(1), account(1)]);
    match once_it_has_looked(|| custodian.check(check(&rows, &["755224"], &[0], &[]))) {
        Err(Fault::Request(reason)) => assert!(reason.contains("no key hsm-authd/kek/v9"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(custodian.end().0.success());
}

#[test]
fn fingerprints_seals_and_sums_have_keys_of_their_own() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let row = account(1);
    let standing = custodian.seal(std::slice::from_ref(&row));
    let bytes = row.encode().as_bytes().to_vec();
    let Ok(Response::Fingerprints(all)) = custodian.call(Request::Fingerprint(SecretBytes::new(bytes)))
    else {
        panic!()
    };
    let fingerprint = all[0];
    let sum = custodian.sum(&standing);
    assert_ne!(fingerprint.0, standing[0].seal.mac);
    assert_ne!(sum.total().first(), standing[0].seal.mac);
    assert_ne!(sum.total().first(), fingerprint.0);
    assert_eq!(custodian.sum(&[]), TableSums::default());
}

#[test]
fn a_row_of_a_table_may_be_anything_besides_when_it_is_sealed() {
    // The table is read from its beginning, for its sum. What it says besides is the front's.
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let row = |row: &[u8]| -> RowBytes {
        decode(&postcard::to_allocvec(&[b"\x10hsm-authd/row/v1", row].concat()).unwrap()).unwrap()
    };
    for bad in [row(&[200, 1, 2]), row(&[]), decode(&[3, 1, 2, 3]).unwrap(), decode(&[0]).unwrap()] {
        let outcome = Outcome { replaces: vec![], rows: vec![bad] };
        let refused = custodian.call(Request::Seal(SealRows { standing: vec![], outcome })).err();
        assert_eq!(refused, Some(Fault::Request("a row of no table".to_owned())));
    }
    let bytes = row(&[2, 2, 3]);
    let outcome = Outcome { replaces: vec![], rows: vec![bytes.clone()] };
    let Ok(Response::Sealed(seals)) = custodian.call(Request::Seal(SealRows { standing: vec![], outcome }))
    else {
        panic!()
    };
    let row = SealedBytes { bytes, seal: seals.seals[0].clone() };
    assert_eq!(custodian.sum(&[row]), seals.sum_change);
}
