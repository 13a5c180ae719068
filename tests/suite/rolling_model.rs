//! Two terminals and a network that drops, repeats and reorders every message, and a daemon that is killed in between:
//! against a model of what each message may do.
//!
//! Before and after each message the database says how things stand; a message that was answered did exactly what the
//! model says, one whose daemon was killed did that or nothing. At the end of each case both terminals get on by
//! rotations alone.
//!
//! `HSM_AUTHD_ROLLING_CASES` sets how many cases there are, `PROPTEST_RNG_SEED` which.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use hsm_authd::domain::id::CredentialId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use crate::bank::{act, done, path};
use crate::client::{Connection, Failure, Response};
use crate::daemon::{Daemon, text};
use crate::rolling_terminal::{
    Code, IDENTITY_CODE, activate, activation, enrol_pending, order, quick_key, rotate,
};
use crate::transactions_client::{at, bound, respond};

/// How long there are new cases, where their number is not asked for.
const LASTING: Duration = Duration::from_secs(25);
const ACCOUNTS: [&str; 2] = ["acct-a", "acct-b"];

/// What happens next, to one of the two.
#[derive(Clone, Debug)]
struct Step {
    whose: usize,
    act: Act,
    /// With an `Idempotency-Key` of its own.
    keyed: bool,
    /// Whether the terminal gets the answer.
    heard: bool,
    /// The daemon is killed so long after the message was sent, in units of 250 µs.
    kill: Option<u8>,
}

#[derive(Clone, Debug)]
enum Act {
    /// A password of the code that the terminal has; of the right identity code or of another.
    Pay { right: bool },
    /// A rotation with the terminal's own epoch.
    Rotate,
    /// The same with a proof of nothing.
    Forge,
    /// An activation, by the right key or by another.
    Activate { right: bool },
    /// A new binding.
    Rebind,
    /// A message that was sent before, again, byte for byte.
    Again(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        8 => Just(Act::Pay { right: true }),
        3 => Just(Act::Pay { right: false }),
        5 => Just(Act::Rotate),
        1 => Just(Act::Forge),
        3 => any::<bool>().prop_map(|right| Act::Activate { right }),
        1 => Just(Act::Rebind),
        12 => any::<prop::sample::Index>().prop_map(Act::Again),
    ];
    let kill = prop_oneof![24 => Just(None), 1 => (0u8..24).prop_map(Some)];
    let step = (0usize..2, act, any::<bool>(), prop::bool::weighted(0.6), kill)
        .prop_map(|(whose, act, keyed, heard, kill)| Step { whose, act, keyed, heard, kill });
    prop::collection::vec(step, 30..60)
}

/// How one of them stands, as the database says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Truth {
    status: String,
    failures: i64,
    account_failures: i64,
    /// Epoch, whether it is acknowledged, its lookup.
    binding: Option<(u64, bool, Vec<u8>)>,
}

/// A message as it is on the network.
#[derive(Clone, Debug)]
struct Message {
    whose: usize,
    kind: Kind,
    path: String,
    body: Value,
    key: Option<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    Password { lookup: Vec<u8>, right: bool, transaction: String },
    Rotation { epoch: u64, lookup: Option<Vec<u8>> },
    Activation { right: bool },
    Rebinding,
}

/// One terminal with its user, and what is known of its binding.
struct Party {
    account: &'static str,
    id: String,
    key: Vec<u8>,
    /// The code that it has, and its epoch.
    held: Option<(u64, Code)>,
    /// One more with each rebinding.
    generation: u64,
    /// What each epoch's passwords began with, by generation and epoch.
    lookups: BTreeMap<(u64, u64), Vec<u8>>,
    approved: HashSet<(u64, u64)>,
}

struct World {
    daemon: Daemon,
    bank: Connection,
    database: rusqlite::Connection,
    parties: Vec<Party>,
    messages: Vec<Message>,
    keys: usize,
    /// The statuses of the answers that are remembered, as far as anybody saw them.
    remembered: HashMap<String, u16>,
    /// How often something of each kind happened.
    seen: BTreeMap<&'static str, usize>,
}

fn blob(id: &str) -> [u8; 16] {
    CredentialId::parse(id).unwrap().to_bytes()
}

fn database(daemon: &Daemon) -> rusqlite::Connection {
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
}

impl World {
    fn truth(&self, whose: usize) -> Truth {
        use rusqlite::OptionalExtension;
        let party = &self.parties[whose];
        let id = blob(&party.id);
        let state = "SELECT status, failures FROM credential_state WHERE id = ?1";
        let (status, failures) =
            self.database.query_row(state, [id], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let account = "SELECT failures FROM account WHERE tenant = 'bank-a' AND account = ?1";
        let account_failures = self.database.query_row(account, [party.account], |row| row.get(0)).unwrap();
        let binding = "SELECT epoch, acknowledged, lookup FROM binding WHERE credential = ?1";
        let binding = self
            .database
            .query_row(binding, [id], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?)))
            .optional()
            .unwrap();
        Truth { status, failures, account_failures, binding }
    }

    fn is_remembered(&self, key: &str) -> bool {
        let sql = "SELECT count(*) FROM idempotency WHERE key = ?1";
        self.database.query_row(sql, [key], |row| row.get::<_, i64>(0)).unwrap() == 1
    }

    fn state_of(&self, transaction: &str) -> String {
        let id = hsm_authd::domain::id::TransactionId::parse(transaction).unwrap().to_bytes();
        self.database.query_row("SELECT state FROM payment WHERE id = ?1", [id], |row| row.get(0)).unwrap()
    }

    /// What the message does to whom it is about, if it is carried out now: the answer's status, and how things stand
    /// then.
    fn expected(&self, message: &Message, now: &Truth) -> (u16, Truth) {
        let party = &self.parties[message.whose];
        let same = |status| (status, now.clone());
        let charged = |status| {
            let (failures, account_failures) = (now.failures + 1, now.account_failures + 1);
            (status, Truth { failures, account_failures, ..now.clone() })
        };
        let active = now.status == "active";
        match (&message.kind, &now.binding) {
            (Kind::Password { transaction, .. }, _) if self.state_of(transaction) != "pending" => same(409),
            (Kind::Password { lookup, right, .. }, Some((epoch, _, open))) if lookup == open => match right {
                true => {
                    // The next lookup is the HSM's to know.
                    let binding = Some((epoch + 1, false, Vec::new()));
                    let truth = Truth { failures: 0, account_failures: 0, binding, ..now.clone() };
                    (200, truth)
                }
                false => charged(403),
            },
            (Kind::Password { .. }, _) => same(403),
            (Kind::Rotation { epoch, lookup }, Some((open, acknowledged, open_lookup))) if active => {
                if epoch == open {
                    match lookup.as_ref() == Some(open_lookup) {
                        true => {
                            let binding = Some((*open, true, open_lookup.clone()));
                            (200, Truth { binding, ..now.clone() })
                        }
                        false => charged(403),
                    }
                } else if epoch + 1 == *open && !acknowledged {
                    match lookup.is_some()
                        && lookup.as_ref() == party.lookups.get(&(party.generation, *epoch))
                    {
                        true => same(200),
                        false => charged(403),
                    }
                } else {
                    same(409)
                }
            }
            (Kind::Rotation { .. }, _) => same(409),
            (Kind::Activation { .. }, None) if now.status == "pending" => {
                let binding = Some((1, false, Vec::new()));
                (200, Truth { status: "active".to_owned(), binding, ..now.clone() })
            }
            (Kind::Activation { right }, Some((1, false, _))) if active => match right {
                true => same(200),
                false => charged(403),
            },
            (Kind::Activation { .. }, _) => same(409),
            (Kind::Rebinding, _) => {
                (200, Truth { status: "pending".to_owned(), binding: None, ..now.clone() })
            }
        }
    }

    /// The message of an action; `None` where there is nothing to say it with.
    async fn message(&mut self, step: &Step) -> Option<Message> {
        let whose = step.whose;
        let key = step.keyed.then(|| {
            self.keys += 1;
            format!("key-{}-{}", self.keys, self.parties[whose].id)
        });
        let party = &self.parties[whose];
        let message = |kind, path, body| Message { whose, kind, path, body, key };
        Some(match &step.act {
            Act::Pay { right } => {
                let (_, code) = party.held.clone()?;
                let key = if *right { party.key.clone() } else { vec![7; 32] };
                let transaction = order(&self.bank).await;
                let body = code.password(&key, &bound("bank-a", &transaction).digest);
                let (lookup, id) = (code.lookup(), transaction["id"].as_str().unwrap().to_owned());
                let kind = Kind::Password { lookup, right: *right, transaction: id };
                message(kind, at(&transaction, "responses"), body)
            }
            Act::Rotate => {
                let (epoch, code) = party.held.clone()?;
                let kind = Kind::Rotation { epoch, lookup: Some(code.lookup()) };
                message(kind, path(&party.id, "rotation"), code.rotation(epoch))
            }
            Act::Forge => {
                let (epoch, _) = party.held.clone()?;
                let body = Code(vec![0; 16]).rotation(epoch);
                message(Kind::Rotation { epoch, lookup: None }, path(&party.id, "rotation"), body)
            }
            Act::Activate { right } => {
                // What waits for its activation takes any key: the user's, here.
                let right = *right || self.truth(whose).status == "pending";
                let body = activation(if right { &party.key } else { &[9; 32] });
                message(Kind::Activation { right }, path(&party.id, "activate"), body)
            }
            Act::Rebind => message(Kind::Rebinding, path(&party.id, "rebind"), json!({})),
            Act::Again(index) => {
                let own: Vec<_> = self.messages.iter().filter(|message| message.whose == whose).collect();
                let again = (*index.get(&own)).clone();
                // A wrong key that comes when it waits for one would bind it to nobody's.
                let binds = matches!(again.kind, Kind::Activation { right: false });
                if binds && self.truth(whose).status == "pending" {
                    return None;
                }
                again
            }
        })
    }

    async fn send(&self, message: &Message) -> Result<Response, Failure> {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(message.key.as_deref().map(|key| ("idempotency-key", key)));
        self.bank.request("POST", &message.path, &headers, message.body.to_string()).await
    }

    async fn restart(&mut self) {
        self.daemon.resume();
        self.bank = self.daemon.connect("bank-a").await;
        self.database = database(&self.daemon);
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Some(message) = self.message(step).await else { return Ok(()) };
        let whose = message.whose;
        let (before, other) = (self.truth(whose), self.truth(1 - whose));
        let replayed = message.key.as_deref().filter(|key| self.is_remembered(key));
        let (status, after) = match replayed {
            Some(key) => (self.remembered.get(key).copied(), before.clone()),
            None => {
                let (status, after) = self.expected(&message, &before);
                (Some(status), after)
            }
        };
        let answer = match step.kill {
            None => Some(self.send(&message).await.unwrap()),
            Some(wait) => {
                let (bank, sent) = (self.bank.clone(), message.clone());
                let task = tokio::spawn(async move {
                    let mut headers = vec![("content-type", "application/json")];
                    headers.extend(sent.key.as_deref().map(|key| ("idempotency-key", key)));
                    bank.request("POST", &sent.path, &headers, sent.body.to_string()).await
                });
                tokio::time::sleep(Duration::from_micros(250) * wait.into()).await;
                self.daemon.kill();
                let answer = task.await.unwrap().ok().filter(|answer| answer.status != 503);
                self.restart().await;
                answer
            }
        };
        *self.seen.entry(if answer.is_some() { "answered" } else { "lost" }).or_default() += 1;
        let now = self.truth(whose);
        prop_assert_eq!(&self.truth(1 - whose), &other, "somebody else was touched by {:?}", message);
        let done = self.is(&now, &after);
        match &answer {
            Some(answer) => {
                let said = format!("{} {} to {message:?} at {before:?}", answer.status, text(answer));
                prop_assert!(
                    status.is_none_or(|status| answer.status == status),
                    "{said}: expected {status:?}"
                );
                prop_assert!(done, "{said}: now {now:?}");
                if let Some(key) = message.key.clone().filter(|key| self.is_remembered(key)) {
                    self.remembered.insert(key, answer.status.as_u16());
                }
            }
            None => prop_assert!(done || now == before, "killed at {:?}: {:?} {:?}", before, message, now),
        }
        self.note(&message, &before, &now)?;
        if let (Some(answer), true) = (&answer, step.heard) {
            self.hear(whose, &message, answer)?;
        }
        self.messages.push(message);
        // So that nobody is locked: that has tests of its own.
        if now.failures >= 3 || now.account_failures >= 3 {
            let id = self.parties[whose].id.clone();
            crate::bank::done(&act(&self.bank, &id, "unlock").await);
        }
        Ok(())
    }

    /// Whether things stand as expected, where what only the HSM knows was left out.
    fn is(&self, now: &Truth, expected: &Truth) -> bool {
        let mut expected = expected.clone();
        if let (Some((.., lookup)), Some((.., known))) = (&mut expected.binding, &now.binding)
            && lookup.is_empty()
        {
            *lookup = known.clone();
        }
        *now == expected
    }

    /// Keeps what has become of the binding, and counts each epoch's approvals.
    fn note(&mut self, message: &Message, before: &Truth, now: &Truth) -> Result<(), TestCaseError> {
        let approved = match &message.kind {
            Kind::Password { transaction, .. } => self.state_of(transaction) == "approved",
            _ => false,
        };
        let party = &mut self.parties[message.whose];
        if let (Some((epoch, ..)), Some((next, ..))) = (&before.binding, &now.binding)
            && epoch != next
        {
            prop_assert!(approved && *next == epoch + 1);
            prop_assert!(party.approved.insert((party.generation, *epoch)), "epoch {epoch} approved twice");
            *self.seen.entry("approved").or_default() += 1;
        }
        if matches!(message.kind, Kind::Rebinding) && before.status != now.status
            || matches!((&before.binding, &now.binding), (Some(_), None))
        {
            party.generation += 1;
            *self.seen.entry("rebound").or_default() += 1;
        }
        if let Some((epoch, _, lookup)) = &now.binding {
            let known = party.lookups.entry((party.generation, *epoch)).or_insert_with(|| lookup.clone());
            prop_assert_eq!(known, lookup, "an epoch has one lookup");
        }
        Ok(())
    }

    /// What the terminal makes of an answer.
    fn hear(&mut self, whose: usize, message: &Message, answer: &Response) -> Result<(), TestCaseError> {
        if answer.status != 200 {
            return Ok(());
        }
        let now = self.truth(whose);
        let body = answer.json().unwrap();
        let told = match message.kind {
            Kind::Password { .. } => body.get("next").cloned(),
            _ => Some(body.clone()).filter(|body| body.get("temporary_code").is_some()),
        };
        let Some(told) = told else { return Ok(()) };
        let (epoch, code) = (told["epoch"].as_u64().unwrap(), Code::of(&told["temporary_code"]));
        // Whatever is handed out, by whichever answer, is the open epoch's, and nobody has acknowledged it.
        let open = Some((epoch, false, code.lookup()));
        prop_assert_eq!(&now.binding, &open, "handed out by {:?}", message);
        *self.seen.entry("handed out").or_default() += 1;
        self.parties[whose].held = Some((epoch, code));
        Ok(())
    }

    /// From wherever things stand its terminal gets to an approval, without being bound anew.
    async fn gets_on(&mut self, whose: usize) -> Result<(), TestCaseError> {
        let bank = self.bank.clone();
        let (id, key) = (self.parties[whose].id.clone(), self.parties[whose].key.clone());
        done(&act(&bank, &id, "unlock").await);
        let open = |truth: &Truth| truth.binding.clone().map(|(.., lookup)| lookup);
        // What it holds may be of an earlier binding: then it never heard the answer to the activation since.
        let truth = self.truth(whose);
        let party = &self.parties[whose];
        let is_own = |lookup: &Vec<u8>| {
            party
                .lookups
                .iter()
                .any(|((generation, _), known)| *generation == party.generation && known == lookup)
        };
        let held = party.held.clone().filter(|(_, code)| truth.binding.is_some() && is_own(&code.lookup()));
        let (mut epoch, mut code) = match held {
            Some(held) => held,
            None => {
                let bound = done(&activate(&bank, &id, &key).await);
                (1, Code::of(&bound["temporary_code"]))
            }
        };
        let told = done(&rotate(&bank, &id, &code.rotation(epoch)).await);
        if told.get("acknowledged").is_none() {
            prop_assert_eq!(&told["epoch"], epoch + 1);
            epoch += 1;
            code = Code::of(&told["temporary_code"]);
        }
        prop_assert_eq!(open(&self.truth(whose)), Some(code.lookup()));
        let transaction = order(&bank).await;
        let password = code.password(&key, &bound("bank-a", &transaction).digest);
        let approved = done(&respond(&bank, &transaction, &password).await);
        prop_assert_eq!(&approved["account"], self.parties[whose].account);
        prop_assert_eq!(&approved["next"]["epoch"], epoch + 1);
        let generation = self.parties[whose].generation;
        prop_assert!(self.parties[whose].approved.insert((generation, epoch)));
        Ok(())
    }

    /// As many approvals are kept as epochs were used up, and each is of its own.
    fn adds_up(&self) -> Result<(), TestCaseError> {
        let sql = "SELECT progress FROM payment WHERE state = 'approved'";
        let mut statement = self.database.prepare(sql).unwrap();
        let count = statement.query_map([], |_| Ok(())).unwrap().count();
        let approved: usize = self.parties.iter().map(|party| party.approved.len()).sum();
        let earlier = self.seen.get("approvals of earlier cases").copied().unwrap_or_default();
        prop_assert_eq!(count, approved + earlier);
        Ok(())
    }

    async fn begin(&mut self) {
        self.parties.clear();
        self.messages.clear();
        for account in ACCOUNTS {
            let account: &'static str = format!("{account}-{}", self.keys).leak();
            let (id, salt) = enrol_pending(&self.bank, account).await;
            self.keys += 1;
            let key = quick_key(IDENTITY_CODE, &salt);
            let (held, lookups, approved) = (None, BTreeMap::new(), HashSet::new());
            self.parties.push(Party { account, id, key, held, generation: 0, lookups, approved });
        }
        for whose in 0..2 {
            let step =
                Step { whose, act: Act::Activate { right: true }, keyed: false, heard: true, kill: None };
            self.take(&step).await.unwrap();
        }
    }

    async fn case(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        self.begin().await;
        for step in steps {
            self.take(step).await?;
        }
        for whose in 0..2 {
            self.gets_on(whose).await?;
        }
        self.adds_up()?;
        let approved: usize = self.parties.iter().map(|party| party.approved.len()).sum();
        *self.seen.entry("approvals of earlier cases").or_default() += approved;
        Ok(())
    }
}

#[test]
fn whatever_the_network_does_each_epoch_approves_once_and_no_terminal_is_stuck() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let (bank, database) = (runtime.block_on(daemon.connect("bank-a")), database(&daemon));
    let world = World {
        daemon,
        bank,
        database,
        parties: Vec::new(),
        messages: Vec::new(),
        keys: 0,
        remembered: HashMap::new(),
        seen: BTreeMap::new(),
    };
    let world = std::cell::RefCell::new(world);
    let asked = std::env::var("HSM_AUTHD_ROLLING_CASES").ok().map(|cases| cases.parse().unwrap());
    let config = Config {
        cases: asked.unwrap_or(16),
        failure_persistence: None,
        max_shrink_iters: 60,
        ..Config::default()
    };
    let (begun, cases) = (Instant::now(), std::cell::Cell::new(0));
    let result = TestRunner::new(config).run(&steps(), |steps| {
        if asked.is_none() && begun.elapsed() > LASTING {
            return Ok(());
        }
        cases.set(cases.get() + 1);
        let mut world = world.borrow_mut();
        runtime.block_on(world.case(&steps))
    });
    let world = world.borrow();
    println!("{} cases in {:?}: {:?}", cases.get(), begun.elapsed(), world.seen);
    if let Err(failure) = result {
        panic!("{failure}");
    }
    assert!(cases.get() >= 3, "too slow for {} cases", cases.get());
    for seen in ["approved", "handed out", "rebound", "lost", "answered"] {
        assert!(world.seen.contains_key(seen), "nothing was ever {seen}");
    }
}
