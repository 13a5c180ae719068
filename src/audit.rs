//! `hsm-authd audit`: the log of a database, checked and written out. No service is needed, an HSM only for the seals and
//! sums of rows, and nothing is changed.

use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data_encoding::BASE64;

use crate::Ending;
use crate::domain::checkpoint::{NOTE_BYTES_MAX, Note};
use crate::domain::signer::PublicKey;
use crate::domain::time::rfc3339;
use crate::offline::Offline;
use crate::operator;
use crate::service::audit_view::EntryView;
use crate::store::offline::OfflineStore;

mod sealed;
mod told;
mod verification;

use verification::{Evidence, Report};

/// What is done with a log.
#[derive(Subcommand)]
pub enum Command {
    /// Check the log of a database, best of a copy: every entry against its leaf, the tree against every checkpoint,
    /// every row against what the log says of it. Names the first entry that does not fit.
    ///
    /// Seals and sums of rows need the HSM: they are checked with --config. Without it rows are held against the versions
    /// that the log gives them, and no more.
    Verify(VerifyOptions),
    /// Write the log as JSON lines, an entry each, as `GET /v1/audit` shows it.
    Export(ExportOptions),
}

/// Options of `audit verify`.
#[derive(Args)]
pub struct VerifyOptions {
    /// The database. A `-wal` beside it belongs to it: copy both.
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// A checkpoint that was kept elsewhere: a file as `GET /v1/audit/checkpoint` answers. Only such a one shows that
    /// entries are missing at the end if those in the database were removed too.
    #[arg(long, value_name = "NOTE")]
    checkpoint: Vec<PathBuf>,
    /// Public `audit` keys, as PEM, one or more in a file: one of them must have signed every checkpoint, and at least one
    /// checkpoint must cover the log. Without any, and without --config, no signature is checked.
    #[arg(long, value_name = "PEM")]
    key: Vec<PathBuf>,
    /// The configuration of the service: its HSM checks the seal of every row, and what all rows add up to. It has the
    /// `audit` keys too, if no --key is given.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Options of `audit export`.
#[derive(Args)]
pub struct ExportOptions {
    /// The database.
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// Begin after the entry of this number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u32,
}

/// Runs one of them.
///
/// # Errors
/// See [`Ending`].
pub fn run(command: Command) -> Ending {
    match command {
        Command::Verify(options) => verify(&options),
        Command::Export(options) => export(&options),
    }
}

fn verify(options: &VerifyOptions) -> Ending {
    let keys = options.key.iter().map(|path| keys(path)).collect::<Result<Vec<_>, _>>()?;
    let mut keys: Vec<_> = keys.into_iter().flatten().collect();
    let notes = options.checkpoint.iter().map(|path| note(path)).collect::<Result<Vec<_>, _>>()?;
    let config = options.config.as_deref().map(operator::load).transpose()?;
    let store = open(&options.store, config.is_some())?;
    let offline = config.map(|config| Offline::start(&config.hsm)).transpose()?;
    if let Some(offline) = offline.as_ref().filter(|_| keys.is_empty()) {
        keys = offline.runtime.block_on(offline.hsm.audit_keys()).map_err(|error| error.to_string())?;
    }
    let (given, key_count) = (notes.len(), keys.len());
    let report = Report::of(&store, Evidence { notes, keys }).map_err(|misfit| misfit.to_string())?;
    let sealed = match &offline {
        Some(offline) => Some(sealed::check(&store, offline).map_err(|misfit| misfit.to_string())?),
        None => None,
    };
    say(&report, given, key_count, sealed).map_err(|error| Some(format!("standard output: {error}")))
}

/// As who owns its folder, unless this is the service's user already.
fn open(store: &Path, is_become: bool) -> Result<OfflineStore, String> {
    let folder = store.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !is_become && folder.is_dir() {
        operator::become_owner(folder)?;
    }
    // Of what may not be read SQLite says less.
    let denied = fs::File::open(store).err().filter(|error| error.kind() == ErrorKind::PermissionDenied);
    match denied {
        Some(error) => Err(format!("{}: {error}{}", store.display(), operator::denied(&error))),
        None => OfflineStore::open(store).map_err(|error| error.to_string()),
    }
}

/// `sealed`: so many rows the HSM has looked at.
fn say(report: &Report, given: usize, keys: usize, sealed: Option<u64>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "log          {}", report.origin)?;
    writeln!(out, "entries      {}", report.size)?;
    writeln!(out, "root         {}", BASE64.encode(&report.root.0))?;
    if let Some((first, last)) = report.span_unix_ms {
        writeln!(out, "first entry  {}", rfc3339(first))?;
        writeln!(out, "last entry   {}", rfc3339(last))?;
    }
    let (kept, covered) = (report.kept_notes, report.covered);
    writeln!(
        out,
        "checkpoints  {kept} kept and {given} given fit; entries up to {covered} are covered by one"
    )?;
    match keys {
        0 => writeln!(out, "signatures   NOT CHECKED: no --key was given")?,
        _ => writeln!(out, "signatures   of every checkpoint right, by {keys} keys")?,
    }
    writeln!(out, "rows         {} are as the log says", report.rows_told)?;
    if report.rows_older > 0 {
        writeln!(
            out,
            "             {} are older than what the log says of rows, or than a recovery",
            report.rows_older
        )?;
    }
    match sealed {
        Some(rows) => {
            writeln!(out, "seals        of {rows} rows right; the rows add up to the sums that are kept")?
        }
        None => writeln!(out, "seals        NOT CHECKED, nor sums: only the HSM can (--config)")?,
    }
    let signed = if keys == 0 { "" } else { "signed " };
    match report.uncovered() {
        0 => writeln!(out, "ok           every entry fits"),
        1 => writeln!(out, "ok           every entry fits; the last one is covered by no {signed}checkpoint"),
        uncovered => writeln!(
            out,
            "ok           every entry fits; the last {uncovered} are covered by no {signed}checkpoint"
        ),
    }
}

/// The public keys of P-256 in a file: at least one.
fn keys(path: &Path) -> Result<Vec<PublicKey>, String> {
    const END: &str = "-----END PUBLIC KEY-----";
    let text = read(path)?;
    let key = |block: &str| {
        let key = PublicKey::from_pem(block).map_err(|error| format!("{}: {error}", path.display()))?;
        match key {
            PublicKey::P256(_) => Ok(key),
            PublicKey::Rsa(_) => Err(format!("{}: an audit key is of P-256", path.display())),
        }
    };
    match text.trim_end().split_inclusive(END).map(key).collect::<Result<Vec<_>, _>>()? {
        keys if keys.is_empty() => Err(format!("{}: no key", path.display())),
        keys => Ok(keys),
    }
}

fn note(path: &Path) -> Result<(String, Note), String> {
    let text = read(path)?;
    let note =
        Note::parse(&text).ok_or_else(|| format!("{}: no checkpoint of an audit log", path.display()))?;
    Ok((format!("in {}", path.display()), note))
}

fn read(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    if length > NOTE_BYTES_MAX as u64 {
        return Err(format!("{}: longer than {NOTE_BYTES_MAX} bytes", path.display()));
    }
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn export(options: &ExportOptions) -> Ending {
    let store = open(&options.store, false)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let ended = store.entries(options.after.into(), |entry| {
        let written = match entry.said {
            Ok(said) => serde_json::to_writer(&mut out, &EntryView::of(&said))
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
                .map_err(Stopped::Output),
            Err(fault) => Err(Stopped::Entry(entry.seq, fault)),
        };
        written.err().map_or(ControlFlow::Continue(()), ControlFlow::Break)
    });
    let stopped = match ended.map_err(|error| error.to_string())? {
        None => out.flush().err().map(Stopped::Output),
        stopped => stopped,
    };
    match stopped {
        None => Ok(()),
        // Whoever reads it has enough.
        Some(Stopped::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Some(Stopped::Output(error)) => Err(Some(format!("standard output: {error}"))),
        Some(Stopped::Entry(seq, fault)) => Err(Some(format!("entry {seq} cannot be read: {fault}"))),
    }
}

/// Why an export is not whole.
enum Stopped {
    Output(io::Error),
    Entry(i64, String),
}
