//! Illegal signatures (seed D, step 107): each ends its transaction as failed.

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::device_pki::Kind;
use crate::security_devices::{
    Pending, base64url, enrol_device, es256, es256_jws, p1363_of, rs256, rs256_jws, signed,
};

/// The order of P-256.
const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

/// What is wrong, and how such a response is made of the signing input.
type Illegal<'a> = (&'static str, Box<dyn Fn(&[u8]) -> Value + 'a>);

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

fn jws(text: String) -> Value {
    json!({ "format": "jws", "signature": text })
}

#[tokio::test]
async fn an_illegal_es256_signature_ends_the_transaction() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = es256("device");
    let other = es256("another");
    let id = enrol_device(&bank, &device, "acct-1").await;
    let earlier = Pending::of(&bank, &id).await;
    let order = hex(ORDER);
    let cases: Vec<Illegal<'_>> = vec![
        ("another key's", Box::new(|input| signed("der", &other.sign(input)))),
        ("of another transaction", Box::new(|_| signed("der", &device.sign(&earlier.signing_input())))),
        (
            "of the digest",
            Box::new(|input| signed("der", &device.sign(&crate::security_devices::sha256(input)))),
        ),
        ("of the text", Box::new(|input| signed("der", &device.sign(base64url(input).as_bytes())))),
        ("of a bit more", Box::new(|input| signed("der", &device.sign(&flipped(input, 500))))),
        ("a bit of r", Box::new(|input| signed("p1363", &flipped(&p1363_of(&device.sign(input)), 9)))),
        ("a bit of s", Box::new(|input| signed("p1363", &flipped(&p1363_of(&device.sign(input)), 511)))),
        ("a byte behind it", Box::new(|input| signed("der", &[&device.sign(input)[..], &[0]].concat()))),
        ("P1363 as DER", Box::new(|input| signed("der", &p1363_of(&device.sign(input))))),
        ("DER as P1363", Box::new(|input| signed("p1363", &device.sign(input)))),
        ("a byte less", Box::new(|input| signed("p1363", &p1363_of(&device.sign(input))[..63]))),
        ("a byte", Box::new(|_| signed("p1363", &[1]))),
        ("zeros", Box::new(|_| signed("p1363", &[0; 64]))),
        ("above the order", Box::new(|_| signed("p1363", &[0xff; 64]))),
        (
            "s = n",
            Box::new(|input| signed("p1363", &[&p1363_of(&device.sign(input))[..32], &order].concat())),
        ),
        (
            "of another payload",
            Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256"}"#, &flipped(input, 700)))),
        ),
        (
            "the text as payload",
            Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256"}"#, base64url(input).as_bytes()))),
        ),
        (
            "another transaction's",
            Box::new(|_| jws(es256_jws(&device, r#"{"alg":"ES256"}"#, &earlier.signing_input()))),
        ),
        (
            "of the payload alone",
            Box::new(|input| {
                let jws_of_it = es256_jws(&device, r#"{"alg":"ES256"}"#, input);
                let (input_part, _) = jws_of_it.rsplit_once('.').unwrap();
                jws(format!("{input_part}.{}", base64url(&p1363_of(&device.sign(input)))))
            }),
        ),
        (
            "DER in a JWS",
            Box::new(|input| {
                let jws_of_it = es256_jws(&device, r#"{"alg":"ES256"}"#, input);
                let (input_part, _) = jws_of_it.rsplit_once('.').unwrap();
                jws(format!("{input_part}.{}", base64url(&device.sign(input_part.as_bytes()))))
            }),
        ),
        ("another key's JWS", Box::new(|input| jws(es256_jws(&other, r#"{"alg":"ES256"}"#, input)))),
        ("RS256", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"RS256"}"#, input)))),
        ("HS256", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"HS256"}"#, input)))),
        ("es256", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"es256"}"#, input)))),
        ("none, signed", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"none"}"#, input)))),
        ("none", Box::new(|input| jws(format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(input))))),
        (
            "no signature",
            Box::new(|input| jws(format!("{}.{}.", base64url(br#"{"alg":"ES256"}"#), base64url(input)))),
        ),
        ("no algorithm", Box::new(|input| jws(es256_jws(&device, "{}", input)))),
        (
            "crit",
            Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256","crit":["exp"],"exp":1}"#, input))),
        ),
        (
            "an unencoded payload",
            Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256","b64":false,"crit":["b64"]}"#, input))),
        ),
        ("alg twice", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256","alg":"ES256"}"#, input)))),
        (
            "kid twice",
            Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256","kid":"a","kid":"b"}"#, input))),
        ),
        (
            "a detached payload",
            Box::new(|input| {
                let jws_of_it = es256_jws(&device, r#"{"alg":"ES256"}"#, input);
                let parts: Vec<_> = jws_of_it.split('.').collect();
                jws(format!("{}..{}", parts[0], parts[2]))
            }),
        ),
        ("a part more", Box::new(|input| jws(es256_jws(&device, r#"{"alg":"ES256"}"#, input) + "."))),
        (
            "its own key",
            Box::new(|input| {
                let jwk = crate::signers::Device::new(9);
                let header = json!({ "alg": "ES256", "jwk": jwk.jwk() }).to_string();
                let input = format!("{}.{}", base64url(header.as_bytes()), base64url(input));
                jws(format!("{input}.{}", base64url(&jwk.p1363(input.as_bytes()))))
            }),
        ),
        ("no JWS", Box::new(|_| jws("unmistakable".to_owned()))),
    ];
    for (what, response) in cases {
        let pending = Pending::of(&bank, &id).await;
        let input = pending.signing_input();
        let right = signed("der", &device.sign(&input));
        pending.failed_by(&bank, what, &response(&input), &right).await;
    }
}

#[tokio::test]
async fn an_illegal_rs256_signature_ends_the_transaction() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = rs256(Kind::Rsa2048, "device");
    let other = rs256(Kind::Rsa2048, "another");
    let pss = device.clone().with_scheme(rustls::SignatureScheme::RSA_PSS_SHA256);
    let sha512 = device.clone().with_scheme(rustls::SignatureScheme::RSA_PKCS1_SHA512);
    let id = enrol_device(&bank, &device, "acct-1").await;
    let cases: Vec<Illegal<'_>> = vec![
        ("another key's", Box::new(|input| signed("raw", &other.sign(input)))),
        ("of something else", Box::new(|input| signed("raw", &device.sign(&flipped(input, 333))))),
        ("a bit", Box::new(|input| signed("raw", &flipped(&device.sign(input), 1_000)))),
        ("a byte behind it", Box::new(|input| signed("raw", &[&device.sign(input)[..], &[0]].concat()))),
        ("a byte less", Box::new(|input| signed("raw", &device.sign(input)[..255]))),
        ("above the modulus", Box::new(|_| signed("raw", &[0xff; 256]))),
        ("zeros", Box::new(|_| signed("raw", &[0; 256]))),
        ("PSS", Box::new(|input| signed("raw", &pss.sign(input)))),
        ("SHA-512", Box::new(|input| signed("raw", &sha512.sign(input)))),
        ("ES256", Box::new(|input| jws(rs256_jws(&device, r#"{"alg":"ES256"}"#, input)))),
        ("PS256", Box::new(|input| jws(rs256_jws(&pss, r#"{"alg":"PS256"}"#, input)))),
        ("RS512", Box::new(|input| jws(rs256_jws(&sha512, r#"{"alg":"RS512"}"#, input)))),
        ("RS512, said to be RS256", Box::new(|input| jws(rs256_jws(&sha512, r#"{"alg":"RS256"}"#, input)))),
        ("another key's JWS", Box::new(|input| jws(rs256_jws(&other, r#"{"alg":"RS256"}"#, input)))),
        (
            "of another payload",
            Box::new(|input| jws(rs256_jws(&device, r#"{"alg":"RS256"}"#, &flipped(input, 333)))),
        ),
    ];
    for (what, response) in cases {
        let pending = Pending::of(&bank, &id).await;
        let input = pending.signing_input();
        let right = signed("raw", &device.sign(&input));
        pending.failed_by(&bank, what, &response(&input), &right).await;
    }
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}
