//! What `make deb` packs: that it is all there, that the manual is that of the command line, and that the scripts and files
//! are what the tools of Debian take. `make test-package` installs the package itself.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use hsm_authd::cli::Cli;
use hsm_authd::config::Config;
use toml::Table;

use crate::scratch::Scratch;

#[path = "../../examples/manual.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod generator;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn deb() -> Table {
    let manifest: Table = fs::read_to_string(root("Cargo.toml")).unwrap().parse().unwrap();
    manifest["package"]["metadata"]["deb"].as_table().unwrap().clone()
}

/// Source, destination and mode of each asset.
fn assets() -> Vec<[String; 3]> {
    let deb = deb();
    let assets = deb["assets"].as_array().unwrap();
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    assets.iter().map(|asset| [0, 1, 2].map(|place| text(&asset[place]))).collect()
}

/// The files of a folder whose names fit a pattern with at most one `*`, for as many characters as there are.
fn fitting(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap().to_str().unwrap();
    let (begin, end) = name.split_once('*').unwrap_or((name, ""));
    let Ok(folder) = fs::read_dir(pattern.parent().unwrap()) else { return Vec::new() };
    let fits = |found: &str| match name.contains('*') {
        true => found.len() >= begin.len() + end.len() && found.starts_with(begin) && found.ends_with(end),
        false => found == name,
    };
    folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| fits(path.file_name().unwrap().to_str().unwrap()))
        .collect()
}

/// What `make deb` has made of the command line.
fn manual() -> Scratch {
    let folder = Scratch::new();
    generator::write_all(folder.path()).unwrap();
    folder
}

/// `true` if a program of that name can be started; else a line that says what was not done.
fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        println!("passed over: there is no {program}");
    }
    there
}

#[test]
fn every_asset_of_the_package_is_there() {
    let manual = manual();
    let mut generated = BTreeSet::new();
    for [source, destination, mode] in assets() {
        let found = match source.strip_prefix("target/manual/") {
            Some(name) => fitting(&manual.join(name)),
            // Made of Cargo.lock by a script that is looked at below.
            None if source == "target/third-party/third-party.txt" => vec![root(".ci/third-party")],
            None if source == "target/release/hsm-authd" => {
                vec![PathBuf::from(env!("CARGO_BIN_EXE_hsm-authd"))]
            }
            None => fitting(&root(&source)),
        };
        assert!(!found.is_empty(), "{source} is an asset of the package, and is not there");
        assert!(
            !destination.starts_with('/') && (source.contains('*') <= destination.ends_with('/')),
            "{source} has no place at {destination}"
        );
        // Who may read a program may look into it from its first moment on (docs/threat-model.md).
        assert_eq!(mode, if destination == "usr/bin/" { "711" } else { "644" }, "{source}");
        if source.starts_with("target/manual/") {
            generated.extend(found);
        }
    }
    let all = fs::read_dir(manual.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(generated, all, "what examples/manual.rs writes is not what is packed of it");
}

#[test]
fn every_unit_and_every_folder_of_ours_is_packed() {
    let sources: Vec<_> = assets().into_iter().map(|[source, ..]| source).collect();
    let is_packed =
        |path: &Path| sources.iter().any(|source| fitting(&root(source)).iter().any(|p| p == path));
    for folder in ["systemd", "systemd/drop-ins"] {
        for entry in fs::read_dir(root(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            assert!(entry.is_dir() || is_packed(&entry), "{} is no asset of the package", entry.display());
        }
    }
    assert!(is_packed(&root("docs/operating.md")));
}

#[test]
fn the_example_configuration_of_the_package_is_read() {
    let examples: Vec<_> = assets()
        .into_iter()
        .filter(|[_, destination, _]| destination.starts_with("usr/share/doc/hsm-authd/examples/"))
        .flat_map(|[source, ..]| fitting(&root(&source)))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    assert_eq!(examples.len(), 1, "{examples:?}");
    assert_eq!(examples[0].file_name().unwrap(), "hsm-authd.toml");
    let text = fs::read_to_string(&examples[0]).unwrap();
    let config = Config::parse(&text, Path::new("/etc/hsm-authd"), None).unwrap();
    // The folders that the package makes, and no other.
    assert_eq!(config.store.path, Path::new("/var/lib/hsm-authd/store/hsm-authd.db"));
    let certificates = &config.server.certificates;
    assert!(certificates.iter().all(|path| path.starts_with("/etc/hsm-authd")), "{certificates:?}");
}

/// Each visible command, with its path from the top, as `hsm-authd-keys-rotate`.
fn visible(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
    found.push((name.to_owned(), command.clone()));
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        visible(command, &format!("{name}-{}", command.get_name()), found);
    }
}

#[test]
fn the_manual_has_every_command_and_option_and_nothing_hidden() {
    let manual = manual();
    let whole = Cli::command();
    let mut commands = Vec::new();
    visible(&whole, "hsm-authd", &mut commands);
    assert!(commands.len() > 10, "{} commands: the test does not see them", commands.len());
    let completions = ["hsm-authd", "_hsm-authd", "hsm-authd.fish"]
        .map(|name| fs::read_to_string(manual.join(name)).unwrap());
    let mut options = 0;
    for (name, command) in &commands {
        // A hyphen in a page is `\-`, so that nobody's terminal makes another sign of it.
        let page = fs::read_to_string(manual.join(&format!("{name}.8"))).unwrap().replace("\\-", "-");
        assert!(page.contains(&format!(".TH {name} 8 \" \" \"hsm-authd ")), "{name}: {page}");
        for option in command.get_opts().filter_map(|option| option.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{name}.8 does not name --{option}");
            assert!(completions[0].contains(&format!("--{option}")), "bash does not know {name} --{option}");
            assert!(completions[1].contains(&format!("--{option}")), "zsh does not know {name} --{option}");
            assert!(completions[2].contains(&format!("-l {option}")), "fish does not know {name} --{option}");
            options += 1;
        }
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let child = format!("{name}-{}", command.get_name());
            assert!(page.contains(&format!("{child}(8)")), "{name}.8 does not name {child}");
        }
    }
    assert!(options > 20, "{options} options: the test does not see them");
    let pages = fs::read_dir(manual.path()).unwrap().count();
    assert_eq!(pages, commands.len() + completions.len(), "a page of no visible command");

    let hidden: Vec<_> = whole.get_subcommands().filter(|c| c.is_hide_set()).map(|c| c.get_name()).collect();
    assert!(hidden.contains(&"custodian"), "{hidden:?}");
    for name in hidden {
        for file in fs::read_dir(manual.path()).unwrap().map(|entry| entry.unwrap().path()) {
            let text = fs::read_to_string(&file).unwrap().replace("\\-", "-");
            for shown in [
                format!("hsm-authd-{name}"),
                format!("hsm-authd {name}"),
                format!("hsm__authd__subcmd__{name}"),
            ] {
                assert!(!text.contains(&shown), "{} shows {name}", file.display());
            }
        }
    }
}

#[test]
fn the_pages_and_completions_are_read_by_their_programs() {
    let manual = manual();
    if is_there("man") {
        for page in fitting(&manual.join("*.8")) {
            let output = Command::new("man")
                .args(["--warnings", "--encoding=utf8", "--local-file"])
                .arg(&page)
                .env("MANWIDTH", "80")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
        }
    }
    for (shell, name) in [("bash", "hsm-authd"), ("zsh", "_hsm-authd"), ("fish", "hsm-authd.fish")] {
        if is_there(shell) {
            let output = Command::new(shell).arg("-n").arg(manual.join(name)).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{name}: {said}");
        }
    }
}

/// The scripts of the package, of its tests and of its tools.
fn scripts() -> Vec<PathBuf> {
    let mut scripts: Vec<_> =
        ["postinst", "prerm", "postrm"].map(|name| root("systemd/debian").join(name)).into();
    scripts.extend(
        [
            ".ci/sbom",
            ".ci/third-party",
            "tests/service/boot",
            "tests/service/inside.sh",
            "tests/service/package.sh",
            "tests/service/rootfs",
            "tests/service/service.sh",
        ]
        .map(root),
    );
    scripts
}

#[test]
fn the_scripts_are_ones() {
    for script in scripts() {
        let text = std::fs::read_to_string(&script).unwrap();
        let shell = if text.starts_with("#!/bin/bash") { "bash" } else { "sh" };
        let output = Command::new(shell).arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if is_there("shellcheck") {
            let output = Command::new("shellcheck").arg(&script).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    let known = ["postinst", "prerm", "postrm", "lintian-overrides", "copyright"];
    for entry in fs::read_dir(root("systemd/debian")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(known.contains(&name.to_str().unwrap()), "neither cargo-deb nor an asset knows {name:?}");
    }
}

#[test]
fn nothing_is_enabled_or_started_by_the_installation() {
    let installs = fs::read_to_string(root("systemd/debian/postinst")).unwrap();
    let code: String =
        installs.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    for word in ["enable", "invoke start", "invoke restart", "systemctl start", "systemctl restart"] {
        assert!(!code.contains(word), "postinst: {word}");
    }
    assert!(!deb().contains_key("systemd-units"), "cargo-deb would add scripts of its own");
}

/// systemd's own programs do it, in a folder that stands for the root.
#[test]
fn the_user_and_the_folders_are_made_as_the_service_needs_them() {
    if !is_there("systemd-sysusers") || !is_there("systemd-tmpfiles") {
        return;
    }
    let machine = Scratch::new();
    fs::create_dir(machine.join("etc")).unwrap();
    let run = |program: &str, option: &str, file: &str| {
        let mut command = Command::new(program);
        command.arg(format!("--root={}", machine.path().display())).arg(option).arg(root(file));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (sysusers, tmpfiles) = ("systemd/hsm-authd.sysusers.conf", "systemd/hsm-authd.tmpfiles.conf");
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        // What is wrong in a file is told with its line; what only root may do fails otherwise.
        machine.write("etc/passwd", "hsm-authd:x:990:990::/:/bin/false\n");
        machine.write("etc/group", "hsm-authd:x:990:\n");
        for (program, option, file) in
            [("systemd-sysusers", "--dry-run", sysusers), ("systemd-tmpfiles", "--create", tmpfiles)]
        {
            let (_, said) = run(program, option, file);
            assert!(!said.contains(".conf:"), "{said}");
        }
        return;
    }
    for (program, option, file) in [
        ("systemd-sysusers", "--replace=/usr/lib/sysusers.d/hsm-authd.conf", sysusers),
        ("systemd-tmpfiles", "--create", tmpfiles),
    ] {
        let (done, said) = run(program, option, file);
        assert!(done, "{program}: {said}");
    }
    let passwd = fs::read_to_string(machine.join("etc/passwd")).unwrap();
    let user = passwd.lines().find(|line| line.starts_with("hsm-authd:")).unwrap();
    assert!(user.ends_with(":/var/lib/hsm-authd:/usr/sbin/nologin"), "{user}");
    let [id, group] = [2, 3].map(|place| user.split(':').nth(place).unwrap().parse::<u32>().unwrap());
    for (folder, mode, owner) in [("etc/hsm-authd", 0o750, 0), ("var/lib/hsm-authd", 0o700, id)] {
        let made = fs::metadata(machine.join(folder)).unwrap();
        assert!(made.is_dir(), "{folder}");
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (mode, owner, group), "{folder}");
    }
}

/// The names of the metrics that docs/metrics.md has in its table, and whether it says what to alert on.
fn metrics() -> Vec<(String, bool)> {
    let text = fs::read_to_string(root("docs/metrics.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    // The table of label values has fewer columns.
    cells
        .filter_map(|cells| match cells[..] {
            [name, .., _meaning, alert, ""] if cells.len() == 7 => {
                Some((name.trim_end_matches('`').to_owned(), !alert.starts_with("none")))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn there_is_an_alert_for_every_metric_that_wants_one_and_for_no_other_name() {
    let text = fs::read_to_string(root("docs/alerts.yml")).unwrap();
    let rules: String =
        text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named: BTreeSet<_> = rules
        .split(|c: char| !is_name(c))
        .filter(|word| word.starts_with("hsm_authd_") || word.starts_with("process_"))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect();
    let metrics = metrics();
    assert!(metrics.len() > 40, "{} metrics: the test does not see them", metrics.len());
    for (name, wants_alert) in &metrics {
        assert!(!wants_alert || named.contains(name), "no alert for {name}");
    }
    for name in named {
        assert!(metrics.iter().any(|(metric, _)| *metric == name), "there is no {name}");
    }

    // What to do is told of each, in the same order.
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let guide = fs::read_to_string(root("docs/operating.md")).unwrap();
    let told: Vec<_> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `HsmAuthd"))
        .map(|row| format!("HsmAuthd{}", row.split('`').next().unwrap()))
        .collect();
    assert_eq!(alerts, told);
    if is_there("promtool") {
        let output =
            Command::new("promtool").args(["check", "rules"]).arg(root("docs/alerts.yml")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
