//! Known codes through the whole appliance: the RFCs' own, and those of an independent generator.

use std::process::Command;

use data_encoding::{BASE32, BASE32_NOPAD, HEXLOWER, HEXUPPER};
use serde_json::{Value, json};

use crate::bank::{done, failed};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, text, verify};

const ALGORITHMS: [&str; 3] = ["SHA1", "SHA256", "SHA512"];

fn vectors(file: &str, count: usize) -> Vec<Value> {
    let document: Value = serde_json::from_str(file).unwrap();
    let vectors = document["vectors"].as_array().unwrap().clone();
    assert_eq!(vectors.len(), count);
    vectors
}

async fn accepted_once(bank: &Connection, id: &str, otp: &str, what: &str) {
    let first = verify(bank, id, otp).await;
    assert_eq!(first.status, 200, "{what}: {}", text(&first));
    assert_eq!(done(&first)["verified"], true);
    assert_eq!(failed(&verify(bank, id, otp).await), 5, "{what}: a repeat is refused, and costs nothing");
}

#[tokio::test]
async fn rfc_4226_appendix_d() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let vectors = vectors(include_str!("../vectors/hotp.json"), 10);
    let seed = &vectors[0]["key_hex"];
    let id = enrol(&bank, &json!({ "type": "hotp", "account": "rfc-4226", "seed_hex": seed })).await;
    for vector in &vectors {
        assert_eq!(vector["key_hex"], *seed);
        accepted_once(&bank, &id, vector["expected"].as_str().unwrap(), &vector.to_string()).await;
    }
}

#[tokio::test]
async fn rfc_6238_appendix_b() {
    let daemon = Daemon::start_at(59);
    let bank = daemon.connect("bank-a").await;
    let mut vectors = vectors(include_str!("../vectors/totp.json"), 18);
    vectors.sort_by_key(|vector| vector["unix_time"].as_u64());
    let mut ids = Vec::new();
    for vector in &vectors[..3] {
        let algorithm = &vector["algorithm"];
        let body = json!({ "type": "totp", "account": format!("rfc-6238-{algorithm}").replace('"', ""),
            "algorithm": algorithm, "digits": vector["digits"], "period": vector["period"],
            "seed_hex": vector["key_hex"] });
        ids.push((algorithm.clone(), enrol(&bank, &body).await));
    }
    for vector in &vectors {
        daemon.set_clock(vector["unix_time"].as_u64().unwrap());
        let (_, id) = ids.iter().find(|(algorithm, _)| *algorithm == vector["algorithm"]).unwrap();
        accepted_once(&bank, id, vector["expected"].as_str().unwrap(), &vector.to_string()).await;
    }
}

/// What `oathtool` prints.
fn oathtool(arguments: &[&str]) -> String {
    let output = Command::new("oathtool")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("oathtool cannot be run ({error}): apt-get install oathtool"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "oathtool {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A seed in one of the spellings a bank may have it in, as a field of the enrolment and as an argument.
struct Seed {
    field: &'static str,
    text: String,
}

impl Seed {
    /// The `number`th: lengths from 16 to 64 bytes, in all spellings.
    fn new(number: usize) -> Self {
        let length = [16, 17, 20, 31, 32, 33, 63, 64][number % 8];
        let bytes: Vec<u8> = (0..length).map(|place| (place * 37 + number * 101 + 5) as u8).collect();
        let (field, text) = match number % 5 {
            0 => ("seed_hex", HEXLOWER.encode(&bytes)),
            1 => ("seed_base32", BASE32_NOPAD.encode(&bytes)),
            2 => ("seed_hex", HEXUPPER.encode(&bytes)),
            3 => ("seed_base32", BASE32.encode(&bytes).to_lowercase()),
            _ => ("seed_base32", BASE32.encode(&bytes)),
        };
        Self { field, text }
    }

    fn code(&self, algorithm: &str, digits: u64, period_s: u64, unix_s: u64) -> String {
        let (mode, digits) = (format!("--totp={algorithm}"), digits.to_string());
        let (period, now) = (format!("{period_s}s"), format!("@{unix_s}"));
        let mut arguments = vec![&*mode, "-d", &*digits, "-s", &*period, "-N", &*now];
        if self.field == "seed_base32" {
            arguments.push("-b");
        }
        arguments.push(&self.text);
        oathtool(&arguments)
    }
}

#[tokio::test]
async fn totp_as_oathtool_has_it() {
    const START: u64 = 1_700_000_017;
    let daemon = Daemon::start_at(START);
    let bank = daemon.connect("bank-a").await;
    let mut enrolled = Vec::new();
    for (number, period) in [5, 30, 60, 600].into_iter().cycle().take(36).enumerate() {
        let (seed, algorithm) = (Seed::new(number), ALGORITHMS[number % 3]);
        let digits = 6 + (number as u64 / 3) % 3;
        let body = json!({ "type": "totp", "account": format!("totp-{number}"), "algorithm": algorithm,
            "digits": digits, "period": period, seed.field: seed.text });
        enrolled.push((enrol(&bank, &body).await, body, seed, algorithm, digits, period));
    }
    for now in [START, START + 86_400] {
        daemon.set_clock(now);
        for (id, body, seed, algorithm, digits, period) in &enrolled {
            let code = seed.code(algorithm, *digits, *period, now);
            accepted_once(&bank, id, &code, &body.to_string()).await;
        }
    }
}

#[tokio::test]
async fn hotp_as_oathtool_has_it() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for number in 0..18 {
        let (seed, algorithm) = (Seed::new(number), ALGORITHMS[number % 3]);
        let (digits, counter) = (6 + (number as u64 / 3) % 3, number as u64 * 1_000_003);
        let body = json!({ "type": "hotp", "account": format!("hotp-{number}"), "algorithm": algorithm,
            "digits": digits, "counter": counter, seed.field: seed.text });
        let id = enrol(&bank, &body).await;
        for counter in [counter, counter + 7] {
            // oathtool's HOTP knows SHA-1 alone; a time in steps of one second is a counter as well.
            let code = seed.code(algorithm, digits, 1, counter);
            if algorithm == "SHA1" && seed.field == "seed_hex" {
                let (counter, digits) = (counter.to_string(), digits.to_string());
                assert_eq!(oathtool(&["--hotp", "-c", &counter, "-d", &digits, &seed.text]), code);
            }
            accepted_once(&bank, &id, &code, &body.to_string()).await;
        }
    }
}

/// An `otpauth` URI taken apart: its kind and label, then what its query says under a name.
struct Uri(String);

impl Uri {
    fn label(&self) -> &str {
        self.0.split('?').next().unwrap()
    }

    fn value(&self, name: &str) -> &str {
        let query = self.0.split_once('?').unwrap().1;
        let mut found = query.split('&').filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let value = found.next().unwrap_or_else(|| panic!("no {name} in {}", self.label()));
        assert!(found.next().is_none(), "{name} is there twice");
        value
    }
}

#[tokio::test]
async fn an_exported_seed_is_the_one_that_verifies() {
    const NOW: u64 = 1_800_000_000;
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (kind, number) in ["totp", "hotp"].into_iter().flat_map(|kind| (0..3).map(move |n| (kind, n))) {
        let (algorithm, digits) = (ALGORITHMS[number], 6 + number as u64);
        let account = format!("Export & {kind}:{number}");
        let mut body = json!({ "type": kind, "account": account, "algorithm": algorithm, "digits": digits,
            "export": "otpauth" });
        body[if kind == "totp" { "period" } else { "counter" }] = json!(60 + number);
        let answer = bank.post("/v1/credentials", &body).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let answer = answer.json().unwrap();
        let uri = Uri(answer["otpauth"].as_str().unwrap().to_owned());
        assert_eq!(uri.label(), format!("otpauth://{kind}/bank-a:Export%20%26%20{kind}%3A{number}"));
        assert_eq!((uri.value("issuer"), uri.value("algorithm")), ("bank-a", algorithm));
        assert_eq!(uri.value("digits"), digits.to_string());
        let seed = Seed { field: "seed_base32", text: uri.value("secret").to_owned() };
        let bytes = BASE32_NOPAD.decode(seed.text.as_bytes()).unwrap().len();
        assert_eq!(bytes, [20, 32, 64][number], "as long as the hash");
        let code = if kind == "totp" {
            seed.code(algorithm, digits, uri.value("period").parse().unwrap(), NOW)
        } else {
            seed.code(algorithm, digits, 1, uri.value("counter").parse().unwrap())
        };
        let id = answer["id"].as_str().unwrap();
        accepted_once(&bank, id, &code, &account).await;
        let seen = text(&bank.get(&crate::bank::path(id, "")).await.unwrap());
        assert!(!seen.contains("otpauth") && !seen.contains(&seed.text), "a seed is shown once: {seen}");
    }
}
