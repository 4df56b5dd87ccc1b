//! `y = x Wᵀ` for many rows of x: see `shaders/matmul.wgsl` and `shaders/matmul_coop.wgsl`.

use super::ENOUGH_GROUPS;
use super::matvec::{BINDINGS, Epilogue, LinearParams};
use super::matvec_coop::Shape;
use crate::dtype::DType;
use crate::gpu::{Caps, Commands, KernelSpec, Op};
use crate::quant;

/// What a workgroup makes: on cooperative matrices so many fragments, else 64 x 64 elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 4 x 4 fragments.
    Small,
    /// 8 x 8 fragments.
    Large,
}

impl Tile {
    /// Of every size.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// Every tile that a device may choose.
    pub fn all(caps: &Caps) -> &'static [Self] {
        if caps.cooperative_matrix.is_some() { &Self::ALL } else { &Self::ALL[..1] }
    }

    /// The largest tile of which `y [m, n]` is enough.
    pub fn choose(caps: &Caps, m: u32, n: u32) -> Self {
        Self::of_which(caps, [m, n], ENOUGH_GROUPS)
    }

    /// The largest tile of which `[m, n]` is `enough`.
    pub(super) fn of_which(caps: &Caps, [m, n]: [u32; 2], enough: u32) -> Self {
        let groups = |tile: &Self| m.div_ceil(tile.side(caps)) * n.div_ceil(tile.side(caps));
        let large = Self::all(caps).iter().rev().find(|tile| groups(tile) >= enough);
        large.copied().unwrap_or(Self::Small)
    }

    /// Rows and columns of what it makes.
    pub(super) fn side(self, caps: &Caps) -> u32 {
        caps.cooperative_matrix.map_or(64, |side| 2 * self.fragments() * side)
    }

    /// Of a subgroup, down and across; 2 x 2 subgroups share a tile.
    fn fragments(self) -> u32 {
        match self {
            Self::Small => 2,
            Self::Large => 4,
        }
    }

    /// Says to a kernel on cooperative matrices how the tile is shared.
    pub(super) fn consts(self, shape: Shape) -> [(&'static str, u32); 2] {
        [("WG", 4 * shape.lanes), ("F", self.fragments())]
    }

    /// Blocks in a step of what is summed over: more of them where there are fewer lines, so that as
    /// much is staged.
    pub(super) fn step(self) -> u32 {
        match self {
            Self::Small => 2,
            Self::Large => 1,
        }
    }
}

/// The variant on cooperative matrices where there are any, else the tiled one.
pub fn spec(caps: &Caps, dtype: DType, epilogue: Epilogue, tile: Tile) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "matmul",
        consts: vec![("EPILOGUE", epilogue as u32)],
        bindings: BINDINGS,
        params: LinearParams::LAYOUT,
        ..Default::default()
    };
    let Some(shape) = Shape::of(caps) else {
        spec.fills.push(quant::format(dtype).wgsl());
        return spec;
    };
    spec.name = "matmul_coop";
    spec.consts.extend(tile.consts(shape));
    spec.consts.push(("KS", tile.step()));
    spec.fills.extend(shape.fills(dtype));
    spec
}

/// Records one product; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    tile: Tile,
    params: &LinearParams,
    weight_bytes: u64,
) {
    let side = tile.side(commands.caps());
    let grid = [params.n.div_ceil(side), params.m.div_ceil(side), 1];
    op.record(commands, params, grid, weight_bytes);
}
