//! One line: what is told of a request, and how it is written.
//!
//! Whatever a client sends, a line is one line of plain ASCII and its fields are told apart: what could
//! end a field or the line is escaped. Pure, but for the copy that [`Head`] keeps.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HOST, HeaderName, REFERER, USER_AGENT};
use http::request::Parts;
use http::{Method, Version};

use crate::config::{AccessFormat, AccessLog};
use crate::message::{Client, Scheme};
use crate::record::{Course, Record};

/// Longest part of a target, and of a header, in a line; the rest is cut off.
const TARGET: usize = 4096;
const HEADER: usize = 1024;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    format: Format,
    /// Queries are told.
    query: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Combined,
}

/// What of a request's head is told when it is over. A copy: the head itself is a part of a buffer that
/// must not stay as long.
#[derive(Debug, Clone)]
pub struct Head {
    client: Option<IpAddr>,
    scheme: Scheme,
    version: Version,
    method: Method,
    /// Target, host, referrer and user agent, one after the other.
    text: Box<[u8]>,
    ends: [usize; 4],
}

/// Everything that there is to tell of a request.
#[derive(Debug)]
pub struct Ended<'e> {
    pub head: &'e Head,
    pub record: &'e Record,
    pub course: Course,
    pub arrived: SystemTime,
    pub seconds: Duration,
    pub status: u16,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// The client has all of the answer.
    pub whole: bool,
    /// Why the answer is not the application's.
    pub why: Option<&'static str>,
}

impl Style {
    /// None if nothing is to be written.
    pub fn new(config: &AccessLog) -> Option<Self> {
        let format = match config.format {
            AccessFormat::Off => return None,
            AccessFormat::Json => Format::Json,
            AccessFormat::Combined => Format::Combined,
        };
        let query = config.query;
        Some(Self { format, query })
    }

    /// Takes a copy of what will be told.
    pub fn head(self, parts: &Parts, client: &Client) -> Head {
        let header = |name: &HeaderName| {
            let value = parts.headers.get(name);
            value.map(http::HeaderValue::as_bytes).unwrap_or_default()
        };
        let target = match parts.uri.path_and_query() {
            Some(target) if self.query => target.as_str(),
            _ => parts.uri.path(),
        };
        let host = match parts.uri.host() {
            Some(host) if header(&HOST).is_empty() => host.as_bytes(),
            _ => header(&HOST),
        };
        let referer = self.without_query(header(&REFERER));
        let mut text = Vec::with_capacity(
            target.len() + host.len() + referer.len() + header(&USER_AGENT).len(),
        );
        let mut ends = [0; 4];
        for (end, (part, most)) in ends.iter_mut().zip([
            (target.as_bytes(), TARGET),
            (host, HEADER),
            (referer, HEADER),
            (header(&USER_AGENT), HEADER),
        ]) {
            text.extend_from_slice(&part[..part.len().min(most)]);
            *end = text.len();
        }
        Head {
            client: client.address,
            scheme: client.scheme,
            version: parts.version,
            method: parts.method.clone(),
            text: text.into_boxed_slice(),
            ends,
        }
    }

    fn without_query(self, url: &[u8]) -> &[u8] {
        let query = url.iter().position(|byte| matches!(byte, b'?' | b'#'));
        match query {
            Some(start) if !self.query => &url[..start],
            _ => url,
        }
    }

    /// Adds a line.
    pub fn write(self, ended: &Ended<'_>, calendar: &mut Calendar, out: &mut Vec<u8>) {
        match self.format {
            Format::Json => json(ended, calendar, out),
            Format::Combined => combined(ended, calendar, out),
        }
        out.push(b'\n');
    }
}

impl Head {
    fn part(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[number]]
    }

    fn target(&self) -> &[u8] {
        self.part(0)
    }

    fn host(&self) -> &[u8] {
        self.part(1)
    }

    fn referer(&self) -> &[u8] {
        self.part(2)
    }

    fn user_agent(&self) -> &[u8] {
        self.part(3)
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }
    }
}

/// Fields that say nothing are left out.
fn json(ended: &Ended<'_>, calendar: &mut Calendar, out: &mut Vec<u8>) {
    let Ended {
        head,
        record,
        course,
        ..
    } = ended;
    out.extend_from_slice(b"{\"time\":\"");
    calendar.iso(ended.arrived, out);
    out.extend_from_slice(b"\",\"request_id\":");
    json_text(record.id.as_str().as_bytes(), out);
    if let Some(client) = head.client {
        out.extend_from_slice(b",\"client\":\"");
        address(client, out);
        out.push(b'"');
    }
    let mut text = |name: &str, value: &[u8]| {
        if !value.is_empty() {
            key(name, out);
            json_text(value, out);
        }
    };
    let (path, query) = match head.target().iter().position(|byte| *byte == b'?') {
        Some(start) => (&head.target()[..start], &head.target()[start + 1..]),
        None => (head.target(), &b""[..]),
    };
    text("method", head.method.as_str().as_bytes());
    text("scheme", head.scheme.as_str().as_bytes());
    text("host", head.host());
    text("path", path);
    text("query", query);
    text("protocol", head.protocol().as_bytes());
    text("referer", head.referer());
    text("user_agent", head.user_agent());
    text("route", record.route().map_or("", AsRef::as_ref).as_bytes());
    if let Some(trace) = &record.trace {
        text("trace_id", trace.id().as_bytes());
    }
    text("why", ended.why.unwrap_or_default().as_bytes());
    key("status", out);
    number(ended.status.into(), out);
    key("sent", out);
    number(ended.sent, out);
    if course.received > 0 {
        key("received", out);
        number(course.received, out);
    }
    if !ended.whole {
        out.extend_from_slice(b",\"cut\":true");
    }
    key("seconds", out);
    seconds(ended.seconds, out);
    for (name, time) in [
        ("body_seconds", course.body),
        ("queue_seconds", course.queue),
        ("run_seconds", course.run),
        ("park_seconds", course.park),
        ("resume_seconds", course.resume),
        ("answer_seconds", course.answer),
    ] {
        if time >= Duration::from_micros(1) {
            key(name, out);
            seconds(time, out);
        }
    }
    if course.parks > 0 {
        key("parks", out);
        number(course.parks.into(), out);
    }
    if let Some((slot, pid)) = course.slot {
        key("slot", out);
        number(slot.0.into(), out);
        key("pid", out);
        number(pid.into(), out);
    }
    out.push(b'}');
}

fn key(name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// Apache's: `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"`.
fn combined(ended: &Ended<'_>, calendar: &mut Calendar, out: &mut Vec<u8>) {
    let Ended { head, .. } = ended;
    match head.client {
        Some(client) => address(client, out),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" - - [");
    calendar.apache(ended.arrived, out);
    out.extend_from_slice(b"] \"");
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    escaped(head.target(), out);
    out.push(b' ');
    out.extend_from_slice(head.protocol().as_bytes());
    out.extend_from_slice(b"\" ");
    number(ended.status.into(), out);
    out.push(b' ');
    match ended.sent {
        0 => out.push(b'-'),
        sent => number(sent, out),
    }
    for value in [head.referer(), head.user_agent()] {
        out.extend_from_slice(b" \"");
        match value {
            [] => out.push(b'-'),
            value => escaped(value, out),
        }
        out.push(b'"');
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

/// A JSON string, in ASCII: some tools end a line at characters that JSON need not escape.
fn json_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    if text.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(text);
    } else {
        for part in text.utf8_chunks() {
            for char in part.valid().chars() {
                match char {
                    '"' | '\\' => out.extend_from_slice(&[b'\\', char as u8]),
                    ' '..='~' => out.push(char as u8),
                    _ => char
                        .encode_utf16(&mut [0; 2])
                        .iter()
                        .for_each(|unit| json_unit(*unit, out)),
                }
            }
            if !part.invalid().is_empty() {
                json_unit(char::REPLACEMENT_CHARACTER as u16, out);
            }
        }
    }
    out.push(b'"');
}

fn json_unit(unit: u16, out: &mut Vec<u8>) {
    let mut escape = *b"\\u0000";
    crate::record::hex(unit.into(), &mut escape[2..]);
    out.extend_from_slice(&escape);
}

/// As Apache does: a backslash before quotes and backslashes, `\xhh` for what is not printable ASCII.
fn escaped(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            byte if is_plain(byte) => out.push(byte),
            byte => {
                let mut escape = *b"\\x00";
                crate::record::hex(byte.into(), &mut escape[2..]);
                out.extend_from_slice(&escape);
            }
        }
    }
}

fn address(address: IpAddr, out: &mut Vec<u8>) {
    use std::io::Write;
    write!(out, "{address}").expect("memory takes all that is written");
}

fn number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break out.extend_from_slice(&digits[start..]);
        }
    }
}

/// So many digits, zeros before them.
fn padded(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// To the microsecond.
fn seconds(time: Duration, out: &mut Vec<u8>) {
    number(time.as_secs(), out);
    let mut fraction = *b".000000";
    padded(time.subsec_micros().into(), &mut fraction[1..]);
    out.extend_from_slice(&fraction);
}

/// Turns times into text, in UTC. Most lines are of the same second as the one before.
#[derive(Debug, Default)]
pub struct Calendar {
    second: u64,
    day: Day,
    /// `hh:mm:ss`; empty at first.
    clock: [u8; 8],
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Day {
    year: u64,
    month: u64,
    day: u64,
}

const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

impl Calendar {
    /// `2026-11-23T00:12:53.123456Z`.
    fn iso(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        let micros = self.turn_to(time);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        padded(self.day.year, &mut text[..4]);
        padded(self.day.month, &mut text[5..7]);
        padded(self.day.day, &mut text[8..10]);
        text[11..19].copy_from_slice(&self.clock);
        padded(micros.into(), &mut text[20..26]);
        out.extend_from_slice(&text);
    }

    /// `23/Nov/2026:00:12:53 +0000`.
    fn apache(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        self.turn_to(time);
        let mut text = *b"00/Jan/0000:00:00:00 +0000";
        padded(self.day.day, &mut text[..2]);
        text[3..6].copy_from_slice(MONTHS[self.day.month as usize - 1]);
        padded(self.day.year, &mut text[7..11]);
        text[12..20].copy_from_slice(&self.clock);
        out.extend_from_slice(&text);
    }

    /// Returns the microseconds of the second.
    fn turn_to(&mut self, time: SystemTime) -> u32 {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since_1970.as_secs();
        if self.second != second || self.day == Day::default() {
            self.second = second;
            self.day = Day::of(second / 86_400);
            let clock = second % 86_400;
            self.clock = *b"00:00:00";
            padded(clock / 3600, &mut self.clock[..2]);
            padded(clock / 60 % 60, &mut self.clock[3..5]);
            padded(clock % 60, &mut self.clock[6..]);
        }
        since_1970.subsec_micros()
    }
}

impl Day {
    /// So many days after 1970-01-01, by the Gregorian calendar: 400 of its years, which begin in March
    /// so that the leap day is the last, have the same 146 097 days again and again.
    fn of(days: u64) -> Self {
        let days = days + 719_468; // 0000-03-01
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // Months from March on have 30.6 days, near enough.
        let month = (5 * day + 2) / 153;
        let (month_here, day) = ((month + 2) % 12 + 1, day - (153 * month + 2) / 5 + 1);
        Self {
            year: era * 400 + year + u64::from(month_here <= 2),
            month: month_here,
            day,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{HeaderValue, Request};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::record::Id;
    use crate::slots::SlotId;
    use crate::trace::Trace;

    fn style(format: AccessFormat, query: bool) -> Style {
        let config = AccessLog {
            format,
            path: None,
            query,
        };
        Style::new(&config).expect("it is on")
    }

    fn client() -> Client {
        Client {
            address: Some([192, 0, 2, 7].into()),
            port: Some(4711),
            peer: None,
            scheme: Scheme::Https,
            host: None,
            server_name: "shop.example".to_owned(),
            server_port: 443,
            credential: crate::message::Credential::Unasked,
        }
    }

    fn parts(target: &str, headers: &[(&'static str, &[u8])]) -> Parts {
        let mut request = Request::get(target);
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value).expect("a value");
            request = request.header(*name, value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn line(style: Style, parts: &Parts) -> String {
        let head = style.head(parts, &client());
        let mut headers = parts.headers.clone();
        let id = Id::given(&HeaderValue::from_static("id-1")).expect("an id");
        let record = Record::new(id, Trace::take(&mut headers), Instant::now());
        record.takes(&"/shop".into());
        let ms = Duration::from_millis;
        let course = Course {
            queue: ms(2),
            run: ms(1500),
            parks: 2,
            received: 5,
            slot: Some((SlotId(3), 77)),
            ..Course::default()
        };
        let ended = Ended {
            head: &head,
            record: &record,
            course,
            arrived: UNIX_EPOCH + Duration::new(1_795_392_773, 123_456_789),
            seconds: ms(1502),
            status: 200,
            sent: 1234,
            whole: true,
            why: None,
        };
        let mut out = Vec::new();
        style.write(&ended, &mut Calendar::default(), &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn a_line_of_json_has_every_field_by_its_name() {
        let parts = parts(
            "/a%20b?token=1",
            &[
                ("host", b"shop.example"),
                ("referer", b"https://shop.example/reset?token=2"),
                ("user-agent", b"Agent \"7\" \xc3\xa4 \xff"),
                (
                    "traceparent",
                    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                ),
            ],
        );
        let text = line(style(AccessFormat::Json, false), &parts);
        assert!(text.is_ascii());
        let expected = json!({
            "time": "2026-11-23T00:12:53.123456Z",
            "request_id": "id-1",
            "client": "192.0.2.7",
            "method": "GET",
            "scheme": "https",
            "host": "shop.example",
            "path": "/a%20b",
            "protocol": "HTTP/1.1",
            "referer": "https://shop.example/reset",
            "user_agent": "Agent \"7\" \u{e4} \u{fffd}",
            "route": "/shop",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "status": 200,
            "sent": 1234,
            "received": 5,
            "seconds": 1.502,
            "queue_seconds": 0.002,
            "run_seconds": 1.5,
            "parks": 2,
            "slot": 3,
            "pid": 77,
        });
        assert_eq!(
            serde_json::from_str::<Value>(&text).expect("JSON"),
            expected
        );
        let text = line(style(AccessFormat::Json, true), &parts);
        let with_query: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(with_query["query"], "token=1");
        assert_eq!(with_query["referer"], "https://shop.example/reset?token=2");
    }

    #[test]
    fn a_combined_line_is_apaches() {
        let parts = parts(
            "/a?token=1",
            &[
                ("host", b"shop.example"),
                ("referer", b"https://shop.example/?token=2"),
                ("user-agent", b"a\"b\\c\td\xff"),
            ],
        );
        assert_eq!(
            line(style(AccessFormat::Combined, true), &parts),
            "192.0.2.7 - - [23/Nov/2026:00:12:53 +0000] \"GET /a?token=1 HTTP/1.1\" 200 1234 \
             \"https://shop.example/?token=2\" \"a\\\"b\\\\c\\x09d\\xff\"\n"
        );
        assert_eq!(
            line(style(AccessFormat::Combined, false), &parts)
                .matches("token")
                .count(),
            0
        );
    }

    #[test]
    fn what_is_too_long_is_cut_off() {
        let long = "x".repeat(10_000);
        let parts = parts(
            &format!("/{long}"),
            &[("host", b"a"), ("user-agent", long.as_bytes())],
        );
        let text = line(style(AccessFormat::Json, false), &parts);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["path"].as_str().map(str::len), Some(TARGET));
        assert_eq!(value["user_agent"].as_str().map(str::len), Some(HEADER));
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = Day {
            year: 1969,
            month: 12,
            day: 31,
        };
        // Two turns of the calendar.
        for days in 0..300_000 {
            let day = Day::of(days);
            let every = |years| before.year.is_multiple_of(years);
            let leap = every(4) && (!every(100) || every(400));
            let last = match before.month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let expected = match (before.month, before.day == last) {
                (12, true) => (before.year + 1, 1, 1),
                (month, true) => (before.year, month + 1, 1),
                (month, false) => (before.year, month, before.day + 1),
            };
            assert_eq!((day.year, day.month, day.day), expected);
            before = day;
        }
    }

    /// The parts of a combined line, read by nobody's rules but Apache's.
    fn parsed(line: &str) -> Option<Vec<String>> {
        let mut fields = Vec::new();
        let mut chars = line.strip_suffix('\n')?.chars().peekable();
        while let Some(first) = chars.next() {
            let mut field = String::new();
            match first {
                '"' => loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            'x' => {
                                let digits: String = chars.by_ref().take(2).collect();
                                let byte = u8::from_str_radix(&digits, 16).ok()?;
                                field.push(char::from(byte));
                            }
                            quoted @ ('"' | '\\') => field.push(quoted),
                            _ => return None,
                        },
                        char => field.push(char),
                    }
                },
                '[' => field.extend(chars.by_ref().take_while(|char| *char != ']')),
                first => {
                    field.push(first);
                    while let Some(char) = chars.next_if(|char| *char != ' ') {
                        field.push(char);
                    }
                }
            }
            fields.push(field);
            if chars.next().is_some_and(|char| char != ' ') {
                return None;
            }
        }
        Some(fields)
    }

    fn header_value() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(b'\t'), b' '..=b'~', 0x80..=0xff_u8];
        proptest::collection::vec(byte, 0..80)
    }

    proptest! {
        #[test]
        fn whatever_clients_send_a_line_is_one_line_and_says_just_that(
            host in header_value(),
            referer in header_value(),
            agent in header_value(),
        ) {
            let parts = parts("/", &[("host", &host), ("referer", &referer), ("user-agent", &agent)]);
            let text = line(style(AccessFormat::Json, true), &parts);
            prop_assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
            prop_assert_eq!(text.find('\n'), Some(text.len() - 1));
            let value: Value = serde_json::from_str(&text).expect("JSON");
            let told = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            prop_assert_eq!(told("host"), String::from_utf8_lossy(&host));
            prop_assert_eq!(told("referer"), String::from_utf8_lossy(&referer));
            prop_assert_eq!(told("user_agent"), String::from_utf8_lossy(&agent));

            let text = line(style(AccessFormat::Combined, true), &parts);
            prop_assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
            let fields = parsed(&text).expect(&text);
            let raw = |bytes: &[u8]| match bytes {
                [] => "-".to_owned(),
                bytes => bytes.iter().map(|byte| char::from(*byte)).collect(),
            };
            prop_assert_eq!(fields.len(), 9);
            prop_assert_eq!(&fields[4], "GET / HTTP/1.1");
            prop_assert_eq!(&fields[7], &raw(&referer));
            prop_assert_eq!(&fields[8], &raw(&agent));
        }
    }
}
