//! Binding a rolling credential to its terminal (seed B, step 301): once, and told again until the terminal has it.

use crate::domain::audit::Event;
use crate::domain::credential::{Kind, Status};
use crate::domain::id::CredentialId;
use crate::domain::otp::Algorithm;
use crate::domain::rolling::{Binding, Evidence};
use crate::domain::row::Row;
use crate::domain::time::Now;
use crate::hsm::NewSecret;
use crate::hsm::messages::{Outcome, SealRows};
use crate::secret::SecretBytes;
use crate::store::Commit;

use super::super::credential_view::CredentialView;
use super::super::memory::{Memory, Recall};
use super::super::verification::Attempt;
use super::super::verification::rolling::Claim;
use super::super::{Answer, Ask, RACES_MAX, audit, race_lost, seal};
use super::{HandedOut, Refused, RollingAnswer, RollingRows, Service, unbound};

/// What a terminal is bound by.
pub struct Activation {
    /// PBKDF2 of the identity code, 32 bytes.
    pub identity_key: SecretBytes,
    /// What the bank has checked.
    pub evidence: Evidence,
}

impl Service {
    /// Binds a pending credential. Of one that is bound and whose terminal has not acknowledged the first temporary
    /// code the same identity key gets that again; another one is a guess at the identity code, and charged.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is bound or charged.
    pub async fn activate(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        activation: Activation,
    ) -> Result<RollingAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell_rolling(&ask.caller.tenant, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let first = self.load_rolling(&tenant, id).await?;
        let _guard = self.locks.lock(&tenant, &first.rows.credential.row.account).await?;
        let mut kept = None;
        for _ in 0..RACES_MAX {
            let all = self.load_rolling(&tenant, id).await?;
            let now = self.now();
            let told = match all.rows.state.row.status {
                Status::Pending => {
                    let key = match &mut kept {
                        Some(key) => key,
                        // Exposed to be sent to the custodian.
                        None => {
                            let key = SecretBytes::new(activation.identity_key.expose().to_vec());
                            kept.insert(self.hsm.import(Algorithm::Sha256, key).await?)
                        }
                    };
                    self.bind(&ask, &memory, &all, (key, &activation.evidence), &now).await?
                }
                Status::Active => self.bound_again(&ask, &memory, &all, &activation, &now).await?,
                _ => return Err(Refused::Conflict),
            };
            if let Some(told) = told {
                return Ok(told);
            }
        }
        Err(race_lost())
    }

    /// `None`: lost a race, start over.
    async fn bind(
        &self,
        ask: &Ask,
        memory: &Memory<'_>,
        all: &RollingRows,
        (identity_key, evidence): (&mut NewSecret, &Evidence),
        now: &Now,
    ) -> Result<Option<RollingAnswer>, Refused> {
        let rows = &all.rows;
        let standing = Vec::from(rows.to_bytes());
        let credential = &rows.credential.row;
        let opened = self.hsm.open_epoch(credential.id, standing.clone()).await?;
        let binding = Binding::first(credential.id, credential.tenant.clone(), opened.lookup);
        let rolling = all.rolling.clone().activated(identity_key.stored.clone(), evidence.clone());
        let credential = credential.with_kind(Kind::Rolling(rolling));
        let state = rows.state.row.with_status(Status::Active).bound(binding.version);
        let view = CredentialView::new(&credential, &state);
        let handed_out = HandedOut::new(&credential, opened.epoch);
        let answer = Answer::Activated { view, handed_out };
        let id = credential.id;
        let mut written: Vec<Row> = vec![credential.into(), state.into(), binding.into()];
        written.extend(memory.record(&answer, now)?.map(Row::Idempotency));
        let outcome = Outcome { replaces: vec![0, 1], rows: written.iter().map(Row::encode).collect() };
        let sealed = self.hsm.seal(SealRows { standing, outcome }).await?;
        let commit = Commit {
            before: vec![(&rows.credential).into(), (&rows.state).into(), (&rows.account).into()],
            rows: seal(written, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: audit(ask, now, Event::Activated, id),
        };
        let claims = std::slice::from_mut(&mut identity_key.claim);
        Ok(self
            .commit_naming(commit, claims, Vec::new())
            .await?
            .map(|durable| RollingAnswer { answer: answer.release(durable), code: Some(opened.into()) }))
    }

    /// Of one that is bound; `None`: lost a race, start over.
    async fn bound_again(
        &self,
        ask: &Ask,
        memory: &Memory<'_>,
        all: &RollingRows,
        activation: &Activation,
        now: &Now,
    ) -> Result<Option<RollingAnswer>, Refused> {
        let binding = all.binding.as_ref().ok_or_else(unbound)?;
        if binding.row.epoch != 1 || !binding.row.is_handed_out() {
            return self.of_no_use(all).await;
        }
        let attempt = Attempt { memory, rows: &all.rows, transaction: None, now };
        let claim = Claim::IdentityKey(&activation.identity_key);
        let (judged, code) = self.judge_rolling(attempt, binding, claim).await?;
        let id = all.rows.credential.row.id;
        let answer = self.commit_verdict(ask, now, Some(id), None, judged).await?;
        Ok(answer.map(|answer| RollingAnswer { answer, code }))
    }
}
