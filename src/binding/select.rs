//! Ranks the keys for a session by weighted rendezvous hashing: first the organization, then the
//! key. Pure.
//!
//! The order depends only on the session, the configured keys and their weights. All replicas
//! therefore find the same order, with or without the store. A new key takes its share from all
//! other keys and moves no session between them.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::key::{Key, Tag};

/// The keys that a turn may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Anywhere,
    /// The turn's history may hold content that only this organization can open.
    Organization(Tag),
    /// The turn continues or refers to content that only this project stores.
    Project {
        organization: Tag,
        project: Tag,
    },
    /// The turn refers to content of a project that has no loaded key.
    Nowhere,
}

impl Reach {
    pub const fn project_of(key: &Key) -> Self {
        Self::Project { organization: key.organization_tag, project: key.project_tag }
    }

    pub fn includes(self, key: &Key) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Nowhere => false,
            Self::Organization(organization) => key.organization_tag == organization,
            Self::Project { organization, project } => {
                key.organization_tag == organization && key.project_tag == project
            }
        }
    }

    /// Whether this reach can include a key of the organization `tag`.
    pub fn touches(self, tag: Tag) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Nowhere => false,
            Self::Organization(organization) | Self::Project { organization, .. } => {
                organization == tag
            }
        }
    }
}

/// Returns the first key in the session's order that has weight and is `usable`.
///
/// The weight of all of an organization's `keys`, usable or not, ranks the organization. An
/// unusable key therefore changes nothing for sessions of other organizations.
pub fn first<'k>(
    session: &str,
    keys: &[&'k Arc<Key>],
    usable: impl Fn(&Key) -> bool,
) -> Option<&'k Arc<Key>> {
    let mut organizations: Vec<(Tag, f64)> = Vec::new();
    for key in keys {
        match organizations.iter_mut().find(|(tag, _)| *tag == key.organization_tag) {
            Some((_, weight)) => *weight += f64::from(key.weight),
            None => organizations.push((key.organization_tag, f64::from(key.weight))),
        }
    }
    rank(session, &mut organizations, |(tag, weight)| (*tag, *weight));
    organizations.iter().find_map(|(organization, _)| {
        let mut siblings: Vec<_> = keys
            .iter()
            .copied()
            .filter(|key| key.organization_tag == *organization && key.weight > 0 && usable(key))
            .collect();
        rank(session, &mut siblings, |key| (key.tag, f64::from(key.weight)));
        siblings.into_iter().next()
    })
}

/// Sorts by falling score.
fn rank<T>(session: &str, items: &mut [T], describe: impl Fn(&T) -> (Tag, f64)) {
    items.sort_by_cached_key(|item| {
        let (tag, weight) = describe(item);
        let score = weight / -fraction(session, tag).ln();
        // A score is never negative or NaN, so its bits sort as the float does.
        std::cmp::Reverse((score.to_bits(), tag.to_string()))
    });
}

/// Returns a number in (0, 1), evenly distributed and the same on every replica for a session and a
/// tag.
fn fraction(session: &str, tag: Tag) -> f64 {
    evenly(session, &tag.to_string())
}

/// Returns a session's number in (0, 1), evenly distributed and independent of the order of keys. A
/// key that takes only a share of new sessions takes those with a lower number.
pub fn share(session: &str) -> f64 {
    evenly(session, "share")
}

fn evenly(session: &str, salt: &str) -> f64 {
    let digest = Sha256::new().chain_update(session).chain_update(salt).finalize();
    let bits = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeySettings, UpstreamSettings, table::Table};
    use crate::setting::{Secret, SecretSource};

    /// Each key is `(id, organization, weight)`.
    fn keys(list: &[(&str, &str, u32)]) -> Table {
        let upstream: UpstreamSettings =
            serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
        let keys: Vec<_> = list
            .iter()
            .map(|(id, organization, weight)| KeySettings {
                id: (*id).into(),
                upstream: "u".into(),
                organization: (*organization).into(),
                project: None,
                region: None,
                weight: *weight,
                secret: SecretSource::Text(Secret::new("sk")),
            })
            .collect();
        Table::new(&[upstream], &keys).unwrap()
    }

    fn choose(table: &Table, n: u32, usable: impl Fn(&Key) -> bool) -> String {
        let keys: Vec<_> = table.keys().iter().collect();
        first(&format!("session-{n}"), &keys, usable).map(|key| key.id.clone()).unwrap_or_default()
    }

    fn share(table: &Table, id: &str) -> f64 {
        f64::from((0..4_000).filter(|n| choose(table, *n, |_| true) == id).count() as u32) / 4_000.0
    }

    #[test]
    fn sessions_spread_by_weight_and_organization() {
        let table = keys(&[("a-1", "a", 1), ("a-2", "a", 2), ("b-1", "b", 1)]);
        for (id, expected) in [("a-1", 0.25), ("a-2", 0.5), ("b-1", 0.25)] {
            assert!((share(&table, id) - expected).abs() < 0.03, "{id}: {}", share(&table, id));
        }
    }

    #[test]
    fn new_key_takes_its_share_and_moves_nothing_else() {
        let old = keys(&[("a-1", "a", 1), ("b-1", "b", 1), ("c-1", "c", 1)]);
        let new = keys(&[("a-1", "a", 1), ("b-1", "b", 1), ("c-1", "c", 1), ("d-1", "d", 1)]);
        for n in 0..2_000 {
            let (before, after) = (choose(&old, n, |_| true), choose(&new, n, |_| true));
            assert!(before == after || after == "d-1");
        }
        assert!((share(&new, "d-1") - 0.25).abs() < 0.03);
    }

    #[test]
    fn dead_key_gives_its_sessions_to_its_organization_first() {
        let table = keys(&[("a-1", "a", 1), ("a-2", "a", 1), ("b-1", "b", 1)]);
        for n in 0..500 {
            let (ready, dead) =
                (choose(&table, n, |_| true), choose(&table, n, |key| key.id != "a-1"));
            assert_eq!(dead, if ready == "a-1" { "a-2".to_owned() } else { ready });
        }
    }

    #[test]
    fn share_of_sessions_is_even_and_independent_of_their_keys() {
        let table = keys(&[("a-1", "a", 1), ("b-1", "b", 1)]);
        for id in ["a-1", "b-1"] {
            let there: Vec<_> = (0..4_000).filter(|n| choose(&table, *n, |_| true) == id).collect();
            let below = |share: f64| {
                there.iter().filter(|n| super::share(&format!("session-{n}")) < share).count()
            };
            for share in [0.1, 0.5, 0.9] {
                let found = below(share) as f64 / there.len() as f64;
                assert!((found - share).abs() < 0.04, "{id}: {found} of {share}");
            }
        }
    }

    #[test]
    fn reach_is_as_wide_as_it_says() {
        let table = keys(&[("a-1", "a", 1), ("b-1", "b", 1)]);
        let [a, b] = table.keys() else { panic!("two keys") };
        let other = Key { project_tag: Tag::of("project", b"other"), ..Key::clone(a) };
        let project = Reach::project_of(a);
        let organization = Reach::Organization(a.organization_tag);
        for (reach, expected) in [
            (Reach::Anywhere, [true, true, true]),
            (organization, [true, true, false]),
            (project, [true, false, false]),
            (Reach::Nowhere, [false, false, false]),
        ] {
            assert_eq!(
                [a, &Arc::new(other.clone()), b].map(|key| reach.includes(key)),
                expected,
                "{reach:?}"
            );
            assert_eq!(
                [a, b].map(|key| reach.touches(key.organization_tag)),
                [expected[0], expected[2]],
                "{reach:?}"
            );
        }
    }

    #[test]
    fn weightless_key_takes_no_new_session() {
        let table = keys(&[("a-1", "a", 0), ("a-2", "a", 1)]);
        assert!((0..200).all(|n| choose(&table, n, |_| true) == "a-2"));
        assert_eq!(choose(&keys(&[("a-1", "a", 0)]), 0, |_| true), "");
    }
}
