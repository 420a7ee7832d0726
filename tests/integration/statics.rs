//! Files that the gateway sends by itself, and those that an application names in its answer.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection, Response};
use crate::support::worker::{self, Answer, Worker};

/// One slot, and mounts of the folder `files` beside the configuration, in which `fill` has put some.
async fn serving(keys: &str, fill: impl FnOnce(&Path)) -> (Gateway, Worker) {
    started(
        &format!("[[static]]\npath = \"/static\"\nroot = \"./files\"\n{keys}"),
        fill,
    )
    .await
}

async fn started(configuration: &str, fill: impl FnOnce(&Path)) -> (Gateway, Worker) {
    let builder = gateway::new(1).file(configuration);
    let files = builder.folder().join("files");
    fs::create_dir(&files).expect("the folder is ours");
    fill(&files);
    let gateway = builder.run().await;
    let worker = [
        "/static/app",
        "/static/a.css",
        "/staticfiles",
        "/a.css",
        "/none",
    ]
    .into_iter()
    .fold(worker::new(1), |worker, path| {
        worker.answers(path, "from the application")
    });
    let worker = worker
        .on("/handed", |job| async move {
            // Each line of the query is a header of the answer.
            let query = job.environ("QUERY_STRING").to_owned();
            let mut answer = Answer::new(200).header("Content-Type", "text/x-own");
            for line in query.split('&') {
                let (name, value) = line.split_once('=').expect("a header");
                answer = match name {
                    "status" => Answer::new(value.parse().expect("a status")),
                    name => answer.header(name, value),
                };
            }
            job.respond(answer.body("the application's own body")).await
        })
        .run(&gateway)
        .await;
    (gateway, worker)
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("it is in a folder")).expect("the folder is ours");
    fs::write(path, content).expect("room");
}

fn some(folder: &Path) {
    write(folder, "a.css", "body {}");
    write(folder, "sub/b.txt", "below");
    write(folder, ".hidden", "hidden");
}

#[tokio::test]
async fn a_file_is_sent_without_a_slot() {
    let (gateway, worker) = serving("", some).await;
    let got = gateway.get("/static/a.css").await;
    assert_eq!(got.ok(), "body {}");
    assert_eq!(got.header("content-type"), Some("text/css; charset=utf-8"));
    assert_eq!(got.header("content-length"), Some("7"));
    assert_eq!(got.header("accept-ranges"), Some("bytes"));
    assert!(got.header("etag").is_some_and(|etag| etag.starts_with('"')));
    assert!(got.header("last-modified").is_some());
    assert!(got.header("x-request-id").is_some());
    assert_eq!(got.header("cache-control"), None);
    assert_eq!(got.header("vary"), None);
    assert_eq!(gateway.get("/static/sub/b.txt").await.ok(), "below");
    assert_eq!(worker.requests(), Vec::<String>::new());
    let counted = r#"layby_requests_total{class="2xx",method="GET",status="200"}"#;
    assert!(gateway.metric(counted).await >= 2.0);
}

#[tokio::test]
async fn what_is_not_there_is_answered_404_without_the_application() {
    let (gateway, worker) = serving("", |files| {
        some(files);
        symlink("/etc/passwd", files.join("passwd")).expect("a link");
        symlink("../layby.toml", files.join("out")).expect("a link");
    })
    .await;
    for path in [
        "/static/none",
        "/static/.hidden",
        "/static/a.css/",
        "/static/a.css/x",
        "/static/sub",
        "/static/sub/",
        "/static",
        "/static/",
        "/static/passwd",
        "/static/out",
        "/static/%2e%2e/layby.toml",
        "/static/sub/%2E%2E/a.css",
        "/static/..%2flayby.toml",
        "/static/%2e%2e%5clayby.toml",
    ] {
        let got = gateway.get(path).await;
        assert!(
            matches!(got.status(), 404 | 400),
            "{path}: {}",
            got.status()
        );
        assert!(!got.text().contains("layby.toml"), "{path}");
    }
    let got = gateway.get("/static/none").await;
    assert_eq!((got.status(), got.text()), (404, "there is no such file\n"));
    let asked = gateway
        .get("/static/none")
        .header("Accept", "application/json");
    assert_eq!(asked.await.json()["status"], 404);
    assert_eq!(
        gateway.get("/staticfiles").await.ok(),
        "from the application"
    );
    assert_eq!(worker.requests(), ["GET /staticfiles"]);
}

#[tokio::test]
async fn a_connection_goes_on_after_a_file_that_is_not_there() {
    let (gateway, _worker) = serving("", some).await;
    let mut client = gateway.connect().await;
    for (method, path, status) in [
        ("GET", "none", 404),
        ("HEAD", "none", 404),
        ("HEAD", "a.css", 200),
        ("DELETE", "a.css", 405),
        ("GET", "a.css", 200),
    ] {
        let request = format!("{method} /static/{path} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send(request).await;
        let got = client.response_to(method).await;
        assert_eq!(got.status(), status, "{method} {path}");
    }
}

#[tokio::test]
async fn files_are_only_read() {
    let (gateway, worker) = serving("", some).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"] {
        let got = gateway.request(method, "/static/a.css").await;
        assert_eq!(got.status(), 405, "{method}");
        assert_eq!(got.header("allow"), Some("GET, HEAD"));
    }
    let head = gateway.request("HEAD", "/static/a.css").await;
    assert_eq!(head.status(), 200);
    assert_eq!(head.header("content-length"), Some("7"));
    assert_eq!(worker.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_body_that_comes_with_a_request_for_a_file_is_not_read() {
    let (gateway, _worker) = serving("", some).await;
    let mut client = gateway.connect().await;
    let body = "x".repeat(300_000);
    let head = format!(
        "GET /static/a.css HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head).await;
    let got = client.response().await;
    assert_eq!(got.ok(), "body {}");
    assert_eq!(got.header("connection"), Some("close"));
    // The gateway takes it out of the way, so that no reset takes the answer from the client.
    client.try_send(body).await.expect("it is read");
    client.finish().await;
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn what_a_client_has_already_is_not_sent_again() {
    let (gateway, _worker) = serving("", some).await;
    let got = gateway.get("/static/a.css").await;
    let header = |name: &str| got.header(name).expect("it has one").to_owned();
    let (etag, date) = (header("etag"), header("last-modified"));
    for (name, value, status) in [
        ("If-None-Match", etag.clone(), 304),
        ("If-None-Match", format!("W/{etag}"), 304),
        ("If-None-Match", "\"other\"".to_owned(), 200),
        ("If-Modified-Since", date, 304),
        ("If-Match", "\"other\"".to_owned(), 412),
    ] {
        let again = gateway.get("/static/a.css").header(name, &value).await;
        assert_eq!(again.status(), status, "{name}: {value}");
        assert_eq!(again.header("etag"), Some(&*etag));
        if status != 200 {
            assert_eq!(again.text(), "");
            assert_eq!(again.header("content-type"), None);
        }
    }
    write(&gateway.folder().join("files"), "a.css", "body { }");
    let again = gateway.get("/static/a.css").header("If-None-Match", &etag);
    assert_eq!(again.await.ok(), "body { }");
}

#[tokio::test]
async fn a_part_of_a_file_is_sent_alone() {
    let (gateway, _worker) = serving("", some).await;
    let get = async |range: &str| gateway.get("/static/a.css").header("Range", range).await;
    let got = get("bytes=5-5").await;
    assert_eq!((got.status(), got.text()), (206, "{"));
    assert_eq!(got.header("content-range"), Some("bytes 5-5/7"));
    assert_eq!(got.header("content-length"), Some("1"));
    assert_eq!(get("bytes=-2").await.text(), "{}");
    let got = get("bytes=7-").await;
    assert_eq!((got.status(), got.text()), (416, ""));
    assert_eq!(got.header("content-range"), Some("bytes */7"));
    assert_eq!(get("bytes=0-0,6-6").await.ok(), "body {}");
    let old = gateway.get("/static/a.css").header("Range", "bytes=0-0");
    let old = old.header("If-Range", "\"old\"").await;
    assert_eq!(old.ok(), "body {}");
}

#[tokio::test]
async fn the_end_of_a_file_of_many_gigabytes_is_found() {
    let (gateway, _worker) = serving("", |files| {
        let mut file = File::create(files.join("large")).expect("room");
        // A hole: it takes no room.
        file.set_len(5 << 30).expect("a large file");
        file.write_all(b"begin").expect("room");
    })
    .await;
    let mut client = gateway.connect().await;
    client
        .send("GET /static/large HTTP/1.1\r\nHost: a\r\nRange: bytes=5368709110-\r\n\r\n")
        .await;
    let got = client.response().await;
    assert_eq!(got.status(), 206);
    assert_eq!(got.bytes(), [0; 10]);
    client
        .send("HEAD /static/large HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;
    let head = client.response_to("HEAD").await;
    assert_eq!(head.header("content-length"), Some("5368709120"));
}

#[tokio::test]
async fn a_large_file_streams_to_a_slow_reader_and_is_cut_when_it_shrinks() {
    let content: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    let (gateway, _worker) = serving("", |files| write(files, "large", &content)).await;
    assert!(gateway.get("/static/large").await.bytes() == content);
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader
        .send("GET /static/large HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;
    let head = reader.head().await;
    assert_eq!(gateway.metric("layby_spool_bytes").await, 0.0);
    let file = File::options()
        .write(true)
        .open(gateway.folder().join("files/large"));
    file.and_then(|file| file.set_len(10_000_000))
        .expect("it shrinks");
    match reader.body(&head, "GET").await {
        Body::Cut(part) => assert!(part.len() <= 10_000_000 && content.starts_with(&part)),
        Body::Whole(_) => panic!("more than there was"),
    }
}

#[tokio::test]
async fn compressed_siblings_go_to_those_who_take_them() {
    let keys = "precompressed = [\"br\", \"gzip\"]";
    let (gateway, _worker) = serving(keys, |files| {
        write(files, "a.css", "plain");
        write(files, "a.css.gz", "gzip!");
        write(files, "a.css.br", "br!");
        write(files, "b.css", "plain");
        write(files, "b.css.gz", "old");
        let hour = SystemTime::now() - Duration::from_secs(3600);
        let old = File::options().write(true).open(files.join("b.css.gz"));
        old.and_then(|old| old.set_modified(hour)).expect("a time");
        write(files, "c.css.gz", "alone");
    })
    .await;
    let get = async |path: &str, accept: &str| {
        let request = gateway.get(path).header("Accept-Encoding", accept);
        let got = request.await;
        let coding = got.header("content-encoding").map(str::to_owned);
        assert_eq!(got.header("vary").is_some(), got.status() == 200, "{path}");
        (got.status(), coding, got)
    };
    for (path, accept, status, coding, text) in [
        ("/static/a.css", "gzip, br", 200, Some("br"), "br!"),
        ("/static/a.css", "gzip", 200, Some("gzip"), "gzip!"),
        (
            "/static/a.css",
            "gzip, br;q=0.5",
            200,
            Some("gzip"),
            "gzip!",
        ),
        ("/static/a.css", "identity", 200, None, "plain"),
        ("/static/b.css", "gzip, br", 200, None, "plain"),
        (
            "/static/c.css",
            "gzip",
            404,
            None,
            "there is no such file\n",
        ),
    ] {
        let (got_status, got_coding, got) = get(path, accept).await;
        assert_eq!(
            (got_status, got_coding.as_deref(), got.text()),
            (status, coding, text),
            "{path}"
        );
    }
    let (_, _, plain) = get("/static/a.css", "identity").await;
    let (_, _, coded) = get("/static/a.css", "br").await;
    assert_eq!(coded.header("content-type"), plain.header("content-type"));
    assert_ne!(coded.header("etag"), plain.header("etag"));
    let etag = coded.header("etag").expect("it has one");
    let again = gateway.get("/static/a.css").header("Accept-Encoding", "br");
    assert_eq!(again.header("If-None-Match", etag).await.status(), 304);
}

#[tokio::test]
async fn caches_are_told_what_the_mount_says() {
    let keys = "immutable = \"hashed\"\ncache_control = \"max-age=60\"\n\
                headers = [\"Access-Control-Allow-Origin: *\"]";
    let (gateway, _worker) = serving(keys, |files| {
        write(files, "base.4f5a2e1b3c9d.css", "hashed");
        write(files, "base.css", "plain");
    })
    .await;
    let hashed = gateway.get("/static/base.4f5a2e1b3c9d.css").await;
    let for_ever = "public, max-age=31536000, immutable";
    assert_eq!(hashed.header("cache-control"), Some(for_ever));
    let plain = gateway.get("/static/base.css").await;
    assert_eq!(plain.header("cache-control"), Some("max-age=60"));
    assert_eq!(plain.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        gateway.get("/static/none").await.header("cache-control"),
        None
    );
}

#[tokio::test]
async fn a_folder_with_an_index_is_named_with_a_slash() {
    let (gateway, _worker) = serving("index = \"index.html\"", |files| {
        write(files, "index.html", "top");
        write(files, "s p@ce/index.html", "below");
        write(files, "without/x", "");
    })
    .await;
    assert_eq!(gateway.get("/static/").await.ok(), "top");
    assert_eq!(gateway.get("/static/s%20p@ce/").await.ok(), "below");
    for (path, to) in [
        ("/static", "/static/"),
        ("/static?a=%20b", "/static/?a=%20b"),
        ("/static/s%20p%40ce?x", "/static/s%20p@ce/?x"),
    ] {
        let got = gateway.get(path).await;
        assert_eq!((got.status(), got.header("location")), (301, Some(to)));
    }
    assert_eq!(gateway.get("/static/without").await.status(), 404);
    assert_eq!(gateway.get("/static/without/").await.status(), 404);
}

#[tokio::test]
async fn what_falls_through_is_the_applications() {
    let configuration = "[[static]]\npath = \"/\"\nroot = \"./files\"\nfallthrough = true\n\
                         [[route]]\npath = \"/static/app\"\n";
    let (gateway, worker) = started(configuration, |files| {
        some(files);
        write(files, "static/app", "a file in the way of a route");
    })
    .await;
    assert_eq!(gateway.get("/a.css").await.ok(), "body {}");
    for (method, path) in [("GET", "/none"), ("GET", "/static/app"), ("POST", "/a.css")] {
        let got = gateway.request(method, path).body("body").await;
        assert_eq!(got.ok(), "from the application", "{method} {path}");
    }
    assert_eq!(
        worker.requests(),
        ["GET /none", "GET /static/app", "POST /a.css"]
    );
}

#[tokio::test]
async fn a_reload_changes_mounts_and_a_missing_root_may_come_later() {
    let (gateway, _worker) = serving("", some).await;
    let folder = gateway.folder();
    let text = "[[static]]\npath = \"/media\"\nroot = \"./later\"\n";
    fs::write(folder.join("layby.toml"), text).expect("the folder is ours");
    gateway.signal(Signal::HUP);
    gateway.logged("configuration reloaded").await;
    gateway.logged("no such folder").await;
    assert_eq!(
        gateway.get("/static/a.css").await.ok(),
        "from the application"
    );
    assert_eq!(gateway.get("/media/f.txt").await.status(), 404);
    write(&folder.join("later"), "f.txt", "there now");
    assert_eq!(gateway.get("/media/f.txt").await.ok(), "there now");
}

// Answers that name a file --------------------------------------------------------------

const INTERNAL: &str = "[[static]]\npath = \"/protected\"\nroot = \"./files\"\ninternal = true\n";

async fn handing_off() -> (Gateway, Worker) {
    started(INTERNAL, |files| {
        write(files, "photo.txt", "a photo");
        write(files, "s p\u{e4}ce.txt", "spaced");
        write(files, ".draft", "a draft");
    })
    .await
}

async fn handed(gateway: &Gateway, headers: &str) -> Response {
    gateway.get(&format!("/handed?{headers}")).await
}

#[tokio::test]
async fn a_file_that_the_application_names_is_sent_with_its_headers() {
    let (gateway, _worker) = handing_off().await;
    let named = "X-Accel-Redirect=/protected/photo.txt&Content-Disposition=inline&Set-Cookie=a:1&Set-Cookie=b:2&ETag=%22own%22";
    let got = handed(&gateway, named).await;
    assert_eq!(got.ok(), "a photo");
    assert_eq!(got.header("x-accel-redirect"), None);
    assert_eq!(got.header("content-type"), Some("text/x-own"));
    assert_eq!(got.header("content-disposition"), Some("inline"));
    assert_eq!(got.head.header_lines("set-cookie"), ["a:1", "b:2"]);
    assert_eq!(got.header("content-length"), Some("7"));
    let etag = got.header("etag").expect("it has one");
    assert!(!etag.contains("own"));
    let target = format!("/handed?{named}");
    let part = gateway.get(&target).header("Range", "bytes=2-").await;
    assert_eq!((part.status(), part.text()), (206, "photo"));
    assert_eq!(part.header("content-range"), Some("bytes 2-6/7"));
    let again = gateway.get(&target).header("If-None-Match", etag).await;
    assert_eq!((again.status(), again.text()), (304, ""));
    let posted = gateway.post(&target, "x").header("Range", "bytes=2-").await;
    assert_eq!(posted.ok(), "a photo");
    // The escapes of a query arrive as they are sent.
    let escaped = handed(&gateway, "X-Accel-Redirect=/protected/s%20p%C3%A4ce.txt").await;
    assert_eq!(escaped.ok(), "spaced");
    let hidden = handed(&gateway, "X-Accel-Redirect=/protected/.draft").await;
    assert_eq!(hidden.ok(), "a draft");
    gateway.rests().await;
}

#[tokio::test]
async fn the_status_of_the_application_stays_and_its_file_is_whole() {
    let (gateway, _worker) = handing_off().await;
    let target = "/handed?status=403&X-Accel-Redirect=/protected/photo.txt";
    let got = gateway.get(target).header("Range", "bytes=0-0").await;
    assert_eq!((got.status(), got.text()), (403, "a photo"));
    assert_eq!(
        got.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
}

#[tokio::test]
async fn clients_cannot_reach_internal_files() {
    let (gateway, worker) = handing_off().await;
    assert_eq!(gateway.get("/protected/photo.txt").await.status(), 404);
    assert_eq!(gateway.get("/protected").await.status(), 404);
    assert_eq!(worker.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_cannot_be_had_is_the_applications_mistake_or_404() {
    let (gateway, _worker) = handing_off().await;
    for (path, status, said) in [
        ("/protected/none", 404, "a file that is not there"),
        ("/protected", 404, "a file that is not there"),
        ("/elsewhere/photo.txt", 502, "names no path of a [[static]]"),
        ("/protected/../layby.toml", 502, "is no path of a file"),
        ("/protected/%2e%2e/layby.toml", 502, "is no path of a file"),
        ("@named", 502, "names no path of a [[static]]"),
    ] {
        let got = handed(&gateway, &format!("X-Accel-Redirect={path}")).await;
        assert_eq!(got.status(), status, "{path}");
        assert!(!got.text().contains("own body"));
        gateway.logged(said).await;
    }
    let twice = "X-Accel-Redirect=/protected/photo.txt&x-accel-redirect=/protected/photo.txt";
    assert_eq!(handed(&gateway, twice).await.status(), 502);
    gateway.rests().await;
}

#[tokio::test]
async fn x_sendfile_names_a_path_below_a_root_of_its_own() {
    let (gateway, _worker) = started("sendfile_root = \"./files\"", |files| {
        write(files, "a b.txt", "spaced");
        write(files, "100%25.txt", "plain");
        write(files, "50%.txt", "escaped");
        symlink("/etc/passwd", files.join("passwd")).expect("a link");
    })
    .await;
    let root = gateway.folder().join("files");
    for (path, status, text) in [
        ("a%20b.txt", 200, "spaced"),
        ("100%25.txt", 200, "plain"),
        ("50%25.txt", 200, "escaped"),
        ("none", 404, "there is no such file\n"),
        ("passwd", 404, "there is no such file\n"),
        (
            "../layby.toml",
            502,
            "the application gave an invalid answer\n",
        ),
    ] {
        let named = format!("X-Sendfile={}/{path}", root.display());
        let got = handed(&gateway, &named).await;
        assert_eq!((got.status(), got.text()), (status, text), "{path}");
        assert_eq!(got.header("x-sendfile"), None);
    }
    let got = handed(&gateway, "X-Sendfile=/etc/passwd").await;
    assert_eq!(got.status(), 502);
    gateway.logged("not below a sendfile_root").await;
}

#[tokio::test]
async fn without_configuration_the_headers_are_none_of_ours() {
    let (gateway, _worker) = serving("", some).await;
    let got = handed(
        &gateway,
        "X-Accel-Redirect=/static/a.css&X-Sendfile=/etc/passwd",
    )
    .await;
    assert_eq!(got.ok(), "the application's own body");
    assert_eq!(got.header("x-accel-redirect"), Some("/static/a.css"));
    assert_eq!(got.header("x-sendfile"), Some("/etc/passwd"));
}
