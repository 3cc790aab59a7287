//! The method's own process: made, told what to run, heard, and, if a rule says so, another user's.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::outcome::{ErrorCode, Failure, Verdict};
use common::protocol::map::Chunk;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid, pipe2};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cgroup::Cgroup;
use super::{Charge, Station, chunk, signal_below};
use crate::call::Token;
use crate::jobs::MethodRun;
use crate::modules::Context;
use crate::process;
use crate::progress::{PROGRESS_FD, Reporter};
use crate::user::{User, UserError};
use crate::variables;
use crate::worker::{Asker, Reach};

/// What an answer may need beyond its result: an error's message, and the names around it.
pub(super) const ANSWER_MARGIN_BYTES: usize = 64 * 1024;

/// What the method's process says of itself, as JSON, before it exits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ok(Value),
    Error(Failure),
}

impl Answer {
    /// What became of a method that answers this. A worker's task is another process's, which may have been stopped for a reason of its own.
    pub(super) fn verdict(self) -> Verdict {
        match self {
            Self::Ok(result) => Verdict::Ok { result },
            Self::Error(error) if error.is(ErrorCode::Cancelled) => Verdict::Cancelled { error },
            Self::Error(error) if error.is(ErrorCode::TimedOut) => Verdict::TimedOut { error },
            Self::Error(error) if error.is(ErrorCode::Denied) => Verdict::Denied { error },
            Self::Error(error) => Verdict::Failed { error },
        }
    }
}

/// The method's process, seen from its supervisor.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    /// Where its answer comes from, until it has come.
    pub(super) answer: Option<File>,
    /// Where its stdout and stderr come from, if they are kept, until it has closed them.
    pub(super) outputs: [Option<File>; 2],
    /// Where it reports how far it is, if that is kept, until nobody can any more.
    pub(super) progress: Option<File>,
    cgroup: Option<Cgroup>,
}

/// The ends of the pipes that are the child's.
struct Ends {
    answer: File,
    outputs: Vec<File>,
    /// None: what is reported is thrown away.
    progress: Option<File>,
}

/// Where a method's process finds itself.
struct Place<'a> {
    station: &'a Station,
    run: &'a MethodRun,
    chunk: Option<&'a Chunk>,
    supervisor: Pid,
}

impl Child {
    /// Forks the method's process.
    pub(super) fn start(
        station: &Station,
        run: &MethodRun,
        chunk: Option<&Chunk>,
        charge: Charge,
    ) -> Result<(Self, Charge), (nix::Error, Charge)> {
        let (ends, mut child) = match make_pipes(charge.keeps_output()) {
            Ok(made) => made,
            Err(errno) => return Err((errno, charge)),
        };
        child.cgroup = match (&charge, &station.cgroups) {
            (Charge::Job(job), Some(cgroups)) => cgroups.create(&job.spool),
            _ => None,
        };
        let state = (charge, child, ends);
        let place = Place { station, run, chunk, supervisor: getpid() };
        let forked = process::fork_with(state, |(charge, child, ends)| {
            let token = match &charge {
                Charge::Job(job) => Some(job.token.clone()),
                Charge::Call(_) => None,
            };
            if let Some(cgroup) = &child.cgroup {
                cgroup.join();
            }
            drop((charge, child));
            u8::from(become_method(&place, token.as_deref(), ends).is_err())
        });
        match forked {
            Ok((pid, (charge, mut child, _ends))) => {
                child.pid = pid;
                Ok((child, charge))
            }
            Err((errno, (charge, mut child, _ends))) => {
                child.leave_cgroup();
                Err((errno, charge))
            }
        }
    }

    /// Takes in what it has printed.
    pub(super) fn pump_output(&mut self, charge: &mut Charge) {
        let Some(files) = charge.output() else { return };
        let mut chunk = vec![0; 64 * 1024];
        for (output, file) in self.outputs.iter_mut().zip(files) {
            while let Some(pipe) = output {
                match pipe.read(&mut chunk) {
                    Ok(count) if count > 0 => file.take(chunk.get(..count).unwrap_or_default()),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    _closed => *output = None,
                }
            }
        }
    }

    /// Sends `signal` to the method's process and to all that it started.
    pub(super) fn signal_tree(&self, signal: Signal) {
        if let (Some(cgroup), Signal::SIGKILL) = (&self.cgroup, signal) {
            cgroup.kill();
        }
        // Root may leave its cgroup, and `su` does; nothing leaves its ancestors.
        signal_below(getpid().as_raw(), signal);
    }

    /// Removes the cgroup, which is empty now.
    pub(super) fn leave_cgroup(&mut self) {
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
    }
}

fn make_pipes(keeps_output: bool) -> nix::Result<(Ends, Child)> {
    let make = || {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // Only the supervisor's end must not block: methods expect ordinary pipes.
        nix::fcntl::fcntl(read.as_fd(), nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        nix::Result::Ok((File::from(read), File::from(write)))
    };
    let (answer_read, answer_write) = make()?;
    let mut ends = Ends { answer: answer_write, outputs: Vec::new(), progress: None };
    let mut child = Child { pid: Pid::from_raw(0), answer: Some(answer_read), outputs: [None, None], progress: None, cgroup: None };
    if keeps_output {
        for output in &mut child.outputs {
            let (read, write) = make()?;
            *output = Some(read);
            ends.outputs.push(write);
        }
        let (read, write) = make()?;
        (child.progress, ends.progress) = (Some(read), Some(write));
    }
    Ok((ends, child))
}

/// In the new process: becomes one that a method can expect, runs the method, answers.
fn become_method(place: &Place<'_>, token: Option<&Token>, ends: Ends) -> std::io::Result<()> {
    let Place { station, run, chunk, supervisor } = *place;
    die_with(supervisor)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(ends.outputs.first().unwrap_or(&null))?;
    dup2_stderr(ends.outputs.get(1).unwrap_or(&null))?;
    std::env::set_current_dir("/")?;
    // Before it becomes another, who could not reach them.
    let workers = (run.method.module() == "worker").then(|| reach_workers(station, run, chunk));
    let embodied = run.run_as.as_deref().map_or(Ok(()), |name| embody(name, &ends));
    // Whoever changes who it is, is not told of its parent's death any more; and of a name that is looked up files may be left open.
    die_with(supervisor)?;
    let Ends { answer, outputs, progress } = ends;
    drop(outputs);
    let mut answer = File::from(process::move_away(answer.into())?);
    let progress = process::open_as(PROGRESS_FD, progress.unwrap_or(null).into())?;
    let kept: Vec<RawFd> = workers.iter().flat_map(Reach::files).chain([answer.as_raw_fd(), progress.as_raw_fd()]).collect();
    process::close_all_but(&kept)?;
    set_own_variables(station, run, token);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    let progress = Reporter::new(progress);
    let answer_of = |args| answer_of(station, run, args, &progress, workers.as_ref());
    let embodied = embodied.map_err(|error| Failure::of_kind("run_as", format!("{}: {} did not run: {error}", station.minion, run.method)));
    if let Some(chunk) = chunk {
        return chunk::work(station, run, chunk, embodied.map(|()| answer_of), &mut answer);
    }
    let said = match embodied {
        Ok(()) => answer_of(run.args.clone()),
        Err(failure) => Answer::Error(failure),
    };
    answer.write_all(&encode(&said, station.limits.result_max_bytes))
}

/// Tells the method's process, and all that it starts, what it is; and a job by what it is known when it submits calls.
fn set_own_variables(station: &Station, run: &MethodRun, token: Option<&Token>) {
    // A minion that was itself started by a job has that job's.
    let is_others = |name: &str| variables::ALL.contains(&name) || variables::OF_SERVICE_MANAGER.contains(&name);
    process::keep_variables(|name| !name.to_str().is_some_and(is_others));
    process::set_variable(variables::NAME, station.minion.as_str());
    process::set_variable(variables::PROGRESS_FD, PROGRESS_FD.to_string());
    let Some(token) = token else { return };
    process::set_variable(variables::CALL, run.call_id.job().as_str());
    process::set_variable(variables::JOB, token.job().as_str());
    process::set_variable(variables::CALLER, run.caller.as_str());
    process::set_variable(variables::TOKEN, token.exposed());
    process::set_variable(variables::SUBMIT_SOCKET, &station.submit_socket);
}

/// Sees to it that this process dies with `supervisor`, which is its parent unless it is dead already.
fn die_with(supervisor: Pid) -> std::io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == supervisor {
        return Ok(());
    }
    Err(std::io::Error::other("the supervisor died before its death could be heard of"))
}

/// Becomes the user of that name, whose are its stdout and stderr, and the pipe for its progress, from now on, where they are kept. After an error it must run nothing.
fn embody(name: &str, ends: &Ends) -> Result<(), UserError> {
    let user = User::find(name)?;
    for output in ends.outputs.iter().chain(&ends.progress) {
        user.hand_over(output)?;
    }
    user.embody()
}

/// The connections of a call of `worker.*`. Of a chunk each item names its own; that of the first is waited for where it is about to start.
fn reach_workers(station: &Station, run: &MethodRun, chunk: Option<&Chunk>) -> Reach {
    let spec = station.registry.find(&run.method).map(|method| method.spec());
    let first = chunk.and_then(|chunk| spec?.bind(chunk.items.first()?).ok());
    let wanted = first.as_ref().unwrap_or(&run.args).get("worker").and_then(Value::as_str);
    Reach::open(&station.workers, Asker { by: run.caller.to_string(), scope: run.scope }, wanted)
}

fn answer_of(station: &Station, run: &MethodRun, args: Value, progress: &Reporter, workers: Option<&Reach>) -> Answer {
    let Some(method) = station.registry.find(&run.method) else {
        return Answer::Error(station.registry.unknown(&run.method));
    };
    let context = Context {
        minion: &station.minion,
        registry: &station.registry,
        result_max_bytes: station.limits.result_max_bytes,
        packages: Some(&station.packages),
        workers,
        progress,
    };
    match catch_unwind(AssertUnwindSafe(|| method.run(args, &context))) {
        Ok(Ok(result)) => Answer::Ok(result),
        Ok(Err(failure)) => Answer::Error(failure),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("{} panicked: {}", run.method, said.unwrap_or("no message"));
            Answer::Error(Failure::new(ErrorCode::Crashed, message).with_data(json!({ "type": "panic" })))
        }
    }
}

/// The answer as JSON, or, if it is larger than the host takes, that it is.
pub(super) fn encode(answer: &Answer, result_max_bytes: usize) -> Vec<u8> {
    /// What stands around a result: `{"ok":…}`.
    const FRAME_BYTES: usize = 16;
    let text = serde_json::to_vec(answer).unwrap_or_default();
    let margin = match answer {
        Answer::Ok(_) => FRAME_BYTES,
        Answer::Error(_) => ANSWER_MARGIN_BYTES,
    };
    if text.len() <= result_max_bytes.saturating_add(margin) {
        return text;
    }
    let message = format!("its result of {} bytes is larger than limits.result_max_bytes, {result_max_bytes}, of this host", text.len());
    serde_json::to_vec(&Answer::Error(Failure::new(ErrorCode::ResultTooLarge, message))).unwrap_or_default()
}
