//! Descriptors, disk and room in a frame run out: new work is turned away, and nothing else suffers.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http::{Connection, Pending};
use crate::support::origin;
use crate::support::plan::Plan;
use crate::support::within;
use crate::support::worker::{self, Answer, Worker};

/// Bytes that tell when they are cut, repeated or swapped.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

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
async fn an_answer_without_room_goes_on_at_its_clients_speed() {
    let gateway = without_spool().await;
    let answer = Answer::new(200).body(bytes(20_000_000));
    let _worker = worker::new(1)
        .on("/x", move |job| {
            let answer = answer.clone();
            async move { job.respond(answer).await }
        })
        .run(&gateway)
        .await;
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let held_back = "layby_answer_backpressure_total";
    gateway
        .until_metric(held_back, |answers| answers > 0.0)
        .await;
    gateway.logged("the spool folder takes no more").await;
    let answer = reader.response().await;
    assert!(answer.bytes() == bytes(20_000_000), "not what was sent");
    gateway.rests().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

/// Uploads that are on disk, and there to stay until the gate opens: the only slot is busy.
async fn uploads(gateway: &Gateway, gate: &Gate, count: usize) -> Vec<Pending> {
    let busy = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let uploads = (0..count).map(|_| gateway.post("/slow", bytes(100_000)).spawn());
    let uploads = std::iter::once(busy).chain(uploads).collect();
    gateway
        .until("the uploads in the queue", |s| s.queued == count as u64)
        .await;
    uploads
}

#[tokio::test]
async fn a_full_spool_refuses_uploads_and_recovers() {
    let builder = gateway::new(1).set("spool_limit", "250KiB");
    let gateway = builder.run().await;
    let gate = Gate::new();
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let waiting = uploads(&gateway, &gate, 2).await;
    let spooled = "layby_spool_bytes";
    assert_eq!(gateway.metric(spooled).await, 200_000.0);
    let refused = gateway.post("/echo", bytes(100_000)).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection"), Some("close"));
    let counted = "layby_body_shortages_total{reason=\"spool_limit\"}";
    assert_eq!(gateway.metric(counted).await, 1.0);
    // One that is told only on the way that there is no room for it.
    let chunked = [
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n",
        &bytes(100_000)[..],
    ];
    assert_eq!(gateway.raw(chunked.concat()).await.status(), 503);

    gate.open();
    for upload in waiting {
        assert_eq!(upload.await.ok(), "done");
    }
    gateway.until_metric(spooled, |bytes| bytes == 0.0).await;
    let again = gateway.post("/echo", bytes(100_000)).await;
    assert!(again.bytes() == bytes(100_000));
    assert_eq!(worker.requests().len(), 4);
    gateway.rests().await;
}

#[tokio::test]
async fn a_full_disk_is_the_same_and_recovers_by_itself() {
    let gateway = gateway::new(1).small_disk("1m").run().await;
    let gate = Gate::new();
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let waiting = uploads(&gateway, &gate, 10).await;
    let spooled = "layby_spool_bytes";
    assert_eq!(gateway.metric(spooled).await, 1_000_000.0);
    assert_eq!(gateway.post("/echo", bytes(200_000)).await.status(), 503);

    gate.open();
    for upload in waiting {
        assert_eq!(upload.await.ok(), "done");
    }
    gateway.until_metric(spooled, |bytes| bytes == 0.0).await;
    let again = async { while gateway.post("/echo", bytes(200_000)).await.status() != 200 {} };
    within("room again", again).await;
    assert!(worker.requests().len() > 10);
    gateway.rests().await;
}

#[tokio::test]
async fn without_memory_bodies_take_the_disk_and_arrive_whole() {
    let gateway = gateway::new(1).set("memory_limit", "0").run().await;
    let _worker = worker::new(1)
        .on("/tell", async |job| {
            let told = json!({ "bytes": job.body.len(), "file": job.by_descriptor });
            job.answer(200, told.to_string()).await
        })
        .run(&gateway)
        .await;
    for len in [1, 1000, 100_000] {
        let told = gateway.post("/tell", bytes(len)).await.json();
        assert_eq!(told, json!({ "bytes": len, "file": true }));
        let echo = gateway.post("/echo", bytes(len)).await;
        assert!(echo.bytes() == bytes(len));
    }
    gateway.rests().await;
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

/// A gateway that may have only a few descriptors more than it has.
async fn short_of_descriptors(more: u64) -> (Gateway, Worker) {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    let descriptors = gateway.metric("process_open_fds").await as u64 + more;
    let limit = Rlimit {
        current: Some(descriptors),
        maximum: Some(descriptors),
    };
    let pid = Pid::from_raw(gateway.pid() as i32);
    prlimit(pid, Resource::Nofile, limit).expect("it is our child");
    (gateway, worker)
}

#[tokio::test]
async fn without_descriptors_the_idle_go_first_and_all_who_ask_are_answered() {
    let (gateway, _worker) = short_of_descriptors(10).await;
    let mut crowd = Vec::new();
    for _ in 0..60 {
        let mut client = gateway.connect().await;
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.response().await.ok(), "pong");
        crowd.push(client);
    }
    let closed = "layby_idle_connections_closed_total";
    assert!(gateway.metric(closed).await >= 40.0);
    for mut oldest in crowd.drain(..40) {
        assert_eq!(oldest.closed().await, b"");
    }
}

#[tokio::test]
async fn without_descriptors_and_idle_ones_whoever_comes_is_let_go() {
    let (gateway, _worker) = short_of_descriptors(10).await;
    let half = "GET /ping HTTP/1.1\r\nHost: ";
    let mut crowd = Vec::new();
    for _ in 0..40 {
        let mut client = gateway.connect().await;
        // Who has been let go already is not there any more.
        let _ = client.try_send(half).await;
        crowd.push(client);
    }
    let refused = "layby_connections_refused_total{reason=\"descriptors\"}";
    gateway.until_metric(refused, |count| count >= 25.0).await;
    let before = gateway.metric("process_cpu_seconds_total").await;
    // A loop that spins needs time to show it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let burnt = gateway.metric("process_cpu_seconds_total").await - before;
    assert!(burnt < 0.2, "{burnt} s of CPU in 0.5 s");

    let mut served = 0;
    for mut client in crowd {
        if client.try_send("a\r\n\r\n").await.is_ok()
            && let Some(head) = client.try_head().await
            && head.status == 200
        {
            served += 1;
        }
    }
    assert!(served >= 5, "{served} had a place and are served");
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn past_the_limit_of_connections_who_comes_is_told_and_let_go() {
    let gateway = gateway::new(1).set("max_connections", "3").run().await;
    let gate = Gate::new();
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let busy: Vec<_> = (0..3).map(|_| gateway.get("/slow").spawn()).collect();
    let waiting = "layby_connections{state=\"waiting\"}";
    gateway.until_metric(waiting, |count| count == 3.0).await;
    let refused = gateway.get("/ping").await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(refused.header("retry-after").is_some());
    let counted = "layby_connections_refused_total{reason=\"limit\"}";
    assert_eq!(gateway.metric(counted).await, 1.0);
    gate.open();
    for busy in busy {
        assert_eq!(busy.await.ok(), "done");
    }
    // Connections that are idle now make room.
    for _ in 0..10 {
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
    }
}

#[tokio::test]
async fn a_client_has_its_share_of_connections_and_a_proxy_any_number() {
    let builder = gateway::new(1).set("max_connections_per_client", "2");
    let limited = builder.run().await;
    let _worker = worker::new(1).run(&limited).await;
    let mut first = limited.connect().await;
    let _second = limited.connect().await;
    let refused = limited.get("/ping").await;
    assert_eq!(refused.status(), 503);
    let counted = "layby_connections_refused_total{reason=\"client_limit\"}";
    assert_eq!(limited.metric(counted).await, 1.0);
    first
        .send("GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(first.response().await.ok(), "pong");
    first.closed().await;
    assert_eq!(limited.get("/ping").await.ok(), "pong");

    let builder = gateway::new(1).set("max_connections_per_client", "2");
    let trusting = builder.set("trusted_proxies", "127.0.0.1").run().await;
    let _worker = worker::new(1).run(&trusting).await;
    let mut many = Vec::new();
    for _ in 0..5 {
        many.push(trusting.connect().await);
    }
    assert_eq!(trusting.get("/ping").await.ok(), "pong");
}
