//! Lies about what jobs write.

use common::job::JobId;

use super::*;

/// What `jobs.logs` answers, but for what the test bends.
fn logs(host: &str, job: &str) -> Value {
    let call_id = CallId::new(job.parse::<JobId>().unwrap(), 1);
    let id = MinionJobId::derive(&host.parse().unwrap(), &"admin".parse().unwrap(), &call_id);
    let piece = json!({ "data": "", "next": 0, "size_bytes": 0 });
    json!({ "minion_job_id": id, "call_id": call_id, "state": "ok", "complete": true, "stdout": piece, "stderr": piece })
}

/// Accepts the job, and answers `jobs.logs` with what `bend` makes of an honest answer; it is given the question, too.
fn bent(name: &'static str, bend: impl Fn(&Question, &mut Value) + Send + Sync + 'static) -> (&'static str, Lie) {
    with_logs(name, move |question, job, to| {
        let mut logs = logs(name, job);
        bend(question, &mut logs);
        to.result(question, &json!({ "state": "ok", "result": logs }))
    })
}

fn with_logs(
    name: &'static str,
    answer: impl Fn(&Question, &str, &mut Answering) -> io::Result<()> + Send + Sync + 'static,
) -> (&'static str, Lie) {
    let job = std::sync::Mutex::new(String::new());
    let lie = lie(move |question, to| match question.method.as_str() {
        "jobs.logs" => {
            let job = job.lock().unwrap().clone();
            answer(question, &job, to)
        }
        "certs.revocations" => to.close(),
        _ => {
            *job.lock().unwrap() = question.envelope["call_id"].as_str().unwrap().to_owned();
            to.result(question, &json!({ "minion_job_id": minion_job_id(question, name), "state": "running", "repeated": false }))
        }
    });
    (name, lie)
}

fn lies() -> Vec<(&'static str, Lie)> {
    let from = |question: &Question| question.envelope["args"]["json"]["stdout"].as_u64().unwrap();
    let mut lies = vec![
        bent("goes-back", |_, logs| logs["stdout"] = json!({ "data": "abc", "next": 0, "size_bytes": 3 })),
        bent("leaps", |_, logs| logs["stdout"] = json!({ "data": "abc", "next": u64::MAX, "size_bytes": u64::MAX })),
        bent("negative", |_, logs| logs["stdout"]["next"] = json!(-1)),
        bent("another-job", |_, logs| logs["minion_job_id"] = json!("0000-0000-0001")),
        bent("another-call", |_, logs| logs["call_id"] = json!("0000-0000-0001")),
        bent("too-much", |_, logs| logs["stdout"] = json!({ "data": "x".repeat(300_000), "next": 300_000, "size_bytes": 300_000 })),
        bent("boasts", |_, logs| {
            (logs["complete"], logs["stdout"]) = (json!(false), json!({ "data": "", "next": 0, "size_bytes": u64::MAX }))
        }),
        bent("drips", move |question, logs| {
            (logs["complete"], logs["state"]) = (json!(false), json!("running"));
            sleep(Duration::from_millis(300));
            logs["stdout"] = json!({ "data": "x", "next": from(question) + 1, "size_bytes": u64::MAX });
        }),
        bent("steers", |_, logs| {
            logs["stdout"] = json!({ "data": CONTROLS, "next": CONTROLS.len(), "size_bytes": CONTROLS.len() });
            logs["stderr"] = json!({ "data": { "base64": "G1sySgAH" }, "next": 6, "size_bytes": 6 });
        }),
    ];
    for (name, lie) in nonsense() {
        lies.push(with_logs(name, move |question, _, to| lie(question, to)));
    }
    lies
}

/// With and without an end to wait for; what honest hosts wrote is there, and of liars what is wrong with them is said.
#[test]
fn what_a_liar_says_that_a_job_wrote_is_bounded_and_hides_no_other_hosts_output() {
    let scene = Scene::with("accept_timeout = \"1s\"\npoll_timeout = \"1s\"\nlost_after = \"3s\"\n", lies());
    let id = scene.fleet.start_job(["*", "command.run", "echo to stdout; echo to stderr >&2"]);
    fleet::wait_until("the dispatcher to end", fleet::COMMAND_TIMEOUT, || scene.fleet.dispatcher(&id).is_none());
    for args in [&["job-logs", &id] as &[&str], &["job-logs", &id, "--output", "jsonl"], &["job-logs", &id, "--output", "json"]] {
        let run = scene.overlord(args, Duration::from_secs(40)).expect(4);
        assert_eq!(run.out().matches("to stdout").count(), 2, "{}", run.out());
        assert!((run.out() + &run.err()).matches("to stderr").count() == 2, "{} {}", run.out(), run.err());
        let told = run.out() + &run.err();
        for (name, _) in scene.liars.iter().filter(|(name, _)| *name != "steers") {
            assert!(told.contains(name), "nothing is said of {name}: {told}");
        }
    }
}
