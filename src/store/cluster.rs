//! A Cluster: one link to each primary, and a table of the slots.
//!
//! A background task keeps the table up to date. A dead shard therefore affects only its own
//! sessions, which find its link away at once. A turn follows a node's redirection within its own
//! budget.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{FromRedisValue, Pipeline, Value, pipe};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::address::Host;
use super::dial::{Dialer, Shown};
use super::fault::{Faults, Redirection, StoreFault};
use super::health::Health;
use super::link::{Link, LinkTarget};
use super::slots::{Slots, slot};
use crate::task::Tasks;

/// Intervals between two queries of the Cluster: if all is well, if a part is missing, and the
/// minimum.
const CALM: Duration = Duration::from_secs(30);
const ALARMED: Duration = Duration::from_secs(1);
const APART: Duration = Duration::from_millis(100);
/// Time for a connected node to report its slots.
const REPORT_TIMEOUT: Duration = Duration::from_millis(300);
/// Redirections that a question may follow: one `MOVED`, one `ASK`, and one to spare.
const REDIRECTIONS: usize = 3;

/// The links and the table of a Cluster.
pub struct Cluster {
    dialer: Arc<Dialer>,
    faults: Arc<Faults>,
    health: Arc<Health>,
    tasks: Tasks,
    table: RwLock<Arc<Table>>,
    /// Whether the table was ever read.
    has_table: AtomicBool,
    /// Wakes the task that keeps the table, if the table may be wrong.
    stale: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    slots: Slots,
    members: HashMap<Host, Member>,
}

/// A primary's link. The task that keeps the link ends when no table contains the primary any more.
#[derive(Clone)]
struct Member {
    link: Arc<Link>,
    _kept: Arc<DropGuard>,
}

impl Cluster {
    pub fn new(
        dialer: Arc<Dialer>,
        faults: Arc<Faults>,
        health: Arc<Health>,
        tasks: Tasks,
    ) -> Self {
        // The store counts as incomplete until the table is read.
        health.loses();
        let (table, has_table) = (RwLock::default(), AtomicBool::new(false));
        Self { dialer, faults, health, tasks, table, has_table, stale: Arc::default() }
    }

    /// Asks the node that owns `name`.
    pub async fn ask<T: FromRedisValue>(
        &self,
        name: &str,
        question: &Pipeline,
        until: Instant,
    ) -> Result<T, StoreFault> {
        let table = self.table();
        let mut host = table.slots.owner(slot(name)).ok_or(StoreFault::Away)?;
        let (mut result, mut sent_on);
        let mut is_asking = false;
        for _ in 0..=REDIRECTIONS {
            let Some(Member { link, .. }) = table.members.get(host) else {
                // This primary has no link yet, so the table must be read again.
                self.stale.notify_one();
                return Err(StoreFault::Away);
            };
            result = match is_asking {
                true => link.ask(&asking(question), until).await,
                false => link.ask(question, until).await,
            };
            let Err(fault) = &result else { return result };
            sent_on = fault.redirection(host);
            is_asking = matches!(sent_on, Some(Redirection::Ask(_)));
            host = match &sent_on {
                None => return result,
                Some(Redirection::Ask(next)) => next,
                Some(Redirection::Moved(next)) => {
                    self.stale.notify_one();
                    next
                }
            };
        }
        Err(StoreFault::Unready("the nodes of the Cluster redirect in a circle".into()))
    }

    /// The connected node that owns `name`, if it is known.
    pub fn host(&self, name: &str) -> Option<Arc<Host>> {
        let table = self.table();
        table.members.get(table.slots.owner(slot(name))?)?.link.host()
    }

    /// All nodes that own slots, connected or not.
    pub fn primaries(&self) -> Vec<Arc<Host>> {
        self.table().members.keys().cloned().map(Arc::new).collect()
    }

    /// All connected nodes.
    pub fn hosts(&self) -> Vec<Arc<Host>> {
        self.table().members.values().filter_map(|member| member.link.host()).collect()
    }

    /// Keeps the table for as long as the future is polled.
    pub async fn keep(self: Arc<Self>) {
        loop {
            match self.read_slots().await {
                Ok(slots) => {
                    self.adopt(slots);
                    if !self.has_table.swap(true, Ordering::Relaxed) {
                        self.health.regains();
                    }
                }
                Err(fault) => self.faults.note(&fault, None),
            }
            sleep(APART).await;
            let rest = if self.health.is_up() { CALM } else { ALARMED };
            tokio::select! {
                () = sleep(rest) => {}
                () = self.stale.notified() => {}
            }
        }
    }

    /// Returns the slots that most of the connected nodes report. If no node is connected, asks the
    /// known nodes and takes the first answer.
    async fn read_slots(&self) -> Result<Slots, StoreFault> {
        let table = self.table();
        let links = table.members.values().filter(|member| member.link.is_up());
        let mut reports: FuturesUnordered<_> =
            links.map(async |member| ask_slots(&member.link).await).collect();
        let mut votes: Vec<(Slots, usize)> = Vec::new();
        while let Some(slots) = reports.next().await {
            let Ok(slots) = slots else { continue };
            match votes.iter_mut().find(|(other, _)| *other == slots) {
                Some((_, votes)) => *votes += 1,
                None => votes.push((slots, 1)),
            }
        }
        match votes.into_iter().max_by_key(|(_, votes)| *votes) {
            Some((slots, _)) => Ok(slots),
            None => self.search(&table).await,
        }
    }

    async fn search(&self, table: &Table) -> Result<Slots, StoreFault> {
        let address = self.dialer.address()?;
        let mut hosts: Vec<&Host> =
            address.hosts.iter().chain(table.members.keys()).chain(&table.slots.replicas).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let one = async |host: &Host| {
            let asking = async {
                let mut connection = self.dialer.dial(&address, host, Shown::Everything).await?;
                parse_slots(&question().query_async(&mut connection).await?, host)
            };
            timeout(self.dialer.connect_timeout(), asking)
                .await
                .unwrap_or_else(|_| Err(self.dialer.late()))
        };
        let mut reports: FuturesUnordered<_> = hosts.into_iter().map(one).collect();
        let mut last = StoreFault::Away;
        while let Some(answer) = reports.next().await {
            match answer {
                Ok(slots) => return Ok(slots),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    /// Opens links to new primaries and retires links to former ones.
    fn adopt(&self, slots: Slots) {
        let old = self.table();
        if old.slots == slots {
            return;
        }
        let members: HashMap<_, _> = slots
            .primaries()
            .into_iter()
            .map(|host| {
                let member = match old.members.get(&host) {
                    Some(member) => {
                        member.link.prove_with_own(|name| slots.is_at(name, &host));
                        member.clone()
                    }
                    None => self.join(&host, &slots),
                };
                (host, member)
            })
            .collect();
        tracing::info!(primaries = members.len(), "the Cluster's slots are known");
        let new = Arc::new(Table { slots, members });
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        for (_, member) in old.members.iter().filter(|(host, _)| !new.members.contains_key(host)) {
            member.link.retire();
        }
    }

    fn join(&self, host: &Host, slots: &Slots) -> Member {
        let target = LinkTarget::Node(host.clone());
        let (dialer, faults) = (Arc::clone(&self.dialer), Arc::clone(&self.faults));
        let link = Arc::new(Link::new(
            dialer,
            target,
            faults,
            Arc::clone(&self.health),
            Arc::clone(&self.stale),
        ));
        link.prove_with_own(|name| slots.is_at(name, host));
        let (kept, end) = (Arc::clone(&link), CancellationToken::new());
        let ended = end.clone();
        self.tasks.spawn_kept("store_link", move || {
            let (kept, ended) = (Arc::clone(&kept).keep(), ended.clone());
            async move {
                tokio::select! {
                    () = kept => {}
                    () = ended.cancelled() => {}
                }
            }
        });
        Member { link, _kept: Arc::new(end.drop_guard()) }
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn question() -> Pipeline {
    let mut question = pipe();
    question.cmd("CLUSTER").arg("SLOTS");
    question
}

async fn ask_slots(link: &Link) -> Result<Slots, StoreFault> {
    let host = link.host().ok_or(StoreFault::Away)?;
    parse_slots(&link.ask(&question(), Instant::now() + REPORT_TIMEOUT).await?, &host)
}

fn parse_slots((answer,): &(Value,), asked: &Host) -> Result<Slots, StoreFault> {
    let slots = Slots::parse(answer, asked).filter(|slots| !slots.primaries().is_empty());
    slots.ok_or_else(|| StoreFault::Unready("no node of the Cluster owns any slots".into()))
}

/// Returns the question to a node that does not own the name yet. `ASKING` is valid for one command
/// only.
fn asking(question: &Pipeline) -> Pipeline {
    let mut asking = pipe();
    for command in question.cmd_iter() {
        asking.cmd("ASKING").ignore().add_command(command.clone());
    }
    asking
}
