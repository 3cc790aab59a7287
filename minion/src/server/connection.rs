//! One connection: handshake, then HTTP/1.1 requests one after the other, each wait with its limit.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonrpsee::server::{BatchRequestConfig, HttpBody, HttpResponse, http as rpc};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::idle::{Pulse, Watched};
use super::{Caller, told};
use crate::config::Limits;
use crate::dispatch::{Door, DoorService, Knock};

/// The largest head of a request.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// A caller whose host has vanished is noticed after 15 + 3 × 5 s, so that its call does not run on for nobody.
const KEEPALIVE_IDLE_SECONDS: u32 = 15;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    door: Arc<Door>,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = tune(&stream) {
        debug!(peer = %address, %error, "the connection's options cannot be set");
    }
    let handshake = tokio::select! {
        handshake = timeout(limits.handshake_timeout, tls.accept(stream)) => handshake,
        () = told(&mut stop) => return,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return match certs::tls::client_refusal(&error) {
                Some(reason) => info!(peer = %address, reason, "handshake refused"),
                // One that looks whether the port is open, for instance.
                None => debug!(peer = %address, %error, "handshake broke off"),
            };
        }
        Err(_) => return info!(peer = %address, limit = ?limits.handshake_timeout, "handshake timed out"),
    };
    match Caller::of(stream.get_ref().1, address) {
        Ok(caller) => serve_http(stream, Arc::new(caller), door, limits, stop).await,
        Err(error) => info!(peer = %address, error, "caller refused"),
    }
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    Ok(())
}

async fn serve_http(
    stream: TlsStream<TcpStream>,
    caller: Arc<Caller>,
    door: Arc<Door>,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) {
    let pulse = Arc::new(Pulse::new(&limits));
    let io = Watched::new(TokioIo::new(stream), Arc::clone(&pulse));
    let service = service_fn(|request| {
        let (door, caller, limits, busy) = (Arc::clone(&door), Arc::clone(&caller), Arc::clone(&limits), pulse.busy());
        async move {
            let response = answer(request, door, caller, &limits).await;
            drop(busy);
            Ok::<_, Infallible>(response)
        }
    });
    // Hyper's own limit on headers counts from the end of the last request, and so would be the limit on idleness too.
    let connection = http1::Builder::new().header_read_timeout(None).max_header_size(HEAD_MAX_BYTES).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                return if let Err(error) = ended { debug!(peer = %caller.address(), %error, "connection ended") };
            }
            () = pulse.stopped() => return debug!(peer = %caller.address(), "connection closed: nothing came in time"),
            () = told(&mut stop), if !is_stopping => {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Carries one request to the door. The body is read here, within its limits, so that jsonrpsee has nothing to wait for.
async fn answer(request: Request<Incoming>, door: Arc<Door>, caller: Arc<Caller>, limits: &Limits) -> HttpResponse {
    let service = DoorService::new(door, caller);
    let (response, otherwise) = match read_body(request, limits).await {
        Ok((request, is_batch)) => {
            // A batch is not taken apart: a mebibyte of one holds half a million requests.
            let batches = BatchRequestConfig::Disabled;
            let response = rpc::call_with_service(request, batches, limits.body_max_bytes, service.clone()).await;
            (response, if is_batch { Knock::Batch } else { Knock::Malformed("not a JSON-RPC 2.0 call") })
        }
        Err(BodyError::TooLarge) => {
            (rpc::response::too_large(limits.body_max_bytes), Knock::Malformed("the request's body is larger than limits.body_max_bytes"))
        }
        Err(BodyError::TooSlow) => {
            let why = "the request's body did not come within limits.header_timeout";
            (plain(StatusCode::REQUEST_TIMEOUT, why), Knock::Malformed(why))
        }
        Err(BodyError::Broken) => {
            let why = "the request's body broke off";
            (plain(StatusCode::BAD_REQUEST, why), Knock::Malformed(why))
        }
    };
    service.close(otherwise).await;
    response
}

enum BodyError {
    TooLarge,
    TooSlow,
    Broken,
}

/// The request with its body read, and whether that is a list.
async fn read_body(request: Request<Incoming>, limits: &Limits) -> Result<(Request<Full<Bytes>>, bool), BodyError> {
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > u64::from(limits.body_max_bytes) {
        return Err(BodyError::TooLarge);
    }
    let max_bytes = usize::try_from(limits.body_max_bytes).unwrap_or(usize::MAX);
    match timeout(limits.header_timeout, Limited::new(body, max_bytes).collect()).await {
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            let is_batch = body.trim_ascii_start().starts_with(b"[");
            Ok((Request::from_parts(head, Full::new(body)), is_batch))
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge),
        Ok(Err(_)) => Err(BodyError::Broken),
        Err(_) => Err(BodyError::TooSlow),
    }
}

fn plain(status: StatusCode, text: &'static str) -> HttpResponse {
    let mut response = HttpResponse::new(HttpBody::from(text));
    *response.status_mut() = status;
    response
}
