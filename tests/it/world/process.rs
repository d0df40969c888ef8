//! A real process of a test: started, watched, signalled, and never outliving the test.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::world::waiting::{SOON, within};

/// The command under test.
pub const WARMKEY: &str = env!("CARGO_BIN_EXE_warmkey");

/// A folder that is removed when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("warmkey-it-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be made");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("the temporary folder can be written");
        path
    }
}

impl Drop for Folder {
    /// `WARMKEY_KEEP=1` leaves the files of a failed test, whole logs included.
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("WARMKEY_KEEP").is_some() {
            return;
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Ends with SIGKILL when dropped. If its test failed, its standard error is shown.
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: PathBuf,
    /// Bytes in the log from an earlier process of this name.
    before: usize,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `command`. If the program is missing, one clear line names the Debian `package`.
    pub fn start(name: &str, mut command: Command, folder: &Path, package: &str) -> Self {
        let log = folder.join(format!("{name}.log"));
        let sink = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the temporary folder can be written");
        let before =
            sink.metadata().map_or(0, |file| usize::try_from(file.len()).unwrap_or(usize::MAX));
        // Files that the process writes into its own folder are removed with the test's folder.
        command.current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(sink).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {name} ({error}): install the package {package}"),
        };
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let pid = child.id().expect("a process that was just started has an id");
        Self { name: name.into(), child, pid, log, before, lines }
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The next line on standard output; `None` once that is closed.
    pub async fn line(&mut self) -> Option<String> {
        within(SOON, &format!("a line of {}", self.name), self.lines.next_line())
            .await
            .expect("standard output is text")
    }

    /// Returns everything on standard error so far, with that of earlier processes of this name.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Everything on standard error of this process alone.
    pub fn said(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.before..).unwrap_or_default()).into_owned()
    }

    /// Sends `TERM`, `KILL`, `STOP`, ...
    pub async fn signal(&self, signal: &str) {
        let sent =
            Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", self.pid)).status().await;
        assert!(sent.expect("sh runs").success(), "{} takes SIG{signal}", self.name);
    }

    /// Sends SIGKILL, and returns when the process is gone.
    pub async fn kill(&mut self) {
        within(SOON, "a killed process is gone", self.child.kill())
            .await
            .expect("an own child can be killed");
    }

    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        within(limit, &format!("exit of {}", self.name), self.child.wait())
            .await
            .expect("an own child can be awaited")
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in bytes, now.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The highest resident memory in bytes so far.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Number of open files and sockets.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the process runs").count()
    }

    /// Limits the files and sockets that the running process may have open.
    pub async fn limit_descriptors(&self, limit: usize) {
        let (pid, limit) = (self.pid.to_string(), format!("--nofile={limit}"));
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status().await;
        assert!(set.expect("prlimit runs").success(), "{} takes {limit}", self.name);
    }

    /// The time of a core that the process has used so far.
    pub fn worked(&self) -> Duration {
        let line = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("it runs");
        let (_, fields) = line.rsplit_once(") ").expect("the name stands in parentheses");
        // These are `utime` and `stime`, in hundredths of a second.
        let ticks =
            fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// The number of threads, now.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid)).expect("it runs").count()
    }

    /// Whether all threads of the process are idle.
    pub fn sleeps(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the process runs");
        threads.flatten().all(|thread| {
            let line = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The process's name may hold anything, such as parentheses.
            line.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
        })
    }

    fn memory(&self, field: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("a process has resident memory");
        let kib = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        kib.expect("memory is given in KiB") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&self.name, &self.log());
        }
    }
}

/// Counts connections to a port of this machine that their other ends have not closed. Reads the
/// system's table.
pub fn connections_to(address: SocketAddr) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").expect("the system has TCP");
    let port = format!(":{:04X}", address.port());
    // The columns are number, local address, remote address, state. 01 is open, and 08 is closed
    // only by this side.
    let is_open = |line: &&str| {
        let columns: Vec<&str> = line.split_whitespace().take(4).collect();
        columns.len() == 4 && columns[2].ends_with(&port) && matches!(columns[3], "01" | "08")
    };
    table.lines().filter(is_open).count()
}

#[expect(clippy::print_stderr, reason = "a failed test shows what its processes said")]
fn show(name: &str, log: &str) {
    let from = log.len().saturating_sub(8_000);
    let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(log.len());
    eprintln!("--- {name} said\n{}---", &log[from..]);
}
