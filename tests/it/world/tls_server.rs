//! A server with any certificate, which notes whether its clients speak TLS.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::world::certificates::Certificates;
use crate::world::port;
use crate::world::process::{Folder, Process};
use crate::world::waiting::{SOON, eventually};

/// A server with this certificate, and the first byte that came on each connection.
pub struct TlsServer {
    _openssl: Process,
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl TlsServer {
    pub async fn start(folder: &Folder, certificates: &Certificates, name: &str) -> Self {
        let behind = port::free();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-www", "-accept", &behind.to_string()]);
        command.args([
            "-cert",
            &certificates.path(&format!("{name}.pem")),
            "-key",
            &certificates.path(&format!("{name}.key")),
        ]);
        let openssl = Process::start(name, command, folder.path(), "openssl");
        eventually(SOON, "openssl listens", async || {
            TcpStream::connect(behind).await.ok().map(drop)
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
        let (address, received) =
            (listener.local_addr().expect("it is bound"), Arc::new(Mutex::new(Vec::new())));
        let receiving = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut first = [0];
                let receiving = Arc::clone(&receiving);
                tokio::spawn(async move {
                    if near.peek(&mut first).await.is_ok() {
                        receiving.lock().expect("no holder panics").push(first[0]);
                    }
                    if let Ok(mut far) = TcpStream::connect(behind).await {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                    let _ = near.shutdown().await;
                });
            }
        });
        Self { _openssl: openssl, address, received }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn received(&self) -> Vec<u8> {
        self.received.lock().expect("no holder panics").clone()
    }
}
