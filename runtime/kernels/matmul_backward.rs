//! `dX = dY W`, backward through a frozen linear: see `shaders/matmul_backward.wgsl`, its `_coop`
//! and its `_direct`.

use bytemuck::{Pod, Zeroable};

use super::matmul::fragments;
use crate::dtype::DType;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, Kernel, KernelSpec};

/// Bindings: `dy [., dy_stride]`, `words`, `scales`, `dx [., K]`.
const BINDINGS: &[Access] = &[Read, Read, Read, Write];
/// Of `_coop`: also `exponents [M]`, by [`super::row_exponents`].
const COOP_BINDINGS: &[Access] = &[Read, Read, Read, Write, Read];

/// Rows of W in a step of `matmul_backward_coop`.
const COOP_STEP: u32 = 64;
/// Lanes in a workgroup of `matmul_backward_direct`.
const DIRECT_WG: u32 = 32;

/// Mirror of `Params` in the three shaders.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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

/// How a device computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// On matrices of this side, by subgroups of at least this size.
    Cooperative(u32, u32),
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
    match caps.cooperative_matrix.zip(caps.subgroup_size) {
        Some((side, subgroup)) => Variant::Cooperative(side, subgroup),
        None if caps.software => Variant::Direct,
        None => Variant::Tiled,
    }
}

/// The variant on cooperative matrices where there are any, without barriers on a software GPU,
/// else the tiled one.
pub fn spec(caps: &Caps, dtype: DType) -> KernelSpec {
    let plain = |name, consts| Source { name, consts, quant: Some(dtype), ..Default::default() };
    let source = match variant(caps) {
        Variant::Cooperative(side, subgroup) => cooperative(side, subgroup, dtype),
        Variant::Tiled => plain("matmul_backward", vec![]),
        Variant::Direct => plain("matmul_backward_direct", vec![("WG", DIRECT_WG)]),
    };
    KernelSpec {
        source,
        bindings: bindings(caps),
        params_bytes: size_of::<MatmulBackwardParams>() as u32,
    }
}

fn cooperative(side: u32, subgroup: u32, dtype: DType) -> Source {
    Source {
        name: "matmul_backward_coop",
        consts: vec![("WG", 4 * subgroup), ("S", side), ("NS", COOP_STEP)],
        aliases: fragments(side),
        imports: vec![],
        quant: Some(dtype),
        f16: true,
        cooperative_matrix: true,
    }
}

/// Records one product; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    caps: &Caps,
    (kernel, group): (&Kernel, &wgpu::BindGroup),
    params: &MatmulBackwardParams,
    weight_bytes: u64,
) {
    // Rows and columns of dx that a workgroup makes.
    let (tile_m, tile_k) = match variant(caps) {
        Variant::Cooperative(side, _) => (4 * side, 4 * side),
        Variant::Tiled => (64, 64),
        Variant::Direct => (4, 8 * DIRECT_WG),
    };
    let grid = [(32 * params.k_blocks).div_ceil(tile_k), params.m.div_ceil(tile_m), 1];
    commands.dispatch(kernel, group, params, grid, weight_bytes);
}
