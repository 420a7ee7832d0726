//! Lazy bodies: the application starts at the head, and the body is read when it is wanted, or never.

use std::sync::Arc;

use serde_json::json;

use crate::support::frames::kind;
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http::Connection;
use crate::support::origin;
use crate::support::plan::Plan;
use crate::support::takes;
use crate::support::worker::{self, Job, Worker};

const ROUTES: &str = r#"
[[route]]
path = "/upload"
body = "lazy"
max_body = "20MiB"
"#;

fn lazy(slots: u16) -> gateway::Builder {
    gateway::new(slots).file(ROUTES)
}

/// `/upload` parks for its body and tells what it got, `/upload/held` waits in place for it,
/// `/upload/refused` answers 403 without asking.
fn uploads(slots: u16) -> worker::Builder {
    worker::new(slots)
        .on("/upload", async |mut job| {
            let before = told(&job);
            if job.lazy {
                job.park_for_body().await?;
            }
            let after = told(&job);
            job.answer(200, json!([before, after]).to_string()).await
        })
        .on("/upload/held", async |mut job| {
            let before = told(&job);
            job.hold_for_body().await?;
            let after = told(&job);
            job.answer(200, json!([before, after]).to_string()).await
        })
        .on("/upload/refused", async |job| {
            job.answer(403, "not you").await
        })
}

async fn serving(slots: u16) -> (Gateway, Worker) {
    let gateway = lazy(slots).run().await;
    let worker = uploads(slots).run(&gateway).await;
    (gateway, worker)
}

fn told(job: &Job) -> serde_json::Value {
    json!({
        "lazy": job.lazy, "length": job.environ("CONTENT_LENGTH"), "bytes": job.body.len(),
        "sum": sum(&job.body), "file": job.by_descriptor,
    })
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    })
}

fn head(path: &str, framing: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n")
}

#[tokio::test]
async fn the_application_starts_at_the_head_and_gets_the_body_when_it_asks() {
    let (gateway, _worker) = serving(1).await;
    for path in ["/upload", "/upload/held"] {
        for size in [1, 65_536, 65_537, 5_000_000] {
            let body = bytes(size);
            let length = size.to_string();
            let before = json!({
                "lazy": true, "length": length, "bytes": 0, "sum": 7, "file": false,
            });
            let after = json!({
                "lazy": true, "length": length, "bytes": size, "sum": sum(&body),
                "file": size > 65_536,
            });
            let answer = gateway.post(path, &body).await.json();
            assert_eq!(answer, json!([before, after]));
        }
    }
    gateway.rests().await;
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_was_taken() {
    let (gateway, _worker) = serving(1).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        let head = head("/upload", "Content-Length: 5\r\n");
        client.send(head + "12345").await;
        let answer = client.response().await;
        assert_eq!(answer.header("connection"), None);
        assert_eq!(answer.json()[1]["bytes"], 5);
    }
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
}

#[tokio::test]
async fn a_chunked_body_has_no_length_before_it_is_there() {
    let (gateway, _worker) = serving(1).await;
    let head = head("/upload", "Transfer-Encoding: chunked\r\n");
    let answer = gateway
        .raw(head + "5\r\n12345\r\n3\r\n678\r\n0\r\n\r\n")
        .await
        .json();
    assert_eq!(answer[0]["length"], "");
    assert_eq!(answer[1]["bytes"], 8);
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_without_a_body_is_an_ordinary_one() {
    let (gateway, _worker) = serving(1).await;
    for framing in ["", "Content-Length: 0\r\n"] {
        let answer = gateway.raw(head("/upload", framing)).await.json();
        assert_eq!(answer[0]["lazy"], false);
    }
    assert_eq!(gateway.get("/upload").await.json()[0]["lazy"], false);
}

#[tokio::test]
async fn other_paths_have_their_bodies_read_ahead() {
    let gateway = lazy(1).run().await;
    let tells = async |job: Job| job.answer(200, told(&job).to_string()).await;
    let _worker = worker::new(1).on("/uploads", tells).run(&gateway).await;
    let answer = gateway.post("/uploads", "hello").await.json();
    assert_eq!(
        (&answer["lazy"], &answer["bytes"]),
        (&json!(false), &json!(5))
    );
}

#[tokio::test]
async fn a_body_that_is_awaited_holds_no_slot() {
    let (gateway, worker) = serving(1).await;
    let mut client = gateway.connect().await;
    client
        .send(head("/upload", "Content-Length: 10\r\n") + "12345")
        .await;
    let status = gateway.until("the parked upload", |s| s.parked == 1).await;
    assert_eq!((status.idle, status.busy), (1, 0));
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    client.send("67890").await;
    assert_eq!(client.response().await.json()[1]["bytes"], 10);
    assert_eq!(worker.requests(), ["POST /upload", "GET /ping"]);
    gateway.rests().await;
}

#[tokio::test]
async fn a_body_that_is_awaited_in_place_is_counted_as_such() {
    let (gateway, _worker) = serving(1).await;
    let mut client = gateway.connect().await;
    client
        .send(head("/upload/held", "Content-Length: 10\r\n") + "12345")
        .await;
    gateway
        .until_metric("layby_waiting_in_place", |waiting| waiting == 1.0)
        .await;
    assert_eq!(gateway.status().await.busy, 1);
    client.send("67890").await;
    assert_eq!(client.response().await.json()[1]["bytes"], 10);
    let waits = &gateway.status_json().await["waits_in_place"];
    assert_eq!(waits[0]["source"], "shop/views.py:3");
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_when_the_body_is_wanted() {
    let gate = Gate::new();
    let gateway = lazy(1).run().await;
    let asks = gate.clone();
    let _worker = worker::new(1)
        .on("/upload", move |mut job| {
            let asks = asks.clone();
            async move {
                asks.pass().await;
                job.park_for_body().await?;
                job.answer(200, &job.body).await
            }
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    client
        .send(head(
            "/upload",
            "Content-Length: 5\r\nExpect: 100-continue\r\n",
        ))
        .await;
    gate.reached(1).await;
    assert!(client.is_quiet().await, "told to go on too early");
    gate.open();
    assert_eq!(client.head().await.status, 100);
    client.send("hello").await;
    assert_eq!(client.response().await.ok(), "hello");
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_asks_first_and_is_refused_sends_nothing() {
    let (gateway, worker) = serving(1).await;
    let mut client = gateway.connect().await;
    client
        .send(head(
            "/upload/refused",
            "Content-Length: 5000000\r\nExpect: 100-continue\r\n",
        ))
        .await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.text()), (403, "not you"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.closed().await.is_empty());
    assert_eq!(worker.requests(), ["POST /upload/refused"]);
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_is_still_sending_reads_its_refusal() {
    let (gateway, _worker) = serving(1).await;
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        let length = "Content-Length: 20000000\r\n";
        client.send(head("/upload/refused", length)).await;
        // As plain clients do: all of it, then a look at the answer.
        for part in bytes(10_000_000).chunks(100_000) {
            client.send(part).await;
        }
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.text()), (403, "not you"));
        assert!(client.closed().await.is_empty());
    }
    assert_eq!(gateway.metric("layby_spool_bytes").await, 0.0);
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_never_stops_sending_is_cut_off() {
    let (gateway, _worker) = serving(1).await;
    let mut client = gateway.connect().await;
    let framing = "Transfer-Encoding: chunked\r\n";
    client.send(head("/upload/refused", framing)).await;
    let chunk = [b"186a0\r\n", &bytes(100_000)[..], b"\r\n"].concat();
    let mut sent = 0;
    while client.try_send(&chunk).await.is_ok() {
        sent += 1;
        assert!(
            sent < 2000,
            "200 MB were taken from a client that is refused"
        );
    }
    gateway.rests().await;
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_takes_no_slot() {
    let (gateway, worker) = serving(1).await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        let framing = format!("Content-Length: {}\r\n{expect}", (20 << 20) + 1);
        let answer = gateway.raw(head("/upload", &framing)).await;
        assert_eq!(answer.status(), 413);
    }
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn a_routes_bound_replaces_the_general_one() {
    let gateway = gateway::new(1)
        .set("max_body", "1000")
        .file(
            r#"
            [[route]]
            path = "/echo"
            max_body = "2000"
            [[route]]
            path = "/echo"
            methods = ["PUT"]
            max_body = "500"
            "#,
        )
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    for (method, size, status) in [
        ("POST", 2000, 200),
        ("POST", 2001, 413),
        ("PUT", 500, 200),
        ("PUT", 501, 413),
    ] {
        let request = gateway.request(method, "/echo").body(bytes(size));
        assert_eq!(request.await.status(), status, "{method} {size}");
    }
    assert_eq!(gateway.post("/ping", bytes(1001)).await.status(), 413);
}

#[tokio::test]
async fn a_body_that_becomes_too_large_cancels_the_request() {
    let gateway = gateway::new(1)
        .file("[[route]]\npath = \"/upload\"\nbody = \"lazy\"\nmax_body = 1000")
        .run()
        .await;
    let worker = uploads(1).run(&gateway).await;
    for (count, path) in ["/upload", "/upload/held"].into_iter().enumerate() {
        let mut client = gateway.connect().await;
        let framing = "Transfer-Encoding: chunked\r\n";
        client.send(head(path, framing)).await;
        client
            .send([b"3e8\r\n", &bytes(1000)[..], b"\r\n1\r\nx\r\n"].concat())
            .await;
        let answer = client.response().await;
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.header("connection"), Some("close"));
        worker.cancelled(count + 1).await;
    }
    gateway.rests().await;
}

#[tokio::test]
async fn a_malformed_body_cancels_the_request() {
    let (gateway, worker) = serving(1).await;
    let framing = "Transfer-Encoding: chunked\r\n";
    let answer = gateway
        .raw(head("/upload", framing) + "zz\r\n12345\r\n")
        .await;
    assert_eq!(answer.status(), 400);
    worker.cancelled(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_leaves_with_its_body_ends_even_an_unsafe_request() {
    let (gateway, worker) = serving(1).await;
    for (count, path) in ["/upload", "/upload/held"].into_iter().enumerate() {
        let mut client = gateway.connect().await;
        client
            .send(head(path, "Content-Length: 100000\r\n") + "12345")
            .await;
        worker.requests_begun(count + 1).await;
        drop(client);
        worker.cancelled(count + 1).await;
    }
    // Whether it counts as a leaver or as a broken body is a matter of which is noticed first.
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_its_body_is_wanted_is_noticed() {
    let origin = origin::stalled().await;
    let gateway = lazy(1).run().await;
    let plan = Arc::new(Plan::get(&origin.url("/may-she")));
    let worker = worker::new(1)
        .on("/upload", move |mut job| {
            let plan = Arc::clone(&plan);
            async move {
                job.park(&plan).await?;
                job.park_for_body().await?;
                job.answer(200, &job.body).await
            }
        })
        .run(&gateway)
        .await;
    for (count, method) in ["GET", "POST"].into_iter().enumerate() {
        let mut client = gateway.connect().await;
        let framing = "Content-Length: 100000\r\n";
        let head = head("/upload", framing).replace("POST", method);
        client.send(head + "12345").await;
        origin.received(count + 1).await;
        drop(client);
        gateway
            .until_metric("layby_requests_cancelled_total{phase=\"parked\"}", |left| {
                left == count as f64 + 1.0
            })
            .await;
    }
    // A safe one is cancelled at once; the other finishes its fetch, then there is no body.
    worker.cancelled(1).await;
    origin.release("yes");
    worker.cancelled(2).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_queued_upload_whose_client_left_never_reaches_a_worker() {
    let gate = Gate::new();
    let gateway = lazy(1).run().await;
    let worker = uploads(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let mut client = gateway.connect().await;
    client
        .send(head("/upload", "Content-Length: 10\r\n") + "12345")
        .await;
    gateway.until("the queued upload", |s| s.queued == 1).await;
    drop(client);
    gateway.until("an empty queue", |s| s.queued == 0).await;
    gate.open();
    slow.await.ok();
    assert_eq!(worker.requests(), ["GET /slow"]);
    gateway.rests().await;
}

#[tokio::test]
async fn the_requests_clock_stands_still_while_its_body_comes() {
    let gateway = lazy(1).set("slots.request_timeout", "400ms").run().await;
    let _worker = uploads(1)
        .on("/upload/then", async |mut job| {
            job.park_for_body().await?;
            job.park(&Plan::sleep(60.0)).await?;
            job.answer(200, "late").await
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    let begun = std::time::Instant::now();
    let framing = "Content-Length: 4\r\n";
    client.send(head("/upload", framing)).await;
    for byte in ["1", "2", "3", "4"] {
        // The pace of a slow client: longer than the whole request may take.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        client.send(byte).await;
    }
    assert_eq!(client.response().await.json()[1]["bytes"], 4);
    assert!(begun.elapsed().as_millis() > 400);

    takes(std::time::Duration::from_millis(400), async || {
        let answer = gateway.post("/upload/then", "body").await;
        assert_eq!(answer.status(), 504);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_never_asks_meets_its_deadline() {
    let gate = Gate::new();
    let gateway = lazy(1).set("slots.request_timeout", "200ms").run().await;
    let asks = gate.clone();
    let worker = worker::new(1)
        .on("/upload", move |mut job| {
            let asks = asks.clone();
            async move {
                asks.pass().await;
                job.park_for_body().await?;
                job.answer(200, "too late").await
            }
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    client
        .send(head("/upload", "Content-Length: 10\r\n") + "12345")
        .await;
    let answer = client.response().await;
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.header("connection"), Some("close"));
    client.closed().await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn who_asks_twice_or_for_nothing_is_refused() {
    let gateway = lazy(1).run().await;
    let again = |mut job: Job| async move {
        if job.lazy {
            job.park_for_body().await?;
        }
        job.park_for_body().await?;
        job.answer(200, "").await
    };
    let worker = worker::new(1).on("/upload", again).run(&gateway).await;
    assert_eq!(gateway.post("/upload", "body").await.status(), 502);
    gateway.logged("it asks for a body that it has").await;
    worker.kill().await;

    let _next = worker::new(1).on("/upload", again).run(&gateway).await;
    assert_eq!(gateway.get("/upload").await.status(), 502);
}

#[tokio::test]
async fn a_worker_that_dies_while_the_body_comes_is_told_of_at_once() {
    let (gateway, worker) = serving(1).await;
    let mut client = gateway.connect().await;
    client
        .send(head("/upload", "Content-Length: 10\r\n") + "12345")
        .await;
    gateway.until("the parked upload", |s| s.parked == 1).await;
    worker.kill().await;
    let answer = client.response().await;
    assert_eq!(answer.status(), 502);
    let _next = uploads(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_reload_changes_the_routes() {
    let gateway = lazy(1).run().await;
    let _worker = uploads(1).run(&gateway).await;
    let lazy = async || gateway.post("/upload", "body").await.json()[0]["lazy"] == true;
    assert!(lazy().await);
    gateway.rewrite("");
    gateway.signal(rustix::process::Signal::HUP);
    gateway.logged("configuration reloaded").await;
    assert!(!lazy().await);
}

#[tokio::test]
async fn an_answer_may_begin_before_the_body_has_come() {
    let gateway = lazy(1).run().await;
    let _worker = worker::new(1)
        .on("/upload", async |job| {
            job.begin(worker::Answer::new(200).body("one ")).await;
            job.end("two").await
        })
        .run(&gateway)
        .await;
    let mut client = Connection::open(gateway.address()).await;
    client
        .send(head("/upload", "Content-Length: 10000000\r\n"))
        .await;
    client.send(bytes(1_000_000)).await;
    let answer = client.response().await;
    assert_eq!(answer.ok(), "one two");
    assert_eq!(answer.header("connection"), Some("close"));
    gateway.rests().await;
}

#[tokio::test]
async fn asking_for_the_body_in_the_middle_of_an_answer_ends_the_worker() {
    let gateway = lazy(1).run().await;
    let _worker = worker::new(1)
        .on("/upload", async |job| {
            job.begin(worker::Answer::new(200).body("one ")).await;
            job.send(kind::HOLD, crate::support::frames::flag::LAZY, "")
                .await;
            Ok(())
        })
        .run(&gateway)
        .await;
    let answer = gateway.post("/upload", "body").await;
    assert!(matches!(
        answer.body,
        crate::support::http::Body::Cut(part) if part == b"one "
    ));
    gateway.logged("worker refused").await;
}
