//! The log's anchor in two tokens, of which one is away: what is found out of a database that was turned back, and when.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use hsm_authd::domain::checkpoint::{Checkpoint, Note};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value as Json, json};
use toml::Table;

use crate::bank::{done, refused};
use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::modules::{Feature, passed_over};
use crate::operator;
use crate::processes::{await_gone, children, eventually};
use crate::recovering::said;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get, section};
use crate::several_tokens::{init, variables};
use crate::token::{BINARY, SO_PIN, TestToken, label};
use crate::wrapped_seeds::{IMPORT_KEY, Wrapper, base64};

const SECOND: &str = "hsm-authd second";
const DATABASE: &str = "several/several.db";

/// A service of two tokens that are one set, with a custodian each, and what it is called with.
struct Place {
    daemon: Daemon,
    tokens: [TestToken; 2],
    config: PathBuf,
}

impl Place {
    /// No answer leaves before an anchor covers it.
    fn new() -> Self {
        Self::with_anchor("every_commit")
    }

    fn with_anchor(mode: &str) -> Self {
        let mut daemon = Daemon::start_with(&["--custodians", "1", "--custody", "wrapped"], &[]);
        daemon.stop();
        let mut tokens = [TestToken::bare(), TestToken::bare()];
        tokens[1].boot.token_label = SECOND.to_owned();
        tokens.iter_mut().for_each(|token| token.boot.shared_keys = true);
        std::fs::create_dir(daemon.dir().join("several")).unwrap();
        let config = configuration(&daemon, "several.toml", |config| {
            section(config, "store").insert("path".into(), DATABASE.into());
            let mut audit = Table::new();
            audit.insert("anchor".into(), mode.into());
            config.insert("audit".into(), audit.into());
            let hsm = section(config, "hsm");
            hsm.insert("shared_keys".into(), true.into());
            hsm.extend(place_of(&tokens[0]));
            hsm.insert("replicas".into(), vec![place_of(&tokens[1])].into());
        });
        let place = Self { daemon, tokens, config };
        operator::done(&init(&place.config, Some(&place.tokens[0].file("so-pin", SO_PIN))));
        place
    }

    fn database(&self) -> PathBuf {
        self.daemon.dir().join(DATABASE)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY).args(arguments).arg("--config").arg(&self.config).output().unwrap()
    }

    async fn bank(&self, served: &Served) -> Connection {
        Connection::open(&served.url, &self.daemon.identity("bank-a"), Http::Two).await.unwrap()
    }

    /// A service that stopped in order: its database.
    fn snapshot(&self) -> Vec<u8> {
        assert!(!self.database().with_added_extension("wal").exists());
        fs::read(self.database()).unwrap()
    }

    fn put_back(&self, snapshot: &[u8]) {
        for suffix in ["wal", "shm"] {
            let _ = fs::remove_file(self.database().with_added_extension(suffix));
        }
        fs::write(self.database(), snapshot).unwrap();
    }

    /// What a token knows.
    fn anchor(&self, token: usize) -> Checkpoint {
        let note = self.tokens[token].custodian().anchor().unwrap();
        Note::parse(&note).unwrap().unverified().clone()
    }

    fn pull(&self, token: usize) {
        self.tokens[token].pull();
    }

    fn plug(&self, token: usize) {
        let folder = self.tokens[token].tokens();
        fs::rename(folder.with_file_name("pulled"), folder).unwrap();
    }

    /// Pulls the token of a running service, and with it whoever has it open.
    async fn lose(&self, served: &Served, token: usize) {
        self.pull(token);
        let folder = self.tokens[token].boot.pin_file.parent().unwrap().display().to_string();
        let is_of_it = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&format!("{folder}/"))
        };
        for pid in children(served.pid(), "custodian").into_iter().filter(is_of_it) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            await_gone(pid).await;
        }
        await_up(served, 1.0).await;
    }

    /// The line that a start ends with.
    fn refusal(&self) -> String {
        let mut served = Served::spawn(&self.config);
        assert!(!served.ended().success());
        line_of(&served.last_words())
    }

    /// The log's events.
    fn events(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.database()).unwrap();
        let mut statement = database.prepare("SELECT event FROM audit ORDER BY seq").unwrap();
        let events = statement.query_map([], |row| row.get(0)).unwrap();
        events.map(Result::unwrap).collect()
    }
}

fn place_of(token: &TestToken) -> Table {
    let boot = &token.boot;
    let environment: Table =
        variables(token).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut table = Table::new();
    for (name, value) in [
        ("module", boot.module.display().to_string()),
        ("token_label", boot.token_label.clone()),
        ("pin_file", boot.pin_file.display().to_string()),
    ] {
        table.insert(name.into(), value.into());
    }
    table.insert("environment".into(), environment.into());
    table.insert("folders".into(), vec![token.tokens().display().to_string()].into());
    table
}

/// The one line for the operator.
fn line_of(words: &[String]) -> String {
    let lines: Vec<_> = words.iter().filter(|line| line.starts_with("hsm-authd: ")).collect();
    assert_eq!(lines.len(), 1, "{words:#?}");
    lines[0].clone()
}

async fn await_up(served: &Served, count: f64) {
    eventually("custodians", async || {
        (Scrape::at(&served.ops_url).sum("hsm_authd_custodians_up") == count).then_some(())
    })
    .await;
}

/// How many entries each token's anchor does not cover.
fn lags(served: &Served) -> [f64; 2] {
    let scrape = Scrape::at(&served.ops_url);
    ["0", "1"].map(|token| scrape.value("hsm_authd_log_anchor_lag", &[("token", token)]))
}

fn readyz(served: &Served) -> (u16, String) {
    ops_get(&served.ops_url, "/readyz")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tokens_have_the_anchor_and_one_that_returns_gets_what_it_missed() {
    if passed_over(Feature::Removal) {
        return;
    }
    let place = Place::new();
    let served = Served::start(&place.config);
    await_up(&served, 2.0).await;
    let bank = place.bank(&served).await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let [first, second] = [0, 1].map(|token| place.anchor(token));
    assert_eq!(first.head, second.head);
    assert!(!first.head.origin.is_unclaimed() && first.head.size > 0, "{first:?}");
    assert_eq!(lags(&served), [0.0; 2]);

    place.lose(&served, 1).await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
    let ahead = place.anchor(0).head.size;
    assert!(ahead > first.head.size);
    assert!(lags(&served)[0] == 0.0 && lags(&served)[1] > 0.0, "{:?}", lags(&served));
    let (status, words) = readyz(&served);
    assert_eq!(status, 200, "{words}");

    place.plug(1);
    eventually("its anchor", async || (lags(&served) == [0.0; 2]).then_some(())).await;
    assert_eq!(place.anchor(1).head, place.anchor(0).head);
    assert!(place.anchor(1).head.size >= ahead);
    assert!(served.stop().success());
    let [first, second] = [0, 1].map(|token| place.anchor(token));
    assert_eq!(first.head, second.head, "the end as well");
    // Nothing was missing.
    let served = Served::start(&place.config);
    assert!(served.stop().success());
    let events = place.events();
    assert_eq!(events.iter().filter(|event| *event == "service.started").count(), 2, "{events:?}");
}

/// The one that is there cannot know what only the other was told. It is found out when that one is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_turned_back_to_what_one_token_knows_is_found_out_by_the_other() {
    if passed_over(Feature::Removal) {
        return;
    }
    let place = Place::new();
    let served = Served::start(&place.config);
    await_up(&served, 2.0).await;
    let id = enrol_hotp(&place.bank(&served).await, "acct-1").await;
    assert!(served.stop().success());
    let old = place.snapshot();

    place.pull(1);
    let served = Served::start(&place.config);
    done(&verify(&place.bank(&served).await, &id, &rfc_code(0)).await);
    assert!(served.stop().success());
    let newest = place.snapshot();
    place.plug(1);

    // Both are there: at once, and the one that knows is named.
    place.put_back(&old);
    for _ in 0..2 {
        let line = place.refusal();
        let words = format!("token {}: the database was turned back", label());
        assert!(line.contains(&words) && line.contains("hsm-authd recover"), "{line}");
    }

    // The stale one alone: not at the start, although nothing is taken for granted.
    place.pull(0);
    let mut served = Served::start(&place.config);
    done(&verify(&place.bank(&served).await, &id, &rfc_code(0)).await);
    assert_eq!(place.events().last().unwrap(), "otp.verified", "a used code was good again");
    assert!(place.events().contains(&"service.started_unclean".to_owned()), "{:?}", place.events());
    let known = {
        place.plug(0);
        place.anchor(0)
    };
    assert!(!served.ended().success());
    let line = line_of(&served.last_words());
    assert!(line.contains(&format!("token {}: the database was turned back", label())), "{line}");
    assert!(line.contains("hsm-authd recover"), "{line}");
    assert_eq!(place.anchor(0).head, known.head, "it was not written over");
    // From here on both know of histories of their own: only the newest database of the one, or a recovery.
    assert!(place.refusal().contains("the database"));
    place.put_back(&newest);
    assert!(place.refusal().contains(&format!("token {SECOND}: ")), "{}", place.refusal());

    // A recovery asks both, and is not done by halves.
    place.pull(1);
    let looked = place.run(&["recover"]);
    assert!(String::from_utf8_lossy(&looked.stdout).contains("may know of more"), "{looked:?}");
    assert!(
        String::from_utf8_lossy(&looked.stdout).contains(&format!("token {SECOND}: is away")),
        "{looked:?}"
    );
    place.put_back(&old);
    let refused = complaint_of(&place.run(&["recover", "--accept-rollback"]));
    assert!(refused.contains(&format!("token {SECOND} is away")), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(place.anchor(0).head, known.head);
    place.plug(1);
    let text = said(&place.run(&["recover", "--accept-rollback"]));
    assert!(text.contains("from here on"), "{text}");
    let [first, second] = [0, 1].map(|token| place.anchor(token));
    assert_eq!(first.head, second.head);
    assert_ne!(first.head.origin, known.head.origin);
    let served = Served::start(&place.config);
    assert!(served.stop().success());
}

/// Among what those say whose custodian did not come up.
fn complaint_of(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().rfind(|line| line.starts_with("hsm-authd: ")).unwrap_or(&text).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_just_joined_begins_nothing_by_itself() {
    if passed_over(Feature::Removal) {
        return;
    }
    let place = Place::with_anchor("interval");
    place.pull(0);
    let served = Served::spawn(&place.config);
    let waiting = eventually("that it waits", async || {
        let address = served.ops_url.strip_prefix("http://").unwrap();
        std::net::TcpStream::connect(address).ok()?;
        let (status, words) = readyz(&served);
        (status == 503 && words.contains("tells nothing of any log")).then_some(words)
    });
    let words = waiting.await;
    assert!(words.contains(SECOND) && words.contains(&format!("bring token {} back", label())), "{words}");
    place.plug(0);
    served.await_ready();
    await_up(&served, 2.0).await;
    assert!(served.stop().success());
    assert_eq!(place.anchor(0).head, place.anchor(1).head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_is_taken_from_whichever_token_it_was_wrapped_for() {
    if passed_over(Feature::Removal) {
        return;
    }
    let place = Place::with_anchor("interval");
    let served = Served::start(&place.config);
    await_up(&served, 2.0).await;
    let bank = place.bank(&served).await;
    let seed = b"12345678901234567890";
    let body = |account: &str, blob: &str| json!({ "type": "hotp", "account": account, "seed_wrapped_base64": blob });
    let post = async |body: Json| bank.post("/v1/credentials", &body).await.unwrap();

    let first = Wrapper::fetch(&bank).await;
    assert_eq!(post(body("a", &first.wrap(seed))).await.status, 201);
    let none = base64(&[7; 384]);
    refused(&post(body("b", &none)).await, 422, "invalid");

    place.lose(&served, 0).await;
    let second = Wrapper::fetch(&bank).await;
    assert_ne!(second.document["key_id"], first.document["key_id"]);
    let answer = post(body("c", &second.wrap(seed))).await;
    assert_eq!(answer.status, 201);
    let id = answer.json().unwrap()["id"].as_str().unwrap().to_owned();
    done(&verify(&bank, &id, &rfc_code(0)).await);
    // Whether the other one opens it nobody knows.
    let kept = first.wrap(seed);
    for blob in [&kept, &none] {
        let answer = post(body("d", blob)).await;
        assert_eq!(answer.status, 503, "{}", crate::daemon::text(&answer));
        assert!(answer.header("retry-after").is_some());
    }
    place.plug(0);
    await_up(&served, 2.0).await;
    assert_eq!(post(body("d", &kept)).await.status, 201);
    assert_eq!(post(body("e", &second.wrap(seed))).await.status, 201, "the other's still");
    refused(&post(body("f", &none)).await, 422, "invalid");
    let document = done(&bank.get(IMPORT_KEY).await.unwrap());
    assert_eq!(document["key_id"], first.document["key_id"]);
    assert!(served.stop().success());
}
