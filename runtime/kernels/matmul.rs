//! `y = x Wᵀ` for many rows of x: see `shaders/matmul.wgsl` and `shaders/matmul_coop.wgsl`.

use super::ENOUGH_GROUPS;
use super::matvec::{BINDINGS, Epilogue, LinearParams};
use crate::dtype::DType;
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, Kernel, KernelSpec};

/// How much of y a workgroup makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 x 64 elements, or 4 x 4 fragments of cooperative matrices.
    Small,
    /// 8 x 8 fragments.
    Large,
}

impl Tile {
    /// Every tile that a device may choose.
    pub fn all(caps: &Caps) -> &'static [Self] {
        if caps.cooperative_matrix.is_some() { &[Self::Small, Self::Large] } else { &[Self::Small] }
    }

    /// The largest tile of which `y [m, n]` is enough.
    pub fn choose(caps: &Caps, m: u32, n: u32) -> Self {
        let groups = |tile: &Self| m.div_ceil(tile.side(caps)) * n.div_ceil(tile.side(caps));
        let large = Self::all(caps).iter().rev().find(|tile| groups(tile) >= ENOUGH_GROUPS);
        large.copied().unwrap_or(Self::Small)
    }

    /// Rows and columns of y.
    fn side(self, caps: &Caps) -> u32 {
        caps.cooperative_matrix.map_or(64, |side| 2 * self.fragments() * side)
    }

    /// Of a subgroup, down and across; 2 x 2 subgroups share a tile.
    fn fragments(self) -> u32 {
        match self {
            Self::Small => 2,
            Self::Large => 4,
        }
    }

    /// Blocks of K in a step: more of them where there are fewer lines, so that as much is staged.
    fn step(self) -> u32 {
        match self {
            Self::Small => 2,
            Self::Large => 1,
        }
    }
}

/// The variant on cooperative matrices where there are any, else the tiled one.
pub fn spec(caps: &Caps, dtype: DType, epilogue: Epilogue, tile: Tile) -> KernelSpec {
    let source = match caps.cooperative_matrix.zip(caps.subgroup_size) {
        Some((side, subgroup)) => cooperative(side, subgroup, (dtype, epilogue, tile)),
        None => Source {
            name: "matmul",
            consts: vec![("EPILOGUE", epilogue as u32)],
            imports: vec!["shared/linear"],
            quant: Some(dtype),
            ..Default::default()
        },
    };
    KernelSpec { source, bindings: BINDINGS, params_bytes: size_of::<LinearParams>() as u32 }
}

/// The types of fragments of f16 factors and f32 sums.
pub(super) fn fragments(side: u32) -> Vec<(&'static str, String)> {
    let ty = |scalar: &str, role: &str| format!("coop_mat{side}x{side}<{scalar}, {role}>");
    vec![("coop_a", ty("f16", "A")), ("coop_b", ty("f16", "B")), ("coop_c", ty("f32", "C"))]
}

fn cooperative(
    side: u32,
    subgroup: u32,
    (dtype, epilogue, tile): (DType, Epilogue, Tile),
) -> Source {
    Source {
        name: "matmul_coop",
        consts: vec![
            ("WG", 4 * subgroup),
            ("S", side),
            ("F", tile.fragments()),
            ("KS", tile.step()),
            ("EPILOGUE", epilogue as u32),
        ],
        aliases: fragments(side),
        imports: vec!["shared/linear"],
        quant: Some(dtype),
        f16: true,
        cooperative_matrix: true,
    }
}

/// Records one product; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    (caps, tile): (&Caps, Tile),
    (kernel, group): (&Kernel, &wgpu::BindGroup),
    params: &LinearParams,
    weight_bytes: u64,
) {
    let side = tile.side(caps);
    let grid = [params.n.div_ceil(side), params.m.div_ceil(side), 1];
    commands.dispatch(kernel, group, params, grid, weight_bytes);
}
