//! `overlord job-resume ID`: sends a job again where it never started.

use std::time::Duration;

use super::detached::{self, Report, WORD_WITHIN};
use super::{Refusal, home, warn_of_forks};
use crate::buckets::forks_max;
use crate::cli::{JobArgs, Options};
use crate::config::Config;
use crate::fleet::Fleet;
use crate::jobs::dispatcher::Resumption;
use crate::output::Output;

pub(super) fn run(options: &Options, output: Output, args: JobArgs) -> Result<u8, Refusal> {
    let fleet = Fleet::at(home(options)?)?;
    warn_of_forks(fleet.config().forks);
    detached::run(output, patience(&fleet), move || {
        let Resumption { job, dispatch, left } = Resumption::prepare(&fleet.job(&args.id)?)?;
        Ok((Report::resumed(&job, &left, dispatch.is_some()), dispatch))
    })
}

/// How long a dispatcher may take that asks hosts before it says anything.
pub(super) fn patience(fleet: &Fleet) -> Duration {
    // Without a roster there is nobody to wait for, and the dispatcher says why.
    let hosts = fleet.roster().map_or(0, |roster| roster.iter().count());
    patience_for(fleet.config(), hosts)
}

/// It asks every host that may have the job, as many at once as there are forks.
fn patience_for(config: &Config, hosts: usize) -> Duration {
    let rounds = hosts.div_ceil(usize::from(config.forks.min(forks_max()).max(1)));
    let round = config.connect_timeout.saturating_add(config.poll_timeout);
    WORD_WITHIN.saturating_add(round.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_fleet_that_does_not_answer_is_waited_for() {
        let config = Config::default();
        assert_eq!(patience_for(&config, 0), WORD_WITHIN);
        assert_eq!(patience_for(&config, 50_000), WORD_WITHIN + 782 * Duration::from_secs(13));
    }
}
