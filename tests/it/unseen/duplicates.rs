//! Number 6: a field with two values never passes. Some parsers take the first and some the last,
//! so an upstream could follow a value that no rule has seen.

use super::{turn, two};
use crate::world::cluster::ALICE;
use crate::world::recorder::{Recorder, completed};
use crate::world::socket::{Upstream, session, turn as plays};
use crate::world::wire::ask;

const FIELDS: [&str; 8] = [
    r#""previous_response_id":"resp_of_another_client","previous_response_id":null"#,
    r#""previous_response_id":null,"previous_response_id":"resp_of_another_client""#,
    r#""previous\u005fresponse_id":"resp_of_another_client","previous_response_id":null"#,
    r#""conversation":{"id":"conv_of_another_client"},"conversation":null"#,
    r#""conversation":{"id":"conv_of_another_client","id":null}"#,
    r#""model":"gpt-5.4","model":"gpt-5.4-expensive""#,
    r#""input":[{"type":"item_reference","id":"msg_1"}],"input":"hello""#,
    r#""store":true,"store":false"#,
];

#[tokio::test]
async fn field_with_two_values_never_passes() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    for fields in FIELDS {
        let told = ask(cluster.address(), &turn(&format!("{{{fields},\"x\":1}}"))).await;
        assert!((400..=404).contains(&told.status), "{fields}: {}", told.text());
        assert!(!told.code().is_empty(), "{fields}");
    }
    assert!(upstream.seen().is_empty());
    // What no rule reads, and what says the same twice, is the upstream's business.
    let same = r#"{"model":"gpt-5.4","model":"gpt-5.4","x":1,"x":2,"input":"hello"}"#;
    assert_eq!(ask(cluster.address(), &turn(same)).await.status, 200);
    assert_eq!(upstream.only().body, same.as_bytes());
}

#[tokio::test]
async fn field_with_two_values_never_passes_on_a_websocket() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    let kinds = [r#""type":"ping","type":"response.create""#, r#""stream_id":"a","stream_id":"b""#];
    for fields in FIELDS.iter().chain(&kinds) {
        let message = format!(r#"{{{fields},"type":"response.create"}}"#);
        client.send(&message).await;
        let event = client.json().await;
        assert_eq!(event["type"], "error", "{fields}: {event}");
    }
    // The connection goes on, and its next message is the first that the upstream gets.
    plays(&mut client, &mut there, "resp_1").await;
}
