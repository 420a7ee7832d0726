//! What a connection carries, over raw sockets: bodies, refusals and what comes behind them.

use crate::support::gate::Gate;
use crate::support::gateway::{self, Gateway};
use crate::support::worker::{self, Worker};

async fn serving() -> (Gateway, Worker) {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).run(&gateway).await;
    (gateway, worker)
}

#[tokio::test]
async fn a_refused_head_is_answered_as_everything_else_is() {
    let (gateway, worker) = serving().await;
    let many = "X-A: 1\r\n".repeat(200);
    let long = "a".repeat(40_000);
    for (request, status) in [
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), 400),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(),
            400,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x, chunked\r\n\r\n".to_owned(),
            501,
        ),
    ] {
        let answer = gateway.raw(&request).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert!(answer.text().ends_with('\n') && answer.text().len() > 10);
    }
    for (status, count) in [(400, 2.0), (414, 1.0), (431, 1.0), (501, 1.0)] {
        let class = status / 100;
        let series = format!(
            "layby_requests_total{{class=\"{class}xx\",method=\"GET\",status=\"{status}\"}}"
        );
        gateway
            .until_metric(&series, |counted| counted == count)
            .await;
    }

    let json = "PUT / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nX : 1\r\n\r\n";
    let answer = gateway.raw(json).await;
    assert_eq!(answer.json()["status"], 400);
    let mut client = gateway.connect().await;
    client
        .send("HEAD / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n")
        .await;
    assert_eq!(client.response_to("HEAD").await.status(), 400);
    assert_eq!(client.closed().await, b"");
    assert!(worker.requests().is_empty());
    gateway.rests().await;
}

#[tokio::test]
async fn requests_before_a_refused_head_are_answered_first_and_none_behind_it() {
    let gateway = gateway::new(1).run().await;
    let gate = Gate::new();
    let worker = worker::new(1).waits("/slow", &gate).run(&gateway).await;
    let bad = [
        "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "\x16\x03\x01",
    ];
    for (before, bad) in bad.iter().enumerate() {
        let mut client = gateway.connect().await;
        let request = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";
        client.send([request, bad, request].concat()).await;
        gate.reached(before + 1).await;
        gate.open_once();
        assert_eq!(client.response().await.ok(), "done");
        let status = client.response().await.status();
        assert!(matches!(status, 400 | 405), "{status}");
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(worker.requests(), ["GET /slow"; 4]);
    gateway.rests().await;
}

#[tokio::test]
async fn methods_are_tokens_and_nothing_else_is_known_of_them() {
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1)
        .on("/x", async |job| {
            let method = job.environ("REQUEST_METHOD");
            job.answer(200, method).await
        })
        .run(&gateway)
        .await;
    let methods = [
        "PURGE",
        "get",
        "Get",
        "M-SEARCH",
        "X!#$%&'*+-.^_`|~1",
        "TRACE",
    ];
    for method in methods {
        assert_eq!(gateway.request(method, "/x").await.ok(), method);
    }
    assert_eq!(worker.requests().len(), methods.len());
    let others = "layby_requests_total{class=\"2xx\",method=\"other\",status=\"200\"}";
    gateway.until_metric(others, |counted| counted == 5.0).await;
}

#[tokio::test]
async fn what_no_uri_holds_is_escaped_for_everyone() {
    let (gateway, _worker) = serving().await;
    let request = "GET /environ?q=\"<caf\u{e9}>\"&r={|}^`\\ HTTP/1.1\r\nHost: a\r\n\r\n";
    let environ = gateway.raw(request).await.json();
    assert_eq!(environ["QUERY_STRING"], "q=%22%3Ccaf%C3%A9%3E%22&r={|}^`\\");
    assert_eq!(
        environ["REQUEST_URI"],
        "/environ?q=%22%3Ccaf%C3%A9%3E%22&r={|}^`\\"
    );
}

#[tokio::test]
async fn routes_and_the_application_see_one_path() {
    let route = "[[route]]\npath = \"/small\"\nmax_body = 1\n";
    let gateway = gateway::new(1).file(route).run().await;
    let script = async |job: worker::Job| job.answer(200, job.environ("PATH_INFO")).await;
    let paths = [
        "/%73mall",
        "/small%2Fx",
        "/small/",
        "//small",
        "/small%5C",
        "/SMALL",
    ];
    let mut worker = worker::new(1);
    for path in paths {
        worker = worker.on(path, script);
    }
    let _worker = worker.run(&gateway).await;
    for path in paths {
        let below = !path.starts_with("//") && !path.contains("%5C") && path != "/SMALL";
        let status = gateway.post(path, "ab").await.status();
        assert_eq!(status, if below { 413 } else { 200 }, "{path}");
        // What the application decides by is what the route was chosen by.
        let seen = gateway.get(path).await;
        assert_eq!(
            seen.ok().starts_with("/small/") || seen.ok() == "/small",
            below
        );
    }
}

#[tokio::test]
async fn a_body_may_come_with_any_method() {
    let gateway = gateway::new(1).run().await;
    let echo = async |job: worker::Job| {
        let body = job.body.clone();
        job.answer(200, body).await
    };
    let _worker = worker::new(1).on("/x", echo).run(&gateway).await;
    let mut client = gateway.connect().await;
    for method in ["GET", "DELETE", "OPTIONS", "get"] {
        for body in [
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            client
                .send(format!("{method} /x HTTP/1.1\r\nHost: a\r\n{body}"))
                .await;
            assert_eq!(client.response().await.ok(), "hello", "{method}");
        }
    }
}

#[tokio::test]
async fn extensions_and_trailers_of_chunks_end_here() {
    let (gateway, worker) = serving().await;
    let mut client = gateway.connect().await;
    client
        .send(
            "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n\
             02;a=\"b\";c\r\nhi\r\n0;d\r\nX-A: 1\r\nContent-Length: 7\r\nHost: b\r\n\r\n\
             GET /environ HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.ok(), "hi");
    let environ = client.response().await.json();
    assert_eq!(environ["HTTP_HOST"], "a");
    assert_eq!(environ["HTTP_X_A"], serde_json::Value::Null);
    assert_eq!(worker.requests(), ["POST /echo", "GET /environ"]);
}

#[tokio::test]
async fn a_malformed_body_is_refused_and_nothing_behind_it_is_read() {
    let (gateway, worker) = serving().await;
    for chunks in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\r\n X: folded\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = gateway.connect().await;
        client
            .send(format!(
                "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}\
                 GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await;
        let answer = client.response().await;
        assert_eq!(answer.status(), 400, "{chunks:?}");
        assert_eq!(answer.text(), "the request body is malformed\n");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.closed().await, b"");
    }
    assert!(worker.requests().is_empty());
    gateway.rests().await;
}

#[tokio::test]
async fn a_body_that_is_refused_is_not_asked_for() {
    let gateway = gateway::new(1).set("max_body", "10").run().await;
    let worker = worker::new(1).run(&gateway).await;
    for (lines, status) in [
        ("Content-Length: 11\r\nExpect: 100-continue", 413),
        (
            "Content-Length: 5\r\nExpect: 100-continue\r\nExpect: x",
            417,
        ),
        ("Content-Length: 5\r\nExpect: 100-continue, x", 417),
        ("Content-Length: 5\r\nExpect: 100-continue\r\nHost: a", 400),
    ] {
        let mut client = gateway.connect().await;
        client
            .send(format!("POST /echo HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"))
            .await;
        let answer = client.response().await;
        assert_eq!(answer.status(), status, "{lines}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(client.closed().await, b"");
    }
    assert!(worker.requests().is_empty());
}

#[tokio::test]
async fn a_client_of_http_1_0_is_not_told_to_continue() {
    let (gateway, _worker) = serving().await;
    let mut client = gateway.connect().await;
    client
        .send("POST /echo HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert!(client.is_quiet().await);
    client.send("hello").await;
    assert_eq!(client.response().await.ok(), "hello");
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn what_asks_for_an_upgrade_is_a_request_like_any_other() {
    let (gateway, worker) = serving().await;
    let mut client = gateway.connect().await;
    for upgrade in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nHTTP2-Settings: AAMAAABk",
        "Upgrade: TLS/1.0",
    ] {
        client
            .send(format!(
                "GET /environ HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n\r\n\
                 GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await;
        let environ = client.response().await.json();
        for name in ["HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_HTTP2_SETTINGS"] {
            assert_eq!(environ[name], serde_json::Value::Null, "{name}");
        }
        assert_eq!(client.response().await.ok(), "pong");
    }
    assert_eq!(worker.requests().len(), 6);
}

#[tokio::test]
async fn connection_names_what_belongs_to_the_hop_however_it_is_written() {
    let gateway = gateway::new(1)
        .set("trusted_proxies", "127.0.0.1")
        .run()
        .await;
    let _worker = worker::new(1).run(&gateway).await;
    let request = "GET /environ HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n\
                   X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nAuthorization: Basic eA==\r\n\
                   Connection: , x-one,,\t X-TWO ,\"x-three\", x three, HOST, authorization\r\n\
                   Connection: x-real-ip, X-Forwarded-For, content-length\r\n\r\n";
    let environ = gateway.raw(request).await.json();
    for (name, there) in [
        ("HTTP_X_ONE", false),
        ("HTTP_X_TWO", false),
        ("HTTP_X_THREE", true),
        ("HTTP_HOST", true),
        ("HTTP_AUTHORIZATION", true),
        ("HTTP_X_REAL_IP", true),
        ("HTTP_X_FORWARDED_FOR", true),
    ] {
        assert_eq!(!environ[name].is_null(), there, "{name}");
    }
}

#[tokio::test]
async fn a_drain_serves_the_request_whose_head_has_begun() {
    let mut gateway = gateway::new(1).run().await;
    let _worker = worker::new(1).run(&gateway).await;
    let mut client = gateway.connect().await;
    client.send("GET /ping HTTP/1.1\r\n").await;
    // What came first has been read when this is answered.
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.signal(rustix::process::Signal::TERM);
    gateway.refuses().await;
    client.send("Host: a\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!(answer.ok(), "pong");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.closed().await, b"");
    assert_eq!(gateway.ended().await.code(), Some(0));
}
