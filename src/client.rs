//! Clients, their tokens, and what each client may ask for.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::setting::{Secret, SecretSource};

pub mod authenticate;
pub mod tokens;

/// One `[[client]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    pub id: Option<String>,
    pub token: Option<SecretSource>,
    pub token_sha256: Option<String>,
    pub token_file: Option<PathBuf>,
    #[serde(default)]
    pub organizations: Vec<String>,
    #[serde(default)]
    pub models: Vec<String>,
}

/// A client's name, as the configuration gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(Arc<str>);

impl ClientId {
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A caller and its rights.
#[derive(Debug)]
pub struct Client {
    pub id: ClientId,
    /// Organizations that the client's sessions may use. Empty: all.
    organizations: Vec<String>,
    /// Models that the client may ask for. Empty: all.
    models: Vec<String>,
}

impl Client {
    /// A client that may ask for every model in every organization.
    pub fn unrestricted(id: &str) -> Self {
        Self { id: ClientId::new(id), organizations: Vec::new(), models: Vec::new() }
    }

    /// A client that may ask for these models only, in every organization.
    #[cfg(test)]
    pub fn of_models(id: &str, models: &[&str]) -> Self {
        let models = models.iter().map(|name| (*name).into()).collect();
        Self { models, ..Self::unrestricted(id) }
    }

    #[cfg(test)]
    pub fn of_organizations(id: &str, organizations: &[&str]) -> Self {
        Self {
            organizations: organizations.iter().map(|name| (*name).to_owned()).collect(),
            ..Self::unrestricted(id)
        }
    }

    /// Whether both clients have the same rights, whatever the order of their lists.
    fn has_rights_of(&self, other: &Self) -> bool {
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        sorted(&self.organizations) == sorted(&other.organizations)
            && sorted(&self.models) == sorted(&other.models)
    }

    pub fn may_use_organization(&self, organization: &str) -> bool {
        self.organizations.is_empty() || self.organizations.iter().any(|one| one == organization)
    }

    /// Whether the client may ask for some models only.
    pub const fn has_models(&self) -> bool {
        !self.models.is_empty()
    }

    /// A turn that names no model cannot be checked, so only a client without a list of models may
    /// send it.
    pub fn may_ask_for(&self, model: Option<&str>) -> bool {
        self.models.is_empty()
            || model.is_some_and(|model| self.models.iter().any(|one| one == model))
    }
}

/// SHA-256 of a token. The text of a token is never kept.
type TokenHash = [u8; 32];

/// All clients, by token and by id.
#[derive(Clone)]
pub struct Clients {
    by_token: HashMap<TokenHash, Arc<Client>>,
    /// The same clients by id. All tokens of a client share one set of rights.
    by_id: HashMap<ClientId, Arc<Client>>,
    /// The client of every caller without a known token, at an open gateway.
    for_all: Option<Arc<Client>>,
}

impl Clients {
    /// Builds the clients. An error names the client and the option, never a token.
    pub fn new(settings: &[ClientSettings]) -> Result<Self, String> {
        let mut clients = Self { by_token: HashMap::new(), by_id: HashMap::new(), for_all: None };
        for one in settings {
            clients.add(one)?;
        }
        Ok(clients)
    }

    /// `open`: callers need no token.
    pub fn with_open(self, open: bool) -> Self {
        Self { for_all: open.then(|| Arc::new(Client::unrestricted("open"))), ..self }
    }

    /// Whether callers need no token.
    pub const fn is_open(&self) -> bool {
        self.for_all.is_some()
    }

    /// Whether there is only one client, whose refusals concern no other.
    pub fn is_single(&self) -> bool {
        self.by_id.len() + usize::from(self.for_all.is_some()) == 1
    }

    /// Whether `token` belongs to a client.
    pub fn knows(&self, token: &Secret) -> bool {
        self.by_token.contains_key(&hash(token.expose()))
    }

    pub fn len(&self) -> usize {
        self.by_token.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// The first client, by id, that may use none of `organizations`. All of its turns would be
    /// refused.
    pub fn stranded(&self, organizations: &[&str]) -> Option<&Client> {
        let is_stranded =
            |client: &&Client| !organizations.iter().any(|one| client.may_use_organization(one));
        self.by_id
            .values()
            .map(Arc::as_ref)
            .filter(is_stranded)
            .min_by_key(|client| client.id.as_str())
    }

    fn add(&mut self, settings: &ClientSettings) -> Result<(), String> {
        let ClientSettings { id, token, token_sha256, token_file, .. } = settings;
        let named = || id.as_deref().ok_or_else(|| "client: id is missing".to_owned());
        match (token, token_sha256, token_file) {
            (Some(token), None, None) => {
                let id = named()?;
                let token =
                    token.read_shown().map_err(|why| format!("client {id}: token: {why}"))?;
                self.insert(id, hash(token.expose()), settings)
            }
            (None, Some(hex), None) => {
                let id = named()?;
                let hash = parse_hash(hex)
                    .ok_or_else(|| format!("client {id}: token_sha256 is not 64 hex digits"))?;
                self.insert(id, hash, settings)
            }
            (None, None, Some(path)) if id.is_none() => {
                let text = SecretSource::File(path.clone())
                    .read()
                    .map_err(|why| format!("client: token_file: {why}"))?;
                self.add_lines(&text, settings)
                    .map_err(|why| format!("client: token_file {}: {why}", path.display()))
            }
            (None, None, Some(_)) => {
                Err("client: token_file names its own ids: leave id out".into())
            }
            // Its tokens are in the ledger.
            (None, None, None) => {
                let id = named()?;
                self.name(id, settings).map(|_| ())
            }
            _ => Err(format!(
                "client {}: give exactly one of token, token_sha256, token_file",
                id.as_deref().unwrap_or("?")
            )),
        }
    }

    /// Reads one `id token` a line; skips empty lines and `#` comments.
    fn add_lines(&mut self, text: &Secret, settings: &ClientSettings) -> Result<(), String> {
        for (number, line) in
            text.expose().lines().enumerate().map(|(n, line)| (n + 1, line.trim()))
        {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (Some(id), Some(token), None) = (words.next(), words.next(), words.next()) else {
                return Err(format!("line {number} is not `id token`"));
            };
            self.insert(id, hash(token), settings)?;
        }
        Ok(())
    }

    /// The client of this name, with the rights that `settings` give it.
    fn name(&mut self, id: &str, settings: &ClientSettings) -> Result<Arc<Client>, String> {
        if id.is_empty() {
            return Err("client: id is empty".into());
        }
        let client = Client {
            id: ClientId::new(id),
            organizations: settings.organizations.clone(),
            models: settings.models.clone(),
        };
        let client = match self.by_id.get(&client.id) {
            Some(known) if !known.has_rights_of(&client) => {
                return Err(format!(
                    "client {id}: is there twice, with different organizations or models"
                ));
            }
            Some(known) => Arc::clone(known),
            None => Arc::new(client),
        };
        self.by_id.insert(client.id.clone(), Arc::clone(&client));
        Ok(client)
    }

    fn insert(
        &mut self,
        id: &str,
        hash: TokenHash,
        settings: &ClientSettings,
    ) -> Result<(), String> {
        let client = self.name(id, settings)?;
        match self.by_token.insert(hash, client) {
            // A client may have several tokens, so that they can be rotated. A token has one
            // client.
            Some(other) if other.id.as_str() != id => {
                Err(format!("client {id}: has the same token as client {}", other.id))
            }
            _ => Ok(()),
        }
    }
}

fn hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

fn parse_hash(hex: &str) -> Option<TokenHash> {
    let mut hash = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests;
