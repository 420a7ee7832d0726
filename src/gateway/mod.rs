//! The gateway: putting the parts together, reloading, draining.
//!
//! Everything with a life of its own is started and stopped here, in this order: database sizing,
//! outbound, workers, listeners; and the other way round. What a part does is its own business.

mod board;
mod handover;
mod log;
mod notify;
mod sizing;
mod upstreams;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::board::GatewayBoard;
use self::handover::{Inherited, Program};
use self::notify::Manager;
use self::upstreams::Upstreams;
use crate::admin::Admin;
use crate::config::{Config, Effective, Listen, Loaded, Source, Sources};
use crate::descriptors;
use crate::downstream::tls::{self, Tls, Wanted};
use crate::downstream::{
    self, AccessLog, Crowd, Downstream, Listener, Listeners, Most, Pages, Routes, Style,
};
use crate::exchange::{self, Exchange};
use crate::files::Files;
use crate::metrics::Metrics;
use crate::outbound::{self, Outbound};
use crate::plan_listener::{self, Bound, PlanListener};
use crate::recent::Recent;
use crate::slots::{EXPIRY_TICK, Limits, Slots};
use crate::spans::{Exporter, Tracer};
use crate::spool::Spool;
use crate::standard_error::StandardError;
use crate::sweeper::Sweeper;
use crate::tcp_socket::Place;
use crate::unix_socket::UnixSocket;
use crate::workers::http;
use crate::workers::link::{Hub, Terms};
use crate::workers::supervise::{Plan, Supervisor};
use crate::workers::{Waits, WorkerSlots};

/// Who can connect to the link can serve requests: owner and group only.
const LINK_MODE: u32 = 0o660;

/// Threads for spool files: reads and writes of a few hundred KiB, mostly into the page cache.
const FILE_THREADS: usize = 4;

/// What is left of the drain's time for answers to requests that are shed at its end.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// How long workers may take to end after a clean drain.
const LAST_WORKERS: Duration = Duration::from_secs(5);

/// What applications still wait for at the plans listener when every request is over is for nobody of ours.
const LAST_PLANS: Duration = Duration::from_secs(1);

/// Tunnels that are told to end do so within this time.
const TUNNEL_ENDS: Duration = Duration::from_millis(100);

/// Why the gateway cannot start, in one line.
#[derive(Debug)]
struct StartError(String);

fn cannot<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> StartError {
    move |error| StartError(format!("cannot {what}: {error}"))
}

/// Runs until a signal ends it, replacing the workers when their files change if `reload`. The exit status
/// is that of the process.
pub fn run(sources: Sources, loaded: Loaded, reload: bool) -> ExitCode {
    let (inherited, useless) = Inherited::take();
    let errors = match log::start(loaded.config.log_format) {
        Ok(errors) => errors,
        Err(error) => {
            eprintln!("cannot start the log: {error}");
            return ExitCode::FAILURE;
        }
    };
    for name in useless {
        tracing::warn!(%name, "ignored: it is no stream socket");
    }
    let ground = Ground {
        errors,
        descriptors: descriptors::raise_limit(),
        program: Program::this(),
        manager: Manager::from_env(),
    };
    let code = run_on(&ground, sources, loaded, reload, inherited);
    // Whatever the end was like, it is told to the last line.
    ground.errors.finish();
    code
}

/// What is there before the gateway and after it.
struct Ground {
    errors: StandardError,
    descriptors: descriptors::Raised,
    program: Program,
    manager: Manager,
}

fn run_on(
    ground: &Ground,
    sources: Sources,
    loaded: Loaded,
    reload: bool,
    inherited: Inherited,
) -> ExitCode {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    loaded.effective.log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS)
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let serving = serve(ground, sources, loaded, reload, inherited);
            // From the first moment: a successor is watched before it is ready. To the last: a drain is long.
            match ground.manager.heartbeat() {
                None => serving.await,
                Some(pause) => tokio::select! {
                    ended = serving => ended,
                    () = beat(&ground.manager, pause) => unreachable!("a heart beats for ever"),
                },
            }
        }),
        Err(error) => Err(StartError(format!("cannot start the runtime: {error}"))),
    };
    match ended {
        Ok(Ended::Stopped(code)) => code,
        Ok(Ended::Succeeded(sockets, inherited)) => {
            let error = ground.program.succeed(sockets, inherited, || {
                ground.descriptors.restore(None);
                ground.errors.finish();
            });
            tracing::error!(%error, "cannot hand over");
            ExitCode::FAILURE
        }
        Err(StartError(why)) => {
            tracing::error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// How the gateway's time is over.
enum Ended {
    Stopped(ExitCode),
    /// Nothing is under way, and a new program is to have these sockets.
    Succeeded(Vec<(Listen, OwnedFd)>, Inherited),
}

/// The signals that the gateway obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// `logrotate`'s word for: the log is another file now.
    user1: Signal,
    user2: Signal,
}

enum Order {
    Stop,
    Reload,
    Upgrade,
    ReopenLog,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Cancel safe.
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::Stop,
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::Reload,
            _ = self.user1.recv() => Order::ReopenLog,
            _ = self.user2.recv() => Order::Upgrade,
        }
    }

    /// Resolves at a signal to stop; any other waits for `next`. Cancel safe.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(
    ground: &Ground,
    sources: Sources,
    loaded: Loaded,
    reload: bool,
    inherited: Inherited,
) -> Result<Ended, StartError> {
    let mut signals = Signals::new().map_err(cannot("take signals"))?;
    let starting = Gateway::start(ground, sources, loaded, reload, inherited);
    let mut gateway = tokio::select! {
        started = starting => started?,
        () = signals.stop() => return Ok(Ended::Stopped(ExitCode::SUCCESS)),
    };
    let manager = &ground.manager;
    manager.ready();
    let succeed = work(&mut gateway, &mut signals, ground).await;
    // A successor tells the manager itself that it is ready.
    match succeed {
        true => manager.reloading(),
        false => manager.stopping(),
    }
    let (mut kept, inherited) = match succeed {
        true => (
            Some(gateway.listeners.keep()),
            std::mem::take(&mut gateway.inherited),
        ),
        false => (None, Inherited::default()),
    };
    let (access_log, log_path) = (
        gateway.downstream.access_log.clone(),
        access_log_path(&gateway.config),
    );
    let draining = gateway.drain(!succeed);
    tokio::pin!(draining);
    let code = loop {
        let order = tokio::select! {
            code = &mut draining => break code,
            order = signals.next() => order,
        };
        match order {
            Order::Stop => match kept.take() {
                Some(_) => tracing::info!("no upgrade: a signal to stop came"),
                None => {
                    tracing::warn!("stopped at once by a second signal");
                    break ExitCode::FAILURE;
                }
            },
            Order::ReopenLog => access_log.reopen(log_path.clone()),
            // There is nothing left that it could be about.
            Order::Reload | Order::Upgrade => {}
        }
    };
    // Whatever the end was like, it is told to the last line.
    access_log.finish().await;
    Ok(match kept {
        Some(kept) => {
            let sockets = kept.sockets().map_err(cannot("keep the sockets"))?;
            tracing::info!(sockets = sockets.len(), "the new program takes over");
            Ended::Succeeded(sockets, inherited)
        }
        None => Ended::Stopped(code),
    })
}

/// Obeys until the gateway is to end; true, if a new program is to take over.
async fn work(gateway: &mut Gateway, signals: &mut Signals, ground: &Ground) -> bool {
    loop {
        match signals.next().await {
            Order::Stop => return false,
            Order::Reload => {
                ground.manager.reloading();
                gateway.reload();
                ground.manager.ready();
            }
            Order::ReopenLog => gateway.reopen_log(),
            // Before anything is given up for it.
            Order::Upgrade => tokio::select! {
                checked = ground.program.check() => match checked {
                    Ok(()) => return true,
                    Err(why) => tracing::error!("upgrade refused, the old program goes on:\n{why}"),
                },
                () = signals.stop() => return false,
            },
        }
    }
}

/// Tells the manager in time, for ever, that this thread is not stuck.
async fn beat(manager: &Manager, pause: Duration) {
    let mut pauses = tokio::time::interval(pause);
    loop {
        pauses.tick().await;
        manager.alive();
    }
}

/// What the gateway's own state is, for health and status.
#[derive(Debug, Default)]
struct State {
    ready: AtomicBool,
    draining: AtomicBool,
}

/// What a reload takes into use.
struct Prepared {
    secure: Option<tls::Ready>,
    pages: Pages,
    outbound: outbound::Prepared,
    opened: Vec<Listener>,
}

struct Gateway {
    sources: Sources,
    /// What is in force, and so is `effective`.
    config: Config,
    effective: Effective,
    state: Arc<State>,
    slots: Arc<WorkerSlots>,
    outbound: Outbound,
    hub: Arc<Hub>,
    upstreams: Arc<Upstreams>,
    supervisor: Option<Supervisor>,
    downstream: Arc<Downstream>,
    exchange: Exchange,
    listeners: Listeners,
    tls: Option<Arc<Tls>>,
    inherited: Inherited,
    plan_listener: Option<PlanListener>,
    admin: Admin,
    exporter: Option<Exporter>,
    limits: Arc<RwLock<Limits>>,
    stop_link: CancellationToken,
    /// How many the process may have.
    descriptors: u64,
    /// Holds the link of supervised workers; removed with everything in it.
    _folder: Option<tempfile::TempDir>,
}

impl Gateway {
    async fn start(
        ground: &Ground,
        sources: Sources,
        loaded: Loaded,
        reload: bool,
        mut inherited: Inherited,
    ) -> Result<Self, StartError> {
        let Ground {
            errors,
            descriptors,
            ..
        } = ground;
        let (config, effective) = (loaded.config, loaded.effective);
        // Addresses first: that another process has them is the commonest mistake, and the quickest told.
        let mut bound = Vec::new();
        for listen in &config.listen {
            bound.extend(self::listen(&mut inherited, listen, &config, &[]).map_err(StartError)?);
        }
        let plain = bound.len();
        for listen in &config.tls.listen {
            bound.extend(self::listen(&mut inherited, listen, &config, &[]).map_err(StartError)?);
        }
        inherited.close_old();
        let waiting = match &config.plans {
            None => None,
            Some(plans) => {
                let what = format!("listen on {} (plans.listen)", plans.listen);
                Some(Bound::at(&plans.listen).await.map_err(cannot(what))?)
            }
        };
        let metrics = Metrics::new(&config.outbound.label);
        metrics.configured(effective.hash());
        errors.count_in(metrics.clone());
        let tls = match config.tls.listen.is_empty() {
            true => None,
            false => Some(Tls::new(wanted(&config), metrics.clone()).map_err(cannot("offer TLS"))?),
        };
        if let Some(tls) = &tls {
            // Ends with the runtime: it holds nothing.
            tokio::spawn(Arc::clone(tls).follow_files(tls::LOOK));
        }
        let count = sizing::slots(&config).await.map_err(StartError)?;
        let spool = Spool::new(config.spool_dir.clone(), metrics.clone()).map_err(cannot(
            format_args!("write to spool_dir {}", config.spool_dir.display()),
        ))?;
        spool.set(&config.bodies);
        let pages = pages(&config).map_err(StartError)?;
        let access_log = AccessLog::start(access_log_path(&config), metrics.clone())
            .map_err(cannot("open the access log"))?;
        let started = Tracer::start(&config.tracing, &metrics).map_err(cannot("trace"))?;
        let (tracer, exporter) = started.unzip();
        let limits = limits(&config, count);
        let slots = Slots::new(count, limits.clone(), &metrics);
        let limits = Arc::new(RwLock::new(limits));
        let outbound = Outbound::start(
            &config.outbound,
            Arc::new(metrics.clone()),
            spool.memory().clone(),
        )
        .map_err(cannot("start outbound"))?;
        let terms_of_plans = plan_listener::Terms::of(&config);
        let plan_listener = waiting
            .zip(terms_of_plans)
            .map(|(bound, terms)| bound.serve(terms, outbound.clone()));
        let sweeper = Sweeper::default();
        let expiring = Arc::clone(&slots);
        debug_assert!(crate::sweeper::TICK <= EXPIRY_TICK);
        let waits = Waits::new(metrics.clone());
        let hub = Hub::new(
            count,
            Arc::clone(&slots),
            spool.clone(),
            metrics.clone(),
            waits.clone(),
            terms(&config),
        );
        let asking = Arc::clone(&hub);
        let ticking = access_log.clone();
        // An upstream looks after its slots itself.
        let linked = !matches!(config.workers.source, Source::Upstream(_));
        tokio::spawn(sweeper.clone().run(move || {
            ticking.tick();
            if linked {
                expiring.expire();
                for stuck in expiring.stuck() {
                    asking.look_at(stuck);
                }
            }
        }));
        let parts = http::Parts {
            spool: spool.clone(),
            metrics: metrics.clone(),
            sweeper: sweeper.clone(),
        };
        let upstreams = Arc::new(Upstreams::start(&config, &slots, parts));
        let exchange = Exchange::new(
            Arc::clone(&slots),
            outbound.clone(),
            sweeper.clone(),
            metrics.clone(),
            waits,
        );
        let exchange = match upstreams.main() {
            Some(upstream) => exchange.beside(Arc::clone(upstream)),
            None => exchange,
        };
        let recent = Recent::new(Instant::now());
        let state = Arc::new(State::default());
        let board = GatewayBoard::new(&state, &slots, &hub, &upstreams, &exchange, &limits);
        let admin = Admin::start(
            place(config.admin, &config),
            config.probes.map(|address| place(address, &config)),
            Arc::new(board),
            metrics.clone(),
            recent.clone(),
        )
        .map_err(|error| StartError(error.to_string()))?;

        let stop_link = CancellationToken::new();
        let accept = |path: &Path| {
            let link = UnixSocket::bind(path, LINK_MODE)
                .map_err(cannot(format_args!("listen on {}", path.display())))?;
            tokio::spawn(Arc::clone(&hub).accept(link, stop_link.clone()));
            Ok(())
        };
        let mut folder = None;
        let supervisor = match &config.workers.source {
            Source::App(app) => {
                let made = tempfile::Builder::new()
                    .prefix("layby-")
                    .tempdir()
                    .map_err(cannot("make a folder for the link"))?;
                let path = folder.insert(made).path().join("link.sock");
                accept(&path)?;
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let mut plan = Plan::new(app.clone(), &path, count, cores);
                plan.watch = reload;
                plan.hidden = &handover::VARIABLES;
                plan.descriptors = Some(*descriptors);
                tracing::info!(
                    processes = plan.threads.len(), slots = count, app = %app.app, reload, "starting workers"
                );
                let started =
                    Supervisor::start(plan, Arc::clone(&hub), metrics.clone(), errors.clone())
                        .await;
                Some(started.map_err(|error| StartError(error.to_string()))?)
            }
            Source::Link(path) => {
                accept(path)?;
                tracing::info!(link = %path.display(), slots = count, "waiting for workers");
                None
            }
            Source::Upstream(upstream) => {
                tracing::info!(%upstream, slots = count, "handing requests to an upstream");
                None
            }
        };

        let routes = {
            let limits = limits
                .read()
                .expect("no code that holds this lock panics")
                .clone();
            upstreams.routes(&config, &limits, &exchange)
        };
        let downstream = Arc::new(Downstream {
            exchange: exchange.clone(),
            spool,
            crowd: Crowd::new(most(&config, descriptors.limit), metrics.clone()),
            metrics,
            access_log,
            tracer,
            recent,
            sweeper,
            settings: RwLock::new(Arc::new(settings(&config, routes, pages))),
            drain: CancellationToken::new(),
            end_tunnels: CancellationToken::new(),
        });
        let mut listeners = Listeners::default();
        let (mut listen, mut secure) = (Vec::new(), Vec::new());
        for (number, listener) in bound.into_iter().enumerate() {
            let tls = tls.clone().filter(|_| number >= plain);
            let list = if tls.is_some() {
                &mut secure
            } else {
                &mut listen
            };
            let address = listener.address().map_err(cannot("tell the address"))?;
            list.push(address.to_string());
            listeners.add(listener, tls, Arc::clone(&downstream));
        }
        let secure = (!secure.is_empty()).then(|| secure.join(", "));
        state.ready.store(true, Relaxed);
        tracing::info!(
            listen = %listen.join(", "), admin = %admin.addr(), slots = count,
            tls = secure.map(tracing::field::display), "ready"
        );
        Ok(Self {
            sources,
            config,
            effective,
            state,
            slots,
            outbound,
            hub,
            upstreams,
            supervisor,
            downstream,
            exchange,
            listeners,
            tls,
            inherited,
            plan_listener,
            admin,
            exporter,
            limits,
            stop_link,
            descriptors: descriptors.limit,
            _folder: folder,
        })
    }

    /// Reads the configuration again and replaces the workers one process at a time. A configuration with
    /// mistakes changes nothing.
    fn reload(&mut self) {
        let loaded = match Config::load(&self.sources) {
            Ok(loaded) => loaded,
            Err(mistakes) => {
                self.downstream.metrics.reload_refused();
                return tracing::error!("reload refused, the old configuration stays:\n{mistakes}");
            }
        };
        let needing_restart = self.config.changes_needing_restart(&loaded.config);
        let kept = self.config.kept(&loaded.config);
        let effective = self.effective.reloaded(loaded.effective, &kept);
        // From here on, what is to be in force.
        let config = self.config.clone().reloaded(loaded.config);
        let prepared = match self.prepare(&config) {
            Ok(prepared) => prepared,
            Err(why) => {
                self.downstream.metrics.reload_refused();
                return tracing::error!("reload refused, the old configuration stays: {why}");
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        for key in needing_restart {
            tracing::warn!(key, "changed, but only a restart applies it");
        }
        self.downstream.metrics.configured(effective.hash());
        self.effective = effective;
        let new_limits = limits(&config, self.slots.count().all());
        self.slots.set_limits(new_limits.clone());
        *self
            .limits
            .write()
            .expect("no code that holds this lock panics") = new_limits.clone();
        if let (Some(tls), Some(ready)) = (&self.tls, prepared.secure) {
            tls.set(ready);
        }
        let routes = self.upstreams.routes(&config, &new_limits, &self.exchange);
        let settings = settings(&config, routes, prepared.pages);
        self.downstream.set(settings);
        self.downstream.spool.set(&config.bodies);
        self.downstream.crowd.set(most(&config, self.descriptors));
        self.outbound.apply(prepared.outbound);
        self.hub.set_terms(terms(&config));
        if let (Some(listener), Some(terms)) =
            (&self.plan_listener, plan_listener::Terms::of(&config))
        {
            listener.set(terms);
        }
        for listener in prepared.opened {
            tracing::info!(listen = %listener.entry(), "listener opened");
            let downstream = Arc::clone(&self.downstream);
            self.listeners.add(listener, None, downstream);
        }
        self.listeners.retain(|listener| stays(listener, &config));
        self.config = config;
        if let Some(tracer) = &self.downstream.tracer {
            tracer.sample(self.config.tracing.sample);
        }
        self.reopen_log();
        if let (Some(supervisor), Source::App(app)) =
            (&self.supervisor, &self.config.workers.source)
        {
            supervisor.reload(app.clone());
        }
        tracing::info!("configuration reloaded");
    }

    /// Whatever of this configuration can fail, so that nothing of it is in force if something does. Listeners
    /// last: they are open from there on.
    fn prepare(&mut self, config: &Config) -> Result<Prepared, String> {
        let outbound = self.outbound.prepare(&config.outbound);
        Ok(Prepared {
            secure: self.secure(config)?,
            pages: pages(config)?,
            outbound: outbound.map_err(|error| error.to_string())?,
            opened: self.open(config)?,
        })
    }

    /// What handshakes are to be made with by this configuration, if there are any.
    fn secure(&self, config: &Config) -> Result<Option<tls::Ready>, String> {
        let read = |_| tls::Ready::read(wanted(config)).map_err(|error| error.to_string());
        self.tls.as_ref().map(read).transpose()
    }

    /// The listeners that this configuration has and the present one has not.
    fn open(&mut self, config: &Config) -> Result<Vec<Listener>, String> {
        let mut opened = Vec::new();
        for entry in &config.listen {
            let v6_only = v6_only(entry, config);
            if (self.listeners.plain()).any(|listener| listener.serves(entry, v6_only)) {
                continue;
            }
            let stays = |listener: &Listener| stays(listener, config);
            let ours = self.listeners.in_the_way(entry, stays);
            match listen(&mut self.inherited, entry, config, &ours) {
                Ok(listeners) => opened.extend(listeners),
                Err(why) => {
                    self.inherited.take_back(opened);
                    return Err(why);
                }
            }
        }
        Ok(opened)
    }

    /// Lines from now on go to the file that has the configured name now.
    fn reopen_log(&self) {
        let path = access_log_path(&self.config);
        self.downstream.access_log.reopen(path);
    }

    /// Takes nothing new, finishes what is there within the grace, and ends everything. If it is announced,
    /// readiness is red for a while before the doors close.
    async fn drain(mut self, announced: bool) -> ExitCode {
        let grace = self.config.drain_timeout;
        self.state.draining.store(true, Relaxed);
        if announced && !self.config.drain_delay.is_zero() {
            tracing::info!(delay = ?self.config.drain_delay, "readiness is red, the doors close later");
            tokio::time::sleep(self.config.drain_delay).await;
        }
        let end = Instant::now() + grace;
        self.listeners.shut();
        self.downstream.drain.cancel();
        tracing::info!(
            connections = self.listeners.connections(), queued = self.slots.queued(),
            parked = self.slots.parked(), grace = ?grace, "drain started"
        );
        let over = async {
            self.listeners.finished().await;
            self.exchange.finished().await;
        };
        let mut clean = tokio::time::timeout(grace, over).await.is_ok();
        if !clean {
            clean = self.end_tunnels().await;
        }
        if !clean {
            tracing::warn!(
                connections = self.listeners.connections(),
                requests = self.slots.requests(),
                "drain timeout: the rest is cut"
            );
            self.slots.drain();
            self.upstreams.drain();
            // Those who still wait in the queue get their 503.
            let _ = tokio::time::timeout(LAST_ANSWERS, self.listeners.finished()).await;
        }
        self.hub.drain();
        let patience = if clean { LAST_WORKERS } else { Duration::ZERO };
        match self.supervisor {
            Some(supervisor) => supervisor.stop(patience).await,
            None => {
                // Workers that somebody else has started, and may start again at once: those that are here
                // are to hear that this is a drain and no crash, and no more are let in.
                self.stop_link.cancel();
                let _ = tokio::time::timeout(patience, self.hub.empty()).await;
            }
        }
        self.stop_link.cancel();
        if let Some(listener) = self.plan_listener {
            // Applications have waited there for what is over by now.
            listener
                .drain(if clean { LAST_PLANS } else { Duration::ZERO })
                .await;
        }
        // Only fetches whose requests are over are left: unsafe ones, which are to run out.
        let left = end.saturating_duration_since(Instant::now());
        let cut = self.outbound.drain(left).await;
        if cut > 0 {
            tracing::warn!(plans = cut, "drain timeout: unsafe fetches are cut");
            clean = false;
        }
        if let Some(exporter) = self.exporter {
            exporter.finish().await;
        }
        self.admin.stop();
        if clean {
            tracing::info!("drained");
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Gateway {
    /// The grace is over. Tunnels may last for ever, so that they end now is no fault: true if nothing else was
    /// left.
    async fn end_tunnels(&self) -> bool {
        self.downstream.end_tunnels.cancel();
        let over = async {
            self.listeners.finished().await;
            self.exchange.finished().await;
        };
        tokio::time::timeout(TUNNEL_ENDS, over).await.is_ok()
    }
}

/// The listeners of an entry: those that are there already, or one that is bound now.
fn listen(
    inherited: &mut Inherited,
    entry: &Listen,
    config: &Config,
    ours: &[Arc<Listener>],
) -> Result<Vec<Listener>, String> {
    let mut listen = || {
        let claimed = inherited.claim(entry)?;
        match claimed.is_empty() {
            true => Ok(vec![Listener::bind(entry, v6_only(entry, config), ours)?]),
            false => Ok(claimed),
        }
    };
    listen().map_err(|error: std::io::Error| format!("cannot listen on {entry}: {error}"))
}

/// Whether a listener is one of this configuration's.
fn stays(listener: &Listener, config: &Config) -> bool {
    let mut entries = config.listen.iter();
    entries.any(|entry| listener.serves(entry, v6_only(entry, config)))
}

fn v6_only(entry: &Listen, config: &Config) -> bool {
    matches!(entry, Listen::Tcp(address) if config.v6_only(*address))
}

fn place(address: SocketAddr, config: &Config) -> Place {
    let v6_only = config.v6_only(address);
    Place { address, v6_only }
}

/// For so many slots, which may be others than this configuration counts: a reload does not change them, and
/// `"auto"` is counted at the start.
fn limits(config: &Config, slots: u16) -> Limits {
    let parked = config.slots.parked.max(usize::from(slots));
    if parked > config.slots.parked {
        tracing::warn!(
            parked,
            slots,
            "slots.parked is below the number of slots; as many are in force"
        );
    }
    Limits {
        queue: config.slots.queue,
        queue_timeout: config.slots.queue_timeout,
        parked,
        parked_bytes: config.slots.parked_bytes,
        overdue_grace: config.slots.overdue_grace,
    }
}

fn terms(config: &Config) -> Terms {
    Terms {
        fetch_timeout: config.outbound.timeout,
        thread_locals: config.workers.thread_locals.clone(),
        request_timeout: config.slots.request_timeout,
        overdue_grace: config.slots.overdue_grace,
    }
}

fn wanted(config: &Config) -> Wanted {
    Wanted {
        tls: config.tls.clone(),
        http2: config.http2,
    }
}

fn most(config: &Config, descriptors: u64) -> Most {
    Most {
        connections: descriptors::connections(descriptors, config.clients.max_connections),
        per_client: config.clients.max_connections_per_client,
    }
}

/// Where the access log goes. What is off touches no file.
fn access_log_path(config: &Config) -> Option<PathBuf> {
    Style::new(&config.access_log).and(config.access_log.path.clone())
}

fn pages(config: &Config) -> Result<Pages, String> {
    let Some(folder) = &config.error_pages else {
        return Ok(Pages::default());
    };
    let what = |error| format!("cannot read error_pages {}: {error}", folder.display());
    Pages::read(folder).map_err(what)
}

fn settings(config: &Config, routes: Routes, pages: Pages) -> downstream::Settings {
    downstream::Settings {
        trusted: config.trusted_proxies.clone(),
        forwarding_headers: config.forwarding_headers,
        proxied: config.proxy_protocol.clone(),
        h2c: config.h2c,
        max_body: config.max_body,
        bounds: downstream::Bounds {
            head: config.clients.head_timeout,
            idle: config.clients.idle_timeout,
            rate: downstream::Rate {
                stall: config.clients.stall_timeout,
                least: config.clients.min_rate,
            },
        },
        resumes: config.plans.is_some(),
        routes,
        files: Files::new(config.mounts.clone(), config.sendfile_root.clone()),
        compression: config.compression.clone(),
        exchange: exchange::Settings {
            request_timeout: config.slots.request_timeout,
            on_disconnect: config.slots.on_disconnect,
        },
        retry_after: config.slots.queue_timeout,
        pages,
        access_log: Style::new(&config.access_log),
    }
}
