//! What is to be approved, as a user's own device reads it: from the bytes that it signs, and nothing else.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::narrator::Narrator;
use crate::{Outcome, words};

const KIND: &str = "hsm-authd/transaction/v1";
const FIELDS: [&str; 13] = [
    "tenant",
    "id",
    "method",
    "payer",
    "payee",
    "amount",
    "currency",
    "order",
    "platform",
    "remark",
    "parent_hash",
    "expires_at",
    "nonce",
];

/// The fields of a signing input, in their order; one that is absent is empty.
#[derive(Clone)]
pub struct Terms([String; FIELDS.len()]);

impl Terms {
    /// From `signing_input`, as an answer has it.
    pub fn read(signing_input: &Value) -> Outcome<Self> {
        let text = signing_input.as_str().ok_or("the answer holds no signing input")?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(words)?;
        let (mut rest, mut texts) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk::<4>().ok_or("the signing input is cut off")?;
            let (text, after) = after
                .split_at_checked(u32::from_be_bytes(*length) as usize)
                .ok_or("the signing input is cut off")?;
            texts.push(String::from_utf8(text.to_vec()).map_err(words)?);
            rest = after;
        }
        if texts.first().is_none_or(|kind| kind != KIND) {
            return Err("the signing input is not a transaction's".to_owned());
        }
        let fields = texts.split_off(1).try_into();
        fields.map(Self).map_err(|_| "the signing input has another number of fields".to_owned())
    }

    /// The bytes again.
    pub fn signing_input(&self) -> Vec<u8> {
        let parts = std::iter::once(KIND).chain(self.0.iter().map(String::as_str));
        parts.flat_map(|part| [&(part.len() as u32).to_be_bytes(), part.as_bytes()].concat()).collect()
    }

    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.signing_input()).into()
    }

    /// The question of a suite with `QH40`.
    pub fn question(&self) -> String {
        let mut question = HEXLOWER.encode(&self.digest());
        question.truncate(40);
        question
    }

    pub fn get(&self, name: &str) -> &str {
        let place = FIELDS.iter().position(|field| *field == name);
        place.and_then(|place| self.0.get(place)).map_or("", String::as_str)
    }

    /// With another text in one field.
    pub fn with(&self, name: &str, text: &str) -> Self {
        let mut terms = self.clone();
        let field = FIELDS.iter().position(|field| *field == name).and_then(|place| terms.0.get_mut(place));
        field.into_iter().for_each(|field| text.clone_into(field));
        terms
    }

    /// What the device shows before its user does anything.
    pub fn show(&self, narrator: &mut Narrator, who: &str) -> Outcome {
        narrator.row(&format!("{who} shows:"), &self.in_words())
    }

    /// The same as a message says it. A payer that only the response tells of is not there.
    pub fn in_words(&self) -> String {
        let field = |name: &str| self.get(name);
        let from =
            if field("payer").is_empty() { String::new() } else { format!(" from {}", field("payer")) };
        format!(
            "{} {}{from} to {}, order \"{}\"",
            field("amount"),
            field("currency"),
            field("payee"),
            field("order")
        )
    }
}
