//! The anchor: what the token itself knows of the log, so that a database that was turned back shows.
//!
//! It is the note of a checkpoint, in a private data object. A new one is made before the old one is destroyed: whatever
//! a crash leaves, the one of most entries counts.

use super::keys::{Keys, PublishedKey, SigningKey};
use super::operations::of_request;
use super::pkcs11::{Object, Pkcs11Error, Session};
use crate::domain::checkpoint::{Checkpoint, Note};
use crate::domain::signer::PublicKey;
use crate::hsm::messages::Fault;

const LABEL: &str = "hsm-authd/anchor";

/// How often the objects are looked for again, if one is gone before it is read: its custodian has just replaced it.
const LOOKS: usize = 3;

impl SigningKey {
    /// The note of a checkpoint, signed.
    ///
    /// # Errors
    /// It is that of a token's first anchor, which only a setup makes; or the HSM failed.
    pub fn checkpoint(&self, session: &Session, checkpoint: &Checkpoint) -> Result<String, Fault> {
        match checkpoint.head.origin.is_unclaimed() {
            true => Err(Fault::Request("a checkpoint of no log".to_owned())),
            false => note(self.public(), &self.sign(session, &checkpoint.digest())?, checkpoint),
        }
    }
}

fn note(public: &PublicKey, signature: &[u8; 64], checkpoint: &Checkpoint) -> Result<String, Fault> {
    checkpoint.note(public, signature).ok_or_else(|| Fault::hsm("C_Sign: no signature of a P-256 key"))
}

/// What there is by that label, signed or not.
pub struct Standing {
    object: Object,
    value: Vec<u8>,
}

impl Standing {
    fn verified(&self, keys: &Keys) -> Option<(String, Checkpoint)> {
        let text = String::from_utf8(self.value.clone()).ok()?;
        verified(keys, &text).map(|checkpoint| (text, checkpoint))
    }

    /// Whether it is a note that none of these keys signed.
    pub fn is_of_unknown(&self, keys: &Keys) -> bool {
        let is_note = || std::str::from_utf8(&self.value).is_ok_and(|text| Note::parse(text).is_some());
        self.verified(keys).is_none() && is_note()
    }
}

fn verified(keys: &Keys, text: &str) -> Option<Checkpoint> {
    let note = Note::parse(text)?;
    keys.noted(note.verified(keys.audit().map(PublishedKey::public))).cloned()
}

/// The anchor of a token. It remembers what it wrote, so that the next writing searches for nothing.
#[derive(Default)]
pub struct Anchor {
    written: Option<(Object, String)>,
}

impl Anchor {
    /// The note that counts.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn read(&self, session: &Session, keys: &Keys) -> Result<Option<String>, Fault> {
        let standing = look(session)?;
        let verified = standing.iter().filter_map(|anchor| anchor.verified(keys));
        Ok(verified.max_by_key(|(_, checkpoint)| counts(checkpoint)).map(|(text, _)| text))
    }

    /// Makes `note` the anchor, and the only one of what is `standing`. If it is that already, nothing happens.
    ///
    /// # Errors
    /// It is not signed by us or does not extend what is there; nothing is changed then. Or the HSM failed.
    pub fn write(
        &mut self,
        session: &Session,
        keys: &Keys,
        standing: Vec<Standing>,
        (note, replace): (String, bool),
    ) -> Result<(), Fault> {
        let Some(new) = verified(keys, &note) else {
            return Err(Fault::Request("an anchor that none of our audit keys signed".to_owned()));
        };
        let highest = standing.iter().filter_map(|anchor| anchor.verified(keys));
        let highest = highest.map(|(_, checkpoint)| checkpoint).max_by_key(counts);
        if let Some(there) = highest.filter(|there| !replace && !extends(&new, there)) {
            return Err(Fault::Request(format!(
                "an anchor of {} entries of {} that does not extend that of {} entries of {}",
                new.head.size, new.head.origin, there.head.size, there.head.origin
            )));
        }
        let (same, mut old): (Vec<_>, Vec<_>) =
            standing.into_iter().partition(|anchor| anchor.value == note.as_bytes());
        let mut same = same.into_iter();
        let object = match same.next() {
            Some(anchor) => anchor.object,
            None => session.create_data(LABEL, note.as_bytes()).map_err(of_request)?,
        };
        old.extend(same);
        old.into_iter().try_for_each(|anchor| session.destroy_labelled(anchor.object, LABEL))?;
        self.written = Some((object, note));
        Ok(())
    }

    /// What is there; if it is what was written last, without a search.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn standing(&mut self, session: &Session) -> Result<Vec<Standing>, Fault> {
        if let Some((object, note)) = self.written.take()
            && let Ok(value) = session.data_value(object)
            && value == note.as_bytes()
        {
            return Ok(vec![Standing { object, value }]);
        }
        Ok(look(session)?)
    }
}

/// The first anchor of a token, whatever stands there: it says that there is no log yet. It belongs to the making of
/// the `audit` key that signs it.
///
/// # Errors
/// The HSM failed.
pub fn make_first(session: &Session, private: Object, public: &PublicKey, unix_s: u64) -> Result<(), Fault> {
    let old = look(session)?;
    let first = Checkpoint::unclaimed(unix_s);
    let note = note(public, &session.sign_digest(private, public, &first.digest())?, &first)?;
    session.create_data(LABEL, note.as_bytes())?;
    Ok(old.into_iter().try_for_each(|anchor| session.destroy_labelled(anchor.object, LABEL))?)
}

/// Of two, the one of more entries; of as many, the later one.
fn counts(checkpoint: &Checkpoint) -> (u64, u64) {
    (checkpoint.head.size, checkpoint.unix_s)
}

/// As far as heads tell: whether the new one is that of the same log, and not of its past.
fn extends(new: &Checkpoint, there: &Checkpoint) -> bool {
    let (new, there) = (&new.head, &there.head);
    let is_same_log = there.origin.is_unclaimed() || new.origin == there.origin;
    is_same_log && new.size >= there.size && (new.size != there.size || new.root == there.root)
}

fn look(session: &Session) -> Result<Vec<Standing>, Pkcs11Error> {
    let mut looks = 1;
    loop {
        let read = |object| Ok(Standing { object, value: session.data_value(object)? });
        match session.data_objects(LABEL)?.into_iter().map(read).collect() {
            Err(_) if looks < LOOKS => looks += 1,
            seen => return seen,
        }
    }
}
