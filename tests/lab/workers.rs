//! A resident worker on a real host: its tasks survive restarts and an upgrade of the minion, its daemon gives way to the new version once it is idle,
//! and a purge leaves nothing of it.

use std::time::Duration;

use fleet::lab::{Host, Lab, SERVER, SPAWNER, Version, deb};
use fleet::{PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};

/// A daemon of an older version gives way ten seconds after its program was replaced, if it has no task then.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(60);

/// Waits for the file that a payload names, and returns which process has done how many tasks.
const STEPS: &str = "count=0 dir=$(mktemp -d)
while id=$(minion task fetch $dir/payload); do
    count=$((count + 1))
    while ! [ -e /srv/go-$(cat $dir/payload) ]; do sleep 0.05; done
    printf '%s %s' $$ $count >$dir/result
    minion task return $id $dir/result
done
";
const FILE: &str = "command = [\"/bin/sh\", \"/srv/steps.sh\"]\nuser = \"nobody\"\n";

fn workers(lab: &Lab) -> Value {
    lab.overlord(["h1", "worker.list", "--output", "json"]).ok().json()["hosts"]["h1"]["result"].clone()
}

fn steps(lab: &Lab) -> Value {
    workers(lab)["steps"].clone()
}

fn start(lab: &Lab, payload: &str) -> String {
    lab.overlord(["h1", "worker.run", "steps", payload, "--async"]).ok().out().trim().to_owned()
}

fn result(lab: &Lab, job: &str) -> Value {
    lab.overlord(["job-status", job, "--wait", "--output", "json"]).ok().json()["hosts"]["h1"]["result"].clone()
}

/// Two jobs, one under way and one that waits, while something is `done` to the host; then both end in the process that was there before.
fn no_task_is_lost(lab: &Lab, host: &Host, tags: [&str; 2], done: impl FnOnce()) {
    let first = start(lab, tags[0]);
    wait_until("the first to be under way", PATIENCE, || steps(lab)["instances"][0]["state"] == "busy");
    let second = start(lab, tags[1]);
    let before = wait_for("the second to wait", PATIENCE, || Some(steps(lab)).filter(|steps| steps["queued"] == 1));
    done();
    lab.is_well();
    let after = steps(lab);
    let told =
        |steps: &Value| json!([steps["daemon_pid"], steps["queued"], steps["instances"][0]["pid"], steps["instances"][0]["task_id"]]);
    assert_eq!(told(&after), told(&before), "{after:#}");
    let count = after["done"].as_u64().unwrap();
    let pid = &after["instances"][0]["pid"];
    for (tag, job, more) in [(tags[0], first, 1), (tags[1], second, 2)] {
        host.write(&format!("/srv/go-{tag}"), "");
        assert_eq!(result(lab, &job), format!("{pid} {}", count + more));
    }
}

#[test]
fn a_workers_tasks_survive_restarts_and_an_upgrade_and_a_purge_leaves_nothing_of_it() {
    let lab = Lab::enrolled(1);
    let host = lab.host("h1");
    assert_eq!(workers(&lab), json!({}), "the example is none until somebody puts it there");
    let example = host.read("/usr/share/overlord-minion/workers/pytask.toml").unwrap();
    assert!(example.contains("/usr/share/overlord-minion/workers/pytask.py"));
    assert!(host.path("/usr/share/overlord-minion/workers/minion_worker.py").exists());
    host.write("/srv/steps.sh", STEPS);
    host.write("/etc/minion/workers.d/steps.toml", FILE);
    wait_until("the worker to be idle", PATIENCE, || steps(&lab)["idle"] == 1);

    no_task_is_lost(&lab, host, ["a", "b"], || drop(host.run(&format!("systemctl restart {SERVER} {SPAWNER}")).ok()));
    no_task_is_lost(&lab, host, ["c", "d"], || host.kill_unit(SPAWNER));
    no_task_is_lost(&lab, host, ["e", "f"], || {
        let job = lab.overlord(["h1", "minion.upgrade", &deb("overlord-minion", Version::Next), "--async"]).ok().out();
        assert_eq!(result(&lab, job.trim())["changed"], true);
    });

    // It has no task any more: the new version has its place, and what is asked for meanwhile waits for that.
    let old = steps(&lab)["daemon_pid"].clone();
    host.write("/srv/go-g", "");
    wait_until("the old daemon to give way", GIVES_WAY_WITHIN, || {
        let run = lab.overlord(["h1", "worker.run", "steps", "g", "--output", "json"]);
        assert_eq!(run.json()["hosts"]["h1"]["state"], "ok", "{}", run.out());
        steps(&lab)["daemon_pid"].as_u64().is_some_and(|pid| old != pid)
    });
    let program = host.run(&format!("readlink /proc/{}/exe", steps(&lab)["daemon_pid"])).ok().out();
    assert_eq!(program, "/usr/bin/minion\n");

    let _running = start(&lab, "never");
    wait_until("it to be under way", PATIENCE, || steps(&lab)["instances"][0]["state"] == "busy");
    let _ = host.run("apt-get purge -y overlord-minion").ok();
    assert_eq!(
        host.run("pgrep -l minion; pgrep -lf [s]teps.sh; ls -d /etc/minion /var/lib/minion /usr/share/overlord-minion 2>/dev/null").out(),
        ""
    );
}
