//! Messages as bytes.

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// The largest frame, in bytes, without its length.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// A frame that cannot be written or understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than [`FRAME_BYTES_MAX`].
    #[error("a message of {0} bytes is longer than a frame may be")]
    TooLong(usize),
    /// Not the encoding of such a message.
    #[error("a frame that holds no such message")]
    Malformed,
}

/// A message as a whole frame, length first. Zeroized on drop: it may hold a seed or a code.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    // Sized first, so that no growing buffer leaves copies of a secret behind.
    let length = postcard::experimental::serialized_size(message).map_err(|_| FrameError::Malformed)?;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length));
    }
    let mut frame = Zeroizing::new(vec![0; 4 + length]);
    let (header, body) = frame.split_at_mut(4);
    header.copy_from_slice(&(length as u32).to_be_bytes());
    postcard::to_slice(message, body).map_err(|_| FrameError::Malformed)?;
    Ok(frame)
}

/// The frame of the same [`Call`], now said to be repeated.
pub fn repeated(call: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut frame = Zeroizing::new(call.to_vec());
    if let Some(repeated) = frame.get_mut(4) {
        *repeated = 1;
    }
    frame
}

/// The length in bytes of the frame whose header this is.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn frame_length(header: [u8; 4]) -> Result<usize, FrameError> {
    match u32::from_be_bytes(header) as usize {
        length if length > FRAME_BYTES_MAX => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// The message of a frame's body.
///
/// # Errors
/// [`FrameError::Malformed`], also if bytes are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::newest;
    use super::super::{Boot, Call, Reply, Request};
    use super::*;
    use crate::secret::SecretBytes;

    #[test]
    fn a_frame_is_its_length_and_its_message() {
        let frame =
            encode(&Call { repeated: false, id: 7, newest: newest(), request: Request::Health }).unwrap();
        let (header, body) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(frame_length(*header), Ok(body.len()));
        let call: Call = decode(body).unwrap();
        assert!(call.id == 7 && matches!(call.request, Request::Health));
        assert_eq!(decode::<Call>(&[body, &[0]].concat()).err(), Some(FrameError::Malformed));
        let again = repeated(&frame);
        let again: Call = decode(&again[4..]).unwrap();
        assert!(again.repeated && again.id == 7 && matches!(again.request, Request::Health));
    }

    #[test]
    fn no_frame_is_longer_than_64_kib() {
        let seed = SecretBytes::new(vec![0; FRAME_BYTES_MAX]);
        let call = Call { repeated: true, id: 1, newest: newest(), request: Request::Fingerprint(seed) };
        assert!(matches!(encode(&call), Err(FrameError::TooLong(_))));
        assert!(frame_length([0, 1, 0, 0]).is_ok());
        assert!(frame_length([0, 1, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(body: Vec<u8>) {
            let _ = decode::<Call>(&body).err();
            let _ = decode::<Reply>(&body).err();
            let _ = decode::<Boot>(&body).err();
        }
    }
}
