//! Metrics of upstream keys: the state of each key, and the tokens that it served.

use crate::metrics::Metrics;
use crate::metrics::family::{Amounts, Counters, Gauge, Gauges, families};
use crate::metrics::label::{Cache, KeyLabel, KeyState, Labels};

families! {
    pub struct KeyMetrics {
        states: Gauges<(KeyLabel, KeyState)> = gauges(
            "key_state",
            "1 for the state that the key is in on this replica, 0 for the other states",
        ),
        waiting: Gauge = gauge(
            "keys_waiting",
            "Keys that take no sessions yet because a live replica has not loaded them",
        ),
        input_tokens: Counters<(KeyLabel, Cache)> = counters(
            "input_tokens",
            "Input tokens, by key and by how the upstream's prompt cache treated them",
        ),
        output_tokens: Counters<KeyLabel> = counters("output_tokens", "Output tokens, by key"),
        cost: Amounts<KeyLabel> = amounts("cost_usd", "Cost of turns whose price is known, by key"),
    }
}

impl Metrics {
    /// Shows the state of `key`. The key's token counters appear with its first state.
    pub fn key_state(&self, key: &str, now: KeyState) {
        let key = KeyLabel::new(key);
        for &state in KeyState::ALL {
            self.keys.states.get_or_create(&(key.clone(), state)).set(i64::from(state == now));
        }
        for &cache in Cache::ALL {
            drop(self.keys.input_tokens.get_or_create(&(key.clone(), cache)));
        }
        drop(self.keys.output_tokens.get_or_create(&key));
        drop(self.keys.cost.get_or_create(&key));
    }

    /// Hides a key that is no longer configured. Token counters above 0 stay on the page.
    pub fn key_removed(&self, key: &str) {
        let key = KeyLabel::new(key);
        for &state in KeyState::ALL {
            self.keys.states.remove(&(key.clone(), state));
        }
        for &cache in Cache::ALL {
            remove_zero(&self.keys.input_tokens, &(key.clone(), cache));
        }
        remove_zero(&self.keys.output_tokens, &key);
        // The guard of `get` must be gone before `remove`.
        let is_free = self.keys.cost.get(&key).is_some_and(|cost| cost.get() == 0.0);
        if is_free {
            self.keys.cost.remove(&key);
        }
    }

    pub fn keys_waiting(&self, count: usize) {
        self.keys.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn input_tokens(&self, key: &str, cache: Cache, tokens: u64) {
        self.keys.input_tokens.get_or_create(&(KeyLabel::new(key), cache)).inc_by(tokens);
    }

    pub fn cost(&self, key: &str, nano_usd: u64) {
        // The metric may round, because the ledger has the exact sum.
        self.keys.cost.get_or_create(&KeyLabel::new(key)).inc_by(nano_usd as f64 / 1e9);
    }

    pub fn output_tokens(&self, key: &str, tokens: u64) {
        self.keys.output_tokens.get_or_create(&KeyLabel::new(key)).inc_by(tokens);
    }
}

fn remove_zero<L: Labels>(family: &Counters<L>, labels: &L) {
    // The guard of `get` must be gone before `remove`: both lock the family.
    let is_zero = family.get(labels).is_some_and(|counter| counter.get() == 0);
    if is_zero {
        family.remove(labels);
    }
}
