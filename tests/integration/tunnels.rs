//! Tunnels: what connections become after an upgrade, as WebSockets have it.

use std::time::Duration;

use super::support::upstream::{self, Upstream};
use super::support::{gateway, http, worker};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: v\r\n\r\n";

/// A tunnel, whose ends have said these first words in the same breath as the upgrade.
async fn tunnel(
    gateway: &gateway::Gateway,
    app: &Upstream,
    words: (&str, &str),
) -> (http::Connection, upstream::Connection) {
    let mut client = gateway.connect().await;
    client.send(format!("{UPGRADE}{}", words.0)).await;
    let mut server = app.accept().await;
    let request = server.head().await;
    assert_eq!(request.header("connection"), Some("upgrade"));
    assert_eq!(request.header("upgrade"), Some("websocket"));
    assert_eq!(request.header("sec-websocket-key"), Some("k"));
    server.send(format!("{SWITCHED}{}", words.1)).await;
    let head = client.head().await;
    assert_eq!(head.status, 101);
    assert_eq!(head.header("upgrade"), Some("websocket"));
    assert_eq!(head.header("connection"), Some("upgrade"));
    assert_eq!(head.header("sec-websocket-accept"), Some("v"));
    assert_eq!(head.header("content-length"), None);
    (client, server)
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_each_end_may_stop_first() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let (mut client, mut server) = tunnel(&gateway, &app, ("first", "hello")).await;
    assert_eq!(server.bytes(5).await, b"first");
    client.holds(5).await;
    let many = vec![b'x'; 3_000_000];
    let sending = async {
        client.send(&many).await;
        client.finish().await;
    };
    let ((), received) = tokio::join!(sending, server.bytes(many.len()));
    assert!(received == many);
    // The slot is taken as long as the tunnel lives.
    assert_eq!(gateway.status().await.busy, 1);
    server.send("bye").await;
    server.finish().await;
    assert_eq!(client.closed().await, b"hellobye");
    gateway.rests().await;
}

#[tokio::test]
async fn a_tunnel_ends_with_either_end() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let (client, mut server) = tunnel(&gateway, &app, ("", "")).await;
    drop(client);
    server.closed().await;
    drop(server);
    gateway.rests().await;
    let (mut client, server) = tunnel(&gateway, &app, ("", "")).await;
    server.reset();
    client.closed().await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_silent_tunnel_is_closed() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1)
        .set("tunnel_timeout", "1s")
        .run()
        .await;
    let (mut client, mut server) = tunnel(&gateway, &app, ("", "")).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.send("ping").await;
        assert_eq!(server.bytes(4).await, b"ping");
    }
    client.closed().await;
    server.closed().await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_tunnel_is_never_among_the_idle() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 3)
        .set("max_connections", "2")
        .run()
        .await;
    let mut tunnels = Vec::new();
    for _ in 0..2 {
        tunnels.push(tunnel(&gateway, &app, ("", "")).await);
    }
    let counted = "layby_connections{state=\"tunnel\"}";
    gateway.until_metric(counted, |count| count == 2.0).await;
    // So the bound holds, and none of them has to go for another.
    assert_eq!(gateway.get("/").await.status(), 503);
    for (client, server) in &mut tunnels {
        client.send("ping").await;
        assert_eq!(server.bytes(4).await, b"ping");
    }
    assert_eq!(gateway.metric(counted).await, 2.0);
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE).await;
    let (mut server, _) = app
        .answers("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let refused = client.response().await;
    assert_eq!((refused.status(), refused.text()), (426, "no"));
    // Both connections go on as they were.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    server.request().await;
    server
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    assert_eq!(client.response().await.ok(), "ok");
}

#[tokio::test]
async fn a_protocol_that_would_go_past_the_gateway_is_not_asked_for() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let mut client = gateway.connect().await;
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
        .await;
    let (_server, request) = app
        .answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    for name in ["upgrade", "connection", "http2-settings"] {
        assert_eq!(request.header(name), None);
    }
    assert_eq!(client.response().await.ok(), "ok");
}

/// hyper gives such a connection back without writing out what it has.
#[tokio::test]
async fn an_answer_to_the_last_request_of_a_connection_is_whole_whatever_it_asked_for() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    for connection in ["Upgrade, close", "Upgrade"] {
        let mut client = gateway.connect().await;
        let version = if connection == "Upgrade" {
            "1.0"
        } else {
            "1.1"
        };
        let head = format!(
            "POST / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody"
        );
        client.send(head).await;
        app.answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
        assert_eq!(client.response().await.ok(), "ok");
    }
}

#[tokio::test]
async fn a_drain_ends_tunnels_when_its_time_is_over() {
    let app = upstream::tcp().await;
    let mut gateway = gateway::before(&app, 1)
        .set("drain_timeout", "400ms")
        .run()
        .await;
    let (mut client, mut server) = tunnel(&gateway, &app, ("", "")).await;
    gateway.signal(rustix::process::Signal::TERM);
    gateway.logged("drain started").await;
    // Until then it goes on.
    client.send("still").await;
    assert_eq!(server.bytes(5).await, b"still");
    client.closed().await;
    server.closed().await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn workers_of_the_link_see_no_upgrade() {
    let gateway = gateway::new(1).run().await;
    let _workers = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    client.send(UPGRADE.replace("/chat", "/ping")).await;
    assert_ne!(client.head().await.status, 101);
}
