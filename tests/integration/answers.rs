//! Answers: what the worker says reaches the client as one well-formed response, or as a visible cut.

use crate::support::frames::{flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::origin;
use crate::support::plan::Plan;
use crate::support::worker::{self, Answer, Ended, Job, Worker};

/// One slot whose `/x` is this script.
async fn serving<F>(script: impl Fn(Job) -> F + Send + Sync + 'static) -> (Gateway, Worker)
where
    F: Future<Output = Ended> + Send + 'static,
{
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).on("/x", script).run(&gateway).await;
    (gateway, worker)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn status_reason_and_headers_pass_as_they_are() {
    let (gateway, _worker) = serving(async |job| {
        let answer = Answer::new(418)
            .reason("Still a Teapot")
            .header("Set-Cookie", "a=1; Path=/")
            .header("Set-Cookie", "b=2")
            .header("X-Name", "caf\u{e9}")
            .header("Content-Type", "text/html")
            .body("short and stout");
        job.respond(answer).await
    })
    .await;
    let answer = gateway.get("/x").await;
    assert_eq!(
        (answer.status(), answer.head.reason.as_str()),
        (418, "Still a Teapot")
    );
    assert_eq!(
        answer.head.header_lines("set-cookie"),
        ["a=1; Path=/", "b=2"]
    );
    assert_eq!(answer.header("x-name"), Some("caf\u{e9}"));
    assert_eq!(answer.header("content-type"), Some("text/html"));
    assert_eq!(answer.header("content-length"), Some("15"));
    assert!(answer.header("date").is_some());
    assert_eq!(answer.text(), "short and stout");
}

#[tokio::test]
async fn a_status_that_nobody_knows_passes() {
    let (gateway, _worker) = serving(async |job| job.answer(799, "odd").await).await;
    let answer = gateway.get("/x").await;
    assert_eq!((answer.status(), answer.text()), (799, "odd"));
}

#[tokio::test]
async fn headers_of_the_hop_to_the_worker_do_not_pass() {
    let (gateway, _worker) = serving(async |job| {
        let answer = Answer::new(200)
            .header("Connection", "close, X-Hop")
            .header("X-Hop", "1")
            .header("Keep-Alive", "timeout=1")
            .header("Transfer-Encoding", "chunked")
            .header("Upgrade", "h2c")
            .body("whole");
        job.respond(answer).await
    })
    .await;
    let mut client = gateway.connect().await;
    for _ in 0..2 {
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.response().await;
        assert_eq!(answer.ok(), "whole");
        for name in [
            "connection",
            "x-hop",
            "keep-alive",
            "transfer-encoding",
            "upgrade",
        ] {
            assert_eq!(answer.header(name), None, "{name}");
        }
    }
}

#[tokio::test]
async fn an_answer_in_parts_arrives_part_by_part() {
    let gate = Gate::new();
    let at_middle = gate.clone();
    let (gateway, _worker) = serving(move |job| {
        let at_middle = at_middle.clone();
        async move {
            job.begin(Answer::new(200).body("one ")).await;
            at_middle.pass().await;
            job.more("two ").await;
            job.more("").await;
            job.end("three").await
        }
    })
    .await;

    let mut client = gateway.connect().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    client.holds("4\r\none \r\n".len()).await;
    gate.open();
    let body = client.body(&head, "GET").await;
    assert_eq!(body, Body::Whole(b"one two three".to_vec()));
    gateway.rests().await;
}

#[tokio::test]
async fn an_answer_in_parts_keeps_its_announced_length() {
    let (gateway, _worker) = serving(async |job| {
        let answer = Answer::new(200).header("Content-Length", "11");
        job.begin(answer.body("hello ")).await;
        job.end("world").await
    })
    .await;
    let answer = gateway.get("/x").await;
    assert_eq!(answer.header("content-length"), Some("11"));
    assert_eq!(answer.ok(), "hello world");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let (gateway, _worker) = serving(async |job| {
        job.begin(Answer::new(200).body("one ")).await;
        job.end("two").await
    })
    .await;
    let answer = gateway.raw("GET /x HTTP/1.0\r\n\r\n").await;
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.ok(), "one two");
}

#[tokio::test]
async fn a_slow_reader_holds_no_slot() {
    let large = bytes(20_000_000);
    let answer = Answer::new(200).body(&large);
    let (gateway, _worker) = serving(move |job| {
        let answer = answer.clone();
        async move { job.respond(answer).await }
    })
    .await;

    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gateway
        .until_metric("layby_slot_busy_seconds_count", |jobs| jobs == 1.0)
        .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert!(gateway.metric("layby_spool_bytes").await > 10_000_000.0);

    let head = reader.head().await;
    let body = reader.body(&head, "GET").await;
    assert!(body == Body::Whole(large), "another body arrived");
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_slow_reader_that_leaves_leaves_nothing() {
    let answer = Answer::new(200).body(bytes(20_000_000));
    let (gateway, _worker) = serving(move |job| {
        let answer = answer.clone();
        async move { job.respond(answer).await }
    })
    .await;
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gateway
        .until_metric("layby_slot_busy_seconds_count", |jobs| jobs == 1.0)
        .await;
    drop(reader);
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_broken_body_is_seen_as_cut() {
    for length in [None, Some("1000")] {
        let (gateway, _worker) = serving(move |job| async move {
            let mut answer = Answer::new(200).body("some of ");
            if let Some(length) = length {
                answer = answer.header("Content-Length", length);
            }
            job.begin(answer).await;
            job.more("it").await;
            job.broken().await
        })
        .await;
        let answer = gateway.get("/x").await;
        assert_eq!(answer.body, Body::Cut(b"some of it".to_vec()));
        gateway.rests().await;
    }
}

#[tokio::test]
async fn a_broken_body_without_length_or_chunks_is_seen_as_cut_too() {
    let (gateway, _worker) = serving(async |job| {
        job.begin(Answer::new(200).body("some of ")).await;
        job.more("it").await;
        job.broken().await
    })
    .await;
    let answer = gateway.raw("GET /x HTTP/1.0\r\n\r\n").await;
    assert!(matches!(answer.body, Body::Cut(_)), "{:?}", answer.body);
}

#[tokio::test]
async fn a_body_is_cut_when_its_worker_dies() {
    let gate = Gate::new();
    let at_middle = gate.clone();
    let (gateway, worker) = serving(move |job| {
        let at_middle = at_middle.clone();
        async move {
            job.begin(Answer::new(200).body("some of it")).await;
            at_middle.pass().await;
            unreachable!("it dies before")
        }
    })
    .await;
    let answer = gateway.get("/x").spawn();
    gate.reached(1).await;
    worker.kill().await;
    assert_eq!(answer.await.body, Body::Cut(b"some of it".to_vec()));
}

#[tokio::test]
async fn a_worker_is_told_when_nobody_reads_its_answer_any_more() {
    let gate = Gate::new();
    let begun = gate.clone();
    let (gateway, _worker) = serving(move |job| {
        let begun = begun.clone();
        async move {
            let stop = job.stop();
            job.begin(Answer::new(200).body("endless ")).await;
            begun.pass().await;
            stop.notified().await;
            job.more("for nobody").await;
            job.broken().await
        }
    })
    .await;
    gate.open();
    let mut client = gateway.connect().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await;
    gate.reached(1).await;
    drop(client);
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn an_answer_whose_client_has_left_is_stopped_when_it_begins() {
    let gate = Gate::new();
    let at_begin = gate.clone();
    let (gateway, worker) = serving(move |job| {
        let at_begin = at_begin.clone();
        async move {
            at_begin.pass().await;
            let stop = job.stop();
            job.begin(Answer::new(200).body("endless ")).await;
            stop.notified().await;
            job.broken().await
        }
    })
    .await;
    let leaver = gateway.post("/x", "").spawn();
    gate.reached(1).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"running\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    gate.open();
    worker.received(kind::STOP, 1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn an_application_may_wait_in_place_in_the_middle_of_its_answer() {
    let origin = origin::answering("two ").await;
    let plan = Plan::get(&origin.url("/")).held("mode", "shop/views.py:5");
    let (gateway, _worker) = serving(move |mut job| {
        let plan = plan.clone();
        async move {
            job.begin(Answer::new(200).body("one ")).await;
            let results = job.hold(&plan).await?;
            job.more(results.body(0)).await;
            job.end("three").await
        }
    })
    .await;
    assert_eq!(gateway.get("/x").await.ok(), "one two three");
    gateway.rests().await;
}

#[tokio::test]
async fn a_wait_in_the_middle_of_an_answer_ends_when_its_client_leaves() {
    let origin = origin::stalled().await;
    let plan = Plan::get(&origin.url("/")).held("mode", "shop/views.py:5");
    let (gateway, worker) = serving(move |mut job| {
        let plan = plan.clone();
        async move {
            job.begin(Answer::new(200).body("one ")).await;
            match job.hold(&plan).await {
                Ok(_) => unreachable!("its client is gone"),
                Err(_) => job.broken().await,
            }
        }
    })
    .await;
    let mut client = gateway.connect().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await;
    origin.received(1).await;
    drop(client);
    worker.received(kind::CANCEL, 1).await;
    origin.aborted(1).await;
    gateway.rests().await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
}

#[tokio::test]
async fn head_gets_the_head_alone() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .on("/said", async |job| {
            let answer = Answer::new(200).header("Content-Length", "12");
            job.respond(answer).await
        })
        .on("/sent", async |job| job.answer(200, "hello").await)
        .on("/parts", async |job| {
            job.begin(Answer::new(200).body("one ")).await;
            job.end("two").await
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    for (path, length) in [
        ("/said", Some("12")),
        ("/sent", Some("5")),
        ("/parts", None),
    ] {
        client
            .send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let answer = client.response_to("HEAD").await;
        assert_eq!(
            (answer.status(), answer.header("content-length")),
            (200, length),
            "{path}"
        );
    }
    // Nothing of a body came between.
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn answers_that_have_no_body_get_none() {
    let gateway = gateway::new(1).run().await;
    let mut worker = worker::new(1);
    for status in [204u16, 304] {
        worker = worker
            .on(&format!("/{status}"), move |job| async move {
                let answer = Answer::new(status).header("ETag", "\"1\"");
                job.respond(answer.body("stowaway")).await
            })
            .on(&format!("/{status}/length"), move |job| async move {
                let answer = Answer::new(status).header("Content-Length", "8");
                job.respond(answer).await
            })
            .on(&format!("/{status}/parts"), move |job| async move {
                job.begin(Answer::new(status).body("stow")).await;
                job.end("away").await
            });
    }
    let _worker = worker.run(&gateway).await;
    let mut client = gateway.connect().await;
    for status in [204, 304] {
        for path in ["", "/length", "/parts"] {
            client
                .send(format!("GET /{status}{path} HTTP/1.1\r\nHost: a\r\n\r\n"))
                .await;
            let answer = client.response().await;
            assert_eq!(answer.status(), status);
            assert_eq!(answer.header("transfer-encoding"), None);
            if status == 204 {
                assert_eq!(answer.header("content-length"), None);
            }
        }
    }
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn a_length_that_is_not_the_bodys_is_a_bad_answer() {
    for lines in [
        vec!["3"],
        vec!["30"],
        vec!["5", "5"],
        vec!["+5"],
        vec!["five"],
        vec![""],
    ] {
        let values = lines.clone();
        let (gateway, _worker) = serving(move |job| {
            let values = values.clone();
            async move {
                let mut answer = Answer::new(200).body("hello");
                for value in values {
                    answer = answer.header("Content-Length", value);
                }
                job.respond(answer).await
            }
        })
        .await;
        let answer = gateway.get("/x").await;
        assert_eq!(answer.status(), 502, "{lines:?}: {:?}", answer.head);
        // The worker did nothing that breaks the link.
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
        gateway.rests().await;
    }
}

#[tokio::test]
async fn an_answer_in_parts_is_never_longer_than_announced_and_visibly_shorter() {
    for length in ["9", "3"] {
        let (gateway, _worker) = serving(move |job| async move {
            let answer = Answer::new(200).header("Content-Length", length);
            job.begin(answer.body("he")).await;
            job.more("llo").await;
            job.send(kind::BODY, flag::READY, "").await;
            Ok(())
        })
        .await;
        let mut client = gateway.connect().await;
        client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.response().await;
        match length {
            // Less came than was announced.
            "9" => assert_eq!(answer.body, Body::Cut(b"hello".to_vec())),
            // A file may have grown since its length was announced. The rest is not read as an answer.
            _ => {
                assert_eq!(answer.body, Body::Whole(b"hel".to_vec()));
                client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
                assert_eq!(client.response().await.ok(), "pong");
            }
        }
        gateway.rests().await;
    }
}

#[tokio::test]
async fn the_gateways_own_answers_are_short_texts_or_json() {
    let gateway = gateway::new(1).set("slots.queue", "0").run().await;
    let plain = gateway.get("/").await;
    assert_eq!(plain.status(), 503);
    assert_eq!(
        plain.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(plain.text(), "the server is busy; try again later\n");

    let json = gateway.get("/").header("Accept", "application/json").await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    assert_eq!(json.json()["status"], 503);

    let head = gateway.request("HEAD", "/").await;
    assert_eq!((head.status(), head.bytes()), (503, &b""[..]));
}
