//! An HTTPS client with a client certificate, for the tests and the demonstration: it shares no code with the
//! appliance, and connects, sends and waits as a bank's backend would.

#![allow(dead_code, reason = "the tests and the demonstration each use a part of it")]

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than any answer may take; only a hang ends this way.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a client is known by, and whom it trusts: PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The authority that the server's certificate must come from.
    pub ca: PathBuf,
    /// Certificate and key; `None` connects with no client certificate.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl Identity {
    /// A client with a certificate.
    pub fn new(ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { ca: ca.into(), own: Some((cert.into(), key.into())) }
    }

    /// A client without one.
    pub fn nobody(ca: impl Into<PathBuf>) -> Self {
        Self { ca: ca.into(), own: None }
    }

    /// TLS 1.3 settings that offer `alpn`, and the hybrid X25519MLKEM768 first.
    pub fn tls_config(&self, alpn: &[&str]) -> Result<ClientConfig, Failure> {
        self.tls_config_with(aws_lc_rs::default_provider(), alpn)
    }

    /// The same with other groups or ciphers.
    pub fn tls_config_with(&self, provider: CryptoProvider, alpn: &[&str]) -> Result<ClientConfig, Failure> {
        let failed = |path: &Path, e: &dyn fmt::Display| Failure::Setup(format!("{}: {e}", path.display()));
        let certificates = |path: &Path| {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| failed(path, &e))
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|e| failed(&self.ca, &e))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| Failure::Setup(e.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|e| failed(key, &e))?;
                builder.with_client_auth_cert(certificates(cert)?, private).map_err(|e| failed(cert, &e))?
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok(config)
    }
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1: one request at a time, the connection is kept alive between them.
    One,
    /// HTTP/2: many requests at once.
    Two,
}

/// Why there is no answer, by how far things got.
#[derive(Debug)]
pub enum Failure {
    /// The client's own files, address or request are wrong; nothing was sent.
    Setup(String),
    /// No TCP connection.
    Connect(io::Error),
    /// TCP, but no TLS that the client accepts. A server's refusal of the client's certificate is NOT here:
    /// under TLS 1.3 the client has finished before the server looks at it, and sees [`Failure::Request`].
    Handshake(io::Error),
    /// TLS, but no whole answer: the connection broke or was ended before or during it.
    Request(String),
    /// Nothing happened for 30 s.
    TimedOut,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(reason) => write!(f, "client setup: {reason}"),
            Self::Connect(e) => write!(f, "no connection: {e}"),
            Self::Handshake(e) => write!(f, "no TLS: {e}"),
            Self::Request(reason) => write!(f, "no answer: {reason}"),
            Self::TimedOut => write!(f, "no answer for {} s", DEADLINE.as_secs()),
        }
    }
}

impl std::error::Error for Failure {}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// A header's value, if it is there once or more and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A TLS connection to the server at `url` (`https://HOST:PORT`), for bytes made by hand. The server's refusal
/// of the client's certificate shows at the first read.
pub async fn tls_stream(
    url: &str,
    identity: &Identity,
    alpn: &[&str],
) -> Result<TlsStream<TcpStream>, Failure> {
    tls_stream_with(url, Arc::new(identity.tls_config(alpn)?)).await
}

/// The same with settings of the caller's own: other groups, or sessions kept between connections.
pub async fn tls_stream_with(url: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Failure> {
    let authority = authority(url)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(443);
    let name = ServerName::try_from(host.clone()).map_err(|e| Failure::Setup(format!("{url}: {e}")))?;
    in_time(async {
        let tcp = TcpStream::connect((host, port)).await.map_err(Failure::Connect)?;
        tcp.set_nodelay(true).map_err(Failure::Connect)?;
        TlsConnector::from(config).connect(name, tcp).await.map_err(Failure::Handshake)
    })
    .await
}

/// One connection. Clones share it.
#[derive(Clone)]
pub struct Connection {
    authority: Arc<str>,
    sender: Sender,
}

#[derive(Clone)]
enum Sender {
    /// Locked from a request's first byte to its answer's last.
    One(Arc<Mutex<http1::SendRequest<Full<Bytes>>>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Connects to `https://HOST:PORT`; whatever path the URL has is ignored.
    pub async fn open(url: &str, identity: &Identity, http: Http) -> Result<Self, Failure> {
        let alpn = match http {
            Http::One => "http/1.1",
            Http::Two => "h2",
        };
        let stream = tls_stream(url, identity, &[alpn]).await?;
        if stream.get_ref().1.alpn_protocol() != Some(alpn.as_bytes()) {
            return Err(Failure::Handshake(io::Error::other(format!("the server does not speak {alpn}"))));
        }
        let io = TokioIo::new(stream);
        let sender = in_time(async {
            // A connection's own error also ends the requests on it, which report it.
            Ok(match http {
                Http::One => {
                    let (sender, driver) = http1::handshake(io).await.map_err(broken)?;
                    tokio::spawn(driver);
                    Sender::One(Arc::new(Mutex::new(sender)))
                }
                Http::Two => {
                    let executor = TokioExecutor::new();
                    let (sender, driver) = http2::handshake(executor, io).await.map_err(broken)?;
                    tokio::spawn(driver);
                    Sender::Two(sender)
                }
            })
        })
        .await?;
        Ok(Self { authority: authority(url)?.as_str().into(), sender })
    }

    /// Sends a request and reads its whole answer. Many may be under way at once; on an HTTP/1.1 connection
    /// they go one after the other.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response, Failure> {
        let request = self.build(method, path, headers, body.into())?;
        in_time(async {
            match &self.sender {
                Sender::One(sender) => {
                    let mut sender = sender.lock().await;
                    sender.ready().await.map_err(broken)?;
                    read(sender.send_request(request).await.map_err(broken)?).await
                }
                Sender::Two(sender) => {
                    let mut sender = sender.clone();
                    sender.ready().await.map_err(broken)?;
                    read(sender.send_request(request).await.map_err(broken)?).await
                }
            }
        })
        .await
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Result<Response, Failure> {
        self.request("GET", path, &[], Bytes::new()).await
    }

    /// `POST` of a JSON body.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Result<Response, Failure> {
        let json = [(CONTENT_TYPE.as_str(), "application/json")];
        self.request("POST", path, &json, body.to_string()).await
    }

    fn build(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        // HTTP/1.1 wants the path and a Host; HTTP/2 takes scheme and authority from the URI.
        let builder = match self.sender {
            Sender::One(_) => Request::builder().uri(path).header(HOST, &*self.authority),
            Sender::Two(_) => Request::builder().uri(format!("https://{}{path}", self.authority)),
        };
        headers
            .iter()
            .fold(builder.method(method), |builder, (name, value)| builder.header(*name, *value))
            .body(Full::new(body))
            .map_err(|e| Failure::Setup(format!("{method} {path}: {e}")))
    }
}

async fn read(response: hyper::Response<Incoming>) -> Result<Response, Failure> {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(broken)?.to_bytes();
    Ok(Response { status: parts.status, headers: parts.headers, body })
}

fn authority(url: &str) -> Result<hyper::http::uri::Authority, Failure> {
    let not_https = || Failure::Setup(format!("{url}: not an https URL with a host"));
    let uri: Uri = url.parse().map_err(|_| not_https())?;
    if uri.scheme_str() != Some("https") {
        return Err(not_https());
    }
    uri.into_parts().authority.ok_or_else(not_https)
}

/// hyper's error with its causes, of which the last says most: a TLS alert, a reset.
fn broken(error: hyper::Error) -> Failure {
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    Failure::Request(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or(Err(Failure::TimedOut))
}
