//! What goes in one commit, and in one message.

use crate::domain::audit::AuditEntry;
use crate::domain::row::{Row, RowKey, Sealed, SealedBytes};
use crate::hsm::messages::{Outcome, SealRows};
use crate::hsm::{Hsm, HsmError};
use crate::store::{Commit, Standing};

use super::{BATCH, Left, Refused, seal};

/// From how many bytes on a batch takes nothing more. What goes together is shorter than the rest of a message: the
/// longest of it is a remembered answer to a new transaction.
const BATCH_FULL_BYTES: usize = 40 * 1024;

/// Why there is no commit of a batch.
pub(super) struct Unsealed {
    /// The row that is not what was sealed, if that is why.
    pub wrong: Option<RowKey>,
    pub refused: Refused,
}

/// Rows that go, and rows that change with them.
#[derive(Clone, Default)]
pub(in crate::service) struct Batch {
    /// What they take in a message.
    bytes: usize,
    standing: Vec<SealedBytes>,
    /// The same as they were read.
    before: Vec<Standing>,
    /// What else was looked at.
    looked_at: Vec<Standing>,
    removed: Vec<RowKey>,
    written: Vec<Row>,
}

impl Batch {
    /// What is left for the next one is found again.
    pub(in crate::service) fn is_full(&self) -> bool {
        self.bytes >= BATCH_FULL_BYTES
    }

    /// How many rows it stands on.
    pub(in crate::service) fn rows(&self) -> usize {
        self.standing.len()
    }

    pub(in crate::service) fn is_empty(&self) -> bool {
        self.standing.is_empty() && self.written.is_empty()
    }

    /// How many rows go.
    pub(super) fn removed(&self) -> usize {
        self.removed.len()
    }

    /// Has a custodian check its rows and seal what comes.
    pub(in crate::service) async fn sealed(self, hsm: &Hsm, audit: AuditEntry) -> Result<Commit, Refused> {
        self.sealed_or_wrong(hsm, audit).await.map_err(|unsealed| unsealed.refused)
    }

    /// The same for who goes on without a row whose seal is wrong.
    pub(super) async fn sealed_or_wrong(self, hsm: &Hsm, audit: AuditEntry) -> Result<Commit, Unsealed> {
        let Self { standing, mut before, looked_at, removed, written, .. } = self;
        let replaces = (0u8..).take(standing.len()).collect();
        let rows = written.iter().map(Row::encode).collect();
        let sealed = hsm.seal(SealRows { standing, outcome: Outcome { replaces, rows } }).await;
        let sealed = sealed.map_err(|error| Unsealed {
            wrong: match &error {
                HsmError::Tampered(place) => before.get(usize::from(*place)).map(|row| row.key().clone()),
                _ => None,
            },
            refused: error.into(),
        })?;
        let rows = seal(written, &sealed).map_err(|refused| Unsealed { wrong: None, refused })?;
        before.extend(looked_at);
        Ok(Commit { before, removed, rows, sum_change: sealed.sum_change, audit })
    }

    /// A row that is new; nothing, if it is among them already.
    pub(in crate::service) fn add(&mut self, row: Row) {
        if !self.written.iter().any(|other| other.key() == row.key()) {
            self.bytes = self.bytes.saturating_add(row.encode().as_bytes().len());
            self.written.push(row);
        }
    }

    pub(in crate::service) fn remove<T: Clone + Into<Row>>(&mut self, row: Sealed<T>) {
        // A tombstone and the time can both lead to an input.
        let before = Standing::from(&row);
        if !self.removed.contains(before.key()) {
            self.removed.push(before.key().clone());
            self.push(row.to_bytes(), before);
        }
    }

    /// As many of one kind as go at once, and as it has room for.
    pub(super) fn remove_all<T: Clone + Into<Row>>(&mut self, rows: Vec<Sealed<T>>, left: &Left) {
        for row in rows.into_iter().filter(|row| !left.has_row(row)).take(BATCH.into()) {
            if self.is_full() {
                break;
            }
            self.remove(row);
        }
    }

    pub(in crate::service) fn replace<T: Clone + Into<Row>>(&mut self, row: Sealed<T>, next: Row) {
        let bytes = row.to_bytes();
        // The next version is about as long.
        self.bytes = self.bytes.saturating_add(bytes.message_bytes());
        self.push(bytes, Standing::from(&row));
        self.written.push(next);
    }

    /// A row that nothing is done to, though another one would mean something else.
    pub(super) fn stand<T: Clone + Into<Row>>(&mut self, row: &Sealed<T>) {
        self.looked_at.push(row.into());
    }

    fn push(&mut self, bytes: SealedBytes, before: Standing) {
        self.bytes = self.bytes.saturating_add(bytes.message_bytes());
        self.standing.push(bytes);
        self.before.push(before);
    }
}

#[cfg(test)]
pub(in crate::service) mod tests {
    use super::super::tests::{longest, longest_transaction, sealed};
    use super::*;
    use crate::domain::credential::{Authenticator, Credential, ImportedSeed, Kind, Signer, Status};
    use crate::domain::idempotency::IdempotencyRecord;
    use crate::domain::signer::SignatureAlgorithm;
    use crate::domain::webauthn::RelyingParty;
    use crate::hsm::messages::{Call, FRAME_BYTES_MAX, Request, encode};
    use crate::service::Answer;
    use crate::service::transaction_view::TransactionView;

    /// What a message has room for, besides a batch that is as good as full.
    pub const ROOM_BYTES: usize = FRAME_BYTES_MAX * 7 / 8 - BATCH_FULL_BYTES;

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
        let newest = crate::hsm::messages::tests::newest();
        let frame = encode(&Call { repeated: false, id: u64::MAX, newest, request }).unwrap();
        assert!((bytes * 7 / 8..=bytes + 128).contains(&frame.len()), "{} instead of {bytes}", frame.len());
    }
}
