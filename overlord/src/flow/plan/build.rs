//! Making the graph of a flow's files: first every step is put in its place, then every reference is followed to what provides it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Map, Value};

use super::{At, Block, DEPTH_MAX, Node, Plan, Retry, Source, TASKS_MAX, Task, Undo, share};
use crate::config::ConfigError;
use crate::flow::condition::Condition;
use crate::flow::file::{BlockKind, FlowFile, HostsKind, Kind, MaxFail, Part, Period, Provides, Step, Texts, beside};
use crate::flow::value::{Reference, Template, is_name};

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
    let mut builder =
        Builder { texts, plan, problems: Vec::new(), steps: HashMap::new(), wishes: Vec::new(), kinds: Vec::new(), scopes: 0 };
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
    scope: usize,
    /// The names of the sub-flows that it is in, each with a `/` behind it.
    prefix: String,
    blocks: Vec<usize>,
    when: Vec<(usize, Condition)>,
    is_finally: bool,
    depth: usize,
}

impl Around<'_> {
    fn at(&self, offset: usize) -> At {
        let line = self.text.get(..offset).unwrap_or_default().matches('\n').count() + 1;
        At { path: self.path.to_owned(), line }
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
        let around =
            Around { path, text, scope: 0, prefix: String::new(), blocks: Vec::new(), when: Vec::new(), is_finally: false, depth: 0 };
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
            Err(problem) => self.problem(&at, problem),
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
        retry: Option<&crate::flow::file::RetryFile>,
        at: &At,
    ) -> ((NodeIndex, NodeIndex), Around<'t>) {
        let index = self.plan.blocks.len();
        let path = if name.is_empty() { self.plan.name.clone() } else { format!("{}{name}", around.prefix) };
        self.plan.blocks.push(Block { path, retry: None, scope: around.scope, outer: around.blocks.clone() });
        self.kinds.push((kind, around.blocks.last().copied()));
        let ends = (self.plan.graph.add_node(Node::Start(index)), self.plan.graph.add_node(Node::End(index)));
        let mut inner = around.clone();
        inner.blocks.push(index);
        inner.depth += 1;
        let retry = self.retry(retry, Source::Round(index), (around, ends.0), at);
        if let Some(block) = self.plan.blocks.get_mut(index) {
            block.retry = retry;
        }
        (ends, inner)
    }

    fn retry(
        &mut self,
        file: Option<&crate::flow::file::RetryFile>,
        source: Source,
        (around, node): (&Around<'t>, NodeIndex),
        at: &At,
    ) -> Option<Retry> {
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

    fn sub_flow(&mut self, step: Step, around: &Around<'t>, at: &At) -> Option<(NodeIndex, NodeIndex)> {
        let (name, file) = (step.name.get_ref().clone(), step.flow?);
        if around.depth >= DEPTH_MAX {
            self.problem(at, format!("sub-flows may stand {DEPTH_MAX} deep in each other at most; does {} run itself?", file.get_ref()));
            return None;
        }
        let (path, text, sub) = self.read(&beside(around.path, file.get_ref()))?;
        if step.retry.is_some() && sub.retry.is_some() {
            self.problem(at, format!("retry stands here and in {} itself", path.display()));
        }
        let scope = self.scopes;
        self.scopes += 1;
        let prefix = format!("{}{name}/", around.prefix);
        let inner = Around { path, text, scope, prefix: around.prefix.clone(), depth: around.depth + 1, ..around.clone() };
        let (mut bound, mut wanted) = (step.vars.clone(), Vec::new());
        for (var, default) in &sub.vars {
            let value = bound.remove(var).unwrap_or_else(|| default.clone());
            wanted.push((var.clone(), value));
        }
        for input in sub.inputs.keys() {
            match bound.remove(input) {
                Some(value) => wanted.push((input.clone(), value)),
                None => self.problem(at, format!("the sub-flow {name} is not given its input {input}")),
            }
        }
        for unknown in bound.keys() {
            self.problem(at, format!("{} has no var or input {unknown}", path.display()));
        }
        let mut needed = Vec::new();
        for (var, value) in wanted {
            match Template::parse(&value) {
                Ok(template) => {
                    needed.extend(template.references().into_iter().cloned());
                    self.provide(scope, &var, Source::Bound { scope: around.scope, template }, at);
                }
                Err(problem) => self.problem(at, format!("vars.{var}: {problem}")),
            }
        }
        let retry = step.retry.clone().or_else(|| sub.retry.clone());
        let mut outer = inner.clone();
        outer.prefix.clone_from(&around.prefix);
        let ends = self.sub_body(FlowFile { retry, ..sub }, &outer, &name, &prefix);
        self.wish_all(needed.iter().collect(), ends.0, around, &["flow"], at);
        for (outside, part) in self.parts(step.provides.as_ref(), true, at) {
            let inside = part.0.join(".");
            self.provide(around.scope, &outside, Source::Alias { scope, name: inside.clone() }, at);
            // Whatever uses it outside waits for the sub-flow as a whole.
            self.steps.insert((usize::MAX, format!("{}/{outside}", around.scope)), ends);
        }
        Some(ends)
    }

    fn sub_body(&mut self, file: FlowFile, around: &Around<'t>, name: &str, prefix: &str) -> (NodeIndex, NodeIndex) {
        let (ends, mut inner) = self.open(around, name, file.block, file.retry.as_ref(), &around.at(0));
        inner.prefix = prefix.to_owned();
        if !file.finally.is_empty() {
            self.problem(&around.at(0), "a sub-flow cannot have steps that run in the end: write them into the flow that runs it");
        }
        self.children(file.step, &inner, file.block, ends);
        ends
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
        let task = match task_of(step, around, at) {
            Ok(task) => task,
            Err(problem) => {
                self.problem(at, problem);
                return None;
            }
        };
        let task = Task { retry, provides: provides.into_iter().map(|(name, (path, kind))| (name, path, kind)).collect(), ..task };
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

    /// Follows every wish to what fulfils it.
    fn connect(&mut self) {
        for wish in std::mem::take(&mut self.wishes) {
            let is_finally = matches!(self.plan.graph.node_weight(wish.node), Some(Node::Task(task)) if self.plan.task(*task).is_some_and(|task| task.is_finally));
            match &wish.needs {
                Need::Step(name) => match self.steps.get(&(wish.scope, name.clone())).copied() {
                    Some((_, end)) if !is_finally => self.edge(end, &wish, name),
                    Some(_) => {}
                    None => self.problem(&wish.at, format!("after: there is no step {name}")),
                },
                Need::Value(name) if wish.own.contains(&name.as_str()) => {}
                Need::Value(name) => match self.provider(wish.scope, name) {
                    Ok(Some(provider)) if !is_finally => {
                        // What a task's own undo refers to is there once the task is done.
                        if provider != wish.node || !is_own_result(&self.plan, &wish, name) {
                            self.edge(provider, &wish, name);
                        }
                    }
                    Ok(_) => {}
                    Err(problem) => self.problem(&wish.at, problem),
                },
            }
        }
    }

    /// The node behind which a value is there; none if it always is.
    fn provider(&self, scope: usize, name: &str) -> Result<Option<NodeIndex>, String> {
        if let Some((_, end)) = self.steps.get(&(usize::MAX, format!("{scope}/{name}"))) {
            let Some(Source::Alias { scope: within, name: inside }) = self.plan.source(scope, name) else { return Ok(Some(*end)) };
            return match self.plan.source(*within, inside) {
                Some(_) => Ok(Some(*end)),
                None => Err(format!("the sub-flow provides no {inside}, of which {name} is to be another name")),
            };
        }
        match self.plan.source(scope, name) {
            Some(Source::Provided { task, .. }) => {
                let is_it = |node: &NodeIndex| self.plan.graph.node_weight(*node) == Some(&Node::Task(*task));
                Ok(self.task_nodes(*task).filter(is_it))
            }
            Some(_) => Ok(None),
            None => Err(match OWN_NAMES.contains(&name) {
                true => format!("${{{name}}} means nothing here"),
                false => format!("nothing provides {name}: no step, var or input has that name"),
            }),
        }
    }

    fn task_nodes(&self, task: usize) -> Option<NodeIndex> {
        let path = &self.plan.task(task)?;
        let name = path.path.rsplit('/').next()?;
        self.steps.get(&(path.scope, name.to_owned())).map(|(node, _)| *node)
    }

    fn edge(&mut self, from: NodeIndex, wish: &Wish, name: &str) {
        let of_others = self.blocks_of(from);
        // The innermost block that holds both: whether its children may need each other is its kind's.
        let common = wish.blocks.iter().zip(&of_others).take_while(|(left, right)| left == right).count();
        if let Some((BlockKind::Unordered, _)) = common.checked_sub(1).and_then(|at| self.kinds.get(*wish.blocks.get(at)?)) {
            let problem =
                format!("{name} comes from a step of the same unordered block, whose steps do not wait for each other: make it a graph");
            return self.problem(&wish.at, problem);
        }
        self.plan.graph.add_edge(from, wish.node, ());
    }

    fn blocks_of(&self, node: NodeIndex) -> Vec<usize> {
        match self.plan.graph.node_weight(node) {
            Some(Node::Task(task)) => self.plan.task(*task).map(|task| task.blocks.clone()).unwrap_or_default(),
            Some(Node::Start(block) | Node::End(block)) => {
                let mut blocks: Vec<usize> =
                    std::iter::successors(self.kinds.get(*block).and_then(|(_, outer)| *outer), |block| self.kinds.get(*block)?.1)
                        .collect();
                blocks.reverse();
                blocks
            }
            None => Vec::new(),
        }
    }

    /// Puts the nodes into an order, or says which stand in a circle.
    fn sort(&mut self) {
        match toposort(&self.plan.graph, None) {
            Ok(order) => self.plan.order = order.into_iter().filter(|node| !self.is_finally(*node)).collect(),
            Err(_) => {
                for circle in tarjan_scc(&self.plan.graph) {
                    let is_loop = circle.len() > 1 || circle.first().is_some_and(|node| self.plan.graph.contains_edge(*node, *node));
                    if is_loop {
                        self.tell_circle(&circle);
                    }
                }
            }
        }
    }

    fn is_finally(&self, node: NodeIndex) -> bool {
        matches!(self.plan.graph.node_weight(node), Some(Node::Task(task)) if self.plan.task(*task).is_some_and(|task| task.is_finally))
    }

    fn tell_circle(&mut self, circle: &[NodeIndex]) {
        let mut tasks: Vec<&Task> = circle
            .iter()
            .filter_map(|node| match self.plan.graph.node_weight(*node) {
                Some(Node::Task(task)) => self.plan.task(*task),
                _ => None,
            })
            .collect();
        tasks.sort_by_key(|task| task.at.line);
        let names: Vec<&str> = tasks.iter().map(|task| task.path.as_str()).take(10).collect();
        let (text, at) = (names.join(", "), tasks.first().map(|task| task.at.clone()));
        let at = at.unwrap_or(At { path: PathBuf::new(), line: 1 });
        self.problem(&at, format!("a cycle: each of these waits for another of them: {text}"));
    }
}

/// Whether the undo of a task alone asks for what the task provides.
fn is_own_result(plan: &Plan, wish: &Wish, name: &str) -> bool {
    let Some(Node::Task(task)) = plan.graph.node_weight(wish.node) else { return false };
    let Some(task) = plan.task(*task) else { return false };
    let uses = |template: &Template| template.references().iter().any(|reference| reference.name == name);
    let by_itself = uses(&task.args) || uses(&task.target) || task.for_each.as_ref().is_some_and(uses);
    !by_itself && task.undo.as_ref().is_some_and(|undo| uses(&undo.args))
}

/// A key that only tasks have.
fn task_key(step: &Step) -> Option<&'static str> {
    let is_sub_flow = step.flow.is_some();
    let keys = [
        ("target", step.target.is_some()),
        ("args", step.args.is_some()),
        ("hosts", step.hosts.is_some()),
        ("for_each", step.for_each.is_some()),
        ("provides", step.provides.is_some() && !is_sub_flow),
        ("undo", step.undo.is_some()),
        ("timeout", step.timeout.is_some()),
        ("max_fail", step.max_fail.is_some()),
        ("forks", step.forks.is_some()),
        ("lost", step.lost.is_some()),
        ("lost_after", step.lost_after.is_some()),
        ("block", step.block.is_some() && is_sub_flow),
        ("vars", !step.vars.is_empty() && !is_sub_flow),
    ];
    keys.into_iter().find_map(|(key, is_there)| is_there.then_some(key))
}

fn task_of(step: Step, around: &Around<'_>, at: &At) -> Result<Task, String> {
    let name = step.name.into_inner();
    let call = step.call.map(toml::Spanned::into_inner).unwrap_or_default();
    let target = step.target.map(toml::Spanned::into_inner).ok_or_else(|| format!("the task {name} has no target"))?;
    if !step.vars.is_empty() || step.block.is_some() {
        return Err(format!("the step {name} is a task, and cannot have vars or block"));
    }
    if step.forks == Some(0) {
        return Err(format!("the task {name} has forks = 0: it would never run"));
    }
    if let Some(MaxFail::Share(text)) = &step.max_fail
        && share(text).is_none()
    {
        return Err(format!("max_fail is a number or a share like \"20%\", not \"{text}\""));
    }
    let period = |period: Option<Period>| period.map(|period| period.0);
    let hosts = step.hosts.unwrap_or_default();
    let undo = step.undo.map(|undo| {
        Ok::<_, String>(Undo {
            call: undo.call.parse().map_err(|error| format!("undo: {error}"))?,
            args: arguments(undo.args.as_ref())?,
            timeout: period(undo.timeout),
            times: undo.times.unwrap_or(1).max(1),
            also_failed: undo.also_failed,
        })
    });
    Ok(Task {
        path: format!("{}{name}", around.prefix),
        scope: around.scope,
        blocks: around.blocks.clone(),
        call: call.parse().map_err(|error| format!("{error}"))?,
        is_single: hosts == HostsKind::Any || is_one_host(&target),
        target: Template::parse_text(&target).map_err(|problem| format!("target: {problem}"))?,
        args: arguments(step.args.as_ref())?,
        hosts,
        for_each: step.for_each.as_ref().map(Template::parse).transpose()?,
        when: around.when.clone(),
        requires: step.requires,
        provides: Vec::new(),
        retry: None,
        undo: undo.transpose()?,
        timeout: period(step.timeout),
        max_fail: step.max_fail.unwrap_or(MaxFail::Count(0)),
        forks: step.forks,
        lost: step.lost.unwrap_or_default(),
        lost_after: period(step.lost_after).unwrap_or(LOST_AFTER),
        is_finally: around.is_finally,
        at: at.clone(),
    })
}

/// Whether a target is one host by its name: what it gives is one value then, however many hosts there are.
fn is_one_host(target: &str) -> bool {
    !target.contains(['*', '?', '[', ']', '{', '}', ',', ';', '@', '!', '/', '$'])
}

fn arguments(args: Option<&Value>) -> Result<Template, String> {
    match args {
        None => Ok(Template::List(Vec::new())),
        Some(value @ (Value::Array(_) | Value::Object(_))) => Template::parse(value).map_err(|problem| format!("args: {problem}")),
        Some(_) => Err("args is a list, like [23, 45], or a table, like { a = 23 }".to_owned()),
    }
}

/// The type of a value.
pub(in crate::flow) fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Any,
        Value::Bool(_) => Kind::Boolean,
        Value::Number(number) if number.is_f64() => Kind::Number,
        Value::Number(_) => Kind::Integer,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

/// A value of `--var` as what it is to be: a text where a text is wanted, and else what the text says as JSON.
fn coerced(name: &str, given: &Value, wanted: Kind) -> Result<Value, String> {
    let Value::String(text) = given else { return Ok(given.clone()) };
    if wanted == Kind::String {
        return Ok(given.clone());
    }
    let typed: Option<Value> = serde_json::from_str(text).ok();
    let fits = |value: &Value| match (wanted, kind_of(value)) {
        (Kind::Any, _) | (Kind::Number, Kind::Integer) => true,
        (wanted, is) => wanted == is,
    };
    match typed {
        Some(value) if fits(&value) => Ok(value),
        None if wanted == Kind::Any => Ok(given.clone()),
        _ => Err(format!("--var {name} wants {}, not {given}", kind_name(wanted))),
    }
}

pub(in crate::flow) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "string",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
        Kind::Array => "array",
        Kind::Object => "object",
        Kind::Any => "any",
    }
}
