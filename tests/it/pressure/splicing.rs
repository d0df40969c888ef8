//! Long bodies and messages that are edited for their upstream delay no other turn, and change by
//! one value alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::{Recorder, completed};
use crate::world::socket::{Upstream, session, turn};
use crate::world::waiting::{ANSWER, ms, within};
use crate::world::wire::{Request, ask};

const MIB: usize = 1 << 20;
const NAMES: &str = "models = { \"gpt-5.4\" = \"gpt-5.4-mini\" }\n";

/// One value changes, and the length is stated. Everything else stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_body_changes_by_its_model_alone() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).upstream(NAMES).start().await;
    for size in [1_000, MIB, 12 * MIB] {
        let text = "\\u0041 model gpt-5.4 \\\"model\\\":".repeat(size / 30);
        let body = format!(r#"{{"input":"{text}","model" : "gpt-5.4","stream":true}}"#);
        let renamed = body.replace(r#" : "gpt-5.4","#, r#" : "gpt-5.4-mini","#);
        let packed = zstd::encode_all(body.as_bytes(), 1).expect("memory is enough");
        for request in [
            Request::turn(ALICE, body.clone()),
            Request::turn(ALICE, packed).header("content-encoding", "zstd"),
        ] {
            let told = ask(cluster.address(), &request.header("content-digest", "x")).await;
            assert_eq!(told.status, 200, "{}", told.text());
            let seen = upstream.seen().pop().expect("it was sent");
            assert!(seen.body == renamed.as_bytes(), "{size}: the same bytes but for the name");
            assert_eq!(seen.header("content-length"), Some(renamed.len().to_string().as_str()));
            assert_eq!(
                (seen.header("content-encoding"), seen.header("content-digest")),
                (None, None)
            );
        }
    }
}

/// One body gets a derived key and another name of its model. The key shifts the place of the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_chat_body_gets_a_key_and_its_upstreams_name() {
    for options in ["", "speaks = [\"responses\"]\n"] {
        let upstream = Recorder::answering(completed()).await;
        let options = format!("{NAMES}{options}");
        let cluster = Cluster::new().recorded_by(&upstream).upstream(&options).start().await;
        for size in [10, 300_000, 8 * MIB] {
            let text = "gpt-5.4 \\\" ".repeat(size / 10);
            let body = format!(
                r#"{{"messages":[{{"role":"user","content":"{text}"}}],"model":"gpt-5.4"}}"#
            );
            let request = Request::turn(ALICE, body.clone()).target("/chat/completions");
            ask(cluster.address(), &request.header("session-id", "s")).await;
            let seen = String::from_utf8(upstream.seen().pop().expect("it was sent").body);
            let seen = seen.expect("JSON is UTF-8");
            let json: serde_json::Value = serde_json::from_str(&seen).expect("it is JSON");
            assert_eq!(json["model"], "gpt-5.4-mini", "{size} {options}");
            let key = json["prompt_cache_key"].as_str().expect("a derived key");
            if !options.contains("speaks") {
                let spliced = body.replacen('{', &format!(r#"{{"prompt_cache_key":"{key}","#), 1);
                let expected = spliced.replace(r#":"gpt-5.4"}"#, r#":"gpt-5.4-mini"}"#);
                assert!(seen == expected, "{size}: nothing else changes");
            }
        }
    }
}

/// Each socket may have one long message at a time, but a client may have many sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_are_read_a_few_at_a_time() {
    let upstream = Upstream::start().await;
    let names = "models = { \"gpt-5.5\" = \"gpt-5.5-mini\" }\n";
    let cluster = Cluster::new().upstream_at(&upstream.url()).upstream(names).start().await;
    let process = cluster.replica().process();
    let mut pairs = Vec::new();
    for number in 0..12 {
        let name = format!("s{number}");
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, &name), upstream.accept());
        turn(&mut client, &mut there, &format!("resp_{number}")).await;
        pairs.push((client, there));
    }
    // This number includes threads that were needed at the start.
    let before = process.threads();
    let (most, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let text = "A model ".repeat(3 * MIB / 8);
    let message = format!(r#"{{"type":"response.create","input":"{text}","model":"gpt-5.5"}}"#);
    let expected = message.replace(r#""gpt-5.5"}"#, r#""gpt-5.5-mini"}"#);
    let sending = async {
        let each = pairs.iter_mut().map(async |(client, there)| {
            let ((), come) =
                tokio::join!(client.send(&message), within(ANSWER, "the message", there.text()));
            assert!(come == expected, "the same text but for the name");
        });
        join_all(each).await;
        is_over.store(true, Ordering::Relaxed);
    };
    let watching = async {
        while !is_over.load(Ordering::Relaxed) {
            most.fetch_max(process.threads(), Ordering::Relaxed);
            tokio::time::sleep(ms(2)).await;
        }
    };
    tokio::join!(sending, watching);
    let more = most.load(Ordering::Relaxed).saturating_sub(before);
    assert!(more <= 2, "{more} threads more than {before}");
}
