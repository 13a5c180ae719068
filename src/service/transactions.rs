//! Transactions: made, responded to, cancelled, read. One verdict, one commit, and the attestation in it.

use crate::domain::account::AccountRef;
use crate::domain::attestation::Attestation;
use crate::domain::audit::Event;
use crate::domain::caller::{Caller, Tenant};
use crate::domain::id::TransactionId;
use crate::domain::otp::Otp;
use crate::domain::row::{Row, RowKey, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::domain::transaction::{Method, State, Step, StepError, Transaction};
use crate::hsm::messages::{Outcome, SealRows};
use crate::lifeline::Lifeline;
use crate::store::{Commit, CommitError, Page, Standing, TransactionRows};

use super::memory::{Memory, Recall};
use super::pruning::Left;
use super::rolling::TemporaryCode;
use super::transaction_view::TransactionView;
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit_transaction, race_lost, seal};

mod attestations;
mod creation;
mod responses;
pub(in crate::service) mod terminals;

pub use creation::{Approval, ByCredential, ByTerminals, MethodName, NewTransaction};
pub use responses::{Decision, Presented};

/// An answer, with what is read for it: neither is kept with the answer.
pub struct TransactionAnswer {
    /// What is remembered, and answered again.
    pub answer: Answer,
    /// The transaction that it tells of.
    pub transaction: Option<ShownTransaction>,
    /// Of an approval by a rolling password: the next temporary code, while it may be told.
    pub next: Option<TemporaryCode>,
}

/// A transaction, and its attestation if it is approved.
pub struct ShownTransaction {
    /// As its bank sees it.
    pub view: TransactionView,
    /// The compact JWS.
    pub attestation: Option<String>,
    /// The codes of its terminals, in its order: while it is pending, for a client that sends them. Nothing keeps them.
    pub codes: Option<Vec<Otp>>,
}

impl ShownTransaction {
    /// The transaction that is among these rows; `None` if none is.
    fn of(rows: &[Row], parent: Option<&Sealed<Transaction>>) -> Option<Self> {
        let attestation = rows.iter().find_map(|row| match row {
            Row::Attestation(attestation) => Some(attestation.jws.clone()),
            _ => None,
        });
        rows.iter().find_map(|row| match row {
            Row::Transaction(transaction) => Some(Self {
                view: TransactionView::new(transaction, parent.map(|parent| &parent.row)),
                attestation: attestation.clone(),
                codes: None,
            }),
            _ => None,
        })
    }
}

/// A page of transactions.
pub struct ListedTransactions {
    /// In the order in which they were made.
    pub items: Vec<TransactionView>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<String>,
}

impl From<StepError> for Refused {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Ended(state) => Self::Ended(state),
            StepError::Overdue => Self::Ended(State::Expired),
            StepError::Interrupted => Self::Ended(State::Failed),
            StepError::NotDue => Self::Conflict,
            StepError::ClockUntrusted => Self::clock_untrusted(),
        }
    }
}

/// What is done to a transaction besides responding.
#[derive(Clone, Copy)]
enum Change {
    Cancel,
    Expire,
    Interrupt,
}

impl Change {
    fn step(self) -> Step {
        match self {
            Self::Cancel => Step::Cancel,
            Self::Expire => Step::Expire,
            Self::Interrupt => Step::Interrupt,
        }
    }

    fn event(self) -> Event {
        match self {
            Self::Cancel => Event::TransactionCancelled,
            Self::Expire => Event::TransactionExpired,
            Self::Interrupt => Event::TransactionInterrupted,
        }
    }

    fn answer(self, transaction: &Transaction) -> Answer {
        match self {
            Self::Cancel => Answer::Cancelled { transaction: transaction.id.to_string() },
            Self::Expire => Answer::Ended(State::Expired),
            Self::Interrupt => Answer::Ended(State::Failed),
        }
    }
}

/// How many overdue transactions are looked for at once.
const OVERDUE_BATCH: u16 = 100;

impl Service {
    /// Takes a pending transaction back.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn cancel(
        &self,
        mut ask: Ask,
        id: Option<TransactionId>,
    ) -> Result<TransactionAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        for _ in 0..RACES_MAX {
            let rows = self.load_transaction(&ask.caller.tenant, id).await?;
            let now = self.now();
            let told = match rows.transaction.row.after(Step::Cancel, &now) {
                Ok(_) => self.change_transaction(Some((&ask, &memory)), &rows, Change::Cancel, &now).await?,
                Err(error) => self.not_open(&ask, &memory, &rows, error, &now).await?,
            };
            if let Some(told) = told {
                return Ok(told);
            }
        }
        Err(race_lost())
    }

    /// One transaction, its seals checked, with the codes of its terminals if the client sends them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn transaction_with_codes(
        &self,
        caller: &Caller,
        id: TransactionId,
    ) -> Result<ShownTransaction, Refused> {
        let rows = self.settled(&caller.tenant, id).await?;
        let transaction = &rows.transaction;
        let codes = self.codes_to_send(caller, &transaction.row, transaction.to_bytes()).await?;
        Ok(ShownTransaction { codes, ..self.shown(rows).await? })
    }

    /// One transaction, its seals checked.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn transaction(&self, caller: &Caller, id: TransactionId) -> Result<ShownTransaction, Refused> {
        let rows = self.settled(&caller.tenant, id).await?;
        self.shown(rows).await
    }

    async fn shown(&self, rows: TransactionRows) -> Result<ShownTransaction, Refused> {
        let parent = self.parent_of(&rows.transaction.row).await?;
        self.hsm.check(parent.iter().map(Sealed::to_bytes).chain(all_bytes(&rows)).collect()).await?;
        Ok(ShownTransaction {
            view: TransactionView::new(&rows.transaction.row, parent.as_ref().map(|parent| &parent.row)),
            attestation: rows.attestation.map(|attestation| attestation.row.jws),
            codes: None,
        })
    }

    /// The tenant's transactions, or one payer's, their seals checked.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Invalid`] if `page.after` names no transaction of the tenant.
    pub async fn transactions(
        &self,
        caller: &Caller,
        payer: Option<&AccountRef>,
        page: Page<TransactionId>,
    ) -> Result<ListedTransactions, Refused> {
        let one_more = Page { limit: page.limit.saturating_add(1), ..page };
        let Some(mut found) = self.store.transactions(&caller.tenant, payer, one_more).await? else {
            return Err(Refused::Invalid { field: "after", reason: "must be the `next` of an earlier page" });
        };
        let more = found.len() > usize::from(page.limit);
        found.truncate(page.limit.into());
        let mut listed = Vec::with_capacity(found.len());
        for id in &found {
            match self.settled(&caller.tenant, *id).await {
                Ok(rows) => listed.push((self.parent_of(&rows.transaction.row).await?, rows)),
                // Pruned since.
                Err(Refused::Absent) => {}
                Err(refused) => return Err(refused),
            }
        }
        // All at once, in as few messages as they fit in: a page is not a hundred rounds through a custodian.
        let standing = |(parent, rows): &(Option<Sealed<Transaction>>, TransactionRows)| -> Vec<SealedBytes> {
            parent.iter().map(Sealed::to_bytes).chain(all_bytes(rows)).collect()
        };
        self.hsm.check(listed.iter().flat_map(standing).collect()).await?;
        let view = |(parent, rows): &(Option<Sealed<Transaction>>, TransactionRows)| {
            TransactionView::new(&rows.transaction.row, parent.as_ref().map(|parent| &parent.row))
        };
        let items: Vec<TransactionView> = listed.iter().map(view).collect();
        // What is there yet marks its place, if anything of the page is.
        let last = items.last().map(|item| item.id.clone()).or(found.last().map(TransactionId::to_string));
        let next = last.filter(|_| more);
        Ok(ListedTransactions { items, next })
    }

    /// Writes down which transactions' time is over; how many. No verdict rests on it: who comes to an overdue
    /// transaction first writes it down. Nothing while the clock is not trusted.
    pub(super) async fn expire_overdue(&self, left: &mut Left) -> Result<u64, Refused> {
        let mut expired = 0;
        loop {
            let now = self.now();
            let limit = OVERDUE_BATCH.saturating_add(left.count());
            let mut overdue = match now.trusted {
                true => self.store.overdue(now.unix_ms, limit).await?,
                false => Vec::new(),
            };
            overdue.retain(|(_, id)| !left.has(&RowKey::Transaction(*id)));
            if overdue.is_empty() {
                return Ok(expired);
            }
            for (tenant, id) in overdue {
                match self.settled(&tenant, id).await {
                    Ok(_) => expired += 1,
                    Err(refused) if refused.stays() => left.leave(RowKey::Transaction(id))?,
                    Err(refused) => return Err(refused),
                }
            }
        }
    }

    /// A transaction that is not overdue: if its time is over or was cut off, that is written down before anybody is
    /// told, so that nobody sees it ended and later approved. With a clock that stepped it is as it was.
    pub(super) async fn settled(
        &self,
        tenant: &Tenant,
        id: TransactionId,
    ) -> Result<TransactionRows, Refused> {
        for _ in 0..RACES_MAX {
            let rows = self.load_transaction(tenant, id).await?;
            let now = self.now();
            let change = match rows.transaction.row.open(&now) {
                Err(StepError::Overdue) => Change::Expire,
                Err(StepError::Interrupted) => Change::Interrupt,
                _ => return Ok(rows),
            };
            self.change_transaction(None, &rows, change, &now).await?;
            // That was not what anybody asked for: who asked may go as before.
            if Lifeline::current().is_some_and(|line| !line.hand_back()) {
                return Err(Refused::unavailable(CommitError::Abandoned));
            }
        }
        Err(race_lost())
    }

    /// `None`: lost a race, start over.
    async fn change_transaction(
        &self,
        asked: Option<(&Ask, &Memory<'_>)>,
        rows: &TransactionRows,
        change: Change,
        now: &Now,
    ) -> Result<Option<TransactionAnswer>, Refused> {
        let transaction = &rows.transaction.row;
        let answer = change.answer(transaction);
        let mut written = vec![Row::Transaction(transaction.after(change.step(), now)?)];
        if let Some((_, memory)) = asked {
            written.extend(memory.record(&answer, now)?.map(Row::Idempotency));
        }
        // All that is told is read before the commit: nothing can fail behind it.
        let (parent, shown) = match change {
            Change::Cancel => {
                let parent = self.parent_of(transaction).await?;
                let shown = ShownTransaction::of(&written, parent.as_ref());
                (parent, shown)
            }
            // Whoever finds it over is told no more than that.
            Change::Expire | Change::Interrupt => (None, None),
        };
        let standing = std::iter::once(&rows.transaction).chain(&parent).map(Sealed::to_bytes).collect();
        let outcome = Outcome { replaces: vec![0], rows: written.iter().map(Row::encode).collect() };
        let sealed = self.hsm.seal(SealRows { standing, outcome }).await?;
        let commit = Commit {
            before: vec![Standing::from(&rows.transaction)],
            rows: seal(written, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: audit_transaction(asked.map(|(ask, _)| ask), now, change.event(), transaction),
        };
        Ok(self.commit(commit).await?.map(|durable| TransactionAnswer {
            answer: answer.release(durable),
            transaction: shown,
            next: None,
        }))
    }

    /// What is asked for needs an open transaction, and it is none: if its time is over, that is written down.
    /// `None`: lost a race, start over.
    async fn not_open(
        &self,
        ask: &Ask,
        memory: &Memory<'_>,
        rows: &TransactionRows,
        error: StepError,
        now: &Now,
    ) -> Result<Option<TransactionAnswer>, Refused> {
        match error {
            StepError::Overdue => {
                self.change_transaction(Some((ask, memory)), rows, Change::Expire, now).await
            }
            StepError::Interrupted => {
                self.change_transaction(Some((ask, memory)), rows, Change::Interrupt, now).await
            }
            StepError::Ended(state) => self.too_late(ask, memory, rows, state, now).await,
            error => Err(error.into()),
        }
    }

    /// What comes after a transaction's end is remembered if that is wanted, and changes nothing.
    async fn too_late(
        &self,
        ask: &Ask,
        memory: &Memory<'_>,
        rows: &TransactionRows,
        state: State,
        now: &Now,
    ) -> Result<Option<TransactionAnswer>, Refused> {
        let answer = Answer::Ended(state);
        let Some(record) = memory.record(&answer, now)? else {
            // Nothing is written, so nothing else would look at the seals.
            self.hsm.check(all_bytes(rows).collect()).await?;
            return Err(Refused::Ended(state));
        };
        let row = Row::Idempotency(record);
        let sealed = self
            .hsm
            .seal(SealRows {
                standing: vec![rows.transaction.to_bytes()],
                outcome: Outcome { replaces: Vec::new(), rows: vec![row.encode()] },
            })
            .await?;
        let commit = Commit {
            before: vec![Standing::from(&rows.transaction)],
            rows: seal(vec![row], &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: audit_transaction(Some(ask), now, Event::TransactionEnded, &rows.transaction.row),
        };
        Ok(self.commit(commit).await?.map(|durable| TransactionAnswer {
            answer: answer.release(durable),
            transaction: None,
            next: None,
        }))
    }

    /// An answer that is remembered, with the transaction that it tells of, which is in its final state; or with the
    /// codes of one that waits for them still.
    async fn tell(&self, caller: &Caller, answer: Answer) -> Result<TransactionAnswer, Refused> {
        let transaction = match &answer {
            Answer::Approved { transaction }
            | Answer::ApprovedByPassword { transaction, .. }
            | Answer::Cancelled { transaction }
            | Answer::Rejected { transaction } => match TransactionId::parse(transaction) {
                Some(id) => Some(self.transaction(caller, id).await?),
                None => None,
            },
            Answer::TransactionCreated(view) | Answer::Entered(view) => self.with_codes(caller, view).await?,
            _ => None,
        };
        let next = match &answer {
            Answer::ApprovedByPassword { handed_out, .. } => {
                self.handed_out(&caller.tenant, handed_out).await?
            }
            _ => None,
        };
        Ok(TransactionAnswer { answer, transaction, next })
    }

    /// What was told of a transaction, with the codes that it waits for still.
    async fn with_codes(
        &self,
        caller: &Caller,
        view: &TransactionView,
    ) -> Result<Option<ShownTransaction>, Refused> {
        let asks_terminals = view.method == Method::MULTI_TERMINAL;
        let Some(id) = TransactionId::parse(&view.id).filter(|_| caller.delivers && asks_terminals) else {
            return Ok(None);
        };
        // Pruned since, or over: then there are none.
        let codes = match self.transaction_with_codes(caller, id).await {
            Ok(shown) => shown.codes,
            Err(Refused::Absent) => None,
            Err(refused) => return Err(refused),
        };
        Ok(codes.map(|codes| ShownTransaction { view: view.clone(), attestation: None, codes: Some(codes) }))
    }

    async fn load_transaction(&self, tenant: &Tenant, id: TransactionId) -> Result<TransactionRows, Refused> {
        self.store.transaction(tenant, id).await?.ok_or(Refused::Absent)
    }

    /// What a transaction follows, while that is kept.
    async fn parent_of(&self, transaction: &Transaction) -> Result<Option<Sealed<Transaction>>, Refused> {
        let Some(parent) = transaction.terms.parent else { return Ok(None) };
        let rows = self.store.transaction(&transaction.tenant, parent.id).await?;
        Ok(rows.map(|rows| rows.transaction))
    }
}

fn all_bytes(rows: &TransactionRows) -> impl Iterator<Item = SealedBytes> {
    let attestation = rows.attestation.as_ref().map(Sealed::<Attestation>::to_bytes);
    std::iter::once(rows.transaction.to_bytes()).chain(attestation)
}
