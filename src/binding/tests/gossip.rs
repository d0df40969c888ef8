//! Tests of gossip: how long a replica believes an announcement, which entries it displaces, and
//! when the replica scans the store for missed announcements.

use std::sync::MutexGuard;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::binding::gossip::Gossip;
use crate::binding::local::Known;
use crate::store::Unavailable;
use crate::store::announcement::Announcement;
use crate::store::model::{BEHIND, ModelGossip, ScanSteps};

const SECOND: Duration = Duration::from_secs(1);
/// The duration of a short scan's steps.
const STEPS: Duration = Duration::from_millis(50);

/// A replica that receives announcements, and its task.
fn subscriber() -> (Replica, JoinHandle<()>) {
    let replica = one();
    let subscription = tokio::spawn(Gossip::new(&replica.store, &replica.local).keep());
    (replica, subscription)
}

fn announced(number: u32, record: &BindingRecord) -> Announcement {
    Announcement { id: session(number).as_str().into(), value: record.to_string() }
}

/// A scan that fails at its only node.
fn failing() -> ScanSteps {
    vec![Err(Unavailable("silent".into()))]
}

impl Replica {
    fn gossip(&self) -> &ModelGossip {
        &self.model.as_ref().unwrap().gossip
    }

    /// Announces this from another replica, and lets this replica receive it.
    async fn announces(&self, announcement: Announcement) {
        sleep(Duration::from_millis(1)).await;
        self.gossip().announced.send(announcement).unwrap();
        sleep(Duration::from_millis(1)).await;
    }

    fn next_scan(&self, steps: ScanSteps) {
        self.gossip().scans.lock().unwrap().push_back(steps);
    }

    /// Reports a new subscription of the store. Returns the time.
    fn subscribed(&self) -> Instant {
        self.gossip().resubscribed.send_modify(|count| *count += 1);
        Instant::now()
    }

    /// Returns the times at which scans began.
    fn scans(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.gossip().begun.lock().unwrap()
    }

    fn known_of(&self, number: u32) -> Option<Known> {
        self.local.recall(&session(number))
    }
}

#[tokio::test(start_paused = true)]
async fn announcement_is_believed_for_a_quarter_of_the_stored_life() {
    let (replica, _subscription) = subscriber();
    let record = replica.record("a-1", 3).sealed();
    replica.announces(announced(1, &record)).await;
    let received = Instant::now();
    assert_eq!(replica.known_of(1), Some(Known { record: record.clone(), is_provisional: false }));
    assert_eq!(replica.local.count_unmerged(), 0, "the store knows it");
    // During an outage, the session uses the announced binding.
    replica.weather(Weather::Away);
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("a-1"));
    tokio::time::advance(TTL / 4 - SECOND - received.elapsed()).await;
    assert!(replica.known_of(1).is_some());
    tokio::time::advance(SECOND).await;
    assert_eq!(replica.known_of(1), None);
    assert!(replica.scans().is_empty(), "nothing was subscribed to yet");
}

#[tokio::test(start_paused = true)]
async fn announcement_of_a_lower_epoch_or_another_version_is_ignored() {
    let (replica, _subscription) = subscriber();
    let (older, newer) = (replica.record("a-1", 4).sealed(), replica.record("b-1", 5).sealed());
    replica.local.confirm(&session(1), &newer);
    replica.announces(announced(1, &older)).await;
    assert_eq!(replica.known_of(1).map(|known| known.record), Some(newer));
    for (id, value) in
        [(session(2).as_str(), "of a newer version"), ("no session", older.to_string().as_str())]
    {
        replica.announces(Announcement { id: id.into(), value: value.into() }).await;
    }
    assert_eq!(replica.known_of(2), None);
    replica.announces(announced(3, &older)).await;
    assert_eq!(
        replica.known_of(3).map(|known| known.record),
        Some(older),
        "the next announcement is received"
    );
}

/// A replica scans the store when it has subscribed. It believes each binding while the store holds
/// it. A silent node costs only the bindings of that node.
#[tokio::test(start_paused = true)]
async fn scanned_binding_lives_as_long_as_stored_and_never_longer_than_an_announced_one() {
    let (replica, _subscription) = subscriber();
    let record = replica.record("a-1", 3).sealed();
    let read = |number, left| (announced(number, &record), left);
    let unreadable =
        (Announcement { id: session(4).as_str().into(), value: "of a newer version".into() }, TTL);
    replica.next_scan(vec![
        Ok(vec![read(1, 100 * SECOND), unreadable, read(2, TTL)]),
        Err(Unavailable("silent".into())),
        Ok(vec![read(3, TTL)]),
    ]);
    sleep(SECOND).await;
    assert!(replica.scans().is_empty());
    let began = replica.subscribed();
    sleep(STEPS).await;
    assert_eq!(*replica.scans(), [began], "at once");
    let known = || [1, 2, 3, 4].map(|number| replica.known_of(number).is_some());
    assert_eq!(known(), [true, true, true, false], "a silent node hides no other node's bindings");
    assert_eq!(replica.known_of(3), Some(Known { record: record.clone(), is_provisional: false }));
    tokio::time::advance(99 * SECOND - began.elapsed()).await;
    assert_eq!(known(), [true, true, true, false]);
    tokio::time::advance(SECOND + STEPS).await;
    assert_eq!(known(), [false, true, true, false], "the store has forgotten it");
    tokio::time::advance(TTL / 4 - SECOND - began.elapsed()).await;
    assert_eq!(known(), [false, true, true, false]);
    tokio::time::advance(SECOND + STEPS).await;
    assert_eq!(known(), [false; 4]);
}

/// A replica of these tests remembers a hundred sessions: first those that it serves, then
/// announced ones, and scanned ones only in free places.
#[tokio::test(start_paused = true)]
async fn gossip_costs_no_served_session_its_place() {
    let (replica, _subscription) = subscriber();
    let record = replica.record("a-1", 1);
    for number in 0..60 {
        replica.local.confirm(&session(number), &record);
    }
    for number in 1_000..1_080 {
        replica.announces(announced(number, &record)).await;
    }
    let known = |numbers: std::ops::Range<u32>| {
        numbers.filter(|number| replica.known_of(*number).is_some()).count()
    };
    assert_eq!((known(0..60), known(1_000..1_040), known(1_040..1_080)), (60, 0, 40));
    replica.next_scan(vec![Ok((2_000..2_020)
        .map(|number| (announced(number, &record), TTL))
        .collect())]);
    replica.subscribed();
    sleep(STEPS).await;
    assert_eq!(replica.scans().len(), 1);
    assert_eq!((known(0..60), known(1_040..1_080), known(2_000..2_020)), (60, 40, 0));
}

/// All replicas lose a store at the same time, and must not all scan it at the same moment.
#[tokio::test(start_paused = true)]
async fn resubscription_is_followed_by_one_scan_within_a_second() {
    let (replica, _subscription) = subscriber();
    sleep(STEPS).await;
    let first = replica.subscribed();
    sleep(STEPS).await;
    assert_eq!(*replica.scans(), [first]);
    let mut waits = Vec::new();
    for round in 2..10 {
        let again = replica.subscribed();
        sleep(SECOND + STEPS).await;
        assert_eq!(replica.scans().len(), round);
        waits.push(replica.scans()[round - 1] - again);
        sleep(100 * SECOND).await;
        assert_eq!(replica.scans().len(), round, "once is enough");
    }
    assert!(waits.iter().all(|wait| *wait <= SECOND + STEPS), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait > STEPS), "they differ: {waits:?}");
}

/// More bindings are announced at once than this replica can receive.
#[tokio::test(start_paused = true)]
async fn announcements_that_are_missed_are_scanned() {
    let (replica, _subscription) = subscriber();
    let record = replica.record("a-1", 1);
    sleep(STEPS).await;
    replica.subscribed();
    sleep(STEPS).await;
    assert_eq!(replica.scans().len(), 1);
    for number in 0..=BEHIND as u32 {
        replica.gossip().announced.send(announced(number, &record)).unwrap();
    }
    replica.next_scan(vec![Ok(vec![(announced(0, &record), TTL)])]);
    sleep(Duration::from_millis(1)).await;
    let known =
        || (0..=BEHIND as u32).map(|number| replica.known_of(number).is_some()).collect::<Vec<_>>();
    assert!(
        known()[1..].iter().all(|is_known| *is_known),
        "the last announcements are received: {:?}",
        known()
    );
    sleep(SECOND + STEPS).await;
    assert_eq!((replica.scans().len(), known()[0]), (2, true));
    // A burst that fits causes no scan.
    for number in 0..BEHIND as u32 {
        replica.gossip().announced.send(announced(number, &record)).unwrap();
    }
    sleep(100 * SECOND).await;
    assert_eq!(replica.scans().len(), 2);
}

/// A silent node is asked less and less often, down to once a minute, until it answers.
#[tokio::test(start_paused = true)]
async fn failed_scan_is_repeated_after_twice_the_pause_each_time() {
    let (replica, _subscription) = subscriber();
    let pauses = [1, 2, 4, 8, 16, 32, 60, 60, 60];
    pauses.iter().for_each(|_| replica.next_scan(failing()));
    sleep(STEPS).await;
    replica.subscribed();
    sleep(1_000 * SECOND).await;
    let scans = replica.scans();
    assert_eq!(scans.len(), pauses.len() + 1, "until one succeeds: {scans:?}");
    for (pair, pause) in scans.windows(2).zip(pauses) {
        let (took, pause) = (pair[1] - pair[0], pause * SECOND);
        assert!(pause <= took && took <= pause + pause / 4 + STEPS, "{took:?}, not {pause:?}");
    }
}

/// Once the store accepts a subscription again, waiting longer has no use.
#[tokio::test(start_paused = true)]
async fn subscription_ends_the_pause_before_a_repeated_scan() {
    let (replica, _subscription) = subscriber();
    (0..6).for_each(|_| replica.next_scan(failing()));
    sleep(STEPS).await;
    replica.subscribed();
    // The fifth scan has failed, so the next one is due after sixteen seconds.
    let until = |count: usize| {
        let replica = &replica;
        async move {
            for _ in 0..1_000 {
                if replica.scans().len() >= count {
                    break;
                }
                sleep(STEPS).await;
            }
            assert_eq!(replica.scans().len(), count);
        }
    };
    until(5).await;
    sleep(STEPS).await;
    let again = replica.subscribed();
    sleep(STEPS).await;
    assert_eq!(replica.scans().get(5), Some(&again), "at once");
    // The next scan fails, too; its pause starts from the beginning.
    until(7).await;
    let took = replica.scans()[6] - again;
    assert!((SECOND..SECOND + SECOND / 4 + 2 * STEPS).contains(&took), "{took:?}");
    sleep(100 * SECOND).await;
    assert_eq!(replica.scans().len(), 7, "the scan has ended");
}
