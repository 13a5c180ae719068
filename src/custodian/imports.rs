//! Seeds that come wrapped for the `import` key: opened in the HSM, and wrapped again under the `kek`. No byte of one
//! is ever in this process, but for a module that keeps its keys there.

use super::keys::ImportKey;
use super::operations::Operations;
use super::pkcs11::{Object, Pkcs11Error, Shape};
use super::secrets::departing;
use super::wrapping::{COMPARED, is_of_zeros, is_same};
use crate::domain::credential::StoredSecret;
use crate::domain::otp::Algorithm;
use crate::domain::wrapped_seed::{WRAPPED_BYTES, WrappedSeed};
use crate::hsm::messages::{Custody, Failure, Fault, Remedy, Response};

/// Why a blob was not opened. It stays in this process.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("{0}")]
    Module(#[from] Pkcs11Error),
    #[error("the blob is not below the modulus")]
    TooLarge,
    #[error("there is nothing but zeros in it")]
    Zeros,
}

impl Operations {
    /// The key to wrap seeds for.
    pub(super) fn import_key(&self) -> Response {
        Response::ImportKey(self.keys.newest_import().public().clone())
    }

    /// The seed under the `kek`, if any version of `import` opens it.
    ///
    /// # Errors
    /// [`Fault::Hsm`]: what was wrapped here is not opened either.
    pub(super) fn import_wrapped(
        &mut self,
        seed: &WrappedSeed,
        algorithm: Algorithm,
        custody: Custody,
    ) -> Result<Response, Fault> {
        let mut opened = self.open_by_any(seed)?;
        if opened.is_none() {
            // Modules say the same of a blob that nobody wrapped as of their own failure (CKR_GENERAL_ERROR), so no
            // return code is trusted: whoever sends garbage is not to end custodians. What was wrapped here tells the
            // two apart, and a second time whether they failed but once.
            for key in self.keys.import() {
                self.check_import(key)?;
            }
            opened = self.open_by_any(seed)?;
            // What failed at first may have made a secret that may leave: it goes with its session.
            if opened.is_some() {
                let failure = "C_UnwrapKey: a seed that was opened only the second time";
                return Err(Fault::Hsm(Failure::with(Remedy::NewSession, failure)));
            }
        }
        if let Some(wrapped) = opened {
            return Ok(Response::Imported(Some(self.settle(wrapped, algorithm, custody)?)));
        }
        // Or it was wrapped for a version that is new.
        Ok(Response::Imported(self.keys.noted(None)))
    }

    fn open_by_any(&self, seed: &WrappedSeed) -> Result<Option<StoredSecret>, Fault> {
        for key in self.keys.import() {
            if let Ok(wrapped) = self.open_wrapped(key, seed)? {
                return Ok(Some(wrapped));
            }
        }
        Ok(None)
    }

    /// Has a key of `import` do with a known seed all that it does with others.
    ///
    /// # Errors
    /// [`Fault::Hsm`]: a step of it fails, or another seed comes out.
    pub(super) fn check_import(&self, key: &ImportKey) -> Result<StoredSecret, Fault> {
        let failed = |unopened: Unopened| {
            let what = format!("key {}: of a known seed: {unopened}", key.name());
            Fault::Hsm(match unopened {
                Unopened::Module(error) => Failure::with(error.healing(), what),
                Unopened::TooLarge | Unopened::Zeros => Failure::new(what),
            })
        };
        self.open_wrapped(key, key.trial())?.map_err(failed)
    }

    /// What is in the blob, under the newest `kek`. The inner error is the blob's fault or the HSM's.
    fn open_wrapped(
        &self,
        key: &ImportKey,
        seed: &WrappedSeed,
    ) -> Result<Result<StoredSecret, Unopened>, Fault> {
        if !key.may_have_made(seed) {
            return Ok(Err(Unopened::TooLarge));
        }
        let shape = departing(WRAPPED_BYTES);
        let object = match believed(self.session.unwrap_oaep(key.private(), seed.as_bytes(), &shape))? {
            Ok(object) => object,
            Err(error) => return Ok(Err(error)),
        };
        // Extractable: it goes whatever came of it, and a session that cannot let it go ends.
        self.destroy_departed(object, self.wrap_opened(object, &shape))
    }

    /// The seed under the newest `kek`, if it is one that is not known to everybody.
    fn wrap_opened(&self, object: Object, shape: &Shape) -> Result<Result<StoredSecret, Unopened>, Fault> {
        let (kek_version, kek) = self.keys.newest_kek();
        let session = &self.session;
        // A module that does not tell the length (below) may fill a shorter key up when it wraps it: SoftHSM does. But it
        // takes no key for an HMAC that is shorter than the hash's output, and of SHA-512 those are the 64 bytes.
        let mac = session
            .check_unwrapped(object, shape)
            .and_then(|()| session.hmac(Algorithm::Sha512, object, COMPARED));
        let mac = match believed(mac)? {
            Ok(mac) if is_of_zeros(Algorithm::Sha512, &mac) => return Ok(Err(Unopened::Zeros)),
            Ok(mac) => mac,
            Err(error) => return Ok(Err(error)),
        };
        // Not every module tells a key's length, and the binding not that of a blob. RFC 3394 checks itself: the blob of
        // a longer key, cut to that of 64 bytes, does not open, nor does that of a shorter one with room behind it.
        let blob = session.wrap(kek, object, WRAPPED_BYTES);
        let opened = blob.and_then(|blob| Ok((self.mac_of_blob(kek, &blob, Algorithm::Sha512)?, blob)));
        let (opened, blob) = match believed(opened)? {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        is_same(&mac, &opened, "C_WrapKey: another key than that which was wrapped")?;
        Ok(Ok(StoredSecret::Wrapped { kek_version, blob }))
    }
}

/// What a module says of a blob may be the blob's fault. What it says yes to, and is wrong, is not.
fn believed<T>(said: Result<T, Pkcs11Error>) -> Result<Result<T, Unopened>, Fault> {
    match said {
        Err(error) if error.is_lie() => Err(error.into()),
        said => Ok(said.map_err(Unopened::from)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{KeyName, Keys, Kind};
    use super::super::pkcs11::{Half, Object, Session};
    use super::super::residents::Residents;
    use super::super::test_token::with_session;
    use super::super::token::make_keys;
    use super::*;
    use crate::domain::wrapped_seed::BLOB_BYTES;
    use crate::hsm::messages::Request;

    const SEED: &[u8; WRAPPED_BYTES] =
        b"12345678901234567890\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    fn half(session: &Session, version: u16, wanted: Half) -> Object {
        let name = KeyName { kind: Kind::Import, version }.to_string();
        let objects = session.labelled_objects().unwrap();
        let is = |object: Object| session.half(object).unwrap() == Some(wanted);
        objects.into_iter().find(|(object, label)| *label == name && is(*object)).unwrap().0
    }

    /// Any bytes, wrapped for that version.
    fn wrapped_for(session: &Session, version: u16, bytes: &[u8]) -> WrappedSeed {
        let key = session.create(&departing(bytes.len()), bytes).unwrap();
        let blob = session.wrap_oaep(half(session, version, Half::Public), key).unwrap();
        session.destroy(key).unwrap();
        WrappedSeed::try_from(blob).unwrap()
    }

    fn imported(operations: &mut Operations, seed: WrappedSeed) -> Result<Option<StoredSecret>, Fault> {
        match operations.answer(
            &Request::ImportWrapped { algorithm: Algorithm::Sha256, seed, custody: Custody::Wrapped },
            false,
        )? {
            Response::Imported(wrapped) => Ok(wrapped),
            _ => panic!("another response"),
        }
    }

    fn operations(session: Session) -> Operations {
        let keys = Keys::load(&session).unwrap();
        let residents = Residents::load(&session, &|| ()).unwrap();
        Operations::new(session, keys, residents, 2)
    }

    #[test]
    fn what_was_wrapped_arrives_and_what_was_not_is_refused() {
        const NAME: &str = "custodian::imports::tests::what_was_wrapped_arrives_and_what_was_not_is_refused";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let mut operations = operations(session);
            operations.self_test().unwrap();
            let resting = operations.session.session_objects();
            let wrapped = |operations: &Operations, bytes: &[u8]| wrapped_for(&operations.session, 1, bytes);

            let right = wrapped(&operations, SEED);
            let secret = imported(&mut operations, right.clone()).unwrap().unwrap();
            assert_eq!(secret.parts().1.len(), WRAPPED_BYTES + 8);
            for algorithm in [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512] {
                let opened = operations.open(secret.clone(), algorithm).unwrap();
                let Operations { session, keys, .. } = &mut operations;
                let own = session.create(&super::super::secrets::departing(64), SEED).unwrap();
                let (kek_version, kek) = keys.newest_kek();
                let blob = session.wrap(kek, own, 64).unwrap();
                session.destroy(own).unwrap();
                assert_eq!(StoredSecret::Wrapped { kek_version, blob }, secret, "key wrap is deterministic");
                assert_eq!(session.hmac(algorithm, opened, b"").unwrap().len(), algorithm.output_bytes());
            }
            let cached = operations.session.session_objects();
            assert!(cached <= resting + 2);

            // Other lengths, those included that key wrap does not take, or of which a part would be 64 bytes.
            for bytes in [1, 8, 16, 20, 32, 55, 56, 57, 63, 65, 71, 72, 96, 128, 342] {
                let seed = wrapped(&operations, &vec![0xa5; bytes]);
                assert_eq!(imported(&mut operations, seed).unwrap(), None, "{bytes} bytes");
            }
            let zeros = wrapped(&operations, &[0; WRAPPED_BYTES]);
            assert_eq!(imported(&mut operations, zeros).unwrap(), None, "zeros");

            // Each byte of it changed, and what is no number below the modulus.
            for place in [0, 1, 191, 382, 383] {
                let mut bytes = right.as_bytes().to_vec();
                bytes[place] ^= 1;
                let seed = WrappedSeed::try_from(bytes).unwrap();
                assert_eq!(imported(&mut operations, seed).unwrap(), None, "byte {place}");
            }
            let modulus = match operations.keys.newest_import().public() {
                crate::domain::signer::PublicKey::Rsa(key) => key.modulus().to_vec(),
                _ => panic!("no RSA key"),
            };
            for bytes in [vec![0; BLOB_BYTES], vec![0xff; BLOB_BYTES], modulus] {
                assert_eq!(imported(&mut operations, WrappedSeed::try_from(bytes).unwrap()).unwrap(), None);
            }
            assert_eq!(operations.session.session_objects(), cached, "nothing is left of any of them");
            assert!(imported(&mut operations, right).unwrap().is_some(), "and it goes on");
        });
    }

    #[test]
    fn older_versions_still_open_what_was_wrapped_for_them() {
        const NAME: &str = "custodian::imports::tests::older_versions_still_open_what_was_wrapped_for_them";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let name = KeyName { kind: Kind::Import, version: 2 }.to_string();
            session.generate_pair(&name, super::super::pkcs11::PairForm::Rsa3072).unwrap();
            let old = wrapped_for(&session, 1, SEED);
            let new = wrapped_for(&session, 2, SEED);
            let mut operations = operations(session);
            let first = imported(&mut operations, old).unwrap();
            assert!(first.is_some());
            assert_eq!(imported(&mut operations, new).unwrap(), first);
            let garbage = WrappedSeed::try_from(vec![7; BLOB_BYTES]).unwrap();
            assert_eq!(imported(&mut operations, garbage).unwrap(), None);
            assert_eq!(operations.keys.newest_import().name().version, 2);
        });
    }

    #[test]
    fn a_key_that_is_gone_is_the_hsms_fault_and_no_blobs() {
        const NAME: &str = "custodian::imports::tests::a_key_that_is_gone_is_the_hsms_fault_and_no_blobs";
        with_session(NAME, |session| {
            make_keys(&session, "unit", &mut std::io::sink()).unwrap();
            let right = wrapped_for(&session, 1, SEED);
            let mut operations = operations(session);
            assert!(imported(&mut operations, right.clone()).unwrap().is_some());
            let private = half(&operations.session, 1, Half::Private);
            operations.session.destroy(private).unwrap();
            let garbage = WrappedSeed::try_from(vec![7; BLOB_BYTES]).unwrap();
            for seed in [right, garbage] {
                match imported(&mut operations, seed) {
                    Err(Fault::Hsm(reason)) => {
                        assert!(
                            reason.to_string().starts_with("key hsm-authd/import/v1: of a known seed: C_"),
                            "{reason}"
                        );
                    }
                    other => panic!("{:?}", other.err()),
                }
            }
        });
    }
}
