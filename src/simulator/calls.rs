//! The record of requests that are no turns: about stored responses and models, and token counts.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::judge::now_millis;
use super::key::Key;
use super::leak;

/// Calls on record; older ones are dropped.
const MOST_CALLS: usize = 50_000;

/// One call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// When the call was answered, in milliseconds since 1970.
    pub at: u64,
    /// `GET /v1/responses/resp_1`.
    pub method_path: String,
    pub query: Option<String>,
    /// `None` if the request showed no known key.
    pub key: Option<String>,
    pub organization: Option<String>,
    pub status: u16,
    /// Every header name once, sorted.
    pub headers: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Calls(Mutex<VecDeque<Call>>);

impl Calls {
    fn record(&self) -> MutexGuard<'_, VecDeque<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, head: &Parts, key: Option<&Key>, status: u16) {
        let mut record = self.record();
        if record.len() >= MOST_CALLS {
            record.pop_front();
        }
        record.push_back(Call {
            at: now_millis(),
            method_path: format!("{} {}", head.method, head.uri.path()),
            query: head.uri.query().map(str::to_owned),
            key: key.map(|key| key.id.clone()),
            organization: key.map(|key| key.organization.clone()),
            status,
            headers: leak::names(&head.headers),
        });
    }

    /// Every call on record, oldest first.
    pub fn all(&self) -> Vec<Call> {
        self.record().iter().cloned().collect()
    }

    pub fn clear(&self) {
        self.record().clear();
    }
}
