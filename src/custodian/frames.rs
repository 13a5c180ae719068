//! The frames between a custodian and its front, as a custodian reads and writes them: blocking, and with
//! nothing left behind of what they held.

use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use crate::hsm::messages::{FRAME_BYTES_MAX, decode, encode, frame_length};

/// Messages out of a stream of bytes: one read may bring several.
pub struct Frames<R> {
    stream: R,
    /// Of its final size from the start and zeroized: it may hold a seed or a code.
    buffer: Zeroizing<Vec<u8>>,
    /// Where in it the bytes are that were read and not yet used.
    unused: Range<usize>,
}

impl<R: Read> Frames<R> {
    /// Of a stream that nothing was read of yet.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: Zeroizing::new(vec![0; 4 + FRAME_BYTES_MAX]), unused: 0..0 }
    }

    /// The next message; `None`: the peer is gone, be it within a frame.
    ///
    /// # Errors
    /// The stream failed, or the frame is too long or holds no such message.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            let unused = self.buffer.get_mut(self.unused.clone()).unwrap_or_default();
            if let Some((header, rest)) = unused.split_first_chunk_mut::<4>() {
                let length = frame_length(*header).map_err(io::Error::other)?;
                if let Some(body) = rest.get_mut(..length) {
                    let message = decode(body).map_err(io::Error::other);
                    body.zeroize();
                    self.unused.start += 4 + length;
                    return message.map(Some);
                }
            }
            // What there is of a frame goes to the front, where there is room for all of it.
            let count = unused.len();
            self.buffer.copy_within(self.unused.clone(), 0);
            if let Some(moved) = self.buffer.get_mut(count.max(self.unused.start)..self.unused.end) {
                moved.zeroize();
            }
            self.unused = 0..count;
            let room = self.buffer.get_mut(count..).unwrap_or_default();
            match self.stream.read(room) {
                Ok(0) => return Ok(None),
                Ok(read) => self.unused.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The most descriptors beside a message: the PIN, and the security officer's.
const HANDED_MAX: usize = 2;

/// The first message, with what was handed over beside it: it begins where its descriptors do, and nothing behind it is read.
/// Of an input that is no socket there are none.
///
/// # Errors
/// As for [`Frames::next`].
pub fn first<T: DeserializeOwned>(input: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut beginning = Beginning { input: input.as_fd(), left: 4, handed: Vec::new() };
    let mut header = [0; 4];
    match beginning.read_exact(&mut header) {
        Err(error) if is_gone(&error) => return Ok(None),
        read => read?,
    }
    let mut body = vec![0; frame_length(header).map_err(io::Error::other)?];
    beginning.left = body.len();
    match beginning.read_exact(&mut body) {
        Err(error) if is_gone(&error) => return Ok(None),
        read => read?,
    }
    let message = decode(&body).map_err(io::Error::other)?;
    Ok(Some((message, beginning.handed)))
}

/// An input of which descriptors are kept.
struct Beginning<'a> {
    input: BorrowedFd<'a>,
    /// So much of it is wanted.
    left: usize,
    handed: Vec<OwnedFd>,
}

impl Read for Beginning<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let length = room.len().min(self.left);
        let room = room.get_mut(..length).unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(self.input, &mut [IoSliceMut::new(room)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let count = match received {
            Err(rustix::io::Errno::NOTSOCK) => rustix::io::read(self.input, room)?,
            received => received?.bytes,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.handed.extend(rights);
            }
        }
        self.left = self.left.saturating_sub(count);
        Ok(count)
    }
}

/// Writes one message; `false`: the peer is gone.
///
/// # Errors
/// The stream failed, or the message is too long.
pub fn write_frame<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<bool> {
    let frame = encode(message).map_err(io::Error::other)?;
    match stream.write_all(&frame) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::hsm::messages::{Call, Request};
    use crate::secret::SecretBytes;

    /// Gives so many bytes a read.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let drop = self.1.min(room.len());
            self.0.read(&mut room[..drop])
        }
    }

    fn call(id: u64, bytes: usize) -> Vec<u8> {
        let request = Request::Fingerprint(SecretBytes::new(vec![0xa5; bytes]));
        encode(&Call { repeated: false, id, newest: Default::default(), request }).unwrap().to_vec()
    }

    #[test]
    fn frames_are_read_whole_however_they_arrive() {
        let sizes = [0, 1, 60_000, 7, 60_000, 60_000, 0];
        let stream: Vec<u8> = (0..).zip(sizes).flat_map(|(id, bytes)| call(id, bytes)).collect();
        for drop in [1, 3, 1_000, 65_000, stream.len()] {
            let mut frames = Frames::new(Drip(&stream, drop));
            for (id, bytes) in (0..).zip(sizes) {
                let call: Call = frames.next().unwrap().unwrap();
                let Request::Fingerprint(secret) = call.request else { panic!("another request") };
                assert_eq!((call.id, secret.len()), (id, bytes), "{drop} bytes a read");
            }
            assert!(frames.next::<Call>().unwrap().is_none());
            // No read and used byte is left: headers are no secret.
            assert!(!frames.buffer.contains(&0xa5), "{drop} bytes a read");
        }
    }

    /// Two files beside it, which stay readable, and not a byte of what comes next.
    #[test]
    fn the_first_message_brings_what_was_handed_over_and_leaves_the_rest() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let (first_call, next_call) = (call(1, 60_000), call(2, 7));
        let sender = std::thread::spawn(move || {
            crate::control::begin(&ours, &first_call, &[file.as_fd(), file.as_fd()]).unwrap();
            (&ours).write_all(&next_call).unwrap();
            ours
        });
        let (message, handed) = first::<Call>(&theirs).unwrap().unwrap();
        assert_eq!((message.id, handed.len()), (1, 2));
        let mut text = String::new();
        let mut handed = handed.into_iter().map(std::fs::File::from);
        handed.next_back().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&std::process::id().to_string()));
        let next: Call = Frames::new(&theirs).next().unwrap().unwrap();
        assert_eq!(next.id, 2);
        drop(sender.join().unwrap());
        assert!(first::<Call>(&theirs).unwrap().is_none(), "the other side is gone");
    }

    #[test]
    fn of_a_pipe_the_first_message_is_read_too() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&call(3, 100)).unwrap();
        writer.write_all(&[0, 0]).unwrap();
        drop(writer);
        let (message, handed) = first::<Call>(&reader).unwrap().unwrap();
        assert_eq!((message.id, handed.len()), (3, 0));
        assert!(first::<Call>(&reader).unwrap().is_none(), "a frame that is cut off");
    }

    #[test]
    fn a_frame_is_read_whole_or_not_at_all() {
        let frame = call(7, 20);
        for end in 0..frame.len() {
            assert!(Frames::new(&frame[..end]).next::<Call>().unwrap().is_none(), "{end} bytes");
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_header() {
        let header = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
        assert!(Frames::new(&header[..]).next::<Call>().is_err());
        assert!(Frames::new(&[0, 0, 0, 1, 0xff][..]).next::<Call>().is_err());
    }
}
