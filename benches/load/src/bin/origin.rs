//! The third party of a benchmark: `GET /500` is answered 200 after 500 ms.
//!
//! A request that waits is an entry in a heap, so that ten thousand of them, or ten
//! thousand a second, cost a small part of one core.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use layby_bench_load::{Interest, Poll, head_length};

const LISTENER: usize = usize::MAX;
const MOST_HEAD: usize = 64 * 1024;
const BODY: &str = r#"{"carrier": "Postal Owl", "days": 2, "cents": 390}"#;

/// A client; one request at a time.
struct Client {
    socket: TcpStream,
    received: Vec<u8>,
    /// Tells this client from an earlier one with the same number.
    since: u64,
}

struct Origin {
    answer: Vec<u8>,
    poll: Poll,
    listener: TcpListener,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    accepted: u64,
    due: BinaryHeap<Reverse<(Instant, usize, u64)>>,
}

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    // The standard library listens with a short backlog; a burst of connects needs more.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    println!("origin on port {}", listener.local_addr()?.port());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
    let length = BODY.len();
    Origin {
        answer: format!("{head}\r\ncontent-length: {length}\r\n\r\n{BODY}").into_bytes(),
        poll: Poll::new()?,
        listener,
        clients: Vec::new(),
        free: Vec::new(),
        accepted: 0,
        due: BinaryHeap::new(),
    }
    .run()
}

impl Origin {
    fn run(mut self) -> io::Result<()> {
        self.poll.add(&self.listener, LISTENER, Interest::IN)?;
        let mut ready = Vec::new();
        loop {
            let next = self.due.peek().map(|Reverse((at, ..))| *at);
            self.poll.wait(next, &mut ready)?;
            for token in ready.drain(..) {
                match token {
                    LISTENER => self.accept()?,
                    number => self.read(number),
                }
            }
            self.answer_what_is_due();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            let number = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            self.poll.add(&socket, number, Interest::IN)?;
            self.accepted += 1;
            self.clients[number] = Some(Client {
                socket,
                received: Vec::new(),
                since: self.accepted,
            });
        }
    }

    fn read(&mut self, number: usize) {
        let Some(client) = &mut self.clients[number] else {
            return;
        };
        let mut bytes = [0; 16 * 1024];
        match client.socket.read(&mut bytes) {
            Ok(length) if length > 0 => client.received.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.forget(number),
        }
        match head_length(&client.received) {
            Some(length) => {
                let Some(wait) = requested_wait(&client.received[..length]) else {
                    return self.forget(number);
                };
                client.received.clear();
                let entry = (Instant::now() + wait, number, client.since);
                self.due.push(Reverse(entry));
            }
            None if client.received.len() > MOST_HEAD => self.forget(number),
            None => {}
        }
    }

    fn answer_what_is_due(&mut self) {
        let now = Instant::now();
        while let Some(&Reverse((at, number, since))) = self.due.peek() {
            if at > now {
                return;
            }
            self.due.pop();
            let Some(client) = &mut self.clients[number] else {
                continue;
            };
            // An answer this small always fits the socket's buffer.
            if client.since == since && client.socket.write_all(&self.answer).is_err() {
                self.forget(number);
            }
        }
    }

    fn forget(&mut self, number: usize) {
        self.clients[number] = None;
        self.free.push(number);
    }
}

/// The milliseconds in `GET /500 HTTP/1.1`; none for any other request.
fn requested_wait(head: &[u8]) -> Option<Duration> {
    let target = head.strip_prefix(b"GET /")?;
    let digits = target.split(|byte| !byte.is_ascii_digit()).next()?;
    let milliseconds = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_millis(milliseconds))
}
