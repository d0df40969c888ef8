//! Makes and revokes the tokens of clients in the ledger, by command. Every running replica follows
//! the changes.
//!
//! A replica keeps the tokens that it read last, and admits them while the database is away.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::sleep;

use super::now;
use crate::client::tokens::{LedgerToken, Roster};
use crate::database::Database;
use crate::database::fault::DatabaseFailure;
use crate::database::tokens::Stored;
use crate::setting::Secret;

/// Interval between two reads. Replicas must know a revoked token within 5 s.
const INTERVAL: Duration = Duration::from_secs(2);

/// Follows the tokens in the database for as long as the replica lives.
pub async fn follow(database: Arc<Database>, roster: Arc<Roster>) {
    loop {
        sleep(INTERVAL).await;
        if let Ok(valid) = database.valid_tokens().await {
            publish(&roster, &valid);
        }
    }
}

/// Admits the holders of `valid` beside the clients of the configuration.
pub fn publish(roster: &Roster, valid: &[Stored]) {
    let token = |stored: &Stored| LedgerToken::new(&stored.hash, &stored.client);
    roster.follow(valid.iter().filter_map(token).collect());
}

/// Makes a token of `client` and keeps its hash. The token itself is only returned.
pub async fn add(database: &Database, client: &str) -> Result<(Secret, Stored), DatabaseFailure> {
    let mut connection = database.connect_migrated().await?;
    let token = Secret::new(format!("wk-{}", random::<32>()));
    let stored = Stored {
        hash: LedgerToken::hash_of(&token),
        id: format!("tk-{}", random::<6>()),
        client: client.to_owned(),
        added_at: now(),
        revoked_at: None,
    };
    connection.add_token(&stored).await?;
    connection.close().await;
    Ok((token, stored))
}

/// Revokes the token `name`, or all tokens of the client `name`. Returns those that were valid.
pub async fn revoke(database: &Database, name: &str) -> Result<Vec<Stored>, DatabaseFailure> {
    let mut connection = database.connect_migrated().await?;
    let revoked = connection.revoke_tokens(name, now()).await?;
    connection.close().await;
    Ok(revoked)
}

fn random<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).expect("a system that runs commands has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}
