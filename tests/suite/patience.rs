//! How long a peer may keep the appliance waiting, and with how many descriptors it starts.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::{Connection, Http, tls_stream};
use crate::daemon::Daemon;
use crate::overload;
use crate::served::{configuration, section};
use crate::token::BINARY;

/// Long enough for whatever is expected, and for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_nothing_is_closed() {
    let (daemon, served) = overload::start(&[("header_timeout_ms", 500)]);
    let identity = daemon.identity("bank-a");
    for (alpn, sent) in
        [("http/1.1", ""), ("http/1.1", "GET /v1/cre"), ("h2", ""), ("h2", "PRI * HTTP/2.0\r\n")]
    {
        let mut stream = tls_stream(&served.url, &identity, &[alpn]).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{alpn} {sent:?} is still open");
    }
    // Nobody else is disturbed, and who speaks HTTP/2 is not closed while he is idle.
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_answer_is_closed() {
    let (daemon, served) = overload::start(&[("write_timeout_ms", 500)]);
    let identity = daemon.identity("bank-a");
    let mut stream = tls_stream(&served.url, &identity, &["http/1.1"]).await.unwrap();
    let request = b"GET /v1/openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(100);
    let begun = Instant::now();
    // Its answers fill the sockets; then no request is read, then the connection is gone.
    let flood = async { while stream.write_all(&request).await.is_ok() {} };
    assert!(timeout(PATIENCE, flood).await.is_ok(), "still open after {:?}", begun.elapsed());
}

#[test]
fn a_service_starts_with_the_descriptors_it_needs_or_says_so() {
    let mut daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    daemon.stop();
    let config = configuration(&daemon, "many.toml", |config| {
        let limits = [("connections_max".to_owned(), 300.into())].into_iter().collect::<toml::Table>();
        section(config, "server").insert("limits".into(), limits.into());
    });
    let script = format!("ulimit -n 300 && exec timeout 20 {BINARY} serve --config {}", config.display());
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    let last = said.lines().last().unwrap();
    assert!(last.contains("connections_max") && last.contains("428") && last.contains("300"), "{said}");
}
