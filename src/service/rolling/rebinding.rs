//! A rolling credential that lost its terminal, or whose terminal lost its temporary code: bound anew.

use crate::domain::audit::Event;
use crate::domain::credential::{Kind, ObjectId, Status, StoredSecret};
use crate::domain::id::CredentialId;
use crate::domain::otp::Algorithm;
use crate::domain::rolling::{Rolling, SALT_BYTES};
use crate::domain::row::{Row, RowKey};
use crate::hsm::Claim;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::{Commit, Standing};

use super::super::credential_view::CredentialView;
use super::super::memory::Recall;
use super::super::{Answer, Ask, RACES_MAX, audit, race_lost, seal};
use super::{Refused, RollingRows, Service};

impl Service {
    /// A new secret and salt, for a new activation. Its passwords and temporary codes so far are nobody's from here on;
    /// its failures stay.
    ///
    /// # Errors
    /// [`Refused`]; then nothing changed. [`Refused::Conflict`] while it is suspended, unless a turned back database is why
    /// and nothing else helps.
    pub async fn rebind(&self, mut ask: Ask, id: Option<CredentialId>) -> Result<Answer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(answer),
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let first = self.load_rolling(&tenant, id).await?;
        let _guard = self.locks.lock(&tenant, &first.rows.credential.row.account).await?;
        let mut fresh = None;
        for _ in 0..RACES_MAX {
            let RollingRows { rows, binding, .. } = self.load_rolling(&tenant, id).await?;
            if !matches!(rows.state.row.status, Status::Active | Status::Pending | Status::Stranded) {
                return Err(Refused::Conflict);
            }
            let (rolling, claim) = match &mut fresh {
                Some(fresh) => fresh,
                None => fresh.insert(self.new_rolling().await?),
            };
            let now = self.now();
            let replaced: Vec<ObjectId> =
                rows.credential.row.kind.secrets().filter_map(StoredSecret::object).collect();
            let credential = rows.credential.row.with_kind(Kind::Rolling(rolling.clone()));
            let state = rows.state.row.with_status(Status::Pending).bound(0);
            let answer = Answer::Changed(CredentialView::new(&credential, &state));
            let mut written: Vec<Row> = vec![credential.into(), state.into()];
            written.extend(memory.record(&answer, &now)?.map(Row::Idempotency));
            let mut standing = Vec::from(rows.to_bytes());
            let mut replaces = vec![0, 1];
            let mut before: Vec<Standing> =
                vec![(&rows.credential).into(), (&rows.state).into(), (&rows.account).into()];
            let mut removed = Vec::new();
            if let Some(binding) = &binding {
                replaces.push(3);
                standing.push(binding.to_bytes());
                before.push(binding.into());
                removed.push(RowKey::Binding(id));
            }
            let outcome = Outcome { replaces, rows: written.iter().map(Row::encode).collect() };
            let sealed = self.hsm.seal(SealRows { standing, outcome }).await?;
            let commit = Commit {
                before,
                rows: seal(written, &sealed)?,
                removed,
                sum_change: sealed.sum_change,
                audit: audit(&ask, &now, Event::Rebound, id),
            };
            if let Some(durable) = self.commit_naming(commit, std::slice::from_mut(claim), replaced).await? {
                return Ok(answer.release(durable));
            }
        }
        Err(race_lost())
    }

    /// The secrets of a binding that is to come: secret and salt are the HSM's.
    pub(in super::super) async fn new_rolling(&self) -> Result<(Rolling, Claim), Refused> {
        let made = self.hsm.generate(Algorithm::Sha256, false).await?;
        let random = self.hsm.random().await?;
        let salt: [u8; SALT_BYTES] =
            std::array::from_fn(|place| random.get(place).copied().unwrap_or_default());
        Ok((Rolling::new(made.stored, salt), made.claim))
    }
}
