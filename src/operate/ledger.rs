//! The commands for the ledger. `usage` and `token` use the database itself, `session` asks a
//! replica.
//!
//! A token is shown once, when it is made.

use std::path::Path;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::columns::aligned;
use super::{AdminClient, Failure, format_value};
use crate::config::Config;
use crate::database::read::By;
use crate::database::{Database, DatabaseAddress};
use crate::ledger::report::{self, Line, Report};
use crate::ledger::{NoAnswer, tokens};
use crate::setting::Secret;

/// The ledger that a configuration names.
pub struct LedgerFile {
    database: Database,
    zone: TimeZone,
}

impl LedgerFile {
    /// The ledger that the configuration in `file` names.
    pub fn find(file: Option<&Path>) -> Result<Self, Failure> {
        let config = Config::load(file).map_err(Failure::Configuration)?;
        let (address, zone) = config.ledger().map_err(Failure::Configuration)?;
        let none =
            "ledger.url: there is no ledger: write \"sqlite:warmkey.db\" or \"postgres://...\"";
        let address = address.ok_or_else(|| Failure::Configuration(none.into()))?;
        Ok(Self { database: Database::at(&address, config.ledger.url.as_ref()), zone })
    }

    /// The sums of some days.
    pub async fn usage(
        &self,
        by: By,
        from: Option<Date>,
        to: Option<Date>,
    ) -> Result<Report, Failure> {
        self.is_there()?;
        report::read(&self.database, &self.zone, by, from, to).await.map_err(|why| match why {
            NoAnswer::None => Failure::Other("there is no ledger".into()),
            NoAnswer::Away(why) => self.away(&why),
            NoAnswer::Meaningless(why) => Failure::Configuration(why),
        })
    }

    /// A new token of `client`, and the name by which it is listed and revoked.
    pub async fn add_token(&self, client: &str) -> Result<(Secret, String), Failure> {
        if client.is_empty() || client.chars().any(char::is_control) {
            return Err(Failure::Configuration("--client: is no client's id".into()));
        }
        let added = tokens::add(&self.database, client).await;
        added
            .map(|(token, stored)| (token, stored.id))
            .map_err(|failure| self.away(&failure.to_string()))
    }

    /// A table of all tokens, revoked ones included.
    pub async fn list_tokens(&self) -> Result<String, Failure> {
        self.is_there()?;
        let stored =
            self.database.all_tokens().await.map_err(|failure| self.away(&failure.to_string()))?;
        let time = |at: i64| {
            Timestamp::from_microsecond(at - at.rem_euclid(1_000_000)).map(|at| at.to_string())
        };
        let time = |at: Option<i64>| at.and_then(|at| time(at).ok()).unwrap_or_default();
        let rows = stored
            .into_iter()
            .map(|one| vec![one.id, one.client, time(Some(one.added_at)), time(one.revoked_at)]);
        let head = ["TOKEN", "CLIENT", "ADDED", "REVOKED"].map(str::to_owned).to_vec();
        Ok(aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), usize::MAX))
    }

    /// Revokes the token `name`, or all tokens of the client `name`. Says which.
    pub async fn revoke_token(&self, name: &str) -> Result<String, Failure> {
        let revoked = tokens::revoke(&self.database, name)
            .await
            .map_err(|failure| self.away(&failure.to_string()))?;
        if revoked.is_empty() {
            return Err(Failure::Other(format!(
                "there is no valid token {name}, and no client {name} that has one"
            )));
        }
        let line = |one: &crate::database::tokens::Stored| {
            format!("{} of client {} is revoked.\n", one.id, one.client)
        };
        Ok(revoked.iter().map(line).collect())
    }

    /// A command that only reads must not create a file.
    fn is_there(&self) -> Result<(), Failure> {
        match self.database.address() {
            DatabaseAddress::Sqlite(path) if !path.exists() => {
                Err(self.away("there is no such file yet: serve makes it"))
            }
            _ => Ok(()),
        }
    }

    fn away(&self, why: &str) -> Failure {
        Failure::Other(format!("the ledger in {} cannot be used: {why}", self.database.address()))
    }
}

/// Sums as a table.
pub fn usage_table(report: &Report) -> String {
    let heads = [
        "TURNS",
        "INPUT",
        "CACHED",
        "SHARE",
        "WRITTEN",
        "OUTPUT",
        "USD",
        "UNPRICED",
        "COLD",
        "COLD TOKENS",
    ];
    let head = std::iter::once(report.by.to_uppercase()).chain(heads.map(str::to_owned)).collect();
    let rows = report.rows.iter().chain([&report.total]).map(usage_row);
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    format!("{} to {}, days of {}\n{}", report.from, report.to, report.time_zone, aligned(&rows, 1))
}

fn usage_row(line: &Line) -> Vec<String> {
    // In tenths of a percent. A row without input has no share.
    let share = line.cached_tokens.saturating_mul(1_000).checked_div(line.input_tokens);
    let share =
        share.map_or_else(|| "-".to_owned(), |share| format!("{}.{}%", share / 10, share % 10));
    let count = |count: i64| count.to_string();
    vec![
        line.name.clone(),
        count(line.turns),
        count(line.input_tokens),
        count(line.cached_tokens),
        share,
        count(line.written_tokens),
        count(line.output_tokens),
        line.cost_usd.clone(),
        count(line.unpriced_turns),
        count(line.cold_turns),
        count(line.cold_tokens),
    ]
}

/// The name by which an operator asks for a session.
pub enum SessionQuery<'a> {
    /// The stored id, which logs show.
    Hash(&'a str),
    /// The id that the client sent.
    Sent { client: &'a str, id: &'a str },
}

impl AdminClient {
    /// All that is known of a session.
    pub async fn session(&self, asked: &SessionQuery<'_>) -> Result<Value, Failure> {
        match asked {
            SessionQuery::Hash(hash) => self.read(&["sessions", hash], &[]).await,
            SessionQuery::Sent { client, id } => {
                self.read(&["sessions"], &[("client", client), ("id", id)]).await
            }
        }
    }
}

/// A session as text: where it is bound, what was decided about it, and its turns.
pub fn session_text(session: &Value) -> String {
    let binding = &session["binding"];
    let mut text = format!("session {}\n", format_value(&session["session"]));
    text.push_str(&match binding.is_null() {
        true => "is not bound\n".to_owned(),
        false => format!(
            "is bound to {} of {}, epoch {}\n",
            format_value(&binding["key"]),
            format_value(&binding["organization"]),
            format_value(&binding["epoch"])
        ),
    });
    for mark in session["trail"].as_array().into_iter().flatten() {
        let word = |name: &str| format_value(&mark[name]);
        text.push_str(&format!("{} {} ({})", time(&mark["at"]), word("decision"), word("reason")));
        text.push_str(&format!(" {} -> {}\n", word("from"), word("to")));
    }
    if session["ledger"] != "read" {
        text.push_str(&format!(
            "its turns are not known: the ledger is {}\n",
            format_value(&session["ledger"])
        ));
        return text;
    }
    const FIELDS: [&str; 13] = [
        "transport",
        "kind",
        "model",
        "key",
        "binding",
        "status",
        "cold_reason",
        "input_tokens",
        "cached_tokens",
        "expected_cached_tokens",
        "output_tokens",
        "cost_usd",
        "trace",
    ];
    let head = std::iter::once("AT".to_owned())
        .chain(FIELDS.map(|name| name.replace('_', " ").to_uppercase()))
        .collect();
    let row = |turn: &Value| {
        std::iter::once(time(&turn["at"]))
            .chain(FIELDS.map(|name| format_value(&turn[name])))
            .collect()
    };
    let turns = session["turns"].as_array().into_iter().flatten().map(row);
    text.push_str(&aligned(&std::iter::once(head).chain(turns).collect::<Vec<_>>(), 8));
    text
}

fn time(at: &Value) -> String {
    at.as_i64()
        .and_then(|at| Timestamp::from_millisecond(at).ok())
        .map(|at| at.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_a_table_with_its_share() {
        let line = |name: &str, input: i64, cached: i64| Line {
            name: name.into(),
            turns: 3,
            input_tokens: input,
            cached_tokens: cached,
            written_tokens: 0,
            output_tokens: 7,
            cost_usd: "0.000000001".into(),
            unpriced_turns: 1,
            cold_turns: 2,
            cold_tokens: 5,
        };
        let report = Report {
            time_zone: "UTC".into(),
            from: "2026-12-01".into(),
            to: "2026-12-02".into(),
            by: "client",
            rows: vec![line("alice", 1_000, 987), line("bob", 0, 0)],
            total: line("total", 1_000, 987),
        };
        let expected = "\
2026-12-01 to 2026-12-02, days of UTC
CLIENT  TURNS  INPUT  CACHED  SHARE  WRITTEN  OUTPUT          USD  UNPRICED  COLD  COLD TOKENS
alice       3   1000     987  98.7%        0       7  0.000000001         1     2            5
bob         3      0       0      -        0       7  0.000000001         1     2            5
total       3   1000     987  98.7%        0       7  0.000000001         1     2            5
";
        assert_eq!(usage_table(&report), expected);
    }

    #[test]
    fn session_tells_its_turns_or_why_not() {
        let session = serde_json::json!({
            "session": "FVm43fzVIvXqRQ8foYWp-_", "binding": { "key": "a-1", "organization": "org-a", "epoch": 2 },
            "trail": [{ "at": 1_796_126_400_000_i64, "decision": "move", "reason": "failed", "from": "a-2", "to": "a-1" }],
            "turns": [{ "at": 1_796_126_400_000_i64, "transport": "http", "kind": null, "model": "m", "key": "a-1",
                        "binding": "rebound", "status": 200, "input_tokens": 9, "cached_tokens": null, "trace": "t" }],
            "ledger": "read",
        });
        let text = session_text(&session);
        assert!(
            text.contains(
                "is bound to a-1 of org-a, epoch 2\n2026-12-01T12:00:00Z move (failed) a-2 -> a-1\n"
            ),
            "{text}"
        );
        let turn = text.lines().last().expect("a turn").split_whitespace().collect::<Vec<_>>();
        assert_eq!(turn, ["2026-12-01T12:00:00Z", "http", "m", "a-1", "rebound", "200", "9", "t"]);
        let away = serde_json::json!({ "session": "s", "binding": null, "trail": [], "turns": [], "ledger": "away" });
        assert_eq!(
            session_text(&away),
            "session s\nis not bound\nits turns are not known: the ledger is away\n"
        );
    }
}
