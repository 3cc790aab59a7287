//! The spawner's own look at a call. It believes the authority, the signature of the caller and the rules; of what the server says it believes
//! nothing, so that a server that was captured can make up, change, repeat and redirect no call.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::identity::{CallerName, Role};
use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure};
use common::protocol::Envelope;
use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Post;
use super::claims::{Answer, CLAIMS_MAX, Claim, Claimant};
use super::ledger::{RefusedAlone, Unproved};
use crate::audit::Log;
use crate::call::{Ask, Call, Proof, require_signed};
use crate::guard::{Bearer, Passed, Way};
use crate::user;

/// The largest certificate that is read; ours take less than 1 KiB.
const CERTIFICATE_MAX_BYTES: usize = 16 * 1024;

/// A call whose caller is known.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) call: Call,
    pub(super) signer: Signer,
}

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
    /// The user of the host as whom that job runs, if its rule names one: whoever else is that user can read its token.
    pub(super) confined_to: Option<String>,
    /// Of what a job submits: the caller's certificate, in base64, if it is good still. What he has signed brings it along.
    pub(super) certificate: Option<String>,
}

impl Signer {
    fn bearer(&self) -> Bearer<'_> {
        Bearer { caller: self.caller.as_str(), fingerprint: &self.fingerprint, address: None, parent: self.parent.as_ref() }
    }
}

impl Post {
    /// Whose call it is that `ask` holds, if it is for this host. What is not stands in the spawner's log.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn identify(&self, ask: &Ask) -> Result<Known, Failure> {
        self.refresh();
        let denied = |why| Failure::new(ErrorCode::Denied, format!("{}: {why}", ask.minion));
        let signer = match &ask.proof {
            _ if !self.names.contains(&ask.minion) => {
                Err(Failure::new(ErrorCode::WrongAudience, format!("{} is not the name of this host", shown(ask.minion.as_str()))))
            }
            Proof::Signed { signature, certificate } => self.signed(ask, signature, certificate),
            Proof::Token { job, code } => self.submitter(ask, job, code).map_err(denied),
        };
        let signer = signer.map_err(|failure| match &ask.proof {
            Proof::Signed { .. } => self.refuse(Bearer::UNKNOWN, "", failure),
            Proof::Token { .. } => self.guard.refuse(Bearer::UNKNOWN, "", failure, &Unproved(&self.ledger)),
        })?;
        let call = Call::parse(&ask.minion, &signer.caller, &ask.call).map_err(|failure| self.refuse(signer.bearer(), "", failure))?;
        Ok(Known { call, signer })
    }

    /// That the call was not done before. From now on it was.
    ///
    /// # Errors
    /// It was, or that is not to be had.
    pub(super) fn claim(&self, ask: &Ask, known: &Known, claimant: Claimant) -> Result<(), Failure> {
        let (name, Envelope { call_id, method, caller, .. }) = (&ask.minion, &known.call.envelope);
        let (code, why) = match claimant.claim(Claim::of(name, &known.call.envelope)) {
            Ok(Answer::Granted) => return Ok(()),
            Ok(Answer::Taken) => {
                (ErrorCode::InvalidRequest, format!("the call {call_id} of {caller} was run here before, and none is run twice"))
            }
            Ok(Answer::Over) => (
                ErrorCode::TooLate,
                format!("too late: the call {call_id} of {caller} is as old as others that are forgotten here; call again"),
            ),
            Ok(Answer::Full) => (
                ErrorCode::LimitReached,
                format!("{CLAIMS_MAX} calls of the last minutes are remembered here, which is the most; try again later"),
            ),
            Err(error) => {
                (ErrorCode::Undelivered, format!("the spawner cannot say whether the call was run before: {error}; nothing was run"))
            }
        };
        Err(self.refuse(known.signer.bearer(), method, Failure::new(code, format!("{name}: {why}"))))
    }

    /// Lets the call pass, if rules allow it and it is to be done in this `way`. Both stand in the spawner's logs.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn admit(&self, ask: &Ask, known: Known, wanted: Way) -> Result<Warrant<'_>, Failure> {
        self.admit_by(ask, known, wanted, &self.ledger)
    }

    /// The same for who only looks, who may do it again and again: only that he may not stands there.
    ///
    /// # Errors
    /// A refusal.
    pub(super) fn admit_to_look(&self, ask: &Ask, known: Known) -> Result<Warrant<'_>, Failure> {
        self.admit_by(ask, known, Way::Jobs, &RefusedAlone(&self.ledger))
    }

    fn admit_by(&self, ask: &Ask, known: Known, wanted: Way, log: &impl Log) -> Result<Warrant<'_>, Failure> {
        let Known { call, signer } = known;
        let failure = match self.guard.pass(&ask.minion, signer.bearer(), &call, log) {
            Ok(passed) if passed.way != wanted => {
                Failure::new(ErrorCode::InvalidRequest, format!("{} was handed on as something else", call.method))
            }
            Ok(passed) => match require_user(&signer, &passed) {
                Ok(()) => return Ok(Warrant { call, passed, signer }),
                Err((code, why)) => Failure::new(code, format!("{}: {why}", ask.minion)),
            },
            // A denial stands there already.
            Err(failure) if failure.is(ErrorCode::Denied) => return Err(failure),
            Err(failure) => failure,
        };
        Err(self.refuse(signer.bearer(), &call.envelope.method, failure))
    }

    fn refuse(&self, bearer: Bearer<'_>, method: &str, failure: Failure) -> Failure {
        self.guard.refuse(bearer, &shown(method), failure, &self.ledger)
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
        Ok(Signer { caller, fingerprint: peer.fingerprint, parent: None, confined_to: None, certificate: None })
    }
}

/// That what is to be run can run as the user whom its rule names; and that a job which itself runs as a user submits nothing that runs as another:
/// that would give back what its rule has taken away.
fn require_user(signer: &Signer, passed: &Passed<'_>) -> Result<(), (ErrorCode, String)> {
    let runs = matches!(passed.way, Way::Run | Way::Start | Way::Map);
    match (&signer.confined_to, &passed.run_as) {
        (Some(user), run_as) if runs && run_as.as_ref() != Some(user) => {
            let other = run_as.as_deref().unwrap_or("the minion's own user");
            let why =
                format!("a job that runs as {user} submits nothing that runs as {other}: the rule for it must say `run_as = \"{user}\"`");
            Err((ErrorCode::Denied, why))
        }
        (_, Some(user)) => user::require_in_reach(user).map_err(|error| (ErrorCode::Undelivered, error.to_string())),
        (_, None) => Ok(()),
    }
}

/// What the server says, for a log: bounded, control characters escaped.
fn shown(text: &str) -> String {
    text.escape_debug().take(common::method::METHOD_MAX_BYTES).collect()
}
