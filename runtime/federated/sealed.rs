//! A safetensors file that is signed whole: its name is a hash of every tensor and of all metadata
//! but the signature, and the signature is over the name. How the file orders its tensors, or
//! spells its header, changes neither.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::invalid;
use super::quantise::Encoded;
use super::sign::{PublicKey, Signer, from_hex, to_hex};
use super::{published, wire};
use crate::adapter::{self, FORMAT_KEY};
use crate::error::{Error, Result};
use crate::format::safetensors::{SafetensorsFile, to_bytes};
use crate::identity::{self, Identity, check_format};

pub(super) const MANIFEST: &str = "epiphyte.manifest";
const SIGNATURE: &str = "epiphyte.signature";
/// In place of a path in errors.
const MEMORY: &str = "<memory>";
/// No signature is as long.
const MAX_SIGNATURE: usize = 1024;

/// A tensor's place in a file.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    range: Range<usize>,
}

/// A file in memory.
#[derive(Clone)]
pub(super) struct Sealed {
    bytes: Vec<u8>,
    /// `tag:hash`.
    pub(super) name: String,
    metadata: BTreeMap<String, String>,
    /// By name.
    pub(super) tensors: BTreeMap<String, Place>,
}

impl Sealed {
    /// Reads a file whose format and name begin with `tag`; [`Self::verify`] it before use.
    ///
    /// Errors: those of [`Self::unhashed`] and [`Self::hashed`].
    pub(super) fn open(bytes: Vec<u8>, tag: &'static str, format: &'static str) -> Result<Self> {
        Self::unhashed(bytes)?.hashed(tag, format)
    }

    /// The layout of a file of any format; its name is left empty.
    ///
    /// Errors: those of [`SafetensorsFile::new`].
    pub(super) fn unhashed(bytes: Vec<u8>) -> Result<Self> {
        let file = SafetensorsFile::new(Path::new(MEMORY), Cursor::new(bytes))?;
        let metadata = file.all_metadata().into_iter().collect();
        let tensors =
            file.places().map(|(name, dtype, shape, range)| (name, Place { dtype, shape, range }));
        let tensors = tensors.collect();
        let bytes = file.into_reader().into_inner();
        Ok(Self { bytes, name: String::new(), metadata, tensors })
    }

    /// With its name, which begins with `tag`.
    ///
    /// Errors: `InvalidDelta` without a manifest; as [`Self::of_format`].
    pub(super) fn hashed(self, tag: &'static str, format: &'static str) -> Result<Self> {
        let sealed = self.of_format(format)?;
        let name = sealed.hash(tag);
        let sealed = sealed.named(&name);
        sealed.manifest()?;
        Ok(sealed)
    }

    /// What format it says it is of.
    pub(super) fn format(&self) -> &str {
        self.metadata(FORMAT_KEY).unwrap_or_default()
    }

    /// That it is of a format.
    ///
    /// Errors: [`Error::FormatVersion`] for a version that is not read here.
    pub(super) fn of_format(self, format: &'static str) -> Result<Self> {
        check_format(Path::new(MEMORY), self.format(), format)?;
        Ok(self)
    }

    /// The same under a name that is known.
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    fn hash(&self, tag: &'static str) -> String {
        let tensors = self.tensors.iter().map(|(name, place)| {
            (name.as_str(), place.dtype, place.shape.as_slice(), &self.bytes[place.range.clone()])
        });
        name_of(tag, &self.metadata, tensors)
    }

    /// The manifest's text.
    pub(super) fn manifest(&self) -> Result<&str> {
        self.metadata(MANIFEST).ok_or_else(|| invalid(MANIFEST, "missing; it is no signed file"))
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// That the key signed it.
    ///
    /// Errors: `InvalidDelta`.
    pub(super) fn verify(&self, key: &PublicKey) -> Result<()> {
        let hex = self.metadata(SIGNATURE).filter(|hex| hex.len() <= 2 * MAX_SIGNATURE);
        let signature = hex.and_then(from_hex);
        let signature = signature.ok_or_else(|| invalid("signature", "missing or damaged"))?;
        key.verify(self.name.as_bytes(), &signature)
    }

    /// A tensor's bytes.
    pub(super) fn tensor(&self, name: &str) -> Option<(&Place, &[u8])> {
        let place = self.tensors.get(name)?;
        Some((place, self.bytes.get(place.range.clone())?))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

fn name_of<'a>(
    tag: &'static str,
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
) -> String {
    let mut identity = Identity::new(tag);
    for (key, value) in metadata.iter().filter(|(key, _)| *key != SIGNATURE) {
        identity.add(format!("metadata.{key}"), value);
    }
    for (name, dtype, shape, bytes) in tensors {
        let hash = identity::sha256([bytes]);
        let tensor = identity::tensor(&dtype.to_string(), shape, hash);
        identity.add(format!("tensor.{name}"), tensor);
    }
    identity.name()
}

/// Writes a file that says it is of `format` and is signed under a name that begins with `tag`.
///
/// Errors: those of the signer; [`Error::InvalidFile`] for tensors that safetensors can't hold.
pub(super) fn seal(
    tag: &'static str,
    mut metadata: BTreeMap<String, String>,
    tensors: &[(String, Encoded)],
    signer: &dyn Signer,
) -> Result<Vec<u8>> {
    metadata.entry(FORMAT_KEY.into()).or_insert_with(|| tag.into());
    let views = tensors
        .iter()
        .map(|(name, t)| (name.as_str(), t.dtype, t.shape.as_slice(), t.bytes.as_slice()));
    let name = name_of(tag, &metadata, views);
    metadata.insert(SIGNATURE.into(), to_hex(&signer.sign(name.as_bytes())?));
    let refused =
        |e| Error::InvalidFile { path: MEMORY.into(), reason: format!("safetensors: {e}") };
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?;
        Ok((name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    to_bytes(views, metadata.into_iter().collect::<HashMap<_, _>>()).map_err(refused)
}

/// The same file as another signer would have it, its manifest naming that signer. For tests and
/// fuzzing: what a signature covers is still not trusted.
#[doc(hidden)]
pub fn sign_again(bytes: &[u8], signer: &dyn Signer) -> Result<Vec<u8>> {
    let kinds = [(wire::FORMAT, wire::FORMAT), (published::FORMAT, adapter::FORMAT)];
    let opened = kinds
        .into_iter()
        .find_map(|(tag, format)| Some((tag, Sealed::open(bytes.to_vec(), tag, format).ok()?)));
    let (tag, sealed) = opened.ok_or_else(|| invalid("file", "neither a delta nor a version"))?;
    let mut metadata = sealed.metadata.clone();
    let manifest: serde_json::Result<serde_json::Map<_, _>> =
        serde_json::from_str(sealed.manifest()?);
    let mut manifest = manifest.map_err(|e| invalid(MANIFEST, e.to_string()))?;
    manifest.insert("signer".into(), signer.public_key().to_string().into());
    metadata.insert(MANIFEST.into(), serde_json::Value::from(manifest).to_string());
    let tensors = sealed.tensors.iter().map(|(name, place)| {
        let bytes = sealed.bytes[place.range.clone()].to_vec();
        (name.clone(), Encoded { dtype: place.dtype, shape: place.shape.clone(), bytes })
    });
    seal(tag, metadata, &tensors.collect::<Vec<_>>(), signer)
}
