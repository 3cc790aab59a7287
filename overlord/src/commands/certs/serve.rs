//! `overlord certs serve`: the authority as a server, until it is told to stop. Its log is on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::{OK, Refusal};
use crate::authority::serve::serve;
use crate::cli::CertsServeArgs;
use crate::fleet::Fleet;
use crate::output::remark;

/// The variable that says what is logged, as `tracing_subscriber` reads it.
const LOG_VARIABLE: &str = "OVERLORD_LOG";
/// What is logged unless it says otherwise.
const LOG_DEFAULT: &str = "info";

pub(super) fn run(fleet: &Fleet, args: &CertsServeArgs) -> Result<u8, Refusal> {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
    serve(fleet, args.listen.unwrap_or(fleet.config().certs.listen), |line| remark(&format!("on each host: {line}")))?;
    Ok(OK)
}
