//! Running one plan: its fetches, sleeps and timers side by side, in one task.
//!
//! The task outlives its caller by design. When the join is met, or the caller is gone,
//! everything that can be stopped without harm is stopped. Unsafe fetches run out in here,
//! until their own time or the plan's deadline is over; their results are counted and
//! dropped. So no fetch needs a task of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::failure::Fault;
use super::fetch::{Share, fetch, first_hop};
use super::join::{Event, Id, Joining, ROOT, Released, Why};
use super::metrics::{FetchOutcome, Metrics, OriginLabel, counted};
use super::redirect::Hop;
use super::settings::Settings;
use crate::plan::{FailureKind, Fetch, Outcome, Plan, Thing};
use crate::spans::FetchEnd;
use crate::spool::Limit;

/// A plan on its way to the outbound thread.
pub(super) struct Run {
    pub(super) plan: Arc<Plan>,
    pub(super) deadline: Instant,
    pub(super) settings: Arc<Settings>,
    pub(super) reply: oneshot::Sender<Vec<Outcome>>,
}

/// What all plans share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metrics: Arc<dyn Metrics>,
    pub(super) held: Arc<AtomicU64>,
    pub(super) memory: Limit,
}

/// One thing that takes time.
enum Work<'r> {
    Fetch(&'r Fetch, Result<Box<Hop>, Fault>),
    Sleep(Duration),
    /// Of a gather.
    Timer,
}

/// What is under way, by its place in the plan, and the books on its fetches.
struct Waits<'r> {
    under_way: Vec<Option<Wait<'r>>>,
    metrics: &'r dyn Metrics,
    started: Instant,
}

struct Wait<'r> {
    stop: AbortHandle,
    /// None for sleeps and timers.
    fetch: Option<(&'r Fetch, OriginLabel<'r>)>,
}

impl Run {
    pub(super) async fn run(self, shared: Shared) {
        let Self {
            plan,
            deadline,
            settings,
            mut reply,
        } = self;
        if reply.is_closed() {
            // The caller left while the plan waited for this thread: nothing was sent yet,
            // so nothing has to run out.
            return;
        }
        let started = Instant::now();
        let share = Share::of(&shared.held, settings.max_held);
        let mut joining = Joining::new(&plan.root);
        let mut waits = Waits::new(&*shared.metrics, started);
        let mut running = FuturesUnordered::new();

        // What would end after the deadline is not begun; the deadline ends it.
        let due = |time| started.checked_add(time).filter(|due| *due < deadline);
        let mut begin = |id, fetch, work, until| {
            let stop = waits.add(id, fetch);
            let work = work_on(id, work, &settings, &share, started, until);
            running.push(Abortable::new(work, stop));
        };
        for (id, thing) in joining.leaves() {
            match thing {
                Thing::Fetch(fetch) => {
                    let hop = first_hop(fetch, &settings);
                    let host = hop.as_ref().ok().and_then(|hop| hop.url.host_str());
                    let label = settings.label(host);
                    let until = due(fetch.timeout.unwrap_or(settings.timeout)).unwrap_or(deadline);
                    begin(id, Some((fetch, label)), Work::Fetch(fetch, hop), until);
                }
                Thing::Sleep(time) => {
                    if let Some(due) = due(*time) {
                        begin(id, None, Work::Sleep(*time), due);
                    }
                }
                Thing::Gather(_) | Thing::Done(_) => unreachable!("neither takes time itself"),
            }
        }
        for (gather, timeout) in joining.timeouts() {
            if let Some(due) = due(timeout) {
                begin(gather, None, Work::Timer, due);
            }
        }

        let mut expired = std::pin::pin!(sleep_until(deadline));
        loop {
            if let Some(results) = joining.results() {
                // A caller that left in this moment misses nothing.
                let _ = reply.send(results);
                break;
            }
            let event = tokio::select! {
                biased; // Fetches before the deadline: they say more about what timed out.
                () = reply.closed() => {
                    waits.stop_all();
                    break;
                }
                Some(ended) = running.next() => match ended {
                    Ok(event) => event,
                    Err(_aborted) => continue,
                },
                () = &mut expired => Event::Expired(ROOT, started.elapsed()),
            };
            waits.note(&event);
            for released in joining.apply(event) {
                waits.release(released);
            }
        }
        while let Some(ended) = running.next().await {
            if let Ok(event) = ended {
                waits.note(&event);
                shared.metrics.leftover_fetch();
            }
        }
    }
}

async fn work_on(
    id: Id,
    work: Work<'_>,
    settings: &Settings,
    share: &Share<'_>,
    started: Instant,
    until: Instant,
) -> Event {
    match work {
        Work::Fetch(of, Ok(hop)) => Event::Ended(id, fetch(of, hop, settings, share, until).await),
        Work::Fetch(of, Err(fault)) => Event::Ended(id, fault.at(&of.url, started.elapsed())),
        Work::Sleep(time) => {
            sleep_until(until).await;
            Event::Ended(id, Outcome::Slept(time))
        }
        Work::Timer => {
            sleep_until(until).await;
            Event::Expired(id, started.elapsed())
        }
    }
}

impl<'r> Waits<'r> {
    fn new(metrics: &'r dyn Metrics, started: Instant) -> Self {
        Self {
            under_way: Vec::new(),
            metrics,
            started,
        }
    }

    fn add(
        &mut self,
        id: Id,
        fetch: Option<(&'r Fetch, OriginLabel<'r>)>,
    ) -> futures_util::future::AbortRegistration {
        if let Some((_, origin)) = fetch {
            self.metrics.fetch_begun(origin);
        }
        let (stop, registration) = AbortHandle::new_pair();
        if self.under_way.len() <= id {
            self.under_way.resize_with(id + 1, || None);
        }
        self.under_way[id] = Some(Wait { stop, fetch });
        registration
    }

    /// Something ended by itself.
    fn note(&mut self, event: &Event) {
        let Event::Ended(id, outcome) = event else {
            return;
        };
        if let Some((fetch, origin)) = self.take(*id).and_then(|wait| wait.fetch) {
            self.count(origin, counted(outcome));
            self.tell(fetch, FetchEnd::of(outcome));
        }
    }

    /// Stops what the join has no use for, unless that could do harm.
    fn release(&mut self, Released { id, why }: Released) {
        let Some(wait) = self.take(id) else {
            return;
        };
        if wait.fetch.is_some_and(|(fetch, _)| !fetch.is_safe()) {
            self.under_way[id] = Some(wait);
            return;
        }
        wait.stop.abort();
        if let Some((fetch, origin)) = wait.fetch {
            let (outcome, end) = match why {
                Why::NotNeeded => (FetchOutcome::Aborted, FetchEnd::Aborted),
                Why::Expired => (
                    FetchOutcome::Timeout,
                    FetchEnd::Failed(FailureKind::Timeout.as_str()),
                ),
            };
            self.count(origin, outcome);
            self.tell(fetch, end);
        }
    }

    fn stop_all(&mut self) {
        let why = Why::NotNeeded;
        (0..self.under_way.len()).for_each(|id| self.release(Released { id, why }));
    }

    fn take(&mut self, id: Id) -> Option<Wait<'r>> {
        self.under_way.get_mut(id)?.take()
    }

    fn count(&self, origin: OriginLabel, outcome: FetchOutcome) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.fetch_ended(origin, outcome, seconds);
    }

    fn tell(&self, fetch: &Fetch, end: FetchEnd) {
        if let Some(span) = &fetch.span {
            span.ended(fetch, self.started.into_std(), end);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::{self, Allow};
    use crate::outbound::resolve;

    /// One of these is allocated for every fetch. Past a kilobyte the system's allocator takes
    /// its slow path, which showed in the CPU of a fetch.
    #[test]
    fn a_fetch_under_way_is_smaller_than_a_kilobyte() {
        let config = config::Outbound {
            allow: vec![Allow::Public],
            timeout: Duration::from_secs(1),
            max_response: 0,
            max_held: 0,
            label: Vec::new(),
        };
        let settings = Settings::new(&config, resolve::system()).expect("good settings");
        let held = AtomicU64::new(0);
        let share = Share::of(&held, 0);
        let fetch = Fetch {
            method: Method::GET,
            url: "http://a.example/".to_owned(),
            headers: HeaderMap::new(),
            timeout: None,
            follow: false,
            body: None,
            span: None,
        };
        let work = Work::Fetch(&fetch, first_hop(&fetch, &settings));
        let now = Instant::now();
        let future = work_on(0, work, &settings, &share, now, now);
        let size = size_of_val(&future);
        assert!(size < 950, "{size} bytes");
    }
}
