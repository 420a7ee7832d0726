//! Request bodies: they reach the worker whole or not at all, and hold no slot on their way.

use serde_json::json;

use crate::support::gateway::{self, Gateway};
use crate::support::worker::{self, Worker};

/// A gateway with one slot that tells what it got.
async fn telling(builder: gateway::Builder) -> (Gateway, Worker) {
    let gateway = builder.run().await;
    let worker = worker::new(1)
        .on("/tell", async |job| {
            let told = json!({
                "length": job.environ("CONTENT_LENGTH"),
                "bytes": job.body.len(),
                "sum": sum(&job.body),
                "file": job.by_descriptor,
                "coding": job.environ("HTTP_TRANSFER_ENCODING"),
                "trailer": job.environ("HTTP_X_TRAILER"),
            });
            job.answer(200, told.to_string()).await
        })
        .run(&gateway)
        .await;
    (gateway, worker)
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

/// Tells bytes apart that have been cut, repeated or swapped.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    })
}

fn told(body: &[u8]) -> serde_json::Value {
    json!({
        "length": body.len().to_string(), "bytes": body.len(), "sum": sum(body),
        "file": body.len() > 64 << 10, "coding": "", "trailer": "",
    })
}

const SIZES: [usize; 6] = [1, 65_535, 65_536, 65_537, 262_145, 5_000_000];

#[tokio::test]
async fn bodies_of_every_size_arrive_whole() {
    let (gateway, _worker) = telling(gateway::new(1)).await;
    for size in SIZES {
        let body = bytes(size);
        assert_eq!(gateway.post("/tell", &body).await.json(), told(&body));
    }
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
    gateway.rests().await;
}

#[tokio::test]
async fn chunked_bodies_arrive_whole_and_with_their_length() {
    let (gateway, _worker) = telling(gateway::new(1)).await;
    for size in SIZES {
        let body = bytes(size);
        let mut request =
            b"POST /tell HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in body.chunks(10_007) {
            request.extend(format!("{:x};ext=1\r\n", chunk.len()).bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
        assert_eq!(gateway.raw(request).await.json(), told(&body));
    }
}

#[tokio::test]
async fn an_empty_body_is_told_from_none() {
    let (gateway, _worker) = telling(gateway::new(1)).await;
    let empty = gateway.post("/tell", "").await.json();
    assert_eq!(
        (&empty["length"], &empty["bytes"]),
        (&json!("0"), &json!(0))
    );
    let none = gateway.get("/tell").await.json();
    assert_eq!((&none["length"], &none["bytes"]), (&json!(""), &json!(0)));
    let chunked = "POST /tell HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let chunked = gateway.raw(chunked).await.json();
    assert_eq!(chunked["bytes"], 0);
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_unread() {
    let (gateway, worker) = telling(gateway::new(1).set("max_body", "1000")).await;
    assert_eq!(gateway.post("/tell", bytes(1000)).await.status(), 200);
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head =
            format!("POST /tell HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n{expect}\r\n");
        let answer = gateway.raw(head).await;
        assert_eq!(answer.status(), 413);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(worker.requests().len(), 1);
}

#[tokio::test]
async fn a_chunked_body_that_becomes_too_large_is_refused() {
    let (gateway, worker) = telling(gateway::new(1).set("max_body", "1000")).await;
    let mut client = gateway.connect().await;
    client
        .send("POST /tell HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client
        .send([b"3e8\r\n", &bytes(1000)[..], b"\r\n1\r\nx\r\n"].concat())
        .await;
    let answer = client.response().await;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.header("connection"), Some("close"));
    client.closed().await;
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn a_client_that_sends_on_still_reads_why_it_was_refused() {
    let (gateway, _worker) = telling(gateway::new(1).set("max_body", "1000")).await;
    let mut client = gateway.connect().await;
    client
        .send("POST /tell HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n")
        .await;
    for part in bytes(8_000_000).chunks(100_000) {
        if client.try_send(part).await.is_err() {
            break;
        }
    }
    assert_eq!(client.response().await.status(), 413);
}

#[tokio::test]
async fn a_cut_body_never_reaches_the_worker() {
    let (gateway, worker) = telling(gateway::new(1)).await;
    let heads = [
        ("Content-Length: 10\r\n\r\n", "12345"),
        ("Content-Length: 100000\r\n\r\n", "12345"),
        ("Transfer-Encoding: chunked\r\n\r\n", "5\r\n12345\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n", "5\r\n12345\r\n0\r\n"),
        ("Transfer-Encoding: chunked\r\n\r\n", "5\r\n123"),
    ];
    for (framing, part) in heads {
        let mut client = gateway.connect().await;
        client
            .send(format!("POST /tell HTTP/1.1\r\nHost: a\r\n{framing}{part}"))
            .await;
        client.finish().await;
        let end = String::from_utf8_lossy(&client.closed().await).into_owned();
        assert!(end.is_empty() || end.starts_with("HTTP/1.1 400 "), "{end}");

        let mut leaver = gateway.connect().await;
        leaver
            .send(format!("POST /tell HTTP/1.1\r\nHost: a\r\n{framing}{part}"))
            .await;
        drop(leaver);
    }
    gateway
        .until_metric("layby_spool_bytes", |bytes| bytes == 0.0)
        .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /ping"]);
    gateway.rests().await;
}

#[tokio::test]
async fn a_malformed_chunk_is_the_clients_fault() {
    let (gateway, worker) = telling(gateway::new(1)).await;
    for chunks in [
        "zz\r\n12345\r\n0\r\n\r\n",
        "5\r\n1234567\r\n0\r\n\r\n",
        "-5\r\n12345\r\n0\r\n\r\n",
        "0x5\r\n12345\r\n0\r\n\r\n",
        "5\n12345\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n12345\r\n0\r\n\r\n",
        "\r\n12345\r\n0\r\n\r\n",
    ] {
        let head = "POST /tell HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = gateway.connect().await;
        client.send(format!("{head}{chunks}")).await;
        assert_eq!(client.response().await.status(), 400, "{chunks:?}");
        client.closed().await;
    }
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let (gateway, _worker) = telling(gateway::new(1)).await;
    let mut client = gateway.connect().await;
    client
        .send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 100);
    client.send("hello").await;
    assert_eq!(client.response().await.ok(), "hello");
}

#[tokio::test]
async fn a_slow_upload_holds_no_slot() {
    let (gateway, worker) = telling(gateway::new(1)).await;
    let mut client = gateway.connect().await;
    client
        .send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        .await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /ping"]);
    client.send("67890").await;
    assert_eq!(client.response().await.ok(), "1234567890");
}
