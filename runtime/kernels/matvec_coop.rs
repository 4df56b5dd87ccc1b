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
    /// Where the device has cooperative matrices.
    pub fn of(caps: &Caps) -> Option<Self> {
        let (side, lanes) = caps.cooperative_matrix.zip(caps.subgroup_size)?;
        Some(Self { side, lanes, scalar: caps.scalar_fragments })
    }

    /// Every tiling that is chosen from: the more subgroups share columns, the fewer columns keep
    /// the device busy.
    pub fn tilings(self) -> [Tiling; 3] {
        let [few, most] = [4, 8].map(|subgroups| (MAX_WG / self.lanes).min(subgroups));
        [(few, 1, 4), (few, few, 2 * few), (most, most, 2 * most)]
            .map(|(subgroups, split, step)| Tiling { subgroups, split, step })
    }

    /// The tiling for `n` rows of W.
    pub fn tiling(self, n: u32) -> Tiling {
        let [wide, narrow, last] = self.tilings();
        let enough = |tiling: &Tiling| n.div_ceil(tiling.columns(self)) >= ENOUGH_WORKGROUPS;
        [wide, narrow].into_iter().find(enough).unwrap_or(last)
    }
}

/// The file of fragments of this side.
pub(super) fn fragments(side: u32) -> &'static str {
    if side == 8 { "shared/fragments_8" } else { "shared/fragments_16" }
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
            ("COLS", MAX_COLS),
            ("GUARD", u32::from(guard)),
            ("NORM", u32::from(norm)),
            ("EPILOGUE", epilogue.number()),
        ],
        fills: vec!["shared/reduce_subgroup", fragments(shape.side), activation(epilogue.gate())],
        params: LinearParams::LAYOUT,
        ..Default::default()
    };
    spec.fills.extend(quant::format(dtype).half_wgsl());
    spec.fills.push(if shape.scalar { "shared/quads_scalar" } else { "shared/quads" });
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
    let (params, groups) = params.shared(epilogue, lora, MAX_COLS, share);
    op.record(commands, &params, [groups, 1, 1], weight_bytes);
}
