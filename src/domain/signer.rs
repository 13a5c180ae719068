//! Keys that verify a customer's signatures: ES256 and RS256 (RFC 7518, sections 3.3 and 3.4).
//!
//! A [`PublicKey`] was checked: on its curve, or of a size and exponent that are safe. The signature
//! itself is verified by the HSM.

pub mod jwk;
pub mod pem;
pub mod signature;
mod spki;

use data_encoding::BASE64URL_NOPAD;
use p256::elliptic_curve::sec1::ToSec1Point;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The sizes that an RSA modulus may have, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// The smallest public exponent (FIPS 186-5, section A.1.1: above 2^16).
const RSA_EXPONENT_MIN: u64 = 65_537;

/// Octets of a P-256 coordinate, and of r and of s.
const P256_BYTES: usize = 32;

/// What a key signs with (RFC 7518, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignatureAlgorithm {
    /// ECDSA with P-256 and SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl SignatureAlgorithm {
    /// As in a JSON body and in a JWK's `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// Why a key is refused: what to mend, in words of our own. Repeats nothing of what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub(in crate::domain) &'static str);

impl KeyError {
    /// The same words.
    pub fn reason(self) -> &'static str {
        self.0
    }
}

const HOLDS_PRIVATE_KEY: KeyError =
    KeyError("holds a private key, which now is known to others: make a new one, and send its public key");
const POINT_FORM: KeyError = KeyError("must have its point uncompressed (65 bytes) or compressed (33 bytes)");
const POINT_AT_INFINITY: KeyError = KeyError("has the point at infinity, which is no key");
const POINT_OFF_CURVE: KeyError = KeyError("has a point that is not on P-256");
const RSA_LEADING_ZERO: KeyError = KeyError("has an RSA number with leading zeros, or zero");
const RSA_SIZE: KeyError = KeyError("must have an RSA modulus of 2048 to 4096 bits");
const RSA_EVEN: KeyError = KeyError("has an even RSA modulus");
const RSA_EXPONENT: KeyError = KeyError("must have an odd RSA exponent of 65537 or more, below 2^64");

/// A key that signatures are verified with. A value of this type was checked.
///
/// It is stored in sealed rows: variants are only added, and their fields never change. What is decoded from
/// a sealed row is as checked as the row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PublicKey {
    /// For ES256.
    P256(P256Key),
    /// For RS256.
    Rsa(RsaKey),
}

/// A point on P-256 that is not at infinity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct P256Key {
    x: [u8; P256_BYTES],
    y: [u8; P256_BYTES],
}

impl P256Key {
    /// The uncompressed point: 0x04, x, y (SEC 1, section 2.3.3).
    pub fn point(&self) -> [u8; 1 + 2 * P256_BYTES] {
        let mut point = [4; 1 + 2 * P256_BYTES];
        for (place, byte) in point.iter_mut().skip(1).zip(self.x.iter().chain(&self.y)) {
            *place = *byte;
        }
        point
    }

    /// From a point, uncompressed or compressed.
    fn from_point(point: &[u8]) -> Result<Self, KeyError> {
        match (point.first(), point.len()) {
            (Some(4), 65) | (Some(2 | 3), 33) => {}
            (Some(0), 1) => return Err(POINT_AT_INFINITY),
            _ => return Err(POINT_FORM),
        }
        let point =
            p256::PublicKey::from_sec1_bytes(point).map_err(|_| POINT_OFF_CURVE)?.to_sec1_point(false);
        match (point.x(), point.y()) {
            (Some(&x), Some(&y)) => Ok(Self { x: x.into(), y: y.into() }),
            _ => Err(POINT_OFF_CURVE),
        }
    }
}

/// An RSA key of 2048 to 4096 bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RsaKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaKey {
    /// Big-endian, without leading zeros: as many octets as a signature has.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// Big-endian, without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// From big-endian numbers, which must not begin with zeros.
    ///
    /// An exponent of 1, or an even one, would let anybody sign.
    fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        let (Some(first @ 1..), Some(1..)) = (modulus.first(), exponent.first()) else {
            return Err(RSA_LEADING_ZERO);
        };
        let bits = modulus.len().saturating_mul(8).saturating_sub(first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(RSA_SIZE);
        }
        if !is_odd(modulus) {
            return Err(RSA_EVEN);
        }
        let value = exponent.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
        if exponent.len() > 8 || value < RSA_EXPONENT_MIN || !is_odd(exponent) {
            return Err(RSA_EXPONENT);
        }
        Ok(Self { modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }
}

fn is_odd(number: &[u8]) -> bool {
    number.last().is_some_and(|byte| byte % 2 == 1)
}

impl PublicKey {
    /// From a point of P-256, uncompressed or compressed (SEC 1, section 2.3.3).
    ///
    /// # Errors
    /// It is no such point, or that at infinity.
    pub fn from_p256_point(point: &[u8]) -> Result<Self, KeyError> {
        P256Key::from_point(point).map(Self::P256)
    }

    /// From an RSA key's modulus and public exponent, big-endian and without leading zeros.
    ///
    /// # Errors
    /// Another size than 2048 to 4096 bits, or numbers that make no safe key.
    pub fn from_rsa_numbers(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        RsaKey::new(modulus, exponent).map(Self::Rsa)
    }

    /// What it verifies.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        match self {
            Self::P256(_) => SignatureAlgorithm::Es256,
            Self::Rsa(_) => SignatureAlgorithm::Rs256,
        }
    }

    /// Its JWK thumbprint (RFC 7638), with SHA-256, in base64url.
    pub fn thumbprint(&self) -> String {
        let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        // RFC 7638, section 3: the required members alone, sorted, without white space.
        let members = match self {
            Self::P256(P256Key { x, y }) => {
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, encode(x), encode(y))
            }
            Self::Rsa(RsaKey { modulus, exponent }) => {
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, encode(exponent), encode(modulus))
            }
        };
        encode(&Sha256::digest(members))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::jwk::Jwk;
    use super::*;
    use data_encoding::{BASE64, HEXLOWER};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Keys and signatures of OpenSSL's.
    pub fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/signer.json")).unwrap()
    }

    /// The PEM of a key of [`vectors`].
    pub fn pem_named(name: &str) -> String {
        let vectors = vectors();
        let mut keys = ["keys", "refused"].into_iter().flat_map(|list| vectors[list].as_array().unwrap());
        keys.find(|key| key["name"] == name).unwrap()["pem"].as_str().unwrap().to_owned()
    }

    pub fn key_named(name: &str) -> PublicKey {
        PublicKey::from_pem(&pem_named(name)).unwrap()
    }

    pub fn from_jwk(jwk: &Value) -> Result<PublicKey, KeyError> {
        PublicKey::from_jwk(&serde_json::from_str::<Jwk>(&jwk.to_string()).unwrap())
    }

    /// A PUBLIC KEY block of these bytes.
    pub fn pem_of(der: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(der))
    }

    /// DER: a tag, the length, and these pieces.
    pub fn tlv(tag: u8, pieces: &[&[u8]]) -> Vec<u8> {
        let content = pieces.concat();
        let length = match u16::try_from(content.len()).unwrap().to_be_bytes() {
            [0, short @ 0..=0x7f] => vec![short],
            [0, long] => vec![0x81, long],
            [high, low] => vec![0x82, high, low],
        };
        [vec![tag], length, content].concat()
    }

    pub fn hex(text: &str) -> Vec<u8> {
        HEXLOWER.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn pem_and_jwk_are_the_same_key_with_openssls_thumbprint() {
        let vectors = vectors();
        for vector in vectors["keys"].as_array().unwrap() {
            let key = PublicKey::from_pem(vector["pem"].as_str().unwrap()).unwrap();
            assert_eq!(from_jwk(&vector["jwk"]).unwrap(), key, "{vector}");
            assert_eq!(key.thumbprint(), vector["thumbprint"], "{vector}");
            let expected = if vector["jwk"]["kty"] == "EC" { "ES256" } else { "RS256" };
            assert_eq!(key.algorithm().name(), expected);
            assert_eq!(serde_json::to_value(key.algorithm()).unwrap(), expected);
        }
        assert_eq!(vectors["keys"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn rfc_7638_section_3_1() {
        let modulus = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_\
                       BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2\
                       QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6W\
                       eZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let jwk = json!({"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"});
        assert_eq!(from_jwk(&jwk).unwrap().thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn a_point_is_on_the_curve_and_not_at_infinity() {
        let PublicKey::P256(key) = key_named("p256") else { panic!() };
        let whole = key.point();
        assert_eq!(P256Key::from_point(&whole), Ok(key.clone()));

        let parity = 2 + (whole[64] & 1);
        let compressed = [&[parity], &whole[1..33]].concat();
        assert_eq!(P256Key::from_point(&compressed), Ok(key.clone()));
        let other_half = P256Key::from_point(&[&[parity ^ 1], &whole[1..33]].concat()).unwrap();
        assert!(other_half.x == key.x && other_half.y != key.y);

        let mut off = whole;
        off[64] ^= 1;
        assert_eq!(P256Key::from_point(&off), Err(POINT_OFF_CURVE));
        assert_eq!(P256Key::from_point(&[[4].as_slice(), &[0; 64]].concat()), Err(POINT_OFF_CURVE));
        assert_eq!(P256Key::from_point(&[0]), Err(POINT_AT_INFINITY));
        // Hybrid (X9.62), and SEC 1's other tags, with the right length and without.
        let with_tag = |tag: u8, rest: &[u8]| P256Key::from_point(&[&[tag], rest].concat());
        for tag in [0, 1, 2, 3, 5, 6, 7, 0xff] {
            assert_eq!(with_tag(tag, &whole[1..]), Err(POINT_FORM), "{tag}");
        }
        for tag in [0, 1, 4, 5, 6, 7, 0xff] {
            assert_eq!(with_tag(tag, &whole[1..33]), Err(POINT_FORM), "{tag}");
        }
        for length in [0, 2, 32, 34, 64] {
            assert_eq!(P256Key::from_point(&whole[..length]), Err(POINT_FORM), "{length}");
        }
        assert_eq!(with_tag(4, &[&whole[1..], &[0]].concat()), Err(POINT_FORM));
        assert_eq!(with_tag(0, &[0]), Err(POINT_FORM));
    }

    #[test]
    fn a_coordinate_is_below_the_fields_prime() {
        // y is the square root of the curve's b: x = 0, and x = p if it were reduced.
        let y = hex("66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4");
        let prime = hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff");
        assert!(P256Key::from_point(&[&[4], &[0; 32][..], &y].concat()).is_ok());
        assert_eq!(P256Key::from_point(&[&[4], &*prime, &y].concat()), Err(POINT_OFF_CURVE));
        assert!(P256Key::from_point(&[&[2], &[0; 32][..]].concat()).is_ok());
        assert_eq!(P256Key::from_point(&[&[2], &*prime].concat()), Err(POINT_OFF_CURVE));
    }

    /// An odd number of so many bits.
    fn odd(bits: usize) -> Vec<u8> {
        let mut number = vec![0xff; bits.div_ceil(8)];
        number[0] >>= number.len() * 8 - bits;
        number
    }

    #[test]
    fn an_rsa_key_is_large_odd_and_has_a_large_odd_exponent() {
        let new = |modulus: &[u8], exponent: &[u8]| RsaKey::new(modulus, exponent).map(drop);
        let good = [1, 0, 1];
        for bits in [2_048, 2_049, 3_000, 4_095, 4_096] {
            assert_eq!(new(&odd(bits), &good), Ok(()), "{bits}");
        }
        for bits in [8, 1_024, 2_040, 2_047, 4_097, 8_192] {
            assert_eq!(new(&odd(bits), &good), Err(RSA_SIZE), "{bits}");
        }
        let mut even = odd(2_048);
        even[255] = 0xfe;
        assert_eq!(new(&even, &good), Err(RSA_EVEN));

        let modulus = odd(2_048);
        for exponent in [&[1, 0, 1][..], &[1, 0, 3], &[1, 0, 0, 1], &[0xff; 8]] {
            assert_eq!(new(&modulus, exponent), Ok(()), "{exponent:?}");
        }
        let too_long = [1, 0, 0, 0, 0, 1, 0, 0, 1];
        for exponent in [&[1][..], &[2], &[3], &[17], &[0xff, 0xff], &[1, 0, 0], &[1, 0, 2], &too_long] {
            assert_eq!(new(&modulus, exponent), Err(RSA_EXPONENT), "{exponent:?}");
        }
        for zero in [&[][..], &[0], &[0, 1, 0, 1]] {
            assert_eq!(new(&modulus, zero), Err(RSA_LEADING_ZERO), "{zero:?}");
        }
        assert_eq!(new(&[&[0][..], &modulus].concat(), &good), Err(RSA_LEADING_ZERO));
        assert_eq!(new(&[], &good), Err(RSA_LEADING_ZERO));
    }

    #[test]
    fn a_key_is_stored_as_it_always_was() {
        let key = PublicKey::P256(P256Key { x: [1; 32], y: [2; 32] });
        let stored = [&[0][..], &[1; 32], &[2; 32]].concat();
        assert_eq!(postcard::to_stdvec(&key).unwrap(), stored);
        assert_eq!(postcard::from_bytes::<PublicKey>(&stored).unwrap(), key);
        let key = PublicKey::Rsa(RsaKey { modulus: vec![3, 4], exponent: vec![5] });
        assert_eq!(postcard::to_stdvec(&key).unwrap(), [1, 2, 3, 4, 1, 5]);
        let algorithms = [SignatureAlgorithm::Es256, SignatureAlgorithm::Rs256];
        assert_eq!(postcard::to_stdvec(&algorithms).unwrap(), [0, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_p256_key_is_the_same_in_pem_and_jwk(seed in any::<[u8; 32]>()) {
            use p256::pkcs8::{EncodePublicKey, LineEnding};
            let Ok(secret) = p256::SecretKey::from_slice(&seed) else { return Ok(()) };
            let public = secret.public_key();
            let pem = public.to_public_key_pem(LineEnding::CRLF).unwrap();
            let point = public.to_sec1_point(false);
            let encode = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
            let jwk = json!({
                "kty": "EC", "crv": "P-256", "x": encode(point.x().unwrap()), "y": encode(point.y().unwrap()),
            });
            let key = PublicKey::from_pem(&pem).unwrap();
            prop_assert_eq!(from_jwk(&jwk).unwrap().thumbprint(), key.thumbprint());
            let PublicKey::P256(key) = key else { panic!() };
            prop_assert_eq!(&key.point()[..], point.as_bytes());
        }
    }
}
