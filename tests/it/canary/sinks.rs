//! Collects everything that Warmkey writes or answers, and knows how a canary would look in it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use warmkey::database::read::By;

use crate::ledger::command;
use crate::world::admin::asked;
use crate::world::cluster::Running;
use crate::world::codex::Codex;
use crate::world::collector::Collector;

/// Returns the forms in which a canary would be noticed: plain, its first 8 characters, in a URL,
/// in JSON, in base64. The base64 may begin anywhere in a longer text.
pub fn forms(canary: &str) -> Vec<String> {
    let first: String = canary.chars().take(8).collect();
    let in_url: String = canary
        .bytes()
        .map(|byte| match byte {
            b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let mut forms = vec![canary.to_owned(), first, in_url, json!(canary).to_string()];
    for shift in 0..3 {
        let text = [&b"xx"[..shift], canary.as_bytes()].concat();
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&text);
            // The first and last letters depend on what stands beside the canary.
            forms.push(encoded[4..encoded.len() - 4].to_owned());
        }
    }
    forms
}

/// The text of each sink, with the sink's name. Each new sink must be added here.
#[derive(Default)]
pub struct Sinks(Vec<(String, String)>);

impl Sinks {
    pub fn add(&mut self, name: &str, text: String) {
        self.0.push((name.to_owned(), text));
    }

    /// Reads the pages of a replica's admin listener, and the output of the commands. Call this
    /// before each end of a replica, because its pages end with it.
    pub async fn read(&mut self, cluster: &Running, codex: &Codex, when: &str) {
        let admin = cluster.replica().admin();
        let own = format!("/sessions?client=alice&id={}", codex.session);
        let story = asked(admin, "GET", &own).await.text();
        let hash = serde_json::from_str::<Value>(&story).expect("JSON")["session"].clone();
        let hash = hash.as_str().expect("a hash").to_owned();
        self.add(&format!("/sessions by what the client sent, {when}"), story);
        let mut pages: Vec<_> =
            ["/metrics", "/keys", "/livez", "/readyz", "/unknown"].map(str::to_owned).into();
        pages.push(format!("/sessions/{hash}"));
        pages.extend(By::ALL.iter().map(|by| format!("/usage?by={}", by.name())));
        for page in pages {
            let text = asked(admin, "GET", &page).await.text();
            self.add(&format!("{page}, {when}"), text);
        }
        let story = format!("session {hash}");
        let all = ["usage", &story, "check", "key list", "token list", "token revoke nobody"];
        for words in all {
            let words: Vec<_> = words.split(' ').collect();
            let (_, out, errors) = command(cluster, &words).await;
            self.add(&format!("warmkey {}, {when}", words.join(" ")), out + &errors);
        }
    }

    /// Reads the files that remain when all processes have ended.
    pub fn read_files(&mut self, cluster: &Running, collector: &Collector) {
        for name in ["ledger.db", "ledger.db-wal"] {
            let bytes = std::fs::read(cluster.replica().file().with_file_name(name));
            let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
            self.add(name, text);
        }
        // A panic of a replica is reported here, too.
        self.add("the log", cluster.logs());
        self.add("traces", traced(collector));
    }

    /// Fails the test if a canary is in any of the sinks.
    pub fn hold_none(&self, canaries: &[(String, String)]) {
        for (sink, text) in &self.0 {
            // A ledger that was closed in good order has an empty journal, or none.
            assert!(sink.ends_with("-wal") || !text.is_empty(), "{sink} says something");
            for (name, canary) in canaries {
                for form in forms(canary) {
                    let line = text.lines().find(|line| line.contains(&form));
                    assert_eq!(line, None, "{name}, as {form}, is in {sink}");
                }
            }
        }
    }
}

/// Everything that the collector got, one span a line.
fn traced(collector: &Collector) -> String {
    let spans = collector.spans();
    spans.iter().map(|span| format!("{} {:?}\n", span.text, span.resource)).collect()
}
