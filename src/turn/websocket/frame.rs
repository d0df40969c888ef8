//! Reads from the messages of a WebSocket only what the socket's state needs. Each message passes
//! unchanged. Pure.

use http::{HeaderMap, StatusCode};

use crate::session::purpose::TurnKind;
use crate::turn::memory::LIGHT;
use crate::usage::tap::Reading;
use crate::wire::error_body::{self, ErrorBody};
use crate::wire::event::first_type;
use crate::wire::imprint::{Imprint, Parts, SETTINGS};
use crate::wire::items::{added, referred_in};
use crate::wire::peek::{Field, asks_for_warm_cache, fields, find_fields, inner, read_id};
use crate::wire::references::References;
use crate::wire::scan::{NotJson, Scanner};
use crate::wire::terminal::Terminal;

/// A client's message, as far as the gateway reads it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClientMessage {
    /// Whether the message asks for a response, so that a turn begins.
    pub is_create: bool,
    /// The message's `stream_id`. `None`: the lane of all messages without one.
    pub lane: Option<String>,
    pub previous_response_id: Option<String>,
    pub conversation: Option<String>,
    pub model: Option<String>,
    /// The message's `service_tier`.
    pub tier: Option<String>,
    /// Whether the message asks for no output, only for a warm cache.
    pub is_warm_up: bool,
    /// `store: false`: the response exists on this connection only.
    pub is_unstored: bool,
    pub references: References,
    /// The stored items that the message refers to.
    pub items: Vec<String>,
    /// The client's span, to which the turn belongs.
    pub traceparent: Option<String>,
    pub kind: TurnKind,
    /// Digests of the parts that the prompt cache matches.
    pub imprint: Box<Imprint>,
}

impl ClientMessage {
    pub fn read(text: &[u8]) -> Result<Self, NotJson> {
        let [instructions, reasoning, format, parallel, tier] = SETTINGS;
        let names = [
            "type",
            "stream_id",
            "previous_response_id",
            "conversation",
            "model",
            "generate",
            "prompt_cache_options",
            "store",
            "client_metadata",
            "tools",
            "prompt_cache_key",
            "input",
            instructions,
            reasoning,
            format,
            parallel,
            tier,
        ];
        let (found, references) = find_fields(text, names)?;
        let [kind, lane, previous, conversation, model, generate, options, store, ..] = found;
        let [.., metadata, tools, cache_key, input, _, _, _, _, _] = found;
        let [.., instructions, reasoning, format, parallel, tier] = found;
        let is_warm_up = generate == Some(b"false") || asks_for_warm_cache(options);
        let imprint = Imprint::of(&Parts {
            tools,
            settings: [instructions, reasoning, format, parallel, tier],
            cache_key,
            input,
            is_continued: previous.is_some_and(|raw| raw != b"null"),
            ..Parts::default()
        });
        let traceparent = inner(metadata, "ws_request_header_traceparent");
        Ok(Self {
            is_create: read_name(kind).as_deref() == Some("response.create"),
            lane: read_name(lane),
            previous_response_id: Field::of(previous).id().map(str::to_owned),
            conversation: read_id(conversation).id().map(str::to_owned),
            // Of two models, nobody knows which one the upstream reads.
            model: read_name(model).filter(|_| !references.names_two_models),
            tier: read_name(tier),
            is_warm_up,
            is_unstored: store == Some(b"false"),
            references,
            items: referred_in(text, references),
            traceparent: traceparent.and_then(Field::into_text),
            kind: TurnKind::stated_within(metadata).with_body(is_warm_up, imprint.asks_compaction),
            imprint: Box::new(imprint),
        })
    }
}

/// Returns the lane of a message that cannot be read as a whole, if the message's beginning names
/// one.
pub fn early_lane(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner::new(&text[..text.len().min(LIGHT)]);
    if !scanner.take(b'{') {
        return None;
    }
    loop {
        let name = scanner.string().ok()?;
        scanner.expect(b':').ok()?;
        let value = scanner.value().ok()?;
        if name == br#""stream_id""# {
            return read_name(Some(value));
        }
        scanner.expect(b',').ok()?;
    }
}

/// The type of the event with which an item begins.
const ADDED: &[u8] = b"response.output_item.added";

/// An upstream's message that changes the socket's state.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub lane: Option<String>,
    pub response_id: Option<String>,
    /// The event says that its response is not stored.
    pub is_unstored: bool,
    pub stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Stage {
    Created,
    /// An item with this id begins.
    Added(String),
    Ended(Box<Reading>),
    /// An `error` frame, with its headers.
    Refused(StatusCode, Box<ErrorBody>, HeaderMap),
}

impl Event {
    /// Reads an event. Returns `None` if the event changes no state, like nearly all events.
    pub fn read(text: &[u8]) -> Option<Self> {
        let own;
        let name = match first_type(text) {
            Some(name) => name,
            None => {
                own = fields(text, ["type"]).ok().and_then(|[kind]| read_name(kind))?;
                own.as_bytes()
            }
        };
        let terminal = Terminal::of_event(name);
        if terminal.is_none() && !matches!(name, b"response.created" | ADDED) {
            return None;
        }
        let [lane, response] = fields(text, ["stream_id", "response"]).ok()?;
        let stage = match name {
            b"response.created" => Stage::Created,
            ADDED => Stage::Added(added(text)?),
            b"error" => {
                let (status, headers) =
                    (error_body::frame_status(text), error_body::frame_headers(text));
                Stage::Refused(status, Box::new(ErrorBody::of_event(text)?), headers)
            }
            _ => Stage::Ended(Box::new(Reading::of_response(terminal?, text, response))),
        };
        let [id, store] = response
            .and_then(|response| fields(response, ["id", "store"]).ok())
            .unwrap_or_default();
        Some(Self {
            lane: read_name(lane),
            response_id: read_name(id),
            is_unstored: store == Some(b"false"),
            stage,
        })
    }
}

fn read_name(raw: Option<&[u8]>) -> Option<String> {
    Field::of(raw).into_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Option<Event> {
        Event::read(text.as_bytes())
    }

    #[test]
    fn request_says_what_it_is_for() {
        for (fields, expected) in [
            ("", TurnKind::Turn),
            (r#","generate":false"#, TurnKind::Prewarm),
            (
                r#","client_metadata":{"x-codex-turn-metadata":"{\"request_kind\":\"compaction\"}"}"#,
                TurnKind::Compaction,
            ),
            (r#","input":[{"type":"compaction_trigger"}]"#, TurnKind::Compaction),
            (
                r#","client_metadata":{"x-codex-turn-metadata":"{\"thread_source\":\"thread_title\"}"}"#,
                TurnKind::Title,
            ),
        ] {
            let text = format!(r#"{{"type":"response.create"{fields}}}"#);
            let message = ClientMessage::read(text.as_bytes()).unwrap();
            assert_eq!(message.kind, expected, "{text}");
        }
        let read = |text: &str| ClientMessage::read(text.as_bytes()).unwrap().imprint;
        assert_eq!(
            *read(r#"{"tools":[1],"reasoning":{},"prompt_cache_key":"k","input":[2],"type":"t"}"#),
            crate::wire::peek::Peek::with_imprint(
                br#"{"input":[2],"prompt_cache_key":"k","reasoning":{},"tools":[1]}"#
            )
            .unwrap()
            .1,
            "as over HTTP"
        );
    }

    #[test]
    fn request_is_read_in_any_order_of_its_fields() {
        let text = r#"{"model":"m","input":[{"type":"x"}],"store":false,"stream_id":"a","previous_response_id":"resp_1","generate":false,"type":"response.create"}"#;
        let read = ClientMessage::read(text.as_bytes());
        let imprint = read.as_ref().unwrap().imprint.clone();
        assert!(imprint.is_continued);
        let expected = ClientMessage {
            is_create: true,
            lane: Some("a".into()),
            previous_response_id: Some("resp_1".into()),
            conversation: None,
            model: Some("m".into()),
            tier: None,
            is_warm_up: true,
            is_unstored: true,
            references: References::default(),
            items: Vec::new(),
            traceparent: None,
            kind: TurnKind::Prewarm,
            imprint,
        };
        assert_eq!(read, Ok(expected));
        let conversation = |text: &str| ClientMessage::read(text.as_bytes()).unwrap().conversation;
        assert_eq!(conversation(r#"{"conversation":{"id":"c"}}"#).as_deref(), Some("c"));
        assert_eq!(
            (conversation(r#"{"conversation":null}"#), conversation(r#"{"conversation":7}"#)),
            (None, Some(String::new()))
        );
        let parent = |metadata: &str| {
            let text = format!(r#"{{"client_metadata":{metadata}}}"#);
            ClientMessage::read(text.as_bytes()).unwrap().traceparent
        };
        let name = "ws_request_header_traceparent";
        assert_eq!(parent(&format!(r#"{{"a":1,"{name}":"00-x"}}"#)).as_deref(), Some("00-x"));
        for none in ["null", "7", "[]", "{}", &format!(r#"{{"{name}":7}}"#)] {
            assert_eq!(parent(none), None, "{none}");
        }
        let warm = |text: &str| ClientMessage::read(text.as_bytes()).unwrap().is_warm_up;
        assert!(warm(r#"{"prompt_cache_options":{"prewarm":true}}"#));
        assert!(!warm(r#"{"generate":true,"prompt_cache_options":{"prewarm":false}}"#));
        let other =
            ClientMessage::read(br#"{"type":"response.later","previous_response_id":null}"#)
                .unwrap();
        let imprint = other.imprint.clone();
        assert_eq!(other, ClientMessage { imprint, ..ClientMessage::default() });
        assert!(ClientMessage::read(b"{").is_err());
    }

    #[test]
    fn lane_is_found_at_the_beginning_of_a_message_that_cannot_be_read() {
        let long = format!(r#"{{"input":"{}","stream_id":"a"}}"#, "x".repeat(LIGHT));
        for (text, lane) in [
            (r#"{"type":"t","stream_id":"a","input":[1,"#, Some("a")),
            (r#"{"type":"t","stream_id":"a"}"#, Some("a")),
            (r#"{"input":{"stream_id":"b"},"type":"#, None),
            (r#"{"stream_id":7}"#, None),
            ("[]", None),
            ("", None),
            (&long, None),
        ] {
            assert_eq!(early_lane(text.as_bytes()).as_deref(), lane, "{}", text.len());
        }
    }

    #[test]
    fn events_are_read_only_if_they_change_a_turn() {
        assert_eq!(
            event(r#"{"type":"response.output_text.delta","delta":"response.completed"}"#),
            None
        );
        assert_eq!(event(r#"{"type":"codex.rate_limits"}"#), None);
        assert_eq!(event("no JSON"), None);
        for text in [
            r#"{"type":"response.completed","response":{"output":[],"id":"r"},"stream_id":"a"}"#,
            r#"{"stream_id":"a","response":{"id":"r"},"type":"response.completed"}"#,
            r#" { "type" : "response.completed", "stream_id": "a", "response":{"id":"r"}}"#,
        ] {
            let (lane, response_id) = (Some("a".into()), Some("r".into()));
            let terminal = Some(Terminal::Completed);
            let stage = Stage::Ended(Box::new(Reading { terminal, ..Reading::default() }));
            assert_eq!(
                event(text),
                Some(Event { lane, response_id, is_unstored: false, stage }),
                "{text}"
            );
        }
        assert!(
            event(r#"{"type":"response.created","response":{"store":false,"id":"r"}}"#)
                .is_some_and(|event| event.is_unstored)
        );
    }

    #[test]
    fn error_has_a_status_under_either_name() {
        for (field, expected) in [
            (r#""status":401,"#, 401),
            (r#""status_code":429,"#, 429),
            ("", 400),
            (r#""status":"x","#, 400),
        ] {
            let text = format!(r#"{{"type":"error",{field}"error":{{"type":"t","code":"c"}}}}"#);
            let error = ErrorBody {
                code: Some("c".into()),
                class: Some("t".into()),
                ..ErrorBody::default()
            };
            let stage = Stage::Refused(
                StatusCode::from_u16(expected).unwrap(),
                Box::new(error),
                HeaderMap::new(),
            );
            assert_eq!(
                event(&text),
                Some(Event { lane: None, response_id: None, is_unstored: false, stage }),
                "{text}"
            );
        }
        for number in ["99", "1000", "70000", "-1", "4.5"] {
            let text = format!(r#"{{"type":"error","status":{number}}}"#);
            let stage = Stage::Refused(StatusCode::BAD_REQUEST, Box::default(), HeaderMap::new());
            assert_eq!(event(&text).map(|event| event.stage), Some(stage), "{number} is no status");
        }
    }

    #[test]
    fn error_has_its_headers_beside_it_or_inside() {
        let headers = |text: &str| match event(text).map(|event| event.stage) {
            Some(Stage::Refused(_, _, headers)) => headers,
            other => panic!("{other:?}"),
        };
        for (text, expected) in [
            (r#"{"type":"error","headers":{"Retry-After":"9"},"error":{"code":"c"}}"#, Some("9")),
            (r#"{"type":"error","error":{"code":"c","headers":{"retry-after":9}}}"#, Some("9")),
            (
                r#"{"type":"error","error":{"headers":{"retry-after":"1"}},"headers":{"retry-after":"2"}}"#,
                Some("2"),
            ),
            (
                r#"{"type":"error","headers":{"no name":"1","x":"a\nb","retry-after":"3"}}"#,
                Some("3"),
            ),
            (r#"{"type":"error","headers":["retry-after","4"]}"#, None),
        ] {
            let headers = headers(text);
            assert_eq!(
                headers.get("retry-after").map(|value| value.to_str().unwrap()),
                expected,
                "{text}"
            );
            assert!(headers.len() <= 1, "{text}");
        }
    }

    #[test]
    fn type_is_read_in_every_spelling() {
        for text in
            [r#"{"type":"response\u002ecreated"}"#, r#"{"type":1,"type":"response.created"}"#]
        {
            assert_eq!(event(text).map(|event| event.stage), Some(Stage::Created), "{text}");
        }
    }
}
