//! Presented codes (seed C): a device asks for one (step 1), its user shows it (2), a transaction claims it (3),
//! and the device learns what it is to decide on (4).

use crate::domain::account::AccountRef;
use crate::domain::audit::Event;
use crate::domain::caller::{Caller, Tenant};
use crate::domain::credential::Kind;
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::presentation::{
    IssuedAt, LIFETIME_S, Presentation, PresentationCode, PresentationState, signing_input,
};
use crate::domain::row::{Row, Sealed};
use crate::domain::text::is_nfc;
use crate::domain::time::{Now, rfc3339};
use crate::domain::transaction::deadline;
use crate::domain::verification::{remaining, usable};

use super::memory::Recall;
use super::presentation_view::PresentationView;
use super::verification::proofs::{DeviceProof, proof};
use super::verification::signatures::Endings;
use super::verification::{Attempt, Judged, STATE};
use super::{Answer, Ask, RACES_MAX, Refused, Service, race_lost};

/// What a device asks for.
pub struct NewPresentation {
    /// The account that it speaks for.
    pub account: AccountRef,
    /// Its credential; `None` for an id that nobody has.
    pub credential: Option<CredentialId>,
    /// When, by its own clock.
    pub issued_at: IssuedAt,
    /// What it signed.
    pub proof: DeviceProof,
}

/// An answer, with the code that is derived for it: that is not kept with it.
pub struct PresentationAnswer {
    /// What is remembered, and answered again.
    pub answer: Answer,
    /// The code, if one was made.
    pub code: Option<PresentationCode>,
}

impl Service {
    /// Makes a code for a device to show, if the device signed that it wants one.
    ///
    /// # Errors
    /// [`Refused`]; then there is none, and nothing is charged.
    pub async fn present(
        &self,
        mut ask: Ask,
        wanted: NewPresentation,
    ) -> Result<PresentationAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell_presentation(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let id = wanted.credential.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let load = || async { self.store.credential(&tenant, id).await?.ok_or(Refused::Absent) };
        let account = load().await?.credential.row.account;
        // Each moves the credential's mark: those of one device go one after the other.
        let _guard = self.locks.lock(&tenant, &account).await?;
        for _ in 0..RACES_MAX {
            let rows = load().await?;
            let now = self.now();
            let attempt = Attempt { memory: &memory, rows: &rows, transaction: None, now: &now };
            let (judged, code) = self.judge_request(attempt, &wanted).await?;
            if let Some(answer) = self.commit_verdict(&ask, &now, Some(id), None, judged).await? {
                let code = matches!(answer, Answer::Presented { .. }).then_some(code);
                return Ok(PresentationAnswer { answer, code });
            }
        }
        Err(race_lost())
    }

    async fn judge_request(
        &self,
        attempt: Attempt<'_>,
        wanted: &NewPresentation,
    ) -> Result<(Judged, PresentationCode), Refused> {
        let (subject, now) = (attempt.subject(), attempt.now);
        usable(subject)?;
        let credential = subject.credential;
        if !matches!(credential.kind, Kind::Signer(_) | Kind::CertifiedSigner(_)) {
            let reason =
                "must be a signer, and no WebAuthn authenticator: that would sign no more than a challenge";
            return Err(Refused::Invalid { field: "credential", reason });
        }
        if wanted.account != credential.account {
            let reason = "must be the account that the credential speaks for";
            return Err(Refused::Invalid { field: "account", reason });
        }
        if !is_nfc(wanted.account.as_str()) {
            let reason = "the account's name is not in Unicode's form C";
            return Err(Refused::Invalid { field: "account", reason });
        }
        if !now.trusted {
            return Err(Refused::clock_untrusted());
        }
        if !wanted.issued_at.is_near(now) {
            let reason = "is more than 30 seconds away from the appliance's time";
            return Err(Refused::Invalid { field: "issued_at", reason });
        }
        if !wanted.issued_at.is_new(subject.state.next_factor) {
            return Err(Refused::Conflict);
        }
        let message = signing_input(&credential.tenant, &wanted.account, credential.id, wanted.issued_at);
        let proof = proof(attempt, &message, &wanted.proof)?;

        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Refused::unavailable)?;
        let id = PresentationId::from_random(id);
        let nonce = self.hsm.random().await?;
        let code = self.hsm.presentation_code(id, nonce, None).await?;
        let presentation = Presentation {
            id,
            tenant: credential.tenant.clone(),
            version: 1,
            credential: credential.id,
            account: credential.account.clone(),
            created_unix_ms: now.unix_ms,
            nonce,
            code_hash: code.hash(),
            expires: deadline(now, LIFETIME_S),
            transaction: None,
        };
        let answer = Answer::Presented {
            presentation: id.to_string(),
            expires_at: rfc3339(presentation.expires.unix_ms()),
        };
        let failed = Answer::VerificationFailed { attempts_remaining: remaining(subject, now) };
        let written = vec![
            Row::State(subject.state.counted(wanted.issued_at.next_s())),
            Row::Presentation(presentation),
        ];
        let endings = Endings {
            accepted: attempt.ending(Event::PresentationMade, vec![STATE], written, answer)?,
            refused: attempt.ending(Event::PresentationRefused, Vec::new(), Vec::new(), failed)?,
        };
        Ok((self.check_signed(attempt, proof, endings, None).await?, code))
    }

    /// One presentation, its seals checked, and what has become of the transaction that claimed it.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn presentation(
        &self,
        caller: &Caller,
        id: PresentationId,
    ) -> Result<PresentationView, Refused> {
        let sealed = self.load_presentation(&caller.tenant, id).await?;
        let presentation = &sealed.row;
        let claimed = match presentation.transaction {
            Some(transaction) => match self.settled(&caller.tenant, transaction).await {
                Ok(rows) => Some(rows.transaction),
                // Pruned since.
                Err(Refused::Absent) => None,
                Err(refused) => return Err(refused),
            },
            None => None,
        };
        let transaction = claimed.iter().map(Sealed::to_bytes);
        self.hsm.check(std::iter::once(sealed.to_bytes()).chain(transaction).collect()).await?;
        let state = state_of(presentation, &self.now())?;
        Ok(PresentationView::new(presentation, state, claimed.as_ref().map(|claimed| &claimed.row)))
    }

    /// The code of a presentation that is open, to be shown again.
    ///
    /// # Errors
    /// [`Refused::Conflict`] once it is claimed, [`Refused::Expired`] once its time is over; [`Refused`].
    pub async fn presentation_code(
        &self,
        caller: &Caller,
        id: PresentationId,
    ) -> Result<PresentationCode, Refused> {
        let sealed = self.load_presentation(&caller.tenant, id).await?;
        self.hsm.check(vec![sealed.to_bytes()]).await?;
        match state_of(&sealed.row, &self.now())? {
            PresentationState::Open => self.derived(&sealed.row).await,
            PresentationState::Claimed => Err(Refused::Conflict),
            PresentationState::Expired => Err(Refused::Expired),
        }
    }

    async fn load_presentation(
        &self,
        tenant: &Tenant,
        id: PresentationId,
    ) -> Result<Sealed<Presentation>, Refused> {
        self.store.presentation(tenant, id).await?.ok_or(Refused::Absent)
    }

    /// An answer that is remembered, with the code of the presentation that it tells of.
    async fn tell_presentation(
        &self,
        caller: &Caller,
        answer: Answer,
    ) -> Result<PresentationAnswer, Refused> {
        let id = match &answer {
            Answer::Presented { presentation, .. } => PresentationId::parse(presentation),
            _ => None,
        };
        let code = match id {
            Some(id) => {
                let sealed = self.load_presentation(&caller.tenant, id).await?;
                self.hsm.check(vec![sealed.to_bytes()]).await?;
                Some(self.derived(&sealed.row).await?)
            }
            None => None,
        };
        Ok(PresentationAnswer { answer, code })
    }

    /// The same code again.
    async fn derived(&self, presentation: &Presentation) -> Result<PresentationCode, Refused> {
        let Presentation { id, nonce, code_hash, .. } = presentation;
        let code = self.hsm.presentation_code(*id, *nonce, Some(*code_hash)).await?;
        match code.hash() == presentation.code_hash {
            true => Ok(code),
            false => Err(Refused::unavailable("a code was derived from a `row` key that is gone")),
        }
    }
}

/// What it is good for; with a clock that stepped nobody knows, unless it is claimed.
///
/// # Errors
/// [`Refused::Unavailable`].
pub(super) fn state_of(presentation: &Presentation, now: &Now) -> Result<PresentationState, Refused> {
    match presentation.state(now) {
        PresentationState::Claimed => Ok(PresentationState::Claimed),
        _ if !now.trusted => Err(Refused::clock_untrusted()),
        state => Ok(state),
    }
}
