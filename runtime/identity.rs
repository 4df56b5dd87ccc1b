//! Names that last: what a thing is, as pairs of texts, hashed in a form that any language can
//! write. `docs/formats.md` describes it with an example.
//!
//! A name is a tag, which says kind and version, a colon, and the SHA-256 in hexadecimal of tag,
//! keys and values in the order of the keys, each after its length (u64, little-endian). A value
//! that changes nothing is left out, so that a key which comes later leaves old names alone.
//! Another meaning of a key needs another version in the tag.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// What a thing is, by key.
pub(crate) struct Identity {
    tag: &'static str,
    pairs: BTreeMap<String, String>,
}

impl Identity {
    /// Nothing yet, of the kind and version that `tag` says.
    pub(crate) fn new(tag: &'static str) -> Self {
        Self { tag, pairs: BTreeMap::new() }
    }

    /// Adds a pair; numbers are written in decimal, an f32 as [`bits`].
    pub(crate) fn add(&mut self, key: impl Into<String>, value: impl Display) {
        self.pairs.insert(key.into(), value.to_string());
    }

    /// Adds a pair unless its value is the one that changes nothing.
    pub(crate) fn add_unless<T: Display + PartialEq>(&mut self, neutral: T, key: &str, value: T) {
        if value != neutral {
            self.add(key, value);
        }
    }

    /// Adds a pair if there is a value.
    pub(crate) fn add_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    /// The hash alone, in hexadecimal.
    pub(crate) fn hash(&self) -> String {
        let pairs = self.pairs.iter().flat_map(|(key, value)| [key, value]);
        list(std::iter::once(self.tag).chain(pairs.map(String::as_str)))
    }

    /// The name: `epiphyte.kind.version:hash`.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.tag, self.hash())
    }
}

/// A hash in hexadecimal.
pub(crate) fn hex(hash: Hash) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The hash of bytes that come in pieces.
pub(crate) fn sha256<T: AsRef<[u8]>>(pieces: impl IntoIterator<Item = T>) -> Hash {
    let hasher = pieces.into_iter().fold(Sha256::new(), |hasher, piece| hasher.chain_update(piece));
    hasher.finalize().into()
}

/// The hash, in hexadecimal, of items each after its length, so that no two lists hash alike.
pub(crate) fn list<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> String {
    let hasher = items.into_iter().fold(Sha256::new(), |hasher, item| {
        let item = item.as_ref();
        hasher.chain_update((item.len() as u64).to_le_bytes()).chain_update(item)
    });
    hex(hasher.finalize().into())
}

/// A number as its 32 bits in hexadecimal: decimals are spelled in many ways.
pub(crate) fn bits(value: f32) -> String {
    format!("{:08x}", value.to_bits())
}

/// A tensor by type, shape and the hash of its bytes: `F32 2x64 <hash>`.
pub(crate) fn tensor(dtype: &str, shape: &[usize], hash: Hash) -> String {
    let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    format!("{dtype} {shape} {}", hex(hash))
}

/// The hash of numbers as little-endian f32.
pub(crate) fn hash_floats(values: &[f32]) -> Hash {
    if cfg!(target_endian = "little") {
        return sha256([bytemuck::cast_slice::<f32, u8>(values)]);
    }
    sha256(values.iter().map(|value| value.to_le_bytes()))
}

/// A tag's version, if `tag` is of the kind of `ours`; both end in `.version`.
pub(crate) fn version_of(tag: &str, ours: &str) -> Option<u32> {
    let kind = ours.trim_end_matches(|c: char| c.is_ascii_digit());
    tag.strip_prefix(kind)?.parse().ok()
}

/// That a file which says that it is of format `found` can be read as `reads`.
///
/// Errors: [`Error::FormatVersion`] for another version of it; [`Error::InvalidFile`] for anything
/// else.
pub(crate) fn check_format(path: &Path, found: &str, reads: &'static str) -> Result<()> {
    match version_of(found, reads) {
        _ if found == reads => Ok(()),
        Some(version) => {
            let kind = reads.trim_end_matches(|c: char| c.is_ascii_digit());
            Err(Error::FormatVersion {
                path: path.into(),
                found: format!("{kind}{version}"),
                reads,
            })
        }
        None => {
            let reason = format!("it does not say that it is of format `{reads}`");
            Err(Error::InvalidFile { path: path.into(), reason })
        }
    }
}
