//! What clients may ask for. Everything else is answered as an unknown URL, whatever the upstream would make of it: its
//! account-wide endpoints would cross clients.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::header::CONTENT_LENGTH;
use ::http::{Method, Request, Response};
use axum::body::Body;
use futures_util::FutureExt;
use http_body::Body as _;
use hyper::body::Incoming;
use tower_service::Service;

use crate::error::{Error, Kind};
use crate::turn::Gateway;
use crate::turn::http::exchange as http;
use crate::turn::http::relay::Outgoing;
use crate::turn::websocket::handshake as websocket;

/// The clients' endpoints. Answers are not axum's: it would box each, and every event would pay for it.
#[derive(Clone)]
pub struct ClientRoutes(pub Arc<Gateway>);

impl Service<Request<Incoming>> for ClientRoutes {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Outgoing>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(answer(Arc::clone(&self.0), request.map(Body::new)).map(Ok))
    }
}

/// What hyper does by itself over HTTP/1.1 alone: HEAD is answered with the length of what is not sent.
fn without_body(mut response: Response<Outgoing>) -> Response<Outgoing> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| Outgoing::Own(Body::empty()))
}

async fn answer(gateway: Arc<Gateway>, request: Request<Body>) -> Response<Outgoing> {
    match (request.uri().path(), request.method()) {
        ("/responses" | "/v1/responses", &Method::POST) => http::serve(gateway, request).await,
        ("/responses" | "/v1/responses", &Method::GET) if websocket::is_wanted(request.headers()) => {
            websocket::serve(gateway, request).await
        }
        (path, method) => {
            let message = format!("Unknown request URL: {method} {path}.");
            let response = http::refuse(&gateway, &request, &Error::new(Kind::UnknownUrl, message));
            if method == Method::HEAD { without_body(response) } else { response }
        }
    }
}
