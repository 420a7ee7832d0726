//! Request heads, byte by byte: what can be read in two ways is refused, and what reaches the worker
//! is what the gateway vouches for.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{self, Gateway};
use crate::support::http::Connection;
use crate::support::worker::{self, Worker};

async fn serving() -> (Gateway, Worker) {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    (gateway, worker)
}

/// Sends each, expects this status, a closed connection, and that the worker has seen nothing.
async fn refused(status: u16, requests: &[&str]) {
    let (gateway, worker) = serving().await;
    for request in requests {
        let mut client = gateway.connect().await;
        client.send(request).await;
        let shown: String = request.chars().take(200).collect();
        println!("{shown:?}");
        let answer = client.response().await;
        assert_eq!(answer.status(), status);
        // What follows is not to be read as another request.
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(worker.requests(), ["GET /ping"]);
    gateway.rests().await;
}

#[tokio::test]
async fn a_request_names_one_valid_host() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/path\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:port\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:70000\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\n\r\n",
            "GET http://user@a/ HTTP/1.1\r\nHost: user@a\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_body_is_framed_in_one_way() {
    refused(
        400,
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    .await;
}

/// RFC 9112, 6.3, lets a server go on with the chunks. Whoever sends both hopes that two servers choose
/// differently.
#[tokio::test]
async fn a_length_beside_chunks_is_refused() {
    let both = |framing: &str| {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        format!("POST /echo HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n2\r\nhi\r\n0\r\n\r\n{smuggled}")
    };
    let length_first = both("Content-Length: 6\r\nTransfer-Encoding: chunked");
    let length_last = both("Transfer-Encoding: chunked\r\nContent-Length: 6");
    refused(400, &[&length_first, &length_last]).await;
}

#[tokio::test]
async fn codings_that_nobody_undoes_are_not_implemented() {
    refused(
        501,
        &[
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: br,gzip,chunked\r\n\r\n0\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn lines_that_servers_read_differently_are_refused() {
    refused(
        400,
        &[
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n X-Folded: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\tfolded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX A: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\rX-B: 2\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX-A: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\rHost: a\r\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX-A: \u{7f}\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "GET /\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 extra\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
            "G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03 client hello",
            // Who wants HTTP/2 here reads what it did not expect, and goes.
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn targets_that_are_no_path_are_refused() {
    refused(
        400,
        &[
            "GET /x%00y HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /.. HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a/./b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /%2e%2e/etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a%2F..%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a/..;/b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\\..\\b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/x/../y HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn tunnels_are_not_dug_here() {
    refused(405, &["CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"]).await;
    // Nor is the client left to wait for the end of a connection of which something is unread.
    let (gateway, _worker) = serving().await;
    let begun = Instant::now();
    let mut client = gateway.connect().await;
    client
        .send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 5\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status(), 405);
    client.closed().await;
    assert!(begun.elapsed() < Duration::from_millis(1500));
}

#[tokio::test]
async fn expectations_that_nobody_meets_are_refused() {
    refused(
        417,
        &["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: 200-ok\r\n\r\n"],
    )
    .await;
}

#[tokio::test]
async fn heads_have_bounds() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(40_000));
    refused(414, &[&long]).await;
    let large = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X-A: 1\r\n".repeat(200)
    );
    refused(431, &[&large, &many]).await;
}

async fn environ(gateway: &Gateway, request: &str) -> Value {
    gateway.raw(request).await.json()
}

#[tokio::test]
async fn the_environ_is_that_of_pep_3333() {
    let (gateway, _worker) = serving().await;
    let port = gateway.tcp().port();
    let mut client = gateway.connect().await;
    client
        .send(
            "GET /environ?x=%20&y=\"a\" HTTP/1.1\r\nHost: shop.example:8080\r\nAccept: text/html\r\n\
             Accept: text/plain\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Type: text/x\r\n\
             X-Caf\u{e9}: no\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.status(), 400, "a name beyond ASCII");

    let environ = environ(
        &gateway,
        "GET /environ?x=%20&y=a+b HTTP/1.1\r\nHost: shop.example:8080\r\nAccept: text/html\r\n\
         Accept: text/plain\r\nCookie: a=1\r\nCookie: b=2\r\nContent-Type: text/x\r\n\
         X-Name:   spaced \t\r\n\r\n",
    )
    .await;
    for (name, value) in [
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", "/environ"),
        ("QUERY_STRING", "x=%20&y=a+b"),
        ("REQUEST_URI", "/environ?x=%20&y=a+b"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "shop.example"),
        ("SERVER_PORT", "8080"),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("wsgi.url_scheme", "http"),
        ("CONTENT_TYPE", "text/x"),
        ("HTTP_HOST", "shop.example:8080"),
        ("HTTP_ACCEPT", "text/html, text/plain"),
        ("HTTP_COOKIE", "a=1; b=2"),
        ("HTTP_X_NAME", "spaced"),
    ] {
        assert_eq!(environ[name], value, "{name}");
    }
    for name in [
        "HTTPS",
        "CONTENT_LENGTH",
        "HTTP_CONTENT_TYPE",
        "HTTP_CONTENT_LENGTH",
    ] {
        assert_eq!(environ[name], Value::Null, "{name}");
    }
    let old = gateway.raw("GET /environ HTTP/1.0\r\n\r\n").await;
    // An answer says what the server can do, not what the client asked with (RFC 9110, 6.2).
    assert_eq!(old.head.version, "HTTP/1.0");
    let old = old.json();
    assert_eq!(old["SERVER_PROTOCOL"], "HTTP/1.0");
    assert_eq!(old["SERVER_NAME"], "127.0.0.1");
    assert_eq!(old["SERVER_PORT"], port.to_string());
}

#[tokio::test]
async fn paths_are_decoded_once() {
    let gateway = gateway::new(1).run().await;
    let script = async |job: worker::Job| {
        let seen = [job.environ("PATH_INFO"), job.environ("REQUEST_URI")].join(" ");
        let bytes: Vec<u8> = seen
            .chars()
            .map(|c| u8::try_from(c).expect("ISO-8859-1"))
            .collect();
        job.answer(200, bytes).await
    };
    let paths = [
        ("/caf%C3%A9", "/caf\u{e9}"),
        ("/a%2Fb", "/a/b"),
        ("/a%252Fb", "/a%2Fb"),
        ("/a%zz", "/a%zz"),
        ("/a%4", "/a%4"),
        ("//a//b/..c", "//a//b/..c"),
        ("/a%5Cb", "/a\\b"),
        ("/a+b", "/a+b"),
    ];
    let mut worker = worker::new(1);
    for (raw, _) in paths {
        worker = worker.on(raw, script);
    }
    let _worker = worker.run(&gateway).await;
    for (raw, decoded) in paths {
        let seen = gateway.get(raw).await;
        assert_eq!(seen.ok(), format!("{decoded} {raw}"));
    }
}

#[tokio::test]
async fn an_absolute_target_is_as_good_as_a_path() {
    let (gateway, _worker) = serving().await;
    let request = "GET http://shop.example/environ?a=1 HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let environ = environ(&gateway, request).await;
    assert_eq!(environ["PATH_INFO"], "/environ");
    assert_eq!(environ["QUERY_STRING"], "a=1");
    assert_eq!(environ["HTTP_HOST"], "shop.example");
    assert_eq!(environ["SERVER_NAME"], "shop.example");
}

#[tokio::test]
async fn what_only_the_gateway_may_say_is_taken_out() {
    let (gateway, _worker) = serving().await;
    let environ = environ(
        &gateway,
        "GET /environ HTTP/1.1\r\nHost: shop.example\r\nProxy: http://evil.example\r\n\
         Layby-Token: 1\r\nLAYBY-Anything: 1\r\nX_Forwarded_For: 1.2.3.4\r\n\
         Content_Length: 99\r\nX_Custom: 1\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Port: 1\r\n\
         X-Forwarded-Anything: 1\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\
         X-Kept: 1\r\n\r\n",
    )
    .await;
    assert_eq!(environ["HTTP_X_KEPT"], "1");
    assert_eq!(environ["REMOTE_ADDR"], "127.0.0.1");
    assert_eq!(environ["wsgi.url_scheme"], "http");
    assert_eq!(environ["SERVER_NAME"], "shop.example");
    let names: Vec<&str> = environ
        .as_object()
        .expect("an object")
        .keys()
        .filter(|name| name.starts_with("HTTP_"))
        .map(String::as_str)
        .collect();
    assert_eq!(names, ["HTTP_HOST", "HTTP_X_KEPT", "HTTP_X_REQUEST_ID"]);
}

#[tokio::test]
async fn headers_of_the_hop_end_here() {
    let (gateway, _worker) = serving().await;
    let environ = environ(
        &gateway,
        "GET /environ HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive, X-Hop\r\n\
         X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
         Trailer: X-A\r\nUpgrade: websocket\r\nProxy-Authorization: Basic eA==\r\n\
         Authorization: Basic eA==\r\n\r\n",
    )
    .await;
    let names: Vec<&str> = environ
        .as_object()
        .expect("an object")
        .keys()
        .filter(|name| name.starts_with("HTTP_"))
        .map(String::as_str)
        .collect();
    assert_eq!(
        names,
        ["HTTP_AUTHORIZATION", "HTTP_HOST", "HTTP_X_REQUEST_ID"]
    );
}

#[tokio::test]
async fn connection_cannot_take_away_what_the_application_relies_on() {
    let gateway = gateway::new(1)
        .set("trusted_proxies", "127.0.0.1")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let environ = environ(
        &gateway,
        "POST /environ HTTP/1.1\r\nHost: shop.example\r\n\
         Connection: host, cookie, authorization, content-type, content-length, x-forwarded-for, forwarded\r\n\
         Cookie: a=1\r\nAuthorization: Basic eA==\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\
         X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\nhi",
    )
    .await;
    for (name, value) in [
        ("HTTP_HOST", "shop.example"),
        ("HTTP_COOKIE", "a=1"),
        ("HTTP_AUTHORIZATION", "Basic eA=="),
        ("CONTENT_TYPE", "text/x"),
        ("CONTENT_LENGTH", "2"),
        ("REMOTE_ADDR", "203.0.113.7"),
        ("HTTPS", "on"),
    ] {
        assert_eq!(environ[name], value, "{name}");
    }
}

#[tokio::test]
async fn a_trusted_balancer_with_tls_is_believed() {
    let gateway = gateway::new(1)
        .set("trusted_proxies", "127.0.0.0/8,10.0.0.0/8")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let seen = environ(
        &gateway,
        "GET /environ HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-For: 198.51.100.66, 203.0.113.7, 10.1.2.3\r\n\r\n",
    )
    .await;
    for (name, value) in [
        // The last that no trusted proxy is: what stands before it, the client may have made up.
        ("REMOTE_ADDR", "203.0.113.7"),
        ("wsgi.url_scheme", "https"),
        ("HTTPS", "on"),
        ("SERVER_NAME", "shop.example"),
        ("SERVER_PORT", "443"),
        ("HTTP_X_FORWARDED_PROTO", "https"),
    ] {
        assert_eq!(seen[name], value, "{name}");
    }
    let seen = environ(
        &gateway,
        "GET /environ HTTP/1.1\r\nHost: 10.0.0.9:8000\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: shop.example\r\nX-Forwarded-Port: 8443\r\n\r\n",
    )
    .await;
    assert_eq!(seen["SERVER_NAME"], "shop.example");
    assert_eq!(seen["SERVER_PORT"], "8443");
}

#[tokio::test]
async fn peers_on_a_unix_socket_are_trusted_only_on_request() {
    for (trusted, address) in [("unix", "203.0.113.7"), ("10.0.0.0/8", "")] {
        let builder = gateway::new(1);
        let socket = format!("unix:{}", builder.folder().join("http.sock").display());
        let gateway = builder
            .set("listen", socket)
            .set("trusted_proxies", trusted)
            .run()
            .await;
        let _worker = worker::new(1).run(&gateway).await;
        let seen = gateway
            .get("/environ")
            .header("X-Forwarded-For", "203.0.113.7")
            .await
            .json();
        assert_eq!(seen["REMOTE_ADDR"], address);
        assert_eq!(seen["SERVER_NAME"], "shop.example");
    }
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let (gateway, _worker) = serving().await;
    let mut client = Connection::open(gateway.address()).await;
    for byte in b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.response().await.ok(), "pong");
}
