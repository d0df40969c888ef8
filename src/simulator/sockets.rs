//! The record of WebSockets: which key opened each, which frames came, and how it ended.
//!
//! The record also passes on the order to close. Turns have a record of their own, which names
//! their socket.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::judge::now_millis;
use super::key::Key;

/// Sockets on record; older ones are dropped.
const MOST_SOCKETS: usize = 50_000;
/// Distinct frame types counted on one socket.
const MOST_TYPES: usize = 32;

/// One WebSocket, from its handshake on. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// Counts from 1, in order of arrival. Refused handshakes count, too.
    pub connection: u64,
    pub opened_at: u64,
    pub closed_at: Option<u64>,
    pub path: String,
    pub key: Option<String>,
    pub organization: Option<String>,
    pub session: Option<String>,
    /// The status of the handshake's answer: 101, or that of a refusal.
    pub status: u16,
    /// Text frames that came, by the type that they named. `?` counts frames without a type.
    pub frames: BTreeMap<String, u64>,
    pub pings: u64,
    /// The client's close code. 1005 stands for a close without a code; `None` if the client just
    /// left.
    pub client_close: Option<u16>,
    /// The simulator's close code.
    pub server_close: Option<u16>,
    /// The socket ended because its time was up.
    pub expired: bool,
}

/// Which sockets to close, and how: `POST /_sim/close` takes it as JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Order {
    pub key: Option<String>,
    pub organization: Option<String>,
    pub session: Option<String>,
    pub connection: Option<u64>,
    /// The close code. Absent: the connection breaks.
    pub code: Option<u16>,
}

impl Order {
    fn fits(&self, socket: &Socket) -> bool {
        let narrows =
            |wanted: &Option<String>, own: &Option<String>| wanted.is_none() || wanted == own;
        narrows(&self.key, &socket.key)
            && narrows(&self.organization, &socket.organization)
            && narrows(&self.session, &socket.session)
            && self.connection.is_none_or(|wanted| wanted == socket.connection)
    }
}

#[derive(Debug, Default)]
struct Record {
    sockets: VecDeque<Socket>,
    next: u64,
    /// The channels of the open sockets.
    open: BTreeMap<u64, (Socket, UnboundedSender<Option<u16>>)>,
}

#[derive(Debug, Default)]
pub struct Sockets(Mutex<Record>);

impl Sockets {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a handshake that has just arrived.
    pub fn open(self: &Arc<Self>, mut socket: Socket) -> Line {
        let mut record = self.record();
        record.next += 1;
        (socket.connection, socket.opened_at) = (record.next, now_millis());
        if record.sockets.len() >= MOST_SOCKETS {
            record.sockets.pop_front();
        }
        let number = socket.connection;
        record.sockets.push_back(socket);
        Line { sockets: Arc::clone(self), number }
    }

    /// Every socket on record, oldest first.
    pub fn all(&self) -> Vec<Socket> {
        self.record().sockets.iter().cloned().collect()
    }

    /// Tells the sockets that match `order` to close, and returns how many.
    pub fn close(&self, order: &Order) -> usize {
        let record = self.record();
        let matching = record.open.values().filter(|(socket, _)| order.fits(socket));
        matching.filter(|(_, closer)| closer.send(order.code).is_ok()).count()
    }

    /// Forgets all sockets. Numbers go on, and open sockets stay open.
    pub fn clear(&self) {
        self.record().sockets.clear();
    }
}

/// A socket on record. Its owner records what happens. Dropping the line records the end.
#[derive(Debug)]
pub struct Line {
    sockets: Arc<Sockets>,
    number: u64,
}

impl Line {
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn note(&self, write: impl FnOnce(&mut Socket)) {
        let mut record = self.sockets.record();
        let Some(first) = record.sockets.front().map(|socket| socket.connection) else { return };
        let index = self.number.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        if let Some(socket) = index.and_then(|index| record.sockets.get_mut(index)) {
            write(socket);
        }
    }

    pub fn refused(&self, status: u16) {
        self.note(|socket| socket.status = status);
    }

    /// Records the socket's key, once that is known.
    pub fn of(&self, key: &Key) {
        self.note(|socket| {
            (socket.key, socket.organization) =
                (Some(key.id.clone()), Some(key.organization.clone()))
        });
    }

    /// Records that the socket is open, and returns the channel that orders it to close.
    pub fn accepted(&self) -> UnboundedReceiver<Option<u16>> {
        let (sender, order) = mpsc::unbounded_channel();
        let mut known = Socket::default();
        self.note(|socket| {
            socket.status = 101;
            known = socket.clone();
        });
        self.sockets.record().open.insert(self.number, (known, sender));
        order
    }

    pub fn frame(&self, kind: Option<&str>) {
        let kind = kind.filter(|kind| kind.len() <= 64).unwrap_or("?");
        self.note(|socket| {
            if socket.frames.len() < MOST_TYPES || socket.frames.contains_key(kind) {
                *socket.frames.entry(kind.to_owned()).or_default() += 1;
            }
        });
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.note(|socket| socket.closed_at = Some(now_millis()));
        self.sockets.record().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(session: &str) -> Socket {
        Socket { session: Some(session.into()), ..Socket::default() }
    }

    #[test]
    fn order_to_close_reaches_the_open_sockets_that_it_names() {
        let sockets = Arc::new(Sockets::default());
        let (one, two) = (sockets.open(socket("one")), sockets.open(socket("two")));
        let (mut first, mut second) = (one.accepted(), two.accepted());
        let order = |json: &str| serde_json::from_str::<Order>(json).expect("an order");
        assert_eq!(sockets.close(&order(r#"{"session":"two","code":1001}"#)), 1);
        assert_eq!((first.try_recv().ok(), second.try_recv().ok()), (None, Some(Some(1001))));
        drop(two);
        assert_eq!(sockets.close(&order("{}")), 1);
        assert_eq!(first.try_recv().ok(), Some(None));
        assert!(sockets.all()[0].closed_at.is_none() && sockets.all()[1].closed_at.is_some());
    }

    #[test]
    fn frames_count_on_their_own_socket_and_a_cleared_record_stays_clear() {
        let sockets = Arc::new(Sockets::default());
        let (one, two) = (sockets.open(socket("one")), sockets.open(socket("two")));
        two.frame(Some("response.create"));
        two.frame(Some("response.create"));
        two.frame(None);
        assert_eq!(
            sockets.all()[1].frames,
            BTreeMap::from([("response.create".into(), 2), ("?".into(), 1)])
        );
        sockets.clear();
        one.frame(None);
        drop(one);
        assert!(sockets.all().is_empty());
        assert_eq!(sockets.open(socket("three")).number(), 3);
    }
}
