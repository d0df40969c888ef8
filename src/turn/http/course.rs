//! Follows the turn whose answer is passing, and counts the answer's end for the turn and its key.

use std::sync::Arc;

use crate::key::Key;
use crate::metrics::Ending;
use crate::turn::Gateway;
use crate::turn::account::Account;
use crate::turn::http::form::Form;
use crate::turn::memory::BodyMemory;
use crate::usage::tap::Reading;
use crate::wire::endpoint::Dialect;

/// Why an answer cannot continue. The connection to the client is cut, so that the client sees that
/// its answer is incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the upstream's answer was cut")]
    Cut,
    #[error("the upstream's answer stalled")]
    Stalled,
    #[error("the upstream's answer cannot be decoded by its content-encoding")]
    Unreadable,
    #[error("the gateway has no memory or thread for the answer")]
    Full,
}

impl From<Broken> for Ending {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Cut | Broken::Full | Broken::Unreadable => Self::Cut,
            Broken::Stalled => Self::TimedOut,
        }
    }
}

/// A turn whose answer passes, and the key whose health the answer's end may affect.
pub struct Course {
    pub account: Account,
    pub key: Arc<Key>,
    /// The memory that counts what the gateway holds to read the answer.
    pub memory: BodyMemory,
    gateway: Arc<Gateway>,
    form: Form,
}

impl Course {
    pub fn new(
        gateway: &Arc<Gateway>,
        memory: &BodyMemory,
        key: Arc<Key>,
        account: Account,
    ) -> Self {
        let (gateway, memory) = (Arc::clone(gateway), memory.clone());
        Self { account, key, memory, gateway, form: Form::Native(Dialect::Responses) }
    }

    /// Gives the answer another form.
    pub fn in_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    pub fn take_form(&mut self) -> Form {
        std::mem::replace(&mut self.form, Form::Native(Dialect::Responses))
    }

    /// Ends the turn with its answer. A limit or failure that the answer's end states counts for
    /// the key's health.
    pub fn end(mut self, reading: Reading, broken: Option<Broken>) {
        self.gateway.observe_end(&self.account, &self.key, &reading);
        if broken == Some(Broken::Unreadable) {
            self.account.note_unreadable();
        }
        self.account.note_end(reading, broken.map(Ending::from));
    }

    /// Ends the turn of a client that has left before its answer ended.
    pub fn leave(mut self, reading: Reading) {
        self.gateway.observe_end(&self.account, &self.key, &reading);
        self.account.note_end(reading, Some(Ending::ClientLeft));
    }

    /// Ends the turn after a panic: its outcome is not known.
    pub fn fail(mut self) {
        self.account.note_end(Reading::default(), Some(Ending::Unserved));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderMap;

    use super::*;
    use crate::binding::Binding;
    use crate::client::Client;
    use crate::metrics::Transport;
    use crate::session::identify::Identity;
    use crate::setting::Size;
    use crate::turn::tests::{bound, gateway};
    use crate::wire::error_body::ErrorBody;
    use crate::wire::terminal::Terminal;

    const SECOND: Duration = Duration::from_secs(1);

    /// A turn that is sent now, for the model `m`.
    fn course(gateway: &Arc<Gateway>, binding: &Binding, waits: Option<Duration>) -> Course {
        let books = Arc::clone(&gateway.books);
        let mut account = Account::open(books, Transport::Http, &HeaderMap::new());
        account.note_session(&Identity { session: binding.session.clone(), skipped: 0 });
        account.note_model("m");
        if let Some(pause) = waits {
            account.note_wait(&binding.key, pause);
        }
        account.note_attempt(binding, false, &gateway.registry.loads);
        account.note_status(http::StatusCode::OK);
        let memory = BodyMemory::new(Size(1 << 20));
        Course::new(gateway, &memory, Arc::clone(&binding.key), account)
    }

    fn limited() -> Reading {
        let code = Some("rate_limit_exceeded".into());
        let failure = ErrorBody { code, wait: Some(2 * SECOND), ..ErrorBody::default() };
        let terminal = Some(Terminal::Failed);
        Reading { terminal, failure: Some(failure), ..Reading::default() }
    }

    #[tokio::test]
    async fn failure_inside_an_answer_counts_for_the_requested_model() {
        let (gateway, client) =
            (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
        let (_, binding, _) = bound(&gateway, &client).await;
        course(&gateway, &binding, None).end(limited(), None);
        let is_ready = |model| gateway.registry.is_ready(&binding.key, model);
        assert!(!is_ready("m") && is_ready("n") && is_ready(""));
    }

    /// A stored response that is shown may state a failure of an earlier time.
    #[tokio::test]
    async fn failure_of_a_shown_response_says_nothing_about_its_key() {
        let (gateway, client) =
            (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
        let (_, binding, _) = bound(&gateway, &client).await;
        let mut shown = course(&gateway, &binding, None);
        shown.account.note_operation("retrieve");
        shown.end(limited(), None);
        assert!(gateway.registry.is_ready(&binding.key, "m"));
    }

    /// A limit that a stream states means a wait in vain, as a 429 does, if the client or the turn
    /// has waited before.
    #[tokio::test(start_paused = true)]
    async fn limit_inside_an_answer_strains_its_key_after_a_wait() {
        let client = Client::unrestricted("alice");
        for (pause, is_served, waits, in_vain) in [
            (SECOND, false, None, false),
            (2 * SECOND, false, None, true),
            (2 * SECOND, true, None, false),
            (300 * SECOND, false, None, false),
            (SECOND, false, Some(SECOND), true),
        ] {
            let gateway = Arc::new(gateway(&[("a", "o", "p"), ("b", "o", "q")]));
            let (_, binding, _) = bound(&gateway, &client).await;
            course(&gateway, &binding, None).end(limited(), None);
            let is_strained = || gateway.registry.is_strained(&binding.key, "m");
            assert!(!is_strained(), "the first");
            tokio::time::sleep(pause).await;
            if is_served {
                let completed =
                    Reading { terminal: Some(Terminal::Completed), ..Reading::default() };
                course(&gateway, &binding, None).end(completed, None);
            }
            course(&gateway, &binding, waits).end(limited(), None);
            assert_eq!(is_strained(), in_vain, "{pause:?} {is_served} {waits:?}");
        }
    }
}
