//! The files of `[signers]`: the trust anchors and revocation lists that chains of signing devices are held
//! against. A reload loads them again and swaps the whole [`Trust`].

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::config::SignerPolicy;
use crate::domain::certificate::Trust;
use crate::files::Files;

/// What is wrong with one of the files, in one line that says what to mend.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TrustFileError {
    path: PathBuf,
    reason: String,
}

/// Reads the files. What has expired is loaded as well: it is refused, or unknown, when it is asked.
///
/// # Errors
/// A file cannot be read, is not PEM, or has no authority or no list in it.
pub fn load(policy: &SignerPolicy, files: &Files) -> Result<Trust, TrustFileError> {
    read(policy, files, |_, _| Ok(()))
}

/// The same for `hsm-authd check`: names what is not valid at this moment, too, and anchors without a list
/// where there are lists.
///
/// # Errors
/// As [`load`], and for the first such thing.
pub fn check(policy: &SignerPolicy, unix_ms: u64) -> Result<Trust, TrustFileError> {
    let current = |path: &Path, trust: &Trust| match trust.out_of_date(unix_ms) {
        Some(reason) => Err(error(path, reason)),
        None => Ok(()),
    };
    let trust = read(policy, &Files::Disk, current)?;
    policy.trust_anchors.as_deref().map_or(Ok(()), |path| current(path, &trust))?;
    Ok(trust)
}

/// Each file by itself first, so that what is wrong with it is said of it.
fn read(
    policy: &SignerPolicy,
    files: &Files,
    judge: impl Fn(&Path, &Trust) -> Result<(), TrustFileError>,
) -> Result<Trust, TrustFileError> {
    let mut trust = Trust::none();
    if let Some(path) = &policy.trust_anchors {
        let pem = contents(path, files)?;
        let parse = |trust: Trust| trust.with_anchors(&pem).map_err(|e| error(path, e.to_string()));
        judge(path, &parse(Trust::none())?)?;
        trust = parse(trust)?;
    }
    for path in &policy.crls {
        let pem = contents(path, files)?;
        let parse = |trust: Trust| trust.with_crls(&pem).map_err(|e| error(path, e.to_string()));
        judge(path, &parse(Trust::none())?)?;
        trust = parse(trust)?;
    }
    Ok(trust)
}

fn contents(path: &Path, files: &Files) -> Result<Zeroizing<Vec<u8>>, TrustFileError> {
    files.read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => error(path, "no such file".to_owned()),
        _ => error(path, e.to_string()),
    })
}

fn error(path: &Path, reason: String) -> TrustFileError {
    TrustFileError { path: path.to_owned(), reason }
}
