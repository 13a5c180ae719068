//! Keys and signatures written down again, by code of this folder's own: DER, PEM and JWK of a checked key.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use hsm_authd::domain::signer::PublicKey;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 2;
const BIT_STRING: u8 = 3;
/// id-ecPublicKey and prime256v1 (RFC 5480, section 2.1.1), as an AlgorithmIdentifier.
const EC_P256: &[u8] =
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
/// rsaEncryption with NULL (RFC 8017, appendix A.1).
const RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";

/// An element of DER. No length here needs more than two octets.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).expect("short").to_be_bytes();
    let header = match (high, low) {
        (0, 0..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&header, content].concat()
}

/// A positive INTEGER, of a big-endian number that may have zeros in front.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = &number[zeros..];
    // The sign is the highest bit.
    let sign: &[u8] = if digits.first().is_some_and(|byte| *byte < 0x80) { &[] } else { &[0] };
    element(INTEGER, &[sign, digits].concat())
}

/// SEQUENCE of two INTEGERs: an ECDSA signature, or an `RSAPublicKey`.
pub fn two_integers(first: &[u8], second: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[integer(first), integer(second)].concat())
}

/// A SubjectPublicKeyInfo, with an EC point as it is given here.
fn key_info(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[algorithm, &element(BIT_STRING, &[&[0], key].concat())].concat())
}

/// Every SubjectPublicKeyInfo in DER that is this key: of EC one with the point as it is, one compressed.
pub fn key_infos(key: &PublicKey) -> Vec<Vec<u8>> {
    match key {
        PublicKey::P256(key) => {
            let point = key.point();
            let compressed = [&[2 + point[64] % 2], &point[1..33]].concat();
            vec![key_info(EC_P256, &point), key_info(EC_P256, &compressed)]
        }
        PublicKey::Rsa(key) => vec![key_info(RSA, &two_integers(key.modulus(), key.exponent()))],
    }
}

/// In one line: RFC 7468 lets a parser take that.
pub fn pem(key_info: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(key_info))
}

/// The members that RFC 7518 asks for, and no other.
pub fn jwk(key: &PublicKey) -> String {
    let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    match key {
        PublicKey::P256(key) => {
            let point = key.point();
            let (x, y) = point[1..].split_at(32);
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}"#, encode(x), encode(y))
        }
        PublicKey::Rsa(key) => {
            format!(r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#, encode(key.modulus()), encode(key.exponent()))
        }
    }
}
