//! A turn whose answer passes: what is noted of the answer, and what its end affects.

use std::sync::Arc;

use crate::health::registry::Registry;
use crate::key::Key;
use crate::metrics::Ending;
use crate::turn::Gateway;
use crate::turn::account::Account;
use crate::turn::http::form::Form;
use crate::turn::memory::BodyMemory;
use crate::usage::tap::Reading;
use crate::wire::endpoint::Dialect;

/// A turn whose answer passes, and the key whose health the answer's end may affect.
pub struct Course {
    pub account: Account,
    pub registry: Arc<Registry>,
    pub key: Arc<Key>,
    /// Counts what is held to read the answer.
    pub memory: BodyMemory,
    pub form: Form,
}

impl Course {
    pub fn new(gateway: &Gateway, memory: &BodyMemory, key: Arc<Key>, account: Account) -> Self {
        let (registry, form) = (Arc::clone(&gateway.registry), Form::Native(Dialect::Responses));
        Self { account, registry, key, memory: memory.clone(), form }
    }

    /// Gives the answer another form.
    pub fn in_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Ends the turn. A failure that the answer states counts for its key's health.
    pub fn end(mut self, reading: Reading, broken: Option<Ending>) {
        if let Some(failure) = &reading.failure {
            self.registry.observe_failure(&self.key, self.account.asked_model(), failure);
        }
        self.account.note_end(reading, broken);
    }
}
