//! The commands, one verb a file: what is printed and what the exit status is. What they do is done by the library's face.

mod call;
mod certs;
mod completions;
mod deploy;
mod detached;
mod doc;
mod flow;
mod hosts;
mod job_cancel;
mod job_delete;
mod job_list;
mod job_logs;
mod job_resume;
mod job_retry;
mod job_status;
mod map;

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use ::certs::authority::AuthorityError;
use ::certs::files::FileError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::authority::OfficeError;
use crate::authority::audit::LedgerError;
use crate::authority::serve::ServeError;
use crate::buckets::{BucketError, forks_max};
use crate::chain;
use crate::cli::{Cli, Command, Options};
use crate::daemon::DaemonError;
use crate::deploy::DeployError;
use crate::fleet::{AnyError, CallError, CheckError, Fleet, FleetError, LinkError};
use crate::flow::FlowError;
use crate::flow::log::LogError as FlowLogError;
use crate::home::{Home, HomeError};
use crate::hosts::RosterError;
use crate::jobs::{JobError, RetryError, StartError};
use crate::map::MapError;
use crate::map::items::ItemsError;
use crate::output::{Output, remark};
use crate::targets::TargetError;

/// Everything is well.
const OK: u8 = 0;
/// Something is wrong here, not with a host.
const INTERNAL: u8 = 1;
/// A certificate is overdue, or has expired; or hosts said no.
const NOT_WELL: u8 = 2;
/// The revocation list is stale, a host could not be told of it, or something of the authority is damaged.
const STALE: u8 = 4;
/// At least one host was undelivered or is lost.
const HOST_UNKNOWN: u8 = 4;
/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;
/// `EX_NOINPUT` of sysexits.h: the target matches no host.
const NO_HOST: u8 = 66;
/// `EX_TEMPFAIL` of sysexits.h: the job has not ended.
const NOT_ENDED: u8 = 75;
/// 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// 128 + SIGPIPE: nobody reads what we print.
const UNREAD: u8 = 141;

/// Runs the command line `argv`, and gives the exit status.
#[must_use]
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::read(argv.into_iter().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            let _unread = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { OK });
        }
    };
    let status = execute(cli).unwrap_or_else(|refusal| {
        if !refusal.message.is_empty() {
            remark(&refusal.message);
        }
        refusal.status
    });
    ExitCode::from(status)
}

fn execute(cli: Cli) -> Result<u8, Refusal> {
    let Cli { options, command } = cli;
    allow_open_files();
    let output = Output::new(options.output);
    match command {
        Command::Call(args) if args.as_job => call::start(&options, output, args),
        Command::Call(args) => call::run(&open(&options)?, output, args),
        Command::Flow(command) => flow::run(&options, output, command),
        Command::Map(args) if args.as_job => map::start(&options, output, &args),
        Command::Map(args) => map::run(&open(&options)?, output, &args),
        Command::JobStatus(args) => job_status::run(&open(&options)?, output, &args),
        Command::JobList(args) => job_list::run(&open(&options)?, output, &args),
        Command::JobRetry(args) => job_retry::run(&options, output, args),
        Command::JobDelete(args) => job_delete::run(&open(&options)?, output, &args),
        Command::JobResume(args) => job_resume::run(&options, output, args),
        Command::JobCancel(args) => job_cancel::run(&open(&options)?, output, &args),
        Command::JobLogs(args) => job_logs::run(&open(&options)?, output, &args),
        Command::Hosts(args) => hosts::run(&open(&options)?, output, &args),
        Command::Doc(args) => doc::run(output, &args),
        Command::Deploy(args) => deploy::run(&open(&options)?, output, args),
        Command::Certs(command) => certs::run(&open(&options)?, output, command),
        Command::Completions(args) => completions::run(output, &args),
    }
}

/// Each host in flight is an open file, and the usual limit of 1,024 is there for programs that use select(2).
fn allow_open_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it fails, fewer hosts are in flight at once: see `warn_of_forks`.
        let _as_before = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Fewer hosts in flight than were asked for are only slower, but who asked should know.
fn warn_of_forks(asked: u16) {
    let most = forks_max();
    if asked > most {
        remark(&format!("{asked} forks are more than this process may have open files for; using {most} (see `ulimit -n`)"));
    }
}

fn home(options: &Options) -> Result<Home, HomeError> {
    Home::find(options.home.as_deref())
}

fn open(options: &Options) -> Result<Fleet, Refusal> {
    let said = Mutex::new(BTreeSet::new());
    let once = move |text: &str| {
        // A job that is waited for is asked many times, and what is wrong stays wrong.
        if said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            remark(text);
        }
    };
    Ok(Fleet::at(home(options)?)?.with_warnings(once))
}

/// Why a command was not carried out: what to print, and the exit status.
#[derive(Debug)]
struct Refusal {
    status: u8,
    message: String,
}

impl Refusal {
    fn of(status: u8, error: &dyn Error) -> Self {
        Self { status, message: chain(error) }
    }

    fn internal(message: impl Into<String>) -> Self {
        Self { status: INTERNAL, message: message.into() }
    }

    fn usage(message: impl Into<String>) -> Self {
        Self { status: USAGE, message: message.into() }
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        let status = match &error {
            TargetError::Syntax { .. } => USAGE,
            TargetError::Unknown { .. } | TargetError::Nothing { .. } => NO_HOST,
            TargetError::Roster(_) => INTERNAL,
            TargetError::Job { source, .. } => match **source {
                JobError::Id(_) | JobError::Ambiguous { .. } => USAGE,
                JobError::Unknown { .. } | JobError::Damaged { .. } => NO_HOST,
                _ => INTERNAL,
            },
        };
        Self::of(status, &error)
    }
}

impl From<OfficeError> for Refusal {
    fn from(error: OfficeError) -> Self {
        match error {
            OfficeError::Authority(error) => error.into(),
            OfficeError::Ledger(_) => Self::of(INTERNAL, &error),
        }
    }
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        let status = if matches!(error, AuthorityError::Glob { .. }) { USAGE } else { INTERNAL };
        Self::of(status, &error)
    }
}

impl From<CheckError> for Refusal {
    fn from(error: CheckError) -> Self {
        Self::of(USAGE, &error)
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Check(error) => error.into(),
            CallError::Link(_) | CallError::Buckets(_) => Self::of(INTERNAL, &error),
        }
    }
}

impl From<FlowError> for Refusal {
    fn from(error: FlowError) -> Self {
        let status = match &error {
            FlowError::Problems(_) | FlowError::Ended { .. } => USAGE,
            FlowError::Log(FlowLogError::Unknown { .. } | FlowLogError::Ambiguous { .. }) => USAGE,
            FlowError::Log(FlowLogError::AtWork { .. }) | FlowError::NotEnded { .. } => NOT_ENDED,
            FlowError::Log(FlowLogError::Damaged { .. }) => HOST_UNKNOWN,
            FlowError::Log(FlowLogError::Io { .. } | FlowLogError::Newer(_))
            | FlowError::Link(_)
            | FlowError::Roster(_)
            | FlowError::Call(_)
            | FlowError::Runtime(_)
            | FlowError::Astray(_)
            | FlowError::Ids
            | FlowError::OtherCaller { .. } => INTERNAL,
        };
        Self::of(status, &error)
    }
}

impl From<ItemsError> for Refusal {
    fn from(error: ItemsError) -> Self {
        let status = if matches!(error, ItemsError::Keep { .. } | ItemsError::Kept { .. }) { INTERNAL } else { USAGE };
        Self::of(status, &error)
    }
}

impl From<AnyError> for Refusal {
    fn from(error: AnyError) -> Self {
        match error {
            AnyError::Call(error) => error.into(),
            AnyError::None { was_reached, .. } => Self::of(if was_reached { NOT_WELL } else { HOST_UNKNOWN }, &error),
        }
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Check(error) => error.into(),
            StartError::Parcel(_) => Self::of(USAGE, &error),
            StartError::Items(error) => error.into(),
            StartError::Link(_) | StartError::Log(_) | StartError::Full { .. } | StartError::Ids | StartError::Thread { .. } => {
                Self::of(INTERNAL, &error)
            }
        }
    }
}

impl From<DeployError> for Refusal {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Package(_) | DeployError::SshConfig { .. } => Self::of(USAGE, &error),
            error => Self::of(INTERNAL, &error),
        }
    }
}

impl From<RetryError> for Refusal {
    fn from(error: RetryError) -> Self {
        match error {
            RetryError::Job(error) => error.into(),
            RetryError::Target(error) => error.into(),
            RetryError::Start(error) => error.into(),
            RetryError::NoHost { .. } => Self::of(NO_HOST, &error),
        }
    }
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        let status = match &error {
            JobError::Id(_) | JobError::Ambiguous { .. } | JobError::NotAMember { .. } | JobError::NotKept { .. } => USAGE,
            JobError::IsMap { .. } => USAGE,
            JobError::Stuck { .. } => INTERNAL,
            JobError::Unknown { .. } | JobError::Damaged { .. } => HOST_UNKNOWN,
            JobError::Dispatching { .. } | JobError::NotEnded { .. } => NOT_ENDED,
            JobError::OtherCaller { .. }
            | JobError::Store(_)
            | JobError::Log(_)
            | JobError::Link(_)
            | JobError::Roster(_)
            | JobError::Buckets(_) => INTERNAL,
        };
        Self::of(status, &error)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever read us has read enough: to say so would be noise.
            io::ErrorKind::BrokenPipe => Self { status: UNREAD, message: String::new() },
            _ => Self { status: INTERNAL, message: format!("writing to standard output: {error}") },
        }
    }
}

macro_rules! internal {
    ($($error:ty),*) => {$(
        impl From<$error> for Refusal {
            fn from(error: $error) -> Self {
                Self::of(INTERNAL, &error)
            }
        }
    )*};
}

internal!(BucketError, DaemonError, FileError, FleetError, HomeError, LedgerError, LinkError, MapError, RosterError, ServeError);
