//! The command lines of `token`, `usage` and `session`, and what each command prints.

use std::path::PathBuf;

use clap::Subcommand;

use super::ledger::{LedgerFile, SessionQuery, session_text, usage_table};
use super::{AdminClient, Failure};
use crate::database::read::By;

#[derive(clap::Args)]
pub struct TokenLine {
    #[command(subcommand)]
    action: TokenAction,
    /// The configuration file, which names the ledger
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum TokenAction {
    /// Make a token and print it, once: only its hash is kept
    Add {
        /// The id of the client that will use the token
        #[arg(long, value_name = "ID")]
        client: String,
    },
    /// Show all tokens, revoked ones included
    List,
    /// Revoke a token by its name in the list, or all tokens of a client
    Revoke {
        /// The token's name in the list (tk-...), or a client's id
        id: String,
    },
}

#[derive(clap::Args)]
pub struct UsageLine {
    /// Group by client, key, organization, model or day
    #[arg(long, default_value = "client", value_parser = by)]
    by: By,
    /// The first day; by default the first of this month
    #[arg(long, value_name = "DATE")]
    from: Option<jiff::civil::Date>,
    /// The last day; by default today
    #[arg(long, value_name = "DATE")]
    to: Option<jiff::civil::Date>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The configuration file; by default warmkey.toml, if it exists
    #[arg(long)]
    config: Option<PathBuf>,
}

fn by(text: &str) -> Result<By, &'static str> {
    By::parse(text).ok_or("client, key, organization, model or day")
}

#[derive(clap::Args)]
pub struct SessionLine {
    /// The session's id in the logs: 22 characters
    #[arg(required_unless_present = "client", conflicts_with = "client")]
    hash: Option<String>,
    /// The client of the session, together with --id
    #[arg(long, value_name = "ID", requires = "id")]
    client: Option<String>,
    /// The session as its client called it, together with --client
    #[arg(long, value_name = "SESSION", requires = "client")]
    id: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The configuration file; by default warmkey.toml, if it exists
    #[arg(long)]
    config: Option<PathBuf>,
    /// The admin listener, in place of the configured one
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

impl TokenLine {
    /// Returns the text for standard output, and the note for standard error.
    pub async fn run(&self) -> Result<(String, String), Failure> {
        let ledger = LedgerFile::find(self.config.as_deref())?;
        match &self.action {
            TokenAction::Add { client } => {
                let (token, id) = ledger.add_token(client).await?;
                let note = format!("{id} of client {client}, shown here and never again:\n");
                Ok((format!("{}\n", token.expose()), note))
            }
            TokenAction::List => Ok((ledger.list_tokens().await?, String::new())),
            TokenAction::Revoke { id } => Ok((ledger.revoke_token(id).await?, String::new())),
        }
    }
}

impl UsageLine {
    pub async fn run(&self) -> Result<String, Failure> {
        let report =
            LedgerFile::find(self.config.as_deref())?.usage(self.by, self.from, self.to).await?;
        match self.json {
            true => serde_json::to_string(&report)
                .map(|text| text + "\n")
                .map_err(|error| Failure::Other(error.to_string())),
            false => Ok(usage_table(&report)),
        }
    }
}

impl SessionLine {
    pub async fn run(&self) -> Result<String, Failure> {
        let replica = AdminClient::find(self.config.as_deref(), self.admin.as_deref())?;
        let asked = match (&self.hash, &self.client, &self.id) {
            (Some(hash), ..) => SessionQuery::Hash(hash),
            (None, Some(client), Some(id)) => SessionQuery::Sent { client, id },
            _ => {
                return Err(Failure::Configuration(
                    "name a session by its hash, or with --client and --id".into(),
                ));
            }
        };
        let session = replica.session(&asked).await?;
        Ok(if self.json { format!("{session}\n") } else { session_text(&session) })
    }
}
