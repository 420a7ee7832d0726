//! Slots that do not come back, and processes that do not answer: who is told, who waits for whom, and when
//! a process is given up. The processes here belong to nobody who could kill them.

use std::time::Duration;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Builder, Gateway};
use crate::support::plan::Plan;
use crate::support::{origin, takes, worker};

const TIME: Duration = Duration::from_millis(400);
const GRACE: Duration = Duration::from_millis(300);

/// A gateway that gives a request 0.4 s, and a slot 0.3 s more.
fn hasty(slots: u16) -> Builder {
    gateway::new(slots)
        .set("slots.request_timeout", format!("{}ms", TIME.as_millis()))
        .set("slots.overdue_grace", format!("{}ms", GRACE.as_millis()))
}

/// The words that the status has for its processes.
async fn states(gateway: &Gateway) -> Vec<String> {
    let processes = gateway.status_json().await["processes"].clone();
    let processes = processes.as_array().expect("an array");
    let state = |process: &serde_json::Value| process["state"].as_str().expect("text").to_owned();
    processes.iter().map(state).collect()
}

#[tokio::test]
async fn a_stuck_slot_costs_its_process_after_the_grace() {
    let gate = Gate::new();
    let gateway = hasty(2).run().await;
    let stuck = worker::new(2).waits("/stuck", &gate).run(&gateway).await;

    takes(TIME, async || {
        assert_eq!(gateway.get("/stuck?key=secret").await.status(), 504);
        // For the next try, if there is one.
        gate.open_once();
        gateway.rests().await;
    })
    .await;
    assert_eq!(gateway.get("/stuck?key=secret").await.status(), 504);
    let status = gateway.status().await;
    assert_eq!((status.lost, status.processes), (1, 1));
    assert_eq!(
        gateway.get("/ping").await.ok(),
        "pong",
        "the other slot serves"
    );
    assert_eq!(gateway.admin("/readyz").await.status(), 200);

    let line = gateway.logged("worker overdue").await;
    assert!(line.contains("the time of GET /stuck, request "), "{line}");
    assert!(!line.contains("secret"), "{line}");
    stuck.released().await;
    gateway.logged("worker lost").await;
    gateway.logged("was started by somebody else").await;
    let readiness = gateway.admin("/readyz").await;
    assert_eq!(readiness.status(), 503);
    assert!(stuck.frames().contains(&kind::STACK));
    // The idle slot has been given back, the stuck one is lost until its thread is gone.
    let next = worker::new(2).connect(&gateway).await;
    next.until("the slot that came back", |seen| seen.open.len() == 1)
        .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.status().await.lost, 1);
    stuck.kill().await;
    next.until("the other one", |seen| seen.open.len() == 2)
        .await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_slot_that_comes_back_within_the_grace_costs_nothing() {
    let gate = Gate::new();
    let gateway = hasty(1).set("slots.overdue_grace", "60s").run().await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    assert_eq!(gateway.get("/slow").await.status(), 504);
    worker.received(kind::STACK, 1).await;
    gate.open();
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.log_lines("worker overdue").len(), 0);
    assert_eq!(states(&gateway).await, ["ready"]);
}

/// Both of them: the one that is parked, and the one that runs.
#[tokio::test]
async fn what_else_a_process_has_is_waited_for() {
    let origin = origin::stalled().await;
    let (stuck, slow) = (Gate::new(), Gate::new());
    let gateway = gateway::new(3)
        .set("slots.request_timeout", "4s")
        .set("slots.overdue_grace", "50ms")
        .run()
        .await;
    let old = worker::new(3)
        .fetches("/quote", &origin.url("/"))
        .waits("/stuck", &stuck)
        .waits("/slow", &slow)
        .run(&gateway)
        .await;
    let lost = gateway.get("/stuck").spawn();
    stuck.reached(1).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // Admitted later, so their time is not over when that of the stuck one is.
    let running = gateway.get("/slow").spawn();
    slow.reached(1).await;
    let parked = gateway.get("/quote").spawn();
    origin.received(1).await;
    assert_eq!(lost.await.status(), 504);

    gateway.logged("worker overdue").await;
    assert_eq!(states(&gateway).await, ["overdue"]);
    // What comes now waits for somebody else.
    let late = gateway.get("/ping").spawn();
    gateway.until("it in the queue", |s| s.queued == 1).await;
    slow.open();
    assert_eq!(running.await.ok(), "done");
    let next = worker::new(2).connect(&gateway).await;
    assert_eq!(late.await.ok(), "pong");
    origin.release("12");
    assert_eq!(parked.await.ok(), "12");
    old.released().await;
    let stacks = old.stacks().len();
    assert_eq!(stacks, 1);
    drop(old);
    next.until("both slots", |seen| seen.open.len() == 2).await;
}

/// A worker that parks for a plan, `/stream` in the middle of its answer, and does not come to an end when
/// that is over, before the gate is open.
fn hangs_when_unwound(plan: Plan, gate: &Gate) -> worker::Builder {
    let gate = gate.clone();
    let parks = move |mut job: worker::Job| {
        let (plan, gate) = (plan.clone(), gate.clone());
        async move {
            if job.environ("PATH_INFO") == "/stream" {
                job.begin(worker::Answer::new(200).body("first")).await;
            }
            let cancelled = job.park(&plan).await.map(drop);
            gate.pass().await;
            cancelled
        }
    };
    worker::new(1)
        .on("/quote", parks.clone())
        .on("/stream", parks)
}

/// Its thread unwinds the request after its client had 504; that must end, too.
#[tokio::test]
async fn a_request_that_is_unwound_for_ever_is_stuck_as_well() {
    let origin = origin::stalled().await;
    let gateway = hasty(1).run().await;
    let never = Gate::new();
    let plan = Plan::get(&origin.url("/"));
    let worker = hangs_when_unwound(plan, &never).run(&gateway).await;
    assert_eq!(gateway.get("/quote").await.status(), 504);
    never.reached(1).await;
    let line = gateway.logged("worker overdue").await;
    assert!(line.contains("GET /quote"), "{line}");
    worker.released().await;
}

/// Its lock is held by a request that can go on in the same slot only, which has no hope then.
#[tokio::test]
async fn a_request_that_waits_for_a_stuck_slot_is_not_waited_for() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = hasty(1).run().await;
    let plan = Plan::get(&origin.url("/"));
    let worker = worker::new(1)
        .waits("/stuck", &gate)
        .on("/pinned", move |mut job| {
            let plan = plan.clone();
            async move {
                job.park_with(&plan, flag::PINNED).await?;
                job.answer(200, "never").await
            }
        })
        .run(&gateway)
        .await;
    let pinned = gateway.get("/pinned").spawn();
    origin.received(1).await;
    let stuck = gateway.get("/stuck").spawn();
    gate.reached(1).await;
    origin.release("12");
    assert_eq!(stuck.await.status(), 504);
    assert_eq!(pinned.await.status(), 504);
    worker.released().await;
    gateway.until("no request left", |s| s.parked == 0).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_stuck_slot_for_ever() {
    let gate = Gate::new();
    let gateway = hasty(2).run().await;
    let worker = worker::new(2).waits("/stuck", &gate).run(&gateway).await;
    let stuck = gateway.get("/stuck").spawn();
    gate.reached(1).await;
    worker.say(&Frame::new(kind::BYE)).await;
    assert_eq!(stuck.await.status(), 504);
    worker.released().await;
    worker.kill().await;
    let _next = worker::new(2).run(&gateway).await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_and_that_does_not_end_is_stuck() {
    let gate = Gate::new();
    let gateway = hasty(1).run().await;
    let waits = gate.clone();
    let worker = worker::new(1)
        .on("/stream", move |job| {
            let gate = waits.clone();
            async move {
                job.begin(worker::Answer::new(200).body("first")).await;
                gate.pass().await;
                job.end("last").await
            }
        })
        .run(&gateway)
        .await;
    let mut client = gateway.connect().await;
    client
        .send("GET /stream HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    gate.reached(1).await;
    // While it is read it may take its time.
    tokio::time::sleep(TIME + GRACE).await;
    assert_eq!(gateway.status().await.busy, 1);
    drop(client);
    worker.received(kind::STOP, 1).await;
    let line = gateway.logged("worker overdue").await;
    assert!(line.contains("GET /stream"), "{line}");
    worker.released().await;
}

/// Nobody reads it any more, so nobody's time is over; that must end all the same.
#[tokio::test]
async fn a_parked_stream_that_is_unwound_for_ever_is_stuck() {
    let origin = origin::stalled().await;
    let gateway = hasty(1).run().await;
    let never = Gate::new();
    let plan = Plan::get(&origin.url("/"));
    let worker = hangs_when_unwound(plan, &never).run(&gateway).await;
    let mut client = gateway.connect().await;
    client
        .send("GET /stream HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await;
    origin.received(1).await;
    drop(client);
    never.reached(1).await;
    let line = gateway.logged("worker overdue").await;
    assert!(line.contains("GET /stream"), "{line}");
    worker.released().await;
}

#[tokio::test]
async fn a_process_that_does_not_answer_gets_no_new_requests_and_is_given_up() {
    let gateway = hasty(2).run().await;
    let mute = worker::new(1).mute().run(&gateway).await;
    let live = worker::new(1).pings().run(&gateway).await;
    mute.received(kind::PING, 1).await;
    gateway.logged("worker silent").await;
    for _ in 0..4 {
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
    }
    assert_eq!(live.requests().len(), 4);
    assert_eq!(gateway.admin("/readyz").await.status(), 200);

    gateway.logged("worker overdue").await;
    mute.released().await;
    assert_eq!(states(&gateway).await, ["ready"]);
    let pings = live
        .frames()
        .iter()
        .filter(|kind| **kind == kind::PING)
        .count();
    assert!((2..15).contains(&pings), "{pings}");
    drop(mute);
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_gateway_whose_only_process_is_silent_is_not_ready() {
    let gateway = gateway::new(1).run().await;
    let mute = worker::new(1).mute().run(&gateway).await;
    assert_eq!(gateway.admin("/readyz").await.status(), 200);
    gateway.logged("worker silent").await;
    let status = gateway.until("a lost slot", |s| s.lost == 1).await;
    assert_eq!((status.idle, status.busy), (0, 0));
    let lost = gateway.metric("layby_slots{state=\"lost\"}").await;
    assert_eq!(lost, 1.0);
    assert_eq!(gateway.admin("/readyz").await.status(), 503);

    mute.say(&Frame::new(kind::PONG)).await;
    gateway.until("an idle slot", |s| s.idle == 1).await;
    assert_eq!(gateway.admin("/readyz").await.status(), 200);
}

#[tokio::test]
async fn a_process_that_answers_unasked_is_broken_off() {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    worker.say(&Frame::new(kind::PONG)).await;
    worker.released().await;
    let line = gateway.logged("worker lost").await;
    assert!(line.contains("unexpected Pong"), "{line}");
}
