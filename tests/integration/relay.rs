//! Relays: another server's response as the answer, byte by byte, with no slot held.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::frames::{flag, kind};
use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::origin;
use crate::support::plan::Plan;
use crate::support::worker::{self, Worker};
use crate::support::{takes, within};

/// An origin whose every byte is the test's.
struct Streaming(TcpListener);

struct Exchange {
    stream: TcpStream,
    head: String,
}

impl Streaming {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        Self(listener.expect("loopback has a free port"))
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    fn url(&self) -> String {
        format!("http://{}/stream", self.address())
    }

    /// The next request, without a body.
    async fn request(&self) -> Exchange {
        let accepted = within("a connection to the origin", self.0.accept()).await;
        let (mut stream, _) = accepted.expect("it listens");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = within("a request", stream.read_u8()).await;
            head.push(byte.expect("a whole head"));
        }
        let head = String::from_utf8(head).expect("text");
        Exchange { stream, head }
    }
}

impl Exchange {
    async fn say(&mut self, text: &str) {
        let said = self.stream.write_all(text.as_bytes()).await;
        said.expect("the gateway listens");
    }

    /// A head whose body comes in chunks.
    async fn begin(&mut self) {
        self.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await;
    }

    async fn chunk(&mut self, text: &str) {
        self.say(&format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    async fn end(&mut self) {
        self.say("0\r\n\r\n").await;
    }

    /// Waits until the gateway has closed.
    async fn aborted(&mut self) {
        let read = within("the end of the fetch", self.stream.read_u8()).await;
        assert!(read.is_err(), "the gateway said more");
    }
}

fn get(url: &str) -> Value {
    json!({ "fetch": { "method": "GET", "url": url } })
}

fn with_end(url: &str, capture: u64) -> Value {
    json!({ "fetch": { "method": "GET", "url": url }, "capture": capture, "resume": true })
}

/// One slot whose `/relay` does this, and what it heard of the end.
async fn relaying(builder: gateway::Builder, relay: Value) -> (Gateway, Worker, Ends) {
    let gateway = builder.run().await;
    let (ended, ends) = unbounded_channel();
    let relay = Arc::new(relay);
    let worker = worker::new(1)
        .on("/relay", move |mut job| {
            let (relay, ended) = (Arc::clone(&relay), ended.clone());
            async move {
                if relay["resume"] != true {
                    return job.relay(&relay).await;
                }
                let end = job.relay_to_its_end(&relay).await?;
                let text = String::from_utf8_lossy(&end.bytes).into_owned();
                ended.send((end.json, text)).expect("the test listens");
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    (gateway, worker, Ends(ends))
}

/// How long that takes is up to what it says and to who reads it.
#[tokio::test]
async fn a_relays_time_is_the_origins_to_its_head() {
    let origin = Streaming::start().await;
    let allowed = gateway::new(1).set("outbound.allow", "127.0.0.1");
    let (gateway, _worker, _) = relaying(allowed, get(&origin.url())).await;
    let asked = Instant::now();
    let mut client = gateway.connect().await;
    client.send("GET /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("first").await;
    let head = client.head().await;
    let (to_head, begun) = (asked.elapsed(), Instant::now());
    while begun.elapsed() < 2 * to_head {
        tokio::time::sleep(to_head).await;
    }
    exchange.end().await;
    client.body(&head, "GET").await;
    let series = |of: &str| format!("layby_fetch_seconds_{of}{{origin=\"other\"}}");
    gateway.until_metric(&series("count"), |n| n == 1.0).await;
    let seconds = gateway.metric(&series("sum")).await;
    assert!(seconds <= to_head.as_secs_f64(), "{seconds} s");
}

struct Ends(UnboundedReceiver<(Value, String)>);

impl Ends {
    /// How the next one ended.
    async fn next(&mut self) -> (Value, String) {
        let end = within("a RESUME after a relay", self.0.recv()).await;
        end.expect("the worker lives")
    }
}

fn end(status: Option<u16>, body: &str, truncated: bool, ended: &str) -> (Value, String) {
    let json = json!({
        "status": status, "body": [0, body.len()], "truncated": truncated, "ended": ended,
    });
    (json, body.to_owned())
}

async fn fetches(gateway: &Gateway, outcome: &str) -> f64 {
    let series = format!("layby_fetches_total{{origin=\"other\",outcome=\"{outcome}\"}}");
    gateway.metric(&series).await
}

#[tokio::test]
async fn the_bytes_reach_the_client_as_they_come_and_no_slot_is_held() {
    let origin = Streaming::start().await;
    let relay = with_end(&origin.url(), 65_536);
    let (gateway, worker, mut ends) = relaying(gateway::new(1), relay).await;
    let mut client = gateway.connect().await;
    client.send("GET /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut exchange = origin.request().await;
    assert!(exchange.head.starts_with("GET /stream HTTP/1.1\r\n"));
    exchange.begin().await;
    exchange.chunk("one ").await;

    let head = client.head().await;
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    client.holds("4\r\none \r\n".len()).await;
    let status = gateway.status().await;
    assert_eq!((status.idle, status.parked), (1, 1));
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(fetches(&gateway, "ok").await, 0.0);

    exchange.chunk("two ").await;
    client.holds("4\r\none \r\n4\r\ntwo \r\n".len()).await;
    exchange.end().await;
    let body = client.body(&head, "GET").await;
    assert_eq!(body, Body::Whole(b"one two ".to_vec()));
    let all = end(Some(200), "one two ", false, "complete");
    assert_eq!(ends.next().await, all);
    gateway.rests().await;
    assert_eq!(fetches(&gateway, "ok").await, 1.0);
    let resumes = worker
        .frames()
        .iter()
        .filter(|it| **it == kind::RESUME)
        .count();
    assert_eq!(resumes, 1);

    // And the connection goes on.
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
}

#[tokio::test]
async fn the_worker_adds_headers_and_the_hop_keeps_its_own() {
    let answer = "HTTP/1.1 418 Teapot\r\nContent-Length: 4\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
                  Keep-Alive: timeout=5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nVary: Accept\r\n\
                  Content-Type: text/event-stream\r\n\r\ntea\n";
    let origin = origin::saying(answer.as_bytes()).await;
    let relay = json!({
        "fetch": { "method": "GET", "url": origin.url("/") },
        "headers": [["vary", "Cookie"], ["x-name", "caf\u{e9}"], ["content-length", "9"]],
    });
    let (gateway, _worker, _) = relaying(gateway::new(1), relay).await;
    let answer = gateway.get("/relay").await;
    assert_eq!((answer.status(), answer.text()), (418, "tea\n"));
    assert_eq!(answer.head.header_lines("set-cookie"), ["a=1", "b=2"]);
    for (name, value) in [
        ("content-length", Some("4")),
        ("vary", Some("Cookie")),
        ("x-name", Some("caf\u{e9}")),
        ("content-type", Some("text/event-stream")),
        ("x-hop", None),
        ("keep-alive", None),
        ("connection", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    gateway.rests().await;
    assert_eq!(fetches(&gateway, "http_error").await, 1.0);
}

#[tokio::test]
async fn a_worker_that_does_not_ask_hears_nothing() {
    let origin = origin::answering("said").await;
    let (gateway, worker, _) = relaying(gateway::new(1), get(&origin.url("/"))).await;
    assert_eq!(gateway.get("/relay").await.ok(), "said");
    gateway.rests().await;
    assert!(!worker.frames().contains(&kind::RESUME));
}

#[tokio::test]
async fn the_beginning_is_captured_and_the_rest_only_passed_on() {
    let large = "0123456789abcdef".repeat(1 << 16);
    let origin = origin::answering(&large).await;
    for capture in [0, 10, 300_000, 5_000_000] {
        let relay = with_end(&origin.url("/"), capture);
        let (gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;
        assert!(gateway.get("/relay").await.ok() == large);
        let (json, text) = ends.next().await;
        // A worker gets a mebibyte at most, and this is one.
        assert!(text == large[..large.len().min(capture as usize)]);
        assert_eq!(json["truncated"], capture < large.len() as u64);
        assert_eq!(json["ended"], "complete");
        gateway.rests().await;
        gateway
            .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
            .await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_fetch() {
    let origin = Streaming::start().await;
    let mut relay = with_end(&origin.url(), 100);
    relay["fetch"]["method"] = "POST".into();
    let (gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;

    let mut client = gateway.connect().await;
    client.send("GET /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("one ").await;
    client.head().await;
    client.holds("4\r\none \r\n".len()).await;
    drop(client);
    exchange.aborted().await;
    assert_eq!(
        ends.next().await,
        end(Some(200), "one ", false, "client_gone")
    );

    let early = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    early.leave().await;
    exchange.aborted().await;
    assert_eq!(ends.next().await, end(None, "", false, "client_gone"));
    gateway.rests().await;
    assert_eq!(fetches(&gateway, "aborted").await, 2.0);
    let left = "layby_requests_cancelled_total{phase=\"parked\"}";
    assert_eq!(gateway.metric(left).await, 2.0);
}

#[tokio::test]
async fn a_client_that_knows_the_last_part_need_not_wait_for_the_end() {
    let origin = Streaming::start().await;
    let relay = with_end(&origin.url(), 100);
    let (gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send("GET /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut exchange = origin.request().await;
        exchange
            .say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
            .await;
        exchange.say("6\r\n[DONE]\r\n0\r\n\r\n").await;
        client.head().await;
        client.holds("6\r\n[DONE]".len()).await;
        drop(client);
        let all = end(Some(200), "[DONE]", false, "complete");
        assert_eq!(ends.next().await, all);
    }
    gateway.rests().await;
}

#[tokio::test]
async fn an_origin_that_stops_is_seen_as_a_cut() {
    let origin = Streaming::start().await;
    let (gateway, _worker, mut ends) =
        relaying(gateway::new(1), with_end(&origin.url(), 100)).await;
    let answer = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("one ").await;
    drop(exchange);
    assert_eq!(answer.await.body, Body::Cut(b"one ".to_vec()));
    assert_eq!(
        ends.next().await,
        end(Some(200), "one ", false, "origin_failed")
    );
    gateway.rests().await;
    assert_eq!(fetches(&gateway, "connect").await, 1.0);
}

#[tokio::test]
async fn an_origin_that_pauses_longer_than_its_fetch_may_take_is_cut() {
    let origin = Streaming::start().await;
    let mut relay = with_end(&origin.url(), 100);
    relay["fetch"]["timeout"] = 0.2.into();
    let (gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;
    let answer = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("one ").await;
    exchange.aborted().await;
    assert_eq!(answer.await.body, Body::Cut(b"one ".to_vec()));
    let (json, _) = ends.next().await;
    assert_eq!(json["ended"], "origin_failed");
    assert_eq!(fetches(&gateway, "timeout").await, 1.0);
}

#[tokio::test]
async fn no_response_is_a_bad_gateway_that_says_why() {
    let taken = Streaming::start().await;
    let closed = taken.url();
    drop(taken);
    let garbage = origin::saying(b"this is not HTTP").await;
    for (url, text) in [
        (closed, "did not"),
        (garbage.url("/"), "did not"),
        (
            "http://10.1.2.3/".to_owned(),
            "from where the gateway may not fetch",
        ),
        (
            "file:///etc/passwd".to_owned(),
            "from where the gateway may not fetch",
        ),
    ] {
        let (gateway, _worker, mut ends) = relaying(gateway::new(1), with_end(&url, 100)).await;
        let answer = gateway.get("/relay").await;
        assert_eq!(answer.status(), 502, "{url}");
        assert!(answer.text().contains(text), "{url}: {}", answer.text());
        assert_eq!(ends.next().await, end(None, "", false, "origin_failed"));
        gateway.logged("relay failed").await;
        gateway.rests().await;
    }
}

#[tokio::test]
async fn a_redirect_leads_no_further_than_the_policy_lets() {
    let hop = origin::redirecting("http://10.1.2.3/metadata?token=s3cret").await;
    let mut relay = get(&hop.url("/"));
    relay["fetch"]["follow"] = true.into();
    let (gateway, _worker, _) = relaying(gateway::new(1), relay).await;
    let answer = gateway.get("/relay").await;
    assert_eq!(answer.status(), 502);
    assert!(answer.text().contains("may not fetch"), "{}", answer.text());
    let logged = gateway.logged("relay failed").await;
    assert!(logged.contains("phase=\"redirect\""), "{logged}");
    assert!(!logged.contains("s3cret"), "{logged}");
    assert_eq!(fetches(&gateway, "refused").await, 1.0);
}

#[tokio::test]
async fn a_relay_may_answer_an_upload_that_nobody_reads() {
    let origin = origin::answering("said").await;
    let lazy = "[[route]]\npath = \"/relay\"\nbody = \"lazy\"";
    let relay = with_end(&origin.url("/"), 100);
    let (gateway, _worker, mut ends) = relaying(gateway::new(1).file(lazy), relay).await;
    let mut client = gateway.connect().await;
    let head = "POST /relay HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    client.send(head.to_owned() + "some of it").await;
    let answer = client.response().await;
    assert_eq!(answer.ok(), "said");
    assert_eq!(answer.header("connection"), Some("close"));
    client.closed().await;
    assert_eq!(ends.next().await.0["ended"], "complete");
    gateway.rests().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_is_a_bad_gateway_at_the_fetchs_timeout() {
    let origin = origin::stalled().await;
    let mut relay = get(&origin.url("/"));
    relay["fetch"]["timeout"] = 0.3.into();
    let (gateway, _worker, _) = relaying(gateway::new(1), relay).await;
    takes(Duration::from_millis(300), async || {
        let answer = gateway.get("/relay").await;
        assert_eq!(answer.status(), 502);
        assert!(answer.text().contains("too long"), "{}", answer.text());
    })
    .await;
    gateway.rests().await;
}

#[tokio::test]
async fn the_requests_deadline_is_for_the_head_alone() {
    let stalled = origin::stalled().await;
    let timeout = || gateway::new(1).set("slots.request_timeout", "300ms");
    let (gateway, _worker, mut ends) = relaying(timeout(), with_end(&stalled.url("/"), 0)).await;
    takes(Duration::from_millis(300), async || {
        assert_eq!(gateway.get("/relay").await.status(), 504);
        assert_eq!(ends.next().await, end(None, "", false, "origin_failed"));
    })
    .await;

    let origin = Streaming::start().await;
    let (gateway, _worker, mut ends) = relaying(timeout(), with_end(&origin.url(), 100)).await;
    let answer = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    exchange.begin().await;
    for chunk in ["one ", "two ", "three ", "four "] {
        // A stream's own pace; together it takes longer than a request may to its head.
        tokio::time::sleep(Duration::from_millis(100)).await;
        exchange.chunk(chunk).await;
    }
    exchange.end().await;
    assert_eq!(answer.await.ok(), "one two three four ");
    assert_eq!(ends.next().await.0["ended"], "complete");
    gateway.rests().await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_origin_back_and_nothing_is_spooled() {
    let origin = Streaming::start().await;
    let (gateway, _worker, _) = relaying(gateway::new(1), get(&origin.url())).await;
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut exchange = origin.request().await;
    exchange.begin().await;
    let chunk = [b"10000\r\n", &vec![b'x'; 1 << 16][..], b"\r\n"].concat();
    let mut written = 0;
    let pause = Duration::from_millis(500);
    // Until the origin can write no more: the buffers of two connections, and a few chunks between.
    while let Ok(said) = tokio::time::timeout(pause, exchange.stream.write_all(&chunk)).await {
        said.expect("the gateway listens");
        written += 1 << 16;
        assert!(written < 64 << 20, "the origin is not held back");
    }
    assert_eq!(gateway.metric("layby_spool_bytes").await, 0.0);
    drop(reader);
    exchange.stream.shutdown().await.ok();
    gateway.rests().await;
}

#[tokio::test]
async fn the_answer_to_head_has_no_body_and_is_complete() {
    let origin = origin::answering("said").await;
    let relay = with_end(&origin.url("/"), 100);
    let (gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;
    let mut client = gateway.connect().await;
    for _ in 0..2 {
        client.send("HEAD /relay HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.response_to("HEAD").await;
        assert_eq!(answer.header("content-length"), Some("4"));
        assert_eq!(ends.next().await, end(Some(200), "", false, "complete"));
    }
    gateway.rests().await;
}

#[tokio::test]
async fn redirects_are_followed_if_the_fetch_says_so() {
    let origin = origin::answering("said").await;
    let hop = origin::redirecting(&origin.url("/")).await;
    let mut relay = get(&hop.url("/"));
    let (gateway, _worker, _) = relaying(gateway::new(1), relay.clone()).await;
    let answer = gateway.get("/relay").await;
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.header("location"), Some(origin.url("/").as_str()));

    relay["fetch"]["follow"] = true.into();
    let (gateway, _worker, _) = relaying(gateway::new(1), relay).await;
    assert_eq!(gateway.get("/relay").await.ok(), "said");
}

#[tokio::test]
async fn a_drain_waits_for_a_relay_and_its_end() {
    let origin = Streaming::start().await;
    let relay = with_end(&origin.url(), 100);
    let (mut gateway, _worker, mut ends) = relaying(gateway::new(1), relay).await;
    let answer = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("one ").await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    gateway.refuses().await;
    exchange.chunk("two").await;
    exchange.end().await;
    assert_eq!(answer.await.ok(), "one two");
    assert_eq!(ends.next().await.0["ended"], "complete");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_worker_that_dies_does_not_take_its_relay_along() {
    let origin = Streaming::start().await;
    let relay = with_end(&origin.url(), 100);
    let (gateway, worker, _ends) = relaying(gateway::new(1), relay).await;
    let answer = gateway.get("/relay").spawn();
    let mut exchange = origin.request().await;
    exchange.begin().await;
    exchange.chunk("one ").await;
    worker.kill().await;
    gateway
        .until("a lost slot", |status| status.lost == 1)
        .await;
    exchange.chunk("two").await;
    exchange.end().await;
    assert_eq!(answer.await.ok(), "one two");
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn what_follows_a_relay_may_park_though_its_client_has_gone() {
    let origin = origin::answering("said").await;
    let gateway = gateway::new(1).run().await;
    let relay = with_end(&origin.url("/"), 100);
    let plan = Plan::get(&origin.url("/after"));
    let (done, mut after) = unbounded_channel();
    let _worker = worker::new(1)
        .on("/relay", move |mut job| {
            let (relay, plan, done) = (relay.clone(), plan.clone(), done.clone());
            async move {
                job.relay_to_its_end(&relay).await?;
                let results = job.park(&plan).await?;
                done.send(results.text(0)).expect("the test listens");
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/relay").await.ok(), "said");
    let said = within("the plan's results", after.recv()).await;
    assert_eq!(said.as_deref(), Some("said"));
    gateway.rests().await;
}

#[tokio::test]
async fn the_slot_belongs_to_the_request_until_it_is_ready() {
    let origin = origin::answering("said").await;
    let gateway = gateway::new(1).run().await;
    let relay = get(&origin.url("/"));
    let _worker = worker::new(1)
        .on("/relay", move |job| {
            let relay = relay.clone();
            async move {
                job.send_relay(&relay, 0).await;
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/relay").await.ok(), "said");
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_no_relay_ends_the_worker() {
    for (relay, said) in [
        (json!({}), "missing field `fetch`"),
        (
            json!({ "fetch": { "method": "GET", "url": "" }, "resume": 1 }),
            "not a plan",
        ),
    ] {
        let gateway = gateway::new(1).run().await;
        let _worker = worker::new(1)
            .on("/relay", move |job| {
                let relay = relay.clone();
                async move {
                    job.send_relay(&relay, flag::READY).await;
                    Ok(())
                }
            })
            .run(&gateway)
            .await;
        assert_eq!(gateway.get("/relay").await.status(), 502);
        gateway.logged(said).await;
    }
}
