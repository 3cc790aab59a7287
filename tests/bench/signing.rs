//! What signed calls cost: making a signature, checking one, and holding a certificate against the authority and the revocation list; each
//! beside a whole synchronous `test.ping` on a kept connection, in the same round.

use std::time::{Duration, Instant};

use certs::callers::Callers;
use certs::crl::StaleCrl;
use certs::signature::{sign, verify};
use fleet::Fleet;
use fleet::raw::envelope;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kept::exchange;

/// How often each is done in a round.
const TIMES: usize = 500;
const ROUNDS: usize = 7;

pub(crate) fn run() {
    let fleet = Fleet::start(1);
    let credentials = fleet.overlord_credentials();
    let cert = credentials.cert().unwrap();
    let file = |name: &str| fleet.home().join("certs").join(name);
    let callers = Callers::open(file("ca.pem"), file("crl.pem"), fleet.root().join("kept.pem"), StaleCrl::Serve, None, |_| ());
    let client = fleet.raw_overlord("web1");
    let mut connection = client.connect().unwrap();
    let calls: Vec<_> = (0..TIMES).map(|_| envelope("admin", "web1", "test.ping", json!([]))).collect();
    let calls: Vec<String> = calls.iter().map(|call| serde_json::to_string(call).unwrap()).collect();
    let (mut signing, mut verifying, mut chains) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let requests: Vec<Value> =
            (0..TIMES).map(|_| client.signed(json!(1), &envelope("admin", "web1", "test.ping", json!([])))).collect();
        let ping = each(&requests, |request| drop(exchange(&mut connection, request)));
        let mut signatures = Vec::with_capacity(TIMES);
        let signed = each(&calls, |call| signatures.push((call, sign(&credentials, call).unwrap())));
        let verified = each(&signatures, |(call, signature)| verify(cert, call, signature).unwrap());
        let judged = each(&calls, |_| drop(callers.verify(cert, Timestamp::now()).unwrap()));
        // The first round warms all of them up.
        if round > 0 {
            println!("round {round}: test.ping {ping:.1?}, sign {signed:.1?}, verify {verified:.1?}, certificate {judged:.1?}");
            for (ratios, took) in [(&mut signing, signed), (&mut verifying, verified), (&mut chains, judged)] {
                ratios.push(took.as_secs_f64() / ping.as_secs_f64());
            }
        }
    }
    for (what, ratios) in [("signing a call", signing), ("checking its signature", verifying), ("judging its certificate", chains)] {
        println!("{what}, beside a test.ping: {}", ratio(ratios));
    }
}

/// The middle of how long `work` takes with each of `items`.
fn each<'t, T>(items: &'t [T], mut work: impl FnMut(&'t T)) -> Duration {
    let took = items.iter().map(|item| {
        let started = Instant::now();
        work(item);
        started.elapsed()
    });
    crate::median(took.collect())
}

fn ratio(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let at = |index: usize| ratios.get(index).copied().unwrap_or_default();
    format!("min {:.3}, median {:.3}, max {:.3}", at(0), at(ratios.len() / 2), at(ratios.len().saturating_sub(1)))
}
