//! Tests other hosts of the same API: their credential, their query, their names of models, and a
//! cache domain of their own.

use serde_json::json;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::{Codex, sha256, uuid};
use crate::world::process::Folder;
use crate::world::sessions::last_turn;
use crate::world::simulator::{Key, Simulator, siblings};
use crate::world::socket::session;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

#[tokio::test]
async fn key_is_shown_as_its_host_wants_it_with_the_fixed_query() {
    let mut keys = siblings("org-a", 2);
    for key in &mut keys {
        key.limits = "credential = \"api-key\"\napi_version = \"v1\"\n".into();
    }
    let cluster = Cluster::new()
        .keys(keys)
        .upstream("credential = \"api-key\"\nquery = \"api-version=v1\"\n")
        .start()
        .await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("over HTTP").await.served();
    let mut talk = codex.by_websocket();
    talk.turn("over a WebSocket").await;
    // The client's `api-version` is not the host's, so the host's own replaces it.
    let body = json!({ "model": "gpt-5.4", "input": "x" }).to_string();
    let request = Request::turn(ALICE, body).target("/responses?api-version=v9");
    let answer = ask(cluster.address(), &request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let stored = Request::new("GET", &format!("/responses/{id}?include=x")).bearer(ALICE);
    assert_eq!(ask(cluster.address(), &stored).await.status, 200);
    let call = cluster.upstream().calls().await.pop().expect("it went upstream");
    assert_eq!(call.query.as_deref(), Some("api-version=v1&include=x"));
    let models = Request::new("GET", "/models").bearer(ALICE);
    assert_eq!(ask(cluster.address(), &models).await.status, 200);
    for turn in cluster.turns().await {
        assert_eq!(turn.status, 200, "{turn:?}");
        assert!(turn.headers.iter().any(|name| name == "api-key"));
        assert!(!turn.headers.iter().any(|name| name == "authorization"));
    }
    // A refused key is probed in the way that its host requires, and comes back.
    cluster.upstream().revoke("org-a-1").await;
    cluster.upstream().revoke("org-a-2").await;
    ask(cluster.address(), &Request::turn(ALICE, r#"{"model":"gpt-5.4","input":"x"}"#)).await;
    cluster.upstream().heal().await;
    cluster.replica().command("probe", "org:org-a").await;
    eventually(SOON, "the keys are back", async || {
        let request = Request::turn(ALICE, r#"{"model":"gpt-5.4","input":"x"}"#);
        (ask(cluster.address(), &request).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn model_goes_by_its_upstreams_name_and_the_log_says_so() {
    let cluster = Cluster::new()
        .keys(siblings("org-a", 1))
        .upstream("models = { \"gpt-5.4\" = \"gpt-5.4-mini\" }\n")
        .start()
        .await;
    let body = format!(r#"{{"input":"x", "model" : "gpt-5.4","prompt_cache_key":{:?}}}"#, uuid());
    let renamed = body.replace("gpt-5.4", "gpt-5.4-mini");
    let asked = async |request: Request| {
        let answer = ask(cluster.address(), &request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let turn = cluster.turns().await.pop().expect("it was sent");
        (turn.model.unwrap_or_default(), turn.body_sha256)
    };
    let expected = ("gpt-5.4-mini".to_owned(), sha256(renamed.as_bytes()));
    assert_eq!(asked(Request::turn(ALICE, body.clone())).await, expected);
    let packed = zstd::encode_all(body.as_bytes(), 1).expect("memory is enough");
    let encoded = Request::turn(ALICE, packed).header("content-encoding", "zstd");
    assert_eq!(asked(encoded).await, expected);
    // No other body changes by a byte.
    let other = body.replace("gpt-5.4", "gpt-5.5");
    let found = asked(Request::turn(ALICE, other.clone())).await;
    assert_eq!(found, ("gpt-5.5".to_owned(), sha256(other.as_bytes())));
    let mut socket = session(cluster.address(), ALICE, &uuid()).await;
    socket.send(&format!(r#"{{"type":"response.create",{}"#, &body[1..])).await;
    socket.event(&["response.completed"]).await;
    let turn = cluster.turns().await.pop().expect("it was sent");
    assert_eq!(turn.model.as_deref(), Some("gpt-5.4-mini"));
    eventually(SOON, "each use is in the log", async || {
        let log = cluster.logs();
        let lines = log.lines().filter(|line| line.contains("model mapped for its upstream"));
        let found = lines.filter(|line| {
            line.contains(r#""model":"gpt-5.4""#) && line.contains(r#""sent":"gpt-5.4-mini""#)
        });
        (found.count() == 3).then_some(())
    })
    .await;
    let listed =
        ask(cluster.address(), &Request::new("GET", "/models/gpt-5.4").bearer(ALICE)).await;
    assert_eq!(listed.status, 200);
}

/// The same organization at a regional host has caches and seals of that host.
#[tokio::test]
async fn sealed_content_crosses_no_hosts_of_one_organization() {
    let folder = Folder::new();
    let far_key = Key::new("far-1", "org-a");
    let far = Simulator::start(&folder, std::slice::from_ref(&far_key), "seed = 7").await;
    let more = format!(
        "[[upstream]]\nname = \"far\"\nbase_url = {:?}\n\
         [[key]]\nid = \"far-1\"\nupstream = \"far\"\norganization = \"org-a\"\nproject = \"org-a-main\"\n\
         region = \"us\"\nsecret = {:?}\n",
        far.url(),
        far_key.secret()
    );
    let cluster = Cluster::new().keys(siblings("org-a", 1)).upstream(&more).start().await;
    let (mut codex, turn) = {
        // Some sessions begin at the far host, and have no turn at this one.
        let mut found = None;
        for _ in 0..40 {
            let mut codex = Codex::new(cluster.address(), ALICE);
            codex.turn("first").await.served();
            let turns = cluster.turns().await;
            let own = turns.into_iter().find(|turn| turn.session.as_ref() == Some(&codex.session));
            if let Some(turn) = own {
                found = Some((codex, turn));
                break;
            }
        }
        found.expect("a session in forty begins at this host")
    };
    let before = far.turns().await.len();
    assert_eq!(turn.key, "org-a-1");
    codex.turn("second").await.served();
    cluster.upstream().revoke("org-a-1").await;
    let lost = codex.turn("third").await.answer;
    assert_eq!((lost.status, lost.code().as_str()), (503, "no_key_available"), "{}", lost.text());
    assert_eq!(far.turns().await.len(), before, "the far host was not asked");
    let last = last_turn(&cluster, &codex).await;
    assert_eq!((last.key.as_str(), last.status), ("org-a-1", 401));
    // A new session of the organization is served at its other host.
    Codex::new(cluster.address(), ALICE).turn("new").await.served();
    assert_eq!(far.turns().await.len(), before + 1);
}
