//! Whose tasks a caller sees and stops: its own, and those of others with the right that their jobs would take.

use super::*;

const RULES: &str = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n[[allow]]\ncaller = [\"guest\"]\nmethods = [\"worker.*\"]\n";

struct Guest<'a>(&'a Host, PathBuf);

impl Guest<'_> {
    fn call(&self, args: &[&str]) -> Running {
        self.0.fleet.overlord_at(&self.1, [&["web1"], args, &["--output", "json"]].concat())
    }

    fn list(&self) -> Value {
        outcome(&self.call(&["worker.list", "pytask"]).wait().ok())["result"]["pytask"].clone()
    }

    fn cancel(&self, task: &str) -> Value {
        outcome(&self.call(&["worker.cancel", "pytask", task]).wait())
    }
}

#[test]
fn a_caller_stops_its_own_tasks_and_those_of_others_only_where_it_may_stop_their_jobs() {
    let host = Host { fleet: Fleet::builder().hosts(1).acl(RULES).start() };
    host.pytask("instances = 2\n");
    let guest = Guest(&host, host.fleet.another_overlord("guest"));
    let (gate, line) = host.gate("gate");
    let admins = host.spawn("pytask", &line);
    let task = host.wait_until_busy("pytask", 1);
    let guests = guest.call(&["worker.run", "pytask", &line]);
    let guests_task = host.wait_until_busy("pytask", 2);
    let waiting = host.spawn("pytask", "print('waited', end='')");
    wait_until("one to wait", PATIENCE, || host.list("pytask")["queued"] == 1);

    // The ids of tasks can be guessed, and it helps nobody.
    let (word, _) = task.rsplit_once('-').unwrap();
    for others in [task.clone(), format!("{word}-3")] {
        let denied = guest.cancel(&others);
        assert_eq!(denied["state"], "denied", "{denied}");
        let message = denied["error"]["message"].as_str().unwrap();
        assert!(message.contains("another caller's") && message.contains("lets guest call jobs.cancel"), "{message}");
    }
    let list = host.list("pytask");
    assert_eq!((&list["instances"][0]["task_id"], &list["queued"]), (&json!(task), &json!(1)), "{list}");

    assert_eq!(guest.cancel(&guests_task)["result"], json!({ "task_id": guests_task, "was": "running" }));
    let stopped = outcome(&guests.wait());
    assert!(stopped["error"]["message"].as_str().unwrap().contains("cancelled by guest"), "{stopped}");
    assert_eq!(outcome(&waiting.wait())["result"], "waited");

    let again = guest.call(&["worker.run", "pytask", &line]);
    let guests_task = host.wait_until_busy("pytask", 2);
    assert_eq!(host.cancel("pytask", &guests_task)["result"]["was"], "running", "admin may stop the jobs of others");
    assert_eq!(outcome(&again.wait())["state"], "cancelled");
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&admins.wait())["result"], "through");
}

#[test]
fn a_list_shows_no_payload_and_of_others_tasks_neither_whose_they_are_nor_what_they_say() {
    let host = Host { fleet: Fleet::builder().hosts(1).acl(RULES).start() };
    host.pytask("instances = 2\n");
    let guest = Guest(&host, host.fleet.another_overlord("guest"));
    let (gate, line) = host.gate("gate");
    let admins = host.spawn("pytask", &format!("task.progress(0.5, 'of admin')\nsecret = 'abracadabra'\n{line}"));
    host.wait_until_busy("pytask", 1);
    let guests = guest.call(&["worker.run", "pytask", &format!("task.progress(0.25, 'of guest')\n{line}")]);
    host.wait_until_busy("pytask", 2);
    let waiting = host.spawn("pytask", "print('abracadabra', end='')");
    let all = wait_for("all to be told", PATIENCE, || {
        Some(host.list("pytask")).filter(|all| all["queued"] == 1 && (0..2).all(|at| all["instances"][at]["progress"].is_object()))
    });
    let told = |list: &Value, at: usize| (list["instances"][at]["caller"].clone(), list["instances"][at]["progress"]["message"].clone());
    assert_eq!(told(&all, 0), (json!("admin"), json!("of admin")));
    assert_eq!(told(&all, 1), (json!("guest"), json!("of guest")));
    let own = guest.list();
    assert_eq!(told(&own, 0), (Value::Null, Value::Null));
    assert_eq!(told(&own, 1), (json!("guest"), json!("of guest")));
    assert_eq!((&own["instances"][0]["state"], &own["queued"]), (&json!("busy"), &json!(1)));
    for list in [all, own] {
        assert!(!list.to_string().contains("abracadabra"), "{list}");
    }
    fs::write(gate, "").unwrap();
    assert_eq!([admins, guests, waiting].map(|call| outcome(&call.wait())["result"].clone()), ["through", "through", "abracadabra"]);
}
