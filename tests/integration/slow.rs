//! Clients that are slow: as slow as lines are, they are served; slower, they are let go, and what was
//! kept for them with them.

use std::time::{Duration, Instant};

use crate::support::gateway::{self, Builder};
use crate::support::http::{Body, Connection};
use crate::support::tls::{Authority, listens};
use crate::support::worker::{self, Answer, Job};
use crate::support::{takes, within};

const STALL: Duration = Duration::from_millis(400);

/// At least 10 KiB a second, with 0.4 s in hand.
fn strict() -> Builder {
    gateway::new(1)
        .set("stall_timeout", "400ms")
        .set("min_rate", "10KiB")
}

#[tokio::test]
async fn a_head_has_its_time_from_its_first_byte_on() {
    let gateway = gateway::new(1).set("head_timeout", "400ms").run().await;
    let _worker = worker::new(1).run(&gateway).await;
    takes(STALL, async || {
        let mut client = gateway.connect().await;
        client.send("GET /ping HTTP/1.1\r\nHost: ").await;
        // However lively.
        for byte in ["a", "b", "c"] {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.send(byte).await;
        }
        let answer = client.response().await;
        assert_eq!(answer.status(), 408);
        assert_eq!(answer.header("connection"), Some("close"));
    })
    .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let gateway = gateway::new(1).set("idle_timeout", "1s").run().await;
    let _worker = worker::new(1).run(&gateway).await;
    takes(Duration::from_secs(1), async || {
        let mut client = gateway.connect().await;
        let mut silent = gateway.connect().await;
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.response().await.ok(), "pong");
        assert_eq!(client.closed().await, b"");
        assert_eq!(silent.closed().await, b"");
    })
    .await;
}

#[tokio::test]
async fn an_upload_below_the_rate_is_late_and_one_above_is_not() {
    let gateway = strict().run().await;
    let worker = worker::new(1).run(&gateway).await;
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\n";
    let mut late = gateway.connect().await;
    late.send(head).await;
    let begun = Instant::now();
    let dripping = async {
        while late.try_send("12345678").await.is_ok() && !late.is_quiet().await {}
        late.response().await
    };
    let answer = within("an answer to who drips", dripping).await;
    assert_eq!(answer.status(), 408);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(begun.elapsed() >= STALL);

    // Its time is longer than any client has in hand.
    let mut slow = gateway.connect().await;
    slow.send(head).await;
    let begun = Instant::now();
    for part in vec![b'x'; 20_000].chunks(2000) {
        tokio::time::sleep(STALL / 5).await;
        slow.send(part).await;
    }
    assert_eq!(slow.response().await.ok().len(), 20_000);
    assert!(begun.elapsed() > STALL + STALL / 2);
    assert_eq!(worker.requests(), ["POST /echo"]);
}

/// A worker with an answer that no kernel takes as a whole.
fn large() -> worker::Builder {
    worker::new(1).on("/large", async |job| {
        job.respond(Answer::new(200).body(vec![b'x'; 8_000_000]))
            .await
    })
}

#[tokio::test]
async fn who_does_not_read_is_reset_and_its_spool_is_free() {
    let gateway = strict().set("min_rate", "1MiB").run().await;
    let _worker = large().run(&gateway).await;
    let begun = Instant::now();
    let mut client = Connection::narrow(gateway.tcp()).await;
    client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    let spooled = "layby_spool_bytes";
    gateway.until_metric(spooled, |bytes| bytes > 0.0).await;
    gateway.until_metric(spooled, |bytes| bytes == 0.0).await;
    assert!(begun.elapsed() >= STALL);
    assert!(matches!(client.body(&head, "GET").await, Body::Cut(_)));
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn who_asks_for_much_and_reads_nothing_is_let_go() {
    let gateway = strict().set("min_rate", "1MiB").run().await;
    let _worker = large().run(&gateway).await;
    let mut client = Connection::narrow(gateway.tcp()).await;
    let many = "GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10);
    client.send(&many).await;
    gateway.logged("connection closed: too slow or idle").await;
    gateway.rests().await;
}

#[tokio::test]
async fn who_reads_slowly_but_on_and_on_gets_all() {
    let gateway = strict().run().await;
    let _worker = large().run(&gateway).await;
    let mut client = Connection::narrow(gateway.tcp()).await;
    client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    let begun = Instant::now();
    for pause in 1..=6 {
        client.holds(pause * 100_000).await;
        tokio::time::sleep(STALL / 2).await;
    }
    assert!(begun.elapsed() >= 3 * STALL);
    let body = client.body(&head, "GET").await;
    assert!(matches!(body, Body::Whole(body) if body.len() == 8_000_000));
}

/// Reads a page's head, then nothing for longer than an idle connection keeps its buffers, and then the rest.
/// Its request is long over by then: all of the answer is with the gateway.
async fn pauses_before_the_end(mut client: Connection) {
    client.send("GET /page HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let body = client.body(&head, "GET").await;
    assert!(matches!(body, Body::Whole(body) if body.len() == 250_000));
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
}

#[tokio::test]
async fn who_pauses_before_the_end_of_an_answer_gets_all_of_it() {
    let authority = Authority::new("Test CA");
    // Connections that are idle for longer end; none of these is, before it has its answer.
    let builder = gateway::new(2).set("idle_timeout", "1s");
    let gateway = listens(builder, &authority).run().await;
    let page = async |job: Job| {
        job.respond(Answer::new(200).body(vec![b'x'; 250_000]))
            .await
    };
    let _worker = worker::new(2).on("/page", page).run(&gateway).await;
    let over_tls = async {
        let line = Connection::narrow_line(gateway.tls()).await;
        let stream = authority.client().connect_over("localhost", line).await;
        pauses_before_the_end(Connection::over(stream.expect("a handshake"))).await;
    };
    let plainly = async { pauses_before_the_end(Connection::narrow(gateway.tcp()).await).await };
    tokio::join!(plainly, over_tls);
}

#[tokio::test]
async fn an_application_that_is_slow_costs_its_client_nothing() {
    let gateway = strict().run().await;
    let _worker = worker::new(1)
        .on("/events", async |job| {
            job.begin(Answer::new(200).body("one ")).await;
            for _ in 0..2 {
                tokio::time::sleep(STALL + STALL / 2).await;
                job.more("two ").await;
            }
            job.end("three").await
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    // The first part is there while the application has not made the rest.
    client.holds("4\r\none \r\n".len()).await;
    let body = client.body(&head, "GET").await;
    assert_eq!(body, Body::Whole(b"one two two three".to_vec()));
}
