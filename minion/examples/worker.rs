//! A worker in Rust, with the standard library and `serde_json`: it gives each payload back, with the number of its process. Its file:
//! `command = ["/usr/local/bin/worker"]`.

use std::env;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var_os("MINION_WORKER_SOCKET").ok_or("MINION_WORKER_SOCKET is not set: a minion starts this program")?;
    let mut said = UnixStream::connect(path)?;
    let heard = BufReader::new(said.try_clone()?);
    let fetch = json!({ "jsonrpc": "2.0", "id": 1, "method": "task.fetch" });
    said.write_all(format!("{fetch}\n").as_bytes())?;
    for line in heard.lines() {
        let task: Value = serde_json::from_str(&line?)?;
        // What else comes is a wish to stop a task, and these are too short to be stopped.
        let Some(id) = task.pointer("/result/task_id").and_then(Value::as_str) else { continue };
        let result = json!({ "pid": std::process::id(), "payload": task.pointer("/result/payload") });
        let returned = json!({ "jsonrpc": "2.0", "method": "task.return", "params": { "task_id": id, "result": result } });
        // Both in one breath: the result, and that the next task is wanted.
        said.write_all(format!("{returned}\n{fetch}\n").as_bytes())?;
    }
    Ok(())
}
