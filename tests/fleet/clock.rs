//! Clocks that a test can move while programs run: libfaketime, loaded before all other libraries, adds to them what stands in a file.
//! The machine's own clock is not touched.
//!
//! With `Moves::All` the library makes the monotonic and the boot clock count from the same instant as the wall clock, and moves the
//! three together; with `Moves::Wall` it leaves those two alone. Which of the two holds is fixed for a process at its start. A wait that
//! is under way goes on by the machine's time: a program notices that time has passed when something wakes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::tools;

/// Which clocks move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    /// All: time passes.
    All,
    /// The wall clock alone: somebody sets it.
    Wall,
}

/// The clock of a fleet.
#[derive(Debug)]
pub(crate) struct Clock {
    moves: Moves,
    file: PathBuf,
    /// Seconds that it is ahead of the machine's.
    ahead: Mutex<i64>,
}

impl Clock {
    /// A clock that is right, kept in `root`.
    pub(crate) fn new(root: &Path, moves: Moves) -> Self {
        let clock = Self { moves, file: root.join("clock"), ahead: Mutex::new(0) };
        clock.write(0);
        clock
    }

    /// The words before a command that make it go by this clock.
    pub(crate) fn words(&self) -> Vec<String> {
        let keeps_monotonic = u8::from(self.moves == Moves::Wall);
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", tools::faketime().display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            format!("FAKETIME_DONT_FAKE_MONOTONIC={keeps_monotonic}"),
        ]
    }

    /// The words before a command that make it believe that it is yesterday: for certificates that are valid though a clock is slow.
    pub(crate) fn yesterdays_words() -> Vec<String> {
        vec!["env".to_owned(), format!("LD_PRELOAD={}", tools::faketime().display()), "FAKETIME=-1d".to_owned()]
    }

    /// Whether all clocks move together.
    pub(crate) fn moves_all(&self) -> bool {
        self.moves == Moves::All
    }

    /// Time passes.
    pub(crate) fn pass(&self, time: Duration) {
        assert_eq!(self.moves, Moves::All, "describe the fleet with faked_time()");
        self.add(i64::try_from(time.as_secs()).unwrap());
    }

    /// The wall clock is set, so many seconds on, or back.
    pub(crate) fn set_by(&self, seconds: i64) {
        assert_eq!(self.moves, Moves::Wall, "describe the fleet with faked_wall_clock()");
        self.add(seconds);
    }

    fn add(&self, seconds: i64) {
        let mut ahead = self.ahead.lock().unwrap();
        *ahead += seconds;
        self.write(*ahead);
    }

    /// At once, so that nobody reads half of it.
    fn write(&self, ahead: i64) {
        let draft = self.file.with_extension("draft");
        fs::write(&draft, format!("{ahead:+}")).unwrap();
        fs::rename(draft, &self.file).unwrap();
    }
}
