//! What `docs/audit.md` and `examples/audit/` tell an auditor to do, done.

use std::path::Path;
use std::process::{Command, Output};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use crate::audit_api::hash_of_leaf;
use crate::audit_files::{Copy, Notary, utf8};
use crate::audit_tampering::live;
use crate::bank::done;
use crate::daemon::Daemon;
use crate::scratch::Scratch;

const PAGE: &str = include_str!("../../docs/audit.md");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/audit/check.py");

fn block(begins: &str) -> &'static str {
    PAGE.split_once(begins).unwrap().1.split_once("```").unwrap().0
}

fn bash(folder: &Path, lines: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", lines]).current_dir(folder).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{lines}: {}", utf8(&output.stderr));
    utf8(&output.stdout)
}

#[test]
fn the_example_of_a_leaf_is_right() {
    let scratch = Scratch::new();
    let entry: Value = serde_json::from_str(block("```json\n")).unwrap();
    let hash = hash_of_leaf(&entry);
    assert_eq!(entry["leaf_hash"], BASE64URL_NOPAD.encode(&hash));
    let leaf =
        HEXLOWER.decode(block("has a leaf of 215 bytes:\n\n```\n").replace('\n', "").as_bytes()).unwrap();
    assert_eq!(leaf.len(), 215);
    let printed = bash(scratch.path(), block("With nothing but a shell and openssl:\n\n```sh\n"));
    let hex = HEXLOWER.encode(&hash);
    assert!(printed.starts_with(&hex) && PAGE.contains(&format!("prints `{hex}`")), "{printed}");
    let hashed = <sha2::Sha256 as sha2::Digest>::digest([&[0], &*leaf].concat());
    assert_eq!(hash, *hashed);
    let file = scratch.write("entry.json", &entry.to_string());
    assert!(check(&["leaf", file.to_str().unwrap()]).status.success());
}

fn check(arguments: &[&str]) -> Output {
    Command::new("python3").arg(SCRIPT).args(arguments).output().unwrap()
}

/// What is to be checked, as files.
struct Files(Scratch);

impl Files {
    fn write(&self, name: &str, content: &str) -> String {
        self.0.write(name, content).to_str().unwrap().to_owned()
    }

    fn holds(arguments: &[&String]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_str()).collect();
        let output = check(&arguments);
        assert!(output.status.success(), "{arguments:?}: {}", utf8(&output.stderr));
        utf8(&output.stdout)
    }

    fn does_not(arguments: &[&String]) -> String {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_str()).collect();
        let output = check(&arguments);
        let error = utf8(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", utf8(&output.stdout));
        assert!(error.starts_with("check.py: ") && error.lines().count() == 1, "{error}");
        error
    }
}

#[tokio::test]
async fn the_example_script_checks_what_the_api_answers() {
    let daemon = Daemon::start();
    live(&daemon.connect("bank-a").await, 60).await;
    let auditor = daemon.connect("auditor").await;
    let page = done(&auditor.get("/v1/audit?limit=100").await.unwrap());
    let entries = page["items"].as_array().unwrap();
    let size = entries.len() as u64;
    let copy = Copy::of(&daemon.database());
    let (notary, files) = (Notary::new(3), Files(Scratch::new()));
    let text = |text: &str| text.to_owned();
    let [leaf, checkpoint, inclusion, consistency] =
        ["leaf", "checkpoint", "inclusion", "consistency"].map(text);
    let note = |size: u64| notary.note(copy.head(size), 1_893_456_000);
    let (pem, stranger) =
        (files.write("audit.pem", &notary.pem()), files.write("other.pem", &Notary::new(4).pem()));
    let new = files.write("checkpoint.txt", &note(size));

    // What the page tells to paste.
    let said = bash(files.0.path(), block("`audit.pem`:\n\n```sh\n"));
    assert_eq!(said, "Verified OK\n");

    assert!(Files::holds(&[&checkpoint, &new, &stranger, &pem]).contains(&format!("had {size} entries")));
    Files::does_not(&[&checkpoint, &new, &stranger]);
    let forged = files.write("forged", &note(size).replace("time 2030", "time 2031"));
    assert!(Files::does_not(&[&checkpoint, &forged, &pem]).contains("signed by none"));
    for garbage in ["", "x", "\n\n\n", "a\n1\nb\n\n\u{2014} a !\n"] {
        let garbage = files.write("garbage", garbage);
        Files::does_not(&[&checkpoint, &garbage, &pem]);
    }

    for number in [1, 2, 33, size] {
        let entry = &entries[number as usize - 1];
        let answer = auditor.get(&format!("/v1/audit/proof?entry={number}&size={size}")).await.unwrap();
        let proof = done(&answer);
        let entry_file = files.write("entry", &entry.to_string());
        let proof_file = files.write("proof", &proof.to_string());
        Files::holds(&[&leaf, &entry_file]);
        let said = Files::holds(&[&inclusion, &entry_file, &proof_file, &new, &pem]);
        assert!(said.contains(&format!("entry {number} is one of the {size}")), "{said}");
        Files::does_not(&[&inclusion, &entry_file, &proof_file, &new, &stranger]);

        for (name, value) in [
            ("unix_ms", json!(1)),
            ("event", json!("otp.refused")),
            ("rows", json!(["x"])),
            ("detail", json!("x")),
        ] {
            let mut edited = entry.clone();
            edited[name] = value;
            let edited = files.write("edited", &edited.to_string());
            assert!(Files::does_not(&[&leaf, &edited]).contains("does not say"), "{name}");
        }
        // One that was edited with its hash.
        let mut edited = entry.clone();
        edited["unix_ms"] = json!(1);
        edited["leaf_hash"] = json!(BASE64URL_NOPAD.encode(&hash_of_leaf(&edited)));
        let edited = files.write("edited", &edited.to_string());
        Files::holds(&[&leaf, &edited]);
        assert!(Files::does_not(&[&inclusion, &edited, &proof_file, &new, &pem]).contains("does not lead"));
        for change in 0..3 {
            let mut wrong = proof.clone();
            let hashes = wrong["hashes"].as_array_mut().unwrap();
            match change {
                0 => drop(hashes.pop()),
                1 => hashes.push(entry["leaf_hash"].clone()),
                _ => hashes[0] = json!(BASE64URL_NOPAD.encode(&[1; 32])),
            }
            let wrong = files.write("wrong", &wrong.to_string());
            Files::does_not(&[&inclusion, &entry_file, &wrong, &new, &pem]);
        }
    }

    for from in [1, 2, 7, 8, 63, size - 1, size] {
        let answer = auditor.get(&format!("/v1/audit/proof?from={from}&to={size}")).await.unwrap();
        let proof = done(&answer);
        let old = files.write("old", &note(from));
        let proof_file = files.write("proof", &proof.to_string());
        Files::holds(&[&consistency, &proof_file, &old, &new, &pem]);
        // Another log of the same size, signed.
        let mut head = copy.head(from);
        head.root.0[0] ^= 1;
        let other = files.write("other", &notary.note(head, 1_893_456_000));
        Files::does_not(&[&consistency, &proof_file, &other, &new, &pem]);
        let mut wrong = proof.clone();
        wrong["hashes"].as_array_mut().unwrap().push(json!(BASE64URL_NOPAD.encode(&[1; 32])));
        let wrong = files.write("wrong", &wrong.to_string());
        Files::does_not(&[&consistency, &wrong, &old, &new, &pem]);
    }
    Files::does_not(&[]);
    Files::does_not(&[&leaf]);

    // And one that the HSM signed.
    let answer = auditor.get("/v1/audit/checkpoint").await.unwrap();
    let keys = done(&auditor.get("/v1/audit/keys").await.unwrap());
    let pem = files.write("own.pem", keys["keys"][0]["public_key_pem"].as_str().unwrap());
    let own = files.write("own", &utf8(&answer.body));
    Files::holds(&[&checkpoint, &own, &pem]);
    copy.verified(&["--key", &pem, "--checkpoint", &own]);
}
