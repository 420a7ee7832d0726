//! Descriptors, disk and room in a frame run out: new work is turned away, and nothing else suffers.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::origin;
use crate::support::plan::Plan;
use crate::support::worker::{self, Answer};

/// A gateway whose spool folder is gone.
async fn without_spool() -> Gateway {
    let builder = gateway::new(1);
    let folder = builder.folder().join("spool");
    fs::create_dir(&folder).expect("the folder is ours");
    let gateway = builder.set("spool_dir", &folder).run().await;
    fs::remove_dir(&folder).expect("it is empty");
    gateway
}

#[tokio::test]
async fn an_upload_without_room_is_turned_away() {
    let gateway = without_spool().await;
    let worker = worker::new(1).run(&gateway).await;
    let refused = gateway.post("/echo", vec![b'x'; 100_000]).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(gateway.post("/echo", "small").await.ok(), "small");
    assert_eq!(worker.requests(), ["POST /echo"]);
    gateway.rests().await;
}

#[tokio::test]
async fn an_answer_without_room_is_cut_and_its_worker_lives() {
    let gateway = without_spool().await;
    let answer = Answer::new(200).body(vec![b'x'; 20_000_000]);
    let worker = worker::new(1)
        .on("/x", move |job| {
            let answer = answer.clone();
            async move { job.respond(answer).await }
        })
        .run(&gateway)
        .await;
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    gateway.logged("answer cut").await;
    let head = reader.head().await;
    assert!(matches!(reader.body(&head, "GET").await, Body::Cut(_)));
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /x", "GET /ping"]);
}

#[tokio::test]
async fn results_without_room_are_failures_that_the_application_sees() {
    let origin = origin::answering(&"x".repeat(1 << 20)).await;
    let gateway = without_spool().await;
    let plan = Plan::get(&origin.url("/quote?key=s3cret"));
    let held = plan.clone().held("mode", "");
    let worker = worker::new(1)
        .tells("/parks", plan)
        .on("/holds", move |mut job| {
            let held = held.clone();
            async move {
                let results = job.hold(&held).await?;
                job.answer(200, results.json.to_string()).await
            }
        })
        .run(&gateway)
        .await;
    for path in ["/parks", "/holds"] {
        let result = gateway.get(path).await.json()["results"][0].clone();
        assert_eq!(
            (&result["error"], &result["phase"]),
            (&json!("failed"), &json!("body"))
        );
        assert_eq!(result["url"], origin.url("/quote"));
    }
    gateway.rests().await;
    assert_eq!(worker.requests().len(), 2);
}

#[tokio::test]
async fn headers_of_third_parties_do_not_burst_the_frame() {
    let origin = origin::verbose(360_000).await;
    let gateway = gateway::new(1).run().await;
    let fetch = json!({ "fetch": { "method": "GET", "url": origin.url("/") } });
    let few = Plan::of(json!(vec![fetch.clone(); 10]));
    let many = Plan::of(json!([{ "done": true }, { "gather": vec![fetch; 12] }]));
    let _worker = worker::new(1)
        .tells("/few", few)
        .tells("/many", many)
        .run(&gateway)
        .await;
    let few = gateway.get("/few").await.json();
    assert_eq!(few["results"][9]["status"], 200);
    let many = gateway.get("/many").await.json();
    assert_eq!(many["results"][0], json!({ "done": true }));
    assert_eq!(many["results"][1]["results"][11]["error"], "too_large");
    gateway.rests().await;
}

#[tokio::test]
async fn without_descriptors_new_connections_wait_and_no_cpu_burns() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    let mut admin = gateway.connect_admin().await;
    let mut metric = async |name: &str| {
        admin
            .send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        let text = admin.response().await.ok().to_owned();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.expect("it is there").parse().expect("a number");
        value
    };
    let pid = Pid::from_raw(gateway.pid() as i32);
    let descriptors = metric("process_open_fds").await as u64 + 5;
    let limit = Rlimit {
        current: Some(descriptors),
        maximum: Some(descriptors),
    };
    prlimit(pid, Resource::Nofile, limit).expect("it is our child");

    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(gateway.connect().await);
    }
    gateway.logged("cannot accept a connection").await;
    let before = metric("process_cpu_seconds_total").await;
    // A loop that spins needs time to show it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let burnt = metric("process_cpu_seconds_total").await - before;
    assert!(burnt < 0.2, "{burnt} s of CPU in 0.5 s");
    client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");

    drop(crowd);
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}
