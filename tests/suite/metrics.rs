//! What is counted is what happened, and `docs/metrics.md` knows all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hsm_authd::dev::pki::{AlternativeName, Authority, Identity as Issued, Purpose, Validity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bank::{act, delete, done, failed, locked, path, refused};
use crate::client::{Connection, Http, Identity, tls_stream};
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};
use crate::failing_disk::FailingDisk;
use crate::permissions::ROUTES;
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get};
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Outcome, Token};

const NOW: u64 = 1_800_000_000;
/// A counter that no window here reaches, so that its code is wrong.
const FAR: u64 = 500_000;
const VERIFY: &str = "/v1/credentials/{id}/verify";

/// The table of the documentation that begins with this header: its cells.
fn table(header: &str) -> Vec<Vec<String>> {
    let document = include_str!("../../docs/metrics.md");
    let (_, rows) = document.split_once(header).expect(header);
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

/// The words between backticks.
fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_has_every_metric_and_no_other() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    // So that the series that appear with their first request are there.
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    let scrape = Scrape::of(&daemon);
    let shown: BTreeSet<_> = scrape
        .families
        .iter()
        .map(|(name, family)| {
            let keys = family.samples.keys().flat_map(|(_, labels)| labels.keys());
            let keys: BTreeSet<String> = keys.filter(|key| *key != "le").cloned().collect();
            (name.clone(), family.kind.clone(), keys)
        })
        .collect();
    let rows = table("| Name | Type | Labels | Unit | What it means | Alert on |");
    let documented: BTreeSet<_> = rows
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone(), quoted(&row[2])))
        .collect();
    assert_eq!(rows.len(), documented.len(), "a row is there twice");
    assert_eq!(shown, documented);
    for row in &rows {
        assert!(row.len() == 6 && row[3..].iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_has_every_value_of_a_label() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    let scrape = Scrape::of(&daemon);
    let mut shown: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (name, family) in &scrape.families {
        for (key, value) in family.samples.keys().flat_map(|(_, labels)| labels) {
            shown.entry((name.clone(), key.clone())).or_default().insert(value.clone());
        }
    }
    let text = |cell: &str| cell.trim_matches('`').to_owned();
    let rows = table("| Metric | Label | Values |");
    let documented: BTreeMap<_, _> =
        rows.iter().map(|row| ((text(&row[0]), text(&row[1])), quoted(&row[2]))).collect();
    for (label, values) in &shown {
        let (name, key) = (label.0.as_str(), label.1.as_str());
        match (name, key) {
            (_, "le") => {}
            // These appear when they come about.
            (_, "route") => {
                let routes: BTreeSet<_> = ROUTES.iter().map(|(_, route, _)| *route).chain(["none"]).collect();
                assert!(values.iter().all(|value| routes.contains(&**value)), "{name}: {values:?}");
            }
            (_, "token") => assert_eq!(*values, BTreeSet::from(["0".to_owned()]), "{name}"),
            (_, "custodian") => {
                assert_eq!(*values, BTreeSet::from(["0".to_owned(), "1".to_owned()]), "{name}")
            }
            (_, "version") => assert!(values.contains(env!("CARGO_PKG_VERSION")) && values.len() == 1),
            ("hsm_authd_requests_total", _) => assert!(values.is_subset(&documented[label]), "{label:?}"),
            _ => assert_eq!(Some(values), documented.get(label), "{label:?}"),
        }
    }
    for label in documented.keys() {
        assert!(shown.contains_key(label), "{label:?} is only documented");
    }
}

/// What these counters show now that they did not before, by their label; for `requests`, by route, method
/// and status.
fn requests(scrape: &Scrape) -> BTreeMap<[String; 3], f64> {
    let samples = &scrape.families["hsm_authd_requests_total"].samples;
    let labels = |(_, labels): &(String, _)| {
        let labels: &crate::scrape::Labels = labels;
        ["route", "method", "status"].map(|key| labels[key].clone())
    };
    samples.iter().map(|(key, value)| (labels(key), *value)).collect()
}

fn expected<const N: usize>(counts: [(&str, u32); N]) -> BTreeMap<&str, f64> {
    counts.into_iter().map(|(label, count)| (label, f64::from(count))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_is_what_is_counted() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let fresh = Scrape::of(&daemon);
    for counter in ["hsm_authd_verdicts_total", "hsm_authd_requests_total"] {
        assert_eq!(fresh.sum(counter), 0.0, "{counter}");
    }
    assert_eq!(fresh.counted("hsm_authd_events_total"), expected([("service.started", 1)]));

    let id = enrol_hotp(&bank, "unmistakable-account").await;
    for counter in 0..3 {
        done(&verify(&bank, &id, &rfc_code(counter)).await);
    }
    for _ in 0..2 {
        failed(&verify(&bank, &id, &rfc_code(2)).await);
    }
    for _ in 0..5 {
        failed(&verify(&bank, &id, &rfc_code(FAR)).await);
    }
    for _ in 0..4 {
        locked(&verify(&bank, &id, &rfc_code(3)).await);
    }
    let malformed = [("content-type", "application/json")];
    for _ in 0..6 {
        let answer = bank.request("POST", &path(&id, "verify"), &malformed, r#"{"otp": "#).await.unwrap();
        refused(&answer, 400, "invalid");
    }
    refused(&verify(&bank, &id, "unmistakable").await, 422, "invalid");
    // One answer twice: decided once, told twice.
    let other = enrol(&bank, &json!({ "type": "hotp", "account": "acct-2", "seed_hex": SEED_HEX })).await;
    let keyed = [malformed[0], ("idempotency-key", "unmistakable-key")];
    for _ in 0..2 {
        let body = json!({ "otp": rfc_code(0) }).to_string();
        done(&bank.request("POST", &path(&other, "verify"), &keyed, body).await.unwrap());
    }
    done(&act(&bank, &id, "unlock").await);
    done(&delete(&bank, &other).await);
    refused(&bank.get("/unmistakable").await.unwrap(), 404, "not-found");
    refused(&bank.request("BREW", "/v1/credentials", &[], "").await.unwrap(), 405, "method-not-allowed");
    let stranger = stranger(&daemon).await;
    for _ in 0..3 {
        refused(&stranger.get("/v1/credentials").await.unwrap(), 401, "unauthenticated");
    }

    let scrape = Scrape::of(&daemon);
    let verdicts = expected([
        ("enrolled", 2),
        ("verified", 3 + 2),
        ("verification-failed", 2 + 5),
        ("locked", 4),
        ("invalid", 6 + 1),
        ("changed", 1),
        ("deleted", 1),
        ("not-found", 1),
        ("method-not-allowed", 1),
        ("unauthenticated", 3),
    ]);
    assert_eq!(scrape.counted("hsm_authd_verdicts_total"), verdicts);
    let events = expected([
        ("service.started", 1),
        ("credential.enrolled", 2),
        ("otp.verified", 3 + 1),
        ("otp.repeated", 2),
        ("otp.refused", 5),
        ("credential.unlocked", 1),
        ("credential.deleted", 1),
    ]);
    assert_eq!(scrape.counted("hsm_authd_events_total"), events);
    let by_route = [
        (["/v1/credentials", "POST", "201"], 2.0),
        ([VERIFY, "POST", "200"], 5.0),
        ([VERIFY, "POST", "403"], 7.0),
        ([VERIFY, "POST", "423"], 4.0),
        ([VERIFY, "POST", "400"], 6.0),
        ([VERIFY, "POST", "422"], 1.0),
        (["/v1/credentials/{id}/unlock", "POST", "200"], 1.0),
        (["/v1/credentials/{id}", "DELETE", "200"], 1.0),
        (["none", "GET", "404"], 1.0),
        (["/v1/credentials", "other", "405"], 1.0),
        (["/v1/credentials", "GET", "401"], 3.0),
    ];
    let by_route: BTreeMap<[String; 3], f64> =
        by_route.into_iter().map(|(labels, count)| (labels.map(str::to_owned), count)).collect();
    assert_eq!(requests(&scrape), by_route);
    assert_eq!(scrape.sum("hsm_authd_request_seconds_count"), by_route.values().sum::<f64>());
    assert_eq!(scrape.value("hsm_authd_request_seconds_count", &[("route", VERIFY)]), 23.0);
    assert!(scrape.value("hsm_authd_request_seconds_sum", &[("route", VERIFY)]) > 0.0);

    // Each verdict that was charged is a commit, and each was durable before it was told.
    let commits = events.values().sum::<f64>();
    assert_eq!(scrape.counted("hsm_authd_commits_total"), BTreeMap::from([("written", commits)]));
    assert_eq!(scrape.sum("hsm_authd_commit_group_size_sum"), commits);
    assert_eq!(scrape.sum("hsm_authd_store_errors_total"), 0.0);
    let operation = |name: &str| {
        scrape.value("hsm_authd_hsm_operations_total", &[("operation", name), ("outcome", "answered")])
    };
    assert_eq!((operation("check-otp"), operation("import"), operation("generate")), (11.0, 2.0, 0.0));
    assert_eq!(operation("fingerprint"), 2.0);
    let answered = scrape.sum("hsm_authd_hsm_operations_total");
    assert_eq!(scrape.sum("hsm_authd_hsm_operation_seconds_count"), answered);
    let (busy, all) = (
        scrape.sum("hsm_authd_custodian_busy_seconds_total"),
        scrape.sum("hsm_authd_hsm_operation_seconds_sum"),
    );
    assert!(0.0 < busy && busy < all, "{busy} of {all}: it works within the time that is waited for it");
    assert_eq!(scrape.counted("hsm_authd_handshakes_total"), expected([("done", 2)]));
    assert_eq!(scrape.sum("hsm_authd_hsm_queue_depth"), 0.0);

    for secret in ["unmistakable", "acct-", "BREW", "bank", &id, &other, &id[5..], SEED_HEX, "12345678901"] {
        assert!(!scrape.text.contains(secret), "/metrics says {secret:?}");
    }
    for counter in [0, 1, 2, 3, FAR] {
        // As a word of its own: six digits may stand in a number.
        let otp = rfc_code(counter);
        let mut words = scrape.text.split(|c: char| !c.is_ascii_alphanumeric());
        assert!(words.all(|word| word != otp), "/metrics says the code {otp}");
    }
}

/// A client whose certificate is believed and names nobody.
async fn stranger(daemon: &Daemon) -> Connection {
    let folder = daemon.dir().join("pki");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let authority = Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap();
    let authority = Authority::from_identity(authority).unwrap();
    let names = [AlternativeName::Uri("urn:hsm-authd:client:nobody".to_owned())];
    let issued = authority.issue(Purpose::Client, "nobody", &names, a_day(SystemTime::now())).unwrap();
    let (certificate, key) = (daemon.dir().join("nobody.pem"), daemon.dir().join("nobody.key"));
    std::fs::write(&certificate, issued.certificate_pem().unwrap()).unwrap();
    std::fs::write(&key, issued.key_pem().unwrap()).unwrap();
    let identity = Identity::new(daemon.info["ca"].as_str().unwrap(), certificate, key);
    Connection::open(&daemon.url(), &identity, Http::Two).await.unwrap()
}

fn a_day(now: SystemTime) -> Validity {
    let hour = Duration::from_secs(60 * 60);
    Validity { not_before: now - hour, not_after: now + 23 * hour }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_and_handshakes_are_counted() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let bank = daemon.connect_over("bank-a", Http::One).await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let ca = daemon.info["ca"].as_str().unwrap();
    // Refused by the server only after the client has finished.
    drop(tls_stream(&daemon.url(), &Identity::nobody(ca), &["h2"]).await);
    drop(tokio::net::TcpStream::connect(daemon.url().strip_prefix("https://").unwrap()).await.unwrap());
    eventually("both are refused", async || {
        let scrape = Scrape::of(&daemon);
        let open = scrape.sum("hsm_authd_connections_open");
        (scrape.counted("hsm_authd_handshakes_total") == expected([("done", 1), ("refused", 2)])
            && open == 1.0)
            .then_some(())
    })
    .await;

    let slow = SlowRequest::verify(&daemon.url(), &daemon.identity("bank-a"), &id, &rfc_code(0)).await;
    let scrape = Scrape::of(&daemon);
    assert_eq!(scrape.sum("hsm_authd_requests_in_flight"), 1.0);
    assert_eq!(scrape.sum("hsm_authd_connections_open"), 2.0);
    assert_eq!(slow.finish().await.0, 200);
    drop(bank);
    eventually("they are closed", async || {
        let scrape = Scrape::of(&daemon);
        let left = scrape.sum("hsm_authd_connections_open") + scrape.sum("hsm_authd_requests_in_flight");
        (left == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custodian_that_is_killed_or_hangs_shows() {
    let daemon = Daemon::start();
    let both =
        || daemon.pids("custodian").len() == 2 && Scrape::of(&daemon).sum("hsm_authd_custodians_up") == 2.0;
    eventually("both are up", async || both().then_some(())).await;
    let before = Scrape::of(&daemon);
    assert_eq!(before.counted("hsm_authd_custodian_starts_total"), expected([("0", 1), ("1", 1)]));
    assert_eq!(before.sum("hsm_authd_custodian_losses_total"), 0.0);

    kill(Pid::from_raw(daemon.pids("custodian")[0]), Signal::SIGKILL).unwrap();
    let starts = || Scrape::of(&daemon).sum("hsm_authd_custodian_starts_total");
    eventually("one is replaced", async || (starts() == 3.0).then_some(())).await;
    let after = Scrape::of(&daemon);
    assert_eq!(after.counted("hsm_authd_custodian_losses_total"), expected([("ended", 1)]));
    assert_eq!(after.sum("hsm_authd_custodians_up"), 2.0);

    // Those that wait for one that hangs are seen to wait.
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    for pid in daemon.pids("custodian") {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    let (asking, code) = (bank.clone(), rfc_code(0));
    let waiting = tokio::spawn(async move { verify(&asking, &id, &code).await });
    eventually("it waits", async || {
        (Scrape::of(&daemon).sum("hsm_authd_hsm_queue_depth") >= 1.0).then_some(())
    })
    .await;
    eventually("one is given up", async || {
        let losses = Scrape::of(&daemon);
        (losses.value("hsm_authd_custodian_losses_total", &[("reason", "deadline")]) >= 1.0).then_some(())
    })
    .await;
    let _ = waiting.await.unwrap();
    eventually("nobody waits", async || {
        (Scrape::of(&daemon).sum("hsm_authd_hsm_queue_depth") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_shows() {
    let disk = FailingDisk::new();
    let environment = disk.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let daemon = Daemon::start_with(&["--custodians", "1"], &environment);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let token = Token::enrol(crowd.connection(1), "hotp", None).await;
    disk.set("write-enospc");
    for _ in 0..3 {
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Unavailable);
    }
    let scrape = Scrape::of(&daemon);
    assert_eq!(scrape.counted("hsm_authd_store_errors_total"), expected([("disk-full", 3)]));
    assert_eq!(scrape.counted("hsm_authd_commits_total"), expected([("written", 2), ("unavailable", 3)]));
    assert_eq!(
        scrape.counted("hsm_authd_events_total"),
        expected([("service.started", 1), ("credential.enrolled", 1)])
    );
    assert_eq!(scrape.value("hsm_authd_verdicts_total", &[("verdict", "unavailable")]), 3.0);
    assert_eq!(scrape.sum("hsm_authd_ready"), 1.0, "the next one is tried as usual");

    disk.set("none");
    assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
    assert_eq!(Scrape::of(&daemon).sum("hsm_authd_store_errors_total"), 3.0);
}

/// `/readyz` and the gauge, looked at until they are what they should be.
async fn await_ready(daemon: &Daemon, ready: bool) -> Scrape {
    eventually("it says whether it is ready", async || {
        let status = ops_get(daemon.info["ops_url"].as_str().unwrap(), "/readyz").0;
        let scrape = Scrape::of(daemon);
        let says = scrape.sum("hsm_authd_ready");
        (status == if ready { 200 } else { 503 } && says == f64::from(u8::from(ready))).then_some(scrape)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_hsm_and_the_clock() {
    let daemon = Daemon::start_at(NOW);
    assert_eq!(await_ready(&daemon, true).await.sum("hsm_authd_custodians_up"), 1.0);
    let (place, away) = (daemon.dir().join("token"), daemon.dir().join("token.away"));
    std::fs::rename(&place, &away).unwrap();
    kill(Pid::from_raw(daemon.pids("custodian")[0]), Signal::SIGKILL).unwrap();
    let without = await_ready(&daemon, false).await;
    assert_eq!(without.sum("hsm_authd_custodians_up"), 0.0);
    assert_eq!(without.sum("hsm_authd_clock_trusted"), 1.0);
    eventually("none comes up", async || {
        let scrape = Scrape::of(&daemon);
        (scrape.value("hsm_authd_custodian_losses_total", &[("reason", "no-hello")]) >= 1.0).then_some(())
    })
    .await;
    std::fs::rename(&away, &place).unwrap();
    await_ready(&daemon, true).await;

    daemon.step_clock(NOW + 3_600);
    let stepped = await_ready(&daemon, false).await;
    assert_eq!((stepped.sum("hsm_authd_clock_trusted"), stepped.sum("hsm_authd_custodians_up")), (0.0, 1.0));
    eventually("it is in the log", async || {
        (Scrape::of(&daemon).counted("hsm_authd_events_total")
            == expected([("service.started", 1), ("clock.stepped", 1)]))
        .then_some(())
    })
    .await;
}

/// Seconds until a certificate file's first certificate expires, as OpenSSL reads it.
fn expires_unix_s(file: &std::path::Path) -> f64 {
    let output = std::process::Command::new("sh")
        .args(["-c", r#"date -u -d "$(openssl x509 -in "$1" -noout -enddate | cut -d= -f2)" +%s"#, "sh"])
        .arg(file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_certificates_have_left_is_shown_and_follows_a_reload() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let folder = daemon.dir().join("pki");
    let served = Served::start(&configuration(&daemon, "served.toml", |_| {}));
    let left = |certificate: &str| {
        let scrape = Scrape::at(&served.ops_url);
        scrape.value("hsm_authd_certificate_expires_seconds", &[("certificate", certificate)])
    };
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for (certificate, file) in [("server", "server.pem"), ("client-ca", "ca.pem")] {
        let expected = expires_unix_s(&folder.join(file)) - now_s();
        assert!((left(certificate) - expected).abs() < 60.0, "{certificate}: {expected}");
    }

    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let authority = Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap();
    let authority = Authority::from_identity(authority).unwrap();
    let life = a_day(SystemTime::now());
    let names = [AlternativeName::Ip("127.0.0.1".parse().unwrap())];
    let short = authority.issue(Purpose::Server, "localhost", &names, life).unwrap();
    // The chain ends when its first certificate does, wherever that stands.
    let chain = read("server.pem") + &short.certificate_pem().unwrap();
    std::fs::write(folder.join("server.pem"), chain).unwrap();
    let other = Authority::generate("another CA", life).unwrap();
    std::fs::write(folder.join("ca.pem"), read("ca.pem") + &other.identity().certificate_pem().unwrap())
        .unwrap();
    assert!(left("server") > 2.0 * 86_400.0, "nothing was reloaded yet");
    served.reload();
    eventually("it is reloaded", async || (left("server") < 86_400.0).then_some(())).await;
    let expected = life.not_after.duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - now_s();
    for certificate in ["server", "client-ca"] {
        assert!((left(certificate) - expected).abs() < 60.0, "{certificate}");
    }
}
