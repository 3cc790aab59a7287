//! One host of a target for a task of a resident worker: one with an idle instance, or else the one where the fewest tasks wait. It only asks;
//! two that ask at once may find the same host, and then one of their tasks waits there.

use std::collections::BTreeMap;
use std::time::Duration;

use common::identity::MinionName;
use common::method::{Catalogue, MethodName};
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{CallError, CheckError, Target, check_call};
use common::shown::harmless_line;

/// The method whose tasks one host of several can do.
pub(crate) const RUN: &str = "worker.run";
const LIST: &str = "worker.list";
/// How long a host may take to say how its worker is.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How many hosts are named with the reason why they cannot have it.
const REASONS_MAX: usize = 3;
const REASON_MAX_LETTERS: usize = 300;

/// Why no host gets the task. It was sent to none.
#[derive(Debug, thiserror::Error)]
pub enum AnyError {
    /// The hosts cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// None has the worker.
    #[error("no host of the target can take a task of {worker}: {reasons}; `overlord TARGET worker.list` says more")]
    None {
        /// The worker.
        worker: String,
        /// Of some hosts.
        reasons: String,
        /// Some host has answered.
        was_reached: bool,
    },
}

/// How much room a host has: the more the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Room {
    idle: u64,
    /// It has an instance at all, and not only the hope of one.
    works: bool,
    /// The fewer wait, the better.
    unqueued: u64,
}

impl Target {
    /// The one host of this target that is to have the task of these arguments of `worker.run`.
    ///
    /// # Errors
    /// The arguments are wrong, or no host has the worker.
    pub fn any(&self, args: &Arguments) -> Result<Self, AnyError> {
        let worker = worker_of(args).map_err(CallError::from)?;
        let mut asking = self.clone();
        asking.timeout = self.timeout.min(ASK_TIMEOUT);
        let answers = asking.call(LIST, json!({ "worker": worker }))?;
        let chosen = choose(&answers, &worker, Timestamp::now().subsec_nanosecond().unsigned_abs());
        let Some(chosen) = chosen else {
            let was_reached =
                answers.values().any(|outcome| !matches!(outcome.verdict, Verdict::Undelivered { .. } | Verdict::Lost { .. }));
            return Err(AnyError::None { reasons: reasons(&answers, &worker), worker, was_reached });
        };
        let mut one = self.clone();
        one.hosts.retain(|host| host.name == chosen);
        Ok(one)
    }
}

/// The worker that arguments of `worker.run` name.
fn worker_of(args: &Arguments) -> Result<String, CheckError> {
    let method: MethodName = check_call(RUN, args)?;
    let bound = Catalogue::builtin().find(&method).map(|spec| spec.bind(args)).transpose()?;
    Ok(bound.and_then(|bound| Some(bound.get("worker")?.as_str()?.to_owned())).unwrap_or_default())
}

/// The host with most room; of several, one by `chance`.
fn choose(answers: &BTreeMap<MinionName, Outcome>, worker: &str, chance: u32) -> Option<MinionName> {
    let rooms: Vec<(&MinionName, Room)> = answers.iter().filter_map(|(host, outcome)| Some((host, room(outcome, worker)?))).collect();
    let most = rooms.iter().map(|(_, room)| *room).max()?;
    let best: Vec<&MinionName> = rooms.into_iter().filter(|(_, room)| *room == most).map(|(host, _)| host).collect();
    let at = usize::try_from(chance).unwrap_or_default().checked_rem(best.len())?;
    best.get(at).map(|host| (*host).clone())
}

fn room(outcome: &Outcome, worker: &str) -> Option<Room> {
    let Verdict::Ok { result } = &outcome.verdict else { return None };
    let report = result.get(worker)?;
    // One whose file is wrong works as it did before; one that is down or ending does not.
    let takes = report.get("state").and_then(Value::as_str).is_some_and(|state| matches!(state, "running" | "misconfigured"));
    let number = |key: &str| report.get(key).and_then(Value::as_u64);
    let (idle, queued, queue_max) = (number("idle")?, number("queued")?, number("queue_max")?);
    let works = |instance: &Value| instance.get("state").and_then(Value::as_str).is_some_and(|state| state != "restarting");
    let works = report.get("instances").and_then(Value::as_array).is_some_and(|instances| instances.iter().any(works));
    (takes && (idle > 0 || queued < queue_max)).then_some(Room { idle, works, unqueued: u64::MAX - queued })
}

fn reasons(answers: &BTreeMap<MinionName, Outcome>, worker: &str) -> String {
    let of_host = |(host, outcome): (&MinionName, &Outcome)| {
        let why = match (&outcome.verdict, outcome.verdict.error()) {
            (_, Some(error)) => error.message.clone(),
            (Verdict::Ok { result }, None) => {
                let problem = result.get(worker).and_then(|report| report.get("problem")?.as_str());
                problem.unwrap_or("it is ending, or its queue is full").to_owned()
            }
            (_, None) => "it says nothing of it".to_owned(),
        };
        format!("{host}: {}", harmless_line(&why, REASON_MAX_LETTERS))
    };
    let mut told: Vec<String> = answers.iter().take(REASONS_MAX).map(of_host).collect();
    if answers.len() > REASONS_MAX {
        told.push(format!("and {} more", answers.len() - REASONS_MAX));
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn answers(reports: &[(&str, Value)]) -> BTreeMap<MinionName, Outcome> {
        let outcome = |report: &Value| Outcome::not_run(Verdict::Ok { result: json!({ "w": report }) }, Timestamp::UNIX_EPOCH);
        reports.iter().map(|(host, report)| (host.parse().unwrap(), outcome(report))).collect()
    }

    fn report(idle: u64, queued: u64) -> Value {
        json!({ "state": "running", "idle": idle, "queued": queued, "queue_max": 10, "instances": [{ "state": "busy" }] })
    }

    #[test]
    fn who_is_idle_gets_it_and_else_who_has_fewest_waiting() {
        let chosen = |reports: &[(&str, Value)], chance| choose(&answers(reports), "w", chance).map(|host| host.to_string());
        let fleet = [("a", report(0, 0)), ("b", report(2, 0)), ("c", report(1, 0))];
        assert_eq!(chosen(&fleet, 7), Some("b".to_owned()));
        let busy = [("a", report(0, 3)), ("b", report(0, 1)), ("c", report(0, 10))];
        assert_eq!(chosen(&busy, 7), Some("b".to_owned()));
        let broken = json!({ "state": "running", "idle": 0, "queued": 0, "queue_max": 10, "instances": [{ "state": "restarting" }] });
        assert_eq!(chosen(&[("a", broken.clone()), ("b", report(0, 9))], 0), Some("b".to_owned()), "one that cannot start has no queue");
        assert_eq!(chosen(&[("a", broken)], 0), Some("a".to_owned()));
        let even = [("a", report(1, 0)), ("b", report(1, 0))];
        assert_eq!([0, 1].map(|chance| chosen(&even, chance).unwrap()), ["a", "b"]);
        assert_eq!(chosen(&[("a", report(0, 10)), ("b", json!({ "state": "down", "problem": "x" }))], 0), None);
    }
}
