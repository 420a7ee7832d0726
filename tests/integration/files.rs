//! Answers in files: the worker names a part of a file, and the gateway sends it without the worker.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::support::frames::{Frame, flag, kind};
use crate::support::gateway::{self, Gateway};
use crate::support::http::{Body, Connection};
use crate::support::worker::{self, Answer, Ended, Job, Worker};

/// One slot whose `/file` is this script.
async fn serving<F>(script: impl Fn(Job) -> F + Send + Sync + 'static) -> (Gateway, Worker)
where
    F: Future<Output = Ended> + Send + 'static,
{
    let gateway = gateway::new(1).run().await;
    let worker = worker::new(1).on("/file", script).run(&gateway).await;
    (gateway, worker)
}

/// `/file` answers with this part of a file that holds these bytes.
async fn serving_file(bytes: &[u8], part: [u64; 2], answer: Answer) -> (Gateway, Worker) {
    let file = Arc::new(file(bytes));
    serving(move |job| {
        let (file, answer) = (Arc::clone(&file), answer.clone());
        async move { job.respond_with(answer, &*file, part).await }
    })
    .await
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("room");
    file
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn a_part_of_a_file_is_the_body() {
    let content = bytes(1_000_000);
    for (offset, len) in [(0, 1_000_000), (1, 999_998), (999_999, 1), (500, 0)] {
        let answer = Answer::new(200).header("Content-Type", "image/png");
        let (gateway, _worker) = serving_file(&content, [offset, len], answer).await;
        let got = gateway.get("/file").await;
        assert_eq!(got.header("content-type"), Some("image/png"));
        assert_eq!(got.header("content-length"), Some(len.to_string().as_str()));
        assert!(got.bytes() == &content[offset as usize..][..len as usize]);
        gateway.rests().await;
    }
}

#[tokio::test]
async fn a_connection_goes_on_after_a_file() {
    let (gateway, _worker) = serving_file(b"content", [0, 7], Answer::new(200)).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        client.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.response().await.ok(), "content");
    }
}

#[tokio::test]
async fn a_range_keeps_the_workers_status_and_length() {
    let answer = Answer::new(206)
        .header("Content-Range", "bytes 2-4/7")
        .header("Content-Length", "3");
    let (gateway, _worker) = serving_file(b"content", [2, 3], answer).await;
    let got = gateway.get("/file").await;
    assert_eq!((got.status(), got.text()), (206, "nte"));
    assert_eq!(got.header("content-length"), Some("3"));
    assert_eq!(got.header("content-range"), Some("bytes 2-4/7"));
}

#[tokio::test]
async fn the_answer_to_head_has_the_files_length_and_no_body() {
    for announced in [false, true] {
        let mut answer = Answer::new(200);
        if announced {
            answer = answer.header("Content-Length", "7");
        }
        let (gateway, _worker) = serving_file(b"content", [0, 7], answer).await;
        let mut client = gateway.connect().await;
        for _ in 0..2 {
            client.send("HEAD /file HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let head = client.response_to("HEAD").await;
            assert_eq!(head.header("content-length"), Some("7"));
        }
    }
}

#[tokio::test]
async fn a_slow_reader_of_a_file_holds_no_slot_and_no_spool() {
    let content = bytes(20_000_000);
    let part = [0, content.len() as u64];
    let (gateway, _worker) = serving_file(&content, part, Answer::new(200)).await;
    let mut reader = Connection::narrow(gateway.tcp()).await;
    reader.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = reader.head().await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    assert_eq!(gateway.metric("layby_spool_bytes").await, 0.0);
    let body = reader.body(&head, "GET").await;
    assert!(body == Body::Whole(content), "another body arrived");
}

#[tokio::test]
async fn no_descriptor_is_left_when_the_client_leaves() {
    let content = bytes(20_000_000);
    let part = [0, content.len() as u64];
    let (gateway, _worker) = serving_file(&content, part, Answer::new(200)).await;
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    let before = gateway.metric("process_open_fds").await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut reader = Connection::narrow(gateway.tcp()).await;
        reader.send("GET /file HTTP/1.1\r\nHost: a\r\n\r\n").await;
        reader.head().await;
        readers.push(reader);
    }
    // Five connections, and more than that.
    assert!(gateway.metric("process_open_fds").await > before + 5.0);
    drop(readers);
    gateway
        .until_metric("process_open_fds", |open| open <= before)
        .await;
}

#[tokio::test]
async fn a_file_that_is_too_short_is_seen_as_a_cut() {
    let (gateway, _worker) = serving_file(b"some of it", [0, 11], Answer::new(200)).await;
    let answer = gateway.get("/file").await;
    assert_eq!(answer.header("content-length"), Some("11"));
    assert_eq!(answer.body, Body::Cut(Vec::new()));

    let large = bytes(400_000);
    let (gateway, _worker) = serving_file(&large, [0, 400_001], Answer::new(200)).await;
    let answer = gateway.get("/file").await;
    assert!(matches!(&answer.body, Body::Cut(part) if large.starts_with(part)));
    assert_eq!(gateway.get("/ping").await.ok(), "pong");
    gateway.rests().await;
}

#[tokio::test]
async fn what_is_no_file_is_a_bad_answer_and_the_worker_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    let (socket, _other) = UnixStream::pair().expect("sockets");
    let directory = File::open(folder.path()).expect("a folder");
    let writable = File::create(folder.path().join("file")).expect("a file");
    let descriptors: [OwnedFd; 4] = [
        pipe.into(),
        socket.into(),
        directory.into(),
        writable.into(),
    ];
    for descriptor in descriptors {
        let descriptor = Arc::new(descriptor);
        let (gateway, worker) = serving(move |job| {
            let descriptor = Arc::clone(&descriptor);
            async move {
                job.respond_with(Answer::new(200), &*descriptor, [0, 1])
                    .await
            }
        })
        .await;
        for method in ["GET", "HEAD"] {
            let answer = gateway.request(method, "/file").await;
            assert_eq!(answer.status(), 502);
        }
        gateway.logged("invalid answer from the application").await;
        assert_eq!(gateway.get("/ping").await.ok(), "pong");
        assert_eq!(worker.open_slots().len(), 1);
    }
}

#[tokio::test]
async fn a_length_that_is_not_the_parts_is_a_bad_answer() {
    let answer = Answer::new(200).header("Content-Length", "6");
    let (gateway, _worker) = serving_file(b"content", [0, 7], answer).await;
    assert_eq!(gateway.get("/file").await.status(), 502);
    gateway.rests().await;
}

#[tokio::test]
async fn frames_and_descriptors_that_do_not_agree_end_the_worker() {
    let place = |offset: u64, len: u64| [offset, len].map(u64::to_be_bytes).concat();
    let frame = |flags, body| Frame {
        flags,
        body,
        ..Answer::new(200).head()
    };
    for (with, frame, why) in [
        (
            false,
            frame(flag::FD | flag::READY, place(0, 1)),
            "a frame without its descriptor",
        ),
        (
            true,
            frame(flag::READY, place(0, 1)),
            "a descriptor without a frame",
        ),
        (
            true,
            frame(flag::FD | flag::MORE, place(0, 1)),
            "both in a file and in parts",
        ),
        (
            true,
            frame(flag::FD | flag::READY, vec![0; 15]),
            "not a place in a file",
        ),
        (
            true,
            frame(flag::FD | flag::READY, place(u64::MAX, 1)),
            "beyond the end of every file",
        ),
        (true, Frame::new(kind::PARK), "a descriptor without a frame"),
    ] {
        let (head, body, kind, flags, aux) =
            (frame.head, frame.body, frame.kind, frame.flags, frame.aux);
        let (gateway, _worker) = serving(move |job| {
            let (request, epoch) = job.tag();
            let frame = Frame {
                kind,
                flags,
                aux,
                request,
                epoch,
                head: head.clone(),
                body: body.clone(),
                file: None,
            };
            async move {
                if with {
                    job.send_raw_with(frame, file(b"content")).await;
                } else {
                    job.send_raw(&frame).await;
                }
                Ok(())
            }
        })
        .await;
        assert_eq!(gateway.get("/file").await.status(), 502, "{why}");
        gateway.logged(why).await;
    }
}
