//! The manual pages and the completions of shells, made of the command line (`src/cli.rs`): `make deb` packs them.
//!
//! `manual FOLDER` writes into that folder, which is made: a page for hsm-authd and one for each of its commands, in section 8
//! (administration), and the completions of bash, zsh and fish, named as Debian looks for them. What `--help` hides is in none
//! of them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use hsm_authd::cli::Cli;

const SECTION: &str = "8";

/// What no argument tells: the sections behind the generated ones of `hsm-authd(8)`.
const FILES: [(&str, &str); 5] = [
    (
        "/etc/hsm-authd/hsm-authd.toml",
        "The configuration; the package has none. Every key there is, with its default, is in the \
        example.",
    ),
    ("/usr/share/doc/hsm-authd/examples/hsm-authd.toml", "The example."),
    (
        "/var/lib/hsm-authd/",
        "The database, and the tokens of SoftHSM if that is the HSM. Only the service reads it.",
    ),
    (
        "/usr/share/doc/hsm-authd/examples/",
        "Drop-ins for the units, for HSMs that need more than the units allow.",
    ),
    (
        "/usr/share/doc/hsm-authd/operating.md",
        "From the installation to the first verified code, upgrades, copies, alerts.",
    ),
];
const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGHUP",
        "To the process that `serve` started as: reads certificates, revocation lists and clients again, and replaces \
        the custodians one after the other. The rest of the configuration needs a restart.",
    ),
    ("SIGTERM, SIGINT", "Ends: what was begun is answered, for 10 seconds at most."),
];
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Done."),
    ("1", "Not done; the last line of standard error says why, and what to mend."),
    ("2", "The command line is wrong."),
    (
        "78",
        "Of `serve`: the configuration is wrong, or the HSM refused a PIN; the same again would end so again.",
    ),
];

fn main() -> Result<(), String> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return Err("usage: manual FOLDER".to_owned());
    };
    write_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))
}

/// Writes all of it into a folder.
///
/// # Errors
/// What the system says of the folder or a file.
pub fn write_all(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut command = shown();
    for (shell, name) in
        [(Shell::Bash, "hsm-authd"), (Shell::Zsh, "_hsm-authd"), (Shell::Fish, "hsm-authd.fish")]
    {
        let mut script = Vec::new();
        generate(shell, &mut command, "hsm-authd", &mut script);
        fs::write(folder.join(name), script)?;
    }
    // The command `help` is in the completions, and needs no page.
    let mut command = shown().disable_help_subcommand(true);
    command.build();
    page(&command, "", folder)
}

/// The command line without what it hides, which the completions would show.
fn shown() -> Command {
    let whole = Cli::command();
    Command::new("hsm-authd")
        .about(whole.get_about().cloned().unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .subcommands(whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}

/// Writes the page of `command`, whose name follows `parent`, and those of its commands.
fn page(command: &Command, parent: &str, folder: &Path) -> std::io::Result<()> {
    let name = format!("{parent}{}", command.get_name());
    let man = Man::new(command.clone())
        .section(SECTION)
        .title(name.clone())
        // None, so that the same sources make the same page; an empty one would not be written, and what follows move up.
        .date(" ")
        .source(concat!("hsm-authd ", env!("CARGO_PKG_VERSION")))
        .manual("System administration");
    let mut text = Vec::new();
    man.render(&mut text)?;
    let mut more = Roff::new();
    match parent {
        "" => {
            listed(&mut more, "FILES", &FILES);
            listed(&mut more, "SIGNALS", &SIGNALS);
            listed(&mut more, "EXIT STATUS", &EXIT_STATUS);
        }
        _ => {
            more.control("SH", ["SEE ALSO"]);
            more.text([bold("hsm-authd"), roman(format!("({SECTION})"))]);
        }
    }
    text.extend(more.to_roff().into_bytes());
    fs::write(folder.join(format!("{name}.{SECTION}")), text)?;
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|command| page(command, &format!("{name}-"), folder))
}

fn listed(roff: &mut Roff, title: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (term, text) in entries {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*text)]);
    }
}
