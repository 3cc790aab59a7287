//! One connection: handshake, then HTTP/1.1 requests one after the other, each wait with its limit.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonrpsee::server::{BatchRequestConfig, HttpBody, HttpResponse, http as rpc};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::arrivals::Arrival;
use super::idle::Watched;
use super::live::{End, Live, Place};
use super::rpc::Entrance;
use super::{Limits, told};
use crate::{Gate, Knock, Reception, Visitor};

/// The largest head of a request.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;
/// A body that is larger than may be is read on to its end if it is no larger than this: a connection that is closed on who still writes takes the
/// answer with it, and he could not tell whether his call has run.
const PASSED_OVER_MAX_BYTES: u64 = 64 << 20;
/// A caller whose host has vanished is noticed after 15 + 3 × 5 s, so that its call does not run on for nobody.
const KEEPALIVE_IDLE_SECONDS: u32 = 15;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// One connection that was accepted.
pub(super) struct Connection<R> {
    pub(super) address: SocketAddr,
    /// Its place among those that have proved nothing yet.
    pub(super) arrival: Arrival,
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
        let Self { address, arrival, gate, live, reception, limits, stop } = self;
        drop(arrival);
        let refused = |error: String| info!(peer = %address, error, "caller refused");
        let visitor = match Visitor::of(stream.get_ref().1, address) {
            Ok(visitor) => visitor,
            Err(error) => return refused(error),
        };
        let place = match live.enter(visitor.peer(), address.ip()) {
            Ok(place) => place,
            Err(reason) => return refused(reason),
        };
        // What the handshake went by may have changed since, and the next look at all who are connected may take its time.
        if let Some(Err(reason)) = visitor.peer().map(|peer| gate.admits(peer)) {
            return refused(reason);
        }
        match reception.admit(visitor) {
            Ok(caller) => Talk { address, reception, caller: Arc::new(caller), limits, stop }.serve(stream, place).await,
            Err(error) => refused(error),
        }
    }

    async fn shake_hands(&mut self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let began = Instant::now();
        tokio::select! {
            () = has_spoken(&stream) => {}
            () = self.arrival.displaced() => {
                // It may have, and we were too busy to hear it.
                if !is_there(&stream) {
                    return None;
                }
            }
            () = sleep_until(began + self.limits.handshake_timeout) => {}
            () = told(&mut self.stop) => return None,
        }
        self.arrival = self.arrival.has_spoken();
        let tls = TlsAcceptor::from(self.gate.tls());
        let handshake = tokio::select! {
            handshake = timeout_at(began + self.limits.handshake_timeout, tls.accept(stream)) => handshake,
            () = self.arrival.displaced() => return None,
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
}

/// One connection whose caller was admitted.
struct Talk<R: Reception> {
    address: SocketAddr,
    reception: Arc<R>,
    caller: Arc<R::Caller>,
    limits: Arc<Limits>,
    stop: watch::Receiver<bool>,
}

impl<R: Reception> Talk<R> {
    async fn serve(mut self, stream: TlsStream<TcpStream>, mut place: Place<'_>) {
        let (address, pulse) = (self.address, Arc::clone(place.pulse()));
        let io = Watched::new(TokioIo::new(stream), Arc::clone(&pulse));
        let service = service_fn(|request| {
            let (reception, caller) = (Arc::clone(&self.reception), Arc::clone(&self.caller));
            let (limits, busy) = (Arc::clone(&self.limits), pulse.has_read_head());
            async move {
                let response = carry(request, reception, caller, &limits, || busy.has_read_all()).await;
                drop(busy);
                Ok::<_, Infallible>(response)
            }
        });
        // Hyper's own limit on headers counts from the end of the last request, and so would be the limit on idleness too.
        let connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_header_size(HEAD_MAX_BYTES)
            .max_headers(HEADERS_MAX)
            .serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                // A connection that is to be cut answers no more, though its answer may be ready.
                biased;
                end = place.end() => match end {
                    End::Cut(reason) => return info!(peer = %address, reason, "connection cut"),
                    End::Displaced if pulse.waiting_since().is_some() => {
                        return info!(peer = %address, "connection closed: it kept us waiting, and connections_max is reached");
                    }
                    // A request has come meanwhile. It is answered, and is the last.
                    End::Displaced => connection.as_mut().graceful_shutdown(),
                },
                ended = connection.as_mut() => return match ended {
                    Err(error) if error.is_parse() => info!(peer = %address, %error, "connection closed: what came is no request"),
                    Err(error) => debug!(peer = %address, %error, "connection ended"),
                    Ok(()) => {}
                },
                () = pulse.stopped() => return debug!(peer = %address, "connection closed: nothing came in time"),
                () = told(&mut self.stop), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Until the client's first byte is here, or its end.
async fn has_spoken(stream: &TcpStream) {
    let _what_is_wrong_shows_in_the_handshake = stream.peek(&mut [0]).await;
}

/// Whether a byte of the client's is here, whatever the runtime has heard of it.
fn is_there(stream: &TcpStream) -> bool {
    recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok_and(|count| count > 0)
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
///
/// `has_read_all` hears when nothing of the request is waited for any more.
pub(crate) async fn carry<R, B>(
    request: Request<B>,
    reception: Arc<R>,
    caller: Arc<R::Caller>,
    limits: &Limits,
    has_read_all: impl FnOnce(),
) -> HttpResponse
where
    R: Reception,
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>>,
{
    let entrance = Entrance::new(reception, caller);
    let read = read_body(request, limits).await;
    has_read_all();
    let (mut response, otherwise) = match read {
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
    let says_bytes = body.size_hint().lower();
    if says_bytes > u64::from(limits.body_max_bytes) {
        if says_bytes <= PASSED_OVER_MAX_BYTES {
            let _in_time_or_not = timeout(limits.header_timeout, pass_over(body)).await;
        }
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

/// Reads a body and keeps nothing of it.
async fn pass_over(body: impl Body) {
    let mut body = std::pin::pin!(body);
    while body.frame().await.is_some_and(|frame| frame.is_ok()) {}
}

fn plain(status: StatusCode, text: &'static str) -> HttpResponse {
    let mut response = HttpResponse::new(HttpBody::from(text));
    *response.status_mut() = status;
    response
}
