//! A public key in PEM: a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7; RFC 7468, section 13).

use data_encoding::BASE64;
use x509_cert::der::asn1::{AnyRef, BitStringRef, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Encode, Reader, SliceReader, Tag};
use x509_cert::spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};

use super::{HOLDS_PRIVATE_KEY, KeyError, P256Key, PublicKey, RsaKey};

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// RFC 5480, sections 2.1.1 and 2.1.1.1.
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// RFC 3279, section 2.3.1, and RFC 4055, section 1.2.
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

const NO_PEM: KeyError = KeyError("must be one PUBLIC KEY block in PEM, with nothing around it");
const CERTIFICATE: KeyError = KeyError("is a certificate: send its public key, as a PUBLIC KEY block");
const PKCS1: KeyError = KeyError("is a key in PKCS#1: write it as a PUBLIC KEY block (SubjectPublicKeyInfo)");
const NO_KEY_INFO: KeyError = KeyError("must have one SubjectPublicKeyInfo in DER in its PUBLIC KEY block");
const OTHER_ALGORITHM: KeyError = KeyError("must be a key of EC P-256 or RSA");
const OTHER_CURVE: KeyError = KeyError("must be on the curve P-256");
const NO_CURVE_NAME: KeyError =
    KeyError("must name its curve, P-256, instead of describing it or leaving it out");
const PSS: KeyError =
    KeyError("is for RSASSA-PSS alone: send a key of rsaEncryption, which signs by PKCS#1 v1.5");
const RSA_PARAMETERS: KeyError = KeyError("must have NULL as the parameters of its RSA algorithm");
const NO_RSA_KEY: KeyError = KeyError("must have an RSA modulus and exponent in DER, both positive");

impl PublicKey {
    /// From one `PUBLIC KEY` block with nothing around it but white space.
    ///
    /// # Errors
    /// The text is something else, or the key is not one of [`PublicKey`]'s.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_key_info(&block(text)?)
    }

    /// One `PUBLIC KEY` block, in lines of 64 characters (RFC 7468, section 2), each with its end.
    ///
    /// # Errors
    /// None for a key that was checked: DER has room for it.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let base64 = BASE64.encode(&self.to_key_info().map_err(|_| NO_KEY_INFO)?);
        let mut pem = format!("{BEGIN}\n");
        for (place, character) in base64.chars().enumerate() {
            if place > 0 && place % 64 == 0 {
                pem.push('\n');
            }
            pem.push(character);
        }
        pem.push_str(&format!("\n{END}\n"));
        Ok(pem)
    }

    /// The key as a SubjectPublicKeyInfo in DER.
    fn to_key_info(&self) -> x509_cert::der::Result<Vec<u8>> {
        let (oid, parameters, key) = match self {
            Self::P256(key) => (EC_PUBLIC_KEY, AnyRef::from(&PRIME256V1), key.point().to_vec()),
            Self::Rsa(key) => {
                let numbers =
                    [UintRef::new(&key.modulus)?.to_der()?, UintRef::new(&key.exponent)?.to_der()?].concat();
                (RSA_ENCRYPTION, AnyRef::NULL, AnyRef::new(Tag::Sequence, &numbers)?.to_der()?)
            }
        };
        let algorithm = AlgorithmIdentifierRef { oid, parameters: Some(parameters) };
        SubjectPublicKeyInfoRef { algorithm, subject_public_key: BitStringRef::from_bytes(&key)? }.to_der()
    }

    /// From a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// It is something else, or the key is not one of [`PublicKey`]'s.
    pub(in crate::domain) fn from_key_info(der: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| NO_KEY_INFO)?;
        // None: a number of bits that is no number of bytes.
        let key = info.subject_public_key.as_bytes().ok_or(NO_KEY_INFO)?;
        match info.algorithm.oid {
            EC_PUBLIC_KEY => {
                check_curve(info.algorithm.parameters)?;
                P256Key::from_point(key).map(Self::P256)
            }
            RSA_ENCRYPTION if info.algorithm.parameters != Some(AnyRef::NULL) => Err(RSA_PARAMETERS),
            RSA_ENCRYPTION => {
                let (modulus, exponent) = rsa_numbers(key).ok_or(NO_RSA_KEY)?;
                RsaKey::new(modulus.as_bytes(), exponent.as_bytes()).map(Self::Rsa)
            }
            RSASSA_PSS => Err(PSS),
            _ => Err(OTHER_ALGORITHM),
        }
    }
}

/// What is in the one block. Lines may be of any length (RFC 7468, section 2, asks parsers to ignore white
/// space); the base64 is strict.
fn block(text: &str) -> Result<Vec<u8>, KeyError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(HOLDS_PRIVATE_KEY);
    }
    let trimmed = text.trim_ascii();
    let Some(begun) = trimmed.strip_prefix(BEGIN) else {
        return Err(match trimmed {
            _ if trimmed.starts_with("-----BEGIN CERTIFICATE-----") => CERTIFICATE,
            _ if trimmed.starts_with("-----BEGIN RSA PUBLIC KEY-----") => PKCS1,
            _ => NO_PEM,
        });
    };
    // A second block would leave hyphens, which are no base64.
    begun.strip_suffix(END).and_then(decode_body).ok_or(NO_PEM)
}

/// The bytes between a block's two lines; `None`: no base64, or not the one spelling of these bytes.
pub(in crate::domain) fn decode_body(body: &str) -> Option<Vec<u8>> {
    let base64: Vec<u8> = body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    // The decoder also takes several padded texts in a row.
    BASE64.decode(&base64).ok().filter(|der| BASE64.encode(der).as_bytes() == base64)
}

/// RFC 5480, section 2.1.1.
fn check_curve(parameters: Option<AnyRef<'_>>) -> Result<(), KeyError> {
    match parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok()) {
        Some(PRIME256V1) => Ok(()),
        Some(_) => Err(OTHER_CURVE),
        None => Err(NO_CURVE_NAME),
    }
}

/// An `RSAPublicKey` (RFC 8017, appendix A.1.1), in DER.
fn rsa_numbers(der: &[u8]) -> Option<(UintRef<'_>, UintRef<'_>)> {
    let mut reader = SliceReader::new(der).ok()?;
    let numbers = reader.sequence(|reader| {
        Ok::<_, x509_cert::der::Error>((UintRef::decode(reader)?, UintRef::decode(reader)?))
    });
    reader.finish().ok()?;
    numbers.ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{key_named, pem_named, pem_of, tlv};
    use super::super::{POINT_AT_INFINITY, POINT_FORM, POINT_OFF_CURVE, RSA_EVEN, RSA_EXPONENT, RSA_SIZE};
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> KeyError {
        PublicKey::from_pem(text).unwrap_err()
    }

    #[test]
    fn a_key_is_written_as_openssl_writes_it() {
        for name in ["p256", "rsa2048", "rsa4096"] {
            assert_eq!(key_named(name).to_pem().unwrap().trim_end(), pem_named(name).trim_end(), "{name}");
        }
    }

    /// The DER of a key of the vectors.
    fn der_named(name: &str) -> Vec<u8> {
        block(&pem_named(name)).unwrap()
    }

    fn oid(identifier: ObjectIdentifier) -> Vec<u8> {
        tlv(0x06, &[identifier.as_bytes()])
    }

    const NULL: [u8; 2] = [5, 0];

    /// A SubjectPublicKeyInfo of an algorithm's identifier, its parameters and the bits of the key.
    fn key_info(algorithm: &[&[u8]], key: &[u8]) -> String {
        pem_of(&tlv(0x30, &[&tlv(0x30, algorithm), &tlv(0x03, &[&[0], key])]))
    }

    fn ec(point: &[u8]) -> String {
        key_info(&[&oid(EC_PUBLIC_KEY), &oid(PRIME256V1)], point)
    }

    fn rsa(key: &[u8]) -> String {
        key_info(&[&oid(RSA_ENCRYPTION), &NULL], key)
    }

    fn point() -> Vec<u8> {
        let PublicKey::P256(key) = key_named("p256") else { panic!() };
        key.point().to_vec()
    }

    /// The DER of an INTEGER that begins with these octets.
    fn integer(octets: &[u8]) -> Vec<u8> {
        tlv(0x02, &[octets])
    }

    /// A modulus of 2048 bits in DER, which is odd, or not.
    fn modulus(last: u8) -> Vec<u8> {
        integer(&[&[0][..], &[0xff; 255], &[last]].concat())
    }

    #[test]
    fn other_keys_are_refused_by_name() {
        for (name, reason) in [
            ("secp384r1", OTHER_CURVE),
            ("secp256k1", OTHER_CURVE),
            ("ed25519", OTHER_ALGORITHM),
            ("p256-explicit", NO_CURVE_NAME),
            ("p256-hybrid", POINT_FORM),
            ("rsa1024", RSA_SIZE),
            ("rsa2047", RSA_SIZE),
            ("rsa4104", RSA_SIZE),
            ("rsa2048-exponent-3", RSA_EXPONENT),
            ("rsa2048-pss", PSS),
        ] {
            assert_eq!(refused(&pem_named(name)), reason, "{name}");
        }
    }

    #[test]
    fn there_is_one_block_and_nothing_around_it() {
        let pem = pem_named("p256");
        let key = key_named("p256");
        let one_line = pem_of(&der_named("p256"));
        for good in [
            pem.trim_end().to_owned(),
            format!("\r\n \t{pem}\n\n"),
            pem.replace('\n', "\r\n"),
            pem.replace('\n', "\n  "),
            one_line.clone(),
        ] {
            assert_eq!(PublicKey::from_pem(&good), Ok(key.clone()), "{good}");
        }
        for bad in [
            String::new(),
            "-----BEGIN PUBLIC KEY-----".to_owned(),
            "-----END PUBLIC KEY-----".to_owned(),
            format!("a comment\n{pem}"),
            format!("{pem}a comment"),
            format!("\u{a0}{pem}"),
            format!("{pem}{pem}"),
            format!("{pem}{}", pem_named("rsa2048")),
            pem.replace("END PUBLIC", "END  PUBLIC"),
            pem.replace("BEGIN PUBLIC", "BEGIN public"),
            pem.replace("-----\nM", "-----\nComment: mine\n\nM"),
            pem.replace("==\n", "=\n").replace("==", "="),
            one_line.replacen("MFkw", "MA==WTA=", 1),
            one_line.replacen("MFkw", "MFk\u{0}", 1),
            one_line.replacen("MFkw", "MFk_", 1),
            one_line.replacen("MFkw", "MFk", 1),
        ] {
            assert_eq!(refused(&bad), NO_PEM, "{bad}");
        }
    }

    #[test]
    fn other_blocks_are_refused_by_name() {
        let labelled = |label: &str| pem_named("p256").replace("PUBLIC KEY", label);
        for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
            assert_eq!(refused(&labelled(label)), HOLDS_PRIVATE_KEY, "{label}");
            let both = format!("{}{}", pem_named("p256"), labelled(label));
            assert_eq!(refused(&both), HOLDS_PRIVATE_KEY, "{label}");
        }
        assert_eq!(refused(&labelled("CERTIFICATE")), CERTIFICATE);
        assert_eq!(refused(&labelled("RSA PUBLIC KEY")), PKCS1);
        assert_eq!(refused(&labelled("EC PARAMETERS")), NO_PEM);
    }

    #[test]
    fn the_der_is_whole_and_no_more() {
        for name in ["p256", "rsa2048"] {
            let der = der_named(name);
            assert_eq!(PublicKey::from_pem(&pem_of(&der)), Ok(key_named(name)));
            for length in 0..der.len() {
                assert_eq!(refused(&pem_of(&der[..length])), NO_KEY_INFO, "{name} {length}");
            }
            assert_eq!(refused(&pem_of(&[&*der, &[0]].concat())), NO_KEY_INFO, "{name}");
            assert_eq!(refused(&pem_of(&[&*der, &der].concat())), NO_KEY_INFO, "{name}");
        }
        let algorithm = tlv(0x30, &[&oid(EC_PUBLIC_KEY), &oid(PRIME256V1)]);
        let bits = tlv(0x03, &[&[0], &point()]);
        let inside = tlv(0x30, &[&algorithm, &bits, &NULL]);
        assert_eq!(refused(&pem_of(&inside)), NO_KEY_INFO);
        let behind = key_info(&[&oid(EC_PUBLIC_KEY), &oid(PRIME256V1), &NULL], &point());
        assert_eq!(refused(&behind), NO_KEY_INFO);
        // A bit too few, and a length in more bytes than it takes.
        let cut = tlv(0x30, &[&algorithm, &tlv(0x03, &[&[1], &point()])]);
        assert_eq!(refused(&pem_of(&cut)), NO_KEY_INFO);
        let mut long = der_named("p256");
        long.splice(1..2, [0x81, 0x59]);
        assert_eq!(refused(&pem_of(&long)), NO_KEY_INFO);
    }

    #[test]
    fn the_curve_is_named_and_the_point_is_on_it() {
        assert_eq!(PublicKey::from_pem(&ec(&point())), Ok(key_named("p256")));
        assert_eq!(refused(&ec(&[0])), POINT_AT_INFINITY);
        let mut off = point();
        off[64] ^= 1;
        assert_eq!(refused(&ec(&off)), POINT_OFF_CURVE);
        // The point in an OCTET STRING, as PKCS#11 has it.
        assert_eq!(refused(&ec(&tlv(0x04, &[&point()]))), POINT_FORM);
        assert_eq!(refused(&key_info(&[&oid(EC_PUBLIC_KEY)], &point())), NO_CURVE_NAME);
        assert_eq!(refused(&key_info(&[&oid(EC_PUBLIC_KEY), &NULL], &point())), NO_CURVE_NAME);
        // id-ecDH (RFC 5480) is for key agreement alone.
        let ecdh = ObjectIdentifier::new_unwrap("1.3.132.1.12");
        assert_eq!(refused(&key_info(&[&oid(ecdh), &oid(PRIME256V1)], &point())), OTHER_ALGORITHM);
    }

    #[test]
    fn an_rsa_key_has_null_and_two_positive_numbers() {
        let exponent = integer(&[1, 0, 1]);
        let good = tlv(0x30, &[&modulus(0xff), &exponent]);
        assert!(PublicKey::from_pem(&rsa(&good)).is_ok());
        for parameters in [&[][..], &[5, 1, 0], &tlv(0x30, &[]), &oid(PRIME256V1)] {
            let text = key_info(&[&oid(RSA_ENCRYPTION), parameters], &good);
            assert_eq!(refused(&text), RSA_PARAMETERS, "{parameters:02x?}");
        }
        let negative = integer(&[0xff; 256]);
        let padded = integer(&[&[0, 0][..], &[0xff; 256]].concat());
        for key in [
            tlv(0x30, &[&negative, &exponent]),
            tlv(0x30, &[&padded, &exponent]),
            tlv(0x30, &[&modulus(0xff), &integer(&[0, 1, 0, 1])]),
            tlv(0x30, &[&modulus(0xff), &integer(&[0xff, 1])]),
            tlv(0x30, &[&modulus(0xff), &integer(&[])]),
            tlv(0x30, &[&modulus(0xff)]),
            tlv(0x30, &[&modulus(0xff), &exponent, &NULL]),
            [good.clone(), vec![0]].concat(),
            tlv(0x31, &[&modulus(0xff), &exponent]),
            vec![],
        ] {
            assert_eq!(refused(&rsa(&key)), NO_RSA_KEY, "{key:02x?}");
        }
        assert_eq!(refused(&rsa(&tlv(0x30, &[&modulus(0xfe), &exponent]))), RSA_EVEN);
        assert_eq!(refused(&rsa(&tlv(0x30, &[&modulus(0xff), &integer(&[1])]))), RSA_EXPONENT);
        assert_eq!(refused(&rsa(&tlv(0x30, &[&integer(&[1]), &exponent]))), RSA_SIZE);
    }

    proptest! {
        #[test]
        fn no_text_brings_the_parser_down(text in any::<String>(), der in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(PublicKey::from_pem(&text).is_err());
            prop_assert!(PublicKey::from_pem(&pem_of(&der)).is_err());
            // Chance makes a compressed point now and then.
            prop_assert!(PublicKey::from_pem(&ec(&der)).is_err() || der.len() == 33);
            prop_assert!(PublicKey::from_pem(&rsa(&der)).is_err());
        }

        #[test]
        fn an_altered_key_is_refused_or_another_one(
            name in prop_oneof![Just("p256"), Just("p256-compressed"), Just("rsa2048")],
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut der = der_named(name);
            let whole = der.clone();
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            if let Ok(key) = PublicKey::from_pem(&pem_of(&der)) {
                prop_assert_eq!(key == key_named(name), der == whole);
            }
        }
    }
}
