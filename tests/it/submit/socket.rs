//! The socket where jobs submit calls: what anybody on the host can say there, and how little it costs the others.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use fleet::captured::CapturedServer;
use fleet::{Fleet, PATIENCE, Running, acting_as, binaries, wait_until};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use super::{Parent, assert_state, say, say_json};

#[test]
fn whoever_says_nothing_keeps_nobody_out_for_long() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nheader_timeout = \"1s\"\nbody_max_bytes = 65536\n").start();
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    let socket = web1.state_dir().join("submit.sock");
    let connect = || UnixStream::connect(&socket).unwrap();
    let _silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    let refused = say_json(web1, &json!({}));
    assert_eq!(refused["error"]["data"]["type"], "no_place", "{refused}");
    assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
}

#[test]
fn a_user_who_floods_the_socket_keeps_no_other_user_out() {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    // What keeps a user out is to be the socket, and not the harness's folder around it.
    fs::set_permissions(fleet.root(), Permissions::from_mode(0o755)).unwrap();
    let (minion, over) = (fleet.root().join("minion"), fleet.root().join("over"));
    assert!(Command::new("cp").arg(&binaries().minion).arg(&minion).status().unwrap().success());
    let line = format!("while [ ! -e {} ]; do {} submit test.ping; done", over.display(), minion.display());
    let flood = || {
        let mut nobody = Command::new("setpriv");
        nobody
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &line])
            .env("MINION_SUBMIT_SOCKET", web1.state_dir().join("submit.sock"));
        nobody
            .env("MINION_NAME", "web1")
            .env("MINION_CALLER", "admin")
            .env("MINION_JOB_TOKEN", format!("{}.{}", parent.id, "0".repeat(64)));
        Running::start(nobody)
    };
    let floods: Vec<Running> = (0..12).map(|_| flood()).collect();
    let spawners = || CapturedServer::of(web1).audit().iter().filter(|line| line["decision"] == "refuse").count();
    wait_until("the flood", PATIENCE, || spawners() > 40);
    for _ in 0..5 {
        assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
    }
    fs::write(&over, "").unwrap();
    floods.into_iter().for_each(|flood| drop(flood.wait()));
    // It fills no log: the server counts, and the spawner has a small file for it.
    let refused = |lines: Vec<Value>| lines.into_iter().filter(|line| line["decision"] == "refuse" && line["caller"] == "");
    assert!((8..40).contains(&refused(web1.audit()).count()));
    assert!(!web1.spools_dir().join("refused.log").exists());
    web1.stop();
    let is_told = |line: Value| line["rule"].as_str().unwrap().ends_with("more submissions of the user 65534 were refused within 60 s");
    assert!(refused(web1.audit()).any(is_told), "{:?}", web1.audit());
}

#[test]
fn seven_users_who_take_every_place_they_get_keep_no_eighth_out() {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nheader_timeout = \"10m\"\n").start();
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    fs::set_permissions(fleet.root(), Permissions::from_mode(0o755)).unwrap();
    let socket = web1.state_dir().join("submit.sock");
    let connect = || (0..70).map(|_| UnixStream::connect(&socket).unwrap()).collect::<Vec<_>>();
    let others = ["daemon", "bin", "sys", "games", "man", "mail", "nobody"];
    let _silent: Vec<_> = others.into_iter().flat_map(|other| acting_as(other, "nogroup", connect)).collect();
    let refused = say_json(web1, &json!({}));
    assert!(refused["error"]["message"].as_str().unwrap().contains("what was said is not"), "{refused}");
    for _ in 0..5 {
        assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
    }
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
