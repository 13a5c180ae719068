//! Tokens that were made once for all tests of a process, by the real `hsm-authd token-setup`: an RSA key alone takes
//! longer than most tests. Whoever needs keys that nobody else has makes a token of its own.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::modules::TestModule;
use crate::token::TestToken;

/// The label of the token of `hsm-authd dev`.
pub const DEV_LABEL: &str = "hsm-authd-dev";

/// What is in a token's folder: a software token is files.
struct Prepared(Vec<(PathBuf, Vec<u8>)>);

impl Prepared {
    fn make(label: &str) -> Self {
        Self::make_with(TestToken::bare(), label)
    }

    fn make_with(mut token: TestToken, label: &str) -> Self {
        token.boot.token_label = TestModule::chosen().label(label);
        let output = token.set_up(true);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut files = Vec::new();
        let tokens = token.tokens();
        read(&tokens, &tokens, &mut files);
        Self(files)
    }

    fn write(&self, folder: &Path) {
        for (name, content) in &self.0 {
            let path = folder.join(name);
            DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

fn read(base: &Path, folder: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(base, &path, files);
        } else {
            files.push((path.strip_prefix(base).unwrap().to_owned(), fs::read(&path).unwrap()));
        }
    }
}

/// Fills the folder of a [`TestToken`]'s tokens.
pub fn write_token(folder: &Path) {
    static TOKEN: OnceLock<Prepared> = OnceLock::new();
    TOKEN.get_or_init(|| Prepared::make("hsm-authd test")).write(folder);
}

/// Fills the folder of a `dev` that has not started yet: its token and both PINs.
pub fn write_dev(folder: &Path) {
    static TOKEN: OnceLock<Prepared> = OnceLock::new();
    write_dev_with(TOKEN.get_or_init(|| Prepared::make(DEV_LABEL)), folder);
}

/// The same with a token that nobody else has. SoftHSM's is made by `dev` itself.
pub fn write_own_dev(folder: &Path) {
    if TestModule::chosen() != TestModule::SoftHsm {
        write_dev_with(&Prepared::make(DEV_LABEL), folder);
    }
}

/// The same with PINs of the test's own; `dev` is given them by the files.
pub fn write_dev_with_pins(folder: &Path, pin: &str, so_pin: &str) {
    let token = TestToken::bare();
    fs::write(&token.boot.pin_file, pin).unwrap();
    fs::write(token.boot.pin_file.with_file_name("so-pin"), so_pin).unwrap();
    write_files(&Prepared::make_with(token, DEV_LABEL), folder, pin, so_pin);
}

fn write_dev_with(prepared: &Prepared, folder: &Path) {
    write_files(prepared, folder, crate::token::PIN, crate::token::SO_PIN);
}

fn write_files(prepared: &Prepared, folder: &Path, pin: &str, so_pin: &str) {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
    prepared.write(&folder.join("token"));
    for (name, pin) in [("pin", pin), ("so-pin", so_pin)] {
        let path = folder.join(name);
        fs::write(&path, pin).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    TestModule::chosen().write_dev(folder, DEV_LABEL);
}
