//! A map: one method for each of many items, on whichever of a target's hosts has time. Hosts take chunks of items as they get done with others
//! (`lane`), who gets which is decided in one place (`deal`), and the outcomes are given on in the order of the items.
//!
//! What may have run on a host is never run again, unless it was asked for; and what is known not to have run is given to another host. It prints nothing.

pub(crate) mod deal;
pub(crate) mod items;
pub(crate) mod journal;
pub(crate) mod kept;
mod lane;

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::method::MethodName;
use tokio::sync::{Notify, Semaphore};

use crate::buckets::{BucketError, fan_out_each, forks_max};
use crate::fleet::{Link, LinkError, Stop, Target, gossip};
use deal::{Deal, Ended, Item};
use items::Items;
use journal::Journal;
pub(crate) use lane::Fates;
use lane::Lane;

/// Why nothing was mapped. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// We cannot talk to hosts.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Threads cannot be started.
    #[error(transparent)]
    Buckets(#[from] BucketError),
}

/// How items are dealt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// So many chunks a host has at once.
    pub(crate) in_flight: u16,
    /// So often an item of which it is not known what became may be run again.
    pub(crate) retries: u32,
}

/// What all lanes share.
struct Table<'a> {
    target: &'a Target,
    link: &'a Link,
    method: &'a MethodName,
    stop: &'a Stop,
    deal: Mutex<Deal>,
    /// Where all that is dealt is written down first.
    journal: Option<&'a Journal>,
    /// Something has changed in the deal.
    news: Notify,
    /// Chunks that may be in flight.
    forks: Semaphore,
}

impl Target {
    /// Runs `method` for each of `items` on hosts of the target, and gives what became of each to `each`, in the order of the items, on the caller's
    /// thread; and in the end how many were not even begun with, because it was stopped.
    ///
    /// # Errors
    /// There is no certificate to call with. Nothing was sent then. What `each` gives as an error ends it, and comes back within.
    pub(crate) fn map_each(
        &self,
        method: &MethodName,
        items: Items,
        terms: Terms,
        stop: &Stop,
        each: impl FnMut(Ended) -> io::Result<()>,
    ) -> Result<io::Result<u64>, MapError> {
        let link = self.fleet().link()?;
        let lanes = self.lanes(terms.in_flight);
        let deal = self.deal_of(items, terms);
        let (table, at_once) = self.table((link, method, stop), deal, lanes.len(), None);
        let work = |lane: Lane, ends| lane.work(&table, ends);
        let collected = fan_out_each(lanes, at_once, work, |ends| table.collect(ends, each))?;
        if !stop.is_stopped() {
            gossip::carry_on(self.fleet(), link, stop, None);
        }
        Ok(collected.map(|()| table.deal().untouched()))
    }

    /// A deal of items to the hosts of the target.
    pub(crate) fn deal_of(&self, items: Items, terms: Terms) -> Deal {
        let names = self.members().iter().take(usize::from(forks_max())).map(|host| host.name.clone());
        Deal::new(items, names, self.lanes(terms.in_flight).len(), terms.retries)
    }

    /// Runs `method` for each item of the deal, and has `journal` write down what becomes of it; nothing is sent that is not on the disk before. Gives the deal,
    /// in which only such items are left as nobody got.
    ///
    /// # Errors
    /// There is no certificate to call with. Nothing was sent then.
    pub(crate) fn map_into(
        &self,
        method: &MethodName,
        (mut deal, in_flight): (Deal, u16),
        stop: &Stop,
        journal: &Journal,
    ) -> Result<Deal, MapError> {
        let link = self.fleet().link()?;
        let lanes = self.lanes(in_flight);
        deal.unbind(0);
        let (table, at_once) = self.table((link, method, stop), deal, lanes.len(), Some(journal));
        fan_out_each(lanes, at_once, |lane: Lane, ends| lane.work(&table, ends), |ends| table.drain(ends))?;
        Ok(table.deal.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn lanes(&self, in_flight: u16) -> Vec<Lane> {
        let hosts = self.members().len().min(usize::from(forks_max()));
        let rounds = (0..usize::from(in_flight.max(1))).flat_map(|_| 0..hosts);
        rounds.take(usize::from(forks_max())).map(Lane::to).collect()
    }

    fn table<'t>(
        &'t self,
        (link, method, stop): (&'t Link, &'t MethodName, &'t Stop),
        deal: Deal,
        lanes: usize,
        journal: Option<&'t Journal>,
    ) -> (Table<'t>, u16) {
        let forks = Semaphore::new(usize::from(self.forks()));
        let table = Table { target: self, link, method, stop, deal: Mutex::new(deal), journal, news: Notify::new(), forks };
        (table, u16::try_from(lanes).unwrap_or(u16::MAX))
    }
}

impl Table<'_> {
    fn deal(&self) -> MutexGuard<'_, Deal> {
        // A thread that panicked held it for one change, which is made or not.
        self.deal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That the chunk goes to the host is on the disk when this gives its number; none if that is not to be had, and it must not be sent.
    async fn note_dealt(&self, host: usize, chunk: &[Item]) -> Option<u64> {
        let Some(journal) = self.journal else { return Some(0) };
        let (name, first) = (self.target.members().get(host)?.name.clone(), chunk.first()?.index);
        let number = journal.dealt(name, first, u64::try_from(chunk.len()).ok()?).await;
        if number.is_none() {
            self.deal().stop();
            self.stop.stop();
        }
        number
    }

    fn note_done(&self, number: u64, host: usize, chunk: &[u64], fates: &Fates) {
        if let Some((journal, host)) = self.journal.zip(self.target.members().get(host)) {
            journal.done(number, host.name.clone(), chunk, fates);
        }
    }

    /// Lets go of what comes: it is written down.
    fn drain(&self, ends: &Receiver<Ended>) {
        while let Ok(first) = ends.recv() {
            let bytes = std::iter::once(first).chain(ends.try_iter()).map(|ended| ended.bytes).sum();
            self.deal().unbind(bytes);
            self.news.notify_waiters();
        }
    }

    /// Gives on what comes, in order, until nobody works any more, and then what nobody got.
    fn collect(&self, ends: &Receiver<Ended>, mut each: impl FnMut(Ended) -> io::Result<()>) -> io::Result<()> {
        let mut row = Row::default();
        while let Ok(first) = ends.recv() {
            let mut printed = 0;
            for ended in std::iter::once(first).chain(ends.try_iter()) {
                printed += row.put(ended, &mut each).inspect_err(|_unread| self.stop.stop())?;
            }
            self.deal().print(row.next, printed);
            self.news.notify_waiters();
        }
        while let Some(ended) = { self.deal().left() } {
            row.put(ended, &mut each)?;
        }
        Ok(())
    }
}

/// What has ended before others that come first.
#[derive(Default)]
struct Row {
    next: u64,
    held: BTreeMap<u64, Ended>,
}

impl Row {
    /// Gives on all that stands in a row now; about how much memory that took.
    fn put(&mut self, ended: Ended, each: &mut impl FnMut(Ended) -> io::Result<()>) -> io::Result<usize> {
        self.held.insert(ended.index, ended);
        let mut bytes = 0;
        while let Some(ended) = self.held.remove(&self.next) {
            self.next += 1;
            bytes += ended.bytes;
            each(ended)?;
        }
        Ok(bytes)
    }
}
