//! What is in an `ANSWER` frame: status, reason and headers; which part of a file is its body.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::message::MAX_HEADERS;

/// Status, unusual reason, headers.
pub type Head = (StatusCode, Option<Bytes>, HeaderMap);

/// # Errors
/// What is wrong with it, for the log.
pub fn decode(status: u16, head: &Bytes) -> Result<Head, &'static str> {
    let status = StatusCode::from_u16(status).map_err(|_| "a status that is none")?;
    if status.is_informational() {
        return Err("an informational status");
    }
    let Some((0, fields)) = head.split_last() else {
        return Err("a head that does not end in NUL");
    };
    let mut fields = fields.split(|byte| *byte == 0);
    let reason = fields.next().unwrap_or_default();
    let unusual =
        status.canonical_reason().map(str::as_bytes) != Some(reason) && !reason.is_empty();
    let mut headers = HeaderMap::new();
    while let Some(name) = fields.next() {
        let value = fields.next().ok_or("a header without a value")?;
        let name = HeaderName::from_bytes(name).map_err(|_| "an invalid header name")?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value));
        if headers.len() == MAX_HEADERS {
            return Err("too many headers");
        }
        headers.append(name, value.map_err(|_| "an invalid header value")?);
    }
    Ok((status, unusual.then(|| head.slice_ref(reason)), headers))
}

/// Offset and length of a body that is a part of a file.
///
/// # Errors
/// What is wrong with it, for the log.
pub fn place(body: &[u8]) -> Result<(u64, u64), &'static str> {
    let (offset, len) = body.split_at_checked(8).ok_or("not a place in a file")?;
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes);
    let (Ok(offset), Ok(len)) = (number(offset), number(len)) else {
        return Err("not a place in a file");
    };
    // As far as a file can reach.
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok((offset, len)),
        _ => Err("a place beyond the end of every file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_file_is_two_numbers() {
        let place_of =
            |offset: u64, len: u64| place(&[offset.to_be_bytes(), len.to_be_bytes()].concat());
        assert_eq!(place_of(7, 1 << 40), Ok((7, 1 << 40)));
        assert!(place_of(u64::MAX, 1).is_err());
        assert!(place_of(i64::MAX as u64, 1).is_err());
        assert!(place(&[0; 15]).is_err());
        assert!(place(&[0; 17]).is_err());
    }

    #[test]
    fn an_answers_head_is_reason_and_pairs() {
        let head = Bytes::from_static(b"Not Here\0set-cookie\0a=1\0Set-Cookie\0b=2\0");
        let (status, reason, headers) = decode(404, &head).expect("a head");
        assert_eq!(status, 404);
        assert_eq!(reason.as_deref(), Some(&b"Not Here"[..]));
        assert_eq!(headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn headers_are_bounded() {
        let head = |count: usize| {
            let fields: String = (0..count).map(|number| format!("x{number}\0v\0")).collect();
            Bytes::from(format!("OK\0{fields}"))
        };
        let (_, _, headers) = decode(200, &head(MAX_HEADERS)).expect("a head");
        assert_eq!(headers.len(), MAX_HEADERS);
        // A map of headers panics at some number beyond.
        for many in [MAX_HEADERS + 1, 40_000] {
            assert_eq!(decode(200, &head(many)), Err("too many headers"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (status, head) in [
            (404, &b"Not Found"[..]),
            (404, b"Not Found\0name\0"),
            (404, b"Not Found\0na me\0value\0"),
            (404, b"Not Found\0name\0va\nlue\0"),
            (99, b"Low\0"),
            (103, b"Early Hints\0"),
            (200, b""),
        ] {
            assert!(
                decode(status, &Bytes::from_static(head)).is_err(),
                "{head:?}"
            );
        }
    }
}
