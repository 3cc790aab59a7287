//! Which task is where: waiting, or with which instance. It decides and remembers; it does no IO and knows no clock but the times it is given.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use serde_json::Value;

/// Which instance holds a task: its place in the worker, from 1.
pub(super) type SlotId = usize;

/// Whom an answer goes to: a connection, and the id of the request there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticket {
    pub(super) caller: u64,
    pub(super) request: Value,
}

/// One task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Task {
    pub(super) id: String,
    pub(super) ticket: Ticket,
    /// For whom it is.
    pub(super) by: String,
    /// `{"text"}` or `{"base64"}`.
    pub(super) payload: Value,
    /// How large that is.
    pub(super) bytes: usize,
    /// When it came, and since when an instance has it.
    pub(super) since: Instant,
    /// That it is to stop.
    pub(super) wish: Option<Wish>,
    /// How far it says it is.
    pub(super) progress: Option<(f64, String)>,
}

/// That a task is to stop.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    /// Who wants it, and when, in words for the caller.
    pub(super) why: String,
    /// When the instance is killed that goes on with it.
    pub(super) kill_at: Instant,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// It waits.
    Waiting,
    /// An instance has it.
    With(SlotId),
    /// There is none of that id, or no more.
    Nowhere,
}

/// How many tasks may wait, and how many bytes their payloads may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) tasks: usize,
    pub(super) bytes: usize,
}

/// All tasks of a worker, and their counts.
#[derive(Debug, Default)]
pub(super) struct Desk {
    waiting: VecDeque<Task>,
    waiting_bytes: usize,
    held: BTreeMap<SlotId, Task>,
    count: u64,
    /// No task has the id of one of an earlier daemon.
    prefix: String,
}

impl Desk {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// Takes a task in, unless as many wait as may; gives its id.
    pub(super) fn accept(&mut self, ticket: Ticket, by: String, (payload, bytes): (Value, usize), room: Room) -> Option<String> {
        // A single one is as large as a payload may be.
        let is_too_much = !self.waiting.is_empty() && self.waiting_bytes.saturating_add(bytes) > room.bytes;
        if self.waiting.len() >= room.tasks || is_too_much {
            return None;
        }
        self.count += 1;
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        let id = format!("{}-{}", self.prefix, self.count);
        self.waiting.push_back(Task { id: id.clone(), ticket, by, payload, bytes, since: Instant::now(), wish: None, progress: None });
        Some(id)
    }

    /// The longest waiting task goes to an instance, which has none.
    pub(super) fn hand_out(&mut self, slot: SlotId, now: Instant) -> Option<&Task> {
        if self.held.contains_key(&slot) {
            return None;
        }
        let mut task = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(task.bytes);
        task.since = now;
        Some(self.held.entry(slot).or_insert(task))
    }

    /// An instance has done with the task of that id; none if that is not the one that it has.
    pub(super) fn settle(&mut self, slot: SlotId, id: &str) -> Option<Task> {
        let is_its = self.held.get(&slot).is_some_and(|task| task.id == id);
        if is_its { self.held.remove(&slot) } else { None }
    }

    /// An instance has no task any more; the one that it had.
    pub(super) fn lose(&mut self, slot: SlotId) -> Option<Task> {
        self.held.remove(&slot)
    }

    /// What an instance has.
    pub(super) fn held(&self, slot: SlotId) -> Option<&Task> {
        self.held.get(&slot)
    }

    pub(super) fn held_mut(&mut self, slot: SlotId) -> Option<&mut Task> {
        self.held.get_mut(&slot)
    }

    /// Where the task of that id is.
    pub(super) fn find(&self, id: &str) -> Whereabouts {
        let held = self.held.iter().find(|(_, task)| task.id == id).map(|(slot, _)| Whereabouts::With(*slot));
        let waits = || self.waiting.iter().any(|task| task.id == id).then_some(Whereabouts::Waiting);
        held.or_else(waits).unwrap_or(Whereabouts::Nowhere)
    }

    /// The task of that id, wherever it is.
    pub(super) fn task(&self, id: &str) -> Option<&Task> {
        self.all().map(|(_, task)| task).find(|task| task.id == id)
    }

    /// All tasks, each with the instance that has it.
    pub(super) fn all(&self) -> impl Iterator<Item = (Option<SlotId>, &Task)> {
        let held = self.held.iter().map(|(slot, task)| (Some(*slot), task));
        held.chain(self.waiting.iter().map(|task| (None, task)))
    }

    /// A task that waits is to wait no more.
    pub(super) fn withdraw(&mut self, id: &str) -> Option<Task> {
        let at = self.waiting.iter().position(|task| task.id == id)?;
        let task = self.waiting.remove(at)?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(task.bytes);
        Some(task)
    }

    /// A caller is gone: what waits for it is forgotten, and these instances work for nobody.
    pub(super) fn hang_up(&mut self, caller: u64) -> Vec<SlotId> {
        self.waiting.retain(|task| task.ticket.caller != caller);
        self.waiting_bytes = self.waiting.iter().map(|task| task.bytes).sum();
        self.held.iter().filter(|(_, task)| task.ticket.caller == caller).map(|(slot, _)| *slot).collect()
    }

    /// All that wait are given up.
    pub(super) fn clear(&mut self) -> Vec<Task> {
        self.waiting_bytes = 0;
        self.waiting.drain(..).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    const ROOM: Room = Room { tasks: 10, bytes: 1000 };

    fn desk(tasks: u64) -> Desk {
        let mut desk = Desk::new("k3f9".to_owned());
        for number in 1..=tasks {
            let ticket = Ticket { caller: number, request: json!(1) };
            assert_eq!(desk.accept(ticket, String::new(), (json!({}), 10), ROOM), Some(format!("k3f9-{number}")));
        }
        desk
    }

    #[test]
    fn tasks_are_handed_out_in_the_order_in_which_they_came_and_one_to_each() {
        let mut desk = desk(3);
        assert_eq!(desk.hand_out(1, Instant::now()).unwrap().id, "k3f9-1");
        assert!(desk.hand_out(1, Instant::now()).is_none(), "it has one");
        assert_eq!(desk.hand_out(2, Instant::now()).unwrap().id, "k3f9-2");
        assert_eq!((desk.find("k3f9-2"), desk.find("k3f9-3")), (Whereabouts::With(2), Whereabouts::Waiting));
    }

    #[test]
    fn an_answer_counts_for_the_task_that_the_instance_has_now() {
        let mut desk = desk(3);
        desk.hand_out(1, Instant::now());
        desk.hand_out(2, Instant::now());
        assert!(desk.settle(1, "k3f9-2").is_none(), "another's");
        assert!(desk.settle(1, "k3f9-3").is_none(), "nobody's yet");
        assert_eq!(desk.settle(1, "k3f9-1").unwrap().ticket.caller, 1);
        assert!(desk.settle(1, "k3f9-1").is_none(), "a second time");
        assert_eq!(desk.lose(2).unwrap().id, "k3f9-2");
        assert!(desk.settle(2, "k3f9-2").is_none(), "a late one");
        assert_eq!(desk.waiting(), 1, "what waits is not touched");
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let mut desk = desk(10);
        let ticket = Ticket { caller: 99, request: json!(1) };
        assert_eq!(desk.accept(ticket.clone(), String::new(), (json!({}), 10), ROOM), None);
        desk.hand_out(1, Instant::now());
        assert_eq!(desk.accept(ticket.clone(), String::new(), (json!({}), 900), ROOM), Some("k3f9-11".to_owned()));
        desk.withdraw("k3f9-2");
        assert_eq!(desk.accept(ticket.clone(), String::new(), (json!({}), 21), ROOM), None, "too many bytes");
        assert_eq!(desk.accept(ticket, String::new(), (json!({}), 20), ROOM), Some("k3f9-12".to_owned()));
    }

    #[test]
    fn who_hangs_up_takes_only_its_own_along() {
        let mut desk = desk(3);
        desk.hand_out(1, Instant::now());
        assert!(desk.hang_up(2).is_empty());
        assert_eq!((desk.waiting(), desk.hang_up(1)), (1, vec![1]));
        assert_eq!(desk.withdraw("k3f9-3").unwrap().ticket.caller, 3);
        assert_eq!(desk.find("k3f9-3"), Whereabouts::Nowhere);
    }
}
