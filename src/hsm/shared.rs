//! The keys that tokens share, as their custodians tell of them: tokens of one set have the same ones, and all of them.

use std::collections::BTreeMap;

use super::messages::KeyCheck;
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::metrics::Away;

/// What the kinds are whose versions each token has.
const SHARED: [KeyKind; 3] = [KeyKind::Kek, KeyKind::Row, KeyKind::Data];

/// What the custodians told that came into service, by token: the last one's of each.
#[derive(Default)]
pub(super) struct SharedKeys(BTreeMap<usize, BTreeMap<(KeyKind, u16), KeyCheck>>);

/// Why a token's custodian is of no use beside the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It has another key of this name.
    Differs { token: usize, other: usize, kind: KeyKind, version: u16 },
    /// It does not have what others have.
    Lacks { token: usize, other: Option<usize>, keys: Vec<(KeyKind, u16)> },
}

impl SharedKeys {
    /// Whether any token came into service.
    pub fn knows_any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Holds what a custodian of `token` tells against what those of other tokens told, and remembers it if it fits. Keys
    /// have to be the same wherever they are; whoever is to be used has all that the tokens have that are `up`, and the
    /// `newest` ones that anybody told of.
    pub fn compare(
        &mut self,
        token: usize,
        (told, its_newest): (&[(KeyKind, u16, KeyCheck)], &NewestKeys),
        (up, newest): (&[bool], &NewestKeys),
    ) -> Option<Misfit> {
        let told: BTreeMap<_, _> =
            told.iter().map(|(kind, version, check)| ((*kind, *version), *check)).collect();
        // Of its own token as well: another one may have come in its place.
        for (other, known) in &self.0 {
            let differs = |(name, check): &(&(KeyKind, u16), &KeyCheck)| {
                known.get(*name).is_some_and(|known| known != *check)
            };
            if let Some(((kind, version), _)) = told.iter().find(differs) {
                return Some(Misfit::Differs { token, other: *other, kind: *kind, version: *version });
            }
        }
        let is_up = |other: &usize| *other != token && up.get(*other) == Some(&true);
        for (other, known) in self.0.iter().filter(|(other, _)| is_up(other)) {
            let keys: Vec<_> = known.keys().filter(|name| !told.contains_key(name)).copied().collect();
            if !keys.is_empty() {
                return Some(Misfit::Lacks { token, other: Some(*other), keys });
            }
        }
        // The others may have been told of keys that are newer than they are themselves.
        if up.len() > 1 {
            let missing = SHARED.into_iter().filter(|kind| its_newest.of(*kind) < newest.of(*kind));
            let keys: Vec<_> = missing.map(|kind| (kind, newest.of(kind))).collect();
            if !keys.is_empty() {
                return Some(Misfit::Lacks { token, other: None, keys });
            }
        }
        self.0.insert(token, told);
        None
    }
}

impl Misfit {
    pub fn cause(&self) -> Away {
        match self {
            Self::Differs { .. } => Away::OtherKeys,
            Self::Lacks { .. } => Away::LacksKeys,
        }
    }

    /// For the operator.
    pub fn line(&self, name: impl Fn(usize) -> String) -> String {
        let key = |kind: KeyKind, version| format!("hsm-authd/{}/v{version}", kind.name());
        match self {
            Self::Differs { token, other, kind, version } if token == other => format!(
                "token {}: its key {} is another one than before: it is not the token that was there",
                name(*token),
                key(*kind, *version)
            ),
            Self::Differs { token, other, kind, version } => format!(
                "token {token}: its key {} is another one than token {other}'s: they are of two sets, and it is not used",
                key(*kind, *version),
                token = name(*token),
                other = name(*other)
            ),
            Self::Lacks { token, other, keys } => {
                let keys: Vec<_> = keys.iter().map(|(kind, version)| key(*kind, *version)).collect();
                let other = other.map_or_else(
                    || "the others have".to_owned(),
                    |other| format!("token {} has", name(other)),
                );
                format!("token {} lacks {}, which {other}, and is not used", name(*token), keys.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Vec<(KeyKind, u16, KeyCheck)>;

    fn keys(kek: &[(u16, u8)]) -> Told {
        kek.iter().map(|(version, check)| (KeyKind::Kek, *version, [*check; 16])).collect()
    }

    /// Of tokens that are both up, where nobody told of newer keys.
    fn compare(known: &mut SharedKeys, token: usize, told: &Told) -> Option<Misfit> {
        let none = NewestKeys::default();
        known.compare(token, (told, &none), (&[true, true], &none))
    }

    #[test]
    fn whoever_comes_first_is_right_and_who_has_other_keys_is_not_remembered() {
        let mut known = SharedKeys::default();
        assert_eq!(compare(&mut known, 1, &keys(&[(2, 7)])), None);
        let differs = Misfit::Differs { token: 0, other: 1, kind: KeyKind::Kek, version: 2 };
        assert_eq!(compare(&mut known, 0, &keys(&[(1, 1), (2, 8)])).as_ref(), Some(&differs));
        assert_eq!(compare(&mut known, 1, &keys(&[(2, 7)])), None, "it is told of again");
        let line = differs.line(|token| format!("t{token}"));
        assert!(line.contains("token t0: its key hsm-authd/kek/v2 is another one than token t1's"), "{line}");
        let itself = compare(&mut known, 1, &keys(&[(2, 9)])).unwrap();
        assert_eq!(itself, Misfit::Differs { token: 1, other: 1, kind: KeyKind::Kek, version: 2 });
        assert_eq!(itself.cause(), Away::OtherKeys);
    }

    #[test]
    fn who_lacks_what_another_one_has_is_not_used_as_long_as_that_one_is_up() {
        let mut known = SharedKeys::default();
        assert_eq!(compare(&mut known, 0, &keys(&[(1, 1), (2, 2)])), None);
        let lacks = compare(&mut known, 1, &keys(&[(2, 2)])).unwrap();
        assert_eq!(lacks, Misfit::Lacks { token: 1, other: Some(0), keys: vec![(KeyKind::Kek, 1)] });
        let line = lacks.line(|token| format!("t{token}"));
        assert!(line.contains("token t1 lacks hsm-authd/kek/v1, which token t0 has"), "{line}");
        assert_eq!(lacks.cause(), Away::LacksKeys);
        // Version 1 is retired.
        assert_eq!(compare(&mut known, 0, &keys(&[(2, 2)])), None);
        assert_eq!(compare(&mut known, 1, &keys(&[(2, 2)])), None);
        // A key that is new is first in one of them.
        assert_eq!(compare(&mut known, 1, &keys(&[(2, 2), (3, 3)])), None);
        assert!(compare(&mut known, 0, &keys(&[(2, 2)])).is_some());
        let (told, none) = (keys(&[(2, 2)]), NewestKeys::default());
        assert_eq!(known.compare(0, (&told, &none), (&[false, false], &none)), None, "nobody else is there");
    }

    #[test]
    fn who_lacks_what_others_were_told_of_since_is_not_used_beside_them() {
        let newest = NewestKeys::new([(KeyKind::Row, 3), (KeyKind::Audit, 9)]);
        let old = NewestKeys::new([(KeyKind::Row, 2)]);
        let mut known = SharedKeys::default();
        let lacks = known.compare(1, (&[], &old), (&[true, false], &newest)).unwrap();
        assert_eq!(lacks, Misfit::Lacks { token: 1, other: None, keys: vec![(KeyKind::Row, 3)] });
        assert_eq!(known.compare(1, (&[], &newest), (&[true, false], &newest)), None);
        // Alone, it is told to look for it.
        assert_eq!(known.compare(0, (&[], &old), (&[false], &newest)), None);
    }
}
