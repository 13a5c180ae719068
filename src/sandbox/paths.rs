//! What a process may open and connect to, as rules of the kernel (Landlock).
//!
//! They hold for the thread that sets them and for what it starts: whoever sets them has no other thread yet.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

use crate::files;

/// What is asked of the kernel; an older one does as much of it as it can (crate `landlock`, best effort). ABI 6 is
/// Linux 6.12: files, truncating (3), TCP ports (4), calls to devices (5), abstract sockets and signals (6).
const ASKED: ABI = ABI::V6;

/// What a process may do with files. Anything else it may not; nor start a program, nor signal a process of another sandbox.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Files, and folders with all beneath them, that it reads.
    pub reads: Vec<PathBuf>,
    /// Files and folders in which it does as it likes, but for device files and programs.
    pub writes: Vec<PathBuf>,
    /// Whether it may take TCP ports and connect to some.
    pub network: bool,
}

impl Paths {
    /// Holds this thread to them. What does not exist is nobody's to open.
    pub fn enforce(&self) -> Result<LandlockStatus, String> {
        self.restrict().map(|status| status.landlock).map_err(|error| error.to_string())
    }

    fn restrict(&self) -> Result<RestrictionStatus, RulesetError> {
        let all = AccessFs::from_all(ASKED);
        let reads = AccessFs::ReadFile | AccessFs::ReadDir;
        let devices = AccessFs::MakeBlock | AccessFs::MakeChar;
        let mut ruleset = Ruleset::default().handle_access(all)?.scope(Scope::from_all(ASKED))?;
        if !self.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(ASKED))?;
        }
        ruleset
            .create()?
            .add_rules(path_beneath_rules(&self.reads, reads))?
            .add_rules(path_beneath_rules(&self.writes, all & !devices & !AccessFs::Execute))?
            .restrict_self()
    }
}

/// `folder` without what is hidden: itself, or, where something hidden is beneath it, whatever else is there now.
pub(super) fn without(folder: &Path, hidden: &[PathBuf]) -> Vec<PathBuf> {
    let hidden: Vec<_> = hidden.iter().map(|path| files::real(path)).collect();
    let mut shown = Vec::new();
    let mut left = vec![files::real(folder)];
    while let Some(path) = left.pop() {
        if hidden.iter().any(|hidden| path.starts_with(hidden)) {
            continue;
        }
        if !hidden.iter().any(|hidden| hidden.starts_with(&path)) {
            shown.push(path);
            continue;
        }
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            // A link is not followed: two that lead to each other have no end, and any would open whatever it leads to.
            // Where all of a folder is open, what its links lead to is not, either.
            if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
                left.push(entry.path());
            }
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_hidden_is_left_out_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-hidden-{}", std::process::id()));
        for name in ["a/secret", "a/other", "b"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("a/key"), "").unwrap();
        std::os::unix::fs::symlink(&folder, folder.join("a/up")).unwrap();
        std::os::unix::fs::symlink(folder.join("a/secret"), folder.join("b/link")).unwrap();
        let folder = fs::canonicalize(folder).unwrap();
        let shown = |hidden: &[&str]| {
            let hidden: Vec<_> = hidden.iter().map(|name| folder.join(name)).collect();
            without(&folder, &hidden).into_iter().collect::<BTreeSet<_>>()
        };
        let set = |names: &[&str]| names.iter().map(|name| folder.join(name)).collect::<BTreeSet<_>>();
        assert_eq!(without(&folder, &["/nowhere".into()]), std::slice::from_ref(&folder));
        assert_eq!(shown(&["not-there-yet"]), set(&["a", "b"]));
        assert_eq!(shown(&["a/secret"]), set(&["a/other", "a/key", "b"]));
        assert_eq!(shown(&["a/secret", "a/key"]), set(&["a/other", "b"]));
        assert_eq!(shown(&["a"]), set(&["b"]));
        assert!(without(&folder.join("a/secret/beneath"), &[folder.join("a/secret")]).is_empty());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn links_inside_lead_neither_round_nor_out() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-links-{}", std::process::id()));
        for name in ["etc", "var", "elsewhere"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let folder = fs::canonicalize(folder).unwrap();
        for name in ["etc/pin", "etc/other", "var/db"] {
            fs::write(folder.join(name), "").unwrap();
        }
        for (to, link) in [("var", "etc/state"), ("etc", "var/config"), ("elsewhere", "etc/out")] {
            std::os::unix::fs::symlink(folder.join(to), folder.join(link)).unwrap();
        }
        let hidden = [folder.join("etc/pin"), folder.join("var/db")];
        assert_eq!(without(&folder.join("etc"), &hidden), [folder.join("etc/other")]);
        fs::remove_dir_all(folder).unwrap();
    }
}
