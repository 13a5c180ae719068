//! The encoding under everything that is signed or keyed: no two lists of parts are one sequence of bytes.

/// For each part its length, four bytes with the highest first, and then the part.
///
/// That can be undone in one way only, so what was made of some parts is never what others make: neither a byte
/// that moves from one part into the next nor an absent part goes unseen.
pub fn enc(parts: &[&[u8]]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(parts.iter().map(|part| 4 + part.len()).sum());
    for part in parts {
        // Nothing of 4 GiB gets here: bodies end at 64 KiB.
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        encoded.extend_from_slice(&length.to_be_bytes());
        encoded.extend_from_slice(part);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
    use proptest::prelude::*;
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/vectors/transaction.json")).unwrap()
    }

    fn decode(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk()?;
            let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            parts.push(part.to_vec());
            bytes = rest;
        }
        Some(parts)
    }

    #[test]
    fn a_transactions_bytes_and_digest_are_those_of_a_second_implementation() {
        let vector = &vectors()["transaction"];
        let field = |name: &str| vector["fields"][name].as_str().unwrap_or_default().as_bytes().to_vec();
        let names = [
            "tenant",
            "id",
            "method",
            "payer",
            "payee",
            "amount",
            "currency",
            "order",
            "platform",
            "remark",
            "parent_hash",
            "expires_at",
            "nonce",
        ];
        let fields = names.map(field);
        let mut parts: Vec<&[u8]> = vec![b"hsm-authd/transaction/v1"];
        parts.extend(fields.iter().map(Vec::as_slice));
        let encoded = enc(&parts);
        assert_eq!(BASE64URL_NOPAD.encode(&encoded), vector["signing_input"].as_str().unwrap());
        assert_eq!(HEXLOWER.encode(&Sha256::digest(&encoded)), vector["digest"].as_str().unwrap());
        assert_eq!(fields.iter().filter(|field| field.is_empty()).count(), 3);
    }

    #[test]
    fn what_devices_sign_is_that_of_a_second_implementation() {
        let vectors = vectors();
        let expected = |name: &str| vectors["signed_by_devices"][name].as_str().unwrap().to_owned();
        let device = b"cred_00000000000000000000000004";
        let presentation =
            enc(&[b"hsm-authd/presentation/v1", b"bank-a", b"acct-0001", device, b"2030-01-01T00:00:00Z"]);
        assert_eq!(BASE64URL_NOPAD.encode(&presentation), expected("presentation_b64u"));
        let digest = vectors["transaction"]["digest"].as_str().unwrap();
        let decline = enc(&[b"hsm-authd/decline/v1", digest.as_bytes()]);
        assert_eq!(BASE64URL_NOPAD.encode(&decline), expected("decline_b64u"));
        let terminal = b"cred_00000000000000000000000001";
        let nonce = "30".repeat(32);
        let authorization = enc(&[
            b"hsm-authd/authorization/v1",
            b"bank-a",
            b"acct-0001",
            device,
            terminal,
            nonce.as_bytes(),
            b"2030-01-01T00:05:00Z",
        ]);
        assert_eq!(BASE64URL_NOPAD.encode(&authorization), expected("authorization_b64u"));
    }

    #[test]
    fn lengths_stand_before_their_parts() {
        assert_eq!(enc(&[]), b"");
        assert_eq!(enc(&[b""]), [0; 4]);
        assert_eq!(enc(&[b"a", b"", b"bc"]), b"\0\0\0\x01a\0\0\0\0\0\0\0\x02bc");
        assert_eq!(enc(&[&[7; 66_051]])[..4], [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_read_in_one_way(parts in proptest::collection::vec("[\0ab]{0,6}", 0..6)) {
            let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
            let decoded = decode(&enc(&parts)).unwrap();
            prop_assert_eq!(decoded, parts);
        }
    }
}
