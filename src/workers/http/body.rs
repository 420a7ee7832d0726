//! The body of an answer, taken out of what its connection brings. Pure: bytes in, bytes out.
//!
//! Strict where a lenient reader and a strict one would disagree about where the body ends.

use bytes::{Buf, Bytes, BytesMut};

/// The longest line that gives a chunk's size, extensions included, and all trailers together.
const MAX_SIZE_LINE: usize = 4 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;

/// Less than this is copied out, so that the connection keeps its room: to make it anew for every answer,
/// and to have the last one in use until its client has read it, costs more.
const COPIED: usize = 4 * 1024;

/// How the rest of a body is framed.
#[derive(Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, or no more.
    Nothing,
    Length(u64),
    Chunked(Chunk),
    /// All that comes until the connection ends.
    UntilClose,
}

/// Where in a chunked body we are.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// → Data, Trailers
    Size,
    /// So many bytes are left of it. → DataEnd
    Data(u64),
    /// → Size
    DataEnd,
    /// So many bytes of them have passed.
    Trailers(usize),
}

/// What is next of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    /// More must be read first.
    More,
    /// The body is whole.
    End,
}

impl Framing {
    pub fn chunked() -> Self {
        Self::Chunked(Chunk::Size)
    }

    /// Takes what is there of the body off the front of `buffer`.
    ///
    /// # Errors
    /// What is wrong with it: where it ends cannot be known.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, &'static str> {
        match self {
            Self::Nothing => Ok(Piece::End),
            Self::UntilClose if buffer.is_empty() => Ok(Piece::More),
            Self::UntilClose => Ok(Piece::Data(buffer.split().freeze())),
            Self::Length(_) if buffer.is_empty() => Ok(Piece::More),
            Self::Length(left) => {
                let data = take(buffer, left);
                if *left == 0 {
                    *self = Self::Nothing;
                }
                Ok(Piece::Data(data))
            }
            Self::Chunked(chunk) => {
                let piece = chunk.next(buffer)?;
                if piece == Piece::End {
                    *self = Self::Nothing;
                }
                Ok(piece)
            }
        }
    }

    /// How much may be read at once, without reading what is not of this body.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }
}

impl Chunk {
    fn next(&mut self, buffer: &mut BytesMut) -> Result<Piece, &'static str> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(buffer, MAX_SIZE_LINE, "a chunk's size is too long")?
                    else {
                        return Ok(Piece::More);
                    };
                    *self = match size(&line)? {
                        0 => Self::Trailers(0),
                        size => Self::Data(size),
                    };
                }
                Self::Data(_) if buffer.is_empty() => return Ok(Piece::More),
                Self::Data(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                Self::DataEnd => {
                    if !b"\r\n".starts_with(&buffer[..buffer.len().min(2)]) {
                        return Err("a chunk is longer than it says");
                    }
                    if buffer.len() < 2 {
                        return Ok(Piece::More);
                    }
                    let _ = buffer.split_to(2);
                    *self = Self::Size;
                }
                Self::Trailers(passed) => {
                    let room = MAX_TRAILERS - *passed;
                    let Some(line) = line(buffer, room, "its trailers are too long")? else {
                        return Ok(Piece::More);
                    };
                    *passed += line.len() + 2;
                    // Trailers are dropped: what they say must not become headers.
                    if line.is_empty() {
                        return Ok(Piece::End);
                    }
                }
            }
        }
    }
}

/// As much of what is left as there is.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= count as u64;
    if count > COPIED {
        return buffer.split_to(count).freeze();
    }
    let copy = Bytes::copy_from_slice(&buffer[..count]);
    buffer.advance(count);
    copy
}

/// A line without its end, which is CR and LF; None if it is not all there.
fn line(
    buffer: &mut BytesMut,
    longest: usize,
    too_long: &'static str,
) -> Result<Option<BytesMut>, &'static str> {
    match buffer.iter().position(|byte| *byte == b'\n') {
        Some(end) if end + 1 > longest => Err(too_long),
        None if buffer.len() >= longest => Err(too_long),
        None => Ok(None),
        Some(end) => {
            let mut line = buffer.split_to(end + 1);
            if !line.ends_with(b"\r\n") {
                return Err("a line of its chunks does not end with CR and LF");
            }
            line.truncate(end - 1);
            Ok(Some(line))
        }
    }
}

fn size(line: &[u8]) -> Result<u64, &'static str> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit());
    let (digits, rest) = line.split_at(end.unwrap_or(line.len()));
    // Of extensions only the end matters; blanks before them are tolerated by all.
    let extension = rest.trim_ascii_start();
    if digits.is_empty() || !(extension.is_empty() || extension.starts_with(b";")) {
        return Err("a chunk's size is no number");
    }
    if rest.contains(&b'\r') {
        return Err("a chunk's extension holds CR");
    }
    let digits = std::str::from_utf8(digits).map_err(|_| "a chunk's size is no number")?;
    u64::from_str_radix(digits, 16).map_err(|_| "a chunk is too large")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole body, what is left behind it, and whether its end came.
    fn read(
        mut framing: Framing,
        reads: &[&[u8]],
    ) -> Result<(Vec<u8>, Vec<u8>, bool), &'static str> {
        let mut buffer = BytesMut::new();
        let mut body = Vec::new();
        for read in reads {
            buffer.extend_from_slice(read);
            loop {
                match framing.next(&mut buffer)? {
                    Piece::Data(data) => {
                        assert!(!data.is_empty());
                        body.extend_from_slice(&data);
                    }
                    Piece::More => break,
                    Piece::End => return Ok((body, buffer.to_vec(), true)),
                }
            }
        }
        Ok((body, buffer.to_vec(), false))
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        let read = read(Framing::Length(5), &[b"12", b"345next"]).expect("fine");
        assert_eq!(read, (b"12345".to_vec(), b"next".to_vec(), true));
    }

    #[test]
    fn chunks_become_a_body() {
        let text = b"5\r\nhello\r\n6;x=\"y\"\r\n world\r\n0\r\ntrailer: 1\r\n\r\nnext";
        let (body, rest, ended) = read(Framing::chunked(), &[text]).expect("fine");
        assert_eq!(
            (&body[..], &rest[..], ended),
            (&b"hello world"[..], &b"next"[..], true)
        );
    }

    #[test]
    fn chunks_that_can_be_read_in_two_ways_are_refused() {
        for text in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b"\r\n",
            b"5\r\nhelloo\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5 5\r\nhello\r\n",
            b"5;\r\r\nhello\r\n",
            b"10000000000000000\r\n",
            b"0\r\na: b\n\r\n",
        ] {
            assert!(
                read(Framing::chunked(), &[text]).is_err(),
                "{:?}",
                String::from_utf8_lossy(text)
            );
        }
        let endless = vec![b'1'; MAX_SIZE_LINE + 1];
        assert!(read(Framing::chunked(), &[&endless]).is_err());
        let trailers = [&b"0\r\n"[..], &b"a: b\r\n".repeat(MAX_TRAILERS / 6 + 1)[..]].concat();
        assert!(read(Framing::chunked(), &[&trailers]).is_err());
    }

    proptest! {
        #[test]
        fn however_chunks_are_cut_into_reads_they_are_the_same_body(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            size in 1usize..30,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend(format!("{:x}\r\n", chunk.len()).bytes());
                text.extend(chunk);
                text.extend(b"\r\n");
            }
            text.extend(b"0\r\n\r\n");
            let reads: Vec<&[u8]> = text.chunks(size).collect();
            let (body, rest, ended) = read(Framing::chunked(), &reads).expect("right");
            prop_assert_eq!(body, chunks.concat());
            prop_assert!(ended && rest.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(Framing::chunked(), &[&bytes]);
        }
    }
}
