//! Spans as OTLP has them: protobuf, and OpenTelemetry's names for things.
//!
//! The part of opentelemetry-proto that a sender of spans needs is seven messages, which are only written
//! and never read. Field numbers are those of `trace/v1/trace.proto` and what it includes.

use std::fmt::Write as _;

use http::{Method, Version};
use url::{Host, Url};

use super::fetch::{Facts, FetchEnd};
use super::traced::Request;
use super::{Span, What};

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// The version of the names.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.37.0";

#[derive(Clone, Copy)]
enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// `Status.code`.
const ERROR: u64 = 2;

/// One message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

/// Who sends: the beginning of every message.
pub struct Resource(Vec<u8>);

impl Resource {
    /// `attributes` are those of the configuration, and go before what the gateway knows of itself.
    pub fn new(service: &str, attributes: &[(String, String)]) -> Self {
        let mut resource = Message::default();
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().into_owned();
        let ours = [
            ("service.name", service.to_owned()),
            ("telemetry.sdk.name", "layby".to_owned()),
            ("telemetry.sdk.language", "rust".to_owned()),
            (
                "telemetry.sdk.version",
                env!("CARGO_PKG_VERSION").to_owned(),
            ),
            ("host.name", host),
        ];
        for (name, value) in attributes {
            resource.attribute(1, name, Value::Text(value));
        }
        for (name, value) in &ours {
            if attributes.iter().all(|(given, _)| given != name) {
                resource.attribute(1, name, Value::Text(value));
            }
        }
        let pid = i64::from(std::process::id());
        resource.attribute(1, "process.pid", Value::Int(pid));
        Self(resource.0)
    }

    /// An `ExportTraceServiceRequest`.
    pub fn request(&self, spans: &[Span]) -> Vec<u8> {
        let mut scope = Message::default();
        scope.text(1, "layby");
        scope.text(2, env!("CARGO_PKG_VERSION"));
        let mut of_scope = Message::default();
        of_scope.bytes(1, &scope.0);
        for span in spans {
            of_scope.bytes(2, &encode(span).0);
        }
        let mut of_resource = Message::default();
        of_resource.bytes(1, &self.0);
        of_resource.bytes(2, &of_scope.0);
        of_resource.text(3, SCHEMA);
        let mut request = Message::default();
        request.bytes(1, &of_resource.0);
        request.0
    }
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Int(i64),
    Truth(bool),
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.tag(field, VARINT);
        self.varint(value);
    }

    fn fixed(&mut self, field: u64, value: u64) {
        self.tag(field, FIXED64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn attribute(&mut self, field: u64, name: &str, value: Value<'_>) {
        let mut any = Message::default();
        match value {
            Value::Text(text) => any.text(1, text),
            Value::Truth(truth) => any.number(2, u64::from(truth)),
            // Two's complement, as protobuf has negative ones.
            Value::Int(number) => any.number(3, number as u64),
        }
        let mut pair = Message::default();
        pair.text(1, name);
        pair.bytes(2, &any.0);
        self.bytes(field, &pair.0);
    }

    /// Of a span.
    fn says(&mut self, name: &str, value: &str) {
        self.attribute(9, name, Value::Text(value));
    }

    fn counts(&mut self, name: &str, value: impl Into<i64>) {
        self.attribute(9, name, Value::Int(value.into()));
    }

    fn fails(&mut self, why: &str) {
        self.says("error.type", why);
        let mut status = Message::default();
        status.number(3, ERROR);
        self.bytes(15, &status.0);
    }
}

fn encode(span: &Span) -> Message {
    let mut message = Message::default();
    message.bytes(1, &span.trace);
    message.bytes(2, &span.id.to_be_bytes());
    if span.parent != 0 {
        message.bytes(4, &span.parent.to_be_bytes());
    }
    message.fixed(7, span.begun);
    message.fixed(8, span.ended.max(span.begun));
    let mut is = |name: &str, kind: Kind| {
        message.text(5, name);
        message.number(6, kind as u64);
    };
    match &span.what {
        What::Request(request) => {
            is(
                &name(&request.head.method, request.route.as_deref()),
                Kind::Server,
            );
            describe_request(&mut message, request);
        }
        What::Fetch(fetch) => {
            is(&name(&fetch.method, None), Kind::Client);
            describe_fetch(&mut message, fetch);
        }
        What::Body { bytes } => {
            is("body", Kind::Internal);
            message.counts(
                "http.request.body.size",
                i64::try_from(*bytes).unwrap_or(i64::MAX),
            );
        }
        What::Queue => is("queue", Kind::Internal),
        What::Step { slot, pid, call } => {
            is(if *call { "call" } else { "step" }, Kind::Internal);
            message.counts("layby.slot", *slot);
            // An HTTP server's own processes are not known.
            if *pid != 0 {
                message.counts("layby.worker.pid", *pid);
            }
        }
        What::Park => is("park", Kind::Internal),
        What::Resume => is("resume queue", Kind::Internal),
        What::WaitInPlace(reason) => {
            is("wait in place", Kind::Internal);
            message.says("layby.reason", reason);
        }
    }
    message
}

/// Few names for many requests: never anything that a client can make up.
fn name(method: &Method, route: Option<&str>) -> String {
    let method = known(method).unwrap_or("HTTP");
    match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

fn known(method: &Method) -> Option<&str> {
    const KNOWN: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
        Method::CONNECT,
    ];
    KNOWN.contains(method).then(|| method.as_str())
}

fn describe_method(message: &mut Message, method: &Method) {
    message.says("http.request.method", known(method).unwrap_or("_OTHER"));
    if known(method).is_none() {
        message.says("http.request.method_original", method.as_str());
    }
}

fn describe_request(message: &mut Message, request: &Request) {
    let head = &request.head;
    if let Some(state) = request.state.as_ref().and_then(|state| state.to_str().ok()) {
        message.text(3, state);
    }
    describe_method(message, &head.method);
    message.says("url.scheme", head.scheme.as_str());
    message.says("url.path", &head.path);
    if let Some(route) = &request.route {
        message.says("http.route", route);
    }
    message.says("server.address", &head.host);
    message.counts("server.port", head.port);
    let mut words = String::new();
    if let Some(client) = head.client {
        _ = write!(words, "{client}");
        message.says("client.address", &words);
    }
    if let Some(agent) = &head.agent {
        message.says("user_agent.original", agent);
    }
    message.says(
        "network.protocol.version",
        match head.version {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2",
            _ => "1.1",
        },
    );
    message.says("layby.request_id", &head.id);
    message.counts("layby.parks", request.parks);
    if let Some(why) = request.why {
        message.says("layby.why", why);
    }
    match request.status {
        // Nobody's fault, least of all the gateway's: no error, but to be seen.
        None => message.attribute(9, "layby.client_left", Value::Truth(true)),
        Some(status) => {
            message.counts("http.response.status_code", status);
            if status >= 500 {
                let status = status.to_string();
                message.fails(request.why.unwrap_or(&status));
            }
        }
    }
}

fn describe_fetch(message: &mut Message, fetch: &Facts) {
    describe_method(message, &fetch.method);
    message.says("url.full", &fetch.url);
    if let Ok(url) = Url::parse(&fetch.url) {
        match url.host() {
            // Without the brackets that only URLs need.
            Some(Host::Ipv6(address)) => message.says("server.address", &address.to_string()),
            Some(host) => message.says("server.address", &host.to_string()),
            None => {}
        }
        if let Some(port) = url.port_or_known_default() {
            message.counts("server.port", port);
        }
    }
    match fetch.end {
        FetchEnd::Response { status, redirects } => {
            message.counts("http.response.status_code", status);
            if redirects > 0 {
                message.counts("http.request.resend_count", redirects);
            }
            if status >= 400 {
                message.fails(&status.to_string());
            }
        }
        FetchEnd::Failed(kind) => message.fails(kind),
        FetchEnd::Aborted => message.attribute(9, "layby.aborted", Value::Truth(true)),
    }
}
