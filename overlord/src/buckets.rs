//! Fan-out: items are dealt into buckets, each a rayon thread with a single-threaded runtime of its own, and no more than
//! `forks` of them are in flight in total. A bucket that runs dry takes from the fullest. Knows nothing of what is done with an item.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use futures_util::stream::{FuturesUnordered, StreamExt};
use nix::sys::resource::{Resource, getrlimit};

/// Files that are open besides the connections: what the program has open anyway, the job log, the store.
const OTHER_FILES: usize = 64;
/// Files that each bucket's runtime has open.
const BUCKET_FILES: usize = 4;

/// Why a fan-out could not be begun. No item was worked on.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the threads that talk to hosts: {reason}")]
pub struct BucketError {
    reason: String,
}

/// Works through `items`, at most `forks` at a time, while `collect` takes the results as they come, on the caller's thread.
///
/// The channel has no bound of its own: it holds at most one result for each item.
pub(crate) fn fan_out<T, R, C, W, F>(items: Vec<T>, forks: u16, work: W, collect: impl FnOnce(&Receiver<R>) -> C) -> Result<C, BucketError>
where
    T: Send,
    R: Send,
    W: Fn(T) -> F + Sync,
    F: Future<Output = R>,
{
    let work = &work;
    let work_and_send = |item, results: Sender<R>| async move {
        // Whoever collects may stop early, for instance when a disk is full; what is left then has no reader.
        let _unread = results.send(work(item).await);
    };
    fan_out_each(items, forks, work_and_send, collect)
}

/// As [`fan_out`], where the work on an item sends any number of results itself, and sees to it that they do not pile up.
pub(crate) fn fan_out_each<T, R, C, W, F>(
    items: Vec<T>,
    forks: u16,
    work: W,
    collect: impl FnOnce(&Receiver<R>) -> C,
) -> Result<C, BucketError>
where
    T: Send,
    R: Send,
    W: Fn(T, Sender<R>) -> F + Sync,
    F: Future<Output = ()>,
{
    let (results, arrivals) = channel();
    let work = &work;
    thread::scope(|scope| {
        // The channel closes when the last item is done, so its sender goes with the work.
        let worker = scope.spawn(move || work_through(items, forks, |item| work(item, results.clone())));
        let collected = collect(&arrivals);
        match worker.join() {
            Ok(done) => done.map(|()| collected),
            Err(_) => Err(BucketError { reason: "one of them panicked".to_owned() }),
        }
    })
}

fn work_through<T, W, F>(items: Vec<T>, forks: u16, work: W) -> Result<(), BucketError>
where
    T: Send,
    W: Fn(T) -> F + Sync,
    F: Future<Output = ()>,
{
    let forks = usize::from(forks.min(forks_max()).max(1));
    let count = forks.min(cores()).min(items.len());
    if count == 0 {
        return Ok(());
    }
    let buckets = Buckets::deal(items, count);
    // A pool of its own: its threads wait for hosts, which nobody else's work should.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("bucket-{index}"));
    let pool = pool.build().map_err(|error| BucketError { reason: error.to_string() })?;
    let ended = pool.broadcast(|context| {
        let slots = forks / count + usize::from(context.index() < forks % count);
        buckets.empty(context.index(), slots, &work)
    });
    // A bucket without a runtime leaves its items to the others; only where no other took them is it an error.
    match (buckets.is_empty(), ended.into_iter().find_map(Result::err)) {
        (false, Some(error)) => Err(BucketError { reason: error.to_string() }),
        _ => Ok(()),
    }
}

/// The most items that can be in flight: each may hold a connection, an open file. More would fail for want of files, and
/// look like hosts that cannot be reached.
pub(crate) fn forks_max() -> u16 {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(files, _)| files);
    forks_with(usize::try_from(files).unwrap_or(usize::MAX), cores())
}

fn forks_with(files: usize, cores: usize) -> u16 {
    let others = OTHER_FILES.saturating_add(cores.saturating_mul(BUCKET_FILES));
    u16::try_from(files.saturating_sub(others)).unwrap_or(u16::MAX).max(1)
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

struct Buckets<T> {
    queues: Vec<Mutex<VecDeque<T>>>,
}

impl<T> Buckets<T> {
    fn deal(items: Vec<T>, count: usize) -> Self {
        let mut queues: Vec<VecDeque<T>> = (0..count).map(|_| VecDeque::with_capacity(items.len() / count + 1)).collect();
        for (index, item) in items.into_iter().enumerate() {
            if let Some(queue) = queues.get_mut(index % count) {
                queue.push_back(item);
            }
        }
        Self { queues: queues.into_iter().map(Mutex::new).collect() }
    }

    /// Works on the bucket `index`, then on what others have left, `slots` at a time.
    fn empty<W, F>(&self, index: usize, slots: usize, work: &W) -> std::io::Result<()>
    where
        W: Fn(T) -> F,
        F: Future<Output = ()>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut in_flight = FuturesUnordered::new();
            loop {
                while in_flight.len() < slots
                    && let Some(item) = self.take(index)
                {
                    in_flight.push(work(item));
                }
                if in_flight.next().await.is_none() {
                    return;
                }
            }
        });
        // A name server that does not answer must not keep the command: dropping the runtime would wait for it.
        runtime.shutdown_background();
        Ok(())
    }

    fn take(&self, index: usize) -> Option<T> {
        let own = self.queues.get(index).and_then(|queue| lock(queue).pop_front());
        own.or_else(|| self.steal())
    }

    /// The last item of the fullest bucket.
    fn steal(&self) -> Option<T> {
        let fullest = self.queues.iter().max_by_key(|queue| lock(queue).len())?;
        lock(fullest).pop_back()
    }

    fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| lock(queue).is_empty())
    }
}

/// Every change to a queue is one call, so a queue is whole even if a thread died while it held the lock.
fn lock<T>(queue: &Mutex<VecDeque<T>>) -> MutexGuard<'_, VecDeque<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::{Duration, Instant};

    async fn pause(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    #[test]
    fn every_item_is_worked_on_once_and_no_more_at_a_time_than_forks() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |item: usize| {
            let (now, most) = (&now, &most);
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                pause(1 + u64::try_from(item % 3).unwrap()).await;
                now.fetch_sub(1, SeqCst);
                item
            }
        };
        let mut done = fan_out((0..200).collect(), 7, work, |arrivals| arrivals.iter().collect::<Vec<_>>()).unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..200).collect::<Vec<_>>());
        assert!((2..=7).contains(&most.load(SeqCst)), "{most:?}");
    }

    #[test]
    fn a_bucket_that_runs_dry_takes_from_the_fullest() {
        // With two buckets of one slot each, the even items all lie with the first, which is stuck on item 0 until all others are done.
        let (done, stuck_until) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(30));
        let work = |item: u64| {
            let done = &done;
            async move {
                while item == 0 && done.load(SeqCst) < 99 && Instant::now() < stuck_until {
                    pause(1).await;
                }
                done.fetch_add(1, SeqCst)
            }
        };
        let last = fan_out((0..100).collect(), 2, work, |arrivals| arrivals.iter().last()).unwrap();
        if thread::available_parallelism().unwrap().get() > 1 {
            assert_eq!((last, Instant::now() < stuck_until), (Some(99), true));
        }
    }

    #[test]
    fn no_more_are_in_flight_than_files_may_be_open() {
        assert_eq!(
            [(1024, 2), (1024, 64), (64, 1), (usize::MAX, 2)].map(|(files, cores)| forks_with(files, cores)),
            [952, 704, 1, u16::MAX]
        );
    }

    #[test]
    fn nothing_to_do_is_done_at_once() {
        assert_eq!(fan_out(vec![], 64, |(): ()| async {}, |arrivals| arrivals.iter().count()).unwrap(), 0);
    }
}
