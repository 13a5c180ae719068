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
    peer: Peer,
}

/// Why a connection cannot go on as it is.
pub enum Lost {
    /// Its certificate is not accepted any more: revoked, or of an authority that is none now.
    Refused,
    /// It is another client's, or nobody's; or the client may do something else.
    Changed,
}

impl Standing {
    /// Of a handshake that was begun with what `identities` held then, and that found this.
    pub fn new(
        identities: watch::Receiver<Arc<Identities>>,
        chain: Vec<CertificateDer<'static>>,
        peer: Peer,
    ) -> Self {
        Self { identities, chain, peer }
    }

    /// Whose it was, for the log.
    pub fn client_name(&self) -> Option<&str> {
        self.peer.0.as_ref().map(|client| client.name.as_str())
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
                Ok(peer) if peer.0 != self.peer.0 => return Lost::Changed,
                Ok(_) => {}
            }
        }
    }
}
