//! File descriptors: how many there may be, and some kept back for when they have run out.

use std::fs::File;
use std::io;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Where there is no limit at all: more than any gateway uses.
const MANY: u64 = 1 << 20;

/// Kept out of reach of clients' connections: workers, listeners, fetches that are under way, and what the
/// process itself has open.
const KEPT_BACK: u64 = 256;

/// How many the process may have, and how many it might before.
#[derive(Debug, Clone, Copy)]
pub struct Raised {
    pub limit: u64,
    before: Rlimit,
}

/// Raises the limit as far as it goes without privileges, and says where it is then. The usual 1024 is for
/// programs that cannot do with more.
pub fn raise_limit() -> Raised {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of file descriptors stays as it is");
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MANY);
    tracing::info!(limit, before = before.current, "file descriptors");
    Raised { limit, before }
}

impl Raised {
    /// Lowers the limit of another program to what it was: one that was just started, or, with none, what this
    /// process becomes. Much code goes through every descriptor that there may be, to close it, and takes seconds
    /// for that where it takes none.
    ///
    /// A started program has the high limit for a moment. To start it with the low one takes code between `fork`
    /// and `exec`, which cannot be had without `unsafe`.
    pub fn restore(&self, program: Option<Pid>) {
        if let Err(error) = prlimit(program, Resource::Nofile, self.before) {
            tracing::debug!(%error, "the limit of file descriptors stays raised");
        }
    }
}

/// How many connections of clients there may be under this limit. A request may need a descriptor for its
/// body and others for its fetches, so the connections get half of them, unless more are asked for.
pub fn connections(limit: u64, wanted: Option<usize>) -> usize {
    let half = limit / 2;
    let most = limit.saturating_sub(KEPT_BACK).max(half);
    let wanted = wanted.map_or(half, |wanted| wanted as u64);
    if wanted > most {
        tracing::warn!(
            max_connections = wanted,
            limit = most,
            "more connections than file descriptors allow; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    usize::try_from(wanted.min(most)).unwrap_or(usize::MAX)
}

/// The system has no descriptor, or no memory, for another connection; it is no fault of that connection.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let number = error.raw_os_error();
    shortages
        .iter()
        .any(|errno| number == Some(errno.raw_os_error()))
}

/// Descriptors that can be given up when one is needed.
#[derive(Debug)]
pub struct Spare {
    held: Vec<File>,
    count: usize,
}

impl Spare {
    pub fn new(count: usize) -> Self {
        let mut spare = Self {
            held: Vec::with_capacity(count),
            count,
        };
        spare.refill();
        spare
    }

    /// Takes back what has been given up, as far as there are descriptors.
    pub fn refill(&mut self) {
        while self.held.len() < self.count
            && let Ok(file) = File::open("/dev/null")
        {
            self.held.push(file);
        }
    }

    /// Gives one up, if there is one.
    pub fn give_up(&mut self) -> bool {
        self.held.pop().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(connections(20_000, None), 10_000);
        assert_eq!(connections(20_000, Some(15_000)), 15_000);
        assert_eq!(connections(20_000, Some(20_000)), 20_000 - 256);
        assert_eq!(connections(300, Some(1000)), 150);
    }

    #[test]
    fn a_program_has_the_limit_from_before() {
        let mut program = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("a program");
        let raised = Raised {
            limit: 1000,
            before: Rlimit {
                current: Some(77),
                ..getrlimit(Resource::Nofile)
            },
        };
        raised.restore(Pid::from_raw(program.id() as i32));
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.id()));
        program.kill().expect("it runs");
        program.wait().expect("it is our child");
        let limits = limits.expect("it has limits");
        let mut lines = limits.lines();
        let line = lines.find(|line| line.starts_with("Max open files"));
        let mut words = line.expect("one of them").split_whitespace();
        assert_eq!(words.nth(3), Some("77"), "{limits}");
    }

    #[test]
    fn what_was_given_up_is_taken_back() {
        let mut spare = Spare::new(2);
        assert!(spare.give_up());
        assert!(spare.give_up());
        assert!(!spare.give_up());
        spare.refill();
        assert!(spare.give_up());
    }
}
