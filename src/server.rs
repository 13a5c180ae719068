//! Listeners and connections: TLS, identity, HTTP, deadlines, draining.

use std::io::Cursor;
use std::net::{IpAddr, TcpListener as StdListener};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::LazyConfigAcceptor;
use tower::ServiceExt;

use crate::api::Peer;
use crate::config::{Config, Limits};
use crate::files::Files;
use crate::hsm::{Hsm, KeyPlace};
use crate::metrics::{ConnectionMetrics, Ended, Held};
use crate::tls::{self, Clients, HsmCertificate, Listener, TlsError};
use activity::Activity;
use handshakes::{Handshakes, Room};
use shares::Shares;
use standing::{Lost, Standing};

mod activity;
mod handshakes;
mod places;
mod shares;
mod standing;

/// How long draining waits for connections to end; with what the front waits for after that, 10 s.
const DRAIN_MAX: Duration = Duration::from_secs(9);
/// How long after a drain began who had come before has to shake hands, and then to ask.
const ARRIVAL_MAX: Duration = Duration::from_secs(2);
/// The pause after the kernel had no descriptor for a connection.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often an HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);
/// How long a peer that was told that its connection ends may go on without a request.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// How long one that is refused is told so.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// The client's preface, in bytes.
const HTTP2_PREFACE_BYTES: usize = 24;
/// The largest header, in bytes.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Streams at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// What a connection begins with. Replaced as a whole by a reload.
pub struct Identities {
    /// TLS itself, with whom it lets in.
    pub listener: Listener,
    clients: Clients,
}

impl Identities {
    /// Certificates and clients as the configuration says. Without a key file `hsm` signs: whether it has the keys is for
    /// [`Identities::misfits`].
    ///
    /// # Errors
    /// [`TlsError`], in words an operator can act on.
    pub fn load(config: &Config, files: &Files, hsm: &Hsm) -> Result<Self, TlsError> {
        let listener = tls::listener(&config.server, files, hsm)?;
        Ok(Self { listener, clients: Clients::new(&config.clients) })
    }

    /// The certificates whose keys are in no token, each with a line for the operator. Of keys that nobody has told of the
    /// tokens that are up are asked.
    pub async fn misfits(&self, hsm: &Hsm) -> Vec<(&HsmCertificate, String)> {
        if self.without_key(hsm).next().is_none() {
            return Vec::new();
        }
        let all_told = hsm.ask_for_tls().await;
        let line = |path: &Path| match all_told {
            true => tls::no_such_key(path),
            false => format!("{}: a token does not tell whether it has its key", path.display()),
        };
        self.without_key(hsm).map(|of| (of, line(&of.path))).collect()
    }

    /// The certificates whose keys are in no token, as far as the tokens have told.
    fn without_key(&self, hsm: &Hsm) -> impl Iterator<Item = &HsmCertificate> {
        self.listener.in_hsm.iter().filter(|of| hsm.tls_place(&of.key) == KeyPlace::Nowhere)
    }

    /// Why nobody can shake hands although the HSM is there, in a line for the operator.
    pub fn keys_away(&self, hsm: &Hsm) -> Option<String> {
        let is_here = |of: &HsmCertificate| hsm.tls_place(&of.key) == KeyPlace::Here;
        if self.listener.in_hsm.is_empty() || self.listener.in_hsm.iter().any(is_here) {
            return None;
        }
        let away = "the server's key is in a token that is away: no connection can be made until it is back";
        Some(self.without_key(hsm).next().map_or_else(|| away.to_owned(), |of| tls::no_such_key(&of.path)))
    }

    /// Whose a certificate is that a client showed, with the authorities that it sent behind it.
    ///
    /// # Errors
    /// It is not accepted, as a handshake at this moment would find.
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, rustls::Error> {
        let (own, authorities) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.listener.verifier.verify_client_cert(own, authorities, UnixTime::now())?;
        Ok(Peer(self.clients.identify(own)))
    }
}

/// Who has been accepted, and has said nothing yet.
struct Come {
    stream: TcpStream,
    from: IpAddr,
    /// Its place until its first message is whole.
    unannounced: OwnedSemaphorePermit,
}

/// The API's listener.
pub struct Server {
    /// What new connections begin with.
    pub identities: watch::Sender<Arc<Identities>>,
    /// The routes.
    pub router: Router,
    /// Deadlines and bounds.
    pub limits: Limits,
    /// What it counts.
    pub metrics: ConnectionMetrics,
}

impl Server {
    /// Accepts connections until `drain` resolves; then answers what is there, and who is on their way (`ARRIVAL_MAX`), for 9 s at
    /// most.
    ///
    /// # Errors
    /// If the listener cannot be used at all.
    pub async fn serve(
        self: Arc<Self>,
        listener: StdListener,
        drain: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let room = Arc::new(Semaphore::new(self.limits.connections_max));
        let connections_max = self.limits.connections_max;
        let timeout_of_handshake = Duration::from_millis(self.limits.handshake_timeout_ms);
        let handshakes =
            Arc::new(Handshakes::new(connections_max, self.limits.handshakes_max, timeout_of_handshake));
        let tenant_max = self.limits.connections_per_tenant_max.unwrap_or(connections_max);
        let client_max = self.limits.connections_per_client_max.unwrap_or(tenant_max);
        let shares = Arc::new(Shares::new(tenant_max, client_max));
        let (draining, drained) = watch::channel(false);
        tokio::pin!(drain);
        loop {
            // Room first: beyond it, connections wait in the kernel's backlog.
            let accepted = async {
                let room = handshakes.room(&room, &self.metrics).await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((listener.accept().await?, room))
            };
            tokio::select! {
                () = &mut drain => break,
                accepted = accepted => match accepted {
                    Ok(((stream, from), Room { connection, unannounced })) => {
                        let (server, handshakes) = (self.clone(), handshakes.clone());
                        let (shares, drained) = (shares.clone(), drained.clone());
                        tokio::spawn(async move {
                            let _connection = connection;
                            let come = Come { stream, from: from.ip(), unannounced };
                            let ended = server.connection(come, &handshakes, &shares, drained).await;
                            if let Err(reason) = ended {
                                tracing::debug!(reason, "connection ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        draining.send_replace(true);
        // All the room there is: then nobody is connected any more.
        let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
        if timeout(DRAIN_MAX, room.acquire_many(all)).await.is_err() {
            tracing::warn!("connections were cut off");
        }
        Ok(())
    }

    async fn connection(
        &self,
        Come { stream, from, unannounced }: Come,
        handshakes: &Handshakes,
        shares: &Shares,
        drained: watch::Receiver<bool>,
    ) -> Result<(), String> {
        let _open = Held::new(&self.metrics.open);
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let mut gone = pin!(too_late_to_arrive(drained.clone()));
        let announced = handshakes.announced(unannounced, from, hello, &self.metrics);
        let (hello, begins) = tokio::select! {
            announced = announced => announced?,
            () = gone.as_mut() => return Ok(()),
        };
        // A reload during the handshake is one of a connection that is open.
        let mut reloads = self.identities.subscribe();
        let identities = reloads.borrow_and_update().clone();
        let tls = identities.listener.config.clone();
        // What it says to the first message, with its signature, is made here at once: in its turn, and in its time.
        let handshake = async move { hello.into_stream(tls).await };
        let shaken = handshakes.shake(begins, from, handshake, &self.metrics);
        let mut stream = tokio::select! {
            shaken = shaken => shaken?,
            () = gone.as_mut() => return Ok(()),
        };
        let (_, session) = stream.get_ref();
        let chain: Vec<_> = session.peer_certificates().unwrap_or_default().to_vec();
        let peer = Peer(chain.first().and_then(|certificate| identities.clients.identify(certificate)));
        let http2 = session.alpn_protocol() == Some(b"h2");
        drop(identities);
        let _share = match shares.take(peer.0.as_deref()) {
            Ok(share) => share,
            Err(whose) => {
                self.metrics.refused.get_or_create(&whose).inc();
                let client = peer.0.as_ref().map(|client| client.name.as_str());
                tracing::warn!(
                    client,
                    tenant = peer.0.as_ref().map(|client| client.tenant_name()),
                    "a connection is closed: there are as many of theirs as may be"
                );
                // TLS's own goodbye, if it is heard.
                let _ = timeout(REFUSAL_MAX, stream.shutdown()).await;
                return Ok(());
            }
        };
        let mut stream = Box::pin(TimeoutStream::new(stream));
        let write_timeout = Duration::from_millis(self.limits.write_timeout_ms);
        stream.as_mut().set_write_timeout_pinned(Some(write_timeout));

        let standing = Standing::new(reloads, chain, peer);
        let peer = standing.peer();
        let activity = Arc::new(Activity::default());
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer.borrow().clone());
            let (active, answer) = (activity.begin(), self.router.clone().oneshot(request.map(Body::new)));
            async move {
                let _active = active;
                answer.await
            }
        });
        let header_timeout = Duration::from_millis(self.limits.header_timeout_ms);
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(HEADER_BYTES_MAX);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX as u32)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX);
        // The handshake has settled which of the two it is.
        if !http2 {
            let http = http.http1_only();
            let connection = http.serve_connection(TokioIo::new(stream), service);
            return self.converse(connection, &activity, standing, drained).await;
        }
        // hyper waits for the preface (RFC 9113, section 3.4) without end, and pings only after it.
        let (mut reader, writer) = tokio::io::split(stream);
        let mut preface = [0; HTTP2_PREFACE_BYTES];
        let read = tokio::select! {
            read = timeout(header_timeout, reader.read_exact(&mut preface)) => read,
            // It is what he asks first.
            () = too_late_to_arrive(drained.clone()) => return Ok(()),
        };
        read.map_err(|_| "the HTTP/2 preface took too long".to_owned())?.map_err(|e| e.to_string())?;
        let stream = tokio::io::join(Cursor::new(preface).chain(reader), writer);
        let http = http.http2_only();
        let connection = http.serve_connection(TokioIo::new(stream), service);
        self.converse(connection, &activity, standing, drained).await
    }

    /// Serves a connection to its end. It is ended in order when the appliance drains, when it is not used, when it is old,
    /// and when a reload made its client another; at once when its certificate is not accepted any more.
    async fn converse<C>(
        &self,
        connection: C,
        activity: &Activity,
        mut standing: Standing,
        drained: watch::Receiver<bool>,
    ) -> Result<(), String>
    where
        C: GracefulConnection,
        C::Error: ToString,
    {
        let mut connection = pin!(connection);
        let idle = activity.idle(Duration::from_millis(self.limits.idle_timeout_ms));
        let ended = tokio::select! {
            // Who is out asks nothing more, and what was asked before the end is heard.
            biased;
            lost = standing.lost() => match lost {
                Lost::Changed => Ended::Changed,
                Lost::Refused => Ended::Refused,
            },
            ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
            () = due_to_end(drained, activity) => Ended::Drained,
            () = idle => Ended::Idle,
            () = tokio::time::sleep(self.age_max()) => Ended::Old,
        };
        self.metrics.ended.get_or_create(&ended).inc();
        if ended == Ended::Refused {
            cut_off(&standing);
            return Ok(());
        }
        connection.as_mut().graceful_shutdown();
        // HTTP/2 waits for the peer to confirm that it was told, and serves it until then: one that never does has no longer
        // than the requests which it could not know to be too late.
        let requests = Duration::from_millis(self.limits.request_timeout_ms);
        let (idle, late) = (activity.idle(LEAVE_MAX), tokio::time::sleep(requests + LEAVE_MAX));
        let mut waited = pin!(async {
            tokio::select! { () = idle => {}, () = late => {} }
        });
        loop {
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
                () = waited.as_mut() => return Err("the peer does not leave".to_owned()),
                lost = standing.lost() => match lost {
                    Lost::Changed => {}
                    Lost::Refused => {
                        cut_off(&standing);
                        return Ok(());
                    }
                },
            }
        }
    }

    /// How old a connection may become: up to a tenth less than is configured, so that those which began together do not all
    /// come back together.
    fn age_max(&self) -> Duration {
        let seconds = self.limits.connection_age_max_seconds.max(1);
        // Without a random number none of it is lost but that.
        let part = getrandom::u32().map_or(0.0, |random| f64::from(random) / f64::from(u32::MAX));
        Duration::from_secs(seconds).mul_f64(1.0 - part / 10.0)
    }
}

/// While draining: when somebody who had connected before has had his time to shake hands, or for what comes right after. Behind it
/// is a request, mostly, of a client that saw the service take its connection. One that says nothing holds up no drain.
async fn too_late_to_arrive(mut drained: watch::Receiver<bool>) {
    begins(&mut drained).await;
    tokio::time::sleep(ARRIVAL_MAX).await;
}

/// While draining: when a connection is ended in order. One on which nothing was asked yet has the time to.
async fn due_to_end(mut drained: watch::Receiver<bool>, activity: &Activity) {
    begins(&mut drained).await;
    let _ = timeout(ARRIVAL_MAX, activity.begun()).await;
}

/// When the drain begins.
async fn begins(drained: &mut watch::Receiver<bool>) {
    // Gone with its sender, it drains as well.
    let _ = drained.wait_for(|drains| *drains).await;
}

fn cut_off(standing: &Standing) {
    let client = standing.client_name();
    tracing::warn!(client, "a connection is cut off: its client's certificate is not accepted any more");
}
