//! Enrolling a credential: its secret is made or taken in by the HSM, and kept there or wrapped.

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroizing;

use crate::domain::account::{Account, AccountRef};
use crate::domain::audit::Event;
use crate::domain::caller::Tenant;
use crate::domain::certificate::CertificateChain;
use crate::domain::credential::{
    Authenticator, CertifiedSigner, Credential, CredentialState, ImportedSeed, Kind, OcraToken, OcraUse,
    OtpToken, Signer, Status, Terminal,
};
use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::Address;
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::row::{Row, Sealed};
use crate::domain::signer::PublicKey;
use crate::domain::webauthn::RelyingParty;
use crate::domain::wrapped_seed::{CONTENT_RULE, WrappedSeed};
use crate::hsm::messages::{Outcome, SealRows};
use crate::hsm::{Claim, NewSecret};
use crate::secret::SecretBytes;
use crate::store::{Commit, Standing};

use super::credential_view::CredentialView;
use super::memory::Recall;
use super::{Answer, Ask, RACES_MAX, Refused, Service, audit, race_lost, seal};

/// Said of seeds in the clear, where they are not allowed.
const NO_CLEAR_SEED: &str = "must be there instead of seed_hex or seed_base32: this appliance takes no seed in the \
    clear, but wrapped for the key of GET /v1/import-key, or generates one";

/// What is to be enrolled.
pub struct Enrolment {
    /// The account it will speak for.
    pub account: AccountRef,
    /// What it is.
    pub kind: NewKind,
    /// Whether it may be used only once it is authorized: of a device that signs.
    pub awaits_authorization: bool,
}

/// What a new credential is, with its secret or key as it came.
pub enum NewKind {
    /// HOTP or TOTP.
    Otp(NewOtpToken),
    /// OCRA.
    Ocra(NewOcraToken),
    /// A device that signs, by its public key.
    Signer(PublicKey),
    /// A device that signs, by the certificate of its key.
    CertifiedSigner(CertificateChain),
    /// A WebAuthn authenticator, by its public key.
    Authenticator(PublicKey, RelyingParty),
    /// A terminal that codes are sent to.
    Terminal(Address),
    /// A terminal with a temporary code, to be activated.
    Rolling,
}

/// A seed that is brought.
pub enum NewSeed {
    /// As it is: 16 to 64 bytes.
    Clear(SecretBytes),
    /// Encrypted to the HSM.
    Wrapped(WrappedSeed),
}

impl NewKind {
    /// The seed, if one was brought.
    fn seed(&self) -> Option<&NewSeed> {
        match self {
            Self::Otp(token) => token.seed.as_ref(),
            Self::Ocra(token) => token.seed.as_ref(),
            Self::Signer(_)
            | Self::CertifiedSigner(_)
            | Self::Authenticator(..)
            | Self::Terminal(_)
            | Self::Rolling => None,
        }
    }
}

/// A HOTP or TOTP token to be enrolled.
pub struct NewOtpToken {
    /// The hash of its codes.
    pub algorithm: Algorithm,
    /// The length of its codes.
    pub digits: Digits,
    /// Counter or time.
    pub moving_factor: MovingFactor,
    /// hotp: the first counter expected.
    pub counter: u64,
    /// `None`: the HSM generates one.
    pub seed: Option<NewSeed>,
    /// Whether the answer is to hold the `otpauth` URI: not of a wrapped seed, which nobody sees.
    pub export: bool,
}

/// An OCRA token to be enrolled.
pub struct NewOcraToken {
    /// Hash, code length and data inputs.
    pub suite: Suite,
    /// What its codes are good for.
    pub usage: OcraUse,
    /// Suites with C: the first counter expected; else 0.
    pub counter: u64,
    /// Suites with C: how many codes beyond the expected one are tried; else 0.
    pub look_ahead: u8,
    /// Suites with T: steps tried on either side; else 0.
    pub skew_steps: u8,
    /// `None`: the HSM generates one.
    pub seed: Option<NewSeed>,
    /// Suites with P: the PIN's text.
    pub pin: Option<SecretBytes>,
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
    pub async fn enrol(&self, mut ask: Ask, wanted: Enrolment) -> Result<Enrolled, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(Enrolled { answer, otpauth: None }),
            Recall::New(memory) => memory,
        };
        let Enrolment { account: account_ref, kind, awaits_authorization } = wanted;
        if let NewKind::Otp(NewOtpToken { export: true, .. }) = &kind
            && !self.policies.credentials.allow_export
        {
            return Err(Refused::Invalid { field: "export", reason: "this appliance hands no seed out" });
        }
        let brought = match kind.seed() {
            Some(NewSeed::Clear(_)) if !self.policies.credentials.allow_clear_seeds => {
                return Err(Refused::Invalid { field: "seed_wrapped_base64", reason: NO_CLEAR_SEED });
            }
            Some(NewSeed::Wrapped(seed)) => Some(seed.fingerprint()),
            _ => None,
        };
        // How long it has been there is what makes a terminal one that counts.
        if matches!(kind, NewKind::Terminal(_))
            && self.policies.credentials.terminal_cooling_seconds > 0
            && !self.now().trusted
        {
            return Err(Refused::clock_untrusted());
        }
        let tenant = ask.caller.tenant.clone();
        let _guard = self.locks.lock(&tenant, &account_ref).await?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Refused::unavailable)?;
        let id = CredentialId::from_random(id);
        // Before the HSM is asked: a replay costs no decryption.
        self.refuse_again(&tenant, brought).await?;
        let Made { kind, counter, otpauth, mut claims } = self.make(&tenant, &account_ref, id, kind).await?;

        for attempt in 0..RACES_MAX {
            if attempt > 0 {
                // Another account may have been the one to win the race.
                self.refuse_again(&tenant, brought).await?;
            }
            let now = self.now();
            // Made with its first credential: the row that limits guessing has to be there.
            let known: Option<Sealed<Account>> = self.store.account(&tenant, &account_ref).await?;
            let account = known
                .as_ref()
                .map_or_else(|| Account::new(tenant.clone(), account_ref.clone()), |k| k.row.clone());
            let credential = Credential {
                id,
                tenant: tenant.clone(),
                account: account_ref.clone(),
                version: 1,
                created_unix_ms: now.unix_ms,
                kind: kind.clone(),
                deleted_unix_ms: None,
            };
            let mut state = CredentialState::new(id, tenant.clone(), counter, account.epoch);
            if let Kind::Rolling(_) = credential.kind {
                state.status = Status::Pending;
            } else if awaits_authorization {
                state.status = Status::Unauthorized;
            }
            let answer = Answer::Enrolled(CredentialView::new(&credential, &state));
            let mut rows = vec![Row::Credential(credential), Row::State(state)];
            if known.is_none() {
                rows.push(Row::Account(account));
            }
            rows.extend(brought.map(|fingerprint| {
                let tenant = tenant.clone();
                Row::ImportedSeed(ImportedSeed { tenant, fingerprint, version: 1, credential: id })
            }));
            rows.extend(memory.record(&answer, &now)?.map(Row::Idempotency));
            let sealed = self
                .hsm
                .seal(SealRows {
                    standing: known.iter().map(Sealed::to_bytes).collect(),
                    outcome: Outcome { replaces: Vec::new(), rows: rows.iter().map(Row::encode).collect() },
                })
                .await?;
            let commit = Commit {
                before: known.iter().map(Standing::from).collect(),
                rows: seal(rows, &sealed)?,
                removed: Vec::new(),
                sum_change: sealed.sum_change,
                audit: audit(&ask, &now, Event::Enrolled, id),
            };
            if let Some(durable) = self.commit_naming(commit, &mut claims, Vec::new()).await? {
                return Ok(Enrolled { answer: answer.release(durable), otpauth });
            }
        }
        Err(race_lost())
    }

    /// The key that seeds are to be wrapped for.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn import_key(&self) -> Result<PublicKey, Refused> {
        Ok(self.hsm.import_key().await?)
    }

    /// What a wrapped seed came as is taken once in a tenant, until its credential's tombstone is gone.
    async fn refuse_again(&self, tenant: &Tenant, brought: Option<[u8; 32]>) -> Result<(), Refused> {
        let Some(fingerprint) = brought else { return Ok(()) };
        let Some(known) = self.store.imported_seed(tenant, fingerprint).await? else { return Ok(()) };
        self.hsm.check(vec![known.to_bytes()]).await?;
        Err(Refused::Conflict)
    }

    /// Has the HSM make or take in what is secret of it.
    async fn make(
        &self,
        tenant: &Tenant,
        account: &AccountRef,
        id: CredentialId,
        kind: NewKind,
    ) -> Result<Made, Refused> {
        match kind {
            NewKind::Otp(mut token) => {
                let (NewSecret { stored, claim, .. }, otpauth) =
                    self.otp_secret(tenant, account, &mut token).await?;
                let NewOtpToken { algorithm, digits, moving_factor, counter, .. } = token;
                let kind = Kind::Otp(OtpToken { algorithm, digits, moving_factor, secret: Some(stored) });
                Ok(Made { kind, counter, otpauth, claims: vec![claim] })
            }
            NewKind::Ocra(token) => {
                let NewOcraToken { suite, usage, counter, look_ahead, skew_steps, seed, pin } = token;
                let made = match seed {
                    Some(seed) => self.take_in(suite.algorithm(), seed).await?,
                    None => self.hsm.generate(suite.algorithm(), false).await?,
                };
                let pin_hash = match suite.pin_hash().zip(pin) {
                    Some((hash, pin)) => Some(self.hsm.encrypt_pin_hash(id, hash, pin).await?),
                    None => None,
                };
                let secret = Some(made.stored);
                let kind = Kind::Ocra(OcraToken { suite, look_ahead, skew_steps, usage, secret, pin_hash });
                Ok(Made { kind, counter, otpauth: None, claims: vec![made.claim] })
            }
            NewKind::Signer(key) => Ok(Made::of(Kind::Signer(signer(key)))),
            NewKind::CertifiedSigner(chain) => {
                let invalid = |reason| Refused::Invalid { field: "certificate_chain_pem", reason };
                self.check_chain(chain.clone(), &self.now()).await?.map_err(invalid)?;
                let key = chain.public_key().map_err(|error| invalid(error.reason()))?;
                let signer = signer(key);
                Ok(Made::of(Kind::CertifiedSigner(CertifiedSigner { signer, chain: Some(chain) })))
            }
            NewKind::Authenticator(key, party) => {
                Ok(Made::of(Kind::Authenticator(Authenticator { signer: signer(key), party })))
            }
            NewKind::Terminal(address) => {
                let made = self.hsm.generate(Algorithm::Sha256, false).await?;
                let kind = Kind::Terminal(Terminal { address, secret: Some(made.stored) });
                Ok(Made { claims: vec![made.claim], ..Made::of(kind) })
            }
            NewKind::Rolling => {
                let (rolling, claim) = self.new_rolling().await?;
                Ok(Made { claims: vec![claim], ..Made::of(Kind::Rolling(rolling)) })
            }
        }
    }

    /// The secret, and the URI where one is wanted.
    async fn otp_secret(
        &self,
        tenant: &Tenant,
        account: &AccountRef,
        token: &mut NewOtpToken,
    ) -> Result<(NewSecret, Option<Zeroizing<String>>), Refused> {
        let Some(seed) = token.seed.take() else {
            let mut made = self.hsm.generate(token.algorithm, token.export).await?;
            let uri = made.exported.take().map(|seed| otpauth(tenant, account, token, &seed));
            return Ok((made, uri));
        };
        let uri = match &seed {
            NewSeed::Clear(seed) if token.export => Some(otpauth(tenant, account, token, seed)),
            _ => None,
        };
        Ok((self.take_in(token.algorithm, seed).await?, uri))
    }

    /// A seed that was brought, as the HSM keeps it.
    async fn take_in(&self, algorithm: Algorithm, seed: NewSeed) -> Result<NewSecret, Refused> {
        match seed {
            NewSeed::Clear(seed) => Ok(self.hsm.import(algorithm, seed).await?),
            NewSeed::Wrapped(seed) => self
                .hsm
                .import_wrapped(algorithm, seed)
                .await?
                .ok_or(Refused::Invalid { field: "seed_wrapped_base64", reason: CONTENT_RULE }),
        }
    }
}

/// What a new credential is, ready to be stored.
struct Made {
    kind: Kind,
    counter: u64,
    otpauth: Option<Zeroizing<String>>,
    /// Of its secrets.
    claims: Vec<Claim>,
}

impl Made {
    /// What has no counter, no URI and no secret.
    fn of(kind: Kind) -> Self {
        Self { kind, counter: 0, otpauth: None, claims: Vec::new() }
    }
}

fn signer(key: PublicKey) -> Signer {
    Signer { algorithm: key.algorithm(), key: Some(key) }
}

/// The `otpauth` URI that authenticator apps read. It declassifies the seed: it was asked for, and
/// the configuration allows it.
fn otpauth(
    tenant: &Tenant,
    account: &AccountRef,
    token: &NewOtpToken,
    seed: &SecretBytes,
) -> Zeroizing<String> {
    let (kind, moves) = match token.moving_factor {
        MovingFactor::Hotp { .. } => ("hotp", format!("counter={}", token.counter)),
        MovingFactor::Totp { period_s, .. } => ("totp", format!("period={period_s}")),
    };
    let secret = Zeroizing::new(BASE32_NOPAD.encode(seed.expose()));
    Zeroizing::new(format!(
        "otpauth://{kind}/{issuer}:{account}?secret={secret}&issuer={issuer}&algorithm={algorithm}&digits={digits}&{moves}",
        issuer = percent_encoded(tenant.as_str()),
        account = percent_encoded(account.as_str()),
        secret = secret.as_str(),
        algorithm = token.algorithm.name(),
        digits = u8::from(token.digits),
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
        let account = AccountRef::try_from("M\u{fc}ller & Co:1".to_owned()).unwrap();
        let token = NewOtpToken {
            algorithm: Algorithm::Sha256,
            digits: 8.try_into().unwrap(),
            moving_factor: MovingFactor::Totp { period_s: 60, skew_steps: 1 },
            counter: 0,
            seed: None,
            export: true,
        };
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        let uri = otpauth(&tenant, &account, &token, &SecretBytes::new(b"12345678901234567890".to_vec()));
        assert_eq!(
            uri.as_str(),
            "otpauth://totp/bank-a:M%C3%BCller%20%26%20Co%3A1?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\
             &issuer=bank-a&algorithm=SHA256&digits=8&period=60"
        );
    }
}
