//! Every metric family of layby: name, kind, labels and help, declared once.
//!
//! `docs/metrics.md` is written from this list, and `Metrics` is built from it; a test
//! holds the three together.

use std::marker::PhantomData;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::labels::{
    CancelPhase, ConnectionState, FetchOutcome, HandshakeOutcome, LabelSet, Meaning, MethodLabel,
    RestartReason, ShedReason, Shortage, SlotState, SpanOutcome, Stage, TurnedAway, WaitReason,
};

/// One ladder for every stage of a request, so that their quantiles can be compared and
/// laid over each other. It starts where a cheap step in a slot takes place (below a
/// millisecond), goes 1, 2.5, 5, as latency goals are usually written, and ends with the
/// default bounds: 5 s in the queue, 30 s per fetch, 60 s per request. What ran into a
/// bound is thus seen as what lies past its bucket.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

pub const SLOTS: Family = gauge(
    "layby_slots",
    &[of("state", SlotState::MEANINGS)],
    "Slots by state; they add up to the configured count",
);
pub const QUEUE_LENGTH: Family = gauge("layby_queue_length", &[], "Jobs waiting for a slot");
pub const PARKED_REQUESTS: Family = gauge(
    "layby_parked_requests",
    &[],
    "Requests that wait, for their fetches, their body, their own process or the end of a relay, and hold no slot",
);
pub const UPSTREAM_SLOTS: Family = gauge(
    "layby_upstream_slots",
    &[UPSTREAM, of("state", SlotState::MEANINGS)],
    "Connections to the upstream of a `[[route]]` by state, as `layby_slots`; they add up to its `connections`",
);
pub const UPSTREAM_QUEUE_LENGTH: Family = gauge(
    "layby_upstream_queue_length",
    &[UPSTREAM],
    "Requests waiting for a connection to the upstream of a `[[route]]`",
);
pub const UPSTREAM_REQUESTS_SHED: Family = counter(
    "layby_upstream_requests_shed_total",
    &[UPSTREAM, of("reason", ShedReason::MEANINGS)],
    "Requests for the upstream of a `[[route]]` refused because of load; `layby_requests_shed_total` does not count them",
);
pub const UPSTREAM_PARKED_REQUESTS: Family = gauge(
    "layby_upstream_parked_requests",
    &[UPSTREAM],
    "Requests for the upstream of a `[[route]]` that wait for a plan and hold no connection",
);
pub const WAITING_IN_PLACE: Family = gauge(
    "layby_waiting_in_place",
    &[],
    "Requests that wait and hold their slot",
);
pub const SPOOL_BYTES: Family = gauge(
    "layby_spool_bytes",
    &[],
    "Bytes of request and response bodies held in spool files",
);
pub const SPOOL_LIMIT_BYTES: Family = gauge(
    "layby_spool_limit_bytes",
    &[],
    "How many bytes of bodies spool files may hold: `spool_limit`",
);
pub const CONNECTIONS: Family = gauge(
    "layby_connections",
    &[of("state", ConnectionState::MEANINGS)],
    "Connections of clients by state",
);
pub const CONNECTIONS_REFUSED: Family = counter(
    "layby_connections_refused_total",
    &[of("reason", TurnedAway::MEANINGS)],
    "Connections that were accepted only to be let go",
);
pub const IDLE_CONNECTIONS_CLOSED: Family = counter(
    "layby_idle_connections_closed_total",
    &[],
    "Idle connections that were closed early, to make room for others",
);
pub const BODY_MEMORY_BYTES: Family = gauge(
    "layby_body_memory_bytes",
    &[],
    "Bytes of request and response bodies held in the gateway's memory",
);
pub const BODY_SHORTAGES: Family = counter(
    "layby_body_shortages_total",
    &[of("reason", Shortage::MEANINGS)],
    "Times that a body, or a part of one, found no room",
);
pub const REQUESTS: Family = counter(
    "layby_requests_total",
    &[
        of("method", MethodLabel::MEANINGS),
        open(
            "status",
            "the code of the answer, 499 if the client left before it; `other` outside 100 to 599. 499, 500, 502, 503 \
             and 504 to GET, POST, PUT, PATCH and DELETE are there from the start, the others from their first time",
        ),
        open("class", "`1xx` to `5xx`; `other` outside"),
    ],
    "Requests that ended",
);
pub const REQUEST_SECONDS: Family = histogram(
    "layby_request_seconds",
    &[],
    "Time of a request, from its arrival to the last byte of its answer",
);
pub const REQUEST_PHASE_SECONDS: Family = histogram(
    "layby_request_phase_seconds",
    &[of("phase", Stage::MEANINGS)],
    "Time that a request spent in a phase, all its stays there together; requests that were in it",
);
pub const QUEUE_WAIT_SECONDS: Family = histogram(
    "layby_queue_wait_seconds",
    &[],
    "Time that one job waited for a slot",
);
pub const SLOT_BUSY_SECONDS: Family = histogram(
    "layby_slot_busy_seconds",
    &[],
    "Time that one step held its slot, once it has ended or was killed",
);
pub const SLOTS_BUSY_SECONDS: Family = counter(
    "layby_slots_busy_seconds_total",
    &[],
    "Seconds that slots worked, all slots together: steps that still go on are in it, overdue ones too",
);
pub const PARK_SECONDS: Family = histogram(
    "layby_park_seconds",
    &[],
    "Time of one park, from leaving the slot to asking for one again",
);
pub const REQUESTS_SHED: Family = counter(
    "layby_requests_shed_total",
    &[of("reason", ShedReason::MEANINGS)],
    "Requests for slots refused because of load, before any work",
);
pub const REQUESTS_CANCELLED: Family = counter(
    "layby_requests_cancelled_total",
    &[of("phase", CancelPhase::MEANINGS)],
    "Requests whose client left before its answer was whole",
);
pub const WAITS_IN_PLACE: Family = counter(
    "layby_waits_in_place_total",
    &[of("reason", WaitReason::MEANINGS)],
    "Times that a request kept its slot while it waited, because parking was not safe",
);
pub const ANSWER_BACKPRESSURE: Family = counter(
    "layby_answer_backpressure_total",
    &[],
    "Answers whose slot had to wait for a slow client, because the answer's spool was full",
);
pub const FETCHES_IN_FLIGHT: Family = gauge(
    "layby_fetches_in_flight",
    &[ORIGIN],
    "Fetches that have begun and not ended",
);
pub const FETCHES: Family = counter(
    "layby_fetches_total",
    &[ORIGIN, of("outcome", FetchOutcome::MEANINGS)],
    "Fetches made for plans and relays",
);
pub const FETCH_SECONDS: Family = histogram(
    "layby_fetch_seconds",
    &[ORIGIN],
    "Time of a fetch, from its start to the last byte of the response, or of a relay to its head; redirects included",
);
pub const LEFTOVER_FETCHES: Family = counter(
    "layby_leftover_fetches_total",
    &[],
    "Unsafe fetches that a join did not need and that ran out, their result dropped",
);
pub const ACCESS_LOG_DROPPED: Family = counter(
    "layby_access_log_dropped_total",
    &[],
    "Lines of the access log that could not be written: the disk was full, or whoever reads them is behind",
);
pub const LOG_DROPPED: Family = counter(
    "layby_log_dropped_total",
    &[],
    "Lines of the gateway's own log that could not be written: whoever reads standard error is behind",
);
pub const SPANS: Family = counter(
    "layby_spans_total",
    &[of("outcome", SpanOutcome::MEANINGS)],
    "Spans of traced requests, by what became of them",
);
pub const WORKER_RESTARTS: Family = counter(
    "layby_worker_restarts_total",
    &[of("reason", RestartReason::MEANINGS)],
    "Worker processes started again",
);
pub const TLS_HANDSHAKES: Family = counter(
    "layby_tls_handshakes_total",
    &[of("outcome", HandshakeOutcome::MEANINGS)],
    "TLS handshakes with clients",
);
pub const TLS_CERTIFICATE_EXPIRY: Family = gauge(
    "layby_tls_certificate_expiry_seconds",
    &[],
    "When the first certificate of `[tls]` ends, in seconds since 1970; 0 without `[tls]`",
);
pub const BUILD_INFO: Family = gauge(
    "layby_build_info",
    &[open("version", "layby's version")],
    "Always 1",
);
pub const CONFIG_HASH: Family = gauge(
    "layby_config_hash",
    &[],
    "A number made from the configuration in force: replicas that differ in it are configured differently",
);
pub const CONFIG_ACCEPTED: Family = gauge(
    "layby_config_last_reload_successful",
    &[],
    "1, or 0 if the last reload was refused, and the configuration is an older one than its file",
);
pub const CONFIG_ACCEPTED_AT: Family = gauge(
    "layby_config_last_reload_success_timestamp_seconds",
    &[],
    "When the configuration in force was read, in seconds since 1970",
);
pub const PROCESS_CPU_SECONDS: Family = counter(
    "process_cpu_seconds_total",
    &[],
    "CPU time of the gateway's process, in seconds; its workers are not in it",
);
pub const PROCESS_RESIDENT_MEMORY_BYTES: Family = gauge(
    "process_resident_memory_bytes",
    &[],
    "Resident memory of the gateway's process",
);
pub const PROCESS_VIRTUAL_MEMORY_BYTES: Family = gauge(
    "process_virtual_memory_bytes",
    &[],
    "Virtual memory of the gateway's process",
);
pub const PROCESS_THREADS: Family =
    gauge("process_threads", &[], "Threads of the gateway's process");
pub const PROCESS_OPEN_FDS: Family = gauge(
    "process_open_fds",
    &[],
    "Open file descriptors of the gateway's process",
);
pub const PROCESS_MAX_FDS: Family = gauge(
    "process_max_fds",
    &[],
    "How many file descriptors the gateway's process may have open",
);
pub const PROCESS_START_TIME_SECONDS: Family = gauge(
    "process_start_time_seconds",
    &[],
    "When the gateway started, in seconds since 1970",
);

const UPSTREAM: Label = open("upstream", "as `upstream` of the `[[route]]` says it");

const ORIGIN: Label = open(
    "origin",
    "a host named in `[outbound] label`; `other` for the rest",
);

/// Everything, in the order of `docs/metrics.md`.
pub const ALL: &[Family] = &[
    SLOTS,
    QUEUE_LENGTH,
    PARKED_REQUESTS,
    UPSTREAM_SLOTS,
    UPSTREAM_QUEUE_LENGTH,
    UPSTREAM_REQUESTS_SHED,
    UPSTREAM_PARKED_REQUESTS,
    WAITING_IN_PLACE,
    CONNECTIONS,
    CONNECTIONS_REFUSED,
    IDLE_CONNECTIONS_CLOSED,
    SPOOL_BYTES,
    SPOOL_LIMIT_BYTES,
    BODY_MEMORY_BYTES,
    BODY_SHORTAGES,
    REQUESTS,
    REQUEST_SECONDS,
    REQUEST_PHASE_SECONDS,
    QUEUE_WAIT_SECONDS,
    SLOT_BUSY_SECONDS,
    SLOTS_BUSY_SECONDS,
    PARK_SECONDS,
    REQUESTS_SHED,
    REQUESTS_CANCELLED,
    WAITS_IN_PLACE,
    ANSWER_BACKPRESSURE,
    FETCHES_IN_FLIGHT,
    FETCHES,
    FETCH_SECONDS,
    LEFTOVER_FETCHES,
    ACCESS_LOG_DROPPED,
    LOG_DROPPED,
    SPANS,
    WORKER_RESTARTS,
    TLS_HANDSHAKES,
    TLS_CERTIFICATE_EXPIRY,
    BUILD_INFO,
    CONFIG_HASH,
    CONFIG_ACCEPTED,
    CONFIG_ACCEPTED_AT,
    PROCESS_CPU_SECONDS,
    PROCESS_RESIDENT_MEMORY_BYTES,
    PROCESS_VIRTUAL_MEMORY_BYTES,
    PROCESS_THREADS,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
    PROCESS_START_TIME_SECONDS,
];

pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [Label],
    pub help: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub struct Label {
    pub name: &'static str,
    pub values: Values,
}

pub enum Values {
    /// One of an enum's.
    Of(&'static [Meaning]),
    /// Bounded in another way, said in words.
    Open(&'static str),
}

/// One handle per value of an enum label, all there from the start.
#[derive(Debug)]
pub struct PerLabel<L, H> {
    handles: Vec<H>,
    label: PhantomData<fn(L)>,
}

impl<L: LabelSet, H> PerLabel<L, H> {
    pub fn new(handle: impl Fn(&'static str) -> H) -> Self {
        Self {
            handles: L::ALL.iter().map(|value| handle(value.as_str())).collect(),
            label: PhantomData,
        }
    }

    pub fn of(&self, value: L) -> &H {
        &self.handles[value.index()]
    }
}

impl Family {
    pub fn int_counter(&self, registry: &Registry) -> IntCounter {
        self.register(registry, IntCounter::with_opts(self.opts(Kind::Counter)))
    }

    pub fn int_counters(&self, registry: &Registry) -> IntCounterVec {
        let opts = self.opts(Kind::Counter);
        self.register(registry, IntCounterVec::new(opts, &self.label_names()))
    }

    pub fn counter(&self, registry: &Registry) -> Counter {
        self.register(registry, Counter::with_opts(self.opts(Kind::Counter)))
    }

    pub fn int_gauge(&self, registry: &Registry) -> IntGauge {
        self.register(registry, IntGauge::with_opts(self.opts(Kind::Gauge)))
    }

    pub fn int_gauges(&self, registry: &Registry) -> IntGaugeVec {
        let opts = self.opts(Kind::Gauge);
        self.register(registry, IntGaugeVec::new(opts, &self.label_names()))
    }

    pub fn gauge(&self, registry: &Registry) -> Gauge {
        self.register(registry, Gauge::with_opts(self.opts(Kind::Gauge)))
    }

    pub fn histogram(&self, registry: &Registry) -> Histogram {
        self.register(registry, Histogram::with_opts(self.histogram_opts()))
    }

    pub fn histograms(&self, registry: &Registry) -> HistogramVec {
        let opts = self.histogram_opts();
        self.register(registry, HistogramVec::new(opts, &self.label_names()))
    }

    /// Counters of a family whose only label is an enum, all at 0 from the start.
    pub fn per_label<L: LabelSet>(&self, registry: &Registry) -> PerLabel<L, IntCounter> {
        let counters = self.int_counters(registry);
        PerLabel::new(|value| counters.with_label_values(&[value]))
    }

    fn opts(&self, kind: Kind) -> Opts {
        assert!(self.kind == kind, "{} is of another kind", self.name);
        Opts::new(self.name, self.help)
    }

    fn histogram_opts(&self) -> HistogramOpts {
        HistogramOpts::from(self.opts(Kind::Histogram)).buckets(SECONDS.to_vec())
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }

    fn register<C: Collector + Clone + 'static>(
        &self,
        registry: &Registry,
        collector: prometheus::Result<C>,
    ) -> C {
        let collector = collector.expect("the names in this file are valid");
        registry
            .register(Box::new(collector.clone()))
            .expect("the names in this file are unique");
        collector
    }
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

const fn counter(name: &'static str, labels: &'static [Label], help: &'static str) -> Family {
    family(Kind::Counter, name, labels, help)
}

const fn gauge(name: &'static str, labels: &'static [Label], help: &'static str) -> Family {
    family(Kind::Gauge, name, labels, help)
}

const fn histogram(name: &'static str, labels: &'static [Label], help: &'static str) -> Family {
    family(Kind::Histogram, name, labels, help)
}

const fn family(
    kind: Kind,
    name: &'static str,
    labels: &'static [Label],
    help: &'static str,
) -> Family {
    Family {
        name,
        kind,
        labels,
        help,
    }
}

const fn of(name: &'static str, values: &'static [Meaning]) -> Label {
    Label {
        name,
        values: Values::Of(values),
    }
}

const fn open(name: &'static str, words: &'static str) -> Label {
    Label {
        name,
        values: Values::Open(words),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;
    use std::{env, fs};

    use super::*;

    #[test]
    fn the_page_of_metrics_agrees_with_the_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let page = page();
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&path, &page).expect("docs/metrics.md is writable");
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == page,
            "docs/metrics.md is not what the code says; UPDATE_DOCS=1 cargo test writes it anew"
        );
    }

    fn page() -> String {
        let mut page = String::from(
            "# Metrics\n\n\
             What `GET /metrics` on the admin and probes listeners gives, in Prometheus' text\n\
             format. This page is written from the code (`UPDATE_DOCS=1 cargo test`).\n\n\
             Label values come from the lists below or from configuration, never from a\n\
             request. Series whose labels are lists are there from the start, at 0.\n\n",
        );
        let bounds: Vec<String> = SECONDS.iter().map(f64::to_string).collect();
        writeln!(
            page,
            "Buckets of every histogram, in seconds:\n{}.\n\
             One ladder for all, so that the stages of a request can be compared; it ends with\n\
             the default bounds of the queue (5 s), a fetch (30 s) and a request (60 s).\n",
            bounds.join(", ")
        )
        .expect("a String takes all");
        page.push_str("| name | kind | labels | |\n|---|---|---|---|\n");
        for family in ALL {
            let labels: Vec<String> = family
                .labels
                .iter()
                .map(|label| format!("`{}`", label.name))
                .collect();
            writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                family.name,
                family.kind.as_str(),
                labels.join(", "),
                family.help
            )
            .expect("a String takes all");
        }
        page.push_str("\n## Label values\n");
        for family in ALL.iter().filter(|family| !family.labels.is_empty()) {
            writeln!(page, "\n`{}`\n", family.name).expect("a String takes all");
            for label in family.labels {
                page.push_str(&described(label));
            }
        }
        page
    }

    fn described(label: &Label) -> String {
        match label.values {
            Values::Open(words) => format!("- `{}`: {words}\n", label.name),
            Values::Of(meanings) if meanings.iter().all(|(_, meaning)| meaning.is_empty()) => {
                let values: Vec<String> = meanings.iter().map(|(v, _)| format!("`{v}`")).collect();
                format!("- `{}`: {}\n", label.name, values.join(", "))
            }
            Values::Of(meanings) => {
                let mut text = format!("- `{}`:\n", label.name);
                for (value, meaning) in meanings {
                    writeln!(text, "  - `{value}`: {meaning}").expect("a String takes all");
                }
                text
            }
        }
    }
}
