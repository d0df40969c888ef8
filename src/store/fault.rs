//! Why a question to the store has no answer: what is counted, what is logged, and whether the
//! connection is at an end.
//!
//! Each fault is counted; one of a kind is logged at most once a minute. None carries an address or
//! a password.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerError};
use tokio::time::Instant;

use super::Unavailable;
use super::address::Host;
use crate::metrics::{Metrics, StoreFailure};

/// How often a fault of one kind is logged.
const RELOG: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub enum StoreFault {
    /// There is no connection: nothing was asked.
    Away,
    /// No answer in time.
    Silent,
    /// No connection in time.
    Late(&'static str),
    /// What Redis said instead, or how the connection broke.
    Refused(RedisError),
    /// Nothing could even be asked.
    Unready(String),
}

/// Where a node of a Cluster sends a question instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// For good.
    Moved(Host),
    /// For this once, after `ASKING`.
    Ask(Host),
}

impl StoreFault {
    /// The first word of what Redis said.
    pub fn code(&self) -> Option<String> {
        let Self::Refused(error) = self else { return None };
        said(error).map(|said| said.code().to_owned())
    }

    /// `None`: part of asking, not a failure.
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
            None => Some(StoreFailure::Connection),
        }
    }

    /// Whether the connection can serve no more: it broke, or its Redis is none that takes writes.
    /// Anything else that Redis says about one command is an answer.
    pub fn ends_connection(&self) -> bool {
        let Self::Refused(error) = self else { return false };
        match self.code().as_deref() {
            Some("CLUSTERDOWN") => !self.is_about_one_slot(),
            Some("READONLY" | "LOADING" | "MASTERDOWN" | "BUSY" | "NOAUTH" | "WRONGPASS") => true,
            Some(_) => false,
            None => {
                error.is_io_error()
                    || error.is_connection_dropped()
                    || error.is_unrecoverable_error()
            }
        }
    }

    /// A slot that no node serves says nothing of the others.
    fn is_about_one_slot(&self) -> bool {
        matches!(self, Self::Refused(error) if said(error).is_some_and(|said| said.details().is_some_and(|why| why.contains("slot not served"))))
    }

    /// Where `asked` sends the question instead.
    pub fn redirection(&self, asked: &Host) -> Option<Redirection> {
        let Self::Refused(error) = self else { return None };
        let error = said(error)?;
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
    /// In words that an operator can act on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Away => return f.write_str("not connected"),
            Self::Silent => return f.write_str("no answer in time"),
            Self::Late(why) => return f.write_str(why),
            Self::Unready(why) => return f.write_str(why),
            Self::Refused(error) => error,
        };
        let said = match said(error) {
            Some(said) => format!("{} {}", said.code(), said.details().unwrap_or_default()),
            None => error.to_string(),
        };
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let means = match self.code().as_deref() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => {
                "it refuses the user or password"
            }
            Some("WRONGPASS") => "it refuses the user or password",
            Some("NOAUTH") => "it asks for a password",
            Some("NOPERM") => "its user may not do this",
            Some("MOVED") => "it is a node of a Cluster: say redis-cluster://",
            Some(_) => return f.write_str(&said),
            None if said.contains("UnknownIssuer") || said.contains("BadSignature") => {
                "its TLS certificate is not trusted: name its authority in store.ca_file"
            }
            None if said.contains("invalid peer certificate") => "its TLS certificate is not valid",
            None if said.contains("InvalidContentType") => "it does not speak TLS on this port",
            None if error.is_connection_dropped() && !error.is_connection_refusal() => {
                "it closed the connection: perhaps it wants TLS (rediss), or does not"
            }
            None => return f.write_str(&said),
        };
        write!(f, "{means} ({said})")
    }
}

/// What Redis answered, if it answered: of a pipeline's errors the first.
fn said(error: &RedisError) -> Option<ServerError> {
    Some(error.clone().into_server_errors()?.first()?.1.clone())
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
    /// What was logged, and when; the last of all is at the end.
    logged: Mutex<Vec<(StoreFailure, Instant, String)>>,
}

impl Faults {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, logged: Mutex::default() }
    }

    /// `whence`: which node, if it is known.
    pub fn note(&self, fault: &StoreFault, whence: Option<&Host>) {
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
                let node = whence.map(Host::to_string).unwrap_or_default();
                tracing::warn!(reason = reason.name(), node, why, "the store fails");
                logged.push((reason, Instant::now(), why));
            }
        }
    }

    /// The last fault, in words.
    pub fn last(&self) -> Option<String> {
        let logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.last().map(|(.., why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> StoreFault {
        let value = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
        let redis::Value::ServerError(error) = value else { panic!("{text} is an error") };
        StoreFault::Refused(RedisError::from(error))
    }

    #[test]
    fn what_redis_says_has_a_kind_and_a_consequence() {
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
    fn a_redirection_names_a_host() {
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
