//! Files that a first run makes: whole or not at all, never in the place of another one, and nobody else's to rearrange.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::unistd::{getegid, geteuid};

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

/// The mode of a folder that is not the group's of the service yet. Nobody but root could read a configuration there.
const UNFINISHED: u32 = 0o700;

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
            let mode = if geteuid().is_root() { UNFINISHED } else { 0o750 };
            DirBuilder::new().mode(mode).create(folder).map_err(|e| at(folder, &e))?;
            say(format_args!("{}: made", folder.display()))?;
        }
        is_roots_alone(folder)?;
        let locked = File::open(folder).map_err(|e| at(folder, &e))?;
        let metadata = locked.metadata().map_err(|e| at(folder, &e))?;
        if geteuid().is_root() && metadata.mode() & 0o7777 == UNFINISHED && metadata.gid() == 0 {
            let given = fchown(&locked, None, Some(gid))
                .and_then(|()| locked.set_permissions(fs::Permissions::from_mode(0o750)));
            given.map_err(|e| at(folder, &e))?;
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
        if fs::symlink_metadata(path).is_ok() {
            return say(format_args!("{}: already there", path.display()));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        is_roots_alone(folder)?;
        let unfinished = path.with_added_extension("new");
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
            // A rename would replace what came there meanwhile.
            fs::hard_link(&unfinished, path)?;
            fs::remove_file(&unfinished)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(failed)?;
        say(format_args!("{}: made", path.display()))
    }
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
