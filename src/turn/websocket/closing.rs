//! Decides what both ends of a WebSocket are told when it ends. Pure.
//!
//! A word of one end is carried over to the other. Codex answers a close between turns with a new
//! connection and its full input, unseen by its user; in mid-response it needs an error with a
//! status first.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::turn::websocket::peer::{Farewell, Lost};

/// Why a WebSocket ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Client(Lost),
    Upstream(Lost),
    /// The gateway ends it, for this reason.
    Told(CloseCode, &'static str),
}

/// What the client and the upstream are told. `in_flight`: the client waits for an answer that will
/// not come.
pub fn farewells(end: &End, in_flight: bool) -> (Farewell, Farewell) {
    let away = || say(CloseCode::Away, "");
    match end {
        End::Client(Lost::Closed(word)) => (Farewell::Echo, carried(word.as_ref())),
        End::Client(Lost::Gone) => (Farewell::None, away()),
        End::Client(Lost::Broke(code)) => (say(*code, ""), away()),
        End::Upstream(lost) => {
            let to_upstream = match lost {
                Lost::Closed(_) => Farewell::Echo,
                Lost::Gone => Farewell::None,
                Lost::Broke(code) => say(*code, ""),
            };
            let to_client = match lost {
                Lost::Closed(word) => carried(word.as_ref()),
                _ if in_flight => say(CloseCode::Error, ""),
                _ => away(),
            };
            (to_client, to_upstream)
        }
        End::Told(code, reason) => (say(*code, reason), away()),
    }
}

fn say(code: CloseCode, reason: &'static str) -> Farewell {
    Farewell::Say(Some(CloseFrame { code, reason: reason.into() }))
}

/// The other end's word, where it may be sent. Without a code there is nothing in it that could
/// not. That the protocol was broken is a matter of one hop: said of frames that were ours, or by
/// the frames themselves in place of a word that must not be.
fn carried(word: Option<&CloseFrame>) -> Farewell {
    match word {
        Some(word) if !word.code.is_allowed() || word.code == CloseCode::Protocol => {
            say(CloseCode::Error, "")
        }
        word => Farewell::Say(word.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(code: u16) -> Option<CloseFrame> {
        Some(CloseFrame { code: code.into(), reason: "because".into() })
    }

    fn code(farewell: Farewell) -> u16 {
        match farewell {
            Farewell::Say(Some(word)) => word.code.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_word_is_carried_over_where_it_may_be() {
        for sent in [1000, 1001, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4999] {
            let (client, upstream) = farewells(&End::Upstream(Lost::Closed(word(sent))), false);
            assert_eq!((client, upstream), (Farewell::Say(word(sent)), Farewell::Echo));
            let (client, upstream) = farewells(&End::Client(Lost::Closed(word(sent))), true);
            assert_eq!((client, upstream), (Farewell::Echo, Farewell::Say(word(sent))));
        }
        for unsendable in [0, 1002, 1005, 1006, 1015, 2000, 5000] {
            assert_eq!(
                code(farewells(&End::Upstream(Lost::Closed(word(unsendable))), false).0),
                1011,
                "{unsendable}"
            );
        }
        assert_eq!(farewells(&End::Upstream(Lost::Closed(None)), false).0, Farewell::Say(None));
    }

    #[test]
    fn what_was_lost_without_a_word_gets_one() {
        for lost in [Lost::Gone, Lost::Broke(CloseCode::Invalid)] {
            assert_eq!(
                code(farewells(&End::Upstream(lost.clone()), false).0),
                1001,
                "Codex connects again, unseen"
            );
            assert_eq!(code(farewells(&End::Upstream(lost), true).0), 1011);
        }
        assert_eq!(farewells(&End::Client(Lost::Gone), true).0, Farewell::None);
        let (client, upstream) = farewells(&End::Client(Lost::Broke(CloseCode::Size)), false);
        assert_eq!((code(client), code(upstream)), (1009, 1001));
        let (client, upstream) = farewells(&End::Told(CloseCode::Policy, "revoked"), false);
        assert_eq!((code(client), code(upstream)), (1008, 1001));
    }
}
