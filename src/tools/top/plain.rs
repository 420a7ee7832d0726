//! The same as on the screen, as lines of text: for pipes, files and reports.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::screen::{phases, seconds, since};
use super::status::{History, Status};

/// Everything there is to say.
pub fn page(admin: SocketAddr, status: &Status) -> String {
    let mut page = String::new();
    write(&mut page, admin, status).expect("writing to a string does not fail");
    page
}

fn write(page: &mut String, admin: SocketAddr, status: &Status) -> std::fmt::Result {
    let ready = match (&status.not_ready_because, status.ready) {
        (_, true) => "ready",
        (Some(why), false) => why.as_str(),
        (None, false) => "not ready",
    };
    let (version, up) = (status.version.as_str(), since(status.uptime_seconds));
    writeln!(page, "layby {version} at {admin}, up {up}: {ready}")?;
    let slots = &status.slots;
    let (queue, parked) = (&status.queue, &status.parked);
    writeln!(
        page,
        "slots: {} of {} busy, {} lost   queue: {} of {}   parked: {} of {}",
        slots.busy,
        slots.count,
        slots.lost,
        queue.length,
        queue.limit,
        parked.requests,
        parked.limit
    )?;
    if let Some(last) = Last::of(&status.history) {
        writeln!(
            page,
            "requests: {:.1} a second, {:.1} failing   p50 {}   p95 {}   p99 {}",
            last.requests,
            last.errors,
            last.p50.map_or("-".to_owned(), seconds),
            last.p95.map_or("-".to_owned(), seconds),
            last.p99.map_or("-".to_owned(), seconds)
        )?;
    }

    writeln!(page, "\nSLOT  PROCESS  STATE     FOR      REQUEST")?;
    for slot in &slots.list {
        let process = slot
            .process
            .map_or("-".to_owned(), |process| process.to_string());
        let number = slot.slot;
        let state = slot.state.as_str();
        match &slot.job {
            Some(job) => {
                let (method, path) = (job.method.as_str(), job.path.as_str());
                let (time, phase) = (seconds(job.seconds), job.phase.as_str());
                writeln!(
                    page,
                    "{number:<5} {process:<8} {state:<9} {time:<8} {method} {path}  {phase}"
                )?;
            }
            None => writeln!(page, "{number:<5} {process:<8} {state}")?,
        }
    }
    if !parked.waits_for.is_empty() {
        writeln!(page, "\nPARKED  LONGEST  WAITS FOR")?;
        for wait in &parked.waits_for {
            let what = wait.origin.as_ref().unwrap_or(&wait.what).as_str();
            let longest = seconds(wait.longest_seconds);
            writeln!(page, "{:<7} {longest:<8} {what}", wait.requests)?;
        }
    }
    if !status.upstreams.is_empty() {
        writeln!(page, "\nBUSY        QUEUED  UPSTREAM")?;
        for upstream in &status.upstreams {
            let busy = format!("{} of {}", upstream.busy, upstream.connections);
            let down = if upstream.up { "" } else { "  down" };
            let name = upstream.upstream.as_str();
            writeln!(page, "{busy:<11} {:<7} {name}{down}", upstream.queued)?;
        }
    }
    if !status.processes.is_empty() {
        writeln!(page, "\nPROCESS  PID      THREADS  STATE     MODE")?;
        for process in &status.processes {
            writeln!(
                page,
                "{:<8} {:<8} {:<8} {:<9} {}",
                process.process,
                process.pid,
                process.threads,
                process.state.as_str(),
                process.mode.as_str()
            )?;
        }
    }
    if !status.waits_in_place.is_empty() {
        writeln!(page, "\nIN PLACE  REASON       SOURCE")?;
        for wait in &status.waits_in_place {
            let (reason, source) = (wait.reason.as_str(), wait.source.as_str());
            writeln!(page, "{:<9} {reason:<12} {source}", wait.count)?;
        }
    }
    if !status.slow_requests.is_empty() {
        writeln!(page, "\nSLOWEST  STATUS  REQUEST")?;
        for slow in &status.slow_requests {
            let (method, path) = (slow.method.as_str(), slow.path.as_str());
            let (time, phases) = (seconds(slow.seconds), phases(slow));
            writeln!(
                page,
                "{time:<8} {:<7} {method} {path}  {phases}",
                slow.status
            )?;
        }
    }
    Ok(())
}

/// The newest sample of the last minutes.
pub struct Last {
    pub requests: f64,
    pub errors: f64,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

impl Last {
    /// None before there is one.
    pub fn of(history: &History) -> Option<Self> {
        let last = |samples: &[Option<f64>]| samples.last().copied().flatten();
        Some(Self {
            requests: *history.requests_per_second.last()?,
            errors: history.errors_per_second.last().copied().unwrap_or(0.0),
            p50: last(&history.p50_seconds),
            p95: last(&history.p95_seconds),
            p99: last(&history.p99_seconds),
        })
    }
}
