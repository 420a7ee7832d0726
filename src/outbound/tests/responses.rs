//! One fetch without redirects: what is sent, what comes back, and every way to fail.

use std::io;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::origin::{Gate, Step, answer, ok, raw};
use super::*;
use crate::plan::{FailureKind, Phase};

const SHORT: Duration = Duration::from_millis(300);

fn is(failure: &Failure, kind: FailureKind, phase: Phase) {
    assert_eq!((failure.kind, failure.phase), (kind, phase), "{failure:?}");
    assert!(!failure.message.is_empty());
}

#[tokio::test]
async fn a_response_comes_back_whole() {
    let origin = Origin::start(|_| {
        answer(
            "404 Not Here",
            &[
                ("x-a", "1"),
                ("x-a", "2"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
            ],
            "nothing",
        )
    })
    .await;
    let harness = Harness::new();

    let fetch = get(origin.url("/a?b=c"))
        .header("x-mine", "1")
        .header("x-mine", "2");
    let response = harness.response(fetch).await;

    assert_eq!(response.status, StatusCode::NOT_FOUND);
    assert_eq!(response.url, origin.url("/a?b=c"));
    assert_eq!(response.body, "nothing");
    assert_eq!(response.redirects, 0);
    let values: Vec<_> = response.headers.get_all("x-a").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert!(!response.headers.contains_key("connection"));
    assert!(!response.headers.contains_key("x-hop"));

    let request = origin.request().await;
    assert_eq!((request.method(), request.target()), ("GET", "/a?b=c"));
    assert_eq!(request.header("host"), Some(&*origin.address.to_string()));
    assert_eq!(request.header("accept"), Some("*/*"));
    let agent = concat!("layby/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(agent));
    assert_eq!(request.head.matches("x-mine: ").count(), 2);
    assert_eq!(harness.ended(1).await, [FetchOutcome::HttpError]);
}

#[tokio::test]
async fn what_the_plan_says_of_framing_is_not_sent() {
    let origin = Origin::saying("").await;
    let harness = Harness::new();
    let fetch = post(origin.url("/"), "hello")
        .header("content-length", "0")
        .header("transfer-encoding", "chunked")
        .header("connection", "close")
        .header("expect", "100-continue")
        .header("user-agent", "mine")
        .header("accept", "text/plain");

    harness.response(fetch).await;

    let request = origin.request().await;
    assert_eq!(request.body, b"hello");
    assert_eq!(request.header("content-length"), Some("5"));
    assert_eq!(request.header("user-agent"), Some("mine"));
    assert_eq!(request.header("accept"), Some("text/plain"));
    for name in ["transfer-encoding", "connection", "expect"] {
        assert_eq!(request.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn a_post_without_a_body_says_so() {
    let origin = Origin::saying("").await;
    let harness = Harness::new();
    for body in [None, Some(Bytes::new())] {
        let fetch = Fetch {
            body,
            ..post(origin.url("/"), "")
        };
        harness.response(fetch).await;
        let request = origin.request().await;
        assert_eq!(request.head.matches("content-length: 0\r\n").count(), 1);
    }
}

#[tokio::test]
async fn a_head_has_the_length_but_no_body() {
    let origin =
        Origin::start(|_| raw("HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n")).await;
    let fetch = Fetch {
        method: Method::HEAD,
        ..get(origin.url("/"))
    };
    let response = Harness::new().response(fetch).await;
    assert_eq!(response.headers["content-length"], "99999999");
    assert_eq!(response.body, "");
}

#[tokio::test]
async fn bodies_end_in_every_way_that_http_knows() {
    for (bytes, closes) in [
        ("content-length: 5\r\n\r\nhello", false),
        (
            "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            false,
        ),
        ("connection: close\r\n\r\nhello", true),
    ] {
        let origin = Origin::start(move |_| {
            let mut steps = raw(&format!("HTTP/1.1 200 OK\r\n{bytes}"));
            steps.extend(closes.then_some(Step::Close));
            steps
        })
        .await;
        let response = Harness::new().response(get(origin.url("/"))).await;
        assert_eq!(response.body, "hello", "{bytes}");
        assert!(!response.headers.contains_key("transfer-encoding"));
    }
}

#[tokio::test]
async fn a_cut_body_is_a_failure_not_a_short_response() {
    for bytes in [
        "content-length: 6\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhel",
        "transfer-encoding: chunked\r\n\r\nz\r\nhello",
    ] {
        let origin = Origin::start(move |_| {
            let mut steps = raw(&format!("HTTP/1.1 200 OK\r\n{bytes}"));
            steps.push(Step::Close);
            steps
        })
        .await;
        let harness = Harness::new();
        let failure = harness.failure(get(origin.url("/"))).await;
        is(&failure, FailureKind::Failed, Phase::Body);
        assert_eq!(harness.ended(1).await, [FetchOutcome::Connect]);
    }
    let gate = Gate::closed();
    let wait = gate.clone();
    let origin = Origin::start(move |_| {
        let mut steps = raw("HTTP/1.1 200 OK\r\n\r\nhello");
        steps.extend([Step::Wait(wait.clone()), Step::Reset]);
        steps
    })
    .await;
    let harness = Harness::new();
    let (failure, ()) = tokio::join!(harness.failure(get(origin.url("/"))), async {
        origin.request().await;
        gate.open();
    });
    assert_eq!(failure.kind, FailureKind::Failed);
}

#[tokio::test]
async fn an_answer_that_is_not_http_fails() {
    for bytes in [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
    ] {
        let origin = Origin::start(move |_| raw(bytes)).await;
        let failure = Harness::new().failure(get(origin.url("/"))).await;
        is(&failure, FailureKind::Failed, Phase::Head);
    }
    for step in [|| Step::Close, || Step::Reset] {
        let origin = Origin::start(move |_| vec![step()]).await;
        let failure = Harness::new()
            .failure(get(origin.url("/?token=s3cret")))
            .await;
        is(&failure, FailureKind::Failed, Phase::Head);
        assert_eq!(failure.url, origin.url("/?token=***"));
        assert!(!failure.message.contains("s3cret"), "{failure:?}");
    }
}

#[tokio::test]
async fn two_lengths_or_a_length_beside_chunks_cannot_confuse() {
    let origin = Origin::start(|_| {
        raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello")
    })
    .await;
    let failure = Harness::new().failure(get(origin.url("/"))).await;
    is(&failure, FailureKind::Failed, Phase::Head);
}

#[tokio::test]
async fn no_connection_is_told_apart() {
    let harness = Harness::new();
    let (_port, url) = nobody();
    let failure = harness.failure(get(url)).await;
    is(&failure, FailureKind::Connect, Phase::Connect);
    assert!(failure.message.contains("refused"), "{failure:?}");

    let plain = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a loopback port");
    let url = format!("https://{}/", plain.local_addr().expect("it is bound"));
    let (failure, ()) = tokio::join!(harness.failure(get(url)), async {
        let (mut socket, _) = plain.accept().await.expect("accepting on loopback");
        let sent = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        sent.expect("the client still waits");
    });
    is(&failure, FailureKind::Connect, Phase::Connect);

    let unknown: Lookup = Arc::new(|_| Box::pin(async { Err(io::Error::other("no such name")) }));
    let harness = Harness::with_lookup(&settings(&["public"]), unknown);
    let failure = harness.failure(get("http://a.example/")).await;
    is(&failure, FailureKind::Connect, Phase::Dns);
    assert_eq!(failure.message, "the name lookup failed: no such name");
}

#[tokio::test]
async fn a_fetch_ends_with_its_time_whatever_it_waits_for() {
    let stalls = Origin::start(|_| vec![Step::Stall]).await;
    let harness = Harness::new();
    let failure = harness.failure(get(stalls.url("/")).within(SHORT)).await;
    is(&failure, FailureKind::Timeout, Phase::Head);
    assert!(failure.elapsed >= SHORT && failure.elapsed < SHORT + Duration::from_millis(250));
    stalls.gone().await;
    assert_eq!(harness.ended(1).await, [FetchOutcome::Timeout]);

    // Every byte is in time, the whole is not.
    let drips = Origin::start(|_| {
        let mut steps = raw("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
        steps.extend((0..10).map(|_| Step::Send(b"x".to_vec())));
        steps.push(Step::Stall);
        steps
    })
    .await;
    let failure = harness.failure(get(drips.url("/")).within(SHORT)).await;
    is(&failure, FailureKind::Timeout, Phase::Body);
    drips.gone().await;

    let never: Lookup = Arc::new(|_| Box::pin(std::future::pending()));
    let harness = Harness::with_lookup(&settings(&["public"]), never);
    let failure = harness
        .failure(get("http://a.example/").within(SHORT))
        .await;
    is(&failure, FailureKind::Timeout, Phase::Dns);

    // TLS that never comes.
    let origin = Origin::start(|_| vec![Step::Stall]).await;
    let url = origin.url("/").replace("http:", "https:");
    let failure = Harness::new().failure(get(url).within(SHORT)).await;
    is(&failure, FailureKind::Timeout, Phase::Connect);
}

#[tokio::test]
async fn no_time_means_nothing_is_sent() {
    let origin = Origin::saying("").await;
    let harness = Harness::new();
    let failure = harness
        .failure(post(origin.url("/"), "").within(Duration::ZERO))
        .await;
    assert_eq!(failure.kind, FailureKind::Timeout);
    let late = vec![Thing::Fetch(post(origin.url("/"), ""))];
    let results = harness.run_for(Duration::ZERO, Join::All, late).await;
    assert_eq!(results.len(), 1);
    assert_eq!(origin.accepts(), 0);
}

#[tokio::test]
async fn a_response_over_its_bound_is_given_up() {
    let max = 10_000;
    let small = config::Outbound {
        max_response: max,
        ..settings(&["127.0.0.1"])
    };
    let harness = Harness::with(&small);

    let announced = Origin::start(move |_| {
        let mut steps = raw(&format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
            max + 1
        ));
        steps.push(Step::Stall);
        steps
    })
    .await;
    let failure = harness.failure(get(announced.url("/"))).await;
    is(&failure, FailureKind::TooLarge, Phase::Body);
    announced.gone().await;

    let endless = Origin::start(|_| {
        let mut steps = raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        steps.extend((0..11).map(|_| {
            let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
            Step::Send(chunk.into_bytes())
        }));
        steps.push(Step::Stall);
        steps
    })
    .await;
    let failure = harness.failure(get(endless.url("/"))).await;
    is(&failure, FailureKind::TooLarge, Phase::Body);
    endless.gone().await;
    assert_eq!(harness.ended(2).await, [FetchOutcome::TooLarge; 2]);

    let exact = Origin::start(move |_| ok(&"x".repeat(max as usize))).await;
    let response = harness.response(get(exact.url("/"))).await;
    assert_eq!(response.body.len() as u64, max);
}

#[tokio::test]
async fn user_and_password_become_an_authorization() {
    let origin = Origin::saying("").await;
    let harness = Harness::new();
    let url = origin.url("/").replace("//", "//me:p%40ss@");

    let response = harness.response(get(url.clone())).await;
    assert_eq!(response.url, origin.url("/"));
    let request = origin.request().await;
    assert_eq!(request.header("authorization"), Some("Basic bWU6cEBzcw=="));
    assert!(!request.head.contains("p%40ss"));

    harness
        .response(get(url).header("authorization", "Bearer x"))
        .await;
    let request = origin.request().await;
    assert_eq!(request.header("authorization"), Some("Bearer x"));
}

#[tokio::test]
async fn what_is_no_url_for_a_fetch_fails_with_words() {
    let harness = Harness::with(&settings(&["public"]));
    for (url, kind) in [
        ("", FailureKind::Failed),
        ("/relative", FailureKind::Failed),
        ("http://", FailureKind::Failed),
        ("http://a b/", FailureKind::Failed),
        ("http://a.example:99999/", FailureKind::Failed),
        ("http://a.example../", FailureKind::Failed),
        ("ftp://a.example/", FailureKind::Refused),
        ("file:///etc/passwd", FailureKind::Refused),
        ("unix:/run/x.sock", FailureKind::Refused),
        ("data:,x", FailureKind::Refused),
    ] {
        let failure = harness.failure(get(url)).await;
        assert_eq!((failure.kind, failure.phase), (kind, Phase::Url), "{url}");
    }
}

#[tokio::test]
async fn another_host_than_the_urls_is_refused() {
    let origin = Origin::saying("").await;
    let fetch = get(origin.url("/")).header("host", "internal.example");
    let failure = Harness::new().failure(fetch).await;
    is(&failure, FailureKind::Refused, Phase::Url);
    assert_eq!(origin.accepts(), 0);
}

#[tokio::test]
async fn connections_are_kept_and_used_again() {
    let origin = Origin::saying("x").await;
    let harness = Harness::new();
    for n in 0..5 {
        harness.response(get(origin.url("/"))).await;
        assert_eq!(origin.request().await.nth, n);
    }
    assert_eq!(origin.accepts(), 1);
}

#[tokio::test]
async fn nothing_is_sent_twice_when_a_kept_connection_breaks() {
    // The origin answers one request per connection and hangs up when the second is in, as
    // one does whose idle time ran out just then.
    for step in [|| Step::Close, || Step::Reset] {
        let origin = Origin::start(move |request| match request.nth {
            0 => ok("x"),
            _ => vec![step()],
        })
        .await;
        let harness = Harness::new();
        harness.response(get(origin.url("/warm"))).await;
        origin.request().await;

        let failure = harness.failure(post(origin.url("/pay"), "1 EUR")).await;

        assert_eq!(failure.kind, FailureKind::Failed);
        let paid = origin.unread().await;
        assert_eq!(paid.len(), 1, "{paid:?}");
        assert_eq!(paid[0].nth, 1);
    }
}

#[tokio::test]
async fn a_connection_that_closes_while_idle_costs_no_request_and_doubles_none() {
    // Whether the client sees the end before or after it picks the connection is a race, so
    // it is run often. Whatever happens, a request is in at most once, and once if it has
    // a response.
    let origin = Origin::start(|_| {
        let mut steps = ok("x");
        steps.push(Step::Close);
        steps
    })
    .await;
    let harness = Harness::new();
    for _ in 0..200 {
        let outcome = harness.fetch(post(origin.url("/pay"), "1 EUR")).await;
        let paid = origin.unread().await.len();
        match outcome {
            Outcome::Response(_) => assert_eq!(paid, 1),
            other => assert!(paid <= 1, "{paid} for {other:?}"),
        }
    }
}

#[tokio::test]
async fn only_listed_hosts_have_a_label() {
    let origin = Origin::saying("").await;
    let harness = Harness::new();
    harness.response(get(origin.url("/"))).await;
    harness.failure(get("http://10.1.2.3/")).await;
    let counts = harness.counted(|counts| counts.len() >= 2).await;
    let ended = |origin: &str, outcome| Count::Ended(origin.to_owned(), outcome);
    assert_eq!(
        counts,
        [
            ended("127.0.0.1", FetchOutcome::Ok),
            ended("other", FetchOutcome::Refused)
        ]
    );
}
