//! Parked requests hold no slot, and go on where they were; what cannot park waits in place.

use serde_json::json;

use crate::support::frames::kind;
use crate::support::gate::Gate;
use crate::support::plan::Plan;
use crate::support::{gateway, origin, worker};

#[tokio::test]
async fn a_parked_request_frees_its_slot() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;

    let quote = gateway.get("/quote").spawn();
    origin.received(1).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    let status = gateway.status().await;
    assert_eq!((status.idle, status.parked), (1, 1));

    origin.release("12");
    assert_eq!(quote.await.ok(), "12");
    gateway.rests().await;
}

#[tokio::test]
async fn many_requests_park_on_one_slot() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;

    let quotes: Vec<_> = (0..50).map(|_| gateway.get("/quote").spawn()).collect();
    origin.received(50).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    origin.release("12");
    for quote in quotes {
        assert_eq!(quote.await.ok(), "12");
    }
    assert_eq!(worker.most(), 1);
    gateway.rests().await;
}

#[tokio::test]
async fn resumed_requests_go_before_new_ones() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;

    let quote = gateway.get("/quote").spawn();
    origin.received(1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    gateway
        .until("the new request in the queue", |s| s.queued == 1)
        .await;
    origin.release("12");
    gateway
        .until_metric("layby_park_seconds_count", |count| count == 1.0)
        .await;
    gate.open();

    assert_eq!(slow.await.ok(), "done");
    assert_eq!(quote.await.ok(), "12");
    assert_eq!(ping.await.ok(), "pong");
    let jobs: Vec<u8> = worker
        .frames()
        .into_iter()
        .filter(|it| *it != kind::GRANT)
        .collect();
    assert_eq!(
        jobs,
        [kind::REQUEST, kind::REQUEST, kind::RESUME, kind::REQUEST]
    );
}

#[tokio::test]
async fn many_resumes_do_not_starve_a_new_request() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;

    let quotes: Vec<_> = (0..12).map(|_| gateway.get("/quote").spawn()).collect();
    origin.received(12).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    gateway
        .until("the new request in the queue", |s| s.queued == 1)
        .await;
    origin.release("12");
    gateway
        .until_metric("layby_park_seconds_count", |count| count == 12.0)
        .await;
    gate.open();

    ping.await.ok();
    slow.await.ok();
    for quote in quotes {
        quote.await.ok();
    }
    let frames = worker.frames();
    let new = frames.iter().rposition(|it| *it == kind::REQUEST);
    let after = &frames[new.expect("it came")..];
    let resumes = after.iter().filter(|it| **it == kind::RESUME).count();
    assert_eq!(resumes, 9, "three resumes, then the new one: {frames:?}");
}

#[tokio::test]
async fn new_requests_wait_while_too_many_are_parked_and_resumes_go_on() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).set("slots.parked", "2").run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;

    let quotes = [gateway.get("/quote").spawn(), gateway.get("/quote").spawn()];
    origin.received(2).await;
    let ping = gateway.get("/ping").spawn();
    let status = gateway
        .until("the new request in the queue", |s| s.queued == 1)
        .await;
    assert_eq!((status.idle, status.parked), (1, 2));
    assert_eq!(worker.requests(), ["GET /quote", "GET /quote"]);

    origin.release("12");
    for quote in quotes {
        assert_eq!(quote.await.ok(), "12");
    }
    assert_eq!(ping.await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn what_cannot_wait_for_parked_requests_is_shed_as_such() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.parked", "1")
        .set("slots.queue", "0")
        .run()
        .await;
    let _worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;

    let quote = gateway.get("/quote").spawn();
    origin.received(1).await;
    assert_eq!(gateway.get("/ping").await.status(), 503);
    let shed = gateway
        .metric("layby_requests_shed_total{reason=\"parked_full\"}")
        .await;
    assert_eq!(shed, 1.0);
    origin.release("12");
    assert_eq!(quote.await.ok(), "12");
}

#[tokio::test]
async fn new_requests_wait_while_running_ones_retain_too_many_bytes() {
    let gate = Gate::new();
    let gateway = gateway::new(2)
        .set("slots.parked_bytes", "64KiB")
        .run()
        .await;
    let _worker = worker::new(2).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.post("/slow", vec![b'x'; 64 << 10]).spawn();
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    let status = gateway
        .until("the new request in the queue", |s| s.queued == 1)
        .await;
    assert_eq!((status.idle, status.busy), (1, 1));
    gate.open();
    slow.await.ok();
    assert_eq!(ping.await.ok(), "pong");
}

#[tokio::test]
async fn a_request_resumes_on_whatever_slot_of_its_process_is_free() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(2)
        .waits("/slow", &gate)
        .on("/slots", move |mut job| {
            let plan = plan.clone();
            async move {
                let before = job.slot();
                job.park(&plan).await?;
                let slots = json!([before, job.slot()]);
                job.answer(200, slots.to_string()).await
            }
        })
        .run(&gateway)
        .await;

    let slots = gateway.get("/slots").spawn();
    origin.received(1).await;
    // The slot that became idle last is taken first.
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("12");
    let slots = slots.await.json();
    assert_ne!(slots[0], slots[1]);
    gate.open();
    slow.await.ok();
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_parks_as_often_as_it_likes() {
    let origin = origin::answering("12").await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(1)
        .on("/loop", move |mut job| {
            let plan = plan.clone();
            async move {
                for epoch in 0..5 {
                    assert_eq!(job.tag().1, epoch);
                    assert_eq!(job.park(&plan).await?.text(0), "12");
                }
                job.answer(200, "round and round").await
            }
        })
        .run(&gateway)
        .await;

    assert_eq!(gateway.get("/loop").await.ok(), "round and round");
    assert_eq!(origin.requests().len(), 5);
    gateway.rests().await;
}

#[tokio::test]
async fn the_fetches_of_a_plan_run_side_by_side() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let fetch = json!({ "fetch": { "method": "GET", "url": origin.url("/") } });
    let plan = Plan::of(json!(vec![fetch; 16]));
    let _worker = worker::new(1).tells("/fan-out", plan).run(&gateway).await;

    let fan_out = gateway.get("/fan-out").spawn();
    origin.received(16).await;
    origin.release("12");
    let results = fan_out.await.json();
    let results = results["results"].as_array().expect("an array");
    assert_eq!(results.len(), 16);
    assert!(results.iter().all(|result| result["status"] == 200));
}

#[tokio::test]
async fn an_unsafe_fetch_carries_its_body() {
    let origin = origin::answering("paid").await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::post(&origin.url("/charge"), b"{\"amount\": 12}");
    let _worker = worker::new(1).parks("/pay", plan).run(&gateway).await;

    assert_eq!(gateway.post("/pay", "").await.ok(), "paid");
    let requests = origin.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].starts_with("POST /charge HTTP/1.1\r\n"),
        "{requests:?}"
    );
    assert!(
        requests[0].ends_with("\r\n\r\n{\"amount\": 12}"),
        "{requests:?}"
    );
}

#[tokio::test]
async fn results_that_are_too_large_for_a_frame_come_as_a_file() {
    let large = "0123456789abcdef".repeat(1 << 16);
    let origin = origin::answering(&large).await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(1)
        .on("/large", move |mut job| {
            let plan = plan.clone();
            async move {
                let results = job.park(&plan).await?;
                assert!(results.by_descriptor);
                job.answer(200, results.body(0)).await
            }
        })
        .run(&gateway)
        .await;

    assert!(gateway.get("/large").await.ok() == large);
    gateway.rests().await;
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
}

#[tokio::test]
async fn a_failed_fetch_is_a_result_and_not_the_end() {
    let origin = origin::saying(b"this is not HTTP").await;
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .tells("/garbage", Plan::get(&origin.url("/")))
        .run(&gateway)
        .await;
    let results = gateway.get("/garbage").await.json();
    assert_eq!(results["results"][0]["error"], "failed", "{results}");
}

#[tokio::test]
async fn what_waits_in_place_keeps_its_slot_and_gets_its_results() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/")).held("transaction", "shop/views.py:88");
    let worker = worker::new(1).holds("/pay", plan).run(&gateway).await;

    let pay = gateway.post("/pay", "").spawn();
    origin.received(1).await;
    let status = gateway.status().await;
    assert_eq!((status.idle, status.busy, status.parked), (0, 1, 0));
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 1.0);
    origin.release("12");
    assert_eq!(pay.await.ok(), "12");

    gateway.rests().await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
    let series = "layby_waits_in_place_total{reason=\"transaction\"}";
    assert_eq!(gateway.metric(series).await, 1.0);
    let waits = &gateway.status_json().await["waits_in_place"];
    let wait = json!([{ "reason": "transaction", "source": "shop/views.py:88", "count": 1 }]);
    assert_eq!(*waits, wait);
    assert_eq!(
        worker
            .frames()
            .iter()
            .filter(|it| **it == kind::RESULTS)
            .count(),
        1
    );
}

#[tokio::test]
async fn large_results_of_a_wait_in_place_come_as_a_file() {
    let large = "0123456789abcdef".repeat(1 << 16);
    let origin = origin::answering(&large).await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/")).held("mode", "");
    let _worker = worker::new(1).holds("/large", plan).run(&gateway).await;
    assert!(gateway.get("/large").await.ok() == large);
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_may_wait_in_place_and_park_in_turn() {
    let origin = origin::answering("12").await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(1)
        .on("/both", move |mut job| {
            let plan = plan.clone();
            async move {
                let held = plan.clone().held("cursor", "shop/views.py:9");
                job.hold(&held).await?;
                job.park(&plan).await?;
                job.hold(&held).await?;
                job.hold(&held).await?;
                job.answer(200, "both").await
            }
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/both").await.ok(), "both");
    assert_eq!(origin.requests().len(), 4);
    gateway.rests().await;
}

#[tokio::test]
async fn a_sleep_holds_no_slot() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .tells("/nap", Plan::sleep(0.2))
        .run(&gateway)
        .await;
    let nap = gateway.get("/nap").spawn();
    gateway.until("the parked request", |s| s.parked == 1).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert!(!nap.is_answered());
    assert_eq!(nap.await.json()["results"][0]["slept"], 0.2);
}
