//! Refusals that anybody can bring about again and again, counted: who has proved nothing must not fill the log, and so drive out of it what
//! counts. It decides nothing, and writes nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So long after somebody's first refusal, further ones are counted.
pub const COUNTED_FOR: Duration = Duration::from_secs(60);
/// So many refusals of somebody are written down first: they say who, and why.
const WRITTEN_MAX: u64 = 8;
/// So many are counted each by himself, and all others together. With [`WRITTEN_MAX`] it bounds the lines of a minute.
const COUNTED_APART_MAX: usize = 256;

/// What was refused within the last minute, to whom, by some `K`. With it is kept some `F` of the first refusal.
#[derive(Debug)]
pub struct Repeats<K, F> {
    counts: Mutex<HashMap<Option<K>, Count<F>>>,
}

#[derive(Debug)]
struct Count<F> {
    first: Option<F>,
    since: Instant,
    written: u64,
    more: u64,
}

/// What was counted of somebody for a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated<F> {
    /// What is known of his first refusal; none: these are of all who could not be counted apart.
    pub first: Option<F>,
    /// How many were counted, and not written down.
    pub more: u64,
}

impl<K, F> Default for Repeats<K, F> {
    fn default() -> Self {
        Self { counts: Mutex::default() }
    }
}

impl<K: Eq + Hash, F> Repeats<K, F> {
    /// Counts a refusal of `who`. Whether it is one that is counted alone, and not to be written down.
    pub fn is_repeated(&self, who: K, first: F, now: Instant) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let who = Some(who);
        if let Some(count) = counts.get_mut(&who) {
            let is_repeated = count.written >= WRITTEN_MAX;
            *(if is_repeated { &mut count.more } else { &mut count.written }) += 1;
            return is_repeated;
        }
        if counts.len() < COUNTED_APART_MAX {
            counts.insert(who, Count { first: Some(first), since: now, written: 1, more: 0 });
            return false;
        }
        counts.entry(None).or_insert(Count { first: None, since: now, written: 0, more: 0 }).more += 1;
        true
    }

    /// What is to be written down at `now`, and is counted no longer.
    pub fn due(&self, now: Instant) -> Vec<Repeated<F>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let over = counts.extract_if(|_, count| now.saturating_duration_since(count.since) >= COUNTED_FOR);
        over.filter(|(_, count)| count.more > 0).map(|(_, count)| Repeated { first: count.first, more: count.more }).collect()
    }

    /// When [`Repeats::due`] has something next.
    pub fn due_at(&self) -> Option<Instant> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.values().filter(|count| count.more > 0).map(|count| count.since + COUNTED_FOR).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusals_are_written_down_and_the_others_are_counted_for_a_minute() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let written = |who: u32| (1..=1000).filter(|time| !repeats.is_repeated(who, (who, *time), now)).count();
        assert_eq!((written(7), written(8), repeats.due_at()), (8, 8, Some(now + COUNTED_FOR)));
        assert!(repeats.due(now + COUNTED_FOR / 2).is_empty());
        let mut told = repeats.due(now + COUNTED_FOR);
        told.sort_by_key(|repeated| repeated.first);
        assert_eq!(told, [7, 8].map(|who| Repeated { first: Some((who, 1)), more: 992 }));
        assert_eq!((repeats.due_at(), written(7)), (None, 8), "another minute has begun");
    }

    #[test]
    fn what_is_refused_to_very_many_is_counted_together() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let written = (0..2 * COUNTED_APART_MAX).filter(|who| !repeats.is_repeated(*who, (), now)).count();
        assert_eq!(written, COUNTED_APART_MAX);
        assert_eq!(repeats.due(now + COUNTED_FOR), [Repeated { first: None, more: COUNTED_APART_MAX as u64 }]);
    }
}
