//! Plans and results as JSON alone, for applications that speak HTTP to the gateway.
//!
//! What the plan in `decode` is to a worker's frames, with names in place of positions and the bodies inside.
//! `docs/plan.schema.json` says the same for machines. Reading is as strict: whoever sends it is
//! inside the threat model, and an error says where and what, never a value.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::time::Duration;

use ::http::header::HeaderMap;
use ::http::{HeaderName, HeaderValue, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};

use super::decode::{
    Extent, PlanError, THINGS, Text, WireJoin, duration, given, header_lines, invalid, method,
    seconds, shape,
};
use super::{Failure, Fetch, Gather, Outcome, Plan, Response, Thing};
use crate::message::MAX_HEADERS;

/// Bytes of a plan with all that is in it: as many as a worker may send.
pub const MAX_PLAN: usize = 32 << 20;

/// Where requests resume. Nothing of a client's gets there.
pub const RESUME: &str = "/.layby/";

const LONGEST_PATH: usize = 512;
const LONGEST_STATE: usize = 64 << 10;

/// Where a request goes on, and what it takes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The whole path, from `/.layby/` on. Nothing in it has to be escaped.
    pub path: String,
    pub state: String,
}

/// Reads a plan that parks its request.
///
/// # Errors
///
/// If it is not as `docs/plan.schema.json` has it.
pub fn decode_parking(json: &[u8]) -> Result<(Plan, Resume), PlanError> {
    let (plan, resume) = decode(json)?;
    let resume = resume.ok_or_else(|| invalid("", "resume", "is missing"))?;
    Ok((plan, resume))
}

/// Reads a plan whose results are waited for.
///
/// # Errors
///
/// If it is not as `docs/plan.schema.json` has it.
pub fn decode_waiting(json: &[u8]) -> Result<Plan, PlanError> {
    match decode(json)? {
        (plan, None) => Ok(plan),
        (_, Some(_)) => Err(invalid(
            "",
            "resume",
            "is for a plan that parks its request; these results are the answer",
        )),
    }
}

fn decode(json: &[u8]) -> Result<(Plan, Option<Resume>), PlanError> {
    // Each thing is an object, and each fetch may have one more; what is read takes far more room than its text.
    if has_more_objects(json, 2 * THINGS + 2) {
        return Err(PlanError::TooManyThings);
    }
    let wire: WirePlan = serde_json::from_slice(json).map_err(|error| shape(&error))?;
    let mut reading = Reading(Extent::default());
    let root = reading.gather("", 1, wire.fetches, wire.join, wire.timeout)?;
    let resume = wire.resume.map(resume).transpose()?;
    Ok((Plan { root, hold: None }, resume))
}

/// Whether the JSON has more objects than that, as far as it is JSON.
fn has_more_objects(json: &[u8], most: usize) -> bool {
    let (mut objects, mut quoted, mut escaped) = (0, false, false);
    json.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => objects += 1,
            _ => {}
        }
        objects > most
    })
}

struct Reading(Extent);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePlan<'a> {
    #[serde(borrow)]
    fetches: Vec<WireThing<'a>>,
    #[serde(default)]
    join: WireJoin,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<f64>,
    #[serde(borrow, default, deserialize_with = "given")]
    resume: Option<WireResume<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireResume<'a> {
    #[serde(borrow)]
    path: Text<'a>,
    #[serde(default)]
    state: String,
}

/// One struct for the three kinds, so that an error can say what is wrong with the one that was meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireThing<'a> {
    #[serde(default, deserialize_with = "given")]
    url: Option<String>,
    #[serde(borrow, default, deserialize_with = "given")]
    method: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "given")]
    headers: Option<WireHeaders<'a>>,
    #[serde(default, deserialize_with = "given")]
    body: Option<String>,
    #[serde(borrow, default, deserialize_with = "given")]
    body_base64: Option<Text<'a>>,
    #[serde(default, deserialize_with = "given")]
    follow: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    sleep: Option<f64>,
    #[serde(borrow, default, deserialize_with = "given")]
    fetches: Option<Vec<WireThing<'a>>>,
    #[serde(default, deserialize_with = "given")]
    join: Option<WireJoin>,
    #[serde(default, deserialize_with = "given")]
    timeout: Option<f64>,
}

/// An object of names with one value or several, or a list of pairs: what an empty array of PHP becomes is one
/// of both.
struct WireHeaders<'a>(Vec<(Text<'a>, WireValues<'a>)>);

/// One, or an array of them.
struct WireValues<'a>(Vec<Text<'a>>);

impl Reading {
    fn gather(
        &mut self,
        at: &str,
        depth: usize,
        things: Vec<WireThing>,
        join: WireJoin,
        timeout: Option<f64>,
    ) -> Result<Gather, PlanError> {
        self.0.gather(at, "fetches", depth, things.len())?;
        let timeout = seconds(timeout, at, "timeout")?;
        let things = things
            .into_iter()
            .enumerate()
            .map(|(n, thing)| self.thing(&format!("{at}fetches[{n}]."), depth, thing))
            .collect::<Result<_, _>>()?;
        Ok(Gather {
            things,
            join: join.0,
            timeout,
        })
    }

    fn thing(&mut self, at: &str, depth: usize, mut thing: WireThing) -> Result<Thing, PlanError> {
        let of_a_fetch = thing.method.is_some()
            || thing.headers.is_some()
            || thing.body.is_some()
            || thing.body_base64.is_some()
            || thing.follow.is_some();
        let join = thing.join.take();
        match (&thing.url, thing.sleep, thing.fetches.take()) {
            (Some(_), None, None) if join.is_none() => Ok(Thing::Fetch(self.fetch(at, thing)?)),
            (Some(_), None, None) => Err(invalid(at, "join", "is for several fetches")),
            (None, Some(time), None)
                if !of_a_fetch && join.is_none() && thing.timeout.is_none() =>
            {
                Ok(Thing::Sleep(duration(time, at, "sleep")?))
            }
            (None, Some(_), None) => Err(invalid(at, "sleep", "has nothing beside it")),
            (None, None, Some(things)) if !of_a_fetch => {
                let join = join.unwrap_or_default();
                let gather = self.gather(at, depth + 1, things, join, thing.timeout)?;
                Ok(Thing::Gather(gather))
            }
            (None, None, Some(_)) => Err(invalid(
                at,
                "fetches",
                "has only join and timeout beside it",
            )),
            _ => Err(invalid(
                at,
                "",
                "must have exactly one of url, sleep, fetches",
            )),
        }
    }

    fn fetch(&mut self, at: &str, wire: WireThing) -> Result<Fetch, PlanError> {
        self.0.fetch()?;
        let body = match (wire.body, wire.body_base64) {
            (None, None) => None,
            (Some(text), None) => Some(Bytes::from(text)),
            (None, Some(Text(text))) => {
                let bytes = BASE64.decode(text.as_bytes());
                let bytes = bytes.map_err(|_| invalid(at, "body_base64", "is not base64"))?;
                Some(Bytes::from(bytes))
            }
            (Some(_), Some(_)) => return Err(invalid(at, "body", "is there twice")),
        };
        let headers = wire.headers.map_or_else(Vec::new, |headers| headers.0);
        let lines = headers.iter().flat_map(|(name, values)| {
            let values = values.0.iter();
            values.map(|value| (&*name.0, &*value.0))
        });
        let count = headers.iter().map(|(_, values)| values.0.len()).sum();
        Ok(Fetch {
            method: match wire.method {
                Some(Text(name)) => method(&name, at, "method")?,
                None => Method::GET,
            },
            url: wire.url.expect("it is a fetch because of its URL"),
            headers: header_lines(lines, count, at, "headers")?,
            timeout: seconds(wire.timeout, at, "timeout")?,
            follow: wire.follow.unwrap_or(false),
            body,
            span: None,
        })
    }
}

fn resume(wire: WireResume) -> Result<Resume, PlanError> {
    let WireResume {
        path: Text(path),
        state,
    } = wire;
    if let Some(what) = path_fault(&path) {
        return Err(invalid("", "resume.path", what));
    }
    if state.len() > LONGEST_STATE {
        return Err(invalid("", "resume.state", "is longer than 64 KiB"));
    }
    Ok(Resume {
        path: format!("{RESUME}{path}"),
        state,
    })
}

/// What is wrong with the path of a resume. What remains means the same to every server, and stands in a
/// request, a signature and a log as it is.
fn path_fault(path: &str) -> Option<&'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let mut segments = path.split('/');
    if path.is_empty() {
        Some("is empty")
    } else if path.len() > LONGEST_PATH {
        Some("is longer than 512 characters")
    } else if !path.bytes().all(plain) {
        Some(
            "has a character other than letters, digits, and - . _ ~ /; what varies belongs into the state",
        )
    } else if path.starts_with('/') {
        Some("begins with a slash; it is what follows /.layby/")
    } else if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        Some("has a segment that is empty, . or ..")
    } else {
        None
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WireHeaders<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = WireHeaders<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of names and values, or an array of [name, value]")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut headers = Vec::new();
                while let Some(header) = map.next_entry()? {
                    add(&mut headers, header)?;
                }
                Ok(WireHeaders(headers))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                let mut headers = Vec::new();
                while let Some((name, value)) = list.next_element()? {
                    add(&mut headers, (name, WireValues(vec![value])))?;
                }
                Ok(WireHeaders(headers))
            }
        }

        from.deserialize_any(Reader)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WireValues<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = WireValues<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value or an array of values")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(WireValues(vec![Text(Cow::Borrowed(text))]))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(WireValues(vec![Text(Cow::Owned(text.to_owned()))]))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    add(&mut values, value)?;
                }
                Ok(WireValues(values))
            }
        }

        from.deserialize_any(Reader)
    }
}

/// One more of what there may be [`MAX_HEADERS`] of: no more than that is read.
fn add<T, E: serde::de::Error>(all: &mut Vec<T>, one: T) -> Result<(), E> {
    if all.len() == MAX_HEADERS {
        return Err(E::custom("headers are too many"));
    }
    all.push(one);
    Ok(())
}

/// The JSON of results, piece by piece: of large ones, no more than one at a time is there as text.
pub struct Results<I> {
    rest: I,
    state: Writing,
}

enum Writing {
    /// With all up to the first result. → First
    Begins(Bytes),
    /// → Goes, Over
    First,
    /// → Over
    Goes,
    Over,
}

impl<I: Iterator<Item: Borrow<Outcome>>> Results<I> {
    pub fn new(outcomes: impl IntoIterator<IntoIter = I>) -> Self {
        Self::from(b"{".to_vec(), outcomes.into_iter())
    }

    /// With what else stands in the object: the members of another one, which is not empty.
    pub fn beside(members: &impl Serialize, outcomes: impl IntoIterator<IntoIter = I>) -> Self {
        let mut text = Vec::new();
        write(&mut text, members);
        let end = text.pop();
        debug_assert_eq!(end, Some(b'}'));
        text.push(b',');
        Self::from(text, outcomes.into_iter())
    }

    fn from(mut text: Vec<u8>, rest: I) -> Self {
        text.extend_from_slice(b"\"results\":[");
        Self {
            rest,
            state: Writing::Begins(text.into()),
        }
    }
}

impl<I: Iterator<Item: Borrow<Outcome>>> Iterator for Results<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let (mut text, next) = match std::mem::replace(&mut self.state, Writing::Over) {
            Writing::Begins(text) => {
                self.state = Writing::First;
                return Some(text);
            }
            Writing::First => (Vec::new(), self.rest.next()),
            Writing::Goes => (b",".to_vec(), self.rest.next()),
            Writing::Over => return None,
        };
        let Some(outcome) = next else {
            return Some(Bytes::from_static(b"]}"));
        };
        self.state = Writing::Goes;
        write(&mut text, &Shown(outcome.borrow()));
        Some(text.into())
    }
}

fn write(text: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(text, value).expect("text in memory, and no map without names");
}

/// An outcome as its JSON.
struct Shown<'o>(&'o Outcome);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if matches!(self.0, Outcome::NotNeeded) {
            return to.serialize_none();
        }
        let mut map = to.serialize_map(None)?;
        match self.0 {
            Outcome::Response(response) => {
                let Response {
                    status,
                    url,
                    headers,
                    body,
                    elapsed,
                    redirects,
                } = response;
                map.serialize_entry("status", &status.as_u16())?;
                let reason = status.canonical_reason().unwrap_or_default();
                map.serialize_entry("reason", reason)?;
                map.serialize_entry("url", url)?;
                map.serialize_entry("headers", &Headers(headers))?;
                match text(body) {
                    Some(text) => map.serialize_entry("body", text)?,
                    None => map.serialize_entry("body_base64", &BASE64.encode(body))?,
                }
                map.serialize_entry("seconds", &seconds_of(*elapsed))?;
                map.serialize_entry("redirects", redirects)?;
            }
            Outcome::Failed(failure) => {
                let Failure {
                    kind,
                    phase,
                    message,
                    url,
                    elapsed,
                } = failure;
                map.serialize_entry("error", kind.as_str())?;
                map.serialize_entry("phase", phase.as_str())?;
                map.serialize_entry("message", message)?;
                map.serialize_entry("url", url)?;
                map.serialize_entry("seconds", &seconds_of(*elapsed))?;
            }
            Outcome::Slept(time) => map.serialize_entry("slept", &seconds_of(*time))?,
            Outcome::Gathered(outcomes) => map.serialize_entry("results", &List(outcomes))?,
            Outcome::Done(ok) => map.serialize_entry("done", ok)?,
            Outcome::NotNeeded => unreachable!("it has no object"),
        }
        map.end()
    }
}

/// Whole microseconds: finer is noise.
fn seconds_of(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

struct List<'o>(&'o [Outcome]);

impl Serialize for List<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.0.len()))?;
        for outcome in self.0 {
            list.serialize_element(&Shown(outcome))?;
        }
        list.end()
    }
}

/// Every name once, with all its values.
struct Headers<'h>(&'h HeaderMap);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let values = |name: &HeaderName| -> Vec<Cow<'_, str>> {
            self.0.get_all(name).iter().map(latin1).collect()
        };
        let names = self.0.keys();
        to.collect_map(names.map(|name| (name.as_str(), values(name))))
    }
}

fn latin1(value: &HeaderValue) -> Cow<'_, str> {
    match value.to_str() {
        Ok(ascii) => ascii.into(),
        Err(_) => value
            .as_bytes()
            .iter()
            .map(|byte| char::from(*byte))
            .collect(),
    }
}

/// The body as text, if it is some. Control characters would take six bytes each.
fn text(body: &[u8]) -> Option<&str> {
    let control = |byte: &u8| *byte < b' ' && !b"\t\n\r".contains(byte);
    match body.iter().any(control) {
        true => None,
        false => std::str::from_utf8(body).ok(),
    }
}

#[cfg(test)]
mod tests {
    use ::http::StatusCode;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{FailureKind, Join, Phase};

    fn parking(json: &Value) -> Result<(Plan, Resume), String> {
        decode_parking(json.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn waiting(json: &Value) -> Result<Plan, String> {
        decode_waiting(json.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn with_fetch(fetch: Value) -> Result<Plan, String> {
        waiting(&json!({ "fetches": [fetch] }))
    }

    #[test]
    fn what_is_too_much_is_not_read_first() {
        let many = "{},".repeat(2 * THINGS + 2);
        let read = |json: String| decode_waiting(json.as_bytes()).map_err(|it| it.to_string());
        let said = read(format!("{{\"fetches\":[{many}{{}}]}}")).expect_err("too many");
        assert!(said.contains("at most"), "{said}");
        // Not those in a text.
        let body = r#"{\"{"#.repeat(2 * THINGS + 2);
        assert!(read(format!(r#"{{"fetches":[{{"url":"/","body":"{body}"}}]}}"#)).is_ok());
        let values = |count: usize| {
            let values = vec!["\"\""; count].join(",");
            read(format!(
                r#"{{"fetches":[{{"url":"/","headers":{{"\u0061":[{values}]}}}}]}}"#
            ))
        };
        assert!(values(MAX_HEADERS).is_ok());
        let said = values(MAX_HEADERS + 1).expect_err("too many");
        assert!(said.contains("headers are too many"), "{said}");
    }

    #[test]
    fn a_plan_is_read_with_all_that_is_in_it() {
        let (plan, resume) = parking(&json!({
            "fetches": [
                { "url": "https://a.example/" },
                { "url": "https://b.example/", "method": "POST", "body": "text \u{e4}",
                  "headers": { "Accept": "*/*", "x-many": ["1", "2"], "x-none": [] },
                  "timeout": 2.5, "follow": true },
                { "url": "", "body_base64": "AP8=", "headers": [] },
                { "url": "", "headers": [["x", "caf\u{e9}"], ["x", "2"]] },
                { "sleep": 0.25 },
                { "fetches": [{ "sleep": 1 }], "join": "first_ok", "timeout": 3 },
            ],
            "join": 2,
            "timeout": 10,
            "resume": { "path": "quote/v1.0_a~-", "state": "42" },
        }))
        .expect("a plan");
        assert_eq!(resume.path, "/.layby/quote/v1.0_a~-");
        assert_eq!(resume.state, "42");
        assert_eq!(plan.root.join, Join::Count(2));
        assert_eq!(plan.root.timeout, Some(Duration::from_secs(10)));
        let fetch = |number: usize| match &plan.root.things[number] {
            Thing::Fetch(fetch) => fetch,
            other => panic!("no fetch: {other:?}"),
        };
        assert_eq!((fetch(0).method.as_str(), fetch(0).follow), ("GET", false));
        let full = fetch(1);
        assert_eq!(full.method, "POST");
        assert_eq!(full.body.as_deref(), Some("text \u{e4}".as_bytes()));
        assert_eq!(full.headers.get_all("x-many").iter().count(), 2);
        assert_eq!(full.headers.len(), 3);
        assert_eq!(full.timeout, Some(Duration::from_millis(2500)));
        assert!(full.follow);
        assert_eq!(fetch(2).body.as_deref(), Some(&[0, 255][..]));
        let values: Vec<_> = fetch(3).headers.get_all("x").iter().collect();
        assert_eq!(values[0].as_bytes(), b"caf\xe9");
        assert_eq!(values.len(), 2);
        assert!(matches!(plan.root.things[4], Thing::Sleep(time) if time.as_millis() == 250));
        let Thing::Gather(inner) = &plan.root.things[5] else {
            panic!("no gather");
        };
        assert_eq!((inner.join, inner.things.len()), (Join::FirstOk, 1));
        let stateless = json!({ "fetches": [{ "sleep": 0 }], "resume": { "path": "a" } });
        assert_eq!(parking(&stateless).expect("a plan").1.state, "");
    }

    #[test]
    fn what_is_no_plan_is_refused_with_its_place() {
        for (plan, said) in [
            (json!([]), "expected struct WirePlan"),
            (json!({}), "missing field `fetches`"),
            (json!({ "fetches": [] }), "fetches has nothing in it"),
            (
                json!({ "fetches": [{}] }),
                "fetches[0] must have exactly one",
            ),
            (json!({ "gather": [] }), "unknown field `gather`"),
            (
                json!({ "fetches": [{ "sleep": 0 }], "join": 0 }),
                "expected \"all\"",
            ),
            (
                json!({ "fetches": [{ "sleep": -1 }] }),
                "fetches[0].sleep is not a number",
            ),
            (
                json!({ "fetches": [{ "sleep": 1, "timeout": 1 }] }),
                "sleep has nothing beside",
            ),
            (
                json!({ "fetches": [{ "sleep": 1, "url": "" }] }),
                "exactly one of url",
            ),
            (
                json!({ "fetches": [{ "sleep": 1 }, { "fetches": [{ "sleep": 1 }], "method": "GET" }] }),
                "fetches[1].fetches has only join",
            ),
            (
                json!({ "fetches": [{ "url": "", "join": "any" }] }),
                "fetches[0].join is for",
            ),
            (
                json!({ "fetches": [{ "url": "", "timeout": null }] }),
                "expected f64",
            ),
        ] {
            let error = waiting(&plan).expect_err(&plan.to_string());
            assert!(error.contains(said), "{plan}: {error}");
        }
        for (fetch, said) in [
            (
                json!({ "url": "", "method": "CONNECT" }),
                "fetches[0].method CONNECT",
            ),
            (
                json!({ "url": "", "method": "" }),
                "fetches[0].method is not a token",
            ),
            (
                json!({ "url": "", "headers": { "a b": "1" } }),
                "headers has a name",
            ),
            (
                json!({ "url": "", "headers": { "a": "1\r\nb: 2" } }),
                "forbidden character",
            ),
            (
                json!({ "url": "", "headers": [["a", "\u{142}"]] }),
                "forbidden character",
            ),
            (json!({ "url": "", "headers": [["a"]] }), "expected"),
            (
                json!({ "url": "", "headers": { "a": 1 } }),
                "expected a value or an array",
            ),
            (
                json!({ "url": "", "body_base64": "a" }),
                "body_base64 is not base64",
            ),
            (
                json!({ "url": "", "body": "", "body_base64": "" }),
                "body is there twice",
            ),
        ] {
            let error = with_fetch(fetch.clone()).expect_err(&fetch.to_string());
            assert!(error.contains(said), "{fetch}: {error}");
        }
        let error = with_fetch(json!({ "url": "", "timeout": "s3cret" })).expect_err("text");
        assert!(!error.contains("s3cret"), "{error}");
        let resume =
            |resume: Value| parking(&json!({ "fetches": [{ "sleep": 0 }], "resume": resume }));
        for (given, said) in [
            (json!({ "path": "" }), "resume.path is empty"),
            (json!({ "path": "/a" }), "begins with a slash"),
            (json!({ "path": "a//b" }), "has a segment"),
            (json!({ "path": "a/" }), "has a segment"),
            (json!({ "path": "a/./b" }), "has a segment"),
            (json!({ "path": "a".repeat(513) }), "longer than 512"),
            (
                json!({ "path": "a", "state": "s".repeat(65_537) }),
                "longer than 64 KiB",
            ),
            (json!({ "path": "a", "state": {} }), "expected a string"),
            (json!({ "state": "" }), "missing field `path`"),
        ] {
            let error = resume(given).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        assert!(resume(json!({ "path": "a", "state": "s".repeat(65_536) })).is_ok());
        let missing = parking(&json!({ "fetches": [{ "sleep": 0 }] })).expect_err("no resume");
        assert_eq!(missing, "not a plan: resume is missing");
    }

    #[test]
    fn a_plan_has_the_bounds_of_a_workers() {
        let many = |thing: Value, n: usize| waiting(&json!({ "fetches": vec![thing; n] }));
        assert!(many(json!({ "url": "" }), 1000).is_ok());
        assert!(many(json!({ "url": "" }), 1001).is_err_and(|error| error.contains("fetches")));
        assert!(many(json!({ "sleep": 0 }), 4001).is_err_and(|error| error.contains("things")));
        let nested = |depth: usize| {
            let (open, close) = (r#"{"fetches":["#.repeat(depth), "]}".repeat(depth));
            format!("{open}{{\"sleep\":0}}{close}")
        };
        assert!(decode_waiting(nested(16).as_bytes()).is_ok());
        assert!(decode_waiting(nested(17).as_bytes()).is_err());
        assert!(decode_waiting(nested(10_000).as_bytes()).is_err());
    }

    #[test]
    fn results_are_said_in_words() {
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        headers.append(
            "x-name",
            HeaderValue::from_bytes(b"caf\xe9").expect("valid"),
        );
        let response = |body: &'static [u8]| {
            Outcome::Response(Response {
                status: StatusCode::CREATED,
                url: "https://pay.example/?a=1".to_owned(),
                headers: headers.clone(),
                body: Bytes::from_static(body),
                elapsed: Duration::from_micros(31_250),
                redirects: 2,
            })
        };
        let outcomes = vec![
            response("\"text\" \u{e4}\n".as_bytes()),
            Outcome::Gathered(vec![response(b"\xff"), Outcome::NotNeeded]),
            response(b"\0"),
            Outcome::Failed(Failure {
                kind: FailureKind::TooLarge,
                phase: Phase::Body,
                message: "more".to_owned(),
                url: "http://a.example/".to_owned(),
                elapsed: Duration::from_secs(2),
            }),
            Outcome::Slept(Duration::from_millis(500)),
        ];
        let entry = |body: &str, value: &str| {
            json!({
                "status": 201, "reason": "Created", "url": "https://pay.example/?a=1",
                "headers": { "set-cookie": ["a=1", "b=2"], "x-name": ["caf\u{e9}"] },
                body: value, "seconds": 0.03125, "redirects": 2,
            })
        };
        let expected = json!([
            entry("body", "\"text\" \u{e4}\n"),
            { "results": [entry("body_base64", "/w=="), null] },
            entry("body_base64", "AA=="),
            { "error": "too_large", "phase": "body", "message": "more",
              "url": "http://a.example/", "seconds": 2.0 },
            { "slept": 0.5 },
        ]);
        let read = |pieces: Vec<Bytes>| -> Value {
            serde_json::from_slice(&pieces.concat()).expect("JSON")
        };
        let beside = json!({ "state": "s" });
        let pieces: Vec<Bytes> = Results::beside(&beside, &outcomes).collect();
        assert_eq!(read(pieces), json!({ "state": "s", "results": expected }));
        let pieces: Vec<Bytes> = Results::new(outcomes).collect();
        assert_eq!(read(pieces), json!({ "results": expected }));
        let none: Vec<Bytes> = Results::new(Vec::<Outcome>::new()).collect();
        assert_eq!(read(none), json!({ "results": [] }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            for json in [&bytes[..], text.as_bytes()] {
                let _ = decode_parking(json);
                let _ = decode_waiting(json);
            }
        }

        /// What is taken stands for itself in a request line, and no server makes another path of it.
        #[test]
        fn a_path_that_is_taken_has_one_reading(path in "[-a-zA-Z0-9._~/%?#;\\\\ \u{0}-\u{1f}\u{e4}]{0,12}", state: String) {
            let plan = json!({ "fetches": [{ "sleep": 0 }], "resume": { "path": path, "state": state } });
            let Ok((_, resume)) = parking(&plan) else {
                return Ok(());
            };
            prop_assert_eq!(&resume.state, &state);
            let uri: ::http::Uri = resume.path.parse().expect("a target");
            prop_assert_eq!(uri.path(), &resume.path);
            prop_assert_eq!(uri.query(), None);
            let whole = url::Url::parse("http://a").and_then(|url| url.join(&resume.path));
            let whole = whole.expect("a URL");
            prop_assert_eq!(whole.path(), &resume.path);
            prop_assert!(resume.path.starts_with(RESUME) && !resume.path.ends_with('/'));
        }
    }
}
