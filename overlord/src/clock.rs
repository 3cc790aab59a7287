//! How long this machine has been up, and in which boot: what nobody can set. The clock on the wall can be set, and tells the rest.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Since when the machine is up, the time for which it slept included.
pub(crate) fn uptime() -> Duration {
    // Both are clocks that every Linux has. Where one cannot be read no time passes, and nothing is given up for its age.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Names this boot of the machine; empty if the kernel does not say.
pub(crate) fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned())
}
