//! One call as letters, one for each host: hosts share an envelope, written at the moment when its first letter is sent, and
//! anew for the letters that are sent much later.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::identity::{CallerName, MinionName};
use common::job::{CallId, JobId, MinionJobId};
use common::protocol::{AUDIENCE_MAX, Arguments, CallParams, Envelope};
use jiff::{SignedDuration, Timestamp};
use jsonrpsee::core::traits::ToRpcParams;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::value::RawValue;

use crate::hosts::Host;

/// How long an envelope may be accepted after it was written, however long the call may run then. Clocks differ:
/// five minutes is what Kerberos lets them differ by (RFC 4120, 5.5.1, "reasonable clock skew").
const START_WITHIN: Duration = Duration::from_secs(5 * 60);

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
    params: Params,
}

/// The `params` of a call, as JSON text.
#[derive(Debug, Clone)]
pub(crate) struct Params(Box<RawValue>);

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

    fn write(&self, audience: &[MinionName], at: Timestamp) -> serde_json::Result<Params> {
        let envelope = Envelope {
            call_id: self.call_id.clone(),
            caller: self.caller.clone(),
            audience: audience.to_owned(),
            method: self.method.clone(),
            args: self.args.clone(),
            start_before: later(at, START_WITHIN),
            limit_ms: self.limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        let params = CallParams { call: serde_json::to_string(&envelope)? };
        serde_json::value::to_raw_value(&params).map(Params)
    }
}

impl Letter {
    pub(crate) fn method(&self) -> &str {
        &self.sheet.message.method
    }

    /// The id under which the host holds what this asks of it, if that is a job.
    pub(crate) fn minion_job_id(&self) -> MinionJobId {
        MinionJobId::derive(&self.host, &self.sheet.message.caller, &self.sheet.message.call_id)
    }

    pub(crate) fn params(&self) -> serde_json::Result<Params> {
        self.params_at(Timestamp::now())
    }

    /// As if it had been written long ago.
    #[cfg(test)]
    pub(crate) fn age(&self) {
        *self.sheet.written.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The call id stays the same, so a host that gets both knows them for one call.
    fn params_at(&self, now: Timestamp) -> serde_json::Result<Params> {
        let mut written = self.sheet.written.lock().unwrap_or_else(PoisonError::into_inner);
        match written.as_ref() {
            Some(last) if last.is_fresh(now) => Ok(last.params.clone()),
            _ => {
                let params = self.sheet.message.write(&self.sheet.audience, now)?;
                *written = Some(Written { at: now, params: params.clone() });
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

/// A job id that nobody has drawn before, as far as twenty random bits in each hundredth of a second go.
pub(crate) fn fresh_id() -> JobId {
    let now = Timestamp::now();
    let mut bytes = [0; 4];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        // A kernel without randomness: then what tells two ids apart is the nanosecond and the process.
        bytes = (now.subsec_nanosecond().unsigned_abs() ^ std::process::id().rotate_left(16)).to_ne_bytes();
    }
    JobId::new(now, u32::from_ne_bytes(bytes))
}

/// `at` moved by `by`, or the end of time.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

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
        let params: CallParams = serde_json::from_str(letter.params().unwrap().0.get()).unwrap();
        serde_json::from_str(&params.call).unwrap()
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
        assert_eq!(letters[0].params().unwrap().0.get(), letters[63].params().unwrap().0.get());
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
            let params = letter.params_at(later(begun, Duration::from_secs(seconds))).unwrap();
            let params: CallParams = serde_json::from_str(params.0.get()).unwrap();
            serde_json::from_str::<Envelope>(&params.call).unwrap()
        };
        let early = at(first, 0);
        assert_eq!(at(second, 29), early);
        let late = at(second, 290);
        assert_eq!(late.start_before, later(begun, Duration::from_secs(290) + START_WITHIN));
        assert_eq!(Envelope { start_before: early.start_before, ..late }, early);
    }

    #[test]
    fn ids_differ() {
        assert_ne!(fresh_id(), fresh_id());
        assert_eq!(later(Timestamp::now(), Duration::MAX), Timestamp::MAX);
    }
}
