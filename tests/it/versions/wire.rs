//! What neighbouring versions say to each other: what is added is kept or passed over, what is not known is named.

use common::protocol::Envelope;
use fleet::{Fleet, raw};
use serde_json::{Value, json};

use super::NEWER;

#[test]
fn what_a_newer_overlord_adds_to_a_call_is_passed_over() {
    let fleet = Fleet::start(1);
    let client = fleet.raw_overlord("web1");
    let envelope: Envelope = raw::envelope("admin", "web1", "test.add", json!([23, 45]));
    let mut call = serde_json::to_value(&envelope).unwrap();
    call["trace"] = json!({ "id": 7 });
    call["priority"] = json!("high");
    let call = call.to_string();
    let mut request = raw::request(json!(1), "test.add", &call, &client.signature(&call));
    request["params"]["compression"] = json!("none");
    request["version"] = json!(NEWER);
    let answer = client.post_json(&request).unwrap();
    assert_eq!((&answer["result"]["state"], &answer["result"]["result"]), (&json!("ok"), &json!(68)), "{answer}");
}

#[test]
fn a_form_of_arguments_that_is_not_known_is_refused_and_the_version_named() {
    let fleet = Fleet::start(1);
    let client = fleet.raw_overlord("web1");
    let mut call = serde_json::to_value(raw::envelope("admin", "web1", "test.add", json!([]))).unwrap();
    call["args"] = json!({ "cbor": "o2Fh" });
    let call = call.to_string();
    let answer = client.post_json(&raw::request(json!(1), "test.add", &call, &client.signature(&call))).unwrap();
    let message = answer["error"]["message"].as_str().unwrap();
    let version = format!("web1, minion {}", env!("CARGO_PKG_VERSION"));
    assert!(message.contains(&version) && message.contains("unknown variant `cbor`"), "{answer}");
}

#[test]
fn a_method_that_a_host_does_not_have_is_an_error_that_says_what_to_do() {
    let fleet = Fleet::start(1);
    for words in [vec!["*", "test.fly"], vec!["*", "flying.start"]] {
        let run = fleet.overlord(&words).expect(2);
        let said = run.out() + &run.err();
        for part in [
            &format!("web1 runs minion {}", env!("CARGO_PKG_VERSION")),
            &format!("no method {}", words[1]),
            "upgrade web1",
            "overlord web1 system.list_methods",
        ] {
            assert!(said.contains(part), "{part:?}: {said}");
        }
    }
}

/// Two hosts, of which the first is of a newer version and answers what `answer` makes of each question.
fn with_newer(answer: impl Fn(&fleet::Question) -> Value + Send + Sync + 'static) -> (Fleet, fleet::Liar) {
    let fleet = Fleet::builder().hosts(2).stopped().start();
    fleet.minion("web2").start();
    let liar = fleet.liar("web1", move |question, answering| answering.result(question, &answer(question)));
    fleet.set_address("web1", &liar.address().to_string());
    (fleet, liar)
}

#[test]
fn a_state_that_is_not_known_is_told_of_that_host_alone() {
    let (fleet, _liar) = with_newer(|_| json!({ "state": "postponed", "until": "tomorrow" }));
    let run = fleet.overlord(["*", "test.ping", "--output", "json"]).expect(4);
    let hosts = &run.json()["hosts"];
    assert_eq!((&hosts["web1"]["state"], &hosts["web2"]["state"]), (&json!("lost"), &json!("ok")));
    let message = hosts["web1"]["error"]["message"].as_str().unwrap();
    let version = format!("overlord {}", env!("CARGO_PKG_VERSION"));
    for part in ["\"postponed\"", &version, "its minion is of a newer version", "upgrade the overlord"] {
        assert!(message.contains(part), "{part:?}: {message}");
    }
}

#[test]
fn a_state_of_a_job_that_is_not_known_is_a_note_beside_what_is() {
    let (fleet, liar) = with_newer(|question| {
        let id = minion_job_id(question);
        match question.method.as_str() {
            "jobs.status" => {
                let call_id = CALL.lock().unwrap().clone();
                let report = json!({
                    "minion_job_id": question.envelope["args"]["json"]["id"], "call_id": call_id, "caller": "admin", "method": "test.ping",
                    "accepted_at": "2026-01-01T00:00:00Z", "state": "postponed",
                });
                json!({ "state": "ok", "result": report })
            }
            _ => {
                *CALL.lock().unwrap() = question.envelope["call_id"].clone();
                json!({ "minion_job_id": id, "state": "queued", "repeated": false, "place": 3 })
            }
        }
    });
    let id = fleet.start_job(["*", "test.ping"]);
    let status = fleet::wait_for("web1 to be asked, and web2 to have ended", fleet::PATIENCE, || {
        let status = fleet.job_status(&id);
        let is_told = liar.asked().len() > 1 && status["hosts"]["web1"]["unreachable"].is_object();
        (is_told && status["hosts"]["web2"]["state"] == "ok").then_some(status)
    });
    assert_eq!((&status["hosts"]["web1"]["state"], &status["hosts"]["web2"]["state"]), (&json!("queued"), &json!("ok")), "{status}");
    let reason = status["hosts"]["web1"]["unreachable"]["reason"].as_str().unwrap();
    assert!(reason.contains("\"postponed\"") && reason.contains("its minion is of a newer version"), "{reason}");
}

/// The call that the only job of that test was sent by.
static CALL: std::sync::Mutex<Value> = std::sync::Mutex::new(Value::Null);

fn minion_job_id(question: &fleet::Question) -> Value {
    let call_id = question.envelope["call_id"].as_str().unwrap().parse().unwrap();
    json!(common::job::MinionJobId::derive(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &call_id))
}

#[test]
fn what_a_newer_minion_adds_to_an_outcome_is_kept_in_the_log() {
    let (fleet, _liar) = with_newer(|question| match question.method.as_str() {
        "async.test.ping" => json!({ "minion_job_id": minion_job_id(question), "state": "running", "repeated": false, "place": 3 }),
        _ => {
            let id = &question.envelope["args"]["json"]["id"];
            let job = KEPT.lock().unwrap().clone();
            let report = json!({
                "minion_job_id": id, "call_id": job, "caller": "admin", "method": "test.ping", "accepted_at": "2026-01-01T00:00:00Z",
                "state": "failed", "error": { "code": 77, "message": "no", "hint": "try harder" }, "usage": { "cpu_ms": 3 },
                "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:01Z",
            });
            json!({ "state": "ok", "result": report })
        }
    });
    let id = fleet.start_job(["*", "test.ping"]);
    *KEPT.lock().unwrap() = json!(id);
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["error"]["code"], 77, "{status}");
    let log = std::fs::read_to_string(fleet.home().join("jobs").join(format!("{id}.log"))).unwrap();
    let lines = log.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str::<Value>(line).unwrap()["body"].clone());
    let ended: Vec<Value> = lines.filter(|line| line["host"] == "web1" && line["news"] == "ended").collect();
    assert_eq!((&ended[0]["usage"]["cpu_ms"], &ended[0]["error"]["hint"]), (&json!(3), &json!("try harder")), "{ended:?}");
}

/// The job of that test.
static KEPT: std::sync::Mutex<Value> = std::sync::Mutex::new(Value::Null);
