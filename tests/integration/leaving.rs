//! Clients that leave before they are answered.

use crate::support::frames::{flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway, IN_FLIGHT};
use crate::support::plan::Plan;
use crate::support::{origin, worker};

/// Waits until so many clients are known to have left in this phase.
async fn left(gateway: &Gateway, phase: &str, count: f64) {
    let series = format!("layby_requests_cancelled_total{{phase=\"{phase}\"}}");
    gateway.until_metric(&series, |left| left == count).await;
}

#[tokio::test]
async fn a_request_whose_client_leaves_the_queue_never_runs() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    for method in ["GET", "POST"] {
        let leaver = gateway.request(method, "/never").body("").spawn();
        gateway
            .until("the request in the queue", |s| s.queued == 1)
            .await;
        leaver.leave().await;
        gateway.until("an empty queue", |s| s.queued == 0).await;
    }
    left(&gateway, "queued", 2.0).await;
    let series = "layby_requests_total{class=\"4xx\",method=\"POST\",status=\"499\"}";
    gateway.until_metric(series, |count| count == 1.0).await;
    gate.open();
    slow.await.ok();
    gateway.rests().await;
    assert_eq!(worker.requests(), ["GET /slow"]);
}

#[tokio::test]
async fn a_running_request_is_finished_when_its_client_leaves() {
    let (begun, done) = (Gate::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let (at_begin, at_end) = (begun.clone(), done.clone());
    let _worker = worker::new(1)
        .on("/pay", move |job| {
            let (at_begin, at_end) = (at_begin.clone(), at_end.clone());
            async move {
                at_begin.pass().await;
                at_end.pass().await;
                job.answer(200, "for nobody").await
            }
        })
        .run(&gateway)
        .await;

    let leaver = gateway.post("/pay", "12").spawn();
    begun.reached(1).await;
    leaver.leave().await;
    left(&gateway, "running", 1.0).await;
    // The slot is busy until the worker says otherwise.
    assert_eq!(gateway.status().await.busy, 1);
    begun.open();
    done.reached(1).await;
    done.open();
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_get_whose_client_left_while_it_ran_is_cancelled_when_it_parks() {
    let origin = origin::answering("12").await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let (at_gate, plan) = (gate.clone(), Plan::get(&origin.url("/")));
    let worker = worker::new(1)
        .on("/quote", move |mut job| {
            let (at_gate, plan) = (at_gate.clone(), plan.clone());
            async move {
                at_gate.pass().await;
                job.park(&plan).await?;
                unreachable!("its client is gone")
            }
        })
        .run(&gateway)
        .await;

    let leaver = gateway.get("/quote").spawn();
    gate.reached(1).await;
    leaver.leave().await;
    left(&gateway, "running", 1.0).await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn a_parked_get_is_cancelled_and_its_fetch_aborted_when_its_client_leaves() {
    for method in ["GET", "HEAD"] {
        let origin = origin::stalled().await;
        let gateway = gateway::new(1).run().await;
        let worker = worker::new(1)
            .fetches("/quote", &origin.url("/"))
            .run(&gateway)
            .await;

        let leaver = gateway.request(method, "/quote").spawn();
        origin.received(1).await;
        leaver.leave().await;
        origin.aborted(1).await;
        worker.cancelled(1).await;
        left(&gateway, "parked", 1.0).await;
        gateway.rests().await;
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
    }
}

#[tokio::test]
async fn a_parked_post_is_finished_when_its_client_leaves() {
    let origin = origin::stalled().await;
    let done = Gate::new();
    let gateway = gateway::new(1).run().await;
    let (at_end, plan) = (done.clone(), Plan::get(&origin.url("/")));
    let worker = worker::new(1)
        .on("/pay", move |mut job| {
            let (at_end, plan) = (at_end.clone(), plan.clone());
            async move {
                let results = job.park(&plan).await?;
                assert_eq!(results.text(0), "paid");
                at_end.pass().await;
                job.answer(200, "for nobody").await
            }
        })
        .run(&gateway)
        .await;

    for (count, method) in [(1, "POST"), (2, "PUT"), (3, "PATCH"), (4, "DELETE")] {
        let leaver = gateway.request(method, "/pay").body("12").spawn();
        origin.received(count).await;
        leaver.leave().await;
        left(&gateway, "parked", count as f64).await;
    }
    assert_eq!(gateway.status().await.parked, 4);
    done.open();
    origin.release("paid");
    done.reached(4).await;
    gateway.rests().await;
    assert_eq!((worker.cancelled_now(), origin.aborted_now()), (0, 0));
}

#[tokio::test]
async fn on_disconnect_cancel_ends_parked_posts_too() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.on_disconnect", "cancel")
        .run()
        .await;
    let worker = worker::new(1)
        .fetches("/pay", &origin.url("/"))
        .run(&gateway)
        .await;

    let leaver = gateway.post("/pay", "12").spawn();
    origin.received(1).await;
    leaver.leave().await;
    worker.cancelled(1).await;
    origin.aborted(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_shielded_request_is_cancelled_only_once_its_shield_is_gone() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let worker = worker::new(1)
        .on("/quote", move |mut job| {
            let plan = plan.clone();
            async move {
                let results = job.park_with(&plan, flag::SHIELDED).await?;
                assert_eq!(results.text(0), "12");
                job.park(&plan).await?;
                unreachable!("its client is gone")
            }
        })
        .run(&gateway)
        .await;

    let leaver = gateway.get("/quote").spawn();
    origin.received(1).await;
    leaver.leave().await;
    left(&gateway, "parked", 1.0).await;
    assert_eq!(gateway.status().await.parked, 1);
    origin.release("12");
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(origin.aborted_now(), 0);
    assert_eq!(
        worker
            .frames()
            .iter()
            .filter(|it| **it == kind::RESUME)
            .count(),
        1
    );
}

#[tokio::test]
async fn a_get_that_waits_to_resume_is_cancelled_when_its_client_leaves() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;

    let leaver = gateway.get("/quote").spawn();
    origin.received(1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("12");
    gateway
        .until_metric("layby_park_seconds_count", |count| count == 1.0)
        .await;
    leaver.leave().await;
    left(&gateway, "parked", 1.0).await;
    gate.open();
    slow.await.ok();
    worker.cancelled(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_get_that_waits_in_place_is_cancelled_when_its_client_leaves() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/")).held("cursor", "shop/views.py:7");
    let worker = worker::new(1).holds("/quote", plan).run(&gateway).await;

    let leaver = gateway.get("/quote").spawn();
    origin.received(1).await;
    leaver.leave().await;
    origin.aborted(1).await;
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
}

#[tokio::test]
async fn a_post_that_waits_in_place_is_finished_when_its_client_leaves() {
    let origin = origin::stalled().await;
    let done = Gate::new();
    let gateway = gateway::new(1).run().await;
    let at_end = done.clone();
    let plan = Plan::get(&origin.url("/")).held("transaction", "shop/views.py:8");
    let worker = worker::new(1)
        .on("/pay", move |mut job| {
            let (at_end, plan) = (at_end.clone(), plan.clone());
            async move {
                let results = job.hold(&plan).await?;
                assert_eq!(results.text(0), "paid");
                at_end.pass().await;
                job.answer(200, "for nobody").await
            }
        })
        .run(&gateway)
        .await;

    let leaver = gateway.post("/pay", "12").spawn();
    origin.received(1).await;
    leaver.leave().await;
    left(&gateway, "parked", 1.0).await;
    origin.release("paid");
    done.open();
    done.reached(1).await;
    gateway.rests().await;
    assert_eq!(worker.cancelled_now(), 0);
}

#[tokio::test]
async fn unsafe_fetches_run_out_when_their_client_leaves() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.on_disconnect", "cancel")
        .run()
        .await;
    let worker = worker::new(1)
        .parks("/pay", Plan::post(&origin.url("/charge"), b"12"))
        .run(&gateway)
        .await;

    let leaver = gateway.post("/pay", "12").spawn();
    origin.received(1).await;
    leaver.leave().await;
    worker.cancelled(1).await;
    assert_eq!(origin.aborted_now(), 0);
    assert_eq!(gateway.metric(IN_FLIGHT).await, 1.0);
    origin.release("paid");
    gateway
        .until_metric("layby_leftover_fetches_total", |count| count == 1.0)
        .await;
    assert_eq!(gateway.metric(IN_FLIGHT).await, 0.0);
    assert_eq!(origin.aborted_now(), 0);
}

#[tokio::test]
async fn a_flood_of_leavers_displaces_no_live_work() {
    let origin = origin::stalled().await;
    let unwinding = Gate::new();
    let gateway = gateway::new(2).run().await;
    let (at_end, plan) = (unwinding.clone(), Plan::get(&origin.url("/")));
    let worker = worker::new(2)
        .on("/quote", move |mut job| {
            let (at_end, plan) = (at_end.clone(), plan.clone());
            async move {
                let ended = job.park(&plan).await;
                at_end.pass().await;
                ended?;
                job.answer(200, "12").await
            }
        })
        .run(&gateway)
        .await;

    let leavers: Vec<_> = (0..8).map(|_| gateway.get("/quote").spawn()).collect();
    origin.received(8).await;
    for leaver in leavers {
        leaver.leave().await;
    }
    left(&gateway, "parked", 8.0).await;
    unwinding.reached(1).await;
    // One slot unwinds, the other one is for the living.
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(unwinding.arrived(), 1);
    unwinding.open();
    worker.cancelled(8).await;
    gateway.rests().await;
}
