//! One request's way through queue, slots and parks.

mod local;
mod relay;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::calls::Bound;
use super::client::Client;
use super::{Exchange, Failure, Settings};
use crate::config::OnDisconnect;
use crate::message::{AnswerBody, LaterBody, NoBody, Request, RequestBody};
use crate::metrics::CancelPhase;
use crate::plan::{Captured, Outcome, Plan};
use crate::record::Stage;
use crate::slots::{NoTurn, RequestId, Turn, Turned};
use crate::spool::{AnswerWatch, AnswerWriter, Body};
use crate::sweeper::Alarm;
use crate::workers::local::Asked;
use crate::workers::{
    About, Awaited, Continue, Hold, Job, Park, Release, Results, Step, Times, Work,
};

pub struct Life {
    exchange: Exchange,
    /// As the slots know it; None until it has been submitted.
    id: Option<RequestId>,
    client: Client,
    deadline: Instant,
    timeout: Duration,
    alarm: Alarm,
    /// A client that leaves does not cancel it.
    finishes: bool,
    /// As the worker said when it last parked or held.
    shielded: bool,
    /// Reads the answer that the request is in the middle of. The head is there, so its deadline has been
    /// met; whatever it still waits for gets as long again.
    reader: Option<AnswerWatch>,
    /// Nobody waits for the answer, and what follows from it has been done.
    left: bool,
    /// The deadline has passed, and what follows from it has been done.
    expired: bool,
    /// Of the next job.
    epoch: u32,
    about: About,
    body: Lazy,
}

/// The request's body, as far as it may still be asked for.
enum Lazy {
    /// There is none, it has been had, or an answer has begun.
    Not,
    /// → Not, Gone
    With(LaterBody),
    /// Nobody waits for what it is for. Who asks is told so. → Not
    Gone,
}

/// What a life waits for.
enum Event {
    Step(Turned<Step>),
    Results(Vec<Outcome>),
    Body(Result<Body, NoBody>),
    /// With what its worker wants to know.
    Relayed(Option<Captured>),
    Asked(Asked),
    CallOver,
    WorkerGone,
    Left,
    Expired,
}

impl Life {
    pub fn new(
        exchange: &Exchange,
        request: &Request,
        body: Option<LaterBody>,
        settings: Settings,
        deadline: Instant,
        client: Client,
    ) -> Self {
        let alarm = exchange.around.sweeper.alarm();
        alarm.set(deadline);
        Self {
            exchange: exchange.clone(),
            id: None,
            client,
            deadline,
            timeout: settings.request_timeout,
            alarm,
            finishes: !request.method.is_safe() && settings.on_disconnect == OnDisconnect::Finish,
            shielded: false,
            reader: None,
            left: false,
            expired: false,
            epoch: 0,
            about: About {
                method: request.method.clone(),
                target: Arc::clone(&request.target),
                record: Arc::clone(&request.record),
            },
            body: body.map_or(Lazy::Not, Lazy::With),
        }
    }

    /// No `async fn`: see `Downstream::handle`.
    pub fn run(mut self, request: Box<Request>) -> impl Future<Output = ()> + Send {
        self.enters(Stage::Queue);
        let bytes = retained(&request);
        let work = self.job(Work::Begin(request, self.times()), None);
        let submitted = self.exchange.around.slots.submit(work, bytes);
        async move {
            let (id, mut turn) = match submitted {
                Ok(submitted) => submitted,
                Err(shed) => return self.client.answer(Err(Failure::Shed(shed))),
            };
            self.id = Some(id);
            let _place = self.exchange.around.slots.place(id);
            loop {
                let step = match self.step(id, &mut turn).await {
                    Some(Ok(step)) => step,
                    Some(Err(NoTurn::Shed(shed))) => {
                        return self.client.answer(Err(Failure::Shed(shed)));
                    }
                    Some(Err(NoTurn::WorkerGone)) => {
                        return self.client.answer(Err(Failure::WorkerGone));
                    }
                    None => return,
                };
                turn = match step {
                    Step::Answer(answer, None) => return self.client.answer(Ok(answer)),
                    Step::Answer(answer, Some(rest)) => {
                        match &answer.body {
                            AnswerBody::Spooled(reader) => self.stream(reader.watch()),
                            _ => self.answered(),
                        }
                        self.client.answer(Ok(answer));
                        rest
                    }
                    Step::Answered(rest) => {
                        self.answered();
                        rest
                    }
                    Step::Ended => return self.client.answer(Err(Failure::WorkerGone)),
                    // Boxed: their size would be paid by every request, also by those that only wait for a slot.
                    Step::Hold(hold) => Box::pin(self.hold(hold)).await,
                    Step::Park(park) => match Box::pin(self.park(id, park)).await {
                        Some(turn) => turn,
                        None => return self.client.answer(Err(Failure::WorkerGone)),
                    },
                };
            }
        }
    }

    /// The head of the answer is made, and its body goes on: from here on somebody waits who reads that.
    /// When she leaves, no more of it is made, whatever the method.
    fn stream(&mut self, reader: AnswerWatch) {
        self.reader = Some(reader);
        // What the client still sends is for nobody.
        self.body = Lazy::Not;
        self.finishes = false;
        self.left = false;
        self.expired = false;
        self.rests_on_its_reader();
    }

    /// All of the answer is made. What is left to do is done to its end, and gets the time of a request for
    /// that; if nobody waited for the answer, it has what it had.
    fn answered(&mut self) {
        // What the client still sends is for nobody.
        self.body = Lazy::Not;
        let nobody = match self.reader {
            Some(_) => self.left,
            None => self.client.left(),
        };
        if !nobody {
            self.has_answer();
        }
    }

    /// Nobody waits any more, since who did has the answer.
    fn has_answer(&mut self) {
        self.reader = None;
        self.left = true;
        self.expired = false;
        self.finishes = true;
        self.deadline = Instant::now() + self.timeout;
        self.alarm.set(self.deadline);
    }

    /// Waits for a slot to make a step. None when the job was withdrawn unseen.
    async fn step(&mut self, id: RequestId, turn: &mut Turn<Step>) -> Option<Turned<Step>> {
        if self.expired && self.is_at_server() {
            self.alarm.set(Instant::now() + self.timeout);
        }
        loop {
            let event = tokio::select! {
                biased; // A step that is there is worth more than a deadline that passed with it.
                step = turn.step() => Event::Step(step),
                () = gone(&self.client, self.reader.as_ref()), if !self.left => Event::Left,
                () = self.alarm.rang(), if !self.expired || self.is_at_server() => Event::Expired,
            };
            match event {
                Event::Step(step) => return Some(step),
                Event::Expired if self.expired => {
                    if self.is_given_up(id) {
                        return None;
                    }
                    // A slot has it just now, and may put it back.
                    self.alarm.set(Instant::now() + self.timeout);
                }
                Event::Expired => self.expire(),
                _ => {}
            }
            if !self.left {
                match self.leave_turn(id) {
                    Leaving::Stays => {}
                    Leaving::Withdrawn => return None,
                    Leaving::Ends(end) => *turn = end,
                }
            }
        }
    }

    /// Nobody waits any more for a request that is in the queue or in a slot.
    fn leave_turn(&mut self, id: RequestId) -> Leaving {
        let slots = &self.exchange.around.slots;
        let unseen = self.epoch == 1;
        if unseen && slots.withdraw(id).is_some() {
            self.leave(CancelPhase::Queued);
            return Leaving::Withdrawn;
        }
        if !unseen
            && self.cancellable()
            && let Some(job) = slots.withdraw(id)
        {
            if self.is_at_server() {
                slots.forget(id);
                self.leave(CancelPhase::Parked);
                return Leaving::Withdrawn;
            }
            // Its worker never saw it, so the next job is the one that it expects.
            self.epoch = job.epoch;
            self.leave(CancelPhase::Parked);
            return Leaving::Ends(self.end(id, job.answer));
        }
        self.leave(CancelPhase::Running);
        Leaving::Stays
    }

    /// A request that must be finished, and has waited for its server as long again as it had. Nobody waits for
    /// it, and what its fetches have brought is lost with it.
    fn is_given_up(&self, id: RequestId) -> bool {
        let slots = &self.exchange.around.slots;
        let waits = self.is_at_server() && slots.withdraw(id).is_some();
        if waits {
            slots.forget(id);
            let request = &self.about;
            tracing::error!(%request, id = %self.about.record.id, "given up: no slot has taken its results in time");
        }
        waits
    }

    /// Waits for what a parked request waits for, and asks for the slot to go on. None when its process died.
    async fn park(&mut self, id: RequestId, park: Park) -> Option<Turn<Step>> {
        self.shielded = park.shielded;
        self.enters(Stage::Park);
        let parked = Instant::now();
        let listed = self.exchange.around.parked.list(&park.awaited);
        let gone = park.gone.cancelled();
        let event = match park.awaited {
            Awaited::Plan(plan) => self.plan(plan, gone).await,
            Awaited::Body => self.receive(gone).await,
            Awaited::Local(wait) => self.local(id, wait, gone).await,
            // A worker that dies has said what the client is to get.
            Awaited::Relay(relay) => Event::Relayed(self.relay(*relay).await),
        };
        drop(listed);
        self.exchange.around.metrics.park(parked.elapsed());
        self.enters(Stage::Resume);
        match event {
            Event::Results(outcomes) => {
                let mut bytes = outcomes.iter().map(weight).sum();
                let work = match park.then {
                    None => Work::Resume(outcomes),
                    Some(continuation) => {
                        bytes += continuation.retained();
                        Work::Continue(Box::new(Continue {
                            continuation: *continuation,
                            results: Results::Outcomes(outcomes),
                            times: self.times(),
                            late: false,
                        }))
                    }
                };
                let job = self.job(work, park.answer);
                Some(self.exchange.around.slots.resume(id, job, bytes))
            }
            Event::Body(Ok(body)) => {
                let bytes = body.retained();
                let job = self.job(Work::Body(body), park.answer);
                Some(self.exchange.around.slots.resume(id, job, bytes))
            }
            Event::Relayed(Some(captured)) => {
                let bytes = captured.body.len() as u64;
                let job = self.job(Work::Relayed(captured), None);
                Some(self.exchange.around.slots.resume(id, job, bytes))
            }
            Event::Asked(_) => {
                let job = self.job(Work::Wanted, park.answer);
                Some(self.exchange.around.slots.resume(id, job, 0))
            }
            Event::Left | Event::Expired | Event::Body(Err(_)) if park.then.is_none() => {
                Some(self.end(id, park.answer))
            }
            // Its process is gone, or never knew of it.
            _ => {
                self.exchange.around.slots.forget(id);
                None
            }
        }
    }

    /// Runs the plan of a request that waits in place.
    async fn hold(&mut self, mut hold: Hold) -> Turn<Step> {
        self.shielded = hold.shielded;
        let _waiting = self.exchange.around.waits.begin(hold.reason, hold.source);
        let record = Arc::clone(&self.about.record);
        record.tell(|spans| spans.holds(hold.reason.as_str(), Instant::now()));
        let event = match hold.awaited {
            Awaited::Plan(plan) => self.plan(plan, hold.held.gone()).await,
            Awaited::Body => self.receive(hold.held.gone()).await,
            Awaited::Local(_) | Awaited::Relay(_) => unreachable!("no slot is held for these"),
        };
        record.tell(|spans| spans.goes_on(Instant::now()));
        match event {
            Event::Results(outcomes) => hold.held.release(Release::Results(outcomes)),
            Event::Body(Ok(body)) => hold.held.release(Release::Body(body)),
            // The turn of a worker that is gone says so.
            _ => hold.held.release(Release::Cancel),
        }
    }

    /// Runs a plan, until it is done or there is no more sense in it.
    async fn plan(&mut self, mut plan: Plan, worker_gone: impl Future<Output = ()>) -> Event {
        if self.is_moot_already() {
            return Event::Left;
        }
        if let Some(marker) = self.about.record.marker() {
            plan.mark(&marker);
        }
        let outbound = self.exchange.around.outbound.clone();
        let run = outbound.run(plan, self.bound().ends().into());
        tokio::pin!(run, worker_gone);
        loop {
            let event = tokio::select! {
                biased;
                () = &mut worker_gone => Event::WorkerGone,
                outcomes = &mut run => Event::Results(outcomes),
                () = gone(&self.client, self.reader.as_ref()), if !self.left => Event::Left,
                () = self.alarm.rang(), if !self.expired => Event::Expired,
            };
            match event {
                Event::Expired => self.expire(),
                Event::Left => {}
                // At the deadline a plan ends by itself, a moment before the alarm rings.
                Event::Results(_)
                    if self.reader.is_none()
                        && !self.expired
                        && Instant::now() >= self.deadline =>
                {
                    self.expire();
                    return if self.is_moot() { Event::Left } else { event };
                }
                _ => return event,
            }
            if self.is_moot() {
                // Dropping the run aborts its safe fetches.
                return Event::Left;
            }
        }
    }

    /// The deadline has passed.
    fn expire(&mut self) {
        self.expired = true;
        if self.is_at_server() {
            self.alarm.set(self.deadline + self.timeout);
        }
        if let Some(id) = self.id {
            self.exchange.around.slots.overdue(id);
        }
    }

    /// Takes the request's body from its client. Without it the request cannot go on, whatever its method.
    ///
    /// The request's clock stands still meanwhile: how long this takes is up to the client, and bounded by
    /// how slow a client may be.
    async fn receive(&mut self, worker_gone: impl Future<Output = ()>) -> Event {
        let body = match std::mem::replace(&mut self.body, Lazy::Not) {
            Lazy::With(body) if !self.left => body,
            Lazy::With(_) | Lazy::Gone => return Event::Left,
            Lazy::Not => unreachable!("the slot lets a request ask for what there is, once"),
        };
        self.alarm.clear();
        let begun = Instant::now();
        let event = tokio::select! {
            biased; // A client that left may seem to have sent all that there is.
            () = worker_gone => Event::WorkerGone,
            () = gone(&self.client, None) => Event::Left,
            body = body.take() => Event::Body(body),
        };
        self.deadline += begun.elapsed();
        self.alarm.set(self.deadline);
        match event {
            Event::Left => self.leave(CancelPhase::Parked),
            Event::Body(Err(no)) => {
                self.left = true;
                self.client.answer(Err(Failure::Body(no)));
            }
            _ => {}
        }
        event
    }

    /// How long the next wait may take.
    fn bound(&self) -> Bound {
        match self.reader {
            Some(_) => Bound::Each(self.timeout),
            None => Bound::Deadline(self.deadline),
        }
    }

    /// True if nobody waited any more before the wait began.
    fn is_moot_already(&mut self) -> bool {
        let left = self.left
            || gone(&self.client, self.reader.as_ref())
                .now_or_never()
                .is_some();
        left && self.is_moot()
    }

    /// Nobody waits any more for what a request waits for. True if the request need not either.
    fn is_moot(&mut self) -> bool {
        if !self.left {
            self.leave(CancelPhase::Parked);
        }
        self.cancellable()
    }

    /// The request is unwound on a slot, its results unwanted.
    fn end(&mut self, id: RequestId, answer: Option<AnswerWriter>) -> Turn<Step> {
        let job = self.job(Work::End, answer);
        self.exchange.around.slots.end(id, job)
    }

    /// Nobody waits any more. If it is the deadline that says so, the client is told; who has the head of the
    /// answer is told by what becomes of its body.
    fn leave(&mut self, phase: CancelPhase) {
        self.left = true;
        self.drop_body();
        if self.reader.is_some() {
            self.rests_on_its_reader();
            return;
        }
        if self.client.left() {
            self.exchange.around.metrics.cancelled(phase);
        } else {
            self.client.answer(Err(Failure::Deadline));
        }
    }

    /// An answer that is read may take its time. Once nobody does, the worker is told to end it, and gets the
    /// time of a request for that.
    fn rests_on_its_reader(&mut self) {
        match self.left {
            true => self.alarm.set(Instant::now() + self.timeout),
            false => self.alarm.clear(),
        }
    }

    /// The body stays with its client, whose connection would wait for it to be taken.
    fn drop_body(&mut self) {
        if matches!(self.body, Lazy::With(_)) {
            self.body = Lazy::Gone;
        }
    }

    fn cancellable(&self) -> bool {
        !self.finishes && !self.shielded
    }

    fn times(&self) -> Times {
        Times {
            deadline: self.deadline,
            timeout: self.timeout,
        }
    }

    /// Its server has nothing of it between two jobs: there is nothing to unwind, and nothing that says how
    /// long it is away.
    fn is_at_server(&self) -> bool {
        self.exchange.around.upstream.is_some()
    }

    fn enters(&self, stage: Stage) {
        self.about.record.enters(stage);
    }

    fn job(&mut self, work: Work, answer: Option<AnswerWriter>) -> Job {
        let epoch = self.epoch;
        self.epoch += 1;
        Job {
            epoch,
            about: self.about.clone(),
            work,
            answer,
            lazy: !matches!(self.body, Lazy::Not),
        }
    }
}

/// What becomes of a waiting or running job that nobody waits for.
enum Leaving {
    /// It runs, or will: on to its end.
    Stays,
    /// No application code has seen it.
    Withdrawn,
    /// It is unwound instead of resumed.
    Ends(Turn<Step>),
}

/// Resolves when the client has left: before she had the head of an answer, or while she read its body.
async fn gone(client: &Client, reader: Option<&AnswerWatch>) {
    if let Some(reader) = reader {
        return reader.abandoned().await;
    }
    // Whoever makes it leave also polls anew, so no wake-up is needed.
    poll_fn(|_| {
        if client.left() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// What results take of the gateway's memory until their request resumes.
fn weight(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Response(response) => response.body.len() as u64,
        Outcome::Gathered(outcomes) => outcomes.iter().map(weight).sum(),
        _ => 0,
    }
}

/// What a request takes of the gateway's memory while it is admitted.
fn retained(request: &Request) -> u64 {
    let headers: usize = request
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let body = match &request.body {
        RequestBody::Here(body) => body.retained(),
        RequestBody::Later(_) => 0,
    };
    (request.target.len() + headers) as u64 + body
}
