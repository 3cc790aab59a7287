//! The command line: words → one [`Command`]. Does nothing.
//!
//! `overlord TARGET MODULE.METHOD …` is short for `overlord call TARGET MODULE.METHOD …`: where the first word is no command
//! and the second has a dot, `call` is put before them.

mod certs;
mod deploy;
mod flow;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use common::identity::MinionName;
use common::job::MinionJobId;
use common::method::MethodName;
use common::period;

pub(crate) use certs::{
    CertsCleanArgs, CertsCommand, CertsInitArgs, CertsIssueArgs, CertsRejectArgs, CertsRevokeArgs, CertsServeArgs, CertsSignArgs,
    CertsTokenArgs, IssuedRole,
};
pub(crate) use deploy::DeployArgs;
pub(crate) use flow::{FlowCommand, FlowFileArgs, FlowGraphArgs, FlowResumeArgs, FlowRunArgs, FlowStatusArgs};

const CALL_LOOKS_LIKE: &str = "overlord [OPTIONS] TARGET MODULE.METHOD [ARG | KEY=VALUE]...";

/// Runs methods on a fleet of hosts, and tells what became of them.
#[derive(Debug, Parser)]
#[command(
    name = "overlord",
    version,
    max_term_width = 120,
    override_usage = "overlord [OPTIONS] TARGET MODULE.METHOD [ARG | KEY=VALUE]...\n       overlord [OPTIONS] <COMMAND>",
    after_help = "Examples:\n  \
        overlord '*' test.ping\n  \
        overlord 'web*;!web9' command.run 'systemctl is-active nginx'\n  \
        overlord @db command.run 'apt-get -y upgrade' --async\n\n\
        Exit status: 0 all ok; the sum of 2 (a host failed, was denied, cancelled or timed out) and 4 (a host was \
        undelivered or lost); of `certs status` 2 (a certificate is overdue or has expired) and 4 (the revocation list is stale, or something \
        is damaged), of `certs revoke` and `clean` 4 (a host could not be told); 1 internal error; 64 usage; 66 the target matches no host; 75 the job has not ended; 130 interrupted; 141 nobody reads the output."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The overlord's folder [default: OVERLORD_HOME, else the system's folders as root and XDG's as a user]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) home: Option<PathBuf>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, global = true)]
    pub(crate) output: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people: hosts with the same answer are folded together
    Text,
    /// One JSON document, at the end
    Json,
    /// One JSON document a line, one for each host as it answers, and a last one with the `summary`
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Call a method on every host of the target; the word `call` itself can be left out
    Call(CallArgs),
    /// Run a method for each of many items, on whichever hosts of the target have time, and print the results in the order of the items
    Map(MapArgs),
    /// Run several calls with dependencies, retries and undo
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Say how a job stands, asking the hosts that have not ended
    JobStatus(JobStatusArgs),
    /// List the jobs that have not ended and the newest that have, newest first, as far as is known here
    JobList(JobListArgs),
    /// Start a new job like an earlier one, on those of its hosts where that failed, was lost, or never started
    JobRetry(JobRetryArgs),
    /// Send a job again to the hosts where it never started; go on with a map that was broken off
    JobResume(JobArgs),
    /// Delete jobs that have ended, here and on their hosts
    JobDelete(JobDeleteArgs),
    /// Stop a job on its hosts, or on one of them; end a map
    JobCancel(JobCancelArgs),
    /// Show what a job has written to its stdout and stderr, on all its hosts or on one
    JobLogs(JobLogsArgs),
    /// List the hosts, or those that a target names
    Hosts(HostsArgs),
    /// Describe the methods that minions of this version have
    Doc(DocArgs),
    /// Make hosts members of the fleet over ssh: install the minion's package, enrol, start, and see that it answers; again to upgrade
    Deploy(DeployArgs),
    /// Keep the fleet's authority: issue, sign, renew and revoke certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// Which hosts: `*`, `web*;db1`, `web[01-20]`, `@group`, `@job:ID:STATE`, `!web9`
    pub(crate) target: String,
    /// What to run there
    #[arg(value_name = "MODULE.METHOD")]
    pub(crate) method: MethodName,
    /// The method's arguments; what begins with `-` stands behind a `--`
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    pub(crate) args: Vec<String>,
    /// The arguments as a JSON list or object; `-` reads it from standard input
    #[arg(long, value_name = "JSON", conflicts_with = "args")]
    pub(crate) json: Option<String>,
    /// Of `worker.run`: give the task to one host of the target, one with an idle instance, or else where the fewest tasks wait
    #[arg(long)]
    pub(crate) any: bool,
    /// Start a job, and print its id at once
    #[arg(long = "async")]
    pub(crate) as_job: bool,
    /// How many hosts are in flight at once [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) forks: Option<u16>,
    /// How long the method may take on a host, or the host to accept the job [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    pub(crate) timeout: Option<Duration>,
    /// How long the job may run on a host [default: as long as the host lets it]
    #[arg(long, value_name = "DURATION", value_parser = period::parse, requires = "as_job")]
    pub(crate) job_timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// Which hosts: `*`, `web*;db1`, `web[01-20]`, `@group`, `@job:ID:STATE`, `!web9`
    pub(crate) target: String,
    /// What to run there for each item
    #[arg(value_name = "MODULE.METHOD")]
    pub(crate) method: MethodName,
    /// The items, one a line as JSON: a list of arguments, an object of them, or any other value as the only one; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) items: String,
    /// Go on by itself, and print a job id at once; `job-status ID` says how far it is, and with `--output jsonl` what each item gave
    #[arg(long = "async")]
    pub(crate) as_job: bool,
    /// How many chunks of items a host works on at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) in_flight: u16,
    /// How often an item may be run again of which it is not known what became: it may have run, and then runs once more
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) retries: u32,
    /// How many chunks are in flight at once over all hosts [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) forks: Option<u16>,
    /// How long the method may take for an item [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id, or its beginning
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct JobListArgs {
    /// Every job that is kept
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobRetryArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    #[command(flatten)]
    pub(crate) ends: RetriedEnds,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct RetriedEnds {
    /// Where it failed, was denied, cancelled or timed out
    #[arg(long)]
    pub(crate) failed: bool,
    /// Where it is lost, once those hosts have been asked again: it may have run there, and then runs a second time
    #[arg(long)]
    pub(crate) lost: bool,
    /// Where it never started
    #[arg(long)]
    pub(crate) undelivered: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobDeleteArgs {
    /// The jobs' ids, or their beginnings
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct JobStatusArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Wait until it has ended
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "DURATION", value_parser = period::parse, requires = "wait")]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct JobCancelArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Only on this host
    #[arg(value_name = "HOST")]
    pub(crate) host: Option<MinionName>,
}

#[derive(Debug, Args)]
pub(crate) struct JobLogsArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// Only of this host
    #[arg(value_name = "HOST")]
    pub(crate) host: Option<MinionName>,
    /// Of a job that it has submitted there, or another of yours on that host, by its id there: `followup` in the JSON of job-status
    #[arg(long, value_name = "MINION_JOB_ID", requires = "host")]
    pub(crate) child: Option<MinionJobId>,
    /// Go on with what it writes from now on, until it has ended on every host
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HostsArgs {
    /// Which hosts
    #[arg(default_value = "*")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct DocArgs {
    /// A module, or one of its methods
    #[arg(value_name = "MODULE[.METHOD]")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    pub(crate) shell: Shell,
}

impl Cli {
    /// # Errors
    /// clap's, to be printed as it is: wrong usage, or that help or the version was asked for.
    pub(crate) fn read(mut argv: Vec<OsString>) -> Result<Self, clap::Error> {
        let command = Self::command();
        if is_short_call(&command, &argv) {
            argv.insert(1, "call".into());
        }
        Self::try_parse_from(argv).map_err(explain)
    }
}

/// The definitions of the command line, of which packages make manual pages and completions.
#[must_use]
pub fn definitions() -> clap::Command {
    Cli::command()
}

/// What was meant for a call and does not look like one gets to know what one looks like.
fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::InvalidSubcommand {
        error.insert(ContextKind::Usage, ContextValue::StyledStr(format!("A call looks like: {CALL_LOOKS_LIKE}").into()));
    }
    error
}

/// Whether the first word is no command, and the second has a dot.
fn is_short_call(command: &clap::Command, argv: &[OsString]) -> bool {
    let mut words = positionals(command, argv);
    let Some(first) = words.next() else { return false };
    let is_command = first == "help" || command.find_subcommand(first).is_some();
    !is_command && words.next().is_some_and(|second| second.contains('.'))
}

/// The words that are neither options nor their values.
fn positionals<'a>(command: &clap::Command, argv: &'a [OsString]) -> impl Iterator<Item = &'a str> {
    let call = command.find_subcommand("call");
    let valued: Vec<String> = command
        .get_arguments()
        .chain(call.into_iter().flat_map(clap::Command::get_arguments))
        .filter(|arg| arg.get_action().takes_values())
        .filter_map(|arg| arg.get_long().map(|name| format!("--{name}")))
        .collect();
    let mut words = argv.iter().skip(1);
    let mut only_words = false;
    std::iter::from_fn(move || {
        loop {
            // What is not UTF-8 is no command, option or method; clap says so.
            let word = words.next()?.to_str().unwrap_or_default();
            if only_words || !word.starts_with('-') {
                return Some(word);
            }
            only_words = word == "--";
            if valued.iter().any(|option| option == word) {
                words.next();
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(std::iter::once("overlord").chain(line.split(' ')).map(OsString::from).collect())
    }

    fn call(line: &str) -> CallArgs {
        match read(line).unwrap().command {
            Command::Call(call) => call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn two_words_with_a_dot_in_the_second_are_a_call() {
        for line in [
            "web* test.add 1 -2 k=v",
            "call web* test.add 1 -2 k=v",
            "--output json web* test.add 1 -2 k=v",
            "--home /x web* test.add 1 -2 --forks 3 k=v",
            "--forks 3 web* test.add 1 -2 k=v --output=json",
            "--timeout=5s web* test.add 1 -- -2 k=v",
        ] {
            let call = call(line);
            assert_eq!((call.target.as_str(), call.method.as_str()), ("web*", "test.add"), "{line}");
            assert_eq!(call.args, ["1", "-2", "k=v"], "{line}");
        }
        assert!(call("web* test.ping --async --job-timeout 5m").as_job);
        assert_eq!(call("web* command.run -- ls -l --async").args, ["ls", "-l", "--async"]);
    }

    #[test]
    fn a_host_named_like_a_command_stays_reachable() {
        assert!(matches!(read("hosts web.1").unwrap().command, Command::Hosts(_)));
        assert_eq!(call("call hosts test.ping").target, "hosts");
    }

    #[test]
    fn what_is_neither_is_told_what_a_call_looks_like() {
        for line in ["webs", "webs ping", "job-stat 54k2", "--output json web* ping"] {
            let error = read(line).unwrap_err();
            assert!(error.to_string().contains("MODULE.METHOD [ARG"), "{line}: {error}");
        }
        for line in [
            "web* Test.ping",
            "web* a.b.c",
            "web* test.ping -x",
            "web* test.ping --forks 0",
            "web* test.ping --timeout 5",
            "web* test.ping --job-timeout 5s",
            "job-status 54k2 --timeout 5s",
            "job-retry 54k2",
            "job-delete",
            "certs sign",
            "certs sign web1 --all",
            "certs revoke",
            "certs issue web1 --valid 9s",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
