//! Clients name models freely: what a replica and the board remember of them is bounded.

use futures_util::StreamExt;
use futures_util::stream::iter;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, stream_head};
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

/// More models than a project has.
const INVENTED: usize = 150;
/// Most fields of the board: the conditions of one project's models, the version, two replicas.
const FIELDS: u64 = 64 + 3;

fn turn(model: &str) -> Request {
    let body = format!(r#"{{"model":{model:?},"stream":true,"input":"hello"}}"#);
    Request::turn(ALICE, body)
}

#[tokio::test]
async fn models_that_a_client_invents_leave_the_board_bounded() {
    let upstream = Recorder::start(|seen| {
        if String::from_utf8_lossy(&seen.body).contains("gpt-5.4") {
            let end = b"0\r\n\r\n".to_vec();
            return [stream_head(""), chunk(COMPLETED.as_bytes()), end].map(Step::Send).into();
        }
        let body = r#"{"error":{"message":"no","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
        let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n";
        let length = body.len();
        vec![Step::Send(
            format!("{head}retry-after: 3600\r\ncontent-length: {length}\r\n\r\n{body}").into(),
        )]
    })
    .await;
    let mut cluster = Cluster::new()
        .keys(siblings("org-a", 1))
        .recorded_by(&upstream)
        .redis()
        .replicas(2)
        .start()
        .await;
    let addresses = [0, 1].map(|number| cluster.replicas[number].address());
    let asked = iter(0..INVENTED)
        .map(async |number| ask(addresses[number % 2], &turn(&format!("m{number}"))).await.status);
    let statuses: Vec<_> = asked.buffer_unordered(8).collect().await;
    assert_eq!(statuses, [429; INVENTED]);
    // Both replicas know the conditions of both, and the board holds no more of them.
    eventually(SOON, "a board within its bound", async || {
        let fields: u64 = cluster.redis().ask(&["HLEN", "warmkey:board"]).await;
        assert!(fields > FIELDS / 2, "{fields}: the last limits are known");
        (fields <= FIELDS).then_some(())
    })
    .await;
    let (before, last) = (upstream.seen().len(), format!("m{}", INVENTED - 1));
    // The replica that met the last limit knows it.
    assert_eq!(ask(addresses[(INVENTED - 1) % 2], &turn(&last)).await.status, 429);
    assert_eq!(upstream.seen().len(), before, "a limit that is known costs no request");
    for address in addresses {
        assert_eq!(ask(address, &turn("gpt-5.4")).await.status, 200, "another model is served");
    }
}
