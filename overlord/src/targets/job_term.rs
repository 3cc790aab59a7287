//! The term `@job:ID` or `@job:ID:STATE`: the hosts of a job, or those where it has come to that state as far as is known. Pure.

use std::collections::BTreeSet;

use common::identity::MinionName;
use common::job::{HostState, JobRecord};

/// What such a term begins with. A group can have no such name.
const PREFIX: &str = "@job:";
/// In place of a state: it has not ended there.
const UNFINISHED: &str = "unfinished";

const STATES: [HostState; 10] = [
    HostState::Pending,
    HostState::Queued,
    HostState::Running,
    HostState::Ok,
    HostState::Failed,
    HostState::Denied,
    HostState::Cancelled,
    HostState::TimedOut,
    HostState::Undelivered,
    HostState::Lost,
];

/// A term that means hosts of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobTerm {
    /// The job's id, or its beginning.
    pub(crate) id: String,
    state: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    Unfinished,
    Only(HostState),
}

impl JobTerm {
    /// None if the term is of another kind.
    pub(super) fn parse(term: &str) -> Option<Result<Self, String>> {
        let rest = behind_prefix(term)?;
        let (id, state) = rest.split_once(':').map_or((rest, None), |(id, state)| (id, Some(state)));
        if id.is_empty() {
            return Some(Err(format!("\"{term}\" names no job; the hosts of a job are written @job:ID or @job:ID:STATE")));
        }
        let state = match state.map(str::to_ascii_lowercase).as_deref() {
            None => Ok(Wanted::Any),
            Some(UNFINISHED) => Ok(Wanted::Unfinished),
            Some(word) => STATES.into_iter().find(|state| state.as_str() == word).map(Wanted::Only).ok_or_else(|| {
                let words: Vec<&str> = STATES.iter().map(|state| state.as_str()).collect();
                format!("\"{term}\" ends with no state of a host, which are {} and {UNFINISHED}", words.join(", "))
            }),
        };
        Some(state.map(|state| Self { id: id.to_owned(), state }))
    }

    /// The hosts of the job that the term means.
    pub(crate) fn members(&self, record: &JobRecord) -> BTreeSet<MinionName> {
        let is_meant = |state: HostState| match self.state {
            Wanted::Any => true,
            Wanted::Unfinished => !state.is_final(),
            Wanted::Only(only) => state == only,
        };
        record.hosts.iter().filter(|(_, host)| is_meant(host.state)).map(|(name, _)| name.clone()).collect()
    }
}

/// Whether the term, an exclusion or not, is of this kind.
pub(super) fn is_job_term(term: &str) -> bool {
    let term = term.trim();
    behind_prefix(term.strip_prefix('!').map_or(term, str::trim_start)).is_some()
}

/// The expression that means the hosts of a job that are in one of `states`.
pub(crate) fn expression(job: &common::job::JobId, states: &BTreeSet<HostState>) -> String {
    let terms: Vec<String> = states.iter().map(|state| format!("{PREFIX}{job}:{state}")).collect();
    terms.join(";")
}

fn behind_prefix(term: &str) -> Option<&str> {
    let (start, rest) = term.split_at_checked(PREFIX.len())?;
    start.eq_ignore_ascii_case(PREFIX).then_some(rest)
}
