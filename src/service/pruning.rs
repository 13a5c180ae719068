//! Removing what is past its time: answers after a day, tombstones and ended transactions after the configured
//! days, used inputs of OCRA tokens when their time step is out of reach, presentations as many days after they were made
//! as ended transactions, authorizations a day after their time. And most of the log's old checkpoints.

use std::collections::BTreeMap;

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::credential::UsedInput;
use crate::domain::id::CredentialId;
use crate::domain::row::{RowKey, Sealed};
use crate::domain::time::Now;
use crate::store::TransactionRows;

use super::{RACES_MAX, Refused, Service, seal};

mod batch;
mod left;

pub(super) use batch::Batch;
use batch::Unsealed;
#[cfg(test)]
pub(super) use batch::tests::ROOM_BYTES;
pub(super) use left::Left;

/// How many rows of a kind go at once at most, so that no verdict is held up.
const BATCH: u16 = 16;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// What became of a batch.
enum Tried {
    /// So many rows are gone.
    Done(u64),
    /// A row was changed meanwhile.
    Raced,
    /// A row of it is left from now on.
    Left,
}

impl Service {
    /// Removes rows past their time, batch by batch, until none is left, and writes down which transactions'
    /// time is over; how many rows there were. Nothing while the clock is not trusted. A row that is not what was written
    /// last stays, with what goes with it, and keeps no other.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: rows of some kind cannot be dealt with. The other kinds were; the next round
    /// goes on where this one stopped.
    pub async fn prune(&self) -> Result<u64, Refused> {
        let mut left = Left::default();
        let rounds = [
            self.expire_overdue(&mut left).await,
            self.prune_transactions(&mut left).await,
            self.prune_others(&mut left).await,
            self.thin_checkpoints().await,
        ];
        if left.count() > 0 {
            tracing::warn!(rows = left.count(), "rows that are not what was written last stay");
        }
        rounds.into_iter().sum()
    }

    /// They are no rows: none is counted.
    async fn thin_checkpoints(&self) -> Result<u64, Refused> {
        let now = self.now();
        if now.trusted {
            let thinned = self.log.thin(now.unix_ms).await;
            thinned.map_err(|_| Refused::unavailable("checkpoints cannot be removed"))?;
        }
        Ok(0)
    }

    /// Transactions that ended long ago, each with its attestation.
    async fn prune_transactions(&self, left: &mut Left) -> Result<u64, Refused> {
        let mut pruned = 0;
        loop {
            let now = self.now();
            let before = now.unix_ms.saturating_sub(u64::from(self.policies.transactions.keep_days) * DAY_MS);
            let mut ended = match now.trusted {
                true => self.store.transactions_ended(before, left.limit()).await?,
                false => Vec::new(),
            };
            ended.retain(|rows| {
                !left.has_row(&rows.transaction)
                    && !rows.attestation.as_ref().is_some_and(|row| left.has_row(row))
            });
            if ended.is_empty() {
                return Ok(pruned);
            }
            let mut batch = Batch::default();
            for TransactionRows { transaction, attestation } in ended.into_iter().take(BATCH.into()) {
                if batch.is_full() {
                    break;
                }
                batch.remove(transaction);
                attestation.into_iter().for_each(|attestation| batch.remove(attestation));
            }
            match self.try_to_prune(batch, &now, left).await? {
                Tried::Done(count) => pruned += count,
                Tried::Left => {}
                // Nobody changes what has ended, so no race for it is lost.
                Tried::Raced => return Ok(pruned),
            }
        }
    }

    async fn prune_others(&self, left: &mut Left) -> Result<u64, Refused> {
        let (mut pruned, mut races_lost) = (0, 0);
        // A credential in constant use may win every race: the next round tries again.
        while races_lost < RACES_MAX {
            let now = self.now();
            if !now.trusted {
                break;
            }
            let mut batch = Batch::default();
            batch.remove_all(self.store.expired(now.unix_ms, left.limit()).await?, left);
            self.tombstones(&now, &mut batch, left).await?;
            self.inputs_out_of_reach(&now, &mut batch, left).await?;
            self.presented(&now, &mut batch, left).await?;
            if batch.removed() == 0 {
                break;
            }
            match self.try_to_prune(batch, &now, left).await? {
                Tried::Done(count) => pruned += count,
                Tried::Left => {}
                Tried::Raced => races_lost += 1,
            }
        }
        Ok(pruned)
    }

    async fn try_to_prune(&self, batch: Batch, now: &Now, left: &mut Left) -> Result<Tried, Refused> {
        let count = batch.removed() as u64;
        let audit = AuditEntry::of_appliance(now.unix_ms, Event::Pruned);
        let committed = match batch.sealed_or_wrong(&self.hsm, audit).await {
            Ok(commit) => self.commit_or_name(commit).await?,
            Err(Unsealed { wrong: Some(key), .. }) => Err(key),
            Err(Unsealed { refused, .. }) => return Err(refused),
        };
        match committed {
            Ok(Some(_durable)) => Ok(Tried::Done(count)),
            Ok(None) => Ok(Tried::Raced),
            Err(key) => left.leave(key).map(|()| Tried::Left),
        }
    }

    async fn tombstones(&self, now: &Now, batch: &mut Batch, left: &Left) -> Result<(), Refused> {
        let before = now.unix_ms.saturating_sub(u64::from(self.policies.credentials.tombstone_days) * DAY_MS);
        let mut tombstones = self.store.tombstones(before, left.limit()).await?;
        tombstones.retain(|rows| !left.has_row(&rows.credential) && !left.has_row(&rows.state));
        for tombstone in tombstones.into_iter().take(BATCH.into()) {
            if batch.is_full() {
                break;
            }
            // What it used up goes first: nothing would lead to it any more.
            let inputs = self.store.inputs_of(tombstone.credential.row.id, left.limit()).await?;
            if !inputs.is_empty() {
                let so_far = batch.removed();
                batch.remove_all(inputs, left);
                match batch.removed() > so_far {
                    true => break,
                    // They stay, and so does it.
                    false => continue,
                }
            }
            // From here on what its seed came as may come again.
            let imported = self.store.imported_seeds_of(tombstone.credential.row.id).await?;
            if imported.iter().any(|seed| left.has_row(seed)) {
                continue;
            }
            imported.into_iter().for_each(|seed| batch.remove(seed));
            batch.remove(tombstone.credential);
            batch.remove(tombstone.state);
        }
        Ok(())
    }

    /// Each goes together with a move of its credential's mark beyond it: should the clock have been
    /// ahead, and be set right, nothing that was forgotten comes within reach again.
    async fn inputs_out_of_reach(&self, now: &Now, batch: &mut Batch, left: &Left) -> Result<(), Refused> {
        let mut of: BTreeMap<CredentialId, Vec<Sealed<UsedInput>>> = BTreeMap::new();
        let found = self.store.inputs_out_of_reach(now.unix_ms, left.limit()).await?;
        let is_left =
            |input: &Sealed<UsedInput>| left.has_row(input) || left.has(&RowKey::State(input.row.id));
        for input in found.into_iter().filter(|input| !is_left(input)).take(BATCH.into()) {
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
            match highest.and_then(|step| rows.state.row.beyond(step)) {
                Some(next) => batch.replace(rows.state, next.into()),
                None => batch.stand(&rows.state),
            }
            inputs.into_iter().for_each(|input| batch.remove(input));
        }
        Ok(())
    }

    /// Presentations, and authorizations that came to nothing.
    async fn presented(&self, now: &Now, batch: &mut Batch, left: &Left) -> Result<(), Refused> {
        // A transaction that claimed one has ended by then: it is open for an hour at most.
        let before = now.unix_ms.saturating_sub(u64::from(self.policies.transactions.keep_days) * DAY_MS);
        batch.remove_all(self.store.presentations_made_before(before, left.limit()).await?, left);
        let past = now.unix_ms.saturating_sub(DAY_MS);
        batch.remove_all(self.store.authorizations_past(past, left.limit()).await?, left);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::account::AccountRef;
    use crate::domain::attestation::{self, Attestation, Claims};
    use crate::domain::caller::{ClientName, Tenant};
    use crate::domain::credential::{Credential, CredentialState, Kind, OcraToken, OcraUse, Status};
    use crate::domain::id::TransactionId;
    use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
    use crate::domain::lockout::{Attempts, Lock};
    use crate::domain::money::Money;
    use crate::domain::ocra::Suite;
    use crate::domain::qr::QR_BYTES_MAX;
    use crate::domain::row::Seal;
    use crate::domain::time::{BootId, Deadline, RunId};
    use crate::domain::transaction::{
        Device, Label, Method, Parent, Progress, Remark, State, Terms, Transaction,
    };
    use crate::service::Answer;
    use crate::service::credential_view::CredentialView;

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
}
