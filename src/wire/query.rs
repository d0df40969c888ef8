//! Reads the names of a query's parameters as a server does. Pure.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Returns the percent-decoded name of `pair`, the part of a query between two `&`. A `%` that
/// encodes nothing stays.
pub fn name_of(pair: &str) -> Cow<'_, str> {
    percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_decoded_once() {
        for (pair, name) in [
            ("key=a%3Db", "key"),
            ("api%2Dkey=S", "api-key"),
            ("%61pi%2dke%79", "api-key"),
            ("a%3Db=c", "a=b"),
            ("key%20=x", "key "),
            ("%252D=x", "%2D"),
            ("a%2=x", "a%2"),
            ("%zz%=x", "%zz%"),
            ("%C3%A9", "é"),
            ("%ff", "\u{fffd}"),
            ("", ""),
        ] {
            assert_eq!(name_of(pair), name, "{pair}");
        }
    }
}
