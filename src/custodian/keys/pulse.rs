//! A sign of life of a token: that it is still the one whose keys were opened.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::name::{Form, KeyName};
use crate::custodian::pkcs11::{Object, Pkcs11Error, Session};
use crate::domain::otp::Algorithm;

/// Something the HSM must always answer alike.
pub struct Pulse {
    key: Object,
    name: KeyName,
    answer: Zeroizing<Vec<u8>>,
}

impl Pulse {
    const MESSAGE: &[u8] = b"hsm-authd/row/health/v1";

    /// # Errors
    /// The HSM failed.
    pub fn new(session: &Session, name: KeyName, key: Object) -> Result<Self, Pkcs11Error> {
        Ok(Self { key, name, answer: Self::take(session, key)? })
    }

    fn take(session: &Session, key: Object) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        session.hmac(Algorithm::Sha256, key, Self::MESSAGE)
    }

    /// Has the HSM compute what it computed at the start; `false`: its answer is another now. With
    /// the token's own key: a copy would go on answering after the token is gone.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn check(&self, session: &Session) -> Result<bool, Pkcs11Error> {
        Ok(Self::take(session, self.key)?.ct_eq(&self.answer).into())
    }

    /// The same, and whether the HSM reads of that key what it read at the start.
    ///
    /// # Errors
    /// The HSM failed.
    pub fn check_reading(&self, session: &Session) -> Result<bool, Pkcs11Error> {
        let Form::Secret(shape, _) = self.name.kind.form() else { return Ok(false) };
        let label = self.name.to_string();
        let read = session.check_own(self.key, &shape).and_then(|()| session.check_label(self.key, &label));
        match read {
            Err(error) if error.is_of_object() => Ok(false),
            read => read.and_then(|()| self.check(session)),
        }
    }

    /// Expects another answer than the HSM gives, as if it were the HSM that had changed.
    #[cfg(test)]
    pub fn expect_another(&mut self) {
        self.answer = Zeroizing::new(vec![0; 32]);
    }
}
