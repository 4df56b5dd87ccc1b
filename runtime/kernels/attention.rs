//! Causal attention over the paged KV cache: see `shaders/attention.wgsl`, `attention_reduce.wgsl`,
//! `attention_prefill.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::lora::{Directory, Entry, Joined};
use super::{kv_type, reduction};
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::shader::Source;
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

/// Mirror of `Params` in `attention.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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
    pub u_rows: u32,
    /// With adapters: the rows' only one there, see [`super::lora::Entry`].
    pub lora: Entry,
}

/// Mirror of `Params` in `attention_reduce.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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
    pub u_rows: u32,
    /// Unused.
    pub pad: [u32; 3],
    /// With adapters: the rows' only one there.
    pub lora: Entry,
}

/// Mirror of `Params` in `attention_prefill.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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
    /// Unused.
    pub pad: [u32; 2],
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
    let (reduce, lanes) = reduction(caps);
    let group = heads.heads / heads.kv_heads;
    let mut source = Source {
        name: "attention",
        consts: vec![
            ("WG", WG),
            ("L", lanes),
            ("E", heads.head_dim),
            ("GROUP", group),
            ("PAGE", heads.page_len),
            ("CHUNK", CHUNK),
            ("SPLIT", u32::from(leaves == Leaves::Split)),
            ("TILE", group * heads.head_dim),
        ],
        aliases: vec![("kv", kv_type(heads.kv_f16))],
        imports: vec![reduce],
        f16: heads.kv_f16,
        ..Default::default()
    };
    let bindings: &[Access] = match leaves {
        Leaves::Whole => {
            source.imports.extend(["attention/whole", "lora/no_tile"]);
            &[Read, Read, Read, Read, Read, Write]
        }
        Leaves::WholeAndU(directory) => {
            source.imports.extend(["attention/whole", "lora/shrink_tile"]);
            Joined { directory, a: true, b: false, u: false, parts: true }.join(&mut source, 6);
            &[Read, Read, Read, Read, Read, Write, Read, Write]
        }
        Leaves::Split => {
            source.imports.extend(["attention/split", "lora/no_tile"]);
            &[Read, Read, Read, Read, Read, Write, Write]
        }
    };
    KernelSpec { source, bindings, params_bytes: size_of::<AttentionParams>() as u32 }
}

/// Bindings: `rows`, `parts`, `stats`, `out`; with `lora` then A and the parts of the u of what
/// follows.
pub fn reduce_spec(caps: &Caps, head_dim: u32, lora: Option<Directory>) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    let wg = if lora.is_some() && !caps.software { REDUCE_WG } else { REDUCE_COLUMNS };
    let (columns, tile) = (("COLUMNS", REDUCE_COLUMNS), ("TILE", 4 * REDUCE_COLUMNS));
    let consts = vec![("WG", wg), columns, ("L", lanes), tile, ("E", head_dim), ("CHUNK", CHUNK)];
    let mut source = Source { name: "attention_reduce", consts, ..Default::default() };
    let all: &[Access] = &[Read, Read, Read, Write, Read, Write];
    let bindings = match lora {
        None => {
            source.imports.push("lora/no_tile");
            &all[..4]
        }
        Some(directory) => {
            source.imports.extend([reduce, "lora/shrink_tile"]);
            Joined { directory, a: true, b: false, u: false, parts: true }.join(&mut source, 4);
            all
        }
    };
    KernelSpec { source, bindings, params_bytes: size_of::<ReduceParams>() as u32 }
}

/// Parts in which [`reduce_spec`]'s kernel leaves the u of what follows; [`spec`]'s leaves one a
/// key and value head.
pub fn reduce_parts(heads: u32, head_dim: u32) -> u32 {
    (heads * head_dim / 4).div_ceil(REDUCE_COLUMNS)
}

/// Bindings: `rows`, `pages`, `qkv`, `keys`, `values`, `out`.
pub fn prefill_spec(heads: Heads) -> KernelSpec {
    KernelSpec {
        source: Source {
            name: "attention_prefill",
            consts: vec![
                ("E", heads.head_dim),
                ("PAGE", heads.page_len),
                ("ACC", heads.head_dim / 16),
            ],
            aliases: vec![("kv", kv_type(heads.kv_f16))],
            f16: heads.kv_f16,
            ..Default::default()
        },
        bindings: &[Read, Read, Read, Read, Read, Write],
        params_bytes: size_of::<PrefillParams>() as u32,
    }
}

/// Parts that `positions` are split into.
pub fn splits(positions: u32) -> u32 {
    positions.div_ceil(CHUNK)
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
    params: &PrefillParams,
    read_bytes: u64,
) {
    op.record(commands, params, [params.count.div_ceil(32), params.heads, 1], read_bytes);
}
