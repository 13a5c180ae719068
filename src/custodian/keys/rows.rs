//! What a custodian derives from a version of `row`: it signs with these itself, and the HSM need not be asked for each row.

use zeroize::Zeroizing;

use crate::custodian::pkcs11::{Object, Pkcs11Error, Session};
use crate::domain::idempotency::Fingerprint;
use crate::domain::otp::Algorithm;
use crate::domain::row::{RowBytes, RowSum};
use crate::domain::time::RunId;
use crate::secret::{MacKey, SecretBytes};

fn derive(session: &Session, row: Object, purpose: &str) -> Result<MacKey, Pkcs11Error> {
    Ok(MacKey::new(&session.hmac(Algorithm::Sha256, row, purpose.as_bytes())?))
}

/// What comes from one version of `row`.
pub struct RowKeys {
    seal: MacKey,
    sum: MacKey,
    fingerprint: MacKey,
    presentation: MacKey,
    ledger: MacKey,
}

impl RowKeys {
    /// # Errors
    /// The HSM failed.
    pub fn derive(session: &Session, row: Object) -> Result<Self, Pkcs11Error> {
        Ok(Self {
            seal: derive(session, row, "hsm-authd/row/seal/v1")?,
            sum: derive(session, row, "hsm-authd/row/sum/v1")?,
            fingerprint: derive(session, row, "hsm-authd/request/fingerprint/v1")?,
            presentation: derive(session, row, "hsm-authd/presentation/code/v1")?,
            ledger: derive(session, row, "hsm-authd/ledger/v1")?,
        })
    }

    /// The code of a row's seal.
    pub fn seal(&self, row: &RowBytes) -> [u8; 32] {
        self.seal.mac(row.as_bytes())
    }

    /// What a row adds to the sum.
    pub fn summand(&self, row: &RowBytes) -> RowSum {
        let first = self.sum.mac(row.as_bytes());
        // A row's bytes are longer than this, and begin otherwise.
        let mut message = [0; 33];
        message.iter_mut().zip(first).for_each(|(place, byte)| *place = byte);
        let mut lane = |place: usize| match place {
            0 => first,
            place => {
                message[32] = place as u8;
                self.sum.mac(&message)
            }
        };
        RowSum::new(std::array::from_fn(&mut lane))
    }

    pub fn fingerprint(&self, request: &[u8]) -> Fingerprint {
        Fingerprint(self.fingerprint.mac(request))
    }

    /// The key of one run's ledger.
    pub fn ledger(&self, run: RunId) -> SecretBytes {
        SecretBytes::new(self.ledger.mac(&run.0).to_vec())
    }

    /// What a presentation's code is made of.
    pub fn presentation(&self, message: &[u8]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.presentation.mac(message))
    }
}
