//! Connections of clients: kept, pipelined, old, and on whichever listener.

use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::http::{Address, Request};
use crate::support::{gateway, worker};

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    for _ in 0..10 {
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.response().await.ok(), "pong");
        client
            .send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        assert_eq!(client.response().await.ok(), "hi");
    }
    client
        .send("GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    let last = client.response().await;
    assert_eq!(last.header("connection"), Some("close"));
    assert_eq!(last.ok(), "pong");
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let gateway = gateway::new(2).run().await;
    let worker = worker::new(2).run(&gateway).await;
    let mut client = gateway.connect().await;
    client
        .send(
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none\
             GET /ping HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthree\r\n0\r\n\r\n",
        )
        .await;
    for expected in ["one", "pong", "three"] {
        assert_eq!(client.response().await.ok(), expected);
    }
    assert_eq!(worker.requests(), ["POST /echo", "GET /ping", "POST /echo"]);
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served_and_let_go() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    client.send("GET /ping HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
    assert_eq!(client.closed().await, b"");

    let mut client = gateway.connect().await;
    for _ in 0..2 {
        client
            .send("GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            .await;
        assert_eq!(client.response().await.ok(), "pong");
    }
}

#[tokio::test]
async fn every_listener_leads_to_the_same_slots() {
    let builder = gateway::new(1);
    let socket = builder.folder().join("http.sock");
    let listen = format!("127.0.0.1:0,unix:{}", socket.display());
    let gateway = builder.set("listen", listen).run().await;
    let gate = Gate::new();
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;

    let [tcp, unix] = gateway.addresses() else {
        panic!("two listeners")
    };
    assert!(matches!(unix, Address::Unix(path) if *path == socket));
    let slow = Request::new(unix, "GET", "/slow").spawn();
    gate.reached(1).await;
    let ping = Request::new(tcp, "GET", "/ping").spawn();
    gateway
        .until("the request in the queue", |s| s.queued == 1)
        .await;
    gate.open();
    assert_eq!(slow.await.ok(), "done");
    assert_eq!(ping.await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /slow", "GET /ping"]);
}

#[tokio::test]
async fn two_gateways_do_not_share_a_socket() {
    let first = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&first).await;
    let link = format!("unix:{}", first.link().display());
    let (status, log) = gateway::new(1).set("workers.link", link).fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("another process listens there"), "{log}");

    let taken = first.tcp().to_string();
    let (status, log) = gateway::new(1).set("listen", &taken).fail().await;
    assert_eq!(status.code(), Some(1));
    assert!(log.contains(&format!("cannot listen on {taken}")), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(first.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn a_connection_that_rested_goes_on_where_it_was() {
    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    for _ in 0..2 {
        client.send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.response().await.ok(), "pong");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for part in [
            "P",
            "OST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nh",
            "i",
        ] {
            client.send(part).await;
        }
        assert_eq!(client.response().await.ok(), "hi");
    }
    // Two at once, the second not yet whole when the connection would rest.
    client
        .send("GET /ping HTTP/1.1\r\nHost: a\r\n\r\nGET /pi")
        .await;
    assert_eq!(client.response().await.ok(), "pong");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    client.send("ng HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.response().await.ok(), "pong");
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let gateway = gateway::new(4).run().await;
    let worker = worker::new(4).run(&gateway).await;
    let clients: Vec<_> = (0..200)
        .map(|number| gateway.post("/echo", number.to_string()).spawn())
        .collect();
    for (number, client) in clients.into_iter().enumerate() {
        assert_eq!(client.await.ok(), number.to_string());
    }
    assert!(worker.most() <= 4);
    gateway.rests().await;
}

#[tokio::test]
async fn both_families_share_a_listener_or_have_one_each() {
    let at = |host: &str, port: u16| {
        let address = format!("{host}:{port}").parse().expect("an address");
        Request::new(&Address::Tcp(address), "GET", "/ping")
    };
    let shared = gateway::new(1).set("listen", "[::]:0").run().await;
    let worker = worker::new(1).run(&shared).await;
    let port = shared.tcp().port();
    assert_eq!(at("127.0.0.1", port).await.ok(), "pong");
    assert_eq!(at("[::1]", port).await.ok(), "pong");
    drop((shared, worker));

    let entries = format!("[::]:{port},0.0.0.0:{port}");
    let each = gateway::new(1).set("listen", entries).run().await;
    let _worker = worker::new(1).run(&each).await;
    assert_eq!(at("127.0.0.1", port).await.ok(), "pong");
    assert_eq!(at("[::1]", port).await.ok(), "pong");
}
