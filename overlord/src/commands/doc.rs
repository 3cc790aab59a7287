//! `overlord doc [MODULE[.METHOD]]`: what the methods that are built into minions of this version do, and how they are called.

use common::method::{Catalogue, MethodSpec};
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::cli::DocArgs;
use crate::output::{Format, Output, harmless};

pub(super) fn run(mut output: Output, args: &DocArgs) -> Result<u8, Refusal> {
    let catalogue = Catalogue::builtin();
    let is_meant = |spec: &&MethodSpec| match args.name.as_deref() {
        None => true,
        Some(name) => spec.method.as_str() == name || spec.method.module() == name,
    };
    let specs: Vec<&MethodSpec> = catalogue.iter().filter(is_meant).collect();
    if specs.is_empty() {
        let name = args.name.as_deref().unwrap_or("any module");
        return Err(Refusal::usage(format!(
            "this version knows no method of {name}; a minion may have more: overlord TARGET system.list_methods"
        )));
    }
    match output.format() {
        Format::Json => output.print_json(&json!({ "methods": specs }))?,
        Format::Jsonl => specs.iter().try_for_each(|spec| output.print_json(spec))?,
        Format::Text => match specs.as_slice() {
            [spec] if args.name.as_deref() == Some(spec.method.as_str()) => output.print(&page(spec))?,
            _ => output.print(&specs.iter().map(|spec| line(spec)).collect::<String>())?,
        },
    }
    Ok(OK)
}

fn line(spec: &MethodSpec) -> String {
    let first = spec.about.lines().next().unwrap_or_default();
    format!("{:24} {}\n", spec.method, harmless(first))
}

fn page(spec: &MethodSpec) -> String {
    let mut page = format!("{}\n\n{}\n", harmless(&spec.about), harmless(&spec.usage()));
    let properties = spec.args.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        page.push_str(&format!("  {name:14} {}\n", harmless(about).replace('\n', " ")));
    }
    page
}
