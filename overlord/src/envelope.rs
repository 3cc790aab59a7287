//! One call as letters, one for each host: hosts share an envelope, written at the moment when its first letter is sent, and
//! anew for the letters that are sent much later. One signature serves all of them, for as long as the caller's key is the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use certs::files::Credentials;
use certs::signature::{self, SignatureError};
use common::identity::{CallerName, MinionName};
use common::job::{CallId, MinionJobId};
use common::protocol::{AUDIENCE_MAX, Arguments, CallParams, Envelope, START_WITHIN};
use jiff::{SignedDuration, Timestamp};
use jsonrpsee::core::traits::ToRpcParams;
use serde_json::value::RawValue;

use crate::hosts::Host;

/// How long a written envelope is sent to further hosts. With few forks the last host of an audience may get it long after the
/// first, and must have no less time to start it.
const FRESH_FOR: Duration = Duration::from_secs(30);

/// What is asked, of whomever.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) call_id: CallId,
    pub(crate) caller: CallerName,
    /// `module.method`, or `async.module.method`.
    pub(crate) method: String,
    pub(crate) args: Arguments,
    /// The limit of the run.
    pub(crate) limit: Option<Duration>,
}

/// A message to one host.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) host: MinionName,
    pub(crate) address: String,
    sheet: Arc<Sheet>,
}

#[derive(Debug)]
struct Sheet {
    message: Arc<Message>,
    audience: Vec<MinionName>,
    written: Mutex<Option<Written>>,
}

#[derive(Debug)]
struct Written {
    /// By the clock that the hosts compare theirs with, and which does not stand still while this machine sleeps.
    at: Timestamp,
    text: Arc<Text>,
}

/// An envelope as it is sent, however often. Whoever sends it signs it.
#[derive(Debug)]
pub(crate) struct Text {
    call: String,
    /// What it was last signed as.
    signed: Mutex<Option<Signed>>,
}

#[derive(Debug)]
struct Signed {
    /// The [`Credentials::key_id`] of the key.
    key: String,
    params: Params,
}

/// The `params` of a call, as JSON text.
#[derive(Debug, Clone)]
pub(crate) struct Params(Box<RawValue>);

/// Why a call cannot be put into words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the call cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Sign(#[from] SignatureError),
}

impl Message {
    /// A letter to each of `hosts`.
    pub(crate) fn letters<'h>(self, hosts: impl IntoIterator<Item = &'h Host>) -> Vec<Letter> {
        let message = Arc::new(self);
        let hosts: Vec<&Host> = hosts.into_iter().collect();
        let mut letters = Vec::with_capacity(hosts.len());
        for chunk in hosts.chunks(AUDIENCE_MAX) {
            let audience = chunk.iter().map(|host| host.name.clone()).collect();
            let sheet = Arc::new(Sheet { message: message.clone(), audience, written: Mutex::default() });
            letters.extend(chunk.iter().map(|host| Letter {
                host: host.name.clone(),
                address: host.address.clone(),
                sheet: sheet.clone(),
            }));
        }
        letters
    }

    fn write(&self, audience: &[MinionName], at: Timestamp) -> Result<Text, WriteError> {
        let envelope = Envelope {
            call_id: self.call_id.clone(),
            caller: self.caller.clone(),
            audience: audience.to_owned(),
            method: self.method.clone(),
            args: self.args.clone(),
            start_before: later(at, START_WITHIN),
            limit_ms: self.limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        Ok(Text { call: serde_json::to_string(&envelope)?, signed: Mutex::default() })
    }
}

impl Letter {
    pub(crate) fn method(&self) -> &str {
        &self.sheet.message.method
    }

    /// Another call, of this host alone, for the same caller.
    pub(crate) fn to_the_same(&self, method: &str, args: Arguments, limit: Duration) -> Self {
        let message = Message {
            call_id: CallId::new(service::fresh_id(), 1),
            caller: self.sheet.message.caller.clone(),
            method: method.to_owned(),
            args,
            limit: Some(limit),
        };
        let sheet = Sheet { message: Arc::new(message), audience: vec![self.host.clone()], written: Mutex::default() };
        Self { host: self.host.clone(), address: self.address.clone(), sheet: Arc::new(sheet) }
    }

    /// The id under which the host holds what this asks of it, if that is a job.
    pub(crate) fn minion_job_id(&self) -> MinionJobId {
        MinionJobId::derive(&self.host, &self.sheet.message.caller, &self.sheet.message.call_id)
    }

    /// What is sent now.
    pub(crate) fn text(&self) -> Result<Arc<Text>, WriteError> {
        self.text_at(Timestamp::now())
    }

    /// As if it had been written long ago.
    #[cfg(test)]
    pub(crate) fn age(&self) {
        *self.sheet.written.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The call id stays the same, so a host that gets both knows them for one call.
    fn text_at(&self, now: Timestamp) -> Result<Arc<Text>, WriteError> {
        let mut written = self.sheet.written.lock().unwrap_or_else(PoisonError::into_inner);
        match written.as_ref() {
            Some(last) if last.is_fresh(now) => Ok(last.text.clone()),
            _ => {
                let text = Arc::new(self.sheet.message.write(&self.sheet.audience, now)?);
                *written = Some(Written { at: now, text: text.clone() });
                Ok(text)
            }
        }
    }
}

impl Text {
    /// The `params` for a connection on which `credentials` are shown. A renewal keeps the key, and so the signature; it is made anew for
    /// another key alone.
    pub(crate) fn params(&self, credentials: &Credentials) -> Result<Params, WriteError> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        match signed.as_ref() {
            Some(last) if last.key == credentials.key_id() => Ok(last.params.clone()),
            _ => {
                let params = CallParams { call: self.call.clone(), signature: signature::sign(credentials, &self.call)? };
                let params = Params(serde_json::value::to_raw_value(&params)?);
                *signed = Some(Signed { key: credentials.key_id().to_owned(), params: params.clone() });
                Ok(params)
            }
        }
    }
}

impl Written {
    /// A clock that was set back makes it stale, too.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.at <= now && now < later(self.at, FRESH_FOR)
    }
}

impl ToRpcParams for Params {
    fn to_rpc_params(self) -> serde_json::Result<Option<Box<RawValue>>> {
        Ok(Some(self.0))
    }
}

/// `at` moved by `by`, or the end of time.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use common::identity::Role;
    use service::fresh_id;

    use super::*;
    use crate::fake_minion::Lab;

    fn hosts(count: usize) -> Vec<Host> {
        let host =
            |n| Host { name: format!("n{n}").parse().unwrap(), address: format!("10.0.0.1:{n}"), groups: vec![], vars: Default::default() };
        (0..count).map(host).collect()
    }

    fn message(limit: Option<Duration>) -> Message {
        Message {
            call_id: CallId::new(fresh_id(), 1),
            caller: "admin".parse().unwrap(),
            method: "test.ping".into(),
            args: Arguments::default(),
            limit,
        }
    }

    fn envelope(letter: &Letter) -> Envelope {
        serde_json::from_str(&letter.text().unwrap().call).unwrap()
    }

    #[test]
    fn every_host_gets_a_letter_and_is_in_its_audience() {
        let letters = message(None).letters(&hosts(130));
        assert_eq!(letters.len(), 130);
        for letter in &letters {
            let envelope = envelope(letter);
            assert!(envelope.audience.contains(&letter.host) && envelope.audience.len() <= AUDIENCE_MAX);
        }
        assert_eq!(envelope(&letters[0]).call_id, envelope(&letters[129]).call_id);
        assert!(Arc::ptr_eq(&letters[0].text().unwrap(), &letters[63].text().unwrap()));
    }

    #[test]
    fn it_may_be_started_for_five_minutes_however_long_it_may_run() {
        let seconds = 300;
        for limit in [None, Some(Duration::from_secs(60)), Some(Duration::from_secs(900))] {
            let envelope = envelope(&message(limit).letters(&hosts(1))[0]);
            let within = envelope.start_before.duration_since(Timestamp::now()).as_secs();
            assert!((seconds - 10..=seconds).contains(&within), "{within}");
            assert_eq!(envelope.limit(), limit);
        }
    }

    #[test]
    fn who_is_sent_it_late_has_as_long_to_start_it() {
        let letters = message(None).letters(&hosts(2));
        let (first, second) = (&letters[0], &letters[1]);
        let begun = Timestamp::now();
        let at = |letter: &Letter, seconds: u64| {
            let text = letter.text_at(later(begun, Duration::from_secs(seconds))).unwrap();
            serde_json::from_str::<Envelope>(&text.call).unwrap()
        };
        let early = at(first, 0);
        assert_eq!(at(second, 29), early);
        let late = at(second, 290);
        assert_eq!(late.start_before, later(begun, Duration::from_secs(290) + START_WITHIN));
        assert_eq!(Envelope { start_before: early.start_before, ..late }, early);
    }

    /// The overlord of a home, and what its letter is signed with there now.
    fn signed(lab: &Lab, letter: &Letter) -> (Credentials, CallParams) {
        let certs = lab.dir.path().join("certs");
        let credentials = Credentials::load(&certs.join("ca.pem"), &certs.join("overlord.pem"), &certs.join("overlord.key")).unwrap();
        let params = letter.text().unwrap().params(&credentials).unwrap();
        (credentials, serde_json::from_str(params.0.get()).unwrap())
    }

    #[test]
    fn one_signature_serves_until_the_key_is_another() {
        let lab = Lab::new();
        let letters = message(None).letters(&hosts(2));
        let (admin, first) = signed(&lab, &letters[0]);
        signature::verify(admin.cert().unwrap(), &first.call, &first.signature).unwrap();
        assert_eq!(signed(&lab, &letters[1]).1, first, "it is made once");
        lab.renew_overlord();
        let (renewed, again) = signed(&lab, &letters[1]);
        assert_eq!(again, first, "a renewal keeps the key");
        assert_ne!(renewed.serial(), admin.serial());
        signature::verify(renewed.cert().unwrap(), &again.call, &again.signature).unwrap();
        lab.certify_overlord(Role::Overlord("admin".parse().unwrap()), lab.authority(), Duration::from_secs(3600));
        let (other, anew) = signed(&lab, &letters[0]);
        assert_eq!(anew.call, first.call, "the text stays: it may have been sent");
        signature::verify(other.cert().unwrap(), &anew.call, &anew.signature).unwrap();
        assert!(signature::verify(admin.cert().unwrap(), &anew.call, &anew.signature).is_err());
    }

    #[test]
    fn no_time_is_too_late() {
        assert_eq!(later(Timestamp::now(), Duration::MAX), Timestamp::MAX);
    }
}
