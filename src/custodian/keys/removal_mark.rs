//! The mark of who looks whether what stands under a key's name is to be removed.

use std::fs;
use std::process;

use data_encoding::HEXLOWER;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::super::pkcs11::{Object, Pkcs11Error, Session};
use super::super::since_1970;
use super::KeyName;
use crate::boot;
use crate::domain::time::BootId;

/// How the value of such a mark begins. The mark of who makes a key has a random value.
const PREFIX: &[u8] = b"removal\0";
/// How long a removal takes at most, and how far clocks of hosts may differ.
pub(super) const REMOVAL_MAX_S: u64 = 60;

/// What such a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovalMark {
    /// When it was made, seconds since 1970.
    pub unix_s: u64,
    /// Which process made it, as its own process namespace knows it; not everybody may know their own.
    pub maker: Option<Maker>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Kernel and process namespace: among those of the same one, an id is one process's.
    pub place: String,
    /// Its id there.
    pub pid: i32,
}

impl RemovalMark {
    /// Of this process, now.
    pub fn ours() -> Self {
        Self { unix_s: since_1970().as_secs(), maker: Maker::this() }
    }

    /// Makes the mark in the token.
    ///
    /// # Errors
    /// The module makes none.
    pub fn set(&self, session: &Session, name: KeyName) -> Result<Object, Pkcs11Error> {
        // No two of one value: two keys of one id are one to NSS.
        let mut random = [0; 8];
        session.random(&mut random)?;
        let maker =
            self.maker.as_ref().map_or_else(String::new, |Maker { place, pid }| format!("{pid} {place}"));
        let value = [PREFIX, &self.unix_s.to_be_bytes(), &random, maker.as_bytes()].concat();
        session.create_data(&name.mark(), &value)
    }

    /// What an object says that is such a mark; `None`: it is another one, both times that it was read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(session: &Session, mark: Object) -> Result<Option<Self>, Pkcs11Error> {
        for _ in 0..2 {
            if let Some(said) = session.data_value(mark)?.strip_prefix(PREFIX) {
                return Ok(Some(Self::parse(said)));
            }
        }
        Ok(None)
    }

    /// What is not as [`RemovalMark::set`] makes it was made long ago by nobody.
    fn parse(said: &[u8]) -> Self {
        let unix_s = said.first_chunk().map_or(0, |unix_s| u64::from_be_bytes(*unix_s));
        let maker = said.get(16..).and_then(|maker| str::from_utf8(maker).ok()?.split_once(' '));
        let maker =
            maker.and_then(|(pid, place)| Some(Maker { place: place.to_owned(), pid: pid.parse().ok()? }));
        Self { unix_s, maker }
    }

    /// Whether nobody is at work under it any more.
    pub fn is_left(&self) -> bool {
        let is_old = since_1970().as_secs() > self.unix_s.saturating_add(REMOVAL_MAX_S);
        is_old || self.maker.as_ref().is_some_and(Maker::is_at_an_end)
    }
}

impl Maker {
    fn this() -> Option<Self> {
        let BootId(boot_id) = boot::id()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let place = format!("{} {}", HEXLOWER.encode(&boot_id), namespace.to_str()?);
        Some(Self { place, pid: i32::try_from(process::id()).ok()? })
    }

    /// Whether it is known to be, or was this very process, which does one removal after the other.
    fn is_at_an_end(&self) -> bool {
        let Some(this) = Self::this() else { return false };
        // Below 1 are groups of processes.
        let is_gone = || self.pid > 0 && kill(Pid::from_raw(self.pid), None) == Err(Errno::ESRCH);
        self.place == this.place && (self.pid == this.pid || is_gone())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn by(maker: Maker) -> RemovalMark {
        RemovalMark { maker: Some(maker), ..RemovalMark::ours() }
    }

    #[test]
    fn who_is_at_work_is_waited_for_and_who_is_known_to_be_gone_is_not() {
        let this = Maker::this().unwrap();
        assert!(RemovalMark::ours().is_left(), "one removal of a process after the other");
        let mut child = Command::new("cat").stdin(process::Stdio::piped()).spawn().unwrap();
        let of_child = Maker { pid: child.id().try_into().unwrap(), ..this.clone() };
        assert!(!by(of_child.clone()).is_left());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(by(of_child.clone()).is_left());
        // Another host, another container, somebody who cannot be known: until it is old.
        let elsewhere = by(Maker { place: "elsewhere".to_owned(), ..of_child });
        let unknown = RemovalMark { maker: None, ..elsewhere.clone() };
        for mark in [elsewhere, unknown, by(Maker { pid: 0, ..this.clone() }), by(Maker { pid: -1, ..this })]
        {
            assert!(!mark.is_left(), "{mark:?}");
            let old = RemovalMark { unix_s: mark.unix_s - 2 * REMOVAL_MAX_S, ..mark };
            assert!(old.is_left(), "{old:?}");
        }
    }

    #[test]
    fn what_was_cut_off_is_of_nobody_and_old() {
        for said in [
            &b""[..],
            b"1234567",
            b"12345678",
            b"1234567812345678",
            b"1234567812345678x y",
            b"1234567812345678\xff 1",
        ] {
            assert_eq!(RemovalMark::parse(said).maker, None, "{said:?}");
        }
        assert!(RemovalMark::parse(b"1234567").is_left());
        let maker = Maker { place: "b pid:[1]".to_owned(), pid: 7 };
        assert_eq!(RemovalMark::parse(b"123456781234567\x007 b pid:[1]").maker, Some(maker));
    }
}
