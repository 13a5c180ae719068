//! Suites: which HMAC, and over what.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::super::otp::{Algorithm, Digits};

/// What a suite must be.
pub const SUITE_RULE: &str = "suite must be \
    OCRA-1:HOTP-{SHA1|SHA256|SHA512}-{digits}:[C-]Q{A|N|H}{length}[-P{SHA1|SHA256|SHA512}][-S{bytes}][-T{step}] \
    (RFC 6287), with 6 to 10 digits (0, 4 and 5 are too weak), a question length of 08 to 64, \
    a session of 001 to 512 bytes, and a time step of 1S to 59S, 1M to 59M or 1H to 48H";

/// An OCRASuite (RFC 6287, section 6): which HMAC, how many digits, and which data inputs.
///
/// It keeps its exact text, because that is part of what the HMAC is computed over. A suite has one
/// spelling. Weaker ones than [`SUITE_RULE`] allows are refused, though the RFC knows them: without
/// truncation or with 4 or 5 digits, and questions shorter than 8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Suite {
    text: String,
    algorithm: Algorithm,
    digits: Digits,
    has_counter: bool,
    question: QuestionFormat,
    pin_hash: Option<Algorithm>,
    session_bytes: Option<u16>,
    time_step_s: Option<u32>,
}

/// What a suite says of its questions (RFC 6287, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuestionFormat {
    /// Which characters one has.
    pub kind: QuestionKind,
    /// How many one party contributes (8..=64); in the mutual mode two questions are one (section 7.3).
    pub length: u8,
}

/// The characters of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    /// `N`: a decimal integer.
    Numeric,
    /// `A`: ASCII letters and digits.
    Alphanumeric,
    /// `H`: hexadecimal digits.
    Hexadecimal,
}

impl Suite {
    /// # Errors
    /// [`SUITE_RULE`], for everything else.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut parts = text.split(':');
        let (Some("OCRA-1"), Some(function), Some(inputs), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SUITE_RULE);
        };
        let function = function.strip_prefix("HOTP-").and_then(|function| function.split_once('-'));
        let (hash, digits) = function.ok_or(SUITE_RULE)?;

        let mut inputs = inputs.split('-').peekable();
        let has_counter = inputs.next_if_eq(&"C").is_some();
        let mut given = |letter: char| {
            let value = inputs.peek()?.strip_prefix(letter)?;
            inputs.next();
            Some(value)
        };
        let suite = Self {
            text: text.to_owned(),
            algorithm: algorithm(hash)?,
            digits: Digits::try_from(number::<u8>(digits, 0..=99)?).map_err(|_| SUITE_RULE)?,
            has_counter,
            question: given('Q').ok_or(SUITE_RULE).and_then(question_format)?,
            pin_hash: given('P').map(algorithm).transpose()?,
            session_bytes: given('S').map(|bytes| fixed_width(bytes, 3, 1..=512)).transpose()?,
            time_step_s: given('T').map(time_step_s).transpose()?,
        };
        if inputs.next().is_some() { Err(SUITE_RULE) } else { Ok(suite) }
    }

    /// The suite as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hash under the HMAC.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// How many digits a code has.
    pub fn digits(&self) -> Digits {
        self.digits
    }

    /// `C`: whether a counter moves from code to code.
    pub fn has_counter(&self) -> bool {
        self.has_counter
    }

    /// `Q`: what a question is. Every suite has one.
    pub fn question(&self) -> QuestionFormat {
        self.question
    }

    /// `P`: by which hash the PIN enters, if it does.
    pub fn pin_hash(&self) -> Option<Algorithm> {
        self.pin_hash
    }

    /// `S`: how long the session is once it is padded, in bytes (1..=512), if there is one.
    pub fn session_bytes(&self) -> Option<u16> {
        self.session_bytes
    }

    /// `T`: the length of a time step in seconds (1..=172,800, two days), if the time enters.
    pub fn time_step_s(&self) -> Option<u32> {
        self.time_step_s
    }
}

impl TryFrom<String> for Suite {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Suite> for String {
    fn from(suite: Suite) -> String {
        suite.text
    }
}

fn algorithm(name: &str) -> Result<Algorithm, &'static str> {
    let all = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];
    all.into_iter().find(|algorithm| algorithm.name() == name).ok_or(SUITE_RULE)
}

fn question_format(text: &str) -> Result<QuestionFormat, &'static str> {
    let kinds =
        [('A', QuestionKind::Alphanumeric), ('N', QuestionKind::Numeric), ('H', QuestionKind::Hexadecimal)];
    let (length, kind) = kinds
        .into_iter()
        .find_map(|(letter, kind)| Some((text.strip_prefix(letter)?, kind)))
        .ok_or(SUITE_RULE)?;
    Ok(QuestionFormat { kind, length: fixed_width(length, 2, 8..=64)? })
}

fn time_step_s(text: &str) -> Result<u32, &'static str> {
    let units = [('S', 1, 59), ('M', 60, 59), ('H', 3_600, 48)];
    let (count, unit_s, max) = units
        .into_iter()
        .find_map(|(letter, unit_s, max)| Some((text.strip_suffix(letter)?, unit_s, max)))
        .ok_or(SUITE_RULE)?;
    Ok(number::<u32>(count, 1..=max)? * unit_s)
}

/// A decimal number without leading zeros.
fn number<T: TryFrom<u32>>(text: &str, allowed: RangeInclusive<u32>) -> Result<T, &'static str> {
    if text.starts_with('0') { Err(SUITE_RULE) } else { fixed_width(text, text.len(), allowed) }
}

/// A decimal number of so many characters, with leading zeros where it has to.
fn fixed_width<T: TryFrom<u32>>(
    text: &str,
    width: usize,
    allowed: RangeInclusive<u32>,
) -> Result<T, &'static str> {
    // By itself, `parse` would take a sign.
    let is_decimal = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    let value: Option<u32> = text.parse().ok().filter(|value| is_decimal && allowed.contains(value));
    value.and_then(|value| T::try_from(value).ok()).ok_or(SUITE_RULE)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    pub fn suite(text: &str) -> Suite {
        Suite::parse(text).unwrap()
    }

    /// Every suite that the rule allows.
    pub fn suites() -> impl Strategy<Value = String> {
        "OCRA-1:HOTP-SHA(1|256|512)-([6-9]|10):(C-)?Q[ANH](08|09|[1-5][0-9]|6[0-4])(-PSHA(1|256|512))?\
                     (-S(00[1-9]|0[1-9][0-9]|[1-4][0-9]{2}|50[0-9]|51[0-2]))?\
                     (-T([1-9]|[1-5][0-9])[SM]|-T([1-9]|[1-3][0-9]|4[0-8])H)?"
    }

    #[test]
    fn a_suite_says_what_its_text_says() {
        let all = suite("OCRA-1:HOTP-SHA512-10:C-QH40-PSHA256-S064-T48H");
        assert_eq!((all.algorithm(), u8::from(all.digits())), (Algorithm::Sha512, 10));
        assert!(all.has_counter());
        assert_eq!(all.question(), QuestionFormat { kind: QuestionKind::Hexadecimal, length: 40 });
        assert_eq!(all.pin_hash(), Some(Algorithm::Sha256));
        assert_eq!((all.session_bytes(), all.time_step_s()), (Some(64), Some(172_800)));

        let least = suite("OCRA-1:HOTP-SHA1-6:QN08");
        assert_eq!((least.algorithm(), u8::from(least.digits())), (Algorithm::Sha1, 6));
        assert!(!least.has_counter());
        assert_eq!(least.question(), QuestionFormat { kind: QuestionKind::Numeric, length: 8 });
        assert_eq!((least.pin_hash(), least.session_bytes(), least.time_step_s()), (None, None, None));

        for (text, step_s) in
            [("1S", 1), ("59S", 59), ("1M", 60), ("59M", 3_540), ("1H", 3_600), ("20H", 72_000)]
        {
            let suite = suite(&format!("OCRA-1:HOTP-SHA256-8:QA64-T{text}"));
            assert_eq!(suite.time_step_s(), Some(step_s), "{text}");
            assert_eq!(suite.question(), QuestionFormat { kind: QuestionKind::Alphanumeric, length: 64 });
        }
    }

    #[test]
    fn every_other_suite_is_refused() {
        let inputs = |inputs: &str| format!("OCRA-1:HOTP-SHA256-8:{inputs}");
        let bad_function = [
            "HOTP-SHA256",
            "HOTP-SHA256-",
            "HOTP--8",
            "HOTP-SHA256-8-",
            "HOTP-SHA256-8-8",
            "SHA256-8",
            "TOTP-SHA256-8",
            "HOTP-SHA224-8",
            "HOTP-SHA384-8",
            "HOTP-MD5-8",
            "HOTP-SHA-256-8",
            "HOTP-sha256-8",
            "hotp-SHA256-8",
            // Not truncated, too weak, too long, another spelling.
            "HOTP-SHA256-0",
            "HOTP-SHA256-4",
            "HOTP-SHA256-5",
            "HOTP-SHA256-11",
            "HOTP-SHA256-08",
            "HOTP-SHA256-+8",
            "HOTP-SHA256--8",
            "HOTP-SHA256-8 ",
            "HOTP-SHA256-264",
            "HOTP-SHA256-4294967304",
            "HOTP-SHA256-\u{668}",
        ];
        let bad_inputs = [
            "",
            "C",
            "C-",
            "-QN08",
            "QN08-",
            "C--QN08",
            "c-QN08",
            "CQN08",
            "C-C-QN08",
            "QN08-C",
            "C8-QN08",
            "Q",
            "QN",
            "Q08",
            "QX08",
            "qN08",
            "Qn08",
            "QNN08",
            "QN08-QN08",
            "QN08QN08",
            // Too short, too long, not two digits.
            "QN00",
            "QN04",
            "QN07",
            "QN65",
            "QN99",
            "QN8",
            "QN008",
            "QN+8",
            "QN 8",
            "QN08 ",
            "QN\u{660}8",
            "QN08-P",
            "QN08-PSHA224",
            "QN08-PMD5",
            "QN08-Psha1",
            "QN08-pSHA1",
            "QN08-PSHA1-PSHA1",
            "PSHA1-QN08",
            "QN08-S",
            "QN08-S000",
            "QN08-S513",
            "QN08-S999",
            "QN08-S64",
            "QN08-S0064",
            "QN08-S+64",
            "QN08-s064",
            "QN08-S064-S064",
            "QN08-S064-PSHA1",
            "QN08-T",
            "QN08-T0S",
            "QN08-T60S",
            "QN08-T01S",
            "QN08-TS",
            "QN08-T0M",
            "QN08-T60M",
            "QN08-T1m",
            "QN08-T0H",
            "QN08-T49H",
            "QN08-T1D",
            "QN08-T1",
            "QN08-T1M1S",
            "QN08-T+1M",
            "QN08-T-1M",
            "QN08-T1M-T1M",
            "QN08-T1M-S064",
            "QN08-T1M-PSHA1",
            "QN08-T1M-X",
            "QN08-X",
        ];
        let bad_shapes = [
            "",
            ":",
            "::",
            "OCRA-1",
            "OCRA-1:HOTP-SHA256-8",
            "OCRA-1:HOTP-SHA256-8:",
            "OCRA-1:QN08",
            "OCRA-2:HOTP-SHA256-8:QN08",
            "ocra-1:HOTP-SHA256-8:QN08",
            "OCRA-1::QN08",
            "HOTP-SHA256-8:QN08",
            "OCRA-1:HOTP-SHA256-8:QN08:",
            "OCRA-1:HOTP-SHA256-8:QN08:QN08",
            " OCRA-1:HOTP-SHA256-8:QN08",
            "OCRA-1:HOTP-SHA256-8:QN08\n",
            "OCRA-1:HOTP-SHA256-8:QN08\0",
        ];
        let texts = bad_function
            .map(|function| format!("OCRA-1:{function}:QN08"))
            .into_iter()
            .chain(bad_inputs.map(inputs))
            .chain(bad_shapes.map(str::to_owned));
        for text in texts {
            assert_eq!(Suite::parse(&text), Err(SUITE_RULE), "{text:?}");
            assert_eq!(Suite::try_from(text.clone()), Err(SUITE_RULE), "{text:?}");
        }
    }

    #[test]
    fn a_suite_travels_as_its_text_and_is_checked_on_arrival() {
        let suite = suite("OCRA-1:HOTP-SHA1-6:C-QN08");
        let json = serde_json::to_value(&suite).unwrap();
        assert_eq!(json, Value::from(suite.as_str()));
        assert_eq!(serde_json::from_value::<Suite>(json).unwrap(), suite);
        let refused = serde_json::from_value::<Suite>("OCRA-1:HOTP-SHA1-4:C-QN08".into()).unwrap_err();
        assert!(refused.to_string().starts_with(SUITE_RULE));
    }

    /// The text that a suite's fields make: nothing of them got lost or was taken for something else.
    fn spelled(suite: &Suite) -> String {
        let kind = match suite.question().kind {
            QuestionKind::Numeric => 'N',
            QuestionKind::Alphanumeric => 'A',
            QuestionKind::Hexadecimal => 'H',
        };
        let step = |step_s: u32| match step_s {
            0..60 => format!("-T{step_s}S"),
            60..3_600 => format!("-T{}M", step_s / 60),
            _ => format!("-T{}H", step_s / 3_600),
        };
        format!(
            "OCRA-1:HOTP-{}-{}:{}Q{kind}{:02}{}{}{}",
            suite.algorithm().name(),
            u8::from(suite.digits()),
            if suite.has_counter() { "C-" } else { "" },
            suite.question().length,
            suite.pin_hash().map(|hash| format!("-P{}", hash.name())).unwrap_or_default(),
            suite.session_bytes().map(|bytes| format!("-S{bytes:03}")).unwrap_or_default(),
            suite.time_step_s().map(step).unwrap_or_default(),
        )
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_loses_nothing(
            text in prop_oneof![
                ".{0,60}",
                // Suites, and what is nearly one.
                "OCRA-1:HOTP-SHA(1|256|512)-([6-9]|10):(C-)?Q[ANH][0-6][0-9](-PSHA(1|256|512))?(-S[0-5][0-9]{2})?\
                 (-T[1-6][0-9]?[SMH])?",
                "(OCRA-1:|HOTP-|SHA1|SHA256|-|:|[0-9]|C-|QN08|QA10|-P|-S|-T|064|1M|S|H){0,12}",
            ]
        ) {
            if let Ok(suite) = Suite::parse(&text) {
                prop_assert_eq!(suite.as_str(), &text);
                prop_assert_eq!(spelled(&suite), text);
            }
        }

        #[test]
        fn every_suite_within_the_rule_is_taken(text in suites()) {
            prop_assert_eq!(spelled(&suite(&text)), text);
        }
    }
}
