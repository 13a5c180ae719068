//! Authorizing a device for an account (seed C, S100 and S200): begun and read here; its steps are in the file beside.

use crate::domain::audit::Event;
use crate::domain::authorization::{ATTEMPTS_MAX, Authorization, Halt, LIFETIME_S, Means};
use crate::domain::caller::{Caller, Tenant};
use crate::domain::credential::{Credential, Status};
use crate::domain::id::CredentialId;
use crate::domain::otp::Otp;
use crate::domain::rolling::Evidence;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::domain::transaction::deadline;
use crate::domain::verification::unlocked;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::{Commit, CredentialRows, Standing};

use super::authorization_view::AuthorizationView;
use super::memory::Recall;
use super::transactions::terminals::is_active_terminal;
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

mod steps;

/// How the user is to show who he is.
pub enum NewAuthorization {
    /// By a message to this terminal, and one from it.
    Sms {
        /// The terminal; `None` for an id that nobody has.
        terminal: Option<CredentialId>,
    },
    /// By a password that the bank has checked.
    Password {
        /// The bank's reference of that.
        evidence: Evidence,
    },
}

/// Both codes of an authorization by SMS, for whoever sends them out. Secret until they are used.
pub struct AuthorizationCodes {
    /// For the terminal.
    pub downlink: Otp,
    /// For the device to show; the user sends it from the terminal.
    pub uplink: Otp,
}

/// An answer, with the codes that are derived for it: they are not kept with it.
pub struct AuthorizationAnswer {
    /// What is remembered, and answered again.
    pub answer: Answer,
    /// For a caller that delivers.
    pub codes: Option<AuthorizationCodes>,
}

impl From<Halt> for Refused {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Over => Self::Expired,
            Halt::ClockUntrusted => Self::clock_untrusted(),
        }
    }
}

/// An authorization that is under way, and all that a verdict on it stands on.
struct UnderWay {
    device: CredentialRows,
    authorization: Sealed<Authorization>,
    /// Its terminal, of one by SMS.
    terminal: Option<CredentialRows>,
}

impl UnderWay {
    /// Its rows besides those of the device.
    fn before(&self) -> impl Iterator<Item = Standing> {
        let terminal =
            self.terminal.iter().flat_map(|rows| [(&rows.credential).into(), (&rows.state).into()]);
        std::iter::once(Standing::from(&self.authorization)).chain(terminal)
    }

    /// The same with their seals, in the order of a message.
    fn bytes(&self) -> Vec<SealedBytes> {
        let terminal =
            self.terminal.iter().flat_map(|rows| [rows.credential.to_bytes(), rows.state.to_bytes()]);
        std::iter::once(self.authorization.to_bytes()).chain(terminal).collect()
    }
}

impl Service {
    /// Begins the authorization of a device; one that was begun before comes to nothing.
    ///
    /// # Errors
    /// [`Refused`]; then none was begun.
    pub async fn begin_authorization(
        &self,
        mut ask: Ask,
        id: Option<CredentialId>,
        wanted: NewAuthorization,
    ) -> Result<AuthorizationAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell_authorization(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let account = self.device(&tenant, id).await?.credential.row.account;
        let _guard = self.locks.lock(&tenant, &account).await?;
        for _ in 0..RACES_MAX {
            let device = self.device(&tenant, id).await?;
            let now = self.now();
            if device.state.row.status != Status::Unauthorized {
                return Err(Refused::Conflict);
            }
            if !now.trusted {
                return Err(Refused::clock_untrusted());
            }
            let (means, terminal) = match &wanted {
                NewAuthorization::Sms { terminal } => {
                    // No message is sent out for what no code could complete.
                    unlocked(device.subject(), false, &now)?;
                    let rows = self.usable_terminal(&device, *terminal, &now).await?;
                    (Means::Sms { terminal: rows.credential.row.id }, Some(rows))
                }
                NewAuthorization::Password { evidence } => {
                    (Means::Password { evidence: evidence.clone() }, None)
                }
            };
            let begun = self.store.authorization(id).await?;
            let authorization = Authorization {
                credential: id,
                tenant: tenant.clone(),
                account: account.clone(),
                version: begun.as_ref().map_or(1, |begun| begun.row.version.saturating_add(1)),
                means,
                nonce: self.hsm.random().await?,
                expires: deadline(&now, LIFETIME_S),
                uplink_seen: false,
                attempts_left: ATTEMPTS_MAX,
            };
            let answer = Answer::AuthorizationBegun(AuthorizationView::new(&authorization));
            let mut rows = vec![Row::Authorization(authorization)];
            rows.extend(memory.record(&answer, &now)?.map(Row::Idempotency));

            let replaces = begun.iter().map(|_| 0).collect();
            let mut bytes: Vec<_> = begun.iter().map(Sealed::to_bytes).collect();
            let mut before: Vec<_> = begun.iter().map(Standing::from).collect();
            for rows in std::iter::once(&device).chain(&terminal) {
                bytes.extend(rows.to_bytes());
                before.extend([Standing::from(&rows.credential), (&rows.state).into()]);
            }
            // No code completes it while the account is locked: it is told by this row.
            if terminal.is_some() {
                before.push((&device.account).into());
            }
            let outcome = Outcome { replaces, rows: rows.iter().map(Row::encode).collect() };
            let sealed = self.hsm.seal(SealRows { standing: bytes, outcome }).await?;
            let rows = seal(rows, &sealed)?;
            let codes = match (&terminal, rows.first()) {
                (Some(terminal), Some(authorization)) => {
                    Some(self.codes_of(authorization.to_bytes(), &terminal.credential).await?)
                }
                _ => None,
            };
            if codes.as_ref().is_some_and(|codes| codes.downlink.matches(&codes.uplink)) {
                // Who was shown the one would know the other: another nonce.
                continue;
            }
            let commit = Commit {
                before,
                rows,
                removed: Vec::new(),
                sum_change: sealed.sum_change,
                audit: audit(&ask, &now, Event::AuthorizationBegun, id),
            };
            if let Some(durable) = self.commit(commit).await? {
                let codes = codes.filter(|_| ask.caller.delivers);
                return Ok(AuthorizationAnswer { answer: answer.release(durable), codes });
            }
        }
        Err(race_lost())
    }

    /// The authorization of a device that is under way, its seals checked; its codes for a caller that delivers.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn authorization(
        &self,
        caller: &Caller,
        id: CredentialId,
    ) -> Result<(AuthorizationView, Option<AuthorizationCodes>), Refused> {
        let under_way = self.under_way(&caller.tenant, id, None).await?;
        let authorization = &under_way.authorization;
        authorization.row.open(&self.now())?;
        let codes = match &under_way.terminal {
            Some(terminal) if caller.delivers => {
                Some(self.codes_of(authorization.to_bytes(), &terminal.credential).await?)
            }
            _ => None,
        };
        Ok((AuthorizationView::new(&authorization.row), codes))
    }

    /// An answer that is remembered, with its codes again while they are good for something.
    async fn tell_authorization(
        &self,
        caller: &Caller,
        answer: Answer,
    ) -> Result<AuthorizationAnswer, Refused> {
        let begun = match &answer {
            Answer::AuthorizationBegun(view) if caller.delivers => Some(view),
            _ => None,
        };
        let Some((begun, id)) = begun.and_then(|view| Some((view, CredentialId::parse(&view.credential)?)))
        else {
            return Ok(AuthorizationAnswer { answer, codes: None });
        };
        let codes = match self.authorization(caller, id).await {
            Ok((view, codes)) if view.nonce == begun.nonce => codes,
            // Another one was begun since; or it is completed, or over.
            Ok(_) | Err(Refused::Absent | Refused::Conflict | Refused::Expired) => None,
            Err(refused) => return Err(refused),
        };
        Ok(AuthorizationAnswer { answer, codes })
    }

    async fn codes_of(
        &self,
        authorization: SealedBytes,
        terminal: &Sealed<Credential>,
    ) -> Result<AuthorizationCodes, Refused> {
        let standing = vec![authorization, terminal.to_bytes()];
        let (downlink, uplink) = self.hsm.authorization_codes(terminal.row.id, standing).await?;
        Ok(AuthorizationCodes { downlink, uplink })
    }

    /// What a code can be sent to.
    async fn usable_terminal(
        &self,
        device: &CredentialRows,
        terminal: Option<CredentialId>,
        now: &Now,
    ) -> Result<CredentialRows, Refused> {
        let account = &device.credential.row.account;
        let rows = match terminal {
            Some(id) => self.store.credential(&device.credential.row.tenant, id).await?,
            None => None,
        };
        let rows = rows.filter(|rows| is_active_terminal(rows) && rows.credential.row.account == *account);
        let rows = rows.ok_or(Refused::Invalid {
            field: "terminal",
            reason: "must be an active terminal of the same account",
        })?;
        match self.is_cooled_terminal(&rows, now) {
            true => Ok(rows),
            false => Err(Refused::Invalid {
                field: "terminal",
                reason: "was enrolled too short a time ago for codes to be sent to it",
            }),
        }
    }

    /// A device, deleted ones excluded.
    async fn device(&self, tenant: &Tenant, id: CredentialId) -> Result<CredentialRows, Refused> {
        let rows = self.store.credential(tenant, id).await?.ok_or(Refused::Absent)?;
        match rows.state.row.status {
            Status::Deleted => Err(Refused::Absent),
            _ => Ok(rows),
        }
    }

    /// What is under way, its seals checked: who is refused is refused for what is so. Somebody who may be guessing
    /// (`guessed`, now) is told of a lock before that, without the HSM.
    async fn under_way(
        &self,
        tenant: &Tenant,
        id: CredentialId,
        guessed: Option<&Now>,
    ) -> Result<UnderWay, Refused> {
        let device = self.device(tenant, id).await?;
        let device_bytes = device.to_bytes();
        let Some(authorization) = self.store.authorization(id).await? else {
            self.hsm.check(device_bytes.into()).await?;
            return Err(match device.state.row.status {
                Status::Unauthorized => Refused::Absent,
                _ => Refused::Conflict,
            });
        };
        let terminal = match authorization.row.terminal() {
            Some(id) => self.store.credential(tenant, id).await?,
            None => None,
        };
        let is_by_sms = authorization.row.terminal().is_some();
        if let (true, Some(now)) = (is_by_sms, guessed) {
            // Codes can be guessed; a signature cannot, so no lock stops it.
            unlocked(device.subject(), false, now)?;
        }
        let under_way = UnderWay { device, authorization, terminal };
        self.hsm.check(device_bytes.into_iter().chain(under_way.bytes()).collect()).await?;
        // The device is not waiting for it, or its terminal has gone since.
        let is_lost = is_by_sms && !under_way.terminal.as_ref().is_some_and(is_active_terminal);
        match under_way.device.state.row.status == Status::Unauthorized && !is_lost {
            true => Ok(under_way),
            false => Err(Refused::Conflict),
        }
    }
}
