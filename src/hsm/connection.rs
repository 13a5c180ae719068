//! One custodian's socket: requests out, replies in, in order; and what is left when it ends.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::Answer;
use super::changes::Change;
use super::messages::{
    Call, FRAME_BYTES_MAX, Fault, FrameError, Remedy, Reply, Response, Tired, decode, encode, frame_length,
    repeated,
};
use crate::domain::system_key::NewestKeys;
use crate::metrics::{Custodian, Held, HsmMetrics, Loss, Remedied};

/// How many requests are handed to a custodian ahead of their turn.
const WINDOW: usize = 16;
/// How long the request at the head may take before its custodian counts as stuck.
const REQUEST_MAX: Duration = Duration::from_secs(2);

/// A request on its way to a custodian.
pub(super) struct Job {
    id: u64,
    /// Shared with the caller, who may have to send it again.
    frame: Arc<Zeroizing<Vec<u8>>>,
    answer: oneshot::Sender<Result<Result<Response, Fault>, Lost>>,
    /// A custodian was lost over it before. It is handed over alone, so that if its custodian is lost
    /// again there is no doubt over what.
    suspect: bool,
    /// Counts it as long as it waits for a custodian or is being worked on.
    queued: Option<Held>,
    /// It changes the token, as long as it is there.
    change: Option<Change>,
}

/// The custodian was lost before it answered.
#[derive(Debug)]
pub(super) struct Lost {
    /// Whether it may have been working on this very request.
    pub suspect: bool,
    pub reason: String,
}

/// How a connection ended.
pub(super) struct End {
    /// `None`: it was replaced, and has answered everything.
    pub loss: Option<Loss>,
    pub reason: String,
    /// It left something unread, at least what it was sent last.
    unread: bool,
    /// It answered what it ended over.
    answered: bool,
}

impl End {
    fn because(loss: Loss, reason: impl Into<String>) -> Self {
        Self { loss: Some(loss), reason: reason.into(), unread: false, answered: false }
    }

    /// Of a custodian that dies, Linux says to its peer whether something was left in its socket.
    fn broken(error: &io::Error) -> Self {
        let unread = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        Self { loss: Some(Loss::Ended), reason: error.to_string(), unread, answered: false }
    }
}

impl Job {
    pub(super) fn new(call: &Call) -> Result<(Self, Answer), FrameError> {
        let (answer, receiver) = oneshot::channel();
        let frame = Arc::new(encode(call)?);
        Ok((Self { id: call.id, frame, answer, suspect: false, queued: None, change: None }, receiver))
    }

    /// What was asked.
    pub(super) fn call(&self) -> Option<Call> {
        decode(self.frame.get(4..)?).ok()
    }

    /// The same request once more.
    pub(super) fn again(&self) -> (Self, Answer) {
        let (answer, receiver) = oneshot::channel();
        let (id, frame, suspect) = (self.id, self.frame.clone(), self.suspect);
        (Self { id, frame, answer, suspect, queued: None, change: None }, receiver)
    }

    /// The next custodian learns of it: what the first one did may have been done.
    pub(super) fn suspected(self) -> Self {
        Self { suspect: true, frame: Arc::new(repeated(&self.frame)), ..self }
    }

    /// The same, counted in a queue.
    pub(super) fn queued(self, depth: &Gauge) -> Self {
        Self { queued: Some(Held::new(depth)), ..self }
    }

    /// The same, which changes the token until it is answered.
    pub(super) fn changing(self, change: Option<Change>) -> Self {
        Self { change, ..self }
    }

    /// Counted out first: who is answered waits no more.
    fn end(self, result: Result<Result<Response, Fault>, Lost>) {
        drop((self.queued, self.change));
        let _ = self.answer.send(result);
    }
}

/// Serves jobs until the custodian is lost; then calls `withdraw`, so that no more come, and returns
/// those that are left to their callers. `learn` is told of newer keys before anybody has what they made, `tire` each time
/// that it says that it is tired. Once it is `replaced` it gets no new job, and the end comes when it has answered all that
/// were there.
pub(super) async fn serve(
    stream: UnixStream,
    mut jobs: mpsc::Receiver<Job>,
    replaced: &Notify,
    (metrics, custodian): (&HsmMetrics, Custodian),
    (learn, tire, withdraw): (impl Fn(&NewestKeys), impl Fn(Tired), impl FnOnce()),
) -> End {
    let (read_half, mut write_half) = stream.into_split();
    let mut replies =
        Replies { stream: read_half, buffer: Zeroizing::new(Vec::with_capacity(2 * FRAME_BYTES_MAX)) };
    let mut waiting: VecDeque<Job> = VecDeque::with_capacity(WINDOW);
    let mut head_due = Instant::now();
    // Written beside reading: while a large message waits for room, answers go on to arrive.
    let mut outgoing = Outgoing::default();
    // It reads no more. What it answered before is still to be heard, or it would be asked again.
    let mut broken: Option<End> = None;
    let (mut is_replaced, mut has_all) = (false, false);

    let end = loop {
        if has_all && waiting.is_empty() {
            break End { loss: None, answered: true, ..End::because(Loss::Ended, "it was replaced") };
        }
        tokio::select! {
            () = replaced.notified(), if !is_replaced => {
                // Those that are in the queue are handed over still.
                is_replaced = true;
                jobs.close();
            }
            job = jobs.recv(), if !has_all && broken.is_none() && may_follow(&waiting) => {
                let Some(mut job) = job else {
                    has_all = true;
                    continue;
                };
                // Those that wait already go with it: one write, and the custodian wakes once.
                loop {
                    // If the caller has gone: nobody would use the answer.
                    if !job.answer.is_closed() {
                        if waiting.is_empty() {
                            head_due = Instant::now() + REQUEST_MAX;
                        }
                        outgoing.frames.push_back(job.frame.clone());
                        waiting.push_back(job);
                    }
                    if !may_follow(&waiting) {
                        break;
                    }
                    match jobs.try_recv() {
                        Ok(next) => job = next,
                        Err(_) => break,
                    }
                }
            }
            sent = outgoing.write(&mut write_half), if !outgoing.frames.is_empty() => {
                match sent {
                    Ok(count) => outgoing.advance(count),
                    Err(error) => {
                        outgoing = Outgoing::default();
                        broken = Some(End::broken(&error));
                    }
                }
            }
            reply = replies.next() => {
                let reply = match reply {
                    Ok(reply) => reply,
                    Err(end) => break broken.unwrap_or(end),
                };
                let Some(job) = waiting.pop_front() else {
                    break End::because(Loss::Protocol, "it answered what nobody asked");
                };
                if job.id != reply.id {
                    waiting.push_front(job);
                    break End::because(Loss::Protocol, "it answered out of turn");
                }
                if let Some(newest) = &reply.newest {
                    learn(newest);
                }
                if let Some(tired) = reply.tired {
                    tire(tired);
                }
                let last = match &reply.result {
                    Err(Fault::Hsm(failure)) => Some(failure.remedy),
                    _ => None,
                };
                let healed = reply.healed.into_iter().map(|remedy| remedied(remedy, true));
                for remedied in healed.chain(last.map(|remedy| remedied(remedy, false))) {
                    metrics.failures.get_or_create(&remedied).inc();
                }
                let reason = reply.result.as_ref().err().map(ToString::to_string);
                metrics.busy.get_or_create(&custodian).inc_by(reply.busy_ns as f64 / 1e9);
                job.end(Ok(reply.result));
                if last.is_some() {
                    // It ends by itself now; what waits behind this one is not to blame.
                    break End { answered: true, ..End::because(Loss::HsmFailed, reason.unwrap_or_default()) };
                }
                head_due = Instant::now() + REQUEST_MAX;
            }
            () = sleep_until(head_due), if !waiting.is_empty() => {
                break End::because(Loss::Deadline, "it missed its deadline");
            }
        }
    };

    withdraw();
    jobs.close();
    // One that stood alone and was never read is innocent too.
    let mut suspect = !(end.answered || end.unread && waiting.len() == 1);
    for job in waiting {
        job.end(Err(Lost { suspect: std::mem::take(&mut suspect), reason: end.reason.clone() }));
    }
    while let Some(job) = jobs.recv().await {
        job.end(Err(Lost { suspect: false, reason: end.reason.clone() }));
    }
    end
}

/// What a failure is counted as that a custodian told of: one that it healed, or one that ends it.
fn remedied(remedy: Remedy, is_healed: bool) -> Remedied {
    match remedy {
        Remedy::LogIn => Remedied::LogIn,
        Remedy::GiveUp => Remedied::GiveUp,
        Remedy::Repeat if is_healed => Remedied::Repeat,
        Remedy::Rebuild | Remedy::NewSession if is_healed => Remedied::NewSession,
        _ => Remedied::NewProcess,
    }
}

/// Whether one more may be handed over: not behind a suspect, and not too many.
fn may_follow(waiting: &VecDeque<Job>) -> bool {
    waiting.len() < WINDOW && !waiting.back().is_some_and(|job| job.suspect)
}

/// Frames that are being written.
#[derive(Default)]
struct Outgoing {
    frames: VecDeque<Arc<Zeroizing<Vec<u8>>>>,
    /// So much of the first.
    sent: usize,
}

impl Outgoing {
    /// As much as there is room for.
    async fn write(&self, stream: &mut OwnedWriteHalf) -> io::Result<usize> {
        let from = std::iter::once(self.sent).chain(std::iter::repeat(0));
        let rests = self.frames.iter().zip(from).map(|(frame, from)| frame.get(from..).unwrap_or_default());
        stream.write_vectored(&rests.map(IoSlice::new).collect::<Vec<_>>()).await
    }

    fn advance(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count);
        while let Some(rest) = self.frames.front().and_then(|first| self.sent.checked_sub(first.len())) {
            self.sent = rest;
            self.frames.pop_front();
        }
    }
}

/// Replies out of a stream of bytes. [`Replies::next`] may be dropped and called again.
struct Replies {
    stream: OwnedReadHalf,
    buffer: Zeroizing<Vec<u8>>,
}

impl Replies {
    async fn next(&mut self) -> Result<Reply, End> {
        let nonsense = |error: FrameError| End::because(Loss::Protocol, error.to_string());
        loop {
            if let Some((header, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = frame_length(*header).map_err(nonsense)?;
                if let Some(body) = rest.get(..length) {
                    let reply = decode(body).map_err(nonsense);
                    // A reply may hold an exported seed, and moving the rest down leaves its bytes behind.
                    let kept = self.buffer.len() - 4 - length;
                    self.buffer.copy_within(4 + length.., 0);
                    self.buffer.get_mut(kept..).unwrap_or_default().fill(0);
                    self.buffer.truncate(kept);
                    return reply;
                }
            }
            match self.stream.read_buf(&mut *self.buffer).await {
                Ok(0) => return Err(End::because(Loss::Ended, "it ended")),
                Ok(_) => {}
                Err(error) => return Err(End::broken(&error)),
            }
        }
    }
}
