//! The connection between a replica and its Redis, or its upstream, which a test slows, silences,
//! cuts and mends at any moment.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::world::port;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weather {
    Fair,
    /// Bytes arrive later by this time, each way.
    Slow(Duration),
    /// Connections are accepted, and no byte passes. Bytes sent meanwhile pass later, as with a
    /// peer that was stopped.
    Silent,
    /// The address accepts no connection, and open connections are reset.
    Refused,
}

/// What happens to the open connections.
#[derive(Clone, Copy)]
enum Fate {
    Close,
    Reset,
    /// The connections stay open, but no byte passes any more.
    Strand,
}

pub struct Cable {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    fate: watch::Sender<Fate>,
    listening: JoinHandle<()>,
}

impl Cable {
    pub async fn to(far: SocketAddr) -> Self {
        // The port stays reserved for the cable while the cable does not listen.
        let address = port::free();
        let (weather, fate) = (watch::Sender::new(Weather::Fair), watch::Sender::new(Fate::Close));
        let listener = TcpListener::bind(address).await.expect("a free port can be bound");
        let listening = tokio::spawn(listen(listener, address, far, weather.clone(), fate.clone()));
        Self { address, weather, fate, listening }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the Redis at the far end.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn set(&self, weather: Weather) {
        if weather == Weather::Refused {
            self.reset();
        }
        self.weather.send_replace(weather);
    }

    /// Closes the open connections regularly.
    pub fn close(&self) {
        self.fate.send_replace(Fate::Close);
    }

    /// Ends the open connections with RST.
    pub fn reset(&self) {
        self.fate.send_replace(Fate::Reset);
    }

    /// Open connections stay open, but no byte passes on them any more. New ones work.
    pub fn strand(&self) {
        self.fate.send_replace(Fate::Strand);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    far: SocketAddr,
    weather: watch::Sender<Weather>,
    fate: watch::Sender<Fate>,
) {
    let mut listener = Some(listener);
    let mut changes = weather.subscribe();
    // The connections end with the task that owns them.
    let mut connections = JoinSet::new();
    loop {
        let is_refused = *changes.borrow_and_update() == Weather::Refused;
        match &listener {
            Some(_) if is_refused => listener = None,
            None if !is_refused => {
                listener = Some(TcpListener::bind(address).await.expect("its port is its own"))
            }
            _ => {}
        }
        let accepting = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changes.changed() => {}
            Some(_) = connections.join_next() => {}
            Ok((near, _)) = accepting => {
                connections.spawn(connect(near, far, weather.subscribe(), fate.subscribe()));
            }
        }
    }
}

async fn connect(
    mut near: TcpStream,
    address: SocketAddr,
    mut weather: watch::Receiver<Weather>,
    mut fate: watch::Receiver<Fate>,
) {
    let mut far = None;
    let carrying = async {
        // While the far end is silent, no greeting comes from it.
        let _ = weather.wait_for(|weather| *weather != Weather::Silent).await;
        let Ok(stream) = TcpStream::connect(address).await else { return };
        let _ = (near.set_nodelay(true), stream.set_nodelay(true));
        let far = far.insert(stream);
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        // Once one side has ended, no byte of the other one is needed.
        tokio::select! {
            () = carry(from_near, to_far, weather.clone()) => {}
            () = carry(from_far, to_near, weather.clone()) => {}
        }
    };
    let fate = tokio::select! {
        () = carrying => return,
        Ok(()) = fate.changed() => *fate.borrow_and_update(),
    };
    match fate {
        Fate::Close => {}
        Fate::Reset => {
            let _ = near.set_zero_linger();
        }
        Fate::Strand => std::future::pending().await,
    }
}

/// Carries bytes from one side to the other, as the current weather allows.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut weather: watch::Receiver<Weather>,
) {
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            if queue.send((Instant::now(), bytes[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some((came, bytes)) = queued.recv().await {
            loop {
                let now = *weather.borrow_and_update();
                match now {
                    Weather::Fair => break,
                    Weather::Slow(span) => {
                        sleep_until(came + span).await;
                        break;
                    }
                    Weather::Silent | Weather::Refused if weather.changed().await.is_err() => {
                        return;
                    }
                    Weather::Silent | Weather::Refused => {}
                }
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}
