//! Waiting for something to become so, with a deadline.

use std::time::{Duration, Instant};

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `look` says yes.
///
/// # Panics
/// It has not after `patience`.
pub fn wait_until(what: &str, patience: Duration, look: impl FnMut() -> bool) {
    assert!(until(patience, look), "waited {patience:?} for {what}");
}

/// Waits until `look` finds something.
///
/// # Panics
/// It has not after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(what, patience, || {
        found = look();
        found.is_some()
    });
    found.expect("wait_until returned")
}

/// Whether `look` said yes within `patience`. It looks at least once.
pub(crate) fn until(patience: Duration, mut look: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !look() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}
