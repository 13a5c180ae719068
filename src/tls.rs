//! Mutual TLS: the listener's settings, and who a client certificate names.
//!
//! TLS 1.3 only, the hybrid X25519MLKEM768 first, a client certificate always, and no resumption:
//! a resumed session brings back the certificate of the first handshake without looking at it again,
//! so it would outlive an expiry, a revocation or a change of `client_ca`.

mod identity;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};

use crate::config::Server;

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
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = authorities(&server.client_ca)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone())
        .build()
        .map_err(|e| file_error(&server.client_ca, e.to_string()))?;
    let chain = certificates(&server.certificate)?;
    let key = private_key(&server.key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| pair_error(server, &e))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Early data can be replayed by whoever recorded it (RFC 8446 section 8).
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| file_error(path, format!("no usable authority: {e}")))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| file_error(path, pem_reason(e, "certificate")))?;
    if certificates.is_empty() {
        return Err(file_error(path, pem_reason(pem::Error::NoItemsFound, "certificate")));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| file_error(path, pem_reason(e, "unencrypted private key")))
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
fn pair_error(server: &Server, error: &rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(_) => file_error(
            &server.key,
            format!("this key is not that of the certificate in {}", server.certificate.display()),
        ),
        rustls::Error::InvalidCertificate(e) => {
            file_error(&server.certificate, format!("no usable certificate: {e}"))
        }
        e => file_error(&server.key, format!("no usable key: {e}")),
    }
}

fn file_error(path: &Path, reason: String) -> TlsError {
    TlsError::File { path: path.to_owned(), reason }
}
