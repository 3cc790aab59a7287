//! `overlord job-resume ID`: sends a job again where it never started.

use super::detached::{self, Report};
use super::{Refusal, home};
use crate::cli::{JobArgs, Options};
use crate::fleet::Fleet;
use crate::jobs::dispatcher::Resumption;
use crate::output::Output;

pub(super) fn run(options: &Options, output: Output, args: JobArgs) -> Result<u8, Refusal> {
    let home = home(options)?;
    detached::run(output, move || {
        let fleet = Fleet::at(home)?;
        let Resumption { job, dispatch, left } = Resumption::prepare(&fleet.job(&args.id)?)?;
        Ok((Report::resumed(&job, &left, dispatch.is_some()), dispatch))
    })
}
