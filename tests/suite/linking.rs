//! What is made for a transaction is bound to each of its fields: change one, and nothing of it is the same.

use data_encoding::BASE64URL_NOPAD;
use hsm_authd::domain::account::AccountRef;
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::id::{CredentialId, PresentationId, TransactionId};
use hsm_authd::domain::money::Money;
use hsm_authd::domain::multi_terminal::{EntryOrder, EntryRule, FrozenTerminal, MultiTerminal, Round};
use hsm_authd::domain::ocra::{self, Challenge, Suite};
use hsm_authd::domain::otp::Digits;
use hsm_authd::domain::time::{BootId, Now, RunId};
use hsm_authd::domain::transaction::{
    Approver, AuthenticatorReport, Device, Method, Parent, Progress, State, Terms, Transaction, deadline,
};
use hsm_authd::domain::webauthn::{Assertion, RelyingParty};
use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::ocra::NOW;

/// The texts of a transaction, in the order of the signing input, each of them free but for its own rules. An empty
/// text is an absent one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    texts: [String; TEXTS.len()],
    id: [u8; 16],
    /// Its place in [`METHODS`].
    method: usize,
    parent_hash: Option<[u8; 32]>,
    lifetime_s: u32,
    nonce: [u8; 32],
}

const TEXTS: [&str; 8] = ["tenant", "payer", "payee", "amount", "currency", "order", "platform", "remark"];
const SUITE: &str = "OCRA-1:HOTP-SHA256-8:QH64";
/// The method's name, and whether its transactions have a payer: `None`, they may.
const METHODS: [(&str, Option<bool>); 5] = [
    ("challenge_response", None),
    ("device_signature", None),
    ("multi_terminal", Some(true)),
    ("rolling_password", Some(false)),
    ("presented_code", Some(false)),
];

fn now() -> Now {
    Now {
        unix_ms: NOW * 1_000,
        boot_ms: 0,
        boot_id: BootId([0; 16]),
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    }
}

/// A transaction of a method, in the order of [`METHODS`].
fn method(place: usize) -> Method {
    let credential = CredentialId::from_random([1; 16]);
    let suite = Suite::parse(SUITE).unwrap();
    match place {
        0 => Method::ChallengeResponse { credential, suite },
        1 => Method::DeviceSignature { credential, device: Device::Ocra(suite) },
        2 => Method::MultiTerminal(terminals(&["+1", "+2"], EntryOrder::PresetOrder, 1)),
        3 => Method::RollingPassword,
        _ => presented([3; 16], [1; 16], "acct-3"),
    }
}

fn terminals(addresses: &[&str], order: EntryOrder, generation: u32) -> MultiTerminal {
    let frozen = |(number, address): (u128, &&str)| FrozenTerminal {
        credential: CredentialId::from_random(number.to_be_bytes()),
        address: (*address).to_owned().try_into().unwrap(),
    };
    MultiTerminal {
        terminals: (1..).zip(addresses).map(frozen).collect(),
        rule: EntryRule { order, interval: None },
        digits: Digits::default(),
        generation,
        window: None,
    }
}

fn presented(presentation: [u8; 16], credential: [u8; 16], account: &str) -> Method {
    Method::PresentedCode {
        presentation: PresentationId::from_random(presentation),
        credential: CredentialId::from_random(credential),
        account: AccountRef::try_from(account.to_owned()).unwrap(),
    }
}

impl Said {
    /// `None`: that is no transaction.
    fn transaction(&self) -> Option<Transaction> {
        let [tenant, payer, payee, amount, currency, order, platform, remark] = self.texts.clone();
        if METHODS[self.method].1.is_some_and(|has_payer| has_payer == payer.is_empty()) {
            return None;
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        Some(Transaction {
            id: TransactionId::from_random(self.id),
            tenant: Tenant::try_from(tenant).ok()?,
            version: 1,
            created_unix_ms: NOW * 1_000,
            method: method(self.method),
            terms: Terms {
                payer: some(payer).map(AccountRef::try_from).transpose().ok()?,
                payee: payee.try_into().ok()?,
                money: Money::new(&amount, &currency).ok()?,
                order: order.try_into().ok()?,
                platform: some(platform).map(TryInto::try_into).transpose().ok()?,
                remark: some(remark).map(TryInto::try_into).transpose().ok()?,
                parent: self.parent_hash.map(|hash| Parent { id: TransactionId::from_random([2; 16]), hash }),
                nonce: self.nonce,
            },
            expires: deadline(&now(), self.lifetime_s),
            state: State::Pending,
            attempts_left: 3,
            ended_unix_ms: None,
            authenticator: None,
            progress: Progress::None,
        })
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut other = self.clone();
        change(&mut other);
        other
    }

    /// All that differ from it in one field by a little, and those whose text moved from one field to another.
    fn neighbours(&self) -> Vec<(String, Self)> {
        let mut all = Vec::new();
        for (place, field) in TEXTS.into_iter().enumerate() {
            let chars: Vec<char> = self.texts[place].chars().collect();
            let mut texts = vec![String::new(), "a".to_owned(), format!("{}a", self.texts[place])];
            for position in 0..chars.len() {
                let mut without = chars.clone();
                let removed = without.remove(position);
                texts.push(without.iter().collect());
                for other in ['a', 'B', '1', '\u{e9}'].into_iter().filter(|other| *other != removed) {
                    let mut replaced = chars.clone();
                    replaced[position] = other;
                    texts.push(replaced.into_iter().collect());
                }
            }
            texts.extend(["USD", "JPY"].map(str::to_owned).into_iter().filter(|_| field == "currency"));
            texts.extend(["0", "0.00", "1"].map(str::to_owned).into_iter().filter(|_| field == "amount"));
            all.extend(
                texts.into_iter().map(|text| (field.to_owned(), self.with(|said| said.texts[place] = text))),
            );
            for to in (0..TEXTS.len()).filter(|to| *to != place) {
                for count in 1..=chars.len() {
                    let (head, tail) = chars.split_at(chars.len() - count);
                    let moved = self.with(|said| {
                        said.texts[place] = head.iter().collect();
                        said.texts[to] = format!("{}{}", tail.iter().collect::<String>(), said.texts[to]);
                    });
                    all.push((format!("{count} of {field} to {}", TEXTS[to]), moved));
                    let (head, tail) = chars.split_at(count);
                    let moved = self.with(|said| {
                        said.texts[place] = tail.iter().collect();
                        said.texts[to].extend(head);
                    });
                    all.push((format!("{count} of {field} to the end of {}", TEXTS[to]), moved));
                }
            }
        }
        for bit in 0..256 {
            let flip = |bytes: &mut [u8]| bytes[bit / 8] ^= 1 << (bit % 8);
            all.push((format!("nonce, bit {bit}"), self.with(|said| flip(&mut said.nonce))));
            if bit < 128 {
                all.push((format!("id, bit {bit}"), self.with(|said| flip(&mut said.id))));
            }
            let parent = |said: &mut Self| said.parent_hash.as_mut().into_iter().for_each(|hash| flip(hash));
            all.push((format!("parent_hash, bit {bit}"), self.with(parent)));
        }
        let other_parent = self.parent_hash.map_or(Some([9; 32]), |_| None);
        all.push(("parent_hash, there or not".to_owned(), self.with(|said| said.parent_hash = other_parent)));
        let others = (0..METHODS.len()).filter(|other| *other != self.method);
        all.extend(
            others.map(|other| {
                (format!("method, {}", METHODS[other].0), self.with(|said| said.method = other))
            }),
        );
        all.push(("expires_at".to_owned(), self.with(|said| said.lifetime_s += 1)));
        all.retain(|(_, other)| other != self);
        all
    }
}

fn said() -> impl Strategy<Value = Said> {
    let short = |max: usize| {
        proptest::string::string_regex(&format!("[a-zB1\u{e9}\u{20ac}\u{4e2d}]{{1,{max}}}")).unwrap()
    };
    let maybe =
        |strategy: BoxedStrategy<String>| proptest::option::of(strategy).prop_map(Option::unwrap_or_default);
    let account = proptest::string::string_regex("[a-z0-9]{1,5}").unwrap();
    (
        ("[a-z][a-z0-9]{0,4}", maybe(account.boxed()), short(5), "[1-9][0-9]{0,2}\\.[0-9]{2}"),
        (prop_oneof!["EUR", "USD", "CHF"], short(4), maybe(short(4).boxed()), maybe(short(4).boxed())),
        (any::<[u8; 16]>(), 0..METHODS.len(), any::<Option<[u8; 32]>>(), 1..3_600_u32, any::<[u8; 32]>()),
    )
        .prop_map(|((tenant, payer, payee, amount), (currency, order, platform, remark), rest)| {
            let (id, method, parent_hash, lifetime_s, nonce) = rest;
            let payer = match METHODS[method].1 {
                Some(true) if payer.is_empty() => "acct".to_owned(),
                Some(false) => String::new(),
                _ => payer,
            };
            let texts = [tenant, payer, payee, amount, currency, order, platform, remark];
            Said { texts, id, method, parent_hash, lifetime_s, nonce }
        })
}

/// Everything that an approval is made for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    input: Vec<u8>,
    jws_payload: String,
    digest: [u8; 32],
    questions: Vec<String>,
    challenges: Vec<Challenge>,
}

/// Whose questions hold at least 200 bits of the digest, so that two of them are as unlikely to be equal as two keys;
/// and short ones with a session, which is the digest.
const SUITES: [&str; 3] =
    ["OCRA-1:HOTP-SHA256-8:QH64", "OCRA-1:HOTP-SHA256-8:QA64", "OCRA-1:HOTP-SHA256-8:QN64"];
const WITH_SESSION: [&str; 2] = ["OCRA-1:HOTP-SHA256-8:QN08-S032", "OCRA-1:HOTP-SHA256-8:QA08-S512"];

fn asked(transaction: &Transaction) -> Asked {
    let digest = transaction.digest();
    let question = |suite: &str| ocra::question(&Suite::parse(suite).unwrap(), &digest);
    let challenge = |suite: &&str| Challenge::of_transaction(&Suite::parse(suite).unwrap(), &digest).unwrap();
    let input = transaction.signing_input();
    Asked {
        jws_payload: BASE64URL_NOPAD.encode(&input),
        input,
        digest,
        questions: SUITES.map(question).to_vec(),
        challenges: SUITES.iter().chain(&WITH_SESSION).map(challenge).collect(),
    }
}

/// Nothing that is asked for the one is asked for the other.
fn apart(one: &Asked, other: &Asked) -> bool {
    one.input != other.input
        && one.jws_payload != other.jws_payload
        && one.digest != other.digest
        && one.questions.iter().zip(&other.questions).all(|(one, other)| one != other)
        && one.challenges.iter().zip(&other.challenges).all(|(one, other)| one != other)
}

/// What `enc` was made of.
fn decoded(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (part, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        parts.push(part.to_vec());
        bytes = rest;
    }
    assert_eq!(bytes, b"");
    parts
}

fn assertion_for(challenge: &[u8; 32]) -> Assertion {
    let client_data = json!({ "type": "webauthn.get", "challenge": BASE64URL_NOPAD.encode(challenge),
        "origin": "https://bank.example" });
    let authenticator_data = [&Sha256::digest("bank.example")[..], &[5, 0, 0, 0, 0]].concat();
    Assertion { authenticator_data, client_data_json: client_data.to_string().into_bytes() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_field_can_change_and_leave_what_is_asked_as_it_was(said in said()) {
        let Some(transaction) = said.transaction() else { panic!("{said:?}") };
        let first = asked(&transaction);
        let party = RelyingParty::new(vec![7; 16], "bank.example".to_owned(), vec!["https://bank.example".to_owned()]);
        let (party, assertion) = (party.unwrap(), assertion_for(&first.digest));
        prop_assert!(assertion.fitting(&party, &first.digest).is_some());
        let mut seen = std::collections::BTreeSet::new();
        for (field, other) in said.neighbours() {
            let Some(other) = other.transaction() else { continue };
            let second = asked(&other);
            prop_assert!(apart(&first, &second), "{field}: {said:?}");
            prop_assert!(assertion.fitting(&party, &second.digest).is_none(), "{field}");
            seen.insert(field.split(',').next().unwrap_or_default().to_owned());
        }
        for field in TEXTS.into_iter().chain(["id", "method", "parent_hash", "expires_at", "nonce"]) {
            let has_none = field == "payer" && METHODS[said.method].1 == Some(false);
            prop_assert!(seen.contains(field) != has_none, "{field} was changed: {}", !has_none);
        }
    }

    /// What is signed is what people agreed on: neither what becomes of it, nor whom it is asked of and how. Those are
    /// under the row's seal.
    #[test]
    fn what_becomes_of_it_and_how_it_is_asked_is_not_what_is_signed(said in said()) {
        let transaction = said.transaction().unwrap();
        let first = asked(&transaction);
        let credential = CredentialId::from_random([9; 16]);
        let account = AccountRef::try_from("acct-9".to_owned()).unwrap();
        let round = Round { entered: 7, wrong: true, arrived_boot_ms: 9, run: Some(RunId([9; 16])) };
        for progress in [
            Progress::Entry(Round::default()),
            Progress::Entry(round),
            Progress::Approver(Approver { credential, account, epoch: 9 }),
        ] {
            prop_assert_eq!(&asked(&Transaction { progress, ..transaction.clone() }), &first);
        }
        for state in State::ALL {
            let ended = Transaction {
                state,
                version: 9,
                created_unix_ms: 9,
                attempts_left: 9,
                ended_unix_ms: Some(9),
                authenticator: Some(AuthenticatorReport { sign_count: 9, backup_eligible: true, backed_up: true }),
                ..transaction.clone()
            };
            prop_assert_eq!(&asked(&ended), &first);
        }
        let suite = Suite::parse(WITH_SESSION[0]).unwrap();
        let asked_otherwise = match said.method {
            0 => vec![Method::ChallengeResponse { credential, suite }],
            1 => vec![
                Method::DeviceSignature { credential, device: Device::Signature },
                Method::DeviceSignature { credential, device: Device::Assertion },
                Method::DeviceSignature { credential, device: Device::Ocra(suite) },
            ],
            2 => {
                let own = terminals(&["+1", "+2"], EntryOrder::PresetOrder, 1);
                vec![
                    MultiTerminal { generation: 2, ..own.clone() },
                    MultiTerminal { digits: Digits::try_from(10).unwrap(), ..own.clone() },
                    MultiTerminal { window: Some(deadline(&now(), 9)), ..own },
                    terminals(&["+1", "+3"], EntryOrder::PresetOrder, 1),
                    terminals(&["+1", "+2", "+3"], EntryOrder::Ascending, 1),
                ]
                .into_iter()
                .map(Method::MultiTerminal)
                .collect()
            }
            3 => vec![],
            _ => vec![presented([4; 16], [1; 16], "acct-3"), presented([3; 16], [9; 16], "acct-9")],
        };
        for method in asked_otherwise {
            prop_assert_ne!(&method, &transaction.method);
            prop_assert_eq!(&asked(&Transaction { method, ..transaction.clone() }), &first);
        }
    }

    /// It can be taken apart again, so two that are equal say the same.
    #[test]
    fn the_signing_input_holds_each_field_in_its_place(said in said()) {
        let transaction = said.transaction().unwrap();
        let [tenant, payer, payee, amount, currency, order, platform, remark] = said.texts.clone();
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let fields = [
            "hsm-authd/transaction/v1".to_owned(),
            tenant,
            transaction.id.to_string(),
            METHODS[said.method].0.to_owned(),
            payer,
            payee,
            amount,
            currency,
            order,
            platform,
            remark,
            said.parent_hash.map(|hash| hex(&hash)).unwrap_or_default(),
            hsm_authd::domain::time::rfc3339((NOW + u64::from(said.lifetime_s)) * 1_000),
            hex(&said.nonce),
        ];
        prop_assert_eq!(decoded(&transaction.signing_input()), fields.map(String::into_bytes));
    }
}

/// A short question holds little of the digest. Two transactions have the same one with a probability of 1 in 9 * 10^7
/// for QN08 (less for QA08 and QH08: 2^-40, 2^-32), and only then the same code; a session keeps even those apart.
#[test]
fn short_questions_are_one_only_where_the_digests_end_alike() {
    let [short, with_session] =
        ["OCRA-1:HOTP-SHA256-8:QN08", WITH_SESSION[0]].map(|text| Suite::parse(text).unwrap());
    let digests = (0..60_000_u32).map(|number| <[u8; 32]>::from(Sha256::digest(number.to_be_bytes())));
    let mut of_question = std::collections::BTreeMap::new();
    let mut equal = 0;
    for digest in digests {
        let Some(other) = of_question.insert(ocra::question(&short, &digest), digest) else { continue };
        let challenges =
            |suite: &Suite| [digest, other].map(|d| Challenge::of_transaction(suite, &d).unwrap());
        let [one, two] = challenges(&short);
        assert_eq!(one, two);
        let [one, two] = challenges(&with_session);
        assert_ne!(one, two);
        equal += 1;
    }
    // 60000^2 / 2 pairs: 20 of them are expected.
    assert!((5..45).contains(&equal), "{equal}");
}
