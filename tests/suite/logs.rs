//! What is written down and what a process shows of itself: every request, and no secret.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::Digest;

use crate::bank::{act, delete, done, failed, path, refused, resync};
use crate::client::Response;
use crate::daemon::{Daemon, code, text, verify};
use crate::modules::TestModule;
use crate::ocra;
use crate::ocra_token::{Input, OcraToken, question};

const SEED: &[u8] = b"a seed of 20 bytes..";

fn otp(counter: u64) -> String {
    code(SEED, counter, 8)
}

/// The lines about requests, by request id; each is one.
fn lines(log: &str) -> HashMap<String, Value> {
    let mut found = HashMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if line["message"] == "request" {
            let id = line["request_id"].as_str().unwrap().to_owned();
            assert!(found.insert(id, line).is_none(), "two lines for one request");
        }
    }
    found
}

#[tokio::test]
async fn one_line_a_request_and_no_secret() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let auditor = daemon.connect("auditor").await;
    let mut expected: Vec<(Response, &str, &str, &str, &str)> = Vec::new();
    let (one, all) = ("/v1/credentials/{id}", "/v1/credentials");

    let body = json!({ "type": "hotp", "account": "unmistakable", "digits": 8,
        "seed_hex": HEXLOWER.encode(SEED), "export": "otpauth" });
    let enrolled = bank.post(all, &body).await.unwrap();
    let id = enrolled.json().unwrap()["id"].as_str().unwrap().to_owned();
    let other = json!({ "type": "totp", "account": "unmistakable-2", "export": "otpauth",
        "seed_base32": BASE32_NOPAD.encode(&[0xa5; 40]) });
    let imported = bank.post(all, &other).await.unwrap();
    let made = json!({ "type": "totp", "account": "unmistakable-3", "export": "otpauth" });
    let made = bank.post(all, &made).await.unwrap();
    let uri = made.json().unwrap()["otpauth"].as_str().unwrap().to_owned();
    let made_seed = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    for answer in [enrolled, imported, made] {
        assert_eq!(answer.status, 201, "{}", text(&answer));
        expected.push((answer, "bank-a", "POST", all, "enrolled"));
    }
    let verify_route = "/v1/credentials/{id}/verify";
    expected.push((verify(&bank, &id, &otp(0)).await, "bank-a", "POST", verify_route, "verified"));
    expected.push((verify(&bank, &id, &otp(0)).await, "bank-a", "POST", verify_route, "verification-failed"));
    expected.push((
        verify(&bank, &id, &otp(5_000)).await,
        "bank-a",
        "POST",
        verify_route,
        "verification-failed",
    ));
    expected.push((verify(&bank, &id, "unmistakable").await, "bank-a", "POST", verify_route, "invalid"));
    let keyed = [("content-type", "application/json"), ("idempotency-key", "unmistakable")];
    let answer =
        bank.request("POST", &path(&id, "verify"), &keyed, json!({ "otp": otp(1) }).to_string()).await;
    expected.push((answer.unwrap(), "bank-a", "POST", verify_route, "verified"));
    let broken = bank.request("POST", &path(&id, "verify"), &keyed[..1], r#"{"unmistakable"#).await.unwrap();
    expected.push((broken, "bank-a", "POST", verify_route, "invalid"));
    let answer = resync(&bank, &id, [otp(40), otp(41)]).await;
    expected.push((answer, "bank-a", "POST", "/v1/credentials/{id}/resync", "resynced"));
    let answer = act(&bank, &id, "unlock").await;
    expected.push((answer, "bank-a", "POST", "/v1/credentials/{id}/unlock", "changed"));
    expected.push((bank.get(&path(&id, "")).await.unwrap(), "bank-a", "GET", one, "found"));
    let listed = bank.get("/v1/credentials?account=unmistakable").await.unwrap();
    expected.push((listed, "bank-a", "GET", all, "found"));
    expected.push((bank.get("/unmistakable").await.unwrap(), "bank-a", "GET", "none", "not-found"));
    expected.push((bank.get(&path("unmistakable", "")).await.unwrap(), "bank-a", "GET", one, "not-found"));
    expected.push((auditor.get(all).await.unwrap(), "auditor", "GET", all, "forbidden"));
    expected.push((delete(&bank, &id).await, "bank-a", "DELETE", one, "deleted"));

    let log = daemon.log();
    let found = lines(&log);
    assert_eq!(found.len(), expected.len());
    for (answer, client, method, route, verdict) in expected {
        let line = &found[answer.header("x-request-id").unwrap()];
        assert_eq!(
            (&line["client"], &line["method"], &line["route"]),
            (&json!(client), &json!(method), &json!(route))
        );
        assert_eq!(
            (&line["verdict"], &line["status"]),
            (&json!(verdict), &json!(answer.status.as_u16())),
            "{line}"
        );
        assert_eq!(line["tenant"], if client == "auditor" { "*" } else { client });
        assert!(line["latency_us"].as_u64().is_some_and(|latency| latency > 0), "{line}");
        assert!(line["timestamp"].is_string() && line["level"] == "INFO", "{line}");
    }

    let pins = ["pin", "so-pin"].map(|name| fs::read_to_string(daemon.dir().join(name)).unwrap());
    let mut secrets: Vec<String> = [0, 1, 40, 41, 5_000].map(otp).into();
    secrets.extend(pins.map(|pin| pin.trim().to_owned()));
    secrets.extend(["unmistakable", "otpauth", "seed_hex", "\"otp\""].map(str::to_owned));
    secrets.push(String::from_utf8(SEED.to_vec()).unwrap());
    for seed in [SEED.to_vec(), vec![0xa5; 40], BASE32_NOPAD.decode(made_seed.as_bytes()).unwrap()] {
        for bytes in [&seed[..], &seed[..16]] {
            // As text or as a list of numbers: what a careless `Debug` would print.
            let list = format!("{bytes:?}");
            secrets.push(list[1..list.len() - 1].to_owned());
            secrets.extend([HEXLOWER, BASE32_NOPAD].map(|spelling| spelling.encode(bytes)));
        }
        secrets.push(BASE64.encode(&seed[..15]));
    }
    let log = log.to_lowercase();
    for secret in secrets {
        assert!(!log.contains(&secret.to_lowercase()), "the log says {secret:?}");
    }
}

/// An OCRA token's PIN and its hash: in no log, no answer, no file.
// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_nowhere_to_be_read() {
    const PIN: &str = "Unmistakable-90210";
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let keyed = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let mut answers = Vec::new();
    let (mut right, mut codes) = (0, Vec::new());
    for (number, suite) in ["QA08-PSHA1", "C-QA08-PSHA256-S020", "QA08-PSHA512"].into_iter().enumerate() {
        let suite = format!("OCRA-1:HOTP-SHA256-8:{suite}");
        let token = OcraToken { pin: Some(PIN.to_owned()), ..OcraToken::new(&suite) };
        let mut body = token.enrolment(&format!("acct-{number}"));
        let enrolled = bank
            .request("POST", "/v1/credentials", &keyed[..1 + number % 2], body.to_string())
            .await
            .unwrap();
        let id = enrolled.json().unwrap()["id"].as_str().unwrap().to_owned();
        answers.push(enrolled);
        let session = suite.contains("-S0").then_some(b"session-of-its-own".as_slice());
        let input = Input { counter: Some(0), session, ..question("Question77") };
        let code = token.code(input);
        for otp in [&*code, &*code, &ocra::wrong(&code)] {
            answers.push(ocra::answer(&bank, &id, otp, input).await);
            right += usize::from(answers.last().unwrap().status == 200);
        }
        codes.push(code);
        // Enrolments that are refused, each for another reason, the PIN in them.
        for (field, value) in [
            ("pin", json!(format!("{PIN}\n"))),
            ("suite", json!("OCRA-1")),
            ("pin", json!(format!("{PIN}{PIN}{PIN}{PIN}"))),
        ] {
            let before = std::mem::replace(&mut body[field], value);
            let answer = bank.post("/v1/credentials", &body).await.unwrap();
            assert_eq!(answer.status, 422);
            answers.push(answer);
            body[field] = before;
        }
        body["suite"] = json!("OCRA-1:HOTP-SHA256-8:QA08");
        answers.push(bank.post("/v1/credentials", &body).await.unwrap());
        let half = body.to_string().replace('}', "");
        answers.push(bank.request("POST", "/v1/credentials", &keyed[..1], half).await.unwrap());
        answers.push(bank.get(&path(&id, "")).await.unwrap());
    }
    assert_eq!(right, 3);
    let mut secrets: Vec<Vec<u8>> = vec![PIN.into(), PIN.to_lowercase().into()];
    let hashes = [
        sha1::Sha1::digest(PIN).to_vec(),
        sha2::Sha256::digest(PIN).to_vec(),
        sha2::Sha512::digest(PIN).to_vec(),
    ];
    for bytes in hashes.into_iter().chain([PIN.as_bytes().to_vec()]) {
        let list = format!("{bytes:?}");
        secrets.push(list[1..list.len() - 1].into());
        secrets.extend([HEXLOWER, BASE32_NOPAD, BASE64].map(|spelling| spelling.encode(&bytes[..15]).into()));
        secrets.push(bytes);
    }
    let shows = |bytes: &[u8], secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    for secret in &secrets {
        for answer in &answers {
            assert!(!shows(&answer.body, secret), "{}", text(answer));
        }
    }
    let files = |daemon: &Daemon| -> Vec<(String, Vec<u8>)> {
        let database = daemon.database();
        let beside = ["", "-wal", "-shm"].map(|suffix| format!("{}{suffix}", database.display()));
        let read = |name: String| fs::read(&name).ok().map(|bytes| (name, bytes));
        beside.into_iter().filter_map(read).collect()
    };
    let running = files(&daemon);
    assert!(running.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()));
    drop(bank);
    assert!(daemon.stop().success());
    let log = daemon.log().into_bytes();
    let all = running.into_iter().chain(files(&daemon)).chain([("the log".to_owned(), log)]);
    // Nor what was asked, or answered.
    secrets.extend(codes.into_iter().map(Vec::from));
    secrets.extend([b"Question77".to_vec(), b"session-of-its-own".to_vec()]);
    for (name, bytes) in all {
        for secret in &secrets {
            assert!(!shows(&bytes, secret), "{name} shows {:?}", String::from_utf8_lossy(secret));
        }
    }
}

#[tokio::test]
async fn requests_at_once_have_a_line_each() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let absent = "cred_00000000000000000000000000";
    let answer = verify(&bank, absent, "123456").await;
    refused(&answer, 404, "not-found");
    let answers = many_at_once(&bank, absent).await;
    let found = lines(&daemon.log());
    for answer in answers.iter().chain([&answer]) {
        let line = &found[answer.header("x-request-id").unwrap()];
        assert_eq!(line["status"], answer.status.as_u16());
    }
    assert_eq!(found.len(), answers.len() + 1);
}

/// Many at once on one connection: ids and lines are not mixed up.
async fn many_at_once(bank: &crate::client::Connection, id: &str) -> Vec<Response> {
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let (bank, id) = (bank.clone(), id.to_owned());
            tokio::spawn(async move {
                if number % 2 == 0 {
                    bank.get(&path(&id, "")).await.unwrap()
                } else {
                    delete(&bank, &id).await
                }
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn the_hsm_is_in_the_custodians_alone_and_the_pin_in_no_command_line() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = crate::daemon::enrol_hotp(&bank, "acct-1").await;
    done(&verify(&bank, &id, &crate::daemon::rfc_code(0)).await);
    assert_eq!(failed(&verify(&bank, &id, &crate::daemon::rfc_code(0)).await), 5);

    // It is ready with the first custodian; the second may not have loaded its module yet.
    let deadline = Instant::now() + Duration::from_secs(30);
    while daemon.log().matches("custodian is up").count() < 2 {
        assert!(Instant::now() < deadline, "no second custodian: {}", daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let supervisor = daemon.info["pid"].as_i64().unwrap() as i32;
    let (front, custodians) = (daemon.pids("front"), daemon.pids("custodian"));
    assert_eq!((front.len(), custodians.len()), (1, 2));
    let pin = fs::read_to_string(daemon.dir().join("pin")).unwrap();
    let module = TestModule::chosen();
    let (library, conf) = (module.library(), module.environment(&daemon.dir()));
    let library = library.file_name().unwrap().to_str().unwrap();
    let conf = conf.map(|(name, value)| format!("{name}={value}"));
    for pid in [supervisor, front[0]].into_iter().chain(custodians.iter().copied()) {
        let is_custodian = custodians.contains(&pid);
        // The children are closed to all but root: to their own user too.
        let read = |name: &str| match fs::read(format!("/proc/{pid}/{name}")) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == ErrorKind::PermissionDenied && pid != supervisor => None,
            Err(error) => panic!("{pid}: {name}: {error}"),
        };
        assert!(read("cmdline").is_some());
        for bytes in ["cmdline", "environ"].into_iter().filter_map(read) {
            let shows = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
            assert!(!shows(pin.trim()), "the PIN is in {pid}");
        }
        if let Some(maps) = read("maps") {
            assert_eq!(String::from_utf8(maps).unwrap().contains(library), is_custodian, "{pid}");
        }
        if let (Some(environment), Some(conf)) = (read("environ"), &conf) {
            let has_conf = environment.split(|byte| *byte == 0).any(|variable| variable == conf.as_bytes());
            assert_eq!(has_conf, is_custodian, "{pid}");
        }
    }
}

#[tokio::test]
async fn the_pid_of_dev_json_is_the_one_whose_death_ends_all() {
    let mut daemon = Daemon::start();
    let others = [daemon.pids("front"), daemon.pids("custodian")].concat();
    kill(Pid::from_raw(daemon.info["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    assert!(!daemon.ended().success());
    let deadline = Instant::now() + Duration::from_secs(30);
    // A zombie, until init has looked at it, is no process any more.
    let lives = |pid: &i32| {
        fs::read(Path::new("/proc").join(pid.to_string()).join("maps")).is_ok_and(|maps| !maps.is_empty())
    };
    while others.iter().any(lives) {
        assert!(Instant::now() < deadline, "one of {others:?} lives on");
        std::thread::sleep(Duration::from_millis(2));
    }
}
