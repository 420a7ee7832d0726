//! The JSON form of results.
//!
//! The head is written here; the bodies are handed back as they are, in the order of
//! their offsets, so that the caller can write them to a frame or a file without a copy.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use super::{Captured, Failure, Outcome, Response};

/// Head, bodies one after the other, and their length together: the content of a
/// `RESUME` or `RESULTS` frame.
pub fn encode(results: &[Outcome]) -> (Vec<u8>, Vec<Bytes>, u64) {
    let mut writing = Writing {
        head: Vec::with_capacity(256 * results.len()),
        bodies: Vec::with_capacity(results.len()),
        length: 0,
    };
    writing.results(results);
    (writing.head, writing.bodies, writing.length)
}

/// The head of the `RESUME` after a relay, whose body is what was captured.
pub fn encode_captured(captured: &Captured) -> Vec<u8> {
    let relay = serde_json::json!({ "relay": {
        "status": captured.status.map(|status| status.as_u16()),
        "body": [0, captured.body.len()],
        "truncated": captured.truncated,
        "ended": captured.ended.as_str(),
    } });
    relay.to_string().into_bytes()
}

struct Writing {
    head: Vec<u8>,
    bodies: Vec<Bytes>,
    length: u64,
}

impl Writing {
    fn results(&mut self, results: &[Outcome]) {
        self.raw("{\"results\":[");
        for (n, result) in results.iter().enumerate() {
            if n > 0 {
                self.raw(",");
            }
            self.outcome(result);
        }
        self.raw("]}");
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Response(response) => self.response(response),
            Outcome::Failed(failure) => self.failure(failure),
            Outcome::Slept(time) => {
                self.raw("{\"slept\":");
                self.seconds(*time);
                self.raw("}");
            }
            Outcome::Gathered(results) => self.results(results),
            Outcome::Done(true) => self.raw("{\"done\":true}"),
            Outcome::Done(false) => self.raw("{\"done\":false}"),
            Outcome::NotNeeded => self.raw("null"),
        }
    }

    fn response(&mut self, response: &Response) {
        self.raw("{\"status\":");
        self.raw(response.status.as_str());
        self.raw(",\"reason\":");
        self.string(response.status.canonical_reason().unwrap_or_default());
        self.raw(",\"url\":");
        self.string(&response.url);
        self.raw(",\"headers\":");
        self.headers(&response.headers);
        self.raw(",\"body\":[");
        self.number(self.length);
        self.raw(",");
        self.number(response.body.len() as u64);
        self.raw("],\"seconds\":");
        self.seconds(response.elapsed);
        self.raw(",\"redirects\":");
        self.number(response.redirects.into());
        self.raw("}");

        if !response.body.is_empty() {
            self.length += response.body.len() as u64;
            self.bodies.push(response.body.clone());
        }
    }

    fn failure(&mut self, failure: &Failure) {
        self.raw("{\"error\":");
        self.string(failure.kind.as_str());
        self.raw(",\"phase\":");
        self.string(failure.phase.as_str());
        self.raw(",\"message\":");
        self.string(&failure.message);
        self.raw(",\"url\":");
        self.string(&failure.url);
        self.raw(",\"seconds\":");
        self.seconds(failure.elapsed);
        self.raw("}");
    }

    fn headers(&mut self, headers: &HeaderMap) {
        self.raw("[");
        for (n, (name, value)) in headers.iter().enumerate() {
            self.raw(if n > 0 { ",[" } else { "[" });
            self.string(name.as_str());
            self.raw(",");
            self.latin1(value);
            self.raw("]");
        }
        self.raw("]");
    }

    fn latin1(&mut self, value: &HeaderValue) {
        match value.to_str() {
            Ok(ascii) => self.string(ascii),
            Err(_) => self.string(
                &value
                    .as_bytes()
                    .iter()
                    .map(|b| *b as char)
                    .collect::<String>(),
            ),
        }
    }

    /// Whole microseconds: finer is noise, and long in the frame.
    fn seconds(&mut self, time: Duration) {
        let micros = time.as_micros() as f64 / 1e6;
        serde_json::to_writer(&mut self.head, &micros)
            .expect("a finite number and a Vec to write to cannot fail");
    }

    fn number(&mut self, n: u64) {
        serde_json::to_writer(&mut self.head, &n).expect("writing to a Vec cannot fail");
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.head, text).expect("writing to a Vec cannot fail");
    }

    fn raw(&mut self, json: &str) {
        self.head.extend_from_slice(json.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::plan::{Ended, FailureKind, Phase};

    fn response(body: &'static str) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.append("set-cookie", HeaderValue::from_static("a=\"1\""));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        headers.append(
            "x-name",
            HeaderValue::from_bytes(b"caf\xe9").expect("valid bytes"),
        );
        Outcome::Response(Response {
            status: StatusCode::CREATED,
            url: "https://pay.example/?a=1".to_owned(),
            headers,
            body: Bytes::from_static(body.as_bytes()),
            elapsed: Duration::from_micros(31_250),
            redirects: 2,
        })
    }

    #[test]
    fn results_read_as_the_protocol_page_says() {
        let results = [
            response("hello"),
            Outcome::Gathered(vec![response("wor"), Outcome::NotNeeded]),
            response(""),
            Outcome::Failed(Failure {
                kind: FailureKind::TooLarge,
                phase: Phase::Body,
                message: "more than \"5\" bytes".to_owned(),
                url: "http://a.example/".to_owned(),
                elapsed: Duration::from_secs(2),
            }),
            Outcome::Slept(Duration::from_millis(500)),
            Outcome::Done(true),
            Outcome::Done(false),
        ];

        let (head, bodies, length) = encode(&results);

        let read: serde_json::Value = serde_json::from_slice(&head).expect("the head is JSON");
        let entry = |range: [usize; 2]| {
            serde_json::json!({
                "status": 201, "reason": "Created", "url": "https://pay.example/?a=1",
                "headers": [["set-cookie", "a=\"1\""], ["set-cookie", "b=2"],
                            ["x-name", "caf\u{e9}"]],
                "body": range, "seconds": 0.03125, "redirects": 2,
            })
        };
        assert_eq!(
            read,
            serde_json::json!({"results": [
                entry([0, 5]),
                {"results": [entry([5, 3]), null]},
                entry([8, 0]),
                {"error": "too_large", "phase": "body", "message": "more than \"5\" bytes",
                 "url": "http://a.example/", "seconds": 2.0},
                {"slept": 0.5},
                {"done": true},
                {"done": false},
            ]})
        );
        assert_eq!(bodies, ["hello", "wor"]);
        assert_eq!(length, 8);
    }

    #[test]
    fn the_end_of_a_relay_reads_as_the_protocol_page_says() {
        let captured = Captured {
            status: Some(StatusCode::OK),
            body: Bytes::from_static(b"hello"),
            truncated: true,
            ended: Ended::Complete,
        };
        let read: serde_json::Value =
            serde_json::from_slice(&encode_captured(&captured)).expect("the head is JSON");
        let relay = serde_json::json!({
            "status": 200, "body": [0, 5], "truncated": true, "ended": "complete",
        });
        assert_eq!(read, serde_json::json!({ "relay": relay }));

        let nothing = encode_captured(&Captured::nothing(Ended::OriginFailed));
        let read: serde_json::Value = serde_json::from_slice(&nothing).expect("the head is JSON");
        assert_eq!(read["relay"]["status"], serde_json::Value::Null);
        assert_eq!(read["relay"]["ended"], "origin_failed");
    }

    #[test]
    fn a_status_without_a_name_has_an_empty_reason() {
        let mut odd = response("");
        let Outcome::Response(inner) = &mut odd else {
            unreachable!("response() makes a response");
        };
        inner.status = StatusCode::from_u16(599).expect("a valid status");
        let (head, ..) = encode(&[odd]);
        let read: serde_json::Value = serde_json::from_slice(&head).expect("the head is JSON");
        assert_eq!(read["results"][0]["status"], 599);
        assert_eq!(read["results"][0]["reason"], "");
    }
}
