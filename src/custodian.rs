//! The HSM process: it alone loads the vendor's module and knows the PIN.
//!
//! It knows no network and no database. Its standard input is a socketpair over which a front asks
//! it ([`crate::hsm::messages`]); every question may be asked again of another, so that a custodian
//! that crashes, hangs or is replaced costs nobody anything.

mod anchor;
mod attest;
mod check_values;
mod checks;
mod codes;
mod frames;
mod imports;
pub mod key_task;
mod keys;
mod looks;
mod operations;
mod pin;
mod pin_hash;
mod pkcs11;
mod presented;
mod renewal;
mod residents;
mod rolling;
mod secrets;
mod terminals;
#[cfg(test)]
mod test_token;
pub mod token;

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::control;
use crate::hsm::messages::{BUILD_ID, Boot, Call, Fault, Hello, Reply};
use frames::{Frames, write_frame};
use keys::{KeyError, Keys};
use operations::Operations;
use pin::Pin;
use pkcs11::{Module, Pkcs11Error, Session, Token};
use residents::Residents;

/// The token refused the PIN. Final: each further attempt could be the one that locks the token.
pub const EXIT_PIN_REFUSED: u8 = 10;

/// It could not start, for any other reason; the line on standard error says what to mend.
pub const EXIT_START_FAILED: u8 = 11;

/// The HSM failed during service. A fresh custodian may do better.
pub const EXIT_HSM_FAILED: u8 = 12;

/// Its peer sent what is no [`Call`], or something that no reply can be made of.
pub const EXIT_PROTOCOL_BROKEN: u8 = 13;

/// Why a custodian, or the setup of a token, did not start: one line for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{line}")]
pub(crate) struct StartFailure {
    line: String,
    exit: u8,
}

impl StartFailure {
    fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), exit: EXIT_START_FAILED }
    }

    /// A failed login; `whose` PIN, and where it came from.
    fn login(label: &str, whose: &str, pin_file: &Path, error: &Pkcs11Error) -> Self {
        let pin_file = pin_file.display();
        if error.is_pin_refusal() {
            let line = format!(
                "token {label} refuses the {whose} PIN in {pin_file} ({error}): correct the file; it is not tried again"
            );
            return Self { line, exit: EXIT_PIN_REFUSED };
        }
        if error.is_user_pin_unset() {
            return Self::new(format!("token {label} has no user PIN yet: run `hsm-authd init`"));
        }
        Self::new(format!("token {label}: the login with the {whose} PIN in {pin_file} failed ({error})"))
    }

    fn keys(label: &str, error: &KeyError) -> Self {
        Self::new(format!("token {label}: {error}"))
    }

    /// Says it, and gives the exit code.
    fn report(&self) -> ExitCode {
        // There is nobody left to tell if standard error is gone.
        // In one piece: other processes write there too.
        let _ = io::stderr().write_all(format!("hsm-authd: {}\n", self.line).as_bytes());
        ExitCode::from(self.exit)
    }
}

/// The main of the hidden subcommand `hsm-authd custodian`: standard input is one end of a stream
/// socketpair, over which it serves until the other end is closed.
///
/// Returns success at the end of its input, else one of the `EXIT_` codes of this module.
pub fn run(supervisor_pid: i32) -> ExitCode {
    if let Err(failure) = shut_in(supervisor_pid, c"hsm-custodian") {
        return failure.report();
    }
    let peer = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return StartFailure::new(format!("standard input: {error}")).report(),
    };
    let mut frames = Frames::new(&peer);
    let boot = match frames.next::<Boot>() {
        Ok(Some(boot)) => boot,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            let line = format!(
                "standard input holds no boot message ({error}): `hsm-authd serve` starts custodians"
            );
            return StartFailure::new(line).report();
        }
    };
    let (operations, hello) = match start(&boot) {
        Ok(started) => started,
        Err(failure) => return failure.report(),
    };
    tracing::info!(token = hello.token, "custodian ready");
    match serve(&mut frames, &peer, operations, &hello) {
        Ok(end) => end,
        Err(error) => {
            tracing::error!(%error, "custodian: the conversation broke");
            ExitCode::from(EXIT_PROTOCOL_BROKEN)
        }
    }
}

fn shut_in(supervisor_pid: i32, name: &CStr) -> Result<(), StartFailure> {
    control::bind_to_supervisor(supervisor_pid, name)
        .map_err(|error| StartFailure::new(format!("the process cannot be shut in: {error}")))
}

/// Everything from the module to the keys.
fn start(boot: &Boot) -> Result<(Operations, Hello), StartFailure> {
    let pin = read_pin(&boot.pin_file)?;
    let module = load_module(&boot.module)?;
    let label = &boot.token_label;
    let token = find_token(&module, label)?.ok_or_else(|| {
        StartFailure::new(format!(
            "no token is labelled {label}: run `hsm-authd init`, or correct hsm.token_label or hsm.environment"
        ))
    })?;
    check_mechanisms(&module, &token, label)?;
    let session = login(&module, &token, &pin, boot)?;
    let keys = Keys::load(&session).map_err(|error| StartFailure::keys(label, &error))?;
    let residents = Residents::load(&session).map_err(|error| {
        StartFailure::new(format!("token {label}: its secrets cannot be listed ({error})"))
    })?;
    let mut operations = Operations::new(session, keys, residents, boot.secrets_cached_max);
    operations
        .self_test()
        .map_err(|fault| StartFailure::new(format!("token {label} fails the self-test: {fault}")))?;
    let newest = operations.newest_keys();
    Ok((operations, Hello { build_id: BUILD_ID.to_owned(), token: token.description, newest }))
}

fn read_pin(path: &Path) -> Result<Pin, StartFailure> {
    Pin::read(path).map_err(|reason| StartFailure::new(format!("the PIN file {} {reason}", path.display())))
}

fn load_module(path: &Path) -> Result<Module, StartFailure> {
    Module::load(path).map_err(|error| {
        StartFailure::new(format!("the PKCS#11 module {} does not load ({error})", path.display()))
    })
}

/// The one token of that label; `None`: there is none.
fn find_token(module: &Module, label: &str) -> Result<Option<Token>, StartFailure> {
    let mut tokens = module
        .tokens_labelled(label)
        .map_err(|error| StartFailure::new(format!("the tokens cannot be listed ({error})")))?;
    match (tokens.pop(), tokens.len()) {
        (_, 1..) => Err(StartFailure::new(format!(
            "several tokens are labelled {label}: give all but one another label, or remove them"
        ))),
        (token, 0) => Ok(token),
    }
}

/// A module that lacks something would fail in the middle of somebody's request.
fn check_mechanisms(module: &Module, token: &Token, label: &str) -> Result<(), StartFailure> {
    let missing = module.missing_mechanisms(token).map_err(|error| {
        StartFailure::new(format!("the mechanisms of token {label} cannot be listed ({error})"))
    })?;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(StartFailure::new(format!("token {label} lacks mechanisms: {}", missing.join(", ")))),
    }
}

fn login(module: &Module, token: &Token, pin: &Pin, boot: &Boot) -> Result<Session, StartFailure> {
    module
        .login(token, pin)
        .map_err(|error| StartFailure::login(&boot.token_label, "user", &boot.pin_file, &error))
}

/// Answers calls in their order until the peer is gone.
fn serve(
    frames: &mut Frames<impl Read>,
    mut peer: &UnixStream,
    mut operations: Operations,
    hello: &Hello,
) -> io::Result<ExitCode> {
    if !write_frame(&mut peer, hello)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = hello.newest.clone();
    while let Some(Call { repeated, id, newest, request }) = frames.next()? {
        let begun = Instant::now();
        operations.keep_up(&newest);
        let result = operations.answer(request, repeated);
        let busy_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let hsm_failed = match &result {
            Err(Fault::Hsm(failure)) => {
                tracing::error!(failure, "custodian: the HSM failed, leaving");
                true
            }
            // Whoever asked tells of it once, and of which row.
            Err(Fault::Seal(_) | Fault::Later) => false,
            Err(fault) => {
                tracing::warn!(%fault, "custodian: request refused");
                false
            }
            Ok(_) => false,
        };
        // Each by itself: the front takes what is not answered yet for what a crash came from.
        let own = operations.newest_keys();
        let newest = (own != told).then(|| own.clone());
        told = own;
        let heard = write_frame(&mut peer, &Reply { id, busy_ns, newest, result })?;
        if hsm_failed {
            return Ok(ExitCode::from(EXIT_HSM_FAILED));
        }
        if !heard {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
