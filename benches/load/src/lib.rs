//! What the two ends of a benchmark share: many sockets on one thread, and where an
//! HTTP/1.1 message ends.
//!
//! One thread on purpose: on a small machine the load must not take the cores that it
//! measures, and the CPU time of one thread is easy to read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

/// Level-triggered readiness of sockets, each known by a number.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

pub use epoll::EventFlags as Interest;

impl Poll {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(1024),
        })
    }

    pub fn add(&self, socket: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token as u64);
        Ok(epoll::add(&self.epoll, socket, data, interest)?)
    }

    pub fn change(&self, socket: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token as u64);
        Ok(epoll::modify(&self.epoll, socket, data, interest)?)
    }

    /// Waits for sockets, at most until `until`, and appends their tokens to `ready`.
    pub fn wait(&mut self, until: Option<Instant>, ready: &mut Vec<usize>) -> io::Result<()> {
        let timeout = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        self.events.clear();
        let events = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, events, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Length of the head at the start of `bytes`, its empty line included.
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

/// What the head of a response says about the message.
#[derive(Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    /// None if the length is told in a way that no server measured here uses.
    pub body: Option<usize>,
    pub close: bool,
}

impl ResponseHead {
    pub fn parse(head: &[u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let (version, rest) = lines.next()?.split_once(' ')?;
        let mut parsed = Self {
            status: rest.get(..3)?.parse().ok()?,
            body: None,
            close: version == "HTTP/1.0",
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                parsed.body = value.parse().ok();
            } else if name.eq_ignore_ascii_case("connection") {
                parsed.close = value.eq_ignore_ascii_case("close");
            }
        }
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_its_empty_line() {
        assert_eq!(head_length(b"HTTP/1.1 200 OK\r\n\r\nbody"), Some(19));
        assert_eq!(head_length(b"HTTP/1.1 200 OK\r\n"), None);
    }

    #[test]
    fn a_response_says_its_length_and_whether_it_is_the_last() {
        let head = b"HTTP/1.1 503 Busy\r\ncontent-LENGTH: 12\r\nConnection: close\r\n\r\n";
        let expected = ResponseHead {
            status: 503,
            body: Some(12),
            close: true,
        };
        assert_eq!(ResponseHead::parse(head), Some(expected));
        assert_eq!(ResponseHead::parse(b"garbage\r\n\r\n"), None);
    }
}
