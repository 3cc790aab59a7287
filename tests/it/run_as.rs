//! Rules that say as whom: what a method's process is then, what it cannot reach, and that nothing runs where it cannot be.

mod stopping;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use fleet::{Builder, Fleet, Minion, PATIENCE, wait_for, wait_until};
use nix::unistd::{User, geteuid};
use serde_json::{Value, json};

const DEPLOY: u32 = 4242;
const BACKUP: u32 = 4343;

/// `admin` does everything as `user`, `ops` everything as root.
fn rules(user: &str) -> String {
    format!("[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\nrun_as = \"{user}\"\n\n[[allow]]\ncaller = \"ops\"\nmethods = [\"*\"]\n")
}

/// A host with the users `deploy`, who is in the group `www` too, and `backup`; none if we are not root, who alone can become another.
fn host(describe: impl FnOnce(Builder) -> Builder) -> Option<Fleet> {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return None;
    }
    let fleet = describe(Fleet::builder().hosts(1).own_users().acl(&rules("deploy"))).stopped().start();
    let web1 = fleet.minion("web1");
    web1.add_user("deploy", DEPLOY);
    web1.add_user("keeper", BACKUP);
    web1.add_group("www", 4300, &["deploy", "keeper"]);
    web1.start();
    // What keeps a user out is to be what lies there itself, and not the harness's folder around it.
    fs::set_permissions(fleet.root(), Permissions::from_mode(0o755)).unwrap();
    Some(fleet)
}

fn plain() -> Option<Fleet> {
    host(|builder| builder)
}

/// What a line printed, as `admin`.
fn out(fleet: &Fleet, line: &str) -> String {
    let run = fleet.overlord(["web1", "command.run", line, "--output", "json"]).ok();
    run.json()["hosts"]["web1"]["result"]["stdout"].as_str().unwrap().to_owned()
}

/// The same as a job.
fn out_of_job(fleet: &Fleet, line: &str) -> String {
    let id = fleet.start_job(["web1", "command.run", line]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    status["hosts"]["web1"]["result"]["stdout"].as_str().unwrap().to_owned()
}

fn answer(fleet: &Fleet, args: &[&str], code: i32) -> Value {
    let args = [&["web1"], args, &["--output", "json"]].concat();
    fleet.overlord(args).expect(code).json()["hosts"]["web1"].clone()
}

/// What `/proc/PID/status` says of these keys.
fn status_of(pid: i32, keys: &[&str]) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(key, _)| keys.contains(key))
        .map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// All processes beside the host's server whose real user is `uid`.
fn processes_of(web1: &Minion, uid: u32) -> Vec<i32> {
    web1.beside().into_iter().map(|process| process.pid).filter(|pid| uid_of(*pid) == Some(uid)).collect()
}

fn uid_of(pid: i32) -> Option<u32> {
    status_of(pid, &["Uid"]).get("Uid")?.split(' ').next()?.parse().ok()
}

#[test]
fn a_method_is_the_users_of_its_rule_in_all_that_counts() {
    let Some(fleet) = host(|builder| builder.with_rights(["sh", "-c", "umask 077; exec \"$@\"", "sh"])) else { return };
    let line =
        "id -u; id -g; id -Gn; umask; pwd; grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb)' /proc/self/status | tr -s '\\t ' ' '";
    let ids = "4242 4242 4242 4242";
    let none = "0000000000000000";
    let said = format!(
        "4242\n4242\ndeploy www\n0022\n/home/deploy\nUid: {ids}\nGid: {ids}\nGroups: 4242 4300 \nCapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapAmb: {none}\n"
    );
    assert_eq!(out(&fleet, line).replace("Groups: 4242 4300\n", "Groups: 4242 4300 \n"), said);
    assert_eq!(out_of_job(&fleet, line).replace("Groups: 4242 4300\n", "Groups: 4242 4300 \n"), said);
}

#[test]
fn a_users_environment_is_made_afresh() {
    let Some(fleet) = host(|builder| builder.with_rights(["env", "SECRET=s", "LC_TIME=C", "TZ=UTC", "HOME=/root", "XDG_RUNTIME_DIR=/x"]))
    else {
        return;
    };
    let env = |id: Option<&str>| {
        let text = match id {
            None => answer(&fleet, &["command.run", "--json", "{\"argv\":[\"env\"]}"], 0)["result"]["stdout"].clone(),
            Some(id) => {
                fleet.overlord(["job-status", id, "--wait", "--output", "json"]).ok().json()["hosts"]["web1"]["result"]["stdout"].clone()
            }
        };
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        env.extend(
            text.as_str().unwrap().lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        // The language of who runs the tests is kept, and is anything.
        env.retain(|name, _| name != "LANG" && (name == "LC_TIME" || !name.starts_with("LC_")));
        env
    };
    let mut wanted: BTreeMap<String, String> = [
        ("HOME", "/home/deploy"),
        ("USER", "deploy"),
        ("LOGNAME", "deploy"),
        ("SHELL", "/bin/bash"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_TIME", "C"),
        ("TZ", "UTC"),
        ("MINION_NAME", "web1"),
        ("MINION_PROGRESS_FD", "3"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    assert_eq!(env(None), wanted);
    let id = fleet.start_job(["web1", "command.run", "--json", "{\"argv\":[\"env\"]}"]);
    let mut found = env(Some(&id));
    for name in ["MINION_JOB_TOKEN", "MINION_SUBMIT_SOCKET"] {
        assert!(found.remove(name).is_some_and(|value| !value.is_empty()), "{name}");
    }
    let minion_job_id = fleet.minion("web1").spools().remove(0);
    wanted.extend(
        [("OVERLORD_JOB_ID", id.as_str()), ("MINION_JOB_ID", &minion_job_id), ("MINION_CALLER", "admin")]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    assert_eq!(found, wanted);
    // What the caller sets beside it holds, and a folder of its choice does.
    let args = "{\"line\":\"echo $HOME $A; pwd\",\"env\":{\"HOME\":\"/tmp\",\"A\":\"b\"},\"cwd\":\"/usr\"}";
    assert_eq!(answer(&fleet, &["command.run", "--json", args], 0)["result"]["stdout"], "/tmp b\n/usr\n");
}

#[test]
fn a_home_that_is_not_there_or_not_the_users_is_none() {
    let Some(fleet) = plain() else { return };
    let home = fleet.minion("web1").inside("/home/deploy");
    fs::set_permissions(&home, Permissions::from_mode(0o000)).unwrap();
    assert_eq!(out(&fleet, "pwd; echo $HOME"), "/\n/home/deploy\n");
    fs::remove_dir(&home).unwrap();
    assert_eq!(out(&fleet, "pwd"), "/\n");
    // A service's user has neither home nor shell, and runs.
    fleet.minion("web1").set_acl(&rules("nobody"));
    assert_eq!(out(&fleet, "id -un; pwd"), "nobody\n/\n");
}

/// The method's own process, before any command: what an in-process method could reach.
#[test]
fn a_methods_process_has_no_file_of_its_supervisors_and_no_way_back() {
    let Some(fleet) = plain() else { return };
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["web1", "test.sleep", "600"]);
    let mut call = fleet.overlord_spawn(["web1", "test.sleep", "600"]);
    let methods = wait_for("both methods to run", PATIENCE, || Some(processes_of(web1, DEPLOY)).filter(|pids| pids.len() == 2));
    for pid in methods {
        wait_until("it to have closed what is not its own", PATIENCE, || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() == 5);
        let mut files: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
        files.sort();
        let is_pipe = |file: &&std::path::PathBuf| file.to_string_lossy().starts_with("pipe:");
        let nulls = files.iter().filter(|file| file.to_str() == Some("/dev/null")).count();
        // stdin, and of the call stdout, stderr and what it reports, too; the rest are those of the job, and the answer.
        assert!(matches!((nulls, files.iter().filter(is_pipe).count()), (1, 4) | (4, 1)), "{files:?}");
        let status = status_of(pid, &["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb"]);
        let none = "0000000000000000";
        let ids = "4242 4242 4242 4242";
        let wanted =
            [("CapAmb", none), ("CapEff", none), ("CapInh", none), ("CapPrm", none), ("Gid", ids), ("Groups", "4242 4300"), ("Uid", ids)];
        assert_eq!(status, wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        // What is kept of a job is the user's to write to by its name, too; what is thrown away is everyone's.
        let owner = fs::metadata(format!("/proc/{pid}/fd/1")).unwrap().uid();
        assert_eq!(owner, if nulls == 1 { DEPLOY } else { 0 }, "{files:?}");
        // Who is not dumpable is root's in /proc: no process of the user's reads its memory or takes its files.
        assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0, "another of the user's processes could read it");
    }
    call.kill9();
    assert!(!call.is_running() || call.wait().status.code().is_none());
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    wait_until("both to be stopped", PATIENCE, || processes_of(web1, DEPLOY).is_empty());
}

#[test]
fn files_that_it_makes_are_the_users_and_so_are_its_streams() {
    let Some(fleet) = plain() else { return };
    let line = "echo x > made; mkdir folder; echo to-out > /dev/stdout; echo to-err > /dev/stderr";
    let id = fleet.start_job(["web1", "command.run", line]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let result = &status["hosts"]["web1"]["result"];
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("to-out\n"), &json!("to-err\n")), "{status}");
    let logs = fleet.overlord(["job-logs", &id]).ok().out();
    assert!(logs.contains("to-out"), "{logs}");
    for (name, mode) in [("made", 0o100_644), ("folder", 0o040_755)] {
        let file = fs::metadata(fleet.minion("web1").inside("/home/deploy").join(name)).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode()), (DEPLOY, DEPLOY, mode), "{name}");
    }
    assert_eq!(answer(&fleet, &["command.run", "echo to-err > /dev/stderr"], 0)["result"]["stderr"], "to-err\n");
}

#[test]
fn it_reads_nothing_of_roots_and_nothing_of_the_minions() {
    let Some(fleet) = plain() else { return };
    let web1 = fleet.minion("web1");
    let ops = fleet.another_overlord("ops");
    let secret = fleet.root().join("secret");
    fs::write(&secret, "root's\n").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let roots_job = fleet.overlord_at(&ops, ["web1", "command.run", "echo another caller\\'s", "--async"]).wait().ok().out();
    let _ = fleet.overlord_at(&ops, ["job-status", roots_job.trim(), "--wait"]).wait().ok();
    let spool = web1.own_state_dir().join("spool").join(&web1.spools()[0]);
    let own_state = web1.own_state_dir();
    // The state's folder may one day let others through: what lies in it is closed itself.
    fs::set_permissions(&own_state, Permissions::from_mode(0o711)).unwrap();
    let closed = [
        secret,
        spool.join("outcome.json"),
        spool.join("stdout"),
        spool.join("request.json"),
        own_state.join("spool"),
        own_state.join("status.sled/db"),
        own_state.join("audit.log"),
        web1.certs_dir().join("key.pem"),
        "/etc/shadow".into(),
    ];
    for path in &closed {
        assert!(path.exists(), "{}: there is nothing to be kept out of", path.display());
        let refused = answer(&fleet, &["command.run", &format!("head -c 1 {0} && ls {0}", path.display())], 2);
        assert!(refused["error"]["data"]["stderr"].as_str().unwrap().contains("Permission denied"), "{}: {refused}", path.display());
    }
    let socket = own_state.join("spawner.sock");
    assert!(socket.exists());
    let connect =
        format!("perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(\"{}\")) or die \"$!\"'", socket.display());
    let refused = answer(&fleet, &["command.run", &connect], 2);
    assert!(refused["error"]["data"]["stderr"].as_str().unwrap().starts_with("Permission denied"), "{refused}");
    // It writes nowhere but at home, either.
    let write = format!(
        "for dir in {0} {1} {2} / /etc; do touch $dir/x && echo $dir; done; true",
        own_state.display(),
        web1.acl_dir().display(),
        web1.certs_dir().display()
    );
    assert_eq!(out(&fleet, &write), "");
}

#[test]
fn it_can_signal_none_but_its_own() {
    let Some(fleet) = plain() else { return };
    let web1 = fleet.minion("web1");
    let ops = fleet.another_overlord("ops");
    let gate = fleet.root().join("gate");
    let waiting = format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display());
    let roots_job = fleet.overlord_at(&ops, ["web1", "command.run", &waiting, "--async"]).wait().ok().out();
    wait_until("root's job to run", PATIENCE, || !fleet.running("gate").is_empty());
    // Signal 0 is none, and is refused like any.
    let line = "for dir in /proc/[0-9]*; do pid=${dir#/proc/}; uid=$(sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p' $dir/status 2>/dev/null); \
                [ -n \"$uid\" ] && if kill -0 $pid 2>/dev/null; then echo may $uid; else echo not $uid; fi; done | sort | uniq -c | awk '{print $2, $3}'";
    let found = out(&fleet, line);
    assert_eq!(found, "may 4242\nnot 0\n", "root's are the server, the spawner, a supervisor, a job daemon, and its job");
    fs::write(&gate, "").unwrap();
    let _ = fleet.overlord_at(&ops, ["job-status", roots_job.trim(), "--wait"]).wait().ok();
    assert!(web1.is_running());
}

/// A session keyring's keys are open to whoever inherits it, whoever that is.
#[test]
fn it_has_none_of_the_keys_that_root_has() {
    let [add_key, keyctl] = if cfg!(target_arch = "x86_64") { [248, 250] } else { [217, 219] };
    let names = "($type, $name, $text) = (\"user\", \"fleet\", \"secret\");";
    let join = format!(
        "{names} syscall({keyctl}, 1, 0) >= 0 or die \"join: $!\"; $key = syscall({add_key}, $type, $name, $text, 6, -3); \
         syscall({keyctl}, 5, $key, 0x3f000000) == 0 or die \"key: $!\"; exec @ARGV"
    );
    let Some(fleet) = host(|builder| builder.with_rights(["perl", "-e", &join])) else { return };
    let search = format!("perl -e '{names} print syscall({keyctl}, 10, -3, $type, $name, 0) > 0 ? \"found\" : \"none\"'");
    let ops = fleet.another_overlord("ops");
    let roots = fleet.overlord_at(&ops, ["web1", "command.run", &search, "--output", "json"]).wait().ok().json();
    assert_eq!(roots["hosts"]["web1"]["result"]["stdout"], "found", "{roots}");
    assert_eq!(out(&fleet, &search), "none");
}

#[test]
fn two_callers_of_one_method_are_two_users() {
    let Some(fleet) = plain() else { return };
    let ops = fleet.another_overlord("ops");
    let two = rules("deploy").replacen("caller = \"ops\"\n", "caller = \"ops\"\nrun_as = \"keeper\"\n", 1);
    fleet.minion("web1").set_acl(&two);
    for home in ["deploy", "keeper"] {
        let own = fleet.minion("web1").inside(&format!("/home/{home}/own"));
        fs::write(&own, format!("of {home}\n")).unwrap();
    }
    // Each can enter its own home alone.
    let line = "id -un; cat /home/*/own";
    assert_eq!(out(&fleet, line), "deploy\nof deploy\n");
    let theirs = fleet.overlord_at(&ops, ["web1", "command.run", line, "--output", "json"]).wait().ok().json();
    assert_eq!(theirs["hosts"]["web1"]["result"]["stdout"], "keeper\nof keeper\n");
    // Whose rule is changed is another from the next call on.
    fleet.minion("web1").set_acl(&two.replace("deploy", "keeper"));
    assert_eq!(out(&fleet, "id -un"), "keeper\n");
}

#[test]
fn a_user_who_is_gone_is_a_failure_and_nothing_runs() {
    let Some(fleet) = plain() else { return };
    let web1 = fleet.minion("web1");
    let made = fleet.root().join("made");
    fs::create_dir(&made).unwrap();
    fs::set_permissions(&made, Permissions::from_mode(0o777)).unwrap();
    let line = format!("touch {}/$(id -u)", made.display());
    let _ = out(&fleet, &line);
    web1.remove_user("deploy");
    let said = "web1: command.run did not run: this host has no user deploy: make it, or name another in `run_as` of the rule";
    let call = answer(&fleet, &["command.run", &line], 2);
    let id = fleet.start_job(["web1", "command.run", &line]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json()["hosts"]["web1"].clone();
    for failed in [call, job] {
        assert_eq!((&failed["state"], &failed["error"]["message"]), (&json!("failed"), &json!(said)), "{failed}");
        assert_eq!(failed["error"]["data"]["type"], "run_as");
    }
    let names: Vec<_> = fs::read_dir(&made).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["4242"]);
    let checked = fleet.check("web1").expect(1);
    assert!(checked.out().contains("rules.toml:1: this host has no user deploy"), "{}", checked.out());
}

/// A root without a right that this takes: each step that fails is named, and nothing runs as root instead.
#[test]
fn a_step_that_the_kernel_refuses_is_a_failure_and_nothing_runs() {
    for (right, step) in [("setuid", "taking its user id"), ("setgid", "taking its groups")] {
        let Some(fleet) = host(|builder| builder.with_rights(["setpriv", "--bounding-set", &format!("-{right}")])) else { return };
        let made = fleet.root().join("made");
        let failed = answer(&fleet, &["command.run", &format!("touch {}", made.display())], 2);
        assert_eq!(failed["state"], "failed", "{failed}");
        let said = format!("web1: command.run did not run: becoming the user deploy, {step}: Operation not permitted");
        assert!(failed["error"]["message"].as_str().unwrap().starts_with(&said), "{failed}");
        assert!(!made.exists());
    }
}

#[test]
fn where_minion_is_not_root_it_runs_as_itself_or_not_at_all() {
    let fleet = Fleet::builder().hosts(1).unprivileged().stopped().start();
    let web1 = fleet.minion("web1");
    let own = if geteuid().is_root() { "nobody".to_owned() } else { User::from_uid(geteuid()).unwrap().unwrap().name };
    web1.set_acl(&rules("daemon"));
    web1.start();
    let started = web1.spools().len();
    for run in [fleet.overlord(["web1", "test.echo", "x", "--output", "json"]), fleet.overlord(["web1", "test.echo", "x", "--async"])] {
        let said = format!("{}{}", run.out(), run.err());
        if run.what.contains("--async") {
            let id = run.ok().out().trim().to_owned();
            let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(4).json();
            refused_as_daemon(&status["hosts"]["web1"]);
        } else {
            refused_as_daemon(&run.expect(4).json()["hosts"]["web1"]);
        }
        assert!(!said.contains("panicked"), "{said}");
    }
    assert_eq!(web1.spools().len(), started, "something was begun");
    let checked = fleet.check("web1");
    assert!(geteuid().is_root() || checked.out().contains("only root can run something as daemon"), "{}", checked.out());
    // What the server answers itself is nobody else's.
    let _ = fleet.overlord(["web1", "test.ping"]).ok();
    web1.set_acl(&rules(&own));
    assert_eq!(out(&fleet, "id -un; echo $USER; umask"), format!("{own}\n{own}\n0022\n"));
    assert_eq!(out_of_job(&fleet, "id -un"), format!("{own}\n"));
}

fn refused_as_daemon(host: &Value) {
    assert_eq!((&host["state"], &host["error"]["code"]), (&json!("undelivered"), &json!(7)), "{host}");
    let message = host["error"]["message"].as_str().unwrap();
    assert!(message.contains("web1: minion runs as the user") && message.contains("only root can run something as daemon"), "{host}");
}
