//! The configuration file: strict TOML, every path relative to the file's own folder.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::domain::caller::{ClientName, Permission, Tenant};
use crate::domain::credential::Keeping;

/// The whole file. Unknown keys are errors.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The API's listener.
    pub server: Server,
    /// The operator's listener.
    pub ops: Ops,
    /// Where state is kept.
    pub store: StoreConfig,
    /// The HSM and its custodians.
    pub hsm: HsmConfig,
    /// What may be enrolled, and for how long it is kept.
    #[serde(default)]
    pub credentials: CredentialPolicy,
    /// Whom devices that sign are vouched for by.
    #[serde(default)]
    pub signers: SignerPolicy,
    /// Transactions.
    #[serde(default)]
    pub transactions: TransactionPolicy,
    /// What is signed of their approvals.
    #[serde(default)]
    pub attestations: AttestationPolicy,
    /// The audit log.
    #[serde(default)]
    pub audit: AuditPolicy,
    /// Who may ask. At least one.
    #[serde(rename = "client")]
    pub clients: Vec<ClientConfig>,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address and port of the mutual-TLS API.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM, its own first.
    pub certificate: PathBuf,
    /// The server's private key, PEM (PKCS#8).
    pub key: PathBuf,
    /// The authorities that client certificates must come from, PEM.
    pub client_ca: PathBuf,
    /// Deadlines and bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// `[server.limits]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Requests worked on at once; further ones are 503.
    pub requests_max: usize,
    /// Time for a TLS handshake.
    pub handshake_timeout_ms: u64,
    /// Time for a request's header, from the first moment a connection could send it; on HTTP/2, for the
    /// connection's first bytes.
    pub header_timeout_ms: u64,
    /// Time for a request's body.
    pub body_timeout_ms: u64,
    /// How long a client may take none of what it is sent.
    pub write_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            requests_max: 1_024,
            handshake_timeout_ms: 5_000,
            header_timeout_ms: 30_000,
            body_timeout_ms: 10_000,
            write_timeout_ms: 30_000,
        }
    }
}

/// `[ops]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ops {
    /// Address and port for health checks: plain HTTP, loopback only.
    pub listen: SocketAddr,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite database; it is made if it does not exist.
    pub path: PathBuf,
}

/// `[hsm]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmConfig {
    /// The PKCS#11 module, an absolute path.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// The file with the user PIN.
    pub pin_file: PathBuf,
    /// How many custodian processes; by default one a core, at most 4.
    #[serde(default = "default_custodians")]
    pub custodians: u16,
    /// How many unwrapped secrets each custodian keeps as session objects, and as many public keys.
    #[serde(default = "default_secrets_cached_max")]
    pub secrets_cached_max: usize,
    /// Where new secrets are kept; those that are there stay where they are.
    #[serde(default)]
    pub custody: Keeping,
    /// How many secrets may be objects in the HSM.
    #[serde(default = "default_resident_capacity")]
    pub resident_capacity: u32,
    /// Set for custodians only, such as `SOFTHSM2_CONF`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

fn default_custodians() -> u16 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4) as u16)
}

fn default_secrets_cached_max() -> usize {
    10_000
}

fn default_resident_capacity() -> u32 {
    1_000
}

/// `[credentials]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialPolicy {
    /// Whether an enrolment may ask for the `otpauth` URI, which holds the seed.
    pub allow_export: bool,
    /// Whether an enrolment may bring its seed in the clear.
    pub allow_clear_seeds: bool,
    /// How long the tombstone of a deleted credential is kept, in days.
    pub tombstone_days: u32,
    /// How long a new terminal is asked for no code, in seconds.
    pub terminal_cooling_seconds: u32,
}

impl Default for CredentialPolicy {
    fn default() -> Self {
        Self {
            allow_export: false,
            allow_clear_seeds: true,
            tombstone_days: 90,
            terminal_cooling_seconds: 86_400,
        }
    }
}

/// `[signers]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SignerPolicy {
    /// The authorities that certificate chains of signing devices must lead to, PEM. Without it every chain is
    /// refused.
    pub trust_anchors: Option<PathBuf>,
    /// Revocation lists, PEM. If there is any, every issuer of a chain needs a current one.
    pub crls: Vec<PathBuf>,
}

/// `[transactions]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransactionPolicy {
    /// How many wrong responses end a `device_signature` transaction.
    pub signature_attempts: u8,
    /// How long a transaction that has ended is kept, with its attestation, in days.
    pub keep_days: u32,
    /// How many rolling passwords of nobody's a client may send in a minute; 0: as many as it likes.
    pub unknown_passwords_per_minute: u32,
}

impl Default for TransactionPolicy {
    fn default() -> Self {
        Self { signature_attempts: 1, keep_days: 90, unknown_passwords_per_minute: 60 }
    }
}

/// `[attestations]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationPolicy {
    /// The claim `iss`.
    pub issuer: String,
    /// How long an attestation may be relied on, in hours.
    pub lifetime_hours: u32,
    /// What stands before the attestation in a QR code.
    pub qr_url_prefix: String,
}

impl Default for AttestationPolicy {
    fn default() -> Self {
        Self { issuer: "hsm-authd".to_owned(), lifetime_hours: 24, qr_url_prefix: String::new() }
    }
}

/// `[audit]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditPolicy {
    /// When the token is told how far the log has come.
    pub anchor: AnchorMode,
}

/// When the anchor in the token follows the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnchorMode {
    /// Every 10 seconds, or after 10,000 entries. A database that was turned back within that time is not noticed.
    #[default]
    Interval,
    /// Before any answer that rests on a commit.
    EveryCommit,
}

/// Whose data a client sees.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum TenantScope {
    /// One tenant's.
    One(Tenant),
    /// Every tenant's audit log (`"*"`).
    All,
}

impl TenantScope {
    /// The one tenant; `None`: it is every one's.
    pub fn only(&self) -> Option<&Tenant> {
        match self {
            Self::One(tenant) => Some(tenant),
            Self::All => None,
        }
    }
}

impl TryFrom<String> for TenantScope {
    type Error = crate::domain::caller::BadName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "*" { Ok(Self::All) } else { Tenant::try_from(text).map(Self::One) }
    }
}

/// `[[client]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Its name in logs and idempotency records; unique.
    pub name: ClientName,
    /// The URI, or else the DNS name, in its certificate's subject alternative name; unique.
    pub san: String,
    /// Whose data it sees.
    pub tenant: TenantScope,
    /// What it may do.
    pub permissions: Vec<Permission>,
}

/// What is wrong with a configuration, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    reason: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One line that says what to mend and in which file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let absolute = std::path::absolute(path).map_err(|e| fail(e.to_string()))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, folder).map_err(fail)
    }

    /// Parses and checks a configuration whose relative paths begin at `folder`.
    ///
    /// # Errors
    /// One line that says what to mend.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut config: Self = toml::from_str(text).map_err(|e| one_line(text, &e))?;
        for path in [
            &mut config.server.certificate,
            &mut config.server.key,
            &mut config.server.client_ca,
            &mut config.store.path,
            &mut config.hsm.pin_file,
        ]
        .into_iter()
        .chain(&mut config.signers.trust_anchors)
        .chain(&mut config.signers.crls)
        {
            *path = folder.join(&*path);
        }
        config.validate()?;
        Ok(config)
    }

    /// The files that everybody may read although they are secret: the server's key, the PIN. Owner and group
    /// are left alone: how credentials are handed to a service differs between systems.
    pub fn exposed_files(&self) -> Vec<&Path> {
        let is_exposed = |path: &&Path| {
            std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
        };
        [self.server.key.as_path(), self.hsm.pin_file.as_path()].into_iter().filter(is_exposed).collect()
    }

    fn validate(&self) -> Result<(), String> {
        if !self.ops.listen.ip().is_loopback() {
            return Err("ops.listen must be a loopback address: it is plain HTTP".into());
        }
        if !self.hsm.module.is_absolute() {
            return Err("hsm.module must be an absolute path: a module is code that is loaded".into());
        }
        if self.hsm.token_label.is_empty() || self.hsm.token_label.len() > 32 {
            return Err("hsm.token_label must have 1 to 32 bytes".into());
        }
        if !(1..=64).contains(&self.hsm.custodians) {
            return Err("hsm.custodians must be 1 to 64".into());
        }
        if !(1..=1_000_000).contains(&self.hsm.secrets_cached_max) {
            return Err("hsm.secrets_cached_max must be 1 to 1000000".into());
        }
        if !(1..=1_000_000).contains(&self.hsm.resident_capacity) {
            return Err("hsm.resident_capacity must be 1 to 1000000".into());
        }
        if self.credentials.terminal_cooling_seconds > 2_592_000 {
            return Err("credentials.terminal_cooling_seconds must be 0 to 2592000".into());
        }
        if !(1..=3).contains(&self.transactions.signature_attempts) {
            return Err("transactions.signature_attempts must be 1 to 3".into());
        }
        if !(1..=3_650).contains(&self.transactions.keep_days) {
            return Err("transactions.keep_days must be 1 to 3650".into());
        }
        if self.transactions.unknown_passwords_per_minute > 60_000 {
            return Err("transactions.unknown_passwords_per_minute must be 0 to 60000".into());
        }
        let attestations = &self.attestations;
        if !(1..=24 * self.transactions.keep_days).contains(&attestations.lifetime_hours) {
            return Err(
                "attestations.lifetime_hours must be at least 1, and not beyond transactions.keep_days"
                    .into(),
            );
        }
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !(1..=128).contains(&attestations.issuer.len()) || !is_plain(&attestations.issuer) {
            return Err("attestations.issuer must be 1 to 128 visible ASCII characters".into());
        }
        if attestations.qr_url_prefix.len() > 512 || !is_plain(&attestations.qr_url_prefix) {
            return Err("attestations.qr_url_prefix must be at most 512 visible ASCII characters".into());
        }
        let limits = &self.server.limits;
        if limits.connections_max == 0 || limits.requests_max == 0 {
            return Err("server.limits: connections_max and requests_max must be at least 1".into());
        }
        let timeouts = [
            limits.handshake_timeout_ms,
            limits.header_timeout_ms,
            limits.body_timeout_ms,
            limits.write_timeout_ms,
        ];
        if timeouts.contains(&0) {
            return Err("server.limits: a timeout must be at least 1 ms".into());
        }
        if self.signers.trust_anchors.is_none() && !self.signers.crls.is_empty() {
            return Err(
                "signers.crls needs signers.trust_anchors: without them every chain is refused".into()
            );
        }
        if self.clients.is_empty() {
            return Err("at least one [[client]] is needed".into());
        }
        let (mut names, mut sans) = (HashSet::new(), HashSet::new());
        for client in &self.clients {
            if !names.insert(&client.name) {
                return Err(format!("client {} is there twice", client.name));
            }
            // Compared without case: a DNS name that two clients share would name neither.
            if client.san.is_empty() || !sans.insert(client.san.to_ascii_lowercase()) {
                return Err(format!("client {}: its san must be given, and be its alone", client.name));
            }
            let audit_only = client.permissions.iter().all(|p| *p == Permission::Audit);
            if client.tenant == TenantScope::All && !audit_only {
                return Err(format!(
                    "client {}: tenant \"*\" may have the permission audit only",
                    client.name
                ));
            }
        }
        Ok(())
    }
}

/// The parser's message without its picture of the line (which might show a value), with its place.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or(1, |before| before.matches('\n').count() + 1);
    // "invalid type: VALUE, expected KIND": the value may be a PIN in the wrong place.
    let words = match error.message().split_once(", expected ") {
        Some((found, kind)) if found.starts_with("invalid ") => format!("a wrong value; expected {kind}"),
        _ => error.message().replace('\n', " "),
    };
    format!("line {line}: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::{Table, Value};

    const SAMPLE: &str = include_str!("../softhsm-setup/hsm-authd.toml");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/hsm-authd"))
    }

    #[test]
    fn the_sample_is_accepted_and_shows_the_defaults() {
        let sample = parse(SAMPLE).unwrap();
        assert_eq!(sample.server.key, Path::new("/etc/hsm-authd/server.key"));
        assert_eq!(sample.store.path, Path::new("/var/lib/hsm-authd/hsm-authd.db"));

        let mut bare: Table = SAMPLE.parse().unwrap();
        for section in ["credentials", "signers", "transactions", "attestations", "audit"] {
            assert!(bare.remove(section).is_some(), "{section}");
        }
        let section = |bare: &mut Table, name: &str, keys: &[&str]| {
            let table = bare[name].as_table_mut().unwrap();
            for key in keys {
                assert!(table.remove(*key).is_some(), "{name}.{key}");
            }
        };
        section(&mut bare, "server", &["limits"]);
        section(
            &mut bare,
            "hsm",
            &["custodians", "secrets_cached_max", "custody", "resident_capacity", "environment"],
        );
        let mut bare = parse(&bare.to_string()).unwrap();
        assert!((1..=4).contains(&bare.hsm.custodians) && bare.hsm.environment.is_empty());
        bare.hsm.custodians = sample.hsm.custodians;
        bare.hsm.environment = sample.hsm.environment.clone();
        assert_eq!(format!("{bare:?}"), format!("{sample:?}"));
    }

    /// The parser names the keys it expects when it meets one that it does not know.
    #[test]
    fn the_sample_has_every_key_there_is() {
        fn known(change: impl FnOnce(&mut Table)) -> Vec<String> {
            let mut sample: Table = SAMPLE.parse().unwrap();
            change(&mut sample);
            let refused = parse(&sample.to_string()).unwrap_err();
            let (_, names) = refused.split_once("expected").unwrap_or_else(|| panic!("{refused}"));
            names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        }
        fn add(table: &mut Table) {
            table.insert("zzz".into(), Value::Boolean(true));
        }
        let sample: Table = SAMPLE.parse().unwrap();
        let check = |table: &Table, known: Vec<String>| {
            assert!(!known.is_empty());
            for key in known {
                assert!(table.contains_key(&key), "the sample lacks {key}");
            }
        };
        check(&sample, known(add));
        for section in
            ["server", "ops", "store", "hsm", "credentials", "transactions", "attestations", "audit"]
        {
            let known = known(|sample| add(sample[section].as_table_mut().unwrap()));
            check(sample[section].as_table().unwrap(), known);
        }
        // Its keys have no default that could be shown.
        let signers = known(|sample| add(sample["signers"].as_table_mut().unwrap()));
        assert_eq!(signers, ["trust_anchors", "crls"]);
        let uncommented =
            SAMPLE.replace("# trust_anchors = ", "trust_anchors = ").replace("# crls = ", "crls = ");
        let signers = parse(&uncommented).unwrap().signers;
        assert_eq!(signers.trust_anchors.unwrap(), Path::new("/etc/hsm-authd/signer-anchors.pem"));
        assert_eq!(signers.crls, [Path::new("/etc/hsm-authd/signer-root.crl.pem")]);
        let limits = known(|sample| add(sample["server"]["limits"].as_table_mut().unwrap()));
        check(sample["server"]["limits"].as_table().unwrap(), limits);
        let client = known(|sample| add(sample["client"][0].as_table_mut().unwrap()));
        check(sample["client"][0].as_table().unwrap(), client);
    }

    #[test]
    fn what_transactions_may_have_at_their_bounds_is_accepted() {
        let with = |section: &str, key: &str, value: Value| {
            let mut sample: Table = SAMPLE.parse().unwrap();
            sample[section].as_table_mut().unwrap().insert(key.into(), value);
            parse(&sample.to_string()).unwrap()
        };
        for attempts in [1, 3] {
            let config = with("transactions", "signature_attempts", attempts.into());
            assert_eq!(i64::from(config.transactions.signature_attempts), attempts);
        }
        for days in [1, 3_650] {
            assert_eq!(
                i64::from(with("transactions", "keep_days", days.into()).transactions.keep_days),
                days
            );
        }
        for count in [0, 1, 60_000] {
            let config = with("transactions", "unknown_passwords_per_minute", count.into());
            assert_eq!(i64::from(config.transactions.unknown_passwords_per_minute), count);
        }
        for hours in [1, 90 * 24] {
            let config = with("attestations", "lifetime_hours", hours.into());
            assert_eq!(i64::from(config.attestations.lifetime_hours), hours);
        }
        for issuer in ["a".to_owned(), "!".repeat(64) + &"~".repeat(64)] {
            assert_eq!(with("attestations", "issuer", issuer.clone().into()).attestations.issuer, issuer);
        }
        for prefix in [String::new(), "p".repeat(512)] {
            let config = with("attestations", "qr_url_prefix", prefix.clone().into());
            assert_eq!(config.attestations.qr_url_prefix, prefix);
        }
    }

    #[test]
    fn what_is_wrong_is_refused_in_one_line_that_says_so() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configurations");
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let words = text.lines().next().unwrap().strip_prefix("# Refused: ").unwrap();
            let refused = Config::load(&path).unwrap_err().to_string();
            assert!(refused.contains(words), "{}: {refused}", path.display());
            assert!(refused.starts_with(&path.display().to_string()) && !refused.contains('\n'), "{refused}");
            assert!(!refused.contains("0000-not-a-pin") && !refused.contains("90210"), "{refused}");
            count += 1;
        }
        assert!(count >= 42, "{count}");
    }
}
