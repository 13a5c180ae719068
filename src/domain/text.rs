//! Text that people read: what a device shows before somebody confirms it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which characters such a text may have.
pub const DISPLAY_TEXT_RULE: &str = "must be in Unicode's normalization form C, without white space at its ends, and \
    without control, invisible, reordering and private-use characters and noncharacters";

/// Why a text is none for a display.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It is empty, or longer than its field allows.
    #[error("is empty, or longer than its field allows")]
    Length,
    /// It has what does not show, or what shows as something else.
    #[error("{DISPLAY_TEXT_RULE}")]
    Characters,
}

/// Text that people read on a device: 1 to `CHARS_MAX` characters that all show, in the order in which they
/// stand. It is never normalised, only refused: what is signed is the text exactly as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DisplayText<const CHARS_MAX: usize>(String);

impl<const CHARS_MAX: usize> DisplayText<CHARS_MAX> {
    /// Exactly as it was sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const CHARS_MAX: usize> TryFrom<String> for DisplayText<CHARS_MAX> {
    type Error = TextError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let length = text.chars().take(CHARS_MAX.saturating_add(1)).count();
        if !(1..=CHARS_MAX).contains(&length) {
            return Err(TextError::Length);
        }
        if text.trim() == text && text.chars().all(is_shown) && is_nfc(&text) {
            Ok(Self(text))
        } else {
            Err(TextError::Characters)
        }
    }
}

impl<const CHARS_MAX: usize> From<DisplayText<CHARS_MAX>> for String {
    fn from(text: DisplayText<CHARS_MAX>) -> String {
        text.0
    }
}

impl<const CHARS_MAX: usize> fmt::Display for DisplayText<CHARS_MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// No control characters, none that reorder, hide or break the text around them, and not the one that
/// stands for what could not be read.
///
/// Stored account references obey it, so it must not become stricter.
pub fn is_printable(c: char) -> bool {
    let invisible = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffd}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !invisible
}

/// Printable, and the same on every device: none of the other characters that show nothing (Unicode's
/// `Default_Ignorable_Code_Point`, and the empty Braille pattern), none that mean what a vendor likes, none that
/// never mean anything.
fn is_shown(c: char) -> bool {
    let blank = matches!(c,
        '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0080}'..='\u{e0fff}');
    let private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}');
    let never = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    is_printable(c) && !blank && !private && !never
}

/// Whether it is in normalization form C: two texts that look the same because one is composed and the other is
/// not are then one.
pub fn is_nfc(text: &str) -> bool {
    unicode_normalization::is_nfc(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Text = DisplayText<70>;

    fn is_taken(text: &str) -> bool {
        match Text::try_from(text.to_owned()) {
            Ok(taken) => {
                assert_eq!(
                    (taken.as_str(), &*taken.to_string(), &*String::from(taken.clone())),
                    (text, text, text)
                );
                true
            }
            Err(error) => {
                let length = text.chars().count();
                assert_eq!(error == TextError::Length, length == 0 || length > 70, "{text:?}");
                false
            }
        }
    }

    #[test]
    fn text_of_every_script_is_taken() {
        for good in [
            "1",
            "DE89370400440532013000",
            "M\u{fc}ller & S\u{f6}hne",
            "a  b",
            "\u{1e69}",
            "\u{3b1}\u{3b2}",
            "\u{5d0}\u{5d1}",
            "\u{645}\u{631}\u{62d}\u{628}\u{627}",
            "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
            "\u{d55c}\u{ae00}",
            "\u{6771}\u{4eac}",
            "\u{1f600}",
            "\u{20ac} \u{a0}x",
            "<script>alert(1)</script>",
            "'; DROP TABLE account; --",
            "\u{10000}",
        ] {
            assert!(is_taken(good), "{good:?}");
        }
    }

    #[test]
    fn lengths_are_in_characters() {
        assert!(is_taken(&"\u{20ac}".repeat(70)));
        assert!(!is_taken(&"a".repeat(71)));
        assert!(!is_taken(&"a".repeat(1_000_000)));
        assert!(!is_taken(""));
        assert!(DisplayText::<140>::try_from("a".repeat(140)).is_ok());
        assert!(DisplayText::<140>::try_from("a".repeat(141)).is_err());
        assert!(DisplayText::<0>::try_from(String::new()).is_err());
    }

    #[test]
    fn nothing_unseen_is_taken() {
        let unseen = [
            "\0",
            "\t",
            "\n",
            "\r",
            "\u{1b}",
            "\u{7f}",
            "\u{85}",
            "\u{9b}",
            "\u{ad}",
            "\u{34f}",
            "\u{61c}",
            "\u{115f}",
            "\u{1160}",
            "\u{17b4}",
            "\u{17b5}",
            "\u{180b}",
            "\u{180c}",
            "\u{180d}",
            "\u{180e}",
            "\u{180f}",
            "\u{200b}",
            "\u{200c}",
            "\u{200d}",
            "\u{200e}",
            "\u{200f}",
            "\u{2028}",
            "\u{2029}",
            "\u{202a}",
            "\u{202b}",
            "\u{202c}",
            "\u{202d}",
            "\u{202e}",
            "\u{2060}",
            "\u{2061}",
            "\u{2064}",
            "\u{2065}",
            "\u{2066}",
            "\u{2067}",
            "\u{2068}",
            "\u{2069}",
            "\u{206a}",
            "\u{206f}",
            "\u{2800}",
            "\u{3164}",
            "\u{fe00}",
            "\u{fe0f}",
            "\u{feff}",
            "\u{ffa0}",
            "\u{fff0}",
            "\u{fff9}",
            "\u{fffa}",
            "\u{fffb}",
            "\u{1bca0}",
            "\u{1d173}",
            "\u{1d17a}",
            "\u{e0001}",
            "\u{e0020}",
            "\u{e0041}",
            "\u{e007f}",
            "\u{e0100}",
            "\u{e01ef}",
        ];
        let meaningless = [
            "\u{fffd}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{fdd0}",
            "\u{fdef}",
            "\u{1fffe}",
            "\u{1ffff}",
            "\u{dffff}",
            "\u{10fffe}",
            "\u{10ffff}",
            "\u{e000}",
            "\u{f8ff}",
            "\u{f0000}",
            "\u{ffffd}",
            "\u{100000}",
            "\u{10fffd}",
        ];
        for bad in unseen.into_iter().chain(meaningless) {
            for text in [bad.to_owned(), format!("a{bad}"), format!("{bad}a"), format!("a{bad}a")] {
                assert!(!is_taken(&text), "{text:?}");
            }
        }
    }

    #[test]
    fn white_space_is_within_only() {
        for space in [" ", "\u{a0}", "\u{1680}", "\u{2003}", "\u{2009}", "\u{202f}", "\u{205f}", "\u{3000}"] {
            for text in [space.to_owned(), format!("{space}a"), format!("a{space}")] {
                assert!(!is_taken(&text), "{text:?}");
            }
        }
        assert!(is_taken("a b\u{a0}c\u{3000}d"));
    }

    #[test]
    fn only_the_composed_form_is_taken() {
        for (composed, other) in [
            ("\u{e9}", "e\u{301}"),
            ("\u{fc}", "u\u{308}"),
            ("\u{c5}", "\u{212b}"),
            ("\u{3a9}", "\u{2126}"),
            ("K", "\u{212a}"),
            ("\u{1e69}", "s\u{307}\u{323}"),
            ("\u{ac00}", "\u{1100}\u{1161}"),
            ("\u{915}\u{93c}", "\u{958}"),
            ("\u{8c48}", "\u{f900}"),
        ] {
            assert!(is_nfc(composed) && is_taken(composed), "{composed:?}");
            assert!(!is_nfc(other) && !is_taken(other), "{other:?}");
            assert!(!is_taken(&format!("a{other}b")), "{other:?}");
        }
    }

    #[test]
    fn text_travels_as_itself_and_is_checked_on_arrival() {
        let text = Text::try_from("M\u{fc}ller".to_owned()).unwrap();
        let bytes = postcard::to_allocvec(&text).unwrap();
        assert_eq!(bytes, b"\x07M\xc3\xbcller");
        assert_eq!(postcard::from_bytes::<Text>(&bytes).unwrap(), text);
        for bad in ["\"\"", "\" a\"", "\"e\\u0301\"", "\"\\u202e\"", "\"\\ud800\"", "1", "null"] {
            assert!(serde_json::from_str::<Text>(bad).is_err(), "{bad}");
        }
    }

    /// The rule of stored account references: the number of characters that it takes, and which they are.
    #[test]
    fn what_is_printable_stays_what_it_was() {
        let all = || '\0'..=char::MAX;
        assert_eq!(all().filter(|c| !is_printable(*c)).count(), 65 + 3 + 5 + 7 + 16 + 1 + 3 + 1 + 128);
        assert!(all().filter(|c| !is_printable(*c)).all(|c| !is_shown(c)));
        for printable in ['\u{e000}', '\u{fffe}', '\u{34f}', '\u{fe0f}', '\u{10ffff}', '\u{3164}'] {
            assert!(is_printable(printable) && !is_shown(printable), "{printable:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_its_own_composed_form(text in "\\PC{0,12}|[aeou\u{301}\u{308} \u{1100}\u{1161}]{0,6}") {
            use unicode_normalization::UnicodeNormalization;
            if is_taken(&text) {
                prop_assert_eq!(text.nfc().collect::<String>(), &*text);
                prop_assert_eq!(text.trim(), &*text);
            }
        }
    }
}
