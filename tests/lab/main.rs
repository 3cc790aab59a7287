//! The tests in the lab: the packages on real Debian hosts with systemd, and what happens to hosts. `make lab-test` runs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic"
)]

mod cables;
mod deploy;
mod harness;
mod install;
mod power;
mod removal;
mod restarts;
mod rollout;
mod rpm;
mod upgrades;
mod workers;
