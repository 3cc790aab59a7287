//! Requests that no overlord would send. Each meets the same door, gets an error, and runs nothing.

use std::io::Write as _;

use fleet::Fleet;
use fleet::raw::{envelope, read_response, request};
use serde_json::{Value, json};

/// A fleet whose one host denies everything but pings.
fn fleet() -> Fleet {
    Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"test.ping\"]\n").start()
}

fn run_file(fleet: &Fleet) -> Value {
    let line = format!("echo ran >> {}", fleet.root().join("runs").display());
    fleet.raw_overlord("web1").signed(json!(1), &envelope("admin", "web1", "command.run", json!([line])))
}

/// Nothing ran, the request is in the audit log as no allowed one, and the minion still answers.
fn assert_harmless(fleet: &Fleet) {
    assert!(!fleet.root().join("runs").exists(), "it ran");
    let lines = fleet.minion("web1").audit();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["decision"] != "allow"), "{lines:?}");
    let _ = fleet.overlord(["*", "test.ping"]).ok();
}

#[test]
fn a_batch_is_refused_whole() {
    let fleet = fleet();
    let admin = fleet.raw_overlord("web1");
    let ping = admin.signed(json!(2), &envelope("admin", "web1", "test.ping", json!([])));
    let answer = admin.post_json(&json!([ping, run_file(&fleet)])).unwrap();
    assert!(answer["error"]["code"].is_i64() && answer.get("result").is_none(), "{answer}");
    assert_harmless(&fleet);
}

#[test]
fn a_notification_is_refused() {
    let fleet = fleet();
    let mut body = run_file(&fleet);
    body.as_object_mut().unwrap().remove("id");
    let answer = fleet.raw_overlord("web1").post_json(&body).unwrap();
    assert!(answer["error"]["code"].is_i64(), "{answer}");
    assert_harmless(&fleet);
}

#[test]
fn a_malformed_id_is_refused() {
    for id in [json!({ "a": 1 }), json!([1]), json!(1.5), json!(true), json!(-1)] {
        let fleet = fleet();
        let mut body = run_file(&fleet);
        body["id"] = id.clone();
        let answer = fleet.raw_overlord("web1").post_json(&body).unwrap();
        assert!(answer["error"]["code"].is_i64(), "{id}: {answer}");
        assert_harmless(&fleet);
    }
}

#[test]
fn a_body_of_a_gigabyte_is_refused_before_it_is_read() {
    let fleet = fleet();
    let mut connection = fleet.raw_overlord("web1").connect().unwrap();
    connection
        .write_all(b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n{")
        .unwrap();
    let response = read_response(&mut connection).unwrap();
    assert_eq!(response.status, 413);
    assert!(String::from_utf8_lossy(&response.body).contains("error"), "{:?}", String::from_utf8_lossy(&response.body));
    assert_harmless(&fleet);
}

#[test]
fn a_body_that_does_not_say_how_long_it_is_is_cut_off() {
    let fleet = fleet();
    let mut connection = fleet.raw_overlord("web1").connect().unwrap();
    connection.write_all(b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    // A gigabyte of it; the minion hangs up long before.
    let refused = (0..16_384).any(|_| connection.write_all(&chunk).is_err());
    assert!(refused, "it took a gigabyte");
    assert_harmless(&fleet);
}

#[test]
fn nesting_ten_thousand_deep_is_refused() {
    let fleet = fleet();
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(10_000), close.repeat(10_000));
    let nested_args = {
        let body = run_file(&fleet);
        let call = body["params"]["call"].as_str().unwrap().replace("\"args\":", &format!("\"more\":{},\"args\":", deep("[", "]")));
        request(json!(1), "command.run", &call, &fleet.raw_overlord("web1").signature(&call)).to_string()
    };
    let bodies = [
        deep("[", "]"),
        format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000)),
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"command.run\",\"params\":{}}}", deep("[", "]")),
        nested_args,
    ];
    for body in bodies {
        let response = fleet.raw_overlord("web1").post(body.as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        assert!(response.status >= 400 || answer["error"]["code"].is_i64(), "{} {answer}", response.status);
    }
    assert_harmless(&fleet);
}

#[test]
fn what_is_not_json_rpc_is_refused() {
    let fleet = fleet();
    for body in ["", "null", "{}", "\u{0}", "{\"jsonrpc\":\"2.0\"}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"command.run\"}", "[]"] {
        let response = fleet.raw_overlord("web1").post(body.as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        assert!(response.status >= 400 || answer["error"]["code"].is_i64(), "{body:?}: {} {answer}", response.status);
    }
    assert_harmless(&fleet);
}

/// What the rules would allow is not run either if nobody could be answered, or if it is one of several.
#[test]
fn an_allowed_call_in_a_wrong_form_is_refused_too() {
    let fleet = Fleet::start(1);
    let mut notification = run_file(&fleet);
    notification.as_object_mut().unwrap().remove("id");
    let mut nobody = run_file(&fleet);
    nobody["id"] = Value::Null;
    for body in [notification, nobody, json!([run_file(&fleet)]), json!([run_file(&fleet), run_file(&fleet)])] {
        let answer = fleet.raw_overlord("web1").post_json(&body).unwrap();
        assert!(answer["error"]["code"].is_i64(), "{body}: {answer}");
        assert_eq!(fleet.minion("web1").audit().last().unwrap()["decision"], "refuse", "{body}");
    }
    assert_harmless(&fleet);
}
