//! Attestations as QR codes, read again by `zbarimg` as a phone would.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bank::{done, refused};
use crate::client::{Connection, Http, Response};
use crate::daemon::{Daemon, text};
use crate::served::{Served, configuration};
use crate::transactions::{Holder, PLAIN, attestation, create, id, order, order_with, path, respond};

/// The most bytes a QR code holds.
const QR_BYTES_MAX: usize = 2_953;

/// What a program answers to this on its standard input.
fn piped(program: &str, package: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): apt-get install {package}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}

/// What a camera reads.
pub fn scanned(png: &[u8]) -> String {
    let arguments = ["--quiet", "--nodbus", "--raw", "-Sdisable", "-Sqrcode.enable", "png:-"];
    String::from_utf8(piped("zbarimg", "zbar-tools", &arguments, png))
        .unwrap()
        .trim_end_matches('\n')
        .to_owned()
}

/// An SVG as a PNG.
pub fn drawn(svg: &[u8]) -> Vec<u8> {
    piped("rsvg-convert", "librsvg2-bin", &["--format=png"], svg)
}

async fn qr(bank: &Connection, id: &str, accept: Option<&str>) -> Response {
    let headers = accept.map(|accept| ("accept", accept));
    bank.request("GET", &path(id, "qr"), headers.as_slice(), "").await.unwrap()
}

/// What is read from both pictures of an approved transaction.
async fn read(bank: &Connection, id: &str) -> String {
    let png = qr(bank, id, Some("image/png")).await;
    assert_eq!(png.status, 200, "{}", text(&png));
    let svg = qr(bank, id, Some("image/svg+xml")).await;
    assert_eq!(svg.status, 200, "{}", text(&svg));
    for (picture, media_type) in [(&png, "image/png"), (&svg, "image/svg+xml")] {
        assert_eq!(picture.header("content-type"), Some(media_type));
        assert_eq!(
            (picture.header("vary"), picture.header("cache-control")),
            (Some("accept"), Some("no-store"))
        );
    }
    let read = scanned(&png.body);
    assert_eq!(scanned(&drawn(&svg.body)), read);
    read
}

#[tokio::test]
async fn a_phone_reads_the_attestation() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let view = holder
        .approved(&bank, &order_with(&holder.credential, json!({ "remark": "\u{20ac} \u{1f3e6}" })))
        .await;
    assert_eq!(read(&bank, &id(&view)).await, view["attestation"].as_str().unwrap());
}

#[tokio::test]
async fn the_picture_is_the_one_that_is_asked_for() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let approved = id(&holder.approved(&bank, &order(&holder.credential)).await);
    let pending = id(&holder.asked(&bank).await);
    for (accept, picture) in [
        (None, Some("image/svg+xml")),
        (Some("*/*"), Some("image/svg+xml")),
        (Some("image/*"), Some("image/svg+xml")),
        (Some("image/png"), Some("image/png")),
        (Some("IMAGE/PNG"), Some("image/png")),
        (Some("text/html, image/png;q=0.1"), Some("image/png")),
        (Some("image/svg+xml;q=0.1, image/png;q=0.2"), Some("image/png")),
        (Some("image/png;q=0.5, image/svg+xml;q=0.5"), Some("image/svg+xml")),
        (Some("image/svg+xml;q=0, */*"), Some("image/png")),
        (Some(""), Some("image/svg+xml")),
        (Some("image/jpeg"), None),
        (Some("application/json"), None),
        (Some("text/*"), None),
        (Some("image/png;q=0"), None),
        (Some("*/*;q=0"), None),
        (Some("image/png;q=2"), None),
        (Some("nonsense"), None),
    ] {
        let answer = qr(&bank, &approved, accept).await;
        match picture {
            Some(media_type) => {
                assert_eq!(answer.status, 200, "{accept:?}: {}", text(&answer));
                assert_eq!(answer.header("content-type"), Some(media_type), "{accept:?}");
                refused(&qr(&bank, &pending, accept).await, 409, "state-conflict");
            }
            None => {
                refused(&answer, 406, "not-acceptable");
            }
        }
    }
    let headers = [("accept", "text/html"), ("accept", "image/png")];
    let answer = bank.request("GET", &path(&approved, "qr"), &headers, "").await.unwrap();
    assert_eq!(answer.header("content-type"), Some("image/png"), "two headers are one list");
}

/// An order whose texts leave the remark to grow to the border.
fn orders(account: &str, credential: &str) -> Vec<(Value, &'static str)> {
    let filled = |label: &str, payer: Option<&str>| {
        let mut body = order_with(
            credential,
            json!({ "payee": label.repeat(128), "order": label.repeat(128), "platform": label.repeat(128),
                "amount": "9999999999999999.99", "expires_in": 3_600 }),
        );
        if let Some(payer) = payer {
            body["payer"] = json!(payer);
        }
        body
    };
    vec![
        (filled("\u{20ac}", None), "\u{e9}"),
        (filled("\u{20ac}", Some(account)), "\u{1f3e6}"),
        (filled("\u{1f3e6}", None), "r"),
        (filled("\u{1f3e6}", Some(account)), "\""),
    ]
}

/// The most that is taken is approved and read; a character more is refused, and says why. How long the longest
/// text in the QR code was.
async fn border(bank: &Connection, holder: &Holder, prefix: &str, body: &Value, character: &str) -> usize {
    let with = |count: usize| {
        let mut body = body.clone();
        body["remark"] = json!(character.repeat(count));
        body
    };
    // Between a length that is taken and one that is not.
    let (mut taken, mut refused_at) = (1, 257);
    while refused_at - taken > 1 {
        let middle = (taken + refused_at) / 2;
        let answer = create(bank, &with(middle)).await;
        match answer.status.as_u16() {
            201 => taken = middle,
            _ => {
                let document = refused(&answer, 422, "invalid");
                assert!(document["reason"].as_str().unwrap().contains("QR code"), "{document}");
                refused_at = middle;
            }
        }
    }
    assert!((2..256).contains(&taken), "no border: {taken}");
    let view = create(bank, &with(taken)).await.json().unwrap();
    let answer = done(&respond(bank, &id(&view), &holder.code(&view)).await);
    let expected = format!("{prefix}{}", answer["attestation"].as_str().unwrap());
    assert_eq!(read(bank, &id(&view)).await, expected);
    // A character takes so many bytes of JSON, and each three of these four of base64.
    let step = character.len().max(json!(character).to_string().len() - 2).div_ceil(3) * 4;
    assert!((QR_BYTES_MAX - step..=QR_BYTES_MAX).contains(&expected.len()), "{}", expected.len());
    assert_eq!(attestation(bank, &id(&view)).await.len() + prefix.len(), expected.len());
    expected.len()
}

#[tokio::test]
async fn the_longest_one_that_is_taken_is_read_and_no_longer_one_is_taken() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let account = "\u{e9}".repeat(8);
    let holder = Holder::enrol(&bank, PLAIN, &account).await;
    let parent = holder.approved(&bank, &order(&holder.credential)).await["attestation"].clone();
    for (body, character) in orders(&account, &holder.credential) {
        let alone = border(&bank, &holder, "", &body, character).await;
        let mut child = body.clone();
        child["parent"] = parent.clone();
        // It is the JSON of the attestation that has to fit, so a parent leaves less to the remark.
        if character != "r" && character != "\"" {
            let with_parent = border(&bank, &holder, "", &child, character).await;
            println!("{alone} and {with_parent} bytes");
        } else {
            let document = refused(&create(&bank, &child).await, 422, "invalid");
            assert!(document["reason"].as_str().unwrap().contains("QR code"));
        }
    }
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_stands_before_it_and_counts() {
    let mut daemon = Daemon::start();
    assert!(daemon.stop().success());
    for prefix in
        ["https://bank.example/attestation?jws=".to_owned(), format!("https://{}/", "x".repeat(503))]
    {
        let config = configuration(&daemon, "prefix.toml", |config| {
            let attestations = format!("qr_url_prefix = \"{prefix}\"");
            config.insert("attestations".into(), attestations.parse::<toml::Table>().unwrap().into());
        });
        let served = Served::start(&config);
        let bank = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
        let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
        let view = holder.approved(&bank, &order(&holder.credential)).await;
        let expected = format!("{prefix}{}", view["attestation"].as_str().unwrap());
        assert_eq!(read(&bank, &id(&view)).await, expected);
        assert_eq!(
            done(&crate::attestations::verify(&bank, view["attestation"].as_str().unwrap()).await)["jti"],
            view["id"]
        );
        // The prefix is no part of an attestation.
        crate::attestations::not_verified(&crate::attestations::verify(&bank, &expected).await);
        let label = "\u{20ac}".repeat(128);
        let body = order_with(&holder.credential, json!({ "payee": label, "order": label, "platform": "p" }));
        border(&bank, &holder, &prefix, &body, "\u{1f3e6}").await;
        drop(bank);
        assert!(served.stop().success());
    }
}
