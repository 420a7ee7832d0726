//! Addresses, sockets and networks.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Kind, Problem, Value};
use crate::config::{Listen, Trusted, Upstream};

/// The path of `unix:PATH`.
#[derive(Debug, PartialEq, Eq)]
pub struct UnixSocket(pub PathBuf);

/// What a Unix socket's address can hold, less the NUL at its end.
const LONGEST_SOCKET_PATH: usize = 107;

impl Value for SocketAddr {
    fn is(kind: Kind) -> bool {
        kind == Kind::Address
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        text.parse().map_err(|_| meant_address(text))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Addresses by other habits: `8000`, `:8000`, `*:8000`, `localhost:8000`.
fn meant_address(text: &str) -> Problem {
    if text.parse::<IpAddr>().is_ok() {
        return Problem::new("has no port");
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    if port.parse::<u16>().is_err() {
        return Problem::new("is not an IP address with a port");
    }
    match host {
        "" => Problem::new("has no address")
            .write(format!("127.0.0.1:{port}"))
            .write(format!("0.0.0.0:{port}")),
        "*" => Problem::new("is not an IP address").write(format!("0.0.0.0:{port}")),
        "localhost" => Problem::new("is not an IP address").write(format!("127.0.0.1:{port}")),
        _ => Problem::new("is not an IP address with a port"),
    }
}

impl Value for Listen {
    fn is(kind: Kind) -> bool {
        kind == Kind::Listen
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.starts_with("unix:") || text.starts_with('/') {
            return UnixSocket::parse(text).map(|socket| Listen::Unix(socket.0));
        }
        match text.strip_prefix("systemd") {
            Some("") => return Ok(Listen::Systemd(None)),
            Some(name) if name.starts_with(':') => return systemd_name(&name[1..]),
            _ => {}
        }
        SocketAddr::parse(text).map(Listen::Tcp)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// What systemd takes for a `FileDescriptorName`.
fn systemd_name(name: &str) -> Result<Listen, Problem> {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
    if name.is_empty() || name.len() > 255 || !name.bytes().all(printable) {
        return Err(Problem::new("has no name that systemd could give")
            .say("write the FileDescriptorName of the socket unit, or systemd for every socket"));
    }
    Ok(Listen::Systemd(Some(name.to_owned())))
}

impl Value for UnixSocket {
    fn is(kind: Kind) -> bool {
        kind == Kind::UnixSocket
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let Some(path) = text.strip_prefix("unix:") else {
            let problem = Problem::new("is not a Unix socket");
            return Err(match text.starts_with('/') {
                true => problem.write(format!("unix:{text}")),
                false => problem,
            });
        };
        if path.starts_with("//") {
            let path = path.trim_start_matches('/');
            return Err(Problem::new("has too many slashes").write(format!("unix:/{path}")));
        }
        if path.is_empty() || path.contains('\0') {
            return Err(Problem::new("has no path"));
        }
        if path.len() > LONGEST_SOCKET_PATH {
            return Err(Problem::new("is too long for a socket")
                .say(format!("a path has at most {LONGEST_SOCKET_PATH} bytes")));
        }
        Ok(UnixSocket(PathBuf::from(path)))
    }

    fn show(&self) -> String {
        format!("unix:{}", self.0.display())
    }
}

impl Value for Upstream {
    fn is(kind: Kind) -> bool {
        kind == Kind::Upstream
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.starts_with("unix:") || text.starts_with('/') {
            return UnixSocket::parse(text).map(|socket| Upstream::Unix(socket.0));
        }
        let Some(rest) = text.strip_prefix("http://") else {
            return Err(meant_upstream(text));
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(Problem::new("has a user name").say("write http://HOST:PORT"));
        }
        let authority = authority_with_port(authority)?;
        if !matches!(path, "" | "/") {
            return Err(Problem::new("has a path").write(format!("http://{authority}")));
        }
        Ok(Upstream::Tcp(authority))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

fn authority_with_port(text: &str) -> Result<String, Problem> {
    let invalid = || Problem::new("is not an http URL");
    let authority = http::uri::Authority::from_str(text).map_err(|_| invalid())?;
    let host = authority.host().to_ascii_lowercase();
    if host.is_empty() {
        return Err(invalid());
    }
    match authority.port_u16() {
        Some(0) => Err(Problem::new("has port 0")),
        Some(port) => Ok(format!("{host}:{port}")),
        None if text.len() == host.len() => Ok(format!("{host}:80")),
        None => Err(Problem::new("has no valid port")),
    }
}

fn meant_upstream(text: &str) -> Problem {
    if text.starts_with("https://") {
        return Problem::new("is not plain HTTP")
            .say("upstreams stand beside the gateway; write http://HOST:PORT or unix:PATH");
    }
    let problem = Problem::new("is not an http URL");
    match authority_with_port(text) {
        Ok(authority) if !text.contains("://") => problem.write(format!("http://{authority}")),
        _ => problem,
    }
}

impl Value for Trusted {
    fn is(kind: Kind) -> bool {
        kind == Kind::Trusted
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        match text {
            "unix" => return Ok(Trusted::Unix),
            "*" => {
                return Err(Problem::new("would believe everybody")
                    .say("write the addresses or networks of your proxies, or unix"));
            }
            _ => {}
        }
        match network(text) {
            Some(net) => net.map(Trusted::Net),
            None => Err(Problem::new("is not an address, a network or unix")),
        }
    }

    fn show(&self) -> String {
        match self {
            Trusted::Net(net) => show_network(net),
            Trusted::Unix => "unix".to_owned(),
        }
    }
}

/// An address or a network; None if it is meant to be something else.
pub(super) fn network(text: &str) -> Option<Result<IpNet, Problem>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(IpNet::from(address)));
    }
    if let Ok(net) = text.parse::<IpNet>() {
        // Either could be meant, and the difference is who gets in.
        let exact = net.trunc() == net;
        return Some(exact.then_some(net).ok_or_else(|| {
            Problem::new("is an address within a network")
                .write(net.trunc().to_string())
                .write(net.addr().to_string())
        }));
    }
    let bare = text.strip_prefix('[')?.strip_suffix(']')?;
    let problem = Problem::new("has brackets");
    Some(Err(match bare.parse::<IpAddr>() {
        Ok(address) => problem.write(address.to_string()),
        Err(_) => problem,
    }))
}

/// A single address without its prefix length.
pub(super) fn show_network(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}
