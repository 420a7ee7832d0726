//! What waits for a slot, for how long, and what is said when it waits in vain.

use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::plan::Plan;
use crate::support::{origin, takes, worker};

async fn shed(gateway: &Gateway, reason: &str) -> f64 {
    let series = format!("layby_requests_shed_total{{reason=\"{reason}\"}}");
    gateway.metric(&series).await
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let gate = Gate::new();
    let gateway = gateway::new(1)
        .set("slots.queue", "1")
        .set("slots.queue_timeout", "7s")
        .run()
        .await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    gateway.until("a full queue", |s| s.queued == 1).await;
    takes(Duration::ZERO, async || {
        let refused = gateway.get("/refused").await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.header("retry-after"), Some("7"));
    })
    .await;
    assert!(shed(&gateway, "queue_full").await >= 1.0);

    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(ping.await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /slow", "GET /ping"]);
    gateway.rests().await;
}

#[tokio::test]
async fn without_a_queue_only_idle_slots_take_requests() {
    let gate = Gate::new();
    let gateway = gateway::new(1).set("slots.queue", "0").run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    assert_eq!(gateway.get("/ping").await.status(), 503);
    gate.open();
    slow.await.ok();
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn what_waits_too_long_is_refused_on_time() {
    let gate = Gate::new();
    let gateway = gateway::new(1)
        .set("slots.queue_timeout", "400ms")
        .run()
        .await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    takes(Duration::from_millis(400), async || {
        let refused = gateway.get("/ping").await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.header("retry-after"), Some("1"));
    })
    .await;
    assert!(shed(&gateway, "queue_timeout").await >= 1.0);

    gate.open();
    slow.await.ok();
    assert_eq!(worker.requests(), ["GET /slow"]);
    gateway.rests().await;
}

#[tokio::test]
async fn requests_wait_for_workers_that_are_not_there_yet() {
    let gateway = gateway::new(2).run().await;
    assert_eq!(gateway.status().await.lost, 2);
    let ping = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;
    let _worker = worker::new(2).run(&gateway).await;
    assert_eq!(ping.await.ok(), "pong");
}

#[tokio::test]
async fn a_request_is_answered_on_time_while_its_worker_is_stuck() {
    let gate = Gate::new();
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "500ms")
        .run()
        .await;
    let _worker = worker::new(1).waits("/stuck", &gate).run(&gateway).await;

    let mut client = gateway.connect().await;
    takes(Duration::from_millis(500), async || {
        let head = "POST /stuck HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        client.send(head).await;
        assert_eq!(client.response().await.status(), 504);
    })
    .await;
    // The slot is the worker's until it says otherwise.
    let status = gateway.status().await;
    assert_eq!((status.idle, status.busy, status.lost), (0, 0, 1));

    // The late answer is for nobody, least of all for the next request of that connection.
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gateway
        .until("the next request in the queue", |s| s.queued == 1)
        .await;
    gate.open();
    assert_eq!(client.response().await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_whose_time_is_over_in_the_queue_never_runs() {
    let gate = Gate::new();
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "400ms")
        .run()
        .await;
    let worker = worker::new(1).waits("/stuck", &gate).run(&gateway).await;

    let stuck = gateway.get("/stuck").spawn();
    gate.reached(1).await;
    takes(Duration::from_millis(400), async || {
        assert_eq!(gateway.get("/ping").await.status(), 504);
    })
    .await;
    assert_eq!(stuck.await.status(), 504);
    gate.open();
    gateway.rests().await;
    assert_eq!(worker.requests(), ["GET /stuck"]);
}

#[tokio::test]
async fn a_parked_request_is_answered_on_time_and_unwound() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "400ms")
        .run()
        .await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;

    takes(Duration::from_millis(400), async || {
        assert_eq!(gateway.get("/quote").await.status(), 504);
    })
    .await;
    worker.cancelled(1).await;
    origin.aborted(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn an_unsafe_parked_request_is_answered_on_time_and_goes_on_with_what_it_has() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "400ms")
        .run()
        .await;
    let done = Gate::new();
    let (at_end, plan) = (done.clone(), Plan::get(&origin.url("/")));
    let worker = worker::new(1)
        .on("/pay", move |mut job| {
            let (at_end, plan) = (at_end.clone(), plan.clone());
            async move {
                let results = job.park(&plan).await?;
                assert_eq!(results.error(0), "timeout");
                at_end.pass().await;
                job.answer(200, "too late").await
            }
        })
        .run(&gateway)
        .await;

    takes(Duration::from_millis(400), async || {
        assert_eq!(gateway.post("/pay", "").await.status(), 504);
    })
    .await;
    done.open();
    done.reached(1).await;
    gateway.rests().await;
    assert_eq!(worker.cancelled_now(), 0);
}

#[tokio::test]
async fn a_held_request_is_answered_on_time() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "400ms")
        .run()
        .await;
    let plan = Plan::get(&origin.url("/")).held("mode", "");
    let worker = worker::new(1).holds("/quote", plan).run(&gateway).await;

    takes(Duration::from_millis(400), async || {
        assert_eq!(gateway.get("/quote").await.status(), 504);
    })
    .await;
    worker.cancelled(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn the_queue_is_first_come_first_served() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let mut waiting = Vec::new();
    for number in 1..=5 {
        waiting.push(gateway.get(&format!("/ping?{number}")).spawn());
        gateway
            .until("one more in the queue", |s| s.queued == number)
            .await;
    }
    gate.open();
    slow.await.ok();
    for ping in waiting {
        ping.await.ok();
    }
    assert_eq!(
        worker.requests(),
        [
            "GET /slow",
            "GET /ping?1",
            "GET /ping?2",
            "GET /ping?3",
            "GET /ping?4",
            "GET /ping?5"
        ]
    );
}
