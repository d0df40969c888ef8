//! Reads a client's text frame on a WebSocket, and writes the frames that answer it.
//!
//! This file decides the kind of a frame and whether the frame is well formed. The body of a
//! request is checked as over HTTP. Pure.

use serde_json::json;

use super::control::{Steer, TooLate};
use super::json::{Document, Kind, Value};
use super::refusal::Refusal;

/// Frame types that some clients send to other services. They get no answer.
const IGNORED: &[&str] = &["response.processed", "response.inject"];
/// Parameters of a steer.
const OF_A_STEER: &[&str] = &["type", "previous_response_id", "input"];

/// One frame of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Create {
        lane: Option<String>,
        previous: Option<String>,
    },
    /// OpenAI's documents do not name this frame; its effect here is the simulator's own.
    Cancel {
        response: Option<String>,
        lane: Option<String>,
    },
    Steer {
        previous: String,
        input: String,
        fault: Option<&'static str>,
    },
    Ignored,
}

/// The type that a frame names, if it names one, and the frame read.
pub fn read(text: &str) -> (Option<String>, Result<Frame, Refusal>) {
    let document = match Document::read(text.as_bytes()) {
        Ok(document) => document,
        Err(at) => {
            let message = format!(
                "We could not parse the JSON body of your request: it stops being JSON at byte {at}."
            );
            return (None, Err(Refusal::invalid(None, None, message)));
        }
    };
    let body = document.root();
    let own = |name: &str| body.get(name).and_then(Value::text).map(String::from);
    let kind = own("type");
    let frame = match kind.as_deref() {
        // A lane that is no string counts as a lane with this spelling, which no lane may have.
        Some("response.create") => {
            let lane = body
                .get("stream_id")
                .map(|lane| lane.text().map_or_else(|| spelled(lane), String::from));
            Ok(Frame::Create { lane, previous: own("previous_response_id") })
        }
        Some("response.cancel") => {
            Ok(Frame::Cancel { response: own("response_id"), lane: own("stream_id") })
        }
        Some("response.steer") => match own("previous_response_id") {
            Some(previous) => Ok(Frame::Steer {
                previous,
                input: body.get("input").map_or_else(|| "null".into(), spelled),
                fault: fault(body),
            }),
            None => Err(missing("previous_response_id")),
        },
        Some(other) if IGNORED.contains(&other) => Ok(Frame::Ignored),
        Some(other) => {
            let message = format!(
                "Invalid value: '{other}'. Supported values are: 'response.create' and 'response.steer'."
            );
            Err(Refusal::invalid(Some("invalid_value"), Some("type"), message))
        }
        None => Err(missing("type")),
    };
    (kind, frame)
}

fn missing(name: &str) -> Refusal {
    Refusal::invalid(
        Some("missing_required_parameter"),
        Some(name),
        format!("Missing required parameter: '{name}'."),
    )
}

fn spelled(value: Value<'_>) -> String {
    String::from_utf8_lossy(value.raw()).into_owned()
}

/// Refuses a steer that adds anything but a user's words.
fn fault(body: Value<'_>) -> Option<&'static str> {
    if body.entries().any(|(name, _)| !OF_A_STEER.iter().any(|known| name.is_text(known))) {
        return Some("A steering event accepts only 'type', 'previous_response_id' and 'input'.");
    }
    let of_the_user = |item: Value<'_>| {
        item.get("type").is_none_or(|kind| kind.is_text("message"))
            && item.get("role").is_some_and(|role| role.is_text("user"))
    };
    match body.get("input") {
        Some(input) if input.text().is_some_and(|text| !text.is_empty()) => None,
        Some(input)
            if input.kind() == Kind::Array
                && input.items().next().is_some()
                && input.items().all(of_the_user) =>
        {
            None
        }
        _ => Some("Steering input must be a string or a non-empty array of user messages."),
    }
}

/// Returns a request with the steered input before its own, as the successor of the response
/// `previous`. The other bytes stay. If two fields have the same name, the last one counts, as in
/// the real service.
pub fn continued(
    request: &str,
    previous: Option<&str>,
    steers: &[Steer],
    own: Option<&str>,
) -> String {
    let inputs = steers.iter().map(|steer| steer.input.as_str()).chain(own);
    let items: Vec<String> = inputs.map(members).filter(|members| !members.is_empty()).collect();
    let request = request.trim_end();
    let open = request.strip_suffix('}').unwrap_or(request);
    let parent = previous
        .map(|id| format!(r#","previous_response_id":{},"generate":true"#, json!(id)))
        .unwrap_or_default();
    format!(r#"{open}{parent},"input":[{}]}}"#, items.join(","))
}

/// The items of an input, without the brackets around them.
fn members(input: &str) -> String {
    match input.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.trim().to_owned(),
        None => format!(r#"{{"type":"message","role":"user","content":{input}}}"#),
    }
}

/// The `input` of a request, as the client spelled it.
pub fn input(request: &str) -> Option<String> {
    Document::read(request.as_bytes()).ok()?.root().get("input").map(spelled)
}

/// Events about a steer. They share the numbers of their response's events.
pub fn accepted(steer: &Steer, previous: &str, number: u64, lane: Option<&str>) -> String {
    of_a_steer(
        "response.steer.accepted",
        json!({"id": steer.id, "previous_response_id": previous}),
        number,
        lane,
        json!({}),
    )
}

pub fn pending(
    steer: &Steer,
    previous: &str,
    number: u64,
    lane: Option<&str>,
    calls: &[String],
) -> String {
    let needed: Vec<_> =
        calls.iter().map(|call| json!({"type": "function_call_output", "call_id": call})).collect();
    let more = json!({"reason": "waiting_for_required_input", "required_input": needed});
    of_a_steer(
        "response.steer.pending",
        json!({"id": steer.id, "previous_response_id": previous}),
        number,
        lane,
        more,
    )
}

/// Returns the event of a steer that failed. `id` is the steer's id, if the steer was accepted
/// before.
pub fn failed(
    id: Option<&str>,
    input: &str,
    previous: &str,
    number: u64,
    lane: Option<&str>,
    why: (&str, &str),
) -> String {
    let input: serde_json::Value = serde_json::from_str(input).unwrap_or_default();
    let mut steer = json!({"previous_response_id": previous, "input": input});
    if let Some(id) = id {
        steer["id"] = id.into();
    }
    let error =
        json!({"error": {"type": "invalid_request_error", "code": why.0, "message": why.1}});
    of_a_steer("response.steer.failed", steer, number, lane, error)
}

pub fn too_late(reason: TooLate) -> (&'static str, &'static str) {
    match reason {
        TooLate::Over => {
            ("response_already_completed", "The response is no longer accepting steering input.")
        }
        TooLate::TooMany => {
            ("too_many_pending_steers", "Too much steering input is pending for this response.")
        }
    }
}

fn of_a_steer(
    kind: &str,
    steer: serde_json::Value,
    number: u64,
    lane: Option<&str>,
    more: serde_json::Value,
) -> String {
    let mut event = json!({"type": kind, "sequence_number": number, "steer": steer});
    if let Some(lane) = lane {
        event["stream_id"] = lane.into();
    }
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_read_by_its_type() {
        let frame =
            |text: &str| read(text).1.unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"));
        assert_eq!(
            frame(r#"{"type":"response.create","stream_id":"a"}"#),
            Frame::Create { lane: Some("a".into()), previous: None }
        );
        assert_eq!(
            frame(r#"{"type":"response.create","stream_id":null}"#),
            Frame::Create { lane: None, previous: None }
        );
        assert_eq!(
            frame(r#"{"type":"response.cancel"}"#),
            Frame::Cancel { response: None, lane: None }
        );
        assert_eq!(frame(r#"{"type":"response.processed","response_id":"r"}"#), Frame::Ignored);
        for (wrong, param) in
            [(r#"{"type":"session.update"}"#, Some("type")), ("{}", Some("type")), ("{", None)]
        {
            assert_eq!(read(wrong).1.expect_err(wrong).param.as_deref(), param);
        }
    }

    #[test]
    fn steer_adds_words_of_the_user_and_nothing_else() {
        let fault = |input: &str| {
            let text = format!(r#"{{"type":"response.steer","previous_response_id":"r",{input}}}"#);
            match read(&text).1 {
                Ok(Frame::Steer { fault, .. }) => fault.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(
            !fault(r#""input":"more""#) && !fault(r#""input":[{"role":"user","content":"more"}]"#)
        );
        for wrong in [
            r#""x":1"#,
            r#""input":"""#,
            r#""input":[]"#,
            r#""input":"more","stream_id":"a""#,
            r#""input":[{"role":"developer","content":"more"}]"#,
            r#""input":[{"type":"function_call_output","call_id":"c","output":"x"}]"#,
        ] {
            assert!(fault(wrong), "{wrong}");
        }
    }

    #[test]
    fn successor_asks_its_parents_input_and_the_steers() {
        let steer =
            |input: &str| Steer { id: "s".into(), input: input.into(), sha256: String::new() };
        let steers = [steer(r#""one""#), steer(r#"[{"role":"user","content":"two"}]"#)];
        let text = continued(
            r#"{"type":"response.create","model":"m","input":"old","generate":false,"text":{}} "#,
            Some("resp_1"),
            &steers,
            Some(r#" [ {"x":1} ] "#),
        );
        let body: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(
            (&body["model"], &body["previous_response_id"], &body["generate"]),
            (&json!("m"), &json!("resp_1"), &json!(true))
        );
        assert_eq!(
            body["input"],
            json!([{"type": "message", "role": "user", "content": "one"}, {"role": "user", "content": "two"}, {"x": 1}])
        );
    }
}
