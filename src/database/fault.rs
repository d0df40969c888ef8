//! What a failure of the database means for whoever asked: to wait, to ask again, or to give up. Pure.

use std::fmt;
use std::time::Duration;

/// A failed operation. Its words hold no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The database does not answer or is not as it must be. Nobody knows whether what was asked was done.
    Away,
    /// Another replica was in the way. Nothing was done, and the same can be asked again at once.
    Conflict,
    /// The database will never take these values.
    Refused,
}

impl Failure {
    pub fn of(error: &sqlx::Error) -> Self {
        let kind = match error {
            sqlx::Error::Database(error) => kind(error.code().as_deref().unwrap_or_default()),
            sqlx::Error::Encode(_) => Kind::Refused,
            _ => Kind::Away,
        };
        let why = match error {
            sqlx::Error::Database(error) => error.message().to_owned(),
            // What it would tell is what stood in the URL.
            sqlx::Error::Configuration(_) => "the URL is not understood".into(),
            other => other.to_string(),
        };
        // One line, whatever a server says.
        Self { kind, why: why.split_whitespace().collect::<Vec<_>>().join(" ") }
    }

    pub(super) fn silent(limit: Duration) -> Self {
        Self { kind: Kind::Away, why: format!("no answer within {}s", limit.as_secs()) }
    }

    /// Says first where it happened.
    pub(super) fn at(self, place: &str) -> Self {
        Self { why: format!("{place}: {}", self.why), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// By SQLSTATE, or by the extended result code of SQLite.
fn kind(code: &str) -> Kind {
    if code.len() == 5 {
        return match code {
            "40001" | "40P01" | "55P03" => Kind::Conflict,
            // Data exceptions. A missing partition (23514) is mended by looking again.
            _ if code.starts_with("22") => Kind::Refused,
            _ => Kind::Away,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        // SQLITE_BUSY, SQLITE_LOCKED.
        Ok(5 | 6) => Kind::Conflict,
        // SQLITE_TOOBIG, SQLITE_MISMATCH.
        Ok(18 | 20) => Kind::Refused,
        _ => Kind::Away,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_told_by_its_code() {
        for (code, expected) in [
            ("40P01", Kind::Conflict),
            ("40001", Kind::Conflict),
            ("55P03", Kind::Conflict),
            ("22P05", Kind::Refused),
            ("22021", Kind::Refused),
            ("23514", Kind::Away),
            ("42P01", Kind::Away),
            ("53100", Kind::Away),
            ("57P01", Kind::Away),
            ("28P01", Kind::Away),
            ("5", Kind::Conflict),
            ("517", Kind::Conflict),
            ("6", Kind::Conflict),
            ("18", Kind::Refused),
            ("14", Kind::Away),
            ("13", Kind::Away),
            ("8", Kind::Away),
            ("", Kind::Away),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn failure_is_one_line_without_the_url() {
        let error = sqlx::Error::Configuration("postgres://u:canary@h".into());
        assert_eq!(Failure::of(&error).to_string(), "the URL is not understood");
        let error = sqlx::Error::Protocol("two\n  lines".into());
        assert_eq!(Failure::of(&error).at("here").to_string(), "here: encountered unexpected or invalid data: two lines");
        assert_eq!(Failure::silent(Duration::from_secs(5)).to_string(), "no answer within 5s");
    }
}
