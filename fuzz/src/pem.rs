//! `PublicKey::from_pem`, of a text, or of a text made around the input as DER.

use hsm_authd::domain::signer::PublicKey;

use super::key_text::{key_infos, pem};

/// The input is a text if it looks like PEM; any other is the DER in one. So a mutation reaches the DER
/// without having to be base64.
pub fn run(input: &[u8]) {
    if input.trim_ascii_start().starts_with(b"--") {
        if let Ok(text) = std::str::from_utf8(input) {
            of_text(text);
        }
        return;
    }
    if let Some(key) = of_text(&pem(input)) {
        assert!(key_infos(&key).iter().any(|der| der == input), "a key in DER has one spelling");
    }
}

fn of_text(text: &str) -> Option<PublicKey> {
    let key = PublicKey::from_pem(text)
        .map_err(|error| assert!(!error.reason().is_empty(), "a refusal says why"))
        .ok()?;
    assert!(!text.contains("PRIVATE"), "a private key is never taken");
    assert_eq!(PublicKey::from_pem(&format!("\n{text} \t")), Ok(key.clone()), "white space around it");
    assert!(PublicKey::from_pem(&format!("{text}{text}")).is_err(), "two blocks are not one");
    assert!(PublicKey::from_pem(&format!("{text}x")).is_err(), "something around it");
    super::jwk::is_the_same_in_every_form(&key);
    Some(key)
}
