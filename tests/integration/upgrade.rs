//! Sockets that outlive a process, and what the service manager is told.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::gate::Gate;
use crate::support::gateway::Gateway;
use crate::support::http::{Address, Connection, Request};
use crate::support::tls::{Authority, listens};
use crate::support::{gateway, origin, within, worker};

const PING: &str = "GET /ping HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn an_upgrade_finishes_what_is_there_and_answers_who_came_meanwhile() {
    let gate = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let (pid, address) = (gateway.pid(), gateway.tcp());
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    let queued = gateway.get("/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;

    gateway.signal(Signal::USR2);
    gateway.logged("drain started").await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = gateway.connect().await;
        client.send(PING).await;
        clients.push(client);
    }
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(queued.await.ok(), "pong");
    worker.released().await;
    gateway.ready_again(2).await;
    assert_eq!((gateway.pid(), gateway.tcp()), (pid, address));
    let _worker = worker::new(1).run(&gateway).await;
    for mut client in clients {
        assert_eq!(client.response().await.ok(), "pong");
    }

    gateway.signal(Signal::USR2);
    gateway.ready_again(3).await;
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_unix_socket_keeps_its_file_over_an_upgrade() {
    let builder = gateway::new(1);
    let socket = builder.folder().join("http.sock");
    let mut gateway = builder
        .set("listen", format!("unix:{}", socket.display()))
        .run()
        .await;
    gateway.signal(Signal::USR2);
    gateway.ready_again(2).await;
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn listeners_with_tls_are_kept_too() {
    let authority = Authority::new("Test CA");
    let mut gateway = listens(gateway::new(1), &authority).run().await;
    let early = authority.client().connect(&gateway).await;
    let mut early = Connection::over(early.expect("a handshake"));
    gateway.signal(Signal::USR2);
    gateway.ready_again(2).await;
    let _worker = worker::new(1).run(&gateway).await;
    let late = authority.client().connect(&gateway).await;
    let mut late = Connection::over(late.expect("the same port"));
    late.send(PING).await;
    assert_eq!(late.response().await.ok(), "pong");
    // It was idle when the old program went.
    early.closed().await;
}

/// A gateway under a name of its own, which can be given to another program.
fn named(name: &str) -> (gateway::Builder, std::path::PathBuf) {
    let builder = gateway::new(1).file("");
    let program = builder.folder().join(name);
    symlink(env!("CARGO_BIN_EXE_layby"), &program).expect("the folder is ours");
    (builder.program(program.clone()), program)
}

fn replace(program: &Path, script: &str) {
    std::fs::remove_file(program).expect("it is there");
    std::fs::write(program, script).expect("the folder is ours");
    std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).expect("it is ours");
}

#[tokio::test]
async fn the_program_that_takes_over_is_the_one_that_lies_there_now() {
    let (builder, program) = named("layby-1");
    let mut gateway = builder.run().await;
    let script = "#!/bin/sh\necho \"the new program: $1\" >&2\nexec REAL \"$@\"\n";
    replace(
        &program,
        &script.replace("REAL", env!("CARGO_BIN_EXE_layby")),
    );
    gateway.signal(Signal::USR2);
    gateway.ready_again(2).await;
    gateway.logged("the new program: serve").await;
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_program_that_is_not_fit_takes_nothing_over() {
    let (builder, program) = named("layby-2");
    let gateway = builder.run().await;
    let _worker = worker::new(1).run(&gateway).await;

    gateway.rewrite("surprise = 1");
    gateway.signal(Signal::USR2);
    gateway.logged("upgrade refused").await;
    gateway.logged("surprise").await;
    gateway.rewrite("");
    replace(&program, "#!/bin/sh\necho no such library >&2\nexit 127\n");
    gateway.signal(Signal::USR2);
    gateway.logged("no such library").await;
    std::fs::remove_file(&program).expect("it is there");
    gateway.signal(Signal::USR2);
    gateway.logged("No such file").await;

    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.admin("/readyz").await.status(), 200);
    assert_eq!(gateway.log_lines("upgrade refused").len(), 3);
}

#[tokio::test]
async fn a_program_that_cannot_be_run_in_the_end_leaves_the_old_one_in_place() {
    let (builder, program) = named("layby-3");
    let mut gateway = builder.run().await;
    // It likes the configuration, and is gone when its turn comes.
    replace(&program, "#!/bin/sh\nrm \"$0\"\n");
    gateway.signal(Signal::USR2);
    gateway.ready_again(2).await;
    gateway.logged("the old program goes on").await;
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_signal_to_stop_turns_an_upgrade_into_a_drain() {
    let gate = Gate::new();
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    gateway.signal(Signal::USR2);
    gateway.logged("drain started").await;
    gateway.signal(Signal::TERM);
    gateway.refuses().await;
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(gateway.log_lines(" ready listen=").len(), 1);
}

#[tokio::test]
async fn a_socket_of_systemd_is_served_and_outlives_the_gateway() {
    for entry in ["systemd", "systemd:web"] {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::Tcp(socket.local_addr().expect("it has one"));
        // Who connects before there is a gateway waits for it.
        let mut early = Connection::open(&address).await;
        early.send(PING).await;
        let held = socket.try_clone().expect("a descriptor");
        let mut gateway = gateway::new(1)
            .set("listen", entry)
            .activated(held, "web")
            .run()
            .await;
        let worker = worker::new(1).run(&gateway).await;
        assert_eq!(early.response().await.ok(), "pong");
        assert_eq!(
            gateway.tcp().to_string(),
            socket.local_addr().expect("it has one").to_string()
        );

        gateway.signal(Signal::USR2);
        worker.released().await;
        gateway.ready_again(2).await;
        let _worker = worker::new(1).run(&gateway).await;
        assert_eq!(gateway.get("/ping").await.ok(), "pong");

        gateway.signal(Signal::TERM);
        assert_eq!(gateway.ended().await.code(), Some(0));
        // The restart's other half: who comes now waits for the next process.
        let mut late = Connection::open(&address).await;
        late.send(PING).await;
        let gateway = gateway::new(1)
            .set("listen", entry)
            .activated(socket, "web")
            .run()
            .await;
        let _worker = worker::new(1).run(&gateway).await;
        assert_eq!(late.response().await.ok(), "pong");
    }
}

#[tokio::test]
async fn a_reload_that_is_refused_leaves_a_socket_of_systemd_for_the_next() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(socket.local_addr().expect("it has one"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address));
    let (_held, taken) = taken.expect("it has one");
    let builder = gateway::new(1).unset("listen");
    let gateway = builder
        .file("listen = \"127.0.0.1:0\"")
        .activated(socket, "web")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    gateway.rewrite(&format!("listen = [\"systemd:web\", \"{taken}\"]"));
    gateway.signal(Signal::HUP);
    gateway.logged("reload refused").await;
    gateway.rewrite("listen = \"systemd:web\"");
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    let answer = Request::new(&address, "GET", "/ping").await;
    assert_eq!(answer.ok(), "pong");
}

#[tokio::test]
async fn a_socket_that_systemd_does_not_have_is_told_at_the_start() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let builder = gateway::new(1).set("listen", "systemd:api");
    let (status, log) = builder.activated(socket, "web").fail().await;
    assert_eq!(status.code(), Some(1));
    let line = "cannot listen on systemd:api: systemd has passed no such socket";
    assert!(log.contains(line), "{log}");
    let (_, log) = gateway::new(1).set("listen", "systemd").fail().await;
    assert!(
        log.contains("cannot listen on systemd: systemd has passed no such socket"),
        "{log}"
    );
}

#[tokio::test]
async fn a_socket_that_does_not_listen_is_told_at_the_start() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let builder = gateway::new(1).set("listen", "systemd:web");
    let socket = socket.expect("a socket");
    let (status, log) = builder.activated(socket, "web").fail().await;
    assert_eq!(status.code(), Some(1));
    let line = "cannot listen on systemd:web: the socket that was passed does not listen";
    assert!(log.contains(line), "{log}");
}

#[tokio::test]
async fn a_listener_that_somebody_else_has_shut_is_told_seldom_and_tried_slowly() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let held = socket.try_clone().expect("a descriptor");
    let builder = gateway::new(1).set("listen", "systemd:web");
    let mut gateway = builder.activated(held, "web").run().await;
    let shut = socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
    shut.expect("it is the same socket");
    let line = gateway.logged("cannot accept connections").await;
    assert!(line.contains("listen=systemd:web"), "{line}");
    let before = gateway.metric("process_cpu_seconds_total").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let spent = gateway.metric("process_cpu_seconds_total").await - before;
    assert!(spent < 0.15, "{spent} s of CPU in 0.3 s");
    assert_eq!(gateway.log_lines("cannot accept connections").len(), 1);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_service_manager_is_told_what_the_gateway_does() {
    let builder = gateway::new(1).file("");
    let path = builder.folder().join("notify");
    let manager = UnixDatagram::bind(&path).expect("the folder is ours");
    manager.set_nonblocking(true).expect("a socket");
    let manager = tokio::net::UnixDatagram::from_std(manager).expect("a socket");
    let told = async |wanted: &str| {
        let told = async {
            loop {
                let mut message = [0; 200];
                let length = manager.recv(&mut message).await.expect("a message");
                let message = String::from_utf8_lossy(&message[..length]).into_owned();
                // Heartbeats come in between.
                if message != "WATCHDOG=1" || wanted == "WATCHDOG=1" {
                    return message;
                }
            }
        };
        let message = within(wanted, told).await;
        assert!(message.starts_with(wanted), "{message} instead of {wanted}");
    };
    let mut gateway = builder
        .variable("NOTIFY_SOCKET", path.as_os_str())
        .variable("WATCHDOG_USEC", "200000")
        .run()
        .await;
    told("READY=1").await;
    told("WATCHDOG=1").await;
    gateway.signal(Signal::HUP);
    told("RELOADING=1\nMONOTONIC_USEC=").await;
    told("READY=1").await;
    let gate = Gate::new();
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let slow = gateway.get("/slow").spawn();
    gate.reached(1).await;
    gateway.signal(Signal::USR2);
    told("RELOADING=1\nMONOTONIC_USEC=").await;
    // However long the drain is.
    for _ in 0..3 {
        told("WATCHDOG=1").await;
    }
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    told("READY=1").await;
    gateway.signal(Signal::TERM);
    told("STOPPING=1").await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// Clients that pay without a pause, each time on a connection of their own, and want to hear of it.
struct Customers {
    over: CancellationToken,
    paying: JoinSet<Vec<String>>,
}

impl Customers {
    fn of(address: &Address, number: usize) -> Self {
        let over = CancellationToken::new();
        let mut paying = JoinSet::new();
        for customer in 0..number {
            let (address, over) = (address.clone(), over.clone());
            paying.spawn(async move {
                let mut paid = Vec::new();
                while !over.is_cancelled() {
                    let target = format!("/pay?{customer}-{}", paid.len());
                    let body = vec![b'x'; 100 * (customer % 3) * paid.len()];
                    let payment = Request::new(&address, "POST", &target).body(body);
                    assert_eq!(payment.await.ok(), "paid", "{target}");
                    paid.push(format!("POST {target}"));
                }
                paid
            });
        }
        Self { over, paying }
    }

    /// What has been paid, in any order.
    async fn leave(self) -> Vec<String> {
        self.over.cancel();
        let mut paid = within("the customers' last answers", self.paying.join_all())
            .await
            .concat();
        paid.sort();
        paid
    }
}

/// Some time, another one each round, and the same in each run.
async fn a_while(round: u64) {
    tokio::time::sleep(Duration::from_millis(20 + round * 37 % 90)).await;
}

#[tokio::test]
async fn upgrades_under_load_lose_nothing_and_run_nothing_twice() {
    let origin = origin::answering("paid").await;
    let url = origin.url("/");
    let mut gateway = gateway::new(4).run().await;
    let start =
        async |gateway: &Gateway| worker::new(4).fetches("/pay", &url).connect(gateway).await;
    let mut worker = start(&gateway).await;
    let customers = Customers::of(gateway.address(), 20);
    let mut ran = Vec::new();
    for round in 0..6 {
        a_while(round).await;
        gateway.signal(Signal::USR2);
        worker.released().await;
        ran.extend(worker.requests());
        gateway.ready_again(round as usize + 2).await;
        worker = start(&gateway).await;
    }
    let paid = customers.leave().await;
    ran.extend(worker.requests());
    ran.sort();
    assert_eq!(ran, paid);
    gateway.rests().await;
}

#[tokio::test]
async fn restarts_on_a_socket_of_systemd_lose_nothing_and_run_nothing_twice() {
    let origin = origin::answering("paid").await;
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::Tcp(socket.local_addr().expect("it has one"));
    let customers = Customers::of(&address, 20);
    let mut ran = Vec::new();
    for round in 0.. {
        let held = socket.try_clone().expect("a descriptor");
        let builder = gateway::new(4).set("listen", "systemd");
        let mut gateway = builder.activated(held, "web").run().await;
        let worker = worker::new(4)
            .fetches("/pay", &origin.url("/"))
            .connect(&gateway)
            .await;
        a_while(round).await;
        if round == 5 {
            let paid = customers.leave().await;
            ran.extend(worker.requests());
            ran.sort();
            assert_eq!(ran, paid);
            return;
        }
        gateway.signal(Signal::TERM);
        worker.released().await;
        ran.extend(worker.requests());
        assert_eq!(gateway.ended().await.code(), Some(0));
    }
}
