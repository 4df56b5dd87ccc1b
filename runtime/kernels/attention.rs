//! Causal attention over the paged KV cache: see `shaders/attention.wgsl`, `attention_reduce.wgsl`,
//! `attention_prefill.wgsl`.

use super::lora::{Directory, Entry};
use super::matvec_coop::Shape;
use super::{kv, lanes, reduce};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

/// Positions that one workgroup of `attention` takes.
pub const CHUNK: u32 = 128;
const WG: u32 = 128;
/// Lanes of a workgroup of `attention_reduce` that join 4 columns each.
const REDUCE_COLUMNS: u32 = 64;
/// Lanes of one with adapters. Barriers of many lanes are slow in software.
const REDUCE_WG: u32 = 256;

/// The shape of the heads.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// H, query heads.
    pub heads: u32,
    /// G, key and value heads.
    pub kv_heads: u32,
    /// E.
    pub head_dim: u32,
    /// Positions in a page of the cache.
    pub page_len: u32,
    /// The cache is f16, else f32.
    pub kv_f16: bool,
}

params! {
    /// What a dispatch of `attention` says.
    pub struct AttentionParams {
        /// H.
        pub heads: u32,
        /// G.
        pub kv_heads: u32,
        /// Length of a page table.
        pub max_pages: u32,
        /// Parts that the positions are split into.
        pub splits: u32,
        /// On the scores: 1 / sqrt(E).
        pub scale: f32,
        /// First row.
        pub row0: u32,
        /// With adapters: the site of what follows.
        pub site: u32,
        /// With adapters: elements of a row of its u.
        pub u_width: u32,
        /// With adapters: the rows' only one there, see [`super::lora::Entry`].
        pub alone: Entry,
        /// Positions that a row sees, its own among them; 0 for all.
        pub window: u32,
        /// Unused.
        pub pad: [u32; 3],
    }
}

params! {
    /// What a dispatch of `attention_reduce` says.
    pub struct ReduceParams {
        /// H.
        pub heads: u32,
        /// Parts that the positions were split into.
        pub splits: u32,
        /// First row.
        pub row0: u32,
        /// With adapters: the site of what follows.
        pub site: u32,
        /// With adapters: elements of a row of its u.
        pub u_width: u32,
        /// As `attention`'s.
        pub window: u32,
        /// Unused.
        pub pad: [u32; 2],
        /// With adapters: the rows' only one there.
        pub alone: Entry,
    }
}

params! {
    /// What a dispatch of `attention_prefill` says.
    pub struct PrefillParams {
        /// H.
        pub heads: u32,
        /// G.
        pub kv_heads: u32,
        /// Length of a page table.
        pub max_pages: u32,
        /// First row.
        pub row0: u32,
        /// Rows.
        pub count: u32,
        /// On the scores: 1 / sqrt(E).
        pub scale: f32,
        /// As `attention`'s.
        pub window: u32,
    }
}

/// What `attention` leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// The result. Bindings: `rows`, `pages`, `qkv`, `keys`, `values`, `out`.
    Whole,
    /// As [`Leaves::Whole`], and the parts of the u of what follows: A and the parts are bound
    /// after the others.
    WholeAndU(Directory),
    /// Parts that `attention_reduce` joins. Bindings: as [`Leaves::Whole`] with the parts for
    /// `out`, then `stats`.
    Split,
}

/// The kernel that takes [`CHUNK`] positions.
pub fn spec(caps: &Caps, heads: Heads, leaves: Leaves) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "attention",
        consts: vec![
            ("WG", WG),
            ("L", lanes(caps)),
            ("E", heads.head_dim),
            ("GROUP", heads.heads / heads.kv_heads),
            ("PAGE", heads.page_len),
            ("CHUNK", CHUNK),
        ],
        fills: vec![reduce(caps), kv(heads.kv_f16)],
        params: AttentionParams::LAYOUT,
        ..Default::default()
    };
    match leaves {
        Leaves::Whole => {
            spec.fills.extend(["attention/whole", "lora/no_tile"]);
            spec.bindings = &[Read, Read, Read, Read, Read, Write];
        }
        Leaves::WholeAndU(directory) => {
            spec.fills.extend(["attention/whole", "lora/shrink_tile"]);
            spec.bindings = &[Read, Read, Read, Read, Read, Write, Read, Write];
            directory.bind(&mut spec, 6, &["LORA_A", "LORA_PARTS"]);
        }
        Leaves::Split => {
            spec.fills.extend(["attention/split", "lora/no_tile"]);
            spec.bindings = &[Read, Read, Read, Read, Read, Write, Write];
        }
    }
    spec
}

/// Bindings: `rows`, `parts`, `stats`, `out`; with `directory` then A and the parts of the u of what
/// follows.
pub fn reduce_spec(caps: &Caps, head_dim: u32, directory: Option<Directory>) -> KernelSpec {
    let wg = if directory.is_some() && !caps.software { REDUCE_WG } else { REDUCE_COLUMNS };
    let mut spec = KernelSpec {
        name: "attention_reduce",
        consts: vec![("WG", wg), ("COLUMNS", REDUCE_COLUMNS), ("E", head_dim), ("CHUNK", CHUNK)],
        params: ReduceParams::LAYOUT,
        ..Default::default()
    };
    match directory {
        None => {
            spec.fills.push("lora/no_tile");
            spec.bindings = &[Read, Read, Read, Write];
        }
        Some(directory) => {
            spec.consts.push(("L", lanes(caps)));
            spec.fills.extend([reduce(caps), "lora/shrink_tile"]);
            spec.bindings = &[Read, Read, Read, Write, Read, Write];
            directory.bind(&mut spec, 4, &["LORA_A", "LORA_PARTS"]);
        }
    }
    spec
}

/// Parts in which [`reduce_spec`]'s kernel leaves the u of what follows; [`spec`]'s leaves one a
/// key and value head.
pub fn reduce_parts(heads: u32, head_dim: u32) -> u32 {
    (heads * head_dim / 4).div_ceil(REDUCE_COLUMNS)
}

/// Bindings: `rows`, `pages`, `qkv`, `keys`, `values`, `out`. On cooperative matrices where there
/// are any that the heads fit.
pub fn prefill_spec(caps: &Caps, heads: Heads) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "attention_prefill",
        consts: vec![("E", heads.head_dim), ("PAGE", heads.page_len)],
        fills: vec![],
        bindings: &[Read, Read, Read, Read, Read, Write],
        params: PrefillParams::LAYOUT,
    };
    let Some(shape) = on_matrices(caps, heads) else {
        spec.fills.push(kv(heads.kv_f16));
        return spec;
    };
    spec.name = "attention_prefill_coop";
    spec.consts.extend([("WG", 4 * shape.lanes), ("LANES", shape.lanes)]);
    spec.fills.push(shape.fragments());
    spec
}

/// A subgroup keeps at most 8 fragments of the output, and pages of whole fragments fit workgroup
/// memory.
fn on_matrices(caps: &Caps, heads: Heads) -> Option<Shape> {
    let Heads { head_dim, page_len, kv_f16, .. } = heads;
    let fits = |shape: &Shape| {
        let whole = [head_dim, page_len].iter().all(|size| size.is_multiple_of(shape.side));
        whole && !shape.scalar && head_dim / shape.side <= 8 && page_len <= 32
    };
    Shape::of(caps).filter(|shape| kv_f16 && fits(shape))
}

/// Parts that `positions` are split into.
pub fn splits(positions: u32) -> u32 {
    positions.div_ceil(CHUNK)
}

/// Parts that the last `window` of `positions` (0: all) are split into.
pub fn window_splits(positions: u32, window: u32) -> u32 {
    match window {
        0 => splits(positions),
        _ => splits(positions).min(splits(window.saturating_add(CHUNK - 1))),
    }
}

/// Records `rows` rows; the longest sees `positions`.
pub fn record(
    commands: &mut Commands<'_>,
    op: &Op,
    params: &AttentionParams,
    rows: u32,
    read_bytes: u64,
) {
    op.record(commands, params, [params.kv_heads, params.splits, rows], read_bytes);
}

/// Records the joining of the parts of `rows` rows.
pub fn record_reduce(
    commands: &mut Commands<'_>,
    op: &Op,
    head_dim: u32,
    params: &ReduceParams,
    rows: u32,
) {
    op.record(commands, params, [reduce_parts(params.heads, head_dim), rows, 1], 0);
}

/// Records `params.count` consecutive positions of one sequence.
pub fn record_prefill(
    commands: &mut Commands<'_>,
    op: &Op,
    heads: Heads,
    params: &PrefillParams,
    read_bytes: u64,
) {
    let queries = on_matrices(commands.caps(), heads).map_or(32, |shape| 4 * shape.side);
    op.record(commands, params, [params.count.div_ceil(queries), params.heads, 1], read_bytes);
}
