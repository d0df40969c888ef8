//! Where a configuration is written: one file and those that its secrets are in, and whether any of them has changed since.
//!
//! Files are compared by content, whatever their dates say and however many links lead to them: what is mounted from
//! Kubernetes changes by a link that is swapped, which watching a file would not notice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Config, Plan, USUAL_FILE};

/// What files held when they were looked at, by hash. `None`: it could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen(BTreeMap<PathBuf, Option<[u8; 32]>>);

impl Seen {
    fn at(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let hash = |path: &Path| Some(Sha256::digest(std::fs::read(path).ok()?).into());
        Self(paths.into_iter().map(|path| (path.clone(), hash(&path))).collect())
    }

    /// Looks at the same files again.
    pub fn again(&self) -> Self {
        Self::at(self.0.keys().cloned())
    }
}

/// Reads the configuration and everything that it names, and tells what was seen on the way. Each file is looked at before it
/// is read: what changes in between is seen as changed later.
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
