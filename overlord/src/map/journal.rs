//! What is dealt and what became of it, on its way into the job's log. One thread writes, in the order in which it is told, and syncs for all who wait at
//! once. Once something cannot be written nothing more is, and nobody gets a number.

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use common::identity::MinionName;
use common::job::{Event, LogLine};
use common::outcome::Verdict;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::Fates;
use crate::jobs::log::{LockedLog, LogError};

/// So many lines are written before they are synced. Of each lane there are two at most that wait.
const TOGETHER_MAX: usize = 256;

/// A line to be written, and who waits until it is on the disk.
struct Order {
    line: LogLine,
    synced: Option<oneshot::Sender<()>>,
}

/// The way into the log.
pub(crate) struct Journal {
    orders: Mutex<Sender<Order>>,
    next: AtomicU64,
    writer: JoinHandle<Result<LockedLog, LogError>>,
}

impl Journal {
    /// Begins to write into `log`. `next` is the number of the next chunk.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) fn begin(log: LockedLog, next: u64) -> io::Result<Self> {
        let (orders, waiting) = channel();
        let writer = thread::Builder::new().name("journal".to_owned()).spawn(move || write(log, &waiting))?;
        Ok(Self { orders: Mutex::new(orders), next: AtomicU64::new(next), writer })
    }

    /// Writes down that items in a row go to a host, and gives the chunk's number once that is on the disk; none if it never will be.
    pub(super) async fn dealt(&self, host: MinionName, first: u64, count: u64) -> Option<u64> {
        let chunk = self.next.fetch_add(1, Ordering::Relaxed);
        let (synced, on_disk) = oneshot::channel();
        self.order(Event::Dealt { chunk, host, first, count }, Some(synced));
        on_disk.await.ok().map(|()| chunk)
    }

    /// Writes down what became of a chunk.
    pub(super) fn done(&self, number: u64, host: MinionName, chunk: &[u64], fates: &Fates) {
        self.order(done(number, host, chunk, fates), None);
    }

    /// Writes down that these items are dealt to nobody any more.
    pub(crate) fn left(&self, first: u64, count: u64, verdict: Verdict) {
        self.order(Event::Left { first, count, verdict }, None);
    }

    fn order(&self, event: Event, synced: Option<oneshot::Sender<()>>) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        // A writer that is gone has failed, which those see who wait, and `close` tells.
        let _unwritten = orders.send(Order { line: LogLine { at: Timestamp::now(), event }, synced });
    }

    /// The log, once all is on the disk.
    ///
    /// # Errors
    /// Something could not be written, and nothing behind it was.
    pub(crate) fn close(self) -> Result<LockedLog, LogError> {
        drop(self.orders);
        match self.writer.join() {
            Ok(log) => log,
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    }
}

/// What became of a chunk, as it is written down.
pub(crate) fn done(chunk: u64, host: MinionName, indexes: &[u64], fates: &Fates) -> Event {
    let known: BTreeSet<u64> = fates.ended.iter().map(|ended| ended.index).chain(fates.doubted.iter().copied()).collect();
    let back = indexes.iter().copied().filter(|index| !known.contains(index)).collect();
    let ends = fates.ended.iter().map(|ended| (ended.index, ended.outcome.verdict.clone())).collect();
    Event::Done { chunk, host, ends, back, doubted: fates.doubted.clone() }
}

fn write(mut log: LockedLog, orders: &Receiver<Order>) -> Result<LockedLog, LogError> {
    while let Ok(first) = orders.recv() {
        let mut waiting = Vec::new();
        for Order { line, synced } in std::iter::once(first).chain(orders.try_iter().take(TOGETHER_MAX)) {
            log.append(&line)?;
            waiting.extend(synced);
        }
        if !waiting.is_empty() {
            log.sync()?;
        }
        for synced in waiting {
            // Whoever has been stopped meanwhile sends nothing.
            let _nobody = synced.send(());
        }
    }
    log.sync()?;
    Ok(log)
}
