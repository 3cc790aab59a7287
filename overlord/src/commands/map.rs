//! `overlord map TARGET MODULE.METHOD --items FILE|-`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};

use common::protocol::package::UPGRADE;

use super::call::stop_on_interrupt;
use super::{INTERRUPTED, Refusal, warn_of_forks};
use crate::aggregate::counted;
use crate::cli::MapArgs;
use crate::fleet::{Fleet, Stop};
use crate::map::Terms;
use crate::map::items::{Items, ItemsError};
use crate::output::map::MapPrinter;
use crate::output::{Output, progress_of, remark_result};

/// What standard input is called.
const STDIN: &str = "-";

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &MapArgs) -> Result<u8, Refusal> {
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
    warn_of_forks(args.forks.unwrap_or(fleet.config().forks));
    let items = take_in(&args.items, fleet.config().call_max_bytes)?;
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

fn take_in(name: &str, line_max_bytes: u32) -> Result<Items, Refusal> {
    let (shown, from): (&str, Box<dyn BufRead>) = match name {
        STDIN => ("standard input", Box::new(io::stdin().lock())),
        path => {
            let opened = File::open(path).map_err(|source| ItemsError::Read { name: path.to_owned(), source })?;
            (path, Box::new(BufReader::new(opened)))
        }
    };
    Ok(Items::take_in(shown, from, line_max_bytes)?)
}
