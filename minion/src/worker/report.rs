//! How a worker is: what `worker.list` says of it. It changes nothing, and shows no payload and no result, nor to anybody what another's task is.

use std::time::{Duration, Instant};

use procfs::process::{Process, all_processes};
use serde_json::{Value, json};

use super::callers::sees;
use super::daemon::Daemon;
use super::instance::Instance;
use super::reach::Asker;
use super::slot::Slot;

/// How old what is said of memory and CPU may be.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What an instance and its descendants use.
#[derive(Debug, Default)]
struct Usage {
    memory_bytes: u64,
    cpu_ticks: u64,
}

/// The processes of the host as they were a moment ago: to look at all takes time, in which no task is given out.
#[derive(Debug, Default)]
pub(super) struct Processes {
    at: Option<Instant>,
    /// The number, the group, and what it uses.
    seen: Vec<(i32, i32, Usage)>,
}

impl Processes {
    fn look(&mut self, now: Instant) {
        if self.at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY) {
            self.seen = all_processes().into_iter().flatten().flatten().filter_map(|process| seen(&process)).collect();
            self.at = Some(now);
        }
    }
}

impl Daemon {
    /// The worker, and each of its instances.
    pub(super) fn report(&mut self, asker: &Asker) -> Value {
        let now = Instant::now();
        self.processes.look(now);
        let instances: Vec<Value> = self.slots.iter().map(|slot| self.slot_report(slot, asker, &self.processes.seen, now)).collect();
        let idle = self.slots.iter().filter(|slot| slot.instance.as_ref().is_some_and(|instance| instance.fetch.is_some())).count();
        let state = match (self.ends_by, &self.config_problem) {
            (Some(_), _) => "ending",
            (None, Some(_)) => "misconfigured",
            (None, None) => "running",
        };
        json!({
            "state": state,
            "problem": self.config_problem,
            "idle": idle,
            "queued": self.desk.waiting(),
            "queue_max": self.config.queue_max,
            "done": self.done,
            "failed": self.failed,
            "age_seconds": whole_seconds(self.began, now),
            "daemon_pid": std::process::id(),
            "instances": instances,
        })
    }

    fn slot_report(&self, slot: &Slot, asker: &Asker, processes: &[(i32, i32, Usage)], now: Instant) -> Value {
        let Some(instance) = &slot.instance else {
            let seconds = slot.due.saturating_duration_since(now).as_secs_f64();
            return json!({
                "instance": slot.number, "state": "restarting", "starts": slot.starts, "problem": slot.problem,
                "starts_in_seconds": (seconds * 10.0).ceil() / 10.0,
            });
        };
        let task = self.desk.held(slot.number);
        let seen = task.filter(|task| sees(asker, task));
        let state = match (&instance.ending, task, instance.has_fetched) {
            (Some(_), _, _) => "ending",
            (None, Some(_), _) => "busy",
            (None, None, false) => "starting",
            (None, None, true) if instance.fetch.is_some() => "idle",
            // It has returned a task, and not yet asked for the next.
            (None, None, true) => "between",
        };
        let usage = usage(instance, processes);
        let age = now.saturating_duration_since(instance.started).as_secs_f64();
        let cpu_seconds = seconds_of(usage.cpu_ticks);
        let percent = if age > 0.0 { (cpu_seconds / age * 1000.0).round() / 10.0 } else { 0.0 };
        json!({
            "instance": slot.number,
            "state": state,
            "task_id": task.map(|task| &task.id),
            "task_seconds": task.map(|task| whole_seconds(task.since, now)),
            "caller": seen.map(|task| &task.by),
            "progress": seen.and_then(|task| task.progress.as_ref()).map(|(fraction, message)| json!({ "fraction": fraction, "message": message })),
            "pid": instance.pid.as_raw(),
            "user": instance.user,
            "memory_bytes": usage.memory_bytes,
            "cpu_seconds": cpu_seconds,
            "cpu_percent": percent,
            "health": match &instance.health { None => "unknown", Some(Ok(())) => "ok", Some(Err(_)) => "failing" },
            "starts": slot.starts,
            "age_seconds": whole_seconds(instance.started, now),
            "problem": slot.problem,
        })
    }
}

fn seen(process: &Process) -> Option<(i32, i32, Usage)> {
    let stat = process.stat().ok()?;
    let usage = Usage { memory_bytes: stat.rss.saturating_mul(procfs::page_size()), cpu_ticks: stat.utime.saturating_add(stat.stime) };
    Some((stat.pid, stat.pgrp, usage))
}

/// Of its process, and of those in its group.
fn usage(instance: &Instance, processes: &[(i32, i32, Usage)]) -> Usage {
    let own = instance.pid.as_raw();
    let its = processes.iter().filter(|(pid, group, _)| *pid == own || *group == own);
    its.fold(Usage::default(), |sum, (_, _, usage)| Usage {
        memory_bytes: sum.memory_bytes.saturating_add(usage.memory_bytes),
        cpu_ticks: sum.cpu_ticks.saturating_add(usage.cpu_ticks),
    })
}

fn seconds_of(ticks: u64) -> f64 {
    let hundredths = ticks.saturating_mul(100) / procfs::ticks_per_second().max(1);
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}

fn whole_seconds(since: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(since).as_secs()
}
