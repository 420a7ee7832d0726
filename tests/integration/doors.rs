//! Doors: who a client is when others pass its bytes on, and the sockets that it comes through.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::gateway::{self, Gateway};
use crate::support::http::Connection;
use crate::support::tls::{Authority, listens};
use crate::support::worker::{self, Worker};

/// Version 2: PROXY, TCP over IPv4, 203.0.113.9:5000 to 10.0.0.1:443.
const HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\x0a\x00\x00\x01\x13\x88\x01\xbb";

const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 10.0.0.1 5000 443\r\n";

const ENVIRON: &str = "GET /environ HTTP/1.1\r\nHost: a\r\n\r\n";

async fn proxied(peers: &str) -> (Gateway, Worker) {
    let gateway = gateway::new(1).set("proxy_protocol", peers).run().await;
    let worker = worker::new(1).run(&gateway).await;
    (gateway, worker)
}

async fn client_of(connection: &mut Connection) -> String {
    let environ = connection.response().await.json();
    let text = |name: &str| environ[name].as_str().unwrap_or_default().to_owned();
    format!("{}:{}", text("REMOTE_ADDR"), text("REMOTE_PORT"))
}

#[tokio::test]
async fn behind_a_balancer_that_passes_bytes_on_the_client_is_the_one_it_names() {
    let (gateway, _worker) = proxied("127.0.0.1").await;
    for header in [HEADER, LINE] {
        let mut connection = gateway.connect().await;
        connection.send([header, ENVIRON.as_bytes()].concat()).await;
        assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
        // It is the connection's client, not the request's.
        connection.send(ENVIRON).await;
        assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
    }
}

/// The balancer's header is in the clear; what the client sends after it is TLS.
#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority)
        .set("proxy_protocol", "127.0.0.1")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    for header in [HEADER, LINE] {
        let mut stream = TcpStream::connect(gateway.tls()).await.expect("a listener");
        stream.write_all(header).await.expect("there is room");
        let mut client = authority.client();
        let stream = client.connect_over("localhost", stream).await;
        let mut connection = Connection::over(stream.expect("a handshake"));
        connection.send(ENVIRON).await;
        assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
    }
    let without = authority.client().connect(&gateway).await;
    assert!(without.is_err(), "who does not say whom it is for");
}

#[tokio::test]
async fn a_header_that_comes_byte_by_byte_is_read_to_its_end_and_no_further() {
    let (gateway, _worker) = proxied("127.0.0.1").await;
    let mut connection = gateway.connect().await;
    for byte in [HEADER, b"GET /environ HTTP/1.1\r\nHost: a\r\n"].concat() {
        connection.send([byte]).await;
        tokio::task::yield_now().await;
    }
    connection.send("\r\n").await;
    assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
}

#[tokio::test]
async fn the_proxys_own_connections_and_unknown_clients_are_the_proxys() {
    let (gateway, _worker) = proxied("127.0.0.1").await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".as_slice();
    for header in [local, b"PROXY UNKNOWN\r\n"] {
        let mut connection = gateway.connect().await;
        connection.send([header, ENVIRON.as_bytes()].concat()).await;
        assert!(client_of(&mut connection).await.starts_with("127.0.0.1:"));
    }
}

#[tokio::test]
async fn a_connection_without_the_header_is_closed_and_many_are_one_line_of_the_log() {
    let (gateway, worker) = proxied("127.0.0.1").await;
    let wrong = [
        ENVIRON.as_bytes().to_vec(),
        b"PROXY TCP4 nonsense\r\n".to_vec(),
        [b"PROXY ".as_slice(), &[b'x'; 200]].concat(),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
        b"\x16\x03\x01 this would be TLS".to_vec(),
    ];
    for bytes in &wrong {
        let mut connection = gateway.connect().await;
        connection.send(bytes).await;
        assert_eq!(connection.closed().await, b"", "{bytes:?}");
    }
    let lines = gateway.log_lines("no PROXY header");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("something else is there"), "{lines:?}");
    assert_eq!(worker.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn whoever_is_not_named_cannot_send_a_header() {
    let (gateway, worker) = proxied("10.0.0.7").await;
    for header in [HEADER, LINE] {
        let answer = gateway.raw([header, ENVIRON.as_bytes()].concat()).await;
        assert_eq!(answer.status(), 400);
    }
    assert_eq!(worker.requests(), Vec::<String>::new());
    let mut connection = gateway.connect().await;
    connection.send(ENVIRON).await;
    assert!(client_of(&mut connection).await.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn on_a_unix_socket_every_peer_can_be_named() {
    let builder = gateway::new(1);
    let listen = format!("unix:{}", builder.folder().join("http.sock").display());
    let gateway = builder
        .set("listen", listen)
        .set("proxy_protocol", "unix")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut connection = gateway.connect().await;
    connection.send([HEADER, ENVIRON.as_bytes()].concat()).await;
    assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
}

#[tokio::test]
async fn a_header_that_does_not_come_costs_its_connection_alone() {
    let (gateway, _worker) = proxied("127.0.0.1").await;
    crate::support::takes(Duration::from_secs(5), async || {
        let mut slow = gateway.connect().await;
        slow.send(&HEADER[..20]).await;
        let mut connection = gateway.connect().await;
        connection.send([HEADER, ENVIRON.as_bytes()].concat()).await;
        assert_eq!(client_of(&mut connection).await, "203.0.113.9:5000");
        assert_eq!(slow.closed().await, b"");
    })
    .await;
}
