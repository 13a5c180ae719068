//! Codes of several terminals: whether they are entered as the rule says.

use crate::domain::attestation::Attestation;
use crate::domain::audit::Event;
use crate::domain::multi_terminal::{MultiTerminal, Round, TERMINALS};
use crate::domain::otp::Otp;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::transaction::{Progress, State, Step, Transaction};
use crate::domain::verification::several::{self, Plan};
use crate::domain::verification::usable;
use crate::hsm::messages::CheckEntry;
use crate::store::{CredentialRows, Standing};

use super::super::super::transaction_view::TransactionView;
use super::super::super::verification::Ending;
use super::super::Answer;
use super::{Judged, Presented, Refused, Response, Service, misfit};

/// Where the rows stand in the message to the custodian: behind these two, of each terminal its credential and its
/// state.
const TRANSACTION: u8 = 0;
const ACCOUNT: u8 = 1;

/// What is entered.
#[derive(Clone, Copy)]
struct Entry<'a> {
    codes: &'a [Otp],
    /// Whether it is a whole round; else it is the next entry of the present one.
    is_whole: bool,
}

/// Both ways in which an entry can end.
struct Endings {
    right: Ending,
    wrong: Ending,
}

impl Service {
    pub(super) async fn judge_entry(
        &self,
        response: Response<'_>,
        method: &MultiTerminal,
    ) -> Result<Judged, Refused> {
        let Response { transaction: sealed, presented, now, .. } = response;
        let transaction = &sealed.row;
        let Progress::Entry(round) = transaction.progress else {
            return Err(Refused::unavailable("a transaction for terminals without a round"));
        };
        // One of them was pruned, deleted or suspended: the transaction is there, and nothing can approve it.
        let terminals = self.asked_terminals(&transaction.tenant, method).await?.ok_or(Refused::Conflict)?;
        let subjects: Vec<_> = terminals.iter().map(CredentialRows::subject).collect();
        subjects.iter().try_for_each(|subject| usable(*subject)).map_err(|_| Refused::Conflict)?;
        let CredentialRows { account, credential: first, .. } = terminals.first().ok_or(Refused::Conflict)?;
        let plan = several::begin(&subjects, &account.row, now)?;
        let entry = Entry::new(method, presented)?;
        let in_time = match entry.is_whole {
            true => method.is_in_window(now),
            false => method.is_in_time(&round, now),
        };

        let ends_a_round = entry.is_whole || method.is_last(&round);
        let Endings { mut right, wrong } = match ends_a_round {
            true => Endings::of_a_round(response, plan)?,
            false => Endings::on_the_way(response, method, &round)?,
        };
        let rows = terminals.iter().flat_map(|rows| [rows.credential.to_bytes(), rows.state.to_bytes()]);
        let standing_bytes: Vec<SealedBytes> =
            [sealed.to_bytes(), account.to_bytes()].into_iter().chain(rows).collect();
        let mut before = vec![Standing::from(sealed), account.into()];
        for rows in &terminals {
            before.extend([Standing::from(&rows.credential), (&rows.state).into()]);
        }
        let check = CheckEntry {
            standing: standing_bytes,
            codes: entry.codes.iter().map(Otp::duplicate).collect(),
            is_whole: entry.is_whole,
            in_time,
            right: right.outcome(),
            wrong: wrong.outcome(),
            attest: ends_a_round.then(|| self.attest(transaction, now)),
        };
        let (is_right, sealed, jws) = self.hsm.check_entry(first.row.id, check).await?;
        let ending = match (is_right, jws) {
            (true, Some(jws)) if ends_a_round => {
                right.rows.push(Attestation::new(transaction.id, transaction.tenant.clone(), jws).into());
                right
            }
            (true, None) if !ends_a_round => right,
            (false, None) => wrong,
            _ => return Err(Refused::unavailable("the custodian attested what it should not, or did not")),
        };
        Ok(Judged { ending, sealed, before })
    }
}

impl<'a> Entry<'a> {
    /// What has not even the form of an entry is nobody's guess.
    fn new(method: &MultiTerminal, presented: &'a Presented) -> Result<Self, Refused> {
        let is_target = method.is_one_entry();
        let (field, codes, is_whole) = match presented {
            Presented::Target(_) if !is_target => {
                return Err(misfit("target", "must not be there: the transaction asks for codes"));
            }
            Presented::Codes(_) | Presented::Entry(_) if is_target => {
                return Err(misfit("target", "must be there: the transaction asks for a target"));
            }
            Presented::Codes(_) if method.rule.interval.is_some() => {
                return Err(misfit("codes", "must not be there: the rule asks for one code after the other"));
            }
            Presented::Codes(codes) => ("codes", codes.as_slice(), true),
            Presented::Entry(code) => ("code", std::slice::from_ref(code), false),
            Presented::Target(target) => ("target", std::slice::from_ref(target), true),
            Presented::Code(_) | Presented::Proof(_) | Presented::Password(_) | Presented::Decision(..) => {
                return Err(misfit(
                    "codes",
                    "must be there, or code: the transaction asks for terminals' codes",
                ));
            }
        };
        if !(1..=*TERMINALS.end()).contains(&codes.len()) {
            return Err(misfit(field, "must be 1 to 8 codes"));
        }
        match codes.iter().all(|code| code.has(method.digits)) {
            true => Ok(Self { codes, is_whole }),
            false => Err(misfit(field, "must have as many digits as the transaction's codes")),
        }
    }
}

impl Endings {
    /// The end of a round is a verdict.
    fn of_a_round(response: Response<'_>, plan: Plan) -> Result<Self, Refused> {
        let Response { transaction: Sealed { row: transaction, .. }, now, .. } = response;
        let states = (0u8..).map(|number| number * 2 + 3);
        let both = |states: Vec<_>, account: Option<_>, transaction: Transaction| {
            let mut rows: Vec<Row> = vec![transaction.into()];
            rows.extend(account.map(Row::Account));
            rows.extend(states.into_iter().map(Row::State));
            rows
        };
        let replaced = |count: usize, account: bool| {
            let fixed = [Some(TRANSACTION), account.then_some(ACCOUNT)];
            fixed.into_iter().flatten().chain(states.clone().take(count)).collect::<Vec<u8>>()
        };
        let Plan { accepted_states, accepted_account, missed_states, missed_account, remaining_if_missed } =
            plan;
        let count = accepted_states.len();
        let approved = transaction.after(Step::Approve(None), now)?;
        let answer = Answer::Approved { transaction: transaction.id.to_string() };
        let replaces = replaced(count, accepted_account.is_some());
        let right = ending(
            response,
            Event::TransactionApproved,
            replaces,
            both(accepted_states, accepted_account, approved),
            answer,
        )?;
        let missed = transaction.after(Step::Miss, now)?;
        let event = match missed.state {
            State::Failed => Event::TransactionFailed,
            _ => Event::TransactionRefused,
        };
        let attempts_remaining = remaining_if_missed.min(missed.attempts_left.into());
        let wrong = ending(
            response,
            event,
            replaced(count, true),
            both(missed_states, Some(missed_account), missed),
            Answer::VerificationFailed { attempts_remaining },
        )?;
        Ok(Self { right, wrong })
    }

    /// Before the end the two differ in one bit that nobody is told.
    fn on_the_way(response: Response<'_>, method: &MultiTerminal, round: &Round) -> Result<Self, Refused> {
        let Response { transaction: Sealed { row: transaction, .. }, parent, now, .. } = response;
        let entered = |is_right| {
            let next = transaction.after(Step::Enter(method.entered(round, is_right, now)), now)?;
            let view = TransactionView::new(&next, parent.map(|parent| &parent.row));
            let rows = vec![next.into()];
            ending(
                response,
                Event::TransactionEntered,
                vec![TRANSACTION],
                rows,
                Answer::Entered(Box::new(view)),
            )
        };
        Ok(Self { right: entered(true)?, wrong: entered(false)? })
    }
}

/// An ending, with the record of its answer where one is wanted.
fn ending(
    response: Response<'_>,
    event: Event,
    replaces: Vec<u8>,
    mut rows: Vec<Row>,
    answer: Answer,
) -> Result<Ending, Refused> {
    rows.extend(response.memory.record(&answer, response.now)?.map(Row::Idempotency));
    Ok(Ending { event, replaces, rows, removed: Vec::new(), answer })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::Account;
    use crate::domain::attestation::Claims;
    use crate::domain::credential::{Credential, Kind, StoredSecret, Terminal};
    use crate::domain::id::CredentialId;
    use crate::domain::multi_terminal::{EntryOrder, EntryRule, FrozenTerminal, Interval};
    use crate::domain::time::{Deadline, RunId};
    use crate::domain::transaction::Method;
    use crate::hsm::messages::{
        Attest, Call, FRAME_BYTES_MAX, FindGeneration, Outcome, Request, SealRows, encode,
    };
    use crate::service::pruning::ROOM_BYTES;
    use crate::service::pruning::tests::{longest, longest_transaction, sealed};

    /// Eight terminals of the longest addresses, and the longest transaction for them.
    fn longest_of_eight() -> (Transaction, Vec<SealedBytes>, Vec<Row>, Account) {
        let (mut transaction, _) = longest_transaction();
        let address = || "\"".repeat(256).try_into().unwrap();
        let (credential, state, ..) = longest(0xff);
        let account = Account::new(credential.tenant.clone(), credential.account.clone());
        let account = Account { version: u64::MAX, attempts: state.attempts, epoch: u32::MAX, ..account };
        let terminal = |number: u8| {
            let secret = Some(StoredSecret::Wrapped { kek_version: u16::MAX, blob: vec![0xff; 40] });
            let kind = Kind::Terminal(Terminal { address: address(), secret });
            Credential {
                id: CredentialId::from_random([number; 16]),
                kind,
                deleted_unix_ms: None,
                ..credential.clone()
            }
        };
        let terminals: Vec<_> = (0xf8..=0xff).map(terminal).collect();
        let frozen =
            |credential: &Credential| FrozenTerminal { credential: credential.id, address: address() };
        let now = crate::domain::time::Now {
            unix_ms: u64::MAX / 2,
            boot_ms: u64::MAX / 2,
            boot_id: crate::domain::time::BootId([0xff; 16]),
            run: RunId([0xff; 16]),
            trusted: true,
            floor: Default::default(),
        };
        let interval = Some(Interval { interval_s: u16::MAX, tolerance_s: u16::MAX });
        transaction.method = Method::MultiTerminal(MultiTerminal {
            terminals: terminals.iter().map(frozen).collect(),
            rule: EntryRule { order: EntryOrder::Target, interval },
            digits: 10.try_into().unwrap(),
            generation: u32::MAX,
            window: Some(Deadline::after(&now, u64::MAX / 2)),
        });
        transaction.progress = Progress::Entry(Round {
            entered: 8,
            wrong: true,
            arrived_boot_ms: u64::MAX,
            run: Some(RunId([0xff; 16])),
        });
        let mut standing = vec![sealed(transaction.clone()).to_bytes(), sealed(account.clone()).to_bytes()];
        let mut states = Vec::new();
        for terminal in terminals {
            standing.extend([sealed(terminal).to_bytes(), sealed(state.clone()).to_bytes()]);
            states.push(Row::State(state.clone()));
        }
        (transaction, standing, states, account)
    }

    #[test]
    fn the_longest_messages_about_eight_terminals_fit() {
        let (transaction, standing, states, account) = longest_of_eight();
        let view = Box::new(TransactionView::new(&transaction, Some(&transaction)));
        let record = |answer: Answer| {
            let answer = serde_json::to_vec(&answer).unwrap();
            Row::Idempotency(crate::domain::idempotency::IdempotencyRecord { answer, ..longest(1).3 })
        };
        let outcome = |rows: Vec<Row>| Outcome {
            replaces: (0..=17).collect(),
            rows: rows.iter().map(Row::encode).collect(),
        };
        let fits = |request: Request| {
            let bytes = encode(&Call {
                repeated: false,
                id: u64::MAX,
                newest: crate::hsm::messages::tests::newest(),
                request,
            })
            .map(|frame| frame.len());
            assert!(bytes.as_ref().is_ok_and(|bytes| *bytes < FRAME_BYTES_MAX * 15 / 16), "{bytes:?}");
            bytes.unwrap()
        };
        let claims = Claims::new(&transaction, &"i".repeat(128), u64::MAX / 2, u64::MAX / 2).to_json();
        let check = |right: &Outcome, attest| CheckEntry {
            standing: standing.clone(),
            codes: (0..8).map(|_| Otp::parse("0123456789".to_owned()).unwrap()).collect(),
            is_whole: true,
            in_time: true,
            right: right.clone(),
            wrong: right.clone(),
            attest,
        };
        let told = record(Answer::VerificationFailed { attempts_remaining: u32::MAX });
        let verdict = [vec![transaction.clone().into(), account.into()], states, vec![told]].concat();
        let attest = Attest { transaction: transaction.id, tenant: transaction.tenant.clone(), claims };
        let entered = vec![transaction.clone().into(), record(Answer::Entered(view.clone()))];
        let created_record = record(Answer::TransactionCreated(view));
        let created = vec![transaction.clone().into(), created_record.clone()];
        let sizes = [
            fits(Request::CheckEntry(check(&outcome(verdict), Some(attest)))),
            fits(Request::CheckEntry(check(&outcome(entered), None))),
            fits(Request::Seal(SealRows { standing: standing.clone(), outcome: outcome(created) })),
            fits(Request::FindGeneration(FindGeneration {
                standing: standing.clone(),
                digest: [0xff; 32],
                digits: 10.try_into().unwrap(),
            })),
            fits(Request::TerminalCodes(standing)),
        ];
        assert!(sizes.iter().all(|bytes| *bytes > 4 * 1024), "they are long: {sizes:?}");
        // They are pruned some day, each with what goes with it.
        for row in [transaction.into(), created_record] {
            let bytes = sealed(row).to_bytes().message_bytes();
            assert!(bytes < ROOM_BYTES, "{bytes}");
        }
    }
}
