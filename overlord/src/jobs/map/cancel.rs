//! Cancelling a map: its dispatcher is asked to end it by a line in the log; where none is at work, it is ended here.

use std::thread::sleep;
use std::time::{Duration, Instant};

use common::job::map::{MapFold, MapTally, MapTerms};
use common::job::{Event, HostState, LogLine};
use common::outcome::Verdict;
use jiff::Timestamp;

use super::{Job, JobError, LockedLog, cancelled_by, fold_of, running, unanswered};
use crate::jobs::log::JobLog;

/// How long its dispatcher may take to end it: hanging up takes a moment, and what hosts have answered is written down.
const END_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What came of the wish to end a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapCancellation {
    /// It had ended before.
    pub had_ended: bool,
    /// Each item has its end.
    pub has_ended: bool,
    /// How its items stand.
    pub tally: MapTally,
}

impl Job {
    /// Ends a map: what was not begun is `cancelled`, and of what is under way the host is hung up on, which stops it there.
    ///
    /// # Errors
    /// The log or the store cannot be used, or it is another's. None if the job is no map.
    pub fn cancel_map(&self) -> Result<Option<MapCancellation>, JobError> {
        let record = self.known()?.record;
        let (Some(terms), Some(tally)) = (&record.header.map, record.map) else { return Ok(None) };
        if tally.ended() == tally.items() {
            return Ok(Some(MapCancellation { had_ended: true, has_ended: true, tally }));
        }
        self.check_caller(&record.header)?;
        let mut log = self.open_log()?;
        log.append(&LogLine { at: Timestamp::now(), event: Event::CancelAsked })?;
        log.sync()?;
        let deadline = Instant::now() + END_WITHIN;
        loop {
            if let Some(mut log) = JobLog::open(self.fleet.home(), &self.id)?.try_lock()? {
                settle(self, terms, &fold_of(self, terms)?, &mut log)?;
                break;
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(LOOK_EVERY);
        }
        let tally = self.known()?.record.map.unwrap_or_default();
        Ok(Some(MapCancellation { had_ended: false, has_ended: tally.ended() == tally.items(), tally }))
    }
}

/// Ends what nobody deals any more: of what may have been sent nothing is known, and the rest is cancelled.
pub(super) fn settle(job: &Job, terms: &MapTerms, fold: &MapFold, log: &mut LockedLog) -> Result<(), JobError> {
    let mut append = |event| log.append(&LogLine { at: Timestamp::now(), event });
    for (number, chunk) in fold.open() {
        let lost = Verdict::lost(unanswered(&chunk.host));
        let ends = running(fold, chunk).into_iter().map(|index| (index, lost.clone())).collect();
        append(Event::Done { chunk: *number, host: chunk.host.clone(), ends, back: Vec::new(), doubted: Vec::new() })?;
    }
    for (index, hosts) in fold.again() {
        if let Some(host) = hosts.last() {
            append(Event::Left { first: index, count: 1, verdict: Verdict::lost(unanswered(host)) })?;
        }
    }
    let cancelled = cancelled_by(&job.fleet);
    let mut first = 0;
    while first < terms.items {
        let is_pending =
            |index: u64| fold.item(index).is_some_and(|(state, _)| state == HostState::Pending) && fold.lost_on(index).is_empty();
        let count = (first..terms.items).take_while(|index| is_pending(*index)).count() as u64;
        if count > 0 {
            append(Event::Left { first, count, verdict: cancelled.clone() })?;
        }
        first += count + 1;
    }
    log.sync()?;
    Ok(log.drop_items()?)
}
