//! The mark of a refused PIN, for the next start: a service whose sockets systemd holds is started by whoever connects, and
//! knows nothing of the start before.
//!
//! It is a file beside the database, one for each token, and has nothing that is made of the PIN: a short one would be found
//! from a hash of it. It names the PIN's file as it was, so that one that was written again is tried. Of a credential that
//! systemd hands over nothing can be named: it is a new file at each start. The mark of one stands until a login succeeds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use crate::config::HsmConfig;
use crate::hsm::messages::PinFile;

/// More than a mark has, in bytes.
const MARK_BYTES_MAX: u64 = 4_096;
/// What the line begins with that names the PIN's file.
const FILE: &str = "file:";

/// Where the mark of a token is, whether it is there or not.
#[derive(Clone, Debug)]
pub struct RefusedPin(PathBuf);

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// This one was refused.
    File(PinFile),
    /// Nobody can tell whether there is another one now.
    Any,
}

impl RefusedPin {
    /// `name`: of the token, as [`HsmConfig::token_names`] has it.
    pub fn of(name: &str, hsm: &HsmConfig) -> Self {
        let mut extension = "pin-refused.".to_owned();
        for byte in name.bytes() {
            match byte {
                b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => extension.push(char::from(byte)),
                byte => extension.push_str(&format!("%{byte:02X}")),
            }
        }
        Self(hsm.database.with_added_extension(extension))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A login has succeeded: there is nothing to be careful about. Whether there was a mark.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn clear(&self) -> Result<bool, String> {
        match fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(format!("{} cannot be removed: {error}", self.0.display())),
        }
    }

    /// `None`: there is no mark. What cannot be read stands for every PIN.
    pub(super) fn read(&self) -> Option<Marked> {
        let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&self.0);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            opened => opened.ok(),
        };
        let mut text = String::new();
        let read = file.and_then(|file| file.take(MARK_BYTES_MAX).read_to_string(&mut text).ok());
        Some(read.and_then(|_| parse(&text)).map_or(Marked::Any, Marked::File))
    }

    /// Leaves the mark, for a start after a power cut too.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn leave(&self, pin_file: &Path, file: Option<PinFile>) -> io::Result<()> {
        let file = file.filter(|_| !is_credential(pin_file));
        let named = file.map(|PinFile { inode, modified_unix_s, modified_ns }| {
            format!("{FILE} {inode} {modified_unix_s} {modified_ns}\n")
        });
        let text = format!(
            "The token refused the PIN in {}. Another attempt with it could lock the token, so no start makes one.\n\
             Put the right one there and run `hsm-authd check`, which removes this file once the token accepts the PIN.\n{}",
            pin_file.display(),
            named.unwrap_or_default()
        );
        let unfinished = self.0.with_added_extension("unfinished");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        written.write_all(text.as_bytes())?;
        written.sync_all()?;
        fs::rename(&unfinished, &self.0)?;
        self.0.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

fn parse(text: &str) -> Option<PinFile> {
    let mut numbers = text.lines().find_map(|line| line.strip_prefix(FILE))?.split_ascii_whitespace();
    Some(PinFile {
        inode: numbers.next()?.parse().ok()?,
        modified_unix_s: numbers.next()?.parse().ok()?,
        modified_ns: numbers.next()?.parse().ok()?,
    })
}

/// Whether systemd hands it over, as another file at each start.
fn is_credential(pin_file: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|folder| pin_file.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_left_and_what_is_none_stands_for_every_pin() {
        let dir = std::env::temp_dir().join(format!("hsm-authd-mark-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mark = RefusedPin(dir.join("mark"));
        assert_eq!(mark.read(), None);
        assert_eq!(mark.clear(), Ok(false));
        let file = PinFile { inode: 7, modified_unix_s: -1, modified_ns: 9 };
        for (left, said) in [(Some(file), Marked::File(file)), (None, Marked::Any)] {
            mark.leave(Path::new("/etc/hsm-authd/pin"), left).unwrap();
            assert_eq!(mark.read(), Some(said));
        }
        assert_eq!(mark.clear(), Ok(true));
        for text in ["", "file: 1 2", "file: 1 2 x", "\u{fffd}"] {
            fs::write(mark.path(), text).unwrap();
            assert_eq!(mark.read(), Some(Marked::Any), "{text:?}");
        }
        fs::remove_file(mark.path()).unwrap();
        // Nobody is led elsewhere, or kept waiting.
        std::os::unix::fs::symlink("/nowhere", mark.path()).unwrap();
        assert_eq!(mark.read(), Some(Marked::Any));
        mark.leave(Path::new("pin"), Some(file)).unwrap();
        assert_eq!(mark.read(), Some(Marked::File(file)));
        fs::remove_file(mark.path()).unwrap();
        nix::unistd::mkfifo(mark.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(mark.read(), Some(Marked::Any));
        fs::remove_dir_all(dir).unwrap();
    }
}
