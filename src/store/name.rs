//! Makes and parses every name in the store. No other module does. Pure.

use std::fmt;

/// A name in the store, without the deployment's prefix.
///
/// Other versions use the same names, so the spelling of a name never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'n> {
    /// A session's binding, by the session's id of 22 characters. With a prefix of 7 characters the
    /// name is 30 bytes long, which Redis keeps in 32.
    Binding(&'n str),
    /// A session's trail of decisions, by the session's id.
    Trail(&'n str),
    /// What the last turn of a session or thread has left in the prompt cache, by the id of either.
    Promise(&'n str),
    /// The session of a thread, by the thread's id.
    Thread(&'n str),
    /// The owner of a stored response, by the response's id.
    Response(&'n str),
    /// The owner of an item of a stored response, by the item's id.
    Item(&'n str),
    /// The lease of the replica that probes a subject for all replicas, by the subject's name.
    Probe(&'n str),
    /// The live replicas, and the sets of keys that they have loaded.
    Membership,
    /// The notes and loads of replicas.
    Board,
    /// The channel for announcements of bindings.
    Announcements,
    /// A test write of a connection. A numbered name may lie in another slot of a Cluster.
    Proof(Option<u32>),
    /// A marker in the same slot as a binding's full name. Replicas of the store acknowledge it.
    Lag(&'n str),
}

impl<'n> Name<'n> {
    /// Parses the name of a plain value. `None`: the name is of another kind.
    pub fn of_value(text: &'n str) -> Option<Self> {
        match text.rsplit_once('.') {
            Some((id, "thread")) => Some(Self::Thread(id)),
            Some((id, "response")) => Some(Self::Response(id)),
            Some((id, "item")) => Some(Self::Item(id)),
            Some(_) => None,
            None if text.contains(':') || FIXED.contains(&text) => None,
            None => Some(Self::Binding(text)),
        }
    }

    /// Returns the full name, with the deployment's prefix.
    pub fn under(&self, prefix: &str) -> String {
        format!("{prefix}:{self}")
    }
}

const PROOF: &str = "probe";
const MEMBERSHIP: &str = "generations";
const BOARD: &str = "board";
const ANNOUNCEMENTS: &str = "moved";
/// Names without an id.
const FIXED: [&str; 4] = [PROOF, MEMBERSHIP, BOARD, ANNOUNCEMENTS];

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Binding(session) => f.write_str(session),
            Self::Trail(session) => write!(f, "{session}.trail"),
            Self::Promise(id) => write!(f, "{id}.last"),
            Self::Thread(thread) => write!(f, "{thread}.thread"),
            Self::Response(response) => write!(f, "{response}.response"),
            Self::Item(item) => write!(f, "{item}.item"),
            Self::Probe(subject) => write!(f, "probe:{subject}"),
            Self::Membership => f.write_str(MEMBERSHIP),
            Self::Board => f.write_str(BOARD),
            Self::Announcements => f.write_str(ANNOUNCEMENTS),
            Self::Proof(None) => f.write_str(PROOF),
            Self::Proof(Some(number)) => write!(f, "{number}:{PROOF}"),
            Self::Lag(name) => write!(f, "lag:{{{name}}}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_spelling_in_every_version() {
        for (name, spelled) in [
            (Name::Binding("0123456789abcdefghijkl"), "w:0123456789abcdefghijkl"),
            (Name::Trail("s"), "w:s.trail"),
            (Name::Promise("s"), "w:s.last"),
            (Name::Thread("t"), "w:t.thread"),
            (Name::Response("r"), "w:r.response"),
            (Name::Item("i"), "w:i.item"),
            (Name::Probe("key:a"), "w:probe:key:a"),
            (Name::Membership, "w:generations"),
            (Name::Board, "w:board"),
            (Name::Announcements, "w:moved"),
            (Name::Proof(None), "w:probe"),
            (Name::Proof(Some(7)), "w:7:probe"),
            (Name::Lag("w:s"), "w:lag:{w:s}"),
        ] {
            assert_eq!(name.under("w"), spelled);
        }
    }

    #[test]
    fn name_of_a_value_is_parsed_by_its_suffix() {
        for value in [Name::Binding("s"), Name::Thread("t"), Name::Response("r"), Name::Item("i")] {
            assert_eq!(Name::of_value(&value.to_string()), Some(value));
        }
        let fixed = [
            Name::Membership,
            Name::Board,
            Name::Announcements,
            Name::Proof(None),
            Name::Proof(Some(7)),
        ];
        for other in [Name::Trail("s"), Name::Promise("s"), Name::Probe("key:a"), Name::Lag("w:s")]
            .into_iter()
            .chain(fixed)
        {
            assert_eq!(Name::of_value(&other.to_string()), None, "{other}");
        }
    }
}
