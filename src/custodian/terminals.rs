//! Codes of several terminals: made anew each time they are needed. They go out to be sent; what is entered comes back
//! as right or wrong, and as nothing more.

use super::attest::validated;
use super::operations::{Operations, replaced};
use crate::domain::credential::{Credential, Kind, StoredSecret, Terminal};
use crate::domain::multi_terminal::{Codes, MultiTerminal, Round, TERMINALS, message};
use crate::domain::otp::{Algorithm, Digits};
use crate::domain::row::{Row, SealedBytes};
use crate::domain::transaction::{Method, Progress, State, Transaction};
use crate::hsm::messages::{CheckEntry, Fault, FindGeneration, Response};

/// Of eight codes of 6 digits two are equal once in 36,000 times: so many times in a row is no chance.
const GENERATIONS_MAX: u32 = 64;

/// A pending transaction, and the terminals that it asks.
struct Asked {
    transaction: Transaction,
    method: MultiTerminal,
    round: Round,
    terminals: Vec<Credential>,
}

impl Operations {
    /// The first generation in which no two codes are equal.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn find_generation(&mut self, find: &FindGeneration) -> Result<Response, Fault> {
        self.verify_seals(&find.standing)?;
        let terminals = terminals(&find.standing);
        if !TERMINALS.contains(&terminals.len()) {
            return Err(Fault::Request("a transaction has 2 to 8 terminals".into()));
        }
        for generation in 1..=GENERATIONS_MAX {
            if !self.codes(&terminals, &find.digest, find.digits, generation)?.has_equal() {
                return Ok(Response::Generation(generation));
            }
        }
        Err(Fault::Request("no generation has codes that all differ".into()))
    }

    /// The codes of a pending transaction, for those who send them.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn terminal_codes(&mut self, standing: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(standing)?;
        let asked = Asked::of(standing)?;
        Ok(Response::TerminalCodes(self.codes_of(&asked)?.texts()))
    }

    /// Whether what was entered is what the rule asks for at this point.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn check_entry(&mut self, check: &CheckEntry) -> Result<Response, Fault> {
        // Everything that can be wrong with the message, whatever the codes turn out to be.
        self.verify_seals(&check.standing)?;
        let asked = Asked::of(&check.standing)?;
        let Asked { transaction, method, round, terminals } = &asked;
        let refused = |reason: &str| Fault::Request(reason.to_owned());
        if !check.codes.iter().all(|code| code.has(method.digits)) {
            return Err(refused("a code of another length than the transaction's"));
        }
        let entry = match (check.is_whole, check.codes.as_slice()) {
            (true, [_, ..]) if check.codes.len() <= *TERMINALS.end() => None,
            (false, [entry]) if !method.is_one_entry() => Some(entry),
            _ => return Err(refused("so many codes are no entry")),
        };
        for outcome in [&check.right, &check.wrong] {
            replaced(&check.standing, &outcome.replaces)?;
        }
        let first = terminals.first().ok_or_else(|| refused("there is no terminal"))?;
        let attest = validated(check.attest.as_ref(), first, None, &check.standing)?;
        let ends_a_round = entry.is_none() || method.is_last(round);
        if attest.is_some_and(|attest| attest.transaction != transaction.id || !ends_a_round) {
            return Err(refused("an attestation of what is not the end of its transaction's round"));
        }

        let expected = self.codes_of(&asked)?.expected(method.rule.order);
        let matches = match entry {
            None => expected.is_all(&check.codes),
            // What was wrong before stays wrong: the row says so, and its seal is right.
            Some(entry) => expected.is_at(round.entered.into(), entry) & !round.wrong,
        };
        let right = matches & check.in_time;
        let (outcome, attest) = if right { (&check.right, attest) } else { (&check.wrong, None) };
        let attested = self.attest(attest)?;
        let rows = outcome.rows.iter().chain(attested.as_ref().map(|attested| &attested.row));
        let sealed = self.seal_outcome(&check.standing, &outcome.replaces, rows)?;
        let attestation = attested.map(|attested| attested.jws);
        Ok(Response::EntryChecked { right, sealed, attestation })
    }

    fn codes_of(&mut self, asked: &Asked) -> Result<Codes, Fault> {
        let MultiTerminal { digits, generation, .. } = asked.method;
        self.codes(&asked.terminals, &asked.transaction.digest(), digits, generation)
    }

    fn codes(
        &mut self,
        terminals: &[Credential],
        digest: &[u8; 32],
        digits: Digits,
        generation: u32,
    ) -> Result<Codes, Fault> {
        let mut codes = Codes::new(digits);
        for terminal in terminals {
            let secret = secret(terminal)?.clone();
            // Used before the next one is opened: a small cache may hold no more than one.
            let key = self.open(secret, Algorithm::Sha256)?;
            let mac = self.session.hmac(Algorithm::Sha256, key, &message(digest, terminal.id, generation))?;
            codes.push(&mac).ok_or_else(|| Fault::hsm("C_Sign: no HMAC"))?;
        }
        Ok(codes)
    }
}

impl Asked {
    /// What these rows are about, the transaction first; their seals must have been verified.
    fn of(standing: &[SealedBytes]) -> Result<Self, Fault> {
        let refused = |reason: &str| Err(Fault::Request(reason.to_owned()));
        let Some(Row::Transaction(transaction)) = standing.first().and_then(|row| row.bytes.decode()) else {
            return refused("the first row is no transaction");
        };
        let (Method::MultiTerminal(method), Progress::Entry(round)) =
            (transaction.method.clone(), transaction.progress.clone())
        else {
            return refused("the transaction asks no terminals");
        };
        if transaction.state != State::Pending {
            return refused("the transaction is not pending");
        }
        let terminals = terminals(standing);
        let are_asked = terminals.len() == method.terminals.len()
            && terminals.iter().zip(&method.terminals).all(|(terminal, frozen)| {
                terminal.id == frozen.credential
                    && terminal.tenant == transaction.tenant
                    && Some(&terminal.account) == transaction.terms.payer.as_ref()
            });
        match are_asked {
            true => Ok(Self { transaction, method, round, terminals }),
            false => refused("the terminals are not those of the transaction"),
        }
    }
}

/// The credentials among these rows.
fn terminals(standing: &[SealedBytes]) -> Vec<Credential> {
    let credential = |row: &SealedBytes| match row.bytes.decode() {
        Some(Row::Credential(credential)) => Some(credential),
        _ => None,
    };
    standing.iter().filter_map(credential).collect()
}

fn secret(terminal: &Credential) -> Result<&StoredSecret, Fault> {
    match &terminal.kind {
        Kind::Terminal(Terminal { secret: Some(secret), .. }) => Ok(secret),
        _ => Err(Fault::Request("a credential that is no terminal, or was deleted".into())),
    }
}
