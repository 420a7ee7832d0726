//! Plans over HTTP: servers of any language whose requests park, and that wait in place by a listener.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::{digest, hmac};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::gateway::{Builder, Gateway};
use crate::support::http::{Address, Request as Asked};
use crate::support::http2::{Client, get};
use crate::support::upstream::{Connection, Request, Upstream};
use crate::support::{gateway, origin, takes, upstream, within};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A gateway before a server that may answer with plans.
fn before(app: &Upstream, slots: u16) -> Builder {
    with_plans(gateway::before(app, slots)).set("workers.plans", "true")
}

fn with_plans(gateway: Builder) -> Builder {
    let socket = gateway.folder().join("plans.sock");
    gateway
        .set("plans.listen", format!("unix:{}", socket.display()))
        .set("plans.secret", SECRET)
}

/// One GET, and where to go on.
fn quote(url: &str) -> Value {
    json!({ "fetches": [{ "url": url }], "resume": { "path": "quote", "state": "s" } })
}

/// An answer with a plan, as the gateway takes it for one.
fn planned(request: &Request, plan: &Value) -> String {
    let token = request.header("layby-token").expect("a token");
    answer(
        &format!("Content-Type: application/vnd.layby.plan+json\r\nLayby-Token: {token}\r\n"),
        &plan.to_string(),
    )
}

fn answer(headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// What `docs/plans.md` has a server check.
fn signature(secret: &str, [id, path, state, body, expires]: [&str; 5]) -> String {
    let lines = ["layby-resume-v1", id, path, state, body, expires];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("v1={}", hex(hmac::sign(&key, text.as_bytes()).as_ref()))
}

/// The body of a resume, whose signature is right: for what it is, and for nothing else.
#[track_caller]
fn verified(request: &Request, secret: &str) -> Value {
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let header = |name| request.header(name).expect(name);
    let target = request.line.split(' ').nth(1).expect("a target");
    let state = sha256(body["state"].as_str().expect("a state").as_bytes());
    let digest = sha256(&request.body);
    let right = [
        header("layby-id"),
        target,
        &state,
        &digest,
        header("layby-expires"),
    ];
    assert_eq!(header("layby-signature"), signature(secret, right));
    for part in 0..right.len() {
        let mut other = right;
        other[part] = "other";
        assert_ne!(header("layby-signature"), signature(secret, other));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let expires: u64 = header("layby-expires").parse().expect("seconds");
    assert!((now..=now + 100).contains(&expires), "{expires} at {now}");
    let id = header("layby-id").split_once(':').expect("two parts");
    assert_eq!(Some(id.0), request.header("x-request-id"));
    body
}

/// A server that parks every request for this plan, and answers resumes with what they have brought.
async fn parks(app: Upstream, plan: Value) {
    let serving = |mut connection: Connection| {
        let plan = plan.clone();
        async move {
            while let Some(request) = connection.try_request().await {
                let said = match request.line.starts_with("POST /.layby/") {
                    true => {
                        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
                        let text = body["results"][0]["body"].as_str();
                        answer("", text.unwrap_or("nothing"))
                    }
                    false => planned(&request, &plan),
                };
                if connection.try_send(said).await.is_err() {
                    return;
                }
            }
        }
    };
    let mut lines = tokio::task::JoinSet::new();
    loop {
        lines.spawn(serving(app.accept().await));
    }
}

#[tokio::test]
async fn a_plan_parks_its_request_and_a_signed_one_goes_on() {
    let app = upstream::tcp().await;
    let origin = origin::stalled().await;
    let gateway = before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let pending = gateway
        .request("POST", "/quote?zip=1")
        .header("Cookie", "session=1")
        .header("Authorization", "Basic eA==")
        .header("Accept-Language", "de")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .header("Layby-Token", "forged")
        .header("Layby-Signature", "forged")
        .header("Content-Type", "text/plain")
        .header("Content-Language", "de")
        .header("Range", "bytes=0-1")
        .header("If-None-Match", "\"a\"")
        .header("X-HTTP-Method-Override", "DELETE")
        .body("body")
        .spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    let token = request.header("layby-token").expect("a token").to_owned();
    assert_eq!(token.len(), 32);
    assert_eq!(request.header("layby-signature"), None);
    let mut plan = quote(&origin.url("/price"));
    plan["fetches"][0]["method"] = "PUT".into();
    plan["fetches"][0]["headers"] = json!({ "x-one": "1", "x-two": ["2", "3"] });
    plan["fetches"][0]["body"] = "order".into();
    plan["resume"]["state"] = "line\nfeed and \"quotes\" and \u{e4}".into();
    connection.send(planned(&request, &plan)).await;

    origin.received(1).await;
    let fetched = origin.requests().remove(0).to_ascii_lowercase();
    assert!(fetched.starts_with("put /price http/1.1\r\n"), "{fetched}");
    for line in ["x-one: 1", "x-two: 2", "x-two: 3", "00-0af7651916cd43dd"] {
        assert!(fetched.contains(line), "{line} in {fetched}");
    }
    assert!(fetched.ends_with("\r\n\r\norder"));
    let status = gateway.status().await;
    assert_eq!((status.idle, status.parked), (1, 1));
    let waits = gateway.status_json().await["parked"]["waits_for"].clone();
    assert_eq!(waits[0]["origin"], "127.0.0.1");
    // The slot is free, and the connection goes on.
    let other = gateway.get("/other").spawn();
    assert_eq!(connection.request().await.line, "GET /other HTTP/1.1");
    connection.send(OK).await;
    assert_eq!(other.await.ok(), "ok");

    origin.release("12");
    let resume = connection.request().await;
    assert_eq!(resume.line, "POST /.layby/quote HTTP/1.1");
    for (name, value) in [
        ("host", "shop.example"),
        ("cookie", "session=1"),
        ("authorization", "Basic eA=="),
        ("accept-language", "de"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop.example"),
        ("content-type", "application/json"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ] {
        assert_eq!(resume.header(name), Some(value), "{name}");
    }
    for name in [
        "content-language",
        "range",
        "if-none-match",
        "x-http-method-override",
    ] {
        assert_eq!(resume.header(name), None, "{name}");
    }
    assert_ne!(resume.header("layby-token"), Some(&*token));
    assert_eq!(
        resume.header("x-request-id"),
        request.header("x-request-id")
    );
    let body = verified(&resume, SECRET);
    assert_eq!(body["state"], plan["resume"]["state"]);
    assert_eq!(
        (&body["request"]["method"], &body["request"]["target"]),
        (&json!("POST"), &json!("/quote?zip=1"))
    );
    let result = &body["results"][0];
    assert_eq!(
        (&result["status"], &result["body"]),
        (&json!(200), &json!("12"))
    );
    assert_eq!(result["headers"]["content-length"], json!(["2"]));

    connection
        .send(answer("Set-Cookie: a=1\r\n", "twelve"))
        .await;
    let answered = pending.await;
    assert_eq!(answered.ok(), "twelve");
    assert_eq!(answered.header("set-cookie"), Some("a=1"));
    assert_eq!(gateway.metric("layby_park_seconds_count").await, 1.0);
    gateway.rests().await;
}

#[tokio::test]
async fn many_requests_park_side_by_side_on_one_slot() {
    let app = upstream::tcp().await;
    let origin = origin::stalled().await;
    let gateway = before(&app, 1).run().await;
    let server = tokio::spawn(parks(app, quote(&origin.url("/"))));
    let pending: Vec<_> = (0..30).map(|_| gateway.get("/").spawn()).collect();
    origin.received(30).await;
    gateway
        .until("all of them parked", |it| it.parked == 30 && it.idle == 1)
        .await;
    origin.release("12");
    for pending in pending {
        assert_eq!(pending.await.ok(), "12");
    }
    gateway.rests().await;
    server.abort();
}

#[tokio::test]
async fn a_resume_may_answer_with_another_plan() {
    let app = upstream::tcp().await;
    let origin = origin::answering("12").await;
    let gateway = before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let mut ids = Vec::new();
    for path in ["one", "two/and-a.half", "three"] {
        let request = connection.request().await;
        if let Some(id) = request.header("layby-id") {
            verified(&request, SECRET);
            ids.push(id.to_owned());
        }
        let mut plan = quote(&origin.url("/"));
        plan["resume"]["path"] = path.into();
        connection.send(planned(&request, &plan)).await;
    }
    let last = connection.request().await;
    assert_eq!(last.line, "POST /.layby/three HTTP/1.1");
    ids.push(last.header("layby-id").expect("an id").to_owned());
    ids.dedup();
    assert_eq!(ids.len(), 3, "each is good once: {ids:?}");
    connection.send(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    assert_eq!(gateway.metric("layby_park_seconds_count").await, 3.0);
}

#[tokio::test]
async fn what_does_not_echo_the_token_is_an_ordinary_answer() {
    let app = upstream::tcp().await;
    let gateway = before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let plan = quote("http://127.0.0.1:1/").to_string();
    let plans = "Content-Type: application/vnd.layby.plan+json\r\n";
    let mut connection = None;
    for case in 0..5 {
        let pending = gateway.get("/").spawn();
        let mut server = match connection.take() {
            Some(server) => server,
            None => app.accept().await,
        };
        let request = server.request().await;
        let token = request.header("layby-token").expect("a token");
        let headers = match case {
            0 => plans.to_owned(),
            1 => format!("{plans}Layby-Token: {}\r\n", token.replace('a', "b") + "0"),
            2 => format!("{plans}Layby-Token: {token}\r\nLayby-Token: {token}\r\n"),
            3 => format!("Content-Type: application/json\r\nLayby-Token: {token}\r\n"),
            _ => format!("{plans}Content-Type: text/html\r\nLayby-Token: {token}\r\n"),
        };
        server.send(answer(&headers, &plan)).await;
        let answered = pending.await;
        assert_eq!(answered.ok(), plan, "{case}");
        assert_eq!(answered.header("layby-token"), None);
        connection = Some(server);
    }
    gateway.rests().await;
}

#[tokio::test]
async fn clients_do_not_reach_what_requests_resume_at() {
    let app = upstream::tcp().await;
    let gateway = before(&app, 1).set("h2c", "true").run().await;
    let paths = [
        "/.layby/quote",
        "/.layby",
        "/.layby/",
        "/%2elayby/quote",
        "/%2Elayby%2Fquote",
        "/.layby%5cquote",
        "//.layby/quote",
        "/.LayBy/quote",
        "/.layby;v=1/quote",
        "/%252elayby/quote",
        "/%25252elayby/quote",
        "/index.php/.layby/quote",
        "/.layby/quote?x=1",
    ];
    for path in paths {
        let refused = gateway.post(path, "{}").await;
        assert_eq!(refused.status(), 404, "{path}");
    }
    let stream = TcpStream::connect(gateway.tcp()).await;
    let client = Client::over(stream.expect("a listener")).await;
    for path in paths {
        let (answered, _) = client.send(get(path), true).await;
        let answered = within("an answer", answered).await.expect("an answer");
        assert_eq!(answered.status(), 404, "{path}");
    }
    // What only looks like it is somebody else's.
    let pending = gateway.get("/.laybyquote/a.layby").spawn();
    app.answers(OK).await;
    assert_eq!(pending.await.ok(), "ok");

    let app = upstream::tcp().await;
    let gateway = gateway::before(&app, 1).run().await;
    let pending = gateway.get("/.layby/quote").spawn();
    let (_, request) = app.answers(OK).await;
    assert_eq!(request.header("layby-token"), None);
    assert_eq!(pending.await.ok(), "ok");
}

#[tokio::test]
async fn what_is_no_plan_is_a_bad_answer_and_the_log_says_why() {
    let app = upstream::tcp().await;
    let gateway = before(&app, 1).run().await;
    let with = |path: &str, value: Value| {
        let mut plan = quote("http://127.0.0.1:1/");
        *plan.pointer_mut(path).expect("it is there") = value;
        plan.to_string()
    };
    let good = quote("http://127.0.0.1:1/").to_string();
    for (status, headers, plan, said) in [
        ("200 OK", "", "{".to_owned(), "EOF"),
        ("200 OK", "", with("/resume", Value::Null), "not a plan"),
        (
            "200 OK",
            "",
            with("/resume/path", "a/../b".into()),
            "resume.path has a segment",
        ),
        (
            "200 OK",
            "",
            with("/resume/path", "a?b".into()),
            "resume.path has a character",
        ),
        (
            "200 OK",
            "",
            with("/resume/state", "s".repeat(70_000).into()),
            "resume.state is longer",
        ),
        (
            "200 OK",
            "",
            with("/fetches/0", json!({ "url": "", "method": "G T" })),
            "fetches[0].method is not a token",
        ),
        ("201 Made", "", good.clone(), "a plan has status 200"),
        (
            "200 OK",
            "Content-Encoding: gzip\r\n",
            good.clone(),
            "no Content-Encoding",
        ),
    ] {
        let pending = gateway.get("/").spawn();
        let mut connection = app.accept().await;
        let request = connection.request().await;
        let plan = planned(&request, &Value::Null)
            .replace("200 OK\r\n", &format!("{status}\r\n{headers}"))
            .replace(
                "Content-Length: 4",
                &format!("Content-Length: {}", plan.len()),
            )
            .replace("\r\n\r\nnull", &format!("\r\n\r\n{plan}"));
        connection.send(plan).await;
        let refused = pending.await;
        assert_eq!(refused.status(), 502, "{said}");
        assert!(!refused.text().contains("fetches"), "{}", refused.text());
        gateway.logged(said).await;
        connection.closed().await;
    }
    // One that is far too long is not read.
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    let head = planned(&request, &Value::Null).replace("Length: 4", "Length: 99999999");
    connection.send(head).await;
    assert_eq!(pending.await.status(), 502);
    // And one that breaks off is none.
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    let head = planned(&request, &Value::Null).replace("Length: 4", "Length: 5");
    connection.send(head).await;
    drop(connection);
    assert_eq!(pending.await.status(), 502);
    let pending = gateway.request("HEAD", "/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    let head = planned(&request, &Value::Null).replace("null", "");
    connection.send(head).await;
    assert_eq!(pending.await.status(), 502);
    gateway.logged("no place in the answer to HEAD").await;
    gateway.rests().await;
}

#[tokio::test]
async fn who_leaves_a_parked_request_ends_it_if_it_is_safe() {
    let app = upstream::tcp().await;
    let origin = origin::stalled().await;
    let gateway = before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    connection
        .send(planned(&request, &quote(&origin.url("/"))))
        .await;
    origin.received(1).await;
    pending.leave().await;
    origin.aborted(1).await;
    gateway.rests().await;

    // The next that the server hears is of another.
    let pending = gateway.post("/", "x").spawn();
    let request = connection.request().await;
    assert_eq!(request.line, "POST / HTTP/1.1");
    connection
        .send(planned(&request, &quote(&origin.url("/"))))
        .await;
    origin.received(2).await;
    pending.leave().await;
    origin.release("12");
    let resume = connection.request().await;
    assert_eq!(verified(&resume, SECRET)["results"][0]["body"], "12");
    connection.send(OK).await;
    gateway.rests().await;
}

#[tokio::test]
async fn the_deadline_is_that_of_the_whole_request() {
    let app = upstream::tcp().await;
    let origin = origin::stalled().await;
    let gateway = before(&app, 1)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    app.keeps(gateway.get("/")).await;
    let mut connection = None;
    let plan = quote(&origin.url("/"));
    takes(Duration::from_millis(300), async || {
        let pending = gateway.get("/").spawn();
        let mut server = match connection.take() {
            Some(server) => server,
            None => app.accept().await,
        };
        let request = server.request().await;
        server.send(planned(&request, &plan)).await;
        assert_eq!(pending.await.status(), 504);
        gateway.rests().await;
        connection = Some(server);
    })
    .await;
    // What may have moved money is finished, but not for ever.
    let pending = gateway.post("/", "x").spawn();
    let mut server = connection.take().expect("it was kept");
    let request = server.request().await;
    server.send(planned(&request, &plan)).await;
    assert_eq!(pending.await.status(), 504);
    let resume = server.request().await;
    assert_eq!(
        verified(&resume, SECRET)["results"][0]["error"],
        json!("timeout")
    );
    server.send(planned(&resume, &plan)).await;
    gateway.logged("whose time is over: it ends here").await;
    gateway.rests().await;
}

#[tokio::test]
async fn results_wait_for_a_server_that_is_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let app = upstream::unix(&path);
    let origin = origin::stalled().await;
    let gateway = before(&app, 2).run().await;
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    connection
        .send(planned(&request, &quote(&origin.url("/"))))
        .await;
    origin.received(1).await;
    drop((connection, app));
    origin.release("12");
    gateway
        .until("no server, and nothing lost", |it| {
            it.lost == 2 && it.parked == 1
        })
        .await;
    let app = upstream::unix(&path);
    let mut connection = app.accept().await;
    let resume = connection.request().await;
    assert_eq!(verified(&resume, SECRET)["results"][0]["body"], "12");
    // What it may have seen is not sent again.
    connection.reset();
    assert_eq!(pending.await.status(), 502);
    let pending = gateway.get("/next").spawn();
    let (_, request) = app.answers(OK).await;
    assert_eq!(request.line, "GET /next HTTP/1.1");
    assert_eq!(pending.await.ok(), "ok");
    gateway.rests().await;
}

#[tokio::test]
async fn results_do_not_wait_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = upstream::unix(folder.path().join("app.sock"));
    let origin = origin::stalled().await;
    let gateway = before(&app, 1)
        .set("slots.request_timeout", "300ms")
        .run()
        .await;
    app.keeps(gateway.get("/")).await;
    let mut pending = HashMap::new();
    let mut connection = None;
    for method in ["GET", "POST"] {
        pending.insert(method, gateway.request(method, "/").spawn());
        let server = match &mut connection {
            Some(server) => server,
            none => none.insert(app.accept().await),
        };
        let request = server.request().await;
        server
            .send(planned(&request, &quote(&origin.url("/"))))
            .await;
    }
    origin.received(2).await;
    drop((connection, app));
    origin.release("12");
    for (_, pending) in pending {
        assert_eq!(pending.await.status(), 504);
    }
    gateway
        .logged("given up: no slot has taken its results")
        .await;
    gateway
        .until("nothing left", |it| (it.parked, it.queued) == (0, 0))
        .await;
}

#[tokio::test]
async fn large_results_come_whole_or_as_failures() {
    for (limit, expected) in [("10MiB", None), ("0", Some("failed"))] {
        let app = upstream::tcp().await;
        let origin = origin::answering(&"\u{e4}\"".repeat(300_000)).await;
        let gateway = before(&app, 1).set("spool_limit", limit).run().await;
        app.keeps(gateway.get("/")).await;
        let pending = gateway.get("/").spawn();
        let mut connection = app.accept().await;
        let request = connection.request().await;
        connection
            .send(planned(&request, &quote(&origin.url("/"))))
            .await;
        let resume = connection.request().await;
        let result = verified(&resume, SECRET)["results"][0].clone();
        assert_eq!(result["error"].as_str(), expected);
        let length = result["body"].as_str().map(str::len);
        assert_eq!(length, expected.is_none().then_some(900_000));
        connection.send(OK).await;
        assert_eq!(pending.await.ok(), "ok");
        gateway.rests().await;
    }
}

#[tokio::test]
async fn a_drain_waits_for_what_is_parked() {
    let app = upstream::tcp().await;
    let origin = origin::stalled().await;
    let mut gateway = before(&app, 1).run().await;
    app.keeps(gateway.get("/")).await;
    let pending = gateway.get("/").spawn();
    let mut connection = app.accept().await;
    let request = connection.request().await;
    connection
        .send(planned(&request, &quote(&origin.url("/"))))
        .await;
    origin.received(1).await;
    gateway.signal(Signal::TERM);
    gateway.logged("drain started").await;
    // Who waits in place is served until the end.
    let held = fetch(&gateway, &json!({ "fetches": [{ "sleep": 0.0 }] })).await;
    assert_eq!(held.status(), 200);
    origin.release("12");
    connection.request().await;
    connection.send(OK).await;
    assert_eq!(pending.await.ok(), "ok");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn routes_have_plans_too_and_a_reload_changes_the_secret() {
    let (app, other) = (upstream::tcp().await, upstream::tcp().await);
    let origin = origin::stalled().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |secret: &str| {
        format!(
            "[plans]\nlisten = \"unix:{}\"\nsecret = \"{secret}\"\n\
             [[route]]\npath = \"/live\"\nupstream = {:?}\nplans = true\n",
            folder.path().join("plans.sock").display(),
            other.url()
        )
    };
    let gateway = gateway::before(&app, 1).file(&file(SECRET)).run().await;
    let pending = gateway.get("/").spawn();
    let (_, request) = app.answers(OK).await;
    assert_eq!(request.header("layby-token"), None);
    assert_eq!(pending.await.ok(), "ok");

    other.keeps(gateway.get("/live")).await;
    let pending = gateway.get("/live").spawn();
    let mut connection = other.accept().await;
    let request = connection.request().await;
    connection
        .send(planned(&request, &quote(&origin.url("/"))))
        .await;
    origin.received(1).await;
    let parked = format!(
        "layby_upstream_parked_requests{{upstream=\"{}\"}}",
        other.url()
    );
    assert_eq!(gateway.metric(&parked).await, 1.0);
    assert_eq!(gateway.status_json().await["upstreams"][1]["parked"], 1);
    let new = "another secret, said without blanks".replace(' ', "-");
    gateway.rewrite(&file(&new));
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    origin.release("12");
    let resume = connection.request().await;
    assert_eq!(verified(&resume, &new)["results"][0]["status"], 200);
    connection.send(OK).await;
    assert_eq!(pending.await.ok(), "ok");

    let plans = Address::Unix(folder.path().join("plans.sock"));
    let body = json!({ "fetches": [{ "sleep": 0.0 }] }).to_string();
    for (secret, status) in [(SECRET, 401), (&new, 200)] {
        let asked = Asked::new(&plans, "POST", "/v1/fetch")
            .header("Authorization", &format!("Bearer {secret}"));
        assert_eq!(asked.body(&body).await.status(), status);
    }
}

fn asking(gateway: &Gateway, plan: &str) -> Asked {
    let plans = Address::Unix(gateway.folder().join("plans.sock"));
    let asked = Asked::new(&plans, "POST", "/v1/fetch");
    asked
        .header("Authorization", &format!("Bearer {SECRET}"))
        .body(plan)
}

async fn fetch(gateway: &Gateway, plan: &Value) -> crate::support::http::Response {
    asking(gateway, &plan.to_string()).await
}

#[tokio::test]
async fn who_would_rather_wait_in_place_posts_a_plan() {
    let app = upstream::tcp().await;
    let (quick, stalled) = (origin::answering("12").await, origin::stalled().await);
    let gateway = before(&app, 1)
        .set("slots.request_timeout", "30s")
        .run()
        .await;
    let plan = json!({
        "fetches": [
            { "url": quick.url("/a"), "headers": [["x-one", "1"]] },
            { "url": quick.url("/b"), "method": "POST", "body_base64": "AP8=" },
            { "url": "http://10.0.0.1/" },
            { "url": "no URL" },
            { "fetches": [{ "url": quick.url("/c") }, { "url": stalled.url("/") }], "join": "any" },
            { "url": stalled.url("/"), "timeout": 0.05 },
            { "sleep": 0.01 },
        ],
    });
    let answered = fetch(&gateway, &plan).await;
    assert_eq!(answered.header("content-type"), Some("application/json"));
    let results = answered.json()["results"].clone();
    assert_eq!(results[0]["body"], "12");
    assert_eq!(results[1]["status"], 200);
    assert_eq!(results[2]["error"], "refused");
    assert_eq!(results[3]["error"], "failed");
    assert_eq!(results[4]["results"][0]["body"], "12");
    assert_eq!(results[4]["results"][1], Value::Null);
    assert_eq!(results[5]["error"], "timeout");
    assert!(
        results[6]["slept"]
            .as_f64()
            .is_some_and(|slept| slept > 0.0)
    );
    assert!(
        quick
            .requests()
            .iter()
            .any(|it| it.to_ascii_lowercase().contains("x-one: 1"))
    );

    let plan = json!({ "fetches": [{ "sleep": 0 }] }).to_string();
    for (asked, status, said) in [
        (asking(&gateway, "{}"), 400, "missing field `fetches`"),
        (
            asking(&gateway, &quote("").to_string()),
            400,
            "resume is for a plan that parks",
        ),
        (asking(&gateway, ""), 400, "EOF"),
    ] {
        let refused = asked.await;
        assert_eq!(refused.status(), status);
        let error = refused.json()["error"].as_str().map(str::to_owned);
        assert!(error.is_some_and(|error| error.contains(said)), "{said}");
    }
    let plans = Address::Unix(gateway.folder().join("plans.sock"));
    let bearer = format!("Bearer {SECRET}");
    for (method, path, said, status) in [
        ("POST", "/v1/fetch", "", 401),
        ("POST", "/v1/fetch", SECRET, 401),
        ("POST", "/v1/fetch", &bearer[..38], 401),
        ("POST", "/v1/fetch", &format!("{bearer}0"), 401),
        ("POST", "/v1/fetch", &bearer.to_uppercase(), 401),
        ("GET", "/v1/fetch", &bearer, 405),
        ("POST", "/v2/fetch", &bearer, 404),
        ("POST", "/v1/fetch", &bearer, 200),
    ] {
        let asked = Asked::new(&plans, method, path).header("Authorization", said);
        let answered = asked.body(&plan).await;
        assert_eq!(answered.status(), status, "{method} {path}");
        assert_eq!(answered.header("www-authenticate").is_some(), status == 401);
    }
    let large = Asked::new(&plans, "POST", "/v1/fetch")
        .header("Authorization", &bearer)
        .header("Content-Length", "99999999");
    assert_eq!(large.await.status(), 413);

    // Who leaves takes safe fetches along.
    let asked = json!({ "fetches": [{ "url": stalled.url("/") }] }).to_string();
    let before = (stalled.requests().len(), stalled.aborted_now());
    let pending = asking(&gateway, &asked).spawn();
    stalled.received(before.0 + 1).await;
    pending.leave().await;
    stalled.aborted(before.1 + 1).await;
    gateway.rests().await;
}
