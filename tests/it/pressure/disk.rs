//! Fills a disk: a small file system of its own if the system allows it, and otherwise a limit of
//! the size of files. The replica's log and ledger are on that disk.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::process::Folder;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const LINES_DROPPED: &str = "warmkey_log_lines_dropped_total";
const ROWS_DROPPED: &str = "warmkey_ledger_dropped_total";
/// Makes a file system of 64 MiB in the folder `full`, which only the process and its children see.
const MOUNTED: &str = r#"if [ -z "$INSIDE" ]; then
export INSIDE=1
exec unshare -m sh -c 'mkdir full; mount -t tmpfs -o size=64m none full; exec 2>>full/log; exec "$0" "$@"' "$0" "$@"
fi"#;
/// The limit is in blocks of 512 bytes, so the log is full after 512 KiB.
const LIMITED: &str = "mkdir full; ulimit -f 1024; trap '' XFSZ; exec 2>>full/log";

/// How a disk fills here.
pub struct Disk {
    folder: Folder,
    is_mounted: bool,
}

impl Disk {
    /// A file system of its own needs the right to mount one, and to look into it from outside.
    pub async fn choose() -> Self {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let is_mounted = command.status().await.is_ok_and(|status| status.success());
        Self { folder: Folder::new(), is_mounted }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A replica whose log and ledger are on the disk.
    pub async fn cluster(&self) -> Running {
        let shell = if self.is_mounted { MOUNTED } else { LIMITED };
        Cluster::new()
            .keys(siblings("org-a", 2))
            .ledger("url = \"sqlite:full/ledger.db\"")
            .shell(shell)
            .start()
            .await
    }

    /// The folder on the disk, seen from here.
    fn inside(&self, cluster: &Running) -> PathBuf {
        let folder = cluster.replica().file().with_file_name("full");
        match self.is_mounted {
            true => {
                let root = format!("/proc/{}/root", cluster.replica().process().pid());
                PathBuf::from(format!("{root}{}", folder.display()))
            }
            false => folder,
        }
    }

    /// Fills the disk, and returns how.
    pub fn fill(&self, cluster: &Running) -> &'static str {
        if !self.is_mounted {
            return "the size of files is limited";
        }
        let filler = self.inside(cluster).join("filler");
        // The part that does not fit is not written, which is the purpose.
        let _ = std::fs::write(&filler, vec![0; 80 << 20]);
        "a file system of 64 MiB is full"
    }

    /// Makes room again.
    pub fn empty(&self, cluster: &Running) {
        let inside = self.inside(cluster);
        let file = if self.is_mounted { inside.join("filler") } else { inside.join("log") };
        std::fs::write(file, "").expect("the file is there");
    }

    /// Checks that the log and the ledger are written again.
    pub async fn works(&self, cluster: &Running) {
        let log = self.inside(cluster).join("log");
        let (lines, rows) = (length(&log), turns(cluster).await);
        eventually(SOON, "the log and the ledger go on", async || {
            let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            // If only the size of files is limited, the ledger may have reached the limit for good.
            let has_rows = !self.is_mounted || turns(cluster).await > rows;
            (length(&log) > lines && has_rows).then_some(())
        })
        .await;
        // On a full disk, log lines are lost. Rows wait for space, and none is lost.
        let metrics = cluster.replica().metrics().await;
        assert!(metrics.has(LINES_DROPPED) && metrics.has(ROWS_DROPPED));
        assert!(!self.is_mounted || metrics.get(LINES_DROPPED) > 0.0, "the disk was not full");
        assert_eq!(metrics.get(ROWS_DROPPED), 0.0);
    }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |about| about.len())
}

async fn turns(cluster: &Running) -> u64 {
    let usage = cluster.replica().probe("/usage").await.json();
    usage["total"]["turns"].as_u64().unwrap_or(0)
}
