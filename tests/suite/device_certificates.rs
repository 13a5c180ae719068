//! Which certificate chains of signing devices are trusted: made here, right and wrong in one thing each.

use std::process::Command;
use std::sync::LazyLock;

use hsm_authd::domain::certificate::{CertificateChain, ChainFault, Trust};
use hsm_authd::domain::signer::PublicKey;
use proptest::prelude::*;
use rustls::SignatureScheme;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

use crate::device_pki::{
    ANY_PURPOSE, CLIENT_AUTH, CODE_SIGNING, CRL_SIGN, Certificate, DAY_S, DIGITAL_SIGNATURE,
    DOCUMENT_SIGNING, EMAIL_PROTECTION, KEY_CERT_SIGN, KEY_ENCIPHERMENT, Kind, List, NON_REPUDIATION, NOW_MS,
    NOW_S, OCSP_SIGNING, Party, SERVER_AUTH, anchor, certificates_pem, device, dns_name, extended_key_usage,
    intermediate, is_ca, is_no_ca, issuing, key_usage, leaf, lists_pem, party, permits_dns_below, root, tlv,
    unknown_extension,
};
use crate::scratch::Scratch;

use ChainFault::{Refused, Unknown};

const UNTRUSTED: ChainFault = Refused("it leads to no trust anchor that is valid now");
const EXPIRED: ChainFault = Refused("a certificate has expired");
const TOO_EARLY: ChainFault = Refused("a certificate is not valid yet");
const FORGED: ChainFault = Refused("a signature is not the issuer's");
const USAGE: ChainFault = Refused("the device's key usage is not for signatures");
const PURPOSE: ChainFault = Refused("an extended key usage is not for signing devices");
const DEVICE_IS_CA: ChainFault = Refused("the first certificate is an authority's, not a device's");
const NO_CA: ChainFault = Refused("an issuer is no authority, or may not sign certificates");
const TOO_DEEP: ChainFault = Refused("there are more authorities in it than one of them allows");
const OUTSIDE: ChainFault = Refused("a name is outside of an authority's name constraints");
const CRITICAL: ChainFault = Refused("a critical extension is not known");
const ALGORITHM: ChainFault = Refused("a certificate is signed with an algorithm or key that is not taken");
const REVOKED: ChainFault = Refused("a certificate is revoked");
const LIST_MISSING: ChainFault = Unknown("the CRL of an issuer is missing, or not valid yet");
const NO_LIST_YET: ChainFault = Unknown("no CRL is valid yet");
const LIST_OLD: ChainFault = Unknown("the CRL of an issuer is out of date");
const LIST_FORGED: ChainFault = Unknown("the CRL of an issuer is not signed with the issuer's key");
const NO_LIST_SIGNER: ChainFault = Unknown("the key usage of an issuer lacks cRLSign");

/// RSA of 1024 bits.
fn weak() -> Party {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../vectors/signer.json")).unwrap();
    let mut refused = vectors["refused"].as_array().unwrap().iter();
    let pem = refused.find(|key| key["name"] == "rsa1024").unwrap()["pem"].as_str().unwrap();
    let key_info = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).unwrap();
    let rsa = party(Kind::Rsa2048, "strong");
    Party { name: "weak", key: rsa.key.with_public(key_info.to_vec()) }
}

fn chain(ders: &[&[u8]]) -> CertificateChain {
    CertificateChain::from_pem(&certificates_pem(ders)).unwrap()
}

fn trust(anchors: &[&[u8]], lists: &[&[u8]]) -> Trust {
    Trust::from_pem(certificates_pem(anchors).as_bytes(), lists_pem(lists).as_bytes()).unwrap()
}

/// Under the root, without revocation lists.
fn check(ders: &[&[u8]]) -> Result<(), ChainFault> {
    trust(&[&anchor()], &[]).check(&chain(ders), NOW_MS)
}

/// A device's certificate that says this, under the intermediate and the root.
fn check_leaf(certificate: Certificate) -> Result<(), ChainFault> {
    check(&[&certificate.issue(&device(), &issuing()), &intermediate()])
}

/// The same of the intermediate.
fn check_intermediate(certificate: Certificate) -> Result<(), ChainFault> {
    check(&[&leaf(), &certificate.issue(&issuing(), &root())])
}

#[test]
fn paths_of_every_length_and_kind_of_key_are_trusted() {
    let direct = Certificate::device(3).issue(&device(), &root());
    assert_eq!(check(&[&direct]), Ok(()));
    assert_eq!(check(&[&leaf(), &intermediate()]), Ok(()));
    assert_eq!(check(&[&leaf(), &intermediate(), &anchor()]), Ok(()), "the anchor may be there");

    for (root_kind, issuing_kind, device_kind) in [
        (Kind::Rsa2048, Kind::P256, Kind::P256),
        (Kind::Rsa3072, Kind::Rsa2048, Kind::Rsa2048),
        (Kind::P384, Kind::P384, Kind::P256),
        (Kind::P384, Kind::Rsa3072, Kind::P256),
    ] {
        let root = party(root_kind, "a root");
        let middle = party(issuing_kind, "a middle");
        let issuing = party(issuing_kind, "an issuing");
        let device = party(device_kind, "a device");
        let anchor = Certificate::authority(1).issue(&root, &root);
        let ders = [
            Certificate::device(4).issue(&device, &issuing),
            Certificate::authority(3).issue(&issuing, &middle),
            Certificate::authority(2).issue(&middle, &root),
        ];
        let chain = chain(&ders.each_ref().map(Vec::as_slice));
        assert_eq!(trust(&[&anchor], &[]).check(&chain, NOW_MS), Ok(()));
        let lists = [&root, &middle, &issuing].map(|issuer| List::of(&[77]).issue(issuer));
        let lists = lists.each_ref().map(Vec::as_slice);
        assert_eq!(trust(&[&anchor], &lists).check(&chain, NOW_MS), Ok(()));
        assert_eq!(trust(&[&self::anchor()], &lists).check(&chain, NOW_MS), Err(UNTRUSTED));
        assert_eq!(trust(&[&self::anchor(), &anchor], &[]).check(&chain, NOW_MS), Ok(()), "of two");

        let expected = pem_key(&device);
        assert_eq!(chain.public_key().unwrap(), expected);
    }
}

fn pem_key(party: &Party) -> PublicKey {
    let pem = certificates_pem(&[party.key.public()]).replace("CERTIFICATE", "PUBLIC KEY");
    PublicKey::from_pem(&pem).unwrap()
}

#[test]
fn signatures_of_authorities_may_be_pss_and_of_any_hash_of_sha_2() {
    for scheme in [
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PKCS1_SHA512,
        SignatureScheme::RSA_PSS_SHA256,
    ] {
        let mut root = party(Kind::Rsa2048, "a root");
        root.key = root.key.with_scheme(scheme);
        let anchor = Certificate::authority(1).issue(&root, &root);
        let leaf = Certificate::device(2).issue(&device(), &root);
        assert_eq!(trust(&[&anchor], &[]).check(&chain(&[&leaf]), NOW_MS), Ok(()), "{scheme:?}");
    }
}

#[test]
fn certificates_that_no_path_needs_do_no_harm() {
    let stranger = party(Kind::P256, "stranger");
    let strange = Certificate::authority(9).issue(&stranger, &stranger);
    assert_eq!(check(&[&leaf(), &strange, &intermediate()]), Ok(()), "in any order");
    let expired = Certificate { not_after_s: NOW_S - 1, ..Certificate::authority(9) };
    let expired = expired.issue(&issuing(), &root());
    let good = chain(&[&leaf(), &expired, &intermediate(), &strange]);
    assert_eq!(trust(&[&anchor()], &[]).check(&good, NOW_MS), Ok(()), "an older one of the same issuer");
    // The older one is what webpki would name, rather than the list.
    let only_issuing = List::of(&[]).issue(&issuing());
    assert_eq!(trust(&[&anchor()], &[&only_issuing]).check(&good, NOW_MS), Err(LIST_MISSING));
}

#[test]
fn who_is_not_anchored_is_not_trusted() {
    let own = Certificate::device(3).issue(&device(), &device());
    assert_eq!(check(&[&own]), Err(UNTRUSTED), "signed by itself");
    assert_eq!(check(&[&leaf()]), Err(UNTRUSTED), "its issuer is not there");
    assert_eq!(Trust::none().check(&chain(&[&leaf(), &intermediate(), &anchor()]), NOW_MS), Err(UNTRUSTED));

    let stranger = Party { name: "stranger", ..issuing() };
    let other_name = Certificate::device(3).issue(&device(), &stranger);
    assert_eq!(check(&[&other_name, &intermediate()]), Err(UNTRUSTED), "the issuer's key, another name");
    let impostor = Party { name: "issuing", key: party(Kind::P256, "stranger").key };
    let forged = Certificate::device(3).issue(&device(), &impostor);
    assert_eq!(check(&[&forged, &intermediate()]), Err(FORGED), "the issuer's name, another key");
    let impostor = Party { name: "root", key: party(Kind::P256, "stranger").key };
    let forged = Certificate::authority(2).issue(&issuing(), &impostor);
    assert_eq!(check(&[&leaf(), &forged]), Err(FORGED), "the same of the root");
    let own_root = Certificate::authority(1).issue(&impostor, &impostor);
    assert_eq!(check(&[&leaf(), &forged, &own_root]), Err(FORGED), "a root that the chain brings is none");

    assert_eq!(check(&[&intermediate(), &leaf()]), Err(USAGE), "in the wrong order");
}

#[test]
fn every_certificate_has_to_be_valid_at_that_second() {
    let at = |make: &dyn Fn(Certificate) -> Result<(), ChainFault>, authority: bool| {
        let certificate = || if authority { Certificate::authority(5) } else { Certificate::device(5) };
        let between =
            |not_before_s, not_after_s| make(Certificate { not_before_s, not_after_s, ..certificate() });
        assert_eq!(between(NOW_S, NOW_S), Ok(()), "for one second");
        assert_eq!(between(NOW_S - DAY_S, NOW_S - 1), Err(EXPIRED));
        assert_eq!(between(NOW_S + 1, NOW_S + DAY_S), Err(TOO_EARLY));
        let reversed = Refused("a certificate ends before it begins");
        assert_eq!(between(NOW_S + 1, NOW_S - 1), Err(reversed));
    };
    at(&check_leaf, false);
    at(&check_intermediate, true);

    let second = Certificate { not_before_s: NOW_S, not_after_s: NOW_S, ..Certificate::device(3) };
    let chain = chain(&[&second.issue(&device(), &issuing()), &intermediate()]);
    assert_eq!(chain.not_after_unix_ms(), Ok(NOW_MS));
    let trust = trust(&[&anchor()], &[]);
    for (unix_ms, expected) in [
        (NOW_MS - 1, Err(TOO_EARLY)),
        (NOW_MS, Ok(())),
        (NOW_MS + 999, Ok(())),
        (NOW_MS + 1_000, Err(EXPIRED)),
    ] {
        assert_eq!(trust.check(&chain, unix_ms), expected, "{unix_ms}");
    }
    assert_eq!(trust.check(&chain, 0), Err(TOO_EARLY));
    assert_eq!(trust.check(&chain, u64::MAX), Err(EXPIRED));
}

#[test]
fn an_anchor_has_to_be_valid_too() {
    let (early, late) = (NOW_S - DAY_S, NOW_S + DAY_S);
    for (not_before_s, not_after_s, expected) in
        [(NOW_S, NOW_S, Ok(())), (early, NOW_S - 1, Err(UNTRUSTED)), (NOW_S + 1, late, Err(UNTRUSTED))]
    {
        let anchor = Certificate { not_before_s, not_after_s, ..Certificate::authority(1) };
        let trust = trust(&[&anchor.issue(&root(), &root())], &[]);
        assert_eq!(trust.check(&chain(&[&leaf(), &intermediate()]), NOW_MS), expected);
    }
}

#[test]
fn a_devices_key_usage_is_for_signatures() {
    for (bits, expected) in [
        (DIGITAL_SIGNATURE, Ok(())),
        (NON_REPUDIATION, Ok(())),
        (DIGITAL_SIGNATURE | KEY_ENCIPHERMENT, Ok(())),
        (NON_REPUDIATION | KEY_CERT_SIGN, Ok(())),
        (KEY_ENCIPHERMENT, Err(USAGE)),
        (KEY_CERT_SIGN | CRL_SIGN, Err(USAGE)),
        (0, Err(USAGE)),
    ] {
        let certificate = Certificate::with(3, vec![is_no_ca(), key_usage(bits)]);
        assert_eq!(check_leaf(certificate), expected, "{bits:#x}");
    }
    assert_eq!(check_leaf(Certificate::with(3, vec![is_no_ca()])), Ok(()), "without one");
    assert_eq!(check_leaf(Certificate::with(3, vec![])), Ok(()), "without any extension");
    let usage = key_usage(DIGITAL_SIGNATURE);
    assert_eq!(check_leaf(Certificate::with(3, vec![usage.clone(), usage])), Err(USAGE), "twice");
}

#[test]
fn an_extended_key_usage_is_for_signing_devices() {
    for (purposes, expected) in [
        (&[CLIENT_AUTH][..], Ok(())),
        (&[EMAIL_PROTECTION], Ok(())),
        (&[DOCUMENT_SIGNING], Ok(())),
        (&[ANY_PURPOSE], Ok(())),
        (&[SERVER_AUTH, CLIENT_AUTH], Ok(())),
        (&[DOCUMENT_SIGNING, SERVER_AUTH], Ok(())),
        (&[SERVER_AUTH], Err(PURPOSE)),
        (&[CODE_SIGNING], Err(PURPOSE)),
        (&[OCSP_SIGNING], Err(PURPOSE)),
        (&[SERVER_AUTH, CODE_SIGNING, OCSP_SIGNING], Err(PURPOSE)),
        (&[], Err(PURPOSE)),
    ] {
        let usage = extended_key_usage(purposes);
        let certificate = Certificate::with(3, vec![is_no_ca(), usage.clone()]);
        assert_eq!(check_leaf(certificate), expected, "{purposes:?}");
        let certificate = Certificate::with(2, vec![is_ca(None), usage]);
        assert_eq!(check_intermediate(certificate), expected, "{purposes:?}, of the authority");
    }
}

#[test]
fn authorities_are_authorities_and_devices_are_not() {
    let usage = key_usage(DIGITAL_SIGNATURE | KEY_CERT_SIGN);
    assert_eq!(check_leaf(Certificate::with(3, vec![is_ca(None), usage.clone()])), Err(DEVICE_IS_CA));
    assert_eq!(check_leaf(Certificate::with(3, vec![is_ca(Some(0)), usage.clone()])), Err(DEVICE_IS_CA));
    assert_eq!(check_intermediate(Certificate::with(2, vec![is_no_ca(), usage.clone()])), Err(NO_CA));
    assert_eq!(check_intermediate(Certificate::with(2, vec![usage])), Err(NO_CA), "without the extension");
    let usage = key_usage(DIGITAL_SIGNATURE | CRL_SIGN);
    assert_eq!(check_intermediate(Certificate::with(2, vec![is_ca(None), usage])), Err(NO_CA), "keyCertSign");
    assert_eq!(check_intermediate(Certificate::with(2, vec![is_ca(None)])), Ok(()), "any key usage");

    let device_as_issuer = Certificate::device(4).issue(&party(Kind::P256, "another"), &device());
    assert_eq!(check(&[&device_as_issuer, &leaf(), &intermediate()]), Err(NO_CA), "a device issues nothing");
}

#[test]
fn path_lengths_are_kept_also_the_anchors() {
    let middle = party(Kind::P256, "middle");
    let ders = |length| {
        [
            Certificate::device(4).issue(&device(), &issuing()),
            Certificate::authority(3).issue(&issuing(), &middle),
            Certificate::with(2, vec![is_ca(length)]).issue(&middle, &root()),
        ]
    };
    let check = |root_length, length| {
        let anchor = Certificate::with(1, vec![is_ca(root_length)]).issue(&root(), &root());
        trust(&[&anchor], &[]).check(&chain(&ders(length).each_ref().map(Vec::as_slice)), NOW_MS)
    };
    for (root_length, length, expected) in [
        (None, None, Ok(())),
        (None, Some(1), Ok(())),
        (Some(2), Some(1), Ok(())),
        (None, Some(0), Err(TOO_DEEP)),
        (Some(1), None, Err(TOO_DEEP)),
        (Some(0), None, Err(TOO_DEEP)),
    ] {
        assert_eq!(check(root_length, length), expected, "{root_length:?}, {length:?}");
    }
}

#[test]
fn name_constraints_and_unknown_critical_extensions_count() {
    let authority = Certificate::with(2, vec![is_ca(None), permits_dns_below("bank.example")]);
    let authority = authority.issue(&issuing(), &root());
    for (dns, expected) in [("device.bank.example", Ok(())), ("bank.example.evil.example", Err(OUTSIDE))] {
        let leaf = Certificate::with(3, vec![is_no_ca(), dns_name(dns)]).issue(&device(), &issuing());
        assert_eq!(check(&[&leaf, &authority]), expected, "{dns}");
    }
    for (critical, expected) in [(true, Err(CRITICAL)), (false, Ok(()))] {
        let extensions = vec![is_no_ca(), unknown_extension(critical)];
        assert_eq!(check_leaf(Certificate::with(3, extensions)), expected);
    }
}

#[test]
fn an_authority_with_a_key_that_is_not_taken_is_refused() {
    let weak = weak();
    let authority = Certificate::authority(2).issue(&weak, &root());
    let leaf = Certificate::device(3).issue(&device(), &weak);
    let refused = check(&[&leaf, &authority]).unwrap_err();
    assert!([ALGORITHM, FORGED].contains(&refused), "{refused:?}");
}

/// With these lists of the root and of the issuing authority.
fn check_lists(lists: &[&[u8]]) -> Result<(), ChainFault> {
    trust(&[&anchor()], lists).check(&chain(&[&leaf(), &intermediate()]), NOW_MS)
}

#[test]
fn who_is_revoked_is_refused() {
    let (of_root, of_issuing) = (List::of(&[]).issue(&root()), List::of(&[]).issue(&issuing()));
    assert_eq!(check_lists(&[&of_root, &of_issuing]), Ok(()));
    assert_eq!(check_lists(&[&of_issuing, &of_root]), Ok(()));
    let others = List::of(&[1, 4, 5]).issue(&issuing());
    assert_eq!(check_lists(&[&of_root, &others]), Ok(()), "others are");
    let leaf_revoked = List::of(&[1, 3]).issue(&issuing());
    assert_eq!(check_lists(&[&of_root, &leaf_revoked]), Err(REVOKED));
    let authority_revoked = List::of(&[2]).issue(&root());
    assert_eq!(check_lists(&[&authority_revoked, &of_issuing]), Err(REVOKED));
    assert_eq!(check_lists(&[&authority_revoked, &leaf_revoked]), Err(REVOKED));
    let its_number_elsewhere = List::of(&[3]).issue(&root());
    assert_eq!(check_lists(&[&its_number_elsewhere, &of_issuing]), Ok(()), "a number is an issuer's own");
}

#[test]
fn what_no_current_list_says_is_unknown_and_never_a_yes() {
    let (of_root, of_issuing) = (List::of(&[]).issue(&root()), List::of(&[]).issue(&issuing()));
    assert_eq!(check_lists(&[&of_issuing]), Err(LIST_MISSING), "none of the root");
    assert_eq!(check_lists(&[&of_root]), Err(LIST_MISSING), "none of the issuing authority");
    let stranger = Party { name: "issuing", key: party(Kind::P256, "stranger").key };
    assert_eq!(check_lists(&[&of_root, &List::of(&[]).issue(&stranger)]), Err(LIST_FORGED));

    let list = |this_update_s, next_update_s| List { revoked: &[], this_update_s, next_update_s };
    for (list, expected) in [
        (list(NOW_S, NOW_S + 1), Ok(())),
        (list(NOW_S - DAY_S, NOW_S), Err(LIST_OLD)),
        (list(NOW_S - DAY_S, NOW_S - 1), Err(LIST_OLD)),
        (list(NOW_S + 1, NOW_S + DAY_S), Err(LIST_MISSING)),
    ] {
        assert_eq!(check_lists(&[&of_root, &list.issue(&issuing())]), expected);
        assert_eq!(check_lists(&[&list.issue(&root()), &of_issuing]), expected, "of the root");
    }
    let tomorrow = list(NOW_S + 1, NOW_S + DAY_S);
    assert_eq!(check_lists(&[&tomorrow.issue(&root()), &tomorrow.issue(&issuing())]), Err(NO_LIST_YET));

    // An authority that may not sign lists.
    let authority = Certificate::with(2, vec![is_ca(None), key_usage(KEY_CERT_SIGN)]);
    let chain = chain(&[&leaf(), &authority.issue(&issuing(), &root())]);
    let trust = trust(&[&anchor()], &[&of_root, &of_issuing]);
    assert_eq!(trust.check(&chain, NOW_MS), Err(NO_LIST_SIGNER));
}

#[test]
fn of_several_lists_of_an_issuer_the_newest_counts() {
    let of_root = List::of(&[]).issue(&root());
    let old = List { revoked: &[], this_update_s: NOW_S - 2 * DAY_S, next_update_s: NOW_S - DAY_S };
    let old = old.issue(&issuing());
    let (current, revoked) = (List::of(&[]).issue(&issuing()), List::of(&[3]).issue(&issuing()));
    assert_eq!(check_lists(&[&of_root, &old, &current]), Ok(()));
    assert_eq!(check_lists(&[&of_root, &current, &old]), Ok(()));
    assert_eq!(check_lists(&[&of_root, &old, &revoked]), Err(REVOKED));
    let coming = List { revoked: &[], this_update_s: NOW_S + 1, next_update_s: NOW_S + DAY_S };
    assert_eq!(check_lists(&[&of_root, &coming.issue(&issuing()), &revoked]), Err(REVOKED), "not yet valid");
}

/// As when an authority changes its key and keeps its name.
#[test]
fn of_two_anchors_of_one_name_the_lists_fault_is_told_and_not_the_other_anchors() {
    let other = Party { name: "root", key: party(Kind::P256, "stranger").key };
    let anchors = [Certificate::authority(8).issue(&other, &other), anchor()];
    let of_issuing = List::of(&[]).issue(&issuing());
    let chain = chain(&[&leaf(), &intermediate()]);
    for anchors in [[&*anchors[0], &*anchors[1]], [&*anchors[1], &*anchors[0]]] {
        let check = |of_root: &[u8]| trust(&anchors, &[of_root, &of_issuing]).check(&chain, NOW_MS);
        assert_eq!(check(&List::of(&[]).issue(&root())), Ok(()));
        assert_eq!(check(&List::of(&[]).issue(&other)), Err(LIST_FORGED));
        assert_eq!(check(&List::of(&[2]).issue(&root())), Err(REVOKED));
    }
}

/// Nobody can tell of a chain that would not be trusted anyway: that is a no, and not a fault of the lists.
#[test]
fn what_is_forged_or_expired_is_refused_though_lists_are_missing() {
    let only_strange = List::of(&[]).issue(&party(Kind::P256, "stranger"));
    let lists: [&[u8]; 1] = [&only_strange];
    let impostor = Party { name: "issuing", key: party(Kind::P256, "stranger").key };
    let forged = Certificate::device(3).issue(&device(), &impostor);
    let expired = Certificate { not_after_s: NOW_S - 1, ..Certificate::device(3) };
    let expired = expired.issue(&device(), &issuing());
    let trust = trust(&[&anchor()], &lists);
    assert_eq!(trust.check(&chain(&[&forged, &intermediate()]), NOW_MS), Err(FORGED));
    assert_eq!(trust.check(&chain(&[&expired, &intermediate()]), NOW_MS), Err(EXPIRED));
    assert_eq!(trust.check(&chain(&[&leaf(), &intermediate()]), NOW_MS), Err(LIST_MISSING));
}

#[test]
fn no_flipped_bit_of_a_certificate_is_accepted() {
    let trust = trust(&[&anchor()], &[]);
    for which in 0..2 {
        let good = [leaf(), intermediate()];
        let (mut parsed, bits) = (0, good[which].len() * 8);
        for bit in 0..bits {
            let mut ders = good.clone();
            ders[which][bit / 8] ^= 0x80 >> (bit % 8);
            let pem = certificates_pem(&ders.each_ref().map(Vec::as_slice));
            let Ok(chain) = CertificateChain::from_pem(&pem) else { continue };
            parsed += 1;
            assert!(matches!(trust.check(&chain, NOW_MS), Err(Refused(_))), "certificate {which}, bit {bit}");
        }
        assert!(parsed > bits / 4, "only {parsed} of {bits} flips were parsed at all");
    }
}

#[test]
fn no_flipped_bit_of_a_list_makes_a_yes_or_a_refusal() {
    let (of_root, of_issuing) = (List::of(&[]).issue(&root()), List::of(&[9]).issue(&issuing()));
    let chain = chain(&[&leaf(), &intermediate()]);
    let anchors = certificates_pem(&[&anchor()]);
    for bit in 0..of_issuing.len() * 8 {
        let mut flipped = of_issuing.clone();
        flipped[bit / 8] ^= 0x80 >> (bit % 8);
        let lists = lists_pem(&[&of_root, &flipped]);
        let Ok(trust) = Trust::from_pem(anchors.as_bytes(), lists.as_bytes()) else { continue };
        assert!(matches!(trust.check(&chain, NOW_MS), Err(Unknown(_))), "bit {bit}");
    }
}

#[test]
fn what_is_no_chain_is_refused_in_words() {
    let refused = |text: &str| CertificateChain::from_pem(text).unwrap_err().reason();
    let ders = [leaf(), intermediate()];
    let good = certificates_pem(&[&ders[0], &ders[1]]);
    for text in
        [good.replace('\n', "\r\n"), format!(" \n{good}\t"), good.replace("-----\n-----", "----------")]
    {
        assert_eq!(CertificateChain::from_pem(&text).unwrap().ders(), ders);
    }
    for label in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
        let key = format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        for text in [format!("{key}{good}"), format!("{good}{key}"), key] {
            assert!(refused(&text).starts_with("holds a private key"), "{text}");
        }
    }
    let one = certificates_pem(&[&leaf()]);
    let public = certificates_pem(&[device().key.public()]).replace("CERTIFICATE", "PUBLIC KEY");
    for text in [
        "".to_owned(),
        " \n".to_owned(),
        "garbage".to_owned(),
        format!("{good}x"),
        format!("x{good}"),
        format!("subject=CN=device\n{good}"),
        one.replace("BEGIN", "END"),
        one[..one.len() - 2].to_owned(),
        one.replace("-----END", "=-----END"),
        one.replacen("MII", "M\u{a0}II", 1),
        public,
        lists_pem(&[&List::of(&[]).issue(&root())]),
    ] {
        assert!(
            refused(&text).starts_with("must be CERTIFICATE blocks in PEM"),
            "{text}: {}",
            refused(&text)
        );
    }
    let five = certificates_pem(&[&leaf(), &intermediate(), &anchor(), &anchor(), &anchor()]);
    assert_eq!(refused(&five), "must have 1 to 4 certificates");
    assert!(
        CertificateChain::from_pem(&certificates_pem(&[&leaf(), &anchor(), &anchor(), &anchor()])).is_ok()
    );
    let large = |bytes: usize| {
        let ballast = Certificate::with(3, vec![is_no_ca(), dns_name(&"x".repeat(bytes))]);
        certificates_pem(&[&ballast.issue(&device(), &issuing())])
    };
    assert_eq!(refused(&large(9 * 1_024)), "must have at most 8192 bytes of DER in all its certificates");
    let bare = Certificate::with(3, vec![is_no_ca(), dns_name(&"x".repeat(4_000))]);
    let bare = bare.issue(&device(), &issuing()).len() - 4_000;
    // An ECDSA signature is of 70 to 72 bytes or so.
    assert!(CertificateChain::from_pem(&large(8_192 - bare - 8)).is_ok());
    assert!(CertificateChain::from_pem(&large(8_192 - bare + 8)).is_err());

    for der in
        [&[][..], &[0x30, 0x80], &[0x30, 0], &[leaf(), vec![0]].concat(), &leaf()[1..], device().key.public()]
    {
        let words = refused(&certificates_pem(&[der]));
        assert_eq!(words, "must have one X.509 certificate in DER in each CERTIFICATE block");
        let words = refused(&certificates_pem(&[&leaf(), der]));
        assert_eq!(words, "must have one X.509 certificate in DER in each CERTIFICATE block");
    }
    let p384 = Certificate::device(3).issue(&party(Kind::P384, "a root"), &issuing());
    assert_eq!(refused(&certificates_pem(&[&p384])), "must be on the curve P-256");
    let weak = Certificate::device(3).issue(&weak(), &issuing());
    assert_eq!(refused(&certificates_pem(&[&weak])), "must have an RSA modulus of 2048 to 4096 bits");
}

#[test]
fn what_is_no_anchor_or_list_is_refused_with_what_to_mend() {
    let refused = |anchors: &[u8], lists: &[u8]| match Trust::from_pem(anchors, lists) {
        Ok(_) => panic!("taken"),
        Err(error) => error.to_string(),
    };
    let anchors = certificates_pem(&[&anchor()]);
    assert_eq!(refused(b"garbage", b""), "no certificate (PEM) in it");
    assert_eq!(refused(b"-----BEGIN CERTIFICATE-----\nAAAA\n", b""), "not well-formed PEM");
    let two = certificates_pem(&[&anchor(), &leaf()]);
    assert_eq!(refused(two.as_bytes(), b""), "certificate 2: no authority's: it has no CA flag");
    let usage = Certificate::with(1, vec![is_ca(None), key_usage(CRL_SIGN)]).issue(&root(), &root());
    let words = "certificate 1: no authority's: its key usage lacks keyCertSign";
    assert_eq!(refused(certificates_pem(&[&usage]).as_bytes(), b""), words);
    assert_eq!(refused(certificates_pem(&[b"x"]).as_bytes(), b""), "certificate 1: not an X.509 certificate");

    let list = List::of(&[]).issue(&root());
    assert_eq!(refused(anchors.as_bytes(), b"garbage"), "no CRL (PEM) in it");
    assert_eq!(refused(anchors.as_bytes(), anchors.as_bytes()), "no CRL (PEM) in it");
    assert_eq!(
        refused(anchors.as_bytes(), &list),
        "no CRL (PEM) in it: it is DER, try openssl crl -inform der"
    );
    let broken = lists_pem(&[&list, &list[..20]]);
    let words = refused(anchors.as_bytes(), broken.as_bytes());
    assert!(words.starts_with("CRL 2: not a CRL that can be used"), "{words}");
    assert!(Trust::from_pem(b" \n", b"").is_ok(), "none");
}

#[test]
fn what_is_out_of_date_is_named_with_how_long() {
    let said = |anchor: Certificate, lists: &[List<'_>]| {
        let lists: Vec<_> = lists.iter().map(|list| list.issue(&root())).collect();
        let lists: Vec<_> = lists.iter().map(Vec::as_slice).collect();
        trust(&[&anchor.issue(&root(), &root())], &lists).out_of_date(NOW_MS)
    };
    let anchor = || Certificate::authority(1);
    let list = |this_update_s, next_update_s| List { revoked: &[], this_update_s, next_update_s };
    assert_eq!(said(anchor(), &[]), None);
    assert_eq!(said(anchor(), &[List::of(&[])]), None);
    for (lapse_s, words) in
        [(1, "1 s"), (119, "119 s"), (120, "2 minutes"), (7_200, "2 hours"), (3 * DAY_S, "3 days")]
    {
        let (begin_s, end_s) = (NOW_S - 9 * DAY_S, NOW_S - lapse_s);
        let expired = said(Certificate { not_before_s: begin_s, not_after_s: end_s, ..anchor() }, &[]);
        assert_eq!(expired.unwrap(), format!("the anchor CN=root expired {words} ago"));
        let old = said(anchor(), &[list(begin_s, end_s)]).unwrap();
        assert_eq!(old, format!("the CRL of CN=root is out of date for {words}"));
        let begin_s = NOW_S + lapse_s;
        let early = said(anchor(), &[list(begin_s, begin_s + 1)]).unwrap();
        assert_eq!(early, format!("the CRL of CN=root is not valid yet, for {words}"));
        let early = said(Certificate { not_before_s: begin_s, ..anchor() }, &[]).unwrap();
        assert_eq!(early, format!("the anchor CN=root is not valid yet, for {words}"));
    }
    assert!(said(anchor(), &[list(NOW_S - 1, NOW_S)]).is_some(), "the next update is due at its second");
    let elsewhere = List::of(&[]).issue(&issuing());
    let unlisted = trust(&[&self::anchor()], &[&elsewhere]).out_of_date(NOW_MS);
    assert_eq!(unlisted.unwrap(), "there are CRLs, but none of the anchor CN=root");
}

/// A second opinion, and that what this file makes is what others take for certificates.
#[test]
fn openssl_agrees() {
    let scratch = Scratch::new();
    let file = |name: &str, text: String| scratch.write(name, &text).to_str().unwrap().to_owned();
    let ca = file("ca.pem", certificates_pem(&[&anchor()]));
    let expired = Certificate { not_after_s: NOW_S - 1, ..Certificate::device(3) };
    let (of_root, of_issuing) = (List::of(&[]).issue(&root()), List::of(&[]).issue(&issuing()));
    let revoked = List::of(&[3]).issue(&issuing());
    let old = List { revoked: &[], this_update_s: NOW_S - DAY_S, next_update_s: NOW_S - 1 }.issue(&issuing());
    let impostor = Party { name: "issuing", key: party(Kind::P256, "stranger").key };
    for (what, leaf, lists) in [
        ("good", leaf(), vec![&of_root, &of_issuing]),
        ("revoked", leaf(), vec![&of_root, &revoked]),
        ("list out of date", leaf(), vec![&of_root, &old]),
        ("list missing", leaf(), vec![&of_root]),
        ("expired", expired.issue(&device(), &issuing()), vec![&of_root, &of_issuing]),
        ("forged", Certificate::device(3).issue(&device(), &impostor), vec![&of_root, &of_issuing]),
        ("an authority", Certificate::authority(3).issue(&device(), &issuing()), vec![&of_root, &of_issuing]),
    ] {
        let lists: Vec<_> = lists.into_iter().map(Vec::as_slice).collect();
        let ours = trust(&[&anchor()], &lists).check(&chain(&[&leaf, &intermediate()]), NOW_MS);
        let leaf = file("leaf.pem", certificates_pem(&[&leaf]));
        let untrusted = file("untrusted.pem", certificates_pem(&[&intermediate()]));
        let lists = file("lists.pem", lists_pem(&lists));
        let output = Command::new("openssl")
            .args(["verify", "-attime", &NOW_S.to_string(), "-crl_check_all", "-CAfile", &ca])
            .args(["-CRLfile", &lists, "-untrusted", &untrusted, &leaf])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // OpenSSL has nothing against an authority's certificate in the place of a device's.
        let theirs = output.status.success() && what != "an authority";
        assert_eq!(ours.is_ok(), theirs, "{what}: {ours:?}, {said}");
        assert_eq!(ours.is_ok(), what == "good");
    }
}

/// A good chain and what it is checked against, made once.
static GOOD: LazyLock<(Vec<u8>, Vec<u8>, Trust)> =
    LazyLock::new(|| (leaf(), intermediate(), trust(&[&anchor()], &[])));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_brings_the_parser_down(text in "(-----BEGIN CERTIFICATE-----|[A-Za-z0-9+/=\n]{0,40}|-----END CERTIFICATE-----|\\PC{0,4}){0,6}", der in any::<Vec<u8>>()) {
        let _ = CertificateChain::from_pem(&text);
        let _ = CertificateChain::from_pem(&certificates_pem(&[&der]));
        let _ = CertificateChain::from_pem(&certificates_pem(&[&tlv(0x30, &[&der])]));
        let _ = Trust::from_pem(text.as_bytes(), &der);
        let _ = Trust::from_pem(&der, text.as_bytes());
        let _ = Trust::from_pem(certificates_pem(&[&der]).as_bytes(), lists_pem(&[&tlv(0x30, &[&der])]).as_bytes());
    }

    /// What comes out of a stored row was parsed once; whatever it is, it is checked and not believed.
    #[test]
    fn nothing_brings_the_check_down(
        ders in prop::collection::vec(any::<Vec<u8>>(), 0..6), at in any::<prop::sample::Index>(), byte in any::<u8>(), unix_ms in any::<u64>(),
    ) {
        let (leaf, intermediate, trust) = &*GOOD;
        let stored = |ders: &[Vec<u8>]| -> CertificateChain {
            postcard::from_bytes(&postcard::to_stdvec(ders).unwrap()).unwrap()
        };
        let garbage = stored(&ders);
        prop_assert!(trust.check(&garbage, unix_ms).is_err());
        prop_assert!(garbage.public_key().is_err() && garbage.not_after_unix_ms().is_err());
        let mut mutated = leaf.clone();
        let at = at.index(mutated.len());
        mutated[at] = byte;
        let same = mutated == *leaf;
        let chain = stored(&[mutated, intermediate.clone()]);
        prop_assert_eq!(trust.check(&chain, NOW_MS).is_ok(), same);
        prop_assert!(trust.check(&stored(&[leaf.clone(), ders.concat()]), NOW_MS).is_err());
    }
}
