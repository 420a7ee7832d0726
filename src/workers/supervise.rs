//! Worker processes that the gateway starts itself: keeping them alive, one log line for each event.
//!
//! A process that dies is started again, for ever, after pauses that grow while its like do not live
//! long. One that works well is replaced on a reload, and when it has had its share of requests, time or
//! memory: its successor is up first, and one process is replaced at a time. One that is condemned,
//! because a slot of it is stuck or because it does not answer, is killed when the hub gives it up.
//! What is replaced finishes by itself, while its place is kept with its successor.
//! What a worker says on the link is not known here, only that it has said hello, or wants to go.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::param::page_size;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{OwnedMutexGuard, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Process;
use super::link::Hub;
use crate::config::{App, Mode};
use crate::descriptors;
use crate::metrics::{Metrics, RestartReason};
use crate::standard_error::{Output, StandardError};

/// Pauses before a process is started again, growing from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// A process that served this long was of use, and is missed at once, with the first pause. A start costs the
/// machine seconds of work: what dies sooner, again and again, takes more from it than it gives back. Not
/// longer: where something kills workers now and then, pauses would keep whole places empty.
const SETTLED: Duration = Duration::from_secs(5);

/// Longest line of a worker's output that is passed on in one piece.
const LINE: u64 = 64 * 1024;

/// After its link has ended, a worker that does not exit is killed.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// The same for one that was given up. Its threads are stuck, and what else it had is over.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// A process that is to replace another one must be ready within this time.
const START: Duration = Duration::from_secs(300);

/// How often it is looked at whether a process is to be recycled.
const LOOK: Duration = Duration::from_secs(1);

/// After a successor did not start, a process is not recycled for this long.
const RECYCLE_AGAIN: Duration = Duration::from_secs(60);

/// A process that has so many times the memory after which it is recycled is killed.
const RUNAWAY: u64 = 2;

/// How long the connections of a dead process may take to be closed, and how often it is looked.
const LAST_BREATH: Duration = Duration::from_millis(50);
const LAST_BREATHS: u32 = 20;

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
    /// It did not become ready.
    Slow,
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
            Self::Slow => write!(f, "the worker was not ready within {} s", START.as_secs()),
        }
    }
}

impl std::error::Error for StartError {}

/// How workers are started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub app: Arc<App>,
    pub link: PathBuf,
    /// Threads of each process.
    pub threads: Vec<u16>,
    /// The first process watches the application's files, and sends us a SIGHUP when one changes.
    pub watch: bool,
    /// Variables of the gateway's environment that are none of theirs.
    pub hidden: &'static [&'static str],
    /// Nor is the gateway's own limit.
    pub descriptors: Option<descriptors::Raised>,
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
            app: Arc::new(app),
            link: link.to_owned(),
            threads,
            watch: false,
            hidden: &[],
            descriptors: None,
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
    /// Each keeper is asked to replace its process when the generation moves on.
    generation: watch::Sender<u64>,
    stop: CancellationToken,
}

struct Shared {
    plan: Mutex<Plan>,
    hub: Arc<Hub>,
    metrics: Metrics,
    /// Where their output goes.
    errors: StandardError,
    restarts: Vec<AtomicU64>,
    /// Tokens tell processes apart, over all restarts.
    started: AtomicU64,
    /// One rolling replacement at a time.
    rolling: Arc<tokio::sync::Mutex<()>>,
    /// Keepers, and processes that finish beside their successors.
    tasks: TaskTracker,
}

/// Held while a process is replaced, until the old one is gone.
type RollingTurn = OwnedMutexGuard<()>;

impl Supervisor {
    /// Starts all processes side by side; resolves when every one is ready.
    ///
    /// # Errors
    /// When one cannot be started at all; the others are stopped then.
    pub async fn start(
        plan: Plan,
        hub: Arc<Hub>,
        metrics: Metrics,
        errors: StandardError,
    ) -> Result<Self, StartError> {
        let places = plan.threads.len();
        let restarts = (0..places).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            hub,
            metrics,
            errors,
            restarts,
            started: AtomicU64::new(0),
            rolling: Arc::default(),
            tasks: TaskTracker::new(),
        });
        let (generation, _) = watch::channel(0);
        let supervisor = Self {
            shared,
            generation,
            stop: CancellationToken::new(),
        };
        let (report, mut reports) = mpsc::channel(places);
        for place in 0..places {
            let shared = Arc::clone(&supervisor.shared);
            let stop = supervisor.stop.clone();
            let generation = supervisor.generation.subscribe();
            let keeper = keep(shared, place, report.clone(), generation, stop);
            supervisor.shared.tasks.spawn(keeper);
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

    /// Replaces every process, one after the other. Their number stays. When one of the new kind does not
    /// start, the others stay as well, and what they were started with is what starts again.
    pub fn reload(&self, app: App) {
        self.shared.plan().app = Arc::new(app);
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
        self.shared.tasks.close();
        let all = self.shared.tasks.wait();
        self.stop.cancel();
        if tokio::time::timeout(grace + EXIT_GRACE, all).await.is_err() {
            tracing::warn!("workers killed: they did not exit in time");
        }
    }
}

/// A process that has not said hello yet. It is killed when dropped.
struct Starting {
    child: Child,
    pid: Pid,
    token: String,
    app: Arc<App>,
}

/// A process that is ready. It is killed when dropped.
struct Running {
    child: Child,
    /// Of the process, and of the group of what it starts. What it says of itself is not relied on.
    pid: Pid,
    process: Arc<Process>,
    /// What it was started with.
    app: Arc<App>,
    since: Instant,
    /// The part of what `[workers]` allows a process after which it is recycled.
    share: f64,
    /// When recycling it has failed: not again before this.
    not_before: Option<Instant>,
    /// When it was found that its link has ended.
    lost: Option<Instant>,
}

/// The pauses before a process is started again in the same place.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

/// What a keeper waits for.
enum Event {
    /// The process died by itself.
    Died(ExitStatus),
    /// It has asked to be drained.
    Leaves,
    /// A slot of it is stuck, or it does not answer.
    Condemned,
    /// It does not say what its slots do.
    Mute,
    /// The configuration is another.
    Reload,
    Look,
    /// A replacement that is due may begin.
    Turn(RollingTurn, RestartReason),
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
    let first = match shared.spawn(place) {
        Ok(starting) => shared.ready(starting, &stop).await,
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
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A replacement that waits for its turn: one process at a time.
    let mut due = None;
    let mut wanted = Arc::clone(&running.app);
    let mut pauses = Pauses::default();
    loop {
        let process = Arc::clone(&running.process);
        let event = tokio::select! {
            // A process that is gone needs no replacement, and one that is condemned no turn. One that has
            // said that it goes has not died.
            biased;
            () = stop.cancelled() => Event::Stopped,
            () = process.leaves.cancelled() => Event::Leaves,
            status = running.child.wait() => Event::Died(status.unwrap_or_default()),
            () = process.condemned.cancelled() => Event::Condemned,
            () = process.mute.notified() => Event::Mute,
            Ok(()) = generation.changed() => Event::Reload,
            _ = looks.tick() => Event::Look,
            (turn, reason) = shared.turn(due) => Event::Turn(turn, reason),
        };
        let next = match event {
            Event::Stopped => return running.reap(EXIT_GRACE).await,
            Event::Mute => {
                running.dump_stacks();
                continue;
            }
            Event::Reload => {
                wanted = Arc::clone(&shared.plan().app);
                due = Some(RestartReason::Reload);
                continue;
            }
            Event::Look => {
                running.end_with_its_link();
                shared.stop_growth(place, &running);
                if due.is_none() && shared.is_due(place, &running) {
                    due = Some(RestartReason::Recycled);
                }
                continue;
            }
            // It has not started elsewhere, and would not here.
            Event::Turn(_turn, RestartReason::Reload) if !shared.is_planned(&wanted) => {
                due = None;
                continue;
            }
            Event::Turn(turn, reason) => {
                Some(shared.replace(place, running, turn, reason, &stop).await)
            }
            Event::Condemned => shared.succeed(place, running, &mut pauses, &stop).await,
            Event::Leaves => shared.follow(place, running, &mut pauses, &stop).await,
            Event::Died(status) => {
                shared
                    .revive(place, running, status, &mut pauses, &stop)
                    .await
            }
        };
        due = None;
        running = match next {
            Some(next) => next,
            None => return,
        };
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn is_planned(&self, app: &Arc<App>) -> bool {
        Arc::ptr_eq(&self.plan().app, app)
    }

    fn spawn(&self, place: usize) -> Result<Starting, StartError> {
        let number = self.started.fetch_add(1, Relaxed);
        let token = format!("{}-{number}", std::process::id());
        let plan = self.plan().clone();
        let mut command = plan.command(place, &token);
        let mut child = command
            .spawn()
            .map_err(|error| StartError::Spawn(python(&plan.app), error))?;
        let worker = place + 1;
        if let Some(output) = child.stdout.take() {
            tokio::spawn(pass_on(output, worker, self.errors.output()));
        }
        if let Some(output) = child.stderr.take() {
            tokio::spawn(pass_on(output, worker, self.errors.output()));
        }
        let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.expect("nobody has waited for it");
        if let Some(raised) = &plan.descriptors {
            raised.restore(Some(pid));
        }
        tracing::debug!(worker, pid = pid.as_raw_pid(), "worker started");
        Ok(Starting {
            child,
            pid,
            token,
            app: plan.app,
        })
    }

    /// Waits until the process has said hello.
    async fn ready(
        &self,
        mut starting: Starting,
        stop: &CancellationToken,
    ) -> Result<Running, StartError> {
        loop {
            let changed = self.hub.changed();
            if let Some(process) = self.hub.process(&starting.token) {
                return Ok(Running {
                    child: starting.child,
                    pid: starting.pid,
                    process,
                    app: starting.app,
                    since: Instant::now(),
                    share: share(),
                    not_before: None,
                    lost: None,
                });
            }
            let status = tokio::select! {
                () = changed => continue,
                // A process that says hello between the look and the wait is seen a moment later.
                () = tokio::time::sleep(Duration::from_millis(100)) => continue,
                status = starting.child.wait() => status.unwrap_or_default(),
                () = stop.cancelled() => {
                    // It is killed when dropped; nobody reads this error.
                    return Err(StartError::Exited(ExitStatus::default()));
                }
            };
            return Err(match status.code() {
                Some(CANNOT_IMPORT) => StartError::Import(starting.app.app.clone()),
                _ => StartError::Exited(status),
            });
        }
    }

    /// Starts another process for one that runs already, or did: it is not waited for for ever.
    async fn start_another(
        &self,
        place: usize,
        stop: &CancellationToken,
    ) -> Result<Running, StartError> {
        let starting = self.spawn(place)?;
        let ready = tokio::time::timeout(START, self.ready(starting, stop));
        ready.await.unwrap_or(Err(StartError::Slow))
    }

    fn count(&self, place: usize, reason: RestartReason) {
        self.restarts[place].fetch_add(1, Relaxed);
        self.metrics.worker_restarted(reason);
    }

    /// Starts a process until one is ready, as often as it takes, each time after a longer pause. None
    /// when stopped meanwhile.
    async fn restart(
        &self,
        place: usize,
        reason: RestartReason,
        mut pause: Duration,
        pauses: &mut Pauses,
        stop: &CancellationToken,
    ) -> Option<Running> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return None,
            }
            self.count(place, reason);
            let error = match self.start_another(place, stop).await {
                Ok(running) => return Some(running),
                Err(error) => error,
            };
            if stop.is_cancelled() {
                return None;
            }
            pause = pauses.next();
            tracing::error!(worker = place + 1, %error, restart_in = ?pause, "worker did not start");
        }
    }

    /// A process died by itself.
    async fn revive(
        &self,
        place: usize,
        old: Running,
        status: ExitStatus,
        pauses: &mut Pauses,
        stop: &CancellationToken,
    ) -> Option<Running> {
        let pause = pauses.after(old.since.elapsed());
        tracing::error!(worker = place + 1, %status, restart_in = ?pause, "worker died");
        self.tasks.spawn(old.bury());
        self.restart(place, RestartReason::Crash, pause, pauses, stop)
            .await
    }

    /// Puts a new process in the place of one that has asked to be drained. That one finishes what it has, and
    /// takes nothing new: there is no turn to wait for.
    async fn follow(
        self: &Arc<Self>,
        place: usize,
        old: Running,
        pauses: &mut Pauses,
        stop: &CancellationToken,
    ) -> Option<Running> {
        let pause = pauses.after(old.since.elapsed());
        tracing::info!(
            worker = place + 1, pid = old.process.pid, restart_in = ?pause,
            "worker leaves: it has asked for a drain, and is replaced"
        );
        self.dismiss(place, old, None, RestartReason::Recycled, stop);
        self.restart(place, RestartReason::Recycled, pause, pauses, stop)
            .await
    }

    /// Puts a new process in the place of one that has a slot which does not come back, or does not answer.
    /// The new one takes over what the old one still gives back, and the rest once that is dead.
    async fn succeed(
        self: &Arc<Self>,
        place: usize,
        old: Running,
        pauses: &mut Pauses,
        stop: &CancellationToken,
    ) -> Option<Running> {
        self.tasks.spawn(old.reap(KILL_GRACE));
        self.restart(place, RestartReason::Overdue, Duration::ZERO, pauses, stop)
            .await
    }

    /// Puts a new process in the place of a healthy one, which finishes what it has. The new one is
    /// up before the old one gives its slots back, so that they change hands at once.
    async fn replace(
        self: &Arc<Self>,
        place: usize,
        mut old: Running,
        turn: RollingTurn,
        reason: RestartReason,
        stop: &CancellationToken,
    ) -> Running {
        let worker = place + 1;
        let started = tokio::select! {
            started = self.start_another(place, stop) => started,
            never = self.watch_growth(place, &old) => never,
        };
        let new = match started {
            Ok(new) => new,
            Err(error) => {
                if !stop.is_cancelled() {
                    tracing::error!(worker, %error, "replacement given up: the old worker stays");
                }
                if reason == RestartReason::Reload {
                    // What runs is what starts again should anything die.
                    self.plan().app = Arc::clone(&old.app);
                }
                old.not_before = Some(Instant::now() + RECYCLE_AGAIN);
                return old;
            }
        };
        self.count(place, reason);
        self.hub.drain_process(old.process.id);
        self.dismiss(place, old, Some(turn), reason, stop);
        new
    }

    /// Has a draining process finish what it has, in a task of its own: its keeper is to keep its successor.
    /// The turn that the replacement had ends with it.
    fn dismiss(
        self: &Arc<Self>,
        place: usize,
        old: Running,
        turn: Option<RollingTurn>,
        reason: RestartReason,
        stop: &CancellationToken,
    ) {
        let (shared, stop) = (Arc::clone(self), stop.clone());
        self.tasks.spawn(async move {
            let process = Arc::clone(&old.process);
            loop {
                tokio::select! {
                    () = process.gone.cancelled() => break,
                    () = stop.cancelled() => break,
                    () = process.mute.notified() => old.dump_stacks(),
                    () = tokio::time::sleep(LOOK) => shared.stop_growth(place, &old),
                }
            }
            old.reap(EXIT_GRACE).await;
            tracing::info!(
                worker = place + 1,
                reason = reason.as_str(),
                "worker replaced"
            );
            drop(turn);
        });
    }

    /// Resolves when a replacement may begin, if one is due. Cancel safe.
    async fn turn(&self, due: Option<RestartReason>) -> (RollingTurn, RestartReason) {
        match due {
            Some(reason) => (Arc::clone(&self.rolling).lock_owned().await, reason),
            None => std::future::pending().await,
        }
    }

    /// Kills a process that grows faster than it can be recycled.
    fn stop_growth(&self, place: usize, running: &Running) {
        let max_memory = self.plan().app.recycle.max_memory;
        if let (Some(max_memory), Some(memory)) = (max_memory, running.memory())
            && memory >= max_memory * RUNAWAY
        {
            let (worker, pid) = (place + 1, running.process.pid);
            tracing::error!(
                worker,
                pid,
                memory,
                max_memory,
                "worker killed: it grows too fast"
            );
            running.kill();
        }
    }

    /// The same, for ever.
    async fn watch_growth<T>(&self, place: usize, running: &Running) -> T {
        loop {
            tokio::time::sleep(LOOK).await;
            self.stop_growth(place, running);
        }
    }

    /// Whether the process has had its share of what a process may have.
    fn is_due(&self, place: usize, running: &Running) -> bool {
        if running.not_before.is_some_and(|then| Instant::now() < then) {
            return false;
        }
        let recycle = self.plan().app.recycle;
        let begun = running.process.begun.load(Relaxed);
        let age = running.since.elapsed();
        let memory = recycle.max_memory.and_then(|_| running.memory());
        let over = |is: f64, max: Option<f64>| max.is_some_and(|max| is >= max * running.share);
        let due = over(begun as f64, recycle.max_requests.map(|max| max as f64))
            || over(
                age.as_secs_f64(),
                recycle.max_age.map(|max| max.as_secs_f64()),
            )
            || over(
                memory.unwrap_or_default() as f64,
                recycle.max_memory.map(|max| max as f64),
            );
        if due {
            let (worker, pid) = (place + 1, running.process.pid);
            tracing::info!(
                worker,
                pid,
                requests = begun,
                ?age,
                memory,
                "worker due for recycling"
            );
        }
        due
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Pauses {
    /// After a process that was ready for so long.
    fn after(&mut self, life: Duration) -> Duration {
        if life >= SETTLED {
            self.next = FIRST_PAUSE;
        }
        self.next()
    }

    /// After one that did not become ready.
    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LAST_PAUSE);
        pause
    }
}

impl Running {
    /// Waits until it is released or given up, and for its exit. It is killed when that takes longer
    /// than the grace.
    async fn reap(mut self, grace: Duration) {
        self.process.gone.cancelled().await;
        if tokio::time::timeout(grace, self.child.wait())
            .await
            .is_err()
        {
            tracing::warn!(pid = self.process.pid, "worker killed: it did not exit");
            self.kill();
            if let Err(error) = self.child.wait().await {
                tracing::error!(%error, "cannot wait for a worker");
            }
        }
        self.bury().await;
    }

    /// Kills it if it goes on after its link has ended: nobody can use it any more.
    fn end_with_its_link(&mut self) {
        if !self.process.gone.is_cancelled() {
            return;
        }
        let lost = *self.lost.get_or_insert_with(Instant::now);
        if lost.elapsed() >= EXIT_GRACE {
            tracing::warn!(pid = self.process.pid, "worker killed: it did not exit");
            self.kill();
        }
    }

    /// With all that it has started: what holds a copy of its connections must go, too.
    fn kill(&self) {
        if self.is_ours()
            && let Err(error) = kill_process_group(self.pid, Signal::KILL)
        {
            tracing::error!(%error, "cannot kill a worker");
        }
    }

    /// Has it write down what its threads do, whatever its interpreter is doing.
    fn dump_stacks(&self) {
        if self.is_ours()
            && self.process.dumps
            && let Err(error) = kill_process(self.pid, Signal::USR2)
        {
            tracing::error!(%error, "cannot signal a worker");
        }
    }

    /// Nobody else can have its number: it has not been waited for.
    fn is_ours(&self) -> bool {
        self.child.id().is_some()
    }

    /// Resident bytes.
    fn memory(&self) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id()?)).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * page_size() as u64)
    }

    /// Sees to it that the connections of an ended process are closed: processes that it forked may have
    /// them still, and the slots and the database's connections with them.
    async fn bury(self) {
        for _ in 0..LAST_BREATHS {
            if self.process.open.load(Relaxed) == 0 {
                return;
            }
            tokio::time::sleep(LAST_BREATH).await;
        }
        // The number of a group is not given away while processes are in it.
        if kill_process_group(self.pid, Signal::KILL).is_ok() {
            tracing::warn!(
                pid = self.process.pid,
                "killed what a dead worker left: it held its connections"
            );
        }
    }
}

/// From 0.8 to 1, evenly: processes that were started together do not come of age together.
fn share() -> f64 {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the kernel gives 2 random bytes at once");
    0.8 + 0.2 * f64::from(u16::from_ne_bytes(bytes)) / f64::from(u16::MAX)
}

/// Passes a worker's output on, line by line, no faster than it is read.
async fn pass_on(output: impl AsyncRead + Unpin, worker: usize, to: Output) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut output).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches('\n');
                to.write(format!("[worker {worker}] {text}\n").into_bytes())
                    .await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Recycle;

    fn threads(slots: u16, cores: usize, processes: Option<u16>) -> Vec<u16> {
        let app = App {
            app: "shop:app".into(),
            processes,
            mode: Mode::Auto,
            python: None,
            recycle: Recycle::default(),
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
            recycle: Recycle::default(),
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
    fn pauses_grow_while_processes_do_not_live_long() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(2);
        let grown: Vec<_> = (0..9).map(|_| pauses.after(short).as_millis()).collect();
        assert_eq!(
            grown,
            [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]
        );
        assert_eq!(pauses.next(), LAST_PAUSE, "also when one does not start");
        assert_eq!(pauses.after(SETTLED), FIRST_PAUSE);
        assert_eq!(pauses.after(short), FIRST_PAUSE * 2);
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
