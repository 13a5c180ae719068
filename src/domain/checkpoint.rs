//! Checkpoints: the head of the log, signed, as a C2SP `tlog-checkpoint` (a `signed-note` of three lines and more).
//!
//! ```text
//! hsm-authd.log/0123456789abcdef0123456789abcdef
//! 20852163
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//! time 2026-11-22T07:00:00Z
//! sums 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=
//!
//! — hsm-authd.log/0123456789abcdef0123456789abcdef Az3grl...
//! ```
//!
//! The signature is of type 0x02: ECDSA on P-256 with SHA-256, in DER; the key id is the first four bytes of the
//! SHA-256 of the key's SubjectPublicKeyInfo.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::EncodePublicKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod verifier;

pub use verifier::VerifierKey;

use super::log::TreeHash;
use super::row::SumDigest;
use super::signer::PublicKey;
use super::time::{parse_rfc3339, rfc3339};

/// The longest note that is looked at, in bytes.
pub const NOTE_BYTES_MAX: usize = 4 * 1024;
const ORIGIN: &str = "hsm-authd.log/";
const UNCLAIMED: &str = "new";
/// What a signature line begins with: an em dash and a space.
const SIGNATURE: &str = "\u{2014} ";

/// Which log: `hsm-authd.log/` and 32 hexadecimal digits. Only the first anchor of a token has `new` in their place:
/// it was made before there was a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

impl Origin {
    /// A new one, of random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(format!("{ORIGIN}{}", HEXLOWER.encode(&bytes)))
    }

    /// That of a token's first anchor.
    pub fn unclaimed() -> Self {
        Self(format!("{ORIGIN}{UNCLAIMED}"))
    }

    /// Whether it is that of a token's first anchor.
    pub fn is_unclaimed(&self) -> bool {
        *self == Self::unclaimed()
    }

    /// `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.strip_prefix(ORIGIN)?;
        let is_id = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (is_id || id == UNCLAIMED).then(|| Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Origin {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("no origin of a log")
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The head of a log: what the store has after a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which log.
    pub origin: Origin,
    /// How many entries it has.
    pub size: u64,
    /// The root over them.
    pub root: TreeHash,
    /// What stands for the sum over all rows as of the last entry.
    pub sum: SumDigest,
}

/// A head and when it was seen. Displays as the text of its note, which is what is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The head.
    pub head: Head,
    /// When, in whole seconds since 1970.
    pub unix_s: u64,
}

impl Checkpoint {
    /// Of a token's first anchor: of a log without entries.
    pub fn unclaimed(unix_s: u64) -> Self {
        let (root, sum) = (TreeHash::of_nothing(), SumDigest::default());
        Self { head: Head { origin: Origin::unclaimed(), size: 0, root, sum }, unix_s }
    }

    /// Whether it is that of a token that has known no log yet.
    pub fn is_of_no_log(&self) -> bool {
        self.head.origin.is_unclaimed() && self.head.size == 0
    }

    /// Why a log is not the one of this checkpoint, grown; `root` is that over as many of its entries as the checkpoint
    /// is of, if there are so many. `None`: it is. A token's first anchor is of no log yet, and any log extends it.
    pub fn objection(&self, log: &Head, root: Option<TreeHash>) -> Option<String> {
        let Self { head: known, unix_s } = self;
        let since = rfc3339(unix_s.saturating_mul(1_000));
        if self.is_of_no_log() {
            return None;
        }
        if known.origin != log.origin {
            return Some(format!(
                "the database is another one than the token's: its log is {}, and the token knows {} since {since}",
                log.origin, known.origin
            ));
        }
        if log.size < known.size {
            return Some(format!(
                "the database was turned back: its log has {} entries, and the token knows of {} since {since}",
                log.size, known.size
            ));
        }
        (root != Some(known.root)).then(|| {
            format!(
                "the database was turned back or its log changed: the first {} entries are not those that the token \
                 knows since {since}",
                known.size
            )
        })
    }

    /// SHA-256 of its text: what is signed.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_string()).into()
    }

    /// The note, signed by this P-256 key: r and s, 32 bytes each. `None` if that is no signature of such a key.
    pub fn note(&self, key: &PublicKey, signature: &[u8; 64]) -> Option<String> {
        let signature = Signature::from_slice(signature).ok()?.to_der();
        let bytes = [&key_id(key)?[..], signature.as_bytes()].concat();
        Some(format!("{self}\n{SIGNATURE}{} {}\n", self.head.origin, BASE64.encode(&bytes)))
    }

    /// `None` for any text that is not displayed so.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split('\n');
        let mut line = || lines.next();
        let (origin, size, root) = (Origin::parse(line()?)?, line()?.parse().ok()?, hash(line()?)?);
        let time = parse_rfc3339(line()?.strip_prefix("time ")?)?;
        let sum = line()?;
        let sum = match sum.strip_prefix("sums ") {
            Some(sum) => SumDigest::All(hash(sum)?),
            None => SumDigest::First(hash(sum.strip_prefix("sum ")?)?),
        };
        let head = Head { origin, size, root: TreeHash(root), sum };
        let checkpoint = Self { head, unix_s: time };
        (checkpoint.to_string() == text).then_some(checkpoint)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { head: Head { origin, size, root, sum }, unix_s } = self;
        let word = match sum {
            SumDigest::First(_) => "sum",
            SumDigest::All(_) => "sums",
        };
        let (root, sum) = (BASE64.encode(&root.0), BASE64.encode(sum.bytes()));
        let time = rfc3339(unix_s.saturating_mul(1_000));
        write!(f, "{origin}\n{size}\n{root}\ntime {time}\n{word} {sum}\n")
    }
}

/// A checkpoint with its signatures, as it came. Whose they are is for [`Note::is_signed_by`] to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    checkpoint: Checkpoint,
    /// Key ids and signatures, of lines that name the log.
    signatures: Vec<([u8; 4], Vec<u8>)>,
}

impl Note {
    /// Of at most [`NOTE_BYTES_MAX`] bytes; `None` for anything but one of our checkpoints with at least one
    /// signature. Lines of other signers are passed over.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > NOTE_BYTES_MAX {
            return None;
        }
        let (signed, signatures) = text.rsplit_once("\n\n")?;
        let checkpoint = Checkpoint::parse(&format!("{signed}\n"))?;
        let lines = signatures.strip_suffix('\n')?.split('\n');
        let parsed = lines.map(|line| {
            let (name, signature) = line.strip_prefix(SIGNATURE)?.split_once(' ')?;
            let bytes = BASE64.decode(signature.as_bytes()).ok()?;
            let (key_id, signature) = bytes.split_first_chunk()?;
            Some((name.to_owned(), *key_id, signature.to_vec()))
        });
        let parsed: Vec<_> = parsed.collect::<Option<_>>()?;
        let ours = parsed.into_iter().filter(|(name, ..)| name == checkpoint.head.origin.as_str());
        let signatures = ours.map(|(_, key_id, signature)| (key_id, signature)).collect();
        Some(Self { checkpoint, signatures })
    }

    /// What it says: nothing, before it is known who signed it.
    pub fn unverified(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What it says, if one of these keys signed it.
    pub fn verified<'a>(&self, keys: impl IntoIterator<Item = &'a PublicKey>) -> Option<&Checkpoint> {
        let text = self.checkpoint.to_string();
        let is_of = |key: &PublicKey| {
            let (Some(id), Some(verifying)) = (key_id(key), verifying_key(key)) else { return false };
            let own = self.signatures.iter().filter(|(key_id, _)| *key_id == id);
            own.filter_map(|(_, der)| Signature::from_der(der).ok())
                .any(|signature| verifying.verify(text.as_bytes(), &signature).is_ok())
        };
        keys.into_iter().any(is_of).then_some(&self.checkpoint)
    }
}

fn hash(base64: &str) -> Option<[u8; 32]> {
    BASE64.decode(base64.as_bytes()).ok()?.try_into().ok()
}

fn p256_key(key: &PublicKey) -> Option<p256::PublicKey> {
    match key {
        PublicKey::P256(key) => p256::PublicKey::from_sec1_bytes(&key.point()).ok(),
        PublicKey::Rsa(_) => None,
    }
}

fn verifying_key(key: &PublicKey) -> Option<VerifyingKey> {
    p256_key(key).map(VerifyingKey::from)
}

/// The key id of a note's signature line; `None`: it is no P-256 key.
fn key_id(key: &PublicKey) -> Option<[u8; 4]> {
    let info = p256_key(key)?.to_public_key_der().ok()?;
    Sha256::digest(info.as_bytes()).first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::Signer;
    use proptest::prelude::*;

    fn checkpoint() -> Checkpoint {
        let head = Head {
            origin: Origin::from_random([0xab; 16]),
            size: 20_852_163,
            root: TreeHash([7; 32]),
            sum: SumDigest::All([9; 32]),
        };
        Checkpoint { head, unix_s: 1_893_456_000 }
    }

    fn pair(byte: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_slice(&[byte; 32]).unwrap();
        let public = PublicKey::from_p256_point(key.verifying_key().to_sec1_point(false).as_bytes()).unwrap();
        (key, public)
    }

    fn signed(checkpoint: &Checkpoint, (key, public): &(SigningKey, PublicKey)) -> String {
        let signature: Signature = key.sign(checkpoint.to_string().as_bytes());
        checkpoint.note(public, &signature.to_bytes().into()).unwrap()
    }

    #[test]
    fn a_note_is_spelt_as_the_specifications_say() {
        let own = pair(1);
        let note = signed(&checkpoint(), &own);
        let lines: Vec<_> = note.split('\n').collect();
        let origin = "hsm-authd.log/abababababababababababababababab";
        assert_eq!(lines[..2], [origin, "20852163"]);
        assert_eq!(BASE64.decode(lines[2].as_bytes()).unwrap(), [7; 32]);
        assert_eq!(lines[3], "time 2030-01-01T00:00:00Z");
        assert_eq!(lines[4], format!("sums {}", BASE64.encode(&[9; 32])));
        assert_eq!(lines[5], "");
        let signature = lines[6].strip_prefix(&format!("\u{2014} {origin} ")).unwrap();
        let signature = BASE64.decode(signature.as_bytes()).unwrap();
        let info = own.0.verifying_key().to_public_key_der().unwrap();
        assert_eq!(signature[..4], Sha256::digest(info.as_bytes())[..4]);
        assert_eq!(signature[4], 0x30, "DER");
        assert_eq!(lines[7..], [""]);
    }

    #[test]
    fn a_note_is_read_again_and_verified_by_its_key_alone() {
        let (own, other) = (pair(1), pair(2));
        let text = signed(&checkpoint(), &own);
        let note = Note::parse(&text).unwrap();
        assert_eq!(note.unverified(), &checkpoint());
        assert_eq!(note.verified([&other.1, &own.1]), Some(&checkpoint()));
        assert_eq!(note.verified([&other.1]), None);
        assert_eq!(note.verified([]), None);

        // A witness's line beside it changes nothing, and none alone is enough.
        let witnessed = format!("{text}\u{2014} witness.example/1 {}\n", BASE64.encode(&[1; 70]));
        assert_eq!(Note::parse(&witnessed).unwrap().verified([&own.1]), Some(&checkpoint()));
        let alone = witnessed.lines().filter(|line| !line.starts_with("\u{2014} hsm-authd"));
        let alone: String = alone.flat_map(|line| [line, "\n"]).collect();
        assert_eq!(Note::parse(&alone).unwrap().verified([&own.1]), None);

        // Signed by the right key, for another head.
        let other_head = Checkpoint { unix_s: 1, ..checkpoint() };
        let line = text.rsplit_once("\n\n").unwrap().1;
        assert_eq!(Note::parse(&format!("{other_head}\n{line}")).unwrap().verified([&own.1]), None);
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let text = signed(&checkpoint(), &pair(1));
        for (from, to) in [
            ("20852163", "020852163"),
            ("20852163", "+20852163"),
            ("20852163", ""),
            ("hsm-authd.log/ab", "hsm-authd.log/AB"),
            ("hsm-authd.log/ab", "other.log/ab"),
            ("time 2030-01-01T00:00:00Z", "time 2030-01-01T00:00:00+00:00"),
            ("time 2030-01-01T00:00:00Z", "time"),
            ("sums ", "Sums "),
            ("\n\n", "\n"),
            ("\n\n", "\nmore\n\n"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert_eq!(Note::parse(&changed), None, "{from} -> {to}");
        }
        for cut in 0..text.len() {
            if text.is_char_boundary(cut) {
                assert_eq!(Note::parse(&text[..cut]), None, "{cut}");
            }
        }
        assert_eq!(Note::parse(&format!("{text}{}", "x".repeat(NOTE_BYTES_MAX))), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(?s).{0,200}") {
            let _ = Note::parse(&text);
        }
    }
}
