//! `overlord map TARGET MODULE.METHOD --items FILE|-`: at once, or with `--async` as a job.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use common::protocol::package::UPGRADE;

use super::call::stop_on_interrupt;
use super::detached::{self, Report, Said, WORD_WITHIN};
use super::{INTERRUPTED, Refusal, home, warn_of_forks};
use crate::aggregate::counted;
use crate::cli::{MapArgs, Options};
use crate::fleet::{Fleet, Stop, Target};
use crate::jobs::dispatcher::Errand;
use crate::jobs::map::MapDispatch;
use crate::map::Terms;
use crate::map::items::{Items, ItemsError};
use crate::map::kept::KeptItems;
use crate::output::map::MapPrinter;
use crate::output::{Output, progress_of, remark_result};

/// What standard input is called.
const STDIN: &str = "-";

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &MapArgs) -> Result<u8, Refusal> {
    let target = target(fleet, args)?;
    warn_of_forks(args.forks.unwrap_or(fleet.config().forks));
    let (shown, from) = source(&args.items)?;
    let items = Items::take_in(shown, from, fleet.config().call_max_bytes)?;
    let stop = Stop::new();
    stop_on_interrupt(stop.clone());
    let mut printer = MapPrinter::new(&mut output, progress_of(items.count()));
    let terms = Terms { in_flight: args.in_flight, retries: args.retries };
    let untouched = target.map_each(&args.method, items, terms, &stop, |ended| printer.print(&ended))?;
    // An interrupt of what comes behind the last outcome takes nothing from them.
    let was_stopped = stop.is_stopped();
    let tally = printer.close(untouched?)?;
    remark_result(&counted(&tally.counts));
    Ok(if was_stopped { INTERRUPTED } else { tally.exit_bits() })
}

/// Items first: standard input is none of the process that is forked. That is forked next: no thread may exist yet.
pub(super) fn start(options: &Options, output: Output, args: &MapArgs) -> Result<u8, Refusal> {
    let (fleet, said) = Said::by(Fleet::at(home(options)?)?);
    target(&fleet, args)?;
    warn_of_forks(args.forks.unwrap_or(fleet.config().forks));
    let (shown, from) = source(&args.items)?;
    let items = KeptItems::take_in((fleet.home(), fleet.config()), shown, from)?;
    detached::run(output, WORD_WITHIN, move || {
        let terms = Terms { in_flight: args.in_flight, retries: args.retries };
        let target = target(&fleet, args).inspect_err(|_| items.drop_from(fleet.home()))?;
        let dispatch = MapDispatch::begin(&target, &args.method, &items, terms)?;
        Ok((Report::started(dispatch.job_id(), &said), Some(Errand::Map(Box::new(dispatch)))))
    })
}

fn target(fleet: &Fleet, args: &MapArgs) -> Result<Target, Refusal> {
    if args.method.as_str() == UPGRADE {
        return Err(Refusal::usage(format!("{UPGRADE} restarts the minions that would answer: run it with --async, and without map")));
    }
    let mut target = fleet.target(&args.target)?;
    if let Some(forks) = args.forks {
        target = target.with_forks(forks);
    }
    if let Some(timeout) = args.timeout {
        target = target.with_timeout(timeout);
    }
    Ok(target)
}

fn source(name: &str) -> Result<(&str, Box<dyn BufRead>), Refusal> {
    Ok(match name {
        STDIN => ("standard input", Box::new(io::stdin().lock())),
        path => {
            let opened = File::open(path).map_err(|source| ItemsError::Read { name: path.to_owned(), source })?;
            (path, Box::new(BufReader::new(opened)))
        }
    })
}
