//! Worker processes that the gateway starts itself: keeping them alive, one log line for each event.
//!
//! A process that dies is started again, at once if it was of use, else with growing pauses, for
//! ever. Its successor is started only after it is known to be dead. What a worker says on the
//! link is not known here, only that it has said hello.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::link::Hub;
use crate::config::{App, Mode};
use crate::metrics::{Metrics, RestartReason};

/// Pauses before a process is started again, growing from the first to the last while it does not start.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A process that served this long was of use, and is missed at once. One that ends sooner takes more
/// from the machine for its start than it gives back.
const SETTLED: Duration = Duration::from_secs(1);
const PAUSE_AFTER_A_SHORT_LIFE: Duration = Duration::from_secs(1);

/// Longest line of a worker's output that is passed on in one piece.
const LINE: u64 = 64 * 1024;

/// After its link has ended, a worker that does not exit is killed.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// Tells a worker which process to send a SIGHUP to when files of the application change.
const WATCHES_FOR: &str = "LAYBY_RELOAD";

/// How a worker says that it cannot import its application.
const CANNOT_IMPORT: i32 = 3;

/// Why workers could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The interpreter cannot be run.
    Spawn(PathBuf, io::Error),
    /// The application cannot be imported; the worker has shown why.
    Import(String),
    /// The worker ended before it was ready.
    Exited(ExitStatus),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spawn(python, error) => write!(
                f,
                "cannot run {}: {error}; name the interpreter with --python",
                python.display()
            ),
            Self::Import(app) => write!(
                f,
                "the application {app} cannot be imported; see the traceback above"
            ),
            Self::Exited(status) => write!(
                f,
                "a worker ended before it was ready ({status}); see its output above. Is the package \"layby\" \
                 installed for that Python?"
            ),
        }
    }
}

impl std::error::Error for StartError {}

/// How workers are started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub app: App,
    pub link: PathBuf,
    /// Threads of each process.
    pub threads: Vec<u16>,
    /// The first process watches the application's files, and sends us a SIGHUP when one changes.
    pub watch: bool,
    /// Variables of the gateway's environment that are none of theirs.
    pub hidden: &'static [&'static str],
}

impl Plan {
    /// Spreads slots evenly over processes.
    pub fn new(app: App, link: &Path, slots: u16, cores: usize) -> Self {
        let default = cores.min(usize::from((slots / 4).max(1))) as u16;
        let processes = app.processes.unwrap_or(default).clamp(1, slots);
        let threads = (0..processes)
            .map(|place| slots / processes + u16::from(place < slots % processes))
            .collect();
        Self {
            app,
            link: link.to_owned(),
            threads,
            watch: false,
            hidden: &[],
        }
    }

    fn command(&self, place: usize, token: &str) -> Command {
        let mut command = Command::new(python(&self.app));
        command
            .args(["-m", "layby", &self.app.app, "--link"])
            .arg(format!("unix:{}", self.link.display()))
            .args([
                "--threads",
                &self.threads[place].to_string(),
                "--mode",
                mode(self.app.mode),
            ])
            .env("LAYBY_TOKEN", token)
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the gateway, which then drains its workers.
            .process_group(0)
            .kill_on_drop(true);
        for variable in self.hidden {
            command.env_remove(variable);
        }
        if self.watch && place == 0 {
            command.env(WATCHES_FOR, std::process::id().to_string());
        } else {
            command.env_remove(WATCHES_FOR);
        }
        command
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Auto => "auto",
        Mode::Coroutine => "coroutine",
        Mode::Greenlet => "greenlet",
        Mode::Wsgi => "wsgi",
    }
}

/// The interpreter given, else the active virtual environment's, else that of the one where pip has
/// installed this program, else `python3`.
fn python(app: &App) -> PathBuf {
    if let Some(python) = &app.python {
        return python.clone();
    }
    let active = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    match active.or_else(home) {
        Some(folder) => folder.join("bin/python"),
        None => PathBuf::from("python3"),
    }
}

/// The virtual environment that this program lies in, if it does.
fn home() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?.parent()?;
    folder
        .join("pyvenv.cfg")
        .is_file()
        .then(|| folder.to_owned())
}

/// Keeps worker processes alive until [`Supervisor::stop`].
pub struct Supervisor {
    shared: Arc<Shared>,
    keepers: TaskTracker,
    /// Each keeper is asked to replace its process when the generation moves on.
    generation: watch::Sender<u64>,
    stop: CancellationToken,
}

struct Shared {
    plan: Mutex<Plan>,
    hub: Arc<Hub>,
    metrics: Metrics,
    restarts: Vec<AtomicU64>,
    /// Tokens tell processes apart, over all restarts.
    started: AtomicU64,
    /// One rolling replacement at a time.
    rolling: tokio::sync::Mutex<()>,
}

impl Supervisor {
    /// Starts all processes side by side; resolves when every one is ready.
    ///
    /// # Errors
    /// When one cannot be started at all; the others are stopped then.
    pub async fn start(plan: Plan, hub: Arc<Hub>, metrics: Metrics) -> Result<Self, StartError> {
        let places = plan.threads.len();
        let restarts = (0..places).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            hub,
            metrics,
            restarts,
            started: AtomicU64::new(0),
            rolling: tokio::sync::Mutex::new(()),
        });
        let (generation, _) = watch::channel(0);
        let supervisor = Self {
            shared,
            keepers: TaskTracker::new(),
            generation,
            stop: CancellationToken::new(),
        };
        let (report, mut reports) = mpsc::channel(places);
        for place in 0..places {
            let shared = Arc::clone(&supervisor.shared);
            let stop = supervisor.stop.clone();
            let generation = supervisor.generation.subscribe();
            supervisor
                .keepers
                .spawn(keep(shared, place, report.clone(), generation, stop));
        }
        drop(report);
        for _ in 0..places {
            match reports.recv().await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    supervisor.stop(Duration::ZERO).await;
                    return Err(error);
                }
                // A keeper ends without a report only when it is stopped.
                None => break,
            }
        }
        Ok(supervisor)
    }

    /// Replaces every process, one after the other. Their number stays.
    pub fn reload(&self, app: App) {
        self.shared.plan().app = app;
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// How often processes were started again.
    pub fn restarts(&self) -> u64 {
        self.shared
            .restarts
            .iter()
            .map(|count| count.load(Relaxed))
            .sum()
    }

    /// Waits so long for processes to exit by themselves, the hub having drained them, then kills.
    pub async fn stop(self, grace: Duration) {
        self.keepers.close();
        let all = self.keepers.wait();
        self.stop.cancel();
        if tokio::time::timeout(grace + EXIT_GRACE, all).await.is_err() {
            tracing::warn!("workers killed: they did not exit in time");
        }
    }
}

/// A running process.
struct Running {
    child: Child,
    token: String,
    /// It is ready, or, before that, started.
    since: Instant,
}

enum Ended {
    /// It died by itself.
    Died(ExitStatus),
    /// Its place is to have a new one.
    Replaced,
    Stopped,
}

/// Keeps one place filled.
async fn keep(
    shared: Arc<Shared>,
    place: usize,
    report: mpsc::Sender<Result<(), StartError>>,
    mut generation: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    // The first start is part of the gateway's own: its failure is reported, not retried.
    let first = match shared.spawn(place).await {
        Ok(mut running) => match shared.ready(&mut running, &stop).await {
            Ok(()) => Ok(running),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    let mut running = match first {
        Ok(running) => running,
        Err(error) => {
            // Nobody listens any more when another place has failed already.
            let _ = report.send(Err(error)).await;
            return;
        }
    };
    if report.send(Ok(())).await.is_err() {
        return;
    }
    drop(report);
    loop {
        let ended = tokio::select! {
            status = running.child.wait() => Ended::Died(status.unwrap_or_default()),
            Ok(()) = generation.changed() => Ended::Replaced,
            () = stop.cancelled() => Ended::Stopped,
        };
        match ended {
            Ended::Stopped => return shared.reap(running).await,
            Ended::Replaced => running = shared.replace(place, running, &stop).await,
            Ended::Died(status) => {
                let pause = if running.since.elapsed() > SETTLED {
                    FIRST_PAUSE
                } else {
                    PAUSE_AFTER_A_SHORT_LIFE
                };
                tracing::error!(worker = place + 1, %status, restart_in = ?pause, "worker died");
                running = match shared.restart(place, pause, &stop).await {
                    Some(running) => running,
                    None => return,
                };
            }
        }
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan
            .lock()
            .expect("no code that holds this lock panics")
    }

    async fn spawn(&self, place: usize) -> Result<Running, StartError> {
        let number = self.started.fetch_add(1, Relaxed);
        let token = format!("{}-{number}", std::process::id());
        let plan = self.plan().clone();
        let mut command = plan.command(place, &token);
        let mut child = command
            .spawn()
            .map_err(|error| StartError::Spawn(python(&plan.app), error))?;
        let worker = place + 1;
        if let Some(output) = child.stdout.take() {
            tokio::spawn(pass_on(output, worker));
        }
        if let Some(output) = child.stderr.take() {
            tokio::spawn(pass_on(output, worker));
        }
        tracing::debug!(worker, pid = child.id(), "worker started");
        Ok(Running {
            child,
            token,
            since: Instant::now(),
        })
    }

    /// Waits until the process has said hello.
    async fn ready(
        &self,
        running: &mut Running,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        loop {
            let changed = self.hub.changed();
            if self.hub.process(&running.token).is_some() {
                running.since = Instant::now();
                return Ok(());
            }
            let status = tokio::select! {
                () = changed => continue,
                // A process that says hello between the look and the wait is seen a moment later.
                () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                status = running.child.wait() => status.unwrap_or_default(),
                () = stop.cancelled() => {
                    // It is killed when dropped; nobody reads this error.
                    return Err(StartError::Exited(ExitStatus::default()));
                }
            };
            return Err(match status.code() {
                Some(CANNOT_IMPORT) => StartError::Import(self.plan().app.app.clone()),
                _ => StartError::Exited(status),
            });
        }
    }

    /// Starts a dead process again, as often as it takes, each time after a longer pause. None when
    /// stopped meanwhile.
    async fn restart(
        &self,
        place: usize,
        mut pause: Duration,
        stop: &CancellationToken,
    ) -> Option<Running> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return None,
            }
            pause = (pause * 2).min(LAST_PAUSE);
            self.restarts[place].fetch_add(1, Relaxed);
            self.metrics.worker_restarted(RestartReason::Crash);
            let error = match self.spawn(place).await {
                Ok(mut running) => match self.ready(&mut running, stop).await {
                    Ok(()) => return Some(running),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return None;
            }
            tracing::error!(worker = place + 1, %error, restart_in = ?pause, "worker did not start");
        }
    }

    /// Puts a new process in the place of a healthy one, which finishes what it has. The new one is
    /// up before the old one gives its slots back, so that they change hands at once.
    async fn replace(&self, place: usize, old: Running, stop: &CancellationToken) -> Running {
        let _turn = self.rolling.lock().await;
        let mut new = match self.spawn(place).await {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(worker = place + 1, %error, "reload given up: the old worker stays");
                return old;
            }
        };
        if let Err(error) = self.ready(&mut new, stop).await {
            if !stop.is_cancelled() {
                tracing::error!(worker = place + 1, %error, "reload given up: the old worker stays");
            }
            return old;
        }
        self.restarts[place].fetch_add(1, Relaxed);
        self.metrics.worker_restarted(RestartReason::Reload);
        if let Some(process) = self.hub.process(&old.token) {
            self.hub.drain_process(process.id);
            tokio::select! {
                () = process.gone.cancelled() => {}
                () = stop.cancelled() => {}
            }
        }
        self.reap(old).await;
        tracing::info!(worker = place + 1, "worker replaced");
        new
    }

    /// Waits for a released process to exit. It is killed when it does not.
    async fn reap(&self, mut running: Running) {
        if let Some(process) = self.hub.process(&running.token) {
            process.gone.cancelled().await;
        }
        if tokio::time::timeout(EXIT_GRACE, running.child.wait())
            .await
            .is_err()
        {
            tracing::warn!(pid = running.child.id(), "worker killed: it did not exit");
            if let Err(error) = running.child.kill().await {
                tracing::error!(%error, "cannot kill a worker");
            }
        }
    }
}

/// Passes a worker's output on, line by line.
async fn pass_on(output: impl AsyncRead + Unpin, worker: usize) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                // Standard error may be closed; a worker's output is not worth more than that.
                let _ = writeln!(
                    io::stderr().lock(),
                    "[worker {worker}] {}",
                    text.trim_end_matches('\n')
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(slots: u16, cores: usize, processes: Option<u16>) -> Vec<u16> {
        let app = App {
            app: "shop:app".into(),
            processes,
            mode: Mode::Auto,
            python: None,
        };
        Plan::new(app, Path::new("link.sock"), slots, cores).threads
    }

    #[test]
    fn only_the_first_process_watches_files_and_only_if_asked() {
        let app = App {
            app: "shop:app".into(),
            processes: Some(2),
            mode: Mode::Auto,
            python: None,
        };
        let mut plan = Plan::new(app, Path::new("link.sock"), 8, 2);
        let watches = |plan: &Plan, place| {
            let command = plan.command(place, "token");
            let mut variables = command.as_std().get_envs();
            variables.any(|(name, value)| name == WATCHES_FOR && value.is_some())
        };
        assert!(!watches(&plan, 0));
        plan.watch = true;
        assert!(watches(&plan, 0));
        assert!(!watches(&plan, 1));
    }

    #[test]
    fn slots_are_spread_over_processes() {
        assert_eq!(threads(8, 4, None), [4, 4]);
        assert_eq!(threads(8, 1, None), [8]);
        assert_eq!(threads(3, 8, None), [3]);
        assert_eq!(threads(10, 4, Some(4)), [3, 3, 2, 2]);
        assert_eq!(threads(2, 4, Some(5)), [1, 1]);
    }
}
