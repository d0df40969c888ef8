//! The simulated keys, and which key a request shows in `authorization`.
//!
//! This file decides which key a secret belongs to, and whether the headers beside it agree. It
//! never shows a secret: the judge names a key by its id.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use super::leak::API_KEY;
use super::refusal::{Refusal, incorrect_key};
use super::settings::{Credential, KeyConfig};

/// One key, its organization and its project.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub id: String,
    pub organization: String,
    pub project: String,
    pub region: String,
    /// Models that the key's project may use. Empty: all.
    pub models: Vec<String>,
    /// Whether the key is sent as `api-key`, and not as a bearer token.
    pub by_api_key: bool,
    /// The one `api-version` of requests with the key.
    pub api_version: Option<String>,
    /// A few characters of the secret, as error texts of the real service show them.
    pub masked: String,
}

impl Key {
    /// The organization's and the project's name together: the place of stored responses.
    pub fn place(&self) -> String {
        place(&self.organization, &self.project)
    }

    pub fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|own| own == model)
    }

    /// Refuses a model that the project has no access to.
    pub fn check_model(&self, model: &str) -> Result<(), Refusal> {
        if self.may_use(model) {
            return Ok(());
        }
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        Err(Refusal::invalid(Some("model_not_found"), None, message)
            .with_status(StatusCode::NOT_FOUND))
    }

    /// Refuses a request without the version that this key's host wants.
    pub fn check_version(&self, query: Option<&str>) -> Result<(), Refusal> {
        let Some(version) = &self.api_version else { return Ok(()) };
        let pairs = query.unwrap_or_default().split('&');
        let versions: Vec<_> = pairs.filter_map(|pair| pair.strip_prefix("api-version=")).collect();
        if versions == [version.as_str()] {
            return Ok(());
        }
        let message = format!("The query must have api-version={version} once.");
        Err(Refusal::invalid(Some("simulator_api_version"), None, message))
    }
}

/// The name of a project, unique over all organizations.
pub fn place(organization: &str, project: &str) -> String {
    format!("{organization}/{project}")
}

/// All keys, by the hash of their secret.
#[derive(Debug)]
pub struct Keys(HashMap<[u8; 32], Arc<Key>>);

impl Keys {
    pub fn new(configured: &[KeyConfig]) -> Result<Self, String> {
        let mut keys = HashMap::new();
        let mut ids: Vec<String> = Vec::new();
        for (index, key) in configured.iter().enumerate() {
            let id = key
                .id
                .clone()
                .unwrap_or_else(|| format!("{}/{}#{}", key.organization, key.project, index + 1));
            let secret = key.secret.read().map_err(|error| format!("sim.key {id}: {error}"))?;
            if ids.contains(&id) {
                return Err(format!("sim.key {id}: two keys of this id"));
            }
            if key.organization.is_empty() || key.project.is_empty() || key.region.is_empty() {
                return Err(format!(
                    "sim.key {id}: organization, project and region must not be empty"
                ));
            }
            ids.push(id.clone());
            let masked = mask(secret.expose());
            let (organization, project, region) =
                (key.organization.clone(), key.project.clone(), key.region.clone());
            let entry = Arc::new(Key {
                id: id.clone(),
                organization,
                project,
                region,
                models: key.models.clone(),
                by_api_key: key.credential == Credential::ApiKey,
                api_version: key.api_version.clone(),
                masked,
            });
            if keys.insert(Sha256::digest(secret.expose()).into(), entry).is_some() {
                return Err(format!("sim.key {id}: another key has the same secret"));
            }
        }
        Ok(Self(keys))
    }

    /// Returns the key of a request. A refusal about other headers comes with the key.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
    ) -> Result<Arc<Key>, (Option<Arc<Key>>, Refusal)> {
        let by_api_key = headers.get(API_KEY);
        let Some(value) = by_api_key.or_else(|| headers.get(header::AUTHORIZATION)) else {
            let text = "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY). You can obtain an API key from https://platform.openai.com/account/api-keys.";
            return Err((None, unauthorized(None, text.into())));
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        let secret = match text.split_once(' ') {
            _ if by_api_key.is_some() => &text,
            Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => secret.trim(),
            _ => "",
        };
        let known = self.0.get(<[u8; 32]>::from(Sha256::digest(secret)).as_slice());
        let Some(key) = known.filter(|key| key.by_api_key == by_api_key.is_some()) else {
            return Err((
                None,
                unauthorized(Some("invalid_api_key"), incorrect_key(&mask(secret))),
            ));
        };
        let differs = |name: &str, own: &str| {
            headers.get_all(name).iter().any(|value| value.as_bytes() != own.as_bytes())
        };
        let mismatch = if differs("openai-organization", &key.organization) {
            Some((
                "mismatched_organization",
                "OpenAI-Organization header should match organization for API key",
            ))
        } else if differs("openai-project", &key.project) {
            Some(("mismatched_project", "OpenAI-Project header should match project for API key"))
        } else {
            None
        };
        match mismatch {
            Some((code, text)) => {
                Err((Some(Arc::clone(key)), unauthorized(Some(code), text.into())))
            }
            None => Ok(Arc::clone(key)),
        }
    }
}

fn unauthorized(code: Option<&str>, message: String) -> Refusal {
    Refusal::invalid(code, None, message).with_status(StatusCode::UNAUTHORIZED)
}

/// `sk-abcde***wxyz`: what the real service shows of a key. A short key shows nothing.
fn mask(secret: &str) -> String {
    let characters: Vec<char> = secret.chars().collect();
    if characters.len() < 16 {
        return "*".repeat(characters.len());
    }
    let (head, tail) = (&characters[..8], &characters[characters.len() - 4..]);
    let stars = "*".repeat((characters.len() - 12).min(32));
    format!("{}{stars}{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::setting::{Secret, SecretSource};

    fn configured(secret: &str, organization: &str) -> KeyConfig {
        KeyConfig {
            id: None,
            secret: SecretSource::Text(Secret::new(secret)),
            organization: organization.into(),
            project: "default".into(),
            region: "us".into(),
            requests_per_minute: None,
            tokens_per_minute: None,
            models: Vec::new(),
            credential: Credential::Bearer,
            api_version: None,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn key_is_known_by_its_secret_and_named_by_its_place() {
        let keys = Keys::new(&[configured("sk-one", "org-a"), configured("sk-two", "org-b")])
            .expect("two keys");
        let key =
            keys.authenticate(&headers(&[("authorization", "Bearer sk-two")])).expect("known");
        assert_eq!((key.id.as_str(), key.organization.as_str()), ("org-b/default#2", "org-b"));
    }

    #[test]
    fn unknown_secret_is_refused_without_being_shown() {
        let keys = Keys::new(&[configured("sk-one", "org-a")]).expect("a key");
        let (_, refusal) = keys
            .authenticate(&headers(&[("authorization", "Bearer sk-abcdefghij-lmnopqrst")]))
            .expect_err("unknown");
        assert_eq!(
            (refusal.status.as_u16(), refusal.code.as_deref()),
            (401, Some("invalid_api_key"))
        );
        assert!(
            refusal.message.contains("sk-abcde***********qrst")
                && !refusal.message.contains("ghij"),
            "{}",
            refusal.message
        );
        for wrong in [
            headers(&[]),
            headers(&[("authorization", "Basic sk-one")]),
            headers(&[("authorization", "sk-one")]),
        ] {
            assert_eq!(keys.authenticate(&wrong).expect_err("refused").1.status.as_u16(), 401);
        }
    }

    #[test]
    fn foreign_organization_is_refused() {
        let keys = Keys::new(&[configured("sk-one", "org-a")]).expect("a key");
        let sent = headers(&[("authorization", "Bearer sk-one"), ("openai-organization", "org-b")]);
        let (key, refusal) = keys.authenticate(&sent).expect_err("mismatch");
        assert_eq!(
            (key.expect("known").id.as_str(), refusal.code.as_deref()),
            ("org-a/default#1", Some("mismatched_organization"))
        );
    }

    #[test]
    fn keys_may_not_share_a_secret() {
        assert!(
            Keys::new(&[configured("sk-one", "org-a"), configured("sk-one", "org-b")]).is_err()
        );
    }
}
