//! Configuration: what a valid one is.
//!
//! A [`Config`] comes from four sources, the stronger before the weaker: flag, environment,
//! file, default. Every value in it has been checked, so no other room checks again. What is
//! wrong is reported all at once, each mistake with its place and what to write instead.
//!
//! The keys stand in one table ([`keys::KEYS`], and [`keys::LISTS`] for sections of which there may be several); reading the file, reading the environment, the
//! effective configuration and the reference page all follow it. What a value means to the
//! machine (does the folder exist, is the port free) is left to whoever uses it.

mod addresses;
mod effective;
mod environment;
mod file;
mod keys;
mod mistakes;
mod read;
mod reference;
mod routes;
mod rules;
mod statics;
mod telemetry;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

pub use effective::{Effective, Entry};
pub use mistakes::{Mistake, Mistakes, Place};
pub use reference::reference;

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// At least one here or in `tls`, no two the same.
    pub listen: Vec<Listen>,
    pub admin: SocketAddr,
    pub probes: Option<SocketAddr>,
    pub trusted_proxies: Vec<Trusted>,
    pub forwarding_headers: ForwardingHeaders,
    /// Peers that begin with a PROXY protocol header.
    pub proxy_protocol: Vec<Trusted>,
    pub max_body: u64,
    pub spool_dir: PathBuf,
    pub bodies: Bodies,
    pub clients: Clients,
    pub drain_timeout: Duration,
    /// How long a tunnel may carry nothing.
    pub tunnel_timeout: Duration,
    /// Red in readiness, and still open.
    pub drain_delay: Duration,
    pub log_format: LogFormat,
    /// HTTP/2 by ALPN on the listeners of `tls`.
    pub http2: bool,
    /// HTTP/2 by prior knowledge on those of `listen`.
    pub h2c: bool,
    pub tls: Tls,
    pub slots: Slots,
    pub workers: Workers,
    pub outbound: Outbound,
    pub database: Option<Database>,
    pub access_log: AccessLog,
    /// A folder.
    pub error_pages: Option<PathBuf>,
    pub compression: Compression,
    pub tracing: Tracing,
    /// None: no plans over HTTP.
    pub plans: Option<Plans>,
    /// Where `X-Sendfile` may point; empty: nowhere.
    pub sendfile_root: Vec<PathBuf>,
    /// In the order of the file; no two for the same requests.
    pub routes: Vec<Route>,
    /// In the order of the file; no two with the same path.
    pub mounts: Vec<Mount>,
}

/// What all bodies together may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bodies {
    pub memory_limit: u64,
    pub spool_limit: u64,
    /// Of one answer, on disk.
    pub answer_spool: u64,
}

/// What clients may do with their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clients {
    /// None: as many as descriptors allow.
    pub max_connections: Option<usize>,
    /// None: no limit.
    pub max_connections_per_client: Option<usize>,
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub stall_timeout: Duration,
    /// Bytes per second; 0: no minimum.
    pub min_rate: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Sockets that systemd holds: all, or those of this name.
    Systemd(Option<String>),
}

/// Who tells the truth about clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted {
    Net(IpNet),
    /// Every peer on a Unix-socket listener.
    Unix,
}

impl Listen {
    /// As it is written in `listen`; None if it is no such entry.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        values::Value::parse(text).ok()
    }
}

/// Which headers of trusted proxies are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardingHeaders {
    /// Both, if they agree.
    Any,
    XForwarded,
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    pub format: AccessFormat,
    /// None: standard output.
    pub path: Option<PathBuf>,
    /// Lines tell queries.
    pub query: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    Off,
    Json,
    Combined,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub listen: Vec<Listen>,
    /// At least one if there are listeners.
    pub certificates: Vec<Certificate>,
    pub min_version: TlsVersion,
    /// None: clients are not asked for a certificate.
    pub client_ca: Option<PathBuf>,
    pub client_auth: ClientAuth,
}

/// A certificate and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    V12,
    V13,
}

/// What is asked of clients beside a good certificate, if they give one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    Optional,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    pub count: Count,
    /// 0: nothing waits, a request that finds no idle slot is shed.
    pub queue: usize,
    pub queue_timeout: Duration,
    pub request_timeout: Duration,
    /// How long a slot may go on with a request whose time is over.
    pub overdue_grace: Duration,
    /// Never below a fixed count.
    pub parked: usize,
    /// Bytes that running and parked requests may retain in the gateway.
    pub parked_bytes: u64,
    pub on_disconnect: OnDisconnect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// 1 to 1024.
    Fixed(u16),
    /// From the database's own limits. There is a [`Database`] then.
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Finish,
    Cancel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    pub source: Source,
    /// The server of the source may answer with plans. There are [`Plans`] then.
    pub plans: bool,
    /// `module.attribute` names.
    pub thread_locals: Vec<String>,
}

/// Where workers come from: exactly one of the keys app, link, upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    App(App),
    Link(PathBuf),
    Upstream(Upstream),
}

/// Supervised Python workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// `module:object`, always with the object.
    pub app: String,
    /// None: min(cores, max(1, slots / 4)), once the slots are known.
    pub processes: Option<u16>,
    pub mode: Mode,
    /// The interpreter, if given.
    pub python: Option<PathBuf>,
    pub recycle: Recycle,
}

/// When a worker process is replaced that works well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recycle {
    pub max_requests: Option<usize>,
    pub max_age: Option<Duration>,
    /// Resident bytes.
    pub max_memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Coroutine,
    Greenlet,
    Wsgi,
}

/// An HTTP/1.1 application server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// `host:port`, always with the port.
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    pub allow: Vec<Allow>,
    pub timeout: Duration,
    pub max_response: u64,
    /// Bytes of responses on their way in, all together: as many as requests may retain, and room for one.
    pub max_held: u64,
    /// Hosts that get their own metric label; lower case.
    pub label: Vec<String>,
}

/// One entry of `[outbound] allow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// Any name that resolves to public addresses, and public IP literals.
    Public,
    /// Exactly this name (lower case, no trailing dot); may resolve to private addresses.
    Name(String),
    /// `*.example.org`: the part after `*.`; only public addresses.
    Wildcard(String),
    /// Literal addresses and networks; the only way to loopback, link-local and metadata.
    Net(IpNet),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    pub url: Secret,
    /// Above 0.
    pub share: Ratio,
}

/// What is special about the requests of one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Begins with `/` and ends without, but for `/` itself. Stands for what is below it, too.
    pub path: String,
    /// Lower case, without port; every host if there is none.
    pub host: Option<String>,
    /// Every method if there is none.
    pub methods: Vec<http::Method>,
    pub body: BodyMode,
    /// None: that of the whole gateway.
    pub max_body: Option<u64>,
    /// None: the workers of the whole gateway. Then the body is buffered.
    pub upstream: Option<RouteUpstream>,
}

/// A server beside the workers. Routes to the same one agree about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteUpstream {
    pub server: Upstream,
    /// Requests at once, 1 to 10000.
    pub connections: u16,
    /// It may answer with plans. There are [`Plans`] then.
    pub plans: bool,
}

/// Plans over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plans {
    /// Never systemd's.
    pub listen: Listen,
    /// At least 32 characters, all of them visible ASCII.
    pub secret: Secret,
}

/// Files that are sent without the application: one `[[static]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Like that of a [`Route`].
    pub path: String,
    pub root: PathBuf,
    /// A plain name.
    pub index: Option<String>,
    pub fallthrough: bool,
    pub internal: bool,
    pub cache_control: Option<HeaderValue>,
    pub immutable: Immutable,
    /// The best first.
    pub precompressed: Vec<Coding>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Which files never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Immutable {
    None,
    Hashed,
    All,
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Zstd,
    Brotli,
    Gzip,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// The best first; empty: nothing is compressed.
    pub algorithms: Vec<Coding>,
    /// Lower case, without parameters.
    pub types: Vec<String>,
    pub min_size: u64,
    pub level: Level,
}

/// What compressing is to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Fast,
    Balanced,
    Small,
}

/// Which spans are made, and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// None: no spans. With HTTP that they are sent to exactly; with gRPC, its path says nothing.
    pub endpoint: Option<Url>,
    pub protocol: OtlpProtocol,
    pub headers: Vec<SecretHeader>,
    pub sample: Ratio,
    pub service_name: String,
    pub resource_attributes: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    Http,
    Grpc,
}

/// From 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio(pub f64);

/// It is always a number.
impl Eq for Ratio {}

/// One whose value is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHeader(pub HeaderName, pub HeaderValue);

/// When a request's body is taken from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyMode {
    /// Before a slot is asked for.
    Buffered,
    /// When the application asks for it.
    Lazy,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

/// Where a configuration is to be looked for. Kept by the gateway, to look again on a reload.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file given; none means `layby.toml`, which may be absent.
    pub file: Option<PathBuf>,
    pub env: Vec<(OsString, OsString)>,
    /// Keys of the table and what their flags said.
    pub flags: Vec<(&'static str, Vec<String>)>,
    pub role: Role,
}

/// What the configuration is for; decides which sources of workers make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Any source of workers: `layby check`.
    #[default]
    Any,
    /// Supervised workers: `layby run`.
    Run,
    /// The gateway alone: `layby serve`.
    Serve,
}

/// A configuration and what is to be said about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Every value with its source, for the start-up log.
    pub effective: Effective,
    /// One line each; nothing in them keeps the gateway from starting.
    pub warnings: Vec<String>,
}

/// A time as the configuration has it, for flags that are no keys.
///
/// # Errors
///
/// What to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    <Duration as values::Value>::parse(text)
        .map_err(|_| "write a number with a unit, as in 30s or 10m".to_owned())
}

impl Config {
    /// Reads the configuration file and puts all sources together.
    ///
    /// # Errors
    ///
    /// Every mistake of every source.
    pub fn load(sources: &Sources) -> Result<Loaded, Mistakes> {
        read::resolve(file::read(sources.file.as_deref()), sources)
    }

    /// Where these sources say that the admin listener is, for who comes from outside.
    ///
    /// # Errors
    ///
    /// What is wrong with that.
    pub fn admin(sources: &Sources) -> Result<SocketAddr, Mistakes> {
        let mut admin = read::admin(file::read(sources.file.as_deref()), sources)?;
        match admin.ip() {
            IpAddr::V4(any) if any.is_unspecified() => admin.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(any) if any.is_unspecified() => admin.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        Ok(admin)
    }

    /// Where it is when nobody says so.
    #[must_use]
    pub fn default_admin() -> SocketAddr {
        let admin = read::admin(Ok(None), &Sources::default());
        admin.expect("nobody made a mistake")
    }

    /// The configuration that this text alone makes: no environment, no flags.
    ///
    /// # Errors
    ///
    /// Every mistake in the text.
    pub fn from_toml(text: &str) -> Result<Loaded, Mistakes> {
        let file = file::File::new("layby.toml", text);
        read::resolve(Ok(Some(file)), &Sources::default())
    }

    /// What is in force after a reload: the new configuration, but for what only a restart
    /// applies, so that the next reload tells of it again.
    #[must_use]
    pub fn reloaded(self, new: Config) -> Config {
        let source = match (self.workers.source, new.workers.source) {
            (Source::App(old), Source::App(new)) => Source::App(App {
                app: old.app,
                processes: old.processes,
                ..new
            }),
            (old, _) => old,
        };
        let plans = match (self.plans, new.plans) {
            (Some(old), Some(new)) => Some(Plans {
                listen: old.listen,
                ..new
            }),
            (old, _) => old,
        };
        Config {
            plans,
            admin: self.admin,
            probes: self.probes,
            spool_dir: self.spool_dir,
            log_format: self.log_format,
            tls: Tls {
                listen: self.tls.listen,
                ..new.tls
            },
            slots: Slots {
                count: self.slots.count,
                ..new.slots
            },
            workers: Workers {
                source,
                ..new.workers
            },
            outbound: Outbound {
                label: self.outbound.label,
                ..new.outbound
            },
            database: self.database,
            tracing: Tracing {
                sample: new.tracing.sample,
                ..self.tracing
            },
            ..new
        }
    }

    /// The keys that have their old values after a reload: those that differ and need a restart, and with
    /// another source of workers all that stands beside one.
    #[must_use]
    pub fn kept(&self, new: &Config) -> Vec<&'static str> {
        let mut keys = self.changes_needing_restart(new);
        let kind = |config: &Config| std::mem::discriminant(&config.workers.source);
        if kind(self) != kind(new) {
            keys.extend(rules::CHOICES);
            keys.extend(rules::BESIDE_APP);
        }
        keys
    }

    /// The keys that differ and that a running gateway cannot change.
    ///
    /// How supervised workers are started (mode, interpreter) may change: a
    /// reload starts new ones anyway.
    #[must_use]
    pub fn changes_needing_restart(&self, new: &Config) -> Vec<&'static str> {
        let source = |workers: &Workers| match &workers.source {
            Source::App(app) => ("workers.app", app.app.clone()),
            Source::Link(path) => ("workers.link", path.display().to_string()),
            Source::Upstream(upstream) => ("workers.upstream", upstream.to_string()),
        };
        let (old_source, new_source) = (source(&self.workers), source(&new.workers));
        let processes = |config: &Config| match &config.workers.source {
            Source::App(app) => app.processes,
            Source::Link(_) | Source::Upstream(_) => None,
        };
        let url = |config: &Config| {
            config
                .database
                .as_ref()
                .map(|database| database.url.clone())
        };
        let share = |config: &Config| config.database.as_ref().map(|database| database.share);
        let plans = |config: &Config| config.plans.as_ref().map(|plans| plans.listen.clone());
        [
            ("admin", self.admin != new.admin),
            ("probes", self.probes != new.probes),
            ("spool_dir", self.spool_dir != new.spool_dir),
            ("log_format", self.log_format != new.log_format),
            ("tls.listen", self.tls.listen != new.tls.listen),
            ("slots.count", self.slots.count != new.slots.count),
            (new_source.0, old_source != new_source),
            ("workers.processes", processes(self) != processes(new)),
            ("outbound.label", self.outbound.label != new.outbound.label),
            ("database.url", url(self) != url(new)),
            ("plans.listen", plans(self) != plans(new)),
            (
                "database.share",
                url(self) == url(new) && share(self) != share(new),
            ),
            (
                "tracing.otlp_endpoint",
                self.tracing.endpoint != new.tracing.endpoint,
            ),
            (
                "tracing.protocol",
                self.tracing.protocol != new.tracing.protocol,
            ),
            (
                "tracing.headers",
                self.tracing.headers != new.tracing.headers,
            ),
            (
                "tracing.service_name",
                self.tracing.service_name != new.tracing.service_name,
            ),
            (
                "tracing.resource_attributes",
                self.tracing.resource_attributes != new.tracing.resource_attributes,
            ),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}

impl ForwardingHeaders {
    pub const ALL: [ForwardingHeaders; 3] = [
        ForwardingHeaders::Any,
        ForwardingHeaders::XForwarded,
        ForwardingHeaders::Forwarded,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ForwardingHeaders::Any => "any",
            ForwardingHeaders::XForwarded => "x-forwarded",
            ForwardingHeaders::Forwarded => "forwarded",
        }
    }
}

impl LogFormat {
    pub const ALL: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

impl AccessFormat {
    pub const ALL: [AccessFormat; 3] = [
        AccessFormat::Off,
        AccessFormat::Json,
        AccessFormat::Combined,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AccessFormat::Off => "off",
            AccessFormat::Json => "json",
            AccessFormat::Combined => "combined",
        }
    }
}

impl OnDisconnect {
    pub const ALL: [OnDisconnect; 2] = [OnDisconnect::Finish, OnDisconnect::Cancel];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OnDisconnect::Finish => "finish",
            OnDisconnect::Cancel => "cancel",
        }
    }
}

impl Coding {
    pub const ALL: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    /// Its name in HTTP.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// Of files.
    #[must_use]
    pub fn ending(self) -> &'static str {
        match self {
            Coding::Zstd => "zst",
            Coding::Brotli => "br",
            Coding::Gzip => "gz",
        }
    }
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Fast, Level::Balanced, Level::Small];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Fast => "fast",
            Level::Balanced => "balanced",
            Level::Small => "small",
        }
    }
}

impl Immutable {
    pub const ALL: [Immutable; 3] = [Immutable::None, Immutable::Hashed, Immutable::All];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Immutable::None => "none",
            Immutable::Hashed => "hashed",
            Immutable::All => "all",
        }
    }
}

impl OtlpProtocol {
    pub const ALL: [OtlpProtocol; 2] = [OtlpProtocol::Http, OtlpProtocol::Grpc];

    /// Its name in OpenTelemetry.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OtlpProtocol::Http => "http/protobuf",
            OtlpProtocol::Grpc => "grpc",
        }
    }
}

impl TlsVersion {
    pub const ALL: [TlsVersion; 2] = [TlsVersion::V12, TlsVersion::V13];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TlsVersion::V12 => "1.2",
            TlsVersion::V13 => "1.3",
        }
    }
}

impl ClientAuth {
    pub const ALL: [ClientAuth; 2] = [ClientAuth::Required, ClientAuth::Optional];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ClientAuth::Required => "required",
            ClientAuth::Optional => "optional",
        }
    }
}

impl BodyMode {
    pub const ALL: [BodyMode; 2] = [BodyMode::Buffered, BodyMode::Lazy];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BodyMode::Buffered => "buffered",
            BodyMode::Lazy => "lazy",
        }
    }
}

impl Mode {
    pub const ALL: [Mode; 4] = [Mode::Auto, Mode::Coroutine, Mode::Greenlet, Mode::Wsgi];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Coroutine => "coroutine",
            Mode::Greenlet => "greenlet",
            Mode::Wsgi => "wsgi",
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Systemd(None) => f.write_str("systemd"),
            Listen::Systemd(Some(name)) => write!(f, "systemd:{name}"),
        }
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Upstream::Tcp(authority) => write!(f, "http://{authority}"),
            Upstream::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl std::fmt::Debug for SecretHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ***", self.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
