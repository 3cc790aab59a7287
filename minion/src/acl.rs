//! Who may do what. [`decide`] is pure; [`Acl`] keeps the rules that it decides by in step with the files of `acl_dir`.
//!
//! Nothing is allowed that no rule allows, except that everyone may read and stop their own jobs, and ask for the revocation list or bring a
//! newer one, which the authority has signed.

mod rules;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use common::identity::CallerName;
use common::method::MethodName;
use common::protocol::certs::REVOCATIONS;
use tracing::{info, warn};

pub use rules::{Problem, Rules};

/// The name by which the audit log calls the grant that needs no rule.
const OWN_JOBS: &str = "own jobs";
/// Likewise, of the revocation list: who brings it is not what makes it good.
const SIGNED: &str = "signed by the authority";

/// A file that changed less than this before it was read may change again without looking changed: file systems stamp times in ticks.
const TICK: Duration = Duration::from_millis(100);

/// Whose jobs a call of `jobs.*` may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The caller's.
    Own,
    /// Everyone's.
    All,
}

/// Whether a call may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This rule allows it.
    Allow {
        /// `file.toml:line`, or `own jobs`, or `signed by the authority`.
        rule: String,
        /// For `jobs.*`: whose.
        scope: Scope,
    },
    /// No rule allows it.
    Deny,
}

/// Whether `rules` let `caller` call `method`, whose `async.` is left off: who may call a method may do so in both ways.
#[must_use]
pub fn decide(rules: &Rules, caller: &CallerName, method: &MethodName) -> Decision {
    match rules.find(caller, method) {
        Some(rule) => Decision::Allow { rule, scope: Scope::All },
        // A fence leaves a folder behind, so it is for those alone who could have left one anyway.
        None if method.as_str() == "jobs.fence" && !rules.knows(caller) => Decision::Deny,
        None if method.as_str() == REVOCATIONS => Decision::Allow { rule: SIGNED.to_owned(), scope: Scope::Own },
        None if method.module() == "jobs" => Decision::Allow { rule: OWN_JOBS.to_owned(), scope: Scope::Own },
        None => Decision::Deny,
    }
}

/// The rules in a folder, read again whenever a file in it has changed.
#[derive(Debug)]
pub struct Acl {
    dir: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    rules: Rules,
    problems: Vec<Problem>,
    /// What the folder looked like just before it was read; none if that may deceive.
    listing: Option<Vec<Stamp>>,
}

/// Enough of a file to see that it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    name: PathBuf,
    inode: u64,
    size_bytes: u64,
    changed: [i64; 4],
}

impl Acl {
    /// The rules in `dir`. A file that cannot be read is named in the log, and so is a folder that is not there.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let acl = Self { dir: dir.to_owned(), loaded: Mutex::new(load(dir)) };
        let loaded = acl.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        tell(&loaded.problems);
        info!(acl_dir = %dir.display(), rules = loaded.rules.len(), "rules read");
        drop(loaded);
        acl
    }

    /// The folder that the rules are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// [`decide`] by the rules as they are on disk now.
    #[must_use]
    pub fn decide(&self, caller: &CallerName, method: &MethodName) -> Decision {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.listing.is_none() || loaded.listing != listing(&self.dir).ok() {
            let fresh = load(&self.dir);
            if fresh.problems != loaded.problems {
                tell(&fresh.problems);
            }
            if fresh.rules != loaded.rules {
                info!(acl_dir = %self.dir.display(), rules = fresh.rules.len(), "rules read again");
            }
            *loaded = fresh;
        }
        decide(&loaded.rules, caller, method)
    }
}

/// What is wrong with the rules in `dir`: what cannot be read, and what anyone on the host could change.
#[must_use]
pub fn problems(dir: &Path) -> Vec<Problem> {
    let mut problems = load(dir).problems;
    let anyone_writes = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.mode() & 0o002 != 0);
    problems.extend([dir.to_owned()].into_iter().chain(files(dir)).filter(anyone_writes).map(Problem::of_mode));
    problems
}

/// The files of rules in `dir`, in the order in which they are asked.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    listing(dir).unwrap_or_default().into_iter().map(|stamp| dir.join(stamp.name)).collect()
}

fn tell(problems: &[Problem]) {
    for problem in problems {
        warn!(file = %problem.file.display(), line = problem.line, "{problem}");
    }
}

/// Reads the folder. The listing is taken first: a change in between makes the next look differ from it.
fn load(dir: &Path) -> Loaded {
    let listing = match listing(dir) {
        Ok(listing) => listing,
        Err(error) => return Loaded { rules: Rules::default(), problems: vec![Problem::of_dir(dir, &error)], listing: None },
    };
    let (mut rules, mut problems) = (Rules::default(), Vec::new());
    for stamp in &listing {
        let path = dir.join(&stamp.name);
        let added = fs::read_to_string(&path).map_err(|error| Problem::of_file(&path, &error)).and_then(|text| rules.add(&path, &text));
        problems.extend(added.err());
    }
    let listing = Some(listing).filter(|listing| is_settled(listing));
    Loaded { rules, problems, listing }
}

/// The `*.toml` of the folder in the order of their names. Hidden files, an editor's for instance, are not rules.
fn listing(dir: &Path) -> io::Result<Vec<Stamp>> {
    let mut stamps = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let is_hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
        if name.extension().is_some_and(|extension| extension == "toml") && !is_hidden {
            // One that vanished since is in the next listing no more; a link to nothing is a problem to be told.
            let stamp = fs::metadata(dir.join(&name)).map_or_else(|_| Stamp::unread(name.clone()), |file| Stamp::of(name.clone(), &file));
            stamps.push(stamp);
        }
    }
    stamps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(stamps)
}

fn is_settled(listing: &[Stamp]) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let limit = i64::try_from(now.saturating_sub(TICK).as_millis()).unwrap_or(i64::MAX);
    listing.iter().all(|stamp| {
        let [modified, modified_nanos, changed, changed_nanos] = stamp.changed;
        let milliseconds = |seconds: i64, nanos: i64| seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
        milliseconds(modified, modified_nanos).max(milliseconds(changed, changed_nanos)) < limit
    })
}

impl Stamp {
    fn of(name: PathBuf, file: &fs::Metadata) -> Self {
        let changed = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
        Self { name, inode: file.ino(), size_bytes: file.len(), changed }
    }

    fn unread(name: PathBuf) -> Self {
        Self { name, inode: 0, size_bytes: 0, changed: [0; 4] }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn ask(acl: &Acl, caller: &str, method: &str) -> Decision {
        acl.decide(&caller.parse().unwrap(), &method.parse().unwrap())
    }

    fn allow(rule: &str) -> Decision {
        Decision::Allow { rule: rule.to_owned(), scope: Scope::All }
    }

    const ADMIN: &str = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n";

    #[test]
    fn the_first_file_that_matches_wins_and_nothing_else_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("20.toml"), ADMIN).unwrap();
        fs::write(dir.path().join("10.toml"), "\n[[allow]]\ncaller = [\"x\", \"ops-*\"]\nmethods = [\"test.*\"]\n").unwrap();
        fs::write(dir.path().join(".10.toml"), "broken").unwrap();
        fs::write(dir.path().join("10.toml~"), "broken").unwrap();
        let acl = Acl::open(dir.path());
        assert_eq!(ask(&acl, "ops-1", "test.ping"), allow("10.toml:2"));
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("20.toml:1"));
        assert_eq!(ask(&acl, "ops-1", "command.run"), Decision::Deny);
        assert_eq!(ask(&acl, "ops", "test.ping"), Decision::Deny);
        assert!(problems(dir.path()).is_empty());
    }

    #[test]
    fn own_jobs_need_no_rule_and_others_do() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), ADMIN).unwrap();
        let acl = Acl::open(dir.path());
        assert_eq!(ask(&acl, "ops", "jobs.status"), Decision::Allow { rule: "own jobs".into(), scope: Scope::Own });
        assert_eq!(ask(&acl, "admin", "jobs.status"), allow("a.toml:1"));
        assert_eq!(ask(&acl, "ops", "jobs.fence"), Decision::Deny, "who may start nothing leaves nothing");
        fs::write(dir.path().join("b.toml"), ADMIN.replace("admin", "ops").replace("\"*\"", "\"test.ping\"")).unwrap();
        assert_eq!(ask(&acl, "ops", "jobs.fence"), Decision::Allow { rule: "own jobs".into(), scope: Scope::Own });
    }

    #[test]
    fn a_change_holds_from_the_next_decision_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        let acl = Acl::open(dir.path());
        let admin = |acl: &Acl| ask(acl, "admin", "test.ping");
        assert_eq!(admin(&acl), Decision::Deny);
        for _ in 0..20 {
            fs::write(&file, ADMIN).unwrap();
            assert_eq!(admin(&acl), allow("a.toml:1"));
            // Of the same size, in the same tick, in the same inode.
            fs::write(&file, ADMIN.replace("admin", "nobod")).unwrap();
            assert_eq!(admin(&acl), Decision::Deny);
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(admin(&acl), Decision::Deny);
    }

    #[test]
    fn a_folder_that_is_not_there_allows_nothing_until_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("acl.d");
        let acl = Acl::open(&rules);
        assert_eq!(ask(&acl, "admin", "test.ping"), Decision::Deny);
        assert_eq!(problems(&rules).len(), 1);
        fs::create_dir(&rules).unwrap();
        fs::write(rules.join("a.toml"), ADMIN).unwrap();
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("a.toml:1"));
    }

    #[test]
    fn rules_that_anyone_can_write_are_a_problem() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, ADMIN).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o646)).unwrap();
        let told: Vec<String> = problems(dir.path()).iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("{0}: anyone on this host can write it: run `chmod o-w {0}`", file.display())]);
    }

    #[test]
    fn a_malformed_file_is_named_and_the_rest_holds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), "[[allow]]\ncaller = \"ops\"\nmethod = [\"*\"]\n").unwrap();
        fs::write(dir.path().join("b.toml"), ADMIN).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("c.toml")).unwrap();
        let acl = Acl::open(dir.path());
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("b.toml:1"));
        assert_eq!(ask(&acl, "ops", "test.ping"), Decision::Deny);
        let told: Vec<String> = problems(dir.path()).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|problem| problem.contains("a.toml:3: ") && problem.contains("methods")), "{told:?}");
        assert!(told.iter().any(|problem| problem.contains("c.toml: ")), "{told:?}");
    }
}
