//! One connection to one Redis, remade in the background, so that no turn ever waits for a
//! connection.
//!
//! It is given up when it breaks, when its Redis takes no writes, and when its breaker opens; from
//! then on nobody waits for anything. A new one is used once it has proven itself: several writes
//! in a row, each answered with time to spare, so that a Redis which is too slow for the turns
//! stays out instead of coming and going.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline, cmd};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};

use super::address::{Host, StoreKind};
use super::breaker::Breaker;
use super::dial::{Dialer, Shown};
use super::fault::{Faults, StoreFault};
use super::health::Health;
use super::name::Name;
use super::sentinel::{self, Named};

/// From one attempt to connect to the next, at least: the first one after a loss is made at once.
const RECONNECT: Duration = Duration::from_millis(250);
/// How often a connection in use is asked whether it still takes writes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the Sentinels are asked whether the primary in use is still one.
const RENAMED: Duration = Duration::from_secs(5);
/// So many answers in a row are proof.
const PROOFS: u32 = 3;
/// So many names have one in every slot of a Cluster, nearly always.
const NAMES: u32 = 50_000;
/// How long a proof stays stored.
const PROOF_LIFE_MS: u32 = 1_000;

/// Which Redis a link leads to.
pub enum LinkTarget {
    /// The one that the address, or the Sentinels in it, name at the time.
    Named,
    /// This node.
    Node(Host),
}

pub struct Link {
    dialer: Arc<Dialer>,
    place: LinkTarget,
    faults: Arc<Faults>,
    health: Arc<Health>,
    state: Mutex<State>,
    /// BoardReport to the task that keeps the connection: look at the state.
    word: Notify,
    /// What it writes to prove itself.
    probe: Mutex<String>,
    /// BoardReport to whoever else should know that the connection was given up.
    lost: Arc<Notify>,
}

enum State {
    Away,
    /// In use.
    Up(Box<Line>),
    /// No part of the store any more.
    Retired,
}

/// One connection. What is learned late about an old one says nothing about the one in use: they
/// are told apart by number.
struct Line {
    number: u64,
    connection: MultiplexedConnection,
    host: Arc<Host>,
    breaker: Breaker,
}

impl Link {
    /// Away until [`Self::keep`] has connected it.
    pub fn new(
        dialer: Arc<Dialer>,
        place: LinkTarget,
        faults: Arc<Faults>,
        health: Arc<Health>,
        lost: Arc<Notify>,
    ) -> Self {
        health.loses();
        let probe = Mutex::new(dialer.name(Name::Proof(None)));
        Self {
            dialer,
            place,
            faults,
            health,
            state: Mutex::new(State::Away),
            word: Notify::new(),
            probe,
            lost,
        }
    }

    /// Puts a question, and waits for the answer until `until`.
    pub async fn ask<T: FromRedisValue>(
        &self,
        question: &Pipeline,
        until: Instant,
    ) -> Result<T, StoreFault> {
        let (number, mut connection) = self.line()?;
        let asked = Instant::now();
        let result = match timeout_at(until, question.query_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.answered(number);
                return Ok(answer);
            }
            Ok(Err(error)) => StoreFault::Refused(error),
            Err(_) => StoreFault::Silent,
        };
        self.learn(number, asked, &result);
        Err(result)
    }

    /// Whose connection is in use.
    pub fn host(&self) -> Option<Arc<Host>> {
        match &*self.lock() {
            State::Up(line) => Some(Arc::clone(&line.host)),
            _ => None,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.lock(), State::Up(_))
    }

    /// From now on it proves itself with a name that `is_own` to its node of a Cluster: any other
    /// is refused before the node has looked whether it can write at all.
    pub fn prove_with_own(&self, is_own: impl Fn(&str) -> bool) {
        let mut probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_own(&probe) {
            // Where the prefix pins all names to one node there is no other name: that others
            // refuse it does no harm.
            let mut names = (0..NAMES).map(|number| self.dialer.name(Name::Proof(Some(number))));
            if let Some(own) = names.find(|name| is_own(name)) {
                *probe = own;
            }
        }
    }

    /// It is no part of the store any more. Whoever waits for an answer still gets it.
    pub fn retire(&self) {
        if matches!(std::mem::replace(&mut *self.lock(), State::Retired), State::Away) {
            self.health.regains();
        }
    }

    /// Keeps it connected, for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        let mut attempts = tokio::time::interval(RECONNECT);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 1.. {
            attempts.tick().await;
            match self.connect().await {
                Ok((host, connection)) => {
                    tracing::info!(node = %host, "connected to the store");
                    self.begin(number, host, connection);
                    tokio::select! {
                        () = self.attend(number) => {}
                        () = self.watch_name(number) => {}
                    }
                }
                Err((host, fault)) => self.faults.note(&fault, host.as_ref()),
            }
        }
    }

    /// A connection that has proven itself.
    async fn connect(&self) -> Result<(Host, MultiplexedConnection), (Option<Host>, StoreFault)> {
        let patience = self.dialer.patience();
        let Named { host, .. } = self.find().await.map_err(|fault| (None, fault))?;
        let reaching = async {
            let address = self.dialer.address()?;
            let mut connection = self.dialer.dial(&address, &host, Shown::Everything).await?;
            for _ in 0..PROOFS {
                let began = Instant::now();
                self.probe(&mut connection).await?;
                // What takes nearly all of a turn's time would make it wait again and again.
                if began.elapsed() > self.dialer.timeout() * 3 / 4 {
                    return Err(StoreFault::Late("it answers too late"));
                }
            }
            Ok(connection)
        };
        match timeout(patience, reaching).await.unwrap_or_else(|_| Err(self.dialer.late())) {
            Ok(connection) => Ok((host, connection)),
            Err(fault) => Err((Some(host), fault)),
        }
    }

    async fn find(&self) -> Result<Named, StoreFault> {
        let certain = |host: &Host| Named { host: host.clone(), by_most: true };
        let address = match &self.place {
            LinkTarget::Node(host) => return Ok(certain(host)),
            LinkTarget::Named => self.dialer.address()?,
        };
        match &address.kind {
            StoreKind::Sentinel(master) => sentinel::primary(&self.dialer, &address, master).await,
            _ => Ok(certain(&address.hosts[0])),
        }
    }

    /// A write, since one that only reads may be a replica. What Redis says against this one
    /// command is an answer too.
    async fn probe(&self, connection: &mut MultiplexedConnection) -> Result<(), StoreFault> {
        let mut write = cmd("SET");
        write
            .arg(self.probe.lock().unwrap_or_else(PoisonError::into_inner).as_str())
            .arg("")
            .arg("PX")
            .arg(PROOF_LIFE_MS);
        match write.exec_async(connection).await.map_err(StoreFault::from) {
            Err(fault) if fault.ends_connection() => Err(fault),
            Err(fault) => {
                self.faults.note(&fault, None);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns when most Sentinels name another primary than the one in use, which may be cut off
    /// from them, live on, and lose what it is told from now on. What fewer say takes no connection
    /// away that works.
    async fn watch_name(&self, number: u64) {
        if !matches!((&self.place, self.dialer.kind()), (LinkTarget::Named, StoreKind::Sentinel(_)))
        {
            return std::future::pending().await;
        }
        while let Some(host) = self.host() {
            tokio::time::sleep(RENAMED).await;
            let named = self.find().await;
            if named.is_ok_and(|named| named.by_most && named.host != *host) {
                self.give_up(number, "the Sentinels name another primary");
            }
        }
    }

    /// Returns when the connection is given up. Asks now and then, and after a question without an
    /// answer at once and again, so that what has happened to the connection is known soon, however
    /// few turns there are.
    async fn attend(&self, number: u64) {
        while self.is_in_use(number) {
            let mut is_due = timeout(HEARTBEAT, self.word.notified()).await.is_err();
            while let Some(mut connection) = self.connection(number, std::mem::take(&mut is_due)) {
                let asked = Instant::now();
                match timeout(self.dialer.timeout(), self.probe(&mut connection)).await {
                    Ok(Ok(())) => self.answered(number),
                    Ok(Err(fault)) => self.learn(number, asked, &fault),
                    Err(_) => self.learn(number, asked, &StoreFault::Silent),
                }
            }
        }
    }

    fn begin(&self, number: u64, host: Host, connection: MultiplexedConnection) {
        let mut state = self.lock();
        if matches!(*state, State::Away) {
            *state = State::Up(Box::new(Line {
                number,
                connection,
                host: Arc::new(host),
                breaker: Breaker::new(now()),
            }));
            self.health.regains();
        }
    }

    fn line(&self) -> Result<(u64, MultiplexedConnection), StoreFault> {
        match &*self.lock() {
            State::Up(line) => Ok((line.number, line.connection.clone())),
            _ => Err(StoreFault::Away),
        }
    }

    fn is_in_use(&self, number: u64) -> bool {
        matches!(&*self.lock(), State::Up(line) if line.number == number)
    }

    /// The connection, if it is to be asked: because that is due, or its last question has no
    /// answer.
    fn connection(&self, number: u64, is_due: bool) -> Option<MultiplexedConnection> {
        match &*self.lock() {
            State::Up(line) if line.number == number && (is_due || line.breaker.is_doubtful()) => {
                Some(line.connection.clone())
            }
            _ => None,
        }
    }

    fn answered(&self, number: u64) {
        if let State::Up(line) = &mut *self.lock()
            && line.number == number
        {
            line.breaker.answered(now());
        }
    }

    /// What line `number` did with a question put to it at `asked`.
    fn learn(&self, number: u64, asked: Instant, fault: &StoreFault) {
        let host = self.host();
        self.faults.note(fault, host.as_deref());
        if fault.ends_connection() {
            self.give_up(number, &fault.to_string());
        } else if matches!(fault, StoreFault::Refused(_)) {
            self.answered(number);
        } else if asked.elapsed() >= self.dialer.timeout() {
            // Had the caller little time left, it would say nothing about the store.
            self.unanswered(number, asked);
        }
    }

    fn unanswered(&self, number: u64, asked: Instant) {
        let opens = match &mut *self.lock() {
            State::Up(line) if line.number == number => {
                line.breaker.unanswered(asked.into_std(), now())
            }
            _ => return,
        };
        match opens {
            true => self.give_up(number, "it is silent"),
            false => self.word.notify_one(),
        }
    }

    fn give_up(&self, number: u64, why: &str) {
        let mut state = self.lock();
        let State::Up(line) = &*state else { return };
        if line.number != number {
            return;
        }
        let host = Arc::clone(&line.host);
        *state = State::Away;
        self.health.loses();
        drop(state);
        tracing::warn!(why, node = %host, "the connection to the store is given up");
        self.word.notify_one();
        self.lost.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
