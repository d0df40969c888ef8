//! Decides which close frames both ends of a WebSocket receive when it ends. Pure.
//!
//! The close frame of one end is passed to the other end. After a close between turns, Codex
//! reconnects and sends its full input; its user notices nothing. During a response, Codex first
//! needs an error with a status.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::turn::websocket::peer::{Farewell, Lost};

/// Why a WebSocket ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Client(Lost),
    Upstream(Lost),
    /// The gateway ends the WebSocket, for this reason.
    Gateway(CloseCode, &'static str),
}

/// Returns the farewells to the client and to the upstream. `in_flight`: whether the client waits
/// for an answer that will not come.
pub fn farewells(end: &End, in_flight: bool) -> (Farewell, Farewell) {
    let away = || say(CloseCode::Away, "");
    match end {
        End::Client(Lost::Closed(frame)) => (Farewell::Echo, carried(frame.as_ref())),
        End::Client(Lost::Gone) => (Farewell::None, away()),
        End::Client(Lost::Broke(code)) => (say(*code, ""), away()),
        End::Client(Lost::Full) => (say(CloseCode::Again, ""), away()),
        End::Client(Lost::Slow) => (say(CloseCode::Policy, ""), away()),
        End::Upstream(lost) => {
            let to_upstream = match lost {
                Lost::Closed(_) => Farewell::Echo,
                Lost::Gone | Lost::Full | Lost::Slow => Farewell::None,
                Lost::Broke(code) => say(*code, ""),
            };
            let to_client = match lost {
                Lost::Closed(frame) => carried(frame.as_ref()),
                Lost::Full => say(CloseCode::Again, ""),
                _ if in_flight => say(CloseCode::Error, ""),
                _ => away(),
            };
            (to_client, to_upstream)
        }
        End::Gateway(code, reason) => (say(*code, reason), away()),
    }
}

fn say(code: CloseCode, reason: &'static str) -> Farewell {
    Farewell::Say(Some(CloseFrame { code, reason: reason.into() }))
}

/// Returns the other end's close frame, if it may be sent. A frame without a code may always be
/// sent. A protocol error concerns one hop only. It means that the gateway's own frames broke the
/// protocol, or that the frame has a code that must not be sent.
fn carried(frame: Option<&CloseFrame>) -> Farewell {
    match frame {
        Some(frame) if !frame.code.is_allowed() || frame.code == CloseCode::Protocol => {
            say(CloseCode::Error, "")
        }
        frame => Farewell::Say(frame.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close_frame(code: u16) -> Option<CloseFrame> {
        Some(CloseFrame { code: code.into(), reason: "because".into() })
    }

    fn code(farewell: Farewell) -> u16 {
        match farewell {
            Farewell::Say(Some(frame)) => frame.code.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn close_frame_is_carried_over_if_it_may_be_sent() {
        for sent in [1000, 1001, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4999] {
            let (client, upstream) =
                farewells(&End::Upstream(Lost::Closed(close_frame(sent))), false);
            assert_eq!((client, upstream), (Farewell::Say(close_frame(sent)), Farewell::Echo));
            let (client, upstream) = farewells(&End::Client(Lost::Closed(close_frame(sent))), true);
            assert_eq!((client, upstream), (Farewell::Echo, Farewell::Say(close_frame(sent))));
        }
        for unsendable in [0, 1002, 1005, 1006, 1015, 2000, 5000] {
            assert_eq!(
                code(farewells(&End::Upstream(Lost::Closed(close_frame(unsendable))), false).0),
                1011,
                "{unsendable}"
            );
        }
        assert_eq!(farewells(&End::Upstream(Lost::Closed(None)), false).0, Farewell::Say(None));
    }

    #[test]
    fn peer_lost_without_a_close_frame_leads_to_one() {
        for lost in [Lost::Gone, Lost::Broke(CloseCode::Invalid)] {
            assert_eq!(
                code(farewells(&End::Upstream(lost.clone()), false).0),
                1001,
                "Codex reconnects and its user notices nothing"
            );
            assert_eq!(code(farewells(&End::Upstream(lost), true).0), 1011);
        }
        assert_eq!(farewells(&End::Client(Lost::Gone), true).0, Farewell::None);
        let (client, upstream) = farewells(&End::Client(Lost::Broke(CloseCode::Size)), false);
        assert_eq!((code(client), code(upstream)), (1009, 1001));
        let (client, upstream) = farewells(&End::Gateway(CloseCode::Policy, "revoked"), false);
        assert_eq!((code(client), code(upstream)), (1008, 1001));
    }
}
