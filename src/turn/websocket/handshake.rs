//! A WebSocket up to its first message. The client's handshake is answered once the upstream has
//! answered the gateway's handshake.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::binding::Binding;
use crate::binding::demand::{Demand, Tried};
use crate::binding::select::Reach;
use crate::client::Client;
use crate::client::authenticate::TokenProof;
use crate::clock::UpstreamClock;
use crate::error::{Error, ErrorKind};
use crate::limit;
use crate::metrics::Transport;
use crate::outcome::Answer;
use crate::session::lineage::{Lineage, announced_model};
use crate::turn::account::Account;
use crate::turn::http::course::Course;
use crate::turn::http::exchange::{catch_panic, pass_on};
use crate::turn::http::relay::Outgoing;
use crate::turn::websocket::meter::{Meter, Source};
use crate::turn::websocket::peer::frames;
use crate::turn::websocket::socket::{Connection, Socket};
use crate::turn::websocket::sockets::{Open, WebSocketTurns};
use crate::turn::websocket::yielding::ListenerPlace;
use crate::turn::{Attempts, Gateway};
use crate::upstream::headers::{TURN_STATE, hide_models_version, returned};
use crate::upstream::request::{Content, Request as Asked};
use crate::wire::endpoint::Endpoint;

/// `Retry-After` from a replica that leaves. By then, the load balancer sends the client to another
/// replica.
const SOON: Duration = Duration::from_secs(1);

/// Whether a request asks for a WebSocket, even if a proxy has removed part of its handshake.
pub fn is_upgrade_request(headers: &HeaderMap) -> bool {
    names(headers, UPGRADE, "websocket") || headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// Answers a handshake. The gateway forwards nothing from the client before the upstream has
/// accepted the gateway's handshake.
pub async fn serve(turns: Arc<WebSocketTurns>, request: Request<Body>) -> Response<Outgoing> {
    let books = Arc::clone(&turns.gateway.books);
    let account = Account::open(books, Transport::Websocket, request.headers());
    catch_panic(account.id, answer(&turns, account, request)).await
}

async fn answer(
    turns: &Arc<WebSocketTurns>,
    mut account: Account,
    mut request: Request<Body>,
) -> Response<Outgoing> {
    let nonce = generate_key();
    let client = hyper::upgrade::on(&mut request);
    let accepted = accept(turns, &request);
    let (head, _) = request.into_parts();
    let connected = match accepted {
        Ok(accepted) => connect(&turns.gateway, &mut account, &head, &nonce)
            .await
            .map(|connected| (accepted, connected)),
        Err(error) => Err(error),
    };
    match connected {
        Ok((accepted, mut connected)) => {
            hide_models_version(&mut connected.answer.headers, &connected.client);
            match connected.answer.upgrade.take() {
                Some(upstream) => {
                    open(turns, account, &head, connected, (client, upstream), accepted)
                }
                None => {
                    let key = connected.binding.key;
                    let course = Course::new(&turns.gateway, &turns.memory, key, account);
                    pass_on(course, connected.answer, None, &turns.answers).await
                }
            }
        }
        Err(error) => {
            account.note_error(&error);
            error.to_response()
        }
    }
}

/// A handshake that the upstream has answered.
struct Connected {
    client: Arc<Client>,
    lineage: Lineage,
    announced: String,
    binding: Binding,
    answer: Answer,
}

/// Sends a handshake to the upstream and reads the head of its answer. The client's headers name
/// everything that the binding needs.
async fn connect(
    gateway: &Gateway,
    account: &mut Account,
    head: &Parts,
    nonce: &str,
) -> Result<Connected, Error> {
    let Gateway { entry, bindings, failover, .. } = gateway;
    let (client, identity) = entry.enter(account, head)?;
    account.note_session(&identity);
    let complete = Instant::now();
    let mut budget = bindings.budget();
    let found = match &identity.session {
        Some(session) => bindings.look_up(session, &mut budget).await,
        None => Ok(None),
    };
    let model = announced_model(&head.headers).unwrap_or_default();
    let demand = Demand {
        session: identity.session,
        lineage: entry.identifier.lineage(&client.id, &head.headers),
        turn_state: head.headers.get(TURN_STATE).map(HeaderValue::as_bytes),
        by_websocket: true,
        model: &model,
        ..Demand::of(&client)
    };
    account.note_lineage(&demand.lineage);
    let asked = Asked::new(head, Endpoint::OpenWebSocket, Content::WebSocket(nonce))
        .of_session(demand.session.as_ref())
        .with_hop(entry.identifier.hop(demand.session.as_ref(), &demand.lineage));
    let turn = (&demand, Tried::nothing(failover.options.wait), Reach::Anywhere);
    let attempts = Attempts::new(gateway, account, &asked, turn, &mut budget);
    let served = attempts.run(found, complete).await;
    let (binding, answer) = served.map_err(|error| error.for_handshake())?;
    let lineage = demand.lineage;
    Ok(Connected { client, lineage, announced: model, binding, answer })
}

/// Returns the `Sec-WebSocket-Accept` of a valid handshake.
fn accept(turns: &WebSocketTurns, request: &Request<Body>) -> Result<HeaderValue, Error> {
    let headers = request.headers();
    let is_upgrade = request.version() == Version::HTTP_11
        && names(headers, UPGRADE, "websocket")
        && names(headers, CONNECTION, "upgrade")
        && headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    if !is_upgrade {
        // With any other status, Codex tries again and again before it uses HTTP.
        return Err(Error::new(
            ErrorKind::UpgradeRequired,
            "This is not the handshake of a WebSocket: a proxy must pass `Connection: Upgrade`, \
             `Upgrade: websocket` and `Sec-WebSocket-Version: 13` on over HTTP/1.1.",
        ));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| request.body().is_end_stream());
    let accepted =
        key.and_then(|key| HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok());
    let accepted = accepted.ok_or_else(|| {
        Error::new(ErrorKind::InvalidRequest, "This is not the handshake of a WebSocket.")
    })?;
    if turns.closing.is_cancelled() {
        return Err(Error::new(
            ErrorKind::NoKeyAvailable,
            "This replica is shutting down: connect again.",
        )
        .retry_after(SOON));
    }
    Ok(accepted)
}

/// Joins both connections. Each turn on the WebSocket gets its own account.
fn open(
    turns: &Arc<WebSocketTurns>,
    account: Account,
    head: &Parts,
    connected: Connected,
    (client_connection, upstream_connection): (OnUpgrade, OnUpgrade),
    accepted: HeaderValue,
) -> Response<Outgoing> {
    let Connected { client, lineage, announced, binding, answer } = connected;
    let mut response = Response::new(Outgoing::Own(Body::empty()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    *headers = returned(&answer.headers, &binding.key.secret);
    // A 101 has no content, so it has no `content-length`.
    headers.remove(CONTENT_LENGTH);
    headers.remove(CONTENT_ENCODING);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);

    let open = Open::new(Arc::clone(&turns.gateway.books.metrics));
    let (caller, domain_moved) = account.close_handshake();
    let clock = UpstreamClock::set(limit::date(&answer.headers));
    let (owner, proof) = (Arc::clone(turns), TokenProof::of(&head.headers));
    let place = head.extensions.get::<ListenerPlace>().cloned();
    let connection = Connection {
        turns: owner,
        binding,
        client,
        lineage,
        announced,
        caller,
        proof,
        clock,
        domain_moved,
        place,
    };
    turns.connections.spawn(async move {
        let _open = open;
        // If the client has left by now, this task drops the upstream's connection, too.
        let (Ok(client), Ok(upstream)) = tokio::join!(client_connection, upstream_connection)
        else {
            return;
        };
        let memory = connection.turns.memory.of(&connection.client.id);
        let meters = [Source::Client, Source::Upstream].map(|it| Meter::new(it, memory.clone()));
        let client = frames(client, Role::Server, meters[0].clone());
        let upstream = frames(upstream, Role::Client, meters[1].clone());
        Socket::run(connection, client, upstream, meters).await;
    });
    response
}

/// Whether the list header `name` contains `word`.
fn names(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::websocket::sockets::tests::turns;
    use http::header::{HOST, ORIGIN};

    /// A client's handshake, with one header `changed`.
    fn handshake(changed: Option<(HeaderName, &'static str)>) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        let list = [
            (HOST, "gateway"),
            (CONNECTION, "keep-alive, Upgrade"),
            (UPGRADE, "WebSocket"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in list.into_iter().chain(changed) {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn handshake_is_accepted_only_if_it_is_valid() {
        let turns = turns(&[("a", "o", "p")]);
        let answered =
            |request: &Request<Body>| accept(&turns, request).map_err(|error| error.code());
        let ours = handshake(None);
        assert!(is_upgrade_request(ours.headers()));
        // The example in RFC 6455, section 1.3.
        assert_eq!(answered(&ours).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for changed in [
            (SEC_WEBSOCKET_VERSION, "8"),
            (SEC_WEBSOCKET_VERSION, ""),
            (CONNECTION, "keep-alive"),
            (CONNECTION, "upgrades"),
        ] {
            assert_eq!(
                answered(&handshake(Some(changed.clone()))).unwrap_err(),
                "websocket_not_supported",
                "{changed:?}"
            );
        }
        for version in [Version::HTTP_10, Version::HTTP_2] {
            let mut other = handshake(None);
            *other.version_mut() = version;
            assert_eq!(answered(&other).unwrap_err(), "websocket_not_supported", "{version:?}");
        }
        let with_body = handshake(None).map(|_| Body::from("x"));
        assert_eq!(answered(&with_body).unwrap_err(), "invalid_request");
        let mut stripped = handshake(None);
        stripped.headers_mut().remove(UPGRADE);
        assert!(is_upgrade_request(stripped.headers()));
        assert_eq!(answered(&stripped).unwrap_err(), "websocket_not_supported");
        assert!(accept(&turns, &handshake(Some((ORIGIN, "https://evil.example")))).is_ok());
    }

    #[test]
    fn replica_that_leaves_opens_no_connection() {
        let turns = turns(&[("a", "o", "p")]);
        turns.closing.cancel();
        let error = accept(&turns, &handshake(None)).unwrap_err();
        assert_eq!(
            (error.code(), error.retry_after),
            ("no_key_available", Some(SOON)),
            "another replica accepts the handshake"
        );
    }
}
