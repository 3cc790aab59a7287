//! What comes over the network: the body of a request, as the listener, the door of a minion and the authority's server read it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use common::identity::{CallerName, MinionName};
use common::outcome::{ErrorCode, Failure};
use common::protocol::certs::{ENROLL, EnrollParams, REVOCATIONS, RevocationsParams};
use common::protocol::map::MAP_PREFIX;
use common::protocol::{ASYNC_PREFIX, AUDIENCE_MAX};
use minion::call::Form;
use serde_json::{Value, json};
use service::{Knock, Limits, Reception, Visitor};
use tokio::runtime::{Builder, Runtime};

use super::arguments::{bound, same_nesting};
use super::{assert_harmless, hides, stands_in_json};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime can be made");
}

static LIMITS: Limits = Limits {
    body_max_bytes: 1 << 20,
    connections_max: 1,
    handshakes_max: 16,
    handshake_timeout: Duration::from_secs(60),
    header_timeout: Duration::from_secs(60),
    idle_timeout: Duration::from_secs(60),
    shutdown_grace: Duration::from_secs(60),
    strangers: None,
};

static MINION: LazyLock<MinionName> = LazyLock::new(|| "web1".parse().expect("it is a name"));
static CALLER: LazyLock<CallerName> = LazyLock::new(|| "admin".parse().expect("it is a name"));

/// Runs what waits for nothing.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// The bytes as the body of a request: it enters once, whatever it is, and is answered with JSON, or with an error of HTTP.
pub fn requests(data: &[u8]) {
    let door = Arc::new(Door { is_list: data.trim_ascii_start().starts_with(b"["), entered: AtomicUsize::new(0) });
    let (status, body) = block_on(service::fuzzing::answer(data, Arc::clone(&door), (), &LIMITS));
    assert_eq!(door.entered.load(Ordering::Relaxed), 1, "every request enters once");
    assert!(matches!(status, 200 | 400 | 413), "{status}");
    if status == 200 && !body.is_empty() {
        let answer: Value = serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
        assert!(answer.get("result").is_some() != answer.get("error").is_some(), "{answer}");
    }
}

/// A reception that reads as the door and the desk do, and decides nothing.
struct Door {
    is_list: bool,
    entered: AtomicUsize,
}

impl Reception for Door {
    type Caller = ();
    type Reply = Value;

    fn admit(&self, _: Visitor) -> Result<(), String> {
        Ok(())
    }

    async fn enter(&self, (): &(), knock: Knock<'_>) -> Result<Value, Failure> {
        self.entered.fetch_add(1, Ordering::Relaxed);
        if self.is_list {
            assert!(!matches!(knock, Knock::Call { .. } | Knock::WithoutId { .. }), "a batch is not taken apart");
        }
        match knock {
            Knock::Call { method: ENROLL, params } => enrol(params),
            Knock::Call { method: REVOCATIONS, params } if !params.contains("\"call\"") => revocations(params),
            _ => call(knock),
        }
    }

    fn reply_max_bytes(&self) -> usize {
        1 << 20
    }

    fn reply_too_large(&self) -> Failure {
        Failure::new(ErrorCode::ResultTooLarge, "too large")
    }
}

/// What the door lets through is for this host, from this caller, and of a form that it can decide on.
fn call(knock: Knock<'_>) -> Result<Value, Failure> {
    let (text, call) = minion::dispatch::fuzzing::call(&MINION, &CALLER, knock)?;
    let Knock::Call { method, .. } = knock else { panic!("{knock:?} was read as a call") };
    let envelope = &call.envelope;
    assert!(envelope.method == method && envelope.caller == *CALLER && envelope.audience.contains(&MINION), "{envelope:?}");
    assert!(envelope.audience.len() <= AUDIENCE_MAX);
    let prefix = match call.form {
        Form::Call => "",
        Form::Job => ASYNC_PREFIX,
        Form::Map => MAP_PREFIX,
    };
    assert_eq!(format!("{prefix}{}", call.method), method);
    if !hides(text.as_bytes()) {
        stands_in_json(envelope);
    }
    let items = if call.form == Form::Map { call.chunk()?.items } else { vec![envelope.args.clone()] };
    for item in &items {
        let args = bound(&call.method, item)?;
        assert!(same_nesting(&args), "{args}");
    }
    Ok(json!({ "method": call.method }))
}

fn enrol(params: &str) -> Result<Value, Failure> {
    let params: EnrollParams = read(params)?;
    stands_in_json(&params);
    let requested = certs::authority::fuzzing::requested(&params.csr, &params.name);
    requested.map(|requested| json!({ "key": requested.key })).map_err(|problem| refused(&problem.to_string()))
}

fn revocations(params: &str) -> Result<Value, Failure> {
    let params: Option<RevocationsParams> = read(params)?;
    stands_in_json(&params);
    Ok(json!({ "have": params.unwrap_or_default().have }))
}

fn read<T: serde::de::DeserializeOwned>(params: &str) -> Result<T, Failure> {
    serde_json::from_str(params).map_err(|error| refused(&error.to_string().escape_debug().to_string()))
}

fn refused(problem: &str) -> Failure {
    assert_harmless(problem);
    Failure::new(ErrorCode::InvalidArguments, problem)
}
