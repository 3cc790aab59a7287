//! `overlord deploy HOST... --package FILE`: a line for each host as it is done. What is done there is the library's business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::Receiver;

use common::identity::MinionName;
use common::outcome::{Outcome, Verdict};
use indicatif::ProgressBar;
use serde_json::Value;

use super::call::stop_on_interrupt;
use super::{INTERRUPTED, Refusal, warn_of_forks};
use crate::aggregate::{compressed, counted};
use crate::cli::DeployArgs;
use crate::deploy::{Deployment, Destination, Ssh};
use crate::fleet::{Fleet, Stop};
use crate::output::call::{Tally, print_arrivals};
use crate::output::{Format, Output, harmless, progress, remark, remark_result};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: DeployArgs) -> Result<u8, Refusal> {
    let hosts = unique(args.hosts)?;
    let forks = args.forks.unwrap_or(fleet.config().forks);
    warn_of_forks(forks);
    let ssh = Ssh { config: args.ssh_config };
    let deployment = Deployment::prepare(fleet, &args.package, ssh, args.overlord, args.timeout)?;
    let (stop, bar) = (Stop::new(), progress(hosts.len()));
    stop_on_interrupt(stop.clone());
    let mut done = BTreeMap::new();
    let printed = deployment.run(hosts, forks, &stop, |arrivals| {
        let tally = match output.format() {
            Format::Text => print_lines(&mut output, &bar, arrivals, &mut done),
            Format::Json | Format::Jsonl => print_arrivals(&mut output, &bar, arrivals),
        };
        tally.inspect_err(|_| stop.stop())
    });
    let tally = printed??;
    if stop.is_stopped() {
        match output.format() {
            Format::Text => remark_interrupted(&done),
            Format::Json | Format::Jsonl => remark("interrupted; the same command again finishes it"),
        }
        return Ok(INTERRUPTED);
    }
    if tally.hosts() > 1 {
        remark_result(&counted(&tally.counts));
    }
    Ok(tally.exit_bits())
}

/// Each host once.
fn unique(mut hosts: Vec<Destination>) -> Result<Vec<Destination>, Refusal> {
    let mut known: BTreeMap<MinionName, Destination> = BTreeMap::new();
    for host in &hosts {
        if let Some(other) = known.insert(host.name.clone(), host.clone()).filter(|other| other != host) {
            return Err(Refusal::usage(format!("the host {} is named twice, as `{other}` and as `{host}`", host.name)));
        }
    }
    let mut seen = BTreeSet::new();
    hosts.retain(|host| seen.insert(host.name.clone()));
    Ok(hosts)
}

/// A line for each host, at once: those that are done must not wait for those that are not.
fn print_lines(
    output: &mut Output,
    bar: &ProgressBar,
    arrivals: &Receiver<(MinionName, Outcome)>,
    done: &mut BTreeMap<MinionName, bool>,
) -> io::Result<Tally> {
    let mut tally = Tally::default();
    for (host, Outcome { verdict, .. }) in arrivals {
        tally.count(verdict.state());
        bar.inc(1);
        bar.suspend(|| output.print(&line(&host, &verdict)))?;
        done.insert(host, matches!(verdict, Verdict::Ok { .. }));
    }
    bar.finish_and_clear();
    Ok(tally)
}

fn line(host: &MinionName, verdict: &Verdict) -> String {
    let text = match verdict {
        Verdict::Ok { result } => format!("{host}: ok: {}", summary(result)),
        other => {
            let message = other.error().map(|error| error.message.as_str()).unwrap_or_default();
            format!("{host}: {}: {message}", other.state())
        }
    };
    // One line a host, whatever a host has said.
    harmless(&text).replace('\n', " ")
}

fn summary(result: &Value) -> String {
    let text = |field: &str| result.get(field).and_then(Value::as_str).unwrap_or_default();
    let package = match result.get("former_version").and_then(Value::as_str) {
        Some(former) => format!("{} in the place of {former}", text("version")),
        None => format!("{} {}", text("version"), text("package")),
    };
    let enrolled = if result.get("enrolled").and_then(Value::as_bool) == Some(true) { ", enrolled" } else { "" };
    format!("{package}{enrolled}, answers at {}", text("address"))
}

fn remark_interrupted(done: &BTreeMap<MinionName, bool>) {
    let of = |is_done: bool| done.iter().filter(|(_, done)| **done == is_done).map(|(host, _)| host).collect::<Vec<_>>();
    let (good, bad) = (of(true), of(false));
    let named = |hosts: &[&MinionName]| if hosts.is_empty() { "none".to_owned() } else { compressed(hosts) };
    remark(&format!("interrupted. Done: {}. Not done: {}. The same command again finishes it", named(&good), named(&bad)));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use serde_json::json;

    use super::*;

    fn destinations(words: &[&str]) -> Vec<Destination> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn a_host_that_is_named_twice_is_one_or_a_mistake() {
        let names: Vec<_> =
            unique(destinations(&["web2", "web1", "web2"])).unwrap().into_iter().map(|host| host.name.to_string()).collect();
        assert_eq!(names, ["web2", "web1"]);
        let refusal = unique(destinations(&["web1", "root@web1"])).unwrap_err();
        assert!(refusal.message.contains("twice"), "{}", refusal.message);
    }

    #[test]
    fn a_host_has_one_line() {
        let host = "web1".parse().unwrap();
        let result = json!({ "package": "installed", "version": "0.1.0-1", "former_version": null, "enrolled": true, "address": "a:1" });
        assert_eq!(line(&host, &Verdict::Ok { result }), "web1: ok: 0.1.0-1 installed, enrolled, answers at a:1");
        let result = json!({ "package": "replaced", "version": "2", "former_version": "1", "enrolled": false, "address": "a:1" });
        assert_eq!(line(&host, &Verdict::Ok { result }), "web1: ok: 2 in the place of 1, answers at a:1");
        assert_eq!(line(&host, &Verdict::undelivered("a\nweb2: ok: \x1b[2J")), "web1: undelivered: a web2: ok: \\x1b[2J");
    }
}
