//! Tests of how an answer passes from its upstream to its client.

use http::HeaderMap;

use super::*;
use crate::client::Client;
use crate::metrics::Transport;
use crate::turn::tests::{bound, gateway};
use crate::wire::error_body::ErrorBody;
use crate::wire::terminal::Terminal;

#[tokio::test]
async fn failure_inside_an_answer_counts_for_the_requested_model() {
    let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let mut account =
        Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
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
    course
        .end(Reading { terminal: Some(Terminal::Failed), failure, ..Reading::default() }, None);
    let is_ready = |model| gateway.registry.is_ready(&binding.key, model);
    assert!(!is_ready("m") && is_ready("n") && is_ready(""));
}
