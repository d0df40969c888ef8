//! The values that metrics are labelled with. Each is one of a few: nothing that a client or an upstream says is one.

use prometheus_client::encoding::EncodeLabelValue;

/// A closed set of label values under one label name.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
        pub enum $name { $($variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The value as metrics and logs show it.
            pub fn name(self) -> String {
                let mut name = String::new();
                for letter in match self { $(Self::$variant => stringify!($variant)),+ }.chars() {
                    if letter.is_ascii_uppercase() && !name.is_empty() {
                        name.push('_');
                    }
                    name.push(letter.to_ascii_lowercase());
                }
                name
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> std::fmt::Result {
                std::fmt::Write::write_str(encoder, &self.name())
            }
        }
    };
}

label! {
    /// How a turn reached us.
    Transport { Http, Websocket }
}
label! {
    /// How a turn ended.
    Ending { Completed, Incomplete, Failed, UpstreamError, Cut, TimedOut, ClientLeft, Refused, Unserved }
}
label! {
    /// Where a turn's binding came from.
    BindingResult { Existing, Created, Inherited, Spilled, Rebound, Degraded, None }
}
label! {
    /// Why a turn read nothing from the cache.
    ColdReason { FirstTurn, KeyMoved, DomainMoved, Expired, PrefixChanged, ModelChanged, BelowMinimum, Upstream }
}
label! {
    /// What the cache did with input tokens.
    Cache { Read, Written, Uncached }
}
label! {
    /// A key's state on this replica.
    KeyState { Ready, Cooling, Probing, Disabled }
}
label! {
    /// What was decided about a turn whose key could not just serve it.
    Decision { Move, Spill, Wait, Retry, Probe, Refuse }
}
label! {
    /// Why it was decided.
    Reason {
        Suspected, Rejected, Incident, Exhausted, Limited, TooSteep, Overloaded, NoAccess, Failed, Crowded, Disabled, Drained,
        Removed, NotLoaded, NotAllowed, NoneInUse, Forgotten, Stored, Unreachable,
    }
}
label! {
    /// What was asked of the store.
    Operation { Get, Claim, Replace, Extend, Merge, Roll, Board, Append, List }
}
label! {
    /// How the store failed: a question to it, or an attempt to connect.
    StoreFailure { Timeout, Connection, Authentication, Readonly, OutOfMemory, Loading, Denied, Other }
}
