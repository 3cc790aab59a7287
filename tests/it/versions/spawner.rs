//! While a package is replaced, the server and the spawner are of different versions for a moment.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fleet::captured::CapturedServer;
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

use super::NEWER;

#[test]
fn a_spawner_does_nothing_that_is_said_in_another_protocol() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let server = CapturedServer::of(web1);
    let say = |said: Value| server.say(format!("{said}\n").as_bytes()).unwrap();
    let told = say(json!({ "protocol": 2, "by": NEWER, "order": { "look": "ids" } }));
    assert_eq!(told, json!({ "other_version": { "protocol": 1, "by": env!("CARGO_PKG_VERSION") } }));
    let told = say(json!({ "protocol": 1, "by": NEWER, "order": { "rename": "x" } }));
    let message = told["refused"]["message"].as_str().unwrap();
    assert!(message.contains("nothing was done") && message.contains(NEWER) && message.contains("unknown variant `rename`"), "{told}");
    assert!(say(json!({ "protocol": 1, "by": NEWER, "order": { "look": "ids" }, "trace": 1 }))["ids"].is_array());
}

/// A spawner of a newer version: it tells everybody so, and does nothing.
struct Newer(Arc<AtomicBool>);

impl Newer {
    fn at(socket: &std::path::Path) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !stopped.load(Ordering::Relaxed)) {
                let mut said = String::new();
                let _ = BufReader::new(&stream).read_line(&mut said);
                let _ = writeln!(&stream, "{}", json!({ "other_version": { "protocol": 2, "by": NEWER } }));
            }
        });
        Self(stop)
    }

    /// It is replaced.
    fn end(self, socket: &std::path::Path) {
        self.0.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = std::os::unix::net::UnixStream::connect(socket);
        std::fs::remove_file(socket).unwrap();
    }
}

#[test]
fn a_spawner_of_another_version_is_waited_for_until_it_is_replaced() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let web1 = fleet.minion("web1");
    let socket = web1.state_dir().join("spawner.sock");
    let newer = Newer::at(&socket);
    let mut server = fleet.spawn_minion("web1", &["serve", "--spawner-unit"]);
    let mut until = |words: &str| while !server.next_error_line().contains(words) {};
    until("listening");
    let call = fleet.overlord_spawn(["*", "command.run", "echo once"]);
    let job = fleet.overlord_spawn(["*", "test.add", "23", "45", "--async"]);
    until("the spawner is of another version");
    until("the spawner is of another version");
    newer.end(&socket);
    let _spawner = fleet.spawn_minion("web1", &["spawner"]);
    let ran = call.wait().ok();
    assert!(ran.out().contains("once"), "{}", ran.out());
    let id = job.wait().ok().out().trim().to_owned();
    fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["result"], 68);
    wait_until("the job's spool to be there", PATIENCE, || web1.spools().len() == 1);
}

#[test]
fn a_spawner_that_stays_of_another_version_is_told_and_nothing_ran() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let web1 = fleet.minion("web1");
    let socket = web1.state_dir().join("spawner.sock");
    let newer = Newer::at(&socket);
    let mut server = fleet.spawn_minion("web1", &["serve", "--spawner-unit"]);
    while !server.next_error_line().contains("listening") {}
    let run = fleet.overlord(["*", "command.run", "echo once"]).expect(4);
    for part in ["undelivered", &format!("the spawner is minion {NEWER}"), "systemctl restart minion-spawner minion"] {
        assert!(run.out().contains(part) || run.err().contains(part), "{part:?}: {}{}", run.out(), run.err());
    }
    newer.end(&socket);
}
