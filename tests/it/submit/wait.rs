//! `minion wait` at a server that does not answer as it should: it ends with its time, and until then it asks for no more than what is left of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::protocol::Envelope;
use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

use super::Parent;

/// What `minion wait` may take beyond its time limit: the host's own moment to answer, and that of a busy machine.
const GRACE: Duration = Duration::from_secs(12);

/// Listens in place of the minion, in a thread that lasts as long as the test: of each call it tells `hear`, and says what that gives; nothing at all, and holds the
/// connection, where that is none.
fn listen(fleet: &Fleet, mut hear: impl FnMut(usize, &Envelope) -> Option<String> + Send + 'static) -> String {
    let socket = fleet.root().join("fake.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            let call = serde_json::from_str(said["call"].as_str().unwrap()).unwrap();
            match hear(number, &call) {
                Some(answer) => drop(stream.get_mut().write_all(answer.as_bytes())),
                None => held.push(stream),
            }
        }
    });
    socket.to_str().unwrap().to_owned()
}

fn wait_ms(call: &Envelope) -> u64 {
    serde_json::to_value(call).unwrap()["args"]["json"]["wait_ms"].as_u64().unwrap()
}

/// That a wait for 2 s ends in time with 75, says why, and prints nothing.
fn assert_given_up(parent: &Parent<'_>, socket: &str, why: &str) {
    let begun = Instant::now();
    let waiting = parent.spawn("wait", &[("MINION_SUBMIT_SOCKET", socket)], &[&parent.id, "--timeout", "2s"]);
    let run = waiting.wait_at_most(Duration::from_secs(2) + GRACE).expect(75);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(run.stdout.is_empty() && run.err().contains("the time is over") && run.err().contains(why), "{}", run.err());
}

#[test]
fn a_wait_with_a_limit_ends_with_it_whatever_is_said_or_not() {
    let no_place = json!({ "error": { "code": -32014, "message": "come again", "data": { "type": "no_place" } } }).to_string() + "\n";
    for (answer, why) in [(None, "no answer came in time"), (Some("what?\n".to_owned()), "expected"), (Some(no_place), "come again")] {
        let fleet = Fleet::start(1);
        let parent = Parent::start(&fleet);
        let (say, heard) = std::sync::mpsc::channel();
        let socket = listen(&fleet, move |_, call| {
            say.send(wait_ms(call)).unwrap();
            answer.clone()
        });
        assert_given_up(&parent, &socket, why);
        let asked: Vec<u64> = heard.try_iter().collect();
        assert!(asked[0] <= 2000 && asked.windows(2).all(|pair| pair[1] < pair[0]), "only what is left is asked for: {asked:?}");
        parent.end();
    }
}

#[test]
fn a_wait_with_a_limit_ends_with_it_though_the_server_is_stopped_or_gone() {
    let fleet = Fleet::start(1);
    let parent = Parent::start(&fleet);
    let web1 = fleet.minion("web1");
    let socket = parent.variables["MINION_SUBMIT_SOCKET"].clone();
    web1.pause();
    assert_given_up(&parent, &socket, "no answer came in time");
    web1.resume();
    web1.kill9();
    assert_given_up(&parent, &socket, "refused");
    web1.start();
    parent.end();
}

/// What has ended and what has not are told in turn; a refusal behind that adds no bits to 75.
#[test]
fn that_one_has_not_ended_stands_for_all_though_the_next_is_refused() {
    let fleet = Fleet::start(1);
    let parent = Parent::start(&fleet);
    let answer = fleet.raw_overlord("web1").call(&envelope("admin", "web1", "jobs.status", json!([parent.id]))).unwrap();
    let running = json!({ "result": { "state": "ok", "result": { "jobs": [answer["result"]["result"]], "more": 1 } } });
    let socket = listen(&fleet, move |number, _| {
        let refused = json!({ "error": { "code": -32006, "message": "there is no such job" } });
        Some(format!("{}\n", if number == 0 { &running } else { &refused }))
    });
    let run =
        parent.spawn("wait", &[("MINION_SUBMIT_SOCKET", &socket)], &[&parent.id, "0000-0000-0000", "--timeout", "10s"]).wait().expect(75);
    assert_eq!((&run.json_lines()[0]["state"], run.json_lines().len()), (&json!("running"), 2), "{}", run.out());
    assert!(run.err().contains("there is no such job"), "{}", run.err());
    parent.end();
}

/// It goes on, and is answered when the server is there again.
#[test]
fn a_wait_without_a_limit_says_once_that_the_server_is_away() {
    let fleet = Fleet::start(1);
    let parent = Parent::start(&fleet);
    let web1 = fleet.minion("web1");
    web1.kill9();
    let mut waiting = parent.spawn("wait", &[], &[&parent.id]);
    let told = waiting.next_error_line();
    assert!(told.contains("is tried on") && told.contains("is `minion serve` running?"), "{told}");
    web1.start();
    // Who waits for himself is refused, which is an answer.
    let run = waiting.wait().expect(2);
    assert!(run.err().contains("would wait for itself") && run.err().matches("is tried on").count() == 1, "{}", run.err());
    wait_until("the server to run", PATIENCE, || web1.is_running());
    parent.end();
}
