//! Outbound as a whole, against origins on loopback sockets.
//!
//! Tests wait for events: a request that is in, a client that left, a count. Where time itself
//! is tested, it is with bounds that a slow machine keeps.

mod bursts;
mod guard;
mod joins;
mod leaving;
mod origin;
mod redirects;
mod responses;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use self::origin::Origin;
use super::resolve::Lookup;
use super::{FetchOutcome, Metrics, OriginLabel, Outbound};
use crate::config::{self, Allow};
use crate::plan::{Failure, Fetch, Gather, Join, Outcome, Plan, Response, Thing};
use crate::spool::Limit;

/// Long enough for any machine, short enough to see that something hangs.
const LONG: Duration = Duration::from_secs(20);

/// What outbound counted, so that tests can wait for it.
struct Counts {
    seen: watch::Sender<Vec<Count>>,
    in_flight: AtomicUsize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Count {
    Ended(String, FetchOutcome),
    Leftover,
}

impl Metrics for Counts {
    fn fetch_begun(&self, _: OriginLabel) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    fn fetch_ended(&self, origin: OriginLabel, outcome: FetchOutcome, seconds: f64) {
        assert!((0.0..LONG.as_secs_f64()).contains(&seconds));
        let ended = Count::Ended(origin.as_str().to_owned(), outcome);
        let in_flight = self.in_flight.fetch_sub(1, SeqCst);
        assert!(in_flight > 0, "{ended:?} has not begun");
        self.seen.send_modify(|counts| counts.push(ended));
    }

    fn leftover_fetch(&self) {
        self.seen.send_modify(|counts| counts.push(Count::Leftover));
    }
}

/// Outbound with its counts.
struct Harness {
    outbound: Outbound,
    counts: Arc<Counts>,
}

impl Harness {
    /// May reach the origins of these tests, and nothing else.
    fn new() -> Self {
        Self::with(&settings(&["127.0.0.1"]))
    }

    fn with(settings: &config::Outbound) -> Self {
        let nowhere: Lookup = Arc::new(|_| Box::pin(async { Ok(Vec::new()) }));
        Self::with_lookup(settings, nowhere)
    }

    fn with_lookup(settings: &config::Outbound, lookup: Lookup) -> Self {
        let counts = Arc::new(Counts {
            seen: watch::Sender::new(Vec::new()),
            in_flight: AtomicUsize::new(0),
        });
        let metrics = Arc::clone(&counts) as Arc<dyn Metrics>;
        let memory = Limit::new(crate::metrics::Metrics::new(&[]).body_memory_bytes());
        let outbound = Outbound::start_with(settings, metrics, memory, lookup);
        let outbound = outbound.expect("outbound starts");
        Self { outbound, counts }
    }

    async fn run(&self, join: Join, things: Vec<Thing>) -> Vec<Outcome> {
        self.run_for(LONG, join, things).await
    }

    async fn run_for(&self, time: Duration, join: Join, things: Vec<Thing>) -> Vec<Outcome> {
        let plan = plan(join, things);
        let results = self.outbound.run(plan, Instant::now() + time);
        timeout(2 * LONG, results).await.expect("plans end")
    }

    async fn fetch(&self, fetch: Fetch) -> Outcome {
        let results = self.run(Join::All, vec![Thing::Fetch(fetch)]).await;
        results.into_iter().next().expect("one thing, one result")
    }

    async fn response(&self, fetch: Fetch) -> Response {
        response(self.fetch(fetch).await)
    }

    async fn failure(&self, fetch: Fetch) -> Failure {
        failure(self.fetch(fetch).await)
    }

    /// Waits until so many fetches ended, and says how.
    async fn ended(&self, n: usize) -> Vec<FetchOutcome> {
        let counts = self.counted(|counts| outcomes(counts).len() >= n).await;
        outcomes(&counts)
    }

    async fn leftovers(&self, n: usize) {
        let is_leftover = |count: &&Count| **count == Count::Leftover;
        self.counted(|counts| counts.iter().filter(is_leftover).count() >= n)
            .await;
    }

    async fn counted(&self, enough: impl Fn(&[Count]) -> bool) -> Vec<Count> {
        let mut counts = self.counts.seen.subscribe();
        let counted = timeout(LONG, counts.wait_for(|counts| enough(counts))).await;
        let counted = counted.expect("it is counted in time");
        counted
            .expect("the counts live as long as the harness")
            .clone()
    }
}

fn outcomes(counts: &[Count]) -> Vec<FetchOutcome> {
    let ended = counts.iter().filter_map(|count| match count {
        Count::Ended(_, outcome) => Some(*outcome),
        Count::Leftover => None,
    });
    ended.collect()
}

/// With `public` and `*.names`, names, and addresses or networks as in the configuration.
fn settings(allow: &[&str]) -> config::Outbound {
    let entry = |text: &&str| match (text.parse(), text.parse::<IpAddr>()) {
        (Ok(net), _) => Allow::Net(net),
        (_, Ok(address)) => Allow::Net(address.into()),
        _ if *text == "public" => Allow::Public,
        _ => match text.strip_prefix("*.") {
            Some(parent) => Allow::Wildcard(parent.to_owned()),
            None => Allow::Name((*text).to_owned()),
        },
    };
    config::Outbound {
        allow: allow.iter().map(entry).collect(),
        timeout: LONG,
        max_response: 1 << 20,
        max_held: 1 << 30,
        label: vec!["127.0.0.1".to_owned()],
    }
}

/// A name lookup that always finds these, and counts how often it is asked.
fn always(addresses: &[&str]) -> (Lookup, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let found: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect(a)).collect();
    let lookup: Lookup = Arc::new(move |_| {
        count.fetch_add(1, SeqCst);
        let found = found.clone();
        Box::pin(async move { Ok(found) })
    });
    (lookup, asked)
}

fn plan(join: Join, things: Vec<Thing>) -> Plan {
    Plan {
        root: gather(join, things),
        hold: None,
    }
}

fn gather(join: Join, things: Vec<Thing>) -> Gather {
    Gather {
        things,
        join,
        timeout: None,
    }
}

fn get(url: impl Into<String>) -> Fetch {
    Fetch {
        method: Method::GET,
        url: url.into(),
        headers: HeaderMap::new(),
        timeout: None,
        follow: false,
        body: None,
        span: None,
    }
}

fn post(url: impl Into<String>, body: &'static str) -> Fetch {
    Fetch {
        method: Method::POST,
        body: Some(Bytes::from_static(body.as_bytes())),
        ..get(url)
    }
}

impl Fetch {
    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        let name = HeaderName::from_static(name);
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn following(self) -> Self {
        Self {
            follow: true,
            ..self
        }
    }

    fn within(self, time: Duration) -> Self {
        Self {
            timeout: Some(time),
            ..self
        }
    }
}

fn response(outcome: Outcome) -> Response {
    match outcome {
        Outcome::Response(response) => response,
        other => panic!("expected a response, got {other:?}"),
    }
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// A URL where nobody listens, as long as the socket lives: it keeps the port from others.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().expect("a socket");
    let any = "127.0.0.1:0".parse().expect("an address");
    socket.bind(any).expect("a loopback port");
    let url = format!("http://{}/", socket.local_addr().expect("it is bound"));
    (socket, url)
}
