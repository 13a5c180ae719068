//! One request and its answer: who is asked, and who is asked next.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::{Job, Lost};
use super::messages::{Call, Fault, Remedy, Request, Response};
use super::{CHANGING, Custodian, FIRST, Hsm, HsmError, LOOKING, NO_CUSTODIAN};
use crate::domain::id::CredentialId;
use crate::lifeline::Lifeline;
use crate::metrics::{Operation, OperationEnd};

/// How long a caller waits for an answer, a custodian's replacement included; within its request's time.
pub(super) const CALL_MAX: Duration = Duration::from_secs(5);
/// How long after a custodian said that it is to be asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a request is routed by.
#[derive(Clone, Copy)]
pub(super) enum Route {
    /// The custodian that this credential belongs to.
    Credential(CredentialId),
    /// Any of them.
    Any,
    /// The first token's [`Route::WriterOf`]: secrets that are objects are in that token alone.
    Writer,
    /// The one that makes and destroys objects in this token: always the same, as long as it lives. A process in which
    /// SoftHSM changes the token misses what another one changes at that moment, and may not see it until somebody changes
    /// it again. So its successor changes nothing before it has answered every change ([`Changes`]).
    WriterOf(usize),
    /// Any of this token's.
    Token(usize),
    /// That of a slot; any other while it is away.
    Slot(u16),
}

/// How far a request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// A custodian may have read it.
    pub(super) sent: bool,
    /// One was lost over it: whoever answers need not have been the first to work on it.
    pub(super) repeated: bool,
}

impl Hsm {
    /// Who has to answer: custodians of this token alone; `None`: any.
    fn bound_to(&self, route: Route, request: &Request) -> Option<usize> {
        match route {
            Route::Writer => Some(FIRST),
            Route::WriterOf(token) | Route::Token(token) => Some(token),
            Route::Credential(_) | Route::Any if self.tokens() > 1 && request.names_objects() => Some(FIRST),
            Route::Credential(_) | Route::Any | Route::Slot(_) => None,
        }
    }

    pub(super) fn count(&self, operation: Operation, end: OperationEnd, begun: Option<Instant>) {
        self.inner.metrics.operations.get_or_create(&(operation, end)).inc();
        if let Some(begun) = begun {
            self.inner.metrics.seconds.get_or_create(&operation).observe(begun.elapsed().as_secs_f64());
        }
    }

    /// A call with all that is known of keys by now: whatever it is about was made before.
    pub(super) fn calling(&self, request: Request) -> Call {
        let newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Call { repeated: false, id: self.next_id(), newest, request }
    }

    /// One that is up: where there is a choice, not `but`.
    pub(super) fn pick(
        &self,
        route: Route,
        token: Option<usize>,
        but: Option<&Arc<Custodian>>,
    ) -> Option<Arc<Custodian>> {
        let writer = match route {
            Route::Writer | Route::WriterOf(_) => token.and_then(|token| self.inner.tokens.get(token)),
            _ => None,
        };
        let first = match (route, writer) {
            (_, Some(token)) => token.writer.load(Ordering::Relaxed),
            (Route::Credential(id), _) => {
                id.to_bytes().iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte))
            }
            (Route::Slot(slot), _) => u64::from(slot),
            _ => self.inner.next_slot.fetch_add(1, Ordering::Relaxed),
        };
        let places = self.of(token);
        let count = places.len();
        let start = (first % count.max(1) as u64) as usize;
        let up = || {
            let turns = places.iter().enumerate().cycle().skip(start).take(count);
            turns.filter_map(|(slot, place)| place.load_full().map(|custodian| (slot, custodian)))
        };
        let is_other = |custodian: &Arc<Custodian>| but.is_none_or(|but| !Arc::ptr_eq(but, custodian));
        let (slot, custodian) = up().find(|(_, custodian)| is_other(custodian)).or_else(|| up().next())?;
        if let Some(token) = writer {
            token.writer.store(slot as u64, Ordering::Relaxed);
        }
        Some(custodian)
    }

    fn report(&self, job: &Job, place: u8) {
        let call = job.call();
        let row = call.as_ref().and_then(|call| call.request.standing().get(usize::from(place)));
        if let Some(row) = row.and_then(|row| row.bytes.decode()) {
            // What finds no room is found again when somebody asks for it again.
            let _ = self.inner.tampered.0.try_send(row.key());
        }
    }

    pub(super) async fn call(&self, route: Route, request: Request) -> Result<Response, HsmError> {
        self.call_on(route, request, &mut Way::default()).await
    }

    /// The same; how far it came is known at any moment, also to who gives up waiting.
    pub(super) async fn call_on(
        &self,
        route: Route,
        request: Request,
        way: &mut Way,
    ) -> Result<Response, HsmError> {
        let (operation, begun) = (operation(&request), Instant::now());
        let result = self.ask(route, request, way).await;
        let end = match &result {
            Ok(_) => OperationEnd::Answered,
            Err(HsmError::Busy) => OperationEnd::Busy,
            Err(HsmError::Unavailable(_) | HsmError::Away(_)) => OperationEnd::Unavailable,
            Err(HsmError::Tampered(_)) => OperationEnd::Tampered,
            Err(error @ HsmError::Missing(_)) => {
                tracing::error!(%error, "a secret is not in the HSM");
                OperationEnd::Missing
            }
            // Asked of nobody.
            Err(HsmError::NoRoom { .. }) => OperationEnd::Unavailable,
        };
        // One that was turned away took no time, and would make the others look fast.
        let took = !matches!(result, Err(HsmError::Busy | HsmError::Away(_)));
        self.count(operation, end, took.then_some(begun));
        result
    }

    async fn ask(&self, route: Route, request: Request, way: &mut Way) -> Result<Response, HsmError> {
        let unavailable = |reason: &str| HsmError::Unavailable(reason.to_owned());
        let deadline = Lifeline::no_later_than(Instant::now() + CALL_MAX);
        let mut token = self.bound_to(route, &request);
        let call = self.calling(request);
        let (mut job, mut answer) = Job::new(&call).map_err(|e| unavailable(&e.to_string()))?;
        drop(call);
        let mut missed_by: Option<Arc<Custodian>> = None;
        // It does not see a key yet that others may.
        let mut behind: Option<Arc<Custodian>> = None;
        // A connection to the HSM that broke logs all of them out: each may say so once, and it is not the request's doing.
        let (mut logged_out, mut lost_over_it) = (0, false);
        loop {
            let came_up = self.inner.came_up.notified();
            let Some(custodian) = self.pick(route, token, missed_by.as_ref().or(behind.as_ref())) else {
                if let Some(reason) = self.inner.state.objection(token) {
                    return Err(HsmError::Away(reason));
                }
                if timeout_at(deadline, came_up).await.is_err() {
                    return Err(unavailable(NO_CUSTODIAN));
                }
                continue;
            };
            let mut change = None;
            if let (Route::Writer | Route::WriterOf(_), Some(of)) =
                (route, self.inner.tokens.get(custodian.token))
            {
                let settled = of.changes.settled();
                change = of.changes.begin(custodian.number);
                if change.is_none() {
                    if timeout_at(deadline, settled).await.is_err() {
                        return Err(unavailable(CHANGING));
                    }
                    continue;
                }
            }
            let again = job.again();
            match custodian.try_send(job.changing(change)) {
                Ok(()) => way.sent = true,
                Err(mpsc::error::TrySendError::Full(_)) => return Err(HsmError::Busy),
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    // Lost between the two lines above; its place is being withdrawn.
                    if Instant::now() >= deadline {
                        return Err(unavailable(NO_CUSTODIAN));
                    }
                    (job, answer) = again;
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let reply = timeout_at(deadline, answer).await.map_err(|_| unavailable("no answer in time"))?;
            let ended = |_| Err(Lost { suspect: false, reason: "its custodian ended".to_owned() });
            let lost = match reply.unwrap_or_else(ended) {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Fault::Seal(row))) => {
                    self.report(&again.0, row);
                    return Err(HsmError::Tampered(row));
                }
                // Another token has no such secrets.
                Ok(Err(Fault::Missing(_))) if custodian.token != FIRST && token.is_none() => {
                    token = Some(FIRST);
                    (job, answer) = again;
                    continue;
                }
                // Only if two say so, where there are two: one of them may not see what the other made.
                Ok(Err(Fault::Missing(id))) => match &missed_by {
                    Some(_) => return Err(HsmError::Missing(id)),
                    None => {
                        missed_by = Some(custodian);
                        (job, answer) = again;
                        continue;
                    }
                },
                // Another token may have the key that it lacks. Asked once: what that one says then is final.
                Ok(Err(Fault::Later | Fault::Request(_)))
                    if token.is_none() && self.another_than(custodian.token).is_some() =>
                {
                    token = self.another_than(custodian.token);
                    (job, answer) = again;
                    continue;
                }
                // It looks through its token at most once a second: what it says then is final.
                Ok(Err(Fault::Later)) => {
                    if timeout_at(deadline, sleep(ASK_AGAIN_AFTER)).await.is_err() {
                        return Err(unavailable(LOOKING));
                    }
                    // Who changes the token stays who does.
                    behind = Some(custodian).filter(|_| !matches!(route, Route::Writer | Route::WriterOf(_)));
                    (job, answer) = again;
                    continue;
                }
                Ok(Err(fault @ Fault::Request(_))) => return Err(unavailable(&fault.to_string())),
                Ok(Err(Fault::Hsm(failure)))
                    if failure.remedy == Remedy::LogIn && logged_out < self.custodians() =>
                {
                    logged_out += 1;
                    // It may have been worked on all the same.
                    (*way, job, answer) = (Way { sent: true, repeated: true }, again.0.suspected(), again.1);
                    continue;
                }
                Ok(Err(fault @ Fault::Hsm(_))) => Lost { suspect: true, reason: fault.to_string() },
                Err(lost) => lost,
            };
            if lost.suspect && std::mem::replace(&mut lost_over_it, true) {
                return Err(HsmError::Unavailable(lost.reason));
            }
            way.repeated |= lost.suspect;
            way.sent = way.repeated;
            (job, answer) = again;
            if lost.suspect {
                job = job.suspected();
            }
        }
    }
}

fn operation(request: &Request) -> Operation {
    match request {
        Request::Health => Operation::Health,
        Request::Generate { .. } => Operation::Generate,
        Request::Import { .. } => Operation::Import,
        Request::ImportWrapped { .. } => Operation::ImportWrapped,
        Request::ImportKey => Operation::ImportKey,
        Request::Residents { .. } => Operation::Residents,
        Request::DestroyResidents { .. } => Operation::DestroyResidents,
        Request::EncryptPinHash { .. } => Operation::EncryptPinHash,
        Request::CheckOtp(_) => Operation::CheckOtp,
        Request::CheckSignature(_) => Operation::CheckSignature,
        Request::Seal(_) => Operation::Seal,
        Request::Fingerprint(_) => Operation::Fingerprint,
        Request::Sum(_) => Operation::Sum,
        Request::Random => Operation::Random,
        Request::AttestationKeys => Operation::AttestationKeys,
        Request::VerifyAttestation { .. } => Operation::VerifyAttestation,
        Request::FindGeneration(_) => Operation::FindGeneration,
        Request::TerminalCodes(_) => Operation::TerminalCodes,
        Request::CheckEntry(_) => Operation::CheckEntry,
        Request::CheckRolling(_) => Operation::CheckRolling,
        Request::OpenEpoch { .. } => Operation::OpenEpoch,
        Request::PresentationCode { .. } => Operation::PresentationCode,
        Request::AuthorizationCodes(_) => Operation::AuthorizationCodes,
        Request::CheckAuthorization(_) => Operation::CheckAuthorization,
        Request::SignCheckpoint(_) => Operation::SignCheckpoint,
        Request::ReadAnchor => Operation::ReadAnchor,
        Request::WriteAnchor { .. } => Operation::WriteAnchor,
        Request::AuditKeys => Operation::AuditKeys,
        Request::LedgerKey { .. } => Operation::LedgerKey,
        Request::LoadKeys => Operation::LoadKeys,
        Request::Renew(_) => Operation::Renew,
        Request::TlsKeys => Operation::TlsKeys,
        Request::SignHandshake { .. } => Operation::SignHandshake,
    }
}
