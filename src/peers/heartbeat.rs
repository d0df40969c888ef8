//! A replica's heartbeat. Several times a second, replicas exchange notes and loads on the board of
//! the store.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use crate::peers::replicas::Replicas;
use crate::store::Store;
use crate::store::board::{Board, BoardReport, Note};
use crate::task::Tasks;

/// Time between two exchanges. Other replicas receive a note within one interval, because notes are
/// sent at once. They receive a load within two intervals.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// Time after which the load of a silent replica expires.
pub const LIFE: Duration = Duration::from_secs(5);

/// A part of the gateway that takes part in each heartbeat.
pub trait Topic: Send + Sync {
    /// Waits until there are notes that cannot wait for the next interval.
    fn wait_for_notes(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Returns this replica's part of the next exchange.
    fn report(&self) -> TopicReport;

    /// Takes the answer to an exchange: the store accepted the notes `reported`, and `board` is its
    /// new state.
    fn take_board(&self, reported: &[Note], board: &Board);

    /// Drops the loads of the other replicas, because no exchange succeeded for [`LIFE`].
    fn drop_loads(&self);

    /// Drops expired entries.
    fn sweep(&self);
}

/// One replica's part of an exchange.
pub struct TopicReport {
    /// The last received version of the board.
    pub seen: u64,
    pub notes: Vec<Note>,
    /// The replica's turns in flight, encoded for the other replicas.
    pub load: String,
}

/// One replica's heartbeat.
pub struct Heartbeat {
    store: Arc<Store>,
    topic: Arc<dyn Topic>,
    replicas: Arc<Replicas>,
    /// Unique to the process.
    name: String,
    /// The time of the last successful exchange. An exchange keeps the lock, so that answers are
    /// processed in the order in which the store gave them.
    last_success: Mutex<Instant>,
    has_left: AtomicBool,
}

impl Heartbeat {
    pub fn new(
        store: Arc<Store>,
        topic: Arc<dyn Topic>,
        replicas: Arc<Replicas>,
        name: String,
    ) -> Self {
        Self {
            store,
            topic,
            replicas,
            name,
            last_success: Mutex::new(Instant::now()),
            has_left: AtomicBool::new(false),
        }
    }

    /// Exchanges once, then goes on in the background until `tasks` end.
    pub async fn start(
        store: &Arc<Store>,
        topic: Arc<dyn Topic>,
        replicas: Arc<Replicas>,
        name: &str,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let heartbeat = Arc::new(Self::new(Arc::clone(store), topic, replicas, name.to_owned()));
        heartbeat.exchange().await;
        let kept = Arc::clone(&heartbeat);
        tasks.spawn_kept("heartbeat", move || Arc::clone(&kept).run());
        heartbeat
    }

    /// Exchanges until the replica stops.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.topic.wait_for_notes() => {}
            }
            self.exchange().await;
            self.topic.sweep();
        }
    }

    /// Exchanges once: sends this replica's part and receives the board.
    pub async fn exchange(&self) {
        let mut last_success = self.last_success.lock().await;
        let TopicReport { seen, notes, load } = self.topic.report();
        let life = if self.has_left.load(Ordering::Relaxed) { Duration::ZERO } else { LIFE };
        let report = BoardReport { replica: &self.name, life, load: &load, seen, notes: &notes };
        match self.store.exchange_board(&report, &mut self.store.background_budget()).await {
            Ok(board) => {
                *last_success = Instant::now();
                self.replicas.set_others(board.loads.len());
                self.topic.take_board(&notes, &board);
            }
            // The next exchange sends the same notes again. The loads of other replicas count no
            // longer than the store keeps them.
            Err(_) if last_success.elapsed() > LIFE => self.topic.drop_loads(),
            Err(_) => {}
        }
    }

    /// Withdraws this replica's load from the board. Later exchanges withdraw it, too.
    pub async fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.exchange().await;
    }
}
