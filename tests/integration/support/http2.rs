//! Clients that speak HTTP/2: one that behaves, and one that sends whatever frames it is told to.

use std::io;

use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::within;

/// A connection of a client that behaves.
pub struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

pub struct Response {
    pub head: http::response::Parts,
    pub body: Vec<u8>,
}

impl Response {
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.head.status, 200, "{self:?}");
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.ok()).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.body);
        write!(f, "{:?} {text:?}", self.head)
    }
}

pub fn get(path: &str) -> http::request::Builder {
    request("GET", path)
}

pub fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("https://shop.example{path}"))
}

impl Client {
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (requests, connection) = h2::client::Builder::new()
            // Room for others beside a stream that is not read.
            .initial_connection_window_size(1 << 20)
            .handshake(stream)
            .await
            .expect("the gateway speaks HTTP/2");
        Self {
            requests,
            connection: tokio::spawn(connection),
        }
    }

    /// Sends a head; the body, if there is more, goes through the stream.
    pub async fn send(
        &self,
        request: http::request::Builder,
        whole: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let requests = self.requests.clone().ready().await;
        let request = request.body(()).expect("a request");
        requests
            .expect("the connection is open")
            .send_request(request, whole)
            .expect("a good request")
    }

    pub async fn get(&self, path: &str) -> Response {
        let (response, _) = self.send(get(path), true).await;
        whole(response).await.expect("an answer")
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response {
        let (response, stream) = self.send(request("POST", path), false).await;
        tokio::spawn(send_all(stream, body.into()));
        whole(response).await.expect("an answer")
    }

    /// Waits for the connection's end, which the gateway has made.
    pub async fn ended(self) -> Result<(), h2::Error> {
        drop(self.requests);
        let ended = within("the end of a connection", self.connection).await;
        ended.expect("nothing panics")
    }

    /// Whether the gateway takes requests here.
    pub async fn takes_requests(&self) -> bool {
        self.requests.clone().ready().await.is_ok()
    }
}

/// Sends a body as fast as the gateway takes it; stops when the stream is over.
pub async fn send_all(mut stream: SendStream<Bytes>, mut body: Bytes) {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let Some(Ok(room)) = granted else { return };
        let part = body.split_to(room.min(body.len()));
        if stream.send_data(part, false).is_err() {
            return;
        }
    }
    // The answer may have come before the body was over.
    let _ = stream.send_data(Bytes::new(), true);
}

/// The whole answer, or why it is not whole.
pub async fn whole(response: ResponseFuture) -> Result<Response, h2::Error> {
    within("an answer", async {
        let (head, body) = response.await?.into_parts();
        let body = rest(body).await?;
        Ok(Response { head, body })
    })
    .await
}

/// The rest of a body.
pub async fn rest(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        let _ = body.flow_control().release_capacity(part.len());
        bytes.extend(part);
    }
    Ok(bytes)
}

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub mod flag {
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// Codes of GOAWAY and RST_STREAM.
pub mod code {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.to_vec(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = (self.payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// A number of 32 bits in the payload.
    pub fn number(&self, at: usize) -> u32 {
        let bytes = self.payload[at..at + 4].try_into().expect("four bytes");
        u32::from_be_bytes(bytes)
    }
}

/// A request's head, without Huffman coding or a dynamic table: GET, https, and these.
pub fn head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // Indexed: `:method: GET` and `:scheme: https`.
    let mut block = vec![0x82, 0x87];
    let mut field = |name: &str, value: &str| {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    };
    field(":authority", "shop.example");
    field(":path", path);
    for (name, value) in more {
        field(name, value);
    }
    block
}

/// A string's length in seven bits and more (RFC 7541 section 5.1).
fn length(block: &mut Vec<u8>, len: usize) {
    if len < 127 {
        return block.push(len as u8);
    }
    block.push(127);
    let mut rest = len - 127;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// A connection of a client that does as it is told.
pub struct Raw<S> {
    stream: S,
    bytes: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Says what every client says first, with these settings.
    pub async fn over(stream: S, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self {
            stream,
            bytes: BytesMut::new(),
        };
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.stream
            .write_all(PREFACE)
            .await
            .expect("the connection is open");
        raw.send(&Frame::new(kind::SETTINGS, 0, 0, &payload))
            .await
            .expect("the connection is open");
        raw
    }

    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.send_bytes(&frame.bytes()).await
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        within("room to send", self.stream.write_all(bytes)).await
    }

    /// The next frame; none at the end of the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        within("a frame", self.next()).await
    }

    /// Waits for a frame of this kind; none if the connection ends first.
    pub async fn frame_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(header) = self.bytes.get(..9) {
                let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                let (kind, flags) = (header[3], header[4]);
                let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
                if self.bytes.len() >= 9 + len {
                    let frame = self.bytes.split_to(9 + len);
                    return Some(Frame {
                        kind,
                        flags,
                        stream,
                        payload: frame[9..].to_vec(),
                    });
                }
            }
            match self.stream.read_buf(&mut self.bytes).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
