//! The server and the spawner apart: who each of them is, what the server cannot do, and who is heard.

mod check;
mod enrolment;
mod folders;
mod kills;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;

use fleet::captured::CapturedServer;
use fleet::{Builder, Fleet, Minion, PATIENCE, Process, acting_as, as_server, binaries, user, wait_for, wait_until};
use nix::unistd::{Group, geteuid};
use serde_json::json;

/// As whom servers run here.
const USER: &str = "nobody";
/// Somebody else.
const STRANGER: &str = "daemon";

/// A fleet whose servers are another user than root; none if we are not root, who alone can start one.
fn separated(describe: impl FnOnce(Builder) -> Builder) -> Option<Fleet> {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return None;
    }
    Some(describe(Fleet::builder().hosts(1).user(USER)).start())
}

fn group_name() -> String {
    Group::from_gid(user(USER).gid).unwrap().unwrap().name
}

/// What `/proc/PID/status` says, by its keys.
fn status_of(pid: i32) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.to_owned(), words(value))).collect()
}

fn server_of(minion: &Minion) -> Process {
    minion.kept_server().unwrap_or_else(|| panic!("{} has no server of another user", minion.name()))
}

/// A job that goes on until the file `go` is there.
fn start_job(fleet: &Fleet) -> String {
    let go = fleet.root().join("go");
    fleet.start_job(["web1", "command.run", &format!("while ! [ -e {} ]; do sleep 0.01; done; echo done", go.display())])
}

/// Lets it end.
fn let_go(fleet: &Fleet) {
    fs::write(fleet.root().join("go"), "").unwrap();
}

/// How a job ended that is waited for.
fn ended(fleet: &Fleet, id: &str) -> serde_json::Value {
    fleet.overlord(["job-status", id, "--wait", "--output", "json"]).json()["hosts"]["web1"].clone()
}

/// The job daemon of the one job, once that has begun.
fn daemon(web1: &Minion) -> Process {
    wait_for("the job daemon", PATIENCE, || web1.job_daemon(web1.spools().first()?))
}

/// The number of a process that this one has forked.
fn child_of(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().split_whitespace().next()?.parse().ok()
}

/// The program `minion` where every user can execute it.
fn program_for_all(fleet: &Fleet) -> String {
    let program = fleet.root().join("minion");
    // By a process of its own: what is open for writing in one of ours, or in what we fork meanwhile, cannot be executed.
    assert!(Command::new("cp").arg(&binaries().minion).arg(&program).status().unwrap().success());
    program.display().to_string()
}

/// What the process has open, as `/proc` names it.
fn open_files(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}

#[test]
fn the_server_is_its_user_and_the_other_two_hear_nothing_of_a_network() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let (server, spawner, keeper) = (server_of(web1), web1.spawner().unwrap(), web1.pid());
    let status = status_of(server.pid);
    let user = user(USER);
    assert_eq!(status["Uid"], vec![user.uid.to_string(); 4]);
    assert_eq!(status["Gid"], vec![user.gid.to_string(); 4]);
    assert_eq!(status["Groups"], [user.gid.to_string()]);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], ["0000000000000000"], "{set}");
    }
    assert_eq!(status["NoNewPrivs"], ["1"]);
    assert_eq!(status["Umask"], ["0077"]);
    assert_eq!(fs::metadata(format!("/proc/{}/mem", server.pid)).unwrap().uid(), 0, "its memory is closed to others of its user");
    // A session of its own, without a terminal: `PID (NAME) STATE PARENT GROUP SESSION TERMINAL`.
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid)).unwrap();
    let stat: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!((stat[3], stat[4]), (server.pid.to_string().as_str(), "0"));
    for (who, pid) in [("keeper", keeper), ("spawner", spawner.pid)] {
        let status = status_of(pid);
        assert_eq!((status["Uid"][1].as_str(), status["Threads"][0].as_str()), ("0", "1"), "{who}");
    }
    assert!(!open_files(keeper).iter().any(|file| file.starts_with("socket:")), "{:?}", open_files(keeper));
    let out = fleet.overlord(["web1", "command.run", "id -u; umask", "--output", "json"]).ok().json();
    assert_eq!(out["hosts"]["web1"]["result"]["stdout"], "0\n0022\n", "methods run as the spawner, not as the server: {out}");
    let id = fleet.start_job(["web1", "command.run", "id -u"]);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "0\n");
    assert_eq!(fleet.overlord(["job-logs", &id]).ok().out().trim(), "0");
    fleet.assert_no_leaks();
}

#[test]
fn a_captured_server_reads_no_spool_changes_no_rule_and_touches_no_process() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let id = start_job(&fleet);
    let (daemon, spawner, keeper) = (daemon(web1), web1.spawner().unwrap(), web1.pid());
    let method = wait_for("the method", PATIENCE, || child_of(daemon.pid));
    let folder = web1.config_file().parent().unwrap().to_owned();
    let spool = format!("state/spool/{}", web1.spools()[0]);
    let [daemon, spawner] = [daemon, spawner].map(|process| process.pid);
    let before = everything_below(&folder, web1);
    let line = |line: &str| as_server(USER, &format!("cd {} && {line}", folder.display()));
    // It is somebody who can do something.
    assert_eq!(
        line("echo x > state/own && mv state/own state/own2 && rm state/own2 && cat minion.toml acl.d/rules.toml certs/key.pem").code(),
        0
    );
    for denied in [
        "ls state/spool".to_owned(),
        format!("cat {spool}/request.json"),
        format!("cat {spool}/stdout"),
        format!("echo x > {spool}/cancel.json"),
        format!("echo x > {spool}/wake"),
        "rm -r state/spool".to_owned(),
        "mv state/spool state/spool2".to_owned(),
        "rm state/spawner.sock".to_owned(),
        "mv state/spawner.sock state/spawner2.sock".to_owned(),
        "mv state state2".to_owned(),
        "echo x >> acl.d/rules.toml".to_owned(),
        "echo x > acl.d/more.toml".to_owned(),
        "echo x >> minion.toml".to_owned(),
        "rm minion.toml".to_owned(),
        "echo x >> certs/ca.pem".to_owned(),
        "rm certs/ca.pem".to_owned(),
        "cp certs/ca.pem certs/mine && mv certs/mine certs/ca.pem".to_owned(),
        "mv certs certs2".to_owned(),
        "chmod 777 certs".to_owned(),
        format!("kill -TERM {method}"),
        format!("kill -TERM {daemon}"),
        format!("kill -TERM {spawner}"),
        format!("kill -TERM {keeper}"),
        format!("strace -p {spawner}"),
        format!("strace -p {method}"),
        format!("head -c 1 /proc/{spawner}/mem"),
        format!("cat /proc/{method}/environ"),
    ] {
        let run = line(&denied);
        assert_ne!(run.code(), 0, "{denied}: {}", run.out());
        let said = run.err().to_lowercase();
        assert!(said.contains("denied") || said.contains("not permitted"), "{denied}: {said}");
    }
    fs::remove_file(folder.join("certs/mine")).unwrap();
    assert_eq!(everything_below(&folder, web1), before);
    let_go(&fleet);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "done\n");
    fleet.assert_no_leaks();
}

/// Names, owners and contents of what root goes by.
fn everything_below(folder: &Path, web1: &Minion) -> Vec<(String, String)> {
    let files = ["minion.toml", "acl.d", "acl.d/rules.toml", "certs", "certs/ca.pem", "state", "state/spool", "state/spawner.sock"];
    let look = |name: &str| {
        let path = folder.join(name);
        let names =
            fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect::<std::collections::BTreeSet<_>>();
        let names = if name == "state" { Default::default() } else { names };
        format!("{:?} {:?} {:?}", fleet::owner(&path), fs::read(&path).ok(), names)
    };
    let spool = web1.spool(&web1.spools()[0]).join("request.json");
    let spool = ("request".to_owned(), format!("{:?}", fs::read(spool).ok()));
    files.into_iter().map(|name| (name.to_owned(), look(name))).chain([spool]).collect()
}

/// What somebody who connects to the socket gets to read; none if he cannot connect.
fn heard(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _hung_up = std::io::Write::write_all(&mut stream, b"{\"look\":\"spools\"}\n");
    let mut said = String::new();
    let _cut = stream.read_to_string(&mut said);
    Some(said)
}

#[test]
fn the_spawner_hears_root_and_its_server_and_nobody_else() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let (socket, group) = (web1.state_dir().join("spawner.sock"), group_name());
    let told = || web1.stderr().matches("was refused at the spawner's socket").count();
    let own = Group::from_gid(user(STRANGER).gid).unwrap().unwrap().name;
    assert_eq!(acting_as(STRANGER, &own, || heard(&socket)), None, "the folder keeps strangers out");
    assert_eq!(told(), 0);
    // The group is not enough, and neither is a folder that was opened by mistake.
    for _ in 0..3 {
        assert_eq!(acting_as(STRANGER, &group, || heard(&socket)).as_deref(), Some(""));
    }
    wait_until("strangers to be told of", PATIENCE, || told() == 1);
    assert!(web1.stderr().contains(&format!("uid={}", user(STRANGER).uid)), "{}", web1.stderr());
    let captured = CapturedServer::of(web1);
    let unknown = json!({ "remove": [] });
    assert_eq!(acting_as(USER, &group, || captured.order(&unknown)), captured.order(&unknown), "the server is heard as root is");
    assert_ne!(captured.order(&unknown), None);
    assert_eq!(fleet.overlord(["web1", "test.add", "1", "2", "--output", "json"]).ok().json()["hosts"]["web1"]["result"], 3);
    assert_eq!(told(), 1, "those of a minute are told together");
    fleet.assert_no_leaks();
}

#[test]
fn root_speaks_to_no_socket_that_the_server_points_at() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let elsewhere = fleet.root().join("elsewhere.sock");
    let listener = UnixDatagram::bind(&elsewhere).unwrap();
    listener.set_nonblocking(true).unwrap();
    let id = start_job(&fleet);
    let daemon = daemon(web1);
    let line = format!("cd {} && mv server.sock away.sock && ln -s {} server.sock", web1.state_dir().display(), elsewhere.display());
    assert_eq!(as_server(USER, &line).code(), 0);
    let_go(&fleet);
    wait_until("the job daemon to have told of the end", PATIENCE, || !daemon.is_there());
    assert_eq!(listener.recv(&mut [0; 100]).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "done\n");
    fleet.assert_no_leaks();
}

#[test]
fn a_job_of_a_third_user_reaches_the_server_and_nothing_else() {
    let rules = format!("[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\nrun_as = \"{STRANGER}\"\n");
    let Some(fleet) = separated(|fleet| fleet.acl(&rules)) else { return };
    let (minion, state) = (program_for_all(&fleet), fleet.minion("web1").state_dir());
    let line =
        format!("id -u; {minion} submit command.run 'id -u'; cd {state} && ls; cat spool/audit.log audit.log", state = state.display());
    let id = fleet.start_job(["web1", "command.run", &line]);
    let job = ended(&fleet, &id);
    let data = &job["error"]["data"];
    let uid = user(STRANGER).uid;
    let (own, child) = data["stdout"].as_str().unwrap().split_once('\n').unwrap();
    let child: serde_json::Value = serde_json::from_str(child).unwrap();
    assert_eq!((own.to_owned(), child["result"]["stdout"].as_str().unwrap().trim_end()), (uid.to_string(), own), "{job}");
    assert_eq!(data["stderr"].as_str().unwrap().matches("Permission denied").count(), 3, "{job}");
    fleet.assert_no_leaks();
}

#[test]
fn who_is_not_root_serves_as_who_he_is_and_says_so_once() {
    let fleet = Fleet::builder().hosts(1).unprivileged().start();
    for _ in 0..3 {
        let _ = fleet.overlord(["web1", "test.add", "1", "2"]).ok();
    }
    let said = fleet.minion("web1").stderr();
    assert_eq!(said.matches("not started as root").count(), 1, "{said}");
    assert!(!said.contains("`user ="), "{said}");
    fleet.assert_no_leaks();
}

#[test]
fn a_user_that_cannot_be_had_is_told_of() {
    let fleet = Fleet::builder().hosts(1).unprivileged().stopped().start();
    let web1 = fleet.minion("web1");
    let text = fs::read_to_string(web1.config_file()).unwrap();
    fs::write(web1.config_file(), format!("{text}user = \"{STRANGER}\"\n")).unwrap();
    web1.start();
    let id = fleet.start_job(["web1", "command.run", "id -u"]);
    assert_eq!(ended(&fleet, &id)["state"], "ok");
    let said = web1.stderr();
    assert_eq!(said.matches(&format!("`user = \"{STRANGER}\"`, which holds where root starts the minion")).count(), 1, "{said}");
    web1.stop();
    fs::write(web1.config_file(), format!("{text}user = \"nobody-here\"\n")).unwrap();
    web1.start_without_waiting();
    assert_eq!(web1.wait_for_end().code(), Some(1));
    let line = text.lines().count() + 1;
    let said = web1.stderr();
    assert!(said.contains(&format!("minion.toml:{line}: user: this host has no user \"nobody-here\": run `useradd")), "{said}");
    fleet.assert_no_leaks();
}

#[test]
fn a_server_that_is_root_says_so_once() {
    if !geteuid().is_root() {
        return;
    }
    let fleet = Fleet::start(1);
    let _ = fleet.overlord(["web1", "test.ping"]).ok();
    let said = fleet.minion("web1").stderr();
    assert_eq!(said.matches("the server runs as root; write `user = ").count(), 1, "{said}");
    assert_eq!(fleet.minion("web1").kept_server(), None);
    fleet.assert_no_leaks();
}
