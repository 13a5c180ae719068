//! The PKCS#11 module that the suite runs on: SoftHSM, or what `HSM_AUTHD_TEST_MODULE` says (docs/hsm-modules.md).

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fault_module::Function;
use hsm_authd::dev::SOFTHSM_MODULES;
use serde_json::{Value, json};

/// A module that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestModule {
    SoftHsm,
    Kryoptic,
    Nss,
}

/// What not every module lets a test do; each says why, for the line that says that a test was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The token goes away when its files are moved, and comes back with them.
    Removal,
    /// Several tokens.
    Tokens,
    /// Public keys that are none.
    BadPublicKeys,
    /// A token that `init` makes, with a security officer and a PIN to be set.
    Officer,
    /// Objects that are made without a login.
    PublicObjects,
    /// Pairs that may do what their type cannot.
    OddKeys,
    /// Public keys that need a login.
    PrivatePublicKeys,
    /// A list of mechanisms with each key.
    KeysMechanisms,
    /// An answer to a wrapping of a key that must not leave, before its length is looked at.
    Unextractable,
    /// A file for each object, by which a test sees what was made and what was destroyed.
    ObjectFiles,
    /// Functions that are handed out by `C_GetFunctionList`.
    FunctionList,
    /// A token that says that a PIN was refused since the last login.
    Refusals,
    /// Session objects that a logout ends.
    Logout,
    /// A label of each token's own, by which a test tells several apart.
    Labels,
}

/// The first function that is asked of a module: those of 3.0 hand their functions out by `C_GetInterface`, which no fault
/// meets.
pub fn first_function() -> Function {
    match TestModule::chosen() {
        TestModule::SoftHsm => Function::C_GetFunctionList,
        TestModule::Kryoptic | TestModule::Nss => Function::C_Initialize,
    }
}

impl TestModule {
    /// The one of this run.
    pub fn chosen() -> Self {
        match std::env::var("HSM_AUTHD_TEST_MODULE").as_deref() {
            Err(_) | Ok("softhsm") => Self::SoftHsm,
            Ok("kryoptic") => Self::Kryoptic,
            Ok("nss") => Self::Nss,
            Ok(other) => panic!("HSM_AUTHD_TEST_MODULE={other}: softhsm, kryoptic or nss"),
        }
    }

    /// Its library.
    pub fn library(self) -> PathBuf {
        let first = |places: &[&str]| {
            let found = places.iter().map(PathBuf::from).find(|path| path.exists());
            found.unwrap_or_else(|| panic!("{self:?} is not there: make test-modules installs it"))
        };
        match self {
            Self::SoftHsm => first(&SOFTHSM_MODULES),
            Self::Kryoptic => {
                let built = "target/kryoptic/release/libkryoptic_pkcs11.so";
                first(&[Path::new(env!("CARGO_MANIFEST_DIR")).join(built).to_str().unwrap()])
            }
            Self::Nss => first(&[
                "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
                "/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so",
                "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
                "/usr/lib64/libsoftokn3.so",
            ]),
        }
    }

    /// What `init` says of a token: of one that is new, and of one that is there.
    pub fn set_up_says(self, label: &str) -> [Vec<String>; 2] {
        let there = format!("token {label}: already there");
        match self {
            Self::Nss => {
                let form =
                    format!("token {label}: has no data objects; the anchor of the log is the id of a key");
                [vec![there.clone(), form], vec![there]]
            }
            _ => [vec![format!("token {label}: made"), format!("token {label}: user PIN set")], vec![there]],
        }
    }

    /// What a token can be labelled that a test would call so.
    pub fn label(self, wanted: &str) -> String {
        match self {
            Self::Nss => "NSS Certificate DB".to_owned(),
            _ => wanted.to_owned(),
        }
    }

    /// Whether a custodian that reads its objects while another process makes some may find what it does not believe, and be
    /// replaced.
    pub fn fails_over_a_token_that_changes(self) -> bool {
        self == Self::Kryoptic
    }

    /// What its tokens are called by in their descriptions.
    pub fn model(self) -> &'static str {
        match self {
            Self::SoftHsm => "SoftHSM",
            Self::Kryoptic => "Kryoptic",
            Self::Nss => "NSS",
        }
    }

    /// The variable that it is started with, for most the one that names its configuration.
    pub fn environment(self, folder: &Path) -> Option<(&'static str, String)> {
        let conf = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        match self {
            Self::SoftHsm => Some(("SOFTHSM2_CONF", conf("softhsm2.conf"))),
            Self::Kryoptic => Some(("KRYOPTIC_CONF", conf("kryoptic.conf"))),
            // A PIN that is a test's own need not be costly to try.
            Self::Nss => Some(("NSS_MAX_MP_PBE_ITERATION_COUNT", "1".to_owned())),
        }
    }

    /// What it is told at `C_Initialize` of tokens in this folder.
    pub fn arguments(self, tokens: &Path) -> Option<CString> {
        let nss = || {
            let text = format!(
                "configdir='sql:{}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=",
                tokens.display()
            );
            CString::new(text).unwrap()
        };
        (self == Self::Nss).then(nss)
    }

    /// Writes its configuration, for tokens in another folder.
    pub fn configure(self, folder: &Path, tokens: &Path) {
        let (name, text) = match self {
            Self::SoftHsm => {
                let tokens = tokens.display();
                let text = format!(
                    "directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
                );
                ("softhsm2.conf", text)
            }
            Self::Kryoptic => {
                let file = tokens.join("token.sql");
                let text =
                    format!("[[slots]]\nslot = 0\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", file.display());
                ("kryoptic.conf", text)
            }
            Self::Nss => return,
        };
        fs::write(folder.join(name), text).unwrap();
    }

    /// Makes what `init` cannot: a database of NSS's, with its PIN.
    pub fn make_database(self, tokens: &Path, pin_file: &Path) {
        if self != Self::Nss || tokens.join("key4.db").exists() {
            return;
        }
        let status = Command::new("certutil")
            .envs(self.environment(tokens))
            .args(["-N", "-d"])
            .arg(format!("sql:{}", tokens.display()))
            .arg("-f")
            .arg(pin_file)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "certutil");
    }

    /// Writes the configuration of a `dev` whose folder this is, but for SoftHSM's, which it has itself.
    pub fn write_dev(self, folder: &Path, label: &str) {
        if self == Self::SoftHsm {
            return;
        }
        let tokens = folder.join("token");
        self.configure(folder, &tokens);
        let environment: serde_json::Map<String, Value> = self
            .environment(folder)
            .map(|(name, value)| (name.to_owned(), value.into()))
            .into_iter()
            .collect();
        let hsm = json!({
            "module": self.library(),
            "module_arguments": self.arguments(&tokens).unwrap_or_default().to_str().unwrap(),
            "token_label": self.label(label),
            "pin_file": folder.join("pin"),
            "environment": environment,
            "folders": [tokens],
        });
        let path = folder.join("hsm.toml");
        fs::write(&path, toml::to_string(&hsm).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// What such a `dev` is started with.
    pub fn dev_arguments(folder: &Path) -> Vec<String> {
        let file = folder.join("hsm.toml");
        match file.exists() {
            true => vec!["--hsm".to_owned(), file.to_str().unwrap().to_owned()],
            false => Vec::new(),
        }
    }

    /// Why a test that needs this is passed over with the module; `None`: it is not.
    fn lacks(self, feature: Feature) -> Option<&'static str> {
        match (self, feature) {
            (Self::SoftHsm, _) => None,
            (_, Feature::Removal) => Some("it keeps its database open, which goes on where it is moved to"),
            (_, Feature::Tokens) => Some("it has one token"),
            (_, Feature::BadPublicKeys) => Some("it takes no public key that is none"),
            (_, Feature::PublicObjects) => Some("it makes no object without a login"),
            (_, Feature::ObjectFiles) => Some("its objects are rows of one database"),
            (_, Feature::Refusals) => Some("it says nothing of attempts before the last one"),
            (_, Feature::FunctionList) => Some("it hands its functions out by C_GetInterface"),
            (Self::Kryoptic, _) => None,
            (Self::Nss, Feature::Officer) => Some("its database is made by certutil, with the PIN"),
            (Self::Nss, Feature::OddKeys) => Some("it makes no pair for what its type cannot do"),
            (Self::Nss, Feature::PrivatePublicKeys) => {
                Some("its public keys are public, so what signs is not retired there")
            }
            (Self::Nss, Feature::KeysMechanisms) => Some("it keeps no list of mechanisms with a key"),
            (Self::Nss, Feature::Labels) => Some("each of its tokens is called NSS Certificate DB"),
            (Self::Nss, Feature::Logout) => Some("what is in a session goes on being used after a logout"),
            (Self::Nss, Feature::Unextractable) => Some("it looks at a key's length before anything else"),
        }
    }
}

/// Whether the module of this run cannot do what the test needs. A line says so, whether or not the test's output is
/// shown, so that nothing is passed over unseen.
pub fn passed_over(feature: Feature) -> bool {
    let module = TestModule::chosen();
    let Some(reason) = module.lacks(feature) else { return false };
    let thread = std::thread::current();
    let line = format!("passed over on {module:?}: {}: {reason}\n", thread.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    true
}
