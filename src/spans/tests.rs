use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::net::TcpListener;

use super::*;
use crate::config::{OtlpProtocol, SecretHeader};
use crate::metrics::SpanOutcome;
use crate::plan::Fetch;
use crate::record::{Id, Record, Stage};
use crate::slots::SlotId;

fn tracer(share: f64) -> Tracer {
    let tracer = Tracer(Arc::new(Shared {
        queue: Arc::new(Queue::new(Metrics::new(&[]))),
        below: AtomicU64::new(0),
    }));
    tracer.sample(Ratio(share));
    tracer
}

impl Tracer {
    fn told(&self) -> Vec<Span> {
        self.0.queue.take()
    }
}

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

fn headers(parent: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(PARENT, parent.parse().expect("a value"));
    headers
}

/// A request with these headers, and what it says of its trace to its worker.
fn begin(tracer: &Tracer, headers: &mut HeaderMap) -> (Arc<Record>, Trace) {
    let mut trace = Trace::take(headers);
    let arrived = Instant::now();
    let spans = tracer.begin(&mut trace, headers, arrived);
    let told = Trace::of(headers).expect("it has a context");
    (Record::traced(Id::new(), trace, arrived, spans), told)
}

fn head() -> Head {
    let request = http::Request::builder().uri("/shop?card=1").body(());
    let (parts, ()) = request.expect("a request").into_parts();
    let client = crate::message::Client {
        address: None,
        port: None,
        peer: None,
        scheme: crate::message::Scheme::Http,
        host: None,
        server_name: "shop.example".to_owned(),
        server_port: 80,
        credential: crate::message::Credential::Unasked,
    };
    Head::new("id", &parts, &client)
}

fn fetch() -> Fetch {
    Fetch {
        method: Method::GET,
        url: "http://me:secret@pay.example/charge?card=1".to_owned(),
        headers: HeaderMap::new(),
        timeout: None,
        follow: false,
        body: Some(Bytes::new()),
        span: None,
    }
}

/// Each span's name, and its parent's.
fn tree(spans: &[Span]) -> Vec<(String, String)> {
    let name = |span: &Span| {
        let what = format!("{:?}", span.what);
        let end = what.find([' ', '(']).unwrap_or(what.len());
        what[..end].to_owned()
    };
    let named = |id: u64| match spans.iter().find(|span| span.id == id) {
        Some(span) => name(span),
        None => format!("{id:x}"),
    };
    spans
        .iter()
        .map(|span| (name(span), named(span.parent)))
        .collect()
}

#[test]
fn spans_follow_a_request_from_stage_to_stage() {
    let tracer = tracer(0.0);
    let (record, told) = begin(&tracer, &mut headers(GIVEN));
    record.tell(|spans| spans.is(head()));
    record.received(7);
    record.enters(Stage::Queue);
    record.runs(SlotId(3), 77, Instant::now());
    record.tell(|spans| spans.holds("transaction", Instant::now()));
    let marker = record.marker().expect("it has a trace");
    let (mut held, mut parked) = (fetch(), fetch());
    marker.mark(&mut held);
    let now = Instant::now();
    held.span
        .as_ref()
        .expect("it is told")
        .ended(&held, now, FetchEnd::Aborted);
    record.tell(|spans| spans.goes_on(Instant::now()));
    record.tell(|spans| spans.leaves(Instant::now()));
    record.enters(Stage::Park);
    record.marker().expect("it has a trace").mark(&mut parked);
    record.tell(|spans| spans.called(SlotId(4), 78, now, Instant::now()));
    let end = FetchEnd::Failed("connect");
    parked
        .span
        .as_ref()
        .expect("it is told")
        .ended(&parked, now, end);
    record.enters(Stage::Resume);
    record.runs(SlotId(4), 77, Instant::now());
    record.enters(Stage::Answer);
    record.tell(|spans| {
        spans.ended(Ended {
            at: Instant::now(),
            status: Some(200),
            why: None,
        });
    });
    // The slot writes the last of an answer that nobody reads any more.
    record.tell(|spans| spans.leaves(Instant::now()));
    drop(record);

    let spans = tracer.told();
    let expected = [
        ("Fetch", "WaitInPlace"),
        ("Fetch", "Park"),
        ("Body", "Request"),
        ("Queue", "Request"),
        ("WaitInPlace", "Step"),
        ("Step", "Request"),
        ("Step", "Park"),
        ("Park", "Request"),
        ("Resume", "Request"),
        ("Request", "b7ad6b7169203331"),
        ("Step", "Request"),
    ];
    assert_eq!(
        tree(&spans),
        expected.map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    let request = spans
        .iter()
        .find(|span| matches!(span.what, What::Request(_)));
    assert_eq!(request.expect("it is there").id, told.parent());
    assert!(spans.iter().all(|span| span.trace == told.bytes()));
    assert!(spans.iter().all(|span| span.begun <= span.ended));
    let heard = Trace::of(&parked.headers).expect("its origin hears of it");
    assert_eq!(heard.parent(), spans[1].id);
    let shown = format!("{spans:?}");
    assert!(
        shown.contains("pay.example/charge") || shown.contains("***"),
        "{shown}"
    );
    assert!(
        !shown.contains("secret") && !shown.contains("card=1"),
        "{shown}"
    );
}

#[test]
fn a_request_that_never_gets_a_slot_is_told_as_far_as_it_came() {
    let tracer = tracer(1.0);
    let (record, _) = begin(&tracer, &mut HeaderMap::new());
    record.tell(|spans| spans.is(head()));
    record.enters(Stage::Queue);
    record.enters(Stage::Answer);
    record.tell(|spans| {
        spans.ended(Ended {
            at: Instant::now(),
            status: Some(503),
            why: Some("queue_full"),
        });
    });
    drop(record);
    let pairs = [("Queue", "Request"), ("Request", "0")];
    let expected = pairs.map(|(name, parent)| (name.to_owned(), parent.to_owned()));
    assert_eq!(tree(&tracer.told()), expected);
}

#[test]
fn an_answer_without_end_is_told_before_it_is_over() {
    let tracer = tracer(1.0);
    let (record, _) = begin(&tracer, &mut HeaderMap::new());
    for _ in 0..1000 {
        record.runs(SlotId(1), 7, Instant::now());
        record.enters(Stage::Park);
    }
    assert!(tracer.told().len() > 1000);
}

#[test]
fn who_came_with_a_trace_has_chosen_and_of_the_others_a_share_is_told() {
    for (share, told) in [(0.0, 0), (1.0, 4000)] {
        let tracer = tracer(share);
        let count = (0..4000).filter(|_| {
            let (record, context) = begin(&tracer, &mut HeaderMap::new());
            let is_told = record.if_traced().is_some();
            // The application's tracer and the fetches come to the same end.
            assert_eq!(context.is_sampled(), is_told);
            let mut fetch = fetch();
            record.marker().expect("it has a trace").mark(&mut fetch);
            assert_eq!(fetch.span.is_some(), is_told);
            let heard = Trace::of(&fetch.headers).expect("its origin hears of it");
            assert_eq!((heard.id(), heard.is_sampled()), (context.id(), is_told));
            is_told
        });
        assert_eq!(count.count(), told, "{share}");

        let (record, context) = begin(&tracer, &mut headers(GIVEN));
        assert!(record.if_traced().is_some());
        assert_ne!(context.parent(), 0xb7ad_6b71_6920_3331);
        let mut left = headers(UNSAMPLED);
        let (record, _) = begin(&tracer, &mut left);
        assert!(record.if_traced().is_none());
        assert_eq!(left[PARENT], UNSAMPLED);
    }
    let tracer = tracer(0.25);
    let count = (0..4000).filter(|_| {
        let (record, _) = begin(&tracer, &mut HeaderMap::new());
        record.if_traced().is_some()
    });
    // Six standard deviations.
    assert!((836..=1164).contains(&count.count()));
}

#[test]
fn a_fetch_of_an_application_that_traces_lies_within_its_span() {
    let tracer = tracer(1.0);
    let (record, context) = begin(&tracer, &mut HeaderMap::new());
    let marker = record.marker().expect("it has a trace");
    let mut own = fetch();
    own.headers.insert(PARENT, context.line(0xabcd));
    marker.mark(&mut own);
    let heard = Trace::of(&own.headers).expect("its origin hears of it");
    assert_ne!(heard.parent(), 0xabcd);
    own.span
        .as_ref()
        .expect("it is told")
        .ended(&own, Instant::now(), FetchEnd::Aborted);
    let told = tracer.told();
    assert_eq!((told[0].parent, told[0].id), (0xabcd, heard.parent()));

    // Of another trace nothing is changed.
    for other in [GIVEN, "nonsense"] {
        let mut fetch = fetch();
        fetch.headers = headers(other);
        marker.mark(&mut fetch);
        assert_eq!(fetch.headers[PARENT], other);
    }
}

#[test]
fn what_nobody_takes_is_bounded_and_counted() {
    let metrics = Metrics::new(&[]);
    let queue = Queue::new(metrics.clone());
    let span = Span {
        trace: [1; 16],
        id: 1,
        parent: 0,
        begun: 1,
        ended: 2,
        what: What::Queue,
    };
    for _ in 0..20 {
        queue.push(&mut vec![span.clone(); 1000]);
    }
    let waiting: usize =
        std::iter::from_fn(|| Some(queue.take().len()).filter(|len| *len > 0)).sum();
    assert_eq!(waiting, 16 * 1024);
    let lost = format!(
        "layby_spans_total{{outcome=\"queue_full\"}} {}",
        20_000 - waiting
    );
    assert!(metrics.render().contains(&lost));
}

#[test]
fn a_message_is_protobuf() {
    let span = Span {
        trace: [0xab; 16],
        id: 0x0102_0304_0506_0708,
        parent: 0,
        begun: 1,
        ended: 2,
        what: What::Queue,
    };
    let resource = otlp::Resource::new("shop", &[("host.name".to_owned(), "here".to_owned())]);
    let message = resource.request(&[span]);
    // ResourceSpans, then its Resource: each says how long it is.
    assert_eq!(message[0], 0x0a);
    let text = String::from_utf8_lossy(&message);
    for expected in [
        "service.name\u{12}\u{6}\n\u{4}shop",
        "host.name\u{12}\u{6}\n\u{4}here",
        "layby",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let mut of_span = vec![0x0a, 16];
    of_span.extend([0xab; 16]);
    of_span.extend([0x12, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    of_span.extend([0x39, 1, 0, 0, 0, 0, 0, 0, 0, 0x41, 2, 0, 0, 0, 0, 0, 0, 0]);
    of_span.extend(*b"\x2a\x05queue\x30\x01");
    let found = message.windows(of_span.len()).any(|part| part == of_span);
    assert!(found, "{message:02x?}");
}

/// A collector that speaks gRPC, and answers each message with the next of these.
async fn grpc(listener: TcpListener, statuses: [&'static str; 3]) -> Vec<Vec<u8>> {
    let (stream, _) = listener.accept().await.expect("the exporter connects");
    let handshake = h2::server::handshake(stream).await;
    let mut connection = handshake.expect("it speaks HTTP/2");
    let mut taken = Vec::new();
    for status in statuses {
        let request = connection.accept().await.expect("there is one more");
        let (request, respond) = request.expect("a request");
        let answering = tokio::spawn(answer(request, respond, status));
        // The connection moves only while somebody waits for the next request.
        tokio::select! {
            message = answering => taken.push(message.expect("it is answered")),
            _ = connection.accept() => unreachable!("one is sent after the other"),
        }
    }
    connection.graceful_shutdown();
    while connection.accept().await.is_some() {}
    taken
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    status: &'static str,
) -> Vec<u8> {
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    assert_eq!(request.uri().path(), path);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["x-key"], "7");
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        message.extend_from_slice(&part.expect("a part"));
    }
    let response = http::Response::builder().header("content-type", "application/grpc");
    let response = response.body(()).expect("a response");
    let mut stream = respond.send_response(response, false).expect("it is open");
    let nothing = Bytes::from_static(&[0; 5]);
    stream.send_data(nothing, false).expect("it is open");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    stream.send_trailers(trailers).expect("it is open");
    message
}

#[tokio::test]
async fn a_collector_that_speaks_grpc_is_asked_again_when_it_is_busy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    // Unavailable; taken; and one that will never do.
    let collector = tokio::spawn(grpc(listener, ["14", "0", "3"]));
    let config = Tracing {
        endpoint: Some(format!("http://{address}").parse().expect("a URL")),
        protocol: OtlpProtocol::Grpc,
        headers: vec![SecretHeader(
            http::HeaderName::from_static("x-key"),
            HeaderValue::from_static("7"),
        )],
        sample: Ratio(1.0),
        service_name: "shop".to_owned(),
        resource_attributes: Vec::new(),
    };
    let metrics = Metrics::new(&[]);
    let started = Tracer::start(&config, &metrics).expect("it starts");
    let (tracer, exporter) = started.expect("there is a collector");
    let has = |outcome: SpanOutcome| {
        let line = format!("layby_spans_total{{outcome=\"{}\"}} 1\n", outcome.as_str());
        metrics.render().contains(&line)
    };
    for outcome in [SpanOutcome::Sent, SpanOutcome::Refused] {
        drop(begin(&tracer, &mut HeaderMap::new()));
        let (record, _) = begin(&tracer, &mut HeaderMap::new());
        record.enters(Stage::Queue);
        drop(record);
        while !has(outcome) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    exporter.finish().await;
    let taken = collector.await.expect("it ends with the connection");
    assert_eq!(taken.len(), 3);
    for message in &taken {
        let length = u32::from_be_bytes(message[1..5].try_into().expect("four bytes"));
        assert_eq!((message[0], length as usize), (0, message.len() - 5));
    }
    assert_eq!(taken[0], taken[1]);
}
