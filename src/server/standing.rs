//! Whether the client of an open connection is still who it was when the connection began.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::Identities;
use crate::api::Peer;

/// What a connection's client showed, and what it is held against after each reload.
pub struct Standing {
    identities: watch::Receiver<Arc<Identities>>,
    chain: Vec<CertificateDer<'static>>,
    peer: watch::Sender<Peer>,
}

/// Why a connection cannot go on as it is.
pub enum Lost {
    /// Its certificate is not accepted any more: revoked, or of an authority that is none now.
    Refused,
    /// It is another client's, or nobody's; or the client may do something else. What is asked from now on is asked by
    /// whom it is now.
    Changed,
}

impl Standing {
    /// Of a handshake that was begun with what `identities` held then, and that found this.
    pub fn new(
        identities: watch::Receiver<Arc<Identities>>,
        chain: Vec<CertificateDer<'static>>,
        peer: Peer,
    ) -> Self {
        Self { identities, chain, peer: watch::Sender::new(peer) }
    }

    /// Whose it is now.
    pub fn peer(&self) -> watch::Receiver<Peer> {
        self.peer.subscribe()
    }

    /// Whose it was, for the log.
    pub fn client_name(&self) -> Option<String> {
        self.peer.borrow().0.as_ref().map(|client| client.name.as_str().to_owned())
    }

    /// Comes back when a reload ends it.
    pub async fn lost(&mut self) -> Lost {
        loop {
            if self.identities.changed().await.is_err() {
                // There will be no other reload.
                std::future::pending::<()>().await;
            }
            let identities = self.identities.borrow_and_update().clone();
            match identities.peer(&self.chain) {
                Err(_) => return Lost::Refused,
                Ok(peer) => {
                    let replaces = |old: &mut Peer| {
                        let differs = old.0 != peer.0;
                        *old = peer;
                        differs
                    };
                    if self.peer.send_if_modified(replaces) {
                        return Lost::Changed;
                    }
                }
            }
        }
    }
}
