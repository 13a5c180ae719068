//! Keys that are made in several tokens at once. Each is made under its mark in every token before any token lets it be
//! used: whatever an interruption leaves, the next run removes it or, if a token uses it already, completes it. The caller
//! holds the lock of the keys.

use super::plan::{self, SHARED, Settlement};
use super::tokens::Tokens;
use super::{WRONG_ANSWER, say};
use crate::Ending;
use crate::custodian::shared_keys::{HeldKey, SharedDone, SharedTask, Standing};
use crate::domain::system_key::KeyKind;

/// Completes or removes what was interrupted, and says so; what there is then.
///
/// # Errors
/// As for [`Ending`]: a token is away, or has another key than the others; nothing is changed then.
pub fn settle(tokens: &Tokens) -> Result<Vec<Standing>, Option<String>> {
    let all = tokens.look()?;
    if let Some((kind, version, [one, other])) = plan::difference(&all) {
        return Err(Some(format!(
            "token {} has another key hsm-authd/{kind}/v{version} than token {}: they are of two sets, and nothing was \
             changed; name only tokens of one set, or new ones",
            tokens.name(other),
            tokens.name(one)
        )));
    }
    let settlements = plan::settlements(&all);
    if settlements.is_empty() {
        return Ok(all);
    }
    for (place, kind, version, settlement) in settlements {
        let (task, what) = match settlement {
            Settlement::Finish(check) => (SharedTask::Finish(kind, version, check), "finished"),
            Settlement::Discard => (SharedTask::Discard(kind, version), "unfinished, removed"),
        };
        tokens.step(place, task)?;
        say(format!("token {}: key hsm-authd/{kind}/v{version}: {what}", tokens.name(place)))?;
    }
    tokens.look()
}

/// Shared keys that were made.
type Born = Vec<(KeyKind, u16)>;

/// Makes what the tokens lack to be one set, with `tls` keys if it `serves_tls`; the shared keys that were born. `before_births`
/// is called before the first
/// of those is made, if there is one, and lasts as long as its result.
///
/// # Errors
/// As for [`Ending`].
pub fn complete<T>(
    tokens: &Tokens,
    serves_tls: bool,
    before_births: impl FnOnce() -> Result<T, Option<String>>,
) -> Result<Option<(Born, T)>, Option<String>> {
    let before = settle(tokens)?;
    let pairs = plan::lacking_pairs(&before, serves_tls);
    make_pairs(tokens, &pairs)?;
    let there = tokens.look()?;
    let born = plan::births(&there).ok_or_else(no_version)?;
    let held = match born.is_empty() {
        true => None,
        false => Some(before_births()?),
    };
    for (kind, version) in &born {
        bear(tokens, *kind, *version)?;
    }
    for (place, standing) in before.iter().enumerate() {
        for (kind, version) in plan::finished(standing) {
            say(format!("token {}: key hsm-authd/{kind}/v{version}: already there", tokens.name(place)))?;
        }
    }
    Ok(held.map(|held| (born, held)))
}

/// Makes the next version of a kind in every token; which it is.
///
/// # Errors
/// As for [`Ending`].
pub fn rotate(tokens: &Tokens, kind: KeyKind) -> Result<u16, Option<String>> {
    let all = settle(tokens)?;
    if let Some(place) = all.iter().position(|standing| !plan::is_set_up(standing)) {
        return Err(Some(format!(
            "token {} does not have a key of each kind: run `hsm-authd init` first",
            tokens.name(place)
        )));
    }
    let version = plan::next(&all, kind).ok_or_else(no_version)?;
    if SHARED.contains(&kind) {
        bear(tokens, kind, version)?;
    } else {
        let everywhere: Vec<_> = (0..all.len()).map(|place| (place, kind, version)).collect();
        make_pairs(tokens, &everywhere)?;
    }
    Ok(version)
}

/// A pair is used only once all other tokens know it: what it signs verifies everywhere from the first moment.
fn make_pairs(tokens: &Tokens, pairs: &[(usize, KeyKind, u16)]) -> Ending {
    for (place, kind, version) in pairs {
        tokens.step(*place, SharedTask::Make(*kind, *version))?;
    }
    let all = tokens.look()?;
    for place in 0..all.len() {
        let strangers = plan::strangers(&all, place);
        if !strangers.is_empty() {
            tokens.step(place, SharedTask::Meet(strangers))?;
        }
    }
    for (place, kind, version) in pairs.iter().rev() {
        let is_it = |key: &&HeldKey| (key.kind, key.version) == (*kind, *version);
        let made = all.get(*place).and_then(|standing| standing.keys.iter().find(is_it));
        let check = made.and_then(|key| key.check).ok_or_else(|| Some(WRONG_ANSWER.to_owned()))?;
        tokens.step(*place, SharedTask::Finish(*kind, *version, check))?;
        say(format!("token {}: key hsm-authd/{kind}/v{version}: made", tokens.name(*place)))?;
    }
    Ok(())
}

/// Of which nobody has a part yet.
fn bear(tokens: &Tokens, kind: KeyKind, version: u16) -> Ending {
    let all = tokens.look()?;
    let recipients = all.iter().enumerate().map(|(place, standing)| {
        standing.import.clone().ok_or_else(|| {
            Some(format!("token {} has no import key: run `hsm-authd init`", tokens.name(place)))
        })
    });
    let recipients = recipients.collect::<Result<Vec<_>, _>>()?;
    let SharedDone::Borne { blobs, check } = tokens.step(0, SharedTask::Bear(kind, recipients))? else {
        return Err(Some(WRONG_ANSWER.to_owned()));
    };
    if blobs.len() != all.len() {
        return Err(Some(WRONG_ANSWER.to_owned()));
    }
    for (place, blob) in blobs.into_iter().enumerate() {
        tokens.step(place, SharedTask::Take { kind, version, blob, check })?;
    }
    // The first token's last: what it uses, all others can use.
    for place in (0..all.len()).rev() {
        tokens.step(place, SharedTask::Finish(kind, version, check))?;
    }
    say(format!("key hsm-authd/{kind}/v{version}: made in every token"))
}

fn no_version() -> Option<String> {
    Some("there is no version after the last".to_owned())
}
