//! `overlord certs status`: what needs attention. Changes nothing; the exit status is for monitoring.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use certs::authority::desk::{Bearer, SignedList, Standing, View};
use certs::authority::{Authority, CLOCK_SKEW};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{NOT_WELL, OK, Refusal, STALE, document, remark_damaged};
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
        self.view.list.as_ref().is_none_or(|list| self.now > list.next_update)
    }

    /// A list is dated back for hosts whose clocks are slow.
    fn age_seconds(&self, this_update: Timestamp) -> i64 {
        let signed_at = this_update.checked_add(CLOCK_SKEW).unwrap_or(this_update);
        self.now.duration_since(signed_at).as_secs().max(0)
    }

    fn waiting(&self) -> usize {
        self.view.requests.iter().filter(|request| request.rejected_at.is_none()).count()
    }

    fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = ["good", "overdue", "expired", "revoked"].into_iter().map(|name| (name, 0)).collect();
        self.view.bearers.iter().for_each(|bearer| *counts.entry(name(bearer.standing)).or_default() += 1);
        counts
    }

    fn document(&self, with_certificates: bool) -> Value {
        let list = self.view.list.as_ref().map(|SignedList { number, this_update, next_update, serials }| {
            json!({
                "number": number, "signed_at": this_update, "stale_at": next_update, "stale": self.is_stale(),
                "age_s": self.age_seconds(*this_update), "revoked": serials.len(),
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
            put(format_args!("\n{}", table(["NAME", "ROLE", "STATE", "VALID UNTIL", "SERIAL"], due.into_iter().map(row))));
        }
        shown
    }

    fn list_shown(&self) -> String {
        let Some(SignedList { number, this_update, next_update, serials }) = &self.view.list else {
            return "none".to_owned();
        };
        let how = if self.is_stale() { "STALE since" } else { "good until" };
        let age = self.age_seconds(*this_update);
        format!("number {number}, {age} s old, {how} {}, revokes {}", moment(*next_update), serials.len())
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

fn bearer_document(bearer: &Bearer) -> Value {
    let mut fields = document(&bearer.entry);
    if let Some(fields) = fields.as_object_mut() {
        let revoked_at = match bearer.standing {
            Standing::Revoked(at) => Some(at),
            Standing::Good | Standing::Overdue | Standing::Expired => None,
        };
        fields.insert("state".to_owned(), json!(name(bearer.standing)));
        fields.insert("revoked_at".to_owned(), json!(revoked_at));
        fields.insert("overdue_at".to_owned(), json!(bearer.entry.overdue_at()));
    }
    fields
}

fn row(bearer: &Bearer) -> [String; 5] {
    let entry = &bearer.entry;
    let (who, kind) = (entry.role.name().to_owned(), entry.role.kind().to_owned());
    [who, kind, name(bearer.standing).to_owned(), moment(entry.not_after), entry.serial.clone()]
}

fn name(standing: Standing) -> &'static str {
    match standing {
        Standing::Good => "good",
        Standing::Overdue => "overdue",
        Standing::Expired => "expired",
        Standing::Revoked(_) => "revoked",
    }
}

/// What needs attention first.
fn urgency(standing: Standing) -> u8 {
    match standing {
        Standing::Expired => 0,
        Standing::Overdue => 1,
        Standing::Revoked(_) => 2,
        Standing::Good => 3,
    }
}
