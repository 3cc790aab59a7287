//! What a worker's daemon hears: the lines of its instances and of its callers, in whatever order, with whatever in them.

use std::collections::BTreeSet;

use minion::worker::fuzzing::{Actor, Seen, Stage};
use serde_json::Value;

/// The worker: small enough that every bound is met.
const FILE: &str = "command = \"x\"\ninstances = 2\nqueue_max = 3\nqueue_max_bytes = 64\npayload_max_bytes = 48\nresult_max_bytes = 48\ncancel_grace = \"1h\"\n";
const CALLERS: usize = 2;
const STEPS_MAX: usize = 200;
const ALL: [Actor; 4] = [Actor::Instance(0), Actor::Instance(1), Actor::Caller(0), Actor::Caller(1)];

/// What happens in one step.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Says(Actor, &'a [u8]),
    HangsUp(usize),
}

/// What is remembered from step to step.
#[derive(Default)]
struct Past {
    accepted: BTreeSet<String>,
    given: BTreeSet<String>,
}

/// Each line of the bytes is said by who its first letter names: the instances `1` and `2`, the callers `a` and `b`; with `A` and `B` these hang up,
/// and others come in their place.
pub fn workers(data: &[u8]) {
    let mut stage = Stage::begin(FILE, CALLERS).expect("there are sockets");
    let mut past = Past::default();
    for line in data.split(|byte| *byte == b'\n').take(STEPS_MAX) {
        let Some((who, said)) = line.split_first() else { continue };
        let step = match who {
            b'1' | b'2' => Step::Says(Actor::Instance(usize::from(who - b'1')), said),
            b'a' | b'b' => Step::Says(Actor::Caller(usize::from(who - b'a')), said),
            b'A' | b'B' => Step::HangsUp(usize::from(who - b'A')),
            _ => continue,
        };
        let before = stage.tasks();
        match step {
            Step::Says(actor, said) => stage.say(actor, said),
            Step::HangsUp(caller) => stage.hang_up(caller).expect("there are sockets"),
        }
        let after = stage.tasks();
        past.follow(step, &before, &after);
        for actor in ALL {
            for line in stage.heard(actor) {
                is_sound(&line);
                past.hear(actor, &serde_json::from_str(&line).expect("it is JSON"), step, (&before, &after));
            }
        }
    }
}

impl Past {
    /// What has become of the tasks follows from the step, and a task is given once.
    fn follow(&mut self, step: Step<'_>, before: &[Seen], after: &[Seen]) {
        for was in before {
            match after.iter().find(|now| now.id == was.id) {
                Some(now) => {
                    assert!(was.holder.is_none() || now.holder == was.holder, "{was:?} changed hands: {now:?}");
                    assert_eq!(was.by, now.by);
                    assert!(was.is_to_stop == now.is_to_stop || may_stop(step, was), "{step:?} stops {was:?}");
                    assert!(!was.is_to_stop || now.is_to_stop, "{step:?} takes back that {was:?} is to stop");
                }
                None => assert!(may_end(step, was), "{step:?} ends {was:?}"),
            }
        }
        let new: Vec<&Seen> = after.iter().filter(|now| before.iter().all(|was| was.id != now.id)).collect();
        assert!(new.len() <= 1, "{step:?} makes {new:?}");
        for task in new {
            let Step::Says(Actor::Caller(caller), said) = step else { panic!("{step:?} makes {task:?}") };
            assert!(task.caller == Some(caller) && method_of(said) == "task.run", "{step:?} makes {task:?}");
            assert!(self.accepted.insert(task.id.clone()), "{task:?} was here before");
        }
        assert!(after.iter().filter(|task| task.holder.is_none()).count() <= 3 + 2, "queue_max, and one for each instance that fetches");
    }

    /// Who hears of a task is who has it, and an answer comes from nobody else.
    fn hear(&mut self, actor: Actor, heard: &Value, step: Step<'_>, (before, after): (&[Seen], &[Seen])) {
        let Some(id) = heard["result"]["task_id"].as_str() else { return };
        match actor {
            Actor::Instance(at) => {
                assert!(self.given.insert(id.to_owned()), "{id} is given a second time: {heard}");
                assert!(after.iter().any(|task| task.id == id && task.holder == Some(at)), "{heard} to {at}, who has it not: {after:?}");
            }
            Actor::Caller(at) if heard["result"].get("result").is_some() => {
                let task = before.iter().find(|task| task.id == id).unwrap_or_else(|| panic!("{heard} is of no task: {before:?}"));
                let Step::Says(Actor::Instance(by), said) = step else { panic!("{step:?} answers {task:?}") };
                assert!(task.holder == Some(by) && task.caller == Some(at), "{step:?} answers {task:?} to {at}");
                assert!(params_of(said)["task_id"] == id && after.iter().all(|task| task.id != id), "{step:?} answers {task:?}");
            }
            Actor::Caller(_) => {}
        }
    }
}

/// A line of the daemon's is a request, a result or an error, and nothing else.
fn is_sound(line: &str) {
    let said: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let kinds = ["method", "result", "error"].iter().filter(|kind| said.get(**kind).is_some()).count();
    assert!(said["jsonrpc"] == "2.0" && kinds == 1, "{line}");
}

fn may_end(step: Step<'_>, task: &Seen) -> bool {
    match step {
        Step::Says(Actor::Instance(by), said) => {
            // It has returned it, or given it up, or has said too much.
            let is_named = params_of(said)["task_id"] == task.id.as_str();
            task.holder == Some(by) && (method_of(said) != "task.return" || is_named || said.len() > 48)
        }
        Step::Says(Actor::Caller(_), said) => task.holder.is_none() && may_cancel(said, task),
        Step::HangsUp(caller) => task.holder.is_none() && task.caller == Some(caller),
    }
}

fn may_stop(step: Step<'_>, task: &Seen) -> bool {
    match step {
        Step::Says(Actor::Caller(_), said) => task.holder.is_some() && may_cancel(said, task),
        Step::HangsUp(caller) => task.holder.is_some() && task.caller == Some(caller),
        Step::Says(Actor::Instance(_), _) => false,
    }
}

/// It is meant, and it is the asker's, or he may stop all.
fn may_cancel(said: &[u8], task: &Seen) -> bool {
    let params = params_of(said);
    let is_theirs = params["scope"] == "all" || params["by"] == task.by.as_str();
    method_of(said) == "task.cancel" && params["task_id"] == task.id.as_str() && is_theirs
}

fn method_of(said: &[u8]) -> String {
    read(said)["method"].as_str().unwrap_or_default().to_owned()
}

fn params_of(said: &[u8]) -> Value {
    read(said)["params"].clone()
}

fn read(said: &[u8]) -> Value {
    serde_json::from_slice(said).unwrap_or_default()
}
