//! Trace context (W3C, level 2): which trace a request is part of, and what its fetches say of it.
//!
//! Unless it is told to trace (`spans`), the gateway begins no trace, since that would decide for the
//! application whether it is sampled, and it hands a request's own context on to the worker as it came. What
//! is not to the letter is taken out, as the standard asks for.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::record::{hex, unique};

pub const PARENT: HeaderName = HeaderName::from_static("traceparent");
pub const STATE: HeaderName = HeaderName::from_static("tracestate");

/// `00-` trace `-` parent `-` flags.
const PARENT_LEN: usize = 55;

/// Those that the standard knows: sampled, and a random trace id. Others must not be passed on by who
/// does not know what they mean.
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;

/// Most entries of a state.
const MOST_MEMBERS: usize = 32;
const LONGEST_NAME: usize = 256;
const LONGEST_VALUE: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// 32 hexadecimal digits.
    id: [u8; 32],
    /// The span that it came from.
    parent: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl Trace {
    /// One that begins here.
    pub fn new([high, low]: [u64; 2], sampled: bool) -> Self {
        let mut id = [0; 32];
        // All zeros would be no trace.
        hex(high.max(1), &mut id[..16]);
        hex(low, &mut id[16..]);
        Self {
            id,
            parent: 0,
            flags: if sampled { SAMPLED } else { 0 },
            state: None,
        }
    }

    /// The context in the headers of a fetch, without its state.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let (id, parent, flags) = parse_parent(headers.get(&PARENT)?.as_bytes())?;
        let state = None;
        Some(Self {
            id,
            parent,
            flags,
            state,
        })
    }

    /// The context in a request's headers. What is malformed is removed from them.
    pub fn take(headers: &mut HeaderMap) -> Option<Self> {
        if !headers.contains_key(&PARENT) {
            // A state alone means nothing.
            headers.remove(&STATE);
            return None;
        }
        let mut lines = headers.get_all(&PARENT).iter();
        let parent = match (lines.next(), lines.next()) {
            (Some(line), None) => parse_parent(line.as_bytes()),
            _ => None,
        };
        let Some((id, parent, flags)) = parent else {
            headers.remove(&PARENT);
            headers.remove(&STATE);
            return None;
        };
        let state = joined(headers);
        let state = state.filter(|state| is_state(state));
        match &state {
            Some(_) => {}
            None => _ = headers.remove(&STATE),
        }
        Some(Self {
            id,
            parent,
            flags,
            // Printable, or it would be no state.
            state: state.and_then(|state| HeaderValue::from_bytes(&state).ok()),
        })
    }

    /// 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        std::str::from_utf8(&self.id).expect("digits are ASCII")
    }

    pub fn bytes(&self) -> [u8; 16] {
        let number = u128::from_str_radix(self.id(), 16);
        number.expect("32 hexadecimal digits").to_be_bytes()
    }

    /// 0 if it begins here.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub fn state(&self) -> Option<&HeaderValue> {
        self.state.as_ref()
    }

    /// Adds it to the headers of something that is done for the request, unless they name a trace already.
    pub fn mark(&self, headers: &mut HeaderMap) {
        if headers.contains_key(&PARENT) {
            return;
        }
        // All zeros would be no parent.
        headers.insert(PARENT, self.line(unique().max(1)));
        self.mark_state(headers);
    }

    pub fn mark_state(&self, headers: &mut HeaderMap) {
        if let Some(state) = &self.state {
            headers.insert(STATE, state.clone());
        }
    }

    /// With another parent, in the same trace.
    pub fn line(&self, parent: u64) -> HeaderValue {
        let mut line = *b"00-00000000000000000000000000000000-0000000000000000-00";
        line[3..35].copy_from_slice(&self.id);
        hex(parent, &mut line[36..52]);
        hex(u64::from(self.flags & KNOWN_FLAGS), &mut line[53..55]);
        HeaderValue::from_bytes(&line).expect("digits and hyphens are ASCII")
    }
}

/// Trace id, parent and flags.
fn parse_parent(line: &[u8]) -> Option<([u8; 32], u64, u8)> {
    let (known, more) = line.split_at_checked(PARENT_LEN)?;
    let (version, id) = (&known[..2], &known[3..35]);
    let (parent, flags) = (&known[36..52], &known[53..]);
    let hyphens = [2, 35, 52].iter().all(|place| known[*place] == b'-');
    // Later versions may go on behind what this one knows.
    let ends = more.is_empty() || (version != b"00" && more[0] == b'-');
    let lower_hex = |digits: &[u8]| {
        let is = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        digits.iter().all(is)
    };
    let nothing = |digits: &[u8]| digits.iter().all(|byte| *byte == b'0');
    let well_formed = hyphens
        && ends
        && [version, id, parent, flags].into_iter().all(lower_hex)
        && version != b"ff"
        && !nothing(id)
        && !nothing(parent);
    if !well_formed {
        return None;
    }
    let number = |digits| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    Some((id.try_into().ok()?, number(parent)?, number(flags)? as u8))
}

/// All lines of a state as one. None if there is none.
fn joined(headers: &HeaderMap) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = headers
        .get_all(&STATE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    (!lines.is_empty()).then(|| lines.join(&b','))
}

fn is_state(state: &[u8]) -> bool {
    let mut names: Vec<&[u8]> = Vec::new();
    for member in state.split(|byte| *byte == b',') {
        let member = member.trim_ascii();
        if member.is_empty() {
            continue;
        }
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else {
            return false;
        };
        let (name, value) = (&member[..equals], &member[equals + 1..]);
        if !is_name(name) || !is_value(value) || names.contains(&name) {
            return false;
        }
        names.push(name);
    }
    (1..=MOST_MEMBERS).contains(&names.len())
}

fn is_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= LONGEST_NAME
        && name.first().is_some_and(plain)
        && name
            .iter()
            .all(|byte| plain(byte) || b"_-*/@".contains(byte))
}

fn is_value(value: &[u8]) -> bool {
    let fits = |byte: &u8| matches!(byte, b' '..=b'~') && !b",=".contains(byte);
    (1..=LONGEST_VALUE).contains(&value.len()) && value.iter().all(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn taken(pairs: &[(&'static str, &str)]) -> (Option<Trace>, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        (Trace::take(&mut headers), headers)
    }

    fn parents_of(trace: &Trace) -> String {
        let mut headers = HeaderMap::new();
        trace.mark(&mut headers);
        headers[PARENT].to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn a_good_context_stays_as_it_is_and_fetches_are_its_children() {
        let (trace, headers) = taken(&[
            ("traceparent", GOOD),
            ("tracestate", "rojo=00f067aa0ba902b7, ,congo=t61 x"),
            ("tracestate", "a@b=1"),
        ]);
        let trace = trace.expect("a context");
        assert_eq!(headers[PARENT], GOOD);
        assert_eq!(headers.get_all(STATE).iter().count(), 2);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        let (one, other) = (parents_of(&trace), parents_of(&trace));
        assert_ne!(one, other);
        for line in [one, other] {
            assert!(line.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
            assert!(line.ends_with("-01"));
            assert!(!line.contains("b7ad6b7169203331"));
        }
        let mut headers = HeaderMap::new();
        trace.mark(&mut headers);
        assert_eq!(headers[STATE], "rojo=00f067aa0ba902b7, ,congo=t61 x,a@b=1");
    }

    #[test]
    fn a_fetch_that_names_its_own_trace_keeps_it() {
        let trace = taken(&[("traceparent", GOOD), ("tracestate", "a=1")]).0;
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, HeaderValue::from_static("mine"));
        trace.expect("a context").mark(&mut headers);
        assert_eq!(headers[PARENT], "mine");
        assert!(!headers.contains_key(STATE));
    }

    #[test]
    fn what_is_not_to_the_letter_is_taken_out() {
        for bad in [
            "",
            "00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 ",
            "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
        ] {
            let (trace, headers) = taken(&[("traceparent", bad), ("tracestate", "a=1")]);
            assert_eq!(trace, None, "{bad}");
            assert!(headers.is_empty(), "{bad}");
        }
        assert!(
            taken(&[("traceparent", GOOD), ("traceparent", GOOD)])
                .1
                .is_empty()
        );
        assert!(taken(&[("tracestate", "a=1")]).1.is_empty());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-what";
        let (trace, headers) = taken(&[("traceparent", later)]);
        assert_eq!(headers[PARENT], later);
        assert!(parents_of(&trace.expect("a context")).ends_with("-03"));
    }

    #[test]
    fn a_bad_state_goes_and_its_parent_stays() {
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=1")).collect();
        for bad in [
            "a",
            "a=",
            "=1",
            "A=1",
            "a=1,a=2",
            "a=b=c",
            " , ",
            "a b=1",
            &many.join(","),
            &format!("a={}", "x".repeat(257)),
            &format!("{}=1", "x".repeat(257)),
        ] {
            let (trace, headers) = taken(&[("traceparent", GOOD), ("tracestate", bad)]);
            assert_eq!(trace.expect("a context").state, None, "{bad}");
            assert_eq!(headers.len(), 1, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_what_goes_out_is_to_the_letter(
            parent in proptest::collection::vec(any::<u8>(), 0..70),
            version in "[0-9a-f]{2}",
            tail in "[-0-9a-f]{0,5}",
        ) {
            let near = format!("{version}{}{tail}", &GOOD[2..]);
            for line in [&parent[..], near.as_bytes()] {
                if let Some((id, parent, flags)) = parse_parent(line) {
                    let trace = Trace { id, parent, flags, state: None };
                    let line = trace.line(7);
                    let known = flags & KNOWN_FLAGS;
                    prop_assert_eq!(parse_parent(line.as_bytes()), Some((id, 7, known)));
                }
            }
        }
    }
}
