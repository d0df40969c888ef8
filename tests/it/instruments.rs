//! Tests the instruments of the other tests, without the gateway between them.

use crate::world::balancer::Balancer;
use crate::world::cable::{Cable, Weather};
use tokio::time::Instant;

use crate::world::certificates::Certificates;
use crate::world::process::Folder;
use crate::world::recorder::{Recorder, Step, chunk, completed, stream_head};
use crate::world::redis::Redis;
use crate::world::redis::sentinel::Sentinel;
use crate::world::redis::shards::{Shards, slot_of};
use crate::world::waiting::{SOON, eventually, ms, within};
use crate::world::wire::{Request, ask};

#[tokio::test]
async fn balancer_takes_turns_and_touches_nothing() {
    let folder = Folder::new();
    let cut = vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(b"data: 1\n\n")),
        Step::Pause(ms(50)),
        Step::Close,
    ];
    let replicas = [Recorder::answering(completed()).await, Recorder::answering(cut).await];
    let addresses: Vec<_> =
        replicas.iter().map(|replica| (replica.address(), replica.address())).collect();
    let balancer = Balancer::start(&folder, &addresses).await;
    let body = [0xff, 0x00, b'{', b'\n'];
    let mut whole = Vec::new();
    for _ in 0..4 {
        let answer = ask(balancer.address(), &Request::turn("token", body)).await;
        assert_eq!(answer.status, 200);
        whole.push(answer.whole);
    }
    assert!(
        whole == [true, false, true, false] || whole == [false, true, false, true],
        "{whole:?}"
    );
    for replica in &replicas {
        let turns: Vec<_> =
            replica.seen().into_iter().filter(|seen| seen.line.starts_with("POST")).collect();
        assert_eq!(turns.len(), 2, "round robin");
        assert!(turns.iter().all(|seen| seen.body == body && seen.key() == "token"));
    }
}

#[tokio::test]
async fn redis_belongs_to_its_test() {
    let folder = Folder::new();
    let (first, second) = (Redis::start(folder.path()).await, Redis::start(folder.path()).await);
    let _: () = first.ask(&["SET", "warmkey:aaaaaaaaaaaaaaaaaaaaaa", "a"]).await;
    let _: () = first.ask(&["HSET", "warmkey:generations", "a", "1"]).await;
    assert_eq!(first.binding().await, ("warmkey:aaaaaaaaaaaaaaaaaaaaaa".into(), "a".into()));
    assert_eq!(second.bindings().await, Vec::<String>::new());
    assert_eq!((first.calls("set").await, second.calls("set").await), (1, 0));
}

#[tokio::test]
async fn trio_promotes_a_replica_and_loses_what_only_the_primary_had() {
    let folder = Folder::new();
    let mut trio = Sentinel::start(folder.path()).await;
    let primary = trio.primary().await;
    primary.run(&["SET", "copied", "1"]).await;
    primary.is_copied().await;
    trio.cut_replicas_off().await;
    trio.primary().await.run(&["SET", "lost", "1"]).await;
    let dead = trio.kill_primary().await;
    trio.failed_over(dead).await;
    let primary = trio.primary().await;
    assert_eq!(primary.ask::<Option<u8>>(&["GET", "copied"]).await, Some(1));
    assert_eq!(primary.ask::<Option<u8>>(&["GET", "lost"]).await, None);
}

#[tokio::test]
async fn sharded_redis_moves_its_slots_and_survives_its_primaries() {
    let folder = Folder::new();
    let mut shards = Shards::start(folder.path()).await;
    // The expected slot is from Redis's specification. A tag in braces keeps names in one slot.
    assert_eq!((slot_of("123456789"), slot_of("{123456789}.x")), (0x31c3, 0x31c3));
    let (from, slot) = (Shards::shard_of("name"), slot_of("name"));
    let to = (from + 1) % 3;
    shards.node(from).run(&["SET", "name", "1"]).await;
    assert_eq!(
        shards.node(to).try_ask::<u8>(&["GET", "name"]).await,
        None,
        "the name is not there"
    );
    shards.open_move(slot, from, to).await;
    shards.finish_move(slot, from, to).await;
    assert_eq!(shards.node(to).ask::<u8>(&["GET", "name"]).await, 1);
    shards.node(to).is_copied().await;
    shards.kill_primary(to).await;
    shards.failed_over(to).await;
    assert_eq!(shards.primaries().await.len(), 3);
    shards.kill_shard(from).await;
    assert_eq!(shards.primaries().await.len(), 2);
}

#[tokio::test]
async fn cable_plays_its_weather() {
    let folder = Folder::new();
    let mut redis = Redis::start(folder.path()).await;
    let cable = Cable::to(redis.address()).await;
    let client = ::redis::Client::open(cable.url()).expect("the URL is well formed");
    let mut line = client.get_multiplexed_async_connection().await.expect("the weather is fair");
    line.set_response_timeout(ms(300));
    let mut ping = async || ::redis::cmd("PING").query_async::<String>(&mut line).await;
    assert!(ping().await.is_ok());
    cable.set(Weather::Slow(ms(40)));
    let began = Instant::now();
    assert!(ping().await.is_ok() && began.elapsed() >= ms(80), "both ways: {:?}", began.elapsed());
    cable.set(Weather::Silent);
    assert!(ping().await.is_err_and(|error| error.is_timeout()));
    cable.set(Weather::Fair);
    assert!(ping().await.is_ok(), "late answers are dropped");
    cable.strand();
    assert!(ping().await.is_err_and(|error| error.is_timeout()));
    assert!(client.get_multiplexed_async_connection().await.is_ok(), "a new one works");
    cable.set(Weather::Refused);
    let is_refused = async || {
        client
            .get_multiplexed_async_connection()
            .await
            .is_err_and(|e| e.is_connection_refusal())
            .then_some(())
    };
    eventually(SOON, "the address refuses connections", is_refused).await;
    cable.set(Weather::Fair);
    let answers = async || client.get_multiplexed_async_connection().await.ok();
    let mut line = eventually(SOON, "somebody listens again", answers).await;
    cable.reset();
    let broken = ::redis::cmd("PING").query_async::<String>(&mut line).await;
    assert!(broken.is_err_and(|error| error.is_io_error() || error.is_connection_dropped()));
    redis.kill().await;
    redis.restart().await;
    assert_eq!(redis.ask::<u64>(&["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn redis_speaks_tls_beside_plain_text() {
    let folder = Folder::new();
    let certificates = Certificates::make(folder.path(), "good").await;
    let port = crate::world::port::free().port();
    let arguments = certificates.arguments(port);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let redis = Redis::start_with(folder.path(), &arguments).await;
    assert_eq!(redis.ask::<String>(&["PING"]).await, "PONG");
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args([
        "s_client",
        "-connect",
        &format!("127.0.0.1:{port}"),
        "-verify_return_error",
        "-CAfile",
        &certificates.authority(),
    ]);
    let output = within(
        SOON,
        "openssl",
        openssl.stdin(std::process::Stdio::null()).kill_on_drop(true).output(),
    )
    .await;
    let said = String::from_utf8_lossy(&output.expect("openssl runs").stdout).into_owned();
    assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
}
