//! Certificates revoked, names freed, and the list of it signed.

use std::collections::{BTreeMap, BTreeSet};

use common::identity::Role;
use common::protocol::certs::REVOCATIONS_MAX_BYTES;
use jiff::Timestamp;

use super::{Desk, request_file};
use crate::authority::revoked::{self, Revoked};
use crate::authority::{AuthorityError, IssuedEntry};
use crate::crl::Crl;

/// The number of the list that was signed last, within the authority's folder.
const NUMBER_FILE: &str = "crl.number";
/// What a certificate takes in the list as PEM text, and a little more (measured: 48).
const LIST_ENTRY_BYTES: usize = 64;

/// What becomes of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// They stay bound to the key that was revoked.
    Bound,
    /// Another key may have them.
    Free,
}

impl Desk {
    /// Revokes what `subjects` name (a host, a caller, `minion/NAME` or `overlord/NAME`, a serial number), and signs the list: all of it, or,
    /// if one of them names nothing that is good or was revoked, nothing. Gives the certificates that were revoked only now: who is revoked
    /// already counts as done, so that a command that was killed before every host was told can be repeated.
    ///
    /// `ours` is the serial number of the certificate of whoever asks, who would lock himself out.
    ///
    /// # Errors
    /// A subject names nothing that is good or was revoked, or several things; or it cannot be written.
    pub fn revoke(&mut self, subjects: &[String], ours: Option<&str>) -> Result<Vec<IssuedEntry>, AuthorityError> {
        let _held = self.hold()?;
        let found = self.found(subjects, ours, "revoked", |desk, subject, role| {
            let now = Timestamp::now();
            let is_good = |entry: &&IssuedEntry| now < entry.not_after && desk.revoked_at(&entry.serial).is_none();
            let good: Vec<_> = desk.of_subject(subject, role).filter(is_good).cloned().collect();
            let is_done = !good.is_empty() || desk.was_revoked(subject, role);
            if is_done { Ok(good) } else { Err(format!("{subject} has no certificate that is still good")) }
        })?;
        self.mark(&found, Name::Bound)?;
        Ok(found)
    }

    /// Revokes all that the names have, forgets their requests, and lets other keys have the names: all of them, or, if one of them has
    /// nothing, none. Gives the certificates that were revoked only now; who was cleaned already counts as done.
    ///
    /// # Errors
    /// As [`Desk::revoke`].
    pub fn clean(&mut self, subjects: &[String], ours: Option<&str>) -> Result<Vec<IssuedEntry>, AuthorityError> {
        let _held = self.hold()?;
        let found = self.found(subjects, ours, "cleaned", |desk, subject, role| {
            let bound: Vec<_> = desk.of_subject(subject, role).cloned().collect();
            let asks = matches!(role, Role::Minion(name) if desk.request(name).is_some());
            let is_done = !bound.is_empty() || asks || desk.was_revoked(subject, role);
            if is_done { Ok(bound) } else { Err(format!("{subject} has no certificate and no request")) }
        })?;
        let now = Timestamp::now();
        let fresh = found.iter().filter(|entry| now < entry.not_after && self.revoked_at(&entry.serial).is_none()).cloned().collect();
        self.mark(&found, Name::Free)?;
        for role in subjects.iter().filter_map(|subject| self.role_of(subject).ok()) {
            if let Role::Minion(name) = role {
                self.requests.remove(&request_file(&name))?;
            }
        }
        self.requests.sync()?;
        Ok(fresh)
    }

    /// The list that was signed last.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn signed_list(&self) -> Result<Option<Crl>, AuthorityError> {
        revoked::read(&self.crl_file(), &self.authority.cert)
    }

    /// Signs the list if what was revoked is not in it, or if half its time is over.
    pub(super) fn finish_revoked(&mut self) -> Result<(), AuthorityError> {
        let (now, list) = (Timestamp::now(), self.signed_list()?);
        let wanted = self.in_list(list.as_ref(), now);
        if let Some(list) = &list {
            let is_whole = wanted.keys().all(|serial| list.revokes(serial));
            if is_whole && now < list.half_time() && list.this_update() < now {
                return Ok(());
            }
        }
        let kept = self.authority.dir.join(NUMBER_FILE);
        let last_number = revoked::last_number(&kept).max(list.map_or(0, |list| list.number()));
        let (number, pem) = revoked::sign(&self.authority.issuer, last_number, &wanted, self.terms.crl_valid)?;
        revoked::publish(&self.crl_file(), &kept, number, &pem)
    }

    /// What belongs into the list, and since when: what was revoked and would still be good; what has a damaged mark; and what stands in the
    /// list of before and nothing is known of any more, as after the authority was restored from a backup.
    fn in_list(&self, before: Option<&Crl>, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let good = self.revoked.iter().filter(|(_, revoked)| now < revoked.not_after).map(|(serial, revoked)| (serial, revoked.at));
        let is_unknown =
            |serial: &&str| self.revoked.get(serial).is_none() && self.issued.get(serial).is_none_or(|entry| now < entry.not_after);
        let unknown = before.into_iter().flat_map(Crl::serials).filter(is_unknown);
        let damaged = self.revoked.damaged().iter().map(String::as_str);
        let undated = damaged.chain(unknown).map(|serial| (serial, Timestamp::UNIX_EPOCH));
        undated.chain(good).map(|(serial, at)| (serial.to_owned(), at)).collect()
    }

    fn mark(&mut self, entries: &[IssuedEntry], name: Name) -> Result<(), AuthorityError> {
        let now = Timestamp::now();
        if (self.revoked.iter().count() + entries.len()) * LIST_ENTRY_BYTES > REVOCATIONS_MAX_BYTES {
            return Err(AuthorityError::ListFull { max_bytes: REVOCATIONS_MAX_BYTES });
        }
        for entry in entries {
            let revoked = Revoked {
                role: entry.role.to_string(),
                at: self.revoked_at(&entry.serial).unwrap_or(now),
                not_after: entry.not_after,
                frees_name: name == Name::Free,
            };
            self.revoked.write(&entry.serial, &revoked)?;
        }
        self.revoked.sync()?;
        self.refresh()?;
        self.finish_revoked()
    }

    /// What all `subjects` mean, each certificate once.
    fn found(
        &self,
        subjects: &[String],
        ours: Option<&str>,
        done: &'static str,
        entries: impl Fn(&Self, &str, &Role) -> Result<Vec<IssuedEntry>, String>,
    ) -> Result<Vec<IssuedEntry>, AuthorityError> {
        let (mut found, mut problems, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for subject in subjects {
            match self.role_of(subject).and_then(|role| entries(self, subject, &role)) {
                Ok(entries) if entries.iter().any(|entry| Some(entry.serial.as_str()) == ours) => {
                    problems.push(format!("{subject} is this overlord's own certificate: every call from here would be refused"));
                }
                Ok(entries) => found.extend(entries.into_iter().filter(|entry| seen.insert(entry.serial.clone()))),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(found) } else { Err(AuthorityError::NotAll { done, problems }) }
    }

    /// Whose role a subject names.
    fn role_of(&self, subject: &str) -> Result<Role, String> {
        if let Some(entry) = self.issued.get(&subject.to_lowercase()) {
            return Ok(entry.role.clone());
        }
        if subject.contains('/') {
            return format!("fleet:{subject}").parse().map_err(|_| format!("{subject} is neither minion/NAME nor overlord/NAME"));
        }
        let host = Role::Minion(subject.parse().map_err(|error| format!("{error}"))?);
        let caller = Role::Overlord(subject.parse().map_err(|error| format!("{error}"))?);
        let is_known = |role: &Role| self.records(role).next().is_some();
        match (is_known(&host), is_known(&caller)) {
            (true, true) => Err(format!("{subject} is a host and a caller: say minion/{subject} or overlord/{subject}")),
            (false, true) => Ok(caller),
            // A caller that was cleaned is known by its marks alone.
            (false, false) if !self.was_revoked(subject, &host) && self.was_revoked(subject, &caller) => Ok(caller),
            (_, false) => Ok(host),
        }
    }

    /// Whether what the subject means, a certificate or all of the role's, is revoked; also of who was cleaned since.
    fn was_revoked(&self, subject: &str, role: &Role) -> bool {
        let (serial, role) = (subject.to_lowercase(), role.to_string());
        match self.issued.get(&serial) {
            Some(_) => self.revoked_at(&serial).is_some(),
            None => self.revoked.iter().any(|(_, revoked)| revoked.role == role),
        }
    }

    /// The certificates that a subject of this role means: one if it is a serial number, else all that bind the name.
    fn of_subject<'d>(&'d self, subject: &str, role: &Role) -> impl Iterator<Item = &'d IssuedEntry> {
        let serial = self.issued.get(&subject.to_lowercase()).map(|entry| entry.serial.clone());
        let is_meant = move |entry: &&IssuedEntry| serial.as_ref().is_none_or(|serial| entry.serial == *serial);
        self.records(role).filter(is_meant).collect::<Vec<_>>().into_iter()
    }
}
