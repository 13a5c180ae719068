//! The right codes of a token: what exists in a custodian alone.

use zeroize::Zeroizing;

use super::pkcs11::{Object, Session};
use crate::domain::credential::{OcraToken, OtpToken};
use crate::domain::ocra::{self, Challenge};
use crate::domain::otp::{Algorithm, Digits, Otp, truncate};
use crate::domain::verification::Factor;
use crate::hsm::messages::Fault;

/// A token, with all that its codes are computed from but the factor and the seed.
pub enum Token<'a> {
    /// HOTP or TOTP.
    Otp(&'a OtpToken),
    /// OCRA.
    Ocra {
        /// Its parameters.
        token: &'a OcraToken,
        /// What was asked.
        challenge: &'a Challenge,
        /// Suites with P: the hash of its PIN.
        pin_hash: Option<Zeroizing<Vec<u8>>>,
    },
}

impl Token<'_> {
    /// The hash under its HMAC.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Otp(token) => token.algorithm,
            Self::Ocra { token, .. } => token.suite.algorithm(),
        }
    }

    /// The length of its codes.
    pub fn digits(&self) -> Digits {
        match self {
            Self::Otp(token) => token.digits,
            Self::Ocra { token, .. } => token.suite.digits(),
        }
    }

    /// What the code of `factor` is the HMAC of.
    ///
    /// # Errors
    /// [`Fault::Request`] if such a token has no such factor, or its challenge or PIN hash is not its suite's.
    pub fn message(&self, factor: Factor) -> Result<Zeroizing<Vec<u8>>, Fault> {
        match self {
            Self::Otp(_) => factor
                .single()
                .map(|number| Zeroizing::new(number.to_be_bytes().to_vec()))
                .ok_or_else(|| Fault::Request("a HOTP or TOTP code has one factor".into())),
            Self::Ocra { token, challenge, pin_hash } => {
                let pin_hash = pin_hash.as_ref().map(|hash| hash.as_slice());
                let Factor { counter, time_step } = factor;
                ocra::data_input(&token.suite, challenge, counter, pin_hash, time_step)
                    .map_err(|error| Fault::Request(error.to_string()))
            }
        }
    }

    /// The right code of `factor`.
    ///
    /// # Errors
    /// As for [`Token::message`]; [`Fault::Hsm`].
    pub fn code(&self, session: &Session, key: Object, factor: Factor) -> Result<Otp, Fault> {
        expected(session, key, self.algorithm(), self.digits(), &self.message(factor)?)
    }
}

/// The truncated HMAC of `message`.
///
/// # Errors
/// [`Fault::Hsm`].
pub fn expected(
    session: &Session,
    key: Object,
    algorithm: Algorithm,
    digits: Digits,
    message: &[u8],
) -> Result<Otp, Fault> {
    let mac = session.hmac(algorithm, key, message)?;
    truncate(&mac, digits).ok_or_else(|| Fault::hsm("C_Sign: no HMAC"))
}
