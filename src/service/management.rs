//! A credential's life besides its codes: get, list, suspend, resume, unlock, delete.

use crate::domain::account::AccountRef;
use crate::domain::audit::Event;
use crate::domain::caller::{Caller, Permission, Tenant};
use crate::domain::credential::{Status, StoredSecret};
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, RowKey};
use crate::domain::time::Now;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::{Commit, CredentialRows, Page, Standing};

use super::credential_view::CredentialView;
use super::memory::Recall;
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

/// What can be done to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No code is accepted until it is resumed.
    Suspend,
    /// Active again.
    Resume,
    /// Its and its account's failures and locks are forgotten.
    Unlock,
    /// Its secret is destroyed; its id stays taken for a while.
    Delete,
}

impl Action {
    /// What a client must be allowed to, any of these.
    pub fn permissions(self) -> &'static [Permission] {
        match self {
            Self::Unlock => &[Permission::Admin],
            Self::Resume => Permission::RESUMES,
            Self::Suspend | Self::Delete => &[Permission::Enroll],
        }
    }

    fn event(self) -> Event {
        match self {
            Self::Suspend => Event::Suspended,
            Self::Resume => Event::Resumed,
            Self::Unlock => Event::Unlocked,
            Self::Delete => Event::Deleted,
        }
    }

    /// The rows to write: each replaces the one of its kind.
    ///
    /// # Errors
    /// [`Refused::Absent`] for a tombstone, [`Refused::Conflict`] where there is nothing to suspend
    /// or resume, [`Refused::Forbidden`] to a caller who may not resume what is suspended for this reason.
    /// Unlocking is right also where nothing is locked.
    fn apply(self, rows: &CredentialRows, caller: &Caller, now: &Now) -> Result<Vec<Row>, Refused> {
        let (credential, state, account) = (&rows.credential.row, &rows.state.row, &rows.account.row);
        match (self, state.status) {
            (_, Status::Deleted) => Err(Refused::Absent),
            (Self::Suspend, Status::Active) => Ok(vec![state.with_status(Status::Suspended).into()]),
            (Self::Resume, Status::Suspended) if !caller.enrolls => Err(Refused::Forbidden),
            (Self::Resume, Status::Recovered) if !caller.administers => Err(Refused::Forbidden),
            (Self::Resume, Status::Suspended | Status::Recovered) => {
                Ok(vec![state.with_status(Status::Active).into()])
            }
            // Nor is one made active that never was.
            (Self::Suspend | Self::Resume, _) => Err(Refused::Conflict),
            (Self::Unlock, _) if state.attempts == Default::default() && account.is_clear() => Ok(Vec::new()),
            (Self::Unlock, _) => {
                let account = account.unlocked();
                Ok(vec![state.unlocked(account.epoch).into(), account.into()])
            }
            // The account's row stays: a deletion gives no guesses back.
            (Self::Delete, _) => {
                Ok(vec![credential.deleted(now.unix_ms).into(), state.with_status(Status::Deleted).into()])
            }
        }
    }

    fn answer(self, rows: &CredentialRows, written: &[Row]) -> Answer {
        let state = written.iter().find_map(|row| match row {
            Row::State(state) => Some(state),
            _ => None,
        });
        match self {
            Self::Delete => Answer::Deleted { id: rows.credential.row.id.to_string() },
            _ => Answer::Changed(CredentialView::new(&rows.credential.row, state.unwrap_or(&rows.state.row))),
        }
    }
}

/// A page of credentials.
pub struct Listed {
    /// In the order of enrolment.
    pub items: Vec<CredentialView>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<String>,
}

impl Service {
    /// Does `action` to a credential.
    ///
    /// # Errors
    /// [`Refused`]; then nothing changed.
    pub async fn change(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        action: Action,
    ) -> Result<Answer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(answer),
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let mut rows = self.load(&tenant, id).await?;
        let _guard = self.locks.lock(&tenant, &rows.credential.row.account).await?;
        for _ in 0..RACES_MAX {
            rows = self.load(&tenant, id).await?;
            let now = self.now();
            let mut written = action.apply(&rows, &ask.caller, &now)?;
            let answer = action.answer(&rows, &written);
            written.extend(memory.record(&answer, &now)?.map(Row::Idempotency));

            // Nothing of a binding is left behind: its password is nobody's from then on.
            let binding = match action {
                Action::Delete => self.store.binding(id).await?,
                _ => None,
            };
            let mut before: Vec<Standing> =
                vec![(&rows.credential).into(), (&rows.state).into(), (&rows.account).into()];
            let is_written = |standing: &Standing| written.iter().any(|new| new.key() == *standing.key());
            let places = (0u8..).zip(&before).filter(|(_, standing)| is_written(standing));
            let mut replaces: Vec<u8> = places.map(|(place, _)| place).collect();
            let mut bytes = Vec::from(rows.to_bytes());
            let mut removed = Vec::new();
            if let Some(binding) = &binding {
                replaces.extend(u8::try_from(bytes.len()));
                bytes.push(binding.to_bytes());
                before.push(binding.into());
                removed.push(RowKey::Binding(id));
            }
            // What was begun for a device goes with it.
            if let (Action::Delete, Some(begun)) = (action, self.store.authorization(id).await?) {
                replaces.extend(u8::try_from(bytes.len()));
                bytes.push(begun.to_bytes());
                before.push((&begun).into());
                removed.push(RowKey::Authorization(id));
            }
            let sealed = self
                .hsm
                .seal(SealRows {
                    standing: bytes,
                    outcome: Outcome { replaces, rows: written.iter().map(Row::encode).collect() },
                })
                .await?;
            let commit = Commit {
                before,
                rows: seal(written, &sealed)?,
                removed,
                sum_change: sealed.sum_change,
                audit: audit(&ask, &now, action.event(), id),
            };
            let unnamed = match action {
                Action::Delete => {
                    rows.credential.row.kind.secrets().filter_map(StoredSecret::object).collect()
                }
                _ => Vec::new(),
            };
            if let Some(durable) = self.commit_naming(commit, &mut [], unnamed).await? {
                return Ok(answer.release(durable));
            }
        }
        Err(race_lost())
    }

    /// One credential, its seals checked.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn get(&self, caller: &Caller, id: CredentialId) -> Result<CredentialView, Refused> {
        let rows = self.load(&caller.tenant, id).await?;
        if rows.state.row.status == Status::Deleted {
            return Err(Refused::Absent);
        }
        self.hsm.check(rows.to_bytes().into()).await?;
        Ok(CredentialView::new(&rows.credential.row, &rows.state.row))
    }

    /// The tenant's credentials, or one account's, their seals checked.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Invalid`] if `page.after` names no credential of the tenant.
    pub async fn list(
        &self,
        caller: &Caller,
        account: Option<&AccountRef>,
        page: Page<CredentialId>,
    ) -> Result<Listed, Refused> {
        let one_more = Page { limit: page.limit.saturating_add(1), ..page };
        let Some(mut found) = self.store.credentials(&caller.tenant, account, one_more).await? else {
            return Err(Refused::Invalid { field: "after", reason: "must be the `next` of an earlier page" });
        };
        let more = found.len() > usize::from(page.limit);
        found.truncate(page.limit.into());
        self.hsm.check(found.iter().flat_map(CredentialRows::to_bytes).collect()).await?;
        let items: Vec<_> =
            found.iter().map(|rows| CredentialView::new(&rows.credential.row, &rows.state.row)).collect();
        let next = if more { items.last().map(|item| item.id.clone()) } else { None };
        Ok(Listed { items, next })
    }

    async fn load(&self, tenant: &Tenant, id: CredentialId) -> Result<CredentialRows, Refused> {
        self.store.credential(tenant, id).await?.ok_or(Refused::Absent)
    }
}
