//! The systemd journal: each decision as an entry with fields. A thread of its own sends them, so that a journal that is away, slow or full
//! delays nobody; what finds no room in its queue is counted, and stands in the file alone.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use log::{Level, Record};
use serde_json::{Map, Value};
use systemd_journal_logger::JournalLog;

use super::Entry;

/// Where the journal takes entries (systemd's JOURNAL_NATIVE_PROTOCOL).
const SOCKET: &str = "/run/systemd/journal/socket";
/// Entries that may wait for the journal.
const QUEUE_MAX: usize = 1024;
/// How long the end of the program waits for the journal to take what waits.
const END_PATIENCE: Duration = Duration::from_millis(500);

/// The way to the journal. It is taken with the first entry for which there is a journal.
#[derive(Debug, Default)]
pub(super) struct Journal {
    sending: OnceLock<Option<Sending>>,
    passed_over: Arc<AtomicU64>,
}

/// The thread that sends.
#[derive(Debug)]
struct Sending {
    /// Taken at the end.
    queue: Option<SyncSender<Message>>,
    /// Hears of the thread's end.
    ended: std::sync::Mutex<Receiver<()>>,
}

/// An entry as it is sent.
#[derive(Debug)]
struct Message {
    level: Level,
    text: String,
    fields: Vec<(String, String)>,
}

impl Journal {
    /// Sends `entry` some time soon, if there is a journal. It neither waits nor fails.
    pub(super) fn tell(&self, entry: &impl Entry) {
        if !Path::new(SOCKET).exists() {
            return;
        }
        let sending = self.sending.get_or_init(|| Sending::start(Arc::clone(&self.passed_over)));
        let Some(queue) = sending.as_ref().and_then(|sending| sending.queue.as_ref()) else { return };
        if queue.try_send(Message::of(entry)).is_err() {
            self.passed_over.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Message {
    fn of(entry: &impl Entry) -> Self {
        let level = if entry.is_refusal() { Level::Warn } else { Level::Info };
        let fields = match serde_json::to_value(entry) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let text = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self { level, text: entry.summary(), fields: fields.into_iter().map(|(key, value)| (key, text(value))).collect() }
    }
}

impl Sending {
    /// None if there can be no thread, in which case the file has to do.
    fn start(passed_over: Arc<AtomicU64>) -> Option<Self> {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let (end, ended) = channel();
        let run = move || {
            send_all(&messages, &passed_over);
            let _nobody_waits = end.send(());
        };
        let started = thread::Builder::new().name("journal".to_owned()).spawn(run);
        started.ok().map(|_| Self { queue: Some(queue), ended: ended.into() })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Ok(ended) = self.ended.get_mut() {
            let _or_it_is_stuck = ended.recv_timeout(END_PATIENCE);
        }
    }
}

fn send_all(messages: &Receiver<Message>, passed_over: &AtomicU64) {
    let mut journal = None;
    for message in messages {
        // It is connected anew after each failure: the journal may have been restarted.
        journal = journal.or_else(|| JournalLog::new().ok()).filter(|journal| is_sent(journal, &message));
        let Some(journal) = &journal else {
            passed_over.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let missing = passed_over.swap(0, Ordering::Relaxed);
        let text = format!("the journal did not keep up: {missing} decisions are in the audit log's file alone");
        if missing > 0 && !is_sent(journal, &Message { level: Level::Warn, text, fields: Vec::new() }) {
            passed_over.fetch_add(missing, Ordering::Relaxed);
        }
    }
}

fn is_sent(journal: &JournalLog, message: &Message) -> bool {
    let Message { level, text, fields } = message;
    let text = format_args!("{text}");
    journal.journal_send(&Record::builder().level(*level).target("audit").key_values(&fields.as_slice()).args(text).build()).is_ok()
}
