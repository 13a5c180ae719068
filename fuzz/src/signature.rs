//! `Signature::parse`, of the same bytes in every format and for a key of either kind.

use std::sync::LazyLock;

use hsm_authd::domain::signer::PublicKey;
use hsm_authd::domain::signer::signature::{Signature, SignatureFormat};

use super::key_text::two_integers;

/// The order of P-256 (FIPS 186-5, section 6.1.1; SP 800-186, section 3.2.1.3).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

static P256: LazyLock<PublicKey> = LazyLock::new(|| key(include_str!("../corpus/pem/p256.pem")));
static RSA: LazyLock<PublicKey> = LazyLock::new(|| key(include_str!("../corpus/pem/rsa_2048.pem")));

fn key(pem: &str) -> PublicKey {
    PublicKey::from_pem(pem).expect("a key of the corpus")
}

/// The input is a signature.
pub fn run(input: &[u8]) {
    use SignatureFormat::{Der, P1363, Raw};
    let parsed = |format, key: &PublicKey| Signature::parse(format, input, key);
    for (format, key) in [(Der, &*RSA), (P1363, &*RSA), (Raw, &*P256)] {
        assert!(parsed(format, key).is_none(), "{format:?} of another kind of key");
    }
    let raw = parsed(Raw, &RSA);
    if let PublicKey::Rsa(key) = &*RSA {
        assert_eq!(raw.is_some(), input.len() == key.modulus().len() && input < key.modulus());
    }
    assert!(raw.is_none_or(|raw| raw.as_bytes() == input), "as it came");

    let in_range = |number: &[u8]| number.iter().any(|byte| *byte > 0) && *number < ORDER[..];
    let fixed = parsed(P1363, &P256);
    assert_eq!(fixed.is_some(), input.len() == 64 && input.chunks(32).all(in_range));
    assert!(fixed.is_none_or(|fixed| fixed.as_bytes() == input), "as it came");

    if let Some(der) = parsed(Der, &P256) {
        let (r, s) = der.as_bytes().split_at(32);
        assert!(in_range(r) && in_range(s), "r and s are in range");
        assert_eq!(two_integers(r, s), input, "a signature in DER has one spelling");
    }
    // Whatever the input is, its first 64 bytes as two numbers are taken exactly if they are in range.
    if let Some((r, s)) = input.get(..64).map(|numbers| numbers.split_at(32)) {
        let der = Signature::parse(Der, &two_integers(r, s), &P256);
        assert_eq!(der.is_some(), in_range(r) && in_range(s));
    }
}
