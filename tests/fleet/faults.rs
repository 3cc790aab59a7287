//! What a test does to a fleet: cuts its cables, moves its clocks, kills its programs between two steps.

use std::ffi::OsStr;
use std::time::Duration;

use crate::clock::Clock;
use crate::network::{Cable, Hub};
use crate::{Fleet, Run, Running, Step, failpoint};

impl Fleet {
    /// Takes a host's cable out.
    pub fn cut(&self, name: &str) {
        self.hub().cut(self.cable(name));
    }

    /// Lets all packets to and from a host vanish; who sends is not told.
    pub fn black_hole(&self, name: &str) {
        self.hub().black_hole(self.cable(name), self.minion(name).enclosure().unwrap());
    }

    /// Undoes both.
    pub fn mend(&self, name: &str) {
        self.hub().mend(self.cable(name), self.minion(name).enclosure().unwrap());
    }

    /// Moves every clock of hosts and of the overlord on.
    pub fn pass(&self, time: Duration) {
        self.clock.as_ref().expect("describe the fleet with faked_time()").pass(time);
    }

    /// Sets the hosts' wall clocks so many seconds on, or back; no other clock moves.
    pub fn set_hosts_clock_by(&self, seconds: i64) {
        self.clock.as_ref().expect("describe the fleet with faked_wall_clock()").set_by(seconds);
    }

    /// Runs the overlord until it, and what it leaves behind, has ended or has died at `step`, and says whether anything has.
    pub fn overlord_killed_at<A: AsRef<OsStr>>(&self, step: Step<'_>, args: impl IntoIterator<Item = A>) -> (Run, bool) {
        let folder = tempfile::Builder::new().prefix("failpoint-").tempdir_in(self.root()).unwrap();
        let record = folder.path().join("record");
        let words = [self.overlord_words(), step.words(&record)].concat();
        let number = step.number;
        let run = Running::overlord_within(&words, &self.home(), self.root(), args).wait();
        (run, failpoint::has_struck(&record, number))
    }

    /// The words before the overlord's command that put it where this fleet has it.
    pub(crate) fn overlord_words(&self) -> Vec<String> {
        let enter = self.hub.as_ref().map(|hub| hub.enclosure().enter()).unwrap_or_default();
        let clock = self.clock.as_ref().filter(|clock| clock.moves_all()).map(|clock| clock.words()).unwrap_or_default();
        [enter, clock].concat()
    }

    /// The words before the overlord's command that put it where this fleet has it, a day ago if the fleet's clocks can be moved.
    pub(crate) fn yesterdays_words(&self) -> Vec<String> {
        let Some(hub) = self.hub.as_ref().filter(|_| self.clock.is_some()) else { return Vec::new() };
        [hub.enclosure().enter(), Clock::yesterdays_words()].concat()
    }

    /// Joins every host to the hub, if there is one for that.
    pub(crate) fn connect(&self) {
        let Some(hub) = self.hub.as_ref().filter(|hub| hub.is_networked()) else { return };
        for minion in &self.minions {
            hub.join(self.cable(minion.name()), minion.enclosure().unwrap());
        }
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("describe the fleet with networked()")
    }

    fn cable(&self, name: &str) -> Cable {
        let place = self.minions.iter().position(|minion| minion.name() == name).unwrap_or_else(|| panic!("the fleet has no {name}"));
        Cable(u8::try_from(place + 1).unwrap())
    }
}
