//! A public key as everybody writes it: SubjectPublicKeyInfo (RFC 5280, section 4.1) in DER.

use super::{P256Key, PublicKey, RsaKey};

/// id-ecPublicKey with prime256v1 (RFC 5480), up to the point's bits.
const P256_HEADER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The AlgorithmIdentifier of rsaEncryption (RFC 3279, section 2.3.1).
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

impl PublicKey {
    /// Its SubjectPublicKeyInfo, in DER.
    pub fn to_spki_der(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => of_p256(key),
            Self::Rsa(key) => of_rsa(key),
        }
    }
}

fn of_p256(key: &P256Key) -> Vec<u8> {
    [&P256_HEADER[..], &key.point()].concat()
}

fn of_rsa(key: &RsaKey) -> Vec<u8> {
    let numbers = [positive(key.modulus()), positive(key.exponent())].concat();
    let bits = [&[0][..], &element(SEQUENCE, &numbers)].concat();
    element(SEQUENCE, &[&RSA_ALGORITHM[..], &element(BIT_STRING, &bits)].concat())
}

/// A number without leading zeros; its first bit set would make it negative.
fn positive(number: &[u8]) -> Vec<u8> {
    match number.first() {
        Some(0x80..) => element(INTEGER, &[&[0][..], number].concat()),
        _ => element(INTEGER, number),
    }
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let digits: Vec<u8> = length.into_iter().skip_while(|digit| *digit == 0).collect();
    let header = match content.len() {
        short @ 0..0x80 => vec![tag, short as u8],
        _ => [&[tag, 0x80 | digits.len() as u8][..], &digits].concat(),
    };
    [&header[..], content].concat()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key_named, pem_named};
    use data_encoding::BASE64;

    #[test]
    fn it_is_what_others_write() {
        for name in ["p256", "rsa2048", "rsa4096"] {
            let pem = pem_named(name);
            let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            assert_eq!(BASE64.encode(&key_named(name).to_spki_der()), body, "{name}");
        }
    }
}
