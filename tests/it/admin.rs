//! Tests access to the admin listener: its answers to callers with and without it, and the commands
//! that ask there.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;
use tokio::process::Command;

use crate::world::admin::{TOKEN, asked};
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::process::{Folder, Process, WARMKEY};
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, within};
use crate::world::wire::{Answer, Connection, Request, ask, get};

fn guarded() -> Cluster {
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    Cluster::new().keys(keys).server("admin_token", &format!("{TOKEN:?}"))
}

/// Requests of an operator that change nothing.
const ASKED: [(&str, &str); 7] = [
    ("GET", "/keys"),
    ("GET", "/usage"),
    ("GET", "/usage?by=model&from=2026-01-01"),
    ("GET", "/sessions?client=alice&id=session"),
    ("GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA"),
    ("POST", "/keys/org-a-1/enable"),
    ("POST", "/keys/org-a-9/enable"),
];

#[tokio::test]
async fn caller_without_a_token_learns_nothing() {
    let cluster = guarded().start().await;
    let admin = cluster.replica().admin();
    for (method, target) in ASKED {
        let request = Request::new(method, target);
        for request in [
            request.clone(),
            request.clone().bearer(ALICE),
            request.clone().bearer("token-canary-admi"),
            request.bearer(""),
        ] {
            let answer = ask(admin, &request).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "invalid_api_key"),
                "{target}: {}",
                answer.text()
            );
            assert!(
                answer.header("x-request-id").is_some() && !answer.text().contains("canary"),
                "{}",
                answer.text()
            );
        }
    }
    for target in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(get(admin, target).await.status, 200, "{target} asks for none");
    }
    // The operators' token is no client's token, and the operators' paths are not the clients'.
    let request = Request::turn(TOKEN, r#"{"model":"gpt-5.4","input":"hello"}"#);
    assert_eq!(ask(cluster.address(), &request).await.status, 401);
    for (method, target) in ASKED {
        let answer = ask(cluster.address(), &Request::new(method, target).bearer(TOKEN)).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_url"));
    }
    assert!(!cluster.logs().contains("canary"), "and it is in no log");
}

#[tokio::test]
async fn wrong_request_is_named() {
    let cluster = guarded().start().await;
    let admin = cluster.replica().admin();
    for (method, target, status, word) in [
        ("POST", "/keys/org-a-9/disable", 404, "org-a-9"),
        ("POST", "/keys/org:org-c/drain", 404, "org:org-c"),
        ("POST", "/keys/org-a/drain", 404, "org:ID"),
        ("POST", "/keys/org-a-1/destroy", 404, "/keys/org-a-1/destroy"),
        ("GET", "/keys/org-a-1/disable", 404, "GET"),
        ("DELETE", "/keys", 404, "DELETE"),
        ("GET", "/keys/org-a-1", 404, "/keys/org-a-1"),
        ("POST", "/usage", 404, "/usage"),
        ("GET", "/", 404, "GET"),
        ("POST", "/keys/%FF/disable", 400, "UTF-8"),
        ("GET", "/sessions/short", 400, "22"),
        ("GET", "/sessions/AAAAAAAAAAAAAAAAAAAAAA", 404, "AAAAAAAAAAAAAAAAAAAAAA"),
    ] {
        let answer = asked(admin, method, target).await;
        let code = if status == 404 { "unknown_url" } else { "invalid_request" };
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {target}: {}",
            answer.text()
        );
        assert!(
            answer.text().contains(word) && answer.header("x-request-id").is_some(),
            "{target}: {}",
            answer.text()
        );
    }
    let states: Vec<_> =
        cluster.replica().keys().await.iter().map(|key| key["state"].clone()).collect();
    assert_eq!(states, ["ready"; 3], "nothing has changed");
    // A page in a browser, which may send a token without knowing it.
    let page = Request::new("POST", "/keys/org-a-1/disable")
        .bearer(TOKEN)
        .header("origin", "http://evil.example");
    let answer = ask(admin, &page).await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "origin_not_allowed"));
}

/// Starts a replica with its admin listener at `listen`, and with or without a token.
async fn alone(listen: &str, token: &str) -> (Folder, Process, SocketAddr) {
    let folder = Folder::new();
    let file = folder.write(
        "warmkey.toml",
        &format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = {listen:?}\n{token}\n[[key]]\nid = \"a/1\"\nupstream = \"openai\"\n\
             organization = \"org-a\"\nsecret = \"sk-canary\"\n"
        ),
    );
    let mut command = Command::new(WARMKEY);
    command.arg("serve").arg("--config").arg(file);
    let mut replica = Process::start("alone", command, folder.path(), "warmkey");
    let line = replica.line().await.expect("it starts");
    let port =
        line.trim_end_matches(')').rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    (folder, replica, SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))))
}

#[tokio::test]
async fn request_without_a_token_is_heard_from_this_machine_only() {
    let token = format!("admin_token = {TOKEN:?}");
    let unguarded = async |admin: SocketAddr, target: &str| -> Answer { get(admin, target).await };
    for (listen, token, expected) in [
        ("127.0.0.1:0", "", 200),
        ("0.0.0.0:0", "", 404),
        ("127.0.0.1:0", &token, 401),
        ("0.0.0.0:0", &token, 401),
    ] {
        let (_folder, _replica, admin) = alone(listen, token).await;
        assert_eq!(unguarded(admin, "/keys").await.status, expected, "{listen} {token}");
        // This is a page's own GET, by a name that the page's owner gave this machine.
        let mut page = Connection::open(admin).await;
        let rebound = b"GET /keys HTTP/1.1\r\nhost: evil.example\r\n\r\n";
        page.send_raw(rebound).await.expect("it is taken");
        let answer = within(SOON, "a head", page.head()).await.expect("an answer");
        assert_eq!(answer.status, if expected == 200 { 403 } else { expected }, "{listen} {token}");
        assert_eq!(unguarded(admin, "/readyz").await.status, 200);
        if expected == 404 {
            assert_eq!(asked(admin, "POST", "/keys/a%2F1/disable").await.code(), "unknown_url");
        } else {
            assert_eq!(
                asked(admin, "POST", "/keys/a%2F1/disable").await.json()["keys"][0]["state"],
                "disabled"
            );
        }
    }
}

#[tokio::test]
async fn page_of_a_key_shows_no_secret() {
    let cluster = guarded().start().await;
    let mut keys = cluster.replica().keys().await;
    let fingerprints: std::collections::BTreeSet<String> =
        keys.iter().map(|key| key["fingerprint"].to_string()).collect();
    assert!(
        fingerprints.len() == 3 && fingerprints.iter().all(|print| print.len() == 10),
        "{fingerprints:?}"
    );
    keys[0]["fingerprint"] = json!("");
    assert_eq!(
        keys[0],
        json!({ "id": "org-a-1", "organization": "org-a", "project": "org-a-main", "region": "us", "weight": 1, "state": "ready",
                "conditions": [], "in_flight": 0, "upstream": "openai", "fingerprint": "" })
    );
}

/// Runs `warmkey key` with these words.
async fn key(words: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(WARMKEY);
    // The folder in which the tests run may hold a configuration, which must not be read.
    command
        .arg("key")
        .args(words)
        .envs(environment.iter().copied())
        .current_dir("/")
        .kill_on_drop(true);
    let output = within(SOON, "the end of a command", command.output()).await.expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(!said.contains("canary") && !errors.contains("canary"), "{words:?}: {said}{errors}");
    (output.status.code().expect("it ends by itself"), said, errors)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The cells of a line of the table.
fn cells<'t>(table: &'t str, id: &str) -> Vec<&'t str> {
    table
        .lines()
        .find(|line| line.starts_with(id))
        .expect("a line for the key")
        .split_whitespace()
        .collect()
}

#[tokio::test]
async fn command_line_reaches_any_replica() {
    let cluster: Running = guarded().redis().replicas(2).start().await;
    let files = [cluster.replicas[0].file(), cluster.replicas[1].file()];
    let config = ["--config", path(&files[0])];
    let admin = format!("http://{}", cluster.replicas[1].admin());
    let (code, said, errors) = key(&["list", config[0], config[1]], &[]).await;
    assert_eq!((code, errors.as_str(), said.lines().count()), (0, "", 4), "{said}{errors}");
    assert_eq!(
        cells(&said, "org-b-1")[..7],
        ["org-b-1", "org-b", "org-b-main", "us", "1", "ready", "0"]
    );
    let (code, said, errors) = key(&["disable", "org-a-1", config[0], config[1]], &[]).await;
    assert_eq!((code, errors.as_str()), (0, ""), "{said}{errors}");
    assert!(
        said.starts_with("org-a-1: out of use") && cells(&said, "org-a-1 ")[5] == "disabled",
        "{said}"
    );
    cluster.all_have("org-a-1", "disabled").await;
    // Another replica answers the command, which has the token from the file.
    let (code, said, _) =
        key(&[config[0], config[1], "--admin", &admin, "drain", "org:org-b"], &[]).await;
    assert!(code == 0 && said.starts_with("org:org-b: takes no sessions"), "{said}");
    cluster.all_have("org-b-1", "disabled").await;
    let (_, said, _) = key(&["list", config[0], config[1]], &[]).await;
    assert!(said.contains("disabled (key)") && said.contains("drained (organization)"), "{said}");
    let (code, said, _) = key(&["probe", "org:org-a", config[0], config[1]], &[]).await;
    assert!(code == 0 && said.contains("org-a-2 is accepted (200)"), "{said}");
    // Without a file, the command takes the token from the environment.
    let environment = [("WARMKEY__SERVER__ADMIN_TOKEN", TOKEN)];
    for name in ["org-a-1", "org:org-b"] {
        let (code, said, errors) = key(&["enable", name, "--admin", &admin], &environment).await;
        assert_eq!(code, 0, "{said}{errors}");
    }
    for id in ["org-a-1", "org-b-1"] {
        cluster.all_have(id, "ready").await;
    }
    let nowhere = format!("http://{}", crate::world::port::free());
    for (words, code, word) in [
        (&["disable", "org-a-9", "--admin", &admin][..], 1, "org-a-9"),
        (&["list", "--admin", &nowhere], 1, "cannot be reached"),
        (&["list", "--admin", "ftp://x"], 64, "--admin"),
        (&["list", "--config", "/nowhere/at/all"], 64, "/nowhere/at/all"),
        (&["disable"], 64, "ID"),
        (&["destroy", "org-a-1"], 64, "destroy"),
        (&[], 64, "Usage"),
    ] {
        let (found, said, errors) = key(words, &environment).await;
        assert_eq!((found, said.as_str()), (code, ""), "{words:?}: {errors}");
        assert!(errors.contains(word), "{words:?}: {errors}");
    }
    let (code, _, errors) = key(&["list", "--admin", &admin], &[]).await;
    assert!(code == 1 && errors.contains("No token was given"), "{errors}");
    let (code, _, errors) = key(
        &["list", "--admin", &admin],
        &[("WARMKEY__SERVER__ADMIN_TOKEN", "token-canary-other")],
    )
    .await;
    assert!(code == 1 && errors.contains("unknown or revoked"), "{errors}");
}
