//! What a map's log says of its items, and what that adds up to. Pure.
//!
//! A chunk is the unit: one line says to whom it goes, before it is sent, and one what became of its items. An item of a chunk without an end may have run.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Event, HostState, JobHeader, LogLine};
use crate::identity::MinionName;
use crate::protocol::map::CHUNK_MAX_ITEMS;

/// The most items that a map has which goes on by itself: each takes 8 bytes of memory where the log is read.
pub const ITEMS_MAX: u64 = 10_000_000;

/// The host of an item that no host got.
const NOBODY: u32 = u32::MAX;

/// What a map is besides a job: which items, and how they are dealt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapTerms {
    /// How many items there are.
    pub items: u64,
    /// The CRC-32 of the file that holds them.
    pub crc: u32,
    /// So many chunks a host has at once.
    pub in_flight: u16,
    /// So often an item of which it is not known what became may be run again.
    pub retries: u32,
    /// So many chunks are in flight at once.
    pub forks: u16,
    /// How long the method may take for an item, in milliseconds.
    pub timeout_ms: u64,
}

/// How many items are in which state, over all and by host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapTally {
    /// Over all.
    pub counts: BTreeMap<HostState, u64>,
    /// Of the items that each host got last.
    pub hosts: BTreeMap<MinionName, BTreeMap<HostState, u64>>,
    /// Since when it is dealt, or was the last time.
    pub since: Timestamp,
    /// How many items had ended by then.
    pub ended_before: u64,
    /// Somebody wants it to end.
    pub is_cancelled: bool,
}

impl MapTally {
    /// How many items have ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.counts.iter().filter(|(state, _)| state.is_final()).map(|(_, count)| count).sum()
    }

    /// How many there are.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// A chunk that was, or was about to be, sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenChunk {
    /// To whom.
    pub host: MinionName,
    /// Its first item.
    pub first: u64,
    /// How many follow in a row, with it.
    pub count: u64,
}

impl OpenChunk {
    /// Its items.
    #[must_use]
    pub fn indexes(&self) -> std::ops::Range<u64> {
        self.first..self.first.saturating_add(self.count)
    }
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    state: HostState,
    host: u32,
}

/// A map's log, line by line.
#[derive(Debug, Clone)]
pub struct MapFold {
    items: Vec<Cell>,
    names: Vec<MinionName>,
    open: BTreeMap<u64, OpenChunk>,
    /// The hosts with which items that are to be dealt again were lost.
    lost_on: BTreeMap<u64, Vec<MinionName>>,
    since: Timestamp,
    ended: u64,
    ended_before: u64,
    ended_at: Option<Timestamp>,
    is_cancelled: bool,
    next_chunk: u64,
    /// Behind the last item that was ever dealt.
    dealt_to: u64,
    /// Lines that cannot be read, each of which may have told of a chunk.
    damaged: u64,
}

impl MapFold {
    /// Of a map that was made at that time.
    #[must_use]
    pub fn new(terms: &MapTerms, at: Timestamp) -> Self {
        let count = usize::try_from(terms.items.min(ITEMS_MAX)).unwrap_or(0);
        Self {
            items: vec![Cell { state: HostState::Pending, host: NOBODY }; count],
            names: Vec::new(),
            open: BTreeMap::new(),
            lost_on: BTreeMap::new(),
            since: at,
            ended: 0,
            ended_before: 0,
            ended_at: None,
            is_cancelled: false,
            next_chunk: 0,
            dealt_to: 0,
            damaged: 0,
        }
    }

    /// The map of a header; none of another job.
    #[must_use]
    pub fn of(header: &JobHeader, at: Timestamp) -> Option<Self> {
        header.map.as_ref().map(|terms| Self::new(terms, at))
    }

    /// Adds a line. What says nothing of items changes nothing.
    pub fn add(&mut self, line: &LogLine) {
        match &line.event {
            Event::Dealt { chunk, host, first, count } => self.deal(*chunk, host, *first, *count),
            Event::Done { chunk, host, ends, back, doubted } => {
                self.open.remove(chunk);
                let host_number = self.number(host);
                for (index, verdict) in ends {
                    self.end(*index, verdict.state(), host_number, line.at);
                }
                for index in back.iter().chain(doubted) {
                    self.put(*index, HostState::Pending, NOBODY);
                }
                for index in doubted {
                    self.lost_on.entry(*index).or_default().push(host.clone());
                }
            }
            Event::Left { first, count, verdict } => {
                for index in *first..first.saturating_add(*count).min(self.items.len() as u64) {
                    self.end(index, verdict.state(), NOBODY, line.at);
                }
            }
            Event::CancelAsked => self.is_cancelled = true,
            Event::Resumed { .. } => {
                (self.since, self.ended_before) = (line.at, self.ended);
                // Whoever resumed it has settled what was in doubt.
                (self.next_chunk, self.damaged) = (self.next_chunk(), 0);
            }
            Event::Created(_) | Event::Heard { .. } => {}
        }
    }

    /// A line could not be read.
    pub fn miss(&mut self) {
        self.damaged += 1;
    }

    fn deal(&mut self, chunk: u64, host: &MinionName, first: u64, count: u64) {
        let number = self.number(host);
        let end = first.saturating_add(count).min(self.items.len() as u64);
        for index in first..end {
            self.put(index, HostState::Running, number);
        }
        self.open.insert(chunk, OpenChunk { host: host.clone(), first, count: end.saturating_sub(first) });
        self.next_chunk = self.next_chunk.max(chunk.saturating_add(1));
        self.dealt_to = self.dealt_to.max(end);
    }

    fn number(&mut self, host: &MinionName) -> u32 {
        let known = self.names.iter().position(|name| name == host).unwrap_or_else(|| {
            self.names.push(host.clone());
            self.names.len() - 1
        });
        u32::try_from(known).unwrap_or(NOBODY)
    }

    /// What has ended stays as it ended.
    fn put(&mut self, index: u64, state: HostState, host: u32) -> bool {
        let Some(cell) = usize::try_from(index).ok().and_then(|index| self.items.get_mut(index)) else { return false };
        if cell.state.is_final() {
            return false;
        }
        *cell = Cell { state, host };
        true
    }

    fn end(&mut self, index: u64, state: HostState, host: u32, at: Timestamp) {
        if self.put(index, state, host) {
            self.lost_on.remove(&index);
            self.ended += 1;
            if self.ended == self.items.len() as u64 {
                self.ended_at = Some(at);
            }
        }
    }

    /// How it stands.
    #[must_use]
    pub fn tally(&self) -> MapTally {
        let mut tally =
            MapTally { since: self.since, ended_before: self.ended_before, is_cancelled: self.is_cancelled, ..MapTally::default() };
        let mut by_number: BTreeMap<u32, BTreeMap<HostState, u64>> = BTreeMap::new();
        for cell in &self.items {
            *tally.counts.entry(cell.state).or_default() += 1;
            *by_number.entry(cell.host).or_default().entry(cell.state).or_default() += 1;
        }
        let named = by_number.into_iter().filter_map(|(number, counts)| Some((self.name(number)?.clone(), counts)));
        tally.hosts = named.collect();
        tally
    }

    fn name(&self, number: u32) -> Option<&MinionName> {
        self.names.get(usize::try_from(number).ok()?)
    }

    /// When the last item ended; none while one has not.
    #[must_use]
    pub fn ended_at(&self) -> Option<Timestamp> {
        self.ended_at
    }

    /// Whether somebody wants it to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }

    /// Chunks without an end, by their numbers.
    #[must_use]
    pub fn open(&self) -> &BTreeMap<u64, OpenChunk> {
        &self.open
    }

    /// The number of the next chunk. A line that cannot be read may have used one.
    #[must_use]
    pub fn next_chunk(&self) -> u64 {
        self.next_chunk.saturating_add(self.damaged)
    }

    /// Behind the last item that was ever dealt.
    #[must_use]
    pub fn dealt_to(&self) -> u64 {
        self.dealt_to
    }

    /// An item's state, and the host that got it last; none if there is no such item.
    #[must_use]
    pub fn item(&self, index: u64) -> Option<(HostState, Option<&MinionName>)> {
        let cell = self.items.get(usize::try_from(index).ok()?)?;
        Some((cell.state, self.name(cell.host)))
    }

    /// The items that are to be dealt again, and the hosts that each was lost with.
    pub fn again(&self) -> impl Iterator<Item = (u64, &[MinionName])> {
        let pending = (0..self.dealt_to).zip(&self.items).filter(|(_, cell)| cell.state == HostState::Pending);
        pending.map(|(index, _)| (index, self.lost_on(index)))
    }

    /// The hosts with which an item that has not ended was lost, once for each time.
    #[must_use]
    pub fn lost_on(&self, index: u64) -> &[MinionName] {
        self.lost_on.get(&index).map_or(&[][..], Vec::as_slice)
    }

    /// The items that a line may have told of that cannot be read: they may have been sent. Those behind the last that was dealt, as many as such lines
    /// can hold, and those before it that are to be dealt, or seem never to have been.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<u64> {
        if self.damaged == 0 {
            return Vec::new();
        }
        let chunk = u64::try_from(CHUNK_MAX_ITEMS).unwrap_or(u64::MAX);
        let to = self.dealt_to.saturating_add(self.damaged.saturating_mul(chunk));
        let pending = (0..to).zip(&self.items).filter(|(_, cell)| cell.state == HostState::Pending);
        pending.map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::outcome::Verdict;
    use serde_json::json;

    fn fold(items: u64, events: impl IntoIterator<Item = Event>) -> MapFold {
        let terms = MapTerms { items, crc: 0, in_flight: 1, retries: 0, forks: 1, timeout_ms: 1 };
        let mut fold = MapFold::new(&terms, Timestamp::UNIX_EPOCH);
        events.into_iter().for_each(|event| fold.add(&LogLine { at: Timestamp::UNIX_EPOCH, event }));
        fold
    }

    fn dealt(chunk: u64, first: u64, count: u64) -> Event {
        Event::Dealt { chunk, host: "web1".parse().unwrap(), first, count }
    }

    fn done(chunk: u64, ends: impl IntoIterator<Item = u64>, back: &[u64], doubted: &[u64]) -> Event {
        let ends = ends.into_iter().map(|index| (index, Verdict::Ok { result: json!(index) })).collect();
        Event::Done { chunk, host: "web1".parse().unwrap(), ends, back: back.to_vec(), doubted: doubted.to_vec() }
    }

    #[test]
    fn items_are_counted_by_state_and_host() {
        let fold = fold(10, [dealt(0, 0, 4), done(0, [0, 1], &[2], &[3]), dealt(1, 4, 2)]);
        let counts = BTreeMap::from([(HostState::Pending, 6), (HostState::Running, 2), (HostState::Ok, 2)]);
        let tally = fold.tally();
        assert_eq!((tally.counts, tally.hosts.len(), fold.open().len(), fold.next_chunk()), (counts, 1, 1, 2));
        let host: MinionName = "web1".parse().unwrap();
        assert_eq!(fold.again().collect::<Vec<_>>(), [(2, &[][..]), (3, &[host][..])]);
    }

    #[test]
    fn what_has_ended_stays_so() {
        let fold = fold(2, [dealt(0, 0, 2), done(0, [0, 1], &[], &[]), dealt(1, 0, 2), done(1, [], &[0], &[1])]);
        assert_eq!(fold.tally().counts, BTreeMap::from([(HostState::Ok, 2)]));
        assert!(fold.ended_at().is_some());
    }

    #[test]
    fn a_line_that_cannot_be_read_puts_in_doubt_what_it_can_have_told_of() {
        let mut fold = fold(1000, [dealt(0, 0, 2), done(0, [0], &[1], &[]), dealt(2, 10, 1), done(2, [10], &[], &[])]);
        assert!(fold.in_doubt().is_empty());
        fold.miss();
        let doubt = fold.in_doubt();
        assert_eq!((doubt.first(), doubt.last(), doubt.len()), (Some(&1), Some(&266), 9 + 256));
        assert_eq!(fold.next_chunk(), 4);
    }
}
