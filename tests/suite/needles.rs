//! Secrets to be found nowhere, in every spelling that whoever is careless would give them, and the search for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER};
use sha2::Digest;

/// What a secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The user's and the security officer's, of the token.
    Pin,
    /// A seed that came wrapped for the HSM.
    WrappedSeed,
    /// A seed that came in the clear.
    ClearSeed,
    /// A seed that the HSM made, and that was handed out once.
    ExportedSeed,
    /// An OCRA token's PIN.
    OcraPin,
    /// What a custodian makes of one, for the code.
    OcraPinHash,
    /// A rolling credential's identity key.
    IdentityKey,
    /// A code, or a proof, that was submitted.
    Submitted,
    /// A code that was handed out.
    HandedOut,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Pin,
        Self::WrappedSeed,
        Self::ClearSeed,
        Self::ExportedSeed,
        Self::OcraPin,
        Self::OcraPinHash,
        Self::IdentityKey,
        Self::Submitted,
        Self::HandedOut,
    ];
}

/// Freed memory loses its first bytes (glibc's malloc writes 16 there), and a buffer that is used again loses more: so a
/// secret is looked for piece by piece, each of so many bytes.
const PIECE: usize = 16;
/// A shorter rest of a secret is part of no piece.
const REST_MIN: usize = 12;
/// Every spelling is at least so long.
const BEGIN: usize = 6;
/// Spreads the beginnings of spellings over the numbers by which places are ruled out.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// A page with nothing in it.
const EMPTY: &[u8] = &[0; 4_096];
/// Bits of the number by which a place is ruled out.
const FILTER_BITS: u32 = 24;

struct Spelling {
    secret: u32,
    how: &'static str,
    bytes: Vec<u8>,
}

/// Secrets, in all their spellings.
pub struct Needles {
    secrets: Vec<(Kind, Vec<u8>)>,
    known: HashSet<Vec<u8>>,
    spellings: Vec<Spelling>,
    by_begin: HashMap<u64, Vec<u32>>,
    filter: Vec<u64>,
}

/// A secret that is there.
#[derive(Clone, Debug)]
pub struct Found {
    pub kind: Kind,
    /// Which one, by number.
    pub secret: u32,
    pub how: &'static str,
    pub at: usize,
}

impl Default for Needles {
    fn default() -> Self {
        let (secrets, known, spellings, by_begin) = Default::default();
        Self { secrets, known, spellings, by_begin, filter: vec![0; 1 << (FILTER_BITS - 6)] }
    }
}

impl Needles {
    /// One more secret; again one that is known is none.
    pub fn add(&mut self, kind: Kind, secret: &[u8]) {
        assert!(secret.len() >= BEGIN, "{kind:?}: anything that short is everywhere");
        if !self.known.insert(secret.to_vec()) {
            return;
        }
        let number = self.secrets.len() as u32;
        self.secrets.push((kind, secret.to_vec()));
        let whole = secret.len() < PIECE + REST_MIN;
        let size = if whole { secret.len() } else { PIECE };
        for piece in secret.chunks(size).filter(|piece| whole || piece.len() >= REST_MIN) {
            for (how, bytes) in spellings(piece) {
                // What is encoded has numbers as well: an attestation's base64 is that of text with times and hashes.
                if is_short_code(kind, secret) && (how.contains("base") || how.contains("BASE")) {
                    continue;
                }
                let begin = bytes[..BEGIN].iter().fold(0, |begin, byte| begin << 8 | u64::from(*byte));
                let place = slot(begin);
                self.filter[place / 64] |= 1 << (place % 64);
                self.by_begin.entry(begin).or_default().push(self.spellings.len() as u32);
                self.spellings.push(Spelling { secret: number, how, bytes });
            }
        }
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.secrets.iter().filter(|(known, _)| *known == kind).count()
    }

    /// All places at which a secret is.
    pub fn search(&self, bytes: &[u8]) -> Vec<Found> {
        let (mut found, mut window, mut place) = (Vec::new(), 0u64, 0);
        // By hand: iterators take three times as long where nothing is optimised.
        while place < bytes.len() {
            if place % EMPTY.len() == 0 && bytes[place..].starts_with(EMPTY) {
                // Most of a process's memory.
                (place, window) = (place + EMPTY.len(), 0);
                continue;
            }
            window = (window << 8 | bytes[place] as u64) & ((1 << (8 * BEGIN)) - 1);
            let slot = (window.wrapping_mul(SPREAD) >> (64 - FILTER_BITS)) as usize;
            if self.filter[slot / 64] >> (slot % 64) & 1 == 1 {
                self.compare(bytes, place, window, &mut found);
            }
            place += 1;
        }
        found
    }

    /// Finds what begins with these bytes, the last of which is at `place`.
    fn compare(&self, bytes: &[u8], place: usize, begin: u64, found: &mut Vec<Found>) {
        let Some(at) = (place + 1).checked_sub(BEGIN) else { return };
        let candidates = self.by_begin.get(&begin).into_iter().flatten();
        for spelling in candidates.map(|number| &self.spellings[*number as usize]) {
            if bytes[at..].starts_with(&spelling.bytes) {
                let (kind, _) = self.secrets[spelling.secret as usize];
                found.push(Found { kind, secret: spelling.secret, how: spelling.how, at });
            }
        }
    }

    /// Whether it is a code of fewer than ten digits, as it is: numbers like it are wherever there is much.
    pub fn is_short_code(&self, found: &Found) -> bool {
        let (kind, secret) = &self.secrets[found.secret as usize];
        found.how == RAW && is_short_code(*kind, secret)
    }

    /// The places at which a secret is and not by chance: decimal codes are short, and numbers are everywhere. As many
    /// different codes as are to be expected among all different rows of as many digits say nothing.
    pub fn search_but_for_chance(&self, bytes: &[u8]) -> Vec<Found> {
        let mut found = self.search(bytes);
        let mut codes: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, secret) in self.secrets.iter().filter(|(kind, secret)| is_code(*kind, secret)) {
            *codes.entry(secret.len()).or_default() += 1;
        }
        for (digits, codes) in codes {
            let expected = rows_of_digits(bytes, digits) as f64 * codes as f64 / 10f64.powi(digits as i32);
            let is_one = |hit: &Found| {
                let (kind, secret) = &self.secrets[hit.secret as usize];
                hit.how == RAW && secret.len() == digits && is_code(*kind, secret)
            };
            let hit: BTreeSet<_> = found.iter().filter(|hit| is_one(hit)).map(|hit| hit.secret).collect();
            // Six standard deviations: one in a thousand million.
            let bound = if expected < 0.001 { 0.0 } else { expected + 6.0 * expected.sqrt() + 3.0 };
            if expected >= 0.01 || !hit.is_empty() {
                println!("    {} of {codes} codes of {digits} digits; {expected:.4} by chance", hit.len());
            }
            for hit in found.iter().filter(|hit| is_one(hit)).take(3) {
                let around = &bytes[hit.at.saturating_sub(20)..(hit.at + 30).min(bytes.len())];
                println!("      such as {}", String::from_utf8_lossy(around).escape_debug());
            }
            if hit.len() as f64 <= bound {
                found.retain(|hit| !is_one(hit));
            }
        }
        found
    }
}

/// A code of nothing but digits.
fn is_code(kind: Kind, secret: &[u8]) -> bool {
    matches!(kind, Kind::Submitted | Kind::HandedOut) && secret.iter().all(u8::is_ascii_digit)
}

fn is_short_code(kind: Kind, secret: &[u8]) -> bool {
    is_code(kind, secret) && secret.len() < 10
}

/// How many different rows of so many digits there are.
fn rows_of_digits(bytes: &[u8], digits: usize) -> usize {
    let (mut rows, mut length) = (HashSet::new(), 0);
    for (place, byte) in bytes.iter().enumerate() {
        length = if byte.is_ascii_digit() { length + 1 } else { 0 };
        if length >= digits {
            rows.insert(&bytes[place + 1 - digits..=place]);
        }
    }
    rows.len()
}

fn slot(begin: u64) -> usize {
    (begin.wrapping_mul(SPREAD) >> (64 - FILTER_BITS)) as usize
}

const RAW: &str = "as it is";

/// How a piece may be written.
pub fn spellings(piece: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        (RAW, piece.to_vec()),
        ("hex", HEXLOWER.encode(piece).into_bytes()),
        ("HEX", HEXUPPER.encode(piece).into_bytes()),
    ];
    // What stands before it moves it against the groups of the encoding.
    for offset in 0..5 {
        let text = inside(&BASE32_NOPAD, 5, offset, piece);
        all.push(("base32", text.to_lowercase().into_bytes()));
        all.push(("BASE32", text.into_bytes()));
    }
    for offset in 0..3 {
        all.push(("base64", inside(&BASE64_NOPAD, 6, offset, piece).into_bytes()));
        all.push(("base64url", inside(&BASE64URL_NOPAD, 6, offset, piece).into_bytes()));
    }
    // What a careless `Debug`, and JSON without a thought, make of bytes.
    for between in [", ", ","] {
        let numbers: Vec<_> = piece.iter().map(ToString::to_string).collect();
        all.push(("a list of numbers", numbers.join(between).into_bytes()));
    }
    let mut seen = HashSet::new();
    all.retain(|(_, bytes)| seen.insert(bytes.clone()));
    all
}

/// The characters that depend on the piece alone, with so many bytes before it.
fn inside(encoding: &Encoding, bits: usize, offset: usize, piece: &[u8]) -> String {
    let text = encoding.encode(&[&vec![0; offset], piece].concat());
    let (first, end) = ((offset * 8).div_ceil(bits), (offset + piece.len()) * 8 / bits);
    text[first..end].to_owned()
}

#[test]
fn every_piece_is_found_in_every_spelling_and_at_every_alignment() {
    let secret: Vec<u8> = (0..48u8).map(|byte| byte.wrapping_mul(37) ^ 0xa7).collect();
    let mut needles = Needles::default();
    needles.add(Kind::WrappedSeed, &secret);
    for piece in secret.chunks(PIECE) {
        for before in 0..7 {
            let inner = [&vec![b'x'; before], piece, b"behind"].concat();
            let url = BASE64URL_NOPAD.encode(&inner);
            for (what, text) in [
                ("raw", inner.clone()),
                ("hex", HEXLOWER.encode(&inner).into()),
                ("HEX", HEXUPPER.encode(&inner).into()),
                ("BASE32", BASE32_NOPAD.encode(&inner).into()),
                ("base32", BASE32_NOPAD.encode(&inner).to_lowercase().into()),
                ("base64", BASE64_NOPAD.encode(&inner).into()),
                ("base64url", url.into()),
                ("debug", format!("{inner:?}").into()),
                ("json", serde_json::to_vec(&inner).unwrap()),
            ] {
                assert!(!needles.search(&text).is_empty(), "{what}, {before} bytes before it");
            }
        }
    }
    // One byte is another.
    let mut other = secret.clone();
    for place in [3, 20, 40] {
        other[place] ^= 1;
    }
    assert!(needles.search(&other).is_empty());
    assert!(needles.search(HEXLOWER.encode(&other).as_bytes()).is_empty());
    assert!(needles.search(&[]).is_empty() && needles.search(&secret[..BEGIN - 1]).is_empty());
}

#[test]
fn what_is_found_by_chance_is_told_from_what_is_written_down() {
    let code = |number: u32| {
        let hash = sha2::Sha256::digest(number.to_be_bytes());
        format!("{:06}", u32::from_be_bytes(hash[..4].try_into().unwrap()) % 1_000_000)
    };
    let codes: BTreeSet<_> = (1..=500).map(code).collect();
    let mut needles = Needles::default();
    for code in &codes {
        needles.add(Kind::Submitted, code.as_bytes());
    }
    // Other numbers: some of them are codes.
    let numbers: String = (1_000..21_000).map(|number| format!("{} ", code(number))).collect();
    assert!(needles.search(numbers.as_bytes()).len() > 3);
    assert!(needles.search_but_for_chance(numbers.as_bytes()).is_empty());
    // And a place that keeps every tenth.
    let kept: String = codes.iter().step_by(10).map(|code| format!("{code} ")).collect();
    assert!(needles.search_but_for_chance((numbers + &kept).as_bytes()).len() >= 50);
    assert_eq!(needles.search_but_for_chance(kept.as_bytes()).len(), 50);
    // Whoever encodes one means it.
    let first = codes.first().unwrap();
    for text in [HEXLOWER.encode(first.as_bytes()), format!("{:?}", first.as_bytes())] {
        assert_eq!(needles.search_but_for_chance(text.as_bytes()).len(), 1, "{text}");
    }
}
