//! `y = x Wᵀ` for few rows of x, with the norm folded in and an epilogue: see
//! `shaders/matvec.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::lora::{Directory, Entry, Joined};
use super::reduction;
use crate::dtype::DType;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, Kernel, KernelSpec};

/// Bindings of `matvec`, `matvec_coop`, `matmul` and `matmul_coop`: `x [M, K]`, `gain [K]`,
/// `words`, `scales`, `y [M, y_stride]`.
pub const BINDINGS: &[Access] = &[Read, Read, Read, Read, Write];
/// Bindings of `matvec` with [`Lora::Shrink`]: A and `u [M, u_rows]` after the others.
pub const SHRINK_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Read, Write];
/// Bindings of `matvec` with [`Lora::Expand`]: B and `parts [M, parts, u_rows]` after the others.
pub const EXPAND_BINDINGS: &[Access] = &[Read, Read, Read, Read, Write, Read, Read];
/// The largest number of rows of x that count as few.
pub const MAX_COLS: u32 = 8;
/// Most rows of x that a pass over W serves: the sums of more take registers that a GPU needs to
/// have more workgroups under way.
pub const COLS: u32 = 4;

/// Mirror of `Params` in `shaders/shared/linear.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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
    /// With [`Epilogue::SwiGlu`]: rows of gate, after which come those of up.
    pub pair: u32,
    /// Of the folded norm.
    pub eps: f32,
    /// First row of W in this chunk, among those of the linear.
    pub row0: u32,
    /// With [`Lora`]: which group of linears this is.
    pub site: u32,
    /// With [`Lora`]: elements of a row of u.
    pub u_rows: u32,
    /// Workgroups of A, before the others; [`record`] sets it.
    pub lora_groups: u32,
    /// With [`Lora::Expand`]: parts that u comes in.
    pub parts: u32,
    /// Unused.
    pub pad: [u32; 3],
    /// With [`Lora`]: the rows' only adapter, see [`super::lora::Entry`].
    pub lora: Entry,
}

impl LinearParams {
    /// These for a pass over `rows` rows of x, and its workgroups: each sums `columns` rows of W or
    /// makes `elements` elements of u.
    pub(super) fn shared(
        self,
        epilogue: Epilogue,
        lora: Option<Lora>,
        rows: u32,
        [columns, elements]: [u32; 2],
    ) -> (Self, u32) {
        let shrinks = matches!(lora, Some(Lora::Shrink(_)));
        let lora_groups = if shrinks { (self.u_rows * rows).div_ceil(elements) } else { 0 };
        let groups = match epilogue {
            Epilogue::SwiGlu => self.pair.div_ceil(columns / 2),
            _ => self.n.div_ceil(columns),
        };
        (Self { lora_groups, ..self }, lora_groups + groups)
    }
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
    let (_, most) = reduction(caps);
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
    let (reduce, _) = reduction(caps);
    let Variant { tiling, cols, norm, epilogue, lora } = variant;
    debug_assert!(cols <= COLS, "columns are unrolled by hand");
    debug_assert!(
        !tiling.blocks || (tiling.lanes, tiling.split, tiling.unroll) == (1, 1, 1),
        "a lane has whole rows"
    );
    let mut source = Source {
        name: "matvec",
        consts: vec![
            ("WG", tiling.wg),
            ("L", tiling.lanes),
            ("SPLIT", tiling.split),
            ("UNROLL", tiling.unroll),
            ("GUARD", u32::from(tiling.guard)),
            ("COLS", cols),
            ("NORM", u32::from(norm)),
            ("EPILOGUE", epilogue as u32),
        ],
        imports: vec![reduce, "shared/linear"],
        quant: Some(dtype),
        ..Default::default()
    };
    match (tiling.blocks, caps.subgroup_size) {
        (false, _) => source.imports.push("matvec/quarters"),
        (true, None) => source.imports.extend(["matvec/blocks", "matvec/x_own"]),
        (true, Some(size)) => {
            source.consts.push(("SUBGROUP", size));
            source.imports.extend(["matvec/blocks", "matvec/x_shared"]);
        }
    }
    let bindings = join_lora(&mut source, lora);
    KernelSpec { source, bindings, params_bytes: size_of::<LinearParams>() as u32 }
}

/// Joins `source` with what it does for adapters, and gives the bindings it then has.
pub(super) fn join_lora(source: &mut Source, lora: Option<Lora>) -> &'static [Access] {
    let bound = BINDINGS.len() as u32;
    match lora {
        None => {
            source.imports.push("lora/matvec_none");
            BINDINGS
        }
        Some(Lora::Shrink(directory)) => {
            source.imports.extend(["lora/shrink_rows", "lora/matvec_shrink"]);
            Joined { directory, a: true, b: false, u: true, parts: false }.join(source, bound);
            SHRINK_BINDINGS
        }
        Some(Lora::Expand(directory)) => {
            source.imports.push("lora/matvec_expand");
            Joined { directory, a: false, b: true, u: false, parts: true }.join(source, bound);
            EXPAND_BINDINGS
        }
    }
}

/// Records one pass; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    (kernel, group): (&Kernel, &wgpu::BindGroup),
    variant: Variant,
    params: &LinearParams,
    weight_bytes: u64,
) {
    let Variant { tiling, cols, epilogue, lora, .. } = variant;
    let passes = params.m.div_ceil(cols);
    let lane_groups = tiling.wg / tiling.lanes;
    // A lane group for every element of u and row of x.
    let (params, groups) =
        params.shared(epilogue, lora, cols, [lane_groups / tiling.split * ROWS, lane_groups]);
    commands.dispatch(
        kernel,
        group,
        &params,
        [groups, passes, 1],
        weight_bytes * u64::from(passes),
    );
}
