//! `dX = dY W`, backward through a frozen linear: see `shaders/matmul_backward.wgsl`, its `_coop`
//! and its `_direct`.

use super::ENOUGH_GROUPS;
use super::matmul::Tile;
use super::matvec_coop::Shape;
use crate::dtype::DType;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};
use crate::quant;

/// Bindings: `dy [., dy_stride]`, `words`, `scales`, `dx [., K]`.
const BINDINGS: &[Access] = &[Read, Read, Read, Write];
/// Of `_coop`: also `exponents [M]`, by [`super::row_exponents`].
const COOP_BINDINGS: &[Access] = &[Read, Read, Read, Write, Read];

/// Lanes in a workgroup of `matmul_backward_direct`.
const DIRECT_WG: u32 = 32;

params! {
    /// What a dispatch says, of each variant.
    pub struct MatmulBackwardParams {
        /// Rows of dy and dx.
        pub m: u32,
        /// Rows of W in this chunk.
        pub n: u32,
        /// Blocks of 32 in a row of W.
        pub k_blocks: u32,
        /// First row of dy.
        pub dy_row: u32,
        /// Elements from one row of dy to the next.
        pub dy_stride: u32,
        /// Column of dy that belongs to the chunk's first row.
        pub dy_offset: u32,
        /// First row of dx.
        pub dx_row: u32,
        /// 0: `dx = .`  1: `dx += .`, for all chunks of a W but the first.
        pub add: u32,
    }
}

/// How a product is made where cooperative matrices make it.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// What a workgroup makes.
    pub tile: Tile,
    /// dy is read in fours: its lines are multiples of four elements, from a multiple of four on.
    pub fours: bool,
}

impl Way {
    /// For `dx [m, k]`. Sums are long and both factors are made ready on the way: a large tile pays
    /// where there are two for each of what [`Tile::choose`] takes as enough.
    pub fn choose(caps: &Caps, [m, k]: [u32; 2], fours: bool) -> Self {
        Self { tile: Tile::of_which(caps, [m, k], 2 * ENOUGH_GROUPS), fours }
    }
}

/// How a device computes it.
enum Variant {
    /// On cooperative matrices.
    Cooperative(Shape),
    Tiled,
    /// Without workgroup memory.
    Direct,
}

/// Whether the variant chosen here reads the rows' exponents.
pub fn reads_exponents(caps: &Caps) -> bool {
    matches!(variant(caps), Variant::Cooperative(..))
}

/// `dy [., dy_stride]`, `words`, `scales`, `dx [., K]`, and where [`reads_exponents`] `exponents
/// [M]`.
pub fn bindings(caps: &Caps) -> &'static [Access] {
    if reads_exponents(caps) { COOP_BINDINGS } else { BINDINGS }
}

fn variant(caps: &Caps) -> Variant {
    match Shape::of(caps) {
        Some(shape) => Variant::Cooperative(shape),
        None if caps.software => Variant::Direct,
        None => Variant::Tiled,
    }
}

/// The variant on cooperative matrices where there are any, without barriers on a software GPU,
/// else the tiled one.
pub fn spec(caps: &Caps, dtype: DType, Way { tile, fours }: Way) -> KernelSpec {
    let mut spec = KernelSpec {
        bindings: bindings(caps),
        params: MatmulBackwardParams::LAYOUT,
        ..Default::default()
    };
    match variant(caps) {
        Variant::Cooperative(shape) => {
            spec.name = "matmul_backward_coop";
            spec.consts = tile.consts(shape).into();
            spec.consts.push(("NS", 32 * tile.step()));
            spec.fills.push(if fours { "backward/dy_fours" } else { "backward/dy_ones" });
            spec.fills.extend(shape.fills(dtype));
            return spec;
        }
        Variant::Tiled => spec.name = "matmul_backward",
        Variant::Direct => {
            spec.name = "matmul_backward_direct";
            spec.consts = vec![("WG", DIRECT_WG)];
        }
    }
    spec.fills.push(quant::format(dtype).wgsl());
    spec
}

/// Records one product by the kernel that [`spec`] gives for `caps` and this way; `weight_bytes` is
/// the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    caps: &Caps,
    Way { tile, .. }: Way,
    params: &MatmulBackwardParams,
    weight_bytes: u64,
) {
    // Rows and columns of dx that a workgroup makes.
    let [down, across] = match variant(caps) {
        Variant::Cooperative(_) | Variant::Tiled => [tile.side(caps); 2],
        Variant::Direct => [4, 8 * DIRECT_WG],
    };
    let grid = [(32 * params.k_blocks).div_ceil(across), params.m.div_ceil(down), 1];
    op.record(commands, params, grid, weight_bytes);
}
