//! Checks of what somebody presented: a code, or a signature. Out goes only whether it is right.

use super::attest::{Attested, is_signed, validated};
use super::codes::Token;
use super::operations::{Operations, replaced};
use super::pin_hash;
use super::pkcs11::Object;
use super::secrets::verified;
use crate::domain::credential::{Credential, Kind, StoredSecret};
use crate::domain::ocra::Challenge;
use crate::domain::otp::{Digits, Otp};
use crate::domain::row::{Row, SealedBytes};
use crate::hsm::messages::{Attest, Candidate, CheckOtp, CheckSignature, Fault, Response};

/// The most candidates of one check.
const CANDIDATES_MAX: usize = 1_024;

impl Operations {
    /// A code, or two consecutive ones, against candidates.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn check_otp(&mut self, check: &CheckOtp) -> Result<Response, Fault> {
        // Everything that can be wrong with the message, whatever the codes turn out to be.
        self.verify_seals(&check.standing)?;
        let credential = credential_of(&check.standing)?;
        let (token, secret) = self.token(&credential, check.challenge.as_ref())?;
        let codes = Codes::new(&check.codes, token.digits())?;
        if check.candidates.len() > CANDIDATES_MAX {
            return Err(Fault::Request(format!("more than {CANDIDATES_MAX} candidates")));
        }
        for candidate in &check.candidates {
            token.message(candidate.factor)?;
        }
        for outcome in [&check.accepted, &check.repeated, &check.missed] {
            replaced(&check.standing, &outcome.replaces)?;
        }
        let challenge = check.challenge.as_ref();
        let attest = validated(check.attest.as_ref(), &credential, challenge, &check.standing)?;

        let key = self.open(secret, token.algorithm())?;
        let matched = self.first_match(key, &token, &codes, &check.candidates)?;
        let (outcome, rows, attest) = match matched {
            None => (&check.missed, [].as_slice(), None),
            Some((_, Candidate { rows: None, .. })) => (&check.repeated, [].as_slice(), None),
            Some((_, Candidate { rows: Some(rows), .. })) => (&check.accepted, rows.as_slice(), attest),
        };
        let attested = self.attest(attest)?;
        let rows = rows.iter().chain(&outcome.rows).chain(attested.as_ref().map(|attested| &attested.row));
        let sealed = self.seal_outcome(&check.standing, &outcome.replaces, rows)?;
        let attestation = attested.map(|attested| attested.jws);
        Ok(Response::Checked { matched: matched.map(|(position, _)| position), sealed, attestation })
    }

    /// What the credential's codes are computed from, and its seed.
    fn token<'a>(
        &self,
        credential: &'a Credential,
        challenge: Option<&'a Challenge>,
    ) -> Result<(Token<'a>, StoredSecret), Fault> {
        let no_secret = || Fault::Request("the credential has no secret".into());
        match (&credential.kind, challenge) {
            (Kind::Otp(token), None) => Ok((Token::Otp(token), token.secret.clone().ok_or_else(no_secret)?)),
            (Kind::Ocra(token), Some(challenge)) => {
                let secret = token.secret.clone().ok_or_else(no_secret)?;
                let pin_hash = token.pin_hash.as_ref();
                let pin_hash = pin_hash
                    .map(|encrypted| pin_hash::decrypt(&self.session, &self.keys, credential.id, encrypted))
                    .transpose()?;
                Ok((Token::Ocra { token, challenge, pin_hash }, secret))
            }
            _ => Err(Fault::Request("the credential has no such codes".into())),
        }
    }

    fn first_match<'a>(
        &self,
        key: Object,
        token: &Token<'_>,
        codes: &Codes<'_>,
        candidates: &'a [Candidate],
    ) -> Result<Option<(u16, &'a Candidate)>, Fault> {
        for (position, candidate) in (0u16..).zip(candidates) {
            if !token.code(&self.session, key, candidate.factor)?.matches(codes.first) {
                continue;
            }
            let Some(second) = codes.second else { return Ok(Some((position, candidate))) };
            for factor in candidate.factor.successors() {
                if token.code(&self.session, key, factor)?.matches(second) {
                    return Ok(Some((position, candidate)));
                }
            }
        }
        Ok(None)
    }

    /// A signature, verified by the HSM.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn check_signature(&mut self, check: &CheckSignature) -> Result<Response, Fault> {
        self.verify_seals(&check.standing)?;
        for outcome in [&check.accepted, &check.refused] {
            replaced(&check.standing, &outcome.replaces)?;
        }
        let credential = credential_of(&check.standing)?;
        let attest = validated(check.attest.as_ref(), &credential, None, &check.standing)?;
        if let Some(attest) = attest {
            is_signed(attest, &credential, check)?;
        }
        let signer =
            credential.kind.signer().ok_or_else(|| Fault::Request("the credential signs nothing".into()))?;
        let key = signer.key.clone().ok_or_else(|| Fault::Request("the credential has no key".into()))?;
        let valid = match &check.signature {
            None => false,
            Some(signature) => {
                let key = self.public_keys.open(&self.session, &self.keys, key)?;
                verified((&self.session, &self.keys), &key, &check.digest, signature)?
            }
        };
        let (outcome, attest) = if valid { (&check.accepted, attest) } else { (&check.refused, None) };
        let attested = self.attest(attest)?;
        let rows = outcome.rows.iter().chain(attested.as_ref().map(|attested| &attested.row));
        let sealed = self.seal_outcome(&check.standing, &outcome.replaces, rows)?;
        let attestation = attested.map(|attested| attested.jws);
        Ok(Response::SignatureChecked { valid, sealed, attestation })
    }

    /// Of a check that was accepted, and of no other.
    pub(super) fn attest(&self, accepted: Option<&Attest>) -> Result<Option<Attested>, Fault> {
        accepted.map(|attest| self.keys.newest_attest().attest(&self.session, attest)).transpose()
    }
}

/// The submitted codes: one, or two consecutive ones.
struct Codes<'a> {
    first: &'a Otp,
    second: Option<&'a Otp>,
}

impl<'a> Codes<'a> {
    fn new(codes: &'a [Otp], digits: Digits) -> Result<Self, Fault> {
        if !codes.iter().all(|code| code.has(digits)) {
            return Err(Fault::Request("a code of another length than the credential's".into()));
        }
        match codes {
            [first] => Ok(Self { first, second: None }),
            [first, second] => Ok(Self { first, second: Some(second) }),
            _ => Err(Fault::Request("a check takes one code or two".into())),
        }
    }
}

/// The credential, which comes first.
pub(super) fn credential_of(standing: &[SealedBytes]) -> Result<Credential, Fault> {
    match standing.first().and_then(|row| row.bytes.decode()) {
        Some(Row::Credential(credential)) => Ok(credential),
        _ => Err(Fault::Request("the first row is no credential".into())),
    }
}
