//! HTTP/2: many requests on one connection, each with a life of its own, and clients that mean harm.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::http2::{
    Client, Frame, PREFACE, Raw, code, flag, get, head, kind, request, rest, send_all, whole,
};
use crate::support::tls::{Authority, listens};
use crate::support::within;
use crate::support::worker::{self, Answer};

/// Takes HTTP/2 without TLS, where most tests have less to look at.
fn plain(slots: u16) -> gateway::Builder {
    gateway::new(slots).set("h2c", "true")
}

async fn connect(gateway: &Gateway) -> Client {
    Client::over(TcpStream::connect(gateway.tcp()).await.expect("a listener")).await
}

async fn raw(gateway: &Gateway, settings: &[(u16, u32)]) -> Raw<TcpStream> {
    let stream = TcpStream::connect(gateway.tcp()).await;
    Raw::over(stream.expect("a listener"), settings).await
}

/// `SETTINGS_INITIAL_WINDOW_SIZE`
const WINDOW: u16 = 4;

async fn ended_with(gateway: &Gateway, method: &str, status: u16, count: f64) {
    let class = status / 100;
    let series = format!(
        "layby_requests_total{{class=\"{class}xx\",method=\"{method}\",status=\"{status}\"}}"
    );
    gateway.until_metric(&series, |ended| ended == count).await;
}

#[tokio::test]
async fn requests_over_tls_share_a_connection_and_do_not_wait_for_each_other() {
    let authority = Authority::new("Test CA");
    let gate = Gate::new();
    let gateway = listens(gateway::new(2), &authority).run().await;
    let worker = worker::new(2).waits("/slow", &gate).run(&gateway).await;
    let mut offering = authority.client().offers(&["h2", "http/1.1"]);
    let stream = offering.connect(&gateway).await.expect("a connection");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let client = Client::over(stream).await;

    let (slow, _) = client.send(get("/slow"), true).await;
    gate.reached(1).await;
    let environ = client.get("/environ").await;
    assert!(environ.header("date").is_some());
    for (name, value) in [
        ("SERVER_PROTOCOL", "HTTP/2.0"),
        ("wsgi.url_scheme", "https"),
        ("HTTP_HOST", "shop.example"),
        ("SERVER_NAME", "shop.example"),
    ] {
        assert_eq!(environ.json()[name], value, "{name}");
    }
    for number in 0..100 {
        let body = number.to_string();
        assert_eq!(client.post("/echo", body.clone()).await.ok(), body);
    }
    gate.open();
    assert_eq!(whole(slow).await.expect("an answer").ok(), "done");
    assert_eq!(worker.requests().len(), 102);
    gateway.rests().await;
}

#[tokio::test]
async fn many_requests_at_once_are_all_answered() {
    let gateway = plain(4).run().await;
    let worker = worker::new(4).run(&gateway).await;
    let client = connect(&gateway).await;
    for round in 0..3 {
        // Below the limit, which this client does not always keep to.
        let numbers = (0..100).map(|number| (100 * round + number).to_string());
        let posts = numbers.clone().map(|number| client.post("/echo", number));
        let answers = futures_util::future::join_all(posts).await;
        for (number, answer) in numbers.zip(answers) {
            assert_eq!(answer.ok(), number);
        }
    }
    assert!(worker.most() <= 4);
    gateway.rests().await;
}

#[tokio::test]
async fn a_plain_listener_takes_either_where_it_may_and_only_http_1_where_not() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    assert_eq!(connect(&gateway).await.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    // A request that begins like the preface, byte by byte.
    let mut slow = gateway.connect().await;
    for byte in "PRINT /ping HTTP/1.1\r\nHost: a\r\n\r\n".bytes() {
        slow.send([byte]).await;
    }
    assert_eq!(slow.response().await.ok(), "pong");

    let gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut refused = gateway.connect().await;
    refused.send(PREFACE).await;
    assert_eq!(refused.response().await.status(), 400);
}

#[tokio::test]
async fn a_client_that_promised_http_2_and_speaks_something_else_is_told_in_http_2() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(1), &authority).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut offering = authority.client().offers(&["h2"]);
    let mut stream = offering.connect(&gateway).await.expect("a connection");
    let sent = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    sent.expect("there is room");
    let mut bytes = Vec::new();
    // The end of the line may come without the last word of TLS.
    let _ = within("the end", stream.read_to_end(&mut bytes)).await;
    let [settings, goaway] = [&bytes[..9], &bytes[9..]];
    assert_eq!(settings[3], kind::SETTINGS);
    assert_eq!(goaway[3], kind::GOAWAY);
    assert_eq!(goaway[13..17], code::PROTOCOL_ERROR.to_be_bytes());
}

#[tokio::test]
async fn the_head_is_that_of_a_request_over_http_1() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let client = connect(&gateway).await;
    let asked = get("/environ?a=b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x_forwarded_for", "127.0.0.1")
        .header("x-forwarded-for", "127.0.0.1")
        .header("proxy", "http://evil.example")
        .header("layby-token", "1");
    let (answer, _) = client.send(asked, true).await;
    let environ = whole(answer).await.expect("an answer").json();
    assert_eq!(environ["HTTP_COOKIE"], "a=1; b=2");
    assert_eq!(environ["REQUEST_URI"], "/environ?a=b");
    // What no URI may hold is escaped, as it is there.
    let escaped = client.get("/environ?q=\u{e9}").await.json();
    assert_eq!(escaped["REQUEST_URI"], "/environ?q=%C3%A9");
    assert_eq!(escaped["QUERY_STRING"], "q=%C3%A9");
    for removed in ["HTTP_X_FORWARDED_FOR", "HTTP_PROXY", "HTTP_LAYBY_TOKEN"] {
        assert_eq!(environ[removed], serde_json::Value::Null, "{removed}");
    }
}

#[tokio::test]
async fn bodies_of_any_size_come_and_go() {
    let gateway = plain(4).run().await;
    let _worker = worker::new(4).run(&gateway).await;
    let client = connect(&gateway).await;
    let bodies = [0, 1, 65_536, 300_000, 5_000_000].map(|size| Bytes::from(vec![b'x'; size]));
    let posts = bodies.iter().map(|body| client.post("/echo", body.clone()));
    let answers = futures_util::future::join_all(posts).await;
    for (body, answer) in bodies.iter().zip(answers) {
        assert_eq!(answer.ok().len(), body.len());
    }
    gateway.rests().await;
    let spooled = |bytes| bytes == 0.0;
    gateway.until_metric("layby_spool_bytes", spooled).await;
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1)
        .on("/empty", async |job| job.respond(Answer::new(204)).await)
        .run(&gateway)
        .await;
    let client = connect(&gateway).await;
    let (answer, _) = client.send(request("HEAD", "/ping"), true).await;
    let answer = whole(answer).await.expect("an answer");
    assert_eq!(
        (answer.ok(), answer.header("content-length")),
        ("", Some("4"))
    );
    let empty = client.get("/empty").await;
    assert_eq!(empty.head.status, 204);
    assert_eq!(empty.header("content-length"), None);
    assert_eq!(
        client.get("/ping").await.header("content-length"),
        Some("4")
    );
}

#[tokio::test]
async fn a_reset_request_is_one_whose_client_left() {
    let gate = Gate::new();
    let gateway = plain(1).run().await;
    let worker = worker::new(1).waits("/pay", &gate).run(&gateway).await;
    let client = connect(&gateway).await;
    let (paying, mut stream) = client.send(request("POST", "/pay"), false).await;
    stream.send_data(Bytes::new(), true).expect("it is open");
    gate.reached(1).await;
    let (queued, _) = client.send(get("/never"), true).await;
    gateway
        .until("the request in the queue", |status| status.queued == 1)
        .await;
    drop(queued);
    gateway
        .until("an empty queue", |status| status.queued == 0)
        .await;
    stream.send_reset(h2::Reason::CANCEL);
    drop(paying);
    ended_with(&gateway, "POST", 499, 1.0).await;
    ended_with(&gateway, "GET", 499, 1.0).await;
    // Money may be half moved: it is finished. The connection goes on.
    gate.open();
    gateway.rests().await;
    assert_eq!(client.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["POST /pay", "GET /ping"]);
}

#[tokio::test]
async fn a_client_that_goes_leaves_all_of_its_requests() {
    let gate = Gate::new();
    let gateway = plain(2).run().await;
    let _worker = worker::new(2).waits("/slow", &gate).run(&gateway).await;
    let client = connect(&gateway).await;
    let slow = [
        client.send(get("/slow"), true).await,
        client.send(get("/slow"), true).await,
    ];
    gate.reached(2).await;
    drop(client.ended());
    drop(slow);
    ended_with(&gateway, "GET", 499, 2.0).await;
    gate.open();
    gateway.rests().await;
}

#[tokio::test]
async fn a_body_that_is_cut_reaches_nobody() {
    let gateway = plain(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    let client = connect(&gateway).await;
    for announced in [None, Some("10")] {
        let mut asked = request("POST", "/echo");
        if let Some(length) = announced {
            asked = asked.header("content-length", HeaderValue::from_static(length));
        }
        let (answer, mut stream) = client.send(asked, false).await;
        stream.send_data("12345".into(), false).expect("it is open");
        match announced {
            None => stream.send_reset(h2::Reason::CANCEL),
            // Less than was announced.
            Some(_) => stream.send_data(Bytes::new(), true).expect("it is open"),
        }
        assert!(whole(answer).await.is_err());
    }
    assert_eq!(client.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /ping"]);
    gateway.rests().await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_reset() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1)
        .on("/cut", async |job| {
            job.begin(Answer::new(200).body("half")).await;
            job.broken().await
        })
        .run(&gateway)
        .await;
    let client = connect(&gateway).await;
    let (answer, _) = client.send(get("/cut"), true).await;
    let (head, body) = answer.await.expect("a head").into_parts();
    assert_eq!(head.status, 200);
    let error = rest(body).await.expect_err("half a body");
    assert_eq!(error.reason().map(u32::from), Some(code::INTERNAL_ERROR));
    assert_eq!(client.get("/ping").await.ok(), "pong");
}

#[tokio::test]
async fn lazy_bodies_wait_until_they_are_wanted() {
    let gate = Gate::new();
    let routes = "[[route]]\npath = \"/upload\"\nbody = \"lazy\"\n";
    let gateway = plain(2).file(routes).run().await;
    let at_gate = gate.clone();
    let _worker = worker::new(2)
        .on("/upload", move |mut job| {
            let gate = at_gate.clone();
            async move {
                gate.pass().await;
                if job.lazy {
                    job.park_for_body().await?;
                }
                job.answer(200, job.body.len().to_string()).await
            }
        })
        .on("/upload/refused", async |job| {
            job.answer(403, "not you").await
        })
        .run(&gateway)
        .await;
    let client = connect(&gateway).await;
    let body = Bytes::from(vec![b'x'; 2_000_000]);
    let (answer, stream) = client.send(request("POST", "/upload"), false).await;
    let sending = tokio::spawn(send_all(stream, body.clone()));
    gate.reached(1).await;
    // What nobody has asked for fills its own window, and others go on.
    assert_eq!(
        client.post("/echo", body.clone()).await.ok().len(),
        body.len()
    );
    assert!(!sending.is_finished());
    gate.open();
    assert_eq!(whole(answer).await.expect("an answer").ok(), "2000000");

    // Answered without its body: the client is told that it need not send the rest.
    let refused = client.post("/upload/refused", body.clone()).await;
    assert_eq!(refused.head.status, 403);
    assert_eq!(
        client.post("/echo", body.clone()).await.ok().len(),
        body.len()
    );
    gateway.rests().await;
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_that_its_body_is_wanted_is_told() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = raw(&gateway, &[]).await;
    let block = head(
        "/echo",
        &[("expect", "100-continue"), ("content-length", "5")],
    );
    // `:method: POST` instead of GET.
    let block = [&[0x83], &block[1..]].concat();
    let frame = Frame::new(kind::HEADERS, flag::END_HEADERS, 1, &block);
    client.send(&frame).await.expect("it is open");
    let informed = client.frame_of(kind::HEADERS).await.expect("a head");
    assert_eq!(informed.flags & flag::END_STREAM, 0);
    let data = Frame::new(kind::DATA, flag::END_STREAM, 1, b"hello");
    client.send(&data).await.expect("it is open");
    assert!(client.frame_of(kind::HEADERS).await.is_some());
    let echo = client.frame_of(kind::DATA).await.expect("a body");
    assert_eq!(echo.payload, b"hello");
}

#[tokio::test]
async fn a_slow_reader_keeps_nobody_from_anything() {
    let gateway = plain(1).run().await;
    let size = 3_000_000;
    let _worker = worker::new(1)
        .on("/large", move |job| async move {
            job.answer(200, vec![b'x'; size]).await
        })
        .run(&gateway)
        .await;
    let client = connect(&gateway).await;
    let (answer, _) = client.send(get("/large"), true).await;
    let (_, mut body) = answer.await.expect("a head").into_parts();
    // The slot is free, and other streams go on, while nobody reads.
    gateway.rests().await;
    assert_eq!(client.get("/ping").await.ok(), "pong");
    let first = body.data().await.expect("a part").expect("no error");
    body.flow_control()
        .release_capacity(first.len())
        .expect("it was there");
    let others = rest(body).await.expect("the rest");
    assert_eq!(first.len() + others.len(), size);
}

#[tokio::test]
async fn files_are_read_as_far_as_their_clients_take_them() {
    let builder = plain(1).file(
        "[compression]\nalgorithms = [\"br\"]\n[[static]]\npath = \"/static\"\nroot = \"./files\"\n",
    );
    let files = builder.folder().join("files");
    std::fs::create_dir(&files).expect("the folder is ours");
    std::fs::write(files.join("large.css"), [b'x'; 1_000_000]).expect("room");
    let gateway = builder.run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let asked = request("HEAD", "/static/large.css").header("accept-encoding", "br");
    let (answer, _) = connect(&gateway).await.send(asked, true).await;
    let answer = whole(answer).await.expect("an answer");
    assert_eq!(answer.header("content-encoding"), Some("br"));
    assert_eq!(answer.header("content-length"), None, "nobody knows it");

    // With room for one byte each has a small piece, with none nothing; all of it counts.
    for (window, begun) in [(1, kind::DATA), (0, kind::HEADERS)] {
        let mut slow = raw(&gateway, &[(WINDOW, window)]).await;
        for number in 0..20 {
            let block = head("/static/large.css", &[]);
            let begin = flag::END_HEADERS | flag::END_STREAM;
            let asked = Frame::new(kind::HEADERS, begin, 2 * number + 1, &block);
            slow.send(&asked).await.expect("it is open");
        }
        for _ in 0..20 {
            assert!(slow.frame_of(begun).await.is_some());
        }
        let held = gateway.metric("layby_body_memory_bytes").await;
        assert_eq!(held, f64::from(window * 20 * 16 * 1024));
        drop(slow);
        let none = |held| held == 0.0;
        gateway.until_metric("layby_body_memory_bytes", none).await;
    }
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    let gate = Gate::new();
    let mut gateway = plain(1).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let (busy, idle) = (connect(&gateway).await, connect(&gateway).await);
    assert_eq!(idle.get("/ping").await.ok(), "pong");
    let (slow, _) = busy.send(get("/slow"), true).await;
    gate.reached(1).await;
    gateway.signal(Signal::TERM);
    idle.ended().await.expect("a clean end");
    let closed = async {
        while busy.takes_requests().await {
            // The client's connection has a task of its own.
            tokio::task::yield_now().await;
        }
    };
    within("no more requests", closed).await;
    gate.open();
    assert_eq!(whole(slow).await.expect("an answer").ok(), "done");
    busy.ended().await.expect("a clean end");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn h2load_sees_nothing_but_answers() {
    let authority = Authority::new("Test CA");
    let gateway = listens(gateway::new(4), &authority).run().await;
    let _worker = worker::new(4).run(&gateway).await;
    let url = format!("https://{}/ping", gateway.tls());
    let loading = tokio::process::Command::new("h2load")
        .args(["-n", "2000", "-c", "20", "-m", "20", &url])
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), loading).await;
    let output = output.expect("in time").expect("h2load is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("2000 succeeded, 0 failed, 0 errored"),
        "{said}"
    );
    assert!(said.contains("status codes: 2000 2xx"), "{said}");
}

/// What a flood sends, again and again.
type Flood = fn(u32) -> Vec<u8>;

/// Sends until the gateway has had enough; how many times, and the code of its GOAWAY, if the line still
/// carried it.
async fn flood(
    gateway: &Gateway,
    settings: &[(u16, u32)],
    most: u32,
    what: Flood,
) -> (u32, Option<u32>) {
    let stream = TcpStream::connect(gateway.tcp()).await.expect("a listener");
    let (reading, mut writing) = stream.into_split();
    let mut raw = Raw::over(tokio::io::join(reading, tokio::io::sink()), &[]).await;
    let reader = tokio::spawn(async move {
        let goaway = raw.frame_of(kind::GOAWAY).await;
        while raw.frame().await.is_some() {}
        goaway.map(|goaway| goaway.number(4))
    });
    writing.write_all(PREFACE).await.expect("there is room");
    let mut payload = Vec::new();
    for (name, value) in settings {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    let first = Frame::new(kind::SETTINGS, 0, 0, &payload).bytes();
    writing.write_all(&first).await.expect("there is room");
    let mut sent = 0;
    while sent < most && !reader.is_finished() {
        let bytes = what(sent);
        if within("room to send", writing.write_all(&bytes))
            .await
            .is_err()
        {
            break;
        }
        sent += 1;
    }
    assert!(sent < most, "never stopped");
    drop(writing);
    (sent, reader.await.expect("nothing panics"))
}

fn resident(gateway: &Gateway) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", gateway.pid()));
    let statm = statm.expect("it runs");
    let pages = statm.split(' ').nth(1).expect("the second number");
    pages.parse::<u64>().expect("a number") * 4096
}

#[tokio::test]
async fn floods_end_their_connection_cost_no_memory_and_hurt_nobody_else() {
    const MOST: u32 = 200_000;
    let floods: [(&str, Flood); 9] = [
        ("rapid reset", |number| {
            let stream = 2 * number + 1;
            let begin = flag::END_HEADERS | flag::END_STREAM;
            let mut bytes = Frame::new(kind::HEADERS, begin, stream, &head("/ping", &[])).bytes();
            bytes.extend(Frame::new(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]).bytes());
            bytes
        }),
        ("made to reset", |number| {
            let stream = 2 * number + 1;
            let begin = flag::END_HEADERS | flag::END_STREAM;
            let mut bytes = Frame::new(kind::HEADERS, begin, stream, &head("/ping", &[])).bytes();
            // A window that opens by nothing is an error of the stream.
            bytes.extend(Frame::new(kind::WINDOW_UPDATE, 0, stream, &[0; 4]).bytes());
            bytes
        }),
        ("PING", |_| Frame::new(kind::PING, 0, 0, &[7; 8]).bytes()),
        ("SETTINGS", |_| {
            Frame::new(kind::SETTINGS, 0, 0, &[]).bytes()
        }),
        ("PRIORITY", |number| {
            Frame::new(kind::PRIORITY, 0, 2 * number + 1, &[0, 0, 0, 0, 1]).bytes()
        }),
        ("WINDOW_UPDATE", |_| {
            Frame::new(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).bytes()
        }),
        ("CONTINUATION", |number| match number {
            0 => Frame::new(kind::HEADERS, 0, 1, &head("/ping", &[])).bytes(),
            _ => Frame::new(kind::CONTINUATION, 0, 1, &[]).bytes(),
        }),
        ("empty DATA", |number| match number {
            0 => {
                let block = [&[0x83], &head("/echo", &[])[1..]].concat();
                Frame::new(kind::HEADERS, flag::END_HEADERS, 1, &block).bytes()
            }
            _ => Frame::new(kind::DATA, 0, 1, &[]).bytes(),
        }),
        ("unknown frames", |_| Frame::new(0xbe, 0, 0, &[]).bytes()),
    ];
    let gateway = plain(2).run().await;
    let _worker = worker::new(2).run(&gateway).await;
    let usual = connect(&gateway).await;
    assert_eq!(usual.get("/ping").await.ok(), "pong");
    let before = resident(&gateway);
    for (name, what) in floods {
        let flooding = flood(&gateway, &[], MOST, what);
        let using = async {
            // A client beside it sees nothing of it.
            for _ in 0..20 {
                assert_eq!(usual.get("/ping").await.ok(), "pong", "{name}");
            }
        };
        let ((sent, ended), ()) = tokio::join!(flooding, using);
        if let Some(code) = ended {
            let known = [code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR];
            assert!(known.contains(&code), "{name}: {code} after {sent}");
        }
        let grown = resident(&gateway).saturating_sub(before);
        assert!(grown < 32 << 20, "{name}: {grown} bytes more");
    }
    gateway.rests().await;
}

#[tokio::test]
async fn a_window_that_opens_byte_by_byte_ends_the_connection() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1)
        .on("/large", async |job| {
            job.answer(200, vec![b'x'; 1_000_000]).await
        })
        .run(&gateway)
        .await;
    let (sent, _) = flood(&gateway, &[(WINDOW, 0)], 100_000, |number| match number {
        0 => {
            let begin = flag::END_HEADERS | flag::END_STREAM;
            Frame::new(kind::HEADERS, begin, 1, &head("/large", &[])).bytes()
        }
        _ => Frame::new(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).bytes(),
    })
    .await;
    assert!(sent > 500, "{sent}");
    gateway.rests().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431() {
    let gateway = plain(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    let client = connect(&gateway).await;
    let large = get("/ping").header("x-large", "x".repeat(100_000));
    let (answer, _) = client.send(large, true).await;
    match whole(answer).await {
        Ok(answer) => assert_eq!(answer.head.status, 431),
        Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
    }
    assert_eq!(worker.requests(), [""; 0]);
}

#[tokio::test]
async fn no_more_requests_than_allowed_are_taken_at_a_time() {
    let gate = Gate::new();
    let gateway = plain(1).run().await;
    let _worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let mut client = raw(&gateway, &[]).await;
    for number in 0..200 {
        let begin = flag::END_HEADERS | flag::END_STREAM;
        let frame = Frame::new(kind::HEADERS, begin, 2 * number + 1, &head("/slow", &[]));
        client.send(&frame).await.expect("it is open");
    }
    let refused = client.frame_of(kind::RST_STREAM).await.expect("a refusal");
    assert_eq!(refused.number(0), 7, "refused before anything happened");
    let full = gateway
        .until("a full connection", |status| status.queued == 127)
        .await;
    assert_eq!(full.busy, 1);
    gate.open();
    gateway.rests().await;
}

/// A line on which bytes come one at a time.
async fn dribble(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    for byte in bytes {
        stream.write_all(&[*byte]).await.expect("there is room");
    }
}

#[tokio::test]
async fn a_preface_in_pieces_is_a_preface() {
    let gateway = plain(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut stream = TcpStream::connect(gateway.tcp()).await.expect("a listener");
    stream.set_nodelay(true).expect("it is open");
    dribble(&mut stream, PREFACE).await;
    let begin = flag::END_HEADERS | flag::END_STREAM;
    let mut frames = Frame::new(kind::SETTINGS, 0, 0, &[]).bytes();
    frames.extend(Frame::new(kind::HEADERS, begin, 1, &head("/ping", &[])).bytes());
    dribble(&mut stream, &frames).await;
    let mut said = Vec::new();
    let answered = async {
        while !said.ends_with(b"pong") {
            let count = stream.read_buf(&mut said).await.expect("it is open");
            assert!(count > 0, "closed without an answer");
        }
    };
    within("an answer", answered).await;
}
