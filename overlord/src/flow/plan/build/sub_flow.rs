//! A flow within a flow: its steps in their place, with names of their own, and the names that lead in and out.

use petgraph::graph::NodeIndex;

use super::{Around, Builder, lines_of};
use crate::flow::file::{FlowFile, Step, beside};
use crate::flow::plan::{At, DEPTH_MAX, Source};
use crate::flow::value::Template;

/// The most sub-flows of a flow, each counted as often as it is run.
const SUB_FLOWS_MAX: usize = 1000;

impl<'t> Builder<'t> {
    pub(super) fn sub_flow(&mut self, step: Step, around: &Around<'t>, at: &At) -> Option<(NodeIndex, NodeIndex)> {
        let (name, file) = (step.name.get_ref().clone(), step.flow?);
        if around.depth >= DEPTH_MAX {
            self.problem(at, format!("sub-flows may stand {DEPTH_MAX} deep in each other at most; does {} run itself?", file.get_ref()));
            return None;
        }
        let (path, text, sub) = self.read(&beside(around.path, file.get_ref()))?;
        if path == around.path || around.files.contains(&path) {
            self.problem(at, format!("the sub-flow {name} is in {}, which runs it itself: it would have no end", path.display()));
            return None;
        }
        if self.scopes > SUB_FLOWS_MAX {
            if self.scopes == SUB_FLOWS_MAX + 1 {
                self.problem(at, format!("a flow runs {SUB_FLOWS_MAX} sub-flows at most"));
                self.scopes += 1;
            }
            return None;
        }
        if step.retry.is_some() && sub.retry.is_some() {
            self.problem(at, format!("retry stands here and in {} itself", path.display()));
        }
        let scope = self.scopes;
        self.scopes += 1;
        let prefix = format!("{}{name}/", around.prefix);
        let inner =
            Around { path, text, lines: lines_of(text), scope, prefix: around.prefix.clone(), depth: around.depth + 1, ..around.clone() };
        let inner = Around { files: [around.files.as_slice(), &[around.path]].concat(), ..inner };
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
}
