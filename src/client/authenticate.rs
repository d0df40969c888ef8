//! Decides which client is calling, from the headers alone, before any byte of a body is read.
//!
//! Clients show a token as `Authorization: Bearer TOKEN`. The token is looked up by its hash, so
//! that the time of the lookup does not reveal how much of the token was right.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use super::{Client, Clients, TokenHash, hash};
use crate::error::{Error, ErrorKind};
use crate::setting::Secret;

/// The hash of the token that a client showed. A connection keeps it for its life, and never the
/// token.
#[derive(Clone, Copy)]
pub struct TokenProof(Option<TokenHash>);

impl TokenProof {
    pub fn of(headers: &HeaderMap) -> Self {
        let shown = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        Self(shown.map(hash))
    }
}

impl Clients {
    /// The client that `proof` stands for now. `None`: the token was revoked.
    pub fn admit(&self, proof: TokenProof) -> Option<&Arc<Client>> {
        proof.0.and_then(|hash| self.by_token.get(&hash)).or(self.for_all.as_ref())
    }

    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Client>, Error> {
        match (self.find(headers), &self.for_all) {
            (Ok(client), _) => Ok(client),
            (Err(_), Some(client)) => Ok(Arc::clone(client)),
            (Err(error), None) => Err(error),
        }
    }

    fn find(&self, headers: &HeaderMap) -> Result<Arc<Client>, Error> {
        let hash = read_token(headers)?;
        let (known, client) = self.by_token.get_key_value(&hash).ok_or_else(unknown)?;
        if bool::from(known.ct_eq(&hash)) { Ok(Arc::clone(client)) } else { Err(unknown()) }
    }
}

/// The operators' token, kept as its hash, as a client's is.
pub struct AdminToken(TokenHash);

impl AdminToken {
    pub fn new(token: &Secret) -> Self {
        Self(hash(token.expose()))
    }

    pub fn authenticate(&self, headers: &HeaderMap) -> Result<(), Error> {
        let hash = read_token(headers)?;
        if bool::from(self.0.ct_eq(&hash)) { Ok(()) } else { Err(unknown()) }
    }
}

/// The hash of the one token that the request shows.
fn read_token(headers: &HeaderMap) -> Result<TokenHash, Error> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let first = shown
        .next()
        .ok_or_else(|| refusal("No token was given: send `Authorization: Bearer TOKEN`."))?;
    if shown.any(|other| other != first) {
        return Err(refusal("Two different tokens were given: send one."));
    }
    bearer(first.as_bytes()).map(hash).ok_or_else(unknown)
}

fn unknown() -> Error {
    refusal("The token is unknown or revoked: ask the operator of this gateway for another.")
}

fn refusal(why: &str) -> Error {
    Error::new(ErrorKind::InvalidApiKey, why)
}

fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::ClientSettings;
    use crate::setting::{Secret, SecretSource};

    fn clients(open: bool) -> Clients {
        let one = |id: &str, token: &str| ClientSettings {
            id: Some(id.into()),
            token: Some(SecretSource::Text(Secret::new(token))),
            token_sha256: None,
            token_file: None,
            organizations: Vec::new(),
            models: Vec::new(),
        };
        Clients::new(&[one("alice", "wk-alice"), one("bob", "wk-bob")]).unwrap().with_open(open)
    }

    fn ask(clients: &Clients, values: &[&str]) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        clients
            .authenticate(&headers)
            .map(|client| client.id.to_string())
            .map_err(|error| error.code().to_owned())
    }

    #[test]
    fn token_names_its_client() {
        let clients = clients(false);
        assert_eq!(ask(&clients, &["Bearer wk-alice"]).unwrap(), "alice");
        assert_eq!(ask(&clients, &["bearer  wk-bob "]).unwrap(), "bob");
        assert_eq!(ask(&clients, &["Bearer wk-bob", "Bearer wk-bob"]).unwrap(), "bob");
    }

    #[test]
    fn missing_unknown_and_contradicting_tokens_are_refused() {
        let clients = clients(false);
        for wrong in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["wk-alice"],
            &["Basic wk-alice"],
            &["Bearer wk-carol"],
            &["Bearer wk-alicE"],
            &["Bearer wk-alic"],
            &["Bearer wk-alice wk-bob"],
            &["Bearer\twk-alice"],
            &["Bearer wk-alice", "Basic wk-alice"],
            &["Basic x", "Bearer wk-alice"],
            &["Bearer wk-alice", "Bearer wk-bob"],
        ] {
            assert_eq!(ask(&clients, wrong).unwrap_err(), "invalid_api_key", "{wrong:?}");
        }
    }

    #[test]
    fn operators_show_a_token_of_their_own() {
        let token = AdminToken::new(&Secret::new("wk-admin"));
        let ask = |values: &[&str]| {
            let headers = values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap()));
            let mut map = HeaderMap::new();
            map.extend(headers);
            token.authenticate(&map).map_err(|error| error.code())
        };
        assert_eq!(ask(&["Bearer wk-admin"]), Ok(()));
        for wrong in [
            &[][..],
            &["Bearer wk-alice"],
            &["Bearer wk-admi"],
            &["Bearer wk-admin2"],
            &["Basic wk-admin"],
            &["Bearer "],
        ] {
            assert_eq!(ask(wrong), Err("invalid_api_key"), "{wrong:?}");
        }
    }

    #[test]
    fn token_proof_is_good_for_as_long_as_its_token() {
        let admitted = |open: bool, value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            clients(open).admit(TokenProof::of(&headers)).map(|client| client.id.to_string())
        };
        assert_eq!(admitted(false, "Bearer wk-alice").as_deref(), Some("alice"));
        assert_eq!(admitted(false, "Bearer wk-carol"), None);
        assert_eq!(admitted(true, "Bearer wk-carol").as_deref(), Some("open"));
        assert_eq!(admitted(true, "Bearer wk-bob").as_deref(), Some("bob"));
        let nothing = TokenProof::of(&HeaderMap::new());
        assert!(clients(false).admit(nothing).is_none(), "without a token there is no client");
        assert_eq!(
            clients(true).admit(nothing).map(|client| client.id.as_str().to_owned()).as_deref(),
            Some("open")
        );
    }

    #[test]
    fn open_gateway_admits_anybody_and_still_tells_its_clients_apart() {
        let clients = clients(true);
        assert_eq!(ask(&clients, &[]).unwrap(), "open");
        assert_eq!(ask(&clients, &["Bearer sk-whatever"]).unwrap(), "open");
        assert_eq!(ask(&clients, &["Bearer wk-alice"]).unwrap(), "alice");
    }
}
