//! What the minion writes into its audit log: one entry for each decision, denials and refusals too, before anything runs.
//!
//! It never decides, and never holds an argument: their digest alone.

use std::net::SocketAddr;

use common::job::MinionJobId;
use jiff::Timestamp;
use serde::Serialize;
use service::audit::{Audit, AuditError};

/// Where decisions are written down.
pub trait Log {
    /// Writes one down.
    ///
    /// # Errors
    /// It could not be written, or not whole.
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError>;
}

impl Log for Audit {
    fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        Audit::record(self, entry)
    }
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// A rule allows it.
    Allow,
    /// No rule allows it.
    Deny,
    /// It is not a call that rules could be asked about.
    Refuse,
}

/// One line of the log. Texts of a caller are bounded and escaped before they come here.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// When.
    pub at: Timestamp,
    /// Who asked, by the certificate.
    pub caller: &'a str,
    /// The certificate's SHA-256.
    pub fingerprint: &'a str,
    /// Where the connection came from; the spawner's log does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
    /// What was asked for, as it was asked for.
    pub method: &'a str,
    /// SHA-256 of the arguments' JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_sha256: Option<String>,
    /// What was decided.
    pub decision: Ruling,
    /// The rule that allows it, or why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// As which user of the host it runs, if the rule says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as: Option<&'a str>,
    /// The call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The job that it asks for or about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minion_job_id: Option<MinionJobId>,
    /// The job that submitted it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_by: Option<&'a MinionJobId>,
}

impl service::audit::Entry for Entry<'_> {
    fn is_refusal(&self) -> bool {
        self.decision != Ruling::Allow
    }

    fn summary(&self) -> String {
        let (caller, method) = (self.caller, self.method);
        match self.decision {
            Ruling::Allow => format!("{caller} may call {method}"),
            Ruling::Deny => format!("no rule lets {caller} call {method}"),
            Ruling::Refuse if method.is_empty() => format!("a request of {caller} was refused: {}", self.rule.unwrap_or_default()),
            Ruling::Refuse => format!("a request of {caller} for {method} was refused: {}", self.rule.unwrap_or_default()),
        }
    }
}
