//! Whether a chain is to be trusted: a path to an anchor, validity, key usage, revocation.

use core::cmp::Reverse;
use core::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::aws_lc_rs as algorithm;
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeId,
    KeyPurposeIdIter, OwnedCertRevocationList, RequiredEkuNotFoundContext, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_CLIENT_AUTH, ID_KP_EMAIL_PROTECTION};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;

use super::CertificateChain;

/// What certificates and revocation lists may be signed with. RSA keys have 2048 bits or more.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 10] = [
    algorithm::ECDSA_P256_SHA256,
    algorithm::ECDSA_P256_SHA384,
    algorithm::ECDSA_P384_SHA256,
    algorithm::ECDSA_P384_SHA384,
    algorithm::RSA_PKCS1_2048_8192_SHA256,
    algorithm::RSA_PKCS1_2048_8192_SHA384,
    algorithm::RSA_PKCS1_2048_8192_SHA512,
    algorithm::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithm::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithm::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// RFC 9336, section 3.1.
const ID_KP_DOCUMENT_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.36");

/// Trust anchors and revocation lists, as configured. Without an anchor every chain is refused.
pub struct Trust {
    anchors: Vec<Anchor>,
    /// The newest first: of several that speak for an issuer, the first is asked.
    lists: Vec<RevocationList>,
}

struct Anchor {
    anchor: TrustAnchor<'static>,
    subject: Name,
    not_before_s: u64,
    not_after_s: u64,
    /// How many authorities may stand between it and a device; `None`: any number.
    below_max: Option<u8>,
}

struct RevocationList {
    list: CertRevocationList<'static>,
    issuer: Name,
    this_update_s: u64,
    next_update_s: u64,
}

/// What is wrong with a file of anchors or revocation lists, in one line that says what to mend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

/// Why a chain is not taken. The words are for the operator's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// The chain is not to be trusted.
    #[error("the certificate chain is refused: {0}")]
    Refused(&'static str),
    /// Nobody can tell, since the revocation list of an issuer is missing, out of date or not the issuer's.
    /// Unknown is never yes; the configuration is to be mended, not the chain.
    #[error("whether the certificate chain is revoked is not known: {0}")]
    Unknown(&'static str),
}

impl Trust {
    /// No anchor: nobody is trusted.
    pub fn none() -> Self {
        Self { anchors: Vec::new(), lists: Vec::new() }
    }

    /// From PEM texts: any number of `CERTIFICATE` blocks, and of `X509 CRL` blocks.
    ///
    /// # Errors
    /// As [`Trust::with_anchors`] and [`Trust::with_crls`]; an empty text is none.
    pub fn from_pem(anchors: &[u8], crls: &[u8]) -> Result<Self, TrustError> {
        let mut trust = Self::none();
        if !anchors.trim_ascii().is_empty() {
            trust = trust.with_anchors(anchors)?;
        }
        if !crls.trim_ascii().is_empty() {
            trust = trust.with_crls(crls)?;
        }
        Ok(trust)
    }

    /// The same with these anchors as well: one `CERTIFICATE` block or more, in PEM.
    ///
    /// # Errors
    /// The text is not such PEM, has no certificate, or one that is no authority's.
    pub fn with_anchors(mut self, pem: &[u8]) -> Result<Self, TrustError> {
        let before = self.anchors.len();
        for (index, der) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let der = der.map_err(|_| TrustError("not well-formed PEM".to_owned()))?;
            let anchor = Anchor::from_der(&der)
                .map_err(|reason| TrustError(format!("certificate {}: {reason}", index.saturating_add(1))))?;
            self.anchors.push(anchor);
        }
        if self.anchors.len() == before {
            return Err(TrustError("no certificate (PEM) in it".to_owned()));
        }
        Ok(self)
    }

    /// The same with these revocation lists as well: one `X509 CRL` block or more, in PEM.
    ///
    /// # Errors
    /// The text is not such PEM, has no list, or one that is not complete (RFC 5280, section 5): a delta, an
    /// indirect one, one of some reasons only, or one without a next update.
    pub fn with_crls(mut self, pem: &[u8]) -> Result<Self, TrustError> {
        let before = self.lists.len();
        for (index, der) in CertificateRevocationListDer::pem_slice_iter(pem).enumerate() {
            let der = der.map_err(|_| TrustError("not well-formed PEM".to_owned()))?;
            let list = RevocationList::from_der(&der)
                .map_err(|reason| TrustError(format!("CRL {}: {reason}", index.saturating_add(1))))?;
            self.lists.push(list);
        }
        if self.lists.len() == before {
            let is_der = pem.first() == Some(&0x30);
            let hint = if is_der { ": it is DER, try openssl crl -inform der" } else { "" };
            return Err(TrustError(format!("no CRL (PEM) in it{hint}")));
        }
        self.lists.sort_by_key(|list| Reverse(list.this_update_s));
        Ok(self)
    }

    /// Whether there is a path from the device's certificate to an anchor, in which at that moment every
    /// certificate is valid, none is revoked, and each may be used for what it is used for:
    ///
    /// * The device's has no CA flag. Its keyUsage, if it has one, says digitalSignature or
    ///   nonRepudiation (contentCommitment).
    /// * An extended key usage, of the device or of an authority below the anchor, says clientAuth,
    ///   emailProtection, document signing or any; absent is fine. One for serverAuth, codeSigning or
    ///   OCSPSigning alone is refused.
    /// * Authorities have the CA flag and, if they have a keyUsage, keyCertSign; there are no more of them than the path
    ///   lengths of authorities and anchor allow; name constraints are kept.
    /// * If any revocation list is configured, every issuer of the path needs a current one; without any,
    ///   revocation is not asked about. An anchor is never revoked, but has to be valid.
    ///
    /// Certificates that the path does not need are ignored. Times of certificates are whole seconds: the last one is
    /// valid to its end, a list to the begin of its next update.
    ///
    /// # Errors
    /// See [`ChainFault`].
    pub fn check(&self, chain: &CertificateChain, unix_ms: u64) -> Result<(), ChainFault> {
        let now_s = unix_ms / 1_000;
        let Some((device, others)) = chain.ders().split_first() else {
            return Err(ChainFault::Refused("there is no certificate"));
        };
        if !may_sign(device) {
            return Err(ChainFault::Refused("the device's key usage is not for signatures"));
        }
        let device = CertificateDer::from(device.as_slice());
        let others: Vec<_> = others.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let anchors: Vec<_> =
            self.anchors.iter().filter(|a| a.is_valid(now_s)).map(|a| a.anchor.clone()).collect();
        let device = EndEntityCert::try_from(&device).map_err(refused)?;

        // Two passes. Over several paths webpki reports the error that it holds for the most telling one, so a
        // chain that is no good might be called unknown, or the other way round. After the first pass all that can
        // be wrong is revocation, and there is one path.
        let path = self.path(&device, &anchors, &others, now_s, None).map_err(refused)?;
        if self.lists.is_empty() {
            return Ok(());
        }
        let anchors = [path.anchor().clone()];
        let others: Vec<_> = path.intermediate_certificates().map(|certificate| certificate.der()).collect();
        let lists: Vec<_> =
            self.lists.iter().filter(|list| list.this_update_s <= now_s).map(|list| &list.list).collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .map_err(|_| ChainFault::Unknown("no CRL is valid yet"))?
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        self.path(&device, &anchors, &others, now_s, Some(revocation)).map(drop).map_err(not_current)
    }

    fn path<'p>(
        &self,
        device: &'p EndEntityCert<'p>,
        anchors: &'p [TrustAnchor<'p>],
        others: &'p [CertificateDer<'p>],
        now_s: u64,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<VerifiedPath<'p>, Error> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        let constraints = |path: &VerifiedPath<'_>| self.constraints(path, now_s);
        device.verify_for_usage(&ALGORITHMS, anchors, others, now, Signing, revocation, Some(&constraints))
    }

    /// What webpki leaves out: the anchor's path length, and the key usage of authorities.
    fn constraints(&self, path: &VerifiedPath<'_>, now_s: u64) -> Result<(), Error> {
        let below = path.intermediate_certificates().count();
        let allowed = |anchor: &Anchor| {
            anchor.anchor == *path.anchor()
                && anchor.is_valid(now_s)
                && anchor.below_max.is_none_or(|max| below <= usize::from(max))
        };
        if !self.anchors.iter().any(allowed) {
            return Err(Error::PathLenConstraintViolated);
        }
        for authority in path.intermediate_certificates() {
            let certificate = Certificate::from_der(&authority.der()).map_err(|_| Error::BadDer)?;
            if !may_certify(&certificate) {
                return Err(Error::EndEntityUsedAsCa);
            }
        }
        Ok(())
    }

    /// What is not valid at that moment, or will make a check unknown: the first such thing, in one line.
    pub fn out_of_date(&self, unix_ms: u64) -> Option<String> {
        let now_s = unix_ms / 1_000;
        let early = |from_s: u64| format!("is not valid yet, for {}", lapse(from_s.saturating_sub(now_s)));
        for anchor in &self.anchors {
            let ended_s = now_s.saturating_sub(anchor.not_after_s);
            let words = match () {
                () if now_s < anchor.not_before_s => early(anchor.not_before_s),
                () if ended_s > 0 => format!("expired {} ago", lapse(ended_s)),
                () => continue,
            };
            return Some(format!("the anchor {} {words}", shown(&anchor.subject)));
        }
        for list in &self.lists {
            let words = match () {
                () if now_s < list.this_update_s => early(list.this_update_s),
                () if now_s >= list.next_update_s => {
                    format!("is out of date for {}", lapse(now_s.saturating_sub(list.next_update_s)))
                }
                () => continue,
            };
            return Some(format!("the CRL of {} {words}", shown(&list.issuer)));
        }
        let listed = |anchor: &Anchor| self.lists.iter().any(|list| list.issuer == anchor.subject);
        let unlisted = self.anchors.iter().find(|anchor| !self.lists.is_empty() && !listed(anchor))?;
        Some(format!("there are CRLs, but none of the anchor {}", shown(&unlisted.subject)))
    }
}

impl Anchor {
    fn from_der(der: &CertificateDer<'_>) -> Result<Self, &'static str> {
        let certificate = Certificate::from_der(der).map_err(|_| "not an X.509 certificate")?;
        let tbs = certificate.tbs_certificate();
        let constraints = tbs.get_extension::<BasicConstraints>().map_err(|_| "not an X.509 certificate")?;
        let Some((_, BasicConstraints { ca: true, path_len_constraint })) = constraints else {
            return Err("no authority's: it has no CA flag");
        };
        if !may_certify(&certificate) {
            return Err("no authority's: its key usage lacks keyCertSign");
        }
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| "not usable as a trust anchor")?;
        Ok(Self {
            anchor: anchor.to_owned(),
            subject: tbs.subject().clone(),
            not_before_s: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after_s: tbs.validity().not_after.to_unix_duration().as_secs(),
            below_max: path_len_constraint,
        })
    }

    fn is_valid(&self, now_s: u64) -> bool {
        (self.not_before_s..=self.not_after_s).contains(&now_s)
    }
}

impl RevocationList {
    fn from_der(der: &[u8]) -> Result<Self, &'static str> {
        let list = OwnedCertRevocationList::from_der(der).map_err(unusable_list)?;
        let whole: CertificateList = CertificateList::from_der(der).map_err(|_| "not a CRL")?;
        let tbs = whole.tbs_cert_list;
        let next_update = tbs.next_update.ok_or("it has no next update")?;
        Ok(Self {
            list: list.into(),
            issuer: tbs.issuer,
            this_update_s: tbs.this_update.to_unix_duration().as_secs(),
            next_update_s: next_update.to_unix_duration().as_secs(),
        })
    }
}

fn unusable_list(error: Error) -> &'static str {
    match error {
        Error::UnsupportedDeltaCrl => "it is a delta: configure the complete one",
        Error::UnsupportedIndirectCrl => "it is indirect: configure the issuer's own",
        Error::UnsupportedRevocationReasonsPartitioning => {
            "it is of some reasons only: configure the complete one"
        }
        Error::UnsupportedCrlVersion => "it is not of version 2",
        _ => "not a CRL that can be used (RFC 5280, version 2, complete, with a next update)",
    }
}

/// The purposes that a device's certificate may name.
struct Signing;

impl ExtendedKeyUsageValidator for Signing {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let (mut any, mut ours) = (false, false);
        for purpose in purposes {
            let purpose = purpose?;
            any = true;
            ours |=
                [ID_KP_CLIENT_AUTH, ID_KP_EMAIL_PROTECTION, ID_KP_DOCUMENT_SIGNING, ANY_EXTENDED_KEY_USAGE]
                    .iter()
                    .any(|oid| KeyPurposeId::new(oid.as_bytes()) == purpose);
        }
        if ours || !any {
            return Ok(());
        }
        let required = webpki::KeyUsage::client_auth();
        Err(Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() }))
    }
}

/// RFC 5280, section 4.2.1.3; a key usage that is not readable is none.
fn may_sign(der: &[u8]) -> bool {
    let Ok(certificate) = Certificate::from_der(der) else { return false };
    match certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) => usage.digital_signature() || usage.non_repudiation(),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// The same for an authority.
fn may_certify(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) => usage.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Of the first pass: no error is anything but a refusal.
fn refused(error: Error) -> ChainFault {
    ChainFault::Refused(match error {
        Error::UnknownIssuer => "it leads to no trust anchor that is valid now",
        Error::CertExpired { .. } => "a certificate has expired",
        Error::CertNotValidYet { .. } => "a certificate is not valid yet",
        Error::InvalidCertValidity => "a certificate ends before it begins",
        Error::InvalidSignatureForPublicKey => "a signature is not the issuer's",
        Error::SignatureAlgorithmMismatch => "a certificate names two signature algorithms",
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate is signed with an algorithm or key that is not taken"
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            "an extended key usage is not for signing devices"
        }
        Error::CaUsedAsEndEntity => "the first certificate is an authority's, not a device's",
        Error::EndEntityUsedAsCa => "an issuer is no authority, or may not sign certificates",
        Error::PathLenConstraintViolated => "there are more authorities in it than one of them allows",
        Error::NameConstraintViolation => "a name is outside of an authority's name constraints",
        Error::UnsupportedCriticalExtension => "a critical extension is not known",
        Error::UnsupportedCertVersion => "a certificate is not of version 3",
        Error::CertRevoked => "a certificate is revoked",
        _ => "a certificate is malformed or not supported",
    })
}

/// Of the second pass, over a path that is good but for revocation.
fn not_current(error: Error) -> ChainFault {
    ChainFault::Unknown(match error {
        Error::UnknownRevocationStatus => "the CRL of an issuer is missing, or not valid yet",
        Error::CrlExpired { .. } => "the CRL of an issuer is out of date",
        Error::InvalidCrlSignatureForPublicKey => "the CRL of an issuer is not signed with the issuer's key",
        Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => {
            "the CRL of an issuer is signed with an algorithm or key that is not taken"
        }
        Error::IssuerNotCrlSigner => "the key usage of an issuer lacks cRLSign",
        error => return refused(error),
    })
}

/// A name in one line (RFC 4514).
fn shown(name: &Name) -> String {
    name.to_string().chars().filter(|c| !c.is_control()).collect()
}

/// In the largest unit of which there are two.
fn lapse(seconds: u64) -> String {
    match seconds {
        172_800.. => format!("{} days", seconds / 86_400),
        7_200.. => format!("{} hours", seconds / 3_600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} s"),
    }
}
