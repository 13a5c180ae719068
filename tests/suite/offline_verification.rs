//! `examples/offline_verification.rs`: it accepts what the appliance signed, and nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::signers::Device;

#[path = "../../examples/offline_verification.rs"]
#[allow(dead_code, reason = "its main is the example's")]
mod example;

const ISSUER: &str = "hsm-authd";

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The header that the appliance writes.
fn header(device: &Device) -> Value {
    json!({ "alg": "ES256", "kid": device.thumbprint(), "typ": "attestation+jwt" })
}

/// What it says of a transaction, but for the digest.
fn transaction() -> Value {
    json!({ "iss": ISSUER, "jti": "tx_0123456789abcdef", "iat": now_s(), "exp": now_s() + 60, "tenant": "bank-a",
        "method": "signature", "account": "acct-1",
        "transaction": { "payer": "acct-1", "payee": "acct-2 é", "amount": "1250.00", "currency": "EUR",
            "order": "A-1", "platform": "web", "remark": "rent", "expires_at": "2030-01-01T00:05:00Z",
            "nonce": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff" },
        "parent": { "jti": "tx_0", "hash": "ab".repeat(32) } })
}

/// SHA-256 of the signing input, by the tests' own hand.
fn digest(claims: &Value) -> String {
    let fields = [
        "tenant",
        "jti",
        "method",
        "transaction/payer",
        "transaction/payee",
        "transaction/amount",
        "transaction/currency",
        "transaction/order",
        "transaction/platform",
        "transaction/remark",
        "parent/hash",
        "transaction/expires_at",
        "transaction/nonce",
    ];
    let mut input = b"\0\0\0\x18hsm-authd/transaction/v1".to_vec();
    for field in fields {
        let text = claims.pointer(&format!("/{field}")).map_or("", |value| value.as_str().unwrap());
        input.extend([0, 0, 0, u8::try_from(text.len()).unwrap()]);
        input.extend(text.as_bytes());
    }
    HEXLOWER.encode(&Sha256::digest(&input))
}

/// An approved transaction's claims.
fn claims() -> Value {
    let mut claims = transaction();
    claims["digest"] = json!(digest(&claims));
    claims
}

fn signing_input(header: &Value, claims: &Value) -> String {
    let [header, claims] = [header, claims].map(|value| BASE64URL_NOPAD.encode(value.to_string().as_bytes()));
    format!("{header}.{claims}")
}

fn jws(device: &Device, header: &Value, claims: &Value) -> String {
    let input = signing_input(header, claims);
    let signature = BASE64URL_NOPAD.encode(&device.p1363(input.as_bytes()));
    format!("{input}.{signature}")
}

/// A JWK set of these devices, as the appliance answers it.
fn jwks(devices: &[&Device]) -> Value {
    let keys = devices.iter().map(|device| {
        let mut jwk = device.jwk();
        jwk["kid"] = json!(device.thumbprint());
        jwk["alg"] = json!("ES256");
        jwk["use"] = json!("sig");
        jwk
    });
    json!({ "keys": keys.collect::<Vec<_>>() })
}

fn verified(jws: &str, jwks: &Value) -> Result<Value, String> {
    let jwks = serde_json::from_value(jwks.clone()).unwrap();
    let claims = example::verified(jws, &jwks, ISSUER)?;
    Ok(serde_json::to_value(claims).unwrap())
}

fn refused(what: &str, jws: &str, jwks: &Value, reason: &str) {
    let said = verified(jws, jwks).expect_err(what);
    assert!(said.contains(reason), "{what}: {said}");
    assert!(!said.contains('\n'), "{what}: {said}");
}

#[test]
fn a_right_attestation_shows_its_claims() {
    let (new, old) = (Device::new(1), Device::new(2));
    let keys = jwks(&[&new, &old]);
    for device in [&new, &old] {
        let claims = claims();
        let attestation = jws(device, &header(device), &claims);
        assert_eq!(verified(&attestation, &keys).unwrap(), claims);
        assert_eq!(verified(&format!("{attestation}\n"), &keys).unwrap(), claims);
    }
    // What is not there counts as empty.
    let mut least = transaction();
    least.as_object_mut().unwrap().remove("parent");
    for field in ["payer", "platform", "remark"] {
        least["transaction"].as_object_mut().unwrap().remove(field);
    }
    least["digest"] = json!(digest(&least));
    assert_eq!(verified(&jws(&new, &header(&new), &least), &keys).unwrap(), least);
    // Claims of a later release are left out, not taken over unchecked.
    let mut more = claims();
    more["later"] = json!(1);
    assert_eq!(verified(&jws(&new, &header(&new), &more), &keys).unwrap(), claims());
}

#[test]
fn the_digest_is_what_anybody_computes() {
    // By five lines of Python from the contract of the signing input.
    assert_eq!(claims()["digest"], "b18559c00a36fec5352448940acc33a852ad765ff16db89cf3d607e744ceafc2");
}

#[test]
fn one_bit_of_another_value_refuses() {
    let device = Device::new(1);
    let attestation = jws(&device, &header(&device), &claims());
    let keys = jwks(&[&device]);
    for at in 0..attestation.len() {
        let mut changed = attestation.clone().into_bytes();
        changed[at] ^= 1;
        let changed = String::from_utf8(changed).unwrap();
        assert!(verified(&changed, &keys).is_err(), "byte {at}: {changed}");
    }
    let (input, signature) = attestation.rsplit_once('.').unwrap();
    let mut bytes = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
    bytes[40] ^= 0x80;
    let changed = format!("{input}.{}", BASE64URL_NOPAD.encode(&bytes));
    refused("a bit of the signature", &changed, &keys, "signature is wrong");
    refused("no signature", &format!("{input}."), &keys, "signature is wrong");
    refused("two parts", input, &keys, "no JWS");
    refused("nothing", "", &keys, "no JWS");
    refused("more parts", &format!("{attestation}.e30"), &keys, "no JWS");
}

#[test]
fn the_header_does_not_choose_the_algorithm() {
    let device = Device::new(1);
    let keys = jwks(&[&device]);
    let mut header = header(&device);

    header["alg"] = json!("none");
    refused("none", &format!("{}.", signing_input(&header, &claims())), &keys, "no JWS");

    header["alg"] = json!("HS256");
    let input = signing_input(&header, &claims());
    let point = device.jwk();
    let coordinate = |name: &str| BASE64URL_NOPAD.decode(point[name].as_str().unwrap().as_bytes()).unwrap();
    let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
    let pem = device.pem().into_bytes();
    for secret in [&point[..], &point[1..], &pem[..], &device.jwk().to_string().into_bytes(), b""] {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(input.as_bytes());
        let mac = BASE64URL_NOPAD.encode(&mac.finalize().into_bytes());
        refused("the public key as a secret", &format!("{input}.{mac}"), &keys, "not ES256");
    }
    // Nor does a key of another kind in the file of keys.
    let secret = json!({ "keys": [{ "kty": "oct", "kid": device.thumbprint(), "alg": "HS256",
        "k": BASE64URL_NOPAD.encode(b"secret") }] });
    let mut mac = Hmac::<Sha256>::new_from_slice(b"secret").unwrap();
    mac.update(input.as_bytes());
    let mac = BASE64URL_NOPAD.encode(&mac.finalize().into_bytes());
    refused("a secret among the keys", &format!("{input}.{mac}"), &secret, "P-256");

    for other in ["ES384", "RS256", "PS256", "EdDSA"] {
        header["alg"] = json!(other);
        refused(other, &jws(&device, &header, &claims()), &keys, "not ES256");
    }
}

#[test]
fn the_key_is_one_of_the_files() {
    let (device, stranger) = (Device::new(1), Device::new(2));
    let keys = jwks(&[&device]);
    let unknown = jws(&stranger, &header(&stranger), &claims());
    refused("a key that is not there", &unknown, &keys, "not in the file");
    refused("no keys", &unknown, &jwks(&[]), "not in the file");
    refused("another's signature", &jws(&stranger, &header(&device), &claims()), &keys, "signature is wrong");
    let both = jwks(&[&device, &stranger]);
    refused("another's kid", &jws(&device, &header(&stranger), &claims()), &both, "signature is wrong");

    let mut header = header(&stranger);
    header["jwk"] = stranger.jwk();
    refused("a key of its own", &jws(&stranger, &header, &claims()), &keys, "not in the file");
    header["kid"] = json!(device.thumbprint());
    refused("a key of its own", &jws(&stranger, &header, &claims()), &keys, "signature is wrong");
    header.as_object_mut().unwrap().remove("kid");
    refused("no kid", &jws(&stranger, &header, &claims()), &keys, "names no key");
}

#[test]
fn it_has_to_be_an_attestation_of_this_issuer_and_not_expired() {
    let device = Device::new(1);
    let keys = jwks(&[&device]);
    for typ in [json!("JWT"), json!("at+jwt"), json!("attestation"), Value::Null] {
        let mut header = header(&device);
        header["typ"] = typ;
        refused("another typ", &jws(&device, &header, &claims()), &keys, "typ");
    }
    let mut demanding = header(&device);
    demanding["crit"] = json!(["b64"]);
    refused("crit", &jws(&device, &demanding, &claims()), &keys, "crit");

    let table = [
        ("exp", json!(now_s()), "expired"),
        ("exp", json!(now_s() - 30), "expired"),
        ("exp", json!(0), "broken"),
        ("exp", Value::Null, "claims"),
        ("exp", json!("2030-01-01T00:00:00Z"), "claims"),
        ("iss", json!("hsm-authd-2"), "iss"),
        ("iss", json!(["hsm-authd"]), "claims"),
        ("iss", Value::Null, "claims"),
        ("transaction", Value::Null, "claims"),
        ("digest", json!("00".repeat(32)), "digest"),
        ("tenant", json!("bank-b"), "digest"),
        ("jti", json!("tx_1"), "digest"),
        ("method", json!("rolling_password"), "digest"),
        ("parent", Value::Null, "digest"),
        ("parent", json!({ "jti": "tx_0", "hash": "ac".repeat(32) }), "digest"),
    ];
    for (claim, value, reason) in table {
        let mut claims = claims();
        claims[claim] = value;
        refused(claim, &jws(&device, &header(&device), &claims), &keys, reason);
    }
    for field in transaction()["transaction"].as_object().unwrap().keys() {
        let mut claims = claims();
        claims["transaction"][field] = json!("other");
        refused(field, &jws(&device, &header(&device), &claims), &keys, "digest");
    }
    let mut more = claims();
    more["transaction"]["fee"] = json!("1.00");
    refused(
        "a field that the digest does not cover",
        &jws(&device, &header(&device), &more),
        &keys,
        "claims",
    );
}
