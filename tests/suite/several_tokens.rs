//! Several tokens that are one set: made together, joined later, rotated and retired together, and what one has sealed,
//! wrapped and signed for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hsm_authd::custodian::EXIT_START_FAILED;
use serde_json::Value;

use crate::anchor::head;
use crate::custodian::check;
use crate::custodian_attestations::{claims, taken_apart};
use crate::daemon::{Daemon, enrol_hotp};
use crate::modules::{Feature, TestModule, passed_over};
use crate::operator::{KINDS, done, keys_by};
use crate::processes::eventually;
use crate::scratch::Scratch;
use crate::served::{Served, configuration, ops_get, section};
use crate::token::{BINARY, PIN, SO_PIN, TestToken, label};

pub const SECOND: &str = "hsm-authd second";

/// Two tokens, each in an environment of its own, and configurations of both or of one.
pub struct World {
    pub first: TestToken,
    pub second: TestToken,
    pub scratch: Scratch,
}

impl World {
    pub fn of(first: TestToken, mut second: TestToken) -> Self {
        if !second.tokens().read_dir().unwrap().any(|_| true) {
            second.boot.token_label = SECOND.to_owned();
        }
        let mut world = Self { first, second, scratch: Scratch::new() };
        for token in [&mut world.first, &mut world.second] {
            token.boot.shared_keys = true;
        }
        world
    }

    /// Two that are one set, made together.
    pub fn made() -> Self {
        let world = Self::of(TestToken::bare(), TestToken::bare());
        done(&world.init());
        world
    }

    /// A token's section, without its head.
    fn section(token: &TestToken) -> String {
        let environment = variables(token).into_iter().chain(token.environment.iter().cloned());
        let pairs: Vec<_> = environment.map(|(name, value)| format!("{name} = {value:?}")).collect();
        // Not all of its folder, where the PIN is too.
        let faults = token.boot.reach.writes.iter().map(|folder| folder.join("faults"));
        let folders: Vec<_> =
            std::iter::once(token.tokens()).chain(faults.filter(|path| path.exists())).collect();
        format!(
            "module = {:?}\ntoken_label = {:?}\npin_file = {:?}\nenvironment = {{ {} }}\nfolders = {:?}\n",
            token.boot.module,
            token.boot.token_label,
            token.boot.pin_file,
            pairs.join(", "),
            folders
        )
    }

    fn config_of(&self, name: &str, tokens: &[&TestToken]) -> PathBuf {
        let (first, replicas) = tokens.split_first().unwrap();
        let replicas: String =
            replicas.iter().map(|token| format!("\n[[hsm.replicas]]\n{}", Self::section(token))).collect();
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\ncertificate = \"server.pem\"\nkey = \"server.key\"\n\
             client_ca = \"client-ca.pem\"\n\n[ops]\nlisten = \"127.0.0.1:0\"\n\n[store]\npath = \"hsm-authd.db\"\n\n\
             [hsm]\nshared_keys = true\n{}{replicas}\n[[client]]\nname = \"bank\"\nsan = \"urn:bank\"\ntenant = \"bank\"\n\
             permissions = [\"verify\"]\n",
            Self::section(first)
        );
        self.scratch.write(name, &text)
    }

    /// The configuration that names both.
    pub fn config(&self) -> PathBuf {
        self.config_of("both.toml", &[&self.first, &self.second])
    }

    pub fn init(&self) -> Output {
        init(&self.config(), Some(&self.scratch.write("so-pin", SO_PIN)))
    }

    pub fn keys(&self, arguments: &[&str]) -> Output {
        keys_by(&self.config(), arguments)
    }

    pub fn list(&self) -> Vec<Value> {
        listed(&self.config())
    }

    /// Each token by itself, the second one's first.
    fn each(&self) -> [Vec<Value>; 2] {
        [&self.second, &self.first].map(|token| listed(&self.config_of("one.toml", &[token])))
    }

    /// Check values of finished keys of the shared kinds, by token, kind and version.
    pub fn shared(&self) -> [BTreeMap<(String, u64), String>; 2] {
        shared_in(&self.list(), [&self.first, &self.second].map(|token| token.boot.token_label.as_str()))
    }
}

pub fn shared_in(keys: &[Value], tokens: [&str; 2]) -> [BTreeMap<(String, u64), String>; 2] {
    tokens.map(|token| {
        let of_it = keys.iter().filter(|key| {
            key["token"] == token
                && key["unfinished"] == false
                && ["kek", "row", "data"].contains(&key["kind"].as_str().unwrap())
        });
        of_it
            .map(|key| {
                let name = (key["kind"].as_str().unwrap().to_owned(), key["version"].as_u64().unwrap());
                (name, key["check_value"].as_str().unwrap().to_owned())
            })
            .collect()
    })
}

/// What names the token's configuration to its module.
pub fn variables(token: &TestToken) -> Option<(&'static str, String)> {
    TestModule::chosen().environment(token.boot.pin_file.parent().unwrap())
}

pub fn init_command(config: &Path, so_pin_file: Option<&Path>) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["init", "--config"]).arg(config);
    if let Some(path) = so_pin_file {
        command.arg("--so-pin-file").arg(path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn init(config: &Path, so_pin_file: Option<&Path>) -> Output {
    init_command(config, so_pin_file).output().unwrap()
}

fn listed(config: &Path) -> Vec<Value> {
    let said = done(&keys_by(config, &["list", "--json"]));
    serde_json::from_str::<Value>(&said).unwrap().as_array().unwrap().clone()
}

/// What was refused in words of its own, after those of the process that met it.
pub fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.lines().all(|line| line.starts_with("hsm-authd: ")), "{said}");
    said
}

/// The versions of each kind, by token.
fn versions(keys: &[Value], token: &str) -> BTreeSet<(String, u64)> {
    let of_it = keys.iter().filter(|key| key["token"] == token && key["retired"] == false);
    of_it.map(|key| (key["kind"].as_str().unwrap().to_owned(), key["version"].as_u64().unwrap())).collect()
}

#[test]
fn two_new_tokens_become_one_set_and_a_second_init_changes_nothing() {
    if passed_over(Feature::Labels) {
        return;
    }
    let world = World::of(TestToken::bare(), TestToken::bare());
    let said = done(&world.init());
    for token in [label().as_str(), SECOND] {
        assert!(said.contains(&format!("token {token}: made\n")), "{said}");
        for kind in ["attest", "audit", "import"] {
            assert!(said.contains(&format!("token {token}: key hsm-authd/{kind}/v1: made\n")), "{said}");
        }
    }
    for kind in ["kek", "row", "data"] {
        assert!(said.contains(&format!("key hsm-authd/{kind}/v2: made in every token\n")), "{said}");
    }
    assert!(!said.contains(PIN) && !said.contains(SO_PIN) && !said.contains("lacks"), "{said}");

    let keys = world.list();
    assert_eq!(keys.len(), 12, "{keys:?}");
    let [first, second] = world.shared();
    assert_eq!(first.len(), 3);
    assert_eq!(first, second);
    for key in &keys {
        let object = &key["objects"][0];
        let is_shared = ["kek", "row", "data"].contains(&key["kind"].as_str().unwrap());
        for (name, value) in [
            ("CKA_TOKEN", true),
            ("CKA_PRIVATE", true),
            ("CKA_SENSITIVE", true),
            ("CKA_EXTRACTABLE", false),
            // A kek is copied for each session, which PKCS#11 calls a modification.
            ("CKA_MODIFIABLE", key["kind"] == "kek"),
            // What was in another token is said to have been, and nothing else is.
            ("CKA_NEVER_EXTRACTABLE", !is_shared),
        ] {
            // Kryoptic says nothing of where a key was that was unwrapped.
            let is_untold = name == "CKA_NEVER_EXTRACTABLE" && !value && object[name].is_null();
            assert!(is_untold || object[name] == *value.to_string().as_str(), "{name} of {key}");
        }
        assert!(object["CKA_ALLOWED_MECHANISMS"].as_str().unwrap().starts_with("CKM_"), "{key}");
    }
    let pairs: BTreeSet<_> = keys
        .iter()
        .filter(|key| key["version"] == 1)
        .map(|key| key["check_value"].as_str().unwrap())
        .collect();
    assert_eq!(pairs.len(), 6, "each token has pairs of its own");

    let again = done(&world.init());
    let (made, next): (Vec<_>, Vec<_>) = again.lines().partition(|line| line.ends_with("already there"));
    assert_eq!(made.len(), 14, "{again}");
    assert!(next.iter().all(|line| line.starts_with("missing: ") || line.starts_with("next: ")), "{again}");
    assert_eq!(world.list(), keys);
    // Neither has more than that, and what the other signs with.
    let text = done(&world.keys(&["list"]));
    assert!(text.contains(SECOND) && !text.contains("lacks"), "{text}");
}

#[test]
fn what_one_token_wrapped_sealed_and_signed_another_takes() {
    if passed_over(Feature::Labels) {
        return;
    }
    let world = World::made();
    let mut custodians = [&world.first, &world.second].map(TestToken::custodian);
    let [one, other] = &mut custodians;
    let rows = one.enrolled();
    let (matched, _) = other.check(check(&rows, &["755224"], &[0], &[])).unwrap();
    assert_eq!(matched, Some(0), "wrapped and sealed by the one, opened and verified by the other");

    let published = one.keys();
    assert_eq!(published.len(), 2);
    assert_eq!(other.keys().iter().rev().cloned().collect::<Vec<_>>(), published, "each has its own first");
    let jws = one.attestation(&rows, claims().to_string().into_bytes());
    let (digest, signature) = taken_apart(&jws);
    assert!(other.verifies(&published[0].thumbprint(), digest, &signature));
    assert!(!other.verifies(&published[1].thumbprint(), digest, &signature), "not by another's key");

    let note = one.checkpoint(&head(1, 5, 5));
    other.write(&note, false).unwrap();
    assert_eq!(other.anchor(), Some(note));
    let next = other.checkpoint(&head(1, 6, 6));
    one.write(&next, false).unwrap();

    // Both say the same of what they share, and a custodian that was not told that keys are shared takes none.
    let hellos = [&world.first, &world.second].map(|token| {
        let mut custodian = token.spawn();
        custodian.send(&token.boot);
        custodian.hello().unwrap().shared
    });
    assert_eq!(hellos[0].len(), 3);
    assert_eq!(hellos[0], hellos[1]);
    for token in [&world.first, &world.second] {
        let mut boot = token.boot.clone();
        boot.shared_keys = false;
        let (exit, words) = token.refused(&boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED));
        assert!(words.contains("CKA_"), "{words}");
    }
}

/// A running custodian of the one that knows of no newer key of its own learns of the other's.
#[test]
fn what_another_tokens_newer_key_signed_is_looked_for() {
    if passed_over(Feature::Labels) {
        return;
    }
    let world = World::made();
    let mut late = world.second.custodian();
    done(&world.keys(&["rotate", "audit"]));
    let note = world.first.custodian().checkpoint(&head(1, 5, 5));
    crate::custodian::once_it_has_looked(|| late.write(&note, false)).unwrap();
}

#[test]
fn each_kind_is_rotated_in_both_and_retired_in_both() {
    if passed_over(Feature::Labels) {
        return;
    }
    let world = World::made();
    let label = label();
    let tokens = [label.as_str(), SECOND];
    for kind in KINDS {
        let version = if ["kek", "row", "data"].contains(&kind) { 3 } else { 2 };
        let said = done(&world.keys(&["rotate", kind]));
        assert!(said.contains(&format!("key hsm-authd/{kind}/v{version}: made")), "{said}");
        let keys = world.list();
        for token in tokens {
            let name = (kind.to_owned(), version);
            assert!(versions(&keys, token).contains(&name), "{kind}: {keys:?}");
        }
        let [first, second] = world.shared();
        assert_eq!(first, second, "after {kind}");
    }
    let mut one = world.first.custodian();
    let jws = one.enrolled();
    let jws = one.attestation(&jws, claims().to_string().into_bytes());
    let (digest, signature) = taken_apart(&jws);
    let kid = one.keys()[0].thumbprint();
    assert!(world.second.custodian().verifies(&kid, digest, &signature), "the newer pair is known too");

    for kind in KINDS {
        let version = if ["kek", "row", "data"].contains(&kind) { 2 } else { 1 };
        let said = done(&world.keys(&["retire", kind, &version.to_string()]));
        for token in tokens {
            assert!(
                said.contains(&format!("token {token}: key hsm-authd/{kind}/v{version}: retired")),
                "{said}"
            );
        }
        let again = refused(&world.keys(&["retire", kind, &version.to_string()]));
        assert!(again.contains("there is no key"), "{again}");
    }
    let keys = world.list();
    for token in tokens {
        assert!(versions(&keys, token).iter().all(|(kind, version)| {
            *version == if ["kek", "row", "data"].contains(&kind.as_str()) { 3 } else { 2 }
        }));
    }
    // What the retired ones signed verifies at both: two of each token, and two of the other.
    for token in [&world.first, &world.second] {
        assert_eq!(token.custodian().keys().len(), 4);
    }
    let newest = refused(&world.keys(&["retire", "kek", "3"]));
    assert!(newest.contains("is the newest of its kind"), "{newest}");
}

#[test]
fn while_one_is_away_nothing_is_changed_and_the_words_say_which() {
    if passed_over(Feature::Labels) {
        return;
    }
    let world = World::made();
    done(&world.keys(&["rotate", "kek"]));
    let before = world.list();
    world.second.pull();
    for arguments in [&["rotate", "kek"][..], &["rotate", "attest"], &["retire", "kek", "2"]] {
        let said = refused(&world.keys(arguments));
        assert!(
            said.contains(&format!("token {SECOND} cannot be asked: nothing was changed")),
            "{arguments:?}: {said}"
        );
    }
    // What is no folder is not made one, as a missing one would be.
    std::fs::write(world.second.tokens(), "").unwrap();
    let said = refused(&init(&world.config(), None));
    assert!(said.contains(&format!("token {SECOND} cannot be set up: no key was made")), "{said}");
    std::fs::remove_file(world.second.tokens()).unwrap();
    let listed = world.keys(&["list"]);
    let said = refused(&listed);
    assert!(said.contains(&format!("not in the list, because it cannot be asked: token {SECOND}")), "{said}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("hsm-authd/kek/v3"), "the other one is");
    std::fs::rename(world.second.tokens().with_file_name("pulled"), world.second.tokens()).unwrap();
    assert_eq!(world.list(), before);
}

#[test]
fn a_token_of_another_set_is_refused_and_left_as_it_is() {
    if passed_over(Feature::Labels) {
        return;
    }
    let mut other = TestToken::made();
    other.boot.token_label = label();
    let world = World::of(TestToken::new(), other);
    let before = world.each();
    // Of one label: they are told apart by their places.
    for output in [world.init(), world.keys(&["rotate", "kek"]), world.keys(&["retire", "kek", "1"])] {
        let said = refused(&output);
        assert!(
            said.contains(&format!(
                "token {label} (2) has another key hsm-authd/kek/v1 than token {label} (1): they are of two sets",
                label = label()
            )),
            "{said}"
        );
    }
    assert_eq!(world.each(), before);
}

/// A service with data gets a second token, which has all of it in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_joins_later_and_has_all_after_rewrap_and_retirement() {
    if passed_over(Feature::Labels) {
        return;
    }
    let mut daemon = Daemon::start_with(&["--custodians", "1", "--custody", "wrapped"], &[]);
    enrol_hotp(&daemon.connect("bank-a").await, "joined").await;
    let second = TestToken::bare();
    let config = configuration(&daemon, "both.toml", |table| {
        let hsm = section(table, "hsm");
        hsm.insert("shared_keys".into(), true.into());
        let mut replica = hsm.clone();
        replica.retain(|key, _| ["module", "token_label", "pin_file", "environment"].contains(&key));
        replica.insert("token_label".into(), SECOND.into());
        replica.insert("pin_file".into(), second.boot.pin_file.display().to_string().into());
        let environment: toml::Table =
            variables(&second).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        replica.insert("environment".into(), environment.into());
        replica.insert("folders".into(), vec![second.tokens().display().to_string()].into());
        hsm.insert("replicas".into(), vec![replica].into());
    });
    let first = crate::prepared::DEV_LABEL;
    let so_pin = daemon.dir().join("so-pin");
    let said = refused(&init(&config, Some(&so_pin)));
    assert!(said.contains("another instance is running on this database: stop it first"), "{said}");
    daemon.stop();
    assert!(
        shared_in(&listed(&daemon.dir().join("hsm-authd.toml")), [first, SECOND])[0].len() == 3,
        "none was born"
    );
    let said = done(&init(&config, Some(&so_pin)));
    assert!(
        said.contains(&format!("token {SECOND} lacks kek v1, row v1, data v1, and is not used")),
        "{said}"
    );
    assert!(said.contains("key hsm-authd/kek/v2: made in every token\n"), "{said}");
    assert!(said.contains("no service is running; the next start uses it"), "{said}");
    let [ours, theirs] = shared_in(&listed(&config), [first, SECOND]);
    assert_eq!((ours.len(), theirs.len()), (6, 3));
    assert!(theirs.iter().all(|(name, check)| ours.get(name) == Some(check)));
    let again = done(&init(&config, None));
    assert!(!again.contains("made") && again.contains("lacks"), "{again}");

    let served = Served::start(&config);
    eventually("the second one is not used", async || {
        let (status, body) = ops_get(&served.ops_url, "/readyz");
        let words = format!("token {SECOND} lacks hsm-authd/kek/v1");
        (status == 200 && body.contains(&words)).then_some(())
    })
    .await;
    done(&keys_by(&config, &["rewrap"]));
    assert!(served.stop().success());
    for kind in ["kek", "row", "data"] {
        let said = done(&keys_by(&config, &["retire", kind, "1"]));
        assert_eq!(said, format!("token {first}: key hsm-authd/{kind}/v1: retired\n"));
    }
    let text = done(&keys_by(&config, &["list"]));
    assert!(!text.contains("lacks"), "{text}");
    let [ours, theirs] = shared_in(&listed(&config), [first, SECOND]);
    assert_eq!(ours, theirs);
}
