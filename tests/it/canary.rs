//! Secrets, tokens, prompts and raw session ids never leak, however a turn ends and at any level of
//! the log. The log, traces, metrics, errors, the ledger, reports and the texts of panics hold none
//! of them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::json;
use tokio::process::Command;

use crate::ledger::{command, written_at};
use crate::world::admin::{TOKEN, asked};
use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, BOB, Running, SECRET};
use crate::world::codex::{Codex, Talk};
use crate::world::collector::Collector;
use crate::world::port;
use crate::world::recorder::{Recorder, Step, answer};
use crate::world::simulator::Fault;
use crate::world::socket::{open, session};
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::{Request, ask};

mod sinks;

use sinks::{Sinks, forms};

/// Part of every prompt. In a URL, its letters are written otherwise.
const PROMPT: &str = "prompt-canary/+\u{e4}&? and what else a user says";
const HOP: &str = "hop-canary-0123456789abcdefghijklmnopqrstuvwxyz";
/// Tokens that no client has.
const STRANGER: &str = "zz-stranger-canary-of-nobody";
const IN_URL: &str = "url-canary-of-nobody";
/// Value of a client's header that Warmkey does not read.
const HEADER: &str = "header-canary-of-a-client";
/// Value of a client's `tracestate`. Its `traceparent` has a flag and ids, which are no secret.
const STATE: &str = "state-canary-of-a-client";
/// Secret in the headers that Warmkey sends to the collector.
const COLLECTORS: &str = "otel-canary-of-the-collector";
/// The password of a ledger's database.
const DATABASES: &str = "dbpw-canary-of-a-database";
/// Part of the upstream's message about its own failure.
const MESSAGE: &str = "said-canary-of-the-upstream";
/// Part of a tool's output.
const TOOL: &str = "tool-canary-in-an-output";

/// Returns the texts that must appear nowhere, each with its name.
fn canaries(sessions: &[String]) -> Vec<(String, String)> {
    let named = [
        ("a prompt", PROMPT),
        ("the client's token", ALICE),
        ("another client's token", BOB),
        ("the operators' token", TOKEN),
        ("the gateway's secret", SECRET),
        ("the hop's secret", HOP),
        ("an upstream key", "sk-canary-org-a-1"),
        ("a stranger's token", STRANGER),
        ("a credential in a URL", IN_URL),
        ("a client's header", HEADER),
        ("a client's trace state", STATE),
        ("a tool's output", TOOL),
        ("the collector's token", COLLECTORS),
        ("the database's password", DATABASES),
        ("what the upstream says", MESSAGE),
    ];
    let named = named.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
    named.chain(sessions.iter().map(|id| ("a session's raw id".into(), id.clone()))).collect()
}

/// Variable that makes this test's program, started anew, panic as a replica does.
const PANICS: &str = "WARMKEY_TEST_PANICS";

/// Returns the output of a replica's process when a task panics with a message that holds canaries.
async fn panic_text() -> String {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["--exact", "canary::panic_is_logged_without_what_it_holds", "--nocapture"]);
    command.env(PANICS, "1").env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    let output = within(SOON, "a panic", command.kill_on_drop(true).output()).await;
    let output = output.expect("the program can be started");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// The process that panics is this same test, started anew.
#[tokio::test]
async fn panic_is_logged_without_what_it_holds() {
    if std::env::var_os(PANICS).is_some() {
        let options =
            r#"{"otlp_endpoint":"","propagate":false,"sample":1.0,"slow":"1s","log":"json"}"#;
        warmkey::telemetry::start(&serde_json::from_str(options).expect("options"));
        let task = tokio::spawn(async { panic!("a turn of {ALICE} says {PROMPT}, by {SECRET}") });
        assert!(task.await.is_err_and(|failed| failed.is_panic()));
        warmkey::telemetry::log::flush(SOON);
        return;
    }
    let text = panic_text().await;
    assert!(text.contains("the gateway panicked") && text.contains("canary.rs"), "{text}");
    assert!(!text.contains("canary-") && !text.contains("a user says"), "{text}");
}

/// Ends the replica in good order, so that the ledger has all its turns.
async fn ends(cluster: &mut Running) {
    cluster.replica().terminate().await;
    cluster.replicas[0].exit(SOON).await;
}

/// Sends a request that must fail with Warmkey's own error.
async fn refused(address: std::net::SocketAddr, request: &Request, errors: &mut String) {
    let answer = ask(address, request).await;
    assert!(answer.status >= 400, "{answer:?}");
    errors.push_str(&format!("{:?}{}\n", answer.headers, answer.text()));
}

fn body(text: &str) -> String {
    let output = json!({ "type": "function_call_output", "call_id": "c", "output": TOOL });
    let user = json!({ "role": "user", "content": text });
    json!({ "model": "gpt-5.4", "stream": true, "input": [user, output] }).to_string()
}

/// Plays requests that fail before they have a key.
async fn is_refused(cluster: &Running, codex: &mut Codex) -> String {
    let (address, mut errors) = (cluster.address(), String::new());
    let turn = |body: &str| {
        let request = Request::turn(ALICE, body).header("x-of-a-client", HEADER);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        request.header("traceparent", parent).header("tracestate", &format!("vendor={STATE}"))
    };
    let zstd = zstd::encode_all(PROMPT.as_bytes(), 1).expect("memory is enough");
    let requests = [
        turn(&format!("{PROMPT}, no JSON")),
        turn(&body(PROMPT)).bearer(STRANGER),
        Request::turn(STRANGER, body(PROMPT)),
        turn(&body(PROMPT)).target(&format!("/responses?api_key={IN_URL}")),
        turn(&json!({ "input": PROMPT.repeat(40_000) }).to_string()),
        turn(&json!({ "input": PROMPT, "previous_response_id": "resp_unknown" }).to_string()),
        turn(&json!({ "input": PROMPT, "conversation": "conv_unknown" }).to_string()),
        Request::turn(ALICE, zstd).header("content-encoding", "br"),
        Request::turn(ALICE, &b"\x28\xb5\x2f\xfdbroken"[..]).header("content-encoding", "zstd"),
        turn(&json!({ "messages": PROMPT }).to_string()).target("/v1/chat/completions"),
        Request::new("GET", "/responses/resp_1").bearer(ALICE),
        Request::new("POST", "/responses").bearer(TOKEN).body(body(PROMPT)),
    ];
    for request in requests {
        refused(address, &request, &mut errors).await;
    }
    let mut socket = session(address, ALICE, &codex.session).await;
    for message in [
        format!("{PROMPT}, no JSON"),
        json!({ "type": "response.create", "model": "gpt-5.4",
        "previous_response_id": "resp_unknown", "input": PROMPT })
        .to_string(),
    ] {
        socket.send(&message).await;
        errors.push_str(&socket.text().await);
    }
    for token in [STRANGER, IN_URL] {
        let refused = open(address, token, &[("session-id", &codex.session)]).await;
        errors.push_str(&refused.err().expect("no such token").code());
    }
    errors
}

/// Adds a client whose token is in the ledger. Returns the token.
async fn adds_a_token(cluster: &Running, sinks: &mut Sinks) -> String {
    let (code, said, told) = command(cluster, &["token", "add", "--client", "carol"]).await;
    assert_eq!(code, 0, "{told}");
    // The token is printed once, where the operator reads it; the rest is a sink like any other.
    sinks.add("warmkey token add", told);
    let token = said.trim_end().to_owned();
    assert!(token.starts_with("wk-"), "{token}");
    eventually(SOON, "the replica knows the ledger's token", async || {
        let body = r#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;
        let answer = ask(cluster.address(), &Request::turn(&token, body)).await;
        (answer.status == 200).then_some(())
    })
    .await;
    Codex::new(cluster.address(), &token).turn(PROMPT).await.served();
    token
}

/// Plays turns that are served in the end, over all transports and after faults.
async fn is_served(cluster: &Running, codex: &mut Codex) -> Talk {
    let address = cluster.address();
    codex.turn(PROMPT).await.served();
    codex.fork().turn(PROMPT).await.served();
    let mut talk = codex.fork().by_websocket();
    talk.turn(PROMPT).await;
    cluster.upstream().fails_with(Fault::down(500).message(MESSAGE).times(1)).await;
    let begun = talk.connections;
    talk.turn(PROMPT).await;
    assert!(talk.connections > begun, "the fault has met this turn");
    Chat::new(address, ALICE).with_tool().turn(PROMPT).await.served();
    let mut long = codex.fork();
    long.compacts().await.served();
    long.turn(PROMPT).await.served();
    cluster.upstream().fails_with(Fault::down(502).message(MESSAGE).times(1)).await;
    codex.turn(PROMPT).await.served();
    talk
}

/// Starts a replica whose database is away and whose database URL holds a password.
async fn away_from_its_database(sinks: &mut Sinks) {
    let url = format!("postgres://u:{DATABASES}@{}/d", port::free());
    let cluster = written_at(&url).environment("RUST_LOG", "trace").start().await;
    Codex::new(cluster.address(), ALICE).turn(PROMPT).await.served();
    cluster.replica().says("the ledger is away").await;
    let admin = cluster.replica().admin();
    for page in ["/usage", "/metrics", "/sessions?client=alice&id=x"] {
        sinks.add(&format!("{page} without the database"), asked(admin, "GET", page).await.text());
    }
    for words in [&["check"][..], &["usage"], &["token", "list"]] {
        let (code, out, errors) = command(&cluster, words).await;
        assert_ne!(code, 0, "{words:?}: {out}");
        sinks.add(&format!("warmkey {words:?} without the database"), out + &errors);
    }
    sinks.add("the log without the database", cluster.logs());
}

#[tokio::test]
async fn secrets_are_nowhere_at_any_level_of_the_log() {
    let clients = format!(
        "[hop]\nsecret = {HOP:?}\n[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n\
         [[client]]\nid = \"bob\"\ntoken = {BOB:?}\n"
    );
    let collector = Collector::start().await;
    let mut cluster = written_at("sqlite:ledger.db")
        .telemetry(&collector.options())
        .server("max_body", "\"1MiB\"")
        .clients(&clients)
        .environment("RUST_LOG", "trace")
        .environment("RUST_BACKTRACE", "full")
        .environment("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization={COLLECTORS}"))
        // Each task of a replica panics once.
        .environment("WARMKEY_PANIC", "all")
        .start()
        .await;
    let (address, mut sinks) = (cluster.address(), Sinks::default());
    let mut codex = Codex::new(address, ALICE);
    let talk = is_served(&cluster, &mut codex).await;
    let token = adds_a_token(&cluster, &mut sinks).await;
    let mut errors = is_refused(&cluster, &mut codex).await;
    // The keys fail one after the other, and then the organization has no credit.
    cluster.upstream().revoke("org-a-1").await;
    codex.turn(PROMPT).await.served();
    cluster.upstream().revoke("org-a-2").await;
    cluster.upstream().exhaust("org-a").await;
    refused(address, &codex.begin(PROMPT).0, &mut errors).await;
    // The same replica with an upstream that repeats what it was sent, and cuts its answer.
    let echo = Recorder::start(|seen| {
        let body = format!("data: {{\"authorization\":\"Bearer {}\"}}\n\n", seen.key());
        let head = format!("content-type: text/event-stream\r\nx-echo: {}\r\n", seen.key());
        vec![Step::Send(answer("200 OK", &head, body.as_bytes()))]
    })
    .await;
    sinks.read(&cluster, &codex, "after the simulator").await;
    ends(&mut cluster).await;
    cluster.change(|cluster| cluster.upstream_at(&echo.url()));
    cluster.restart(0).await;
    let mut cut = Codex::new(address, ALICE);
    ask(address, &cut.begin(PROMPT).0).await;
    // In the end there is no upstream at all.
    sinks.read(&cluster, &codex, "after the echo").await;
    ends(&mut cluster).await;
    cluster.change(|cluster| cluster.upstream_at(&format!("http://{}/v1", port::free())));
    cluster.restart(0).await;
    refused(address, &Request::turn(ALICE, body(PROMPT)), &mut errors).await;
    let admin = cluster.replica().admin();
    refused(admin, &Request::new("GET", "/keys").bearer(STRANGER), &mut errors).await;

    eventually(SOON, "the last turn is traced", async || {
        let turns = collector.turns();
        turns.iter().any(|turn| turn.said("http.response.status_code") == "502").then_some(())
    })
    .await;
    assert_eq!(collector.shown().as_deref(), Some(COLLECTORS), "the header is sent");
    let log = cluster.logs();
    assert!(log.lines().count() > 20, "there is a log to look at");
    assert!(log.contains("the gateway panicked"), "a replica tells of its panics");
    assert!(collector.turns().len() > 15, "there are traces to look at");

    sinks.read(&cluster, &codex, "without an upstream").await;
    sinks.read_files(&cluster, &collector);
    sinks.add("errors", errors);
    sinks.add("the log of a panic", panic_text().await);
    away_from_its_database(&mut sinks).await;
    let sessions = [codex.session.clone(), talk.codex.session.clone(), cut.session.clone()];
    let mut canaries = canaries(&sessions);
    canaries.push(("a token of the ledger".into(), token));
    sinks.hold_none(&canaries);
}

/// The search finds each form of a canary that it looks for.
#[test]
fn canary_is_found_in_each_form() {
    let canary = "sk-canary/+of a key";
    let forms = forms(canary);
    for text in [
        "Bearer sk-canary/+of a key".to_owned(),
        "key sk-canar...".to_owned(),
        "?key=sk-canary%2F%2Bof%20a%20key".to_owned(),
        STANDARD_NO_PAD.encode("Authorization: sk-canary/+of a key, and more"),
        URL_SAFE_NO_PAD.encode("Authorization: Bearer sk-canary/+of a key"),
    ] {
        assert!(forms.iter().any(|form| text.contains(form)), "{text}");
    }
    assert!(!forms.iter().any(|form| "a cold key of a canary".contains(form)));
}
