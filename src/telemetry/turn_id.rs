//! The id of a turn: its trace, its span in the trace, and the client's span above (W3C Trace
//! Context). Pure, except that new ids are random.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use http::{HeaderMap, HeaderValue};

/// The header of a request that names its caller's span.
pub const TRACEPARENT: &str = "traceparent";
/// The step between the inputs of two draws (splitmix64).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A turn's place in its trace. The client receives the trace id as `x-warmkey-turn`. If the trace
/// is the client's own, several turns may share it, so the turn's span id follows the trace id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnId {
    /// 16 bytes, never 0.
    pub trace: u128,
    /// The turn's span: 8 bytes, never 0.
    pub span: u64,
    /// The client's span. `None`: the turn begins its trace.
    pub parent: Option<u64>,
}

impl TurnId {
    /// Continues the trace of a request's `traceparent`, or begins a new one. Two `traceparent`
    /// headers count as none.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(TRACEPARENT).into_iter().map(HeaderValue::as_bytes);
        match (values.next(), values.next()) {
            (Some(value), None) => Self::within(Some(value)),
            _ => Self::random(),
        }
    }

    /// Continues the trace of a `traceparent`, or begins a new one if there is no valid one.
    /// Ignores the sampled flag.
    pub fn within(traceparent: Option<&[u8]>) -> Self {
        let own = Self::random();
        match traceparent.and_then(parse) {
            Some((trace, parent)) => Self { trace, span: own.span, parent: Some(parent) },
            None => own,
        }
    }

    /// Returns a unique id, drawn from the hash keys that the standard library seeds once per
    /// thread. This needs no system call for each turn.
    pub fn random() -> Self {
        let keyed = RandomState::new();
        let half = |number: u64| u128::from(keyed.hash_one(number));
        let trace = (half(0) << 64 | half(1)).max(1);
        Self { trace, span: keyed.hash_one(2_u64).max(1), parent: None }
    }

    /// Returns the id of the turn's child span with this number.
    pub const fn child(self, number: u64) -> u64 {
        let id = mixed(self.span.wrapping_add(STEP.wrapping_mul(number.wrapping_add(1))));
        if id == 0 { 1 } else { id }
    }

    /// Returns a number that is spread evenly over all traces, and is the same for all turns of a
    /// trace.
    pub const fn lot(self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "both halves count")]
        mixed((self.trace >> 64) as u64 ^ mixed(self.trace as u64))
    }

    /// Returns the `traceparent` of the turn's child span with this number.
    pub fn traceparent(self, child: u64, is_sampled: bool) -> Option<HeaderValue> {
        let flags = u8::from(is_sampled);
        let text = format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.child(child));
        HeaderValue::try_from(text).ok()
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace)?;
        match self.parent {
            Some(_) => write!(f, "-{:016x}", self.span),
            None => Ok(()),
        }
    }
}

/// Returns the trace and the span that a valid `traceparent` names.
fn parse(value: &[u8]) -> Option<(u128, u64)> {
    let (head, rest) = value.split_at_checked(55)?;
    let [v1, v2, b'-', trace @ .., b'-', f1, f2] = head else { return None };
    let (trace, span) = trace.split_at_checked(32)?;
    let span = span.strip_prefix(b"-")?;
    hex(&[*f1, *f2])?;
    let may_go_on = match hex(&[*v1, *v2])? {
        0 => rest.is_empty(),
        // A later version may append fields.
        1..=0xfe => rest.is_empty() || rest.starts_with(b"-"),
        _ => false,
    };
    let (trace, span) = (hex(trace)?, u64::try_from(hex(span)?).ok()?);
    (may_go_on && trace != 0 && span != 0).then_some((trace, span))
}

/// Reads a number of at most 32 lower-case hexadecimal digits.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number: u128, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// The finalizer of splitmix64: each bit of the result depends on each bit of `number`.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn turn_continues_the_trace_of_its_client() {
        let id = TurnId::within(Some(GIVEN.as_bytes()));
        assert_eq!(
            (id.trace, id.parent),
            (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, Some(0x00f0_67aa_0ba9_02b7))
        );
        let other = TurnId::within(Some(GIVEN.as_bytes()));
        assert_ne!(id.span, other.span, "each turn of a trace has its own span");
        let shown = format!("4bf92f3577b34da6a3ce929d0e0e4736-{:016x}", id.span);
        assert_eq!(id.to_string(), shown);
        for flags in ["00", "ff", "03"] {
            assert!(parse(GIVEN.replace("-01", &format!("-{flags}")).as_bytes()).is_some());
        }
        // A later version may append fields.
        assert!(parse(GIVEN.replacen("00", "01", 1).as_bytes()).is_some());
        assert!(parse(format!("{}-more", GIVEN.replacen("00", "cc", 1)).as_bytes()).is_some());
    }

    #[test]
    fn invalid_parent_is_none() {
        for wrong in [
            "",
            "00-",
            "00-4bf9-00f0-01",
            &GIVEN.to_uppercase(),
            &format!("{GIVEN}-more"),
            &format!("{GIVEN} "),
            &GIVEN.replacen("00", "ff", 1),
            &GIVEN.replacen("4bf", "4b", 1),
            &GIVEN.replacen("4bf", "4bff", 1),
            &GIVEN.replacen("4bf", "4bg", 1),
            &GIVEN.replace("-01", "-0g"),
            &GIVEN.replace("00f067aa0ba902b7", "0000000000000000"),
            &GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GIVEN.replace("-", "_"),
            &format!("{}more", GIVEN.replacen("00", "01", 1)),
        ] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
            let id = TurnId::within(Some(wrong.as_bytes()));
            assert!(id.parent.is_none() && id.to_string().len() == 32, "{wrong}");
        }
    }

    #[test]
    fn header_names_the_parent_only_once() {
        let headers = |values: &[&str]| {
            let name: http::HeaderName = TRACEPARENT.parse().unwrap();
            let pairs = values.iter().map(|value| (name.clone(), value.parse().unwrap()));
            let mut headers = HeaderMap::new();
            pairs.for_each(|(name, value)| _ = headers.append(name, value));
            headers
        };
        assert!(TurnId::of(&headers(&[GIVEN])).parent.is_some());
        for none in [&[][..], &["00-x"], &[GIVEN, GIVEN]] {
            assert_eq!(TurnId::of(&headers(none)).parent, None, "{none:?}");
        }
        let (one, other) = (TurnId::random(), TurnId::random());
        assert!(one.trace != other.trace && one.span != other.span);
    }

    #[test]
    fn child_has_an_id_of_its_own() {
        let id = TurnId::within(Some(GIVEN.as_bytes()));
        let ids: std::collections::BTreeSet<_> = (0..100).map(|number| id.child(number)).collect();
        assert!(ids.len() == 100 && !ids.contains(&id.span) && !ids.contains(&0));
        let parent = id.traceparent(3, true).unwrap();
        assert_eq!(parse(parent.as_bytes()), Some((id.trace, id.child(3))));
        assert!(parent.to_str().unwrap().ends_with("-01"));
        assert!(id.traceparent(3, false).unwrap().to_str().unwrap().ends_with("-00"));
    }
}
