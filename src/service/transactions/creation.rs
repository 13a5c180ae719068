//! Making a transaction: its terms are checked, bound to what has to respond, and kept as they are.

use serde::{Deserialize, Serialize};

use crate::domain::account::AccountRef;
use crate::domain::attestation;
use crate::domain::audit::Event;
use crate::domain::caller::Tenant;
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::money::Money;
use crate::domain::multi_terminal::{EntryOrder, Interval};
use crate::domain::otp::Digits;
use crate::domain::qr::QR_BYTES_MAX;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::text::is_nfc;
use crate::domain::time::Now;
use crate::domain::transaction::{
    CODES_MAX, Label, Method, Progress, Remark, State, Terms, Transaction, deadline,
};
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::{Commit, Standing};

use super::super::memory::Recall;
use super::super::transaction_view::TransactionView;
use super::{
    Answer, Ask, RACES_MAX, Refused, Service, ShownTransaction, TransactionAnswer, audit_transaction,
    race_lost, seal,
};

mod credential;
mod parent;
mod presentation;
mod terminals;

/// What is to be approved, and how.
pub struct NewTransaction {
    /// How.
    pub approval: Approval,
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

/// How it is to be approved, and by what.
pub enum Approval {
    /// By a dynamic password (seed A).
    ChallengeResponse(ByCredential),
    /// By an external security device (seed D).
    DeviceSignature(ByCredential),
    /// By codes sent to several terminals (seed E).
    MultiTerminal(ByTerminals),
    /// By a rolling password (seed B).
    RollingPassword,
    /// By the device that presented a code (seed C).
    PresentedCode {
        /// SHA-256 of the code; `None` for a text that is none.
        code_hash: Option<[u8; 32]>,
    },
}

/// What one credential has to approve.
pub struct ByCredential {
    /// Which; `None` for an id that nobody has.
    pub credential: Option<CredentialId>,
    /// Whose money it is; by default the account that the credential speaks for, which it has to be.
    pub payer: Option<AccountRef>,
}

/// What several terminals have to approve.
pub struct ByTerminals {
    /// Whose terminals, and whose money.
    pub payer: AccountRef,
    /// In which order their codes have to be entered, or what of them.
    pub order: EntryOrder,
    /// The terminals in the rule's order (`None` for an id that nobody has); by default that of their enrolment.
    pub terminals: Option<Vec<Option<CredentialId>>>,
    /// Until when, in seconds from the beginning (1..=3600).
    pub window_s: Option<u16>,
    /// How far apart.
    pub interval: Option<Interval>,
    /// The length of the codes.
    pub digits: Digits,
}

/// How a transaction is to be approved, as in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodName {
    /// By a dynamic password (seed A).
    ChallengeResponse,
    /// By an external security device (seed D).
    DeviceSignature,
    /// By codes sent to several terminals (seed E).
    MultiTerminal,
    /// By a rolling password (seed B).
    RollingPassword,
    /// By the device that presented a code (seed C).
    PresentedCode,
}

/// What a new transaction stands on, and what is written with it.
struct Basis {
    method: Method,
    payer: Option<AccountRef>,
    attempts_left: u8,
    progress: Progress,
    /// Rows that must still be as they were read when it is made.
    before: Vec<Standing>,
    /// Rows whose seals must be right, besides any that were looked at before.
    bytes: Vec<SealedBytes>,
    /// Rows that are written with it, each over one of `bytes`, by its place.
    replaced: Vec<(u8, Row)>,
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
            Recall::Answered(answer) => return self.tell(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let tenant = ask.caller.tenant.clone();
        for _ in 0..RACES_MAX {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(Refused::unavailable)?;
            let id = TransactionId::from_random(id);
            let now = self.now();
            let mut basis = self.basis(&tenant, &wanted, id, &now).await?;
            let parent = match &wanted.parent {
                Some(jws) => Some(self.find_parent(&tenant, jws).await?),
                None => None,
            };
            if !now.trusted {
                return Err(Refused::clock_untrusted());
            }
            let mut transaction = Transaction {
                id,
                tenant: tenant.clone(),
                version: 1,
                created_unix_ms: now.unix_ms,
                method: basis.method,
                terms: Terms {
                    payer: basis.payer,
                    payee: wanted.payee.clone(),
                    money: wanted.money.clone(),
                    order: wanted.order.clone(),
                    platform: wanted.platform.clone(),
                    remark: wanted.remark.clone(),
                    parent: parent.as_ref().map(|parent| parent.link),
                    nonce: self.hsm.random().await?,
                },
                expires: deadline(&now, wanted.lifetime_s),
                state: State::Pending,
                attempts_left: basis.attempts_left,
                ended_unix_ms: None,
                authenticator: None,
                progress: basis.progress,
            };
            if self.was_answered(&transaction).await? {
                continue;
            }
            self.fits_a_qr_code(&transaction)?;
            self.choose_generation(&mut transaction, &basis.bytes).await?;

            let view =
                TransactionView::new(&transaction, parent.as_ref().map(|parent| &parent.transaction.row));
            let answer = Answer::TransactionCreated(Box::new(view.clone()));
            let mut rows = vec![Row::Transaction(transaction.clone())];
            rows.extend(basis.replaced.iter().map(|(_, row)| row.clone()));
            rows.extend(memory.record(&answer, &now)?.map(Row::Idempotency));
            if let Some(parent) = parent {
                basis.before.extend(parent.before());
                basis.bytes.extend(parent.bytes());
            }
            let replaces = basis.replaced.iter().map(|(place, _)| *place).collect();
            let outcome = Outcome { replaces, rows: rows.iter().map(Row::encode).collect() };
            let sealed = self.hsm.seal(SealRows { standing: basis.bytes, outcome }).await?;
            let rows = seal(rows, &sealed)?;
            // All that is told is read before the commit: nothing can fail behind it.
            let codes = match rows.first() {
                Some(Sealed { row, seal }) => {
                    let own = SealedBytes { bytes: row.encode(), seal: seal.clone() };
                    self.codes_to_send(&ask.caller, &transaction, own).await?
                }
                None => None,
            };
            let shown = codes.map(|codes| ShownTransaction {
                view: view.clone(),
                attestation: None,
                codes: Some(codes),
            });
            let commit = Commit {
                before: basis.before,
                rows,
                removed: Vec::new(),
                sum_change: sealed.sum_change,
                audit: audit_transaction(Some(&ask), &now, Event::TransactionCreated, &transaction),
            };
            if let Some(durable) = self.commit(commit).await? {
                return Ok(TransactionAnswer {
                    answer: answer.release(durable),
                    transaction: shown,
                    next: None,
                });
            }
        }
        Err(race_lost())
    }

    async fn basis(
        &self,
        tenant: &Tenant,
        wanted: &NewTransaction,
        id: TransactionId,
        now: &Now,
    ) -> Result<Basis, Refused> {
        match &wanted.approval {
            Approval::ChallengeResponse(by) => {
                self.by_credential(tenant, MethodName::ChallengeResponse, by).await
            }
            Approval::DeviceSignature(by) => {
                self.by_credential(tenant, MethodName::DeviceSignature, by).await
            }
            Approval::MultiTerminal(by) => self.by_terminals(tenant, by, wanted.lifetime_s, now).await,
            // Nothing is known of who will approve it.
            Approval::RollingPassword => Ok(Basis {
                method: Method::RollingPassword,
                payer: None,
                attempts_left: CODES_MAX,
                progress: Progress::None,
                before: Vec::new(),
                bytes: Vec::new(),
                replaced: Vec::new(),
            }),
            Approval::PresentedCode { code_hash } => self.by_presentation(tenant, *code_hash, id, now).await,
        }
    }

    /// An attestation that fits no QR code could not be handed on.
    fn fits_a_qr_code(&self, transaction: &Transaction) -> Result<(), Refused> {
        let mut claims = self.claims(transaction, transaction.created_unix_ms);
        if transaction.terms.payer.is_none() {
            // Whose it will be is not known, or not to be told by how much fits: the longest there is.
            claims.account = "\u{10000}".repeat(128);
        }
        let prefix_bytes = self.policies.attestations.qr_url_prefix.len();
        match attestation::jws_bytes(&claims.to_json()).saturating_add(prefix_bytes) {
            0..=QR_BYTES_MAX => Ok(()),
            _ => Err(Refused::Invalid {
                field: "",
                reason: "the texts are too long together: the attestation would not fit a QR code",
            }),
        }
    }
}

/// What is signed has one spelling; so has the account that it names.
fn is_spelt(account: &AccountRef) -> Result<(), Refused> {
    match is_nfc(account.as_str()) {
        true => Ok(()),
        false => {
            Err(Refused::Invalid { field: "payer", reason: "the account's name is not in Unicode's form C" })
        }
    }
}
