//! `CertificateChain::from_pem`, and of a chain `Trust::check` against fixed anchors and lists at a fixed moment.

use std::sync::LazyLock;

use data_encoding::BASE64;
use hsm_authd::domain::certificate::{CertificateChain, Trust};

/// 2026-01-01T00:00:00Z, when the corpus's authorities are valid and their lists current.
const MOMENT_MS: u64 = 1_767_225_600_000;

const ANCHOR: &str = include_str!("../corpus/certificate_chain/anchor.pem");
const INTERMEDIATE: &str = include_str!("../corpus/certificate_chain/intermediate.pem");
const LISTS: &str = include_str!("../corpus/certificate_chain/lists.pem");

static TRUST: LazyLock<Trust> =
    LazyLock::new(|| Trust::from_pem(ANCHOR.as_bytes(), LISTS.as_bytes()).expect("the corpus's own"));

/// The devices' certificates that the corpus's authorities did sign, and which are good.
static GOOD: LazyLock<[Vec<u8>; 6]> = LazyLock::new(|| {
    let device = |pem| CertificateChain::from_pem(pem).expect("a chain of the corpus").ders()[0].clone();
    [
        device(include_str!("../corpus/certificate_chain/good.pem")),
        device(include_str!("../corpus/certificate_chain/good_direct.pem")),
        device(include_str!("../corpus/certificate_chain/good_rsa_direct.pem")),
        include_bytes!("../corpus/certificate_chain/good_any_purpose.der").to_vec(),
        include_bytes!("../corpus/certificate_chain/good_no_extensions.der").to_vec(),
        // Constraints of a device, which issues nothing, constrain nobody.
        include_bytes!("../corpus/certificate_chain/good_name_constraints.der").to_vec(),
    ]
});

/// The input is a text if it looks like PEM; any other is the DER of a device's certificate, below the corpus's
/// intermediate. So a mutation reaches the DER without having to be base64.
pub fn run(input: &[u8]) {
    if input.trim_ascii_start().starts_with(b"--") {
        if let Ok(text) = std::str::from_utf8(input) {
            of_text(text);
        }
    } else if let Some(chain) = of_text(&format!("{}{INTERMEDIATE}", pem(input))) {
        assert_eq!(chain.ders()[0], input, "the device's own first");
        let good = GOOD.iter().any(|good| good == input);
        assert_eq!(TRUST.check(&chain, MOMENT_MS).is_ok(), good, "good is what was made so");
    }
    for (anchors, lists) in [(input, LISTS.as_bytes()), (ANCHOR.as_bytes(), input)] {
        if let Err(error) = Trust::from_pem(anchors, lists) {
            let words = error.to_string();
            assert!(!words.is_empty() && !words.contains('\n'), "one line");
        }
    }
}

fn pem(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(der))
}

fn of_text(text: &str) -> Option<CertificateChain> {
    let chain = CertificateChain::from_pem(text)
        .map_err(|error| assert!(!error.reason().is_empty(), "a refusal says why"))
        .ok()?;
    let ders = chain.ders();
    assert!((1..=4).contains(&ders.len()) && ders.iter().map(Vec::len).sum::<usize>() <= 8_192);
    // Its label; the letters may stand in the base64 of a certificate.
    assert!(!text.contains("PRIVATE KEY-----"), "a private key is never taken");
    assert_eq!(
        CertificateChain::from_pem(&format!("\n{text} \t")).as_ref(),
        Ok(&chain),
        "white space around it"
    );
    assert!(CertificateChain::from_pem(&format!("{text}x")).is_err(), "something behind it");
    let again: String = ders.iter().map(|der| pem(der)).collect();
    assert_eq!(CertificateChain::from_pem(&again).as_ref(), Ok(&chain), "nothing of it was lost");
    let row = postcard::to_allocvec(&chain).expect("postcard");
    assert_eq!(postcard::from_bytes::<CertificateChain>(&row).as_ref(), Ok(&chain), "it survives a row");
    assert!(chain.public_key().is_ok() && chain.not_after_unix_ms().is_ok(), "both were checked");

    assert!(Trust::none().check(&chain, MOMENT_MS).is_err(), "without anchors nobody is trusted");
    for unix_ms in [0, u64::MAX] {
        assert!(TRUST.check(&chain, unix_ms).is_err(), "nothing is valid for ever");
    }
    if TRUST.check(&chain, MOMENT_MS).is_ok() {
        assert!(GOOD.contains(&ders[0]), "only what an authority signed is trusted");
    }
    Some(chain)
}
