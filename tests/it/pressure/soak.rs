//! Everything at once, and for long with `WARMKEY_LONG=1` (`make test-long`): a log that blocks, a
//! stranger's flood, a heavy body each second. A socket never ends its message, and a newer version
//! runs beside. No turn is lost, others are not held up, and everything comes back.

#![expect(clippy::print_stdout, reason = "with --nocapture, the soak prints its figures")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::heavy::{foldable, slowest};
use super::memory::frame;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::simulator::siblings;
use crate::world::socket::{open, session};
use crate::world::waiting::{eventually, is_long, ms};
use crate::world::wire::{Request, try_ask};

/// Sessions that play turns all the time.
const PLAYERS: usize = 8;

/// Plays turns until `is_over`. Counts those that were not served, and all.
async fn play(address: SocketAddr, is_over: Arc<AtomicBool>, counts: Arc<[AtomicUsize; 2]>) {
    let mut codex = Codex::new(address, ALICE);
    while !is_over.load(Ordering::Relaxed) {
        let ended = codex.turn("and on").await;
        counts[0].fetch_add(usize::from(!ended.completed), Ordering::Relaxed);
        counts[1].fetch_add(1, Ordering::Relaxed);
        sleep(ms(50)).await;
    }
}

/// A stranger who asks without a pause, with and without a wrong token.
async fn flood(address: SocketAddr, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        let wrong = Request::new("GET", "/wp-login.php").bearer("sk-wrong");
        for request in [&wrong, &Request::turn("sk-wrong", vec![b'x'; 100_000])] {
            let _ = try_ask(address, request).await;
        }
    }
}

/// A body each second that takes long to decode and scan.
async fn heavy(address: SocketAddr, is_over: Arc<AtomicBool>) {
    let folded = zstd::encode_all(&foldable(40 << 20)[..], 3).expect("memory is enough");
    while !is_over.load(Ordering::Relaxed) {
        let request = Request::turn(ALICE, folded.clone()).header("content-encoding", "zstd");
        let _ = try_ask(address, &request).await;
        sleep(ms(1_000)).await;
    }
}

/// Messages that never end, on one connection after the other.
async fn unfinished(address: SocketAddr, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok((mut socket, _)) = open(address, ALICE, &[]).await else { continue };
        let _ = socket.0.get_mut().write_all(&frame(0x01, &vec![b'x'; 4 << 20])).await;
        sleep(ms(2_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_under_pressure_costs_others_nothing() {
    let span = Duration::from_secs(if is_long() { 300 } else { 6 });
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 2))
        .redis()
        .server("replay_total", "\"256MiB\"")
        .shell("mkfifo log; exec 2<>log")
        .start()
        .await;
    let address = cluster.address();
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let [is_over, calm, done] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
    let mut players = JoinSet::new();
    for _ in 0..PLAYERS {
        players.spawn(play(address, Arc::clone(&done), Arc::clone(&counts)));
    }
    let lap = |is_over: &Arc<AtomicBool>| {
        let is_over = Arc::clone(is_over);
        tokio::spawn(async move { slowest(address, &is_over).await })
    };
    let before = lap(&calm);
    sleep(span).await;
    calm.store(true, Ordering::Relaxed);
    let before = before.await.expect("the client runs");
    let (memory, files) =
        (cluster.replica().process().resident(), cluster.replica().process().descriptors());

    for (hash, field) in [("board", "x:new"), ("generations", "x:new"), ("board", "r:odd")] {
        cluster.redis().run(&["HSET", &format!("warmkey:{hash}"), field, "newer"]).await;
    }
    let mut pressure = JoinSet::new();
    pressure.spawn(flood(address, Arc::clone(&is_over)));
    pressure.spawn(heavy(address, Arc::clone(&is_over)));
    pressure.spawn(unfinished(address, Arc::clone(&is_over)));
    let after = lap(&is_over);
    let began = Instant::now();
    sleep(span).await;
    is_over.store(true, Ordering::Relaxed);
    let after = after.await.expect("the client runs");
    pressure.join_all().await;
    done.store(true, Ordering::Relaxed);
    players.join_all().await;
    let [lost, all] = [&counts[0], &counts[1]].map(|count| count.load(Ordering::Relaxed));
    println!("{all} turns, {lost} lost; worst tenth {before:?}, {after:?}; {:?}", began.elapsed());
    assert!(all > 50 && lost == 0, "{lost} of {all} turns");
    if is_long() {
        assert!(after < before + ms(50), "{before:?} and then {after:?}");
    }
    eventually(Duration::from_secs(90), "memory and descriptors are back", async || {
        let process = cluster.replica().process();
        let is_back = process.resident() < memory + memory / 4 + (16 << 20)
            && process.descriptors() <= files + 4;
        is_back.then_some(())
    })
    .await;
    drop(session(address, ALICE, "last").await);
    let metrics = cluster.replica().metrics().await;
    assert_eq!(metrics.get("warmkey_task_restarts_total"), 0.0);
    assert!(metrics.sum("warmkey_refused_total") > 10.0);
}
