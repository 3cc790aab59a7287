//! Who keeps the listener waiting makes room when there is none left; who is being answered does not.

use super::*;

#[tokio::test]
async fn who_keeps_silent_before_the_handshake_keeps_nobody_out() {
    let host = Host::start(Limits { handshakes_max: 2, ..limits() }).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(host.address).await.unwrap());
    }
    assert!(is_closed(&mut silent[0]).await);
    assert!(is_heard(&mut host.connect().await).await);
    assert!(is_closed(&mut silent[1]).await);
    drop(silent);
    assert!(is_heard(&mut host.connect().await).await);
}

#[tokio::test]
async fn who_waits_makes_room_and_of_the_caller_that_has_most() {
    let host = Host::start(Limits { connections_max: 4, ..limits() }).await;
    let mut ops = host.connect_as("ops").await.unwrap();
    let mut busy = host.connect().await;
    busy.write_all(&call("hang")).await.unwrap();
    host.wait_for_hanging(1).await;
    let (mut idle, mut next) = (host.connect().await, host.connect().await);
    assert!(is_heard(&mut idle).await && is_heard(&mut next).await);
    assert!(is_heard(&mut host.connect_as("night").await.unwrap()).await);
    assert!(read(&mut idle).await.is_none(), "it has waited longest of the caller with most connections");
    assert!(is_heard(&mut ops).await && is_heard(&mut next).await);
    host.wait_for_hanging(1).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_makes_room() {
    let host = Host::start(Limits { connections_max: 1, ..limits() }).await;
    let mut slow = host.connect().await;
    slow.write_all(b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{").await.unwrap();
    assert!(is_heard(&mut host.connect().await).await);
    assert!(read(&mut slow).await.is_none());
}

#[tokio::test]
async fn where_all_are_being_answered_one_more_is_refused_and_the_others_are_answered() {
    let host = Host::start(Limits { connections_max: 1, ..limits() }).await;
    let mut busy = host.connect().await;
    busy.write_all(&call("hang")).await.unwrap();
    host.wait_for_hanging(1).await;
    assert!(!is_heard(&mut host.connect_as("ops").await.unwrap()).await);
    host.wait_for_hanging(1).await;
    drop(busy);
    host.wait_for_hanging(0).await;
    let again = async { while !is_heard(&mut host.connect().await).await {} };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}
