//! Operators' commands that root starts: they become the user whose service it is.
//!
//! Whoever owns the folder of the database is that user (`docs/decisions/0029-first-run.md`). So no file beside the database
//! or in a software token's folder is ever root's, and neither a vendor's module nor a database that somebody else wrote is
//! read as root. What root alone may read, the PINs, is opened before, and handed to the processes that log in.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, User, geteuid, getgrouplist, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid,
    setuid,
};

use crate::config::{Config, DEFAULT_PATH};

/// Whose the service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
    /// All its groups.
    groups: BTreeSet<u32>,
    /// Its name, or its number where it has none.
    pub name: String,
}

/// Reads a configuration for a command, which is the service's user from then on.
///
/// # Errors
/// One line for the operator.
pub fn load(path: &Path) -> Result<Config, String> {
    let mut config = Config::load(path).map_err(|e| e.to_string())?;
    take_over(&mut config, &[])?;
    Ok(config)
}

/// The same with a configuration that was read already, and with PINs of security officers.
///
/// # Errors
/// One line for the operator.
pub fn take_over(config: &mut Config, so_pin_files: &[PathBuf]) -> Result<(), String> {
    let folder = config.store.folder();
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = Owner::of(folder)?;
    if owner.uid.is_root() {
        return Ok(());
    }
    let pins = config.hsm.pin_files().chain(so_pin_files.iter().map(PathBuf::as_path));
    // One that cannot be opened is missed by the process that reads it, which says so.
    let opened = pins.filter_map(|path| Some((path.to_owned(), Arc::new(open_as_root(path)?)))).collect();
    config.hsm.opened = opened;
    owner.become_it()
}

/// A file that root alone can have put there; any other is opened as the service's user, if that one may.
fn open_as_root(path: &Path) -> Option<File> {
    let folder = fs::metadata(path.parent()?).ok()?;
    if folder.uid() == 0 && folder.mode() & 0o022 == 0 {
        return File::open(path).ok();
    }
    // Elsewhere others could have put a link, or a pipe that has root wait.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.uid() == 0).then_some(file)
}

/// That root does not serve in the place of the user whose the database is: its files would become root's, and the network's
/// bytes and the module's code would run as root.
///
/// # Errors
/// One line for the operator.
pub fn no_root_in_its_place(config: &Config, path: &Path) -> Result<(), String> {
    let folder = config.store.folder();
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = Owner::of(folder)?;
    match owner.uid.is_root() {
        true => Ok(()),
        false => Err(format!(
            "{} is {}'s, and this is root: runuser -u {1} -- hsm-authd serve{}",
            folder.display(),
            owner.name,
            option(path)
        )),
    }
}

/// Has a process of root's become the user who owns a folder.
///
/// # Errors
/// One line for the operator.
pub fn become_owner(folder: &Path) -> Result<(), String> {
    match geteuid().is_root() {
        true => Owner::of(folder)?.become_it(),
        false => Ok(()),
    }
}

/// Where the package puts the unit.
const UNIT: &str = "/usr/lib/systemd/system/hsm-authd.service";

/// What to type after a command's name, so that it takes this configuration.
pub fn option(config: &Path) -> String {
    match config == Path::new(DEFAULT_PATH) {
        true => String::new(),
        false => format!(" --config {}", config.display()),
    }
}

/// Whether the package's unit is what serves this configuration.
pub fn is_of_unit(config: &Path) -> bool {
    config == Path::new(DEFAULT_PATH) && Path::new(UNIT).exists()
}

/// What to type to have the service go on that was stopped.
pub fn start(config: &Path) -> String {
    start_by(config, is_of_unit(config))
}

fn start_by(config: &Path, unit: bool) -> String {
    match unit {
        true => "systemctl start hsm-authd".to_owned(),
        false => format!("hsm-authd serve{}", option(config)),
    }
}

/// What to add to an error of a file that root could read or write, and the service's user may not.
pub fn denied(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            let uid = geteuid();
            let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
            format!("; this runs as {name}")
        }
        _ => String::new(),
    }
}

impl Owner {
    /// Whether it may list a folder and open what is in it.
    pub fn may_enter(&self, folder: &fs::Metadata) -> bool {
        let bits = match () {
            () if self.uid.is_root() => return true,
            () if folder.uid() == self.uid.as_raw() => folder.mode() >> 6,
            () if self.gid.as_raw() == folder.gid() || self.groups.contains(&folder.gid()) => {
                folder.mode() >> 3
            }
            () => folder.mode(),
        };
        bits & 0o1 != 0
    }

    /// Whoever owns a folder.
    ///
    /// # Errors
    /// One line for the operator: it is no folder, or its owner cannot be looked up.
    pub fn of(folder: &Path) -> Result<Self, String> {
        let at = |reason: &dyn std::fmt::Display| format!("{}: {reason}", folder.display());
        let metadata = fs::metadata(folder).map_err(|e| format!("the folder of the database, {}", at(&e)))?;
        if !metadata.is_dir() {
            return Err(at(&"must be a folder, for the database and nothing else"));
        }
        let uid = Uid::from_raw(metadata.uid());
        let user = User::from_uid(uid).map_err(|e| at(&format!("its owner cannot be looked up ({e})")))?;
        let Some(user) = user else {
            let gid = Gid::from_raw(metadata.gid());
            return Ok(Self { uid, gid, groups: [gid.as_raw()].into(), name: uid.to_string() });
        };
        let name = CString::new(user.name.as_str()).map_err(|e| at(&e))?;
        let groups =
            getgrouplist(&name, user.gid).map_err(|e| at(&format!("the groups of {} ({e})", user.name)))?;
        let groups = groups.into_iter().map(Gid::as_raw).collect();
        Ok(Self { uid, gid: user.gid, groups, name: user.name })
    }

    /// This process is that user's from here on, and cannot be root's again: its ids, its groups, its capabilities. It must
    /// have one thread.
    ///
    /// # Errors
    /// One line for the operator. The process must not go on.
    pub fn become_it(&self) -> Result<(), String> {
        if self.uid.is_root() {
            return Ok(());
        }
        let failed = |what: &str| format!("cannot become {}: {what}", self.name);
        if self.groups.contains(&0) || self.gid.as_raw() == 0 {
            return Err(failed(
                "root's group is among its groups; give its folder a group of its own (chgrp)",
            ));
        }
        let said = |e: nix::Error| failed(e.desc());
        let groups: Vec<_> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        setgroups(&groups).map_err(said)?;
        setresgid(self.gid, self.gid, self.gid).map_err(said)?;
        setresuid(self.uid, self.uid, self.uid).map_err(said)?;
        // For whatever a module may start; and no debugger of that user, whatever fs.suid_dumpable says: this process has PINs
        // open.
        prctl::set_no_new_privs().map_err(said)?;
        prctl::set_dumpable(false).map_err(said)?;
        umask(Mode::from_bits_truncate(0o077));
        self.is_become().then_some(()).ok_or_else(|| failed("something of root is left"))
    }

    fn is_become(&self) -> bool {
        let (uids, gids) = (getresuid(), getresgid());
        let has_uids = uids.is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [self.uid; 3]);
        let has_gids = gids.is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [self.gid; 3]);
        let has_groups = getgroups()
            .is_ok_and(|groups| groups.into_iter().map(Gid::as_raw).collect::<BTreeSet<_>>() == self.groups);
        has_uids && has_gids && has_groups && has_no_capability() && setuid(Uid::from_raw(0)).is_err()
    }
}

/// As the kernel says it: effective, permitted and ambient ones.
fn has_no_capability() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    let is_none = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.is_some_and(|set| u64::from_str_radix(set.trim(), 16) == Ok(0))
    };
    ["CapPrm:", "CapEff:", "CapAmb:"].into_iter().all(is_none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_is_what_the_installation_has() {
        let (own, other) = (Path::new(DEFAULT_PATH), Path::new("/srv/hsm.toml"));
        assert_eq!(start_by(own, true), "systemctl start hsm-authd");
        assert_eq!(start_by(own, false), "hsm-authd serve");
        assert_eq!(start(other), "hsm-authd serve --config /srv/hsm.toml");
        assert!(!is_of_unit(other), "which the unit does not read");
    }
}
