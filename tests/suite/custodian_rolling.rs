//! Rolling credentials inside a custodian, against SoftHSM: the known values, what leaves it and when, and messages
//! without sense.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hsm_authd::domain::attestation::Attestation;
use hsm_authd::domain::credential::{Credential, CredentialState, Kind, Status};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::domain::rolling::{Binding, Rolling};
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::transaction::{Method, State, Transaction};
use hsm_authd::hsm::messages::{
    Attest, CheckOtp, CheckRolling, Fault, OpenedEpoch, Outcome, Request, Response, RollingClaim, SealedRows,
};
use hsm_authd::secret::SecretBytes;
use serde_json::Value;

use crate::custodian::{account, check as otp_check, outcome, request_fault, sealed, tenant};
use crate::rolling_terminal::Code;
use crate::store_samples;
use crate::token::{Custodian, TestToken};

const SECRET: [u8; 32] = [0xc0; 32];
const IDENTITY_KEY: [u8; 32] = [0x1d; 32];
const OTHER: CredentialId = CredentialId::from_random([2; 16]);

/// The golden vectors' credential; the tests' own rows are of it, too.
fn id() -> CredentialId {
    CredentialId::parse("cred_00000000000000000000000009").unwrap()
}

fn vectors() -> Value {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/methods.json")).unwrap();
    vectors["rolling"].clone()
}

fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::new(bytes.to_vec())
}

fn code(epoch: u64) -> Code {
    Code::derived(&SECRET, &id().to_string(), epoch)
}

fn credential(rolling: Rolling) -> Row {
    Row::Credential(Credential {
        id: id(),
        tenant: tenant(),
        account: "acct-1".to_owned().try_into().unwrap(),
        version: 2,
        created_unix_ms: 0,
        kind: Kind::Rolling(rolling),
        deleted_unix_ms: None,
    })
}

fn state(status: Status, binding_version: u64) -> CredentialState {
    CredentialState { status, next_factor: binding_version, ..CredentialState::new(id(), tenant(), 0, 0) }
}

/// As it is after so many uses.
fn binding(epoch: u64) -> Binding {
    let lookup = |epoch| code(epoch).lookup().try_into().unwrap();
    (2..=epoch).fold(Binding::first(id(), tenant(), lookup(1)), |binding, epoch| binding.used(lookup(epoch)))
}

fn transaction() -> Transaction {
    let mut transaction = Transaction {
        method: Method::RollingPassword,
        tenant: tenant(),
        ..store_samples::transaction(5, "acct-1", 1_000)
    };
    transaction.terms.payer = None;
    transaction
}

fn attest() -> Option<Attest> {
    Some(Attest { transaction: transaction().id, tenant: tenant(), claims: b"{}".to_vec() })
}

struct Checked {
    valid: bool,
    sealed: SealedRows,
    attestation: Option<String>,
    opened: Option<OpenedEpoch>,
}

impl Custodian {
    fn rolling(&mut self) -> Rolling {
        let mut rolling = Rolling::new(self.import(Algorithm::Sha256, &SECRET), [5; 16]);
        rolling.identity_key = Some(self.import(Algorithm::Sha256, &IDENTITY_KEY));
        rolling
    }

    /// Credential, state, account, and these.
    fn rows(&mut self, binding: Option<Binding>, others: &[Row]) -> Vec<SealedBytes> {
        let rolling = self.rolling();
        let status = if binding.is_some() { Status::Active } else { Status::Pending };
        let version = binding.as_ref().map_or(0, |binding| binding.version);
        let mut rows = vec![credential(rolling), state(status, version).into(), account(1)];
        rows.extend(others.iter().cloned());
        rows.extend(binding.map(Row::from));
        self.seal(&rows)
    }

    /// With the transaction before the binding.
    fn payment(&mut self, epoch: u64) -> Vec<SealedBytes> {
        self.rows(Some(binding(epoch)), &[transaction().into()])
    }

    fn check_rolling(&mut self, check: CheckRolling) -> Result<Checked, Fault> {
        match self.call(Request::CheckRolling(check))? {
            Response::RollingChecked { valid, sealed, attestation, opened } => {
                Ok(Checked { valid, sealed, attestation, opened })
            }
            _ => panic!("another response"),
        }
    }

    fn open_epoch(&mut self, standing: &[SealedBytes]) -> Result<OpenedEpoch, Fault> {
        match self.call(Request::OpenEpoch { standing: standing.to_vec() })? {
            Response::Epoch(opened) => Ok(opened),
            _ => panic!("another response"),
        }
    }
}

fn written(binding_version: u64) -> Vec<Row> {
    vec![state(Status::Active, binding_version).into()]
}

fn check(standing: &[SealedBytes], claim: RollingClaim) -> CheckRolling {
    let is_payment = matches!(claim, RollingClaim::Payment { .. });
    let replaces: &[u8] = if is_payment { &[1, 4] } else { &[] };
    CheckRolling {
        standing: standing.to_vec(),
        accepted: outcome(replaces, &if is_payment { written(9) } else { Vec::new() }),
        missed: outcome(&[1, 2], &[state(Status::Active, 7).into(), account(2)]),
        attest: if is_payment { attest() } else { None },
        claim,
    }
}

fn payment(proof: &[u8]) -> RollingClaim {
    RollingClaim::Payment { proof: secret(proof) }
}

fn rotation(epoch: u64, proof: &[u8]) -> RollingClaim {
    RollingClaim::Rotation { epoch, proof: secret(proof) }
}

fn right(epoch: u64) -> Vec<u8> {
    code(epoch).proof(&IDENTITY_KEY, &transaction().digest())
}

fn assert_opened(opened: Option<OpenedEpoch>, epoch: u64) {
    let opened = opened.expect("an epoch");
    assert_eq!((opened.epoch, opened.lookup.to_vec()), (epoch, code(epoch).lookup()));
    assert_eq!(opened.temporary_code.expose(), code(epoch).0);
}

#[test]
fn the_known_values_come_out_of_the_hsm() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let golden = vectors();
    let kept = bytes(&golden["secret_hex"]);
    assert_eq!((&*kept, golden["credential"].as_str()), (&SECRET[..], Some(&*id().to_string())));
    let epochs = golden["epochs"].as_array().unwrap();
    // T(1) and its lookup, before there is a binding.
    let pending = custodian.rows(None, &[]);
    let first = custodian.open_epoch(&pending).unwrap();
    assert_eq!(first.temporary_code.expose(), bytes(&epochs[0]["temporary_code"]));
    assert_eq!(first.lookup.to_vec(), bytes(&epochs[0]["lookup_hex"]));
    // The golden digest is of another transaction: what is made of it by these bytes is as known, and those bytes made
    // of the transaction here are what the custodian takes.
    let digest: [u8; 32] = bytes(&golden["digest"]).try_into().unwrap();
    for epoch in epochs {
        let number = epoch["epoch"].as_u64().unwrap();
        let code = code(number);
        assert_eq!(code.0, bytes(&epoch["temporary_code"]));
        assert_eq!(code.proof(&bytes(&golden["identity_key_hex"]), &digest), bytes(&epoch["proof_hex"]));
        let password = code.password(&bytes(&golden["identity_key_hex"]), &digest);
        assert_eq!(password["password"], epoch["password"]);
        let lookup = &BASE64URL_NOPAD.decode(epoch["password"].as_str().unwrap().as_bytes()).unwrap()[..12];
        assert_eq!(lookup, binding(number).lookup);

        let standing = custodian.rows(Some(binding(number)), &[]);
        assert_opened(Some(custodian.open_epoch(&standing).unwrap()), number);
        let claim = rotation(number, &bytes(&epoch["rotation_proof_hex"]));
        assert!(custodian.check_rolling(check(&standing, claim)).unwrap().valid, "{number}");
        let standing = custodian.payment(number);
        let paid = custodian.check_rolling(check(&standing, payment(&right(number)))).unwrap();
        assert!(paid.valid);
        assert_opened(paid.opened, number + 1);
    }
}

/// A payment whose signing input has the golden digest cannot be made; one with the golden identity key can.
#[test]
fn the_golden_identity_key_proves_as_it_does_elsewhere() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let key = bytes(&vectors()["identity_key_hex"]);
    let mut rolling = custodian.rolling();
    rolling.identity_key = Some(custodian.import(Algorithm::Sha256, &key));
    let rows = [
        credential(rolling),
        state(Status::Active, 1).into(),
        account(1),
        transaction().into(),
        binding(1).into(),
    ];
    let standing = custodian.seal(&rows);
    let proof = code(1).proof(&key, &transaction().digest());
    assert!(custodian.check_rolling(check(&standing, payment(&proof))).unwrap().valid);
    assert!(!custodian.check_rolling(check(&standing, payment(&right(1)))).unwrap().valid);
}

#[test]
fn an_accepted_payment_writes_the_next_binding_and_the_attestation() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.payment(3);
    let before = custodian.sum(&standing);
    let paid = custodian.check_rolling(check(&standing, payment(&right(3)))).unwrap();
    assert!(paid.valid);
    assert_opened(paid.opened, 4);
    let jws = paid.attestation.unwrap();
    let attestation = Attestation { transaction: transaction().id, tenant: tenant(), version: 1, jws };
    let mut rows = written(9);
    rows.extend([binding(4).into(), attestation.into()]);
    let mut after = vec![standing[0].clone(), standing[2].clone(), standing[3].clone()];
    after.extend(sealed(&paid.sealed, &rows));
    // Sum checks the seals, too.
    assert_eq!(before.plus(&paid.sealed.sum_change), custodian.sum(&after));

    // Each bit of the proof counts, and a miss opens nothing and attests nothing.
    let missed_rows = [Row::from(state(Status::Active, 7)), account(2)];
    for bit in 0..128 {
        let mut proof = right(3);
        proof[bit / 8] ^= 1 << (bit % 8);
        let missed = custodian.check_rolling(check(&standing, payment(&proof))).unwrap();
        assert!(!missed.valid && missed.opened.is_none() && missed.attestation.is_none(), "{bit}");
        let mut after = vec![standing[0].clone(), standing[3].clone(), standing[4].clone()];
        after.extend(sealed(&missed.sealed, &missed_rows));
        assert_eq!(before.plus(&missed.sealed.sum_change), custodian.sum(&after));
    }
    // Of other epochs, another digest, another identity key.
    let other = Transaction { id: store_samples::transaction_id(6), ..transaction() }.digest();
    for proof in [
        right(2),
        right(4),
        code(3).proof(&IDENTITY_KEY, &other),
        code(3).proof(&[0; 32], &transaction().digest()),
    ] {
        assert!(!custodian.check_rolling(check(&standing, payment(&proof))).unwrap().valid);
    }
}

/// Two keys take part in a payment, and the cache may hold but one.
#[test]
fn a_small_cache_changes_no_password() {
    for cached_max in [1, 2] {
        let mut token = TestToken::new();
        token.boot.secrets_cached_max = cached_max;
        let mut custodian = token.custodian();
        for epoch in [3, 4, 5] {
            let standing = custodian.payment(epoch);
            // The secret alone is in the cache, as after an activation or a rotation.
            let _ = custodian.open_epoch(&standing[..4]);
            let paid = custodian.check_rolling(check(&standing, payment(&right(epoch)))).unwrap();
            assert!(paid.valid, "{cached_max}");
            assert_opened(paid.opened, epoch + 1);
            assert!(!custodian.check_rolling(check(&standing, payment(&right(9)))).unwrap().valid);
        }
    }
}

#[test]
fn a_temporary_code_leaves_until_it_is_acknowledged() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let proof = |epoch| code(epoch).rotation_proof();
    let open = custodian.rows(Some(binding(3)), &[]);
    let acknowledged = custodian.rows(Some(binding(3).acknowledged()), &[]);
    for (standing, epoch, shown, valid, opens) in [
        (&open, 2, 2, true, Some(3)),
        (&open, 2, 3, false, None),
        (&open, 2, 1, false, None),
        (&open, 3, 3, true, None),
        (&open, 3, 2, false, None),
        (&acknowledged, 3, 3, true, None),
        (&acknowledged, 3, 2, false, None),
    ] {
        let checked = custodian.check_rolling(check(standing, rotation(epoch, &proof(shown)))).unwrap();
        assert_eq!((checked.valid, checked.opened.is_some()), (valid, opens.is_some()), "{epoch} {shown}");
        if let Some(opens) = opens {
            assert_opened(checked.opened, opens);
        }
    }
    for (standing, epoch) in [(&acknowledged, 2), (&open, 1), (&open, 4), (&open, 0), (&open, u64::MAX)] {
        for shown in [proof(2), proof(3), vec![0; 32]] {
            let reason = request_fault(custodian.check_rolling(check(standing, rotation(epoch, &shown))));
            assert!(reason.contains("no use"), "{epoch}: {reason}");
        }
    }
    assert_opened(Some(custodian.open_epoch(&open).unwrap()), 3);
    assert!(request_fault(custodian.open_epoch(&acknowledged)).contains("acknowledged"));

    // By the identity key the first one alone.
    let first = custodian.rows(Some(binding(1)), &[]);
    let checked =
        custodian.check_rolling(check(&first, RollingClaim::IdentityKey(secret(&IDENTITY_KEY)))).unwrap();
    assert!(checked.valid);
    assert_opened(checked.opened, 1);
    for place in 0..32 {
        let mut key = IDENTITY_KEY;
        key[place] ^= 0x80;
        let checked =
            custodian.check_rolling(check(&first, RollingClaim::IdentityKey(secret(&key)))).unwrap();
        assert!(!checked.valid && checked.opened.is_none());
    }
    let after = custodian.rows(Some(binding(1).acknowledged()), &[]);
    for standing in [&after, &open] {
        let claim = RollingClaim::IdentityKey(secret(&IDENTITY_KEY));
        assert!(request_fault(custodian.check_rolling(check(standing, claim))).contains("acknowledged"));
    }
}

#[test]
fn a_binding_that_is_not_the_credentials_present_one_is_tampered_with() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    // An old one with its right seal, beside a state that knows a later one.
    let rolling = custodian.rolling();
    for old in [binding(1), binding(2), binding(3), binding(2).acknowledged()] {
        let rows = [
            credential(rolling.clone()),
            state(Status::Active, 4).into(),
            account(1),
            transaction().into(),
            old.clone().into(),
        ];
        let standing = custodian.seal(&rows);
        if old.version == 4 {
            continue;
        }
        for claim in [payment(&right(old.epoch)), rotation(old.epoch, &code(old.epoch).rotation_proof())] {
            let refused = custodian.check_rolling(check(&standing, claim)).map(|checked| checked.valid);
            assert_eq!(refused, Err(Fault::Seal(4)), "{old:?}");
        }
        assert_eq!(custodian.open_epoch(&standing).map(|opened| opened.epoch), Err(Fault::Seal(4)));
    }
    // One of an earlier secret, whose version happens to be the same.
    let other = Rolling { secret: Some(custodian.import(Algorithm::Sha256, &[1; 32])), ..rolling };
    let rows = [
        credential(other),
        state(Status::Active, 2).into(),
        account(1),
        transaction().into(),
        binding(2).into(),
    ];
    let standing = custodian.seal(&rows);
    for claim in [payment(&right(2)), rotation(1, &code(1).rotation_proof())] {
        let refused = custodian.check_rolling(check(&standing, claim)).map(|checked| checked.valid);
        assert_eq!(refused, Err(Fault::Seal(4)));
    }
    assert_eq!(custodian.open_epoch(&standing).map(|opened| opened.epoch), Err(Fault::Seal(4)));
    // And one whose seal is wrong.
    let mut standing = custodian.payment(2);
    standing[4].seal.mac[7] ^= 1;
    let refused = custodian.check_rolling(check(&standing, payment(&right(2)))).map(|checked| checked.valid);
    assert_eq!(refused, Err(Fault::Seal(4)));
}

#[test]
fn messages_without_sense_are_refused_whether_the_claim_is_right_or_not() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let standing = custodian.payment(2);
    let unbound = custodian.rows(None, &[transaction().into()]);
    let hotp = custodian.enrolled();
    let others_binding = Binding { credential: OTHER, ..binding(2) };
    let with_others = custodian.rows(Some(others_binding), &[transaction().into()]);
    let tenants = Binding { tenant: store_samples::tenant("bank-b"), ..binding(2) };
    let with_tenants = custodian.rows(Some(tenants), &[transaction().into()]);
    let of = |custodian: &mut Custodian, transaction: Transaction| {
        custodian.rows(Some(binding(2)), &[transaction.into()])
    };
    let device = of(
        &mut custodian,
        Transaction { method: store_samples::transaction(5, "a", 1).method, ..transaction() },
    );
    let ended = of(&mut custodian, Transaction { state: State::Approved, ..transaction() });
    let tombstone = {
        let rolling = Rolling { secret: None, ..custodian.rolling() };
        custodian.seal(&[
            credential(rolling),
            state(Status::Active, 2).into(),
            account(1),
            transaction().into(),
            binding(2).into(),
        ])
    };
    let keyless = {
        let rolling = Rolling { identity_key: None, ..custodian.rolling() };
        custodian.seal(&[
            credential(rolling),
            state(Status::Active, 2).into(),
            account(1),
            transaction().into(),
            binding(2).into(),
        ])
    };
    let mut stateless = standing.clone();
    stateless.remove(1);
    for proof in [right(2), vec![0; 16]] {
        let check = |standing: &[SealedBytes]| check(standing, payment(&proof));
        let none: Outcome = outcome(&[], &[]);
        for (message, said) in [
            (check(&[]), "no credential"),
            (check(&hotp), "no temporary codes"),
            (check(&unbound), "not bound"),
            (check(&with_others), "another credential's"),
            (check(&with_tenants), "another credential's"),
            (check(&stateless), "state is not there"),
            (check(&device), "no transaction that the credential is asked about"),
            (check(&ended), "no transaction that the credential is asked about"),
            (check(&tombstone), "no secret"),
            (check(&keyless), "no identity key"),
            (CheckRolling { attest: None, ..check(&standing) }, "not attested"),
            (CheckRolling { accepted: none, ..check(&standing) }, "leaves its binding"),
            (CheckRolling { missed: outcome(&[9], &[]), ..check(&standing) }, "no standing row 9"),
            (CheckRolling { claim: payment(&proof[..15]), ..check(&standing) }, "another length"),
            (
                CheckRolling { claim: payment(&[&proof[..], &[0]].concat()), ..check(&standing) },
                "another length",
            ),
        ] {
            let reason = request_fault(custodian.check_rolling(message));
            assert!(reason.contains(said), "{said}: {reason}");
        }
    }
    for claim in [|| rotation(2, &[0; 32]), || RollingClaim::IdentityKey(secret(&[0; 32]))] {
        let attested = CheckRolling { attest: attest(), ..check(&standing, claim()) };
        assert!(request_fault(custodian.check_rolling(attested)).contains("no payment"));
    }
    for claim in [rotation(2, &[0; 31]), rotation(2, &[0; 33]), RollingClaim::IdentityKey(secret(&[0; 31]))] {
        assert!(request_fault(custodian.check_rolling(check(&standing, claim))).contains("another length"));
    }
    assert!(request_fault(custodian.open_epoch(&hotp)).contains("no temporary codes"));
    assert!(request_fault(custodian.open_epoch(&[])).contains("no credential"));
    // Bound, and said to be none: nothing leaves.
    let mut without = custodian.rows(Some(binding(2)), &[]);
    without.pop();
    assert!(request_fault(custodian.open_epoch(&without)).contains("not bound"));
    // It goes on serving.
    assert!(custodian.check_rolling(check(&standing, payment(&right(2)))).unwrap().valid);
    let (status, words) = custodian.end();
    assert!(status.success(), "{words}");
}

/// Who has a token and its code has no approval of what takes a password, nor the other way round.
#[test]
fn a_code_of_another_type_attests_no_transaction_that_takes_a_password() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let mut standing = custodian.enrolled();
    standing.extend(custodian.seal(&[transaction().into()]));
    let check = CheckOtp { attest: attest(), ..otp_check(&standing, &["755224"], &[0], &[]) };
    let refused = custodian.call(Request::CheckOtp(check));
    assert!(request_fault(refused).contains("no transaction that the credential is asked about"));
}
