//! A synchronous call: every host is asked once, and every host has an outcome.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use common::identity::MinionName;
use common::job::CallId;
use common::outcome::{Outcome, Verdict};
use jiff::Timestamp;

use super::arguments::{CheckError, IntoArguments, check_call};
use super::{Link, LinkError, Stop, Target, gossip};
use crate::buckets::{BucketError, fan_out};
use crate::client::Sent;
use crate::envelope::{Letter, Message};

/// How much longer than the method's limit its answer is waited for: the host enforces the limit, and needs a moment to say so.
pub(crate) const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Why a call was not made. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The method or its arguments are wrong.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// We cannot talk to hosts.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Threads cannot be started.
    #[error(transparent)]
    Buckets(#[from] BucketError),
}

/// A host, and what became of the call there.
pub(crate) type Arrival = (MinionName, Outcome);

impl Target {
    /// Calls `method` on every host and waits for all of them. A host that fails, refuses or is dead is an outcome, not an error.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fleet = overlord::Fleet::open("/etc/overlord")?;
    /// for (host, outcome) in fleet.target("web*")?.call("test.add", ["23", "45"])? {
    ///     println!("{host}: {:?}", outcome.verdict);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The arguments do not fit the method, or there is no certificate to call with. Nothing was sent then.
    pub fn call(&self, method: &str, args: impl IntoArguments) -> Result<BTreeMap<MinionName, Outcome>, CallError> {
        let mut outcomes = BTreeMap::new();
        self.call_each(method, args, &Stop::new(), |host, outcome| {
            outcomes.insert(host, outcome);
        })?;
        Ok(outcomes)
    }

    /// As [`Target::call`], but gives each host's outcome to `each` as it arrives, on the caller's thread.
    ///
    /// # Errors
    /// As [`Target::call`].
    pub fn call_each(
        &self,
        method: &str,
        args: impl IntoArguments,
        stop: &Stop,
        mut each: impl FnMut(MinionName, Outcome),
    ) -> Result<(), CallError> {
        self.call_and_collect(method, args, stop, |arrivals| {
            for (host, outcome) in arrivals {
                each(host, outcome);
            }
        })
    }

    /// As [`Target::call`], where `collect` takes the outcomes from a channel, which closes behind the last.
    pub(crate) fn call_and_collect<C>(
        &self,
        method: &str,
        args: impl IntoArguments,
        stop: &Stop,
        collect: impl FnOnce(&Receiver<Arrival>) -> C,
    ) -> Result<C, CallError> {
        let args = args.into_arguments();
        let method = check_call(method, &args)?;
        let link = self.fleet.link()?;
        let message = Message {
            call_id: CallId::new(service::fresh_id(), 1),
            caller: link.caller.clone(),
            method: method.into(),
            args,
            limit: Some(self.timeout),
        };
        let within = self.timeout.saturating_add(ANSWER_GRACE);
        let letters = message.letters(&self.hosts);
        let collected = fan_out(letters, self.forks, |letter| call_one(link, letter, within, stop), collect)?;
        if !stop.is_stopped() {
            gossip::carry_on(&self.fleet, link, stop, None);
        }
        Ok(collected)
    }
}

async fn call_one(link: &Link, letter: Letter, within: Duration, stop: &Stop) -> Arrival {
    let sent = Sent::default();
    let answered = async {
        if stop.is_stopped() {
            return None;
        }
        tokio::select! {
            biased;
            answer = link.client.ask::<Outcome>(&letter, within, &sent) => Some(answer),
            () = stop.stopped() => None,
        }
    };
    let verdict = match answered.await {
        Some(Ok(outcome)) => return (letter.host, outcome),
        Some(Err(silence)) => silence.into_verdict(),
        None if sent.is_set() => Verdict::lost("interrupted while it was under way; the host stops what it had begun"),
        None => Verdict::undelivered("interrupted before it was sent"),
    };
    (letter.host, Outcome::not_run(verdict, Timestamp::now()))
}
