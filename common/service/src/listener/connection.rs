//! One connection: handshake, then HTTP/1.1 requests one after the other, each wait with its limit.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body;
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
use super::live::{Live, Place};
use super::rpc::Entrance;
use super::strangers::Footing;
use super::{Limits, told};
use crate::{Gate, Knock, Reception, Visitor};

/// The largest head of a request.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// A caller whose host has vanished is noticed after 15 + 3 × 5 s, so that its call does not run on for nobody.
const KEEPALIVE_IDLE_SECONDS: u32 = 15;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// One connection that was accepted.
pub(super) struct Connection<R> {
    pub(super) address: SocketAddr,
    /// Where those are bounded who show no certificate: among them, until one is shown.
    pub(super) footing: Option<Footing>,
    pub(super) gate: Arc<dyn Gate>,
    pub(super) live: Arc<Live>,
    pub(super) reception: Arc<R>,
    pub(super) limits: Arc<Limits>,
    pub(super) stop: watch::Receiver<bool>,
}

impl<R: Reception> Connection<R> {
    /// Serves it to its end.
    pub(super) async fn serve(mut self, stream: TcpStream) {
        if let Err(error) = tune(&stream) {
            debug!(peer = %self.address, %error, "the connection's options cannot be set");
        }
        let Some(stream) = self.shake_hands(stream).await else { return };
        let refused = |error: String| info!(peer = %self.address, error, "caller refused");
        let visitor = match Visitor::of(stream.get_ref().1, self.address) {
            Ok(visitor) => visitor,
            Err(error) => return refused(error),
        };
        let live = Arc::clone(&self.live);
        let place = live.enter(visitor.peer());
        // What the handshake went by may have changed since, and the next look at all who are connected may take its time.
        if let Some(Err(reason)) = visitor.peer().map(|peer| self.gate.admits(peer)) {
            return refused(reason);
        }
        let mut footing = self.footing.take();
        let idle_timeout = match (visitor.peer(), &mut footing) {
            (None, Some(footing)) => match footing.is_a_strangers() {
                Ok(idle_timeout) => idle_timeout,
                Err(reason) => return refused(reason),
            },
            _ => {
                footing = None;
                self.limits.idle_timeout
            }
        };
        // It is among the strangers until the connection ends.
        let _among_strangers = footing;
        match self.reception.admit(visitor) {
            Ok(caller) => self.serve_http(stream, Arc::new(caller), place, idle_timeout).await,
            Err(error) => refused(error),
        }
    }

    async fn shake_hands(&mut self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let tls = TlsAcceptor::from(self.gate.tls());
        let handshake = tokio::select! {
            handshake = timeout(self.limits.handshake_timeout, tls.accept(stream)) => handshake,
            () = told(&mut self.stop) => return None,
        };
        match handshake {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => match certs::tls::client_refusal(&error) {
                Some(reason) => info!(peer = %self.address, reason, "handshake refused"),
                // One that looks whether the port is open, for instance.
                None => debug!(peer = %self.address, %error, "handshake broke off"),
            },
            Err(_) => info!(peer = %self.address, limit = ?self.limits.handshake_timeout, "handshake timed out"),
        }
        None
    }

    async fn serve_http(mut self, stream: TlsStream<TcpStream>, caller: Arc<R::Caller>, mut place: Place<'_>, idle_timeout: Duration) {
        let pulse = Arc::new(Pulse::new(idle_timeout, self.limits.header_timeout));
        let io = Watched::new(TokioIo::new(stream), Arc::clone(&pulse));
        let service = service_fn(|request| {
            let (reception, caller) = (Arc::clone(&self.reception), Arc::clone(&caller));
            let (limits, busy) = (Arc::clone(&self.limits), pulse.busy());
            async move {
                let response = carry(request, reception, caller, &limits).await;
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
                // A connection that is to be cut answers no more, though its answer may be ready.
                biased;
                reason = place.cut() => return info!(peer = %self.address, reason, "connection cut"),
                ended = connection.as_mut() => {
                    return if let Err(error) = ended { debug!(peer = %self.address, %error, "connection ended") };
                }
                () = pulse.stopped() => return debug!(peer = %self.address, "connection closed: nothing came in time"),
                () = told(&mut self.stop), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
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

/// Carries one request to the reception. The body is read here, within its limits, so that jsonrpsee has nothing to wait for.
pub(crate) async fn carry<R, B>(request: Request<B>, reception: Arc<R>, caller: Arc<R::Caller>, limits: &Limits) -> HttpResponse
where
    R: Reception,
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>>,
{
    let entrance = Entrance::new(reception, caller);
    let (mut response, otherwise) = match read_body(request, limits).await {
        Ok((request, is_batch)) => {
            // A batch is not taken apart: a mebibyte of one holds half a million requests.
            let batches = BatchRequestConfig::Disabled;
            let response = rpc::call_with_service(request, batches, limits.body_max_bytes, entrance.clone()).await;
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
    entrance.close(otherwise, response.headers_mut()).await;
    response
}

enum BodyError {
    TooLarge,
    TooSlow,
    Broken,
}

/// The request with its body read, and whether that is a list.
async fn read_body<B>(request: Request<B>, limits: &Limits) -> Result<(Request<Full<Bytes>>, bool), BodyError>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>>,
{
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
