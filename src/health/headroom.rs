//! Learns from upstream headers what is left of each project's limits for a model. New sessions
//! prefer projects with headroom; headroom moves no live session.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use http::HeaderMap;
use tokio::time::Instant;

use crate::health::condition::Subject;
use crate::health::diagnose::ModelUse;
use crate::key::Key;
use crate::limit::headroom;

/// A project that has less than this share of a limit left is scarce.
const SCARCE: f64 = 0.1;

/// Maximum number of entries, because clients name models freely.
const MOST: usize = 1_000;

/// The uses of a model by a project whose headroom is scarce, each until a time.
#[derive(Default)]
pub struct Headrooms(RwLock<HashMap<Subject, Instant>>);

impl Headrooms {
    /// Takes the `headers` with which `key`'s upstream has answered a turn. Headers about a special
    /// tier are ignored, because they say nothing about the usual tier. So are those of another
    /// gateway, because they are about one of the keys behind it.
    pub fn observe<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>, headers: &HeaderMap) {
        let asked = asked.into();
        let is_told = asked.tier.is_none() && !key.upstream.host.is_gateway();
        let Some(limit) = headroom(headers).filter(|_| is_told) else { return };
        let (subject, now) = (Subject::model(key, asked.model), Instant::now());
        let is_known = self.is_scarce(key, asked.model);
        if limit.left < SCARCE {
            let mut headrooms = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if headrooms.len() >= MOST {
                headrooms.retain(|_, until| *until > now);
            }
            if headrooms.len() < MOST {
                // Limits refill steadily: there is headroom again long before the limit is whole.
                headrooms.insert(
                    subject,
                    now + limit.reset.mul_f64(SCARCE.mul_add(2.0, -limit.left).max(SCARCE)),
                );
            }
        } else if is_known {
            self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&subject);
        }
    }

    /// Whether `key`'s project has little left for `model`.
    pub fn is_scarce(&self, key: &Key, model: &str) -> bool {
        let headrooms = self.0.read().unwrap_or_else(PoisonError::into_inner);
        !headrooms.is_empty()
            && headrooms
                .get(&Subject::model(key, model))
                .is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;
    use http::{HeaderName, HeaderValue};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn project_is_scarce_until_it_is_refilled_or_says_otherwise() {
        let table = Table::sketch("a o 1 sk-a");
        let (headrooms, key) = (Headrooms::default(), &table.keys()[0]);
        let left = |left: u32| {
            let list = [
                ("limit", "100".to_owned()),
                ("remaining", left.to_string()),
                ("reset", "60s".into()),
            ];
            let name =
                |what: &str| HeaderName::try_from(format!("x-ratelimit-{what}-requests")).unwrap();
            list.into_iter()
                .map(|(what, value)| (name(what), HeaderValue::try_from(value).unwrap()))
                .collect::<HeaderMap>()
        };
        headrooms.observe(key, "m", &left(50));
        assert!(!headrooms.is_scarce(key, "m"));
        headrooms.observe(key, "m", &left(5));
        assert!(headrooms.is_scarce(key, "m") && !headrooms.is_scarce(key, "n"));
        headrooms.observe(key, "m", &HeaderMap::new());
        assert!(headrooms.is_scarce(key, "m"), "an answer without limits changes nothing");
        headrooms.observe(key, "m", &left(40));
        assert!(!headrooms.is_scarce(key, "m"));
        // Limits refill steadily: a fifth of the limit is back after a fifth of its time.
        for (remaining, seconds) in [(0, 12), (5, 9), (9, 6)] {
            headrooms.observe(key, "m", &left(remaining));
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(headrooms.is_scarce(key, "m"), "{remaining} left, after nearly {seconds} s");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!headrooms.is_scarce(key, "m"), "{remaining} left, after {seconds} s");
        }
        headrooms.observe(key, "m", &left(10));
        assert!(!headrooms.is_scarce(key, "m"), "a tenth is headroom");
        // Clients name models freely: the number of entries is bounded, and expired entries give
        // way.
        for number in 0..MOST {
            headrooms.observe(key, number.to_string().as_str(), &left(0));
        }
        headrooms.observe(key, "one more", &left(0));
        assert!(headrooms.is_scarce(key, "999") && !headrooms.is_scarce(key, "one more"));
        tokio::time::advance(Duration::from_secs(13)).await;
        headrooms.observe(key, "one more", &left(0));
        assert!(headrooms.is_scarce(key, "one more"));
    }
}
