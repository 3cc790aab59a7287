//! The bytes: one TCP connection, one TLS session, HTTP/1.1 questions and their answers. Knows no method and no words for a person.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::ANSWER_MAX_BYTES;
use crate::deepest_cause;
use crate::dial::{connect_tcp, last_words};

type Stream = TlsStream<TcpStream>;
type Cause = Box<dyn StdError + Send + Sync>;

/// Why there is no answer.
pub(super) enum Broken {
    /// The connection ended, or never began; the cause may say which certificate was refused.
    Closed { reason: String, cause: Cause },
    /// A deadline passed.
    Late { reason: String },
    /// There is one, and it is none.
    Odd { reason: String },
}

/// A connection whose handshake is over, on our side.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Nothing once it has ended.
    connection: Option<http1::Connection<TokioIo<Stream>, Full<Bytes>>>,
}

/// Connects, and gives the certificates that the server has shown.
pub(super) async fn connect(
    address: &str,
    connector: &TlsConnector,
    within: Duration,
) -> Result<(Link, Vec<CertificateDer<'static>>), Broken> {
    let connecting = async {
        let tcp = connect_tcp(address, within).await.map_err(closed)?;
        let name = certs::tls::authority_name().map_err(|error| closed(io::Error::other(error)))?;
        let stream = connector.connect(name, tcp).await.map_err(closed)?;
        let shown = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(closed)?;
        Ok((Link { sender, connection: Some(connection) }, shown))
    };
    match timeout(within, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(Broken::Late { reason: format!("no connection within {within:?}") }),
    }
}

impl Link {
    /// Sends a question and reads the answer whole, while driving the connection, so that nothing outlives this future.
    pub(super) async fn exchange(&mut self, body: Bytes, within: Duration) -> Result<Bytes, Broken> {
        match timeout(within, self.send(body)).await {
            Ok(answered) => answered,
            Err(_) => Err(Broken::Late { reason: format!("no answer came within {within:?}") }),
        }
    }

    async fn send(&mut self, body: Bytes) -> Result<Bytes, Broken> {
        let mut ended = None;
        let Self { sender, connection } = self;
        let answered = {
            let mut answer = pin!(answer(sender, body));
            poll_fn(|context| {
                if ended.is_none()
                    && let Some(open) = connection.as_mut()
                    && let Poll::Ready(end) = open.poll_without_shutdown(context)
                {
                    ended = Some(end);
                }
                answer.as_mut().poll(context)
            })
            .await
        };
        let Err(Broken::Closed { reason, cause }) = answered else {
            return answered;
        };
        // The server's refusal of our certificate comes with the first read, which may be none of this exchange's.
        let end = match ended.and_then(Result::err) {
            Some(error) => Some(error.into()),
            None => match connection.take() {
                Some(connection) => last_words(connection.into_parts().io.into_inner()).await.map(Cause::from),
                None => None,
            },
        };
        Err(Broken::Closed { reason, cause: end.unwrap_or(cause) })
    }
}

async fn answer(sender: &mut http1::SendRequest<Full<Bytes>>, body: Bytes) -> Result<Bytes, Broken> {
    let request = Request::post("/")
        .header(HOST, certs::tls::AUTHORITY_NAME)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| Broken::Odd { reason: error.to_string() })?;
    sender.ready().await.map_err(closed)?;
    let (head, body) = sender.send_request(request).await.map_err(closed)?.into_parts();
    let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(|cause| {
        if cause.is::<LengthLimitError>() {
            Broken::Odd { reason: format!("it is longer than {ANSWER_MAX_BYTES} bytes") }
        } else {
            Broken::Closed { reason: format!("the connection was closed in the middle of the answer ({cause})"), cause }
        }
    })?;
    match head.status {
        StatusCode::OK => Ok(body.to_bytes()),
        status => Err(Broken::Odd { reason: format!("it has the HTTP status {status}") }),
    }
}

fn closed(error: impl Into<Cause>) -> Broken {
    let cause = error.into();
    Broken::Closed { reason: deepest_cause(&*cause), cause }
}
