//! A third party: an HTTP/1.1 server on loopback that answers when and what the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::within;

pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// What every request is answered with; none: they wait.
    answer: watch::Sender<Option<Vec<u8>>>,
    seen: watch::Sender<Seen>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: usize,
    /// Head and body of each.
    pub requests: Vec<String>,
    /// Requests whose client hung up before it was answered.
    pub aborted: usize,
}

/// Answers nothing until it is told what.
pub async fn stalled() -> Origin {
    start(None).await
}

/// Answers everything with this text.
pub async fn answering(text: &str) -> Origin {
    start(Some(response("200 OK", "", text.as_bytes()))).await
}

/// Answers everything with a redirect.
pub async fn redirecting(to: &str) -> Origin {
    let location = format!("Location: {to}\r\n");
    start(Some(response("302 Found", &location, b""))).await
}

/// Answers everything with headers of this size.
pub async fn verbose(size: usize) -> Origin {
    let line = format!("X-Much: {}\r\n", "x".repeat(4000));
    start(Some(response("200 OK", &line.repeat(size / 4000), b""))).await
}

/// Answers everything with these bytes, and closes.
pub async fn saying(bytes: &[u8]) -> Origin {
    start(Some(bytes.to_vec())).await
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

async fn start(answer: Option<Vec<u8>>) -> Origin {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let shared = Arc::new(Shared {
        answer: watch::Sender::new(answer),
        seen: watch::Sender::default(),
        connections: Mutex::default(),
    });
    let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
    Origin {
        address,
        shared,
        accepting,
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.expect("it listens");
        shared.seen.send_modify(|seen| seen.connections += 1);
        let connection = tokio::spawn(converse(stream, Arc::clone(&shared)));
        shared.connections().push(connection);
    }
}

/// One request after the other, until the client hangs up.
async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut bytes = Vec::new();
    while let Some(request) = request(&mut stream, &mut bytes).await {
        shared.seen.send_modify(|seen| seen.requests.push(request));
        let mut answer = shared.answer.subscribe();
        let mut byte = [0];
        tokio::select! {
            biased; // An answer that is there is given.
            there = answer.wait_for(Option::is_some) => there.expect("we keep the sender"),
            read = stream.read(&mut byte) => {
                assert!(!matches!(read, Ok(1)), "a second request before the first was answered");
                shared.seen.send_modify(|seen| seen.aborted += 1);
                return;
            }
        };
        let bytes = answer.borrow().clone().expect("it is there");
        // A client that hangs up now is no news.
        if stream.write_all(&bytes).await.is_err() || !bytes.starts_with(b"HTTP/1.1 ") {
            return;
        }
    }
}

/// Head and body of the next request; none at the end of the connection.
async fn request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |length| length.trim().parse().expect("a number"));
            if bytes.len() >= end + 4 + length {
                let rest = bytes.split_off(end + 4 + length);
                let whole = std::mem::replace(bytes, rest);
                return Some(String::from_utf8_lossy(&whole).into_owned());
            }
        }
        match stream.read_buf(bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

impl Origin {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What all wait for, now and from here on.
    pub fn release(&self, text: &str) {
        let answer = response("200 OK", "", text.as_bytes());
        self.shared.answer.send_replace(Some(answer));
    }

    pub async fn received(&self, count: usize) {
        self.until(&format!("{count} requests at the origin"), |seen| {
            seen.requests.len() >= count
        })
        .await;
    }

    pub async fn aborted(&self, count: usize) {
        self.until(&format!("{count} aborted requests"), |seen| {
            seen.aborted >= count
        })
        .await;
    }

    async fn until(&self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let mut seen = self.shared.seen.subscribe();
        let happened = seen.wait_for(|seen| enough(seen));
        within(what, happened).await.expect("we keep the sender");
    }

    pub fn connections(&self) -> usize {
        self.shared.seen.borrow().connections
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.seen.borrow().requests.clone()
    }

    pub fn aborted_now(&self) -> usize {
        self.shared.seen.borrow().aborted
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.connections
            .lock()
            .expect("nothing panics with it held")
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
        for connection in self.shared.connections().drain(..) {
            connection.abort();
        }
    }
}
