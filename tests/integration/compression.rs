//! Answers compressed on their way out.

use std::fs;
use std::io::Read;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Response};
use crate::support::within;
use crate::support::worker::{self, Answer, Worker};

const ON: &str = "[compression]\nalgorithms = [\"zstd\", \"br\", \"gzip\"]\n";

fn page(len: usize) -> String {
    let line = "<p>One line of a page, and another one like it.</p>\n";
    line.repeat(len / line.len() + 1)[..len].to_owned()
}

/// One slot; `/page?SIZE&HEADER=VALUE&…` is a page of that size with these headers.
async fn serving(configuration: &str) -> (Gateway, Worker) {
    let builder = gateway::new(1).file(configuration);
    let files = builder.folder().join("files");
    fs::create_dir(&files).expect("the folder is ours");
    fs::write(files.join("large.css"), page(1_000_000)).expect("room");
    let gateway = builder.run().await;
    let worker = worker::new(1)
        .on("/page", |job| async move {
            let mut parts = job.environ("QUERY_STRING").split('&');
            let size = parts.next().and_then(|size| size.parse().ok());
            let size: usize = size.expect("a size");
            let mut answer = Answer::new(200);
            let mut typed = false;
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                typed |= name == "Content-Type";
                answer = match name {
                    "status" => Answer::new(value.parse().expect("a status")),
                    name => answer.header(name, &value.replace('+', " ").replace('\'', "\"")),
                };
            }
            if !typed {
                answer = answer.header("Content-Type", "text/html; charset=utf-8");
            }
            job.respond(answer.body(page(size))).await
        })
        .run(&gateway)
        .await;
    (gateway, worker)
}

async fn get(gateway: &Gateway, target: &str, accept: &str) -> Response {
    gateway.get(target).header("Accept-Encoding", accept).await
}

fn plain(got: &Response) -> String {
    let mut coded = got.bytes();
    let mut text = String::new();
    match got.header("content-encoding") {
        None => return got.text().to_owned(),
        Some("gzip") => flate2::read::GzDecoder::new(coded).read_to_string(&mut text),
        Some("br") => brotli::Decompressor::new(&mut coded, 4096).read_to_string(&mut text),
        Some("zstd") => zstd::stream::read::Decoder::new(coded)
            .expect("memory")
            .read_to_string(&mut text),
        Some(other) => panic!("coded as {other}"),
    }
    .expect("it is whole");
    text
}

#[tokio::test]
async fn an_answer_is_compressed_as_its_client_likes_it() {
    let (gateway, _worker) = serving(ON).await;
    // In one piece, and as a stream.
    for size in [5_000, 2_000_000] {
        let target = format!("/page?{size}&ETag='1'");
        for (accept, coding) in [
            ("gzip, br, zstd", Some("zstd")),
            ("gzip, br", Some("br")),
            ("gzip", Some("gzip")),
            ("gzip;q=0.5, br;q=0.4", Some("gzip")),
            ("identity", None),
            ("gzip;q=0", None),
        ] {
            let got = get(&gateway, &target, accept).await;
            assert_eq!(got.header("content-encoding"), coding, "{accept}");
            assert_eq!(got.header("vary"), Some("accept-encoding"));
            let etag = if coding.is_some() { "W/\"1\"" } else { "\"1\"" };
            assert_eq!(got.header("etag"), Some(etag));
            assert_eq!(plain(&got), page(size), "{accept}");
            if coding.is_some() {
                assert!(got.bytes().len() < size / 10);
            }
        }
    }
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_not_worth_it_or_must_not_be_changed_is_not() {
    let (gateway, _worker) = serving(ON).await;
    for target in [
        "/page?500",
        "/page?5000&Content-Type=image/png",
        "/page?5000&Content-Type=text/event-stream",
        "/page?5000&Content-Encoding=own",
        "/page?5000&Cache-Control=public,+no-transform",
        "/page?5000&status=206&Content-Range=bytes+0-4999/9999",
        "/page?5000&Repr-Digest=sha-256=:AA==:",
    ] {
        let got = get(&gateway, target, "gzip, br, zstd").await;
        let coding = got.header("content-encoding");
        assert!(matches!(coding, None | Some("own")), "{target}: {coding:?}");
        let len = got.bytes().len();
        assert_eq!(got.header("content-length"), Some(&*len.to_string()));
    }
    let kept = get(&gateway, "/page?5000&Vary=Cookie,+Accept-Encoding", "gzip").await;
    assert_eq!(kept.head.header_lines("vary"), ["Cookie, Accept-Encoding"]);
    let added = get(&gateway, "/page?5000&Vary=Cookie", "gzip").await;
    assert_eq!(
        added.head.header_lines("vary"),
        ["Cookie", "accept-encoding"]
    );
}

#[tokio::test]
async fn who_takes_nothing_plain_gets_even_a_short_answer_compressed() {
    let (gateway, _worker) = serving(ON).await;
    let got = get(&gateway, "/page?100", "gzip, identity;q=0").await;
    assert_eq!(got.header("content-encoding"), Some("gzip"));
    assert_eq!(plain(&got), page(100));
}

#[tokio::test]
async fn head_tells_what_get_would() {
    let (gateway, _worker) = serving(ON).await;
    let target = "/page?5000&ETag='1'";
    let request = gateway
        .request("HEAD", target)
        .header("Accept-Encoding", "br");
    let got = request.await;
    assert_eq!(got.header("content-encoding"), Some("br"));
    assert_eq!(got.header("etag"), Some("W/\"1\""));
    assert_eq!(got.header("content-length"), None);
}

#[tokio::test]
async fn nothing_is_compressed_unless_it_is_asked_for() {
    let (gateway, _worker) = serving("").await;
    let got = get(&gateway, "/page?5000", "gzip, br, zstd").await;
    assert_eq!(
        (got.header("content-encoding"), got.header("vary")),
        (None, None)
    );
}

#[tokio::test]
async fn a_stream_is_flushed_when_its_source_pauses() {
    let builder = gateway::new(1).file(ON);
    let gateway = builder.run().await;
    let script = |job: worker::Job| async move {
        let stop = job.stop();
        let head = Answer::new(200).header("Content-Type", "text/html");
        job.begin(head.body("first ")).await;
        // There is no more until the client has left.
        stop.notified().await;
        job.broken().await
    };
    let _worker = worker::new(1).on("/stream", script).run(&gateway).await;
    for coding in ["gzip", "br", "zstd"] {
        let mut client = TcpStream::connect(gateway.tcp()).await.expect("it listens");
        let request =
            format!("GET /stream HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("room");
        let mut came = Vec::new();
        let seen = async {
            while begun(coding, &came) != "first " {
                client.read_buf(&mut came).await.expect("it goes on");
            }
        };
        within("the first part", seen).await;
    }
}

/// What can be read of a body that has only begun, in chunks.
fn begun(coding: &str, came: &[u8]) -> String {
    let head = came.windows(4).position(|four| four == b"\r\n\r\n");
    let mut rest = head.map_or(&[][..], |end| &came[end + 4..]);
    let mut coded = Vec::new();
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let len = std::str::from_utf8(&rest[..line]).expect("digits");
        let len = usize::from_str_radix(len, 16).expect("digits");
        let Some(chunk) = rest.get(line + 2..line + 2 + len) else {
            break;
        };
        coded.extend_from_slice(chunk);
        rest = rest.get(line + 4 + len..).unwrap_or_default();
    }
    let mut plain = Vec::new();
    // That there is an end missing is no surprise.
    let _ = match coding {
        "gzip" => flate2::read::GzDecoder::new(&*coded).read_to_end(&mut plain),
        "br" => brotli::Decompressor::new(&*coded, 4096).read_to_end(&mut plain),
        _ => zstd::stream::read::Decoder::new(&*coded)
            .expect("memory")
            .read_to_end(&mut plain),
    };
    String::from_utf8(plain).expect("text")
}

#[tokio::test]
async fn a_cut_answer_is_cut_in_its_compressed_form_too() {
    let gateway = gateway::new(1).file(ON).run().await;
    let script = |job: worker::Job| async move {
        let head = Answer::new(200).header("Content-Type", "text/html");
        job.begin(head).await;
        job.more(page(200_000)).await;
        job.broken().await
    };
    let _worker = worker::new(1).on("/cut", script).run(&gateway).await;
    let got = get(&gateway, "/cut", "gzip").await;
    assert_eq!(got.header("content-encoding"), Some("gzip"));
    assert!(matches!(got.body, Body::Cut(_)));
}

#[tokio::test]
async fn a_large_file_is_compressed_as_it_is_read() {
    let configuration = format!("{ON}[[static]]\npath = \"/static\"\nroot = \"./files\"\n");
    let (gateway, _worker) = serving(&configuration).await;
    let got = get(&gateway, "/static/large.css", "br").await;
    assert_eq!(plain(&got), page(1_000_000));
    let etag = got.header("etag").expect("it has one");
    assert!(etag.starts_with("W/"));
    assert_eq!(got.header("accept-ranges"), None);
    let again = gateway
        .get("/static/large.css")
        .header("Accept-Encoding", "br");
    let again = again.header("If-None-Match", etag).await;
    assert_eq!(
        (again.status(), again.header("vary")),
        (304, Some("accept-encoding"))
    );
    let part = gateway
        .get("/static/large.css")
        .header("Accept-Encoding", "br");
    let part = part.header("Range", "bytes=0-9").await;
    assert_eq!((part.status(), part.text()), (206, "<p>One lin"));
    assert_eq!(part.header("content-encoding"), None);
    assert_eq!(part.header("vary"), Some("accept-encoding"));
}
