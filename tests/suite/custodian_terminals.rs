//! Codes of several terminals inside a custodian, against SoftHSM: what goes out, what it takes for right, and when it
//! attests. The tests compute the codes by their own hand.

use data_encoding::HEXLOWER;
use hsm_authd::domain::attestation::Attestation;
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::credential::{Credential, Kind, Terminal};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::multi_terminal::{EntryOrder, EntryRule, FrozenTerminal, MultiTerminal, Round};
use hsm_authd::domain::otp::{Algorithm, Digits};
use hsm_authd::domain::row::{Row, SealedBytes};
use hsm_authd::domain::transaction::{Method, Progress, State, Transaction};
use hsm_authd::hsm::messages::{
    Attest, CheckEntry, CheckOtp, Fault, FindGeneration, Request, Response, SealedRows,
};

use crate::by_hand;
use crate::custodian::{account, check as otp_check, otp, outcome, request_fault, sealed, tenant};
use crate::store_samples;
use crate::token::{Custodian, TestToken};

/// A digest that a search outside found: with the secrets of [`seed`], two of eight codes are equal in the first
/// generation, and none in the second.
const TIED: &str = "0000000000000000000000000000000000000000000000000000000000013037";

fn id(number: u8) -> CredentialId {
    CredentialId::from_random([number; 16])
}

fn seed(number: u8) -> Vec<u8> {
    vec![number; 32]
}

/// As `docs/methods/multi_terminal.md` has it.
fn code(digest: &[u8; 32], number: u8, generation: u32, digits: u32) -> String {
    let parts =
        ["hsm-authd/terminal/v1", &HEXLOWER.encode(digest), &id(number).to_string(), &generation.to_string()];
    by_hand::digits(&by_hand::mac(&seed(number), &parts), digits as usize)
}

fn digits(count: u32) -> Digits {
    Digits::try_from(count as u8).unwrap()
}

/// What of a test's transaction is not as ever.
#[derive(Clone)]
struct Case {
    order: EntryOrder,
    digits: u32,
    generation: u32,
    round: Round,
    terminals: Vec<u8>,
}

impl Case {
    fn new(order: EntryOrder) -> Self {
        let digits = if order == EntryOrder::Target { 8 } else { 6 };
        Self { order, digits, generation: 1, round: Round::default(), terminals: vec![3, 1, 2] }
    }

    fn transaction(&self) -> Transaction {
        let frozen = |number: &u8| FrozenTerminal {
            credential: id(*number),
            address: "+49".to_owned().try_into().unwrap(),
        };
        let method = MultiTerminal {
            terminals: self.terminals.iter().map(frozen).collect(),
            rule: EntryRule { order: self.order, interval: None },
            digits: digits(self.digits),
            generation: self.generation,
            window: None,
        };
        Transaction {
            method: Method::MultiTerminal(method),
            progress: Progress::Entry(self.round),
            tenant: tenant(),
            ..store_samples::transaction(5, "acct-1", 1_000)
        }
    }

    /// What the terminals show.
    fn codes(&self) -> Vec<String> {
        let digest = self.transaction().digest();
        self.terminals.iter().map(|number| code(&digest, *number, self.generation, self.digits)).collect()
    }

    /// What has to be entered.
    fn right(&self) -> Vec<String> {
        let mut codes = self.codes();
        match self.order {
            EntryOrder::PresetOrder => {}
            EntryOrder::Ascending => codes.sort(),
            EntryOrder::Descending => codes.sort_by(|a, b| b.cmp(a)),
            EntryOrder::Target => codes = vec![crate::multi_terminal::target_of(&codes)],
        }
        codes
    }
}

impl Custodian {
    fn terminal(&mut self, number: u8) -> Credential {
        let secret = Some(self.import(Algorithm::Sha256, &seed(number)));
        Credential {
            id: id(number),
            tenant: tenant(),
            account: "acct-1".to_owned().try_into().unwrap(),
            version: 1,
            created_unix_ms: 0,
            kind: Kind::Terminal(Terminal { address: "+49".to_owned().try_into().unwrap(), secret }),
            deleted_unix_ms: None,
        }
    }

    /// The transaction, an account, and the terminals.
    fn case_rows(&mut self, case: &Case) -> Vec<Row> {
        let mut rows = vec![case.transaction().into(), account(1)];
        rows.extend(case.terminals.iter().map(|number| self.terminal(*number).into()));
        rows
    }

    fn standing(&mut self, case: &Case) -> Vec<SealedBytes> {
        let rows = self.case_rows(case);
        self.seal(&rows)
    }

    fn entry(&mut self, check: CheckEntry) -> Result<(bool, SealedRows, Option<String>), Fault> {
        match self.call(Request::CheckEntry(check))? {
            Response::EntryChecked { right, sealed, attestation } => Ok((right, sealed, attestation)),
            _ => panic!("another response"),
        }
    }

    fn codes_of(&mut self, standing: &[SealedBytes]) -> Result<Vec<String>, Fault> {
        match self.call(Request::TerminalCodes(standing.to_vec()))? {
            Response::TerminalCodes(codes) => Ok(codes.iter().map(|code| code.expose().to_owned()).collect()),
            _ => panic!("another response"),
        }
    }

    fn generation(&mut self, terminals: &[u8], digest: [u8; 32], count: u32) -> Result<u32, Fault> {
        let rows: Vec<Row> = terminals.iter().map(|number| self.terminal(*number).into()).collect();
        let standing = self.seal(&rows);
        let find = FindGeneration { standing, digest, digits: digits(count) };
        match self.call(Request::FindGeneration(find))? {
            Response::Generation(generation) => Ok(generation),
            _ => panic!("another response"),
        }
    }
}

fn attest() -> Option<Attest> {
    let transaction = store_samples::transaction_id(5);
    Some(Attest { transaction, tenant: tenant(), claims: b"{}".to_vec() })
}

/// Right writes another account than wrong; so it shows which it was.
fn check(standing: &[SealedBytes], codes: &[String], is_whole: bool) -> CheckEntry {
    CheckEntry {
        standing: standing.to_vec(),
        codes: codes.iter().map(|code| otp(code)).collect(),
        is_whole,
        in_time: true,
        right: outcome(&[1], &[account(2)]),
        wrong: outcome(&[1], &[account(3)]),
        attest: is_whole.then(attest).flatten(),
    }
}

const ORDERS: [EntryOrder; 4] =
    [EntryOrder::PresetOrder, EntryOrder::Ascending, EntryOrder::Descending, EntryOrder::Target];

#[test]
fn codes_are_those_of_a_second_implementation() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for order in ORDERS {
        for generation in [1, 2, u32::MAX] {
            let case = Case { generation, ..Case::new(order) };
            let standing = custodian.standing(&case);
            assert_eq!(custodian.codes_of(&standing).unwrap(), case.codes(), "in the rule's order");
        }
    }
    for count in 6..=10 {
        let case = Case { digits: count, terminals: (1..=8).collect(), ..Case::new(EntryOrder::Ascending) };
        let standing = custodian.standing(&case);
        assert_eq!(custodian.codes_of(&standing).unwrap(), case.codes());
    }
}

/// The whole of the rule is the custodian's: front has no code to compare with.
#[test]
fn what_is_entered_is_right_by_the_rule_and_attested_at_the_end() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for order in ORDERS {
        let case = Case::new(order);
        let (standing, right) = (custodian.standing(&case), case.right());
        let before = custodian.sum(&standing);
        let mut wrongs = vec![vec![crate::multi_terminal::other(&right[0])]];
        if order != EntryOrder::Target {
            let mut swapped = right.clone();
            swapped.swap(0, 2);
            let mut repeated = right.clone();
            repeated[2] = right[0].clone();
            wrongs.extend([swapped, repeated, right[..2].to_vec(), [&right[..], &right[..1]].concat()]);
        }
        for (entered, is_right) in
            std::iter::once((right.clone(), true)).chain(wrongs.into_iter().map(|wrong| (wrong, false)))
        {
            for in_time in [true, false] {
                let check = CheckEntry { in_time, ..check(&standing, &entered, true) };
                let (found, seals, attestation) = custodian.entry(check).unwrap();
                assert_eq!((found, attestation.is_some()), (is_right && in_time, is_right && in_time));
                let written = match attestation {
                    Some(jws) => {
                        let transaction = store_samples::transaction_id(5);
                        vec![
                            account(2),
                            Row::Attestation(Attestation { transaction, tenant: tenant(), version: 1, jws }),
                        ]
                    }
                    None => vec![account(3)],
                };
                let mut after = standing.clone();
                after.remove(1);
                after.extend(sealed(&seals, &written));
                assert_eq!(before.plus(&seals.sum_change), custodian.sum(&after));
            }
        }
    }
    for order in &ORDERS[..3] {
        for entered in 0..3_u8 {
            for wrong in [false, true] {
                let round = Round { entered, wrong, ..Round::default() };
                let case = Case { round, ..Case::new(*order) };
                let (standing, right) = (custodian.standing(&case), case.right());
                let is_last = entered == 2;
                for (place, code) in right.iter().enumerate() {
                    let entry = std::slice::from_ref(code);
                    let check = CheckEntry {
                        attest: is_last.then(attest).flatten(),
                        ..check(&standing, entry, false)
                    };
                    let (found, _, attestation) = custodian.entry(check).unwrap();
                    let expected = place == usize::from(entered) && !wrong;
                    assert_eq!((found, attestation.is_some()), (expected, expected && is_last));
                }
                // A whole round is one of its own, whatever was entered before it.
                let (found, _, attestation) = custodian.entry(check(&standing, &right, true)).unwrap();
                assert!(found && attestation.is_some());
            }
        }
    }
}

#[test]
fn a_generation_in_which_two_codes_are_equal_is_passed_over() {
    let digest: [u8; 32] = HEXLOWER.decode(TIED.as_bytes()).unwrap().try_into().unwrap();
    let all: Vec<u8> = (1..=8).collect();
    let ties = |generation| {
        let codes: std::collections::HashSet<_> =
            all.iter().map(|number| code(&digest, *number, generation, 6)).collect();
        codes.len() < all.len()
    };
    assert!(ties(1) && !ties(2));
    let token = TestToken::new();
    let mut custodian = token.custodian();
    assert_eq!(custodian.generation(&all, digest, 6), Ok(2));
    assert_eq!(custodian.generation(&all, digest, 8), Ok(1), "longer ones are not equal");
    assert_eq!(custodian.generation(&[1, 2], [7; 32], 6), Ok(1));
    for count in [0, 1, 9] {
        let some: Vec<u8> = (1..=count).collect();
        assert!(request_fault(custodian.generation(&some, digest, 6)).contains("2 to 8 terminals"));
    }
    // Twice the same terminal: their codes are equal in every generation.
    assert!(request_fault(custodian.generation(&[1, 1], digest, 6)).contains("no generation"));
}

#[test]
fn what_is_not_asked_about_is_refused_whatever_the_codes() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let case = Case::new(EntryOrder::PresetOrder);
    let rows = custodian.case_rows(&case);
    let right = case.right();
    let wrong = vec![crate::multi_terminal::other(&right[0]); 3];
    let edited = |place: usize, edit: fn(&mut Row)| {
        let mut rows = rows.clone();
        edit(&mut rows[place]);
        rows
    };
    fn credential(row: &mut Row) -> &mut Credential {
        let Row::Credential(credential) = row else { panic!("no credential") };
        credential
    }
    fn asked(row: &mut Row) -> &mut Transaction {
        let Row::Transaction(transaction) = row else { panic!("no transaction") };
        transaction
    }
    let reordered = [&rows[..2], &[rows[3].clone(), rows[2].clone(), rows[4].clone()]].concat();
    let stranger = Row::from(custodian.terminal(9));
    let mut cases = vec![
        ("no transaction", rows[1..].to_vec()),
        ("no transaction", Vec::new()),
        ("not those of", rows[..4].to_vec()),
        ("not those of", reordered),
        ("not those of", [&rows[..], std::slice::from_ref(&stranger)].concat()),
        ("not those of", [&rows[..4], &[stranger]].concat()),
        ("not those of", [&rows[..], &[rows[4].clone()]].concat()),
        ("not those of", edited(2, |row| credential(row).account = "acct-2".to_owned().try_into().unwrap())),
        (
            "not those of",
            edited(4, |row| {
                credential(row).tenant = Tenant::try_from("bank-b".to_owned()).unwrap();
            }),
        ),
        ("no terminal", edited(3, |row| *credential(row) = credential(row).deleted(1))),
        ("asks no terminals", edited(0, |row| asked(row).method = Method::RollingPassword)),
        ("asks no terminals", edited(0, |row| asked(row).progress = Progress::None)),
    ];
    for state in State::ALL.into_iter().filter(|state| *state != State::Pending) {
        let mut rows = rows.clone();
        asked(&mut rows[0]).state = state;
        cases.push(("not pending", rows));
    }
    for (said, rows) in cases {
        let standing = custodian.seal(&rows);
        let reason = request_fault(custodian.codes_of(&standing));
        assert!(reason.contains(said), "{said}: {reason}");
        for codes in [&right, &wrong] {
            let check = CheckEntry {
                right: outcome(&[], &[]),
                wrong: outcome(&[], &[]),
                ..check(&standing, codes, true)
            };
            let reason = request_fault(custodian.entry(check));
            assert!(reason.contains(said), "{said}: {reason}");
        }
    }

    let standing = custodian.seal(&rows);
    let target = Case::new(EntryOrder::Target);
    let of_target = custodian.standing(&target);
    let nines = vec![right[0].clone(); 9];
    let long = vec!["1234567".to_owned(); 3];
    let other_one = Attest { transaction: store_samples::transaction_id(6), ..attest().unwrap() };
    let foreign = Attest { tenant: Tenant::try_from("bank-b".to_owned()).unwrap(), ..attest().unwrap() };
    for (said, check) in [
        ("another length", check(&standing, &long, true)),
        ("no entry", check(&standing, &[], true)),
        ("no entry", check(&standing, &nines, true)),
        ("no entry", check(&standing, &right, false)),
        ("no entry", check(&standing, &[], false)),
        ("no entry", check(&of_target, &target.right(), false)),
        ("replaced twice", CheckEntry { wrong: outcome(&[1, 1], &[]), ..check(&standing, &right, true) }),
        ("no standing row", CheckEntry { right: outcome(&[9], &[]), ..check(&standing, &wrong, true) }),
        // Before the end nothing is attested, also if it is right.
        ("not the end", CheckEntry { attest: attest(), ..check(&standing, &right[..1], false) }),
        ("no transaction", CheckEntry { attest: Some(other_one), ..check(&standing, &right, true) }),
        ("another tenant", CheckEntry { attest: Some(foreign), ..check(&standing, &right, true) }),
    ] {
        let reason = request_fault(custodian.entry(check));
        assert!(reason.contains(said), "{said}: {reason}");
    }

    // An edited row is named by its position.
    for place in 0..standing.len() {
        let mut forged = standing.clone();
        forged[place].seal.mac[0] ^= 1;
        assert_eq!(custodian.codes_of(&forged).err(), Some(Fault::Seal(place as u8)));
        assert_eq!(custodian.entry(check(&forged, &right, true)).err(), Some(Fault::Seal(place as u8)));
        let find = FindGeneration { standing: forged, digest: [0; 32], digits: digits(6) };
        let found = custodian.call(Request::FindGeneration(find)).err();
        assert_eq!(found, Some(Fault::Seal(place as u8)));
    }
    assert!(custodian.entry(check(&standing, &right, true)).unwrap().0, "it goes on serving");
}

/// Another credential of such an id approves nothing that terminals are asked for, nor the other way round.
#[test]
fn only_terminals_codes_are_attested_for_what_asks_for_them() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    // Its credential is number 1, with the RFC's seed.
    let mut standing = custodian.enrolled();
    let case = Case::new(EntryOrder::PresetOrder);
    standing.extend(custodian.seal(&[case.transaction().into()]));
    let check = CheckOtp { attest: attest(), ..otp_check(&standing, &["755224"], &[0], &[]) };
    let reason = request_fault(custodian.call(Request::CheckOtp(check)));
    assert!(reason.contains("no transaction that the credential is asked about"), "{reason}");
}

#[test]
fn a_small_cache_changes_no_code() {
    let mut token = TestToken::new();
    token.boot.secrets_cached_max = 1;
    let mut custodian = token.custodian();
    let case = Case { terminals: (1..=8).collect(), ..Case::new(EntryOrder::Descending) };
    let standing = custodian.standing(&case);
    for _ in 0..3 {
        assert_eq!(custodian.codes_of(&standing).unwrap(), case.codes());
        assert!(custodian.entry(check(&standing, &case.right(), true)).unwrap().0);
    }
}
