//! Certificate chains of signing devices (RFC 5280): what a chain is, and whether it is to be trusted.
//!
//! A [`CertificateChain`] says whose key it is. A [`Trust`] says whether to believe that, at a given moment.

mod trust;

use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use super::signer::pem::decode_body;
use super::signer::{KeyError, PublicKey};

pub use trust::{ChainFault, Trust, TrustError};

/// Of a chain; an anchor needs no place in it.
const CERTIFICATES_MAX: usize = 4;
/// All certificates of a chain together, in DER.
const DER_BYTES_MAX: usize = 8 * 1024;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

const HOLDS_PRIVATE_KEY: KeyError = KeyError(
    "holds a private key, which now is known to others: make a new one, and send its certificates alone",
);
const NO_PEM: KeyError = KeyError(
    "must be CERTIFICATE blocks in PEM, the device's own first, with nothing around them but white space",
);
const TOO_MANY: KeyError = KeyError("must have 1 to 4 certificates");
const TOO_LARGE: KeyError = KeyError("must have at most 8192 bytes of DER in all its certificates");
const NO_CERTIFICATE: KeyError = KeyError("must have one X.509 certificate in DER in each CERTIFICATE block");

/// DER certificates, the device's own first: 1 to 4, at most 8 KiB in all. A value of this type was parsed, and
/// the device's key was checked; whether to trust it, [`Trust::check`] says.
///
/// It is stored in sealed rows: its layout never changes. What is decoded from a sealed row is as checked as
/// the row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CertificateChain(Vec<Vec<u8>>);

impl CertificateChain {
    /// From `CERTIFICATE` blocks (RFC 7468, section 5) with nothing around them but white space.
    ///
    /// # Errors
    /// The text is something else, there are too many, or the device's key is not one of [`PublicKey`]'s.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(HOLDS_PRIVATE_KEY);
        }
        let mut ders = Vec::new();
        let mut rest = text.trim_ascii();
        while !rest.is_empty() || ders.is_empty() {
            let (body, behind) =
                rest.strip_prefix(BEGIN).and_then(|begun| begun.split_once(END)).ok_or(NO_PEM)?;
            if ders.len() == CERTIFICATES_MAX {
                return Err(TOO_MANY);
            }
            ders.push(decode_body(body).ok_or(NO_PEM)?);
            rest = behind.trim_ascii_start();
        }
        if ders.iter().map(Vec::len).sum::<usize>() > DER_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        for der in &ders {
            Certificate::from_der(der).map_err(|_| NO_CERTIFICATE)?;
        }
        let chain = Self(ders);
        chain.public_key()?;
        Ok(chain)
    }

    /// The device's key, checked as any other.
    ///
    /// # Errors
    /// None for a chain of [`CertificateChain::from_pem`].
    pub fn public_key(&self) -> Result<PublicKey, KeyError> {
        key_of(self.0.first().ok_or(NO_CERTIFICATE)?)
    }

    /// The last second in which the device's own certificate is valid (notAfter), in milliseconds since 1970.
    ///
    /// # Errors
    /// As [`CertificateChain::public_key`].
    pub fn not_after_unix_ms(&self) -> Result<u64, KeyError> {
        let seconds = self.device()?.tbs_certificate().validity().not_after.to_unix_duration().as_secs();
        Ok(seconds.saturating_mul(1_000))
    }

    /// The certificates in DER, the device's own first.
    pub fn ders(&self) -> &[Vec<u8>] {
        &self.0
    }

    fn device(&self) -> Result<Certificate, KeyError> {
        let der = self.0.first().ok_or(NO_CERTIFICATE)?;
        Certificate::from_der(der).map_err(|_| NO_CERTIFICATE)
    }
}

/// The key that a certificate in DER is about, checked as any other.
///
/// # Errors
/// It is no certificate, or its key is not one of [`PublicKey`]'s.
pub fn key_of(certificate: &[u8]) -> Result<PublicKey, KeyError> {
    let certificate = Certificate::from_der(certificate).map_err(|_| NO_CERTIFICATE)?;
    let key_info = certificate.tbs_certificate().subject_public_key_info().to_der();
    PublicKey::from_key_info(&key_info.map_err(|_| NO_CERTIFICATE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_stored_as_it_always_was() {
        let chain = CertificateChain(vec![vec![1, 2, 3], vec![4; 200]]);
        let stored = [&[2, 3, 1, 2, 3, 0xc8, 1][..], &[4; 200]].concat();
        assert_eq!(postcard::to_stdvec(&chain).unwrap(), stored);
        assert_eq!(postcard::from_bytes::<CertificateChain>(&stored).unwrap(), chain);
    }

    /// It is swapped while requests use it.
    #[test]
    fn a_trust_is_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>(_: &T) {}
        shared(&Trust::none());
    }

    #[test]
    fn what_is_no_chain_says_so_instead_of_panicking() {
        for ders in [vec![], vec![vec![]], vec![vec![0x30, 0x80]]] {
            let chain = CertificateChain(ders);
            assert_eq!(chain.public_key(), Err(NO_CERTIFICATE));
            assert_eq!(chain.not_after_unix_ms(), Err(NO_CERTIFICATE));
            assert!(matches!(Trust::none().check(&chain, 0), Err(ChainFault::Refused(_))));
        }
    }
}
