//! Digests the parts of a request that a prompt cache matches. The digests show whether the
//! session's next turn sends the same parts. Pure.
//!
//! A digest has 32 bits and keeps nothing of the text. Digests only explain cold turns, so an equal
//! digest of different texts does no harm.

/// The names of [`Parts::settings`]: the fields that come before the input for the cache, or decide
/// how the input is read.
pub const SETTINGS: [&str; 5] =
    ["instructions", "reasoning", "text", "parallel_tool_calls", "service_tier"];
/// The names of [`Parts::chat_settings`]: chat's names for some of [`SETTINGS`], and for its older
/// tools.
pub const CHAT_SETTINGS: [&str; 4] =
    ["reasoning_effort", "verbosity", "response_format", "functions"];
/// The item with which Codex asks for a compaction, at the end of the input.
const TRIGGER: &[u8] = br#""compaction_trigger""#;
/// Bytes at the end of an input in which the trigger stands.
const TRIGGER_REACH: usize = 256;

/// The digests of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imprint {
    pub tools: u32,
    pub settings: u32,
    /// The digest of `prompt_cache_key`.
    pub cache_key: u32,
    /// Digests of the input. Empty if the input continues another response, because the request
    /// does not hold what comes before it.
    pub input: InputMarks,
    /// Whether the input continues another response.
    pub is_continued: bool,
    /// Whether the last item asks for a compaction.
    pub asks_compaction: bool,
}

/// The raw fields of a request that an imprint is made of.
#[derive(Clone, Copy, Default)]
pub struct Parts<'b> {
    pub tools: Option<&'b [u8]>,
    pub settings: [Option<&'b [u8]>; 5],
    pub chat_settings: [Option<&'b [u8]>; 4],
    pub cache_key: Option<&'b [u8]>,
    /// `input`, or the `messages` of a chat.
    pub input: Option<&'b [u8]>,
    pub is_continued: bool,
}

impl Imprint {
    pub fn of(parts: &Parts<'_>) -> Self {
        let input = parts.input.unwrap_or_default();
        let end = &input[input.len().saturating_sub(TRIGGER_REACH)..];
        Self {
            tools: digest([parts.tools]),
            settings: settings(parts),
            cache_key: digest([parts.cache_key]),
            input: if parts.is_continued { InputMarks::default() } else { InputMarks::of(input) },
            is_continued: parts.is_continued,
            asks_compaction: memchr::memmem::find(end, TRIGGER).is_some(),
        }
    }
}

/// Digests of beginnings of an input, at growing lengths. Between two lengths lies less than a
/// tenth of the input. A change that no digest shows therefore costs less than a cold turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputMarks(Vec<u32>);

/// The digest of one beginning of an input: the one up to the length with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputMark {
    pub number: usize,
    pub digest: u32,
}

/// The shortest beginning, in bytes: about the shortest prefix that any model caches.
const SHORTEST: usize = 4_096;
/// The most digests: beginnings of up to 16 MB.
const MOST: usize = 96;

impl InputMarks {
    /// Digests the raw field `input`: an array of items, or a text. Its last byte closes it and
    /// belongs to no beginning.
    pub fn of(input: &[u8]) -> Self {
        let content = input.split_last().map_or(&[][..], |(_, content)| content);
        let (mut marks, mut state, mut at, mut next) = (Vec::new(), State::default(), 0, SHORTEST);
        while next <= content.len() && marks.len() < MOST {
            state = fold(state, &content[at..next]);
            marks.push(narrow(state));
            at = next;
            next = longer(next);
        }
        Self(marks)
    }

    /// The digest of the longest beginning.
    pub fn last(&self) -> Option<InputMark> {
        let number = self.0.len().checked_sub(1)?;
        Some(InputMark { number, digest: self.0[number] })
    }

    /// Whether this input begins like the one that `mark` is from. `None`: this input is shorter.
    pub fn begins_with(&self, mark: InputMark) -> Option<bool> {
        self.0.get(mark.number).map(|digest| *digest == mark.digest)
    }
}

/// Returns the next length, in whole blocks.
const fn longer(length: usize) -> usize {
    (length + length / 11) / BLOCK * BLOCK
}

/// Returns the digest of parts that may be absent.
fn digest<const N: usize>(parts: [Option<&[u8]>; N]) -> u32 {
    narrow(parts.into_iter().fold(State::default(), fold_part))
}

/// Returns the digest of everything that decides how an input is read. Only chats have chat's
/// settings, so the digest of any other request is the same as in older versions.
fn settings(parts: &Parts<'_>) -> u32 {
    let own = parts.settings.into_iter().fold(State::default(), fold_part);
    let chats = (0_u64..).zip(parts.chat_settings).filter(|(_, part)| part.is_some());
    narrow(
        chats.fold(own, |state, (place, part)| fold_part(fold(state, &place.to_le_bytes()), part)),
    )
}

fn fold_part(state: State, part: Option<&[u8]>) -> State {
    match part {
        Some(part) => fold(fold(state, &(part.len() as u64).to_le_bytes()), part),
        None => fold(state, &u64::MAX.to_le_bytes()),
    }
}

/// A digest that grows, in two halves that a processor works on at the same time.
type State = [u64; 2];

/// Bytes that are folded at once.
const BLOCK: usize = 32;
/// Numbers without a pattern. All stored digests depend on them, so they never change.
const SEEDS: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

/// Takes bytes into a digest. A last block is filled up with zeros.
fn fold(state: State, bytes: &[u8]) -> State {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let state = blocks.iter().fold(state, fold_block);
    if rest.is_empty() {
        return state;
    }
    let mut last = [0; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    fold_block(state, &last)
}

fn fold_block([first, second]: State, block: &[u8; BLOCK]) -> State {
    let (words, _) = block.as_chunks::<8>();
    let word = |at: usize| u64::from_le_bytes(words[at]) ^ SEEDS[at];
    [product(word(0) ^ first, word(1)), product(word(2) ^ second, word(3))]
}

fn product(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    (product as u64) ^ ((product >> 64) as u64)
}

const fn narrow([first, second]: State) -> u32 {
    let state = first ^ second.rotate_left(32);
    (state ^ (state >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peek::Peek;

    fn imprint(body: &str) -> Imprint {
        Peek::with_imprint(body.as_bytes()).expect("JSON").1
    }

    /// An input of `items` items of 100 bytes.
    fn input(items: usize) -> String {
        let item = |number: usize| format!("{{\"role\":\"user\",\"n\":\"{number:0>76}\"}}");
        let items: Vec<_> = (0..items).map(item).collect();
        format!("[{}]", items.join(","))
    }

    #[test]
    fn parts_are_told_apart() {
        let whole = r#"{"model":"m","input":[],"tools":[{"name":"a"}],"instructions":"i","prompt_cache_key":"k"}"#;
        let same = imprint(whole);
        assert_eq!(same, imprint(&whole.replace("\"m\"", "\"other\"")), "the model is not in it");
        let tools = imprint(&whole.replace("\"a\"", "\"b\""));
        assert!(tools.tools != same.tools && tools.settings == same.settings);
        let settings = imprint(&whole.replace("\"i\"", "\"j\""));
        assert!(settings.settings != same.settings && settings.tools == same.tools);
        let key = imprint(&whole.replace("\"k\"", "\"l\""));
        assert!(key.cache_key != same.cache_key && key.settings == same.settings);
        for name in SETTINGS {
            let [with, without] = [format!("{{\"{name}\":{{}}}}"), "{}".to_owned()];
            assert_ne!(imprint(&with).settings, imprint(&without).settings, "{name}");
        }
        assert_ne!(
            imprint(r#"{"reasoning":{}}"#).settings,
            imprint(r#"{"text":{}}"#).settings,
            "a part has its place"
        );
    }

    #[test]
    fn chat_is_told_by_its_own_names() {
        let body = |messages: &str, more: &str| {
            imprint(&format!(r#"{{"model":"m","messages":{messages}{more}}}"#))
        };
        let plain = body(&input(100), "");
        assert_eq!(plain.input, InputMarks::of(input(100).as_bytes()), "messages are the input");
        let mut all: Vec<_> = CHAT_SETTINGS
            .iter()
            .map(|name| body(&input(100), &format!(r#","{name}":"v""#)).settings)
            .collect();
        all.push(plain.settings);
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "each name is told from the others");
    }

    #[test]
    fn grown_input_begins_as_before() {
        for (before, after) in [(100, 100), (100, 101), (200, 2_000), (1_000, 1_001)] {
            let [short, long] =
                [before, after].map(|items| InputMarks::of(input(items).as_bytes()));
            let mark = short.last().expect("long enough");
            assert_eq!(long.begins_with(mark), Some(true), "{before} {after}");
        }
        assert_eq!(InputMarks::of(input(40).as_bytes()).last(), None, "too short for any cache");
        let mark = InputMarks::of(input(1_000).as_bytes()).last().expect("long enough");
        assert_eq!(InputMarks::of(input(500).as_bytes()).begins_with(mark), None, "cut off");
    }

    /// A change within the first nine tenths always shows.
    #[test]
    fn changed_input_begins_otherwise() {
        let before = input(1_000).into_bytes();
        let mark = InputMarks::of(&before).last().expect("long enough");
        for tenth in 0..90 {
            let mut after = before.clone();
            after[before.len() * tenth / 100] ^= 1;
            assert_eq!(InputMarks::of(&after).begins_with(mark), Some(false), "{tenth} %");
        }
    }

    #[test]
    fn lengths_grow_by_less_than_a_tenth() {
        let mut length = SHORTEST;
        for _ in 0..MOST {
            let next = longer(length);
            assert!(
                next > length && next.is_multiple_of(BLOCK) && (next - length) * 10 < next,
                "{length}"
            );
            length = next;
        }
        assert!(length > 15 << 20, "{length}");
    }

    #[test]
    fn continued_input_has_no_beginning() {
        let body = |previous: &str| {
            format!(r#"{{"input":{},"previous_response_id":{previous}}}"#, input(100))
        };
        let continued = imprint(&body("\"resp_1\""));
        assert!(continued.is_continued && continued.input == InputMarks::default());
        let whole = imprint(&body("null"));
        assert!(!whole.is_continued && whole.input.last().is_some());
    }

    #[test]
    fn compaction_is_asked_for_by_the_last_item() {
        let asks = |items: &str| imprint(&format!(r#"{{"input":[{items}]}}"#)).asks_compaction;
        assert!(asks(r#"{"role":"user"},{"type":"compaction_trigger"}"#));
        assert!(!asks(r#"{"role":"user","content":"\"compaction_trigger\""}"#));
        assert!(!asks(&format!(r#"{{"type":"compaction_trigger"}},{}"#, "1,".repeat(200) + "1")));
    }

    /// A replica of another version compares its digests with those that this version has stored.
    #[test]
    fn digest_is_the_same_in_every_version() {
        let whole = imprint(r#"{"tools":[1],"instructions":"i","prompt_cache_key":"k"}"#);
        let digests = (whole.tools, whole.settings, whole.cache_key);
        assert_eq!(digests, (1_990_143_668, 3_088_394_243, 2_481_714_829));
        let mark = InputMarks::of(input(1_000).as_bytes()).last().expect("long enough");
        assert_eq!((mark.number, mark.digest), (37, 610_707_033));
    }
}
