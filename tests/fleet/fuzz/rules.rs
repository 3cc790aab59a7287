//! The rules of who may do what, as they are written.

use std::path::Path;
use std::sync::LazyLock;

use common::identity::CallerName;
use common::method::MethodName;
use minion::acl::{Decision, Rules, Scope, decide};
use minion::modules::Registry;

static METHODS: LazyLock<Vec<MethodName>> = LazyLock::new(|| Registry::builtin().specs().map(|spec| spec.method.clone()).collect());

static CALLERS: LazyLock<Vec<CallerName>> =
    LazyLock::new(|| ["admin", "ops-1", "deploy", "a.b.c"].map(|name| name.parse().expect("it is a name")).into());

/// The bytes as a file of rules.
pub fn rules(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("/etc/minion/acl.d/all.toml");
    let lines = text.matches('\n').count() + 1;
    let (none, mut rules) = (Rules::default(), Rules::default());
    if let Err(problem) = rules.add(path, text) {
        assert!(problem.line.is_some_and(|line| line >= 1 && line <= lines), "{problem}");
        assert!(rules.is_empty(), "of a file with a mistake no rule holds");
    }
    let mut twice = rules.clone();
    if twice.add(path, text).is_ok() {
        assert_eq!(twice.len(), 2 * rules.len());
    }
    for caller in CALLERS.iter() {
        for method in METHODS.iter() {
            let decision = decide(&rules, caller, method);
            assert_eq!(decision, decide(&twice, caller, method), "the same rules again say the same");
            match &decision {
                Decision::Allow { rule, scope: Scope::All, .. } => stands_in(rule, lines, rules.len()),
                // A rule about a caller can widen what he may do with his own jobs, and nothing narrows it.
                Decision::Allow { scope: Scope::Own, .. } => assert!(matches!(method.module(), "jobs" | "certs"), "{caller} {method}"),
                Decision::Deny => assert_eq!(decide(&none, caller, method), Decision::Deny, "{caller} {method}"),
            }
        }
    }
}

fn stands_in(place: &str, lines: usize, rules: usize) {
    let line = place.strip_prefix("all.toml:").and_then(|line| line.parse::<usize>().ok());
    assert!(rules > 0 && line.is_some_and(|line| line >= 1 && line <= lines), "{place}");
}
