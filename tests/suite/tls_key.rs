//! The server's key in the HSM: served with, rotated, asked a certificate for, lost and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use toml::Table;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

use crate::client::{Connection, Http, Identity, tls_stream};
use crate::daemon::{Daemon, RELOADED, enrol_hotp, problem, rfc_code, verify};
use crate::load::Load;
use crate::modules::{Feature, passed_over};
use crate::operator::{done, keys_by, refused};
use crate::processes::{children, eventually};
use crate::revocation;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, ops_get, section};
use crate::several_tokens::init;
use crate::submissions::{Crowd, Outcome};
use crate::token::{BINARY, TestToken};

/// The name of the certificate's file; the one of the request is beside it.
pub const CERTIFICATE: &str = "in-hsm.pem";

/// What openssl asks a certificate for.
const WISH: &str = "[req]\nprompt = no\ndistinguished_name = name\nreq_extensions = san\n[name]\nCN = other\n\
                    [san]\nsubjectAltName = IP:127.0.0.1\n";

/// What a daemon left, configured anew without a key file; there is none anywhere.
pub struct World {
    pub daemon: Daemon,
    pub config: PathBuf,
}

impl World {
    /// Without a certificate.
    pub fn uncertified(custodians: u16, change: impl FnOnce(&mut Table)) -> Self {
        let mut daemon = Daemon::start_with(&["--custodians", &custodians.to_string()], &[]);
        assert!(daemon.stop().success());
        let config = configuration(&daemon, "in-hsm.toml", |config| {
            let server = section(config, "server");
            assert!(server.remove("key").is_some());
            server.insert("certificate".into(), CERTIFICATE.into());
            change(config);
        });
        fs::remove_file(daemon.dir().join("pki/server.key")).unwrap();
        Self { daemon, config }
    }

    /// Ready to serve.
    pub fn made(custodians: u16, change: impl FnOnce(&mut Table)) -> Self {
        let world = Self::uncertified(custodians, change);
        let said = done(&init(&world.config, None));
        assert!(said.contains("key hsm-authd/tls/v1: made\n"), "{said}");
        world.certify(&["--name", "127.0.0.1", "--name", "localhost"]);
        world
    }

    pub fn keys(&self, arguments: &[&str]) -> Output {
        keys_by(&self.config, arguments)
    }

    pub fn dir(&self) -> PathBuf {
        self.daemon.dir()
    }

    /// A certificate in this file, of a key that is in no token.
    fn certify_lost(&self, path: &Path) {
        let pki = self.dir().join("pki");
        if !pki.join("lost.csr").exists() {
            fs::write(pki.join("san.conf"), WISH).unwrap();
            openssl(&pki, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "lost.key"]);
            openssl(&pki, &["req", "-new", "-key", "lost.key", "-config", "san.conf", "-out", "lost.csr"]);
        }
        issue(&pki, &fs::read_to_string(pki.join("lost.csr")).unwrap(), path);
    }

    /// Asks for a certificate of the newest key, has it issued, and puts it in the place of the one that is there.
    pub fn certify(&self, arguments: &[&str]) {
        let request = done(&self.keys(&[&["csr"], arguments].concat()));
        issue(&self.dir().join("pki"), &request, &self.dir().join(CERTIFICATE));
    }

    pub fn identity(&self) -> Identity {
        self.daemon.identity("bank-a")
    }

    pub async fn connect(&self, served: &Served) -> Connection {
        Connection::open(&served.url, &self.identity(), Http::Two).await.unwrap()
    }

    /// The SHA-256 of the key that a new connection is shown.
    pub async fn shown(&self, served: &Served) -> Vec<u8> {
        shown(&served.url, &self.identity()).await
    }

    fn version_of(&self, certificate: &str) -> Vec<u64> {
        let listed = done(&self.keys(&["list", "--json"]));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let of_it = listed.as_array().unwrap().iter().filter(|key| {
            let paths = key["certificates"].as_array();
            paths.is_some_and(|paths| paths.iter().any(|path| path.as_str().unwrap().ends_with(certificate)))
        });
        of_it
            .map(|key| {
                assert_eq!(key["kind"], "tls");
                key["version"].as_u64().unwrap()
            })
            .collect()
    }
}

/// The key that a new connection is shown, in DER.
pub async fn shown(url: &str, identity: &Identity) -> Vec<u8> {
    let stream = tls_stream(url, identity, &["h2"]).await.unwrap();
    let own = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    key_of(&own)
}

/// The key in a certificate, in DER.
pub fn key_of(der: &[u8]) -> Vec<u8> {
    Certificate::from_der(der).unwrap().tbs_certificate().subject_public_key_info().to_der().unwrap()
}

/// The key in a certificate's file.
pub fn key_in(path: &Path) -> Vec<u8> {
    use x509_cert::der::DecodePem;
    key_of(&Certificate::from_pem(fs::read(path).unwrap()).unwrap().to_der().unwrap())
}

pub fn openssl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    String::from_utf8(said).unwrap()
}

/// The development authority does what is asked, and the certificate appears at once.
pub fn issue(pki: &Path, request: &str, certificate: &Path) {
    fs::write(pki.join("request.pem"), request).unwrap();
    let issuing = ["x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "30"];
    openssl(pki, &[&issuing[..], &["-copy_extensions", "copyall", "-out", "issued.pem"]].concat());
    fs::rename(pki.join("issued.pem"), certificate).unwrap();
}

async fn await_log(served: &Served, words: &str, times: usize) {
    eventually(words, async || (served.log().matches(words).count() >= times).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_with_its_key_in_the_hsm_and_no_key_file_anywhere() {
    let world = World::uncertified(2, |_| ());
    // In their order: what is missing is said, with what makes it.
    let said = refused(&world.keys(&["csr", "--name", "127.0.0.1"]));
    assert!(said.contains("has no tls key: run `hsm-authd keys rotate tls`"), "{said}");
    done(&init(&world.config, None));
    assert!(done(&init(&world.config, None)).contains("key hsm-authd/tls/v1: already there\n"));
    assert!(refused(&world.keys(&["csr"])).contains("give --name"));
    let request = done(&world.keys(&["csr", "--name", "127.0.0.1", "--name", "authd.bank.example"]));
    let pki = world.dir().join("pki");
    issue(&pki, &request, &world.dir().join(CERTIFICATE));
    let said = openssl(&pki, &["req", "-in", "request.pem", "-noout", "-text", "-verify"]);
    for words in [
        "verify OK",
        "Subject: CN = 127.0.0.1",
        "DNS:authd.bank.example",
        "IP Address:127.0.0.1",
        "NIST CURVE: P-256",
        "ecdsa-with-SHA256",
        "TLS Web Server Authentication",
        "Digital Signature",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let check = Command::new(BINARY).args(["check", "--config"]).arg(&world.config).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success() && said.contains("in-hsm.pem: its key is in this token\n"), "{said}");

    let served = Served::start(&world.config);
    for http in [Http::One, Http::Two] {
        let bank = Connection::open(&served.url, &world.identity(), http).await.unwrap();
        let id = enrol_hotp(&bank, &format!("acct-{http:?}")).await;
        assert_eq!(verify(&bank, &id, &rfc_code(0)).await.status, 200);
    }
    assert_eq!(world.shown(&served).await, key_in(&world.dir().join(CERTIFICATE)));
    let signed = [("operation", "sign-handshake"), ("outcome", "answered")];
    assert_eq!(Scrape::at(&served.ops_url).value("hsm_authd_hsm_operations_total", &signed), 3.0);
    // While it runs; the names are those of the certificate.
    let again = done(&world.keys(&["csr", "--subject", "authd 2"]));
    fs::write(pki.join("again.pem"), again).unwrap();
    let said = openssl(&pki, &["req", "-in", "again.pem", "-noout", "-text", "-verify"]);
    for words in ["verify OK", "Subject: CN = authd 2", "DNS:authd.bank.example", "IP Address:127.0.0.1"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(world.version_of(CERTIFICATE), [1]);
    let said = done(&world.keys(&["list"]));
    assert!(said.contains("in-hsm.pem\n"), "{said}");
    assert!(served.stop().success());
    // A private key of the server's is nowhere: those of the authority and the clients are.
    let keys: Vec<_> = fs::read_dir(&pki).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!keys.iter().any(|name| name == "server.key"), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_costs_no_request_and_the_old_key_goes_when_no_certificate_is_of_it() {
    let world = World::made(2, |_| ());
    let served = Served::start(&world.config);
    let crowd = Crowd::open(&served.url, &world.identity()).await;
    let mut load = Load::begin(&crowd).await;
    let first = world.shown(&served).await;
    let said = done(&world.keys(&["rotate", "tls"]));
    assert_eq!(said, "key hsm-authd/tls/v2: made\nthe service uses it\n");
    // Whatever is newest: the certificate says which key signs.
    assert_eq!(world.shown(&served).await, first);
    load.progress().await;
    // New connections beside it all, each of which must be made.
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let connecting = {
        let (url, identity, stop, made) = (served.url.clone(), world.identity(), stop.clone(), made.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let bank = Connection::open(&url, &identity, Http::Two).await.unwrap();
                assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
                made.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    world.certify(&[]);
    served.reload();
    await_log(&served, RELOADED, 1).await;
    let second = world.shown(&served).await;
    assert_ne!(second, first);
    assert_eq!(second, key_in(&world.dir().join(CERTIFICATE)));
    load.progress().await;
    let before = made.load(Ordering::Relaxed);
    eventually("more connections", async || (made.load(Ordering::Relaxed) > before + 20).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    connecting.await.unwrap();
    let report = load.end().await;
    assert_eq!(report.tally.unavailable, 0, "{report:?}");
    assert!(served.stop().success());

    let retire = |version: &str| world.keys(&["retire", "tls", version]);
    assert!(refused(&retire("2")).contains("is the newest of its kind"));
    // Not while it is certified, newest or not.
    assert_eq!(done(&world.keys(&["rotate", "tls"])).lines().next(), Some("key hsm-authd/tls/v3: made"));
    let said = refused(&retire("2"));
    assert!(said.contains("the certificate is of hsm-authd/tls/v2"), "{said}");
    fs::rename(world.dir().join(CERTIFICATE), world.dir().join("away.pem")).unwrap();
    assert!(refused(&retire("1")).contains("nobody knows whether it is of hsm-authd/tls/v1"));
    fs::rename(world.dir().join("away.pem"), world.dir().join(CERTIFICATE)).unwrap();
    assert_eq!(done(&retire("1")), "key hsm-authd/tls/v1: retired\n");
    assert_eq!(world.version_of(CERTIFICATE), [2]);
    let served = Served::start(&world.config);
    assert_eq!(world.shown(&served).await, second);
    assert!(served.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_key_changes_nothing_at_a_reload_and_lets_nobody_in_after_a_start() {
    let world = World::made(1, |_| ());
    let path = world.dir().join(CERTIFICATE);
    let right = fs::read(&path).unwrap();
    let pki = world.dir().join("pki");
    let wrong = || world.certify_lost(&path);

    let served = Served::start(&world.config);
    let bank = world.connect(&served).await;
    let first = world.shown(&served).await;
    wrong();
    served.reload();
    await_log(&served, "not reloaded; the old certificates", 1).await;
    let log = served.log();
    assert!(
        log.contains("in-hsm.pem: its key is in no token") && log.contains("hsm-authd keys csr"),
        "{log}"
    );
    assert_eq!(world.shown(&served).await, first, "the old one stays");
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    assert_eq!(ops_get(&served.ops_url, "/readyz"), (200, "ready\n".to_owned()));
    assert!(served.stop().success());

    // A start that ended would be followed by the next one, each with its entries in the log.
    let waiting = Served::spawn(&world.config);
    await_log(&waiting, "a certificate is not served", 1).await;
    eventually("it says so", async || {
        let (status, words) = ops_get(&waiting.ops_url, "/readyz");
        (status == 503 && words.contains("in-hsm.pem: its key is in no token")).then_some(())
    })
    .await;
    assert!(Connection::open(&waiting.url, &world.identity(), Http::Two).await.is_err());
    fs::write(&path, &right).unwrap();
    waiting.reload();
    await_log(&waiting, RELOADED, 1).await;
    assert_eq!(ops_get(&waiting.ops_url, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(world.shown(&waiting).await, first);
    assert!(waiting.stop().success());
    wrong();
    let check = Command::new(BINARY).args(["check", "--config"]).arg(&world.config).output().unwrap();
    let said = String::from_utf8(check.stderr).unwrap();
    assert!(!check.status.success() && said.contains("its key is in no token"), "{said}");

    // One that no key in the HSM could have says so before the HSM is asked. And what a request cannot carry is not left out.
    fs::write(pki.join("san.conf"), WISH.replace("IP:", "email:somebody@bank.example, IP:")).unwrap();
    openssl(&pki, &["genrsa", "-out", "rsa.key", "2048"]);
    openssl(&pki, &["req", "-new", "-key", "rsa.key", "-config", "san.conf", "-out", "rsa.csr"]);
    issue(&pki, &fs::read_to_string(pki.join("rsa.csr")).unwrap(), &path);
    let mut refusing = Served::spawn(&world.config);
    assert!(!refusing.ended().success());
    let words = refusing.last_words().join("\n");
    assert!(words.contains("its key is in the HSM, and on P-256"), "{words}");
    let said = refused(&world.keys(&["csr"]));
    assert!(said.contains("give --name: ") && said.contains("neither a DNS name nor an address"), "{said}");

    fs::write(&path, right).unwrap();
    let served = Served::start(&world.config);
    assert_eq!(world.shown(&served).await, first);
    assert!(served.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_whose_key_was_lost_keeps_no_revocation_from_being_heard() {
    let world = World::made(1, |config| {
        let server = section(config, "server");
        server.insert("certificate".into(), vec![CERTIFICATE, "lost.pem"].into());
        server.insert("client_crls".into(), vec!["pki/clients.crl"].into());
    });
    world.certify_lost(&world.dir().join("lost.pem"));
    revocation::list(&world.daemon, &[], revocation::FAR);
    let served = Served::start(&world.config);
    await_log(&served, "a certificate is not served", 1).await;
    assert_eq!(ops_get(&served.ops_url, "/readyz"), (200, "ready\n".to_owned()), "the other one is");
    let bank = world.connect(&served).await;
    enrol_hotp(&bank, "acct-1").await;

    revocation::list(&world.daemon, &["bank-a"], revocation::FAR);
    served.reload();
    await_log(&served, RELOADED, 1).await;
    await_log(&served, "a certificate is not served", 2).await;
    await_log(&served, "its client's certificate is not accepted any more", 1).await;
    assert!(bank.get("/v1/credentials").await.is_err());
    assert!(served.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custodians_that_die_under_handshakes_and_an_hsm_that_goes_are_got_over() {
    if passed_over(Feature::Removal) {
        return;
    }
    let world = World::made(2, |_| ());
    let served = Served::start(&world.config);
    let bank = world.connect(&served).await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let first = world.shown(&served).await;

    // Each handshake is made, whoever dies meanwhile: another one signs, or the next.
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let connecting: Vec<_> = (0..4)
        .map(|_| {
            let (url, identity, stop, made) =
                (served.url.clone(), world.identity(), stop.clone(), made.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    tls_stream(&url, &identity, &["h2"]).await.unwrap();
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        eventually("both are up", async || {
            let up = Scrape::at(&served.ops_url).value("hsm_authd_custodians_up", &[]);
            (up == 2.0).then_some(())
        })
        .await;
        let before = made.load(Ordering::Relaxed);
        let victim = children(served.pid(), "custodian").pop().unwrap();
        let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        eventually("handshakes go on", async || (made.load(Ordering::Relaxed) > before + 8).then_some(()))
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in connecting {
        task.await.unwrap();
    }

    let token = TestToken::of(&world.daemon);
    token.pull();
    for pid in children(served.pid(), "custodian") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    eventually("the HSM is known to be away", async || {
        let (status, body) = ops_get(&served.ops_url, "/readyz");
        (status == 503 && body.contains("the HSM cannot be used")).then_some(())
    })
    .await;
    let answer = verify(&bank, &id, &rfc_code(0)).await;
    assert_eq!((answer.status.as_u16(), problem(&answer).as_str()), (503, "unavailable"), "who is connected");
    assert!(tls_stream(&served.url, &world.identity(), &["h2"]).await.is_err(), "who is not");
    // A reload is no reason to give up what is served.
    served.reload();
    await_log(&served, RELOADED, 1).await;
    fs::rename(token.tokens().with_file_name("pulled"), token.tokens()).unwrap();
    eventually("ready", async || (ops_get(&served.ops_url, "/readyz").0 == 200).then_some(())).await;
    assert_eq!(world.shown(&served).await, first);
    assert_eq!(crate::submissions::Submission::new(&id, &rfc_code(0)).send(&bank).await, Outcome::Yes);
    assert!(served.stop().success());
}

/// The HSM may come later than the service: nothing is refused before it can be known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_before_the_hsm_is_there_waits_for_it() {
    if passed_over(Feature::Removal) {
        return;
    }
    let world = World::made(1, |_| ());
    drop(world.identity());
    let served = Served::start(&world.config);
    drop(world.connect(&served).await);
    assert!(served.stop().success());
    let token = TestToken::of(&world.daemon);
    token.pull();
    let mut served = Served::spawn(&world.config);
    eventually("it waits", async || {
        served.log().contains("the HSM cannot be used; it is tried again").then_some(())
    })
    .await;
    assert!(served.runs());
    fs::rename(token.tokens().with_file_name("pulled"), token.tokens()).unwrap();
    served.await_ready();
    drop(world.connect(&served).await);
    assert!(served.stop().success());
}
