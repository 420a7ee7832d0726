//! The JSON form of a plan: what is a valid one.
//!
//! Workers are inside the threat model, so reading is strict: an unknown key, a key
//! twice, `null` for "absent", a number that is no duration or a range outside the body
//! is an error that says where and what. Messages name keys and positions, never values:
//! they end up in logs, and values hold secrets. URLs are not judged here; a bad one is
//! the failure of its fetch, not of the plan.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::de::{Deserializer, Unexpected, Visitor};
use serde::{Deserialize, de};

use super::{Fetch, Gather, Hold, Join, Plan, Relay, Thing, WaitReason};
use crate::message::MAX_HEADERS;

/// Fetches in one plan, at every depth.
const FETCHES: usize = 1000;
/// Things of any kind in one plan: each costs a timer or a place in the results.
pub(super) const THINGS: usize = 4000;
/// Gathers inside each other, the root counted.
const DEPTH: usize = 16;
/// Bytes of a relayed response that are kept at most, whatever the worker asks for.
const CAPTURE: u64 = 1 << 20;
/// Characters of an error message.
const SAID: usize = 300;

/// Why the bytes of a worker are not a plan.
#[derive(Debug)]
pub enum PlanError {
    /// Not JSON, or JSON of another shape.
    Shape(String),
    /// The right shape around something that cannot be. `at` is a path such as
    /// `gather[2].fetch.headers`.
    Invalid {
        at: String,
        what: &'static str,
    },
    TooManyFetches,
    TooManyThings,
    TooDeep,
}

/// Reads a plan from the head of a `PARK` or `HOLD` frame. The bodies of its fetches are
/// slices of `body`, not copies.
///
/// # Errors
///
/// If the head is not a plan as `docs/protocol.md` has it.
pub fn decode(head: &[u8], body: &Bytes) -> Result<Plan, PlanError> {
    let wire: WirePlan = serde_json::from_slice(head).map_err(|error| shape(&error))?;
    let mut reading = Reading {
        body,
        extent: Extent::default(),
    };
    let root = reading.gather("", 1, wire.gather, wire.join, wire.timeout)?;
    Ok(Plan {
        root,
        hold: wire.hold.map(Hold::from),
    })
}

/// Reads the head of a `HOLD` frame that has no plan: only why the slot is held.
///
/// # Errors
///
/// If the head is not as `docs/protocol.md` has it.
pub fn decode_hold(head: &[u8]) -> Result<Hold, PlanError> {
    let wire: WireHeld = serde_json::from_slice(head).map_err(|error| shape(&error))?;
    Ok(wire.hold.into())
}

/// Reads the head of a `RELAY` frame. The body of its fetch is a slice of `body`.
///
/// # Errors
///
/// If the head is not as `docs/protocol.md` has it.
pub fn decode_relay(head: &[u8], body: &Bytes) -> Result<Relay, PlanError> {
    let wire: WireRelay = serde_json::from_slice(head).map_err(|error| shape(&error))?;
    let mut reading = Reading {
        body,
        extent: Extent::default(),
    };
    Ok(Relay {
        fetch: reading.fetch("", wire.fetch)?,
        headers: header_map(&wire.headers, "", "headers")?,
        capture: wire.capture.min(CAPTURE) as usize,
        resume: wire.resume,
    })
}

struct Reading<'b> {
    body: &'b Bytes,
    extent: Extent,
}

/// How much of a plan has been read, over all depths.
#[derive(Default)]
pub(super) struct Extent {
    fetches: usize,
    things: usize,
}

impl Extent {
    /// A gather of so many things, called `key`, is within bounds.
    pub(super) fn gather(
        &mut self,
        at: &str,
        key: &str,
        depth: usize,
        things: usize,
    ) -> Result<(), PlanError> {
        if depth > DEPTH {
            return Err(PlanError::TooDeep);
        }
        if things == 0 {
            return Err(invalid(at, key, "has nothing in it"));
        }
        self.things += things;
        if self.things > THINGS {
            return Err(PlanError::TooManyThings);
        }
        Ok(())
    }

    pub(super) fn fetch(&mut self) -> Result<(), PlanError> {
        self.fetches += 1;
        match self.fetches > FETCHES {
            true => Err(PlanError::TooManyFetches),
            false => Ok(()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHeld {
    hold: WireHold,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePlan<'a> {
    #[serde(borrow)]
    gather: Vec<WireThing<'a>>,
    #[serde(default)]
    join: WireJoin,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    hold: Option<WireHold>,
}

/// One struct for the four kinds: an untagged enum would try each in turn and could only
/// say that none fits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireThing<'a> {
    #[serde(borrow, default, deserialize_with = "given")]
    fetch: Option<WireFetch<'a>>,
    #[serde(default, deserialize_with = "given")]
    sleep: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    done: Option<bool>,
    #[serde(borrow, default, deserialize_with = "given")]
    gather: Option<Vec<WireThing<'a>>>,
    #[serde(default, deserialize_with = "given")]
    join: Option<WireJoin>,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFetch<'a> {
    #[serde(borrow)]
    method: Text<'a>,
    url: String,
    #[serde(borrow, default)]
    headers: Vec<(Text<'a>, Text<'a>)>,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<f64>,
    #[serde(default)]
    follow: bool,
    #[serde(default, deserialize_with = "given")]
    body: Option<(u64, u64)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRelay<'a> {
    #[serde(borrow)]
    fetch: WireFetch<'a>,
    #[serde(borrow, default)]
    headers: Vec<(Text<'a>, Text<'a>)>,
    #[serde(default)]
    capture: u64,
    #[serde(default)]
    resume: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireHold {
    reason: WireReason,
    source: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WireReason {
    Transaction,
    Cursor,
    Middleware,
    Mode,
    Unsupported,
}

impl From<WireHold> for Hold {
    fn from(hold: WireHold) -> Self {
        Self {
            reason: hold.reason.into(),
            source: hold.source,
        }
    }
}

/// Borrowed from the head unless it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

pub(super) struct WireJoin(pub(super) Join);

impl Reading<'_> {
    fn gather(
        &mut self,
        at: &str,
        depth: usize,
        things: Vec<WireThing>,
        join: WireJoin,
        timeout: Option<f64>,
    ) -> Result<Gather, PlanError> {
        self.extent.gather(at, "gather", depth, things.len())?;
        let timeout = seconds(timeout, at, "timeout")?;
        let things = things
            .into_iter()
            .enumerate()
            .map(|(n, thing)| self.thing(&format!("{at}gather[{n}]."), depth, thing))
            .collect::<Result<_, _>>()?;
        Ok(Gather {
            things,
            join: join.0,
            timeout,
        })
    }

    fn thing(&mut self, at: &str, depth: usize, thing: WireThing) -> Result<Thing, PlanError> {
        let of_a_gather = thing.join.is_some() || thing.timeout.is_some();
        match (thing.fetch, thing.sleep, thing.done, thing.gather) {
            (None, None, None, Some(things)) => {
                let join = thing.join.unwrap_or_default();
                let gather = self.gather(at, depth + 1, things, join, thing.timeout)?;
                Ok(Thing::Gather(gather))
            }
            _ if of_a_gather => Err(invalid(at, "", "only a gather has a join or a timeout")),
            (Some(fetch), None, None, None) => Ok(Thing::Fetch(self.fetch(at, fetch)?)),
            (None, Some(time), None, None) => Ok(Thing::Sleep(duration(time, at, "sleep")?)),
            (None, None, Some(ok), None) => Ok(Thing::Done(ok)),
            _ => Err(invalid(
                at,
                "",
                "must be exactly one of fetch, sleep, done, gather",
            )),
        }
    }

    fn fetch(&mut self, at: &str, wire: WireFetch) -> Result<Fetch, PlanError> {
        self.extent.fetch()?;
        Ok(Fetch {
            method: method(&wire.method.0, at, "fetch.method")?,
            url: wire.url,
            headers: header_map(&wire.headers, at, "fetch.headers")?,
            timeout: seconds(wire.timeout, at, "fetch.timeout")?,
            follow: wire.follow,
            body: wire.body.map(|range| self.slice(at, range)).transpose()?,
            span: None,
        })
    }

    fn slice(&self, at: &str, (offset, length): (u64, u64)) -> Result<Bytes, PlanError> {
        offset
            .checked_add(length)
            .filter(|end| *end <= self.body.len() as u64)
            .map(|end| self.body.slice(offset as usize..end as usize))
            .ok_or_else(|| invalid(at, "fetch.body", "is not within the frame's body"))
    }
}

pub(super) fn method(wire: &str, at: &str, key: &str) -> Result<Method, PlanError> {
    let method =
        Method::from_bytes(wire.as_bytes()).map_err(|_| invalid(at, key, "is not a token"))?;
    match method == Method::CONNECT {
        true => Err(invalid(at, key, "CONNECT opens no exchange")),
        false => Ok(method),
    }
}

fn header_map(wire: &[(Text<'_>, Text<'_>)], at: &str, key: &str) -> Result<HeaderMap, PlanError> {
    let lines = wire.iter().map(|(name, value)| (&*name.0, &*value.0));
    header_lines(lines, wire.len(), at, key)
}

/// So many names and their values.
pub(super) fn header_lines<'w>(
    lines: impl Iterator<Item = (&'w str, &'w str)>,
    count: usize,
    at: &str,
    key: &str,
) -> Result<HeaderMap, PlanError> {
    if count > MAX_HEADERS {
        return Err(invalid(at, key, "are too many"));
    }
    let mut headers = HeaderMap::with_capacity(count);
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| invalid(at, key, "has a name that is not a token"))?;
        let value = latin1(value)
            .and_then(|value| HeaderValue::from_bytes(&value).ok())
            .ok_or_else(|| invalid(at, key, "has a value with a forbidden character"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

pub(super) fn seconds(
    value: Option<f64>,
    at: &str,
    key: &str,
) -> Result<Option<Duration>, PlanError> {
    value.map(|value| duration(value, at, key)).transpose()
}

pub(super) fn duration(value: f64, at: &str, key: &str) -> Result<Duration, PlanError> {
    // Refuses what is negative, not finite, or beyond what a Duration can hold.
    Duration::try_from_secs_f64(value)
        .map_err(|_| invalid(at, key, "is not a number of seconds, zero or more"))
}

/// The bytes of a header value that JSON carries as ISO-8859-1.
fn latin1(text: &str) -> Option<Cow<'_, [u8]>> {
    if text.is_ascii() {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    text.chars()
        .map(|c| u8::try_from(c).ok())
        .collect::<Option<Vec<_>>>()
        .map(Cow::Owned)
}

pub(super) fn invalid(at: &str, key: &str, what: &'static str) -> PlanError {
    let at = format!("{at}{key}").trim_end_matches('.').to_owned();
    PlanError::Invalid { at, what }
}

/// serde quotes the value that it did not expect; it is cut out. Unknown keys it quotes
/// in full, however long the worker made them.
pub(super) fn shape(error: &serde_json::Error) -> PlanError {
    let mut message = error.to_string();
    if message.starts_with("invalid ")
        && let Some((_, expected)) = message.rsplit_once(", expected ")
    {
        message = format!("expected {expected}");
    }
    PlanError::Shape(message.chars().take(SAID).collect())
}

/// For optional keys: present means a value. Without this, `null` would pass for absent,
/// and a worker that means "no timeout" would get the default one.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl Default for WireJoin {
    fn default() -> Self {
        Self(Join::All)
    }
}

impl<'de> Deserialize<'de> for WireJoin {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = WireJoin;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"all\", \"any\", \"first_ok\" or an integer of at least 1")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<WireJoin, E> {
                match name {
                    "all" => Ok(WireJoin(Join::All)),
                    "any" => Ok(WireJoin(Join::Any)),
                    "first_ok" => Ok(WireJoin(Join::FirstOk)),
                    _ => Err(E::invalid_value(Unexpected::Str(name), &self)),
                }
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<WireJoin, E> {
                match usize::try_from(n) {
                    Ok(n) if n > 0 => Ok(WireJoin(Join::Count(n))),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(n), &self)),
                }
            }
        }

        from.deserialize_any(Reader)
    }
}

impl From<WireReason> for WaitReason {
    fn from(wire: WireReason) -> Self {
        match wire {
            WireReason::Transaction => Self::Transaction,
            WireReason::Cursor => Self::Cursor,
            WireReason::Middleware => Self::Middleware,
            WireReason::Mode => Self::Mode,
            WireReason::Unsupported => Self::Unsupported,
        }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Shape(what) => write!(f, "not a plan: {what}"),
            Self::Invalid { at, what } => write!(f, "not a plan: {at} {what}"),
            Self::TooManyFetches => write!(f, "a plan has at most {FETCHES} fetches"),
            Self::TooManyThings => write!(f, "a plan has at most {THINGS} things"),
            Self::TooDeep => write!(f, "gathers are at most {DEPTH} deep"),
        }
    }
}

impl Error for PlanError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Plan, String> {
        decode(json.as_bytes(), &Bytes::from_static(b"0123456789")).map_err(|e| e.to_string())
    }

    fn only_fetch(fields: &str) -> Result<Fetch, String> {
        let json = format!(r#"{{"gather":[{{"fetch":{{{fields}}}}}]}}"#);
        match read(&json)?.root.things.remove(0) {
            Thing::Fetch(fetch) => Ok(fetch),
            other => panic!("asked for a fetch, read {other:?}"),
        }
    }

    #[test]
    fn the_example_of_the_protocol_page_is_read() {
        let plan = read(
            r#"{"gather": [
                {"fetch": {"method": "GET", "url": "https://ship.example/quote?zip=1",
                           "headers": [["Accept", "*/*"]], "timeout": 5.0, "follow": false}},
                {"fetch": {"method": "POST", "url": "https://pay.example/charge",
                           "headers": [["content-type", "application/json"]], "body": [2, 3]}},
                {"sleep": 0.5},
                {"done": true},
                {"gather": [{"sleep": 1}], "join": "any"}
             ],
             "join": 2, "timeout": 10.0,
             "hold": {"reason": "cursor", "source": "shop/views.py:88"}}"#,
        )
        .expect("the example is valid");

        assert_eq!(plan.root.join, Join::Count(2));
        assert_eq!(plan.root.timeout, Some(Duration::from_secs(10)));
        let hold = plan.hold.expect("the plan waits in place");
        assert_eq!(hold.reason, WaitReason::Cursor);
        assert_eq!(hold.source, "shop/views.py:88");
        let [
            Thing::Fetch(get),
            Thing::Fetch(post),
            Thing::Sleep(sleep),
            Thing::Done(true),
            Thing::Gather(inner),
        ] = &plan.root.things[..]
        else {
            panic!("other things: {:?}", plan.root.things);
        };
        assert_eq!(get.headers["accept"], "*/*");
        assert_eq!(get.timeout, Some(Duration::from_secs(5)));
        assert_eq!(get.body, None);
        assert_eq!(post.body.as_deref(), Some(&b"234"[..]));
        assert_eq!(*sleep, Duration::from_millis(500));
        assert_eq!(inner.join, Join::Any);
    }

    #[test]
    fn headers_are_latin1_and_keep_their_order_and_repeats() {
        let fetch = only_fetch(
            r#""method":"GET","url":"","headers":[["x-a","1"],["x-\u0061","caf\u00e9"],["x-a","\"3\""]]"#,
        )
        .expect("valid headers");
        let values: Vec<_> = fetch.headers.get_all("x-a").iter().collect();
        assert_eq!(values, [&b"1"[..], b"caf\xe9", b"\"3\""]);
    }

    #[test]
    fn what_is_no_plan_is_refused_with_its_place() {
        for (json, said) in [
            (r#"{"gather": []}"#, "gather has nothing in it"),
            (r#"{"gather": [{}]}"#, "gather[0] must be exactly one of"),
            (
                r#"{"gather": [{"sleep": 1, "done": true}]}"#,
                "gather[0] must be exactly one",
            ),
            (
                r#"{"gather": [{"sleep": 1, "join": "any"}]}"#,
                "only a gather has a join",
            ),
            (
                r#"{"gather": [{"sleep": -1}]}"#,
                "gather[0].sleep is not a number of seconds",
            ),
            (
                r#"{"gather": [{"sleep": 1e300}]}"#,
                "gather[0].sleep is not a number",
            ),
            (r#"{"gather": [{"sleep": 1e999}]}"#, "number out of range"),
            (r#"{"gather": [{"sleep": NaN}]}"#, "expected"),
            (
                r#"{"gather": [{"sleep": 1}], "timeout": -0.5}"#,
                "timeout is not a number",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "timeout": null}"#,
                "expected f64",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "tiemout": 1}"#,
                "unknown field `tiemout`",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "gather": []}"#,
                "duplicate field `gather`",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "join": "first"}"#,
                "expected \"all\", \"any\"",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "join": 0}"#,
                "expected \"all\", \"any\"",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "join": 1.5}"#,
                "expected \"all\", \"any\"",
            ),
            (
                r#"{"gather": [{"sleep": 1}], "hold": {"reason": "x", "source": ""}}"#,
                "variant",
            ),
            (
                r#"{"gather": [{"gather": [{"sleep": 1, "done": 5}]}]}"#,
                "expected a boolean",
            ),
            (
                r#"{"gather": [{"gather": [{"done": true}, {}]}]}"#,
                "gather[0].gather[1] must",
            ),
            (r#"{"gather": [{"sleep": 1}]} x"#, "trailing characters"),
            ("", "EOF"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn what_is_no_fetch_is_refused_with_its_place() {
        for (fields, said) in [
            (r#""method":"GET""#, "missing field `url`"),
            (r#""method":"G T","url":"""#, "fetch.method is not a token"),
            (r#""method":"","url":"""#, "fetch.method is not a token"),
            (r#""method":"CONNECT","url":"""#, "CONNECT"),
            (
                r#""method":"GET","url":"","headers":[["a b","1"]]"#,
                "not a token",
            ),
            (
                r#""method":"GET","url":"","headers":[["","1"]]"#,
                "not a token",
            ),
            (
                r#""method":"GET","url":"","headers":[["a","1\r\nb: 2"]]"#,
                "forbidden character",
            ),
            (
                r#""method":"GET","url":"","headers":[["a","\u0000"]]"#,
                "forbidden character",
            ),
            (
                r#""method":"GET","url":"","headers":[["a","\u0142"]]"#,
                "forbidden character",
            ),
            (
                r#""method":"GET","url":"","body":[5,6]"#,
                "fetch.body is not within",
            ),
            (
                r#""method":"GET","url":"","body":[18446744073709551615,2]"#,
                "not within",
            ),
            (r#""method":"GET","url":"","body":[-1,2]"#, "expected u64"),
            (
                r#""method":"GET","url":"","timeout":-1"#,
                "fetch.timeout is not a number",
            ),
            (
                r#""method":"GET","url":"","folow":true"#,
                "unknown field `folow`",
            ),
        ] {
            let error = only_fetch(fields).expect_err(fields);
            assert!(error.contains(said), "{fields}: {error}");
        }
    }

    #[test]
    fn errors_do_not_repeat_values() {
        let error = only_fetch(r#""method":"GET","url":"","timeout":"s3cret, expected x""#)
            .expect_err("a string is no timeout");
        assert!(error.contains("expected f64"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_plan_has_bounds() {
        let nested = |depth: usize| {
            let (open, close) = (r#"{"gather":["#.repeat(depth), "]}".repeat(depth));
            format!("{open}{{\"sleep\":0}}{close}")
        };
        let many = |thing: &str, n: usize| {
            let things = vec![thing; n].join(",");
            format!(r#"{{"gather":[{things}]}}"#)
        };
        let fetch = r#"{"fetch":{"method":"GET","url":""}}"#;

        assert!(read(&nested(DEPTH)).is_ok());
        assert!(read(&nested(DEPTH + 1)).is_err_and(|e| e.contains("deep")));
        assert!(read(&nested(10_000)).is_err());
        assert!(read(&many(fetch, FETCHES)).is_ok());
        assert!(read(&many(fetch, FETCHES + 1)).is_err_and(|e| e.contains("fetches")));
        assert!(read(&many(r#"{"sleep":1}"#, THINGS + 1)).is_err_and(|e| e.contains("things")));

        let headers = |n: usize| {
            let pairs: Vec<_> = (0..n).map(|n| format!(r#"["x{n}",""]"#)).collect();
            let headers = pairs.join(",");
            only_fetch(&format!(r#""method":"GET","url":"","headers":[{headers}]"#))
        };
        assert!(headers(MAX_HEADERS).is_ok());
        // A map of headers panics at some number beyond.
        for many in [MAX_HEADERS + 1, 40_000] {
            assert!(headers(many).is_err_and(|e| e.contains("headers are too many")));
        }
    }

    #[test]
    fn a_relay_is_a_fetch_and_what_is_to_become_of_it() {
        let body = Bytes::from_static(b"0123456789");
        let relay = decode_relay(
            br#"{"fetch": {"method": "POST", "url": "https://llm.example/", "body": [2, 3]},
                 "headers": [["Vary", "Cookie"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]],
                 "capture": 65536, "resume": true}"#,
            &body,
        )
        .expect("a relay");
        assert_eq!(relay.fetch.body.as_deref(), Some(&b"234"[..]));
        assert_eq!(relay.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!((relay.capture, relay.resume), (65_536, true));

        let plain = br#"{"fetch": {"method": "GET", "url": ""}}"#;
        let plain = decode_relay(plain, &body).expect("a relay");
        assert_eq!((plain.capture, plain.resume), (0, false));
        assert!(plain.headers.is_empty());

        let greedy = br#"{"fetch": {"method": "GET", "url": ""}, "capture": 18446744073709551615}"#;
        let greedy = decode_relay(greedy, &body).expect("a relay");
        assert_eq!(greedy.capture as u64, CAPTURE);
    }

    #[test]
    fn what_is_no_relay_is_refused_with_its_place() {
        for (json, said) in [
            ("{}", "missing field `fetch`"),
            (
                r#"{"fetch": {"method": "CONNECT", "url": ""}}"#,
                "fetch.method",
            ),
            (
                r#"{"fetch": {"method": "GET", "url": ""}, "headers": [["a b", ""]]}"#,
                "headers has a name",
            ),
            (
                r#"{"fetch": {"method": "GET", "url": ""}, "capture": -1}"#,
                "expected u64",
            ),
            (
                r#"{"fetch": {"method": "GET", "url": ""}, "join": "all"}"#,
                "unknown field `join`",
            ),
        ] {
            let error = decode_relay(json.as_bytes(), &Bytes::new()).expect_err(json);
            assert!(error.to_string().contains(said), "{json}: {error}");
        }
    }

    #[test]
    fn bodies_are_slices_of_the_frame() {
        let body = Bytes::from_static(b"0123456789");
        let head = br#"{"gather":[{"fetch":{"method":"PUT","url":"","body":[4,6]}}]}"#;
        let plan = decode(head, &body).expect("a valid plan");
        let Thing::Fetch(fetch) = &plan.root.things[0] else {
            panic!("asked for a fetch");
        };
        let slice = fetch.body.as_ref().expect("it has a body");
        assert_eq!(slice.as_ptr(), body[4..].as_ptr());
        assert_eq!(slice.len(), 6);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(head: Vec<u8>, body: Vec<u8>) {
            let body = body.into();
            let _ = decode(&head, &body);
            let _ = decode_relay(&head, &body);
        }
    }
}
