//! Reads a configuration from its file and from the files that the configuration names. Detects
//! when the content of one of these files changes.
//!
//! Files are compared by content, never by date or link.
//! Kubernetes changes a mounted file by swapping a link, which watching the file would not notice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Config, Plan, USUAL_FILE};

/// The hash of each file's content at the last look. `None`: the file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl Seen {
    fn at(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let hash = |path: &Path| Some(Sha256::digest(std::fs::read(path).ok()?).into());
        Self(paths.into_iter().map(|path| (path.clone(), hash(&path))).collect())
    }

    /// Looks at the same files again.
    pub fn look_again(&self) -> Self {
        Self::at(self.0.keys().cloned())
    }
}

/// Reads the configuration and every file that it names, and returns what was seen. Each file is
/// looked at before it is read, so that a change in between shows as a change later.
pub fn read(file: Option<&Path>) -> (Seen, Result<Plan, Vec<String>>) {
    let mut seen = Seen::at([file.unwrap_or(Path::new(USUAL_FILE)).to_owned()]);
    match Config::load(file) {
        Ok(config) => {
            seen.0.extend(Seen::at(config.files().map(Path::to_owned)).0);
            (seen, config.plan())
        }
        Err(fault) => (seen, Err(vec![fault])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary folder for the files of one configuration, removed at the end of a test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("warmkey-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("the temporary folder can be written");
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).expect("the temporary folder can be written");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A file that is not watched would change without coming into use.
    #[test]
    fn file_that_is_named_is_watched() {
        let folder = Folder::new("watched");
        let names = ["server", "admin", "hop", "proxy", "authorities", "key", "token", "tokens"];
        let [server, admin, hop, proxy, authorities, key, token, tokens] =
            names.map(|name| folder.write(name, &format!("what is in {name}")));
        let text = format!(
            "[server]\nsecret = {{ file = {server:?} }}\nadmin_token = {{ file = {admin:?} }}\n\
             [hop]\nsecret = {{ file = {hop:?} }}\n\
             [[upstream]]\nname = \"u\"\nbase_url = \"http://h\"\nproxy = {{ file = {proxy:?} }}\n\
             ca_file = {authorities:?}\n\
             [[key]]\nid = \"a-1\"\nupstream = \"u\"\norganization = \"o\"\n\
             secret = {{ file = {key:?} }}\n\
             [[client]]\nid = \"alice\"\ntoken = {{ file = {token:?} }}\n\
             [[client]]\ntoken_file = {tokens:?}\n"
        );
        let file = folder.write("warmkey.toml", &text);
        let (seen, _) = read(Some(&file));
        assert_eq!(seen.0.len(), names.len() + 1, "{seen:?}");
        for name in names {
            let path = folder.write(name, "something else");
            assert_ne!(seen.look_again(), seen, "{name} has changed");
            std::fs::remove_file(&path).expect("it is there");
            assert_ne!(seen.look_again(), seen, "{name} is gone");
            folder.write(name, &format!("what is in {name}"));
            assert_eq!(seen.look_again(), seen, "{name} is as it was, whatever its date says");
        }
        folder.write("warmkey.toml", &text.replace("a-1", "a-2"));
        assert_ne!(seen.look_again(), seen);
    }

    /// A file that cannot be read today may be repaired tomorrow.
    #[test]
    fn file_that_cannot_be_used_is_watched() {
        let folder = Folder::new("unusable");
        let file = folder.0.join("warmkey.toml");
        let (missing, plan) = read(Some(&file));
        assert!(plan.is_err() && missing.look_again() == missing);
        folder.write("warmkey.toml", "no TOML");
        assert_ne!(missing.look_again(), missing);
        let (broken, plan) = read(Some(&file));
        let faults = plan.err().expect("it is no TOML");
        assert!(
            matches!(&faults[..], [one] if one.starts_with(&format!("{}, line 1", file.display()))),
            "{faults:?}"
        );
        folder.write("warmkey.toml", "[server]");
        assert_ne!(broken.look_again(), broken);
    }
}
