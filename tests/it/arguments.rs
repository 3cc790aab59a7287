//! Arguments that mean more than they say: options, paths, links, devices, zeros, words of a megabyte. No method goes beyond its rule's user
//! by them, nothing of the minion's own reads them as its own, and what is refused is refused in a few words.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, wait_until};
use nix::unistd::geteuid;
use serde_json::{Value, json};

const DEPLOY: u32 = 4242;
/// Longer than any word of a process may be, and shorter than a request.
const HUGE_BYTES: usize = 900_000;
/// What a refusal takes at most, however long what it refuses is.
const MESSAGE_MAX_BYTES: usize = 1500;

/// What the host itself says to this call: an outcome with its `state`, or the refusal as `refused`. The overlord has no say in it.
fn ask(fleet: &Fleet, method: &str, args: Value) -> Value {
    let answer = fleet.raw_overlord("web1").call(&envelope("admin", "web1", method, args)).unwrap();
    match answer.get("error") {
        Some(error) => json!({ "state": "refused", "error": error }),
        None => answer["result"].clone(),
    }
}

fn run(fleet: &Fleet, args: Value) -> Value {
    ask(fleet, "command.run", args)
}

/// What `args` printed.
fn out(fleet: &Fleet, args: Value) -> String {
    let answer = run(fleet, args);
    answer["result"]["stdout"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// That nothing was started, and why.
fn assert_not_started(answer: &Value, why: &str) {
    assert_eq!((&answer["state"], &answer["error"]["data"]["type"]), (&json!("failed"), &json!("not_started")), "{answer}");
    assert!(message(answer).contains(why), "{why}: {answer}");
}

fn assert_invalid(answer: &Value) {
    assert_eq!((&answer["state"], &answer["error"]["code"]), (&json!("refused"), &json!(-32602)), "{answer}");
    assert!(message(answer).contains("usage: "), "{answer}");
}

fn message(answer: &Value) -> &str {
    let message = answer["error"]["message"].as_str().unwrap_or_else(|| panic!("no error: {:.300}", answer.to_string()));
    assert!(message.len() <= MESSAGE_MAX_BYTES, "{} bytes: {message:.300}", message.len());
    message
}

/// A host where all that `admin` runs is `deploy`'s; none if we are not root, who alone can become another.
fn deploys_host() -> Option<Fleet> {
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return None;
    }
    let rules = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\nrun_as = \"deploy\"\n";
    let fleet = Fleet::builder().hosts(1).own_users().acl(rules).start();
    fleet.minion("web1").add_user("deploy", DEPLOY);
    fleet.minion("web1").add_user("keeper", 4343);
    Some(fleet)
}

fn make_program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_line_or_a_word_is_never_an_option_of_what_the_minion_runs() {
    let fleet = Fleet::start(1);
    for line in ["-x; echo done", "+x; echo done", "--version; echo done", "-; echo done", "-c; echo done"] {
        let answer = run(&fleet, json!({ "line": line }));
        assert_eq!(answer["result"]["stdout"], "done\n", "{answer}");
    }
    let words = json!({ "argv": ["printf", "%s|", "-n", "--", "$HOME", "; id", "`id`", "a\nb", "*", "\\"] });
    assert_eq!(out(&fleet, words), "-n|--|$HOME|; id|`id`|a\nb|*|\\|");
    for program in ["-c", "--help", "-", "sh -c id", "id; id"] {
        assert_not_started(&run(&fleet, json!({ "argv": [program, "id"] })), "No such file");
    }
    assert_invalid(&run(&fleet, json!({ "argv": ["", "id"] })));
    assert_eq!(ask(&fleet, "command.exists", json!(["-v"]))["result"], json!(null));
}

#[test]
fn a_zero_ends_no_word() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let touch = format!("touch {}", runs.display());
    for args in [
        json!({ "line": format!("{touch}\0x") }),
        json!({ "argv": ["touch", runs, "a\0b"] }),
        json!({ "argv": ["touch\0", runs] }),
        json!({ "line": touch, "cwd": "/\0x" }),
        json!({ "line": touch, "env": { "A\0B": "" } }),
        json!({ "line": touch, "env": { "A": "\0" } }),
    ] {
        assert_not_started(&run(&fleet, args), "nul byte");
    }
    assert!(!runs.exists());
    assert_eq!(ask(&fleet, "command.exists", json!(["sh\0"]))["result"], json!(null));
    assert_eq!(ask(&fleet, "command.exists", json!(["/bin/sh\0.txt"]))["result"], json!(null));
    assert_eq!(out(&fleet, json!({ "argv": ["cat"], "stdin": "a\0b" })), "a\0b");
    assert_eq!(ask(&fleet, "test.echo", json!(["a\0b"]))["result"], "a\0b");
}

#[test]
fn a_path_is_the_users_whatever_leads_there() {
    let Some(fleet) = deploys_host() else { return };
    let web1 = fleet.minion("web1");
    let home = web1.inside("/home/deploy");
    for (name, target) in [("roots", "/root"), ("keepers", "/home/keeper"), ("state", "/proc/1/root"), ("usr", "/usr")] {
        symlink(target, home.join(name)).unwrap();
    }
    symlink("loop", home.join("loop")).unwrap();
    let cwd = |cwd: &str| run(&fleet, json!({ "line": "pwd -P", "cwd": cwd }));
    for closed in ["roots", "/home/deploy/keepers", "/home/deploy/usr/../root", "/proc/self/root/root", "/home/keeper", "state"] {
        assert_not_started(&cwd(closed), "Permission denied");
    }
    assert_not_started(&cwd("/home/deploy/loop"), "Too many levels of symbolic links");
    for device in ["/dev/null", "/dev/zero", "/dev/stdin", "/dev/tty", "/etc/passwd", "", "usr/none"] {
        assert_not_started(&cwd(device), "which is no folder");
    }
    // No folder that the minion has open is left open for it.
    for number in 3..20 {
        let answer = cwd(&format!("/proc/self/fd/{number}"));
        assert_not_started(&answer, "which is no folder");
    }
    assert_eq!(out(&fleet, json!({ "line": "pwd -P", "cwd": "usr" })), "/usr\n");
    // The supervisor is root's, and its process no way in.
    let supervisor = "cd /proc/$(awk '/^PPid/{print $2}' /proc/$PPID/status) && { ls fd; cat environ; ls cwd/; ls root/root; }; echo end";
    let found = run(&fleet, json!({ "line": supervisor }))["result"].clone();
    assert_eq!(found["stdout"], "end\n", "{found}");
    assert_eq!(found["stderr"].as_str().unwrap().matches("Permission denied").count(), 4, "{found}");
    // A home that leads elsewhere is entered as the user, too.
    fs::rename(&home, web1.inside("/home/old")).unwrap();
    symlink("/root", &home).unwrap();
    assert_eq!(out(&fleet, json!({ "line": "pwd" })), "/\n");
}

#[test]
fn a_device_is_no_program_and_no_command() {
    let fleet = Fleet::start(1);
    let fifo = fleet.root().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in ["/dev/null", "/dev/zero", "/dev/stdin", "/dev/full", "/etc", "/etc/passwd", fifo.to_str().unwrap()] {
        assert_not_started(&run(&fleet, json!({ "argv": [path] })), "Permission denied");
        assert_eq!(ask(&fleet, "command.exists", json!([path]))["result"], json!(null), "{path}");
    }
}

#[test]
fn exists_looks_where_it_says_and_as_the_user() {
    let Some(fleet) = deploys_host() else { return };
    let web1 = fleet.minion("web1");
    let exists = |name: &str| ask(&fleet, "command.exists", json!({ "name": name }));
    for strange in ["../../x", "../../bin/sh", "./x", "x/../../bin/sh", "bin/sh"] {
        assert_invalid(&exists(strange));
    }
    for none in ["", ".", "..", "no-such-command", "/", "/bin/..", "/home/keeper/tool", "/home/deploy/link"] {
        make_program(&web1.inside("/home/keeper/tool"), "#!/bin/sh\n");
        let _there_already = symlink("/home/keeper/tool", web1.inside("/home/deploy/link"));
        assert_eq!(exists(none)["result"], json!(null), "{none}");
    }
    assert_eq!(exists("/bin/../bin/sh")["result"], "/bin/../bin/sh");
    assert!(exists("sh")["result"].as_str().unwrap().ends_with("/sh"));
    let roots = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n";
    web1.set_acl(roots);
    assert_eq!(exists("/home/keeper/tool")["result"], "/home/keeper/tool", "it was there for root");
}

#[test]
fn an_environment_is_the_commands_alone() {
    let Some(fleet) = deploys_host() else { return };
    let web1 = fleet.minion("web1");
    for program in ["id", "sh", "sleep", "ls"] {
        let path = web1.inside("/home/deploy/bin").join(program);
        make_program(&path, "#!/bin/sh\necho mine\n/usr/bin/id -u\n");
        chown(&path, Some(DEPLOY), None).unwrap();
    }
    let env =
        json!({ "PATH": "/home/deploy/bin", "BASH_ENV": "/home/deploy/bin/id", "ENV": "/home/deploy/bin/id", "IFS": "/", "HOME": "/root" });
    assert_eq!(out(&fleet, json!({ "argv": ["id"], "env": env })), "mine\n4242\n");
    assert_eq!(out(&fleet, json!({ "line": "id", "env": env })), "mine\n4242\n");
    // What is loaded before all else is loaded into processes of the user's alone.
    let loaded = json!({ "LD_PRELOAD": "/home/deploy/evil.so", "LD_LIBRARY_PATH": "/home/deploy" });
    let id = fleet.start_job(["web1", "command.run", "--json", &json!({ "argv": ["/bin/sleep", "600"], "env": loaded }).to_string()]);
    let marked = || {
        let environ = |pid: i32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_marked = |pid: &i32| environ(*pid).windows(7).any(|part| part == b"evil.so");
        web1.beside().into_iter().map(|process| process.pid).filter(is_marked).collect::<Vec<_>>()
    };
    wait_until("it to sleep", PATIENCE, || !marked().is_empty());
    for pid in marked() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Uid:\t4242\t4242\t4242\t4242"), "{status}");
    }
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    // By these the minion knows what is whose.
    for own in ["MINION_NAME", "OVERLORD_JOB_ID", "MINION_JOB_ID"] {
        assert_invalid(&run(&fleet, json!({ "line": "true", "env": { own: "another" } })));
    }
    for none in ["", "A=B", "="] {
        assert_invalid(&run(&fleet, json!({ "line": "true", "env": { none: "" } })));
    }
}

#[test]
fn a_word_of_a_megabyte_is_refused_in_a_few() {
    let fleet = Fleet::start(1);
    let huge = "x".repeat(HUGE_BYTES);
    for args in [json!({ "argv": ["true", huge] }), json!({ "line": huge }), json!({ "line": "true", "env": { "A": huge } })] {
        assert_not_started(&run(&fleet, args), "Argument list too long");
    }
    for (args, why) in [
        (json!({ "argv": [huge] }), "No such file"),
        (json!({ "argv": [format!("/{huge}")] }), "File name too long"),
        (json!({ "line": "true", "cwd": format!("/{huge}") }), "which is no folder"),
    ] {
        let answer = run(&fleet, args);
        assert_eq!(answer["error"]["data"]["type"], "not_started", "{why}");
        assert!(["No such file", "File name too long", "Argument list too long"].iter().any(|why| message(&answer).contains(why)), "{why}");
    }
    let many: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
    let argv = [["sh", "-c", "echo $#"].map(str::to_owned).to_vec(), many].concat();
    assert_eq!(out(&fleet, json!({ "argv": argv })), "99999\n");
    for (method, args) in [
        ("command.run", json!({ "line": "true", "timeout": huge })),
        ("command.run", json!({ "line": "true", huge.as_str(): 1 })),
        ("command.run", json!({ huge.as_str(): 1 })),
        ("command.run", json!([huge, huge, huge])),
        ("command.exists", json!({ "name": format!("a/{huge}") })),
        ("system.describe", json!([huge])),
        ("system.list_methods", json!([huge])),
        ("jobs.status", json!([huge])),
        ("jobs.logs", json!({ "id": huge })),
        ("jobs.fence", json!([huge])),
        ("certs.revocations", json!({ "crl": huge })),
        ("test.add", json!([huge, 1])),
        ("test.sleep", json!([huge])),
        (huge.as_str(), json!([])),
    ] {
        let answer = ask(&fleet, method, args);
        assert_ne!(answer["state"], "ok", "{method:.40}");
        let _is_short = message(&answer);
    }
    assert_eq!(ask(&fleet, "command.exists", json!([huge]))["result"], json!(null));
    assert_eq!(ask(&fleet, "command.exists", json!([format!("/{huge}")]))["result"], json!(null));
    assert_eq!(ask(&fleet, "test.echo", json!([huge]))["result"].as_str().unwrap().len(), HUGE_BYTES);
}

/// What looks like a path where an id or a name belongs.
#[test]
fn an_id_or_a_name_is_never_a_path() {
    let fleet = Fleet::start(1);
    let before = fleet.minion("web1").spools();
    for path in ["../x", "..", ".", "/", "/etc/passwd", "", "54k2-9xqd-4fz1/../x", "-", "\0", "*"] {
        for method in ["jobs.status", "jobs.cancel", "jobs.delete", "jobs.logs"] {
            assert_invalid(&ask(&fleet, method, json!({ "id": path })));
        }
        assert_invalid(&ask(&fleet, "jobs.fence", json!({ "call_id": path })));
        assert_invalid(&ask(&fleet, "system.describe", json!({ "method": path })));
        assert_eq!(ask(&fleet, "system.list_methods", json!({ "module": path }))["error"]["data"]["type"], "unknown_module");
        let crl = ask(&fleet, "certs.revocations", json!({ "crl": path }));
        assert_ne!(crl["state"], "ok", "{crl}");
    }
    assert_eq!(fleet.minion("web1").spools(), before);
}
