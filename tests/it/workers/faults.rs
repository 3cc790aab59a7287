//! What goes wrong: tasks that are stopped, and instances, daemons, servers and spawners that are killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;

/// Where an instance fetches its tasks.
fn socket_of(pid: i32) -> PathBuf {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8_lossy(&environ).into_owned();
    text.split('\0').find_map(|variable| variable.strip_prefix("MINION_WORKER_SOCKET=")).unwrap().into()
}

/// A line of Python that lets whoever connects to `at` speak to the daemon as a process of the instance that runs it, until that dies.
fn bridge(at: &Path) -> String {
    format!(
        r#"
import os, socket, threading
def copy(near, far):
    while data := near.recv(65536): far.sendall(data)
    far.shutdown(socket.SHUT_RDWR)
def serve(door):
    while True:
        near, far = door.accept()[0], socket.socket(socket.AF_UNIX)
        far.connect(os.environ['MINION_WORKER_SOCKET'])
        for ends in ((near, far), (far, near)): threading.Thread(target=copy, args=ends, daemon=True).start()
door = socket.socket(socket.AF_UNIX); door.bind({at:?}); door.listen()
threading.Thread(target=serve, args=(door,), daemon=True).start()
"#
    )
}

/// What is answered to a line at an instance's socket; none: it was hung up on.
fn say(stream: &mut UnixStream, method: &str, params: &Value) -> Option<Value> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _hung_up = stream.write_all(format!("{}\n", json!({ "id": 7, "method": method, "params": params })).as_bytes());
    let mut line = String::new();
    let _hung_up = BufReader::new(stream).read_line(&mut line);
    (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
}

#[test]
fn a_task_is_stopped_alone_by_asking() {
    let host = Host::start();
    host.pytask("instances = 2\ncancel_grace = \"60s\"\n");
    let pids = [host.pid("pytask", 1), host.pid("pytask", 2)];
    let ((gate_a, line_a), (gate_b, line_b)) = (host.gate("a"), host.gate("b"));
    let first = host.spawn("pytask", &line_a);
    let task = host.wait_until_busy("pytask", 1);
    let second = host.spawn("pytask", &line_b);
    host.wait_until_busy("pytask", 2);
    let queued = host.spawn("pytask", "print('queued', end='')");
    wait_until("one to wait", PATIENCE, || host.list("pytask")["queued"] == 1);
    assert_eq!(host.cancel("pytask", &task)["result"], json!({ "task_id": task, "was": "running" }));
    let stopped = outcome(&first.wait());
    assert_eq!(stopped["state"], "cancelled", "{stopped}");
    assert!(stopped["error"]["message"].as_str().unwrap().contains("cancelled by admin"), "{stopped}");
    assert_eq!(outcome(&queued.wait())["result"], "queued", "by the instance that is free again");
    fs::write(gate_b, "").unwrap();
    assert_eq!(outcome(&second.wait())["result"], "through");
    assert_eq!([host.pid("pytask", 1), host.pid("pytask", 2)], pids);
    assert!(!gate_a.exists());
    let gone = host.cancel("pytask", &task);
    assert!(gone["error"]["message"].as_str().unwrap().contains("has no task"), "{gone}");
}

#[test]
fn a_task_that_cannot_be_asked_is_stopped_alone_by_killing_its_instance() {
    let host = Host::start();
    let program = host.python_file("deaf", DEAF);
    host.worker("deaf", &["python3", program.to_str().unwrap()], "instances = 2\ncancel_grace = \"100ms\"\n");
    let pids = [host.pid("deaf", 1), host.pid("deaf", 2)];
    let gate = host.fleet.root().join("gate");
    let line = format!("while ! test -e {}; do sleep 0.02; done; echo through", gate.display());
    let first = host.spawn("deaf", &line);
    let task = host.wait_until_busy("deaf", 1);
    let second = host.spawn("deaf", &line);
    host.wait_until_busy("deaf", 2);
    host.cancel("deaf", &task);
    assert_eq!(outcome(&first.wait())["state"], "cancelled");
    wait_until("the instance to be gone", PATIENCE, || !is_there(pids[0]));
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&second.wait())["result"], "through\n");
    assert_eq!(host.pid("deaf", 2), pids[1]);
    wait_until("another to be idle", PATIENCE, || host.list("deaf")["idle"] == 2);
}

#[test]
fn a_task_that_waits_can_be_cancelled_and_who_hangs_up_takes_it_along() {
    let host = Host::start();
    host.pytask("");
    let (gate, line) = host.gate("gate");
    let mark = host.fleet.root().join("mark");
    let first = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    let waiting = host.spawn("pytask", &format!("open({mark:?}, 'w')"));
    wait_until("one to wait", PATIENCE, || host.list("pytask")["queued"] == 1);
    waiting.kill9();
    wait_until("none to wait", PATIENCE, || host.list("pytask")["queued"] == 0);
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&first.wait())["result"], "through");
    assert!(!mark.exists(), "nobody waits for it, and it was run");
}

#[test]
fn a_killed_instance_is_told_at_once_and_costs_its_own_task_alone() {
    let host = Host::start();
    host.pytask("[restart]\nleast = \"500ms\"\n");
    let (gate, line) = host.gate("gate");
    let (within, after) = (host.fleet.root().join("within"), host.fleet.root().join("after"));
    let first = host.spawn("pytask", &format!("{}{line}", bridge(&within)));
    let task = host.wait_until_busy("pytask", 1);
    wait_until("the bridge to stand", PATIENCE, || within.exists());
    let second = host.spawn("pytask", &format!("{}print('survived', end='')", bridge(&after)));
    wait_until("one to wait", PATIENCE, || host.list("pytask")["queued"] == 1);
    let old = host.pid("pytask", 1);
    let mut late = UnixStream::connect(within).unwrap();
    let progressed = say(&mut late, "task.progress", &json!({ "task_id": task, "fraction": 0.5 })).unwrap();
    assert_eq!(progressed["result"], json!({}), "what belongs to the instance is heard");
    let since = Instant::now();
    kill9(old);
    let lost = outcome(&first.wait());
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!((&lost["state"], &lost["error"]["data"]["type"]), (&json!("failed"), &json!("worker_died")), "{lost}");
    assert!(lost["error"]["message"].as_str().unwrap().contains("killed by SIGKILL"), "{lost}");
    assert_eq!(say(&mut late, "task.return", &json!({ "task_id": task, "result": "late" })), None, "a late answer is hung up on");
    assert_eq!(outcome(&second.wait())["result"], "survived");
    let list = wait_for("the next to be idle", PATIENCE, || Some(host.list("pytask")).filter(|list| list["idle"] == 1));
    assert_eq!(list["instances"][0]["starts"], 2, "{list}");
    assert!(list["instances"][0]["problem"].as_str().unwrap().contains("killed by SIGKILL"), "{list}");
    // Nor is it believed from the instance that came after.
    let mut next = UnixStream::connect(after).unwrap();
    let refused = say(&mut next, "task.return", &json!({ "task_id": task, "result": "late" })).unwrap();
    assert!(refused["error"]["message"].as_str().unwrap().contains("is not this instance's"), "{refused}");
    assert!(!gate.exists());
}

#[test]
fn an_instance_cannot_answer_for_another() {
    let host = Host::start();
    host.pytask("instances = 2\n");
    let (gate, line) = host.gate("gate");
    let bridges = [1, 2].map(|number| host.fleet.root().join(format!("bridge{number}")));
    let calls = bridges.each_ref().map(|at| host.spawn("pytask", &format!("{}{line}", bridge(at))));
    let tasks = [host.wait_until_busy("pytask", 1), host.wait_until_busy("pytask", 2)];
    for at in &bridges {
        wait_until("the bridge to stand", PATIENCE, || at.exists());
        let mut within = UnixStream::connect(at).unwrap();
        let answers = tasks.each_ref().map(|task| say(&mut within, "task.progress", &json!({ "task_id": task, "fraction": 0.5 })).unwrap());
        let refused: Vec<&Value> = answers.iter().filter(|answer| answer["result"].is_null()).collect();
        assert_eq!(refused.len(), 1, "{answers:?}");
        assert!(refused[0]["error"]["message"].as_str().unwrap().contains("is not this instance's"), "{refused:?}");
    }
    // Nor by connecting as the other: neither a stranger nor the other instance, though they are the same user's.
    let socket = socket_of(host.pid("pytask", 2));
    let mut stranger = UnixStream::connect(&socket).unwrap();
    assert_eq!(say(&mut stranger, "task.return", &json!({ "task_id": tasks[1], "result": "crossed" })), None);
    assert_eq!(say(&mut UnixStream::connect(&socket).unwrap(), "task.fetch", &json!({})), None);
    fs::write(gate, "").unwrap();
    assert_eq!(calls.map(|call| outcome(&call.wait())["result"].clone()), ["through", "through"]);
}

#[test]
fn what_an_instance_leaves_behind_dies_with_it() {
    let host = Host::start();
    host.pytask("");
    // In a session of its own, of a parent that is gone, and without a variable by which it is known.
    let line = "import subprocess\nprint(subprocess.run('env -i setsid sleep 1000 >/dev/null 2>&1 & echo $!', shell=True, capture_output=True).stdout.decode(), end='')";
    let left = host.run("pytask", line);
    let left: i32 = left["result"].as_str().unwrap().trim().parse().unwrap();
    assert!(is_there(left));
    kill9(host.pid("pytask", 1));
    wait_until("what it has started to be gone", PATIENCE, || !is_there(left));
}

#[test]
fn a_result_is_a_result_though_its_instance_ends_at_once() {
    let host = Host::start();
    let program = "import os\nworker = Worker()\ntask = worker.task_fetch()\nworker.task_return(task.id, task.text)\nos._exit(0)\n";
    host.python("once", program, "instances = 2\n[restart]\nleast = \"1ms\"\nmost = \"1ms\"\n");
    for number in 0..30 {
        let payload = format!("{number}{}", "x".repeat(number * 10_000));
        assert_eq!(host.run_bytes("once", &payload)["result"], payload, "{number}");
    }
}

#[test]
fn a_signal_without_a_name_costs_one_instance_and_not_its_daemon() {
    let host = Host::start();
    host.pytask("[restart]\nleast = \"10ms\"\n");
    let daemon = host.list("pytask")["daemon_pid"].clone();
    let died = host.run("pytask", "import os, signal\nos.kill(os.getpid(), signal.SIGRTMIN + 1)");
    assert_eq!(died["error"]["data"]["type"], "worker_died", "{died}");
    assert!(died["error"]["message"].as_str().unwrap().contains("was killed by signal 35"), "{died}");
    assert_eq!(host.run("pytask", "print('on', end='')")["result"], "on");
    assert_eq!(host.list("pytask")["daemon_pid"], daemon);
    let method = outcome(&host.fleet.overlord(["web1", "command.run", "kill -35 $$", "--output", "json"]));
    assert!(method["error"]["message"].as_str().unwrap().contains("35"), "{method}");
}

/// The caller reads only when the worker has been told to end, and its instance is gone.
#[test]
fn a_result_that_was_not_read_yet_outlives_the_end_of_its_worker() {
    let host = Host::start();
    host.pytask("result_max_bytes = 8000000\n");
    let list = host.list("pytask");
    let daemon = i32::try_from(list["daemon_pid"].as_i64().unwrap()).unwrap();
    let mut caller = UnixStream::connect(host.control("pytask")).unwrap();
    let params = json!({ "payload": { "text": "print('x' * 6000000, end='')" }, "by": "admin" });
    writeln!(caller, "{}", json!({ "jsonrpc": "2.0", "id": 1, "method": "task.run", "params": params })).unwrap();
    wait_until("the task to be done", PATIENCE, || host.list("pytask")["done"] == 1);
    let instance = host.pid("pytask", 1);
    kill(Pid::from_raw(daemon), Signal::SIGTERM).unwrap();
    wait_until("the instance to be gone", PATIENCE, || !is_there(instance));
    let mut line = String::new();
    BufReader::new(caller).read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["result"]["result"].as_str().map(str::len), Some(6_000_000));
    wait_until("the daemon to be gone", PATIENCE, || !is_there(daemon));
}

#[test]
fn what_is_no_text_is_told_by_its_name() {
    let host = Host::start();
    host.pytask("");
    let told = host.run("pytask", "print('\\udcff', end='')");
    assert_eq!(told["error"]["data"]["type"], "UnicodeEncodeError", "{told}");
    assert_eq!(host.run("pytask", "raise ValueError('\\udcff')")["error"]["message"], "?");
    assert_eq!(host.run("pytask", "task.progress(10 ** 400)\nprint('on', end='')")["result"], "on");
}

#[test]
fn a_map_waits_for_a_worker_that_is_about_to_start() {
    let host = Host::start();
    let file = examples().join("pytask.py");
    host.describe("pytask", &["python3", "-Bu", file.to_str().unwrap()], "");
    let items = host.fleet.root().join("items");
    fs::write(&items, "[\"pytask\", \"print(1, end='')\"]\n").unwrap();
    let run = host.fleet.overlord(["map", "web1", "worker.run", "--items", items.to_str().unwrap()]).ok();
    assert_eq!(run.out(), "\"1\"\n");
}

/// Two jobs, one under way and one that waits; then `disturb`; then both end as if nothing had been.
pub(super) fn assert_no_task_is_lost(host: &Host, disturb: impl FnOnce()) {
    let (gate, line) = host.gate("gate");
    let first = host.fleet.start_job(["web1", "worker.run", "pytask", &line]);
    host.wait_until_busy("pytask", 1);
    let second = host.fleet.start_job(["web1", "worker.run", "pytask", "print('second', end='')"]);
    wait_until("one to wait", PATIENCE, || host.list("pytask")["queued"] == 1);
    let before = host.list("pytask");
    disturb();
    let after = host.list("pytask");
    assert_eq!((&after["daemon_pid"], &after["queued"]), (&before["daemon_pid"], &json!(1)));
    assert_eq!(after["instances"][0]["pid"], before["instances"][0]["pid"]);
    assert_eq!(after["instances"][0]["task_id"], before["instances"][0]["task_id"]);
    fs::write(gate, "").unwrap();
    for (job, result) in [(first, "through"), (second, "second")] {
        let status = host.fleet.overlord(["job-status", &job, "--wait", "--output", "json"]).ok();
        assert_eq!(outcome(&status)["result"], result);
    }
}

#[test]
fn a_job_that_is_cancelled_stops_its_task_alone() {
    let host = Host::start();
    host.pytask("cancel_grace = \"60s\"\n");
    let pid = host.pid("pytask", 1);
    let (_gate, line) = host.gate("gate");
    let job = host.fleet.start_job(["web1", "worker.run", "pytask", &line]);
    host.wait_until_busy("pytask", 1);
    host.fleet.overlord(["job-cancel", &job]);
    let status = host.fleet.overlord(["job-status", &job, "--wait", "--output", "json"]);
    assert_eq!(outcome(&status)["state"], "cancelled");
    wait_until("the instance to be idle", PATIENCE, || host.list("pytask")["idle"] == 1);
    assert_eq!(host.pid("pytask", 1), pid);
}

#[test]
fn a_killed_server_costs_no_task() {
    let host = Host::start();
    host.pytask("");
    assert_no_task_is_lost(&host, || {
        host.web1().kill9();
        host.web1().start();
    });
}

#[test]
fn a_killed_spawner_costs_no_task() {
    let host = Host::start();
    host.pytask("");
    assert_no_task_is_lost(&host, || {
        let spawner = host.web1().spawner().unwrap();
        kill9(spawner.pid);
        wait_until("another spawner", PATIENCE, || host.web1().spawner().is_some_and(|next| next.pid != spawner.pid));
    });
}

#[test]
fn a_killed_daemon_is_told_at_once_takes_its_instances_along_and_is_started_again() {
    let host = Host::start();
    host.pytask("instances = 2\n");
    let (_gate, line) = host.gate("gate");
    let call = host.spawn("pytask", &format!("import subprocess\nsubprocess.Popen(['setsid', 'sleep', '1000'])\n{line}"));
    host.wait_until_busy("pytask", 1);
    let before = host.list("pytask");
    let left: Vec<Process> =
        wait_for("what the task starts", PATIENCE, || Some(host.fleet.running("sleep 1000")).filter(|left| !left.is_empty()));
    let pids: Vec<i32> =
        before["instances"].as_array().unwrap().iter().map(|one| i32::try_from(one["pid"].as_i64().unwrap()).unwrap()).collect();
    kill9(i32::try_from(before["daemon_pid"].as_i64().unwrap()).unwrap());
    let lost = outcome(&call.wait());
    assert_eq!((&lost["state"], &lost["error"]["data"]["type"]), (&json!("failed"), &json!("worker_died")), "{lost}");
    wait_until("the instances to be gone", PATIENCE, || !pids.iter().any(|pid| is_there(*pid)));
    assert_eq!(host.run("pytask", "print('again', end='')")["result"], "again");
    assert!(!left.iter().any(|process| is_there(process.pid)), "{left:?}");
}

#[test]
fn a_worker_that_cannot_start_says_why_and_is_tried_again_after_longer_and_longer() {
    let host = Host::start();
    host.describe("missing", &["/nonexistent/program"], "[restart]\nleast = \"50ms\"\nmost = \"400ms\"\n");
    host.describe("broken", &["python3", "-c", "raise SystemExit('no licence')"], "[restart]\nleast = \"50ms\"\n");
    let problem = |name: &str, what: &str| {
        wait_until(&format!("{name} to say {what}"), PATIENCE, || {
            let instance = host.instance(name, 1);
            instance["problem"].as_str().is_some_and(|problem| problem.contains(what)) && instance["starts"].as_u64() >= Some(3)
        });
    };
    problem("missing", "/nonexistent/program: No such file or directory");
    problem("broken", "exited with status 1");
    problem("broken", "no licence");
    // What waits for it waits on, and is done once it can be.
    let call = host.spawn("broken", "patience");
    wait_until("one to wait", PATIENCE, || host.list("broken")["queued"] == 1);
    let echo = host.python_file("echo", ECHO);
    host.describe("broken", &["python3", echo.to_str().unwrap()], "");
    assert_eq!(outcome(&call.wait())["result"], "patience");
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_its_line() {
    let host = Host::start();
    host.describe("typo", &["true"], "intances = 2\n");
    let list = host.list("typo");
    assert_eq!(list["state"], "down");
    let problem = list["problem"].as_str().unwrap();
    assert!(problem.contains("typo.toml:") && problem.contains("unknown field `intances`"), "{problem}");
    let checked = host.fleet.check("web1").expect(1);
    assert!(checked.out().contains("typo.toml:") && checked.out().contains("unknown field `intances`"), "{}", checked.out());
    let run = host.run("typo", "x");
    assert!(run["error"]["message"].as_str().unwrap().contains("unknown field `intances`"), "{run}");
}

#[test]
fn an_unwell_instance_is_started_again() {
    let host = Host::start();
    let ill = host.fleet.root().join("ill");
    let check = format!("if test -e {ill}; then echo too ill; rm {ill}; exit 1; fi; test -d /proc/$MINION_WORKER_PID", ill = ill.display());
    host.pytask(&format!("[health]\ncommand = {check:?}\nevery = \"50ms\"\n[restart]\nleast = \"50ms\"\n"));
    wait_until("it to be well", PATIENCE, || host.instance("pytask", 1)["health"] == "ok");
    let pid = host.pid("pytask", 1);
    let (_gate, line) = host.gate("gate");
    let call = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    fs::write(&ill, "").unwrap();
    let lost = outcome(&call.wait());
    assert!(lost["error"]["message"].as_str().unwrap().contains("its health check exited with status 1"), "{lost}");
    let next = wait_for("another to be well", PATIENCE, || {
        Some(host.instance("pytask", 1)).filter(|next| next["health"] == "ok" && next["starts"] == 2)
    });
    assert!(next["pid"] != pid && next["problem"].as_str().unwrap().contains("too ill"), "{next}");
    assert!(!is_there(pid));
}

#[test]
fn a_silent_task_is_stopped_at_its_limit() {
    let host = Host::start();
    let program = host.python_file("deaf", DEAF);
    host.worker("deaf", &["python3", program.to_str().unwrap()], "cancel_grace = \"100ms\"\n");
    let pid = host.pid("deaf", 1);
    let run = host.fleet.overlord(["web1", "worker.run", "deaf", "sleep 5.123", "--timeout", "3s", "--output", "json"]);
    assert_eq!(outcome(&run)["state"], "timed_out");
    assert!(run.took >= Duration::from_secs(3) && run.took < Duration::from_millis(4900), "{:?}", run.took);
    wait_until("its process to be gone", Duration::from_secs(2), || !is_there(pid) && host.fleet.running("sleep 5.123").is_empty());
    let program = program.to_str().unwrap();
    host.worker("limited", &["python3", program], "task_timeout = \"1s\"\n");
    let pid = host.pid("limited", 1);
    let answer = host.run("limited", "sleep 1000");
    assert_eq!(answer["state"], "timed_out", "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("task_timeout, 1s"), "{answer}");
    wait_until("its process to be gone", PATIENCE, || !is_there(pid));
}

#[test]
fn instances_are_replaced_when_they_are_old_and_have_no_task() {
    let host = Host::start();
    host.pytask("restart_every = \"1s\"\n");
    let (gate, line) = host.gate("gate");
    let call = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    let busy = host.instance("pytask", 1);
    wait_until("it to be past its age", PATIENCE, || host.instance("pytask", 1)["age_seconds"].as_u64() >= Some(2));
    assert_eq!(host.instance("pytask", 1)["pid"], busy["pid"], "it has a task");
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&call.wait())["result"], "through");
    wait_until("it to be replaced", PATIENCE, || host.instance("pytask", 1)["starts"].as_u64() > busy["starts"].as_u64());
    assert_eq!(host.instance("pytask", 1)["problem"], Value::Null);
}

#[test]
fn who_fetches_again_has_given_the_task_up() {
    let host = Host::start();
    let careless = "worker = Worker()\nworker.task_fetch()\nworker.serve(lambda task: 'second')\n";
    let file = host.python_file("careless", careless);
    host.worker("careless", &["python3", file.to_str().unwrap()], "");
    let abandoned = host.run("careless", "x");
    assert_eq!(abandoned["error"]["data"]["type"], "abandoned", "{abandoned}");
    assert_eq!(host.run("careless", "x")["result"], "second");
}

#[test]
fn what_waits_at_a_daemon_that_is_told_to_end_is_done_by_the_next() {
    let host = Host::start();
    host.pytask("stop_grace = \"200ms\"\n");
    let (_gate, line) = host.gate("gate");
    let first = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    let second = host.spawn("pytask", "print('by the next', end='')");
    let before = wait_for("one to wait", PATIENCE, || Some(host.list("pytask")).filter(|list| list["queued"] == 1));
    let daemon = i32::try_from(before["daemon_pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(daemon), Signal::SIGTERM).unwrap();
    assert_eq!(outcome(&first.wait())["error"]["data"]["type"], "worker_died");
    assert_eq!(outcome(&second.wait())["result"], "by the next");
    assert_ne!(host.list("pytask")["daemon_pid"], daemon);
}
