//! Who may be connected at once to the socket where jobs submit calls. Everybody on the host may connect, so each user has a place of his own, whatever
//! the others do; of all further ones he has no more than he leaves to others. It reads nothing, and decides about no submission.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::outcome::{ErrorCode, Failure};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::NO_PLACE;

/// Users who have a place at once, each his first. One more takes that of the one who has kept the server waiting longest: somebody may have many
/// users, as user namespaces give them.
const FIRST_MAX: usize = 256;
/// Further connections at once, of all users.
const FURTHER_MAX: usize = 64;

/// The connections there are.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    last: u64,
    first: HashMap<u32, First>,
    further: HashMap<u32, usize>,
}

/// A user's first connection.
#[derive(Debug)]
struct First {
    number: u64,
    /// It is being answered, and stays.
    is_kept: bool,
    lost: Arc<Notify>,
}

/// A user's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    user: u32,
    kind: Kind,
    is_released: AtomicBool,
}

#[derive(Debug)]
enum Kind {
    First { number: u64, lost: Arc<Notify> },
    Further,
}

impl Places {
    /// A place for `user`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn take(places: &Arc<Self>, user: u32) -> Result<Place, Failure> {
        let kind = places.taken().take(user)?;
        Ok(Place { places: Arc::clone(places), user, kind, is_released: AtomicBool::new(false) })
    }

    /// Every change is one call, so it is whole even if a thread died while it held the lock.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn take(&mut self, user: u32) -> Result<Kind, Failure> {
        if self.first.contains_key(&user) {
            return self.take_further(user);
        }
        if self.first.len() >= FIRST_MAX && !self.displace() {
            return Err(no_place(format!("{FIRST_MAX} users are connected here, as many as may be, and all of them are being answered")));
        }
        self.last += 1;
        let (number, lost) = (self.last, Arc::new(Notify::new()));
        self.first.insert(user, First { number, is_kept: false, lost: Arc::clone(&lost) });
        Ok(Kind::First { number, lost })
    }

    fn take_further(&mut self, user: u32) -> Result<Kind, Failure> {
        let free = FURTHER_MAX.saturating_sub(self.further.values().sum());
        let own = self.further.get(&user).copied().unwrap_or_default();
        if own >= free {
            return Err(no_place(format!(
                "the user {user} has {own} connections here beside the first, and of {FURTHER_MAX} for all users {free} are free, which is as many \
                 as are left to others"
            )));
        }
        self.further.insert(user, own + 1);
        Ok(Kind::Further)
    }

    /// Takes the first place of whoever has kept us waiting longest, if one does.
    fn displace(&mut self) -> bool {
        let waiting = self.first.iter().filter(|(_, first)| !first.is_kept).min_by_key(|(_, first)| first.number);
        let Some(user) = waiting.map(|(user, _)| *user) else { return false };
        if let Some(first) = self.first.remove(&user) {
            first.lost.notify_one();
        }
        true
    }

    /// The first place of the user, if it is that of this number still.
    fn first(&mut self, user: u32, number: u64) -> Option<&mut First> {
        self.first.get_mut(&user).filter(|first| first.number == number)
    }

    fn give_back(&mut self, user: u32, kind: &Kind) {
        match kind {
            Kind::First { number, .. } if self.first(user, *number).is_some() => drop(self.first.remove(&user)),
            Kind::First { .. } => {}
            Kind::Further => {
                if let Some(own) = self.further.get_mut(&user) {
                    *own -= 1;
                }
                self.further.retain(|_, own| *own > 0);
            }
        }
    }
}

impl Place {
    /// Whose it is.
    pub(super) fn user(&self) -> u32 {
        self.user
    }

    /// Until another has taken it: then that there is none.
    pub(super) async fn lost(&self) -> Failure {
        match &self.kind {
            Kind::First { lost, .. } => lost.notified().await,
            Kind::Further => pending().await,
        }
        taken_by_another()
    }

    /// Keeps it, because the server is about to answer.
    ///
    /// # Errors
    /// Another has taken it.
    pub(super) fn keep(&self) -> Result<(), Failure> {
        self.set_kept(true).ok_or_else(taken_by_another)
    }

    /// Gives it back before its time: its connection goes on, as the wait of a job that is believed, and is counted elsewhere.
    pub(super) fn release(&self) {
        if !self.is_released.swap(true, Ordering::Relaxed) {
            self.places.taken().give_back(self.user, &self.kind);
        }
    }

    /// Has it for nothing for this long, or until another takes it.
    pub(super) async fn wait_at_most(&self, pause: Duration) {
        if self.set_kept(false).is_some() {
            let _lost_or_over = timeout(pause, self.lost()).await;
        }
    }

    /// None: it is lost.
    fn set_kept(&self, is_kept: bool) -> Option<()> {
        let Kind::First { number, .. } = self.kind else { return Some(()) };
        self.places.taken().first(self.user, number).map(|first| first.is_kept = is_kept)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.release();
    }
}

fn taken_by_another() -> Failure {
    no_place(format!("{FIRST_MAX} users are connected here, as many as may be, and another took the place of this connection"))
}

fn no_place(why: String) -> Failure {
    Failure::new(ErrorCode::LimitReached, format!("{why}; try again")).with_data(json!({ "type": NO_PLACE }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn take_all(places: &Arc<Places>, user: u32) -> Vec<Place> {
        std::iter::from_fn(|| Places::take(places, user).ok()).collect()
    }

    #[test]
    fn whoever_takes_all_he_gets_leaves_as_many_to_others() {
        let places = Arc::default();
        let first = take_all(&places, 1);
        let second = take_all(&places, 2);
        let third = take_all(&places, 3);
        assert_eq!([first.len(), second.len(), third.len()], [33, 17, 9]);
        let refusal = Places::take(&places, 1).unwrap_err();
        assert!(refusal.is(ErrorCode::LimitReached) && refusal.data.unwrap()["type"] == NO_PLACE);
        drop(first);
        assert!(Places::take(&places, 1).is_ok());
        drop((second, third));
        assert_eq!(take_all(&places, 4).len(), 33);
        let taken = places.taken();
        assert!(taken.first.is_empty() && taken.further.is_empty(), "{taken:?}");
    }

    #[test]
    fn a_place_that_was_given_back_is_anothers_and_is_not_given_back_twice() {
        let places = Arc::default();
        let held = take_all(&places, 1);
        held.iter().for_each(Place::release);
        let others = take_all(&places, 1);
        assert_eq!((held.len(), others.len()), (33, 33));
        drop(held);
        assert!(Places::take(&places, 1).is_err(), "they are the others' still");
    }

    #[test]
    fn however_many_users_take_all_they_get_there_is_a_place_for_the_next() {
        let places = Arc::default();
        let held: Vec<_> = (0..100).map(|user| take_all(&places, user)).collect();
        assert!(held.iter().all(|own| !own.is_empty()));
        assert!(Places::take(&places, 100).is_ok());
    }

    #[tokio::test]
    async fn where_all_users_are_there_that_may_be_who_has_kept_us_waiting_longest_goes() {
        let places = Arc::default();
        let mut held: Vec<Place> = (0..256).map(|user| Places::take(&places, user).unwrap()).collect();
        held[0].keep().unwrap();
        let next = Places::take(&places, 1000).unwrap();
        assert_eq!(held[1].lost().await.data.unwrap()["type"], NO_PLACE);
        assert!(held[1].keep().is_err() && held[2].keep().is_ok());
        // It is another's connection now that is the user's first.
        let again = Places::take(&places, 1).unwrap();
        held.remove(1);
        assert!(again.keep().is_ok() && next.keep().is_ok());
        held.iter().for_each(|place| drop(place.keep()));
        assert!(Places::take(&places, 1001).is_err(), "all are being answered");
        again.wait_at_most(Duration::ZERO).await;
        assert!(Places::take(&places, 1001).is_ok());
    }
}
