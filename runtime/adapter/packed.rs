//! An adapter as the device holds it: f16 factors, site by site, ranks padded to a multiple of 8.
//!
//! The scaling is multiplied into B. A power of two is taken out of each factor, so that f16 neither overflows nor
//! loses small weights; what rounding is left is at most 2^-11 of a weight.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::lora::Adapter;
use super::module::{BaseShape, LoraModule, ModulePath, Target};
use super::site::{SiteKind, sites};

/// Eight f16.
pub(crate) type Eight = [f16; 8];

/// Where the factors of a site are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PackedSite {
    /// First [`Eight`] of A: `[modules * rank, K]`, or `[V, rank]` for the embedding.
    pub(crate) a: u32,
    /// First [`Eight`] of B: `[N of all modules, rank]`.
    pub(crate) b: u32,
    /// A multiple of 8; 0 where there is nothing.
    pub(crate) rank: u32,
    /// Linears of the site.
    pub(crate) modules: u32,
    /// What was taken out of both factors.
    pub(crate) weight: f32,
}

/// See the module's documentation.
pub(crate) struct Packed {
    pub(crate) a: Vec<Eight>,
    pub(crate) b: Vec<Eight>,
    pub(crate) sites: Vec<PackedSite>,
    /// Of the factors and their places.
    pub(crate) digest: blake3::Hash,
}

impl Packed {
    /// Packs an adapter that fits `shape`.
    pub(crate) fn new(adapter: &Adapter, shape: &BaseShape) -> Self {
        let (mut a, mut b, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, layer) in sites(shape.num_hidden_layers) {
            let path = |&target: &Target| ModulePath { layer, target };
            let modules: Vec<_> = kind.targets().iter().map(|target| adapter.module(path(target))).collect();
            packed.push(pack_site(kind, &modules, shape, &mut a, &mut b));
        }
        let mut hasher = blake3::Hasher::new();
        for site in &packed {
            hasher.update(format!("{site:?}").as_bytes());
        }
        hasher.update(bytemuck::cast_slice(&a));
        hasher.update(bytemuck::cast_slice(&b));
        Self { a, b, sites: packed, digest: hasher.finalize() }
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> u64 {
        ((self.a.len() + self.b.len()) * size_of::<Eight>()) as u64
    }
}

fn pack_site(
    kind: SiteKind,
    modules: &[Option<&LoraModule>],
    shape: &BaseShape,
    a: &mut Vec<Eight>,
    b: &mut Vec<Eight>,
) -> PackedSite {
    let present = || modules.iter().flatten();
    let rank = present().map(|module| module.rank).max().unwrap_or(0).next_multiple_of(8);
    if rank == 0 {
        return PackedSite::default();
    }
    let a_exponent = exponent(present().flat_map(|module| &module.a).copied());
    let b_exponent = exponent(present().flat_map(|module| module.b.iter().map(|v| v * module.scaling)));
    let site = PackedSite {
        a: a.len() as u32,
        b: b.len() as u32,
        rank: rank as u32,
        modules: modules.len() as u32,
        weight: power(a_exponent + b_exponent),
    };
    for (module, &target) in modules.iter().zip(kind.targets()) {
        let [n, k] = shape.shape(target);
        let a_factor = power(-a_exponent);
        match (module, kind) {
            (None, _) => a.resize(a.len() + rank * k / 8, Eight::default()),
            (Some(module), SiteKind::EmbedTokens) => {
                let transposed: Vec<f32> =
                    (0..module.rank * k).map(|i| module.a[i % module.rank * k + i / module.rank]).collect();
                push_rows(a, &transposed, module.rank, rank, a_factor);
            }
            (Some(module), _) => {
                push_rows(a, &module.a, k, k, a_factor);
                a.resize(a.len() + (rank - module.rank) * k / 8, Eight::default());
            }
        }
        match module {
            None => b.resize(b.len() + n * rank / 8, Eight::default()),
            Some(module) => push_rows(b, &module.b, module.rank, rank, module.scaling * power(-b_exponent)),
        }
    }
    site
}

/// Rows of `width` values, times `factor`, each padded to `padded`, a multiple of 8.
fn push_rows(to: &mut Vec<Eight>, values: &[f32], width: usize, padded: usize, factor: f32) {
    let first = to.len();
    to.resize(first + values.len() / width * padded / 8, Eight::default());
    let halves: &mut [f16] = to[first..].as_flattened_mut();
    let mut scaled = vec![0.0; width];
    for (row, out) in values.chunks_exact(width).zip(halves.chunks_exact_mut(padded)) {
        scaled.iter_mut().zip(row).for_each(|(scaled, value)| *scaled = value * factor);
        out[..width].convert_from_f32_slice(&scaled);
    }
}

/// The power of two above the largest of `values`.
fn exponent(values: impl Iterator<Item = f32>) -> i32 {
    let largest = values.fold(0.0_f32, |largest, v| largest.max(v.abs()));
    // Below 2^-100 nothing of it would be left anyway.
    if largest < 1e-30 { 0 } else { largest.log2().floor().clamp(-100.0, 100.0) as i32 + 1 }
}

fn power(exponent: i32) -> f32 {
    2.0_f32.powi(exponent)
}
