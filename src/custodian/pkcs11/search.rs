//! Searches: the one place through which the module is asked which objects there are.
//!
//! SoftHSM finds nothing where its token's files are away, says that all is well, and goes on saying so. So that nothing
//! was found is believed only of a session that finds what is known to be there, and only twice.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};

use super::Pkcs11Error;
use super::handles::Search;
use super::key_pair::Half;
use super::session::{Object, Session};

impl Session {
    /// From here on an object of this label is there as long as the token is: who finds nothing looks for it.
    ///
    /// # Errors
    /// It is not found; or the search failed.
    pub fn set_witness(&self, label: String) -> Result<(), Pkcs11Error> {
        self.hear(&label)?;
        self.witness.replace(Some(label));
        Ok(())
    }

    /// There is no such object any more.
    pub fn dismiss_witness(&self) {
        self.witness.take();
    }

    /// Whether the witness is found, if there is one.
    ///
    /// # Errors
    /// It is not; or the search failed.
    pub fn check_witness(&self) -> Result<(), Pkcs11Error> {
        self.witness.borrow().as_deref().map_or(Ok(()), |witness| self.hear(witness))
    }

    /// The token objects of exactly this label.
    ///
    /// # Errors
    /// The search failed, or is not to be believed.
    pub fn labelled(&self, label: &str) -> Result<Vec<Object>, Pkcs11Error> {
        Ok(self.found_more(Search::Token, self.search(&by_label(label))?))
    }

    /// Those of them that are this half of a pair.
    ///
    /// # Errors
    /// The search failed, or is not to be believed.
    pub fn labelled_half(&self, label: &str, half: Half) -> Result<Vec<Object>, Pkcs11Error> {
        let class = match half {
            Half::Private => ObjectClass::PRIVATE_KEY,
            Half::Public => ObjectClass::PUBLIC_KEY,
        };
        let found = self.search(&[&by_label(label)[..], &[Attribute::Class(class)]].concat())?;
        Ok(self.found_more(Search::Token, found))
    }

    /// The handles of the objects that have all of these.
    ///
    /// # Errors
    /// The search failed; or it found nothing, and is not to be believed.
    pub(super) fn search(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
        let found = self.find(template)?;
        if !found.is_empty() {
            return Ok(found);
        }
        self.check_witness()?;
        match self.find(template)?.is_empty() {
            true => Ok(found),
            false => Err(Pkcs11Error::lie("C_FindObjects: nothing, and then something")),
        }
    }

    /// The same of objects that come and go: all that one of two searches found. Who was not there in one of them was
    /// made or destroyed meanwhile, or passed over: reading it tells which.
    ///
    /// # Errors
    /// As for a search.
    pub(super) fn list(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
        let mut all = self.search(template)?;
        all.extend(self.search(template)?);
        all.sort_unstable_by_key(ObjectHandle::handle);
        all.dedup();
        Ok(all)
    }

    fn hear(&self, witness: &str) -> Result<(), Pkcs11Error> {
        match self.find(&by_label(witness))?.is_empty() {
            false => Ok(()),
            true => Err(Pkcs11Error::lie(format!("C_FindObjects: not even {witness}, which is there"))),
        }
    }

    /// What the module says that it found: each object once, and as many as there are handles.
    fn find(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
        let found = quietly(|| {
            let (mut found, mut known) = (Vec::new(), HashSet::new());
            for handle in self.raw.iter_objects(template)? {
                let handle = handle?;
                // A module that says more than it wrote leaves what was there before, or nothing.
                if handle.handle() == 0 || found.len() >= OBJECTS_MAX || !known.insert(handle.handle()) {
                    return Err(miscounted());
                }
                found.push(handle);
            }
            Ok(found)
        });
        // The binding takes a number above what it asked for, and looks behind its array.
        found.unwrap_or_else(|_| Err(miscounted()))
    }
}

fn miscounted() -> Pkcs11Error {
    Pkcs11Error::lie("C_FindObjects: more objects than it gave out")
}

/// More than a token has, and a search that goes on behind them has no end.
const OBJECTS_MAX: usize = 1 << 20;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does it, and says nothing of a panic: what it came from is told by whoever asked for it.
fn quietly<T>(ask: impl FnOnce() -> T) -> std::thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |told| {
            if !QUIET.get() {
                hook(told);
            }
        }));
    });
    QUIET.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(ask));
    QUIET.set(false);
    done
}

fn by_label(label: &str) -> [Attribute; 2] {
    [Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())]
}
