//! Attestations that are none of ours: each is refused by the same answer, at `/attestations/verify` and as a parent.

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

use crate::attestations::{claims, jwks, not_verified, parts, verify};
use crate::bank::{done, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, text};
use crate::signers::Device;
use crate::token::TestToken;
use crate::transactions::{Holder, NOW, PLAIN, attestation, create, id, order, order_with};

fn input(header: &[u8], claims: &[u8]) -> String {
    format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(claims))
}

fn with_signature(input: &str, signature: &[u8]) -> String {
    format!("{input}.{}", BASE64URL_NOPAD.encode(signature))
}

/// Signed by somebody else's key.
fn signed_by(device: &Device, header: &Value, claims: &[u8]) -> String {
    let input = input(header.to_string().as_bytes(), claims);
    with_signature(&input, &device.p1363(input.as_bytes()))
}

/// Every kind of forgery of this attestation that is made without the appliance's key.
pub fn forgeries(jws: &str, key: &Value) -> Vec<(String, String)> {
    let [header, claims, signature] = parts(jws);
    let good: Value = serde_json::from_slice(&header).unwrap();
    let signed = input(&header, &claims);
    let attacker = Device::new(9);
    let mut all: Vec<(String, String)> = Vec::new();
    let mut add = |what: &str, jws: String| all.push((what.to_owned(), jws));

    // As text.
    let (first, last) = (&jws[..1], &jws[jws.len() - 1..]);
    for (what, text) in [
        ("dots", "..".to_owned()),
        ("two parts", signed.clone()),
        ("four parts", format!("{jws}.")),
        ("five parts", format!("{jws}.{jws}")),
        ("no signature", format!("{signed}.")),
        ("no claims", with_signature(&format!("{}.", BASE64URL_NOPAD.encode(&header)), &signature)),
        ("no header", with_signature(&format!(".{}", BASE64URL_NOPAD.encode(&claims)), &signature)),
        ("a space before", format!(" {jws}")),
        ("a space behind", format!("{jws} ")),
        ("a line feed behind", format!("{jws}\n")),
        ("a line feed within", jws.replacen('.', ".\n", 1)),
        ("a tab before", format!("\t{jws}")),
        ("padding", format!("{jws}=")),
        ("more padding", format!("{jws}==")),
        ("upper case", jws.to_uppercase()),
        ("lower case", jws.to_lowercase()),
        ("cut at the end", jws[..jws.len() - 1].to_owned()),
        ("cut at the beginning", jws[1..].to_owned()),
        ("lengthened", format!("{jws}A")),
        ("another alphabet", format!("{}+/", &jws[..jws.len() - 2])),
        ("a prefix", format!("https://bank.example/?a={jws}")),
        ("the JSON serialisation", json!({ "payload": claims, "signature": signature }).to_string()),
        ("beyond every bound", "A".repeat(60_000)),
        ("not of ASCII", jws.replacen(first, "\u{ff21}", 1)),
    ] {
        add(what, text);
    }
    for stray in ["B", "C", "D", "x", "-", "_"].into_iter().filter(|stray| *stray != last) {
        add(&format!("ends in {stray}"), format!("{}{stray}", &jws[..jws.len() - 1]));
    }

    // A bit of each byte.
    for (part, bytes) in [&header, &claims, &signature].into_iter().enumerate() {
        for place in 0..bytes.len() {
            let mut parts = [header.clone(), claims.clone(), signature.clone()];
            parts[part][place] ^= 1 << (place % 8);
            add(
                &format!("part {part}, byte {place}"),
                with_signature(&input(&parts[0], &parts[1]), &parts[2]),
            );
        }
    }

    // Other signatures of what was signed.
    let point =
        ["x", "y"].map(|name| BASE64URL_NOPAD.decode(key[name].as_str().unwrap().as_bytes()).unwrap());
    let sec1 = [&[4][..], &point[0], &point[1]].concat();
    for (what, bytes) in [
        ("zeros", vec![0; 64]),
        ("ones", [[0; 31].as_slice(), &[1], &[0; 31], &[1]].concat()),
        ("the order", vec![0xff; 64]),
        ("half", signature[..32].to_vec()),
        ("doubled", [&signature[..], &signature].concat()),
        ("exchanged halves", [&signature[32..], &signature[..32]].concat()),
        ("DER", p256::ecdsa::Signature::from_slice(&signature).unwrap().to_der().as_bytes().to_vec()),
        ("the attacker's", attacker.p1363(signed.as_bytes())),
    ] {
        add(what, with_signature(&signed, &bytes));
    }

    // Other headers, each with the true signature, with none, with the attacker's, and as HMACs of the public key.
    let changed = |name: &str, value: Option<Value>| {
        let mut header = good.clone();
        match value {
            Some(value) => header[name] = value,
            None => drop(header.as_object_mut().unwrap().remove(name)),
        }
        header
    };
    let theirs = attacker.jwk();
    let mut headers = vec![good.clone()];
    for alg in [
        "none", "None", "NONE", "nOnE", "", "HS256", "HS512", "RS256", "PS256", "ES384", "ES512", "ES256K",
        "EdDSA", "es256",
    ] {
        headers.push(changed("alg", Some(json!(alg))));
    }
    for alg in [json!(null), json!(7), json!(["ES256"])] {
        headers.push(changed("alg", Some(alg)));
    }
    for kid in [
        json!(""),
        json!(attacker.thumbprint()),
        json!("../../dev/null"),
        json!(null),
        json!(0),
        json!("' OR 1=1 --"),
    ] {
        headers.push(changed("kid", Some(kid)));
    }
    for typ in [
        json!("JWT"),
        json!("attestation"),
        json!("Attestation+jwt"),
        json!(""),
        json!(null),
        json!("application/attestation+jwt"),
    ] {
        headers.push(changed("typ", Some(typ)));
    }
    headers.extend(["alg", "kid", "typ"].map(|name| changed(name, None)));
    for (name, value) in [
        ("crit", json!(["b64"])),
        ("crit", json!([])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("b64", json!("true")),
        ("jwk", theirs.clone()),
        ("jku", json!("https://attacker.example/jwks.json")),
        ("x5u", json!("https://attacker.example/chain.pem")),
        ("x5c", json!(["MIIB"])),
        ("zip", json!("DEF")),
    ] {
        headers.push(changed(name, Some(value)));
    }
    let mut theirs_with_key = changed("kid", Some(json!(attacker.thumbprint())));
    (theirs_with_key["jwk"], theirs_with_key["jku"]) = (theirs, json!("https://attacker.example/jwks.json"));
    headers.push(theirs_with_key);
    for header in &headers {
        let text = header.to_string();
        let input = input(text.as_bytes(), &claims);
        if *header != good {
            add(&format!("{text}, true signature"), with_signature(&input, &signature));
        }
        add(&format!("{text}, no signature"), format!("{input}."));
        add(&format!("{text}, the attacker's"), with_signature(&input, &attacker.p1363(input.as_bytes())));
        let secrets = [sec1.clone(), key.to_string().into_bytes(), point[0].clone(), vec![]];
        for secret in secrets {
            let mac = Hmac::<sha2::Sha256>::new_from_slice(&secret).unwrap();
            let mac = mac.chain_update(&input).finalize().into_bytes();
            add(&format!("{text}, HMAC"), with_signature(&input, &mac));
        }
    }
    let header = String::from_utf8(header.clone()).unwrap();
    for twice in [
        header.replacen('{', r#"{"alg":"none","#, 1),
        header.replacen('}', r#","alg":"ES256"}"#, 1),
        header.replacen('}', r#","\u0061lg":"none"}"#, 1),
        header.replacen('}', r#","kid":"x"}"#, 1),
        header.replacen('}', r#","typ":"JWT"}"#, 1),
        header.replacen('}', r#","x":{"y":1,"y":2}}"#, 1),
        format!("{header} "),
        format!("[{header}]"),
        "null".to_owned(),
    ] {
        let input = input(twice.as_bytes(), &claims);
        add(&format!("header {twice}"), with_signature(&input, &signature));
        add(
            &format!("header {twice}, the attacker's"),
            with_signature(&input, &attacker.p1363(input.as_bytes())),
        );
    }

    // Other claims.
    let said: Value = serde_json::from_slice(&claims).unwrap();
    for (pointer, value) in [
        ("/exp", json!(u64::MAX)),
        ("/account", json!("acct-2")),
        ("/tenant", json!("bank-b")),
        ("/transaction/amount", json!("1250000.00")),
        ("/transaction/payee", json!("DE00")),
        ("/jti", json!("txn_00000000000000000000000000")),
    ] {
        let mut other = said.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        let other = other.to_string().into_bytes();
        add(&format!("another {pointer}"), with_signature(&input(header.as_bytes(), &other), &signature));
        add(&format!("another {pointer}, the attacker's"), signed_by(&attacker, &good, &other));
    }
    all
}

#[tokio::test]
async fn what_no_key_of_ours_signed_is_refused_by_one_answer() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let auditor = daemon.connect("auditor").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let approved = holder.approved(&bank, &order(&holder.credential)).await;
    let jws = attestation(&bank, &id(&approved)).await;
    let keys = jwks(&bank).await;
    let all = forgeries(&jws, &keys[0]);
    println!("{} forgeries", all.len());
    assert!(all.len() > 900, "{}", all.len());
    let mut sample = None;
    for (what, forged) in &all {
        assert_ne!(*forged, jws, "{what}");
        let answer = verify(&bank, forged).await;
        assert_eq!(answer.status, 403, "{what}: {}", text(&answer));
        not_verified(&answer);
        let said = crate::bank::without_request_id(&answer);
        assert_eq!(*sample.get_or_insert_with(|| said.clone()), said);
    }
    not_verified(&verify(&auditor, &all[0].1).await);
    assert_eq!(done(&verify(&auditor, &jws).await), claims(&jws));
}

/// Signed by the right key, which is the least that a forger who has the token's PIN can do.
#[tokio::test(flavor = "multi_thread")]
async fn what_our_key_signed_is_still_read_strictly() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let approved = holder.approved(&bank, &order(&holder.credential)).await;
    let true_one = attestation(&bank, &id(&approved)).await;
    let said = claims(&true_one);
    assert!(daemon.stop().success());
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    let standing = custodian.enrolled();
    let mut sign = |claims: &str| custodian.attestation(&standing, claims.as_bytes().to_vec());
    let text = said.to_string();
    let with = |name: &str, value: Value| {
        let mut other = said.clone();
        other[name] = value;
        other.to_string()
    };
    let good = [text.clone(), with("further", json!([1]))].map(|claims| sign(&claims));
    let mut bad = vec![
        with("iss", json!("hsm-authd ")),
        with("iss", json!("")),
        with("iss", json!(["hsm-authd"])),
        with("exp", json!(NOW)),
        with("exp", json!(NOW - 1)),
        with("exp", json!(0)),
        with("exp", json!(-1)),
        with("exp", json!(1e30)),
        with("exp", json!((NOW + 60).to_string())),
        with("transaction", json!({})),
        with("account", json!(null)),
        "{}".to_owned(),
    ];
    for name in ["iss", "jti", "iat", "exp", "tenant", "method", "account", "digest", "transaction"] {
        let mut without = said.clone();
        without.as_object_mut().unwrap().remove(name);
        bad.push(without.to_string());
        // Twice: the first and the last reader would differ.
        bad.push(text.replacen('{', &format!("{{\"{name}\":{},", said[name]), 1));
    }
    bad.push(text.replacen('{', r#"{"\u0065xp":9999999999,"#, 1));
    bad.push(text.replacen(r#""nonce":"#, r#""amount":"1.00","nonce":"#, 1));
    let bad: Vec<(String, String)> = bad.into_iter().map(|claims| (sign(&claims), claims)).collect();
    assert!(custodian.end().0.success());

    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for jws in &good {
        assert_eq!(done(&verify(&bank, jws).await), said);
    }
    for (jws, claims) in &bad {
        let answer = verify(&bank, jws).await;
        assert_eq!(answer.status, 403, "{claims}");
        not_verified(&answer);
    }
    // None of them is the one that was given out: a parent is taken byte for byte.
    let of_parent =
        async |jws: &str| create(&bank, &order_with(&holder.credential, json!({ "parent": jws }))).await;
    for jws in good.iter().chain(bad.iter().map(|(jws, _)| jws)) {
        let document = refused(&of_parent(jws).await, 422, "invalid");
        assert_eq!(document["field"], "parent");
    }
    assert_eq!(of_parent(&true_one).await.status, 201);
}

#[tokio::test]
async fn another_appliances_attestation_is_nobodys() {
    let (ours, theirs) = (Daemon::start(), Daemon::start_with_own_keys());
    let (bank, other) = (ours.connect("bank-a").await, theirs.connect("bank-a").await);
    let attested = async |bank: &Connection| {
        let holder = Holder::enrol(bank, PLAIN, "acct-1").await;
        attestation(bank, &id(&holder.approved(bank, &order(&holder.credential)).await)).await
    };
    let (here, there) = (attested(&bank).await, attested(&other).await);
    assert_ne!(jwks(&bank).await, jwks(&other).await);
    assert_eq!(done(&verify(&bank, &here).await), claims(&here));
    assert_eq!(done(&verify(&other, &there).await), claims(&there));
    not_verified(&verify(&bank, &there).await);
    not_verified(&verify(&other, &here).await);
    // Nor with our key's name on it.
    let [_, payload, signature] = parts(&there);
    let [header, ..] = parts(&here);
    not_verified(&verify(&bank, &with_signature(&input(&header, &payload), &signature)).await);
}
