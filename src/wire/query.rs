//! Names of a query's parameters, as a server reads them. Pure.

use std::borrow::Cow;

/// The name of `pair`, a query's part between two `&`, percent-decoded. A `%` that encodes nothing
/// stays.
pub fn name_of(pair: &str) -> Cow<'_, str> {
    let name = pair.split('=').next().unwrap_or_default();
    if !name.contains('%') {
        return Cow::Borrowed(name);
    }
    let (mut plain, mut rest) = (Vec::with_capacity(name.len()), name.as_bytes());
    while let [byte, after @ ..] = rest {
        let encoded = match after {
            [high, low, ..] if *byte == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        plain.push(encoded.map_or(*byte, |(high, low)| high << 4 | low));
        rest = if encoded.is_some() { &after[2..] } else { after };
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| digit.try_into().ok())
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
