//! Keys that are in several tokens: born as session objects that may leave, wrapped for each token's RSA pair, and
//! unwrapped there into objects that never leave.

use cryptoki::object::{Attribute, KeyType, ObjectClass};

use super::Pkcs11Error;
use super::mechanisms::Purpose;
use super::session::{Object, Session};
use super::shape::{Shape, Use};
use crate::domain::signer::RsaKey;

/// All that is asked of a public key that wraps, and read back.
fn wrapping(key: &RsaKey) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Derive(false),
        Attribute::Modulus(key.modulus().to_vec()),
        Attribute::PublicExponent(key.exponent().to_vec()),
    ]
}

impl Session {
    /// The same session, which takes secret keys of ours that were not made in this token, or does not.
    #[must_use]
    pub fn accepting_shared_keys(self, accepted: bool) -> Self {
        Self { accepting_shared_keys: accepted, ..self }
    }

    /// Reads a secret key of ours back, and where it is from: nothing but this token, unless keys are shared.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as it must be.
    pub fn check_own(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        match self.accepting_shared_keys {
            true => self.check_unwrapped(object, shape),
            false => self.check(object, shape).and_then(|()| self.check_made_inside(object)),
        }
    }

    /// Reads a copy of such a key back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as `shape` says.
    pub fn check_copy(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        match self.accepting_shared_keys {
            true => self.check_unwrapped(object, shape),
            false => self.check(object, shape),
        }
    }

    /// A session object that wraps for whoever has the private half, and does nothing else.
    ///
    /// # Errors
    /// `C_CreateObject` failed, or names the attribute that is not as asked for.
    pub fn create_wrapping_key(&self, key: &RsaKey) -> Result<Object, Pkcs11Error> {
        let wanted = wrapping(key);
        let object = self.made("C_CreateObject", self.raw.create_object(&wanted)?)?;
        // With the session it ends in any case.
        self.check_attributes(object, &wanted).inspect_err(|_| drop(self.destroy(object)))?;
        Ok(object)
    }

    /// The key in `blob` as a token object of this shape, with this label and for this purpose. It was read back; one that
    /// is not as asked for is destroyed. It is made unmodifiable, unless it wraps ([`Session::generate_labelled`]).
    ///
    /// # Errors
    /// `C_UnwrapKey` failed: also if nobody wrapped this for the pair. Or names the attribute.
    pub fn take_oaep(
        &self,
        private: Object,
        blob: &[u8],
        shape: &Shape,
        label: &str,
        purpose: Purpose,
    ) -> Result<Object, Pkcs11Error> {
        let besides = [
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Modifiable(shape.purpose == Some(Use::Wrap)),
        ];
        let [label, modifiable] = besides.each_ref().map(std::slice::from_ref);
        let mine = [&[Attribute::Token(true)], label].concat();
        let private = self.handle(private)?;
        let object = self.made_with(purpose.attribute(), &mine, |allowed| {
            // That it cannot be modified comes last: SoftHSM holds what follows it in an unwrapping for a modification.
            let template = [&shape.attributes(), label, allowed, modifiable].concat();
            self.made("C_UnwrapKey", self.raw.unwrap_key(&super::oaep::oaep(), private, blob, &template)?)
        })?;
        let checked = self
            .check_unwrapped(object, shape)
            .and_then(|()| self.check_attributes(object, &besides))
            .and_then(|()| self.check_purpose(object, purpose));
        // Its maker keeps it under a mark: what cannot be destroyed goes with the next run.
        checked.inspect_err(|_| drop(self.destroy(object)))?;
        Ok(object)
    }
}
