//! The labels of metrics: each label's name and its closed set of values.
//!
//! A label never holds text from a client or an upstream. The one open label is [`KeyLabel`], and
//! the configuration bounds it.

use prometheus_client::encoding::{
    EncodeLabel as _, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
};
use std::fmt::{self, Debug, Write as _};
use std::hash::Hash;

/// The labels of one family: a label, or a pair of them.
pub trait Labels: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static {
    /// Every combination of values that the page shows from the start.
    fn all_values() -> Vec<Self>;
}

impl<A: Labels, B: Labels> Labels for (A, B) {
    fn all_values() -> Vec<Self> {
        let pairs =
            |first: A| B::all_values().into_iter().map(move |second| (first.clone(), second));
        A::all_values().into_iter().flat_map(pairs).collect()
    }
}

/// A configured key, by its id. The page shows a key from its first state on.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KeyLabel {
    key: String,
}

impl KeyLabel {
    pub fn new(id: &str) -> Self {
        Self { key: id.to_owned() }
    }
}

impl Labels for KeyLabel {
    fn all_values() -> Vec<Self> {
        Vec::new()
    }
}

/// A label with a closed set of values: `Type = "name of the label" { values }`.
macro_rules! label {
    ($(#[$doc:meta])* $set:ident = $label:literal { $($value:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
        pub enum $set { $($value),+ }

        impl $set {
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The value as metrics and logs show it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => {
                        const NAME: [u8; snake_length(stringify!($value))] =
                            snake_case(stringify!($value));
                        text(&NAME)
                    }),+
                }
            }
        }

        impl EncodeLabelValue for $set {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(self.name())
            }
        }

        impl EncodeLabelSet for $set {
            fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
                ($label, *self).encode(encoder.encode_label())
            }
        }

        impl Labels for $set {
            fn all_values() -> Vec<Self> {
                Self::ALL.to_vec()
            }
        }
    };
}

/// The length of `CamelCase` as `snake_case`.
const fn snake_length(camel_case: &str) -> usize {
    let letters = camel_case.as_bytes();
    let (mut at, mut length) = (0, letters.len());
    while at < letters.len() {
        if at > 0 && letters[at].is_ascii_uppercase() {
            length += 1;
        }
        at += 1;
    }
    length
}

/// `CamelCase` as `snake_case`, when the program is compiled: a turn copies no names.
const fn snake_case<const LENGTH: usize>(camel_case: &str) -> [u8; LENGTH] {
    let letters = camel_case.as_bytes();
    let mut name = [b'_'; LENGTH];
    let (mut from, mut to) = (0, 0);
    while from < letters.len() {
        if from > 0 && letters[from].is_ascii_uppercase() {
            to += 1;
        }
        name[to] = letters[from].to_ascii_lowercase();
        (from, to) = (from + 1, to + 1);
    }
    name
}

const fn text(name: &'static [u8]) -> &'static str {
    match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(_) => panic!("a Rust name in ASCII"),
    }
}

label! {
    /// How a turn reached the gateway.
    Transport = "transport" { Http, Websocket }
}
label! {
    /// How a turn ended.
    Ending = "outcome" {
        Completed, Incomplete, Failed, UpstreamError, Cut, TimedOut, ClientLeft, Refused, Unserved,
    }
}
label! {
    /// How a turn got its binding.
    BindingResult = "result" { Existing, Created, Inherited, Spilled, Rebound, Degraded, None }
}
label! {
    /// Why a turn read less from the prompt cache than the last turn of its session had left.
    ColdReason = "reason" {
        FirstTurn, KeyMoved, DomainMoved, Expired, PrefixChanged, ModelChanged, BelowMinimum,
        Upstream,
    }
}
label! {
    /// How the upstream's prompt cache treated input tokens.
    Cache = "cache" { Read, Written, Uncached }
}
label! {
    /// The state of a key on this replica.
    KeyState = "state" { Ready, Cooling, Probing, Disabled }
}
label! {
    /// The gateway's decision about a turn that the bound key could not serve at once.
    Decision = "decision" { Move, Spill, Wait, Retry, Probe, Refuse }
}
label! {
    /// Why the gateway made a [`Decision`].
    Reason = "reason" {
        Suspected, Rejected, Incident, Exhausted, Limited, TooSteep, Overloaded, NoAccess, Failed,
        Crowded, Disabled, Drained, Removed, NotLoaded, NotAllowed, NoneInUse, Forgotten, Stored,
        Unreachable, Inexpressible,
    }
}
label! {
    /// A listener of a replica.
    ListenerName = "listener" { Clients, Admin }
}
label! {
    /// Why a connection was ended or not accepted, or a request on one was refused.
    ConnectionRefusal = "reason" { Silent, Limit, Descriptors, Requests }
}
label! {
    /// Why a request without a valid token was refused.
    StrangerRefusal = "reason" {
        InvalidApiKey, UnknownUrl, OriginNotAllowed, WebsocketNotSupported, Other,
    }
}
label! {
    /// An operation of the store.
    Operation = "operation" { Get, Recall, Put, Claim, Replace, Extend, Merge, Roll, Board, Append, List }
}
label! {
    /// How an operation of the store, or a connection to it, failed.
    StoreFailure = "reason" {
        Timeout, Connection, Authentication, Readonly, OutOfMemory, Loading, Denied, Other,
    }
}
