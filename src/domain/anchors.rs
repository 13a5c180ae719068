//! The anchors of several tokens: which of them decide a start, and how far they cover the log together.
//!
//! Every token has an anchor of its own, and the database has to extend every one that can be asked. One that is away may
//! know of more than the others, and is heard when it is back.

use super::checkpoint::{Checkpoint, Head};
use super::log::TreeHash;

/// What a start sees of one token's anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The token is away: nobody can say.
    Away,
    /// The token is there and has none.
    Nothing,
    /// It says this; its signature is right.
    Anchor(Checkpoint),
}

/// What the tokens say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// No token that is there can say: one more is needed.
    Undecided,
    /// This token has no anchor: somebody removed it.
    Removed(usize),
    /// These decide.
    Decided(Anchors),
}

/// The anchors of the tokens that are there: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchors {
    /// The one that covers most.
    pub most: Checkpoint,
    /// Each, by its token.
    pub each: Vec<(usize, Checkpoint)>,
    /// No token is away: nothing that any of them knows of is unheard.
    pub is_whole: bool,
}

/// Judges what was seen of each token, in their order.
///
/// A token that has just joined has an anchor of no log. By itself it tells nothing while another is away that may know
/// of one: any database, also an old one or none, would be taken for the first.
pub fn judge(seen: Vec<Seen>) -> Judged {
    if let Some(token) = seen.iter().position(|seen| *seen == Seen::Nothing) {
        return Judged::Removed(token);
    }
    let is_whole = !seen.contains(&Seen::Away);
    let there = seen.into_iter().enumerate().filter_map(|(token, seen)| match seen {
        Seen::Anchor(anchor) => Some((token, anchor)),
        Seen::Away | Seen::Nothing => None,
    });
    let each: Vec<_> = there.collect();
    let covers = |anchor: &Checkpoint| {
        let Checkpoint { head, unix_s } = anchor;
        (!head.origin.is_unclaimed(), head.size, *unix_s)
    };
    match each.iter().map(|(_, anchor)| anchor).max_by_key(|anchor| covers(anchor)).cloned() {
        Some(most) if is_whole || !most.head.origin.is_unclaimed() => {
            Judged::Decided(Anchors { most, each, is_whole })
        }
        _ => Judged::Undecided,
    }
}

impl Anchors {
    /// Why a log is not one that every token knows, grown: the token, and what it holds against it. `root_at` has the root
    /// over as many of its entries as are asked for, if there are so many.
    pub fn objection(
        &self,
        log: &Head,
        root_at: impl Fn(u64) -> Option<TreeHash>,
    ) -> Option<(usize, String)> {
        let object = |(token, anchor): &(usize, Checkpoint)| {
            anchor.objection(log, root_at(anchor.head.size)).map(|reason| (*token, reason))
        };
        self.each.iter().find_map(object)
    }
}

/// How much of the log the anchor of each token covers, as far as this process knows.
#[derive(Clone, Debug)]
pub struct Coverage {
    tokens: Vec<Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// So many entries, when it was looked at last.
    entries: u64,
    /// It was read and found to be extended by the database, and its token has been there since.
    is_current: bool,
}

impl Coverage {
    /// Of so many tokens, none of which was asked.
    pub fn new(tokens: usize) -> Self {
        Self { tokens: vec![Known::default(); tokens] }
    }

    /// Its anchor covers so many entries, all of which the database has.
    pub fn know(&mut self, token: usize, entries: u64) {
        if let Some(known) = self.tokens.get_mut(token) {
            *known = Known { entries, is_current: true };
        }
    }

    /// It is away: it has to be asked again when it is back.
    pub fn lose(&mut self, token: usize) {
        if let Some(known) = self.tokens.get_mut(token) {
            known.is_current = false;
        }
    }

    /// Whether what is known of it still is so: nothing is written over an anchor that is not known.
    pub fn is_current(&self, token: usize) -> bool {
        self.tokens.get(token).is_some_and(|known| known.is_current)
    }

    /// So many entries it covered when it was looked at last.
    pub fn entries(&self, token: usize) -> u64 {
        self.tokens.get(token).map_or(0, |known| known.entries)
    }

    /// So many entries every token covers that is there; `None`: none is. One that is away is not waited for, and one that
    /// is not known yet covers nothing.
    pub fn covered(&self, is_there: impl Fn(usize) -> bool) -> Option<u64> {
        let there = self.tokens.iter().enumerate().filter(|(token, _)| is_there(*token));
        there.map(|(_, known)| if known.is_current { known.entries } else { 0 }).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::Origin;
    use super::super::row::SumDigest;
    use super::*;

    fn head(origin: u8, size: u64) -> Head {
        let root = TreeHash([size as u8; 32]);
        Head { origin: Origin::from_random([origin; 16]), size, root, sum: SumDigest::All([3; 32]) }
    }

    fn anchor(size: u64) -> Seen {
        Seen::Anchor(Checkpoint { head: head(1, size), unix_s: 1_800_000_000 })
    }

    fn unclaimed() -> Seen {
        Seen::Anchor(Checkpoint::unclaimed(1_900_000_000))
    }

    fn decided(seen: Vec<Seen>) -> Anchors {
        match judge(seen) {
            Judged::Decided(anchors) => anchors,
            other => panic!("{other:?}"),
        }
    }

    /// A log of so many entries of the log above.
    fn objection(seen: Vec<Seen>, size: u64) -> Option<(usize, String)> {
        let root_at = |of: u64| (of <= size).then_some(TreeHash([of as u8; 32]));
        decided(seen).objection(&head(1, size), root_at)
    }

    #[test]
    fn a_start_is_decided_by_all_that_are_there() {
        let both = decided(vec![anchor(5), anchor(9)]);
        assert_eq!((both.most.head.size, both.each.len(), both.is_whole), (9, 2, true));
        let one = decided(vec![Seen::Away, anchor(5)]);
        assert_eq!((one.most.head.size, one.each[0].0, one.is_whole), (5, 1, false));
        assert_eq!(judge(vec![Seen::Away, Seen::Away]), Judged::Undecided);
        assert_eq!(judge(vec![]), Judged::Undecided);
    }

    #[test]
    fn the_database_has_to_extend_each_and_the_one_that_it_does_not_is_named() {
        assert_eq!(objection(vec![anchor(5), anchor(9)], 9), None);
        assert_eq!(objection(vec![anchor(9), unclaimed()], 9), None, "one that has just joined");
        let (token, reason) = objection(vec![anchor(5), anchor(9)], 8).unwrap();
        assert_eq!(token, 1);
        assert!(reason.contains("has 8 entries, and the token knows of 9"), "{reason}");
        // Less than what the others know of, and another history.
        let fork = Checkpoint { head: Head { root: TreeHash([99; 32]), ..head(1, 4) }, unix_s: 1 };
        assert_eq!(objection(vec![anchor(9), Seen::Anchor(fork)], 9).unwrap().0, 1);
        let other = Checkpoint { head: head(2, 4), unix_s: 1 };
        assert_eq!(objection(vec![anchor(9), Seen::Anchor(other)], 9).unwrap().0, 1);
    }

    #[test]
    fn one_without_an_anchor_is_named_whatever_the_others_say() {
        assert_eq!(judge(vec![anchor(5), Seen::Nothing]), Judged::Removed(1));
        assert_eq!(judge(vec![Seen::Nothing, Seen::Away]), Judged::Removed(0));
    }

    #[test]
    fn one_that_has_just_joined_decides_nothing_while_another_is_away() {
        assert_eq!(judge(vec![Seen::Away, unclaimed()]), Judged::Undecided);
        assert_eq!(judge(vec![unclaimed(), Seen::Away, unclaimed()]), Judged::Undecided);
        let first = decided(vec![unclaimed(), unclaimed()]);
        assert!(first.is_whole && first.most.head.origin.is_unclaimed());
        // Later, and of no log: it is not the one that covers most.
        let joined = decided(vec![anchor(0), unclaimed()]);
        assert!(!joined.most.head.origin.is_unclaimed());
        assert_eq!(decided(vec![unclaimed(), anchor(5), Seen::Away]).most.head.size, 5);
        assert!(decided(vec![unclaimed()]).is_whole, "a single token's first start");
    }

    #[test]
    fn so_much_is_covered_as_the_least_of_those_that_are_there() {
        let mut coverage = Coverage::new(3);
        assert_eq!(coverage.covered(|_| false), None);
        assert_eq!(coverage.covered(|_| true), Some(0));
        for (token, entries) in [(0, 9), (1, 7), (2, 8)] {
            coverage.know(token, entries);
        }
        assert_eq!(coverage.covered(|_| true), Some(7));
        assert_eq!(coverage.covered(|token| token != 1), Some(8), "one that is away is not waited for");
        assert_eq!(coverage.covered(|_| false), None);
        coverage.lose(1);
        assert!(!coverage.is_current(1));
        assert_eq!(coverage.covered(|_| true), Some(0), "it is back, and was not read");
        assert_eq!(coverage.entries(1), 7);
        coverage.know(1, 9);
        assert_eq!(coverage.covered(|_| true), Some(8));
        coverage.know(7, 1);
        assert!(!coverage.is_current(7));
    }
}
