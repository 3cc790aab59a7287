//! The socket where jobs submit calls: what anybody on the host can say there, and how little it costs the others.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use fleet::Fleet;
use serde_json::json;

use super::{Parent, assert_state, say, say_json};

#[test]
fn whoever_fills_the_socket_keeps_nobody_out() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nheader_timeout = \"1s\"\nbody_max_bytes = 65536\n").start();
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    let socket = web1.state_dir().join("submit.sock");
    let connect = || UnixStream::connect(&socket).unwrap();
    let silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    let refused = say_json(web1, &json!({}));
    assert_eq!(refused["error"]["data"]["type"], "no_place", "{refused}");
    assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
    drop(silent);
    let is_over = AtomicBool::new(false);
    let garbage = || {
        while !is_over.load(Ordering::Acquire) {
            // It may have no place, and hang up at once.
            let _refused = connect().write_all(b"{}\n");
        }
    };
    std::thread::scope(|scope| {
        let flood: Vec<_> = (0..4).map(|_| scope.spawn(garbage)).collect();
        let run = std::panic::catch_unwind(|| parent.submit(&["test.echo", "x"]));
        is_over.store(true, Ordering::Release);
        flood.into_iter().for_each(|thread| thread.join().unwrap());
        assert_state(&run.unwrap(), "ok", 0, "");
    });
}

#[test]
fn what_is_no_submission_is_refused_and_bounded() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nheader_timeout = \"1s\"\nbody_max_bytes = 65536\n").start();
    let web1 = fleet.minion("web1");
    let deep = format!("{{\"call\":{}\n", "[".repeat(60_000));
    let long = vec![b'x'; 70_000];
    for (said, why) in [
        (&b"\n"[..], "what was said is not"),
        (b"{}\n", "what was said is not"),
        (b"\xff\xfe\n", "what was said is not"),
        (b"{\"call\":\"\",\"job\":\"../../x\",\"code\":\"\"}\n", "not a job id"),
        (b"{\"call\":\"\",\"job\":\"54k2-9xqd-4fz1\",\"code\":\"\"}\n", "not submitted with the token"),
        (deep.as_bytes(), "what was said is not"),
        (&long, "longer than limits.body_max_bytes"),
        (b"{\"call\":", "not said within limits.header_timeout"),
    ] {
        let answer = say(web1, said);
        assert!(answer["error"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
    assert_state(&Parent::start(&fleet).submit(&["test.echo", "x"]), "ok", 0, "");
}
