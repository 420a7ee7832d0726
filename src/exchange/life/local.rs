//! Local waits: what is done about what a worker asks for its parked request.

use super::{Event, Life, gone};
use crate::exchange::calls::Calls;
use crate::slots::RequestId;
use crate::workers::local::{Asked, LocalWait};

impl Life {
    /// Waits for the request's own process, and has run what it calls for. Nothing ends such a wait
    /// by itself, so a request that must be finished gets its time once more, and is then ended like
    /// any other.
    pub(super) async fn local(
        &mut self,
        id: RequestId,
        mut wait: LocalWait,
        worker_gone: impl Future<Output = ()>,
    ) -> Event {
        if self.is_moot_already() {
            return Event::Left;
        }
        self.alarm.set(if self.expired {
            self.deadline + self.timeout
        } else {
            self.bound().ends()
        });
        let park = self.epoch - 1;
        let mut calls = Calls::new(&self.exchange, id, park, &self.about, self.bound());
        tokio::pin!(worker_gone);
        let event = loop {
            let event = tokio::select! {
                biased;
                () = &mut worker_gone => Event::WorkerGone,
                asked = wait.asked() => Event::Asked(asked),
                Some(()) = calls.over() => Event::CallOver,
                () = gone(&self.client, self.reader.as_ref()), if !self.left => Event::Left,
                () = self.alarm.rang() => Event::Expired,
            };
            match event {
                Event::Asked(Asked::Call(number, place)) => calls.begin(number, place),
                Event::Asked(Asked::Want) => break event,
                Event::CallOver => {}
                Event::Left => {
                    if self.is_moot() {
                        break Event::Left;
                    }
                }
                Event::Expired if self.reader.is_none() && !self.expired => {
                    self.expire();
                    calls.overdue();
                    if self.is_moot() {
                        break Event::Left;
                    }
                    self.alarm.set(self.deadline + self.timeout);
                }
                _ => break event,
            }
        };
        if self.reader.is_some() {
            self.rests_on_its_reader();
        }
        match event {
            Event::Asked(_) => calls.let_run(),
            _ => calls.abandon(),
        }
        event
    }
}
