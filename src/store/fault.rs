//! Faults of the store: how each is counted and logged, and whether it ends the connection.
//!
//! Every fault is counted, but a repeated one is logged at most once a minute. The text of a fault
//! contains no address and no password.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerError};
use tokio::time::Instant;

use super::Unavailable;
use super::address::Host;
use crate::metrics::{Metrics, StoreFailure};

/// Minimum time between two log lines for the same fault.
const RELOG: Duration = Duration::from_secs(60);

/// Redis's wording for a slot without a node.
const UNSERVED: &str = "slot not served";

/// Why a question has no answer.
#[derive(Clone, Debug)]
pub enum StoreFault {
    /// There is no connection, so nothing was asked.
    Away,
    /// The store did not answer in time.
    Silent,
    /// No connection was there in time.
    Late(&'static str),
    /// Redis answered with an error, or the connection broke.
    Refused(RedisError),
    /// The question could not be asked.
    Unready(String),
}

/// The node to which a node of a Cluster redirects a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// Permanently.
    Moved(Host),
    /// Once, after `ASKING`.
    Ask(Host),
}

impl StoreFault {
    /// The first word of Redis's error.
    pub fn code(&self) -> Option<String> {
        let Self::Refused(error) = self else { return None };
        server_error(error).map(|said| said.code().to_owned())
    }

    /// Returns the failure to count. `None`: the error is part of normal operation.
    pub fn reason(&self) -> Option<StoreFailure> {
        let Self::Refused(error) = self else {
            return match self {
                Self::Away => None,
                Self::Silent | Self::Late(_) => Some(StoreFailure::Timeout),
                _ => Some(StoreFailure::Other),
            };
        };
        if error.kind() == ErrorKind::AuthenticationFailed {
            return Some(StoreFailure::Authentication);
        }
        match self.code().as_deref() {
            Some("MOVED" | "ASK" | "NOSCRIPT") => None,
            Some("NOAUTH" | "WRONGPASS") => Some(StoreFailure::Authentication),
            Some("READONLY") => Some(StoreFailure::Readonly),
            Some("OOM") => Some(StoreFailure::OutOfMemory),
            Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN") => Some(StoreFailure::Loading),
            Some("NOPERM") => Some(StoreFailure::Denied),
            Some(_) => Some(StoreFailure::Other),
            None if error.is_timeout() => Some(StoreFailure::Timeout),
            None if is_unread(error) => Some(StoreFailure::Other),
            None => Some(StoreFailure::Connection),
        }
    }

    /// Whether the connection is useless, because it broke or its Redis takes no writes. Any other
    /// error is about one command and counts as an answer. So does an answer that cannot be read: a
    /// new connection would find the same words of another version.
    pub fn ends_connection(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        match self.code().as_deref() {
            Some("CLUSTERDOWN") => !self.is_about_one_slot(),
            Some("READONLY" | "LOADING" | "MASTERDOWN" | "BUSY" | "NOAUTH" | "WRONGPASS") => true,
            Some(_) => false,
            None if is_unread(error) => false,
            None => {
                error.is_io_error()
                    || error.is_connection_dropped()
                    || error.is_unrecoverable_error()
            }
        }
    }

    /// Whether only one slot is unserved, which says nothing about the other slots.
    fn is_about_one_slot(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        let is_so = |said: ServerError| said.details().is_some_and(|why| why.contains(UNSERVED));
        server_error(error).is_some_and(is_so)
    }

    /// Returns the redirection in the answer of `asked`, if it is one.
    pub fn redirection(&self, asked: &Host) -> Option<Redirection> {
        let Self::Refused(error) = self else { return None };
        let error = server_error(error)?;
        let (_, host) = error.details()?.split_once(' ')?;
        let (name, port) = host.trim().rsplit_once(':')?;
        let name = if name.is_empty() { asked.name.as_str() } else { name };
        let host = Host { name: name.to_owned(), port: port.parse().ok()? };
        match error.code() {
            "MOVED" => Some(Redirection::Moved(host)),
            "ASK" => Some(Redirection::Ask(host)),
            _ => None,
        }
    }
}

impl fmt::Display for StoreFault {
    /// Writes a text that helps an operator to act.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Away => return f.write_str("not connected"),
            Self::Silent => return f.write_str("no answer in time"),
            Self::Late(why) => return f.write_str(why),
            Self::Unready(why) => return f.write_str(why),
            Self::Refused(error) => error,
        };
        let said = match server_error(error) {
            Some(said) => format!("{} {}", said.code(), said.details().unwrap_or_default()),
            None => error.to_string(),
        };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let means = match self.code().as_deref() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => {
                "Redis refuses the user or password"
            }
            Some("WRONGPASS") => "Redis refuses the user or password",
            Some("NOAUTH") => "Redis requires a password",
            Some("NOPERM") => "the Redis user lacks a permission",
            Some("MOVED") => "this is a node of a Cluster: use redis-cluster://",
            Some(_) => return f.write_str(&said),
            None if said.contains("UnknownIssuer") || said.contains("BadSignature") => {
                "the TLS certificate is not trusted: name its authority in store.ca_file"
            }
            None if said.contains("invalid peer certificate") => "the TLS certificate is not valid",
            None if said.contains("InvalidContentType") => "this port does not use TLS",
            None if error.is_connection_dropped() && !error.is_connection_refusal() => {
                "Redis closed the connection: perhaps only one side uses TLS (rediss)"
            }
            None => return f.write_str(&said),
        };
        write!(f, "{means} ({said})")
    }
}

/// Returns Redis's own error, if there is one: the first of a pipeline's errors.
fn server_error(error: &RedisError) -> Option<ServerError> {
    Some(error.clone().into_server_errors()?.first()?.1.clone())
}

/// Whether Redis answered, and the answer could not be read.
fn is_unread(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Parse | ErrorKind::UnexpectedReturnType)
}

impl From<RedisError> for StoreFault {
    fn from(error: RedisError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreFault> for Unavailable {
    fn from(fault: StoreFault) -> Self {
        Self(fault.to_string())
    }
}

/// Counts and logs faults.
pub struct Faults {
    metrics: Arc<Metrics>,
    /// The logged faults with their times. The newest is last.
    logged: Mutex<Vec<(StoreFailure, Instant, String)>>,
}

impl Faults {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, logged: Mutex::default() }
    }

    /// Counts a fault of `node`, if the node is known, and logs it unless it is a repetition.
    pub fn note(&self, fault: &StoreFault, node: Option<&Host>) {
        let Some(reason) = fault.reason() else { return };
        self.metrics.store_failed(reason);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last = logged
            .iter()
            .position(|(logged, ..)| *logged == reason)
            .map(|place| logged.remove(place));
        let why = fault.to_string();
        match last {
            Some((_, at, old)) if at.elapsed() < RELOG && old == why => {
                logged.push((reason, at, why))
            }
            _ => {
                let node = node.map(Host::to_string).unwrap_or_default();
                tracing::warn!(reason = reason.name(), node, why, "the store failed");
                logged.push((reason, Instant::now(), why));
            }
        }
    }

    /// The last fault, as text.
    pub fn last(&self) -> Option<String> {
        let logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.last().map(|(.., why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::{FromRedisValue, Value};
    use std::io;

    fn refused(text: &str) -> StoreFault {
        let value = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
        let redis::Value::ServerError(error) = value else { panic!("{text} is an error") };
        StoreFault::Refused(RedisError::from(error))
    }

    #[test]
    fn redis_error_has_a_reason_and_a_consequence() {
        for (text, reason, ends) in [
            (
                "READONLY You can't write against a read only replica.",
                Some(StoreFailure::Readonly),
                true,
            ),
            ("LOADING Redis is loading the dataset in memory", Some(StoreFailure::Loading), true),
            ("MASTERDOWN Link with MASTER is down", Some(StoreFailure::Loading), true),
            ("CLUSTERDOWN The cluster is down", Some(StoreFailure::Loading), true),
            ("CLUSTERDOWN Hash slot not served", Some(StoreFailure::Loading), false),
            ("BUSY Redis is busy running a script.", Some(StoreFailure::Other), true),
            ("NOAUTH Authentication required.", Some(StoreFailure::Authentication), true),
            ("WRONGPASS invalid username-password pair", Some(StoreFailure::Authentication), true),
            (
                "NOPERM this user has no permissions to run the 'eval' command",
                Some(StoreFailure::Denied),
                false,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Some(StoreFailure::OutOfMemory),
                false,
            ),
            ("WRONGTYPE Operation against a key", Some(StoreFailure::Other), false),
            ("NOSCRIPT No matching script", None, false),
            ("MOVED 3999 127.0.0.1:6381", None, false),
        ] {
            let fault = refused(text);
            assert_eq!((fault.reason(), fault.ends_connection()), (reason, ends), "{text}");
        }
    }

    #[test]
    fn answer_that_cannot_be_read_ends_no_connection() {
        let unread = |value| String::from_redis_value(value).map_err(RedisError::from).unwrap_err();
        for (error, reason, ends) in [
            (unread(Value::BulkString(b"\xff".to_vec())), StoreFailure::Other, false),
            (unread(Value::Array(Vec::new())), StoreFailure::Other, false),
            (io::Error::from(io::ErrorKind::BrokenPipe).into(), StoreFailure::Connection, true),
        ] {
            let fault = StoreFault::Refused(error);
            assert_eq!((fault.reason(), fault.ends_connection()), (Some(reason), ends), "{fault}");
        }
    }

    #[test]
    fn redirection_names_a_host() {
        let asked = Host { name: "a".into(), port: 1 };
        let host = |name: &str| Host { name: name.into(), port: 6381 };
        assert_eq!(
            refused("MOVED 3999 10.0.0.1:6381").redirection(&asked),
            Some(Redirection::Moved(host("10.0.0.1")))
        );
        assert_eq!(
            refused("ASK 3999 ::1:6381").redirection(&asked),
            Some(Redirection::Ask(host("::1")))
        );
        assert_eq!(
            refused("MOVED 3999 :6381").redirection(&asked),
            Some(Redirection::Moved(host("a")))
        );
        assert_eq!(refused("OOM 3999 :6381").redirection(&asked), None);
    }
}
