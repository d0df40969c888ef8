//! The record of probes: which key asked for the list of models, and the answer.
//!
//! A probe costs nothing and is no turn, so the record of turns leaves probes out.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::judge::now_millis;
use super::key::Key;

/// Probes on record; older ones are dropped.
const MOST_PROBES: usize = 50_000;

/// One probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// When the probe was answered, in milliseconds since 1970.
    pub at: u64,
    /// `None` if the request showed no known key.
    pub key: Option<String>,
    pub organization: Option<String>,
    /// 0 if the connection broke instead.
    pub status: u16,
}

#[derive(Debug, Default)]
pub struct Probes(Mutex<VecDeque<Probe>>);

impl Probes {
    fn record(&self) -> MutexGuard<'_, VecDeque<Probe>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, key: Option<&Key>, status: u16) {
        let mut record = self.record();
        if record.len() >= MOST_PROBES {
            record.pop_front();
        }
        let (id, organization) =
            (key.map(|key| key.id.clone()), key.map(|key| key.organization.clone()));
        record.push_back(Probe { at: now_millis(), key: id, organization, status });
    }

    /// Every probe on record, oldest first.
    pub fn all(&self) -> Vec<Probe> {
        self.record().iter().cloned().collect()
    }

    pub fn clear(&self) {
        self.record().clear();
    }
}
