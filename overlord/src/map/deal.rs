//! Which host gets which items, and what is done with those that come back. Decides; asks nobody, waits for nothing.
//!
//! An item that is known not to have begun goes to whichever host comes next. One that may have run is over, unless it may be run again: then it
//! goes alone, so that it drags no other with it, and to a host that has not been lost with it, while there is one. One with which two hosts were lost is
//! set aside whatever may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::Arguments;
use jiff::Timestamp;

use super::items::{Items, Read};

/// So many items may be begun beyond the first whose outcome is not printed yet.
const AHEAD_MAX_ITEMS: u64 = 16_384;
/// So much of results may wait for one before them.
const HELD_MAX_BYTES: usize = 64 << 20;
/// An item with which so many hosts were lost is given to no other.
const HOSTS_LOST_MAX: usize = 2;
/// A single item that is too large for so many hosts is given to no other.
const TOO_LARGE_MAX: usize = 3;
/// So often in a row may a host get nothing done before it gets no more.
const FAILURES_MAX: u32 = 5;
/// How long a host that got nothing done is left alone first; each time twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// One item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) index: u64,
    pub(crate) args: Arguments,
    pub(crate) bytes: usize,
    /// The hosts with which it was lost, once for each time.
    pub(crate) lost_on: Vec<usize>,
    /// The hosts that do not take it, because it is too large.
    too_large_for: Vec<usize>,
}

impl Item {
    /// Whether the host gets it only where no other is left.
    fn shuns(&self, host: usize) -> bool {
        self.lost_on.contains(&host) || self.too_large_for.contains(&host)
    }

    /// Whether it goes alone.
    fn is_marked(&self) -> bool {
        !self.lost_on.is_empty() || !self.too_large_for.is_empty()
    }
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ended {
    pub(crate) index: u64,
    /// None if it was given to no host.
    pub(crate) host: Option<MinionName>,
    pub(crate) outcome: Outcome,
    /// About how much memory the outcome takes.
    pub(crate) bytes: usize,
}

/// What a host gets.
#[derive(Debug, PartialEq)]
pub(crate) enum Dealt {
    /// These items, in a row.
    Chunk(Vec<Item>),
    /// Nothing now; there may be something later.
    Wait,
    /// Nothing before then: it has just got nothing done.
    Rest(Instant),
    /// Nothing any more.
    Over,
}

/// How much a host wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Player {
    name: MinionName,
    failures: u32,
    /// It is left alone until then.
    rests_until: Option<Instant>,
    /// Why it gets no more.
    retired: Option<Verdict>,
}

/// All items and hosts.
#[derive(Debug)]
pub(crate) struct Deal {
    items: Items,
    /// One that was read, and did not fit any more.
    ahead: Option<Read>,
    /// The next that was not dealt yet.
    fresh: u64,
    /// To be dealt again.
    again: BTreeMap<u64, Item>,
    in_flight: usize,
    printed: u64,
    held_bytes: usize,
    hosts: Vec<Player>,
    lanes: u64,
    retries: u32,
    is_stopped: bool,
    /// Why the items cannot be read any more.
    broken: Option<std::io::Error>,
}

impl Deal {
    /// Of `items` to `hosts`, each with so many of the `lanes`.
    pub(crate) fn new(items: Items, hosts: impl IntoIterator<Item = MinionName>, lanes: usize, retries: u32) -> Self {
        let hosts = hosts.into_iter().map(|name| Player { name, failures: 0, rests_until: None, retired: None }).collect();
        Self {
            items,
            ahead: None,
            fresh: 0,
            again: BTreeMap::new(),
            in_flight: 0,
            printed: 0,
            held_bytes: 0,
            hosts,
            lanes: u64::try_from(lanes).unwrap_or(1).max(1),
            retries,
            is_stopped: false,
            broken: None,
        }
    }

    /// What the host gets `now`.
    pub(crate) fn deal(&mut self, host: usize, wanted: Wanted, now: Instant) -> Dealt {
        let Some(player) = self.hosts.get(host).filter(|player| player.retired.is_none() && !self.is_over()) else { return Dealt::Over };
        if let Some(until) = player.rests_until.filter(|until| now < *until) {
            return Dealt::Rest(until);
        }
        let left = (self.items.count() - self.fresh).saturating_add(self.again.len() as u64);
        let share = usize::try_from(left.div_ceil(self.lanes)).unwrap_or(usize::MAX).max(1);
        let wanted = Wanted { items: wanted.items.min(share), ..wanted };
        let mut chunk = self.deal_again(host, wanted);
        if chunk.is_empty() {
            chunk = self.deal_fresh(wanted);
        }
        self.in_flight += chunk.len();
        match chunk.is_empty() {
            false => Dealt::Chunk(chunk),
            true if self.is_over() => Dealt::Over,
            true => Dealt::Wait,
        }
    }

    /// Whether no item is left to be dealt, nor may come back.
    pub(crate) fn is_over(&self) -> bool {
        self.is_stopped || self.broken.is_some() || self.in_flight == 0 && self.again.is_empty() && self.fresh == self.items.count()
    }

    fn deal_again(&mut self, host: usize, wanted: Wanted) -> Vec<Item> {
        let may_have = |item: &Item| !item.shuns(host) || !self.live().any(|other| !item.shuns(other));
        let Some(first) = self.again.values().find(|item| may_have(item)).map(|item| item.index) else { return Vec::new() };
        let (mut chunk, mut bytes) = (Vec::<Item>::new(), 0_usize);
        for index in first.. {
            let fits = |item: &&Item| {
                let is_with_others = chunk.is_empty() || !item.is_marked() && !chunk.iter().any(Item::is_marked);
                is_with_others && chunk.len() < wanted.items && (chunk.is_empty() || bytes + item.bytes <= wanted.bytes)
            };
            if self.again.get(&index).filter(fits).is_none() {
                break;
            }
            let Some(item) = self.again.remove(&index) else { break };
            bytes += item.bytes;
            chunk.push(item);
        }
        chunk
    }

    fn deal_fresh(&mut self, wanted: Wanted) -> Vec<Item> {
        let (mut chunk, mut bytes) = (Vec::new(), 0_usize);
        while chunk.len() < wanted.items && self.fresh < self.printed + AHEAD_MAX_ITEMS && self.held_bytes < HELD_MAX_BYTES {
            let Some(Read { args, bytes: more }) = self.next() else { break };
            if !chunk.is_empty() && bytes + more > wanted.bytes {
                self.ahead = Some(Read { args, bytes: more });
                break;
            }
            bytes += more;
            chunk.push(Item { index: self.fresh, args, bytes: more, lost_on: Vec::new(), too_large_for: Vec::new() });
            self.fresh += 1;
        }
        chunk
    }

    fn next(&mut self) -> Option<Read> {
        if let Some(ahead) = self.ahead.take() {
            return Some(ahead);
        }
        self.items.read().unwrap_or_else(|error| {
            self.broken = Some(error);
            None
        })
    }

    /// An item has ended, with an outcome of that size.
    pub(crate) fn end(&mut self, host: usize, item: &Item, outcome: Outcome, bytes: usize) -> Ended {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.held_bytes += bytes;
        Ended { index: item.index, host: self.name(host), outcome, bytes }
    }

    /// An item was not begun: another host gets it.
    pub(crate) fn give_back(&mut self, item: Item) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.again.insert(item.index, item);
    }

    /// It may have run, and what became of it is not known for the reason that `outcome` has. Its end, if it has one by that.
    pub(crate) fn lose(&mut self, host: usize, mut item: Item, outcome: Outcome) -> Option<Ended> {
        item.lost_on.push(host);
        let hosts: BTreeSet<usize> = item.lost_on.iter().copied().collect();
        if hosts.len() >= HOSTS_LOST_MAX {
            let names: Vec<String> = hosts.iter().filter_map(|host| self.name(*host)).map(String::from).collect();
            let last = outcome.verdict.error().map(|error| error.message.as_str()).unwrap_or_default();
            let message = format!(
                "it is set aside: what became of it is not known of {} hosts, {}, and no other is risked for it; of the last: {last}",
                hosts.len(),
                names.join(" and ")
            );
            return Some(self.end(host, &item, Outcome { verdict: Verdict::lost(message), ..outcome }, 0));
        }
        if item.lost_on.len() > self.retries as usize {
            return Some(self.end(host, &item, outcome, 0));
        }
        self.give_back(item);
        None
    }

    /// It is too large for the host, for the reason that `outcome` has: another may take it. Its end, if none does.
    pub(crate) fn refuse(&mut self, host: usize, mut item: Item, outcome: Outcome) -> Option<Ended> {
        item.too_large_for.push(host);
        if item.too_large_for.len() < TOO_LARGE_MAX && self.live().any(|other| !item.shuns(other)) {
            self.give_back(item);
            return None;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(self.end_without_run(item, Some(host), outcome))
    }

    /// The host has got something done.
    pub(crate) fn thank(&mut self, host: usize) {
        if let Some(player) = self.hosts.get_mut(host) {
            (player.failures, player.rests_until) = (0, None);
        }
    }

    /// It has got nothing done of what it was dealt then, for the reason in `verdict`: it rests, or gets no more. Chunks that were dealt before it
    /// rested have met the same misfortune, and count no more.
    pub(crate) fn blame(&mut self, host: usize, dealt_at: Instant, verdict: Verdict, now: Instant) {
        let Some(player) = self.hosts.get_mut(host) else { return };
        if player.rests_until.is_none_or(|until| dealt_at >= until) {
            player.rests_until = Some(now + PAUSE * 2_u32.saturating_pow(player.failures));
            player.failures += 1;
        }
        // That it may not, or cannot, is true the next time, too.
        let is_settled = matches!(verdict, Verdict::Denied { .. } | Verdict::Failed { .. });
        if is_settled || player.failures >= FAILURES_MAX {
            player.retired.get_or_insert(verdict);
        }
    }

    /// All before `index` is printed, and with it outcomes of that size.
    pub(crate) fn print(&mut self, index: u64, bytes: usize) {
        self.printed = index;
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// Goes on where another has stopped: of the items before `fresh` those are dealt again of which `again` knows the hosts with which they were lost;
    /// the others have ended. To be called before anything is dealt.
    ///
    /// # Errors
    /// The items cannot be read.
    pub(crate) fn go_on(&mut self, fresh: u64, mut again: impl FnMut(u64) -> Option<Vec<MinionName>>) -> std::io::Result<()> {
        while self.fresh < fresh.min(self.items.count()) {
            let index = self.fresh;
            let Some(Read { args, bytes }) = self.items.read()? else { break };
            if let Some(lost_on) = again(index) {
                let lost_on = lost_on.iter().map(|name| self.seat(name)).collect();
                self.again.insert(index, Item { index, args, bytes, lost_on, too_large_for: Vec::new() });
            }
            self.fresh += 1;
        }
        Ok(())
    }

    /// One that was to be dealt again, as if that host had it.
    pub(crate) fn take_again(&mut self, index: u64) -> Option<Item> {
        let item = self.again.remove(&index)?;
        self.in_flight += 1;
        Some(item)
    }

    /// The number of a host, which gets nothing if it is none of those that take part.
    pub(crate) fn seat(&mut self, name: &MinionName) -> usize {
        self.hosts.iter().position(|player| player.name == *name).unwrap_or_else(|| {
            let retired = Some(Verdict::undelivered("it is no longer in hosts.toml"));
            self.hosts.push(Player { name: name.clone(), failures: 0, rests_until: None, retired });
            self.hosts.len() - 1
        })
    }

    /// Outcomes wait for nobody: all items may be begun.
    pub(crate) fn unbind(&mut self, bytes: usize) {
        self.print(self.items.count(), bytes);
    }

    /// Nothing more is dealt.
    pub(crate) fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// When nobody works any more: an item that nobody has got; none if none is left.
    pub(crate) fn left(&mut self) -> Option<Ended> {
        let verdict = if self.is_stopped { Verdict::undelivered("interrupted before it was sent") } else { self.fate() };
        let outcome = Outcome::not_run(verdict, Timestamp::now());
        if let Some((_, item)) = self.again.pop_first() {
            return Some(self.end_without_run(item, None, outcome));
        }
        if self.is_stopped || self.fresh == self.items.count() {
            return None;
        }
        self.fresh += 1;
        Some(Ended { index: self.fresh - 1, host: None, outcome, bytes: 0 })
    }

    /// The end of an item that `outcome` says was not run; but if it was lost before, that is what is true of it.
    fn end_without_run(&self, item: Item, host: Option<usize>, outcome: Outcome) -> Ended {
        let (host, outcome) = match item.lost_on.last().and_then(|host| self.name(*host)) {
            Some(host) => {
                let message = format!("it may have run on {host}, which did not say what became of it, and no host has run it again since");
                (Some(host), Outcome { verdict: Verdict::lost(message), ..outcome })
            }
            None => (host.and_then(|host| self.name(host)), outcome),
        };
        Ended { index: item.index, host, outcome, bytes: 0 }
    }

    /// The hosts that may get more.
    fn live(&self) -> impl Iterator<Item = usize> {
        self.hosts.iter().enumerate().filter(|(_, player)| player.retired.is_none()).map(|(host, _)| host)
    }

    /// The first item that was never dealt.
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh
    }

    /// How many items were never dealt.
    pub(crate) fn untouched(&self) -> u64 {
        self.items.count() - self.fresh
    }

    /// Why no host works any more: what all of them say, or all that they say.
    fn fate(&self) -> Verdict {
        if let Some(error) = &self.broken {
            return Verdict::undelivered(format!("the items cannot be read any more: {error}"));
        }
        let reasons: Vec<(&MinionName, &Verdict)> =
            self.hosts.iter().filter_map(|player| Some((&player.name, player.retired.as_ref()?))).collect();
        let told: Vec<String> = reasons
            .iter()
            .map(|(host, verdict)| format!("{host}: {}", verdict.error().map_or("", |error| &error.message)))
            .take(3)
            .collect();
        let more = reasons.len().saturating_sub(told.len());
        let more = if more > 0 { format!("; and {more} more hosts") } else { String::new() };
        let message = format!("no host takes it: {}{more}", told.join("; "));
        let is_denied = !reasons.is_empty() && reasons.iter().all(|(_, verdict)| matches!(verdict, Verdict::Denied { .. }));
        match (is_denied, reasons.first()) {
            (true, _) => Verdict::Denied { error: Failure::new(ErrorCode::Denied, message) },
            (false, Some((_, Verdict::Failed { error })))
                if reasons.iter().all(|(_, verdict)| matches!(verdict, Verdict::Failed { .. })) =>
            {
                Verdict::Failed { error: Failure { message, ..error.clone() } }
            }
            _ => Verdict::undelivered(message),
        }
    }

    fn name(&self, host: usize) -> Option<MinionName> {
        self.hosts.get(host).map(|player| player.name.clone())
    }
}

#[cfg(test)]
mod tests;
