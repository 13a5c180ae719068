//! Seeds that come wrapped: they are what they were, once in a tenant, and what is none costs nobody anything.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bank::{act, credentials, delete, done, path, refused, without_request_id};
use crate::client::{Connection, Http, Response};
use crate::custodians::await_up;
use crate::daemon::{Daemon, SEED_HEX, enrol, rfc_code, text, verify};
use crate::ocra_token::{OcraToken, mac_of, question, rfc};
use crate::pruning::{pruned, rows, sum};
use crate::scratch::Scratch;
use crate::served::{Served, configuration, section};
use crate::token::TestToken;
use crate::wrapped_seeds::{IMPORT_KEY, OAEP_SHA1, Wrapper, base64, encrypt, other_key, padded, script};

const CREDENTIALS: &str = "/v1/credentials";
const FIELD: &str = "seed_wrapped_base64";
const CONTENT: &str = "must be 64 bytes, the seed with zeros behind it, encrypted to the key of GET /v1/import-key by RSA-OAEP with SHA-1";
const SEED: &[u8] = b"12345678901234567890";

fn hotp(account: &str, blob: &str) -> Value {
    json!({ "type": "hotp", "account": account, FIELD: blob })
}

async fn post(bank: &Connection, body: &Value) -> Response {
    bank.post(CREDENTIALS, body).await.unwrap()
}

/// Refused as what is wrong inside is.
fn refused_content(answer: &Response, what: &str) {
    let document = refused(answer, 422, "invalid");
    assert_eq!((&document["field"], &document["reason"]), (&json!(FIELD), &json!(CONTENT)), "{what}");
}

/// The code of any hash: RFC 4226, section 5.3.
fn code(hash: &str, seed: &[u8], counter: u64, digits: u32) -> String {
    let mac = mac_of(hash, seed, &counter.to_be_bytes());
    let offset = usize::from(mac[mac.len() - 1] & 15);
    let word = u32::from_be_bytes(mac[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:0width$}", word % 10u32.pow(digits), width = digits as usize)
}

#[tokio::test]
async fn the_key_is_anybodys_and_says_how_it_is_used() {
    let daemon = Daemon::start();
    let (bank, auditor) = (daemon.connect("bank-a").await, daemon.connect("auditor").await);
    let document = done(&auditor.get(IMPORT_KEY).await.unwrap());
    assert_eq!(done(&bank.get(IMPORT_KEY).await.unwrap()), document, "the same of every custodian");
    let pem = document["public_key_pem"].as_str().unwrap();
    let key = hsm_authd::domain::signer::PublicKey::from_pem(pem).unwrap();
    let expected = json!({ "algorithm": "RSA-OAEP", "hash": "SHA-1", "mgf": "MGF1 with SHA-1",
        "plaintext_bytes": 64, "key_id": key.thumbprint(), "public_key_pem": pem });
    assert_eq!(document, expected);
    let hsm_authd::domain::signer::PublicKey::Rsa(key) = key else { panic!("no RSA key") };
    assert_eq!((key.modulus().len(), key.modulus()[0] >> 7), (384, 1), "3072 bits");
}

/// RFC 4226, appendix D, RFC 6238, appendix B, and RFC 6287, appendix C, by seeds that nobody but the HSM could read.
#[tokio::test]
async fn the_rfcs_codes_are_right_by_wrapped_seeds() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let hex = |value: &Value| data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap();

    let id = enrol(&bank, &hotp("rfc-4226", &wrapper.wrap(SEED))).await;
    let document: Value = serde_json::from_str(include_str!("../vectors/hotp.json")).unwrap();
    for vector in document["vectors"].as_array().unwrap() {
        assert_eq!(hex(&vector["key_hex"]), SEED);
        done(&verify(&bank, &id, vector["expected"].as_str().unwrap()).await);
    }

    let document: Value = serde_json::from_str(include_str!("../vectors/totp.json")).unwrap();
    let mut seen = BTreeSet::new();
    for vector in document["vectors"].as_array().unwrap() {
        let step = vector["unix_time"].as_u64().unwrap() / vector["period"].as_u64().unwrap();
        let mut body = hotp("rfc-6238", &wrapper.wrap(&hex(&vector["key_hex"])));
        (body["algorithm"], body["digits"]) = (vector["algorithm"].clone(), vector["digits"].clone());
        (body["counter"], body["look_ahead"]) = (json!(step), json!(0));
        let id = enrol(&bank, &body).await;
        done(&verify(&bank, &id, vector["expected"].as_str().unwrap()).await);
        seen.insert(vector["algorithm"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 3);

    let mut suites = BTreeSet::new();
    for vector in rfc() {
        let token = &vector.token;
        if vector.step.is_some() || !suites.insert(token.suite.clone()) {
            continue;
        }
        let mut body = token.enrolment("rfc-6287");
        body.as_object_mut().unwrap().remove("seed_hex");
        body[FIELD] = json!(wrapper.wrap(&token.seed));
        if let Some(counter) = vector.counter {
            body["counter"] = json!(counter);
        }
        let id = enrol(&bank, &body).await;
        let answer = crate::ocra::answer(&bank, &id, &vector.code, vector.input()).await;
        assert_eq!(answer.status, 200, "{}: {}", token.suite, text(&answer));
    }
    assert!(suites.len() >= 4, "{suites:?}");
}

#[tokio::test]
async fn a_seed_of_every_length_is_what_it_was_for_every_hash() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    for (number, length) in (16..=64).enumerate() {
        let seed: Vec<u8> = (0..length).map(|byte| byte * 3 + 1).collect();
        let hash = ["SHA1", "SHA256", "SHA512"][number % 3];
        let mut body = hotp("lengths", &wrapper.wrap(&seed));
        (body["algorithm"], body["digits"]) = (json!(hash), json!(8));
        let id = enrol(&bank, &body).await;
        let answer = verify(&bank, &id, &code(hash, &seed, 3, 8)).await;
        assert_eq!(answer.status, 200, "{length} bytes for {hash}: {}", text(&answer));
    }
    // A TOTP token and an OCRA token by one seed each, and a seed that ends in zeros of its own.
    let seed = [[7; 16].as_slice(), &[0; 8]].concat();
    let id = enrol(&bank, &hotp("zeros", &wrapper.wrap(&seed))).await;
    done(&verify(&bank, &id, &code("SHA1", &seed[..16], 0, 6)).await);
    let token = OcraToken::new("OCRA-1:HOTP-SHA512-8:QA08-PSHA1");
    let mut body = token.enrolment("ocra");
    body.as_object_mut().unwrap().remove("seed_hex");
    body[FIELD] = json!(wrapper.wrap(&token.seed));
    let id = enrol(&bank, &body).await;
    let input = question("abcdefgh");
    done(&crate::ocra::answer(&bank, &id, &token.code(input), input).await);
}

#[tokio::test]
async fn what_is_wrong_inside_is_never_told() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let seed = padded(SEED);
    let right = wrapper.blob(&seed);
    let mut blobs = vec![
        ("another hash", wrapper.encrypt(&seed, &["rsa_padding_mode:oaep", "rsa_oaep_md:sha256"])),
        (
            "another mask",
            wrapper.encrypt(&seed, &["rsa_padding_mode:oaep", "rsa_oaep_md:sha1", "rsa_mgf1_md:sha256"]),
        ),
        ("a label", wrapper.encrypt(&seed, &[&OAEP_SHA1[..], &["rsa_oaep_label:68736d"]].concat())),
        ("PKCS#1 v1.5", wrapper.encrypt(&seed, &["rsa_padding_mode:pkcs1"])),
        ("no padding", wrapper.encrypt(&[&[0; 320], seed.as_slice()].concat(), &["rsa_padding_mode:none"])),
        ("nothing but zeros", wrapper.blob(&[0; 64])),
        ("nothing", wrapper.encrypt(&[], &OAEP_SHA1)),
    ];
    for length in [1, 16, 20, 32, 56, 63, 65, 72, 128, 342] {
        blobs.push(("another length", wrapper.encrypt(&vec![0xa5; length], &OAEP_SHA1)));
    }
    for place in [0, 1, 100, 383] {
        let mut changed = right.clone();
        changed[place] ^= 0x01;
        blobs.push(("a changed byte", changed));
    }
    let scratch = Scratch::new();
    blobs.push(("another key", encrypt(&other_key(&scratch, 3_072), &seed, &OAEP_SHA1)));
    blobs.extend([
        ("zeros", vec![0; 384]),
        ("ones", vec![0xff; 384]),
        ("one", [vec![0; 383], vec![1]].concat()),
    ]);

    let mut documents = BTreeSet::new();
    for (what, blob) in &blobs {
        let answer = post(&bank, &hotp("refused", &base64(blob))).await;
        refused_content(&answer, what);
        documents.insert(without_request_id(&answer).to_string());
    }
    assert_eq!(documents.len(), 1, "one answer to all of them: {documents:?}");

    let text = base64(&right);
    let key_of_4096 = encrypt(&other_key(&scratch, 4_096), &seed, &OAEP_SHA1);
    for (what, blob) in [
        ("empty", String::new()),
        ("no base64", "!".repeat(512)),
        ("base64url", "-_".repeat(256)),
        ("383 bytes", base64(&right[1..])),
        ("385 bytes", base64(&[&right[..], &[1]].concat())),
        ("another key's length", base64(&key_of_4096)),
        ("a line feed", format!("{text}\n")),
        ("lines", format!("{}\n{}", &text[..64], &text[64..])),
        ("hexadecimal", data_encoding::HEXLOWER.encode(&right)),
    ] {
        let document = refused(&post(&bank, &hotp("refused", &blob)).await, 422, "invalid");
        let reason = "must be 384 bytes in base64, as RSA of 3072 bits encrypts";
        assert_eq!((&document["field"], &document["reason"]), (&json!(FIELD), &json!(reason)), "{what}");
    }

    for (field, value, at_fault) in [
        ("export", "otpauth", "export"),
        ("seed_hex", SEED_HEX, "seed_hex"),
        ("seed_base32", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ", "seed_base32"),
    ] {
        let mut body = hotp("refused", &text);
        body[field] = json!(value);
        let document = refused(&post(&bank, &body).await, 422, "invalid");
        assert_eq!(document["field"], at_fault, "{document}");
    }
    assert_eq!(credentials(&bank).await, json!([]), "nothing was enrolled");
    // And nothing was used up: not even of the one that all those were made of.
    let id = enrol(&bank, &hotp("taken", &text)).await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_taken_once_in_a_tenant() {
    let daemon = Daemon::start();
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let wrapper = Wrapper::fetch(&bank).await;
    let blob = wrapper.wrap(SEED);
    let id = enrol(&bank, &hotp("acct-1", &blob)).await;
    for body in [
        hotp("acct-1", &blob),
        hotp("acct-2", &blob),
        json!({ "type": "totp", "account": "acct-1", FIELD: blob }),
        json!({ "type": "ocra", "account": "acct-1", "suite": "OCRA-1:HOTP-SHA256-8:QN08", FIELD: blob }),
    ] {
        refused(&post(&bank, &body).await, 409, "state-conflict");
    }
    // Another tenant may have the same, and knows nothing of this one's.
    let others = enrol(&other, &hotp("acct-1", &blob)).await;
    refused(&post(&other, &hotp("acct-1", &blob)).await, 409, "state-conflict");
    for (connection, id) in [(&bank, &id), (&other, &others)] {
        done(&verify(connection, id, &rfc_code(0)).await);
    }
    // The seed itself may come again, wrapped anew; and what was deleted or suspended is still taken.
    let again = enrol(&bank, &hotp("acct-2", &wrapper.wrap(SEED))).await;
    done(&verify(&bank, &again, &rfc_code(0)).await);
    assert_eq!(act(&bank, &id, "suspend").await.status, 200);
    refused(&post(&bank, &hotp("acct-1", &blob)).await, 409, "state-conflict");
    assert_eq!(delete(&bank, &id).await.status, 200);
    refused(&post(&bank, &hotp("acct-1", &blob)).await, 409, "state-conflict");

    // Of many at once, for different accounts and over connections of their own, one is taken.
    for round in 0..5 {
        let blob = wrapper.wrap(format!("seed of round {round:08}").as_bytes());
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..8 {
            let connection = daemon.connect_over("bank-a", Http::One).await;
            let body = hotp(&format!("racer-{racer}"), &blob);
            racers.spawn(async move { connection.post(CREDENTIALS, &body).await.unwrap() });
        }
        let answers = racers.join_all().await;
        let taken = answers.iter().filter(|answer| answer.status == 201).count();
        assert_eq!(taken, 1, "round {round}");
        for answer in answers.iter().filter(|answer| answer.status != 201) {
            refused(answer, 409, "state-conflict");
        }
    }
}

#[tokio::test]
async fn a_repeated_request_has_its_first_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let (blob, spent) = (wrapper.wrap(SEED), wrapper.wrap(SEED));
    enrol(&bank, &hotp("acct-1", &spent)).await;
    let ask = async |key: &str, body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        bank.request("POST", CREDENTIALS, &headers, body.to_string()).await.unwrap()
    };
    let first = ask("k-1", &hotp("acct-1", &blob)).await;
    assert_eq!(first.status, 201, "{}", text(&first));
    let again = ask("k-1", &hotp("acct-1", &blob)).await;
    assert_eq!((again.status.as_u16(), &again.body), (201, &first.body));
    refused(&ask("k-1", &hotp("acct-1", &wrapper.wrap(SEED))).await, 422, "idempotency-mismatch");
    refused(&ask("k-2", &hotp("acct-1", &blob)).await, 409, "state-conflict");
    // Neither refusal is remembered: the key is free for what is right.
    let garbage = hotp("acct-1", &base64(&[7; 384]));
    refused_content(&ask("k-3", &garbage).await, "garbage");
    refused(&ask("k-3", &hotp("acct-1", &spent)).await, 409, "state-conflict");
    assert_eq!(ask("k-3", &hotp("acct-1", &wrapper.wrap(SEED))).await.status, 201);
    assert_eq!(credentials(&bank).await.as_array().unwrap().len(), 3);
}

/// Whoever sends garbage costs nobody a custodian: modules say of it what they say when they fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_bad_blobs_lose_no_custodian() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    await_up(&daemon, 2).await;
    let wrapper = Wrapper::fetch(&bank).await;
    let right = wrapper.blob(&padded(SEED));
    let custodians = daemon.pids("custodian");
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..10_u8 {
        let (bank, mut blob, short) =
            (bank.clone(), right.clone(), wrapper.encrypt(&[worker; 63], &OAEP_SHA1));
        tasks.spawn(async move {
            for number in 0..100_u8 {
                // Changed ones, random ones, and such that open and are of another length.
                match number % 10 {
                    0 => blob.clone_from(&short),
                    1..=4 => getrandom::fill(&mut blob).unwrap(),
                    _ => blob[usize::from(number) + 200] ^= worker + 1,
                }
                refused_content(&post(&bank, &hotp("garbage", &base64(&blob))).await, "garbage");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(daemon.pids("custodian"), custodians);
    let log = daemon.log();
    assert_eq!(log.matches("custodian is up").count(), 2, "none was replaced");
    assert!(!log.contains("custodian is lost") && !log.contains("the HSM failed"));
    let id = enrol(&bank, &hotp("right", &base64(&right))).await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn seeds_in_the_clear_can_be_forbidden() {
    let mut daemon = Daemon::start();
    let identity = daemon.identity("bank-a");
    assert!(daemon.stop().success());
    let config = configuration(&daemon, "closed.toml", |config| {
        section(config, "credentials").insert("allow_clear_seeds".into(), false.into());
    });
    let served = Served::start(&config);
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let wrapper = Wrapper::fetch(&bank).await;
    let ocra = json!({ "type": "ocra", "account": "acct-1", "suite": "OCRA-1:HOTP-SHA256-8:QN08-PSHA1", "pin": "1234" });
    let totp = json!({ "type": "totp", "account": "acct-1" });
    for open in [hotp("acct-1", ""), totp, ocra] {
        let mut body = open.clone();
        body.as_object_mut().unwrap().remove(FIELD);
        for (field, seed) in [("seed_hex", SEED_HEX), ("seed_base32", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")] {
            let mut clear = body.clone();
            clear[field] = json!(seed);
            let document = refused(&post(&bank, &clear).await, 422, "invalid");
            assert_eq!(document["field"], FIELD);
            let reason = document["reason"].as_str().unwrap();
            assert!(reason.contains(IMPORT_KEY) && !reason.contains(seed), "{reason}");
        }
        // Generated and wrapped ones stay possible, a PIN too: it is no seed.
        enrol(&bank, &body).await;
        body[FIELD] = json!(wrapper.wrap(SEED));
        enrol(&bank, &body).await;
    }
    assert_eq!(credentials(&bank).await.as_array().unwrap().len(), 6);
    let exported = json!({ "type": "totp", "account": "acct-2", "export": "otpauth" });
    assert!(done_201(&post(&bank, &exported).await)["otpauth"].is_string());
    drop(bank);
    assert!(served.stop().success());
}

fn done_201(answer: &Response) -> Value {
    assert_eq!(answer.status, 201, "{}", text(answer));
    answer.json().unwrap()
}

const NOW: u64 = 2_000_000_000;
const DAY: u64 = 86_400;

// The clients have to answer while a stop is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_seed_came_as_is_forgotten_with_the_tombstone() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let blobs = [wrapper.wrap(SEED), wrapper.wrap(SEED)];
    let gone = enrol(&bank, &hotp("acct-1", &blobs[0])).await;
    enrol(&bank, &hotp("acct-1", &blobs[1])).await;
    assert_eq!(delete(&bank, &gone).await.status, 200);
    daemon.set_clock(NOW + 89 * DAY);
    refused(&post(&bank, &hotp("acct-2", &blobs[0])).await, 409, "state-conflict");
    drop(bank);
    assert!(daemon.stop().success());
    let imported = |rows: &[hsm_authd::domain::row::Sealed<hsm_authd::domain::row::Row>]| {
        rows.iter().filter(|row| matches!(row.row, hsm_authd::domain::row::Row::ImportedSeed(_))).count()
    };
    assert_eq!(imported(&rows(&daemon).await.0), 2);

    daemon.set_clock(NOW + 91 * DAY);
    daemon.resume();
    pruned(&daemon, 1).await;
    let bank = daemon.connect("bank-a").await;
    refused(&post(&bank, &hotp("acct-2", &blobs[1])).await, 409, "state-conflict");
    let id = enrol(&bank, &hotp("acct-2", &blobs[0])).await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
    drop(bank);
    assert!(daemon.stop().success());
    let (rows, kept) = rows(&daemon).await;
    assert_eq!(imported(&rows), 2);
    assert_eq!(sum(&mut TestToken::of(&daemon).custodian(), &rows), kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_row_of_a_blob_is_no_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let (blob, other) = (wrapper.wrap(SEED), wrapper.wrap(SEED));
    let id = enrol(&bank, &hotp("acct-1", &blob)).await;
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let edited = database.execute("UPDATE imported_seed SET credential = zeroblob(16)", []).unwrap();
    assert_eq!(edited, 1);
    let document = refused(&post(&bank, &hotp("acct-1", &blob)).await, 503, "unavailable");
    assert_eq!(document["retry_after"], 60);
    enrol(&bank, &hotp("acct-1", &other)).await;
    done(&bank.get(&path(&id, "")).await.unwrap());
}

#[tokio::test]
async fn the_example_wraps_what_is_a_seed_and_nothing_else() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let scratch = Scratch::new();
    let key = scratch.write("key.json", &wrapper.document.to_string());
    let upper = script(&key, &format!("{}\n", "A5".repeat(20)));
    assert!(upper.status.success());
    let id = enrol(&bank, &hotp("upper", String::from_utf8(upper.stdout).unwrap().trim_end())).await;
    done(&verify(&bank, &id, &code("SHA1", &[0xa5; 20], 0, 6)).await);

    let mut changed = wrapper.document.clone();
    changed["hash"] = json!("SHA-256");
    let changed = scratch.write("changed.json", &changed.to_string());
    let problem = scratch.write("problem.json", r#"{"type": "urn:hsm-authd:problem:unavailable"}"#);
    let (short, long) = ("a5".repeat(15), "a5".repeat(65));
    for (key, seed, words) in [
        (&key, "", "no seed"),
        (&key, &*short, "16 to 64 bytes"),
        (&key, &*long, "16 to 64 bytes"),
        (&key, "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a", "16 to 64 bytes"),
        (&key, "not in hexadecimal, but long enough", "hexadecimal"),
        (&changed, SEED_HEX, "another encryption"),
        (&problem, SEED_HEX, "no answer of"),
    ] {
        let output = script(key, seed);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{seed}");
        assert!(said.starts_with("wrap-seed.sh: ") && said.contains(words), "{seed}: {said}");
        assert!(seed.is_empty() || !said.contains(seed), "{said}");
    }
}
