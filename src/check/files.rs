//! Who may read and change what a service is configured by.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

use super::Report;
use crate::config::Config;
use crate::operator::Owner;

/// Looks as the service's user. `was_root`: root has started this, so that what is configured can be root's.
pub fn check(config: &Config, path: &Path, was_root: bool, report: &mut Report) {
    let Ok(owner) = Owner::of(config.store.folder()) else {
        // Of the folder that is missing is told where the database is.
        return;
    };
    if owner.uid.is_root() {
        report.note(format_args!(
            "user: root owns the folder of the database, so root is whom it runs as; the service of the package needs it to be \
             its user's: chown -R hsm-authd: {}",
            config.store.folder().display()
        ));
    } else if owner.uid != geteuid() {
        report.note(format_args!("user: run it as root, or as {}, whose the service is", owner.name));
    } else {
        report.ok(format_args!("user: {}, who owns the folder of the database", owner.name));
    }
    let before = report.wrong;
    exposed(config, path, report);
    changeable(config, path, &owner, was_root, report);
    unreadable(config, path, &owner, report);
    if report.wrong == before {
        report.ok(format_args!("private files: readable by their owner and group alone"));
    }
}

/// What everybody may read.
fn exposed(config: &Config, path: &Path, report: &mut Report) {
    for path in config.exposed_files() {
        report.wrong(format_args!("{}: everybody may read it; try chmod o= on it", path.display()));
    }
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
        report.note(format_args!("{}: everybody may read it; try chmod o= on it", path.display()));
    }
}

/// What the service, and so whoever takes it over, could change for its next start.
fn changeable(config: &Config, path: &Path, owner: &Owner, was_root: bool, report: &mut Report) {
    if owner.uid.is_root() || owner.uid != geteuid() {
        return;
    }
    let modules = config.hsm.tokens().into_iter().map(|token| token.module);
    let secrets = config.hsm.pin_files().map(Path::to_owned);
    let mut all: Vec<PathBuf> = vec![path.to_owned()];
    all.extend(config.files_of_front().map(Path::to_owned).chain(secrets).chain(modules));
    let handed = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    all.retain(|path| !handed.as_ref().is_some_and(|handed| path.starts_with(handed)));
    let folders: Vec<_> = all.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    all.extend(folders);
    all.sort();
    all.dedup();
    let can_change = |path: &&PathBuf| {
        let is_its = fs::metadata(path).is_ok_and(|metadata| metadata.uid() == owner.uid.as_raw());
        is_its || access(path.as_path(), AccessFlags::W_OK).is_ok()
    };
    let found: Vec<_> = all.iter().filter(can_change).collect();
    // Where all is one user's, that can be so.
    if let ([first, ..], false) = (&found[..], was_root) {
        report.note(format_args!(
            "{}: its user could change it, and {} more; make it root's where somebody else is root",
            first.display(),
            found.len().saturating_sub(1)
        ));
        return;
    }
    for path in found {
        let path = path.display();
        report.wrong(format_args!(
            "{path}: the service's user {} may change it; chown root {path}; chmod go-w {path}",
            owner.name
        ));
    }
}

/// What the service is configured by, and may not read.
fn unreadable(config: &Config, path: &Path, owner: &Owner, report: &mut Report) {
    let folder = path.parent();
    for path in std::iter::once(path).chain(config.files_of_front()) {
        let Err(error) = File::open(path) else { continue };
        if error.kind() != ErrorKind::PermissionDenied {
            // What else is wrong with it, whoever needs it says.
            continue;
        }
        let shown = path.display();
        match (path.file_name(), path.parent() == folder) {
            (Some(name), true) if Some(path) == config.server.key.as_deref() => report.note(format_args!(
                "{shown}: {} may not read it: have systemd hand it over (LoadCredential={}:{shown}), or chgrp {} {shown}; \
                 chmod g+r {shown}",
                owner.name,
                name.to_string_lossy(),
                owner.gid
            )),
            _ => report.wrong(format_args!(
                "{shown}: {} may not read it; chgrp {} {shown}; chmod g+r {shown}",
                owner.name, owner.gid
            )),
        }
    }
}
