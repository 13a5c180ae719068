//! Removing what is past its time: answers after a day, tombstones after the configured days, used inputs
//! of OCRA tokens when their time step is out of reach.

use std::collections::BTreeMap;

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::credential::UsedInput;
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::time::Now;
use crate::hsm::messages::{Outcome, SealRows};
use crate::store::Commit;

use super::{RACES_MAX, Refused, Service, seal};

/// How many rows of a kind go at once: all together have to fit one message, and hold up no verdict.
const BATCH: u16 = 16;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl Service {
    /// Removes rows past their time, batch by batch, until none is left. Nothing while the clock is
    /// not trusted.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]; the next round goes on where this one stopped.
    pub async fn prune(&self) -> Result<u64, Refused> {
        let (mut pruned, mut races_lost) = (0, 0);
        // A credential in constant use may win every race: the next round tries again.
        while races_lost < RACES_MAX {
            let now = self.now();
            if !now.trusted {
                break;
            }
            let mut batch = Batch::default();
            for record in self.store.expired(now.unix_ms, BATCH).await? {
                batch.remove(record);
            }
            self.tombstones(&now, &mut batch).await?;
            self.inputs_out_of_reach(&now, &mut batch).await?;
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
        let before = now.unix_ms.saturating_sub(u64::from(self.policy.tombstone_days) * DAY_MS);
        for tombstone in self.store.tombstones(before, BATCH).await? {
            // What it used up goes first: nothing would lead to it any more.
            let inputs = self.store.inputs_of(tombstone.credential.row.id, BATCH).await?;
            if !inputs.is_empty() {
                inputs.into_iter().for_each(|input| batch.remove(input));
                break;
            }
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

    async fn sealed(&self, batch: Batch, now: &Now) -> Result<Commit, Refused> {
        let Batch { standing, removed, written } = batch;
        let replaces = (0u8..).take(standing.len()).collect();
        let rows = written.iter().map(Row::encode).collect();
        let sealed = self.hsm.seal(SealRows { standing, outcome: Outcome { replaces, rows } }).await?;
        Ok(Commit {
            standing: Vec::new(),
            removed: removed.iter().map(|row| (row.key(), row.version())).collect(),
            rows: seal(written, &sealed)?,
            sum_change: sealed.sum_change,
            audit: AuditEntry { unix_ms: now.unix_ms, event: Event::Pruned, actor: None, credential: None },
        })
    }
}

/// Rows that go, and rows that change with them.
#[derive(Default)]
struct Batch {
    standing: Vec<SealedBytes>,
    removed: Vec<Row>,
    written: Vec<Row>,
}

impl Batch {
    fn remove<T: Clone + Into<Row>>(&mut self, row: Sealed<T>) {
        // A tombstone and the time can both lead to an input.
        let (bytes, row) = (row.to_bytes(), row.row.into());
        if !self.removed.contains(&row) {
            self.standing.push(bytes);
            self.removed.push(row);
        }
    }

    fn replace<T: Clone + Into<Row>>(&mut self, row: Sealed<T>, next: Row) {
        self.standing.push(row.to_bytes());
        self.written.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::AccountRef;
    use crate::domain::caller::{ClientName, Tenant};
    use crate::domain::credential::{Credential, CredentialState, Kind, OcraToken, OcraUse, Status};
    use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
    use crate::domain::lockout::{Attempts, Lock};
    use crate::domain::ocra::Suite;
    use crate::domain::row::Seal;
    use crate::domain::time::{BootId, Deadline};
    use crate::hsm::messages::{Call, FRAME_BYTES_MAX, Request, encode};
    use crate::service::Answer;
    use crate::service::credential_view::CredentialView;

    fn sealed<T>(row: T) -> Sealed<T> {
        Sealed { row, seal: Seal { key_version: u16::MAX, mac: [0xff; 32] } }
    }

    /// The longest rows that there can be, of credential number `number`.
    fn longest(number: u8) -> (Credential, CredentialState, UsedInput, IdempotencyRecord) {
        let id = CredentialId::from_random([number; 16]);
        let tenant = Tenant::try_from("t".repeat(64)).unwrap();
        let now =
            Now { unix_ms: u64::MAX / 2, boot_ms: u64::MAX / 2, boot_id: BootId([9; 16]), trusted: true };
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

    #[test]
    fn a_batch_of_the_longest_rows_fits_a_message() {
        let count = u8::try_from(BATCH).unwrap();
        let mut batch = Batch::default();
        for number in 0..count {
            let (credential, state, _, record) = longest(number);
            batch.remove(sealed(record));
            if number > 0 {
                batch.remove(sealed(credential));
                batch.remove(sealed(state));
            }
            // The last tombstone has used inputs; and as many, of other credentials, are out of reach.
            let (_, _, input, _) = longest(count + number);
            batch.remove(sealed(input));
            let (_, state, input, _) = longest(2 * count + number);
            let next = state.with_status(Status::Suspended);
            batch.replace(sealed(state), next.into());
            batch.remove(sealed(input));
        }
        let Batch { standing, written, .. } = batch;
        let outcome = Outcome {
            replaces: (0u8..).take(standing.len()).collect(),
            rows: written.iter().map(Row::encode).collect(),
        };
        let request = Request::Seal(SealRows { standing, outcome });
        let frame = encode(&Call { id: u64::MAX, request });
        let length = frame.map(|frame| frame.len());
        assert!(length.as_ref().is_ok_and(|bytes| *bytes < FRAME_BYTES_MAX * 7 / 8), "{length:?}");
    }
}
