//! What the service manager is told: that the gateway is ready, reloads, stops, and is alive.
//!
//! systemd's protocol, a datagram for each message, if `NOTIFY_SOCKET` names a socket. Nobody else is
//! told, and nothing depends on it: what cannot be sent is left unsaid.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where the service manager listens, if there is one.
pub struct Manager(Option<Line>);

struct Line {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    pub fn from_env() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET").and_then(|name| Line::to(name.as_encoded_bytes())))
    }

    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// Until [`Manager::ready`] says that it is over.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often to say that the gateway is alive: twice in the time after which it is taken for dead.
    pub fn heartbeat(&self) -> Option<Duration> {
        let ours = |pid: String| pid == std::process::id().to_string();
        if self.0.is_none() || !std::env::var("WATCHDOG_PID").map_or(true, ours) {
            return None;
        }
        let microseconds = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
        Some(Duration::from_micros(microseconds) / 2).filter(|pause| !pause.is_zero())
    }

    fn tell(&self, message: &str) {
        if let Some(line) = &self.0
            && let Err(error) = line.socket.send_to_addr(message.as_bytes(), &line.address)
        {
            tracing::debug!(%error, message, "the service manager is not told");
        }
    }
}

impl Line {
    /// To a path, or to an abstract name, which begins with `@`.
    fn to(name: &[u8]) -> Option<Self> {
        let address = match name {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
            _ => SocketAddr::from_pathname(std::str::from_utf8(name).ok()?).ok()?,
        };
        let socket = UnixDatagram::unbound().ok()?;
        // A manager that does not read must not hold up clients.
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("layby-test-{}", std::process::id());
        let hidden = SocketAddr::from_abstract_name(&name).expect("an address");
        for (manager, address) in [
            (UnixDatagram::bind(&path), path.display().to_string()),
            (UnixDatagram::bind_addr(&hidden), format!("@{name}")),
        ] {
            let manager = manager.expect("a socket");
            Manager(Line::to(address.as_bytes())).reloading();
            let mut message = [0; 100];
            let length = manager.recv(&mut message).expect("a message");
            let message = std::str::from_utf8(&message[..length]).expect("text");
            assert!(
                message.starts_with("RELOADING=1\nMONOTONIC_USEC="),
                "{message}"
            );
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Manager(None).ready();
        assert_eq!(Manager(None).heartbeat(), None);
    }
}
