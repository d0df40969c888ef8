//! An address where no byte may arrive. It accepts connections, sends nothing, and counts them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

pub struct Trap {
    address: SocketAddr,
    caught: Arc<AtomicUsize>,
}

impl Trap {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let (address, caught) = (listener.local_addr().expect("it is bound"), Arc::default());
        let count = Arc::<AtomicUsize>::clone(&caught);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                open.push(stream);
            }
        });
        Self { address, caught }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn caught(&self) -> usize {
        self.caught.load(Ordering::Relaxed)
    }
}
