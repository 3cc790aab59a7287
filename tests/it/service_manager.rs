//! The two units as systemd starts them: what they tell it, and that a server which has no certificate yet waits for one.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleet::{Fleet, PATIENCE, binaries};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One of the two, and what hears it in systemd's place.
struct Unit {
    process: Child,
    manager: UnixDatagram,
}

impl Unit {
    fn start(fleet: &Fleet, name: &str, words: &[&str]) -> Self {
        let socket = fleet.root().join(format!("{name}.notify"));
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(&binaries().minion);
        command.arg("--config").arg(fleet.minion("web1").config_file()).args(words);
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { process, manager }
    }

    /// What it says next that has `part` in it.
    fn says(&self, part: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.manager.recv(&mut buffer).unwrap_or_else(|error| panic!("it never said {part}: {error}"));
            let said = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if said.contains(part) {
                return said;
            }
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGTERM);
        let _ended = self.process.wait();
    }
}

#[test]
fn a_server_without_a_certificate_waits_for_it_and_says_so() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    web1.stop();
    let (cert, elsewhere) = (web1.certs_dir().join("cert.pem"), web1.certs_dir().join("cert.away"));
    fs::rename(&cert, &elsewhere).unwrap();
    let spawner = Unit::start(&fleet, "spawner", &["spawner"]);
    assert!(spawner.says("READY=1").contains("STATUS=starts what callers ask for"));
    let server = Unit::start(&fleet, "server", &["serve", "--spawner-unit", "--await-enrolment"]);
    let said = server.says("READY=1");
    assert!(said.contains("STATUS=waits for its certificate: run `minion enroll`"), "{said}");
    let refused = fleet.overlord(["web1", "test.ping"]).expect(4);
    assert!(refused.out().contains("refused"), "{}", refused.out());
    fs::rename(&elsewhere, &cert).unwrap();
    let said = server.says("listens");
    assert!(said.contains(&format!("STATUS=web1 listens on {}", web1.address())), "{said}");
    let _ = fleet.overlord(["web1", "test.ping"]).ok();
    let env = fleet.overlord(["web1", "command.run", "env", "--output", "json"]).ok().json();
    let env = env["hosts"]["web1"]["result"]["stdout"].as_str().unwrap().to_owned();
    assert!(env.contains("MINION_NAME=web1") && !env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
    for _ in 0..3 {
        let _ = (server.says("WATCHDOG=1"), spawner.says("WATCHDOG=1"));
    }
}

/// Without the word, as by hand, an error is better than silence.
#[test]
fn a_server_that_is_not_to_wait_for_a_certificate_ends() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    web1.stop();
    fs::remove_file(web1.certs_dir().join("cert.pem")).unwrap();
    let mut server = Unit::start(&fleet, "server", &["serve", "--spawner-unit"]);
    assert!(!server.process.wait().unwrap().success());
    server.manager.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(server.manager.recv(&mut [0; 64]).is_err(), "it was not ready");
}
