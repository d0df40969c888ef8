//! Tests of how an answer passes from its upstream to its client.

use http::HeaderMap;
use http_body_util::BodyExt;

use super::*;
use crate::client::Client;
use crate::metrics::Transport;
use crate::setting::Size;
use crate::task::Tasks;
use crate::turn::http::form::Document;
use crate::turn::http::relay::relay;
use crate::turn::http::translation::Counted;
use crate::turn::memory::{BodyMemory, MemoryPlace};
use crate::turn::tests::{bound, gateway};
use crate::wire::error_body::ErrorBody;
use crate::wire::terminal::Terminal;

#[tokio::test]
async fn failure_inside_an_answer_counts_for_the_requested_model() {
    let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let mut account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    account.note_model("m");
    account.note_attempt(&binding, false, &gateway.registry.loads);
    let course = Course {
        account,
        registry: Arc::clone(&gateway.registry),
        key: Arc::clone(&binding.key),
        form: Form::Native(Dialect::Responses),
    };
    let failure =
        Some(ErrorBody { code: Some("rate_limit_exceeded".into()), ..ErrorBody::default() });
    course.end(Reading { terminal: Some(Terminal::Failed), failure, ..Reading::default() }, None);
    let is_ready = |model| gateway.registry.is_ready(&binding.key, model);
    assert!(!is_ready("m") && is_ready("n") && is_ready(""));
}

/// hyper may copy what it gets at once, and the memory counts until the last piece has gone.
#[tokio::test]
async fn long_document_goes_in_pieces_and_counts_until_the_last() {
    let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let memory = BodyMemory::new(Size(16 << 20));
    let (bytes, mut place) =
        ((0..3_000_000_u32).map(|n| n as u8).collect::<Vec<_>>(), MemoryPlace::default());
    memory.follow_answer(&mut place, bytes.len()).unwrap();
    let whole = bytes.clone();
    let (text, tap) = (Counted { bytes, place }.into(), Tap::new(&HeaderMap::new()));
    let document = Document { text, tap, has_leaked: false };
    let course =
        Course::new(&gateway, binding.key, account).in_form(Form::Document(Box::new(document)));
    let (status, headers) = (http::StatusCode::OK, HeaderMap::new());
    let answer = Answer { status, headers, head: Bytes::new(), rest: None, upgrade: None };
    let mut passage = Passage::new(answer, None, course);
    assert!(passage.is_full(), "nothing more is read meanwhile");
    let mut come = Vec::new();
    while let Some(piece) = passage.pop() {
        assert!(piece.len() <= PIECE && memory.used() > 2_000_000);
        come.extend_from_slice(&piece);
    }
    assert!(come == whole && memory.used() == 0);
}

/// The idle timeout is the upstream's: it does not run while the gateway's own work is waited for.
#[tokio::test(start_paused = true)]
async fn answer_that_waits_for_the_gateway_is_no_silent_one() {
    let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let idle_timeout = binding.key.upstream.idle_timeout;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let course = Course::new(&gateway, binding.key, account);
    let json = http::HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, json)]);
    let gate = IdGate::new(&headers, move |_| tokio::time::sleep(idle_timeout * 2));
    let body = r#"{"id":"resp_1","object":"response","status":"completed","output":[]}"#;
    let rest = reqwest::Response::from(http::Response::new(body)).into();
    let status = http::StatusCode::OK;
    let answer = Answer { status, headers, head: Bytes::new(), rest: Some(rest), upgrade: None };
    let (relay, pump) = relay(answer, Some(gate), course);
    let tasks = Tasks::new();
    let began = tokio::time::Instant::now();
    pump.start(&tasks).await;
    let come = relay.collect().await.expect("the answer is whole").to_bytes();
    assert!(come == body && began.elapsed() >= idle_timeout * 2, "{:?}", began.elapsed());
}
