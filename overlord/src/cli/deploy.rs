//! The words behind `overlord deploy`. Does nothing.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use common::period;

use crate::config::authority_address;
use crate::deploy::Destination;

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The hosts as ssh finds them, by their names in the fleet: [USER@]NAME[:PORT]; who is not root there needs sudo without a password
    #[arg(value_name = "HOST", required = true)]
    pub(crate) hosts: Vec<Destination>,
    /// The package overlord-minion, a .deb or an .rpm
    #[arg(long, value_name = "FILE")]
    pub(crate) package: PathBuf,
    /// A configuration for ssh in the place of the user's own
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_config: Option<PathBuf>,
    /// Where the hosts reach `overlord certs serve` [default: `authority` or `certs.listen` in overlord.toml, this machine]
    #[arg(long, value_name = "HOST[:PORT]", value_parser = authority_address)]
    pub(crate) overlord: Option<String>,
    /// How many hosts are worked on at once [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) forks: Option<u16>,
    /// How long a host may take
    #[arg(long, value_name = "DURATION", value_parser = period::parse, default_value = "5m")]
    pub(crate) timeout: Duration,
}
