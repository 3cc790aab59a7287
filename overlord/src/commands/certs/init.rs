//! `overlord certs init`: the fleet's authority, and this overlord's own certificate.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::authority::{Authority, AuthorityError};
use certs::files::{FileError, write_public, write_secret};
use common::identity::Role;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use super::{OK, Refusal, record};
use crate::authority::audit::{Action, Entry};
use crate::authority::{Office, enroll_line};
use crate::cli::CertsInitArgs;
use crate::fleet::Fleet;
use crate::output::{Format, Output, remark};

/// How long the authority is valid: longer than any host, so that it is never the reason why a fleet stands still.
const AUTHORITY_VALID: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);

/// So many keys that were set aside stay beside each other.
const OLD_KEYS_MAX: u32 = 1000;

/// Where a crash came between the authority and the certificate with its key, it makes what is missing.
pub(super) fn run(fleet: &Fleet, mut output: Output, args: CertsInitArgs) -> Result<u8, Refusal> {
    let dir = fleet.home().certs_dir();
    let (cert, key) = (dir.join("overlord.pem"), dir.join("overlord.key"));
    match Authority::init(&dir, AUTHORITY_VALID) {
        Err(AuthorityError::Exists { .. }) if !(cert.exists() && key.exists()) => {}
        made => drop(made?),
    }
    // Before anything is touched: the home may be one of another overlord, whose authority is elsewhere.
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    set_aside(&key)?;
    // A certificate without its key is of no use to anybody; if it cannot be removed, writing it anew says why.
    let _not_there = fs::remove_file(&cert);
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

/// Gives a key that is there the name `overlord.key.old`, or `….old.2` and so on: a key is never deleted, for it may be somebody's only one.
fn set_aside(key: &Path) -> Result<(), FileError> {
    let failed = |source: io::Error| FileError::Write { path: key.to_owned(), source };
    if key.symlink_metadata().is_err() {
        return Ok(());
    }
    for number in 1..=OLD_KEYS_MAX {
        let old = old_name(key, number);
        match renameat2(AT_FDCWD, key, AT_FDCWD, &old, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {
                remark(&format!("{} had no certificate beside it, and is kept as {}", key.display(), old.display()));
                return fs::set_permissions(&old, Permissions::from_mode(0o600)).map_err(failed);
            }
            Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(failed(io::ErrorKind::AlreadyExists.into()))
}

fn old_name(key: &Path, number: u32) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".old");
    if number > 1 {
        name.push(format!(".{number}"));
    }
    name.into()
}
