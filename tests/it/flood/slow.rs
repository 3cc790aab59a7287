//! Callers with a good certificate that ask slowly, endlessly, too much, or do not take their answers.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use fleet::raw::{Connection, ReadOnly, envelope, read_response};
use fleet::{COMMAND_TIMEOUT, Fleet, PATIENCE, peak_bytes, wait_until};
use serde_json::json;

use super::{bounded_memory, slowest_call};

const HEAD: &str = "POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\n";

/// A fleet of one host that has little patience and few places.
fn fleet() -> Fleet {
    let limits = "[limits]\nconnections_max = 16\nheader_timeout = \"3s\"\nidle_timeout = \"3s\"\nbody_max_bytes = 65536\n";
    Fleet::builder().hosts(1).minion_toml(limits).start()
}

fn connect(fleet: &Fleet) -> Connection {
    fleet.raw_overlord("web1").connect().unwrap()
}

/// Until the minion ends the connection: what it said before.
fn rest(connection: &mut Connection) -> String {
    let mut said = Vec::new();
    let _cut_or_closed = ReadOnly(connection).read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// The connections do what they do; callers are served meanwhile, each of them is cut, and afterwards all is well.
fn outlasts(fleet: &Fleet, mut connections: Vec<Connection>) {
    println!("slowest call: {:?}", slowest_call(fleet));
    let begun = Instant::now();
    for connection in &mut connections {
        let said = rest(connection);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    }
    assert!(begun.elapsed() < PATIENCE, "they were cut after {:?}", begun.elapsed());
    println!("memory of the minion: {} MiB", bounded_memory(fleet.minion("web1").pid()));
    let _ = slowest_call(fleet);
}

#[test]
fn callers_that_say_nothing_or_half_a_head_or_half_a_body_keep_no_other_out() {
    for said in [
        String::new(),
        HEAD.to_owned(),
        format!("{HEAD}content-length: 1000\r\n\r\n{{"),
        format!("{HEAD}transfer-encoding: chunked\r\n\r\n1\r\n{{\r\n"),
    ] {
        let fleet = fleet();
        let mut connections: Vec<Connection> = (0..24).map(|_| connect(&fleet)).collect();
        for connection in &mut connections {
            // Those that came first may have been let go already.
            let _ = connection.write_all(said.as_bytes());
        }
        outlasts(&fleet, connections);
    }
}

/// A byte whenever the minion may have begun to lose its patience does not buy more of it.
#[test]
fn a_head_and_a_body_byte_by_byte_are_cut_all_the_same() {
    let fleet = fleet();
    for begin in ["POST / HTTP/1.1\r\nx: ".to_owned(), format!("{HEAD}content-length: 65000\r\n\r\n")] {
        let mut connection = connect(&fleet);
        connection.write_all(begin.as_bytes()).unwrap();
        let begun = Instant::now();
        wait_until("the minion to cut it", PATIENCE, || {
            connection.write_all(b" ").and_then(|()| connection.flush()).is_err() || begun.elapsed() > PATIENCE
        });
        assert!(begun.elapsed() < PATIENCE);
        let _ = slowest_call(&fleet);
    }
}

#[test]
fn a_request_beyond_every_limit_is_refused_with_its_status() {
    let fleet = fleet();
    let many_headers: String = (0..65).map(|number| format!("x-{number}: 1\r\n")).collect();
    for (request, status) in [
        (format!("{HEAD}x: {}\r\n\r\n", "x".repeat(17 << 10)), Some(431)),
        (format!("{HEAD}{many_headers}\r\n"), Some(431)),
        (format!("GET /{} HTTP/1.1\r\nhost: web1\r\n\r\n", "x".repeat(17 << 10)), Some(431)),
        (format!("{HEAD}content-length: 65537\r\n\r\n"), Some(413)),
        (format!("{HEAD}content-length: 99999999999999999999\r\n\r\n"), Some(400)),
        (format!("{HEAD}content-length: 5\r\ncontent-length: 6\r\n\r\n"), Some(400)),
        (format!("{HEAD}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"), Some(400)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), None),
    ] {
        let mut connection = connect(&fleet);
        let _may_be_closed = connection.write_all(request.as_bytes());
        let response = read_response(&mut ReadOnly(&mut connection));
        assert_eq!(response.map(|response| response.status).ok(), status, "{:.120}", request);
        let _ = fleet.overlord(["web1", "test.ping"]).ok();
    }
    wait_until("what was no request to be told", PATIENCE, || fleet.minion("web1").stderr().contains("what came is no request"));
}

#[test]
fn who_asks_and_asks_and_takes_no_answer_is_cut() {
    let fleet = fleet();
    let body = fleet.raw_overlord("web1").signed(json!(1), &envelope("admin", "web1", "test.ping", json!(["x".repeat(1000)]))).to_string();
    let asked = format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len());
    let mut connection = connect(&fleet);
    let begun = Instant::now();
    let refused = (0..1_000_000).any(|_| connection.write_all(asked.as_bytes()).is_err() || begun.elapsed() > COMMAND_TIMEOUT);
    assert!(refused && begun.elapsed() < COMMAND_TIMEOUT, "it went on for {:?}", begun.elapsed());
    let peak = peak_bytes(fleet.minion("web1").pid()).unwrap();
    println!("cut after {:?}; memory of the minion: {} MiB", begun.elapsed(), peak >> 20);
    outlasts(&fleet, vec![]);
}
