//! Lists the names that users rely on: options, commands, metrics, and the fields of a turn's log
//! line. A name may be added to a list. No name is removed or changed.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::process::Command;

use crate::world::cluster::{ALICE, Cluster};
use crate::world::process::{Folder, WARMKEY};
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::{Request, ask};

const OPTIONS: &str = include_str!("contract/options.toml");
const METRICS: &str = include_str!("contract/metrics.txt");
/// The commands of `warmkey`, each with those below it.
const COMMANDS: [&str; 20] = [
    "serve",
    "demo",
    "simulate",
    "check",
    "key",
    "key list",
    "key disable",
    "key enable",
    "key drain",
    "key probe",
    "probe",
    "probe live",
    "probe ready",
    "probe session",
    "token",
    "token add",
    "token list",
    "token revoke",
    "usage",
    "session",
];
/// The fields that every turn's log line has if its client, session, key and usage are known.
const FIELDS: [&str; 13] = [
    "turn",
    "transport",
    "client",
    "session",
    "key",
    "organization",
    "binding",
    "status",
    "outcome",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "seconds",
];

/// Returns what `warmkey` prints with these arguments, if it exits with 0.
async fn said(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(WARMKEY);
    command.args(arguments).kill_on_drop(true);
    let output = within(SOON, "the command", command.output()).await.expect("warmkey can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn option_keeps_its_name_and_unknown_ones_are_refused() {
    let folder = Folder::new();
    let file = folder.write("options.toml", OPTIONS);
    said(&["check", "--config", &file.to_string_lossy()]).await.expect("each option is known");
    let file = folder.write("typo.toml", &OPTIONS.replace("drain_delay", "drain_dealy"));
    let refused = said(&["check", "--config", &file.to_string_lossy()]).await.unwrap_err();
    assert!(refused.contains("drain_dealy"), "{refused}");
}

#[tokio::test]
async fn command_keeps_its_name() {
    for command in COMMANDS {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = said(&arguments).await;
        assert!(help.as_ref().is_ok_and(|help| help.contains("Usage")), "{command}: {help:?}");
    }
    assert!(said(&["keys", "--help"]).await.is_err(), "an unknown command is refused");
    // If the list lacked a command, the command could be renamed unnoticed.
    let mut found = Vec::new();
    for group in ["", "key", "probe", "token"] {
        let arguments: Vec<_> = group.split_whitespace().chain(["--help"]).collect();
        let help = said(&arguments).await.expect("its help");
        let listed = help.split("Commands:\n").nth(1).expect("it has commands");
        let listed = listed.lines().take_while(|line| !line.is_empty());
        let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.filter_map(|line| line.split_whitespace().next());
        found.extend(names.filter(|name| *name != "help").map(|name| match group {
            "" => name.to_owned(),
            group => format!("{group} {name}"),
        }));
    }
    assert_eq!(BTreeSet::from_iter(found.iter().map(String::as_str)), BTreeSet::from(COMMANDS));
}

#[tokio::test]
async fn metric_and_field_of_a_turn_keep_their_names() {
    let cluster = Cluster::new().keys(siblings("org-a", 1)).start().await;
    let body = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, body)).await.status, 200);
    let line = eventually(SOON, "the turn is logged", async || {
        let log = cluster.logs();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == "turn")
    })
    .await;
    for field in FIELDS {
        assert!(!line[field].is_null(), "{field} is not in {line}");
    }

    let page = String::from_utf8(cluster.replica().probe("/metrics").await.body).unwrap();
    let shown: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .map(|name| {
            ["_bucket", "_count", "_sum"]
                .iter()
                .fold(name, |name, end| name.strip_suffix(end).unwrap_or(name))
        })
        .collect();
    for name in METRICS.lines() {
        assert!(shown.contains(name), "{name} is not in\n{page}");
    }
}
