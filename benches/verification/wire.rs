//! A lean HTTPS client: it shares the machine with what it measures. One request at a time.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Http, Identity, tls_stream_with};
use crate::{Outcome, words};

/// The server, and what a connection to it begins with.
#[derive(Clone)]
pub struct Target {
    url: String,
    authority: String,
    configs: [Arc<ClientConfig>; 2],
}

impl Target {
    pub fn new(url: &str, identity: &Identity) -> Outcome<Self> {
        let config = |alpn| identity.tls_config(&[alpn]).map(Arc::new).map_err(words);
        let authority = url.strip_prefix("https://").ok_or("no https URL")?;
        Ok(Self {
            url: url.to_owned(),
            authority: authority.to_owned(),
            configs: [config("http/1.1")?, config("h2")?],
        })
    }
}

/// One request.
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub body: String,
}

/// Status and body.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// One connection.
pub enum Wire {
    One { stream: Box<TlsStream<TcpStream>>, authority: String, buffer: Vec<u8> },
    Two { sender: SendRequest<Full<Bytes>>, url: String },
}

impl Wire {
    pub async fn open(target: &Target, http: Http) -> Outcome<Self> {
        let [one, two] = &target.configs;
        match http {
            Http::One => {
                let stream = Box::new(tls_stream_with(&target.url, one.clone()).await.map_err(words)?);
                let buffer = Vec::with_capacity(4_096);
                Ok(Self::One { stream, authority: target.authority.clone(), buffer })
            }
            Http::Two => {
                let stream = tls_stream_with(&target.url, two.clone()).await.map_err(words)?;
                let (sender, driver) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(words)?;
                // Its error also ends the request under way, which reports it.
                tokio::spawn(driver);
                Ok(Self::Two { sender, url: target.url.clone() })
            }
        }
    }

    pub async fn ask(&mut self, ask: Ask) -> Outcome<Answer> {
        match self {
            Self::One { stream, authority, buffer } => {
                buffer.clear();
                let Ask { method, path, body } = ask;
                let length = body.len();
                buffer.extend_from_slice(
                    format!(
                        "{method} {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\n\
                         content-length: {length}\r\n\r\n{body}"
                    )
                    .as_bytes(),
                );
                stream.write_all(buffer).await.map_err(words)?;
                stream.flush().await.map_err(words)?;
                buffer.clear();
                loop {
                    if let Some((status, body)) = parse(buffer)? {
                        return Ok(Answer { status, body: body.to_vec() });
                    }
                    if stream.read_buf(buffer).await.map_err(words)? == 0 {
                        return Err("the server hung up".to_owned());
                    }
                }
            }
            Self::Two { sender, url } => {
                let request = hyper::Request::builder()
                    .method(ask.method)
                    .uri(format!("{url}{}", ask.path))
                    .header("content-type", "application/json")
                    .body(Full::new(Bytes::from(ask.body)))
                    .map_err(words)?;
                sender.ready().await.map_err(words)?;
                let response = sender.send_request(request).await.map_err(words)?;
                let status = response.status().as_u16();
                let body = response.into_body().collect().await.map_err(words)?.to_bytes();
                Ok(Answer { status, body: body.to_vec() })
            }
        }
    }
}

/// Status and body of an HTTP/1.1 answer with a length, once all of it is there.
fn parse(bytes: &[u8]) -> Outcome<Option<(u16, &[u8])>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let (head, body) = bytes.split_at(end + 4);
    let head = str::from_utf8(head).map_err(words)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or("no status line")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
    });
    match length.ok_or("an answer without its length")? {
        length if body.len() < length => Ok(None),
        length if body.len() == length => Ok(Some((status, body))),
        _ => Err("an answer that nobody asked for".to_owned()),
    }
}
