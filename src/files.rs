//! Where configured files are read from: the disk, or descriptors that the supervisor opened.
//!
//! The front may open nothing but the folder of its database (`docs/decisions/0027-sandbox.md`). What it is configured by
//! comes to it opened, at its start and with each reload: so a file that was replaced by a rename is read anew, and a PIN in
//! the same folder stays out of its reach.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The most that are configured: what one message takes, with the listeners and the configuration itself, is 253
/// (`SCM_MAX_FD`).
pub const FILES_MAX: usize = 200;
/// The most bytes in all their paths: they are named in one message.
pub const PATHS_BYTES_MAX: usize = 32 * 1024;

/// As many links as the kernel follows in one path (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// A source of configured files.
#[derive(Debug)]
pub enum Files {
    /// Each is opened when it is read.
    Disk,
    /// Each was opened by somebody else.
    Handed(BTreeMap<PathBuf, Result<File, i32>>),
}

/// A file that is handed over beside this, or what the system said when it was opened (`errno`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    path: PathBuf,
    errno: Option<i32>,
}

impl Files {
    /// Reads a whole file. It may be a private key: nothing of it is left when it is dropped.
    ///
    /// # Errors
    /// What the system says; `NotFound` too for a file that was not handed over.
    pub fn read(&self, path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
        match self {
            Self::Disk => whole(&regular(path)?),
            Self::Handed(files) => match files.get(path) {
                Some(Ok(file)) => {
                    let mut file = file;
                    file.rewind()?;
                    whole(file)
                }
                Some(Err(errno)) => Err(io::Error::from_raw_os_error(*errno)),
                None => Err(io::Error::new(ErrorKind::NotFound, "it was not handed over: reload again")),
            },
        }
    }

    /// What [`open`] made, at the other end: the descriptors are those of the files that could be opened, in their order.
    pub fn handed(opened: Vec<Opened>, descriptors: impl IntoIterator<Item = OwnedFd>) -> Self {
        let mut descriptors = descriptors.into_iter();
        let mut files = BTreeMap::new();
        for Opened { path, errno } in opened {
            let file = match errno {
                Some(errno) => Err(errno),
                None => match descriptors.next() {
                    Some(descriptor) => Ok(File::from(descriptor)),
                    // This process had no room for one more descriptor.
                    None => Err(nix::libc::EMFILE),
                },
            };
            files.insert(path, file);
        }
        Self::Handed(files)
    }
}

/// Opens files for somebody else to read.
pub fn open<'p>(paths: impl IntoIterator<Item = &'p Path>) -> (Vec<Opened>, Vec<File>) {
    let (mut opened, mut files) = (Vec::new(), Vec::new());
    for path in paths {
        let errno = match regular(path) {
            Ok(file) => {
                files.push(file);
                None
            }
            Err(error) => Some(error.raw_os_error().unwrap_or(nix::libc::EIO)),
        };
        opened.push(Opened { path: path.to_owned(), errno });
    }
    (opened, files)
}

/// Waits for nobody: a pipe that somebody put in the place of a file would have the supervisor wait for its writer.
fn regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::from_raw_os_error(nix::libc::EINVAL)),
    }
}

/// Where a path leads to, through every link. What is not there yet is where it would be made.
pub fn real(path: &Path) -> PathBuf {
    real_within(path, LINKS_MAX)
}

fn real_within(path: &Path, links: u32) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    let place = real_within(folder, links).join(name);
    match (place.read_link(), links.checked_sub(1)) {
        // What it leads to is not there yet.
        (Ok(target), Some(links)) => real_within(&place.with_file_name("").join(target), links),
        _ => place,
    }
}

/// With room for all of it from the beginning: a buffer that grows leaves copies behind.
fn whole(mut file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.saturating_add(1)));
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_where_its_file_is_or_would_be_made() {
        use std::os::unix::fs::symlink;
        let folder = std::env::temp_dir().join(format!("hsm-authd-real-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        let folder = folder.canonicalize().unwrap();
        let at = |name: &str| folder.join(name);
        for (target, link) in
            [("a", "link"), ("a/later", "dangling"), ("round", "turn"), ("turn", "round"), ("../a/b", "a/up")]
        {
            symlink(target, at(link)).unwrap();
        }
        symlink(at("link/later"), at("far")).unwrap();
        for (path, leads_to) in [
            ("a/b", "a/b"),
            ("link/b", "a/b"),
            ("link/not/yet", "a/not/yet"),
            ("dangling", "a/later"),
            ("dangling/beneath", "a/later/beneath"),
            ("far/beneath", "a/later/beneath"),
            ("a/up/c", "a/b/c"),
        ] {
            assert_eq!(real(&at(path)), at(leads_to), "{path}");
        }
        assert!(real(&at("turn/x")).starts_with(&folder), "and it ends");
        assert_eq!(real(Path::new("/")), Path::new("/"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_handed_over_is_what_was_there_and_what_was_wrong() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (there, missing) = (folder.join("there"), folder.join("missing"));
        std::fs::write(&there, "first").unwrap();
        let (opened, files) = open([missing.as_path(), &there]);
        // Replaced meanwhile: what was opened counts.
        std::fs::write(folder.join("new"), "second").unwrap();
        std::fs::rename(folder.join("new"), &there).unwrap();
        let handed = Files::handed(opened.clone(), files.into_iter().map(OwnedFd::from));
        for _ in 0..2 {
            assert_eq!(*handed.read(&there).unwrap(), b"first");
        }
        assert_eq!(*Files::Disk.read(&there).unwrap(), b"second");
        assert_eq!(handed.read(&missing).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(handed.read(Path::new("/etc/passwd")).is_err(), "nobody opened it");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Files::Disk.read(&pipe).is_err() && open([pipe.as_path(), &folder]).1.is_empty());
        let without = Files::handed(opened, []);
        assert_eq!(without.read(&there).unwrap_err().raw_os_error(), Some(nix::libc::EMFILE));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
