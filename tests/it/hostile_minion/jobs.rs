//! Lies about jobs: that one was accepted, how far it is, that it was stopped.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::job::JobId;

use super::*;

/// Little patience with hosts.
const IMPATIENT: &str = "accept_timeout = \"1s\"\npoll_timeout = \"1s\"\n";
/// How long a command may take that asks all hosts once, and tells of lists.
const ASKED_WITHIN: Duration = Duration::from_secs(25);

/// Accepts the job as an honest minion does, and answers further questions with what `answer` gives for their number, from 0, and the job's id.
fn answers(name: &'static str, answer: impl Fn(usize, &str) -> Value + Send + Sync + 'static) -> (&'static str, Lie) {
    let (job, asked) = (Mutex::new(String::new()), AtomicUsize::new(0));
    let lie = lie(move |question, to| {
        if question.method.starts_with("async.") {
            *job.lock().unwrap() = question.envelope["call_id"].as_str().unwrap().to_owned();
            return to.result(question, &json!({ "minion_job_id": minion_job_id(question, name), "state": "queued", "repeated": false }));
        }
        let said = answer(asked.fetch_add(1, Ordering::Relaxed), &job.lock().unwrap());
        to.result(question, &said)
    });
    (name, lie)
}

/// What an honest minion would say of the job on `host` that it is asked about, but for `progress`.
fn report(host: &str, job: &str, progress: &Value) -> Value {
    let call_id = CallId::new(job.parse::<JobId>().unwrap(), 1);
    let id = MinionJobId::derive(&host.parse().unwrap(), &"admin".parse().unwrap(), &call_id);
    let mut report = json!({
        "minion_job_id": id, "call_id": call_id, "caller": "admin", "method": "test.ping", "accepted_at": "2026-01-01T00:00:00Z",
    });
    report.as_object_mut().unwrap().extend(progress.as_object().unwrap().clone());
    report
}

/// Starts a job on all hosts, and waits until its dispatcher is through, whose memory is bounded, too.
fn started(scene: &Scene) -> String {
    let id = scene.overlord(&["*", "test.ping", "--async"], ASKED_WITHIN).ok().out().trim().to_owned();
    let mut peak = 0;
    fleet::wait_until("the dispatcher to end", fleet::COMMAND_TIMEOUT, || {
        let dispatcher = scene.fleet.dispatcher(&id);
        peak = dispatcher.as_ref().and_then(fleet::Process::peak_bytes).unwrap_or_default().max(peak);
        dispatcher.is_none()
    });
    assert!(peak < MEMORY_MAX_BYTES, "the dispatcher took {} MiB", peak >> 20);
    id
}

fn status(scene: &Scene, id: &str) -> Value {
    let text = scene.overlord(&["job-status", id], ASKED_WITHIN);
    assert!(text.out().contains("web1,web2  ok (from "), "{}", text.out());
    let status = scene.overlord(&["job-status", id, "--output", "json"], ASKED_WITHIN).json();
    for honest in ["web1", "web2"] {
        assert_eq!(status["hosts"][honest]["state"], "ok", "{status}");
    }
    status
}

/// What is no acceptance leaves open whether the job runs there, until so much time has passed that it is lost.
#[test]
fn who_answers_a_job_with_what_is_no_acceptance_holds_it_perhaps() {
    let accepts = |id: fn(&Question) -> Value, state: &'static str| {
        says(move |question| json!({ "minion_job_id": id(question), "state": state, "repeated": false }))
    };
    let lies = [
        ("takes-web1s", accepts(|question| json!(minion_job_id(question, "web1")), "running")),
        ("takes-another", accepts(|_| json!("0000-0000-0001"), "queued")),
        ("takes-none", accepts(|_| json!(CONTROLS), "queued")),
        ("takes-mad", accepts(|question| json!(minion_job_id(question, "takes-mad")), "excellent")),
        ("says-outcome", says(|_| json!({ "state": "ok", "result": 1 }))),
    ];
    let scene = Scene::with(IMPATIENT, nonsense().into_iter().chain(lies).collect());
    let id = started(&scene);
    let first = status(&scene, &id);
    for (name, _) in &scene.liars {
        let host = &first["hosts"][*name];
        assert!(host["state"] == "pending" && host["minion_job_id"].is_null() && host.get("result").is_none(), "{name}: {host}");
        assert!(!host["unreachable"]["reason"].as_str().unwrap().is_empty(), "{name}: {host}");
    }
    let cancelled = scene.overlord(&["job-cancel", &id, "--output", "json"], 2 * ASKED_WITHIN).json();
    for (name, _) in &scene.liars {
        assert_eq!(cancelled["hosts"][*name]["told"], false, "{name}: {cancelled}");
    }
    let _ = scene.overlord(&["job-cancel", &id], 2 * ASKED_WITHIN);
    let _ = scene.overlord(&["job-list"], ASKED_WITHIN);
    scene.fleet.set_overlord_toml(&format!("{IMPATIENT}lost_after = \"1s\"\n"));
    let given_up = |status: &Value| scene.liars.iter().all(|(name, _)| status["hosts"][*name]["state"] == "lost");
    let last = fleet::wait_for("the liars to be lost", fleet::COMMAND_TIMEOUT, || Some(status(&scene, &id)).filter(given_up));
    for (name, _) in &scene.liars {
        assert_lost_or("lost", &last["hosts"], name);
    }
    assert_eq!(last["state"], "FINISHED");
}

/// What a host says of another job, or of none, is not this one's state.
#[test]
fn who_lies_about_a_job_it_holds_makes_up_no_state() {
    let bent = |name: &'static str, bend: fn(&mut Value)| {
        let ok = json!({ "state": "ok", "result": "made up" });
        answers(name, move |_, job| {
            let mut report = report(name, job, &ok);
            bend(&mut report);
            json!({ "state": "ok", "result": report })
        })
    };
    let lies = vec![
        bent("another-call", |report| report["call_id"] = json!("0000-0000-0000")),
        bent("another-attempt", |report| report["call_id"] = json!(format!("{}/2", report["call_id"].as_str().unwrap()))),
        bent("another-id", |report| report["minion_job_id"] = json!("0000-0000-0001")),
        bent("no-id", |report| report["minion_job_id"] = Value::Null),
        answers("no-report", |_, _| json!({ "state": "ok", "result": { "state": "ok", "result": "made up" } })),
        answers("no-outcome", |_, _| json!({ "state": "running" })),
        answers("list", |_, _| json!({ "state": "ok", "result": [] })),
    ];
    let scene = Scene::with(IMPATIENT, lies);
    let id = started(&scene);
    let status = status(&scene, &id);
    for (name, _) in &scene.liars {
        let host = &status["hosts"][*name];
        assert!(host["state"] == "queued" && host.get("result").is_none(), "{name}: {host}");
        assert!(!host["unreachable"]["reason"].as_str().unwrap().is_empty(), "{name}: {host}");
    }
    let cancelled = scene.overlord(&["job-cancel", &id, "--output", "json"], 2 * ASKED_WITHIN).json();
    for (name, _) in &scene.liars {
        assert_eq!(cancelled["hosts"][*name]["told"], false, "{name}: {cancelled}");
    }
}

/// Each says something else each time that it is asked.
#[test]
fn a_state_does_not_go_back_and_an_end_does_not_change() {
    let progress = |name: &'static str, progresses: Vec<Value>| {
        answers(name, move |number, job| {
            let progress = &progresses[number.min(progresses.len() - 1)];
            json!({ "state": "ok", "result": report(name, job, progress) })
        })
    };
    let running = json!({ "state": "running", "started_at": "9999-12-30T22:00:00Z" });
    let queued = json!({ "state": "queued" });
    let ok = json!({ "state": "ok", "result": 1, "finished_at": "9999-12-30T22:00:00.999999999Z" });
    let failed = json!({ "state": "failed", "error": { "code": 1, "message": CONTROLS, "data": CONTROLS }, "finished_at": "-009999-01-02T01:59:59Z" });
    let lies = vec![
        progress("goes-back", vec![running.clone(), queued.clone()]),
        progress("changes", vec![ok.clone(), failed.clone()]),
        progress("fails-first", vec![failed.clone(), ok.clone()]),
        progress("no-end", vec![json!({ "state": "failed" }), json!({ "state": "lost" })]),
        progress("is-pending", vec![json!({ "state": "pending" })]),
        progress("boasts", vec![json!({ "state": "running", "progress": { "done": 1e308, "of": -1, "note": CONTROLS } })]),
        progress(
            "exaggerates",
            vec![
                json!({ "state": "running", "progress": { "fraction": 1e308, "message": CONTROLS.repeat(1000), "at": "9999-12-30T22:00:00Z" } }),
            ],
        ),
    ];
    let scene = Scene::with(IMPATIENT, lies);
    let id = started(&scene);
    for _ in 0..3 {
        let hosts = status(&scene, &id)["hosts"].clone();
        for (name, state) in [
            ("goes-back", "running"),
            ("changes", "ok"),
            ("fails-first", "failed"),
            ("no-end", "queued"),
            ("is-pending", "queued"),
            ("boasts", "running"),
            ("exaggerates", "running"),
        ] {
            assert_eq!(hosts[name]["state"], state, "{name}: {}", hosts[name]);
        }
        assert!(hosts["no-end"]["unreachable"].is_object() && hosts["is-pending"]["unreachable"].is_object(), "{hosts}");
        assert!(hosts["boasts"]["progress"].is_null(), "{hosts}");
        let exaggerated = &hosts["exaggerates"]["progress"];
        assert_eq!((&exaggerated["fraction"], exaggerated["message"].as_str().unwrap().chars().count()), (&json!(1.0), 200), "{hosts}");
    }
    let cancelled = scene.overlord(&["job-cancel", &id, "--output", "json"], 2 * ASKED_WITHIN).json();
    assert_eq!(cancelled["hosts"]["no-end"]["told"], false, "{cancelled}");
    assert_eq!(cancelled["hosts"]["changes"]["state"], "ok", "{cancelled}");
}
