//! `C = beta C + alpha A B` in f32 with strides, for LoRA's factors: see
//! `shaders/matmul_dense.wgsl`, its `_thin` and its `_direct`.
//!
//! With `A [r, K]` and `B [N, r]` of an adapter, both in one flat buffer (Hu et al. 2021,
//! arXiv:2106.09685): `U = X Aᵀ` and `Y += s U Bᵀ` forward, `dU = s dY B`, `dB += s dYᵀ U`, `dA +=
//! dUᵀ X` and `dX += dU A` backward.

use super::ENOUGH_GROUPS;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

/// Bindings of every variant: those of A, B and C.
pub const BINDINGS: &[Access] = &[Read, Read, Write];

/// Of a product of `A [m, k]` and `B [k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of A and C.
    pub m: u32,
    /// Columns of B and C.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
}

/// Where a matrix lies in a buffer: element (i, j) at `offset + i * row + j * column`. All in
/// elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of element (0, 0).
    pub offset: u32,
    /// From one row to the next.
    pub row: u32,
    /// From one column to the next.
    pub column: u32,
}

impl View {
    /// A matrix whose rows of `stride` elements follow one another.
    pub fn new(offset: u32, stride: u32) -> Self {
        Self { offset, row: stride, column: 1 }
    }

    /// The same elements with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { offset: self.offset, row: self.column, column: self.row }
    }
}

params! {
    /// What a dispatch of `shared/dense` says.
    pub struct MatmulDenseParams {
        /// Rows of A and C.
        pub m: u32,
        /// Columns of B and C.
        pub n: u32,
        /// Columns of A, rows of B.
        pub k: u32,
        /// A(m, k) is at `a_offset + m a_m + k a_k`.
        pub a_offset: u32,
        /// See `a_offset`.
        pub a_m: u32,
        /// See `a_offset`.
        pub a_k: u32,
        /// B(k, n) is at `b_offset + k b_k + n b_n`.
        pub b_offset: u32,
        /// See `b_offset`.
        pub b_k: u32,
        /// See `b_offset`.
        pub b_n: u32,
        /// C(m, n) is at `c_offset + m c_m + n`.
        pub c_offset: u32,
        /// See `c_offset`.
        pub c_m: u32,
        /// Factor of the product.
        pub alpha: f32,
        /// Factor of what C holds; 0 leaves that unread.
        pub beta: f32,
    }
}

impl MatmulDenseParams {
    /// `A [m, k]` times `B [k, n]` into `C [m, n]`, whose rows must lie side by side; alpha is 1 and
    /// beta 0.
    pub fn new(Sizes { m, n, k }: Sizes, a: View, b: View, c: View) -> Self {
        debug_assert_eq!(c.column, 1, "columns of C are neighbours");
        Self {
            m,
            n,
            k,
            a_offset: a.offset,
            a_m: a.row,
            a_k: a.column,
            b_offset: b.offset,
            b_k: b.row,
            b_n: b.column,
            c_offset: c.offset,
            c_m: c.row,
            alpha: 1.0,
            beta: 0.0,
        }
    }
}

/// How the work is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// 64 x 64 of C a workgroup.
    Square,
    /// 64 x 16, K split over 4 teams of lanes.
    Tall,
    /// 16 x 64, likewise.
    Wide,
    /// 4 x 16, K split over 64 teams: where there are few elements of C and many terms in each.
    Thin,
    /// 4 x 4 a lane, without workgroup memory.
    Direct,
}

/// Lanes in a workgroup of `matmul_dense_direct`.
const DIRECT_WG: u32 = 32;
/// The most workgroups along one side of a grid: WebGPU's default limit.
const MAX_GROUPS: u32 = 65_535;

impl Tiling {
    /// Every tiling.
    pub const ALL: [Self; 5] = [Self::Square, Self::Tall, Self::Wide, Self::Thin, Self::Direct];

    /// The largest tiles that are at least half full and keep a GPU busy; for `C [m, n]`.
    pub fn choose(caps: &Caps, m: u32, n: u32) -> Self {
        if caps.software {
            return Self::Direct;
        }
        let fits = |tiling: &Self| {
            let (tile_m, tile_n) = tiling.tile();
            let groups = m.div_ceil(tile_m) * n.div_ceil(tile_n);
            let elements = u64::from(groups * tile_m) * u64::from(tile_n);
            groups >= ENOUGH_GROUPS && elements <= 2 * u64::from(m) * u64::from(n)
        };
        [Self::Square, Self::Tall, Self::Wide].into_iter().find(fits).unwrap_or(Self::Thin)
    }

    /// Rows and columns of C in a workgroup's tile, or a lane's.
    fn tile(self) -> (u32, u32) {
        match self {
            Self::Square => (64, 64),
            Self::Tall => (64, 16),
            Self::Wide => (16, 64),
            Self::Thin => (4, 16),
            Self::Direct => (4, 4),
        }
    }

    /// The kernel.
    pub fn spec(self) -> KernelSpec {
        let (tile_m, tile_n) = self.tile();
        let (name, consts) = match self {
            Self::Direct => ("matmul_dense_direct", vec![("WG", DIRECT_WG)]),
            Self::Thin => ("matmul_dense_thin", vec![]),
            _ => {
                // As an adapter's rank often is, where it is all of K.
                let step = if self == Self::Square { 16 } else { 32 };
                ("matmul_dense", vec![("TM", tile_m), ("TN", tile_n), ("KT", step)])
            }
        };
        let params = MatmulDenseParams::LAYOUT;
        KernelSpec { name, consts, bindings: BINDINGS, params, ..Default::default() }
    }
}

/// Records one product by the kernel of `tiling`.
pub fn record(commands: &mut Commands<'_>, op: &Op, tiling: Tiling, params: &MatmulDenseParams) {
    let (tile_m, tile_n) = tiling.tile();
    let (down, across) = (params.m.div_ceil(tile_m), params.n.div_ceil(tile_n));
    let grid = if tiling == Tiling::Direct {
        let groups = (down * across).div_ceil(DIRECT_WG);
        [groups.min(MAX_GROUPS), groups.div_ceil(MAX_GROUPS), 1]
    } else {
        [across, down, 1]
    };
    op.record(commands, params, grid, 0);
}
