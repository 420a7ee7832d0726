//! One slot: a task that pulls jobs, has its worker run them, and reports the steps.
//!
//! The slot belongs to this task alone. A request that loses interest only drops its end of the
//! reply; the worker's frames are read to the end of the step all the same, and the slot is free
//! when the worker says so, never earlier.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::channel::{Broken, Channel};
use super::wire::{Frame, Header, Kind, MAX_CHUNK, MAX_HEAD, flag};
use super::{answer, environ};
use crate::message::{Answer, AnswerBody, Request, RequestBody};
use crate::metrics::{Metrics, WaitInPlace};
use crate::plan::{self, Captured, FailureKind, Outcome, Phase};
use crate::slots::{Closing, Port, Taken, Turn, Turned};
use crate::spool::{self, AnswerWriter, Body, FilePart, Spool, SpoolFile, Upload};
use crate::workers::local::{Locals, ParkId};
use crate::workers::{
    Activity, Awaited, Board, Doing, Held, Hold, Job, Meanwhile, Park, Process, Release, Step,
    Waits, Work,
};

/// How soon a slot that could not be retired is asked again.
const AGAIN: Duration = Duration::from_millis(50);

type Reply = oneshot::Sender<Turned<Step>>;

/// How a job left its slot, which is ready again.
enum Left {
    Done,
    Parked(Parked),
}

/// To be reported after the scheduler knows that the request is parked.
struct Parked {
    reply: Reply,
    park: Park,
    /// Bytes that it retains.
    retained: u64,
    pinned: bool,
}

/// What a slot's task waits for while the slot is idle.
enum Event {
    Job(Option<Taken<Job, Step>>),
    Frame(Result<Frame, Broken>),
    Retire,
}

pub struct SlotTask<'a> {
    pub channel: &'a mut Channel,
    pub port: Port<Job, Step>,
    pub process: Arc<Process>,
    pub spool: Spool,
    pub metrics: Metrics,
    pub waits: Waits,
    pub board: Arc<Board>,
    pub locals: Arc<Locals>,
}

impl SlotTask<'_> {
    /// Drives the slot until it is retired or its worker breaks.
    pub async fn run(mut self, retire: tokio_util::sync::CancellationToken) {
        match self.serve(&retire).await {
            Ok(()) => tracing::debug!(slot = self.port.slot().0, "slot retired"),
            Err(_) if self.process.gone.is_cancelled() => {}
            Err(Broken::Closed | Broken::Unsent) => {
                tracing::debug!(slot = self.port.slot().0, "worker closed its slot")
            }
            Err(broken) => tracing::error!(
                slot = self.port.slot().0, pid = self.process.pid, %broken, "worker refused"
            ),
        }
    }

    async fn serve(&mut self, retire: &tokio_util::sync::CancellationToken) -> Result<(), Broken> {
        let mut waiting = None;
        // Not while parked requests need it. It is asked again after every job, and from time to time.
        let mut retirable = true;
        loop {
            let taken = match waiting.take() {
                Some(taken) => taken,
                None => match self.idle(retire, retirable).await {
                    Event::Job(Some(taken)) => taken,
                    Event::Job(None) | Event::Frame(Err(Broken::Closed)) => {
                        return Err(Broken::Closed);
                    }
                    Event::Frame(Ok(frame)) => return Err(Broken::Unexpected(frame.header)),
                    Event::Frame(Err(broken)) => return Err(broken),
                    // A job that came in the same moment goes first: it belongs to this slot.
                    Event::Retire => match self.port.close() {
                        Closing::Taken(taken) => taken,
                        Closing::Needed => {
                            retirable = false;
                            continue;
                        }
                        Closing::Closed => return self.retire().await,
                    },
                },
            };
            retirable = true;
            let gone = self.process.gone.clone();
            let begun = Instant::now();
            let slot = self.port.slot();
            self.board.set(
                slot,
                Some(Activity {
                    request: taken.job.of(taken.request),
                    about: taken.job.about.clone(),
                    since: begun,
                    doing: (&taken.job.work).into(),
                }),
            );
            let traced = taken.job.about.record.if_traced();
            let request = taken.request;
            let calls = matches!(taken.job.work, Work::Run(_));
            // Calls do not park, and their time is not that of their request.
            if !calls {
                let record = &taken.job.about.record;
                record.runs(slot, self.process.pid, begun);
                let park = ParkId {
                    process: self.process.id,
                    request: taken.request.number(),
                    epoch: taken.job.epoch,
                };
                self.locals.begins(slot, park);
            }
            let left = tokio::select! {
                biased; // The usual end first; a process that is gone ends the rest.
                left = self.step(taken) => left,
                () = gone.cancelled() => Err(Broken::Closed),
            };
            // Also of a step that was killed; a job that never reached the worker was none.
            if !matches!(left, Err(Broken::Unsent)) {
                self.metrics.slot_busy(begun.elapsed());
            }
            let left = left?;
            self.board.set(slot, None);
            self.locals.ends(slot);
            if let Some(record) = traced {
                let (at, pid) = (Instant::now(), self.process.pid);
                record.tell(|spans| match calls {
                    true => spans.called(slot, pid, begun, at),
                    false => spans.leaves(at),
                });
            }
            waiting = match left {
                Left::Done => self.port.done(),
                Left::Parked(parked) => {
                    let next = self.port.parked(parked.retained, parked.pinned);
                    let step = Step::Park(parked.park);
                    if let Err(Ok(Step::Park(_))) = parked.reply.send(Ok(step)) {
                        tracing::debug!("parked a request that nobody owns");
                        self.port.forget(request);
                    }
                    next
                }
            };
        }
    }

    async fn idle(
        &mut self,
        retire: &tokio_util::sync::CancellationToken,
        retirable: bool,
    ) -> Event {
        tokio::select! {
            job = self.port.next() => Event::Job(job),
            frame = self.channel.frame() => Event::Frame(frame),
            () = self.process.gone.cancelled() => Event::Frame(Err(Broken::Closed)),
            () = retire.cancelled(), if retirable => Event::Retire,
            () = tokio::time::sleep(AGAIN), if !retirable => Event::Retire,
        }
    }

    /// The worker closes what the slot's thread holds, and says so.
    async fn retire(&mut self) -> Result<(), Broken> {
        let header = Header::bare(Kind::Retire, self.port.slot().0);
        self.channel.send(header, |_, _| {}, &[]).await?;
        let header = self.channel.frame().await?.header;
        if header.kind == Kind::Retired {
            Ok(())
        } else {
            Err(Broken::Unexpected(header))
        }
    }

    /// Has the worker run one job, until its slot is ready again.
    async fn step(&mut self, taken: Taken<Job, Step>) -> Result<Left, Broken> {
        let tag = Tag {
            request: taken.job.of(taken.request).number(),
            epoch: taken.job.epoch,
        };
        if let Work::Begin(request, _) = &taken.job.work {
            match self.send_request(tag, request).await {
                Ok(()) => self.process.begun.fetch_add(1, Relaxed),
                Err(Broken::Unsent) => {
                    self.port.put_back(taken);
                    return Err(Broken::Unsent);
                }
                Err(broken) => return Err(broken),
            };
        }
        let Taken { job, mut reply, .. } = taken;
        let Job {
            mut work,
            answer,
            mut lazy,
            ..
        } = job;
        let (runs, ends) = (matches!(work, Work::Run(_)), matches!(work, Work::End));
        // Kept until the call's step is over: then its request may have another one.
        let _place = match &mut work {
            Work::Run(call) => call.place.take(),
            _ => None,
        };
        self.hand_over(tag, work).await?;
        if let Some(writer) = answer {
            return self.stream(tag, writer, reply, ends).await;
        }
        // Dropped when its turn in the loop is over: with the job's next frame.
        let mut _waiting = None;
        loop {
            let frame = self.channel.frame().await?;
            let header = frame.header;
            _waiting = None;
            if !tag.is_of(header) {
                return Err(Broken::Unexpected(header));
            }
            if header.has(flag::LAZY) && !std::mem::take(&mut lazy) {
                let what = "it asks for a body that it has, or that there is none of";
                return Err(Broken::content(what));
            }
            match header.kind {
                Kind::Ready => {
                    let _ = reply.send(Ok(Step::Ended));
                    return Ok(Left::Done);
                }
                Kind::Hold => (reply, _waiting) = self.hold(tag, frame, reply, false).await?,
                // A call answers nobody, and its request is parked already.
                _ if runs => return Err(Broken::Unexpected(header)),
                Kind::Answer => {
                    let Frame { head, body, .. } = frame;
                    let (status, reason, headers) =
                        answer::decode(header.aux, &head).map_err(Broken::content)?;
                    if header.has(flag::FD) && header.has(flag::MORE) {
                        return Err(Broken::content("an answer both in a file and in parts"));
                    }
                    if header.has(flag::MORE) {
                        let (mut writer, reader) = spool::answer(&self.spool);
                        // A new pipe has room, and its reader is in our hands.
                        let _ = writer.push(body).await;
                        let body = AnswerBody::Spooled(reader);
                        let answer = Answer {
                            status,
                            reason,
                            headers,
                            body,
                        };
                        let (next, turn) = Turn::pending();
                        // A request that lost its client drops the answer, and with it the pipe's reader.
                        let _ = reply.send(Ok(Step::Answer(answer, Some(turn))));
                        return self.stream(tag, writer, next, false).await;
                    } else {
                        let body = if header.has(flag::FD) {
                            self.file_part(&body).await?
                        } else {
                            AnswerBody::Whole(self.spool.held(body))
                        };
                        let answer = Answer {
                            status,
                            reason,
                            headers,
                            body,
                        };
                        if self.comes_ready(tag, header).await? {
                            let _ = reply.send(Ok(Step::Answer(answer, None)));
                        } else {
                            let (next, turn) = Turn::pending();
                            let _ = reply.send(Ok(Step::Answer(answer, Some(turn))));
                            self.rest(tag, next, false).await?;
                        }
                    }
                    return Ok(Left::Done);
                }
                Kind::Park => {
                    let Frame { head, body, .. } = frame;
                    let parked = self.parked(header, &head, &body, reply, None)?;
                    return Ok(Left::Parked(parked));
                }
                Kind::Relay => {
                    let Frame { head, body, .. } = frame;
                    let relay = plan::decode_relay(&head, &body).map_err(Broken::content)?;
                    if !header.has(flag::READY) {
                        // Nobody is answered before the slot is ready, and then by the relay.
                        reply = self.rest(tag, reply, false).await?;
                    }
                    let park = Park {
                        awaited: Awaited::Relay(Box::new(relay)),
                        shielded: false,
                        gone: self.process.gone.clone(),
                        answer: None,
                        then: None,
                    };
                    return Ok(Left::Parked(Parked {
                        reply,
                        park,
                        retained: head.len() as u64 + body.len() as u64,
                        pinned: false,
                    }));
                }
                _ => return Err(Broken::Unexpected(header)),
            }
        }
    }

    /// What a `PARK` says.
    fn parked(
        &self,
        header: Header,
        head: &Bytes,
        body: &Bytes,
        reply: Reply,
        answer: Option<AnswerWriter>,
    ) -> Result<Parked, Broken> {
        let awaited = if header.has(flag::LAZY) {
            if header.has(flag::LOCAL) || !head.is_empty() || !body.is_empty() {
                return Err(Broken::content("a wait for more than the body"));
            }
            Awaited::Body
        } else if header.has(flag::LOCAL) {
            if !head.is_empty() || !body.is_empty() {
                return Err(Broken::content("a local wait with a plan"));
            }
            let wait = self.locals.parks(self.port.slot());
            Awaited::Local(wait.ok_or(Broken::Unexpected(header))?)
        } else {
            Awaited::Plan(plan::decode(head, body).map_err(Broken::content)?)
        };
        let park = Park {
            awaited,
            shielded: header.has(flag::SHIELDED),
            gone: self.process.gone.clone(),
            answer,
            then: None,
        };
        Ok(Parked {
            reply,
            park,
            retained: head.len() as u64 + body.len() as u64,
            pinned: header.has(flag::PINNED),
        })
    }

    /// What a `HOLD` says that asks for nothing.
    fn waits(&self, head: &[u8]) -> Result<(WaitInPlace, Meanwhile), Broken> {
        let plan::Hold { reason, source } = plan::decode_hold(head).map_err(Broken::content)?;
        let shown = self.meanwhile(Doing::WaitInPlace);
        Ok((self.waits.begin(reason, source), shown))
    }

    /// What the board shows of this slot until that is dropped.
    fn meanwhile(&self, doing: Doing) -> Meanwhile {
        self.board.meanwhile(self.port.slot(), doing)
    }

    /// The body of an answer that is a part of a file.
    async fn file_part(&mut self, place: &[u8]) -> Result<AnswerBody, Broken> {
        let (offset, len) = answer::place(place).map_err(Broken::content)?;
        let part = FilePart::new(self.channel.file(), offset, len).await;
        Ok(part.map_or_else(AnswerBody::Unreadable, AnswerBody::File))
    }

    async fn hand_over(&mut self, tag: Tag, work: Work) -> Result<(), Broken> {
        match work {
            Work::Run(call) => {
                let header = Header {
                    aux: call.number,
                    ..tag.header(Kind::Run)
                };
                self.channel.send(header, |_, _| {}, &[]).await
            }
            // Sent already, so that it can be given to another worker if this one has nothing of it.
            Work::Begin(..) => Ok(()),
            Work::Continue(_) => unreachable!("a worker knows the requests that it has parked"),
            Work::Resume(outcomes) => self.send_results(tag.header(Kind::Resume), outcomes).await,
            Work::Body(body) => self.send_body(tag.header(Kind::Resume), &body).await,
            Work::Relayed(captured) => self.send_captured(tag.header(Kind::Resume), captured).await,
            Work::Wanted => {
                self.channel
                    .send(tag.header(Kind::Resume), |_, _| {}, &[])
                    .await
            }
            Work::End => {
                self.channel
                    .send(tag.header(Kind::Cancel), |_, _| {}, &[])
                    .await
            }
        }
    }

    async fn send_request(&mut self, tag: Tag, request: &Request) -> Result<(), Broken> {
        let mut header = tag.header(Kind::Request);
        let head = |header: &mut Header, out: &mut _| header.aux = environ::encode(request, out);
        match &request.body {
            RequestBody::Here(Body::Memory(body)) => self.channel.send(header, head, body).await,
            RequestBody::Here(Body::File(file)) => {
                header.flags = flag::FD;
                self.channel.send_with_file(header, head, &file.file).await
            }
            RequestBody::Later(_) => {
                header.flags = flag::LAZY;
                self.channel.send(header, head, &[]).await
            }
        }
    }

    /// The body of a request, after its head. What stays in memory is small enough for a frame.
    async fn send_body(&mut self, mut header: Header, body: &Body) -> Result<(), Broken> {
        match body {
            Body::Memory(body) => self.channel.send(header, |_, _| {}, body).await,
            Body::File(file) => {
                header.flags = flag::FD;
                self.channel
                    .send_with_file(header, |_, _| {}, &file.file)
                    .await
            }
        }
    }

    async fn send_results(&mut self, header: Header, outcomes: Vec<Outcome>) -> Result<(), Broken> {
        let (json, bodies, len) = plan::encode(&outcomes);
        let failure = if json.len() > MAX_HEAD {
            (FailureKind::TooLarge, Phase::Head, "too large together")
        } else {
            match self.send_parts(header, &json, bodies, len).await? {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "results lost: the spool folder takes no more");
                    (FailureKind::Failed, Phase::Body, "no room for them")
                }
            }
        };
        // The application can deal with that; its worker need not die of it.
        let (kind, phase, why) = failure;
        let message = format!("the gateway cannot hand over the responses of this plan: {why}");
        let failed = |outcome: Outcome| outcome.without_response(kind, phase, &message);
        let outcomes: Vec<_> = outcomes.into_iter().map(failed).collect();
        let (json, _, _) = plan::encode(&outcomes);
        self.send_json(header, &json, &[]).await
    }

    async fn send_captured(&mut self, header: Header, captured: Captured) -> Result<(), Broken> {
        let json = plan::encode_captured(&captured);
        let len = captured.body.len() as u64;
        let bodies = vec![captured.body.clone()];
        if let Err(error) = self.send_parts(header, &json, bodies, len).await? {
            tracing::error!(%error, "capture lost: the spool folder takes no more");
            let without = Captured {
                body: Bytes::new(),
                truncated: true,
                ..captured
            };
            let json = plan::encode_captured(&without);
            return self.send_json(header, &json, &[]).await;
        }
        Ok(())
    }

    /// Bodies in the frame, or in a file when they are too long for that together. Nothing has been sent if
    /// there is no room for the file.
    async fn send_parts(
        &mut self,
        header: Header,
        json: &[u8],
        bodies: Vec<Bytes>,
        len: u64,
    ) -> Result<std::io::Result<()>, Broken> {
        if len <= MAX_CHUNK as u64 {
            return self.send_json(header, json, &bodies.concat()).await.map(Ok);
        }
        let file = match self.spooled(bodies).await {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        let header = Header {
            flags: flag::FD,
            ..header
        };
        let head = |_: &mut Header, out: &mut BytesMut| out.extend_from_slice(json);
        let sent = self.channel.send_with_file(header, head, &file.file).await;
        sent.map(Ok)
    }

    async fn send_json(&mut self, header: Header, json: &[u8], body: &[u8]) -> Result<(), Broken> {
        let head = |_: &mut Header, out: &mut BytesMut| out.extend_from_slice(json);
        self.channel.send(header, head, body).await
    }

    /// The bodies, one after the other, in a file.
    async fn spooled(&self, bodies: Vec<Bytes>) -> std::io::Result<Arc<SpoolFile>> {
        let mut upload = Upload::new(&self.spool);
        for body in bodies {
            upload.push(body).await?;
        }
        match upload.finish().await? {
            Body::File(file) => Ok(file),
            Body::Memory(_) => {
                unreachable!("results past the bound of a frame are past the bound of memory")
            }
        }
    }

    /// The worker waits in place. Whose answer was `stopped`, since nobody reads it, waits in vain, unless
    /// it is shielded.
    async fn hold(
        &mut self,
        tag: Tag,
        frame: Frame,
        reply: Reply,
        stopped: bool,
    ) -> Result<(Reply, Option<(WaitInPlace, Meanwhile)>), Broken> {
        let Frame { header, head, body } = frame;
        if header.has(flag::LOCAL) {
            return Ok((reply, Some(self.waits(&head)?)));
        }
        if stopped && !header.has(flag::SHIELDED) {
            self.channel
                .send(tag.header(Kind::Cancel), |_, _| {}, &[])
                .await?;
            return Ok((reply, None));
        }
        let reply = self.wait(tag, header, &head, &body, reply).await?;
        Ok((reply, None))
    }

    /// The request's side runs the plan, or takes the body, and the reply goes back.
    async fn wait(
        &mut self,
        tag: Tag,
        header: Header,
        head: &Bytes,
        body: &Bytes,
        reply: Reply,
    ) -> Result<Reply, Broken> {
        let (awaited, why) = if header.has(flag::LAZY) {
            let why = plan::decode_hold(head).map_err(Broken::content)?;
            (Awaited::Body, Some(why))
        } else {
            let mut plan = plan::decode(head, body).map_err(Broken::content)?;
            let why = plan.hold.take();
            (Awaited::Plan(plan), why)
        };
        let Some(plan::Hold { reason, source }) = why else {
            return Err(Broken::content("a HOLD frame that does not say why"));
        };
        let _shown = self.meanwhile(Doing::WaitInPlace);
        let (release, released) = oneshot::channel();
        let shielded = header.has(flag::SHIELDED);
        let hold = Hold {
            awaited,
            shielded,
            reason,
            source,
            held: Held(release),
        };
        // Nobody owns the request any more: its worker unwinds.
        let _ = reply.send(Ok(Step::Hold(hold)));
        let released = released.await.ok();
        let (release, reply) = released.unwrap_or_else(|| (Release::Cancel, oneshot::channel().0));
        match release {
            Release::Results(outcomes) => {
                self.send_results(tag.header(Kind::Results), outcomes)
                    .await?
            }
            Release::Body(body) => self.send_body(tag.header(Kind::Results), &body).await?,
            Release::Cancel => {
                self.channel
                    .send(tag.header(Kind::Cancel), |_, _| {}, &[])
                    .await?
            }
        }
        Ok(reply)
    }

    /// Takes the rest of a body at the worker's speed, until the slot is ready. A request that `ends` has
    /// been told already that nobody reads.
    async fn stream(
        &mut self,
        tag: Tag,
        mut writer: AnswerWriter,
        mut reply: Reply,
        ends: bool,
    ) -> Result<Left, Broken> {
        let _shown = (!ends).then(|| self.meanwhile(Doing::Answer));
        let mut stopped = ends;
        let mut _waiting = None;
        loop {
            let frame = tokio::select! {
                frame = self.channel.frame() => frame?,
                () = writer.gone(), if !stopped => {
                    self.channel.send(tag.header(Kind::Stop), |_, _| {}, &[]).await?;
                    stopped = true;
                    continue;
                }
            };
            let header = frame.header;
            _waiting = None;
            if !tag.is_of(header) {
                return Err(Broken::Unexpected(header));
            }
            if header.has(flag::LAZY) {
                // The client has an answer: what it still sends is not read.
                return Err(Broken::Unexpected(header));
            }
            match header.kind {
                Kind::Body => {
                    // Once nobody reads, the rest falls to the floor.
                    let _ = writer.push(frame.body).await;
                    if header.has(flag::MORE) {
                        continue;
                    }
                    match header.has(flag::BROKEN) {
                        true => drop(writer),
                        false => writer.finish(),
                    }
                    if !self.comes_ready(tag, header).await? {
                        let (next, turn) = Turn::pending();
                        let _ = reply.send(Ok(Step::Answered(turn)));
                        self.rest(tag, next, stopped).await?;
                    }
                    return Ok(Left::Done);
                }
                Kind::Park => {
                    let Frame { head, body, .. } = frame;
                    let parked = self.parked(header, &head, &body, reply, Some(writer))?;
                    return Ok(Left::Parked(parked));
                }
                Kind::Ready if ends => return Ok(Left::Done),
                Kind::Hold => (reply, _waiting) = self.hold(tag, frame, reply, stopped).await?,
                _ => return Err(Broken::Unexpected(header)),
            }
        }
    }

    /// Whether the slot is ready with the last frame of an answer, by its flag or by a READY that has come with
    /// it. Then nothing is left to do, and the request's side need not wait for it.
    async fn comes_ready(&mut self, tag: Tag, last: Header) -> Result<bool, Broken> {
        if last.has(flag::READY) {
            return Ok(true);
        }
        let next = self.channel.next_header();
        if !next.is_some_and(|next| next.kind == Kind::Ready && tag.is_of(next)) {
            return Ok(false);
        }
        self.channel.frame().await?;
        Ok(true)
    }

    /// What the application does after the last byte of its answer, until the slot is ready: it may wait in
    /// place. When the answer was `stopped`, nobody wants that.
    async fn rest(&mut self, tag: Tag, mut reply: Reply, stopped: bool) -> Result<Reply, Broken> {
        let mut _waiting = None;
        loop {
            let frame = self.channel.frame().await?;
            let header = frame.header;
            _waiting = None;
            match header.kind {
                Kind::Ready if tag.is_of(header) => return Ok(reply),
                // The body that the client may still send is for nobody.
                Kind::Hold if tag.is_of(header) && !header.has(flag::LAZY) => {
                    (reply, _waiting) = self.hold(tag, frame, reply, stopped).await?;
                }
                _ => return Err(Broken::Unexpected(header)),
            }
        }
    }
}

/// What ties a frame to its job.
#[derive(Clone, Copy)]
struct Tag {
    request: u64,
    epoch: u32,
}

impl Tag {
    fn is_of(self, header: Header) -> bool {
        (self.request, self.epoch) == (header.request, header.epoch)
    }

    fn header(self, kind: Kind) -> Header {
        Header {
            request: self.request,
            epoch: self.epoch,
            ..Header::bare(kind, 0)
        }
    }
}
