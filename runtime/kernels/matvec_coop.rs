//! `y = x Wᵀ` for few rows of x on cooperative matrices: see `shaders/matvec_coop.wgsl`.

use super::activation;
use super::matvec::{Epilogue, LinearParams, Lora, MAX_COLS, Share, join_lora};
use crate::dtype::DType;
use crate::gpu::{Caps, Commands, KernelSpec, Op};
use crate::quant;

/// Lanes of a workgroup at most: WebGPU's default limit.
const MAX_WG: u32 = 256;
/// Lanes that add an adapter to four elements.
const EXPANDING: u32 = 8;
/// Workgroups that keep a large GPU busy.
const ENOUGH_WORKGROUPS: u32 = 192;
/// Rows of x that a pass over W may serve.
const COLS: [u32; 3] = [MAX_COLS, 16, 32];
/// The most rows of x that come here; more are [`super::matmul`]'s.
pub const MAX_ROWS: u32 = 64;

/// How a device's subgroups make fragments.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of a fragment.
    pub side: u32,
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// Fragments are loaded from scalars, else from vectors.
    pub scalar: bool,
}

/// How subgroups share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Rows of x that a pass over W serves: 8, 16 or 32.
    pub cols: u32,
    /// Subgroups of a workgroup: 2, 4 or 8.
    pub subgroups: u32,
    /// Those that share columns of y, each with its part of K: 1, or a power of two up to all of
    /// them.
    pub split: u32,
    /// Blocks of K in a step, at least two for each of `split`; a power of two.
    pub step: u32,
}

/// What a kernel is compiled for, beside the format.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// How the device makes fragments.
    pub shape: Shape,
    /// How subgroups share the work.
    pub tiling: Tiling,
    /// K is no multiple of a step.
    pub guard: bool,
    /// x is RMS-normalised on the way.
    pub norm: bool,
    /// What happens to the sums.
    pub epilogue: Epilogue,
    /// What else is done where rows have adapters.
    pub lora: Option<Lora>,
}

impl Shape {
    /// The most [`Shape::tilings`].
    pub const TILINGS: usize = 3 * COLS.len();

    /// Where the device has cooperative matrices.
    pub fn of(caps: &Caps) -> Option<Self> {
        let (side, lanes) = caps.cooperative_matrix.zip(caps.subgroup_size)?;
        Some(Self { side, lanes, scalar: caps.scalar_fragments })
    }

    /// The files of fragments, and of how weights get there.
    pub(super) fn fills(self, dtype: DType) -> impl Iterator<Item = &'static str> {
        let quads = if self.scalar { "shared/quads_scalar" } else { "shared/quads" };
        quant::format(dtype).half_wgsl().into_iter().chain([self.fragments(), quads])
    }

    /// The file of fragments.
    pub(super) fn fragments(self) -> &'static str {
        if self.side == 8 { "shared/fragments_8" } else { "shared/fragments_16" }
    }

    /// Every tiling that is chosen from for passes of `cols` rows of x: the more subgroups share
    /// columns, the fewer columns keep the device busy. Tiles take at most 32 KiB.
    fn tilings_of(self, cols: u32) -> [Tiling; 3] {
        let [few, most] = [4, 8].map(|subgroups| (MAX_WG / self.lanes).min(subgroups));
        let shares = match cols {
            MAX_COLS => [(few, 1, 4), (few, few, 2 * few), (most, most, 2 * most)],
            // A workgroup stages all of x: the fewer columns it makes, the more often that is done.
            _ => [(few, 1, 2), (few, 2, 4), (few, few, 2 * few)],
        };
        shares.map(|(subgroups, split, step)| Tiling { cols, subgroups, split, step })
    }

    /// Every tiling that is chosen from.
    pub fn tilings(self) -> impl Iterator<Item = Tiling> {
        self.cols().flat_map(move |cols| self.tilings_of(cols))
    }

    /// A lane stages one row of x at most.
    fn cols(self) -> impl Iterator<Item = u32> {
        let lanes = self.lanes * (MAX_WG / self.lanes).min(4);
        COLS.into_iter().filter(move |cols| *cols <= lanes)
    }

    /// The tiling for `m` rows of x and `n` of W.
    pub fn tiling(self, m: u32, n: u32) -> Tiling {
        let cols = self.cols().find(|cols| *cols >= m).or(self.cols().last()).unwrap_or(MAX_COLS);
        let [wide, narrow, last] = self.tilings_of(cols);
        // Of many rows, staging takes longer than more workgroups gain.
        let least = if cols > 16 { ENOUGH_WORKGROUPS * 2 / 3 } else { ENOUGH_WORKGROUPS };
        let groups = |tiling: Tiling| tiling.workgroups(self, m, n);
        if groups(wide) >= ENOUGH_WORKGROUPS {
            wide
        } else if groups(narrow) >= least {
            narrow
        } else {
            last
        }
    }
}

impl Tiling {
    /// [`Variant::guard`] for rows of `k_blocks`.
    pub fn guard(self, k_blocks: u32) -> bool {
        !k_blocks.is_multiple_of(self.step)
    }

    /// Rows of W that a workgroup multiplies with.
    fn columns(self, shape: Shape) -> u32 {
        self.subgroups / self.split * shape.side
    }

    fn workgroups(self, shape: Shape, m: u32, n: u32) -> u32 {
        n.div_ceil(self.columns(shape)) * m.div_ceil(self.cols)
    }
}

impl Variant {
    /// Lanes that work together on an adapter.
    fn lora_lanes(&self) -> u32 {
        let lanes = self.shape.lanes;
        if matches!(self.lora, Some(Lora::Shrink(_))) { lanes } else { lanes.min(EXPANDING) }
    }
}

/// The kernel for `variant`. Bindings as those of [`super::matvec`].
pub fn spec(dtype: DType, variant: Variant) -> KernelSpec {
    let Variant { shape, tiling, guard, norm, epilogue, lora } = variant;
    let expands = matches!(lora, Some(Lora::Expand(_)));
    let mut spec = KernelSpec {
        name: "matvec_coop",
        consts: vec![
            ("WG", shape.lanes * tiling.subgroups),
            ("SUBGROUPS", tiling.subgroups),
            ("L", variant.lora_lanes()),
            ("SPLIT", tiling.split),
            ("STEP", tiling.step),
            ("COLS", tiling.cols),
            ("GUARD", u32::from(guard)),
            ("NORM", u32::from(norm)),
            ("EPILOGUE", epilogue.number()),
        ],
        fills: vec!["shared/reduce_subgroup", activation(epilogue.gate())],
        params: LinearParams::LAYOUT,
        ..Default::default()
    };
    spec.fills.extend(shape.fills(dtype));
    spec.fills.push(if expands { "lora/coop_expand" } else { "lora/coop_none" });
    join_lora(&mut spec, lora);
    spec
}

/// Records one product; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    variant: Variant,
    params: &LinearParams,
    weight_bytes: u64,
) {
    let Variant { shape, tiling, epilogue, lora, .. } = variant;
    // A subgroup for every element of u and row of x.
    let share = Share { columns: tiling.columns(shape), elements: tiling.subgroups };
    let (params, groups) = params.shared(epilogue, lora, tiling.cols, share);
    let passes = params.m.div_ceil(tiling.cols);
    debug_assert!(passes == 1 || lora.is_none(), "adapters are added to one pass's rows");
    op.record(commands, &params, [groups * passes, 1, 1], weight_bytes * u64::from(passes));
}
