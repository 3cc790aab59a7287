//! A job's life as pure rules: ids, the states of a host and of a job, and which may follow which.
//!
//! The overlord's job log holds [`Event`]s; [`JobRecord`] is what they add up to. Folding the same events again, or in the order
//! in which two writers happened to append them, gives the same record: results are never overwritten, and only `lost` can be mended.

mod id;
pub mod map;
mod record;
pub mod retention;
mod state;

pub use id::{CallId, InvalidId, JobId, MinionJobId, normal_prefix};
pub use record::{Contact, Event, HostRecord, JobHeader, JobRecord, LogLine, News};
pub use state::{HostState, JobState};
