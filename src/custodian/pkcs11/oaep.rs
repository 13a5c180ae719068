//! Secrets on their way in: wrapped for a public key outside, unwrapped inside the module (RSAES-OAEP with SHA-1 and no
//! label, RFC 8017, section 7.1: SoftHSM has no other hash).

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType};

use super::key_pair::RSA_BYTES;
use super::session::{Object, Session};
use super::shape::Shape;
use super::{Cause, Pkcs11Error};

pub(super) fn oaep() -> Mechanism<'static> {
    let mask = PkcsMgfType::MGF1_SHA1;
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(MechanismType::SHA1, mask, PkcsOaepSource::empty()))
}

impl Session {
    /// The key under the public half of an RSA pair of ours: [`RSA_BYTES`].
    ///
    /// # Errors
    /// `C_WrapKey` failed, or returned another length.
    pub fn wrap_oaep(&self, public: Object, key: Object) -> Result<Vec<u8>, Pkcs11Error> {
        let blob = self.raw.wrap_key(&oaep(), self.handle(public)?, self.handle(key)?)?;
        match blob.len() == RSA_BYTES {
            true => Ok(blob),
            false => Err(Pkcs11Error(Cause::Length("C_WrapKey"))),
        }
    }

    /// Reads back what `C_UnwrapKey` made, with its length if the module tells that.
    ///
    /// # Errors
    /// Names the first attribute that is not as `shape` says.
    pub fn check_unwrapped(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        match self.attributes(object, &[AttributeType::ValueLen])?.as_slice() {
            [Attribute::ValueLen(length)] if **length != 0 => self.check(object, shape),
            // SoftHSM says 0 of whatever was unwrapped.
            _ => self.check(object, &Shape { length_bytes: None, ..*shape }),
        }
    }

    /// The key in `blob` as an object of this shape, whose length the module takes from the blob.
    ///
    /// # Errors
    /// `C_UnwrapKey` failed: also if nobody wrapped this for the pair.
    pub fn unwrap_oaep(&self, private: Object, blob: &[u8], shape: &Shape) -> Result<Object, Pkcs11Error> {
        let handle = self.raw.unwrap_key(&oaep(), self.handle(private)?, blob, &shape.attributes())?;
        self.made("C_UnwrapKey", handle)
    }
}
