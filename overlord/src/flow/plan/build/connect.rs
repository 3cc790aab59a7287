//! Following every reference to what provides it, and putting what waits for each other into an order.

use std::path::PathBuf;

use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::NodeIndex;

use super::{Builder, Need, OWN_NAMES, Wish};
use crate::flow::file::BlockKind;
use crate::flow::plan::{At, Node, Plan, Source, Task};
use crate::flow::value::Template;

impl Builder<'_> {
    /// Follows every wish to what fulfils it.
    pub(super) fn connect(&mut self) {
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
        // What stands in a block that may begin anew is there for others once that block is done.
        let has_retry = |block: &&usize| self.plan.blocks.get(**block).is_some_and(|block| block.retry.is_some());
        let around = of_others.get(common..).unwrap_or_default().iter().find(has_retry);
        let from = around.and_then(|block| self.ends.get(*block).copied()).unwrap_or(from);
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
    pub(super) fn sort(&mut self) {
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
