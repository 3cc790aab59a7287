//! What a worker's tasks cost: thousands of them to one host through the whole way, over a connection that is kept; and over the control socket
//! alone, where methods ask.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

const TASKS: u32 = 10_000;
const ROUNDS: usize = 3;
/// How many tasks are under way at once over the control socket.
const AT_ONCE: u32 = 16;

pub(crate) fn run() {
    for instances in [1, 2, 4] {
        let fleet = Fleet::start(1);
        describe_echo(&fleet, instances);
        let file = fleet.root().join("items");
        let items: String = (0..TASKS).map(|number| format!("[\"echo\",\"{number}\"]\n")).collect();
        fs::write(&file, items).unwrap();
        let file = file.to_str().unwrap();
        let through = rounds(|| {
            let run = fleet.overlord(["map", "web1", "worker.run", "--items", file, "--in-flight", &instances.to_string()]).ok();
            assert_eq!(run.out().lines().count(), TASKS as usize);
        });
        println!("{instances} instances in Python: overlord map of {TASKS} tasks: {}", crate::spread(&through));
        println!("that is {:.0} round trips/s (goal: at least 10,000)", rate(crate::median(through)));
        let control = fleet.minion("web1").state_dir().join("workers/echo/control.sock");
        let alone = rounds(|| ask_all(&control, AT_ONCE));
        println!("its control socket alone, {AT_ONCE} at once: {:.0} round trips/s", rate(crate::median(alone)));
        let alone = rounds(|| ask_all(&control, 1));
        println!("its control socket alone, one after the other: {:.0} round trips/s", rate(crate::median(alone)));
    }
}

/// A worker `echo` on the first host, in Python: it gives each payload back. Its instances are idle when this comes back.
pub(crate) fn describe_echo(fleet: &Fleet, instances: u32) {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/workers");
    let program = fleet.root().join("echo.py");
    let text = format!(
        "import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nfrom minion_worker import Worker\nWorker().serve(lambda task: task.payload)\n",
        library.display().to_string()
    );
    fs::write(&program, text).unwrap();
    let folder = fleet.minion("web1").config_file().parent().unwrap().join("workers.d");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let user = if nix::unistd::geteuid().is_root() { "user = \"root\"\n" } else { "" };
    let command = json!(["python3", program]);
    let draft = folder.join(".echo.new");
    fs::write(&draft, format!("command = {command}\n{user}instances = {instances}\n")).unwrap();
    fs::rename(&draft, folder.join("echo.toml")).unwrap();
    wait_until("the worker's instances to be idle", PATIENCE, || {
        let run = fleet.overlord(["web1", "worker.list", "echo", "--output", "json"]);
        run.json()["hosts"]["web1"]["result"]["echo"]["idle"] == instances
    });
}

/// How long `work` takes, after a round that warms up.
fn rounds(mut work: impl FnMut()) -> Vec<Duration> {
    work();
    let timed = || {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    std::iter::repeat_with(timed).take(ROUNDS).collect()
}

fn rate(took: Duration) -> f64 {
    f64::from(TASKS) / took.as_secs_f64()
}

/// All tasks over one connection, so many at once.
fn ask_all(control: &Path, at_once: u32) {
    let mut said = UnixStream::connect(control).unwrap();
    let mut heard = BufReader::new(said.try_clone().unwrap()).lines();
    let request = |number: u32| {
        let params = json!({ "payload": { "text": number.to_string() }, "by": "bench" });
        format!("{}\n", json!({ "jsonrpc": "2.0", "id": number, "method": "task.run", "params": params }))
    };
    said.write_all((0..at_once).map(request).collect::<String>().as_bytes()).unwrap();
    for number in at_once..TASKS + at_once {
        let answer: Value = serde_json::from_str(&heard.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["result"]["result"], answer["id"].to_string(), "{answer}");
        if number < TASKS {
            said.write_all(request(number).as_bytes()).unwrap();
        }
    }
}
