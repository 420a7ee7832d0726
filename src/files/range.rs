//! Which part of a file a `Range` asks for (RFC 9110 section 14).

use std::ops::Range;

/// What to send of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// All: nothing else was asked for in a way that we understand, or in several parts. Answering many
    /// parts at once is of use to hardly anybody, and lets few bytes ask for many.
    Whole,
    Of(Range<u64>),
    /// Nothing of what was asked for is there.
    None,
}

/// `value` is that of the header's only line.
pub fn part(value: &[u8], len: u64) -> Part {
    let Some(ranges) = value
        .split_at_checked(b"bytes=".len())
        .filter(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes="))
        .and_then(|(_, ranges)| std::str::from_utf8(ranges).ok())
    else {
        return Part::Whole;
    };
    let ranges = ranges.split(',').map(|range| one(range.trim(), len));
    let Some(ranges) = ranges.collect::<Option<Vec<_>>>() else {
        return Part::Whole;
    };
    let mut there = ranges.into_iter().filter(|range| !range.is_empty());
    match (there.next(), there.next()) {
        (None, _) => Part::None,
        (Some(range), None) => Part::Of(range),
        (Some(_), Some(_)) => Part::Whole,
    }
}

/// Empty if nothing of it is there; None if it is no range at all.
fn one(range: &str, len: u64) -> Option<Range<u64>> {
    match range.split_once('-')? {
        ("", last) => Some(len.saturating_sub(number(last)?)..len),
        (first, "") => Some(number(first)?.min(len)..len),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            let end = last.saturating_add(1).min(len);
            (first <= last).then(|| first.min(end)..end)
        }
    }
}

/// More digits than we have numbers for mean a place behind every file's end.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_a_part_and_what_is_not_understood_is_ignored() {
        for (value, expected) in [
            ("bytes=0-0", Part::Of(0..1)),
            ("bytes=0-", Part::Of(0..100)),
            ("Bytes=10-19", Part::Of(10..20)),
            ("bytes=99-", Part::Of(99..100)),
            ("bytes=50-1000", Part::Of(50..100)),
            ("bytes=50-99999999999999999999", Part::Of(50..100)),
            ("bytes=-1", Part::Of(99..100)),
            ("bytes=-1000", Part::Of(0..100)),
            ("bytes= 5-6", Part::Of(5..7)),
            ("bytes=100-", Part::None),
            ("bytes=100-200", Part::None),
            ("bytes=99999999999999999999-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=200-, 300-", Part::None),
            // One of two is there.
            ("bytes=5-6, 300-", Part::Of(5..7)),
            ("bytes=0-0, -1", Part::Whole),
            ("bytes=6-5", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=1", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1-2-3", Part::Whole),
            ("bytes=", Part::Whole),
            ("bytes", Part::Whole),
            ("items=0-5", Part::Whole),
        ] {
            assert_eq!(part(value.as_bytes(), 100), expected, "{value}");
        }
        assert_eq!(part(b"bytes=0-", 0), Part::None);
        assert_eq!(part(b"bytes=-5", 0), Part::None);
        let large = 5 << 30;
        assert_eq!(
            part(b"bytes=4294967296-4294967297", large),
            Part::Of(4_294_967_296..4_294_967_298)
        );
    }

    proptest! {
        #[test]
        fn a_part_is_within_the_file(value in "bytes=[-0-9, ]{0,12}", len in 0_u64..50) {
            if let Part::Of(range) = part(value.as_bytes(), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }

        #[test]
        fn bytes_of_a_range_are_those_between_its_ends(first in 0_u64..60, more in 0_u64..60, len in 1_u64..50) {
            let last = first + more;
            let bytes: Vec<u64> = (0..len).filter(|at| (first..=last).contains(at)).collect();
            let expected = match (bytes.first(), bytes.last()) {
                (Some(first), Some(last)) => Part::Of(*first..last + 1),
                _ => Part::None,
            };
            prop_assert_eq!(part(format!("bytes={first}-{last}").as_bytes(), len), expected);
        }
    }
}
