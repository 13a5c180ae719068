//! The operator's way into a running service for what the configuration cannot say: a unix socket beside the database,
//! for whoever may write there. HTTP/1, so that `curl --unix-socket` can ask as well.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::service::{Refused, Service};

/// Connections at once.
const CONNECTIONS_MAX: usize = 8;
/// The time for a request's header, and for everything a connection does.
const HEADER_MAX: Duration = Duration::from_secs(5);
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// The pause after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the socket of a database is.
pub fn path(store: &Path) -> PathBuf {
    store.with_added_extension("control")
}

/// Whether there can be one: the path of a socket has an end (107 bytes on Linux).
pub fn is_possible(store: &Path) -> bool {
    SocketAddr::from_pathname(path(store)).is_ok()
}

/// Makes the socket, mode 0600. Whoever does holds the instance lock, so one that is there is nobody's.
///
/// # Errors
/// It cannot be made.
pub fn bind(store: &Path) -> io::Result<UnixListener> {
    let path = path(store);
    // Made in a folder that only its owner may enter, and moved once only its owner may ask: a mode that is set after a
    // socket is bound comes too late for whoever is quick.
    let folder = path.with_added_extension("new");
    let _ = std::fs::remove_file(&folder);
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(std::fs::remove_dir_all(&folder))?;
    gone(std::fs::remove_file(&path))?;
    DirBuilder::new().mode(0o700).create(&folder)?;
    let listener = bind_in(&folder, &path);
    std::fs::remove_dir_all(&folder)?;
    listener
}

fn bind_in(folder: &Path, path: &Path) -> io::Result<UnixListener> {
    let unfinished = folder.join("s");
    let listener = UnixListener::bind(&unfinished)?;
    std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unfinished, path)?;
    Ok(listener)
}

/// Answers for ever. What it has begun, a rewrap included, ends with it.
pub async fn serve(listener: UnixListener, service: Arc<Service>) {
    let router = router(service);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(room) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_MAX).keep_alive(false);
            let _ = timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(room);
        });
    }
}

fn router(service: Arc<Service>) -> Router {
    let (reloading, rewrapping) = (service.clone(), service.clone());
    let begun = Arc::new(Mutex::new(JoinSet::new()));
    Router::new()
        .route(
            "/keys/reload",
            post(async move || match reloading.load_keys().await {
                Ok(newest) => json(&newest),
                Err(refused) => unavailable(&refused),
            }),
        )
        .route(
            "/keys/rewrap",
            post(async move || {
                if rewrapping.begin_rewrap() {
                    let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
                    begun.spawn(async move { rewrapping.rewrap().await });
                }
                StatusCode::ACCEPTED
            })
            .merge(get(async move || json(&service.rewrap_progress()))),
        )
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn unavailable(refused: &Refused) -> Response {
    let reason = match refused {
        Refused::Unavailable { cause, .. } => cause.clone(),
        other => format!("{other:?}"),
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason).into_response()
}
