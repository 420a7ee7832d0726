//! Parked requests that can go on in one slot only, and slots that do what they should not.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::origin::{self, Origin};
use crate::support::plan::Plan;
use crate::support::worker::{self, Builder, Voices};

/// A worker whose requests for `/pinned` park in their slot, and answer with the slots before and after.
fn pinning(threads: u16, origin: &Origin) -> Builder {
    let plan = Plan::get(&origin.url("/"));
    worker::new(threads).on("/pinned", move |mut job| {
        let plan = plan.clone();
        async move {
            let before = job.slot();
            job.park_with(&plan, flag::PINNED).await?;
            let slots = json!([before, job.slot()]);
            job.answer(200, slots.to_string()).await
        }
    })
}

/// Waits until so many results are there, so that what parked with them waits for its slot.
async fn results(gateway: &Gateway, count: u32) {
    let series = "layby_park_seconds_count";
    gateway
        .until_metric(series, |parks| parks == f64::from(count))
        .await;
}

#[tokio::test]
async fn a_pinned_request_goes_on_in_its_own_slot_only() {
    let origin = origin::stalled().await;
    let gates = [Gate::new(), Gate::new()];
    let gateway = gateway::new(2).run().await;
    let worker = pinning(2, &origin)
        .waits("/one", &gates[0])
        .waits("/other", &gates[1])
        .run(&gateway)
        .await;

    let pinned = gateway.get("/pinned").spawn();
    origin.received(1).await;
    // The other slot is the better one for something new, and the pinned one's own is next.
    let one = gateway.get("/one").spawn();
    gates[0].reached(1).await;
    let other = gateway.get("/other").spawn();
    gates[1].reached(1).await;
    origin.release("12");
    results(&gateway, 1).await;
    gates[0].open();
    one.await.ok();
    // A slot is idle, but it is not the one.
    let status = gateway.until("an idle slot", |s| s.idle == 1).await;
    assert_eq!((status.busy, status.parked), (1, 1));
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert!(!pinned.is_answered());
    assert!(!worker.frames().contains(&kind::RESUME));

    gates[1].open();
    other.await.ok();
    let slots = pinned.await.json();
    assert_eq!(slots[0], slots[1]);
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_not_pinned_any_more_goes_on_anywhere() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let plan = Plan::get(&origin.url("/"));
    let _worker = worker::new(2)
        .waits("/slow", &gate)
        .on("/x", move |mut job| {
            let plan = plan.clone();
            async move {
                let first = job.slot();
                job.park_with(&Plan::sleep(0.01), flag::PINNED).await?;
                assert_eq!(job.slot(), first);
                job.park(&plan).await?;
                let slots = json!([first, job.slot()]);
                job.answer(200, slots.to_string()).await
            }
        })
        .run(&gateway)
        .await;
    let x = gateway.get("/x").spawn();
    origin.received(1).await;
    // It left its slot last, so that is taken first.
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("12");
    let slots = x.await.json();
    assert_ne!(slots[0], slots[1]);
    gate.open();
    slow.await.ok();
    gateway.rests().await;
}

#[tokio::test]
async fn new_requests_prefer_slots_that_nobody_is_pinned_to() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(3).run().await;
    let _worker = pinning(3, &origin)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let pinned = [
        gateway.get("/pinned").spawn(),
        gateway.get("/pinned").spawn(),
    ];
    origin.received(2).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    origin.release("12");
    // Each has gone to a slot of its own, and the slow one to the third.
    let mut slots = Vec::new();
    for pinned in pinned {
        let slot = pinned.await.json();
        assert_eq!(slot[0], slot[1]);
        slots.push(slot[0].as_u64());
    }
    assert_ne!(slots[0], slots[1]);
    gate.open();
    slow.await.ok();
}

#[tokio::test]
async fn a_pinned_request_is_cancelled_in_its_own_slot() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let (ended, plan) = (Gate::new(), Plan::get(&origin.url("/")));
    let at_end = ended.clone();
    let worker = worker::new(2)
        .waits("/slow", &gate)
        .on("/pinned", move |mut job| {
            let (at_end, plan) = (at_end.clone(), plan.clone());
            async move {
                let before = job.slot();
                let parked = job.park_with(&plan, flag::PINNED).await;
                assert_eq!(job.slot(), before);
                at_end.pass().await;
                parked.map(drop)
            }
        })
        .run(&gateway)
        .await;
    let leaver = gateway.get("/pinned").spawn();
    origin.received(1).await;
    let slow = [gateway.get("/slow").spawn(), gateway.get("/slow").spawn()];
    gate.reached(2).await;
    leaver.leave().await;
    origin.aborted(1).await;
    gate.open();
    for slow in slow {
        slow.await.ok();
    }
    ended.reached(1).await;
    ended.open();
    worker.cancelled(1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn slots_are_not_taken_back_before_what_is_pinned_to_them_is_over() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let worker = pinning(2, &origin).run(&gateway).await;
    let pinned = [
        gateway.get("/pinned").spawn(),
        gateway.get("/pinned").spawn(),
    ];
    origin.received(2).await;
    worker.say(&Frame::new(kind::BYE)).await;
    worker.received(kind::DRAIN, 1).await;
    // A successor gets no slot yet: both are in use, though idle.
    let next = pinning(2, &origin).connect(&gateway).await;
    let status = gateway.until("two processes", |s| s.processes == 2).await;
    assert_eq!((status.idle, status.parked), (2, 2));
    assert!(!worker.frames().contains(&kind::RETIRE));

    origin.release("12");
    for pinned in pinned {
        let slots = pinned.await.json();
        assert_eq!(slots[0], slots[1]);
    }
    worker.released().await;
    next.received(kind::GRANT, 2).await;
    gateway.rests().await;
    let frames = worker.frames();
    let retired = frames.iter().filter(|it| **it == kind::RETIRE).count();
    assert_eq!(retired, 2, "{frames:?}");
}

#[tokio::test]
async fn a_drain_of_the_gateway_finishes_pinned_requests() {
    let origin = origin::stalled().await;
    let mut gateway = gateway::new(2).run().await;
    let _worker = pinning(2, &origin).run(&gateway).await;
    let pinned = [
        gateway.get("/pinned").spawn(),
        gateway.get("/pinned").spawn(),
    ];
    origin.received(2).await;
    gateway.signal(rustix::process::Signal::TERM);
    gateway.logged("drain started").await;
    origin.release("12");
    for pinned in pinned {
        pinned.await.ok();
    }
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_pinned_request_ends_at_once_with_its_slot() {
    let origin = origin::stalled().await;
    let (voices, gate, dying) = (Voices::new(), Gate::new(), Gate::new());
    let gateway = gateway::new(2).run().await;
    let at_end = dying.clone();
    let worker = pinning(2, &origin)
        .parks_locally_with("/io", &voices, flag::PINNED)
        .waits("/slow", &gate)
        .on("/die", move |job| {
            let at_end = at_end.clone();
            async move {
                at_end.pass().await;
                job.hang_up();
                Ok(())
            }
        })
        .run(&gateway)
        .await;
    // One waits for its fetch, the other one for its slot.
    let pinned = gateway.get("/pinned").spawn();
    origin.received(1).await;
    let io = gateway.post("/io", "").spawn();
    let voice = voices.next().await;
    gateway.until("both parked", |s| s.parked == 2).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let die = gateway.get("/die").spawn();
    dying.reached(1).await;
    voice.want().await;
    results(&gateway, 1).await;
    dying.open();
    for request in [pinned, io, slow, die] {
        assert_eq!(request.await.status(), 502);
    }
    origin.aborted(1).await;
    worker.kill().await;
    let _next = worker::new(2).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_pinned_local_wait_goes_on_in_its_slot_and_its_calls_anywhere() {
    let voices = Voices::new();
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let hears = voices.clone();
    let worker = worker::new(2)
        .waits("/slow", &gate)
        .on("/io", move |mut job| {
            let hears = hears.clone();
            async move {
                let before = job.slot();
                hears.hear(job.voice());
                job.park_local_with(flag::PINNED).await?;
                let slots = json!([before, job.slot()]);
                job.answer(200, slots.to_string()).await
            }
        })
        .runs(async |job, _| job.ready().await)
        .run(&gateway)
        .await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    gateway.until("the parked request", |s| s.parked == 1).await;
    let slow = [gateway.get("/slow").spawn(), gateway.get("/slow").spawn()];
    gate.reached(2).await;
    voice.call(1).await;
    voice.call(2).await;
    gate.open_once();
    worker.received(kind::RUN, 2).await;
    voice.want().await;
    gate.open();
    let slots = io.await.json();
    assert_eq!(slots[0], slots[1]);
    for slow in slow {
        slow.await.ok();
    }
    gateway.rests().await;
}

// Stacks -----------------------------------------------------------------------------------

#[tokio::test]
async fn a_worker_is_asked_once_what_keeps_a_pinned_request_waiting() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .parks_locally_with("/io", &voices, flag::PINNED)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    // Once for each time that the slot is busy.
    for round in 1..=2 {
        let io = gateway.get("/io").spawn();
        let voice = voices.next().await;
        gateway.until("the parked request", |s| s.parked == 1).await;
        let slow = gateway.post("/slow?token=s3cret", "").spawn();
        gate.reached(round).await;
        let begun = Instant::now();
        voice.want().await;
        worker
            .until("the question", |seen| seen.stacks.len() == round)
            .await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        gate.open_once();
        slow.await.ok();
        assert_eq!(io.await.ok(), "done");
    }
    gateway.rests().await;
    let stacks = worker.stacks();
    assert_eq!(stacks.len(), 2, "{stacks:?}");
    for (slot, why) in stacks {
        assert_eq!(slot, 0);
        assert!(
            why.contains("waited 1 s") && why.contains("POST /slow"),
            "{why}"
        );
        assert!(!why.contains("s3cret"), "{why}");
    }
    let lines = gateway.log_lines("slot stuck");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains(" WARN "), "{lines:?}");
}

#[tokio::test]
async fn a_worker_is_asked_what_its_overdue_slot_does() {
    let gate = Gate::new();
    let gateway = gateway::new(2)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    let worker = worker::new(2).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    assert_eq!(slow.await.status(), 504);
    worker
        .until("the question", |seen| !seen.stacks.is_empty())
        .await;
    let (slot, why) = worker.stacks()[0].clone();
    let line = gateway.logged("slot stuck").await;
    assert!(line.contains(" WARN ") && line.contains(&why), "{line}");
    assert!(line.contains(&format!("slot={slot} ")), "{line}");
    assert!(why.contains("GET /slow"), "{why}");
    // It is told once, however long it lasts.
    let another = gateway.get("/slow").spawn();
    gate.reached(2).await;
    assert_eq!(another.await.status(), 504);
    worker
        .until("the next question", |seen| seen.stacks.len() > 1)
        .await;
    assert_ne!(worker.stacks()[1].0, slot);
    assert_eq!(gateway.log_lines("slot stuck").len(), 2);
    gate.open();
    gateway.rests().await;
    assert_eq!(worker.stacks().len(), 2);
}
