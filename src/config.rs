//! The configuration file: strict TOML, every path relative to the file's own folder; a secret's file may also be what
//! systemd hands over by its name (`LoadCredential=`, systemd.exec(5)).

mod folders;
mod policies;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::domain::caller::{ClientName, Permission, Tenant};
use crate::domain::credential::Keeping;
use crate::files::{FILES_MAX, Files, PATHS_BYTES_MAX};

pub use policies::{
    AnchorMode, AttestationPolicy, AuditPolicy, CredentialPolicy, SignerPolicy, TransactionPolicy,
};
pub use tokens::ReplicaConfig;

/// Where the package has it, and where commands look for it that are not told otherwise.
pub const DEFAULT_PATH: &str = "/etc/hsm-authd/hsm-authd.toml";

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
    /// The server's certificate chains, PEM, its own certificate first in each: one, or with the key in the HSM one for each
    /// token's key. At least one.
    #[serde(rename = "certificate")]
    pub certificates: Certificates,
    /// The server's private key, PEM (PKCS#8); `None`: it is the `tls` key in the HSM.
    pub key: Option<PathBuf>,
    /// The authorities that client certificates must come from, PEM.
    pub client_ca: PathBuf,
    /// Revocation lists for client certificates, PEM. If there is any, every issuer of a client's chain needs a current one.
    #[serde(default)]
    pub client_crls: Vec<PathBuf>,
    /// Deadlines and bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// Files with certificate chains, at least one: a name, or a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OneOrMore")]
pub struct Certificates(Vec<PathBuf>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected the name of a file, or a list of such names")]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

impl TryFrom<OneOrMore> for Certificates {
    type Error = &'static str;
    fn try_from(files: OneOrMore) -> Result<Self, Self::Error> {
        match files {
            OneOrMore::One(file) => Ok(Self(vec![file])),
            OneOrMore::More(files) if files.is_empty() => Err("server.certificate must name a file"),
            OneOrMore::More(files) => Ok(Self(files)),
        }
    }
}

impl From<PathBuf> for Certificates {
    fn from(file: PathBuf) -> Self {
        Self(vec![file])
    }
}

impl Certificates {
    /// Each, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter()
    }
}

/// `[server.limits]`
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's backlog. Half of them may be without a TLS client's first message:
    /// beyond that those leave who have kept it waiting for longest.
    pub connections_max: usize,
    /// Those of one tenant's clients; a further one is closed after its handshake. Without it half of `connections_max`;
    /// [`Config::parse`] puts that there.
    pub connections_per_tenant_max: Option<usize>,
    /// Those of one client; without it as many as of its tenant.
    pub connections_per_client_max: Option<usize>,
    /// How long a connection may be open before it is ended in order, so that what its handshake found is looked at again.
    pub connection_age_max_seconds: u64,
    /// Requests at once, those that wait for their turn included; further ones are 503. A tenant may have as many as are
    /// still free: alone it has half of them.
    pub requests_max: usize,
    /// Time for a request, from its header to its answer; what takes longer is 503, but for what the store is writing.
    pub request_timeout_ms: u64,
    /// TLS handshakes in progress, from the client's first message on; further connections wait in the kernel's backlog.
    pub handshakes_max: usize,
    /// Time for a TLS client's first message, and once more for the rest of its handshake. As long as others have no room: 250 ms
    /// in which it keeps us waiting for the first message, and 1 s for the rest.
    pub handshake_timeout_ms: u64,
    /// Time for a request's header, from the first moment a connection could send it; on HTTP/2, for the
    /// connection's first bytes.
    pub header_timeout_ms: u64,
    /// Time for a request's body.
    pub body_timeout_ms: u64,
    /// How long a connection may be open without a request; HTTP/1.1 also has `header_timeout_ms`.
    pub idle_timeout_ms: u64,
    /// How long a client may take none of what it is sent.
    pub write_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            connections_per_tenant_max: None,
            connections_per_client_max: None,
            connection_age_max_seconds: 3_600,
            requests_max: 2_048,
            request_timeout_ms: 15_000,
            handshakes_max: 512,
            handshake_timeout_ms: 5_000,
            header_timeout_ms: 30_000,
            body_timeout_ms: 10_000,
            idle_timeout_ms: 120_000,
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

impl StoreConfig {
    /// Where the database is, with all that SQLite and the front make beside it.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// `[hsm]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HsmConfig {
    /// The PKCS#11 module, an absolute path.
    pub module: PathBuf,
    /// What the module is told at `C_Initialize`, if its manual says that it takes a text.
    #[serde(default)]
    pub module_arguments: ModuleArguments,
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
    /// After about so many unwrapped secrets and public keys a custodian is replaced by a fresh one.
    #[serde(default = "default_recycle_after_unwraps")]
    pub recycle_after_unwraps: u64,
    /// With more memory than this, in MiB, a custodian is replaced by a fresh one.
    #[serde(default = "default_recycle_above_mebibytes")]
    pub recycle_above_mebibytes: u64,
    /// Where new secrets are kept; those that are there stay where they are.
    #[serde(default)]
    pub custody: Keeping,
    /// How many secrets may be objects in the HSM.
    #[serde(default = "default_resident_capacity")]
    pub resident_capacity: u32,
    /// Set for custodians only, such as `SOFTHSM2_CONF`.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What the module reads and changes, such as the folder of a software token or a device file: absolute paths.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
    /// Whether the module may open sockets: to an HSM in the network, or to a daemon of this machine.
    #[serde(default)]
    pub network: bool,
    /// The database of what the token's keys sealed: `store.path`.
    #[serde(skip)]
    pub database: PathBuf,
    /// What no module may read: the folder of the database, the server's key, and the PINs, whose files are opened before it is
    /// loaded.
    #[serde(skip)]
    pub hidden: Vec<PathBuf>,
    /// Files of PINs that are open already, for processes that may not open them ([`crate::operator`]).
    #[serde(skip)]
    pub opened: BTreeMap<PathBuf, Arc<File>>,
    /// Whether the server's key is in the HSM: `server.key` names no file.
    #[serde(skip)]
    pub serves_tls: bool,
    /// Whether `kek`, `row` and `data` may have been born to be in several tokens (docs/threat-model.md).
    #[serde(default)]
    pub shared_keys: bool,
    /// Other tokens with the same keys.
    #[serde(default)]
    pub replicas: Vec<ReplicaConfig>,
}

/// A text for a module, of at most 1024 bytes without control characters; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ModuleArguments(CString);

impl ModuleArguments {
    const BYTES_MAX: usize = 1_024;

    /// As C has it; `None`: there is none.
    pub fn text(&self) -> Option<&CStr> {
        Some(self.0.as_c_str()).filter(|text| !text.is_empty())
    }
}

impl TryFrom<String> for ModuleArguments {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = text.len() <= Self::BYTES_MAX && !text.chars().any(char::is_control);
        let text = CString::new(text).ok().filter(|_| fits);
        text.map(Self).ok_or("hsm.module_arguments must have at most 1024 bytes, and no control character")
    }
}

fn default_custodians() -> u16 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4) as u16)
}

fn default_secrets_cached_max() -> usize {
    10_000
}

fn default_recycle_after_unwraps() -> u64 {
    250_000
}

fn default_recycle_above_mebibytes() -> u64 {
    512
}

fn default_resident_capacity() -> u32 {
    1_000
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
    /// Reads and checks a file, and where what is named in it leads to.
    ///
    /// # Errors
    /// One line that says what to mend and in which file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::load_from(path, &Files::Disk)?;
        match config.look_at_folders(path) {
            Ok(()) => Ok(config),
            Err(reason) => Err(ConfigError { path: path.to_owned(), reason }),
        }
    }

    /// Reads and checks a file that somebody else may have opened; where its paths lead to is not looked at.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(path: &Path, files: &Files) -> Result<Self, ConfigError> {
        let fail = |reason: String| ConfigError { path: path.to_owned(), reason };
        let text = files.read(path).map_err(|e| fail(e.to_string()))?;
        let text = std::str::from_utf8(&text).map_err(|_| fail("it is not UTF-8".to_owned()))?;
        let absolute = std::path::absolute(path).map_err(|e| fail(e.to_string()))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self::parse(text, folder, credentials.as_deref()).map_err(fail)
    }

    /// Parses and checks a configuration whose relative paths begin at `folder`. What is secret and has a name without a
    /// folder is taken from `credentials` if there is a file of that name.
    ///
    /// # Errors
    /// One line that says what to mend.
    pub fn parse(text: &str, folder: &Path, credentials: Option<&Path>) -> Result<Self, String> {
        let mut config: Self = toml::from_str(text).map_err(|e| one_line(text, &e))?;
        let replicas = config.hsm.replicas.iter_mut().map(|replica| &mut replica.pin_file);
        for path in config.server.key.iter_mut().chain([&mut config.hsm.pin_file]).chain(replicas) {
            let handed_over = credentials.map(|credentials| credentials.join(&*path));
            let is_name = path.components().count() == 1 && path.file_name().is_some();
            *path = match handed_over.filter(|file| is_name && file.exists()) {
                Some(file) => file,
                None => folder.join(&*path),
            };
        }
        for path in [&mut config.server.client_ca, &mut config.store.path]
            .into_iter()
            .chain(&mut config.server.certificates.0)
            .chain(&mut config.server.client_crls)
            .chain(&mut config.signers.trust_anchors)
            .chain(&mut config.signers.crls)
        {
            *path = folder.join(&*path);
        }
        config.hsm.database.clone_from(&config.store.path);
        let folder = config.store.folder().to_owned();
        let pin_files = config.hsm.pin_files().map(Path::to_owned);
        config.hsm.hidden =
            std::iter::once(folder).chain(config.server.key.clone()).chain(pin_files).collect();
        config.hsm.serves_tls = config.server.key.is_none();
        let limits = &mut config.server.limits;
        let tenant_max = *limits.connections_per_tenant_max.get_or_insert(limits.connections_max.div_ceil(2));
        limits.connections_per_client_max.get_or_insert(tenant_max);
        config.validate()?;
        Ok(config)
    }

    /// The files that everybody may read although they are secret: the server's key, the PIN. Owner and group
    /// are left alone: how credentials are handed to a service differs between systems.
    pub fn exposed_files(&self) -> Vec<&Path> {
        let is_exposed = |path: &&Path| {
            std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
        };
        self.server.key.as_deref().into_iter().chain(self.hsm.pin_files()).filter(is_exposed).collect()
    }

    /// The files besides this one that the front reads, at its start and with each reload. It may open none of them itself.
    pub fn files_of_front(&self) -> impl Iterator<Item = &Path> {
        let server = self.server.certificates.iter().chain(&self.server.key).chain([&self.server.client_ca]);
        let lists = self.server.client_crls.iter().chain(&self.signers.crls);
        server.chain(&self.signers.trust_anchors).chain(lists).map(PathBuf::as_path)
    }

    fn validate(&self) -> Result<(), String> {
        if !self.ops.listen.ip().is_loopback() {
            return Err("ops.listen must be a loopback address: it is plain HTTP".into());
        }
        self.hsm.validate_tokens()?;
        if !(1..=1_000_000).contains(&self.hsm.secrets_cached_max) {
            return Err("hsm.secrets_cached_max must be 1 to 1000000".into());
        }
        if !(100..=1_000_000_000).contains(&self.hsm.recycle_after_unwraps) {
            return Err("hsm.recycle_after_unwraps must be 100 to 1000000000".into());
        }
        if !(32..=1_048_576).contains(&self.hsm.recycle_above_mebibytes) {
            return Err("hsm.recycle_above_mebibytes must be 32 to 1048576".into());
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
        if limits.connections_max == 0 || limits.requests_max == 0 || limits.handshakes_max == 0 {
            return Err(
                "server.limits: connections_max, requests_max and handshakes_max must be at least 1".into()
            );
        }
        if limits.connections_per_tenant_max == Some(0) {
            return Err("server.limits.connections_per_tenant_max must be at least 1".into());
        }
        if limits.connections_per_client_max == Some(0) {
            return Err("server.limits.connections_per_client_max must be at least 1".into());
        }
        if !(1..=604_800).contains(&limits.connection_age_max_seconds) {
            return Err("server.limits.connection_age_max_seconds must be 1 to 604800".into());
        }
        let timeouts = [
            limits.handshake_timeout_ms,
            limits.header_timeout_ms,
            limits.body_timeout_ms,
            limits.idle_timeout_ms,
            limits.write_timeout_ms,
            limits.request_timeout_ms,
        ];
        if timeouts.contains(&0) {
            return Err("server.limits: a timeout must be at least 1 ms".into());
        }
        if self.signers.trust_anchors.is_none() && !self.signers.crls.is_empty() {
            return Err(
                "signers.crls needs signers.trust_anchors: without them every chain is refused".into()
            );
        }
        let paths_bytes: usize = self.files_of_front().map(|path| path.as_os_str().len()).sum();
        if self.files_of_front().count() > FILES_MAX || paths_bytes > PATHS_BYTES_MAX {
            return Err(
                "server.certificate, server.client_crls and signers.crls: too many files, or too long paths; put several lists into one".into()
            );
        }
        let certificates = self.server.certificates.iter().count();
        if self.server.key.is_some() && certificates > 1 {
            return Err(
                "server.certificate: with server.key one file; several are for keys in the HSM".into()
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
        self.validate_folders()
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
