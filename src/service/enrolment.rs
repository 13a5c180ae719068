//! Enrolling a credential: its secret is made or taken in by the HSM, and kept wrapped.

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use crate::domain::account::{Account, AccountRef};
use crate::domain::audit::Event;
use crate::domain::caller::Tenant;
use crate::domain::credential::{Credential, CredentialState, WrappedSecret};
use crate::domain::id::CredentialId;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::row::{Row, Sealed};
use crate::hsm::messages::{Outcome, SealRows};
use crate::secret::SecretBytes;
use crate::store::Commit;

use super::credential_view::CredentialView;
use super::memory::Recall;
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

/// What is to be enrolled.
pub struct Enrolment {
    /// The account it will speak for.
    pub account: AccountRef,
    /// The hash of its codes.
    pub algorithm: Algorithm,
    /// The length of its codes.
    pub digits: Digits,
    /// Counter or time.
    pub moving_factor: MovingFactor,
    /// hotp: the first counter expected.
    pub counter: u64,
    /// 16 to 64 bytes; `None`: the HSM generates one.
    pub seed: Option<SecretBytes>,
    /// Whether the answer is to hold the `otpauth` URI.
    pub export: bool,
}

/// A credential that was enrolled.
pub struct Enrolled {
    /// What is remembered, and answered again.
    pub answer: Answer,
    /// The `otpauth` URI: in this one answer only.
    pub otpauth: Option<Zeroizing<String>>,
}

impl Service {
    /// Enrols a credential.
    ///
    /// # Errors
    /// [`Refused`]; then nothing was enrolled.
    pub async fn enrol(&self, mut ask: Ask, mut wanted: Enrolment) -> Result<Enrolled, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(Enrolled { answer, otpauth: None }),
            Recall::New(memory) => memory,
        };
        if wanted.export && !self.policy.allow_export {
            return Err(Refused::Invalid { field: "export", reason: "this appliance hands no seed out" });
        }
        let tenant = ask.caller.tenant.clone();
        let _guard = self.locks.lock(&tenant, &wanted.account).await?;
        let (secret, otpauth) = self.secret(&tenant, &mut wanted).await?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Refused::unavailable)?;
        let id = CredentialId::from_random(id);

        for _ in 0..RACES_MAX {
            let now = self.now();
            // Made with its first credential: the row that limits guessing has to be there.
            let known: Option<Sealed<Account>> = self.store.account(&tenant, &wanted.account).await?;
            let account = known
                .as_ref()
                .map_or_else(|| Account::new(tenant.clone(), wanted.account.clone()), |k| k.row.clone());
            let credential = Credential {
                id,
                tenant: tenant.clone(),
                account: wanted.account.clone(),
                version: 1,
                created_unix_ms: now.unix_ms,
                algorithm: wanted.algorithm,
                digits: wanted.digits,
                moving_factor: wanted.moving_factor,
                secret: Some(secret.clone()),
                deleted_unix_ms: None,
            };
            let state = CredentialState::new(id, tenant.clone(), wanted.counter, account.epoch);
            let answer = Answer::Enrolled(CredentialView::new(&credential, &state));
            let mut rows = vec![Row::Credential(credential), Row::State(state)];
            if known.is_none() {
                rows.push(Row::Account(account));
            }
            rows.extend(memory.record(&answer, &now)?.map(Row::Idempotency));
            let sealed = self
                .hsm
                .seal(SealRows {
                    standing: known.iter().map(Sealed::to_bytes).collect(),
                    outcome: Outcome { replaces: Vec::new(), rows: rows.iter().map(Row::encode).collect() },
                })
                .await?;
            let standing = known.map(|known| Row::Account(known.row));
            let commit = Commit {
                standing: standing.iter().map(|row| (row.key(), row.version())).collect(),
                rows: seal(rows, &sealed)?,
                removed: Vec::new(),
                sum_change: sealed.sum_change,
                audit: audit(&ask, &now, Event::Enrolled, id),
            };
            if let Some(durable) = self.commit(commit).await? {
                return Ok(Enrolled { answer: answer.release(durable), otpauth });
            }
        }
        Err(race_lost())
    }

    /// The wrapped secret, and the URI where one is wanted.
    async fn secret(
        &self,
        tenant: &Tenant,
        wanted: &mut Enrolment,
    ) -> Result<(WrappedSecret, Option<Zeroizing<String>>), Refused> {
        let Some(seed) = wanted.seed.take() else {
            let made = self.hsm.generate(wanted.algorithm, wanted.export).await?;
            return Ok((made.wrapped, made.exported.map(|seed| otpauth(tenant, wanted, &seed))));
        };
        let uri = wanted.export.then(|| otpauth(tenant, wanted, &seed));
        Ok((self.hsm.import(wanted.algorithm, seed).await?.wrapped, uri))
    }
}

/// The `otpauth` URI that authenticator apps read. It declassifies the seed: it was asked for, and
/// the configuration allows it.
fn otpauth(tenant: &Tenant, wanted: &Enrolment, seed: &SecretBytes) -> Zeroizing<String> {
    let (kind, moves) = match wanted.moving_factor {
        MovingFactor::Hotp { .. } => ("hotp", format!("counter={}", wanted.counter)),
        MovingFactor::Totp { period_s, .. } => ("totp", format!("period={period_s}")),
    };
    let secret = Zeroizing::new(BASE32_NOPAD.encode(seed.expose()));
    Zeroizing::new(format!(
        "otpauth://{kind}/{issuer}:{account}?secret={secret}&issuer={issuer}&algorithm={algorithm}&digits={digits}&{moves}",
        issuer = percent_encoded(tenant.as_str()),
        account = percent_encoded(wanted.account.as_str()),
        secret = secret.as_str(),
        algorithm = wanted.algorithm.name(),
        digits = u8::from(wanted.digits),
    ))
}

/// RFC 3986, section 2.1: everything but the unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_is_what_authenticator_apps_read() {
        let wanted = Enrolment {
            account: "M\u{fc}ller & Co:1".to_owned().try_into().unwrap(),
            algorithm: Algorithm::Sha256,
            digits: 8.try_into().unwrap(),
            moving_factor: MovingFactor::Totp { period_s: 60, skew_steps: 1 },
            counter: 0,
            seed: None,
            export: true,
        };
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        let uri = otpauth(&tenant, &wanted, &SecretBytes::new(b"12345678901234567890".to_vec()));
        assert_eq!(
            uri.as_str(),
            "otpauth://totp/bank-a:M%C3%BCller%20%26%20Co%3A1?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
             &issuer=bank-a&algorithm=SHA256&digits=8&period=60"
        );
    }
}
