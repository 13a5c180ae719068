//! A service with two tokens that share their keys: either does for all that is wrapped, one that is away, refuses its PIN or
//! has other keys is given up alone, and comes back by itself.

use std::fs;
use std::path::PathBuf;

use fault_module::{Fault, Kind, Vanishing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::load::Load;
use crate::modules::{Feature, passed_over};
use crate::operator::{done, keys_by};
use crate::processes::{children, eventually};
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get, section};
use crate::several_tokens::{SECOND, init, variables};
use crate::submissions::{Crowd, Outcome};
use crate::token::TestToken;

/// The token that `dev` made, behind a fault module, and a second one.
pub struct Pair {
    pub daemon: Daemon,
    second: TestToken,
    pub faults: FaultModule,
    pub config: PathBuf,
}

impl Pair {
    /// Configured, and each left as it is.
    fn with(second: TestToken) -> Self {
        let mut daemon = Daemon::start_with(&["--custodians", "1", "--custody", "wrapped"], &[]);
        daemon.stop();
        let mut faults = None;
        let config = configuration(&daemon, "both.toml", |table| {
            let hsm = section(table, "hsm");
            hsm.insert("shared_keys".into(), true.into());
            let mut replica = hsm.clone();
            replica.retain(|key, _| ["module", "environment"].contains(&key));
            replica.insert("token_label".into(), second.boot.token_label.clone().into());
            replica.insert("pin_file".into(), second.boot.pin_file.display().to_string().into());
            replica.insert("folders".into(), vec![second.tokens().display().to_string()].into());
            let environment = section(&mut replica, "environment");
            environment.extend(variables(&second).map(|(name, conf)| (name.to_owned(), conf.into())));
            let target = hsm["module"].as_str().unwrap().to_owned();
            let module = FaultModule::new(&daemon.dir(), target.as_ref());
            hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
            module.configure(hsm);
            hsm.insert("replicas".into(), vec![replica].into());
            faults = Some(module);
        });
        Self { daemon, second, faults: faults.unwrap(), config }
    }

    /// One set, with a key of each kind that is shared.
    pub async fn joined() -> Self {
        let mut second = TestToken::bare();
        second.boot.token_label = SECOND.to_owned();
        let pair = Self::with(second);
        done(&init(&pair.config, Some(&pair.daemon.dir().join("so-pin"))));
        let served = pair.serve();
        // Not used as long as there may be rows under keys that it does not have.
        await_words(&served, &["ready\n", "(lacks-keys)", "lacks hsm-authd/kek/v1"]).await;
        done(&keys_by(&pair.config, &["rewrap"]));
        assert!(served.stop().success());
        for kind in ["kek", "row", "data"] {
            done(&keys_by(&pair.config, &["retire", kind, "1"]));
        }
        pair
    }

    pub fn serve(&self) -> Served {
        Served::start(&self.config)
    }

    async fn crowd(&self, served: &Served) -> Crowd {
        Crowd::open(&served.url, &self.daemon.identity("bank-a")).await
    }
}

/// Waits until `/readyz` is ready, and says this besides.
pub async fn await_words(served: &Served, words: &[&str]) -> String {
    eventually(&format!("/readyz says {words:?}"), async || {
        let (status, body) = ops_get(&served.ops_url, "/readyz");
        (status == 200 && words.iter().all(|word| body.contains(word))).then_some(body)
    })
    .await
}

fn of_token(served: &Served, sample: &str, token: &str) -> f64 {
    Scrape::at(&served.ops_url).value(sample, &[("token", token)])
}

/// Waits until so many custodians of each token are up.
pub async fn await_up(served: &Served, each: [f64; 2]) {
    eventually(&format!("custodians {each:?}"), async || {
        let up = ["0", "1"].map(|token| of_token(served, "hsm_authd_token_custodians_up", token));
        (up == each).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_token_serves_what_the_other_one_made_and_a_lost_one_comes_back_by_itself() {
    if passed_over(Feature::Removal) {
        return;
    }
    let pair = Pair::joined().await;
    let served = pair.serve();
    await_up(&served, [1.0, 1.0]).await;
    assert_eq!(ops_get(&served.ops_url, "/readyz"), (200, "ready\n".to_owned()));
    let crowd = pair.crowd(&served).await;
    let both = crowd.enrol("hotp", None, 4).await;
    let mut load = Load::begin(&crowd).await;

    // The first one is gone: every answer is right, or 503, and then all come from the second.
    let gone = pair.faults.set(Fault::everywhere(Kind::Vanish(Vanishing::Removed)));
    await_up(&served, [0.0, 1.0]).await;
    load.progress().await;
    let body = await_words(&served, &["ready\n", "(token-away)"]).await;
    assert_eq!(body.lines().count(), 2, "{body}");
    let connection = crowd.connection(1);
    for token in &both {
        assert_eq!(
            token.submission(0).send(connection).await,
            Outcome::Yes,
            "nobody waits for the first one"
        );
    }
    let of_second = crowd.enrol("hotp", None, 4).await;
    assert_eq!(Scrape::at(&served.ops_url).sum("hsm_authd_hsm_breaker_open"), 0.0);
    gone.lift();
    await_up(&served, [1.0, 1.0]).await;
    load.progress().await;

    // And the other way round.
    let custodians = children(served.pid(), "custodian");
    pair.second.pull();
    for pid in custodians {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    await_up(&served, [1.0, 0.0]).await;
    load.progress().await;
    for (counter, tokens) in [(1, &both), (0, &of_second)] {
        for token in tokens {
            assert_eq!(token.submission(counter).send(connection).await, Outcome::Yes);
        }
    }
    fs::rename(pair.second.tokens().with_file_name("pulled"), pair.second.tokens()).unwrap();
    await_up(&served, [1.0, 1.0]).await;
    load.progress().await;
    let report = load.end().await;
    println!("{report:?}");
    assert_eq!(ops_get(&served.ops_url, "/readyz").1, "ready\n");
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_other_keys_is_refused_with_words_and_the_first_one_serves() {
    if passed_over(Feature::Labels) {
        return;
    }
    let mut other = TestToken::made();
    other.boot.shared_keys = true;
    let pair = Pair::with(other);
    let label = pair.second.boot.token_label.clone();
    let served = pair.serve();
    let words = format!("token {label}: its key hsm-authd/kek/v1 is another one than token hsm-authd-dev's");
    await_words(&served, &["ready\n", "(other-keys)", &words]).await;
    await_up(&served, [1.0, 0.0]).await;
    let crowd = pair.crowd(&served).await;
    let tokens = crowd.enrol("hotp", None, 4).await;
    for token in &tokens {
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
    }
    let log = served.log();
    assert_eq!(log.lines().filter(|line| line.contains(&words)).count(), 1, "{log}");
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_refuses_its_pin_is_given_up_alone_until_somebody_writes_another_one() {
    if passed_over(Feature::Labels) {
        return;
    }
    let pair = Pair::joined().await;
    let pin_file = pair.second.boot.pin_file.clone();
    let pin = fs::read(&pin_file).unwrap();
    fs::write(&pin_file, "0000").unwrap();
    let mut served = pair.serve();
    let refused = async |served: &Served| {
        eventually("it is refused", async || {
            (of_token(served, "hsm_authd_token_pin_refused", "1") == 1.0).then_some(())
        })
        .await;
    };
    let attempts = |served: &Served| {
        let log = served.log();
        log.lines()
            .filter(|line| line.starts_with("hsm-authd: ") && line.contains("refuses the user PIN"))
            .count()
    };
    refused(&served).await;
    await_words(&served, &["ready\n", "(pin-refused)"]).await;
    // An operator who asks for others does not ask for that.
    let before = children(served.pid(), "custodian");
    served.reload();
    eventually("the first token's is another one", async || {
        let pids = children(served.pid(), "custodian");
        (pids.len() == 1 && pids != before).then_some(())
    })
    .await;
    await_up(&served, [1.0, 0.0]).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(attempts(&served), 1, "tried once");

    fs::write(&pin_file, pin).unwrap();
    await_up(&served, [1.0, 1.0]).await;
    assert_eq!(of_token(&served, "hsm_authd_token_pin_refused", "1"), 0.0);
    assert_eq!(ops_get(&served.ops_url, "/readyz").1, "ready\n");

    // Of one that works, the next one would be refused: ready, and not silent about it.
    fs::write(&pin_file, "0000").unwrap();
    served.reload();
    refused(&served).await;
    await_up(&served, [1.0, 1.0]).await;
    await_words(&served, &["ready\n", "the next custodian that is lost is not replaced (pin-refused)"]).await;
    assert_eq!(attempts(&served), 2, "each file once");
    assert!(served.runs());
    assert_eq!(served.stop().code(), Some(0));
}
