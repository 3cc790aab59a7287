//! `overlord certs init`: the fleet's authority, and this overlord's own certificate.

use std::fs;
use std::time::Duration;

use certs::authority::{Authority, AuthorityError};
use certs::files::{write_public, write_secret};
use common::identity::Role;
use serde_json::json;

use super::{OK, Refusal, record};
use crate::authority::audit::{Action, Entry};
use crate::authority::{Office, enroll_line};
use crate::cli::CertsInitArgs;
use crate::fleet::Fleet;
use crate::output::{Format, Output, remark};

/// How long the authority is valid: longer than any host, so that it is never the reason why a fleet stands still.
const AUTHORITY_VALID: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// Where a crash came between the authority and the certificate with its key, it makes what is missing.
pub(super) fn run(fleet: &Fleet, mut output: Output, args: CertsInitArgs) -> Result<u8, Refusal> {
    let dir = fleet.home().certs_dir();
    let (cert, key) = (dir.join("overlord.pem"), dir.join("overlord.key"));
    match Authority::init(&dir, AUTHORITY_VALID) {
        Err(AuthorityError::Exists { .. }) if !(cert.exists() && key.exists()) => {}
        made => drop(made?),
    }
    for half in [&cert, &key] {
        // One without the other is of no use to anybody; if it cannot be removed, writing it anew says why.
        let _not_there = fs::remove_file(half);
    }
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let role = Role::Overlord(args.name);
    let mut entry = Entry::of_command(Action::Init).about([role.name()]);
    for issued in desk.issue(std::slice::from_ref(&role), args.valid.unwrap_or(fleet.config().certs.valid))? {
        write_secret(&key, issued.key_pem().as_bytes())?;
        write_public(&cert, issued.cert_pem.as_bytes())?;
        entry = entry.with_serials([issued.serial]);
    }
    // The first revocation list: hosts that have one can be told of a newer.
    desk.tend()?;
    record(&ledger, &entry)?;
    let (ca, pin) = (dir.join("ca.pem"), desk.authority().pin());
    remark(&format!("the authority's fingerprint is {pin}"));
    let line = enroll_line(fleet.config(), desk.authority());
    remark(&format!("to let hosts enrol, run `overlord certs serve` here, and on each host:\n{line}"));
    match output.format() {
        Format::Text => output.print(&format!("{}\n{}", ca.display(), cert.display()))?,
        Format::Json | Format::Jsonl => {
            let fingerprint = pin.to_string();
            output.print_json(&json!({ "authority": ca, "fingerprint": fingerprint, "certificate": cert, "role": role.to_string() }))?;
        }
    }
    Ok(OK)
}
