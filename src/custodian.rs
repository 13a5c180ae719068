//! The HSM process: it alone loads the vendor's module and knows the PIN.
//!
//! It knows no network and no database. Its standard input is a socketpair over which a front asks
//! it ([`crate::hsm::messages`]); every question may be asked again of another, so that a custodian
//! that crashes, hangs or is replaced costs nobody anything.

mod anchor;
mod attempts;
mod attest;
pub mod certificate_request;
mod check_values;
mod checks;
mod codes;
mod connection;
mod frames;
mod handshakes;
mod hashes;
mod imports;
mod key_making;
pub mod key_task;
mod keys;
mod looks;
mod operations;
mod pin;
mod pin_hash;
mod pkcs11;
mod presented;
mod probe;
mod removal;
mod renewal;
mod residents;
mod rolling;
mod secrets;
pub mod shared_keys;
mod staleness;
mod terminals;
#[cfg(test)]
mod test_token;
pub mod token;
mod verifier;
mod wear;
mod wrapping;

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::control;
use crate::hsm::messages::{BUILD_ID, Boot, Call, Down, DownCause, Fault, Greeting, Hello, Reply, Tired};
use crate::sandbox;
use connection::Connection;
use frames::{Frames, first, write_frame};
use keys::KeyError;
use pin::Pin;
use pkcs11::{Module, Pkcs11Error, Session, Token};
use wear::Wear;

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
    cause: DownCause,
    exit: u8,
}

impl StartFailure {
    /// One that may be another one's, or nobody's, the next time.
    fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), cause: DownCause::Module, exit: EXIT_START_FAILED }
    }

    /// One that mostly stays until somebody mends what is configured. Mostly: a file may be on its way, or its disk.
    fn misconfigured(line: impl Into<String>) -> Self {
        Self::new(line).of(DownCause::Configuration)
    }

    /// The same, for this cause.
    fn of(self, cause: DownCause) -> Self {
        Self { cause, ..self }
    }

    /// A failed login; `whose` PIN, and where it came from.
    fn login(label: &str, whose: &str, pin_file: &Path, error: &Pkcs11Error) -> Self {
        let pin_file = pin_file.display();
        if error.is_pin_refusal() {
            let line = format!(
                "token {label} refuses the {whose} PIN in {pin_file} ({error}): correct the file; it is not tried again"
            );
            return Self { line, cause: DownCause::PinRefused, exit: EXIT_PIN_REFUSED };
        }
        if error.is_user_pin_unset() {
            let line = format!("token {label} has no user PIN yet: run `hsm-authd init`");
            return Self::new(line).of(DownCause::Login);
        }
        let line = match error.is_of_login() {
            true => format!("token {label}: the login with the {whose} PIN in {pin_file} failed ({error})"),
            false => format!("token {label} cannot be used ({error}); the {whose} PIN is not why"),
        };
        Self::new(line).of(DownCause::Login)
    }

    /// What is wrong with the keys; `in_use`: there is a database that needs them.
    fn keys(label: &str, in_use: bool, error: &KeyError) -> Self {
        Self::new(format!("token {label}: {error}{}", error.advice(in_use))).of(DownCause::Keys)
    }

    /// It was looked for twice.
    fn no_token(boot: &Boot) -> Self {
        let (label, module) = (&boot.token_label, boot.module.display());
        let line = match boot.in_use {
            true => format!(
                "no token is labelled {label}, and there is a database that needs it: bring the HSM back, or the way to it, \
                 or correct hsm.token_label, hsm.module ({module}), hsm.environment, hsm.folders or hsm.network"
            ),
            false => format!(
                "no token is labelled {label}: bring the HSM back if it is away, or correct hsm.token_label, hsm.module \
                 ({module}), hsm.environment, hsm.folders or hsm.network; if there never was one, run `hsm-authd init`"
            ),
        };
        Self::new(line).of(DownCause::TokenAway)
    }

    /// Gives the exit code, and says why if it is one of these; of none at all, always.
    fn report_if(&self, finals: &[u8]) -> ExitCode {
        match finals.is_empty() || finals.contains(&self.exit) {
            true => self.report(),
            false => ExitCode::from(self.exit),
        }
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
/// Returns success at the end of its input, else one of the `EXIT_` codes of this module. `finals`: those with which the
/// service ends, too. Only of these it says why on standard error: of the others its front does, and not each time. Of
/// none at all: somebody waits for it who reads along.
pub fn run(supervisor_pid: i32, finals: &[u8]) -> ExitCode {
    if let Err(failure) = shut_in(supervisor_pid, c"hsm-custodian") {
        return failure.report();
    }
    let peer = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(error) => return StartFailure::new(format!("standard input: {error}")).report(),
    };
    let (boot, handed) = match first::<Boot>(&peer) {
        Ok(Some(first)) => first,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            let line = format!(
                "standard input holds no boot message ({error}): `hsm-authd serve` starts custodians"
            );
            return StartFailure::new(line).report();
        }
    };
    // Whoever waits for it learns how far it is, and why it came no further. If nobody does, nobody has to.
    let say = |greeting: Greeting| drop(write_frame(&mut &peer, &greeting));
    let opened = |step| say(Greeting::Starting(step));
    let connection = match Connection::open(&boot, handed.into_iter().next(), &opened) {
        Ok(connection) => connection,
        Err(failure) => {
            // On standard error first: who hears of it may end this process.
            let end = failure.report_if(finals);
            say(Greeting::Down(Down { cause: failure.cause, line: failure.line, exit: failure.exit }));
            return end;
        }
    };
    tracing::info!(token = connection.description(), "custodian ready");
    match serve(&mut Frames::new(&peer), &peer, connection, Wear::of(&boot)) {
        Ok(end) => end,
        Err(error) => {
            tracing::error!(%error, "custodian: the conversation broke");
            ExitCode::from(EXIT_PROTOCOL_BROKEN)
        }
    }
}

fn shut_in(supervisor_pid: i32, name: &CStr) -> Result<(), StartFailure> {
    control::bind_to_supervisor(supervisor_pid, name).map_err(|error| not_shut_in(&error))?;
    // Before there is a secret in it.
    sandbox::lock_memory().map_err(|error| not_shut_in(&format!("its memory is not locked: {error}")))
}

/// Of what the kernel can and did not, which may be otherwise the next time: memory may have been short.
fn not_shut_in(error: &dyn std::fmt::Display) -> StartFailure {
    StartFailure::new(format!("the process cannot be shut in: {error}"))
}

/// Loads the module, which from here on reaches what the configuration says: what else this process needs, such as the file
/// of a PIN, is open by then.
fn load_module(boot: &Boot) -> Result<Module, StartFailure> {
    sandbox::enclose_custodian(&boot.module, &boot.reach).map_err(|error| not_shut_in(&error))?;
    Module::load(&boot.module, boot.module_arguments.as_deref()).map_err(|error| {
        let line = format!("the PKCS#11 module {} does not load ({error})", boot.module.display());
        match error.is_no_library() {
            true => StartFailure::misconfigured(format!(
                "{line}: correct hsm.module, or bring back what is to be there"
            )),
            false => StartFailure::new(format!(
                "{line}: it may lack what it reads and writes (hsm.folders), or sockets (hsm.network)"
            )),
        }
    })
}

/// The one token of that label; `None`: there is none, and was none a moment ago.
fn find_token(module: &Module, label: &str) -> Result<Option<Token>, StartFailure> {
    let away = |line: String| StartFailure::new(line).of(DownCause::TokenAway);
    for _ in 0..2 {
        let listed = module.tokens_labelled(label);
        let (mut tokens, passed_over) =
            listed.map_err(|error| away(format!("the tokens cannot be listed ({error})")))?;
        match (tokens.pop(), tokens.len()) {
            (_, 1..) => {
                return Err(StartFailure::new(format!(
                    "several tokens are labelled {label}: have the module show the one with the keys alone \
                     (hsm.environment), and initialise none of them, which would destroy its keys"
                ))
                .of(DownCause::Configuration));
            }
            (Some(token), 0) => return Ok(Some(token)),
            (None, 0) if passed_over > 0 => {
                return Err(away(format!(
                    "a slot's token cannot be read just now, and may be {label}: try again"
                )));
            }
            (None, 0) => {}
        }
    }
    Ok(None)
}

/// Logs in. From here on this process makes the system calls of its daily work.
fn login(module: &Module, token: &Token, pin: &Pin, boot: &Boot) -> Result<Session, StartFailure> {
    let session = module
        .login(token, pin)
        .map(|session| session.accepting_shared_keys(boot.shared_keys))
        .map_err(|error| StartFailure::login(&boot.token_label, "user", &boot.pin_file, &error))?;
    sandbox::seal_custodian(&boot.reach).map_err(|error| not_shut_in(&error))?;
    Ok(session)
}

/// Answers calls in their order until the peer is gone.
fn serve(
    frames: &mut Frames<impl Read>,
    mut peer: &UnixStream,
    mut connection: Connection,
    mut wear: Wear,
) -> io::Result<ExitCode> {
    let mut told = connection.newest_keys();
    let (build_id, token) = (BUILD_ID.to_owned(), connection.description().to_owned());
    if !write_frame(
        &mut peer,
        &Greeting::Up(Hello {
            build_id,
            token,
            newest: told.clone(),
            shared: connection.key_checks(),
            tls: connection.tls_keys(),
        }),
    )? {
        return Ok(ExitCode::SUCCESS);
    }
    while let Some(Call { repeated, id, newest, request }) = frames.next()? {
        let begun = Instant::now();
        connection.keep_up(&newest);
        let result = connection.answer(&request, repeated);
        let busy_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let hsm_failed = match &result {
            Err(Fault::Hsm(failure)) => {
                tracing::error!(%failure, "custodian: the HSM failed, leaving");
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
        let own = connection.newest_keys();
        let newest = (own != told).then(|| own.clone());
        told = own;
        let stale = connection.is_stale().then_some(Tired::Stale);
        let tired = stale.or(wear.tired(connection.unwraps()));
        let heard = write_frame(
            &mut peer,
            &Reply { id, busy_ns, newest, tired, healed: connection.healed(), result },
        )?;
        if hsm_failed {
            return Ok(ExitCode::from(EXIT_HSM_FAILED));
        }
        if !heard {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the clock says. A lie of it costs time, no key.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
