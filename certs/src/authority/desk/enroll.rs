//! Requests taken, signed, rejected, and certificates renewed: many at once, each step of all of them before the next step of any.

use common::identity::{MinionName, Role};
use jiff::Timestamp;
use rayon::prelude::*;
use rustls::pki_types::CertificateDer;
use serde_json::Map;

use super::decide::{Decision, decide, require_bound, require_known_bindings};
use super::{Answer, Desk, Refused, Request, request_file};
use crate::authority::token::{self, Token, Used};
use crate::authority::{AuthorityError, IssuedEntry, record_pem};
use crate::csr::{Csr, CsrProblem, usable_key};
use crate::files::FileError;
use crate::leaf::{Leaf, hex, unhex};
use crate::request::{server_name, validity};

/// One request for a first certificate.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The name of the host.
    pub name: MinionName,
    /// Its request: PEM text.
    pub csr: String,
    /// A token, if it brought one.
    pub token: Option<String>,
    /// Where it comes from, for the administrator.
    pub from: String,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolled {
    /// It has its certificate.
    Issued(Certified),
    /// It waits for an administrator.
    Waiting {
        /// The SHA-256 of the public key in small hexadecimal digits.
        key: String,
        /// Since when.
        since: Timestamp,
    },
    /// An administrator has said no.
    Rejected {
        /// When.
        at: Timestamp,
    },
}

/// A certificate that is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// Its serial number, in small hexadecimal digits.
    pub serial: String,
    /// The certificate: PEM text.
    pub cert_pem: String,
}

/// Whether a record was made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Before,
}

impl Desk {
    /// Takes requests for first certificates, as many as came at once; what each gets, in their order. All that is said is on the disk.
    ///
    /// # Errors
    /// The folder cannot be read or written; then nobody is told anything, and whoever asks again finds how it stands.
    pub fn enroll(&mut self, asked: &[Asked]) -> Result<Vec<Result<Enrolled, Refused>>, AuthorityError> {
        let read: Vec<_> = asked.par_iter().map(|asked| Csr::read(&asked.csr)).collect();
        if read.iter().all(Result::is_err) {
            // Junk costs nobody the lock.
            let refused =
                |(asked, csr): (&Asked, Result<Csr, CsrProblem>)| Some(Err(Refused::Csr { name: asked.name.clone(), problem: csr.err()? }));
            return Ok(asked.iter().zip(read).filter_map(refused).collect());
        }
        let _held = self.hold()?;
        let now = Timestamp::now();
        let mut waiting = self.requests.iter().filter(|(_, request)| request.answer == Answer::Waiting).count();
        let mut decided = Vec::with_capacity(asked.len());
        for (asked, csr) in asked.iter().zip(read) {
            decided.push(self.take(asked, csr, &mut waiting, now));
        }
        let new = asked.iter().zip(&decided).filter(|(_, decided)| is_new(decided)).map(|(asked, _)| request_file(&asked.name));
        self.write_requests(&new.collect::<Vec<_>>())?;
        self.finish_granted()?;
        let told = |(asked, decided)| match decided {
            Ok(decision) => self.told(asked, decision, now).map(Ok),
            Err(refused) => Ok(Err(refused)),
        };
        asked.iter().zip(decided).map(told).collect()
    }

    /// Signs the requests of `names`, all that wait if none is named: all of them, or, if one cannot be, none.
    ///
    /// # Errors
    /// A name has no request that waits, or it cannot be written.
    pub fn sign(&mut self, names: Option<&[MinionName]>) -> Result<Vec<IssuedEntry>, AuthorityError> {
        let _held = self.hold()?;
        let now = Timestamp::now();
        let waiting: Vec<MinionName> = self.waiting().map(|request| request.name.clone()).collect();
        let names = names.unwrap_or(&waiting);
        let problems: Vec<String> = names.iter().filter_map(|name| self.why_not_signed(name, now)).collect();
        if !problems.is_empty() {
            return Err(AuthorityError::NotAll { done: "signed", problems });
        }
        let requests: Vec<Request> = names.iter().filter_map(|name| self.request(name).cloned()).collect();
        self.certify_all(&requests, now)
    }

    /// Says no to the requests of `names`: to all of them, or, if one has none that waits, to none.
    ///
    /// # Errors
    /// A name has no request that waits, or it cannot be written.
    pub fn reject(&mut self, names: &[MinionName]) -> Result<(), AuthorityError> {
        let _held = self.hold()?;
        let now = Timestamp::now();
        let problems: Vec<String> = names.iter().filter(|name| !self.has_waiting(name)).map(|name| self.no_request(name)).collect();
        if !problems.is_empty() {
            return Err(AuthorityError::NotAll { done: "rejected", problems });
        }
        for name in names {
            let rejected = self.request(name).map(|request| Request { answer: Answer::Rejected { at: now }, ..request.clone() });
            if let Some(rejected) = rejected {
                self.requests.write(&request_file(name), &rejected)?;
            }
        }
        self.requests.sync()
    }

    /// New certificates for the keys, names and roles of those that were shown in handshakes; what each gets, in their order.
    ///
    /// # Errors
    /// As [`Desk::enroll`].
    pub fn renew(&mut self, shown: &[CertificateDer<'_>]) -> Result<Vec<Result<Certified, Refused>>, AuthorityError> {
        let _held = self.hold()?;
        let now = Timestamp::now();
        let renewed: Result<Vec<_>, AuthorityError> = shown.par_iter().map(|cert| self.renew_one(cert, now)).collect();
        self.issued.sync()?;
        renewed
    }

    fn renew_one(&self, shown: &CertificateDer<'_>, now: Timestamp) -> Result<Result<Certified, Refused>, AuthorityError> {
        let not_renewable = |problem: String| Refused::NotRenewable { problem };
        let leaf = match Leaf::read(shown) {
            Ok(leaf) if leaf.role == Role::Authority => return Ok(Err(not_renewable("it is the authority's own".to_owned()))),
            Ok(leaf) => leaf,
            Err(error) => return Ok(Err(not_renewable(error.to_string()))),
        };
        if let Some(at) = self.revoked_at(&leaf.serial) {
            return Ok(Err(Refused::Revoked { subject: leaf.role.name().to_owned(), at }));
        }
        if self.records(&leaf.role).next_back().is_some_and(|newest| newest.key != leaf.key) {
            return Ok(Err(Refused::NotCurrent { role: leaf.role }));
        }
        // Who did not hear our answer asks again.
        let mut newer = self.good(&leaf.role, &leaf.key, now).take_while(|entry| entry.serial != leaf.serial);
        let already = newer.find(|entry| now < entry.renewal_due_at());
        if let Some(entry) = already {
            return self.certified(entry).map(Ok);
        }
        let key = match usable_key(&leaf.public_key) {
            Ok(key) => key,
            Err(problem) => return Ok(Err(not_renewable(problem.to_string()))),
        };
        let validity = self.validity(&leaf.role, now)?;
        let (cert, serial) = self.authority.certify(&leaf.role, &key, validity)?;
        Ok(Ok(Certified { serial, cert_pem: cert.pem() }))
    }

    /// Decides on one request, and notes what is to be written.
    fn take(&mut self, asked: &Asked, csr: Result<Csr, CsrProblem>, waiting: &mut usize, now: Timestamp) -> Result<Decision, Refused> {
        let csr = csr.map_err(|problem| Refused::Csr { name: asked.name.clone(), problem })?;
        let digest = asked.token.as_deref().map(token::digest);
        let decision = decide(self, &asked.name, &csr, digest.as_deref(), *waiting, now)?;
        let answer = match &decision {
            Decision::Keep => {
                *waiting += 1;
                Answer::Waiting
            }
            Decision::Grant(token) => {
                self.note_used(token, &asked.name, now);
                Answer::Granted { token: token.clone() }
            }
            Decision::Issued(_) | Decision::Waits(_) | Decision::Rejected(_) => return Ok(decision),
        };
        let request = Request {
            name: asked.name.clone(),
            public_key: hex(&csr.public_key),
            key: csr.key,
            since: now,
            from: asked.from.clone(),
            answer,
            more: Map::new(),
        };
        self.requests.note(&request_file(&asked.name), request);
        Ok(decision)
    }

    fn note_used(&mut self, token: &str, by: &MinionName, now: Timestamp) -> Option<Token> {
        let used = Token { used: Some(Used { by: by.clone(), at: now }), ..self.tokens.get(token)?.clone() };
        self.tokens.note(token, used.clone());
        Some(used)
    }

    fn write_requests(&self, files: &[String]) -> Result<(), AuthorityError> {
        if files.is_empty() {
            return Ok(());
        }
        let write = |file: &String| self.requests.get(file).map_or(Ok(()), |request| self.requests.write(file, request));
        files.par_iter().try_for_each(write)?;
        self.requests.sync()
    }

    /// Removes the requests whose certificates are recorded already.
    pub(super) fn finish_signed(&self) -> Result<(), AuthorityError> {
        let now = Timestamp::now();
        let is_signed = |request: &&Request| self.good(&Role::Minion(request.name.clone()), &request.key, now).next().is_some();
        let mut signed = self.waiting().filter(is_signed).peekable();
        if signed.peek().is_none() {
            return Ok(());
        }
        signed.try_for_each(|request| self.requests.remove(&request_file(&request.name)))?;
        self.requests.sync()
    }

    /// Burns the tokens that have said yes to a request, and signs those requests.
    pub(super) fn finish_granted(&mut self) -> Result<(), AuthorityError> {
        let now = Timestamp::now();
        let granted = |request: &&Request| matches!(request.answer, Answer::Granted { .. });
        let requests: Vec<Request> = self.requests.iter().map(|(_, request)| request).filter(granted).cloned().collect();
        if requests.is_empty() {
            return Ok(());
        }
        let mut burnt = Vec::new();
        for request in &requests {
            if let Answer::Granted { token } = &request.answer {
                burnt.extend(self.note_used(token, &request.name, now).map(|used| (token.clone(), used)));
            }
        }
        burnt.par_iter().try_for_each(|(token, used)| self.tokens.write(token, used))?;
        self.tokens.sync()?;
        // One that cannot be signed must not keep all others from it for ever.
        let (good, bad): (Vec<_>, Vec<_>) = requests.into_iter().partition(|request| self.is_certifiable(request));
        for request in &bad {
            let file = request_file(&request.name);
            self.requests.write(&file, &Request { answer: Answer::Rejected { at: now }, ..request.clone() })?;
        }
        self.certify_all(&good, now).map(drop)
    }

    fn is_certifiable(&self, request: &Request) -> bool {
        server_name(request.name.as_str()).is_ok() && usable_key(&unhex(&request.public_key)).is_ok()
    }

    /// Signs requests that were decided on: records the certificates, then removes the requests. Where one cannot be recorded, none is.
    fn certify_all(&mut self, requests: &[Request], now: Timestamp) -> Result<Vec<IssuedEntry>, AuthorityError> {
        let certified: Vec<_> = requests.par_iter().map(|request| self.certify_request(request, now)).collect();
        if let Some(error) = self.undo_if_any_failed(&certified) {
            return Err(error);
        }
        let entries: Vec<IssuedEntry> = certified.into_iter().flatten().map(|(entry, _)| entry).collect();
        self.issued.sync()?;
        requests.par_iter().try_for_each(|request| self.requests.remove(&request_file(&request.name)))?;
        self.requests.sync()?;
        self.refresh()?;
        Ok(entries)
    }

    /// Takes back what was recorded just now, and has been told to nobody, if anything could not be.
    fn undo_if_any_failed(&self, certified: &[Result<(IssuedEntry, Age), AuthorityError>]) -> Option<AuthorityError> {
        let error = certified.iter().find_map(|one| one.as_ref().err())?.to_string();
        for (entry, _) in certified.iter().flatten().filter(|(_, age)| *age == Age::New) {
            if let Err(error) = self.issued.remove(&entry.serial) {
                return Some(error);
            }
        }
        Some(AuthorityError::NotAll { done: "signed", problems: vec![error] })
    }

    fn certify_request(&self, request: &Request, now: Timestamp) -> Result<(IssuedEntry, Age), AuthorityError> {
        let role = Role::Minion(request.name.clone());
        // A kill came between its record and the request's end.
        if let Some(entry) = self.good(&role, &request.key, now).next() {
            return Ok((entry.clone(), Age::Before));
        }
        let damaged = || AuthorityError::DamagedRequest { path: self.requests.file(&request_file(&request.name)) };
        let key = usable_key(&unhex(&request.public_key)).map_err(|_| damaged())?;
        let (cert, _) = self.authority.certify(&role, &key, self.validity(&role, now)?)?;
        let leaf = Leaf::read(cert.der()).map_err(|_| damaged())?;
        Ok((leaf.into(), Age::New))
    }

    fn validity(&self, role: &Role, now: Timestamp) -> Result<crate::request::Validity, AuthorityError> {
        let failed = |source| AuthorityError::Request { subject: role.to_string(), source };
        Ok(self.authority.within_our_own(validity(now, self.terms.valid).map_err(failed)?))
    }

    fn told(&self, asked: &Asked, decision: Decision, now: Timestamp) -> Result<Enrolled, AuthorityError> {
        match decision {
            Decision::Issued(entry) => self.certified(&entry).map(Enrolled::Issued),
            Decision::Rejected(at) => Ok(Enrolled::Rejected { at }),
            Decision::Waits(since) => Ok(self.waits(asked, since)),
            Decision::Keep => Ok(self.waits(asked, now)),
            Decision::Grant(_) => match self.records(&Role::Minion(asked.name.clone())).next_back() {
                Some(entry) => self.certified(entry).map(Enrolled::Issued),
                None => Ok(self.waits(asked, now)),
            },
        }
    }

    fn waits(&self, asked: &Asked, since: Timestamp) -> Enrolled {
        let key = self.request(&asked.name).map(|request| request.key.clone()).unwrap_or_default();
        Enrolled::Waiting { key, since }
    }

    fn certified(&self, entry: &IssuedEntry) -> Result<Certified, AuthorityError> {
        let path = self.issued.file(&entry.serial);
        let text = std::fs::read_to_string(&path).map_err(|source| FileError::Read { path: path.clone(), source })?;
        let cert_pem = record_pem(&text).ok_or(FileError::NotPem { path, what: "whole certificate" })?;
        Ok(Certified { serial: entry.serial.clone(), cert_pem: cert_pem.to_owned() })
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter().map(|(_, request)| request).filter(|request| request.answer == Answer::Waiting)
    }

    fn has_waiting(&self, name: &MinionName) -> bool {
        self.request(name).is_some_and(|request| request.answer == Answer::Waiting)
    }

    fn why_not_signed(&self, name: &MinionName, now: Timestamp) -> Option<String> {
        if !self.has_waiting(name) {
            return Some(self.no_request(name));
        }
        let request = self.request(name)?;
        let bound = require_bound(self, name, &request.key, now).and_then(|_| require_known_bindings(self, name));
        let usable = |refused: Option<Refused>| refused.map(|refused| refused.to_string());
        usable(bound.err()).or_else(|| server_name(name.as_str()).err().map(|problem| problem.to_string()))
    }

    fn no_request(&self, name: &MinionName) -> String {
        match self.request(name).map(|request| &request.answer) {
            Some(Answer::Rejected { at }) => format!("{name}'s request was rejected on {at}"),
            _ => match self.records(&Role::Minion(name.clone())).next_back() {
                Some(entry) => format!("{name} has no request that waits, and has a certificate until {}", entry.not_after),
                None => format!("{name} has no request that waits"),
            },
        }
    }
}

fn is_new(decided: &Result<Decision, Refused>) -> bool {
    matches!(decided, Ok(Decision::Keep | Decision::Grant(_)))
}
