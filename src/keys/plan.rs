//! What several tokens lack to be one set, from what each of them has. Nothing here asks anybody.

use std::collections::{BTreeMap, BTreeSet};

use crate::custodian::shared_keys::{HeldKey, Standing};
use crate::domain::signer::PublicKey;
use crate::domain::system_key::KeyKind;
use crate::hsm::messages::KeyCheck;

/// The kinds of which every token has the same key.
pub const SHARED: [KeyKind; 3] = [KeyKind::Kek, KeyKind::Row, KeyKind::Data];
/// The kinds of which each token has pairs of its own, of the same versions.
const OWN: [KeyKind; 4] = [KeyKind::Attest, KeyKind::Audit, KeyKind::Import, KeyKind::Tls];

/// What to do with a key that stands under its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Others use it already: it has this check value.
    Finish(KeyCheck),
    /// Nobody has ever used it.
    Discard,
}

/// Two tokens, by their places, that have different keys of one name.
pub fn difference(all: &[Standing]) -> Option<(KeyKind, u16, [usize; 2])> {
    let mut known: BTreeMap<(KeyKind, u16), (usize, Option<KeyCheck>)> = BTreeMap::new();
    for (place, standing) in all.iter().enumerate() {
        for key in shared(standing) {
            let name = (key.kind, key.version);
            let (first, check) = *known.entry(name).or_insert((place, key.check));
            if check != key.check {
                return Some((key.kind, key.version, [first, place]));
            }
        }
    }
    None
}

/// What is to become of what an interruption left, and in which token: the first token's last, so that what it uses all
/// others can use.
pub fn settlements(all: &[Standing]) -> Vec<(usize, KeyKind, u16, Settlement)> {
    let is_used = |marked: &HeldKey| {
        let is_same =
            |key: &HeldKey| (key.kind, key.version, key.check) == (marked.kind, marked.version, marked.check);
        all.iter().flat_map(shared).any(is_same)
    };
    let mut settlements = Vec::new();
    for (place, standing) in all.iter().enumerate().rev() {
        for marked in standing.keys.iter().filter(|key| !key.finished) {
            let settlement = match marked.check {
                Some(check) if is_used(marked) => Settlement::Finish(check),
                // A pair is its token's own, and another one is as good.
                _ => Settlement::Discard,
            };
            settlements.push((place, marked.kind, marked.version, settlement));
        }
    }
    settlements
}

fn shared(standing: &Standing) -> impl Iterator<Item = &HeldKey> {
    standing.keys.iter().filter(|key| key.finished && SHARED.contains(&key.kind))
}

fn newest_in(standing: &Standing, kind: KeyKind) -> Option<u16> {
    let of_kind = standing.keys.iter().filter(|key| key.finished && key.kind == kind);
    of_kind.map(|key| key.version).max()
}

/// The newest finished version of a kind in any token.
pub fn newest(all: &[Standing], kind: KeyKind) -> Option<u16> {
    all.iter().filter_map(|standing| newest_in(standing, kind)).max()
}

/// Whether a token has a key of each kind without which none is used.
pub fn is_set_up(standing: &Standing) -> bool {
    let needed = OWN.iter().chain(&SHARED).filter(|kind| !kind.is_optional());
    needed.into_iter().all(|kind| newest_in(standing, *kind).is_some())
}

/// Which tokens lack a pair of the newest version of its kind. Of an optional kind, if it is `wanted` or any token has one.
pub fn lacking_pairs(all: &[Standing], wanted: bool) -> Vec<(usize, KeyKind, u16)> {
    let is_to_be = |kind: &KeyKind| !kind.is_optional() || wanted || newest(all, *kind).is_some();
    let of_kind = |kind| {
        let version = newest(all, kind).unwrap_or(1);
        let lacks = move |(_, standing): &(usize, &Standing)| newest_in(standing, kind) != Some(version);
        all.iter().enumerate().filter(lacks).map(move |(place, _)| (place, kind, version))
    };
    OWN.into_iter().filter(is_to_be).flat_map(of_kind).collect()
}

/// Which keys are to be born because not all tokens have the newest of their kind; `None`: there is no version after the
/// last.
pub fn births(all: &[Standing]) -> Option<Vec<(KeyKind, u16)>> {
    let lacks = |kind: &KeyKind| {
        let newest = newest(all, *kind);
        newest.is_none() || all.iter().any(|standing| newest_in(standing, *kind) != newest)
    };
    SHARED.into_iter().filter(lacks).map(|kind| Some((kind, next(all, kind)?))).collect()
}

/// The version of a kind that no token has or had. Never the first of a secret, which is never marked.
pub fn next(all: &[Standing], kind: KeyKind) -> Option<u16> {
    let held = all.iter().flat_map(|standing| &standing.keys).map(|key| (key.kind, key.version));
    let retired = all.iter().flat_map(|standing| standing.retired.iter().copied());
    let of_kind = held.chain(retired).filter(|(of, _)| *of == kind).map(|(_, version)| version);
    of_kind.chain(SHARED.contains(&kind).then_some(1)).max().unwrap_or(0).checked_add(1)
}

/// What a token is to be told of what the others sign with, or once did.
pub fn strangers(all: &[Standing], place: usize) -> Vec<(KeyKind, PublicKey)> {
    let Some(own) = all.get(place) else { return Vec::new() };
    let mut strangers = Vec::new();
    for stranger in all.iter().flat_map(|standing| standing.published.iter().chain(&standing.peers)) {
        let is_known =
            [&own.published, &own.peers, &strangers].into_iter().any(|known| known.contains(stranger));
        if !is_known {
            strangers.push(stranger.clone());
        }
    }
    strangers
}

/// Of each token the versions of shared keys that another one has and it has not.
pub fn lacking(all: &[BTreeSet<(KeyKind, u16)>]) -> Vec<Vec<(KeyKind, u16)>> {
    let any: BTreeSet<_> = all.iter().flatten().filter(|(kind, _)| SHARED.contains(kind)).copied().collect();
    all.iter().map(|own| any.difference(own).copied().collect()).collect()
}

/// The finished keys of a token.
pub fn finished(standing: &Standing) -> BTreeSet<(KeyKind, u16)> {
    standing.keys.iter().filter(|key| key.finished).map(|key| (key.kind, key.version)).collect()
}

#[cfg(test)]
mod tests {
    use super::KeyKind::{Attest, Audit, Data, Import, Kek, Row, Tls};
    use super::*;

    fn key(kind: KeyKind, version: u16, finished: bool, check: u8) -> HeldKey {
        HeldKey { kind, version, finished, check: Some([check; 16]) }
    }

    fn of(keys: &[HeldKey]) -> Standing {
        Standing { keys: keys.to_vec(), ..Standing::default() }
    }

    #[test]
    fn a_new_set_begins_with_pairs_of_the_first_version_and_secrets_of_the_second() {
        let all = [Standing::default(), Standing::default()];
        assert_eq!(births(&all).unwrap(), [(Kek, 2), (Row, 2), (Data, 2)]);
        let pairs = lacking_pairs(&all, false);
        assert_eq!(pairs.len(), 6);
        assert!(pairs.iter().all(|(_, _, version)| *version == 1));
        assert!(!pairs.iter().any(|(_, kind, _)| *kind == Tls), "the server's key is in a file");
        let pairs = lacking_pairs(&all, true);
        assert_eq!(pairs[6..], [(0, Tls, 1), (1, Tls, 1)]);
    }

    #[test]
    fn a_key_that_need_not_be_there_is_made_for_who_wants_it_and_where_others_have_it() {
        let needed = [Kek, Row, Data, Attest, Audit, Import].map(|kind| key(kind, 1, true, 1));
        let without = of(&needed);
        assert!(is_set_up(&without) && !is_set_up(&of(&needed[1..])));
        assert_eq!(lacking_pairs(&[without.clone(), without.clone()], false), []);
        let with = of(&[&needed[..], &[key(Tls, 3, true, 1)]].concat());
        assert_eq!(lacking_pairs(&[with.clone(), without.clone()], false), [(1, Tls, 3)]);
        assert_eq!(next(&[without.clone(), without.clone()], Tls), Some(1), "the first");
        assert_eq!(next(&[without, with], Tls), Some(4));
    }

    #[test]
    fn who_joins_gets_pairs_of_the_newest_version_and_all_get_secrets_of_the_next() {
        let there = [(Kek, 3), (Row, 1), (Data, 1), (Attest, 1), (Audit, 4), (Import, 1)];
        let all = [of(&there.map(|(kind, version)| key(kind, version, true, 1))), Standing::default()];
        assert_eq!(lacking_pairs(&all, false), [(1, Attest, 1), (1, Audit, 4), (1, Import, 1)]);
        assert_eq!(births(&all).unwrap(), [(Kek, 4), (Row, 2), (Data, 2)]);
        // Once all have the newest, what one lacks of the older ones makes no newer one.
        let joined: Vec<_> =
            [(Kek, 4), (Row, 2), (Data, 2)].map(|(kind, version)| key(kind, version, true, 2)).into();
        let all = [of(&[all[0].keys.clone(), joined.clone()].concat()), of(&joined)];
        assert_eq!(births(&all).unwrap(), []);
        assert_eq!(lacking(&all.each_ref().map(finished)), [vec![], vec![(Kek, 3), (Row, 1), (Data, 1)]]);
        assert_eq!(difference(&all), None);
        assert_eq!(births(&[of(&[key(Kek, u16::MAX, true, 1)]), Standing::default()]), None);
    }

    #[test]
    fn what_one_uses_is_finished_in_the_others_and_what_none_uses_goes() {
        let all = [of(&[key(Kek, 2, false, 7)]), of(&[key(Kek, 2, true, 7)])];
        assert_eq!(settlements(&all), [(0, Kek, 2, Settlement::Finish([7; 16]))]);
        // The first token's comes last.
        let all = [of(&[key(Kek, 2, false, 7)]), of(&[key(Kek, 2, false, 7)])];
        let discard = Settlement::Discard;
        assert_eq!(settlements(&all), [(1, Kek, 2, discard), (0, Kek, 2, discard)]);
        // Another key of that name, or no whole one, is not what the others use.
        let all = [of(&[key(Kek, 2, false, 8)]), of(&[key(Kek, 2, true, 7)])];
        assert_eq!(settlements(&all), [(0, Kek, 2, discard)]);
        let half = HeldKey { check: None, ..key(Kek, 2, false, 7) };
        assert_eq!(settlements(&[of(&[half]), all[1].clone()]), [(0, Kek, 2, discard)]);
        // A pair is nobody else's.
        let all = [of(&[key(Attest, 2, false, 7)]), of(&[key(Attest, 2, true, 7)])];
        assert_eq!(settlements(&all), [(0, Attest, 2, discard)]);
    }

    #[test]
    fn another_key_of_one_name_is_told_and_other_pairs_are_not() {
        let all = [of(&[key(Row, 2, true, 1), key(Attest, 1, true, 1)]), of(&[key(Row, 2, true, 2)])];
        assert_eq!(difference(&all), Some((Row, 2, [0, 1])));
        let all = [of(&[key(Attest, 1, true, 1)]), of(&[key(Attest, 1, true, 2)])];
        assert_eq!(difference(&all), None);
        let all = [of(&[key(Row, 2, true, 1)]), of(&[key(Row, 2, false, 2)])];
        assert_eq!(difference(&all), None, "what is marked is no key yet");
    }

    #[test]
    fn a_version_that_was_retired_anywhere_is_not_made_again() {
        let mut one = of(&[key(Audit, 2, true, 1)]);
        one.retired = vec![(Audit, 5)];
        assert_eq!(next(&[Standing::default(), one], Audit), Some(6));
        assert_eq!(next(&[Standing::default()], Row), Some(2));
    }

    #[test]
    fn everybody_is_told_of_everybody_else_once() {
        // Any keys do: nobody looks into them.
        let [ours, theirs] = ["rsa2048", "rsa4096"].map(crate::domain::signer::tests::key_named);
        let gone = ours.clone();
        let one = Standing {
            published: vec![(Attest, ours.clone())],
            peers: vec![(Audit, gone.clone())],
            ..Standing::default()
        };
        let other = Standing { published: vec![(Attest, theirs.clone())], ..Standing::default() };
        let third = Standing { peers: vec![(Attest, theirs.clone())], ..Standing::default() };
        let all = [one, other, third];
        assert_eq!(strangers(&all, 0), [(Attest, theirs)]);
        assert_eq!(strangers(&all, 1), [(Attest, ours), (Audit, gone)]);
        assert_eq!(strangers(&all, 2).len(), 2);
        assert_eq!(strangers(&all, 3), []);
    }
}
