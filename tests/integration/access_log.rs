//! The access log: one line for whatever ends, and no request that waits for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::worker::Answer;
use crate::support::{origin, within, worker};

fn logging(slots: u16, format: &str) -> gateway::Builder {
    gateway::new(slots)
        .set("access_log.format", format)
        .set("access_log.path", "access.log")
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until the file has so many lines. They come by the second, without an event.
async fn until_lines(path: &Path, count: usize) -> Vec<String> {
    let written = async {
        while lines(path).len() < count {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(&format!("{count} lines"), written).await;
    lines(path)
}

/// All lines of a gateway that ends, by path.
async fn by_path(mut gateway: Gateway) -> BTreeMap<String, Value> {
    gateway.signal(Signal::TERM);
    gateway.ended().await;
    let lines = lines(&gateway.folder().join("access.log"));
    let count = lines.len();
    let entry = |line: String| {
        let value: Value = serde_json::from_str(&line).expect(&line);
        (value["path"].as_str().unwrap_or_default().to_owned(), value)
    };
    let lines: BTreeMap<_, _> = lines.into_iter().map(entry).collect();
    assert_eq!(lines.len(), count, "a path twice");
    lines
}

#[tokio::test]
async fn whatever_ends_is_told_once_with_how_it_ended() {
    let origin = origin::answering("12").await;
    let gate = Gate::new();
    let gateway = logging(1, "json").run().await;
    let worker = worker::new(1)
        .fetches("/parks", &origin.url("/"))
        .waits("/left", &gate)
        .on("/cut", async |job| {
            let head = Answer::new(200).header("Content-Length", "9");
            job.begin(head.body("part")).await;
            job.broken().await
        })
        .run(&gateway)
        .await;

    let parked = gateway
        .get("/parks?token=secret")
        .header("User-Agent", "test \"7\"");
    let id = parked
        .await
        .header("x-request-id")
        .expect("an id")
        .to_owned();
    assert_eq!(gateway.post("/echo", "hello").await.ok(), "hello");
    gateway.request("HEAD", "/ping").await;
    let refused = "GET /refused HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    assert_eq!(gateway.raw(refused).await.status(), 400);
    let mut cut = gateway.connect().await;
    cut.send("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = cut.head().await;
    cut.body(&head, "GET").await;
    let leaver = gateway.get("/left").spawn();
    gate.reached(1).await;
    leaver.leave().await;
    let left = "layby_requests_cancelled_total{phase=\"running\"}";
    gateway.until_metric(left, |count| count == 1.0).await;
    gate.open();
    gateway.rests().await;
    // Its workers are gone: nobody takes the next.
    worker.kill().await;
    gateway.until("lost slots", |s| s.lost == 1).await;
    let late = gateway.post("/late", "x");
    let late = late.header("Accept", "application/json").spawn();
    gateway.until("it in the queue", |s| s.queued == 1).await;
    late.leave().await;
    gateway.until("an empty queue", |s| s.queued == 0).await;

    let lines = by_path(gateway).await;
    let paths: Vec<&str> = lines.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/cut", "/echo", "/late", "/left", "/parks", "/ping", "/refused"
        ]
    );
    let parked = &lines["/parks"];
    assert_eq!(parked["request_id"], id);
    assert_eq!(parked["client"], "127.0.0.1");
    assert_eq!(parked["host"], "shop.example");
    assert_eq!(parked["user_agent"], "test \"7\"");
    assert_eq!(
        (&parked["status"], &parked["sent"]),
        (&200.into(), &2.into())
    );
    assert_eq!((&parked["parks"], &parked["slot"]), (&1.into(), &0.into()));
    assert!(parked["pid"].as_u64().expect("a number") > 0);
    let seconds = |name: &str| {
        parked[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {parked}"))
    };
    let stages: f64 = ["queue", "run", "park", "resume", "answer"]
        .map(|stage| parked[format!("{stage}_seconds")].as_f64().unwrap_or(0.0))
        .iter()
        .sum();
    assert!(seconds("run_seconds") > 0.0 && seconds("park_seconds") > 0.0);
    assert!(stages <= seconds("seconds") + 1e-5, "{parked}");
    assert!(!parked.to_string().contains("secret"), "{parked}");

    let echo = &lines["/echo"];
    assert_eq!((&echo["received"], &echo["sent"]), (&5.into(), &5.into()));
    assert_eq!(lines["/ping"]["sent"], 0);
    for whole in ["/parks", "/echo", "/ping", "/refused"] {
        assert_eq!(lines[whole]["cut"], Value::Null, "{whole}");
    }
    assert_eq!(lines["/refused"]["status"], 400);
    assert_eq!(lines["/refused"]["why"], "refused");
    let cut = &lines["/cut"];
    assert_eq!((&cut["status"], &cut["cut"]), (&200.into(), &true.into()));
    assert_eq!(cut["sent"], 4);
    for leaver in ["/left", "/late"] {
        assert_eq!(lines[leaver]["status"], 499, "{leaver}");
        assert_eq!(lines[leaver]["cut"], true, "{leaver}");
    }
    assert_eq!(lines["/late"]["slot"], Value::Null);
}

#[tokio::test]
async fn what_is_shed_says_why() {
    let gateway = logging(1, "json").set("slots.queue", "0").run().await;
    assert_eq!(gateway.get("/shed").await.status(), 503);
    assert_eq!(by_path(gateway).await["/shed"]["why"], "queue_full");
}

#[tokio::test]
async fn lines_are_in_the_file_soon_and_a_rotation_loses_none() {
    let gateway = logging(1, "combined").run().await;
    let _worker = worker::new(1).run(&gateway).await;
    gateway.get("/ping?n=1").await.ok();
    let path = gateway.folder().join("access.log");
    let line = until_lines(&path, 1).await.remove(0);
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(
        line.ends_with("] \"GET /ping HTTP/1.1\" 200 4 \"-\" \"-\""),
        "{line}"
    );
    gateway.get("/ping").await.ok();
    let rotated = gateway.folder().join("access.log.1");
    fs::rename(&path, &rotated).expect("both in our folder");
    gateway.signal(Signal::USR1);
    let made = async {
        while !path.exists() {
            tokio::task::yield_now().await
        }
    };
    within("a new file", made).await;
    gateway.get("/ping").await.ok();
    until_lines(&path, 1).await;
    assert_eq!(lines(&rotated).len(), 2);
}

#[tokio::test]
async fn a_rotation_during_a_drain_loses_no_line_either() {
    let gate = Gate::new();
    let gateway = logging(1, "combined").run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    gateway.get("/ping").await.ok();
    let path = gateway.folder().join("access.log");
    until_lines(&path, 1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    fs::rename(&path, gateway.folder().join("access.log.1")).expect("both in our folder");
    gateway.signal(Signal::USR1);
    let made = async {
        while !path.exists() {
            tokio::task::yield_now().await
        }
    };
    within("a new file", made).await;
    gate.open();
    slow.await.ok();
    let line = until_lines(&path, 1).await.remove(0);
    assert!(line.contains("GET /slow "), "{line}");
}

#[tokio::test]
async fn a_reload_turns_the_log_on_and_off() {
    let on = "[access_log]\nformat = \"json\"\npath = \"access.log\"\n";
    let gateway = gateway::new(1).file("").run().await;
    let _worker = worker::new(1).run(&gateway).await;
    gateway.get("/before").await;
    gateway.rewrite(on);
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    gateway.get("/during").await;
    let path = gateway.folder().join("access.log");
    let line = until_lines(&path, 1).await.remove(0);
    assert!(line.contains("\"path\":\"/during\""), "{line}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_lines_and_no_request() {
    let gateway = logging(1, "json")
        .set("access_log.path", "/dev/full")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    for _ in 0..3 {
        gateway.get("/ping").await.ok();
    }
    gateway
        .until_metric("layby_access_log_dropped_total", |count| count == 3.0)
        .await;
    gateway.logged("cannot write the access log").await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_a_mistake_at_the_start() {
    let gateway = logging(1, "json").set("access_log.path", "nowhere/access.log");
    let (status, log) = gateway.fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("cannot open the access log"), "{log}");
}

#[tokio::test]
async fn the_operators_error_pages_are_shown_and_json_stays_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = "<title>{status} {reason}</title><style>p{color:red}</style>{request_id}";
    fs::write(folder.path().join("5xx.html"), page).expect("the folder is ours");
    let gateway = gateway::new(1)
        .set("slots.queue", "0")
        .set("error_pages", folder.path())
        .run()
        .await;
    let shed = gateway.get("/ping").header("Accept", "text/html").await;
    assert_eq!(shed.status(), 503);
    assert_eq!(
        shed.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let id = shed.header("x-request-id").expect("an id");
    assert_eq!(
        shed.text(),
        format!("<title>503 Service Unavailable</title><style>p{{color:red}}</style>{id}")
    );
    let json = gateway.get("/ping").header("Accept", "application/json");
    assert_eq!(json.await.json()["status"], 503);
    let other = gateway.raw("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(
        (other.status(), other.header("content-type")),
        (400, Some("text/plain; charset=utf-8"))
    );
}
