//! Peers: what other tokens of the same set sign with. Each token keeps the public halves of all, so that what one has
//! signed verifies at any.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use super::super::pkcs11::{Object, PairForm, Pkcs11Error, Session};
use super::Kind;
use crate::domain::signer::PublicKey;

/// What is labelled as a peer, unread.
pub struct LabelledPeer {
    pub(super) kind: Kind,
    pub(super) label: String,
    pub(super) object: Object,
}

/// What another token signs with, read and checked.
pub struct Peer {
    /// `attest` or `audit`.
    pub kind: Kind,
    /// Its public half.
    pub public: PublicKey,
}

/// The label under which other tokens keep a public half: 16 hex digits of its thumbprint (RFC 7638).
pub fn peer_label(kind: Kind, public: &PublicKey) -> String {
    let thumbprint = BASE64URL_NOPAD.decode(public.thumbprint().as_bytes()).unwrap_or_default();
    let first = thumbprint.first_chunk::<8>().copied().unwrap_or_default();
    format!("hsm-authd/{}{PEER}{}", kind.name(), HEXLOWER.encode(&first))
}

const PEER: &str = "/peer/";

/// The kind of what signs that a label says to be of another token; `None`: it is no such label.
pub(super) fn kind_of(label: &str) -> Option<Kind> {
    let (kind, digits) = label.strip_prefix("hsm-authd/")?.split_once(PEER)?;
    let kind = Kind::parse(kind)?;
    let is_hex = digits.len() == 16 && HEXLOWER.decode(digits.as_bytes()).is_ok();
    (is_hex && kind.is_published()).then_some(kind)
}

/// What is labelled as peers, read.
pub struct ReadPeers {
    /// What is one.
    pub peers: Vec<Peer>,
    /// What is none, with its label.
    pub others: Vec<(Object, String)>,
}

/// Those that are what they must be, each once, and the objects of the others, with their labels: what a crash has left
/// half made verifies nothing, and keeps nobody from serving. That one is such is believed of what was read twice.
///
/// # Errors
/// The HSM failed.
pub fn read_peers(session: &Session, labelled: &[LabelledPeer]) -> Result<ReadPeers, Pkcs11Error> {
    let (mut peers, mut others) = (Vec::<Peer>::new(), Vec::new());
    for peer in labelled {
        match (read(session, peer)?, read(session, peer)?) {
            (Some(public), Some(again)) if public == again => {
                if !peers.iter().any(|known| (known.kind, &known.public) == (peer.kind, &public)) {
                    peers.push(Peer { kind: peer.kind, public });
                }
            }
            (None, None) => others.push((peer.object, peer.label.clone())),
            _ => {
                return Err(Pkcs11Error::lie(
                    "C_GetAttributeValue: a peer's key that is another one each time",
                ));
            }
        }
    }
    Ok(ReadPeers { peers, others })
}

/// `None`: it is not what it must be, or gone.
fn read(session: &Session, peer: &LabelledPeer) -> Result<Option<PublicKey>, Pkcs11Error> {
    let LabelledPeer { kind, label, object } = peer;
    let read = session.check_retired(*object).and_then(|()| session.public_half(*object, PairForm::P256));
    match read {
        Ok(public) => Ok((*label == peer_label(*kind, &public)).then_some(public)),
        Err(error) if error.is_key_refusal() || error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::KeyName;
    use super::*;
    use crate::domain::signer::tests::key_named;

    #[test]
    fn a_label_says_which_key_it_is_of() {
        let key = key_named("rsa2048");
        let label = peer_label(Kind::Attest, &key);
        assert!(label.starts_with("hsm-authd/attest/peer/") && label.len() == 38, "{label}");
        assert_eq!(kind_of(&label), Some(Kind::Attest));
        assert_ne!(label, peer_label(Kind::Audit, &key));
        assert_ne!(label, peer_label(Kind::Attest, &key_named("rsa4096")));
        let name = KeyName { kind: Kind::Audit, version: 1 };
        for other in [
            "hsm-authd/kek/peer/0123456789abcdef",
            "hsm-authd/import/peer/0123456789abcdef",
            "hsm-authd/tls/peer/0123456789abcdef",
            "hsm-authd/attest/peer/0123456789abcde",
            "hsm-authd/attest/peer/0123456789ABCDEF",
            "hsm-authd/attest/peer/",
            &name.retired(),
            &name.mark(),
            &name.to_string(),
        ] {
            assert_eq!(kind_of(other), None, "{other}");
        }
    }
}
