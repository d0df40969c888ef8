//! What lies between a replica and its Redis, or its upstream, for a test to slow, silence, cut and
//! mend at any moment.

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
    /// So much later, each way.
    Slow(Duration),
    /// Connections are accepted, and nothing passes. What was sent passes later, as after a peer
    /// that was stopped.
    Silent,
    /// Nobody listens, and what was open is reset.
    Refused,
}

/// What happens to the connections that are open at the moment.
#[derive(Clone, Copy)]
enum Fate {
    Close,
    Reset,
    /// Open for ever, and silent for ever.
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
        // Its port is still its own after nobody has listened for a while.
        let address = port::free();
        let (weather, fate) = (watch::Sender::new(Weather::Fair), watch::Sender::new(Fate::Close));
        let listener = TcpListener::bind(address).await.expect("a free port can be bound");
        let listening = tokio::spawn(listen(listener, address, far, weather.clone(), fate.clone()));
        Self { address, weather, fate, listening }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Of the Redis at its far end.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub fn set(&self, weather: Weather) {
        if weather == Weather::Refused {
            self.reset();
        }
        self.weather.send_replace(weather);
    }

    /// Ends what is open, in good order.
    pub fn close(&self) {
        self.fate.send_replace(Fate::Close);
    }

    /// Ends what is open with RST.
    pub fn reset(&self) {
        self.fate.send_replace(Fate::Reset);
    }

    /// What is open stays open and says nothing for ever; what connects later works.
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
    // They end with the task that owns them.
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
        // The greeting of a peer that is silent is silence too.
        let _ = weather.wait_for(|weather| *weather != Weather::Silent).await;
        let Ok(stream) = TcpStream::connect(address).await else { return };
        let _ = (near.set_nodelay(true), stream.set_nodelay(true));
        let far = far.insert(stream);
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        // Once one side has ended there is nothing left to say to the other.
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

/// Carries what comes from one side to the other, in the weather of the moment.
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
