//! An OpenAI to test against: organizations, projects, keys and regions, a prompt cache that is stricter than the real one, sealed
//! reasoning, rate limits, every error on request, and a judge that records each turn it saw.
//!
//! Serves `POST /responses` and `GET /models`, with and without `/v1`, and its own `/_sim/...` paths. It never talks to anybody,
//! keeps nothing on disk, and reads, decides and counts by code of its own: what the gateway it judges reads too is read twice on purpose.
//! What the last user text of a request may ask of it stands in `simulator/directive.rs`.

mod clock;
mod settings;

mod answer;
mod directive;
mod json;
mod model;
mod seal;

mod refusal;

mod body;
mod key;
mod leak;
mod request;

mod prefix;

mod cache;
mod limits;
mod machine;

mod diagnosis;
mod fault;
pub mod judge;
mod stored;

mod world;

mod control;
mod reply;
mod stream;

mod caller;
mod turn;

mod http;

use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{HeaderValue, Response, StatusCode, header};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use http_body_util::{BodyExt, Limited};
use tokio_util::sync::CancellationToken;

use crate::server::listener::Listener;
use crate::task::Tasks;

pub use fault::Fault;
pub use settings::{Config, KeyConfig};

use refusal::{Caller, Refusal};
use world::World;

/// Bytes of a scripted fault.
const MOST_FAULT_BYTES: usize = 64 * 1024;

/// The simulated upstream.
pub struct Simulator {
    world: World,
}

impl Simulator {
    /// Reads the keys' secrets. The error is one line and names no secret.
    pub fn new(config: &Config) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self { world: World::new(config)? }))
    }

    /// Whether it may serve there: the judge shows what no stranger should see.
    pub fn admits(&self, address: SocketAddr) -> Result<(), String> {
        if address.ip().is_loopback() || self.world.config.expose {
            return Ok(());
        }
        Err(format!("the simulated upstream does not listen on {address}: set sim.expose = true if you mean it"))
    }

    pub fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new()
            .route("/_sim/turns", get(async |State(simulator): Sim| json(&simulator.turns())))
            .route("/_sim/summary", get(async |State(simulator): Sim| json(&simulator.summary())))
            .route("/_sim/fault", post(add_fault).delete(clear_faults))
            .route("/_sim/reset", post(reset));
        for base in ["", "/v1"] {
            router = router
                .route(
                    &format!("{base}/responses"),
                    post(async |State(simulator): Sim, request: Request| http::serve(&simulator.world, request).await),
                )
                .route(&format!("{base}/models"), get(models));
        }
        router.method_not_allowed_fallback(unknown).fallback(unknown).with_state(Arc::clone(self))
    }

    /// Serves until `closing`. An address that is not admitted is not served.
    pub async fn serve(self: Arc<Self>, listener: Listener, tasks: Tasks, closing: CancellationToken) {
        match listener.address().map_err(|error| error.to_string()).and_then(|address| self.admits(address)) {
            Ok(()) => listener.serve(self.router(), tasks, closing).await,
            Err(error) => tracing::error!(%error, "simulated upstream not served"),
        }
    }

    /// Every turn on record, oldest first.
    pub fn turns(&self) -> Vec<judge::Turn> {
        self.world.judge.turns()
    }

    pub fn summary(&self) -> judge::Summary {
        self.world.judge.summary()
    }

    /// Forgets turns, faults, limits, caches and stored responses.
    pub fn reset(&self) {
        self.world.reset();
    }

    pub fn add_fault(&self, fault: Fault) -> Result<(), String> {
        self.world.memory().faults.add(fault)
    }

    pub fn clear_faults(&self) {
        self.world.memory().faults.clear();
    }
}

type Sim = State<Arc<Simulator>>;

async fn add_fault(State(simulator): Sim, request: Request) -> Response<Body> {
    let refused = |error: String| Refusal::invalid(Some("invalid_fault"), None, error).response();
    let bytes = match Limited::new(request.into_body(), MOST_FAULT_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refused(error.to_string()),
    };
    let added = serde_json::from_slice(&bytes).map_err(|error| error.to_string()).and_then(|fault| simulator.add_fault(fault));
    added.map_or_else(refused, |()| no_content())
}

async fn clear_faults(State(simulator): Sim) -> Response<Body> {
    simulator.clear_faults();
    no_content()
}

async fn reset(State(simulator): Sim) -> Response<Body> {
    simulator.reset();
    no_content()
}

/// The probe of a gateway: a key that is dead for answers is dead here too.
async fn models(State(simulator): Sim, request: Request) -> Response<Body> {
    let world = &simulator.world;
    let key = match world.keys.authenticate(request.headers()) {
        Ok(key) => key,
        Err((_, refusal)) => return refusal.response(),
    };
    let fault = world.memory().faults.of_key(&key);
    if let Some(fault) = fault {
        let caller = Caller { organization: &key.organization, project: &key.project, model: "", masked: &key.masked };
        return Refusal::scripted(StatusCode::UNAUTHORIZED, fault.code.as_deref(), caller, None).response();
    }
    typed(model::list())
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
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests;
