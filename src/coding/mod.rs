//! Content codings: which one an answer may have for its client, and the coding itself.
//!
//! Knows neither connections nor files. What the client accepts is read once, when its request is
//! there; what is worth coding is decided where answers are.

mod encoder;

pub use encoder::Encoder;

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

use crate::config::Coding;

/// What a client says in `Accept-Encoding`, of the codings that it is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Those that it takes rather than none, the best first.
    pub codings: Vec<Coding>,
    /// It takes what is not coded at all.
    pub plain: bool,
}

/// In thousandths, as the grammar has them.
type Quality = u16;

impl Accepted {
    /// `offered` is in our order: what the client likes equally well is taken in this order.
    ///
    /// A client that says nothing gets nothing coded: RFC 9110 would let it have anything, but those that
    /// say nothing are scripts that do not decode.
    pub fn of(headers: &HeaderMap, offered: &[Coding]) -> Self {
        if offered.is_empty() || !headers.contains_key(ACCEPT_ENCODING) {
            return Self {
                codings: Vec::new(),
                plain: true,
            };
        }
        let said = Said::read(headers);
        let plain = said.identity.or(said.any);
        // Not named, it is what a client takes when there is nothing better.
        let floor = said.identity.unwrap_or(0);
        let mut codings: Vec<(Quality, Coding)> = offered
            .iter()
            .map(|coding| (said.quality(*coding), *coding))
            .filter(|(quality, _)| *quality > 0 && *quality >= floor)
            .collect();
        // A stable sort keeps our order.
        codings.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
        Self {
            codings: codings.into_iter().map(|(_, coding)| coding).collect(),
            plain: plain != Some(0),
        }
    }
}

#[derive(Debug, Default)]
struct Said {
    named: [Option<Quality>; Coding::ALL.len()],
    identity: Option<Quality>,
    any: Option<Quality>,
}

impl Said {
    fn read(headers: &HeaderMap) -> Self {
        let mut said = Self::default();
        let lines = headers.get_all(ACCEPT_ENCODING).iter();
        let lines = lines.filter_map(|line| line.to_str().ok());
        for item in lines.flat_map(|line| line.split(',')) {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let quality = quality(parts);
            let place = match name {
                "*" => &mut said.any,
                name if name.eq_ignore_ascii_case("identity") => &mut said.identity,
                name => match named(name) {
                    Some(coding) => &mut said.named[coding as usize],
                    None => continue,
                },
            };
            *place = Some(quality);
        }
        said
    }

    fn quality(&self, coding: Coding) -> Quality {
        self.named[coding as usize].or(self.any).unwrap_or(0)
    }
}

fn named(name: &str) -> Option<Coding> {
    let coding = Coding::ALL
        .into_iter()
        .find(|coding| name.eq_ignore_ascii_case(coding.as_str()));
    // RFC 9110 section 8.4.1.3 has both names mean the same.
    coding.or_else(|| name.eq_ignore_ascii_case("x-gzip").then_some(Coding::Gzip))
}

/// 1 if there is none, and 0, which refuses, if it cannot be read.
fn quality<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Quality {
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("q");
        named.then(|| value.trim().parse::<f32>())
    });
    match value {
        None => 1000,
        Some(Ok(value)) if (0.0..=1.0).contains(&value) => (value * 1000.0).round() as Quality,
        Some(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::Coding::{Brotli, Gzip, Zstd};
    use super::*;

    fn accepted(lines: &[&str], offered: &[Coding]) -> (Vec<Coding>, bool) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                ACCEPT_ENCODING,
                HeaderValue::from_str(line).expect("a value"),
            );
        }
        let accepted = Accepted::of(&headers, offered);
        (accepted.codings, accepted.plain)
    }

    #[test]
    fn what_the_client_likes_best_goes_first_then_our_order() {
        let all = [Zstd, Brotli, Gzip];
        for (said, codings, plain) in [
            ("gzip, deflate, br, zstd", vec![Zstd, Brotli, Gzip], true),
            ("gzip, br;q=0.9, zstd;q=0.2", vec![Gzip, Brotli, Zstd], true),
            ("GZIP;Q=0.5 , Br", vec![Brotli, Gzip], true),
            ("x-gzip", vec![Gzip], true),
            ("*", vec![Zstd, Brotli, Gzip], true),
            ("*, br;q=0", vec![Zstd, Gzip], true),
            ("br;q=0, *;q=0.1", vec![Zstd, Gzip], true),
            ("deflate, compress", vec![], true),
            ("", vec![], true),
            ("gzip;q=0", vec![], true),
            ("gzip;q=0.000", vec![], true),
            ("gzip;q=1.5", vec![], true),
            ("gzip;q=x", vec![], true),
            ("gzip;q=", vec![], true),
            ("gzip;q=nan", vec![], true),
            ("gzip;level=9;q=0.3", vec![Gzip], true),
            // Who likes plain answers better gets them so.
            ("identity, gzip;q=0.5", vec![], true),
            ("identity;q=0.5, gzip;q=0.5, br", vec![Brotli, Gzip], true),
            // Who refuses them.
            ("identity;q=0, gzip", vec![Gzip], false),
            ("*;q=0", vec![], false),
            ("gzip, *;q=0", vec![Gzip], false),
            ("identity, *;q=0", vec![], true),
        ] {
            assert_eq!(accepted(&[said], &all), (codings, plain), "{said}");
        }
        assert_eq!(
            accepted(&["gzip;q=0.5", "br"], &all),
            (vec![Brotli, Gzip], true)
        );
    }

    #[test]
    fn nothing_is_coded_for_who_says_nothing_or_is_offered_nothing() {
        assert_eq!(accepted(&[], &[Gzip]), (vec![], true));
        assert_eq!(accepted(&["gzip, identity;q=0"], &[]), (vec![], true));
        assert_eq!(accepted(&["gzip, br"], &[Zstd]), (vec![], true));
    }
}
