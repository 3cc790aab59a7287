//! What is wrong with the host's certificate, key, authority and revocation list, or will be soon.

use std::io::ErrorKind;

use certs::crl::StaleCrl;
use certs::files::Credentials;
use certs::trust::{MinionTrust, TrustFiles};
use common::identity::Role;
use common::shown::chain;
use jiff::{SignedDuration, Timestamp};
use nix::unistd::geteuid;
use tracing::warn;

use crate::config::Config;

/// A certificate that lives longer is not expected to renew itself.
const BY_HAND_FROM: SignedDuration = SignedDuration::from_hours(365 * 24);

/// What this host goes by. Each thing in it that cannot be used later on is told in the log.
///
/// # Errors
/// Certificate, key and authority cannot be read, do not belong together, or are not those of `config.name`; or the revocation list cannot
/// be used.
pub fn open_trust(config: &Config) -> Result<MinionTrust, String> {
    let files = TrustFiles::of_minion(&config.certs_dir);
    if files.cert.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(format!(
            "this host has no certificate: {} is not there; run `minion enroll --config {} --overlord HOST --ca-fingerprint SHA256` as \
             root or the user that serves, or put there what `overlord certs issue {}` writes",
            files.cert.display(),
            config.file.display(),
            config.name
        ));
    }
    let trust = MinionTrust::open(files, config.trust.stale_crl, |trouble| warn!("{trouble}"))
        .map_err(|error| format!("{}{}", chain(&error), see_check(config)))?;
    let trusted = trust.now();
    let role = trusted.credentials().role();
    match role {
        Role::Minion(name) if *name == config.name => Ok(trust),
        role => Err(format!(
            "the certificate in {} is for {} {}, and {} says this is the minion {}: correct `name`, or issue a certificate for it",
            config.certs_dir.display(),
            role.kind(),
            role.name(),
            config.file.display(),
            config.name
        )),
    }
}

/// Where the server is not root, and what it reads was put there by root: how it is told what is wrong with the owners.
fn see_check(config: &Config) -> String {
    match &config.user {
        Some(_) if !geteuid().is_root() => format!("; as root, `minion --config {} check` says what to mend", config.file.display()),
        _ => String::new(),
    }
}

/// Until when the certificate is good, and hints.
pub(super) fn certificate(config: &Config, problems: &mut Vec<String>) -> Option<(Timestamp, Vec<String>)> {
    let trust = open_trust(config).map_err(|problem| problems.push(problem)).ok()?;
    let (trusted, now) = (trust.now(), Timestamp::now());
    let (credentials, cert) = (trusted.credentials(), config.certs_dir.join("cert.pem"));
    let (from, until) = (credentials.not_before(), credentials.not_after());
    if now >= until {
        problems.push(format!("the certificate {} has expired on {until}: run `minion enroll` anew for {}", cert.display(), config.name));
    }
    if now < from {
        problems
            .push(format!("the certificate {} is good from {from} on, and this host's clock says {now}: set the clock", cert.display()));
    }
    let mut hints = renewal_hints(config, credentials, now);
    if let Some(since) = trusted.stale_since() {
        let text = format!(
            "the revocation list {} is stale since {since}: the next overlord that calls, or the authority, should have a newer one",
            config.certs_dir.join("crl.pem").display()
        );
        match config.trust.stale_crl {
            StaleCrl::Serve => hints.push(text),
            StaleCrl::Refuse => problems.push(format!("{text}; until then trust.stale_crl = \"refuse\" lets nobody in")),
        }
    }
    Some((until, hints))
}

fn renewal_hints(config: &Config, credentials: &Credentials, now: Timestamp) -> Vec<String> {
    let (issued, until) = (credentials.issued_at(), credentials.not_after());
    let mut hints = Vec::new();
    let address = config.authority_address();
    if address.is_none() && until.duration_since(issued) < BY_HAND_FROM {
        hints.push(format!(
            "the certificate ends on {until}, and nobody renews it: neither `authority` in {} nor {} says where the authority is",
            config.file.display(),
            config.authority_file().display()
        ));
    }
    if let Some(address) = address.filter(|_| now >= credentials.overdue_at() && now < until) {
        hints.push(format!(
            "the certificate ends on {until}, and should have been renewed since {}: does `overlord certs serve` run at {address}?",
            credentials.renewal_due_at()
        ));
    }
    hints
}
