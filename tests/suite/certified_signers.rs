//! Signers by a certificate: trusted at enrolment and again at every use, by anchors and revocation lists that an
//! operator exchanges while the daemon runs.

use std::fs;

use serde_json::{Value, json};
use toml::Table;

use crate::bank::{act, credential, credentials, delete, done, failed, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, RELOADED, enrol, text};
use crate::device_pki::{
    Certificate, DAY_S, DIGITAL_SIGNATURE, KEY_CERT_SIGN, KEY_ENCIPHERMENT, Kind, List, NOW_S, Party,
    SERVER_AUTH, anchor, ballast, certificates_pem, device, extended_key_usage, intermediate, is_ca,
    is_no_ca, issuing, key_usage, leaf, lists_pem, party, root, unknown_extension,
};
use crate::refusals::{Case, all_refused};
use crate::security_devices::{Pending, es256_forms, order, rs256, rs256_jws, signed};
use crate::signers::{PAYLOAD, present};

const NOT_RELOADED: &str = "not reloaded;";

/// The lists of the two authorities, of which the issuing one has revoked these.
pub fn lists(revoked: &[u8]) -> [Vec<u8>; 2] {
    [List::of(&[]).issue(&root()), List::of(revoked).issue(&issuing())]
}

pub fn enrolment(ders: &[&[u8]]) -> Value {
    json!({ "type": "signer", "account": "acct-1", "certificate_chain_pem": certificates_pem(ders) })
}

async fn enrol_usual(bank: &Connection) -> String {
    enrol(bank, &enrolment(&[&leaf(), &intermediate()])).await
}

fn write_files(daemon: &Daemon, anchors: &str, crls: &str) {
    fs::write(daemon.dir().join("anchors.pem"), anchors).unwrap();
    fs::write(daemon.dir().join("crls.pem"), crls).unwrap();
}

/// Exchanges the files, and has them loaded.
pub fn exchange(daemon: &Daemon, anchors: &[&[u8]], lists: &[Vec<u8>]) {
    let lists: Vec<_> = lists.iter().map(Vec::as_slice).collect();
    write_files(daemon, &certificates_pem(anchors), &lists_pem(&lists));
    let path = daemon.dir().join("hsm-authd.toml");
    let mut config: Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let mut signers = Table::from_iter([("trust_anchors".to_owned(), "anchors.pem".into())]);
    if !lists.is_empty() {
        signers.insert("crls".into(), vec!["crls.pem"].into());
    }
    config.insert("signers".into(), signers.into());
    fs::write(&path, config.to_string()).unwrap();
    daemon.reload(RELOADED);
}

/// A signature of the usual device, shown to `/verify`.
async fn shown(bank: &Connection, id: &str) -> Response {
    present(bank, id, PAYLOAD, &device().key.sign(PAYLOAD), "der").await
}

fn response(pending: &Pending) -> Value {
    signed("der", &device().key.sign(&pending.signing_input()))
}

/// No answer, and when to come back.
fn unknown(answer: &Response) {
    assert_eq!(refused(answer, 503, "unavailable")["retry_after"], 60);
}

/// Whether it verifies, by `/verify` and by a transaction.
async fn works(bank: &Connection, id: &str) {
    done(&shown(bank, id).await);
    let pending = Pending::of(bank, id).await;
    pending.approved_by(bank, &response(&pending)).await;
}

async fn is_refused(bank: &Connection, id: &str, what: &str) {
    assert_eq!(failed(&shown(bank, id).await), 5, "{what}");
    let pending = Pending::of(bank, id).await;
    let right = response(&pending);
    pending.failed_by(bank, what, &right, &right).await;
    assert_eq!(credential(bank, id).await["failures"], 0, "{what}");
}

#[tokio::test]
async fn chains_of_every_length_and_kind_of_key_are_enrolled_and_used() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    for kind in [Kind::P256, Kind::Rsa2048, Kind::Rsa3072] {
        let [root, middle, issuing] = ["a root", "a middle", "an issuing"].map(|name| party(kind, name));
        let own = match kind {
            Kind::P256 => party(kind, "device"),
            _ => Party { name: "device", key: rs256(kind, "device") },
        };
        let anchor = Certificate::authority(1).issue(&root, &root);
        let authorities = [
            Certificate::authority(2).issue(&middle, &root),
            Certificate::authority(3).issue(&issuing, &middle),
        ];
        let lists = [&root, &middle, &issuing].map(|authority| List::of(&[]).issue(authority));
        exchange(&daemon, &[&anchor], &lists);
        for authorities_between in 0..3 {
            let issuer = [&root, &middle, &issuing][authorities_between];
            let mut chain = vec![Certificate::device(9).issue(&own, issuer)];
            chain.extend(authorities[..authorities_between].iter().rev().cloned());
            let chain: Vec<_> = chain.iter().map(Vec::as_slice).collect();
            let id = enrol(&bank, &enrolment(&chain)).await;
            let view = credential(&bank, &id).await;
            assert_eq!(view["certificate_expires_at"], "2027-01-01T00:00:00Z");
            assert_eq!(view["algorithm"], if kind == Kind::P256 { "ES256" } else { "RS256" });
            assert_eq!(view["thumbprint"].as_str().unwrap().len(), 43);
            assert!(view.get("certificate_chain_pem").is_none() && view.get("webauthn").is_none());
            let pending = Pending::of(&bank, &id).await;
            let input = pending.signing_input();
            if kind == Kind::P256 {
                done(&present(&bank, &id, PAYLOAD, &own.key.sign(PAYLOAD), "der").await);
                pending.approved_by(&bank, &es256_forms(&own.key, &input)[authorities_between]).await;
            } else {
                done(&present(&bank, &id, PAYLOAD, &own.key.sign(PAYLOAD), "raw").await);
                let jws = rs256_jws(&own.key, r#"{"alg":"RS256"}"#, &input);
                let jws = json!({ "format": "jws", "signature": jws });
                pending.approved_by(&bank, &jws).await;
            }
        }
    }
}

#[tokio::test]
async fn a_chain_that_is_not_to_be_trusted_is_not_enrolled() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    let (leaf, intermediate, anchor) = (leaf(), intermediate(), anchor());
    let case = |what: &str, ders: &[&[u8]]| {
        Case::post(what, "/v1/credentials", enrolment(ders).to_string(), 422).about("certificate_chain_pem")
    };
    let without_anchors = case("no anchor is configured", &[&leaf, &intermediate]);
    all_refused(&daemon, &bank, vec![without_anchors]).await;

    exchange(&daemon, &[&anchor], &lists(&[66]));
    let leaf_of = |certificate: Certificate| certificate.issue(&device(), &issuing());
    let issuing_of = |certificate: Certificate| certificate.issue(&issuing(), &root());
    let another_root = party(Kind::P256, "another root");
    let weak_device = party(Kind::P384, "a device of another curve");
    let mut forged = leaf.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut cases = vec![
        case("alone", &[&leaf]),
        case("the anchor instead of the issuer", &[&leaf, &anchor]),
        case("in another order", &[&intermediate, &leaf]),
        case("the authority's own", &[&intermediate]),
        case("another root's", &[&leaf, &Certificate::authority(2).issue(&issuing(), &another_root)]),
        case(
            "with another root",
            &[
                &leaf,
                &Certificate::authority(2).issue(&issuing(), &another_root),
                &Certificate::authority(1).issue(&another_root, &another_root),
            ],
        ),
        case("self-signed", &[&Certificate::device(3).issue(&device(), &device())]),
        case("forged", &[&forged, &intermediate]),
        case(
            "expired",
            &[&leaf_of(Certificate { not_after_s: NOW_S - 1, ..Certificate::device(3) }), &intermediate],
        ),
        case(
            "too early",
            &[&leaf_of(Certificate { not_before_s: NOW_S + 1, ..Certificate::device(3) }), &intermediate],
        ),
        case(
            "under an expired authority",
            &[&leaf, &issuing_of(Certificate { not_after_s: NOW_S - 1, ..Certificate::authority(2) })],
        ),
        case("a device that is an authority", &[&leaf_of(Certificate::authority(3)), &intermediate]),
        case(
            "for keys alone",
            &[&leaf_of(Certificate::with(3, vec![is_no_ca(), key_usage(KEY_ENCIPHERMENT)])), &intermediate],
        ),
        case(
            "for servers",
            &[
                &leaf_of(Certificate::with(
                    3,
                    vec![key_usage(DIGITAL_SIGNATURE), extended_key_usage(&[SERVER_AUTH])],
                )),
                &intermediate,
            ],
        ),
        case(
            "with what nobody knows",
            &[&leaf_of(Certificate::with(3, vec![unknown_extension(true)])), &intermediate],
        ),
        case("under no authority", &[&leaf, &issuing_of(Certificate::device(2))]),
        case(
            "under one that may not",
            &[&leaf, &issuing_of(Certificate::with(2, vec![is_ca(None), key_usage(DIGITAL_SIGNATURE)]))],
        ),
        case(
            "too deep",
            &[
                &Certificate::device(9).issue(&device(), &another_root),
                &Certificate::authority(8).issue(&another_root, &issuing()),
                &issuing_of(Certificate::with(2, vec![is_ca(Some(0)), key_usage(KEY_CERT_SIGN)])),
            ],
        ),
        case("revoked", &[&leaf_of(Certificate::device(66)), &intermediate]),
        case(
            "a key that is not taken",
            &[&Certificate::device(3).issue(&weak_device, &issuing()), &intermediate],
        ),
        case("five", &[&leaf, &intermediate, &intermediate, &intermediate, &intermediate]),
        case("more than 8 KiB", &[&leaf_of(Certificate::with(3, vec![ballast(8_192)])), &intermediate]),
        case("none", &[]),
    ];
    let good = certificates_pem(&[&leaf, &intermediate]);
    for pem in [
        "unmistakable".to_owned(),
        format!("unmistakable {good}"),
        format!("{good} unmistakable"),
        good.replace("CERTIFICATE", "PUBLIC KEY"),
        good.replace("MII", "M!!"),
        format!("{good}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        good[..good.len() - 30].to_owned(),
    ] {
        let body = json!({ "type": "signer", "account": "acct-1", "certificate_chain_pem": pem });
        let case = Case::post(pem, "/v1/credentials", body.to_string(), 422);
        cases.push(case.about("certificate_chain_pem"));
    }
    for (name, value) in [("algorithm", json!("RS256")), ("public_key_pem", json!("x"))] {
        let mut body = enrolment(&[&leaf, &intermediate]);
        body[name] = value;
        cases.push(Case::post(name, "/v1/credentials", body.to_string(), 422).about(name));
    }
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(credentials(&bank).await, json!([]));

    // Neither yes nor no, as long as a list is missing.
    exchange(&daemon, &[&anchor], &lists(&[])[..1]);
    unknown(&bank.post("/v1/credentials", &enrolment(&[&leaf, &intermediate])).await.unwrap());
    exchange(&daemon, &[&anchor], &lists(&[]));
    works(&bank, &enrol_usual(&bank).await).await;
}

#[tokio::test]
async fn a_revoked_certificate_signs_nothing_until_it_is_not_revoked_any_more() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    exchange(&daemon, &[&anchor()], &lists(&[]));
    let id = enrol_usual(&bank).await;
    works(&bank, &id).await;
    let before = Pending::of(&bank, &id).await;
    exchange(&daemon, &[&anchor()], &lists(&[3]));
    is_refused(&bank, &id, "the device is revoked").await;
    before.failed_by(&bank, "made before", &response(&before), &response(&before)).await;
    assert!(daemon.log().contains("a certificate is revoked"), "the operator learns why");

    exchange(&daemon, &[&anchor()], &lists(&[]));
    works(&bank, &id).await;
    assert_eq!(before.now(&bank).await["state"], "failed");
    exchange(&daemon, &[&anchor()], &[List::of(&[2]).issue(&root()), List::of(&[]).issue(&issuing())]);
    is_refused(&bank, &id, "its authority is revoked").await;
    exchange(&daemon, &[&anchor()], &[]);
    works(&bank, &id).await;
    done(&act(&bank, &id, "suspend").await);
    refused(&shown(&bank, &id).await, 409, "state-conflict");
    done(&delete(&bank, &id).await);
    refused(&shown(&bank, &id).await, 404, "not-found");
}

#[tokio::test]
async fn a_list_out_of_date_is_neither_yes_nor_no() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    let until = |next_update_s| {
        [List::of(&[]).issue(&root()), List { next_update_s, ..List::of(&[]) }.issue(&issuing())]
    };
    exchange(&daemon, &[&anchor()], &until(NOW_S + 100));
    let id = enrol_usual(&bank).await;
    let mut long = order(&id);
    long["expires_in"] = json!(3_600);
    let pending = Pending::ordered(&bank, &long).await;
    daemon.set_clock(NOW_S + 99);
    works(&bank, &id).await;

    daemon.set_clock(NOW_S + 100);
    let wrong = signed("der", &device().key.sign(b"another"));
    let forms = [response(&pending), wrong, json!({ "format": "jws", "signature": "unmistakable" })];
    for response in &forms {
        unknown(&pending.respond(&bank, response).await);
    }
    unknown(&shown(&bank, &id).await);
    unknown(&bank.post("/v1/credentials", &enrolment(&[&leaf(), &intermediate()])).await.unwrap());
    assert_eq!(pending.now(&bank).await, pending.view, "it waits");

    exchange(&daemon, &[&anchor()], &until(NOW_S + 3_000));
    pending.approved_by(&bank, &forms[0]).await;
    works(&bank, &id).await;
}

#[tokio::test]
async fn a_certificate_expires_and_anchors_are_exchanged() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    exchange(&daemon, &[&anchor()], &[]);
    let short = Certificate { not_after_s: NOW_S + 200, ..Certificate::device(4) };
    let short = enrol(&bank, &enrolment(&[&short.issue(&device(), &issuing()), &intermediate()])).await;
    let id = enrol_usual(&bank).await;
    assert_eq!(credential(&bank, &short).await["certificate_expires_at"], "2026-01-01T00:03:20Z");
    daemon.set_clock(NOW_S + 200);
    works(&bank, &short).await;
    daemon.set_clock(NOW_S + 201);
    is_refused(&bank, &short, "its last second is over").await;
    works(&bank, &id).await;

    let other = party(Kind::P256, "another root");
    let other_anchor = Certificate::authority(1).issue(&other, &other);
    exchange(&daemon, &[&other_anchor], &[]);
    is_refused(&bank, &id, "another anchor").await;
    exchange(&daemon, &[&other_anchor, &anchor()], &[]);
    works(&bank, &id).await;
    daemon.set_clock(NOW_S + 366 * DAY_S);
    is_refused(&bank, &id, "all have expired").await;
}

#[tokio::test]
async fn a_reload_with_a_broken_file_changes_nothing() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    exchange(&daemon, &[&anchor()], &lists(&[]));
    let id = enrol_usual(&bank).await;
    let anchors = certificates_pem(&[&anchor()]);
    let revoking = lists(&[3]);
    let crls = lists_pem(&[&revoking[0], &revoking[1]]);
    for (anchors, crls) in [
        ("", crls.as_str()),
        ("no PEM", &crls),
        (&certificates_pem(&[&leaf()]), &crls),
        (&anchors, ""),
        (&anchors, &anchors),
        (&anchors, &crls.replace("MII", "M!!").replacen("MI", "M!", 1)),
    ] {
        write_files(&daemon, anchors, crls);
        daemon.reload(NOT_RELOADED);
        works(&bank, &id).await;
    }
    fs::remove_file(daemon.dir().join("crls.pem")).unwrap();
    daemon.reload(NOT_RELOADED);
    works(&bank, &id).await;
    write_files(&daemon, &anchors, &crls);
    daemon.reload(RELOADED);
    is_refused(&bank, &id, "the files are right now, and it is revoked").await;
}

#[tokio::test]
async fn a_clock_that_stepped_tells_nothing_of_a_certificate() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    exchange(&daemon, &[&anchor()], &lists(&[]));
    let id = enrol_usual(&bank).await;
    let pending = Pending::of(&bank, &id).await;
    daemon.step_clock(NOW_S + 60);
    unknown(&shown(&bank, &id).await);
    unknown(&pending.respond(&bank, &response(&pending)).await);
    unknown(&bank.post("/v1/credentials", &enrolment(&[&leaf(), &intermediate()])).await.unwrap());
    assert_eq!(pending.now(&bank).await["state"], "pending");
    assert_eq!(credential(&bank, &id).await["certificate_expires_at"], "2027-01-01T00:00:00Z");
}

/// Chains of almost 8 KiB.
#[tokio::test]
async fn the_longest_chains_are_listed_and_used() {
    let daemon = Daemon::start_at(NOW_S);
    let bank = daemon.connect("bank-a").await;
    exchange(&daemon, &[&anchor()], &[]);
    let long = |bytes| Certificate::with(3, vec![ballast(bytes)]).issue(&device(), &issuing());
    let size = |bytes| long(bytes).len() + intermediate().len();
    let bytes = 8_192 - 16 - (size(7_000) - 7_000);
    assert!((8_160..=8_192).contains(&size(bytes)), "{}", size(bytes));
    let body = enrolment(&[&long(bytes), &intermediate()]);
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(enrol(&bank, &body).await);
    }
    let listed = credentials(&bank).await;
    let found: Vec<_> = listed.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    // Of one millisecond, so they are in the order of their ids.
    ids.sort();
    assert_eq!(found, ids);
    let id = &ids[0];
    works(&bank, id).await;

    // As much of everything else as there can be, in one message each.
    let mut first = order(id);
    first["platform"] = json!("\u{20ac}".repeat(128));
    first["remark"] = json!("\"".repeat(128));
    let keyed = async |path: &str, key: &str, body: &Value| {
        let key = format!("{key:k>255}");
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        bank.request("POST", path, &headers, body.to_string()).await.unwrap()
    };
    let mut parent = None;
    for leg in ["1", "2", "3"] {
        if let Some(parent) = &parent {
            first["parent"] = json!(parent);
        }
        let made = keyed("/v1/transactions", leg, &first).await;
        assert_eq!(made.status, 201, "{}", text(&made));
        let pending = Pending { view: made.json().unwrap() };
        let responses = pending.path("/responses");
        let approved = done(&keyed(&responses, &format!("r{leg}"), &response(&pending)).await);
        assert_eq!(approved["parent"].is_object(), parent.is_some());
        parent = Some(approved["attestation"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        done(&delete(&bank, id).await);
    }
}
