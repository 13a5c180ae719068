//! From a client certificate to the one configured client that it names.

use std::sync::Arc;

use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::{ClientConfig, TenantScope};
use crate::domain::caller::{ClientName, Permission};

/// A configured client, as its connections see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its name in logs and idempotency records.
    pub name: ClientName,
    /// Whose data it sees.
    pub scope: TenantScope,
    /// What it may do.
    pub permissions: Vec<Permission>,
}

/// All configured clients, to be found by certificate.
#[derive(Debug, Default)]
pub struct Clients {
    /// With the name that its certificate must have. Looked through once a connection; there are few.
    by_san: Vec<(String, Arc<Client>)>,
}

impl Clients {
    /// Takes over a configuration that was checked: names and SANs are unique in it.
    pub fn new(configured: &[ClientConfig]) -> Self {
        let entry = |client: &ClientConfig| {
            let known = Client {
                name: client.name.clone(),
                scope: client.tenant.clone(),
                permissions: client.permissions.clone(),
            };
            (client.san.clone(), Arc::new(known))
        };
        Self { by_san: configured.iter().map(entry).collect() }
    }

    /// The one client that a certificate (DER) names, if there is exactly one.
    ///
    /// Looks at the subject alternative name only (RFC 5280 section 4.2.1.6), never at the subject: at its
    /// URIs, or, where it has none, at its DNS names. A URI must be equal byte for byte, a DNS name but for
    /// the case of its letters. Names that are nobody's do not matter; names of two clients make it
    /// nobody's, as does anything that cannot be read.
    ///
    /// This says whom the certificate names, not whether to believe it: the handshake has verified it.
    pub fn identify(&self, certificate_der: &[u8]) -> Option<Arc<Client>> {
        let certificate = Certificate::from_der(certificate_der).ok()?;
        let (_critical, SubjectAltName(names)) =
            certificate.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
        let has_uri = names.iter().any(|name| matches!(name, GeneralName::UniformResourceIdentifier(_)));
        let is_named = |san: &str| {
            names.iter().any(|name| match name {
                GeneralName::UniformResourceIdentifier(uri) => uri.as_str() == san,
                GeneralName::DnsName(dns) => !has_uri && dns.as_str().eq_ignore_ascii_case(san),
                _ => false,
            })
        };
        let mut named = self.by_san.iter().filter(|(san, _)| is_named(san));
        match (named.next(), named.next()) {
            (Some((_, client)), None) => Some(Arc::clone(client)),
            _ => None,
        }
    }
}
