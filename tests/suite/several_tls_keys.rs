//! Two tokens, each with a key of the server's and a certificate for it: while one is away, the other's is shown.

use std::fs;

use fault_module::{Fault, Kind, Vanishing};
use serde_json::Value;
use toml::Table;

use crate::client::{Connection, Http, tls_stream};
use crate::modules::{Feature, passed_over};
use crate::operator::{done, keys_by, refused};
use crate::processes::eventually;
use crate::served::section;
use crate::several_served::{Pair, await_up, await_words};
use crate::several_tokens::{SECOND, init};
use crate::tls_key::{issue, key_in, shown};

const FIRST: &str = "hsm-authd-dev";

/// Rewrites the configuration.
fn change(pair: &Pair, change: impl FnOnce(&mut Table)) {
    let mut config: Table = fs::read_to_string(&pair.config).unwrap().parse().unwrap();
    change(section(&mut config, "server"));
    fs::write(&pair.config, config.to_string()).unwrap();
}

fn csr(pair: &Pair, arguments: &[&str]) -> String {
    done(&keys_by(&pair.config, &[&["csr"], arguments].concat()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_a_token_that_is_up_is_shown() {
    if passed_over(Feature::Removal) {
        return;
    }
    let pair = Pair::joined().await;
    let folder = pair.daemon.dir();
    change(&pair, |server| {
        server.remove("key");
        server.insert("certificate".into(), vec!["first.pem", "second.pem"].into());
    });
    let said = done(&init(&pair.config, None));
    for token in [FIRST, SECOND] {
        assert!(said.contains(&format!("token {token}: key hsm-authd/tls/v1: made\n")), "{said}");
    }
    let names = ["--name", "127.0.0.1"];
    let both = csr(&pair, &names);
    assert_eq!(both.matches("BEGIN CERTIFICATE REQUEST").count(), 2);
    assert!(
        both.contains(&format!("token {FIRST}:\n-----")) && both.contains(&format!("token {SECOND}:\n-----"))
    );
    for (token, file) in [(FIRST, "first.pem"), (SECOND, "second.pem")] {
        let one = csr(&pair, &[&names[..], &["--token", token]].concat());
        assert!(one.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{one}");
        issue(&folder.join("pki"), &one, &folder.join(file));
    }
    let said = refused(&keys_by(&pair.config, &["csr", "--name", "a", "--token", "nobody"]));
    assert!(said.contains("there are") && said.contains(SECOND), "{said}");
    let [first, second] = ["first.pem", "second.pem"].map(|file| key_in(&folder.join(file)));
    assert_ne!(first, second);

    let served = pair.serve();
    await_up(&served, [1.0, 1.0]).await;
    let identity = pair.daemon.identity("bank-a");
    assert_eq!(shown(&served.url, &identity).await, first, "in the order of the configuration");
    let bank = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    let gone = pair.faults.set(Fault::everywhere(Kind::Vanish(Vanishing::Removed)));
    await_up(&served, [0.0, 1.0]).await;
    assert_eq!(shown(&served.url, &identity).await, second, "the other token's");
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    gone.lift();
    await_up(&served, [1.0, 1.0]).await;
    assert_eq!(shown(&served.url, &identity).await, first);

    // Rotated in both, asked for and reloaded in one: what the other one shows stays.
    let said = done(&keys_by(&pair.config, &["rotate", "tls"]));
    assert_eq!(said.matches("key hsm-authd/tls/v2: made\n").count(), 2, "{said}");
    issue(&folder.join("pki"), &csr(&pair, &["--token", FIRST]), &folder.join("first.pem"));
    served.reload();
    let newest = key_in(&folder.join("first.pem"));
    assert_ne!(newest, first);
    eventually("the new one", async || (shown(&served.url, &identity).await == newest).then_some(())).await;
    assert!(served.stop().success());
    let said = refused(&keys_by(&pair.config, &["retire", "tls", "1"]));
    assert!(said.contains("second.pem: the certificate is of hsm-authd/tls/v1"), "{said}");
    let listed: Value = serde_json::from_str(&done(&keys_by(&pair.config, &["list", "--json"]))).unwrap();
    let of = |token: &str, version: u64| {
        let keys = listed.as_array().unwrap().iter();
        let mut it = keys.filter(|key| {
            (&key["token"], &key["kind"], &key["version"]) == (&token.into(), &"tls".into(), &version.into())
        });
        it.next().unwrap().get("certificates").is_some()
    };
    assert_eq!([of(FIRST, 1), of(FIRST, 2), of(SECOND, 1), of(SECOND, 2)], [false, true, true, false]);

    // With the first one's certificate alone nobody gets in without the first one, and it is said why.
    change(&pair, |server| drop(server.insert("certificate".into(), "first.pem".into())));
    let served = pair.serve();
    await_up(&served, [1.0, 1.0]).await;
    let gone = pair.faults.set(Fault::everywhere(Kind::Vanish(Vanishing::Removed)));
    await_up(&served, [0.0, 1.0]).await;
    let (status, said) = crate::served::ops_get(&served.ops_url, "/readyz");
    assert!(status == 503 && said.contains("the server's key is in a token that is away"), "{said}");
    assert!(tls_stream(&served.url, &identity, &["h2"]).await.is_err());
    gone.lift();
    await_words(&served, &["ready\n"]).await;
    assert_eq!(shown(&served.url, &identity).await, newest);
    assert!(served.stop().success());
}
