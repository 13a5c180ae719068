//! Authorities, devices and revocation lists, made as a test needs them, right or wrong. Keys are OpenSSL's;
//! certificates are written in DER here, so that they may say anything.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use data_encoding::BASE64;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::SigningKey;
use x509_cert::der::Encode;
use x509_cert::der::asn1::{ObjectIdentifier, UtcTime};

/// The moment at which everything is valid that says nothing else: 2026-01-01T00:00:00Z.
pub const NOW_S: u64 = 1_767_225_600;
pub const NOW_MS: u64 = NOW_S * 1_000;
pub const DAY_S: u64 = 86_400;

/// DER: a tag, the length, and these pieces.
pub fn tlv(tag: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let content = pieces.concat();
    let length = match u16::try_from(content.len()).unwrap().to_be_bytes() {
        [0, short @ 0..=0x7f] => vec![short],
        [0, long] => vec![0x81, long],
        [high, low] => vec![0x82, high, low],
    };
    [vec![tag], length, content].concat()
}

pub fn oid(dotted: &str) -> Vec<u8> {
    tlv(0x06, &[ObjectIdentifier::new_unwrap(dotted).as_bytes()])
}

/// What a key is, as `openssl genpkey` calls it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    P256,
    P384,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}

/// A private key, and what it signs certificates with.
#[derive(Clone)]
pub struct Key {
    key: Arc<dyn SigningKey>,
    scheme: SignatureScheme,
    public: Vec<u8>,
}

/// The key of this name: made once a run, so RSA does not cost each test its time.
pub fn key(kind: Kind, name: &str) -> Key {
    static KEYS: LazyLock<Mutex<BTreeMap<(Kind, String), Key>>> = LazyLock::new(Mutex::default);
    KEYS.lock().unwrap().entry((kind, name.to_owned())).or_insert_with(|| Key::generate(kind)).clone()
}

impl Key {
    fn generate(kind: Kind) -> Self {
        let (algorithm, option, scheme) = match kind {
            Kind::P256 => ("EC", "ec_paramgen_curve:P-256", SignatureScheme::ECDSA_NISTP256_SHA256),
            Kind::P384 => ("EC", "ec_paramgen_curve:P-384", SignatureScheme::ECDSA_NISTP384_SHA384),
            Kind::Rsa2048 => ("RSA", "rsa_keygen_bits:2048", SignatureScheme::RSA_PKCS1_SHA256),
            Kind::Rsa3072 => ("RSA", "rsa_keygen_bits:3072", SignatureScheme::RSA_PKCS1_SHA512),
            Kind::Rsa4096 => ("RSA", "rsa_keygen_bits:4096", SignatureScheme::RSA_PKCS1_SHA512),
        };
        let output = Command::new("openssl")
            .args(["genpkey", "-algorithm", algorithm, "-pkeyopt", option])
            .output()
            .expect("this test needs the openssl command (Debian: openssl)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let der = PrivateKeyDer::from_pem_slice(&output.stdout).unwrap();
        let key = any_supported_type(&der).unwrap();
        let public = key.public_key().unwrap().to_vec();
        Self { key, scheme, public }
    }

    /// The same, signing with another scheme.
    pub fn with_scheme(mut self, scheme: SignatureScheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// The same, said to be another's: of a key that nobody here can sign with.
    pub fn with_public(mut self, key_info: Vec<u8>) -> Self {
        self.public = key_info;
        self
    }

    /// SubjectPublicKeyInfo, in DER.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// ECDSA in DER, RSA as octets.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.key.choose_scheme(&[self.scheme]).unwrap().sign(message).unwrap()
    }

    /// AlgorithmIdentifier (RFC 5758, section 3.2; RFC 4055, section 5).
    fn algorithm(&self) -> Vec<u8> {
        const NULL: &[u8] = &[5, 0];
        match self.scheme {
            SignatureScheme::ECDSA_NISTP256_SHA256 => tlv(0x30, &[&oid("1.2.840.10045.4.3.2")]),
            SignatureScheme::ECDSA_NISTP384_SHA384 => tlv(0x30, &[&oid("1.2.840.10045.4.3.3")]),
            SignatureScheme::RSA_PKCS1_SHA256 => tlv(0x30, &[&oid("1.2.840.113549.1.1.11"), NULL]),
            SignatureScheme::RSA_PKCS1_SHA384 => tlv(0x30, &[&oid("1.2.840.113549.1.1.12"), NULL]),
            SignatureScheme::RSA_PKCS1_SHA512 => tlv(0x30, &[&oid("1.2.840.113549.1.1.13"), NULL]),
            SignatureScheme::RSA_PSS_SHA256 => {
                let sha256 = tlv(0x30, &[&oid("2.16.840.1.101.3.4.2.1"), NULL]);
                let mgf = tlv(0x30, &[&oid("1.2.840.113549.1.1.8"), &sha256]);
                let parameters =
                    [tlv(0xa0, &[&sha256]), tlv(0xa1, &[&mgf]), tlv(0xa2, &[&tlv(2, &[&[32]])])].concat();
                tlv(0x30, &[&oid("1.2.840.113549.1.1.10"), &tlv(0x30, &[&parameters])])
            }
            scheme => panic!("{scheme:?}"),
        }
    }

    /// SIGNED of RFC 5280, around what is between the algorithm's two places.
    fn signed(&self, before: &[u8], behind: &[u8]) -> Vec<u8> {
        let tbs = tlv(0x30, &[before, &self.algorithm(), behind]);
        tlv(0x30, &[&tbs, &self.algorithm(), &tlv(0x03, &[&[0], &self.sign(&tbs)])])
    }
}

/// A distinguished name of a common name alone.
fn name(common_name: &str) -> Vec<u8> {
    let value = tlv(0x0c, &[common_name.as_bytes()]);
    tlv(0x30, &[&tlv(0x31, &[&tlv(0x30, &[&oid("2.5.4.3"), &value])])])
}

fn time(unix_s: u64) -> Vec<u8> {
    UtcTime::from_unix_duration(Duration::from_secs(unix_s)).unwrap().to_der().unwrap()
}

fn extension(identifier: &str, critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    tlv(0x30, &[&oid(identifier), critical, &tlv(0x04, &[value])])
}

/// basicConstraints of an authority.
pub fn is_ca(path_length: Option<u8>) -> Vec<u8> {
    let length = path_length.map_or(Vec::new(), |length| tlv(2, &[&[length]]));
    extension("2.5.29.19", true, &tlv(0x30, &[&[1, 1, 0xff], &length]))
}

/// basicConstraints of somebody else.
pub fn is_no_ca() -> Vec<u8> {
    extension("2.5.29.19", true, &[0x30, 0])
}

/// Bits of keyUsage (RFC 5280, section 4.2.1.3), the first one the highest.
pub const DIGITAL_SIGNATURE: u8 = 0x80;
pub const NON_REPUDIATION: u8 = 0x40;
pub const KEY_ENCIPHERMENT: u8 = 0x20;
pub const KEY_CERT_SIGN: u8 = 0x04;
pub const CRL_SIGN: u8 = 0x02;

pub fn key_usage(bits: u8) -> Vec<u8> {
    let unused = if bits == 0 { 0 } else { bits.trailing_zeros() as u8 };
    let value = if bits == 0 { tlv(3, &[&[0]]) } else { tlv(3, &[&[unused, bits]]) };
    extension("2.5.29.15", true, &value)
}

pub const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
pub const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";
pub const CODE_SIGNING: &str = "1.3.6.1.5.5.7.3.3";
pub const EMAIL_PROTECTION: &str = "1.3.6.1.5.5.7.3.4";
pub const OCSP_SIGNING: &str = "1.3.6.1.5.5.7.3.9";
pub const DOCUMENT_SIGNING: &str = "1.3.6.1.5.5.7.3.36";
pub const ANY_PURPOSE: &str = "2.5.29.37.0";

pub fn extended_key_usage(purposes: &[&str]) -> Vec<u8> {
    let purposes: Vec<u8> = purposes.iter().flat_map(|purpose| oid(purpose)).collect();
    extension("2.5.29.37", false, &tlv(0x30, &[&purposes]))
}

pub fn dns_name(dns: &str) -> Vec<u8> {
    extension("2.5.29.17", false, &tlv(0x30, &[&tlv(0x82, &[dns.as_bytes()])]))
}

/// nameConstraints that permit the DNS names below one.
pub fn permits_dns_below(dns: &str) -> Vec<u8> {
    let subtree = tlv(0x30, &[&tlv(0x82, &[dns.as_bytes()])]);
    extension("2.5.29.30", true, &tlv(0x30, &[&tlv(0xa0, &[&subtree])]))
}

/// An extension that nobody knows.
pub fn unknown_extension(critical: bool) -> Vec<u8> {
    extension("1.3.6.1.4.1.99999.1", critical, &[5, 0])
}

/// An extension that nobody needs, of so many bytes.
pub fn ballast(bytes: usize) -> Vec<u8> {
    extension("1.3.6.1.4.1.99999.2", false, &tlv(0x04, &[&vec![7; bytes]]))
}

/// An authority, or whatever else has a name and a key.
#[derive(Clone)]
pub struct Party {
    pub name: &'static str,
    pub key: Key,
}

/// The party of a name, with the key of that name.
pub fn party(kind: Kind, name: &'static str) -> Party {
    Party { name, key: key(kind, name) }
}

/// What a certificate says.
#[derive(Clone)]
pub struct Certificate {
    pub serial: u8,
    pub not_before_s: u64,
    pub not_after_s: u64,
    pub extensions: Vec<Vec<u8>>,
}

impl Certificate {
    /// Of an authority that may have others below it.
    pub fn authority(serial: u8) -> Self {
        Self::with(serial, vec![is_ca(None), key_usage(KEY_CERT_SIGN | CRL_SIGN)])
    }

    /// Of a device that signs.
    pub fn device(serial: u8) -> Self {
        Self::with(serial, vec![is_no_ca(), key_usage(DIGITAL_SIGNATURE)])
    }

    pub fn with(serial: u8, extensions: Vec<Vec<u8>>) -> Self {
        let (not_before_s, not_after_s) = (NOW_S - DAY_S, NOW_S + 365 * DAY_S);
        Self { serial, not_before_s, not_after_s, extensions }
    }

    /// In DER.
    pub fn issue(&self, subject: &Party, issuer: &Party) -> Vec<u8> {
        let validity = tlv(0x30, &[&time(self.not_before_s), &time(self.not_after_s)]);
        let extensions = match self.extensions.concat() {
            none if none.is_empty() => Vec::new(),
            some => tlv(0xa3, &[&tlv(0x30, &[&some])]),
        };
        let before = [tlv(0xa0, &[&[2, 1, 2]]), tlv(2, &[&[self.serial]])].concat();
        let behind =
            [name(issuer.name), validity, name(subject.name), subject.key.public.clone(), extensions]
                .concat();
        issuer.key.signed(&before, &behind)
    }
}

/// A revocation list in DER.
pub struct List<'a> {
    pub revoked: &'a [u8],
    pub this_update_s: u64,
    pub next_update_s: u64,
}

impl List<'_> {
    pub fn of<'a>(revoked: &'a [u8]) -> List<'a> {
        List { revoked, this_update_s: NOW_S - DAY_S, next_update_s: NOW_S + DAY_S }
    }

    pub fn issue(&self, issuer: &Party) -> Vec<u8> {
        let entry = |serial: &u8| tlv(0x30, &[&tlv(2, &[&[*serial]]), &time(self.this_update_s)]);
        let revoked = match self.revoked.iter().flat_map(entry).collect::<Vec<u8>>() {
            none if none.is_empty() => Vec::new(),
            some => tlv(0x30, &[&some]),
        };
        let number = extension("2.5.29.20", false, &[2, 1, 1]);
        let extensions = tlv(0xa0, &[&tlv(0x30, &[&number])]);
        let behind =
            [name(issuer.name), time(self.this_update_s), time(self.next_update_s), revoked, extensions]
                .concat();
        issuer.key.signed(&[2, 1, 1], &behind)
    }
}

fn pem(label: &str, ders: &[&[u8]]) -> String {
    let block = |der: &&[u8]| {
        let base64 = BASE64.encode(der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    ders.iter().map(block).collect()
}

pub fn certificates_pem(ders: &[&[u8]]) -> String {
    pem("CERTIFICATE", ders)
}

pub fn lists_pem(ders: &[&[u8]]) -> String {
    pem("X509 CRL", ders)
}

/// The usual authorities, and a device below them.
pub fn root() -> Party {
    party(Kind::P256, "root")
}

pub fn issuing() -> Party {
    party(Kind::P256, "issuing")
}

pub fn device() -> Party {
    party(Kind::P256, "device")
}

/// Their certificates.
pub fn anchor() -> Vec<u8> {
    Certificate::authority(1).issue(&root(), &root())
}

pub fn intermediate() -> Vec<u8> {
    Certificate::authority(2).issue(&issuing(), &root())
}

pub fn leaf() -> Vec<u8> {
    Certificate::device(3).issue(&device(), &issuing())
}
