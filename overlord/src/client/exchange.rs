//! The bytes: one TCP connection, one TLS session, one HTTP/1.1 request and its answer, or on a line that is kept several of them. Takes the place of jsonrpsee's own
//! transport, which would verify the name in a URL; here an address is dialled, and the name is the host's that is meant.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use certs::tls::{Peer, Refusal};
use certs::trust::{OverlordTls, OverlordTrust, Trusted};
use common::identity::MinionName;
use http::header::{HOST, HeaderValue};
use http::uri::Uri;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jsonrpsee::core::http_helpers::HttpError;
use jsonrpsee_http_client::transport::Error as TransportError;
use jsonrpsee_http_client::{HttpBody, HttpRequest, HttpResponse};
use service::deepest_cause;
use service::dial::{connect_tcp, last_words};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval_at, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;
use tower::util::service_fn;

use super::broken::{Broken, Sent};
use super::heard::Heard;

/// A connection that was not used for so long is not used again: the host may be about to close it.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// How long one that is kept may take to be ready for the next request.
const READY_WITHIN: Duration = Duration::from_millis(100);
/// How often it is looked whether the host that is being asked may still be there. An answer that comes sooner is not looked at.
const ADMISSION_EVERY: Duration = Duration::from_millis(250);

type Stream = TlsStream<TcpStream>;
type Connection = http1::Connection<TokioIo<Stream>, HttpBody>;
/// What a host has answered, read whole.
pub(crate) type Answer = HttpResponse<Full<Bytes>>;
/// An answer to come.
pub(crate) type Exchanged = Pin<Box<dyn Future<Output = Result<Answer, TransportError>> + Send>>;

/// One exchange to be.
pub(super) struct Dial {
    /// What is shown to the host: with the key of what the call was signed with.
    pub(super) shown: Arc<Trusted<OverlordTls>>,
    pub(super) trust: Arc<OverlordTrust>,
    pub(super) heard: Arc<Heard>,
    pub(super) host: MinionName,
    pub(super) address: String,
    pub(super) connect_within: Duration,
    pub(super) answer_within: Duration,
    pub(super) answer_max_bytes: u32,
    pub(super) sent: Sent,
    /// Where the connection is kept, if it is.
    pub(super) line: Option<Line>,
}

/// A connection to one host that is kept for the next question, while that is asked as the same overlord; by one who asks at a time.
#[derive(Clone, Default)]
pub(crate) struct Line(Arc<Mutex<Option<Open>>>);

/// A connection that is open.
struct Open {
    /// What was shown on it.
    shown: Arc<Trusted<OverlordTls>>,
    peer: Option<Peer>,
    sender: http1::SendRequest<HttpBody>,
    connection: Connection,
    used_at: Instant,
}

/// What went wrong after the handshake.
struct Failure {
    /// Not a byte of the request was written.
    never_written: bool,
    /// The host was still being heard: it is the answer that is wrong.
    answered: bool,
    message: String,
    cause: Box<dyn StdError + Send + Sync>,
}

impl Line {
    /// What is kept, if it still leads to the host and was opened as who we are now.
    async fn take(&self, shown: &Arc<Trusted<OverlordTls>>) -> Option<Open> {
        let mut open = self.kept().take().filter(|open| Arc::ptr_eq(&open.shown, shown) && open.used_at.elapsed() < KEPT_FOR)?;
        let is_ready = poll_fn(|context| match open.connection.poll_without_shutdown(context) {
            Poll::Ready(_ended) => Poll::Ready(false),
            Poll::Pending => open.sender.poll_ready(context).map(|ready| ready.is_ok()),
        });
        timeout(READY_WITHIN, is_ready).await.is_ok_and(|is_ready| is_ready).then_some(open)
    }

    fn keep(&self, open: Open) {
        *self.kept() = Some(open);
    }

    fn kept(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dial {
    /// The exchange as what jsonrpsee wants in place of its transport.
    pub(super) fn service(
        self: Arc<Self>,
    ) -> impl Service<HttpRequest, Response = Answer, Error = TransportError, Future = Exchanged> + Clone + Send + Sync {
        service_fn(move |request: HttpRequest| -> Exchanged {
            let dial = self.clone();
            Box::pin(async move { dial.exchange(request).await.map_err(|broken| TransportError::Http(HttpError::Stream(broken.into()))) })
        })
    }

    async fn exchange(&self, request: HttpRequest) -> Result<Answer, Broken> {
        let request = self.addressed(request)?;
        let kept = match &self.line {
            Some(line) => line.take(&self.shown).await,
            None => None,
        };
        let open = match kept {
            Some(open) => open,
            None => self.open().await?,
        };
        // A revocation that has come since the call was signed holds, too.
        if let Some(Err(reason)) = open.peer.as_ref().map(|peer| self.trust.admits(peer)) {
            return Err(self.not_sent(&reason));
        }
        let peer = open.peer.clone();
        self.sent.set();
        let (answer, open) = tokio::select! {
            biased;
            answered = timeout(self.answer_within, self.send(request, open)) => match answered {
                Ok(answered) => answered?,
                Err(_) => return Err(Broken::Silent(format!("it was sent, and no answer came within {:?}", self.answer_within))),
            },
            reason = self.refused_meanwhile(peer) => {
                return Err(Broken::Silent(format!("{reason} while it was asked: what it did is not known")));
            }
        };
        if let (Some(line), Some(open)) = (&self.line, open) {
            line.keep(open);
        }
        Ok(answer)
    }

    /// A new connection.
    async fn open(&self) -> Result<Open, Broken> {
        let stream = match timeout(self.connect_within, self.connect()).await {
            Ok(connected) => connected?,
            Err(_) => return Err(self.not_sent(&format!("no connection within {:?}", self.connect_within))),
        };
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| certs::tls::peer(chain).ok());
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| self.not_sent(&error.to_string()))?;
        Ok(Open { shown: self.shown.clone(), peer, sender, connection, used_at: Instant::now() })
    }

    /// Until the host is one that we would not connect to any more: why. It pends for ever while it is not.
    async fn refused_meanwhile(&self, peer: Option<Peer>) -> String {
        let Some(peer) = peer else { return std::future::pending().await };
        let mut tick = interval_at(Instant::now() + ADMISSION_EVERY, ADMISSION_EVERY);
        loop {
            tick.tick().await;
            if let Err(reason) = self.trust.admits(&peer) {
                return reason;
            }
        }
    }

    /// The request with a path in place of the URL, and the host's name in the header that HTTP/1.1 wants.
    fn addressed(&self, mut request: HttpRequest) -> Result<HttpRequest, Broken> {
        *request.uri_mut() = Uri::from_static("/");
        let host = HeaderValue::from_str(self.host.as_str()).map_err(|error| self.not_sent(&error.to_string()))?;
        request.headers_mut().insert(HOST, host);
        Ok(request)
    }

    async fn connect(&self) -> Result<Stream, Broken> {
        let tcp = connect_tcp(&self.address, self.connect_within).await.map_err(|error| self.not_sent(&error.to_string()))?;
        let name = certs::tls::server_name(&self.host).map_err(|error| self.not_sent(&error.to_string()))?;
        let connector = TlsConnector::from(self.shown.tls().client.clone());
        connector.connect(name, tcp).await.map_err(|error| match self.refusal(&error) {
            Some(refusal) => Broken::NotSent(refusal.message),
            None => self.not_sent(&format!("the TLS handshake failed: {error}")),
        })
    }

    /// Sends the request and reads the answer whole, while driving the connection, so that nothing outlives this future.
    /// What it was sent on comes back, if it can be used again.
    async fn send(&self, request: HttpRequest, open: Open) -> Result<(Answer, Option<Open>), Broken> {
        let Open { shown, peer, mut sender, connection, .. } = open;
        let (mut connection, mut ended) = (Some(connection), None);
        let answered = {
            let mut answer = pin!(self.answer(&mut sender, request));
            poll_fn(|context| {
                if let Some(open) = &mut connection
                    && let Poll::Ready(end) = open.poll_without_shutdown(context)
                {
                    // The host may have closed one that was kept, at any moment. What was not written yet comes back by this; else it would lie there for ever.
                    ended = connection.take().map(|open| (end, open.into_parts().io.into_inner()));
                }
                answer.as_mut().poll(context)
            })
            .await
        };
        let failure = match answered {
            Ok(answer) => {
                // One that has ended would take the next request, and never send it.
                let open = connection.map(|connection| Open { shown, peer, sender, connection, used_at: Instant::now() });
                return Ok((answer, open));
            }
            Err(failure) => failure,
        };
        let (end, stream) = match ended {
            Some((end, stream)) => (end.err(), Some(stream)),
            None => (None, connection.map(|open| open.into_parts().io.into_inner())),
        };
        let mut refusal = self.refusal(&*failure.cause).or_else(|| self.refusal(&end?));
        if let Some(stream) = stream.filter(|_| refusal.is_none() && !failure.answered) {
            refusal = last_words(stream).await.and_then(|error| self.refusal(&error));
        }
        Err(self.meaning(failure, refusal))
    }

    async fn answer(&self, sender: &mut http1::SendRequest<HttpBody>, request: HttpRequest) -> Result<Answer, Failure> {
        let response = sender.try_send_request(request).await.map_err(|mut failed| Failure {
            never_written: failed.take_message().is_some(),
            answered: false,
            message: "the connection was closed before an answer came".to_owned(),
            cause: failed.into_error().into(),
        })?;
        let (head, body) = response.into_parts();
        self.heard.note(&self.host, &self.address, &head.headers);
        let limit = usize::try_from(self.answer_max_bytes).unwrap_or(usize::MAX);
        let body = Limited::new(body, limit).collect().await.map_err(|cause| Failure {
            never_written: false,
            answered: true,
            message: if cause.is::<LengthLimitError>() {
                format!("its answer is longer than {limit} bytes, which result_max_bytes in overlord.toml allows")
            } else {
                "the connection was closed in the middle of the answer".to_owned()
            },
            cause,
        })?;
        Ok(HttpResponse::from_parts(head, Full::new(body.to_bytes())))
    }

    fn meaning(&self, failure: Failure, refusal: Option<Refusal>) -> Broken {
        match refusal {
            // The host refused us in the handshake, so it has not read what was sent behind it.
            Some(refusal) => {
                self.sent.unset();
                Broken::NotSent(refusal.message)
            }
            _ if failure.never_written => {
                self.sent.unset();
                self.not_sent("the connection was closed before anything was sent")
            }
            None => Broken::Silent(format!("{} ({})", failure.message, deepest_cause(&*failure.cause))),
        }
    }

    fn refusal(&self, error: &(dyn StdError + 'static)) -> Option<Refusal> {
        certs::tls::refusal_within(&self.host, error)
    }

    fn not_sent(&self, reason: &str) -> Broken {
        Broken::NotSent(format!("cannot reach {} at {}: {reason}", self.host, self.address))
    }
}
