//! The admin and probes listeners: metrics, health and status.
//!
//! They run on a thread of their own with a runtime of its own, so they answer while the
//! request path is as busy as can be, and they never wait for a slot. They see the gateway
//! only through [`Board`]. What a client of theirs can hold is bounded: connections, the
//! time to send a head, the life of a connection; only GET and HEAD are answered. Those who hold a
//! connection and ask nothing make way for those who come.

mod guests;
mod host;
mod page;
mod pages;
mod stacks;
mod status;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::descriptors::{Spare, is_shortage};
use crate::metrics::Metrics;
use crate::recent::{Recent, SAMPLE};
use crate::tcp_socket::{self, Place};
use guests::{Guest, Guests};
use pages::Sources;

pub use status::{
    Board, Job, Parked, Process, Queue, Readiness, Slot, SlotState, Slots, Status, Upstream,
    WaitsFor, WaitsInPlace,
};

const LIMITS: Limits = Limits {
    // Scrapers, kubelets and a few browsers need a dozen.
    connections: 128,
    // Also bounds how long an idle connection is kept. Whoever asks sends its head at once.
    head: Duration::from_secs(2),
    life: Duration::from_secs(120),
};

/// Largest request head; a few hundred bytes are usual.
const HEAD_BYTES: usize = 16 * 1024;

/// How long an answer under way may take once its connection is to end. Answers are made
/// in an instant, so this is for a client that reads slowly.
const GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed accept: it fails at once again while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Descriptors kept for a listener's connections when all others are taken: whoever wants to see why has
/// to get through.
const SPARE: usize = 4;

/// The running listeners. Dropping it ends them too, without waiting.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    probes_addr: Option<SocketAddr>,
    stop: DropGuard,
    thread: JoinHandle<()>,
}

/// Who asks: the other end of the connection.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// What the clients of one listener can hold.
#[derive(Clone, Copy)]
struct Limits {
    /// When there are more, those that ask nothing are closed; if all ask, the others wait.
    connections: usize,
    head: Duration,
    life: Duration,
}

impl Admin {
    /// Binds and begins to answer.
    ///
    /// # Errors
    /// An address cannot be bound; the error names it.
    pub fn start(
        admin: Place,
        probes: Option<Place>,
        board: Arc<dyn Board>,
        metrics: Metrics,
        recent: Recent,
    ) -> io::Result<Self> {
        Self::start_with(LIMITS, admin, probes, board, metrics, recent)
    }

    fn start_with(
        limits: Limits,
        admin: Place,
        probes: Option<Place>,
        board: Arc<dyn Board>,
        metrics: Metrics,
        recent: Recent,
    ) -> io::Result<Self> {
        let sampled = (recent.clone(), Arc::clone(&board));
        let sources = Sources {
            board,
            metrics,
            recent,
            started: Instant::now(),
        };
        let (listener, addr) = bind("admin", admin)?;
        let mut served = vec![(listener, pages::admin(sources.clone(), addr))];
        let mut probes_addr = None;
        if let Some(probes) = probes {
            let (listener, addr) = bind("probes", probes)?;
            served.push((listener, pages::probes(sources)));
            probes_addr = Some(addr);
        }

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("layby-admin".to_owned())
            .spawn(move || {
                let (recent, board) = sampled;
                runtime.block_on(async {
                    // Ends with the runtime.
                    tokio::spawn(sample(recent, board));
                    serve_all(served, limits, stopped).await;
                });
            })?;
        Ok(Self {
            addr,
            probes_addr,
            stop: stop.drop_guard(),
            thread,
        })
    }

    /// Where it listens, with the port that was chosen for port 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn probes_addr(&self) -> Option<SocketAddr> {
        self.probes_addr
    }

    /// Ends the listeners and waits for it, at most about a second.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            warn!("admin thread had panicked");
        }
    }
}

fn bind(name: &str, place: Place) -> io::Result<(TcpListener, SocketAddr)> {
    let bound = tcp_socket::bind(place, &[]).and_then(|listener| {
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    let addr = place.address;
    bound.map_err(|e| io::Error::new(e.kind(), format!("{name} listener on {addr}: {e}")))
}

/// Keeps what the plots show, for ever.
async fn sample(recent: Recent, board: Arc<dyn Board>) {
    let mut ticks = tokio::time::interval(SAMPLE);
    // The first tick is at once, and there is nothing to sample yet.
    ticks.tick().await;
    loop {
        let now = ticks.tick().await;
        recent.sample(board.levels(), now.into_std());
    }
}

async fn serve_all(served: Vec<(TcpListener, Router)>, limits: Limits, stop: CancellationToken) {
    let mut listeners = JoinSet::new();
    for (listener, router) in served {
        listeners.spawn(serve(listener, router, limits, stop.clone()));
    }
    listeners.join_all().await;
}

async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let listener = tokio::net::TcpListener::from_std(listener)
        .expect("the listener is non-blocking and this is a runtime with I/O");
    let mut guests = Guests::default();
    let mut connections = JoinSet::new();
    let mut spare = Spare::new(SPARE);
    loop {
        let accepted = tokio::select! {
            biased; // A stop must not starve behind connections.
            () = stop.cancelled() => break,
            // Keeps the set from growing, and takes its descriptor back if it was lent.
            Some(_) = connections.join_next() => {
                spare.refill();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                while connections.len() >= limits.connections {
                    guests.make_room();
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        Some(_) = connections.join_next() => spare.refill(),
                        // Somebody may have fallen silent meanwhile.
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
                let guest = guests.enter();
                connections.spawn(converse(
                    stream,
                    router.clone(),
                    limits,
                    guest,
                    stop.clone(),
                ));
            }
            // Tried again at once, with a descriptor that was kept for this.
            Err(error) if is_shortage(&error) && spare.give_up() => {}
            Err(error) => {
                warn!(%error, "admin listener could not accept");
                sleep(ACCEPT_PAUSE).await;
                spare.refill();
            }
        }
    }
    drop(listener);
    connections.join_all().await;
}

/// One connection, to its end.
async fn converse(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    guest: Arc<Guest>,
    stop: CancellationToken,
) {
    let Ok(peer) = stream.peer_addr() else {
        return; // It has left already.
    };
    let (asks, answered) = (Arc::clone(&guest), Arc::clone(&guest));
    let service = router
        .map_request(move |mut request: http::Request<Incoming>| {
            asks.asks();
            request.extensions_mut().insert(Peer(peer.ip()));
            request
        })
        .map_response(move |answer| {
            answered.is_answered();
            answer
        });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = until_its_end(&guest, limits.life, &stop) => {
            if guest.is_unheard() {
                return; // There is no answer to wait for.
            }
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended early");
    }
}

async fn until_its_end(guest: &Guest, life: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = guest.leaves() => {}
        () = stop.cancelled() => {}
        () = sleep(life) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;
    use std::sync::{Mutex, mpsc};

    use futures_util::future::{self, BoxFuture};
    use serde_json::{Value, json};

    use super::*;
    use crate::recent::{Levels, ShownPath};
    use crate::workers::link::{Call, NoStacks, Stacks};

    struct Desk {
        readiness: Mutex<Readiness>,
        /// Told of each stack that never comes.
        asked: (mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>),
    }

    impl Board for Desk {
        fn readiness(&self) -> Readiness {
            self.readiness
                .lock()
                .expect("no test panics with it held")
                .clone()
        }

        fn status(&self) -> Status {
            Status {
                draining: false,
                slots: Slots {
                    count: 2,
                    idle: 0,
                    busy: 1,
                    lost: 1,
                    list: vec![Slot {
                        slot: 0,
                        process: Some(1),
                        state: SlotState::Busy,
                        job: Some(Job {
                            request: 71,
                            request_id: "a1b2".to_owned(),
                            method: "POST".to_owned(),
                            path: ShownPath::new("/checkout/<script>\"'&?card=4111"),
                            route: None,
                            phase: "wait_in_place",
                            seconds: 0.25,
                        }),
                    }],
                },
                queue: Queue {
                    length: 3,
                    limit: 1000,
                },
                parked: Parked {
                    requests: 4,
                    limit: 10_000,
                    waits_for: vec![],
                },
                processes: vec![],
                upstreams: vec![],
                waits_in_place: vec![],
            }
        }

        fn levels(&self) -> Levels {
            Levels::default()
        }

        fn stacks(&self, slot: u16) -> Result<BoxFuture<'static, Option<Stacks>>, NoStacks> {
            let call = |file: &str, function: &str| Call {
                file: file.to_owned(),
                line: 88,
                function: function.to_owned(),
            };
            let stack = vec![
                call("/srv/layby/_slot.py", "Slot.run"),
                call("/srv/shop/<views>.py", "checkout"),
            ];
            match slot {
                0 => Ok(Box::pin(future::ready(Some(Stacks {
                    thread: Some(stack),
                    parked: vec![],
                })))),
                // Its interpreter is held.
                1 => {
                    self.asked.0.send(()).expect("the desk has both ends");
                    Ok(Box::pin(future::pending()))
                }
                2 => Err(NoStacks::Http),
                _ => Err(NoStacks::NoSlot),
            }
        }
    }

    fn desk() -> Arc<Desk> {
        let (tell, told) = mpsc::channel();
        Arc::new(Desk {
            readiness: Mutex::new(Readiness::Ready),
            asked: (tell, Mutex::new(told)),
        })
    }

    fn free_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn started(board: Arc<Desk>, limits: Limits) -> Admin {
        let probes = Some(free_port());
        let recent = Recent::new(Instant::now());
        Admin::start_with(
            limits,
            free_port().into(),
            probes.map(Place::from),
            board,
            Metrics::new(&[]),
            recent,
        )
        .expect("loopback ports are free")
    }

    fn probes(admin: &Admin) -> SocketAddr {
        admin.probes_addr().expect("it was asked for")
    }

    /// Status and text of the answer to one request under the given host.
    fn ask(addr: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).expect("it listens");
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.expect("a status line"), answer)
    }

    fn get(addr: SocketAddr, path: &str) -> (u16, String) {
        ask(addr, "GET", path, &addr.to_string())
    }

    #[test]
    fn metrics_and_health_are_on_both_listeners() {
        let admin = started(desk(), LIMITS);
        for addr in [admin.addr(), probes(&admin)] {
            let (status, metrics) = get(addr, "/metrics");
            assert_eq!(status, 200);
            assert!(metrics.contains("content-type: text/plain; version=0.0.4"));
            assert!(metrics.contains("layby_slots{state=\"idle\"} 0"));
            assert_eq!(get(addr, "/livez").0, 200);
            assert_eq!(get(addr, "/readyz").0, 200);
            assert_eq!(get(addr, "/nothing").0, 404);
        }
        admin.stop();
    }

    #[test]
    fn readiness_says_why_not() {
        let desk = desk();
        let admin = started(Arc::clone(&desk), LIMITS);
        *desk.readiness.lock().expect("not poisoned") = Readiness::NotReady("draining".to_owned());
        for addr in [admin.addr(), probes(&admin)] {
            let (status, text) = get(addr, "/readyz");
            assert_eq!(status, 503);
            assert!(text.ends_with("not ready: draining\n"), "{text}");
            assert_eq!(get(addr, "/livez").0, 200);
        }
    }

    #[test]
    fn status_is_json_and_shows_no_query() {
        let admin = started(desk(), LIMITS);
        let (status, answer) = get(admin.addr(), "/api/status");
        assert_eq!(status, 200);
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let page: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(page["ready"], json!(true));
        assert_eq!(page["version"], json!(env!("CARGO_PKG_VERSION")));
        assert_eq!(
            page["slots"]["list"][0],
            json!({
                "slot": 0, "process": 1, "state": "busy",
                "job": {
                    "request": 71, "request_id": "a1b2", "method": "POST", "path": "/checkout/<script>\"'&",
                    "route": null, "phase": "wait_in_place", "seconds": 0.25
                },
            })
        );
        assert_eq!(page["queue"], json!({"length": 3, "limit": 1000}));
    }

    #[test]
    fn the_page_is_whole_without_a_script_and_shows_paths_as_text() {
        let admin = started(desk(), LIMITS);
        let (status, page) = get(admin.addr(), "/");
        assert_eq!(status, 200);
        let (head, page) = page.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.contains("content-security-policy: default-src 'none'; "),
            "{head}"
        );
        assert!(
            head.contains("content-type: text/html; charset=utf-8"),
            "{head}"
        );
        let path = "/checkout/&lt;script&gt;&quot;&#39;&amp;</span>";
        assert!(page.contains(path), "{page}");
        assert!(!page.contains("4111") && !page.contains("/checkout/<script>"));
        assert!(
            page.contains("waits in place") && page.contains("250 ms"),
            "{page}"
        );
        assert!(page.contains("<table class=\"of-slots\">"), "{page}");
        // What the policy forbids is not there.
        for forbidden in [
            "<style",
            " style=",
            "onclick",
            "javascript:",
            "http:",
            "https:",
        ] {
            assert!(!page.contains(forbidden), "{forbidden} in {page}");
        }
        for asset in ["page.css", "page.js", "icon.svg"] {
            let path = format!("/assets/{asset}");
            assert!(page.contains(&path), "{path}");
            assert_eq!(get(admin.addr(), &path).0, 200, "{path}");
            assert_eq!(get(probes(&admin), &path).0, 404, "{path}");
        }
        assert_eq!(get(probes(&admin), "/").0, 404);
    }

    #[test]
    fn a_stack_is_told_as_a_page_and_as_json() {
        let admin = started(desk(), LIMITS);
        let (status, page) = get(admin.addr(), "/slots/0/stack");
        assert_eq!(status, 200);
        let inner = page
            .find("/srv/shop/&lt;views&gt;.py:88")
            .expect("its file");
        let outer = page.find("Slot.run").expect("its caller");
        assert!(inner < outer, "the innermost call comes first");
        let (status, answer) = get(admin.addr(), "/api/slots/0/stack");
        assert_eq!(status, 200);
        assert!(
            answer.contains(r#"{"file":"/srv/shop/<views>.py","line":88,"function":"checkout"}"#)
        );

        for (slot, expected, why) in [
            ("2", 501, "HTTP server"),
            ("7", 404, "no such slot"),
            ("x", 400, "Invalid URL"),
            ("70000", 400, "Invalid URL"),
        ] {
            for path in [
                format!("/slots/{slot}/stack"),
                format!("/api/slots/{slot}/stack"),
            ] {
                let (status, answer) = get(admin.addr(), &path);
                assert_eq!(status, expected, "{path}");
                assert!(answer.contains(why), "{answer}");
            }
        }
    }

    #[test]
    fn a_worker_that_does_not_tell_its_stack_is_given_up_soon() {
        let admin = started(desk(), LIMITS);
        let began = Instant::now();
        let (status, answer) = get(admin.addr(), "/api/slots/1/stack");
        assert_eq!(status, 504);
        assert!(answer.contains("interpreter is held"), "{answer}");
        assert!((1.9..4.0).contains(&began.elapsed().as_secs_f64()));
    }

    #[test]
    fn stacks_are_not_for_pages_of_others_nor_for_scrapers() {
        let admin = started(desk(), LIMITS);
        let asked_by = |site: &str| {
            let headers = format!("localhost\r\nSec-Fetch-Site: {site}");
            ask(admin.addr(), "GET", "/slots/0/stack", &headers).0
        };
        assert_eq!((asked_by("same-origin"), asked_by("none")), (200, 200));
        assert_eq!((asked_by("cross-site"), asked_by("same-site")), (403, 403));
        assert_eq!(
            ask(admin.addr(), "GET", "/slots/0/stack", "evil.example").0,
            421
        );
        assert_eq!(get(probes(&admin), "/slots/0/stack").0, 404);
        assert_eq!(get(probes(&admin), "/api/slots/0/stack").0, 404);
    }

    #[test]
    fn only_the_admin_listener_shows_the_status_and_only_under_its_own_host() {
        let admin = started(desk(), LIMITS);
        let (status, text) = ask(admin.addr(), "GET", "/api/status", "evil.example");
        assert_eq!(status, 421);
        assert!(text.contains("`probes`"), "{text}");
        assert!(!text.contains("slots"), "{text}");
        assert_eq!(ask(admin.addr(), "GET", "/nothing", "evil.example").0, 421);
        assert_eq!(ask(admin.addr(), "GET", "/", "localhost").0, 200);

        assert_eq!(get(probes(&admin), "/api/status").0, 404);
        assert_eq!(ask(probes(&admin), "GET", "/readyz", "pod-7.shop").0, 200);
    }

    #[test]
    fn nothing_but_reading_is_allowed() {
        let admin = started(desk(), LIMITS);
        for addr in [admin.addr(), probes(&admin)] {
            let host = addr.to_string();
            assert_eq!(ask(addr, "HEAD", "/livez", &host).0, 200);
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
                assert_eq!(ask(addr, method, "/metrics", &host).0, 405, "{method}");
            }
        }
    }

    #[test]
    fn an_address_in_use_is_an_error_that_names_it() {
        let taken = TcpListener::bind(free_port()).expect("a free port");
        let addr = taken.local_addr().expect("it is bound");
        let metrics = Metrics::new(&[]);
        let recent = Recent::new(Instant::now());
        let started = Admin::start(
            free_port().into(),
            Some(addr.into()),
            desk(),
            metrics,
            recent,
        );
        let error = started.expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(
            error
                .to_string()
                .starts_with("probes listener on 127.0.0.1:")
        );
    }

    #[test]
    fn a_client_that_sends_no_head_is_closed() {
        let head = Duration::from_millis(50);
        let admin = started(desk(), Limits { head, ..LIMITS });
        let mut stream = TcpStream::connect(admin.addr()).expect("it listens");
        stream.write_all(b"GET / HT").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a clean end");
        assert!(!answer.contains("200 OK"), "{answer}");
    }

    #[test]
    fn a_connection_has_an_end_however_lively() {
        let life = Duration::from_millis(50);
        let admin = started(desk(), Limits { life, ..LIMITS });
        let mut stream = TcpStream::connect(admin.addr()).expect("it listens");
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a clean end");
        assert!(answer.contains("200 OK"), "{answer}");
    }

    #[test]
    fn connections_past_the_bound_wait_for_a_place() {
        let desk = desk();
        let admin = started(
            Arc::clone(&desk),
            Limits {
                connections: 1,
                ..LIMITS
            },
        );
        let mut first = TcpStream::connect(admin.addr()).expect("it listens");
        // Its answer takes its time.
        first
            .write_all(b"GET /api/slots/1/stack HTTP/1.0\r\n\r\n")
            .expect("it reads");
        let asked = desk.asked.1.lock().expect("nobody panics with it");
        asked
            .recv_timeout(Duration::from_secs(10))
            .expect("it asks for the stack");
        let mut second = TcpStream::connect(admin.addr()).expect("the backlog takes it");
        second
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .expect("the kernel takes it");
        second
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a timeout");
        let mut byte = [0];
        let nothing = second.read(&mut byte).expect_err("no place yet");
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

        drop(first);
        second.set_read_timeout(None).expect("no timeout");
        let mut answer = String::new();
        second.read_to_string(&mut answer).expect("it answers");
        assert!(answer.contains("200 OK"), "{answer}");
    }

    #[test]
    fn who_asks_nothing_makes_way() {
        let limits = Limits {
            connections: 2,
            ..LIMITS
        };
        let admin = started(desk(), limits);
        let mut idle = TcpStream::connect(admin.addr()).expect("it listens");
        idle.write_all(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("it reads");
        idle.read_exact(&mut [0]).expect("it answers");
        let mut silent = TcpStream::connect(admin.addr()).expect("it listens");
        silent.write_all(b"GET / HT").expect("it reads");
        let began = Instant::now();
        for _ in 0..4 {
            assert_eq!(get(admin.addr(), "/livez").0, 200);
        }
        assert!(began.elapsed() < limits.head, "{:?}", began.elapsed());
        idle.read_to_end(&mut Vec::new()).expect("a clean end");
        admin.stop();
    }

    #[test]
    fn a_stop_closes_idle_connections_and_the_ports() {
        let admin = started(desk(), LIMITS);
        let (addr, probes) = (admin.addr(), probes(&admin));
        let mut idle = TcpStream::connect(addr).expect("it listens");
        idle.write_all(b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("it reads");
        idle.read_exact(&mut [0])
            .expect("it answers, so it accepted");
        admin.stop();
        idle.read_to_end(&mut Vec::new()).expect("a clean end");
        assert!(TcpStream::connect(addr).is_err());
        assert!(TcpStream::connect(probes).is_err());
    }
}
