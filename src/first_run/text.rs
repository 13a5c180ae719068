//! The configuration that a first run writes: what was answered, and where everything else is explained.

use std::fmt::Write;
use std::path::Path;

use toml::Value;

use super::answers::Answers;
use crate::config::{ModuleArguments, TenantScope};

const KEY_IN_HSM: &str =
    "# Its private key is in the HSM (`hsm-authd keys csr` asks for a certificate); or: key = \"server.key\"";

/// As the configuration file has it.
pub fn of(answers: &Answers) -> String {
    let Answers { module, token_label, pin_file, certificate, key, client_ca, store, listen, .. } = answers;
    let mut text = format!(
        "\
# Made by `hsm-authd init`. What is not here has its default; every key there is, with what it means, is in
# /usr/share/doc/hsm-authd/examples/hsm-authd.toml. A relative path begins at the folder of this file. After a change:
# `hsm-authd check`, then a restart; certificates and [[client]] entries are read again by a reload.

[server]
# A socket that systemd hands over (hsm-authd.socket) is taken instead.
listen = {}
certificate = {}
{}
client_ca = {}

[ops]
# Health checks and metrics. Here too a socket comes first (hsm-authd-ops.socket).
listen = \"127.0.0.1:8444\"

[store]
# Its folder is for the database alone: the process that serves the network may open whatever is there. Who owns it is the
# service's user, whom commands become that root starts.
path = {}

[hsm]
module = {}
token_label = {}
# A file beside this one that root alone reads. systemd hands it over by this name (LoadCredential=).
pin_file = {}
",
        quoted(&listen.to_string()),
        path(certificate),
        key.as_deref().map_or(KEY_IN_HSM.to_owned(), |key| format!("key = {}", path(key))),
        path(client_ca),
        path(store),
        path(module),
        quoted(token_label),
        path(pin_file),
    );
    if let Some(arguments) = answers.module_arguments.as_ref().and_then(ModuleArguments::text) {
        let _ = writeln!(
            text,
            "# What the module is told at C_Initialize.\nmodule_arguments = {}",
            quoted(&arguments.to_string_lossy())
        );
    }
    let folders: Vec<_> = answers.folders.iter().map(|folder| path(folder)).collect();
    let _ = write!(
        text,
        "# What the module reads and changes: a software token's folder, the socket or devices of an HSM's driver.\nfolders = \
         [{}]\n# Whether the module opens sockets: an HSM in the network, or behind a daemon such as pcscd.\nnetwork = {}\n",
        folders.join(", "),
        answers.network
    );
    if !answers.environment.is_empty() {
        text.push_str("\n# For the processes that load the module, and for no other.\n[hsm.environment]\n");
        for (name, value) in &answers.environment {
            let _ = writeln!(text, "{} = {}", quoted(name), quoted(value));
        }
    }
    for (place, client) in answers.clients.iter().enumerate() {
        let tenant = match &client.tenant {
            TenantScope::One(tenant) => tenant.as_str(),
            TenantScope::All => "*",
        };
        let permissions = Value::try_from(&client.permissions).map(|list| list.to_string());
        let comment = match place {
            0 => "# Who may ask: by the URI of its certificate (san), for whose data (tenant), and what.\n",
            _ => "",
        };
        let _ = write!(
            text,
            "\n{comment}[[client]]\nname = {}\nsan = {}\ntenant = {}\npermissions = {}\n",
            quoted(client.name.as_str()),
            quoted(&client.san),
            quoted(tenant),
            permissions.unwrap_or_default()
        );
    }
    text
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
