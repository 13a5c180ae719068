//! The seed of an enrolment: in one of three ways, or none.

use data_encoding::{BASE32, BASE32_NOPAD, HEXLOWER_PERMISSIVE};
use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::domain::otp::SEED_BYTES;
use crate::domain::wrapped_seed::{FORM_RULE, WrappedSeed};
use crate::secret::SecretBytes;
use crate::service::enrolment::NewSeed;

use super::super::problem::Problem;
use super::enrolment::invalid;

/// How the answer is to hold the seed.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Export {
    Otpauth,
}

/// Whether the answer is to hold the seed. One that came wrapped is seen by nobody.
pub(super) fn export(export: Option<Export>, is_wrapped: bool) -> Result<bool, Problem> {
    match (export, is_wrapped) {
        (Some(Export::Otpauth), true) => Err(invalid("export", "a wrapped seed is not handed out")),
        (export, _) => Ok(export.is_some()),
    }
}

const ONE_SEED: &str = "give one of seed_hex, seed_base32 and seed_wrapped_base64, or none";

/// The seed, given in one way or in none.
pub(super) fn seed(
    hex: Option<Zeroizing<String>>,
    base32: Option<Zeroizing<String>>,
    wrapped: Option<String>,
) -> Result<Option<NewSeed>, Problem> {
    let (field, decoded) = match (hex, base32, wrapped) {
        (None, None, None) => return Ok(None),
        (Some(hex), None, None) => ("seed_hex", HEXLOWER_PERMISSIVE.decode(hex.as_bytes())),
        (None, Some(base32), None) => {
            let upper = Zeroizing::new(base32.to_ascii_uppercase());
            let encoding = if upper.ends_with('=') { BASE32 } else { BASE32_NOPAD };
            ("seed_base32", encoding.decode(upper.as_bytes()))
        }
        (None, None, Some(wrapped)) => {
            let seed = WrappedSeed::from_base64(&wrapped).map(NewSeed::Wrapped);
            return seed.map(Some).ok_or(invalid("seed_wrapped_base64", FORM_RULE));
        }
        (Some(_), ..) => return Err(invalid("seed_hex", ONE_SEED)),
        (None, ..) => return Err(invalid("seed_base32", ONE_SEED)),
    };
    let seed = decoded.map(SecretBytes::new).map_err(|_| invalid(field, "is not of that encoding"))?;
    if SEED_BYTES.contains(&seed.len()) {
        Ok(Some(NewSeed::Clear(seed)))
    } else {
        Err(invalid(field, "must be 16 to 64 bytes"))
    }
}
