//! An OpenAI to test against: organizations, projects, keys, regions, sealed reasoning and rate
//! limits. Its prompt cache is stricter than the real one. A test can make it answer with any
//! error. A judge records each turn.
//!
//! The simulator serves `POST /responses`, WebSocket mode on the same path, the requests about
//! stored responses, `POST /chat/completions`, `GET /models` and `GET /models/{id}`, with and
//! without `/v1`. Its own paths begin with `/_sim/`.
//! It connects to nothing and keeps nothing on disk.
//!
//! The simulator judges the gateway, so it reads, decides and counts with code of its own. A parser
//! that both shared would hide the gateway's faults. `simulator/directive.rs` lists what the last
//! user text of a request may ask of the simulator.

mod clock;
mod date;
mod settings;

mod answer;
mod directive;
mod form;
mod json;
mod seal;

mod refusal;

mod body;
mod leak;
mod key;
mod model;
mod request;

mod prefix;

mod cache;
mod limits;
mod machine;

mod archive;
mod diagnosis;
mod fault;
mod faults;
pub mod judge;
pub mod probes;
mod calls;
pub mod sockets;
mod stored;
mod items;

mod world;

mod control;
mod reply;
mod chat;
mod stream;

mod caller;
mod turn;

mod http;
mod probing;
mod recall;

mod frame;
mod lanes;
mod local;

mod connection;
mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Response, StatusCode, header};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use tokio_util::sync::CancellationToken;

use crate::server::listener::Listener;
use crate::task::Tasks;

pub use clock::Advance;
pub use fault::{Fault, Scope};
pub use settings::{Config, KeyConfig};
pub use sockets::Order;

use form::Form;
use refusal::Refusal;
use websocket::Lifecycle;
use world::World;

/// Most bytes of a request to the judge.
const MOST_FAULT_BYTES: usize = 64 * 1024;

/// The simulated upstream.
pub struct Simulator {
    world: Arc<World>,
}

impl Simulator {
    /// Reads the keys' secrets. The error is one line and names no secret.
    pub fn new(config: &Config) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self { world: Arc::new(World::new(config)?) }))
    }

    /// Checks that the simulator may serve at `address`, because the judge shows what strangers
    /// must not see.
    pub fn admits(&self, address: SocketAddr) -> Result<(), String> {
        if address.ip().is_loopback() || self.world.config.expose {
            return Ok(());
        }
        Err(format!(
            "the simulated upstream does not listen on {address}: set sim.expose = true if you mean it"
        ))
    }

    fn router(self: &Arc<Self>, lifecycle: Lifecycle) -> Router {
        let mut router = Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/_sim/sockets", get(async |State(simulator): Sim| json(&simulator.sockets())))
            .route("/_sim/close", post(close))
            .route("/_sim/probes", get(async |State(simulator): Sim| json(&simulator.probes())))
            .route("/_sim/calls", get(async |State(simulator): Sim| json(&simulator.calls())))
            .route("/_sim/turns", get(async |State(simulator): Sim| json(&simulator.turns())))
            .route("/_sim/summary", get(async |State(simulator): Sim| json(&simulator.summary())))
            .route("/_sim/fault", post(add_fault).delete(clear_faults))
            .route("/_sim/clock", post(set_clock))
            .route("/_sim/reset", post(reset));
        for base in ["", "/v1"] {
            let lifecycle = lifecycle.clone();
            router = router
                .route(
                    &format!("{base}/responses"),
                    post(async |State(simulator): Sim, request: Request| {
                        http::serve(&simulator.world, Form::Response, request).await
                    })
                    .get(move |State(simulator): Sim, request: Request| {
                        upgrade(simulator, lifecycle, request)
                    }),
                )
                .route(
                    &format!("{base}/chat/completions"),
                    post(async |State(simulator): Sim, request: Request| {
                        match simulator.world.config.chat {
                            true => http::serve(&simulator.world, Form::Chat, request).await,
                            false => unknown(request).await,
                        }
                    }),
                )
                .route(
                    &format!("{base}/responses/compact"),
                    post(async |State(simulator): Sim, request: Request| {
                        http::serve(&simulator.world, Form::Compaction, request).await
                    }),
                )
                .route(&format!("{base}/responses/input_tokens"), post(call))
                .route(&format!("{base}/responses/{{id}}"), get(call).delete(call))
                .route(&format!("{base}/responses/{{id}}/cancel"), post(call))
                .route(&format!("{base}/responses/{{id}}/input_items"), get(call))
                .route(
                    &format!("{base}/models"),
                    get(async |State(simulator): Sim, request: Request| {
                        let query = request.uri().query();
                        probing::serve(&simulator.world, request.headers(), query).await
                    }),
                )
                .route(&format!("{base}/models/{{*id}}"), get(call));
        }
        router.method_not_allowed_fallback(unknown).fallback(unknown).with_state(Arc::clone(self))
    }

    /// Serves until `closing` is cancelled. Refuses an address that [`Self::admits`] refuses.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        tasks: Tasks,
        closing: CancellationToken,
    ) {
        match listener
            .address()
            .map_err(|error| error.to_string())
            .and_then(|address| self.admits(address))
        {
            Ok(()) => {
                let lifecycle = Lifecycle { tasks: tasks.clone(), closing: closing.clone() };
                listener.serve(self.router(lifecycle), tasks, closing).await;
            }
            Err(error) => tracing::error!(%error, "simulated upstream not served"),
        }
    }

    /// Every turn on record, oldest first.
    pub fn turns(&self) -> Vec<judge::Turn> {
        self.world.judge.turns()
    }

    /// Every `GET /models` on record, oldest first.
    pub fn probes(&self) -> Vec<probes::Probe> {
        self.world.probes.all()
    }

    /// Every request that is no turn, oldest first.
    fn calls(&self) -> Vec<calls::Call> {
        self.world.calls.all()
    }

    /// Every WebSocket on record, oldest first.
    pub fn sockets(&self) -> Vec<sockets::Socket> {
        self.world.sockets.all()
    }

    /// Closes the open WebSockets that match `order`, and returns how many.
    pub fn close(&self, order: &Order) -> usize {
        self.world.sockets.close(order)
    }

    pub fn summary(&self) -> judge::Summary {
        self.world.judge.summary()
    }

    /// Lets `span` pass on the simulator's clock at once.
    pub fn advance(&self, span: Duration) {
        self.world.clock.advance(span);
    }

    /// Forgets all turns, faults, limits, caches and stored responses.
    pub fn reset(&self) {
        self.world.reset();
    }

    pub fn add_fault(&self, fault: Fault) -> Result<(), String> {
        self.world.memory().faults.add(fault)
    }

    /// Clears each fault that names everything that `scope` names.
    pub fn clear_faults(&self, scope: &Scope) {
        self.world.memory().faults.clear(scope);
    }
}

type Sim = State<Arc<Simulator>>;

async fn call(State(simulator): Sim, request: Request) -> Response<Body> {
    recall::serve(&simulator.world, request).await
}

async fn upgrade(
    simulator: Arc<Simulator>,
    lifecycle: Lifecycle,
    request: Request,
) -> Response<Body> {
    if simulator.world.config.websocket && websocket::is_upgrade(request.headers()) {
        return websocket::serve(&simulator.world, lifecycle, request).await;
    }
    unknown(request).await
}

async fn close(State(simulator): Sim, request: Request) -> Response<Body> {
    match read::<Order>(request, "invalid_order").await {
        Ok(order) => typed(format!("{{\"closed\":{}}}", simulator.close(&order))),
        Err(refusal) => refusal.response(),
    }
}

async fn add_fault(State(simulator): Sim, request: Request) -> Response<Body> {
    let refused = |error: String| Refusal::invalid(Some("invalid_fault"), None, error);
    let added = read(request, "invalid_fault")
        .await
        .and_then(|fault| simulator.add_fault(fault).map_err(refused));
    added.map_or_else(|refusal| refusal.response(), |()| no_content())
}

/// Reads the body of a request to the judge. An empty body counts as `{}`.
async fn read<T: serde::de::DeserializeOwned>(request: Request, code: &str) -> Result<T, Refusal> {
    let refused = |error: String| Refusal::invalid(Some(code), None, error);
    let body = Limited::new(request.into_body(), MOST_FAULT_BYTES)
        .collect()
        .await
        .map_err(|error| refused(error.to_string()))?;
    let body = body.to_bytes();
    serde_json::from_slice(if body.is_empty() { b"{}" } else { &body })
        .map_err(|error| refused(error.to_string()))
}

async fn clear_faults(State(simulator): Sim, request: Request) -> Response<Body> {
    let scope = read(request, "invalid_scope").await;
    scope.map_or_else(
        |refusal| refusal.response(),
        |scope| {
            simulator.clear_faults(&scope);
            no_content()
        },
    )
}

async fn set_clock(State(simulator): Sim, request: Request) -> Response<Body> {
    match read::<Advance>(request, "invalid_advance").await {
        Ok(Advance { advance }) => {
            simulator.advance(advance.0);
            no_content()
        }
        Err(refusal) => refusal.response(),
    }
}

async fn reset(State(simulator): Sim) -> Response<Body> {
    simulator.reset();
    no_content()
}

async fn unknown(request: Request) -> Response<Body> {
    let message = format!("Invalid URL ({} {})", request.method(), request.uri().path());
    Refusal::invalid(None, None, message).with_status(StatusCode::NOT_FOUND).response()
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    typed(serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")))
}

fn typed(text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests;
