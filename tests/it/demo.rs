//! The demo as a newcomer runs it.

use std::time::Duration;

use tokio::process::Command;

use crate::world::process::{Folder, Process, WARMKEY};
use crate::world::waiting::{SOON, within};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn demo_shows_each_way_of_routing_and_passes_within_a_minute() {
    let folder = Folder::new();
    let mut command = Command::new(WARMKEY);
    command.arg("demo");
    let mut demo = Process::start("demo", command, folder.path(), "warmkey");
    let mut lines = Vec::new();
    within(MINUTE, "the demo ends", async {
        while let Some(line) = demo.line().await {
            lines.push(line);
        }
    })
    .await;
    let shown = lines.join("\n");
    assert!(
        demo.exit(SOON).await.success() && lines.last().is_some_and(|line| line == "PASS"),
        "{shown}"
    );
    let rows: Vec<&str> = lines
        .iter()
        .filter(|line| line.ends_with(" %"))
        .filter_map(|line| line.get(..23))
        .collect();
    let rows: Vec<&str> = rows.into_iter().map(str::trim_end).collect();
    assert_eq!(
        rows,
        [
            "single key",
            "round robin",
            "user sticky",
            "warmkey http",
            "warmkey websocket",
            "warmkey chat",
            "warmkey chat translated",
            "warmkey two tiers"
        ],
        "{shown}"
    );
    // The sessions are as long as those of a working day, so nearly all of their input is the
    // prefix that they read.
    for name in [
        "single key",
        "warmkey http",
        "warmkey websocket",
        "warmkey chat  ",
        "warmkey chat translated",
        "warmkey two tiers",
    ] {
        let share = lines.iter().filter(|line| line.ends_with(" %")).find_map(|line| {
            let (share, _) = line.strip_prefix(name)?.trim_start().split_once(" %")?;
            share.parse::<f64>().ok()
        });
        assert!(share.is_some_and(|share| share > 90.0), "{name}: {share:?} in\n{shown}");
    }
}
