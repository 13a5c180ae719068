//! A certificate authority of P-256 keys that issues TLS leaves, held in memory.

use std::net::IpAddr;
use std::time::SystemTime;

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use x509_cert::Certificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::Ia5String;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use x509_cert::der::{self, DecodePem, Encode, EncodePem};
use x509_cert::ext::pkix::name::{GeneralName, GeneralNames};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::Time;
use zeroize::Zeroizing;

/// Why a certificate or key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text holds no certificate.
    #[error("not an X.509 certificate (PEM): {0}")]
    Certificate(der::Error),
    /// The text holds no such key. Its own words are left out: they might be a key's.
    #[error("not a P-256 private key (PKCS#8, PEM)")]
    Key,
    /// A name, a time or a key that X.509 cannot express.
    #[error("cannot be made: {0}")]
    Build(#[from] builder::Error),
    /// The operating system gave no random bytes.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
}

impl From<der::Error> for CertificateError {
    fn from(error: der::Error) -> Self {
        Self::Build(error.into())
    }
}

/// From when to when a certificate holds, both ends included, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last one.
    pub not_after: SystemTime,
}

/// What a leaf is for: its extended key usage (RFC 5280 section 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `serverAuth`
    Server,
    /// `clientAuth`
    Client,
}

/// A subject alternative name (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlternativeName {
    /// A URI, in ASCII.
    Uri(String),
    /// A DNS name, in ASCII.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl AlternativeName {
    fn to_general_name(&self) -> Result<GeneralName, der::Error> {
        Ok(match self {
            Self::Uri(uri) => GeneralName::UniformResourceIdentifier(Ia5String::new(uri)?),
            Self::Dns(dns) => GeneralName::DnsName(Ia5String::new(dns)?),
            Self::Ip(ip) => (*ip).into(),
        })
    }
}

/// A certificate and a private key. The key is zeroized on drop.
pub struct Identity {
    certificate: Certificate,
    key: SigningKey,
}

impl Identity {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// [`CertificateError::Certificate`] or [`CertificateError::Key`], whichever it is.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, CertificateError> {
        Ok(Self {
            certificate: Certificate::from_pem(certificate).map_err(CertificateError::Certificate)?,
            key: SigningKey::from_pkcs8_pem(key).map_err(|_| CertificateError::Key)?,
        })
    }

    /// The certificate as PEM.
    ///
    /// # Errors
    /// [`CertificateError::Build`], which no certificate that was made or read here gives.
    pub fn certificate_pem(&self) -> Result<String, CertificateError> {
        Ok(self.certificate.to_pem(LineEnding::LF)?)
    }

    /// The certificate as DER.
    ///
    /// # Errors
    /// [`CertificateError::Build`], which no certificate that was made or read here gives.
    pub fn certificate_der(&self) -> Result<Vec<u8>, CertificateError> {
        Ok(self.certificate.to_der()?)
    }

    /// Declassifies: the private key as PKCS#8 PEM, to be written to its file (mode 0600).
    ///
    /// # Errors
    /// [`CertificateError::Key`], which no key that was made or read here gives.
    pub fn key_pem(&self) -> Result<Zeroizing<String>, CertificateError> {
        self.key.to_pkcs8_pem(LineEnding::LF).map_err(|_| CertificateError::Key)
    }

    /// Whether the key is the certificate's.
    pub fn is_consistent(&self) -> bool {
        public_key(&self.key)
            .is_ok_and(|public| public == *self.certificate.tbs_certificate().subject_public_key_info())
    }

    /// Whether the certificate holds at every moment of `period`.
    pub fn is_valid_throughout(&self, period: Validity) -> bool {
        let validity = self.certificate.tbs_certificate().validity();
        validity.not_before.to_system_time() <= period.not_before
            && period.not_after <= validity.not_after.to_system_time()
    }

    /// Whether the certificate has all of `names`; it may have others besides.
    pub fn has_names(&self, names: &[AlternativeName]) -> bool {
        let Ok(Some((_, SubjectAltName(own)))) = self.certificate.tbs_certificate().get_extension() else {
            return names.is_empty();
        };
        names.iter().all(|name| name.to_general_name().is_ok_and(|wanted| own.contains(&wanted)))
    }
}

/// A self-signed authority.
pub struct Authority(Identity);

impl Authority {
    /// Makes a new key, and signs it with itself.
    ///
    /// # Errors
    /// [`CertificateError::Build`] for a name that is not 1 to 64 letters, digits, spaces and `-_.`, or times
    /// before 1970 or after 9999; [`CertificateError::Random`].
    pub fn generate(common_name: &str, validity: Validity) -> Result<Self, CertificateError> {
        let key = SigningKey::try_generate()?;
        let profile = RootProfile { subject: name(common_name)? };
        let certificate = sign(profile, validity, public_key(&key)?, &key)?;
        Ok(Self(Identity { certificate, key }))
    }

    /// Takes over what was kept of an authority, if it is one: self-signed, with its own key.
    pub fn from_identity(identity: Identity) -> Option<Self> {
        let authority = Self(identity);
        (authority.0.is_consistent() && authority.has_issued(&authority.0)).then_some(authority)
    }

    /// Its own certificate and key.
    pub fn identity(&self) -> &Identity {
        &self.0
    }

    /// Issues a certificate for a new key. Without `names` it has no subject alternative name at all.
    ///
    /// # Errors
    /// As [`Authority::generate`]; also for a URI or DNS name that is not ASCII.
    pub fn issue(
        &self,
        purpose: Purpose,
        common_name: &str,
        names: &[AlternativeName],
        validity: Validity,
    ) -> Result<Identity, CertificateError> {
        let key = SigningKey::try_generate()?;
        let profile = LeafProfile {
            issuer: self.0.certificate.tbs_certificate().subject().clone(),
            subject: name(common_name)?,
            usage: match purpose {
                Purpose::Server => ID_KP_SERVER_AUTH,
                Purpose::Client => ID_KP_CLIENT_AUTH,
            },
            names: names.iter().map(AlternativeName::to_general_name).collect::<Result<_, _>>()?,
        };
        let certificate = sign(profile, validity, public_key(&key)?, &self.0.key)?;
        Ok(Identity { certificate, key })
    }

    /// Whether a certificate bears this authority's signature.
    pub fn has_issued(&self, identity: &Identity) -> bool {
        let Ok(signed) = identity.certificate.tbs_certificate().to_der() else { return false };
        DerSignature::from_bytes(identity.certificate.signature().raw_bytes())
            .is_ok_and(|signature| VerifyingKey::from(&self.0.key).verify(&signed, &signature).is_ok())
    }
}

fn sign<P: BuilderProfile>(
    profile: P,
    validity: Validity,
    public_key: SubjectPublicKeyInfoOwned,
    signer: &SigningKey,
) -> Result<Certificate, CertificateError> {
    let validity = x509_cert::time::Validity::new(
        Time::try_from(validity.not_before)?,
        Time::try_from(validity.not_after)?,
    );
    let builder = CertificateBuilder::new(profile, serial_number()?, validity, public_key)?;
    Ok(builder.build::<_, DerSignature>(signer)?)
}

/// 126 random bits, positive and of 16 bytes always (RFC 5280 section 4.1.2.2).
fn serial_number() -> Result<SerialNumber, CertificateError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x3f) | 0x40;
    Ok(SerialNumber::new(&bytes)?)
}

fn public_key(key: &SigningKey) -> Result<SubjectPublicKeyInfoOwned, CertificateError> {
    SubjectPublicKeyInfoOwned::from_key(key.verifying_key())
        .map_err(|e| CertificateError::Build(builder::Error::PublicKey(e)))
}

/// A subject of a common name alone. What RFC 4514 would read as syntax is refused.
fn name(common_name: &str) -> Result<Name, CertificateError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " -_.".contains(c);
    if !(1..=64).contains(&common_name.len()) || !common_name.chars().all(is_plain) {
        return Err(der::Error::from(der::ErrorKind::Failed).into());
    }
    Ok(format!("CN={common_name}").parse()?)
}

/// What every authority's own certificate says (RFC 5280 sections 4.2.1.2, 4.2.1.3 and 4.2.1.9).
struct RootProfile {
    subject: Name,
}

impl BuilderProfile for RootProfile {
    fn get_issuer(&self, subject: &Name) -> Name {
        subject.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        subject_key: SubjectPublicKeyInfoRef<'_>,
        _issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = tbs.subject();
        // It issues leaves only, no further authorities.
        let constraints = BasicConstraints { ca: true, path_len_constraint: Some(0) };
        Ok(vec![
            constraints.to_extension(subject, &[])?,
            KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign).to_extension(subject, &[])?,
            SubjectKeyIdentifier::try_from(subject_key)?.to_extension(subject, &[])?,
        ])
    }
}

/// What every leaf says.
struct LeafProfile {
    issuer: Name,
    subject: Name,
    usage: ObjectIdentifier,
    names: GeneralNames,
}

impl BuilderProfile for LeafProfile {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        subject_key: SubjectPublicKeyInfoRef<'_>,
        issuer_key: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let subject = tbs.subject();
        let constraints = BasicConstraints { ca: false, path_len_constraint: None };
        let mut extensions = vec![
            constraints.to_extension(subject, &[])?,
            KeyUsage(KeyUsages::DigitalSignature.into()).to_extension(subject, &[])?,
            ExtendedKeyUsage(vec![self.usage]).to_extension(subject, &[])?,
            SubjectKeyIdentifier::try_from(subject_key)?.to_extension(subject, &[])?,
            AuthorityKeyIdentifier::try_from(issuer_key)?.to_extension(subject, &[])?,
        ];
        if !self.names.is_empty() {
            extensions.push(SubjectAltName(self.names.clone()).to_extension(subject, &[])?);
        }
        Ok(extensions)
    }
}
