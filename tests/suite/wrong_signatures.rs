//! Signatures that are wrong in every way there is, through the daemon: each is refused, and harms nobody.

use serde_json::{Value, json};

use crate::bank::{done, failed};
use crate::daemon::{Daemon, enrol};
use crate::signers::{Device, PAYLOAD, enrol_rsa, hex, present, rsa_keys};
use crate::submissions::Dice;

/// The order of P-256 and the number before it.
const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
const BELOW_ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550";

/// DER of two INTEGERs with these octets.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |octets: &[u8]| [&[2, octets.len() as u8], octets].concat();
    let content = [integer(r), integer(s)].concat();
    [&[0x30, content.len() as u8], &content[..]].concat()
}

/// What is no right signature by this device, with its format.
fn wrong_es256(device: &Device) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let right = device.sign(PAYLOAD);
    let (r, s) = (right.r().to_bytes().to_vec(), right.s().to_bytes().to_vec());
    let (p1363, right_der) = (right.to_bytes().to_vec(), right.to_der().as_bytes().to_vec());
    let octets = |number: &[u8]| {
        let stripped: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        if stripped[0] < 0x80 { stripped } else { [&[0], &stripped[..]].concat() }
    };
    let (dr, ds) = (octets(&r), octets(&s));
    assert_eq!(der(&dr, &ds), right_der, "the test's own DER is right");
    let number = |text: &str| hex(&json!(text));
    let (order, below) = (number(ORDER), number(BELOW_ORDER));
    let positive = |number: &[u8]| [&[0], number].concat();
    let one = [&[0; 31][..], &[1]].concat();
    let inner = &right_der[2..];
    let long = [&[0x30, 0x81, inner.len() as u8], inner].concat();
    let third = [&[0x30, inner.len() as u8 + 3], inner, &[2, 1, 1]].concat();
    vec![
        ("of another payload", "p1363", device.p1363(b"pay 12.51 EUR to Alice")),
        ("by another key", "p1363", Device::new(2).p1363(PAYLOAD)),
        ("r and s swapped", "p1363", [&s[..], &r].concat()),
        ("DER as P1363", "p1363", right_der.clone()),
        ("a byte", "p1363", vec![1]),
        ("a byte less", "p1363", p1363[..63].to_vec()),
        ("a byte in front less", "p1363", p1363[1..].to_vec()),
        ("a byte more", "p1363", [&p1363[..], &[0]].concat()),
        ("a byte in front", "p1363", [&[0], &p1363[..]].concat()),
        ("as for P-384", "p1363", vec![7; 96]),
        ("twice", "p1363", [&p1363[..], &p1363].concat()),
        ("40,000 bytes", "p1363", vec![7; 40_000]),
        ("r = 0", "p1363", [&[0; 32][..], &s].concat()),
        ("s = 0", "p1363", [&r[..], &[0; 32]].concat()),
        ("zeros", "p1363", vec![0; 64]),
        ("r = n", "p1363", [&order[..], &s].concat()),
        ("s = n", "p1363", [&r[..], &order].concat()),
        ("above n", "p1363", vec![0xff; 64]),
        ("n - 1", "p1363", [&below[..], &below].concat()),
        ("ones", "p1363", [&one[..], &one].concat()),
        ("r instead of s", "p1363", [&r[..], &r].concat()),
        ("P1363 as DER", "der", p1363.clone()),
        ("half of it", "der", right_der[..right_der.len() / 2].to_vec()),
        ("a byte behind it", "der", [&right_der[..], &[0]].concat()),
        ("itself behind it", "der", [&right_der[..], &right_der].concat()),
        ("a third number", "der", third),
        ("a negative r", "der", der(&[&[0xff], &r[1..]].concat(), &ds)),
        ("a negative s", "der", der(&dr, &[0x80])),
        ("-r", "der", der(&negated(&dr), &ds)),
        ("-s", "der", der(&dr, &negated(&ds))),
        ("r with a zero too many", "der", der(&positive(&dr), &ds)),
        ("s with a zero too many", "der", der(&dr, &positive(&ds))),
        ("r without an octet", "der", der(&[], &ds)),
        ("r = 0", "der", der(&[0], &ds)),
        ("s = 0", "der", der(&dr, &[0])),
        ("r = n", "der", der(&positive(&order), &ds)),
        ("s = n", "der", der(&dr, &positive(&order))),
        ("r of 33 octets", "der", der(&[&[1], &r[..]].concat(), &ds)),
        ("a length in two bytes", "der", long),
        ("a length of no end", "der", [&[0x30, 0x80], inner, &[0, 0]].concat()),
        ("a SET", "der", [&[0x31], &right_der[1..]].concat()),
        ("a null", "der", vec![5, 0]),
    ]
}

/// The two's complement of a DER INTEGER's octets.
fn negated(octets: &[u8]) -> Vec<u8> {
    let mut carry = true;
    let mut negative: Vec<u8> = octets
        .iter()
        .rev()
        .map(|byte| {
            let (sum, carried) = (!byte).overflowing_add(u8::from(carry));
            carry = carried;
            sum
        })
        .collect();
    negative.reverse();
    negative
}

fn wrong_rs256(key: &Value) -> Vec<(String, Vec<u8>)> {
    let right = hex(&key["right_hex"]);
    let modulus =
        data_encoding::BASE64URL_NOPAD.decode(key["jwk"]["n"].as_str().unwrap().as_bytes()).unwrap();
    let mut below = modulus.clone();
    *below.last_mut().unwrap() -= 1;
    let size = modulus.len();
    let one = [vec![0; size - 1], vec![1]].concat();
    let bytes = [
        ("a byte less", right[..size - 1].to_vec()),
        ("a byte in front less", right[1..].to_vec()),
        ("a byte more", [&right[..], &[0]].concat()),
        ("a zero in front", [&[0], &right[..]].concat()),
        ("a byte", vec![1]),
        ("of another size", vec![7; size + 128]),
        ("40,000 bytes", vec![7; 40_000]),
        ("0", vec![0; size]),
        ("1", one),
        ("the modulus less one", below),
        ("the modulus", modulus),
        ("above the modulus", vec![0xff; size]),
    ];
    let listed = key["wrong"].as_array().unwrap().iter();
    let listed = listed.map(|wrong| (wrong["made_by"].as_str().unwrap().to_owned(), hex(&wrong["hex"])));
    listed.chain(bytes.map(|(what, bytes)| (what.to_owned(), bytes))).collect()
}

#[tokio::test]
async fn what_is_no_right_signature_is_refused_and_harms_nobody() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let custodians = daemon.pids("custodian");
    let device = Device::new(1);
    let id = device.enrol(&bank, "acct-1").await;
    let right = device.p1363(PAYLOAD);
    for (what, format, bytes) in wrong_es256(&device) {
        let answer = present(&bank, &id, PAYLOAD, &bytes, format).await;
        assert_eq!(answer.status, 403, "{format}, {what}: {}", answer.status);
        assert_eq!(failed(&answer), 5, "{format}, {what}");
        done(&present(&bank, &id, PAYLOAD, &right, "p1363").await);
    }
    let keys = rsa_keys();
    for (key, other) in keys.iter().zip(keys.iter().cycle().skip(1)) {
        let id = enrol_rsa(&bank, key).await;
        let right = hex(&key["right_hex"]);
        let mut wrong = wrong_rs256(key);
        wrong.push(("by another key".into(), hex(&other["right_hex"])));
        for (what, bytes) in wrong {
            let answer = present(&bank, &id, PAYLOAD, &bytes, "raw").await;
            assert_eq!(answer.status, 403, "{}, {what}", key["name"]);
            assert_eq!(failed(&answer), 5, "{}, {what}", key["name"]);
            done(&present(&bank, &id, PAYLOAD, &right, "raw").await);
        }
        // The same number modulo n, and the same number in a byte less.
        let (zero, plus) = (&key["leading_zero"], &key["modulus_added"]);
        let payload = |of: &Value| of["payload"].as_str().unwrap().as_bytes().to_vec();
        failed(&present(&bank, &id, &payload(zero), &hex(&zero["hex"])[1..], "raw").await);
        failed(&present(&bank, &id, &payload(plus), &hex(&plus["sum_hex"]), "raw").await);
        failed(&present(&bank, &id, &payload(plus), &right, "raw").await);
    }
    assert_eq!(daemon.pids("custodian"), custodians, "none has ended");
}

#[tokio::test]
async fn keys_that_no_device_has_verify_nothing_and_harm_nobody() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let custodians = daemon.pids("custodian");
    let number = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let root = hex(&json!("66485c780e2f83d72433bd5d84a06bb6541c2af31dae871728bf856a174f93f4"));
    let rsa = |n: &[u8], e: &[u8]| json!({ "kty": "RSA", "n": number(n), "e": number(e) });
    let odd = |size: usize| [vec![0x80], vec![0; size - 2], vec![1]].concat();
    for (what, jwk, format, bytes) in [
        ("2^2048 - 1", rsa(&[0xff; 256], &[1, 0, 1]), "raw", 256),
        ("2^4096 - 1", rsa(&[0xff; 512], &[0xff; 8]), "raw", 512),
        ("2^2047 + 1", rsa(&odd(256), &[1, 0, 1]), "raw", 256),
        ("2049 bits", rsa(&[&[1], &odd(256)[..]].concat(), &[0xff; 8]), "raw", 257),
        (
            "x = 0",
            json!({ "kty": "EC", "crv": "P-256", "x": number(&[0; 32]), "y": number(&root) }),
            "p1363",
            64,
        ),
    ] {
        let id = enrol(&bank, &json!({ "type": "signer", "account": "acct-1", "jwk": jwk })).await;
        for fill in [0, 1, 0x55, 0x7f] {
            let answer = present(&bank, &id, PAYLOAD, &vec![fill; bytes], format).await;
            assert_eq!(answer.status, 403, "{what}, {fill}: {}", answer.status);
        }
    }
    assert_eq!(daemon.pids("custodian"), custodians, "none has ended");
}

#[tokio::test]
async fn no_single_bit_can_be_another() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let key = &rsa_keys()[0];
    let (mut dice, seed) = Dice::new();
    let flipped = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for (id, right, format) in [
        (device.enrol(&bank, "acct-1").await, device.p1363(PAYLOAD), "p1363"),
        (enrol_rsa(&bank, key).await, hex(&key["right_hex"]), "raw"),
    ] {
        for _ in 0..24 {
            let (in_payload, in_signature) = (dice.below(PAYLOAD.len() * 8), dice.below(right.len() * 8));
            let answer = present(&bank, &id, &flipped(PAYLOAD, in_payload), &right, format).await;
            assert_eq!(answer.status, 403, "HSM_AUTHD_TEST_SEED={seed}: bit {in_payload} of the payload");
            let answer = present(&bank, &id, PAYLOAD, &flipped(&right, in_signature), format).await;
            assert_eq!(answer.status, 403, "HSM_AUTHD_TEST_SEED={seed}: bit {in_signature} of the signature");
        }
        done(&present(&bank, &id, PAYLOAD, &right, format).await);
    }
}
