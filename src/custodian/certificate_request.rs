//! A request for a certificate of the newest `tls` key (PKCS#10, RFC 2986): `hsm-authd keys csr`.
//!
//! It is made and signed in the process of the key task. No message of a front asks for one: an attacker in the front's place
//! has no certificate issued.

use std::net::IpAddr;

use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::Keypair;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_cert::builder::{Builder, RequestBuilder};
use x509_cert::der::asn1::{BitString, Ia5String};
use x509_cert::der::oid::db::rfc5280::ID_KP_SERVER_AUTH;
use x509_cert::der::oid::db::rfc5912::ECDSA_WITH_SHA_256;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{self, EncodePem};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName};
use x509_cert::name::Name;
use x509_cert::spki::{self, AlgorithmIdentifierOwned, DynSignatureAlgorithmIdentifier};

use super::StartFailure;
use super::keys::{Found, KeyName, Kind, SigningKey, survey};
use super::pkcs11::Session;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateWish {
    /// The common name of its subject; `None`: the subject is empty, and the names say whose it is.
    pub common_name: Option<CommonName>,
    /// Its subject alternative names.
    pub names: Vec<ServerName>,
}

/// 1 to 64 letters, digits, spaces and `-_.:*`: what RFC 4514 reads as itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommonName(String);

impl TryFrom<String> for CommonName {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || " -_.:*".contains(c);
        let is_framed = text.starts_with(' ') || text.ends_with(' ');
        match (1..=64).contains(&text.len()) && text.chars().all(is_plain) && !is_framed {
            true => Ok(Self(text)),
            false => Err("must be 1 to 64 letters, digits, inner spaces and -_.:*"),
        }
    }
}

impl From<CommonName> for String {
    fn from(name: CommonName) -> Self {
        name.0
    }
}

/// A name of a server (RFC 5280, section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerName {
    /// A DNS name, in ASCII.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl ServerName {
    /// An address, or else a DNS name; `None`: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Ip(address));
        }
        // RFC 1123, section 2.1; a wildcard in the place of the first label, RFC 6125.
        let is_label = |label: &str| {
            let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
            (1..=63).contains(&label.len())
                && label.chars().all(is_inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let mut labels = text.strip_prefix("*.").unwrap_or(text).split('.');
        // No name ends in digits alone: that is an address with a fault in it (RFC 1123, section 2.1).
        let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let is_name =
            text.len() <= 253 && labels.all(is_label) && !text.rsplit('.').next().is_some_and(is_number);
        is_name.then(|| Self::Dns(text.to_owned()))
    }

    fn to_general_name(&self) -> Result<GeneralName, der::Error> {
        Ok(match self {
            Self::Dns(name) => GeneralName::DnsName(Ia5String::new(name)?),
            Self::Ip(address) => (*address).into(),
        })
    }
}

/// The key that a request is about, as its builder asks for it.
struct Requester(VerifyingKey);

impl Keypair for Requester {
    type VerifyingKey = VerifyingKey;
    fn verifying_key(&self) -> VerifyingKey {
        self.0
    }
}

impl DynSignatureAlgorithmIdentifier for Requester {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        // RFC 5758, section 3.2: without parameters.
        Ok(AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None })
    }
}

/// Makes and signs it, in PEM.
///
/// # Errors
/// There is no `tls` key, the wish cannot be written, or the HSM failed.
pub(super) fn request_certificate(
    session: &Session,
    label: &str,
    wish: &CertificateWish,
) -> Result<String, StartFailure> {
    let failed = |reason: &dyn std::fmt::Display| {
        StartFailure::new(format!("token {label}: no request for a certificate can be made ({reason})"))
    };
    let there = survey(session).map_err(|e| failed(&e))?;
    let newest = there.newest(Kind::Tls).map(|version| KeyName { kind: Kind::Tls, version });
    let Some((name, Found::Pair { private, public })) =
        newest.and_then(|name| Some((name, *there.keys.get(&name)?)))
    else {
        return Err(StartFailure::new(format!(
            "token {label} has no tls key: run `hsm-authd keys rotate tls`, which makes the first one"
        )));
    };
    let key = SigningKey::open(session, name, private, public).map_err(|e| failed(&e))?;
    let PublicKey::P256(point) = key.public() else { return Err(failed(&"it is not on P-256")) };
    let requester = VerifyingKey::from_sec1_bytes(&point.point()).map(Requester).map_err(|e| failed(&e))?;
    let mut builder = builder(wish).map_err(|e| failed(&e))?;
    let signed = builder.finalize(&requester).map_err(|e| failed(&e))?;
    let signature = key.sign(session, &Sha256::digest(&signed).into()).map_err(|e| failed(&e))?;
    let signature = Signature::es256(&signature).and_then(|signature| signature.to_der());
    let signature = signature.ok_or_else(|| failed(&"its signature is none"))?;
    let request = BitString::from_bytes(&signature)
        .map_err(Into::into)
        .and_then(|signature| builder.assemble(signature, &requester))
        .map_err(|e| failed(&e))?;
    request.to_pem(LineEnding::LF).map_err(|e| failed(&e))
}

fn builder(wish: &CertificateWish) -> Result<RequestBuilder, x509_cert::builder::Error> {
    let subject = match &wish.common_name {
        Some(CommonName(name)) => format!("CN={name}").parse::<Name>()?,
        None => Name::default(),
    };
    let mut builder = RequestBuilder::new(subject)?;
    builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into()))?;
    builder.add_extension(&ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]))?;
    if !wish.names.is_empty() {
        let names = wish.names.iter().map(ServerName::to_general_name);
        builder.add_extension(&SubjectAltName(names.collect::<Result<_, _>>()?))?;
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_address_or_a_dns_name() {
        for name in ["192.0.2.7", "::1", "2001:db8::7"] {
            assert_eq!(ServerName::parse(name), Some(ServerName::Ip(name.parse().unwrap())), "{name}");
        }
        for name in ["authd.bank.example", "localhost", "a-b.example", "*.bank.example"] {
            assert_eq!(ServerName::parse(name), Some(ServerName::Dns(name.to_owned())), "{name}");
        }
        let long = [&"a".repeat(64), ".example"].concat();
        let odd =
            ["", ".", "a..b", "-a", "a-", "bänk.example", "a b", "a,b", "*.", "a.*", "https://a", &long];
        let nearly = ["192.0.2.300", "192.0.2", "7", "a.7"];
        for name in odd.into_iter().chain(nearly) {
            assert_eq!(ServerName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_common_name_is_no_syntax() {
        for name in ["authd.bank.example", "hsm authd 1", "2001:db8::7", "*.bank.example"] {
            assert!(CommonName::try_from(name.to_owned()).is_ok(), "{name}");
        }
        for name in ["", " a", "a ", "a,O=b", "a+b", "a=b", "a\\b", "a\"", "ä", &"a".repeat(65)] {
            assert!(CommonName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
