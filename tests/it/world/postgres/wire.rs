//! A proxy between a replica and its PostgreSQL, which swallows the answer to a completed commit.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The message by which a client ends a transaction.
const COMMIT: &[u8] = b"COMMIT\0";

pub struct Wire {
    address: SocketAddr,
    /// The number of answers to commits that will be swallowed.
    swallowing: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Wire {
    pub async fn to(far: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("it is bound");
        let swallowing = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&swallowing);
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let left = Arc::clone(&left);
                tokio::spawn(async move {
                    if let Ok(far) = TcpStream::connect(far).await {
                        let _ = relay(near, far, &left).await;
                    }
                });
            }
        });
        Self { address, swallowing, listening }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn swallow(&self, commits: usize) {
        self.swallowing.store(commits, Ordering::SeqCst);
    }

    /// Returns how many answers are still to be swallowed.
    pub fn left(&self) -> usize {
        self.swallowing.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Relays until either side ends, or an answer is swallowed. Both sides then see their connection
/// end.
async fn relay(mut near: TcpStream, mut far: TcpStream, left: &AtomicUsize) -> std::io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            count = near.read(&mut asked) => {
                let bytes = match count? {
                    0 => return Ok(()),
                    count => &asked[..count],
                };
                far.write_all(bytes).await?;
                let is_commit = bytes.windows(COMMIT.len()).any(|part| part == COMMIT);
                let take = |left: usize| left.checked_sub(1);
                let order = Ordering::SeqCst;
                if is_commit && left.fetch_update(order, order, take).is_ok() {
                    // The server confirms the commit, and no client receives the answer.
                    let _ = far.read(&mut answered).await?;
                    return Ok(());
                }
            }
            count = far.read(&mut answered) => match count? {
                0 => return Ok(()),
                count => near.write_all(&answered[..count]).await?,
            },
        }
    }
}
