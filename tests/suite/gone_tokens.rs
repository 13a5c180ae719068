//! SoftHSM says that all is well, and that there is nothing, when its token's files are gone. Nobody takes that for the
//! truth: nothing is unknown, nothing is made anew, nothing is deleted, and no anchor is lost.

use std::collections::BTreeSet;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fault_module::{Fault, Function, Kind, Length};
use hsm_authd::hsm::messages::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use toml::Table;

use crate::audit_files::Copy;
use crate::bank::path;
use crate::client::Connection;
use crate::faults_served::World;
use crate::modules::{Feature, passed_over};
use crate::operator::{done, keys_by};
use crate::processes::{await_gone, eventually};
use crate::submissions::{Outcome, Token};
use crate::token::TestToken;

const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// A service whose secrets are objects, and whose every commit has an anchor.
async fn world() -> World {
    let anchored = |config: &mut Table| {
        let audit = config.entry("audit").or_insert_with(|| Table::new().into());
        audit.as_table_mut().unwrap().insert("anchor".into(), "every_commit".into());
    };
    World::start_as(&["--custodians", "2", "--custody", "resident"], anchored).await
}

/// The files of a token: one for each object, and none where they are not in files.
fn objects(folder: &Path) -> BTreeSet<PathBuf> {
    if passed_over(Feature::ObjectFiles) {
        return BTreeSet::new();
    }
    let tokens = fs::read_dir(folder).unwrap().map(|token| token.unwrap().path());
    let files = tokens.flat_map(|token| fs::read_dir(token).unwrap().map(|file| file.unwrap().path()));
    files.filter(|file| file.extension().is_some_and(|extension| extension == "object")).collect()
}

impl World {
    fn tokens(&self) -> PathBuf {
        self.daemon.dir().join("token")
    }

    fn keys(&self) -> Vec<Value> {
        let said = done(&keys_by(&self.config, &["list", "--json"]));
        serde_json::from_str::<Value>(&said).unwrap().as_array().unwrap().clone()
    }

    async fn kill_custodians(&self) {
        for pid in self.custodians() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            await_gone(pid.cast_signed()).await;
        }
    }

    /// Nothing that is asked for is unknown, wrong or made meanwhile: there is no answer.
    async fn has_no_answer(&self, bank: &Connection, token: &Token, counter: u64) {
        let submit = async |code: String| {
            let mut submission = token.submission(counter);
            submission.body["otp"] = code.into();
            assert_eq!(submission.send(bank).await, Outcome::Unavailable);
        };
        let enrol = async |body: Value| {
            assert_eq!(bank.post("/v1/credentials", &body).await.unwrap().status, 503, "{body}");
        };
        let delete = async || {
            let deleted = bank.request("DELETE", &path(&token.id, ""), &[], "").await.unwrap();
            assert_eq!(deleted.status, 503);
        };
        let seed = "00112233445566778899aabbccddeeff00112233";
        tokio::join!(
            submit(token.code(counter)),
            submit(token.wrong_codes(1).remove(0)),
            enrol(json!({ "type": "hotp", "account": "new" })),
            enrol(json!({ "type": "totp", "account": "new", "export": "otpauth" })),
            enrol(json!({ "type": "hotp", "account": "new", "seed_hex": seed })),
            delete(),
        );
    }

    /// All is as it was: `there` are its objects, but for the anchor, which each commit replaces.
    async fn look_as_before(
        self,
        tokens: &[Token],
        counter: u64,
        keys: &[Value],
        there: &BTreeSet<PathBuf>,
        back: Instant,
    ) {
        let bank = self.connect("bank-a").await;
        let answer = eventually("an answer", async || {
            let outcome = tokens[0].submission(counter).send(&bank).await;
            (outcome != Outcome::Unavailable).then_some(outcome)
        });
        assert_eq!(answer.await, Outcome::Yes);
        assert!(back.elapsed() < RECOVERY_MAX, "an answer {:?} after the return", back.elapsed());
        self.await_custodians().await;
        for token in &tokens[1..] {
            assert_eq!(token.submission(counter).send(&bank).await, Outcome::Yes);
        }
        for token in tokens {
            assert_eq!(token.submission(counter).send(&bank).await, Outcome::No, "it is used up");
            let view = token.view(&bank).await;
            assert_eq!((&view["state"], &view["failures"]), (&json!("active"), &json!(0)));
        }
        assert_eq!(self.keys(), keys, "no key is made, and none is gone");
        assert_eq!(objects(&self.tokens()).len(), there.len());
        assert_eq!(
            objects(&self.tokens()).intersection(there).count(),
            there.len().saturating_sub(1),
            "all but the anchor"
        );
        assert_eq!(self.faults.counts().sessions_open(), 2);
        let said = self.served.log();
        assert!(!said.contains("panicked"), "{said}");

        let World { mut daemon, served, crowd, .. } = self;
        drop((bank, crowd));
        assert!(served.stop().success());
        Copy::of(&daemon.database()).verified(&[]);
        // The folder stays the daemon's.
        let token = ManuallyDrop::new(TestToken::of(&daemon));
        match token.custodian().call(Request::Residents { after: None }) {
            Ok(Response::Residents { ids, nameless }) => assert_eq!((ids.len(), nameless), (tokens.len(), 0)),
            _ => panic!("another response"),
        }
        // It starts: the database and the anchor are of one time.
        daemon.resume();
        assert!(daemon.stop().success());
    }
}

async fn tokens(world: &World) -> Vec<Token> {
    let tokens = world.crowd.enrol("hotp", None, 3).await;
    for token in &tokens {
        assert_eq!(token.submission(0).send(world.crowd.connection(1)).await, Outcome::Yes);
    }
    tokens
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_whose_files_are_gone_is_not_an_empty_one() {
    if passed_over(Feature::Removal) {
        return;
    }
    let world = world().await;
    let (tokens, keys) = (tokens(&world).await, world.keys());
    let (there, away) = (objects(&world.tokens()), world.daemon.dir().join("pulled"));
    let bank = world.connect("bank-a").await;
    fs::rename(world.tokens(), &away).unwrap();
    fs::create_dir(world.tokens()).unwrap();
    // In the processes that had it, and in those that come up now.
    for _ in 0..2 {
        eventually("it is not ready", async || {
            // Whoever asks finds it out, and gets no other answer.
            let body = json!({ "type": "hotp", "account": "new" });
            assert_eq!(bank.post("/v1/credentials", &body).await.unwrap().status, 503);
            (world.ready() == 503).then_some(())
        })
        .await;
        world.has_no_answer(&bank, &tokens[0], 1).await;
        world.kill_custodians().await;
    }
    assert_eq!(fs::read_dir(world.tokens()).unwrap().count(), 0, "no token was made");
    fs::remove_dir(world.tokens()).unwrap();
    fs::rename(&away, world.tokens()).unwrap();
    world.look_as_before(&tokens, 1, &keys, &there, Instant::now()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_not_found_are_not_gone() {
    let world = world().await;
    let (tokens, keys) = (tokens(&world).await, world.keys());
    let there = objects(&world.tokens());
    let bank = world.connect("bank-a").await;
    let none = || Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0)));
    // In custodians that know what there was: what they need no search for goes on.
    let set = world.faults.set(none());
    for token in &tokens {
        let outcome = token.submission(1).send(&bank).await;
        assert!(matches!(outcome, Outcome::Yes | Outcome::Unavailable), "{outcome:?}");
    }
    // In new ones, which find no keys, no secrets and no anchor.
    world.kill_custodians().await;
    world.has_no_answer(&bank, &tokens[0], 2).await;
    assert!(set.count() > 0);
    // An operator who is told that there is nothing makes nothing, and sees nothing that is not so.
    for arguments in [&["rotate", "row"][..], &["rotate", "kek"], &["rotate", "attest"], &["list", "--json"]]
    {
        let output = keys_by(&world.config, arguments);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    set.lift();
    world.look_as_before(&tokens, 2, &keys, &there, Instant::now()).await;
}

/// The worst of all: a second set of keys beside the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setup_makes_no_keys_where_it_is_told_that_there_are_none() {
    let mut token = TestToken::new();
    let before = objects(&token.tokens());
    let faults = token.with_faults();
    for fault in [
        Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0))),
        Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0))).once(),
        Fault::of(Function::C_GetSlotList, Kind::Short(Length::To(0))),
        Fault::of(Function::C_GetSlotList, Kind::Short(Length::To(0))).once(),
        Fault::of(Function::C_GetSlotList, Kind::Short(Length::LessByOne)),
    ] {
        let set = faults.set(fault);
        let output = token.set_up(true);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(set.count() > 0 && !said.contains("panicked"), "{fault:?}: {said}");
        set.lift();
        assert_eq!(objects(&token.tokens()), before, "{fault:?}: {said}");
        assert!(token.custodian().end().0.success(), "{fault:?}");
    }
}
