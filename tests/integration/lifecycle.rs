//! Starting, reloading, draining, and what the admin listener says meanwhile.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::gate::Gate;
use crate::support::http::{Address, Body, Request};
use crate::support::plan::Plan;
use crate::support::worker::Answer;
use crate::support::{gateway, origin, takes, within, worker};

#[tokio::test]
async fn a_drain_finishes_what_is_queued_running_and_parked() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;

    let parked = gateway.get("/quote").spawn();
    origin.received(1).await;
    let running = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let queued = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;

    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    assert_eq!(gateway.admin("/readyz").await.status(), 503);
    assert_eq!(gateway.admin("/livez").await.status(), 200);
    assert_eq!(gateway.status_json().await["draining"], true);
    gateway.refuses().await;

    gate.open();
    assert_eq!(running.await.ok(), "done");
    assert_eq!(queued.await.ok(), "pong");
    origin.release("12");
    assert_eq!(parked.await.ok(), "12");
    worker.released().await;
    let status = gateway.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(!gateway.link().exists());
}

#[tokio::test]
async fn a_drain_finishes_what_nobody_waits_for() {
    let origin = origin::stalled().await;
    let done = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let (at_end, url) = (done.clone(), origin.url("/"));
    let _worker = worker::new(1)
        .on("/pay", move |mut job| {
            let (at_end, url) = (at_end.clone(), url.clone());
            async move {
                job.park(&crate::support::plan::Plan::get(&url)).await?;
                at_end.pass().await;
                job.answer(200, "for nobody").await
            }
        })
        .run(&gateway)
        .await;
    let leaver = gateway.post("/pay", "").spawn();
    origin.received(1).await;
    leaver.leave().await;
    let series = "layby_requests_cancelled_total{phase=\"parked\"}";
    gateway.until_metric(series, |left| left == 1.0).await;

    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    origin.release("paid");
    done.reached(1).await;
    done.open();
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_lets_a_slow_reader_finish() {
    let body = vec![b'x'; 8_000_000];
    let answer = Answer::new(200).body(&body);
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1)
        .on("/x", move |job| {
            let answer = answer.clone();
            async move { job.respond(answer).await }
        })
        .run(&gateway)
        .await;
    let mut reader = crate::support::http::Connection::narrow(gateway.tcp()).await;
    reader.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = reader.head().await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    assert!(reader.body(&head, "GET").await == Body::Whole(body));
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_takes_the_rest_of_an_upload() {
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    client
        .send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        .await;
    // The first half has been read when the next request is answered.
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    gateway.refuses().await;
    client.send("world").await;
    let answer = client.response().await;
    assert_eq!(answer.ok(), "helloworld");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_ends_idle_connections_at_once() {
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut silent = gateway.connect().await;
    let mut kept = gateway.connect().await;
    kept.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    kept.response().await.ok();
    gateway.signal(Signal::INT);
    assert_eq!(silent.closed().await, b"");
    assert_eq!(kept.closed().await, b"");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn requests_that_were_sent_before_the_drain_are_answered() {
    let gate = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;

    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(gateway.connect().await);
    }
    // Stopped, the gateway cannot have read anything when the signal comes.
    gateway.signal(Signal::STOP);
    for client in &mut clients {
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    }
    // These are not even accepted yet.
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    gateway.signal(Signal::TERM);
    gateway.signal(Signal::CONT);
    gateway.logged("drain started").await;
    gate.open();
    slow.await.ok();
    for mut client in clients {
        let answer = client.response().await;
        assert_eq!(answer.ok(), "pong");
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_cut_and_said() {
    let (stuck, waits) = (Gate::new(), Gate::new());
    let mut gateway = gateway::new(2).set("drain_timeout", "300ms").run().await;
    let _worker = worker::new(2)
        .waits("/stuck", &stuck)
        .waits("/slow", &waits)
        .run(&gateway)
        .await;
    let stuck_ones = [gateway.get("/stuck").spawn(), gateway.get("/stuck").spawn()];
    stuck.reached(2).await;
    let queued = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;

    gateway.signal(Signal::TERM);
    let status = gateway.ended().await;
    assert_eq!(status.code(), Some(1));
    assert_eq!(gateway.log_lines("drain timeout").len(), 1);
    for request in stuck_ones {
        assert!(request.ended_without_answer().await);
    }
    assert_eq!(queued.await.status(), 503);
}

#[tokio::test]
async fn unsafe_fetches_that_do_not_run_out_within_the_grace_are_cut_and_said() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let mut gateway = gateway::new(2)
        .set("slots.on_disconnect", "cancel")
        .set("drain_timeout", "600ms")
        .run()
        .await;
    let worker = worker::new(2)
        .parks("/pay", Plan::post(&origin.url("/charge"), b"12"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let leaver = gateway.post("/pay", "12").spawn();
    origin.received(1).await;
    leaver.leave().await;
    worker.cancelled(1).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;

    let began = Instant::now();
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert_eq!(gateway.log_lines("unsafe fetches are cut").len(), 1);
    // They have what the requests have left of the grace, not one of their own.
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let gate = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).waits("/stuck", &gate).run(&gateway).await;
    let stuck = gateway.get("/stuck").spawn();
    gate.reached(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(stuck.ended_without_answer().await);
}

#[tokio::test]
async fn a_reload_applies_what_it_can_and_says_what_it_cannot() {
    let file = |queue: u32, admin: &str| format!("{admin}\n[slots]\nqueue = {queue}\n");
    let gateway = gateway::new(1)
        .unset("slots.queue")
        .file(&file(10, ""))
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let limit = async || gateway.status_json().await["queue"]["limit"].clone();
    assert_eq!(limit().await, 10);

    gateway.rewrite(&file(20, "drain_timeout = \"20s\"\nlog_format = \"json\""));
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    assert_eq!(limit().await, 20);
    assert_eq!(gateway.log_lines("only a restart applies it").len(), 1);
    // The hash is of what is in force: without the key that is not, it is the same.
    let hash = gateway.metric("layby_config_hash").await;
    gateway.rewrite(&file(20, "drain_timeout = \"20s\""));
    gateway.signal(Signal::HUP);
    gateway.logged_times("configuration reloaded", 2).await;
    assert_eq!(gateway.metric("layby_config_hash").await, hash);

    // All of it, or nothing.
    let successful = "layby_config_last_reload_successful";
    assert_eq!(gateway.metric(successful).await, 1.0);
    gateway.rewrite(&file(30, "error_pages = \"nowhere\""));
    gateway.signal(Signal::HUP);
    let line = gateway.logged("cannot read error_pages").await;
    assert!(line.contains("reload refused"), "{line}");
    assert_eq!(gateway.metric(successful).await, 0.0);
    assert_eq!(limit().await, 20);

    gateway.rewrite(&file(30, "surprise = 1"));
    gateway.signal(Signal::HUP);
    gateway
        .logged_times("reload refused, the old configuration stays", 2)
        .await;
    assert!(gateway.logged("surprise").await.contains("layby.toml"));
    assert_eq!(limit().await, 20);
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_reload_to_fewer_slots_leaves_those_that_are_there_at_work() {
    let file = |slots: u16| format!("[slots]\ncount = {slots}\nparked = {slots}\n");
    let gate = Gate::new();
    let builder = gateway::new(3).unset("slots.count").file(&file(3));
    let gateway = builder.run().await;
    let _worker = worker::new(3).waits("/slow", &gate).run(&gateway).await;
    gateway.rewrite(&file(1));
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    let warning = "slots.parked is below the number of slots";
    assert_eq!(gateway.log_lines(warning).len(), 1);
    let slow: Vec<_> = (0..3).map(|_| gateway.get("/slow").spawn()).collect();
    gate.reached(3).await;
    gate.open();
    for request in slow {
        assert_eq!(request.await.ok(), "done");
    }
}

#[tokio::test]
async fn a_reload_loses_no_request() {
    let origin = origin::stalled().await;
    let gate = Gate::new();
    let gateway = gateway::new(1).file("").run().await;
    let _worker = worker::new(1)
        .fetches("/quote", &origin.url("/"))
        .waits("/slow", &gate)
        .run(&gateway)
        .await;
    let parked = gateway.get("/quote").spawn();
    origin.received(1).await;
    let running = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let queued = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    gate.open();
    origin.release("12");
    assert_eq!(running.await.ok(), "done");
    assert_eq!(queued.await.ok(), "pong");
    assert_eq!(parked.await.ok(), "12");
}

#[tokio::test]
async fn a_reload_changes_what_fetches_may_reach() {
    let origin = origin::answering("12").await;
    let gateway = gateway::new(1)
        .unset("outbound.allow")
        .file("outbound.allow = [\"127.0.0.1\"]")
        .run()
        .await;
    let plan = crate::support::plan::Plan::get(&origin.url("/"));
    let _worker = worker::new(1).tells("/quote", plan).run(&gateway).await;
    let quote = async || gateway.get("/quote").await.json()["results"][0].clone();
    assert_eq!(quote().await["status"], 200);
    gateway.rewrite("outbound.allow = [\"public\"]");
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    assert_eq!(quote().await["error"], "refused");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn the_admin_listener_answers_while_every_slot_is_busy() {
    let gate = Gate::new();
    let gateway = gateway::new(2).run().await;
    let _worker = worker::new(2).waits("/slow", &gate).run(&gateway).await;
    let slow: Vec<_> = (0..20).map(|_| gateway.get("/slow").spawn()).collect();
    gate.reached(2).await;
    gateway.until("a queue", |s| s.queued == 18).await;
    takes(Duration::ZERO, async || {
        // A busy replica must not be pulled from the balancer.
        assert_eq!(gateway.admin("/readyz").await.status(), 200);
        assert_eq!(gateway.admin("/livez").await.status(), 200);
        assert_eq!(gateway.metric("layby_slots{state=\"busy\"}").await, 2.0);
        assert_eq!(gateway.metric("layby_queue_length").await, 18.0);
    })
    .await;
    let job = gateway.status_json().await["slots"]["list"][0]["job"].clone();
    assert_eq!(
        (&job["method"], &job["path"]),
        (&"GET".into(), &"/slow".into())
    );
    gate.open();
    for slow in slow {
        slow.await.ok();
    }
    gateway.rests().await;
}

#[tokio::test]
async fn a_gateway_without_workers_is_alive_but_not_ready() {
    let gateway = gateway::new(1).run().await;
    let ready = gateway.admin("/readyz").await;
    assert_eq!(
        (ready.status(), ready.text()),
        (503, "not ready: no worker is connected\n")
    );
    assert_eq!(gateway.admin("/livez").await.status(), 200);
    let worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.admin("/readyz").await.status(), 200);
    worker.kill().await;
    gateway
        .until("the worker's end", |s| s.processes == 0)
        .await;
    assert_eq!(gateway.admin("/readyz").await.status(), 503);
}

#[tokio::test]
async fn the_command_for_health_checks_says_what_the_gateway_says() {
    let asked = async |gateway: &gateway::Gateway| {
        let Address::Tcp(admin) = gateway.admin_address() else {
            unreachable!("the admin listener is no Unix socket");
        };
        let mut layby = tokio::process::Command::new(env!("CARGO_BIN_EXE_layby"));
        layby.arg("health").env("LAYBY_ADMIN", admin.to_string());
        let ended = within("the answer", layby.output()).await.expect("it runs");
        let said = [ended.stdout, ended.stderr].concat();
        (
            ended.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let mut gateway = gateway::new(1).run().await;
    assert_eq!(
        asked(&gateway).await,
        (Some(1), "not ready: no worker is connected\n".to_owned())
    );
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(asked(&gateway).await, (Some(0), "ready\n".to_owned()));
    gateway.signal(Signal::TERM);
    gateway.ended().await;
    let (status, said) = asked(&gateway).await;
    assert_eq!(status, Some(1));
    assert!(said.starts_with("no gateway at 127.0.0.1:"), "{said}");
}

/// As of `grep -q`, which leaves with the first line that it looks for.
#[tokio::test]
async fn a_command_whose_reader_has_left_ends_as_if_it_had_been_read() {
    let nobody = || {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        drop(ours);
        OwnedFd::from(theirs)
    };
    let ended = async |slots: &str| {
        let mut layby = tokio::process::Command::new(env!("CARGO_BIN_EXE_layby"));
        layby.args(["check", "mysite.wsgi", "--slots", slots]);
        layby.stdout(nobody()).stderr(nobody());
        let status = within("the check", layby.status()).await;
        status.expect("it runs").code()
    };
    assert_eq!(ended("8").await, Some(0));
    assert_eq!(ended("none").await, Some(1));
}

#[tokio::test]
async fn a_page_of_another_name_cannot_ask_the_admin_listener() {
    let gateway = gateway::new(1).run().await;
    for path in ["/", "/metrics", "/api/status", "/livez"] {
        assert_eq!(gateway.admin_as("evil.example", path).await.status(), 421);
        assert_eq!(gateway.admin_as("127.0.0.1", path).await.status(), 200);
    }
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_all_told_at_once() {
    let (status, log) = gateway::new(1)
        .set("slots.count", "0")
        .set("max_body", "much")
        .file("surprise = 1\n[outbound]\ntimeout = 5\n")
        .fail()
        .await;
    assert_eq!(status.code(), Some(1));
    for part in ["LAYBY_SLOTS_COUNT", "LAYBY_MAX_BODY", "surprise", "timeout"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test]
async fn a_drain_can_be_announced_before_the_door_closes() {
    let mut gateway = gateway::new(1).set("drain_delay", "600ms").run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let begun = std::time::Instant::now();
    gateway.signal(Signal::TERM);
    gateway.logged("readiness is red").await;
    assert_eq!(gateway.admin("/readyz").await.status(), 503);
    // The balancer has not looked yet.
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.logged("drain started").await;
    assert!(begun.elapsed() >= Duration::from_millis(600));
    gateway.refuses().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_reload_during_a_drain_is_ignored() {
    let gate = Gate::new();
    let mut gateway = gateway::new(1).file("").run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    gateway.rewrite("surprise = 1");
    gateway.signal(Signal::HUP);
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.log_lines("reload"), Vec::<String>::new());
}

#[tokio::test]
async fn a_reload_opens_an_address_that_takes_the_place_of_another() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.expect("a free port").port();
    let listen = |hosts: &[&str]| {
        let entries: Vec<_> = (hosts.iter())
            .map(|host| format!("\"{host}:{port}\""))
            .collect();
        format!("listen = [{}]", entries.join(", "))
    };
    let builder = gateway::new(1).unset("listen");
    let gateway = builder.file(&listen(&["127.0.0.1"])).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut early = gateway.connect().await;
    let pongs = async |host: &str| {
        let address = format!("{host}:{port}").parse().expect("an address");
        Request::new(&Address::Tcp(address), "GET", "/ping")
            .await
            .ok()
            == "pong"
    };
    let steps: [(&[&str], &[&str]); 6] = [
        (&["0.0.0.0"], &["127.0.0.1"]),
        (&["0.0.0.0", "[::]"], &["127.0.0.1", "[::1]"]),
        (&["[::]"], &["127.0.0.1", "[::1]"]),
        (&["127.0.0.1", "[::]"], &["127.0.0.1", "[::1]"]),
        (&["[::]"], &["127.0.0.1", "[::1]"]),
        (&["[::1]"], &["[::1]"]),
    ];
    for (step, (hosts, reached)) in steps.into_iter().enumerate() {
        gateway.rewrite(&listen(hosts));
        gateway.signal(Signal::HUP);
        gateway
            .logged_times("configuration reloaded", step + 1)
            .await;
        for host in reached {
            assert!(pongs(host).await, "{host} of {hosts:?}");
        }
        let taken = std::net::TcpListener::bind(("::1", port)).map(drop);
        assert_eq!(taken.is_err(), reached.contains(&"[::1]"), "{hosts:?}");
    }
    early.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(early.response().await.ok(), "pong");
}

#[tokio::test]
async fn a_reload_opens_and_closes_listeners_and_no_request_is_lost() {
    let builder = gateway::new(1).unset("listen");
    let (old, new) = (
        builder.folder().join("old.sock"),
        builder.folder().join("new.sock"),
    );
    let listen = |paths: &[&std::path::Path]| {
        let entries: Vec<_> = paths
            .iter()
            .map(|path| format!("\"unix:{}\"", path.display()))
            .collect();
        format!("listen = [{}]", entries.join(", "))
    };
    let gate = Gate::new();
    let gateway = builder.file(&listen(&[&old])).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;

    gateway.rewrite(&listen(&[&new]));
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    assert!(new.exists());
    within("the old socket's end", async {
        while old.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    let answer = Request::new(&Address::Unix(new.clone()), "GET", "/ping").await;
    assert_eq!(answer.ok(), "pong");

    // An address that cannot be had changes nothing.
    let mine = std::os::unix::net::UnixListener::bind(&old).expect("it is free");
    gateway.rewrite(&listen(&[&old]));
    gateway.signal(Signal::HUP);
    let line = gateway.logged("reload refused").await;
    assert!(
        line.contains("old.sock") && line.contains("another process"),
        "{line}"
    );
    let answer = Request::new(&Address::Unix(new), "GET", "/ping").await;
    assert_eq!(answer.ok(), "pong");
    drop(mine);
}
