//! What people are told of a slot: its stack, if its worker tells it, and what its request is doing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::frames::kind;
use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::plan::Plan;
use crate::support::{origin, upstream, worker};

const TOLD: &str =
    r#"{"thread": [{"file": "shop.py", "line": 7, "function": "buy"}], "parked": []}"#;

/// Asks for the stack of the one slot.
async fn ask(gateway: &Gateway) -> (u16, Value) {
    let answer = gateway.admin("/api/slots/0/stack").await;
    (answer.status(), answer.json())
}

async fn job(gateway: &Gateway) -> Value {
    gateway.status_json().await["slots"]["list"][0]["job"].clone()
}

#[tokio::test]
async fn a_busy_slots_stack_is_asked_of_its_worker() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .tells_stacks(TOLD)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let (status, told) = ask(&gateway).await;
    assert_eq!(status, 409);
    assert!(
        told["error"]
            .as_str()
            .is_some_and(|why| why.contains("idle"))
    );
    assert_eq!(worker.asked(), [0; 0], "an idle slot has nothing to tell");

    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    for _ in 0..10 {
        let stack = json!([{"file": "shop.py", "line": 7, "function": "buy"}]);
        assert_eq!(
            ask(&gateway).await,
            (200, json!({"thread": stack, "parked": []}))
        );
    }
    assert_eq!(worker.asked(), [0; 10]);
    assert_eq!(
        worker.stacks(),
        [],
        "nothing is to be written down for that"
    );
    gate.open();
    assert_eq!(slow.await.ok(), "done");
}

#[tokio::test]
async fn a_worker_that_does_not_say_that_it_tells_is_not_asked() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    assert_eq!(ask(&gateway).await.0, 501);
    assert!(!worker.frames().contains(&kind::STACK));
    gate.open();
    assert_eq!(slow.await.ok(), "done");
}

#[tokio::test]
async fn nobody_waits_long_for_a_worker_that_does_not_answer() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .tells_stacks("")
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let began = Instant::now();
    let asked = futures_util::future::join_all((0..10).map(|_| ask(&gateway))).await;
    assert!(asked.iter().all(|(status, _)| *status == 504), "{asked:?}");
    assert!(began.elapsed() < Duration::from_secs(4));
    // Those who come when enough wait already are told so at once, and the worker is spared them.
    assert_eq!(worker.asked().len(), 4);
    let again = Instant::now();
    assert_eq!(ask(&gateway).await.0, 504);
    assert!(again.elapsed() < Duration::from_secs(1));
    gate.open();
    assert_eq!(slow.await.ok(), "done", "its work is no worse for it");
}

#[tokio::test]
async fn a_worker_that_tells_nonsense_is_given_up() {
    let gate = Gate::new();
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .tells_stacks(r#"{"thread": [{"file": 7}]}"#)
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    assert_eq!(ask(&gateway).await.0, 504);
    worker.released().await;
    gateway.logged("stacks that cannot be read").await;
    assert_eq!(slow.await.status(), 502);
}

#[tokio::test]
async fn an_http_server_is_not_asked() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let (status, told) = ask(&gateway).await;
    assert_eq!(status, 501);
    assert!(
        told["error"]
            .as_str()
            .is_some_and(|why| why.contains("HTTP server"))
    );
}

#[tokio::test]
async fn the_status_tells_what_a_slot_does_and_what_parked_requests_wait_for() {
    let origin = origin::stalled().await;
    let gateway = gateway::new(1)
        .file("[[route]]\npath = \"/quotes\"\n")
        .run()
        .await;
    let _worker = worker::new(1)
        .holds("/quotes/held", Plan::get(&origin.url("/")).held("mode", ""))
        .fetches("/quotes/parked", &origin.url("/?key=secret"))
        .run(&gateway)
        .await;
    let parked = gateway.get("/quotes/parked?key=secret").spawn();
    origin.received(1).await;
    gateway
        .until("it to be parked", |status| status.parked == 1)
        .await;
    let status = gateway.status_json().await;
    let waits_for = &status["parked"]["waits_for"][0];
    assert_eq!(waits_for["what"], "origin");
    assert_eq!(waits_for["origin"], "127.0.0.1");
    assert_eq!(waits_for["requests"], 1);
    assert!(!status.to_string().contains("secret"));

    let held = gateway.get("/quotes/held").spawn();
    origin.received(2).await;
    let job = job(&gateway).await;
    assert_eq!(job["phase"], "wait_in_place");
    assert_eq!(job["route"], "/quotes");
    origin.release("12");
    assert_eq!((parked.await.ok(), held.await.ok()), ("12", "12"));
    let status = gateway.status_json().await;
    assert_eq!(status["parked"]["waits_for"], json!([]));
    let slow = status["slow_requests"].as_array().expect("an array");
    let parked = slow.iter().find(|slow| slow["path"] == "/quotes/parked");
    let phases = parked.expect("it is over")["phases"]
        .as_array()
        .expect("an array");
    let names: Vec<_> = phases.iter().map(|phase| phase["phase"].as_str()).collect();
    let expected = ["body", "queue", "run", "park", "resume", "run", "answer"];
    assert_eq!(names, expected.map(Some));
    let park = "layby_request_phase_seconds_count{phase=\"park\"}";
    gateway.until_metric(park, |count| count == 1.0).await;
}
