//! Making a transaction: its terms are checked, bound to a credential, and kept as they are.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::account::AccountRef;
use crate::domain::attestation::{self, Claims, Unverified};
use crate::domain::audit::Event;
use crate::domain::caller::Tenant;
use crate::domain::credential::{Kind, OcraToken, OcraUse};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::money::Money;
use crate::domain::ocra::{Challenge, Suite};
use crate::domain::qr::QR_BYTES_MAX;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::text::is_nfc;
use crate::domain::time::Now;
use crate::domain::transaction::{
    CODES_MAX, Device, Label, Method, Parent, Remark, State, Terms, Transaction, deadline,
};
use crate::domain::verification::{self, Subject};
use crate::hsm::messages::{Attest, Outcome, SealRows};
use crate::store::{Commit, CredentialRows};

use super::super::memory::Recall;
use super::super::transaction_view::TransactionView;
use super::{
    Answer, Ask, RACES_MAX, Refused, Service, TransactionAnswer, audit_transaction, race_lost, seal,
};

/// What is to be approved, and how.
pub struct NewTransaction {
    /// How.
    pub method: MethodName,
    /// The credential that has to respond; `None` for an id that nobody has.
    pub credential: Option<CredentialId>,
    /// Whose money it is; by default the account that the credential speaks for, which it has to be.
    pub payer: Option<AccountRef>,
    /// Who is to have it.
    pub payee: Label,
    /// How much.
    pub money: Money,
    /// The order or demand.
    pub order: Label,
    /// The trading platform.
    pub platform: Option<Label>,
    /// The user's remark.
    pub remark: Option<Remark>,
    /// The attestation of the transaction that this one follows: a compact JWS.
    pub parent: Option<String>,
    /// How long it is open, in seconds (1..=3600).
    pub lifetime_s: u32,
}

/// How a transaction is to be approved, as in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// By a dynamic password (seed A).
    ChallengeResponse,
    /// By an external security device (seed D).
    DeviceSignature,
}

impl Service {
    /// Makes a transaction.
    ///
    /// # Errors
    /// [`Refused`]; then there is none.
    pub async fn create_transaction(
        &self,
        mut ask: Ask,
        wanted: NewTransaction,
    ) -> Result<TransactionAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return Ok(TransactionAnswer { answer, transaction: None }),
            Recall::New(memory) => memory,
        };
        let tenant = ask.caller.tenant.clone();
        let id = wanted.credential.ok_or(Refused::Absent)?;
        for _ in 0..RACES_MAX {
            let credential = self.store.credential(&tenant, id).await?.ok_or(Refused::Absent)?;
            let parent = match &wanted.parent {
                Some(jws) => Some(self.find_parent(&tenant, jws).await?),
                None => None,
            };
            let now = self.now();
            if !now.trusted {
                return Err(Refused::clock_untrusted());
            }
            let nonce = self.hsm.random().await?;
            let transaction = self.transaction_of(&wanted, &credential, parent.as_ref(), nonce, &now)?;
            if self.was_answered(&transaction).await? {
                continue;
            }
            self.fits_a_qr_code(&transaction)?;

            let view =
                TransactionView::new(&transaction, parent.as_ref().map(|parent| &parent.transaction.row));
            let answer = Answer::TransactionCreated(Box::new(view));
            let mut rows = vec![Row::Transaction(transaction.clone())];
            rows.extend(memory.record(&answer, &now)?.map(Row::Idempotency));
            let (standing, standing_bytes) = standing(&credential, parent.as_ref());
            let sealed = self
                .hsm
                .seal(SealRows {
                    standing: standing_bytes,
                    outcome: Outcome { replaces: Vec::new(), rows: rows.iter().map(Row::encode).collect() },
                })
                .await?;
            let commit = Commit {
                standing: standing.iter().map(|row| (row.key(), row.version())).collect(),
                rows: seal(rows, &sealed)?,
                removed: Vec::new(),
                sum_change: sealed.sum_change,
                audit: audit_transaction(Some(&ask), &now, Event::TransactionCreated, &transaction),
            };
            if let Some(durable) = self.commit(commit).await? {
                return Ok(TransactionAnswer { answer: answer.release(durable), transaction: None });
            }
        }
        Err(race_lost())
    }

    fn transaction_of(
        &self,
        wanted: &NewTransaction,
        rows: &CredentialRows,
        parent: Option<&ParentRows>,
        nonce: [u8; 32],
        now: &Now,
    ) -> Result<Transaction, Refused> {
        let CredentialRows { credential, state, account } = rows;
        let (credential, state, account) = (&credential.row, &state.row, &account.row);
        verification::usable(Subject { credential, state, account })?;
        let method = method(wanted.method, credential.id, &credential.kind)?;
        let payer = &credential.account;
        if wanted.payer.as_ref().is_some_and(|named| named != payer) {
            return Err(Refused::Invalid {
                field: "payer",
                reason: "must be the account that the credential speaks for",
            });
        }
        if !is_nfc(payer.as_str()) {
            return Err(Refused::Invalid {
                field: "payer",
                reason: "the account's name is not in Unicode's form C",
            });
        }
        let attempts_left = match wanted.method {
            MethodName::ChallengeResponse => CODES_MAX,
            MethodName::DeviceSignature => self.policies.transactions.signature_attempts,
        };
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(Refused::unavailable)?;
        Ok(Transaction {
            id: TransactionId::from_random(id),
            tenant: credential.tenant.clone(),
            version: 1,
            created_unix_ms: now.unix_ms,
            method,
            terms: Terms {
                payer: Some(payer.clone()),
                payee: wanted.payee.clone(),
                money: wanted.money.clone(),
                order: wanted.order.clone(),
                platform: wanted.platform.clone(),
                remark: wanted.remark.clone(),
                parent: parent.map(|parent| parent.link),
                nonce,
            },
            expires: deadline(now, wanted.lifetime_s),
            state: State::Pending,
            attempts_left,
            ended_unix_ms: None,
            authenticator: None,
        })
    }

    /// Whether the token has answered this very question before, and would be taken for repeating itself: then
    /// another nonce is needed. Only a short question comes twice, and only of a token that has neither a
    /// counter nor a clock is that for ever.
    async fn was_answered(&self, transaction: &Transaction) -> Result<bool, Refused> {
        let Some(suite) = transaction.method.suite() else { return Ok(false) };
        if suite.has_counter() || suite.time_step_s().is_some() {
            return Ok(false);
        }
        let challenge =
            Challenge::of_transaction(suite, &transaction.digest()).map_err(Refused::unavailable)?;
        let inputs = vec![challenge.fingerprint(None)];
        Ok(!self.store.used_inputs(transaction.method.credential(), inputs).await?.is_empty())
    }

    /// An attestation that fits no QR code could not be handed on.
    fn fits_a_qr_code(&self, transaction: &Transaction) -> Result<(), Refused> {
        let claims = self.claims(transaction, transaction.created_unix_ms).to_json();
        let prefix_bytes = self.policies.attestations.qr_url_prefix.len();
        match attestation::jws_bytes(&claims).saturating_add(prefix_bytes) {
            0..=QR_BYTES_MAX => Ok(()),
            _ => Err(Refused::Invalid {
                field: "",
                reason: "the texts are too long together: the attestation would not fit a QR code",
            }),
        }
    }

    /// What an attestation of `transaction` says, if it is approved at `unix_ms`.
    fn claims(&self, transaction: &Transaction, unix_ms: u64) -> Claims {
        let policy = &self.policies.attestations;
        let lifetime_s = u64::from(policy.lifetime_hours) * 3_600;
        Claims::new(transaction, &policy.issuer, unix_ms / 1_000, lifetime_s)
    }

    /// Asks the custodian to attest it, if the response is right.
    pub(in super::super) fn attest(&self, transaction: &Transaction, now: &Now) -> Attest {
        Attest {
            transaction: transaction.id,
            tenant: transaction.tenant.clone(),
            claims: self.claims(transaction, now.unix_ms).to_json(),
        }
    }

    /// The approved transaction of this attestation: it has to be the tenant's, byte for byte as it was given
    /// out, and to hold still.
    async fn find_parent(&self, tenant: &Tenant, jws: &str) -> Result<ParentRows, Refused> {
        let invalid = || Refused::Invalid {
            field: "parent",
            reason: "must be an attestation of yours, just as it was given out, and not expired",
        };
        let unverified = Unverified::parse(jws).ok_or_else(invalid)?;
        let id = TransactionId::parse(&unverified.claims.jti).ok_or_else(invalid)?;
        let rows = self.store.transaction(tenant, id).await?.ok_or_else(invalid)?;
        let attestation = rows.attestation.filter(|stored| stored.row.jws == jws).ok_or_else(invalid)?;
        let now = self.now();
        if !now.trusted {
            return Err(Refused::clock_untrusted());
        }
        if unverified.claims.exp <= now.unix_ms / 1_000 {
            return Err(invalid());
        }
        let link = Parent { id, hash: Sha256::digest(jws).into() };
        Ok(ParentRows { link, transaction: rows.transaction, attestation })
    }
}

/// An approved transaction, as another one commits to it.
struct ParentRows {
    link: Parent,
    transaction: Sealed<Transaction>,
    attestation: Sealed<attestation::Attestation>,
}

/// What a new transaction stands on: a credential that is as it was read, and its parent.
fn standing(credential: &CredentialRows, parent: Option<&ParentRows>) -> (Vec<Row>, Vec<SealedBytes>) {
    let CredentialRows { credential, state, account } = credential;
    let mut rows: Vec<Row> = vec![credential.row.clone().into(), state.row.clone().into()];
    let mut bytes = vec![credential.to_bytes(), state.to_bytes(), account.to_bytes()];
    if let Some(parent) = parent {
        rows.extend([parent.transaction.row.clone().into(), parent.attestation.row.clone().into()]);
        bytes.extend([parent.transaction.to_bytes(), parent.attestation.to_bytes()]);
    }
    (rows, bytes)
}

/// How a credential of this kind approves.
fn method(wanted: MethodName, credential: CredentialId, kind: &Kind) -> Result<Method, Refused> {
    match (wanted, kind) {
        (MethodName::ChallengeResponse, Kind::Ocra(token)) => {
            Ok(Method::ChallengeResponse { credential, suite: suite(token)? })
        }
        (MethodName::ChallengeResponse, _) => Err(misfit("must be an ocra credential")),
        (MethodName::DeviceSignature, Kind::Ocra(token)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Ocra(suite(token)?) })
        }
        (MethodName::DeviceSignature, Kind::Signer(_) | Kind::CertifiedSigner(_)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Signature })
        }
        (MethodName::DeviceSignature, Kind::Authenticator(_)) => {
            Ok(Method::DeviceSignature { credential, device: Device::Assertion })
        }
        (MethodName::DeviceSignature, Kind::Otp(_)) => Err(misfit("must be a signer or an ocra credential")),
    }
}

/// The suite of a token that answers transactions.
fn suite(token: &OcraToken) -> Result<Suite, Refused> {
    match (token.usage, token.suite.session_bytes()) {
        (OcraUse::Verify, _) => Err(misfit("answers the questions of /verify, and no transactions")),
        (_, Some(..32)) => Err(misfit("its suite's session is shorter than a digest's 32 bytes")),
        _ => Ok(token.suite.clone()),
    }
}

fn misfit(reason: &'static str) -> Refused {
    Refused::Invalid { field: "credential", reason }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{SystemClock, WatchedClock};
    use crate::domain::audit::AuditEntry;
    use crate::domain::certificate::Trust;
    use crate::domain::row::RowSum;
    use crate::hsm::Hsm;
    use crate::service::Policies;
    use crate::service::pruning::tests::{longest, longest_transaction, sealed};
    use crate::store::Store;

    /// Eight digits come twice once in a hundred million times: no test waits for that.
    #[tokio::test]
    async fn a_question_is_not_asked_again_for_a_life() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-questions-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let store = Store::open(&folder.join("store.db")).unwrap();
        let service = Service::new(
            store.clone(),
            Hsm::new(1, tokio::sync::mpsc::unbounded_channel().0),
            Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap()),
            Policies {
                credentials: Default::default(),
                transactions: Default::default(),
                attestations: Default::default(),
            },
            Trust::none(),
        );
        let (_, _, input, _) = longest(1);
        let asked = |suite: &str, device: bool, nonce: [u8; 32]| {
            let (mut transaction, _) = longest_transaction();
            let (suite, credential) = (Suite::parse(suite).unwrap(), input.id);
            transaction.method = match device {
                false => Method::ChallengeResponse { credential, suite },
                true => Method::DeviceSignature { credential, device: Device::Ocra(suite) },
            };
            transaction.terms.nonce = nonce;
            transaction
        };
        let suites = [
            ("OCRA-1:HOTP-SHA1-6:QN08", true),
            ("OCRA-1:HOTP-SHA256-8:QH08-PSHA1", true),
            ("OCRA-1:HOTP-SHA256-8:QA08-S032", true),
            // Their codes are used up by the counter, or by the time.
            ("OCRA-1:HOTP-SHA256-8:C-QN08", false),
            ("OCRA-1:HOTP-SHA256-8:QN08-T1M", false),
        ];
        for (number, (suite, once)) in (1..).zip(suites) {
            for device in [false, true] {
                let (first, next) =
                    (asked(suite, device, [number; 32]), asked(suite, device, [number + 100; 32]));
                assert!(!service.was_answered(&first).await.unwrap(), "{suite}");
                let challenge =
                    Challenge::of_transaction(first.method.suite().unwrap(), &first.digest()).unwrap();
                let mut used = input.clone();
                (used.version, used.fingerprint) = (1, challenge.fingerprint(None));
                (used.time_step, used.expires_unix_ms) = (None, None);
                let commit = Commit {
                    standing: Vec::new(),
                    rows: vec![sealed(Row::UsedInput(used))],
                    removed: Vec::new(),
                    sum_change: RowSum::default(),
                    audit: AuditEntry {
                        unix_ms: 0,
                        event: Event::Verified,
                        actor: None,
                        credential: None,
                        transaction: None,
                    },
                };
                let _durable = store.commit(commit).await.unwrap();
                assert_eq!(service.was_answered(&first).await.unwrap(), once, "{suite}");
                assert!(!service.was_answered(&next).await.unwrap(), "{suite}: another nonce helps");
            }
        }
        drop(service);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
