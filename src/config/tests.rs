//! Configurations that are taken, and those that are not.

use super::*;
use toml::{Table, Value};

const SAMPLE: &str = include_str!("../../softhsm-setup/hsm-authd.toml");

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/hsm-authd"), None)
}

#[test]
fn the_sample_is_accepted_and_shows_the_defaults() {
    let sample = parse(SAMPLE).unwrap();
    assert_eq!(sample.server.key.as_deref(), Some(Path::new("/etc/hsm-authd/server.key")));
    assert!(!sample.hsm.serves_tls);
    assert_eq!(sample.store.path, Path::new("/var/lib/hsm-authd/store/hsm-authd.db"));

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
    section(&mut bare, "server", &["limits", "client_crls"]);
    section(
        &mut bare,
        "hsm",
        &[
            "module_arguments",
            "custodians",
            "secrets_cached_max",
            "recycle_after_unwraps",
            "recycle_above_mebibytes",
            "custody",
            "resident_capacity",
            "shared_keys",
            "replicas",
            "environment",
        ],
    );
    let mut bare = parse(&bare.to_string()).unwrap();
    assert!((1..=4).contains(&bare.hsm.custodians) && bare.hsm.environment.is_empty());
    bare.hsm.custodians = sample.hsm.custodians;
    bare.hsm.environment = sample.hsm.environment.clone();
    assert_eq!(format!("{bare:?}"), format!("{sample:?}"));
}

#[test]
fn a_secret_that_is_handed_over_by_its_name_comes_before_one_beside_the_file() {
    let credentials = std::env::temp_dir().join(format!("hsm-authd-credentials-{}", std::process::id()));
    std::fs::create_dir(&credentials).unwrap();
    for name in ["pin", "server.key", "client-ca.pem"] {
        std::fs::write(credentials.join(name), "").unwrap();
    }
    let parsed = |text: &str| {
        let config = Config::parse(text, Path::new("/etc/hsm-authd"), Some(&credentials)).unwrap();
        [config.hsm.pin_file, config.server.key.unwrap(), config.server.client_ca]
    };
    let beside = Path::new("/etc/hsm-authd").join("client-ca.pem");
    let [pin, key, authority] = parsed(SAMPLE);
    assert_eq!([pin, key, authority], [credentials.join("pin"), credentials.join("server.key"), beside]);
    // A path is where it says that it is; and what is not handed over is looked for beside the file.
    let mut elsewhere: Table = SAMPLE.parse().unwrap();
    elsewhere["hsm"].as_table_mut().unwrap().insert("pin_file".into(), Value::from("/etc/hsm-authd/pin"));
    elsewhere["server"].as_table_mut().unwrap().insert("key".into(), Value::from("./server.key"));
    std::fs::remove_file(credentials.join("client-ca.pem")).unwrap();
    let [pin, key, _] = parsed(&elsewhere.to_string());
    assert_eq!([pin, key], ["pin", "server.key"].map(|name| Path::new("/etc/hsm-authd").join(name)));
    std::fs::remove_file(credentials.join("pin")).unwrap();
    assert_eq!(parsed(SAMPLE)[0], Path::new("/etc/hsm-authd/pin"));
    std::fs::remove_dir_all(credentials).unwrap();
}

#[test]
fn without_a_key_file_the_key_is_in_the_hsm_and_may_have_several_certificates() {
    let with = |key: Option<&str>, certificate: Value| {
        let mut sample: Table = SAMPLE.parse().unwrap();
        let server = sample["server"].as_table_mut().unwrap();
        server.remove("key");
        server.extend(key.map(|key| ("key".to_owned(), Value::from(key))));
        server.insert("certificate".into(), certificate);
        parse(&sample.to_string())
    };
    let config = with(None, Value::from(vec!["one.pem", "/two.pem"])).unwrap();
    assert!(config.hsm.serves_tls && config.server.key.is_none());
    let [one, two] = ["/etc/hsm-authd/one.pem", "/two.pem"].map(Path::new);
    assert_eq!(config.server.certificates.iter().collect::<Vec<_>>(), [one, two]);
    let read: Vec<_> = config.files_of_front().collect();
    assert!(read.contains(&one) && read.contains(&two) && read.len() == 3, "{read:?}");
    assert!(!config.hsm.hidden.iter().any(|path| path.ends_with("server.key")));

    assert!(with(Some("server.key"), Value::from(vec!["one.pem"])).is_ok());
    let refused = with(Some("server.key"), Value::from(vec!["one.pem", "two.pem"])).unwrap_err();
    assert!(refused.starts_with("server.certificate: with server.key one file"), "{refused}");
    let refused = with(None, Value::Array(Vec::new())).unwrap_err();
    assert!(refused.contains("server.certificate must name a file"), "{refused}");
    for wrong in [Value::from(7), Value::from(vec![7]), Value::Table(Table::new())] {
        let refused = with(None, wrong).unwrap_err();
        assert!(refused.contains("the name of a file, or a list of such names"), "{refused}");
    }
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
    for section in ["server", "ops", "store", "hsm", "credentials", "transactions", "attestations", "audit"] {
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

/// The sample with its commented replica, and `besides` in the place of what it says of shared keys.
fn with_replica(besides: &str) -> String {
    let commented: Vec<_> = SAMPLE
        .lines()
        .skip_while(|line| *line != "# [[hsm.replicas]]")
        .take_while(|line| !line.is_empty())
        .map(|line| line.strip_prefix("# ").unwrap())
        .collect();
    assert_eq!(commented.len(), 7);
    let bare = SAMPLE.replace("replicas = []\n", "").replace("shared_keys = false\n", besides);
    let (head, tail) = bare.split_once("\n[hsm.environment]").unwrap();
    let (environment, tail) = tail.split_once("\n\n").unwrap();
    format!("{head}\n[hsm.environment]{environment}\n\n{}\n\n{tail}", commented.join("\n"))
}

#[test]
fn each_token_is_a_configuration_of_its_own() {
    let config = parse(&with_replica("shared_keys = true\n")).unwrap();
    let tokens = config.hsm.tokens();
    let [first, second] = &tokens[..] else { panic!("{tokens:?}") };
    assert_eq!((first.token_label.as_str(), second.token_label.as_str()), ("hsm-authd", "hsm-authd-2"));
    assert_eq!(first.environment["SOFTHSM2_CONF"], "/etc/hsm-authd/softhsm2.conf");
    assert_eq!(second.environment["SOFTHSM2_CONF"], "/etc/hsm-authd/softhsm2-2.conf");
    assert_eq!(
        (&*first.pin_file, &*second.pin_file),
        (Path::new("/etc/hsm-authd/pin"), Path::new("/etc/hsm-authd/pin-2"))
    );
    assert_eq!(first.folders, [Path::new("/var/lib/hsm-authd/tokens")]);
    assert_eq!(second.folders, [Path::new("/var/lib/hsm-authd/tokens-2")]);
    // No module reads the database, the server's key or any PIN.
    for hidden in [
        "/var/lib/hsm-authd/store",
        "/etc/hsm-authd/server.key",
        "/etc/hsm-authd/pin",
        "/etc/hsm-authd/pin-2",
    ] {
        assert!(
            tokens.iter().all(|token| token.hidden.iter().any(|path| path == Path::new(hidden))),
            "{hidden}"
        );
    }
    assert!(tokens.iter().all(|token| token.shared_keys && token.replicas.is_empty()));
    // What they sealed is in one database.
    assert!(!first.database.as_os_str().is_empty() && tokens.iter().all(|t| t.database == first.database));
    assert_eq!(config.hsm.pin_files().count(), 2);
    let told = with_replica("shared_keys = true\n").replacen(
        "\ntoken_label",
        "\nmodule_arguments = \"one\"\ntoken_label",
        1,
    );
    let told = parse(&told.replace("module_arguments = \"\"\n", "")).unwrap().hsm.tokens();
    let told: Vec<_> = told.iter().map(|token| token.module_arguments.text()).collect();
    assert_eq!(told, [Some(c"one"), None], "a replica is told what it says itself");

    // What a replica does not say: its custodians are as many, and nobody's environment is its own.
    let bare = with_replica("shared_keys = true\n");
    let start = bare.find("custodians = 4\nenvironment = {").unwrap();
    let end = start + bare[start..].find('}').unwrap() + 1;
    let config = parse(&format!("{}{}", &bare[..start], &bare[end..])).unwrap();
    let second = &config.hsm.tokens()[1];
    assert!(second.custodians == config.hsm.custodians && second.environment.is_empty());
    assert_eq!(parse(SAMPLE).unwrap().hsm.tokens().len(), 1);
}

#[test]
fn a_replica_is_held_to_what_the_first_token_is() {
    let good = with_replica("shared_keys = true\n");
    let replace = |from: &str, to: &str| {
        let place = good.rfind("\n[[hsm.replicas]]").unwrap();
        let (head, tail) = good.split_at(place);
        assert!(tail.contains(from), "{from}");
        parse(&format!("{head}{}", tail.replacen(from, to, 1))).unwrap_err()
    };
    for (from, to, words) in [
        ("\"/usr/lib", "\"usr/lib", "hsm.replicas.module must be an absolute path"),
        ("\"hsm-authd-2\"", "\"\"", "hsm.replicas.token_label must have 1 to 32 bytes"),
        ("custodians = 4", "custodians = 0", "hsm.replicas.custodians must be 1 to 64"),
        ("custodians = 4", "resident_capacity = 4", "unknown field"),
    ] {
        let refused = replace(from, to);
        assert!(refused.contains(words), "{refused}");
    }
    let unsaid = parse(&with_replica("")).unwrap_err();
    assert!(unsaid.contains("needs hsm.shared_keys = true"), "{unsaid}");
    let twice = good.replace("hsm-authd-2\"", "hsm-authd\"").replace("softhsm2-2.conf", "softhsm2.conf");
    let twice = parse(&twice).unwrap_err();
    assert!(twice.contains("is named twice"), "{twice}");
    // Another environment is another token.
    parse(&good.replace("hsm-authd-2\"", "hsm-authd\"")).unwrap();
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
        assert_eq!(i64::from(with("transactions", "keep_days", days.into()).transactions.keep_days), days);
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

#[test]
fn folders_are_held_apart_where_links_lead_too() {
    use std::fs;
    use std::os::unix::fs::symlink;
    let root = std::env::temp_dir().join(format!("hsm-authd-folders-{}", std::process::id()));
    for name in ["etc", "var/store", "var/tokens", "elsewhere", "lib"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let root = fs::canonicalize(root).unwrap();
    let at = |name: &str| root.join(name).display().to_string();
    for (target, link) in [
        ("var/store", "tokens-to-store"),
        ("var", "to-var"),
        ("etc", "to-etc"),
        ("etc/pin", "to-pin"),
        ("etc/server.key", "to-key"),
        ("elsewhere/later", "to-later"),
        ("var/tokens", "store-to-tokens"),
    ] {
        symlink(root.join(target), root.join(link)).unwrap();
    }
    for name in ["etc/pin", "etc/server.key", "lib/module.so"] {
        fs::write(root.join(name), "").unwrap();
    }
    let loaded = |store: &str, folder: &str, pin: &str| {
        let mut table: toml::Table = SAMPLE.parse().unwrap();
        let mut set = |section: &str, key: &str, value: toml::Value| {
            table.get_mut(section).unwrap().as_table_mut().unwrap().insert(key.into(), value);
        };
        set("store", "path", at(store).into());
        set("hsm", "folders", vec![at(folder)].into());
        set("hsm", "pin_file", at(pin).into());
        set("hsm", "module", at("lib/module.so").into());
        set("server", "key", "server.key".into());
        let path = root.join("etc/hsm-authd.toml");
        fs::write(&path, table.to_string()).unwrap();
        Config::load(&path).map(drop).map_err(|refused| refused.to_string())
    };
    assert_eq!(loaded("var/store/hsm-authd.db", "var/tokens", "etc/pin"), Ok(()));
    assert_eq!(loaded("not/yet/hsm-authd.db", "nor/this", "etc/later"), Ok(()));
    for (store, folder, pin, words) in [
        ("var/store/db", "tokens-to-store", "etc/pin", "the front could open"),
        ("var/store/db", "to-var", "etc/pin", "could change the database"),
        ("store-to-tokens/db", "var/tokens", "etc/pin", "the front could open"),
        ("to-var/store/db", "var", "etc/pin", "could change the database"),
        ("to-var/not-yet/db", "var", "etc/pin", "could change the database"),
        ("var/store/db", "to-etc", "etc/pin", "the module could read and change"),
        ("var/store/db", "to-pin", "etc/pin", "etc/pin"),
        ("var/store/db", "to-key", "etc/pin", "etc/server.key"),
        ("var/store/db", "elsewhere", "to-later", "could read and change"),
        // Of what is there already, one that is written otherwise.
        ("var/store/db", "var/tokens/../../etc", "etc/pin", "hsm-authd.toml"),
        // A folder with the configuration, and one that another one is in.
        ("var/store/db", "", "etc/pin", "could change the database"),
    ] {
        let refused = loaded(store, folder, pin).unwrap_err();
        assert!(refused.contains(words) && !refused.contains('\n'), "{store} {folder} {pin}: {refused}");
    }
    fs::remove_dir_all(root).unwrap();
}
