//! `overlord job-retry ID --failed|--lost|--undelivered`: a new job on those hosts of an earlier one.

use std::collections::BTreeSet;

use common::job::HostState;

use super::detached::{self, Report, Said};
use super::job_resume::patience;
use super::{Refusal, home, warn_of_forks};
use crate::cli::{JobRetryArgs, Options, RetriedEnds};
use crate::fleet::Fleet;
use crate::jobs::retry;
use crate::output::Output;

pub(super) fn run(options: &Options, output: Output, args: JobRetryArgs) -> Result<u8, Refusal> {
    let (fleet, said) = Said::by(Fleet::at(home(options)?)?);
    warn_of_forks(fleet.config().forks);
    detached::run(output, patience(&fleet), move || {
        let dispatch = retry::prepare(&fleet.job(&args.job.id)?, &states(&args.ends))?;
        Ok((Report::started(dispatch.job_id(), &said), Some(dispatch.into())))
    })
}

/// `--failed` is what sets the same bit in the exit status.
fn states(ends: &RetriedEnds) -> BTreeSet<HostState> {
    let failed = [HostState::Failed, HostState::Denied, HostState::Cancelled, HostState::TimedOut];
    let mut states = BTreeSet::new();
    states.extend(failed.into_iter().filter(|_| ends.failed));
    states.extend(ends.lost.then_some(HostState::Lost));
    states.extend(ends.undelivered.then_some(HostState::Undelivered));
    states
}
