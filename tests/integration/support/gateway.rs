//! The gateway under test: the real binary, in a process and a folder of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::http::{Address, Connection, Request, Response};
use super::upstream::Upstream;
use super::within;

/// Everything that is not given is what makes a test short and self-contained.
pub struct Builder {
    command: &'static str,
    arguments: Vec<OsString>,
    variables: BTreeMap<String, OsString>,
    file: Option<String>,
    /// A command that runs the gateway, if it does not run by itself.
    within: Vec<OsString>,
    folder: TempDir,
    program: PathBuf,
    activated: Option<OwnedFd>,
}

/// Fetches under way, as none of these tests has labels for origins.
pub const IN_FLIGHT: &str = "layby_fetches_in_flight{origin=\"other\"}";

/// As systemd passes a socket: as descriptor 3, to the process of this number.
const ACTIVATED: &str = "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null";

/// A gateway alone: `layby serve`.
pub fn new(slots: u16) -> Builder {
    let builder = Builder::of("serve", slots);
    let link = builder.folder.path().join("link.sock");
    builder.set("workers.link", format!("unix:{}", link.display()))
}

/// A gateway in front of an HTTP server.
pub fn before(upstream: &Upstream, slots: u16) -> Builder {
    Builder::of("serve", slots).set("workers.upstream", upstream.url())
}

/// A gateway with supervised workers: `layby run APP`.
pub fn run(app: &str, slots: u16) -> Builder {
    let mut builder = Builder::of("run", slots);
    builder.arguments.push(app.into());
    builder
}

impl Builder {
    fn of(command: &'static str, slots: u16) -> Self {
        let folder = tempfile::Builder::new().prefix("layby-test-").tempdir();
        let folder = folder.expect("a temporary folder");
        let spool = folder.path().to_owned();
        let builder = Self {
            command,
            arguments: Vec::new(),
            variables: BTreeMap::new(),
            file: None,
            within: Vec::new(),
            folder,
            program: env!("CARGO_BIN_EXE_layby").into(),
            activated: None,
        };
        builder
            .set("listen", "127.0.0.1:0")
            .set("admin", "127.0.0.1:0")
            .set("spool_dir", spool)
            .set("slots.count", slots.to_string())
            // Where origins of tests are.
            .set("outbound.allow", "127.0.0.1")
    }

    /// A key of the configuration.
    pub fn set(mut self, key: &str, value: impl Into<OsString>) -> Self {
        let name = key.to_ascii_uppercase().replace('.', "_");
        self.variables.insert(format!("LAYBY_{name}"), value.into());
        self
    }

    /// Any other variable of the environment.
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Runs the gateway under this name.
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = path;
        self
    }

    /// Starts it with so many file descriptors at most, a limit that it may raise.
    pub fn descriptors(mut self, limit: u32) -> Self {
        let lower = format!("ulimit -Sn {limit} && exec \"$@\"");
        self.within = ["sh", "-c", &lower, "sh"].map(OsString::from).into();
        self
    }

    /// Passes a listening socket, as systemd does.
    pub fn activated(mut self, socket: impl Into<OwnedFd>, name: &str) -> Self {
        self.activated = Some(socket.into());
        self.variable("LISTEN_FDNAMES", name)
    }

    /// Leaves a key to the file, or its default.
    pub fn unset(mut self, key: &str) -> Self {
        let name = key.to_ascii_uppercase().replace('.', "_");
        self.variables.remove(&format!("LAYBY_{name}"));
        self
    }

    /// A spool folder on a disk of this size, which is the gateway's alone. Where we may not mount one,
    /// the spool's own limit stands in for it: to requests it is the same.
    pub fn small_disk(mut self, size: &str) -> Self {
        let folder = self.folder.path().join("spool");
        fs::create_dir(&folder).expect("the folder is ours");
        let mount = "mount -t tmpfs -o size=\"$0\" none \"$1\" && shift && exec \"$@\"";
        // Of a namespace of its own, it goes with the gateway.
        let words = [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            mount,
            size,
        ];
        let mut mounted: Vec<OsString> = words.map(OsString::from).into();
        mounted.push(folder.clone().into());
        let mut probe = std::process::Command::new(&mounted[0]);
        let may = probe.args(&mounted[1..]).arg("true").output();
        if may.is_ok_and(|probe| probe.status.success()) {
            self.within = mounted;
            self.set("spool_dir", folder)
        } else {
            self.set("spool_limit", format!("{size}iB").replace("m", "M"))
        }
    }

    /// The configuration file.
    pub fn file(mut self, text: &str) -> Self {
        self.file = Some(text.to_owned());
        self
    }

    /// A file beside the configuration, in the folder where the gateway is started.
    pub fn beside(self, name: &str, text: &str) -> Self {
        fs::write(self.folder.path().join(name), text).expect("the folder is ours");
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn start(self) -> (Process, TempDir) {
        let Self {
            command,
            arguments,
            variables,
            file,
            within,
            folder,
            program,
            activated,
        } = self;
        if let Some(text) = file {
            fs::write(folder.path().join("layby.toml"), text).expect("the folder is ours");
        }
        let mut line = within;
        let stdin = match activated {
            None => Stdio::null(),
            Some(socket) => {
                line.extend(["sh", "-c", ACTIVATED, "sh"].map(OsString::from));
                socket.into()
            }
        };
        line.push(program.into());
        let child = Command::new(&line[0])
            .args(&line[1..])
            .arg(command)
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LAYBY_LOG", "debug")
            .envs(variables)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.expect("the gateway can be started");
        let log = Log::default();
        let errors = child.stderr.take().expect("it is piped");
        tokio::spawn(log.clone().follow(errors));
        (Process { child, log }, folder)
    }

    /// A gateway that is ready.
    pub async fn run(self) -> Gateway {
        let (process, folder) = self.start();
        let ready = process.log.line(READY).await;
        let (listen, admin) = addresses(&ready);
        let tls = ready.split_once(" tls=");
        Gateway {
            process,
            listen,
            admin,
            tls: tls.map(|(_, address)| address.parse().expect("one address")),
            link: folder.path().join("link.sock"),
            folder,
        }
    }

    /// For a gateway that is not to start: how it ends, and all that it says.
    pub async fn fail(self) -> (ExitStatus, String) {
        let (mut process, _folder) = self.start();
        let status = within("the gateway's end", process.child.wait()).await;
        process.log.ended().await;
        let log = process.log.all().join("\n");
        (status.expect("it is our child"), log)
    }
}

/// What the gateway says when clients may come.
const READY: &str = " ready listen=";

/// Where clients connect, and the admin listener.
fn addresses(ready: &str) -> (Vec<Address>, Address) {
    let field = |name: &str| {
        let start = ready.find(&format!(" {name}=")).expect("it is logged") + name.len() + 2;
        let end = ready[start..].find(" admin=").or(ready[start..].find(' '));
        let value = &ready[start..start + end.unwrap_or(ready.len() - start)];
        value.to_owned()
    };
    let listen = field("listen");
    let listen = listen
        .split(", ")
        .map(|address| match address.strip_prefix("unix:") {
            Some(path) => Address::Unix(PathBuf::from(path)),
            None => Address::Tcp(address.parse().expect("an address")),
        });
    let admin = field("admin").parse().expect("an address");
    (listen.collect(), Address::Tcp(admin))
}

struct Process {
    child: Child,
    log: Log,
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the gateway said:\n{}", self.log.all().join("\n"));
        }
    }
}

/// What the gateway has said.
#[derive(Debug, Clone)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many there are; at the end of the log its sender is gone.
    count: watch::Receiver<usize>,
    counted: Arc<Mutex<Option<watch::Sender<usize>>>>,
    /// Whether anybody reads it.
    read: watch::Sender<bool>,
}

impl Default for Log {
    fn default() -> Self {
        let (counted, count) = watch::channel(0);
        Self {
            lines: Arc::default(),
            count,
            counted: Arc::new(Mutex::new(Some(counted))),
            read: watch::Sender::new(true),
        }
    }
}

impl Log {
    async fn follow(self, errors: impl AsyncRead + Unpin) {
        let counted = self.counted.lock().expect("nobody panics").take();
        let counted = counted.expect("it is followed once");
        let mut lines = BufReader::new(errors).lines();
        let mut read = self.read.subscribe();
        loop {
            drop(read.wait_for(|read| *read).await);
            let line = tokio::select! {
                biased;
                _ = read.changed() => continue,
                line = lines.next_line() => line,
            };
            let Ok(Some(line)) = line else { return };
            self.lines.lock().expect("nobody panics").push(line);
            counted.send_modify(|count| *count += 1);
        }
    }

    fn all(&self) -> Vec<String> {
        self.lines.lock().expect("nobody panics").clone()
    }

    fn find(&self, part: &str) -> Option<String> {
        self.all().into_iter().find(|line| line.contains(part))
    }

    /// Waits for a line with this in it.
    async fn line(&self, part: &str) -> String {
        let mut count = self.count.clone();
        let found = count.wait_for(|_| self.find(part).is_some());
        let found = within(&format!("{part:?} in the log"), found).await;
        let found = found.map(drop).ok().and_then(|()| self.find(part));
        found.unwrap_or_else(|| panic!("no {part:?} in the log"))
    }

    /// Waits until so many lines have this in them; the last of them.
    async fn lines(&self, part: &str, number: usize) -> String {
        let matching = || {
            let lines = self.all().into_iter();
            let mut lines: Vec<_> = lines.filter(|line| line.contains(part)).collect();
            lines.truncate(number);
            lines
        };
        let mut count = self.count.clone();
        let found = count.wait_for(|_| matching().len() == number);
        let found = within(&format!("{part:?} {number} times in the log"), found).await;
        drop(found.expect("the log goes on"));
        matching().pop().expect("there are as many")
    }

    async fn ended(&self) {
        let mut count = self.count.clone();
        let end = async { while count.changed().await.is_ok() {} };
        within("the end of the log", end).await;
    }
}

/// A running gateway. It is killed when dropped.
pub struct Gateway {
    process: Process,
    listen: Vec<Address>,
    tls: Option<SocketAddr>,
    admin: Address,
    link: PathBuf,
    folder: TempDir,
}

/// What `/api/status` says of slots and requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub count: u64,
    pub idle: u64,
    pub busy: u64,
    pub lost: u64,
    pub queued: u64,
    pub parked: u64,
    pub processes: usize,
}

impl Gateway {
    pub fn link(&self) -> &Path {
        &self.link
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The first address for clients.
    pub fn address(&self) -> &Address {
        &self.listen[0]
    }

    pub fn addresses(&self) -> &[Address] {
        &self.listen
    }

    pub fn tcp(&self) -> SocketAddr {
        match self.address() {
            Address::Tcp(address) => *address,
            Address::Unix(path) => panic!("it listens on {}", path.display()),
        }
    }

    /// The address for clients that speak TLS.
    pub fn tls(&self) -> SocketAddr {
        self.tls.expect("it listens with TLS")
    }

    // Clients --------------------------------------------------------------------------

    pub fn get(&self, target: &str) -> Request {
        self.request("GET", target)
    }

    pub fn post(&self, target: &str, body: impl AsRef<[u8]>) -> Request {
        self.request("POST", target).body(body)
    }

    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.address(), method, target)
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(self.address()).await
    }

    /// Waits until nobody listens there any more.
    pub async fn refuses(&self) {
        let refused = async { while TcpStream::connect(self.tcp()).await.is_ok() {} };
        within("a closed door", refused).await;
    }

    /// The answer to these bytes, on a connection of their own.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> Response {
        let mut connection = self.connect().await;
        connection.send(bytes).await;
        connection.response().await
    }

    // The admin listener ---------------------------------------------------------------

    pub fn admin_address(&self) -> &Address {
        &self.admin
    }

    pub async fn admin(&self, target: &str) -> Response {
        self.admin_as("localhost", target).await
    }

    pub async fn admin_as(&self, host: &str, target: &str) -> Response {
        let request = Request::new(&self.admin, "GET", target);
        request.replace_host(host).await
    }

    pub async fn status_json(&self) -> Value {
        self.admin("/api/status").await.json()
    }

    /// Slots and requests, whose sum is always right.
    pub async fn status(&self) -> Status {
        let json = self.status_json().await;
        let number = |value: &Value| value.as_u64().expect("a number");
        let slots = &json["slots"];
        let status = Status {
            count: number(&slots["count"]),
            idle: number(&slots["idle"]),
            busy: number(&slots["busy"]),
            lost: number(&slots["lost"]),
            queued: number(&json["queue"]["length"]),
            parked: number(&json["parked"]["requests"]),
            processes: json["processes"].as_array().expect("an array").len(),
        };
        assert_eq!(
            status.idle + status.busy + status.lost,
            status.count,
            "slots are conserved: {status:?}"
        );
        status
    }

    /// Waits until the status is as wanted. It has no events: it is asked again and again.
    pub async fn until(&self, what: &str, enough: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let asking = async {
            loop {
                let status = self.status().await;
                if enough(&status) {
                    return status;
                }
                last = Some(status);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(super::PATIENCE, asking).await {
            Ok(status) => status,
            Err(_) => panic!("waited in vain for {what}: {last:?}"),
        }
    }

    /// Waits until nothing is under way and every slot is idle.
    pub async fn rests(&self) {
        let resting = |status: &Status| {
            status.idle == status.count && (status.queued, status.parked) == (0, 0)
        };
        self.until("all slots idle and no request left", resting)
            .await;
        self.until_metric(IN_FLIGHT, |fetches| fetches == 0.0).await;
    }

    /// The value of one series, as it stands in `/metrics`; 0 if it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let metrics = self.admin("/metrics").await;
        let line = metrics
            .ok()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    pub async fn until_metric(&self, series: &str, enough: impl Fn(f64) -> bool) {
        let asking = async {
            while !enough(self.metric(series).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(series, asking).await;
    }

    // The process ----------------------------------------------------------------------

    pub fn pid(&self) -> u32 {
        self.process.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("not 0");
        kill_process(pid, signal).expect("it is our child");
    }

    /// Waits for a line of the log.
    pub async fn logged(&self, part: &str) -> String {
        self.process.log.line(part).await
    }

    /// Waits until so many lines of the log have this in them.
    pub async fn logged_times(&self, part: &str, times: usize) {
        self.process.log.lines(part, times).await;
    }

    /// Stops reading the log, or goes on.
    pub fn read_log(&self, read: bool) {
        self.process.log.read.send_replace(read);
    }

    /// Lines of the log above debug, with this in them.
    pub fn log_lines(&self, part: &str) -> Vec<String> {
        let shown = |line: &String| !line.contains(" DEBUG ") && line.contains(part);
        self.process.log.all().into_iter().filter(shown).collect()
    }

    /// Waits until the gateway has become ready so many times in all: after its start, and each upgrade.
    pub async fn ready_again(&mut self, times: usize) {
        let ready = self.process.log.lines(READY, times).await;
        (self.listen, self.admin) = addresses(&ready);
    }

    /// Rewrites the configuration file.
    pub fn rewrite(&self, text: &str) {
        fs::write(self.folder().join("layby.toml"), text).expect("the folder is ours");
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = within("the gateway's end", self.process.child.wait()).await;
        self.process.log.ended().await;
        status.expect("it is our child")
    }
}
