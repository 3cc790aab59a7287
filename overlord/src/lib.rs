//! The overlord: runs methods on the hosts of a fleet, at once or as jobs, and tells the truth about what became of them.
//!
//! A program does with a [`Fleet`] what a person does with the `overlord` command, which is a skin over this crate:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! let fleet = overlord::Fleet::open("/etc/overlord")?;
//! let outcomes = fleet.target("web*")?.call("test.ping", ())?;
//! let job = fleet.target("*")?.start("command.run", ["apt-get update"])?;
//! let status = job.wait(Duration::from_secs(60))?;
//! println!("{} hosts answered; the job {} is {}", outcomes.len(), job.id(), status.state());
//! # Ok(())
//! # }
//! ```

mod aggregate;
mod authority;
mod buckets;
mod cli;
mod client;
mod clock;
mod commands;
mod config;
mod daemon;
mod deploy;
mod envelope;
#[cfg(test)]
mod fake_minion;
mod fleet;
mod flow;
#[doc(hidden)]
pub mod fuzzing;
mod home;
mod hosts;
mod jobs;
mod map;
mod output;
mod package;
mod store;
mod targets;

pub use authority::renewal::RenewalFailed;
pub use buckets::BucketError;
#[doc(hidden)]
pub use cli::definitions;
pub use commands::run;
/// The nouns: names, states, outcomes, records.
pub use common;
pub use config::{CertsLimits, Config, ConfigError, RetentionLimits, TrustLimits};
pub use fleet::{AnyError, CallError, CheckError, Fleet, FleetError, IntoArguments, LinkError, Stop, Target};
pub use home::{Home, HomeError};
pub use hosts::{Host, Roster, RosterError};
pub use jobs::log::LogError;
pub use jobs::{
    Cancellation, Deletion, Follow, HostLogs, Job, JobError, JobStatus, LOGS_TOGETHER_MAX_BYTES, LogEnd, LogEvent, MapCancellation,
    ParcelError, RetryError, StartError,
};
pub use map::items::ItemsError;
pub use package::PackageError;
pub use store::{JobSummary, StoreError};
pub use targets::TargetError;

pub(crate) use common::shown::chain;
