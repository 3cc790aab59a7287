//! `overlord job-logs ID [HOST] [--follow]`.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use common::identity::MinionName;
use common::outcome::bytes_value;
use common::protocol::Stream;
use serde_json::{Map, Value, json};

use super::call::stop_on_interrupt;
use super::{HOST_UNKNOWN, INTERRUPTED, OK, Refusal, warn_of_forks};
use crate::cli::JobLogsArgs;
use crate::fleet::{Fleet, Stop};
use crate::jobs::logs::{Gathered, Logs, QueuedEvent, too_much};
use crate::jobs::{Follow, HostLogs, LogEnd, LogEvent};
use crate::output::logs::{LogText, Naming};
use crate::output::{Format, Output, is_unread_within, relay_to_stderr, remark};

/// How often it is looked, while no host says anything, whether standard output is still read.
const READER_LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(fleet: &Fleet, output: Output, args: &JobLogsArgs) -> Result<u8, Refusal> {
    let follow = if args.follow { Follow::ToTheEnd } else { Follow::SoFar };
    if follow == Follow::ToTheEnd && output.format() == Format::Json {
        return Err(Refusal::usage("one JSON document cannot be followed while it grows: use --output jsonl with --follow"));
    }
    let job = fleet.job(&args.job.id)?;
    let mut logs = Logs::of(&job, args.host.as_ref())?;
    if let Some(child) = &args.child {
        logs.turn_to_child(child);
    }
    if follow == Follow::ToTheEnd {
        warn_of_forks(u16::try_from(logs.hosts()).unwrap_or(u16::MAX));
    }
    let stop = Stop::new();
    stop_on_interrupt(stop.clone());
    let mut printer = Printer::new(output, logs.hosts());
    let printed = logs.read(follow, &stop, |parcels| printer.print(parcels))?;
    let status = printed.and_then(|status| printer.close(job.id().as_str()).map(|()| status))?;
    Ok(if stop.is_stopped() { INTERRUPTED } else { status })
}

/// Prints what comes, in the form that is wanted.
struct Printer {
    output: Output,
    text: LogText,
    gathered: Gathered,
}

impl Printer {
    fn new(output: Output, hosts: usize) -> Self {
        let naming = if hosts > 1 { Naming::Named } else { Naming::Bare };
        Self { output, text: LogText::new(naming), gathered: Gathered::default() }
    }

    /// Prints until nothing more comes, or nobody reads on. Gives the exit status.
    fn print(&mut self, parcels: &Receiver<QueuedEvent>) -> io::Result<u8> {
        let mut status = OK;
        loop {
            match parcels.recv_timeout(READER_LOOK_EVERY) {
                Ok(QueuedEvent { event, .. }) => status |= self.take(event)?,
                Err(RecvTimeoutError::Timeout) if is_unread_within(Duration::ZERO) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(status | self.overfull()),
            }
        }
    }

    /// Gives the bits that the event sets in the exit status.
    fn take(&mut self, event: LogEvent) -> io::Result<u8> {
        let mut status = OK;
        match &event {
            LogEvent::Piece { host, stream, bytes, next } => match self.output.format() {
                Format::Text => {
                    let text = self.text.take(host, *stream, bytes);
                    self.print_text(*stream, &text)?;
                }
                Format::Jsonl => {
                    self.output.print_json(&json!({ "host": host, "stream": stream, "data": bytes_value(bytes), "next": next }))?;
                }
                Format::Json => {}
            },
            LogEvent::Away { host, reason } => remark(&format!("{host} does not answer, and is asked again until it does: {reason}")),
            LogEvent::End { host, end } => {
                self.print_rest(host)?;
                if let LogEnd::Unread(reason) = end {
                    tell_unread(host, reason);
                    status = HOST_UNKNOWN;
                }
            }
        }
        if self.output.format() == Format::Json {
            self.gathered.take(event);
        }
        Ok(status)
    }

    /// What was too much for one document is told at its end.
    fn overfull(&self) -> u8 {
        for host in &self.gathered.cut {
            remark(&format!("{host}: not all of its output is here: {}", too_much()));
        }
        if self.gathered.cut.is_empty() { OK } else { HOST_UNKNOWN }
    }

    /// Prints what is left: the last lines of hosts that did not come to an end, or the document.
    fn close(&mut self, job: &str) -> io::Result<()> {
        for host in self.text.hosts() {
            self.print_rest(&host)?;
        }
        if self.output.format() != Format::Json {
            return Ok(());
        }
        let hosts: Map<String, Value> = self.gathered.hosts.iter().map(|(host, logs)| (host.to_string(), document(logs))).collect();
        self.output.print_json(&json!({ "job_id": job, "hosts": hosts }))
    }

    fn print_rest(&mut self, host: &MinionName) -> io::Result<()> {
        for (stream, text) in self.text.end(host) {
            self.print_text(stream, &text)?;
        }
        Ok(())
    }

    fn print_text(&mut self, stream: Stream, text: &str) -> io::Result<()> {
        match stream {
            Stream::Stdout => self.output.relay(text),
            Stream::Stderr => {
                relay_to_stderr(text);
                Ok(())
            }
        }
    }
}

fn tell_unread(host: &MinionName, reason: &str) {
    remark(&format!("{host}: its output cannot be read to its end: {reason}"));
}

fn document(logs: &HostLogs) -> Value {
    let (state, error) = match &logs.end {
        Some(LogEnd::Read(state)) => (json!(state), Value::Null),
        Some(LogEnd::Unread(reason)) => (Value::Null, json!(reason)),
        None => (Value::Null, Value::Null),
    };
    json!({ "stdout": bytes_value(&logs.stdout), "stderr": bytes_value(&logs.stderr), "state": state, "error": error })
}
