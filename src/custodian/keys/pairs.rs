//! Key pairs whose halves were tried: each fits the other.

use sha2::{Digest, Sha256};

use super::super::pkcs11::{
    Half, Material, Object, PairForm, Pkcs11Error, Session, Shape, Use, VerifyingKey,
};
use super::super::secrets::departing;
use super::survey::wrong_half;
use super::{KeyError, KeyName, Kind};
use crate::domain::otp::Algorithm;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::{Signature, SignatureFormat};
use crate::domain::wrapped_seed::{WRAPPED_BYTES, WrappedSeed};
use crate::hsm::messages::Remedy;
use crate::secret::MacKey;

impl Kind {
    /// What is signed at each start to see whether two halves are of one pair. No JWS's signing input, no note, no
    /// CertificateVerify and no request for a certificate begins so.
    fn trial(self) -> &'static [u8] {
        match self {
            Self::Audit => b"\0hsm-authd/audit/trial/v1",
            Self::Tls => b"\0hsm-authd/tls/trial/v1",
            _ => b"\0hsm-authd/attest/trial/v1",
        }
    }
}

/// What signatures of one version of `attest`, `audit` or `tls` are verified with.
pub struct PublishedKey {
    public: PublicKey,
    /// Its thumbprint (RFC 7638).
    kid: String,
    /// A session object of it: what is published is what verifies.
    verifying: VerifyingKey,
}

impl PublishedKey {
    /// Reads a public half.
    ///
    /// # Errors
    /// It has no point on P-256, or the HSM failed.
    pub fn open(session: &Session, name: KeyName, public: Object) -> Result<Self, KeyError> {
        Ok(Self::of(session, public_half(session, name, public, PairForm::P256)?)?)
    }

    /// The same of a key whose point was read.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn of(session: &Session, public: PublicKey) -> Result<Self, Pkcs11Error> {
        let verifying = session.create_public_key(&public)?;
        Ok(Self { kid: public.thumbprint(), public, verifying })
    }

    /// The key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Its thumbprint.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The same, to verify with.
    pub fn verifying(&self) -> &VerifyingKey {
        &self.verifying
    }

    /// Whether its private half made this signature.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn verify(
        &self,
        session: &Session,
        digest: &[u8; 32],
        signature: &Signature,
    ) -> Result<bool, Pkcs11Error> {
        session.verify_digest(&self.verifying, digest, signature)
    }
}

/// One version of `attest`, `audit` or `tls`, both halves.
pub struct SigningKey {
    private: Object,
    published: PublishedKey,
}

impl SigningKey {
    /// Reads the public half, and has the one verify what the other signs.
    ///
    /// # Errors
    /// The halves are not of one pair, the public one has no point on P-256, or the HSM failed.
    pub fn open(session: &Session, name: KeyName, private: Object, public: Object) -> Result<Self, KeyError> {
        twice(|| Self::try_out(session, name, private, public))
    }

    fn try_out(session: &Session, name: KeyName, private: Object, public: Object) -> Result<Self, KeyError> {
        let published = PublishedKey::open(session, name, public)?;
        let digest = Sha256::digest(name.kind.trial()).into();
        let tried = session.sign_unverified(private, &digest).and_then(|signature| {
            match Signature::parse(SignatureFormat::P1363, &signature, &published.public) {
                Some(signature) => published.verify(session, &digest, &signature),
                None => Ok(false),
            }
        });
        if !matches!(tried, Ok(true)) {
            // It is no secret, and what is wrong is told.
            let _ = session.destroy(published.verifying.object());
        }
        match tried? {
            true => Ok(Self { private, published }),
            false => Err(KeyError::OtherPair(name)),
        }
    }

    /// The public half.
    pub fn published(&self) -> &PublishedKey {
        &self.published
    }

    /// The public half, as others have it.
    pub fn public(&self) -> &PublicKey {
        &self.published.public
    }

    /// Its thumbprint.
    pub fn kid(&self) -> &str {
        &self.published.kid
    }

    /// ECDSA of a SHA-256 digest: r and s, 32 bytes each, verified in this process.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn sign(&self, session: &Session, digest: &[u8; 32]) -> Result<[u8; 64], Pkcs11Error> {
        session.sign_digest(self.private, &self.published.public, digest)
    }
}

/// One version of `import`.
pub struct ImportKey {
    version: u16,
    private: Object,
    public: PublicKey,
    /// [`KNOWN_SECRET`] under the public half: what this key must always open.
    trial: WrappedSeed,
}

/// What is wrapped and unwrapped at each start, for the same reason.
const KNOWN_SECRET: &[u8; WRAPPED_BYTES] =
    b"hsm-authd/import/trial/v1 known, as long as a seed with zeros is";
const KNOWN_MESSAGE: &[u8] = b"hsm-authd/import/trial/v1";

impl ImportKey {
    /// Reads the public half, and has the one unwrap what the other wraps.
    ///
    /// # Errors
    /// The halves are not of one pair, the public one is no RSA key of 3072 bits, or the HSM failed.
    pub fn open(session: &Session, name: KeyName, private: Object, public: Object) -> Result<Self, KeyError> {
        twice(|| Self::try_out(session, name, private, public))
    }

    fn try_out(session: &Session, name: KeyName, private: Object, public: Object) -> Result<Self, KeyError> {
        let key = public_half(session, name, public, PairForm::Rsa3072)?;
        let known = session.create(&departing(KNOWN_SECRET.len()), KNOWN_SECRET)?;
        let blob = session.destroy_after(known, session.wrap_oaep(public, known))?;
        let trial = WrappedSeed::try_from(blob).map_err(|_| KeyError::OtherPair(name))?;
        // What another pair's half wrapped is no blob to this one: the module says so by an error, whichever it is.
        let arrived =
            session.unwrap_oaep(private, trial.as_bytes(), &TRIED).map_err(|error| match error.remedy() {
                // Some of what modules say of a blob that they cannot open.
                Remedy::Refuse | Remedy::Repeat => KeyError::Unwraps(name, error),
                _ => KeyError::Hsm(error),
            })?;
        let mac = session.hmac(Algorithm::Sha256, arrived, KNOWN_MESSAGE);
        let mac = session.destroy_after(arrived, mac)?;
        match MacKey::new(KNOWN_SECRET).mac(KNOWN_MESSAGE).as_slice() == mac.as_slice() {
            true => Ok(Self { version: name.version, private, public: key, trial }),
            false => Err(KeyError::OtherPair(name)),
        }
    }

    /// Its name in the token.
    pub fn name(&self) -> KeyName {
        KeyName { kind: Kind::Import, version: self.version }
    }

    /// Whether a blob can be one that somebody wrapped for it.
    pub fn may_have_made(&self, seed: &WrappedSeed) -> bool {
        matches!(&self.public, PublicKey::Rsa(key) if seed.is_below(key.modulus()))
    }

    /// A known secret wrapped for it: what it must always open.
    pub fn trial(&self) -> &WrappedSeed {
        &self.trial
    }

    /// What the HMAC of `message` is under that secret.
    pub fn trial_mac(message: &[u8]) -> [u8; 32] {
        MacKey::new(KNOWN_SECRET).mac(message)
    }

    /// The private half, in the token: it unwraps.
    pub fn private(&self) -> Object {
        self.private
    }

    /// The public half: RSA, 3072 bits.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

/// The known secret as it comes out: enough to compare, and it never leaves.
const TRIED: Shape = Shape {
    material: Material::Generic,
    length_bytes: None,
    token: false,
    extractable: false,
    purpose: Some(Use::Sign),
};

/// What is said of halves that do not fit has somebody put another key in the place of one: it is said of what was tried
/// twice.
fn twice<T>(try_out: impl Fn() -> Result<T, KeyError>) -> Result<T, KeyError> {
    match try_out() {
        Err(KeyError::OtherPair(name) | KeyError::Unwraps(name, _)) => try_out().and_then(|_| {
            let lie = format!("the halves of {name} fit each other, and did not a moment ago");
            Err(KeyError::Hsm(Pkcs11Error::lie(lie)))
        }),
        tried => tried,
    }
}

fn public_half(
    session: &Session,
    name: KeyName,
    public: Object,
    form: PairForm,
) -> Result<PublicKey, KeyError> {
    session.public_half(public, form).map_err(|error| wrong_half(Half::Public, name, error))
}
