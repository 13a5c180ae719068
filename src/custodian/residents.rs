//! Secrets that are token objects (`docs/custody.md`): which there are, read once at the start, and what is made,
//! used and destroyed.
//!
//! An object counts only if it is whole: a crash may leave one without its id, its value or what protects it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

use super::keys::Keys;
use super::pkcs11::{Object, Pkcs11Error, Session};
use super::secrets::of_key;
use crate::domain::credential::ObjectId;
use crate::domain::otp::Algorithm;
use crate::hsm::messages::{DESTROYED_MAX, Fault, RESIDENTS_PAGE, Response};

/// How long an object that was not found is not looked for again: a search takes as long as there are many objects.
const MISSED_FOR: Duration = Duration::from_secs(10);

/// After so many objects a start says that it goes on.
const TOLD_EVERY: usize = 500;

/// One that was found.
#[derive(Clone, Copy)]
struct Found {
    object: Object,
    seen: Seen,
}

/// What is known of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Its id.
    Named,
    /// That it is whole, and good for this hash.
    Whole(Algorithm),
    /// That another one has the same id: nobody can tell which was meant.
    Twice,
}

/// Which secrets are objects in this token.
pub struct Residents {
    found: BTreeMap<ObjectId, Found>,
    /// Those without an id of ours.
    nameless: Vec<Object>,
    missed: HashMap<ObjectId, Instant>,
    /// Those that the request at hand has used.
    used: Vec<ObjectId>,
    /// Whether the request at hand may have been worked on before.
    repeated: bool,
    /// The same of this custodian.
    begun: bool,
}

impl Residents {
    /// Reads the map of ids and handles; `further` is called after each so many of them.
    ///
    /// # Errors
    /// The token cannot be searched.
    pub fn load(session: &Session, further: &dyn Fn()) -> Result<Self, Pkcs11Error> {
        let mut residents = Self {
            found: BTreeMap::new(),
            nameless: Vec::new(),
            missed: HashMap::new(),
            used: Vec::new(),
            repeated: false,
            begun: false,
        };
        for (count, object) in session.residents()?.into_iter().enumerate() {
            if count % TOLD_EVERY == TOLD_EVERY - 1 {
                further();
            }
            let id = match session.id(object) {
                Ok(id) => ObjectId::try_from(id.as_slice()),
                Err(error) if error.is_gone() => continue,
                Err(error) => return Err(error),
            };
            let Ok(id) = id else {
                residents.nameless.push(object);
                continue;
            };
            let seen = match residents.found.contains_key(&id) {
                false => Seen::Named,
                true => {
                    tracing::error!(%id, "several secrets in the HSM have one id: none of them is used");
                    Seen::Twice
                }
            };
            residents.found.insert(id, Found { object, seen });
        }
        Ok(residents)
    }

    /// Begins a request.
    pub fn begin(&mut self, repeated: bool, begun: bool) {
        (self.repeated, self.begun) = (repeated, begun);
        self.used.clear();
    }

    /// The object of this id.
    ///
    /// # Errors
    /// [`Fault::Missing`] if it is not there, not whole, or there twice; [`Fault::Hsm`].
    pub fn open(
        &mut self,
        session: &Session,
        keys: &Keys,
        id: ObjectId,
        algorithm: Algorithm,
    ) -> Result<Object, Fault> {
        let known = self.found.get(&id).copied();
        match known {
            Some(Found { object, seen }) if seen == Seen::Whole(algorithm) => {
                self.used.push(id);
                return Ok(object);
            }
            // It may have been made anew since, as another object.
            Some(Found { object, seen: Seen::Named | Seen::Whole(_) })
                if tried((session, keys), object, id, algorithm)?.is_ok() =>
            {
                return Ok(self.whole(id, object, algorithm));
            }
            _ => {}
        }
        if self.missed.get(&id).is_some_and(|missed| missed.elapsed() < MISSED_FOR) {
            return Err(Fault::Missing(id));
        }
        let found = session.residents_of(id.as_bytes())?;
        // That nothing is there is believed of two searches already.
        if !found.is_empty() && session.residents_of(id.as_bytes())? != found {
            return Err(Fault::hsm("C_FindObjects: other secrets of one id each time"));
        }
        match found.as_slice() {
            [object] => match tried((session, keys), *object, id, algorithm)? {
                Ok(()) => Ok(self.whole(id, *object, algorithm)),
                Err(error) if error.is_gone() && !session.residents_of(id.as_bytes())?.is_empty() => {
                    Err(Fault::hsm("C_FindObjects: a secret that is gone"))
                }
                Err(error) => Err(self.missing(session, keys, id, &error.to_string())),
            },
            [] => Err(self.missing(session, keys, id, "it is not there")),
            _ => Err(self.missing(session, keys, id, "several have its id")),
        }
    }

    fn whole(&mut self, id: ObjectId, object: Object, algorithm: Algorithm) -> Object {
        self.missed.remove(&id);
        self.found.insert(id, Found { object, seen: Seen::Whole(algorithm) });
        self.used.push(id);
        object
    }

    /// What is wrong with one, or with the whole HSM: a token that was pulled has no objects either.
    fn missing(&mut self, session: &Session, keys: &Keys, id: ObjectId, reason: &str) -> Fault {
        match keys.pulse().check(session) {
            Ok(true) => {
                tracing::error!(%id, reason, "a secret in the HSM cannot be used");
                // Listed still, and looked at before it is used again.
                if let Some(found) = self.found.get_mut(&id).filter(|found| found.seen != Seen::Twice) {
                    found.seen = Seen::Named;
                }
                self.missed.insert(id, Instant::now());
                Fault::Missing(id)
            }
            Ok(false) => Fault::hsm(reason),
            Err(error) => error.into(),
        }
    }

    /// Which of those that the request at hand has used is there no more; `None`: that is not what went wrong.
    pub fn lost(&mut self, session: &Session, keys: &Keys) -> Option<ObjectId> {
        for id in std::mem::take(&mut self.used) {
            if session.residents_of(id.as_bytes()).is_ok_and(|objects| objects.is_empty()) {
                let fault = self.missing(session, keys, id, "it was destroyed");
                return matches!(fault, Fault::Missing(_)).then_some(id);
            }
        }
        None
    }

    /// Makes an object under this id, or under its second if the request is repeated: what was left under the first is
    /// destroyed before.
    ///
    /// # Errors
    /// [`Fault::Request`] if the HSM has no room for it or takes no such object; [`Fault::Hsm`].
    pub fn keep(
        &mut self,
        (session, keys): (&Session, &Keys),
        id: ObjectId,
        algorithm: Algorithm,
        make: impl FnOnce(&[u8]) -> Result<Object, Pkcs11Error>,
    ) -> Result<ObjectId, Fault> {
        look(session, keys)?;
        let id = match self.repeated {
            false => id,
            true => {
                self.destroy_all(session, id)?;
                id.second()
            }
        };
        // It was made, and then failed: of two objects of one id none would ever be used. A third custodian finds what the
        // second has made.
        if self.begun || self.repeated {
            self.destroy_all(session, id)?;
        }
        let object = make(id.as_bytes()).map_err(|error| match error.is_full() {
            true => Fault::Request(format!("the HSM has no room for one more secret ({error})")),
            false => of_key(error),
        })?;
        if let Err(error) = session.check_resident(object, id.as_bytes(), algorithm) {
            session.destroy(object)?;
            return Err(of_key(error));
        }
        self.found.insert(id, Found { object, seen: Seen::Whole(algorithm) });
        Ok(id)
    }

    /// The ids behind `after`, in their order.
    pub fn page(&self, after: Option<ObjectId>) -> Response {
        let from = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let ids = self.found.range(from).map(|(id, _)| *id).take(RESIDENTS_PAGE).collect();
        Response::Residents { ids, nameless: u32::try_from(self.nameless.len()).unwrap_or(u32::MAX) }
    }

    /// Destroys these, and as many of those without an id as one message may.
    ///
    /// # Errors
    /// [`Fault::Request`]; [`Fault::Hsm`]: some may be left.
    pub fn destroy(
        &mut self,
        (session, keys): (&Session, &Keys),
        ids: &[ObjectId],
        nameless: bool,
    ) -> Result<u32, Fault> {
        if ids.len() > DESTROYED_MAX {
            return Err(Fault::Request(format!("more than {DESTROYED_MAX} objects to destroy")));
        }
        look(session, keys)?;
        let mut objects = 0;
        for id in ids {
            objects += self.destroy_one(session, *id)?;
        }
        if nameless {
            for object in self.nameless.drain(..self.nameless.len().min(DESTROYED_MAX)) {
                match session.destroy_resident(object, None) {
                    Err(error) if error.is_gone() => {}
                    other => other.map(|()| objects += 1)?,
                }
            }
        }
        Ok(objects)
    }

    /// All of this id, however many they are; how many there were.
    fn destroy_one(&mut self, session: &Session, id: ObjectId) -> Result<u32, Fault> {
        // Gone on purpose: nobody has to look for it.
        self.used.retain(|used| *used != id);
        // One that is known needs no search, unless it is gone or was made anew.
        if let Some(Found { object, seen: Seen::Named | Seen::Whole(_) }) = self.found.remove(&id)
            && session.destroy_resident(object, Some(id.as_bytes())).is_ok()
        {
            return Ok(1);
        }
        self.destroy_all(session, id)
    }

    /// Whatever has the id, whether it is known or not.
    fn destroy_all(&mut self, session: &Session, id: ObjectId) -> Result<u32, Fault> {
        self.found.remove(&id);
        let mut objects = 0;
        for object in session.residents_of(id.as_bytes())? {
            session.destroy_resident(object, Some(id.as_bytes()))?;
            objects += 1;
        }
        Ok(objects)
    }
}

/// Whether an object is whole, of this id and good for this hash, or what it is not. That it is not is believed of what was
/// tried twice alike, of a session that reads and uses an object which is known: whatever else it may be is the HSM's
/// failure.
///
/// # Errors
/// [`Fault::Hsm`].
fn tried(
    (session, keys): (&Session, &Keys),
    object: Object,
    id: ObjectId,
    algorithm: Algorithm,
) -> Result<Result<(), Pkcs11Error>, Fault> {
    let check = || session.check_resident(object, id.as_bytes(), algorithm);
    let first = match check() {
        Ok(()) => return Ok(Ok(())),
        Err(error) if error.is_lie() => return Err(error.into()),
        Err(error) => error,
    };
    if !keys.pulse().check_reading(session)? {
        return Err(Fault::hsm("C_GetAttributeValue: another answer of a known key than at the start"));
    }
    match check() {
        Ok(()) => Ok(Ok(())),
        Err(second) if second.to_string() == first.to_string() => Ok(Err(second)),
        Err(second) => Err(second.into()),
    }
}

/// Has the module look at the token as it is now, by using a key of it. SoftHSM forgets what others did since it looked
/// last as soon as it changes the token itself.
fn look(session: &Session, keys: &Keys) -> Result<(), Fault> {
    match keys.pulse().check(session)? {
        true => Ok(()),
        false => Err(Fault::hsm("C_Sign: another HMAC than at the start")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::operations::Operations;
    use super::super::secrets::departing;
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::super::wrapping::Origin;
    use super::*;
    use crate::domain::credential::StoredSecret;
    use crate::hsm::messages::{Custody, Request};
    use crate::secret::SecretBytes;

    fn operations(session: Session) -> Operations {
        make_keys(&session, "unit", &mut std::io::sink()).unwrap();
        let keys = Keys::load(&session).unwrap();
        let residents = Residents::load(&session, &|| ()).unwrap();
        Operations::new(session, keys, residents, 2)
    }

    fn id(byte: u8) -> ObjectId {
        ObjectId::from_random([byte; 16])
    }

    /// Its HMAC of nothing: which seed it is.
    fn mark(operations: &mut Operations, id: ObjectId) -> Vec<u8> {
        let object = operations.open(StoredSecret::Resident(id), Algorithm::Sha1).unwrap();
        operations.session.hmac(Algorithm::Sha1, object, b"").unwrap().to_vec()
    }

    #[test]
    fn a_secret_in_the_token_cannot_be_read_wrapped_changed_or_used_for_another_hash() {
        const NAME: &str = "custodian::residents::tests::a_secret_in_the_token_cannot_be_read_wrapped_changed_or_used_for_another_hash";
        with_session(NAME, |session| {
            let mut operations = operations(session);
            let resting = operations.session.session_objects();
            let seed = || SecretBytes::new(vec![7; 20]);
            let custody = |byte| Custody::Resident(id(byte));
            operations.generate(Algorithm::Sha1, false, custody(2)).unwrap();
            operations.generate(Algorithm::Sha1, true, custody(4)).unwrap();
            operations.import(Algorithm::Sha1, &seed(), custody(6)).unwrap();
            let arrived = operations.session.create(&departing(24), &[[7; 20].as_slice(), &[0; 4]].concat());
            let origin = &Origin::Opened;
            let wrapped = operations.wrap_and_destroy(arrived.unwrap(), 24, Algorithm::Sha1, origin);
            operations.settle(wrapped.unwrap(), Algorithm::Sha1, custody(8)).unwrap();
            assert_eq!(mark(&mut operations, id(6)), mark(&mut operations, id(8)));
            assert_eq!(operations.session.session_objects(), resting);

            let (_, kek) = operations.keys.newest_kek();
            for byte in [2, 4, 6, 8] {
                let object = operations.open(StoredSecret::Resident(id(byte)), Algorithm::Sha1).unwrap();
                let session = &operations.session;
                assert!(session.value(object).is_none());
                let wrapped = session.wrap(kek, object, 24).map(drop).unwrap_err().to_string();
                assert!(wrapped.starts_with("C_WrapKey: CKR_KEY_"), "{wrapped}");
                assert!(session.hmac(Algorithm::Sha256, object, b"").is_err());
                assert!(session.weakened(object).iter().all(|changed| !changed), "{byte}");
            }
        });
    }

    #[test]
    fn what_is_repeated_is_there_once_and_only_what_is_whole_is_used() {
        const NAME: &str =
            "custodian::residents::tests::what_is_repeated_is_there_once_and_only_what_is_whole_is_used";
        with_session(NAME, |session| {
            let mut operations = operations(session);
            let mut ask = |request, repeated| operations.answer(&request, repeated);
            let generate = |byte| Request::Generate {
                algorithm: Algorithm::Sha1,
                export: false,
                custody: Custody::Resident(id(byte)),
            };
            let stored = |response| match response {
                Ok(Response::Secret { stored, .. }) => stored.object().unwrap(),
                _ => panic!("no secret"),
            };
            let listed = |response| match response {
                Ok(Response::Residents { ids, nameless }) => (ids, nameless),
                _ => panic!("no list"),
            };
            assert_eq!(stored(ask(generate(2), false)), id(2));
            // Its answer was lost: the one that was made is gone, whatever came of it.
            assert_eq!(stored(ask(generate(2), true)), id(2).second());
            // And that of the second attempt, of which nobody heard either.
            assert_eq!(stored(ask(generate(2), true)), id(2).second());
            // It was lost before anything was made.
            assert_eq!(stored(ask(generate(4), true)), id(4).second());
            assert_eq!(
                listed(ask(Request::Residents { after: None }, false)),
                (vec![id(2).second(), id(4).second()], 0)
            );
            assert_eq!(
                listed(ask(Request::Residents { after: Some(id(2).second()) }, false)).0,
                [id(4).second()]
            );

            // What a crash may leave, and what somebody else makes.
            let session = &operations.session;
            assert_eq!(session.residents_of(id(2).second().as_bytes()).unwrap().len(), 1);
            session.half_made(b"");
            session.half_made(b"short");
            session.half_made(id(6).as_bytes());
            let twice =
                [0, 1].map(|_| session.generate_resident(id(8).as_bytes(), Algorithm::Sha1, 24).unwrap());
            operations.residents = Residents::load(session, &|| ()).unwrap();
            let mut refused = |byte| {
                let opened = operations.open(StoredSecret::Resident(id(byte)), Algorithm::Sha1).err();
                assert_eq!(opened, Some(Fault::Missing(id(byte))));
            };
            refused(6);
            refused(8);
            refused(10);
            // Of another hash it is no secret either.
            let other = operations.open(StoredSecret::Resident(id(4).second()), Algorithm::Sha256).err();
            assert_eq!(other, Some(Fault::Missing(id(4).second())));

            let mut ask = |request| operations.answer(&request, false);
            let (ids, nameless) = listed(ask(Request::Residents { after: None }));
            assert_eq!(
                (ids.as_slice(), nameless),
                ([id(2).second(), id(4).second(), id(6), id(8)].as_slice(), 2)
            );
            let destroyed =
                |ids: &[ObjectId], nameless| Request::DestroyResidents { ids: ids.to_vec(), nameless };
            let count = |response| match response {
                Ok(Response::Destroyed { objects }) => objects,
                _ => panic!("not destroyed"),
            };
            assert_eq!(count(ask(destroyed(&[id(6), id(8), id(12)], false))), 3);
            assert_eq!(listed(ask(Request::Residents { after: None })).1, 2);
            assert_eq!(count(ask(destroyed(&[], true))), 2);
            assert_eq!(count(ask(destroyed(&[id(6)], true))), 0);
            assert!(matches!(ask(destroyed(&[id(2); DESTROYED_MAX + 1], false)), Err(Fault::Request(_))));
            assert!(twice.iter().all(|object| operations.session.id(*object).is_err()));
            assert_eq!(operations.session.residents().unwrap().len(), 2);
        });
    }

    /// What a module says of an object may be said of another one.
    #[test]
    fn nothing_but_a_secret_of_that_id_is_destroyed_as_one() {
        const NAME: &str = "custodian::residents::tests::nothing_but_a_secret_of_that_id_is_destroyed_as_one";
        with_session(NAME, |session| {
            let mut operations = operations(session);
            let Operations { session, keys, residents, .. } = &mut operations;
            let row = || session.labelled("hsm-authd/row/v1").unwrap();
            residents.nameless.extend(row());
            assert!(residents.destroy((session, keys), &[], true).is_err());
            let other = session.generate_resident(id(4).as_bytes(), Algorithm::Sha1, 24).unwrap();
            for object in [row()[0], other] {
                residents.found.insert(id(2), Found { object, seen: Seen::Named });
                assert_eq!(residents.destroy((session, keys), &[id(2)], false), Ok(0));
            }
            assert_eq!((row().len(), session.id(other).unwrap()), (1, id(4).as_bytes().to_vec()));
        });
    }

    /// A search that finds nothing is believed beside one that finds what is there.
    #[test]
    fn nothing_is_believed_of_a_session_that_does_not_find_its_witness() {
        const NAME: &str =
            "custodian::residents::tests::nothing_is_believed_of_a_session_that_does_not_find_its_witness";
        with_session(NAME, |session| {
            let mut operations = operations(session);
            let Operations { session, residents, keys, .. } = &mut operations;
            assert_eq!(session.residents_of(id(2).as_bytes()).unwrap(), []);
            assert!(session.set_witness("hsm-authd/row/v2".to_owned()).is_err());
            let row = session.labelled("hsm-authd/row/v1").unwrap()[0];
            session.destroy(row).unwrap();
            let lie = session.residents_of(id(2).as_bytes()).unwrap_err();
            assert_eq!(lie.to_string(), "C_FindObjects: not even hsm-authd/row/v1, which is there");
            assert_eq!(lie.remedy(), crate::hsm::messages::Remedy::NewProcess);
            assert!(matches!(residents.open(session, keys, id(2), Algorithm::Sha1), Err(Fault::Hsm(_))));
        });
    }

    #[test]
    fn what_somebody_else_destroys_is_missing_and_what_is_made_anew_is_found() {
        const NAME: &str = "custodian::residents::tests::what_somebody_else_destroys_is_missing_and_what_is_made_anew_is_found";
        with_session(NAME, |session| {
            let mut operations = operations(session);
            let make = |operations: &Operations, byte| {
                operations.session.generate_resident(id(byte).as_bytes(), Algorithm::Sha1, 24).unwrap()
            };
            // Made by another custodian since this one's start.
            let first = make(&operations, 2);
            mark(&mut operations, id(2));
            operations.session.destroy(first).unwrap();
            operations.residents.begin(false, false);
            let stale = operations.open(StoredSecret::Resident(id(2)), Algorithm::Sha1).unwrap();
            assert!(operations.session.hmac(Algorithm::Sha1, stale, b"").is_err());
            let Operations { session, keys, residents, .. } = &mut operations;
            assert_eq!(residents.lost(session, keys), Some(id(2)));
            // Not looked for again at once; later it is.
            let again = make(&operations, 2);
            assert!(operations.open(StoredSecret::Resident(id(2)), Algorithm::Sha1).is_err());
            operations.residents.missed.clear();
            mark(&mut operations, id(2));
            operations.session.destroy(again).unwrap();

            // A token that answers otherwise has failed: its objects are not what is wrong.
            operations.keys.expect_another_pulse();
            operations.residents.begin(false, false);
            assert!(matches!(
                operations.open(StoredSecret::Resident(id(4)), Algorithm::Sha1),
                Err(Fault::Hsm(_))
            ));
        });
    }
}
