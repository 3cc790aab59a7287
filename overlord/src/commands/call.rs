//! `overlord [call] TARGET MODULE.METHOD …`: at once, or with `--async` as a job.

use std::io::{self, Read};
use std::thread;

use common::protocol::Arguments;
use common::protocol::package::UPGRADE;
use tokio::signal::unix::{SignalKind, signal};

use super::detached::{self, Report, Said, WORD_WITHIN};
use super::{INTERRUPTED, Refusal, home, warn_of_forks};
use crate::aggregate::counted;
use crate::cli::{CallArgs, Options};
use crate::fleet::{Fleet, Stop, Target, any};
use crate::jobs::dispatcher::Dispatch;
use crate::output::call::print_arrivals;
use crate::output::{Output, progress, remark_result};

/// The largest JSON that is read from standard input.
const STDIN_MAX_BYTES: u64 = 64 << 20;

pub(super) fn run(fleet: &Fleet, mut output: Output, call: CallArgs) -> Result<u8, Refusal> {
    let method = call.method.as_str();
    if method == UPGRADE {
        return Err(Refusal::usage(format!("{UPGRADE} restarts the minions that would answer: run it with --async")));
    }
    let args = arguments(call.args.clone(), call.json.as_deref())?;
    let target = target(fleet, &call, &args)?;
    warn_of_forks(call.forks.unwrap_or(fleet.config().forks));
    let stop = Stop::new();
    stop_on_interrupt(stop.clone());
    let bar = progress(target.hosts().len());
    let printed = target.call_and_collect(method, args, &stop, |arrivals| {
        let tally = print_arrivals(&mut output, &bar, arrivals).inspect_err(|_| stop.stop());
        // An interrupt of what comes behind the last outcome takes nothing from them.
        tally.map(|tally| (tally, stop.is_stopped()))
    });
    let (tally, was_stopped) = printed??;
    if tally.hosts() > 1 {
        remark_result(&counted(&tally.counts));
    }
    Ok(if was_stopped { INTERRUPTED } else { tally.exit_bits() })
}

/// Forks first: no thread may exist yet. All that can fail is done behind the fork, and told through the pipe.
pub(super) fn start(options: &Options, output: Output, call: CallArgs) -> Result<u8, Refusal> {
    let (fleet, said) = Said::by(Fleet::at(home(options)?)?);
    let args = arguments(call.args.clone(), call.json.as_deref())?;
    warn_of_forks(call.forks.unwrap_or(fleet.config().forks));
    detached::run(output, WORD_WITHIN, move || {
        let target = target(&fleet, &call, &args)?;
        let dispatch = Dispatch::begin(&target, call.method.as_str(), args, None)?;
        Ok((Report::started(dispatch.job_id(), &said), Some(dispatch.into())))
    })
}

fn target(fleet: &Fleet, call: &CallArgs, args: &Arguments) -> Result<Target, Refusal> {
    if call.any && call.method.as_str() != any::RUN {
        return Err(Refusal::usage(format!("--any is for {}: a task of a worker, which any host that has the worker can do", any::RUN)));
    }
    let mut target = fleet.target(&call.target)?;
    if let Some(forks) = call.forks {
        target = target.with_forks(forks);
    }
    if let Some(timeout) = call.timeout {
        target = target.with_timeout(timeout);
    }
    if let Some(limit) = call.job_timeout {
        target = target.with_job_timeout(limit);
    }
    if call.any { Ok(target.any(args)?) } else { Ok(target) }
}

fn arguments(words: Vec<String>, json: Option<&str>) -> Result<Arguments, Refusal> {
    let Some(json) = json else { return Ok(Arguments::Words(words)) };
    let text = match json {
        "-" => stdin()?,
        text => text.to_owned(),
    };
    Arguments::from_json(&text).map_err(|error| Refusal::usage(error.to_string()))
}

fn stdin() -> Result<String, Refusal> {
    let mut text = String::new();
    match io::stdin().lock().take(STDIN_MAX_BYTES).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Refusal::usage(format!("reading the arguments from standard input: {error}"))),
    }
}

/// The first interrupt stops the call, or the reading of logs, which then prints what it has; the second ends the program, which may be waiting for
/// whoever reads its output. Where they cannot be caught, the first ends it, as ever.
#[allow(
    clippy::disallowed_methods,
    reason = "neither a call nor the reading of logs writes files, and the thread that prints may be stuck for ever"
)]
pub(super) fn stop_on_interrupt(stop: Stop) {
    let wait = move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut interrupts = signal(SignalKind::interrupt())?;
            interrupts.recv().await;
            stop.stop();
            interrupts.recv().await;
            std::process::exit(i32::from(INTERRUPTED))
        })
    };
    let _uncaught = thread::Builder::new().name("interrupt".to_owned()).spawn(wait);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn json_arguments_are_a_list_or_an_object() {
        let words = vec!["a".to_owned()];
        assert_eq!(arguments(words.clone(), None).unwrap(), Arguments::Words(words));
        assert_eq!(arguments(vec![], Some("[23,45]")).unwrap(), Arguments::Json(json!([23, 45])));
        for bad in ["23", "", "{", "null"] {
            assert!(arguments(vec![], Some(bad)).is_err(), "{bad}");
        }
    }
}
