//! How far a worker's task is, as `job-status` tells it: while it runs, and after whatever end.

use super::*;

fn host_of(host: &Host, job: &str) -> Value {
    host.fleet.job_status(job)["hosts"]["web1"].clone()
}

fn wait_for_report(host: &Host, job: &str, fraction: f64) -> Value {
    wait_for("the report", PATIENCE, || Some(host_of(host, job)).filter(|web1| web1["progress"]["fraction"] == json!(fraction)))
}

fn wait_for_end(host: &Host, job: &str) -> Value {
    wait_for("the end", PATIENCE, || Some(host_of(host, job)).filter(|web1| web1["finished_at"].is_string()))
}

#[test]
fn a_tasks_progress_is_its_jobs_and_is_kept_whatever_the_end() {
    let host = Host::start();
    host.pytask("[restart]\nleast = \"50ms\"\n");
    let (gate, line) = host.gate("gate");
    let payload =
        format!("task.progress(7.5, 'x')\ntask.progress(0.5, 'half')\n{line}\ntask.progress(0.75, 'more')\nraise ValueError('boom')");
    let failing = host.fleet.start_job(["web1", "worker.run", "pytask", &payload]);
    let running = wait_for_report(&host, &failing, 0.5);
    assert_eq!((&running["state"], &running["progress"]["message"], running.get("result")), (&json!("running"), &json!("half"), None));
    fs::write(gate, "").unwrap();
    let end = wait_for_end(&host, &failing);
    assert_eq!(
        (&end["state"], &end["error"]["message"], &end["error"]["data"]["type"]),
        (&json!("failed"), &json!("boom"), &json!("ValueError"))
    );
    assert_eq!((&end["progress"]["fraction"], &end["progress"]["message"]), (&json!(0.75), &json!("more")), "{end}");
    assert_eq!(host_of(&host, &failing), end, "read again, it is the same");

    let (_gate, line) = host.gate("never");
    let killed = host.fleet.start_job(["web1", "worker.run", "pytask", &format!("task.progress(1/4, 'quarter')\n{line}")]);
    wait_for_report(&host, &killed, 0.25);
    kill9(host.pid("pytask", 1));
    let end = wait_for_end(&host, &killed);
    assert_eq!((&end["error"]["data"]["type"], &end["progress"]["message"]), (&json!("worker_died"), &json!("quarter")), "{end}");
}

#[test]
fn a_worker_in_a_shell_says_how_far_it_is_too_and_nonsense_costs_nothing() {
    let host = Host::start();
    let gate = host.fleet.root().join("gate");
    let script = host.fleet.root().join("steps.sh");
    let minion = binaries().minion.display();
    let text = format!(
        "while id=$({minion} task fetch payload); do\n\
         {minion} task progress \"$id\" 1.25 far; {minion} task progress \"$id\" -- -1 back; {minion} task progress strange-1 0.9 others\n\
         {minion} task progress \"$id\" 0.5 'half done'\n\
         while ! test -e {gate}; do sleep 0.02; done\n\
         {minion} task return \"$id\" payload\ndone\n",
        gate = gate.display()
    );
    fs::write(&script, format!("cd {}\n{text}", host.fleet.root().display())).unwrap();
    host.worker("steps", &["/bin/sh", script.to_str().unwrap()], "");
    let job = host.fleet.start_job(["web1", "worker.run", "steps", "x"]);
    let running = wait_for_report(&host, &job, 0.5);
    assert_eq!(running["progress"]["message"], "half done");
    fs::write(gate, "").unwrap();
    let end = wait_for_end(&host, &job);
    assert_eq!((&end["result"], &end["progress"]["message"]), (&json!("x"), &json!("half done")), "{end}");
}
