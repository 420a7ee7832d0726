//! Worker processes that come, go, die, and speak nonsense; slots are conserved through all of it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::frames::{Frame, Line, PREAMBLE, flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::plan::Plan;
use crate::support::worker::{Answer, Ended, Job, Voices};
use crate::support::{origin, takes, within, worker};

#[tokio::test]
async fn the_terms_of_the_gateway_reach_a_worker() {
    let gateway = gateway::new(1)
        .set("outbound.timeout", "1500ms")
        .set("workers.thread_locals", "shop.state.local,shop.other.local")
        .run()
        .await;
    let worker = worker::new(1).connect(&gateway).await;
    let welcome = worker.welcome();
    assert_eq!(welcome["timeout"], 1.5);
    let locals = json!(["shop.state.local", "shop.other.local"]);
    assert_eq!(welcome["thread_locals"], locals);
    assert!(welcome["max_plan"].as_u64().expect("a number") >= 1 << 20);
}

#[tokio::test]
async fn a_dead_worker_costs_what_it_held_and_nothing_else() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let script = || {
        worker::new(2)
            .fetches("/quote", &origin.url("/"))
            .waits("/slow", &gate)
    };
    let first = script().run(&gateway).await;

    let parked = gateway.get("/quote").spawn();
    origin.received(1).await;
    let running = [gateway.get("/slow").spawn(), gateway.get("/slow").spawn()];
    gate.reached(2).await;
    let waiting = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;

    first.kill().await;
    takes(Duration::ZERO, async || {
        gateway.until("no parked request", |s| s.parked == 0).await;
    })
    .await;
    assert_eq!(parked.await.status(), 502);
    for running in running {
        assert_eq!(running.await.status(), 502);
    }
    origin.aborted(1).await;
    let status = gateway.status().await;
    assert_eq!((status.lost, status.queued, status.processes), (2, 1, 0));

    let _second = script().run(&gateway).await;
    assert_eq!(waiting.await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_that_waits_to_resume_ends_with_its_worker() {
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
    origin.release("12");
    gateway
        .until_metric("layby_park_seconds_count", |count| count == 1.0)
        .await;
    worker.kill().await;
    assert_eq!(quote.await.status(), 502);
    assert_eq!(slow.await.status(), 502);
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_that_waits_in_place_ends_with_its_worker() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1).run().await;
    let plan = Plan::get(&origin.url("/")).held("transaction", "shop/views.py:8");
    let worker = worker::new(1).holds("/pay", plan).run(&gateway).await;

    let pay = gateway.post("/pay", "").spawn();
    origin.received(1).await;
    worker.kill().await;
    assert_eq!(pay.await.status(), 502);
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
}

#[tokio::test]
async fn the_death_of_one_process_leaves_the_other_alone() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let script = || worker::new(1).fetches("/quote", &origin.url("/"));
    let one = script().run(&gateway).await;
    let other = script().run(&gateway).await;

    let quotes: Vec<_> = (0..8).map(|_| gateway.get("/quote").spawn()).collect();
    origin.received(8).await;
    let doomed = one.requests().len();
    assert!(0 < doomed && doomed < 8, "both have some: {doomed}");
    one.kill().await;
    gateway
        .until("what died is gone", |s| s.parked == 8 - doomed as u64)
        .await;
    origin.release("12");
    let mut statuses = Vec::new();
    for quote in quotes {
        statuses.push(quote.await.status());
    }
    let died = statuses.iter().filter(|status| **status == 502).count();
    assert_eq!(died, doomed, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 502)));
    assert_eq!(other.requests().len(), 8 - doomed);
    let status = gateway.status().await;
    assert_eq!((status.idle, status.lost, status.parked), (1, 1, 0));
}

/// The database sees a moment later that the connection of the number's last owner is closed.
#[tokio::test]
async fn the_number_of_a_closed_slot_rests_before_another_has_it() {
    let gateway = gateway::new(1).run().await;
    let one = worker::new(1).run(&gateway).await;
    let next = worker::new(1).connect(&gateway).await;
    gateway.until("two processes", |s| s.processes == 2).await;
    let end = Instant::now();
    one.kill().await;
    next.received(kind::GRANT, 1).await;
    assert!(end.elapsed() >= Duration::from_millis(200));
}

/// What a stranger on the link is told before it is turned away.
async fn refused(gateway: &Gateway, bytes: &[u8]) -> String {
    let line = Line::connect(gateway.link()).await;
    line.send_bytes(bytes).await;
    let frame = within("an answer", line.frame()).await.expect("a REFUSED");
    assert_eq!(frame.kind, kind::REFUSED);
    assert!(within("the end", line.frame()).await.is_none());
    String::from_utf8(frame.head).expect("text")
}

/// Preamble and one frame.
fn hello(frame: &Frame) -> Vec<u8> {
    [PREAMBLE, &frame.bytes()].concat()
}

fn json_frame(kind: u8, head: &serde_json::Value) -> Frame {
    Frame {
        head: head.to_string().into_bytes(),
        ..Frame::new(kind)
    }
}

#[tokio::test]
async fn strangers_on_the_link_are_turned_away_with_one_line() {
    let gateway = gateway::new(1).run().await;
    let good = json!({
        "pid": 1, "threads": 1, "mode": "wsgi", "app": "a", "version": "b", "token": "",
    });
    let mut no_threads = good.clone();
    no_threads["threads"] = 0.into();
    let slot = json!({ "process": 1, "key": "guessed" });
    let cases = [
        (
            b"LAYBY/2\n".to_vec(),
            "speaks version 2 of the link protocol",
        ),
        (
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "does not speak the link protocol",
        ),
        (hello(&Frame::new(0x77)), "unknown frame type 0x77"),
        (hello(&Frame::new(kind::ANSWER)), "unexpected Answer"),
        (hello(&json_frame(kind::HELLO, &json!({}))), "missing field"),
        (hello(&json_frame(kind::HELLO, &no_threads)), "no threads"),
        (
            hello(&json_frame(kind::SLOT, &slot)),
            "slot 0 was not granted",
        ),
    ];
    for (bytes, why) in cases {
        let told = refused(&gateway, &bytes).await;
        assert!(told.contains(why), "{told:?} has no {why:?}");
        let logged = gateway.logged(&told).await;
        assert!(logged.contains("worker refused"), "{logged}");
        assert!(logged.contains(" ERROR "), "{logged}");
    }
    assert_eq!(gateway.log_lines("worker refused").len(), 7);
    let _worker = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn only_the_process_that_was_granted_a_slot_can_open_it() {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    for (process, key) in [
        (worker.process(), "guessed"),
        (worker.process() + 1, worker.key()),
    ] {
        let slot = json_frame(kind::SLOT, &json!({ "process": process, "key": key }));
        refused(&gateway, &hello(&slot)).await;
    }
    // Not even its own worker opens it twice.
    let again = json!({ "process": worker.process(), "key": worker.key() });
    refused(&gateway, &hello(&json_frame(kind::SLOT, &again))).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

/// A worker whose answer to `/x` is this nonsense: its request ends in 502, the gateway says why in one
/// line, and everything of the process is gone.
async fn nonsense<F>(why: &str, script: impl Fn(Job) -> F + Send + Sync + 'static)
where
    F: Future<Output = Ended> + Send + 'static,
{
    let gateway = gateway::new(2).run().await;
    let worker = worker::new(2).on("/x", script).run(&gateway).await;

    assert_eq!(gateway.get("/x").await.status(), 502, "{why}");
    worker.released().await;
    let line = gateway.logged("worker refused").await;
    assert!(line.contains(why), "{line:?} has no {why:?}");
    assert_eq!(gateway.log_lines("worker refused").len(), 1);
    worker.kill().await;
    let _next = worker::new(2).run(&gateway).await;
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn an_answer_of_another_epoch_is_given_to_nobody() {
    nonsense("unexpected Answer frame for request", async |job| {
        let (request, epoch) = job.tag();
        job.send_raw(&Frame {
            request,
            epoch: epoch + 1,
            flags: flag::READY,
            ..Answer::new(200).body("late").head()
        })
        .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_for_another_request_is_given_to_nobody() {
    nonsense("unexpected Answer frame for request", async |job| {
        let (request, epoch) = job.tag();
        job.send_raw(&Frame {
            request: request + 1,
            epoch,
            flags: flag::READY,
            ..Answer::new(200).head()
        })
        .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_unknown_frame_ends_the_worker() {
    nonsense("unknown frame type 0x27", async |job| {
        job.send(0x27, 0, "").await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_flag_of_another_frame_ends_the_worker() {
    nonsense("flags 0x10 on a Answer frame", async |job| {
        job.send(kind::ANSWER, flag::SHIELDED, "").await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_frame_beyond_its_bound_ends_the_worker() {
    nonsense("frame with a body of 262145 bytes", async |job| {
        job.send(kind::ANSWER, flag::READY, vec![0; (256 << 10) + 1])
            .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_frame_of_the_gateways_own_ends_the_worker() {
    nonsense("unexpected Grant frame", async |job| {
        job.send(kind::GRANT, 0, "").await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_body_without_an_answer_ends_the_worker() {
    nonsense("unexpected Body frame", async |job| {
        job.send(kind::BODY, flag::READY, "").await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_plan_that_is_none_ends_the_worker() {
    nonsense("gather", async |job| {
        let (request, epoch) = job.tag();
        job.send_raw(&Frame {
            request,
            epoch,
            ..json_frame(kind::PARK, &json!({ "gather": [] }))
        })
        .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_local_wait_with_a_plan_ends_the_worker() {
    nonsense("a local wait with a plan", async |job| {
        let (request, epoch) = job.tag();
        job.send_raw(&Frame {
            request,
            epoch,
            flags: flag::LOCAL,
            ..json_frame(kind::PARK, &json!({ "gather": [{ "sleep": 1 }] }))
        })
        .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_held_slot_without_a_reason_ends_the_worker() {
    nonsense("missing field", async |job| {
        let (request, epoch) = job.tag();
        job.send_raw(&Frame {
            request,
            epoch,
            flags: flag::LOCAL,
            ..json_frame(kind::HOLD, &json!({}))
        })
        .await;
        Ok(())
    })
    .await;
}

/// What a call must not do: it has no answer, and its request is parked already.
#[tokio::test]
async fn a_call_that_answers_or_parks_ends_the_worker() {
    for (frame, flags, name) in [
        (kind::ANSWER, flag::READY, "Answer"),
        (kind::BODY, flag::READY, "Body"),
        (kind::PARK, flag::LOCAL, "Park"),
    ] {
        let voices = Voices::new();
        let gateway = gateway::new(1).run().await;
        let worker = worker::new(1)
            .parks_locally("/io", &voices)
            .runs(move |job, _| async move {
                job.send(frame, flags, "").await;
                Ok(())
            })
            .run(&gateway)
            .await;
        let io = gateway.get("/io").spawn();
        voices.next().await.call(1).await;
        assert_eq!(io.await.status(), 502);
        worker.released().await;
        let line = gateway.logged("worker refused").await;
        assert!(line.contains(&format!("unexpected {name} frame")), "{line}");
    }
}

#[tokio::test]
async fn a_wait_in_place_without_a_reason_ends_the_worker() {
    nonsense("does not say why", async |mut job| {
        job.hold(&Plan::sleep(0.0)).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_with_a_header_that_is_two_ends_the_worker() {
    nonsense("an invalid header value", async |job| {
        let answer = Answer::new(200).header("Location", "/\r\nSet-Cookie: admin=1");
        job.respond(answer).await
    })
    .await;
}

#[tokio::test]
async fn an_answer_with_more_headers_than_anybody_reads_ends_the_worker() {
    nonsense("too many headers", async |job| {
        let numbers = 0..40_000;
        let many = numbers.fold(Answer::new(200), |answer, number| {
            answer.header(&format!("x{number}"), "1")
        });
        job.respond(many).await
    })
    .await;
}

#[tokio::test]
async fn a_process_that_does_not_open_its_slot_is_given_up() {
    let gateway = gateway::new(1)
        .set("slots.overdue_grace", "50ms")
        .run()
        .await;
    let lazy = worker::new(1).opens_nothing().connect(&gateway).await;
    lazy.received(kind::GRANT, 1).await;
    lazy.released().await;
    let line = gateway.logged("worker lost").await;
    assert!(line.contains("slot 0 was granted to it"), "{line}");
    let _next = worker::new(1).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn an_informational_answer_ends_the_worker() {
    nonsense("an informational status", async |job| {
        job.answer(103, "").await
    })
    .await;
}

#[tokio::test]
async fn what_an_idle_worker_says_is_too_much() {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .on("/x", async |job| {
            job.answer(200, "one").await?;
            job.send_raw(&Answer::new(200).body("two").head()).await;
            Ok(())
        })
        .run(&gateway)
        .await;
    assert_eq!(gateway.get("/x").await.ok(), "one");
    worker.released().await;
    assert!(
        gateway
            .logged("worker refused")
            .await
            .contains("unexpected Answer")
    );
}

#[tokio::test]
async fn no_more_slots_are_granted_than_there_are() {
    let gateway = gateway::new(3).run().await;
    let one = worker::new(2).run(&gateway).await;
    let two = worker::new(2).run(&gateway).await;
    let three = worker::new(2).connect(&gateway).await;
    let gate = (
        one.open_slots().len(),
        two.open_slots().len(),
        three.open_slots().len(),
    );
    assert_eq!(gate, (2, 1, 0));

    // What one leaves, the poorest takes.
    one.kill().await;
    three.until("a slot", |seen| seen.open.len() == 1).await;
    two.until("a second slot", |seen| seen.open.len() == 2)
        .await;
    gateway.rests().await;
    assert!(two.open_slots().is_disjoint(&three.open_slots()));
}

#[tokio::test]
async fn a_slot_is_granted_anew_only_once_its_thread_has_closed_it() {
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let old = worker::new(2).retires_at(&gate).run(&gateway).await;
    let new = worker::new(2).connect(&gateway).await;

    old.say(&Frame::new(kind::BYE)).await;
    gate.reached(2).await;
    let status = gateway.status().await;
    assert_eq!((status.lost, status.processes), (2, 2));
    assert_eq!((old.open_slots().len(), new.open_slots().len()), (2, 0));

    gate.open_once();
    new.until("the first slot", |seen| seen.open.len() == 1)
        .await;
    assert_eq!(old.open_slots().len(), 1);
    gate.open();
    new.until("the second slot", |seen| seen.open.len() == 2)
        .await;
    old.released().await;
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert!(old.requests().is_empty());
}

#[tokio::test]
async fn a_process_that_loses_one_thread_loses_all() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let worker = worker::new(2)
        .fetches("/quote", &origin.url("/"))
        .on("/x", async |job| {
            job.hang_up();
            Ok(())
        })
        .run(&gateway)
        .await;
    let parked = gateway.get("/quote").spawn();
    origin.received(1).await;
    assert_eq!(gateway.get("/x").await.status(), 502);
    assert_eq!(parked.await.status(), 502);
    worker.released().await;
    worker.kill().await;
    let _next = worker::new(2).run(&gateway).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_slot_whose_thread_may_live_is_not_granted_anew() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let old = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    old.hang_up();
    assert_eq!(slow.await.status(), 502);
    let new = worker::new(1).connect(&gateway).await;
    // Its thread, and the database connection that it has, are still there.
    assert_eq!(gateway.status().await.lost, 1);
    assert!(new.open_slots().is_empty());
    old.kill().await;
    new.until("the slot", |seen| seen.open.len() == 1).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_and_takes_nothing_new() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(2).run().await;
    let old = worker::new(2)
        .fetches("/quote", &origin.url("/"))
        .run(&gateway)
        .await;
    let quote = gateway.get("/quote").spawn();
    origin.received(1).await;

    let new = worker::new(2).connect(&gateway).await;
    old.say(&Frame::new(kind::BYE)).await;
    new.until("one slot of two", |seen| seen.open.len() == 1)
        .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(new.requests(), ["GET /ping"]);

    origin.release("12");
    assert_eq!(quote.await.ok(), "12");
    old.released().await;
    new.until("the other slot", |seen| seen.open.len() == 2)
        .await;
    assert_eq!(old.requests(), ["GET /quote"]);
    gateway.rests().await;
}

#[tokio::test]
async fn no_request_resumes_on_a_slot_that_is_being_given_back() {
    // Whichever of the two slots it parked on.
    for requests_before in 0..2 {
        let origin = origin::stalled().await;
        let (gate, busy) = (Gate::new(), Gate::new());
        let gateway = gateway::new(2).run().await;
        let old = worker::new(2)
            .fetches("/quote", &origin.url("/"))
            .waits("/slow", &busy)
            .retires_at(&gate)
            .run(&gateway)
            .await;
        let slow: Vec<_> = (0..requests_before)
            .map(|_| gateway.get("/slow").spawn())
            .collect();
        busy.reached(requests_before).await;
        let quote = gateway.get("/quote").spawn();
        origin.received(1).await;
        busy.open();
        for slow in slow {
            slow.await.ok();
        }

        old.say(&Frame::new(kind::BYE)).await;
        gate.reached(1).await;
        assert_eq!(gateway.status().await.lost, 1);
        origin.release("12");
        assert_eq!(quote.await.ok(), "12");
        gate.open();
        old.released().await;
    }
}

#[tokio::test]
async fn a_slot_is_free_only_when_its_worker_says_so() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let closing = gate.clone();
    let _worker = worker::new(1)
        .on("/x", move |job| {
            let closing = closing.clone();
            async move {
                let answer = Answer::new(200).body("whole");
                let (request, epoch) = job.tag();
                job.send_raw(&Frame {
                    request,
                    epoch,
                    body: b"whole".to_vec(),
                    ..answer.head()
                })
                .await;
                // As close() of an application's iterable does.
                closing.pass().await;
                job.ready().await
            }
        })
        .run(&gateway)
        .await;

    assert_eq!(gateway.get("/x").await.ok(), "whole");
    gate.reached(1).await;
    let ping = gateway.get("/ping").spawn();
    let status = gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;
    assert_eq!(status.busy, 1);
    gate.open();
    assert_eq!(ping.await.ok(), "pong");
    gateway.rests().await;
}

/// Else a gateway whose every slot is stuck would seem idle.
#[tokio::test]
async fn a_step_that_does_not_end_or_is_killed_has_kept_its_slot_busy() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).waits("/stuck", &gate).run(&gateway).await;
    let busy = "layby_slots_busy_seconds_total";
    assert_eq!(gateway.metric(busy).await, 0.0);
    let lost = gateway.get("/stuck").spawn();
    gate.reached(1).await;
    gateway.until_metric(busy, |seconds| seconds > 0.0).await;
    assert_eq!(gateway.metric("layby_slot_busy_seconds_count").await, 0.0);
    worker.kill().await;
    assert_eq!(lost.await.status(), 502);
    gateway
        .until_metric("layby_slot_busy_seconds_count", |steps| steps == 1.0)
        .await;
    gateway
        .until("the worker's end", |s| s.processes == 0)
        .await;
    let total = gateway.metric(busy).await;
    assert!(gateway.metric("layby_slot_busy_seconds_sum").await > 0.0);
    assert_eq!(gateway.metric(busy).await, total, "nothing works any more");
}
