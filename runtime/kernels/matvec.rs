//! `y = x Wᵀ` for few rows of x, with the norm folded in and an epilogue: see
//! `shaders/matvec.wgsl`.

use super::lora::{Directory, Entry};
use super::{activation, lanes, reduce};
use crate::base::layout::Activation;
use crate::dtype::DType;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};
use crate::quant;

/// Bindings of `matvec`, `matvec_coop`, `matmul` and `matmul_coop`: `x [M, K]`, `gain [K]`,
/// `words`, `scales`, `y [M, y_stride]`.
pub const BINDINGS: &[Access] = &[Read, Read, Read, Read, Write];
/// Bindings of `matvec` with [`Lora::Shrink`]: A and `u [M, u_width]` after the others.
pub const SHRINK_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Read, Write];
/// Bindings of `matvec` with [`Lora::Expand`]: B and `parts [M, parts, u_width]` after the others.
pub const EXPAND_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Read, Read];
/// The largest number of rows of x that count as few.
pub const MAX_COLS: u32 = 8;
/// Most rows of x that a pass over W serves: the sums of more take registers that a GPU needs to
/// have more workgroups under way.
pub const COLS: u32 = 4;

params! {
    /// What a dispatch of `shared/linear` says.
    pub struct LinearParams {
        /// Rows of x.
        pub m: u32,
        /// Rows of W in this chunk.
        pub n: u32,
        /// Blocks of 32 in a row of W.
        pub k_blocks: u32,
        /// First row of x.
        pub x_row: u32,
        /// Elements from one row of y to the next.
        pub y_stride: u32,
        /// First column of y.
        pub y_offset: u32,
        /// With a gate: rows of gate, after which come those of up.
        pub pair: u32,
        /// Of the folded norm.
        pub eps: f32,
        /// First row of W in this chunk, among those of the linear.
        pub row0: u32,
        /// With [`Lora`]: which group of linears this is.
        pub site: u32,
        /// With [`Lora`]: elements of a row of u.
        pub u_width: u32,
        /// Workgroups of A, before the others; [`record`] sets it.
        pub lora_groups: u32,
        /// With [`Lora::Expand`]: parts that u comes in.
        pub parts: u32,
        /// Unused.
        pub pad: [u32; 3],
        /// With [`Lora`]: the rows' only adapter, see [`super::lora::Entry`].
        pub alone: Entry,
    }
}

impl LinearParams {
    /// These for a pass over `rows` rows of x, and its workgroups, each with its `share`.
    pub(super) fn shared(
        self,
        epilogue: Epilogue,
        lora: Option<Lora>,
        rows: u32,
        share: Share,
    ) -> (Self, u32) {
        let shrinks = matches!(lora, Some(Lora::Shrink(_)));
        let lora_groups = if shrinks { (self.u_width * rows).div_ceil(share.elements) } else { 0 };
        let groups = match epilogue {
            _ if epilogue.is_gated() => self.pair.div_ceil(share.columns / 2),
            _ => self.n.div_ceil(share.columns),
        };
        (Self { lora_groups, ..self }, lora_groups + groups)
    }
}

/// What one workgroup does.
pub(super) struct Share {
    /// Rows of W that it sums.
    pub(super) columns: u32,
    /// Or elements of u that it makes.
    pub(super) elements: u32,
}

/// What else the kernel does where rows have adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lora {
    /// `u = A x` rides along; A and u follow the other bindings.
    Shrink(Directory),
    /// `B u` is added; B and the parts of u follow the other bindings.
    Expand(Directory),
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `y = .`
    Store = 0,
    /// `y += .`: the residual.
    Add = 1,
    /// `y = silu(gate) * up`.
    SwiGlu = 2,
    /// `y = gelu(gate) * up`.
    GeGlu = 3,
}

impl Epilogue {
    /// Of a gate.
    pub fn of(gate: Activation) -> Self {
        match gate {
            Activation::Silu => Self::SwiGlu,
            Activation::GeluTanh => Self::GeGlu,
        }
    }

    /// What gate goes through; anything where there is none.
    pub(super) fn gate(self) -> Activation {
        if self == Self::GeGlu { Activation::GeluTanh } else { Activation::Silu }
    }

    /// Rows are pairs of gate and up.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::GeGlu)
    }

    /// Its number in the shaders.
    pub(super) fn number(self) -> u32 {
        if self.is_gated() { 2 } else { self as u32 }
    }
}

impl Lora {
    /// Bindings of the kernel.
    pub fn bindings(self) -> &'static [Access] {
        match self {
            Self::Shrink(_) => SHRINK_BINDINGS,
            Self::Expand(_) => EXPAND_BINDINGS,
        }
    }
}

/// How lanes share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Lanes in a workgroup.
    pub wg: u32,
    /// Lanes of a team; a power of two.
    pub lanes: u32,
    /// Teams that share [`ROWS`] rows of W, at most [`MAX_SPLIT`]; a power of two.
    pub split: u32,
    /// Quarters of a block that a lane has under way: 1, 2 or 4; 1 with `blocks`.
    pub unroll: u32,
    /// The lanes' steps may reach past the end of a row.
    pub guard: bool,
    /// A lane takes whole blocks, and serves all rows of x with them.
    pub blocks: bool,
}

impl Tiling {
    /// For several rows of x with adapters: one load under way at a time, since registers decide
    /// how many workgroups fit.
    #[must_use]
    pub fn beside_adapters(self, caps: &Caps) -> Self {
        if caps.software { self } else { Self { unroll: 1, guard: true, ..self } }
    }
}

/// Rows of W a lane sums.
pub const ROWS: u32 = 4;

/// The most teams that share rows.
pub const MAX_SPLIT: u32 = 4;
/// Subgroups that keep a large GPU busy.
const ENOUGH_SUBGROUPS: u32 = 2048;

/// The tiling for `rows` rows of W, of `k_blocks` each.
pub fn tiling(caps: &Caps, rows: u32, k_blocks: u32) -> Tiling {
    if caps.software {
        return SOFTWARE;
    }
    let most = lanes(caps);
    // As many lanes as stay busy at least three quarters of the time.
    let quarters = 4 * k_blocks;
    let steps = |lanes: u32| quarters.div_ceil(lanes);
    let mut lanes = most;
    while lanes > 4 && f64::from(quarters) < 0.74 * f64::from(steps(lanes) * lanes) {
        lanes /= 2;
    }
    // Few rows: more teams, as long as each lane has two steps.
    let subgroups = |split: u32| rows.div_ceil(ROWS) * lanes * split / most;
    let mut split = 1;
    while split < MAX_SPLIT && subgroups(split) < ENOUGH_SUBGROUPS && quarters >= 4 * lanes * split
    {
        split *= 2;
    }
    let unroll = match steps(lanes * split) {
        8.. => 4,
        4.. => 2,
        _ => 1,
    };
    let guard = !quarters.is_multiple_of(lanes * split * unroll) && (unroll > 1 || split > 1);
    // A workgroup of the fewest subgroups: rows and addresses are then the same for all lanes, and
    // the driver knows it.
    Tiling { wg: most.max(lanes * split), lanes, split, unroll, guard, blocks: false }
}

/// Rows of x that one pass over the weights serves when there are `rows`, a power of two of at most
/// [`COLS`].
pub fn cols(rows: u32) -> u32 {
    rows.next_power_of_two().min(COLS)
}

/// On a software GPU: a lane has rows to itself.
pub const SOFTWARE: Tiling =
    Tiling { wg: 32, lanes: 1, split: 1, unroll: 1, guard: false, blocks: true };

/// What a kernel is compiled for, beside the format.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// How lanes share the work.
    pub tiling: Tiling,
    /// Rows of x that a pass over the weights serves.
    pub cols: u32,
    /// x is RMS-normalised on the way.
    pub norm: bool,
    /// What happens to the sums.
    pub epilogue: Epilogue,
    /// What else is done where rows have adapters.
    pub lora: Option<Lora>,
}

/// The kernel for `variant`. Bindings: [`BINDINGS`], [`SHRINK_BINDINGS`] or [`EXPAND_BINDINGS`].
pub fn spec(caps: &Caps, dtype: DType, variant: Variant) -> KernelSpec {
    let Variant { tiling, cols, norm, epilogue, lora } = variant;
    debug_assert!(cols <= COLS, "columns are unrolled by hand");
    debug_assert!(
        !tiling.blocks || (tiling.lanes, tiling.split, tiling.unroll) == (1, 1, 1),
        "a lane has whole rows"
    );
    let mut spec = KernelSpec {
        name: "matvec",
        consts: vec![
            ("WG", tiling.wg),
            ("L", tiling.lanes),
            ("SPLIT", tiling.split),
            ("UNROLL", tiling.unroll),
            ("COLS", cols),
            ("NORM", u32::from(norm)),
            ("EPILOGUE", epilogue.number()),
        ],
        fills: vec![reduce(caps), quant::format(dtype).wgsl(), activation(epilogue.gate())],
        params: LinearParams::LAYOUT,
        ..Default::default()
    };
    match (tiling.blocks, caps.subgroup_size) {
        (false, _) => {
            spec.consts.push(("GUARD", u32::from(tiling.guard)));
            spec.fills.push("matvec/quarters");
        }
        (true, None) => spec.fills.extend(["matvec/blocks", "matvec/x_own"]),
        (true, Some(size)) => {
            spec.consts.push(("SUBGROUP", size));
            spec.fills.extend(["matvec/blocks", "matvec/x_shared"]);
        }
    }
    join_lora(&mut spec, lora);
    spec
}

/// Says what the kernel does for adapters, and the bindings that it then has.
pub(super) fn join_lora(spec: &mut KernelSpec, lora: Option<Lora>) {
    let bound = BINDINGS.len() as u32;
    spec.bindings = lora.map_or(BINDINGS, Lora::bindings);
    match lora {
        None => spec.fills.push("lora/matvec_none"),
        Some(Lora::Shrink(directory)) => {
            spec.fills.push("lora/matvec_shrink");
            directory.bind(spec, bound, &["LORA_A", "LORA_U"]);
        }
        Some(Lora::Expand(directory)) => {
            spec.fills.push("lora/matvec_expand");
            directory.bind(spec, bound, &["LORA_B", "LORA_PARTS"]);
        }
    }
}

/// Records one pass; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    variant: Variant,
    params: &LinearParams,
    weight_bytes: u64,
) {
    let Variant { tiling, cols, epilogue, lora, .. } = variant;
    let passes = params.m.div_ceil(cols);
    let lane_groups = tiling.wg / tiling.lanes;
    // A lane group for every element of u and row of x.
    let share = Share { columns: lane_groups / tiling.split * ROWS, elements: lane_groups };
    let (params, groups) = params.shared(epilogue, lora, cols, share);
    op.record(commands, &params, [groups, passes, 1], weight_bytes * u64::from(passes));
}
