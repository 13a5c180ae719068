//! `make bench-custody`: what secrets that are objects in the HSM cost, against wrapped ones (`docs/custody.md`).
//!
//! One real custodian on a SoftHSM token of its own, asked over its socket as a front asks it; on a disk, and in memory.
//! It asserts no time.

mod custodian;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use custodian::{Custodian, Folder};
use hsm_authd::domain::account::Account;
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::credential::{Credential, CredentialState, Kind, ObjectId, OtpToken, StoredSecret};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::otp::{Algorithm, MovingFactor, Otp};
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::verification::Factor;
use hsm_authd::hsm::messages::{Candidate, CheckOtp, Custody, Outcome, Request, Response, SealRows};

/// What did not go as it has to.
type Outcomes<T = ()> = Result<T, String>;

/// So many enrolments are timed at each number of objects.
const ENROLMENTS: usize = 20;
/// So many wrapped secrets are verified in turn by a custodian that keeps one.
const UNCACHED: usize = 200;
const STARTS: usize = 3;
/// How long verifications are counted.
const COUNTED: Duration = Duration::from_millis(1_500);

/// What secrets cost that are objects in the HSM, against wrapped ones, with SoftHSM.
#[derive(Parser)]
struct Options {
    /// The numbers of objects, ascending.
    #[arg(long, value_delimiter = ',', default_value = "0,100,1000,5000")]
    objects: Vec<usize>,
    /// A folder on a real disk. By default under Cargo's target folder.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// A folder in memory.
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// Set by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let disk = options.disk.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    for (name, base) in [("memory", &options.memory), ("disk", &disk)] {
        if let Err(reason) = measure(name, base, &options.objects) {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "bench: {reason}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn measure(name: &str, base: &Path, numbers: &[usize]) -> Outcomes {
    let folder = Folder::new(base)?;
    say(format_args!(
        "{name}: {}\n{:>8} {:>9} {:>11} {:>11} {:>9} {:>10} | verifications a second: {:>9} {:>9} {:>9}",
        base.display(),
        "objects",
        "start ms",
        "resident ms",
        "wrapped ms",
        "find ms",
        "token KiB",
        "resident",
        "cached",
        "uncached"
    ))?;
    for objects in numbers {
        let mut writer = folder.custodian(10_000)?;
        let there = writer.residents()?;
        for _ in there..*objects {
            enrol(&mut writer, true)?;
        }
        drop(writer);
        let bytes = folder.token_bytes()?;

        let mut starts: Vec<Duration> = Vec::new();
        for _ in 0..STARTS {
            let begun = Instant::now();
            drop(folder.custodian(10_000)?);
            starts.push(begun.elapsed());
        }
        starts.sort();

        // One of the two makes them, and the other one has to look for them.
        let (mut maker, mut user) = (folder.custodian(10_000)?, folder.custodian(1)?);
        let (resident, made) = timed(&mut maker, true)?;
        let (wrapped, blobs) = timed(&mut maker, false)?;
        let standing = made.iter().map(|secret| sealed(&mut user, secret)).collect::<Outcomes<Vec<_>>>()?;
        let begun = Instant::now();
        for standing in &standing {
            user.check(check(standing))?;
        }
        let found = begun.elapsed() / standing.len().max(1) as u32;

        let a_second = |custodian: &mut Custodian, all: &[Vec<SealedBytes>]| -> Outcomes<f64> {
            let (begun, mut count) = (Instant::now(), 0);
            while begun.elapsed() < COUNTED {
                for standing in all {
                    custodian.check(check(standing))?;
                    count += 1;
                }
            }
            Ok(f64::from(count) / begun.elapsed().as_secs_f64())
        };
        let of_residents = a_second(&mut user, &standing)?;
        let standing = blobs.iter().map(|secret| sealed(&mut maker, secret)).collect::<Outcomes<Vec<_>>>()?;
        let of_cached = a_second(&mut maker, &standing)?;
        let mut many = Vec::new();
        for _ in 0..UNCACHED {
            let secret = enrol(&mut user, false)?;
            many.push(sealed(&mut user, &secret)?);
        }
        let of_uncached = a_second(&mut user, &many)?;
        say(format_args!(
            "{objects:>8} {:>9.0} {:>11.1} {:>11.2} {:>9.1} {:>10} | {:23} {of_residents:>9.0} {of_cached:>9.0} {of_uncached:>9.0}",
            ms(starts.get(STARTS / 2).copied().unwrap_or_default()),
            ms(resident),
            ms(wrapped),
            ms(found),
            bytes / 1_024,
            ""
        ))?;
        for secret in made {
            maker.destroy(secret.object().ok_or("no object")?)?;
        }
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn say(line: std::fmt::Arguments<'_>) -> Outcomes {
    writeln!(std::io::stdout(), "{line}").map_err(|error| error.to_string())
}

/// The mean time of an enrolment's secret.
fn timed(custodian: &mut Custodian, resident: bool) -> Outcomes<(Duration, Vec<StoredSecret>)> {
    let begun = Instant::now();
    let made = (0..ENROLMENTS).map(|_| enrol(custodian, resident)).collect::<Outcomes<Vec<_>>>()?;
    Ok((begun.elapsed() / ENROLMENTS as u32, made))
}

fn enrol(custodian: &mut Custodian, resident: bool) -> Outcomes<StoredSecret> {
    let custody = match resident {
        true => Custody::Resident(ObjectId::from_random(random()?)),
        false => Custody::Wrapped,
    };
    match custodian.call(Request::Generate { algorithm: Algorithm::Sha1, export: false, custody })? {
        Response::Secret { stored, .. } => Ok(stored),
        _ => Err("no secret".to_owned()),
    }
}

fn random() -> Outcomes<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A credential with this secret, with its state and account.
fn sealed(custodian: &mut Custodian, secret: &StoredSecret) -> Outcomes<Vec<SealedBytes>> {
    let tenant = Tenant::try_from("bank-a".to_owned()).map_err(|error| error.to_string())?;
    let account = "acct-1".to_owned();
    let account: hsm_authd::domain::account::AccountRef =
        account.try_into().map_err(|_| "no account".to_owned())?;
    let id = CredentialId::from_random(random()?);
    let rows = [
        Row::Credential(Credential {
            id,
            tenant: tenant.clone(),
            account: account.clone(),
            version: 1,
            created_unix_ms: 0,
            kind: Kind::Otp(OtpToken {
                algorithm: Algorithm::Sha1,
                digits: 6.try_into().map_err(|_| "no digits".to_owned())?,
                moving_factor: MovingFactor::Hotp { look_ahead: 0 },
                secret: Some(secret.clone()),
            }),
            deleted_unix_ms: None,
        }),
        Row::State(CredentialState::new(id, tenant.clone(), 0, 0)),
        Row::Account(Account::new(tenant, account)),
    ];
    let outcome = Outcome { replaces: Vec::new(), rows: rows.iter().map(Row::encode).collect() };
    match custodian.call(Request::Seal(SealRows { standing: Vec::new(), outcome }))? {
        Response::Sealed(sealed) => Ok(rows
            .iter()
            .zip(sealed.seals)
            .map(|(row, seal)| SealedBytes { bytes: row.encode(), seal })
            .collect()),
        _ => Err("nothing sealed".to_owned()),
    }
}

/// A code against two candidates, as a verification has them.
fn check(standing: &[SealedBytes]) -> CheckOtp {
    let candidate = |counter| Candidate {
        factor: Factor { counter: Some(counter), time_step: None },
        rows: Some(Vec::new()),
    };
    CheckOtp {
        standing: standing.to_vec(),
        codes: Otp::parse("000000".to_owned()).into_iter().collect(),
        challenge: None,
        candidates: vec![candidate(0), candidate(1)],
        accepted: Outcome::default(),
        repeated: Outcome::default(),
        missed: Outcome::default(),
        attest: None,
    }
}

/// All that is in a folder, as it lies on the disk, in bytes.
fn allocated(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { allocated(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
