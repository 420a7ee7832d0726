//! Requests that park in the middle of their answers.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::frames::{flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::origin::{self, Origin};
use crate::support::plan::Plan;
use crate::support::worker::{self, Answer, Builder, Job, Voices};
use crate::support::{takes, within};

/// A worker whose answers to `/x` are `one `, what a fetch gives, and ` three`.
fn streaming(threads: u16, origin: &Origin, flags: u8) -> Builder {
    let plan = Plan::get(&origin.url("/"));
    worker::new(threads).on("/x", move |mut job| {
        let plan = plan.clone();
        async move {
            job.begin(Answer::new(200).body("one ")).await;
            match job.park_with(&plan, flags).await {
                Ok(results) => job.more(results.body(0)).await,
                Err(_) => return job.broken().await,
            }
            job.end(" three").await
        }
    })
}

/// A client that has read so much of an answer that goes on.
async fn reading(gateway: &Gateway, request: &str) -> Connection {
    let mut client = gateway.connect().await;
    client
        .send(format!(
            "{request} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
    client.head().await;
    client
}

#[tokio::test]
async fn a_slot_is_free_between_two_parts_of_an_answer() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, 0).run(&gateway).await;
    let streams: Vec<_> = (0..20).map(|_| gateway.get("/x").spawn()).collect();
    origin.received(20).await;
    let status = gateway.status().await;
    assert_eq!((status.idle, status.parked), (1, 20));
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    origin.release("two");
    for stream in streams {
        assert_eq!(stream.await.ok(), "one two three");
    }
    assert_eq!(worker.most(), 1);
    gateway.rests().await;
    let parks = gateway.metric("layby_park_seconds_count").await;
    assert_eq!(parks, 20.0);
}

#[tokio::test]
async fn what_came_before_a_park_is_read_before_what_comes_after_it() {
    let gateway = gateway::new(2).run().await;
    let part = |round: u8| vec![b'a' + round; 200 << 10];
    let _worker = worker::new(2)
        .on("/x", move |mut job| async move {
            job.begin(Answer::new(200)).await;
            for round in 0..10 {
                // Past what is kept in memory, and another slot each time that it is the better one.
                job.more(part(round)).await;
                job.more(part(round)).await;
                assert_eq!(job.tag().1, u32::from(round));
                job.park(&Plan::sleep(0.0)).await?;
            }
            job.end("end").await
        })
        .run(&gateway)
        .await;
    let mut expected: Vec<u8> = (0..10)
        .flat_map(|round| [part(round), part(round)].concat())
        .collect();
    expected.extend(b"end");
    // This one begins to read when all is there.
    let mut late = gateway.connect().await;
    late.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(gateway.get("/x").await.bytes() == expected);
    gateway.rests().await;
    assert!(late.response().await.bytes() == expected);
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
}

#[tokio::test]
async fn a_pinned_stream_goes_on_in_its_own_slot() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(2)
        .waits("/slow", &gate)
        .on("/x", move |mut job| {
            let plan = plan.clone();
            async move {
                let slot = job.slot();
                job.begin(Answer::new(200).body("one ")).await;
                job.park_with(&plan, flag::PINNED).await?;
                assert_eq!(job.slot(), slot);
                job.end("two").await
            }
        })
        .run(&gateway)
        .await;
    let stream = gateway.get("/x").spawn();
    origin.received(1).await;
    let slow = [gateway.get("/slow").spawn(), gateway.get("/slow").spawn()];
    gate.reached(2).await;
    origin.release("12");
    gateway
        .until_metric("layby_park_seconds_count", |parks| parks == 1.0)
        .await;
    gate.open();
    assert_eq!(stream.await.ok(), "one two");
    for slow in slow {
        slow.await.ok();
    }
    gateway.rests().await;
}

#[tokio::test]
async fn a_stream_may_wait_for_its_own_process() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let hears = voices.clone();
    let worker = worker::new(1)
        .on("/x", move |mut job| {
            let hears = hears.clone();
            async move {
                job.begin(Answer::new(200)).await;
                for part in ["one ", "two ", "three"] {
                    hears.hear(job.voice());
                    job.park_local().await?;
                    job.more(part).await;
                }
                job.end("").await
            }
        })
        .runs(async |job, _| job.ready().await)
        .run(&gateway)
        .await;
    let stream = gateway.get("/x").spawn();
    for round in 1..=3 {
        let voice = voices.next().await;
        voice.call(round).await;
        worker.received(kind::RUN, usize::from(round)).await;
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
        voice.want().await;
    }
    assert_eq!(stream.await.ok(), "one two three");
    gateway.rests().await;
}

#[tokio::test]
async fn a_stream_may_park_and_wait_in_place_in_turn() {
    let origin = origin::answering("12").await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(1)
        .on("/x", move |mut job| {
            let plan = plan.clone();
            async move {
                let held = plan.clone().held("cursor", "shop/views.py:9");
                job.park(&plan).await?;
                job.begin(Answer::new(200)).await;
                for _ in 0..3 {
                    let results = job.hold(&held).await?;
                    job.more(results.body(0)).await;
                    let results = job.park(&plan).await?;
                    job.more(results.body(0)).await;
                }
                job.end("").await
            }
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/x").await.ok(), "121212121212");
    gateway.rests().await;
}

// Readers who leave ------------------------------------------------------------------------

/// The reader leaves while the stream is parked: it is cancelled whatever the method, and the worker may say
/// that it is over in either way.
#[tokio::test]
async fn a_parked_stream_is_cancelled_when_its_reader_leaves() {
    for (request, ready) in [("GET /x", true), ("POST /x", true), ("POST /x", false)] {
        let origin = origin::stalled().await;
        let gateway = gateway::new(1).run().await;
        let plan = Plan::get(&origin.url("/"));
        let worker = worker::new(1)
            .on("/x", move |mut job| {
                let plan = plan.clone();
                async move {
                    job.begin(Answer::new(200).body("one ")).await;
                    let ended = job.park(&plan).await.map(drop);
                    assert_eq!(job.tag().1, 1);
                    if ready {
                        return ended;
                    }
                    job.broken().await
                }
            })
            .run(&gateway)
            .await;
        let client = reading(&gateway, request).await;
        origin.received(1).await;
        drop(client);
        worker.received(kind::CANCEL, 1).await;
        origin.aborted(1).await;
        gateway.rests().await;
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
        let frames = worker.frames();
        let other = [kind::STOP, kind::RESUME];
        assert!(!frames.iter().any(|it| other.contains(it)), "{frames:?}");
    }
}

#[tokio::test]
async fn a_stream_that_waits_to_go_on_is_cancelled_when_its_reader_leaves() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, 0)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let client = reading(&gateway, "POST /x").await;
    origin.received(1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("two");
    gateway
        .until_metric("layby_park_seconds_count", |parks| parks == 1.0)
        .await;
    drop(client);
    let series = "layby_requests_total{class=\"2xx\",method=\"POST\",status=\"200\"}";
    gateway.until_metric(series, |count| count == 1.0).await;
    gate.open();
    slow.await.ok();
    worker.received(kind::CANCEL, 1).await;
    gateway.rests().await;
    assert!(!worker.frames().contains(&kind::RESUME));
}

#[tokio::test]
async fn a_stream_that_parks_when_its_reader_has_left_is_cancelled() {
    let origin = origin::answering("12").await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let (at_gate, plan) = (gate.clone(), Plan::get(&origin.url("/")));
    let worker = worker::new(1)
        .on("/x", move |mut job| {
            let (at_gate, plan) = (at_gate.clone(), plan.clone());
            async move {
                job.begin(Answer::new(200).body("one ")).await;
                at_gate.pass().await;
                job.park(&plan).await?;
                unreachable!("its reader is gone")
            }
        })
        .run(&gateway)
        .await;
    let client = reading(&gateway, "POST /x").await;
    gate.reached(1).await;
    drop(client);
    worker.received(kind::STOP, 1).await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn a_local_wait_in_a_stream_ends_when_its_reader_leaves() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let (hears, at_gate) = (voices.clone(), gate.clone());
    let worker = worker::new(1)
        .on("/x", move |mut job| {
            let hears = hears.clone();
            async move {
                job.begin(Answer::new(200).body("one ")).await;
                hears.hear(job.voice());
                job.park_local().await?;
                unreachable!("its reader is gone")
            }
        })
        .runs(move |job, _| {
            let at_gate = at_gate.clone();
            async move {
                at_gate.pass().await;
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    let client = reading(&gateway, "POST /x").await;
    let voice = voices.next().await;
    voice.call(1).await;
    voice.call(2).await;
    gate.reached(1).await;
    drop(client);
    let series = "layby_park_seconds_count";
    gateway.until_metric(series, |parks| parks == 1.0).await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(worker.calls(), [1]);
}

#[tokio::test]
async fn a_shielded_stream_has_its_results_though_its_reader_has_left() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, flag::SHIELDED).run(&gateway).await;
    let client = reading(&gateway, "GET /x").await;
    origin.received(1).await;
    drop(client);
    let series = "layby_requests_total{class=\"2xx\",method=\"GET\",status=\"200\"}";
    gateway.until_metric(series, |count| count == 1.0).await;
    assert_eq!(gateway.status().await.parked, 1);
    origin.release("two");
    worker.received(kind::RESUME, 1).await;
    gateway.rests().await;
    assert_eq!(origin.aborted_now(), 0);
    assert!(!worker.frames().contains(&kind::CANCEL));
}

#[tokio::test]
async fn head_needs_no_body_so_its_stream_is_cancelled() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, 0).run(&gateway).await;
    let mut client = gateway.connect().await;
    client.send("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response_to("HEAD").await.status(), 200);
    worker.received(kind::CANCEL, 1).await;
    gateway.rests().await;
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
}

// Time -------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stream_may_take_longer_than_its_requests_time() {
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "400ms")
        .run()
        .await;
    let _worker = worker::new(1)
        .on("/x", |mut job: Job| async move {
            job.begin(Answer::new(200).body("one ")).await;
            for _ in 0..3 {
                job.park(&Plan::sleep(0.25)).await?;
                job.more("more ").await;
            }
            job.end("end").await
        })
        .run(&gateway)
        .await;
    takes(Duration::from_millis(750), async || {
        assert_eq!(gateway.get("/x").await.ok(), "one more more more end");
    })
    .await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_plan_in_a_stream_has_as_long_as_a_request() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    let plan = Plan::get(&origin.url("/"));
    let worker = worker::new(1)
        .on("/x", move |mut job| {
            let plan = plan.clone();
            async move {
                job.begin(Answer::new(200).body("one ")).await;
                let results = job.park(&plan).await?;
                job.end(results.error(0)).await
            }
        })
        .run(&gateway)
        .await;
    takes(Duration::from_millis(300), async || {
        assert_eq!(gateway.get("/x").await.ok(), "one timeout");
    })
    .await;
    assert_eq!(worker.cancelled_now(), 0);
    gateway.rests().await;
}

#[tokio::test]
async fn a_local_wait_in_a_stream_that_takes_too_long_cuts_it() {
    let voices = Voices::new();
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    let hears = voices.clone();
    let worker = worker::new(1)
        .on("/x", move |mut job| {
            let hears = hears.clone();
            async move {
                job.begin(Answer::new(200).body("one ")).await;
                hears.hear(job.voice());
                job.park_local().await?;
                job.more("two ").await;
                job.park_local().await?;
                unreachable!("nobody wants it")
            }
        })
        .run(&gateway)
        .await;
    let mut ended = 0;
    takes(Duration::from_millis(300), async || {
        let mut client = gateway.connect().await;
        client
            .send("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .await;
        voices.next().await.want().await;
        assert_eq!(
            client.response().await.body,
            Body::Cut(b"one two ".to_vec())
        );
        ended += 1;
        worker.cancelled(ended).await;
    })
    .await;
    gateway.rests().await;
}

// Workers that die, drain, or speak nonsense -----------------------------------------------

#[tokio::test]
async fn a_parked_stream_is_cut_when_its_worker_dies() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, 0).run(&gateway).await;
    let mut client = gateway.connect().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.received(1).await;
    worker.kill().await;
    assert_eq!(client.response().await.body, Body::Cut(b"one ".to_vec()));
    origin.aborted(1).await;
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_stream_that_waits_to_go_on_is_cut_when_its_worker_dies() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = streaming(1, &origin, 0)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    origin.received(1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("two");
    gateway
        .until_metric("layby_park_seconds_count", |parks| parks == 1.0)
        .await;
    worker.kill().await;
    assert_eq!(client.response().await.body, Body::Cut(b"one ".to_vec()));
    assert_eq!(slow.await.status(), 502);
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_drain_finishes_parked_streams() {
    let origin = origin::stalled().await;
    let mut gateway = gateway::new(1).run().await;
    let _worker = streaming(1, &origin, 0).run(&gateway).await;
    let stream = gateway.get("/x").spawn();
    origin.received(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    origin.release("two");
    assert_eq!(stream.await.ok(), "one two three");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn an_answer_in_parts_does_not_end_with_ready_alone() {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .on("/x", |mut job: Job| async move {
            job.begin(Answer::new(200).body("one ")).await;
            job.park(&Plan::sleep(0.0)).await?;
            job.send(kind::READY, 0, "").await;
            Ok(())
        })
        .run(&gateway)
        .await;
    let answer = gateway.get("/x").await;
    assert_eq!(answer.body, Body::Cut(b"one ".to_vec()));
    let line = gateway.logged("worker refused").await;
    assert!(line.contains("unexpected Ready frame"), "{line}");
    within("the end of the worker", worker.released()).await;
}
