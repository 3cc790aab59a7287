//! Minions that lie: each has the certificate of a host, and answers what no minion would. They harm neither the overlord nor the answers of honest
//! hosts, and of themselves nothing is told but what they said, or that it cannot be known.

mod jobs;
mod logs;

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::job::{CallId, MinionJobId};
use fleet::{Answering, Fleet, Liar, Question, Run, Running, peak_bytes};
use serde_json::{Value, json};

/// What the overlord may take of memory, built for debugging, whatever hosts send it.
const MEMORY_MAX_BYTES: u64 = 100 << 20;
/// How long a call with a limit of a second may take, on a machine that is busy with other tests: the host is given five seconds to say that the limit
/// has passed, and who boasts of a list two.
const CALLED_WITHIN: Duration = Duration::from_secs(25);
/// More than any answer may have.
const GIGABYTE: usize = 1 << 30;
/// Escape codes, a NUL, a C1 control, one that turns the direction, a backspace, and what would pass for a line of ours.
const CONTROLS: &str = "\u{1b}[2J\u{1b}]0;pwned\u{7}\0\r\u{9b}31m\u{202e}\u{8}\nweb1: ok\noverlord: all is well";

type Lie = Box<dyn Fn(&Question, &mut Answering) -> io::Result<()> + Send + Sync>;

/// A fleet of two honest hosts, `web1` and `web2`, and a liar for each of the lies.
struct Scene {
    fleet: Fleet,
    liars: Vec<(&'static str, Liar)>,
}

impl Scene {
    fn with(overlord_toml: &str, lies: Vec<(&'static str, Lie)>) -> Self {
        let names = ["web1", "web2"].into_iter().chain(lies.iter().map(|(name, _)| *name));
        let fleet = Fleet::builder().names(names).overlord_toml(overlord_toml).stopped().start();
        for honest in ["web1", "web2"] {
            fleet.minion(honest).start();
        }
        let liars: Vec<(&str, Liar)> = lies.into_iter().map(|(name, lie)| (name, fleet.liar(name, lie))).collect();
        let addresses: Vec<_> = liars.iter().map(|(name, liar)| (*name, liar.address().to_string())).collect();
        fleet.set_addresses(&addresses.iter().map(|(name, address)| (*name, address.as_str())).collect::<Vec<_>>());
        Self { fleet, liars }
    }

    /// Runs the overlord; its time and memory are bounded, and nothing that it writes steers a terminal.
    fn overlord(&self, args: &[&str], within: Duration) -> Run {
        let running = self.fleet.overlord_spawn(args);
        let (run, peak) = watched(running, within);
        assert!(run.took < within, "{args:?} took {:?}", run.took);
        assert!(peak < MEMORY_MAX_BYTES, "{args:?} took {} MiB", peak >> 20);
        assert_harmless(&run);
        println!("{args:?}: {:?}, {} MiB", run.took, peak >> 20);
        run
    }
}

/// The run, and the most memory that the program has had. One that takes longer fails the test.
fn watched(mut running: Running, within: Duration) -> (Run, u64) {
    let (pid, begun, mut peak) = (running.pid(), Instant::now(), 0);
    while running.is_running() && begun.elapsed() < within {
        peak = peak_bytes(pid).unwrap_or_default().max(peak);
        sleep(Duration::from_millis(2));
    }
    (running.wait_at_most(within), peak)
}

fn assert_harmless(run: &Run) {
    for text in [String::from_utf8(run.stdout.clone()).unwrap(), String::from_utf8(run.stderr.clone()).unwrap()] {
        let steers = |letter: char| (letter.is_control() && letter != '\n' && letter != '\t') || matches!(letter, '\u{200e}'..='\u{202e}');
        assert!(!text.contains(steers), "{}: {text:?}", run.what);
        let forged = |line: &&str| *line == "web1: ok" || *line == "overlord: all is well";
        assert!(text.lines().find(forged).is_none(), "{}: {text}", run.what);
    }
}

fn lie(lie: impl Fn(&Question, &mut Answering) -> io::Result<()> + Send + Sync + 'static) -> Lie {
    Box::new(lie)
}

/// A whole response with this body.
fn body(body: impl Into<Vec<u8>>) -> Lie {
    let body = body.into();
    lie(move |_, to| to.respond("200 OK", "", &body))
}

/// These bytes, and then nothing.
fn bytes(bytes: impl Into<Vec<u8>>) -> Lie {
    let bytes = bytes.into();
    lie(move |_, to| {
        to.raw(&bytes)?;
        to.hang()
    })
}

/// These bytes, and then the end.
fn cut(bytes: impl Into<Vec<u8>>) -> Lie {
    let bytes = bytes.into();
    lie(move |_, to| {
        to.raw(&bytes)?;
        to.close()
    })
}

/// `first`, and then `again` for ever.
fn endless(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>, pause: Duration) -> Lie {
    let (first, again) = (first.into(), again.into());
    lie(move |_, to| {
        to.raw(&first)?;
        loop {
            to.raw(&again)?;
            sleep(pause);
        }
    })
}

/// A response that says `ok` with the result `1`, with such an id.
fn ok_with(id: Value) -> Lie {
    body(json!({ "jsonrpc": "2.0", "id": id, "result": { "state": "ok", "result": 1 } }).to_string())
}

/// The result of a response, made of the question.
fn says(result: impl Fn(&Question) -> Value + Send + Sync + 'static) -> Lie {
    lie(move |question, to| to.result(question, &result(question)))
}

/// The id under which `host` would hold the job that it is asked for.
fn minion_job_id(question: &Question, host: &str) -> MinionJobId {
    let call_id: CallId = question.envelope["call_id"].as_str().unwrap().parse().unwrap();
    MinionJobId::derive(&host.parse().unwrap(), &"admin".parse().unwrap(), &call_id)
}

/// What is no answer to any question, whatever was asked.
fn nonsense() -> Vec<(&'static str, Lie)> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let megabyte = vec![b' '; 1 << 20];
    let chunk = [b"100000\r\n".to_vec(), megabyte.clone(), b"\r\n".to_vec()].concat();
    let second = Duration::from_secs(1);
    let deep =
        |open: &str, close: &str| format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
    vec![
        ("gigabyte-length", endless(format!("{head}content-length: {GIGABYTE}\r\n\r\n"), megabyte.clone(), Duration::ZERO)),
        ("gigabyte-chunked", endless(format!("{head}transfer-encoding: chunked\r\n\r\n"), chunk, Duration::ZERO)),
        ("gigabyte-unframed", endless(format!("{head}\r\n{{\"jsonrpc\""), megabyte, Duration::ZERO)),
        ("gigabyte-head", endless("HTTP/1.1 200 OK\r\n", "x-more: and more and more and more\r\n", Duration::ZERO)),
        ("gigabyte-line", endless("HTTP/1.1 200 ", "OK".repeat(1 << 16), Duration::ZERO)),
        ("gzip", lie(|_, to| to.respond("200 OK", "content-encoding: gzip\r\n", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3]))),
        ("slow-head", endless("HTTP/1.1 200 OK\r\nx: ", "x", second)),
        ("slow-body", endless(format!("{head}content-length: 1000000\r\n\r\n"), " ", second)),
        ("slow-chunks", endless(format!("{head}transfer-encoding: chunked\r\n\r\n"), "1\r\n \r\n", second)),
        ("continues", endless("", "HTTP/1.1 100 Continue\r\n\r\n", Duration::ZERO)),
        ("hints", endless("", "HTTP/1.1 103 Early Hints\r\nlink: </>\r\n\r\n", Duration::ZERO)),
        ("redirect", lie(|_, to| to.respond("302 Found", "location: https://127.0.0.1:1/\r\n", ""))),
        ("nothing", bytes("HTTP/1.1 204 No Content\r\n\r\n")),
        ("switches", bytes("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")),
        ("http2", bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        ("no-http", bytes([0, 1, 2, 255, 254, b'\r', b'\n', b'\r', b'\n'])),
        ("half", cut(format!("{head}content-length: 60\r\n\r\n{{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":"))),
        ("silent", bytes("")),
        ("closes", cut("")),
        ("not-utf8", body([b"{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"state\":\"ok\",\"result\":\"\xff\xfe\"}}".to_vec()].concat())),
        ("other-id", ok_with(json!(7))),
        ("huge-id", ok_with(json!(u64::MAX))),
        ("null-id", ok_with(Value::Null)),
        ("no-id", body(json!({ "jsonrpc": "2.0", "result": { "state": "ok", "result": 1 } }).to_string())),
        ("several", body(json!([{ "jsonrpc": "2.0", "id": 0, "result": { "state": "ok", "result": 1 } }]).to_string())),
        ("deep-lists", body(deep("[", "]"))),
        ("deep-objects", body(deep("{\"a\":", "}"))),
        ("wrong-types", says(|_| json!({ "state": 7, "result": [], "started_at": {}, "finished_at": false }))),
        ("wrong-state", says(|_| json!({ "state": CONTROLS, "result": 1 }))),
        ("huge-number", body("{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"state\":\"ok\",\"result\":1e999}}")),
        ("no-time", says(|_| json!({ "state": "ok", "result": 1, "finished_at": "99999-01-01T00:00:00Z" }))),
        ("controls", lie(|_, to| to.respond("200 OK", "", CONTROLS))),
    ]
}

/// A host that is lost says why, and the honest ones say `ok`.
fn assert_lost_or(state: &str, hosts: &Value, name: &str) {
    let host = &hosts[name];
    assert_eq!(host["state"], state, "{name}: {host}");
    let reason = host["error"]["message"].as_str().unwrap_or_default();
    assert!(!reason.is_empty() && reason.chars().count() <= 1001, "{name}: {host}");
}

/// What a call makes of nonsense: at most the time limit of the call and the five seconds in which a host may still say so.
#[test]
fn nonsense_is_no_answer_to_a_call_and_harms_no_other_hosts() {
    let scene = Scene::with("", nonsense());
    for output in ["json", "text"] {
        let run = scene.overlord(&["*", "test.ping", "--timeout", "1s", "--output", output], CALLED_WITHIN).expect(4);
        if output == "text" {
            assert!(run.out().starts_with("web1,web2  ok\n"), "{}", run.out());
            continue;
        }
        let hosts = run.json()["hosts"].clone();
        for honest in ["web1", "web2"] {
            assert_eq!(hosts[honest]["state"], "ok", "{hosts}");
        }
        for (name, liar) in &scene.liars {
            assert_lost_or("lost", &hosts, name);
            assert_eq!(liar.asked().len(), 1, "{name} is asked once");
        }
    }
}

/// A host can say of itself what it likes; but it is told as its word, with nothing in it that steers a terminal.
#[test]
fn what_a_liar_says_of_itself_is_told_harmlessly_and_of_no_other() {
    let error = |code: i64| json!({ "code": code, "message": CONTROLS, "data": { CONTROLS: CONTROLS, "rc": 1, "stdout": CONTROLS, "stderr": CONTROLS } });
    let refuses = move |code: i64| {
        lie(move |question, to| to.respond("200 OK", "", json!({ "jsonrpc": "2.0", "id": question.id, "error": error(code) }).to_string()))
    };
    let lies = vec![
        ("says-ok", says(|_| json!({ "state": "ok", "result": { CONTROLS: [CONTROLS, { "base64": "GwA=" }] }, "host": "web1" }))),
        ("says-text", says(|_| json!({ "state": "ok", "result": CONTROLS, "finished_at": "9999-12-30T22:00:00.999999999Z" }))),
        ("says-bytes", says(|_| json!({ "state": "ok", "result": { "rc": 0, "stdout": { "base64": "G1sySgA=" }, "stderr": CONTROLS } }))),
        ("says-failed", says(move |_| json!({ "state": "failed", "error": error(2), "started_at": "-009999-01-02T01:59:59Z" }))),
        ("says-lost", says(move |_| json!({ "state": "lost", "error": error(6) }))),
        ("says-huge", says(move |_| json!({ "state": "timed_out", "error": error(i64::from(i32::MAX)) }))),
        ("refuses", refuses(-32001)),
        ("is-mad", refuses(i64::from(i32::MIN))),
        (
            "header",
            lie(|question, to| {
                let result = json!({ "jsonrpc": "2.0", "id": question.id, "result": { "state": "ok", "result": 1 } });
                to.respond("200 OK", "fleet-revocations: 99999999999999999999999\r\nset-cookie: \x1b[2J\r\n", result.to_string())
            }),
        ),
        ("accepts", says(|question| json!({ "minion_job_id": minion_job_id(question, "accepts"), "state": "queued", "repeated": false }))),
        ("long-reason", says(|_| json!({ "state": "failed", "error": { "code": 1, "message": "x".repeat(1 << 20) } }))),
    ];
    let scene = Scene::with("", lies);
    for output in ["text", "json", "jsonl"] {
        let run = scene.overlord(&["*", "test.ping", "--timeout", "1s", "--output", output], CALLED_WITHIN).expect(6);
        if output != "json" {
            continue;
        }
        let hosts = run.json()["hosts"].clone();
        let states = [
            ("web1", "ok"),
            ("web2", "ok"),
            ("says-ok", "ok"),
            ("says-failed", "failed"),
            ("says-lost", "lost"),
            ("says-huge", "timed_out"),
            ("refuses", "denied"),
            ("is-mad", "failed"),
            ("accepts", "lost"),
        ];
        for (name, state) in states {
            assert_eq!(hosts[name]["state"], state, "{name}: {}", hosts[name]);
        }
    }
}

/// Of lists of revoked certificates a liar says what makes everyone ask it: a newer one, that it does not give, or that is none.
#[test]
fn a_revocation_list_that_a_liar_boasts_of_costs_a_moment_and_changes_nothing() {
    let boast = |answer: fn(&Question, &mut Answering) -> io::Result<()>| {
        lie(move |question, to| match question.method.as_str() {
            "certs.revocations" => answer(question, to),
            _ => {
                let result = json!({ "jsonrpc": "2.0", "id": question.id, "result": { "state": "ok", "result": 1 } });
                to.respond("200 OK", &format!("fleet-revocations: {}\r\n", u64::MAX), result.to_string())
            }
        })
    };
    let lies = vec![
        ("hangs", boast(|_, to| to.hang())),
        ("raves", boast(|question, to| to.result(question, &json!({ "state": "ok", "result": { "number": u64::MAX, "crl": CONTROLS } })))),
        (
            "floods",
            boast(|_, to| {
                to.raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {GIGABYTE}\r\n\r\n"))?;
                loop {
                    to.raw(vec![b' '; 1 << 20])?;
                }
            }),
        ),
    ];
    let scene = Scene::with("", lies);
    let crl = scene.fleet.home().join("certs/crl.pem");
    let before = std::fs::read(&crl).ok();
    let run = scene.overlord(&["*", "test.ping", "--timeout", "1s", "--output", "json"], CALLED_WITHIN).ok();
    assert!(scene.liars.iter().any(|(_, liar)| liar.asked().iter().any(|question| question.method == "certs.revocations")));
    assert_eq!(run.json()["hosts"]["web1"]["state"], "ok");
    assert_eq!(std::fs::read(&crl).ok(), before);
}
