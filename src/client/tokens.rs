//! All clients that may call: those of the configuration, and those with tokens in the ledger.
//!
//! Each part changes on its own. Every change replaces the whole set.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Client, ClientId, Clients, TokenHash, hash, parse_hash};
use crate::current::Current;
use crate::setting::Secret;

/// A token in the ledger, and its client.
#[derive(Clone, PartialEq, Eq)]
pub struct LedgerToken {
    hash: TokenHash,
    client: ClientId,
}

impl LedgerToken {
    /// Reads a token's `hash` in hex. `None`: the text is not a hash.
    pub fn new(hash: &str, client: &str) -> Option<Self> {
        Some(Self { hash: parse_hash(hash)?, client: ClientId::new(client) })
    }

    /// The hash of a token, in hex.
    pub fn hash_of(token: &Secret) -> String {
        hash(token.expose()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Both parts, and the set that they make together.
pub struct Roster {
    current: Arc<Current<Clients>>,
    parts: Mutex<Parts>,
}

struct Parts {
    configured: Clients,
    tokens: Vec<LedgerToken>,
}

impl Roster {
    pub fn new(configured: Clients) -> Self {
        let current = Arc::new(Current::new(Arc::new(configured.clone())));
        Self { current, parts: Mutex::new(Parts { configured, tokens: Vec::new() }) }
    }

    /// The current set, which can be followed.
    pub const fn current(&self) -> &Arc<Current<Clients>> {
        &self.current
    }

    /// Replaces the clients of the configuration.
    pub fn configure(&self, configured: Clients) {
        self.change(|parts| {
            parts.configured = configured;
            true
        });
    }

    /// Replaces the clients of the ledger.
    pub fn follow(&self, tokens: Vec<LedgerToken>) {
        self.change(|parts| {
            let is_new = parts.tokens != tokens;
            parts.tokens = tokens;
            is_new
        });
    }

    fn change(&self, change: impl FnOnce(&mut Parts) -> bool) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut parts) {
            // Set while the lock is held, so that the later of two changes stays.
            self.current.set(Arc::new(parts.configured.clone().with(&parts.tokens)));
        }
    }
}

impl Clients {
    /// Adds the clients that hold `tokens`. Each has the rights that the configuration gives to its
    /// id, or all rights if the configuration has no such client.
    fn with(mut self, tokens: &[LedgerToken]) -> Self {
        for token in tokens {
            let known = self.by_id.get(&token.client).map(Arc::clone);
            let client =
                known.unwrap_or_else(|| Arc::new(Client::unrestricted(token.client.as_str())));
            self.by_id.entry(token.client.clone()).or_insert_with(|| Arc::clone(&client));
            // The configuration's entry for a token takes precedence over the ledger's.
            self.by_token.entry(token.hash).or_insert(client);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientSettings;
    use crate::setting::SecretSource;

    fn configured(token: &str) -> Clients {
        let one = |id: &str, token: Option<&str>, models: &[&str]| ClientSettings {
            id: Some(id.into()),
            token: token.map(|token| SecretSource::Text(Secret::new(token))),
            token_sha256: None,
            token_file: None,
            organizations: Vec::new(),
            models: models.iter().map(|&model| model.to_owned()).collect(),
        };
        Clients::new(&[one("alice", Some(token), &[]), one("bob", None, &["gpt"])]).unwrap()
    }

    fn token(token: &str, client: &str) -> LedgerToken {
        LedgerToken::new(&LedgerToken::hash_of(&Secret::new(token)), client).expect("a hash")
    }

    fn whose(roster: &Roster, token: &str) -> Option<String> {
        roster.current().get().by_token.get(&hash(token)).map(|client| client.id.to_string())
    }

    #[test]
    fn either_part_changes_and_leaves_the_other() {
        let roster = Roster::new(configured("a-1"));
        roster.follow(vec![token("b-1", "bob"), token("c-1", "carol"), token("a-1", "carol")]);
        let all = |roster: &Roster| ["a-1", "a-2", "b-1", "c-1"].map(|token| whose(roster, token));
        let named =
            |names: [&str; 4]| names.map(|name| (!name.is_empty()).then(|| name.to_owned()));
        assert_eq!(
            all(&roster),
            named(["alice", "", "bob", "carol"]),
            "the configuration goes before the ledger"
        );
        roster.configure(configured("a-2"));
        assert_eq!(all(&roster), named(["carol", "alice", "bob", "carol"]));
        roster.follow(vec![token("c-1", "carol")]);
        assert_eq!(all(&roster), named(["", "alice", "", "carol"]), "a revoked token is nobody's");
    }

    #[test]
    fn holder_has_the_rights_of_its_name() {
        let roster = Roster::new(configured("a-1"));
        roster.follow(vec![token("b-1", "bob"), token("c-1", "carol")]);
        let clients = roster.current().get();
        let may =
            |token: &str, model: &str| clients.by_token[&hash(token)].may_ask_for(Some(model));
        assert_eq!(
            [may("b-1", "gpt"), may("b-1", "other"), may("c-1", "other")],
            [true, false, true]
        );
    }

    #[test]
    fn unchanged_tokens_are_not_published_again() {
        let roster = Roster::new(configured("a-1"));
        let mut changes = roster.current().follow();
        roster.follow(vec![token("b-1", "bob")]);
        assert!(changes.has_changed().expect("the roster is there"));
        drop(changes.borrow_and_update());
        roster.follow(vec![token("b-1", "bob")]);
        assert!(!changes.has_changed().expect("the roster is there"));
        assert_eq!(LedgerToken::new("no hash", "bob").map(|_| ()), None);
    }
}
