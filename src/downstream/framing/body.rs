//! A chunked body: where it ends, and whether it is one.
//!
//! The bytes stay as they are; hyper takes the chunks apart.

use super::head::is_token_byte;

/// Digits of a chunk's size: as many as its number can have, zeros in front included.
const MAX_DIGITS: u8 = 16;

/// Bytes of all extensions, and of all trailers. Both are dropped.
const MAX_EXTRAS: usize = 8 * 1024;

/// Trailers, fewer than hyper takes.
pub const MAX_TRAILERS: usize = 64;

/// Somewhere in a chunked body.
#[derive(Debug, Default)]
pub struct Chunks {
    place: Place,
    /// What is left of the chunk.
    left: u64,
    digits: u8,
    extras: usize,
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Size,
    /// Between the size and an extension.
    Space,
    Extension,
    /// The LF after a size.
    SizeEnd,
    Data,
    /// The CR after the data, then the LF.
    DataCr,
    DataLf,
    /// The first byte of a trailer, or the CR of the last line.
    Trailers,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    /// The very last LF.
    End,
}

impl Chunks {
    /// The length of what belongs to the body, if it ends in these bytes.
    ///
    /// # Errors
    /// With the number of bytes that came before it was malformed.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<usize>, usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.place == Place::Data {
                let here = (bytes.len() - at) as u64;
                let here = here.min(self.left);
                self.left -= here;
                at += here as usize;
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            if self.place == Place::End && bytes[at] == b'\n' {
                return Ok(Some(at + 1));
            }
            self.place = self.step(bytes[at]).ok_or(at)?;
            at += 1;
        }
        Ok(None)
    }

    /// Where the byte leads. None if it must not be there.
    fn step(&mut self, byte: u8) -> Option<Place> {
        Some(match (self.place, byte) {
            (Place::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16)?;
                self.digits += 1;
                if self.digits > MAX_DIGITS {
                    return None;
                }
                self.left = (self.left << 4) | u64::from(digit);
                Place::Size
            }
            (Place::Size, b'\r') if self.digits > 0 => Place::SizeEnd,
            (Place::Size, b';') if self.digits > 0 => Place::Extension,
            (Place::Size, b' ' | b'\t') if self.digits > 0 => self.extra(Place::Space)?,
            (Place::Space, b' ' | b'\t') => self.extra(Place::Space)?,
            (Place::Space, b';') => Place::Extension,
            (Place::Extension, b'\r') => Place::SizeEnd,
            (Place::Extension, _) if is_text(byte) => self.extra(Place::Extension)?,
            (Place::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.left == 0 {
                    Place::Trailers
                } else {
                    Place::Data
                }
            }
            (Place::DataCr, b'\r') => Place::DataLf,
            (Place::DataLf, b'\n') => Place::Size,
            (Place::Trailers, b'\r') => Place::End,
            (Place::Trailers, _) if is_token_byte(byte) => {
                self.trailers += 1;
                if self.trailers > MAX_TRAILERS {
                    return None;
                }
                self.extra(Place::TrailerName)?
            }
            (Place::TrailerName, b':') => self.extra(Place::TrailerValue)?,
            (Place::TrailerName, _) if is_token_byte(byte) => self.extra(Place::TrailerName)?,
            (Place::TrailerValue, b'\r') => Place::TrailerEnd,
            (Place::TrailerValue, _) if is_text(byte) => self.extra(Place::TrailerValue)?,
            (Place::TrailerEnd, b'\n') => Place::Trailers,
            _ => return None,
        })
    }

    fn extra(&mut self, place: Place) -> Option<Place> {
        self.extras += 1;
        (self.extras <= MAX_EXTRAS).then_some(place)
    }
}

fn is_text(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Option<usize>, usize> {
        Chunks::default().read(bytes)
    }

    #[test]
    fn a_body_ends_after_its_last_chunk_and_trailers() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"05\r\nhello\r\n000\r\n\r\n",
            b"5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n",
            b"5 ;a=b\r\nhello\r\n0\r\n\r\n",
            b"A\r\n0123456789\r\n0\r\nX-Trailer: 1\r\nX-Other: 2\r\n\r\n",
        ] {
            let behind = [body, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&behind), Ok(Some(body.len())), "{body:?}");
            assert_eq!(read(&body[..body.len() - 1]), Ok(None), "{body:?}");
        }
    }

    #[test]
    fn what_is_no_chunk_is_found_where_it_stands() {
        for (body, at) in [
            (&b"\r\n"[..], 0),
            (b"g\r\n", 0),
            (b" 5\r\n", 0),
            (b"-5\r\n", 0),
            (b"0x5\r\n", 1),
            (b"5 \r\n", 2),
            (b"5\n", 1),
            (b"5\r\r\n", 2),
            (b"5;a\nb\r\n", 3),
            (b"5;a\0\r\n", 3),
            (b"00000000000000005\r\n", 16),
            (b"2\r\nabc\r\n", 5),
            (b"2\r\nab\n", 5),
            (b"2\r\nab\rx", 6),
            (b"0\r\n\n", 3),
            (b"0\r\nX: 1\nY: 2\r\n", 7),
            (b"0\r\nX: 1\r\n folded\r\n", 9),
            (b"0\r\n\rx", 4),
            (b"0\r\nNo colon\r\n", 5),
            (b"0\r\nX\r\n", 4),
            (b"0\r\n: 1\r\n", 3),
            // Found by fuzzing: hyper refuses it, after the body has passed.
            (b"0\r\nsfer-Encodi(g: 1\r\n", 14),
        ] {
            assert_eq!(read(body), Err(at), "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        let chunk = format!("1;{}\r\nx\r\n", "a".repeat(1000));
        assert!(read(chunk.repeat(8).as_bytes()).is_ok());
        assert!(read(chunk.repeat(9).as_bytes()).is_err());
        let trailers = format!("0\r\n{}\r\n", "X-A: 123\r\n".repeat(1100));
        assert!(read(trailers.as_bytes()).is_err());
        let trailers = |count| format!("0\r\n{}\r\n", "A:\r\n".repeat(count));
        assert!(read(trailers(MAX_TRAILERS).as_bytes()).is_ok());
        assert!(read(trailers(MAX_TRAILERS + 1).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_body_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            noise in proptest::option::of((any::<usize>(), any::<u8>())),
            cut in 1usize..9,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            if let Some((at, byte)) = noise {
                let at = at % body.len();
                body[at] = byte;
            }
            let mut state = Chunks::default();
            let mut before = 0;
            let mut parts = Ok(None);
            for part in body.chunks(cut) {
                parts = state.read(part).map(|end| end.map(|end| before + end)).map_err(|at| before + at);
                if parts != Ok(None) {
                    break;
                }
                before += part.len();
            }
            prop_assert_eq!(parts, read(&body));
        }
    }
}
