//! A replica's heartbeat: several times a second the replica tells the others, on the board of the
//! store, what it met and what it has in flight, and hears the same of them.

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

/// Between two exchanges. Notes are told at once and heard within one interval; loads are told
/// within one and heard within two.
pub const INTERVAL: Duration = Duration::from_millis(100);
/// What a silent replica had in flight is over after this time.
pub const LIFE: Duration = Duration::from_secs(5);

/// What a replica tells with its heartbeat, and hears of the others.
pub trait Topic: Send + Sync {
    /// Waits until there is something that the others should know at once.
    fn has_news(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// What the others should know, and which version of the board was heard last.
    fn report(&self) -> Told;

    /// The others have been told `told`, and this is what the board says.
    fn hear(&self, told: &[Note], board: &Board);

    /// Nothing was heard for so long that what the others had in flight is over.
    fn hear_nothing(&self);

    /// Gives up what is over by itself.
    fn sweep(&self);
}

/// One replica's part of an exchange.
pub struct Told {
    /// The version of the board that was heard last.
    pub seen: u64,
    pub notes: Vec<Note>,
    /// What the replica has in flight, as the others understand it.
    pub load: String,
}

/// One replica's heartbeat.
pub struct Heartbeat {
    store: Arc<Store>,
    topic: Arc<dyn Topic>,
    replicas: Arc<Replicas>,
    /// Unique to the process.
    name: String,
    /// When the board was heard last. Held during an exchange, so that answers are heard in the
    /// order in which they were given.
    heard: Mutex<Instant>,
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
            heard: Mutex::new(Instant::now()),
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
        tasks.spawn_until_stopped(Arc::clone(&heartbeat).run());
        heartbeat
    }

    /// Exchanges for as long as the replica lives.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.topic.has_news() => {}
            }
            self.exchange().await;
            self.topic.sweep();
        }
    }

    /// Tells the others once, and hears what they have told.
    pub async fn exchange(&self) {
        let mut heard = self.heard.lock().await;
        let Told { seen, notes, load } = self.topic.report();
        let life = if self.has_left.load(Ordering::Relaxed) { Duration::ZERO } else { LIFE };
        let word = BoardReport { replica: &self.name, life, load: &load, seen, notes: &notes };
        match self.store.hear(&word, &mut self.store.patient_budget()).await {
            Ok(board) => {
                *heard = Instant::now();
                self.replicas.hear(board.loads.len());
                self.topic.hear(&notes, &board);
            }
            // The next exchange tells it again. The others' loads are believed for no longer than
            // the store believes them.
            Err(_) if heard.elapsed() > LIFE => self.topic.hear_nothing(),
            Err(_) => {}
        }
    }

    /// Tells the others that what this replica has in flight is over. It tells nothing else from
    /// now on.
    pub async fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
        self.exchange().await;
    }
}
