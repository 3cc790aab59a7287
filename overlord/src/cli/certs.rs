//! The words behind `overlord certs`. Does nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use common::identity::{CallerName, MinionName};
use common::period;

use crate::config::valid;

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make the fleet's authority, and this overlord's own certificate
    Init(CertsInitArgs),
    /// Issue certificates by hand: for each name a folder that the host, or another overlord, can be given
    Issue(CertsIssueArgs),
    /// List the certificates that were issued, and how each stands
    List,
    /// List the requests of hosts that wait, or were rejected
    Requests,
    /// Sign requests that wait: all that are named, or none
    Sign(CertsSignArgs),
    /// Say no to requests that wait: to all that are named, or to none
    Reject(CertsRejectArgs),
    /// Revoke certificates, and tell every host: all that are named, or none
    Revoke(CertsRevokeArgs),
    /// Revoke all that names have, forget their requests, and let other keys have the names
    Clean(CertsCleanArgs),
    /// Make a token that signs the request of one host, once
    Token(CertsTokenArgs),
    /// Say what needs attention: certificates, requests, the revocation list; the exit status is for monitoring
    Status,
    /// Renew this overlord's own certificate now
    Renew,
    /// Serve the authority to hosts: requests, renewals, the revocation list
    Serve(CertsServeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CertsInitArgs {
    /// The name of the caller in this overlord's certificate
    #[arg(long, default_value = "admin")]
    pub(crate) name: CallerName,
    /// How long the overlord's certificate is valid [default: certs.valid in overlord.toml, 90d]
    #[arg(long, value_name = "DURATION", value_parser = valid)]
    pub(crate) valid: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct CertsIssueArgs {
    /// The names; `-` reads them from standard input
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// What the certificates are for
    #[arg(long, value_enum, default_value_t = IssuedRole::Minion)]
    pub(crate) role: IssuedRole,
    /// Where the folders are made
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// How long they are valid [default: certs.valid in overlord.toml, 90d]
    #[arg(long, value_name = "DURATION", value_parser = valid)]
    pub(crate) valid: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IssuedRole {
    /// A host of the fleet
    Minion,
    /// Somebody who calls methods: the folder is the `certs` of another overlord's home
    Overlord,
}

#[derive(Debug, Args)]
pub(crate) struct CertsSignArgs {
    /// The hosts
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(crate) names: Vec<MinionName>,
    /// Every request that waits
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CertsRejectArgs {
    /// The hosts
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<MinionName>,
}

#[derive(Debug, Args)]
pub(crate) struct CertsRevokeArgs {
    /// A host, a caller, `minion/NAME` or `overlord/NAME` where both have the name, or the serial number of one certificate
    #[arg(value_name = "SUBJECT", required = true)]
    pub(crate) subjects: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CertsCleanArgs {
    /// A host, a caller, or `minion/NAME` or `overlord/NAME` where both have the name
    #[arg(value_name = "SUBJECT", required = true)]
    pub(crate) subjects: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CertsTokenArgs {
    /// Only for names that this glob matches [default: any]
    #[arg(long = "for", value_name = "GLOB")]
    pub(crate) names: Option<String>,
    /// How long it is good
    #[arg(long, value_name = "DURATION", value_parser = period::parse, default_value = "1h")]
    pub(crate) ttl: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct CertsServeArgs {
    /// Where to listen [default: certs.listen in overlord.toml, 0.0.0.0:51235]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
}
