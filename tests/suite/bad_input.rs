//! What no bank should send: each is a problem of the right name, and changes nothing.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::bank::{credential, done, failed, path};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, text, verify};
use crate::refusals::{Case, MARK, all_refused};

const JSON: (&str, &str) = ("content-type", "application/json");
/// A good enrolment with one field set to what it must not be.
fn enrolment(kind: &str, field: &str, value: Value) -> Vec<u8> {
    let mut body = json!({ "type": kind, "account": MARK });
    body[field] = value;
    body.to_string().into()
}

#[tokio::test]
async fn bodies_that_are_no_request() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let good = rfc_code(0);
    let deep = |depth| [vec![b'['; depth], vec![b']'; depth]].concat();
    let mut cases = Vec::new();
    for (action, field, value) in [
        ("verify", "otp", json!(good).to_string()),
        ("resync", "otps", json!([good, rfc_code(1)]).to_string()),
    ] {
        let path = path(&id, action);
        let mut add = |what: &str, body: Vec<u8>, status| cases.push(Case::post(what, &path, body, status));
        let with = |text: &str| text.replace("FIELD", field).replace("VALUE", &value).into_bytes();
        add("nothing", vec![], 400);
        add("blanks", b" \n".to_vec(), 400);
        add("words", MARK.into(), 400);
        add("half", with(r#"{"FIELD": VALUE"#), 400);
        add("a wrong type, then no JSON", with(r#"{"FIELD": 7, "#), 400);
        add("a comma too many", with(r#"{"FIELD": VALUE,}"#), 400);
        add("two documents", with(r#"{"FIELD": VALUE} {}"#), 400);
        add("something after it", with(r#"{"FIELD": VALUE}x"#), 400);
        add("single quotes", with("{'FIELD': VALUE}"), 400);
        add("a byte order mark", with("\u{feff}{\"FIELD\": VALUE}"), 400);
        add("a zero byte after it", with("{\"FIELD\": VALUE}\0"), 400);
        add("a form", with("FIELD=VALUE"), 400);
        add("an array", with("[VALUE]"), 422);
        add("an array of an object", with(r#"[{"FIELD": VALUE}]"#), 422);
        for other in ["null", "true", "7", "{}", "[]"] {
            add(other, other.into(), 422);
            add(&format!("{field} = {other}"), format!(r#"{{"{field}": {other}}}"#).into(), 422);
        }
        add("text", b"\"text\"".to_vec(), 422);
        add("a field twice", with(r#"{"FIELD": VALUE, "FIELD": VALUE}"#), 422);
        add("an unknown field", with(r#"{"FIELD": VALUE, "unmistakable": 1}"#), 422);
        add("another case", with(&format!(r#"{{"{}": VALUE}}"#, field.to_uppercase())), 422);
        add("an unknown field, nested deep", [br#"{"x":"#.to_vec(), deep(1_000), b"}".into()].concat(), 422);
        add("nested too deep", deep(20_000), 422);
    }
    let verify = path(&id, "verify");
    let quoted = |text: &str| json!({ "otp": text }).to_string();
    for otp in
        ["", "1", "12345", "12345678901", "12345a", " 123456", "123456 ", "+123456", "-12345", "0x1234"]
    {
        cases.push(Case::post(format!("otp {otp:?}"), &verify, quoted(otp), 422).about("otp"));
    }
    for otp in ["\u{661}\u{662}\u{663}\u{664}\u{665}\u{666}", "\u{ff11}23456", &"1".repeat(60_000)] {
        cases.push(Case::post("digits of elsewhere", &verify, quoted(otp), 422).about("otp"));
    }
    for otp in ["1234567", "12345678", "123456789", "1234567890"] {
        cases.push(Case::post("digits of another credential", &verify, quoted(otp), 422).about("otp"));
    }
    cases.push(Case::post("invalid UTF-8", &verify, b"{\"otp\": \"12345\xff\"}".to_vec(), 400));
    cases.push(Case::post("half a surrogate pair", &verify, r#"{"otp": "\ud800"}"#, 422));
    cases.push(Case::post("a raw control character", &verify, b"{\"otp\": \"1\n2\"}".to_vec(), 400));
    let resync = path(&id, "resync");
    for otps in [json!([]), json!([good]), json!([good, good, good]), json!([good, null]), json!([1, 2])] {
        cases.push(Case::post(otps.to_string(), &resync, json!({ "otps": otps }).to_string(), 422));
    }
    for otps in [["123456", "12345"], ["12345a", "123456"], ["", ""], ["1234567", "1234567"]] {
        let body = json!({ "otps": otps }).to_string();
        cases.push(Case::post(body.clone(), &resync, body, 422).about("otps"));
    }
    for action in ["suspend", "resume", "unlock"] {
        let path = path(&id, action);
        for (body, status) in [("{", 400), (MARK, 400), ("{} {}", 400), ("[]", 422), ("null", 422)] {
            cases.push(Case::post(format!("{action} {body}"), &path, body, status));
        }
        cases.push(Case::post(action, &path, r#"{"unmistakable": true}"#, 422));
        cases.push(Case::post(action, &path, quoted(&good), 422));
    }
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(credential(&bank, &id).await["failures"], 0);
    done(&crate::daemon::verify(&bank, &id, &good).await);
}

#[tokio::test]
async fn fields_of_an_enrolment() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    enrol_hotp(&bank, "acct-1").await;
    let mut cases = Vec::new();
    let post = |what: &str, body: Vec<u8>| Case::post(what, "/v1/credentials", body, 422);
    for kind in ["hotp", "totp"] {
        let long = "a".repeat(129);
        let accounts = [
            "",
            "a\nb",
            "a\u{0}b",
            "\u{7f}",
            "\u{85}",
            "\u{202e}evil",
            "zero\u{200b}width",
            "\u{2066}",
            &long,
        ];
        for account in accounts.map(Value::from).into_iter().chain([json!(null), json!(7), json!(["a"])]) {
            cases.push(post(&format!("account {account}"), enrolment(kind, "account", account)));
        }
        cases.push(post("no account", json!({ "type": kind }).to_string().into()).about("account"));
        let twice = format!(r#"{{"type": "{kind}", "account": "a", "account": "b"}}"#);
        cases.push(post("two accounts", twice.into()).about("account"));
        for (field, wrong) in
            [("digits", json!(5)), ("digits", json!(9)), ("digits", json!(10)), ("account", json!("a\nb"))]
        {
            cases.push(post("by its own rule", enrolment(kind, field, wrong)).about(field));
        }
        for field in ["seed_hex", "seed_base32", "export"] {
            cases.push(post("null, not absent", enrolment(kind, field, Value::Null)));
        }
        for algorithm in ["", "sha1", "SHA-1", "SHA224", "MD5", MARK] {
            cases.push(post(algorithm, enrolment(kind, "algorithm", algorithm.into())));
        }
        for digits in
            [json!(5), json!(9), json!(0), json!(-6), json!(6.5), json!("6"), json!(262), json!(null)]
        {
            cases.push(post(&format!("digits {digits}"), enrolment(kind, "digits", digits)));
        }
        for bytes in [0, 1, 15, 65, 1_000] {
            let hex = enrolment(kind, "seed_hex", "a5".repeat(bytes).into());
            cases.push(post(&format!("{bytes} bytes in hex"), hex).about("seed_hex"));
            let base32 = data_encoding::BASE32.encode(&vec![0xa5; bytes]);
            let base32 = enrolment(kind, "seed_base32", base32.into());
            cases.push(post(&format!("{bytes} bytes in base32"), base32).about("seed_base32"));
        }
        for hex in
            [&"a5".repeat(20)[1..], &"g5".repeat(20), &format!("0x{}", "a5".repeat(20)), &" a5".repeat(20)]
        {
            cases.push(post(hex, enrolment(kind, "seed_hex", hex.into())).about("seed_hex"));
        }
        for base32 in [&"1".repeat(32), &"A".repeat(33), &"A=".repeat(16), &"=".repeat(32), &"AB ".repeat(16)]
        {
            let body = enrolment(kind, "seed_base32", base32.to_string().into());
            cases.push(post(base32, body).about("seed_base32"));
        }
        for (letters, padding) in [(32, 1), (32, 8), (26, 5), (26, 7), (103, 2)] {
            let base32 = "A".repeat(letters) + &"=".repeat(padding);
            let body = enrolment(kind, "seed_base32", base32.into());
            cases.push(post("padding that is not its own", body).about("seed_base32"));
        }
        for seed in [json!(7), json!(["a5"]), json!({})] {
            cases.push(post("a seed that is no text", enrolment(kind, "seed_hex", seed)));
        }
        let both = json!({ "type": kind, "account": MARK, "seed_hex": "a5".repeat(20),
            "seed_base32": "A".repeat(32) });
        cases.push(post("both seeds", both.to_string().into()).about("seed_hex"));
        for export in [json!(""), json!("seed"), json!(true), json!({}), json!("OTPAUTH")] {
            cases.push(post(&format!("export {export}"), enrolment(kind, "export", export)));
        }
        for field in ["unmistakable", "id", "tenant", "state", "secret", "seed", "Account"] {
            cases.push(post(field, enrolment(kind, field, json!("x"))));
        }
        for twice in [r#""account": "b""#, r#""digits": 6, "digits": 6"#, &format!(r#""type": "{kind}""#)] {
            let body = format!(r#"{{"type": "{kind}", "account": "a", {twice}}}"#);
            cases.push(post(twice, body.into()));
        }
        cases.push(post("an array", format!(r#"["{kind}", {{"account": "a"}}]"#).into()));
        cases.push(post("an array in it", format!(r#"{{"type": "{kind}", "account": ["a"]}}"#).into()));
    }
    for (field, kind, values) in [
        ("counter", "hotp", vec![json!(1u64 << 63), json!(u64::MAX)]),
        ("look_ahead", "hotp", vec![json!(101), json!(255)]),
        ("period", "totp", vec![json!(4), json!(0), json!(601), json!(65_535)]),
        ("skew_steps", "totp", vec![json!(3), json!(255)]),
    ] {
        for value in values {
            let what = format!("{field} {value}");
            cases.push(post(&what, enrolment(kind, field, value)).about(field));
        }
        for value in [json!(-1), json!(1e30), json!(0.5), json!("1"), json!(null), json!([1]), json!(true)] {
            cases.push(post(&format!("{field} {value}"), enrolment(kind, field, value)));
        }
        let other = if kind == "hotp" { "totp" } else { "hotp" };
        cases.push(post("a field of the other type", enrolment(other, field, json!(10))));
        let huge = format!(r#"{{"type": "{kind}", "account": "a", "{field}": 18446744073709551616}}"#);
        cases.push(post("beyond 64 bits", huge.into()));
    }
    for kind in [json!(""), json!("HOTP"), json!(MARK), json!(null), json!(0), json!(["hotp"]), json!({})] {
        cases.push(post(&format!("type {kind}"), enrolment("hotp", "type", kind)));
    }
    cases.push(post("no type", json!({ "account": MARK }).to_string().into()));
    let beyond = r#"{"type": "hotp", "account": "a", "counter": 1e400}"#;
    cases.push(post("beyond any number", beyond.into()));
    let deep = [br#"{"type": "hotp", "account": "#.to_vec(), vec![b'['; 20_000]].concat();
    cases.push(post("nested too deep", [deep.clone(), vec![b']'; 20_000], b"}".into()].concat()));
    cases.push(Case::post("deep and without an end", "/v1/credentials", deep, 400));
    all_refused(&daemon, &bank, cases).await;
    assert!(!daemon.log().contains(MARK), "the log repeats no input");
}

#[tokio::test]
async fn fields_at_their_bounds_are_taken() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let account = "\u{e4}".repeat(128);
    for (kind, field, values) in [
        ("hotp", "account", vec![json!(account), json!("a b"), json!("\u{1f3e6} & <b>\"'\\")]),
        ("hotp", "counter", vec![json!(0), json!((1u64 << 63) - 1)]),
        ("hotp", "look_ahead", vec![json!(0), json!(100)]),
        ("totp", "period", vec![json!(5), json!(600)]),
        ("totp", "skew_steps", vec![json!(0), json!(2)]),
        ("totp", "digits", vec![json!(6), json!(8)]),
        ("totp", "seed_hex", vec![json!("a5".repeat(16)), json!("A5".repeat(64))]),
    ] {
        for value in values {
            let body = enrolment(kind, field, value.clone());
            let answer = bank.request("POST", "/v1/credentials", &[JSON], body).await.unwrap();
            assert_eq!(answer.status, 201, "{field} {value}: {}", text(&answer));
            if !field.starts_with("seed") {
                assert_eq!(answer.json().unwrap()[field], value);
            }
        }
    }
    // The last counter there is: its code is right once, and then there is none.
    let last = (1u64 << 63) - 1;
    let seed = crate::daemon::SEED_HEX;
    let body = json!({ "type": "hotp", "account": "last", "seed_hex": seed, "counter": last });
    let id = enrol(&bank, &body).await;
    done(&verify(&bank, &id, &rfc_code(last)).await);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(last)).await), 5);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(last + 1)).await), 4);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 3);
}

#[tokio::test]
async fn paths_methods_queries_and_headers() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let upper = id.to_uppercase();
    let mut cases = Vec::new();
    let code = json!({ "otp": rfc_code(0) }).to_string();
    let malformed = [
        "x",
        "cred_",
        &id[5..],
        &id[..30],
        &format!("{id}0"),
        &upper,
        "%20",
        "%",
        "%zz",
        "%ff%fe",
        "%00",
        "cred_7zzzzzzzzzzzzzzzzzzzzzzzz%c3%a9",
        "cred_8zzzzzzzzzzzzzzzzzzzzzzzzz",
        "..",
        "%2e%2e%2f",
        "unmistakable",
        "cred_00000000000000000000000000",
    ];
    for bad in malformed {
        for method in ["GET", "DELETE"] {
            cases.push(Case::bare(method, &path(bad, ""), 404, "not-found"));
        }
        for action in ["suspend", "resume", "unlock"] {
            cases.push(Case::bare("POST", &path(bad, action), 404, "not-found"));
        }
        cases.push(Case::post("verify", &path(bad, "verify"), code.clone(), 404));
        let otps = json!({ "otps": [rfc_code(0), rfc_code(1)] }).to_string();
        cases.push(Case::post("resync", &path(bad, "resync"), otps, 404));
    }
    for absent in [
        "/",
        "/v1",
        "/v1/",
        "/v2/credentials",
        "/v1/credentials/",
        "/v1//credentials",
        "/V1/credentials",
        "/v1/credentials/unmistakable/verify/",
        "/v1/credential",
        "/metrics",
        "/v1/credentials%2f",
        "/%",
        "/v1/credentials/../credentials",
    ] {
        for method in ["GET", "POST", "DELETE", "OPTIONS"] {
            cases.push(Case::bare(method, absent, 404, "not-found"));
        }
    }
    cases.push(Case::bare("GET", &format!("/v1/credentials/{id}/destroy"), 404, "not-found"));
    for method in ["PUT", "PATCH", "DELETE", "OPTIONS", "UNMISTAKABLE"] {
        cases.push(Case::bare(method, "/v1/credentials", 405, "method-not-allowed"));
    }
    for method in ["POST", "PUT", "PATCH", "OPTIONS"] {
        cases.push(Case::bare(method, &path(&id, ""), 405, "method-not-allowed"));
    }
    for action in ["verify", "resync", "suspend", "resume", "unlock"] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            cases.push(Case::bare(method, &path(&id, action), 405, "method-not-allowed"));
        }
    }
    for (query, field) in [
        ("limit=0", Some("limit")),
        ("limit=101", Some("limit")),
        ("limit=-1", None),
        ("limit=x", None),
        ("limit=", None),
        ("limit=65536", None),
        ("limit=1&limit=2", None),
        ("account=", None),
        ("account=%0a", None),
        ("after=", Some("after")),
        ("after=x", Some("after")),
        ("after=cred_00000000000000000000000000", Some("after")),
        ("unmistakable=1", None),
        ("LIMIT=1", None),
        ("account=a&account=a", None),
    ] {
        let case = Case::bare("GET", &format!("/v1/credentials?{query}"), 422, "invalid");
        cases.push(Case { field, ..case });
    }
    let verify_path = path(&id, "verify");
    for wrong in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "json",
        "",
        "application/*",
        "text/json; application/json",
        "application/vnd.api+json",
    ] {
        let case = Case::post(wrong, &verify_path, code.clone(), 415);
        let headers = vec![("content-type", wrong.to_owned())];
        cases.push(Case { name: "unsupported-media-type", headers, ..case });
    }
    let case = Case::post("no content type", &verify_path, code.clone(), 415);
    cases.push(Case { name: "unsupported-media-type", headers: vec![], ..case });
    for key in ["", "a b", "\u{e9}", &"k".repeat(256), "a\tb"] {
        for (action, body) in [("verify", &*code), ("suspend", "")] {
            let mut case = Case::post(format!("key {key:?}"), &path(&id, action), body, 422);
            case.headers.push(("idempotency-key", key.to_owned()));
            cases.push(case.about("Idempotency-Key"));
        }
    }
    let mut twice = Case::post("two keys", &verify_path, code.clone(), 422);
    twice.headers.extend(["a", "b"].map(|key| ("idempotency-key", key.to_owned())));
    cases.push(twice.about("Idempotency-Key"));
    all_refused(&daemon, &bank, cases).await;

    for good in
        ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", " application/json ;x=y"]
    {
        let fresh = enrol_hotp(&bank, "content-types").await;
        let headers = [("content-type", good)];
        done(&bank.request("POST", &path(&fresh, "verify"), &headers, code.clone()).await.unwrap());
    }
    let allowed = bank.request("PUT", "/v1/credentials", &[], "").await.unwrap();
    let mut methods: Vec<_> = allowed.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
    methods.sort_unstable();
    assert_eq!(methods, ["GET", "HEAD", "POST"], "RFC 9110, section 15.5.6: a 405 says what is allowed");
    let mut escaped = String::new();
    id.bytes().for_each(|byte| write!(escaped, "%{byte:02X}").unwrap());
    assert_eq!(
        credential(&bank, &escaped).await["id"],
        *id,
        "escaped, it is the same path (RFC 3986, 6.2.2.2)"
    );
}
