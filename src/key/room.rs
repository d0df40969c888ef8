//! What the upstream's own headers say is left of each project's limits. New sessions prefer where there is room; nothing that
//! lives moves for it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use http::HeaderMap;
use tokio::time::Instant;

use super::{Key, Tag};
use crate::limit::headroom;

/// A project with less than this left of a limit is scarce.
const SCARCE: f64 = 0.1;

/// The projects that are scarce, and until when.
#[derive(Default)]
pub struct Rooms(RwLock<HashMap<Tag, Instant>>);

impl Rooms {
    /// `key`'s upstream has answered with `headers`.
    pub fn observe(&self, key: &Key, headers: &HeaderMap) {
        let Some(room) = headroom(headers) else { return };
        let is_known = self.is_scarce(key);
        if room.left < SCARCE {
            // Refilled steadily: there is room again long before the limit is whole.
            let until = Instant::now() + room.reset.mul_f64(SCARCE.mul_add(2.0, -room.left).max(SCARCE));
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.project_tag, until);
        } else if is_known {
            self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&key.project_tag);
        }
    }

    pub fn is_scarce(&self, key: &Key) -> bool {
        let rooms = self.0.read().unwrap_or_else(PoisonError::into_inner);
        rooms.get(&key.project_tag).is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::table::Table;
    use http::{HeaderName, HeaderValue};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_project_is_scarce_until_it_is_refilled_or_says_otherwise() {
        let table = Table::sketch("a o 1 sk-a");
        let (rooms, key) = (Rooms::default(), &table.keys()[0]);
        let left = |left: u32| {
            let list = [("limit", "100".to_owned()), ("remaining", left.to_string()), ("reset", "60s".into())];
            let name = |what: &str| HeaderName::try_from(format!("x-ratelimit-{what}-requests")).unwrap();
            list.into_iter().map(|(what, value)| (name(what), HeaderValue::try_from(value).unwrap())).collect::<HeaderMap>()
        };
        rooms.observe(key, &left(50));
        assert!(!rooms.is_scarce(key));
        rooms.observe(key, &left(5));
        assert!(rooms.is_scarce(key));
        rooms.observe(key, &HeaderMap::new());
        assert!(rooms.is_scarce(key), "who says nothing changes nothing");
        rooms.observe(key, &left(40));
        assert!(!rooms.is_scarce(key));
        rooms.observe(key, &left(0));
        tokio::time::advance(Duration::from_secs(13)).await;
        assert!(!rooms.is_scarce(key));
    }
}
