//! Whose files are gone by when it is said who may call, and when they are read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;
#[path = "support/side.rs"]
mod side;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use certs::authority::write_folder;
use certs::crl::StaleCrl;
use certs::trust::LOOK_EVERY;
use lab::Lab;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::{Uid, chown, getuid};
use side::{Side, overlord, serial};

/// A user that is neither root nor who runs the tests.
const SOMEBODY: u32 = 65_533;

/// As root an own file is given to somebody else; as another user it is somebody else who is to own it.
fn disown(side: &mut Side, name: &str) {
    if getuid().is_root() {
        let path = side.file(name);
        nix::unistd::fchownat(nix::fcntl::AT_FDCWD, &path, Some(Uid::from_raw(SOMEBODY)), None, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .unwrap();
    } else {
        side.owner = Some(SOMEBODY);
        side.restart();
    }
}

#[test]
fn an_authority_that_somebody_else_could_have_put_there_lets_nobody_in() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    for what in ["ca.pem", ""] {
        let mut side = Side::new(&lab);
        side.judge(&admin).unwrap();
        disown(&mut side, what);
        side.until("everyone to be refused", |side| side.judge(&admin).is_err());
        let reason = side.refusal(&admin);
        assert!(reason.contains("who could make anybody a caller") && reason.contains("run `chown -h "), "{reason}");
        assert!(side.told().contains(&reason));
        side.restart();
        assert_eq!(side.refusal(&admin), reason, "from the beginning, too");
        if getuid().is_root() {
            chown(&side.file(what), Some(getuid()), None).unwrap();
            side.until("it to be mended", |side| side.judge(&admin).is_ok());
        }
        side.owner = None;
        side.restart();
        side.judge(&admin).expect("where no owner is named, none is asked for");
    }
}

#[test]
fn a_link_of_somebody_elses_is_not_followed_to_an_authority() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let mut side = Side::new(&lab);
    fs::rename(side.file("ca.pem"), side.file("other.pem")).unwrap();
    symlink(side.file("other.pem"), side.file("ca.pem")).unwrap();
    side.restart();
    side.judge(&admin).expect("a link of the owner's is followed");
    disown(&mut side, "ca.pem");
    side.until("everyone to be refused", |side| side.judge(&admin).is_err());
    assert!(side.refusal(&admin).contains("run `chown -h "), "{}", side.refusal(&admin));
}

#[test]
fn an_authority_that_others_may_write_lets_nobody_in() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let mut side = Side::new(&lab);
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let (ca, folder) = (side.file("ca.pem"), side.dir.path().to_owned());
    for (path, bad, good, mends) in [
        (&ca, 0o664, 0o644, format!("run `chmod go-w {}`", ca.display())),
        (&ca, 0o646, 0o600, format!("run `chmod go-w {}`", ca.display())),
        (&folder, 0o770, 0o1770, format!("run `chmod +t {}`", folder.display())),
        (&folder, 0o777, 0o755, format!("run `chmod +t {}`", folder.display())),
    ] {
        set(path, bad);
        side.until("everyone to be refused", |side| side.judge(&admin).is_err());
        assert!(side.refusal(&admin).contains(&mends), "{}", side.refusal(&admin));
        side.restart();
        assert!(side.refusal(&admin).contains(&mends), "from the beginning, too");
        set(path, good);
        side.until("it to be mended", |side| side.judge(&admin).is_ok());
    }
}

#[test]
fn an_authority_that_cannot_be_read_leaves_the_one_before_in_force() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (admin, stranger) = (overlord(&lab), overlord(&other));
    let without = |dir: &Path| fs::remove_file(dir.join("ca.pem")).unwrap();
    let mut side = Side::with(&lab, StaleCrl::Serve, without);
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(side.refusal(&admin).contains("ca.pem"), "{}", side.refusal(&admin));
        side.put("ca.pem", text);
        side.restart();
    }
    assert!(side.refusal(&admin).contains("ca.pem"), "{}", side.refusal(&admin));
    side.put("ca.pem", lab.authority.ca_pem());
    side.until("the authority", |side| side.judge(&admin).is_ok());
    side.put_list(&lab, 7, &[]);
    side.until("its list", |side| side.callers.crl_number() == 7);
    side.told();
    side.put("ca.pem", "no certificate");
    side.until_told("ca.pem holds no certificate");
    side.judge(&admin).unwrap();
    fs::remove_file(side.file("ca.pem")).unwrap();
    side.until_told("reading");
    side.judge(&admin).unwrap();
    // Another authority has a row of lists of its own, whatever is kept.
    side.put("ca.pem", other.authority.ca_pem());
    side.until("the other authority", |side| side.judge(&stranger).is_ok());
    assert!(side.refusal(&admin).contains("another authority than ours"));
    assert_eq!(side.callers.crl_number(), 0);
    side.put_list(&other, 2, &[&serial(&stranger)]);
    side.until("its list", |side| side.judge(&stranger).is_err());
    fs::remove_file(side.file("crl.pem")).unwrap();
    side.restart();
    assert_eq!((side.callers.crl_number(), side.judge(&stranger).is_err()), (2, true));
}

#[test]
fn what_is_told_is_told_once() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    side.put_list(&lab, 3, &[]);
    side.until("the list", |side| side.callers.crl_number() == 3);
    fs::remove_file(side.file("crl.pem")).unwrap();
    side.until_told("is gone");
    // It is read again some times: a file that has changed a moment ago, and once more for each of these.
    for _ in 0..3 {
        fs::write(side.file("ca.pem"), lab.authority.ca_pem()).unwrap();
        thread::sleep(LOOK_EVERY);
        side.callers.refresh();
    }
    assert_eq!(side.told().len(), 1);
}

#[test]
fn the_files_are_read_when_they_change_and_no_private_key_ever() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    let issued = lab.authority.issue(&["fleet:minion/web1".parse().unwrap()], lab::HOUR / 2).unwrap();
    let folder = write_folder(side.dir.path(), lab.authority.ca_pem(), None, &issued[0]).unwrap();
    fs::copy(folder.join("key.pem"), side.file("key.pem")).unwrap();
    side.put_list(&lab, 3, &[]);
    side.until("the list", |side| side.callers.crl_number() == 3);
    // What has changed a moment ago is read once more.
    thread::sleep(Duration::from_millis(150) + LOOK_EVERY);
    side.callers.refresh();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    for folder in [side.dir.path().to_owned(), side.file("root")] {
        inotify.add_watch(&folder, AddWatchFlags::IN_OPEN).unwrap();
    }
    let opened = || -> Vec<String> {
        let events = inotify.read_events().unwrap_or_default();
        events.into_iter().filter_map(|event| event.name).map(|name| name.to_string_lossy().into_owned()).collect()
    };
    for _ in 0..3 {
        thread::sleep(LOOK_EVERY);
        side.callers.refresh();
        side.judge(&overlord(&lab)).unwrap();
    }
    assert_eq!(opened(), [""; 0]);
    // Looked at no more often than it says, whatever has changed.
    side.put("ca.pem", lab.authority.ca_pem());
    thread::sleep(LOOK_EVERY);
    side.callers.refresh();
    let read = opened();
    assert!(read.contains(&"ca.pem".to_owned()) && !read.contains(&"key.pem".to_owned()), "{read:?}");
    side.put("ca.pem", lab.authority.ca_pem());
    opened();
    let begun = Instant::now();
    side.callers.refresh();
    assert!(opened().is_empty() || begun.elapsed() >= LOOK_EVERY);
}
