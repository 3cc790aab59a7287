//! Who shows no certificate is held shorter, and fewer of them; who shows one notices nothing.

use certs::tls::Anchor;

use super::*;

/// A listener that lets in who shows no certificate, too.
struct Port {
    host: Host,
    authorities: Anchor,
}

impl Port {
    async fn start(strangers: Strangers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let _made = credentials(dir.path(), "fleet:overlord/admin");
        let identity = Authority::open(&dir.path().join("ca")).unwrap().server_identity(Duration::from_secs(3600)).unwrap();
        let shown = Credentials::made(&dir.path().join("ca/ca.pem"), identity).unwrap();
        let tls = certs::tls::authority_server_config(&shown).unwrap();
        let host = Host::start_with(dir, tls, Limits { strangers: Some(strangers), ..limits() }).await;
        Self { host, authorities: Anchor::Authorities(shown.authorities().to_vec()) }
    }

    async fn connect(&self, shown: Option<&str>) -> TlsStream<TcpStream> {
        let shown = shown.map(|name| credentials(self.host.dir.path(), &format!("fleet:overlord/{name}")));
        let tls = certs::tls::authority_client_config(&self.authorities, shown.as_ref()).unwrap();
        let stream = TcpStream::connect(self.host.address).await.unwrap();
        TlsConnector::from(tls).connect(certs::tls::authority_name().unwrap(), stream).await.unwrap()
    }
}

#[tokio::test]
async fn so_many_of_one_address_are_held_and_who_shows_a_certificate_always() {
    for (connections_max, per_address_max) in [(2, 100), (100, 2)] {
        let port = Port::start(Strangers { connections_max, per_address_max, idle_timeout: DEADLINE }).await;
        let (mut one, mut two) = (port.connect(None).await, port.connect(None).await);
        for (stream, hanging) in [(&mut one, 1), (&mut two, 2)] {
            stream.write_all(&call("hang")).await.unwrap();
            port.host.wait_for_hanging(hanging).await;
        }
        assert!(!is_heard(&mut port.connect(None).await).await, "it is one too many, and the others are being answered");
        let mut known = [port.connect(Some("admin")).await, port.connect(Some("ops")).await, port.connect(Some("admin")).await];
        for stream in &mut known {
            assert!(is_heard(stream).await);
        }
        drop(one);
        let next = async { while !is_heard(&mut port.connect(None).await).await {} };
        tokio::time::timeout(DEADLINE, next).await.unwrap();
    }
}

#[tokio::test]
async fn a_stranger_that_says_nothing_makes_room_for_the_next_and_nobody_else_does() {
    for (connections_max, per_address_max) in [(2, 100), (100, 2)] {
        let port = Port::start(Strangers { connections_max, per_address_max, idle_timeout: DEADLINE }).await;
        let mut known = port.connect(Some("admin")).await;
        assert!(is_heard(&mut known).await);
        let (mut one, mut two) = (port.connect(None).await, port.connect(None).await);
        assert!(is_heard(&mut one).await && is_heard(&mut two).await);
        assert!(is_heard(&mut port.connect(None).await).await);
        assert!(read(&mut one).await.is_none(), "it has waited longest");
        assert!(is_heard(&mut two).await && is_heard(&mut known).await);
    }
}

#[tokio::test]
async fn a_stranger_that_says_nothing_is_cut_sooner() {
    let port = Port::start(Strangers { connections_max: 10, per_address_max: 10, idle_timeout: Duration::from_millis(300) }).await;
    let (mut stranger, mut known) = (port.connect(None).await, port.connect(Some("admin")).await);
    assert!(is_heard(&mut stranger).await && is_heard(&mut known).await);
    assert!(read(&mut stranger).await.is_none());
    assert!(is_heard(&mut known).await);
}
