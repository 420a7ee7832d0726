//! Calls: what a parked request has run for it on slots of its process.
//!
//! Each is a job of its own, which answers nobody. Calls belong to one park: when it is over, those that no
//! slot has yet are forgotten. Those that run are let run; whether their waits in place still make
//! sense depends on how the park ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::Exchange;
use crate::record::Record;
use crate::slots::{NoTurn, RequestId, Turn};
use crate::workers::{About, Awaited, Call, Job, Release, Step, Work};

/// How long what a request waits for may take.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// Until the request's deadline.
    Deadline(Instant),
    /// So long each time, when the request is in the middle of its answer.
    Each(Duration),
}

impl Bound {
    pub fn ends(self) -> Instant {
        match self {
            Self::Deadline(deadline) => deadline,
            Self::Each(time) => Instant::now() + time,
        }
    }
}

pub struct Calls {
    exchange: Exchange,
    /// Whose they are, and the epoch of its park.
    request: RequestId,
    epoch: u32,
    about: About,
    bound: Bound,
    /// Those that wait for a slot or run.
    open: BTreeSet<RequestId>,
    turns: FuturesUnordered<BoxFuture<'static, RequestId>>,
}

impl Calls {
    pub fn new(
        exchange: &Exchange,
        request: RequestId,
        epoch: u32,
        about: &About,
        bound: Bound,
    ) -> Self {
        Self {
            exchange: exchange.clone(),
            request,
            epoch,
            about: about.clone(),
            bound,
            open: BTreeSet::new(),
            turns: FuturesUnordered::new(),
        }
    }

    /// One more is to run. Its place among the calls of the request is free again when it is over.
    pub fn begin(&mut self, number: u16, place: OwnedSemaphorePermit) {
        let call = Call {
            request: self.request,
            number,
            place: Some(place),
        };
        let job = Job {
            epoch: self.epoch,
            about: self.about.clone(),
            work: Work::Run(call),
            answer: None,
            lazy: false,
        };
        match self.exchange.around.slots.call(self.request, job) {
            Ok((id, turn)) => {
                self.open.insert(id);
                let (exchange, bound) = (self.exchange.clone(), self.bound);
                let record = Arc::clone(&self.about.record);
                self.turns.push(Box::pin(async move {
                    exchange.call(turn, bound, &record).await;
                    id
                }));
            }
            // Its request learns of that in its own way.
            Err(NoTurn::WorkerGone | NoTurn::Shed(_)) => {}
        }
    }

    /// Resolves when one is over; None if there is none. Cancel safe.
    pub async fn over(&mut self) -> Option<()> {
        let id = self.turns.next().await?;
        self.open.remove(&id);
        Some(())
    }

    /// The time of their request is over: the slots that they run on count as lost until they are ready.
    pub fn overdue(&self) {
        for id in &self.open {
            self.exchange.around.slots.overdue(*id);
        }
    }

    /// The park has ended, because it is over. What still runs goes on, with a task of its own if there is any.
    pub fn let_run(mut self) {
        self.forget_waiting();
        if self.open.is_empty() {
            return;
        }
        let tasks = self.exchange.around.left.clone();
        tasks.spawn(async move {
            let alarm = self.exchange.around.sweeper.alarm();
            if let Bound::Deadline(deadline) = self.bound {
                alarm.set(deadline);
            }
            loop {
                tokio::select! {
                    over = self.over() => if over.is_none() { return },
                    () = alarm.rang() => {
                        alarm.clear();
                        self.overdue();
                    }
                }
            }
        });
    }

    /// The park has ended, because nobody waits for the request. What still runs is not waited for, and no
    /// slot is held any longer for what it waits for in place.
    pub fn abandon(mut self) {
        self.forget_waiting();
    }

    fn forget_waiting(&mut self) {
        let slots = &self.exchange.around.slots;
        self.open.retain(|id| slots.withdraw(*id).is_none());
    }
}

impl Exchange {
    /// Sees a call through. Dropping the future cancels its waits in place, now and later.
    async fn call(&self, mut turn: Turn<Step>, bound: Bound, record: &Record) {
        while let Ok(Step::Hold(mut hold)) = turn.step().await {
            let _waiting = self.around.waits.begin(hold.reason, hold.source);
            let Awaited::Plan(mut plan) = hold.awaited else {
                unreachable!("the slot lets a call wait for plans only");
            };
            if let Some(marker) = record.marker() {
                plan.mark(&marker);
            }
            let results = self.around.outbound.run(plan, bound.ends().into());
            let release = tokio::select! {
                outcomes = results => Release::Results(outcomes),
                () = hold.held.gone() => return,
            };
            turn = hold.held.release(release);
        }
    }
}
