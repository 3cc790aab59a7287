//! Who asks the authority's server, and for what: read, passed on to the desk, and answered. It decides only what no desk is needed for.

use std::sync::Arc;

use certs::authority::desk::{Asked, Certified, Enrolled, token_digest};
use certs::trust::AuthorityTrust;
use common::outcome::{ErrorCode, Failure};
use common::protocol::certs::{
    CSR_MAX_BYTES, ENROLL, EnrollParams, EnrollReply, Issued, RENEW, REVOCATIONS, Revocations, RevocationsParams,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use service::authority::ANSWER_MAX_BYTES;
use service::{Knock, Reception, Visitor};
use tracing::error;

use crate::authority::audit::{Action, Decision, Entry, Ledger};
use crate::authority::clerk::{Clerk, Given, Wish};
use crate::chain;

/// How much of a reader's complaint, or of a method's name, is repeated.
const QUOTED_MAX_LETTERS: usize = 200;

/// Where requests are answered.
#[derive(Debug)]
pub(super) struct Desk {
    clerk: Clerk,
    trust: Arc<AuthorityTrust>,
    ledger: Arc<Ledger>,
}

/// The `result` of an answer.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Reply {
    Enroll(EnrollReply),
    Renew(Issued),
    Revocations(Revocations),
}

impl Desk {
    pub(super) fn new(clerk: Clerk, trust: Arc<AuthorityTrust>, ledger: Arc<Ledger>) -> Self {
        Self { clerk, trust, ledger }
    }

    async fn enroll(&self, visitor: &Visitor, params: &str) -> Result<Reply, Failure> {
        let entry = Entry::of_visitor(visitor, Action::Enroll);
        let EnrollParams { name, csr, token } = read::<EnrollParams>(params).map_err(|failure| self.refused(entry.clone(), failure))?;
        let mut entry = entry.about([name.as_str()]);
        if let Some(token) = &token {
            entry = entry.with_token(&token_digest(token));
        }
        if csr.len() > CSR_MAX_BYTES {
            let text = format!("the request of {name} is refused: it is larger than {CSR_MAX_BYTES} bytes");
            return Err(self.refused(entry, Failure::new(ErrorCode::InvalidArguments, text)));
        }
        let asked = Asked { name, csr, token, from: visitor.address().ip().to_string() };
        match self.clerk.ask(Wish::Enroll(asked), entry).await? {
            Given::Enrolled(Enrolled::Issued(certified)) | Given::Renewed(certified) => {
                Ok(Reply::Enroll(EnrollReply::Issued(self.issued(certified))))
            }
            Given::Enrolled(Enrolled::Waiting { key, since }) => Ok(Reply::Enroll(EnrollReply::Waiting { key, since })),
            Given::Enrolled(Enrolled::Rejected { at }) => Ok(Reply::Enroll(EnrollReply::Rejected { at })),
        }
    }

    async fn renew(&self, visitor: &Visitor) -> Result<Reply, Failure> {
        let entry = Entry::of_visitor(visitor, Action::Renew);
        let Some(peer) = visitor.peer() else {
            let text = "who shows no certificate has none to renew: enrol with `minion enroll`";
            return Err(self.refused(entry, Failure::new(ErrorCode::Denied, text)));
        };
        let entry = entry.about([peer.role.name()]);
        match self.clerk.ask(Wish::Renew(peer.cert.clone()), entry).await? {
            Given::Renewed(certified) | Given::Enrolled(Enrolled::Issued(certified)) => Ok(Reply::Renew(self.issued(certified))),
            Given::Enrolled(Enrolled::Waiting { .. } | Enrolled::Rejected { .. }) => {
                Err(Failure::new(ErrorCode::Internal, "a renewal was answered like a first request, which is a bug"))
            }
        }
    }

    fn issued(&self, Certified { cert_pem, .. }: Certified) -> Issued {
        Issued { cert: cert_pem, revocations: self.revocations(0) }
    }

    /// The list for somebody who has the number `have`: it is signed, and no secret.
    fn revocations(&self, have: u64) -> Revocations {
        let trusted = self.trust.now();
        let crl = trusted.crl().filter(|crl| crl.number() > have);
        Revocations { number: trusted.crl_number(), crl: crl.map(|crl| crl.pem().to_owned()) }
    }

    /// The refusal, once it is in the log; if it cannot be written, it is a refusal all the same.
    fn refused(&self, entry: Entry, failure: Failure) -> Failure {
        if let Err(problem) = self.ledger.record(&entry.decided(Decision::Refused, Some(failure.message.clone()))) {
            error!(problem = %chain(&problem), "a refusal cannot be written down");
        }
        failure
    }

    fn no_call(&self, visitor: &Visitor, code: ErrorCode, text: impl Into<String>) -> Failure {
        self.refused(Entry::of_visitor(visitor, Action::Other), Failure::new(code, text))
    }
}

impl Reception for Desk {
    type Caller = Visitor;
    type Reply = Reply;

    /// The handshake lets in who shows no certificate, too: he may ask for a first one.
    fn admit(&self, visitor: Visitor) -> Result<Visitor, String> {
        Ok(visitor)
    }

    async fn enter(&self, visitor: &Visitor, knock: Knock<'_>) -> Result<Reply, Failure> {
        match knock {
            Knock::Call { method: ENROLL, params } => self.enroll(visitor, params).await,
            Knock::Call { method: RENEW, .. } => self.renew(visitor).await,
            Knock::Call { method: REVOCATIONS, params } => match read::<Option<RevocationsParams>>(params) {
                Ok(params) => Ok(Reply::Revocations(self.revocations(params.unwrap_or_default().have))),
                Err(failure) => Err(self.refused(Entry::of_visitor(visitor, Action::Other), failure)),
            },
            Knock::Call { method, .. } => {
                let text = format!("the authority has no method {}", quoted(method));
                Err(self.no_call(visitor, ErrorCode::UnknownMethod, text))
            }
            Knock::Batch => {
                Err(self.no_call(visitor, ErrorCode::InvalidRequest, "a batch is refused as a whole: send one request at a time"))
            }
            Knock::WithoutId { .. } => {
                Err(self.no_call(visitor, ErrorCode::InvalidRequest, "a request without an id is refused: nobody could be answered"))
            }
            Knock::Malformed(why) => Err(self.no_call(visitor, ErrorCode::InvalidRequest, why)),
        }
    }

    fn reply_max_bytes(&self) -> usize {
        ANSWER_MAX_BYTES
    }

    fn reply_too_large(&self) -> Failure {
        Failure::new(ErrorCode::Internal, "the revocation list is larger than can be sent")
    }
}

fn read<P: DeserializeOwned>(params: &str) -> Result<P, Failure> {
    serde_json::from_str(params)
        .map_err(|error| Failure::new(ErrorCode::InvalidArguments, format!("`params` are not understood: {}", quoted(&error.to_string()))))
}

fn quoted(text: &str) -> String {
    text.escape_debug().take(QUOTED_MAX_LETTERS).collect()
}
