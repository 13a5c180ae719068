//! The server's keys in the HSM, as rustls asks for them: which certificate is shown, and who signs.
//!
//! rustls wants a signature at once, from within the step of the handshake that computes. So the thread waits there, told to
//! the runtime (`block_in_place`), which has another thread take over the rest of its work. How many wait so is bounded by the
//! turns of handshakes (`server/handshakes.rs`), and how long by the handshake's own deadline.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::domain::handshake::TranscriptHash;
use crate::domain::signer::PublicKey;
use crate::hsm::{Hsm, KeyPlace};

/// A chain, and the key in the HSM that it is about.
pub(super) struct HsmKey {
    key: PublicKey,
    certified: Arc<CertifiedKey>,
}

impl HsmKey {
    /// # Errors
    /// The chain's first certificate cannot be read, or is about another key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PublicKey, hsm: &Hsm) -> Result<Self, Error> {
        let signing =
            KeyInHsm { spki: key.to_spki_der(), signs: Signs { key: key.clone(), hsm: hsm.clone() } };
        let certified = CertifiedKey::new(chain, Arc::new(signing));
        certified.keys_match()?;
        Ok(Self { key, certified: Arc::new(certified) })
    }
}

/// The server's certificates, in the order of the configuration.
pub(super) struct Certificates {
    all: Vec<HsmKey>,
    hsm: Hsm,
}

impl Certificates {
    pub fn new(all: Vec<HsmKey>, hsm: &Hsm) -> Self {
        Self { all, hsm: hsm.clone() }
    }
}

impl ResolvesServerCert for Certificates {
    /// The first whose key is in a token that is up. If none is, the first: its token may come back while the handshake
    /// waits, and if not the handshake fails.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_here = |of: &&HsmKey| self.hsm.tls_place(&of.key) == KeyPlace::Here;
        let shown = self.all.iter().find(is_here).or_else(|| self.all.first());
        shown.map(|shown| shown.certified.clone())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all.iter().map(|of| &of.key)).finish()
    }
}

#[derive(Debug)]
struct KeyInHsm {
    spki: Vec<u8>,
    signs: Signs,
}

impl SigningKey for KeyInHsm {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.signs.scheme()).then(|| Box::new(self.signs.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.spki.as_slice().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

#[derive(Clone)]
struct Signs {
    key: PublicKey,
    hsm: Hsm,
}

impl Signer for Signs {
    /// Only in a worker thread of the front's runtime.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |reason: &dyn fmt::Display| Error::General(format!("the HSM does not sign: {reason}"));
        // Of what rustls has spelt the custodian gets the hash alone, and spells it again.
        let transcript = TranscriptHash::of_content(message)
            .ok_or_else(|| failed(&"it is no server's CertificateVerify of TLS 1.3"))?;
        let signed = self.hsm.sign_handshake(&self.key, transcript);
        let signature = block_in_place(|| Handle::current().block_on(signed)).map_err(|e| failed(&e))?;
        signature.to_der().ok_or_else(|| failed(&"another algorithm's signature came back"))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

impl fmt::Debug for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}
