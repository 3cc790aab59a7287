//! One host, one question: connect, TLS, JSON-RPC, and what a failure means. Retries nothing.
//!
//! What matters is the line between "never sent" and "sent": below it a call cannot have run. In TLS 1.3 our side of the
//! handshake is over before the host has looked at our certificate, so a refusal may arrive after the call was sent; it is
//! then found in the stream, and means that the call was not read.

mod broken;
mod exchange;
mod heard;
pub(crate) mod newer;
mod shape;

use std::sync::Arc;
use std::time::Duration;

use certs::trust::OverlordTrust;
use common::outcome::{ErrorCode, Failure, Verdict};
use jsonrpsee::core::client::{ClientT, Error as RpcError};
use jsonrpsee::core::traits::ToRpcParams;
use jsonrpsee_http_client::transport::Error as TransportError;
use jsonrpsee_http_client::{HttpClientBuilder, HttpRequest, RpcServiceBuilder};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tower::{Service, ServiceBuilder};

use crate::authority::renewal::Renewal;
use crate::config::Config;
use crate::envelope::{Letter, Text, WriteError};
use broken::Broken;
pub(crate) use broken::Sent;
use exchange::Dial;
pub(crate) use exchange::{Answer, Exchanged, Line};
pub(crate) use heard::Heard;

/// Longer than every wait within an exchange: jsonrpsee wants a limit of its own, which must not be the one that strikes.
const OUTER_MARGIN: Duration = Duration::from_secs(10);
/// As much of an answer that cannot be understood as is shown.
const SHOWN_MAX_CHARS: usize = 200;
/// As much of a host's reason for giving no answer as is kept.
pub(crate) const REASON_MAX_CHARS: usize = 1000;

/// What asking hosts takes; made once for a command.
pub(crate) struct Client {
    trust: Arc<OverlordTrust>,
    renewal: Arc<Renewal>,
    heard: Arc<Heard>,
    connect_within: Duration,
    answer_max_bytes: u32,
    call_max_bytes: u32,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NoAnswer {
    /// The host was not asked: nothing was sent, or nothing that it would read.
    NotSent(String),
    /// The same, because what was to be sent is larger than is sent, or than the host takes.
    TooLarge(String),
    /// It was asked, and what it said, if anything, cannot be understood.
    Silent(String),
    /// It refused, before anything ran.
    Refused(Failure),
}

impl NoAnswer {
    /// What it means for a call that was to run.
    pub(crate) fn into_verdict(self) -> Verdict {
        match self {
            Self::NotSent(reason) | Self::TooLarge(reason) => Verdict::undelivered(reason),
            Self::Silent(reason) => Verdict::lost(reason),
            Self::Refused(failure) => failure.into_refusal(),
        }
    }

    /// The reason, for a person.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::NotSent(reason) | Self::TooLarge(reason) | Self::Silent(reason) => reason,
            Self::Refused(failure) => &failure.message,
        }
    }

    /// The same, such that it can be kept: a host may have written the reason, however long it is.
    pub(crate) fn shortened(self) -> Self {
        match self {
            Self::NotSent(reason) => Self::NotSent(kept_of(reason)),
            Self::TooLarge(reason) => Self::TooLarge(kept_of(reason)),
            Self::Silent(reason) => Self::Silent(kept_of(reason)),
            Self::Refused(failure) => Self::Refused(Failure { message: kept_of(failure.message), ..failure }),
        }
    }

    pub(crate) fn is_refusal(&self, code: ErrorCode) -> bool {
        matches!(self, Self::Refused(failure) if failure.is(code))
    }
}

impl Client {
    /// Of whoever `trust` says that we are, at each exchange anew.
    pub(crate) fn new(trust: Arc<OverlordTrust>, renewal: Arc<Renewal>, config: &Config) -> Self {
        Self {
            trust,
            renewal,
            heard: Arc::default(),
            connect_within: config.connect_timeout,
            answer_max_bytes: config.result_max_bytes,
            call_max_bytes: config.call_max_bytes,
        }
    }

    /// Which revocation lists hosts have said that they go by.
    pub(crate) fn heard(&self) -> &Heard {
        &self.heard
    }

    /// The same, for answers of at most `bytes`: many hosts are asked at once, and each could fill what is left of the memory.
    pub(crate) fn taking_at_most(&self, bytes: u32) -> Self {
        let (trust, renewal, heard) = (self.trust.clone(), self.renewal.clone(), self.heard.clone());
        Self { trust, renewal, heard, answer_max_bytes: self.answer_max_bytes.min(bytes), ..*self }
    }

    /// Asks the letter's host by the `line` that is kept to it, as [`Client::ask`] does by a connection of its own.
    pub(crate) async fn ask_by<R: DeserializeOwned>(
        &self,
        line: &Line,
        letter: &Letter,
        within: Duration,
        sent: &Sent,
    ) -> Result<R, NoAnswer> {
        self.exchange(letter, &*written(letter)?, within, sent, Some(line)).await.map_err(NoAnswer::shortened)
    }

    /// Asks the letter's host, and waits `within` for the answer once it is sent. `sent` tells whether it came so far, also
    /// to whoever drops this future.
    pub(crate) async fn ask<R: DeserializeOwned>(&self, letter: &Letter, within: Duration, sent: &Sent) -> Result<R, NoAnswer> {
        self.send(letter, &*written(letter)?, within, sent).await
    }

    /// The same, with what was [`written`] for it before: the very text that may have been sent already.
    pub(crate) async fn send<R: DeserializeOwned>(
        &self,
        letter: &Letter,
        text: &Text,
        within: Duration,
        sent: &Sent,
    ) -> Result<R, NoAnswer> {
        self.exchange(letter, text, within, sent, None).await.map_err(NoAnswer::shortened)
    }

    async fn exchange<R: DeserializeOwned>(
        &self,
        letter: &Letter,
        text: &Text,
        within: Duration,
        sent: &Sent,
        line: Option<&Line>,
    ) -> Result<R, NoAnswer> {
        self.renewal.look();
        let shown = self.trust.now();
        let params = text.params(shown.credentials()).map_err(|error| unwritten(&error))?;
        let dial = Arc::new(Dial {
            shown,
            trust: self.trust.clone(),
            heard: self.heard.clone(),
            host: letter.host.clone(),
            address: letter.address.clone(),
            connect_within: self.connect_within,
            answer_within: within,
            answer_max_bytes: self.answer_max_bytes,
            sent: sent.clone(),
            line: line.cloned(),
        });
        let question = Question {
            method: letter.method(),
            params,
            max_bytes: self.call_max_bytes,
            within: self.connect_within.saturating_add(within).saturating_add(OUTER_MARGIN),
        };
        put(question, dial.service(), sent).await
    }
}

/// What is asked of one host.
pub(crate) struct Question<'m, P> {
    pub(crate) method: &'m str,
    pub(crate) params: P,
    /// The largest that is sent.
    pub(crate) max_bytes: u32,
    /// The time for all of it.
    pub(crate) within: Duration,
}

/// Puts a question by `exchange`, which takes it to the host and brings the answer, and reads that.
pub(crate) async fn put<R, P, S>(question: Question<'_, P>, exchange: S, sent: &Sent) -> Result<R, NoAnswer>
where
    R: DeserializeOwned,
    P: ToRpcParams + Send,
    S: Service<HttpRequest, Response = Answer, Error = TransportError, Future = Exchanged> + Clone + Send + Sync + 'static,
{
    let client = HttpClientBuilder::new()
        .set_http_middleware(ServiceBuilder::new().layer_fn(move |_stock_transport| exchange.clone()))
        .set_rpc_middleware(RpcServiceBuilder::new())
        .max_request_size(question.max_bytes)
        .max_response_size(u32::MAX)
        .request_timeout(question.within)
        // The name in it is never looked up: the service above dials the address that the roster has.
        .build("http://minion/")
        .map_err(|error| NoAnswer::NotSent(error.to_string()))?;
    let answer: Box<RawValue> = client.request(question.method, question.params).await.map_err(|error| no_answer(error, sent))?;
    shape::check(answer.get(), shape::DEPTH_MAX + shape::FRAMES_MAX)
        .map_err(|problem| NoAnswer::Silent(format!("it answered something {}", shortened(&problem))))?;
    serde_json::from_str(answer.get()).map_err(|error| {
        let newer = serde_json::from_str(answer.get()).ok().and_then(|answer| newer::unknown_state(&answer));
        newer.map_or_else(|| not_understood(&error.to_string()), NoAnswer::Silent)
    })
}

/// The text of a letter as it is sent now.
pub(crate) fn written(letter: &Letter) -> Result<Arc<Text>, NoAnswer> {
    letter.text().map_err(|error| unwritten(&error))
}

fn unwritten(error: &WriteError) -> NoAnswer {
    NoAnswer::NotSent(crate::chain(error))
}

/// The meaning of an error of jsonrpsee's.
fn no_answer(error: RpcError, sent: &Sent) -> NoAnswer {
    match error {
        RpcError::Call(error) => NoAnswer::Refused(refusal(error.code(), error.message(), error.data())),
        RpcError::Transport(error) => match error.downcast::<TransportError>() {
            Ok(error) => transport_failure(*error, sent),
            Err(error) => unclear(&error.to_string(), sent),
        },
        RpcError::ParseError(error) => not_understood(&error.to_string()),
        other => unclear(&other.to_string(), sent),
    }
}

/// The refusal stands whatever its data are like; data that cannot be kept are left out, and the message says so.
fn refusal(code: i32, message: &str, data: Option<&RawValue>) -> Failure {
    let mut failure = Failure::of_code(code, message);
    if let Some(data) = data {
        match shape::check(data.get(), shape::DEPTH_MAX) {
            Ok(()) => failure.data = serde_json::from_str(data.get()).ok(),
            Err(problem) => failure.message.push_str(&format!(" (and data that are left out, {})", shortened(&problem))),
        }
    }
    failure
}

fn transport_failure(error: TransportError, sent: &Sent) -> NoAnswer {
    match error {
        TransportError::Http(error) => match Broken::within(error) {
            Ok(Broken::NotSent(reason)) => NoAnswer::NotSent(reason),
            Ok(Broken::Silent(reason)) => NoAnswer::Silent(reason),
            Err(other) => not_understood(&other.to_string()),
        },
        TransportError::Rejected { status_code: 413 } => NoAnswer::TooLarge(
            "the host turned the request away with HTTP status 413: it is larger than limits.body_max_bytes there; give it smaller arguments"
                .to_owned(),
        ),
        // A minion that runs a call answers it with 200; these it gives before it reads one.
        TransportError::Rejected { status_code: status @ (400..=499 | 503) } => {
            NoAnswer::NotSent(format!("the host turned the request away with HTTP status {status}; its log says why"))
        }
        TransportError::RequestTooLarge => {
            NoAnswer::TooLarge("the call is larger than call_max_bytes in overlord.toml: give it smaller arguments".to_owned())
        }
        other => unclear(&other.to_string(), sent),
    }
}

fn not_understood(problem: &str) -> NoAnswer {
    NoAnswer::Silent(format!("it answered something that is not an outcome: {}", shortened(problem)))
}

fn shortened(problem: &str) -> String {
    problem.chars().take(SHOWN_MAX_CHARS).collect()
}

fn kept_of(reason: String) -> String {
    match reason.char_indices().nth(REASON_MAX_CHARS) {
        Some((end, _)) => format!("{}…", reason.get(..end).unwrap_or_default()),
        None => reason,
    }
}

fn unclear(problem: &str, sent: &Sent) -> NoAnswer {
    if sent.is_set() { NoAnswer::Silent(problem.to_owned()) } else { NoAnswer::NotSent(problem.to_owned()) }
}

#[cfg(test)]
mod tests;
