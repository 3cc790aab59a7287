//! A connection to one host that is kept, over which calls go one after the other, signed as the overlord signs its own.

use std::io::Write as _;

use fleet::Fleet;
use fleet::raw::{Client, Connection, envelope, read_response};
use serde_json::{Value, json};

/// A kept connection to one host.
pub(crate) struct Kept {
    client: Client,
    connection: Connection,
    host: String,
}

impl Kept {
    pub(crate) fn to(fleet: &Fleet, host: &str) -> Self {
        let client = fleet.raw_overlord(host);
        let connection = client.connect().unwrap();
        Self { client, connection, host: host.to_owned() }
    }

    /// The result of a call.
    pub(crate) fn ask(&mut self, method: &str, args: Value) -> Value {
        let request = self.client.signed(json!(1), &envelope("admin", &self.host, method, args));
        exchange(&mut self.connection, &request)
    }
}

/// Sends a request over a connection that is kept, and reads the result.
pub(crate) fn exchange(connection: &mut Connection, request: &Value) -> Value {
    let body = request.to_string();
    let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).unwrap();
    connection.flush().unwrap();
    let mut answer: Value = serde_json::from_slice(&read_response(connection).unwrap().body).unwrap();
    assert!(answer.get("result").is_some(), "{answer}");
    answer.get_mut("result").map(Value::take).unwrap()
}
