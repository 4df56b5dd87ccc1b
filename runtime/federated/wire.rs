//! What leaves a device: the difference that training made to some factors, in one signed file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;

use super::invalid;
use super::linalg::dot;
use super::manifest::Manifest;
use super::quantise::{Bytes, Encoded, Quantisation, Shape};
use super::random::Random;
use super::sealed::{MANIFEST, Sealed, seal};
use super::sign::Signer;
use crate::adapter::{Factor, ModulePath, factor_of, tensor_name};
use crate::error::Result;
use crate::format;

pub(super) const FORMAT: &str = "epiphyte.delta.1";
const SCALES: &str = "scales";
const INDEX: &str = ".index";
/// Bytes of a file that are read; of the largest adapters, an f32 delta has about 2 GB.
const MAX_FILE: u64 = 4 << 30;

/// A factor of a module.
pub(super) type Key = (ModulePath, Factor);

/// A delta whose contents were checked and whose signature is that of the key it names. Whether
/// that key is trusted, and the delta wanted, is the reader's to say.
#[derive(Clone)]
pub struct Delta {
    /// What it says of itself.
    pub manifest: Manifest,
    sealed: Sealed,
    /// Each factor's name in the file, and where its scales begin.
    factors: BTreeMap<Key, (String, usize)>,
    scales: Vec<f32>,
    norm: f64,
}

impl Delta {
    /// Reads a file.
    ///
    /// Errors: [`crate::Error::Io`], and as [`Self::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_bytes(read(path.as_ref())?)
    }

    /// Reads a delta from memory: header, manifest, every number, signature.
    ///
    /// Errors: [`crate::Error::InvalidFile`] for what is no safetensors;
    /// [`crate::Error::FormatVersion`]; [`crate::Error::InvalidDelta`] naming the field or tensor
    /// that can't be used.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::from_sealed(Sealed::unhashed(bytes)?)
    }

    /// As [`Self::from_bytes`], of a file whose layout was read.
    pub(super) fn from_sealed(sealed: Sealed) -> Result<Self> {
        let sealed = sealed.hashed(FORMAT, FORMAT)?;
        let manifest = Manifest::parse(sealed.manifest()?)?;
        sealed.verify(&manifest.signer)?;
        let scales = scales(&sealed)?;
        let mut delta = Self { manifest, sealed, factors: BTreeMap::new(), scales, norm: 0.0 };
        delta.find_factors()?;
        let mut room = Vec::new();
        let squares = delta.factors.keys().map(|key| delta.squares(*key, &mut room));
        delta.norm = squares.sum::<Result<f64>>()?.sqrt();
        Ok(delta)
    }

    /// Reads a file again that was checked before, under the name and with the norm that it had:
    /// only its layout is looked at. What is added to a version needs [`Self::open`].
    pub(super) fn glance(path: &Path, name: &str, norm: f64) -> Result<Self> {
        let sealed = Sealed::unhashed(read(path)?)?.of_format(FORMAT)?.named(name);
        let manifest = Manifest::parse(sealed.manifest()?)?;
        let scales = scales(&sealed)?;
        let mut delta = Self { manifest, sealed, factors: BTreeMap::new(), scales, norm };
        delta.find_factors()?;
        Ok(delta)
    }

    /// Its name, `epiphyte.delta.1:` and a SHA-256: of everything but the signature.
    pub fn name(&self) -> &str {
        &self.sealed.name
    }

    /// Bytes of the file.
    pub fn n_bytes(&self) -> usize {
        self.sealed.bytes().len()
    }

    /// L2 norm over all its numbers.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// Numbers in it, those left out included.
    pub fn n_numbers(&self) -> usize {
        self.keys().filter_map(|key| self.shape(key)).map(Shape::len).sum()
    }

    /// The modules it is for.
    pub fn modules(&self) -> Vec<ModulePath> {
        self.factors.keys().map(|(path, _)| *path).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What it has of each module's A (`[r, K]`) and B (`[N, r]`), row-major; nothing of those
    /// that it does not hold.
    pub fn module(&self, path: ModulePath) -> [Option<Vec<f32>>; 2] {
        [Factor::A, Factor::B].map(|factor| self.values((path, factor)))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.factors.keys().copied()
    }

    /// A factor's numbers, row-major.
    pub(super) fn values(&self, key: Key) -> Option<Vec<f32>> {
        let mut numbers = Vec::new();
        self.unpack(key, &mut numbers).map(|()| numbers)
    }

    /// A factor's numbers, row-major: where the file has them as they are used, or else put into
    /// `room`.
    pub(super) fn numbers<'a>(&'a self, key: Key, room: &'a mut Vec<f32>) -> Option<&'a [f32]> {
        if self.manifest.quantisation == Quantisation::F32 && cfg!(target_endian = "little") {
            let (_, bytes) = self.sealed.tensor(&self.factors.get(&key)?.0)?;
            if let Ok(numbers) = bytemuck::try_cast_slice(bytes) {
                return (numbers.len() == self.shape(key)?.len()).then_some(numbers);
            }
        }
        self.unpack(key, room)?;
        Some(room)
    }

    /// Puts a factor's numbers into `numbers`, row-major.
    fn unpack(&self, key: Key, numbers: &mut Vec<f32>) -> Option<()> {
        let (name, at) = self.factors.get(&key)?;
        let shape = self.shape(key)?;
        let scales = match self.manifest.quantisation.has_scales() {
            true => self.scales.get(*at..at + shape.rank)?,
            false => &[],
        };
        let (_, values) = self.sealed.tensor(name)?;
        let index = self.sealed.tensor(&format!("{name}{INDEX}")).map(|(_, bytes)| bytes);
        self.manifest.quantisation.unpack(Bytes { values, index, scales }, shape, numbers)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.sealed.bytes()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.sealed.into_bytes()
    }

    fn shape(&self, (path, factor): Key) -> Option<Shape> {
        let layout = &self.manifest.layout;
        let [n, k] = layout.shape(path.target)?;
        let width = if factor == Factor::A { k } else { n };
        Some(Shape { factor, rank: layout.of_module(path).rank, width })
    }

    /// The sum of a factor's squares; checks everything about it.
    fn squares(&self, key: Key, room: &mut Vec<f32>) -> Result<f64> {
        let (path, factor) = key;
        let what = || format!("{path}.lora_{factor:?}");
        let unusable = "its size, codes or indices are not what the manifest says";
        let numbers = self.numbers(key, room).ok_or_else(|| invalid(what(), unusable))?;
        // Squares of f32 have room in an f64, however many: only what is not finite is not.
        let squares = dot(numbers, numbers);
        match squares.is_finite() {
            true => Ok(squares),
            false => Err(invalid(what(), "it holds NaN or infinity")),
        }
    }

    fn find_factors(&mut self) -> Result<()> {
        let mut at = 0;
        let quantisation = self.manifest.quantisation;
        let is_index = |name: &str| {
            let of = name.strip_suffix(INDEX);
            let sparse = matches!(quantisation, Quantisation::TopK { .. });
            sparse && of.is_some_and(|of| self.sealed.tensors.contains_key(of))
        };
        for (name, place) in &self.sealed.tensors {
            if name == SCALES && quantisation.has_scales() || is_index(name) {
                continue;
            }
            let unknown = || invalid(shown(name), "no factor that the manifest tells of");
            let key = factor_of(name).filter(|(_, factor)| self.manifest.factors.has(*factor));
            let key = key.ok_or_else(unknown)?;
            let shape = self.shape(key).ok_or_else(unknown)?;
            let as_said = match quantisation {
                Quantisation::F32 => place.dtype == Dtype::F32 && place.shape == shape.axes(),
                Quantisation::F16 => place.dtype == Dtype::F16 && place.shape == shape.axes(),
                Quantisation::Int8 => place.dtype == Dtype::I8 && place.shape == shape.axes(),
                Quantisation::Ternary => place.dtype == Dtype::U8,
                Quantisation::TopK { .. } => place.dtype == Dtype::I8,
            };
            if !as_said {
                return Err(invalid(shown(name), "type or shape is not what the manifest says"));
            }
            self.factors.insert(key, (name.clone(), at));
            at += shape.rank;
        }
        let both = |(path, factor): Key| {
            let other = if factor == Factor::A { Factor::B } else { Factor::A };
            !self.manifest.factors.has(other) || self.factors.contains_key(&(path, other))
        };
        let used = if quantisation.has_scales() { at } else { 0 };
        match self.keys().all(both) && !self.factors.is_empty() && used == self.scales.len() {
            true => Ok(()),
            false => Err(invalid("tensors", "a factor or a scale is missing or too many")),
        }
    }
}

impl std::fmt::Debug for Delta {
    /// Without the numbers: they are the user's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta({}, round {})", self.name(), self.manifest.round)
    }
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// The bytes of a delta's file, or of a version's or a part's.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    read_into(Vec::new(), path)
}

/// As [`read`], in the memory of `room`.
pub(super) fn read_into(room: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    format::read_into(room, path, MAX_FILE)
}

fn scales(sealed: &Sealed) -> Result<Vec<f32>> {
    let Some((place, bytes)) = sealed.tensor(SCALES) else { return Ok(Vec::new()) };
    let scales: Vec<_> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let usable = |scale: &f32| scale.is_finite() && *scale >= 0.0;
    match place.dtype == Dtype::F32 && place.shape.len() == 1 && scales.iter().all(usable) {
        true => Ok(scales),
        false => Err(invalid(SCALES, "finite F32 numbers, not below 0, are needed")),
    }
}

/// A delta's file, and its numbers as a reader will see them.
pub(super) struct Written {
    pub(super) bytes: Vec<u8>,
    pub(super) decoded: BTreeMap<Key, Vec<f32>>,
}

/// Quantises, signs and writes a delta.
///
/// Errors: those of the signer.
pub(super) fn write(
    manifest: &Manifest,
    values: &BTreeMap<Key, Vec<f32>>,
    random: &mut Random,
    signer: &dyn Signer,
) -> Result<Written> {
    let mut named: Vec<_> =
        values.iter().map(|(key, values)| (tensor_name(key.0, key.1), *key, values)).collect();
    // Readers find the scales by the order of names.
    named.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut tensors, mut scales, mut decoded) = (Vec::new(), Vec::new(), BTreeMap::new());
    let quantisation = manifest.quantisation;
    for (name, key, values) in named {
        let rank = manifest.layout.of_module(key.0).rank;
        let shape = Shape { factor: key.1, rank, width: values.len() / rank.max(1) };
        let packed = quantisation.pack(values, shape, random);
        let (index, bytes) = (packed.index.as_ref(), &packed.values.bytes);
        let index = index.map(|index| index.bytes.as_slice());
        let read = Bytes { values: bytes, index, scales: &packed.scales };
        let mut seen = Vec::new();
        quantisation
            .unpack(read, shape, &mut seen)
            .ok_or_else(|| invalid(name.clone(), "sizes differ from the layout's"))?;
        decoded.insert(key, seen);
        scales.extend(packed.scales);
        tensors.extend(packed.index.map(|index| (format!("{name}{INDEX}"), index)));
        tensors.push((name, packed.values));
    }
    if quantisation.has_scales() {
        let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        tensors
            .push((SCALES.into(), Encoded { dtype: Dtype::F32, shape: vec![scales.len()], bytes }));
    }
    let text = serde_json::to_string(manifest).map_err(|e| invalid(MANIFEST, e.to_string()))?;
    let bytes = seal(FORMAT, [(MANIFEST.into(), text)].into(), &tensors, signer)?;
    Ok(Written { bytes, decoded })
}
