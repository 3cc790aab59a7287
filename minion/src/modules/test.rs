//! Methods to try a fleet with.

use std::time::Duration;

use common::outcome::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Number, Value};

use super::{Context, Method, Module, NoArguments};

pub(super) struct Test;

impl Module for Test {
    const NAME: &'static str = "test";

    fn methods() -> Vec<Method> {
        vec![
            Method::inline("test.ping", "Answers \"pong\".", ping),
            Method::new("test.echo", "Gives back the value.", echo),
            Method::new("test.add", "Adds two numbers.", add),
            Method::new("test.square", "Multiplies a number with itself.", square),
            Method::new("test.sleep", "Waits so many seconds, and gives back how many.", sleep),
            Method::new("test.progress", "Reports each FRACTION, or [FRACTION, MESSAGE], and gives back how many.", progress),
            Method::new("test.explode", "Fails with the message.", explode),
        ]
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Echo {
    /// Any value.
    value: Value,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Add {
    /// The first number.
    a: Number,
    /// The second number.
    b: Number,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Square {
    /// The number.
    number: Number,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sleep {
    /// How many; parts of a second too.
    seconds: Number,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reports {
    /// What to report, one after the other.
    reports: Vec<Report>,
    /// How many seconds to wait after each; none unless said.
    pause: Option<Number>,
    /// What to fail with after the last.
    fail: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Report {
    Fraction(f64),
    Words(f64, String),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Explode {
    /// What to fail with.
    message: Option<String>,
}

fn ping(_: NoArguments, _: &Context<'_>) -> Result<&'static str, Failure> {
    Ok("pong")
}

fn echo(args: Echo, _: &Context<'_>) -> Result<Value, Failure> {
    Ok(args.value)
}

/// Integers add up to an integer, all else to a float.
fn add(args: Add, _: &Context<'_>) -> Result<Number, Failure> {
    let sum = match (args.a.as_i128(), args.b.as_i128()) {
        (Some(a), Some(b)) => a.checked_add(b).and_then(Number::from_i128),
        _ => args.a.as_f64().zip(args.b.as_f64()).and_then(|(a, b)| Number::from_f64(a + b)),
    };
    sum.ok_or_else(|| Failure::of_kind("overflow", format!("{} and {} add up to more than a number can hold", args.a, args.b)))
}

/// As [`add`].
fn square(args: Square, _: &Context<'_>) -> Result<Number, Failure> {
    let square = match args.number.as_i128() {
        Some(number) => number.checked_mul(number).and_then(Number::from_i128),
        None => args.number.as_f64().and_then(|number| Number::from_f64(number * number)),
    };
    square.ok_or_else(|| Failure::of_kind("overflow", format!("the square of {} is more than a number can hold", args.number)))
}

fn sleep(args: Sleep, _: &Context<'_>) -> Result<Number, Failure> {
    std::thread::sleep(period("test.sleep", &args.seconds)?);
    Ok(args.seconds)
}

fn period(method: &str, seconds: &Number) -> Result<Duration, Failure> {
    let period = seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    period.ok_or_else(|| Failure::new(ErrorCode::InvalidArguments, format!("{method}: {seconds} seconds is no time to wait")))
}

fn progress(args: Reports, context: &Context<'_>) -> Result<usize, Failure> {
    let pause = args.pause.map_or(Ok(Duration::ZERO), |pause| period("test.progress", &pause))?;
    for report in &args.reports {
        match report {
            Report::Fraction(fraction) => context.progress.report(*fraction, ""),
            Report::Words(fraction, message) => context.progress.report(*fraction, message),
        }
        std::thread::sleep(pause);
    }
    match args.fail {
        Some(message) => Err(Failure::of_kind("explosion", message)),
        None => Ok(args.reports.len()),
    }
}

fn explode(args: Explode, _: &Context<'_>) -> Result<(), Failure> {
    Err(Failure::of_kind("explosion", args.message.unwrap_or_else(|| "boom".to_owned())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::super::Registry;
    use super::*;
    use serde_json::json;

    fn run(method: &str, args: Value) -> Result<Value, Failure> {
        let (registry, minion) = (Registry::builtin(), "web1".parse().unwrap());
        let context = Context::of_server(&minion, &registry, 1 << 20);
        registry.find(&method.parse().unwrap()).unwrap().run(args, &context)
    }

    #[test]
    fn integers_stay_integers() {
        for (a, b, sum) in [
            (json!(23), json!(45), json!(68)),
            (json!(u64::MAX), json!(-1), json!(u64::MAX - 1)),
            (json!(i64::MIN), json!(1), json!(i64::MIN + 1)),
            (json!(1), json!(0.5), json!(1.5)),
        ] {
            assert_eq!(run("test.add", json!({ "a": a, "b": b })).unwrap(), sum);
        }
        for (a, b) in [(json!(u64::MAX), json!(1)), (json!(i64::MIN), json!(-1)), (json!(f64::MAX), json!(f64::MAX))] {
            let failure = run("test.add", json!({ "a": a, "b": b })).unwrap_err();
            assert_eq!(failure.data.unwrap(), json!({ "type": "overflow" }));
        }
    }

    #[test]
    fn squares_of_integers_are_integers() {
        for (number, square) in [
            (json!(7), json!(49)),
            (json!(-3), json!(9)),
            (json!(0.5), json!(0.25)),
            (json!(u32::MAX), json!(18_446_744_065_119_617_025_u64)),
        ] {
            assert_eq!(run("test.square", json!({ "number": number })).unwrap(), square);
        }
        assert_eq!(run("test.square", json!({ "number": u64::MAX })).unwrap_err().data.unwrap(), json!({ "type": "overflow" }));
    }

    #[test]
    fn an_explosion_has_a_type_and_a_message() {
        let failure = run("test.explode", json!({ "message": "bang" })).unwrap_err();
        assert_eq!((failure.message.as_str(), failure.data), ("bang", Some(json!({ "type": "explosion" }))));
        assert_eq!(run("test.explode", json!({})).unwrap_err().message, "boom");
    }

    #[test]
    fn nobody_can_wait_a_negative_time() {
        assert!(run("test.sleep", json!({ "seconds": -1 })).unwrap_err().is(ErrorCode::InvalidArguments));
        assert_eq!(run("test.sleep", json!({ "seconds": 0.01 })).unwrap(), json!(0.01));
    }

    #[test]
    fn reports_that_nobody_hears_are_no_error() {
        assert_eq!(run("test.progress", json!({ "reports": [7.5, [-1, "y"]] })).unwrap(), json!(2));
        assert_eq!(run("test.progress", json!({ "reports": [0], "fail": "boom" })).unwrap_err().message, "boom");
    }

    #[test]
    fn what_the_type_cannot_read_is_told_with_the_usage() {
        let failure = run("test.add", json!({ "a": 1, "b": "x" })).unwrap_err();
        assert!(failure.is(ErrorCode::InvalidArguments) && failure.message.ends_with("usage: test.add A:number B:number"), "{failure:?}");
    }
}
