//! What the later methods read and count: addresses, passwords, presented codes, bindings, rounds of codes.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use hsm_authd::domain::multi_terminal::{
    Address, EntryOrder, EntryRule, FrozenTerminal, Interval, MultiTerminal, Round,
};
use hsm_authd::domain::otp::Digits;
use hsm_authd::domain::presentation::code_hash;
use hsm_authd::domain::rolling::{LOOKUP_BYTES, PROOF_BYTES, RollingPassword};
use hsm_authd::domain::time::{BootId, Deadline, Now, RunId};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::store_samples::{address, binding, id, presentation, transaction_id};

fn now(run: u8) -> Now {
    Now {
        unix_ms: 1_000,
        boot_ms: 7,
        boot_id: BootId([0; 16]),
        run: RunId([run; 16]),
        trusted: true,
        floor: Default::default(),
    }
}

#[test]
fn an_address_is_any_printable_text_of_up_to_256_bytes() {
    let is_taken = |text: &str| match Address::try_from(text.to_owned()) {
        Ok(taken) => {
            assert_eq!(
                (taken.as_str(), &*taken.to_string(), &*String::from(taken.clone())),
                (text, text, text)
            );
            assert_eq!(serde_json::to_value(&taken).unwrap(), text);
            true
        }
        Err(rule) => {
            assert!(rule.contains("1 to 256 bytes"));
            assert!(serde_json::from_value::<Address>(text.into()).is_err());
            false
        }
    };
    // It is compared byte for byte with what a bank reports: no form is better than another.
    for good in
        ["1", "+49 170 1234567", " +49", "fcm:d\u{fc}", "fcm:du\u{308}", "a@b.example", "\u{1f4f1}", "\\\"<"]
    {
        assert!(is_taken(good), "{good:?}");
    }
    assert!(
        is_taken(&"a".repeat(256)) && is_taken(&"\u{20ac}".repeat(85)) && is_taken(&"\u{1f4f1}".repeat(64))
    );
    for bad in [
        "",
        "\0",
        "+49\n170",
        "a\tb",
        "\u{7f}",
        "\u{85}",
        "+\u{200b}49",
        "\u{202e}94+",
        "\u{feff}",
        "\u{fffd}",
    ] {
        assert!(!is_taken(bad), "{bad:?}");
    }
    // Bytes, not characters.
    for length in [257, 1_000_000] {
        assert!(!is_taken(&"a".repeat(length)));
    }
    assert!(!is_taken(&"\u{20ac}".repeat(86)) && !is_taken(&"\u{1f4f1}".repeat(65)));
}

/// The parts of a password.
fn parsed(text: &str) -> Option<([u8; LOOKUP_BYTES], [u8; PROOF_BYTES])> {
    RollingPassword::parse(text).map(|password| (password.lookup, password.proof))
}

proptest! {
    #[test]
    fn a_password_is_its_lookup_and_its_proof_in_one_spelling(lookup: [u8; 12], proof: [u8; 16], place in 0..38_usize) {
        let text = BASE64URL_NOPAD.encode(&[&lookup[..], &proof[..]].concat());
        prop_assert_eq!(text.len(), 38);
        prop_assert_eq!(parsed(&text), Some((lookup, proof)));
        for other in [format!("{text}="), format!("{text}=="), format!("{text}A"), format!(" {text}"), format!("{text}\n")] {
            prop_assert_eq!(parsed(&other), None, "{}", other);
        }
        for bad in ['+', '/', '=', ' ', '.', '\u{e9}'] {
            let other: String = text.chars().enumerate().map(|(at, c)| if at == place { bad } else { c }).collect();
            prop_assert_eq!(parsed(&other), None, "{}", other);
        }
        // Of its last character two bits count; with any of the other four it would be the same bytes.
        let (most, _) = text.split_at(37);
        let last = |letter: char| parsed(&format!("{most}{letter}"));
        let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['-', '_']).collect();
        let taken: Vec<char> = letters.into_iter().filter(|letter| last(*letter).is_some()).collect();
        prop_assert_eq!(taken, ['A', 'Q', 'g', 'w']);
    }

    #[test]
    fn whatever_is_taken_for_a_password_is_written_so(text in "[A-Za-z0-9_-]{36,40}") {
        if let Some((lookup, proof)) = parsed(&text) {
            prop_assert_eq!(BASE64URL_NOPAD.encode(&[&lookup[..], &proof[..]].concat()), text);
        }
    }

    #[test]
    fn a_presented_code_is_found_by_the_hash_of_its_one_spelling(bits: [u8; 16], place in 0..26_usize) {
        let text = BASE32_NOPAD.encode(&bits);
        prop_assert_eq!(text.len(), 26);
        prop_assert_eq!(code_hash(&text), Some(Sha256::digest(&text).into()));
        let others = [format!("{text}="), format!("{text}======"), format!("{text}A"), format!("{text} "), format!("\n{text}")];
        for other in others {
            prop_assert_eq!(code_hash(&other), None, "{}", other);
        }
        for bad in ['0', '1', '8', '9', '=', '-', ' ', 'a', '\u{e9}'] {
            let other: String = text.chars().enumerate().map(|(at, c)| if at == place { bad } else { c }).collect();
            prop_assert_eq!(code_hash(&other), None, "{}", other);
        }
        let (most, _) = text.split_at(25);
        let is_taken = |letter: &char| code_hash(&format!("{most}{letter}")).is_some();
        let taken: Vec<char> = ('A'..='Z').chain('2'..='7').filter(is_taken).collect();
        prop_assert_eq!(taken, ['A', 'E', 'I', 'M', 'Q', 'U', 'Y', '4'], "three bits of the last character count");
    }
}

#[test]
fn a_password_or_a_code_of_another_length_is_none() {
    for length in (0..200).chain([10_000, 100_000]) {
        let text = "A".repeat(length);
        assert_eq!(parsed(&text).is_some(), length == 38, "{length}");
        assert_eq!(code_hash(&text).is_some(), length == 26, "{length}");
    }
    // As many bytes, other characters.
    assert!(parsed(&"\u{e9}".repeat(19)).is_none() && code_hash(&"\u{e9}".repeat(13)).is_none());
    assert_eq!(code_hash(&"a".repeat(26)), None);
}

#[test]
fn a_binding_goes_from_epoch_to_epoch_and_never_back() {
    let first = binding(1);
    assert_eq!((first.version, first.epoch, first.acknowledged), (1, 1, false));
    let known = first.acknowledged();
    assert_eq!((known.version, known.epoch, known.acknowledged, known.lookup), (2, 1, true, first.lookup));
    for before in [first, known] {
        let used = before.used([9; 12]);
        assert_eq!((used.version, used.epoch), (before.version + 1, 2));
        // The next temporary code has not been handed out yet.
        assert_eq!((used.acknowledged, used.lookup), (false, [9; 12]));
        assert_eq!((used.credential, used.tenant), (before.credential, before.tenant));
    }
}

#[test]
fn a_claim_changes_a_presentation_and_nothing_else_of_it() {
    let open = presentation(1);
    let claimed = open.claimed(transaction_id(7));
    assert_eq!((claimed.version, claimed.transaction), (2, Some(transaction_id(7))));
    assert_eq!(
        hsm_authd::domain::presentation::Presentation { version: 1, transaction: None, ..claimed },
        open
    );
}

fn method(order: EntryOrder, terminals: u128, window: Option<Deadline>) -> MultiTerminal {
    let frozen = |number| FrozenTerminal { credential: id(number), address: address("+1") };
    MultiTerminal {
        terminals: (0..terminals).map(frozen).collect(),
        rule: EntryRule { order, interval: Some(Interval { interval_s: 10, tolerance_s: 2 }) },
        digits: Digits::default(),
        generation: 1,
        window,
    }
}

#[test]
fn weights_are_those_of_a_target_and_repeat() {
    for order in [EntryOrder::PresetOrder, EntryOrder::Ascending, EntryOrder::Descending] {
        assert_eq!(method(order, 8, None).weights(), None, "{order:?}");
    }
    let weights = |terminals| method(EntryOrder::Target, terminals, None).weights().unwrap();
    assert_eq!(weights(2), [1, 3]);
    assert_eq!(weights(4), [1, 3, 7, 9]);
    assert_eq!(weights(8), [1, 3, 7, 9, 1, 3, 7, 9]);
    assert!(
        weights(8).iter().all(|weight| weight % 2 != 0 && weight % 5 != 0),
        "a wrong digit changes the sum"
    );
}

#[test]
fn a_window_is_measured_by_the_run_in_which_it_began() {
    let window = Deadline::after(&now(1), 60_000);
    let begun = method(EntryOrder::Ascending, 2, Some(window)).begin(RunId([1; 16]));
    assert_eq!(begun, Round { run: Some(RunId([1; 16])), ..Round::default() });
    assert!(!begun.is_interrupted(&now(1)) && begun.is_interrupted(&now(2)));
    // Without one, nothing is measured until a code has come.
    let begun = method(EntryOrder::Ascending, 2, None).begin(RunId([1; 16]));
    assert_eq!(begun, Round::default());
    assert!(!begun.is_interrupted(&now(1)) && !begun.is_interrupted(&now(2)));
}
