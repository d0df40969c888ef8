//! The plainest load balancer: each connection goes to the next replica, with no affinity of any
//! kind.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::current::Current;
use crate::task::Tasks;

/// Starts the balancer. `replicas` holds the current addresses of the replicas, which a restart
/// replaces.
pub fn start(
    replicas: Arc<Current<Vec<SocketAddr>>>,
    tasks: &Tasks,
) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let (listener, owner) = (TcpListener::from_std(listener)?, tasks.clone());
    let address = listener.local_addr()?;
    let next = Arc::new(AtomicUsize::new(0));
    tasks.spawn_until_stopped(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let replicas = replicas.get();
            let replica = replicas[next.fetch_add(1, Ordering::Relaxed) % replicas.len()];
            owner.spawn(async move {
                if let Ok(mut replica) = TcpStream::connect(replica).await {
                    // As in any balancer, bytes are not held back to make larger packets.
                    for end in [&client, &replica] {
                        let _ = end.set_nodelay(true);
                    }
                    // Either side may end the connection at any time.
                    let _ = copy_bidirectional(&mut client, &mut replica).await;
                }
            });
        }
    });
    Ok(address)
}
