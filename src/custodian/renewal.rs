//! Rows under the newest keys: the same rows, their secrets wrapped again inside the HSM.

use std::collections::HashMap;

use super::keys::Kind as KeyKind;
use super::operations::Operations;
use super::pin_hash;
use super::pkcs11::{Shape, WRAP_OVERHEAD_BYTES};
use super::secrets::{checked, departing, no_key, opened};
use super::wrapping::Origin;
use crate::domain::credential::{Credential, Kind, StoredSecret};
use crate::domain::otp::Algorithm;
use crate::domain::row::{Row, SealedBytes};
use crate::hsm::messages::{Fault, Response};

impl Operations {
    /// The next version of each row. A secret that an old `kek` wraps is unwrapped into a session object, wrapped by the
    /// newest, and destroyed; it never leaves the HSM.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn renew(&mut self, standing: &[SealedBytes]) -> Result<Response, Fault> {
        self.verify_seals(standing)?;
        let decoded = standing.iter().map(|row| row.bytes.decode()).collect::<Option<Vec<_>>>();
        let mut rows = decoded.ok_or_else(|| refused("a row that cannot be read"))?;
        let mut bindings = HashMap::new();
        for row in &mut rows {
            row.succeed();
            match row {
                Row::Credential(credential) => self.renew_secrets(credential)?,
                Row::Binding(binding) => drop(bindings.insert(binding.credential, binding.version)),
                _ => {}
            }
        }
        // A state says which version its binding has: an old one that is put back is not the one that it speaks of.
        for row in &mut rows {
            if let Row::State(state) = row
                && let Some(version) = bindings.remove(&state.id)
            {
                if state.next_factor.checked_add(1) != Some(version) {
                    return Err(refused("a binding that its state does not speak of"));
                }
                state.next_factor = version;
            }
        }
        if !bindings.is_empty() {
            return Err(refused("a binding without its state"));
        }
        let rows: Vec<_> = rows.iter().map(Row::encode).collect();
        let replaces: Vec<u8> = (0u8..=u8::MAX).take(rows.len()).collect();
        let sealed = self.seal_outcome(standing, &replaces, rows.iter())?;
        Ok(Response::Renewed { rows, sealed })
    }

    fn renew_secrets(&mut self, credential: &mut Credential) -> Result<(), Fault> {
        let id = credential.id;
        match &mut credential.kind {
            Kind::Otp(token) => self.rewrap(&mut token.secret, token.algorithm)?,
            Kind::Ocra(token) => {
                self.rewrap(&mut token.secret, token.suite.algorithm())?;
                if let Some(hash) = &mut token.pin_hash
                    && hash.data_version != self.keys.newest_data().0
                {
                    let clear = pin_hash::decrypt(&self.session, &self.keys, id, hash)?;
                    *hash = pin_hash::encrypt_hash(&self.session, &self.keys, id, &clear)?;
                }
            }
            Kind::Terminal(terminal) => self.rewrap(&mut terminal.secret, Algorithm::Sha256)?,
            Kind::Rolling(rolling) => {
                self.rewrap(&mut rolling.secret, Algorithm::Sha256)?;
                self.rewrap(&mut rolling.identity_key, Algorithm::Sha256)?;
            }
            Kind::Signer(_) | Kind::CertifiedSigner(_) | Kind::Authenticator(_) => {}
        }
        Ok(())
    }

    /// One that is an object in the HSM stays as it is.
    fn rewrap(&mut self, secret: &mut Option<StoredSecret>, algorithm: Algorithm) -> Result<(), Fault> {
        let Some(StoredSecret::Wrapped { kek_version, blob }) = secret else { return Ok(()) };
        let (newest, _) = self.keys.newest_kek();
        if *kek_version == newest {
            return Ok(());
        }
        let kek = self.keys.kek(*kek_version).ok_or_else(|| no_key(KeyKind::Kek, *kek_version))?;
        let length_bytes = blob.len().saturating_sub(WRAP_OVERHEAD_BYTES);
        // Not every module tells the length of what it has unwrapped; what it wraps of it is measured.
        let shape = Shape { length_bytes: None, ..departing(length_bytes) };
        let open = || self.session.unwrap(kek.object, blob, &shape);
        let key = opened("a wrapped secret", open, || kek.try_known(&self.session))?;
        checked(&self.session, key, &shape)?;
        *secret = Some(self.wrap_and_destroy(key, length_bytes, algorithm, &Origin::Opened)?);
        Ok(())
    }
}

fn refused(reason: &str) -> Fault {
    Fault::Request(reason.to_owned())
}
