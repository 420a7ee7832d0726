//! A tiny origin on a loopback socket that does exactly what a test says, byte by byte,
//! and tells what it saw.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

pub struct Origin {
    pub address: SocketAddr,
    accepts: Arc<AtomicUsize>,
    requests: Mutex<UnboundedReceiver<Received>>,
    gone: Mutex<UnboundedReceiver<()>>,
    _task: JoinSet<()>,
}

#[derive(Debug, Clone)]
pub struct Received {
    /// Request line and headers.
    pub head: String,
    pub body: Vec<u8>,
    /// Requests before this one on its connection.
    pub nth: usize,
}

pub enum Step {
    Send(Vec<u8>),
    /// Goes on when the gate opens.
    Wait(Gate),
    /// Does nothing until the client is gone, then tells.
    Stall,
    Close,
    Reset,
}

/// Closed until it is opened, then open for all.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    nth: usize,
}

struct Reports {
    requests: UnboundedSender<Received>,
    gone: UnboundedSender<()>,
}

impl Origin {
    pub async fn start(reply: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::start_on("127.0.0.1:0", reply).await
    }

    pub async fn start_on(
        address: &str,
        reply: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a loopback port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let accepts = Arc::new(AtomicUsize::new(0));
        let (requests, received) = unbounded_channel();
        let (gone, gone_received) = unbounded_channel();
        let reports = Arc::new(Reports { requests, gone });
        let reply = Arc::new(reply);
        let mut task = JoinSet::new();
        let counted = Arc::clone(&accepts);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("accepting on loopback");
                counted.fetch_add(1, SeqCst);
                let connection = Connection {
                    socket,
                    buffer: Vec::new(),
                    nth: 0,
                };
                connections.spawn(connection.serve(Arc::clone(&reply), Arc::clone(&reports)));
            }
        });
        Self {
            address,
            accepts,
            requests: Mutex::new(received),
            gone: Mutex::new(gone_received),
            _task: task,
        }
    }

    /// Answers every request with 200 and this body.
    pub async fn saying(body: &'static str) -> Self {
        Self::start(move |_| ok(body)).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn accepts(&self) -> usize {
        self.accepts.load(SeqCst)
    }

    /// The next request that is in, whole.
    pub async fn request(&self) -> Received {
        let next = self.requests.lock().await.recv().await;
        next.expect("the origin lives as long as its handle")
    }

    /// Requests that are in and were not asked for.
    pub async fn unread(&self) -> Vec<Received> {
        let mut requests = self.requests.lock().await;
        std::iter::from_fn(|| requests.try_recv().ok()).collect()
    }

    /// The next time a client leaves during [`Step::Stall`].
    pub async fn gone(&self) {
        let gone = self.gone.lock().await.recv().await;
        gone.expect("the origin lives as long as its handle");
    }
}

impl Connection {
    async fn serve(mut self, reply: Arc<impl Fn(&Received) -> Vec<Step>>, reports: Arc<Reports>) {
        while let Some(request) = self.request().await {
            let steps = reply(&request);
            // The test may be over.
            let _ = reports.requests.send(request);
            for step in steps {
                match step {
                    Step::Send(bytes) => {
                        if self.socket.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    Step::Wait(gate) => gate.passed().await,
                    Step::Stall => {
                        self.gone().await;
                        let _ = reports.gone.send(());
                        return;
                    }
                    Step::Close => return,
                    Step::Reset => {
                        self.socket.set_zero_linger().expect("an open socket");
                        return;
                    }
                }
            }
        }
    }

    async fn request(&mut self) -> Option<Received> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.read().await?;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("an ASCII head");
        let length = header(&head, "content-length").map_or(0, |l| l.parse().expect("a length"));
        while self.buffer.len() < length {
            self.read().await?;
        }
        let body = self.buffer.drain(..length).collect();
        self.nth += 1;
        let nth = self.nth - 1;
        Some(Received { head, body, nth })
    }

    async fn read(&mut self) -> Option<()> {
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => None,
            Ok(_) => Some(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("reading on loopback: {error}"),
        }
    }

    async fn gone(&mut self) {
        while self.read().await.is_some() {}
    }
}

impl Received {
    pub fn method(&self) -> &str {
        self.head.split(' ').next().expect("a request line")
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).expect("a request line")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub fn open(&self) {
        self.0.close();
    }

    async fn passed(&self) {
        // Closing the semaphore opens the gate: no permit is ever given.
        let _ = self.0.acquire().await;
    }
}

pub fn ok(body: &str) -> Vec<Step> {
    answer("200 OK", &[], body)
}

pub fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> Vec<Step> {
    let headers: String = headers
        .iter()
        .map(|(n, v)| format!("{n}: {v}\r\n"))
        .collect();
    let length = body.len();
    raw(&format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))
}

pub fn redirect(status: u16, location: &str) -> Vec<Step> {
    answer(
        &format!("{status} Moved"),
        &[("location", location)],
        "gone",
    )
}

pub fn raw(bytes: &str) -> Vec<Step> {
    vec![Step::Send(bytes.as_bytes().to_vec())]
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}
