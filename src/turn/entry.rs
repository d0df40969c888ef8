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
use crate::wire::references::References;

/// Query parameters in which a client might send a credential. A credential in a URL would end up
/// in logs on the way.
const CREDENTIALS: [&str; 6] =
    ["key", "api_key", "api-key", "subscription-key", "token", "access_token"];

/// Query parameters that some servers read in place of the request's method or of fields of its
/// body. The rules read only the request line and the body.
const OVERRIDES: [&str; 15] = [
    "_method",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "model",
    "input",
    "messages",
    "tools",
    "prompt",
    "previous_response_id",
    "conversation",
    "client_metadata",
    "prompt_cache_key",
    "service_tier",
    "store",
];

/// `server.foreign_ids`: whether a turn may continue from an id that never passed through this
/// gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignIds {
    /// The turn is answered as if the id did not exist, because the id may be another client's.
    #[default]
    Refuse,
    /// The turn goes to its session's key. This suits a gateway that is new in front of keys that
    /// its clients have used before.
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
        check_query(&head.uri)?;
        let identity = self.identifier.by_headers(&client.id, &head.headers);
        Ok((client, identity))
    }

    /// Authenticates the client of a request, and notes the client in the account. A request of
    /// wrong form gets no further.
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

/// Checks that `client` may ask for `model`. `references`: what a scan has found in the request. If
/// its duplicate fields disagree, the upstream may read another model than the gateway.
pub fn may_ask_for(
    client: &Client,
    model: Option<&str>,
    references: References,
) -> Result<(), Error> {
    let is_sure = !references.names_two_models || !client.has_models();
    match is_sure && client.may_ask_for(model) {
        true => Ok(()),
        false => {
            Err(Error::new(ErrorKind::ModelNotAllowed, "This client may not ask for this model."))
        }
    }
}

/// Refuses a query that holds a credential, or that an upstream might read in place of what the
/// rules have checked. Other parameters pass, because new clients need new ones.
fn check_query(uri: &Uri) -> Result<(), Error> {
    for pair in uri.query().unwrap_or_default().split(['&', ';']) {
        let name = name_of(pair);
        // `input[0][id]` and `input.id` name the field `input`.
        let outer = name.split(['[', '.']).next().unwrap_or_default().trim();
        let is_in = |list: &[&str]| list.iter().any(|one| outer.eq_ignore_ascii_case(one));
        if is_in(&CREDENTIALS) {
            return Err(Error::new(
                ErrorKind::CredentialInUrl,
                "A credential in the URL is not accepted: send `Authorization: Bearer TOKEN`.",
            ));
        }
        if is_in(&OVERRIDES) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "The URL's query must name neither a method nor a field of the body.",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_in_a_url_is_recognized_by_its_name() {
        let refused = |query: &str| {
            check_query(&format!("/v1/responses?{query}").parse().unwrap()).err().map(|e| e.code())
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
            "a=1;key=x",
            "key%20=x",
        ] {
            assert_eq!(refused(query), Some("invalid_api_key"), "{query}");
        }
        for query in ["", "a=key", "monkey=x", "keys=x", "client_version=1&a=token"] {
            assert_eq!(refused(query), None, "{query}");
        }
        assert!(check_query(&"/v1/responses".parse().unwrap()).is_ok());
    }

    /// A server that reads the query as a form would find fields there that no rule has checked.
    #[test]
    fn query_names_neither_a_method_nor_a_field_of_the_body() {
        let code = |query: &str| {
            let checked = check_query(&format!("/v1/responses/resp_1?{query}").parse().unwrap());
            checked.err().map(|error| error.code())
        };
        for query in [
            "_method=DELETE",
            "stream=true&_METHOD=DELETE",
            "%5Fmethod=DELETE",
            "X-HTTP-Method-Override=DELETE",
            "previous_response_id=resp_1",
            "previous%5Fresponse_id=resp_1",
            "input[0][id]=msg_1",
            "input%5B%5D=x",
            "conversation.id=conv_1",
            "a=1;model=gpt-5.4",
        ] {
            assert_eq!(code(query), Some("invalid_request"), "{query}");
        }
        for query in [
            "include[]=reasoning.encrypted_content",
            "stream=true&starting_after=7&include_obfuscation=false",
            "after=msg_1&limit=20&order=asc",
            "client_version=0.169.0",
            "api-version=2026-01-01",
            "methods=x&inputs=y&a=model",
        ] {
            assert_eq!(code(query), None, "{query}");
        }
    }

    /// Two models in one request are refused only to a client that may not ask for every model.
    #[test]
    fn duplicates_of_a_model_agree_where_models_are_limited() {
        let asks = |client: &Client, body: &str| {
            let peek = crate::wire::peek::Peek::at(body.as_bytes()).unwrap();
            may_ask_for(client, peek.model.text(), peek.references).is_ok()
        };
        let (alice, bob) = (Client::of_models("alice", &["m"]), Client::unrestricted("bob"));
        for (body, expected) in [
            (r#"{"model":"m"}"#, true),
            (r#"{"model":"m","model":"m"}"#, true),
            (r#"{"model":"n","model":"m"}"#, false),
            (r#"{"model":"m","mod\u0065l":"n"}"#, false),
        ] {
            assert_eq!((asks(&alice, body), asks(&bob, body)), (expected, true), "{body}");
        }
    }
}
