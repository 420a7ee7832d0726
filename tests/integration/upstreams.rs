//! HTTP servers behind the gateway: what they are sent, and what becomes of whatever they answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::gateway::Gateway;
use super::support::http::Body;
use super::support::upstream::{Connection, Upstream};
use super::support::{gateway, takes, upstream, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn a_request_and_its_answer_pass_unchanged_but_for_the_hop() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let answered = gateway
        .request("PUT", "/a%20b/%2f?q=%20x")
        .header("Cookie", "a=1")
        .header("Cookie", "b=2")
        .header("Connection", "x-hop")
        .header("X-Hop", "1")
        .header("X-Forwarded-For", "6.6.6.6")
        .body("body")
        .spawn();
    let (mut connection, request) = app
        .answers(
            "HTTP/1.1 201 Made\r\nServer: theirs\r\nDate: then\r\nSet-Cookie: a\r\nX: 1\r\n\
             Set-Cookie: b\r\nKeep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2;x\r\nde\r\n0\r\nTrailer: 1\r\n\r\n",
        )
        .await;
    assert_eq!(request.line, "PUT /a%20b/%2f?q=%20x HTTP/1.1");
    let header = |name| request.header(name);
    assert_eq!(header("host"), Some("shop.example"));
    assert_eq!(header("content-length"), Some("4"));
    assert_eq!(header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(header("x-forwarded-proto"), Some("http"));
    assert_eq!(header("x-forwarded-host"), Some("shop.example"));
    assert_eq!(
        header("x-forwarded-port"),
        Some(&*gateway.tcp().port().to_string())
    );
    assert_eq!((header("x-hop"), header("connection")), (None, None));
    assert_eq!(request.body, b"body");

    let answer = answered.await;
    assert_eq!((answer.status(), &*answer.head.reason), (201, "Made"));
    assert_eq!(answer.head.header_lines("set-cookie"), ["a", "b"]);
    assert_eq!(answer.header("server"), Some("theirs"));
    assert_eq!(answer.header("date"), Some("then"));
    assert_eq!(
        (answer.header("keep-alive"), answer.header("trailer")),
        (None, None)
    );
    assert_eq!(answer.text(), "abcde");

    // The next one goes on the same connection.
    let answered = gateway.get("/").spawn();
    connection.request().await;
    connection.send(OK).await;
    assert_eq!(answered.await.ok(), "ok");
}

#[tokio::test]
async fn the_upstream_is_told_the_host_that_the_gateway_goes_by() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1)
        .set("trusted_proxies", "127.0.0.0/8")
        .run()
        .await;
    let outside = "outside.example:8443";
    for (name, said, told) in [
        ("X-Forwarded-Host", vec!["evil.example", outside], outside),
        (
            "X-Forwarded-Host",
            vec!["evil.example, outside.example:8443"],
            outside,
        ),
        (
            "Forwarded",
            vec!["for=203.0.113.9;host=\"outside.example:8443\""],
            outside,
        ),
        ("X-Forwarded-For", vec!["203.0.113.9"], "shop.example"),
    ] {
        let mut asked = gateway.request("GET", "/");
        for line in said {
            asked = asked.header(name, line);
        }
        let answered = asked.spawn();
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        let (_connection, request) = app.answers(last).await;
        assert_eq!(request.header("x-forwarded-host"), Some(told), "{name}");
        assert_eq!(request.header("host"), Some("shop.example"));
        assert_eq!(answered.await.ok(), "ok");
    }
}

#[tokio::test]
async fn the_upstream_never_has_more_requests_than_there_are_slots() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = upstream::unix(folder.path().join("app.sock"));
    let gateway = gateway::before(&app, 2).run().await;
    app.keeps(gateway.get("/")).await;
    let pending: Vec<_> = (0..5).map(|_| gateway.get("/").spawn()).collect();
    let mut servers = [app.accept().await, app.accept().await];
    gateway
        .until("three in the queue", |it| it.queued == 3 && it.busy == 2)
        .await;
    for next in [0, 1, 0, 1, 0] {
        servers[next].request().await;
        servers[next].send(OK).await;
    }
    for pending in pending {
        assert_eq!(pending.await.ok(), "ok");
    }
    gateway.rests().await;
}

#[tokio::test]
async fn answers_without_a_body_and_until_the_end_of_the_connection() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let exchange = async |method: &str, answer: &str| {
        let pending = gateway.request(method, "/").spawn();
        let (connection, _) = app.answers(answer).await;
        drop(connection);
        pending.await
    };
    let head = exchange("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    assert_eq!(head.header("content-length"), Some("1234"));
    let head = exchange(
        "HEAD",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    .await;
    assert_eq!(head.header("content-length"), None);
    let none = exchange("GET", "HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n").await;
    assert_eq!((none.status(), none.header("x")), (204, Some("1")));
    let same = exchange("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n").await;
    assert_eq!((same.status(), same.header("etag")), (304, Some("\"a\"")));
    let old = exchange("GET", "HTTP/1.0 200 OK\r\n\r\nto the end").await;
    assert_eq!(old.ok(), "to the end");
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let interim = exchange("GET", &format!("{hints}{OK}")).await;
    assert_eq!((interim.ok(), interim.header("link")), ("ok", None));
    gateway.rests().await;
}

#[tokio::test]
async fn bodies_of_every_size_pass_both_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = upstream::unix(folder.path().join("app.sock"));
    let gateway = gateway::before(&app, 1).run().await;
    for size in [0, 1, 4095, 4097, 65_536, 65_537, 3_000_000] {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
        let pending = gateway.post("/", &sent).spawn();
        let mut connection = app.accept().await;
        let request = connection.request().await;
        assert!(request.body == sent, "{size} bytes");
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n");
        // Apart, as many servers do.
        connection.send(head).await;
        connection.send(&sent).await;
        drop(connection);
        assert!(pending.await.bytes() == sent, "{size} bytes");
    }
    // A body that is in chunks gets a length.
    let chunks = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                  3\r\nabc\r\n0\r\n\r\n";
    let mut client = gateway.connect().await;
    client.send(chunks).await;
    let (_connection, request) = app.answers(OK).await;
    assert_eq!(
        (request.header("content-length"), &request.body[..]),
        (Some("3"), &b"abc"[..])
    );
    assert_eq!(client.response().await.ok(), "ok");
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_is_not_used_again() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    for _ in 0..3 {
        let pending = gateway.post("/", "x").spawn();
        let (connection, request) = app.answers(OK).await;
        assert_eq!(request.body, b"x");
        assert_eq!(pending.await.ok(), "ok");
        drop(connection);
    }
    // Nor one that says what nobody asked for.
    let pending = gateway.get("/").spawn();
    let (mut connection, _) = app.answers(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    connection
        .send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        .await;
    connection.closed().await;
    let pending = gateway.get("/").spawn();
    app.answers(OK).await;
    assert_eq!(pending.await.ok(), "ok");
}

#[tokio::test]
async fn what_comes_behind_an_answer_to_head_is_nobodys() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"),
        ("GET", "HTTP/1.1 304 x\r\nContent-Length: 60\r\n\r\n"),
    ] {
        let pending = gateway.request(method, "/").spawn();
        let (mut connection, _) = app.answers(answer).await;
        pending.await;
        // A body in a second write, as of gunicorn's, may read like an answer.
        let _ = connection
            .try_send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!")
            .await;
        let pending = gateway.get("/").spawn();
        app.answers(OK).await;
        assert_eq!(pending.await.ok(), "ok");
    }
}

#[tokio::test]
async fn a_server_that_closes_without_saying_so_loses_no_request() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 2).run().await;
    for _ in 0..2 {
        // Two at once: one connection is watched, and none is used again meanwhile.
        let pending = [gateway.get("/").spawn(), gateway.get("/").spawn()];
        let connections = [app.answers(OK).await, app.answers(OK).await];
        for pending in pending {
            assert_eq!(pending.await.ok(), "ok");
        }
        let pending = gateway.get("/").spawn();
        app.answers(OK).await;
        assert_eq!(pending.await.ok(), "ok");
        drop(connections);
        gateway.logged("upstream closes its connections").await;
    }
    // It is known now: the gateway does not wait for it.
    let pending = gateway.get("/").spawn();
    let (mut connection, _) = app.answers(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    connection.closed().await;
    gateway.rests().await;
}

#[tokio::test]
async fn an_answer_that_is_passed_on_whole_counts_as_memory() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let mut slow = super::support::http::Connection::narrow(gateway.tcp()).await;
    let whole = "x".repeat(60_000);
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 60000";
    let answer = format!("{head}\r\n\r\n{whole}");
    let memory = "layby_body_memory_bytes";
    for _ in 0..20 {
        slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    }
    // The client reads nothing: in the end one is left here.
    let serving = async {
        loop {
            app.answers(&answer).await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = gateway.until_metric(memory, |held| held >= 60_000.0) => {}
    }
    drop(slow);
    gateway.until_metric(memory, |held| held == 0.0).await;
}

#[tokio::test]
async fn a_request_that_the_server_may_have_seen_is_not_sent_again() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    // With a connection of its own, and with one that has been used before.
    app.keeps(gateway.get("/")).await;
    for before in [0, 1] {
        let mut connection = None;
        for _ in 0..before {
            let pending = gateway.get("/").spawn();
            connection = Some(app.answers(OK).await.0);
            assert_eq!(pending.await.ok(), "ok");
        }
        let pending = gateway.get("/lost").spawn();
        let mut connection = match connection {
            Some(connection) => connection,
            None => app.accept().await,
        };
        connection.request().await;
        connection.reset();
        assert_eq!(pending.await.status(), 502);
        gateway
            .logged("upstream closed the connection before it answered")
            .await;
    }
    let pending = gateway.get("/next").spawn();
    let (mut connection, request) = app.answers(OK).await;
    assert_eq!(request.line, "GET /next HTTP/1.1");
    assert_eq!(pending.await.ok(), "ok");
    // A server that has closed a connection that it had kept is watched again.
    connection.closed().await;
}

#[tokio::test]
async fn an_answer_that_is_cut_never_looks_whole() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let large = "x".repeat(300_000);
    for (answer, resets) in [
        (
            format!("HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n{large}"),
            false,
        ),
        (
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n",
                large.len()
            ),
            false,
        ),
        (
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\nz\r\n",
                large.len()
            ),
            false,
        ),
        (format!("HTTP/1.0 200 OK\r\n\r\n{large}"), true),
    ] {
        let pending = gateway.get("/").spawn();
        let mut connection = app.accept().await;
        connection.request().await;
        connection.send(&answer).await;
        if resets {
            // What a reset overtakes is lost on the way.
            gateway
                .until("the answer under way", |it| it.busy == 1)
                .await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            connection.reset();
        } else {
            drop(connection);
        }
        let cut = pending.await;
        assert!(
            matches!(cut.body, Body::Cut(_)),
            "{} {:?}",
            cut.status(),
            &answer[..60]
        );
        gateway.rests().await;
    }
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let pending = gateway.get("/").spawn();
        let mut connection = app.accept().await;
        connection.request().await;
        connection.send(answer).await;
        drop(connection);
        let response = pending.await;
        assert!(
            response.status() == 502 || matches!(response.body, Body::Cut(_)),
            "{answer:?}"
        );
        gateway.rests().await;
    }
}

#[tokio::test]
async fn a_cut_that_nobody_can_see_is_told_to_the_log() {
    let app = upstream::tcp().await;
    let builder = gateway::before(&app, 1);
    let socket = format!("unix:{}", builder.folder().join("http.sock").display());
    let gateway = builder.set("listen", socket).run().await;
    for version in ["1.1", "1.0"] {
        let mut client = gateway.connect().await;
        client
            .send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"))
            .await;
        let (connection, _) = app
            .answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n")
            .await;
        client.head().await;
        drop(connection);
        client.closed().await;
        if version == "1.1" {
            assert!(gateway.log_lines("may take for whole").is_empty());
        }
    }
    gateway.logged("may take for whole").await;
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_a_bad_answer() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    for answer in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        let pending = gateway.get("/").spawn();
        let (mut connection, _) = app.answers(answer).await;
        let refused = pending.await;
        assert_eq!(refused.status(), 502, "{answer}");
        connection.closed().await;
    }
    assert_eq!(gateway.log_lines("upstream's answer is invalid").len(), 5);
    // More than was said is not the beginning of the next answer.
    let pending = gateway.get("/").spawn();
    let (mut connection, _) = app.answers(format!("{OK}{OK}")).await;
    assert_eq!(pending.await.ok(), "ok");
    connection.closed().await;
    gateway.rests().await;
}

#[tokio::test]
async fn an_answer_may_come_before_its_request_was_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = upstream::unix(folder.path().join("app.sock"));
    let gateway = gateway::before(&app, 1).run().await;
    let upload = vec![7; 4_000_000];
    let pending = gateway.post("/", &upload).spawn();
    let mut connection = app.accept().await;
    connection.head().await;
    connection
        .send("HTTP/1.1 413 Too Much\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        .await;
    drop(connection);
    let refused = pending.await;
    assert_eq!((refused.status(), refused.text()), (413, "no"));
    // And one that sends while it reads is read while it is sent to.
    let pending = gateway.post("/", &upload).spawn();
    let mut connection = app.accept().await;
    connection.head().await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        upload.len()
    );
    connection.send(head).await;
    let mut left = upload.len();
    while left > 0 {
        let piece = connection.bytes(left.min(50_000)).await;
        left -= piece.len();
        connection.send(&piece).await;
    }
    assert!(pending.await.bytes() == upload);
    gateway.rests().await;
}

/// Cuts what the gateway has spooled, as a disk that fails would.
fn lose_spooled(gateway: &Gateway) {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("Linux");
    let mut lost = 0;
    for descriptor in descriptors {
        let path = descriptor.expect("a descriptor").path();
        let is_spooled =
            std::fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().ends_with("(deleted)"));
        if is_spooled {
            let file = std::fs::File::options().write(true).open(&path);
            file.expect("our own").set_len(0).expect("room");
            lost += 1;
        }
    }
    assert_eq!(lost, 1);
}

#[tokio::test]
async fn a_request_whose_spooled_body_is_lost_ends_at_once() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let pending = gateway.post("/", vec![7; 30_000_000]).spawn();
    let mut connection = app.accept().await;
    connection.head().await;
    lose_spooled(&gateway);
    // What was on the line already, and then the end in place of the rest.
    connection.closed().await;
    assert_eq!(pending.await.status(), 502);
    gateway.logged("a body cannot be read from its spool").await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_slow_reader_does_not_hold_the_upstream() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = upstream::unix(folder.path().join("app.sock"));
    let gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let mut slow = super::support::http::Connection::narrow(gateway.tcp()).await;
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let body = vec![b'x'; 8_000_000];
    let mut connection = app.accept().await;
    connection.request().await;
    connection
        .send(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    connection.send(&body).await;
    // The only slot is free for another.
    let pending = gateway.get("/").spawn();
    connection.request().await;
    connection.send(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    assert_eq!(slow.response().await.bytes().len(), body.len());
}

#[tokio::test]
async fn an_endless_answer_ends_with_its_reader() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let mut client = gateway.connect().await;
    client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let (mut connection, _) = app
        .answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n")
        .await;
    // It is passed on as it comes.
    let head = client.head().await;
    assert_eq!(head.status, 200);
    client.holds(5).await;
    drop(client);
    connection.closed().await;
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_whose_time_is_over_is_answered_and_its_slot_lost_until_the_server_is_done() {
    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    app.keeps(gateway.get("/")).await;
    let mut connection = None;
    takes(Duration::from_millis(300), async || {
        let pending = gateway.get("/slow").spawn();
        let mut server = match connection.take() {
            Some(server) => server,
            None => app.accept().await,
        };
        server.request().await;
        assert_eq!(pending.await.status(), 504);
        gateway.until("a lost slot", |it| it.lost == 1).await;
        server.send(OK).await;
        gateway.rests().await;
        connection = Some(server);
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_server_that_is_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let app = upstream::unix(&path);
    let gateway = gateway::before(&app, 2)
        .set("slots.queue_timeout", "2s")
        .run()
        .await;
    let pending = gateway.get("/").spawn();
    app.answers(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    assert_eq!(gateway.admin("/readyz").await.status(), 200);

    drop(app);
    let waiting: Vec<_> = (0..3).map(|_| gateway.post("/", "x").spawn()).collect();
    gateway
        .until("all slots lost", |it| it.lost == 2 && it.queued == 3)
        .await;
    assert_eq!(gateway.admin("/readyz").await.status(), 503);
    assert_eq!(gateway.admin("/livez").await.status(), 200);
    let app = upstream::unix(&path);
    let mut served = 0;
    let mut connections = Vec::new();
    while served < 3 {
        let (connection, _) = app
            .answers(OK.replace("OK\r\n", "OK\r\nConnection: close\r\n"))
            .await;
        connections.push(connection);
        served += 1;
    }
    for pending in waiting {
        assert_eq!(pending.await.ok(), "ok");
    }
    assert_eq!(gateway.admin("/readyz").await.status(), 200);
    assert_eq!(
        gateway
            .log_lines("upstream does not accept connections")
            .len(),
        1
    );
    gateway.logged("upstream accepts connections").await;

    drop(app);
    let shed = gateway.get("/").await;
    assert_eq!(shed.status(), 503);
    assert!(shed.header("retry-after").is_some());
}

/// Serves until it is dropped: each request is noted, then answered, unless the server ends first.
async fn serve(app: Upstream, ledger: Arc<Mutex<HashMap<String, u32>>>) {
    let serving = |mut connection: Connection| {
        let ledger = Arc::clone(&ledger);
        async move {
            while let Some(request) = connection.try_request().await {
                let id = String::from_utf8(request.body).expect("text");
                *ledger.lock().expect("nobody panics").entry(id).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
                if connection.try_send(OK).await.is_err() {
                    return;
                }
            }
        }
    };
    // They end with this one.
    let mut lines = tokio::task::JoinSet::new();
    loop {
        lines.spawn(serving(app.accept().await));
    }
}

#[tokio::test]
async fn restarts_under_load_lose_nothing_unseen_and_double_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let ledger = Arc::new(Mutex::new(HashMap::new()));
    let first = upstream::unix(&path);
    let gateway = gateway::before(&first, 4).run().await;
    let mut server = tokio::spawn(serve(first, Arc::clone(&ledger)));
    let mut answers = Vec::new();
    for round in 0..8 {
        let pending: Vec<_> = (0..40)
            .map(|number| {
                let id = format!("{round}-{number}");
                let request = gateway.post("/", &id).spawn();
                (id, request)
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(15)).await;
        server.abort();
        let _ = server.await;
        tokio::time::sleep(Duration::from_millis(15)).await;
        server = tokio::spawn(serve(upstream::unix(&path), Arc::clone(&ledger)));
        for (id, request) in pending {
            answers.push((id, request.await.status()));
        }
    }
    server.abort();
    let ledger = ledger.lock().expect("nobody panics");
    for (id, status) in &answers {
        let seen = ledger.get(id).copied().unwrap_or(0);
        assert!(seen <= 1, "{id} ran {seen} times");
        match status {
            200 => assert_eq!(seen, 1, "{id} was answered and never ran"),
            // In its hands when the server went.
            502 => {}
            other => panic!("{id}: {other}"),
        }
    }
    let lost = answers.iter().filter(|(_, status)| *status == 502).count();
    // At most what each of the slots had at a restart.
    assert!(lost <= 8 * 4, "{lost} lost");
    assert!(answers.len() - lost > 200);
}

fn routed(live: &Upstream, connections: u16) -> String {
    format!(
        "[[route]]\npath = \"/live\"\nupstream = {:?}\nconnections = {connections}\n",
        live.url()
    )
}

#[tokio::test]
async fn a_route_has_an_upstream_with_a_queue_of_its_own() {
    let (app, live) = (upstream::tcp().await, upstream::tcp().await);
    let gateway = gateway::before(&app, 1).file(&routed(&live, 2)).run().await;
    live.keeps(gateway.get("/live")).await;
    // The workers are all taken, which is nothing to the route.
    let slow = gateway.get("/slow").spawn();
    let mut busy = app.accept().await;
    busy.request().await;
    let pending: Vec<_> = (0..3).map(|_| gateway.get("/live/x").spawn()).collect();
    let mut servers = [live.accept().await, live.accept().await];
    let series = |state| {
        format!(
            "layby_upstream_slots{{state=\"{state}\",upstream=\"{}\"}}",
            live.url()
        )
    };
    gateway
        .until_metric(&series("busy"), |busy| busy == 2.0)
        .await;
    let queue = format!("layby_upstream_queue_length{{upstream=\"{}\"}}", live.url());
    assert_eq!(gateway.metric(&queue).await, 1.0);
    assert_eq!(gateway.status().await.busy, 1);
    let status = gateway.status_json().await;
    assert_eq!(status["upstreams"][1]["upstream"], live.url());
    assert_eq!(
        (
            &status["upstreams"][1]["busy"],
            &status["upstreams"][1]["up"]
        ),
        (&2.into(), &true.into())
    );
    for next in [0, 1, 0] {
        servers[next].request().await;
        servers[next].send(OK).await;
    }
    for pending in pending {
        assert_eq!(pending.await.ok(), "ok");
    }
    busy.send(OK).await;
    assert_eq!(slow.await.ok(), "ok");
    gateway
        .until_metric(&series("idle"), |idle| idle == 2.0)
        .await;
}

#[tokio::test]
async fn a_reload_changes_where_routes_go_and_ends_nothing() {
    let (app, old, new) = (
        upstream::tcp().await,
        upstream::tcp().await,
        upstream::tcp().await,
    );
    let gateway = gateway::before(&app, 1).file(&routed(&old, 2)).run().await;
    let before = gateway.get("/live").spawn();
    let mut at_old = old.accept().await;
    at_old.request().await;
    gateway.rewrite(&routed(&new, 3));
    gateway.signal(rustix::process::Signal::HUP);
    gateway.logged("configuration reloaded").await;
    let after = gateway.get("/live").spawn();
    new.answers(OK).await;
    assert_eq!(after.await.ok(), "ok");
    at_old.send(OK).await;
    assert_eq!(before.await.ok(), "ok");
    // Nothing of the old one is left.
    at_old.closed().await;
    let series = format!(
        "layby_upstream_slots{{state=\"idle\",upstream=\"{}\"}}",
        old.url()
    );
    gateway.until_metric(&series, |idle| idle == 0.0).await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_at_the_upstream() {
    let app = upstream::tcp().await;
    let mut gateway = gateway::before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let pending: Vec<_> = (0..2).map(|_| gateway.get("/").spawn()).collect();
    let mut connection = app.accept().await;
    connection.request().await;
    gateway.until("one in the queue", |it| it.queued == 1).await;
    gateway.signal(rustix::process::Signal::TERM);
    gateway.logged("drain started").await;
    connection.send(OK).await;
    connection.request().await;
    connection.send(OK).await;
    for pending in pending {
        assert_eq!(pending.await.ok(), "ok");
    }
    within("a clean end", async {
        assert!(gateway.ended().await.success())
    })
    .await;
}
