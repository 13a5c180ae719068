//! `RowBytes::decode`: rows as they come out of a frame, before anything is made of them.

use hsm_authd::domain::row::RowBytes;
use hsm_authd::hsm::messages::{decode, encode};

/// The input is a row's encoding.
pub fn run(input: &[u8]) {
    // Only a frame makes such bytes of foreign ones; what does not fit into one comes never.
    let Ok(frame) = encode(&input.to_vec()) else { return };
    let bytes: RowBytes = decode(&frame[4..]).expect("bytes of any kind");
    assert_eq!(bytes.as_bytes(), input);
    let Some(row) = bytes.decode() else { return };
    assert_eq!(row.encode().as_bytes(), input, "a row has one spelling, which its seal is over");
    assert_eq!(row.encode().decode().map(|row| row.key()), Some(row.key()));
}
