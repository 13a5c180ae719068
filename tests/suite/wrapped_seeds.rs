//! Seeds as whoever makes tokens wraps them: by `examples/import/wrap-seed.sh`, and by openssl for all that it would not do.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use data_encoding::{BASE64, HEXLOWER};
use serde_json::Value;

use crate::bank::done;
use crate::client::Connection;
use crate::scratch::Scratch;

pub const IMPORT_KEY: &str = "/v1/import-key";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/import/wrap-seed.sh");

/// OAEP as the appliance takes it.
pub const OAEP_SHA1: [&str; 3] = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha1", "rsa_mgf1_md:sha1"];

/// An import key that was fetched.
pub struct Wrapper {
    scratch: Scratch,
    pub document: Value,
}

impl Wrapper {
    pub async fn fetch(connection: &Connection) -> Self {
        let document = done(&connection.get(IMPORT_KEY).await.unwrap());
        let scratch = Scratch::new();
        scratch.write("import-key.json", &document.to_string());
        scratch.write("key.pem", document["public_key_pem"].as_str().unwrap());
        Self { scratch, document }
    }

    /// One line, by the example.
    pub fn wrap(&self, seed: &[u8]) -> String {
        let output = script(&self.scratch.join("import-key.json"), &HEXLOWER.encode(seed));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said} (openssl, jq and coreutils have to be there)");
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.strip_suffix('\n').unwrap();
        assert_eq!(line.len(), 512, "{line}");
        line.to_owned()
    }

    /// Any bytes, by any padding of openssl's.
    pub fn encrypt(&self, bytes: &[u8], options: &[&str]) -> Vec<u8> {
        encrypt(&self.scratch.join("key.pem"), bytes, options)
    }

    /// 64 bytes, as they are.
    pub fn blob(&self, bytes: &[u8; 64]) -> Vec<u8> {
        self.encrypt(bytes, &OAEP_SHA1)
    }
}

/// Runs the example.
pub fn script(key: &Path, seed_hex: &str) -> Output {
    run(Command::new(SCRIPT).arg(key), seed_hex.as_bytes())
}

/// By the key in this file.
pub fn encrypt(key: &Path, bytes: &[u8], options: &[&str]) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(["pkeyutl", "-encrypt", "-pubin", "-inkey"]).arg(key);
    for option in options {
        command.args(["-pkeyopt", option]);
    }
    let output = run(&mut command, bytes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have ended without reading this.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A public key of somebody's own, of so many bits.
pub fn other_key(scratch: &Scratch, bits: u32) -> PathBuf {
    let (private, public) = (scratch.join("other.key"), scratch.join("other.pem"));
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&private).arg(bits.to_string()).output();
    assert!(made.unwrap().status.success());
    let written = Command::new("openssl")
        .args(["rsa", "-pubout", "-in"])
        .arg(&private)
        .arg("-out")
        .arg(&public)
        .output();
    assert!(written.unwrap().status.success());
    public
}

/// A seed with zeros behind it.
pub fn padded(seed: &[u8]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..seed.len()].copy_from_slice(seed);
    bytes
}

pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}
