//! Removing what is past its time: answers after a day, tombstones and ended transactions after the configured
//! days, used inputs of OCRA tokens when their time step is out of reach, presentations as many days after they were made
//! as ended transactions, authorizations a day after their time.

use std::collections::BTreeMap;

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::credential::UsedInput;
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::hsm::Hsm;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::{Commit, TransactionRows};

use super::{RACES_MAX, Refused, Service, seal};

/// How many rows of a kind go at once at most, so that no verdict is held up.
const BATCH: u16 = 16;
/// From how many bytes on a batch takes nothing more. What goes together is shorter than the rest of a message: the
/// longest of it is a remembered answer to a new transaction.
const BATCH_FULL_BYTES: usize = 40 * 1024;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl Service {
    /// Removes rows past their time, batch by batch, until none is left, and writes down which transactions'
    /// time is over; how many rows there were. Nothing while the clock is not trusted.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: a row of some kind cannot be dealt with. The other kinds were; the next round
    /// goes on where this one stopped.
    pub async fn prune(&self) -> Result<u64, Refused> {
        let rounds =
            [self.expire_overdue().await, self.prune_transactions().await, self.prune_others().await];
        rounds.into_iter().sum()
    }

    /// Transactions that ended long ago, each with its attestation.
    async fn prune_transactions(&self) -> Result<u64, Refused> {
        let mut pruned = 0;
        loop {
            let now = self.now();
            let before = now.unix_ms.saturating_sub(u64::from(self.policies.transactions.keep_days) * DAY_MS);
            let ended = match now.trusted {
                true => self.store.transactions_ended(before, BATCH).await?,
                false => Vec::new(),
            };
            if ended.is_empty() {
                return Ok(pruned);
            }
            let mut batch = Batch::default();
            for TransactionRows { transaction, attestation } in ended {
                if batch.is_full() {
                    break;
                }
                batch.remove(transaction);
                attestation.into_iter().for_each(|attestation| batch.remove(attestation));
            }
            let count = batch.removed.len() as u64;
            // Nobody changes what has ended, so no race for it is lost.
            match self.commit(self.sealed(batch, &now).await?).await? {
                Some(_durable) => pruned += count,
                None => return Ok(pruned),
            }
        }
    }

    async fn prune_others(&self) -> Result<u64, Refused> {
        let (mut pruned, mut races_lost) = (0, 0);
        // A credential in constant use may win every race: the next round tries again.
        while races_lost < RACES_MAX {
            let now = self.now();
            if !now.trusted {
                break;
            }
            let mut batch = Batch::default();
            for record in self.store.expired(now.unix_ms, BATCH).await? {
                if !batch.is_full() {
                    batch.remove(record);
                }
            }
            self.tombstones(&now, &mut batch).await?;
            self.inputs_out_of_reach(&now, &mut batch).await?;
            self.presented(&now, &mut batch).await?;
            if batch.removed.is_empty() {
                break;
            }
            let count = batch.removed.len() as u64;
            match self.commit(self.sealed(batch, &now).await?).await? {
                Some(_durable) => pruned += count,
                None => races_lost += 1,
            }
        }
        Ok(pruned)
    }

    async fn tombstones(&self, now: &Now, batch: &mut Batch) -> Result<(), Refused> {
        let before = now.unix_ms.saturating_sub(u64::from(self.policies.credentials.tombstone_days) * DAY_MS);
        for tombstone in self.store.tombstones(before, BATCH).await? {
            if batch.is_full() {
                break;
            }
            // What it used up goes first: nothing would lead to it any more.
            let inputs = self.store.inputs_of(tombstone.credential.row.id, BATCH).await?;
            if !inputs.is_empty() {
                inputs.into_iter().for_each(|input| batch.remove(input));
                break;
            }
            // From here on what its seed came as may come again.
            let imported = self.store.imported_seeds_of(tombstone.credential.row.id).await?;
            imported.into_iter().for_each(|seed| batch.remove(seed));
            batch.remove(tombstone.credential);
            batch.remove(tombstone.state);
        }
        Ok(())
    }

    /// Each goes together with a move of its credential's mark beyond it: should the clock have been
    /// ahead, and be set right, nothing that was forgotten comes within reach again.
    async fn inputs_out_of_reach(&self, now: &Now, batch: &mut Batch) -> Result<(), Refused> {
        let mut of: BTreeMap<CredentialId, Vec<Sealed<UsedInput>>> = BTreeMap::new();
        for input in self.store.inputs_out_of_reach(now.unix_ms, BATCH).await? {
            of.entry(input.row.id).or_default().push(input);
        }
        for (id, inputs) in of {
            if batch.is_full() {
                break;
            }
            let Some(first) = inputs.first() else { continue };
            let rows = self.store.credential(&first.row.tenant, id).await?;
            let rows = rows.ok_or_else(|| Refused::unavailable("a used input has no credential"))?;
            let highest = inputs.iter().filter_map(|input| input.row.time_step).max();
            if let Some(next) = highest.and_then(|step| rows.state.row.beyond(step)) {
                batch.replace(rows.state, next.into());
            }
            inputs.into_iter().for_each(|input| batch.remove(input));
        }
        Ok(())
    }

    /// Presentations, and authorizations that came to nothing.
    async fn presented(&self, now: &Now, batch: &mut Batch) -> Result<(), Refused> {
        // A transaction that claimed one has ended by then: it is open for an hour at most.
        let before = now.unix_ms.saturating_sub(u64::from(self.policies.transactions.keep_days) * DAY_MS);
        for presentation in self.store.presentations_made_before(before, BATCH).await? {
            if !batch.is_full() {
                batch.remove(presentation);
            }
        }
        let past = now.unix_ms.saturating_sub(DAY_MS);
        for authorization in self.store.authorizations_past(past, BATCH).await? {
            if !batch.is_full() {
                batch.remove(authorization);
            }
        }
        Ok(())
    }

    async fn sealed(&self, batch: Batch, now: &Now) -> Result<Commit, Refused> {
        batch.sealed(&self.hsm, AuditEntry::of_appliance(now.unix_ms, Event::Pruned)).await
    }
}

/// Rows that go, and rows that change with them.
#[derive(Default)]
pub(super) struct Batch {
    /// What they take in a message.
    bytes: usize,
    standing: Vec<SealedBytes>,
    removed: Vec<Row>,
    written: Vec<Row>,
}

impl Batch {
    /// What is left for the next one is found again.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= BATCH_FULL_BYTES
    }

    /// How many rows it stands on.
    pub(super) fn rows(&self) -> usize {
        self.standing.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.standing.is_empty() && self.written.is_empty()
    }

    /// Has a custodian check its rows and seal what comes.
    pub(super) async fn sealed(self, hsm: &Hsm, audit: AuditEntry) -> Result<Commit, Refused> {
        let Self { standing, removed, written, .. } = self;
        let replaces = (0u8..).take(standing.len()).collect();
        let rows = written.iter().map(Row::encode).collect();
        let sealed = hsm.seal(SealRows { standing, outcome: Outcome { replaces, rows } }).await?;
        Ok(Commit {
            standing: Vec::new(),
            removed: removed.iter().map(|row| (row.key(), row.version())).collect(),
            rows: seal(written, &sealed)?,
            sum_change: sealed.sum_change,
            audit,
        })
    }

    /// A row that is new; nothing, if it is among them already.
    pub(super) fn add(&mut self, row: Row) {
        if !self.written.iter().any(|other| other.key() == row.key()) {
            self.bytes = self.bytes.saturating_add(row.encode().as_bytes().len());
            self.written.push(row);
        }
    }

    pub(super) fn remove<T: Clone + Into<Row>>(&mut self, row: Sealed<T>) {
        // A tombstone and the time can both lead to an input.
        let (bytes, row) = (row.to_bytes(), row.row.into());
        if !self.removed.contains(&row) {
            self.bytes = self.bytes.saturating_add(bytes.message_bytes());
            self.standing.push(bytes);
            self.removed.push(row);
        }
    }

    pub(super) fn replace<T: Clone + Into<Row>>(&mut self, row: Sealed<T>, next: Row) {
        let bytes = row.to_bytes();
        // The next version is about as long.
        self.bytes = self.bytes.saturating_add(bytes.message_bytes().saturating_mul(2));
        self.standing.push(bytes);
        self.written.push(next);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::account::AccountRef;
    use crate::domain::attestation::{self, Attestation, Claims};
    use crate::domain::caller::{ClientName, Tenant};
    use crate::domain::credential::{
        Authenticator, Credential, CredentialState, ImportedSeed, Kind, OcraToken, OcraUse, Signer, Status,
    };
    use crate::domain::id::TransactionId;
    use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
    use crate::domain::lockout::{Attempts, Lock};
    use crate::domain::money::Money;
    use crate::domain::ocra::Suite;
    use crate::domain::qr::QR_BYTES_MAX;
    use crate::domain::row::Seal;
    use crate::domain::signer::SignatureAlgorithm;
    use crate::domain::time::{BootId, Deadline, RunId};
    use crate::domain::transaction::{
        Device, Label, Method, Parent, Progress, Remark, State, Terms, Transaction,
    };
    use crate::domain::webauthn::RelyingParty;
    use crate::hsm::messages::{Call, FRAME_BYTES_MAX, Request, encode};
    use crate::service::Answer;
    use crate::service::credential_view::CredentialView;
    use crate::service::transaction_view::TransactionView;

    pub fn sealed<T>(row: T) -> Sealed<T> {
        Sealed { row, seal: Seal { key_version: u16::MAX, mac: [0xff; 32] } }
    }

    /// The longest rows that there can be, of credential number `number`.
    pub fn longest(number: u8) -> (Credential, CredentialState, UsedInput, IdempotencyRecord) {
        let id = CredentialId::from_random([number; 16]);
        let tenant = Tenant::try_from("t".repeat(64)).unwrap();
        let now = Now {
            unix_ms: u64::MAX / 2,
            boot_ms: u64::MAX / 2,
            boot_id: BootId([9; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        };
        let suite = Suite::parse("OCRA-1:HOTP-SHA512-10:C-QA64-PSHA512-S512-T59M").unwrap();
        let credential = Credential {
            id,
            tenant: tenant.clone(),
            account: AccountRef::try_from("\u{10000}".repeat(128)).unwrap(),
            version: u64::MAX,
            created_unix_ms: u64::MAX,
            kind: Kind::Ocra(OcraToken {
                suite,
                look_ahead: u8::MAX,
                skew_steps: u8::MAX,
                usage: OcraUse::Verify,
                secret: None,
                pin_hash: None,
            }),
            deleted_unix_ms: Some(u64::MAX),
        };
        let state = CredentialState {
            id,
            tenant: tenant.clone(),
            version: u64::MAX - 1,
            status: Status::Suspended,
            next_factor: u64::MAX - 1,
            last_accepted: Some(u64::MAX),
            drift_steps: i16::MIN,
            attempts: Attempts {
                failures: u32::MAX,
                lock: Some(Lock::Until(Deadline::after(&now, u64::MAX / 2))),
            },
            account_share: u32::MAX,
            account_epoch: u32::MAX,
        };
        let input = UsedInput {
            id,
            fingerprint: [number; 32],
            tenant,
            version: u64::MAX,
            time_step: Some(u64::MAX),
            expires_unix_ms: Some(u64::MAX),
        };
        let answer = Answer::Enrolled(CredentialView::new(&credential, &state));
        let record = IdempotencyRecord {
            client: ClientName::try_from("c".repeat(64)).unwrap(),
            key: IdempotencyKey::parse(&format!("{number:k>255}")).unwrap(),
            version: u64::MAX,
            fingerprint: Fingerprint([9; 32]),
            answer: serde_json::to_vec(&answer).unwrap(),
            expires_unix_ms: u64::MAX,
        };
        (credential, state, input, record)
    }

    /// What a message has room for, besides a batch that is as good as full.
    pub const ROOM_BYTES: usize = FRAME_BYTES_MAX * 7 / 8 - BATCH_FULL_BYTES;

    /// A transaction of the longest texts whose attestation fits a QR code, with that attestation.
    pub fn longest_transaction() -> (Transaction, Attestation) {
        let tenant = Tenant::try_from("t".repeat(64)).unwrap();
        let label = |text: &str| Label::try_from(text.repeat(128)).unwrap();
        let now = Now {
            unix_ms: 1 << 40,
            boot_ms: u64::MAX / 2,
            boot_id: BootId([9; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        };
        let transaction = Transaction {
            id: TransactionId::from_random([0xff; 16]),
            tenant: tenant.clone(),
            version: u64::MAX,
            created_unix_ms: 1 << 40,
            method: Method::DeviceSignature {
                credential: CredentialId::from_random([0xff; 16]),
                device: Device::Signature,
            },
            terms: Terms {
                payer: Some(AccountRef::try_from("\u{e9}".repeat(128)).unwrap()),
                payee: label("b"),
                money: Money::new("999999999999999.99", "EUR").unwrap(),
                order: label("\u{20ac}"),
                platform: Some(label("a")),
                remark: Some(Remark::try_from("\"".repeat(128)).unwrap()),
                parent: Some(Parent { id: TransactionId::from_random([0xff; 16]), hash: [0xff; 32] }),
                nonce: [0xff; 32],
            },
            expires: Deadline::after(&now, 3_600_000),
            state: State::Approved,
            attempts_left: 3,
            ended_unix_ms: Some(u64::MAX),
            authenticator: None,
            progress: Progress::None,
        };
        let claims = Claims::new(&transaction, "hsm-authd", 1 << 30, 1 << 30).to_json();
        let jws = "j".repeat(attestation::jws_bytes(&claims));
        assert!((QR_BYTES_MAX * 7 / 8..=QR_BYTES_MAX).contains(&jws.len()), "{}", jws.len());
        let attestation = Attestation::new(transaction.id, tenant, jws);
        (transaction, attestation)
    }

    #[test]
    fn what_goes_together_fits_behind_a_batch_that_is_as_good_as_full() {
        let bytes = |fill: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::default();
            fill(&mut batch);
            assert_eq!(batch.removed.len() + batch.written.len(), batch.standing.len());
            batch.bytes
        };
        let (transaction, attestation) = longest_transaction();
        let view = TransactionView::new(&transaction, Some(&transaction));
        let answer = Answer::TransactionCreated(Box::new(view));
        let record = IdempotencyRecord { answer: serde_json::to_vec(&answer).unwrap(), ..longest(1).3 };
        let record_bytes = bytes(&|batch| batch.remove(sealed(record.clone())));
        assert!(record_bytes > 8 * 1024, "it is long: {record_bytes}");
        assert!(record_bytes < ROOM_BYTES, "{record_bytes}");

        let transaction_bytes = bytes(&|batch| {
            batch.remove(sealed(transaction.clone()));
            batch.remove(sealed(attestation.clone()));
        });
        assert!(transaction_bytes < ROOM_BYTES, "{transaction_bytes}");

        let (credential, state, ..) = longest(1);
        let party = RelyingParty {
            credential_id: vec![0xff; 1_023],
            rp_id: "r".repeat(253),
            origins: vec!["o".repeat(267); 8],
        };
        let signer = Signer { algorithm: SignatureAlgorithm::Es256, key: None };
        let tombstone =
            Credential { kind: Kind::Authenticator(Authenticator { signer, party }), ..credential };
        let tenant = tombstone.tenant.clone();
        let seed = ImportedSeed { tenant, fingerprint: [0xff; 32], version: 1, credential: tombstone.id };
        let tombstone_bytes = bytes(&|batch| {
            batch.remove(sealed(seed.clone()));
            batch.remove(sealed(tombstone.clone()));
            batch.remove(sealed(state.clone()));
        });
        assert!(tombstone_bytes < ROOM_BYTES, "{tombstone_bytes}");

        let inputs_bytes = bytes(&|batch| {
            let (_, state, ..) = longest(1);
            let next = state.with_status(Status::Suspended);
            batch.replace(sealed(state), next.into());
            (0..BATCH as u8).for_each(|number| batch.remove(sealed(longest(number).2)));
        });
        assert!(inputs_bytes < ROOM_BYTES, "{inputs_bytes}");
    }

    #[test]
    fn a_batch_says_how_long_its_message_is() {
        let mut batch = Batch::default();
        for number in 0..u8::try_from(BATCH).unwrap() {
            let (credential, state, input, record) = longest(number);
            batch.remove(sealed(record));
            batch.remove(sealed(credential));
            batch.remove(sealed(input));
            let next = state.with_status(Status::Suspended);
            batch.replace(sealed(state), next.into());
        }
        let Batch { bytes, standing, written, .. } = batch;
        let outcome = Outcome {
            replaces: (0u8..).take(standing.len()).collect(),
            rows: written.iter().map(Row::encode).collect(),
        };
        let request = Request::Seal(SealRows { standing, outcome });
        let frame = encode(&Call { repeated: false, id: u64::MAX, request }).unwrap();
        assert!((bytes * 7 / 8..=bytes + 128).contains(&frame.len()), "{} instead of {bytes}", frame.len());
    }
}
