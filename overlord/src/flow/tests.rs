//! Flows that nobody has thought of, on hosts that answer anything in any order, run by somebody who is killed at any moment: property tests of what is
//! decided, without a host.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use common::job::{CallId, HostState};
use common::outcome::{ErrorCode, Failure, Outcome};
use jiff::SignedDuration;
use proptest::prelude::*;

use super::advance::{Advance, Surroundings};
use super::plan::Task;
use super::state::TaskState;
use super::*;

struct Hosts;

impl Surroundings for Hosts {
    fn hosts(&self, target: &str) -> Result<Vec<common::identity::MinionName>, String> {
        let count = if target == "*" { 3 } else { 1 };
        Ok((1..=count).map(|host| format!("web{host}").parse().unwrap()).collect())
    }

    fn pick(&self, _: usize, hosts: &[common::identity::MinionName], record: &Record) -> Option<common::identity::MinionName> {
        hosts.iter().min_by_key(|host| record.busy.get(*host).copied().unwrap_or(0)).cloned()
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn forks(&self, _: &Task) -> usize {
        4
    }
}

/// What a task or a block of a made-up flow is like.
#[derive(Debug, Clone)]
enum Made {
    Task { each: bool, undo: bool, also_failed: bool, retry: bool, max_fail: u32, items: Option<usize>, again: bool },
    Block { kind: &'static str, retry: u32, steps: Vec<Made> },
}

fn made() -> impl Strategy<Value = Made> {
    let task = (any::<[bool; 5]>(), 0..2_u32, proptest::option::of(0..4_usize)).prop_map(
        |([each, undo, also_failed, retry, again], max_fail, items)| Made::Task { each, undo, also_failed, retry, max_fail, items, again },
    );
    task.prop_recursive(3, 12, 4, |inner| {
        let kind = prop_oneof![Just("linear"), Just("unordered"), Just("graph")];
        (kind, 0..3_u32, proptest::collection::vec(inner, 1..4)).prop_map(|(kind, retry, steps)| Made::Block { kind, retry, steps })
    })
}

/// The flow's file.
fn written(steps: &[Made]) -> String {
    fn put(text: &mut String, steps: &[Made], path: &str, count: &mut usize) {
        for step in steps {
            *count += 1;
            let _infallible = writeln!(text, "[[{path}]]\nname = \"s{count}\"");
            match step {
                Made::Task { each, undo, also_failed, retry, max_fail, items, again } => {
                    let hosts = if *each { "each" } else { "any" };
                    let _infallible = writeln!(text, "call = \"test.ping\"\ntarget = \"*\"\nhosts = \"{hosts}\"\nmax_fail = {max_fail}");
                    if *undo {
                        let _infallible = writeln!(text, "undo = {{ call = \"test.ping\", times = 2, also_failed = {also_failed} }}");
                    }
                    if *retry {
                        text.push_str("retry = { times = 2 }\n");
                    }
                    if *again {
                        text.push_str("lost = \"again\"\n");
                    }
                    if let Some(items) = items {
                        let _infallible = writeln!(text, "for_each = {:?}", (0..*items).collect::<Vec<_>>());
                    }
                }
                Made::Block { kind, retry, steps } => {
                    let _infallible = writeln!(text, "block = \"{kind}\"");
                    if *retry > 0 {
                        let _infallible = writeln!(text, "retry = {{ times = {retry} }}");
                    }
                    put(text, steps, &format!("{path}.step"), count);
                }
            }
        }
    }
    let mut text = String::new();
    put(&mut text, steps, "step", &mut 0);
    text.push_str("[[finally]]\nname = \"last\"\ncall = \"test.ping\"\ntarget = \"web1\"\n");
    text
}

fn outcome(choice: u8, at: Timestamp) -> Outcome {
    let error = |code| Failure::new(code, "no");
    match choice % 18 {
        0..=8 => Outcome::ran(Verdict::Ok { result: json!("pong") }, at, at),
        9 | 10 => Outcome::ran(Verdict::Failed { error: error(ErrorCode::Failed) }, at, at),
        11 => Outcome::not_run(Verdict::lost("gone"), at),
        12 => Outcome::not_run(Verdict::Undelivered { error: error(ErrorCode::Fenced) }, at),
        13 => Outcome::not_run(Verdict::undelivered("down"), at),
        14 => Outcome::not_run(Verdict::Undelivered { error: error(ErrorCode::LimitReached) }, at),
        15 => Outcome::not_run(Verdict::Denied { error: error(ErrorCode::Denied) }, at),
        16 => Outcome::not_run(Verdict::Failed { error: error(ErrorCode::Failed) }, at),
        _ => Outcome::ran(Verdict::TimedOut { error: error(ErrorCode::TimedOut) }, at, at),
    }
}

/// A flow being run by somebody who forgets all but the log.
struct Run {
    id: JobId,
    lines: Vec<Line>,
    record: Record,
    ids: CallIds,
    now: Timestamp,
    open: Vec<(CallId, bool)>,
}

impl Run {
    fn begin(text: &str) -> Self {
        let (id, now): (JobId, Timestamp) = ("54k2-9xqd-4fz1".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let header = Header {
            flow_id: id.clone(),
            caller: "admin".parse().unwrap(),
            name: "flow".into(),
            texts: Texts::of(text),
            vars: Map::new(),
            stamp: log::stamp(),
        };
        let created = Line::new(now, Event::Created(Box::new(header)));
        let lines = vec![created];
        let record = folded(&id, &lines).unwrap();
        Self { ids: CallIds { base: id.clone(), next: 1 }, id, lines, record, now, open: Vec::new() }
    }

    fn advance(&mut self) {
        let mut advance = Advance {
            record: &mut self.record,
            around: &Hosts,
            ids: &mut self.ids,
            now: self.now,
            since: self.now,
            lines: Vec::new(),
            look_at: None,
        };
        advance.run().unwrap();
        let lines = advance.lines;
        for line in &lines {
            if let Event::Sent { call_id, undo, .. } = &line.event {
                self.open.push((call_id.clone(), *undo));
            }
        }
        self.lines.extend(lines);
        assert!(self.record.in_flight <= 4, "no more at once than forks");
    }

    fn hear(&mut self, call_id: CallId, outcome: Outcome) {
        let line = Line::new(self.now, Event::Ended { call_id, outcome: Box::new(outcome) });
        self.record.apply(&line).unwrap();
        self.lines.push(line);
    }

    /// Everything is forgotten but the log.
    fn restart(&mut self) {
        let folded = folded(&self.id, &self.lines).unwrap();
        assert_eq!(shape(&folded), shape(&self.record), "what the log adds up to is what was known");
        self.record = folded;
    }
}

/// All that is known, but what comes from the file.
fn shape(record: &Record) -> String {
    format!("{:?} {:?} {:?} {:?} {:?} {:?}", record.state, record.cause, record.tasks, record.blocks, record.busy, record.history)
}

/// What is true of every flow that has ended.
fn check_end(run: &Run) {
    let record = &run.record;
    let main = || record.plan.tasks.iter().zip(&record.tasks).filter(|(task, _)| !task.is_finally);
    let mut ran = BTreeSet::new();
    for (task, at) in main() {
        assert!(!at.state.is_at_work(), "{} is {}", task.path, at.state);
        match record.state {
            FlowState::Success => assert!(at.state.is_passed(), "{} is {}", task.path, at.state),
            FlowState::Reverted => assert!(!at.state.is_passed() || at.state == TaskState::Ignore, "{} is {}", task.path, at.state),
            _ => {}
        }
    }
    // Nothing is undone where nothing was done, and in the end nothing is left that was done or may have been.
    let ended: BTreeMap<&CallId, HostState> = run
        .lines
        .iter()
        .filter_map(|line| match &line.event {
            Event::Ended { call_id, outcome } => Some((call_id, outcome.verdict.state())),
            _ => None,
        })
        .rev()
        .collect();
    let mut left = BTreeSet::new();
    for line in &run.lines {
        let Event::Sent { task, cell, undo, host, call_id } = &line.event else { continue };
        let (state, place) = (ended.get(call_id).copied(), (*task, *cell, host.clone()));
        if *undo {
            assert!(ran.contains(&place), "{host} undid what it had not done");
            if state == Some(HostState::Ok) {
                left.remove(&place);
            }
            continue;
        }
        if !matches!(state, Some(HostState::Undelivered | HostState::Denied)) {
            ran.insert(place.clone());
        }
        let plan = &record.plan.tasks[*task];
        if plan.undo.is_some() && !plan.is_finally && matches!(state, Some(HostState::Ok | HostState::Lost)) {
            left.insert(place);
        }
    }
    assert!(record.state != FlowState::Reverted || left.is_empty(), "this was done, and not undone: {left:?}");
    in_reverse(run);
}

/// When the whole flow is undone, the task that ended last comes first.
fn in_reverse(run: &Run) {
    let (mut ends, mut is_reverting, mut last) = (BTreeMap::new(), false, usize::MAX);
    for (at, line) in run.lines.iter().enumerate() {
        match &line.event {
            Event::Task { task, state: TaskState::Success | TaskState::Failure, .. } => drop(ends.insert(*task, at)),
            Event::Flow { state: FlowState::Reverting, .. } => is_reverting = true,
            Event::Task { task, state: TaskState::Reverting, .. } if is_reverting => {
                assert!(ends[task] < last, "the task {task} ended after one that is undone already");
                last = ends[task];
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_flow_comes_to_a_legal_end_whoever_dies(
        steps in proptest::collection::vec(made(), 1..5),
        choices in proptest::collection::vec(any::<[u8; 3]>(), 200),
        suspend_at in any::<u8>(),
        cancel_at in proptest::option::of(any::<u8>()),
    ) {
        let mut run = Run::begin(&written(&steps));
        let mut choices = choices.into_iter().cycle();
        for turn in 0..5_000_usize {
            run.advance();
            if run.record.state == FlowState::Suspended {
                prop_assert!(run.open.is_empty(), "nothing is on its way");
                let line = Line::new(run.now, Event::Flow { state: run.record.before, cause: None });
                run.record.apply(&line).unwrap();
                run.lines.push(line);
                continue;
            }
            if run.record.state.has_ended() {
                break;
            }
            let wish = match turn {
                turn if turn == usize::from(suspend_at) => Some(Wish::Suspend),
                turn if Some(turn) == cancel_at.map(usize::from) => Some(Wish::Cancel),
                _ => None,
            };
            if let Some(wish) = wish {
                let line = Line::new(run.now, Event::Wish { wish, by: "admin".into() });
                run.record.apply(&line).unwrap();
                run.lines.push(line);
            }
            let [which, what, fate] = choices.next().unwrap();
            run.now += SignedDuration::from_millis(i64::from(fate) * 10);
            if !run.open.is_empty() {
                let at = usize::from(which) % run.open.len();
                let (call_id, undo) = run.open.swap_remove(at);
                // Undoing works more often than not: else few flows would end otherwise.
                let what = if undo && what % 4 != 0 { 0 } else { what };
                let first = outcome(what, run.now);
                run.hear(call_id.clone(), first);
                if fate % 5 == 0 {
                    let before = shape(&run.record);
                    run.hear(call_id, outcome(fate, run.now));
                    run.hear(CallId::new("0000-0000-0001".parse().unwrap(), 1), outcome(0, run.now));
                    prop_assert_eq!(before, shape(&run.record), "an end that is told twice, or of nobody, changes nothing");
                }
            }
            if fate % 3 == 0 {
                run.restart();
            }
        }
        prop_assert!(run.record.state.has_ended(), "it is {}: {}", run.record.state, shape(&run.record));
        run.restart();
        check_end(&run);
    }
}
