//! Asking the fleet's authority, `overlord certs serve`: for a first certificate, for a renewed one, for the revocation list.
//!
//! Nothing is sent before the handshake has proved who answers. It keeps nothing on disk, and decides nothing of what it is told: whoever
//! asks checks the certificate or the list that comes, as if it had come from anybody.

mod exchange;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use certs::tls::{Anchor, CaPin, TlsError};
use common::identity::Role;
use common::outcome::Failure;
use common::protocol::certs::{
    AUTHORITY_PORT, ENROLL, EnrollParams, EnrollReply, Issued, RENEW, REVOCATIONS, REVOCATIONS_MAX_BYTES, Revocations, RevocationsParams,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;

use exchange::{Broken, Link};

/// The largest answer that is read: a revocation list as JSON text, in which a line's end takes two bytes, and what is around it.
pub const ANSWER_MAX_BYTES: usize = REVOCATIONS_MAX_BYTES + REVOCATIONS_MAX_BYTES / 8 + (64 << 10);

/// How long an exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For finding the address, connecting, and the handshake.
    pub connect: Duration,
    /// For the answer to one question.
    pub answer: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), answer: Duration::from_secs(30) }
    }
}

/// Why the authority has not answered as was hoped. What it says names the address and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AskError {
    /// It was not asked.
    #[error("cannot reach the authority at {address}: {reason}; does `overlord certs serve` run there, and is the address right?")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why.
        reason: String,
    },
    /// One side did not accept the other's certificate, or ours is missing. Nothing was read of what we may have sent.
    #[error("{message}")]
    Certificate {
        /// Who refuses whom, why, and what to do next.
        message: String,
        /// It refused us; else we refused it.
        refused_by_peer: bool,
    },
    /// It was asked, and gave no answer. Asking again does no harm.
    #[error("the authority at {address} gave no answer: {reason}; asking again does no harm")]
    Silent {
        /// Where it is.
        address: String,
        /// Why.
        reason: String,
    },
    /// It said no. The words are the authority's, for a person, and are to be made harmless before a terminal shows them.
    #[error("the authority refuses: {}", .0.message)]
    Refused(Failure),
    /// It answered something that we cannot read.
    #[error("what the authority at {address} answers is not understood: {reason}; has it the same version as this program?")]
    NotUnderstood {
        /// Where it is.
        address: String,
        /// Why.
        reason: String,
    },
}

/// Whoever asks the authority. Keeps one connection at most, and makes another when that has ended.
pub struct AuthorityClient {
    address: String,
    connector: TlsConnector,
    deadlines: Deadlines,
    pin: Option<CaPin>,
    ours: Option<Role>,
    link: Option<Link>,
    shown: Vec<CertificateDer<'static>>,
    asked: u64,
}

#[derive(Serialize)]
struct Question<'q, P> {
    jsonrpc: &'static str,
    id: u64,
    method: &'q str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<P>,
}

#[derive(Deserialize)]
struct Answer<R> {
    id: Option<u64>,
    #[serde(default = "none")]
    result: Option<R>,
    error: Option<Failure>,
}

impl AuthorityClient {
    /// Of the authority at `address`, `HOST:PORT` or `HOST`, by a configuration that [`certs::tls::authority_client_config`] made.
    #[must_use]
    pub fn new(address: &str, tls: Arc<ClientConfig>, deadlines: Deadlines) -> Self {
        Self {
            address: full_address(address),
            connector: TlsConnector::from(tls),
            deadlines,
            pin: None,
            ours: None,
            link: None,
            shown: Vec::new(),
            asked: 0,
        }
    }

    /// Of the authority of that fingerprint, for who has nothing else of it, nor a certificate.
    ///
    /// # Errors
    /// The TLS configuration cannot be made.
    pub fn pinned(address: &str, pin: CaPin, deadlines: Deadlines) -> Result<Self, TlsError> {
        let tls = certs::tls::authority_client_config(&Anchor::Pin(pin.clone()), None)?;
        Ok(Self { pin: Some(pin), ..Self::new(address, tls, deadlines) })
    }

    /// The same, knowing whose certificate it shows: errors then name what that one has to do.
    #[must_use]
    pub fn showing(self, ours: Role) -> Self {
        Self { ours: Some(ours), ..self }
    }

    /// Asks for a host's first certificate, or how the request for it stands.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn enroll(&mut self, params: &EnrollParams) -> Result<EnrollReply, AskError> {
        self.ask(ENROLL, Some(params)).await
    }

    /// Asks for a new certificate in the place of the one that is shown.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn renew(&mut self) -> Result<Issued, AskError> {
        self.ask(RENEW, None::<()>).await
    }

    /// Asks for the revocation list, if its number is larger than `have`.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn revocations(&mut self, have: u64) -> Result<Revocations, AskError> {
        self.ask(REVOCATIONS, Some(RevocationsParams { have, crl: None })).await
    }

    /// The certificate of the authority that was pinned, once a question has been answered.
    #[must_use]
    pub fn shown_authority(&self) -> Option<CertificateDer<'static>> {
        self.pin.as_ref()?.find(&self.shown).cloned()
    }

    /// Ends the connection: for who asks again much later, and would keep others from it meanwhile.
    pub fn hang_up(&mut self) {
        self.link = None;
    }

    /// Where the authority is asked: `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    async fn ask<R: DeserializeOwned>(&mut self, method: &str, params: Option<impl Serialize>) -> Result<R, AskError> {
        self.asked += 1;
        let question = Question { jsonrpc: "2.0", id: self.asked, method, params };
        let body = Bytes::from(serde_json::to_vec(&question).map_err(|error| self.not_understood(&error.to_string()))?);
        let answer = self.exchange(body).await?;
        let answer: Answer<R> = serde_json::from_slice(&answer).map_err(|error| self.not_understood(&error.to_string()))?;
        match answer {
            Answer { error: Some(failure), .. } => Err(AskError::Refused(failure)),
            Answer { id, result: Some(result), .. } if id == Some(self.asked) => Ok(result),
            _ => Err(self.not_understood("it is no answer to what was asked")),
        }
    }

    /// Over the kept connection, or another if that has ended while nobody asked anything.
    async fn exchange(&mut self, body: Bytes) -> Result<Bytes, AskError> {
        if let Some(mut link) = self.link.take() {
            match link.exchange(body.clone(), self.deadlines.answer).await {
                Ok(answer) => {
                    self.link = Some(link);
                    return Ok(answer);
                }
                Err(Broken::Closed { .. }) => {}
                Err(broken) => return Err(self.meaning(broken)),
            }
        }
        let mut link = self.connect().await?;
        let answer = link.exchange(body, self.deadlines.answer).await.map_err(|broken| self.meaning(broken))?;
        self.link = Some(link);
        Ok(answer)
    }

    async fn connect(&mut self) -> Result<Link, AskError> {
        let (link, shown) = exchange::connect(&self.address, &self.connector, self.deadlines.connect).await.map_err(|broken| match self
            .meaning(broken)
        {
            AskError::Silent { address, reason } => AskError::Unreachable { address, reason },
            other => other,
        })?;
        self.shown = shown;
        Ok(link)
    }

    fn meaning(&self, broken: Broken) -> AskError {
        let address = self.address.clone();
        match broken {
            Broken::Closed { reason, cause } => match certs::tls::authority_refusal_within(&self.address, self.ours.as_ref(), &*cause) {
                Some(refusal) => AskError::Certificate { message: refusal.message, refused_by_peer: refusal.refused_by_peer },
                None => AskError::Silent { address, reason },
            },
            Broken::Late { reason } => AskError::Silent { address, reason },
            Broken::Odd { reason } => AskError::NotUnderstood { address, reason },
        }
    }

    fn not_understood(&self, reason: &str) -> AskError {
        AskError::NotUnderstood { address: self.address.clone(), reason: reason.to_owned() }
    }
}

impl std::fmt::Debug for AuthorityClient {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("AuthorityClient").field("address", &self.address).finish_non_exhaustive()
    }
}

/// `HOST:PORT` of `HOST:PORT`, or of `HOST` alone, which may be an IPv6 address: then it is the authority's usual port.
#[must_use]
pub fn full_address(address: &str) -> String {
    if let Ok(address) = address.trim_matches(['[', ']']).parse::<IpAddr>() {
        return SocketAddr::new(address, AUTHORITY_PORT).to_string();
    }
    if address.contains(':') { address.to_owned() } else { format!("{address}:{AUTHORITY_PORT}") }
}

fn none<R>() -> Option<R> {
    None
}
