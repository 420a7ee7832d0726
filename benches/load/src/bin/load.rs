//! A closed loop of HTTP clients: each sends a request, waits for the whole answer, and
//! sends the next on the same connection.
//!
//! Prints `begin` when the measured time begins, `end` when it is over, so that whoever
//! started it can look at the server at these moments, then one line of JSON. Only
//! answers that end within the measured time count, each with its own latency: nothing
//! is sampled. On standard output, for a program; see `benches/layby_bench/load.py`.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use layby_bench_load::{Interest, Poll, ResponseHead, head_length};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const USAGE: &str = "usage: load IP:PORT TARGET CLIENTS RAMP WARM-UP MEASURED PAUSE
CLIENTS begin one after the other over RAMP; after WARM-UP, time is MEASURED; each client
makes a PAUSE between an answer and its next request. Seconds, all of them.";

/// What a client that failed waits before it tries again, so that a server which is
/// gone does not make this program spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

struct Options {
    server: SocketAddrV4,
    target: String,
    clients: usize,
    ramp: Duration,
    warm_up: Duration,
    measured: Duration,
    pause: Duration,
}

struct Client {
    state: State,
    /// The part of an answer that came before the rest of it.
    partial: Vec<u8>,
    sent: Instant,
}

enum State {
    /// → Connecting, when due
    Away,
    /// → Waiting, Away
    Connecting(TcpStream),
    /// → Waiting, Pausing, Away
    Waiting(TcpStream),
    /// → Waiting, when due
    Pausing(TcpStream),
}

#[derive(Default)]
struct Counts {
    statuses: BTreeMap<u16, u64>,
    failures: BTreeMap<&'static str, u64>,
    closed: u64,
    /// Of the answers with status 200, in microseconds.
    latencies: Vec<u32>,
    /// Of all others.
    refused: Vec<u32>,
}

struct Load {
    poll: Poll,
    options: Options,
    request: Vec<u8>,
    clients: Vec<Client>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    counts: Option<Counts>,
    buffer: Vec<u8>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let load = Load::new(parse(&arguments).ok_or(USAGE)?)?;
    let (counts, seconds) = load.run()?;
    println!("{}", counts.json(seconds));
    Ok(())
}

fn parse(arguments: &[String]) -> Option<Options> {
    let [server, target, clients, times @ ..] = arguments else {
        return None;
    };
    let times: Vec<Duration> = times
        .iter()
        .map(|time| Duration::try_from_secs_f64(time.parse().ok()?).ok())
        .collect::<Option<_>>()?;
    let &[ramp, warm_up, measured, pause] = times.as_slice() else {
        return None;
    };
    Some(Options {
        server: server.parse().ok()?,
        target: target.clone(),
        clients: clients.parse().ok()?,
        ramp,
        warm_up,
        measured,
        pause,
    })
}

impl Load {
    fn new(options: Options) -> io::Result<Self> {
        let begin = Instant::now();
        let gap = options.ramp / options.clients.max(1) as u32;
        let away = || Client {
            state: State::Away,
            partial: Vec::new(),
            sent: begin,
        };
        // What a browser sends: servers differ in what a header costs them.
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench\r\n\
             Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n\
             Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\n\
             Cookie: theme=dark; consent=yes\r\n\r\n",
            options.target, options.server
        );
        Ok(Self {
            poll: Poll::new()?,
            request: request.into_bytes(),
            clients: (0..options.clients).map(|_| away()).collect(),
            due: (0..options.clients)
                .map(|number| Reverse((begin + gap * number as u32, number)))
                .collect(),
            counts: None,
            buffer: vec![0; 64 * 1024],
            options,
        })
    }

    fn run(mut self) -> io::Result<(Counts, f64)> {
        let mut begin = Instant::now() + self.options.warm_up;
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            if self.counts.is_none() && now >= begin {
                begin = now;
                self.counts = Some(Counts::default());
                say("begin")?;
            }
            let mut until = begin;
            if self.counts.is_some() {
                until += self.options.measured;
            }
            if now >= until
                && let Some(counts) = self.counts.take()
            {
                say("end")?;
                return Ok((counts, (now - begin).as_secs_f64()));
            }
            if let Some(&Reverse((at, _))) = self.due.peek() {
                until = until.min(at);
            }
            self.poll.wait(Some(until), &mut ready)?;
            for number in ready.drain(..) {
                self.event(number)?;
            }
            self.begin_what_is_due()?;
        }
    }

    fn begin_what_is_due(&mut self) -> io::Result<()> {
        let now = Instant::now();
        while let Some(&Reverse((at, number))) = self.due.peek() {
            if at > now {
                break;
            }
            self.due.pop();
            match std::mem::replace(&mut self.clients[number].state, State::Away) {
                State::Away => self.connect(number)?,
                State::Pausing(socket) => self.send(number, socket),
                busy => self.clients[number].state = busy,
            }
        }
        Ok(())
    }

    fn connect(&mut self, number: usize) -> io::Result<()> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        match rustix::net::connect(&socket, &self.options.server) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(_) => {
                self.fail(number, "connect");
                return Ok(());
            }
        }
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        self.poll.add(&socket, number, Interest::OUT)?;
        self.clients[number].state = State::Connecting(socket);
        Ok(())
    }

    fn event(&mut self, number: usize) -> io::Result<()> {
        match std::mem::replace(&mut self.clients[number].state, State::Away) {
            State::Away => {}
            State::Connecting(socket) => match socket.take_error()? {
                Some(_) => self.fail(number, "connect"),
                None => {
                    self.poll.change(&socket, number, Interest::IN)?;
                    self.send(number, socket);
                }
            },
            State::Waiting(socket) => self.receive(number, socket),
            // Nothing is expected here but the end of the connection.
            State::Pausing(_) => self.closed(number),
        }
        Ok(())
    }

    fn send(&mut self, number: usize, mut socket: TcpStream) {
        let client = &mut self.clients[number];
        client.sent = Instant::now();
        // A request this small always fits the socket's buffer.
        match socket.write_all(&self.request) {
            Ok(()) => client.state = State::Waiting(socket),
            Err(_) => self.fail(number, "reset"),
        }
    }

    fn receive(&mut self, number: usize, mut socket: TcpStream) {
        let client = &mut self.clients[number];
        let length = match socket.read(&mut self.buffer) {
            Ok(0) => return self.fail(number, "cut"),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.state = State::Waiting(socket);
                return;
            }
            Err(_) => return self.fail(number, "reset"),
        };
        let mut received = &self.buffer[..length];
        if !client.partial.is_empty() {
            client.partial.extend_from_slice(received);
            received = &client.partial;
        }
        let Some(head) = head_length(received) else {
            return self.wait_for_more(number, socket, length);
        };
        let parsed = ResponseHead::parse(&received[..head]);
        let Some((parsed, body)) = parsed.and_then(|head| head.body.map(|body| (head, body)))
        else {
            return self.fail(number, "unframed");
        };
        match received.len().cmp(&(head + body)) {
            Ordering::Less => return self.wait_for_more(number, socket, length),
            Ordering::Equal => {}
            // Nothing was asked for that could be in these bytes.
            Ordering::Greater => return self.fail(number, "surplus"),
        }
        client.partial.clear();
        self.answered(number, &parsed);
        if parsed.close {
            self.closed(number);
        } else if self.options.pause.is_zero() {
            self.send(number, socket);
        } else {
            self.clients[number].state = State::Pausing(socket);
            self.later(number, self.options.pause);
        }
    }

    fn wait_for_more(&mut self, number: usize, socket: TcpStream, length: usize) {
        let client = &mut self.clients[number];
        if client.partial.is_empty() {
            client.partial.extend_from_slice(&self.buffer[..length]);
        }
        client.state = State::Waiting(socket);
    }

    fn answered(&mut self, number: usize, head: &ResponseHead) {
        let Some(counts) = &mut self.counts else {
            return;
        };
        *counts.statuses.entry(head.status).or_default() += 1;
        let latency = self.clients[number].sent.elapsed().as_micros() as u32;
        match head.status {
            200 => counts.latencies.push(latency),
            _ => counts.refused.push(latency),
        }
    }

    /// The server ended the connection between two requests, as it may.
    fn closed(&mut self, number: usize) {
        if let Some(counts) = &mut self.counts {
            counts.closed += 1;
        }
        self.later(number, self.options.pause);
    }

    fn fail(&mut self, number: usize, reason: &'static str) {
        if let Some(counts) = &mut self.counts {
            *counts.failures.entry(reason).or_default() += 1;
        }
        self.clients[number].partial.clear();
        self.later(number, AFTER_FAILURE);
    }

    fn later(&mut self, number: usize, pause: Duration) {
        self.due.push(Reverse((Instant::now() + pause, number)));
    }
}

impl Counts {
    fn json(mut self, seconds: f64) -> String {
        self.latencies.sort_unstable();
        self.refused.sort_unstable();
        format!(
            "{{\"seconds\": {seconds}, \"ok\": {}, \"statuses\": {}, \"failures\": {}, \
             \"closed\": {}, \"p50_ms\": {}, \"p99_ms\": {}, \"max_ms\": {}, \
             \"refused_p50_ms\": {}, \"refused_p99_ms\": {}}}",
            self.latencies.len(),
            object(&self.statuses),
            object(&self.failures),
            self.closed,
            ms(&self.latencies, 0.50),
            ms(&self.latencies, 0.99),
            ms(&self.latencies, 1.0),
            ms(&self.refused, 0.50),
            ms(&self.refused, 0.99),
        )
    }
}

/// The latency that this share of them stays below.
fn ms(sorted: &[u32], share: f64) -> String {
    let last = sorted.len().saturating_sub(1);
    let at = sorted.get((last as f64 * share).round() as usize);
    at.map_or("null".into(), |us| format!("{}", f64::from(*us) / 1e3))
}

fn object<K: std::fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
    let members: Vec<String> = counts
        .iter()
        .map(|(key, count)| format!("\"{key}\": {count}"))
        .collect();
    format!("{{{}}}", members.join(", "))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
