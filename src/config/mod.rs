//! Configuration: what a valid one is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

#[derive(Debug, Clone)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub admin: SocketAddr,
    pub probes: Option<SocketAddr>,
    pub trusted_proxies: Vec<Trusted>,
    pub max_body: u64,
    pub spool_dir: PathBuf,
    pub drain_timeout: Duration,
    pub log_format: LogFormat,
    pub slots: Slots,
    pub workers: Workers,
    pub outbound: Outbound,
    pub database: Option<Database>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Whose forwarding headers are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted {
    Net(IpNet),
    /// Every peer on a Unix-socket listener.
    Unix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct Slots {
    pub count: Count,
    pub queue: usize,
    pub queue_timeout: Duration,
    pub request_timeout: Duration,
    pub parked: usize,
    /// Bytes that running and parked requests may retain in the gateway.
    pub parked_bytes: u64,
    pub on_disconnect: OnDisconnect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Fixed(u16),
    /// From the database's own limits.
    Auto,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDisconnect {
    Finish,
    Cancel,
}

#[derive(Debug, Clone)]
pub struct Workers {
    pub source: Source,
    pub thread_locals: Vec<String>,
}

/// Where workers come from: exactly one of the keys app, link, upstream.
#[derive(Debug, Clone)]
pub enum Source {
    App(App),
    Link(PathBuf),
    Upstream(Upstream),
}

/// Supervised Python workers.
#[derive(Debug, Clone)]
pub struct App {
    /// `module:object`, always with the object.
    pub app: String,
    /// None: min(cores, max(1, slots / 4)), once the slots are known.
    pub processes: Option<u16>,
    pub mode: Mode,
    /// The interpreter, if given.
    pub python: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Auto,
    Coroutine,
    Greenlet,
    Wsgi,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Outbound {
    pub allow: Vec<Allow>,
    pub timeout: Duration,
    pub max_response: u64,
    /// Hosts that get their own metric label.
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

#[derive(Debug, Clone)]
pub struct Database {
    pub url: Secret,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
