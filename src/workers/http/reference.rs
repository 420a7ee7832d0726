//! What an HTTP server answers, read in one piece and in many, and by a second reader of chunks that is
//! slow and obvious. For tests and fuzzing only.

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};

use super::body::{Framing, Piece};
use super::head::decode;

/// Panics unless the answer means the same when it comes in reads of such a size, has one framing at most,
/// and ends where the second reader finds its end.
pub fn check(stream: &[u8], size: usize, method: &Method, upgrades: bool) {
    let at_once = answered(stream, stream.len().max(1), method, upgrades);
    assert_eq!(answered(stream, size, method, upgrades), at_once);
    let Ok(answered) = at_once else { return };
    let lines = |name| answered.headers.get_all(name).iter().count();
    assert!(lines(CONTENT_LENGTH) + lines(TRANSFER_ENCODING) <= 1);
    if answered.chunked && answered.whole {
        let body = &stream[answered.head..];
        let end = body.len() - answered.left;
        assert_eq!(unchunked(body), Some((answered.body, end)));
    }
}

/// What is made of an answer.
#[derive(Debug, PartialEq)]
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    keeps: bool,
    chunked: bool,
    /// Where the head ends, and how much is left of the stream.
    head: usize,
    left: usize,
    body: Vec<u8>,
    whole: bool,
}

fn answered(
    stream: &[u8],
    size: usize,
    method: &Method,
    upgrades: bool,
) -> Result<Answered, Option<&'static str>> {
    let mut buffer = BytesMut::new();
    let mut ahead = stream;
    let head = loop {
        match decode(&mut buffer, method, upgrades).map_err(Some)? {
            Some(head) => break head,
            None if ahead.is_empty() => return Err(None),
            None => buffer.extend_from_slice(cut(&mut ahead, size)),
        }
    };
    let mut answered = Answered {
        status: head.status,
        headers: head.headers,
        keeps: head.keeps,
        chunked: matches!(head.body, Framing::Chunked(_)),
        head: stream.len() - ahead.len() - buffer.len(),
        left: 0,
        body: Vec::new(),
        whole: false,
    };
    let mut framing = head.body;
    loop {
        match framing.next(&mut buffer).map_err(Some)? {
            Piece::Data(data) => answered.body.extend_from_slice(&data),
            Piece::End => {
                answered.whole = true;
                break;
            }
            Piece::More if ahead.is_empty() => break,
            Piece::More => buffer.extend_from_slice(cut(&mut ahead, size)),
        }
    }
    answered.left = ahead.len() + buffer.len();
    Ok(answered)
}

/// Takes so many bytes off the front, or all.
fn cut<'a>(rest: &mut &'a [u8], size: usize) -> &'a [u8] {
    let (first, others) = rest.split_at(size.min(rest.len()));
    *rest = others;
    first
}

/// The body of a chunked stream and where it ends, the plain way. None if it does not end well.
fn unchunked(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut rest = stream;
    loop {
        let line = line(&mut rest)?;
        let digits = line.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(digits).ok()?.trim_end();
        let size = usize::from_str_radix(digits, 16).ok()?;
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    while !line(&mut rest)?.is_empty() {}
    Some((body, stream.len() - rest.len()))
}

/// Takes a line off the front, without its end.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// Pieces of answers, good ones and such as are misread.
    const PIECES: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        b"content-length: 5\r\n",
        b"content-length: +5\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: identity\r\n",
        b"connection: close\r\n",
        b"set-cookie: a=b\r\n",
        b"folded: a\r\n b\r\n",
        b"\r\n",
        b"\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"5;ext=1\r\nhello\r\n",
        b"00005 \r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"0\r\n",
        b"trailer: 1\r\n",
    ];

    proptest! {
        #[test]
        fn an_answer_is_read_in_one_way(
            pieces in prop::collection::vec(select(PIECES), 0..10),
            noise in prop::option::weighted(0.3, (any::<Index>(), any::<u8>())),
            size in select(vec![1usize, 2, 3, 16, 100]),
            head in any::<bool>(),
            upgrades in any::<bool>(),
        ) {
            let mut stream = [&[PIECES[0]], &pieces[..]].concat().concat();
            if let Some((at, byte)) = noise {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
            let method = if head { Method::HEAD } else { Method::GET };
            check(&stream, size, &method, upgrades);
        }
    }
}
