//! Chains of transactions (seed A): the second user approves with the first one's approval in what is signed.

use data_encoding::HEXLOWER;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::attestation_forgeries::forgeries;
use crate::attestations::{claims, jwks, verify};
use crate::bank::{done, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, text};
use crate::pruning::pruned;
use crate::signers::Device;
use crate::transactions::{
    Holder, NOW, PLAIN, attestation, cancel, create, created, id, order, order_with, path, respond,
    signing_input, transaction,
};

const DAY: u64 = 86_400;

fn hash(jws: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(jws))
}

/// What a view says of the terms of its transaction.
fn terms(view: &Value) -> Value {
    let names =
        ["payer", "payee", "amount", "currency", "order", "platform", "remark", "expires_at", "nonce"];
    let present = names.iter().filter_map(|name| Some((name.to_string(), view.get(name)?.clone())));
    Value::Object(present.collect::<Map<_, _>>())
}

/// The one answer to every parent that is none.
async fn no_parent(bank: &Connection, credential: &str, parent: &str, what: &str) {
    let answer = create(bank, &order_with(credential, json!({ "parent": parent }))).await;
    assert_eq!(answer.status, 422, "{what}: {}", text(&answer));
    let document = refused(&answer, 422, "invalid");
    assert_eq!(document["field"], "parent", "{what}");
    let reason = "must be an attestation of yours, just as it was given out, and not expired";
    assert_eq!(document["reason"], reason, "{what}");
}

#[tokio::test]
async fn the_second_user_sees_and_signs_the_first_ones_approval() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let seller = Holder::enrol(&bank, PLAIN, "seller").await;
    let buyer = Holder::enrol(&bank, "OCRA-1:HOTP-SHA512-8:C-QA64-S064", "buyer").await;
    let demand = order_with(
        &seller.credential,
        json!({ "payee": "buyer", "amount": "100", "currency": "JPY", "order": "demand-1", "platform": "exchange" }),
    );
    let first = seller.approved(&bank, &demand).await;
    let first_jws = first["attestation"].as_str().unwrap().to_owned();

    let counter_demand = order_with(
        &buyer.credential,
        json!({ "payee": "seller", "amount": "9.50", "order": "demand-2", "platform": "exchange", "parent": first_jws }),
    );
    let second = created(&bank, &counter_demand).await;
    // Both users, the platform and both demands are in the one answer.
    let link = json!({ "jti": first["id"], "hash": hash(&first_jws) });
    let mut shown = link.clone();
    shown["transaction"] = terms(&first);
    assert_eq!(second["parent"], shown);
    assert_eq!(
        (
            &second["payer"],
            &second["parent"]["transaction"]["payer"],
            &second["parent"]["transaction"]["platform"]
        ),
        (&json!("buyer"), &json!("seller"), &json!("exchange"))
    );
    let input = signing_input("bank-a", &second);
    assert_eq!(second["digest"], HEXLOWER.encode(&Sha256::digest(&input)));
    let mut alone = second.clone();
    alone.as_object_mut().unwrap().remove("parent");
    assert_ne!(input, signing_input("bank-a", &alone), "the parent is in what is signed");
    assert_eq!(transaction(&bank, &id(&second)).await, second);

    let approved = done(&respond(&bank, &id(&second), &buyer.code(&second)).await);
    assert_eq!(approved["parent"], shown);
    let second_jws = approved["attestation"].as_str().unwrap().to_owned();
    assert_eq!(claims(&second_jws)["parent"], link);
    assert!(claims(&first_jws).get("parent").is_none());
    assert_eq!(done(&verify(&bank, &second_jws).await), claims(&second_jws));

    // A third leg follows the second one, and through it the first.
    let third = order_with(&seller.credential, json!({ "parent": second_jws, "order": "settlement" }));
    let third = seller.approved(&bank, &third).await;
    assert_eq!(third["parent"]["transaction"], terms(&second));
    assert_eq!(third["parent"]["hash"], hash(&second_jws));
    assert!(third["parent"]["transaction"].get("parent").is_none(), "one leg back");
    let third_jws = third["attestation"].as_str().unwrap();
    assert_eq!(claims(third_jws)["parent"], json!({ "jti": second["id"], "hash": hash(&second_jws) }));

    // A parent may have many children, and what becomes of one of them changes nothing for the others.
    let sibling = created(&bank, &counter_demand).await;
    assert_eq!(sibling["parent"], shown);
    assert_ne!(sibling["digest"], second["digest"]);
    done(&cancel(&bank, &id(&sibling)).await);
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(transaction(&bank, &id(&second)).await["parent"], shown);
    let listed = done(&bank.get("/v1/transactions").await.unwrap());
    assert_eq!(listed["items"].as_array().unwrap().len(), 4);
    for item in listed["items"].as_array().unwrap() {
        assert_eq!(*item, transaction(&bank, &id(item)).await);
    }
}

#[tokio::test]
async fn a_parent_is_an_attestation_of_the_tenants_own_byte_for_byte() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let foreign = Holder::enrol(&stranger, PLAIN, "acct-1").await;
    let first = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = first["attestation"].as_str().unwrap();
    let theirs = foreign.approved(&stranger, &order(&foreign.credential)).await;
    let theirs = theirs["attestation"].as_str().unwrap();
    no_parent(&bank, &holder.credential, theirs, "another tenant's").await;
    no_parent(&stranger, &foreign.credential, jws, "another tenant's").await;

    let keys = jwks(&bank).await;
    let mut tried = 0;
    for (what, forged) in forgeries(jws, &keys[0]) {
        // A body is not larger than 64 KiB.
        no_parent(&bank, &holder.credential, &forged, &what).await;
        tried += 1;
    }
    println!("{tried} forgeries");
    // The right transaction's claims, signed again.
    let (header_and_claims, _) = jws.rsplit_once('.').unwrap();
    let signature = Device::new(9).p1363(header_and_claims.as_bytes());
    let signed_again = format!("{header_and_claims}.{}", data_encoding::BASE64URL_NOPAD.encode(&signature));
    no_parent(&bank, &holder.credential, &signed_again, "signed again").await;
    // Two that are not approved: nothing was attested of them, so nobody has what would name them.
    let pending = holder.asked(&bank).await;
    let cancelled = done(&cancel(&bank, &id(&holder.asked(&bank).await)).await);
    for view in [&pending, &cancelled] {
        let mut said = claims(jws);
        said["jti"] = view["id"].clone();
        let header = &header_and_claims[..header_and_claims.find('.').unwrap()];
        let input =
            format!("{header}.{}", data_encoding::BASE64URL_NOPAD.encode(said.to_string().as_bytes()));
        let signature = data_encoding::BASE64URL_NOPAD.encode(&Device::new(9).p1363(input.as_bytes()));
        no_parent(&bank, &holder.credential, &format!("{input}.{signature}"), "not approved").await;
        no_parent(&bank, &holder.credential, view["id"].as_str().unwrap(), "an id").await;
        no_parent(&bank, &holder.credential, view["digest"].as_str().unwrap(), "a digest").await;
    }
    for value in [Value::Null, json!(7), json!({}), json!([jws])] {
        let answer = create(&bank, &order_with(&holder.credential, json!({ "parent": value }))).await;
        refused(&answer, 422, "invalid");
    }
    let listed = done(&bank.get("/v1/transactions").await.unwrap());
    assert_eq!(listed["items"].as_array().unwrap().len(), 3, "none was made");
    assert_eq!(
        created(&bank, &order_with(&holder.credential, json!({ "parent": jws }))).await["parent"]["jti"],
        first["id"]
    );
}

#[tokio::test]
async fn a_parent_holds_still_when_its_child_is_made() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let first = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = first["attestation"].as_str().unwrap();
    daemon.set_clock(NOW + DAY - 1);
    let child = created(&bank, &order_with(&holder.credential, json!({ "parent": jws }))).await;
    daemon.set_clock(NOW + DAY);
    no_parent(&bank, &holder.credential, jws, "expired").await;
    // What was made in time can be approved in its own.
    done(&respond(&bank, &id(&child), &holder.code(&child)).await);
    let second = attestation(&bank, &id(&child)).await;
    created(&bank, &order_with(&holder.credential, json!({ "parent": second }))).await;
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_outlives_its_parent() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let first = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = first["attestation"].as_str().unwrap().to_owned();
    daemon.set_clock(NOW + DAY / 2);
    let child = holder.approved(&bank, &order_with(&holder.credential, json!({ "parent": jws }))).await;
    assert_eq!(child["parent"]["transaction"], terms(&first));
    assert!(daemon.stop().success());
    daemon.set_clock(NOW + 90 * DAY + 1);
    daemon.resume();
    pruned(&daemon, 1).await;
    let bank = daemon.connect("bank-a").await;
    refused(&bank.get(&path(&id(&first), "")).await.unwrap(), 404, "not-found");
    let shown = transaction(&bank, &id(&child)).await;
    assert_eq!(
        shown["parent"],
        json!({ "jti": first["id"], "hash": hash(&jws) }),
        "the link stays, the terms are gone"
    );
    let mut expected = child.clone();
    expected["parent"] = shown["parent"].clone();
    let jws_of_child = expected.as_object_mut().unwrap().remove("attestation").unwrap();
    assert_eq!(shown, expected);
    assert_eq!(attestation(&bank, &id(&child)).await, jws_of_child.as_str().unwrap());
    let input = signing_input("bank-a", &shown);
    assert_eq!(shown["digest"], HEXLOWER.encode(&Sha256::digest(&input)), "it can still be verified");
    let listed = done(&bank.get("/v1/transactions").await.unwrap());
    assert_eq!(listed["items"], json!([shown]));
    no_parent(&bank, &holder.credential, &jws, "pruned").await;
}
