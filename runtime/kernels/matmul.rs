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
    /// 8 x 4 fragments.
    Slim,
    /// 8 x 8 fragments.
    Large,
    /// 4 x 16 fragments.
    Broad,
}

/// How four subgroups share a tile.
struct Shares {
    down: u32,
    across: u32,
    /// Of a subgroup, down and across.
    fragments: [u32; 2],
    /// Blocks of K in a step, fewer where there are more lines.
    step: u32,
}

impl Tile {
    /// Of every size.
    pub const ALL: [Self; 4] = [Self::Small, Self::Slim, Self::Large, Self::Broad];

    /// Every tile that a device may choose.
    pub fn all(caps: &Caps) -> &'static [Self] {
        if caps.cooperative_matrix.is_some() { &Self::ALL } else { &Self::ALL[..1] }
    }

    /// The largest tile of which `y [m, n]` is enough.
    pub fn choose(caps: &Caps, m: u32, n: u32) -> Self {
        let groups = |tile: &Self| {
            let [down, across] = tile.sides(caps);
            m.div_ceil(down) * n.div_ceil(across)
        };
        let large = Self::all(caps).iter().rev().find(|tile| groups(tile) >= ENOUGH_GROUPS);
        large.copied().unwrap_or(Self::Small)
    }

    fn shares(self) -> Shares {
        let (down, across, fragments, step) = match self {
            Self::Small => (2, 2, [2, 2], 2),
            Self::Slim => (2, 2, [4, 2], 1),
            Self::Large => (2, 2, [4, 4], 1),
            Self::Broad => (1, 4, [4, 4], 1),
        };
        Shares { down, across, fragments, step }
    }

    /// Rows and columns of what it makes.
    pub(super) fn sides(self, caps: &Caps) -> [u32; 2] {
        let Shares { down, across, fragments: [f, g], .. } = self.shares();
        caps.cooperative_matrix.map_or([64, 64], |side| [down * f * side, across * g * side])
    }

    /// Says to a kernel on cooperative matrices how the tile is shared, in steps of so many blocks.
    pub(super) fn consts(self, shape: Shape) -> [(&'static str, u32); 5] {
        let Shares { down, across, fragments: [f, g], .. } = self.shares();
        [("WG", 4 * shape.lanes), ("DOWN", down), ("ACROSS", across), ("F", f), ("G", g)]
    }

    /// Blocks in a step of what is summed over.
    pub(super) fn step(self) -> u32 {
        self.shares().step
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
    let [down, across] = tile.sides(commands.caps());
    let grid = [params.n.div_ceil(across), params.m.div_ceil(down), 1];
    op.record(commands, params, grid, weight_bytes);
}
