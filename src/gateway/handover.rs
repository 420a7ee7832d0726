//! Listening sockets that outlive a process: those that systemd holds, and those that a gateway leaves to
//! its successor.
//!
//! Both come in systemd's manner: descriptors in a row, and variables that say how many, from which on, and
//! what they are called. A successor is the program of the same path in the same process, after `exec`:
//! whoever supervises the gateway sees nothing of it, and clients wait in the sockets' queues meanwhile.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::config::Listen;
use crate::downstream::{Adopted, Listener};

/// Set for a successor, to the number of the process: the sockets' names are then entries of `listen`.
const HANDED_OVER: &str = "LAYBY_HANDOVER";
const FDS: &str = "LISTEN_FDS";
const FIRST: &str = "LISTEN_FDS_FIRST_FD";
const NAMES: &str = "LISTEN_FDNAMES";
const PID: &str = "LISTEN_PID";

/// What is meant for the gateway and not for its workers.
pub const VARIABLES: [&str; 8] = [
    HANDED_OVER,
    FDS,
    FIRST,
    NAMES,
    PID,
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Descriptors for a successor are taken from here on, far above the standard ones.
const FIRST_DESCRIPTOR: i32 = 64;

/// A new program that does not answer in this time is not fit to take over.
const CHECKED_WITHIN: Duration = Duration::from_secs(30);

/// Sockets that were there before this process, and nobody has claimed yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(Listen, Adopted)>);

impl Inherited {
    /// Takes what the environment tells of, and says what of it is of no use. Once in a process, and before it
    /// has other threads: the descriptors become its own.
    pub fn take() -> (Self, Vec<Listen>) {
        let mut sockets = ListenFd::from_env();
        let count = sockets.len();
        let us = std::process::id().to_string();
        let handed_over = std::env::var(HANDED_OVER).is_ok_and(|pid| pid == us);
        let names = std::env::var(NAMES).unwrap_or_default();
        let names: Vec<Listen> = (names.split(':').map(|name| called(name, handed_over))).collect();
        let (mut inherited, mut useless) = (Vec::new(), Vec::new());
        for number in 0..count {
            let unnamed = Listen::Systemd(Some("unknown".to_owned()));
            let name = names.get(number).cloned().unwrap_or(unnamed);
            let socket = match sockets.take_tcp_listener(number) {
                Ok(socket) => socket.map(Adopted::Tcp),
                Err(_) => (sockets.take_unix_listener(number).ok().flatten()).map(Adopted::Unix),
            };
            match socket {
                Some(socket) => inherited.push((name, socket)),
                None => useless.push(name),
            }
        }
        (Self(inherited), useless)
    }

    /// The listeners of an entry of the configuration that are there already.
    ///
    /// # Errors
    /// When one is of no use. Then none is claimed.
    pub fn claim(&mut self, entry: &Listen) -> io::Result<Vec<Listener>> {
        // What is not systemd's is there once for each entry. Only with port 0 can entries be the same, and
        // then their order tells them apart.
        let most = match entry {
            Listen::Systemd(_) => usize::MAX,
            _ => 1,
        };
        let claimed: Vec<_> = self
            .0
            .extract_if(.., |(name, _)| is_for(entry, name))
            .take(most)
            .collect();
        let (mut adopted, mut claimed) = (Vec::new(), claimed.into_iter());
        while let Some((name, socket)) = claimed.next() {
            match Listener::adopt(entry, name, socket) {
                Ok(listener) => adopted.push(listener),
                Err(error) => {
                    self.take_back(adopted);
                    self.0.extend(claimed);
                    return Err(error);
                }
            }
        }
        Ok(adopted)
    }

    /// Holds again what systemd has passed, as nobody needs it yet. Others, which can be bound again, are closed.
    pub fn take_back(&mut self, listeners: Vec<Listener>) {
        for listener in listeners {
            if !matches!(listener.name(), Listen::Systemd(_)) {
                continue;
            }
            match listener.keep() {
                Ok(held) => self.0.push(held),
                Err(error) => tracing::error!(%error, "a socket of systemd's is lost"),
            }
        }
    }

    /// Closes what a predecessor has left and this configuration has no use for. Clients would wait there
    /// for ever.
    pub fn close_old(&mut self) {
        let (held, old): (Vec<_>, Vec<_>) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(name, _)| matches!(name, Listen::Systemd(_)));
        self.0 = held;
        for (name, socket) in old {
            // As a listener it takes its file with it.
            drop(Listener::adopt(&name.clone(), name, socket));
        }
    }

    /// What is left, for a successor.
    fn unclaimed(self) -> impl Iterator<Item = (Listen, OwnedFd)> {
        let socket = |(name, socket): (Listen, Adopted)| (name, socket.into());
        self.0.into_iter().map(socket)
    }
}

/// Whether a socket of this name is one of the entry's.
fn is_for(entry: &Listen, name: &Listen) -> bool {
    match (entry, name) {
        (Listen::Systemd(None), Listen::Systemd(_)) => true,
        (entry, name) => entry == name,
    }
}

/// A name in the list is free of colons; a predecessor has encoded its own.
fn called(name: &str, handed_over: bool) -> Listen {
    if handed_over {
        let decoded = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
        if let Some(entry) = Listen::read(&decoded) {
            return entry;
        }
    }
    Listen::Systemd(Some(name.to_owned()))
}

fn encoded(entry: &Listen) -> String {
    entry.to_string().replace('%', "%25").replace(':', "%3A")
}

/// The program that this process was started with, to be run again.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// As this process was started. Looked up at once: what a name means may be another thing later, and
    /// it is that thing that is wanted.
    pub fn this() -> Self {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        Self {
            path: found(&name, std::env::var_os("PATH")).unwrap_or(name),
            arguments: arguments.collect(),
        }
    }

    /// Has the program that is there now check the configuration that it would start with.
    ///
    /// # Errors
    /// When it cannot be run, or does not like what it reads: in one line or more, what it says.
    pub async fn check(&self) -> Result<(), String> {
        let mut command = tokio::process::Command::new(&self.path);
        command
            .arg("check")
            .args(
                self.arguments
                    .iter()
                    .skip(1)
                    .filter(|flag| *flag != "--reload"),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        let output = match tokio::time::timeout(CHECKED_WITHIN, command.output()).await {
            Ok(output) => output.map_err(|error| error.to_string())?,
            Err(_) => return Err("it does not answer".to_owned()),
        };
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// Puts the program in the place of this process, with these sockets; `last` is what this one does before.
    /// Returns only if that fails.
    pub fn succeed(
        &self,
        listeners: Vec<(Listen, OwnedFd)>,
        inherited: Inherited,
        last: impl Fn(),
    ) -> io::Error {
        let sockets: Vec<_> = listeners.into_iter().chain(inherited.unclaimed()).collect();
        let row = match row(&sockets) {
            Ok(row) => row,
            Err(error) => return error,
        };
        let first = row.first().map_or(FIRST_DESCRIPTOR, AsRawFd::as_raw_fd);
        let names: Vec<String> = sockets.iter().map(|(name, _)| encoded(name)).collect();
        let us = std::process::id().to_string();
        let run = |program: &Path| {
            last();
            Command::new(program)
                .args(&self.arguments)
                .env(FDS, row.len().to_string())
                .env(FIRST, first.to_string())
                .env(NAMES, names.join(":"))
                .env(PID, &us)
                .env(HANDED_OVER, &us)
                .exec()
        };
        let error = run(&self.path);
        tracing::error!(%error, program = %self.path.display(), "cannot be run: the old program goes on");
        // What this process runs is there still, even if its file is not.
        run(Path::new("/proc/self/exe"))
    }
}

/// The sockets on descriptors in a row, that survive the next `exec`.
fn row(sockets: &[(Listen, OwnedFd)]) -> io::Result<Vec<OwnedFd>> {
    let mut first = FIRST_DESCRIPTOR;
    loop {
        let row: Vec<OwnedFd> = (first..)
            .zip(sockets)
            .map(|(number, (_, socket))| fcntl_dupfd_cloexec(socket, number))
            .collect::<Result<_, _>>()?;
        let in_a_row = (first..)
            .zip(&row)
            .all(|(number, fd)| fd.as_raw_fd() == number);
        if in_a_row {
            for fd in &row {
                fcntl_setfd(fd.as_fd(), FdFlags::empty())?;
            }
            return Ok(row);
        }
        // One was taken; past the last that was given there is more room.
        first = row.last().map_or(first, AsRawFd::as_raw_fd) + 1;
    }
}

/// The file that a shell would run under this name.
fn found(name: &Path, path: Option<OsString>) -> Option<PathBuf> {
    if name.components().count() > 1 || name.is_absolute() {
        return std::path::absolute(name).ok();
    }
    let folders = path?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn listen(text: &str) -> Listen {
        Listen::read(text).expect("an entry")
    }

    #[test]
    fn names_of_entries_survive_the_way_to_a_successor() {
        for text in [
            "127.0.0.1:8000",
            "[::1]:0",
            "unix:/run/100%3A:x.sock",
            "systemd",
            "systemd:web",
        ] {
            let name = encoded(&listen(text));
            assert!(!name.contains(':'));
            assert_eq!(called(&name, true), listen(text));
        }
        // systemd's own names are no entries, whatever they look like.
        assert_eq!(
            called("web%3A", false),
            Listen::Systemd(Some("web%3A".to_owned()))
        );
    }

    #[tokio::test]
    async fn an_entry_gets_what_was_meant_for_it() {
        let socket = || Adopted::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port"));
        let mut inherited = Inherited(vec![
            (listen("systemd:web"), socket()),
            (listen("127.0.0.1:0"), socket()),
            (listen("systemd:web"), socket()),
            (listen("systemd:other"), socket()),
        ]);
        assert_eq!(
            inherited.claim(&listen("systemd:web")).expect("two").len(),
            2
        );
        assert_eq!(
            inherited.claim(&listen("systemd:web")).expect("none").len(),
            0
        );
        assert_eq!(inherited.claim(&listen("systemd")).expect("one").len(), 1);
        assert_eq!(
            inherited.claim(&listen("127.0.0.1:0")).expect("one").len(),
            1
        );
        assert!(inherited.0.is_empty());
    }

    #[tokio::test]
    async fn what_was_claimed_in_vain_is_there_for_the_next() {
        let socket = || Adopted::Tcp(TcpListener::bind("127.0.0.1:0").expect("a port"));
        let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let web = listen("systemd:web");
        let mut inherited = Inherited(vec![(web.clone(), socket()), (web.clone(), socket())]);
        let claimed = inherited.claim(&web).expect("two");
        assert!(inherited.0.is_empty());
        inherited.take_back(claimed);
        assert_eq!(inherited.0.len(), 2);
        // One that cannot be used costs no other.
        let deaf = Adopted::Tcp(deaf.expect("a socket").into());
        inherited.0.insert(1, (web.clone(), deaf));
        assert!(inherited.claim(&web).is_err());
        assert_eq!(inherited.claim(&web).expect("the others").len(), 2);
    }

    #[test]
    fn descriptors_for_a_successor_stand_in_a_row() {
        let socket = || {
            let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
            (listen("systemd"), OwnedFd::from(socket))
        };
        let sockets = [socket(), socket(), socket()];
        let taken = fcntl_dupfd_cloexec(&sockets[0].1, FIRST_DESCRIPTOR + 1).expect("a descriptor");
        let row = row(&sockets).expect("a row");
        let numbers: Vec<i32> = row.iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!(numbers, [numbers[0], numbers[0] + 1, numbers[0] + 2]);
        assert!(!numbers.contains(&taken.as_raw_fd()));
        for fd in &row {
            assert_eq!(
                rustix::io::fcntl_getfd(fd).expect("flags"),
                FdFlags::empty()
            );
        }
    }

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("layby");
        std::fs::write(&file, "").expect("written");
        let path = Some(OsString::from(folder.path()));
        assert_eq!(found(Path::new("layby"), path.clone()), Some(file.clone()));
        assert_eq!(found(Path::new("other"), path.clone()), None);
        assert_eq!(found(&file, None), Some(file.clone()));
        let here = std::env::current_dir()
            .expect("a folder")
            .join("target/layby");
        assert_eq!(found(Path::new("target/layby"), path), Some(here));
    }
}
