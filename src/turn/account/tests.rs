//! Tests of how a turn is counted, however the turn ends.

use super::*;
use crate::client::Client;
use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::turn::tests::{bound, gateway};
use crate::wire::terminal::Usage;

fn open(metrics: &Arc<Metrics>) -> Account {
    Account::open(Arc::new(Books::new(Arc::clone(metrics))), Transport::Http, &HeaderMap::new())
}

/// Returns the outcomes that were counted once.
fn outcomes(metrics: &Metrics) -> Vec<String> {
    let page = metrics.render();
    assert!(page.contains("warmkey_active_turns 0"), "{page}");
    let lines = page
        .lines()
        .filter_map(|line| line.strip_prefix("warmkey_turns_total{transport=\"http\",outcome=\""));
    lines.filter_map(|line| line.strip_suffix("\"} 1")).map(str::to_owned).collect()
}

#[test]
fn turn_ends_as_the_upstream_said_or_else_as_its_connection_did() {
    let (done, part, failed) =
        (Some(Terminal::Completed), Some(Terminal::Incomplete), Some(Terminal::Failed));
    for (status, terminal, broken, expected) in [
        (200, done, Some(Ending::ClientLeft), "completed"),
        (200, part, Some(Ending::Cut), "incomplete"),
        (200, failed, Some(Ending::Cut), "failed"),
        (200, None, Some(Ending::ClientLeft), "client_left"),
        (200, None, Some(Ending::TimedOut), "timed_out"),
        (200, None, None, "cut"),
        (307, done, None, "completed"),
        (400, done, None, "upstream_error"),
        (500, None, Some(Ending::Cut), "upstream_error"),
    ] {
        let metrics = Arc::new(Metrics::new());
        let mut account = open(&metrics);
        account.note_status(StatusCode::from_u16(status).unwrap());
        account.note_end(Reading { terminal, ..Reading::default() }, broken);
        drop(account);
        assert_eq!(outcomes(&metrics), [expected], "{status} {terminal:?} {broken:?}");
    }
}

#[test]
fn turn_without_an_answer_ends_by_its_cause() {
    let ended = |end: &dyn Fn(Account)| {
        let metrics = Arc::new(Metrics::new());
        end(open(&metrics));
        outcomes(&metrics)
    };
    let refused = |kind| move |mut account: Account| account.note_error(&Error::new(kind, "m"));
    assert_eq!(ended(&refused(ErrorKind::InvalidJson)), ["refused"]);
    assert_eq!(ended(&refused(ErrorKind::NoKeyAvailable)), ["unserved"]);
    assert_eq!(ended(&refused(ErrorKind::UpstreamTimeout)), ["unserved"]);
    assert_eq!(ended(&drop), ["client_left"]);
    assert_eq!(ended(&Account::cut), ["cut"]);
    assert!(ended(&|account| drop(account.close_handshake())).is_empty(), "a handshake is no turn");
    let panics = |account: Account| {
        let turn = std::panic::AssertUnwindSafe(move || {
            let _account = account;
            panic!("a turn of a test")
        });
        assert!(std::panic::catch_unwind(turn).is_err());
    };
    assert_eq!(ended(&panics), ["unserved"]);
}

#[test]
fn name_that_is_no_models_is_cut_short() {
    let mut account = open(&Arc::new(Metrics::new()));
    account.note_model(&"\u{e9}".repeat(1 << 20));
    assert_eq!(account.asked_model().model, "\u{e9}".repeat(LONGEST_MODEL / 2));
    account.note_model("gpt-5.4");
    assert_eq!(account.asked_model().model, "gpt-5.4");
}

#[tokio::test]
async fn tokens_are_counted_for_the_key_that_served() {
    let (gateway, client) =
        (gateway(&[("a", "o", "p"), ("b", "o", "p")]), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let keys = gateway.registry.loaded();
    let [a, b] = keys.table.keys() else { panic!("two keys") };
    let mut account = open(&gateway.books.metrics);
    account.note_attempt(
        &Binding { key: Arc::clone(a), ..binding.clone() },
        false,
        &gateway.registry.loads,
    );
    account.note_attempt(
        &Binding { key: Arc::clone(b), ..binding },
        false,
        &gateway.registry.loads,
    );
    assert_eq!(
        [a, b].map(|key| gateway.registry.loads.of(key)),
        [0, 1],
        "the turn is in flight on the last key"
    );
    // No token of the input is counted twice: read and written tokens together are at most the
    // input.
    let usage = Usage { input: 10, cached: 8, written: 5, output: 3, ..Usage::default() };
    account.note_status(StatusCode::OK);
    account.note_end(
        Reading { terminal: Some(Terminal::Completed), usage: Some(usage), failure: None },
        None,
    );
    drop(account);
    let page = gateway.books.metrics.render();
    for (cache, tokens) in [("read", 8), ("written", 5), ("uncached", 0)] {
        assert!(
            page.contains(&format!(
                "warmkey_input_tokens_total{{key=\"b\",cache=\"{cache}\"}} {tokens}\n"
            )),
            "{page}"
        );
    }
    assert!(
        page.contains("warmkey_output_tokens_total{key=\"b\"} 3\n")
            && page.contains("key=\"a\",cache=\"read\"} 0"),
        "{page}"
    );
}
