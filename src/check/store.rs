//! The folder of the database and those of software tokens: whose they are, and whether there is room.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::Report;
use crate::config::Config;
use crate::operator::Owner;

const MEBIBYTE: u64 = 1024 * 1024;
/// With less room nothing is committed for long; with less than the other it is time to look.
const ROOM_MEBIBYTES_MIN: u64 = 64;
const ROOM_MEBIBYTES_FEW: u64 = 1_024;
/// No software token has more files that are looked at.
const ENTRIES_MAX: usize = 20_000;

/// Looks as the service's user.
pub fn check(config: &Config, report: &mut Report) {
    let folder = config.store.folder();
    let owner = match Owner::of(folder) {
        Ok(owner) => owner,
        Err(_) => {
            report.wrong(format_args!("{}: the store's folder does not exist", folder.display()));
            return;
        }
    };
    let before = report.wrong;
    database(folder, &owner, report);
    if report.wrong == before {
        report.ok(format_args!("store: its folder is there, and all in it is {}'s alone", owner.name));
    }
    room(folder, report);
    let before = report.wrong;
    for token in config.hsm.tokens() {
        token.folders.iter().for_each(|path| reachable(path, &owner, report));
    }
    if report.wrong == before && !config.hsm.folders.is_empty() {
        report.ok(format_args!("hsm.folders: {} reads and writes what is there", owner.name));
    }
}

fn database(folder: &Path, owner: &Owner, report: &mut Report) {
    let shown = folder.display();
    if fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        report.wrong(format_args!("{shown}: others may look into it; chmod 0700 {shown}"));
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            report.wrong(format_args!("{shown}: {error}; run this as root, or as its owner"));
            return;
        }
    };
    for entry in entries.flatten() {
        let (Ok(metadata), path) = (entry.metadata(), entry.path()) else { continue };
        let path = path.display();
        if metadata.uid() != owner.uid.as_raw() {
            report.wrong(format_args!(
                "{path}: it is not {}'s, who cannot write it then; chown {} {path}",
                owner.name, owner.uid
            ));
        }
        if metadata.mode() & 0o077 != 0 && !metadata.file_type().is_symlink() {
            report.wrong(format_args!("{path}: others may use it; chmod go= {path}"));
        }
    }
}

fn room(folder: &Path, report: &mut Report) {
    let shown = folder.display();
    let stat = match statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            report.note(format_args!("{shown}: its room is not known ({})", error.desc()));
            return;
        }
    };
    #[allow(clippy::useless_conversion, reason = "they are narrower on other machines")]
    let free = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())) / MEBIBYTE;
    let no_files = stat.files() > 0 && stat.files_available() == 0;
    match free {
        _ if no_files => {
            report.wrong(format_args!("{shown}: no file can be made there (df -i): nothing is committed"))
        }
        0..ROOM_MEBIBYTES_MIN => report
            .wrong(format_args!("{shown}: {free} MiB are free: make room, nothing is committed without")),
        ROOM_MEBIBYTES_MIN..ROOM_MEBIBYTES_FEW => {
            report.note(format_args!("store: {free} MiB are free; make room"));
        }
        _ => report.ok(format_args!("store: {free} MiB are free")),
    }
}

/// A software token's folder, or what belongs to the driver of an HSM.
fn reachable(path: &Path, owner: &Owner, report: &mut Report) {
    let shown = path.display();
    let Ok(metadata) = fs::metadata(path) else {
        report.note(format_args!("{shown}: it is in hsm.folders, and not there"));
        return;
    };
    let is_its = |metadata: &fs::Metadata| metadata.uid() == owner.uid.as_raw();
    if metadata.is_dir() && is_its(&metadata) && metadata.mode() & 0o077 != 0 {
        report.wrong(format_args!("{shown}: others may look into it; chmod 0700 {shown}"));
    }
    // Without root's help only what this user itself can do is known.
    if owner.uid != geteuid() {
        return;
    }
    if !metadata.is_dir() {
        if access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_err() {
            report.wrong(format_args!(
                "{shown}: {} may not use it; who may says `ls -l`, and SupplementaryGroups= of the unit adds a group",
                owner.name
            ));
        }
        return;
    }
    // Of a folder that is root's, such as one of devices, not everything is for the service.
    if !is_its(&metadata) {
        return;
    }
    if let Some(wrong) = entries(path).into_iter().find(|path| !is_usable(path)) {
        report.wrong(format_args!(
            "{}: {} may not read and write it; chown -R {} {shown}",
            wrong.display(),
            owner.name,
            owner.uid
        ));
    }
}

fn is_usable(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return true };
    let kind = metadata.file_type();
    let needed = match kind.is_dir() {
        true => AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
        false => AccessFlags::R_OK | AccessFlags::W_OK,
    };
    kind.is_symlink() || kind.is_socket() || access(path, needed).is_ok()
}

/// A folder and all beneath it, as far as it can be seen.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (vec![folder.to_owned()], vec![folder.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if found.len() >= ENTRIES_MAX {
                return found;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}
