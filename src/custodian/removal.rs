//! Removing what was begun of a key and not finished, while other hosts may be making it or do the same.

use std::io::Write;

use super::StartFailure;
use super::keys::{KeyError, KeyName, RemovalMark, Unfinished, unfinished};
use super::pkcs11::{Object, Pkcs11Error, Session};
use super::token::say;

/// Removes what a crash left of keys that were being made: half of a pair, or a whole one. A half without a mark is
/// nobody's to remove: it may be what is left of a pair that signed.
pub(super) fn discard_unfinished(
    session: &Session,
    label: &str,
    out: &mut impl Write,
) -> Result<(), StartFailure> {
    let found = unfinished(session).map_err(|error| StartFailure::keys(label, false, &error))?;
    for name in found.into_keys() {
        let removed = discard(session, name).map_err(|error| {
            StartFailure::new(format!("what is unfinished of key {name} cannot be removed ({error})"))
        })?;
        if removed {
            say(out, format_args!("key {name}: unfinished, removed"))?;
        }
    }
    Ok(())
}

/// Removes what was made under a mark; `false`: nobody marks it any more as being made, and it stays.
pub(super) fn discard(session: &Session, name: KeyName) -> Result<bool, KeyError> {
    // A mark of our own first, so that no custodian starts on what is being removed. It is of another sort: two hosts
    // that look at once must not take each other's for the sign of what was never used.
    let own = RemovalMark::ours().set(session, name)?;
    let removed = discard_beside(session, name, own);
    let unmarked = destroy_if_there(session, own, &name.mark());
    let removed = removed?;
    unmarked?;
    Ok(removed)
}

/// What is still marked as being made has been so since before it was there, and `own` stands since before that was seen:
/// nobody has used it, and nobody can. Its mark goes last: what interrupts this leaves it for the next run.
fn discard_beside(session: &Session, name: KeyName, own: Object) -> Result<bool, KeyError> {
    let Unfinished { marks, removals, made } = unfinished(session)?.remove(&name).unwrap_or_default();
    let is_unused = !marks.is_empty();
    if is_unused {
        for object in made {
            destroy_if_there(session, object, &name.to_string())?;
        }
    }
    // Another removal may be at work: without its mark what it removes would be used.
    for (mark, removal) in removals.into_iter().filter(|(mark, removal)| *mark != own && removal.is_left()) {
        // Read twice: a wrong bit would make a process that is at work another one, which is gone.
        if RemovalMark::read(session, mark).is_ok_and(|again| again == Some(removal)) {
            destroy_if_there(session, mark, &name.mark())?;
        }
    }
    for mark in marks {
        destroy_if_there(session, mark, &name.mark())?;
    }
    Ok(is_unused)
}

/// `false`: somebody else has destroyed it.
pub(super) fn destroy_if_there(session: &Session, object: Object, label: &str) -> Result<bool, Pkcs11Error> {
    match session.destroy_named(object, label) {
        Err(error) if error.is_gone() => Ok(false),
        destroyed => destroyed.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::key_making::make_key;
    use super::super::keys::{Kind, Maker, survey};
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::*;

    #[test]
    fn what_was_finished_meanwhile_stays_and_no_mark_is_left() {
        const NAME: &str = "custodian::removal::tests::what_was_finished_meanwhile_stays_and_no_mark_is_left";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut io::sink()).unwrap();
            let kek = KeyName { kind: Kind::Kek, version: 2 };
            make_key(&session, kek).unwrap();
            // It was unfinished when this run looked, and its maker removed the mark since.
            assert!(!discard(&session, kek).unwrap());
            assert!(unfinished(&session).unwrap().is_empty());
            assert!(survey(&session).unwrap().keys.contains_key(&kek));

            session.mark(&kek.mark()).unwrap();
            assert!(discard(&session, kek).unwrap());
            assert!(unfinished(&session).unwrap().is_empty());
            assert!(!survey(&session).unwrap().keys.contains_key(&kek));
            let gone = session.mark(&kek.mark()).unwrap();
            assert!(destroy_if_there(&session, gone, &kek.mark()).unwrap());
            assert!(!destroy_if_there(&session, gone, &kek.mark()).unwrap());
            // By its own label, and by none that it has not.
            let mark = session.mark(&kek.mark()).unwrap();
            assert!(destroy_if_there(&session, mark, &kek.to_string()).is_err());
            assert!(discard(&session, kek).unwrap());
        });
    }

    #[test]
    fn two_removals_at_once_leave_what_was_finished() {
        const NAME: &str = "custodian::removal::tests::two_removals_at_once_leave_what_was_finished";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut io::sink()).unwrap();
            let kek = KeyName { kind: Kind::Kek, version: 2 };
            make_key(&session, kek).unwrap();
            // Another host looks at it, too.
            let maker = Maker { place: "another host".to_owned(), pid: 1 };
            let removal = RemovalMark { maker: Some(maker), ..RemovalMark::ours() };
            let other = removal.set(&session, kek).unwrap();
            assert!(!discard(&session, kek).unwrap());
            assert_eq!(
                unfinished(&session).unwrap()[&kek].removals,
                [(other, removal.clone())],
                "it is at work"
            );
            let next = make_key(&session, KeyName { version: 3, ..kek });
            next.unwrap();
            session.destroy(other).unwrap();
            assert!(survey(&session).unwrap().keys.contains_key(&kek), "it is whole, and used");
            // Nor is one made where a removal may be at work; what is left of one goes.
            let four = KeyName { version: 4, ..kek };
            removal.set(&session, four).unwrap();
            let error = make_key(&session, four).unwrap_err();
            assert!(error.to_string().contains("try again in a minute"), "{error}");
            let five = KeyName { version: 5, ..kek };
            RemovalMark::ours().set(&session, five).unwrap();
            assert!(!discard(&session, five).unwrap());
            make_key(&session, five).unwrap();
            assert!(survey(&session).unwrap().keys.contains_key(&five));
        });
    }
}
