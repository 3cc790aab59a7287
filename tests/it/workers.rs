//! Resident workers, through the two real programs: who gets which answer, and what a killed instance, daemon, server or spawner costs.

mod any;
mod bounds;
mod faults;
mod progress;
mod rights;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fleet::{Fleet, Minion, PATIENCE, Process, Run, Running, binaries, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::{Value, json};

/// A worker that gives each payload back as it came, in bytes.
const ECHO: &str = "Worker().serve(lambda task: task.payload)\n";

/// One that does what a payload says, and cannot be asked to stop anything: it reads no line while it works, and knows no signal.
const DEAF: &str = r#"
import json, os, socket, subprocess
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["MINION_WORKER_SOCKET"]); f = s.makefile("rw")
while True:
    f.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "task.fetch"}) + "\n"); f.flush()
    task = None
    while task is None:
        heard = json.loads(f.readline())
        task = heard.get("result") if heard.get("result", {}).get("task_id") else None
    out = subprocess.run(["/bin/sh", "-c", task["payload"]["text"]], stdout=subprocess.PIPE).stdout.decode()
    f.write(json.dumps({"jsonrpc": "2.0", "method": "task.return", "params": {"task_id": task["task_id"], "result": out}}) + "\n")
"#;

/// One host with workers.
struct Host {
    fleet: Fleet,
}

impl Host {
    fn start() -> Self {
        Self { fleet: Fleet::start(1) }
    }

    fn web1(&self) -> &Minion {
        self.fleet.minion("web1")
    }

    /// Describes a worker, whose file says `command` and these lines, and waits until its instances are idle.
    fn worker(&self, name: &str, command: &[&str], lines: &str) {
        self.describe(name, command, lines);
        let wanted = lines.lines().find_map(|line| line.strip_prefix("instances = ")).map_or(1, |count| count.parse().unwrap());
        wait_until("the worker's instances to be idle", PATIENCE, || self.list(name)["idle"] == wanted);
    }

    fn describe(&self, name: &str, command: &[&str], lines: &str) {
        describe(self.web1(), name, command, lines);
    }

    /// A worker in Python: the library, and these lines behind it.
    fn python(&self, name: &str, program: &str, lines: &str) {
        let file = self.python_file(name, program);
        self.worker(name, &["python3", "-u", file.to_str().unwrap()], lines);
    }

    fn python_file(&self, name: &str, program: &str) -> PathBuf {
        let file = self.fleet.root().join(format!("{name}.py"));
        let library = examples().display().to_string();
        fs::write(
            &file,
            format!("import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, {library:?})\nfrom minion_worker import *\n{program}"),
        )
        .unwrap();
        file
    }

    /// The example that runs each payload as Python.
    fn pytask(&self, lines: &str) {
        let file = examples().join("pytask.py");
        self.worker("pytask", &["python3", "-Bu", file.to_str().unwrap()], lines);
    }

    /// What `worker.list` says of a worker.
    fn list(&self, name: &str) -> Value {
        let run = self.fleet.overlord(["web1", "worker.list", name, "--output", "json"]).ok();
        run.json()["hosts"]["web1"]["result"][name].clone()
    }

    fn instance(&self, name: &str, number: usize) -> Value {
        self.list(name)["instances"][number - 1].clone()
    }

    fn pid(&self, name: &str, number: usize) -> i32 {
        i32::try_from(self.instance(name, number)["pid"].as_i64().unwrap()).unwrap()
    }

    /// What a task came to.
    fn run(&self, name: &str, payload: &str) -> Value {
        outcome(&self.fleet.overlord(["web1", "worker.run", name, payload, "--output", "json"]))
    }

    /// Of a payload that is too large for a command line.
    fn run_bytes(&self, name: &str, payload: &str) -> Value {
        let file = self.fleet.root().join("payload");
        fs::write(&file, json!([name, payload]).to_string()).unwrap();
        let run = self.fleet.overlord(["map", "web1", "worker.run", "--items", file.to_str().unwrap(), "--output", "jsonl"]);
        run.json_lines().remove(0)
    }

    /// Where methods ask a worker's daemon.
    fn control(&self, name: &str) -> PathBuf {
        self.web1().state_dir().join(format!("workers/{name}/control.sock"))
    }

    fn spawn(&self, name: &str, payload: &str) -> Running {
        self.fleet.overlord_spawn(["web1", "worker.run", name, payload, "--output", "json"])
    }

    /// Waits until an instance works on a task; gives its id.
    fn wait_until_busy(&self, name: &str, number: usize) -> String {
        wait_for("an instance to be busy", PATIENCE, || {
            let instance = self.instance(name, number);
            (instance["state"] == "busy").then(|| instance["task_id"].as_str().unwrap().to_owned())
        })
    }

    fn cancel(&self, name: &str, task: &str) -> Value {
        outcome(&self.fleet.overlord(["web1", "worker.cancel", name, task, "--output", "json"]))
    }

    /// A file for which tasks wait, and a line of Python that does.
    fn gate(&self, name: &str) -> (PathBuf, String) {
        let gate = self.fleet.root().join(name);
        let line = format!("import os, time\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\nprint('through', end='')");
        (gate, line)
    }
}

/// Where the examples lie.
fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/workers")
}

/// Writes the file of a worker, whole.
fn describe(minion: &Minion, name: &str, command: &[&str], lines: &str) {
    let folder = minion.config_file().parent().unwrap().join("workers.d");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let user = if geteuid().is_root() && !lines.contains("user = ") { "user = \"root\"\n" } else { "" };
    let draft = folder.join(format!(".{name}.new"));
    fs::write(&draft, format!("command = {}\n{user}{lines}\n", json!(command))).unwrap();
    fs::rename(&draft, folder.join(format!("{name}.toml"))).unwrap();
}

fn outcome(run: &Run) -> Value {
    run.json()["hosts"]["web1"].clone()
}

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn ten_chained_calls_are_one_process() {
    let host = Host::start();
    host.pytask("");
    let pid = host.pid("pytask", 1);
    let (mut last, mut all) = ("0".to_owned(), Vec::new());
    for number in 0..10 {
        let answer = host.run("pytask", &format!("print({last}+{number}, end='')"));
        last = answer["result"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        all.push(last.clone());
        assert_eq!(host.run("pytask", "import os\nprint(os.getpid(), end='')")["result"], pid.to_string());
    }
    assert_eq!(all.join(" "), "0 1 3 6 10 15 21 28 36 45");
    let list = host.list("pytask");
    assert_eq!((list["done"].as_u64(), list["instances"][0]["starts"].as_u64(), host.pid("pytask", 1)), (Some(20), Some(1), pid), "{list}");
}

#[test]
fn an_instance_is_idle_then_busy_with_its_task_then_idle() {
    let host = Host::start();
    host.pytask("");
    let idle = host.instance("pytask", 1);
    assert_eq!((&idle["state"], &idle["task_id"]), (&json!("idle"), &Value::Null));
    let (gate, line) = host.gate("gate");
    let call = host.spawn("pytask", &format!("task.progress(7.5, 'far')\n{line}"));
    let task = host.wait_until_busy("pytask", 1);
    let busy = wait_for("progress to be told", PATIENCE, || Some(host.instance("pytask", 1)).filter(|busy| busy["progress"].is_object()));
    assert_eq!(
        (busy["task_id"].as_str(), &busy["caller"], &busy["progress"]),
        (Some(task.as_str()), &json!("admin"), &json!({ "fraction": 1.0, "message": "far" }))
    );
    for (key, is_sound) in [
        ("pid", busy["pid"] == idle["pid"]),
        ("user", busy["user"].as_str().is_some_and(|user| !user.is_empty())),
        ("memory_bytes", busy["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20)),
        ("cpu_seconds", busy["cpu_seconds"].is_number()),
        ("health", busy["health"] == "unknown"),
        ("starts", busy["starts"] == 1),
        ("age_seconds", busy["age_seconds"].is_u64()),
    ] {
        assert!(is_sound, "{key}: {busy}");
    }
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&call.wait())["result"], "through");
    wait_until("the instance to be idle", PATIENCE, || host.instance("pytask", 1)["state"] == "idle");
    assert_eq!(host.instance("pytask", 1)["pid"], idle["pid"]);
}

#[test]
fn sixteen_callers_at_once_each_get_their_own_answer() {
    let host = Host::start();
    host.pytask("instances = 4\n");
    let calls: Vec<_> = (0..16)
        .map(|number| (number, host.spawn("pytask", &format!("import time\ntime.sleep(0.0{})\nprint('marker {number}')", number % 7))))
        .collect();
    for (number, call) in calls {
        assert_eq!(outcome(&call.wait())["result"], format!("marker {number}\n"));
    }
    assert_eq!(host.list("pytask")["done"], 16);
}

#[test]
fn bytes_come_back_as_they_went_up_to_the_limit_which_is_named() {
    const LIMIT: usize = 512 * 1024;
    let host = Host::start();
    host.python("echo", ECHO, "");
    let target = overlord::Fleet::open(host.fleet.home()).unwrap().target("web1").unwrap();
    let call = |bytes: &[u8]| {
        let args = json!({ "worker": "echo", "payload": common::outcome::bytes_value(bytes) });
        let outcomes: BTreeMap<_, _> = target.call("worker.run", args).unwrap();
        outcomes.into_values().next().unwrap().verdict
    };
    let all: Vec<u8> = (0..=255).collect();
    for length in [0, 1, 256, 4096, LIMIT] {
        let bytes: Vec<u8> = all.iter().copied().cycle().take(length).collect();
        match call(&bytes) {
            common::outcome::Verdict::Ok { result } => {
                assert!(common::outcome::value_bytes(result) == Some(bytes), "{length} bytes came back as others");
            }
            other => panic!("{length}: {other:?}"),
        }
    }
    let text = "grüße\n\u{1}\u{7f}\0 \"\\";
    assert_eq!(host.run("echo", "grüße\n")["result"], "grüße\n");
    assert!(matches!(call(text.as_bytes()), common::outcome::Verdict::Ok { result } if result == text));
    for more in [vec![255_u8; LIMIT + 1], vec![b'x'; LIMIT + 1]] {
        let refused = format!("{:?}", call(&more));
        assert!(refused.contains("payload_max_bytes, 524288"), "{refused}");
    }
    assert_eq!(host.instance("echo", 1)["starts"], 1);
}

#[test]
fn a_result_past_its_limit_fails_its_own_task_and_names_the_limit() {
    let host = Host::start();
    host.pytask("result_max_bytes = 1000\n");
    for letters in [1001, 100_000] {
        let answer = host.run("pytask", &format!("print('x' * {letters})"));
        assert_eq!(answer["state"], "failed", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("result_max_bytes, 1000"), "{answer}");
    }
    assert_eq!(host.run("pytask", "print('y', end='')")["result"], "y");
    assert_eq!(host.instance("pytask", 1)["starts"], 1);
}

#[test]
fn what_a_task_says_of_itself_is_its_callers() {
    let host = Host::start();
    host.pytask("");
    let failed = host.run("pytask", "raise ValueError('no such thing')");
    assert_eq!(
        (&failed["state"], &failed["error"]["message"], &failed["error"]["data"]["type"]),
        (&json!("failed"), &json!("no such thing"), &json!("ValueError"))
    );
    let ended = host.run("pytask", "import os\nos._exit(3)");
    assert_eq!(ended["state"], "failed");
    assert!(ended["error"]["message"].as_str().unwrap().contains("exited with status 3"), "{ended}");
    let unknown = host.run("pytusk", "x");
    assert!(unknown["error"]["message"].as_str().unwrap().contains("no worker pytusk: there are pytask"), "{unknown}");
    let run = host.fleet.overlord(["web1", "worker.run", "pytask", "--json", "{\"worker\":\"pytask\",\"payload\":{\"base64\":\"!\"}}"]);
    assert_ne!(run.status.code(), Some(0));
}

#[test]
fn a_full_queue_refuses_and_is_named() {
    let host = Host::start();
    host.pytask("queue_max = 1\n");
    let (gate, line) = host.gate("gate");
    let first = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    let second = host.spawn("pytask", &line);
    wait_until("the second to wait", PATIENCE, || host.list("pytask")["queued"] == 1);
    let third = host.run("pytask", "print('never')");
    assert!(third["error"]["message"].as_str().unwrap().contains("queue_max, 1"), "{third}");
    fs::write(gate, "").unwrap();
    assert_eq!([first, second].map(|call| outcome(&call.wait())["result"].clone()), ["through", "through"]);
}

#[test]
fn the_examples_in_a_shell_and_in_rust_work() {
    let host = Host::start();
    let minion = &binaries().minion;
    let upper = examples().join("upper.sh");
    host.worker("upper", &["/bin/sh", upper.to_str().unwrap()], &format!("environment = {{ MINION = {minion:?} }}\n"));
    assert_eq!(host.run("upper", "some words\n")["result"], "SOME WORDS\n");
    assert_eq!(host.run("upper", "and more")["result"], "AND MORE");
    let rust = minion.parent().unwrap().join("examples/worker");
    host.worker("rust", &[rust.to_str().unwrap()], "");
    let pid = host.pid("rust", 1);
    for number in 0..3 {
        assert_eq!(host.run("rust", &number.to_string())["result"], json!({ "pid": pid, "payload": { "text": number.to_string() } }));
    }
}

#[test]
fn a_file_that_changes_holds_and_one_that_goes_ends_its_worker() {
    let host = Host::start();
    host.pytask("environment = { WHICH = \"first\" }\n");
    let daemon = host.list("pytask")["daemon_pid"].clone();
    let which = "import os\nprint(os.environ['WHICH'], end='')";
    assert_eq!(host.run("pytask", which)["result"], "first");
    host.describe("pytask", &["python3"], "instances = many\n");
    wait_until("what is wrong to be told", PATIENCE, || {
        let list = host.list("pytask");
        list["state"] == "misconfigured" && list["problem"].as_str().is_some_and(|problem| problem.contains("pytask.toml:"))
    });
    assert_eq!(host.run("pytask", which)["result"], "first", "it goes on as it was");
    let file = examples().join("pytask.py");
    host.describe("pytask", &["python3", "-Bu", file.to_str().unwrap()], "environment = { WHICH = \"second\" }\ninstances = 2\n");
    wait_until("two new instances", PATIENCE, || host.list("pytask")["idle"] == 2 && host.run("pytask", which)["result"] == "second");
    assert_eq!(host.list("pytask")["daemon_pid"], daemon);
    fs::remove_file(host.web1().config_file().parent().unwrap().join("workers.d/pytask.toml")).unwrap();
    let daemon = i32::try_from(daemon.as_i64().unwrap()).unwrap();
    wait_until("the daemon to end", PATIENCE, || !is_there(daemon));
    assert!(host.fleet.running("pytask.py").is_empty(), "{:?}", host.fleet.running("pytask.py"));
}

#[test]
fn a_worker_is_its_users_and_serves_who_runs_as_another() {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let rules = "[[allow]]\ncaller = \"*\"\nmethods = [\"*\"]\nrun_as = \"daemon\"\n";
    let host = Host { fleet: Fleet::builder().hosts(1).acl(rules).start() };
    fs::set_permissions(host.fleet.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let library = host.fleet.root().join("lib");
    fs::create_dir(&library).unwrap();
    for file in ["minion_worker.py", "pytask.py"] {
        fs::copy(examples().join(file), library.join(file)).unwrap();
        fs::set_permissions(library.join(file), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let file = library.join("pytask.py");
    host.worker("pytask", &["python3", "-Bu", file.to_str().unwrap()], "user = \"nobody\"\n");
    let who = "import os\nprint(os.getuid(), os.getgroups(), os.environ.get('HOME'), oct(os.stat(os.environ['MINION_WORKER_SOCKET']).st_mode), end='')";
    let answer = host.run("pytask", who)["result"].as_str().unwrap().to_owned();
    assert!(answer.starts_with("65534 [65534] /nonexistent 0o140600"), "{answer}");
    assert_eq!(host.instance("pytask", 1)["user"], "nobody");
    assert_eq!(host.run("pytask", "open('/dev/stderr', 'w').write('x')\nprint('written', end='')")["result"], "written");
    // Neither the worker nor a method of another user reaches what root alone may ask.
    let control = host.web1().state_dir().join("workers/pytask/control.sock");
    let line = format!(
        "import socket\ns = socket.socket(socket.AF_UNIX)\ntry: s.connect({control:?})\nexcept OSError as error: print(error.strerror, end='')"
    );
    assert_eq!(host.run("pytask", &line)["result"], "Permission denied");
}

#[test]
fn a_captured_server_reaches_no_worker_and_none_is_lost_with_either_part() {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let host = Host { fleet: Fleet::builder().hosts(1).user("nobody").start() };
    host.pytask("");
    let workers = host.web1().state_dir().join("workers");
    let control = workers.join("pytask/control.sock");
    assert!(control.exists());
    let connect = format!("import socket; s = socket.socket(socket.AF_UNIX); s.connect('{}')", control.display());
    for line in [
        format!("python3 -c \"{connect}\""),
        format!("ls {}", workers.display()),
        format!("mv {} {}.away", workers.display(), workers.display()),
        format!("touch {}/x.toml", host.web1().config_file().parent().unwrap().join("workers.d").display()),
    ] {
        let run = fleet::as_server("nobody", &line);
        assert!(!run.status.success() && run.err().contains("ermi"), "{line}: {}", run.err());
    }
    faults::assert_no_task_is_lost(&host, || {
        let spawner = host.web1().spawner().unwrap();
        kill9(spawner.pid);
        wait_until("another spawner", PATIENCE, || host.web1().spawner().is_some_and(|next| next.pid != spawner.pid));
        host.web1().kill9();
        host.web1().start();
    });
}

#[test]
fn a_file_without_a_user_or_that_others_can_write_is_refused_by_root() {
    if !geteuid().is_root() {
        println!("not root: whoever runs the minion is whom it may trust");
        return;
    }
    let host = Host::start();
    describe(host.web1(), "open", &["true"], "# user = left out\n");
    let problem = |name: &str| host.list(name)["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem("open").contains("it has no `user`, and the minion is root"), "{}", problem("open"));
    let file = host.web1().config_file().parent().unwrap().join("workers.d/open.toml");
    fs::write(&file, "command = \"true\"\nuser = \"nobody\"\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(problem("open").contains("chmod go-w"), "{}", problem("open"));
    assert!(!host.web1().state_dir().join("workers/open/control.sock").exists());
}
