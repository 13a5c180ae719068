//! What somebody who has the PIN does to a token, with PKCS#11 directly; and what somebody can who has none.
//!
//! In a process of its own, because the module takes its configuration from the environment: a test
//! asks for an act by name, and this test binary is run again to do it.

use std::ffi::CString;
use std::path::PathBuf;
use std::process::Output;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::{AuthPin, Ulong};

use crate::token::{SO_PIN, TestToken, label};

/// Has `act` done to the token.
pub fn intrude(token: &TestToken, act: &str) {
    let output = attempt(token, act);
    let said = String::from_utf8_lossy(&output.stdout);
    let panicked = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{act}: {said}{panicked}");
}

/// Has `act` tried, and tells how the process ended.
pub fn attempt(token: &TestToken, act: &str) -> Output {
    token
        .command(env::current_exe().unwrap())
        .args(["--exact", "intruder::acts", "--ignored", "--nocapture"])
        .env("INTRUDER_ACT", act)
        .env("INTRUDER_MODULE", &token.boot.module)
        .env("INTRUDER_ARGUMENTS", token.boot.module_arguments.clone().unwrap_or_default().to_str().unwrap())
        .env("INTRUDER_LABEL", &token.boot.token_label)
        .env("INTRUDER_PIN", fs::read_to_string(&token.boot.pin_file).unwrap().trim_end())
        .output()
        .unwrap()
}

#[test]
#[ignore = "run by the other tests, in the environment of a token"]
fn acts() {
    let pkcs11 = Pkcs11::new(PathBuf::from(env::var_os("INTRUDER_MODULE").unwrap())).unwrap();
    let arguments = env::var("INTRUDER_ARGUMENTS").unwrap();
    let flags = CInitializeFlags::OS_LOCKING_OK;
    let arguments = match arguments.is_empty() {
        true => CInitializeArgs::new(flags),
        false => module_arguments::with_text(flags, CString::new(arguments).unwrap()),
    };
    pkcs11.initialize(arguments).unwrap();
    let act = env::var("INTRUDER_ACT").unwrap();
    match act.as_str() {
        "a token without user PIN" => init_token(&pkcs11),
        "a second token of the label" => init_token(&pkcs11),
        "a MAC is read behind its end" => short_mac(&login(&pkcs11), |mac| &mac[..1]),
        // It lies nowhere.
        "a MAC of no bytes is read" => short_mac(&login(&pkcs11), |_| &[]),
        "read and wrap every system key" => read_and_wrap(&login(&pkcs11)),
        act => match act.strip_prefix("without the PIN: ") {
            Some(label) => plant_without_pin(&open(&pkcs11), label),
            None => plant(&login(&pkcs11), act),
        },
    }
}

fn init_token(pkcs11: &Pkcs11) {
    let uninitialised = |slot: &_| !pkcs11.get_token_info(*slot).unwrap().token_initialized();
    let slot = pkcs11.get_slots_with_token().unwrap().into_iter().find(uninitialised).unwrap();
    pkcs11.init_token(slot, &AuthPin::from(SO_PIN), &label()).unwrap();
}

fn open(pkcs11: &Pkcs11) -> Session {
    let label = env::var("INTRUDER_LABEL").unwrap();
    let labelled = |slot: &_| pkcs11.get_token_info(*slot).unwrap().label() == label;
    let slot = pkcs11.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    pkcs11.open_rw_session(slot).unwrap()
}

/// Public objects need no login (PKCS #11 3.1, C_CreateObject).
fn plant_without_pin(session: &Session, label: &str) {
    let public = [Attribute::Class(ObjectClass::DATA), Attribute::Token(true), Attribute::Private(false)];
    let template = [&public[..], &[Attribute::Label(label.as_bytes().to_vec())]].concat();
    match session.create_object(&template) {
        Ok(_) => {}
        // Kryoptic and NSS let nobody do so: what follows holds all the more.
        Err(Error::Pkcs11(RvError::UserNotLoggedIn | RvError::AttributeValueInvalid, _)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// A private token object that holds data: a data object, or where there is none, a key with that id.
fn data(session: &Session, label: &str, value: &[u8]) {
    let label = Attribute::Label(label.as_bytes().to_vec());
    let own = [label, Attribute::Token(true), Attribute::Private(true)];
    let as_data = [Attribute::Class(ObjectClass::DATA), Attribute::Value(value.to_vec())];
    match session.create_object(&[&own[..], &as_data[..]].concat()) {
        Err(Error::Pkcs11(RvError::AttributeValueInvalid, _)) => {
            let as_key =
                [Attribute::Id(value.to_vec()), Attribute::ValueLen(32.into()), Attribute::Sensitive(true)];
            let template = [&own[..], &as_key[..]].concat();
            session.generate_key(&Mechanism::GenericSecretKeyGen, &template).unwrap();
        }
        made => drop(made.unwrap()),
    }
}

fn login(pkcs11: &Pkcs11) -> Session {
    let session = open(pkcs11);
    let pin = env::var("INTRUDER_PIN").unwrap();
    session.login(UserType::User, Some(&AuthPin::from(pin.as_str()))).unwrap();
    session
}

fn key(session: &Session, label: &str) -> ObjectHandle {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    assert_eq!(found.len(), 1, "{label}");
    found[0]
}

/// A half of a key pair: the one object of its class and label.
fn half(session: &Session, class: ObjectClass, label: &str) -> ObjectHandle {
    let template = [Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())];
    let found = session.find_objects(&template).unwrap();
    assert_eq!(found.len(), 1, "{label}");
    found[0]
}

/// What NSS takes for a MAC: whatever its length is said to be, as many bytes as it wants are read.
fn short_mac(session: &Session, short: impl Fn(&[u8]) -> &[u8]) {
    let made = [
        Attribute::Token(false),
        Attribute::Sign(true),
        Attribute::Verify(true),
        Attribute::ValueLen(32.into()),
    ];
    let key = session.generate_key(&Mechanism::GenericSecretKeyGen, &made).unwrap();
    let mac = session.sign(&Mechanism::Sha256Hmac, key, b"message").unwrap();
    session.verify(&Mechanism::Sha256Hmac, key, b"message", short(&mac)).unwrap();
}

fn read_and_wrap(session: &Session) {
    let kek = key(session, "hsm-authd/kek/v1");
    for label in ["hsm-authd/attest/v1", "hsm-authd/audit/v1", "hsm-authd/import/v1"] {
        read_and_wrap_pair(session, kek, label);
    }
    for label in ["hsm-authd/kek/v1", "hsm-authd/row/v1", "hsm-authd/data/v1"] {
        let key = key(session, label);
        assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty(), "{label}");
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, key);
        let Err(Error::Pkcs11(code, _)) = wrapped else { panic!("{label} was wrapped") };
        assert!(
            matches!(
                code,
                RvError::KeyUnextractable | RvError::KeyNotWrappable | RvError::KeyFunctionNotPermitted
            ),
            "{label}: {code:?}"
        );
        // A kek can be changed otherwise, because it is copied; the next start would notice.
        let more = (key != kek).then_some(Attribute::Wrap(true));
        for weaker in [Attribute::Sensitive(false), Attribute::Extractable(true)].into_iter().chain(more) {
            assert!(
                session.update_attributes(key, std::slice::from_ref(&weaker)).is_err(),
                "{label}: {weaker:?}"
            );
        }
    }
    read_and_wrap_unwrapped(session, kek);
    assert!(
        session.decrypt(&Mechanism::AesEcb, kek, &[0; 16]).is_err(),
        "a blob's seed would come out in the clear"
    );
}

/// A credential's secret, as a custodian unwraps it.
fn read_and_wrap_unwrapped(session: &Session, kek: ObjectHandle) {
    let made = [
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::ValueLen(32.into()),
    ];
    let secret = session.generate_key(&Mechanism::GenericSecretKeyGen, &made).unwrap();
    let blob = session.wrap_key(&Mechanism::AesKeyWrap, kek, secret).unwrap();
    let arrived = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    let unwrapped = session.unwrap_key(&Mechanism::AesKeyWrap, kek, &blob[..40], &arrived).unwrap();
    assert!(session.get_attributes(unwrapped, &[AttributeType::Value]).unwrap().is_empty());
    assert!(session.wrap_key(&Mechanism::AesKeyWrap, kek, unwrapped).is_err());
    for weaker in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        assert!(session.update_attributes(unwrapped, std::slice::from_ref(&weaker)).is_err(), "{weaker:?}");
        assert!(session.copy_object(unwrapped, &[weaker]).is_err());
    }
}

fn read_and_wrap_pair(session: &Session, kek: ObjectHandle, name: &str) {
    let signs = name != "hsm-authd/import/v1";
    let [private, public] =
        [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY].map(|class| half(session, class, name));
    let secret = if signs {
        [AttributeType::Value].to_vec()
    } else {
        [AttributeType::PrivateExponent, AttributeType::Prime1, AttributeType::Prime2].to_vec()
    };
    assert!(session.get_attributes(private, &secret).unwrap().is_empty());
    let Err(Error::Pkcs11(code, _)) = session.wrap_key(&Mechanism::AesKeyWrap, kek, private) else {
        panic!("it was wrapped")
    };
    assert!(
        matches!(
            code,
            RvError::KeyUnextractable | RvError::KeyNotWrappable | RvError::KeyFunctionNotPermitted
        ),
        "{code:?}"
    );
    let label = || Attribute::Label(name.replace("v1", "v2").into_bytes());
    for other in [
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Derive(true),
        Attribute::Decrypt(true),
        if signs { Attribute::Unwrap(true) } else { Attribute::Sign(true) },
        label(),
    ] {
        assert!(session.update_attributes(private, std::slice::from_ref(&other)).is_err(), "{other:?}");
    }
    for weaker in [Attribute::Sensitive(false), Attribute::Extractable(true)] {
        assert!(session.copy_object(private, &[Attribute::Token(false), weaker]).is_err());
    }
    let number = if signs { AttributeType::EcPoint } else { AttributeType::Modulus };
    let number = session.get_attributes(public, &[number]).unwrap();
    for other in [Attribute::Verify(!signs), Attribute::Wrap(signs), label(), number[0].clone()] {
        assert!(session.update_attributes(public, std::slice::from_ref(&other)).is_err(), "{other:?}");
    }
    let found = session.find_objects(&[Attribute::Token(true)]).unwrap();
    let keys = found.into_iter().filter(|key| ![private, public].contains(key));
    for key in keys {
        assert!(session.wrap_key(&Mechanism::AesKeyWrap, key, private).is_err());
        let oaep = PkcsOaepParams::new(MechanismType::SHA1, PkcsMgfType::MGF1_SHA1, PkcsOaepSource::empty());
        assert!(session.wrap_key(&Mechanism::RsaPkcsOaep(oaep), key, private).is_err());
    }
}

/// Makes a key pair, the public half labelled `public`.
fn plant_pair(session: &Session, what: &str, private: &str, public: &str) -> [ObjectHandle; 2] {
    let wrong = |name| what == name;
    let imports = private.contains("/import/") || public.contains("/import/");
    let bytes = |label: &str| Attribute::Label(label.as_bytes().to_vec());
    let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let p384 = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    let curve = if wrong("p384") { p384.to_vec() } else { p256.to_vec() };
    let mut of_public = vec![
        Attribute::Token(true),
        Attribute::Private(wrong("hidden")),
        Attribute::Verify(!wrong("blind") && !imports || wrong("verifying")),
        Attribute::VerifyRecover(wrong("verify-recovering")),
        Attribute::Encrypt(wrong("encrypting")),
        Attribute::Wrap(imports && !wrong("unwrappable") || wrong("wrapping")),
        Attribute::Derive(wrong("public-deriving")),
        bytes(public),
    ];
    let of_private = [
        Attribute::Token(true),
        Attribute::Private(!wrong("public")),
        Attribute::Sensitive(!wrong("readable")),
        Attribute::Extractable(wrong("extractable")),
        Attribute::Sign(!wrong("useless") && !imports || wrong("signing")),
        Attribute::SignRecover(wrong("recovering")),
        Attribute::Decrypt(wrong("decrypting")),
        Attribute::Unwrap(imports && !wrong("closed") || wrong("unwrapping")),
        Attribute::Derive(wrong("deriving")),
        bytes(private),
    ];
    let mechanism = if (imports && !wrong("p256")) || wrong("rsa") {
        let exponent = if wrong("exponent-3") { vec![3] } else { vec![1, 0, 1] };
        let bits: Ulong = (if imports && !wrong("short") { 3_072 } else { 2_048 }).into();
        of_public.extend([Attribute::ModulusBits(bits), Attribute::PublicExponent(exponent)]);
        Mechanism::RsaPkcsKeyPairGen
    } else {
        of_public.push(Attribute::EcParams(curve));
        Mechanism::EccKeyPairGen
    };
    let (public, private) = session.generate_key_pair(&mechanism, &of_public, &of_private).unwrap();
    [private, public]
}

/// What is done to the pair of a label.
fn meddle(session: &Session, what: &str, label: &str) {
    let elsewhere = "elsewhere";
    match what {
        "no-private" => session.destroy_object(half(session, ObjectClass::PRIVATE_KEY, label)).unwrap(),
        "no-public" => session.destroy_object(half(session, ObjectClass::PUBLIC_KEY, label)).unwrap(),
        "second-private" => drop(plant_pair(session, "right", label, elsewhere)),
        "second-public" => drop(plant_pair(session, "right", elsewhere, label)),
        // Of two pairs each half is whole, and stands with that of the other pair.
        "crossed" => {
            remove(session, label);
            let other = label.replace("v1", "v2");
            plant_pair(session, "right", label, &other);
            plant_pair(session, "right", &other, label);
        }
        // SoftHSM takes any bytes for a point.
        "off-curve" | "bare" => {
            let public = half(session, ObjectClass::PUBLIC_KEY, label);
            let attributes = session.get_attributes(public, &[AttributeType::EcPoint]).unwrap();
            let [Attribute::EcPoint(der)] = attributes.as_slice() else { panic!("{attributes:?}") };
            let mut der = der.clone();
            if what == "bare" {
                der.drain(..2);
            } else {
                *der.last_mut().unwrap() ^= 1;
            }
            session.destroy_object(public).unwrap();
            let not = [Attribute::VerifyRecover(false), Attribute::Encrypt(false), Attribute::Wrap(false)];
            let mut template = vec![
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::KeyType(KeyType::EC),
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Verify(true),
                Attribute::Derive(false),
                Attribute::EcParams(vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]),
                Attribute::EcPoint(der),
                Attribute::Label(label.as_bytes().to_vec()),
            ];
            template.extend(not);
            session.create_object(&template).unwrap();
        }
        "imported" => {
            let [private, _] = plant_pair(session, "right", label, label);
            session.destroy_object(private).unwrap();
            let mut template =
                vec![Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::EC)];
            template
                .push(Attribute::EcParams(vec![0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]));
            template.push(Attribute::Value(vec![1; 32]));
            let sign = [Attribute::Sign(true), Attribute::SignRecover(false), Attribute::Sensitive(true)];
            let none = [Attribute::Extractable(false), Attribute::Decrypt(false), Attribute::Unwrap(false)];
            let own = [Attribute::Token(true), Attribute::Private(true), Attribute::Derive(false)];
            template.extend(sign.into_iter().chain(none).chain(own));
            template.push(Attribute::Label(label.as_bytes().to_vec()));
            session.create_object(&template).unwrap();
        }
        what => drop(plant_pair(session, what, label, label)),
    }
}

fn remove(session: &Session, label: &str) {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    assert!(!found.is_empty(), "{label}");
    found.into_iter().for_each(|object| session.destroy_object(object).unwrap());
}

/// Makes or removes a system key.
fn plant(session: &Session, act: &str) {
    let (what, label) = act.split_once(' ').unwrap();
    if what == "remove" {
        return remove(session, label);
    }
    if what == "count" {
        let found = session.find_objects(&[Attribute::Token(true)]).unwrap();
        return assert_eq!(found.len().to_string(), label);
    }
    if what == "anchors" {
        let found = session.find_objects(&[Attribute::Label(b"hsm-authd/anchor".to_vec())]).unwrap();
        return assert_eq!(found.len().to_string(), label);
    }
    if what == "anchor" {
        return data(session, "hsm-authd/anchor", label.as_bytes());
    }
    // What a crash leaves: a label, and nothing of a key.
    if what == "mark" || what == "half" {
        // Two keys of one id are one to NSS.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        return data(session, label, format!("nothing {}", now.as_nanos()).as_bytes());
    }
    if ["/attest/", "/audit/", "/import/", "/tls/"].iter().any(|kind| label.contains(kind)) {
        return meddle(session, what, label);
    }
    let generic = label.contains("/row/");
    let wraps = label.contains("/kek/");
    let key_type = if generic { KeyType::GENERIC_SECRET } else { KeyType::AES };
    let length = if what == "short" { 16 } else { 32 };
    let wrong = |name| what == name;
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(if wrong("aes") { KeyType::AES } else { key_type }),
        Attribute::Token(true),
        Attribute::Private(!wrong("public")),
        Attribute::Sensitive(!wrong("readable")),
        Attribute::Extractable(wrong("extractable")),
        Attribute::Encrypt((!generic && !wraps) || wrong("encrypting")),
        Attribute::Decrypt((!generic && !wraps) || wrong("decrypting")),
        Attribute::Sign(generic || wrong("signing")),
        Attribute::Verify(wrong("verifying")),
        Attribute::Wrap(wraps || wrong("wrapping")),
        Attribute::Unwrap(wraps && !wrong("useless")),
        Attribute::Derive(wrong("deriving")),
        Attribute::ValueLen(length.into()),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    if wrong("misused") {
        template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_CBC]));
    }
    if wrong("known") {
        // Whoever brought it knows its bytes.
        template.retain(|attribute| !matches!(attribute, Attribute::ValueLen(_)));
        template.push(Attribute::Value(vec![1; 32]));
        session.create_object(&template).unwrap();
        return;
    }
    let aes = !generic || wrong("aes");
    let mechanism = if aes { Mechanism::AesKeyGen } else { Mechanism::GenericSecretKeyGen };
    session.generate_key(&mechanism, &template).unwrap();
}
