//! Mutual TLS: the listener's settings, and who a client certificate names.
//!
//! TLS 1.3 only, the hybrid X25519MLKEM768 first, a client certificate always, and no resumption:
//! a resumed session brings back the certificate of the first handshake without looking at it again,
//! so it would outlive an expiry, a revocation or a change of `client_ca`.

mod hsm_key;
mod identity;

use std::cmp::Reverse;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::Server;
use crate::domain::certificate::{Trust, key_of};
use crate::domain::signer::PublicKey;
use crate::files::Files;
use crate::hsm::Hsm;
use hsm_key::{Certificates, HsmKey};

pub use identity::{Client, Clients};

/// Why the listener's TLS cannot be set up, in one line that says what to mend.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A configured file is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file as configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refuses the settings themselves: no file mends that.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// A certificate whose key is in the HSM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HsmCertificate {
    /// The file as configured.
    pub path: PathBuf,
    /// The key that it is about.
    pub key: PublicKey,
}

/// The listener's settings, and how long what they rest on lasts.
pub struct Listener {
    /// The settings.
    pub config: Arc<ServerConfig>,
    /// Whom they let in: also asked of connections that are open.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// The server's certificates whose keys are in the HSM; empty: its key is in a file.
    pub in_hsm: Vec<HsmCertificate>,
    /// When the first certificate of the server's chains expires, seconds since 1970; `None`: one is not readable.
    pub certificate_ends_unix_s: Option<u64>,
    /// The same of the client authorities.
    pub client_ca_ends_unix_s: Option<u64>,
    /// When the first of the revocation lists is out of date; `None`: there is none.
    pub client_crls_end_unix_s: Option<u64>,
}

/// Reads certificate, key and client authorities, and makes the listener's settings from them. Without a key file `hsm` signs.
///
/// A reload calls this again and swaps the whole value; connections that are open keep theirs.
///
/// # Errors
/// [`TlsError::File`] if a file cannot be read, holds no certificate or key, or if the key is not the certificate's. Whether
/// the HSM has the key is not asked here: it may come later.
pub fn listener(server: &Server, files: &Files, hsm: &Hsm) -> Result<Listener, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client_ca = certificates(&server.client_ca, files)?;
    let client_ca_ends_unix_s = first_end(&client_ca);
    let authorities = authorities(&server.client_ca, client_ca)?;
    let RevocationLists { newest_first, first_end_unix_s: client_crls_end_unix_s } =
        revocation_lists(&server.client_crls, files)?;
    // Where there is any list, every authority of a chain needs one, and one that is out of date says nothing any more.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone())
        .with_crls(newest_first)
        .enforce_revocation_expiration()
        .build()
        .map_err(|e| file_error(&server.client_ca, e.to_string()))?;
    let chains = server.certificates.iter().map(|path| Ok((path, certificates(path, files)?)));
    let chains = chains.collect::<Result<Vec<_>, TlsError>>()?;
    let ends = chains.iter().map(|(_, chain)| first_end(chain)).collect::<Option<Vec<u64>>>();
    let certificate_ends_unix_s = ends.and_then(|ends| ends.into_iter().min());
    let settings = ServerConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.clone());
    let (mut config, in_hsm) = match &server.key {
        Some(key) => {
            let private = private_key(key, files)?;
            // The configuration has one.
            let (certificate, chain) = chains.into_iter().next().unwrap_or((key, Vec::new()));
            let config = settings.with_single_cert(chain, private);
            (config.map_err(|e| pair_error(certificate, key, &e))?, Vec::new())
        }
        None => {
            let certified = chains.into_iter().map(|(path, chain)| certified(path, chain, hsm));
            let (certificates, in_hsm) =
                certified.collect::<Result<Vec<_>, _>>()?.into_iter().unzip::<_, _, Vec<_>, _>();
            (settings.with_cert_resolver(Arc::new(Certificates::new(certificates, hsm))), in_hsm)
        }
    };
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Early data can be replayed by whoever recorded it (RFC 8446 section 8).
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    Ok(Listener {
        config,
        verifier,
        in_hsm,
        certificate_ends_unix_s,
        client_ca_ends_unix_s,
        client_crls_end_unix_s,
    })
}

/// A chain whose key is in the HSM.
fn certified(
    path: &Path,
    chain: Vec<CertificateDer<'static>>,
    hsm: &Hsm,
) -> Result<(HsmKey, HsmCertificate), TlsError> {
    let key = key_in(path, &chain)?;
    let certified = HsmKey::new(chain, key.clone(), hsm)
        .map_err(|e| file_error(path, format!("no usable certificate: {e}")))?;
    Ok((certified, HsmCertificate { path: path.to_owned(), key }))
}

/// The key that a chain's first certificate is about, of a kind that the HSM has for it.
fn key_in(path: &Path, chain: &[CertificateDer<'_>]) -> Result<PublicKey, TlsError> {
    let own = chain.first().map(|own| key_of(own));
    match own {
        Some(Ok(key @ PublicKey::P256(_))) => Ok(key),
        _ => Err(file_error(
            path,
            "no usable certificate: without server.key its key is in the HSM, and on P-256; have one issued for what \
             `hsm-authd keys csr` asks"
                .into(),
        )),
    }
}

/// The server's certificates whose keys are in the HSM, read from the disk; none if its key is in a file. Each, or
/// [`TlsError::File`] where it cannot be read, or its key is none that the HSM could have.
pub fn hsm_certificates(server: &Server) -> impl Iterator<Item = Result<HsmCertificate, TlsError>> {
    server.certificates.iter().filter(|_| server.key.is_none()).map(|path| {
        let key = key_in(path, &certificates(path, &Files::Disk)?)?;
        Ok(HsmCertificate { path: path.clone(), key })
    })
}

/// The DNS names and addresses in the first of the server's certificates, whatever its key is.
///
/// # Errors
/// [`TlsError::File`]: it cannot be read, or has a name of another kind.
pub fn server_names(server: &Server) -> Result<Vec<String>, TlsError> {
    let Some(path) = server.certificates.iter().next() else { return Ok(Vec::new()) };
    let unreadable = || file_error(path, "no usable certificate".into());
    let chain = certificates(path, &Files::Disk)?;
    let own = chain.first().and_then(|own| Certificate::from_der(own).ok()).ok_or_else(unreadable)?;
    let names = own.tbs_certificate().get_extension::<SubjectAltName>().map_err(|_| unreadable())?;
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Ok(name.to_string()),
        GeneralName::IpAddress(address) => {
            let four = <[u8; 4]>::try_from(address.as_bytes()).map(IpAddr::from);
            let sixteen = || <[u8; 16]>::try_from(address.as_bytes()).map(IpAddr::from);
            let address = four.or_else(|_| sixteen()).map_err(|_| unreadable())?;
            Ok(address.to_string())
        }
        _ => Err(file_error(path, "it has a name that is neither a DNS name nor an address".into())),
    };
    names.iter().flat_map(|(_, SubjectAltName(names))| names).map(name).collect()
}

struct RevocationLists {
    /// Of several of one issuer the first is asked.
    newest_first: Vec<CertificateRevocationListDer<'static>>,
    first_end_unix_s: Option<u64>,
}

fn revocation_lists(paths: &[PathBuf], files: &Files) -> Result<RevocationLists, TlsError> {
    let mut lists = Vec::new();
    for path in paths {
        let pem = files.read(path).map_err(|e| file_error(path, pem_reason(pem::Error::Io(e), "CRL")))?;
        // Such as are held against devices' certificates, and refused in the same words.
        Trust::none().with_crls(&pem).map_err(|e| file_error(path, e.to_string()))?;
        for der in CertificateRevocationListDer::pem_slice_iter(&pem) {
            let der = der.map_err(|e| file_error(path, pem_reason(e, "CRL")))?;
            let list: CertificateList =
                CertificateList::from_der(&der).map_err(|_| file_error(path, "not a CRL".into()))?;
            lists.push((list.tbs_cert_list, der));
        }
    }
    lists.sort_by_key(|(list, _)| Reverse(list.this_update.to_unix_duration()));
    let (mut issuers, mut first_end_unix_s) = (Vec::new(), None::<u64>);
    for (list, _) in &lists {
        // One that a newer one of its issuer has replaced may end when it likes.
        if issuers.contains(&&list.issuer) {
            continue;
        }
        issuers.push(&list.issuer);
        if let Some(end) = list.next_update.map(|end| end.to_unix_duration().as_secs()) {
            first_end_unix_s = Some(first_end_unix_s.map_or(end, |first| first.min(end)));
        }
    }
    let newest_first = lists.into_iter().map(|(_, der)| der).collect();
    Ok(RevocationLists { newest_first, first_end_unix_s })
}

/// When the first of these certificates expires, seconds since 1970; `None` if one cannot be read.
fn first_end(certificates: &[CertificateDer<'_>]) -> Option<u64> {
    let end = |der: &CertificateDer<'_>| {
        let certificate = Certificate::from_der(der).ok()?;
        Some(certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
    };
    certificates.iter().map(end).collect::<Option<Vec<u64>>>()?.into_iter().min()
}

fn authorities(path: &Path, certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|e| file_error(path, format!("no usable authority: {e}")))?;
    }
    Ok(roots)
}

fn certificates(path: &Path, files: &Files) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = files
        .read(path)
        .map_err(pem::Error::Io)
        .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>())
        .map_err(|e| file_error(path, pem_reason(e, "certificate")))?;
    if certificates.is_empty() {
        return Err(file_error(path, pem_reason(pem::Error::NoItemsFound, "certificate")));
    }
    Ok(certificates)
}

fn private_key(path: &Path, files: &Files) -> Result<PrivateKeyDer<'static>, TlsError> {
    files
        .read(path)
        .map_err(pem::Error::Io)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|e| file_error(path, pem_reason(e, "unencrypted private key")))
}

/// What an operator does whose certificate is not of a key in the HSM.
pub fn no_such_key(certificate: &Path) -> String {
    format!(
        "{}: its key is in no token: have a certificate issued for what `hsm-authd keys csr` asks, or name the file of its \
         key in server.key",
        certificate.display()
    )
}

/// Says what is wrong with a PEM file without quoting it: it may hold a key.
fn pem_reason(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(e) if e.kind() == std::io::ErrorKind::NotFound => "no such file".into(),
        pem::Error::Io(e) => e.to_string(),
        pem::Error::NoItemsFound => format!("no {wanted} (PEM) in it"),
        _ => "not well-formed PEM".into(),
    }
}

/// Which of the two files is to blame when certificate and key were refused together.
fn pair_error(certificate: &Path, key: &Path, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            file_error(key, format!("this key is not that of the certificate in {}", certificate.display()))
        }
        rustls::Error::InvalidCertificate(e) => {
            file_error(certificate, format!("no usable certificate: {e}"))
        }
        e => file_error(key, format!("no usable key: {e}")),
    }
}

fn file_error(path: &Path, reason: String) -> TlsError {
    TlsError::File { path: path.to_owned(), reason }
}
