//! A client of the gateway, as close to the bytes as a test needs.
//!
//! Responses are read strictly: what is not well-formed HTTP/1.1 is a panic, a body that ends early
//! is [`Body::Cut`].

use std::future::{Future, IntoFuture};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::within;

/// Where clients connect.
#[derive(Debug, Clone)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection. Dropping it is leaving.
pub struct Connection {
    stream: Box<dyn Stream>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub struct Head {
    pub version: String,
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Response {
    pub head: Head,
    pub body: Body,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    Whole(Vec<u8>),
    /// The connection ended before the body did.
    Cut(Vec<u8>),
}

impl Head {
    /// The value of a header that is there once at most.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_lines(name);
        assert!(values.len() < 2, "{name} more than once: {values:?}");
        values.first().copied()
    }

    pub fn header_lines(&self, name: &str) -> Vec<&str> {
        let named = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        let lines = self.headers.iter().filter(named);
        lines.map(|(_, value)| value.as_str()).collect()
    }
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The body, which is whole.
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            Body::Whole(bytes) => bytes,
            Body::Cut(bytes) => panic!("cut after {} bytes: {:?}", bytes.len(), self.head),
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        let json = serde_json::from_slice(self.bytes());
        json.unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    /// The text of an answer with status 200.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.status(), 200, "{}", self.text());
        self.text()
    }
}

impl Connection {
    pub async fn open(address: &Address) -> Self {
        match address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                Self::over(stream.expect("the gateway listens"))
            }
            Address::Unix(path) => Self::unix(path).await,
        }
    }

    async fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await;
        Self::over(stream.expect("the gateway listens"))
    }

    /// A connection that takes little at a time: what is not read waits in the gateway.
    pub async fn narrow(address: SocketAddr) -> Self {
        Self::over(Self::narrow_line(address).await)
    }

    /// The line below it, to speak another protocol over.
    pub async fn narrow_line(address: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("it is not used");
        let stream = socket.connect(address).await;
        stream.expect("the gateway listens")
    }

    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            bytes: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within("room to send", self.try_send(bytes)).await;
        sent.expect("the gateway takes it");
    }

    /// For what the gateway may not want to read to its end.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Says that nothing more will be sent, and stays.
    pub async fn finish(&mut self) {
        self.stream
            .shutdown()
            .await
            .expect("the connection is open");
    }

    /// The answer to a request that was not HEAD.
    pub async fn response(&mut self) -> Response {
        self.response_to("GET").await
    }

    /// None if the connection ends before anything comes.
    pub async fn try_response(&mut self) -> Option<Response> {
        let head = self.try_head().await?;
        let body = self.body(&head, "GET").await;
        Some(Response { head, body })
    }

    pub async fn response_to(&mut self, method: &str) -> Response {
        let head = self.head().await;
        let body = self.body(&head, method).await;
        Response { head, body }
    }

    /// The next head, whatever its status.
    pub async fn head(&mut self) -> Head {
        let head = self.try_head().await;
        head.expect("an answer, and not just the end of the connection")
    }

    /// None if the connection ends before anything comes.
    pub async fn try_head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !within("the head of an answer", self.fill()).await {
                assert!(
                    self.bytes.is_empty(),
                    "cut within a head: {}",
                    self.unread()
                );
                return None;
            }
        };
        let head: Vec<u8> = self.bytes.drain(..end + 4).collect();
        Some(parse(&head[..end]))
    }

    /// The body after this head.
    pub async fn body(&mut self, head: &Head, method: &str) -> Body {
        within("the body of an answer", self.read_body(head, method)).await
    }

    async fn read_body(&mut self, head: &Head, method: &str) -> Body {
        let length = head.header("content-length").map(|length| {
            let length: usize = length.parse().expect("a number");
            length
        });
        let coding = head.header("transfer-encoding");
        assert!(
            length.is_none() || coding.is_none(),
            "framed twice: {head:?}"
        );
        let bodiless = method == "HEAD" || matches!(head.status, 204 | 304) || head.status < 200;
        if bodiless {
            return Body::Whole(Vec::new());
        }
        if let Some(length) = length {
            while self.bytes.len() < length && self.fill().await {}
            let rest = self.bytes.split_off(length.min(self.bytes.len()));
            let body = std::mem::replace(&mut self.bytes, rest);
            return if body.len() == length {
                Body::Whole(body)
            } else {
                Body::Cut(body)
            };
        }
        match coding {
            Some("chunked") => self.chunks().await,
            Some(other) => panic!("coding {other}"),
            // Only the end of the connection says where the body ends, and a reset is no end.
            None => {
                let mut rest = std::mem::take(&mut self.bytes);
                match self.stream.read_to_end(&mut rest).await {
                    Ok(_) => Body::Whole(rest),
                    Err(_) => Body::Cut(rest),
                }
            }
        }
    }

    async fn chunks(&mut self) -> Body {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.line().await else {
                return Body::Cut(body);
            };
            let len = usize::from_str_radix(&line, 16).expect("a chunk's length");
            while self.bytes.len() < len + 2 {
                if !self.fill().await {
                    body.append(&mut self.bytes);
                    return Body::Cut(body);
                }
            }
            body.extend(self.bytes.drain(..len));
            let end: Vec<u8> = self.bytes.drain(..2).collect();
            assert_eq!(end, b"\r\n", "after a chunk");
            if len == 0 {
                return Body::Whole(body);
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.bytes.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Waits until there is so much unread, without taking it.
    pub async fn holds(&mut self, len: usize) {
        while self.bytes.len() < len {
            let more = within("more of an answer", self.fill()).await;
            assert!(more, "closed after {:?}", self.unread());
        }
    }

    /// True if nothing has come. Asked when the gateway has had every reason to say something.
    pub async fn is_quiet(&mut self) -> bool {
        let said = tokio::time::timeout(std::time::Duration::from_millis(50), self.fill()).await;
        said.is_err() && self.bytes.is_empty()
    }

    /// Waits for the gateway to close; what still came.
    pub async fn closed(&mut self) -> Vec<u8> {
        let end = async { while self.fill().await {} };
        within("the end of the connection", end).await;
        std::mem::take(&mut self.bytes)
    }

    fn unread(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// False at the end, be it a reset.
    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.bytes).await, Ok(1..))
    }
}

fn parse(head: &[u8]) -> Head {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut words = status_line.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (version, status, reason) = (word(), word(), word());
    assert!(version.starts_with("HTTP/1."), "{status_line:?}");
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(':').expect("name: value");
        (name.to_owned(), value.trim().to_owned())
    });
    Head {
        version,
        status: status.parse().expect("a status"),
        reason,
        headers: headers.collect(),
    }
}

/// A request on a connection of its own.
#[derive(Debug, Clone)]
pub struct Request {
    address: Address,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(address: &Address, method: &str, target: &str) -> Self {
        Self {
            address: address.clone(),
            method: method.to_owned(),
            target: target.to_owned(),
            headers: vec![("Host".to_owned(), "shop.example".to_owned())],
            body: None,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref().to_vec();
        let length = body.len().to_string();
        self.body = Some(body);
        self.header("Content-Length", &length)
    }

    pub fn replace_host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.headers[0].1);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(self.body.iter().flatten());
        bytes
    }

    /// None if the connection ends without an answer.
    async fn run(self) -> Option<Response> {
        let mut connection = Connection::open(&self.address).await;
        connection.send(self.bytes()).await;
        let head = connection.try_head().await?;
        let body = connection.body(&head, &self.method).await;
        Some(Response { head, body })
    }

    /// Sends it now; the answer is for later.
    pub fn spawn(self) -> Pending {
        Pending(tokio::spawn(self.run()))
    }
}

impl IntoFuture for Request {
    type Output = Response;
    type IntoFuture = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let answer = self.run().await;
            answer.expect("an answer, and not just the end of the connection")
        })
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Pending(JoinHandle<Option<Response>>);

impl Pending {
    /// Closes the connection without waiting for the answer.
    pub async fn leave(self) {
        self.0.abort();
        let left = self.0.await;
        assert!(left.is_err(), "answered before the client left: {left:?}");
    }

    /// Closes the connection, unless it has been answered in the same moment.
    pub async fn leave_if_unanswered(self) {
        self.0.abort();
        if let Err(error) = self.0.await {
            assert!(error.is_cancelled(), "the client does not panic");
        }
    }

    /// True if the connection closed instead.
    pub async fn ended_without_answer(self) -> bool {
        self.0.await.expect("the client does not panic").is_none()
    }

    pub fn is_answered(&self) -> bool {
        self.0.is_finished()
    }
}

impl IntoFuture for Pending {
    type Output = Response;
    type IntoFuture = Pin<Box<dyn Future<Output = Response> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let answer = self.0.await.expect("the client does not panic");
            answer.expect("an answer, and not just the end of the connection")
        })
    }
}
