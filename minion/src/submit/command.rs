//! `minion submit` and `minion wait`: what a job types to call a method of its own host, to start another job there, and to wait for that. It says what is
//! meant, and prints what comes of it; how it is asked is the `errand`'s.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use common::job::MinionJobId;
use common::method::MethodName;
use common::outcome::Outcome;
use common::period;
use common::protocol::{ASYNC_PREFIX, Accepted, Arguments, JobReport, WAITED_MAX};
use common::shown::{SAID_MAX_LETTERS, harmless_line};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use super::Answer;
use super::errand::{Kind, SubmitError, Submitter};

/// The statuses of the process, as the overlord has them.
const FAILURE: u8 = 1;
const USAGE: u8 = 64;
const NOT_ENDED: u8 = 75;
const INTERRUPTED: u8 = 130;

/// The largest JSON that is read from standard input.
const STDIN_MAX_BYTES: u64 = 64 << 20;

/// How long a method may take, or the host to take on a job, if nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// What is submitted.
#[derive(Debug, clap::Args)]
pub struct Words {
    /// What to run on this host
    #[arg(value_name = "MODULE.METHOD")]
    method: MethodName,
    /// The method's arguments; what begins with `-` stands behind a `--`
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    args: Vec<String>,
    /// The arguments as a JSON list or object; `-` reads it from standard input
    #[arg(long, value_name = "JSON", conflicts_with = "args")]
    json: Option<String>,
    /// Start a job, and do not wait for it; `minion wait ID` does
    #[arg(long = "async")]
    as_job: bool,
    /// Start a job, and wait for its end; the job that waits has no place among `limits.jobs_max` meanwhile
    #[arg(long, conflicts_with = "as_job")]
    wait: bool,
    /// How long the method may take, or the host to accept the job [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    timeout: Option<Duration>,
    /// How long the job may run [default: as long as the host lets it]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    job_timeout: Option<Duration>,
}

/// What is waited for.
#[derive(Debug, clap::Args)]
pub struct WaitWords {
    /// The jobs, by the ids that `minion submit --async` gave
    #[arg(value_name = "ID", required = true)]
    ids: Vec<MinionJobId>,
    /// How long to wait at most [default: until they have ended]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    timeout: Option<Duration>,
}

/// Submits what the words say to the server of the configuration `config`, or else of the job that this process belongs to, and prints what comes of
/// it: one JSON line.
#[must_use]
pub fn run(config: Option<&Path>, words: Words) -> ExitCode {
    let read = Submitter::of_environment(config).and_then(|submitter| Ok((submitter, arguments(&words)?)));
    match read {
        Ok((submitter, args)) => to_the_end(submit(&submitter, &words, args)),
        Err(error) => usage(&error),
    }
}

/// Waits for the jobs that the words name, and prints how each stands: a JSON line each, in their order.
#[must_use]
pub fn run_wait(config: Option<&Path>, words: &WaitWords) -> ExitCode {
    match Submitter::of_environment(config) {
        Ok(submitter) => to_the_end(wait(&submitter, &words.ids, words.timeout)),
        Err(error) => usage(&error),
    }
}

fn usage(error: &SubmitError) -> ExitCode {
    say(&error.to_string());
    USAGE.into()
}

/// Does it, unless it is interrupted.
fn to_the_end(errand: impl Future<Output = u8>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("waiting for the answer: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let status = runtime.block_on(async {
        tokio::select! {
            status = errand => status,
            _ = tokio::signal::ctrl_c() => INTERRUPTED,
        }
    });
    // A thread may be connecting still.
    runtime.shutdown_background();
    status.into()
}

async fn submit(submitter: &Submitter, words: &Words, args: Arguments) -> u8 {
    let within = words.timeout.unwrap_or(DEFAULT_TIMEOUT);
    if !words.as_job && !words.wait {
        return print(submitter.errand(Kind::Call, words.method.to_string(), args, Some(within), within).run().await);
    }
    let method = format!("{ASYNC_PREFIX}{}", words.method);
    let answer = submitter.errand(Kind::Job, method, args, words.job_timeout, within).run().await;
    match &answer {
        Answer::Result(accepted) if words.wait => match Accepted::deserialize(accepted) {
            Ok(accepted) => wait(submitter, &[accepted.minion_job_id], None).await,
            Err(_) => print(answer),
        },
        _ => print(answer),
    }
}

/// Waits for the jobs, and prints how they stand, as many at a time as fit into an answer.
async fn wait(submitter: &Submitter, ids: &[MinionJobId], within: Option<Duration>) -> u8 {
    let until = within.and_then(|within| Instant::now().checked_add(within));
    let (mut left, mut status) = (ids, 0);
    while !left.is_empty() {
        let asked = left.get(..WAITED_MAX).unwrap_or(left);
        let outcome = match submitter.wait(asked, until).run(say).await {
            Some(Answer::Result(outcome)) => outcome,
            Some(refusal) => return with(status, print(refusal)),
            None => return NOT_ENDED,
        };
        let Some(reports) = outcome.pointer("/result/jobs").and_then(Value::as_array).filter(|reports| !reports.is_empty()) else {
            return with(status, print(Answer::Result(outcome)));
        };
        for report in reports {
            status = with(status, print(Answer::Result(report.clone())));
        }
        left = left.get(reports.len()..).unwrap_or_default();
    }
    status
}

/// The status of both: that one has not ended stands for all, and other statuses are bits.
fn with(so_far: u8, next: u8) -> u8 {
    match (so_far, next) {
        (NOT_ENDED, _) | (_, NOT_ENDED) => NOT_ENDED,
        (so_far, bits) => so_far | bits,
    }
}

fn arguments(words: &Words) -> Result<Arguments, SubmitError> {
    if words.job_timeout.is_some() && !words.as_job && !words.wait {
        return Err(SubmitError::Arguments("--job-timeout is for a job: --async or --wait".to_owned()));
    }
    let Some(json) = &words.json else { return Ok(Arguments::Words(words.args.clone())) };
    let mut read = String::new();
    if json == "-" {
        let stdin = io::stdin().lock().take(STDIN_MAX_BYTES).read_to_string(&mut read);
        stdin.map_err(|error| SubmitError::Arguments(format!("reading the arguments from standard input: {error}")))?;
    } else {
        json.clone_into(&mut read);
    }
    Arguments::from_json(&read).map_err(|error| SubmitError::Arguments(error.to_string()))
}

/// Prints what came of it: the result of the call, or the job; a refusal as the outcome that it means. Gives the exit status.
fn print(answer: Answer<Value>) -> u8 {
    let (shown, status) = match answer {
        Answer::Result(result) => {
            let status = status(&result);
            (Ok(result), status)
        }
        Answer::Error(failure) => {
            say(&failure.message);
            let outcome = Outcome::not_run(failure.into_refusal(), Timestamp::now());
            let status = outcome.verdict.state().exit_bit();
            (serde_json::to_value(outcome), status)
        }
    };
    let printed = shown.map_err(io::Error::from).and_then(|shown| writeln!(io::stdout(), "{}", plain_json(&shown)));
    match printed {
        Ok(()) => status,
        Err(error) => {
            say(&format!("printing what came of it: {error}"));
            FAILURE
        }
    }
}

/// The exit status that a result means. Of a bad end is told on stderr, too; what is not understood is shown, and is no success.
fn status(result: &Value) -> u8 {
    if Accepted::deserialize(result).is_ok() {
        return 0;
    }
    let Ok(outcome) = Outcome::deserialize(result) else {
        return if JobReport::deserialize(result).is_ok() { NOT_ENDED } else { FAILURE };
    };
    if let Some(error) = outcome.verdict.error() {
        say(&error.message);
    }
    outcome.verdict.state().exit_bit()
}

/// The JSON text, the same to a parser, in letters that do nothing to a terminal. All others can only stand in strings there.
fn plain_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, ' '..='~') {
            plain.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}")));
        }
    }
    plain
}

/// Talk, for stderr, fit for a terminal. That nobody hears it changes nothing.
fn say(text: &str) {
    let _unheard = io::stderr().write_all(format!("minion: {}\n", harmless_line(text, SAID_MAX_LETTERS)).as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_printed_is_the_same_json_and_plain() {
        for value in [json!("plain"), json!({ "ü": "\u{9b}31m\u{1b}[0m\n😀\u{202e}" }), json!([1.5, null, "\"\\"])] {
            let text = plain_json(&value);
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
