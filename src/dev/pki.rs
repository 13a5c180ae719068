//! The development PKI: one authority, a server certificate and client certificates in a folder.
//!
//! The authority's key lies in that folder, so that clients can be added later: whoever reads the folder can
//! be any client. That is for development alone.

mod authority;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::domain::caller::ClientName;

pub use authority::{AlternativeName, Authority, CertificateError, Identity, Purpose, Validity};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3_652);
const LEAF_LIFE: Duration = DAY.saturating_mul(365);
/// What expires this soon is made anew.
const LIFE_LEFT_MIN: Duration = DAY;
/// So that a machine whose clock is a little behind can use what was made just now.
const BACKDATED: Duration = DAY;

/// Where a certificate and its key are, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key (PKCS#8), readable by its owner alone.
    pub key: PathBuf,
}

impl Files {
    fn in_folder(folder: &Path, name: &str) -> Self {
        Self { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
    }
}

/// A folder's certificates. The paths begin with the folder as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pki {
    /// The authority's certificate, which both sides trust.
    pub ca: PathBuf,
    /// The server's.
    pub server: Files,
    /// The clients', by name.
    pub clients: BTreeMap<String, Files>,
}

/// Why a folder's PKI cannot be used or completed, in one line that says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file is there that was not made here; it is left as it is.
    #[error("{}: {source}; remove {} and {} to have them made anew", files.certificate.display(), files.certificate.display(), files.key.display())]
    Foreign {
        /// The pair of which one cannot be read.
        files: Files,
        /// What is wrong with it.
        source: CertificateError,
    },
    /// The authority's certificate is there without its key.
    #[error("{} is missing: put it back, or remove {} to begin with a new authority", files.key.display(), files.certificate.display())]
    KeyMissing {
        /// The authority's.
        files: Files,
    },
    /// A client's name that is none, or would be another's file.
    #[error("{0:?} cannot be the name of a development client")]
    ClientName(String),
    /// A certificate could not be made.
    #[error("{}: {source}", path.display())]
    Issue {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: CertificateError,
    },
}

/// The URI that names a client in its development certificate.
pub fn client_uri(client: &str) -> String {
    format!("urn:hsm-authd:client:{client}")
}

/// Makes what is missing of the folder's PKI: `ca`, `server` and one pair of files a client, each `.pem` and
/// `.key`. The server's certificate is for `localhost`, both loopback addresses and `listen`.
///
/// What is there and still good stays as it is, to the byte. A leaf is made anew if it is not the authority's,
/// lacks a name, or ends within a day of `now`; the authority likewise, and then all leaves with it.
///
/// Every file appears whole, by rename; a crash between two leaves a pair that does not match, which the next
/// call makes anew. Two calls at once on one folder are not foreseen.
///
/// # Errors
/// [`PkiError`], which names the file.
pub fn ensure(folder: &Path, clients: &[&str], listen: IpAddr, now: SystemTime) -> Result<Pki, PkiError> {
    let names = clients.iter().map(|client| client_name(client)).collect::<Result<Vec<_>, _>>()?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| PkiError::Io { path: folder.to_owned(), source })?;
    let ca = Files::in_folder(folder, "ca");
    let authority = ensure_authority(&ca, now)?;

    let mut server_names = vec![AlternativeName::Dns("localhost".into())];
    let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    server_names.extend(loopbacks.map(AlternativeName::Ip));
    if !loopbacks.contains(&listen) {
        server_names.push(AlternativeName::Ip(listen));
    }
    let server = Files::in_folder(folder, "server");
    ensure_leaf(&authority, &server, Purpose::Server, "hsm-authd development server", &server_names, now)?;

    let mut client_files = BTreeMap::new();
    for name in names {
        let files = Files::in_folder(folder, name.as_str());
        let uri = [AlternativeName::Uri(client_uri(name.as_str()))];
        ensure_leaf(&authority, &files, Purpose::Client, name.as_str(), &uri, now)?;
        client_files.insert(String::from(name), files);
    }
    Ok(Pki { ca: ca.certificate, server, clients: client_files })
}

/// A name without a path in it, and no other pair's.
fn client_name(text: &str) -> Result<ClientName, PkiError> {
    let refused = || PkiError::ClientName(text.to_owned());
    if ["ca", "server"].contains(&text) {
        return Err(refused());
    }
    ClientName::try_from(text.to_owned()).map_err(|_| refused())
}

fn ensure_authority(files: &Files, now: SystemTime) -> Result<Authority, PkiError> {
    // The key is written first, so this is no crash's doing.
    if exists(&files.certificate)? && !exists(&files.key)? {
        return Err(PkiError::KeyMissing { files: files.clone() });
    }
    let kept = read(files)?.filter(|kept| is_fresh(kept, now)).and_then(Authority::from_identity);
    if let Some(authority) = kept {
        return Ok(authority);
    }
    let authority = Authority::generate("hsm-authd development CA", life(now, AUTHORITY_LIFE))
        .map_err(|source| PkiError::Issue { path: files.certificate.clone(), source })?;
    write(files, authority.identity())?;
    Ok(authority)
}

fn ensure_leaf(
    authority: &Authority,
    files: &Files,
    purpose: Purpose,
    common_name: &str,
    names: &[AlternativeName],
    now: SystemTime,
) -> Result<(), PkiError> {
    let is_good = |kept: &Identity| {
        kept.is_consistent() && authority.has_issued(kept) && kept.has_names(names) && is_fresh(kept, now)
    };
    if read(files)?.is_some_and(|kept| is_good(&kept)) {
        return Ok(());
    }
    let leaf = authority
        .issue(purpose, common_name, names, life(now, LEAF_LIFE))
        .map_err(|source| PkiError::Issue { path: files.certificate.clone(), source })?;
    write(files, &leaf)
}

fn is_fresh(identity: &Identity, now: SystemTime) -> bool {
    identity.is_valid_throughout(Validity { not_before: now, not_after: now + LIFE_LEFT_MIN })
}

fn life(now: SystemTime, length: Duration) -> Validity {
    Validity { not_before: now - BACKDATED, not_after: now + length }
}

fn exists(path: &Path) -> Result<bool, PkiError> {
    path.try_exists().map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

/// Reads a pair, if both files are there.
fn read(files: &Files) -> Result<Option<Identity>, PkiError> {
    if !exists(&files.certificate)? || !exists(&files.key)? {
        return Ok(None);
    }
    let text = |path: &Path| {
        fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
    };
    let (certificate, key) = (text(&files.certificate)?, Zeroizing::new(text(&files.key)?));
    Identity::from_pem(&certificate, &key)
        .map(Some)
        .map_err(|source| PkiError::Foreign { files: files.clone(), source })
}

/// Writes a pair, the key first.
fn write(files: &Files, identity: &Identity) -> Result<(), PkiError> {
    let failed = |source| PkiError::Issue { path: files.certificate.clone(), source };
    let (certificate, key) =
        (identity.certificate_pem().map_err(failed)?, identity.key_pem().map_err(failed)?);
    let write = |path: &Path, text: &str, mode| {
        replace(path, text.as_bytes(), mode).map_err(|source| PkiError::Io { path: path.to_owned(), source })
    };
    write(&files.key, &key, 0o600)?;
    write(&files.certificate, &certificate, 0o644)
}

/// Puts a file in place whole, durable before it has its name, and never readable by more than `mode` says.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_added_extension("new");
    // A crash may have left one.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
