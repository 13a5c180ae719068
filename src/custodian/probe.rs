//! What a module must be able to do, tried on session objects before any key of ours is used: what it lacks is said then,
//! plainly, and all of it, and not in the middle of somebody's request. The keys themselves are tried after that, when
//! they are opened and in the self-test: what signs, and what unwraps what comes wrapped (RSA-OAEP).
//!
//! It asks for no module's name. Where modules differ in what they must be able to do, the way that works is found by
//! trying it: a purpose of a key that they do not take (`pkcs11/mechanisms.rs`), and what holds data (`pkcs11/data.rs`).

use std::fmt::Display;

use super::StartFailure;
use super::pkcs11::{DataForm, Material, Module, Object, Pkcs11Error, Session, Shape, Token, Use};
use super::secrets::{ARRIVED, departing};
use crate::domain::otp::Algorithm;
use crate::hsm::messages::{DownCause, Remedy};

/// What came of a trial.
enum Lack {
    /// One thing that is missing, in words for an operator.
    Missing(String),
    /// The HSM, the session or the login went: that says nothing of what it could.
    Failed(Pkcs11Error),
}

/// Of a known key of 64 bytes, and its HMACs of [`MESSAGE`].
const KEY: &[u8; 64] = b"1234567890123456789012345678901234567890123456789012345678901234";
const MESSAGE: &[u8] = b"hsm-authd/probe/v1";
const KNOWN: [(Algorithm, &[u8]); 3] = [
    (Algorithm::Sha1, b"\x4b\x01\x2c\x0b\x5a\x6b\x4d\xe4\x04\x5d\x79\xf2\x22\xb8\xe1\xdd\xc4\x94\xe9\x70"),
    (
        Algorithm::Sha256,
        b"\x3d\x3d\x78\xc4\xbf\xf4\xcb\x49\x56\x6d\xa0\xb6\xf7\x43\x2e\xdc\
          \x39\xdb\xf3\x24\x80\x97\xf5\x49\x36\xcf\x82\x1a\xb5\x9b\x8d\xd8",
    ),
    (
        Algorithm::Sha512,
        b"\x84\x58\xe2\x4a\x5d\xe7\x13\x7b\xb5\x64\x66\x94\x82\x32\x4f\x0d\
          \x4a\xa7\xa6\x55\xc0\x6a\xf0\xb0\x2e\x10\xa1\xbd\xdd\xb0\xc8\x8f\
          \xf6\x5a\x3c\x0f\xd5\x23\xb8\x09\xed\xe3\x6d\xe9\x61\xa9\x89\x0e\
          \x34\xba\xac\xf0\x01\x94\xfb\xe3\x0a\x0e\xe2\x7f\xfd\xba\x86\x76",
    ),
];

/// Which mechanisms the token has. Before the login: a token that cannot serve is told no PIN.
///
/// # Errors
/// One line that names all that are missing.
pub fn mechanisms(module: &Module, token: &Token, label: &str) -> Result<(), StartFailure> {
    let missing = module.missing_mechanisms(token).map_err(|error| {
        StartFailure::new(format!("the mechanisms of token {label} cannot be listed ({error})"))
    })?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(StartFailure::new(format!("token {label} lacks mechanisms: {}", missing.join(", ")))),
    }
}

/// Whether the module does with session objects what we do with them.
///
/// # Errors
/// One line that names all that it does not; or nobody is logged in, or the HSM failed.
pub fn abilities(session: &Session, label: &str) -> Result<(), StartFailure> {
    match session.is_logged_in() {
        Ok(true) => {}
        Ok(false) => {
            return Err(failed(label, &Pkcs11Error::lie("C_GetSessionInfo: nobody is logged in")));
        }
        Err(error) => return Err(failed(label, &error)),
    }
    refused(label, [wrapping(session), copying(session), encryption(session), randomness(session)])
}

/// Makes a private token object with this label and a value of its own, in what the log's anchor will be held in, and says
/// in what.
///
/// # Errors
/// One line: the token holds it in nothing, or the HSM failed.
pub fn mark(session: &Session, label: &str, name: &str) -> Result<(Object, DataForm), StartFailure> {
    let mut value = [0; 16];
    let failed = |error: &Pkcs11Error| {
        StartFailure::new(format!("token {label}: no object can be made ({error}), so nothing was made"))
    };
    session.random(&mut value).map_err(|error| failed(&error))?;
    let tried = |form| session.create_data_as(form, name, &value).map(|object| (object, form));
    let of_data = match tried(DataForm::Data) {
        // That the HSM failed says nothing of what it could.
        Err(error) if !error.is_key_refusal() => return Err(failed(&error)),
        Err(error) => error,
        Ok(made) => return Ok(made),
    };
    tried(DataForm::Key).map_err(|of_key| match of_key.remedy() {
        Remedy::LogIn | Remedy::NewSession | Remedy::NewProcess | Remedy::Rebuild if of_key.is_returned() => {
            failed(&of_key)
        }
        _ => StartFailure::new(format!(
            "token {label} cannot hold the anchor of the log, without which a database that was turned back would not \
             show: neither in a data object ({of_data}), nor in a key's id ({of_key})"
        )),
    })
}

fn refused<const N: usize>(label: &str, tried: [Result<(), Lack>; N]) -> Result<(), StartFailure> {
    let mut lacks = Vec::new();
    for lack in tried.into_iter().filter_map(Result::err) {
        match lack {
            Lack::Missing(what) => lacks.push(what),
            Lack::Failed(error) => return Err(failed(label, &error)),
        }
    }
    match lacks.is_empty() {
        true => Ok(()),
        false => {
            let line = format!("token {label} cannot be used: {}", lacks.join("; "));
            Err(StartFailure::new(line).of(DownCause::SelfTest))
        }
    }
}

fn failed(label: &str, error: &Pkcs11Error) -> StartFailure {
    StartFailure::new(format!("token {label} cannot be tried: the HSM failed: {error}"))
        .of(DownCause::SelfTest)
}

fn lack(what: impl Display) -> impl FnOnce(Pkcs11Error) -> Lack {
    move |error| match error.remedy() {
        Remedy::NewSession | Remedy::NewProcess if error.is_returned() => Lack::Failed(error),
        _ => Lack::Missing(format!("{what} ({error})")),
    }
}

fn aes(purpose: Use) -> Shape {
    Shape {
        material: Material::Aes,
        length_bytes: Some(32),
        token: false,
        extractable: false,
        purpose: Some(purpose),
    }
}

/// Makes an object, tries something with it, and destroys it.
fn with<T>(
    session: &Session,
    object: Object,
    attempt: impl FnOnce(Object) -> Result<T, Lack>,
) -> Result<T, Lack> {
    let result = attempt(object);
    session.destroy(object).map_err(lack("it does not destroy a session object"))?;
    result
}

/// The way of a secret: brought in, wrapped, unwrapped as what computes and stays, and used.
fn wrapping(session: &Session) -> Result<(), Lack> {
    let kek = session.generate(&aes(Use::Wrap)).map_err(lack("it makes no key that wraps"))?;
    with(session, kek, |kek| {
        let secret = departing(KEY.len());
        let key = session.create(&secret, KEY).map_err(lack("it takes no secret as a session object"))?;
        let blob = with(session, key, |key| {
            session.check(key, &secret).map_err(lack("it ignores the template of C_CreateObject"))?;
            session.wrap(kek, key, KEY.len()).map_err(lack("it does not wrap secrets (AES key wrap)"))
        })?;
        KNOWN.iter().try_for_each(|(algorithm, mac)| unwrapping(session, kek, &blob, *algorithm, mac))
    })
}

fn unwrapping(
    session: &Session,
    kek: Object,
    blob: &[u8],
    algorithm: Algorithm,
    known: &[u8],
) -> Result<(), Lack> {
    let arrived = session.unwrap_hmac_key(kek, blob, &ARRIVED, algorithm);
    let arrived = arrived.map_err(lack("it does not unwrap secrets (AES key wrap)"))?;
    with(session, arrived, |arrived| {
        // A secret that may leave again, or be read, whatever was asked.
        session.check(arrived, &ARRIVED).map_err(lack("it ignores the template of C_UnwrapKey"))?;
        let mac = session.hmac(algorithm, arrived, MESSAGE);
        let mac = mac.map_err(lack(format_args!("it computes no HMAC of {}", algorithm.name())))?;
        match *mac == *known {
            true => Ok(()),
            false => {
                Err(Lack::Missing(format!("its HMAC of {} is not that of the standard", algorithm.name())))
            }
        }
    })
}

/// The `kek` is used by its copy.
fn copying(session: &Session) -> Result<(), Lack> {
    let shape = aes(Use::Wrap);
    let key = session.generate(&shape).map_err(lack("it makes no key that wraps"))?;
    with(session, key, |key| {
        let copy = session.copy_to_session(key).map_err(lack("it copies no key (C_CopyObject)"))?;
        with(session, copy, |copy| {
            session.check(copy, &shape).map_err(lack("it copies a key as another (C_CopyObject)"))
        })
    })
}

/// What is encrypted comes back, and only for whom it was bound to.
fn encryption(session: &Session) -> Result<(), Lack> {
    let key = session.generate(&aes(Use::Cipher)).map_err(lack("it makes no key that encrypts"))?;
    with(session, key, |key| {
        let nonce = [7; 12];
        let sealed = session.encrypt(key, nonce, b"bound", MESSAGE);
        let sealed = sealed.map_err(lack("it does not encrypt and decrypt (AES-GCM)"))?;
        let clear =
            session.decrypt(key, nonce, b"bound", &sealed).map_err(lack("it does not decrypt (AES-GCM)"))?;
        match *clear == MESSAGE && session.decrypt(key, nonce, b"other", &sealed).is_err() {
            true => Ok(()),
            false => Err(Lack::Missing("it decrypts what it has not encrypted so (AES-GCM)".to_owned())),
        }
    })
}

fn randomness(session: &Session) -> Result<(), Lack> {
    // Twice: the second tells whether they are the same again.
    for _ in 0..2 {
        session.random(&mut [0; 32]).map_err(lack("it gives no random bytes (C_GenerateRandom)"))?;
    }
    Ok(())
}
