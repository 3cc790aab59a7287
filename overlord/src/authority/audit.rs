//! The authority's audit log: one JSON line for every change and every decision. It never decides, and never holds a token.

use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use service::Visitor;
use service::audit::{Audit, AuditError, COUNTED_FOR, Repeated, Repeats, Rotation};

use crate::config::Config;
use crate::home::Home;

/// As much of a token's digest as tells which one it was.
const TOKEN_SHOWN_CHARS: usize = 8;

/// What was done, or asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// The authority was made.
    Init,
    /// Certificates were issued by hand.
    Issue,
    /// Requests were signed.
    Sign,
    /// Requests were rejected.
    Reject,
    /// Certificates were revoked.
    Revoke,
    /// Names were freed.
    Clean,
    /// A token was made.
    Token,
    /// A host has asked for its first certificate.
    Enroll,
    /// Somebody has asked for a new certificate in the place of an old one.
    Renew,
    /// Somebody has asked for something else.
    Other,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    /// It was done.
    #[serde(rename = "allow")]
    Done,
    /// It waits for an administrator.
    #[serde(rename = "wait")]
    Waiting,
    /// It was refused, for `reason`.
    #[serde(rename = "deny")]
    Refused,
    /// It could not be done, for `reason`.
    Failed,
}

/// One line of the log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    /// The user of a command; whose certificate was shown to the server, `nobody` if none was.
    pub(crate) who: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<SocketAddr>,
    /// The SHA-256 of the certificate that was shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
    pub(crate) action: Action,
    /// Whom it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) names: Vec<String>,
    /// The serial numbers of the certificates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) serials: Vec<String>,
    /// How the digest of the token begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    pub(crate) decision: Decision,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Entry {
    /// Of something that the user of this command has done.
    pub(crate) fn of_command(action: Action) -> Self {
        Self::new(user(), action, Decision::Done)
    }

    pub(crate) fn new(who: String, action: Action, decision: Decision) -> Self {
        let (names, serials) = (Vec::new(), Vec::new());
        Self { at: Timestamp::now(), who, peer: None, fingerprint: None, action, names, serials, token: None, decision, reason: None }
    }

    pub(crate) fn about(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    pub(crate) fn with_serials(mut self, serials: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.serials.extend(serials.into_iter().map(Into::into));
        self
    }

    /// As it came out.
    pub(crate) fn decided(mut self, decision: Decision, reason: Option<String>) -> Self {
        (self.decision, self.reason) = (decision, reason);
        self
    }

    /// Of somebody at the other end of a connection.
    pub(crate) fn of_visitor(visitor: &Visitor, action: Action) -> Self {
        let who = visitor.peer().map_or_else(|| "nobody".to_owned(), |peer| peer.role.to_string());
        let mut entry = Self::new(who, action, Decision::Refused);
        entry.peer = Some(visitor.address());
        entry.fingerprint = visitor.peer().map(|peer| peer.fingerprint.clone());
        entry
    }

    /// Of what was refused again and again to one address, or to many.
    fn of_repeats(repeated: &Repeated<SocketAddr>) -> Self {
        let whose = if repeated.first.is_some() { "" } else { " of other addresses" };
        let reason = format!("refused {} more times{whose} within {} s", repeated.more, COUNTED_FOR.as_secs());
        let mut entry = Self::new("nobody".to_owned(), Action::Other, Decision::Refused).decided(Decision::Refused, Some(reason));
        entry.peer = repeated.first;
        entry
    }

    /// Of a refusal of somebody who shows no certificate: where he is.
    fn unproved(&self) -> Option<SocketAddr> {
        let is_refusal = matches!(self.decision, Decision::Refused | Decision::Failed);
        self.peer.filter(|_| is_refusal && self.fingerprint.is_none())
    }

    /// Names a token by its digest.
    pub(crate) fn with_token(mut self, digest: &str) -> Self {
        self.token = Some(digest.chars().take(TOKEN_SHOWN_CHARS).collect());
        self
    }
}

impl service::audit::Entry for Entry {
    fn summary(&self) -> String {
        let word = |json: Option<serde_json::Value>| json.and_then(|json| json.as_str().map(str::to_owned)).unwrap_or_default();
        let (action, decision) = (word(serde_json::to_value(self.action).ok()), word(serde_json::to_value(self.decision).ok()));
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{}: {action} {}: {decision}{reason}", self.who, self.names.join(" "))
    }

    fn is_refusal(&self) -> bool {
        matches!(self.decision, Decision::Refused | Decision::Failed)
    }
}

/// Why the log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct LedgerError(#[from] AuditError);

/// The log, open for appending: by the server and by commands at once.
#[derive(Debug)]
pub(crate) struct Ledger {
    audit: Audit,
    /// Refusals of who shows no certificate, by address; and where the first of them came from.
    repeats: Repeats<IpAddr, SocketAddr>,
}

impl Ledger {
    /// # Errors
    /// It can be neither opened nor made.
    pub(crate) fn open(home: &Home, config: &Config) -> Result<Self, LedgerError> {
        let path = home.certs_audit_log();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(home.state_dir());
        made.map_err(|source| AuditError { path: path.clone(), source })?;
        let rotation = Rotation { max_bytes: config.certs.audit_max_bytes.get(), files: config.certs.audit_files.get() };
        Ok(Self { audit: Audit::open(&path, rotation)?, repeats: Repeats::default() })
    }

    /// Writes it down; of the refusals of who shows no certificate, the first few of an address in a minute, and the others as a number.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn record(&self, entry: &Entry) -> Result<(), LedgerError> {
        self.tell_repeats(Instant::now())?;
        let is_repeated = entry.unproved().is_some_and(|peer| self.repeats.is_repeated(peer.ip().to_canonical(), peer, Instant::now()));
        if is_repeated { Ok(()) } else { Ok(self.audit.record(entry)?) }
    }

    /// Writes down how often was refused what was counted for a minute: for who tends the log, as often as he likes.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn tell_repeats(&self, now: Instant) -> Result<(), LedgerError> {
        self.repeats.due(now).into_iter().try_for_each(|repeated| Ok(self.audit.record(&Entry::of_repeats(&repeated))?))
    }

    /// The same of all that was counted: for the end.
    ///
    /// # Errors
    /// It could not be written.
    pub(crate) fn tell_all_repeats(&self) -> Result<(), LedgerError> {
        self.tell_repeats(Instant::now() + COUNTED_FOR)
    }
}

/// Who runs this command.
fn user() -> String {
    let uid = nix::unistd::getuid();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => format!("{} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn what_was_done_and_what_becomes_of_certificates_is_never_counted() {
        let mut refused = Entry::new("nobody".to_owned(), Action::Enroll, Decision::Refused);
        assert_eq!(refused.unproved(), None, "it is of a command");
        refused.peer = Some("10.0.0.1:1".parse().unwrap());
        assert_eq!(refused.unproved(), refused.peer);
        assert_eq!(refused.clone().decided(Decision::Done, None).unproved(), None);
        refused.fingerprint = Some("00".to_owned());
        assert_eq!(refused.unproved(), None);
    }

    #[test]
    fn what_was_counted_says_whose_it_was() {
        let told = |first: Option<&str>| Entry::of_repeats(&Repeated { first: first.map(|first| first.parse().unwrap()), more: 992 });
        let (one, many) = (told(Some("10.0.0.1:1")), told(None));
        assert_eq!(one.reason.as_deref(), Some("refused 992 more times within 60 s"));
        assert_eq!(one.peer, Some("10.0.0.1:1".parse().unwrap()));
        assert_eq!(many.reason.as_deref(), Some("refused 992 more times of other addresses within 60 s"));
    }
}
