//! The command line, and what each of its words does.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{CommandFactory as _, Parser, Subcommand};
use common::shown::chain;
use futures_util::future::join;
use nix::unistd::geteuid;
use service::audit::Audit;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::acl::Acl;
use crate::check::{self, check};
use crate::config::Config;
use crate::dispatch::{Door, Parts};
use crate::jobs::Jobs;
use crate::modules::Registry;
use crate::service_manager::SignsOfLife;
use crate::spawner::{self, Origin};
use crate::submit::{self, Submissions, SubmitLimits};
use crate::worker::name::WorkerName;
use crate::worker::{self, task_command};
use crate::{enroll, keeper, renewal, server_user, service_manager, upgrade};

/// Where the configuration is unless it is said.
const DEFAULT_CONFIG: &str = "/etc/minion/minion.toml";
/// Threads that carry connections. A minion serves few callers, and each thread costs memory.
const WORKERS: usize = 2;
/// Threads for files, at most.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long such a thread stays when there is nothing to do.
const BLOCKING_THREAD_KEPT: Duration = Duration::from_secs(5);
/// Enough for a request of the deepest nesting that is read.
const THREAD_STACK_BYTES: usize = 1024 * 1024;
/// How long blocking work may hold up the end of the process.
const RUNTIME_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The daemon on each host of an Overlord fleet: checks who asks, runs the method, remembers the outcome.
#[derive(Debug, Parser)]
#[command(name = "minion", version)]
struct Cli {
    /// The configuration [default: /etc/minion/minion.toml; of `submit` and `wait`: that of the job's minion]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve callers until told to stop.
    Serve {
        /// The spawner is a service of its own, as under systemd; else it is started with the server.
        #[arg(long)]
        spawner_unit: bool,
        /// Where there is no certificate yet, wait until `minion enroll` has put it there, rather than fail.
        #[arg(long)]
        await_enrolment: bool,
        /// The process that has started this server, and the spawner as well.
        #[arg(long, hide = true, value_name = "PID")]
        keeper: Option<i32>,
    },
    /// Ask the fleet's authority for this host's certificate.
    Enroll(enroll::Request),
    /// Say everything that is wrong with the configuration and what it points at.
    Check,
    /// Call a method of this host, or start another job, from within a job: for its caller, as long as it runs.
    ///
    /// Prints what came of it as one JSON line: {"state": "ok", "result": ...}, or of a job {"minion_job_id": ..., "state": ...}. Exit status: 0 ok; 2 it
    /// failed, was denied, cancelled or timed out; 4 undelivered or lost; 64 usage, and where there is no job; 130 interrupted.
    Submit(submit::Words),
    /// Fetch a task, and return what came of it, from within a worker that is written in a shell.
    #[command(subcommand)]
    Task(task_command::Words),
    /// Be the daemon of a resident worker.
    #[command(hide = true)]
    Worker {
        /// Its name: that of its file in `workers_dir`.
        name: WorkerName,
    },
    /// Wait for jobs of this host to end, from within a job, which has no place among `limits.jobs_max` meanwhile.
    ///
    /// Prints how each stands as one JSON line, in the order of the ids, once all have ended. Exit status: as of `minion submit`, all together; 75 where one has
    /// not ended within the timeout.
    Wait(submit::WaitWords),
    /// Install the package of an upgrade that a job has prepared.
    #[command(hide = true)]
    UpgradeWorker {
        /// Where it was prepared.
        folder: PathBuf,
    },
    /// Make a package of what is installed.
    #[command(hide = true)]
    Repack {
        /// The file of the package.
        to: PathBuf,
    },
    /// Fork what runs methods.
    #[command(hide = true)]
    Spawner {
        /// The server, or the keeper, started it, and holds the other end of its stdin.
        #[arg(long)]
        of_server: bool,
    },
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let config = cli.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    let done = match cli.verb {
        Verb::Serve { keeper: Some(keeper), .. } => serve(config, Beside::Kept(keeper), false),
        Verb::Serve { spawner_unit, await_enrolment, .. } => {
            serve(config, if spawner_unit { Beside::Unit } else { Beside::Nothing }, await_enrolment)
        }
        Verb::Spawner { of_server } => spawn(config, if of_server { Origin::Server } else { Origin::Unit }),
        Verb::UpgradeWorker { folder } => upgrade::work(&folder).map(|()| ExitCode::SUCCESS).context("the upgrade has not come to its end"),
        Verb::Repack { to } => upgrade::repack(&to).map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::msg),
        Verb::Worker { name } => be_worker(config, name),
        Verb::Task(words) => task_command::run(&words).map(|()| ExitCode::SUCCESS),
        Verb::Enroll(request) => return enroll::run(config, request),
        Verb::Check => return report(config),
        Verb::Submit(words) => return submit::run(cli.config.as_deref(), words),
        Verb::Wait(words) => return submit::run_wait(cli.config.as_deref(), &words),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The definitions of the command line, of which packages make manual pages and completions.
#[must_use]
pub fn definitions() -> clap::Command {
    Cli::command()
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("MINION_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .with_target(false)
        .init();
}

fn report(path: &Path) -> ExitCode {
    let (text, code) = match check(path) {
        Ok(sound) => {
            for hint in &sound.hints {
                warn!("{hint}");
            }
            let config = sound.config;
            let line =
                format!("{}: minion {} on {}, certificate good until {}\n", path.display(), config.name, config.listen, sound.not_after);
            (line, ExitCode::SUCCESS)
        }
        Err(problems) => (problems.iter().map(|problem| format!("{problem}\n")).collect(), ExitCode::FAILURE),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One thread, no runtime, no store: what forks must have none of them.
fn spawn(path: &Path, origin: Origin) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    spawner::run(&config, BTreeSet::from([config.name.clone()]), origin)?;
    Ok(ExitCode::SUCCESS)
}

/// Likewise.
fn be_worker(path: &Path, name: WorkerName) -> anyhow::Result<ExitCode> {
    worker::run(&Config::load(path)?, name)?;
    Ok(ExitCode::SUCCESS)
}

/// What there is beside a server when it starts.
enum Beside {
    /// Nothing yet.
    Nothing,
    /// A spawner that is a unit of its own.
    Unit,
    /// A keeper, which has this process number, and a spawner of his.
    Kept(i32),
}

/// Serves; as root for a user, by way of the keeper, or as that user from here on.
fn serve(path: &Path, beside: Beside, await_enrolment: bool) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let user = config.user.as_ref().filter(|_| geteuid().is_root());
    let origin = match (&beside, user) {
        (Beside::Nothing, Some(_)) => return Ok(keeper::keep(path)?),
        (Beside::Nothing, None) => Origin::Server,
        (Beside::Unit | Beside::Kept(_), _) => Origin::Unit,
    };
    match user {
        Some(user) => user.become_for_good()?,
        None if geteuid().is_root() => {
            warn!(
                "the server runs as root; write `user = \"…\"` into {}, the name of a user that may do nothing else here",
                path.display()
            );
        }
        // What the server starts itself must be able to do all that its user may.
        None if origin == Origin::Unit => server_user::confine().context("taking rights from the server")?,
        None => {}
    }
    if let Beside::Kept(keeper) = beside {
        keeper::bind_to(keeper)?;
    }
    if await_enrolment {
        enroll::await_certificate(&config);
    }
    serve_calls(&config, origin).map(|()| ExitCode::SUCCESS)
}

fn serve_calls(config: &Config, origin: Origin) -> anyhow::Result<()> {
    let trust = Arc::new(check::open_trust(config).map_err(|problem| anyhow!(problem))?);
    let until = trust.now().credentials().not_after();
    let jobs = Arc::new(Jobs::open(config, origin)?);
    let audit = Arc::new(Audit::open(&config.audit_log(), config.audit)?);
    let acl = Arc::new(Acl::open(&config.acl_dir));
    let registry = Arc::new(Registry::builtin());
    let parts = Parts { acl, audit, registry, jobs: Arc::clone(&jobs), trust: Arc::clone(&trust) };
    let door = Arc::new(Door::new(config.name.clone(), parts, &config.limits));
    let runtime = runtime().context("starting threads")?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(config.listen).await.with_context(|| format!("listening on {}", config.listen))?;
        let stop = service::stop_on_signals()?;
        jobs.stop_waiting_on(stop.clone());
        let submit_socket = config.submit_socket();
        let submissions = Submissions::listen(&submit_socket, SubmitLimits::from(&config.limits));
        let submissions = submissions.with_context(|| format!("listening at {} for what jobs submit", submit_socket.display()))?;
        let submissions = submissions.serve(Arc::clone(&door), stop.clone());
        let tending = tokio::spawn(jobs.tend());
        let renewing = tokio::spawn(renewal::tend(Arc::clone(&trust), config.clone()));
        let address = listener.local_addr()?;
        info!(%address, name = %config.name, %until, "listening");
        service_manager::ready(&format!("{} listens on {address}", config.name));
        tokio::select! {
            ((), ()) = join(service::serve(listener, trust, door, Arc::new(config.limits.listener()), stop), submissions) => Ok(()),
            ended = tending => Err(match ended {
                Ok(Err(error)) => anyhow!(error).context("listening for the ends of jobs"),
                Ok(Ok(())) => anyhow!("the tending of jobs ended, which is a bug of the minion"),
                Err(error) => anyhow!(error).context("the tending of jobs broke off, which is a bug of the minion"),
            }),
            never = give_signs_of_life() => match never {},
            Err(error) = renewing => Err(anyhow!(error).context("the renewing of the certificate broke off, which is a bug of the minion")),
        }
    });
    runtime.shutdown_timeout(RUNTIME_STOP_TIMEOUT);
    served
}

/// As long as what carries the connections turns.
async fn give_signs_of_life() -> Infallible {
    let mut signs = SignsOfLife::begin();
    let Some(every) = signs.every() else { return pending().await };
    loop {
        signs.give();
        tokio::time::sleep(every).await;
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_KEPT)
        .thread_stack_size(THREAD_STACK_BYTES)
        .enable_all()
        .build()
}
