//! A flow as one graph: the files' blocks, tasks and sub-flows made into tasks, and what must have passed before each may begin. Pure.
//!
//! A block is two nodes, its start and its end, so that a thousand tasks before a thousand others are two thousand edges and no million.

pub(in crate::flow) mod build;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use common::method::MethodName;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::{Map, Value};

use super::condition::Condition;
use super::file::{HostsKind, Kind, LostPolicy, MaxFail, RetryFile, RunKind, Texts};
use super::value::{NoValue, Reference, Template, part};
use crate::config::ConfigError;

/// The most tasks of a flow. Its items and hosts come on top.
pub(crate) const TASKS_MAX: usize = 100_000;
/// How often something is tried at most: each time is kept.
const RETRY_TIMES_MAX: u32 = 1000;
/// How deep sub-flows and blocks may stand in each other.
const DEPTH_MAX: usize = 32;

/// A flow that can be run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) tasks: Vec<Task>,
    /// The first is the flow itself.
    pub(crate) blocks: Vec<Block>,
    pub(crate) graph: DiGraph<Node, ()>,
    /// The nodes in an order in which each stands behind those that it needs.
    pub(crate) order: Vec<NodeIndex>,
    /// What runs in the end, in this order.
    pub(crate) finally: Vec<usize>,
    /// What is wrong with references, kinds and arguments is found by these: see `check`.
    pub(crate) names: HashMap<(usize, String), Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Start(usize),
    End(usize),
    Task(usize),
}

/// A block, or the flow itself, or a sub-flow.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) path: String,
    pub(crate) retry: Option<Retry>,
    /// In which names of its retry are looked up.
    pub(crate) scope: usize,
    /// The blocks that it is in, the innermost last.
    pub(crate) outer: Vec<usize>,
}

/// One task.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its name, behind those of the sub-flows that it is in: `database/migrate`.
    pub(crate) path: String,
    pub(crate) scope: usize,
    /// The blocks that it is in, the innermost last.
    pub(crate) blocks: Vec<usize>,
    pub(crate) call: MethodName,
    pub(crate) target: Template,
    /// A list, a table, or nothing.
    pub(crate) args: Template,
    pub(crate) hosts: HostsKind,
    /// Its result is one value, and not one for each host.
    pub(crate) is_single: bool,
    pub(crate) for_each: Option<Template>,
    /// Its own, and those of the blocks around it, with their scopes.
    pub(crate) when: Vec<(usize, Condition)>,
    pub(crate) requires: Vec<String>,
    /// What it provides: names, and types that are checked.
    pub(crate) provides: Vec<(String, Vec<String>, Option<Kind>)>,
    pub(crate) retry: Option<Retry>,
    pub(crate) undo: Option<Undo>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) max_fail: MaxFail,
    pub(crate) forks: Option<u16>,
    pub(crate) run: RunKind,
    pub(crate) lost: LostPolicy,
    pub(crate) lost_after: Duration,
    pub(crate) is_finally: bool,
    pub(crate) at: At,
}

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) path: PathBuf,
    /// The line, from 1.
    pub(crate) line: usize,
}

#[derive(Debug)]
pub(crate) struct Undo {
    pub(crate) call: MethodName,
    pub(crate) args: Template,
    pub(crate) timeout: Option<Duration>,
    pub(crate) times: u32,
    pub(crate) also_failed: bool,
}

/// How often something is tried, and with what.
#[derive(Debug)]
pub(crate) struct Retry {
    pub(crate) times: Option<u32>,
    pub(crate) values: Option<Template>,
    pub(crate) name: String,
    pub(crate) pause: Duration,
    pub(crate) factor: f64,
    pub(crate) most: Duration,
}

/// Where a value comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A var, or an input.
    Value(Value),
    /// A var of a sub-flow, in the scope of who runs it.
    Bound { scope: usize, template: Template },
    /// A part of a task's result.
    Provided { task: usize, path: Vec<String>, kind: Option<Kind> },
    /// What a sub-flow provides under another name.
    Alias { scope: usize, name: String },
    /// The value of this time, of a block that is tried with several.
    Round(usize),
    /// The same of a task.
    Attempt(usize),
}

impl Retry {
    fn of(file: &RetryFile) -> Result<Self, String> {
        if file.times.is_some() == file.for_each.is_some() {
            return Err("retry wants either times or for_each".to_owned());
        }
        if file.times == Some(0) {
            return Err("retry.times is 0: it would never run".to_owned());
        }
        if file.times.is_some_and(|times| times > RETRY_TIMES_MAX) {
            return Err(format!("retry.times is {RETRY_TIMES_MAX} at most"));
        }
        let factor = file.factor.unwrap_or(2.0);
        if !(1.0..=100.0).contains(&factor) {
            return Err("retry.factor is between 1 and 100".to_owned());
        }
        let period = |period: Option<super::file::Period>, default| period.map_or(default, |period| period.0);
        Ok(Self {
            times: file.times,
            values: file.for_each.as_ref().map(Template::parse).transpose()?,
            name: file.name.clone().unwrap_or_else(|| "try".to_owned()),
            pause: period(file.pause, Duration::ZERO),
            factor,
            most: period(file.most, Duration::from_secs(60)),
        })
    }

    /// How long to pause behind the `round`th time, from 0.
    pub(crate) fn pause_behind(&self, round: u32) -> Duration {
        if self.pause.is_zero() {
            return Duration::ZERO;
        }
        let grown = self.pause.as_secs_f64() * self.factor.powi(i32::try_from(round.min(1000)).unwrap_or(i32::MAX));
        Duration::try_from_secs_f64(grown).unwrap_or(self.most).min(self.most)
    }
}

impl MaxFail {
    /// Of so many.
    pub(crate) fn of(&self, count: usize) -> usize {
        match self {
            Self::Count(most) => usize::try_from(*most).unwrap_or(usize::MAX),
            Self::Share(text) => share(text).map_or(0, |percent| count.saturating_mul(percent) / 100),
        }
    }
}

/// The percents of "20%".
pub(crate) fn share(text: &str) -> Option<usize> {
    text.strip_suffix('%')?.trim().parse().ok().filter(|percent| *percent <= 100)
}

impl Plan {
    /// What the flow of `texts` comes to, where `given` are the values of `--var`.
    ///
    /// # Errors
    /// Whatever makes that it cannot be run, each with its line.
    pub(crate) fn make(texts: &Texts, given: &Map<String, Value>) -> Result<Self, Vec<ConfigError>> {
        build::build(texts, given)
    }

    pub(crate) fn task(&self, index: usize) -> Option<&Task> {
        self.tasks.get(index)
    }

    /// The source of a name where it is used.
    pub(crate) fn source(&self, scope: usize, name: &str) -> Option<&Source> {
        self.names.get(&(scope, name.to_owned()))
    }

    /// What a template comes to, if that is known before anything runs: by vars and inputs alone.
    pub(crate) fn known(&self, scope: usize, template: &Template) -> Option<Value> {
        template.render(&|reference| self.known_name(scope, reference, DEPTH_MAX)).ok()
    }

    fn known_name(&self, scope: usize, reference: &Reference, more: usize) -> Result<Value, NoValue> {
        let missing = || NoValue::Missing(reference.shown());
        let more = more.checked_sub(1).ok_or_else(missing)?;
        let whole = match self.source(scope, &reference.name) {
            Some(Source::Value(value)) => value.clone(),
            Some(Source::Bound { scope, template }) => template.render(&|inner| self.known_name(*scope, inner, more))?,
            _ => return Err(missing()),
        };
        part(&whole, &reference.path).cloned().ok_or_else(missing)
    }

    /// The nodes that must have passed before this one may.
    pub(crate) fn needed_by(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> + '_ {
        self.graph.edges_directed(node, Direction::Incoming).map(|edge| edge.source())
    }

    fn label(&self, node: Node) -> String {
        let block = |block: usize| self.blocks.get(block).map_or("", |block| block.path.as_str());
        match node {
            Node::Task(task) => self.task(task).map(|task| task.path.clone()).unwrap_or_default(),
            Node::Start(index) => format!("{} begins", block(index)),
            Node::End(index) => format!("{} ends", block(index)),
        }
    }

    /// The tasks in a legal order, each with what it waits for directly.
    pub(crate) fn shown(&self) -> String {
        let mut text = format!("{}: {} tasks\n", self.name, self.tasks.len());
        for node in &self.order {
            let Some(Node::Task(index)) = self.graph.node_weight(*node) else { continue };
            let Some(task) = self.task(*index) else { continue };
            let mut needed: Vec<String> = self.tasks_before(*node).into_iter().map(|task| self.label(Node::Task(task))).collect();
            needed.sort();
            let after = if needed.is_empty() { String::new() } else { format!("  after {}", needed.join(", ")) };
            let undo = if task.undo.is_some() { "  (can be undone)" } else { "" };
            let _infallible = writeln!(text, "  {}  {}{after}{undo}", task.path, task.call);
        }
        for index in &self.finally {
            if let Some(task) = self.task(*index) {
                let _infallible = writeln!(text, "  {}  {}  in the end", task.path, task.call);
            }
        }
        text
    }

    /// The tasks that a node waits for directly, through the starts and ends of blocks.
    fn tasks_before(&self, node: NodeIndex) -> Vec<usize> {
        let (mut found, mut seen, mut open) = (Vec::new(), std::collections::HashSet::new(), vec![node]);
        while let Some(node) = open.pop() {
            for before in self.needed_by(node).filter(|before| seen.insert(*before)).collect::<Vec<_>>() {
                match self.graph.node_weight(before) {
                    Some(Node::Task(task)) => found.push(*task),
                    _ => open.push(before),
                }
            }
        }
        found
    }

    /// The graph for Graphviz.
    pub(crate) fn dot(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut text = format!("digraph {} {{\n  rankdir = LR;\n", quoted(&self.name));
        for node in &self.order {
            let Some(Node::Task(index)) = self.graph.node_weight(*node) else { continue };
            let Some(task) = self.task(*index) else { continue };
            let label = quoted(&format!("{}\n{}", task.path, task.call));
            let _infallible = writeln!(text, "  {} [shape = box, label = {label}];", quoted(&task.path));
            let mut before = self.tasks_before(*node);
            before.sort_unstable();
            for needed in before {
                let _infallible = writeln!(text, "  {} -> {};", quoted(&self.label(Node::Task(needed))), quoted(&task.path));
            }
        }
        for task in self.finally.iter().filter_map(|index| self.task(*index)) {
            let label = quoted(&format!("{}\n{}\nin the end", task.path, task.call));
            let _infallible = writeln!(text, "  {} [shape = box, style = dashed, label = {label}];", quoted(&task.path));
        }
        text.push_str("}\n");
        text
    }
}

#[cfg(test)]
mod tests;
