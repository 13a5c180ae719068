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

impl Client {
    /// Whose data it sees, as configured, for the log.
    pub fn tenant_name(&self) -> &str {
        match &self.scope {
            TenantScope::One(tenant) => tenant.as_str(),
            TenantScope::All => "*",
        }
    }
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::dev::pki::AlternativeName::{Dns, Ip, Uri};
    use crate::dev::pki::{AlternativeName, Authority, Purpose, Validity};

    const A: &str = "urn:hsm-authd:client:bank-a";
    const B: &str = "urn:hsm-authd:client:bank-b";

    fn clients() -> Clients {
        let entry = |(name, san): (&str, &str)| ClientConfig {
            name: name.to_owned().try_into().unwrap(),
            san: san.to_owned(),
            tenant: TenantScope::All,
            permissions: vec![Permission::Audit],
        };
        let configured = [("bank-a", A), ("bank-b", B), ("dns", "client.bank.example"), ("ip", "192.0.2.1")];
        Clients::new(&configured.map(entry))
    }

    fn certificate(names: &[AlternativeName]) -> Vec<u8> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let validity = Validity { not_before: now, not_after: now + Duration::from_secs(60) };
        let authority = Authority::generate("test CA", validity).unwrap();
        authority.issue(Purpose::Client, "bank-a", names, validity).unwrap().certificate_der().unwrap()
    }

    fn named(names: &[AlternativeName]) -> Option<String> {
        clients().identify(&certificate(names)).map(|client| client.name.to_string())
    }

    fn uri(text: &str) -> AlternativeName {
        Uri(text.to_owned())
    }

    fn dns(text: &str) -> AlternativeName {
        Dns(text.to_owned())
    }

    #[test]
    fn one_configured_name_names_its_client() {
        for (names, expected) in [
            (&[uri(A)][..], "bank-a"),
            (&[uri(B)], "bank-b"),
            (&[dns("client.bank.example")], "dns"),
            (&[dns("Client.Bank.EXAMPLE")], "dns"),
            // The same one twice, and one that is nobody's.
            (&[uri(A), uri(A)], "bank-a"),
            (&[uri("urn:other"), uri(A)], "bank-a"),
            (&[dns("other.example"), dns("client.bank.example")], "dns"),
            // With a URI there, DNS names do not count.
            (&[dns("client.bank.example"), uri(A)], "bank-a"),
        ] {
            assert_eq!(named(names).as_deref(), Some(expected), "{names:?}");
        }
        let client = clients().identify(&certificate(&[uri(A)])).unwrap();
        assert_eq!((&client.scope, &*client.permissions), (&TenantScope::All, &[Permission::Audit][..]));
    }

    #[test]
    fn none_or_several_are_nobody() {
        for names in [
            // The subject is bank-a's, and does not count.
            &[][..],
            &[uri(A), uri(B)],
            &[uri("urn:other")],
            &[uri("urn:other"), dns("client.bank.example")],
            &[Ip("192.0.2.1".parse().unwrap())],
            &[uri("URN:hsm-authd:client:bank-a")],
            &[uri("urn:hsm-authd:client:bank-a ")],
            &[uri("urn:hsm-authd:client:bank")],
            &[uri("urn:hsm-authd:client:bank-a\0")],
            &[dns("client.bank.example.")],
            &[dns("*.bank.example")],
            &[dns("a.client.bank.example")],
        ] {
            assert_eq!(named(names), None, "{names:?}");
        }
    }

    #[test]
    fn two_names_that_differ_in_case_are_nobodys_by_dns() {
        let entry = |name: &str, san: &str| ClientConfig {
            name: name.to_owned().try_into().unwrap(),
            san: san.to_owned(),
            tenant: TenantScope::All,
            permissions: vec![],
        };
        let clients = Clients::new(&[entry("one", "bank.example"), entry("two", "Bank.example")]);
        assert_eq!(clients.identify(&certificate(&[dns("bank.example")])), None);
    }

    #[test]
    fn a_certificate_cut_short_or_with_more_behind_it_is_nobodys() {
        let clients = clients();
        let whole = certificate(&[uri(A)]);
        assert!(clients.identify(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(clients.identify(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(clients.identify(&[&*whole, &[0]].concat()), None);
    }

    proptest! {
        #[test]
        fn random_bytes_are_nobodys(bytes in proptest::collection::vec(any::<u8>(), 0..2_048)) {
            prop_assert_eq!(clients().identify(&bytes), None);
        }
    }

    proptest! {
        // Deeper into the parser than random bytes get. The certificate, made once, is nobody's, and too few
        // bytes change to make it anyone's.
        #[test]
        fn an_altered_certificate_is_nobodys(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        ) {
            static WHOLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let names = [uri("spiffe://elsewhere.example/somebody"), dns("somebody.example")];
            let mut bytes = WHOLE.get_or_init(|| certificate(&names)).clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            prop_assert_eq!(clients().identify(&bytes), None);
        }
    }
}
