//! One custodian whose HSM lies: it says that all is well, and is wrong. Whatever the lie, nobody is let in by it, nobody
//! is turned away by it who was right, and nothing is kept that is of no use; and when it is over, all is as before.

use fault_module::sys::{CKR_GENERAL_ERROR, CKR_OK};
use fault_module::{Fault, Function, Kind, Length};
use hsm_authd::domain::checkpoint::Note;
use hsm_authd::domain::credential::{ObjectId, StoredSecret};
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::domain::row::SealedBytes;
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::hsm::messages::{self, Call, CheckOtp, Custody, Reply, Request, Response};
use hsm_authd::secret::SecretBytes;

use crate::anchor::head;
use crate::custodian::{account, check, credential, state};
use crate::custodian_ocra::{self, ONE};
use crate::custodian_signatures;
use crate::daemon::code;
use crate::fault_module::FaultModule;
use crate::intruder::intrude;
use crate::ocra_token::{OcraToken, question};
use crate::signers::{Device, PAYLOAD, hex, rsa_keys};
use crate::token::{Custodian, TestToken};

const SEED: &[u8] = b"a seed of the lies..";

/// A token behind a fault module, and a custodian that is replaced when it has ended.
struct World {
    token: TestToken,
    faults: FaultModule,
    custodian: Option<Custodian>,
    /// How often a lie was met.
    met: u64,
    /// What came of which lie that must not.
    wrong: Vec<String>,
}

/// What a front would make of an answer.
type Answer = Option<Result<Response, messages::Fault>>;

impl World {
    fn new() -> Self {
        let mut token = TestToken::new();
        // What is verified is unwrapped before, if something else was verified meanwhile.
        token.boot.secrets_cached_max = 1;
        let faults = token.with_faults();
        Self { token, faults, custodian: None, met: 0, wrong: Vec::new() }
    }

    fn custodian(&mut self) -> &mut Custodian {
        self.custodian.get_or_insert_with(|| self.token.custodian())
    }

    /// `None`: it hung up.
    fn ask(&mut self, request: Request) -> Answer {
        let custodian = self.custodian();
        custodian.send(&Call { repeated: false, id: 0, newest: Default::default(), request });
        let result = custodian.receive::<Reply>().map(|reply| reply.result);
        if matches!(result, None | Some(Err(messages::Fault::Hsm(_)))) {
            self.custodian = None;
        }
        result
    }

    /// Asks while the HSM lies.
    fn ask_under(&mut self, lie: Fault, request: Request) -> Answer {
        self.custodian();
        let set = self.faults.set(lie);
        let answer = self.ask(request);
        self.met += set.count();
        set.lift();
        answer
    }

    fn check(&mut self, lie: Option<Fault>, request: CheckOtp) -> Verdict {
        let request = Request::CheckOtp(request);
        Verdict::of(match lie {
            Some(lie) => self.ask_under(lie, request),
            None => self.ask(request),
        })
    }

    fn enrolled(&mut self, stored: StoredSecret) -> Vec<SealedBytes> {
        self.custodian().seal(&[credential(Algorithm::Sha1, 6, Some(stored)), state(1), account(1)])
    }

    /// Whether that secret makes this seed's codes, once nobody lies any more.
    fn is_of(&mut self, stored: StoredSecret, seed: &[u8]) -> bool {
        let standing = self.enrolled(stored);
        self.check(None, check(&standing, &[&code(seed, 0, 6)], &[0], &[])) == Verdict::Yes
    }

    fn expect(&mut self, is_right: bool, what: impl FnOnce() -> String) {
        if !is_right {
            self.wrong.push(what());
        }
    }

    /// Every lie did what it was to do, and none of them had its way.
    fn end(self, met_min: u64) {
        assert!(self.wrong.is_empty(), "{} cases:\n{}", self.wrong.len(), self.wrong.join("\n"));
        assert!(self.met >= met_min, "{} lies were met", self.met);
        println!("{} lies were met", self.met);
    }
}

/// What came of a check.
#[derive(Debug, PartialEq)]
enum Verdict {
    Yes,
    No,
    /// It may be asked again, of another.
    Failed(String),
    /// It is said to be wrong without being a no: that somebody tampered, or that the message is wrong.
    Blamed(String),
}

impl Verdict {
    fn of(answer: Answer) -> Self {
        match answer {
            Some(Ok(Response::Checked { matched: Some(_), .. })) => Self::Yes,
            Some(Ok(Response::Checked { matched: None, .. })) => Self::No,
            Some(Ok(Response::SignatureChecked { valid, .. })) => {
                if valid {
                    Self::Yes
                } else {
                    Self::No
                }
            }
            Some(Ok(_)) => panic!("another response"),
            Some(Err(messages::Fault::Hsm(failure))) => Self::Failed(failure.to_string()),
            Some(Err(blamed)) => Self::Blamed(blamed.to_string()),
            None => Self::Failed("it hung up".to_owned()),
        }
    }
}

/// A module that does nothing, or puts out something else: once at each of the first calls, a few times, and for ever.
fn lies(functions: &[Function]) -> Vec<Fault> {
    let kinds = [
        Kind::Corrupt { bit: 0 },
        Kind::Corrupt { bit: 5 },
        Kind::Corrupt { bit: 155 },
        Kind::Short(Length::LessByOne),
        Kind::Short(Length::To(0)),
        Kind::Fail(CKR_OK),
    ];
    let mut lies = Vec::new();
    for function in functions {
        for kind in kinds.into_iter().filter(|kind| kind.is_possible_in(*function)) {
            let lie = Fault::of(*function, kind);
            lies.extend((1..=5).map(|call| lie.from_call(call).once()));
            lies.extend([2, 3, 5].map(|times| lie.from_call(times + 1).times(times)));
            lies.push(lie);
        }
    }
    lies
}

#[test]
fn no_lie_makes_a_wrong_code_right_or_a_right_one_wrong() {
    use Function::{C_CreateObject, C_DestroyObject, C_GetAttributeValue, C_Sign, C_SignInit, C_UnwrapKey};
    let mut world = World::new();
    let [one, other] = [SEED, b"a seed of another one"].map(|seed| {
        let stored = world.custodian().import(Algorithm::Sha1, seed);
        world.enrolled(stored)
    });
    let right = code(SEED, 3, 6);
    let functions = [C_Sign, C_SignInit, C_UnwrapKey, C_GetAttributeValue, C_DestroyObject, C_CreateObject];
    for lie in lies(&functions) {
        // The one that is right is the last of a few, so that more than one is computed.
        for (code, factors, must_not) in [
            (&right, &[3][..], Verdict::No),
            (&right, &[1, 2, 3][..], Verdict::No),
            (&code(SEED, 4, 6), &[1, 2, 3][..], Verdict::Yes),
        ] {
            // Another one's takes the place of this one's in the cache.
            assert_ne!(world.check(None, check(&other, &["000000"], &[0], &[])), Verdict::Yes);
            let verdict = world.check(Some(lie), check(&one, &[code], factors, &[]));
            let is_right = verdict != must_not && !matches!(verdict, Verdict::Blamed(_));
            world.expect(is_right, || format!("{lie:?}: {factors:?}: {verdict:?}"));
        }
        assert_eq!(world.check(None, check(&one, &[&right], &[3], &[])), Verdict::Yes, "after {lie:?}");
    }
    world.end(100);
}

/// A handle is a number: with a wrong bit it may be that of another key that is there.
#[test]
fn the_handle_of_another_secret_opens_nothing() {
    let mut world = World::new();
    world.token.boot.secrets_cached_max = 100;
    let seeds: Vec<_> = (1..=16u8).map(|number| vec![number; 20]).collect();
    let all: Vec<_> = seeds
        .iter()
        .map(|seed| {
            let stored = world.custodian().import(Algorithm::Sha1, seed);
            world.enrolled(stored)
        })
        .collect();
    let (last, others) = all.split_last().unwrap();
    let right = code(&seeds[15], 0, 6);
    for bit in 0..6 {
        let lie = Fault::of(Function::C_UnwrapKey, Kind::Corrupt { bit });
        for lie in [lie.once(), lie] {
            world.custodian = None;
            for (standing, seed) in others.iter().zip(&seeds) {
                let right = check(standing, &[&code(seed, 0, 6)], &[0], &[]);
                assert_eq!(world.check(None, right), Verdict::Yes);
            }
            // A no is as bad as a yes: it says that the code was compared with another secret's.
            let verdict = world.check(Some(lie), check(last, &[&right], &[0], &[]));
            let is_right = matches!(verdict, Verdict::Yes | Verdict::Failed(_));
            world.expect(is_right, || format!("{lie:?}: {verdict:?}"));
            assert_eq!(world.check(None, check(last, &[&right], &[0], &[])), Verdict::Yes);
        }
    }
    world.end(12);
}

#[test]
fn nothing_is_kept_that_is_of_no_use() {
    use Function::{
        C_CreateObject, C_DestroyObject, C_GenerateKey, C_GenerateRandom, C_GetAttributeValue, C_Sign,
        C_SignInit, C_UnwrapKey, C_WrapKey,
    };
    let mut world = World::new();
    let mut generated = Vec::new();
    let functions = [
        C_CreateObject,
        C_DestroyObject,
        C_GenerateKey,
        C_GenerateRandom,
        C_GetAttributeValue,
        C_Sign,
        C_SignInit,
        C_UnwrapKey,
        C_WrapKey,
    ];
    let algorithm = Algorithm::Sha1;
    for (number, lie) in lies(&functions).into_iter().enumerate() {
        let resident = Custody::Resident(ObjectId::from_random([number as u8; 16]));
        // A few of them as objects in the HSM, which take longer.
        let custody = if number % 5 == 0 { resident } else { Custody::Wrapped };
        let import = Request::Import { algorithm, seed: SecretBytes::new(SEED.to_vec()), custody };
        match world.ask_under(lie, import) {
            Some(Ok(Response::Secret { stored, .. })) => {
                let is_of = world.is_of(stored, SEED);
                world.expect(is_of, || format!("{lie:?}: imported"));
            }
            Some(Ok(_)) => panic!("another response"),
            Some(Err(messages::Fault::Hsm(_))) | None => {}
            // What an object in the HSM is not as asked for, it may be for ever: that custodian is not ended for it.
            Some(Err(messages::Fault::Request(words)))
                if custody == resident && words.contains("not as asked for") => {}
            Some(Err(blamed)) => world.expect(false, || format!("{lie:?}: {blamed}")),
        }
        for export in [true, false] {
            let generate = Request::Generate { algorithm, export, custody: Custody::Wrapped };
            let Some(Ok(Response::Secret { stored, exported })) = world.ask_under(lie, generate) else {
                continue;
            };
            let is_new = !generated.contains(&stored);
            world.expect(is_new, || format!("{lie:?}: generated twice"));
            generated.push(stored.clone());
            match exported {
                Some(seed) => {
                    let seed = seed.expose();
                    world.expect(*seed != vec![0; seed.len()], || format!("{lie:?}: zeros"));
                    let is_of = world.is_of(stored, seed);
                    world.expect(is_of, || format!("{lie:?}: exported"));
                }
                None => {
                    let standing = world.enrolled(stored);
                    let verdict = world.check(None, check(&standing, &["000000"], &[0], &[]));
                    let opens = matches!(verdict, Verdict::Yes | Verdict::No);
                    world.expect(opens, || format!("{lie:?}: generated: {verdict:?}"));
                }
            }
        }
    }
    world.end(100);
}

#[test]
fn random_bytes_are_not_the_hsms_alone() {
    let mut world = World::new();
    let mut drawn: Vec<[u8; 32]> = Vec::new();
    let mut refused = 0;
    for lie in
        [Kind::Fail(CKR_OK), Kind::Short(Length::To(0)), Kind::Short(Length::To(8)), Kind::Corrupt { bit: 9 }]
    {
        for _ in 0..3 {
            match world.ask_under(Fault::of(Function::C_GenerateRandom, lie), Request::Random) {
                Some(Ok(Response::Random(bytes))) => {
                    world.expect(!drawn.contains(&bytes) && bytes != [0; 32], || {
                        format!("{lie:?}: {bytes:?}")
                    });
                    world.expect(bytes[8..] != [0; 24], || format!("{lie:?}: {bytes:?}"));
                    drawn.push(bytes);
                }
                Some(Ok(_)) => panic!("another response"),
                _ => refused += 1,
            }
        }
    }
    assert_eq!((refused, drawn.len()), (6, 6), "one that says nothing is not asked for more");
    world.end(12);
}

#[test]
fn a_blob_that_does_not_open_is_what_is_wrong_and_the_custodian_stays() {
    let mut world = World::new();
    let stored = world.custodian().import(Algorithm::Sha1, SEED);
    let (kek_version, blob) = stored.parts();
    let mut broken = blob.to_vec();
    broken[7] ^= 1;
    let broken = StoredSecret::Wrapped { kek_version, blob: broken };
    let (right, broken) = (world.enrolled(stored.clone()), world.enrolled(broken));
    let pid = world.custodian().id();
    for _ in 0..3 {
        let verdict = world.check(None, check(&broken, &[&code(SEED, 0, 6)], &[0], &[]));
        assert!(matches!(&verdict, Verdict::Blamed(words) if words.contains("does not open")), "{verdict:?}");
        assert_eq!(world.check(None, check(&right, &[&code(SEED, 0, 6)], &[0], &[])), Verdict::Yes);
    }
    // What fails for another reason fails of what is known, too, and is no row's fault.
    let failing = Fault::of(Function::C_UnwrapKey, Kind::Fail(CKR_GENERAL_ERROR));
    let other = world.custodian().import(Algorithm::Sha1, &[9; 20]);
    let other = world.enrolled(other);
    let once = world.check(Some(failing.once()), check(&other, &[&code(&[9; 20], 0, 6)], &[0], &[]));
    assert_eq!(once, Verdict::Yes, "it is tried again");
    assert_eq!(world.custodian().id(), pid, "all of it by the same one");
    for standing in [&right, &broken] {
        let verdict = world.check(Some(failing), check(standing, &[&code(SEED, 0, 6)], &[0], &[]));
        assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
    }
    world.end(3);
}

#[test]
fn a_signature_counts_if_hsm_and_custodian_agree() {
    use Function::{C_CreateObject, C_GetAttributeValue, C_Verify, C_VerifyInit};
    let mut world = World::new();
    let device = Device::new(1);
    let rsa = &rsa_keys()[0];
    let keys = [
        (device.pem(), device.p1363(PAYLOAD), Device::new(2).p1363(PAYLOAD)),
        (rsa["pem"].as_str().unwrap().to_owned(), hex(&rsa["right_hex"]), vec![1; 256]),
    ];
    for (pem, right, wrong) in keys {
        let standing = world.custodian().enrolled_signer(&pem);
        let other = world.custodian().enrolled_signer(&Device::new(3).pem());
        let ask = |standing: &[SealedBytes], signature: &[u8]| {
            Request::CheckSignature(custodian_signatures::check(
                standing,
                custodian_signatures::bytes(signature),
            ))
        };
        for lie in lies(&[C_Verify, C_VerifyInit, C_CreateObject, C_GetAttributeValue]) {
            for (signature, must_not) in [(&right, Verdict::No), (&wrong, Verdict::Yes)] {
                assert_eq!(Verdict::of(world.ask(ask(&other, &wrong))), Verdict::No, "the cache holds one");
                let verdict = Verdict::of(world.ask_under(lie, ask(&standing, signature)));
                world.expect(verdict != must_not, || format!("{lie:?}: {verdict:?}"));
                assert_eq!(Verdict::of(world.ask(ask(&standing, &right))), Verdict::Yes, "after {lie:?}");
            }
        }
    }
    world.end(40);
}

/// What a caller sends is no reason to give up a process, whatever the module says of it.
#[test]
fn a_signature_or_a_key_that_the_module_fails_over_costs_no_custodian() {
    let mut world = World::new();
    let device = Device::new(1);
    let standing = world.custodian().enrolled_signer(&device.pem());
    let other = world.custodian().enrolled_signer(&Device::new(3).pem());
    let ask = |standing: &[SealedBytes], signature: &[u8]| {
        Request::CheckSignature(custodian_signatures::check(standing, custodian_signatures::bytes(signature)))
    };
    let (right, wrong) = (device.p1363(PAYLOAD), Device::new(2).p1363(PAYLOAD));
    for failing in [
        Fault::of(Function::C_Verify, Kind::FailDone(CKR_GENERAL_ERROR)),
        Fault::of(Function::C_VerifyInit, Kind::Fail(CKR_GENERAL_ERROR)),
    ] {
        let pid = world.custodian().id();
        for _ in 0..3 {
            assert_eq!(Verdict::of(world.ask_under(failing, ask(&standing, &wrong))), Verdict::No);
        }
        assert_eq!(world.custodian().id(), pid);
        let verdict = Verdict::of(world.ask_under(failing, ask(&standing, &right)));
        assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
        assert_eq!(Verdict::of(world.ask(ask(&standing, &right))), Verdict::Yes);
        world.custodian = None;
        world.custodian();
    }
    // What can be no signature is none, and the HSM is not asked.
    let verified = |world: &World| world.faults.counts().calls(Function::C_VerifyInit);
    let before = verified(&world);
    for bytes in [[0; 64], [0xff; 64]] {
        assert_eq!(Verdict::of(world.ask(ask(&standing, &bytes))), Verdict::No);
    }
    assert_eq!(verified(&world), before);
    // A key that it takes neither the first nor the second time, and a known one in between.
    let pid = world.custodian().id();
    let refusing = Fault::of(Function::C_CreateObject, Kind::Fail(CKR_GENERAL_ERROR));
    let set = [refusing.once(), refusing.from_call(3).once()].map(|fault| world.faults.set(fault));
    let verdict = Verdict::of(world.ask(ask(&other, &right)));
    assert!(matches!(&verdict, Verdict::Blamed(words) if words.contains("a public key")), "{verdict:?}");
    assert_eq!(set.each_ref().map(|fault| fault.count()), [1, 1]);
    set.iter().for_each(|fault| fault.lift());
    assert_eq!(world.custodian().id(), pid);
    // One that takes none has failed.
    let verdict = Verdict::of(world.ask_under(refusing, ask(&other, &right)));
    assert!(matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
    world.end(8);
}

/// A secret that is an object is missing if it is not there, and not because somebody says so.
#[test]
fn a_resident_is_missing_only_if_it_is_not_there() {
    use Function::{C_FindObjects, C_FindObjectsInit, C_GetAttributeValue, C_Sign, C_SignInit};
    let mut world = World::new();
    let custody = Custody::Resident(ObjectId::from_random([4; 16]));
    let seed = SecretBytes::new(SEED.to_vec());
    let import = Request::Import { algorithm: Algorithm::Sha1, seed, custody };
    let Some(Ok(Response::Secret { stored, .. })) = world.ask(import) else { panic!() };
    let standing = world.enrolled(stored.clone());
    let ask = || check(&standing, &[&code(SEED, 0, 6)], &[0], &[]);
    let mut all = lies(&[C_GetAttributeValue, C_Sign, C_SignInit]);
    for function in [C_GetAttributeValue, C_FindObjects, C_FindObjectsInit, C_SignInit] {
        let failing = Fault::of(function, Kind::Fail(CKR_GENERAL_ERROR));
        all.extend([failing, failing.once(), failing.from_call(2), failing.from_call(3)]);
    }
    let nothing = Fault::of(C_FindObjects, Kind::Short(Length::To(0)));
    all.extend((1..=4).map(|call| nothing.from_call(call).once()));
    all.push(nothing);
    for lie in all {
        // A new custodian has seen no more of it than its id.
        world.custodian = None;
        let verdict = world.check(Some(lie), ask());
        let is_right = matches!(verdict, Verdict::Yes | Verdict::Failed(_));
        world.expect(is_right, || format!("{lie:?}: {verdict:?}"));
        assert_eq!(world.check(None, ask()), Verdict::Yes, "after {lie:?}");
    }
    world.ask(Request::DestroyResidents { ids: vec![stored.object().unwrap()], nameless: false });
    let pid = world.custodian().id();
    let verdict = world.check(None, ask());
    assert!(matches!(&verdict, Verdict::Blamed(words) if words.contains("no usable object")), "{verdict:?}");
    assert_eq!(world.custodian().id(), pid);
    world.end(30);
}

#[test]
fn no_signature_of_ours_leaves_that_does_not_verify() {
    let mut world = World::new();
    let Some(Ok(Response::AuditKeys(keys))) = world.ask(Request::AuditKeys) else { panic!() };
    let keys: Vec<PublicKey> = keys;
    let checkpoint = head(1, 5, 5);
    let mut signed = 0;
    for lie in lies(&[Function::C_Sign, Function::C_SignInit]) {
        let ask = Request::SignCheckpoint(checkpoint.clone());
        match world.ask_under(lie, ask) {
            Some(Ok(Response::Checkpoint(note))) => {
                let verified = Note::parse(&note).is_some_and(|note| note.verified(&keys).is_some());
                world.expect(verified, || format!("{lie:?}: {note}"));
                signed += 1;
            }
            Some(Ok(_)) => panic!("another response"),
            _ => {}
        }
    }
    assert!(signed > 0);
    world.end(10);
}

#[test]
fn a_pin_hash_is_what_it_was_or_is_not_there() {
    use Function::{C_Decrypt, C_DecryptInit, C_Encrypt, C_EncryptInit, C_GenerateRandom};
    let mut world = World::new();
    let shown = OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA1");
    let input = question("12345678");
    let right = shown.code(input);
    let ask = |standing: &[SealedBytes], challenge, code: &str| {
        custodian_ocra::check(standing, code, Some(challenge), &[custodian_ocra::factor(None, None)])
    };
    let known = world.custodian().enrol_ocra(shown.clone());
    let standing = known.sealed(world.custodian(), ONE);
    for lie in lies(&[C_Decrypt, C_DecryptInit, C_Encrypt, C_EncryptInit, C_GenerateRandom]) {
        // A right code under a lie, and then one whose hash was encrypted under it.
        let verdict = world.check(Some(lie), ask(&standing, known.challenge(input), &right));
        let is_right = matches!(verdict, Verdict::Yes | Verdict::Failed(_));
        world.expect(is_right, || format!("{lie:?}: {verdict:?}"));
        let pin = SecretBytes::new(b"1234".to_vec());
        let encrypt = Request::EncryptPinHash { id: ONE, hash: Algorithm::Sha1, pin };
        let encrypted = match world.ask_under(lie, encrypt) {
            Some(Ok(Response::PinHash(encrypted))) => encrypted,
            Some(Ok(_)) => panic!("another response"),
            Some(Err(messages::Fault::Hsm(_))) | None => continue,
            Some(Err(blamed)) => {
                world.expect(false, || format!("{lie:?}: {blamed}"));
                continue;
            }
        };
        let mut enrolled = world.custodian().enrol_ocra(shown.clone());
        enrolled.row.pin_hash = Some(encrypted);
        let standing = enrolled.sealed(world.custodian(), ONE);
        let verdict = world.check(None, ask(&standing, enrolled.challenge(input), &right));
        world.expect(verdict == Verdict::Yes, || format!("{lie:?}: encrypted: {verdict:?}"));
    }
    world.end(50);
}

#[test]
fn what_is_wrapped_again_is_the_same_secret() {
    use Function::{C_DestroyObject, C_GetAttributeValue, C_Sign, C_SignInit, C_UnwrapKey, C_WrapKey};
    let mut world = World::new();
    let stored = world.custodian().import(Algorithm::Sha1, SEED);
    let standing = world.enrolled(stored);
    intrude(&world.token, "right hsm-authd/kek/v2");
    world.custodian = None;
    for lie in lies(&[C_WrapKey, C_UnwrapKey, C_Sign, C_SignInit, C_GetAttributeValue, C_DestroyObject]) {
        match world.ask_under(lie, Request::Renew(standing.clone())) {
            Some(Ok(Response::Renewed { rows, sealed })) => {
                let rows = rows.into_iter().zip(sealed.seals);
                let rows: Vec<_> = rows.map(|(bytes, seal)| SealedBytes { bytes, seal }).collect();
                let verdict = world.check(None, check(&rows, &[&code(SEED, 0, 6)], &[0], &[]));
                world.expect(verdict == Verdict::Yes, || format!("{lie:?}: {verdict:?}"));
            }
            Some(Ok(_)) => panic!("another response"),
            Some(Err(messages::Fault::Hsm(_))) | None => {}
            Some(Err(blamed)) => world.expect(false, || format!("{lie:?}: {blamed}")),
        }
    }
    world.end(60);
}

#[test]
fn a_seed_that_came_wrapped_is_taken_or_asked_for_again_and_never_refused() {
    use Function::{C_DestroyObject, C_GetAttributeValue, C_Sign, C_SignInit, C_UnwrapKey, C_WrapKey};
    let mut world = World::new();
    let Some(Ok(Response::ImportKey(key))) = world.ask(Request::ImportKey) else { panic!() };
    let scratch = crate::scratch::Scratch::new();
    scratch.write("key.pem", &key.to_pem().unwrap());
    let seed = crate::wrapped_seeds::padded(SEED);
    let blob =
        crate::wrapped_seeds::encrypt(&scratch.join("key.pem"), &seed, &crate::wrapped_seeds::OAEP_SHA1);
    for lie in lies(&[C_UnwrapKey, C_WrapKey, C_Sign, C_SignInit, C_GetAttributeValue, C_DestroyObject]) {
        let seed = blob.clone().try_into().unwrap();
        let import = Request::ImportWrapped { algorithm: Algorithm::Sha1, seed, custody: Custody::Wrapped };
        match world.ask_under(lie, import) {
            Some(Ok(Response::Imported(Some(stored)))) => {
                let is_of = world.is_of(stored, SEED);
                world.expect(is_of, || format!("{lie:?}: another seed"));
            }
            Some(Ok(_)) => world.expect(false, || format!("{lie:?}: refused")),
            Some(Err(messages::Fault::Hsm(_))) | None => {}
            Some(Err(blamed)) => world.expect(false, || format!("{lie:?}: {blamed}")),
        }
    }
    world.end(60);
}

#[test]
fn what_may_leave_the_hsm_is_gone_or_the_custodian_is() {
    let mut world = World::new();
    let import = || Request::Import {
        algorithm: Algorithm::Sha1,
        seed: SecretBytes::new(SEED.to_vec()),
        custody: Custody::Wrapped,
    };
    let lie = Fault::of(Function::C_DestroyObject, Kind::Fail(CKR_OK));
    match world.ask_under(lie, import()) {
        Some(Err(messages::Fault::Hsm(failure))) => {
            assert_eq!(failure.to_string(), "C_DestroyObject: the object is still there");
        }
        other => panic!("{:?}", other.map(Result::err)),
    }
    // The failure that is told is the first one, not that of cleaning up.
    let mut custodian = world.token.custodian();
    let stored = custodian.import(Algorithm::Sha1, SEED);
    let standing = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(stored)), state(1), account(1)]);
    world.custodian = Some(custodian);
    let gone = Fault::of(Function::C_UnwrapKey, Kind::Fail(CKR_OK));
    let verdict = world.check(Some(gone), check(&standing, &[&code(SEED, 0, 6)], &[0], &[]));
    assert!(matches!(&verdict, Verdict::Failed(words) if !words.contains("C_DestroyObject")), "{verdict:?}");
    world.end(2);
}
