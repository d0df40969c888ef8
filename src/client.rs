//! Who is calling: clients, their tokens, and what each may ask for.

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
pub struct Settings {
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

/// Somebody who may call.
#[derive(Debug)]
pub struct Client {
    pub id: ClientId,
    /// Where its sessions may go; empty: anywhere.
    organizations: Vec<String>,
    /// What it may ask for; empty: anything.
    models: Vec<String>,
}

impl Client {
    /// A client that may ask for anything, anywhere.
    pub fn unrestricted(id: &str) -> Self {
        Self { id: ClientId::new(id), organizations: Vec::new(), models: Vec::new() }
    }

    #[cfg(test)]
    pub fn of_organizations(id: &str, organizations: &[&str]) -> Self {
        Self { organizations: organizations.iter().map(|name| (*name).to_owned()).collect(), ..Self::unrestricted(id) }
    }

    /// Whether both may do the same, in whatever order it is written.
    fn has_rights_of(&self, other: &Self) -> bool {
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        sorted(&self.organizations) == sorted(&other.organizations) && sorted(&self.models) == sorted(&other.models)
    }

    pub fn may_use_organization(&self, organization: &str) -> bool {
        self.organizations.is_empty() || self.organizations.iter().any(|one| one == organization)
    }

    /// A turn that names no model asks for nothing that could be checked: only a client without a list may send it.
    pub fn may_ask_for(&self, model: Option<&str>) -> bool {
        self.models.is_empty() || model.is_some_and(|model| self.models.iter().any(|one| one == model))
    }
}

/// A token as it is kept: its SHA-256, never its text.
type TokenHash = [u8; 32];

/// All who may call.
#[derive(Clone)]
pub struct Clients {
    by_token: HashMap<TokenHash, Arc<Client>>,
    /// The same clients: one has one set of rights, however many tokens.
    by_id: HashMap<ClientId, Arc<Client>>,
    /// Who everybody else is, at an open gateway.
    anybody: Option<Arc<Client>>,
}

impl Clients {
    /// The error names the client and the option, never a token.
    pub fn new(settings: &[Settings]) -> Result<Self, String> {
        let mut clients = Self { by_token: HashMap::new(), by_id: HashMap::new(), anybody: None };
        for one in settings {
            clients.add(one)?;
        }
        Ok(clients)
    }

    /// `open`: no token is asked for.
    pub fn opened(self, open: bool) -> Self {
        Self { anybody: open.then(|| Arc::new(Client::unrestricted("open"))), ..self }
    }

    /// Whether a client may show `token`.
    pub fn knows(&self, token: &Secret) -> bool {
        self.by_token.contains_key(&hash(token.expose()))
    }

    pub fn len(&self) -> usize {
        self.by_token.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// A client that none of `organizations` may serve: every turn of it would be refused.
    pub fn stranded(&self, organizations: &[&str]) -> Option<&Client> {
        let is_stranded = |client: &&Client| !organizations.iter().any(|one| client.may_use_organization(one));
        self.by_id.values().map(Arc::as_ref).filter(is_stranded).min_by_key(|client| client.id.as_str())
    }

    fn add(&mut self, settings: &Settings) -> Result<(), String> {
        let Settings { id, token, token_sha256, token_file, .. } = settings;
        let named = || id.as_deref().ok_or_else(|| "client: id is missing".to_owned());
        match (token, token_sha256, token_file) {
            (Some(token), None, None) => {
                let id = named()?;
                let token = token.read_shown().map_err(|why| format!("client {id}: token: {why}"))?;
                self.insert(id, hash(token.expose()), settings)
            }
            (None, Some(hex), None) => {
                let id = named()?;
                let hash = parse_hash(hex).ok_or_else(|| format!("client {id}: token_sha256 is not 64 hex digits"))?;
                self.insert(id, hash, settings)
            }
            (None, None, Some(path)) if id.is_none() => {
                let text = SecretSource::File(path.clone()).read().map_err(|why| format!("client: token_file: {why}"))?;
                self.add_lines(&text, settings).map_err(|why| format!("client: token_file {}: {why}", path.display()))
            }
            (None, None, Some(_)) => Err("client: token_file names its own ids: leave id out".into()),
            // Its tokens are in the ledger.
            (None, None, None) => {
                let id = named()?;
                self.name(id, settings).map(|_| ())
            }
            _ => Err(format!("client {}: give exactly one of token, token_sha256, token_file", id.as_deref().unwrap_or("?"))),
        }
    }

    /// One `id token` a line; empty lines and `#` comments are passed over.
    fn add_lines(&mut self, text: &Secret, settings: &Settings) -> Result<(), String> {
        for (number, line) in text.expose().lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
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
    fn name(&mut self, id: &str, settings: &Settings) -> Result<Arc<Client>, String> {
        if id.is_empty() {
            return Err("client: id is empty".into());
        }
        let client =
            Client { id: ClientId::new(id), organizations: settings.organizations.clone(), models: settings.models.clone() };
        let client = match self.by_id.get(&client.id) {
            Some(known) if !known.has_rights_of(&client) => {
                return Err(format!("client {id}: is there twice, with different organizations or models"));
            }
            Some(known) => Arc::clone(known),
            None => Arc::new(client),
        };
        self.by_id.insert(client.id.clone(), Arc::clone(&client));
        Ok(client)
    }

    fn insert(&mut self, id: &str, hash: TokenHash, settings: &Settings) -> Result<(), String> {
        let client = self.name(id, settings)?;
        match self.by_token.insert(hash, client) {
            // One client may have several tokens, so that they can be rotated; one token has one client.
            Some(other) if other.id.as_str() != id => Err(format!("client {id}: has the same token as client {}", other.id)),
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
mod tests {
    use super::*;

    fn clients(sections: &[(&str, &[&str], &[&str])]) -> Result<usize, String> {
        let settings: Vec<_> = sections
            .iter()
            .map(|(token, organizations, models)| Settings {
                id: Some("alice".into()),
                token: Some(SecretSource::Text(Secret::new(*token))),
                token_sha256: None,
                token_file: None,
                organizations: organizations.iter().map(|&name| name.into()).collect(),
                models: models.iter().map(|&name| name.into()).collect(),
            })
            .collect();
        Clients::new(&settings).map(|clients| clients.len())
    }

    #[test]
    fn a_client_has_one_set_of_rights_however_many_tokens() {
        let (one, both) = (&["org-a"][..], &["org-a", "org-b"][..]);
        assert_eq!(clients(&[("old", both, &[]), ("new", &["org-b", "org-a"], &[])]), Ok(2), "a token is being rotated");
        assert_eq!(clients(&[("same", one, &[]), ("same", one, &[])]), Ok(1));
        for (token, organizations, models) in [("new", both, &[][..]), ("new", one, &["gpt"]), ("old", &[], &[])] {
            let fault = clients(&[("old", one, &[]), (token, organizations, models)]).expect_err("two sets of rights");
            assert_eq!(fault, "client alice: is there twice, with different organizations or models");
        }
    }

    /// The clients of these `[[client]]` sections.
    fn of_sections(text: &str) -> Result<Clients, String> {
        #[derive(Deserialize)]
        struct File {
            client: Vec<Settings>,
        }
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        Clients::new(&file.client)
    }

    /// The client that a token stands for.
    fn whose<'c>(clients: &'c Clients, token: &str) -> Option<&'c str> {
        clients.by_token.get(&hash(token)).map(|client| client.id.as_str())
    }

    #[test]
    fn client_says_one_way_in_which_it_is_known() {
        let hex = "ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
        let one_of = "give exactly one of token, token_sha256, token_file";
        for (options, expected) in [
            ("", "client: id is missing".into()),
            ("id = \"alice\"\ntoken = \"canary\"\ntoken_file = \"/x\"", format!("client alice: {one_of}")),
            (&format!("id = \"alice\"\ntoken = \"canary\"\ntoken_sha256 = \"{hex}\""), format!("client alice: {one_of}")),
            (&format!("id = \"alice\"\ntoken_file = \"/x\"\ntoken_sha256 = \"{hex}\""), format!("client alice: {one_of}")),
            ("token = \"canary\"", "client: id is missing".into()),
            (&format!("token_sha256 = \"{hex}\""), "client: id is missing".into()),
            ("id = \"\"\ntoken = \"canary\"", "client: id is empty".into()),
            ("id = \"alice\"\ntoken = \"\"", "client alice: token: the secret in the file is empty".into()),
            ("id = \"alice\"\ntoken_file = \"/x\"", "client: token_file names its own ids: leave id out".into()),
        ] {
            assert_eq!(of_sections(&format!("[[client]]\n{options}")).err(), Some(expected), "{options}");
        }
        for wrong in [&hex[1..], &format!("{hex}0"), &hex.replace('A', "g"), &hex.replace('A', "+"), ""] {
            let fault = of_sections(&format!("[[client]]\nid = \"alice\"\ntoken_sha256 = \"{wrong}\"")).err();
            assert_eq!(fault.as_deref(), Some("client alice: token_sha256 is not 64 hex digits"), "{wrong}");
        }
        let unshown = of_sections("[[client]]\nid = \"alice\"").expect("its tokens are in the ledger");
        assert!(unshown.is_empty());
        let known = of_sections(&format!("[[client]]\nid = \"alice\"\ntoken_sha256 = \"{hex}\"")).unwrap();
        let kept = *known.by_token.keys().next().expect("one token");
        assert_eq!((kept[0], kept[1], kept[3], kept[31]), (0xab, 0xcd, 0x01, 0x89));
    }

    #[test]
    fn token_file_has_a_client_a_line() {
        let path = std::env::temp_dir().join(format!("warmkey-tokens-{}", std::process::id()));
        let section = format!("[[client]]\ntoken_file = {path:?}\norganizations = [\"org-a\"]\nmodels = [\"gpt\"]\n");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("the temporary folder can be written");
            of_sections(&section)
        };
        let text = "# who\n\nalice wk-1\r\n  \t\n  bob\twk-2  \n#carol wk-3\nalice wk-4\nalice wk-1";
        let clients = read(text).unwrap_or_else(|fault| panic!("{fault}"));
        let known = ["wk-1", "wk-2", "wk-4"].map(|token| whose(&clients, token));
        assert_eq!((known, clients.len()), ([Some("alice"), Some("bob"), Some("alice")], 3));
        assert_eq!((whose(&clients, "wk-3"), whose(&clients, "alice")), (None, None));
        let alice = &clients.by_token[&hash("wk-4")];
        assert!(alice.may_use_organization("org-a") && !alice.may_use_organization("org-b"));
        assert!(alice.may_ask_for(Some("gpt")) && !alice.may_ask_for(Some("gpt-mini")));
        let file = path.display();
        for (text, expected) in [
            ("alice wk-1\n\nbob", format!("client: token_file {file}: line 3 is not `id token`")),
            ("alice canary more", format!("client: token_file {file}: line 1 is not `id token`")),
            ("alice canary\nbob canary", format!("client: token_file {file}: client bob: has the same token as client alice")),
            ("", format!("client: token_file: the secret in {file} is empty")),
        ] {
            assert_eq!(read(text).err(), Some(expected), "{text}");
        }
        std::fs::remove_file(&path).expect("it is there");
    }

    #[test]
    fn list_of_models_must_be_met_to_the_letter() {
        let of_models = |models: &[&str]| Client {
            models: models.iter().map(|&model| model.into()).collect(),
            ..Client::unrestricted("alice")
        };
        for (models, asked, may) in [
            (&[][..], Some("gpt-5.4"), true),
            (&[], None, true),
            (&["gpt-5.4", "gpt-6"], Some("gpt-6"), true),
            (&["gpt-5.4"], Some("gpt-5.4-mini"), false),
            (&["gpt-5.4"], Some("gpt-5"), false),
            (&["gpt-5.4"], Some("GPT-5.4"), false),
            (&["gpt-5.4"], Some(""), false),
            (&["gpt-5.4"], None, false),
        ] {
            assert_eq!(of_models(models).may_ask_for(asked), may, "{asked:?} of {models:?}");
        }
    }

    #[test]
    fn client_without_a_key_is_found() {
        let sections = "[[client]]\nid = \"zoe\"\ntoken = \"z\"\norganizations = [\"org-c\"]\n\
                        [[client]]\nid = \"mia\"\ntoken = \"m\"\norganizations = [\"org-c\", \"org-d\"]\n\
                        [[client]]\nid = \"bob\"\ntoken = \"b\"\norganizations = [\"org-c\", \"org-a\"]\n\
                        [[client]]\nid = \"abe\"\ntoken = \"a\"\n";
        let clients = of_sections(sections).unwrap();
        let stranded = |organizations: &[&str]| clients.stranded(organizations).map(|client| client.id.as_str());
        assert_eq!(stranded(&["org-a", "org-b"]), Some("mia"), "the first by name");
        assert_eq!(stranded(&["org-c"]), None);
        assert!(clients.knows(&Secret::new("z")) && !clients.knows(&Secret::new("zoe")));
    }
}
