//! The spawner's own look at a call. It believes the authority, the signature of the caller and the rules; of what the server says it believes
//! nothing, so that a server that was captured can make up, change, repeat and redirect no call.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::identity::{CallerName, Role};
use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure};
use common::protocol::Envelope;
use jiff::Timestamp;
use service::audit::{Audit, AuditError};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::claims::{Answer, CLAIMS_MAX, Claim, Claimant};
use super::{AUDIT_LOG, Post};
use crate::call::{Ask, Call, Proof, require_signed};
use crate::guard::{Bearer, Passed, Way};
use crate::user;

/// The largest certificate that is read; ours take less than 1 KiB.
const CERTIFICATE_MAX_BYTES: usize = 16 * 1024;

/// A call that may be done, and what follows from it.
#[derive(Debug)]
pub(super) struct Warrant<'a> {
    pub(super) call: Call,
    pub(super) passed: Passed<'a>,
    pub(super) signer: Signer,
}

/// Whose call it is: he has signed it, or a job of his has submitted it.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) caller: CallerName,
    pub(super) fingerprint: String,
    /// The job that submits it.
    pub(super) parent: Option<MinionJobId>,
    /// Of what a job submits: the caller's certificate, in base64, if it is good still. What he has signed brings it along.
    pub(super) certificate: Option<String>,
}

impl Signer {
    fn bearer(&self) -> Bearer<'_> {
        Bearer { caller: self.caller.as_str(), fingerprint: &self.fingerprint, address: None, parent: self.parent.as_ref() }
    }
}

impl Post {
    /// Looks whether the call of `ask` may be done in this `way`. What may not stands in the spawner's audit log.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn verify(&self, ask: &Ask, wanted: Way) -> Result<Warrant<'_>, Failure> {
        let audit = self.audit_to_run()?;
        let signer = self.signer(ask, &audit)?;
        let bearer = signer.bearer();
        let refused = |bearer, method: &str, failure| Err(self.guard.refuse(bearer, &shown(method), failure, &audit));
        let call = match Call::parse(&ask.minion, &signer.caller, &ask.call) {
            Ok(call) => call,
            Err(failure) => return refused(bearer, "", failure),
        };
        match self.guard.pass(&ask.minion, bearer, &call, &audit) {
            Ok(passed) if passed.way == wanted => match passed.run_as.as_deref().map_or(Ok(()), user::require_in_reach) {
                Ok(()) => Ok(Warrant { call, passed, signer }),
                Err(error) => {
                    let failure = Failure::new(ErrorCode::Undelivered, format!("{}: {error}", ask.minion));
                    refused(bearer, &call.envelope.method, failure)
                }
            },
            Ok(_) => {
                let failure = Failure::new(ErrorCode::InvalidRequest, format!("{} was handed on as something else", call.method));
                refused(bearer, &call.envelope.method, failure)
            }
            // A denial stands there already.
            Err(failure) if failure.is(ErrorCode::Denied) => Err(failure),
            Err(failure) => refused(bearer, &call.envelope.method, failure),
        }
    }

    /// That the call of `warrant` was not run before. From now on it was.
    ///
    /// # Errors
    /// It was, or that is not to be had.
    pub(super) fn claim(&self, ask: &Ask, warrant: &Warrant<'_>, claimant: Claimant) -> Result<(), Failure> {
        let Envelope { call_id, method, caller, .. } = &warrant.call.envelope;
        let failure = match claimant.claim(Claim::of(&ask.minion, &warrant.call.envelope)) {
            Ok(Answer::Granted) => return Ok(()),
            Ok(Answer::Taken) => {
                let message = format!("{}: the call {call_id} of {caller} was run here before, and none is run twice", ask.minion);
                Failure::new(ErrorCode::InvalidRequest, message)
            }
            Ok(Answer::Full) => {
                let message = format!(
                    "{}: {CLAIMS_MAX} calls of the last minutes are remembered here, which is the most; try again later",
                    ask.minion
                );
                Failure::new(ErrorCode::LimitReached, message)
            }
            Err(error) => {
                let message = format!("{}: the spawner cannot say whether the call was run before: {error}; nothing was run", ask.minion);
                Failure::new(ErrorCode::Undelivered, message)
            }
        };
        match self.audit() {
            Ok(audit) => Err(self.guard.refuse(warrant.signer.bearer(), method, failure, &audit)),
            Err(_) => Err(failure),
        }
    }

    /// Whose call that of `ask` is, if it is meant for this host. What nobody is believed to have asked stands in the log.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn signer(&self, ask: &Ask, audit: &Audit) -> Result<Signer, Failure> {
        let denied = |why| Failure::new(ErrorCode::Denied, format!("{}: {why}", ask.minion));
        let known = match &ask.proof {
            _ if !self.names.contains(&ask.minion) => {
                Err(Failure::new(ErrorCode::WrongAudience, format!("{} is not the name of this host", shown(ask.minion.as_str()))))
            }
            Proof::Signed { signature, certificate } => self.signed(ask, signature, certificate),
            Proof::Token { job, code } => self.submitter(ask, job, code).map_err(denied),
        };
        known.map_err(|failure| self.guard.refuse(Bearer::UNKNOWN, "", failure, audit))
    }

    /// Who has signed the call, if his certificate is good now and the signature is his.
    fn signed(&self, ask: &Ask, signature: &str, certificate: &str) -> Result<Signer, Failure> {
        let denied = |why: String| Failure::new(ErrorCode::Denied, format!("{}: {why}", ask.minion));
        let cert = Some(certificate).filter(|text| text.len() <= CERTIFICATE_MAX_BYTES).and_then(|text| BASE64.decode(text).ok());
        let cert = CertificateDer::from(cert.ok_or_else(|| denied("what should be the caller's certificate is none".into()))?);
        let verified = self.callers.borrow().verify(&cert, Timestamp::now());
        let peer = verified.map_err(|why| denied(format!("who has signed the call is not believed: {why}")))?;
        let Role::Overlord(caller) = peer.role else { return Err(denied(format!("{} is no overlord, and nobody else calls", peer.role))) };
        require_signed(&ask.minion, &cert, &ask.call, signature)?;
        Ok(Signer { caller, fingerprint: peer.fingerprint, parent: None, certificate: None })
    }

    /// The log, without which nothing is run.
    ///
    /// # Errors
    /// A refusal: it cannot be opened.
    pub(super) fn audit_to_run(&self) -> Result<Audit, Failure> {
        self.audit().map_err(|error| {
            tracing::error!(%error, "a call is refused because it cannot be audited");
            Failure::new(ErrorCode::Undelivered, format!("nothing is run that cannot be audited: {error}"))
        })
    }

    /// The spawner's own log, beside the spools, where the server cannot reach it. Each child opens it anew: what is inherited from one process
    /// has one lock in common.
    fn audit(&self) -> Result<Audit, AuditError> {
        Audit::open(&self.spools.join(AUDIT_LOG), self.rotation).map(Audit::without_journal)
    }
}

/// What the server says, for a log: bounded, control characters escaped.
fn shown(text: &str) -> String {
    text.escape_debug().take(common::method::METHOD_MAX_BYTES).collect()
}
