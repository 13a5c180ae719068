//! The anchor in the token, as custodians read and write it.

use hsm_authd::custodian::EXIT_START_FAILED;
use hsm_authd::domain::checkpoint::{Checkpoint, Head, Note, Origin};
use hsm_authd::domain::log::TreeHash;
use hsm_authd::domain::row::SumDigest;
use hsm_authd::domain::signer::PublicKey;
use hsm_authd::hsm::messages::{Fault, Request, Response};

use crate::custodian::request_fault;
use crate::intruder::intrude;
use crate::modules::{Feature, passed_over};
use crate::token::{Custodian, TestToken};

pub fn head(origin: u8, size: u64, root: u8) -> Checkpoint {
    let origin = Origin::from_random([origin; 16]);
    let head = Head { origin, size, root: TreeHash([root; 32]), sum: SumDigest::All([3; 32]) };
    Checkpoint { head, unix_s: 1_800_000_000 }
}

impl Custodian {
    fn audit_keys(&mut self) -> Vec<PublicKey> {
        match self.call(Request::AuditKeys) {
            Ok(Response::AuditKeys(keys)) => keys,
            _ => panic!("another response"),
        }
    }

    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) -> String {
        match self.call(Request::SignCheckpoint(checkpoint.clone())) {
            Ok(Response::Checkpoint(note)) => note,
            _ => panic!("another response"),
        }
    }

    pub fn anchor(&mut self) -> Option<String> {
        match self.call(Request::ReadAnchor) {
            Ok(Response::Anchor(note)) => note,
            _ => panic!("another response"),
        }
    }

    pub fn write(&mut self, note: &str, replace: bool) -> Result<(), Fault> {
        match self.call(Request::WriteAnchor { note: note.to_owned(), replace })? {
            Response::AnchorWritten => Ok(()),
            _ => panic!("another response"),
        }
    }

    fn put(&mut self, checkpoint: &Checkpoint) -> String {
        let note = self.checkpoint(checkpoint);
        self.write(&note, false).unwrap();
        note
    }
}

#[test]
fn a_token_has_one_anchor_from_the_first_and_its_notes_verify() {
    let token = TestToken::made();
    intrude(&token, "anchors 1");
    let mut custodian = token.custodian();
    let keys = custodian.audit_keys();
    let first = custodian.anchor().unwrap();
    let note = Note::parse(&first).unwrap();
    let checkpoint = note.verified(&keys).unwrap();
    assert_eq!(*checkpoint, Checkpoint::unclaimed(checkpoint.unix_s));
    assert_eq!(first.lines().next(), Some("hsm-authd.log/new"));

    let signed = custodian.checkpoint(&head(1, 5, 5));
    assert_eq!(Note::parse(&signed).unwrap().verified(&keys), Some(&head(1, 5, 5)));
    let of_none = custodian.call(Request::SignCheckpoint(Checkpoint::unclaimed(1)));
    assert!(request_fault(of_none).contains("no log"));
}

#[test]
fn an_anchor_is_replaced_by_one_that_extends_it_and_no_other() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    custodian.put(&head(1, 5, 5));
    let five = custodian.put(&Checkpoint { unix_s: 1_800_000_001, ..head(1, 5, 5) });
    assert_eq!(custodian.anchor().as_ref(), Some(&five), "as many entries, later");
    for refused in [head(1, 4, 4), head(1, 5, 6), head(2, 5, 5), head(2, 9, 9)] {
        let note = custodian.checkpoint(&refused);
        assert!(request_fault(custodian.write(&note, false)).contains("does not extend"), "{refused:?}");
        // Nor by a custodian that has to look for what is there.
        assert!(request_fault(token.custodian().write(&note, false)).contains("does not extend"));
        assert_eq!(custodian.anchor().as_ref(), Some(&five));
    }
    let of_other = Custodian::checkpoint(&mut TestToken::made().custodian(), &head(1, 9, 9));
    for note in [of_other.as_str(), "", "hsm-authd.log/new\n", &five[1..]] {
        assert!(request_fault(custodian.write(note, true)).contains("none of our audit keys"));
    }
    assert_eq!(custodian.anchor().as_ref(), Some(&five));

    // Only who says so goes back, or to another log.
    let back = custodian.checkpoint(&head(2, 2, 2));
    custodian.write(&back, true).unwrap();
    assert_eq!(custodian.anchor(), Some(back));
    drop(custodian);
    intrude(&token, "anchors 1");
}

#[test]
fn writing_what_is_there_changes_nothing_and_leaves_no_second() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let note = custodian.put(&head(1, 7, 7));
    custodian.write(&note, false).unwrap();
    // As when the custodian was lost after it had written.
    token.custodian().write(&note, false).unwrap();
    let longer = token.custodian().put(&head(1, 8, 8));
    // What it remembers is gone; it looks again.
    assert!(request_fault(custodian.write(&note, false)).contains("does not extend"));
    custodian.write(&longer, false).unwrap();
    assert_eq!(custodian.put(&head(1, 9, 9)), custodian.anchor().unwrap());
    drop(custodian);
    intrude(&token, "anchors 1");
}

/// A crash between the making of the new one and the end of the old one.
#[test]
fn of_two_the_longer_counts_and_the_next_writing_leaves_one() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    let long = custodian.put(&head(1, 20, 20));
    for other in [custodian.checkpoint(&head(1, 19, 19)), "no note".to_owned(), String::new()] {
        intrude(&token, &format!("anchor {other}"));
    }
    // Public ones need no PIN.
    let public = usize::from(!passed_over(Feature::PublicObjects));
    intrude(&token, "without the PIN: hsm-authd/anchor");
    intrude(&token, &format!("anchors {}", 4 + public));
    let mut custodian = token.custodian();
    assert_eq!(custodian.anchor(), Some(long));
    let longer = custodian.put(&head(1, 21, 21));
    assert_eq!(token.custodian().anchor(), Some(longer));
    drop(custodian);
    intrude(&token, &format!("anchors {}", 1 + public));
}

#[test]
fn an_anchor_that_is_gone_is_not_made_again_by_a_setup() {
    let token = TestToken::new();
    intrude(&token, "remove hsm-authd/anchor");
    assert!(token.set_up(false).status.success());
    intrude(&token, "anchors 0");
    assert_eq!(token.custodian().anchor(), None);
}

/// The pair and the anchor are made as one.
#[test]
fn an_audit_key_that_is_made_anew_has_an_anchor_of_its_own() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    custodian.put(&head(1, 5, 5));
    drop(custodian);
    intrude(&token, "half hsm-authd/unfinished/audit/v1");
    assert_eq!(token.refused(&token.boot).0, i32::from(EXIT_START_FAILED));
    assert!(token.set_up(false).status.success());
    intrude(&token, "anchors 1");
    let mut custodian = token.custodian();
    let keys = custodian.audit_keys();
    let note = Note::parse(&custodian.anchor().unwrap()).unwrap();
    assert!(note.verified(&keys).unwrap().head.origin.is_unclaimed());
}

/// A custodian that started before a key was made finds it when it meets what the key signed.
#[test]
fn what_a_newer_key_signed_is_no_strangers() {
    let token = TestToken::made();
    let mut old = token.custodian();
    intrude(&token, "right hsm-authd/audit/v2");
    let mut new = token.custodian();
    let first = new.checkpoint(&head(1, 5, 5));
    assert_eq!(old.write(&first, false), Ok(()));

    // One that stands there already counts for who does not know its key yet.
    let mut old = token.custodian();
    intrude(&token, "right hsm-authd/audit/v3");
    let mut new = token.custodian();
    let (smaller, larger) = (old.checkpoint(&head(1, 6, 6)), new.put(&head(1, 7, 7)));
    assert!(request_fault(old.write(&smaller, false)).contains("does not extend"));
    assert_eq!(old.anchor(), Some(larger));
}
