//! With a bad configuration, the start ends with status 64 and one line that names the fault, and
//! no secret.

use std::time::Duration;

use tokio::process::Command;

use crate::world::port;
use crate::world::process::{Folder, Process, WARMKEY};
use crate::world::redis::Redis;
use crate::world::trap::Trap;
use crate::world::waiting::{SOON, eventually, ms, within};

const GOOD: &str = r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
secret = "secret-canary-0123456789abcdefghijklmnopqrstuvwxyz"

[store]
url = "memory:"

[[upstream]]
name = "openai"
base_url = "http://127.0.0.1:9/v1"

[[key]]
id = "a-1"
upstream = "openai"
organization = "org-a"
secret = "sk-canary-1"

[[client]]
id = "alice"
token = "token-canary-alice"
"#;

const KEY: &str = "[[key]]\nid = \"a-1\"\nupstream = \"openai\"\norganization = \"org-a\"\nsecret = \"sk-canary-1\"\n";
const CLIENT: &str = "[[client]]\nid = \"alice\"\ntoken = \"token-canary-alice\"\n";
const LISTEN: &str = "listen = \"127.0.0.1:0\"\nadmin_listen";
const SECRET: &str = "secret = \"secret-canary-0123456789abcdefghijklmnopqrstuvwxyz\"\n";
const UPSTREAM: &str = "[[upstream]]\nname = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n";

/// The faults: a part of the good file, its replacement, and a word that the error line must hold.
const BAD: &[(&str, &str, &str)] = &[
    ("[server]", "[server]\nlisten_adress = \"x\"", "listen_adress"),
    ("[server]", "[servers]\na = 1\n[server]", "servers"),
    (
        KEY,
        "[[key]]\nid = \"a-1\"\nupstream = \"openai\"\norganization = \"org-a\"\nsecret = \"sk-canary-1\"\nwieght = 2\n",
        "wieght",
    ),
    ("[store]", "[store]\nretries = 3", "retries"),
    ("[store]", "[binding]\nwiat = \"5s\"\n[store]", "wiat"),
    ("[store]", "[failover]\nambigous = true\n[store]", "ambigous"),
    (KEY, "", "key"),
    (SECRET, "secret = \"canary-short\"\n", "server.secret"),
    (SECRET, "secret = { env = \"WARMKEY_IT_IS_NOT_SET\" }\n", "WARMKEY_IT_IS_NOT_SET"),
    (SECRET, "secret = { file = \"/nowhere/at/all\" }\n", "/nowhere/at/all"),
    (SECRET, "secret = { enviroment = \"X\" }\n", "secret"),
    ("secret = \"sk-canary-1\"", "secret = \"\"", "secret"),
    (
        "secret = \"sk-canary-1\"",
        "secret = { env = \"WARMKEY_IT_IS_NOT_SET\" }",
        "WARMKEY_IT_IS_NOT_SET",
    ),
    ("upstream = \"openai\"", "upstream = \"elsewhere\"", "elsewhere"),
    (
        "listen = \"127.0.0.1:0\"\nadmin_listen",
        "open = true\nlisten = \"0.0.0.0:0\"\nadmin_listen",
        "open",
    ),
    (LISTEN, "listen = \"somewhere\"\nadmin_listen", "listen"),
    (LISTEN, "drain = \"soon\"\nlisten = \"127.0.0.1:0\"\nadmin_listen", "soon"),
    (LISTEN, "drain = 5\nlisten = \"127.0.0.1:0\"\nadmin_listen", "drain"),
    (LISTEN, "max_body = \"64 megabytes\"\nlisten = \"127.0.0.1:0\"\nadmin_listen", "64 megabytes"),
    ("\"memory:\"", "\"mysql://x\"", "store.url"),
    (
        "\"memory:\"",
        "\"redis://user:canary@127.0.0.1:1\"\n[ledger]\nurl = \"sqlite:x.db\"",
        "ledger",
    ),
    ("base_url = \"http://127.0.0.1:9/v1\"", "base_url = \"ftp://x\"", "base_url"),
    (
        "base_url = \"http://127.0.0.1:9/v1\"",
        "base_url = \"http://127.0.0.1:9/v1\"\nconnect_timeout = \"1.5s\"",
        "1.5s",
    ),
    (
        UPSTREAM,
        "[[upstream]]\nname = \"openai\"\nbase_url = \"http://h\"\nspeaks = [\"chat\"]\n",
        "speaks",
    ),
    (
        UPSTREAM,
        "[[upstream]]\nname = \"openai\"\nbase_url = \"http://h\"\nkind = \"gateway\"\n",
        "hop.secret",
    ),
    (
        "token = \"token-canary-alice\"",
        "token = \"token-canary-alice\"\ntoken_sha256 = \"canary\"",
        "token",
    ),
    (CLIENT, "[[client]]\ntoken_file = \"/nowhere/at/all\"\n", "/nowhere/at/all"),
    ("[server]", "[server", "line"),
    ("secret = \"sk-canary-1\"", "secret = \"sk-canary-1", "line 18, column"),
    ("secret = \"sk-canary-1\"", "secret = sk-canary-1", "line 18, column"),
    ("secret = \"sk-canary-1\"", "secret = [\"sk-canary-1\"]", "key[0].secret"),
];

async fn run(command: &str, text: &str) -> (Option<i32>, String, String) {
    let folder = Folder::new();
    let file = folder.write("warmkey.toml", text);
    let mut child = Command::new(WARMKEY);
    child.arg(command).arg("--config").arg(file).kill_on_drop(true);
    let output = within(Duration::from_secs(30), "the end of a bad start", child.output())
        .await
        .expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn expect(what: &str, word: &str, (code, _, errors): (Option<i32>, String, String)) {
    assert_eq!(code, Some(64), "{what}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{what}: one line: {errors}");
    assert!(errors.contains(word), "{what}: names {word}: {errors}");
    assert!(!errors.contains("canary"), "{what}: no secret: {errors}");
}

#[tokio::test]
async fn bad_configuration_is_refused_with_one_line() {
    for (part, instead, word) in BAD {
        assert!(GOOD.contains(part), "{part}");
        expect(instead, word, run("serve", &GOOD.replacen(part, instead, 1)).await);
    }
}

#[tokio::test]
async fn keys_and_upstreams_of_one_name_are_refused() {
    for (text, word) in [
        (format!("{GOOD}{}", KEY.replace("sk-canary-1", "sk-canary-2")), "a-1"),
        (format!("{GOOD}{UPSTREAM}"), "openai"),
    ] {
        expect(word, word, run("serve", &text).await);
    }
}

#[tokio::test]
async fn missing_file_is_named() {
    let mut child = Command::new(WARMKEY);
    child.args(["serve", "--config", "/nowhere/warmkey.toml"]).kill_on_drop(true);
    let output = within(Duration::from_secs(30), "the end", child.output()).await.expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    expect("no file", "/nowhere/warmkey.toml", (output.status.code(), String::new(), errors));
}

#[tokio::test]
async fn check_shows_what_would_run() {
    let (code, said, errors) = run("check", GOOD).await;
    assert_eq!(code, Some(0), "{errors}");
    assert!(said.contains("Keys: 1, of these organizations: org-a.\n"), "in plain words: {said}");
    assert!(!said.contains("canary") && !errors.contains("canary"), "{said}{errors}");
    let (code, _, errors) = run("check", &GOOD.replace(KEY, "")).await;
    assert_eq!((code, errors.lines().count()), (Some(64), 1), "{errors}");
}

#[tokio::test]
async fn check_reaches_the_store() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    for _ in 0..2 {
        let (code, _, errors) = run("check", &GOOD.replace("memory:", &redis.url())).await;
        assert_eq!(code, Some(0), "{errors}");
    }
    let is_empty = async || (redis.ask::<u64>(&["DBSIZE"]).await == 0).then_some(());
    eventually(ms(5_000), "a check leaves nothing behind", is_empty).await;
    let nowhere = format!("redis://user:canary@{}", port::free());
    expect("no Redis there", "store.url", run("check", &GOOD.replace("memory:", &nowhere)).await);
    // The kernel accepts the connection, and no server ever answers on it.
    let url = format!("rediss://user:canary@{}", Trap::start().await.address());
    expect("no server answers", "TLS", run("check", &GOOD.replace("memory:", &url)).await);
}

/// Redis greets, and then refuses a command that the gateway needs. A Redis before version 7
/// refuses `SET NX GET`, and any Redis refuses SET to a user without that right.
#[tokio::test]
async fn check_tries_what_serving_needs() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    for (refused, word) in [
        ("-set", "Redis 7"),
        ("-pttl", "PTTL"),
        ("-@scripting", "EVAL"),
        ("-eval", "EVAL"),
        ("-hset", "HSET"),
        ("-rpush", "RPUSH"),
        ("-lrange", "LRANGE"),
        ("-scan", "SCAN"),
        ("resetkeys", "SET NX GET"),
    ] {
        let rules = ["ACL", "SETUSER", "gateway", "reset", "on", ">canary", "~*", "+@all", refused];
        assert_eq!(redis.ask::<String>(&rules).await, "OK");
        let url = redis.url().replace("redis://", "redis://gateway:canary@");
        expect(refused, word, run("check", &GOOD.replace("memory:", &url)).await);
    }
    let url = redis.url().replace("redis://", "redis://gateway:canary-2@");
    expect("another password", "password", run("check", &GOOD.replace("memory:", &url)).await);
}

/// Runs `check` with the configuration of `folder` and the environment.
async fn checked(
    folder: &Folder,
    words: &[&str],
    environment: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let mut child = Command::new(WARMKEY);
    child
        .arg("check")
        .args(words)
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .kill_on_drop(true);
    let output = within(Duration::from_secs(30), "the end", child.output()).await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A variable overrides the file and is parsed like its option. An error names the option.
#[tokio::test]
async fn option_may_come_from_the_environment() {
    let folder = Folder::new();
    folder.write("good.toml", GOOD);
    folder.write(
        "nameless.toml",
        &GOOD
            .replace(SECRET, "")
            .replace("sk-canary-1", "{E}")
            .replace("\"{E}\"", "{ env = \"THE_KEY\" }"),
    );
    for (file, environment, word) in [
        (
            "good.toml",
            &[("WARMKEY__SERVER__SECRET", "canary-short")][..],
            "server.secret: has 12 bytes",
        ),
        ("good.toml", &[("WARMKEY__SERVER__LISTEN_ADRESS", "canary")], "listen_adress"),
        ("good.toml", &[("WARMKEY__SERVERS__LISTEN", "canary")], "servers"),
        ("good.toml", &[("WARMKEY__SERVER__LISTEN", "canary")], "server.listen"),
        (
            "good.toml",
            &[("WARMKEY__SERVER__OPEN", "true"), ("WARMKEY__SERVER__LISTEN", "0.0.0.0:0")],
            "server.open",
        ),
        ("good.toml", &[("WARMKEY__SERVER__DRAIN", "5")], "server.drain"),
        (
            "good.toml",
            &[("WARMKEY__BINDING__MEMORY", "0")],
            "binding.memory: must be more than nothing",
        ),
        ("good.toml", &[("WARMKEY__BINDING__MEMORY", "canary")], "binding.memory"),
        (
            "good.toml",
            &[("WARMKEY__STORE__TIMEOUT", "0s")],
            "store.timeout: must be longer than nothing",
        ),
        (
            "good.toml",
            &[("WARMKEY__HOP__SECRET", "")],
            "hop.secret: the secret in the file is empty",
        ),
        // A secret without a source has a variable of its own. If the file names a variable for a
        // secret, that one is read.
        (
            "nameless.toml",
            &[("THE_KEY", "sk-canary"), ("WARMKEY_SECRET", "canary-short")],
            "server.secret: has 12 bytes",
        ),
        (
            "nameless.toml",
            &[("THE_KEY", "")],
            "key a-1: secret: the secret in environment variable THE_KEY is empty",
        ),
        ("nameless.toml", &[], "key a-1: secret: environment variable THE_KEY is not set"),
    ] {
        expect(word, word, checked(&folder, &["--config", file], environment).await);
    }
    let long = "canary-0123456789abcdefghijklmnopqrstuvwxyz";
    for (file, environment) in [
        ("good.toml", &[("WARMKEY_SECRET", "canary-short"), ("WARMKEY__BINDING__MEMORY", "7")][..]),
        (
            "good.toml",
            &[("WARMKEY__SERVER__OPEN", "true"), ("WARMKEY__FAILOVER__AMBIGUOUS", "true")],
        ),
        ("nameless.toml", &[("THE_KEY", "sk-canary"), ("WARMKEY_SECRET", long)]),
    ] {
        let (code, said, errors) = checked(&folder, &["--config", file], environment).await;
        assert_eq!((code, errors.as_str()), (Some(0), ""), "{environment:?}");
        assert_eq!(
            said.contains("Serves anybody"),
            environment.contains(&("WARMKEY__SERVER__OPEN", "true")),
            "{said}"
        );
    }
}

/// Without `--config`, the file with the usual name is read if it exists.
#[tokio::test]
async fn file_of_the_usual_name_is_read() {
    let folder = Folder::new();
    expect("no file at all", "key: there is none", checked(&folder, &[], &[]).await);
    folder.write("warmkey.toml", &GOOD.replace("[server]", "[server]\nping = \"0s\""));
    folder.write("other.toml", &GOOD.replace("a-1", "a-2"));
    expect("the usual file", "server.ping", checked(&folder, &[], &[]).await);
    let (code, said, errors) = checked(&folder, &["--config", "other.toml"], &[]).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "another is named: {said}");
}

#[tokio::test]
async fn command_line_ends_with_a_code_of_its_own() {
    for (words, code) in [
        (&["--help"][..], 0),
        (&["-V"], 0),
        (&["help", "serve"], 0),
        (&["serve", "--help"], 0),
        (&[], 64),
        (&["sreve"], 64),
        (&["serve", "--cofnig", "x"], 64),
        (&["simulate", "--listen", "nowhere"], 64),
    ] {
        let mut child = Command::new(WARMKEY);
        let output = within(
            Duration::from_secs(30),
            "the end",
            child.args(words).kill_on_drop(true).output(),
        )
        .await
        .expect("it runs");
        let (said, errors) = (!output.stdout.is_empty(), !output.stderr.is_empty());
        assert_eq!(
            (output.status.code(), said, errors),
            (Some(code), code == 0, code != 0),
            "{words:?}"
        );
    }
}

#[tokio::test]
async fn hangup_ends_nothing() {
    let folder = Folder::new();
    let file =
        folder.write("warmkey.toml", &GOOD.replace("[server]", "[server]\ndrain_delay = \"0s\""));
    let mut command = Command::new(WARMKEY);
    command.arg("serve").arg("--config").arg(file).env("WARMKEY__TELEMETRY__LOG", "text");
    let mut replica = Process::start("replica", command, folder.path(), "warmkey");
    assert!(replica.line().await.is_some_and(|line| line.starts_with("listening on ")));
    for times in 1..3 {
        replica.signal("HUP").await;
        let answers =
            async || (replica.log().matches("has not changed").count() == times).then_some(());
        eventually(SOON, "a line in the log", answers).await;
    }
    assert!(
        replica.is_running() && !replica.log().contains('{'),
        "text, as was asked for: {}",
        replica.log()
    );
    replica.signal("TERM").await;
    assert_eq!(replica.exit(SOON).await.code(), Some(0));
}
