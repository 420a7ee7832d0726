//! What the admin listener tells about the gateway.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, RwLock};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::State;
use super::upstreams::Upstreams;
use crate::admin::{self, Board, Readiness, Status};
use crate::exchange::{Exchange, WaitedFor};
use crate::recent::{Levels, ShownPath};
use crate::slots::{Limits, SlotId, SlotView};
use crate::workers::WorkerSlots;
use crate::workers::http::Upstream;
use crate::workers::link::{Hub, NoStacks, Stacks};

pub struct GatewayBoard {
    state: Arc<State>,
    slots: Arc<WorkerSlots>,
    hub: Arc<Hub>,
    upstreams: Arc<Upstreams>,
    exchange: Exchange,
    limits: Arc<RwLock<Limits>>,
}

impl GatewayBoard {
    pub fn new(
        state: &Arc<State>,
        slots: &Arc<WorkerSlots>,
        hub: &Arc<Hub>,
        upstreams: &Arc<Upstreams>,
        exchange: &Exchange,
        limits: &Arc<RwLock<Limits>>,
    ) -> Self {
        Self {
            state: Arc::clone(state),
            slots: Arc::clone(slots),
            hub: Arc::clone(hub),
            upstreams: Arc::clone(upstreams),
            exchange: exchange.clone(),
            limits: Arc::clone(limits),
        }
    }

    fn slot(&self, view: &SlotView) -> admin::Slot {
        let board = match self.upstreams.main() {
            Some(upstream) => upstream.board(),
            None => self.hub.board(),
        };
        let activity = board.of(view.slot);
        let state = match view.request {
            _ if view.lost => admin::SlotState::Lost,
            None => admin::SlotState::Idle,
            Some(_) => admin::SlotState::Busy,
        };
        let job = activity
            .filter(|_| view.request.is_some())
            .map(|activity| admin::Job {
                request: activity.request.number(),
                request_id: activity.about.record.id.to_string(),
                method: activity.about.method.to_string(),
                path: ShownPath::new(&activity.about.target),
                route: activity.about.record.route().map(|route| route.to_string()),
                phase: activity.doing.as_str(),
                seconds: activity.since.elapsed().as_secs_f64(),
            });
        admin::Slot {
            slot: view.slot.0,
            process: view.process.map(|process| process.0),
            state,
            job,
        }
    }
}

impl Board for GatewayBoard {
    fn readiness(&self) -> Readiness {
        let not = |why: &str| Readiness::NotReady(why.to_owned());
        if self.state.draining.load(Relaxed) {
            return not("draining");
        }
        if !self.state.ready.load(Relaxed) {
            return not("starting");
        }
        match self.upstreams.main() {
            Some(upstream) if !upstream.is_up() => {
                return not("the upstream does not accept connections");
            }
            Some(_) => {}
            None if self.hub.processes().is_empty() => return not("no worker is connected"),
            None if !self.hub.serves() => return not("no worker takes new requests"),
            None => {}
        }
        Readiness::Ready
    }

    fn status(&self) -> Status {
        let count = self.slots.count();
        let limits = self
            .limits
            .read()
            .expect("no code that holds this lock panics")
            .clone();
        let process = |process: Arc<crate::workers::Process>| admin::Process {
            process: process.id.0,
            pid: process.pid,
            mode: process.mode.clone(),
            threads: process.threads,
            state: self.hub.state(process.id),
        };
        let upstream = |upstream: &Arc<Upstream>| {
            let count = upstream.slots().count();
            admin::Upstream {
                upstream: upstream.server().to_string(),
                up: upstream.is_up(),
                connections: count.idle + count.busy + count.lost,
                idle: count.idle,
                busy: count.busy,
                lost: count.lost,
                queued: upstream.slots().queued(),
                parked: upstream.slots().parked(),
            }
        };
        let wait = |wait: crate::workers::WaitsInPlace| admin::WaitsInPlace {
            reason: wait.reason.as_str(),
            source: wait.source,
            count: wait.count,
        };
        let waits_for = |waited_for: WaitedFor| admin::WaitsFor {
            what: waited_for.what,
            origin: waited_for.origin,
            requests: waited_for.requests,
            longest_seconds: waited_for.longest.as_secs_f64(),
        };
        Status {
            draining: self.state.draining.load(Relaxed),
            slots: admin::Slots {
                count: count.idle + count.busy + count.lost,
                idle: count.idle,
                busy: count.busy,
                lost: count.lost,
                list: self
                    .slots
                    .views()
                    .iter()
                    .map(|view| self.slot(view))
                    .collect(),
            },
            queue: admin::Queue {
                length: self.slots.queued(),
                limit: limits.queue,
            },
            parked: admin::Parked {
                requests: self.slots.parked(),
                limit: limits.parked,
                waits_for: self
                    .exchange
                    .waited_for()
                    .into_iter()
                    .map(waits_for)
                    .collect(),
            },
            upstreams: self.upstreams.list().iter().map(upstream).collect(),
            processes: self.hub.processes().into_iter().map(process).collect(),
            waits_in_place: self
                .exchange
                .waits_in_place()
                .into_iter()
                .map(wait)
                .collect(),
        }
    }

    fn levels(&self) -> Levels {
        Levels {
            busy: self.slots.count().busy.into(),
            queued: self.slots.queued(),
            parked: self.slots.parked(),
        }
    }

    fn stacks(&self, slot: u16) -> Result<BoxFuture<'static, Option<Stacks>>, NoStacks> {
        if self.upstreams.main().is_some() {
            return Err(NoStacks::Http);
        }
        let answered = self.hub.stacks(SlotId(slot))?;
        Ok(answered.map(Result::ok).boxed())
    }
}
