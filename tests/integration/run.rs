//! `layby run`: real Python workers, supervised.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::gateway::{self, Gateway};
use crate::support::{origin, takes, within};

const APP: &str = r#"
import multiprocessing
import os
import re
import sys
import time
import urllib.parse

import layby

print("shop is open", flush=True)
leaked = []


def hold_the_interpreter():
    re.match(r"(a+)+$", "a" * 40 + "b")


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    if path == "/fetch":
        text = layby.get(query["url"]).result().text
    elif path == "/sleep":
        time.sleep(60)
        text = "awake"
    elif path == "/held":
        hold_the_interpreter()
        text = "never"
    elif path == "/leak":
        leaked.append(bytearray(int(query["mib"]) << 20))
        text = "leaked"
    elif path == "/fork":
        text = str(os.fork() or time.sleep(60))
    elif path == "/pool":
        with multiprocessing.get_context("fork").Pool(1) as pool:
            text = str(pool.apply(abs, [-1]))
    elif path == "/die":
        os._exit(7)
    elif path == "/say":
        print(query["text"], file=sys.stderr, flush=True)
        text = "said"
    elif path == "/descriptors":
        import resource

        text = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    elif path == "/shout":
        print(("x" * 999 + "\n") * 600, file=sys.stderr, flush=True)
        text = "shouted"
    else:
        text = str(os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"#;

fn app(slots: u16, processes: u16) -> gateway::Builder {
    python(gateway::run("shop", slots))
        .beside("shop.py", APP)
        // A start takes seconds on a busy machine.
        .set("slots.queue_timeout", "25s")
        .set("workers.processes", processes.to_string())
}

fn python(builder: gateway::Builder) -> gateway::Builder {
    let python = std::env::var_os("LAYBY_TEST_PYTHON");
    let python = python.expect(
        "LAYBY_TEST_PYTHON is to name a Python that has layby installed: run `make test`, which sets it",
    );
    builder.set("workers.python", python)
}

async fn pids(gateway: &Gateway) -> Vec<i32> {
    let processes = gateway.status_json().await["processes"].clone();
    let processes = processes.as_array().expect("an array");
    let pid = |process: &serde_json::Value| process["pid"].as_i64().expect("a number") as i32;
    processes.iter().map(pid).collect()
}

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("not 0");
    kill_process(pid, Signal::KILL).expect("it is there");
}

/// Waits until none of these processes runs any more.
async fn gone(pids: &[i32]) {
    // A zombie has ended; whoever inherits it will bury it.
    let runs = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z') && !rest.is_empty())
    };
    let ending = async {
        while pids.iter().any(runs) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the end of the workers", ending).await;
}

#[tokio::test]
async fn an_application_is_served_by_as_many_processes_as_asked_for() {
    let gateway = app(3, 2).descriptors(256).run().await;
    let workers = pids(&gateway).await;
    assert_eq!(workers.len(), 2);
    let answer = gateway.get("/").await;
    assert!(workers.iter().any(|pid| pid.to_string() == answer.ok()));
    // The gateway has raised its own limit.
    assert_eq!(gateway.get("/descriptors").await.ok(), "256");
    gateway.logged("[worker 1] shop is open").await;
    gateway.logged("[worker 2] shop is open").await;
    assert_eq!(gateway.get("/say?text=hello").await.ok(), "said");
    assert!(gateway.logged("] hello").await.starts_with("[worker "));
    gateway.rests().await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_only_who_writes_too_much() {
    let mut gateway = app(2, 2).run().await;
    gateway.read_log(false);
    let loud = gateway.get("/shout").spawn();
    gateway
        .until("the one that shouts", |status| status.busy == 1)
        .await;
    // Past what pipes hold, it waits; everything else goes on.
    for _ in 0..20 {
        assert_eq!(gateway.get("/").await.status(), 200);
    }
    assert_eq!(gateway.status().await.busy, 1);
    gateway.read_log(true);
    assert_eq!(loud.await.ok(), "shouted");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.log_lines("drained").len(), 1);
}

#[tokio::test]
async fn a_wait_in_place_is_done_by_the_gateway_and_counted_with_its_line() {
    let origin = origin::answering("12").await;
    let gateway = app(1, 1).run().await;
    let answer = gateway
        .get(&format!("/fetch?url={}", origin.url("/")))
        .await;
    assert_eq!(answer.ok(), "12");
    let series = "layby_waits_in_place_total{reason=\"mode\"}";
    assert_eq!(gateway.metric(series).await, 1.0);
    let wait = gateway.status_json().await["waits_in_place"][0].clone();
    let source = wait["source"].as_str().expect("a string").to_owned();
    assert!(source.contains("shop.py:23"), "{source}");
}

#[tokio::test]
async fn an_application_that_cannot_be_imported_ends_the_gateway_with_one_line() {
    let builder = python(gateway::run("shop:app", 2)).beside("shop.py", "import no_such_module\n");
    let (status, log) = builder.set("workers.processes", "2").fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("No module named 'no_such_module'"), "{log}");
    let ours: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(ours.len(), 1, "{log}");
    assert!(
        ours[0].contains("the application shop:app cannot be imported"),
        "{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn an_interpreter_that_is_not_there_ends_the_gateway_with_one_line() {
    let builder = gateway::run("shop", 1).set("workers.python", "/nowhere/python");
    let (status, log) = builder.fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("cannot run /nowhere/python"), "{log}");
    assert!(log.contains("--python"), "{log}");
}

#[tokio::test]
async fn a_killed_worker_costs_what_it_held_and_is_started_again() {
    let origin = origin::stalled().await;
    let gateway = app(2, 1).run().await;
    let target = format!("/fetch?url={}", origin.url("/"));
    let held = [gateway.get(&target).spawn(), gateway.get(&target).spawn()];
    origin.received(2).await;
    let queued = gateway.get("/").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;

    let before = pids(&gateway).await;
    kill(before[0]);
    takes(Duration::ZERO, async || {
        gateway.until("lost slots", |s| s.lost == 2).await;
    })
    .await;
    for request in held {
        assert_eq!(request.await.status(), 502);
    }
    let answered = queued.await;
    assert_ne!(answered.ok(), before[0].to_string());
    gateway.rests().await;
    let series = "layby_worker_restarts_total{reason=\"crash\"}";
    assert_eq!(gateway.metric(series).await, 1.0);
    assert_eq!(gateway.log_lines(" worker died ").len(), 1);
}

#[tokio::test]
async fn a_worker_that_keeps_dying_is_started_again_and_again() {
    let gateway = app(1, 1).run().await;
    for death in 1..=4 {
        assert_eq!(gateway.get("/die").await.status(), 502);
        let series = "layby_worker_restarts_total{reason=\"crash\"}";
        gateway
            .until_metric(series, |count| count == f64::from(death))
            .await;
    }
    assert!(gateway.get("/").await.ok().parse::<u32>().is_ok());
    gateway.rests().await;
    let pauses: Vec<_> = gateway.log_lines("restart_in=");
    assert!(pauses.len() >= 4, "{pauses:?}");
}

#[tokio::test]
async fn a_reload_replaces_every_worker_while_requests_flow() {
    let origin = origin::answering("12").await;
    let gateway = app(4, 2).run().await;
    let before = pids(&gateway).await;
    let target = format!("/fetch?url={}", origin.url("/"));
    let client = async || {
        let mut statuses = Vec::new();
        loop {
            statuses.push(gateway.get(&target).await.status());
            statuses.push(gateway.get("/").await.status());
            let after = gateway.log_lines("worker replaced").len();
            if after == 2 {
                return statuses;
            }
        }
    };
    let reload = async {
        gateway.signal(Signal::HUP);
        gateway.logged("configuration reloaded").await;
    };
    let (one, two, three, ()) = tokio::join!(client(), client(), client(), reload);
    for statuses in [one, two, three] {
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }
    let after = gateway.until("four idle slots", |s| s.idle == 4).await;
    assert_eq!(after.processes, 2);
    assert!(pids(&gateway).await.iter().all(|pid| !before.contains(pid)));
    gone(&before).await;
    let series = "layby_worker_restarts_total{reason=\"reload\"}";
    assert_eq!(gateway.metric(series).await, 2.0);
}

#[tokio::test]
async fn reloads_that_come_while_one_runs_become_one_more() {
    let gateway = app(2, 2).file("").run().await;
    for times in 1..=6 {
        gateway.signal(Signal::HUP);
        gateway.logged_times("configuration reloaded", times).await;
        // The third process is the first one's successor: from here on, one reload runs.
        gateway.logged_times("worker started", 3).await;
    }
    gateway.logged_times("worker replaced", 3).await;
    gateway.until("both processes", |s| s.processes == 2).await;
    gateway.rests().await;
    let replaced = gateway.log_lines("worker replaced").len();
    assert!((3..=4).contains(&replaced), "{replaced} for two processes");
}

#[tokio::test]
async fn a_reload_that_cannot_import_keeps_the_old_workers() {
    let gateway = app(1, 1).run().await;
    let before = pids(&gateway).await;
    let shop: &Path = &gateway.folder().join("shop.py");
    std::fs::write(shop, "syntax error\n").expect("the folder is ours");
    gateway.signal(Signal::HUP);
    gateway.logged("the old worker stays").await;
    assert_eq!(gateway.get("/").await.ok(), before[0].to_string());
    gateway.rests().await;
}

#[tokio::test]
async fn a_reload_to_workers_that_do_not_start_is_over_with_the_first() {
    let python = std::env::var("LAYBY_TEST_PYTHON").expect("a path, see python()");
    let with = |python: &str| format!("[workers]\nprocesses = 2\npython = \"{python}\"\n");
    let gateway = gateway::run("shop", 2)
        .beside("shop.py", APP)
        .file(&with(&python))
        .run()
        .await;
    let before = pids(&gateway).await;
    gateway.rewrite(&with("/bin/false"));
    gateway.signal(Signal::HUP);
    gateway.logged("the old worker stays").await;
    // What starts for one that dies is of the old kind, too.
    kill(before[0]);
    restarts(&gateway, "crash", 1).await;
    gateway.until("both processes", |s| s.processes == 2).await;
    gateway.rests().await;
    let after = pids(&gateway).await;
    assert!(after.contains(&before[1]), "{before:?} {after:?}");
    assert_eq!(gateway.log_lines("the old worker stays").len(), 1);
    assert_eq!(gateway.log_lines("worker did not start").len(), 0);
}

#[tokio::test]
async fn a_drain_ends_the_workers_too() {
    let origin = origin::stalled().await;
    let mut gateway = app(2, 2).run().await;
    let workers = pids(&gateway).await;
    let held = gateway
        .get(&format!("/fetch?url={}", origin.url("/")))
        .spawn();
    origin.received(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    origin.release("12");
    assert_eq!(held.await.ok(), "12");
    assert_eq!(gateway.ended().await.code(), Some(0));
    gone(&workers).await;
    assert_eq!(gateway.log_lines(" worker died "), Vec::<String>::new());
    assert_eq!(gateway.log_lines("worker killed"), Vec::<String>::new());
}

#[tokio::test]
async fn workers_do_not_outlive_a_gateway_that_was_killed() {
    let mut gateway = app(2, 2).run().await;
    let workers = pids(&gateway).await;
    gateway.signal(Signal::KILL);
    gateway.ended().await;
    gone(&workers).await;
}

fn overdue(slots: u16, processes: u16) -> gateway::Builder {
    app(slots, processes)
        .set("slots.request_timeout", "500ms")
        .set("slots.overdue_grace", "2s")
}

async fn restarts(gateway: &Gateway, reason: &str, count: u32) {
    let series = format!("layby_worker_restarts_total{{reason=\"{reason}\"}}");
    let enough = |restarts| restarts == f64::from(count);
    gateway.until_metric(&series, enough).await;
}

#[tokio::test]
async fn a_process_with_a_stuck_slot_is_replaced_after_the_grace() {
    let gateway = overdue(2, 1).run().await;
    let before = pids(&gateway).await;
    assert_eq!(gateway.get("/sleep").await.status(), 504);
    // What keeps it, with the line of the application.
    let stuck = gateway.logged("the time of GET /sleep is over").await;
    assert!(stuck.contains("slot stuck"), "{stuck}");
    gateway.logged("time.sleep(60)").await;
    assert_eq!(gateway.get("/").await.ok(), before[0].to_string());

    gateway.logged("worker overdue").await;
    gone(&before).await;
    gateway.rests().await;
    restarts(&gateway, "overdue", 1).await;
    assert_ne!(gateway.get("/").await.ok(), before[0].to_string());
    assert_eq!(gateway.log_lines(" worker died ").len(), 0);
}

/// Its control thread cannot run, so it cannot say anything, nor end by itself.
#[tokio::test]
async fn a_process_whose_interpreter_is_held_shows_its_stack_and_is_killed() {
    let gateway = overdue(2, 1).run().await;
    let before = pids(&gateway).await;
    assert_eq!(gateway.get("/held").await.status(), 504);
    gateway.logged("cannot say what its slots do").await;
    gateway.logged("in hold_the_interpreter").await;
    gone(&before).await;
    gateway.rests().await;
    restarts(&gateway, "overdue", 1).await;
    assert_eq!(gateway.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_process_that_is_stopped_is_replaced_while_the_other_serves() {
    let gateway = overdue(2, 2).run().await;
    let before = pids(&gateway).await;
    let stopped = Pid::from_raw(before[0]).expect("not 0");
    kill_process(stopped, Signal::STOP).expect("it is there");
    gateway.logged("worker silent").await;
    let mut served = Vec::new();
    for _ in 0..4 {
        let answer = gateway.get("/").await;
        served.push(answer.ok().parse::<i32>().expect("a pid"));
    }
    assert_eq!(served, [before[1]; 4]);
    gone(&before[..1]).await;
    gateway.rests().await;
    restarts(&gateway, "overdue", 1).await;
}

/// A copy of its connections is in its child, and with them the slots.
#[tokio::test]
async fn what_a_dead_worker_has_forked_does_not_keep_its_slots() {
    let gateway = app(1, 1).run().await;
    let before = pids(&gateway).await;
    let child: i32 = gateway.get("/fork").await.ok().parse().expect("a pid");
    kill(before[0]);
    gateway.logged("killed what a dead worker left").await;
    gone(&[child]).await;
    gateway.rests().await;
    assert_ne!(gateway.get("/").await.ok(), before[0].to_string());
}

/// What ends one does not end the worker, and a slot that the worker has closed is closed.
#[tokio::test]
async fn forked_children_are_no_workers() {
    let gateway = app(1, 1).run().await;
    let before = pids(&gateway).await;
    assert_eq!(gateway.get("/pool").await.ok(), "1");
    let child: i32 = gateway.get("/fork").await.ok().parse().expect("a pid");
    assert_eq!(gateway.get("/").await.ok(), before[0].to_string());

    gateway.signal(Signal::HUP);
    gateway.logged("worker replaced").await;
    gateway.rests().await;
    assert_ne!(gateway.get("/").await.ok(), before[0].to_string());
    assert_eq!(gateway.log_lines("worker killed").len(), 0);
    assert_eq!(gateway.log_lines("killed what a dead worker left").len(), 0);
    kill(child);
}

/// Its keeper has not gone with the old one.
#[tokio::test]
async fn a_successor_that_dies_is_missed_while_the_old_worker_finishes() {
    let origin = origin::stalled().await;
    let gateway = app(2, 1).run().await;
    let before = pids(&gateway).await;
    let target = format!("/fetch?url={}", origin.url("/"));
    let held = gateway.get(&target).spawn();
    origin.received(1).await;
    gateway.signal(Signal::HUP);
    restarts(&gateway, "reload", 1).await;
    let both = pids(&gateway).await;
    let successor = both.iter().find(|pid| **pid != before[0]);
    let successor = *successor.expect("two processes");
    kill(successor);
    restarts(&gateway, "crash", 1).await;
    let third = gateway.get("/").await;
    let third = third.ok();
    assert!(third != successor.to_string() && third != before[0].to_string());
    assert_eq!(gateway.log_lines("worker replaced").len(), 0);

    origin.release("12");
    assert_eq!(held.await.ok(), "12");
    gateway.logged("worker replaced").await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_worker_that_asks_for_a_drain_is_replaced_at_once() {
    let origin = origin::stalled().await;
    let gateway = app(2, 1).run().await;
    let before = pids(&gateway).await;
    let target = format!("/fetch?url={}", origin.url("/"));
    let held = gateway.get(&target).spawn();
    origin.received(1).await;
    let pid = Pid::from_raw(before[0]).expect("not 0");
    kill_process(pid, Signal::TERM).expect("it is there");
    restarts(&gateway, "recycled", 1).await;
    assert_ne!(gateway.get("/").await.ok(), before[0].to_string());

    origin.release("12");
    assert_eq!(held.await.ok(), "12");
    gateway.logged("worker replaced").await;
    gone(&before).await;
    gateway.rests().await;
    restarts(&gateway, "crash", 0).await;
    assert_eq!(gateway.log_lines(" worker died ").len(), 0);
}

#[tokio::test]
async fn processes_are_recycled_after_their_share_of_requests_one_at_a_time() {
    let gateway = app(2, 2).set("workers.max_requests", "20").run().await;
    let mut seen = std::collections::BTreeSet::new();
    let client = async {
        loop {
            let answer = gateway.get("/").await;
            seen.insert(answer.ok().parse::<i32>().expect("a pid"));
            if seen.len() >= 6 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let watch = async {
        loop {
            let status = gateway.status().await;
            assert!(status.processes <= 3, "one at a time: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = client => {}
        () = watch => {}
    }
    assert!(gateway.log_lines("worker due for recycling").len() >= 4);
    assert!(gateway.log_lines("reason=\"recycled\"").len() >= 3);
    assert_eq!(gateway.log_lines(" worker died ").len(), 0);
}

#[tokio::test]
async fn a_process_that_has_grown_is_recycled_and_one_that_explodes_is_killed() {
    let gateway = app(1, 1).set("workers.max_memory", "100MiB").run().await;
    let first = pids(&gateway).await;
    assert_eq!(gateway.get("/leak?mib=90").await.ok(), "leaked");
    restarts(&gateway, "recycled", 1).await;
    gone(&first).await;
    gateway.rests().await;
    let second = pids(&gateway).await;
    assert_ne!(first, second);

    // It may be killed before it has answered.
    gateway.get("/leak?mib=300").await;
    gateway.logged("it grows too fast").await;
    gone(&second).await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_process_is_recycled_at_its_age_unless_nobody_could_follow() {
    let gateway = app(1, 1).set("workers.max_age", "1s").run().await;
    restarts(&gateway, "recycled", 1).await;
    gateway.rests().await;
    let shop: &Path = &gateway.folder().join("shop.py");
    std::fs::write(shop, "syntax error\n").expect("the folder is ours");
    gateway
        .logged("replacement given up: the old worker stays")
        .await;
    let workers = pids(&gateway).await;
    assert_eq!(gateway.get("/").await.ok(), workers[0].to_string());
    gateway.rests().await;
}
