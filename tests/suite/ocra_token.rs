//! An OCRA token of the tests' own: RFC 6287 a second time, as short as it gets.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Digest;

/// What a user has in the hand.
#[derive(Clone)]
pub struct OcraToken {
    pub suite: String,
    pub seed: Vec<u8>,
    pub pin: Option<String>,
}

/// What a code is computed from, besides seed and PIN.
#[derive(Clone, Copy, Default)]
pub struct Input<'a> {
    pub question: &'a str,
    pub counter: Option<u64>,
    pub session: Option<&'a [u8]>,
    pub step: Option<u64>,
}

/// A question alone.
pub fn question(question: &str) -> Input<'_> {
    Input { question, ..Input::default() }
}

impl OcraToken {
    /// With a seed as long as the hash's output, and a PIN if the suite has one.
    pub fn new(suite: &str) -> Self {
        let seed = (1..=20).collect();
        Self { suite: suite.to_owned(), seed, pin: suite.contains("-P").then(|| "1234".to_owned()) }
    }

    /// The body that enrols it for `/verify`.
    pub fn enrolment(&self, account: &str) -> Value {
        let seed = data_encoding::HEXLOWER.encode(&self.seed);
        let mut body = json!({ "type": "ocra", "account": account, "suite": self.suite, "use": "verify",
            "seed_hex": seed });
        if let Some(pin) = &self.pin {
            body["pin"] = json!(pin);
        }
        body
    }

    /// The code that it shows.
    pub fn code(&self, input: Input<'_>) -> String {
        let (function, inputs) = self.suite.strip_prefix("OCRA-1:HOTP-").unwrap().split_once(':').unwrap();
        let (hash, digits) = function.split_once('-').unwrap();
        let mut message = [self.suite.as_bytes(), &[0]].concat();
        for part in inputs.split('-') {
            let (letter, rest) = part.split_at(1);
            match letter {
                "C" => message.extend(input.counter.unwrap().to_be_bytes()),
                "Q" => message.extend(question_bytes(&rest[..1], input.question)),
                "P" => message.extend(hash_of(rest, self.pin.as_ref().unwrap().as_bytes())),
                "S" => {
                    let session = input.session.unwrap();
                    message.extend(vec![0; rest.parse::<usize>().unwrap() - session.len()]);
                    message.extend(session);
                }
                "T" => message.extend(input.step.unwrap().to_be_bytes()),
                other => panic!("{other}"),
            }
        }
        let mac = mac_of(hash, &self.seed, &message);
        let offset = usize::from(mac[mac.len() - 1] & 15);
        let word = u32::from_be_bytes(mac[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
        let digits: usize = digits.parse().unwrap();
        let code = format!("{:010}", u64::from(word));
        code[10 - digits..].to_owned()
    }
}

fn question_bytes(kind: &str, text: &str) -> Vec<u8> {
    let hex = match kind {
        "A" => data_encoding::HEXLOWER.encode(text.as_bytes()),
        "H" => text.to_lowercase(),
        "N" => hexadecimal(text),
        other => panic!("{other}"),
    };
    data_encoding::HEXLOWER.decode(format!("{hex:0<256}").as_bytes()).unwrap()
}

/// By long division: the remainders by 16, the last one first.
fn hexadecimal(decimal: &str) -> String {
    let mut digits: Vec<u32> = decimal.chars().map(|digit| digit.to_digit(10).unwrap()).collect();
    let mut hex = Vec::new();
    while digits.iter().any(|digit| *digit != 0) {
        let mut rest = 0;
        for digit in &mut digits {
            let value = rest * 10 + *digit;
            (*digit, rest) = (value / 16, value % 16);
        }
        hex.push(char::from_digit(rest, 16).unwrap());
    }
    hex.into_iter().rev().collect()
}

pub fn hash_of(name: &str, text: &[u8]) -> Vec<u8> {
    match name {
        "SHA1" => sha1::Sha1::digest(text).to_vec(),
        "SHA256" => sha2::Sha256::digest(text).to_vec(),
        "SHA512" => sha2::Sha512::digest(text).to_vec(),
        other => panic!("{other}"),
    }
}

pub fn mac_of(name: &str, key: &[u8], message: &[u8]) -> Vec<u8> {
    macro_rules! mac {
        ($hash:ty) => {
            Hmac::<$hash>::new_from_slice(key).unwrap().chain_update(message).finalize().into_bytes().to_vec()
        };
    }
    match name {
        "SHA1" => mac!(sha1::Sha1),
        "SHA256" => mac!(sha2::Sha256),
        "SHA512" => mac!(sha2::Sha512),
        other => panic!("{other}"),
    }
}

/// A known code, with all that it is computed from.
pub struct Vector {
    pub token: OcraToken,
    pub question: String,
    pub counter: Option<u64>,
    pub session: Option<Vec<u8>>,
    pub step: Option<u64>,
    pub code: String,
}

impl Vector {
    pub fn input(&self) -> Input<'_> {
        let Self { question, counter, session, step, .. } = self;
        Input { question, counter: *counter, session: session.as_deref(), step: *step }
    }
}

fn vectors(file: &str, count: usize) -> Vec<Vector> {
    let document: Value = serde_json::from_str(file).unwrap();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let hex =
        |value: &Value| value.as_str().map(|text| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap());
    let vector = |vector: &Value| Vector {
        token: OcraToken {
            suite: text(&vector["suite"]).unwrap(),
            seed: hex(&vector["key_hex"]).unwrap(),
            pin: text(&vector["pin"]),
        },
        question: text(&vector["q"]).unwrap(),
        counter: vector["counter"].as_u64(),
        session: hex(&vector["session_hex"]),
        step: vector["t"].as_u64(),
        code: text(&vector["expected"]).unwrap(),
    };
    let vectors: Vec<Vector> = document["vectors"].as_array().unwrap().iter().map(vector).collect();
    assert_eq!(vectors.len(), count);
    vectors
}

/// RFC 6287, appendix C.
pub fn rfc() -> Vec<Vector> {
    vectors(include_str!("../vectors/ocra.json"), 70)
}

/// Codes of a second implementation, some with a session.
pub fn golden() -> Vec<Vector> {
    vectors(include_str!("../vectors/ocra_session.json"), 8)
}

#[test]
fn it_shows_the_known_codes() {
    for vector in rfc().into_iter().chain(golden()) {
        assert_eq!(vector.token.code(vector.input()), vector.code, "{}", vector.token.suite);
    }
}
