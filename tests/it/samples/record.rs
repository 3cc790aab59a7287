//! Recording what this version says and writes: `FLEET_RECORD=1 cargo test -p fleet --test it -- samples::record`. Without that variable it records into a
//! folder that is thrown away, so that the recorder itself stays sound.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use certs::csr::{make_key, write_csr};
use common::identity::MinionName;
use common::protocol::certs::{ENROLL, EnrollParams, RENEW, REVOCATIONS, RevocationsParams};
use fleet::{Fleet, PATIENCE, raw, wait_for, wait_until};
use serde_json::{Value, json};

use super::{label, samples};

/// What was said, by its label; of several the first.
type Said = Arc<Mutex<BTreeMap<String, (Vec<u8>, Vec<u8>)>>>;

/// Everyone may do everything, but for one method.
const RULES: &str =
    "[[allow]]\ncaller = \"*\"\nmethods = [\"test.*\", \"command.run\", \"jobs.*\", \"system.*\", \"certs.*\", \"flying.*\"]\n";

#[test]
fn record() {
    let kept = std::env::var_os("FLEET_RECORD").is_some();
    let thrown_away = tempfile::tempdir().unwrap();
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0;
    let out = if kept { samples().join(version) } else { thrown_away.path().join(version) };
    if out.exists() {
        fs::remove_dir_all(&out).unwrap();
    }
    for folder in ["wire", "spool", "jobs", "authority"] {
        fs::create_dir_all(out.join(folder)).unwrap();
    }
    // One job at a time, so that another waits.
    let fleet = Fleet::builder().hosts(1).acl(RULES).minion_toml("[limits]\njobs_max = 1\n").start();
    let said = Said::default();
    let heard = Arc::clone(&said);
    let relay = fleet.relay("web1", move |question, answer| {
        let read: Value = serde_json::from_slice(answer).unwrap();
        let name = label(&question.method, &read);
        heard.lock().unwrap().entry(name).or_insert_with(|| (question.body.clone(), answer.to_vec()));
    });
    fleet.set_address("web1", &relay.address().to_string());
    calls(&fleet, &said);
    jobs(&fleet, &out);
    for (name, (request, answer)) in said.lock().unwrap().iter() {
        fs::write(out.join("wire").join(format!("{name}.request.json")), request).unwrap();
        fs::write(out.join("wire").join(format!("{name}.answer.json")), answer).unwrap();
    }
    enrolment(&out.join("authority"));
    fs::copy(fleet.home().join("certs/overlord.pem"), out.join("caller.pem")).unwrap();
}

/// Synchronous calls and refusals.
fn calls(fleet: &Fleet, said: &Said) {
    for words in [
        vec!["*", "test.ping"],
        vec!["*", "test.add", "23", "45"],
        vec!["*", "test.add", "--json", "[23,45]"],
        vec!["*", "test.add", "x"],
        vec!["*", "test.fly"],
        vec!["*", "flying.start"],
        vec!["*", "command.exists", "sh"],
        vec!["*", "command.run", "echo out; echo err >&2; exit 3"],
        vec!["*", "command.run", "sleep 60", "--timeout", "200ms"],
        vec!["*", "system.list_modules"],
        vec!["*", "certs.revocations"],
        vec!["*", "jobs.status", "0000-0000-0001"],
        vec!["*", "jobs.fence", "54k2-9xqd-4fz1"],
        vec!["*", "jobs.list"],
    ] {
        let _ = fleet.overlord(words);
    }
    // What no overlord of ours says.
    let client = fleet.raw_overlord("web1");
    let batch = |name: &str, request: Value| {
        let body = request.to_string().into_bytes();
        let answer = client.post(&body).unwrap().body;
        said.lock().unwrap().insert(name.to_owned(), (body, answer));
    };
    let call = |audience: &str| client.signed(json!(1), &raw::envelope("admin", audience, "test.ping", json!([])));
    batch("batch.refused", json!([call("web1"), call("web1")]));
    batch("test.ping.of-another-host", call("web2"));
}

/// Jobs, from their acceptance to their end.
fn jobs(fleet: &Fleet, out: &Path) {
    let web1 = fleet.minion("web1");
    let minion_id = |job: &str| -> String {
        wait_for("the job to be accepted", PATIENCE, || fleet.job_status(job)["hosts"]["web1"]["minion_job_id"].as_str().map(str::to_owned))
    };
    let keep_spool = |id: &str| copy_files(&web1.spool(id), &out.join("spool").join(id));
    let state = |job: &str| fleet.job_status(job)["hosts"]["web1"]["state"].clone();

    let added = fleet.start_job(["*", "test.add", "23", "45"]);
    let failed = fleet.start_job(["*", "command.run", "echo out; echo err >&2; printf '\\377'; exit 3"]);
    for job in [&added, &failed] {
        fleet.wait_for_state(job, "FINISHED");
        keep_spool(&minion_id(job));
    }
    let _ = fleet.overlord(["job-logs", &failed]);
    let _ = fleet.overlord(["job-delete", &added]);
    let running = fleet.start_job(["*", "command.run", "echo begun; sleep 600"]);
    let waiting = fleet.start_job(["*", "test.add", "1", "2"]);
    let ids = [minion_id(&running), minion_id(&waiting)];
    wait_until("the first to run, and the second to wait", PATIENCE, || state(&running) == "running" && state(&waiting) == "queued");
    wait_until("its output to be there", PATIENCE, || fs::read(web1.spool(&ids[0]).join("stdout")).is_ok_and(|text| text == b"begun\n"));
    let _ = fleet.overlord(["job-logs", &running]);
    ids.iter().for_each(|id| keep_spool(id));
    let cancelled = fleet.start_job(["*", "command.run", "echo begun; sleep 600"]);
    let cancelled_id = minion_id(&cancelled);
    let _ = fleet.overlord(["job-cancel", &running]);
    wait_until("the last to run", PATIENCE, || state(&cancelled) == "running");
    let _ = fleet.overlord(["job-cancel", &cancelled]);
    for job in [&running, &waiting, &cancelled] {
        fleet.wait_for_state(job, "FINISHED");
    }
    keep_spool(&cancelled_id);
    let fences =
        web1.spools().into_iter().filter(|id| fs::read_to_string(web1.spool(id).join("request.json")).unwrap().contains("\"run\":null"));
    fences.for_each(|id| keep_spool(&id));
    for job in [&failed, &running, &waiting, &cancelled] {
        wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(job).is_none());
        fs::copy(fleet.home().join("jobs").join(format!("{job}.log")), out.join("jobs").join(format!("{job}.log"))).unwrap();
        fs::write(out.join("jobs").join(format!("{job}.json")), serde_json::to_vec_pretty(&fleet.job_status(job)).unwrap()).unwrap();
    }
}

/// A host's way to its certificate: what it asks is written by the types that `minion enroll` uses, what it hears is the authority's own.
fn enrolment(out: &Path) {
    let fleet = Fleet::builder().unenrolled().start();
    let authority = fleet.serve_certs();
    let (key, cert) = (fleet.root().join("web7.key"), fleet.root().join("web7.pem"));
    make_key(&key).unwrap();
    let keep = |client: &raw::Client, method: &str, params: Value| {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let answer = client.post(body.as_bytes()).unwrap().body;
        let read: Value = serde_json::from_slice(&answer).unwrap();
        let name = label(method, &read);
        fs::write(out.join(format!("{name}.request.json")), body).unwrap();
        fs::write(out.join(format!("{name}.answer.json")), &answer).unwrap();
        read
    };
    let enroll = |name: &str, token: Option<&str>| {
        let name: MinionName = name.parse().unwrap();
        json!(EnrollParams { csr: write_csr(&key, &name).unwrap(), name, token: token.map(str::to_owned) })
    };
    let stranger = raw::Client::stranger(authority.address(), "authority");
    keep(&stranger, ENROLL, enroll("web7", None));
    keep(&stranger, ENROLL, enroll("web8", Some("no-such-token")));
    let _ = fleet.overlord(["certs", "sign", "web7"]).ok();
    let issued = keep(&stranger, ENROLL, enroll("web7", None));
    keep(&stranger, ENROLL, enroll("web8", None));
    let _ = fleet.overlord(["certs", "reject", "web8"]).ok();
    keep(&stranger, ENROLL, enroll("web8", None));
    fs::write(&cert, issued["result"]["cert"].as_str().unwrap()).unwrap();
    let host = raw::Client::showing(authority.address(), "authority", &cert, &key);
    keep(&host, RENEW, Value::Null);
    keep(&host, REVOCATIONS, json!(RevocationsParams { have: 0, crl: None }));
}

/// The plain files of a folder: a FIFO is made anew where it is missing.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
