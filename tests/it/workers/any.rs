//! `--any`: one host of the target gets the task.

use super::*;

#[test]
fn an_idle_host_gets_it_and_a_busy_fleet_queues() {
    let fleet = Fleet::start(3);
    let file = examples().join("pytask.py");
    for name in ["web1", "web2"] {
        describe(fleet.minion(name), "pytask", &["python3", "-Bu", file.to_str().unwrap()], "");
    }
    let lists = || {
        let list = fleet.overlord(["web1,web2", "worker.list", "pytask", "--output", "json"]).json();
        ["web1", "web2"].map(|host| list["hosts"][host]["result"]["pytask"].clone())
    };
    wait_until("both to be idle", PATIENCE, || lists().iter().all(|list| list["idle"] == 1));
    let gate = fleet.root().join("gate");
    let line = format!("import os, time\nwhile not os.path.exists({gate:?}): time.sleep(0.01)\nprint(os.environ['MINION_NAME'], end='')");
    let call = |payload: &str| fleet.overlord_spawn(["*", "worker.run", "pytask", payload, "--any", "--output", "json"]);
    let busy =
        |count: usize| move |lists: &[Value; 2]| lists.iter().filter(|list| list["instances"][0]["state"] == "busy").count() == count;
    let first = call(&line);
    wait_until("one to be busy", PATIENCE, || busy(1)(&lists()));
    let second = call(&line);
    wait_until("both to be busy", PATIENCE, || busy(2)(&lists()));
    let job = fleet.start_job(["*", "worker.run", "pytask", &line, "--any"]);
    wait_until("one to wait", PATIENCE, || lists().iter().map(|list| list["queued"].as_u64().unwrap()).sum::<u64>() == 1);
    let fourth = call(&line);
    wait_until("one to wait at each", PATIENCE, || lists().iter().all(|list| list["queued"] == 1));
    fs::write(gate, "").unwrap();
    let mut hosts = Vec::new();
    for run in
        [first.wait().ok(), second.wait().ok(), fourth.wait().ok(), fleet.overlord(["job-status", &job, "--wait", "--output", "json"]).ok()]
    {
        let answers = run.json()["hosts"].as_object().unwrap().clone();
        assert_eq!(answers.len(), 1, "one host alone is asked: {answers:?}");
        hosts.extend(answers.into_iter().map(|(host, answer)| {
            assert_eq!(answer["result"], host);
            host
        }));
    }
    hosts.sort();
    assert_eq!(hosts, ["web1", "web1", "web2", "web2"]);
}

#[test]
fn where_no_host_has_the_worker_that_is_told() {
    let fleet = Fleet::start(2);
    let run = fleet.overlord(["*", "worker.run", "pytask", "x", "--any"]).expect(2);
    assert!(
        run.err().contains("no host of the target can take a task of pytask")
            && run.err().contains("web1: no worker pytask: this host has none"),
        "{}",
        run.err()
    );
    let run = fleet.overlord(["*", "test.ping", "--any"]).expect(64);
    assert!(run.err().contains("--any is for worker.run"), "{}", run.err());
}
