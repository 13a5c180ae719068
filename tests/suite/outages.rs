//! The HSM is away, for a while or when the service starts: what callers, operators and their monitoring are told, and how
//! soon after its return somebody is let in again.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fault_module::sys::CKR_DEVICE_ERROR;
use fault_module::{Fault, Function, Kind, Vanishing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value as Json;

use crate::client::Connection;
use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::modules::first_function;
use crate::processes::{children, eventually};
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get, section};
use crate::submissions::{Crowd, Outcome, Token};
use crate::token::BINARY;

/// From the end of a fault to the first yes.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// How long a caller waits who is told that nobody is there.
const AT_ONCE: Duration = Duration::from_millis(500);
/// As long as no test lasts.
/// EX_CONFIG: what a restart cannot mend.
const NEEDS_OPERATOR: Option<i32> = Some(78);
const HOUR: Duration = Duration::from_secs(3_600);
/// How often callers come.
const COME_EVERY: Duration = Duration::from_millis(50);

/// What `dev` left, with a fault module before SoftHSM.
struct Place {
    daemon: Daemon,
    faults: FaultModule,
    config: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::with_custodians(2)
    }

    fn with_custodians(count: u16) -> Self {
        let count = count.to_string();
        let mut daemon = Daemon::start_with(&["--custodians", &count, "--custody", "wrapped"], &[]);
        daemon.stop();
        let mut faults = None;
        let config = configuration(&daemon, "faulty.toml", |config| {
            let hsm = section(config, "hsm");
            let target = hsm["module"].as_str().unwrap().to_owned();
            let module = FaultModule::new(&daemon.dir(), target.as_ref());
            hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
            module.configure(hsm);
            faults = Some(module);
        });
        Self { daemon, faults: faults.unwrap(), config }
    }

    async fn crowd(&self, served: &Served) -> Crowd {
        Crowd::open(&served.url, &self.daemon.identity("bank-a")).await
    }

    fn pin_file(&self) -> PathBuf {
        self.daemon.dir().join("pin")
    }
}

/// A service that is not ready yet, and can be asked why.
async fn spawned(place: &Place) -> Served {
    let served = Served::spawn(&place.config);
    let address = served.ops_url.strip_prefix("http://").unwrap();
    eventually("its operator's listener", async || TcpStream::connect(address).ok()).await;
    served
}

fn readyz(served: &Served) -> (u16, String) {
    ops_get(&served.ops_url, "/readyz")
}

/// Waits until `/readyz` is not ready, with these words.
async fn await_words(served: &Served, words: &[&str]) -> String {
    eventually(&format!("/readyz says {words:?}"), async || {
        let (status, body) = readyz(served);
        (status == 503 && words.iter().all(|word| body.contains(word))).then_some(body)
    })
    .await
}

async fn await_up(served: &Served, count: u16) {
    eventually("custodians", async || {
        (Scrape::at(&served.ops_url).sum("hsm_authd_custodians_up") == f64::from(count)).then_some(())
    })
    .await;
}

/// How long it takes until a right code is accepted, of who comes again and again.
async fn until_yes(token: &Token, counter: u64, connection: &Connection) -> Duration {
    let begun = Instant::now();
    let yes = async || {
        let outcome = token.submission(counter).send(connection).await;
        assert!(matches!(outcome, Outcome::Yes | Outcome::Unavailable), "{outcome:?}");
        (outcome == Outcome::Yes).then_some(())
    };
    eventually("a yes", yes).await;
    begun.elapsed()
}

/// Lines of the log with this message.
fn with_message<'a>(lines: &'a [Json], message: &'a str) -> impl Iterator<Item = &'a Json> {
    lines.iter().filter(move |line| line["message"] == message)
}

fn parsed(lines: &[String]) -> Vec<Json> {
    lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What was said in plain words, for who reads along.
fn plain(lines: &[String]) -> Vec<&String> {
    lines.iter().filter(|line| serde_json::from_str::<Json>(line).is_err()).collect()
}

/// One outage of a service, in the midst of callers.
async fn outage(kind: Kind, seconds: u64, causes: &[&str]) {
    let place = Place::new();
    let served = Served::start(&place.config);
    let crowd = place.crowd(&served).await;
    let connection = crowd.connection(1);
    let token = Token::enrol(connection, "hotp", None).await;
    await_up(&served, 2).await;
    served.said();

    let fault = place.faults.set(Fault::everywhere(kind));
    let begun = Instant::now();
    let (mut asked, mut at_once, mut seen) = (0, 0, Vec::new());
    while begun.elapsed() < Duration::from_secs(seconds) {
        let was_open = Scrape::at(&served.ops_url).sum("hsm_authd_hsm_breaker_open") == 1.0;
        let came = Instant::now();
        let outcome = token.submission(0).send(connection).await;
        assert_eq!(outcome, Outcome::Unavailable, "{kind:?}");
        asked += 1;
        if was_open {
            at_once += 1;
            assert!(came.elapsed() < AT_ONCE, "{kind:?}: {:?}", came.elapsed());
            let (status, body) = readyz(&served);
            assert!(status == 503 && body.lines().count() == 1, "{body}");
            let scrape = Scrape::at(&served.ops_url);
            let of = |cause: &&&str| scrape.value("hsm_authd_custodians_away", &[("cause", cause)]) >= 1.0;
            assert!(causes.iter().any(|cause| of(&cause)), "{}", scrape.text);
            assert!(causes.iter().any(|cause| body.contains(&format!("({cause})"))), "{body}");
            assert!(body.contains("it is tried again by itself"), "{body}");
            assert!(scrape.sum("hsm_authd_hsm_away_seconds") > 0.0);
            assert_eq!(scrape.sum("hsm_authd_custodians_up"), 0.0);
            seen.push(body);
        }
        tokio::time::sleep(COME_EVERY).await;
    }
    fault.lift();
    let recovery = until_yes(&token, 0, connection).await;
    println!(
        "{kind:?} for {seconds} s: {recovery:.2?} from its end to a yes; {asked} were told to come back, {at_once} of \
         them while the breaker was open; {:?}",
        seen.last().map(|line| line.trim_end())
    );
    assert!(recovery < RECOVERY_MAX, "{kind:?}: {recovery:?}");
    assert_eq!(token.submission(0).send(connection).await, Outcome::No, "it was used once");
    eventually("it is ready", async || (readyz(&served).0 == 200).then_some(())).await;
    await_up(&served, 2).await;
    assert_eq!(readyz(&served).1, "ready\n");
    let scrape = Scrape::at(&served.ops_url);
    for sample in ["hsm_authd_hsm_breaker_open", "hsm_authd_custodians_away", "hsm_authd_hsm_away_seconds"] {
        assert_eq!(scrape.sum(sample), 0.0, "{sample}");
    }

    let said = served.said();
    assert!(plain(&said).is_empty(), "{:?}", plain(&said));
    let lines = parsed(&said);
    let told: Vec<_> = with_message(&lines, "the HSM cannot be used; it is tried again").collect();
    let reasons: std::collections::BTreeSet<_> = told.iter().map(|line| line["reason"].to_string()).collect();
    assert_eq!(told.len(), reasons.len(), "each once: {told:?}");
    assert!(told.len() <= 4, "{told:?}");
    let again: Vec<_> = with_message(&lines, "the HSM can be used again").collect();
    assert_eq!(again.len(), usize::from(!told.is_empty()), "{again:?}");
    let others = lines.iter().filter(|line| line["message"] != "request");
    let others: Vec<_> = others.filter(|line| !told.contains(line)).collect();
    assert!(others.len() < 30, "{} lines: {others:#?}", others.len());
    drop(crowd);
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_was_pulled_is_used_again_within_5_s_of_its_return() {
    for seconds in [1, 3, 8] {
        outage(Kind::Vanish(Vanishing::Removed), seconds, &["token-away"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_left_without_a_word_is_used_again_within_5_s_of_its_return() {
    for seconds in [1, 3, 8] {
        outage(Kind::Vanish(Vanishing::Quietly), seconds, &["token-away", "keys"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_that_refuses_everything_is_used_again_within_5_s_of_its_return() {
    for seconds in [1, 3, 8] {
        outage(Kind::Fail(CKR_DEVICE_ERROR), seconds, &["module"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_that_hangs_is_used_again_within_5_s_of_its_return() {
    for seconds in [1, 3, 8] {
        outage(Kind::Hang(HOUR), seconds, &["hangs"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_never_comes_back_from_the_fault_costs_no_more() {
    for custodians in [1, 2] {
        let place = Place::with_custodians(custodians);
        let served = Served::start(&place.config);
        let crowd = place.crowd(&served).await;
        let token = Token::enrol(crowd.connection(1), "hotp", None).await;
        await_up(&served, custodians).await;
        let before = children(served.pid(), "custodian");
        let fault = place.faults.set(Fault::everywhere(Kind::Hang(HOUR)));
        let asking = tokio::spawn({
            let (submission, crowd) = (token.submission(0), crowd.clone());
            async move { submission.send(crowd.connection(1)).await }
        });
        await_words(&served, &["(hangs)"]).await;
        // Until the next one hangs.
        let hangs = eventually("another start", async || {
            let pids = children(served.pid(), "custodian");
            let is_there = |pid: &i32| {
                let counts = place.faults.counts();
                let one = counts.of(pid.cast_unsigned());
                !before.contains(pid) && one.is_some_and(|one| one.fired == 1)
            };
            pids.into_iter().find(is_there)
        })
        .await;
        // A network's peer that never heard of it: the call does not end with the fault.
        kill(Pid::from_raw(hangs), Signal::SIGSTOP).unwrap();
        fault.lift();
        let recovery = until_yes(&token, 0, crowd.connection(2)).await;
        println!("{custodians} custodians: {recovery:.2?} from the fault's end to a yes");
        assert!(recovery < RECOVERY_MAX, "{recovery:?}");
        assert_eq!(asking.await.unwrap(), Outcome::Unavailable);
        drop(crowd);
        assert_eq!(served.stop().code(), Some(0));
    }
}

/// Whether who connects is sent away at once, as if nobody were there.
fn is_turned_away(served: &Served) -> bool {
    let Ok(mut early) = TcpStream::connect(served.url.strip_prefix("https://").unwrap()) else { return true };
    early.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    match early.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_starts_before_its_hsm_waits_and_becomes_ready_by_itself() {
    let refusal = format!("{:?}: CKR_DEVICE_ERROR", first_function());
    for (kind, words) in [
        (Kind::Vanish(Vanishing::Removed), &["(token-away)", "do not run `hsm-authd init`"][..]),
        (Kind::Vanish(Vanishing::Quietly), &["do not run `hsm-authd init`"]),
        (Kind::Fail(CKR_DEVICE_ERROR), &["(module)", &refusal]),
        (Kind::Segfault, &["(died)"]),
    ] {
        let place = Place::new();
        let fault = place.faults.set(Fault::everywhere(kind));
        let mut served = spawned(&place).await;
        let told = await_words(&served, words).await;
        assert!(told.contains("it is tried again by itself") && told.lines().count() == 1, "{told}");
        assert_eq!(ops_get(&served.ops_url, "/livez").0, 200);
        assert!(is_turned_away(&served), "{kind:?}");
        // A few more starts.
        let starts = place.faults.counts().0.len();
        place.faults.until("more starts", move |counts| counts.0.len() >= starts + 3).await;
        assert!(served.runs());
        let before = served.said();
        assert!(with_message(&parsed(&before), "ready").next().is_none(), "{before:?}");
        assert!(plain(&before).is_empty(), "{before:?}");
        assert!(before.len() < 20, "{before:#?}");

        fault.lift();
        let begun = Instant::now();
        served.await_ready();
        println!("{kind:?} at the start: {:.2?} from its end to ready; {}", begun.elapsed(), told.trim_end());
        assert!(begun.elapsed() < RECOVERY_MAX, "{:?}", begun.elapsed());
        assert_eq!(readyz(&served).0, 200);
        let crowd = place.crowd(&served).await;
        let token = Token::enrol(crowd.connection(1), "hotp", None).await;
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
        drop(crowd);
        assert_eq!(served.stop().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_whose_token_comes_to_its_folder_later_waits_for_it() {
    let place = Place::new();
    let (folder, away) = (place.daemon.dir().join("token"), place.daemon.dir().join("token.away"));
    std::fs::rename(&folder, &away).unwrap();
    let served = spawned(&place).await;
    await_words(&served, &["the HSM cannot be used", "it is tried again by itself"]).await;
    // SoftHSM has made an empty one, perhaps.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::rename(&away, &folder).unwrap();
    let begun = Instant::now();
    served.await_ready();
    assert!(begun.elapsed() < RECOVERY_MAX, "{:?}", begun.elapsed());
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_hangs_goes_on_when_the_hsm_does() {
    for function in [Function::C_Initialize, Function::C_Login, Function::C_FindObjects] {
        let place = Place::new();
        let fault = place.faults.set(Fault::of(function, Kind::Hang(HOUR)));
        let mut served = spawned(&place).await;
        fault.fired().await;
        let (status, body) = readyz(&served);
        assert_eq!((status, body.as_str()), (503, "checking the database\n"), "{function:?}");
        fault.lift();
        let begun = Instant::now();
        served.await_ready();
        println!("{function:?} hung at the start: {:.2?} from its end to ready", begun.elapsed());
        assert!(begun.elapsed() < RECOVERY_MAX, "{function:?}: {:?}", begun.elapsed());
        await_up(&served, 2).await;
        let (logins, log) = (place.faults.counts().calls(Function::C_Login), served.log());
        assert_eq!(logins, 2, "{function:?}: nobody logs in twice; {log}");
        assert!(served.runs());
        assert_eq!(served.stop().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_waits_for_its_hsm_ends_when_it_is_told() {
    for kind in [Kind::Vanish(Vanishing::Removed), Kind::Hang(HOUR)] {
        let place = Place::new();
        let fault = place.faults.set(Fault::everywhere(kind));
        let served = spawned(&place).await;
        fault.fired().await;
        if kind != Kind::Hang(HOUR) {
            await_words(&served, &["the HSM cannot be used"]).await;
        }
        let begun = Instant::now();
        assert_eq!(served.stop().code(), Some(0), "{kind:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{kind:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_tried_exactly_once_however_long_the_hsm_was_away() {
    for away_first in [false, true] {
        let place = Place::new();
        std::fs::write(place.pin_file(), "0000").unwrap();
        let fault = away_first.then(|| place.faults.set(Fault::everywhere(Kind::Vanish(Vanishing::Removed))));
        let mut served = spawned(&place).await;
        if let Some(fault) = fault {
            await_words(&served, &["(token-away)"]).await;
            let starts = place.faults.counts().0.len();
            place.faults.until("more starts", move |counts| counts.0.len() >= starts + 3).await;
            assert_eq!(place.faults.counts().calls(Function::C_Login), 0);
            fault.lift();
        }
        assert_eq!(served.ended().code(), NEEDS_OPERATOR);
        let said = served.last_words();
        assert_eq!(place.faults.counts().calls(Function::C_Login), 1, "{away_first}: {said:#?}");
        let plain = plain(&said);
        assert!(plain.len() == 1 && plain[0].contains("refuses the user PIN"), "{plain:?}");
        let all = said.iter().filter(|line| line.contains("refuses the user PIN")).count();
        assert_eq!(all, 1, "{said:?}");
    }
}

/// How one more start ends, after the file was handed over anew, as systemd does before each; and what it says.
fn start_again(place: &Place, config: &Path, credential: Option<&str>) -> (Option<i32>, String) {
    let credentials = place.daemon.dir().join("credentials");
    if let Some(pin) = credential {
        let _ = std::fs::remove_dir_all(&credentials);
        std::fs::create_dir(&credentials).unwrap();
        std::fs::write(credentials.join("pin"), pin).unwrap();
    }
    let mut serve = Command::new(BINARY);
    serve.args(["serve", "--config"]).arg(config);
    serve.envs(credential.map(|_| ("CREDENTIALS_DIRECTORY", &credentials)));
    let output = serve.output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A socket of systemd's starts the service for whoever connects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pin_is_tried_by_no_later_start_either() {
    for credential in [None, Some("0000")] {
        let place = Place::new();
        let config = configuration(&place.daemon, "once.toml", |config| {
            let hsm = section(config, "hsm");
            let faulty: toml::Table = std::fs::read_to_string(&place.config).unwrap().parse().unwrap();
            *hsm = faulty["hsm"].as_table().unwrap().clone();
            hsm.insert("pin_file".into(), "pin".into());
        });
        let right = std::fs::read(place.pin_file()).unwrap();
        std::fs::write(place.pin_file(), "0000").unwrap();
        let (code, said) = start_again(&place, &config, credential);
        assert_eq!(code, NEEDS_OPERATOR, "{said}");
        assert!(said.contains("refuses the user PIN"), "{said}");
        for _ in 0..3 {
            let (code, said) = start_again(&place, &config, credential);
            assert_eq!(code, NEEDS_OPERATOR, "{said}");
            assert!(
                said.contains("has refused the PIN at an earlier start") && said.contains("check"),
                "{said}"
            );
        }
        assert_eq!(place.faults.counts().calls(Function::C_Login), 1, "{credential:?}");
        // The way out: the right one in its place, and of a credential a look at it.
        std::fs::write(place.pin_file(), right).unwrap();
        if credential.is_some() {
            let output = Command::new(BINARY).args(["check", "--config"]).arg(&config).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert!(said.contains("the PIN that it refused is another one now"), "{said}");
        }
        let served = Served::start(&config);
        assert_eq!(served.stop().code(), Some(0));
        let left = std::fs::read_dir(place.daemon.store()).unwrap().flatten().map(|entry| entry.file_name());
        assert!(
            left.into_iter().all(|name| !name.to_string_lossy().contains("pin-refused")),
            "{credential:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_that_is_refused_slowly_is_not_tried_again() {
    let place = Place::with_custodians(1);
    let served = Served::start(&place.config);
    await_up(&served, 1).await;
    let mut served = served;
    // Longer than any other step of a start may take.
    let slow = Kind::Latency(fault_module::Latency::Uniform(Duration::from_secs(4), Duration::from_secs(4)));
    let set = place.faults.set(Fault::of(Function::C_Login, slow));
    std::fs::write(place.pin_file(), "0000").unwrap();
    kill(Pid::from_raw(children(served.pid(), "custodian")[0]), Signal::SIGKILL).unwrap();
    assert_eq!(served.ended().code(), NEEDS_OPERATOR);
    assert_eq!(set.count(), 1, "{:#?}", served.last_words());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_that_is_refused_when_a_lost_login_is_renewed_is_tried_once_as_well() {
    let place = Place::new();
    let mut served = Served::start(&place.config);
    let crowd = place.crowd(&served).await;
    let token = Token::enrol(crowd.connection(1), "hotp", None).await;
    await_up(&served, 2).await;
    let before = place.faults.counts().calls(Function::C_Login);
    std::fs::write(place.pin_file(), "0000").unwrap();
    let forgotten = place.faults.set(Fault::of(Function::C_SignInit, Kind::ForgetLogin).once());
    let outcome = token.submission(0).send(crowd.connection(1)).await;
    assert!(matches!(outcome, Outcome::Yes | Outcome::Unavailable | Outcome::Lost), "{outcome:?}");
    // It is given up, and the other one goes on; with that one the service ends.
    let refused = "the token refuses the PIN";
    eventually(refused, async || served.log().contains(refused).then_some(())).await;
    eventually("one is left", async || (children(served.pid(), "custodian").len() == 1).then_some(())).await;
    assert_eq!(token.submission(1).send(crowd.connection(1)).await, Outcome::Yes);
    kill(Pid::from_raw(children(served.pid(), "custodian")[0]), Signal::SIGKILL).unwrap();
    assert_eq!(served.ended().code(), NEEDS_OPERATOR);
    assert_eq!(forgotten.count(), 1);
    assert_eq!(place.faults.counts().calls(Function::C_Login), before + 1, "{:#?}", served.last_words());
}

/// Such as a disk that is not mounted yet, or a library that is being upgraded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_what_is_configured_and_not_there_and_names_it() {
    let place = Place::new();
    let path = |name: &str| place.daemon.dir().join(name);
    for name in ["module.so", "pin"] {
        std::fs::create_dir(path(&format!("of-{name}"))).unwrap();
    }
    let right = std::fs::read(place.pin_file()).unwrap();
    let configured = configuration(&place.daemon, "elsewhere.toml", |config| {
        let faulty: toml::Table = std::fs::read_to_string(&place.config).unwrap().parse().unwrap();
        let hsm = section(config, "hsm");
        *hsm = faulty["hsm"].as_table().unwrap().clone();
        hsm.insert("module".into(), path("of-module.so/module.so").to_str().unwrap().into());
        hsm.insert("pin_file".into(), path("of-pin/pin").to_str().unwrap().into());
    });
    let put = |name: &str, content: &[u8]| {
        let unfinished = path("unfinished");
        std::fs::write(&unfinished, content).unwrap();
        std::fs::rename(unfinished, path(name)).unwrap();
    };
    let module = std::fs::read(FaultModule::library()).unwrap();
    put("of-module.so/module.so", &module);
    put("of-pin/pin", &right);
    // Nothing, or what is no such thing.
    for (name, content, words) in [
        ("of-module.so/module.so", None, "module.so does not load"),
        ("of-module.so/module.so", Some("text"), "module.so does not load"),
        ("of-pin/pin", None, "pin/pin cannot be opened"),
        ("of-pin/pin", Some("\n"), "pin/pin is empty"),
    ] {
        let away = std::fs::read(path(name)).unwrap();
        match content {
            Some(content) => put(name, content.as_bytes()),
            None => std::fs::remove_file(path(name)).unwrap(),
        }
        let check = Command::new(BINARY).args(["check", "--config"]).arg(&configured).output().unwrap();
        let refused = String::from_utf8(check.stderr).unwrap();
        assert!(check.status.code() == Some(1) && refused.contains(words), "{refused}");

        let mut served = Served::spawn(&configured);
        let address = served.ops_url.strip_prefix("http://").unwrap().to_owned();
        eventually("its operator's listener", async || TcpStream::connect(&address).ok()).await;
        let told =
            await_words(&served, &["(configuration)", words, "mend that", "tried again by itself"]).await;
        assert!(told.lines().count() == 1 && is_turned_away(&served), "{told}");
        let labels = [("cause", "configuration")];
        let failures =
            || Scrape::at(&served.ops_url).value("hsm_authd_custodian_start_failures_total", &labels);
        let before = failures();
        eventually("more starts", async || (failures() >= before + 3.0).then_some(())).await;
        assert!(served.runs());
        let said = served.said();
        assert!(plain(&said).is_empty() && said.len() < 20, "{said:#?}");
        assert_eq!(said.iter().filter(|line| line.contains(words)).count(), 1, "{said:#?}");

        put(name, &away);
        let begun = Instant::now();
        served.await_ready();
        println!("{name}: {:.2?} from its return to ready; {}", begun.elapsed(), told.trim_end());
        assert!(begun.elapsed() < RECOVERY_MAX, "{:?}", begun.elapsed());
        assert_eq!(served.stop().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_gone_while_it_serves_ends_nothing_and_is_named() {
    let place = Place::with_custodians(1);
    let mut served = Served::start(&place.config);
    let pin = std::fs::read(place.pin_file()).unwrap();
    std::fs::remove_file(place.pin_file()).unwrap();
    served.said();
    kill(Pid::from_raw(children(served.pid(), "custodian")[0]), Signal::SIGKILL).unwrap();
    let told = await_words(&served, &["(configuration)", "the PIN file", "mend that"]).await;
    let failures = || {
        let labels = [("cause", "configuration")];
        Scrape::at(&served.ops_url).value("hsm_authd_custodian_start_failures_total", &labels)
    };
    let before = failures();
    eventually("more starts", async || (failures() >= before + 2.0).then_some(())).await;
    let said = served.said();
    assert_eq!(said.iter().filter(|line| line.contains("the PIN file")).count(), 1, "{told}: {said:?}");
    std::fs::write(place.pin_file(), pin).unwrap();
    eventually("it is ready", async || (readyz(&served).0 == 200).then_some(())).await;
    assert!(served.runs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_custodian_that_does_not_come_up_is_seen_and_costs_nobody_anything() {
    let place = Place::new();
    let served = Served::start(&place.config);
    let crowd = place.crowd(&served).await;
    let token = Token::enrol(crowd.connection(1), "hotp", None).await;
    await_up(&served, 2).await;
    served.said();
    let fault = place.faults.set(Fault::of(Function::C_Initialize, Kind::Fail(CKR_DEVICE_ERROR)));
    kill(Pid::from_raw(children(served.pid(), "custodian")[0]), Signal::SIGKILL).unwrap();
    eventually("a failed start or more", async || (fault.count() >= 9).then_some(())).await;
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
    let (status, body) = readyz(&served);
    assert!(status == 200 && body.starts_with("ready\ncustodian ") && body.contains("(module)"), "{body}");
    let scrape = Scrape::at(&served.ops_url);
    assert_eq!(scrape.sum("hsm_authd_custodians_up"), 1.0);
    assert_eq!(scrape.value("hsm_authd_custodians_away", &[("cause", "module")]), 1.0);
    assert_eq!(scrape.sum("hsm_authd_hsm_breaker_open"), 0.0);
    let lines = parsed(&served.said());
    assert_eq!(with_message(&lines, "custodian did not come up").count(), 1, "{lines:?}");
    fault.lift();
    await_up(&served, 2).await;
    assert_eq!(readyz(&served).1, "ready\n");
}
