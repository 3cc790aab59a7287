//! What each version has said and written, as it was recorded then, in `tests/samples/VERSION/`: the present programs read all of it to the same meaning,
//! and answer what was asked.
//!
//! `wire/` has the bodies of requests and answers, `spool/` folders of jobs as a host left them, `jobs/` logs of the overlord with what `job-status`
//! said of each, `authority/` what enrolling says, and `caller.pem` the certificate whose key has signed the calls. No key lies there: to be answered by a
//! minion, a call gets another start-before, and is signed anew.

mod record;
mod replay;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// All that was recorded.
fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// The folder of each version.
fn versions() -> Vec<PathBuf> {
    let versions: Vec<PathBuf> =
        fs::read_dir(samples()).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    assert!(!versions.is_empty());
    versions
}

/// One call, and what came of it, as bodies of HTTP.
#[derive(Debug, Clone)]
struct Exchange {
    /// The method, and what came of it.
    name: String,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Exchange {
    /// Those of a version.
    fn all(folder: &Path) -> Vec<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let file = entry.file_name().into_string().unwrap();
            let Some(name) = file.strip_suffix(".request.json") else { continue };
            let answer = fs::read(folder.join(format!("{name}.answer.json"))).unwrap();
            all.push(Self { name: name.to_owned(), request: fs::read(entry.path()).unwrap(), answer });
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn request(&self) -> Value {
        serde_json::from_slice(&self.request).unwrap()
    }

    fn answer(&self) -> Value {
        serde_json::from_slice(&self.answer).unwrap()
    }

    /// The envelope, if it is a call.
    fn call(&self) -> Option<Value> {
        self.request()["params"]["call"].as_str().map(|call| serde_json::from_str(call).unwrap())
    }
}

/// What came of a call, in a few words: the code of its refusal, or its state, and within that the job's.
fn label(method: &str, answer: &Value) -> String {
    let result = &answer["result"];
    let code = |error: &Value| error["code"].as_i64().map(|code| format!("refused{code}"));
    let states = [&result["state"], &result["result"]["state"]].into_iter().filter_map(Value::as_str);
    let what = code(&answer["error"]).unwrap_or_else(|| states.collect::<Vec<_>>().join("-"));
    format!("{method}.{}", if what.is_empty() { "answered" } else { &what })
}
