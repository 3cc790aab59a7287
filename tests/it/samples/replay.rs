//! What was recorded, read and answered by the present programs. Where a sample is not understood any more, or to another meaning, hosts and overlords of
//! that version are not understood either.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use certs::signature;
use common::job::{CallId, HostState};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::certs::{ENROLL, EnrollParams, EnrollReply, Issued, RENEW, Revocations};
use common::protocol::{ASYNC_PREFIX, Accepted, Arguments, CallParams, Envelope, JobList, JobLogs, JobProgress, JobReport};
use fleet::{Fleet, PATIENCE, raw, wait_for, wait_until};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{Exchange, label, versions};

/// What a sample is read to. All that it says is known, and said in the same words now; what was added since may stand beside it.
fn read<T: DeserializeOwned + Serialize>(what: &str, sample: &Value) -> T {
    let read = T::deserialize(sample).unwrap_or_else(|error| panic!("{what}: {error}: {sample}"));
    let now = word(&read);
    for (name, said) in sample.as_object().unwrap() {
        assert_eq!(now[name], *said, "{what}: {name} of {sample}");
    }
    read
}

fn word(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Every one of `fields` is what the sample says under that name; where it says nothing, it is nothing.
fn assert_says(what: &str, sample: &Value, fields: &[(&str, Value)]) {
    for (name, field) in fields {
        assert_eq!(*field, sample[*name], "{what}: {name} of {sample}");
    }
}

#[test]
fn every_recorded_request_is_read_to_what_it_says() {
    for version in versions() {
        let caller = CertificateDer::from_pem_file(version.join("caller.pem")).unwrap();
        let mut read_so_far = 0;
        for exchange in Exchange::all(&version.join("wire")) {
            let (name, request) = (&exchange.name, exchange.request());
            let Some(call) = exchange.call() else { continue };
            let params: CallParams = read(name, &request["params"]);
            signature::verify(&caller, &params.call, &params.signature).unwrap_or_else(|error| panic!("{name}: {error}"));
            let envelope: Envelope = read(name, &call);
            let args = match &envelope.args {
                Arguments::Words(words) => json!({ "words": words }),
                Arguments::Json(value) => json!({ "json": value }),
            };
            assert_says(
                name,
                &call,
                &[
                    ("call_id", word(&envelope.call_id)),
                    ("caller", word(&envelope.caller)),
                    ("audience", word(&envelope.audience)),
                    ("method", word(&envelope.method)),
                    ("args", args),
                    ("start_before", word(envelope.start_before)),
                    ("limit_ms", word(envelope.limit_ms)),
                ],
            );
            assert_eq!(request["method"], envelope.method.as_str(), "{name}");
            read_so_far += 1;
        }
        assert!(read_so_far >= 20, "{}: {read_so_far} requests", version.display());
    }
}

fn check_failure(name: &str, sample: &Value, failure: &Failure) {
    let Failure { code, message, data, more } = failure;
    assert_says(name, sample, &[("code", word(code)), ("message", word(message)), ("data", word(data))]);
    assert!(more.is_empty(), "{name}: {more:?} is not known any more");
}

fn check_outcome(name: &str, sample: &Value, outcome: &Outcome) {
    let Outcome { verdict, started_at, finished_at, more, .. } = outcome;
    assert_says(name, sample, &[("state", word(verdict.state())), ("started_at", word(started_at)), ("finished_at", word(finished_at))]);
    match verdict {
        Verdict::Ok { result } => assert_eq!(*result, sample["result"], "{name}"),
        bad => check_failure(name, &sample["error"], bad.error().unwrap()),
    }
    // What stands around a report that has ended is the report's.
    let known = ["minion_job_id", "call_id", "caller", "method", "accepted_at"];
    assert!(more.names().all(|field| known.contains(&field)), "{name}: {more:?} is not known any more");
}

fn check_report(name: &str, sample: &Value) {
    let JobReport { minion_job_id, call_id, caller, method, accepted_at, progress } = read(name, sample);
    assert_says(
        name,
        sample,
        &[
            ("minion_job_id", word(minion_job_id)),
            ("call_id", word(call_id)),
            ("caller", word(caller)),
            ("method", word(method)),
            ("accepted_at", word(accepted_at)),
        ],
    );
    match progress {
        JobProgress::Ended(outcome) => check_outcome(name, sample, &outcome),
        JobProgress::Going { state, started_at, .. } => {
            assert_says(name, sample, &[("state", word(state)), ("started_at", word(started_at))]);
        }
    }
}

fn check_logs(name: &str, sample: &Value) {
    let logs: JobLogs = read(name, sample);
    assert_says(
        name,
        sample,
        &[
            ("minion_job_id", word(&logs.minion_job_id)),
            ("call_id", word(&logs.call_id)),
            ("state", word(logs.state)),
            ("complete", word(logs.complete)),
        ],
    );
    for (stream, piece) in [("stdout", &logs.stdout), ("stderr", &logs.stderr)] {
        assert_says(
            name,
            &sample[stream],
            &[("data", piece.data.clone()), ("next", word(piece.next)), ("size_bytes", word(piece.size_bytes))],
        );
    }
}

fn check_list(name: &str, sample: &Value) {
    let list: JobList = read(name, sample);
    assert_eq!((word(list.more), list.jobs.len()), (sample["more"].clone(), sample["jobs"].as_array().unwrap().len()), "{name}");
    for (job, sample) in list.jobs.iter().zip(sample["jobs"].as_array().unwrap()) {
        assert_says(
            name,
            sample,
            &[
                ("minion_job_id", word(&job.minion_job_id)),
                ("call_id", word(&job.call_id)),
                ("caller", word(&job.caller)),
                ("method", word(&job.method)),
                ("accepted_at", word(job.accepted_at)),
                ("state", word(job.state)),
            ],
        );
    }
}

#[test]
fn every_recorded_answer_is_read_to_what_it_says() {
    for version in versions() {
        for exchange in Exchange::all(&version.join("wire")) {
            let (name, answer) = (&exchange.name, exchange.answer());
            let Some(method) = exchange.request()["method"].as_str().map(str::to_owned) else { continue };
            if answer["error"].is_object() {
                check_failure(name, &answer["error"], &read(name, &answer["error"]));
            } else if method.starts_with(ASYNC_PREFIX) {
                let Accepted { minion_job_id, state, repeated } = read(name, &answer["result"]);
                let fields = [("minion_job_id", word(minion_job_id)), ("state", word(state)), ("repeated", word(repeated))];
                assert_says(name, &answer["result"], &fields);
            } else {
                check_outcome(name, &answer["result"], &read(name, &answer["result"]));
                let result = &answer["result"]["result"];
                match method.as_str() {
                    _ if answer["result"]["state"] != "ok" => {}
                    "jobs.status" | "jobs.cancel" | "jobs.delete" | "jobs.fence" => check_report(name, result),
                    "jobs.logs" => check_logs(name, result),
                    "jobs.list" => check_list(name, result),
                    "certs.revocations" => check_revocations(name, result),
                    _ => {}
                }
            }
        }
    }
}

fn check_revocations(name: &str, sample: &Value) {
    let Revocations { number, crl } = read(name, sample);
    assert_says(name, sample, &[("number", word(number)), ("crl", word(crl))]);
}

fn check_issued(name: &str, sample: &Value) {
    let Issued { cert, revocations } = read(name, sample);
    assert_eq!(sample["cert"], cert, "{name}");
    check_revocations(name, &sample["revocations"]);
    assert_eq!(word(revocations.number), sample["revocations"]["number"], "{name}");
}

#[test]
fn what_enrolling_says_is_read_and_answered() {
    for version in versions() {
        let fleet = Fleet::builder().unenrolled().start();
        let authority = fleet.serve_certs();
        let stranger = raw::Client::stranger(authority.address(), "authority");
        for exchange in Exchange::all(&version.join("authority")) {
            let (name, request, answer) = (&exchange.name, exchange.request(), exchange.answer());
            let result = &answer["result"];
            match request["method"].as_str().unwrap() {
                _ if answer["error"].is_object() => check_failure(name, &answer["error"], &read(name, &answer["error"])),
                ENROLL => match read(name, result) {
                    EnrollReply::Issued(_) => {
                        let mut issued = result.clone();
                        issued.as_object_mut().unwrap().remove("state");
                        check_issued(name, &issued);
                    }
                    EnrollReply::Waiting { key, since } => assert_says(name, result, &[("key", word(key)), ("since", word(since))]),
                    EnrollReply::Rejected { at } => assert_says(name, result, &[("at", word(at))]),
                },
                RENEW => check_issued(name, result),
                _ => check_revocations(name, result),
            }
            if request["method"] == ENROLL {
                let params: EnrollParams = read(name, &request["params"]);
                let fields = [("name", word(params.name)), ("csr", word(params.csr)), ("token", word(&params.token))];
                assert_says(name, &request["params"], &fields);
                let now: Value = serde_json::from_slice(&stranger.post(&exchange.request).unwrap().body).unwrap();
                let what = if params.token.is_some() { label(ENROLL, &answer) } else { format!("{ENROLL}.waiting") };
                assert_eq!(label(ENROLL, &now), what, "{name}: {now}");
            }
        }
    }
}

/// The folders of jobs of a version, in place of what a host has.
fn place_spools(version: &Path, spools: &Path) {
    for entry in fs::read_dir(version.join("spool")).unwrap().flatten() {
        let to = spools.join(entry.file_name());
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(entry.path()).unwrap().flatten() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

/// A host as that version has left it, with its jobs in its spools, of which one still waits.
fn host_of(version: &Path) -> Fleet {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    place_spools(version, &fleet.minion("web1").spools_dir());
    fleet.minion("web1").start();
    fleet
}

/// The reports that were recorded of jobs that had ended, by the job's id on its host.
fn ended_reports(version: &Path) -> BTreeMap<String, Value> {
    let answers = Exchange::all(&version.join("wire")).into_iter().filter(|exchange| exchange.name.starts_with("jobs."));
    let reports = answers.map(|exchange| exchange.answer()["result"]["result"].clone()).filter(|report| report["finished_at"].is_string());
    reports.map(|report| (report["minion_job_id"].as_str().unwrap().to_owned(), report)).collect()
}

#[test]
fn the_jobs_in_the_spools_of_a_version_are_known_and_what_waits_runs_once() {
    for version in versions() {
        let fleet = host_of(&version);
        let client = fleet.raw_overlord("web1");
        let status = |id: &str| {
            client.call(&raw::envelope("admin", "web1", "jobs.status", json!({ "id": id }))).unwrap()["result"]["result"].clone()
        };
        let reports = ended_reports(&version);
        let (mut known, mut lost, mut ran) = (0, 0, 0);
        for id in fleet.minion("web1").spools() {
            let folder = version.join("spool").join(&id);
            if folder.join("outcome.json").exists() {
                let now = status(&id);
                let outcome: Value = serde_json::from_slice(&fs::read(folder.join("outcome.json")).unwrap()).unwrap();
                for field in ["state", "result", "error", "started_at", "finished_at"] {
                    assert_eq!(now[field], outcome["body"][field], "{field} of {id}");
                }
                if let Some(report) = reports.get(&id) {
                    assert_eq!(now, *report, "{id}");
                    known += 1;
                }
            } else if fs::read(folder.join("lock")).unwrap().is_empty() {
                let end = wait_for("what waited to have run", PATIENCE, || Some(status(&id)).filter(|now| now["finished_at"].is_string()));
                assert_eq!((&end["state"], &end["result"]), (&json!("ok"), &json!(3)), "{id}: {end}");
                ran += 1;
            } else {
                // Right after a start it may still be called running, while somebody settles it.
                wait_until("its end to be told", PATIENCE, || status(&id)["state"] == "lost");
                lost += 1;
            }
        }
        assert!(known >= 1 && lost >= 1 && ran >= 1, "{}: {known} known, {lost} lost, {ran} ran", version.display());
    }
}

#[test]
fn a_minion_answers_what_an_overlord_of_a_version_asked() {
    for version in versions() {
        let fleet = host_of(&version);
        let denied =
            "[[allow]]\ncaller = \"*\"\nmethods = [\"test.*\", \"command.run\", \"jobs.*\", \"system.*\", \"certs.*\", \"flying.*\"]\n";
        fleet.minion("web1").set_acl(denied);
        let client = fleet.raw_overlord("web1");
        wait_until("the rules to hold", PATIENCE, || {
            client.call(&raw::envelope("admin", "web1", "command.exists", json!(["sh"]))).unwrap()["error"]["code"] == -32001
        });
        let mut exchanges = Exchange::all(&version.join("wire"));
        // What forgets a job comes last.
        exchanges.sort_by_key(|exchange| exchange.name.starts_with("jobs.delete"));
        for exchange in exchanges {
            let (name, mut request) = (&exchange.name, exchange.request());
            let Some(mut call) = exchange.call() else {
                let now: Value = serde_json::from_slice(&client.post(&exchange.request).unwrap().body).unwrap();
                assert_eq!(now["error"]["code"], exchange.answer()["error"]["code"], "{name}: {now}");
                continue;
            };
            // The words of then, in time and signed by who is believed here.
            call["start_before"] = word(Timestamp::now() + SignedDuration::from_mins(1));
            if call["method"].as_str().is_some_and(|method| method.starts_with(ASYNC_PREFIX)) {
                call["call_id"] = word(CallId::new(common::job::JobId::new(Timestamp::now(), 7), 1));
            }
            let call = call.to_string();
            request["params"]["signature"] = word(client.signature(&call));
            request["params"]["call"] = word(call);
            let now = client.post_json(&request).unwrap();
            assert!(is_like(&now, &exchange.answer()), "{name}: {now} is not like {}", exchange.answer());
        }
    }
}

/// The same kind of answer: a refusal with the same code, or an outcome of the same state. A job is further by now, or may be forgotten.
fn is_like(now: &Value, then: &Value) -> bool {
    let code = |answer: &Value| answer["error"]["code"].as_i64();
    let state = |answer: &Value| serde_json::from_value::<HostState>(answer["result"]["state"].clone()).ok();
    match (code(then), state(then)) {
        (Some(code_then), _) if code_then == ErrorCode::TooEarly as i64 => state(now) == Some(HostState::Ok) || code(now) == code(then),
        (Some(_), _) => code(now) == code(then),
        // An acceptance: the call is another one now.
        (None, Some(_)) if then["result"]["repeated"].is_boolean() => now["result"]["repeated"] == false && state(now).is_some(),
        (None, Some(then)) => state(now).is_some_and(|now| now == then || !then.is_final()),
        (None, None) => false,
    }
}

/// Whether `now` says all that was said `then`: fields are added, never renamed.
fn says_all_of(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(name, then)| now.get(name).is_some_and(|now| says_all_of(now, then)))
        }
        _ => now == then,
    }
}

#[test]
fn the_job_logs_of_a_version_say_what_they_said() {
    for version in versions() {
        let fleet = Fleet::builder().hosts(1).stopped().start();
        let jobs = fleet.home().join("jobs");
        fs::create_dir_all(&jobs).unwrap();
        let mut said = 0;
        for entry in fs::read_dir(version.join("jobs")).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                fs::copy(&path, jobs.join(entry.file_name())).unwrap();
            }
        }
        for entry in fs::read_dir(version.join("jobs")).unwrap().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let then: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                let run = fleet.overlord(["job-status", then["job_id"].as_str().unwrap(), "--output", "json"]);
                assert!(says_all_of(&run.json(), &then) && run.err().is_empty(), "{}: {} {}", path.display(), run.json(), run.err());
                said += 1;
            }
        }
        assert!(said >= 4, "{}: {said} logs", version.display());
    }
}
