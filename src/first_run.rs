//! `hsm-authd init`: makes the configuration if there is none, then what is missing of its token and keys, and says what to
//! type next.
//!
//! The configuration comes last of what it writes, whole or not at all: as long as it is not there, the next run asks the same
//! again and keeps what is there already. From then on root is the service's user ([`crate::operator`]): it makes the token.

mod answers;
mod client;
mod place;
mod terminal;
mod text;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::config::{Config, DEFAULT_PATH, ModuleArguments};
use crate::store::usage;
use crate::{Ending, keys, operator, sandbox};
use answers::Answers;
use client::NewClient;
use place::Place;
use terminal::Terminal;

/// For good, of the package's units.
const START: &str = "systemctl enable --now hsm-authd.socket hsm-authd-ops.socket hsm-authd.service";
/// The file of the security officer's PIN beside the configuration, of SoftHSM.
const SO_PIN: &str = "so-pin";

/// `hsm-authd init`
#[derive(Args)]
pub struct Options {
    /// The configuration file. If there is none, it is made of the following options, and on a terminal of questions; paths
    /// in them begin at its folder. One that is there is never changed: it must not say otherwise than they do.
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// The PKCS#11 module, an absolute path.
    #[arg(long)]
    module: Option<PathBuf>,
    /// The token's label [of SoftHSM: hsm-authd].
    #[arg(long)]
    token_label: Option<String>,
    /// The file with the user PIN [pin]. If there is none: of SoftHSM one is made at random, of another HSM it is asked for
    /// on the terminal.
    #[arg(long)]
    pin_file: Option<PathBuf>,
    /// The file with the security officer's PIN: initialise a token if there is none of that label. Of several tokens
    /// with several PINs: one for each, in the order of the configuration. [of SoftHSM: so-pin beside the configuration,
    /// made at random]
    #[arg(long)]
    so_pin_file: Vec<PathBuf>,
    /// A client, once for each: NAME, or with what is not as usual NAME,san=URI,tenant=TENANT,permissions=verify+deliver.
    /// As usual its certificate names it urn:hsm-authd:client:NAME, its tenant is NAME, and it may enroll, verify, transact
    /// and admin.
    #[arg(long, value_parser = NewClient::parse)]
    client: Vec<NewClient>,
    /// The server's certificate chain, PEM [server.pem]. It need not be there yet.
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// The file with its private key, PEM; without, the key is in the HSM, and `hsm-authd keys csr` asks for a certificate.
    #[arg(long)]
    key: Option<PathBuf>,
    /// The authorities of clients' certificates, PEM [client-ca.pem].
    #[arg(long)]
    client_ca: Option<PathBuf>,
    /// The database [/var/lib/hsm-authd/store/hsm-authd.db]. Its folder is for it alone, and is the service's user's: as
    /// whom all of this runs if root starts it.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Address and port of the API [0.0.0.0:8443], where no socket is handed over by systemd.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// What the module is told at `C_Initialize`, for one whose manual says that it takes a text there, such as NSS.
    #[arg(long, value_parser = answers::module_arguments)]
    module_arguments: Option<ModuleArguments>,
    /// A variable for the module, NAME=VALUE, once for each.
    #[arg(long, value_parser = answers::variable)]
    environment: Vec<(String, String)>,
    /// What the module reads and changes, once for each: folders and device files.
    #[arg(long)]
    folder: Vec<PathBuf>,
    /// The module opens sockets: an HSM in the network, or behind a daemon such as pcscd.
    #[arg(long)]
    network: bool,
}

/// Runs `init`.
///
/// # Errors
/// See [`Ending`]. What was made by then stays, and the next run goes on from there.
pub fn run(options: &Options) -> Ending {
    sandbox::no_cores().map_err(|e| e.to_string())?;
    let path = std::path::absolute(&options.config).map_err(|e| at(&options.config, &e))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !path.try_exists().map_err(|e| at(&path, &e))? {
        make_configuration(options, &path, folder)?;
    }
    let mut config = Config::load(&path).map_err(|e| e.to_string())?;
    if let Some(option) = answers::contradicted(options, &config, folder) {
        return Err(Some(format!(
            "{option}: {} is there and says otherwise; change it there, or leave the option out",
            path.display()
        )));
    }
    let so_pin_files = so_pin_files(options, &config, folder);
    operator::take_over(&mut config, &so_pin_files)?;
    make_token_folders(&config)?;
    keys::init(&config, &so_pin_files)?;
    say_next(&config, &path)
}

fn make_configuration(options: &Options, path: &Path, folder: &Path) -> Result<(), String> {
    let answers = Answers::of(options, folder, Terminal::of_stdin().as_ref(), path)?;
    let text = text::of(&answers);
    // What is wrong with it is said before anything is there.
    let config =
        Config::parse(&text, folder, None).map_err(|reason| format!("nothing was made: {reason}"))?;
    let place = Place::take(folder, &config)?;
    for file in &answers.files {
        place.write(&file.path, &file.content, file.reader)?;
    }
    place.write(path, text.as_bytes(), place::Reader::Service)?;
    Ok(())
}

/// The given ones; else what a first run left beside the configuration.
fn so_pin_files(options: &Options, config: &Config, folder: &Path) -> Vec<PathBuf> {
    let own = folder.join(SO_PIN);
    match answers::is_softhsm(&config.hsm.module) && options.so_pin_file.is_empty() && own.exists() {
        true => vec![own],
        false => options.so_pin_file.clone(),
    }
}

/// SoftHSM makes tokens in a folder, and not the folder. A database knows of one that was there.
fn make_token_folders(config: &Config) -> Result<(), String> {
    for token in config.hsm.tokens() {
        if !answers::is_softhsm(&token.module) {
            continue;
        }
        for folder in token.folders.iter().filter(|folder| !folder.exists()) {
            if usage::is_in_use(&token.database) {
                return Err(format!(
                    "{}: it is not there, and there is a database that needs its token: bring it back; to begin anew without \
                     what is stored, move the database away first",
                    folder.display()
                ));
            }
            DirBuilder::new().mode(0o700).create(folder).map_err(|e| at(folder, &e))?;
            say(format_args!("{}: made", folder.display()))?;
        }
    }
    Ok(())
}

fn say_next(config: &Config, path: &Path) -> Ending {
    let named = operator::option(path);
    let server = &config.server;
    let chains = server.certificates.iter().map(|path| ("the server's certificate chain", path));
    let files = chains.chain(server.key.iter().map(|path| ("its private key", path)));
    let files = files.chain([("the authorities of the clients' certificates", &server.client_ca)]);
    let is_missing = |path: &Path| fs::symlink_metadata(path).is_err();
    for (what, path) in files.filter(|(_, path)| is_missing(path)) {
        say(format_args!("missing: {what}, in {}", path.display()))?;
    }
    if server.key.is_none() && server.certificates.iter().any(|path| is_missing(path)) {
        // Whoever signs it decides about the name.
        return Ok(say(format_args!(
            "next: hsm-authd keys csr{named} --name \"$(hostname -f)\" > server.csr"
        ))?);
    }
    let start = match operator::is_of_unit(path) {
        true => START.to_owned(),
        false => operator::start(path),
    };
    Ok(say(format_args!("next: hsm-authd check{named} && {start}"))?)
}

fn say(line: std::fmt::Arguments<'_>) -> Result<(), String> {
    writeln!(io::stdout(), "{line}").map_err(|error| format!("standard output: {error}"))
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
