//! A request that is being worked on for as long as the test likes.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::client::{Identity, tls_stream};

/// The appliance has begun to read its body, and waits for the last byte.
pub struct SlowRequest {
    stream: TlsStream<TcpStream>,
    rest: Vec<u8>,
}

impl SlowRequest {
    /// Submits a code, but for the last byte.
    pub async fn verify(url: &str, identity: &Identity, id: &str, otp: &str) -> Self {
        let mut stream = tls_stream(url, identity, &["http/1.1"]).await.unwrap();
        let body = json!({ "otp": otp }).to_string();
        let head = format!(
            "POST /v1/credentials/{id}/verify HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
            url.strip_prefix("https://").unwrap(),
            body.len(),
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        // Sent when the body is asked for: the request is being worked on.
        let mut go_on = [0; 25];
        let read = timeout(crate::processes::PATIENCE, stream.read_exact(&mut go_on)).await;
        read.expect("the request is not worked on").unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        let (begin, rest) = body.as_bytes().split_at(body.len() - 1);
        stream.write_all(begin).await.unwrap();
        stream.flush().await.unwrap();
        Self { stream, rest: rest.to_vec() }
    }

    /// Sends the last byte; status and body of the answer.
    pub async fn finish(mut self) -> (u16, String) {
        self.stream.write_all(&self.rest).await.unwrap();
        self.stream.flush().await.unwrap();
        self.wait().await
    }

    /// Never sends the last byte; status and body of the answer.
    pub async fn wait(mut self) -> (u16, String) {
        let mut answer = Vec::new();
        let read = timeout(crate::processes::PATIENCE, self.stream.read_to_end(&mut answer)).await;
        read.expect("no answer").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}
