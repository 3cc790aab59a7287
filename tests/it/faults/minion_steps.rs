//! The minion's side killed at each of its steps, on entry of the Nth system call of a kind: the spawner and what it forks, the job
//! daemon, and the server.

use fleet::raw::envelope;
use fleet::{Fleet, Follow, PATIENCE, Step, wait_for, wait_until};
use serde_json::{Value, json};

use super::{Runs, kill9, wait_until_dead};

/// What the spawner's children and job daemons do, a kind at a time: each process counts its own calls of that kind.
const SPAWNERS_KINDS: [&[&str]; 9] = [
    &["mkdir", "mkdirat"],
    &["write"],
    &["fsync"],
    &["fdatasync"],
    &["rename", "renameat", "renameat2"],
    &["mknod", "mknodat", "setsid", "unlink", "unlinkat", "ftruncate"],
    &["clone", "clone3", "fork", "vfork", "execve"],
    &["dup2", "dup3", "prctl"],
    &["sendto", "sendmsg", "connect", "pipe2"],
];
/// What the server does to its store, its log and its sockets.
const SERVERS_KINDS: [&[&str]; 6] =
    [&["write"], &["writev", "sendto", "sendmsg"], &["pwrite64"], &["sync_file_range"], &["fsync", "fdatasync"], &["connect"]];

/// More steps of one kind than one order has.
const STEPS_MAX: usize = 60;

/// One host, a command that the test lets go on, and what it left.
struct Host {
    fleet: Fleet,
    runs: Runs,
}

/// A job as it was posted to the host.
struct Posted {
    request: Value,
    job: String,
    call_id: Value,
    /// What the host said; `Null` if it was cut off.
    reply: Value,
}

impl Host {
    fn new() -> Self {
        let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\ncancel_grace = \"200ms\"\n").start();
        let runs = Runs::of(&fleet);
        Self { fleet, runs }
    }

    fn ask(&self, method: &str, args: Value) -> Value {
        self.fleet.raw_overlord("web1").call(&envelope("admin", "web1", method, args)).unwrap_or(Value::Null)
    }

    fn post(&self, request: &Value) -> Value {
        self.fleet.raw_overlord("web1").post_json(request).unwrap_or(Value::Null)
    }

    fn start(&self, line: &str) -> Posted {
        let envelope = envelope("admin", "web1", "async.command.run", json!([line]));
        let request = self.fleet.raw_overlord("web1").signed(json!(1), &envelope);
        let reply = self.post(&request);
        Posted { reply, request, job: envelope.call_id.job().to_string(), call_id: json!(envelope.call_id) }
    }

    /// A job that has left its line, and ends when its gate is opened; and its id on the host.
    fn start_gated(&self, gate: &str) -> (Posted, String) {
        let gate = self.fleet.root().join(gate);
        let posted = self.start(&format!("{}; while [ ! -e {} ]; do sleep 0.02; done", self.runs.note(), gate.display()));
        wait_until("the job to start", PATIENCE, || self.runs.count(&posted.job, "web1") == 1);
        let id = posted.reply["result"]["minion_job_id"].as_str().unwrap().to_owned();
        (posted, id)
    }

    fn open(&self, gate: &str) {
        std::fs::write(self.fleet.root().join(gate), "").unwrap();
    }

    /// The spawner, executed afresh if it was killed.
    fn spawner(&self) -> i32 {
        let web1 = self.fleet.minion("web1");
        wait_for("a spawner", PATIENCE, || {
            let sum = self.ask("test.add", json!([1, 2]));
            web1.spawner().filter(|_| sum["result"]["result"] == 3).map(|spawner| spawner.pid)
        })
    }

    /// What the host says of a job once it has ended. Asked by a fence, so one that never came is `undelivered` for ever.
    fn end_of(&self, posted: &Posted) -> Value {
        wait_for("the job to end", PATIENCE, || {
            let report = self.ask("jobs.fence", json!([posted.call_id]))["result"]["result"].clone();
            let going = ["running", "queued"].map(Value::from);
            Some(report).filter(|report| report.is_object() && !going.contains(&report["state"]))
        })
    }

    /// The job has ended in one of `states`, which is true; sent again it does not run, and that state stays.
    fn assert_ended(&self, posted: &Posted, states: &[&str], at: Step<'_>) -> Value {
        let told = self.end_of(posted);
        assert!(states.contains(&told["state"].as_str().unwrap()), "{at:?}: {told}");
        self.runs.assert_true(&posted.job, "web1", &told);
        let ran = self.runs.count(&posted.job, "web1");
        let again = self.post(&posted.request);
        assert!(again["result"]["repeated"] == true || again["error"].is_object(), "{at:?}: {again}");
        assert_eq!(self.end_of(posted)["state"], told["state"], "{at:?}");
        assert_eq!(self.runs.count(&posted.job, "web1"), ran, "{at:?}: sent again it ran again");
        told
    }
}

/// Does `round` for every step, until one gets through unharmed: `round` says whether it was harmed.
fn at_every_step(kinds: &[&[&str]], mut round: impl FnMut(Step<'_>) -> bool) {
    let mut harmed = 0;
    for calls in kinds {
        let unharmed = (1..STEPS_MAX).find(|number| !round(Step { calls, number: *number }));
        harmed += unharmed.unwrap_or_else(|| panic!("{calls:?}: after {STEPS_MAX} steps something still is killed")) - 1;
    }
    assert!(harmed > 0, "no fail point has struck");
}

fn accepted_at_every_step(kinds: &[&[&str]]) {
    let host = Host::new();
    at_every_step(kinds, |at| {
        let point = at.wait_in(host.spawner(), Follow::Children);
        let posted = host.start(&host.runs.note());
        // One whose daemon was killed before it began waits, and is started again and again for as long as that is killed, too.
        let is_running = posted.reply["result"]["state"] == "running";
        if is_running {
            let _end_or_death = host.end_of(&posted);
        }
        let struck = point.let_go();
        // `failed`: it was the method's own process that was killed, or the shell.
        let told = host.end_of(&posted);
        if told["state"] == "failed" {
            assert!(struck && host.runs.count(&posted.job, "web1") <= 1, "{at:?}: {told}");
        } else {
            let states: &[&str] = if struck { &["ok", "lost", "undelivered"] } else { &["ok"] };
            host.assert_ended(&posted, states, at);
        }
        struck
    });
    host.fleet.assert_no_leaks();
}

#[test]
fn an_acceptance_killed_as_it_writes_starts_the_job_once_or_never() {
    accepted_at_every_step(&SPAWNERS_KINDS[..5]);
}

#[test]
fn an_acceptance_killed_as_it_forks_starts_the_job_once_or_never() {
    accepted_at_every_step(&SPAWNERS_KINDS[5..]);
}

/// Before the outcome has its name the job is lost, for it may have done anything; from then on the outcome stands.
#[test]
fn a_job_daemon_killed_at_any_step_of_the_end_tells_the_truth() {
    let host = Host::new();
    let web1 = host.fleet.minion("web1");
    let mut gates = 0;
    at_every_step(&[SPAWNERS_KINDS[1], SPAWNERS_KINDS[2], SPAWNERS_KINDS[4], SPAWNERS_KINDS[8], &["openat"], &["read"]], |at| {
        gates += 1;
        let gate = format!("gate{gates}");
        let (posted, id) = host.start_gated(&gate);
        let daemon = web1.job_daemon(&id).unwrap();
        let point = at.wait_in(daemon.pid, Follow::Alone);
        host.open(&gate);
        wait_until("the daemon to end", PATIENCE, || web1.job_daemon(&id).is_none());
        let has_outcome = web1.spool(&id).join("outcome.json").exists();
        let struck = point.let_go();
        assert!(struck || has_outcome, "{at:?}: it lived, and wrote no outcome");
        host.assert_ended(&posted, if has_outcome { &["ok"] } else { &["lost"] }, at);
        struck
    });
    host.fleet.assert_no_leaks();
}

/// Who finds out that a job is lost is killed over it; the next who asks finds it out again.
#[test]
fn a_settlement_killed_at_any_step_is_made_by_the_next_who_asks() {
    let host = Host::new();
    let web1 = host.fleet.minion("web1");
    at_every_step(&SPAWNERS_KINDS, |at| {
        let (posted, id) = host.start_gated("never");
        let spawner = host.spawner();
        kill9(web1.job_daemon(&id).unwrap().pid);
        wait_until_dead(&web1.spool(&id));
        let point = at.wait_in(spawner, Follow::Children);
        let first = host.ask("jobs.status", json!([id]));
        let struck = point.let_go();
        assert!(struck || first["result"]["result"]["state"] == "lost", "{at:?}: {first}");
        let told = host.assert_ended(&posted, &["lost"], at);
        assert!(told["error"]["message"].as_str().unwrap().contains("job daemon was killed"), "{at:?}: {told}");
        assert!(host.fleet.running("never").is_empty(), "{at:?}: {:#?}", host.fleet.processes());
        struck
    });
    host.fleet.assert_no_leaks();
}

#[test]
fn a_cancellation_killed_at_any_step_on_the_host_can_be_repeated() {
    let host = Host::new();
    at_every_step(&SPAWNERS_KINDS, |at| {
        let (posted, id) = host.start_gated("never");
        let point = at.wait_in(host.spawner(), Follow::Children);
        let first = host.ask("jobs.cancel", json!([id]));
        let struck = point.let_go();
        assert!(struck || first["result"]["result"]["state"] == "cancelled", "{at:?}: {first}");
        let again = wait_for("the cancellation to be heard", PATIENCE, || {
            Some(host.ask("jobs.cancel", json!([id]))).filter(|again| again["result"]["result"]["state"] == "cancelled")
        });
        assert_eq!(again["result"]["result"]["error"]["data"]["by"], "admin", "{at:?}: {again}");
        host.assert_ended(&posted, &["cancelled"], at);
        struck
    });
    wait_until("what they ran to be gone", PATIENCE, || host.fleet.running("never").is_empty());
    host.fleet.assert_no_leaks();
}

/// The server is killed as it writes its store, its audit log or its answer, and started again.
#[test]
fn a_server_killed_at_any_step_knows_every_job_when_it_is_back() {
    let host = Host::new();
    let web1 = host.fleet.minion("web1");
    at_every_step(&SERVERS_KINDS, |at| {
        let before = host.start(&host.runs.note());
        let point = at.wait_in(web1.pid(), Follow::Children);
        let posted = host.start(&host.runs.note());
        if posted.reply["result"].is_object() {
            wait_until("its end, or the server's", PATIENCE, || {
                let report = host.ask("jobs.fence", json!([posted.call_id]));
                report.is_null() || report["result"]["result"]["state"] != "running"
            });
        }
        let struck = point.let_go();
        if struck {
            web1.kill9();
            web1.start();
        }
        for (job, states) in [(&before, &["ok"][..]), (&posted, if struck { &["ok", "undelivered"] } else { &["ok"] })] {
            host.assert_ended(job, states, at);
        }
        struck
    });
    host.fleet.assert_no_leaks();
}
