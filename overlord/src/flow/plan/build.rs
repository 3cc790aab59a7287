//! Making the graph of a flow's files: first every step is put in its place, then every reference is followed to what provides it.

mod connect;
mod sub_flow;
mod task;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Map, Value};

use super::{At, Block, DEPTH_MAX, Node, Plan, Retry, Source, TASKS_MAX, Task};
use crate::config::ConfigError;
use crate::flow::condition::Condition;
use crate::flow::file::{BlockKind, FlowFile, Kind, Part, Provides, RetryFile, Step, Texts};
use crate::flow::value::{Reference, Template, is_name};
use task::{coerced, found_once, task_key, task_of};
pub(in crate::flow) use task::{kind_name, kind_of};

/// A host that has not answered for so long has lost a task, unless the task says otherwise.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// Names that mean something of their own where they are used.
const OWN_NAMES: [&str; 4] = ["item", "host", "result", "flow"];

pub(super) fn build(texts: &Texts, given: &Map<String, Value>) -> Result<Plan, Vec<ConfigError>> {
    let name = texts.main.file_stem().map_or_else(|| "flow".to_owned(), |name| name.to_string_lossy().into_owned());
    let plan = Plan {
        name,
        tasks: Vec::new(),
        blocks: Vec::new(),
        graph: DiGraph::new(),
        order: Vec::new(),
        finally: Vec::new(),
        names: HashMap::new(),
    };
    let mut builder = Builder {
        texts,
        plan,
        problems: Vec::new(),
        steps: HashMap::new(),
        wishes: Vec::new(),
        kinds: Vec::new(),
        ends: Vec::new(),
        scopes: 0,
    };
    builder.main(given);
    builder.connect();
    builder.sort();
    if builder.problems.is_empty() { Ok(builder.plan) } else { Err(builder.problems) }
}

struct Builder<'t> {
    texts: &'t Texts,
    plan: Plan,
    problems: Vec<ConfigError>,
    /// Where each step of a scope begins and ends.
    steps: HashMap<(usize, String), (NodeIndex, NodeIndex)>,
    /// What is to be connected once all steps are known.
    wishes: Vec<Wish>,
    /// How the children of each block stand to each other, and which block each is in.
    kinds: Vec<(BlockKind, Option<usize>)>,
    /// The end of each block.
    ends: Vec<NodeIndex>,
    scopes: usize,
}

/// A node that needs something.
struct Wish {
    node: NodeIndex,
    scope: usize,
    needs: Need,
    /// The blocks that it is in.
    blocks: Vec<usize>,
    /// Names that mean something here alone.
    own: &'static [&'static str],
    at: At,
}

enum Need {
    Value(String),
    Step(String),
}

/// What stands around a step.
#[derive(Clone)]
struct Around<'t> {
    path: &'t Path,
    text: &'t str,
    /// Where each line of it begins.
    lines: Rc<[usize]>,
    scope: usize,
    /// The names of the sub-flows that it is in, each with a `/` behind it.
    prefix: String,
    blocks: Vec<usize>,
    when: Vec<(usize, Condition)>,
    is_finally: bool,
    depth: usize,
    /// The files of the flows around it, the outermost first.
    files: Vec<&'t Path>,
}

impl Around<'_> {
    fn at(&self, offset: usize) -> At {
        At { path: self.path.to_owned(), line: self.lines.partition_point(|begin| *begin <= offset) }
    }
}

impl<'t> Builder<'t> {
    fn problem(&mut self, at: &At, problem: impl Into<String>) {
        self.problems.push(ConfigError::Content { path: at.path.clone(), line: at.line, problem: problem.into() });
    }

    fn read(&mut self, path: &Path) -> Option<(&'t Path, &'t str, FlowFile)> {
        let found = self.texts.files.get_key_value(path);
        let Some((path, text)) = found else {
            self.problem(&At { path: path.to_owned(), line: 1 }, "the file is not among those of the flow");
            return None;
        };
        match FlowFile::parse(path, text) {
            Ok(file) => Some((path, text, file)),
            Err(error) => {
                self.problems.push(error);
                None
            }
        }
    }

    fn main(&mut self, given: &Map<String, Value>) {
        let Some((path, text, file)) = self.read(&self.texts.main.clone()) else { return };
        if let Some(name) = &file.name {
            self.plan.name.clone_from(name);
        }
        let around = Around {
            path,
            text,
            lines: lines_of(text),
            scope: 0,
            prefix: String::new(),
            blocks: Vec::new(),
            when: Vec::new(),
            is_finally: false,
            depth: 0,
            files: Vec::new(),
        };
        self.scopes = 1;
        let mut known: HashSet<&str> = HashSet::new();
        for (name, default) in &file.vars {
            known.insert(name);
            let value = given.get(name).map_or(Ok(default.clone()), |value| coerced(name, value, kind_of(default)));
            self.define(&around, name, value);
        }
        for (name, kind) in &file.inputs {
            known.insert(name);
            let value = given.get(name).ok_or_else(|| format!("the input {name} is missing: give it with --var {name}=VALUE"));
            self.define(&around, name, value.and_then(|value| coerced(name, value, *kind)));
        }
        for name in given.keys().filter(|name| !known.contains(name.as_str())) {
            self.problem(&around.at(0), format!("--var {name}: the flow has no var or input of that name"));
        }
        self.body(file, &around, "");
    }

    fn define(&mut self, around: &Around<'_>, name: &str, value: Result<Value, String>) {
        let at = around.at(around.text.find(name).unwrap_or(0));
        match value {
            Ok(value) => self.provide(around.scope, name, Source::Value(value), &at),
            Err(problem) => {
                // Whatever refers to it is not to blame.
                self.provide(around.scope, name, Source::Value(Value::Null), &at);
                self.problem(&at, problem);
            }
        }
    }

    fn provide(&mut self, scope: usize, name: &str, source: Source, at: &At) {
        if !is_name(name) || OWN_NAMES.contains(&name) {
            self.problem(
                at,
                format!(
                    "\"{name}\" cannot be a value's name: a letter, and letters, digits, `_` and `-` behind it; and none of {}",
                    OWN_NAMES.join(", ")
                ),
            );
        } else if self.plan.names.insert((scope, name.to_owned()), source).is_some() {
            self.problem(at, format!("two provide {name}: each name has one provider"));
        }
    }

    /// The steps of a file, as one block.
    fn body(&mut self, file: FlowFile, around: &Around<'t>, name: &str) -> (NodeIndex, NodeIndex) {
        let (ends, inner) = self.open(around, name, file.block, file.retry.as_ref(), &around.at(0));
        self.children(file.step, &inner, file.block, ends);
        let mut last = Around { is_finally: true, ..around.clone() };
        last.blocks = Vec::new();
        if around.scope != 0 && !file.finally.is_empty() {
            self.problem(&around.at(0), "a sub-flow cannot have steps that run in the end: write them into the flow that runs it");
        }
        for step in file.finally {
            let at = around.at(step.name.span().start);
            if step.call.is_none() {
                self.problem(&at, "what runs in the end is tasks: it needs a call");
            }
            self.step(step, &last);
        }
        ends
    }

    /// A new block in `around`, and what stands around its steps.
    fn open(
        &mut self,
        around: &Around<'t>,
        name: &str,
        kind: BlockKind,
        retry: Option<&RetryFile>,
        at: &At,
    ) -> ((NodeIndex, NodeIndex), Around<'t>) {
        let index = self.plan.blocks.len();
        let path = if name.is_empty() { self.plan.name.clone() } else { format!("{}{name}", around.prefix) };
        self.plan.blocks.push(Block { path, retry: None, scope: around.scope, outer: around.blocks.clone() });
        self.kinds.push((kind, around.blocks.last().copied()));
        let ends = (self.plan.graph.add_node(Node::Start(index)), self.plan.graph.add_node(Node::End(index)));
        self.ends.push(ends.1);
        let mut inner = around.clone();
        inner.blocks.push(index);
        inner.depth += 1;
        let retry = self.retry(retry, Source::Round(index), (around, ends.0), at);
        if let Some(block) = self.plan.blocks.get_mut(index) {
            block.retry = retry;
        }
        (ends, inner)
    }

    fn retry(&mut self, file: Option<&RetryFile>, source: Source, (around, node): (&Around<'t>, NodeIndex), at: &At) -> Option<Retry> {
        match file.map(Retry::of)? {
            Ok(retry) => {
                if let Some(values) = &retry.values {
                    self.wish_all(values.references(), node, around, &["flow"], at);
                    self.provide(around.scope, &retry.name, source, at);
                }
                Some(retry)
            }
            Err(problem) => {
                self.problem(at, problem);
                None
            }
        }
    }

    fn children(&mut self, steps: Vec<Step>, around: &Around<'t>, kind: BlockKind, (start, end): (NodeIndex, NodeIndex)) {
        if around.depth > DEPTH_MAX {
            return self.problem(&around.at(0), format!("blocks and sub-flows may stand {DEPTH_MAX} deep in each other at most"));
        }
        let (mut before, mut is_open) = (start, true);
        for step in steps {
            let Some((first, last)) = self.step(step, around) else { continue };
            self.plan.graph.add_edge(before, first, ());
            match kind {
                BlockKind::Linear => before = last,
                BlockKind::Unordered | BlockKind::Graph => {
                    self.plan.graph.add_edge(last, end, ());
                    is_open = false;
                }
            }
        }
        if is_open {
            self.plan.graph.add_edge(before, end, ());
        }
    }

    fn step(&mut self, step: Step, around: &Around<'t>) -> Option<(NodeIndex, NodeIndex)> {
        let (name, at) = (step.name.get_ref().clone(), around.at(step.name.span().start));
        if !is_name(&name) {
            self.problem(&at, format!("\"{name}\" cannot be a step's name: a letter, and letters, digits, `_` and `-` behind it"));
            return None;
        }
        let (is_task, is_block, is_sub) = (step.call.is_some(), !step.step.is_empty(), step.flow.is_some());
        if [is_task, is_block, is_sub].into_iter().filter(|is| *is).count() != 1 {
            self.problem(
                &at,
                format!("the step {name} is a task with a call, or a block with steps of its own, or a sub-flow with a flow: one of them"),
            );
            return None;
        }
        if !is_task && let Some(key) = task_key(&step) {
            self.problem(&at, format!("the step {name} is no task, and cannot have {key}"));
        }
        let mut inner = around.clone();
        let when = step.when.as_deref().map(Condition::parse).transpose().map_err(|problem| self.problem(&at, format!("when: {problem}")));
        inner.when.extend(when.ok().flatten().map(|when| (around.scope, when)));
        let (requires, after) = (step.requires.clone(), step.after.clone());
        let ends = if is_task {
            self.task(step, &inner, &at)?
        } else if is_block {
            let kind = step.block.unwrap_or_default();
            let (ends, inside) = self.open(&inner, &name, kind, step.retry.as_ref(), &at);
            self.children(step.step, &inside, kind, ends);
            ends
        } else {
            self.sub_flow(step, &inner, &at)?
        };
        for (_, condition) in inner.when.iter().skip(around.when.len()) {
            self.wish_all(condition.references(), ends.0, around, &["flow"], &at);
        }
        for need in requires.into_iter().map(Need::Value).chain(after.into_iter().map(Need::Step)) {
            self.wishes.push(Wish {
                node: ends.0,
                scope: around.scope,
                needs: need,
                blocks: around.blocks.clone(),
                own: &[],
                at: at.clone(),
            });
        }
        if self.steps.insert((around.scope, name.clone()), ends).is_some() {
            self.problem(&at, format!("two steps are named {name}"));
        }
        Some(ends)
    }

    fn wish_all(&mut self, references: Vec<&Reference>, node: NodeIndex, around: &Around<'_>, own: &'static [&'static str], at: &At) {
        for reference in references {
            let needs = Need::Value(reference.name.clone());
            self.wishes.push(Wish { node, scope: around.scope, needs, blocks: around.blocks.clone(), own, at: at.clone() });
        }
    }

    /// Names, and where in the result they are.
    fn parts(&mut self, provides: Option<&Provides>, is_sub_flow: bool, at: &At) -> BTreeMap<String, (Vec<String>, Option<Kind>)> {
        let path = |text: &str| -> Vec<String> { text.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect() };
        match provides {
            None => BTreeMap::new(),
            Some(Provides::Whole(_)) if is_sub_flow => {
                self.problem(at, "a sub-flow provides names: provides = { here = \"there\" }");
                BTreeMap::new()
            }
            Some(Provides::Whole(name)) => BTreeMap::from([(name.clone(), (Vec::new(), None))]),
            Some(Provides::Parts(parts)) => {
                let part = |part: &Part| match part {
                    Part::Path(text) => (path(text), None),
                    Part::Typed { path: text, kind } => (text.as_deref().map(path).unwrap_or_default(), Some(*kind)),
                };
                parts.iter().map(|(name, given)| (name.clone(), part(given))).collect()
            }
        }
    }

    fn task(&mut self, step: Step, around: &Around<'t>, at: &At) -> Option<(NodeIndex, NodeIndex)> {
        let index = self.plan.tasks.len();
        if index >= TASKS_MAX {
            if index == TASKS_MAX {
                self.problem(at, format!("a flow has at most {TASKS_MAX} tasks"));
            }
            return None;
        }
        let node = self.plan.graph.add_node(Node::Task(index));
        let provides = self.parts(step.provides.as_ref(), false, at);
        for (name, (path, kind)) in &provides {
            self.provide(around.scope, name, Source::Provided { task: index, path: path.clone(), kind: *kind }, at);
        }
        let retry = self.retry(step.retry.as_ref(), Source::Attempt(index), (around, node), at);
        let values = retry.as_ref().filter(|retry| retry.values.is_some()).map(|retry| retry.name.clone());
        let task = match task_of(step, around, at) {
            Ok(task) => task,
            Err(problem) => {
                self.problem(at, problem);
                return None;
            }
        };
        let task = Task { retry, provides: provides.into_iter().map(|(name, (path, kind))| (name, path, kind)).collect(), ..task };
        if let Some(key) = values.as_deref().and_then(|name| found_once(&task, name)) {
            let problem = format!(
                "the task {}: its {key} is found once, and its retry has another value each time: put the retry around it, on a block",
                task.path
            );
            self.problem(at, problem);
        }
        let item = task.for_each.is_some();
        let own: &'static [&'static str] = if item { &["flow", "host", "item"] } else { &["flow", "host"] };
        let of_undo: &'static [&'static str] = if item { &["flow", "host", "item", "result"] } else { &["flow", "host", "result"] };
        self.wish_all(task.target.references(), node, around, &["flow"], at);
        self.wish_all(task.args.references(), node, around, own, at);
        self.wish_all(task.for_each.iter().flat_map(Template::references).collect(), node, around, &["flow"], at);
        self.wish_all(task.undo.iter().flat_map(|undo| undo.args.references()).collect(), node, around, of_undo, at);
        if task.is_finally {
            self.plan.finally.push(index);
        }
        self.plan.tasks.push(task);
        Some((node, node))
    }
}

/// Where the lines of a text begin.
fn lines_of(text: &str) -> Rc<[usize]> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}
