//! What comes back: a version of an adapter, signed, with the plan of the round that follows. The
//! file is a PEFT adapter too.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::layout::Layout;
use super::manifest::{Factors, Parent, check_critical, check_text, parse};
use super::quantise::{Encoded, Quantisation};
use super::sealed::{MANIFEST, Sealed, seal};
use super::sign::{PublicKey, Signer};
use super::{invalid, linalg, wire};
use crate::adapter::{
    self, Adapter, BaseShape, CONFIG_KEY, FINGERPRINT_KEY, FORMAT_KEY, Factor, LoraModule,
    factor_of, tensor_name,
};
use crate::error::{Error, Result};

pub(super) const FORMAT: &str = "epiphyte.version.1";

/// What devices are asked for next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// Its number.
    pub round: u64,
    /// The factors to train; the other is frozen.
    pub factors: Factors,
    /// The largest norm of a delta.
    pub clip_norm: Option<f64>,
    /// Standard deviation of the noise that each device adds, in clip norms.
    #[serde(default)]
    pub sigma: f64,
    /// How numbers are written.
    pub quantisation: Quantisation,
    /// Seconds since 1970 until which deltas are taken.
    pub expires: u64,
}

/// What a version says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionManifest {
    /// Names among [`Self::others`] that a reader must know. This reader knows none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
    /// The adapter's id, the same over all versions.
    pub adapter: String,
    /// Its number; higher with every version.
    pub version: u64,
    /// What it was made from; nothing for the first.
    pub parent: Option<Parent>,
    /// The digest of its factors.
    pub digest: String,
    /// The base's fingerprint.
    pub base_fingerprint: String,
    /// Ranks, scalings and sizes.
    #[serde(flatten)]
    pub layout: Layout,
    /// Deltas in it.
    pub clients: u64,
    /// How they became one.
    pub mode: String,
    /// What comes next.
    pub next: RoundPlan,
    /// What wrote it.
    pub runtime: String,
    /// Who signed it.
    pub signer: PublicKey,
    /// Fields that are not known here.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// What a device asks of a version before it uses it.
#[derive(Clone, Copy, Debug)]
pub struct Accept<'a> {
    /// Keys that may publish.
    pub trusted: &'a [PublicKey],
    /// The fingerprint of the base that is there.
    pub base_fingerprint: &'a str,
    /// The adapter it is a version of.
    pub adapter: &'a str,
    /// The version that is in use; only a higher one is taken.
    pub current: Option<u64>,
    /// The largest norm of what it adds to the base, `scaling B A` over all modules.
    pub max_norm: Option<f64>,
}

/// A version of an adapter whose signature is that of the key it names.
#[derive(Clone, Debug)]
pub struct Published {
    /// What it says of itself.
    pub manifest: VersionManifest,
    /// PEFT's config.
    pub(super) config: String,
    /// Sorted by path.
    pub(super) modules: Vec<LoraModule>,
    bytes: Vec<u8>,
}

impl Published {
    /// Reads a file.
    ///
    /// Errors: [`Error::Io`], and as [`Self::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_bytes(wire::read(path.as_ref())?)
    }

    /// Reads a version from memory and checks that it is whole, and signed by the key it names.
    ///
    /// Errors: [`Error::InvalidFile`], [`Error::FormatVersion`], [`Error::InvalidDelta`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let sealed = Sealed::open(bytes, FORMAT, adapter::FORMAT)?;
        let manifest: VersionManifest = parse(sealed.manifest()?)?;
        check_critical(&manifest.critical)?;
        manifest.layout.check()?;
        manifest.next.quantisation.check()?;
        check_text("adapter", &manifest.adapter)?;
        check_text("base_fingerprint", &manifest.base_fingerprint)?;
        sealed.verify(&manifest.signer)?;
        let modules = modules(&sealed, &manifest.layout)?;
        if adapter::digest(&modules) != manifest.digest {
            return Err(invalid("digest", "not that of its factors"));
        }
        if sealed.metadata(FINGERPRINT_KEY) != Some(&manifest.base_fingerprint) {
            return Err(invalid(FINGERPRINT_KEY, "not what the manifest says"));
        }
        let config = sealed.metadata(CONFIG_KEY).map(String::from);
        let config = config.ok_or_else(|| invalid(CONFIG_KEY, "missing"))?;
        Ok(Self { manifest, config, modules, bytes: sealed.bytes().to_vec() })
    }

    /// That a device may use it.
    ///
    /// Errors: [`Error::InvalidDelta`] for a key that is not trusted, another adapter, a version
    /// that is not higher, a norm above the cap; [`Error::BaseMismatch`].
    pub fn accept(&self, rules: &Accept<'_>) -> Result<()> {
        let manifest = &self.manifest;
        if !rules.trusted.contains(&manifest.signer) {
            let reason = format!("{} is not among the trusted keys", manifest.signer);
            return Err(invalid("signer", reason));
        }
        if manifest.base_fingerprint != rules.base_fingerprint {
            let (expected, got) =
                (manifest.base_fingerprint.clone(), rules.base_fingerprint.to_string());
            return Err(Error::BaseMismatch { expected, got });
        }
        if manifest.adapter != rules.adapter {
            return Err(invalid("adapter", format!("a version of `{}`", manifest.adapter)));
        }
        if let Some(current) = rules.current.filter(|current| manifest.version <= *current) {
            let reason = format!("{} is not above {current}, which is in use", manifest.version);
            return Err(invalid("version", reason));
        }
        let norm = self.norm();
        match rules.max_norm {
            Some(max) if norm > max => {
                Err(invalid("norm", format!("{norm:.4}; at most {max} is allowed")))
            }
            _ => Ok(()),
        }
    }

    /// The norm of `scaling B A` over all modules.
    pub fn norm(&self) -> f64 {
        let squares = self.modules.iter().map(|module| {
            let product = linalg::Product::new(&module.a, &module.b, module.rank);
            product.dot(&product) * f64::from(module.scaling).powi(2)
        });
        squares.sum::<f64>().sqrt()
    }

    /// The adapter in it, for a base.
    ///
    /// Errors: as [`Adapter::load`].
    pub fn adapter(&self, shape: &BaseShape) -> Result<Adapter> {
        Adapter::from_bytes(self.bytes.clone(), shape)
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As the parent of something.
    pub(super) fn as_parent(&self) -> Parent {
        Parent { version: self.manifest.version, digest: self.manifest.digest.clone() }
    }

    pub(super) fn module(&self, path: adapter::ModulePath) -> Option<&LoraModule> {
        let found = self.modules.binary_search_by_key(&path, |module| module.path);
        found.ok().and_then(|i| self.modules.get(i))
    }
}

fn modules(sealed: &Sealed, layout: &Layout) -> Result<Vec<LoraModule>> {
    let mut pairs = BTreeMap::<_, [Option<Vec<f32>>; 2]>::new();
    for name in sealed.tensors.keys() {
        let unusable = || invalid(name.clone(), "no F32 factor of the size that the layout says");
        let (path, factor) = factor_of(name).ok_or_else(unusable)?;
        let [n, k] = layout.shape(path.target).ok_or_else(unusable)?;
        let (place, bytes) = sealed.tensor(name).ok_or_else(unusable)?;
        let r = layout.of_module(path).rank;
        let axes = if factor == Factor::A { [r, k] } else { [n, r] };
        if place.dtype != Dtype::F32 || place.shape != axes {
            return Err(unusable());
        }
        let values: Vec<_> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if !values.iter().all(|v| v.is_finite()) {
            return Err(invalid(name.clone(), "it holds NaN or infinity"));
        }
        pairs.entry(path).or_default()[factor as usize] = Some(values);
    }
    let module = |(path, pair): (_, [Option<Vec<f32>>; 2])| {
        let [Some(a), Some(b)] = pair else {
            return Err(invalid(format!("{path}"), "one of its factors is missing"));
        };
        let of = layout.of_module(path);
        Ok(LoraModule { path, rank: of.rank, a, b, scaling: of.scaling })
    };
    pairs.into_iter().map(module).collect()
}

/// What a version is made of.
pub(super) struct Draft {
    pub(super) adapter: String,
    pub(super) version: u64,
    pub(super) parent: Option<Parent>,
    pub(super) base_fingerprint: String,
    pub(super) clients: u64,
    pub(super) mode: String,
    pub(super) next: RoundPlan,
    pub(super) config: String,
    pub(super) modules: Vec<LoraModule>,
}

/// Writes and signs a version.
///
/// Errors: those of the signer.
pub(super) fn publish(draft: Draft, signer: &dyn Signer) -> Result<Published> {
    let manifest = VersionManifest {
        critical: Vec::new(),
        adapter: draft.adapter,
        version: draft.version,
        parent: draft.parent,
        digest: adapter::digest(&draft.modules),
        base_fingerprint: draft.base_fingerprint,
        layout: Layout::of(&draft.modules),
        clients: draft.clients,
        mode: draft.mode,
        next: draft.next,
        runtime: super::client::RUNTIME.into(),
        signer: signer.public_key(),
        others: Map::new(),
    };
    let text = serde_json::to_string(&manifest).map_err(|e| invalid(MANIFEST, e.to_string()))?;
    let metadata = HashMap::from([
        ("format", "pt".into()),
        (FORMAT_KEY, adapter::FORMAT.into()),
        (CONFIG_KEY, draft.config),
        (FINGERPRINT_KEY, manifest.base_fingerprint.clone()),
        (MANIFEST, text),
    ]);
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let tensors = draft.modules.iter().flat_map(|module| {
        [(Factor::A, &module.a), (Factor::B, &module.b)].map(|(factor, values)| {
            let width = values.len() / module.rank.max(1);
            let r = module.rank;
            let shape = if factor == Factor::A { vec![r, width] } else { vec![width, r] };
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (tensor_name(module.path, factor), Encoded { dtype: Dtype::F32, shape, bytes })
        })
    });
    let bytes = seal(FORMAT, metadata, &tensors.collect::<Vec<_>>(), signer)?;
    Published::from_bytes(bytes)
}

/// Makes an adapter version 1 of what is averaged under the id `adapter`.
///
/// Errors: [`Error::InvalidDelta`] for an adapter that does not name its base, or an id that is
/// none; those of the signer.
pub fn start(
    id: &str,
    adapter: &Adapter,
    next: RoundPlan,
    signer: &dyn Signer,
) -> Result<Published> {
    let base_fingerprint = adapter.base_fingerprint.clone().ok_or_else(|| {
        let reason = "the adapter does not say which base it is for; convert it with \
            `adapter convert --model` first";
        invalid("base_fingerprint", reason)
    })?;
    check_text("adapter", id)?;
    let draft = Draft {
        adapter: id.into(),
        version: 1,
        parent: None,
        base_fingerprint,
        clients: 0,
        mode: "start".into(),
        next,
        config: adapter.config.to_json(),
        modules: adapter.modules.clone(),
    };
    publish(draft, signer)
}
