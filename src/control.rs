//! What supervisor and front say to each other, and how sockets change hands.
//!
//! The channel is a `SOCK_SEQPACKET` pair: one packet a message, descriptors beside it
//! (`SCM_RIGHTS`), end of file when the other side is gone.

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::files::{FILES_MAX, Opened};
use crate::hsm::messages::CustodianEvent;
use crate::sandbox;

/// The longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The most descriptors beside one message.
const DESCRIPTORS_MAX: usize = FILES_MAX + 4;

/// From the supervisor to the front.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToFront {
    /// The first message. Beside it: the API's listener, the operator's listener, the instance lock
    /// (held by whoever may still write), and the files that it is configured by.
    Start(Start, Vec<Opened>),
    /// Beside it: the front's end of a new custodian's socketpair.
    Custodian {
        /// Which of the custodians it is.
        slot: u16,
        /// Distinguishes it from those that had the slot before.
        generation: u64,
    },
    /// No process could be started for a custodian.
    NotStarted {
        /// Which of the custodians it would be.
        slot: u16,
        /// As for [`ToFront::Custodian`].
        generation: u64,
        /// One line.
        reason: String,
    },
    /// Read certificates and clients again. Beside it: the files that there are now.
    Reload(Vec<Opened>),
    /// Accept nothing more, answer what is there, end.
    Drain,
}

/// How the front begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The configuration file.
    pub config: PathBuf,
    /// The operator accepts the wall clock as it is now.
    pub accept_clock: bool,
    /// Development only: read the time from this file.
    pub clock_file: Option<PathBuf>,
}

/// From the front to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// It has opened the database, and checked its schema. No custodian is started before.
    Opened {
        /// Whether a service has sealed anything in it.
        in_use: bool,
    },
    /// It answers requests.
    Ready,
    /// What became of a custodian.
    Custodian(CustodianEvent),
    /// It works: its runtime runs, and its store's writer has come through what was before it. With what there is to say
    /// of it, in one line.
    Alive(String),
    /// What [`ToFront::Reload`] asked for is done, or was refused and nothing has changed.
    Reloaded,
}

/// A new channel; both ends are closed on exec, unless made a child's standard input.
///
/// # Errors
/// What the kernel says.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message, never waiting: a peer that does not read its channel is not alive.
///
/// # Errors
/// What the kernel says, `WouldBlock` included.
pub fn send<T: Serialize>(channel: impl AsFd, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = postcard::to_allocvec(message).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a message is too long"));
    }
    send_beside(channel, &bytes, descriptors, SendFlags::DONTWAIT).map(drop)
}

/// Sends bytes with descriptors beside the first of them. How many went.
fn send_beside(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags | SendFlags::NOSIGNAL)?)
}

/// Receives one message and its descriptors, never waiting; `None` when the other side is gone. A process
/// that has no room for a descriptor gets the message without it.
///
/// # Errors
/// What the kernel says, `WouldBlock` included; `InvalidData` for what is no such message.
pub fn receive<T: DeserializeOwned>(channel: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no message of the control channel");
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(malformed());
    }
    let body = bytes.get(..received.bytes).unwrap_or_default();
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(Some((message, descriptors))),
        _ => Err(malformed()),
    }
}

/// Receives one message and its descriptors, waiting for it; `None` when the other side is gone.
///
/// # Errors
/// As for [`receive`].
pub fn wait<T: DeserializeOwned>(channel: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        match poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        match receive(&channel) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// Sends the first message over a stream, with descriptors beside its first byte.
///
/// # Errors
/// What the kernel says.
pub fn begin(mut stream: &UnixStream, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = send_beside(stream, message, descriptors, SendFlags::empty())?;
    stream.write_all(message.get(sent..).unwrap_or_default())
}

/// What every child does first: it takes its name, leaves the signals that reach the whole group
/// (Ctrl-C, systemd) to the supervisor, and dies with it.
///
/// # Errors
/// What the kernel says, or that the supervisor is gone already.
pub fn bind_to_supervisor(supervisor_pid: i32, name: &CStr) -> io::Result<()> {
    // Without it, ps and top call every child "exe".
    prctl::set_name(name)?;
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ignored.add(signal);
    }
    ignored.thread_block()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // No core file and no debugger of the same user: their memory holds codes, derived keys or PINs.
    sandbox::no_tracing()?;
    sandbox::no_cores()?;
    // It may have died before the line above took effect.
    if nix::unistd::getppid().as_raw() != supervisor_pid {
        return Err(io::Error::other("the supervisor is gone"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_message_carries_a_socket_over() {
        let (ours, theirs) = channel().unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        send(&ours, &ToFront::Custodian { slot: 3, generation: 9 }, &[far.as_fd()]).unwrap();
        drop(far);
        let (message, descriptors) = receive::<ToFront>(&theirs).unwrap().unwrap();
        assert!(matches!(message, ToFront::Custodian { slot: 3, generation: 9 }));
        std::io::Write::write_all(&mut UnixStream::from(descriptors.into_iter().next().unwrap()), b"x")
            .unwrap();
        let mut read = Vec::new();
        near.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
    }

    #[test]
    fn silence_nonsense_and_the_end_are_three_things() {
        let (ours, theirs) = channel().unwrap();
        assert_eq!(receive::<ToFront>(&theirs).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send(&ours, &[0xffu8; 9], &[]).unwrap();
        assert_eq!(receive::<ToFront>(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(ours);
        assert!(receive::<ToFront>(&theirs).unwrap().is_none());
    }
}
