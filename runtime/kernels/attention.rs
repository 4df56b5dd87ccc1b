//! Causal attention over the paged KV cache: see `shaders/attention.wgsl`, `attention_reduce.wgsl`, `attention_prefill.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::{kv_type, reduction};
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, KernelSpec, Op};

/// Positions that one workgroup of `attention` takes.
pub const CHUNK: u32 = 128;
const WG: u32 = 128;

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
    /// Unused.
    pub pad: [u32; 2],
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
    /// Unused.
    pub pad: u32,
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

/// Bindings: `rows`, `pages`, `qkv`, `keys`, `values`, `out` (or the parts, with `split`), `stats`.
pub fn spec(caps: &Caps, heads: Heads, split: bool) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    KernelSpec {
        source: Source {
            name: "attention",
            consts: vec![
                ("WG", WG),
                ("L", lanes),
                ("E", heads.head_dim),
                ("GROUP", heads.heads / heads.kv_heads),
                ("PAGE", heads.page_len),
                ("CHUNK", CHUNK),
                ("SPLIT", u32::from(split)),
            ],
            aliases: vec![("kv", kv_type(heads.kv_f16))],
            imports: vec![reduce],
            f16: heads.kv_f16,
            ..Default::default()
        },
        bindings: &[Read, Read, Read, Read, Read, Write, Write],
        params_bytes: size_of::<AttentionParams>() as u32,
    }
}

/// Bindings: `rows`, `parts`, `stats`, `out`.
pub fn reduce_spec(head_dim: u32) -> KernelSpec {
    KernelSpec {
        source: Source {
            name: "attention_reduce",
            consts: vec![("E", head_dim), ("CHUNK", CHUNK)],
            ..Default::default()
        },
        bindings: &[Read, Read, Read, Write],
        params_bytes: size_of::<ReduceParams>() as u32,
    }
}

/// Bindings: `rows`, `pages`, `qkv`, `keys`, `values`, `out`.
pub fn prefill_spec(heads: Heads) -> KernelSpec {
    KernelSpec {
        source: Source {
            name: "attention_prefill",
            consts: vec![("E", heads.head_dim), ("PAGE", heads.page_len), ("ACC", heads.head_dim / 16)],
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
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &AttentionParams, rows: u32, read_bytes: u64) {
    op.record(commands, params, [params.kv_heads, params.splits, rows], read_bytes);
}

/// Records the joining of the parts of `rows` rows.
pub fn record_reduce(commands: &mut Commands<'_>, op: &Op, head_dim: u32, params: &ReduceParams, rows: u32) {
    op.record(commands, params, [(params.heads * head_dim / 4).div_ceil(64), rows, 1], 0);
}

/// Records `params.count` consecutive positions of one sequence.
pub fn record_prefill(commands: &mut Commands<'_>, op: &Op, params: &PrefillParams, read_bytes: u64) {
    op.record(commands, params, [params.count.div_ceil(32), params.heads, 1], read_bytes);
}
