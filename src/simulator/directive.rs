//! Directives in the last user text, by which a test or a real client steers one answer.
//!
//! | words in the text | the answer |
//! |---|---|
//! | `TOOL`, `tool call` | calls `exec_command`, if offered and not yet called since that text |
//! | `SLOW:20x100ms` | 20 text events, 100 ms before each |
//! | `EVENTS:500` | 500 text events |
//! | `BIG:8MiB` | one text event of that size (`B`, `KiB`, `MiB`; at most 64 MiB) |
//!
//! Pure. Reading never fails: any other word is only text.

use std::time::Duration;

const MOST_EVENTS: u64 = 1_000_000;
const MOST_BYTES: u64 = 64 << 20;

/// How one answer differs from an ordinary one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directive {
    pub tool: bool,
    pub events: Option<u64>,
    /// Real time before each text event.
    pub pause: Option<Duration>,
    /// Bytes of the one text event.
    pub big: Option<u64>,
}

impl Directive {
    pub fn read(text: &str) -> Self {
        let mut directive =
            Self { tool: text.contains("TOOL") || text.contains("tool call"), ..Self::default() };
        if let Some((events, _)) = argument(text, "EVENTS:") {
            directive.events = Some(events.clamp(1, MOST_EVENTS));
        }
        if let Some((events, rest)) = argument(text, "SLOW:")
            && let Some((pause, unit)) = rest.strip_prefix('x').and_then(number)
        {
            directive.events = Some(events.clamp(1, MOST_EVENTS));
            let millis = if unit.starts_with("ms") { pause } else { pause.saturating_mul(1000) };
            directive.pause = Some(Duration::from_millis(millis));
        }
        if let Some((size, unit)) = argument(text, "BIG:") {
            let scale = [("MiB", 1 << 20), ("KiB", 1 << 10)]
                .iter()
                .find(|(name, _)| unit.starts_with(name))
                .map_or(1, |(_, scale)| *scale);
            directive.big = Some(size.saturating_mul(scale).clamp(1, MOST_BYTES));
        }
        directive
    }
}

/// The number behind `word`, and the text behind that number.
fn argument<'a>(text: &'a str, word: &str) -> Option<(u64, &'a str)> {
    number(text.split_once(word)?.1)
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_wherever_they_stand() {
        let slow = Directive::read("please go SLOW:20x100ms, thanks");
        assert_eq!((slow.events, slow.pause), (Some(20), Some(Duration::from_millis(100))));
        assert_eq!(Directive::read("SLOW:3x2s").pause, Some(Duration::from_secs(2)));
        assert_eq!(Directive::read("BIG:8MiB").big, Some(8 << 20));
        assert_eq!(Directive::read("BIG:12B").big, Some(12));
        assert_eq!(Directive::read("EVENTS:500 and a TOOL").events, Some(500));
        assert!(Directive::read("make a tool call").tool);
    }

    #[test]
    fn other_words_are_only_text() {
        for text in [
            "",
            "slow and big",
            "SLOW:",
            "SLOW:5",
            "SLOW:5x",
            "BIG:",
            "EVENTS:many",
            "SLOW:99999999999999999999x1s",
        ] {
            assert_eq!(Directive::read(text), Directive::default(), "{text}");
        }
    }
}
