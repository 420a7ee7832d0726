//! What a request says about the version of a file that its client has, or wants a part of.
//!
//! In the order that RFC 9110 section 13.2.2 gives. Pure.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headers::{
    ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince,
    LastModified,
};
use http::header::RANGE;
use http::{HeaderMap, HeaderValue, Method};

use super::range::{Part, part};

/// The last second that an HTTP date can tell.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// What a version of a file is known by.
#[derive(Debug, Clone)]
pub struct Validators {
    pub etag: ETag,
    pub modified: SystemTime,
}

impl Validators {
    /// `variant` tells apart what is made of one file, and is empty for the file itself.
    pub fn new(modified: SystemTime, len: u64, variant: &str) -> Self {
        let modified = modified.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST);
        let nanoseconds = modified
            .duration_since(UNIX_EPOCH)
            .expect("clamped")
            .as_nanos();
        let hyphen = if variant.is_empty() { "" } else { "-" };
        let etag = format!("\"{nanoseconds:x}-{len:x}{hyphen}{variant}\"");
        Self {
            etag: etag.parse().expect("hexadecimal digits in quotes"),
            modified,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Whole,
    Part(Range<u64>),
    /// 304
    NotModified,
    /// 412
    Failed,
    /// 416
    NotThere,
}

/// The conditions of one request.
#[derive(Debug, Clone)]
pub struct Conditions {
    is_get: bool,
    if_match: Option<IfMatch>,
    if_unmodified_since: Option<IfUnmodifiedSince>,
    if_none_match: Option<IfNoneMatch>,
    if_modified_since: Option<IfModifiedSince>,
    if_range: Option<IfRange>,
    range: Option<HeaderValue>,
}

impl Conditions {
    /// None for methods that do not ask for a representation. What cannot be read is as if it were not there.
    pub fn of(method: &Method, headers: &HeaderMap) -> Option<Self> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let mut ranges = headers.get_all(RANGE).iter();
        let range = match (ranges.next(), ranges.next()) {
            (Some(range), None) => Some(range.clone()),
            _ => None,
        };
        Some(Self {
            is_get: *method == Method::GET,
            if_match: headers.typed_get(),
            if_unmodified_since: headers.typed_get(),
            if_none_match: headers.typed_get(),
            if_modified_since: headers.typed_get(),
            if_range: headers.typed_get(),
            range,
        })
    }

    pub fn judge(&self, validators: &Validators, len: u64) -> Verdict {
        let Validators { etag, modified } = validators;
        let passes = match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) => condition.precondition_passes(etag),
            (None, Some(condition)) => condition.precondition_passes(*modified),
            (None, None) => true,
        };
        if !passes {
            return Verdict::Failed;
        }
        let is_new = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => condition.precondition_passes(etag),
            (None, Some(condition)) => condition.is_modified(*modified),
            (None, None) => true,
        };
        if !is_new {
            return Verdict::NotModified;
        }
        let Some(range) = self.range.as_ref().filter(|_| self.is_get) else {
            return Verdict::Whole;
        };
        let date = LastModified::from(*modified);
        if let Some(condition) = &self.if_range
            && condition.is_modified(Some(etag), Some(&date))
        {
            return Verdict::Whole;
        }
        match part(range.as_bytes(), len) {
            Part::Whole => Verdict::Whole,
            Part::Of(range) => Verdict::Part(range),
            Part::None => Verdict::NotThere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sun, 06 Nov 1994 08:49:37.5 GMT
    fn validators() -> Validators {
        let modified = UNIX_EPOCH + Duration::from_millis(784_111_777_500);
        Validators::new(modified, 10, "")
    }

    fn judged(method: Method, lines: &[(&'static str, &str)]) -> Verdict {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let value = value.replace("NOW", "Sun, 06 Nov 1994 08:49:37 GMT");
            let value = value.replace("BEFORE", "Sun, 06 Nov 1994 08:49:36 GMT");
            headers.append(*name, HeaderValue::from_str(&value).expect("a value"));
        }
        let conditions = Conditions::of(&method, &headers).expect("GET or HEAD");
        conditions.judge(&validators(), 10)
    }

    #[test]
    fn conditions_are_judged_in_the_order_of_the_rfc() {
        let etag = "\"ae1b981da166f00-a\"";
        assert_eq!(
            HeaderMap::from_iter([(
                http::header::ETAG,
                HeaderValue::from_str(etag).expect("a value")
            )])
            .typed_get(),
            Some(validators().etag)
        );
        let weak = &*format!("W/{etag}");
        let listed = &*format!("\"x\", {etag}");
        let part = || Verdict::Part(0..1);
        for (lines, expected) in [
            (&[][..], Verdict::Whole),
            (&[("if-none-match", etag)], Verdict::NotModified),
            (&[("if-none-match", weak)], Verdict::NotModified),
            (&[("if-none-match", listed)], Verdict::NotModified),
            (&[("if-none-match", "*")], Verdict::NotModified),
            (&[("if-none-match", "\"x\"")], Verdict::Whole),
            (&[("if-modified-since", "NOW")], Verdict::NotModified),
            (&[("if-modified-since", "BEFORE")], Verdict::Whole),
            (&[("if-modified-since", "yesterday")], Verdict::Whole),
            // The entity tag counts, the date does not.
            (
                &[("if-none-match", "\"x\""), ("if-modified-since", "NOW")],
                Verdict::Whole,
            ),
            (&[("if-match", etag)], Verdict::Whole),
            (&[("if-match", "*")], Verdict::Whole),
            (&[("if-match", "\"x\"")], Verdict::Failed),
            (&[("if-match", weak)], Verdict::Failed),
            (&[("if-unmodified-since", "NOW")], Verdict::Whole),
            (&[("if-unmodified-since", "BEFORE")], Verdict::Failed),
            (
                &[("if-match", etag), ("if-unmodified-since", "BEFORE")],
                Verdict::Whole,
            ),
            (
                &[("if-match", "\"x\""), ("if-none-match", etag)],
                Verdict::Failed,
            ),
            (&[("range", "bytes=0-0")], part()),
            (&[("range", "bytes=10-")], Verdict::NotThere),
            (
                &[("range", "bytes=0-0"), ("range", "bytes=1-1")],
                Verdict::Whole,
            ),
            (&[("range", "bytes=0-0"), ("if-range", etag)], part()),
            (&[("range", "bytes=0-0"), ("if-range", "NOW")], part()),
            (
                &[("range", "bytes=0-0"), ("if-range", weak)],
                Verdict::Whole,
            ),
            (
                &[("range", "bytes=0-0"), ("if-range", "\"x\"")],
                Verdict::Whole,
            ),
            (
                &[("range", "bytes=10-"), ("if-range", "BEFORE")],
                Verdict::Whole,
            ),
            (
                &[("range", "bytes=10-"), ("if-none-match", etag)],
                Verdict::NotModified,
            ),
        ] {
            assert_eq!(judged(Method::GET, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_part_is_for_get_only_and_conditions_for_head_too() {
        assert_eq!(
            judged(Method::HEAD, &[("range", "bytes=10-")]),
            Verdict::Whole
        );
        assert_eq!(
            judged(Method::HEAD, &[("if-none-match", "*")]),
            Verdict::NotModified
        );
        assert!(Conditions::of(&Method::POST, &HeaderMap::new()).is_none());
    }

    #[test]
    fn times_that_no_date_can_tell_are_the_next_that_it_can() {
        let second = Duration::from_secs(1);
        let early = Validators::new(UNIX_EPOCH - second, 1, "");
        assert_eq!(early.modified, UNIX_EPOCH);
        let late = Validators::new(UNIX_EPOCH + LAST + second, 1, "br");
        let mut headers = HeaderMap::new();
        headers.typed_insert(LastModified::from(late.modified));
        assert_eq!(headers["last-modified"], "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
