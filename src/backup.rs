//! `hsm-authd backup`: a copy of the database in one file, made while the service runs, and a manifest that says what is
//! in it. It needs no HSM: what protects the rows protects them in the copy.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Ending;
use crate::clock::{Clock, SystemClock};
use crate::custodian::key_task::KeyDescription;
use crate::domain::system_key::KeyKind;
use crate::domain::time::rfc3339;
use crate::keys;
use crate::operator;
use crate::store::{self, Contents};

/// What [`Manifest::format`] says.
const FORMAT: &str = "hsm-authd/backup/v1";
/// How much of a file is read at once, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// What stands beside a copy, as `FILE.manifest.json`: enough to find out whether it is whole, and whether the HSM at hand
/// has its keys. It is signed by nobody: what the copy is worth, its seals and its checkpoint say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `hsm-authd/backup/v1`.
    pub format: String,
    /// The release that made it.
    pub release: String,
    /// When, RFC 3339 in UTC.
    pub created: String,
    /// The version of the database's schema.
    pub schema: i64,
    /// The head of its log.
    pub log: LogHead,
    /// The note of its newest checkpoint.
    pub checkpoint: Option<String>,
    /// The keys of the HSM that it needs.
    pub keys: NeededKeys,
    /// Its credentials' secrets.
    pub secrets: Secrets,
    /// The copy's length.
    pub bytes: u64,
    /// The copy's SHA-256, lower hex.
    pub sha256: String,
}

/// The head of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Which log.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root over them, base64.
    pub root: String,
    /// The sum over all rows, base64.
    pub sum: String,
}

/// The versions of system keys that rows name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeededKeys {
    /// That seal rows.
    pub row: Vec<NeededKey>,
    /// That wrap secrets.
    pub kek: Vec<NeededKey>,
    /// That encrypt PIN hashes.
    pub data: Vec<NeededKey>,
}

impl NeededKeys {
    /// Adds the key check values of what the token has.
    fn fill(&mut self, keys: &[KeyDescription]) {
        let versions =
            [(KeyKind::Row, &mut self.row), (KeyKind::Kek, &mut self.kek), (KeyKind::Data, &mut self.data)];
        for (kind, needed) in versions {
            for needed in needed {
                let key = keys.iter().find(|key| (key.kind, key.version) == (kind, needed.version));
                needed.kcv = key.map(|key| key.check_value.clone());
            }
        }
    }

    /// What of it a token does not have, or has another key of that name; `None`: it has all of it.
    pub fn missing_from(&self, keys: &[KeyDescription]) -> Option<String> {
        let versions = [(KeyKind::Row, &self.row), (KeyKind::Kek, &self.kek), (KeyKind::Data, &self.data)];
        versions.into_iter().flat_map(|(kind, needed)| needed.iter().map(move |key| (kind, key))).find_map(
            |(kind, needed)| {
                let name = format!("hsm-authd/{kind}/v{}", needed.version);
                match keys.iter().find(|key| (key.kind, key.version) == (kind, needed.version)) {
                    None => Some(format!("the token has no key {name}, which rows of the copy need")),
                    Some(key) if needed.kcv.as_ref().is_some_and(|kcv| *kcv != key.check_value) => {
                        Some(format!("the token's key {name} is another one than that of the copy"))
                    }
                    Some(_) => None,
                }
            },
        )
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeededKey {
    /// Its version.
    pub version: u16,
    /// Its key check value, hex, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kcv: Option<String>,
}

/// How many secrets are where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Wrapped in the copy.
    pub wrapped: u64,
    /// In the HSM: a copy of the database has none of them.
    pub resident: u64,
}

impl Manifest {
    fn new(contents: Contents, unix_ms: u64, bytes: u64, sha256: String) -> Self {
        let needed = |versions: Vec<u16>| {
            versions.into_iter().map(|version| NeededKey { version, kcv: None }).collect()
        };
        let head = contents.head;
        Self {
            format: FORMAT.to_owned(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            created: rfc3339(unix_ms),
            schema: contents.schema,
            log: LogHead {
                origin: head.origin.to_string(),
                size: head.size,
                root: BASE64.encode(&head.root.0),
                sum: BASE64.encode(head.sum.bytes()),
            },
            checkpoint: contents.checkpoint,
            keys: NeededKeys {
                row: needed(contents.row_keys),
                kek: needed(contents.keks),
                data: needed(contents.data_keys),
            },
            secrets: Secrets { wrapped: contents.wrapped, resident: contents.resident },
            bytes,
            sha256,
        }
    }

    /// The manifest of a copy.
    ///
    /// # Errors
    /// One line: there is none, or it is none of ours.
    pub fn of(copy: &Path) -> Result<Self, String> {
        let path = manifest_path(copy);
        let text = fs::read(&path).map_err(|e| at(&path, &e))?;
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|e| format!("{} is no manifest: {e}", path.display()))?;
        match manifest.format == FORMAT {
            true => Ok(manifest),
            false => Err(format!("{}: of another format than {FORMAT}", path.display())),
        }
    }

    /// What of a copy is not as it says, if anything.
    pub fn differs_from(&self, contents: &Contents) -> Option<&'static str> {
        let same = Self::new(contents.clone(), 0, 0, String::new());
        let versions = |keys: &[NeededKey]| keys.iter().map(|key| key.version).collect::<Vec<_>>();
        let differs = [
            (same.schema == self.schema, "the schema"),
            (same.log == self.log, "the log"),
            (same.checkpoint == self.checkpoint, "the checkpoint"),
            (versions(&same.keys.row) == versions(&self.keys.row), "the versions of row keys"),
            (versions(&same.keys.kek) == versions(&self.keys.kek), "the versions of keks"),
            (versions(&same.keys.data) == versions(&self.keys.data), "the versions of data keys"),
            (same.secrets == self.secrets, "the number of secrets"),
        ];
        differs.into_iter().find(|(is_same, _)| !is_same).map(|(_, what)| what)
    }
}

/// Runs `backup` for a configuration file.
///
/// # Errors
/// See [`Ending`]; then there is no new file.
pub fn run(config: &Path, to: &Path) -> Ending {
    let config = operator::load(config)?;
    // An HSM that is away is no reason to have no copy.
    let keys = keys::described(&config.hsm).unwrap_or_else(|_| {
        let _ = writeln!(
            io::stderr(),
            "hsm-authd: the HSM cannot be asked: the manifest has no key check values"
        );
        Vec::new()
    });
    let manifest = make(&config.store.path, to, &keys)?;
    let Manifest { log, bytes, .. } = manifest;
    let _ = writeln!(
        io::stdout(),
        "{}: {bytes} bytes, {} entries of {}; what it holds is in {}",
        to.display(),
        log.size,
        log.origin,
        manifest_path(to).display()
    );
    Ok(())
}

fn make(store: &Path, to: &Path, keys: &[KeyDescription]) -> Result<Manifest, String> {
    let is_there = || format!("{} exists; nothing was written", to.display());
    if to.try_exists().map_err(|e| at(to, &format_args!("{e}{}", operator::denied(&e))))? {
        return Err(is_there());
    }
    let part = Part::begin(to)?;
    store::copy(store, &part.path).map_err(|e| e.to_string())?;
    let contents = store::contents(&part.path).map_err(|e| e.to_string())?;
    let copied = File::open(&part.path).and_then(|file| digest(&file, &mut io::sink()));
    let (bytes, sha256) = copied.map_err(|e| at(&part.path, &e))?;
    let now = SystemClock.read().ok_or("the clock cannot be read")?;
    let mut manifest = Manifest::new(contents, now.unix_ms, bytes, sha256);
    manifest.keys.fill(keys);

    // First the manifest: whoever finds the copy finds that beside it. One without a copy is what was interrupted.
    let path = manifest_path(to);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| e.to_string())?;
    let manifest_part = Part::begin(&path)?;
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).open(&manifest_part.path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&manifest_part.path, &path)
    };
    write().map_err(|e| at(&path, &e))?;
    // A link, because a rename would replace what came there meanwhile.
    fs::hard_link(&part.path, to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => is_there(),
        _ => at(to, &error),
    })?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| at(folder, &e))?;
    Ok(manifest)
}

/// A file that is being written under another name, and goes if nothing comes of it.
struct Part {
    path: PathBuf,
    /// Two backups into one file would write over each other.
    _locked: File,
}

impl Part {
    fn begin(of: &Path) -> Result<Self, String> {
        let path = with_suffix(of, ".part");
        let options = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = options.map_err(|e| at(&path, &format_args!("{e}{}", operator::denied(&e))))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{} is being written by another process", path.display()));
            }
            Err(TryLockError::Error(error)) => return Err(at(&path, &error)),
        }
        // What an interrupted one left.
        file.set_len(0).map_err(|e| at(&path, &e))?;
        Ok(Self { path, _locked: file })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // If it cannot be removed, the next backup writes over it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Copies a file to `out`; its length, and its SHA-256 in lower hex.
///
/// # Errors
/// Reading or writing failed.
pub fn digest(mut file: &File, out: &mut impl Write) -> io::Result<(u64, String)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = file.read(&mut chunk)?;
        match chunk.get(..length) {
            Some(read) if !read.is_empty() => {
                hash.update(read);
                out.write_all(read)?;
            }
            _ => return Ok((bytes, HEXLOWER.encode(&hash.finalize()))),
        }
        bytes = bytes.saturating_add(length as u64);
    }
}

/// Where the manifest of a copy is.
pub fn manifest_path(copy: &Path) -> PathBuf {
    with_suffix(copy, ".manifest.json")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
