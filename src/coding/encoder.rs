//! One body on its way through a coding.
//!
//! Bytes go in and come out when the coding has enough of them, or when it is told to flush. It
//! computes where it is called, so whoever calls it decides on which thread.

use std::io::{self, Write};

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use flate2::Compression;
use flate2::write::GzEncoder;
use zstd::stream::write::Encoder as ZstdEncoder;

use crate::config::{Coding, Level};

/// How far brotli and zstd look back, as a power of two. Their own choice takes several MiB for each
/// body under way; with half a MiB, pages get hardly larger.
const WINDOW: u32 = 19;

pub enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl Encoder {
    /// # Errors
    /// When there is no memory for it.
    pub fn new(coding: Coding, level: Level) -> io::Result<Self> {
        // The three scales have nothing in common. In the middle each makes some 50 to 100 MB/s.
        let of = |fast, balanced, small| match level {
            Level::Fast => fast,
            Level::Balanced => balanced,
            Level::Small => small,
        };
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(of(1, 5, 9)))),
            Coding::Brotli => {
                let parameters = BrotliEncoderParams {
                    quality: of(2, 4, 9) as i32,
                    lgwin: WINDOW as i32,
                    ..BrotliEncoderParams::default()
                };
                let writer = CompressorWriter::with_params(Vec::new(), 4096, &parameters);
                Self::Brotli(Box::new(writer))
            }
            Coding::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), of(1, 3, 12) as i32)?;
                encoder.window_log(WINDOW)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Takes bytes; gives those that have come out meanwhile, often none.
    ///
    /// # Errors
    /// When the coding fails, for want of memory.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.writer().write_all(bytes)?;
        Ok(self.taken())
    }

    /// Everything that went in, as far as it has not come out.
    ///
    /// # Errors
    /// As for [`Encoder::push`].
    pub fn flush(&mut self) -> io::Result<Vec<u8>> {
        self.writer().flush()?;
        Ok(self.taken())
    }

    /// The rest.
    ///
    /// # Errors
    /// As for [`Encoder::push`].
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn decoded(coding: Coding, mut coded: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let read = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(&mut coded).read_to_end(&mut plain),
            Coding::Brotli => brotli::Decompressor::new(&mut coded, 4096).read_to_end(&mut plain),
            Coding::Zstd => zstd::stream::read::Decoder::new(&mut coded)
                .expect("memory")
                .read_to_end(&mut plain),
        };
        // What was flushed is not whole yet, but must be there.
        let _ = read;
        plain
    }

    fn levels() -> impl Strategy<Value = Level> {
        proptest::sample::select(Level::ALL.to_vec())
    }

    fn codings() -> impl Strategy<Value = Coding> {
        proptest::sample::select(Coding::ALL.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_goes_in_comes_out(
            coding in codings(), level in levels(),
            pieces in proptest::collection::vec(proptest::collection::vec(0_u8..4, 0..3000), 0..6),
        ) {
            let mut encoder = Encoder::new(coding, level).expect("memory");
            let mut coded = Vec::new();
            for piece in &pieces {
                coded.extend(encoder.push(piece).expect("memory"));
            }
            coded.extend(encoder.finish().expect("memory"));
            prop_assert_eq!(decoded(coding, &coded), pieces.concat());
        }

        #[test]
        fn what_was_flushed_can_be_read(
            coding in codings(), level in levels(),
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..6),
        ) {
            let mut encoder = Encoder::new(coding, level).expect("memory");
            let (mut coded, mut plain) = (Vec::new(), Vec::new());
            for piece in &pieces {
                plain.extend_from_slice(piece);
                coded.extend(encoder.push(piece).expect("memory"));
                coded.extend(encoder.flush().expect("memory"));
                prop_assert_eq!(&decoded(coding, &coded), &plain);
            }
        }
    }
}
