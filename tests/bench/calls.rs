//! A cold call to 1,000 hosts, beside the same handshakes with a bare tokio-rustls client and echo server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use certs::files::Credentials;
use common::job::HostState;
use fleet::Simulated;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const HOSTS: usize = 1000;
const ROUNDS: usize = 9;
/// In flight at once, as the overlord's default.
const FORKS: usize = 64;
/// About as much as a request and its answer.
const ECHO_BYTES: usize = 600;

pub(crate) fn run() {
    let simulated = Simulated::start(HOSTS);
    let fleet = overlord::Fleet::open(simulated.home()).unwrap();
    let target = fleet.target("*").unwrap();
    let certs = simulated.home().join("certs");
    let credentials = Credentials::load(&certs.join("ca.pem"), &certs.join("overlord.pem"), &certs.join("overlord.key")).unwrap();
    let connector = TlsConnector::from(certs::tls::client_config(&credentials).unwrap());
    let (mut calls, mut echoes, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let started = Instant::now();
        let outcomes = target.call("test.ping", ()).unwrap();
        let call = started.elapsed();
        assert!(outcomes.values().all(|outcome| outcome.verdict.state() == HostState::Ok), "every host answers");
        let started = Instant::now();
        echo_all(&connector, simulated.echo_addresses());
        let echo = started.elapsed();
        // The first round warms both sides up.
        if round > 0 {
            ratios.push(call.as_secs_f64() / echo.as_secs_f64());
            calls.push(call);
            echoes.push(echo);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("call of test.ping to {HOSTS} hosts: {}", crate::spread(&calls));
    println!("bare TLS echo, {HOSTS} handshakes:  {}", crate::spread(&echoes));
    println!(
        "ratio, round by round: min {:.2}, median {:.2}, max {:.2} (goal: at most 1.15)",
        ratios.first().unwrap(),
        ratios.get(ROUNDS / 2).unwrap(),
        ratios.last().unwrap()
    );
}

/// One handshake and one echo with each address, by a thread a core, `FORKS` in flight in all.
fn echo_all(connector: &TlsConnector, addresses: &[SocketAddr]) {
    let cores = std::thread::available_parallelism().unwrap().get();
    let next = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _core in 0..cores {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut slots = tokio::task::JoinSet::new();
                    for _slot in 0..FORKS / cores {
                        slots.spawn(echo_some(connector.clone(), addresses.to_vec(), Arc::clone(&next)));
                    }
                    while let Some(ended) = slots.join_next().await {
                        ended.unwrap();
                    }
                });
            });
        }
    });
}

async fn echo_some(connector: TlsConnector, addresses: Vec<SocketAddr>, next: Arc<AtomicUsize>) {
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        let Some(address) = addresses.get(index) else { return };
        let name = certs::tls::server_name(&format!("sim{:05}", index + 1).parse().unwrap()).unwrap();
        let exchange = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut stream = connector.connect(name, stream).await?;
            stream.write_all(&[b'x'; ECHO_BYTES]).await?;
            stream.read_exact(&mut [0; ECHO_BYTES]).await
        };
        tokio::time::timeout(Duration::from_secs(10), exchange).await.unwrap().unwrap();
    }
}
