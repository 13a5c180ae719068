//! The one place in front of the use cases: a request is let in, or told to come back; it waits for its tenant's turn; and
//! what is done for it is dropped when its time is over or its caller gone.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

use super::Api;
use super::problem::Problem;
use super::told::{Told, Waits};
use super::turns::{Ticket, Turns};
use crate::lifeline::Lifeline;
use crate::metrics::TurnedAway;
use crate::service::Service;
use crate::tls::Client;

/// The lines that tenants wait in.
pub(super) struct Admission {
    turns: Mutex<Turns<oneshot::Sender<()>>>,
    /// Woken when nobody is inside any more.
    empty: Notify,
    request_timeout: Duration,
}

impl Admission {
    /// So many requests inside and so many of them worked on at once, each answered within `request_timeout`.
    pub fn new(inside_max: usize, at_once: usize, request_timeout: Duration) -> Self {
        let turns = Mutex::new(Turns::new(inside_max, at_once));
        Self { turns, empty: Notify::new(), request_timeout }
    }

    fn turns(&self) -> MutexGuard<'_, Turns<oneshot::Sender<()>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests are inside, and how many of them wait for their turn.
    pub fn counts(&self) -> (usize, usize) {
        let turns = self.turns();
        (turns.inside(), turns.waiting())
    }

    /// Resolves when nobody is inside.
    pub async fn idle(&self) {
        loop {
            let empty = self.empty.notified();
            if self.turns().inside() == 0 {
                return;
            }
            empty.await;
        }
    }

    /// Passes the place of one of this tenant's that is worked on no more to whose turn it is.
    fn pass_on(&self, tenant: &str) {
        let next = self.turns().end(tenant);
        if let Some(next) = next {
            // If it waits no more, it passes the place on itself: it finds that its turn had come.
            let _ = next.send(());
        }
    }
}

/// A request's place inside.
struct Place {
    api: Arc<Api>,
    client: Arc<Client>,
}

impl Place {
    /// `None`: there is no room for one more of this client's tenant.
    fn take(api: &Arc<Api>, client: &Arc<Client>) -> Option<Self> {
        let is_in = api.admission.turns().enter(client.tenant_name());
        is_in.then(|| Self { api: api.clone(), client: client.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let admission = &self.api.admission;
        let mut turns = admission.turns();
        turns.leave(self.client.tenant_name());
        if turns.inside() == 0 {
            admission.empty.notify_waiters();
        }
    }
}

/// A place among those that are worked on, until it is dropped.
struct Working {
    api: Arc<Api>,
    client: Arc<Client>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.api.admission.pass_on(self.client.tenant_name());
    }
}

/// One whose turn has come: the use cases are reached through it alone. Dropped, it gives its place back, if it has not done
/// so before.
pub(super) struct Turn<'a> {
    api: &'a Api,
    line: Arc<Lifeline>,
}

impl Deref for Turn<'_> {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.api.service
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.line.end_turn();
    }
}

/// One that waits for its turn. Dropped, it waits no more.
struct Waiting<'a> {
    entrance: &'a Entrance,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let admission = &self.entrance.api.admission;
        let tenant = self.entrance.client.tenant_name();
        let waited = admission.turns().give_up(tenant, self.ticket);
        if !waited {
            admission.pass_on(tenant);
        }
    }
}

/// The API as a handler has it: its request's tenant is known.
pub(super) struct Entrance {
    api: Arc<Api>,
    client: Arc<Client>,
}

impl Deref for Entrance {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl Entrance {
    /// The use cases, when it is this tenant's turn. What can be refused without them is to be refused before.
    ///
    /// # Errors
    /// [`Problem::Unavailable`] only for a request that was not let in: there is none.
    pub async fn turn(&self) -> Result<Turn<'_>, Problem> {
        let not_let_in = || Problem::unavailable("it was not let in", 1);
        let line = Lifeline::current().ok_or_else(not_let_in)?;
        let (called, ticket) = {
            let mut turns = self.api.admission.turns();
            if turns.begin(self.client.tenant_name()) {
                drop(turns);
                return Ok(self.turn_of(line));
            }
            let (call, called) = oneshot::channel();
            (called, turns.wait(self.client.tenant_name(), call))
        };
        let ticket = ticket.ok_or_else(not_let_in)?;
        let waiting = Waiting { entrance: self, ticket };
        if called.await.is_err() {
            return Err(Problem::unavailable("nobody was called", 1));
        }
        // From here on it is the turn that passes the place on.
        std::mem::forget(waiting);
        Ok(self.turn_of(line))
    }

    fn turn_of(&self, line: Arc<Lifeline>) -> Turn<'_> {
        line.begin_turn(Working { api: self.api.clone(), client: self.client.clone() });
        Turn { api: &self.api, line }
    }
}

impl FromRequestParts<Arc<Api>> for Entrance {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let client = parts.extensions.get::<Arc<Client>>().cloned().ok_or(Problem::Unauthenticated)?;
        Ok(Self { api: api.clone(), client })
    }
}

/// What is done for a request, on a task of its own: a panic ends one request. Dropped, because its caller has gone, it
/// takes the task with it, but for one whose commit the store has: of that it is told how it ends.
struct Work {
    /// `None`: it has ended.
    task: Option<JoinHandle<Response>>,
    line: Arc<Lifeline>,
    told: Arc<Told>,
}

impl Work {
    /// Its answer, when there is one.
    async fn answer(&mut self) -> Response {
        let Some(task) = &mut self.task else {
            return Problem::unavailable("it was answered", 1).into_response();
        };
        let ended = task.await;
        self.task = None;
        answer_of(ended)
    }

    /// Ends it, unless it has to be carried out. Whether it has ended.
    fn end(&mut self) -> bool {
        let ends = self.line.let_go();
        if ends && let Some(task) = self.task.take() {
            task.abort();
        }
        ends
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.task.is_none() {
            return;
        }
        if self.end() {
            self.told.dropped();
            return;
        }
        // The runtime may be ending, and the task with it.
        if let (Some(task), Ok(runtime)) = (self.task.take(), Handle::try_current()) {
            let told = self.told.clone();
            runtime.spawn(async move { told.answered(&mut answer_of(task.await), Waits::NoMore) });
        }
    }
}

fn answer_of(ended: Result<Response, JoinError>) -> Response {
    ended.unwrap_or_else(|panic| Problem::unavailable(panic, 1).into_response())
}

/// Lets a client's request in and has it answered, by its deadline.
pub(super) async fn admitted(
    api: &Arc<Api>,
    client: &Arc<Client>,
    told: &Arc<Told>,
    request: Request,
    next: Next,
) -> Response {
    let line = Lifeline::until(Instant::now() + api.admission.request_timeout);
    let Some(place) = Place::take(api, client) else {
        api.metrics.turned_away.get_or_create(&TurnedAway::NoRoom).inc();
        return Problem::unavailable("too many requests at once", 1).into_response();
    };
    let task = tokio::spawn(line.clone().hold(async move {
        let response = next.run(request).await;
        drop(place);
        response
    }));
    let mut work = Work { task: Some(task), line, told: told.clone() };
    match timeout_at(work.line.deadline(), work.answer()).await {
        Ok(answer) => answer,
        Err(_) if work.end() => {
            api.metrics.turned_away.get_or_create(&TurnedAway::TooLate).inc();
            Problem::unavailable("it took longer than a request may", 1).into_response()
        }
        // What the store is asked to write is waited for: only then is known what to say.
        Err(_) => work.answer().await,
    }
}
