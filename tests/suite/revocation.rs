//! Clients that are let in no more: by a revocation list, by the configuration, by the age of their connection. Also on
//! connections that are open.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use x509_cert::Certificate;
use x509_cert::der::DecodePem;

use crate::bank::refused;
use crate::client::{Connection, Failure, Http};
use crate::daemon::{Daemon, enrol_hotp, rfc_code};
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, section};
use crate::stubborn::Stubborn;

/// A list of the development authority with these clients on it, valid until then.
pub fn list(daemon: &Daemon, revoked: &[&str], next_update: &str) -> PathBuf {
    list_of(daemon, revoked, "20250101000000Z", next_update)
}

fn list_of(daemon: &Daemon, revoked: &[&str], this_update: &str, next_update: &str) -> PathBuf {
    let folder = daemon.dir().join("pki");
    let serial = |client: &str| {
        let pem = std::fs::read(folder.join(format!("{client}.pem"))).unwrap();
        let certificate = Certificate::from_pem(pem).unwrap();
        let serial = certificate.tbs_certificate().serial_number().as_bytes().to_vec();
        data_encoding::HEXUPPER.encode(&serial)
    };
    let line = |client: &&str| {
        format!("R\t491231235959Z\t250101000000Z\t{}\tunknown\t/CN={client}\n", serial(client))
    };
    std::fs::write(folder.join("index.txt"), revoked.iter().map(line).collect::<String>()).unwrap();
    let settings = "[ca]\ndefault_ca = here\n[here]\ndatabase = index.txt\ndefault_md = sha256\ncrlnumber = number\n\
                    crl_extensions = extensions\n[extensions]\nauthorityKeyIdentifier = keyid\n";
    std::fs::write(folder.join("number"), "01\n").unwrap();
    std::fs::write(folder.join("ca.conf"), settings).unwrap();
    let output = Command::new("openssl")
        .args([
            "ca", "-config", "ca.conf", "-gencrl", "-keyfile", "ca.key", "-cert", "ca.pem", "-out", "new.crl",
        ])
        .args(["-crl_lastupdate", this_update, "-crl_nextupdate", next_update])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // At once, as whoever fetches it has to.
    let path = folder.join("clients.crl");
    std::fs::rename(folder.join("new.crl"), &path).unwrap();
    path
}

/// Long after the test.
pub const FAR: &str = "20491231235959Z";
const PAST: &str = "20250102000000Z";

fn ask_for_lists(daemon: &Daemon, path: &Path) {
    daemon.reload_with(|config| {
        config["server"]["client_crls"] = json!([path]);
    });
}

async fn works(connection: &Connection) -> bool {
    connection.get("/v1/credentials/cred_00000000000000000000000000").await.is_ok()
}

async fn lets_in(daemon: &Daemon, client: &str) -> bool {
    match Connection::open(&daemon.url(), &daemon.identity(client), Http::Two).await {
        Ok(connection) => works(&connection).await,
        Err(Failure::Handshake(_) | Failure::Request(_)) => false,
        Err(failure) => panic!("{failure}"),
    }
}

fn ended(ops_url: &str, reason: &str) -> f64 {
    Scrape::at(ops_url).value("hsm_authd_connections_ended_total", &[("reason", reason)])
}

fn ops_url(daemon: &Daemon) -> String {
    daemon.info["ops_url"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_out_with_the_reload_on_open_connections_too_and_others_notice_nothing() {
    let daemon = Daemon::start();
    let path = list(&daemon, &[], FAR);
    ask_for_lists(&daemon, &path);
    let (over_two, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let over_one = daemon.connect_over("bank-a", Http::One).await;
    assert!(works(&over_one).await && works(&over_two).await && works(&other).await);

    list(&daemon, &["bank-a"], FAR);
    assert!(
        works(&over_two).await && lets_in(&daemon, "bank-a").await,
        "a file that nobody has read says nothing"
    );
    ask_for_lists(&daemon, &path);
    eventually("its connections are cut off", async || {
        (ended(&ops_url(&daemon), "refused") >= 2.0).then_some(())
    })
    .await;
    assert!(!works(&over_one).await && !works(&over_two).await);
    assert!(!lets_in(&daemon, "bank-a").await);
    assert!(works(&other).await, "the same connection goes on");
    assert!(daemon.log().contains("its client's certificate is not accepted any more"));

    list(&daemon, &[], FAR);
    ask_for_lists(&daemon, &path);
    assert!(lets_in(&daemon, "bank-a").await);
    assert!(works(&other).await);

    // Of several of one authority the newest counts, wherever it stands.
    let text =
        |revoked, this_update| std::fs::read_to_string(list_of(&daemon, revoked, this_update, FAR)).unwrap();
    let (old, new) = (text(&[], "20240101000000Z"), text(&["bank-a"], "20250101000000Z"));
    for both in [format!("{old}{new}"), format!("{new}{old}")] {
        std::fs::write(&path, both).unwrap();
        ask_for_lists(&daemon, &path);
        assert!(!lets_in(&daemon, "bank-a").await && lets_in(&daemon, "bank-b").await);
    }
    // And alone says when it ends.
    let replaced = std::fs::read_to_string(list_of(&daemon, &[], "20240101000000Z", PAST)).unwrap();
    std::fs::write(&path, format!("{replaced}{new}")).unwrap();
    ask_for_lists(&daemon, &path);
    assert!(crl_days_left(&daemon) > 0.0);
}

fn crl_days_left(daemon: &Daemon) -> f64 {
    let scrape = Scrape::at(&ops_url(daemon));
    scrape.value("hsm_authd_certificate_expires_seconds", &[("certificate", "client-crls")]) / 86_400.0
}

const SHORT: &str = "connection_age_max_seconds = 1\nrequest_timeout_ms = 1000";

fn short_lived(daemon: &mut Daemon) -> Served {
    assert!(daemon.stop().success());
    let config = configuration(daemon, "short.toml", |config| {
        section(config, "server").insert("limits".into(), SHORT.parse::<toml::Table>().unwrap().into());
    });
    Served::start(&config)
}

fn reload(served: &Served, daemon: &Daemon, change: impl FnOnce(&mut toml::Table)) {
    configuration(daemon, "short.toml", |config| {
        section(config, "server").insert("limits".into(), SHORT.parse::<toml::Table>().unwrap().into());
        change(config);
    });
    served.reload();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_to_leave_and_stays_has_no_longer_than_a_request_and_is_out_if_revoked() {
    let mut daemon = Daemon::start();
    let path = list(&daemon, &[], FAR);
    let served = short_lived(&mut daemon);
    let mut revoked = Stubborn::connect(&served.url, &daemon.identity("bank-a")).await;
    revoked.stays().await;
    list(&daemon, &["bank-a"], FAR);
    reload(&served, &daemon, |config| {
        section(config, "server").insert("client_crls".into(), vec![path.display().to_string()].into());
    });
    let begun = Instant::now();
    eventually("it is out", async || revoked.asks().await.is_err().then_some(())).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "by the reload, not by its age");

    let mut changed = Stubborn::connect(&served.url, &daemon.identity("bank-b")).await;
    changed.stays().await;
    reload(&served, &daemon, |config| {
        let clients = config["client"].as_array_mut().unwrap();
        clients.retain(|client| client["name"].as_str() != Some("bank-b"));
    });
    eventually("it is nobody's now", async || (!changed.asks().await.unwrap()).then_some(())).await;
    eventually("it is out", async || changed.asks().await.is_err().then_some(())).await;
    assert!(served.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_out_of_date_lets_nobody_in_until_there_is_a_new_one() {
    let daemon = Daemon::start();
    let path = list(&daemon, &[], PAST);
    let before = daemon.connect("bank-a").await;
    ask_for_lists(&daemon, &path);
    eventually("who is there is out, too", async || (!works(&before).await).then_some(())).await;
    assert!(!lets_in(&daemon, "bank-a").await && !lets_in(&daemon, "bank-b").await);
    assert!(crl_days_left(&daemon) < 0.0);
    // What is no list changes nothing.
    std::fs::write(&path, "no list").unwrap();
    daemon.reload("not reloaded");
    assert!(!lets_in(&daemon, "bank-a").await);
    list(&daemon, &[], FAR);
    ask_for_lists(&daemon, &path);
    assert!(lets_in(&daemon, "bank-a").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_rights_a_reload_changes_goes_on_with_none_of_the_old_ones() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let one = enrol_hotp(&a, "acct-1").await;
    let two = enrol_hotp(&b, "acct-1").await;
    let verify = async |connection: &Connection, id: &str, counter| {
        connection.post(&format!("/v1/credentials/{id}/verify"), &json!({ "otp": rfc_code(counter) })).await
    };
    assert_eq!(verify(&a, &one, 0).await.unwrap().status, 200);
    daemon.reload_with(|config| {
        let clients = config["client"].as_array_mut().unwrap();
        let mine = clients.iter_mut().find(|client| client["name"] == "bank-a").unwrap();
        mine["permissions"] = json!(["enroll"]);
    });
    eventually("the connection ends", async || verify(&a, &one, 1).await.is_err().then_some(())).await;
    assert_eq!(ended(&ops_url(&daemon), "changed"), 1.0);
    let again = daemon.connect("bank-a").await;
    refused(&verify(&again, &one, 1).await.unwrap(), 403, "forbidden");
    assert_eq!(verify(&b, &two, 0).await.unwrap().status, 200, "on the same connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_ended_in_order() {
    let mut daemon = Daemon::start();
    let served = short_lived(&mut daemon);
    for http in [Http::One, Http::Two] {
        let before = ended(&served.ops_url, "age");
        let connection = Connection::open(&served.url, &daemon.identity("bank-a"), http).await.unwrap();
        // However busy it is.
        eventually("it ends", async || (!works(&connection).await).then_some(())).await;
        assert_eq!(ended(&served.ops_url, "age") - before, 1.0);
    }
    assert!(served.stop().success());
}
