//! What a proxy is measured in front of: an HTTP server on a Unix socket that answers `GET /1024` at once,
//! with so many bytes.
//!
//! It costs less than any proxy, so that a proxy can be busy all the time while this is not.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use layby_bench_load::{Interest, Poll, head_length};

const USAGE: &str = "usage: upstream PATH";
const LISTENER: usize = usize::MAX;
const MOST_HEAD: usize = 64 * 1024;
/// The longest body that is made.
const MOST: usize = 16 * 1024 * 1024;

/// A client; one request at a time.
struct Client {
    socket: UnixStream,
    received: Vec<u8>,
    /// An answer that did not fit into the socket: its length, and how much of it did.
    unsent: Option<(usize, usize)>,
}

struct Upstream {
    poll: Poll,
    listener: UnixListener,
    /// Each at the number of its descriptor.
    clients: Vec<Option<Client>>,
    /// By the length of their bodies.
    answers: BTreeMap<usize, Vec<u8>>,
    buffer: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or(USAGE)?;
    let listener = UnixListener::bind(path)?;
    // The standard library listens with a short backlog; a burst of connects needs more.
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    println!("upstream listens");
    let upstream = Upstream {
        poll: Poll::new()?,
        listener,
        clients: Vec::new(),
        answers: BTreeMap::new(),
        buffer: vec![0; 16 * 1024],
    };
    Ok(upstream.run()?)
}

impl Upstream {
    fn run(mut self) -> io::Result<()> {
        self.poll.add(&self.listener, LISTENER, Interest::IN)?;
        let mut ready = Vec::new();
        loop {
            self.poll.wait(None, &mut ready)?;
            for token in ready.drain(..) {
                if token == LISTENER {
                    self.accept()?;
                } else if !self.serve(token)? {
                    self.clients[token] = None;
                }
            }
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
            let number = socket.as_raw_fd() as usize;
            self.poll.add(&socket, number, Interest::IN)?;
            if number >= self.clients.len() {
                self.clients.resize_with(number + 1, || None);
            }
            self.clients[number] = Some(Client {
                socket,
                received: Vec::new(),
                unsent: None,
            });
        }
    }

    /// Goes on where the client is. False if it is to be let go.
    fn serve(&mut self, number: usize) -> io::Result<bool> {
        let Some(client) = &mut self.clients[number] else {
            return Ok(true);
        };
        let was_unsent = client.unsent.is_some();
        if !was_unsent {
            match client.socket.read(&mut self.buffer) {
                Ok(length) if length > 0 => {
                    client.received.extend_from_slice(&self.buffer[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                _ => return Ok(false),
            }
            let Some(head) = head_length(&client.received) else {
                return Ok(client.received.len() <= MOST_HEAD);
            };
            let Some(length) = requested(&client.received[..head]) else {
                return Ok(false);
            };
            client.received.clear();
            client.unsent = Some((length, 0));
        }
        let Some((length, mut sent)) = client.unsent else {
            return Ok(true);
        };
        let answer = self.answers.entry(length).or_insert_with(|| answer(length));
        while sent < answer.len() {
            match client.socket.write(&answer[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(false),
            }
        }
        client.unsent = (sent < answer.len()).then_some((length, sent));
        if client.unsent.is_some() != was_unsent {
            let next = if was_unsent {
                Interest::IN
            } else {
                Interest::OUT
            };
            self.poll.change(&client.socket, number, next)?;
        }
        Ok(true)
    }
}

fn answer(length: usize) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream";
    let mut answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + length, b'x');
    answer
}

/// The length in `GET /1024 HTTP/1.1`; none for any other request.
fn requested(head: &[u8]) -> Option<usize> {
    let target = head.strip_prefix(b"GET /")?;
    let digits = target.split(|byte| !byte.is_ascii_digit()).next()?;
    let length = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (length <= MOST).then_some(length)
}
