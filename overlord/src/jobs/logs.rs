//! What a job writes on its hosts, read from all of them at once, while it runs or afterwards. Prints nothing, and keeps nothing.

pub(crate) mod answer;
mod reading;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use common::identity::MinionName;
use common::job::{CallId, HostRecord, HostState, MinionJobId};
use common::protocol::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::poll::Unheard;
use super::{Job, JobError, JobStatus};
use crate::buckets::fan_out_each;
use crate::fleet::Stop;
use crate::hosts::Host;
use reading::Reading;

/// The most pieces that wait for whoever takes them. A host whose piece finds no room is not asked for the next one.
const PIECES_WAITING_MAX: usize = 64;

/// The most that [`Job::logs`] keeps in memory, of all hosts together.
pub const LOGS_TOGETHER_MAX_BYTES: usize = 256 << 20;

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// What is there now.
    SoFar,
    /// All that comes, until the job has ended on every host.
    ToTheEnd,
}

/// Something that happens while a job's output is read.
#[derive(Debug, Clone, PartialEq)]
pub enum LogEvent {
    /// The job wrote this. Pieces of one stream of one host come in order, without gaps.
    Piece {
        /// Where.
        host: MinionName,
        /// To which stream.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
        /// The offset in the stream of the byte behind them.
        next: u64,
    },
    /// The host does not answer any more, and is asked again until it does; told once each time that it goes.
    Away {
        /// Which.
        host: MinionName,
        /// Why, for a person.
        reason: String,
    },
    /// Nothing more will come from this host.
    End {
        /// Which.
        host: MinionName,
        /// How far it was read.
        end: LogEnd,
    },
}

/// How far a host's output was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEnd {
    /// As far as was wanted; this is the job's state there.
    Read(HostState),
    /// Not at all, or not so far, for this reason.
    Unread(String),
}

/// What a job has written on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLogs {
    /// To its standard output.
    pub stdout: Vec<u8>,
    /// To its standard error.
    pub stderr: Vec<u8>,
    /// How far it was read; none if that was stopped before.
    pub end: Option<LogEnd>,
}

/// The output of several hosts, in memory, within a bound.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) hosts: BTreeMap<MinionName, HostLogs>,
    room_bytes: usize,
    /// The hosts of which something was left out for want of room.
    pub(crate) cut: Vec<MinionName>,
}

/// An event on its way, with its place among those that wait.
pub(crate) struct QueuedEvent {
    pub(crate) event: LogEvent,
    _place: Option<OwnedSemaphorePermit>,
}

/// Where the events of one host go.
struct Sink {
    parcels: Sender<QueuedEvent>,
    places: Arc<Semaphore>,
}

/// A host whose output is to be read.
struct Source {
    host: Host,
    minion_job_id: MinionJobId,
    /// The host has not said yet that it holds the job.
    is_unconfirmed: bool,
    /// It is a job that the job has submitted there.
    is_child: bool,
}

/// The output of a job that is to be read.
pub(crate) struct Logs {
    job: Job,
    sources: Vec<Source>,
    /// Those that cannot be asked, or need not be, and why.
    unread: Vec<(MinionName, String)>,
}

impl Job {
    /// What the job has written so far on each of its hosts, or on `only` that one, up to [`LOGS_TOGETHER_MAX_BYTES`] together.
    ///
    /// # Errors
    /// The host is not one of the job's, hosts cannot be asked at all, or the log or store cannot be read. That one host cannot be read
    /// stands in its [`HostLogs`].
    pub fn logs(&self, only: Option<&MinionName>) -> Result<BTreeMap<MinionName, HostLogs>, JobError> {
        let mut gathered = Gathered::default();
        self.logs_each(only, Follow::SoFar, &Stop::new(), |event| gathered.take(event))?;
        Ok(gathered.hosts)
    }

    /// Gives what the job has written, and with [`Follow::ToTheEnd`] what it goes on to write, to `each` as it comes, on the caller's thread,
    /// from all hosts at once or from `only` that one. Each host that is read to an end is told of by a [`LogEvent::End`]; once it is stopped,
    /// none is any more.
    ///
    /// # Errors
    /// As [`Job::logs`].
    pub fn logs_each(
        &self,
        only: Option<&MinionName>,
        follow: Follow,
        stop: &Stop,
        mut each: impl FnMut(LogEvent),
    ) -> Result<(), JobError> {
        Logs::of(self, only)?.read(follow, stop, |parcels| {
            for parcel in parcels {
                each(parcel.event);
            }
        })
    }
}

impl Logs {
    pub(crate) fn of(job: &Job, only: Option<&MinionName>) -> Result<Self, JobError> {
        let JobStatus { record, .. } = job.known()?;
        job.check_no_map(&record.header, "what its items gave is in `overlord job-status ID --output jsonl`")?;
        if let Some(host) = only.filter(|host| !record.hosts.contains_key(host)) {
            return Err(JobError::NotAMember { job: job.id.clone(), host: host.clone() });
        }
        let roster = job.fleet.roster()?;
        let mut logs = Self { job: job.clone(), sources: Vec::new(), unread: Vec::new() };
        for (name, known) in record.hosts.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
            let minion_job_id = known.minion_job_id.clone();
            // It follows from these three, so that a host can be asked of which it is not known yet whether the job has reached it.
            let derived = || MinionJobId::derive(name, &record.header.caller, &CallId::new(job.id.clone(), known.attempt));
            match (never_started(known), roster.find(name)) {
                (Some(reason), _) => logs.unread.push((name.clone(), reason)),
                (None, None) => logs.unread.push((name.clone(), Unheard::Unlisted.reason(name))),
                (None, Some(host)) => logs.sources.push(Source {
                    host: host.clone(),
                    is_unconfirmed: minion_job_id.is_none(),
                    is_child: false,
                    minion_job_id: minion_job_id.unwrap_or_else(derived),
                }),
            }
        }
        Ok(logs)
    }

    /// From now on it is about the job of this id that the job has submitted on each of its hosts. Whether it has, and whether the caller may read it, the host
    /// knows.
    pub(crate) fn turn_to_child(&mut self, child: &MinionJobId) {
        for source in &mut self.sources {
            (source.minion_job_id, source.is_unconfirmed, source.is_child) = (child.clone(), false, true);
        }
    }

    /// How many hosts are to be read, those that cannot be included.
    pub(crate) fn hosts(&self) -> usize {
        self.sources.len() + self.unread.len()
    }

    /// Reads, while `collect` takes what comes from a channel, which closes behind the last. When it returns, the reading ends.
    pub(crate) fn read<C>(self, follow: Follow, stop: &Stop, collect: impl FnOnce(&Receiver<QueuedEvent>) -> C) -> Result<C, JobError> {
        let Self { job, sources, unread } = self;
        let fleet = &job.fleet;
        let client = reading::client(fleet)?;
        let places = Arc::new(Semaphore::new(PIECES_WAITING_MAX));
        let closed = Stop::new();
        // Whoever follows a job wants to see every host, and a host that runs long must not hide another.
        let forks = match follow {
            Follow::SoFar => fleet.config().forks,
            Follow::ToTheEnd => u16::try_from(sources.len()).unwrap_or(u16::MAX),
        };
        let items = sources.into_iter().map(Ok).chain(unread.into_iter().map(Err)).collect();
        let work = |item: Result<Source, (MinionName, String)>, parcels| {
            let sink = Sink { parcels, places: places.clone() };
            let (job, client, closed) = (&job, &client, &closed);
            async move {
                let (host, end) = match item {
                    Err((host, reason)) => (host, LogEnd::Unread(reason)),
                    Ok(source) => {
                        let host = source.host.name.clone();
                        let end = tokio::select! {
                            biased;
                            () = stop.stopped() => return,
                            () = closed.stopped() => return,
                            end = Reading::new(job, client, source, follow, &sink).read() => end,
                        };
                        (host, end)
                    }
                };
                sink.tell(LogEvent::End { host, end });
            }
        };
        let collect = |parcels: &Receiver<QueuedEvent>| {
            let collected = collect(parcels);
            closed.stop();
            collected
        };
        Ok(fan_out_each(items, forks, work, collect)?)
    }
}

/// The reason why the host has nothing to tell, if it is known to have none.
fn never_started(host: &HostRecord) -> Option<String> {
    let is_meant = matches!(host.state, HostState::Undelivered | HostState::Denied);
    let error = host.outcome.as_ref().filter(|_| is_meant)?.verdict.error()?;
    Some(format!("the job never started there: {}", error.message))
}

/// The reason why output was left out that is gathered in memory.
pub(crate) fn too_much() -> String {
    format!("the hosts' output is more than {} MiB together; read it with --output jsonl, or host by host", LOGS_TOGETHER_MAX_BYTES >> 20)
}

impl Sink {
    /// Sends what the job wrote, once there is a place for it.
    async fn give(&self, event: LogEvent) {
        // It is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        // Whoever collects may have stopped: then so does this, in a moment.
        let _unread = self.parcels.send(QueuedEvent { event, _place: place });
    }

    /// Sends what is told of a host, which is little.
    fn tell(&self, event: LogEvent) {
        let _unread = self.parcels.send(QueuedEvent { event, _place: None });
    }
}

impl Default for Gathered {
    fn default() -> Self {
        Self { hosts: BTreeMap::new(), room_bytes: LOGS_TOGETHER_MAX_BYTES, cut: Vec::new() }
    }
}

impl Gathered {
    /// Takes in what has come. What there is no room for is left out, and its host then counts as not read so far.
    pub(crate) fn take(&mut self, event: LogEvent) {
        let (LogEvent::Piece { host, .. } | LogEvent::Away { host, .. } | LogEvent::End { host, .. }) = &event;
        let none = || HostLogs { stdout: Vec::new(), stderr: Vec::new(), end: None };
        let logs = self.hosts.entry(host.clone()).or_insert_with(none);
        match event {
            LogEvent::Piece { host, stream, bytes, .. } if logs.end.is_none() => match self.room_bytes.checked_sub(bytes.len()) {
                Some(room_bytes) => {
                    self.room_bytes = room_bytes;
                    match stream {
                        Stream::Stdout => logs.stdout.extend(bytes),
                        Stream::Stderr => logs.stderr.extend(bytes),
                    }
                }
                None => {
                    logs.end = Some(LogEnd::Unread(too_much()));
                    self.cut.push(host);
                }
            },
            LogEvent::Piece { .. } | LogEvent::Away { .. } => {}
            LogEvent::End { end, .. } => drop(logs.end.get_or_insert(end)),
        }
    }
}

#[cfg(test)]
mod tests;
