//! Sends spans to the collector, by OTLP over gRPC.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use percent_encoding::percent_decode_str;
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Extensions, Request, Status};

use super::CollectorAddress;
use super::protobuf::Sender;

/// Timeout of one export, with all its attempts.
const EXPORT: Duration = Duration::from_secs(3);
/// Pause before the second attempt of an export. Each further pause is twice as long.
const PAUSE: Duration = Duration::from_millis(100);
const METHOD: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
/// Environment variables with headers for the collector. The first one that is set counts.
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];

/// Exports spans to a collector, which may be unreachable.
pub struct Collector {
    channel: Channel,
    headers: MetadataMap,
    sender: Sender,
    /// The runtime whose clock runs the timeouts. Exports run on a thread without a runtime.
    runtime: Handle,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl Collector {
    /// Makes a collector. Must be called within a runtime.
    pub fn at(address: &CollectorAddress, resource: &Resource) -> Result<Self, String> {
        let fault = |error: tonic::transport::Error| format!("telemetry.otlp_endpoint: {error}");
        let mut endpoint = Endpoint::from_shared(address.as_str().to_owned())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("warmkey/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(fault)?
            .connect_timeout(EXPORT)
            .timeout(EXPORT);
        if address.as_str().starts_with("https:") {
            let tls = ClientTlsConfig::new().with_enabled_roots();
            endpoint = endpoint.tls_config(tls).map_err(fault)?;
        }
        let written = HEADERS.iter().find_map(|name| std::env::var(name).ok());
        Ok(Self {
            channel: endpoint.connect_lazy(),
            headers: headers(&written.unwrap_or_default()),
            sender: Sender::new(resource),
            runtime: Handle::current(),
        })
    }

    /// Sends `request`, and repeats it for as long as another attempt may succeed.
    async fn deliver(&self, request: Bytes) -> Result<(), Status> {
        let (began, mut pause) = (Instant::now(), PAUSE);
        loop {
            let sent = self.send(request.clone()).await;
            let may_pass = sent.as_ref().is_err_and(|status| is_passing(status.code()));
            if !may_pass || began.elapsed() + pause >= EXPORT {
                return sent;
            }
            self.rest(pause).await;
            pause *= 2;
        }
    }

    async fn send(&self, request: Bytes) -> Result<(), Status> {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let request = Request::from_parts(self.headers.clone(), Extensions::new(), request);
        client.unary(request, METHOD, Bare).await.map(drop)
    }

    fn rest(&self, pause: Duration) -> Sleep {
        let _clock = self.runtime.enter();
        sleep(pause)
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let request = self.sender.request(&batch).into();
        drop(batch);
        let delivering = {
            let _clock = self.runtime.enter();
            timeout(EXPORT, self.deliver(request))
        };
        match delivering.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => Err(OTelSdkError::InternalFailure(reason(&status))),
            Err(_) => Err(OTelSdkError::Timeout(EXPORT)),
        }
    }
}

/// Whether another attempt may succeed after `code`, by OTLP's list of retryable codes.
const fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Returns why an export failed. Leaves out the collector's own message, which may repeat a header.
fn reason(status: &Status) -> String {
    let mut reason = format!("gRPC code {:?}", status.code());
    let mut cause = status.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(reason, ": {error}");
        cause = error.source();
    }
    reason
}

/// Reads headers written as `name=value,name=value` with percent-encoded values. Leaves out headers
/// that are malformed.
fn headers(written: &str) -> MetadataMap {
    let mut headers = MetadataMap::new();
    for (name, value) in written.split(',').filter_map(|pair| pair.split_once('=')) {
        let name = MetadataKey::<Ascii>::from_bytes(name.trim().to_ascii_lowercase().as_bytes());
        let value: Vec<u8> = percent_decode_str(value.trim()).collect();
        let value = MetadataValue::<Ascii>::try_from(value);
        if let (Ok(name), Ok(mut value)) = (name, value) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    headers
}

/// The codec of bytes that are encoded already. Reads nothing from the answer.
struct Bare;

impl Codec for Bare {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(item.len());
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_environment() {
        let read = headers("Authorization=Bearer%20a%2Bb==, x-team = a b ,broken,=c,x-n=1,x-n=%zz");
        let of = |name| read.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(of("authorization"), ["Bearer a+b=="]);
        assert_eq!(of("x-team"), ["a b"]);
        assert_eq!(of("x-n"), ["1", "%zz"]);
        assert_eq!(read.len(), 4);
        assert!(!format!("{read:?}").contains("a+b"), "headers are secrets");
    }

    #[test]
    fn reason_leaves_out_what_the_collector_says() {
        let status = Status::unauthenticated("the token canary is not known");
        assert_eq!(reason(&status), "gRPC code Unauthenticated");
    }
}
