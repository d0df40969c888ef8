//! What a replica makes of a chat request counts in its memory as long as it is.

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{Recorder, Step, completed};
use crate::world::waiting::{ANSWER, within};
use crate::world::wire::{Request, ask};

const MIB: usize = 1 << 20;
const MEMORY: &str = "warmkey_body_memory_bytes";

async fn cluster(upstream: &Recorder, replay_total: &str) -> Running {
    let cluster = Cluster::new().recorded_by(upstream).upstream("speaks = [\"responses\"]");
    cluster.server("replay_total", replay_total).start().await
}

fn chat(body: String) -> Request {
    Request::turn(ALICE, body).target("/chat/completions")
}

/// A value of short elements takes forty times the memory of its text if it is parsed.
#[tokio::test]
async fn chat_request_of_many_short_elements_takes_no_more_than_is_counted() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = cluster(&upstream, "\"1GiB\"").await;
    let before = cluster.replica().process().resident();
    for field in ["logit_bias", "n", "stop", "modalities", "functions", "function_call", "logprobs"]
    {
        let value = "[0],".repeat(6 * MIB / 4);
        let told =
            ask(cluster.address(), &chat(format!(r#"{{"messages":[],"{field}":[{value}0]}}"#)))
                .await;
        assert_eq!((told.status, told.code().as_str()), (400, "unsupported_parameter"), "{field}");
        assert_eq!(told.json()["error"]["param"], field);
    }
    let grown = cluster.replica().process().peak().saturating_sub(before) >> 20;
    assert!(grown < 6 * 6, "{grown} MiB more");
    assert!(upstream.seen().is_empty());
    cluster.replica().shows(MEMORY, 0.0).await;
}

/// A message of 29 bytes becomes one of 76.
#[tokio::test]
async fn translated_chat_counts_with_its_own_length() {
    let message = r#"{"role":"user","content":""},"#;
    let messages = message.repeat(2 * MIB / message.len());
    let body = format!(r#"{{"model":"gpt-5.4","messages":[{}]}}"#, messages.trim_end_matches(','));
    let mut script = vec![Step::Hold];
    script.extend(completed());
    let upstream = Recorder::answering(script).await;
    let roomy = cluster(&upstream, "\"64MiB\"").await;
    let (address, request) = (roomy.address(), chat(body.clone()));
    let asking = tokio::spawn(async move { ask(address, &request).await });
    upstream.reached(1).await;
    let sent = upstream.seen().pop().expect("it was sent").body.len();
    assert!(sent > 5 * MIB, "{sent}");
    let held = roomy.replica().metrics().await.get(MEMORY) as usize;
    let counted = body.len() + sent;
    assert!((counted..counted + 64 * 1024).contains(&held), "{held} for {counted}");
    upstream.release(1);
    within(ANSWER, "an answer", asking).await.expect("the client runs");
    roomy.replica().shows(MEMORY, 0.0).await;
    // There is room for the body and for a copy, and not for the translation.
    let narrow = cluster(&upstream, "\"12MiB\"").await;
    let told = ask(narrow.address(), &chat(body)).await;
    assert_eq!((told.status, told.code().as_str()), (503, "no_key_available"), "{}", told.text());
    assert_eq!((told.header("retry-after"), upstream.seen().len()), (Some("1"), 1));
    narrow.replica().shows(MEMORY, 0.0).await;
}
