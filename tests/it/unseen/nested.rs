//! Number 11: an error inside a stream is understood in each form in which upstreams write it.

use super::{BODY, turn, two};
use crate::world::recorder::{Recorder, stream};
use crate::world::simulator::siblings;
use crate::world::wire::ask;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_within_a_stream_is_understood_in_each_spelling() {
    let error =
        r#""code":"insufficient_quota","message":"You exceeded your current quota.","param":null"#;
    for data in [
        format!(r#"{{"type":"error","error":{{"type":"insufficient_quota",{error}}}}}"#),
        format!(r#"{{"error":{{{error},"type":"insufficient_quota"}},"type":"error"}}"#),
        format!(r#"{{"type":"error","sequence_number":3,{error}}}"#),
        format!(
            r#"{{"type":"response.failed","response":{{"status":"failed","error":{{{error}}}}}}}"#
        ),
    ] {
        let name = if data.contains("response.failed") { "response.failed" } else { "error" };
        for head in [format!("event: {name}\n"), String::new()] {
            let event = format!("{head}data: {data}\n\n");
            let upstream = Recorder::answering(stream(&[event.as_bytes()])).await;
            let cluster = two().keys(siblings("org-a", 1)).recorded_by(&upstream).start().await;
            let told = ask(cluster.address(), &turn(BODY)).await;
            assert_eq!((told.status, told.body.as_slice()), (200, event.as_bytes()), "as it came");
            cluster.all_have("org-a-1", "disabled").await;
        }
    }
}
