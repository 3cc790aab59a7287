//! Power cuts: nothing is acknowledged before it is on the disk. Shown by the order of system calls: what was not synced before the
//! acknowledgement could be gone after a cut just behind it.

use std::fs;

use common::seal;
use fleet::raw::envelope;
use fleet::{Call, Fleet, Minion, PATIENCE, Trace, wait_for, wait_until};
use serde_json::{Value, json};

use super::{kill9, wait_until_dead};

/// One host, and a command that waits for a gate.
struct Host {
    fleet: Fleet,
}

impl Host {
    fn new(minion_toml: &str) -> Self {
        let host = Self { fleet: Fleet::builder().hosts(1).minion_toml(minion_toml).start() };
        host.wait_until_open();
        host
    }

    /// A server that has just started lets jobs wait until it has looked at its spools.
    fn wait_until_open(&self) {
        let first = self.ask("async.test.ping", json!([]));
        self.wait_for_end(first["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{first}")));
    }

    fn web1(&self) -> &Minion {
        self.fleet.minion("web1")
    }

    fn ask(&self, method: &str, args: Value) -> Value {
        self.fleet.raw_overlord("web1").call(&envelope("admin", "web1", method, args)).unwrap()
    }

    /// Starts a job, which must come to be `state`, and gives its id on the host.
    fn start(&self, line: &str, state: &str) -> String {
        let accepted = self.ask("async.command.run", json!([line]));
        assert_eq!(accepted["result"]["state"], state, "{accepted}");
        accepted["result"]["minion_job_id"].as_str().unwrap().to_owned()
    }

    /// A job that runs until the gate is opened, and has the only place if there is one.
    fn start_gated(&self) -> String {
        let accepted = self.ask("async.command.run", json!([self.gated()]));
        let id = accepted["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned();
        // Right after the end of another job that one may still have the place.
        wait_until("the job to start", PATIENCE, || self.ask("jobs.status", json!([id]))["result"]["result"]["state"] == "running");
        id
    }

    fn gated(&self) -> String {
        format!("while [ ! -e {} ]; do sleep 0.02; done", self.fleet.root().join("gate").display())
    }

    fn open_gate(&self) {
        fs::write(self.fleet.root().join("gate"), "").unwrap();
    }

    fn wait_for_end(&self, id: &str) {
        wait_until("the job to end", PATIENCE, || self.ask("jobs.status", json!([id]))["result"]["result"]["state"] == "ok");
    }

    /// A file of a job's spool, or the spool itself, as the trace names it.
    fn path(&self, id: &str, file: &str) -> String {
        let path = self.web1().spool(id).join(file).display().to_string();
        path.trim_end_matches('/').to_owned()
    }

    /// The server has answered nobody between its order to the root side, which has `order` in it, and the reply to that; and then it has.
    fn assert_answered_after(&self, trace: &Trace, order: &str, reply: &Call) {
        let ordered = trace.first("gave the order", |call| is_to_other_side(call) && call.says(order));
        let to_caller = format!("TCP:[{}->", self.web1().address());
        let answers: Vec<usize> = trace
            .calls()
            .iter()
            .filter(|call| call.is_write() && call.began > ordered.began)
            .filter_map(|call| call.file().is_some_and(|file| file.starts_with(&to_caller)).then_some(call.began))
            .collect();
        assert!(!answers.is_empty(), "the server's answer is not in the record:\n{}", trace.shown());
        assert!(answers.iter().all(|answer| *answer > reply.began), "answered at {answers:?}, before {}:\n{}", reply.began, trace.shown());
    }
}

fn is_to_other_side(call: &Call) -> bool {
    call.file().is_some_and(|file| file.starts_with("UNIX"))
}

/// What a process of the root side says to the server.
fn reply<'t>(trace: &'t Trace, word: &str) -> &'t Call {
    trace.first(&format!("said {word}"), |call| is_to_other_side(call) && call.texts().iter().any(|text| text.starts_with(word)))
}

/// The call by which the job daemon marks the start, and the one by which it then makes the method's process.
fn mark_and_fork<'t>(trace: &'t Trace, lock: &str) -> (&'t Call, &'t Call) {
    let mark = trace.first("marked the start", |call| call.is_write() && call.file() == Some(lock));
    let fork = trace.first("forked the method", |call| call.is_fork() && call.thread == mark.thread);
    assert!(mark.ended < fork.began, "the method is forked at {}, before its mark at {}:\n{}", fork.began, mark.began, trace.shown());
    (mark, fork)
}

#[test]
fn a_job_is_on_disk_before_the_overlord_prints_its_id() {
    let fleet = Fleet::start(1);
    let (run, trace) = fleet.overlord_traced(["*", "test.ping", "--async"]);
    let run = run.ok();
    let id = run.out().trim().to_owned();
    let log = fleet.home().join("jobs").join(format!("{id}.log")).display().to_string();
    let told = trace.first("told the command the id", |call| call.says(&id) && call.file().is_some_and(|file| file.starts_with("pipe:")));
    let printed = trace.first("printed the id", |call| call.says(&id) && call.args.starts_with("1<"));
    assert!(told.thread != printed.thread && told.began < printed.began, "{}", trace.shown());
    let header = trace.first("wrote the log's first line", |call| call.file() == Some(&log) && call.says("\"created\""));
    assert!(header.ended < told.began, "{}", trace.shown());
    // Its folder is new too, and must be there for it.
    trace.assert_durable(&log, told.began);
}

#[test]
fn a_job_that_starts_at_once_is_on_disk_before_its_acceptance() {
    let host = Host::new("");
    let recorder = host.web1().record();
    let id = host.start("true", "running");
    host.wait_for_end(&id);
    let trace = recorder.finish();
    let started = reply(&trace, "{\"started\":");
    let request =
        trace.first("wrote the request", |call| call.says(&id) && call.file().is_some_and(|file| file.ends_with("/request.json")));
    assert!(request.ended < started.began, "{}", trace.shown());
    trace.assert_durable_as_named(&host.path(&id, ""), started.began);
    // The request itself, which is synced, says that it starts in this boot: so its mark need not be waited for, but must be there.
    let (mark, _fork) = mark_and_fork(&trace, &host.path(&id, "lock"));
    assert!(mark.ended < started.began, "{}", trace.shown());
    host.assert_answered_after(&trace, "{\"start\":", started);
}

#[test]
fn a_job_that_waits_is_on_disk_before_its_acceptance() {
    let host = Host::new("[limits]\njobs_max = 1\n");
    let _first = host.start_gated();
    let recorder = host.web1().record();
    let id = host.start("true", "queued");
    let trace = recorder.finish();
    let done = reply(&trace, "\"done\"");
    let request =
        trace.first("wrote the request", |call| call.says(&id) && call.file().is_some_and(|file| file.ends_with("/request.json")));
    assert!(request.ended < done.began, "{}", trace.shown());
    trace.assert_durable(&host.path(&id, ""), done.began);
    host.assert_answered_after(&trace, "{\"enqueue\":", done);
}

/// Nothing else would say after a power cut that it had started.
#[test]
fn the_mark_of_a_job_that_waited_is_on_disk_before_its_method_is_forked() {
    let host = Host::new("[limits]\njobs_max = 1\n");
    let first = host.start_gated();
    let id = host.start("true", "queued");
    let recorder = host.web1().record();
    host.open_gate();
    host.wait_for_end(&first);
    host.wait_for_end(&id);
    let trace = recorder.finish();
    let lock = host.path(&id, "lock");
    let (_mark, fork) = mark_and_fork(&trace, &lock);
    trace.assert_content_durable(&lock, fork.began);
    trace.assert_content_durable(&lock, reply(&trace, "{\"started\":").began);
}

/// The mark of a job that started at once is not waited for. What a power cut leaves without it, in whatever the disk had taken of the rest,
/// is a job that may have run.
#[test]
fn a_job_whose_mark_a_power_cut_took_is_never_said_not_to_have_started() {
    for kept in [&["stdout", "stderr"][..], &["stderr"], &[]] {
        let host = Host::new("");
        let id = host.start(&host.gated(), "running");
        let spool = host.web1().spool(&id);
        kill9(host.web1().job_daemon(&id).unwrap().pid);
        wait_until_dead(&spool);
        host.web1().kill9();
        fs::write(spool.join("lock"), "").unwrap();
        for file in ["stdout", "stderr"].iter().filter(|file| !kept.contains(file)) {
            fs::remove_file(spool.join(file)).unwrap();
        }
        let _gone = fs::remove_file(spool.join("outcome.json"));
        let request: Value = seal::open(&fs::read(spool.join("request.json")).unwrap()).unwrap();
        assert_eq!(request["starts_at_once"], true, "the request stands for the mark: {request}");
        fs::remove_dir_all(host.web1().state_dir().join("status.sled")).unwrap();
        host.web1().start();
        let told = wait_for("the end to be told", PATIENCE, || {
            let told = host.ask("jobs.status", json!([id]));
            (!["running", "queued"].map(Value::from).contains(&told["result"]["result"]["state"])).then_some(told)
        });
        let report = &told["result"]["result"];
        let why = report["error"]["message"].as_str().unwrap_or_default();
        assert!(report["state"] == "lost" && why.contains("whether it has run is not known"), "with {kept:?}: {told}");
    }
}

/// A job that ran to its end, and what it asked of the kernel; until the server has been told of the end.
fn ended_job() -> (Host, String, Trace) {
    let host = Host::new("");
    let recorder = host.web1().record();
    let id = host.start("echo out; echo err >&2", "running");
    wait_until("the server to be told of the end", PATIENCE, || recorder.trace().find(|call| is_poke(call, &id)).is_some());
    (host, id, recorder.finish())
}

fn is_poke(call: &Call, id: &str) -> bool {
    // By the descriptor of what it has opened, so that no link leads it elsewhere.
    call.says(id) && call.args.contains("sun_path=\"/proc/self/fd/")
}

#[test]
fn an_outcome_is_on_disk_before_the_server_is_told_of_it() {
    let (host, id, trace) = ended_job();
    let poke = trace.first("told the server", |call| is_poke(call, &id));
    let outcome = host.path(&id, "outcome.json");
    let named = trace.first("gave the outcome its name", |call| call.name.starts_with("rename") && call.texts().contains(&outcome));
    assert!(named.ended < poke.began, "{}", trace.shown());
    trace.assert_durable(&outcome, poke.began);
}

/// What the job has printed is part of its end: an outcome beside files that a power cut has emptied would be an untrue answer.
#[test]
fn the_output_of_a_job_is_on_disk_before_its_outcome_has_its_name() {
    let (host, id, trace) = ended_job();
    let outcome = host.path(&id, "outcome.json");
    let named = trace.first("gave the outcome its name", |call| call.name.starts_with("rename") && call.texts().contains(&outcome));
    let poke = trace.first("told the server", |call| is_poke(call, &id));
    for (stream, printed) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let file = host.path(&id, stream);
        let _kept = trace.first("kept what was printed", |call| call.file() == Some(&file) && call.says(printed));
        trace.assert_content_durable(&file, named.began);
        trace.assert_durable(&file, poke.began);
    }
}

#[test]
fn a_fence_is_on_disk_before_it_is_told() {
    let host = Host::new("");
    let recorder = host.web1().record();
    let never_sent = envelope("admin", "web1", "async.test.ping", json!([]));
    let fenced = host.ask("jobs.fence", json!([never_sent.call_id]));
    let trace = recorder.finish();
    assert_eq!(fenced["result"]["result"]["state"], "undelivered", "{fenced}");
    let id = fenced["result"]["result"]["minion_job_id"].as_str().unwrap();
    let done = reply(&trace, "\"done\"");
    let _why = trace.first("wrote why it never starts", |call| {
        call.file().is_some_and(|file| file.ends_with("/outcome.json")) && call.says("undelivered")
    });
    trace.assert_durable(&host.path(id, ""), done.began);
    host.assert_answered_after(&trace, "{\"tell\":", done);
}

#[test]
fn the_wish_to_cancel_is_on_disk_before_it_is_told() {
    let host = Host::new("[limits]\ncancel_grace = \"200ms\"\n");
    let id = host.start_gated();
    let recorder = host.web1().record();
    let cancelled = host.ask("jobs.cancel", json!([id]));
    let trace = recorder.finish();
    assert_eq!(cancelled["result"]["result"]["state"], "cancelled", "{cancelled}");
    let done = reply(&trace, "\"done\"");
    let wish = host.path(&id, "cancel.json");
    let named = trace.first("gave the wish its name", |call| call.name.starts_with("rename") && call.texts().contains(&wish));
    assert!(named.ended < done.began, "{}", trace.shown());
    trace.assert_durable(&wish, done.began);
    host.assert_answered_after(&trace, "{\"tell\":", done);
}

/// Else a call that was given up could come again after a power cut, and start a second time.
#[test]
fn that_a_job_is_forgotten_is_on_disk_before_its_spool_goes() {
    let host = Host::new("");
    let mut job = envelope("admin", "web1", "async.test.ping", json!([]));
    job.start_before = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let accepted = host.fleet.raw_overlord("web1").call(&job).unwrap();
    let id = accepted["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned();
    host.wait_for_end(&id);
    let recorder = host.web1().record();
    let deleted = wait_for("its call to be too late", PATIENCE, || {
        Some(host.ask("jobs.delete", json!([id]))).filter(|deleted| deleted["result"].is_object())
    });
    let trace = recorder.finish();
    assert_eq!(deleted["result"]["result"]["state"], "ok", "{deleted}");
    let spool = host.path(&id, "");
    let is_of_spool = |path: &str| path.starts_with(&spool) || path.contains("/.gone-");
    let first = trace.first("took anything away", |call| call.takes_away().is_some_and(|path| is_of_spool(&path)));
    let forgotten = host.web1().spools_dir().join("forgotten.json").display().to_string();
    let named = trace.first("wrote that it is forgotten", |call| call.name.starts_with("rename") && call.texts().contains(&forgotten));
    assert!(named.ended < first.began, "{}", trace.shown());
    trace.assert_durable(&forgotten, first.began);
}

/// What was printed as final is read again for ever, though the host may be gone by then.
#[test]
fn what_a_host_said_is_on_disk_before_job_status_prints_it() {
    for options in [&["--output", "json"][..], &["--wait", "--output", "jsonl"], &["--wait"]] {
        let fleet = Fleet::start(1);
        let id = fleet.start_job(["*", "test.add", "23", "45"]);
        wait_until("the job to end", PATIENCE, || {
            let web1 = fleet.minion("web1");
            web1.spools().first().is_some_and(|spool| web1.spool(spool).join("outcome.json").exists())
        });
        wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
        let (run, trace) = fleet.overlord_traced([&["job-status", &id], options].concat());
        let run = run.ok();
        assert!(run.out().contains("68"), "{}", run.out());
        let log = fleet.home().join("jobs").join(format!("{id}.log")).display().to_string();
        let printed = trace.first("printed the result", |call| call.args.starts_with("1<") && call.says("68"));
        let heard = trace.first("wrote the result down", |call| call.file() == Some(&log) && call.says("\"result\":68"));
        assert!(heard.ended < printed.began, "{options:?}: {}", trace.shown());
        trace.assert_durable(&log, printed.began);
    }
}
