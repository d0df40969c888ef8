//! The demo, as whoever tries Warmkey meets it first.

use tokio::process::Command;
use tokio::time::{Duration, Instant};

use crate::world::process::{Folder, Process, WARMKEY};
use crate::world::waiting::SOON;

#[tokio::test]
async fn the_demo_shows_each_way_of_routing_and_passes_within_a_minute() {
    let folder = Folder::new();
    let mut command = Command::new(WARMKEY);
    command.arg("demo");
    let began = Instant::now();
    let mut demo = Process::start("demo", command, folder.path(), "warmkey");
    let mut lines = Vec::new();
    while let Some(line) = demo.line().await {
        lines.push(line);
    }
    let shown = lines.join("\n");
    assert!(
        demo.exit(SOON).await.success() && lines.last().is_some_and(|line| line == "PASS"),
        "{shown}"
    );
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let rows: Vec<&str> = lines
        .iter()
        .filter(|line| line.ends_with(" %"))
        .filter_map(|line| line.get(..17))
        .collect();
    let rows: Vec<&str> = rows.into_iter().map(str::trim_end).collect();
    assert_eq!(
        rows,
        ["single key", "round robin", "user sticky", "warmkey http", "warmkey websocket"],
        "{shown}"
    );
}
