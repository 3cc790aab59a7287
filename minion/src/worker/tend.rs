//! What time alone brings to a worker: instances that are due, tasks past their limit, looks at their health, replacements, a file that has changed,
//! and the end.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::outcome::{ErrorCode, Failure};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use super::config::{WorkerConfig, WorkerConfigError};
use super::daemon::Daemon;
use super::instance::Ending;
use super::slot::Slot;
use super::wire::Wire;
use crate::config::ConfigError;
use crate::process::Death;
use crate::supervise::humane;

/// Farther than anything is planned.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// How long the program is missed before it counts as taken away, or as replaced: by then the spawner is another, too, and starts the new one.
const GONE_FOR: Duration = Duration::from_secs(10);
/// How long a killed instance may take to die, for a dead disk for instance, until it is left behind.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
const DAY_SECONDS: i64 = 24 * 3600;

/// Enough of a file to see that it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp([i64; 4], u64);

impl Stamp {
    /// The file as it is; none if it is not there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self([found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()], found.size()))
    }
}

impl Daemon {
    /// Goes by what the file says now.
    pub(super) fn settle_in(&mut self) {
        for number in 1..=self.config.instances {
            if self.slot(number).is_none() {
                self.slots.push(Slot::new(number));
            }
        }
        self.restart_at = self.config.restart_at.and_then(|minutes| next_time(Timestamp::now(), minutes));
    }

    /// When something is due that no file says.
    pub(super) fn next_due(&self) -> Instant {
        let far = Instant::now() + NEVER;
        let of_slot = |slot: &Slot| {
            let Some(instance) = &slot.instance else { return slot.due };
            let config = &instance.config;
            let task = self.desk.held(slot.number);
            let limit = task.and_then(|task| Some(task.since + config.task_timeout?));
            let wish = task.and_then(|task| Some(task.wish.as_ref()?.kill_at));
            let health = config.health.as_ref().map(|check| match &instance.check {
                Some(begun) => begun.since + check.timeout,
                None => instance.checked + check.every,
            });
            let told = instance.ending.as_ref().and_then(|ending| if let Ending::Told(by) = ending { Some(*by) } else { None });
            [limit, wish, health, told].into_iter().flatten().min().unwrap_or(far)
        };
        let is_asked = |slot: &&Slot| self.ends_by.is_none() || slot.instance.is_some();
        self.slots.iter().filter(is_asked).map(of_slot).min().unwrap_or(far).min(self.ends_by.unwrap_or(far))
    }

    /// Does all that is due.
    pub(super) fn tend(&mut self, now: Instant) {
        if now.saturating_duration_since(self.looked_at) >= Duration::from_secs(1) {
            self.looked_at = now;
            self.look_at_file();
            self.look_at_program(now);
        }
        self.look_at_clock(Timestamp::now());
        for number in self.slots.iter().map(|slot| slot.number).collect::<Vec<_>>() {
            self.tend_task(number, now);
            self.tend_health(number, now);
            self.tend_slot(number, now);
        }
        let (config, is_ending) = (Rc::clone(&self.config), self.ends_by.is_some());
        self.slots.retain(|slot| slot.instance.is_some() || !is_ending && slot.number <= config.instances);
    }

    /// Replaces all instances when it is time. Where the clock was set back, the next time is another.
    fn look_at_clock(&mut self, now: Timestamp) {
        let Some(at) = self.restart_at else { return };
        if at <= now {
            self.slots.iter_mut().for_each(|slot| slot.is_outdated = true);
        }
        if at <= now || at.duration_since(now) > SignedDuration::from_secs(DAY_SECONDS) {
            self.restart_at = self.config.restart_at.and_then(|minutes| next_time(now, minutes));
        }
    }

    /// Nothing is left to be done, nor to be said to anybody who still listens.
    pub(super) fn is_over(&self) -> bool {
        let is_done = self.slots.is_empty() && !self.callers.values().any(Wire::is_full);
        self.ends_by.is_some_and(|by| is_done || by + DEATH_TIMEOUT <= Instant::now())
    }

    /// Begins to end: nothing more is taken in, and what waits is given back as not started.
    pub(super) fn end(&mut self, why: &str) {
        if self.ends_by.is_some() {
            return;
        }
        tracing::info!(worker = %self.home.worker, why, "a worker's daemon ends");
        self.ends_by = Some(Instant::now() + self.config.stop_grace);
        // Who comes from now on finds nobody, and waits for the next daemon.
        let _gone = fs::remove_file(self.places.control(&self.home.worker));
        for task in self.desk.clear() {
            let message = format!("{}: the worker {why} before task {} started; nothing was run", self.home.worker, task.id);
            self.tell(&task, Err(Failure::new(ErrorCode::Undelivered, message)));
        }
    }

    /// The last word to who has connected, and has asked for nothing that was begun: whatever it has asked for meanwhile was not heard.
    pub(super) fn take_leave(&mut self) {
        let busy: Vec<u64> = self.desk.all().map(|(_, task)| task.ticket.caller).collect();
        let message = format!("{}: the worker has ended; nothing was run; try again", self.home.worker);
        let error = Failure::new(ErrorCode::Undelivered, message);
        for (_, wire) in self.callers.iter_mut().filter(|(caller, _)| !busy.contains(caller)) {
            wire.send(&json!({ "jsonrpc": "2.0", "id": null, "error": error }));
        }
    }

    /// A task that is past its limit, or goes on though it was asked to stop, ends with its instance.
    fn tend_task(&mut self, number: usize, now: Instant) {
        let Some(config) = self.slot(number).and_then(|slot| slot.instance.as_ref()).map(|instance| Rc::clone(&instance.config)) else {
            return;
        };
        let Some(task) = self.desk.held(number) else { return };
        let past = config.task_timeout.filter(|limit| now >= task.since + *limit);
        let is_unheard = task.wish.as_ref().is_some_and(|wish| now >= wish.kill_at);
        if past.is_none() && !is_unheard {
            return;
        }
        if let Some(instance) = self.slot(number).and_then(|slot| slot.instance.as_mut()) {
            instance.kill(Ending::Killed);
        }
        let Some(task) = self.desk.lose(number) else { return };
        let answer = match (&task.wish, past) {
            (Some(wish), _) => cancelled(&task.id, &wish.why),
            (None, limit) => {
                let limit = limit.map(humane).unwrap_or_default();
                let message = format!("{}: task {} was stopped at task_timeout, {limit}", self.home.worker, task.id);
                Failure::new(ErrorCode::TimedOut, message)
            }
        };
        self.tell(&task, Err(answer));
    }

    fn tend_health(&mut self, number: usize, now: Instant) {
        let home = &self.home;
        let Some(instance) = self.slots.iter_mut().find(|slot| slot.number == number).and_then(|slot| slot.instance.as_mut()) else {
            return;
        };
        let Some(check) = &instance.config.health else { return };
        match &mut instance.check {
            Some(begun) if now >= begun.since + check.timeout => begun.kill(),
            Some(begun) => begun.pump(),
            None if instance.ending.is_none() && now >= instance.checked + check.every => instance.begin_check(home, number),
            None => {}
        }
    }

    /// A look at an instance's health has ended, if that was one.
    pub(super) fn check_ended(&mut self, pid: Pid, death: Death) {
        let is_its = |slot: &&mut Slot| {
            let check = slot.instance.as_ref().and_then(|instance| instance.check.as_ref());
            check.is_some_and(|check| check.pid == pid)
        };
        let Some(slot) = self.slots.iter_mut().find(is_its) else { return };
        let Some(instance) = &mut slot.instance else { return };
        let Some(mut check) = instance.check.take() else { return };
        check.pump();
        // What it has started and left behind is in its group.
        check.kill();
        let timeout = instance.config.health.as_ref().map(|health| health.timeout).filter(|timeout| check.since.elapsed() >= *timeout);
        let health = match (death, timeout) {
            (Death::Exited(0), None) => Ok(()),
            (_, Some(timeout)) => Err(format!("its health check took longer than {}", humane(timeout))),
            (death, None) => {
                let said = check.last_line().map_or_else(String::new, |line| format!("; the last that it wrote is: {line}"));
                Err(format!("its health check {death}{said}"))
            }
        };
        let is_unwell = health.is_err() && instance.ending.is_none();
        instance.health = Some(health);
        if is_unwell {
            instance.kill(Ending::Unwell);
        }
    }

    /// Starts an instance that is due, and tells one that is not wanted any more to end, once it has no task.
    fn tend_slot(&mut self, number: usize, now: Instant) {
        let is_busy = self.desk.held(number).is_some();
        let (config, ends_by) = (Rc::clone(&self.config), self.ends_by);
        let home = &self.home;
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) else { return };
        let Some(instance) = &mut slot.instance else {
            if ends_by.is_none() && slot.due <= now && number <= config.instances {
                slot.start(home, &config);
            }
            return;
        };
        let is_old = config.restart_every.is_some_and(|every| now >= instance.started + every);
        let is_unwanted = slot.is_outdated || is_old || ends_by.is_some() || number > config.instances || instance.config != config;
        match &instance.ending {
            Some(Ending::Told(by)) if now >= *by => instance.kill(Ending::Killed),
            None if ends_by.is_some_and(|by| now >= by) => instance.kill(Ending::Killed),
            None if is_unwanted && !is_busy => {
                instance.fetch = None;
                instance.ending = Some(Ending::Told(now + instance.config.stop_grace));
                instance.signal(Signal::SIGTERM);
            }
            _ => {}
        }
    }

    /// Ends where the package was taken away; and where another program has taken the place of this one, as an upgrade does, once there is no task.
    fn look_at_program(&mut self, now: Instant) {
        let runs = fs::read_link("/proc/self/exe").unwrap_or_default();
        let runs = runs.to_string_lossy();
        // The kernel appends this to the path of a file that is there no more.
        let Some(path) = runs.strip_suffix(" (deleted)") else {
            self.program_gone = None;
            return;
        };
        let since = *self.program_gone.get_or_insert(now);
        if now.saturating_duration_since(since) < GONE_FOR {
            return;
        }
        let is_idle = self.desk.all().next().is_none();
        match Path::new(path).exists() {
            true if is_idle => self.end("gave way to the new version of the minion"),
            true => {}
            false => self.end("ended, because the minion's program was taken away,"),
        }
    }

    /// Goes by the file as it is now; one that cannot be used changes nothing, and one that is gone ends the worker.
    fn look_at_file(&mut self) {
        let file = self.places.file(&self.home.worker);
        let stamp = Stamp::of(&file);
        if stamp == self.stamp && stamp.is_some() && self.config_problem.is_none() {
            return;
        }
        match WorkerConfig::load(&file) {
            Ok(config) => {
                self.config = Rc::new(config);
                self.config_problem = None;
                self.settle_in();
            }
            // An editor that puts another in its place may leave none for a moment: it is missed at two looks.
            Err(error) if is_missing(&error) && self.stamp.is_some() => {}
            Err(error) if is_missing(&error) => self.end("was taken away"),
            Err(error) => {
                let problem = common::shown::chain(&error);
                if self.config_problem.as_ref() != Some(&problem) {
                    tracing::error!(worker = %self.home.worker, problem, "a worker's file cannot be used; it goes on as it was");
                }
                self.config_problem = Some(problem);
            }
        }
        self.stamp = stamp;
    }
}

fn is_missing(error: &WorkerConfigError) -> bool {
    matches!(error, WorkerConfigError::File(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
}

/// What a caller hears of a task that was to stop, and did.
pub(super) fn cancelled(id: &str, why: &str) -> Failure {
    Failure::new(ErrorCode::Cancelled, format!("task {id} was {why}"))
}

/// When it is next so many minutes past midnight UTC.
fn next_time(now: Timestamp, minutes: u32) -> Option<Timestamp> {
    let of_day = now.as_second().rem_euclid(DAY_SECONDS);
    let ahead = (i64::from(minutes) * 60 - of_day).rem_euclid(DAY_SECONDS);
    now.checked_add(SignedDuration::from_secs(if ahead == 0 { DAY_SECONDS } else { ahead })).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn the_next_time_of_the_day_is_today_or_tomorrow() {
        let next = |now: &str, minutes| next_time(now.parse().unwrap(), minutes).unwrap().to_string();
        assert_eq!(next("2026-01-01T03:29:59Z", 210), "2026-01-01T03:30:00Z");
        assert_eq!(next("2026-01-01T03:30:00Z", 210), "2026-01-02T03:30:00Z");
        assert_eq!(next("2026-01-01T23:00:00Z", 0), "2026-01-02T00:00:00Z");
    }
}
