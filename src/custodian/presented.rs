//! Presented codes: the code itself, and the authorization of devices that may ask for one.

use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::attest::signed_digest;
use super::checks::credential_of;
use super::operations::{Operations, replaced};
use super::secrets::verified;
use crate::domain::authorization::{Authorization, Means, Way};
use crate::domain::credential::{Credential, Kind, Terminal};
use crate::domain::enc::enc;
use crate::domain::id::PresentationId;
use crate::domain::otp::{Algorithm, Otp};
use crate::domain::presentation::{CODE_BYTES, PresentationCode};
use crate::domain::row::{Row, SealedBytes};
use crate::domain::signer::signature::Signature;
use crate::hsm::messages::{AuthorizationStep, CheckAuthorization, Fault, Response};
use crate::secret::SecretBytes;

impl Operations {
    /// The code of a presentation: of a new one under the newest version of `row`, of one that was made the one that
    /// has its hash, whichever version that comes from.
    ///
    /// # Errors
    /// [`Fault::Request`]: no version makes that one.
    pub(super) fn presentation_code(
        &self,
        id: PresentationId,
        nonce: &[u8; 32],
        code_hash: Option<&[u8; 32]>,
    ) -> Result<Response, Fault> {
        let message = enc(&[id.to_string().as_bytes(), nonce]);
        let mut codes = self.keys.presentations(&message).filter_map(|mac| {
            let bits = Zeroizing::new(*mac.first_chunk::<CODE_BYTES>()?);
            Some((PresentationCode::new(&bits).hash(), bits))
        });
        let code = self.keys.noted(codes.find(|(hash, _)| code_hash.is_none_or(|wanted| wanted == hash)));
        let (_, bits) = code.ok_or_else(|| refused("a code that was made by a `row` key that is gone"))?;
        Ok(Response::PresentationCode(SecretBytes::new(bits.to_vec())))
    }

    /// Both codes of an authorization by SMS.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn authorization_codes(&mut self, standing: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(standing)?;
        let (authorization, terminal) = authorization_of(standing)?;
        let terminal = terminal.ok_or_else(|| refused("an authorization without codes"))?;
        Ok(Response::AuthorizationCodes {
            downlink: self.authorization_code(&authorization, &terminal, Way::Downlink)?,
            uplink: self.authorization_code(&authorization, &terminal, Way::Uplink)?,
        })
    }

    /// A step of an authorization: one verdict on all that is presented, and all of it is computed whatever the first
    /// part of it is worth.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn check_authorization(&mut self, check: &CheckAuthorization) -> Result<Response, Fault> {
        self.verify_seals(&check.standing)?;
        for outcome in [&check.accepted, &check.missed] {
            replaced(&check.standing, &outcome.replaces)?;
        }
        let device = credential_of(&check.standing)?;
        let (authorization, terminal) = authorization_of(&check.standing)?;
        if !belongs(&device, &authorization) || device.id != authorization.credential {
            return Err(refused("an authorization of another device"));
        }
        if authorization.attempts_left == 0 {
            return Err(refused("an authorization without an attempt left"));
        }
        let accepted: bool = match (&check.step, &terminal) {
            (AuthorizationStep::Uplink { code, from }, Some(terminal)) => {
                let expected = self.authorization_code(&authorization, terminal, Way::Uplink)?;
                let is_from = from.as_str().as_bytes().ct_eq(terminal.address.as_str().as_bytes());
                (Choice::from(u8::from(expected.matches(code))) & is_from).into()
            }
            (AuthorizationStep::Completion { code: None, digest, jws_header, signature }, None) => {
                self.is_signed(&device, &authorization, digest, jws_header.as_deref(), signature.as_ref())?
            }
            (
                AuthorizationStep::Completion { code: Some(code), digest, jws_header, signature },
                Some(terminal),
            ) => {
                if !authorization.uplink_seen {
                    return Err(refused("a completion before the uplink"));
                }
                let expected = self.authorization_code(&authorization, terminal, Way::Downlink)?;
                let header = jws_header.as_deref();
                let is_signed =
                    self.is_signed(&device, &authorization, digest, header, signature.as_ref())?;
                (Choice::from(u8::from(expected.matches(code))) & Choice::from(u8::from(is_signed))).into()
            }
            _ => return Err(refused("an authorization that has no such step")),
        };
        let outcome = if accepted { &check.accepted } else { &check.missed };
        let sealed = self.seal_outcome(&check.standing, &outcome.replaces, outcome.rows.iter())?;
        Ok(Response::AuthorizationChecked { accepted, sealed })
    }

    fn authorization_code(
        &mut self,
        authorization: &Authorization,
        terminal: &Terminal,
        way: Way,
    ) -> Result<Otp, Fault> {
        let secret = terminal.secret.clone().ok_or_else(|| refused("the terminal has no secret"))?;
        let key = self.open(secret, Algorithm::Sha256)?;
        let mac = self.session.hmac(Algorithm::Sha256, key, &authorization.code_message(way))?;
        Authorization::code(&mac).ok_or_else(|| Fault::hsm("C_Sign: no HMAC"))
    }

    /// Whether the device signed this authorization, whose bytes are computed from its sealed row. Of an assertion, whose
    /// challenge the front has read, the digest is what the front says.
    fn is_signed(
        &mut self,
        device: &Credential,
        authorization: &Authorization,
        digest: &[u8; 32],
        jws_header: Option<&str>,
        signature: Option<&Signature>,
    ) -> Result<bool, Fault> {
        let signer = device.kind.signer().ok_or_else(|| refused("the credential signs nothing"))?;
        let key = signer.key.clone().ok_or_else(|| refused("the credential has no key"))?;
        let is_assertion = matches!(device.kind, Kind::Authenticator(_));
        if !is_assertion && *digest != signed_digest(&authorization.signing_input(), jws_header) {
            return Err(refused("a signature of something else than the authorization"));
        }
        let Some(signature) = signature else { return Ok(false) };
        let key = self.public_keys.open(&self.session, &self.keys, key)?;
        verified((&self.session, &self.keys), &key, digest, signature)
    }
}

fn refused(reason: &str) -> Fault {
    Fault::Request(reason.to_owned())
}

fn belongs(credential: &Credential, authorization: &Authorization) -> bool {
    credential.tenant == authorization.tenant && credential.account == authorization.account
}

/// The authorization that is among the rows, and its terminal, if it is by SMS: one of the same account.
fn authorization_of(standing: &[SealedBytes]) -> Result<(Authorization, Option<Terminal>), Fault> {
    let rows: Vec<Row> = standing.iter().filter_map(|row| row.bytes.decode()).collect();
    let authorization = rows.iter().find_map(|row| match row {
        Row::Authorization(authorization) => Some(authorization.clone()),
        _ => None,
    });
    let authorization = authorization.ok_or_else(|| refused("there is no authorization"))?;
    let Means::Sms { terminal: id } = authorization.means else { return Ok((authorization, None)) };
    let terminal = rows.into_iter().find_map(|row| match row {
        Row::Credential(credential) if credential.id == id && belongs(&credential, &authorization) => {
            match credential.kind {
                Kind::Terminal(terminal) => Some(terminal),
                _ => None,
            }
        }
        _ => None,
    });
    match terminal {
        Some(terminal) => Ok((authorization, Some(terminal))),
        None => Err(refused("the authorization's terminal is not among the rows")),
    }
}
