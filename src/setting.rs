//! The values of options: secrets, sizes and spans of time.
//!
//! Parses each value from a file or the environment. Never prints a secret: [`Secret`] has no
//! `Display`, and its `Debug` shows nothing.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use subtle::ConstantTimeEq;

/// A secret that only this process and its peer may know.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    /// Compares in constant time, so that the duration does not reveal where the two differ.
    fn eq(&self, other: &Self) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The accepted spellings of a secret, for error messages.
const SECRET: &str = r#"a string, { env = "NAME" } or { file = "PATH" }"#;

/// The source of a secret: `"text"`, `{ env = "NAME" }` or `{ file = "PATH" }`.
#[derive(Clone)]
pub enum SecretSource {
    Text(Secret),
    Env(String),
    File(PathBuf),
}

impl SecretSource {
    /// Reads the secret now. An error names the source and never shows the content.
    pub fn read(&self) -> Result<Secret, String> {
        let secret = match self {
            Self::Text(secret) => secret.clone(),
            Self::Env(name) => match std::env::var(name) {
                Ok(text) => Secret::new(text),
                Err(_) => return Err(format!("environment variable {name} is not set")),
            },
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Secret::new(text.trim_end_matches(['\r', '\n'])),
                Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
            },
        };
        if secret.expose().is_empty() {
            Err(format!("the secret {self} is empty"))
        } else {
            Ok(secret)
        }
    }

    /// Reads a secret that a client or Warmkey sends in a header. Refuses a secret that no header
    /// can carry unchanged: with it, every call would fail with 401 for no visible reason.
    pub fn read_shown(&self) -> Result<Secret, String> {
        let secret = self.read()?;
        let text = secret.expose();
        if text.trim() != text || text.chars().any(char::is_control) {
            return Err(format!(
                "the secret {self} has a control character, or white space at an end"
            ));
        }
        Ok(secret)
    }

    /// Returns the file of the secret. Its content may change while this process runs.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Text(_) | Self::Env(_) => None,
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("in the file"),
            Self::Env(name) => write!(f, "in environment variable {name}"),
            Self::File(path) => write!(f, "in {}", path.display()),
        }
    }
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretSource({self})")
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Source;

        /// Refuses a value with an error that names the accepted spellings. The error hides the
        /// value, which may be a secret without quotes.
        fn refuse_value<T, E: de::Error>() -> Result<T, E> {
            Err(de::Error::custom(format!("a secret is {SECRET}")))
        }

        impl<'de> Visitor<'de> for Source {
            type Value = SecretSource;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SECRET)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Text(Secret::new(text)))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_i128<E: de::Error>(self, _: i128) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_u128<E: de::Error>(self, _: u128) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_unit<E: de::Error>(self) -> Result<SecretSource, E> {
                refuse_value()
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<SecretSource, A::Error> {
                refuse_value()
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
                let source = match map.next_entry::<String, String>()? {
                    Some((key, name)) if key == "env" => SecretSource::Env(name),
                    Some((key, path)) if key == "file" => SecretSource::File(path.into()),
                    _ => return refuse_value(),
                };
                match map.next_entry::<String, String>()? {
                    None => Ok(source),
                    Some(_) => Err(de::Error::custom("a secret has one source: env or file")),
                }
            }
        }
        deserializer.deserialize_any(Source)
    }
}

/// A number of bytes: `"64MiB"`, `"512KiB"`, `"1GiB"`, `"4096B"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    pub const fn bytes(self) -> usize {
        // Warmkey runs on 64-bit platforms only.
        self.0 as usize
    }
}

/// A length of time: `"250ms"`, `"5s"`, `"15m"`, `"24h"`, `"90d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

const SIZES: &[(&str, u64)] = &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
/// Ten years. A longer span is a mistake, and Redis cannot count every longer one.
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);
const SPANS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses text such as `"64MiB"` with the units of `table`. The number must be whole and have a
/// unit.
fn measure(text: &str, table: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, scale) = table.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        measure(&text, SIZES).map(Self).ok_or_else(|| {
            de::Error::custom(format!(
                r#""{text}" is no size: write "64MiB", "512KiB", "1GiB" or "4096B""#
            ))
        })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = measure(&text, SPANS).map(Duration::from_millis).ok_or_else(|| {
            de::Error::custom(format!(
                r#""{text}" is no span of time: write "250ms", "5s", "15m", "24h" or "90d""#
            ))
        })?;
        match span > LONGEST {
            true => Err(de::Error::custom(format!(
                r#""{text}" is too long: "3650d" is the longest span of time"#
            ))),
            false => Ok(Self(span)),
        }
    }
}

/// Deserializes one of a few words. The error names these words, and no type of this program.
pub fn word<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    words: &[(&str, T)],
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let quoted: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        de::Error::custom(format!("must be {}", quoted.join(" or ")))
    })
}

/// Deserializes the address of a listener.
pub fn listener<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(|_| {
        de::Error::custom("must be an IP address and a port, such as \"127.0.0.1:8080\"")
    })
}

/// Deserializes a count. Refuses a fraction, because a rounded fraction is not the value that the
/// operator wrote. The environment supplies numbers as text.
pub fn count<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    struct Count;

    impl Visitor<'_> for Count {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_err(|_| E::custom(COUNT))
        }

        fn visit_f64<E: de::Error>(self, _: f64) -> Result<u64, E> {
            Err(E::custom(COUNT))
        }

        fn visit_bool<E: de::Error>(self, _: bool) -> Result<u64, E> {
            Err(E::custom(COUNT))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            text.parse().map_err(|_| E::custom(COUNT))
        }
    }
    T::try_from(deserializer.deserialize_any(Count)?).map_err(|_| de::Error::custom(COUNT))
}

const COUNT: &str = "must be a whole number, not below 0 and not too large";

#[cfg(test)]
mod tests;
