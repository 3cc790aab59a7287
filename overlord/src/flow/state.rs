//! The states of a flow and of its tasks, named as OpenStack TaskFlow names them, and which may follow which. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far a task of a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TaskState {
    /// It has not begun.
    Pending,
    /// It was begun: what it takes is sent, or about to be.
    Running,
    /// It has done what it should.
    Success,
    /// It has not.
    Failure,
    /// What it did is being undone.
    Reverting,
    /// It is undone.
    Reverted,
    /// It could not be undone.
    RevertFailure,
    /// It was decided that it is not to run.
    Ignore,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum FlowState {
    /// It is written down, and nothing was begun.
    Pending,
    /// Tasks run, or may.
    Running,
    /// Nothing runs until it is resumed.
    Suspended,
    /// Something has failed for good, and what was done is being undone.
    Reverting,
    /// Every task has succeeded, or was ignored.
    Success,
    /// Something has failed, and all that was done is undone.
    Reverted,
    /// Something could not be undone, or a task that was to run in the end has failed.
    Failure,
}

impl TaskState {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 8] =
        [Self::Pending, Self::Running, Self::Success, Self::Failure, Self::Reverting, Self::Reverted, Self::RevertFailure, Self::Ignore];

    /// The states that may follow this one.
    pub(crate) const fn next(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Running, Self::Ignore],
            Self::Running => &[Self::Success, Self::Failure],
            Self::Success => &[Self::Reverting],
            Self::Failure => &[Self::Running, Self::Pending, Self::Reverting],
            Self::Reverting => &[Self::Reverted, Self::RevertFailure],
            Self::Reverted | Self::Ignore => &[Self::Pending],
            Self::RevertFailure => &[],
        }
    }

    pub(crate) fn may_become(self, next: Self) -> bool {
        self.next().contains(&next)
    }

    /// Whether what follows may begin.
    pub(crate) const fn is_passed(self) -> bool {
        matches!(self, Self::Success | Self::Ignore)
    }

    /// Whether a call of it may be on its way.
    pub(crate) const fn is_at_work(self) -> bool {
        matches!(self, Self::Running | Self::Reverting)
    }
}

impl FlowState {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] =
        [Self::Pending, Self::Running, Self::Suspended, Self::Reverting, Self::Success, Self::Reverted, Self::Failure];

    /// The states that may follow this one.
    pub(crate) const fn next(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Running],
            Self::Running => &[Self::Suspended, Self::Reverting, Self::Success, Self::Failure],
            Self::Suspended => &[Self::Running, Self::Reverting],
            Self::Reverting => &[Self::Suspended, Self::Reverted, Self::Failure],
            Self::Success | Self::Reverted | Self::Failure => &[],
        }
    }

    pub(crate) fn may_become(self, next: Self) -> bool {
        self.next().contains(&next)
    }

    pub(crate) const fn has_ended(self) -> bool {
        self.next().is_empty()
    }
}

fn named(state: &impl Serialize, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let name = serde_json::to_value(state).ok();
    out.pad(name.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default())
}

impl fmt::Display for TaskState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        named(self, out)
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        named(self, out)
    }
}

/// The table of the states as documents print it: a line for each, with those that may follow.
#[cfg(test)]
pub(crate) fn table() -> String {
    use std::fmt::Write as _;
    let mut text = String::from("| of | state | may become |\n| --- | --- | --- |\n");
    let row = |text: &mut String, of: &str, state: String, next: Vec<String>| {
        let next = if next.is_empty() { "nothing: it is an end".to_owned() } else { next.join(", ") };
        let _infallible = writeln!(text, "| {of} | {state} | {next} |");
    };
    for state in FlowState::ALL {
        row(&mut text, "flow", state.to_string(), state.next().iter().map(ToString::to_string).collect());
    }
    for state in TaskState::ALL {
        row(&mut text, "task", state.to_string(), state.next().iter().map(ToString::to_string).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn the_table_in_the_documentation_is_this_one() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/flows/README.md");
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains(&table()), "{page} should hold this:\n{}", table());
    }

    #[test]
    fn names_are_those_of_taskflow_and_every_state_can_be_reached() {
        assert_eq!(TaskState::RevertFailure.to_string(), "REVERT_FAILURE");
        assert_eq!(FlowState::Suspended.to_string(), "SUSPENDED");
        for state in TaskState::ALL {
            assert!(state == TaskState::Pending || TaskState::ALL.iter().any(|from| from.may_become(state)), "{state}");
        }
        for state in FlowState::ALL {
            assert!(state == FlowState::Pending || FlowState::ALL.iter().any(|from| from.may_become(state)), "{state}");
        }
    }
}
