//! A PIN from its file.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::StartFailure;
use crate::hsm::messages::PinFile;

/// The longest PIN, in bytes.
const PIN_BYTES_MAX: usize = 255;

/// The file of a PIN that is open and not read: what runs in this process until the login has no PIN in its memory. A module
/// that is loaded could read what is open, and is given the PIN when it logs in.
pub struct UnreadPin {
    path: PathBuf,
    file: File,
}

impl UnreadPin {
    /// Opens it, while the process still may. `handed`: the file, if it was to be handed over; else it is opened here.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open(path: &Path, is_handed: bool, handed: Option<OwnedFd>) -> Result<Self, StartFailure> {
        let file = match (is_handed, handed) {
            (false, _) => File::open(path).map_err(|error| format!("cannot be opened: {error}")),
            (true, Some(file)) => Ok(file.into()),
            (true, None) => Err("was not handed over".to_owned()),
        };
        let file = file.map_err(|reason| unusable(path, &reason))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Which PIN is in it now; of one that cannot be looked at: one that nobody has seen. To be asked before it is read: if it
    /// is written in between, it counts as another one.
    pub fn which(&self) -> PinFile {
        let metadata = self.file.metadata().ok();
        PinFile {
            inode: metadata.as_ref().map_or(0, MetadataExt::ino),
            modified_unix_s: metadata.as_ref().map_or(0, MetadataExt::mtime),
            modified_ns: metadata.as_ref().map_or(0, MetadataExt::mtime_nsec),
        }
    }

    /// Reads it, and closes it.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn read(self) -> Result<Pin, StartFailure> {
        Pin::read(&self.file).map_err(|reason| unusable(&self.path, &reason))
    }
}

fn unusable(path: &Path, reason: &str) -> StartFailure {
    StartFailure::misconfigured(format!("the PIN file {} {reason}", path.display()))
}

/// A PIN: no `Debug`, zeroized on drop.
pub struct Pin(Zeroizing<String>);

impl Pin {
    /// Reads a file that holds a PIN of 1 to 255 bytes of UTF-8 and perhaps one newline after it, from its beginning: who
    /// opened it may have done so for several processes at once.
    ///
    /// # Errors
    /// What is wrong with the file, in words that follow its name; never a byte of it.
    pub fn read(file: &File) -> Result<Self, String> {
        // One place in memory, never grown: nothing is left behind where it was before.
        let mut buffer = Zeroizing::new([0u8; PIN_BYTES_MAX + 2]);
        let mut length: usize = 0;
        while let Some(rest) = buffer.get_mut(length..)
            && !rest.is_empty()
        {
            let read = match file.read_at(rest, length as u64) {
                // A pipe has no places in it.
                Err(error) if error.raw_os_error() == Some(nix::libc::ESPIPE) => {
                    let mut file = file;
                    file.read(rest)
                }
                read => read,
            };
            match read.map_err(|error| format!("cannot be read: {error}"))? {
                0 => break,
                count => length += count,
            }
        }
        Self::parse(buffer.get(..length).unwrap_or_default()).map_err(str::to_owned)
    }

    fn parse(content: &[u8]) -> Result<Self, &'static str> {
        let pin = content.strip_suffix(b"\n").unwrap_or(content);
        match std::str::from_utf8(pin) {
            Ok("") => Err("is empty"),
            Ok(pin) if pin.len() > PIN_BYTES_MAX => Err("holds more than a PIN of 255 bytes"),
            Ok(pin) => Ok(Self(Zeroizing::new(pin.to_owned()))),
            Err(_) => Err("holds something that is not UTF-8"),
        }
    }

    /// Declassifies: for the module's login alone.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_is_not_part_of_it() {
        for (content, pin) in [("1234", "1234"), ("1234\n", "1234"), ("12\n\n", "12\n"), (" 1 ", " 1 ")] {
            assert!(Pin::parse(content.as_bytes()).is_ok_and(|read| read.as_str() == pin), "{content:?}");
        }
    }

    /// One open file is handed to several processes, which share its place.
    #[test]
    fn one_that_is_open_is_read_from_its_beginning_and_a_pipe_as_it_comes() {
        use std::io::Write;
        let path = std::env::temp_dir().join(format!("hsm-authd-open-pin-{}", std::process::id()));
        std::fs::write(&path, "1234\n").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        for _ in 0..2 {
            assert!(Pin::read(&file).is_ok_and(|pin| pin.as_str() == "1234"));
        }
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"12").unwrap();
        writer.write_all(b"34").unwrap();
        drop(writer);
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        assert!(Pin::read(&file).is_ok_and(|pin| pin.as_str() == "1234"));
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        let longest = "p".repeat(PIN_BYTES_MAX);
        assert!(Pin::parse(format!("{longest}\n").as_bytes()).is_ok());
        for content in ["", "\n", &format!("{longest}p"), &format!("{longest}p\n")] {
            assert!(Pin::parse(content.as_bytes()).is_err(), "{} bytes", content.len());
        }
        assert!(Pin::parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        assert!(Pin::read(&File::open("/dev/zero").unwrap()).is_err());
    }
}
