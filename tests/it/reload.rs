//! Tests reloads from outside: which changes are noticed, which are taken into use or refused, and
//! what stays as it was.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::world::cluster::{ALICE, Cluster, RELOADS, Running};
use crate::world::codex::Codex;
use crate::world::process::Folder;
use crate::world::simulator::{Key, path_of, siblings};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

const FAILURES: &str = "warmkey_reload_failures_total";

#[tokio::test]
async fn key_changes_its_secret_and_nothing_else() {
    let old = siblings("org-a", 1);
    let new = Key::new("rotated", "org-a");
    let mut cluster = Cluster::new()
        .keys(old.clone())
        .spare(vec![new])
        .redis()
        .simulator("event_delay = \"150ms\"")
        .start()
        .await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let bound = cluster.redis().binding().await;
    let mut slow = codex.clone();
    let slow = tokio::spawn(async move { slow.turn("in flight").await.served() });
    cluster.replica().shows("warmkey_active_turns", 1.0).await;
    cluster.change(|cluster| cluster.keys(vec![old[0].clone().shown_as("rotated")]));
    cluster.reload(0).await;
    codex.turn("with the new secret").await.served();
    slow.await.expect("a turn in flight ends with the configuration that it began with");
    let path = path_of(&cluster.turns().await, &codex.session);
    assert_eq!(path, ["org-a-1", "rotated"]);
    assert_eq!(cluster.redis().binding().await, bound, "the session has not moved");
    // That the old secret is dead says nothing about the new one.
    cluster.upstream().revoke("rotated").await;
    assert_eq!(codex.turn("refused").await.answer.status, 503);
    cluster.change(|cluster| cluster.keys(old));
    cluster.reload(0).await;
    codex.turn("with the old secret again").await.served();
    assert_eq!(cluster.redis().binding().await, bound);
}

#[tokio::test]
async fn token_is_rotated_without_a_gap() {
    let section = |token: &str| format!("[[client]]\nid = \"alice\"\ntoken = {token:?}\n");
    let (old, new) = ("token-canary-old", "token-canary-new");
    let mut cluster = Cluster::new().replicas(2).redis().clients(&section(old)).start().await;
    let status = async |token: &str, cluster: &Running, number: usize| {
        Codex::new(cluster.replicas[number].address(), token).turn("who am I").await.answer.status
    };
    let mut codex = Codex::new(cluster.address(), old);
    codex.turn("first").await.served();
    cluster.change(|cluster| cluster.clients(&(section(old) + &section(new))));
    for number in 0..2 {
        assert_eq!(status(new, &cluster, number).await, 401);
        cluster.reload(number).await;
        assert_eq!(
            (status(old, &cluster, number).await, status(new, &cluster, number).await),
            (200, 200)
        );
    }
    codex.shows(new);
    codex.turn("with the other token").await.served();
    cluster.change(|cluster| cluster.clients(&section(new)));
    for number in 0..2 {
        cluster.reload(number).await;
        assert_eq!(
            (status(old, &cluster, number).await, status(new, &cluster, number).await),
            (401, 200)
        );
    }
    codex.turn("without the first").await.served();
    assert_eq!(
        path_of(&cluster.turns().await, &codex.session).len(),
        1,
        "the same client, the same session"
    );
}

/// Mounts `files` in `mount` as Kubernetes does: in a folder of their own, behind a link that is
/// swapped.
fn project(mount: &Path, version: &str, files: &[(&str, &str)]) {
    let folder = mount.join(version);
    fs::create_dir_all(&folder).expect("the temporary folder can be written");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("the temporary folder can be written");
        let _ = symlink(Path::new("..data").join(name), mount.join(name));
    }
    let new = mount.join("..data_tmp");
    symlink(version, &new).expect("the temporary folder can be written");
    fs::rename(new, mount.join("..data")).expect("the temporary folder can be written");
}

#[tokio::test]
async fn file_that_kubernetes_swaps_is_noticed() {
    let mount = Folder::new();
    let tokens = |token: &str| format!("# one a line\nalice {token}\n");
    project(mount.path(), "..1", &[("tokens", &tokens("token-canary-1"))]);
    let clients = format!("[[client]]\ntoken_file = {:?}\n", mount.path().join("tokens"));
    let cluster = Cluster::new().clients(&clients).start().await;
    Codex::new(cluster.address(), "token-canary-1").turn("first").await.served();
    // The configuration is behind a link, too. Another file with the same content causes no reload.
    let file = cluster.replica().file();
    let first = fs::read_to_string(&file).expect("it is there");
    project(
        mount.path(),
        "..2",
        &[("tokens", &tokens("token-canary-1")), ("warmkey.toml", &first)],
    );
    fs::remove_file(&file).expect("it is there");
    symlink(mount.path().join("warmkey.toml"), &file).expect("the temporary folder can be written");
    cluster.replica().hang_up().await;
    cluster.replica().says("has not changed").await;
    assert_eq!(cluster.replica().metrics().await.get(RELOADS), 0.0);
    // A new secret.
    project(
        mount.path(),
        "..3",
        &[("tokens", &tokens("token-canary-2")), ("warmkey.toml", &first)],
    );
    cluster.replica().shows(RELOADS, 1.0).await;
    Codex::new(cluster.address(), "token-canary-2").turn("second").await.served();
    assert_eq!(
        Codex::new(cluster.address(), "token-canary-1").turn("too late").await.answer.status,
        401
    );
    // A new configuration.
    let second = first.replace("weight = 1", "weight = 2");
    project(
        mount.path(),
        "..4",
        &[("tokens", &tokens("token-canary-2")), ("warmkey.toml", &second)],
    );
    cluster.replica().shows(RELOADS, 2.0).await;
    Codex::new(cluster.address(), "token-canary-2").turn("third").await.served();
    assert!(!cluster.logs().contains("canary"), "no secret is shown");
}

#[tokio::test]
async fn configuration_that_cannot_be_used_is_logged_once_and_changes_nothing() {
    let mut cluster = Cluster::new().start().await;
    let replica = cluster.replica();
    let mut codex = Codex::new(cluster.address(), ALICE);
    let good = fs::read_to_string(replica.file()).expect("it is there");
    let faults =
        || replica.process().log().lines().filter(|line| line.contains("cannot be used")).count();
    let keyless = good.split("[[key]]").next().expect("the part before");
    let unreadable = good.replacen(
        "secret = \"sk-canary-org-a-1\"",
        "secret = { file = \"/nowhere/canary\" }",
        1,
    );
    let twice = format!(
        "{good}[[key]]\nid = \"org-a-1\"\nupstream = \"openai\"\norganization = \"o\"\nsecret = \"sk-canary\"\n"
    );
    let bad = [
        "this is no TOML: sk-canary = [".to_owned(),
        keyless.to_owned(),
        unreadable,
        twice,
        good.replacen("[server]", "[server]\nlisten_adress = \"x\"", 1),
        good.replacen("[server]", "[server]\nmax_body = \"0B\"", 1),
    ];
    for (number, text) in bad.iter().enumerate() {
        fs::write(replica.file(), text).expect("the temporary folder can be written");
        replica.shows(FAILURES, (number + 1) as f64).await;
        // The log has a thread of its own.
        eventually(SOON, "a line", async || (faults() > number).then_some(())).await;
        codex.turn("as before").await.served();
        assert_eq!(faults(), number + 1, "one line each");
    }
    replica.hang_up().await;
    replica.says("has not changed").await;
    assert_eq!((faults(), replica.metrics().await.get(RELOADS)), (bad.len(), 0.0));
    // A good configuration is taken into use, and the log names the options that need a restart.
    cluster.change(|cluster| {
        let cluster =
            cluster.keys(siblings("org-a", 1)).server("drain", "\"31s\"").binding("ttl = \"700h\"");
        cluster
            .server("listen", "\"127.0.0.1:1\"")
            .server("secret", "\"another canary secret of enough bytes\"")
    });
    cluster.reload(0).await;
    cluster
        .replica()
        .says("needs a restart: binding.ttl, server.drain, server.listen, server.secret")
        .await;
    let metrics = cluster.replica().metrics().await;
    let has_key =
        |id: &str| metrics.has(&format!("warmkey_key_state{{key=\"{id}\",state=\"ready\"}}"));
    assert_eq!((has_key("org-a-1"), has_key("org-a-2")), (true, false));
    codex.turn("and served").await.served();
    let log = cluster.logs();
    assert!(!log.replace("/nowhere/canary", "").contains("canary"), "no secret is shown: {log}");
}

/// By the listening address, the start decides whether a token is required. A reload cannot open a
/// closed gateway, and an open one stays open.
#[tokio::test]
async fn gateway_is_as_open_as_it_was_started() {
    for (before, after, status) in [("true", "false", 200), ("false", "true", 401)] {
        let mut cluster = Cluster::new().server("open", before).start().await;
        let nobody =
            Request::new("POST", "/responses").body(r#"{"model":"gpt-5.4","input":"hello"}"#);
        assert_eq!(ask(cluster.address(), &nobody).await.status, status, "{before}");
        cluster.change(|cluster| cluster.keys(siblings("org-a", 1)).server("open", after));
        cluster.reload(0).await;
        cluster.replica().says("needs a restart: server.open").await;
        assert_eq!(
            ask(cluster.address(), &nobody).await.status,
            status,
            "{before}, and reloaded with {after}"
        );
        Codex::new(cluster.address(), ALICE).turn("known").await.served();
    }
}

#[tokio::test]
async fn key_that_is_refused_while_its_secret_changes_is_tried_with_the_new_one() {
    let old = siblings("org-a", 1);
    let mut cluster =
        Cluster::new().keys(old.clone()).spare(vec![Key::new("rotated", "org-a")]).start().await;
    let fault =
        json!({ "key": "org-a-1", "status": 401, "code": "invalid_api_key", "stall": "4s" });
    cluster.upstream().fault(fault).await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    let turn = tokio::spawn(async move { codex.turn("refused late").await.served() });
    cluster.replica().shows("warmkey_active_turns", 1.0).await;
    cluster.change(|cluster| cluster.keys(vec![old[0].clone().shown_as("rotated")]));
    cluster.reload(0).await;
    turn.await.expect("the client sees nothing of it");
    let turns = cluster.turns().await;
    assert_eq!(
        turns.iter().map(|turn| (turn.key.as_str(), turn.status)).collect::<Vec<_>>(),
        [("org-a-1", 401), ("rotated", 200)]
    );
}
