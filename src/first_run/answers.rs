//! What a configuration is made of: what options say, what is answered on a terminal, and what is usual.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::client::NewClient;
use super::place::Reader;
use super::terminal::Terminal;
use super::{Options, SO_PIN};
use crate::config::{Config, ModuleArguments};
use crate::dev::SOFTHSM_MODULES;

const STORE: &str = "/var/lib/hsm-authd/store/hsm-authd.db";
const TOKEN_LABEL: &str = "hsm-authd";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
/// How many random bytes a PIN is made of, in hexadecimal.
const PIN_BYTES: usize = 24;
/// The longest PIN, in bytes, as `hsm.pin_file` may hold it.
const PIN_BYTES_MAX: usize = 255;

/// Everything that is written. Paths are as the configuration has them.
pub struct Answers {
    pub module: PathBuf,
    pub token_label: String,
    pub pin_file: PathBuf,
    pub clients: Vec<NewClient>,
    pub certificate: PathBuf,
    /// `None`: it is in the HSM.
    pub key: Option<PathBuf>,
    pub client_ca: PathBuf,
    pub store: PathBuf,
    pub listen: SocketAddr,
    pub module_arguments: Option<ModuleArguments>,
    pub environment: BTreeMap<String, String>,
    pub folders: Vec<PathBuf>,
    pub network: bool,
    /// What is written before it, in this order.
    pub files: Vec<NewFile>,
}

/// A file beside the configuration.
pub struct NewFile {
    pub path: PathBuf,
    pub content: Zeroizing<Vec<u8>>,
    pub reader: Reader,
}

impl Answers {
    /// `folder`: that of the configuration, which will be `path`.
    ///
    /// # Errors
    /// One line for the operator: all that is missing, where nobody can be asked for it.
    pub fn of(
        options: &Options,
        folder: &Path,
        terminal: Option<&Terminal>,
        path: &Path,
    ) -> Result<Self, String> {
        refuse_missing(options, terminal, path)?;
        let module = match (&options.module, terminal) {
            (Some(module), _) => module.clone(),
            (None, Some(terminal)) => ask_module(terminal)?,
            (None, None) => PathBuf::new(),
        };
        let is_softhsm = is_softhsm(&module);
        let token_label = match (&options.token_label, terminal) {
            (Some(label), _) => label.clone(),
            (None, Some(terminal)) => terminal.ask("The token's label", Some(TOKEN_LABEL), |label| {
                let fits = (1..=32).contains(&label.len()) && !label.contains(char::is_control);
                fits.then(|| label.to_owned()).ok_or("it must have 1 to 32 bytes that can be seen".to_owned())
            })?,
            (None, None) => TOKEN_LABEL.to_owned(),
        };
        let clients = match (&options.client[..], terminal) {
            ([], Some(terminal)) => ask_clients(terminal)?,
            (clients, _) => clients.to_vec(),
        };
        let beside = |given: &Option<PathBuf>, usual: &str| as_configured(given, usual, folder);
        let store = beside(&options.store, STORE);
        let mut answers = Self {
            token_label,
            pin_file: beside(&options.pin_file, "pin"),
            clients,
            certificate: beside(&options.certificate, "server.pem"),
            key: options.key.as_ref().map(|_| beside(&options.key, "")),
            client_ca: beside(&options.client_ca, "client-ca.pem"),
            store,
            listen: options.listen.unwrap_or(LISTEN),
            module_arguments: options.module_arguments.clone(),
            environment: options.environment.iter().cloned().collect(),
            folders: options.folder.clone(),
            network: options.network,
            module,
            files: Vec::new(),
        };
        match is_softhsm {
            true => answers.add_softhsm(options, folder, terminal)?,
            false => answers.add_pin(folder, terminal)?,
        }
        let paths =
            [&answers.module, &answers.pin_file, &answers.certificate, &answers.client_ca, &answers.store];
        if let Some(path) =
            paths.into_iter().chain(&answers.key).chain(&answers.folders).find(|path| path.to_str().is_none())
        {
            return Err(format!("{}: a configuration can name UTF-8 alone", path.display()));
        }
        Ok(answers)
    }

    /// SoftHSM's own configuration, the folder of its tokens, and PINs at random.
    fn add_softhsm(
        &mut self,
        options: &Options,
        folder: &Path,
        terminal: Option<&Terminal>,
    ) -> Result<(), String> {
        const VARIABLE: &str = "SOFTHSM2_CONF";
        if self.environment.contains_key(VARIABLE) {
            // It is set up already, and whoever did so knows where its tokens are.
            return self.add_pin(folder, terminal);
        }
        let store = folder.join(&self.store);
        let state = store.parent().and_then(Path::parent).filter(|state| state.parent().is_some());
        let tokens = state.map(|state| state.join("tokens")).ok_or_else(|| {
            format!("--store: {} needs a folder of its own, in one of the service's", store.display())
        })?;
        let conf = folder.join("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        if [&conf, &tokens]
            .iter()
            .any(|path| path.to_str().is_none_or(|path| path.contains(char::is_whitespace)))
        {
            return Err(format!("{}: SoftHSM takes no such folder", tokens.display()));
        }
        let has_tokens = fs::read_dir(&tokens).is_ok_and(|mut entries| entries.next().is_some());
        let mut pins = vec![folder.join(&self.pin_file)];
        if options.so_pin_file.is_empty() {
            pins.push(folder.join(SO_PIN));
        }
        for (place, path) in
            pins.into_iter().enumerate().filter(|(_, path)| fs::symlink_metadata(path).is_err())
        {
            match (has_tokens, place) {
                (true, 0) => {
                    return Err(format!(
                        "{}: it is missing, and a token made with it may be in {}: put it back, or remove what is there",
                        path.display(),
                        tokens.display()
                    ));
                }
                // Nothing is left to be made with it.
                (true, _) => {}
                (false, _) => {
                    self.files.push(NewFile { path, content: random_pin()?, reader: Reader::Nobody })
                }
            }
        }
        let content = Zeroizing::new(text.into_bytes());
        self.files.push(NewFile { path: conf.clone(), content, reader: Reader::Service });
        self.environment.insert(VARIABLE.to_owned(), conf.to_string_lossy().into_owned());
        self.folders.push(tokens);
        Ok(())
    }

    /// The PIN of a token that somebody else set.
    fn add_pin(&mut self, folder: &Path, terminal: Option<&Terminal>) -> Result<(), String> {
        let path = folder.join(&self.pin_file);
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(());
        }
        let Some(terminal) = terminal else {
            return Err(format!(
                "{}: there is no PIN; write the user PIN of the token into it, mode 0600, or run this on a terminal, which \
                 asks for it",
                path.display()
            ));
        };
        let content = terminal.ask_hidden(&format!("User PIN of the token {}", self.token_label))?;
        if content.len() > PIN_BYTES_MAX || std::str::from_utf8(&content).is_err() {
            return Err(format!("nothing was made: a PIN has at most {PIN_BYTES_MAX} bytes, of UTF-8"));
        }
        self.files.push(NewFile { path, content, reader: Reader::Nobody });
        Ok(())
    }
}

/// Without a terminal: names all options that are missing.
fn refuse_missing(options: &Options, terminal: Option<&Terminal>, path: &Path) -> Result<(), String> {
    let needs_label = !options.module.as_deref().is_some_and(is_softhsm);
    let missing = [
        ("--module", options.module.is_none()),
        ("--token-label", options.token_label.is_none() && needs_label),
        ("--client", options.client.is_empty()),
    ];
    let missing: Vec<_> =
        missing.into_iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| name).collect();
    match missing.is_empty() || terminal.is_some() {
        true => Ok(()),
        false => Err(format!(
            "{}: there is no configuration; to make one without a terminal, say {}, too",
            path.display(),
            missing.join(", ")
        )),
    }
}

fn ask_module(terminal: &Terminal) -> Result<PathBuf, String> {
    let usual = SOFTHSM_MODULES.into_iter().find(|path| Path::new(path).exists());
    terminal.ask("The PKCS#11 module of the HSM", usual, |text| {
        let path = PathBuf::from(text);
        match path.is_absolute() && path.is_file() {
            true => Ok(path),
            false => Err("there is no such file; it must be an absolute path".to_owned()),
        }
    })
}

fn ask_clients(terminal: &Terminal) -> Result<Vec<NewClient>, String> {
    terminal.ask("Names of the first clients, such as bank-a", None, |text| {
        let clients = text.split_whitespace().map(NewClient::parse).collect::<Result<Vec<_>, _>>()?;
        if clients.is_empty() { Err("there must be one at least".to_owned()) } else { Ok(clients) }
    })
}

/// A path in the folder of the configuration as a name: systemd hands files over by their names.
fn as_configured(given: &Option<PathBuf>, usual: &str, folder: &Path) -> PathBuf {
    let given = given.clone().unwrap_or_else(|| usual.into());
    match given.strip_prefix(folder) {
        Ok(name) if name.components().count() == 1 => name.to_owned(),
        _ => given,
    }
}

/// Whether a module is SoftHSM, of which it is known what it needs.
pub fn is_softhsm(module: &Path) -> bool {
    let is_its_name = |path: &Path| path.file_name().is_some_and(|name| name == "libsofthsm2.so");
    is_its_name(module) || fs::canonicalize(module).is_ok_and(|path| is_its_name(&path))
}

/// `NAME=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

pub fn module_arguments(text: &str) -> Result<ModuleArguments, &'static str> {
    ModuleArguments::try_from(text.to_owned())
}

fn random_pin() -> Result<Zeroizing<Vec<u8>>, String> {
    let mut bytes = Zeroizing::new([0; PIN_BYTES]);
    getrandom::fill(&mut *bytes).map_err(|e| e.to_string())?;
    let mut pin = Zeroizing::new(vec![0; 2 * PIN_BYTES]);
    HEXLOWER.encode_mut(&*bytes, &mut pin);
    Ok(pin)
}

/// The first option that a configuration says otherwise.
pub fn contradicted(options: &Options, config: &Config, folder: &Path) -> Option<&'static str> {
    let differs =
        |given: &Option<PathBuf>, path: &Path| given.as_ref().is_some_and(|given| folder.join(given) != path);
    let (server, hsm) = (&config.server, &config.hsm);
    let is_client = |client: &NewClient| config.clients.iter().any(|configured| client.is(configured));
    let is_variable = |(name, value): &(String, String)| hsm.environment.get(name) == Some(value);
    let found = [
        ("--module", differs(&options.module, &hsm.module)),
        ("--token-label", options.token_label.as_ref().is_some_and(|label| *label != hsm.token_label)),
        ("--pin-file", differs(&options.pin_file, &hsm.pin_file)),
        ("--client", !options.client.iter().all(is_client)),
        ("--certificate", server.certificates.iter().all(|path| differs(&options.certificate, path))),
        ("--key", server.key.as_ref().map_or(options.key.is_some(), |path| differs(&options.key, path))),
        ("--client-ca", differs(&options.client_ca, &server.client_ca)),
        ("--store", differs(&options.store, &config.store.path)),
        ("--listen", options.listen.is_some_and(|listen| listen != server.listen)),
        (
            "--module-arguments",
            options.module_arguments.as_ref().is_some_and(|text| *text != hsm.module_arguments),
        ),
        ("--environment", !options.environment.iter().all(is_variable)),
        ("--folder", !options.folder.iter().all(|folder| hsm.folders.contains(folder))),
        ("--network", options.network && !hsm.network),
    ];
    found.into_iter().find(|(_, differs)| *differs).map(|(option, _)| option)
}
