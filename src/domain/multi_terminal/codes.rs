//! What terminals are sent, and what has to be entered of it. All of it exists in a custodian alone.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{EntryOrder, TERMINALS, WEIGHTS};
use crate::domain::enc::enc;
use crate::domain::id::CredentialId;
use crate::domain::otp::{Digits, Otp, modulo};

/// What the message of a code begins with.
const DOMAIN: &[u8] = b"hsm-authd/terminal/v1";

/// What a terminal's code is the HMAC-SHA-256 of. `digest` is the transaction's.
pub fn message(digest: &[u8; 32], terminal: CredentialId, generation: u32) -> Vec<u8> {
    enc(&[
        DOMAIN,
        data_encoding::HEXLOWER.encode(digest).as_bytes(),
        terminal.to_string().as_bytes(),
        generation.to_string().as_bytes(),
    ])
}

/// The codes of one generation, in the rule's order: numbers, of which no comparison takes longer for some than for
/// others.
pub struct Codes {
    numbers: Zeroizing<Vec<u64>>,
    digits: Digits,
}

impl Codes {
    /// None yet, of this length.
    pub fn new(digits: Digits) -> Self {
        // Sized first, so that no growing buffer leaves copies behind.
        Self { numbers: Zeroizing::new(Vec::with_capacity(*TERMINALS.end())), digits }
    }

    /// The next terminal's code, by the HMAC of its [`message`]: the first 8 bytes, the highest first, in so many
    /// decimal digits. `None` if `mac` is not the output of such an HMAC.
    pub fn push(&mut self, mac: &[u8]) -> Option<()> {
        self.numbers.push(modulo(mac, self.digits)?);
        Some(())
    }

    /// Whether any two are equal: then it could not be told whose was entered, nor which is the smaller one.
    pub fn has_equal(&self) -> bool {
        let mut equal = 0;
        for (place, a) in self.numbers.iter().enumerate() {
            for b in self.numbers.iter().skip(place + 1) {
                equal |= a.ct_eq(b).unwrap_u8();
            }
        }
        equal != 0
    }

    /// As they are sent.
    pub fn texts(&self) -> Vec<Otp> {
        self.numbers.iter().map(|number| Otp::of_number(*number, self.digits)).collect()
    }

    /// What has to be entered, one after the other.
    pub fn expected(&self, order: EntryOrder) -> Expected {
        let numbers = match order {
            EntryOrder::PresetOrder => self.numbers.clone(),
            EntryOrder::Ascending => self.sorted(),
            EntryOrder::Descending => {
                let mut sorted = self.sorted();
                sorted.reverse();
                sorted
            }
            EntryOrder::Target => Zeroizing::new(vec![self.target()]),
        };
        Expected(numbers)
    }

    /// Their weighted sum. None of the products is near 2^64.
    fn target(&self) -> u64 {
        let weights = WEIGHTS.into_iter().cycle().map(u64::from);
        let sum = self.numbers.iter().zip(weights).map(|(number, weight)| number * weight).sum::<u64>();
        sum % self.digits.modulus()
    }

    /// The smallest first. Each number's place is how many come before it, so that the way there is the same for all.
    fn sorted(&self) -> Zeroizing<Vec<u64>> {
        let mut sorted = Zeroizing::new(vec![0; self.numbers.len()]);
        for (at, number) in self.numbers.iter().enumerate() {
            let before =
                |(other_at, other): (usize, &u64)| is_less(*other, number + u64::from(other_at < at));
            let rank: u64 = self.numbers.iter().enumerate().map(before).sum();
            for (place, slot) in (0u64..).zip(sorted.iter_mut()) {
                *slot |= number * u64::from(place.ct_eq(&rank).unwrap_u8());
            }
        }
        sorted
    }
}

/// 1 if `a` is less than `b`, else 0, without a branch: both are far below 2^63.
fn is_less(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b) >> 63
}

/// What has to be entered: the codes in the order of the rule, or the one target.
pub struct Expected(Zeroizing<Vec<u64>>);

impl Expected {
    /// Whether all is entered, and all of it is right. Every pair is compared, whatever the others came to.
    pub fn is_all(&self, entered: &[Otp]) -> bool {
        let mut equal = u8::from(entered.len() == self.0.len());
        for (expected, entered) in self.0.iter().zip(entered) {
            equal &= expected.ct_eq(&entered.number()).unwrap_u8();
        }
        equal != 0
    }

    /// Whether this one is what comes at `place`.
    pub fn is_at(&self, place: usize, entered: &Otp) -> bool {
        self.0.get(place).is_some_and(|expected| expected.ct_eq(&entered.number()).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::domain::otp::Algorithm;
    use crate::domain::otp::tests::hmac_of;

    fn digits(count: u8) -> Digits {
        Digits::try_from(count).unwrap()
    }

    fn codes(numbers: &[u64], count: u8) -> Codes {
        let mut codes = Codes::new(digits(count));
        for number in numbers {
            codes.push(&number.to_be_bytes()).unwrap();
        }
        codes
    }

    fn otp(number: u64, count: u8) -> Otp {
        Otp::of_number(number, digits(count))
    }

    fn vectors() -> Value {
        let all: Value = serde_json::from_str(include_str!("../../../tests/vectors/methods.json")).unwrap();
        all["multi_terminal"].clone()
    }

    /// The code of a terminal with this key.
    fn derived(digest: &[u8; 32], terminal: &Value, count: u8) -> Codes {
        let text = |name: &str| terminal[name].as_str().unwrap();
        let key = data_encoding::HEXLOWER.decode(text("key_hex").as_bytes()).unwrap();
        let generation = terminal["generation"].as_u64().unwrap() as u32;
        let id = CredentialId::parse(text("credential")).unwrap();
        let mut codes = Codes::new(digits(count));
        codes.push(&hmac_of(Algorithm::Sha256, &key, &message(digest, id, generation))).unwrap();
        codes
    }

    #[test]
    fn codes_and_target_are_those_of_a_second_implementation() {
        let vectors = vectors();
        let digest = data_encoding::HEXLOWER.decode(vectors["digest"].as_str().unwrap().as_bytes()).unwrap();
        let digest: [u8; 32] = digest.try_into().unwrap();
        let target = &vectors["target"];
        let (mut of_target, mut seen) = (Codes::new(digits(8)), 0);
        for terminal in vectors["terminals"].as_array().unwrap() {
            let count = terminal["digits"].as_u64().unwrap() as u8;
            let code = derived(&digest, terminal, count);
            assert_eq!(code.texts()[0].expose(), terminal["code"].as_str().unwrap());
            if count == 8 {
                assert_eq!(target["codes"][seen], terminal["code"]);
                of_target.numbers.extend(code.numbers.iter());
                seen += 1;
            }
        }
        assert_eq!(seen, 3);
        let expected = Otp::parse(target["expected"].as_str().unwrap().to_owned()).unwrap();
        assert!(of_target.expected(EntryOrder::Target).is_all(&[expected]));
    }

    #[test]
    fn each_part_of_the_message_counts() {
        let id = CredentialId::from_random([7; 16]);
        let all = [
            message(&[1; 32], id, 1),
            message(&[2; 32], id, 1),
            message(&[1; 32], CredentialId::from_random([8; 16]), 1),
            message(&[1; 32], id, 11),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn what_is_no_hmac_is_no_code() {
        assert!(Codes::new(digits(6)).push(&[0; 7]).is_none());
    }

    #[test]
    fn codes_are_padded_and_cut_to_their_digits() {
        assert_eq!(codes(&[42], 6).texts()[0].expose(), "000042");
        assert_eq!(codes(&[10_000_000_007], 10).texts()[0].expose(), "0000000007");
        assert_eq!(codes(&[u64::MAX], 10).texts()[0].expose(), "3709551615");
    }

    #[test]
    fn a_target_is_the_sum_by_weights() {
        let target = |numbers: &[u64]| codes(numbers, 8).target();
        assert_eq!(target(&[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000]), 97_319_731);
        assert_eq!(target(&[99_999_999; 8]), (99_999_999 * 40) % 100_000_000);
        assert!(codes(&[7, 9], 8).expected(EntryOrder::Target).is_all(&[otp(34, 8)]));
    }

    #[test]
    fn a_tie_is_found_wherever_it_is() {
        assert!(!codes(&[1, 2, 3, 4], 6).has_equal());
        for (a, b) in [(0, 1), (0, 3), (1, 2), (2, 3)] {
            let mut numbers = [1, 2, 3, 4];
            numbers[b] = numbers[a];
            assert!(codes(&numbers, 6).has_equal(), "{a} and {b}");
        }
        assert!(codes(&[1, 1_000_001], 6).has_equal(), "of the codes, and not of what they are cut from");
    }

    proptest! {
        #[test]
        fn sizes_are_sorted_as_numbers(numbers in prop::collection::vec(0u64..1_000_000, 2..=8)) {
            let codes = codes(&numbers, 6);
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&*codes.expected(EntryOrder::Ascending).0, &sorted);
            sorted.reverse();
            prop_assert_eq!(&*codes.expected(EntryOrder::Descending).0, &sorted);
            prop_assert_eq!(&*codes.expected(EntryOrder::PresetOrder).0, &numbers);
        }

        #[test]
        fn only_all_of_it_is_right(
            numbers in prop::collection::hash_set(0u64..1_000_000, 2..=8),
            place: prop::sample::Index,
            other in 0u64..1_000_000,
        ) {
            let numbers: Vec<_> = numbers.into_iter().collect();
            let codes = codes(&numbers, 6);
            for order in [EntryOrder::PresetOrder, EntryOrder::Ascending, EntryOrder::Descending] {
                let expected = codes.expected(order);
                let right = |numbers: &[u64]| expected.is_all(&numbers.iter().map(|n| otp(*n, 6)).collect::<Vec<_>>());
                let mut entered = expected.0.to_vec();
                prop_assert!(right(&entered));
                prop_assert!(!right(&entered[1..]) && !right(&[&entered[..], &[entered[0]]].concat()));
                prop_assert!(entered.iter().enumerate().all(|(at, n)| expected.is_at(at, &otp(*n, 6))));
                prop_assert!(!expected.is_at(entered.len(), &otp(other, 6)));
                let at = place.index(entered.len());
                if entered[at] != other {
                    prop_assert!(!expected.is_at(at, &otp(other, 6)));
                    entered[at] = other;
                    prop_assert!(!right(&entered));
                }
            }
        }

        /// A wrong digit in any code is a wrong target: the weights share no factor with 10.
        #[test]
        fn no_digit_of_a_target_is_idle(
            numbers in prop::collection::vec(0u64..100_000_000, 2..=8),
            at: prop::sample::Index,
            digit in 0u32..8,
            more in 1u64..10,
        ) {
            let target = codes(&numbers, 8).target();
            let (mut other, at) = (numbers.clone(), at.index(numbers.len()));
            let power = 10u64.pow(digit);
            let old = other[at] / power % 10;
            other[at] = other[at] - old * power + (old + more) % 10 * power;
            prop_assert_ne!(target, codes(&other, 8).target());
        }
    }
}
