//! A map that goes on by itself: its dispatcher, which writes down what it deals before it sends it, and goes on where one before it has ended; cancelling it.
//! It runs no item again that may have run, unless that was asked for.

mod cancel;
pub(crate) mod results;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use common::identity::MinionName;
use common::job::map::{MapFold, MapTerms, OpenChunk};
use common::job::{Event, HostState, JobHeader, LogLine};
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::Arguments;
use jiff::Timestamp;
use serde_json::json;

use super::dispatcher::StartError;
use super::log::{self, LockedLog};
use super::{Job, JobError, retention};
use crate::fleet::{Fleet, Stop, Target, gossip};
use crate::map::deal::Deal;
use crate::map::journal::{Journal, done};
use crate::map::kept::{self, KeptItems};
use crate::map::{Fates, Terms};
use crate::store;
pub use cancel::MapCancellation;
use watch::CancelWatch;

/// A map that is written down, locked, and ready to be dealt.
pub(crate) struct MapDispatch {
    job: Job,
    target: Target,
    method: MethodName,
    in_flight: u16,
    log: LockedLog,
    deal: Deal,
    next_chunk: u64,
}

impl MapDispatch {
    /// Writes the map of items that are kept already down, durably. Where it cannot, they are not kept any more.
    pub(crate) fn begin(target: &Target, method: &MethodName, items: &KeptItems, terms: Terms) -> Result<Self, StartError> {
        let begun = Self::write_down(target, method, items, terms);
        if begun.is_err() {
            items.drop_from(target.fleet().home());
        }
        begun
    }

    fn write_down(target: &Target, method: &MethodName, items: &KeptItems, terms: Terms) -> Result<Self, StartError> {
        let fleet = target.fleet();
        if let Some(reason) = retention::refusal(fleet)? {
            return Err(StartError::Full { reason });
        }
        let map = MapTerms {
            items: items.count,
            crc: items.crc,
            in_flight: terms.in_flight,
            retries: terms.retries,
            forks: target.forks(),
            timeout_ms: u64::try_from(target.timeout().as_millis()).unwrap_or(u64::MAX),
        };
        let header = JobHeader {
            job_id: items.job.clone(),
            caller: fleet.link()?.caller.clone(),
            target: target.expression().to_owned(),
            method: method.as_str().to_owned(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            hosts: target.hosts().cloned().collect(),
            map: Some(map.clone()),
        };
        let deal = target.deal_of(kept::open(fleet.home(), &items.job, &map)?, terms);
        let log = LockedLog::create(fleet.home(), header)?.ok_or(StartError::Ids)?;
        let job = Job::known_as(fleet, &items.job);
        let (target, method) = (target.clone(), method.clone());
        Ok(Self { job, target, method, in_flight: terms.in_flight, log, deal, next_chunk: 0 })
    }

    pub(crate) fn job_id(&self) -> &common::job::JobId {
        &self.job.id
    }

    /// Deals the items until each has ended, or somebody wants it to end.
    pub(crate) fn run(self) {
        let fleet = self.job.fleet.clone();
        let job = self.job.clone();
        match self.deal_all() {
            Ok(log) => drop(log.unlock()),
            Err(problem) => fleet.warn(&problem),
        }
        if let Err(error) = store::fold(&fleet, &job.id) {
            fleet.warn(&crate::chain(&error));
        }
        if let Ok(link) = fleet.link() {
            gossip::carry_on(&fleet, link, &Stop::new(), None);
        }
        if let Err(error) = retention::tidy(&fleet) {
            fleet.warn(&crate::chain(&error));
        }
    }

    /// The log, in which each item has its end; or why that is not so, and what is left waits to be resumed.
    fn deal_all(self) -> Result<LockedLog, String> {
        let Self { job, target, method, in_flight, log, deal, next_chunk } = self;
        let stop = Stop::new();
        let watch = CancelWatch::begin(job.fleet.home().job_log(&job.id), stop.clone()).map_err(|error| error.to_string())?;
        let journal = Journal::begin(log, next_chunk).map_err(|error| error.to_string())?;
        let dealt = target.map_into(&method, (deal, in_flight), &stop, &journal);
        let is_cancelled = watch.end();
        if let Ok(mut deal) = dealt
            && (is_cancelled || !stop.is_stopped())
        {
            let cancelled = is_cancelled.then(|| cancelled_by(&job.fleet));
            give_up_rest(&mut deal, &journal, cancelled.as_ref());
            let log = journal.close().map_err(|error| crate::chain(&error))?;
            return log.drop_items().map(|()| log).map_err(|error| crate::chain(&error));
        }
        journal.close().map_err(|error| crate::chain(&error))?;
        Err(format!("the map {} was broken off; `overlord job-resume {}` goes on", job.id, job.id))
    }
}

/// Writes down what nobody got, and why; items in a row for the same reason together.
fn give_up_rest(deal: &mut Deal, journal: &Journal, cancelled: Option<&Verdict>) {
    let untouched = (deal.fresh(), deal.untouched());
    let mut row: Option<(u64, u64, Verdict)> = None;
    while let Some(ended) = deal.left() {
        let verdict = match (ended.outcome.verdict, cancelled) {
            // It may have run, before somebody wanted it to end.
            (lost @ Verdict::Lost { .. }, _) => lost,
            (_, Some(cancelled)) => cancelled.clone(),
            (verdict, None) => verdict,
        };
        row = match row.take() {
            Some((first, count, why)) if first + count == ended.index && why == verdict => Some((first, count + 1, why)),
            before => {
                before.into_iter().for_each(|(first, count, why)| journal.left(first, count, why));
                Some((ended.index, 1, verdict))
            }
        };
    }
    row.into_iter().for_each(|(first, count, why)| journal.left(first, count, why));
    if let (Some(verdict), (first, count @ 1..)) = (cancelled, untouched) {
        journal.left(first, count, verdict.clone());
    }
}

fn cancelled_by(fleet: &Fleet) -> Verdict {
    let by = fleet.link().map_or_else(|_| "this overlord".to_owned(), |link| link.caller.to_string());
    let failure = Failure::new(ErrorCode::Cancelled, format!("cancelled by {by} before it was begun"));
    Verdict::Cancelled { error: failure.with_data(json!({ "by": by, "at": Timestamp::now() })) }
}

/// All that the log of a map says. The log is locked, so that nobody deals meanwhile.
fn fold_of(job: &Job, terms: &MapTerms) -> Result<MapFold, JobError> {
    let mut fold = MapFold::new(terms, job.id.made_at());
    log::read(&job.fleet.home().job_log(&job.id), 0, |line| match line {
        Ok(line) => fold.add(&line),
        Err(damage) if damage.is_unknown => {}
        Err(_) => fold.miss(),
    })?;
    Ok(fold)
}

/// Goes on with a map whose dispatcher is gone; the log is ours. None if there is nothing left to deal.
pub(super) fn resume(job: &Job, header: &JobHeader, mut log: LockedLog) -> Result<Option<MapDispatch>, JobError> {
    let Some(terms) = &header.map else { return Ok(None) };
    job.check_caller(header)?;
    let fold = fold_of(job, terms)?;
    if fold.ended_at().is_some() {
        return Ok(None);
    }
    if fold.is_cancelled() {
        cancel::settle(job, terms, &fold, &mut log)?;
        return Ok(None);
    }
    let stuck = |reason: String| JobError::Stuck { job: job.id.clone(), reason };
    let method = header.method.parse::<MethodName>().map_err(|error| stuck(error.to_string()))?;
    let roster = job.fleet.roster()?;
    let hosts: Vec<_> = header.hosts.iter().filter_map(|name| roster.find(name).cloned()).collect();
    if hosts.is_empty() {
        return Err(stuck("none of its hosts is in hosts.toml any more".to_owned()));
    }
    let target = job.fleet.target_of(&header.target, hosts);
    let target = target.with_forks(terms.forks).with_timeout(Duration::from_millis(terms.timeout_ms));
    let items = kept::open(job.fleet.home(), &job.id, terms).map_err(|error| stuck(error.to_string()))?;
    let dealing = Terms { in_flight: terms.in_flight, retries: terms.retries };
    let mut deal = target.deal_of(items, dealing);
    let lines = settle(&fold, &mut deal).map_err(|error| stuck(format!("its items cannot be read: {error}")))?;
    let resumed = Event::Resumed { attempt: 2, hosts: target.hosts().cloned().collect() };
    for event in lines.into_iter().chain([resumed]) {
        log.append(&LogLine { at: Timestamp::now(), event })?;
    }
    log.sync()?;
    let (job, in_flight, next_chunk) = (job.clone(), terms.in_flight, fold.next_chunk());
    Ok(Some(MapDispatch { job, target, method, in_flight, log, deal, next_chunk }))
}

/// Brings the deal to where the log is, and gives what is to be written of chunks that were sent, as far as is known, and never answered for.
fn settle(fold: &MapFold, deal: &mut Deal) -> std::io::Result<Vec<Event>> {
    let doubt = fold.in_doubt();
    let fresh = doubt.last().map_or(fold.dealt_to(), |last| fold.dealt_to().max(last + 1));
    let mut again: BTreeMap<u64, Vec<MinionName>> = fold.again().map(|(index, lost_on)| (index, lost_on.to_vec())).collect();
    doubt.iter().for_each(|index| drop(again.remove(index)));
    // What is under way is of a chunk without an end.
    deal.go_on(fresh, |index| again.remove(&index).or_else(|| is_running(fold, index).then(|| fold.lost_on(index).to_vec())))?;
    let mut lines: Vec<Event> = fold.open().iter().map(|(number, chunk)| lose(fold, deal, *number, chunk)).collect();
    let why = "a line of the job's log is damaged that may have said that it was sent";
    lines.extend(doubt.into_iter().map(|index| Event::Left { first: index, count: 1, verdict: Verdict::lost(why) }));
    Ok(lines)
}

fn lose(fold: &MapFold, deal: &mut Deal, number: u64, chunk: &OpenChunk) -> Event {
    let (mut fates, indexes) = (Fates::default(), running(fold, chunk));
    let outcome = Outcome::not_run(Verdict::lost(unanswered(&chunk.host)), Timestamp::now());
    let seat = deal.seat(&chunk.host);
    for item in indexes.iter().filter_map(|index| deal.take_again(*index)).collect::<Vec<_>>() {
        fates.lose(deal, seat, item, outcome.clone());
    }
    done(number, chunk.host.clone(), &indexes, &fates)
}

fn unanswered(host: &MinionName) -> String {
    format!("the overlord ended before {host} had answered: it may have run")
}

fn is_running(fold: &MapFold, index: u64) -> bool {
    fold.item(index).is_some_and(|(state, _)| state == HostState::Running)
}

fn running(fold: &MapFold, chunk: &OpenChunk) -> Vec<u64> {
    chunk.indexes().filter(|index| is_running(fold, *index)).collect()
}
