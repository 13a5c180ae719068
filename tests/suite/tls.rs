//! The listener's TLS: who gets through, and how.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hsm_authd::config::{ClientConfig, Limits, Server};
use hsm_authd::dev::pki::{self, AlternativeName, Authority, Identity as Issued, Pki, Purpose, Validity};
use hsm_authd::files::Files;
use hsm_authd::hsm::Hsm;
use hsm_authd::tls::{Clients, listener};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::{AlertDescription, ClientConfig as TlsClientConfig, HandshakeKind, NamedGroup, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::{client, server};

use crate::client::{Connection, Failure, Http, Identity, tls_stream_with};
use crate::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A development PKI, and what the appliance would be configured with.
struct Appliance {
    scratch: Scratch,
    pki: Pki,
    server: Server,
}

impl Appliance {
    fn new() -> Self {
        let scratch = Scratch::new();
        let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let pki = pki::ensure(scratch.path(), &["bank-a", "bank-b"], listen.ip(), SystemTime::now()).unwrap();
        let server = Server {
            listen,
            certificates: pki.server.certificate.clone().into(),
            key: Some(pki.server.key.clone()),
            client_ca: pki.ca.clone(),
            client_crls: vec![],
            limits: Limits::default(),
        };
        Self { scratch, pki, server }
    }

    fn config(&self) -> Arc<ServerConfig> {
        listener(&self.server, &Files::Disk, &Hsm::none()).unwrap().config
    }

    fn identity(&self, client: &str) -> Identity {
        let files = &self.pki.clients[client];
        Identity::new(&self.pki.ca, &files.certificate, &files.key)
    }

    fn authority(&self) -> Authority {
        let read = |name: &str| std::fs::read_to_string(self.scratch.path().join(name)).unwrap();
        Authority::from_identity(Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap()).unwrap()
    }

    /// A client that shows a certificate made by the test.
    fn identity_of(&self, issued: &Issued) -> Identity {
        let certificate = self.scratch.write("made.pem", &issued.certificate_pem().unwrap());
        let key = self.scratch.write("made.key", &issued.key_pem().unwrap());
        Identity::new(&self.pki.ca, certificate, key)
    }
}

fn clients() -> Clients {
    let entry = |name: &str| ClientConfig {
        name: name.to_owned().try_into().unwrap(),
        san: pki::client_uri(name),
        tenant: name.to_owned().try_into().unwrap(),
        permissions: vec![],
    };
    Clients::new(&[entry("bank-a"), entry("bank-b")])
}

fn validity(from: SystemTime, to: SystemTime) -> Validity {
    Validity { not_before: from, not_after: to }
}

/// Both ends of one handshake, each as it saw it.
struct Meeting {
    server: std::io::Result<server::TlsStream<TcpStream>>,
    client: Result<client::TlsStream<TcpStream>, Failure>,
}

impl Meeting {
    async fn of(server: Arc<ServerConfig>, client: TlsClientConfig) -> Self {
        Self::with(server, Arc::new(client)).await
    }

    async fn with(server: Arc<ServerConfig>, client: Arc<TlsClientConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let accept = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(server).accept(tcp).await?;
            stream.write_all(b"!").await?;
            stream.flush().await?;
            Ok(stream)
        };
        let (server, client) = tokio::join!(accept, tls_stream_with(&url, client));
        Self { server, client }
    }

    /// Both ends, once the client has read what the server wrote after the handshake.
    async fn succeeded(self) -> (server::TlsStream<TcpStream>, client::TlsStream<TcpStream>) {
        let mut client = self.client.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'!');
        (self.server.unwrap(), client)
    }

    /// The alert that the client got instead.
    async fn refused(self) -> AlertDescription {
        assert!(self.server.is_err(), "the server let it in");
        let error = match self.client {
            Ok(mut client) => client.read_u8().await.unwrap_err(),
            Err(Failure::Handshake(error)) => error,
            Err(failure) => panic!("{failure}"),
        };
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            _ => panic!("no alert but {error}"),
        }
    }
}

#[tokio::test]
async fn a_configured_clients_certificate_gets_through_and_names_it() {
    let appliance = Appliance::new();
    for name in ["bank-a", "bank-b"] {
        let tls = appliance.identity(name).tls_config(&[]).unwrap();
        let (server, _client) = Meeting::of(appliance.config(), tls).await.succeeded().await;
        let [leaf, ..] = server.get_ref().1.peer_certificates().unwrap() else { panic!("no certificate") };
        assert_eq!(clients().identify(leaf).unwrap().name.as_str(), name);
    }
}

#[tokio::test]
async fn nobody_else_gets_through() {
    let appliance = Appliance::new();
    let now = SystemTime::now();
    let current = validity(now - DAY, now + DAY);
    let names = [AlternativeName::Uri(pki::client_uri("bank-a"))];
    // Named as the real one is, so that only the signature tells them apart.
    let foreign = Authority::generate("hsm-authd development CA", current).unwrap();
    let authority = appliance.authority();
    let issue = |authority: &Authority, purpose, validity| {
        appliance.identity_of(&authority.issue(purpose, "bank-a", &names, validity).unwrap())
    };

    let refused = async |identity: Identity| {
        Meeting::of(appliance.config(), identity.tls_config(&[]).unwrap()).await.refused().await
    };
    assert_eq!(refused(Identity::nobody(&appliance.pki.ca)).await, AlertDescription::CertificateRequired);
    for (purpose, validity, expected) in [
        (Purpose::Client, validity(now - 2 * DAY, now - DAY), AlertDescription::CertificateExpired),
        (Purpose::Client, validity(now + DAY, now + 2 * DAY), AlertDescription::CertificateExpired),
        (Purpose::Server, current, AlertDescription::UnsupportedCertificate),
    ] {
        assert_eq!(refused(issue(&authority, purpose, validity)).await, expected, "{purpose:?} {validity:?}");
    }
    let alert = refused(issue(&foreign, Purpose::Client, current)).await;
    assert_eq!(alert, AlertDescription::DecryptError, "a foreign authority's of the same name");
    let stranger = Authority::generate("another CA", current).unwrap();
    assert_eq!(refused(issue(&stranger, Purpose::Client, current)).await, AlertDescription::UnknownCA);

    let real = issue(&authority, Purpose::Client, current).tls_config(&[]).unwrap();
    Meeting::of(appliance.config(), real).await.succeeded().await;
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let appliance = Appliance::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    tcp.write_all(&tls_1_2_hello()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let accept = tokio::spawn(TlsAcceptor::from(appliance.config()).accept(accepted));
    // First what it answers: a server that does speak TLS 1.2 would wait for more.
    let mut record = [0; 7];
    tcp.read_exact(&mut record).await.unwrap();
    // RFC 8446 section 6: an alert record (21), fatal (2), protocol_version (70).
    assert_eq!((record[0], record[5], record[6]), (21, 2, 70), "{record:?}");
    assert!(accept.await.unwrap().is_err());
}

/// What a TLS 1.2 client sends that has all a TLS 1.2 server could ask for (RFC 5246 section 7.4.1.2), and
/// no `supported_versions`.
fn tls_1_2_hello() -> Vec<u8> {
    let list = |length_bytes: usize, items: &[u8]| {
        [&(items.len() as u32).to_be_bytes()[4 - length_bytes..], items].concat()
    };
    let extension = |number: u8, data: &[u8]| [&[0, number], &*list(2, data)].concat();
    let extensions = [
        // supported_groups: x25519, secp256r1
        extension(10, &list(2, &[0, 29, 0, 23])),
        // ec_point_formats: uncompressed
        extension(11, &list(1, &[0])),
        // signature_algorithms: ecdsa_secp256r1_sha256
        extension(13, &list(2, &[4, 3])),
        // extended_master_secret
        extension(23, &[]),
    ]
    .concat();
    let hello = [
        &[3, 3][..],
        &[7; 32],
        // No session.
        &list(1, &[]),
        // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        &list(2, &[0xc0, 0x2b]),
        // No compression.
        &list(1, &[0]),
        &list(2, &extensions),
    ]
    .concat();
    let handshake = [&[1][..], &list(3, &hello)].concat();
    [&[22, 3, 1][..], &list(2, &handshake)].concat()
}

#[tokio::test]
async fn the_group_is_a_post_quantum_hybrid_with_whoever_can() {
    let appliance = Appliance::new();
    let group = async |kx_groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>| {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = kx_groups;
        let tls = appliance.identity("bank-a").tls_config_with(provider, &[]).unwrap();
        let (server, _client) = Meeting::of(appliance.config(), tls).await.succeeded().await;
        server.get_ref().1.negotiated_key_exchange_group().unwrap().name()
    };
    assert_eq!(group(aws_lc_rs::default_provider().kx_groups).await, NamedGroup::X25519MLKEM768);
    assert_eq!(group(vec![kx_group::X25519MLKEM768, kx_group::X25519]).await, NamedGroup::X25519MLKEM768);
    assert_eq!(group(vec![kx_group::X25519]).await, NamedGroup::X25519);
    assert_eq!(group(vec![kx_group::SECP256R1]).await, NamedGroup::secp256r1);
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let appliance = Appliance::new();
    let config = appliance.config();
    // One client that would keep sessions, were it given any.
    let client = Arc::new(appliance.identity("bank-a").tls_config(&[]).unwrap());
    for _ in 0..2 {
        let (server, client) = Meeting::with(config.clone(), client.clone()).await.succeeded().await;
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert!(!config.session_storage.can_cache());
    assert!(!config.ticketer.enabled());
    assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
}

#[tokio::test]
async fn http_2_is_preferred_and_anything_but_http_refused() {
    let appliance = Appliance::new();
    let offer = |alpn: &[&str]| {
        Meeting::of(appliance.config(), appliance.identity("bank-a").tls_config(alpn).unwrap())
    };
    for (offered, chosen) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["imap", "http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let (server, _client) = offer(offered).await.succeeded().await;
        assert_eq!(server.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
    }
    assert_eq!(offer(&["imap"]).await.refused().await, AlertDescription::NoApplicationProtocol);
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_one_line() {
    let appliance = Appliance::new();
    let Appliance { pki, server, scratch } = &appliance;
    let missing = scratch.path().join("missing.pem");
    let garbage = scratch.write("garbage.pem", "-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n");
    let no_der =
        scratch.write("no-der.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let not_a_key =
        scratch.write("no-der.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let (certificate, key) = (&pki.server.certificate, &pki.server.key);
    let bank = &pki.clients["bank-a"].key;
    let mismatch = format!("this key is not that of the certificate in {}", certificate.display());
    let set = |change: &dyn Fn(&mut Server)| {
        let mut server = server.clone();
        change(&mut server);
        server
    };
    let with_certificate = |path: &PathBuf| set(&|server| server.certificates = path.clone().into());
    let with_key = |path: &PathBuf| set(&|server| server.key = Some(path.clone()));
    let with_ca = |path: &PathBuf| set(&|server| server.client_ca.clone_from(path));
    for (server, file, reason) in [
        (with_certificate(&missing), &missing, "no such file"),
        (with_certificate(key), key, "no certificate (PEM) in it"),
        (with_certificate(&garbage), &garbage, "not well-formed PEM"),
        (with_certificate(&no_der), &no_der, "no usable certificate: "),
        (with_key(&missing), &missing, "no such file"),
        (with_key(certificate), certificate, "no unencrypted private key (PEM) in it"),
        (with_key(&not_a_key), &not_a_key, "no usable key: "),
        (with_key(bank), bank, &mismatch),
        (with_ca(&missing), &missing, "no such file"),
        (with_ca(key), key, "no certificate (PEM) in it"),
        (with_ca(&no_der), &no_der, "no usable authority: "),
    ] {
        let error = listener(&server, &Files::Disk, &Hsm::none()).err().unwrap().to_string();
        let expected = format!("{}: {reason}", file.display());
        assert!(error.starts_with(&expected), "{error}, not {expected}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// Serves HTTP to whoever gets through; answers with who asked, and counts connections.
async fn serve(appliance: &Appliance) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let (config, counter) = (appliance.config(), connections.clone());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (config, counter) = (config.clone(), counter.clone());
            tokio::spawn(async move {
                let Ok(stream) = TlsAcceptor::from(config).accept(tcp).await else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                let client = clients().identify(&stream.get_ref().1.peer_certificates().unwrap()[0]);
                let name = client.map(|client| client.name.to_string());
                let answer = service_fn(|request: hyper::Request<Incoming>| answer(name.clone(), request));
                let http = auto::Builder::new(TokioExecutor::new());
                // How a connection ends is the client's business here.
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (url, connections)
}

async fn answer(
    name: Option<String>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = serde_json::json!({
        "client": name,
        "request": format!("{} {:?} {}", parts.method, parts.version, parts.uri.path()),
        "body": String::from_utf8_lossy(&body),
        "mark": parts.headers.get("x-mark").map(|mark| mark.to_str().unwrap()),
    });
    Ok(hyper::Response::new(Full::new(text.to_string().into())))
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let appliance = Appliance::new();
    let (url, connections) = serve(&appliance).await;
    for (http, version) in [(Http::One, "HTTP/1.1"), (Http::Two, "HTTP/2.0")] {
        let before = connections.load(Ordering::SeqCst);
        let connection = Connection::open(&url, &appliance.identity("bank-b"), http).await.unwrap();
        let requests: Vec<_> = (0..50)
            .map(|number| {
                let connection = connection.clone();
                tokio::spawn(async move {
                    let headers = [("x-mark", "1")];
                    connection.request("PUT", &format!("/{number}"), &headers, "text").await
                })
            })
            .collect();
        for (number, request) in requests.into_iter().enumerate() {
            let response = request.await.unwrap().unwrap();
            assert_eq!(response.status, 200);
            let expected = serde_json::json!({
                "client": "bank-b", "request": format!("PUT {version} /{number}"), "body": "text", "mark": "1",
            });
            assert_eq!(response.json().unwrap(), expected);
        }
        assert_eq!(connections.load(Ordering::SeqCst), before + 1);
    }
}

#[tokio::test]
async fn the_clients_failures_say_how_far_it_got() {
    let appliance = Appliance::new();
    let (url, _) = serve(&appliance).await;
    let open = async |url: &str, identity: &Identity| {
        let connection = Connection::open(url, identity, Http::One).await?;
        connection.get("/").await
    };
    let bank = appliance.identity("bank-a");
    assert_eq!(open(&url, &bank).await.unwrap().json().unwrap()["client"], "bank-a");

    let failure = open("http://127.0.0.1:1", &bank).await.unwrap_err();
    assert!(matches!(failure, Failure::Setup(_)), "{failure}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = open(&format!("https://{closed}"), &bank).await.unwrap_err();
    assert!(matches!(failure, Failure::Connect(_)), "{failure}");
    let strange = Identity { ca: appliance.pki.server.certificate.clone(), ..bank };
    let failure = open(&url, &strange).await.unwrap_err();
    assert!(matches!(failure, Failure::Handshake(_)), "{failure}");
    for http in [Http::One, Http::Two] {
        // Whether the refusal arrives before or after the request is sent is the network's choice.
        let nobody = Identity::nobody(&appliance.pki.ca);
        let failure = match Connection::open(&url, &nobody, http).await {
            Ok(connection) => connection.get("/").await.unwrap_err(),
            Err(failure) => failure,
        };
        assert!(matches!(failure, Failure::Request(_)), "{failure}");
    }
}
