//! What this minion can do, and what kind of host it is on. Read from memory and `/proc`, so the server answers it itself.

use std::fs;

use common::method::{MethodName, MethodSpec};
use common::outcome::{ErrorCode, Failure};
use nix::sys::utsname::uname;
use procfs::Current as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Method, Module, NoArguments, beginning};

pub(super) struct System;

impl Module for System {
    const NAME: &'static str = "system";

    fn methods() -> Vec<Method> {
        vec![
            Method::inline("system.list_modules", "The names of the modules.", list_modules),
            Method::inline("system.list_methods", "The names of the methods, of one module or of all.", list_methods),
            Method::inline("system.describe", "What a method does, and the schema of its arguments.", describe),
            Method::inline("system.inventory", "What kind of host this is.", inventory),
        ]
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ListMethods {
    /// A module's name.
    module: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Describe {
    /// `module.method`.
    #[schemars(with = "String")]
    method: MethodName,
}

fn list_modules(_: NoArguments, context: &Context<'_>) -> Result<Vec<&'static str>, Failure> {
    Ok(context.registry.modules().collect())
}

fn list_methods(args: ListMethods, context: &Context<'_>) -> Result<Vec<String>, Failure> {
    let wanted = |spec: &&MethodSpec| args.module.as_deref().is_none_or(|module| spec.method.module() == module);
    let methods: Vec<String> = context.registry.specs().filter(wanted).map(|spec| spec.method.to_string()).collect();
    match args.module {
        Some(module) if methods.is_empty() => {
            let modules: Vec<&str> = context.registry.modules().collect();
            Err(Failure::of_kind("unknown_module", format!("there is no module {:?}; there are {}", beginning(module), modules.join(", "))))
        }
        _ => Ok(methods),
    }
}

fn describe(args: Describe, context: &Context<'_>) -> Result<MethodSpec, Failure> {
    let method = context.registry.find(&args.method).ok_or_else(|| context.registry.unknown(&args.method))?;
    Ok(method.spec().clone())
}

/// What kind of host it is. What cannot be read is `null`: a container may hide it.
#[derive(Serialize)]
struct Inventory {
    hostname: Option<String>,
    os: Os,
    kernel: Option<String>,
    arch: Option<String>,
    cpus: Option<usize>,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    uptime_seconds: Option<u64>,
    boot_id: Option<String>,
    minion_version: &'static str,
}

/// What `os-release` says, see os-release(5).
#[derive(Serialize)]
struct Os {
    id: Option<String>,
    version: Option<String>,
    name: Option<String>,
}

fn inventory(_: NoArguments, _: &Context<'_>) -> Result<Inventory, Failure> {
    let names = uname().map_err(|error| Failure::new(ErrorCode::Failed, format!("cannot ask the kernel for its name: {error}")))?;
    let text = |name: &std::ffi::OsStr| name.to_str().map(str::to_owned);
    let memory = procfs::Meminfo::current().ok();
    Ok(Inventory {
        hostname: text(names.nodename()),
        os: os(),
        kernel: text(names.release()),
        arch: text(names.machine()),
        cpus: procfs::CpuInfo::current().ok().map(|cpus| cpus.num_cores()),
        memory_bytes: memory.as_ref().map(|memory| memory.mem_total),
        memory_available_bytes: memory.as_ref().and_then(|memory| memory.mem_available),
        uptime_seconds: procfs::Uptime::current().ok().map(|uptime| uptime.uptime_duration().as_secs()),
        boot_id: procfs::sys::kernel::random::boot_id().ok().map(|id| id.trim().to_owned()),
        minion_version: env!("CARGO_PKG_VERSION"),
    })
}

fn os() -> Os {
    let text = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    Os { id: os_field(&text, "ID"), version: os_field(&text, "VERSION_ID"), name: os_field(&text, "PRETTY_NAME") }
}

/// A field of `os-release`: an assignment as in a shell, in quotes or not.
fn os_field(text: &str, wanted: &str) -> Option<String> {
    let value = text.lines().filter_map(|line| line.trim().split_once('=')).rfind(|(name, _)| *name == wanted)?.1;
    let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value);
    Some(bare.replace("\\\"", "\"").replace("\\$", "$").replace("\\`", "`").replace("\\\\", "\\"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::super::Registry;
    use super::*;
    use serde_json::{Value, json};

    fn run(method: &str, args: Value) -> Result<Value, Failure> {
        let (registry, minion) = (Registry::builtin(), "web1".parse().unwrap());
        let context = Context::of_server(&minion, &registry, 1 << 20);
        registry.find(&method.parse().unwrap()).unwrap().run(args, &context)
    }

    #[test]
    fn a_minion_tells_what_it_can_do() {
        assert_eq!(
            run("system.list_modules", json!({})).unwrap(),
            json!(["certs", "command", "jobs", "minion", "system", "test", "worker"])
        );
        assert_eq!(run("system.list_methods", json!({ "module": "command" })).unwrap(), json!(["command.exists", "command.run"]));
        assert!(
            run("system.list_methods", json!({ "module": "none" })).unwrap_err().message.contains("there are certs, command, jobs, minion")
        );
        assert_eq!(run("system.describe", json!({ "method": "test.ping" })).unwrap()["method"], "test.ping");
        let failure = run("system.describe", json!({ "method": "test.pong" })).unwrap_err();
        assert!(failure.message.contains("module test has add, echo, explode, ping, progress, sleep"), "{failure:?}");
    }

    #[test]
    fn a_minion_tells_what_host_it_is_on() {
        let inventory = run("system.inventory", json!({})).unwrap();
        assert!(inventory["cpus"].as_u64().unwrap() > 0);
        assert!(inventory["memory_bytes"].as_u64().unwrap() > 1 << 20, "{inventory}");
        assert_eq!(inventory["boot_id"].as_str().unwrap().len(), 36);
    }

    #[test]
    fn os_release_is_read_as_a_shell_would() {
        let text = "# comment\nNAME=x\nID=debian\nPRETTY_NAME=\"A \\\"B\\\" C\"\nVERSION_ID='13'\n";
        assert_eq!(os_field(text, "ID").unwrap(), "debian");
        assert_eq!(os_field(text, "PRETTY_NAME").unwrap(), "A \"B\" C");
        assert_eq!(os_field(text, "VERSION_ID").unwrap(), "13");
        assert_eq!(os_field(text, "VARIANT"), None);
    }
}
