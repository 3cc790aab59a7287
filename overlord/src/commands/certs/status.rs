//! `overlord certs status`: what needs attention. Changes nothing; the exit status is for monitoring.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use certs::authority::Authority;
use certs::authority::desk::{Bearer, Standing, View};
use certs::crl::Crl;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{COLUMNS, NOT_WELL, OK, Refusal, STALE, bearer_document, remark_damaged, row};
use crate::authority::Office;
use crate::fleet::Fleet;
use crate::output::job::moment;
use crate::output::{Format, Output, harmless, remark, table};

/// So long before its own end the authority needs attention: every host is to get another one by then.
const AUTHORITY_ENDS_WITHIN: SignedDuration = SignedDuration::from_hours(90 * 24);

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let mut desk = Office::desk(fleet.home(), fleet.config())?;
    let mut view = desk.view()?;
    view.bearers.sort_by_key(|bearer| urgency(bearer.standing));
    let report = Report { view: &view, authority: desk.authority(), now: Timestamp::now() };
    match output.format() {
        Format::Text => output.print(&report.shown())?,
        Format::Json => output.print_json(&report.document(true))?,
        Format::Jsonl => {
            view.bearers.iter().try_for_each(|bearer| output.print_json(&bearer_document(bearer)))?;
            output.print_json(&report.document(false))?;
        }
    }
    report.remark();
    Ok(report.exit_status())
}

struct Report<'v> {
    view: &'v View,
    authority: &'v Authority,
    now: Timestamp,
}

impl Report<'_> {
    fn exit_status(&self) -> u8 {
        let is_due = |bearer: &Bearer| matches!(bearer.standing, Standing::Overdue | Standing::Expired);
        let certificates = if self.authority_ends() || self.view.bearers.iter().any(is_due) { NOT_WELL } else { OK };
        let rest = if self.is_stale() || !self.view.damaged.is_empty() { STALE } else { OK };
        certificates + rest
    }

    fn authority_ends(&self) -> bool {
        self.authority.not_after().duration_since(self.now) < AUTHORITY_ENDS_WITHIN
    }

    /// A list that is not there, or cannot be read, is no better than an old one.
    fn is_stale(&self) -> bool {
        self.view.list.as_ref().is_none_or(|list| list.is_stale(self.now))
    }

    fn age_seconds(&self, list: &Crl) -> i64 {
        self.now.duration_since(list.signed_at()).as_secs().max(0)
    }

    fn waiting(&self) -> usize {
        self.view.requests.iter().filter(|request| request.rejected_at.is_none()).count()
    }

    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = ["good", "overdue", "expired", "revoked"].into_iter().map(|name| (name, 0)).collect();
        self.view.bearers.iter().for_each(|bearer| *counts.entry(bearer.standing.name()).or_default() += 1);
        counts
    }

    fn document(&self, with_certificates: bool) -> Value {
        let list = self.view.list.as_ref().map(|list| {
            json!({
                "number": list.number(), "signed_at": list.signed_at(), "stale_at": list.next_update(), "stale": self.is_stale(),
                "age_s": self.age_seconds(list), "revoked": list.count(),
            })
        });
        let mut document = json!({
            "authority": {
                "fingerprint": self.authority.pin().to_string(), "not_after": self.authority.not_after(), "ends_soon": self.authority_ends(),
            },
            "counts": self.counts(),
            "revocations": list,
            "requests": { "waiting": self.waiting(), "rejected": self.view.requests.len() - self.waiting() },
            "damaged": self.view.damaged,
        });
        if with_certificates && let Some(fields) = document.as_object_mut() {
            fields.insert("certificates".to_owned(), self.view.bearers.iter().map(bearer_document).collect());
        }
        document
    }

    /// Those that are well are counted; `certs list` names them.
    fn shown(&self) -> String {
        let counts = self.counts();
        let counted: Vec<String> = ["good", "overdue", "expired", "revoked"]
            .iter()
            .map(|name| format!("{} {name}", counts.get(name).copied().unwrap_or_default()))
            .collect();
        let mut shown = String::new();
        let mut put = |line: std::fmt::Arguments<'_>| {
            let written = writeln!(shown, "{line}");
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        };
        put(format_args!("authority        until {}, fingerprint {}", moment(self.authority.not_after()), self.authority.pin()));
        put(format_args!("certificates     {}", counted.join(", ")));
        put(format_args!("revocation list  {}", self.list_shown()));
        let (waiting, all) = (self.waiting(), self.view.requests.len());
        put(format_args!("requests         {waiting} waiting, {} rejected", all - waiting));
        for path in &self.view.damaged {
            put(format_args!("damaged          {}", harmless(&path.display().to_string())));
        }
        let due: Vec<&Bearer> = self.view.bearers.iter().filter(|bearer| bearer.standing != Standing::Good).collect();
        if !due.is_empty() {
            put(format_args!("\n{}", table(COLUMNS, due.into_iter().map(row))));
        }
        shown
    }

    fn list_shown(&self) -> String {
        let Some(list) = &self.view.list else { return "none".to_owned() };
        let how = if self.is_stale() { "STALE since" } else { "good until" };
        let (number, age) = (list.number(), self.age_seconds(list));
        format!("number {number}, {age} s old, {how} {}, revokes {}", moment(list.next_update()), list.count())
    }

    /// What to do about it.
    fn remark(&self) {
        let counts = self.counts();
        let some = |name| counts.get(name).copied().unwrap_or_default() > 0;
        if self.authority_ends() {
            remark(&format!("the authority itself ends {}: nothing that it issues lasts longer", moment(self.authority.not_after())));
        }
        if some("overdue") || some("expired") {
            remark(
                "a host renews its certificate by itself at half of its life: see that its minion runs and reaches `overlord certs serve`; \
                 one that is gone for good is forgotten with `overlord certs clean NAME`",
            );
        }
        if self.is_stale() {
            remark("the revocation list is signed anew by `overlord certs serve`, or by any command that changes the authority");
        }
        remark_damaged(self.view);
        if self.waiting() > 0 {
            remark("`overlord certs requests` lists who waits; `overlord certs sign NAME` lets a host in");
        }
    }
}

/// What needs attention first.
fn urgency(standing: Standing) -> u8 {
    match standing {
        Standing::Expired => 0,
        Standing::Overdue => 1,
        Standing::Revoked(_) => 2,
        Standing::Good | Standing::Replaced => 3,
    }
}
