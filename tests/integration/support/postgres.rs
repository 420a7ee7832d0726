//! A PostgreSQL server for one test: made in a temporary folder, gone when dropped.
//!
//! It listens on a loopback port and on a socket in its folder. It ends with the test
//! process even if that is killed: a shell between the two holds a pipe from the test, and
//! stops the server at its end.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// A superuser, with this password over TCP and without one on the socket.
pub const OWNER: &str = "owner";
pub const PASSWORD: &str = "open sesame";

const START_LIMIT: Duration = Duration::from_secs(60);

/// Runs the server ("$@") until it ends or our standard input does.
const KEEPER: &str = r#"
exec 3<&0
"$@" </dev/null &
server=$!
{ read -r _ <&3; kill -QUIT $server; } &
wait $server
"#;

pub struct Postgres {
    /// None once it is being dropped.
    server: Option<Child>,
    folder: TempDir,
    port: u16,
}

/// What the server is made with.
#[derive(Default)]
pub struct Settings {
    lines: String,
    /// Certificate and key, PEM.
    tls: Option<(String, String)>,
    hba: Option<String>,
}

/// An open connection. It holds one of the server's until a moment after it is dropped, so
/// a test that counts connections keeps its own open.
pub struct Connection {
    client: Client,
    driver: JoinHandle<()>,
}

struct User {
    uid: u32,
    gid: u32,
}

impl Settings {
    /// One line of `postgresql.conf`.
    pub fn set(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// TLS for who asks for it.
    pub fn tls(mut self, certificate: String, key: String) -> Self {
        self.tls = Some((certificate, key));
        self.set("ssl = on")
    }

    /// `pg_hba.conf`, if not the usual one.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    pub fn start(self) -> Postgres {
        let folder = tempfile::Builder::new()
            .prefix("layby-pg-")
            .tempdir()
            .expect("a temporary folder");
        let user = unprivileged();
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid), Some(user.gid)).expect("root may do this");
        }
        let data = folder.path().join("data");
        initialize(&data, folder.path(), user.as_ref());
        self.write(&data, folder.path());
        // Between finding a free port and using it, somebody else may take it.
        for _ in 0..5 {
            let port = free_port();
            if let Some(server) = launch(&data, folder.path(), port, user.as_ref()) {
                return Postgres {
                    server: Some(server),
                    folder,
                    port,
                };
            }
        }
        panic!("PostgreSQL does not start: {}", log(folder.path()));
    }

    fn write(&self, data: &Path, folder: &Path) {
        let conf = data.join("postgresql.conf");
        let lines = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
             fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n\
             shared_buffers = 16MB\nautovacuum = off\n{}",
            folder.display(),
            self.lines
        );
        fs::write(&conf, lines).expect("initdb made the folder");
        if let Some((certificate, key)) = &self.tls {
            owned(&data.join("server.crt"), certificate);
            owned(&data.join("server.key"), key);
        }
        if let Some(hba) = &self.hba {
            fs::write(data.join("pg_hba.conf"), hba).expect("initdb made the folder");
        }
    }
}

impl Postgres {
    pub fn settings() -> Settings {
        Settings::default()
    }

    /// With the defaults of PostgreSQL, but for speed.
    pub fn start() -> Self {
        Self::settings().start()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its socket is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Over TCP.
    pub fn url(&self, user: &str, database: &str) -> String {
        let password = PASSWORD.replace(' ', "%20");
        format!(
            "postgres://{user}:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Over the socket.
    pub fn socket_url(&self, user: &str, database: &str) -> String {
        let (folder, port) = (self.folder().display(), self.port);
        format!("postgres://{user}@/{database}?host={folder}&port={port}")
    }

    pub async fn owner(&self) -> Connection {
        self.connect(OWNER, "postgres").await
    }

    /// Over the socket, where no password is asked.
    pub async fn connect(&self, user: &str, database: &str) -> Connection {
        let url = self.socket_url(user, database);
        let connected = tokio_postgres::connect(&url, NoTls).await;
        let (client, driver) = connected.unwrap_or_else(|e| panic!("{url}: {e:?}"));
        let driver = tokio::spawn(async move {
            driver.await.expect("nothing else ends this connection");
        });
        Connection { client, driver }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(mut keeper) = self.server.take() else {
            return;
        };
        // The end of its input is what the keeper waits for.
        drop(keeper.stdin.take());
        if let Err(e) = keeper.wait() {
            eprintln!("PostgreSQL's keeper cannot be waited for: {e}");
        }
    }
}

impl Connection {
    /// A role that may log in with [`PASSWORD`].
    pub async fn role(&self, name: &str, options: &str) {
        let statement = format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {options}");
        self.run(&statement).await;
    }

    pub async fn run(&self, statements: &str) {
        let ran = self.client.batch_execute(statements).await;
        ran.unwrap_or_else(|e| panic!("{statements}: {e:?}"));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn initialize(data: &Path, folder: &Path, user: Option<&User>) {
    let password_file = folder.join("password");
    owned(&password_file, PASSWORD);
    let mut initdb = Command::new(program("initdb"));
    initdb
        .args([
            "--no-sync",
            "--no-instructions",
            "--encoding=UTF8",
            "--locale=C",
        ])
        .args([
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--username",
            OWNER,
        ])
        .arg("--pwfile")
        .arg(&password_file)
        .arg("--pgdata")
        .arg(data);
    let made = as_user(&mut initdb, folder, user).output();
    let made = made.expect("initdb can be started");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "initdb failed: {said}");
}

/// The keeper of a server that takes connections; none if it ended, as with a taken port.
fn launch(data: &Path, folder: &Path, port: u16, user: Option<&User>) -> Option<Child> {
    let log = fs::File::create(folder.join("log")).expect("the folder is there");
    let mut keeper = Command::new("sh");
    keeper
        .args(["-c", KEEPER, "keeper"])
        .arg(program("postgres"))
        .arg("-D")
        .arg(data)
        .arg("-p")
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log);
    let mut keeper = as_user(&mut keeper, folder, user)
        .spawn()
        .expect("a shell can be started");
    let limit = Instant::now() + START_LIMIT;
    while !ready(data) {
        if keeper.try_wait().expect("it is our child").is_some() {
            return None;
        }
        assert!(
            Instant::now() < limit,
            "PostgreSQL hangs: {}",
            self::log(folder)
        );
        // There is no event to wait for: the server only writes a file.
        sleep(Duration::from_millis(20));
    }
    Some(keeper)
}

/// The eighth line of the pid file tells the server's state.
fn ready(data: &Path) -> bool {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    file.lines()
        .nth(7)
        .is_some_and(|state| state.trim() == "ready")
}

fn as_user<'a>(command: &'a mut Command, folder: &Path, user: Option<&User>) -> &'a mut Command {
    if let Some(User { uid, gid }) = user {
        command.uid(*uid).gid(*gid);
    }
    command
        .current_dir(folder)
        .env_remove("PGDATA")
        .env("LC_ALL", "C")
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<User> {
    let own = fs::metadata("/proc/self").expect("Linux").uid();
    if own != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("every system has it");
    let user = ["postgres", "nobody"].iter().find_map(|name| {
        let line = users
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))?;
        let mut ids = line.split(':').skip(2).map(str::parse);
        let (uid, gid) = (ids.next()?.ok()?, ids.next()?.ok()?);
        Some(User { uid, gid })
    });
    Some(user.expect("as root, PostgreSQL needs the user postgres or nobody"))
}

/// A file that only its folder's owner may read.
fn owned(path: &Path, text: &str) {
    fs::write(path, text).expect("its folder is there");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let folder = path.parent().expect("it is in a folder");
    let owner = fs::metadata(folder).expect("its folder is there");
    chown(path, Some(owner.uid()), Some(owner.gid())).expect("ours, or we are root");
}

/// From PATH, else the newest where Debian puts them.
fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(name));
    let mut versions: Vec<(u32, PathBuf)> = match fs::read_dir("/usr/lib/postgresql") {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.parse().ok()?;
                Some((version, entry.path().join("bin").join(name)))
            })
            .collect(),
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => panic!("/usr/lib/postgresql: {e}"),
    };
    versions.sort();
    let packaged = versions.into_iter().rev().map(|(_, program)| program);
    on_path
        .chain(packaged)
        .find(|program| program.is_file())
        .unwrap_or_else(|| {
            panic!(
                "PostgreSQL's `{name}` is neither on PATH nor under /usr/lib/postgresql; \
             `make test` installs it when run as root (apt-get install postgresql)"
            )
        })
}

fn free_port() -> u16 {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
    bound.expect("loopback has a free port").port()
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}
