//! Tests of a replica's memory: what it holds, for how long, and which entries replace others.

use super::*;
use crate::key::Tag;

const HOUR: Duration = Duration::from_secs(3600);

fn record(epoch: u32) -> BindingRecord {
    let tag = Tag::of("key", b"a-1");
    BindingRecord {
        key: tag,
        organization: tag,
        epoch,
        generation: 1,
        sealed: false,
        stale_state: None,
        others: None,
    }
}

fn thread(n: u32) -> ThreadId {
    ThreadId::parse(session(n).as_str()).unwrap()
}

fn session(n: u32) -> SessionId {
    SessionId::parse(&format!("{n:022}")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn epoch_never_falls_while_its_entry_lives() {
    let local = Local::new(8, HOUR);
    assert_eq!(local.confirm(&session(1), &record(2)), Belief::Stored);
    assert_eq!(local.confirm(&session(1), &record(1)), Belief::Outdated);
    assert_eq!(local.recall(&session(1)).unwrap().record.epoch, 2);
    tokio::time::advance(HOUR).await;
    assert_eq!(local.recall(&session(1)), None);
    assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
}

#[tokio::test(start_paused = true)]
async fn note_is_unmerged_until_the_store_confirms_the_session() {
    let local = Local::new(8, HOUR);
    local.note(&session(1), &record(1), true);
    assert_eq!(local.next_unmerged(9), [(session(1), record(1))]);
    assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
    assert!(
        local.next_unmerged(9).is_empty() && !local.recall(&session(1)).unwrap().is_provisional
    );
}

#[tokio::test(start_paused = true)]
async fn seal_that_the_store_does_not_know_is_not_forgotten() {
    let local = Local::new(8, HOUR);
    local.confirm(&session(1), &record(1));
    local.note(&session(1), &record(1).sealed(), false);
    assert_eq!(local.confirm(&session(1), &record(1)), Belief::Unsealed);
    assert_eq!(local.next_unmerged(9), [(session(1), record(1).sealed())]);
    assert_eq!(local.confirm(&session(1), &record(1).sealed()), Belief::Stored);
    assert!(local.next_unmerged(9).is_empty());
}

#[tokio::test(start_paused = true)]
async fn entry_that_cannot_be_merged_blocks_no_other() {
    let local = Local::new(8, HOUR);
    (0..5).for_each(|n| local.note(&session(n), &record(1), true));
    let round: Vec<_> =
        (0..5).flat_map(|_| local.next_unmerged(2)).map(|(session, _)| session).collect();
    assert_eq!(round, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4].map(session));
}

#[tokio::test(start_paused = true)]
async fn note_renews_no_entry() {
    let local = Local::new(8, HOUR);
    local.confirm(&session(1), &record(1));
    tokio::time::advance(HOUR / 2).await;
    local.note(&session(1), &record(2), false);
    tokio::time::advance(HOUR / 2).await;
    assert_eq!(local.recall(&session(1)), None);
    assert!(local.next_unmerged(9).is_empty());
}

#[tokio::test(start_paused = true)]
async fn evicted_entry_is_not_merged() {
    let local = Local::new(2, HOUR);
    for n in 0..5 {
        local.note(&session(n), &record(1), true);
    }
    assert_eq!(local.next_unmerged(9).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn scanned_entry_displaces_none_lowers_no_epoch_and_lives_as_long_as_stored() {
    let local = Local::new(3, HOUR);
    (0..2).for_each(|n| local.note(&session(n), &record(2), true));
    local.note_scanned(&session(0), &record(1), HOUR);
    local.note_scanned(&session(1), &record(3), HOUR / 4);
    local.note_scanned(&session(2), &record(1), HOUR);
    local.note_scanned(&session(3), &record(1), HOUR);
    let epochs = || {
        (0..4)
            .map(|n| local.recall(&session(n)).map(|known| known.record.epoch))
            .collect::<Vec<_>>()
    };
    assert_eq!(epochs(), [Some(2), Some(3), Some(1), None]);
    tokio::time::advance(HOUR / 4).await;
    assert_eq!(epochs(), [Some(2), None, Some(1), None]);
}

#[tokio::test(start_paused = true)]
async fn served_session_keeps_its_place_before_announced_ones() {
    let local = Local::new(2, HOUR);
    local.confirm(&session(0), &record(1));
    local.note_announced(&session(0), &record(1));
    for n in 1..9 {
        local.note_announced(&session(n), &record(1));
    }
    assert!(local.recall(&session(0)).is_some() && local.recall(&session(8)).is_some());
    tokio::time::advance(HOUR / 2).await;
    assert!(local.recall(&session(0)).is_some() && local.recall(&session(8)).is_none());
}

#[tokio::test(start_paused = true)]
async fn thread_is_stored_once_in_a_while() {
    let local = Local::new(8, HOUR);
    assert!(!local.note_thread(&thread(9), &session(1)));
    assert!(local.note_thread(&thread(9), &session(1)));
    assert_eq!(local.session_of(&thread(9)), Some(session(1)));
    assert!(!local.note_thread(&thread(9), &session(2)));
    tokio::time::advance(HOUR).await;
    assert!(!local.note_thread(&thread(9), &session(2)));
}

/// A turn renews no entry that was confirmed a moment ago; a later turn does.
#[tokio::test(start_paused = true)]
async fn entry_is_renewed_when_the_store_confirms_it() {
    let local = Local::new(8, HOUR);
    local.confirm(&session(1), &record(1));
    for _ in 0..5 {
        tokio::time::advance(HOUR / 2).await;
        assert_eq!(local.confirm(&session(1), &record(1)), Belief::Stored);
    }
    tokio::time::advance(HOUR - Duration::from_secs(1)).await;
    assert!(local.recall(&session(1)).is_some());
    // An announcement does not shorten a confirmed entry.
    local.confirm(&session(1), &record(1));
    local.note_announced(&session(1), &record(1));
    tokio::time::advance(HOUR / 4 * 3).await;
    assert!(local.recall(&session(1)).is_some());
    local.note_announced(&session(2), &record(1));
    tokio::time::advance(HOUR / 2).await;
    assert!(local.recall(&session(2)).is_none(), "an announced entry lives half as long");
}

/// An announcement makes a provisional entry known, because the store holds it.
#[tokio::test(start_paused = true)]
async fn provisional_entry_becomes_known_when_the_store_confirms_it() {
    let local = Local::new(8, HOUR);
    local.note(&session(1), &record(1), true);
    local.note_announced(&session(1), &record(1));
    assert!(
        !local.recall(&session(1)).unwrap().is_provisional && local.next_unmerged(9).is_empty()
    );
    // A provisional entry gives way to another binding of the same epoch. An entry of a higher
    // epoch does not.
    let other = BindingRecord { key: Tag::of("key", b"b-1"), ..record(1) };
    local.note(&session(2), &record(1), true);
    assert_eq!(local.confirm(&session(2), &other), Belief::Stored);
    assert_eq!(local.recall(&session(2)).unwrap().record, other);
    local.note(&session(2), &record(3), false);
    assert_eq!(local.confirm(&session(2), &record(2)), Belief::Outdated);
    local.note(&session(2), &record(2), false);
    assert_eq!(local.recall(&session(2)).unwrap().record, record(3), "no note lowers an epoch");
    assert!(local.next_unmerged(9).iter().all(|next| *next == (session(2), record(3))));
    local.note(&session(2), &record(3).sealed(), false);
    assert_eq!(local.recall(&session(2)).unwrap().record, record(3).sealed());
}

#[tokio::test(start_paused = true)]
async fn session_that_is_forgotten_is_not_merged() {
    let local = Local::new(8, HOUR);
    local.note(&session(1), &record(1), false);
    local.note(&session(2), &record(1), false);
    assert_eq!(local.count_unmerged(), 2);
    local.forget(&session(1));
    assert_eq!(local.recall(&session(1)), None);
    assert_eq!(local.next_unmerged(9), [(session(2), record(1))]);
    assert_eq!(local.count_unmerged(), 1);
    // The session may be bound anew, and is then merged once.
    local.note(&session(1), &record(1), false);
    assert_eq!(local.next_unmerged(9).len(), 2);
    local.forget(&session(1));
    local.note(&session(1), &record(1), false);
    assert_eq!((local.next_unmerged(9).len(), local.count_unmerged()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn organization_is_ruled_out_for_one_session_and_for_a_time() {
    let local = Local::new(8, HOUR);
    let [a, b] = ["a", "b"].map(|name| Tag::of("organization", name.as_bytes()));
    assert_eq!(local.rule_out(&session(1), a), [a]);
    assert_eq!(local.rule_out(&session(1), b), [a, b]);
    assert_eq!(local.rule_out(&session(1), a), [a, b], "each once");
    assert_eq!(local.rule_out(&session(2), b), [b]);
    tokio::time::advance(RULED_OUT - Duration::from_secs(1)).await;
    assert_eq!(local.rule_out(&session(2), a), [b, a]);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(local.rule_out(&session(1), b), [b]);
}

/// The store could not be reached, so the next turn stores the thread again.
#[tokio::test(start_paused = true)]
async fn thread_that_was_not_stored_is_stored_again() {
    let local = Local::new(8, HOUR);
    assert!(!local.note_thread(&thread(9), &session(1)));
    local.forget_thread(&thread(9));
    assert!(
        !local.note_thread(&thread(9), &session(1)) && local.note_thread(&thread(9), &session(1))
    );
    tokio::time::advance(HOUR / 2).await;
    assert!(!local.note_thread(&thread(9), &session(1)), "the stored lifetime is renewed");
}
