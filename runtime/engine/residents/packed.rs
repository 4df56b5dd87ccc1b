//! An adapter as the device holds it: f16 factors, site by site, ranks padded to a multiple of 8.
//!
//! The scaling is multiplied into B. A power of two is taken out of each factor, so that f16
//! neither overflows nor loses small weights; what rounding is left is at most 2^-11 of a weight.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::adapter::{Adapter, LoraModule};
use crate::base::{BaseShape, ModulePath, Target};
use crate::model::site::{SiteKind, sites};
use crate::parallel;

use super::arena::Room;

/// f16 that a kernel loads at a time; ranks are multiples of it.
const WIDTH: usize = 8;
/// As many.
pub(crate) type Eight = [u16; WIDTH];
/// Values that become f16 at a time: a short row by itself would take longer to begin than to
/// convert.
const TOGETHER: usize = 4096;

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
    /// Bits of f16, eight an [`Eight`].
    pub(crate) a: Vec<u16>,
    /// As [`Self::a`].
    pub(crate) b: Vec<u16>,
    pub(crate) sites: Vec<PackedSite>,
}

impl Packed {
    /// Packs an adapter that fits `shape`.
    pub(crate) fn new(adapter: &Adapter, shape: &BaseShape) -> Self {
        let works: Vec<_> = sites(shape.num_hidden_layers)
            .map(|(kind, layer)| Work::new(kind, layer, adapter, shape))
            .collect();
        // Zeros: what is not written is padding.
        let zeros =
            |len: fn(&Work<'_>) -> usize| vec![0_u16; works.iter().map(len).sum::<usize>() * WIDTH];
        let (mut a, mut b) = (zeros(|work| work.a_len), zeros(|work| work.b_len));
        let (mut a_rest, mut b_rest) = (&mut a[..], &mut b[..]);
        let mut places = Vec::with_capacity(works.len());
        let (mut a_at, mut b_at) = (0, 0);
        for work in works {
            let (own_a, own_b);
            (own_a, a_rest) = a_rest.split_at_mut(work.a_len * WIDTH);
            (own_b, b_rest) = b_rest.split_at_mut(work.b_len * WIDTH);
            places.push((work, [a_at, b_at], own_a, own_b));
            let (work, ..) = &places[places.len() - 1];
            (a_at, b_at) = (a_at + work.a_len as u32, b_at + work.b_len as u32);
        }
        let sites = parallel::map(places, |(work, at, a, b)| work.pack(at, (a, b), shape));
        Self { a, b, sites }
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> u64 {
        ((self.a.len() + self.b.len()) * size_of::<u16>()) as u64
    }
}

/// What the factors of an adapter take once they are packed.
pub(crate) fn room(adapter: &Adapter, shape: &BaseShape) -> Room {
    let works =
        sites(shape.num_hidden_layers).map(|(kind, layer)| Work::new(kind, layer, adapter, shape));
    works.fold(Room::default(), |Room { a, b }, work| Room {
        a: a + work.a_len as u32,
        b: b + work.b_len as u32,
    })
}

/// A site to pack.
struct Work<'a> {
    kind: SiteKind,
    modules: Vec<Option<&'a LoraModule>>,
    rank: usize,
    /// In [`Eight`]s.
    a_len: usize,
    /// In [`Eight`]s.
    b_len: usize,
}

impl<'a> Work<'a> {
    fn new(kind: SiteKind, layer: Option<usize>, adapter: &'a Adapter, shape: &BaseShape) -> Self {
        let module = |&target: &Target| adapter.module(ModulePath { layer, target });
        let modules: Vec<_> = kind.targets().iter().map(module).collect();
        let rank = modules
            .iter()
            .flatten()
            .map(|module| module.rank)
            .max()
            .unwrap_or(0)
            .next_multiple_of(WIDTH);
        let sum =
            |i: usize| kind.targets().iter().map(|&target| shape.shape(target)[i]).sum::<usize>();
        Self { kind, modules, rank, a_len: sum(1) * rank / WIDTH, b_len: sum(0) * rank / WIDTH }
    }

    /// Fills in the site's factors, which lie at `at`.
    fn pack(
        &self,
        at: [u32; 2],
        (a, b): (&mut [u16], &mut [u16]),
        shape: &BaseShape,
    ) -> PackedSite {
        let rank = self.rank;
        if rank == 0 {
            return PackedSite::default();
        }
        let present = || self.modules.iter().flatten();
        let a_exponent = exponent(present().map(|module| largest(&module.a)));
        let b_exponent =
            exponent(present().map(|module| largest(&module.b) * module.scaling.abs()));
        let (mut a_rest, mut b_rest) = (a, b);
        for (module, &target) in self.modules.iter().zip(self.kind.targets()) {
            let [n, k] = shape.shape(target);
            let (own_a, own_b);
            (own_a, a_rest) = a_rest.split_at_mut(k * rank);
            (own_b, b_rest) = b_rest.split_at_mut(n * rank);
            let Some(module) = module else { continue };
            if self.kind == SiteKind::EmbedTokens {
                let transposed: Vec<f32> = (0..module.rank * k)
                    .map(|i| module.a[i % module.rank * k + i / module.rank])
                    .collect();
                put_rows(own_a, &transposed, module.rank, rank, power(-a_exponent));
            } else {
                put_rows(own_a, &module.a, k, k, power(-a_exponent));
            }
            put_rows(own_b, &module.b, module.rank, rank, module.scaling * power(-b_exponent));
        }
        let [a, b] = at;
        let (modules, weight) = (self.modules.len() as u32, power(a_exponent + b_exponent));
        PackedSite { a, b, rank: rank as u32, modules, weight }
    }
}

/// Rows of `width` values, times `factor`, each padded to `padded`.
fn put_rows(to: &mut [u16], values: &[f32], width: usize, padded: usize, factor: f32) {
    let halves: &mut [f16] = to.reinterpret_cast_mut();
    let mut scaled = [0.0; TOGETHER];
    let mut put = |row: &[f32], out: &mut [f16]| {
        for (row, out) in row.chunks(TOGETHER).zip(out.chunks_mut(TOGETHER)) {
            let scaled = &mut scaled[..row.len()];
            scaled.iter_mut().zip(row).for_each(|(scaled, value)| *scaled = value * factor);
            out[..row.len()].convert_from_f32_slice(scaled);
        }
    };
    if width == padded {
        put(values, halves);
    } else {
        values
            .chunks_exact(width)
            .zip(halves.chunks_exact_mut(padded))
            .for_each(|(row, out)| put(row, out));
    }
}

/// The largest magnitude of finite values; their bits are ordered as they are.
fn largest(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |largest, v| largest.max(v.abs().to_bits())))
}

/// The power of two above the largest of some magnitudes.
fn exponent(magnitudes: impl Iterator<Item = f32>) -> i32 {
    let largest = magnitudes.fold(0.0, f32::max);
    // Below 2^-100 nothing of it would be left anyway.
    if largest < 1e-30 { 0 } else { largest.log2().floor().clamp(-100.0, 100.0) as i32 + 1 }
}

fn power(exponent: i32) -> f32 {
    2.0_f32.powi(exponent)
}
