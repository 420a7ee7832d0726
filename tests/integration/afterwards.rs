//! What an application does between the last byte of its answer and READY: it may still wait in place.

use std::time::Duration;

use serde_json::json;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gate::Gate;
use crate::support::gateway::{self, Builder, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::plan::Plan;
use crate::support::worker::{self, Answer, Ended, Job, Worker};
use crate::support::{origin, takes, within};

/// One slot whose `/x` is this script.
async fn serving<F>(
    builder: Builder,
    script: impl Fn(Job) -> F + Send + Sync + 'static,
) -> (Gateway, Worker)
where
    F: Future<Output = Ended> + Send + 'static,
{
    let gateway = builder.run().await;
    let worker = worker::new(1).on("/x", script).run(&gateway).await;
    (gateway, worker)
}

/// How an answer ends, with nothing said of READY.
#[derive(Debug, Clone, Copy)]
enum Last {
    Answer,
    Body,
}

impl Last {
    const ALL: [Self; 2] = [Self::Answer, Self::Body];

    async fn say(self, job: &Job) {
        match self {
            Self::Answer => job.say(Answer::new(200).body("one two")).await,
            Self::Body => {
                job.begin(Answer::new(200).body("one ")).await;
                job.send(kind::BODY, 0, "two").await;
            }
        }
    }
}

/// A client that has read the head of an answer that goes on.
async fn reading(gateway: &Gateway, method: &str) -> Connection {
    let mut client = gateway.connect().await;
    let head = format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    client.send(head).await;
    client.head().await;
    client
}

/// The process has lost nothing, and the slot is idle.
async fn goes_on(gateway: &Gateway) {
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.metric("layby_waiting_in_place").await, 0.0);
    assert_eq!(gateway.log_lines("worker refused").len(), 0);
}

#[tokio::test]
async fn it_waits_in_place_and_has_its_results_though_its_client_has_gone() {
    for last in Last::ALL {
        for method in ["GET", "POST"] {
            let origin = origin::stalled().await;
            let plan = Plan::get(&origin.url("/")).held("mode", "shop/views.py:5");
            let (gateway, worker) = serving(gateway::new(1), move |mut job| {
                let plan = plan.clone();
                async move {
                    last.say(&job).await;
                    for _ in 0..2 {
                        assert_eq!(job.hold(&plan).await?.text(0), "12");
                    }
                    job.ready().await
                }
            })
            .await;
            let answer = gateway.request(method, "/x").await;
            assert_eq!(answer.ok(), "one two", "{last:?} {method}");
            origin.received(1).await;
            let status = gateway.status().await;
            assert_eq!((status.idle, status.busy, status.parked), (0, 1, 0));
            assert_eq!(gateway.metric("layby_waiting_in_place").await, 1.0);
            origin.release("12");
            goes_on(&gateway).await;
            let series = "layby_waits_in_place_total{reason=\"mode\"}";
            assert_eq!(gateway.metric(series).await, 2.0);
            assert_eq!(worker.cancelled_now(), 0);
        }
    }
}

#[tokio::test]
async fn what_it_waits_for_in_its_own_process_is_counted() {
    for last in Last::ALL {
        let gate = Gate::new();
        let at_gate = gate.clone();
        let (gateway, _worker) = serving(gateway::new(1), move |job| {
            let at_gate = at_gate.clone();
            async move {
                last.say(&job).await;
                job.hold_local("mode", "shop/views.py:5").await;
                at_gate.pass().await;
                job.ready().await
            }
        })
        .await;
        assert_eq!(gateway.get("/x").await.ok(), "one two");
        let series = "layby_waiting_in_place";
        gateway.until_metric(series, |waits| waits == 1.0).await;
        gate.open();
        goes_on(&gateway).await;
        let waits = &gateway.status_json().await["waits_in_place"];
        let wait = json!([{ "reason": "mode", "source": "shop/views.py:5", "count": 1 }]);
        assert_eq!(*waits, wait);
    }
}

/// Its client left in the middle, so that nobody wants it; unless it says otherwise.
#[tokio::test]
async fn after_a_stop_only_what_is_shielded_is_waited_for() {
    for method in ["GET", "POST"] {
        for shielded in [false, true] {
            let origin = origin::answering("12").await;
            let plan = Plan::post(&origin.url("/"), b"done").held("mode", "shop/views.py:5");
            let (gateway, worker) = serving(gateway::new(1), move |mut job| {
                let plan = plan.clone();
                async move {
                    let stop = job.stop();
                    job.begin(Answer::new(200).body("one ")).await;
                    stop.notified().await;
                    job.send(kind::BODY, flag::BROKEN, "").await;
                    let flags = if shielded { flag::SHIELDED } else { 0 };
                    assert_eq!(job.hold_with(&plan, flags).await?.text(0), "12");
                    job.ready().await
                }
            })
            .await;
            drop(reading(&gateway, method).await);
            let answered = if shielded {
                kind::RESULTS
            } else {
                kind::CANCEL
            };
            worker.received(answered, 1).await;
            goes_on(&gateway).await;
            assert_eq!(origin.connections(), usize::from(shielded), "{method}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_whole_may_be_followed_by_a_wait() {
    let origin = origin::answering("12").await;
    let plan = Plan::get(&origin.url("/")).held("mode", "shop/views.py:5");
    let (gateway, _worker) = serving(gateway::new(1), move |mut job| {
        let plan = plan.clone();
        async move {
            job.begin(Answer::new(200).body("one ")).await;
            job.send(kind::BODY, flag::BROKEN, "").await;
            assert_eq!(job.hold(&plan).await?.text(0), "12");
            job.ready().await
        }
    })
    .await;
    assert_eq!(
        gateway.get("/x").await.body,
        Body::Cut(b"one ".to_vec()),
        "the client need not wait"
    );
    goes_on(&gateway).await;
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_relay_begins_when_the_slot_is_ready() {
    let (first, then) = (
        origin::answering("12").await,
        origin::answering("said").await,
    );
    let plan = Plan::get(&first.url("/")).held("mode", "shop/views.py:5");
    let relay = json!({ "fetch": { "method": "GET", "url": then.url("/") } });
    let (gateway, _worker) = serving(gateway::new(1), move |mut job| {
        let (plan, relay) = (plan.clone(), relay.clone());
        async move {
            job.send_relay(&relay, 0).await;
            assert_eq!(job.hold(&plan).await?.text(0), "12");
            job.ready().await
        }
    })
    .await;
    assert_eq!(gateway.get("/x").await.ok(), "said");
    goes_on(&gateway).await;
}

// Time -------------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_left_to_do_has_as_long_as_a_request() {
    for last in Last::ALL {
        let origin = origin::stalled().await;
        let plan = Plan::get(&origin.url("/")).held("mode", "shop/views.py:5");
        let gate = Gate::new();
        let at_gate = gate.clone();
        let hasty = gateway::new(1).set("slots.request_timeout", "300ms");
        let (gateway, _worker) = serving(hasty, move |mut job| {
            let (plan, at_gate) = (plan.clone(), at_gate.clone());
            async move {
                last.say(&job).await;
                assert_eq!(job.hold(&plan).await?.error(0), "timeout");
                at_gate.pass().await;
                job.ready().await
            }
        })
        .await;
        takes(Duration::from_millis(300), async || {
            assert_eq!(gateway.get("/x").await.ok(), "one two");
            gate.reached(1).await;
            gate.open_once();
            gateway.rests().await;
        })
        .await;
        goes_on(&gateway).await;
    }
}

#[tokio::test]
async fn a_slot_that_does_not_become_ready_costs_its_process() {
    for last in Last::ALL {
        let gate = Gate::new();
        let hasty = gateway::new(1)
            .set("slots.request_timeout", "300ms")
            .set("slots.overdue_grace", "200ms");
        let (gateway, worker) = serving(hasty, move |job| {
            let gate = gate.clone();
            async move {
                last.say(&job).await;
                job.hold_local("mode", "shop/views.py:5").await;
                gate.pass().await;
                job.ready().await
            }
        })
        .await;
        assert_eq!(gateway.get("/x").await.ok(), "one two");
        gateway
            .until("the slot that is lost", |s| s.lost == 1)
            .await;
        let line = gateway.logged("worker overdue").await;
        assert!(line.contains("the time of GET /x, request "), "{line}");
        within("the end of the worker", worker.released()).await;
    }
}

// Nonsense ---------------------------------------------------------------------------------

#[tokio::test]
async fn anything_else_ends_the_process() {
    let cases = [
        (kind::ANSWER, 0, 0, "unexpected Answer"),
        (kind::BODY, flag::READY, 0, "unexpected Body"),
        (kind::PARK, flag::LOCAL, 0, "unexpected Park"),
        (kind::HOLD, flag::LAZY, 0, "unexpected Hold"),
        (kind::HOLD, flag::LOCAL, 1, "unexpected Hold"),
        (kind::HOLD, 0, 0, "EOF while parsing"),
        (kind::READY, 0, 1, "unexpected Ready"),
    ];
    for last in Last::ALL {
        for (kind, flags, later, why) in cases {
            let (gateway, worker) = serving(gateway::new(1), move |job| async move {
                last.say(&job).await;
                let (request, epoch) = job.tag();
                let frame = Frame {
                    request,
                    epoch: epoch + later,
                    flags,
                    ..Frame::new(kind)
                };
                job.send_raw(&frame).await;
                Ok(())
            })
            .await;
            let _ = gateway.get("/x").await;
            let line = gateway.logged("worker refused").await;
            assert!(line.contains(why), "{line:?} has no {why:?}");
            within("the end of the worker", worker.released()).await;
        }
    }
}
