//! The shared store: Redis 7, alone, behind Sentinels or as a Cluster.
//!
//! Translates operations into Redis commands. Scripts run with `EVALSHA`, then with `EVAL` if Redis
//! does not know the script. Never sends `SCRIPT LOAD` or `PING`. The caller's deadline bounds
//! every wait for an answer.

use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, Pipeline, Script, ServerErrorKind, pipe};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use super::address::{Host, StoreKind};
use super::announcement::{Announcement, Scan, Subscriber};
use super::backend::{Change, Merge};
use super::board::{Board, BoardReport, Note};
use super::cluster::Cluster;
use super::dial::Dialer;
use super::fault::{Faults, StoreFault};
use super::health::Health;
use super::lag::Lag;
use super::link::{Link, LinkTarget};
use super::name::Name;
use super::text::ReplyText;
use super::trail::LONGEST;
use super::{MemberReport, MembershipReply, Replaced, StoreSettings, StoredValue, Unavailable};
use crate::metrics::Metrics;
use crate::task::Tasks;

const REPLACE: &str = include_str!("replace.lua");
const EXTEND: &str = include_str!("extend.lua");
const MERGE: &str = include_str!("merge.lua");
const MEMBERSHIP: &str = include_str!("membership.lua");
const BOARD: &str = include_str!("board.lua");
const TRAIL: &str = include_str!("trail.lua");

/// Announcements that a slow receiver may be behind before it misses some.
const BACKLOG: usize = 1_024;

/// The store in Redis.
pub struct Redis {
    dialer: Arc<Dialer>,
    nodes: Nodes,
    /// The channel on which bindings are announced.
    channel: String,
    /// Counts bindings that replicas of the store lack. `None`: a lone Redis, which has no
    /// replicas.
    lag: Option<Arc<Lag>>,
    announcements: broadcast::Sender<Announcement>,
    resubscribed: watch::Sender<u64>,
    faults: Arc<Faults>,
    health: Arc<Health>,
    replace: (Script, &'static str),
    extend: (Script, &'static str),
    merge: (Script, &'static str),
    membership: (Script, &'static str),
    board: (Script, &'static str),
    trail: (Script, &'static str),
}

#[derive(Clone)]
enum Nodes {
    One(Arc<Link>),
    Many(Arc<Cluster>),
}

impl Redis {
    /// Checks the address and starts connecting. Every operation is [`Unavailable`] until
    /// connected.
    pub fn open(
        settings: &StoreSettings,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, String> {
        let dialer = Arc::new(Dialer::new(settings)?);
        let (faults, health) = (
            Arc::new(Faults::new(Arc::clone(metrics))),
            Arc::new(Health::new(Arc::clone(metrics))),
        );
        let (reported, counted) = (Arc::clone(&faults), Arc::clone(&health));
        let lag = (*dialer.kind() != StoreKind::One)
            .then(|| Arc::new(Lag::new(Arc::clone(&dialer), Arc::clone(metrics))));
        if let Some(lag) = lag.clone() {
            tasks.spawn_kept("store_lag", move || Arc::clone(&lag).keep());
        }
        let (announcements, resubscribed, channel) = (
            broadcast::Sender::new(BACKLOG),
            watch::Sender::new(0),
            dialer.name(Name::Announcements),
        );
        let subscriber = Arc::new(Subscriber {
            dialer: Arc::clone(&dialer),
            faults: Arc::clone(&faults),
            sender: announcements.clone(),
            resubscribed: resubscribed.clone(),
        });
        let kept = Arc::clone(&dialer);
        let nodes = match dialer.kind() {
            StoreKind::One | StoreKind::Sentinel(_) => {
                let link = Arc::new(Link::new(
                    kept,
                    LinkTarget::Named,
                    reported,
                    counted,
                    Arc::new(Notify::new()),
                ));
                let kept = Arc::clone(&link);
                tasks.spawn_kept("store_link", move || Arc::clone(&kept).keep());
                Nodes::One(link)
            }
            StoreKind::Cluster => {
                let cluster = Arc::new(Cluster::new(kept, reported, counted, tasks.clone()));
                let kept = Arc::clone(&cluster);
                tasks.spawn_kept("store_cluster", move || Arc::clone(&kept).keep());
                Nodes::Many(cluster)
            }
        };
        let known = nodes.clone();
        tasks.spawn_kept("store_subscriber", move || {
            let known = known.clone();
            Arc::clone(&subscriber).listen(move || known.hosts())
        });
        let scripts = [REPLACE, EXTEND, MERGE, MEMBERSHIP, BOARD, TRAIL]
            .map(|text| (Script::new(text), text));
        let [replace, extend, merge, membership, board, trail] = scripts;
        Ok(Self {
            dialer,
            nodes,
            channel,
            lag,
            announcements,
            resubscribed,
            faults,
            health,
            replace,
            extend,
            merge,
            membership,
            board,
            trail,
        })
    }

    /// Follows whether every part of the store answers.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.health.watch()
    }

    /// The bindings that replicas announce from now on.
    pub fn announcements(&self) -> broadcast::Receiver<Announcement> {
        self.announcements.subscribe()
    }

    /// Counts the subscriptions to announcements.
    pub fn resubscribed(&self) -> watch::Receiver<u64> {
        self.resubscribed.subscribe()
    }

    /// A scan of all stored bindings.
    pub fn scan(&self) -> Result<Scan, Unavailable> {
        let nodes = match &self.nodes {
            Nodes::One(link) => link.host().into_iter().collect(),
            Nodes::Many(cluster) => cluster.primaries(),
        };
        if nodes.is_empty() {
            return Err(StoreFault::Away.into());
        }
        Ok(Scan::through(&self.dialer, &self.faults, nodes))
    }

    /// The last fault, as text.
    pub fn fault(&self) -> Option<String> {
        self.faults.last()
    }

    pub async fn get(&self, name: &str, by: Instant) -> Result<Option<StoredValue>, Unavailable> {
        let mut both = Pipeline::with_capacity(2);
        both.get(name).pttl(name);
        let (value, left): (Option<ReplyText>, i64) = self.ask(name, &both, by).await?;
        // A negative life means that the value expired between the two commands (-2), or that a
        // foreign writer stored it without an expiry (-1).
        Ok(value.map(|value| StoredValue {
            value: value.into(),
            left: Duration::from_millis(left.try_into().unwrap_or(0)),
        }))
    }

    /// Stores `value`, whatever is stored.
    pub async fn put(
        &self,
        name: &str,
        value: &str,
        ttl: Duration,
        until: Instant,
    ) -> Result<(), Unavailable> {
        let mut set = pipe();
        set.cmd("SET").arg(name).arg(value).arg("PX").arg(millis(ttl));
        let ((),) = self.ask(name, &set, until).await?;
        Ok(())
    }

    /// Stores `value` if nothing is stored.
    pub async fn claim(
        &self,
        name: &str,
        value: &str,
        ttl: Duration,
        until: Instant,
    ) -> Result<Option<String>, Unavailable> {
        let mut set = pipe();
        set.cmd("SET").arg(name).arg(value).arg("NX").arg("GET").arg("PX").arg(millis(ttl));
        let (stored,): (Option<ReplyText>,) = self.ask(name, &set, until).await?;
        Ok(stored.map(String::from))
    }

    pub async fn replace(
        &self,
        name: &str,
        change: &Change<'_>,
        until: Instant,
    ) -> Result<Replaced, Unavailable> {
        let Change { expected, new, ttl, is_move } = change;
        let (ttl, lag) = (millis(*ttl).to_string(), self.lagging(name, *is_move));
        let args = [*expected, *new, &ttl, &self.channel];
        let stored: Option<ReplyText> = self.run(&self.replace, name, &args, until).await?;
        if let (None, Some((lag, host))) = (&stored, lag) {
            lag.note(host, name);
        }
        Ok(stored.map_or(Replaced::Done, |stored| Replaced::Lost(stored.into())))
    }

    pub async fn extend(
        &self,
        name: &str,
        value: &str,
        ttl: Duration,
        until: Instant,
    ) -> Result<(), Unavailable> {
        let (life, due) = (millis(ttl).to_string(), millis(ttl / 4 * 3).to_string());
        self.run(&self.extend, name, &[value, &life, &due, &self.channel], until).await
    }

    pub async fn merge(
        &self,
        name: &str,
        merge: &Merge<'_>,
        until: Instant,
    ) -> Result<Option<String>, Unavailable> {
        let Merge { value, epoch, ttl, is_expected } = merge;
        let (epoch, ttl, lag) =
            (epoch.to_string(), millis(*ttl).to_string(), self.lagging(name, !is_expected));
        let args = [*value, &epoch, &ttl, &self.channel];
        let stored: Option<ReplyText> = self.run(&self.merge, name, &args, until).await?;
        let stored = stored.map(String::from);
        // An equal value means that an earlier write succeeded and its answer was lost.
        let is_there = stored.as_ref().is_none_or(|stored| stored == value);
        if let (true, Some((lag, host))) = (is_there, lag) {
            lag.note(host, name);
        }
        Ok(stored)
    }

    pub async fn exchange_membership(
        &self,
        name: &str,
        report: &MemberReport<'_>,
        is_early: bool,
        until: Instant,
    ) -> Result<MembershipReply, Unavailable> {
        let MemberReport { replica, fingerprint, keys, ordinal, life } = report;
        let (ordinal, life) = (ordinal.to_string(), life.as_millis().to_string());
        let args =
            [*replica, *fingerprint, *keys, &ordinal, &life, if is_early { "1" } else { "0" }];
        let (ordinal, others): (u32, Vec<ReplyText>) =
            self.run(&self.membership, name, &args, until).await?;
        Ok(MembershipReply { ordinal, others: ReplyText::all(others) })
    }

    pub async fn exchange_board(
        &self,
        name: &str,
        report: &BoardReport<'_>,
        until: Instant,
    ) -> Result<Board, Unavailable> {
        let mut args = vec![
            report.replica.into(),
            report.life.as_millis().to_string(),
            report.load.into(),
            report.seen.to_string(),
        ];
        for note in report.notes {
            let life = note.life.map_or(0, millis);
            args.extend([
                note.name.clone(),
                note.value.clone(),
                life.to_string(),
                note.stamp.to_string(),
            ]);
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let (now, version, notes, loads): (u64, u64, Vec<ReplyText>, Vec<ReplyText>) =
            self.run(&self.board, name, &args, until).await?;
        let notes = ReplyText::all(notes).chunks(4).filter_map(Note::parse).collect();
        Ok(Board { now, version, notes, loads: ReplyText::all(loads) })
    }

    pub async fn append(
        &self,
        name: &str,
        lines: &[String],
        ttl: Duration,
        until: Instant,
    ) -> Result<(), Unavailable> {
        let (most, ttl) = (LONGEST.to_string(), millis(ttl).to_string());
        let args: Vec<_> = [&most, &ttl].into_iter().chain(lines).map(String::as_str).collect();
        self.run(&self.trail, name, &args, until).await
    }

    pub async fn list(&self, name: &str, until: Instant) -> Result<Vec<String>, Unavailable> {
        let mut range = pipe();
        range.lrange(name, 0, -1);
        let (lines,): (Vec<ReplyText>,) = self.ask(name, &range, until).await?;
        Ok(ReplyText::all(lines))
    }

    /// Returns the lag counter for a write under `name`, if the write `is_counted`, and the node
    /// that owns `name` now. If that node is lost a moment later, the write may be lost with it.
    fn lagging(&self, name: &str, is_counted: bool) -> Option<(&Lag, Arc<Host>)> {
        let lag = self.lag.as_deref().filter(|_| is_counted)?;
        Some((lag, self.nodes.host(name)?))
    }

    async fn run<T: FromRedisValue>(
        &self,
        (known, text): &(Script, &str),
        name: &str,
        args: &[&str],
        until: Instant,
    ) -> Result<T, Unavailable> {
        let call = |command: &str, script: &str| {
            let mut call = pipe();
            call.cmd(command).arg(script).arg(1).arg(name).arg(args);
            call
        };
        let result = match self.ask(name, &call("EVALSHA", known.get_hash()), until).await {
            Err(StoreFault::Refused(error))
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) =>
            {
                self.ask(name, &call("EVAL", text), until).await
            }
            result => result,
        };
        let (answer,) = result?;
        Ok(answer)
    }

    async fn ask<T: FromRedisValue>(
        &self,
        name: &str,
        question: &Pipeline,
        until: Instant,
    ) -> Result<T, StoreFault> {
        match &self.nodes {
            Nodes::One(link) => link.ask(question, until).await,
            Nodes::Many(cluster) => cluster.ask(name, question, until).await,
        }
    }
}

impl Nodes {
    /// The node that owns `name`, if it is connected.
    fn host(&self, name: &str) -> Option<Arc<Host>> {
        match self {
            Self::One(link) => link.host(),
            Self::Many(cluster) => cluster.host(name),
        }
    }

    /// All connected nodes.
    fn hosts(&self) -> Vec<Arc<Host>> {
        match self {
            Self::One(link) => link.host().into_iter().collect(),
            Self::Many(cluster) => cluster.hosts(),
        }
    }
}

/// Returns the milliseconds of `ttl`, at least 1, because Redis refuses a life of 0.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}
