use std::sync::Arc;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

/// The status that a head is refused with; None if it is good, or not yet at its end.
fn refusal(head: &[u8]) -> Option<u16> {
    Head::default()
        .read(head)
        .err()
        .map(|refusal| refusal.0.as_u16())
}

fn with(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes()
}

#[test]
fn a_head_says_where_its_body_ends() {
    for (lines, body) in [
        ("X-A: 1", Body::Sized(0)),
        ("Content-Length: 0", Body::Sized(0)),
        ("content-length:\t007 ", Body::Sized(7)),
        (
            "CONTENT-LENGTH: 9223372036854775807",
            Body::Sized(i64::MAX as u64),
        ),
        ("Transfer-Encoding: chunked", Body::Chunked),
        ("transfer-encoding:ChunkeD\t", Body::Chunked),
        (
            "Content-Length-X: 5\r\nX-Transfer-Encoding: x",
            Body::Sized(0),
        ),
    ] {
        let bytes = with(lines);
        let whole = Head::default().read(&bytes).expect(lines).expect(lines);
        assert_eq!((whole.len, whole.body), (bytes.len(), body), "{lines}");
    }
}

#[test]
fn a_head_that_can_be_read_in_two_ways_is_refused() {
    for (lines, status) in [
        ("Content-Length: 5\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("Content-Length: 5, 5", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: -5", 400),
        ("Content-Length: 0x5", 400),
        ("Content-Length: 5 5", 400),
        ("Content-Length: 5;", 400),
        ("Content-Length:", 400),
        ("Content-Length: \u{b2}", 400),
        ("Content-Length: 9223372036854775808", 400),
        ("Content-Length: 99999999999999999999", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            400,
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            400,
        ),
        ("Transfer-Encoding: chunked, chunked", 400),
        ("Transfer-Encoding: chunked, gzip", 400),
        ("Transfer-Encoding: gzip", 400),
        ("Transfer-Encoding: identity", 400),
        ("Transfer-Encoding:", 400),
        ("Transfer-Encoding: , chunked", 400),
        ("Transfer-Encoding: chunked,", 400),
        ("Transfer-Encoding: xchunked", 400),
        ("Transfer-Encoding: \"chunked\"", 400),
        ("Transfer-Encoding: chunked;q=1", 400),
        ("Transfer-Encoding: \u{b}chunked", 400),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Transfer-Encoding: gzip,deflate , chunked", 501),
        ("X-A: 1\r\n folded", 400),
        ("X-A: 1\r\n\tfolded", 400),
        ("X-A : 1", 400),
        (" X-A: 1", 400),
        ("X A: 1", 400),
        (": 1", 400),
        ("X-A", 400),
        ("X-Caf\u{e9}: 1", 400),
        ("X-A: \0", 400),
        ("X-A: \u{7f}", 400),
        ("X-A: 1\rX-B: 2", 400),
        ("X-A: 1\r", 400),
        ("X-A: 1\nX-B: 2", 400),
    ] {
        assert_eq!(refusal(&with(lines)), Some(status), "{lines:?}");
    }
}

#[test]
fn a_request_line_is_three_words() {
    for line in [
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /a b HTTP/1.1",
        "GET\t/ HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 extra",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/1.",
        "GET / http/1.1",
        "GET / HTTP/01.1",
        "G\u{e9}T / HTTP/1.1",
        "GE(T / HTTP/1.1",
        "GET a HTTP/1.1 ",
        "GET a/b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a?b#c HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET http://a b/ HTTP/1.1",
        "GET http://\u{e9}/ HTTP/1.1",
        "PRI * HTTP/2.0",
        "\u{16}\u{3}\u{1}",
    ] {
        let head = format!("{line}\r\nHost: a\r\n\r\n");
        assert_eq!(refusal(head.as_bytes()), Some(400), "{line:?}");
    }
    for line in [
        "GET / HTTP/1.1",
        "get / HTTP/1.1",
        "X!#$%&'*+-.^_`|~9 / HTTP/1.0",
        "GET http://a/b?c HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT a:443 HTTP/1.1",
        "\r\n\r\nGET /\"<\u{e9}>?\"<\u{e9}> HTTP/1.1",
    ] {
        let head = format!("{line}\r\nHost: a\r\n\r\n");
        assert_eq!(refusal(head.as_bytes()), None, "{line:?}");
    }
}

#[test]
fn http_1_0_knows_no_transfer_codings() {
    let head = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refusal(head), Some(400));
}

#[test]
fn a_head_has_bounds() {
    let of = |target: usize, value: usize, headers: usize| {
        let (target, value) = ("a".repeat(target), "a".repeat(value));
        let lines = "X-A: 1\r\n".repeat(headers);
        format!("GET /{target} HTTP/1.1\r\nX-V: {value}\r\n{lines}\r\n").into_bytes()
    };
    for (head, status) in [
        (of(32_000, 0, 0), None),
        (of(33_000, 0, 0), Some(414)),
        (of(100_000, 0, 0), Some(414)),
        (of(0, 65_000, 0), None),
        (of(0, 66_000, 0), Some(431)),
        (of(0, 0, 99), None),
        (of(0, 0, 100), Some(431)),
        (
            format!("GET /{} HTTP/1.1\r\n", "\"".repeat(11_000)).into_bytes(),
            Some(414),
        ),
    ] {
        assert_eq!(refusal(&head), status, "{}", head.len());
    }
    // Before the end of anything is in sight.
    assert_eq!(refusal(&[b'A'; 40_000]), Some(414));
    assert_eq!(
        refusal(&[b"GET / HTTP/1.1\r\nX-A: ".as_slice(), &[b'a'; 70_000]].concat()),
        Some(431)
    );
}

#[test]
fn a_bad_head_is_not_waited_for() {
    assert_eq!(refusal(b"\x16"), Some(400));
    assert_eq!(refusal(b"\r\n\x80"), Some(400));
    assert_eq!(refusal(b"GET /\r\n"), Some(400));
    assert_eq!(refusal(b"\n"), Some(400));
    assert_eq!(
        refusal(b"GET / HTTP/1.1\r\nContent-Length: x\r\n"),
        Some(400)
    );
    assert_eq!(refusal(b"GET / HTTP/1.1\r\nContent-Length: x"), None);
}

/// What hyper would read, and how it ends.
async fn through(bytes: &[u8], cut: usize) -> (Vec<u8>, std::io::Result<usize>, Arc<Heads>) {
    let heads = Arc::new(Heads::default());
    let stream = in_parts(bytes, cut);
    let mut framed = Framed::new(stream, Arc::clone(&heads));
    let mut read = Vec::new();
    let reading = framed.read_to_end(&mut read);
    // After a refused head it would wait for ever.
    let end = tokio::select! {
        biased;
        end = reading => end,
        () = std::future::ready(()) => Ok(0),
    };
    (read, end, heads)
}

/// A stream of so many bytes at a time.
fn in_parts(bytes: &[u8], cut: usize) -> impl AsyncRead + Unpin {
    let parts: Vec<_> = bytes
        .chunks(cut)
        .map(|part| Ok::<_, io::Error>(bytes::Bytes::copy_from_slice(part)))
        .collect();
    tokio_util::io::StreamReader::new(futures_util::stream::iter(parts))
}

#[tokio::test]
async fn what_is_good_passes_as_it_is_however_it_comes() {
    let bytes = b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nGET\
        POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nGET\r\n0\r\nA: b\r\n\r\n\
        GET /c HTTP/1.0\r\n\r\n";
    for cut in [1, 2, 3, 7, 50, 1000] {
        let (read, end, heads) = through(bytes, cut).await;
        assert_eq!(read, bytes, "{cut}");
        assert!(end.is_ok());
        for _ in 0..3 {
            assert_eq!(heads.next_request(), None);
        }
    }
}

#[tokio::test]
async fn what_no_uri_holds_is_escaped() {
    let bytes = "GET /\"`caf\u{e9}\"?<a>=\"\\^{|}` HTTP/1.1\r\nHost: a\r\nX: \"\u{e9}\"\r\n\r\n\
                 GET / HTTP/1.1\r\n\r\n";
    let passed = "GET /%22%60caf%C3%A9%22?%3Ca%3E=%22\\^{|}` HTTP/1.1\r\nHost: a\r\nX: \"\u{e9}\"\r\n\r\n\
                  GET / HTTP/1.1\r\n\r\n";
    for cut in [1, 9, 1000] {
        let (read, ..) = through(bytes.as_bytes(), cut).await;
        assert_eq!(String::from_utf8(read).expect("as it was"), passed);
    }
}

#[tokio::test]
async fn a_request_stands_for_the_head_that_is_refused() {
    let bytes = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
        HEAD /b?\xff HTTP/1.1\r\naccept: application/json\r\nX: \0\r\n\r\nGET /c HTTP/1.1\r\n\r\n";
    for cut in [1, 9, 30, 1000] {
        let (read, end, heads) = through(bytes, cut).await;
        let text = String::from_utf8(read).expect("text");
        let (first, second) = text.split_at(28);
        assert_eq!(first, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(second.starts_with("HEAD / HTTP/1.1\r\n"), "{cut} {second}");
        assert_eq!(end.expect("it waits"), 0);
        assert_eq!(heads.next_request(), None);
        let refused = heads.next_request().expect("the second");
        assert_eq!(refused.refusal.0, 400);
        assert_eq!(refused.target, "/b?%FF");
        assert_eq!(heads.next_request(), None);
    }
}

#[tokio::test]
async fn a_malformed_body_ends_in_an_error() {
    let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello";
    for cut in [1, 7, 1000] {
        let (read, end, _) = through(bytes, cut).await;
        assert_eq!(read, &bytes[..bytes.len() - 6]);
        assert_eq!(
            end.expect_err("malformed").kind(),
            io::ErrorKind::InvalidData
        );
    }
}

#[tokio::test]
async fn a_head_that_has_begun_can_be_given_up() {
    let heads = Arc::new(Heads::default());
    let (mut client, server) = tokio::io::duplex(64);
    let mut framed = Framed::new(server, Arc::clone(&heads));
    assert!(!heads.give_up(), "nothing has come");
    let mut room = [0; 100];
    tokio::io::AsyncWriteExt::write_all(&mut client, b"PUT /slow HT")
        .await
        .expect("room");
    tokio::select! {
        biased;
        _ = framed.read(&mut room) => panic!("half a head"),
        () = std::future::ready(()) => {}
    }
    assert!(heads.is_mid_head());
    assert!(heads.give_up());
    let len = framed
        .read(&mut room)
        .await
        .expect("a request that stands for it");
    assert_eq!(&room[..len], b"PUT / HTTP/1.1\r\n\r\n");
    let refused = heads.next_request().expect("refused");
    assert_eq!(
        (refused.refusal.0.as_u16(), refused.target.path()),
        (408, "/slow")
    );
}

#[tokio::test]
async fn a_tunnel_passes_everything() {
    let heads = Arc::new(Heads::default());
    let (mut client, server) = tokio::io::duplex(64);
    let mut framed = Framed::new(server, Arc::clone(&heads));
    let request = b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut client, request)
        .await
        .expect("room");
    let mut room = [0; 100];
    let len = framed.read(&mut room).await.expect("a request");
    assert_eq!(&room[..len], request);
    heads.open_tunnel();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"\x81\n\0")
        .await
        .expect("room");
    let len = framed.read(&mut room).await.expect("bytes");
    assert_eq!(&room[..len], b"\x81\n\0");
}

/// Lines of heads, good ones and what stands in the way of good ones.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let lines: &[&[u8]] = &[
        b"Host: a",
        b"Host: b:80",
        b"Host:",
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"content-length : 3",
        b"Content-Length: 4, 4",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"transfer-encoding: identity",
        b"Connection: close",
        b"Connection: keep-alive, Host, X-A",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"X-A: 1",
        b"X_A: 1",
        b"Cookie: a=1",
        b" folded",
        b"X-A:\xe9\t",
        b"X-A: \r",
    ];
    prop_oneof![
        20 => proptest::sample::select(lines.to_vec()).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = proptest::sample::select(vec![
        "GET", "POST", "HEAD", "get", "X-Y", "CONNECT", "OPTIONS",
    ]);
    let target = proptest::sample::select(vec![
        "/",
        "/a?b=c",
        "//a/./b",
        "/%00",
        "*",
        "http://a/x",
        "http://a",
        "a:80",
        "/\"<\u{e9}",
        "/a#b",
        "/a b",
        "",
    ]);
    let version = proptest::sample::select(vec![
        "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "",
    ]);
    let body: &[&[u8]] = &[
        b"",
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"3;x\r\nabc\r\n0\r\nA: b\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"\r\n",
    ];
    let end = prop_oneof![30 => Just(&b"\r\n"[..]), 1 => Just(&b"\n"[..])];
    (
        (method, target, version),
        proptest::collection::vec((line(), end), 0..5),
        proptest::sample::select(body.to_vec()),
        any::<bool>(),
    )
        .prop_map(|((method, target, version), lines, body, host)| {
            let mut bytes = format!("{method} {target} {version}\r\n").into_bytes();
            if host {
                bytes.extend(b"Host: a\r\n");
            }
            for (line, end) in lines {
                bytes.extend(line);
                bytes.extend(end);
            }
            bytes.extend(b"\r\n");
            bytes.extend(body);
            bytes
        })
}

proptest! {
    #[test]
    fn what_the_application_gets_is_what_an_obvious_reader_reads(
        requests in proptest::collection::vec(request(), 1..4),
        noise in proptest::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
        cut in proptest::sample::select(vec![1usize, 3, 16, 100, 8192]),
    ) {
        let mut bytes = requests.concat();
        if let Some((at, byte)) = noise {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        reference::check(&bytes, cut);
    }
}
