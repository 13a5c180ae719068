//! Mutual TLS: the listener's settings, and who a client certificate names.
//!
//! TLS 1.3 only, the hybrid X25519MLKEM768 first, a client certificate always, and no resumption:
//! a resumed session brings back the certificate of the first handshake without looking at it again,
//! so it would outlive an expiry, a revocation or a change of `client_ca`.

mod identity;

use std::cmp::Reverse;
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

use crate::config::Server;
use crate::domain::certificate::Trust;
use crate::files::Files;

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

/// Reads certificate, key and client authorities, and makes the listener's settings from them.
///
/// A reload calls this again and swaps the whole value; connections that are open keep theirs.
///
/// # Errors
/// [`TlsError::File`] if a file cannot be read, holds no certificate or key, or if the key is not the
/// certificate's.
pub fn server_config(server: &Server) -> Result<Arc<ServerConfig>, TlsError> {
    listener(server, &Files::Disk).map(|listener| listener.config)
}

/// The listener's settings, and how long what they rest on lasts.
pub struct Listener {
    /// The settings.
    pub config: Arc<ServerConfig>,
    /// Whom they let in: also asked of connections that are open.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// When the first certificate of the server's chain expires, seconds since 1970; `None`: not readable.
    pub certificate_ends_unix_s: Option<u64>,
    /// The same of the client authorities.
    pub client_ca_ends_unix_s: Option<u64>,
    /// When the first of the revocation lists is out of date; `None`: there is none.
    pub client_crls_end_unix_s: Option<u64>,
}

/// As [`server_config`], from `files`, with the ends of the certificates that were read.
///
/// # Errors
/// As [`server_config`].
pub fn listener(server: &Server, files: &Files) -> Result<Listener, TlsError> {
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
    // The key in the HSM is not built yet.
    let (Some(certificate), Some(key)) = (server.certificates.iter().next(), &server.key) else {
        return Err(TlsError::Settings(rustls::Error::General("server.key is missing".to_owned())));
    };
    let chain = certificates(certificate, files)?;
    let certificate_ends_unix_s = first_end(&chain);
    let private = private_key(key, files)?;
    let mut config = ServerConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, private)
        .map_err(|e| pair_error(certificate, key, &e))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Early data can be replayed by whoever recorded it (RFC 8446 section 8).
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    Ok(Listener { config, verifier, certificate_ends_unix_s, client_ca_ends_unix_s, client_crls_end_unix_s })
}

struct RevocationLists {
    /// Of several of one issuer the first is asked.
    newest_first: Vec<CertificateRevocationListDer<'static>>,
    first_end_unix_s: Option<u64>,
}

fn revocation_lists(paths: &[PathBuf], files: &Files) -> Result<RevocationLists, TlsError> {
    let (mut lists, mut first_end_unix_s) = (Vec::new(), None::<u64>);
    for path in paths {
        let pem = files.read(path).map_err(|e| file_error(path, pem_reason(pem::Error::Io(e), "CRL")))?;
        // Such as are held against devices' certificates, and refused in the same words.
        Trust::none().with_crls(&pem).map_err(|e| file_error(path, e.to_string()))?;
        for der in CertificateRevocationListDer::pem_slice_iter(&pem) {
            let der = der.map_err(|e| file_error(path, pem_reason(e, "CRL")))?;
            let list: CertificateList =
                CertificateList::from_der(&der).map_err(|_| file_error(path, "not a CRL".into()))?;
            let list = list.tbs_cert_list;
            if let Some(end) = list.next_update.map(|end| end.to_unix_duration().as_secs()) {
                first_end_unix_s = Some(first_end_unix_s.map_or(end, |first| first.min(end)));
            }
            lists.push((list.this_update.to_unix_duration(), der));
        }
    }
    lists.sort_by_key(|(this_update, _)| Reverse(*this_update));
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
