//! How a connection begins and ends that we make: an address found and reached, and the last that is said on it. Knows no TLS
//! configuration, no method, and decides nothing of what an error means.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 4;
/// How long a broken connection is read on for the reason why the other side closed it.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// Connects to `HOST:PORT`, where `HOST` is an address or a name, of which a few addresses are tried, each for its share of `within`.
///
/// # Errors
/// The name has no address, or the last one that was tried cannot be reached: why.
pub async fn connect_tcp(address: &str, within: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host(address).await?.take(ADDRESSES_MAX).collect();
    let share = within / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut reason = io::Error::other("its name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // A request is one write; there is nothing that waiting for more could join to it.
                let _slower = tcp.set_nodelay(true);
                return Ok(tcp);
            }
            Ok(Err(error)) => reason = error,
            Err(_) => reason = io::Error::other(format!("no connection within {share:?}")),
        }
    }
    Err(reason)
}

/// Reads on to the stream's end, where whoever closed the connection says why, if it says so. Writing may have failed before the reason
/// could be read.
pub async fn last_words(mut stream: impl AsyncRead + Unpin) -> Option<io::Error> {
    let read_to_end = async {
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut buffer)).await {
                Ok(()) if buffer.filled().is_empty() => return None,
                Ok(()) => {}
                Err(error) => return Some(error),
            }
        }
    };
    timeout(LAST_WORDS_WITHIN, read_to_end).await.ok()?
}
