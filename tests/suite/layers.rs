//! The rule of `src/lib.rs`: which module may use which.

use std::fs;
use std::path::{Path, PathBuf};

/// A module, and what of the crate it may use besides itself.
const ALLOWED: [(&str, &[&str]); 37] = [
    ("secret", &[]),
    ("domain", &[]),
    ("files", &[]),
    ("boot", &["domain::time"]),
    ("sandbox", &["files"]),
    ("clock", &["boot", "domain"]),
    ("lifeline", &[]),
    ("metrics", &["domain"]),
    ("config", &["domain", "files"]),
    ("control", &["files", "hsm::messages", "sandbox"]),
    ("hsm", &["domain", "secret", "lifeline", "metrics", "sandbox::Reach"]),
    ("custodian", &["domain", "boot", "secret", "hsm::messages", "control", "sandbox"]),
    ("store", &["domain", "secret", "lifeline", "metrics"]),
    ("service", &["domain", "secret", "clock", "config", "lifeline", "metrics", "hsm", "store"]),
    ("tls", &["domain", "config", "files", "hsm"]),
    ("trust", &["domain", "config", "files"]),
    ("api", &["domain", "secret", "config", "lifeline", "metrics", "service", "store::Page", "tls"]),
    ("server", &["api", "config", "files", "hsm", "lifeline", "metrics", "tls"]),
    ("ops", &["api", "clock", "hsm", "metrics", "server", "service", "store"]),
    ("control_socket", &["service"]),
    (
        "front",
        &[
            "domain",
            "api",
            "clock",
            "config",
            "control",
            "control_socket",
            "files",
            "hsm",
            "metrics",
            "ops",
            "sandbox",
            "server",
            "service",
            "store",
            "trust",
        ],
    ),
    (
        "supervisor",
        &[
            "config",
            "control",
            "files",
            "init",
            "hsm::messages",
            "operator",
            "sandbox",
            "custodian::EXIT_PIN_REFUSED",
            "custodian::EXIT_START_FAILED",
            "systemd",
        ],
    ),
    ("systemd", &[]),
    ("operator", &["config"]),
    (
        "first_run",
        &["config", "dev::SOFTHSM_MODULES", "domain::caller", "keys", "operator", "sandbox", "store::usage"],
    ),
    (
        "init",
        &[
            "config",
            "control",
            "custodian::token::Setup",
            "hsm::messages",
            "sandbox::Reach",
            "store::usage",
            "supervisor",
        ],
    ),
    (
        "keys",
        &[
            "domain",
            "clock",
            "config",
            "control_socket",
            "custodian::certificate_request",
            "custodian::key_task",
            "custodian::shared_keys",
            "hsm::messages",
            "init",
            "offline",
            "operator",
            "service::at_rest",
            "service::rewrapping",
            "store",
            "supervisor",
            "tls",
        ],
    ),
    (
        "check",
        &[
            "clock",
            "config",
            "files",
            "hsm",
            "init",
            "offline::QUIET",
            "operator",
            "sandbox",
            "server",
            "store::usage",
            "supervisor",
            "tls",
            "trust",
        ],
    ),
    ("backup", &["clock", "custodian::key_task", "domain", "keys", "operator", "store"]),
    ("offline", &["config", "hsm", "init", "supervisor"]),
    (
        "restore",
        &[
            "backup",
            "clock",
            "domain",
            "hsm",
            "keys",
            "offline",
            "operator",
            "service",
            "store",
            "supervisor",
        ],
    ),
    ("recover", &["clock", "domain", "hsm", "offline", "operator", "service", "store", "supervisor"]),
    ("dev", &["domain::caller", "config", "control", "init", "supervisor"]),
    (
        "audit",
        &[
            "domain",
            "hsm",
            "offline",
            "operator",
            "service::audit_view",
            "store::OpenError",
            "store::offline",
        ],
    ),
    ("cli", &["audit", "config::DEFAULT_PATH", "dev", "first_run", "keys"]),
    ("lib", &[]),
    ("main", &[]),
];

/// What the pure core may use of other crates: types, encodings, comparisons, hashes, checks of keys and
/// certificates, errors.
const PURE: [&str; 19] = [
    "std",
    "core",
    "super",
    "self",
    "crate",
    "serde",
    "serde_json",
    "subtle",
    "zeroize",
    "thiserror",
    "data_encoding",
    "p256",
    "sha2",
    "x509_cert",
    "iso_currency",
    "unicode_normalization",
    "webpki",
    "rustls_pki_types",
    "time",
];

/// What of the standard library is not pure.
const IMPURE_STD: [&str; 8] =
    ["std::fs", "std::io", "std::net", "std::os", "std::process", "std::thread", "std::env", "std::time"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file: without comments, and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Every path in `code` that begins with `crate::`, the branches of a `use` in braces included.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let head: String = rest.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
        match rest[head.len()..].strip_prefix('{') {
            Some(branches) => {
                let branches = branches.split('}').next().unwrap();
                paths.extend(branches.split(',').map(|branch| format!("{head}{}", branch.trim())));
            }
            None => paths.push(head),
        }
    }
    paths
}

#[test]
fn every_module_keeps_to_its_layer() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in sources(&src) {
        let relative = path.strip_prefix(&src).unwrap().with_extension("");
        let module = relative.iter().next().unwrap().to_str().unwrap().to_owned();
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
            panic!("{}: a module without a layer: say in this test what it may use", path.display());
        };
        for used in crate_paths(&code(&path)) {
            let own = used == "Ending" || used == module || used.starts_with(&format!("{module}::"));
            let may = allowed.iter().any(|a| used == *a || used.starts_with(&format!("{a}::")));
            assert!(own || may, "{} uses crate::{used}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 100, "only {seen} uses found: the test does not see them");
}

#[test]
fn the_domain_is_pure() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
    let mut seen = 0;
    for path in sources(&folder) {
        let code = code(&path);
        for line in code.lines().filter_map(|line| line.trim().strip_prefix("use ")) {
            let root = line.split("::").next().unwrap().trim_end_matches(';');
            assert!(PURE.contains(&root), "{} uses {line}", path.display());
            seen += 1;
        }
        for impure in
            IMPURE_STD.iter().chain(&["async ", ".await", "tokio", "rusqlite", "cryptoki", "hyper", "axum"])
        {
            assert!(!code.contains(impure), "{} has {impure}", path.display());
        }
    }
    assert!(seen > 20, "only {seen} uses found: the test does not see them");
}

#[test]
fn the_api_alone_describes_itself() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in sources(&src) {
        // What a bank sees of a row is one JSON for answers and for records, and so lies below the API.
        let is_view =
            ["audit_view", "authorization_view", "credential_view", "presentation_view", "transaction_view"]
                .iter()
                .any(|view| path.ends_with(format!("service/{view}.rs")));
        let may = path.starts_with(src.join("api")) || is_view;
        let names = code(&path).contains("utoipa");
        assert!(may || !names, "{} names utoipa", path.display());
        seen += usize::from(names);
    }
    assert!(seen > 5, "nobody names it: the test does not see them");
}

#[test]
fn one_module_alone_names_cryptoki() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in sources(&src) {
        let may = path.with_extension("").starts_with(src.join("custodian/pkcs11"));
        let names = code(&path).contains("cryptoki");
        assert!(may || !names, "{} names cryptoki", path.display());
        seen += usize::from(names);
    }
    assert!(seen > 1, "nobody names it: the test does not see them");
}
