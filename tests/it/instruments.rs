//! The instruments themselves, without the gateway: what they would show if it were not there.

use crate::balancer::Balancer;
use crate::patience::ms;
use crate::process::Folder;
use crate::recorder::{Recorder, Step, chunk, completed, stream_head};
use crate::redis::Redis;
use crate::wire::{Request, ask};

#[tokio::test]
async fn the_balancer_takes_turns_and_touches_nothing() {
    let folder = Folder::new();
    let cut = vec![Step::Send(stream_head("")), Step::Send(chunk(b"data: 1\n\n")), Step::Pause(ms(50)), Step::Close];
    let replicas = [Recorder::answering(completed()).await, Recorder::answering(cut).await];
    let addresses: Vec<_> = replicas.iter().map(|replica| (replica.address(), replica.address())).collect();
    let balancer = Balancer::start(&folder, &addresses).await;
    let body = [0xff, 0x00, b'{', b'\n'];
    let mut whole = Vec::new();
    for _ in 0..4 {
        let answer = ask(balancer.address(), &Request::turn("token", body)).await;
        assert_eq!(answer.status, 200);
        whole.push(answer.whole);
    }
    assert!(whole == [true, false, true, false] || whole == [false, true, false, true], "{whole:?}");
    for replica in &replicas {
        let turns: Vec<_> = replica.seen().into_iter().filter(|seen| seen.line.starts_with("POST")).collect();
        assert_eq!(turns.len(), 2, "round robin");
        assert!(turns.iter().all(|seen| seen.body == body && seen.key() == "token"));
    }
}

#[tokio::test]
async fn a_redis_is_its_tests_own() {
    let folder = Folder::new();
    let (first, second) = (Redis::start(folder.path()).await, Redis::start(folder.path()).await);
    let _: () = first.ask(&["SET", "warmkey:aaaaaaaaaaaaaaaaaaaaaa", "a"]).await;
    let _: () = first.ask(&["HSET", "warmkey:generations", "a", "1"]).await;
    assert_eq!(first.binding().await, ("warmkey:aaaaaaaaaaaaaaaaaaaaaa".into(), "a".into()));
    assert_eq!(second.bindings().await, Vec::<String>::new());
    assert_eq!((first.calls("set").await, second.calls("set").await), (1, 0));
}
