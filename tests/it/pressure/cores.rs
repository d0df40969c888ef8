//! No core dump holds a secret: a process that aborts leaves no dump, even if the system allows
//! core dumps.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::process::Command;

use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, BOB, Cluster, Running, SECRET};
use crate::world::codex::Codex;
use crate::world::port;
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::socket::{plain, session};
use crate::world::waiting::{SOON, within};
use crate::world::wire::{Request, ask};

const ADMIN: &str = "admin-canary-0123456789abcdef0123456789";
const HOP: &str = "hop-canary-0123456789abcdefghijklmnopqrstuvwxyz";
const REDIS: &str = "redis-canary-0123456789";
const POSTGRES: &str = "postgres-canary-0123456789";
const PROXY: &str = "proxy-canary-0123456789";
const CAROL: &str = "token-canary-carol-in-a-file";
const KEY: &str = "sk-canary-org-a-1";
const MOUNTED: &str = "sk-canary-mounted-as-a-file";
const STRANGER: &str = "sk-canary-of-a-stranger";
const BY_HTTP: &str = "http-canary-of-a-prompt";
const BY_WEBSOCKET: &str = "websocket-canary-of-a-prompt";
const BY_CHAT: &str = "chat-canary-of-a-prompt";
const CACHE_KEY: &str = "cache-key-canary";
const TOOL: &str = "tool-canary-in-an-output";
const OPERATED: &str = "operated-canary-of-a-stranger";

/// The 18 values that no core dump may hold, each with its name. One is a certificate's key, and
/// one a session's id.
fn canaries(session: &str, key: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let texts = [
        ("a client's token", ALICE),
        ("another client's token", BOB),
        ("a token from a file", CAROL),
        ("an upstream key", KEY),
        ("an upstream key from a file", MOUNTED),
        ("the operators' token", ADMIN),
        ("the gateway's secret", SECRET),
        ("the hop's secret", HOP),
        ("the store's password", REDIS),
        ("the ledger's password", POSTGRES),
        ("the proxy's password", PROXY),
        ("a stranger's token", STRANGER),
        ("a prompt over HTTP", BY_HTTP),
        ("a prompt on a WebSocket", BY_WEBSOCKET),
        ("a prompt in chat", BY_CHAT),
        ("a cache key", CACHE_KEY),
        ("a tool's output", TOOL),
        ("a stranger's word to the admin listener", OPERATED),
        ("a session's raw id", session),
    ];
    let texts = texts.into_iter().map(|(name, text)| (name, text.as_bytes().to_vec()));
    texts.chain([("a certificate's key", key.to_vec())]).collect()
}

/// Whether the bytes hold the canary, plain or in base64.
fn holds(bytes: &[u8], canary: &[u8]) -> bool {
    let encoded = STANDARD.encode(canary);
    let middle = &encoded.as_bytes()[..encoded.len() - 4];
    memchr::memmem::find(bytes, canary).is_some() || memchr::memmem::find(bytes, middle).is_some()
}

/// A replica with every kind of secret. The first one is reached without TLS.
async fn replica(folder: &Folder, redis: &Redis, certificates: Option<&Certificates>) -> Running {
    let key = folder.write("key", MOUNTED);
    let tokens = folder.write("tokens", &format!("carol {CAROL}\n"));
    let nowhere = port::free();
    let more = format!(
        "[hop]\nsecret = {HOP:?}\n\
         [[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n\
         [[client]]\nid = \"bob\"\ntoken = {BOB:?}\n\
         [[client]]\ntoken_file = {tokens:?}\n\
         [[upstream]]\nname = \"other\"\nbase_url = \"http://{nowhere}/v1\"\n\
         proxy = \"http://u:{PROXY}@{nowhere}\"\n\
         [[key]]\nid = \"mounted\"\nupstream = \"other\"\norganization = \"org-b\"\nweight = 0\n\
         secret = {{ file = {key:?} }}\n"
    );
    let cluster = Cluster::new()
        .store_at(&redis.url().replace("redis://", &format!("redis://gateway:{REDIS}@")))
        .server("admin_token", &format!("{ADMIN:?}"))
        .ledger(&format!("url = \"postgres://u:{POSTGRES}@{nowhere}/d\""))
        .clients(&more)
        .shell("ulimit -c unlimited");
    let cluster = match certificates {
        None => cluster,
        Some(made) => {
            let (cert, key) = (made.path("server.pem"), made.path("server.key"));
            let pair = format!("{{ cert_file = {cert:?}, key_file = {key:?} }}");
            cluster.server("tls", &pair)
        }
    };
    cluster.start().await
}

/// Returns the folder of the configuration, and the folder where the system writes core dumps.
fn places(cluster: &Running) -> Vec<PathBuf> {
    let own = cluster.replica().file().parent().expect("it is in a folder").to_owned();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let system = pattern.starts_with('/').then(|| Path::new(pattern.trim()).with_file_name(""));
    [Some(own), system].into_iter().flatten().collect()
}

/// Returns the files that appeared after `since`, except those that the test itself has written.
fn new_files(cluster: &Running, since: SystemTime) -> Vec<(PathBuf, Vec<u8>)> {
    let files = places(cluster)
        .into_iter()
        .flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten());
    let new = files.filter(|file| {
        let metadata = file.metadata().ok();
        metadata
            .is_some_and(|about| about.is_file() && about.modified().is_ok_and(|at| at >= since))
    });
    new.map(|file| (file.path(), std::fs::read(file.path()).unwrap_or_default())).collect()
}

/// Returns the names of the canaries that are in the process's memory now. `None`: the system does
/// not let this user read the memory, which protects it as well.
fn in_memory(pid: u32, canaries: &[(&'static str, Vec<u8>)]) -> Option<Vec<&'static str>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-'))?;
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap_or(0));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0).min(1 << 28)];
        let is_read = memory.seek(SeekFrom::Start(from)).is_ok() && memory.read(&mut bytes).is_ok();
        if is_read {
            found.extend(
                canaries.iter().filter(|(_, one)| holds(&bytes, one)).map(|(name, _)| *name),
            );
        }
    }
    found.sort_unstable();
    found.dedup();
    Some(found)
}

/// Aborts the replica, and searches all files that are left.
async fn aborts(mut cluster: Running, canaries: &[(&'static str, Vec<u8>)]) -> usize {
    let pid = cluster.replica().process().pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process runs");
    let line = limits.lines().find(|line| line.starts_with("Max core file size"));
    let line = line.expect("the system limits cores");
    let numbers: Vec<_> = line.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{line}");
    // A core dump at this moment would hold secrets.
    let found = in_memory(pid, canaries).map_or(canaries.len(), |found| found.len());
    let since = SystemTime::now();
    cluster.replica().process().signal("ABRT").await;
    let status = cluster.replicas[0].exit(SOON).await;
    assert!(!status.core_dumped(), "{status}");
    for (file, bytes) in new_files(&cluster, since) {
        let is_core = file.file_name().is_some_and(|name| name.to_string_lossy().contains("core"));
        assert!(!is_core, "{}", file.display());
        for (name, canary) in canaries {
            assert!(!holds(&bytes, canary), "{name} in {}", file.display());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_of_a_replica_holds_no_secret() {
    let folder = Folder::new();
    let certificates = Certificates::make(folder.path(), "tls").await;
    let pem = std::fs::read_to_string(certificates.path("server.key")).expect("it was made");
    let lines: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
    // The private number of a P-256 key in PKCS#8.
    let der = STANDARD.decode(lines).expect("PEM is base64");
    let redis = Redis::start(folder.path()).await;
    let password = format!(">{REDIS}");
    redis.run(&["ACL", "SETUSER", "gateway", "on", &password, "~*", "&*", "+@all"]).await;
    let cluster = replica(&folder, &redis, None).await;
    cluster.replica().shows("warmkey_store_up", 1.0).await;
    let address = cluster.address();
    let mut codex = Codex::new(address, ALICE);
    codex.turn(BY_HTTP).await.served();
    let canaries = canaries(&codex.session, &der[36..68]);
    assert!(canaries.len() >= 18);
    let output = format!(
        r#"{{"model":"gpt-5.4","prompt_cache_key":{CACHE_KEY:?},"stream":true,"input":[{{"type":"function_call","call_id":"c","name":"f","arguments":"{{}}"}},{{"type":"function_call_output","call_id":"c","output":{TOOL:?}}}]}}"#
    );
    for (token, expected) in [(BOB, 200), (CAROL, 200), (STRANGER, 401)] {
        let answer = ask(address, &Request::turn(token, output.clone())).await;
        assert_eq!(answer.status, expected, "{}", answer.text());
    }
    let hop = Request::turn(ALICE, output.clone()).header("x-warmkey-hop", HOP);
    assert_eq!(ask(address, &hop.header("yai-sticky-session", "s")).await.status, 200);
    let chat = format!(
        r#"{{"model":"gpt-5.4","messages":[{{"role":"user","content":{BY_CHAT:?}}}],"stream":true}}"#
    );
    let chat = Request::turn(ALICE, chat).target("/chat/completions");
    assert_eq!(ask(address, &chat).await.status, 200);
    let mut socket = session(address, ALICE, "s").await;
    socket.send(&plain(BY_WEBSOCKET)).await;
    socket.event(&["response.completed"]).await;
    let admin = cluster.replica().admin();
    for (token, expected) in [(ADMIN, 200), (OPERATED, 401)] {
        assert_eq!(ask(admin, &Request::new("GET", "/keys").bearer(token)).await.status, expected);
    }
    let found = aborts(cluster, &canaries).await;
    assert!(found >= 4, "a core would hold secrets: {found} of {}", canaries.len());
    // The same holds with TLS.
    let found = aborts(replica(&folder, &redis, Some(&certificates)).await, &canaries).await;
    assert!(found >= 4, "a core would hold secrets: {found} of {}", canaries.len());
}

/// The search finds a core dump if the system writes one. This shows that the test above can fail.
#[tokio::test]
async fn core_of_an_unprotected_process_is_found() {
    let cluster = Cluster::new().start().await;
    let folder = cluster.replica().file().parent().unwrap().to_owned();
    // The times of files are some milliseconds behind.
    let since = SystemTime::now() - Duration::from_millis(100);
    let script = "ulimit -c unlimited; exec sh -c 'kill -ABRT $$' \"$0\"";
    let mut child = Command::new("sh");
    child.args(["-c", script, BY_HTTP]).current_dir(folder).kill_on_drop(true);
    let status = within(SOON, "its end", child.status()).await.expect("it runs");
    if status.core_dumped() {
        let files = new_files(&cluster, since);
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let is_found = files.iter().any(|(_, bytes)| holds(bytes, BY_HTTP.as_bytes()));
        assert!(is_found || pattern.starts_with('|'), "{pattern} and {} files", files.len());
    }
}
