//! What terminals and tests derive by their own hand, and not by the appliance's code (`docs/methods/`).

use crate::ocra_token::mac_of;

/// Each part with its length before it.
pub fn enc(parts: &[&str]) -> Vec<u8> {
    let with_length = |part: &&str| [&(part.len() as u32).to_be_bytes()[..], part.as_bytes()].concat();
    parts.iter().flat_map(with_length).collect()
}

/// HMAC-SHA-256 of the parts, each with its length before it.
pub fn mac(key: &[u8], parts: &[&str]) -> Vec<u8> {
    mac_of("SHA256", key, &enc(parts))
}

/// The first 8 bytes as a number, the highest first: its last decimal digits.
pub fn digits(mac: &[u8], count: usize) -> String {
    let number = format!("{:020}", u64::from_be_bytes(mac[..8].try_into().unwrap()));
    number[20 - count..].to_owned()
}
