//! Another writer's bytes and numbers in the store: each operation passes over what it cannot read,
//! and keeps its connection.

use warmkey::store::MemberReport;
use warmkey::store::board::{BoardReport, Note};

use super::*;

const LONG: Duration = Duration::from_secs(3_600);
/// Far in the future, in milliseconds since 1970.
const LATER: &[u8] = b"9999999999999";
/// A number that neither Lua's numbers nor any type of Rust can hold.
const HUGE: &[u8] = &[b'9'; 400];

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Writes fields of another writer into a hash.
async fn poison(real: &Real, hash: &str, fields: &[(&[u8], Vec<u8>)]) {
    for (name, value) in fields {
        real.redis.write(&[b"HSET", hash.as_bytes(), name, value]).await;
    }
}

#[tokio::test]
async fn board_passes_over_bytes_and_numbers_that_it_cannot_read() {
    let real = Real::new().await;
    let exchange = async |replica, seen, notes: &[Note]| {
        let report = BoardReport { replica, life: LONG, load: "own=1", seen, notes };
        let budget = &mut real.store.background_budget();
        real.store.exchange_board(&report, budget).await.expect("the board is read")
    };
    let note = |name: &str| Note { name: name.into(), value: "ill".into(), life: None, stamp: 0 };
    exchange("one", 0, &[note("a")]).await;
    let poisoned: [(&[u8], Vec<u8>); 10] = [
        (b"r:new", bytes(&[LATER, b" \xff"])),
        (b"r:words", bytes(&[LATER, b" a=1 \xff=2"])),
        (b"r:huge", bytes(&[HUGE, b" b=1"])),
        (b"r:\xff", bytes(&[LATER, b" c=1"])),
        (b"n:x", b"1 0 \xff".to_vec()),
        (b"n:\xff", b"1 0 ill".to_vec()),
        (b"n:words", b"1 0 ill \xff".to_vec()),
        (b"n:stamp", bytes(&[HUGE, b" 0 ill"])),
        (b"n:expiry", bytes(&[b"1 ", HUGE, b" ill"])),
        (b"\xff", b"\xff".to_vec()),
    ];
    poison(&real, "w:board", &poisoned).await;
    for version in [&b"1e300"[..], b"9007199254740992", HUGE, b"\xff", b""] {
        real.redis.write(&[b"HSET", b"w:board", b"v", version]).await;
        let board = exchange("two", 0, &[note("b")]).await;
        let mut names: Vec<_> = board.notes.iter().map(|note| note.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "words", "x", "\u{fffd}"], "{version:?}");
        let mut loads = board.loads.clone();
        loads.sort_unstable();
        assert_eq!(loads, ["a=1 \u{fffd}=2", "c=1", "own=1", "\u{fffd}"]);
        // The board has a version again, which all see.
        assert!(board.version > 1_000_000_000_000, "{}", board.version);
        let again = exchange("one", board.version, &[]).await;
        assert_eq!((again.version, again.notes.len()), (board.version, 0), "nothing is new");
        // A replica that reads alone sees everything, too.
        real.redis.write(&[b"HSET", b"w:board", b"v", version]).await;
        assert_eq!(exchange("one", 0, &[]).await.notes.len(), 5, "{version:?}");
    }
    let own = exchange("two", 0, &[note("stamp")]).await;
    assert!(own.notes.iter().any(|note| note.name == "stamp"), "a note takes its place");
    let there: u64 = real.redis.ask(&["HLEN", "w:board"]).await;
    assert_eq!(there, poisoned.len() as u64 + 5, "all of it stays");
    assert_eq!(real.store.fault(), None);
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn membership_passes_over_bytes_and_numbers_that_it_cannot_read() {
    let real = Real::new().await;
    poison(
        &real,
        "w:generations",
        &[
            (b"r:new", bytes(&[LATER, b" new"])),
            (b"s:new", b"1 tag \xff".to_vec()),
            (b"r:\xff", bytes(&[LATER, b" \xff"])),
            (b"s:\xff", b"1 \xff".to_vec()),
            (b"r:huge", bytes(&[HUGE, b" huge"])),
            (b"s:huge", bytes(&[HUGE, b" huge"])),
            (b"s:wide", b"4294967296 wide".to_vec()),
            (b"s:own", b"99999999999999999999 own".to_vec()),
            (b"\xff", b"\xff".to_vec()),
        ],
    )
    .await;
    let report = MemberReport {
        replica: "one",
        fingerprint: "own",
        keys: "tag other",
        ordinal: 0,
        life: LONG,
    };
    for _ in 0..2 {
        let budget = &mut real.store.background_budget();
        let mut reply = real.store.exchange_membership(&report, budget).await.expect("a reply");
        reply.others.sort_unstable();
        assert_eq!(
            (reply.ordinal, reply.others),
            (2, vec!["tag \u{fffd}".into(), "\u{fffd}".into()])
        );
    }
    // The largest ordinal that counts is followed by the largest that there is.
    poison(&real, "w:generations", &[(b"s:last", b"4294967294 last".to_vec())]).await;
    let other = MemberReport { replica: "two", fingerprint: "two", keys: "tag", ..report };
    for _ in 0..2 {
        let budget = &mut real.store.background_budget();
        let reply = real.store.exchange_membership(&other, budget).await.expect("a reply");
        assert_eq!(reply.ordinal, u32::MAX);
    }
    assert_eq!(real.store.fault(), None);
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn value_that_is_no_text_ends_no_connection() {
    let real = Real::new().await;
    let (store, budget) = (&real.store, || real.store.background_budget());
    let life = LONG.as_millis().to_string();
    for id in ["s", "t"] {
        let name = format!("w:{id}");
        real.redis.write(&[b"SET", name.as_bytes(), b"key 7 1 \xff", b"PX", life.as_bytes()]).await;
    }
    let text = "key 7 1 \u{fffd}";
    assert_eq!(real.stored("s").await.value, text);
    let (name, own) = (Name::Binding("s"), "key 1 1");
    let claimed = store.claim(name, own, TTL, &mut budget()).await;
    assert_eq!(claimed.expect("an answer").as_deref(), Some(text));
    let begun = store.begin(name, own, false, TTL, &mut budget()).await;
    assert_eq!(begun.expect("an answer").as_deref(), Some(text));
    let replaced = store.replace(name, own, "key 2 1", TTL, &mut budget()).await;
    assert_eq!(replaced.expect("an answer"), Replaced::Lost(text.into()));
    store.extend(name, own, LONG * 2, &mut budget()).await.expect("an answer");
    assert!(real.stored("s").await.left > LONG, "its life is renewed");
    // A higher epoch replaces it, as it replaces any text.
    let merged = store.merge(name, "key 8 1", 8, TTL, &mut budget()).await;
    assert_eq!(merged.expect("an answer"), None);

    real.redis.write(&[b"RPUSH", b"w:s.trail", b"\xff", b"1 move \xff a b"]).await;
    store.append("s", &["a line".into()], TTL, &mut budget()).await.expect("an answer");
    let lines = store.list("s", &mut budget()).await.expect("an answer");
    assert_eq!(lines, ["\u{fffd}", "1 move \u{fffd} a b", "a line"]);

    // A scan passes over names and values that are no text, and finds all others.
    real.redis.write(&[b"SET", b"w:\xff", b"key 1 1", b"PX", life.as_bytes()]).await;
    let mut scan = store.scan().expect("the store is connected");
    let mut found = Vec::new();
    for _ in 0..100 {
        let Some(step) = scan.step().await else { break };
        found.extend(step.expect("no node is skipped"));
    }
    found.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
    let values: Vec<_> =
        found.iter().map(|(said, _)| (said.id.as_str(), said.value.as_str())).collect();
    assert_eq!(values, [("s", "key 8 1"), ("t", text)]);
    assert_eq!(store.fault(), None);
    real.tasks.join(SOON).await;
}
