//! An HTTP server that does what the test says, byte by byte.

use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::http;
use super::within;

/// Where it listens. Closed when dropped.
pub enum Upstream {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Line for S {}

/// A connection that the gateway has made, and used.
pub struct Connection {
    stream: Stream,
    bytes: Vec<u8>,
}

/// A request as it came.
#[derive(Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

pub async fn tcp() -> Upstream {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    Upstream::Tcp(listener.expect("a free port"))
}

/// At this path, where a server may have listened before.
pub fn unix(path: impl Into<PathBuf>) -> Upstream {
    let path = path.into();
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    Upstream::Unix(listener, path)
}

impl Upstream {
    /// As in the configuration.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                format!("http://{}", listener.local_addr().expect("an address"))
            }
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// The next connection on which something is sent. The gateway also makes some only to see whether it can.
    pub async fn accept(&self) -> Connection {
        let accepting = async {
            loop {
                let stream = match self {
                    Self::Tcp(listener) => Stream::Tcp(listener.accept().await.expect("open").0),
                    Self::Unix(listener, _) => {
                        Stream::Unix(listener.accept().await.expect("open").0)
                    }
                };
                let mut connection = Connection {
                    stream,
                    bytes: Vec::new(),
                };
                if connection.fill().await {
                    return connection;
                }
            }
        };
        within("a connection from the gateway", accepting).await
    }

    /// Answers a first request, and lets the gateway see that connections are kept here. It uses those of later
    /// answers again, and closes this one.
    pub async fn keeps(&self, first: http::Request) {
        let pending = first.spawn();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (mut connection, _) = self.answers(answer).await;
        pending.await.ok();
        connection.closed().await;
    }

    /// Accepts, and answers the first request with these bytes.
    pub async fn answers(&self, bytes: impl AsRef<[u8]>) -> (Connection, Request) {
        let mut connection = self.accept().await;
        let request = connection.request().await;
        connection.send(bytes).await;
        (connection, request)
    }
}

impl Connection {
    fn line(&mut self) -> &mut dyn Line {
        match &mut self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Unix(stream) => stream,
        }
    }

    async fn fill(&mut self) -> bool {
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read_buf(&mut self.bytes).await,
            Stream::Unix(stream) => stream.read_buf(&mut self.bytes).await,
        };
        matches!(read, Ok(1..))
    }

    /// The next request, whole.
    pub async fn request(&mut self) -> Request {
        let request = within("a request at the upstream", self.try_request()).await;
        request.expect("a whole request")
    }

    /// None if the connection ends before it is whole.
    pub async fn try_request(&mut self) -> Option<Request> {
        let mut request = self.try_head().await?;
        let length = request.header("content-length");
        let length = length.map_or(0, |length| length.parse().expect("a number"));
        assert_eq!(request.header("transfer-encoding"), None, "{request:?}");
        while self.bytes.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        request.body = self.bytes.drain(..length).collect();
        Some(request)
    }

    /// The head of the next request, whose body is left where it is.
    pub async fn head(&mut self) -> Request {
        let head = within("a request's head at the upstream", self.try_head()).await;
        head.expect("a whole head")
    }

    async fn try_head(&mut self) -> Option<Request> {
        let end = loop {
            if let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !self.fill().await {
                return None;
            }
        };
        let head: Vec<u8> = self.bytes.drain(..end + 4).collect();
        let text = String::from_utf8(head[..end].to_vec()).expect("text");
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").expect("name: value");
            (name.to_owned(), value.to_owned())
        });
        Some(Request {
            line,
            headers: headers.collect(),
            body: Vec::new(),
        })
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within("room to answer", self.try_send(bytes)).await;
        sent.expect("the gateway reads");
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.line().write_all(bytes.as_ref()).await
    }

    /// So many bytes of whatever protocol.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.bytes.len() < count {
            assert!(within("bytes at the upstream", self.fill()).await, "closed");
        }
        self.bytes.drain(..count).collect()
    }

    /// Says that nothing more will be sent, and stays.
    pub async fn finish(&mut self) {
        let finished = self.line().shutdown().await;
        finished.expect("the connection is open");
    }

    /// Waits for the gateway to close.
    pub async fn closed(&mut self) {
        let end = async { while self.fill().await {} };
        within("the gateway to close its connection to the upstream", end).await;
    }

    /// Ends the connection so that it cannot be taken for a regular end.
    pub fn reset(self) {
        if let Stream::Tcp(stream) = self.stream {
            stream.set_zero_linger().expect("it is open");
        }
    }
}

impl Request {
    /// The value of a header that is there once at most.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} more than once");
        value
    }
}
