//! Number 10: over HTTP/2, a request is sent again if, and only if, its upstream says that it has
//! not processed the request.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{BODY, turn, two};
use crate::world::cluster::Running;
use crate::world::simulator::siblings;
use crate::world::waiting::Budget;
use crate::world::wire::ask;

const PREFACE: usize = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the upstream does with a request.
#[derive(Clone, Copy, Debug)]
enum Act {
    Serve,
    /// Resets the stream with this code.
    Reset(u32),
    /// Leaves with this code, and says that it has processed nothing from this request on.
    Leave(u32),
    /// Leaves with this code after it has processed this request, and answers nothing.
    LeaveAfter(u32),
}

/// An upstream that speaks HTTP/2 by hand.
struct Upstream {
    address: SocketAddr,
    /// The bodies of all requests, in their order.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

impl Upstream {
    /// Plays one act for each request. The last act goes on.
    async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let bodies = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let book = Arc::clone(&bodies);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, acts.clone(), Arc::clone(&book)));
            }
        });
        Self { address, bodies }
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.bodies.lock().expect("no holder panics").clone()
    }

    async fn cluster(&self) -> Running {
        two()
            .keys(siblings("org-a", 1))
            .upstream_at(&format!("http://{}/v1", self.address))
            .upstream("http2 = true\n")
            .start()
            .await
    }
}

async fn serve(
    mut stream: TcpStream,
    acts: Vec<Act>,
    book: Arc<Mutex<Vec<Vec<u8>>>>,
) -> std::io::Result<()> {
    let mut preface = [0; PREFACE];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut open = BTreeMap::<u32, Vec<u8>>::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await?,
            HEADERS => drop(open.insert(id, Vec::new())),
            DATA => open.entry(id).or_default().extend_from_slice(&payload),
            _ => {}
        }
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        let body = open.remove(&id).unwrap_or_default();
        if body.is_empty() {
            // A probe.
            stream.write_all(&answer(id)).await?;
            continue;
        }
        let act = {
            let mut book = book.lock().expect("no holder panics");
            book.push(body);
            acts[(book.len() - 1).min(acts.len() - 1)]
        };
        let leave = |last: u32, code: u32| {
            frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
        };
        match act {
            Act::Serve => stream.write_all(&answer(id)).await?,
            Act::Reset(code) => {
                stream.write_all(&frame(RST_STREAM, 0, id, &code.to_be_bytes())).await?;
            }
            Act::Leave(code) => stream.write_all(&leave(id.saturating_sub(2), code)).await?,
            Act::LeaveAfter(code) => {
                stream.write_all(&leave(id, code)).await?;
                return stream.shutdown().await;
            }
        }
    }
}

/// `:status 200`, and a document.
fn answer(stream: u32) -> Vec<u8> {
    let body = br#"{"id":"resp_1","status":"completed"}"#;
    [frame(HEADERS, END_HEADERS, stream, &[0x88]), frame(DATA, END_STREAM, stream, body)].concat()
}

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const INTERNAL_ERROR: u32 = 2;

#[tokio::test]
async fn unprocessed_turn_is_sent_again_unseen() {
    for acts in [
        vec![Act::Reset(REFUSED_STREAM), Act::Serve],
        vec![Act::Leave(0), Act::Serve],
        vec![Act::Leave(ENHANCE_YOUR_CALM), Act::Serve],
        vec![Act::Reset(REFUSED_STREAM), Act::Leave(0), Act::Serve],
    ] {
        let upstream = Upstream::start(acts.clone()).await;
        let cluster = upstream.cluster().await;
        let answer = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!(answer.status, 200, "{acts:?}: {}", answer.text());
        let bodies = upstream.bodies();
        assert_eq!(bodies.len(), acts.len(), "{acts:?}");
        assert!(bodies.iter().all(|body| body == BODY.as_bytes()), "the same bytes");
    }
}

#[tokio::test]
async fn turn_that_may_have_been_processed_is_not_sent_again() {
    for act in [
        Act::Reset(CANCEL),
        Act::Reset(INTERNAL_ERROR),
        Act::LeaveAfter(0),
        Act::LeaveAfter(INTERNAL_ERROR),
    ] {
        let upstream = Upstream::start(vec![act, Act::Serve]).await;
        let cluster = upstream.cluster().await;
        let answer = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "upstream_interrupted"),
            "{act:?}"
        );
        assert_eq!(upstream.bodies().len(), 1, "{act:?}");
    }
}

#[tokio::test]
async fn turn_that_is_refused_for_ever_ends_soon() {
    for act in [Act::Reset(REFUSED_STREAM), Act::Leave(0)] {
        let upstream = Upstream::start(vec![act]).await;
        let cluster = upstream.cluster().await;
        let budget = Budget::begin(Duration::from_secs(10));
        let answer = ask(cluster.address(), &turn(BODY)).await;
        budget.holds("an end of refusals");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_unreachable"),
            "{act:?}"
        );
        assert!(upstream.bodies().len() <= 8, "{act:?}: {}", upstream.bodies().len());
    }
}
