//! Transactions that several terminals have to approve.

use crate::domain::caller::Tenant;
use crate::domain::credential::Kind;
use crate::domain::id::CredentialId;
use crate::domain::multi_terminal::{EntryRule, FrozenTerminal, MultiTerminal, TERMINALS};
use crate::domain::row::SealedBytes;
use crate::domain::time::{Deadline, Now};
use crate::domain::transaction::{CODES_MAX, Method, Progress, Transaction};
use crate::hsm::messages::FindGeneration;
use crate::store::{CredentialRows, Standing};

use super::super::terminals::is_active_terminal;
use super::{Basis, ByTerminals, Refused, Service, is_spelt};

/// How many terminals of an account are looked at, those that are suspended or too new included.
const ENROLLED_MAX: u16 = 100;

impl Service {
    pub(super) async fn by_terminals(
        &self,
        tenant: &Tenant,
        by: &ByTerminals,
        lifetime_s: u32,
        now: &Now,
    ) -> Result<Basis, Refused> {
        is_spelt(&by.payer)?;
        let enrolled = self.store.terminals(tenant, &by.payer, ENROLLED_MAX + 1).await?;
        if enrolled.len() > usize::from(ENROLLED_MAX) {
            return Err(Refused::Invalid { field: "payer", reason: "has too many terminals" });
        }
        let (usable, left_out): (Vec<_>, Vec<_>) = enrolled
            .into_iter()
            .partition(|rows| is_active_terminal(rows) && self.is_cooled_terminal(rows, now));
        // Whoever edits a row, or shows an old one, could have a terminal left out that the user has.
        let mut before = stood_on(&left_out);
        let left_out = left_out.iter().flat_map(|rows| [rows.credential.to_bytes(), rows.state.to_bytes()]);
        self.hsm.check(left_out.collect()).await?;
        if !TERMINALS.contains(&usable.len()) {
            return Err(Refused::Invalid {
                field: "payer",
                reason: "must have 2 to 8 active terminals, enrolled long enough ago",
            });
        }
        let terminals = ordered(usable, by.terminals.as_deref())?;
        if let Some(interval) = by.interval {
            let least_s = interval.least_s(terminals.len());
            if least_s >= u64::from(lifetime_s).min(by.window_s.map_or(u64::MAX, u64::from)) {
                return Err(Refused::Invalid {
                    field: "interval_seconds",
                    reason: "so many codes so far apart take longer than there is time",
                });
            }
        }
        let method = MultiTerminal {
            terminals: terminals.iter().map(frozen).collect::<Result<_, _>>()?,
            rule: EntryRule { order: by.order, interval: by.interval },
            digits: by.digits,
            // Chosen when the digest is known.
            generation: 0,
            window: by.window_s.map(|window_s| Deadline::after(now, u64::from(window_s) * 1_000)),
        };
        before.extend(stood_on(&terminals));
        let bytes = terminals.iter().flat_map(|rows| [rows.credential.to_bytes(), rows.state.to_bytes()]);
        Ok(Basis {
            progress: Progress::Entry(method.begin(now.run)),
            method: Method::MultiTerminal(method),
            payer: Some(by.payer.clone()),
            attempts_left: CODES_MAX,
            before,
            bytes: bytes.collect(),
            replaced: Vec::new(),
        })
    }

    /// Of a transaction for several terminals: the first generation in which no two codes are equal.
    pub(super) async fn choose_generation(
        &self,
        transaction: &mut Transaction,
        terminals: &[SealedBytes],
    ) -> Result<(), Refused> {
        let digest = transaction.digest();
        let Method::MultiTerminal(method) = &mut transaction.method else { return Ok(()) };
        let first = method.terminals.first().ok_or_else(|| Refused::unavailable("there is no terminal"))?;
        let find = FindGeneration { standing: terminals.to_vec(), digest, digits: method.digits };
        method.generation = self.hsm.find_generation(first.credential, find).await?;
        Ok(())
    }
}

fn stood_on(terminals: &[CredentialRows]) -> Vec<Standing> {
    terminals.iter().flat_map(|rows| [(&rows.credential).into(), (&rows.state).into()]).collect()
}

/// The terminals in the rule's order: exactly these, each once.
fn ordered(
    mut terminals: Vec<CredentialRows>,
    order: Option<&[Option<CredentialId>]>,
) -> Result<Vec<CredentialRows>, Refused> {
    let Some(order) = order else { return Ok(terminals) };
    let misfit = || Refused::Invalid {
        field: "rule.order",
        reason: "must be all of the payer's terminals that are asked, each once",
    };
    let mut found = Vec::with_capacity(terminals.len());
    for id in order {
        let place = terminals.iter().position(|rows| Some(rows.credential.row.id) == *id);
        found.push(terminals.remove(place.ok_or_else(misfit)?));
    }
    if terminals.is_empty() { Ok(found) } else { Err(misfit()) }
}

fn frozen(rows: &CredentialRows) -> Result<FrozenTerminal, Refused> {
    let credential = &rows.credential.row;
    let Kind::Terminal(terminal) = &credential.kind else {
        return Err(Refused::unavailable("a terminal is none"));
    };
    Ok(FrozenTerminal { credential: credential.id, address: terminal.address.clone() })
}
