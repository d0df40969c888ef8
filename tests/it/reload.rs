//! Reload: keys and clients come and go while sessions run, and no binding moves but those of a key that is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::task::JoinSet;

use crate::cluster::{ALICE, Cluster, RELOADS, Running};
use crate::codex::Codex;
use crate::patience::{SOON, eventually};
use crate::process::Folder;
use crate::simulator::{Key, keys_by_session, path_of, siblings};

const WAITING: &str = "warmkey_keys_waiting";
const FAILURES: &str = "warmkey_reload_failures_total";

/// Three replicas of these keys behind a balancer; the upstream knows `spare` too.
async fn three(keys: Vec<Key>, spare: Vec<Key>) -> Running {
    Cluster::new().keys(keys).spare(spare).replicas(3).redis().balanced().start().await
}

/// Sessions that take one turn after the other until they are told to stop.
struct Players {
    is_over: Arc<AtomicBool>,
    playing: JoinSet<Codex>,
}

impl Players {
    async fn start(cluster: &Running, count: usize) -> Self {
        let (is_over, mut playing) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..count {
            let (mut codex, is_over) = (Codex::new(cluster.address(), ALICE), Arc::clone(&is_over));
            codex.turn("first").await.served();
            playing.spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    // What is sent grows with each turn, and with it what the machine has to do.
                    let mut turn = codex.clone();
                    turn.turn("meanwhile").await.served();
                }
                codex.turn("last").await.served();
                codex
            });
        }
        Self { is_over, playing }
    }

    async fn stop(mut self) -> Vec<Codex> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut sessions = Vec::new();
        while let Some(codex) = self.playing.join_next().await {
            sessions.push(codex.expect("every turn is served"));
        }
        sessions
    }
}

/// How many of `count` new sessions each key serves.
async fn newcomers(cluster: &Running, count: usize) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    for number in 0..count {
        let mut codex = Codex::new(cluster.replicas[number % cluster.replicas.len()].address(), ALICE);
        codex.turn("first").await.served();
        for key in path_of(&cluster.turns().await, &codex.session) {
            *keys.entry(key).or_default() += 1;
        }
    }
    keys
}

#[tokio::test]
async fn a_new_key_takes_sessions_once_every_replica_has_it() {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let new = vec![Key::new("org-b-new", "org-b")];
    let mut cluster = three(keys.clone(), new.clone()).await;
    let players = Players::start(&cluster, 12).await;
    cluster.change(|cluster| cluster.keys([keys, new].concat()));
    for number in 0..3 {
        assert_eq!(newcomers(&cluster, 12).await.get("org-b-new"), None, "{number} of three have it");
        cluster.reload(number).await;
        if number < 2 {
            cluster.replicas[number].shows(WAITING, 1.0).await;
        }
    }
    cluster.shows(WAITING, 0.0).await;
    let share = newcomers(&cluster, 48).await.remove("org-b-new").unwrap_or_default();
    assert!((2..=24).contains(&share), "a quarter of 48, give or take: {share}");
    let sessions = players.stop().await;
    let served = keys_by_session(&cluster.turns().await);
    for codex in sessions {
        assert_eq!(served[&codex.session].len(), 1, "who was bound has not moved: {:?}", served[&codex.session]);
    }
}

#[tokio::test]
async fn only_sessions_of_a_removed_key_move_and_each_of_them_once() {
    let keys = siblings("org-a", 3);
    let mut cluster = three(keys.clone(), Vec::new()).await;
    let players = Players::start(&cluster, 15).await;
    cluster.change(|cluster| cluster.keys(keys[..2].to_vec()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    let removed = "warmkey_key_state{key=\"org-a-3\",state=\"ready\"}";
    for replica in &cluster.replicas {
        assert!(!replica.metrics().await.has(removed), "what is removed has no state");
    }
    let sessions = players.stop().await;
    let turns = cluster.turns().await;
    let mut moved = 0;
    for codex in &sessions {
        let path = path_of(&turns, &codex.session);
        let expected = if path[0] == "org-a-3" { 2 } else { 1 };
        assert_eq!(path.len(), expected, "{path:?}");
        moved += expected - 1;
    }
    assert!(moved > 0, "somebody was there");
    cluster.shows("warmkey_bindings_total{result=\"rebound\"}", moved as f64).await;
}

#[tokio::test]
async fn a_key_that_is_rolled_back_is_left_once_all_have() {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let new = vec![Key { weight: 4, ..Key::new("org-b-new", "org-b") }];
    let mut cluster = three(keys.clone(), new.clone()).await;
    cluster.change(|cluster| cluster.keys([keys.clone(), new].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
    }
    cluster.shows(WAITING, 0.0).await;
    let players = Players::start(&cluster, 12).await;
    cluster.change(|cluster| cluster.keys(keys));
    for number in 0..2 {
        cluster.reload(number).await;
    }
    // Two have it no longer and one still does: whose word counts is not known, so that their turns are served by a sibling
    // and nobody's binding moves.
    let rebound = "warmkey_bindings_total{result=\"rebound\"}";
    for replica in &cluster.replicas[..2] {
        let is_spilling = async || replica.metrics().await.get("warmkey_bindings_total{result=\"spilled\"}") > 10.0;
        eventually(SOON, "turns of the key that is gone here", async || is_spilling().await.then_some(())).await;
    }
    cluster.shows(rebound, 0.0).await;
    cluster.reload(2).await;
    let mut sessions = players.stop().await;
    // By now every replica has heard that the old set is the newest again, or hears it within a beat.
    eventually(SOON, "all agree that it is gone", async || {
        for codex in &mut sessions {
            codex.turn("after").await.served();
        }
        let last = |session: &str, turns: &[_]| path_of(turns, session).pop();
        let turns = cluster.turns().await;
        sessions.iter().all(|codex| last(&codex.session, &turns).as_deref() != Some("org-b-new")).then_some(())
    })
    .await;
    let settled = cluster.turns().await.len();
    for replica in &cluster.replicas {
        for codex in &mut sessions {
            codex.moves_to(replica.address());
            codex.turn("settled").await.served();
        }
    }
    let turns = cluster.turns().await;
    let mut came_from_there = 0;
    for codex in &sessions {
        let path = path_of(&turns, &codex.session);
        assert_eq!(path_of(&turns[settled..], &codex.session).len(), 1, "{path:?}");
        let organizations: BTreeSet<_> =
            turns.iter().filter(|turn| turn.session.as_ref() == Some(&codex.session)).map(|turn| &turn.organization).collect();
        assert_eq!(organizations.len(), 1, "what is sealed stays: {path:?}");
        came_from_there += usize::from(path[0] == "org-b-new");
        assert!(path[0] == "org-b-new" || path.len() == 1, "{path:?}");
    }
    assert!(came_from_there > 0, "somebody was there");
    cluster.shows(rebound, came_from_there as f64).await;
}

#[tokio::test]
async fn a_key_changes_its_secret_and_nothing_else() {
    let old = siblings("org-a", 1);
    let new = Key::new("rotated", "org-a");
    let mut cluster =
        Cluster::new().keys(old.clone()).spare(vec![new]).redis().simulator("event_delay = \"150ms\"").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let bound = cluster.redis().binding().await;
    let mut slow = codex.clone();
    let slow = tokio::spawn(async move { slow.turn("in flight").await.served() });
    cluster.replica().shows("warmkey_active_turns", 1.0).await;
    cluster.change(|cluster| cluster.keys(vec![old[0].clone().shown_as("rotated")]));
    cluster.reload(0).await;
    codex.turn("with the new secret").await.served();
    slow.await.expect("what was in flight ends with what it began with");
    let path = path_of(&cluster.turns().await, &codex.session);
    assert_eq!(path, ["org-a-1", "rotated"]);
    assert_eq!(cluster.redis().binding().await, bound, "the session has not moved");
    // A secret that is dead says nothing about the next one.
    cluster.upstream().revoke("rotated").await;
    assert_eq!(codex.turn("refused").await.answer.status, 503);
    cluster.change(|cluster| cluster.keys(old));
    cluster.reload(0).await;
    codex.turn("with the old secret again").await.served();
    assert_eq!(cluster.redis().binding().await, bound);
}

#[tokio::test]
async fn a_token_is_rotated_without_a_gap() {
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
        assert_eq!((status(old, &cluster, number).await, status(new, &cluster, number).await), (200, 200));
    }
    codex.shows(new);
    codex.turn("with the other token").await.served();
    cluster.change(|cluster| cluster.clients(&section(new)));
    for number in 0..2 {
        cluster.reload(number).await;
        assert_eq!((status(old, &cluster, number).await, status(new, &cluster, number).await), (401, 200));
    }
    codex.turn("without the first").await.served();
    assert_eq!(path_of(&cluster.turns().await, &codex.session).len(), 1, "the same client, the same session");
}

/// Puts `files` where `mount` shows them, as Kubernetes does: a folder of its own, and a link that is swapped.
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
async fn what_kubernetes_swaps_is_noticed() {
    let mount = Folder::new();
    let tokens = |token: &str| format!("# one a line\nalice {token}\n");
    project(mount.path(), "..1", &[("tokens", &tokens("token-canary-1"))]);
    let clients = format!("[[client]]\ntoken_file = {:?}\n", mount.path().join("tokens"));
    let mut cluster = Cluster::new().clients(&clients).start().await;
    Codex::new(cluster.address(), "token-canary-1").turn("first").await.served();
    // The configuration itself comes by a link too: another file, the same content, no reload.
    let file = cluster.replica().file();
    let first = fs::read_to_string(&file).expect("it is there");
    project(mount.path(), "..2", &[("tokens", &tokens("token-canary-1")), ("warmkey.toml", &first)]);
    fs::remove_file(&file).expect("it is there");
    symlink(mount.path().join("warmkey.toml"), &file).expect("the temporary folder can be written");
    cluster.replica().hang_up().await;
    cluster.replica().says("has not changed").await;
    assert_eq!(cluster.replica().metrics().await.get(RELOADS), 0.0);
    // A secret.
    project(mount.path(), "..3", &[("tokens", &tokens("token-canary-2")), ("warmkey.toml", &first)]);
    cluster.replica().shows(RELOADS, 1.0).await;
    Codex::new(cluster.address(), "token-canary-2").turn("second").await.served();
    assert_eq!(Codex::new(cluster.address(), "token-canary-1").turn("too late").await.answer.status, 401);
    // The configuration.
    let second = first.replace("weight = 1", "weight = 2");
    project(mount.path(), "..4", &[("tokens", &tokens("token-canary-2")), ("warmkey.toml", &second)]);
    cluster.replica().shows(RELOADS, 2.0).await;
    Codex::new(cluster.address(), "token-canary-2").turn("third").await.served();
    cluster.change(|cluster| cluster);
    assert!(!cluster.logs().contains("canary"), "no secret is told");
}

#[tokio::test]
async fn what_cannot_be_used_is_told_once_and_changes_nothing() {
    let mut cluster = Cluster::new().start().await;
    let replica = cluster.replica();
    let mut codex = Codex::new(cluster.address(), ALICE);
    let good = fs::read_to_string(replica.file()).expect("it is there");
    let told = || replica.process().log().lines().filter(|line| line.contains("cannot be used")).count();
    let keyless = good.split("[[key]]").next().expect("the part before");
    let unreadable = good.replacen("secret = \"sk-canary-org-a-1\"", "secret = { file = \"/nowhere/canary\" }", 1);
    let twice = format!("{good}[[key]]\nid = \"org-a-1\"\nupstream = \"openai\"\norganization = \"o\"\nsecret = \"sk-canary\"\n");
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
        assert_eq!(told(), number + 1, "one line each");
        codex.turn("as before").await.served();
    }
    replica.hang_up().await;
    replica.says("has not changed").await;
    assert_eq!((told(), replica.metrics().await.get(RELOADS)), (bad.len(), 0.0));
    // A good one is taken, and what only a start can change is named.
    cluster.change(|cluster| {
        let cluster = cluster.keys(siblings("org-a", 1)).server("drain", "\"31s\"").binding("ttl = \"700h\"");
        cluster.server("listen", "\"127.0.0.1:1\"").server("secret", "\"another canary secret of enough bytes\"")
    });
    cluster.reload(0).await;
    cluster.replica().says("needs a restart: binding.ttl, server.drain, server.listen, server.secret").await;
    assert!(!cluster.replica().metrics().await.has("warmkey_key_state{key=\"org-a-2\",state=\"ready\"}"));
    codex.turn("and served").await.served();
    let log = cluster.logs();
    assert!(!log.replace("/nowhere/canary", "").contains("canary"), "no secret is told: {log}");
}

#[tokio::test]
async fn reloading_while_redis_is_away_moves_nobody() {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    let new = vec![Key::new("org-b-new", "org-b")];
    let cluster = Cluster::new().keys(keys.clone()).spare(new.clone()).replicas(3).redis().balanced();
    let mut cluster = cluster.store("timeout = \"300ms\"").start().await;
    let players = Players::start(&cluster, 10).await;
    cluster.redis().signal("STOP").await;
    cluster.shows("warmkey_store_up", 0.0).await;
    cluster.change(|cluster| cluster.keys([keys, new].concat()));
    for number in 0..3 {
        cluster.reload(number).await;
        cluster.replicas[number].shows(WAITING, 1.0).await;
    }
    assert_eq!(newcomers(&cluster, 24).await.get("org-b-new"), None, "nobody knows what the others have");
    cluster.redis().signal("CONT").await;
    cluster.shows(WAITING, 0.0).await;
    let share = newcomers(&cluster, 48).await.remove("org-b-new").unwrap_or_default();
    assert!(share > 0, "applied once the store is back");
    let sessions = players.stop().await;
    let served = keys_by_session(&cluster.turns().await);
    for codex in sessions {
        assert_eq!(served[&codex.session].len(), 1, "nobody has moved: {:?}", served[&codex.session]);
    }
}

#[tokio::test]
async fn a_key_that_is_refused_while_its_secret_changes_is_tried_with_the_new_one() {
    let old = siblings("org-a", 1);
    let mut cluster = Cluster::new().keys(old.clone()).spare(vec![Key::new("rotated", "org-a")]).start().await;
    let fault = json!({ "key": "org-a-1", "status": 401, "code": "invalid_api_key", "stall": "4s" });
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
