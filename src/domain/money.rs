//! Money: an amount in a currency, as the text that is signed.

use iso_currency::Currency;
use serde::{Deserialize, Serialize};

/// How many digits an amount has at most, on both sides of the point (ISO 20022, `totalDigits`).
const DIGITS_MAX: usize = 18;

/// An amount in a currency, as text: plain decimal, with exactly the currency's fraction digits (ISO 4217), at most
/// 18 digits in all; no sign, exponent or grouping, and no leading zero but a single one before the point. It
/// may be zero: a mandate or a card check is. Never a floating-point number, and never anything but the text
/// that the bank sent, as that is what is signed.
///
/// It is stored as two strings, amount and currency. What is read back was checked when it was made: currencies
/// are withdrawn, and what was paid in them stays readable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    amount: String,
    currency: String,
}

/// Which of the two is wrong; what it says is what to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The amount is none, or none in this currency.
    #[error("{}", MoneyError::AMOUNT_RULE)]
    Amount,
    /// The currency is none, or none that amounts are paid in.
    #[error("{}", MoneyError::CURRENCY_RULE)]
    Currency,
}

impl MoneyError {
    /// What an amount must be.
    pub const AMOUNT_RULE: &'static str = "must be a string: a plain decimal number with exactly the currency's \
        fraction digits (ISO 4217), no sign, exponent, grouping or leading zeros, and at most 18 digits in all";

    /// What a currency must be.
    pub const CURRENCY_RULE: &'static str = "must be an ISO 4217 code of three capital letters, and of money: no metal, \
        basket or test code";

    /// What to mend.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Amount => Self::AMOUNT_RULE,
            Self::Currency => Self::CURRENCY_RULE,
        }
    }
}

impl Money {
    /// # Errors
    /// The currency is not known, or has no number of fraction digits (`XAU`); the amount is not as the currency
    /// has it.
    pub fn new(amount: &str, currency: &str) -> Result<Self, MoneyError> {
        let known = Currency::from_code(currency).ok_or(MoneyError::Currency)?;
        let fraction_digits = known.exponent().ok_or(MoneyError::Currency)?;
        if is_amount(amount, usize::from(fraction_digits)) {
            Ok(Self { amount: amount.to_owned(), currency: currency.to_owned() })
        } else {
            Err(MoneyError::Amount)
        }
    }

    /// As the bank wrote it.
    pub fn amount(&self) -> &str {
        &self.amount
    }

    /// Three capital letters.
    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// As it is stored: two columns of a sealed row.
    pub fn stored(amount: String, currency: String) -> Self {
        Self { amount, currency }
    }
}

fn is_amount(text: &str, fraction_digits: usize) -> bool {
    let (whole, fraction) = match text.split_once('.') {
        // A point with nothing behind it is not how any currency is written.
        Some((_, "")) => return false,
        Some(parts) => parts,
        None => (text, ""),
    };
    let all_digits = whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit());
    all_digits
        && !whole.is_empty()
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.len() == fraction_digits
        && whole.len() + fraction.len() <= DIGITS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that there are, by their fraction digits.
    const CURRENCIES: [(u16, &str); 4] = [
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
        (
            2,
            "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD \
             CDF CHE CHF CHW CNY COP COU CRC CUC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS \
             GIP GMD GTQ GYD HKD HNL HRK HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD \
             LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN \
             PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SLL SOS SRD SSP STN SVC SYP SZL \
             THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG ZWL",
        ),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
        (4, "CLF UYW"),
    ];

    /// What has a code and no number of fraction digits.
    const UNPAYABLE: &str = "XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX";

    fn refused(amount: &str, currency: &str) -> Option<MoneyError> {
        Money::new(amount, currency).err()
    }

    fn codes() -> impl Iterator<Item = (usize, &'static str)> {
        CURRENCIES
            .iter()
            .flat_map(|(digits, codes)| codes.split(' ').map(|code| (usize::from(*digits), code)))
    }

    #[test]
    fn every_currency_has_exactly_its_fraction_digits() {
        let amount = |digits: usize| match digits {
            0 => "120".to_owned(),
            _ => format!("120.{}", "5".repeat(digits)),
        };
        for (digits, code) in codes() {
            let money = Money::new(&amount(digits), code).unwrap();
            assert_eq!((money.amount(), money.currency()), (&*amount(digits), code));
            for other in (0..=6).filter(|other| *other != digits) {
                assert_eq!(refused(&amount(other), code), Some(MoneyError::Amount), "{code} {other}");
            }
        }
        assert_eq!(codes().count(), 170);
    }

    #[test]
    fn the_list_above_is_all_there_is() {
        let letters = || b'A'..=b'Z';
        let mut found = Vec::new();
        for (a, b, c) in
            letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| (a, b, c))))
        {
            let code = String::from_utf8(vec![a, b, c]).unwrap();
            let payable = codes().find(|(_, known)| *known == code);
            let amount = payable.map_or("1".to_owned(), |(digits, _)| format!("{:.1$}", 1.0, digits));
            assert_eq!(Money::new(&amount, &code).is_ok(), payable.is_some(), "{code}");
            if payable.is_none() {
                assert_eq!(refused("1", &code), Some(MoneyError::Currency), "{code}");
                assert_eq!(refused("1.00", &code), Some(MoneyError::Currency), "{code}");
            }
            if Currency::from_code(&code).is_some_and(|currency| currency.exponent().is_none()) {
                found.push(code);
            }
        }
        let mut unpayable: Vec<_> = UNPAYABLE.split(' ').collect();
        unpayable.sort_unstable();
        assert_eq!(found, unpayable);
    }

    #[test]
    fn an_amount_has_one_spelling() {
        for (amount, currency) in [
            ("0.00", "EUR"),
            ("0.01", "EUR"),
            ("1250.00", "EUR"),
            ("9999999999999999.99", "EUR"),
            ("0", "JPY"),
            ("999999999999999999", "JPY"),
            ("0.001", "KWD"),
            ("999999999999999.999", "KWD"),
            ("1.2345", "CLF"),
            ("99999999999999.9999", "CLF"),
        ] {
            assert_eq!(refused(amount, currency), None, "{amount} {currency}");
        }
        for (amount, currency) in [
            ("10000000000000000.00", "EUR"),
            ("1000000000000000000", "JPY"),
            ("1000000000000000.000", "KWD"),
            ("100000000000000.0000", "CLF"),
            ("1.", "JPY"),
            ("1.0", "JPY"),
            ("00", "JPY"),
            ("01", "JPY"),
            (".", "JPY"),
            ("", "JPY"),
            ("-0", "JPY"),
            ("1e2", "JPY"),
            ("1 000", "JPY"),
            ("1,000", "JPY"),
            ("1_000", "JPY"),
        ] {
            assert_eq!(refused(amount, currency), Some(MoneyError::Amount), "{amount} {currency}");
        }
        for amount in [
            "",
            ".",
            ".50",
            ".00",
            "1",
            "1.",
            "1.0",
            "1.000",
            "01.00",
            "00.00",
            "00.50",
            "+1.00",
            "-1.00",
            "-0.00",
            "1e2",
            "1E2",
            "1.0e1",
            "1.e0",
            "1,00",
            "1.000,00",
            "1,000.00",
            "1'000.00",
            "1 000.00",
            " 1.00",
            "1.00 ",
            "1.00\n",
            "\t1.00",
            "1 .00",
            "1. 00",
            "1.00\0",
            "1..00",
            "1.0.0",
            "1.00.",
            "1.00.00",
            "0x1.00",
            "1.0a",
            "EUR1.00",
            "1.00EUR",
            "\u{20ac}1.00",
            "NaN",
            "inf",
            "Infinity",
            "1.+0",
            "1.-0",
            // Digits that are not ASCII: Arabic-Indic, Devanagari, full-width, bold, superscript.
            "\u{661}.00",
            "1.\u{660}\u{660}",
            "\u{967}.00",
            "\u{ff11}.00",
            "1.\u{ff10}\u{ff10}",
            "\u{1d7cf}.00",
            "\u{b9}.00",
            // Points that are none.
            "1\u{66b}00",
            "1\u{ff0e}00",
            "1\u{b7}00",
            "1\u{2024}00",
            "1\u{a0}000.00",
            "1\u{202f}000.00",
            "\u{200b}1.00",
            "\u{2212}1.00",
            "\u{feff}1.00",
        ] {
            assert_eq!(refused(amount, "EUR"), Some(MoneyError::Amount), "{amount:?}");
        }
        assert_eq!(refused(&format!("{}.00", "9".repeat(100_000)), "EUR"), Some(MoneyError::Amount));
    }

    #[test]
    fn a_currency_has_one_spelling() {
        for code in
            ["", "eur", "Eur", "EUr", "EU", "EURO", " EUR", "EUR ", "EUR\n", "EUR\0", "978", "\u{20ac}"]
        {
            assert_eq!(refused("1.00", code), Some(MoneyError::Currency), "{code:?}");
        }
        for code in ["\u{395}UR", "\u{ff25}\u{ff35}\u{ff32}", "AAA", "XAU", "XTS", "XXX"] {
            assert_eq!(refused("1.00", code), Some(MoneyError::Currency), "{code:?}");
        }
        for error in [MoneyError::Amount, MoneyError::Currency] {
            assert_eq!(error.to_string(), error.rule());
        }
    }

    #[test]
    fn it_is_stored_as_two_strings_and_read_whatever_becomes_of_the_currency() {
        let money = Money::new("1250.00", "EUR").unwrap();
        let bytes = postcard::to_allocvec(&money).unwrap();
        assert_eq!(bytes, b"\x071250.00\x03EUR");
        assert_eq!(postcard::from_bytes::<Money>(&bytes).unwrap(), money);
        let withdrawn = Money::stored("12.50".to_owned(), "DEM".to_owned());
        let bytes = postcard::to_allocvec(&withdrawn).unwrap();
        assert_eq!(postcard::from_bytes::<Money>(&bytes).unwrap(), withdrawn);
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_a_number_in_its_shortest_spelling(
            amount in prop_oneof![".{0,24}", "[0-9]{0,20}(\\.[0-9]{0,5})?", "[-+0-9.,eE ]{0,12}"],
            place in 0..codes().count(),
        ) {
            let (digits, code) = codes().nth(place).unwrap();
            if let Ok(money) = Money::new(&amount, code) {
                let minor: u64 = amount.replace('.', "").parse().unwrap();
                let unit = 10u64.pow(digits as u32);
                let spelt = match digits {
                    0 => minor.to_string(),
                    _ => format!("{}.{:0digits$}", minor / unit, minor % unit),
                };
                prop_assert_eq!(money.amount(), spelt);
            }
        }

        #[test]
        fn every_number_of_minor_units_is_taken(minor in 0..10u64.pow(18), place in 0..codes().count()) {
            let (digits, code) = codes().nth(place).unwrap();
            let unit = 10u64.pow(digits as u32);
            let amount = match digits {
                0 => minor.to_string(),
                _ => format!("{}.{:0digits$}", minor / unit, minor % unit),
            };
            prop_assert!(Money::new(&amount, code).is_ok(), "{} {}", amount, code);
        }
    }
}
