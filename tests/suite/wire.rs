//! Bytes that no HTTP client would send: too many, too few, too slow. The server stays well.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

use crate::bank::{credential, credentials, done, path, refused};
use crate::client::{Connection, Http, Identity, Response, tls_stream};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, text, verify};
use crate::overload;

const BODY_BYTES_MAX: usize = 64 * 1024;
const JSON: (&str, &str) = ("content-type", "application/json");

async fn stream(daemon: &Daemon) -> TlsStream<tokio::net::TcpStream> {
    stream_to(&daemon.url(), &daemon.identity("bank-a")).await
}

async fn stream_to(url: &str, identity: &Identity) -> TlsStream<tokio::net::TcpStream> {
    tls_stream(url, identity, &["http/1.1"]).await.unwrap()
}

/// Sends these bytes and reads until the server closes; what arrived, if it is an answer.
async fn exchange(daemon: &Daemon, sent: &[u8]) -> Option<Response> {
    exchange_with(&daemon.url(), &daemon.identity("bank-a"), sent).await
}

async fn exchange_with(url: &str, identity: &Identity, sent: &[u8]) -> Option<Response> {
    let mut stream = stream_to(url, identity).await;
    // A server that has answered may close before it has read everything.
    let _ = stream.write_all(sent).await;
    let _ = stream.flush().await;
    answer(&rest(&mut stream).await)
}

/// All that the server still says until it closes, which it does soon, whatever it was sent.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut bytes));
    // An end without close_notify is one as well.
    let _ = read.await.expect("the server neither answers nor closes");
    bytes
}

fn answer(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
    let mut headers = hyper::HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let name: hyper::header::HeaderName = name.parse().unwrap();
        headers.append(name, value.trim().parse().unwrap());
    }
    Some(Response { status, headers, body: bytes[end + 4..].to_vec().into() })
}

fn head(id: &str, more: &str) -> String {
    format!(
        "POST /v1/credentials/{id}/verify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\n{more}\r\n"
    )
}

/// The right code, and blanks up to so many bytes.
fn padded(length: usize) -> String {
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let blanks = " ".repeat(length - body.len());
    body + &blanks
}

fn chunked(body: &str) -> String {
    let chunks: String = body
        .as_bytes()
        .chunks(1_000)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
        .collect();
    chunks + "0\r\n\r\n"
}

#[tokio::test]
async fn a_body_ends_at_64_kib() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let before = credentials(&bank).await;

    for length in [BODY_BYTES_MAX + 1, 10 * BODY_BYTES_MAX] {
        let announced =
            exchange(&daemon, head(&id, &format!("Content-Length: {length}\r\n")).as_bytes()).await;
        refused(&announced.expect("an answer before the body"), 413, "too-large");
        let streamed = head(&id, "Transfer-Encoding: chunked\r\n") + &chunked(&padded(length));
        if let Some(answer) = exchange(&daemon, streamed.as_bytes()).await {
            assert_eq!(answer.status, 413, "{}", text(&answer));
        }
        let answer = bank.request("POST", &path(&id, "verify"), &[JSON], padded(length)).await.unwrap();
        refused(&answer, 413, "too-large");
        let answer = bank.request("POST", &path(&id, "suspend"), &[], padded(length)).await.unwrap();
        refused(&answer, 413, "too-large");
    }
    let one_too_many = head(&id, "Transfer-Encoding: chunked\r\n") + &chunked(&padded(BODY_BYTES_MAX + 1));
    let answer = exchange(&daemon, one_too_many.as_bytes()).await.expect("it was read to its last byte");
    assert_eq!(answer.status, 413, "{}", text(&answer));
    for length in ["99999999999999999999999", "18446744073709551615"] {
        let answer = exchange(&daemon, head(&id, &format!("Content-Length: {length}\r\n")).as_bytes()).await;
        let status = answer.expect("an answer").status;
        assert!(status.is_client_error(), "{length}: {status}");
    }
    assert_eq!(credentials(&bank).await, before);

    let full = head(&id, "Transfer-Encoding: chunked\r\n") + &chunked(&padded(BODY_BYTES_MAX));
    let full = exchange(&daemon, full.as_bytes()).await.unwrap();
    assert_eq!(full.status, 200);
    assert_eq!(credential(&bank, &id).await["counter"], 1);
}

#[tokio::test]
async fn half_a_request_is_none() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let before = credentials(&bank).await;
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let whole = head(&id, &format!("Content-Length: {}\r\n", body.len())) + &body;
    let chunks = head(&id, "Transfer-Encoding: chunked\r\n") + &chunked(&body);
    // The connection ends in the middle: with a close_notify, and without.
    for (request, polite) in [&whole, &chunks].into_iter().flat_map(|r| [(r, true), (r, false)]) {
        for cut in [0, 1, 4, 30, request.len() / 2, request.len() - body.len() - 8, request.len() - 1] {
            let mut stream = stream(&daemon).await;
            stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
            stream.flush().await.unwrap();
            if polite {
                stream.shutdown().await.unwrap();
                if let Some(answer) = answer(&rest(&mut stream).await) {
                    assert_eq!(answer.status, 400, "cut at {cut}: {}", text(&answer));
                }
            }
        }
    }
    for nonsense in [
        "GET\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "GET /v1/credentials HTTP/9.9\r\n\r\n",
        "GET /v1/credentials HTTP/1.1\r\nHost localhost\r\n\r\n",
        "GET /v1/cre dentials HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET \u{0} HTTP/1.1\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{0}\u{5}hello",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &head(&id, "Content-Length: 5\r\nContent-Length: 6\r\n"),
        &head(&id, "Content-Length: -1\r\n"),
        &head(&id, "Content-Length: 1x\r\n"),
        &(head(&id, "Transfer-Encoding: chunked\r\n") + "zz\r\n" + &body),
        &(head(&id, "Transfer-Encoding: chunked\r\n") + "ffffffffffffffff1\r\n" + &body),
        &(head(&id, "Transfer-Encoding: gzip\r\n") + &body),
        &head(&id, &format!("X: {}\r\n", "x".repeat(1 << 20))),
        &head(&id, &"X: x\r\n".repeat(200)),
    ] {
        let mut stream = stream(&daemon).await;
        let _ = stream.write_all(nonsense.as_bytes()).await;
        let _ = stream.shutdown().await;
        if let Some(answer) = answer(&rest(&mut stream).await) {
            let start = &nonsense[..nonsense.len().min(60)];
            assert!(answer.status.is_client_error(), "{start:?}: {} {}", answer.status, text(&answer));
        }
    }
    assert_eq!(credentials(&bank).await, before);
    done(&verify(&bank, &id, &rfc_code(0)).await);
}

/// Two requests in one: what follows a body belongs to nobody's other request.
#[tokio::test]
async fn a_length_and_chunks_at_once_smuggle_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let inner = format!("DELETE /v1/credentials/{id} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let sent = head(&id, &format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", inner.len() + 5));
    let mut stream = stream(&daemon).await;
    let sent = sent.replace("Connection: close\r\n", "") + "0\r\n\r\n" + &inner;
    stream.write_all(sent.as_bytes()).await.unwrap();
    let _ = stream.shutdown().await;
    rest(&mut stream).await;
    assert_eq!(credential(&bank, &id).await["state"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let limits = ["body_timeout_ms", "header_timeout_ms", "handshake_timeout_ms"].map(|name| (name, 200));
    let (daemon, served) = overload::start(&limits);
    let identity = daemon.identity("bank-a");
    let open = || Connection::open(&served.url, &identity, Http::One);
    let id = enrol_hotp(&open().await.unwrap(), "acct-1").await;
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let length = format!("Content-Length: {}\r\n", body.len());
    for (what, sent) in [
        ("no body", head(&id, &length)),
        ("half of it", head(&id, &length) + &body[..5]),
        ("no chunk", head(&id, "Transfer-Encoding: chunked\r\n")),
        (
            "no last chunk",
            head(&id, "Transfer-Encoding: chunked\r\n") + chunked(&body).trim_end_matches("0\r\n\r\n"),
        ),
    ] {
        let answer = exchange_with(&served.url, &identity, sent.as_bytes()).await;
        let document = refused(&answer.unwrap_or_else(|| panic!("{what}: no answer")), 400, "invalid");
        assert_eq!(document["reason"], "the body did not arrive in time", "{what}");
    }
    for silent in ["", "GET /v1/cred"] {
        let answer = exchange_with(&served.url, &identity, silent.as_bytes()).await;
        assert!(answer.is_none_or(|answer| answer.status.is_client_error()), "{silent:?}");
    }
    let address = served.url.trim_start_matches("https://");
    let mut no_tls = tokio::net::TcpStream::connect(address).await.unwrap();
    rest(&mut no_tls).await;

    let bank = open().await.unwrap();
    assert_eq!(credential(&bank, &id).await["failures"], 0);
    done(&verify(&bank, &id, &rfc_code(0)).await);
}
