//! Handles that a session knows: what tells that a module hands the same one out for two objects.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use cryptoki::object::ObjectHandle;

use super::session::{Object, Session};
use super::{Cause, Pkcs11Error};

/// Sessions that were opened in this process so far.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// What was looked for. A later search of the same kind says what is left of what the earlier one found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Search {
    /// All token objects.
    Token,
    /// Secrets of credentials.
    Residents,
    /// Data objects.
    Data,
}

/// The objects that a session has made or found, and not destroyed.
pub(super) struct Handles {
    generation: u64,
    made: RefCell<HashSet<u64>>,
    found: RefCell<BTreeMap<Search, HashSet<u64>>>,
}

impl Handles {
    /// Of a session that is new.
    pub(super) fn new() -> Self {
        Self {
            generation: SESSIONS.fetch_add(1, Ordering::Relaxed),
            made: RefCell::default(),
            found: RefCell::default(),
        }
    }

    fn knows(&self, handle: u64) -> bool {
        self.made.borrow().contains(&handle)
            || self.found.borrow().values().any(|found| found.contains(&handle))
    }

    fn forget(&self, handle: u64) {
        self.made.borrow_mut().remove(&handle);
        for found in self.found.borrow_mut().values_mut() {
            found.remove(&handle);
        }
    }

    fn found(&self, search: Search, handles: impl Iterator<Item = u64>) {
        self.found.borrow_mut().insert(search, handles.collect());
    }

    fn found_more(&self, search: Search, handles: impl Iterator<Item = u64>) {
        self.found.borrow_mut().entry(search).or_default().extend(handles);
    }
}

impl Session {
    /// An object that the module has just made, as it says.
    ///
    /// # Errors
    /// The handle is that of an object that is there already: whoever used it would use that one.
    pub(super) fn made(&self, function: &str, handle: ObjectHandle) -> Result<Object, Pkcs11Error> {
        if self.handles.knows(handle.handle()) {
            return Err(Pkcs11Error::lie(format!("{function}: the handle of another object")));
        }
        self.handles.made.borrow_mut().insert(handle.handle());
        Ok(Object::new(handle, self.handles.generation))
    }

    /// All that there is of what was looked for.
    pub(super) fn found(&self, search: Search, handles: Vec<ObjectHandle>) -> Vec<Object> {
        self.handles.found(search, handles.iter().map(ObjectHandle::handle));
        self.objects(handles)
    }

    /// Some of it.
    pub(super) fn found_more(&self, search: Search, handles: Vec<ObjectHandle>) -> Vec<Object> {
        self.handles.found_more(search, handles.iter().map(ObjectHandle::handle));
        self.objects(handles)
    }

    fn objects(&self, handles: Vec<ObjectHandle>) -> Vec<Object> {
        handles.into_iter().map(|handle| Object::new(handle, self.handles.generation)).collect()
    }

    /// The handle of an object, for a call.
    ///
    /// # Errors
    /// It is of another session: in this one it may mean any object.
    pub(super) fn handle(&self, object: Object) -> Result<ObjectHandle, Pkcs11Error> {
        match object.generation() == self.handles.generation {
            true => Ok(object.handle_in_its_session()),
            false => Err(Pkcs11Error(Cause::Stale)),
        }
    }

    /// The object is there no more: its handle may come again.
    pub(super) fn gone(&self, object: Object) {
        self.handles.forget(object.handle_in_its_session().handle());
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Material, Shape};
    use super::*;
    use crate::custodian::test_token::with_session;
    use crate::hsm::messages::Remedy;

    #[test]
    fn an_object_of_another_session_is_refused_and_a_handle_is_not_given_twice() {
        const NAME: &str = "custodian::pkcs11::handles::tests::an_object_of_another_session_is_refused_and_a_handle_is_not_given_twice";
        const SHAPE: Shape = Shape {
            material: Material::Generic,
            length_bytes: None,
            token: false,
            extractable: false,
            purpose: None,
        };
        with_session(NAME, |session| {
            let object = session.create(&SHAPE, &[1; 32]).unwrap();
            let handle = object.handle_in_its_session();
            let stale = Object::new(handle, object.generation().wrapping_add(1));
            let refused = session.check(stale, &SHAPE).unwrap_err();
            assert_eq!(refused.to_string(), "an object of a session that is gone");
            assert_eq!(refused.remedy(), Remedy::Rebuild);
            assert!(session.destroy(stale).is_err());
            session.check(object, &SHAPE).unwrap();

            let lie = session.made("C_UnwrapKey", handle).unwrap_err();
            assert_eq!(lie.to_string(), "C_UnwrapKey: the handle of another object");
            assert!(lie.is_lie() && lie.remedy() == Remedy::NewProcess);
            session.destroy(object).unwrap();
            assert!(session.made("C_UnwrapKey", handle).is_ok(), "it may come again");
        });
    }

    #[test]
    fn a_handle_is_known_until_its_object_is_gone() {
        let handles = Handles::new();
        handles.made.borrow_mut().insert(1);
        handles.found(Search::Residents, [1, 2].into_iter());
        handles.found(Search::Data, [3].into_iter());
        assert_eq!([1, 2, 3, 4].map(|handle| handles.knows(handle)), [true, true, true, false]);
        handles.found(Search::Residents, [5].into_iter());
        assert_eq!([1, 2, 3, 5].map(|handle| handles.knows(handle)), [true, false, true, true]);
        handles.found_more(Search::Residents, [2].into_iter());
        assert_eq!([2, 5].map(|handle| handles.knows(handle)), [true, true]);
        [1, 2, 3].into_iter().for_each(|handle| handles.forget(handle));
        assert_eq!([1, 2, 3, 5].map(|handle| handles.knows(handle)), [false, false, false, true]);
        assert_ne!(Handles::new().generation, handles.generation);
    }
}
