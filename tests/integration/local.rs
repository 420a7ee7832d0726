//! Requests that wait for something in their own process, and what they have run on slots meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http::Pending;
use crate::support::plan::Plan;
use crate::support::worker::{Builder, Job, Voice, Voices};
use crate::support::{origin, takes, worker};

const PARKS: &str = "layby_park_seconds_count";

/// A worker whose requests for `/io` park locally. What they call for ends at once.
fn parking(threads: u16, voices: &Voices) -> Builder {
    worker::new(threads)
        .parks_locally("/io", voices)
        .runs(async |job, _| job.ready().await)
}

/// Waits until the gateway has read everything that this process has said on its control connection:
/// what it says there is done in order.
async fn heard(gateway: &Gateway, worker: &worker::Worker, voices: &Voices) {
    let calls = worker.calls().len();
    let other = gateway.get("/io").spawn();
    let voice = voices.next().await;
    voice.call(u16::MAX).await;
    worker
        .until("a call", |seen| {
            seen.calls.len() > calls && seen.calls.last() == Some(&u16::MAX)
        })
        .await;
    voice.want().await;
    assert_eq!(other.await.ok(), "done");
}

async fn parked(gateway: &Gateway, count: u64) {
    gateway
        .until(&format!("{count} parked requests"), |s| s.parked == count)
        .await;
}

#[tokio::test]
async fn a_local_wait_frees_its_slot_and_ends_when_its_process_says_so() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .on("/io", {
            let voices = voices.clone();
            move |mut job| {
                let voices = voices.clone();
                async move {
                    voices.hear(job.voice());
                    job.park_local().await?;
                    assert_eq!(job.tag().1, 1);
                    job.answer(200, "done").await
                }
            }
        })
        .run(&gateway)
        .await;

    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    assert_eq!(gateway.metric("layby_parked_requests").await, 1.0);
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert!(!io.is_answered());
    assert_eq!(gateway.metric(PARKS).await, 0.0);

    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    assert_eq!(gateway.metric(PARKS).await, 1.0);
    assert_eq!(worker.most(), 1);
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_asked_before_the_park_is_read_is_not_lost() {
    let (voices, early, gate) = (Voices::new(), Voices::new(), Gate::new());
    let gateway = gateway::new(2).run().await;
    let (hears, at_gate) = (early.clone(), gate.clone());
    let worker = parking(2, &voices)
        .on("/early", move |mut job| {
            let (hears, at_gate) = (hears.clone(), at_gate.clone());
            async move {
                hears.hear(job.voice());
                at_gate.pass().await;
                job.park_local().await?;
                job.answer(200, "early").await
            }
        })
        .run(&gateway)
        .await;

    let request = gateway.get("/early").spawn();
    let voice = early.next().await;
    voice.call(1).await;
    heard(&gateway, &worker, &voices).await;
    assert_eq!(worker.calls(), [u16::MAX], "it is not parked yet");
    gate.open();
    worker
        .until("the call", |seen| seen.calls.contains(&1))
        .await;
    voice.want().await;
    assert_eq!(request.await.ok(), "early");

    // The same for the end of the wait itself.
    let gate = Gate::new();
    drop(worker);
    let (hears, at_gate) = (early.clone(), gate.clone());
    let worker = parking(2, &voices)
        .on("/early", move |mut job| {
            let (hears, at_gate) = (hears.clone(), at_gate.clone());
            async move {
                hears.hear(job.voice());
                at_gate.pass().await;
                job.park_local().await?;
                job.answer(200, "early").await
            }
        })
        .run(&gateway)
        .await;
    let request = gateway.get("/early").spawn();
    early.next().await.want().await;
    heard(&gateway, &worker, &voices).await;
    gate.open();
    assert_eq!(request.await.ok(), "early");
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_asked_too_late_or_for_another_means_nothing() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let hears = voices.clone();
    let worker = parking(1, &voices)
        .on("/twice", move |mut job| {
            let hears = hears.clone();
            async move {
                for _ in 0..2 {
                    hears.hear(job.voice());
                    job.park_local().await?;
                }
                job.answer(200, "twice").await
            }
        })
        .run(&gateway)
        .await;
    // There is no slot left for this one.
    let stranger = worker::new(1).connect(&gateway).await;

    let twice = gateway.get("/twice").spawn();
    let first = voices.next().await;
    first.want().await;
    let second = voices.next().await;
    parked(&gateway, 1).await;
    let (request, epoch) = second.tag();
    assert_eq!(first.tag(), (request, epoch - 1));
    // Of a park that is over, of one that is not yet, of a request that is not, of another process.
    first.want().await;
    first.call(1).await;
    second.at(request, epoch + 1).want().await;
    second.at(request + 1, epoch).want().await;
    second.at(request + 1, epoch).call(2).await;
    let mut frame = Frame::new(kind::WANT);
    (frame.request, frame.epoch) = (request, epoch);
    stranger.say(&frame).await;
    heard(&gateway, &worker, &voices).await;
    assert!(!twice.is_answered());
    assert_eq!(worker.calls(), [u16::MAX]);

    second.want().await;
    assert_eq!(twice.await.ok(), "twice");
    // After its end.
    second.want().await;
    second.call(3).await;
    heard(&gateway, &worker, &voices).await;
    assert_eq!(worker.calls(), [u16::MAX, u16::MAX]);
}

#[tokio::test]
async fn calls_run_side_by_side_on_the_slots_of_their_process() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(3).run().await;
    let worker = calling_at(&gate, 2, &voices).run(&gateway).await;

    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    let other = worker::new(1).run(&gateway).await;
    for number in [7, 3, 9] {
        voice.call(number).await;
    }
    gate.reached(2).await;
    // The other process has said hello; its slot comes a moment later.
    gateway
        .until("two of three slots busy, one of another process", |s| {
            (s.busy, s.idle, s.parked) == (2, 1, 1)
        })
        .await;
    gate.open();
    worker.received(kind::RUN, 3).await;
    gate.reached(3).await;
    assert_eq!(worker.calls(), [7, 3, 9]);
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    assert_eq!(worker.most(), 2);
    assert!(other.requests().is_empty() && other.calls().is_empty());
    gateway.rests().await;
}

#[tokio::test]
async fn one_slot_is_enough_for_a_request_and_its_calls() {
    let (voices, ran) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let at_end = ran.clone();
    let worker = worker::new(1)
        .on("/parallel", {
            let voices = voices.clone();
            move |mut job| {
                let (voices, ran) = (voices.clone(), ran.clone());
                async move {
                    let voice = job.voice();
                    for number in 0..10 {
                        voice.call(number).await;
                    }
                    voices.hear(voice.clone());
                    tokio::spawn(async move {
                        ran.reached(10).await;
                        voice.want().await;
                    });
                    job.park_local().await?;
                    job.answer(200, "all ten").await
                }
            }
        })
        .runs(move |job, _| {
            let at_end = at_end.clone();
            at_end.open_once();
            async move {
                at_end.pass().await;
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/parallel").await.ok(), "all ten");
    assert_eq!(worker.calls(), (0..10).collect::<Vec<_>>());
    assert_eq!(worker.most(), 1);
    gateway.rests().await;
}

#[tokio::test]
async fn calls_go_before_new_requests_and_starve_none() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = parking(1, &voices)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;

    let ios = [gateway.get("/io").spawn(), gateway.get("/io").spawn()];
    let (one, other) = (voices.next().await, voices.next().await);
    parked(&gateway, 2).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    gateway
        .until("the new request in the queue", |s| s.queued == 1)
        .await;
    for number in 0..5 {
        one.call(number).await;
    }
    // Said last, so everything has been read when it is done.
    other.want().await;
    gateway.until_metric(PARKS, |count| count == 1.0).await;
    gate.open();

    slow.await.ok();
    assert_eq!(ping.await.ok(), "pong");
    worker.received(kind::RESUME, 1).await;
    one.want().await;
    for io in ios {
        assert_eq!(io.await.ok(), "done");
    }
    let frames = worker.frames();
    let slow = 1 + 2; // After the GRANT and the two that park.
    assert_eq!(
        frames[slow..],
        [
            kind::REQUEST,
            kind::RUN,
            kind::RUN,
            kind::RUN,
            kind::REQUEST,
            kind::RUN,
            kind::RUN,
            kind::RESUME,
            kind::RESUME,
        ]
    );
    gateway.rests().await;
}

#[tokio::test]
async fn a_call_may_wait_in_place_and_is_counted() {
    let voices = Voices::new();
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/")).held("unsupported", "shop/views.py:7");
    let _worker = parking(1, &voices)
        .runs(move |mut job, _| {
            let plan = plan.clone();
            async move {
                let results = job.hold(&plan).await?;
                assert_eq!(results.text(0), "12");
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    voice.call(1).await;
    origin.received(1).await;
    let status = gateway.status().await;
    assert_eq!((status.busy, status.parked), (1, 1));
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 1.0);
    let series = "layby_waits_in_place_total{reason=\"unsupported\"}";
    assert_eq!(gateway.metric(series).await, 1.0);
    origin.release("12");
    gateway.until("an idle slot", |s| s.idle == 1).await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
}

#[tokio::test]
async fn a_call_waits_in_place_no_longer_than_its_requests_deadline() {
    let voices = Voices::new();
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "500ms")
        .run()
        .await;
    let plan = Plan::get(&origin.url("/")).held("unsupported", "shop/views.py:7");
    let worker = worker::new(1)
        .parks_locally("/io", &voices)
        .runs(move |mut job, _| {
            let plan = plan.clone();
            async move {
                let results = job.hold(&plan).await?;
                assert_eq!(results.error(0), "timeout");
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    // A POST goes on after its deadline, so nothing but that ends the fetch.
    let io = gateway.post("/io", "").spawn();
    let voice = voices.next().await;
    voice.call(1).await;
    origin.received(1).await;
    assert_eq!(io.await.status(), 504);
    origin.aborted(1).await;
    voice.want().await;
    gateway.rests().await;
    assert_eq!(worker.cancelled_now(), 0);
}

#[tokio::test]
async fn what_still_runs_when_its_request_goes_on_runs_to_its_end() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let (at_gate, plan) = (gate.clone(), Plan::get(&origin.url("/")));
    let plan = plan.held("unsupported", "shop/views.py:7");
    let worker = worker::new(2)
        .parks_locally("/io", &voices)
        .runs(move |mut job, _| {
            let (at_gate, plan) = (at_gate.clone(), plan.clone());
            async move {
                at_gate.pass().await;
                // Long after its request has been answered.
                let results = job.hold(&plan).await?;
                assert_eq!(results.text(0), "12");
                job.ready().await
            }
        })
        .run(&gateway)
        .await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    voice.call(1).await;
    gate.reached(1).await;
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    assert_eq!(gateway.status().await.busy, 1);
    gate.open();
    origin.received(1).await;
    origin.release("12");
    gateway.rests().await;
    assert_eq!((worker.cancelled_now(), origin.aborted_now()), (0, 0));
}

#[tokio::test]
async fn calls_that_wait_for_a_slot_are_forgotten_when_their_request_goes_on() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = parking(1, &voices)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    voice.call(1).await;
    voice.call(2).await;
    voice.want().await;
    gateway.until_metric(PARKS, |count| count == 1.0).await;
    gate.open();
    slow.await.ok();
    assert_eq!(io.await.ok(), "done");
    gateway.rests().await;
    assert!(worker.calls().is_empty());
}

#[tokio::test]
async fn a_process_that_calls_without_end_is_broken_off() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let gate = Gate::new();
    let worker = parking(1, &voices)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    // As many as there are slots may be over without the gateway's knowing it.
    for number in 0..=1001 {
        voice.call(number).await;
    }
    assert_eq!(io.await.status(), 502);
    assert_eq!(slow.await.status(), 502);
    let line = gateway.logged("more than 1000 calls at a time").await;
    assert!(line.contains("worker lost"), "{line}");
    worker.kill().await;
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn calls_that_are_over_make_room_for_others() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let worker = parking(1, &voices).run(&gateway).await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    for number in 0..1500u16 {
        voice.call(number).await;
        if number % 500 == 499 {
            worker.received(kind::RUN, usize::from(number) + 1).await;
        }
    }
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    gateway.rests().await;
}

// Leaving clients --------------------------------------------------------------------------

/// A request that waits locally, with a call that runs at the gate, and two that wait for a slot.
async fn busy_with_calls(
    gateway: &Gateway,
    method: &str,
    voices: &Voices,
    gate: &Gate,
) -> (Pending, Voice) {
    let io = gateway.request(method, "/io").body("").spawn();
    let voice = voices.next().await;
    for number in 1..=3 {
        voice.call(number).await;
    }
    gate.reached(1).await;
    (io, voice)
}

/// Its requests for `/io` park locally, and their calls wait at the gate.
fn calling_at(gate: &Gate, threads: u16, voices: &Voices) -> Builder {
    let gate = gate.clone();
    worker::new(threads)
        .parks_locally("/io", voices)
        .runs(move |job, _| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                job.ready().await
            }
        })
}

#[tokio::test]
async fn a_get_whose_client_leaves_is_cancelled_and_its_waiting_calls_forgotten() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = calling_at(&gate, 1, &voices).run(&gateway).await;
    let (leaver, voice) = busy_with_calls(&gateway, "GET", &voices, &gate).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"parked\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    // The call that runs is let run; the slot is its until it says so.
    assert_eq!(gateway.status().await.busy, 1);
    voice.want().await;
    voice.call(4).await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
    assert_eq!(worker.calls(), [1]);
    let frames = worker.frames();
    assert!(!frames.contains(&kind::RESUME), "{frames:?}");
}

#[tokio::test]
async fn a_post_whose_client_leaves_goes_on_with_its_calls() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = calling_at(&gate, 1, &voices).run(&gateway).await;
    let (leaver, voice) = busy_with_calls(&gateway, "POST", &voices, &gate).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"parked\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    gate.open();
    worker.received(kind::RUN, 3).await;
    voice.want().await;
    worker.received(kind::RESUME, 1).await;
    gateway.rests().await;
    assert_eq!(worker.calls(), [1, 2, 3]);
    assert_eq!(worker.cancelled_now(), 0);
}

#[tokio::test]
async fn a_shielded_get_goes_on_when_its_client_leaves() {
    let voices = Voices::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .parks_locally_with("/io", &voices, flag::SHIELDED)
        .run(&gateway)
        .await;
    let leaver = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"parked\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    assert_eq!(gateway.status().await.parked, 1);
    voice.want().await;
    worker.received(kind::RESUME, 1).await;
    gateway.rests().await;
    assert_eq!(worker.cancelled_now(), 0);
}

#[tokio::test]
async fn a_call_that_waits_in_place_is_cancelled_with_its_request() {
    let voices = Voices::new();
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let plan = Plan::get(&origin.url("/")).held("unsupported", "shop/views.py:7");
    let worker = worker::new(2)
        .parks_locally("/io", &voices)
        .runs(move |mut job, _| {
            let plan = plan.clone();
            async move {
                job.hold(&plan).await?;
                unreachable!("its client is gone")
            }
        })
        .run(&gateway)
        .await;
    let leaver = gateway.get("/io").spawn();
    voices.next().await.call(1).await;
    origin.received(1).await;
    leaver.leave().await;
    origin.aborted(1).await;
    worker.cancelled(2).await;
    gateway.rests().await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
}

#[tokio::test]
async fn a_get_that_is_wanted_is_cancelled_when_its_client_leaves_before_it_has_a_slot() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = parking(1, &voices)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let leaver = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    voice.want().await;
    gateway.until_metric(PARKS, |count| count == 1.0).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"parked\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    gate.open();
    slow.await.ok();
    worker.cancelled(1).await;
    gateway.rests().await;
    assert!(!worker.frames().contains(&kind::RESUME));
}

#[tokio::test]
async fn a_get_whose_client_left_while_it_ran_is_cancelled_when_it_waits_locally() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let (hears, at_gate) = (voices.clone(), gate.clone());
    let worker = worker::new(1)
        .on("/io", move |mut job| {
            let (hears, at_gate) = (hears.clone(), at_gate.clone());
            async move {
                hears.hear(job.voice());
                at_gate.pass().await;
                job.park_local().await?;
                unreachable!("its client is gone")
            }
        })
        .run(&gateway)
        .await;
    let leaver = gateway.get("/io").spawn();
    let voice = voices.next().await;
    gate.reached(1).await;
    // Even though it could go on at once.
    voice.want().await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"running\"}";
    gateway.until_metric(series, |left| left == 1.0).await;
    gate.open();
    worker.cancelled(1).await;
    gateway.rests().await;
}

// Deadlines --------------------------------------------------------------------------------

#[tokio::test]
async fn a_get_that_waits_locally_past_its_deadline_is_answered_on_time_and_cancelled() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(2)
        .set("slots.request_timeout", "500ms")
        .run()
        .await;
    let worker = calling_at(&gate, 2, &voices).run(&gateway).await;
    let mut cancelled = 0;
    takes(Duration::from_millis(500), async || {
        assert_eq!(gateway.get("/io").await.status(), 504);
        cancelled += 1;
    })
    .await;
    worker.cancelled(cancelled).await;

    // The slot that still runs something for it is lost until it is ready.
    for _ in 0..cancelled {
        voices.next().await;
    }
    let io = gateway.get("/io").spawn();
    voices.next().await.call(1).await;
    gate.reached(1).await;
    assert_eq!(io.await.status(), 504);
    gateway.until("a lost slot", |s| s.lost == 1).await;
    gate.open();
    worker.cancelled(cancelled + 1).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_post_that_waits_locally_past_its_deadline_gets_its_time_once_more() {
    let voices = Voices::new();
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "500ms")
        .run()
        .await;
    let worker = worker::new(1)
        .parks_locally("/io", &voices)
        .run(&gateway)
        .await;
    let mut cancelled = 0;
    takes(Duration::from_secs(1), async || {
        let begun = Instant::now();
        assert_eq!(gateway.post("/io", "").await.status(), 504);
        assert!(begun.elapsed() >= Duration::from_millis(500));
        assert_eq!(worker.cancelled_now(), cancelled);
        assert_eq!(gateway.status().await.parked, 1);
        cancelled += 1;
        worker.cancelled(cancelled).await;
    })
    .await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_post_is_finished_when_it_is_wanted_within_its_second_time() {
    let voices = Voices::new();
    let done = Gate::new();
    let gateway = gateway::new(1)
        .set("slots.request_timeout", "500ms")
        .run()
        .await;
    let (hears, at_end) = (voices.clone(), done.clone());
    let worker = worker::new(1)
        .on("/io", move |mut job| {
            let (hears, at_end) = (hears.clone(), at_end.clone());
            async move {
                hears.hear(job.voice());
                job.park_local().await?;
                at_end.pass().await;
                job.answer(200, "for nobody").await
            }
        })
        .run(&gateway)
        .await;
    let io = gateway.post("/io", "").spawn();
    let voice = voices.next().await;
    assert_eq!(io.await.status(), 504);
    voice.want().await;
    done.reached(1).await;
    done.open();
    gateway.rests().await;
    assert_eq!(worker.cancelled_now(), 0);
}

// Dead and draining workers ------------------------------------------------------------------

#[tokio::test]
async fn a_dead_worker_ends_its_local_waits_and_their_calls_at_once() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let worker = calling_at(&gate, 1, &voices).run(&gateway).await;
    let (io, _voice) = busy_with_calls(&gateway, "POST", &voices, &gate).await;
    worker.kill().await;
    assert_eq!(io.await.status(), 502);
    parked(&gateway, 0).await;
    assert_eq!(gateway.status().await.lost, 1);
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_draining_worker_is_still_heard() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let gateway = gateway::new(2).run().await;
    let worker = calling_at(&gate, 2, &voices).run(&gateway).await;
    let io = gateway.get("/io").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    worker.say(&Frame::new(kind::BYE)).await;
    worker.received(kind::RETIRE, 1).await;
    voice.call(1).await;
    gate.reached(1).await;
    assert_eq!(worker.open_slots().len(), 1);
    gate.open();
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    worker.released().await;
}

#[tokio::test]
async fn a_drain_of_the_gateway_finishes_local_waits() {
    let (voices, gate) = (Voices::new(), Gate::new());
    let mut gateway = gateway::new(1).run().await;
    let _worker = calling_at(&gate, 1, &voices).run(&gateway).await;
    let io = gateway.post("/io", "").spawn();
    let voice = voices.next().await;
    parked(&gateway, 1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    voice.call(1).await;
    gate.reached(1).await;
    gate.open();
    voice.want().await;
    assert_eq!(io.await.ok(), "done");
    assert!(gateway.ended().await.success());
}

// What only counts -------------------------------------------------------------------------

#[tokio::test]
async fn a_slot_that_is_held_for_nothing_of_the_gateways_is_only_counted() {
    let (held, after) = (Gate::new(), Gate::new());
    let gateway = gateway::new(1).run().await;
    let (at_hold, at_more) = (held.clone(), after.clone());
    let _worker = worker::new(1)
        .on("/io", move |job| {
            let (at_hold, at_more) = (at_hold.clone(), at_more.clone());
            async move {
                hold_local(&job, "transaction", "shop/views.py:3").await;
                at_hold.pass().await;
                job.begin(worker::Answer::new(200).body("one ")).await;
                at_more.pass().await;
                hold_local(&job, "cursor", "shop/views.py:4").await;
                at_hold.pass().await;
                job.more("two ").await;
                at_more.pass().await;
                job.end("three").await
            }
        })
        .run(&gateway)
        .await;
    let waiting = "layby_waiting_in_place";
    let io = gateway.get("/io").spawn();
    for count in 1..=2 {
        held.reached(count).await;
        gateway.until_metric(waiting, |now| now == 1.0).await;
        held.open_once();
        after.reached(count).await;
        gateway.until_metric(waiting, |now| now == 0.0).await;
        assert_eq!(gateway.status().await.busy, 1);
        after.open_once();
    }
    assert_eq!(io.await.ok(), "one two three");
    gateway.rests().await;
    let waits = &gateway.status_json().await["waits_in_place"];
    let wait = |reason: &str, line: &str| json!({ "reason": reason, "source": format!("shop/views.py:{line}"), "count": 1 });
    assert_eq!(
        *waits,
        json!([wait("transaction", "3"), wait("cursor", "4")])
    );
}

async fn hold_local(job: &Job, reason: &str, source: &str) {
    let (request, epoch) = job.tag();
    let why = json!({ "hold": { "reason": reason, "source": source } });
    let mut frame = Frame::new(kind::HOLD);
    frame.flags = flag::LOCAL;
    frame.head = why.to_string().into_bytes();
    (frame.request, frame.epoch) = (request, epoch);
    job.send_raw(&frame).await;
}
