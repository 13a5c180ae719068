//! Rows as custodians are given them: what is old, and how much of it at once.

use crate::domain::credential::{Kind, StoredSecret};
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::system_key::{KeyKind, NewestKeys};

/// What a custodian is given at once at most: it has to be done before it counts as stuck, and an HSM may take long for
/// each secret, which it unwraps and wraps.
const ROWS_AT_ONCE: usize = 16;
const SECRETS_AT_ONCE: usize = 8;

/// A row, or a binding with its state: what is not divided.
pub fn is_one(batch: &[SealedBytes]) -> bool {
    let is_binding = |row: &SealedBytes| matches!(row.bytes.decode(), Some(Row::Binding(_)));
    batch.len() <= 1 || batch.iter().any(is_binding)
}

/// The first half comes last, and is popped first.
pub fn halves(mut batch: Vec<SealedBytes>) -> [(Vec<SealedBytes>, u8); 2] {
    let second = batch.split_off(batch.len() / 2);
    [(second, 0), (batch, 0)]
}

/// Rows with the number of their secrets, as a custodian is given them.
pub fn at_once<T>(rows: Vec<(usize, T)>) -> Vec<Vec<T>> {
    let (mut batches, mut batch, mut secrets) = (Vec::new(), Vec::new(), 0_usize);
    for (count, row) in rows {
        let with_it = secrets.saturating_add(count);
        if !batch.is_empty() && (with_it > SECRETS_AT_ONCE || batch.len() == ROWS_AT_ONCE) {
            batches.push(std::mem::take(&mut batch));
            secrets = 0;
        }
        secrets = secrets.saturating_add(count);
        batch.push(row);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

pub fn is_old(row: &Sealed<Row>, newest: &NewestKeys) -> bool {
    row.seal.key_version < newest.of(KeyKind::Row) || secrets_in(row, newest) > 0
}

/// How much in it is wrapped or encrypted by an older key.
pub fn secrets_in(row: &Sealed<Row>, newest: &NewestKeys) -> usize {
    let Row::Credential(credential) = &row.row else { return 0 };
    // Version 0 says that nothing is wrapped.
    let wrapped = |secret: &Option<StoredSecret>| {
        let is_old = |secret: &StoredSecret| (1..newest.of(KeyKind::Kek)).contains(&secret.parts().0);
        usize::from(secret.as_ref().is_some_and(is_old))
    };
    match &credential.kind {
        Kind::Otp(token) => wrapped(&token.secret),
        Kind::Ocra(token) => {
            let hash = token.pin_hash.as_ref();
            let encrypted = hash.is_some_and(|hash| hash.data_version < newest.of(KeyKind::Data));
            wrapped(&token.secret).saturating_add(encrypted.into())
        }
        Kind::Terminal(terminal) => wrapped(&terminal.secret),
        Kind::Rolling(rolling) => wrapped(&rolling.secret).saturating_add(wrapped(&rolling.identity_key)),
        Kind::Signer(_) | Kind::CertifiedSigner(_) | Kind::Authenticator(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_custodian_is_given_too_much_at_once() {
        let lengths = |secrets: &[usize]| -> Vec<usize> {
            at_once(secrets.iter().map(|count| (*count, ())).collect()).iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[0; 33]), [16, 16, 1]);
        assert_eq!(lengths(&[1; 17]), [8, 8, 1]);
        assert_eq!(lengths(&[2, 0, 2, 2, 1, 2, 0]), [5, 2]);
    }
}
