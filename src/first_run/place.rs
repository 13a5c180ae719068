//! Files that a first run makes: whole or not at all, never in the place of another one, and nobody else's to rearrange.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::unistd::{getegid, geteuid};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{at, say};
use crate::config::Config;
use crate::operator::Owner;

/// Who reads a file besides who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Nobody.
    Nobody,
    /// The service, by its group.
    Service,
}

/// The folder of a configuration, in which one run at a time makes files.
pub struct Place {
    gid: u32,
    _locked: File,
}

impl Place {
    /// Makes the folder if it is not there, and the one of the database if that is this user's to make.
    ///
    /// # Errors
    /// One line for the operator; then nothing was made but folders.
    pub fn take(folder: &Path, config: &Config) -> Result<Self, String> {
        let store = config.store.folder();
        if !store.exists() {
            if geteuid().is_root() {
                return Err(format!(
                    "{0}: the folder of the database is not there; make it, for the service's user: install -d -m 0700 -o \
                     hsm-authd -g hsm-authd {0}",
                    store.display()
                ));
            }
            DirBuilder::new().recursive(true).mode(0o700).create(store).map_err(|e| at(store, &e))?;
            say(format_args!("{}: made", store.display()))?;
        }
        let owner = Owner::of(store)?;
        let gid = if geteuid().is_root() { owner.gid } else { getegid() }.as_raw();
        if !folder.exists() {
            make_folder(folder, gid).map_err(|e| at(folder, &e))?;
            say(format_args!("{}: made", folder.display()))?;
        }
        is_roots_alone(folder)?;
        let locked = File::open(folder).map_err(|e| at(folder, &e))?;
        // One that was there is left as it is: it may be root's own for good reasons.
        if geteuid().is_root() && !owner.may_enter(&locked.metadata().map_err(|e| at(folder, &e))?) {
            return Err(format!(
                "{0}: {1} could read no configuration there; have it enter (chgrp {1} {0}; chmod g+rx {0}), or take another \
                 folder",
                folder.display(),
                owner.name
            ));
        }
        match locked.try_lock() {
            Ok(()) => Ok(Self { gid, _locked: locked }),
            Err(TryLockError::WouldBlock) => {
                Err(format!("{}: another init is at work there", folder.display()))
            }
            Err(TryLockError::Error(error)) => Err(at(folder, &error)),
        }
    }

    /// Makes a file, and says so. One that is there stays as it is.
    ///
    /// # Errors
    /// One line for the operator; then it is not there.
    pub fn write(&self, path: &Path, content: &[u8], reader: Reader) -> Result<(), String> {
        let failed = |e: io::Error| at(path, &e);
        let folder = path.parent().unwrap_or(Path::new("/"));
        is_roots_alone(folder)?;
        let unfinished = path.with_added_extension("new");
        if fs::symlink_metadata(path).is_ok() {
            return say(format_args!("{}: already there", path.display()));
        }
        // What an interrupted run left.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mode = match reader {
            Reader::Nobody => 0o600,
            Reader::Service => 0o640,
        };
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(&unfinished).map_err(failed)?;
        let mut write = || -> io::Result<()> {
            file.write_all(content)?;
            if reader == Reader::Service {
                fchown(&file, None, Some(self.gid))?;
            }
            // Whatever the umask left of it.
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()?;
            // Not in the place of what came there meanwhile, and never with two names.
            renameat_with(CWD, &unfinished, CWD, path, RenameFlags::NOREPLACE)?;
            File::open(folder)?.sync_all()
        };
        if let Err(error) = write() {
            let _ = fs::remove_file(&unfinished);
            return Err(failed(error));
        }
        say(format_args!("{}: made", path.display()))
    }
}

/// A folder that the service's group may read, whole or not at all.
fn make_folder(folder: &Path, gid: u32) -> io::Result<()> {
    let unfinished = folder.with_added_extension("new");
    // What an interrupted run left: nothing is in it yet.
    match fs::remove_dir(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&unfinished)?;
    let opened = File::open(&unfinished)?;
    fchown(&opened, None, Some(gid))?;
    opened.set_permissions(fs::Permissions::from_mode(0o750))?;
    fs::rename(&unfinished, folder)
}

/// Root writes into no folder that somebody else could rearrange: a link there would lead it anywhere.
fn is_roots_alone(folder: &Path) -> Result<(), String> {
    let metadata = fs::metadata(folder).map_err(|e| at(folder, &e))?;
    let (is_folder, name) = (metadata.is_dir(), folder.display());
    match metadata.mode() & 0o022 {
        _ if !geteuid().is_root() => Ok(()),
        0 if is_folder && metadata.uid() == 0 => Ok(()),
        _ => Err(format!(
            "{name}: others may write there; make it root's alone: chown root {name}; chmod go-w {name}"
        )),
    }
}
