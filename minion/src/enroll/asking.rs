//! The asking itself: once, or again and again until an administrator has answered. It writes no file.

use std::time::Duration;

use certs::csr;
use certs::tls::CaPin;
use certs::trust::TrustFiles;
use common::outcome::ErrorCode;
use common::protocol::certs::{EnrollParams, EnrollReply, Issued};
use common::shown::{SAID_MAX_LETTERS, harmless_line};
use service::authority::{AskError, AuthorityClient, Deadlines};
use tokio::signal::ctrl_c;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{EnrollError, say};
use crate::config::Config;
use crate::random;

/// How long connecting and an answer may take. The authority itself waits up to 10 s for whoever else is at its folder.
const DEADLINES: Deadlines = Deadlines { connect: Duration::from_secs(3), answer: Duration::from_secs(15) };
/// How long to wait between the first two questions, between any two at the most, by what it grows, and what chance adds at the most.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
const AGAIN_AFTER_MOST: Duration = Duration::from_secs(10);
const AGAIN_GROWTH: f64 = 1.25;
const AGAIN_JITTER: Duration = Duration::from_millis(500);

/// What is asked of whom.
pub(super) struct Asked<'a> {
    pub(super) address: &'a str,
    pub(super) pin: CaPin,
    pub(super) params: EnrollParams,
    /// For how long to ask again while the request waits, or there is no answer.
    pub(super) wait: Option<Duration>,
}

/// How the asking ended, if not badly. What is to be done was said.
pub(super) enum Ended {
    /// With a certificate, which nobody has looked at yet.
    Issued { ca: CertificateDer<'static>, issued: Issued, address: String },
    /// The request waits for an administrator.
    Waiting,
    /// Ctrl-C.
    Interrupted,
}

/// Asks. Ctrl-C ends it at any point.
pub(super) async fn ask(asked: Asked<'_>, config: &Config, files: &TrustFiles) -> Result<Ended, EnrollError> {
    let mut asking = Asking::new(asked, config, files)?;
    tokio::select! {
        ended = asking.run() => ended,
        _ = ctrl_c() => {
            say(if asking.is_waiting { "interrupted: the request still waits; this command, run again, asks how it stands" } else { "interrupted" });
            Ok(Ended::Interrupted)
        }
    }
}

struct Asking<'a> {
    authority: AuthorityClient,
    params: EnrollParams,
    wait: Option<Duration>,
    until: Instant,
    /// The request was taken, and waits.
    is_waiting: bool,
    /// Why there was no answer to the last question, if there was none. It was told.
    trouble: Option<String>,
    config: &'a Config,
    files: &'a TrustFiles,
}

impl<'a> Asking<'a> {
    fn new(asked: Asked<'_>, config: &'a Config, files: &'a TrustFiles) -> Result<Self, EnrollError> {
        let Asked { address, pin, params, wait } = asked;
        let until = Instant::now() + wait.unwrap_or_default();
        let authority = AuthorityClient::pinned(address, pin, DEADLINES)?;
        Ok(Self { authority, params, wait, until, is_waiting: false, trouble: None, config, files })
    }

    async fn run(&mut self) -> Result<Ended, EnrollError> {
        // The first question is always asked to its end.
        let mut answer = Some(self.authority.enroll(&self.params).await);
        let mut pause = AGAIN_AFTER;
        loop {
            match answer {
                Some(Ok(EnrollReply::Issued(issued))) => return self.issued(issued),
                Some(Ok(EnrollReply::Waiting { .. })) => self.tell_waiting()?,
                Some(Ok(EnrollReply::Rejected { at })) => return Err(self.rejected(at)),
                Some(Err(error)) if self.wait.is_some() && may_pass(&error) => self.tell_trouble(self.refused(&error).to_string()),
                Some(Err(error)) => return Err(self.refused(&error)),
                None => {}
            }
            // Many may wait, and the authority has not so many connections.
            self.authority.hang_up();
            let left = self.until.duration_since(Instant::now());
            if left <= AGAIN_AFTER {
                return self.waits_on();
            }
            // However long the pause is, the last question is asked shortly before the end.
            sleep((pause + AGAIN_JITTER.mul_f64(random::share())).min(left - AGAIN_AFTER)).await;
            pause = pause.mul_f64(AGAIN_GROWTH).min(AGAIN_AFTER_MOST);
            answer = timeout_at(self.until, self.authority.enroll(&self.params)).await.ok();
        }
    }

    fn issued(&self, issued: Issued) -> Result<Ended, EnrollError> {
        let address = self.authority.address().to_owned();
        let no_ca = || EnrollError::Refused(format!("the authority at {address} has shown no certificate of its own"));
        let ca = self.authority.shown_authority().ok_or_else(no_ca)?;
        Ok(Ended::Issued { ca, issued, address })
    }

    /// What an administrator has to do, once.
    fn tell_waiting(&mut self) -> Result<(), EnrollError> {
        if self.trouble.take().is_some() {
            say(&format!("the authority at {} answers now", self.authority.address()));
        }
        if self.is_waiting {
            return Ok(());
        }
        self.is_waiting = true;
        let name = &self.config.name;
        say(&format!("the request of {name} waits at {}; the fingerprint of its key is", self.authority.address()));
        say(&csr::key_file_id(&self.files.key)?);
        say(&format!("where the authority is, compare it with what `overlord certs requests` shows, and run `overlord certs sign {name}`"));
        match self.wait {
            Some(_) => say("waiting for that"),
            None => say("then run this command again; with --wait 10m it waits for that"),
        }
        Ok(())
    }

    fn tell_trouble(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            say(&format!("{}; it is asked again", harmless_line(&trouble, SAID_MAX_LETTERS)));
            self.trouble = Some(trouble);
        }
    }

    /// The time to wait is over.
    fn waits_on(&self) -> Result<Ended, EnrollError> {
        match (&self.trouble, self.wait) {
            (Some(trouble), Some(wait)) if !self.is_waiting => {
                Err(EnrollError::Refused(format!("{trouble}; it was asked for {wait:?}, and has not taken the request")))
            }
            (_, Some(_)) => {
                say(&format!("the request of {} still waits; run this command again to go on waiting", self.config.name));
                Ok(Ended::Waiting)
            }
            (_, None) => Ok(Ended::Waiting),
        }
    }

    fn rejected(&self, at: jiff::Timestamp) -> EnrollError {
        let name = &self.config.name;
        EnrollError::Refused(format!(
            "an administrator has rejected the request of {name} at {} on {at}; if that was not meant, run `overlord certs clean {name}` \
             where the authority is, and this command again",
            self.authority.address()
        ))
    }

    fn refused(&self, error: &AskError) -> EnrollError {
        EnrollError::Refused(match error {
            AskError::Refused(failure) => format!("the authority at {} refuses: {}", self.authority.address(), failure.message),
            AskError::Unreachable { .. } | AskError::Certificate { .. } | AskError::Silent { .. } | AskError::NotUnderstood { .. } => {
                error.to_string()
            }
        })
    }
}

/// Whether the same question may have an answer later.
fn may_pass(error: &AskError) -> bool {
    match error {
        AskError::Unreachable { .. } | AskError::Silent { .. } => true,
        AskError::Refused(failure) => failure.is(ErrorCode::LimitReached) || failure.is(ErrorCode::Internal),
        AskError::Certificate { .. } | AskError::NotUnderstood { .. } => false,
    }
}
