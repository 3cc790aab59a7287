//! Floods: more connections than a server holds, slow ones, endless ones. Whoever has a right to be served is served meanwhile, and what the server
//! takes stays bounded.

mod slow;

use std::time::{Duration, Instant};

use fleet::flood::{Flood, Habit, client_hello, limit_files, open_files, processor_time};
use fleet::{COMMAND_TIMEOUT, Fleet, peak_bytes, wait_until};

/// More than a minion holds, ten times.
const MANY: usize = 10_000;
/// How long a good caller may take on a machine that is busy with a flood and with other tests, many times over. Alone it is well below a second.
const SERVED_WITHIN: Duration = Duration::from_secs(15);
/// What a server may take of memory, built for debugging.
const MEMORY_MAX_BYTES: u64 = 128 << 20;

/// Calls `web1` a few times while something goes on: gives how long the slowest call took.
fn slowest_call(fleet: &Fleet) -> Duration {
    let calls = (0..10).map(|_| fleet.overlord(["web1", "test.ping"]).ok().took);
    let slowest = calls.max().unwrap();
    assert!(slowest < SERVED_WITHIN, "a call took {slowest:?}");
    slowest
}

fn made(flood: &Flood, connections: usize) {
    wait_until("the flood to be made", COMMAND_TIMEOUT, || flood.made() >= connections);
}

/// The memory that a server has had at most.
fn bounded_memory(pid: i32) -> u64 {
    let peak = peak_bytes(pid).unwrap();
    assert!(peak < MEMORY_MAX_BYTES, "it took {} MiB", peak >> 20);
    peak >> 20
}

#[test]
fn ten_thousand_silent_connections_keep_no_caller_out() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let flood = Flood::of(web1.address(), MANY, &Habit::Silent);
    let at_first = slowest_call(&fleet);
    made(&flood, MANY);
    let slowest = slowest_call(&fleet);
    println!("slowest call: {at_first:?} while they come, {slowest:?} then; memory of the minion: {} MiB", bounded_memory(web1.pid()));
    assert!(web1.stderr().contains("handshakes_max is reached"), "it was a flood");
    drop(flood);
    let _ = slowest_call(&fleet);
}

#[test]
fn ten_thousand_silent_connections_keep_no_host_from_enrolling() {
    let fleet = Fleet::builder().names(["web1", "web2"]).unenrolled().start();
    let authority = fleet.serve_certs();
    let flood = Flood::of(authority.address(), MANY, &Habit::Silent);
    made(&flood, MANY);
    for host in ["web1", "web2"] {
        let token = fleet.overlord(["certs", "token", "--for", host, "--ttl", "1h"]).ok().out();
        let took = fleet.enroll(host, authority.address(), ["--token", token.trim()]).ok().took;
        println!("{host} has enrolled within {took:?}; memory of the authority: {} MiB", bounded_memory(authority.pid()));
        assert!(took < SERVED_WITHIN, "enrolling took {took:?}");
    }
    assert!(authority.stderr().contains("handshakes_max is reached"), "it was a flood");
    drop(flood);
    authority.stop();
}

#[test]
fn handshakes_that_come_byte_by_byte_or_stop_half_way_keep_no_caller_out() {
    for habit in [Habit::Slow(client_hello()), Habit::Says(client_hello())] {
        let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nhandshake_timeout = \"2s\"\n").start();
        let web1 = fleet.minion("web1");
        let half_way = Flood::of(web1.address(), 1200, &habit);
        made(&half_way, 1200);
        let slowest = slowest_call(&fleet);
        println!("slowest call: {slowest:?}; memory of the minion: {} MiB", bounded_memory(web1.pid()));
        // A byte a second brings none over the limit for a whole handshake.
        wait_until("handshakes to be cut", COMMAND_TIMEOUT, || web1.stderr().contains("handshake timed out"));
        drop(half_way);
        let _ = slowest_call(&fleet);
    }
}

/// There are more silent connections than the minion may have files open.
#[test]
fn few_files_are_enough_for_a_caller_among_silent_connections() {
    let fleet = Fleet::builder().hosts(1).open_files(448).start();
    let web1 = fleet.minion("web1");
    wait_until("it to say so", COMMAND_TIMEOUT, || web1.stderr().contains("fewer connections are held"));
    let flood = Flood::of(web1.address(), 2000, &Habit::Silent);
    made(&flood, 2000);
    // Sixteen handshakes find a place here. On a busy machine a client may lose its own before it has said its first word.
    for _ in 0..10 {
        wait_until("a caller to be served", SERVED_WITHIN, || fleet.overlord(["web1", "test.ping"]).code() == 0);
    }
    assert!(!web1.stderr().contains("could not be accepted"), "{}", web1.stderr());
}

#[test]
fn who_cannot_be_accepted_for_want_of_files_costs_no_processor_and_is_accepted_later() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let pid = web1.pid();
    limit_files(pid, open_files(pid));
    let (begun, before) = (Instant::now(), processor_time(pid).unwrap());
    let flood = Flood::of(web1.address(), 50, &Habit::Silent);
    let complaints = || web1.stderr().matches("could not be accepted").count();
    wait_until("it to say so again and again", COMMAND_TIMEOUT, || complaints() >= 3);
    let (elapsed, used) = (begun.elapsed(), processor_time(pid).unwrap() - before);
    println!("{used:?} of the processor within {elapsed:?}, {} complaints", complaints());
    assert!(used < elapsed / 4, "it took {used:?} of the processor within {elapsed:?}");
    assert!(complaints() <= 2 + usize::try_from(elapsed.as_secs()).unwrap(), "one line a second");
    limit_files(pid, 1024);
    let _ = slowest_call(&fleet);
    drop(flood);
}

/// There were files enough when the minion started, and there are none now: the oldest silent connections go for the newest.
#[test]
fn silent_connections_give_their_files_to_who_comes_next() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    limit_files(web1.pid(), open_files(web1.pid()) + 40);
    let flood = Flood::of(web1.address(), 500, &Habit::Silent);
    wait_until("files to be short", COMMAND_TIMEOUT, || web1.stderr().contains("could not be accepted"));
    // A call needs files of its own, which may be taken just then; but before long one finds them.
    let is_served = || fleet.overlord(["web1", "test.ping"]).code() == 0;
    wait_until("a caller to be served", SERVED_WITHIN, is_served);
    drop(flood);
    wait_until("the service to go on", COMMAND_TIMEOUT, is_served);
    let _ = slowest_call(&fleet);
}
