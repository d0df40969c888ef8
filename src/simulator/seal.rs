//! Seals that only their owner can open: reasoning and compaction blobs belong to an organization,
//! a turn state to a key.
//!
//! This file decides whether a blob is the simulator's, and whose. A blob looks like a real one
//! (`gAAAA...`: version 0x80 and a time). It holds only filler, so it proves who owns it and hides
//! nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const VERSION: u8 = 0x80;
const TIME: usize = 8;
const NONCE: usize = 16;
const OWNER: usize = 16;
const SIGNATURE: usize = 32;
const HEAD: usize = 1 + TIME + NONCE + OWNER;

/// Why a blob does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The simulator sealed this blob for another owner.
    Foreign,
    /// The simulator did not seal this blob, or the blob is incomplete.
    Garbage,
}

/// Seals and opens blobs by one seed.
pub struct Sealer {
    mac: Hmac<Sha256>,
}

impl Sealer {
    pub fn new(seed: u64) -> Self {
        let mac = Hmac::new_from_slice(&seed.to_be_bytes()).expect("HMAC takes keys of any length");
        Self { mac }
    }

    fn sign(&self, parts: &[&[u8]]) -> [u8; SIGNATURE] {
        let mut mac = self.mac.clone();
        for part in parts {
            // The length comes before each part, so that two different lists of parts never give
            // the same bytes.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Bytes that follow from the seed and `parts` alone.
    pub fn derive(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.sign(parts)
    }

    /// A blob of `kind` that only `owner` can open, with `filler` bytes inside. `number` makes the
    /// blob unique.
    pub fn seal(&self, kind: &str, owner: &str, number: u64, filler: usize) -> String {
        let nonce =
            self.sign(&[b"nonce", kind.as_bytes(), owner.as_bytes(), &number.to_be_bytes()]);
        let mut blob = Vec::with_capacity(HEAD + filler + SIGNATURE);
        blob.push(VERSION);
        // A real blob carries its time. Here a growing number takes its place, which makes runs
        // repeatable.
        blob.extend_from_slice(&number.min(u64::from(u32::MAX)).to_be_bytes());
        blob.extend_from_slice(&nonce[..NONCE]);
        blob.extend_from_slice(&self.owner(kind, owner, &nonce[..NONCE]));
        while blob.len() < HEAD + filler {
            let more = self.sign(&[b"filler", &nonce, &blob.len().to_be_bytes()]);
            let wanted = (HEAD + filler - blob.len()).min(more.len());
            blob.extend_from_slice(&more[..wanted]);
        }
        let signature = self.sign(&[kind.as_bytes(), &blob]);
        blob.extend_from_slice(&signature);
        URL_SAFE_NO_PAD.encode(blob)
    }

    fn owner(&self, kind: &str, owner: &str, nonce: &[u8]) -> [u8; OWNER] {
        let mut short = [0; OWNER];
        short.copy_from_slice(
            &self.sign(&[b"owner", kind.as_bytes(), owner.as_bytes(), nonce])[..OWNER],
        );
        short
    }

    pub fn open(&self, kind: &str, owner: &str, text: &str) -> Result<(), Broken> {
        let blob = URL_SAFE_NO_PAD.decode(text).map_err(|_| Broken::Garbage)?;
        let signed = blob
            .len()
            .checked_sub(SIGNATURE)
            .filter(|length| *length >= HEAD)
            .ok_or(Broken::Garbage)?;
        let (body, signature) = blob.split_at(signed);
        if body[0] != VERSION || self.sign(&[kind.as_bytes(), body]) != signature {
            return Err(Broken::Garbage);
        }
        let (nonce, rest) = body[1 + TIME..].split_at(NONCE);
        if rest[..OWNER] == self.owner(kind, owner, nonce) { Ok(()) } else { Err(Broken::Foreign) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sealed_text_is_opened_by_its_owner_only() {
        let sealer = Sealer::new(7);
        let blob = sealer.seal("content", "org-a", 1, 256);
        assert!(blob.starts_with("gAAAA"), "{blob}");
        assert_eq!(sealer.open("content", "org-a", &blob), Ok(()));
        assert_eq!(sealer.open("content", "org-b", &blob), Err(Broken::Foreign));
        assert_eq!(sealer.open("turn", "org-a", &blob), Err(Broken::Garbage));
        assert_eq!(Sealer::new(8).open("content", "org-a", &blob), Err(Broken::Garbage));
        assert_ne!(blob, sealer.seal("content", "org-a", 2, 256));
    }

    #[test]
    fn text_that_only_looks_sealed_is_garbage() {
        let sealer = Sealer::new(7);
        for wrong in ["", "gAAAA", "gAAAA-opaque-resp_001", "gAAAA-compacted", "\u{fffd}"] {
            assert_eq!(sealer.open("content", "org-a", wrong), Err(Broken::Garbage), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn changed_character_is_noticed(place in 0usize..400, letter in "[A-Za-z0-9_-]") {
            let sealer = Sealer::new(7);
            let blob = sealer.seal("content", "org-a", 1, 256);
            let place = place % blob.len();
            let mut changed = blob.clone();
            changed.replace_range(place..=place, &letter);
            prop_assert_eq!(sealer.open("content", "org-a", &changed).is_ok(), changed == blob);
        }
    }
}
