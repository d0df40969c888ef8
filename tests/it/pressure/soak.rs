//! Plays everything at once: a blocked log, a full disk, a flood of strangers, a heavy body each
//! second, an endless message, a newer version. `WARMKEY_LONG=1` (`make test-long`) plays it for
//! longer. No turn is lost, no stream is delayed, and everything works again at the end.

#![expect(clippy::print_stdout, reason = "with --nocapture, the soak prints its figures")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::disk::Disk;
use super::heavy::foldable;
use super::memory::frame;
use super::paced::{PACE, events, worst_tenth};
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::lateness::Lateness;
use crate::world::process::Process;
use crate::world::redis::Redis;
use crate::world::simulator::siblings;
use crate::world::socket::{head, open, open_with, plain, session};
use crate::world::waiting::{ANSWER, SOON, eventually, is_long, ms};
use crate::world::wire::{Request, try_ask};

/// Sessions that play turns all the time, by HTTP and on WebSockets.
const PLAYERS: usize = 6;
const TALKERS: usize = 2;
/// Callers without a token, whose refusals are not delayed.
const STRANGERS: usize = 8;

/// A switch that tasks look at.
type Switch = Arc<AtomicBool>;

fn is_on(switch: &Switch) -> bool {
    switch.load(Ordering::Relaxed)
}

fn turn_on(switch: &Switch) {
    switch.store(true, Ordering::Relaxed);
}

/// The number of turns that were not served, and of all turns.
#[derive(Default)]
struct Counts {
    lost: AtomicUsize,
    all: AtomicUsize,
}

impl Counts {
    fn count(&self, is_served: bool) {
        self.lost.fetch_add(usize::from(!is_served), Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> [usize; 2] {
        [&self.lost, &self.all].map(|count| count.load(Ordering::Relaxed))
    }
}

/// Plays turns on all replicas in turn.
async fn play(addresses: Vec<SocketAddr>, is_over: Switch, counts: Arc<Counts>) {
    let mut codex = Codex::new(addresses[0], ALICE);
    for address in addresses.iter().cycle() {
        if is_on(&is_over) {
            return;
        }
        codex.moves_to(*address);
        counts.count(codex.turn("and on").await.completed);
        sleep(ms(50)).await;
    }
}

/// Plays turns on one WebSocket. A turn counts as lost if it needs a second connection.
async fn talk(address: SocketAddr, is_over: Switch, counts: Arc<Counts>) {
    let mut talk = Codex::new(address, ALICE).by_websocket();
    while !is_on(&is_over) {
        talk.turn("and on").await;
        counts.count(talk.connections == 1);
        sleep(ms(50)).await;
    }
}

/// Plays strangers with wrong tokens, whose refusals are delayed, and strangers without a token.
async fn flood(address: SocketAddr, is_over: Switch) {
    let mut strangers = JoinSet::new();
    for _ in 0..STRANGERS {
        let is_over = Arc::clone(&is_over);
        strangers.spawn(async move {
            let mut refused = 0;
            while !is_on(&is_over) {
                let answer = try_ask(address, &Request::new("GET", "/wp-login.php")).await;
                refused += u32::from(answer.is_some_and(|answer| answer.status == 404));
                sleep(ms(5)).await;
            }
            assert!(refused >= 10, "{refused}");
        });
    }
    while !is_on(&is_over) {
        let wrong = Request::new("GET", "/wp-login.php").bearer("sk-wrong");
        for request in [&wrong, &Request::turn("sk-wrong", vec![b'x'; 100_000])] {
            let _ = try_ask(address, request).await;
        }
    }
    strangers.join_all().await;
}

/// Sends a body each second that takes long to decode and scan.
async fn heavy(address: SocketAddr, is_over: Switch, folded: Vec<u8>) {
    while !is_on(&is_over) {
        let request = Request::turn(ALICE, folded.clone()).header("content-encoding", "zstd");
        let _ = try_ask(address, &request).await;
        sleep(ms(1_000)).await;
    }
}

/// Sends messages that never end, each on a connection of its own. The client keeps the connection
/// until the gateway ends it. A short soak ends before that.
async fn unfinished(address: SocketAddr, is_over: Switch) {
    let mut held = JoinSet::new();
    while !is_on(&is_over) {
        held.spawn(hold_unfinished(address, Arc::clone(&is_over)));
        sleep(ms(1_000)).await;
    }
    for is_refused in held.join_all().await {
        assert!(is_refused, "the gateway ends a message that never ends, and says why");
    }
}

/// Sends a message without its last fragment. Returns whether the gateway refuses it in the end.
async fn hold_unfinished(address: SocketAddr, is_over: Switch) -> bool {
    let Ok((mut socket, _)) = open(address, ALICE, &[]).await else { return false };
    // The refusal may take 30 s.
    let sending = socket.0.get_mut().write_all(&frame(0x01, &vec![b'x'; 256 << 10])).await;
    let refusal = async {
        while let Some(Ok(message)) = socket.0.next().await {
            if let Message::Text(text) = message {
                return text.contains("request_timeout");
            }
        }
        false
    };
    let short = async {
        while is_long() || !is_on(&is_over) {
            sleep(ms(50)).await;
        }
    };
    tokio::select! {
        is_refused = timeout(ANSWER * 2, refusal) => sending.is_ok() && is_refused == Ok(true),
        () = short => sending.is_ok(),
    }
}

/// Returns how late each event of paced answers on one WebSocket comes after the one before.
async fn socket_events(
    address: SocketAddr,
    (target, token): (&str, &str),
    is_over: Switch,
) -> Vec<Duration> {
    let named = [("session-id", "paced-socket"), ("thread-id", "paced-socket")];
    let opened = open_with(address, &head(target, token, &named), b"").await;
    let (mut socket, _) = opened.unwrap_or_else(|refused| panic!("{refused:?}"));
    let mut late = Vec::new();
    while !is_on(&is_over) {
        socket.send(&plain("SLOW:200x20ms")).await;
        let mut last: Option<Instant> = None;
        loop {
            let event = socket.text().await;
            let now = Instant::now();
            late.extend(last.map(|last| (now - last).saturating_sub(PACE)));
            last = Some(now);
            assert!(!event.contains(r#""type":"error""#), "{event}");
            if event.contains(r#""type":"response.completed""#) || is_on(&is_over) {
                break;
            }
        }
    }
    late
}

/// Plays a replica of a newer version beside this one. It renews its heartbeat, and writes more
/// than this version knows wherever it may.
async fn newer_version(store: Arc<Redis>, is_over: Switch) {
    // Writes a value only if nobody has changed it meanwhile.
    const SWAP: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') end return 0";
    let (mut renewed, mut rewritten) = (0, 0);
    while !is_on(&is_over) {
        for (hash, field, value) in [
            ("board", "x:new", "other"),
            ("board", "n:zkunknown", "1 0 strange"),
            ("board", "r:odd", "no expiry"),
            ("generations", "x:new", "other"),
            ("generations", "s:new", "no ordinal"),
            ("generations", "r:odd", "no expiry"),
        ] {
            store.run(&["HSET", &format!("warmkey:{hash}"), field, value]).await;
        }
        // Its own fields are those of a live replica, with additional words.
        for hash in ["board", "generations"] {
            let hash = format!("warmkey:{hash}");
            let fields: BTreeMap<String, String> = store.ask(&["HGETALL", &hash]).await;
            let known = |field: &str| ["r:odd", "r:newer"].contains(&field);
            let own = fields.iter().find(|(name, _)| name.starts_with("r:") && !known(name));
            if let Some((_, value)) = own {
                let newer = format!("{value} more=words");
                store.run(&["HSET", &hash, "r:newer", &newer]).await;
                renewed += 1;
            }
        }
        // It adds words to the end of values, and writes names with an unknown suffix.
        let names: Vec<String> = store.ask(&["KEYS", "warmkey:*"]).await;
        for name in names.iter().filter(|name| is_value(name)) {
            let Some(value) = store.ask::<Option<String>>(&["GET", name]).await else { continue };
            if !value.ends_with(" v2=7") {
                let newer = format!("{value} v2=7");
                let _: redis::Value = store.ask(&["EVAL", SWAP, "1", name, &value, &newer]).await;
                rewritten += 1;
            }
            store.run(&["SET", &format!("{name}.newer"), "a newer kind", "EX", "60"]).await;
        }
        store.run(&["PUBLISH", "warmkey:moved", "v2 of another version"]).await;
        sleep(ms(250)).await;
    }
    assert!(renewed > 0 && rewritten > 0, "{renewed} and {rewritten}");
}

/// Whether this is the name of a value of a session, response, item or thread.
fn is_value(name: &str) -> bool {
    let id = name.trim_start_matches("warmkey:");
    let (id, kind) = id.split_once('.').unwrap_or((id, ""));
    id.len() == 22 && ["", "response", "item", "thread", "last"].contains(&kind)
}

/// Reads a replica's log while nothing blocks it. Returns the number of bytes that came after it
/// was blocked.
async fn read_log(mut log: pipe::Receiver, is_blocked: Switch, is_over: Switch) -> usize {
    let (mut come, mut bytes) = (0, vec![0; 64 << 10]);
    while !is_on(&is_over) {
        if is_on(&is_blocked) {
            come = 0;
            sleep(ms(20)).await;
        } else if let Ok(Ok(count)) = timeout(ms(50), log.read(&mut bytes)).await {
            come += count;
        }
    }
    come
}

/// A stream of another client, with an event each [`PACE`](super::paced::PACE).
const PACED: &str =
    r#"{"model":"gpt-5.4","prompt_cache_key":"paced","stream":true,"input":"SLOW:200x20ms"}"#;

/// Measures how late events of other clients come: through the replica and straight from the
/// upstream, first over HTTP and then on a WebSocket. Also measures how late a thread of this
/// machine is meanwhile. Returns the median of the worst tenth of each.
async fn measure(cluster: &Running, span: Duration) -> [Duration; 5] {
    let is_over = Switch::default();
    let through = Request::turn(ALICE, PACED);
    let straight = Request::turn("sk-canary-org-a-1", PACED).target("/v1/responses");
    let (lateness, began) = (Lateness::watch(), std::time::Instant::now());
    let measured = [(cluster.address(), through), (cluster.upstream().address(), straight)].map(
        |(address, request)| {
            let is_over = Arc::clone(&is_over);
            tokio::spawn(async move { events(address, &request, &is_over).await })
        },
    );
    let ways = [
        (cluster.address(), ("/responses", ALICE)),
        (cluster.upstream().address(), ("/v1/responses", "sk-canary-org-a-1")),
    ];
    let sockets =
        ways.map(|(address, way)| tokio::spawn(socket_events(address, way, Arc::clone(&is_over))));
    sleep(span).await;
    turn_on(&is_over);
    let [socket, straight_socket] = sockets;
    let socket = worst_tenth(socket.await.expect("the client runs"));
    let straight_socket = worst_tenth(straight_socket.await.expect("the client runs"));
    let [through, straight] = measured;
    let through = worst_tenth(through.await.expect("the client runs"));
    let straight = worst_tenth(straight.await.expect("the client runs"));
    [through, straight, socket, straight_socket, lateness.worst_tenth(began)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_under_pressure_costs_others_nothing() {
    let span = Duration::from_secs(if is_long() { 75 } else { 6 });
    let disk = Disk::choose().await;
    let redis = Arc::new(Redis::start(disk.folder()).await);
    // Each replica's log is a pipe. The second one's becomes a file on the disk that fills.
    let cluster = Cluster::new()
        .keys(siblings("org-a", 2))
        .store_at(&redis.url())
        .replicas(2)
        .server("replay_total", "\"256MiB\"")
        .shell("mkfifo log-$$; exec 2<>log-$$")
        .start()
        .await;
    let filling = disk.cluster().await;
    let (address, process) = (cluster.address(), cluster.replica().process());
    let log = cluster.replica().file().with_file_name(format!("log-{}", process.pid()));
    let log = pipe::OpenOptions::new().open_receiver(log).expect("it is a pipe");
    let [is_over, is_blocked, done] = [(); 3].map(|()| Switch::default());
    let log = tokio::spawn(read_log(log, Arc::clone(&is_blocked), Arc::clone(&done)));
    let counts = [Arc::<Counts>::default(), Arc::<Counts>::default()];
    let mut players = JoinSet::new();
    let all: Vec<_> = cluster.replicas.iter().map(|replica| replica.address()).collect();
    for _ in 0..PLAYERS {
        players.spawn(play(all.clone(), Arc::clone(&done), Arc::clone(&counts[0])));
        players.spawn(play(vec![filling.address()], Arc::clone(&done), Arc::clone(&counts[1])));
    }
    for _ in 0..TALKERS {
        players.spawn(talk(address, Arc::clone(&done), Arc::clone(&counts[0])));
        players.spawn(talk(filling.address(), Arc::clone(&done), Arc::clone(&counts[1])));
    }
    let folded = zstd::encode_all(&foldable(40 << 20)[..], 3).expect("memory is enough");
    let before = measure(&cluster, span.min(ms(30_000))).await;
    let processes: Vec<_> =
        cluster.replicas.iter().chain(&filling.replicas).map(|one| one.process()).collect();
    let size = |process: &&Process| (process.resident(), process.descriptors());
    let sizes: Vec<_> = processes.iter().map(size).collect();

    let mut pressure = JoinSet::new();
    turn_on(&is_blocked);
    let full = disk.fill(&filling);
    pressure.spawn(flood(address, Arc::clone(&is_over)));
    pressure.spawn(heavy(address, Arc::clone(&is_over), folded));
    pressure.spawn(unfinished(address, Arc::clone(&is_over)));
    pressure.spawn(newer_version(Arc::clone(&redis), Arc::clone(&is_over)));
    let began = Instant::now();
    let after = measure(&cluster, span).await;
    turn_on(&is_over);
    pressure.join_all().await;
    let took = began.elapsed();
    // The log is read again, and the disk has room again.
    is_blocked.store(false, Ordering::Relaxed);
    disk.empty(&filling);
    let lost = [0, 1].map(|number| counts[number].read());
    println!(
        "[lost, all] {lost:?}; worst tenth [through, straight, socket, straight socket, machine] {before:?}, {after:?}; {took:?}; {full}"
    );
    disk.works(&filling).await;
    turn_on(&done);
    players.join_all().await;
    for [lost, all] in [counts[0].read(), counts[1].read()] {
        assert!(all > 50 && lost == 0, "{lost} of {all} turns");
    }
    if is_long() {
        // The upstream reads the heavy bodies, too, and is late by itself. The replica adds only
        // the difference.
        let added = |[through, straight, socket, straight_socket, _]: [Duration; 5]| {
            [through.saturating_sub(straight), socket.saturating_sub(straight_socket)]
        };
        for (before, after) in added(before).into_iter().zip(added(after)) {
            assert!(after < before + ms(50), "{before:?} and then {after:?}");
        }
    }
    eventually(Duration::from_secs(90), "memory and descriptors are back", async || {
        let are_back = sizes.iter().zip(&processes).all(|((memory, files), process)| {
            let (resident, descriptors) = size(process);
            resident < memory + memory / 4 + (16 << 20) && descriptors <= files + 4
        });
        are_back.then_some(())
    })
    .await;
    drop(session(address, ALICE, "last").await);
    assert!(log.await.expect("the reader runs") > 1_000, "the log goes on");
    for replica in [cluster.replica(), filling.replica()] {
        let metrics = replica.metrics().await;
        assert_eq!(metrics.get("warmkey_task_restarts_total"), 0.0);
        replica.terminate().await;
    }
    let mut ending = [cluster, filling];
    for cluster in &mut ending {
        assert_eq!(cluster.replicas[0].exit(SOON).await.code(), Some(0));
    }
}
