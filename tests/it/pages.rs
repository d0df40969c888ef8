//! The huge pages that a replica asks for.

use std::fs::{self, File};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::patience::{SOON, within};
use crate::process::{Folder, WARMKEY};

const TUNED: &str = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1";

fn of_process(pid: u32, what: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{what}")).expect("it runs")
}

/// Whether the signal of this number ends the process.
fn is_deadly(pid: u32, signal: u32) -> bool {
    let status = of_process(pid, "status");
    let mask = |name: &str| status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
    let taken = mask("SigCgt:").expect("a mask") | mask("SigIgn:").expect("a mask");
    taken & 1 << (signal - 1) == 0
}

/// It is started once more for them, and stays what it was to whoever started it: the same process of the same name.
#[tokio::test]
async fn a_replica_asks_for_huge_pages() {
    let cluster = Cluster::new().start().await;
    let pid = cluster.replica().process().pid();
    assert!(of_process(pid, "environ").split('\0').any(|entry| entry == TUNED));
    assert_eq!(of_process(pid, "comm").trim(), "warmkey");
    assert!(of_process(pid, "cmdline").starts_with(WARMKEY));
    assert!(!is_deadly(pid, 13) && is_deadly(pid, 14));
}

/// Its program was replaced in the moment between: it serves with small pages, and no client that leaves can end it.
#[tokio::test]
async fn a_replica_that_cannot_be_started_once_more_serves() {
    let folder = Folder::new();
    let copy = folder.path().join("warmkey");
    fs::copy(WARMKEY, &copy).expect("the temporary folder can be written");
    let program = File::open(&copy).expect("it was written");
    fs::remove_file(&copy).expect("it was written");
    let config = folder.write(
        "warmkey.toml",
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"u\"\nbase_url = \"http://127.0.0.1:1\"\n\
         [[key]]\nid = \"k\"\nupstream = \"u\"\norganization = \"o\"\nsecret = \"sk\"\n",
    );
    let mut command = Command::new("/proc/self/fd/0");
    command.arg0("warmkey (deleted)").arg("serve").arg("--config").arg(config).kill_on_drop(true);
    command.env_remove("GLIBC_TUNABLES").stdin(program).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("an open file can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let line = within(SOON, "it listens", lines.next_line()).await.expect("text");
    assert!(line.is_some_and(|line| line.starts_with("listening on ")));
    let pid = child.id().expect("it runs");
    assert!(!of_process(pid, "environ").contains(TUNED));
    assert!(!is_deadly(pid, 13));
}
