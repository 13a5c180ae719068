//! The unwrapped secrets and the public keys of credentials: session objects, a bounded number of them.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::rc::Rc;

use super::keys::{KeyName, Keys, Kind};
use super::operations::of_request;
use super::pkcs11::{Material, Object, Pkcs11Error, Session, Shape, Use, VerifyingKey, WRAP_OVERHEAD_BYTES};
use crate::domain::otp::{Algorithm, SEED_BYTES};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::hsm::messages::Fault;

/// How long the padded form of a seed is, in bytes: key wrap takes multiples of 8, and modules
/// refuse an HMAC key that is shorter than the hash. Padding with zeros changes no HMAC.
pub fn padded_bytes(seed_bytes: usize, algorithm: Algorithm) -> usize {
    seed_bytes.max(algorithm.output_bytes()).next_multiple_of(8)
}

/// A session object of a seed on its way to its blob: it may leave, wrapped, and says by an HMAC which one it is.
pub fn departing(length_bytes: usize) -> Shape {
    Shape {
        material: Material::Generic,
        length_bytes: Some(length_bytes),
        token: false,
        extractable: true,
        purpose: Some(Use::Sign),
    }
}

/// A session object of an unwrapped seed: it computes HMACs and never leaves.
pub const ARRIVED: Shape = Shape {
    material: Material::Generic,
    length_bytes: None,
    token: false,
    extractable: false,
    purpose: Some(Use::Sign),
};

/// What an unwrapped secret is kept under: all that goes into unwrapping it.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    kek_version: u16,
    blob: Vec<u8>,
    algorithm: Algorithm,
}

/// Unwrapped secrets, the oldest of them given up for new ones.
pub struct Secrets {
    cached: Fifo<Key, Object>,
    /// How many were unwrapped.
    pub opened: u64,
}

impl Secrets {
    /// Keeps at most `cached_max` objects (at least 1).
    pub fn new(cached_max: usize) -> Self {
        Self { cached: Fifo::new(cached_max), opened: 0 }
    }

    /// The object of a wrapped secret, from the cache or newly unwrapped.
    ///
    /// # Errors
    /// [`Fault::Request`] if the blob cannot be one of a seed, or is not what its `kek` wrapped; [`Fault::Hsm`] if the
    /// module did not make of it what was asked.
    pub fn open(
        &mut self,
        session: &Session,
        keys: &Keys,
        (kek_version, blob): (u16, Vec<u8>),
        algorithm: Algorithm,
    ) -> Result<Object, Fault> {
        let key = Key { kek_version, blob, algorithm };
        if let Some(object) = self.cached.get(&key) {
            return Ok(*object);
        }
        let length_bytes = key.blob.len().saturating_sub(WRAP_OVERHEAD_BYTES);
        let plausible = padded_bytes(0, algorithm)..=*SEED_BYTES.end();
        if !length_bytes.is_multiple_of(8) || !plausible.contains(&length_bytes) {
            return Err(Fault::Request("a wrapped secret of an impossible length".into()));
        }
        let kek = keys.kek(kek_version).ok_or_else(|| no_key(Kind::Kek, kek_version))?;
        self.opened = self.opened.saturating_add(1);
        let open = || session.unwrap_hmac_key(kek.object, &key.blob, &ARRIVED, algorithm);
        let object = opened("a wrapped secret", open, || kek.try_known(session))?;
        checked(session, object, &ARRIVED)?;
        if let Some(evicted) = self.cached.insert(key, object) {
            session.destroy(evicted)?;
        }
        Ok(object)
    }
}

/// Public keys as objects, the oldest of them given up for new ones.
pub struct PublicKeys {
    cached: Fifo<PublicKey, VerifyingKey>,
    /// How many were made.
    pub opened: u64,
}

impl PublicKeys {
    /// Keeps at most `cached_max` objects (at least 1).
    pub fn new(cached_max: usize) -> Self {
        Self { cached: Fifo::new(cached_max), opened: 0 }
    }

    /// The object of a key, from the cache or newly made.
    ///
    /// # Errors
    /// [`Fault::Request`] if the module does not take such a key, and takes another; [`Fault::Hsm`].
    pub fn open(&mut self, session: &Session, keys: &Keys, key: PublicKey) -> Result<VerifyingKey, Fault> {
        if let Some(object) = self.cached.get(&key) {
            return Ok(object.clone());
        }
        self.opened = self.opened.saturating_add(1);
        let try_known = || {
            let known = session.create_public_key(keys.newest_attest().public())?;
            session.destroy(known.object())
        };
        let object = opened("a public key", || session.create_public_key(&key), try_known)?;
        if let Some(evicted) = self.cached.insert(key, object.clone()) {
            session.destroy(evicted.object())?;
        }
        Ok(object)
    }
}

/// Whether `signature` is one of the digest, by this key. It came from outside: that a module fails over one which this
/// process calls wrong, and is otherwise well, is no failure of the HSM.
///
/// # Errors
/// [`Fault::Hsm`]; [`Fault::Request`] if the module does not take the key.
pub(super) fn verified(
    (session, keys): (&Session, &Keys),
    key: &VerifyingKey,
    digest: &[u8; 32],
    signature: &Signature,
) -> Result<bool, Fault> {
    match session.verify_digest(key, digest, signature) {
        Err(error)
            if !error.is_lie()
                && !key.is_right(digest, signature)
                && matches!(keys.pulse().check(session), Ok(true)) =>
        {
            tracing::warn!(%error, "custodian: the HSM fails over a signature that is wrong");
            Ok(false)
        }
        verified => verified.map_err(of_key),
    }
}

/// The token has no such version: it is another token, or the key was retired too early. A fresh custodian would not
/// find it either.
pub fn no_key(kind: Kind, version: u16) -> Fault {
    Fault::Request(format!("the token has no key {}", KeyName { kind, version }))
}

/// A key that the module does not take is nothing to end a custodian over: whoever enrolled it could end them all.
pub(super) fn of_key(error: Pkcs11Error) -> Fault {
    match error.is_key_refusal() {
        true => Fault::Request(format!("the HSM does not take the key: {error}")),
        false => of_request(error),
    }
}

/// What a row keeps, opened. What does not open, twice, while something known does, is what is wrong: no HSM has failed,
/// and no return code tells that by itself.
///
/// # Errors
/// [`Fault::Request`]; [`Fault::Hsm`].
pub(super) fn opened<T>(
    what: &str,
    open: impl Fn() -> Result<T, Pkcs11Error>,
    try_known: impl Fn() -> Result<(), Pkcs11Error>,
) -> Result<T, Fault> {
    let first = match open() {
        Err(error) if !error.is_lie() => error,
        opened => return Ok(opened?),
    };
    if try_known().is_err() {
        return Err(first.into());
    }
    open().map_err(|second| match second.to_string() == first.to_string() {
        true => Fault::Request(format!("{what} that does not open ({second})")),
        false => second.into(),
    })
}

/// Destroys an object that the module made otherwise than asked for: it may be readable.
pub(super) fn checked(session: &Session, object: Object, shape: &Shape) -> Result<(), Fault> {
    let Err(error) = session.check(object, shape) else { return Ok(()) };
    let fault = match error.is_of_object() {
        true => Fault::hsm(format!("C_UnwrapKey: {error}")),
        false => error.into(),
    };
    session.destroy_after(object, Err(fault))
}

/// A map that forgets its oldest entry when it is full.
struct Fifo<K, V> {
    entries: HashMap<Rc<K>, V>,
    order: VecDeque<Rc<K>>,
    entries_max: usize,
}

impl<K: Eq + Hash, V> Fifo<K, V> {
    fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), entries_max: entries_max.max(1) }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Adds an entry whose key is not there yet; returns the value it had to give up for it.
    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let evicted = if self.entries.len() < self.entries_max {
            None
        } else {
            self.order.pop_front().and_then(|oldest| self.entries.remove(&oldest))
        };
        let key = Rc::new(key);
        self.order.push_back(key.clone());
        self.entries.insert(key, value);
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::*;
    use crate::domain::signer::tests::key_named;

    #[test]
    fn the_oldest_entry_goes_first_and_the_bound_holds() {
        let mut fifo = Fifo::new(2);
        assert_eq!(fifo.insert(1, 'a'), None);
        assert_eq!(fifo.insert(2, 'b'), None);
        assert_eq!(fifo.get(&1), Some(&'a'));
        assert_eq!(fifo.insert(3, 'c'), Some('a'), "being used makes it no younger");
        assert_eq!(fifo.insert(1, 'd'), Some('b'));
        assert_eq!((fifo.get(&1), fifo.get(&2), fifo.get(&3)), (Some(&'d'), None, Some(&'c')));
        assert_eq!((fifo.entries.len(), fifo.order.len()), (2, 2));
    }

    #[test]
    fn a_cache_of_none_holds_one() {
        let mut fifo = Fifo::new(0);
        assert_eq!(fifo.insert(1, 'a'), None);
        assert_eq!(fifo.insert(2, 'b'), Some('a'));
    }

    #[test]
    fn seeds_are_padded_to_the_hash_and_to_whole_blocks() {
        let padded = |seed_bytes, algorithm| padded_bytes(seed_bytes, algorithm);
        assert_eq!([16, 20, 24, 25, 64].map(|n| padded(n, Algorithm::Sha1)), [24, 24, 24, 32, 64]);
        assert_eq!([16, 32, 33, 61].map(|n| padded(n, Algorithm::Sha256)), [32, 32, 40, 64]);
        assert_eq!([16, 64].map(|n| padded(n, Algorithm::Sha512)), [64, 64]);
    }

    #[test]
    fn a_key_that_the_module_does_not_take_is_no_fault_of_the_hsm() {
        const NAME: &str =
            "custodian::secrets::tests::a_key_that_the_module_does_not_take_is_no_fault_of_the_hsm";
        with_session(NAME, |session| {
            let key = session.create(&departing(24), &[1; 24]).unwrap();
            let otherwise = session.check(key, &Shape { extractable: false, ..departing(24) }).unwrap_err();
            assert!(matches!(of_key(otherwise), Fault::Request(reason) if reason.ends_with("as asked for")));
            session.destroy(key).unwrap();
            let gone = session.destroy(key).unwrap_err();
            assert!(matches!(of_key(gone), Fault::Hsm(_)));
        });
    }

    #[test]
    fn there_are_no_more_public_keys_than_the_cache_holds() {
        const NAME: &str = "custodian::secrets::tests::there_are_no_more_public_keys_than_the_cache_holds";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let own = Keys::load(&session).unwrap();
            let resting = session.session_objects();
            let mut keys = PublicKeys::new(2);
            for (name, objects) in [
                ("p256", 1),
                ("p256", 1),
                ("rsa2048", 2),
                ("p256", 2),
                ("rsa4096", 2),
                ("p256", 2),
                ("rsa4096", 2),
            ] {
                keys.open(&session, &own, key_named(name)).unwrap();
                assert_eq!(session.session_objects(), resting + objects, "{name}");
            }
        });
    }
}
