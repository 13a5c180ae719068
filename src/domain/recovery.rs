//! What becomes of each row when an operator accepts a database that was turned back.
//!
//! Such a database has forgotten what was used up, suspended and deleted since. So nothing that it says of a credential
//! is believed but that it was deleted: all others are suspended, for the bank to decide by its own records. What can be
//! resumed is what no old code fits any more: codes made of the time (their marks move past now), and signatures, which
//! are made over something new each time. `docs/recovery.md` has the table.

use super::account::Account;
use super::credential::{Credential, CredentialState, Kind, OcraToken, OtpToken, Status};
use super::lockout::{Attempts, FAILURES_UNTIL_UNLOCK, Lock};
use super::otp::MovingFactor;
use super::presentation::{ISSUED_WITHIN_MS, Presentation};
use super::row::Row;
use super::time::{Floor, Now};
use super::transaction::{State, Transaction};
use super::verification::beyond_floor;

/// What becomes of a row that stands by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is.
    Kept,
    /// It is replaced by its next version.
    Replaced(Box<Row>),
    /// It is removed.
    Removed,
}

/// What becomes of any row but a credential's and its state's, which are judged together: see [`credential`].
///
/// Accounts stay, with their failures and locks. So do answers that are remembered (each is bound to its request),
/// inputs that are used up, attestations, seeds that were imported, and codes that were claimed: losing one of these
/// would let something happen once more.
pub fn row(row: &Row, now: &Now) -> Fate {
    match row {
        Row::Transaction(transaction) if transaction.state == State::Pending => {
            Fate::Replaced(Box::new(cancelled(transaction, now).into()))
        }
        // The terminal of a binding may be epochs ahead of it; what is under way may have been completed.
        Row::Binding(_)
        | Row::Authorization(_)
        | Row::Presentation(Presentation { transaction: None, .. }) => Fate::Removed,
        Row::Credential(_)
        | Row::State(_)
        | Row::Account(_)
        | Row::Idempotency(_)
        | Row::UsedInput(_)
        | Row::Attestation(_)
        | Row::Transaction(_)
        | Row::Presentation(_)
        | Row::ImportedSeed(_) => Fate::Kept,
    }
}

/// Also one whose time is over: what it was waiting for, nobody waits for any more.
fn cancelled(transaction: &Transaction, now: &Now) -> Transaction {
    Transaction {
        version: transaction.version.saturating_add(1),
        state: State::Cancelled,
        ended_unix_ms: Some(now.unix_ms),
        ..transaction.clone()
    }
}

/// What becomes of a credential: the rows to write, each the next version of the one it replaces. None, if all of it was
/// done before.
pub fn credential(credential: &Credential, state: &CredentialState, now: &Now) -> Vec<Row> {
    // Each of the two rows could be of another day: whichever knows of a deletion is right.
    if credential.deleted_unix_ms.is_some() || state.status == Status::Deleted {
        let tombstone = credential.deleted_unix_ms.is_none().then(|| credential.deleted(now.unix_ms).into());
        let state = (state.status != Status::Deleted).then(|| state.with_status(Status::Deleted).into());
        return tombstone.into_iter().chain(state).collect();
    }
    let after = recovered(&credential.kind, state, now);
    let is_same = (after.status, after.next_factor) == (state.status, state.next_factor);
    if is_same { Vec::new() } else { vec![after.into()] }
}

/// The account of a credential whose own is not there. It may have been locked: so is this one, until it is unlocked.
pub fn account(credential: &Credential) -> Account {
    let attempts = Attempts { failures: FAILURES_UNTIL_UNLOCK, lock: Some(Lock::UntilUnlocked) };
    Account { attempts, ..Account::new(credential.tenant.clone(), credential.account.clone()) }
}

fn recovered(kind: &Kind, state: &CredentialState, now: &Now) -> CredentialState {
    let mark = mark(kind, state, now);
    let status = match state.status {
        // It may have been completed since, and used.
        Status::Pending | Status::Unauthorized => Status::Stranded,
        Status::Deleted | Status::Stranded => state.status,
        Status::Active | Status::Suspended | Status::Recovered if mark.is_some() => Status::Recovered,
        Status::Active | Status::Suspended | Status::Recovered => Status::Stranded,
    };
    let next = CredentialState {
        next_factor: mark.unwrap_or(0).max(state.next_factor),
        ..state.with_status(status)
    };
    match kind {
        // Its binding goes.
        Kind::Rolling(_) => next.bound(0),
        _ => next,
    }
}

/// The first factor that may be accepted from now on; `None` if nobody can tell what was used up.
fn mark(kind: &Kind, state: &CredentialState, now: &Now) -> Option<u64> {
    let lost = Now { floor: Floor { lost_unix_ms: now.unix_ms, ..Floor::default() }, ..*now };
    match kind {
        Kind::Otp(OtpToken { moving_factor: MovingFactor::Totp { period_s, skew_steps }, .. }) => {
            Some(beyond_floor(&lost, u32::from(*period_s), *skew_steps, [state.drift_steps; 2]))
        }
        // Two codes that were used would satisfy a resync, or the counter would meet them again.
        Kind::Otp(OtpToken { moving_factor: MovingFactor::Hotp { .. }, .. }) => None,
        Kind::Ocra(OcraToken { suite, skew_steps, .. }) => match suite.time_step_s() {
            Some(period_s) if !suite.has_counter() => {
                Some(beyond_floor(&lost, period_s, *skew_steps, [0; 2]))
            }
            // With a counter as above; with neither, the inputs that were used are forgotten.
            _ => None,
        },
        // A signed request for a code to present is good for a moment before and after it is signed.
        Kind::Signer(_) | Kind::CertifiedSigner(_) => {
            Some(now.unix_ms.saturating_add(ISSUED_WITHIN_MS) / 1_000 + 1)
        }
        // What they make answers something new each time.
        Kind::Authenticator(_) | Kind::Terminal(_) => Some(state.next_factor),
        Kind::Rolling(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::Account;
    use crate::domain::authorization::{Authorization, Means};
    use crate::domain::credential::{Authenticator, OcraUse, Signer, StoredSecret, Terminal, UsedInput};
    use crate::domain::id::{CredentialId, PresentationId, TransactionId};
    use crate::domain::ocra::Suite;
    use crate::domain::otp::{Algorithm, Digits};
    use crate::domain::rolling::{Binding, Rolling};
    use crate::domain::signer::SignatureAlgorithm;
    use crate::domain::time::Deadline;
    use crate::domain::transaction::tests::golden;
    use crate::domain::verification::tests::{Rows, at};
    use crate::domain::webauthn::RelyingParty;

    const NOW_S: u64 = 1_800_000_000;

    fn otp(moving_factor: MovingFactor) -> Kind {
        let secret = Some(StoredSecret::Wrapped { kek_version: 1, blob: vec![1; 32] });
        Kind::Otp(OtpToken { algorithm: Algorithm::Sha1, digits: Digits::default(), moving_factor, secret })
    }

    fn ocra(suite: &str) -> Kind {
        Kind::Ocra(OcraToken {
            suite: Suite::parse(suite).unwrap(),
            look_ahead: 0,
            skew_steps: 1,
            usage: OcraUse::Verify,
            secret: None,
            pin_hash: None,
        })
    }

    fn rolling() -> Kind {
        Kind::Rolling(Rolling::new(StoredSecret::Wrapped { kek_version: 1, blob: vec![1; 40] }, [1; 16]))
    }

    /// Every kind, what a recovery makes of it while it is in use, and its mark.
    fn kinds() -> Vec<(Kind, Status, u64)> {
        let signer = Signer { algorithm: SignatureAlgorithm::Es256, key: None };
        let party = RelyingParty { credential_id: vec![1], rp_id: "a.example".to_owned(), origins: vec![] };
        let certified = crate::domain::credential::CertifiedSigner { signer: signer.clone(), chain: None };
        vec![
            (otp(MovingFactor::Totp { period_s: 30, skew_steps: 2 }), Status::Recovered, NOW_S / 30 + 3),
            (ocra("OCRA-1:HOTP-SHA1-6:QN08-T1M"), Status::Recovered, NOW_S / 60 + 2),
            (Kind::Signer(signer.clone()), Status::Recovered, NOW_S + 31),
            (Kind::CertifiedSigner(certified), Status::Recovered, NOW_S + 31),
            (Kind::Authenticator(Authenticator { signer, party }), Status::Recovered, 7),
            (
                Kind::Terminal(Terminal { address: "+1".to_owned().try_into().unwrap(), secret: None }),
                Status::Recovered,
                7,
            ),
            (otp(MovingFactor::Hotp { look_ahead: 5 }), Status::Stranded, 7),
            (ocra("OCRA-1:HOTP-SHA1-6:C-QN08"), Status::Stranded, 7),
            (ocra("OCRA-1:HOTP-SHA1-6:C-QN08-T1M"), Status::Stranded, 7),
            (ocra("OCRA-1:HOTP-SHA1-6:QN08"), Status::Stranded, 7),
            (rolling(), Status::Stranded, 0),
        ]
    }

    /// The state after a recovery; `None` where there is nothing to write.
    fn after(rows: &Rows) -> Option<CredentialState> {
        match &*credential(&rows.0, &rows.1, &at(NOW_S)) {
            [] => None,
            [Row::State(state)] => Some(state.clone()),
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn every_kind_in_every_status() {
        for (kind, expected, mark) in kinds() {
            for status in Status::ALL {
                let mut rows = Rows::of(kind.clone(), 7);
                rows.1.status = status;
                let expected = match status {
                    Status::Active | Status::Suspended | Status::Recovered => expected,
                    Status::Pending | Status::Unauthorized | Status::Stranded => Status::Stranded,
                    Status::Deleted => {
                        let written = credential(&rows.0, &rows.1, &at(NOW_S));
                        assert_eq!(written, [rows.0.deleted(NOW_S * 1_000).into()], "stays deleted");
                        continue;
                    }
                };
                let state = after(&rows).unwrap_or_else(|| rows.1.clone());
                assert_eq!((state.status, state.next_factor), (expected, mark), "{kind:?} {status:?}");
                assert_eq!(state.attempts, rows.1.attempts);
                assert_eq!(state.status.shown(), Status::Suspended);
                // Once more, after a crash: nothing is left to do.
                let again = Rows(rows.0.clone(), state, rows.2.clone());
                assert_eq!(after(&again), None, "{kind:?} {status:?}");
            }
        }
    }

    #[test]
    fn a_mark_only_grows_and_reckons_with_a_clock_that_is_ahead() {
        let kind = otp(MovingFactor::Totp { period_s: 30, skew_steps: 1 });
        let present = NOW_S / 30;
        for (drift_steps, next_factor, mark) in [
            (0, 0, present + 2),
            (40, 0, present + 42),
            (-40, 0, present - 38),
            (0, present + 99, present + 99),
        ] {
            let mut rows = Rows::of(kind.clone(), next_factor);
            rows.1.drift_steps = drift_steps;
            assert_eq!(after(&rows).unwrap().next_factor, mark, "{drift_steps} {next_factor}");
        }
    }

    #[test]
    fn whichever_row_knows_of_a_deletion_is_right() {
        let mut rows = Rows::of(otp(MovingFactor::Hotp { look_ahead: 5 }), 7);
        let (live, state) = (rows.0.clone(), rows.1.clone());
        rows.0 = live.deleted(5);
        assert_eq!(after(&rows), Some(state.with_status(Status::Deleted)));
        rows.1 = state.with_status(Status::Deleted);
        assert_eq!(after(&rows), None, "whole tombstones stay");
        let tombstone = live.deleted(NOW_S * 1_000);
        assert!(matches!(&tombstone.kind, Kind::Otp(OtpToken { secret: None, .. })));
        assert_eq!(credential(&live, &rows.1, &at(NOW_S)), [tombstone.into()]);
    }

    #[test]
    fn an_account_that_is_gone_comes_back_locked() {
        let rows = Rows::of(rolling(), 0);
        let account = account(&rows.0);
        assert_eq!((&account.account, account.version), (&rows.2.account, 1));
        assert!(
            account.attempts.locked(&at(u64::MAX / 1_000)).is_some_and(|lock| lock.retry_after_s.is_none())
        );
    }

    #[test]
    fn what_waits_is_cancelled_and_what_is_done_stays() {
        let now = at(NOW_S);
        let pending = Transaction { state: State::Pending, ended_unix_ms: None, ..golden() };
        let Fate::Replaced(row) = row(&pending.clone().into(), &now) else { panic!("it stays") };
        let cancelled = Transaction {
            version: pending.version + 1,
            state: State::Cancelled,
            ended_unix_ms: Some(now.unix_ms),
            ..pending
        };
        assert_eq!(*row, Row::Transaction(cancelled));
        for state in State::ALL.into_iter().filter(|state| *state != State::Pending) {
            assert_eq!(super::row(&Transaction { state, ..golden() }.into(), &now), Fate::Kept);
        }

        let (id, tenant) = (CredentialId::from_random([1; 16]), golden().tenant);
        let account: crate::domain::account::AccountRef = "acct-1".to_owned().try_into().unwrap();
        let presentation = |transaction| Presentation {
            id: PresentationId::from_random([1; 16]),
            tenant: tenant.clone(),
            version: 1,
            credential: id,
            account: account.clone(),
            created_unix_ms: 0,
            nonce: [0; 32],
            code_hash: [0; 32],
            expires: Deadline::after(&now, 60_000),
            transaction,
        };
        let authorization = Authorization {
            credential: id,
            tenant: tenant.clone(),
            account: account.clone(),
            version: 1,
            means: Means::Sms { terminal: id },
            nonce: [0; 32],
            expires: Deadline::after(&now, 60_000),
            uplink_seen: true,
            attempts_left: 3,
        };
        for gone in [
            Row::Presentation(presentation(None)),
            Row::Authorization(authorization),
            Row::Binding(Binding::first(id, tenant.clone(), [0; 12])),
        ] {
            assert_eq!(super::row(&gone, &now), Fate::Removed, "{gone:?}");
        }
        let used = UsedInput {
            id,
            fingerprint: [0; 32],
            tenant: tenant.clone(),
            version: 1,
            time_step: None,
            expires_unix_ms: None,
        };
        for kept in [
            Row::Presentation(presentation(Some(TransactionId::from_random([1; 16])))),
            Row::UsedInput(used),
            Row::Account(Account::new(tenant, account)),
        ] {
            assert_eq!(super::row(&kept, &now), Fate::Kept, "{kept:?}");
        }
    }
}
