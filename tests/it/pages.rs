//! The huge pages that a replica asks for.

use std::fs;

use crate::cluster::Cluster;

/// It is started once more for them, and stays what it was to whoever started it: the same process of the same name.
#[tokio::test]
async fn a_replica_asks_for_huge_pages() {
    let cluster = Cluster::new().start().await;
    let pid = cluster.replica().process().pid();
    let of_process = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).expect("it runs");
    assert!(of_process("environ").split('\0').any(|entry| entry == "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"));
    assert_eq!(of_process("comm").trim(), "warmkey");
    assert!(of_process("cmdline").starts_with(crate::process::WARMKEY));
}
