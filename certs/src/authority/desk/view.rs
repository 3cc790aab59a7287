//! How the authority stands, for whoever looks after it: who waits, who has what, what needs attention. Changes nothing.

use std::path::PathBuf;

use common::identity::MinionName;
use jiff::Timestamp;

use super::{Answer, Desk};
use crate::authority::{AuthorityError, IssuedEntry};
use crate::crl::Crl;

/// How the authority stands.
#[derive(Debug, Clone)]
pub struct View {
    /// Requests that wait or were rejected, by name.
    pub requests: Vec<Waiting>,
    /// Everyone who has a certificate, with the newest, by name.
    pub bearers: Vec<Bearer>,
    /// The revocation list, if one was signed.
    pub list: Option<Crl>,
    /// Files that cannot be understood.
    pub damaged: Vec<PathBuf>,
}

/// A request that waits, or was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The host's name.
    pub name: MinionName,
    /// The SHA-256 of its public key, in small hexadecimal digits.
    pub key: String,
    /// Since when it waits.
    pub since: Timestamp,
    /// Where it came from.
    pub from: String,
    /// When it was rejected, if it was.
    pub rejected_at: Option<Timestamp>,
}

/// Someone's certificate, and how it stands.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The certificate.
    pub entry: IssuedEntry,
    /// How it stands.
    pub standing: Standing,
}

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All is well.
    Good,
    /// Its bearer has a newer one.
    Replaced,
    /// Two thirds of its life are over, and it was not renewed.
    Overdue,
    /// It has expired.
    Expired,
    /// It was revoked.
    Revoked(Timestamp),
}

impl Standing {
    /// Whether its bearer is let in with it.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Replaced | Self::Overdue)
    }

    /// As it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Replaced => "replaced",
            Self::Overdue => "overdue",
            Self::Expired => "expired",
            Self::Revoked(_) => "revoked",
        }
    }
}

impl Desk {
    /// How it stands now.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn view(&mut self) -> Result<View, AuthorityError> {
        self.refresh()?;
        let now = Timestamp::now();
        let newest = self.bound.values().filter_map(|serials| self.issued.get(serials.last()?));
        let mut bearers: Vec<Bearer> = newest.map(|entry| Bearer { entry: entry.clone(), standing: self.standing(entry, now) }).collect();
        bearers.sort_by(|a, b| (a.entry.role.name(), &a.entry.role).cmp(&(b.entry.role.name(), &b.entry.role)));
        let damaged =
            [self.issued.damaged_files(), self.revoked.damaged_files(), self.requests.damaged_files(), self.tokens.damaged_files()];
        let damaged = damaged.concat();
        Ok(View { requests: self.shown_requests(), bearers, list: self.signed_list()?, damaged })
    }

    /// Every certificate that was issued and is remembered, by name, oldest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn listed(&mut self) -> Result<Vec<Bearer>, AuthorityError> {
        self.refresh()?;
        let now = Timestamp::now();
        let is_replaced = |entry: &IssuedEntry| {
            let newest = self.records(&entry.role).rev().find(|entry| self.revoked_at(&entry.serial).is_none());
            newest.is_some_and(|newest| newest.serial != entry.serial)
        };
        let shown = |entry: &IssuedEntry| match self.standing(entry, now) {
            Standing::Good | Standing::Overdue if is_replaced(entry) => Standing::Replaced,
            standing => standing,
        };
        let mut entries: Vec<Bearer> =
            self.issued.iter().map(|(_, entry)| Bearer { standing: shown(entry), entry: entry.clone() }).collect();
        entries.sort_by(|Bearer { entry: a, .. }, Bearer { entry: b, .. }| {
            (a.role.name(), &a.role, a.not_before, &a.serial).cmp(&(b.role.name(), &b.role, b.not_before, &b.serial))
        });
        Ok(entries)
    }

    fn standing(&self, entry: &IssuedEntry, now: Timestamp) -> Standing {
        match self.revoked_at(&entry.serial) {
            Some(at) => Standing::Revoked(at),
            None if now >= entry.not_after => Standing::Expired,
            None if now >= entry.overdue_at() => Standing::Overdue,
            None => Standing::Good,
        }
    }

    fn shown_requests(&self) -> Vec<Waiting> {
        let shown = |request: &super::Request| Waiting {
            name: request.name.clone(),
            key: request.key.clone(),
            since: request.since,
            from: request.from.clone(),
            rejected_at: match request.answer {
                Answer::Rejected { at } => Some(at),
                Answer::Waiting | Answer::Granted { .. } => None,
            },
        };
        self.requests.iter().map(|(_, request)| shown(request)).collect()
    }
}
