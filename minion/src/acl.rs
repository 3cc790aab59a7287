//! Who may do what. [`decide`] is pure; [`Acl`] keeps the rules that it decides by in step with the files of `acl_dir`.
//!
//! Nothing is allowed that no rule allows, except that everyone may read and stop their own jobs, and ask for the revocation list or bring a
//! newer one, which the authority has signed. And whoever a rule lets call `worker.*` sees and stops only his own tasks there, unless a rule lets him
//! do the same to others' jobs.

mod folder;
mod rules;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::identity::CallerName;
use common::method::MethodName;
use common::protocol::certs::REVOCATIONS;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::user::User;
use folder::{Loaded, Writers, listing, load};
pub use rules::{Problem, Rules};

/// The name by which the audit log calls the grant that needs no rule.
const OWN_JOBS: &str = "own jobs";
/// Likewise, of the revocation list: who brings it is not what makes it good.
const SIGNED: &str = "signed by the authority";

/// Whose jobs a call of `jobs.*` may touch, and whose tasks one of `worker.*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The caller's.
    #[default]
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
        /// For `jobs.*` and `worker.*`: whose.
        scope: Scope,
        /// As which user of the host it runs; none: as minion itself does. What the server answers itself runs as nobody else.
        run_as: Option<String>,
    },
    /// No rule allows it.
    Deny,
}

/// Whether `rules` let `caller` call `method`, whose `async.` is left off: who may call a method may do so in both ways.
#[must_use]
pub fn decide(rules: &Rules, caller: &CallerName, method: &MethodName) -> Decision {
    let without_rule = |rule: &str| Decision::Allow { rule: rule.to_owned(), scope: Scope::Own, run_as: None };
    match rules.find(caller, method) {
        Some(rule) => {
            let (scope, run_as) = (scope(rules, caller, method), rule.run_as().map(str::to_owned));
            Decision::Allow { rule: rule.place(), scope, run_as }
        }
        // A fence leaves a folder behind, so it is for those alone who could have left one anyway.
        None if method.as_str() == "jobs.fence" && !rules.knows(caller) => Decision::Deny,
        None if method.as_str() == REVOCATIONS => without_rule(SIGNED),
        None if method.module() == "jobs" => without_rule(OWN_JOBS),
        None => Decision::Deny,
    }
}

/// Whose, where a rule allows `method`. A task is often as good as a job: who may not stop others' jobs does not stop their tasks.
fn scope(rules: &Rules, caller: &CallerName, method: &MethodName) -> Scope {
    let of_jobs = match method.as_str() {
        "worker.cancel" => "jobs.cancel",
        "worker.list" => "jobs.list",
        _ => return Scope::All,
    };
    let is_allowed = of_jobs.parse().is_ok_and(|of_jobs| rules.find(caller, &of_jobs).is_some());
    if is_allowed { Scope::All } else { Scope::Own }
}

/// The rules in a folder, read again whenever a file in it has changed.
#[derive(Debug)]
pub struct Acl {
    dir: PathBuf,
    writers: Writers,
    loaded: Mutex<Loaded>,
}

impl Acl {
    /// The rules in `dir`. A file that cannot be read is named in the log, and so is a folder that is not there.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        Self::open_of(dir, Writers::Any)
    }

    /// The same, for a process of root's: what belongs to another user than root, or can be written by others, gives no rules, and is named
    /// in the log with the command that mends it. Of the folders above `dir` nothing is asked: who moves another in its place must find one that
    /// is root's.
    #[must_use]
    pub fn open_owned(dir: &Path) -> Self {
        Self::open_of(dir, Writers::Root)
    }

    fn open_of(dir: &Path, writers: Writers) -> Self {
        let acl = Self { dir: dir.to_owned(), writers, loaded: Mutex::new(load(dir, writers)) };
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
        decide(&self.fresh().rules, caller, method)
    }

    /// Reads the rules again, if a file has changed.
    pub fn refresh(&self) {
        drop(self.fresh());
    }

    fn fresh(&self) -> MutexGuard<'_, Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.listing.is_none() || loaded.listing != listing(&self.dir).ok() {
            let fresh = load(&self.dir, self.writers);
            if fresh.problems != loaded.problems {
                tell(&fresh.problems);
            }
            if fresh.rules != loaded.rules {
                info!(acl_dir = %self.dir.display(), rules = fresh.rules.len(), "rules read again");
            }
            *loaded = fresh;
        }
        loaded
    }
}

/// What is wrong with the rules in `dir`, for a minion that runs as this process does: what cannot be read, what others could change, and the
/// users as whom nothing can run.
#[must_use]
pub fn problems(dir: &Path) -> Vec<Problem> {
    problems_for(dir, if geteuid().is_root() { Writers::Root } else { Writers::Any })
}

fn problems_for(dir: &Path, writers: Writers) -> Vec<Problem> {
    let Loaded { rules, mut problems, .. } = load(dir, writers);
    problems.extend(match writers {
        Writers::Root => Vec::new(),
        Writers::Any => anyone_writes(dir),
    });
    problems
        .extend(rules.complaints(|name| User::find(name).and_then(|user| user.require_in_reach()).err().map(|error| error.to_string())));
    problems
}

/// What in `dir` anyone on the host could change.
fn anyone_writes(dir: &Path) -> Vec<Problem> {
    let paths = [dir.to_owned()].into_iter().chain(files(dir));
    let is_open = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.mode() & 0o002 != 0);
    paths.filter(is_open).map(Problem::of_mode).collect()
}

/// The files of rules in `dir`, in the order in which they are asked.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    listing(dir).map(|listing| listing.files).unwrap_or_default().into_iter().map(|stamp| dir.join(stamp.name)).collect()
}

fn tell(problems: &[Problem]) {
    for problem in problems {
        warn!(file = %problem.file.display(), line = problem.line, "{problem}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn ask(acl: &Acl, caller: &str, method: &str) -> Decision {
        acl.decide(&caller.parse().unwrap(), &method.parse().unwrap())
    }

    fn allow(rule: &str) -> Decision {
        Decision::Allow { rule: rule.to_owned(), scope: Scope::All, run_as: None }
    }

    const ADMIN: &str = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n";

    #[test]
    fn tasks_of_others_are_for_who_may_do_the_same_to_their_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let rules = "[[allow]]\ncaller = \"*\"\nmethods = [\"worker.*\"]\n[[allow]]\ncaller = \"ops\"\nmethods = [\"jobs.cancel\"]\n";
        fs::write(dir.path().join("10.toml"), rules).unwrap();
        let acl = Acl::open(dir.path());
        let scope = |caller, method| match ask(&acl, caller, method) {
            Decision::Allow { scope, .. } => scope,
            Decision::Deny => panic!("{caller} {method}"),
        };
        assert_eq!([scope("ops", "worker.cancel"), scope("ops", "worker.list")], [Scope::All, Scope::Own]);
        assert_eq!([scope("guest", "worker.cancel"), scope("guest", "worker.list")], [Scope::Own, Scope::Own]);
        assert_eq!(scope("guest", "worker.run"), Scope::All);
    }

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
        let own = Decision::Allow { rule: "own jobs".into(), scope: Scope::Own, run_as: None };
        assert_eq!(ask(&acl, "ops", "jobs.status"), own);
        assert_eq!(ask(&acl, "admin", "jobs.status"), allow("a.toml:1"));
        assert_eq!(ask(&acl, "ops", "jobs.fence"), Decision::Deny, "who may start nothing leaves nothing");
        fs::write(dir.path().join("b.toml"), ADMIN.replace("admin", "ops").replace("\"*\"", "\"test.ping\"")).unwrap();
        assert_eq!(ask(&acl, "ops", "jobs.fence"), own);
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
        let told: Vec<String> = problems_for(dir.path(), Writers::Any).iter().map(ToString::to_string).collect();
        assert_eq!(told, [format!("{0}: anyone on this host can write it: run `chmod o-w {0}`", file.display())]);
    }

    #[test]
    fn the_first_rule_that_matches_says_as_whom() {
        let dir = tempfile::tempdir().unwrap();
        let rules = "[[allow]]\ncaller = \"ops\"\nmethods = [\"command.*\"]\nrun_as = \"deploy\"\n";
        fs::write(dir.path().join("a.toml"), format!("{rules}{}", ADMIN.replace("admin", "*"))).unwrap();
        let acl = Acl::open(dir.path());
        let run_as = |caller: &str, method: &str| match ask(&acl, caller, method) {
            Decision::Allow { rule, run_as, .. } => (rule, run_as),
            Decision::Deny => panic!("denied"),
        };
        assert_eq!(run_as("ops", "command.run"), ("a.toml:1".into(), Some("deploy".into())));
        assert_eq!(run_as("ops", "test.echo"), ("a.toml:5".into(), None));
        assert_eq!(run_as("admin", "command.run"), ("a.toml:5".into(), None));
    }

    #[test]
    fn root_goes_by_what_root_alone_can_write_and_says_how_to_mend_the_rest() {
        use std::os::unix::fs::PermissionsExt as _;
        if !geteuid().is_root() {
            // Only root can give a file away, and only root is asked.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, file, other) = (dir.path(), dir.path().join("a.toml"), dir.path().join("b.toml"));
        fs::write(&file, ADMIN).unwrap();
        fs::write(&other, ADMIN.replace("admin", "ops")).unwrap();
        let acl = Acl::open_owned(path);
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("a.toml:1"));
        let chmod = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let chown = |path: &Path, uid: u32| std::os::unix::fs::chown(path, Some(uid), None).unwrap();
        let told = || problems(path).iter().map(ToString::to_string).collect::<Vec<_>>();
        let why = "and root goes by rules that root alone can write, so";
        let behind = "nor does any rule of the files behind it, because it may say as whom a method runs (`run_as`)";
        assert_eq!(told(), Vec::<String>::new());
        for mode in [0o620, 0o602] {
            chmod(&file, mode);
            assert_eq!(ask(&acl, "admin", "test.ping"), Decision::Deny, "{mode:o}");
            assert_eq!(ask(&acl, "ops", "test.ping"), Decision::Deny, "{mode:o}");
            let how =
                format!("can be written by others than its owner, {why} none of its rules holds: run `chmod go-w {0}`", file.display());
            assert_eq!(told(), [format!("{}: {how}; {behind}", file.display())]);
        }
        chown(&file, 65534);
        let how = format!(
            "belongs to the user 65534 and can be written by others than its owner, {why} none of its rules holds: run `chown root {0} && chmod go-w {0}`",
            file.display()
        );
        assert_eq!(told(), [format!("{}: {how}; {behind}", file.display())]);
        chown(&file, 0);
        chmod(&file, 0o644);
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("a.toml:1"), "mended");
        // A link is as good as what it leads to.
        let kept = tempfile::tempdir().unwrap();
        let elsewhere = kept.path().join("rules");
        fs::rename(&file, &elsewhere).unwrap();
        chown(&elsewhere, 65534);
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert_eq!(ask(&acl, "admin", "test.ping"), Decision::Deny);
        chown(&elsewhere, 0);
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("a.toml:1"));
        chmod(path, 0o777);
        assert_eq!((ask(&acl, "admin", "test.ping"), ask(&acl, "ops", "test.ping")), (Decision::Deny, Decision::Deny));
        assert_eq!(told().len(), 1);
        assert!(told()[0].ends_with(&format!("so nobody may call anything: run `chmod go-w {}`", path.display())), "{:?}", told());
        chmod(path, 0o755);
        assert_eq!(ask(&acl, "admin", "test.ping"), allow("a.toml:1"));
    }

    #[test]
    fn what_is_no_file_is_a_problem_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("a.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("b.toml")).unwrap();
        fs::write(dir.path().join("c.toml"), ADMIN).unwrap();
        assert_eq!(ask(&Acl::open(dir.path()), "admin", "test.ping"), Decision::Deny, "what cannot be read may say as whom");
        assert_eq!(problems(dir.path()).len(), 1);
        fs::remove_file(dir.path().join("a.toml")).unwrap();
        assert!(problems(dir.path())[0].to_string().contains("it is no file"));
        fs::remove_file(dir.path().join("b.toml")).unwrap();
        assert_eq!(ask(&Acl::open(dir.path()), "admin", "test.ping"), allow("c.toml:1"));
    }

    #[test]
    fn a_user_whom_the_host_does_not_have_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        fs::write(&file, format!("{ADMIN}run_as = \"no-such-user\"\n")).unwrap();
        let told: Vec<String> = problems(dir.path()).iter().map(ToString::to_string).collect();
        let said = "this host has no user no-such-user: make it, or name another in `run_as` of the rule";
        assert_eq!(told, [format!("{}:1: {said}", file.display())]);
        fs::write(&file, format!("{ADMIN}run_as = \"daemon\"\n")).unwrap();
        assert_eq!(problems(dir.path()).is_empty(), geteuid().is_root(), "only root can become daemon");
    }

    #[test]
    fn behind_a_file_that_may_say_as_whom_and_cannot_be_read_nothing_holds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), ADMIN.replace("admin", "first")).unwrap();
        fs::write(dir.path().join("b.toml"), "[[allow]]\ncaller = \"admin\"\nmethod = [\"*\"]\nrun_as = \"daemon\"\n").unwrap();
        fs::write(dir.path().join("c.toml"), ADMIN).unwrap();
        let acl = Acl::open(dir.path());
        assert_eq!(ask(&acl, "first", "test.ping"), allow("a.toml:1"));
        assert_eq!(ask(&acl, "admin", "test.ping"), Decision::Deny, "it would run as root by c.toml");
        let told: Vec<String> = problems(dir.path()).iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains("b.toml:3") && told[0].contains("files behind it"), "{told:?}");
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
