//! The one entry for every turn, over HTTP and on a WebSocket. Authenticates the client, identifies
//! the session, and checks what the turn may ask for.

use std::sync::Arc;

use ::http::request::Parts;
use ::http::{HeaderMap, Uri};
use serde::Deserialize;

use crate::binding::ownership::Owners;
use crate::client::authenticate::TokenProof;
use crate::client::{Client, Clients};
use crate::current::Current;
use crate::error::{Error, ErrorKind};
use crate::session::identify::{Identifier, Identity};
use crate::setting;
use crate::turn::account::Account;
use crate::wire::query::name_of;

/// Query parameters in which a client might send a credential. A credential in a URL would end up
/// in logs on the way.
const CREDENTIALS: [&str; 6] =
    ["key", "api_key", "api-key", "subscription-key", "token", "access_token"];

/// `server.foreign_ids`: whether a turn may continue from an id that never passed through this
/// gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignIds {
    /// The turn is answered as if the id did not exist, because the id may be another client's.
    #[default]
    Refuse,
    /// The turn goes to its session's key. For a gateway that is new in front of keys that its
    /// clients have used before.
    Pass,
}

impl<'de> Deserialize<'de> for ForeignIds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::word(deserializer, &[("refuse", Self::Refuse), ("pass", Self::Pass)])
    }
}

/// Checks that come first in every turn.
pub struct Entry {
    pub clients: Arc<Current<Clients>>,
    pub identifier: Identifier,
    /// The owners of stored responses.
    pub owners: Arc<Owners>,
    pub foreign_ids: ForeignIds,
}

impl Entry {
    /// Authenticates the client of a request, and identifies the session if the head names one.
    pub fn enter(
        &self,
        account: &mut Account,
        head: &Parts,
    ) -> Result<(Arc<Client>, Identity), Error> {
        let client = self.authenticate(account, &head.headers)?;
        refuse_credentials(&head.uri)?;
        let identity = self.identifier.by_headers(&client.id, &head.headers);
        Ok((client, identity))
    }

    /// Authenticates the client of a request, and notes the client in the account. A request that is
    /// refused for its form gets no further.
    pub fn authenticate(
        &self,
        account: &mut Account,
        headers: &HeaderMap,
    ) -> Result<Arc<Client>, Error> {
        let client = self.clients.get().authenticate(headers)?;
        account.note_client(&client.id);
        Ok(client)
    }

    /// Authenticates the client of an open connection again, because its rights may have changed
    /// since.
    pub fn enter_again(&self, proof: TokenProof) -> Result<Arc<Client>, Error> {
        let revoked = || Error::new(ErrorKind::InvalidApiKey, "The token was revoked.");
        self.clients.get().admit(proof).cloned().ok_or_else(revoked)
    }
}

/// Checks that `client` may ask for `model`.
pub fn may_ask_for(client: &Client, model: Option<&str>) -> Result<(), Error> {
    match client.may_ask_for(model) {
        true => Ok(()),
        false => {
            Err(Error::new(ErrorKind::ModelNotAllowed, "This client may not ask for this model."))
        }
    }
}

fn refuse_credentials(uri: &Uri) -> Result<(), Error> {
    let mut names = uri.query().unwrap_or_default().split('&').map(name_of);
    match names.any(|name| CREDENTIALS.iter().any(|one| name.eq_ignore_ascii_case(one))) {
        true => Err(Error::new(
            ErrorKind::InvalidApiKey,
            "A credential in the URL is not accepted: send `Authorization: Bearer TOKEN`.",
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_in_a_url_is_recognized_by_its_name() {
        let refused = |query: &str| {
            refuse_credentials(&format!("/v1/responses?{query}").parse().unwrap())
                .err()
                .map(|e| e.code())
        };
        for query in [
            "key=x",
            "api_key=x",
            "api-key=x",
            "token=x",
            "access_token=x",
            "a=1&Key=x&b=2",
            "a&TOKEN",
            "key",
            "api%2Dkey=x",
            "a=1&%6Bey=x",
            "subscription-key=x",
            "Subscription%2dKey=x",
        ] {
            assert_eq!(refused(query), Some("invalid_api_key"), "{query}");
        }
        for query in ["", "a=key", "monkey=x", "keys=x", "client_version=1&a=token", "key%20=x"] {
            assert_eq!(refused(query), None, "{query}");
        }
        assert!(refuse_credentials(&"/v1/responses".parse().unwrap()).is_ok());
    }
}
