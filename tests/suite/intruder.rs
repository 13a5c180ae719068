//! What somebody who has the PIN does to a token, with PKCS#11 directly.
//!
//! In a process of its own, because the module takes its configuration from the environment: a test
//! asks for an act by name, and this test binary is run again to do it.

use std::env;
use std::path::PathBuf;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use crate::token::{LABEL, PIN, SO_PIN, TestToken};

/// Has `act` done to the token.
pub fn intrude(token: &TestToken, act: &str) {
    let output = token
        .command(env::current_exe().unwrap())
        .args(["--exact", "intruder::acts", "--ignored", "--nocapture"])
        .env("INTRUDER_ACT", act)
        .env("INTRUDER_MODULE", &token.boot.module)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{act}: {said}");
}

#[test]
#[ignore = "run by the other tests, in the environment of a token"]
fn acts() {
    let pkcs11 = Pkcs11::new(PathBuf::from(env::var_os("INTRUDER_MODULE").unwrap())).unwrap();
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let act = env::var("INTRUDER_ACT").unwrap();
    match act.as_str() {
        "a token without user PIN" => init_token(&pkcs11),
        "a second token of the label" => init_token(&pkcs11),
        "read and wrap every system key" => read_and_wrap(&login(&pkcs11)),
        act => plant(&login(&pkcs11), act),
    }
}

fn init_token(pkcs11: &Pkcs11) {
    let uninitialised = |slot: &_| !pkcs11.get_token_info(*slot).unwrap().token_initialized();
    let slot = pkcs11.get_slots_with_token().unwrap().into_iter().find(uninitialised).unwrap();
    pkcs11.init_token(slot, &AuthPin::from(SO_PIN), LABEL).unwrap();
}

fn login(pkcs11: &Pkcs11) -> Session {
    let labelled = |slot: &_| pkcs11.get_token_info(*slot).unwrap().label() == LABEL;
    let slot = pkcs11.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    let session = pkcs11.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
    session
}

fn key(session: &Session, label: &str) -> ObjectHandle {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    assert_eq!(found.len(), 1, "{label}");
    found[0]
}

fn read_and_wrap(session: &Session) {
    let kek = key(session, "hsm-authd/kek/v1");
    for label in ["hsm-authd/kek/v1", "hsm-authd/row/v1", "hsm-authd/data/v1"] {
        let key = key(session, label);
        assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty(), "{label}");
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, key);
        let Err(Error::Pkcs11(code, _)) = wrapped else { panic!("{label} was wrapped") };
        assert!(matches!(code, RvError::KeyUnextractable | RvError::KeyNotWrappable), "{label}: {code:?}");
        // A kek can be changed otherwise, because it is copied; the next start would notice.
        let more = (key != kek).then_some(Attribute::Wrap(true));
        for weaker in [Attribute::Sensitive(false), Attribute::Extractable(true)].into_iter().chain(more) {
            assert!(
                session.update_attributes(key, std::slice::from_ref(&weaker)).is_err(),
                "{label}: {weaker:?}"
            );
        }
    }
    assert!(
        session.decrypt(&Mechanism::AesEcb, kek, &[0; 16]).is_err(),
        "a blob's seed would come out in the clear"
    );
}

/// Makes or removes a system key.
fn plant(session: &Session, act: &str) {
    let (what, label) = act.split_once(' ').unwrap();
    if what == "remove" {
        return session.destroy_object(key(session, label)).unwrap();
    }
    if what == "half" {
        // What a crash leaves: a label, and nothing of a key.
        let class = Attribute::Class(ObjectClass::DATA);
        let template = [class, Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())];
        session.create_object(&template).unwrap();
        return;
    }
    let generic = label.contains("/row/");
    let wraps = label.contains("/kek/");
    let key_type = if generic { KeyType::GENERIC_SECRET } else { KeyType::AES };
    let length = if what == "short" { 16 } else { 32 };
    let wrong = |name| what == name;
    let template = [
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
    let aes = !generic || wrong("aes");
    let mechanism = if aes { Mechanism::AesKeyGen } else { Mechanism::GenericSecretKeyGen };
    session.generate_key(&mechanism, &template).unwrap();
}
