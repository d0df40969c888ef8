//! Drives each property with input that is close to real input: well-formed, then changed a little.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::answers;

/// JSON of every kind, spelled in every way.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just(" false".to_owned()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,3})?",
        r#""([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,20}""#,
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            vec(("[a-z\u{e9}]{0,4}", inner), 0..6).prop_map(|items| {
                let items: Vec<_> =
                    items.iter().map(|(key, value)| format!("\"{key}\"\t:{value}")).collect();
                format!("{{ {} }}", items.join(","))
            }),
        ]
    })
}

/// Values that the readers look for.
const TEXTS: &[&str] = &[
    "",
    "x",
    "file-1",
    "vs_1",
    "item_reference",
    "error",
    "response.created",
    "response.completed",
    "failed",
    "incomplete",
    r"\u0065rror",
    r"a\\",
    "Please try again in 1.5s.",
    "Limit 30000, Requested 40000.",
];

/// Nested objects with fields of `names` and the values that readers look for.
fn document(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        3 => select(TEXTS).prop_map(|text| format!("\"{text}\"")),
        2 => select(["0", "7", "401", "429", "1e2", "-0", "18446744073709551616"].as_slice())
            .prop_map(str::to_owned),
        1 => select(["true", "false", "null"].as_slice()).prop_map(str::to_owned),
    ]
    .boxed();
    let inner = leaf.clone().prop_recursive(4, 48, 4, move |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..3).prop_map(|items| format!("[ {}]", items.join(" , "))),
            3 => object(names, inner),
        ]
    });
    object(names, prop_oneof![leaf, inner])
}

fn object(
    names: &'static [&'static str],
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    vec((select(names), value), 0..5).prop_map(|fields| {
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect();
        format!("{{{}}}", fields.join(" ,"))
    })
}

/// Returns `text`, unchanged or with one byte changed, cut, doubled or removed.
fn changed(text: String, at: Index, byte: u8, how: usize) -> Vec<u8> {
    let mut text = text.into_bytes();
    if text.is_empty() {
        return text;
    }
    let at = at.index(text.len());
    match how {
        0 => text[at] = byte,
        1 => text.truncate(at),
        2 => text.insert(at, text[at]),
        3 => {
            text.remove(at);
        }
        _ => {}
    }
    text
}

const METHODS: &[&str] = &["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "get", "Post"];
/// Pieces that change which path it is, if put into a path or at its ends.
const PATHS: &[&str] = &[
    "",
    "/",
    "/v1",
    "/responses",
    "/models",
    "/..",
    "/.",
    "v1",
    "%2f",
    "%72",
    "?",
    "?a=b",
    "#",
    ";",
    " ",
];
const BODY: &[&str] = &[
    "model",
    "input",
    "tools",
    "prompt",
    "id",
    "type",
    "file_id",
    "file_ids",
    "vector_store_ids",
    "container",
    "skill_id",
    "client_metadata",
    "session_id",
    "conversation",
    "store",
    r"mod\u0065l",
];
/// Fields of a stored item, and what they may state.
const ITEM: &[&str] = &[
    "id",
    r"i\u0064",
    "type",
    r"t\u0079pe",
    "role",
    "result",
    "encrypted_content",
    "status",
    "content",
];
const ITEM_VALUES: &[&str] = &[
    r#""a""#,
    "null",
    r#""""#,
    "7",
    r#""reasoning""#,
    r#""message""#,
    r#""item_reference""#,
    r#""image_generation_call""#,
    r#"[{"type":"x"}]"#,
    r#""re\u0061soning""#,
    "{}",
];
const MESSAGE: &[&str] = &["type", "stream_id", "response", "id", "store", r"typ\u0065"];
const ERROR: &[&str] = &["error", "code", "type", "message", "status", "status_code", "headers"];
const RESPONSE: &[&str] = &[
    "status",
    "usage",
    "input_tokens",
    "input_tokens_details",
    "cached_tokens",
    "output_tokens",
    "prompt_cache_diagnostics",
    "reason",
];

const CHAT: &[&str] = &[
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "tool_calls",
    "tools",
    "function",
    "response_format",
    "n",
    "st\\u006fp",
];

/// Pieces of a stream of either dialect, and line ends.
const CHUNKS: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\n\n",
    ": comment",
    "event: response.completed",
    "data: [DONE]",
    r#"data: {"type":"response.created","response":{"id":"resp_1","created_at":5.5,"model":"m"}}"#,
    r#"data: {"type":"response.output_text.delta","delta":"\u00e9","output_index":0}"#,
    r#"data:{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","call_id":"c","name":"f"}}"#,
    r#"data: {"type":"response.function_call_arguments.delta","output_index":1,"delta":"{"}"#,
    r#"data: {"type":"response.completed","response":{"usage":{"input_tokens":9}}}"#,
    r#"data: {"type":"error","code":"c"}"#,
    r#"data: {"choices":[{"finish_reason":"length"}],"usage":null}"#,
    r#"data: {"choices":[],"usage":{"prompt_tokens":7}}"#,
    r#"data: {"error":{"code":"c"}}"#,
];

/// Pieces of a stream: meaningful lines, nearly meaningful lines, and line ends.
const PIECES: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\u{feff}",
    ": comment",
    "data:",
    "data: ",
    "event: response.completed",
    "event:response.failed",
    "event: response.output_text.delta",
    r#"data: {"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":9}}}"#,
    r#"data:{ "type" : "response.incomplete","response":{"usage":{"output_tokens":7}}}"#,
    r#"data: {"type":"error","code":"c"}"#,
    r#"data: {"type":"response.created","response":{"output":[1,"\""],"id":"resp_\u0031"}}"#,
    r#"data: {"type":"response.output_text.delta","delta":"event: response.failed data: x"}"#,
    r#"{"id":"resp_2","status":"incomplete","usage":{"input_tokens":5}}"#,
    "                                                                ",
    "x",
    // This line has a meaning only after its first bytes, which a line that arrives in pieces does
    // not show.
    "\nevent: response.failed\n\
     event: a name that is longer than the name of any end of a response\ndata: {}\n",
    "\n\ndata:                                             {\"type\":\"response.completed\"}\n",
];

proptest! {
    #[test]
    fn endpoint_near_miss_is_unknown(
        (method, path, _) in select(super::ENDPOINTS.as_slice()),
        other in select(METHODS),
        is_other: bool,
        piece in select(PATHS), place: Index, at: Index, byte in 0u8..128, how in 0usize..9,
    ) {
        // The piece is put between two others, or at either end.
        let slashes = path.match_indices('/').map(|(at, _)| at);
        let places: Vec<usize> = slashes.chain([path.len()]).collect();
        let (before, after) = path.split_at(places[place.index(places.len())]);
        let path = changed([before, piece, after].concat(), at, byte, how);
        let path = String::from_utf8(path).expect("all of it is ASCII");
        super::endpoint(if is_other { other } else { method }, &path);
    }

    #[test]
    fn endpoint_anything_is_parsed(method in "[A-Za-z-]{1,8}", path in ".{0,40}") {
        super::endpoint(&method, &path);
    }

    #[test]
    fn item_of_a_body_or_an_answer_is_never_overlooked(
        items in vec(object(ITEM, select(ITEM_VALUES).prop_map(str::to_owned)), 0..4),
        name in select(["input", "output"].as_slice()),
        event in select(["", "data: {\"type\":\"response.output_item.added\",\"item\":"].as_slice()),
        at: Index, byte in 0u8..128, how in 0usize..9, cuts: [u8; 8],
    ) {
        let text = match (event, items.first()) {
            ("", _) | (_, None) => format!("{{ \"{name}\" :[{}]}}", items.join(", ")),
            (_, Some(item)) => format!("{event}{item}}}\r\n\n"),
        };
        let changed = changed(text.clone(), at, byte, how);
        for text in [text.as_bytes(), &changed] {
            super::items::referred_to(text);
            super::items::made(text, &cuts);
        }
    }

    #[test]
    fn renamed_body_differs_in_its_model_alone(
        text in document(BODY), at: Index, byte in 0u8..128, how in 0usize..9,
    ) {
        super::rewrites::rename(text.as_bytes());
        super::rewrites::rename(&changed(text, at, byte, how));
    }

    #[test]
    fn name_in_a_query_is_the_same_however_it_is_encoded(
        name in vec(any::<u8>(), 0..20), encoded in vec(any::<bool>(), 0..20),
    ) {
        super::rewrites::query(&name, &encoded);
    }

    #[test]
    fn quotes_are_those_of_a_plain_loop(
        text in r#"([\\"]{0,9}[ nx]?){0,60}"#,
        bytes in vec(any::<u8>(), 0..200),
    ) {
        super::quotes(text.as_bytes());
        super::quotes(&bytes);
    }

    #[test]
    fn json_is_accepted_whatever_its_spelling(text in json()) {
        super::json(text.as_bytes());
    }

    #[test]
    fn json_changed_is_judged_like_a_parser_does(
        text in json(), at: Index, byte: u8, how in 0usize..4,
    ) {
        super::json(&changed(text, at, byte, how));
    }

    #[test]
    fn json_body_shows_the_fields_of_a_parser(
        text in document(BODY), at: Index, byte: u8, how in 0usize..9,
    ) {
        super::json(&changed(text, at, byte, how));
    }

    #[test]
    fn message_is_read_or_yields_nothing(
        text in document(MESSAGE), at: Index, byte: u8, how in 0usize..9,
    ) {
        super::message(&changed(text, at, byte, how));
    }

    #[test]
    fn events_do_not_depend_on_cuts(
        pieces in vec(select(PIECES), 0..30), cuts in vec(0u8..90, 0..60),
        at: Index, byte: u8, how in 0usize..9,
    ) {
        super::events(&changed(pieces.concat(), at, byte, how), &cuts);
    }

    #[test]
    fn chat_body_is_translated_or_refused(
        text in document(CHAT), at: Index, byte: u8, how in 0usize..9,
    ) {
        super::chat::body(&changed(text, at, byte, how));
    }

    #[test]
    fn chat_stream_does_not_depend_on_cuts(
        pieces in vec(select(CHUNKS), 0..30), cuts in vec(0u8..90, 0..60),
        at: Index, byte: u8, how in 0usize..9,
    ) {
        super::chat::stream(&changed(pieces.concat(), at, byte, how), &cuts);
    }

    #[test]
    fn error_body_is_read_like_a_parser_does(
        text in document(ERROR), at: Index, byte: u8, how in 0usize..9,
    ) {
        answers::error_body(&changed(text, at, byte, how));
    }

    #[test]
    fn terminal_is_read_like_a_parser_does(
        text in document(RESPONSE), at: Index, byte: u8, how in 0usize..9,
    ) {
        answers::terminal(&changed(text, at, byte, how));
    }

    #[test]
    fn decoder_does_not_depend_on_cuts(
        bytes in vec(any::<u8>(), 0..400),
        cuts in vec(0u8..90, 0..20),
    ) {
        answers::decoder(&bytes, &cuts);
    }

    /// The encoding's bytes are slightly changed: the decoder becomes blind, or reads on.
    #[test]
    fn decoder_of_broken_bytes_does_not_depend_on_cuts(
        text in ".{0,200}", cuts in vec(0u8..90, 0..20), at: Index, byte: u8, is_zstd: bool,
    ) {
        let mut encoded = if is_zstd {
            zstd::encode_all(text.as_bytes(), 1).expect("memory takes all")
        } else {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, text.as_bytes()).expect("memory takes all");
            gzip.finish().expect("memory takes all")
        };
        let at = at.index(encoded.len());
        encoded[at] = byte;
        answers::decoder(&encoded, &cuts);
    }
}

#[test]
fn endpoint_listed_is_parsed_and_no_path_beside_it() {
    for (_, path, _) in super::ENDPOINTS {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let (before, after) = path.split_at(at);
            for (method, piece) in
                METHODS.iter().flat_map(|method| PATHS.iter().map(move |piece| (method, piece)))
            {
                super::endpoint(method, &[before, piece, after].concat());
            }
        }
    }
}
