//! A signature as it comes, and as the HSM takes it.

use serde::{Deserialize, Serialize};

use super::{PublicKey, SignatureAlgorithm};

/// How the bytes of a signature are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureFormat {
    /// ECDSA: r and s in DER (RFC 3279, section 2.2.3).
    Der,
    /// ECDSA: r and s, 32 bytes each, as in IEEE P1363 and in RFC 7518, section 3.4.
    P1363,
    /// RSA: as many octets as the modulus has (RFC 8017, section 8.2.1).
    Raw,
}

impl SignatureFormat {
    /// That of a JWS (RFC 7518, sections 3.3 and 3.4).
    pub fn of_jws(algorithm: SignatureAlgorithm) -> Self {
        match algorithm {
            SignatureAlgorithm::Es256 => Self::P1363,
            SignatureAlgorithm::Rs256 => Self::Raw,
        }
    }

    /// That of a WebAuthn assertion (WebAuthn, section 6.5.5).
    pub fn of_webauthn(algorithm: SignatureAlgorithm) -> Self {
        match algorithm {
            SignatureAlgorithm::Es256 => Self::Der,
            SignatureAlgorithm::Rs256 => Self::Raw,
        }
    }

    /// Whether the algorithm has such signatures.
    pub fn fits(self, algorithm: SignatureAlgorithm) -> bool {
        match self {
            Self::Der | Self::P1363 => algorithm == SignatureAlgorithm::Es256,
            Self::Raw => algorithm == SignatureAlgorithm::Rs256,
        }
    }
}

/// A signature as the HSM takes it: r and s (64 bytes), or RSA's octets. It is no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// `None`: no key like this makes such bytes. In DER, anything but the one encoding of two numbers; r or
    /// s that is zero or not below the order; an RSA number that is not below the modulus; another length;
    /// a format that does not fit the key.
    ///
    /// An s above half of the order is as good as one below (FIPS 186-5, section 6.4.2).
    pub fn parse(format: SignatureFormat, bytes: &[u8], key: &PublicKey) -> Option<Self> {
        match (format, key) {
            (SignatureFormat::Der, PublicKey::P256(_)) => {
                let signature = p256::ecdsa::Signature::from_der(bytes).ok()?;
                Some(Self(signature.to_bytes().to_vec()))
            }
            (SignatureFormat::P1363, PublicKey::P256(_)) => Self::es256(bytes),
            (SignatureFormat::Raw, PublicKey::Rsa(key)) => {
                // RFC 8017, sections 8.2.2 and 5.2.2. Of one length, bytes compare as their numbers do.
                let in_range = bytes.len() == key.modulus().len() && bytes < key.modulus();
                in_range.then(|| Self(bytes.to_vec()))
            }
            _ => None,
        }
    }

    /// ECDSA with P-256: r and s, 32 bytes each; `None` if one of them is zero or not below the order.
    pub fn es256(bytes: &[u8]) -> Option<Self> {
        p256::ecdsa::Signature::from_slice(bytes).ok()?;
        Some(Self(bytes.to_vec()))
    }

    /// The same of ECDSA with P-256 in DER (RFC 3279, section 2.2.3); `None`: it is another's.
    pub fn to_der(&self) -> Option<Vec<u8>> {
        Some(p256::ecdsa::Signature::from_slice(&self.0).ok()?.to_der().as_bytes().to_vec())
    }

    /// r and s, or RSA's octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{hex, key_named, tlv, vectors};
    use super::SignatureFormat::{Der, P1363, Raw};
    use super::*;
    use proptest::prelude::*;

    const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    const BELOW_ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550";

    /// DER of two INTEGERs with these octets.
    fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
        tlv(0x30, &[&tlv(0x02, &[r]), &tlv(0x02, &[s])])
    }

    fn parsed(format: SignatureFormat, bytes: &[u8]) -> Option<Vec<u8>> {
        Signature::parse(format, bytes, &key_named("p256")).map(|signature| signature.as_bytes().to_vec())
    }

    fn padded(octets: &[u8]) -> Vec<u8> {
        [vec![0; 32 - octets.len()], octets.to_vec()].concat()
    }

    #[test]
    fn r_and_s_in_der() {
        let high = [&[0][..], &hex(BELOW_ORDER)].concat();
        for (r, s) in [
            (&[1][..], &[1][..]),
            (&[0x7f], &[0, 0x80]),
            (&[0x7f; 32], &[0x01; 31]),
            (&high, &[2]),
            (&high, &high),
        ] {
            let strip = |octets: &[u8]| padded(octets.strip_prefix(&[0]).unwrap_or(octets));
            assert_eq!(parsed(Der, &der(r, s)), Some([strip(r), strip(s)].concat()), "{r:02x?} {s:02x?}");
        }
        let vectors = vectors();
        let openssls = hex(vectors["signatures"][0]["hex"].as_str().unwrap());
        let raw = Signature::es256(&parsed(Der, &openssls).unwrap()).unwrap();
        assert_eq!(raw.to_der().unwrap(), openssls, "and back");
        for length in 0..openssls.len() {
            assert_eq!(parsed(Der, &openssls[..length]), None, "{length}");
        }
    }

    #[test]
    fn what_is_no_signature_in_der() {
        let order = [&[0][..], &hex(ORDER)].concat();
        let one = tlv(0x02, &[&[1]]);
        for (why, bytes) in [
            ("nothing", vec![]),
            ("no numbers", tlv(0x30, &[])),
            ("one number", tlv(0x30, &[&one])),
            ("three numbers", tlv(0x30, &[&one, &one, &one])),
            ("bytes behind", [der(&[1], &[1]), vec![0]].concat()),
            ("bytes inside", tlv(0x30, &[&one, &one, &[5, 0]])),
            ("negative r", der(&[0xff], &[1])),
            ("negative s", der(&[1], &[0x80])),
            ("negative, 32 bytes", der(&[0xff; 32], &[1])),
            ("leading zero in r", der(&[0, 1], &[1])),
            ("leading zero in s", der(&[1], &[0, 0x7f])),
            ("two leading zeros", der(&[0, 0, 0x80], &[1])),
            ("no octets", der(&[], &[1])),
            ("r = 0", der(&[0], &[1])),
            ("s = 0", der(&[1], &[0])),
            ("r = n", der(&order, &[1])),
            ("s = n", der(&[1], &order)),
            ("r of 33 octets", der(&[1; 33], &[1])),
            ("s of 400 octets", der(&[1], &[1; 400])),
            ("long form of a short length", [vec![0x30, 0x81, 6], one.clone(), one.clone()].concat()),
            ("long form inside", vec![0x30, 7, 2, 0x81, 1, 1, 2, 1, 1]),
            ("indefinite length", [vec![0x30, 0x80], one.clone(), one.clone(), vec![0, 0]].concat()),
            ("a length beyond the end", [vec![0x30, 7], one.clone(), one.clone()].concat()),
            ("a SET", tlv(0x31, &[&one, &one])),
            ("OCTET STRINGs", tlv(0x30, &[&tlv(4, &[&[1]]), &tlv(4, &[&[1]])])),
            ("P1363", [padded(&[1]), padded(&[1])].concat()),
        ] {
            assert_eq!(parsed(Der, &bytes), None, "{why}");
        }
    }

    #[test]
    fn r_and_s_of_32_bytes_each() {
        let one = padded(&[1]);
        let high = hex(BELOW_ORDER);
        for good in [[&*one, &one], [&high, &one], [&one, &high]] {
            assert_eq!(parsed(P1363, &good.concat()), Some(good.concat()));
        }
        let (zero, order, above) = ([0; 32], hex(ORDER), [0xff; 32]);
        for bad in [[&zero[..], &one], [&one, &zero], [&order, &one], [&one, &order], [&above, &one]] {
            assert_eq!(parsed(P1363, &bad.concat()), None);
        }
        for length in [0, 1, 32, 63, 65, 128] {
            assert_eq!(parsed(P1363, &vec![1; length]), None, "{length}");
        }
        assert_eq!(parsed(P1363, &der(&[1], &[1])), None);
    }

    #[test]
    fn an_rsa_signature_is_as_long_as_the_modulus_and_below_it() {
        for name in ["rsa2048", "rsa4096"] {
            let key = key_named(name);
            let PublicKey::Rsa(numbers) = &key else { panic!() };
            let is_one =
                |bytes: &[u8]| Signature::parse(Raw, bytes, &key).is_some_and(|s| s.as_bytes() == bytes);
            let modulus = numbers.modulus();
            let mut below = modulus.to_vec();
            *below.last_mut().unwrap() -= 1;
            assert!(is_one(&below) && is_one(&vec![0; modulus.len()]));
            assert!(!is_one(modulus) && !is_one(&vec![0xff; modulus.len()]));
            for length in [0, 1, modulus.len() - 1, modulus.len() + 1, 2 * modulus.len()] {
                assert!(!is_one(&vec![0; length]), "{length}");
            }
        }
    }

    #[test]
    fn a_format_is_of_one_algorithm() {
        let r_and_s = [padded(&[1]), padded(&[1])].concat();
        for (format, name, bytes) in
            [(Der, "p256", der(&[1], &[1])), (P1363, "p256", r_and_s), (Raw, "rsa2048", vec![1; 256])]
        {
            for key in [key_named("p256"), key_named("rsa2048")] {
                let fits = key == key_named(name);
                assert_eq!(format.fits(key.algorithm()), fits);
                assert_eq!(Signature::parse(format, &bytes, &key).is_some(), fits);
            }
        }
        assert_eq!(Signature::parse(Raw, &[1; 64], &key_named("p256")), None);
        for (format, name) in [(Der, "\"der\""), (P1363, "\"p1363\""), (Raw, "\"raw\"")] {
            assert_eq!(serde_json::to_string(&format).unwrap(), name);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_parsers_down(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            for (format, name) in [(Der, "p256"), (P1363, "p256"), (Raw, "rsa2048"), (Raw, "p256"), (Der, "rsa2048")] {
                let key = key_named(name);
                let signature = Signature::parse(format, &bytes, &key);
                prop_assert!(signature.is_none() || format.fits(key.algorithm()));
            }
        }

        #[test]
        fn der_is_read_in_one_way_alone(
            r in proptest::collection::vec(any::<u8>(), 0..34),
            s in proptest::collection::vec(any::<u8>(), 0..34),
        ) {
            let bytes = der(&r, &s);
            if let Some(signature) = parsed(Der, &bytes) {
                let rs = p256::ecdsa::Signature::from_slice(&signature).unwrap();
                let again = rs.to_der();
                prop_assert_eq!(again.as_bytes(), &bytes[..]);
            }
        }
    }
}
