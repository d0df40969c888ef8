//! Huge pages for the heap.
//!
//! Each event of a stream touches a few dozen small things of its connection, each in a page of its own; with thousands of
//! streams their addresses fall out of the processor's cache. glibc asks for huge pages only where its environment says so before
//! the program starts.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const TUNABLES: &str = "GLIBC_TUNABLES";
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";
/// Says that it was started anew: a program with privileges of its own loses the other word.
const ANEW: &str = "WARMKEY_ANEW";

/// Starts the program anew in the same process, with huge pages, unless the environment tunes glibc already. Where that fails, or
/// the system has none to give (`/sys/kernel/mm/transparent_hugepage/enabled` is `never`), small ones will do. Whoever goes on
/// from here must take SIGPIPE: an attempt that failed leaves it deadly.
pub fn ask_for_huge() {
    let is_said = |name| env::var_os(name).is_some();
    if cfg!(not(all(target_os = "linux", target_env = "gnu"))) || is_said(TUNABLES) || is_said(ANEW) {
        return;
    }
    let (Ok(program), mut arguments) = (env::current_exe(), env::args_os()) else { return };
    let Some(name) = arguments.next() else { return };
    // Otherwise the program may be a loader, which would take the arguments for its own.
    if program.file_name() == std::path::Path::new(&name).file_name() {
        // Returns only to say why it could not.
        drop(Command::new(program).arg0(name).args(arguments).env(TUNABLES, HUGE_PAGES).env(ANEW, "1").exec());
    }
}
