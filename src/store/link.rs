//! One connection to one Redis. A background task replaces it when it is lost, so that no turn
//! waits for a connection.
//!
//! The link drops its connection when it breaks, when its Redis takes no writes, or when its
//! breaker opens. From then on no turn waits. A new connection is used after several test writes in
//! a row, each answered with time to spare. A Redis that is too slow for turns thus stays unused
//! and does not go in and out of use.

use std::sync::atomic::{AtomicU64, Ordering};
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

/// Minimum time between two attempts to connect. The first attempt after a loss starts at once.
const RECONNECT: Duration = Duration::from_millis(250);
/// Interval of test writes on a connection in use.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Interval at which the link asks the Sentinels whether its primary is still the primary.
const RENAMED: Duration = Duration::from_secs(5);
/// Test writes in a row that a new connection must pass.
const PROOFS: u32 = 3;
/// Most numbered names to try for a test write. Nearly always one of them lies in any given slot of
/// a Cluster.
const NAMES: u32 = 50_000;
/// Life of a test write in the store.
const PROOF_LIFE_MS: u32 = 1_000;

/// The Redis that a link connects to.
pub enum LinkTarget {
    /// The Redis that the address, or the Sentinels in it, currently name.
    Named,
    /// A node of a Cluster.
    Node(Host),
}

/// A connection that is kept up.
pub struct Link {
    dialer: Arc<Dialer>,
    target: LinkTarget,
    faults: Arc<Faults>,
    health: Arc<Health>,
    state: Mutex<State>,
    /// The number of the last connection.
    numbers: AtomicU64,
    /// Wakes the task that keeps the connection, so that it looks at the state.
    wake: Notify,
    /// The name of the test write.
    probe: Mutex<String>,
    /// Wakes other tasks when the connection is dropped.
    lost: Arc<Notify>,
}

enum State {
    Away,
    /// The connection is in use.
    Up(Box<Line>),
    /// The link has left the store.
    Retired,
}

/// One connection. The number identifies it, so that a late fault of an old connection does not
/// count against the one in use.
struct Line {
    number: u64,
    connection: MultiplexedConnection,
    host: Arc<Host>,
    breaker: Breaker,
}

impl Link {
    /// Creates a link that is away until [`Self::keep`] connects it.
    pub fn new(
        dialer: Arc<Dialer>,
        target: LinkTarget,
        faults: Arc<Faults>,
        health: Arc<Health>,
        lost: Arc<Notify>,
    ) -> Self {
        health.loses();
        let probe = Mutex::new(dialer.name(Name::Proof(None)));
        Self {
            dialer,
            target,
            faults,
            health,
            state: Mutex::new(State::Away),
            numbers: AtomicU64::new(0),
            wake: Notify::new(),
            probe,
            lost,
        }
    }

    /// Asks, and waits for the answer until `until`.
    pub async fn ask<T: FromRedisValue>(
        &self,
        question: &Pipeline,
        until: Instant,
    ) -> Result<T, StoreFault> {
        let (number, mut connection) = self.line()?;
        let asked = Instant::now();
        let result = match timeout_at(until, question.query_async(&mut connection)).await {
            Ok(Ok(answer)) => {
                self.record_answer(number);
                return Ok(answer);
            }
            Ok(Err(error)) => StoreFault::Refused(error),
            Err(_) => StoreFault::Silent,
        };
        self.learn(number, asked, &result);
        Err(result)
    }

    /// The host of the connection in use.
    pub fn host(&self) -> Option<Arc<Host>> {
        match &*self.lock() {
            State::Up(line) => Some(Arc::clone(&line.host)),
            _ => None,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.lock(), State::Up(_))
    }

    /// Chooses a name for the test write that `is_own` to the link's node of a Cluster. A node
    /// refuses other names before it checks whether it can write.
    pub fn prove_with_own(&self, is_own: impl Fn(&str) -> bool) {
        let mut probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_own(&probe) {
            // If the prefix pins all names to one node, the other nodes have no name of their own.
            // Their refusal does no harm.
            let mut names = (0..NAMES).map(|number| self.dialer.name(Name::Proof(Some(number))));
            if let Some(own) = names.find(|name| is_own(name)) {
                *probe = own;
            }
        }
    }

    /// Takes the link out of the store. Pending questions still get their answers.
    pub fn retire(&self) {
        if matches!(std::mem::replace(&mut *self.lock(), State::Retired), State::Away) {
            self.health.regains();
        }
    }

    /// Keeps the link connected for as long as the future is polled.
    pub async fn keep(self: Arc<Self>) {
        let mut attempts = tokio::time::interval(RECONNECT);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // If the previous run panicked, it may have left a connection in use that no task attends.
        self.give_up(self.numbers.load(Ordering::Relaxed), "it was not attended");
        loop {
            attempts.tick().await;
            let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
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

    /// Opens a connection and runs its test writes.
    async fn connect(&self) -> Result<(Host, MultiplexedConnection), (Option<Host>, StoreFault)> {
        let connect_timeout = self.dialer.connect_timeout();
        let Named { host, .. } = self.find().await.map_err(|fault| (None, fault))?;
        let reaching = async {
            let address = self.dialer.address()?;
            let mut connection = self.dialer.dial(&address, &host, Shown::Everything).await?;
            for _ in 0..PROOFS {
                let began = Instant::now();
                self.probe(&mut connection).await?;
                // If each answer took nearly a turn's whole budget, every turn would be delayed.
                if began.elapsed() > self.dialer.timeout() * 3 / 4 {
                    return Err(StoreFault::Late("Redis answers too late"));
                }
            }
            Ok(connection)
        };
        match timeout(connect_timeout, reaching).await.unwrap_or_else(|_| Err(self.dialer.late())) {
            Ok(connection) => Ok((host, connection)),
            Err(fault) => Err((Some(host), fault)),
        }
    }

    async fn find(&self) -> Result<Named, StoreFault> {
        let certain = |host: &Host| Named { host: host.clone(), by_most: true };
        let address = match &self.target {
            LinkTarget::Node(host) => return Ok(certain(host)),
            LinkTarget::Named => self.dialer.address()?,
        };
        match &address.kind {
            StoreKind::Sentinel(master) => sentinel::primary(&self.dialer, &address, master).await,
            _ => Ok(certain(&address.hosts[0])),
        }
    }

    /// Tests the connection with a write, because a read-only replica answers reads, too. A Redis
    /// error about this one command counts as an answer.
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

    /// Returns when most Sentinels name another primary. The primary in use may be cut off from its
    /// replicas, still answer, and lose later writes. A minority of Sentinels ends no working
    /// connection.
    async fn watch_name(&self, number: u64) {
        if !matches!(
            (&self.target, self.dialer.kind()),
            (LinkTarget::Named, StoreKind::Sentinel(_))
        ) {
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

    /// Attends connection `number`, and returns when the connection is dropped. Sends a test write
    /// at intervals, and further ones after an unanswered question, so that a fault shows soon even
    /// with few turns.
    async fn attend(&self, number: u64) {
        while self.is_in_use(number) {
            let mut is_due = timeout(HEARTBEAT, self.wake.notified()).await.is_err();
            while let Some(mut connection) = self.connection(number, std::mem::take(&mut is_due)) {
                let asked = Instant::now();
                match timeout(self.dialer.timeout(), self.probe(&mut connection)).await {
                    Ok(Ok(())) => self.record_answer(number),
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

    /// Returns the connection, if a test write `is_due` or the last question is unanswered.
    fn connection(&self, number: u64, is_due: bool) -> Option<MultiplexedConnection> {
        match &*self.lock() {
            State::Up(line) if line.number == number && (is_due || line.breaker.is_doubtful()) => {
                Some(line.connection.clone())
            }
            _ => None,
        }
    }

    fn record_answer(&self, number: u64) {
        if let State::Up(line) = &mut *self.lock()
            && line.number == number
        {
            line.breaker.record_answer(now());
        }
    }

    /// Records the fault of a question that was asked at `asked` on connection `number`.
    fn learn(&self, number: u64, asked: Instant, fault: &StoreFault) {
        let host = self.host();
        self.faults.note(fault, host.as_deref());
        if fault.ends_connection() {
            self.give_up(number, &fault.to_string());
        } else if matches!(fault, StoreFault::Refused(_)) {
            self.record_answer(number);
        } else if asked.elapsed() >= self.dialer.timeout() {
            // If the caller had little time left, its unanswered question proves nothing about the
            // store.
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
            true => self.give_up(number, "no answers"),
            false => self.wake.notify_one(),
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
        tracing::warn!(why, node = %host, "dropped the connection to the store");
        self.wake.notify_one();
        self.lost.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
