//! Classifies failures of the database by what the caller must do: wait, try again, or give up.
//! Pure.

use std::fmt;
use std::time::Duration;

/// A failed operation. Its text holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFailure {
    pub kind: FailureKind,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The database does not answer, or lacks something that an operator must repair. The
    /// operation may have succeeded.
    Away,
    /// Another replica caused a conflict. Nothing was written, and an immediate retry can succeed.
    Conflict,
    /// The database will never take these values.
    Refused,
}

impl DatabaseFailure {
    pub fn of(error: &sqlx::Error) -> Self {
        let kind = match error {
            sqlx::Error::Database(error) => kind(error.code().as_deref().unwrap_or_default()),
            sqlx::Error::Encode(_) => FailureKind::Refused,
            _ => FailureKind::Away,
        };
        let why = match error {
            sqlx::Error::Database(error) => error.message().to_owned(),
            // This error would show the URL.
            sqlx::Error::Configuration(_) => "the URL is not understood".into(),
            other => other.to_string(),
        };
        // A server's text may have several lines; the log gets one.
        Self { kind, why: why.split_whitespace().collect::<Vec<_>>().join(" ") }
    }

    pub(super) fn silent(limit: Duration) -> Self {
        Self { kind: FailureKind::Away, why: format!("no answer within {}s", limit.as_secs()) }
    }

    /// Puts the `place` of the failure before its text.
    pub(super) fn at(self, place: &str) -> Self {
        Self { why: format!("{place}: {}", self.why), ..self }
    }
}

impl fmt::Display for DatabaseFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Classifies a failure by its SQLSTATE, or by the extended result code of SQLite.
fn kind(code: &str) -> FailureKind {
    if code.len() == 5 {
        return match code {
            "40001" | "40P01" | "55P03" => FailureKind::Conflict,
            // Data exceptions. A missing partition (23514) is no refusal: the retry creates it.
            _ if code.starts_with("22") => FailureKind::Refused,
            _ => FailureKind::Away,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        // SQLITE_BUSY, SQLITE_LOCKED.
        Ok(5 | 6) => FailureKind::Conflict,
        // SQLITE_TOOBIG, SQLITE_MISMATCH.
        Ok(18 | 20) => FailureKind::Refused,
        _ => FailureKind::Away,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_classified_by_its_code() {
        for (code, expected) in [
            ("40P01", FailureKind::Conflict),
            ("40001", FailureKind::Conflict),
            ("55P03", FailureKind::Conflict),
            ("22P05", FailureKind::Refused),
            ("22021", FailureKind::Refused),
            ("23514", FailureKind::Away),
            ("42P01", FailureKind::Away),
            ("53100", FailureKind::Away),
            ("57P01", FailureKind::Away),
            ("28P01", FailureKind::Away),
            ("5", FailureKind::Conflict),
            ("517", FailureKind::Conflict),
            ("6", FailureKind::Conflict),
            ("18", FailureKind::Refused),
            ("14", FailureKind::Away),
            ("13", FailureKind::Away),
            ("8", FailureKind::Away),
            ("", FailureKind::Away),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn failure_is_one_line_without_the_url() {
        let error = sqlx::Error::Configuration("postgres://u:canary@h".into());
        assert_eq!(DatabaseFailure::of(&error).to_string(), "the URL is not understood");
        let error = sqlx::Error::Protocol("two\n  lines".into());
        assert_eq!(
            DatabaseFailure::of(&error).at("here").to_string(),
            "here: encountered unexpected or invalid data: two lines"
        );
        assert_eq!(
            DatabaseFailure::silent(Duration::from_secs(5)).to_string(),
            "no answer within 5s"
        );
    }
}
