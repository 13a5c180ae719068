//! Remembering answers: an `Idempotency-Key` is worth the first answer, once and for a day.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::domain::caller::ClientName;
use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord, REMEMBERED_MS};
use crate::domain::time::Now;

use super::{Answer, Ask, Refused, Service};

/// Keys whose first request is being worked on: a second one is a conflict, not a second attempt.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashSet<(ClientName, IdempotencyKey)>>);

/// What is known of a request before it is worked on.
pub(super) enum Recall<'a> {
    /// It was answered before.
    Answered(Answer),
    /// It is new.
    New(Memory<'a>),
}

/// The place where the answer to a new request will be remembered; empty without a key.
pub(super) struct Memory<'a>(Option<Place<'a>>);

struct Place<'a> {
    in_flight: Entry<'a>,
    fingerprint: Fingerprint,
}

/// A key that is being worked on, until it is dropped.
struct Entry<'a> {
    set: &'a InFlight,
    key: (ClientName, IdempotencyKey),
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.set.keys().remove(&self.key);
    }
}

impl InFlight {
    fn keys(&self) -> std::sync::MutexGuard<'_, HashSet<(ClientName, IdempotencyKey)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `None` while the same key is being worked on.
    fn begin(&self, key: (ClientName, IdempotencyKey)) -> Option<Entry<'_>> {
        let is_new = self.keys().insert(key.clone());
        // Made only if it is new: dropping one gives its key back.
        is_new.then(|| Entry { set: self, key })
    }
}

impl Memory<'_> {
    /// The record of `answer`, to be committed with what it tells of; `None` without a key.
    pub fn record(&self, answer: &Answer, now: &Now) -> Result<Option<IdempotencyRecord>, Refused> {
        let Some(place) = &self.0 else { return Ok(None) };
        Ok(Some(IdempotencyRecord {
            client: place.in_flight.key.0.clone(),
            key: place.in_flight.key.1.clone(),
            version: 1,
            fingerprint: place.fingerprint,
            answer: serde_json::to_vec(answer).map_err(Refused::unavailable)?,
            expires_unix_ms: now.unix_ms.saturating_add(REMEMBERED_MS),
        }))
    }
}

impl Service {
    /// Looks the request up by its key.
    ///
    /// A record past its time counts until it is pruned: early is the only wrong way.
    ///
    /// # Errors
    /// [`Refused::Conflict`] while the first one is in flight; [`Refused::IdempotencyMismatch`] for
    /// another request under the same key; [`Refused::Unavailable`].
    pub(super) async fn recall(&self, ask: &mut Ask) -> Result<Recall<'_>, Refused> {
        let Some(idempotency) = ask.idempotency.take() else {
            return Ok(Recall::New(Memory(None)));
        };
        let entry = (ask.caller.client.clone(), idempotency.key);
        let in_flight = self.in_flight.begin(entry).ok_or(Refused::Conflict)?;
        let (fingerprint, all) = self.hsm.fingerprints(idempotency.request).await?;
        let place = Place { in_flight, fingerprint };
        let (client, key) = &place.in_flight.key;
        let Some(record) = self.store.idempotency(client, key).await? else {
            return Ok(Recall::New(Memory(Some(place))));
        };
        // A forged record would be a yes that nobody earned.
        self.hsm.check(vec![record.to_bytes()]).await?;
        // It may have been remembered under an older key.
        if !all.contains(&record.row.fingerprint) {
            return Err(Refused::IdempotencyMismatch);
        }
        let answer = serde_json::from_slice(&record.row.answer).map_err(Refused::unavailable)?;
        // Whoever was to be told it first may not have been told because no anchor covered it.
        self.log.covers_all().await?;
        Ok(Recall::Answered(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_back_by_whom_it_was_given_to() {
        let client = ClientName::try_from("bank-a".to_owned()).unwrap();
        let key = || (client.clone(), IdempotencyKey::parse("k").unwrap());
        let in_flight = InFlight::default();
        let first = in_flight.begin(key());
        assert!(first.is_some());
        assert!(in_flight.begin(key()).is_none());
        assert!(in_flight.begin(key()).is_none(), "one that was turned away gives nothing back");
        drop(first);
        assert!(in_flight.begin(key()).is_some());
    }
}
