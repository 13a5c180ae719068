//! An HTTP/2 client that is told to leave, and stays.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Identity, tls_stream};
use crate::processes::eventually;

/// A client that is told to leave and does not say that it has heard it, so that the server goes on serving it.
pub struct Stubborn {
    stream: TlsStream<TcpStream>,
    streams: u32,
    told: bool,
    /// The ping that came with the goodbye.
    unanswered: bool,
}

/// An HTTP/2 frame (RFC 9113, section 4.1).
struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

impl Stubborn {
    /// By HTTP/2, without any crate's manners.
    pub async fn connect(url: &str, identity: &Identity) -> Self {
        let mut stream = tls_stream(url, identity, &["h2"]).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut client = Self { stream, streams: 0, told: false, unanswered: false };
        client.send(SETTINGS, 0, 0, &[]).await.unwrap();
        // Room for more than it will ever be told, on all streams together.
        client.send(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes()).await.unwrap();
        client
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await
    }

    async fn next(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).await?;
        Ok(Frame { kind: head[3], flags: head[4], payload })
    }

    /// Reads on, and answers what is asked, until there is such a frame.
    async fn until(&mut self, kind: u8) -> std::io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            self.told |= frame.kind == GOAWAY;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await?,
                PING if frame.flags & ACK == 0 && self.told && !self.unanswered => self.unanswered = true,
                PING if frame.flags & ACK == 0 => self.send(PING, ACK, 0, &frame.payload).await?,
                _ => {}
            }
            if frame.kind == kind {
                return Ok(frame);
            }
        }
    }

    /// Asks for what is not there: whether it is told so.
    pub async fn asks(&mut self) -> std::io::Result<bool> {
        let literal = |name: &str, value: &str| {
            let [name_bytes, value_bytes] = [name, value].map(|text| text.len() as u8);
            let parts = [&[0, name_bytes], name.as_bytes(), &[value_bytes], value.as_bytes()];
            parts.concat()
        };
        let fields = [
            literal(":method", "GET"),
            literal(":scheme", "https"),
            literal(":path", "/v1/credentials/cred_00000000000000000000000000"),
            literal(":authority", "localhost"),
        ];
        // END_STREAM and END_HEADERS.
        self.send(HEADERS, 0x5, self.streams * 2 + 1, &fields.concat()).await?;
        self.streams += 1;
        let answer = self.until(HEADERS).await?;
        // RFC 7541, appendix A: ":status: 404" is 13.
        Ok(answer.payload.first() == Some(&(0x80 | 13)))
    }

    /// Asks until it is told to leave, and does not.
    pub async fn stays(&mut self) {
        eventually("it is told to leave", async || {
            assert!(self.asks().await.unwrap());
            self.unanswered.then_some(())
        })
        .await;
        assert!(self.asks().await.unwrap(), "it is served all the same");
    }
}
