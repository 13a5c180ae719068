//! The whole appliance with nothing set up, for development and demonstration.
//!
//! `DIR/` holds a SoftHSM token with its PINs (unless `--hsm` names another HSM), a PKI, a configuration and the database;
//! `dev.json` says how to reach what runs. What is there is kept.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::Ending;
use crate::config::Config;
use crate::control::Start;
use crate::init;
use crate::supervisor::{self, Plan};

pub mod pki;

/// Where Debian, Fedora, Alpine and others put SoftHSM's module.
pub const SOFTHSM_MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
const CONNECTIONS_MAX: usize = 800;
const TOKEN_LABEL: &str = "hsm-authd-dev";
/// Two banks, a gateway that delivers codes for one of them, and an auditor of both.
const CLIENTS: [(&str, &str, &[&str]); 4] = [
    ("bank-a", "bank-a", &["enroll", "verify", "transact", "admin"]),
    ("bank-a-gateway", "bank-a", &["enroll", "verify", "transact", "admin", "deliver"]),
    ("bank-b", "bank-b", &["enroll", "verify", "transact", "admin"]),
    ("auditor", "*", &["audit"]),
];

/// `hsm-authd dev`
#[derive(clap::Args)]
pub struct Options {
    /// The folder for everything; it is made if it does not exist.
    #[arg(long, default_value = "hsm-authd-dev")]
    dir: PathBuf,
    /// Address and port of the mutual-TLS API; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// SoftHSM's module, where it is not in a usual place.
    #[arg(long)]
    module: Option<PathBuf>,
    /// Another HSM than a SoftHSM token of its own: a file with the keys of the configuration's [hsm]. The token has to be
    /// there; its system keys are made if they are not.
    #[arg(long, conflicts_with = "module")]
    hsm: Option<PathBuf>,
    /// How many custodian processes; by default one a core, at most 4.
    #[arg(long)]
    custodians: Option<u16>,
    /// Where the secrets of new credentials are kept: wrapped or resident (docs/custody.md).
    #[arg(long, default_value = "wrapped", overrides_with = "custody")]
    custody: String,
    /// How many secrets may be objects in the HSM; by default what the configuration's default is.
    #[arg(long)]
    resident_capacity: Option<u32>,
    /// When the anchor follows the log: interval or every_commit (docs/integrity.md).
    #[arg(long)]
    anchor: Option<String>,
    /// Accept the wall clock as it is now, after it stepped or was behind the log.
    #[arg(long)]
    accept_clock: bool,
    /// Read the time from this file (`UNIX_MS BOOT_MS`), for tests.
    #[arg(long)]
    clock_file: Option<PathBuf>,
}

/// Runs `dev`.
///
/// # Errors
/// See [`Ending`].
pub fn run(options: Options) -> Ending {
    let (plan, dev_json) = prepare(&options)?;
    let path = options.dir.join("dev.json");
    supervisor::run(plan, || {
        let text = serde_json::to_vec_pretty(&dev_json).map_err(|e| e.to_string())?;
        write_whole(&path, &text, 0o600)?;
        let url = dev_json.get("url").and_then(Value::as_str).unwrap_or_default();
        let _ = writeln!(std::io::stdout(), "ready on {url}; {} says how to ask", path.display());
        Ok(())
    })
    .map_err(|failure| failure.reason)
}

fn prepare(options: &Options) -> Result<(Plan, Value), Option<String>> {
    let dir = std::path::absolute(&options.dir).map_err(|e| at(&options.dir, &e))?;
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| at(&dir, &e))?;
    let store = store(&dir)?;
    let lock = supervisor::lock(&store)?;
    match fs::remove_file(dir.join("dev.json")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&dir, &error)),
        _ => {}
    }

    let names = CLIENTS.map(|(name, _, _)| name);
    let pki = pki::ensure(&dir.join("pki"), &names, options.listen.ip(), SystemTime::now())
        .map_err(|error| Some(error.to_string()))?;
    let api = supervisor::bind(options.listen)?;
    let ops = supervisor::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?;
    let (api_address, ops_address) = (local(&api)?, local(&ops)?);

    let config_path = dir.join("hsm-authd.toml");
    let clients: Vec<Value> = CLIENTS
        .iter()
        .map(|(name, tenant, permissions)| {
            json!({ "name": name, "san": pki::client_uri(name), "tenant": tenant, "permissions": permissions })
        })
        .collect();
    let mut config = json!({
        "server": {
            "listen": api_address.to_string(),
            "certificate": pki.server.certificate,
            "key": pki.server.key,
            "client_ca": pki.ca,
            // For a machine whose limits nobody has looked at.
            "limits": { "connections_max": CONNECTIONS_MAX },
        },
        "ops": { "listen": ops_address.to_string() },
        "store": { "path": store },
        "hsm": hsm(options, &dir)?,
        "credentials": { "allow_export": true, "terminal_cooling_seconds": 0 },
        // For tests that send nothing else.
        "transactions": { "unknown_passwords_per_minute": 0 },
        "client": clients,
    });
    if let Some(hsm) = config.get_mut("hsm").and_then(Value::as_object_mut) {
        hsm.insert("custody".into(), options.custody.clone().into());
        hsm.extend(options.custodians.map(|count| ("custodians".into(), count.into())));
        hsm.extend(options.resident_capacity.map(|count| ("resident_capacity".into(), count.into())));
    }
    if let (Some(anchor), Some(config)) = (&options.anchor, config.as_object_mut()) {
        config.insert("audit".into(), json!({ "anchor": anchor }));
    }
    let toml = toml::to_string(&config).map_err(|e| Some(e.to_string()))?;
    let text = format!("# Written by `hsm-authd dev` at each start.\n{toml}");
    write_whole(&config_path, text.as_bytes(), 0o600)?;
    let config = Config::load(&config_path).map_err(|e| Some(e.to_string()))?;
    match options.hsm {
        Some(_) => init::set_up_token(&config.hsm, None, Stdio::null())?,
        None => make_token(&dir, &config)?,
    }

    let client_files: serde_json::Map<String, Value> = pki
        .clients
        .iter()
        .map(|(name, files)| (name.clone(), json!({ "cert": files.certificate, "key": files.key })))
        .collect();
    let dev_json = json!({
        "url": format!("https://{api_address}"),
        "ca": pki.ca,
        "pid": std::process::id(),
        "ops_url": format!("http://{ops_address}"),
        "clients": client_files,
    });
    let start = Start {
        config: config_path,
        accept_clock: options.accept_clock,
        clock_file: options
            .clock_file
            .as_ref()
            .map(std::path::absolute)
            .transpose()
            .map_err(|e| at(&dir, &e))?,
    };
    Ok((Plan { config, start, api, ops, lock }, dev_json))
}

fn hsm(options: &Options, dir: &Path) -> Result<Value, Option<String>> {
    match &options.hsm {
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|e| at(path, &e))?;
            let hsm = toml::from_str(&text).map(Value::Object);
            hsm.map_err(|error| Some(format!("{}: {}", path.display(), error.message().replace('\n', " "))))
        }
        None => Ok(json!({
            "module": module(options)?,
            "token_label": TOKEN_LABEL,
            "pin_file": dir.join("pin"),
            "environment": { "SOFTHSM2_CONF": dir.join("softhsm2.conf") },
            "folders": [dir.join("token")],
        })),
    }
}

/// The database, in a folder of its own: the front may open whatever is in it. Earlier releases had it beside the token.
fn store(dir: &Path) -> Result<PathBuf, Option<String>> {
    const NAME: &str = "hsm-authd.db";
    let folder = dir.join("store");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| at(&folder, &e))?;
    let (before, now) = (dir.join(NAME), folder.join(NAME));
    if before.exists() && !now.exists() {
        // Nobody has it open.
        let _lock = supervisor::lock(&before)?;
        // The database itself last: as long as it is there, this is not done.
        for suffix in ["-wal", ""] {
            let name = format!("{NAME}{suffix}");
            match fs::rename(dir.join(&name), folder.join(&name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(at(&before, &error));
                }
                _ => {}
            }
        }
    }
    Ok(now)
}

fn module(options: &Options) -> Result<PathBuf, Option<String>> {
    if let Some(module) = &options.module {
        return std::path::absolute(module).map_err(|e| at(module, &e));
    }
    SOFTHSM_MODULES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        Some("SoftHSM is not installed: apt-get install softhsm2, or name its module by --module".into())
    })
}

/// What the folder of a token that is being made is called, before the number of the process.
const UNFINISHED: &str = "token.unfinished";

/// Makes the token beside its place and moves it there whole: a crash leaves no half-made one.
fn make_token(dir: &Path, config: &Config) -> Ending {
    let token = dir.join("token");
    // Nobody else's: the setup of a start that was killed a moment ago may still be writing into its own.
    let unfinished = dir.join(format!("{UNFINISHED}-{}", std::process::id()));
    let conf = |folder: &Path, name: &str| {
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            folder.display()
        );
        let path = dir.join(name);
        write_whole(&path, text.as_bytes(), 0o600).map(|()| path)
    };
    conf(&token, "softhsm2.conf")?;
    if token.is_dir() {
        // An earlier release may have made it, without the keys that came since.
        return init::set_up_token(&config.hsm, None, Stdio::null());
    }
    let (pin, so_pin) = (dir.join("pin"), dir.join("so-pin"));
    write_whole(&pin, random_pin()?.as_bytes(), 0o600)?;
    write_whole(&so_pin, random_pin()?.as_bytes(), 0o600)?;
    for entry in fs::read_dir(dir).map_err(|e| at(dir, &e))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed now is in nobody's way, and the next such start tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    DirBuilder::new().mode(0o700).create(&unfinished).map_err(|e| at(&unfinished, &e))?;
    let mut hsm = config.hsm.clone();
    let unfinished_conf = conf(&unfinished, "softhsm2-unfinished.conf")?;
    hsm.environment.insert("SOFTHSM2_CONF".into(), unfinished_conf.display().to_string());
    hsm.folders = vec![unfinished.clone()];
    init::set_up_token(&hsm, Some(so_pin), Stdio::null())?;
    fs::remove_file(&unfinished_conf).map_err(|e| at(&unfinished_conf, &e))?;
    fs::rename(&unfinished, &token).map_err(|e| at(&token, &e))
}

/// 20 decimal digits of the system's randomness.
fn random_pin() -> Result<zeroize::Zeroizing<String>, Option<String>> {
    let mut bytes = zeroize::Zeroizing::new([0; 20]);
    getrandom::fill(&mut *bytes).map_err(|e| Some(e.to_string()))?;
    // The bias of 256 over 10 is worth less than a bit of 66.
    Ok(zeroize::Zeroizing::new(bytes.iter().map(|byte| char::from(b'0' + byte % 10)).collect()))
}

fn write_whole(path: &Path, content: &[u8], mode: u32) -> Result<(), String> {
    pki::replace(path, content, mode).map_err(|error| format!("{}: {error}", path.display()))
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Option<String>> {
    listener.local_addr().map_err(|e| Some(e.to_string()))
}

fn at(path: &Path, error: &std::io::Error) -> Option<String> {
    Some(format!("{}: {error}", path.display()))
}
