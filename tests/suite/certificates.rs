//! Certificates that name no client, or should not be believed: nothing is answered to them but 401.

use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{AlternativeName, Authority, Identity as Issued, Purpose, Validity, client_uri};
use serde_json::json;

use crate::bank::{credentials, refused};
use crate::client::{Connection, Failure, Http, Identity};
use crate::daemon::{Daemon, enrol_hotp, rfc_code};
use crate::permissions::ROUTES;
use crate::scratch::Scratch;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How a certificate fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its connection ends before anything is answered.
    Cut,
    /// Every request is answered by 401.
    Unauthenticated,
}

struct Cases<'a> {
    daemon: &'a Daemon,
    scratch: Scratch,
    own: Authority,
}

impl Cases<'_> {
    /// A client that shows such a certificate.
    fn shown(
        &self,
        authority: &Authority,
        purpose: Purpose,
        names: &[AlternativeName],
        life: Validity,
    ) -> Identity {
        let issued = authority.issue(purpose, "bank-a", names, life).unwrap();
        let certificate = self.scratch.write("shown.pem", &issued.certificate_pem().unwrap());
        let key = self.scratch.write("shown.key", &issued.key_pem().unwrap());
        Identity::new(self.daemon.info["ca"].as_str().unwrap(), certificate, key)
    }

    async fn meets(&self, what: &str, identity: &Identity, id: &str, fate: Fate) {
        for http in [Http::One, Http::Two] {
            for (method, route, _) in
                ROUTES.into_iter().chain([("GET", "/", ""), ("BREW", "/v1/credentials", "")])
            {
                let connection = match Connection::open(&self.daemon.url(), identity, http).await {
                    Ok(connection) => connection,
                    Err(Failure::Handshake(_) | Failure::Request(_)) if fate == Fate::Cut => continue,
                    Err(failure) => panic!("{what}: {failure}"),
                };
                let path = route.replace("{id}", id);
                let body = if path.ends_with("verify") { json!({ "otp": rfc_code(0) }) } else { json!({}) };
                let headers = [("content-type", "application/json")];
                match connection.request(method, &path, &headers, body.to_string()).await {
                    Ok(answer) => {
                        assert_eq!(fate, Fate::Unauthenticated, "{what}: {}", answer.status);
                        refused(&answer, 401, "unauthenticated");
                    }
                    Err(Failure::Request(_)) => assert_eq!(fate, Fate::Cut, "{what}: {method} {path}"),
                    Err(failure) => panic!("{what}: {failure}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn nobody_and_two_at_once_get_no_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let before = credentials(&bank).await;
    let read = |name: &str| std::fs::read_to_string(daemon.dir().join("pki").join(name)).unwrap();
    let own = Authority::from_identity(Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap()).unwrap();
    let cases = Cases { daemon: &daemon, scratch: Scratch::new(), own };

    let now = SystemTime::now();
    let life = |from, to| Validity { not_before: from, not_after: to };
    let current = life(now - DAY, now + DAY);
    let name = |client: &str| AlternativeName::Uri(client_uri(client));
    let a = [name("bank-a")];
    let foreign = Authority::generate("hsm-authd development CA", current).unwrap();
    let stranger = Authority::generate("somebody else", current).unwrap();
    let nobody = Identity::nobody(daemon.info["ca"].as_str().unwrap());
    cases.meets("no certificate", &nobody, &id, Fate::Cut).await;
    for (what, authority, purpose, life) in [
        ("a foreign authority of the same name", &foreign, Purpose::Client, current),
        ("a foreign authority", &stranger, Purpose::Client, current),
        ("expired", &cases.own, Purpose::Client, life(now - 2 * DAY, now - DAY)),
        ("of tomorrow", &cases.own, Purpose::Client, life(now + DAY, now + 2 * DAY)),
        ("a server's", &cases.own, Purpose::Server, current),
    ] {
        cases.meets(what, &cases.shown(authority, purpose, &a, life), &id, Fate::Cut).await;
    }
    for (what, names) in [
        ("two clients' names", vec![name("bank-a"), name("bank-b")]),
        ("nobody's name", vec![name("bank-c")]),
        ("no name", vec![]),
        ("a name in another case", vec![name("BANK-A")]),
        ("a longer name", vec![name("bank-a-gateway2")]),
    ] {
        let identity = cases.shown(&cases.own, Purpose::Client, &names, current);
        cases.meets(what, &identity, &id, Fate::Unauthenticated).await;
    }
    assert_eq!(credentials(&bank).await, before);

    let fresh = cases.shown(&cases.own, Purpose::Client, &[name("bank-a"), name("nobody")], current);
    let connection = Connection::open(&daemon.url(), &fresh, Http::Two).await.unwrap();
    assert_eq!(credentials(&connection).await, before, "and what is right is let in");
}
