//! What `docs/api.md` and the pages of the methods show works when it is pasted into a shell.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::daemon::Daemon;

/// The lines that are to be pasted, block by block.
fn blocks(page: &'static str) -> Vec<&'static str> {
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// What bash writes to its standard output.
fn bash(folder: &Path, lines: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", lines])
        .current_dir(folder)
        .envs(variables.iter().copied())
        .output()
        .expect("this test needs bash, curl, jq and openssl");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}: {errors} (curl, jq and openssl have to be there)");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn every_block_of_the_documentation_works() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let [document, approval] = blocks(include_str!("../../docs/api.md"))[..] else {
        panic!("a block that this test does not know")
    };
    let lines = document.replace("https://127.0.0.1:8443", &daemon.url());
    let document: Value = serde_json::from_str(&bash(&daemon.dir().join("pki"), &lines, &[])).unwrap();
    assert_eq!(document["openapi"], "3.1.0");

    let folder = daemon.dir();
    let shown = bash(Path::new("/"), approval, &[("DEV_DIR", folder.to_str().unwrap())]);
    let terms: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&terms["payee"], &terms["amount"]), (&"DE89370400440532013000".into(), &"1250.00".into()));
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let approved: Value = serde_json::from_slice(&read("approved.json")).unwrap();
    assert_eq!(approved["state"], "approved");
    let keys: Value = serde_json::from_slice(&read("jwks.json")).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    let scanned = bash(&folder, "zbarimg --quiet --raw qr.png", &[]);
    assert_eq!(scanned.trim_end(), approved["attestation"].as_str().unwrap());
}

#[tokio::test]
async fn each_method_can_be_tried_as_its_page_says() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let folder = daemon.dir();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (page, account) in [
        (include_str!("../../docs/methods/multi_terminal.md"), "account-1010"),
        (include_str!("../../docs/methods/rolling_password.md"), "account-1011"),
        (include_str!("../../docs/methods/presented_code.md"), "account-1012"),
    ] {
        let [lines] = blocks(page)[..] else { panic!("{account}: not one block") };
        let shown = bash(sources, lines, &[("DEV_DIR", folder.to_str().unwrap())]);
        let answers: Vec<Value> =
            serde_json::Deserializer::from_str(&shown).into_iter().collect::<Result<_, _>>().unwrap();
        let approved = serde_json::json!({ "state": "approved", "account": account });
        assert!(answers.contains(&approved), "{account}: {shown}");
    }
}

#[tokio::test]
async fn a_seed_can_be_wrapped_as_its_page_says() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let [lines] = blocks(include_str!("../../docs/import.md"))[..] else { panic!("not one block") };
    let folder = daemon.dir();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = bash(sources, lines, &[("DEV_DIR", folder.to_str().unwrap())]);
    let answer: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(answer, serde_json::json!({ "account": "account-1013", "verified": true }));
}
