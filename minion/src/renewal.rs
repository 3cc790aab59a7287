//! Keeping the host's certificate and revocation list fresh: asking the authority for a new one of each when it is time.
//!
//! What comes is checked and put in its place by the trust; nothing here is gone by before that. Between two things that are due it sleeps,
//! on one timer.

mod alarm;
mod plan;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use certs::crl::CrlError;
use certs::files::FileError;
use certs::renewal::RenewalError;
use certs::tls::{self, Anchor};
use certs::trust::{MinionTls, MinionTrust, Trusted};
use common::protocol::certs::{Issued, Revocations};
use common::shown::{SAID_MAX_LETTERS, chain, harmless_line};
use jiff::Timestamp;
use service::authority::{AskError, AuthorityClient, Deadlines};
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::random::share;
use alarm::{Alarm, Grade};
use plan::Plan;

/// It sleeps no longer, so that a clock that was set and a certificate that was put there by hand are noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The first list after a start is asked for within this, so that a fleet that boots does not ask all at once.
const FIRST_LIST_WITHIN: Duration = Duration::from_secs(10);
/// By how much of `trust.crl_every` a wait for the next list is longer or shorter.
const LIST_JITTER: f64 = 0.1;

/// Keeps them fresh for as long as it is polled.
pub async fn tend(trust: Arc<MinionTrust>, config: Config) -> Infallible {
    let mut renewal = Renewal::new(trust, config);
    loop {
        let due_in = renewal.tend_once().await;
        tokio::time::sleep(due_in.min(LOOK_EVERY)).await;
    }
}

struct Renewal {
    trust: Arc<MinionTrust>,
    config: Config,
    plan: Plan,
    /// When the list is asked for next.
    list_at: Timestamp,
    /// It was told that nobody can be asked.
    is_alone_told: bool,
    certificate: Alarm,
    list: Alarm,
    stale: Alarm,
}

impl Renewal {
    fn new(trust: Arc<MinionTrust>, config: Config) -> Self {
        let plan = Plan::of(trust.now().credentials(), share());
        let list_at = plan::after(Timestamp::now(), FIRST_LIST_WITHIN.min(config.trust.crl_every).mul_f64(share()));
        let (certificate, list, stale) = (Alarm::default(), Alarm::default(), Alarm::default());
        Self { trust, config, plan, list_at, is_alone_told: false, certificate, list, stale }
    }

    /// Does what is due now; gives how long there is time until the next thing.
    async fn tend_once(&mut self) -> Duration {
        let (now, trusted) = (Timestamp::now(), self.trust.now());
        self.plan.follow(trusted.credentials(), now);
        // A clock that was set back must not make the wait longer.
        self.list_at = self.list_at.min(plan::after(now, self.config.trust.crl_every.mul_f64(1.0 + LIST_JITTER)));
        self.tell_stale(&trusted);
        let address = self.config.authority_address();
        match &address {
            Some(address) => self.ask(address, &trusted).await,
            None => self.tell_alone(),
        }
        let (now, trusted) = (Timestamp::now(), self.trust.now());
        self.plan.follow(trusted.credentials(), now);
        let list_stale_at = trusted.crl().map(certs::crl::Crl::next_update).filter(|at| *at >= now);
        let asking = address.map(|_| [self.list_at, self.plan.next_try()]).into_iter().flatten();
        let next = asking.chain(list_stale_at).chain(self.plan.alarms_after(now)).min();
        next.map_or(LOOK_EVERY, |next| plan::until(now, next))
    }

    /// Asks for what is due, over one connection.
    async fn ask(&mut self, address: &str, trusted: &Trusted<MinionTls>) {
        self.is_alone_told = false;
        let now = Timestamp::now();
        let (cert_is_due, list_is_due) = (now >= self.plan.next_try(), now >= self.list_at);
        if !cert_is_due && !list_is_due {
            return;
        }
        let role = trusted.credentials().role().clone();
        let mut authority = AuthorityClient::new(address, Arc::clone(&trusted.tls().authority), Deadlines::default()).showing(role);
        if cert_is_due {
            self.plan.tried(now, share());
            let answer = authority.renew().await;
            self.take_renewed(address, answer).await;
        }
        if list_is_due {
            let every = self.config.trust.crl_every;
            self.list_at = plan::after(now, every.mul_f64(1.0 - LIST_JITTER + 2.0 * LIST_JITTER * share()));
            let answer = ask_list(&mut authority, trusted).await;
            self.take_told(address, answer).await;
        }
    }

    async fn take_renewed(&mut self, address: &str, answer: Result<Issued, AskError>) {
        let Issued { cert, revocations } = match answer {
            Ok(issued) => issued,
            Err(error) => return self.tell_overdue(Grade::Note, &harmless_line(&error.to_string(), SAID_MAX_LETTERS)),
        };
        let trust = Arc::clone(&self.trust);
        match tokio::task::spawn_blocking(move || trust.take_cert(&cert)).await {
            Ok(Ok(())) => {
                self.certificate.over();
                let until = self.trust.now().credentials().not_after();
                info!(%until, authority = address, "the certificate was renewed");
            }
            // It does not pass by itself, and an hour before the certificate's end would be late to say so.
            Ok(Err(RenewalError::File(error))) if is_of_writing(&error) => {
                self.tell_overdue(Grade::Warning, &self.unwritten(&error));
            }
            Ok(Err(error)) => {
                self.tell_overdue(Grade::Note, &format!("what the authority at {address} gave is not taken: {}", chain(&error)))
            }
            Err(error) => self.tell_overdue(Grade::Note, &format!("what the authority at {address} gave is not taken: {error}")),
        }
        self.take_list(revocations).await;
    }

    async fn take_told(&mut self, address: &str, answer: Result<Revocations, String>) {
        match answer {
            Ok(revocations) => {
                self.list.over();
                self.take_list(revocations).await;
            }
            // No alarm by itself: overlords bring the list, too, and one that grows stale is told.
            Err(error) => {
                self.list.tell(Grade::Note, &format!("no revocation list from {address}: {}", harmless_line(&error, SAID_MAX_LETTERS)))
            }
        }
    }

    async fn take_list(&mut self, revocations: Revocations) {
        let Some(crl) = revocations.crl else { return };
        let trust = Arc::clone(&self.trust);
        match tokio::task::spawn_blocking(move || trust.take_crl(&crl)).await {
            Ok(Ok(true)) => info!(number = self.trust.now().crl_number(), "a newer revocation list was taken"),
            Ok(Ok(false)) => debug!(number = revocations.number, "the revocation list is as new as the authority's"),
            Ok(Err(CrlError::File(error))) if is_of_writing(&error) => {
                let text = format!("the authority's revocation list was not taken: {}", self.unwritten(&error));
                self.list.tell(Grade::Warning, &text);
            }
            Ok(Err(error)) => warn!(reason = chain(&error), "the authority's revocation list was not taken"),
            Err(error) => warn!(%error, "the authority's revocation list was not taken"),
        }
    }

    /// What to do when a file in `certs_dir` cannot be written.
    fn unwritten(&self, error: &FileError) -> String {
        format!(
            "{}; this host must be able to write to {}: see its owner, the disk, and `ReadWritePaths=` of minion.service",
            chain(error),
            self.config.certs_dir.display()
        )
    }

    /// The certificate is due, and was not renewed: the closer its end, the louder, and never below `least`.
    fn tell_overdue(&mut self, least: Grade, reason: &str) {
        let now = Timestamp::now();
        let text = format!("the certificate ends on {}, and was not renewed: {reason}", self.plan.until);
        if now < self.plan.overdue_at {
            self.certificate.tell(least, &text);
        } else if now < self.plan.until {
            self.certificate.tell(least.max(Grade::Warning), &text);
        } else {
            self.tell_expired();
        }
    }

    fn tell_expired(&mut self) {
        let (name, until) = (&self.config.name, self.plan.until);
        let text = format!(
            "the certificate has expired on {until}, and overlords refuse this host: run `overlord certs status` where the authority is, \
             and here, as root or the user that serves, `minion enroll --config {} --overlord HOST --ca-fingerprint SHA256` for {name}",
            self.config.file.display()
        );
        self.certificate.tell(Grade::Error, &text);
    }

    /// Nobody can be asked.
    fn tell_alone(&mut self) {
        let (now, file) = (Timestamp::now(), self.config.authority_file());
        if !self.is_alone_told {
            self.is_alone_told = true;
            let until = self.plan.until;
            info!(%until, "nobody renews the certificate: neither `authority` in minion.toml nor {} says where to ask", file.display());
        }
        if now >= self.plan.until {
            self.tell_expired();
        } else if now >= self.plan.overdue_at {
            let text = format!(
                "the certificate ends on {}, and nobody renews it: write `authority = \"HOST\"` into {}, or run `minion enroll`",
                self.plan.until,
                self.config.file.display()
            );
            self.certificate.tell(Grade::Warning, &text);
        }
    }

    fn tell_stale(&mut self, trusted: &Trusted<MinionTls>) {
        match trusted.stale_since() {
            Some(since) => {
                let text = format!(
                    "the revocation list number {} is stale since {since}: who was revoked after that is not known here; \
                     does `overlord certs serve` run, or does any overlord call this host?",
                    trusted.crl_number()
                );
                self.stale.tell(Grade::Warning, &text);
            }
            None => self.stale.over(),
        }
    }
}

/// It is about writing, and not about what was there before.
fn is_of_writing(error: &FileError) -> bool {
    matches!(error, FileError::Write { .. } | FileError::Lock { .. })
}

/// Asks for the list, as who we are, or, if our certificate is not good now or the authority refuses it, as nobody: who is refused must hear
/// of the others that are all the same, and the list is signed, so it does not matter who brings it to whom.
async fn ask_list(authority: &mut AuthorityClient, trusted: &Trusted<MinionTls>) -> Result<Revocations, String> {
    let (credentials, have, now) = (trusted.credentials(), trusted.crl_number(), Timestamp::now());
    if (credentials.not_before()..credentials.not_after()).contains(&now) {
        match authority.revocations(have).await {
            Err(AskError::Certificate { refused_by_peer: true, .. }) => {}
            answer => return answer.map_err(|error| error.to_string()),
        }
    }
    let anchor = Anchor::Authorities(credentials.authorities().to_vec());
    let shows_nothing = tls::authority_client_config(&anchor, None).map_err(|error| chain(&error))?;
    let mut authority = AuthorityClient::new(authority.address(), shows_nothing, Deadlines::default());
    authority.revocations(have).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
