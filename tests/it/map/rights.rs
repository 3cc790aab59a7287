//! Whose items run, as whom, and what of a host that is believed no more.

use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::json;

use super::{items, lines, map, marks, message};

/// A host that is revoked in the middle gets nothing more, though the connection to it is open.
#[test]
fn a_host_that_is_revoked_in_the_middle_gets_nothing_more() {
    let fleet = Fleet::start(2);
    let marks = marks(&fleet);
    // `web1` is at its item until it is stopped, and `web2` until then, so that it does not do all of them.
    let line = |item: usize| {
        let here = marks.display();
        json!([format!(
            "echo {item} >> {here}/$MINION_NAME; if [ $MINION_NAME = web1 ]; then sleep $((4321+1)); fi; until [ -e {here}/go ]; do sleep 0.02; done; echo {item}"
        )])
    };
    let file = items(&fleet, (0..12).map(line));
    let running = fleet.overlord_spawn(["map", "*", "command.run", "--items", &file, "--output", "jsonl"]);
    let begun = |host: &str| std::fs::read_to_string(marks.join(host)).unwrap_or_default().lines().count();
    wait_until("both hosts to begin", PATIENCE, || begun("web1") == 1 && begun("web2") == 1 && !fleet.running("sleep 4322").is_empty());
    let _ = fleet.overlord(["certs", "revoke", "minion/web1"]);
    wait_until("the item to be stopped there", PATIENCE, || fleet.running("sleep 4322").is_empty());
    std::fs::write(marks.join("go"), "").unwrap();
    let run = running.wait().expect(4);
    let (lines, summary) = lines(&run, 12);
    assert_eq!((summary, begun("web1")), (json!({ "ok": 11, "lost": 1 }), 1), "{}", run.out());
    let lost = lines.iter().find(|line| line["state"] == "lost").unwrap();
    assert!(message(lost).contains("revoked while it was asked"), "{lost}");
}

/// What a rule says of a method holds for its items: the user as whom they run, where the server is not believed.
#[test]
fn items_run_as_the_user_whom_the_rule_names() {
    if !nix::unistd::geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let rule = "[[allow]]\ncaller = \"*\"\nmethods = [\"*\"]\nrun_as = \"daemon\"\n";
    let fleet = Fleet::builder().hosts(1).user("nobody").acl(rule).start();
    let run = map(&fleet, "command.run", (0..20).map(|_| json!(["id -un"])), &[]).ok();
    assert!(lines(&run, 20).0.iter().all(|line| line["result"]["stdout"] == "daemon\n"), "{}", run.out());
}

#[test]
fn who_may_not_call_it_may_not_map_it() {
    let fleet = Fleet::builder().hosts(2).acl("[[allow]]\ncaller = \"*\"\nmethods = [\"test.echo\"]\n").start();
    let run = map(&fleet, "test.square", (0..5).map(|number| json!(number)), &[]).expect(2);
    let (lines, summary) = lines(&run, 5);
    assert_eq!(summary, json!({ "denied": 5 }));
    assert!(message(&lines[0]).contains("no rule lets admin call test.square"), "{}", lines[0]);
    let _ = map(&fleet, "test.echo", (0..5).map(|number| json!(number)), &[]).ok();
    for method in ["jobs.list", "test.nothing"] {
        fleet.minions().iter().for_each(|minion| minion.set_acl("[[allow]]\ncaller = \"*\"\nmethods = [\"*\"]\n"));
        let run = map(&fleet, method, [json!([])], &[]).expect(2);
        let (lines, _) = super::lines(&run, 1);
        assert_eq!(lines[0]["state"], "failed", "{}", lines[0]);
    }
}
