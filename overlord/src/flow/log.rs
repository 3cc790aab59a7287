//! `flows/ID.log`: all that happens in a flow, one sealed JSON line an event, appended and never changed: before a step is sent, and once its end is
//! known. Its lock is the sign of life of who runs the flow; reading, and wishing that it be suspended or cancelled, need no lock.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::format::{Format, FormatError, Program, Stamp};
use common::identity::{CallerName, MinionName};
use common::job::{CallId, JobId, normal_prefix};
use common::outcome::{Failure, Outcome};
use common::seal::{self, SealError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::file::Texts;
use super::state::{FlowState, TaskState};
use crate::home::Home;

/// The format of a log; a newer one is refused.
const FORMAT: Format = Format { number: 1, program: Program::Overlord };
/// How long a lock that is merely probed by someone is tried for.
const PROBED_WITHIN: Duration = Duration::from_millis(500);
const PROBED_EVERY: Duration = Duration::from_millis(5);

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Which line it is, from 0, so that one that is missing is noticed. A wish has none: whoever has it appends it, at any time. Given as it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    pub(crate) at: Timestamp,
    pub(crate) event: Event,
}

impl Line {
    pub(crate) fn new(at: Timestamp, event: Event) -> Self {
        Self { number: None, at, event }
    }
}

/// What happens in a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first line.
    Created(Box<Header>),
    /// The flow has another state, for this reason.
    Flow { state: FlowState, cause: Option<Box<Cause>> },
    /// A task has another state.
    Task { task: usize, state: TaskState, cause: Option<Box<Cause>>, begun: Option<Begun>, again_at: Option<Timestamp> },
    /// A cell of a task is about to be sent, or what undoes it.
    Sent { task: usize, cell: usize, undo: bool, host: MinionName, call_id: CallId },
    /// It has ended.
    Ended { call_id: CallId, outcome: Box<Outcome> },
    /// A block has failed, and begins anew once what was done in it is undone.
    Retreat { block: usize, cause: Box<Cause> },
    /// It begins anew, not before then.
    Again { block: usize, round: u32, not_before: Timestamp },
    /// Somebody wants it suspended or cancelled.
    Wish { wish: Wish, by: String },
}

/// What somebody may want of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    Suspend,
    Cancel,
}

/// What a flow is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) flow_id: JobId,
    pub(crate) caller: CallerName,
    pub(crate) name: String,
    pub(crate) texts: Texts,
    pub(crate) vars: Map<String, Value>,
    #[serde(flatten)]
    pub(crate) stamp: Stamp,
}

/// What a task that begins works on: each item on each host; on one host, to be chosen, where there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) attempt: u32,
    pub(crate) items: Option<Vec<Value>>,
    pub(crate) hosts: Vec<MinionName>,
}

/// Why something has failed: all that is known of the first failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cause {
    /// The task's path; none where no task is to blame.
    pub(crate) task: Option<String>,
    /// It was to be undone.
    #[serde(default)]
    pub(crate) undo: bool,
    pub(crate) host: Option<MinionName>,
    pub(crate) item: Option<Value>,
    /// The state there, as of a call: `failed`, `timed_out`, `lost` ….
    pub(crate) state: String,
    pub(crate) error: Failure,
    /// How many others failed besides.
    pub(crate) others: usize,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("{doing} the flow log {}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Newer(#[from] FormatError),
    #[error("the flow log {} is damaged at byte {offset} ({problem}): what the flow has done is not known from there on", .path.display())]
    Damaged { path: PathBuf, offset: u64, problem: String },
    #[error("\"{text}\" is the beginning of no flow's id; `overlord flow list` lists those that are known")]
    Unknown { text: String },
    #[error("{count} flows have ids that begin with \"{text}\": write more of it")]
    Ambiguous { text: String, count: usize },
    #[error("the flow {flow} is at work already, in another process")]
    AtWork { flow: JobId },
}

/// A log that is open, and perhaps locked.
pub(crate) struct FlowLog {
    file: File,
    path: PathBuf,
    /// How far others' lines have been looked for.
    heard: u64,
    /// The number of the next line.
    next: u64,
}

impl FlowLog {
    /// Makes the log of a new flow, locked. None if there is one of that id.
    pub(crate) fn create(home: &Home, header: Header) -> Result<Option<Self>, LogError> {
        let path = home.flow_log(&header.flow_id);
        let failed = |source| LogError::Io { doing: "making", path: path.clone(), source };
        let folder = home.flows_dir();
        if !folder.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        }
        let file = match OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        file.lock().map_err(failed)?;
        let mut log = Self { file, path: path.clone(), heard: 0, next: 0 };
        log.append(&[Line::new(Timestamp::now(), Event::Created(Box::new(header)))])?;
        log.sync()?;
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(Some(log))
    }

    pub(crate) fn open(home: &Home, flow: &JobId) -> Result<Self, LogError> {
        let path = home.flow_log(flow);
        match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => Ok(Self { file, path, heard: 0, next: 0 }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(LogError::Unknown { text: flow.to_string() }),
            Err(source) => Err(LogError::Io { doing: "opening", path, source }),
        }
    }

    /// Whether nobody else works on the flow; nobody does from now on while this is open.
    pub(crate) fn lock(&self) -> Result<bool, LogError> {
        let deadline = Instant::now() + PROBED_WITHIN;
        while !self.try_lock()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(PROBED_EVERY);
        }
        Ok(true)
    }

    /// The same, not waiting for who merely probes it.
    pub(crate) fn try_lock(&self) -> Result<bool, LogError> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(source)) => Err(self.failed("locking", source)),
        }
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        self.file.metadata().map(|about| about.len()).map_err(|source| self.failed("reading", source))
    }

    /// For how long nobody has written to it, by the clock on the wall.
    pub(crate) fn quiet_for(&self) -> Result<Duration, LogError> {
        let written = self.file.metadata().and_then(|about| about.modified()).map_err(|source| self.failed("reading", source))?;
        Ok(written.elapsed().unwrap_or_default())
    }

    /// Whether somebody works on it.
    pub(crate) fn is_at_work(&self) -> Result<bool, LogError> {
        match self.file.try_lock_shared() {
            Ok(()) => self.file.unlock().map(|()| false).map_err(|source| self.failed("probing", source)),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(self.failed("probing", source)),
        }
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> LogError {
        LogError::Io { doing, path: self.path.clone(), source }
    }

    /// Appends lines by one write, so that those of several writers never mix. Others than wishes only who has locked it and read it to its end.
    pub(crate) fn append(&mut self, lines: &[Line]) -> Result<(), LogError> {
        let (mut bytes, mut next) = (Vec::new(), self.next);
        for line in lines {
            // Whoever wrote last may have been cut off: what is left of that line must not swallow this one.
            if !matches!(line.event, Event::Created(_)) && bytes.is_empty() {
                bytes.push(b'\n');
            }
            let mut line = line.clone();
            if !matches!(line.event, Event::Wish { .. }) {
                line.number = Some(next);
                next += 1;
            }
            bytes.extend(text_of(&line).map_err(|source| self.failed("writing to", source))?);
            bytes.push(b'\n');
        }
        if bytes.is_empty() {
            return Ok(());
        }
        match self.file.write(&bytes) {
            Ok(length) if length == bytes.len() => {
                self.next = next;
                Ok(())
            }
            Ok(length) => {
                let reason = format!("{length} of {} bytes were written; is the disk full?", bytes.len());
                Err(self.failed("writing to", io::Error::new(io::ErrorKind::StorageFull, reason)))
            }
            Err(source) => Err(self.failed("writing to", source)),
        }
    }

    /// Returns once all that was appended is on the disk.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|source| self.failed("syncing", source))
    }

    /// Deletes it, if it is locked.
    pub(crate) fn delete(self) -> Result<(), LogError> {
        fs::remove_file(&self.path).map_err(|source| self.failed("deleting", source))
    }

    /// Every line from the beginning. What is left of a line that was cut off is passed over: nothing was done by it, and nobody went on behind it but by
    /// the line of the same number. So a line that is missing was lost later, and the log is damaged.
    pub(crate) fn read(&mut self) -> Result<Vec<Line>, LogError> {
        let mut bytes = Vec::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_end(&mut bytes));
        read.map_err(|source| self.failed("reading", source))?;
        let (mut lines, mut offset, mut next, mut torn) = (Vec::new(), 0, 0, None);
        for text in bytes.split_inclusive(|byte| *byte == b'\n') {
            let at = offset;
            offset += text.len();
            let damaged = |problem: String| LogError::Damaged { path: self.path.clone(), offset: u64::try_from(at).unwrap_or(0), problem };
            if text.last() != Some(&b'\n') || text.trim_ascii().is_empty() {
                continue;
            }
            if at == 0
                && let Ok(Stamped { event: StampedEvent { created } }) = seal::open(text)
            {
                FORMAT.age(self.path.display(), &created)?;
            }
            match seal::open::<Line>(text) {
                Ok(line) => {
                    match line.number {
                        Some(number) if number == next => next += 1,
                        None if matches!(line.event, Event::Wish { .. }) => {}
                        _ => return Err(damaged(format!("line {next} is missing before it"))),
                    }
                    lines.push(line);
                    torn = None;
                }
                Err(SealError::Torn) if at > 0 => torn = Some(damaged(SealError::Torn.to_string())),
                Err(error) => return Err(damaged(error.to_string())),
            }
        }
        // What was cut off has no end, but by a line behind it.
        if let Some(damaged) = torn {
            return Err(damaged);
        }
        self.next = next;
        self.heard = u64::try_from(offset).unwrap_or(0);
        Ok(lines)
    }

    /// What others have wished since it was last asked for or read.
    pub(crate) fn wishes(&mut self) -> Result<Vec<Line>, LogError> {
        if self.bytes()? <= self.heard {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let read = self.file.seek(SeekFrom::Start(self.heard)).and_then(|_| self.file.read_to_end(&mut bytes));
        read.map_err(|source| self.failed("reading", source))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.heard += u64::try_from(whole).unwrap_or(0);
        let lines = bytes.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n');
        let is_wish = |text: &&[u8]| text.windows(6).any(|word| word == b"\"wish\"");
        let wishes = lines.filter(is_wish).filter_map(|text| seal::open::<Line>(text).ok());
        Ok(wishes.filter(|line| matches!(line.event, Event::Wish { .. })).collect())
    }
}

/// The sealed line, which reads back as it is; of an outcome that does not, a line that says so.
fn text_of(line: &Line) -> io::Result<Vec<u8>> {
    let text = seal::seal(line)?;
    let Event::Ended { call_id, .. } = &line.event else { return Ok(text) };
    let problem = match seal::open::<Line>(&text) {
        Ok(read) if read == *line => return Ok(text),
        Ok(_) => "it reads back as something else".to_owned(),
        Err(error) => error.to_string(),
    };
    let outcome = Outcome::not_run(common::outcome::Verdict::lost(format!("what the host said cannot be kept: {problem}")), line.at);
    let event = Event::Ended { call_id: call_id.clone(), outcome: Box::new(outcome) };
    Ok(seal::seal(&Line { event, ..line.clone() })?)
}

/// A first line, of which only the format is asked for: one that is newer may say anything else.
#[derive(Deserialize)]
struct Stamped {
    event: StampedEvent,
}

#[derive(Deserialize)]
struct StampedEvent {
    created: Stamp,
}

/// What a header says of the format.
pub(crate) fn stamp() -> Stamp {
    FORMAT.stamp()
}

/// The ids of the flows that have a log, oldest first.
pub(crate) fn list(home: &Home) -> Result<Vec<JobId>, LogError> {
    let path = home.flows_dir();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LogError::Io { doing: "listing the folder of", path, source }),
    };
    let id = |name: &str| name.strip_suffix(".log")?.parse::<JobId>().ok().filter(|id| name == format!("{id}.log"));
    let mut flows: Vec<JobId> = entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?)).collect();
    flows.sort();
    Ok(flows)
}

/// The flow of that id, or of the only id that begins so.
pub(crate) fn find(home: &Home, text: &str) -> Result<JobId, LogError> {
    let unknown = || LogError::Unknown { text: text.chars().take(40).collect() };
    let prefix = normal_prefix(text).map_err(|_| unknown())?;
    let mut found: Vec<JobId> = list(home)?.into_iter().filter(|id| !prefix.is_empty() && id.as_str().starts_with(&prefix)).collect();
    match (found.pop(), found.len()) {
        (Some(id), 0) => Ok(id),
        (Some(_), others) => Err(LogError::Ambiguous { text: prefix, count: others + 1 }),
        (None, _) => Err(unknown()),
    }
}
