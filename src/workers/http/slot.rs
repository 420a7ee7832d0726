//! One slot of an upstream: a task that pulls jobs and has the server answer them, one at a time.
//!
//! The slot belongs to this task alone. A request whose client leaves is answered all the same, unless her
//! leaving makes the rest of its body pointless; one whose time is over keeps its slot, counted as lost,
//! until the server answers or a grace is over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::sync::{oneshot, watch};

use super::body::{Framing, Piece};
use super::connection::{self, Connection, Reader, Refused, Writer};
use super::head::{self, Head};
use super::keeping::After;
use super::plans::{self, Continuation, Digest, Digesting, Signer};
use super::{Health, PROCESS, Shared, Terms};
use crate::layers::Resumed;
use crate::message::{Answer, AnswerBody, Request, RequestBody};
use crate::plan::http::{MAX_PLAN, Resume};
use crate::plan::{FailureKind, Outcome, Phase, Plan};
use crate::record::Stage;
use crate::slots::{Closing, Port, SlotId, Taken, Turned};
use crate::spool::{self, Body, FilePart, Upload};
use crate::sweeper::Alarm;
use crate::tunnel::tunnel;
use crate::workers::{About, Activity, Awaited, Continue, Job, Park, Results, Step, Times, Work};

/// Bodies up to this size are passed on whole, if they come without delay. One whose length is known is given
/// some time to do so.
const WHOLE: usize = 64 * 1024;

const PATIENCE: Duration = Duration::from_millis(20);

/// After a connection was refused for want of room there or here.
const BREATHER: Duration = Duration::from_millis(10);

/// An upload that fits here goes out with its head in one piece.
const WITH_HEAD: usize = 4 * 1024;

type Reply = oneshot::Sender<Turned<Step>>;

pub struct SlotTask {
    slot: SlotId,
    upstream: Arc<Shared>,
    health: watch::Receiver<Health>,
    alarm: Alarm,
    connection: Option<Connection>,
}

/// Why a slot is not served any more.
enum Parted {
    /// The server does not accept.
    Down,
    /// It does not accept just now.
    Busy,
    Stopped,
}

/// What became of a job and the connection that it was sent on.
enum Sent {
    /// Answered; the connection can be used again.
    Kept,
    /// The connection is of no more use. Whoever waits has been told.
    Spent,
    /// Answered with a plan.
    Planned(Box<Planned>),
    /// Not a byte of the request was taken by the connection.
    Unsent,
    /// The server speaks another protocol from here on.
    Switched(Box<Head>),
}

/// A plan that has come whole, and whether the connection that it came on can be used again.
struct Planned {
    plan: Plan,
    resume: Resume,
    /// Whose token it had.
    signer: Arc<Signer>,
    /// Bytes of the plan.
    len: u64,
    keeps: bool,
}

/// How the request leaves the slot.
enum Left {
    /// Whoever waits has been told.
    Done,
    Parked {
        reply: Reply,
        park: Box<Park>,
        retained: u64,
    },
}

/// What an idle slot is woken for.
enum Event {
    Job(Option<Taken<Job, Step>>),
    /// The server is down, or this is the end.
    Health,
    Spoilt,
}

impl SlotTask {
    pub fn new(slot: SlotId, upstream: Arc<Shared>) -> Self {
        Self {
            slot,
            health: upstream.health.subscribe(),
            alarm: upstream.parts.sweeper.alarm(),
            upstream,
            connection: None,
        }
    }

    /// Serves whenever the server accepts, until the upstream is stopped.
    pub async fn run(mut self) {
        loop {
            let health = self.health.wait_for(|health| *health != Health::Down).await;
            if health.is_ok_and(|health| *health == Health::Stopped) {
                return;
            }
            let port = self.upstream.slots.open(self.slot, PROCESS);
            match self.serve(port).await {
                Parted::Stopped => return,
                Parted::Down => self.upstream.down(),
                Parted::Busy => tokio::time::sleep(BREATHER).await,
            }
            self.connection = None;
        }
    }

    async fn serve(&mut self, mut port: Port<Job, Step>) -> Parted {
        let mut waiting = None;
        loop {
            let taken = match waiting.take() {
                Some(taken) => taken,
                None => match self.idle(&mut port).await {
                    Event::Job(Some(taken)) => taken,
                    Event::Job(None) => return Parted::Stopped,
                    Event::Spoilt => {
                        self.connection = None;
                        continue;
                    }
                    Event::Health => {
                        let parted = match *self.health.borrow_and_update() {
                            Health::Up => continue,
                            Health::Down => Parted::Down,
                            Health::Stopped => Parted::Stopped,
                        };
                        // A job that came in the same moment goes back to where it waited.
                        if let Closing::Taken(taken) = port.close() {
                            port.put_back(taken);
                        }
                        return parted;
                    }
                },
            };
            let (request, begun) = (taken.request, Instant::now());
            // The process is the server's own affair.
            taken.job.about.record.runs(self.slot, 0, begun);
            self.upstream.board.set(
                self.slot,
                Some(Activity {
                    request: taken.request,
                    about: taken.job.about.clone(),
                    since: begun,
                    doing: (&taken.job.work).into(),
                }),
            );
            let traced = taken.job.about.record.if_traced();
            let answered = self.answer(taken).await;
            if let Some(record) = traced {
                record.tell(|spans| spans.leaves(Instant::now()));
            }
            self.upstream.board.set(self.slot, None);
            let left = match answered {
                Ok(left) => left,
                Err((taken, parted)) => {
                    if !is_over(&taken.job) {
                        taken.job.about.record.enters(stage_of_waiting(&taken.job));
                        port.put_back(taken);
                    }
                    return parted;
                }
            };
            if self.upstream.main {
                self.upstream.parts.metrics.slot_busy(begun.elapsed());
            }
            waiting = match left {
                Left::Done => port.done(),
                Left::Parked {
                    reply,
                    park,
                    retained,
                } => {
                    let next = port.parked(retained, false);
                    // A life waits for its step whatever becomes of its client, unless it has panicked.
                    if reply.send(Ok(Step::Park(*park))).is_err() {
                        port.forget(request);
                    }
                    next
                }
            };
        }
    }

    async fn idle(&mut self, port: &mut Port<Job, Step>) -> Event {
        let spoilt = async {
            match &mut self.connection {
                Some(connection) => connection.spoilt().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            taken = port.next() => Event::Job(taken),
            _ = self.health.changed() => Event::Health,
            () = spoilt => Event::Spoilt,
        }
    }

    /// Has one request answered, on a connection that can be trusted with it. A job comes back if there is
    /// none.
    async fn answer(
        &mut self,
        taken: Taken<Job, Step>,
    ) -> Result<Left, (Taken<Job, Step>, Parted)> {
        let Taken {
            request,
            mut job,
            reply,
            submitted,
        } = taken;
        if let Work::Continue(next) = &mut job.work
            && let Err(error) = self.write(next).await
        {
            let (server, request) = (&self.upstream.server, &job.about);
            tracing::error!(upstream = %server, %request, %error, "no room for a word of results: the request is given up");
            // Dropping the reply says that there is no answer.
            return Ok(Left::Done);
        }
        let mut reply = Some(reply);
        let parted = loop {
            let kept = self.connection.take();
            let kept = kept.filter(|it| it.is_good() && self.upstream.keeping.may_use_again());
            let mut connection = match kept {
                Some(connection) => connection,
                None => match Connection::open(&self.upstream.server).await {
                    Ok(connection) => connection,
                    Err(Refused::Busy) => break Parted::Busy,
                    Err(Refused::Down(_)) => break Parted::Down,
                },
            };
            match self.exchange(&mut connection, &job, &mut reply).await {
                Sent::Kept => {
                    self.rest(connection);
                    return Ok(Left::Done);
                }
                Sent::Spent => return Ok(Left::Done),
                Sent::Switched(head) => {
                    self.tunnel(connection, *head, reply).await;
                    return Ok(Left::Done);
                }
                Sent::Planned(planned) => {
                    if planned.keeps {
                        self.rest(connection);
                    }
                    return Ok(self.park(*planned, job, reply));
                }
                Sent::Unsent if connection.is_used() => {}
                // A server that closes what it has just accepted.
                Sent::Unsent => break Parted::Busy,
            }
        };
        let reply = reply.expect("who has seen nothing has told nobody");
        let taken = Taken {
            request,
            job,
            reply,
            submitted,
        };
        Err((taken, parted))
    }

    /// What becomes of a connection whose answer has ended.
    fn rest(&mut self, mut connection: Connection) {
        match self.upstream.keeping.after_answer(Instant::now()) {
            After::UseAgain => {
                connection.rests();
                self.connection = Some(connection);
            }
            // In a task of its own, which ends in a moment: the slot goes on.
            After::Watch => {
                tokio::spawn(Arc::clone(&self.upstream).watch(connection));
            }
            After::Close => {}
        }
    }

    /// Sends the request and reads its answer. The reply is taken when it is known what to say.
    async fn exchange(
        &self,
        connection: &mut Connection,
        job: &Job,
        reply: &mut Option<Reply>,
    ) -> Sent {
        let terms = self.upstream.terms().clone();
        let resumed;
        let (request, times) = match &job.work {
            Work::Begin(request, times) => (&**request, *times),
            Work::Continue(next) => {
                resumed = resuming(next, &terms);
                (&resumed, next.times)
            }
            _ => unreachable!("an HTTP server knows no other jobs"),
        };
        // One for each try: it is told to this connection alone.
        let asked = terms.plans.as_ref();
        let asked = asked.map(|signer| (signer, signer.token()));
        let begun = AtomicBool::new(false);
        let mut out = BytesMut::with_capacity(1024);
        head::encode(request, asked.map(|(_, token)| token), &mut out);
        let is_used = connection.is_used();
        let (reader, mut writer, buffer) = connection.split();
        let sending = send(&mut writer, out, request, &begun);
        tokio::pin!(sending);
        let mut wire = Wire {
            sending: Sending::UnderWay(sending),
            reader,
            buffer,
        };
        let read = self.head(request, times, &mut wire).await;
        let mut head = match read {
            Ok(head) => head,
            Err(NoHead::Closed) if !begun.load(Relaxed) => return Sent::Unsent,
            Err(why) => {
                if matches!(why, NoHead::Closed) && is_used {
                    self.upstream.keeping.failed();
                }
                self.fail(why, &job.about, reply.take());
                return Sent::Spent;
            }
        };
        let of_plan = asked.filter(|(signer, token)| plans::is_plan(signer, *token, &mut head));
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Sent::Switched(Box::new(head));
        }
        let keeps = head.keeps;
        if let Some((signer, _)) = of_plan {
            // Boxed: its size would be paid by every request.
            let reading = Box::pin(self.plan(head, request, times, &mut wire));
            return match reading.await {
                Ok((plan, resume, len)) => {
                    let sent = matches!(wire.sending, Sending::Sent);
                    Sent::Planned(Box::new(Planned {
                        plan,
                        resume,
                        signer: Arc::clone(signer),
                        len,
                        keeps: keeps && sent && wire.buffer.is_empty(),
                    }))
                }
                Err(why) => {
                    self.fail(why, &job.about, reply.take());
                    Sent::Spent
                }
            };
        }
        let whole = self
            .body(head, &job.about, times, reply.take(), &mut wire)
            .await;
        // An answer that came before all of its request was read leaves the rest on its way.
        let sent = matches!(wire.sending, Sending::Sent);
        match whole && keeps && sent && wire.buffer.is_empty() {
            true => Sent::Kept,
            false => Sent::Spent,
        }
    }

    /// Reads the head of the answer, until the request's time and a grace are over.
    async fn head<F: Future<Output = Result<(), NotSent>>>(
        &self,
        request: &Request,
        times: Times,
        wire: &mut Wire<'_, F>,
    ) -> Result<Head, NoHead> {
        self.in_time(times, wire.head(request)).await
    }

    /// What a server says before the client can be told anything, unless the request's time and a grace are
    /// over first. A request whose time was over before it was sent has the grace to itself.
    async fn in_time<T>(
        &self,
        times: Times,
        reading: impl Future<Output = Result<T, NoHead>>,
    ) -> Result<T, NoHead> {
        let from = times.deadline.max(Instant::now());
        self.alarm.set(from);
        tokio::pin!(reading);
        let mut overdue = false;
        loop {
            tokio::select! {
                biased;
                read = &mut reading => return read,
                () = self.alarm.rang() => {
                    if overdue {
                        return Err(NoHead::Overdue);
                    }
                    // The client has been told; the server may still come to an end.
                    overdue = true;
                    let grace = self.upstream.terms().overdue_grace;
                    self.alarm.set(from + grace);
                }
            }
        }
    }

    /// Reads a plan to its end.
    async fn plan<F: Future<Output = Result<(), NotSent>>>(
        &self,
        head: Head,
        request: &Request,
        times: Times,
        wire: &mut Wire<'_, F>,
    ) -> Result<(Plan, Resume, u64), NoHead> {
        if let Some(why) = plans::fault(&head, &request.method) {
            return Err(NoHead::NoPlan(why.to_owned()));
        }
        let mut body = head.body;
        let text = self.in_time(times, wire.whole(&mut body, MAX_PLAN)).await?;
        // Its bounds are those of a request's own memory while it is parked.
        let (plan, resume) = plans::read(&text).map_err(NoHead::NoPlan)?;
        Ok((plan, resume, text.len() as u64))
    }

    /// The request waits for its plan, and no slot has it from here on.
    fn park(&self, planned: Planned, job: Job, reply: Option<Reply>) -> Left {
        let Planned {
            plan,
            resume,
            signer,
            len,
            keeps: _,
        } = planned;
        let Some(reply) = reply else {
            unreachable!("nobody has been told anything of a request that parks");
        };
        let then = match job.work {
            Work::Begin(request, _) => Some(Continuation::new(*request, resume, signer)),
            Work::Continue(next) if next.late => {
                let server = &self.upstream.server;
                let request = &job.about;
                tracing::warn!(upstream = %server, %request, "another plan of a request whose time is over: it ends here");
                None
            }
            Work::Continue(next) => Some(next.continuation.again(resume, signer)),
            _ => None,
        };
        // Dropping the reply says that there is no answer.
        let Some(then) = then else {
            return Left::Done;
        };
        let retained = len + then.retained();
        let park = Park {
            awaited: Awaited::Plan(plan),
            shielded: false,
            gone: self.upstream.never.clone(),
            answer: None,
            then: Some(Box::new(then)),
        };
        Left::Parked {
            reply,
            park: Box::new(park),
            retained,
        }
    }

    /// Makes the body that a request goes on with. Large ones go to disk.
    async fn write(&self, next: &mut Continue) -> io::Result<()> {
        let Results::Outcomes(outcomes) = &mut next.results else {
            return Ok(());
        };
        let outcomes = std::mem::take(outcomes);
        next.late = next.times.deadline <= Instant::now();
        let (body, digest) = match self.written(&next.continuation, &outcomes).await {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(%error, "results lost: the spool folder takes no more");
                // The application can deal with that.
                let message =
                    "the gateway cannot hand over the responses of this plan: no room for them";
                let failed = |outcome: Outcome| {
                    outcome.without_response(FailureKind::Failed, Phase::Body, message)
                };
                let failed: Vec<_> = outcomes.into_iter().map(failed).collect();
                self.written(&next.continuation, &failed).await?
            }
        };
        next.results = Results::Written(body, digest);
        Ok(())
    }

    async fn written(
        &self,
        continuation: &Continuation,
        outcomes: &[Outcome],
    ) -> io::Result<(Body, Digest)> {
        let mut upload = Upload::new(&self.upstream.parts.spool);
        let mut digesting = Digesting::new();
        for piece in continuation.results(outcomes) {
            digesting.add(&piece);
            upload.push(piece).await?;
        }
        Ok((upload.finish().await?, digesting.finish()))
    }

    /// There is no answer to pass on.
    fn fail(&self, why: NoHead, request: &About, reply: Option<Reply>) {
        let server = &self.upstream.server;
        match why {
            NoHead::Closed | NoHead::Cut => {
                tracing::warn!(upstream = %server, %request, "upstream closed the connection before it answered");
            }
            NoHead::Lost(error) => {
                tracing::error!(upstream = %server, %request, %error, "a body cannot be read from its spool: the request is given up");
            }
            NoHead::Overdue => {
                tracing::warn!(upstream = %server, %request, "upstream has not answered; its connection is closed");
            }
            NoHead::Garbage(why) => {
                tracing::error!(upstream = %server, %request, why, "upstream's answer is invalid");
                tell(reply, unreadable(why));
            }
            NoHead::NoPlan(why) => {
                tracing::error!(upstream = %server, %request, why, "upstream's plan is invalid");
                tell(reply, unreadable("an invalid plan"));
            }
        }
        // A reply that is dropped says that there is no answer.
    }

    /// Passes an answer on. True if its body has been read to its end.
    async fn body<F: Future<Output = Result<(), NotSent>>>(
        &self,
        head: Head,
        about: &About,
        times: Times,
        reply: Option<Reply>,
        wire: &mut Wire<'_, F>,
    ) -> bool {
        let Head {
            status,
            reason,
            headers,
            mut body,
            ..
        } = head;
        let answer = |body| Answer {
            status,
            reason,
            headers,
            body,
        };
        // A server that sends head and body apart does so in one breath, and one that says how long the body
        // is means to send it.
        let gathered = match body.left() {
            Some(left) if left <= WHOLE as u64 && left > wire.buffer.len() as u64 => {
                self.alarm.set(Instant::now() + PATIENCE);
                tokio::select! {
                    biased;
                    gathered = wire.gather(left) => gathered,
                    () = self.alarm.rang() => Ok(()),
                }
            }
            _ => Ok(()),
        };
        let mut pieces = Pieces::default();
        let first = match gathered {
            Err(cut) => Some(Err(cut)),
            Ok(()) => loop {
                if pieces.1 > WHOLE {
                    break None;
                }
                match wire.next(&mut body).now_or_never() {
                    None => break None,
                    Some(Ok(Some(piece))) => pieces.push(piece),
                    Some(end) => break Some(end),
                }
            },
        };
        match first {
            Some(Ok(_)) => {
                let whole = self.upstream.parts.spool.held(pieces.join());
                tell(reply, answer(AnswerBody::Whole(whole)));
                return true;
            }
            Some(Err(cut)) => {
                // Nothing of it has been passed on: dropping the reply makes it a 502.
                self.log_cut(about, cut);
                return false;
            }
            None => {}
        }
        let (mut writer, read) = spool::answer(&self.upstream.parts.spool);
        tell(reply, answer(AnswerBody::Spooled(read)));
        let mut waiting = pieces.0.into_iter();
        loop {
            let piece = match waiting.next() {
                Some(piece) => Ok(Some(piece)),
                None => {
                    self.alarm.set(Instant::now() + times.timeout);
                    tokio::select! {
                        biased;
                        next = wire.next(&mut body) => next,
                        () = writer.gone() => return false,
                        () = self.alarm.rang() => Err(Cut::Stalled),
                    }
                }
            };
            match piece {
                Ok(Some(piece)) => {
                    if writer.push(piece).await.is_err() {
                        return false;
                    }
                }
                Ok(None) => {
                    writer.finish();
                    return true;
                }
                Err(cut) => {
                    self.log_cut(about, cut);
                    return false;
                }
            }
        }
    }

    fn log_cut(&self, request: &About, cut: Cut) {
        let server = &self.upstream.server;
        match cut {
            Cut::Ended => {
                tracing::warn!(upstream = %server, %request, "upstream did not finish its answer");
            }
            Cut::Stalled => {
                tracing::warn!(upstream = %server, %request, "upstream stopped in the middle of its answer");
            }
            Cut::Garbage(why) => {
                tracing::error!(upstream = %server, %request, why, "the body of an upstream's answer is invalid");
            }
        }
    }

    /// Ties the connection to the client's, and keeps the slot until that is over.
    async fn tunnel(&self, connection: Connection, head: Head, reply: Option<Reply>) {
        let (near, far) = tunnel();
        let answer = Answer {
            status: head.status,
            reason: head.reason,
            headers: head.headers,
            body: AnswerBody::Tunnel(near),
        };
        tell(reply, answer);
        let (line, buffer) = connection.into_parts();
        let line = Resumed {
            read: buffer.freeze(),
            line,
        };
        let idle = self.upstream.terms().tunnel_timeout;
        let over = far.run(line, &self.alarm, idle).await;
        tracing::debug!(upstream = %self.upstream.server, ?over, "tunnel ended");
    }
}

fn unreadable(why: &'static str) -> Answer {
    Answer {
        status: StatusCode::BAD_GATEWAY,
        reason: None,
        headers: http::HeaderMap::new(),
        body: AnswerBody::Unreadable(why),
    }
}

/// The request that a parked one goes on with. It is good for as long as its answer is waited for.
fn resuming(next: &Continue, terms: &Terms) -> Request {
    let Results::Written(body, digest) = &next.results else {
        unreachable!("results are written before they are sent");
    };
    let until = next.times.deadline.max(Instant::now()) + terms.overdue_grace;
    let signer = terms.plans.as_deref();
    next.continuation
        .request(signer, body.clone(), digest, until)
}

/// Where the time goes that a job waits once more.
fn stage_of_waiting(job: &Job) -> Stage {
    match job.work {
        Work::Begin(..) => Stage::Queue,
        _ => Stage::Resume,
    }
}

/// Its client has been told so.
fn is_over(job: &Job) -> bool {
    matches!(&job.work, Work::Begin(_, times) if times.deadline <= Instant::now())
}

/// Who does not wait any more has been answered otherwise, and drops what comes.
fn tell(reply: Option<Reply>, answer: Answer) {
    if let Some(reply) = reply {
        let _ = reply.send(Ok(Step::Answer(answer, None)));
    }
}

/// Why there is no head.
enum NoHead {
    /// The connection ended without a byte of an answer.
    Closed,
    /// … in the middle of it.
    Cut,
    /// The request could not be sent to its end.
    Lost(io::Error),
    Garbage(&'static str),
    /// It says that it is a plan.
    NoPlan(String),
    /// The request's time and the grace are over.
    Overdue,
}

/// Why there is no more of a body that is not whole.
enum Cut {
    Ended,
    Stalled,
    Garbage(&'static str),
}

/// What came of a body at once.
#[derive(Default)]
struct Pieces(Vec<Bytes>, usize);

/// Sends a request; `begun` once the connection has taken some of it.
async fn send(
    writer: &mut Writer<'_>,
    mut head: BytesMut,
    request: &Request,
    begun: &AtomicBool,
) -> Result<(), NotSent> {
    let RequestBody::Here(body) = &request.body else {
        unreachable!("a body that is for an upstream is collected first");
    };
    let (body, file) = match body {
        Body::Memory(bytes) if bytes.len() <= WITH_HEAD => {
            head.extend_from_slice(bytes);
            (Bytes::new(), None)
        }
        Body::Memory(bytes) => (bytes.clone(), None),
        Body::File(file) => (Bytes::new(), Some(file)),
    };
    // One piece is written for less than a list of one.
    while body.is_empty() && head.has_remaining() {
        match writer.write(&head).await? {
            0 => return Err(NotSent::Taken),
            count => head.advance(count),
        }
        begun.store(true, Relaxed);
    }
    let mut bytes = head.chain(body);
    while bytes.has_remaining() {
        if writer.write_buf(&mut bytes).await? == 0 {
            return Err(NotSent::Taken);
        }
        begun.store(true, Relaxed);
    }
    let Some(file) = file else { return Ok(()) };
    // No descriptor of its own: they may be short just now.
    let mut part = FilePart::regular(Arc::clone(&file.file), 0, file.len);
    while let Some(piece) = part.next().await.map_err(NotSent::Read)? {
        writer.write_all(&piece).await?;
    }
    Ok(())
}

/// Why a request was not sent to its end.
#[derive(Debug)]
enum NotSent {
    /// The server does not take it any more. It may have answered all the same.
    Taken,
    /// Its spooled body cannot be read. The server would wait for the rest for ever.
    Read(io::Error),
}

impl From<io::Error> for NotSent {
    fn from(_: io::Error) -> Self {
        Self::Taken
    }
}

/// How far a request is on its way.
enum Sending<'a, F> {
    UnderWay(Pin<&'a mut F>),
    /// All of it.
    Sent,
    /// The server does not take the rest, …
    Taken,
    /// … or we do not have it.
    Lost,
}

/// Both ways of a connection, while a request and its answer are on it. A server may answer before it has
/// read all of the request, so whoever reads sends on meanwhile.
struct Wire<'a, F> {
    sending: Sending<'a, F>,
    reader: Reader<'a>,
    /// What has been read and not yet taken.
    buffer: &'a mut BytesMut,
}

impl<F: Future<Output = Result<(), NotSent>>> Wire<'_, F> {
    /// Cancel safe: what is read stays in the buffer.
    async fn head(&mut self, request: &Request) -> Result<Head, NoHead> {
        loop {
            let decoded = head::decode(self.buffer, &request.method, request.upgrade.is_some());
            if let Some(head) = decoded.map_err(NoHead::Garbage)? {
                return Ok(head);
            }
            let before = self.buffer.len();
            match self.fill(None).await {
                Ok(1..) => {}
                Err(error) if matches!(self.sending, Sending::Lost) => {
                    return Err(NoHead::Lost(error));
                }
                _ if before > 0 => return Err(NoHead::Cut),
                _ => return Err(NoHead::Closed),
            }
        }
    }

    /// Reads until so much of a body is in the buffer, in one piece. Cancel safe.
    async fn gather(&mut self, length: u64) -> Result<(), Cut> {
        loop {
            let wanted = length.saturating_sub(self.buffer.len() as u64);
            if wanted == 0 {
                return Ok(());
            }
            if !matches!(self.fill(Some(wanted)).await, Ok(1..)) {
                return Err(Cut::Ended);
            }
        }
    }

    /// All of a body that is no longer than this. Not cancel safe: a part of it is lost.
    async fn whole(&mut self, body: &mut Framing, longest: usize) -> Result<Bytes, NoHead> {
        let too_long = || NoHead::NoPlan(format!("longer than {longest} bytes"));
        if body.left().is_some_and(|left| left > longest as u64) {
            return Err(too_long());
        }
        let mut pieces = Pieces::default();
        loop {
            match self.next(body).await {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => return Ok(pieces.join()),
                Err(Cut::Garbage(why)) => return Err(NoHead::Garbage(why)),
                Err(Cut::Ended | Cut::Stalled) => return Err(NoHead::Cut),
            }
            if pieces.1 > longest {
                return Err(too_long());
            }
        }
    }

    /// The next piece of a body; None at its end. Cancel safe.
    async fn next(&mut self, body: &mut Framing) -> Result<Option<Bytes>, Cut> {
        loop {
            match body.next(self.buffer).map_err(Cut::Garbage)? {
                Piece::Data(data) => return Ok(Some(data)),
                Piece::End => return Ok(None),
                Piece::More => match self.fill(body.left()).await {
                    Ok(1..) => {}
                    Ok(0) if *body == Framing::UntilClose => return Ok(None),
                    // A reset is never the end of a body, however it is framed.
                    _ => return Err(Cut::Ended),
                },
            }
        }
    }

    /// Reads on, and sends on until something has come. Cancel safe.
    async fn fill(&mut self, wanted: Option<u64>) -> io::Result<usize> {
        let Self {
            sending,
            reader,
            buffer,
        } = self;
        let filling = connection::fill(reader, buffer, wanted);
        tokio::pin!(filling);
        std::future::poll_fn(|cx| {
            if let Sending::UnderWay(under_way) = sending
                && let Poll::Ready(done) = under_way.as_mut().poll(cx)
            {
                *sending = match done {
                    Ok(()) => Sending::Sent,
                    // What it has answered is read next.
                    Err(NotSent::Taken) => Sending::Taken,
                    Err(NotSent::Read(_)) => Sending::Lost,
                };
                if let Err(NotSent::Read(error)) = done {
                    return Poll::Ready(Err(error));
                }
            }
            filling.as_mut().poll(cx)
        })
        .await
    }
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.1 += piece.len();
        self.0.push(piece);
    }

    fn join(mut self) -> Bytes {
        match self.0.len() {
            0 => Bytes::new(),
            1 => self.0.swap_remove(0),
            _ => self.0.concat().into(),
        }
    }
}
