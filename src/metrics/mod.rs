//! What the gateway counts and times.
//!
//! One registry, and a handle for every series resolved ahead of time, so that counting
//! on the request path is a few atomic additions and never a look-up by string. What a
//! metric is called and means stands in `families`; which values its labels have, in
//! `labels`. Nothing here knows who counts.

pub mod families;
mod labels;
mod pool;
mod process;
mod work;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use prometheus::{
    Counter, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use families::PerLabel;
use labels::{MethodLabel, SlotState};
use process::Process;
use work::Work;

pub use pool::Pool;

pub use labels::{
    CancelPhase, ConnectionState, FetchOutcome, HandshakeOutcome, LabelSet, RestartReason,
    ShedReason, Shortage, SpanOutcome, Stage, TurnedAway, WaitReason,
};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Label value of every origin that configuration does not name.
const OTHER: &str = "other";

/// Status codes with a label value of their own; the rest share one.
const STATUSES: std::ops::Range<u16> = 100..600;

/// Requests to applications, and answers that say of trouble there or here.
const WATCHED_METHODS: [MethodLabel; 5] = [
    MethodLabel::Get,
    MethodLabel::Post,
    MethodLabel::Put,
    MethodLabel::Patch,
    MethodLabel::Delete,
];
const WATCHED_STATUSES: [u16; 5] = [499, 500, 502, 503, 504];

/// All metrics of one gateway. Clones count into the same series.
#[derive(Clone)]
pub struct Metrics(Arc<Series>);

/// A request that keeps its slot while its fetches run, from creation to drop.
#[must_use = "the wait ends when this is dropped"]
pub struct WaitInPlace(IntGauge);

struct Series {
    registry: Registry,
    slots: Slots,
    queue_length: IntGauge,
    parked_requests: IntGauge,
    upstream_slots: IntGaugeVec,
    upstream_queue_length: IntGaugeVec,
    upstream_requests_shed: IntCounterVec,
    upstream_parked_requests: IntGaugeVec,
    waiting_in_place: IntGauge,
    spool_bytes: IntGauge,
    spool_limit_bytes: IntGauge,
    body_memory_bytes: IntGauge,
    connections: PerLabel<ConnectionState, IntGauge>,
    connections_refused: PerLabel<TurnedAway, IntCounter>,
    idle_connections_closed: IntCounter,
    body_shortages: PerLabel<Shortage, IntCounter>,
    requests: Requests,
    request_seconds: Histogram,
    request_phase_seconds: PerLabel<Stage, Histogram>,
    queue_wait_seconds: Histogram,
    slot_busy_seconds: Histogram,
    work: Mutex<Work>,
    slots_busy_seconds: Counter,
    park_seconds: Histogram,
    requests_shed: PerLabel<ShedReason, IntCounter>,
    requests_cancelled: PerLabel<CancelPhase, IntCounter>,
    waits_in_place: PerLabel<WaitReason, IntCounter>,
    answer_backpressure: IntCounter,
    origins: HashMap<String, Origin>,
    other_origin: Origin,
    leftover_fetches: IntCounter,
    access_log_dropped: IntCounter,
    log_dropped: IntCounter,
    spans: PerLabel<SpanOutcome, IntCounter>,
    worker_restarts: PerLabel<RestartReason, IntCounter>,
    tls_handshakes: PerLabel<HandshakeOutcome, IntCounter>,
    tls_certificate_expiry: IntGauge,
    config_hash: Gauge,
    config_accepted: IntGauge,
    config_accepted_at: Gauge,
    before_each_page: Mutex<Vec<Refresh>>,
    /// Locked while somebody renders: what is refreshed for a page is of that page.
    process: Mutex<Process>,
}

/// Sets what is counted only when somebody asks.
type Refresh = Box<dyn Fn(&Metrics) + Send + Sync>;

/// The three states in one word, so that no page shows a slot twice or not at all.
struct Slots {
    counts: AtomicU64,
    gauges: PerLabel<SlotState, IntGauge>,
}

/// A counter per method and status, made when first needed.
struct Requests {
    family: IntCounterVec,
    handles: Vec<OnceLock<IntCounter>>,
}

struct Origin {
    in_flight: IntGauge,
    outcomes: PerLabel<FetchOutcome, IntCounter>,
    seconds: Histogram,
}

impl Metrics {
    /// `origins` are the hosts that get a label value of their own.
    pub fn new(origins: &[String]) -> Self {
        let registry = Registry::new();
        let in_flight = families::FETCHES_IN_FLIGHT.int_gauges(&registry);
        let fetches = families::FETCHES.int_counters(&registry);
        let fetch_seconds = families::FETCH_SECONDS.histograms(&registry);
        let origin = |name: &str| Origin {
            in_flight: in_flight.with_label_values(&[name]),
            outcomes: PerLabel::new(|outcome| fetches.with_label_values(&[name, outcome])),
            seconds: fetch_seconds.with_label_values(&[name]),
        };
        families::BUILD_INFO
            .int_gauges(&registry)
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);

        let connections = families::CONNECTIONS.int_gauges(&registry);
        let phases = families::REQUEST_PHASE_SECONDS.histograms(&registry);
        Self(Arc::new(Series {
            connections: PerLabel::new(|state| connections.with_label_values(&[state])),
            connections_refused: families::CONNECTIONS_REFUSED.per_label(&registry),
            idle_connections_closed: families::IDLE_CONNECTIONS_CLOSED.int_counter(&registry),
            before_each_page: Mutex::default(),
            slots: Slots::new(&registry),
            queue_length: families::QUEUE_LENGTH.int_gauge(&registry),
            parked_requests: families::PARKED_REQUESTS.int_gauge(&registry),
            upstream_slots: families::UPSTREAM_SLOTS.int_gauges(&registry),
            upstream_queue_length: families::UPSTREAM_QUEUE_LENGTH.int_gauges(&registry),
            upstream_requests_shed: families::UPSTREAM_REQUESTS_SHED.int_counters(&registry),
            upstream_parked_requests: families::UPSTREAM_PARKED_REQUESTS.int_gauges(&registry),
            waiting_in_place: families::WAITING_IN_PLACE.int_gauge(&registry),
            spool_bytes: families::SPOOL_BYTES.int_gauge(&registry),
            spool_limit_bytes: families::SPOOL_LIMIT_BYTES.int_gauge(&registry),
            body_memory_bytes: families::BODY_MEMORY_BYTES.int_gauge(&registry),
            body_shortages: families::BODY_SHORTAGES.per_label(&registry),
            requests: Requests::new(&registry),
            request_seconds: families::REQUEST_SECONDS.histogram(&registry),
            request_phase_seconds: PerLabel::new(|phase| phases.with_label_values(&[phase])),
            queue_wait_seconds: families::QUEUE_WAIT_SECONDS.histogram(&registry),
            slot_busy_seconds: families::SLOT_BUSY_SECONDS.histogram(&registry),
            work: Mutex::new(Work::new(Instant::now())),
            slots_busy_seconds: families::SLOTS_BUSY_SECONDS.counter(&registry),
            park_seconds: families::PARK_SECONDS.histogram(&registry),
            requests_shed: families::REQUESTS_SHED.per_label(&registry),
            requests_cancelled: families::REQUESTS_CANCELLED.per_label(&registry),
            waits_in_place: families::WAITS_IN_PLACE.per_label(&registry),
            answer_backpressure: families::ANSWER_BACKPRESSURE.int_counter(&registry),
            origins: origins
                .iter()
                .map(|name| (name.clone(), origin(name)))
                .collect(),
            other_origin: origin(OTHER),
            leftover_fetches: families::LEFTOVER_FETCHES.int_counter(&registry),
            access_log_dropped: families::ACCESS_LOG_DROPPED.int_counter(&registry),
            log_dropped: families::LOG_DROPPED.int_counter(&registry),
            spans: families::SPANS.per_label(&registry),
            worker_restarts: families::WORKER_RESTARTS.per_label(&registry),
            tls_handshakes: families::TLS_HANDSHAKES.per_label(&registry),
            tls_certificate_expiry: families::TLS_CERTIFICATE_EXPIRY.int_gauge(&registry),
            config_hash: families::CONFIG_HASH.gauge(&registry),
            config_accepted: families::CONFIG_ACCEPTED.int_gauge(&registry),
            config_accepted_at: families::CONFIG_ACCEPTED_AT.gauge(&registry),
            process: Mutex::new(Process::new(&registry)),
            registry,
        }))
    }

    /// How many slots are in which state now.
    pub fn slots(&self, idle: u16, busy: u16, lost: u16) {
        self.0.slots.set(idle, busy, lost);
    }

    /// How many of them work now, overdue or not.
    pub fn working(&self, slots: usize) {
        self.0.work().changes(slots, Instant::now());
    }

    pub fn queue_length(&self, jobs: usize) {
        self.0.queue_length.set(gauge_value(jobs));
    }

    pub fn parked_requests(&self, requests: usize) {
        self.0.parked_requests.set(gauge_value(requests));
    }

    /// A request ended: its answer's last byte was taken or its connection closed.
    /// `status` is 499 if the client left before it had an answer.
    pub fn request_ended(&self, method: &Method, status: u16, elapsed: Duration) {
        self.0.requests.of(MethodLabel::from(method), status).inc();
        self.0.request_seconds.observe(elapsed.as_secs_f64());
    }

    /// A request that ended spent this long in one of its stages, all its stays together.
    pub fn request_phase(&self, stage: Stage, spent: Duration) {
        let seconds = self.0.request_phase_seconds.of(stage);
        seconds.observe(spent.as_secs_f64());
    }

    pub fn shed(&self, reason: ShedReason) {
        self.0.requests_shed.of(reason).inc();
    }

    /// The client left before its answer was whole.
    pub fn cancelled(&self, phase: CancelPhase) {
        self.0.requests_cancelled.of(phase).inc();
    }

    /// A job waited this long for its slot.
    pub fn queue_wait(&self, waited: Duration) {
        self.0.queue_wait_seconds.observe(waited.as_secs_f64());
    }

    /// A step held its slot this long.
    pub fn slot_busy(&self, held: Duration) {
        self.0.slot_busy_seconds.observe(held.as_secs_f64());
    }

    /// A park lasted this long.
    pub fn park(&self, lasted: Duration) {
        self.0.park_seconds.observe(lasted.as_secs_f64());
    }

    pub fn wait_in_place(&self, reason: WaitReason) -> WaitInPlace {
        self.0.waits_in_place.of(reason).inc();
        self.0.waiting_in_place.inc();
        WaitInPlace(self.0.waiting_in_place.clone())
    }

    /// What bodies hold on disk. Whoever holds it counts.
    pub fn spool_bytes(&self) -> IntGauge {
        self.0.spool_bytes.clone()
    }

    /// What they may hold there.
    pub fn spool_limit(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.spool_limit_bytes.set(bytes);
    }

    /// What bodies hold in memory.
    pub fn body_memory_bytes(&self) -> IntGauge {
        self.0.body_memory_bytes.clone()
    }

    /// A body found no room.
    pub fn body_shortage(&self, shortage: Shortage) {
        self.0.body_shortages.of(shortage).inc();
    }

    /// How many connections are in this state now.
    pub fn connections(&self, state: ConnectionState, count: usize) {
        self.0.connections.of(state).set(gauge_value(count));
    }

    pub fn turned_away(&self, why: TurnedAway) {
        self.0.connections_refused.of(why).inc();
    }

    /// So many idle connections were told to leave.
    pub fn made_room(&self, connections: usize) {
        self.0.idle_connections_closed.inc_by(connections as u64);
    }

    /// For what costs less to look up now and then than to follow.
    pub fn before_each_page(&self, refresh: impl Fn(&Metrics) + Send + Sync + 'static) {
        let mut all = self.0.before_each_page.lock();
        let all = all.as_mut().expect("no code that holds this lock panics");
        all.push(Box::new(refresh));
    }

    /// A slot has to wait for a slow client. Once per answer.
    pub fn answer_backpressure(&self) {
        self.0.answer_backpressure.inc();
    }

    /// `host` without port, in lower case, as in `[outbound] label`. Each one ends once.
    pub fn fetch_begun(&self, host: &str) {
        self.0.origin(host).in_flight.inc();
    }

    /// `host` as when it began.
    pub fn fetch_ended(&self, host: &str, outcome: FetchOutcome, elapsed: Duration) {
        let origin = self.0.origin(host);
        origin.in_flight.dec();
        origin.outcomes.of(outcome).inc();
        origin.seconds.observe(elapsed.as_secs_f64());
    }

    /// An unsafe fetch that its join did not need ran out.
    pub fn leftover_fetch(&self) {
        self.0.leftover_fetches.inc();
    }

    /// So many lines of the access log are lost.
    pub fn access_log_dropped(&self, lines: usize) {
        self.0.access_log_dropped.inc_by(lines as u64);
    }

    /// A line of the gateway's own log is lost.
    pub fn log_dropped(&self) {
        self.0.log_dropped.inc();
    }

    pub fn spans(&self, outcome: SpanOutcome, count: usize) {
        self.0.spans.of(outcome).inc_by(count as u64);
    }

    pub fn worker_restarted(&self, reason: RestartReason) {
        self.0.worker_restarts.of(reason).inc();
    }

    pub fn handshake(&self, outcome: HandshakeOutcome) {
        self.0.tls_handshakes.of(outcome).inc();
    }

    /// When the first of the gateway's own certificates ends.
    pub fn certificate_ends(&self, since_epoch: Duration) {
        let seconds = i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX);
        self.0.tls_certificate_expiry.set(seconds);
    }

    /// This configuration is in force, of which its hash tells one from others.
    pub fn configured(&self, hash: u64) {
        let series = &self.0;
        // As many bits as a number on the page has.
        let shown = hash & ((1 << f64::MANTISSA_DIGITS) - 1);
        series.config_hash.set(shown as f64);
        series.config_accepted.set(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.unwrap_or_default().as_secs_f64();
        series.config_accepted_at.set(seconds);
    }

    /// A reload was refused, and the configuration is the old one.
    pub fn reload_refused(&self) {
        self.0.config_accepted.set(0);
    }

    /// Everything in Prometheus' text format ([`CONTENT_TYPE`]).
    pub fn render(&self) -> String {
        let mut process = self
            .0
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        process.refresh();
        let refresh = self.0.before_each_page.lock();
        for refresh in refresh.iter().flat_map(|all| all.iter()) {
            refresh(self);
        }
        drop(refresh);
        self.0.slots.refresh();
        let worked = self.0.work().until(Instant::now()).as_secs_f64();
        let busy = &self.0.slots_busy_seconds;
        busy.inc_by((worked - busy.get()).max(0.0));
        TextEncoder::new()
            .encode_to_string(&self.0.registry.gather())
            .expect("a family with a valid name and a String to write to cannot fail")
    }
}

impl Series {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn origin(&self, host: &str) -> &Origin {
        self.origins.get(host).unwrap_or(&self.other_origin)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Drop for WaitInPlace {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Slots {
    fn new(registry: &Registry) -> Self {
        let family = families::SLOTS.int_gauges(registry);
        Self {
            counts: AtomicU64::new(0),
            gauges: PerLabel::new(|state| family.with_label_values(&[state])),
        }
    }

    fn set(&self, idle: u16, busy: u16, lost: u16) {
        let counts = u64::from(idle) | u64::from(busy) << 16 | u64::from(lost) << 32;
        self.counts.store(counts, Ordering::Relaxed);
    }

    fn refresh(&self) {
        let counts = self.counts.load(Ordering::Relaxed);
        for (shift, state) in [
            (0, SlotState::Idle),
            (16, SlotState::Busy),
            (32, SlotState::Lost),
        ] {
            let count = (counts >> shift) as u16;
            self.gauges.of(state).set(i64::from(count));
        }
    }
}

impl Requests {
    fn new(registry: &Registry) -> Self {
        let places = MethodLabel::ALL.len() * (STATUSES.len() + 1);
        let requests = Self {
            family: families::REQUESTS.int_counters(registry),
            handles: (0..places).map(|_| OnceLock::new()).collect(),
        };
        // So that the family is on the first page.
        requests.of(MethodLabel::Get, 200);
        // What alerts go by: a rate sees nothing of a series that begins at 1.
        for method in WATCHED_METHODS {
            for status in WATCHED_STATUSES {
                requests.of(method, status);
            }
        }
        requests
    }

    fn of(&self, method: MethodLabel, status: u16) -> &IntCounter {
        let known = STATUSES.contains(&status);
        let column = match known {
            true => usize::from(status - STATUSES.start),
            false => STATUSES.len(),
        };
        let place = method.index() * (STATUSES.len() + 1) + column;
        self.handles[place].get_or_init(|| {
            let (status, class) = match known {
                true => (status.to_string(), format!("{}xx", status / 100)),
                false => (OTHER.to_owned(), OTHER.to_owned()),
            };
            self.family
                .with_label_values(&[method.as_str(), &status, &class])
        })
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&["pay.example".to_owned()])
    }

    /// The value of one series, `None` if it is not on the page.
    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        metrics.render().lines().find_map(|line| {
            let value = line.strip_prefix(series)?.strip_prefix(' ')?;
            value.parse().ok()
        })
    }

    #[test]
    fn every_family_is_on_the_first_page() {
        let metrics = metrics();
        // Those of upstreams are there when one is configured.
        let _pool = metrics.upstream_pool("unix:/run/app.sock");
        let page = metrics.render();
        let mut rendered: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        rendered.sort_unstable();
        let mut declared: Vec<String> = families::ALL
            .iter()
            .map(|family| format!("{} {}", family.name, family.kind.as_str()))
            .collect();
        declared.sort_unstable();
        assert_eq!(rendered, declared);
    }

    #[test]
    fn series_with_enum_labels_start_at_zero() {
        let metrics = metrics();
        for series in [
            "layby_slots{state=\"lost\"}",
            "layby_requests_shed_total{reason=\"parked_full\"}",
            "layby_waits_in_place_total{reason=\"unsupported\"}",
            "layby_worker_restarts_total{reason=\"reload\"}",
            "layby_requests_cancelled_total{phase=\"parked\"}",
            "layby_fetches_total{origin=\"pay.example\",outcome=\"aborted\"}",
            "layby_fetches_total{origin=\"other\",outcome=\"ok\"}",
            "layby_fetch_seconds_count{origin=\"pay.example\"}",
            "layby_requests_total{class=\"2xx\",method=\"GET\",status=\"200\"}",
            "layby_requests_total{class=\"5xx\",method=\"POST\",status=\"503\"}",
            "layby_requests_total{class=\"4xx\",method=\"DELETE\",status=\"499\"}",
            "layby_slots_busy_seconds_total",
        ] {
            assert_eq!(value(&metrics, series), Some(0.0), "{series}");
        }
    }

    #[test]
    fn requests_are_counted_by_method_status_and_class() {
        let metrics = metrics();
        let brew = Method::from_bytes(b"BREW").expect("a token");
        metrics.request_ended(&Method::PATCH, 503, Duration::from_millis(2));
        metrics.request_ended(&Method::PATCH, 503, Duration::from_millis(2));
        metrics.request_ended(&brew, 418, Duration::from_millis(2));
        metrics.request_ended(&Method::GET, 999, Duration::from_millis(2));

        let requests = |method, status, class| {
            let series = format!(
                "layby_requests_total{{class=\"{class}\",method=\"{method}\",status=\"{status}\"}}"
            );
            value(&metrics, &series)
        };
        assert_eq!(requests("PATCH", "503", "5xx"), Some(2.0));
        assert_eq!(requests("other", "418", "4xx"), Some(1.0));
        assert_eq!(requests("GET", "other", "other"), Some(1.0));
        assert_eq!(value(&metrics, "layby_request_seconds_count"), Some(4.0));
    }

    #[test]
    fn every_status_and_method_has_a_counter_of_its_own() {
        let metrics = metrics();
        for &method in MethodLabel::ALL {
            for status in STATUSES {
                metrics.0.requests.of(method, status).inc();
            }
        }
        let page = metrics.render();
        let ones = page
            .lines()
            .filter(|line| line.starts_with("layby_requests_total{") && line.ends_with(" 1"));
        assert_eq!(ones.count(), MethodLabel::ALL.len() * STATUSES.len());
    }

    #[test]
    fn an_origin_that_is_not_configured_is_other() {
        let metrics = metrics();
        metrics.fetch_begun("pay.example");
        metrics.fetch_begun("evil.example");
        metrics.fetch_begun("evil.example");
        metrics.fetch_ended("pay.example", FetchOutcome::Ok, Duration::from_secs(1));
        metrics.fetch_ended("evil.example", FetchOutcome::Refused, Duration::ZERO);

        let fetches = |origin, outcome| {
            let series =
                format!("layby_fetches_total{{origin=\"{origin}\",outcome=\"{outcome}\"}}");
            value(&metrics, &series)
        };
        assert_eq!(fetches("pay.example", "ok"), Some(1.0));
        assert_eq!(fetches("other", "refused"), Some(1.0));
        let in_flight = |origin| {
            let series = format!("layby_fetches_in_flight{{origin=\"{origin}\"}}");
            value(&metrics, &series)
        };
        assert_eq!(in_flight("pay.example"), Some(0.0));
        assert_eq!(in_flight("other"), Some(1.0));
        assert!(!metrics.render().contains("evil"));
        let sum = "layby_fetch_seconds_sum{origin=\"pay.example\"}";
        assert_eq!(value(&metrics, sum), Some(1.0));
    }

    #[test]
    fn slots_are_shown_as_they_were_set() {
        let metrics = metrics();
        metrics.slots(1, u16::MAX, 3);
        let slots = |state| value(&metrics, &format!("layby_slots{{state=\"{state}\"}}"));
        assert_eq!(
            (slots("idle"), slots("busy"), slots("lost")),
            (Some(1.0), Some(65535.0), Some(3.0))
        );
    }

    #[test]
    fn slots_that_work_are_counted_before_they_are_done() {
        let metrics = metrics();
        metrics.main_pool().working(2);
        let seconds = || value(&metrics, "layby_slots_busy_seconds_total").expect("it is there");
        let first = seconds();
        assert!(seconds() > first);
        metrics.main_pool().working(0);
        let last = seconds();
        assert_eq!(seconds(), last);
    }

    #[test]
    fn what_is_held_is_let_go_on_drop() {
        let metrics = metrics();
        let wait = metrics.wait_in_place(WaitReason::Transaction);
        assert_eq!(value(&metrics, "layby_waiting_in_place"), Some(1.0));

        drop(wait);
        assert_eq!(value(&metrics, "layby_waiting_in_place"), Some(0.0));
        let waits = "layby_waits_in_place_total{reason=\"transaction\"}";
        assert_eq!(value(&metrics, waits), Some(1.0));
    }

    #[test]
    fn phases_of_a_request_are_timed_apart() {
        let metrics = metrics();
        metrics.request_phase(Stage::Park, Duration::from_secs(2));
        let sum = |phase| {
            value(
                &metrics,
                &format!("layby_request_phase_seconds_sum{{phase=\"{phase}\"}}"),
            )
        };
        assert_eq!((sum("park"), sum("resume")), (Some(2.0), Some(0.0)));
    }

    #[test]
    fn equal_configurations_have_equal_hashes_whatever_became_of_a_reload() {
        let metrics = metrics();
        metrics.configured(u64::MAX);
        let hash = value(&metrics, "layby_config_hash");
        assert_eq!(hash, Some(9_007_199_254_740_991.0));
        let since = value(
            &metrics,
            "layby_config_last_reload_success_timestamp_seconds",
        );
        assert!(since > Some(1.7e9), "{since:?}");
        let accepted = || value(&metrics, "layby_config_last_reload_successful");
        assert_eq!(accepted(), Some(1.0));
        metrics.reload_refused();
        assert_eq!(accepted(), Some(0.0));
        assert_eq!(value(&metrics, "layby_config_hash"), hash);
    }

    #[test]
    fn the_process_is_described() {
        let metrics = metrics();
        let positive = |series| value(&metrics, series).is_some_and(|value| value > 0.0);
        assert!(positive("process_cpu_seconds_total"));
        assert!(positive("process_resident_memory_bytes"));
        assert!(positive("process_open_fds"));
        assert!(positive("process_max_fds"));
        assert!(positive("process_virtual_memory_bytes"));
        assert!(positive("process_threads"));
        assert!(positive("process_start_time_seconds"));
    }
}
