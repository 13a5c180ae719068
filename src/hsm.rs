//! The front's side of the HSM: which custodian is asked, and what happens when one is lost.
//!
//! A request goes to the custodian that its credential belongs to, so that the custodians' caches of
//! unwrapped secrets do not overlap; to any other while that one is away. A custodian works on one
//! request at a time, in order: when it is lost, only the request at its head may be the cause. That
//! one is repeated once, alone; those behind it, and one that no custodian ever read, are innocent and
//! go to another custodian freely.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::domain::credential::{EncryptedPinHash, WrappedSecret};
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::presentation::PresentationCode;
use crate::domain::row::SealedBytes;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::metrics::{self, HsmMetrics, Loss, Operation, OperationEnd};
use crate::secret::SecretBytes;
use connection::{Job, Lost};
use messages::{
    Call, CheckAuthorization, CheckEntry, CheckOtp, CheckRolling, CheckSignature, Fault, FindGeneration,
    OpenedEpoch, Outcome, Request, Response, SealRows, SealedRows, portions,
};

mod connection;
pub mod messages;

/// How long a caller waits for an answer, a custodian's replacement included.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How many requests may wait for one custodian.
pub const QUEUE_MAX: usize = 256;
/// How often each custodian is asked whether it can still use the HSM.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What the front tells the supervisor of its custodians.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustodianEvent {
    /// It said hello.
    Up {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
    /// It is no use any more: what is left of it is to be killed.
    Lost {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
}

/// Why the HSM gave no answer. Nobody is let in by any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    /// Its queue is full.
    #[error("too many requests wait for the HSM")]
    Busy,
    /// No custodian answered in time, or two were lost over this request, or the HSM failed.
    #[error("the HSM does not answer: {0}")]
    Unavailable(String),
    /// A stored row is not what was sealed: the position among the standing rows.
    #[error("standing row {0} has been tampered with")]
    Tampered(u8),
}

/// What a request is routed by.
#[derive(Clone, Copy)]
enum Route {
    /// The custodian that this credential belongs to.
    Credential(CredentialId),
    /// Any of them.
    Any,
}

/// A new secret, sealed, and in the clear where that was asked for.
pub struct NewSecret {
    /// Under the `kek`.
    pub wrapped: WrappedSecret,
    /// For the one answer that shows it.
    pub exported: Option<SecretBytes>,
}

/// What came of a claim to a rolling credential.
pub struct RollingChecked {
    /// Whether it is right.
    pub valid: bool,
    /// The seals of what that writes.
    pub sealed: SealedRows,
    /// The attestation where one was asked for.
    pub attestation: Option<String>,
    /// The epoch that it hands out, if it is right and does.
    pub opened: Option<OpenedEpoch>,
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Hsm {
    inner: Arc<Inner>,
}

struct Inner {
    slots: Vec<ArcSwapOption<Custodian>>,
    /// Woken when a custodian comes up.
    came_up: Notify,
    next_call: AtomicU64,
    next_slot: AtomicU64,
    events: mpsc::UnboundedSender<CustodianEvent>,
    metrics: HsmMetrics,
}

/// One that is up.
struct Custodian {
    jobs: mpsc::Sender<Job>,
    /// How many wait for it or are being worked on.
    queue_depth: Gauge,
}

impl Custodian {
    fn try_send(&self, job: Job) -> Result<(), mpsc::error::TrySendError<Job>> {
        self.jobs.try_send(job.queued(&self.queue_depth))
    }
}

impl Hsm {
    /// A handle to as many custodians, none of them there yet; what happens to them goes to `events`.
    pub fn new(custodians: u16, events: mpsc::UnboundedSender<CustodianEvent>) -> Self {
        let slots = (0..custodians).map(|_| ArcSwapOption::empty()).collect();
        Self {
            inner: Arc::new(Inner {
                slots,
                came_up: Notify::new(),
                next_call: AtomicU64::new(0),
                next_slot: AtomicU64::new(0),
                events,
                metrics: HsmMetrics::new(custodians),
            }),
        }
    }

    /// Takes a new custodian's socket over and serves it until it is lost.
    pub async fn adopt(self, slot: u16, generation: u64, stream: UnixStream) {
        let Some(place) = self.inner.slots.get(usize::from(slot)) else { return };
        let mut stream = stream;
        let token = match connection::greet(&mut stream).await {
            Ok(hello) => hello.token,
            Err(reason) => {
                tracing::warn!(slot, generation, reason, "custodian did not come up");
                self.inner.metrics.losses.get_or_create(&Loss::NoHello).inc();
                let _ = self.inner.events.send(CustodianEvent::Lost { slot, generation });
                return;
            }
        };
        tracing::info!(slot, generation, token, "custodian is up");
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let (metrics, label) = (&self.inner.metrics, metrics::Custodian { custodian: slot });
        let queue_depth = metrics.queue_depth.get_or_create_owned(&label);
        let custodian = Arc::new(Custodian { jobs: sender, queue_depth });
        metrics.starts.get_or_create(&label).inc();
        place.store(Some(custodian.clone()));
        self.inner.came_up.notify_waiters();
        let _ = self.inner.events.send(CustodianEvent::Up { slot, generation });
        let probe = tokio::spawn(self.clone().probe(custodian.clone()));

        // A successor may have taken the place already.
        let withdraw = || drop(place.compare_and_swap(&Some(custodian), None));
        let end = connection::serve(stream, receiver, (metrics, label), withdraw).await;
        probe.abort();
        metrics.losses.get_or_create(&end.loss).inc();
        tracing::warn!(slot, generation, reason = end.reason, "custodian is lost");
        // Also if it said that it ends by itself: a module may hang in the process's last steps.
        let _ = self.inner.events.send(CustodianEvent::Lost { slot, generation });
    }

    /// Asks one custodian from time to time, so that a loss is noticed before a caller does.
    async fn probe(self, custodian: Arc<Custodian>) {
        let mut pause = tokio::time::interval(PROBE_EVERY);
        pause.tick().await;
        loop {
            pause.tick().await;
            let call = Call { id: self.next_id(), request: Request::Health };
            let Ok((job, answer)) = Job::new(&call) else { return };
            let begun = Instant::now();
            // A full queue is proof enough that somebody else is asking.
            if custodian.try_send(job).is_ok() {
                let end = match answer.await {
                    Ok(Ok(Ok(_))) => OperationEnd::Answered,
                    _ => OperationEnd::Unavailable,
                };
                self.count(Operation::Health, end, begun);
            }
        }
    }

    /// Whether any custodian is there.
    pub fn is_up(&self) -> bool {
        self.up() > 0
    }

    /// How many custodians are there.
    pub fn up(&self) -> usize {
        self.inner.slots.iter().filter(|slot| slot.load().is_some()).count()
    }

    /// What it counts.
    pub fn metrics(&self) -> &HsmMetrics {
        &self.inner.metrics
    }

    fn count(&self, operation: Operation, end: OperationEnd, begun: Instant) {
        self.inner.metrics.operations.get_or_create(&(operation, end)).inc();
        // One that was turned away took no time, and would make the others look fast.
        if end != OperationEnd::Busy {
            self.inner.metrics.seconds.get_or_create(&operation).observe(begun.elapsed().as_secs_f64());
        }
    }

    fn next_id(&self) -> u64 {
        self.inner.next_call.fetch_add(1, Ordering::Relaxed)
    }

    fn pick(&self, route: Route) -> Option<Arc<Custodian>> {
        let first = match route {
            Route::Credential(id) => {
                id.to_bytes().iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte))
            }
            Route::Any => self.inner.next_slot.fetch_add(1, Ordering::Relaxed),
        };
        let count = self.inner.slots.len();
        let start = (first % count.max(1) as u64) as usize;
        self.inner.slots.iter().cycle().skip(start).take(count).find_map(|slot| slot.load_full())
    }

    async fn call(&self, route: Route, request: Request) -> Result<Response, HsmError> {
        let (operation, begun) = (operation(&request), Instant::now());
        let result = self.ask(route, request).await;
        let end = match &result {
            Ok(_) => OperationEnd::Answered,
            Err(HsmError::Busy) => OperationEnd::Busy,
            Err(HsmError::Unavailable(_)) => OperationEnd::Unavailable,
            Err(HsmError::Tampered(_)) => OperationEnd::Tampered,
        };
        self.count(operation, end, begun);
        result
    }

    async fn ask(&self, route: Route, request: Request) -> Result<Response, HsmError> {
        let unavailable = |reason: &str| HsmError::Unavailable(reason.to_owned());
        let deadline = Instant::now() + CALL_MAX;
        let call = Call { id: self.next_id(), request };
        let (mut job, mut answer) = Job::new(&call).map_err(|e| unavailable(&e.to_string()))?;
        drop(call);
        let mut repeated = false;
        loop {
            let came_up = self.inner.came_up.notified();
            let Some(custodian) = self.pick(route) else {
                if timeout_at(deadline, came_up).await.is_err() {
                    return Err(unavailable("no custodian is up"));
                }
                continue;
            };
            let again = job.again();
            match custodian.try_send(job) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return Err(HsmError::Busy),
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    // Lost between the two lines above; its place is being withdrawn.
                    (job, answer) = again;
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let reply = timeout_at(deadline, answer).await.map_err(|_| unavailable("no answer in time"))?;
            let ended = |_| Err(Lost { suspect: false, reason: "its custodian ended".to_owned() });
            let lost = match reply.unwrap_or_else(ended) {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Fault::Seal(row))) => return Err(HsmError::Tampered(row)),
                Ok(Err(fault @ Fault::Request(_))) => return Err(unavailable(&fault.to_string())),
                Ok(Err(fault @ Fault::Hsm(_))) => Lost { suspect: true, reason: fault.to_string() },
                Err(lost) => lost,
            };
            if lost.suspect && std::mem::replace(&mut repeated, true) {
                return Err(HsmError::Unavailable(lost.reason));
            }
            (job, answer) = again;
            if lost.suspect {
                job = job.suspected();
            }
        }
    }

    /// Generates a seed in the HSM; with `export` it also comes back in the clear, this once.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn generate(&self, algorithm: Algorithm, export: bool) -> Result<NewSecret, HsmError> {
        self.secret(Request::Generate { algorithm, export }).await
    }

    /// Takes in a seed of 16 to 64 bytes.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn import(&self, algorithm: Algorithm, seed: SecretBytes) -> Result<NewSecret, HsmError> {
        self.secret(Request::Import { algorithm, seed }).await
    }

    async fn secret(&self, request: Request) -> Result<NewSecret, HsmError> {
        match self.call(Route::Any, request).await? {
            Response::Secret { wrapped, exported } => Ok(NewSecret { wrapped, exported }),
            _ => Err(wrong_kind()),
        }
    }

    /// Hashes an OCRA token's PIN and encrypts the hash, for this credential alone.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn encrypt_pin_hash(
        &self,
        id: CredentialId,
        hash: Algorithm,
        pin: SecretBytes,
    ) -> Result<EncryptedPinHash, HsmError> {
        match self.call(Route::Any, Request::EncryptPinHash { id, hash, pin }).await? {
            Response::PinHash(encrypted) => Ok(encrypted),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether a signature is right, the seals of what that writes, and the attestation where one was asked for.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_signature(
        &self,
        credential: CredentialId,
        check: CheckSignature,
    ) -> Result<(bool, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckSignature(check)).await? {
            Response::SignatureChecked { valid, sealed, attestation } => Ok((valid, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// Which candidate matched, if any, the seals of what that writes, and the attestation where one was asked
    /// for.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_otp(
        &self,
        credential: CredentialId,
        check: CheckOtp,
    ) -> Result<(Option<u16>, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckOtp(check)).await? {
            Response::Checked { matched, sealed, attestation } => Ok((matched, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// Checks the seals of the rows that stand and seals those that come.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn seal(&self, rows: SealRows) -> Result<SealedRows, HsmError> {
        match self.call(Route::Any, Request::Seal(rows)).await? {
            Response::Sealed(sealed) => Ok(sealed),
            _ => Err(wrong_kind()),
        }
    }

    /// The keyed fingerprint of a request.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn fingerprint(&self, request: SecretBytes) -> Result<Fingerprint, HsmError> {
        match self.call(Route::Any, Request::Fingerprint(request)).await? {
            Response::Fingerprint(fingerprint) => Ok(fingerprint),
            _ => Err(wrong_kind()),
        }
    }

    /// 32 bytes of the HSM's random generator.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn random(&self) -> Result<[u8; 32], HsmError> {
        match self.call(Route::Any, Request::Random).await? {
            Response::Random(bytes) => Ok(bytes),
            _ => Err(wrong_kind()),
        }
    }

    /// The keys that attestations verify with, the newest first.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn attestation_keys(&self) -> Result<Vec<PublicKey>, HsmError> {
        match self.call(Route::Any, Request::AttestationKeys).await? {
            Response::AttestationKeys(keys) => Ok(keys),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether `signature` is one over `digest`, by our `attest` key of the RFC 7638 thumbprint `kid`.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn verify_attestation(
        &self,
        kid: String,
        digest: [u8; 32],
        signature: Signature,
    ) -> Result<bool, HsmError> {
        match self.call(Route::Any, Request::VerifyAttestation { kid, digest, signature }).await? {
            Response::AttestationVerified(verified) => Ok(verified),
            _ => Err(wrong_kind()),
        }
    }

    /// The first generation in which no two of the terminals' codes are equal. `first` is any of them.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn find_generation(&self, first: CredentialId, find: FindGeneration) -> Result<u32, HsmError> {
        match self.call(Route::Credential(first), Request::FindGeneration(find)).await? {
            Response::Generation(generation) => Ok(generation),
            _ => Err(wrong_kind()),
        }
    }

    /// The code of a presentation.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn presentation_code(
        &self,
        id: PresentationId,
        nonce: [u8; 32],
    ) -> Result<PresentationCode, HsmError> {
        let code = match self.call(Route::Any, Request::PresentationCode { id, nonce }).await? {
            Response::PresentationCode(code) => code,
            _ => return Err(wrong_kind()),
        };
        // Exposed to be spelt.
        code.expose().first_chunk().map(PresentationCode::new).ok_or_else(wrong_kind)
    }

    /// Both codes of an authorization by SMS, downlink and uplink: its row and its terminal's credential are in
    /// `standing`.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn authorization_codes(
        &self,
        terminal: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<(Otp, Otp), HsmError> {
        match self.call(Route::Credential(terminal), Request::AuthorizationCodes(standing)).await? {
            Response::AuthorizationCodes { downlink, uplink } => Ok((downlink, uplink)),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether somebody knows what only the right one knows of a rolling credential.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_rolling(
        &self,
        credential: CredentialId,
        check: CheckRolling,
    ) -> Result<RollingChecked, HsmError> {
        match self.call(Route::Credential(credential), Request::CheckRolling(check)).await? {
            Response::RollingChecked { valid, sealed, attestation, opened } => {
                Ok(RollingChecked { valid, sealed, attestation, opened })
            }
            _ => Err(wrong_kind()),
        }
    }

    /// The codes of a pending transaction's terminals, in its order. `first` is any of them.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn terminal_codes(
        &self,
        first: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<Vec<Otp>, HsmError> {
        match self.call(Route::Credential(first), Request::TerminalCodes(standing)).await? {
            Response::TerminalCodes(codes) => Ok(codes),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether what was entered is right, the seals of what that writes, and the attestation where one was asked for.
    /// `first` is any of the terminals.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_entry(
        &self,
        first: CredentialId,
        check: CheckEntry,
    ) -> Result<(bool, SealedRows, Option<String>), HsmError> {
        match self.call(Route::Credential(first), Request::CheckEntry(check)).await? {
            Response::EntryChecked { right, sealed, attestation } => Ok((right, sealed, attestation)),
            _ => Err(wrong_kind()),
        }
    }

    /// The open epoch of a rolling credential, whose temporary code has not been acknowledged.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn open_epoch(
        &self,
        credential: CredentialId,
        standing: Vec<SealedBytes>,
    ) -> Result<OpenedEpoch, HsmError> {
        match self.call(Route::Credential(credential), Request::OpenEpoch { standing }).await? {
            Response::Epoch(opened) => Ok(opened),
            _ => Err(wrong_kind()),
        }
    }

    /// Whether a step of an authorization is right, and the seals of what that writes.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check_authorization(
        &self,
        credential: CredentialId,
        check: CheckAuthorization,
    ) -> Result<(bool, SealedRows), HsmError> {
        match self.call(Route::Credential(credential), Request::CheckAuthorization(check)).await? {
            Response::AuthorizationChecked { accepted, sealed } => Ok((accepted, sealed)),
            _ => Err(wrong_kind()),
        }
    }

    /// Checks the seals of rows that are only read, in as many messages as they take.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn check(&self, standing: Vec<SealedBytes>) -> Result<(), HsmError> {
        for standing in portions(standing) {
            self.seal(SealRows { standing, outcome: Outcome::default() }).await?;
        }
        Ok(())
    }
}

fn operation(request: &Request) -> Operation {
    match request {
        Request::Health => Operation::Health,
        Request::Generate { .. } => Operation::Generate,
        Request::Import { .. } => Operation::Import,
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
    }
}

fn wrong_kind() -> HsmError {
    HsmError::Unavailable("the custodian answered something else".to_owned())
}

type Answer = oneshot::Receiver<Result<Result<Response, Fault>, Lost>>;

#[cfg(test)]
mod tests;
