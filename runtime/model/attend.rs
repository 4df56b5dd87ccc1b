//! From q, k and v of a layer to its attention: rotation, the cache, and the kernels for short and
//! long runs of rows.

use crate::error::Result;
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use crate::kernels::lora::{Directory, Entry};
use crate::kernels::matvec::MAX_COLS;
use crate::kernels::rope::{self, RopeParams};
use crate::model::activations::Activations;
use crate::model::site::Factors;

/// Consecutive positions of one sequence in a pass.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// First row.
    pub row0: u32,
    /// Rows.
    pub count: u32,
    /// Positions that its last row sees.
    pub positions: u32,
}

/// What touches the cache; in the adapted variant what is expanded and shrunk on the way.
pub(crate) struct CacheOps {
    rope: Op,
    attention: Op,
    attention_split: Op,
    attention_prefill: Op,
}

/// Sites and sizes of the LoRA around attention in this pass; zeros without.
#[derive(Clone, Copy, Default)]
pub(crate) struct Around {
    /// Of q, k and v.
    pub(crate) expanded: Site,
    /// Of o.
    pub(crate) shrunk: Site,
}

/// A site of a pass.
#[derive(Clone, Copy, Default)]
pub(crate) struct Site {
    pub(crate) number: u32,
    /// Elements of a row of its u.
    pub(crate) u_width: u32,
    /// Where all rows use the same adapter.
    pub(crate) alone: Entry,
}

/// What the adapted variant is bound to as well.
#[derive(Clone, Copy)]
pub(crate) struct Adapted<'a> {
    pub(crate) factors: Factors<'a>,
    pub(crate) u: &'a Tensor,
    /// Of u.
    pub(crate) parts: &'a Tensor,
}

/// What records attention: a layer's kernels, and what all layers share.
#[derive(Clone, Copy)]
pub(crate) struct Kernels<'a> {
    pub(crate) cache: &'a CacheOps,
    pub(crate) reduce: &'a Op,
}

impl CacheOps {
    /// Binds them to a layer's cache; with `adapted` rope expands and attention shrinks.
    pub(crate) fn new(
        gpu: &Gpu,
        heads: Heads,
        (keys, values): &(Tensor, Tensor),
        act: &Activations,
        adapted: Option<Adapted<'_>>,
    ) -> Result<Self> {
        let (rows, pages, qkv) = (&act.rows, &act.pages, &act.qkv);
        let directory = adapted.map(|adapted| adapted.factors.directory);
        let mut for_rope = vec![rows, pages, &act.rotations, qkv, keys, values];
        let whole = [rows, pages, qkv, keys, values, &act.attn];
        let split = [rows, pages, qkv, keys, values, &act.parts, &act.stats];
        let mut for_attention = whole.to_vec();
        if let Some(Adapted { factors: Factors { a, b, .. }, u, parts }) = adapted {
            for_rope.extend([b, u]);
            for_attention.extend([a, parts]);
        }
        let [rope, attention, attention_split, attention_prefill] =
            Self::specs(gpu.caps(), heads, directory);
        Ok(Self {
            rope: gpu.op(&rope, &for_rope)?,
            attention: gpu.op(&attention, &for_attention)?,
            attention_split: gpu.op(&attention_split, &split)?,
            attention_prefill: gpu.op(&attention_prefill, &whole)?,
        })
    }

    /// Its kernels, in the order of its fields.
    pub(crate) fn specs(caps: &Caps, heads: Heads, adapted: Option<Directory>) -> [KernelSpec; 4] {
        [
            rope::spec(heads.head_dim, heads.page_len, true, heads.kv_f16, adapted),
            attention::spec(caps, heads, adapted.map_or(Leaves::Whole, Leaves::WholeAndU)),
            attention::spec(caps, heads, Leaves::Split),
            attention::prefill_spec(heads),
        ]
    }
}

/// How a pass attends.
#[derive(Clone, Copy)]
pub(crate) struct Attend {
    pub(crate) heads: Heads,
    /// Rows that there is room for in parts.
    pub(crate) part_rows: u32,
    /// Length of a page table.
    pub(crate) max_pages: u32,
}

impl Attend {
    /// Records rotation, cache and attention; gives the parts in which u of what follows comes.
    pub(crate) fn record(
        &self,
        commands: &mut Commands<'_>,
        kernels: Kernels<'_>,
        rows: u32,
        runs: &[Run],
        around: Around,
    ) -> u32 {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let max_pages = self.max_pages;
        let Site { number: site, u_width, alone } = around.expanded;
        let params =
            RopeParams { heads, kv_heads, max_pages, site, u_width, alone, ..Default::default() };
        rope::record(commands, &kernels.cache.rope, head_dim, params, rows);
        let software = commands.caps().software;
        let tiled = |run: &Run| run.count > MAX_COLS && !software;
        for run in runs.iter().filter(|run| tiled(run)) {
            let (row0, count, scale) = (run.row0, run.count, self.scale());
            let params = PrefillParams { heads, kv_heads, max_pages, row0, count, scale };
            attention::record_prefill(
                commands,
                &kernels.cache.attention_prefill,
                &params,
                self.cache_bytes(run.positions),
            );
        }
        // The others row by row: neighbouring runs together.
        let (mut at, mut parts) = (0, kv_heads);
        while at < runs.len() {
            let next = runs[at..].iter().position(tiled).map_or(runs.len(), |n| at + n);
            if let group @ [_, ..] = &runs[at..next] {
                parts = self.row_by_row(commands, kernels, group, around.shrunk);
            }
            at = next.max(at + 1);
        }
        parts
    }

    /// As many rows at a time as there is room for their parts.
    fn row_by_row(
        &self,
        commands: &mut Commands<'_>,
        Kernels { cache: ops, reduce }: Kernels<'_>,
        group: &[Run],
        Site { number: site, u_width, alone }: Site,
    ) -> u32 {
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let (max_pages, scale) = (self.max_pages, self.scale());
        let positions = group.iter().map(|run| run.positions).max().unwrap_or(1);
        let splits = attention::splits(positions);
        let start = group.iter().map(|run| run.row0).min().unwrap_or(0);
        let end = group.iter().map(|run| run.row0 + run.count).max().unwrap_or(start);
        let step = (self.part_rows / splits).max(1);
        for row0 in (start..end).step_by(step as usize) {
            let count = step.min(end - row0);
            let params = AttentionParams {
                heads,
                kv_heads,
                max_pages,
                splits,
                scale,
                row0,
                site,
                u_width,
                alone,
            };
            let bytes = self.cache_bytes(positions) * u64::from(count);
            if splits == 1 {
                attention::record(commands, &ops.attention, &params, count, bytes);
            } else {
                attention::record(commands, &ops.attention_split, &params, count, bytes);
                let params = ReduceParams {
                    heads,
                    splits,
                    row0,
                    site,
                    u_width,
                    alone,
                    ..Default::default()
                };
                attention::record_reduce(commands, reduce, head_dim, &params, count);
            }
        }
        if splits == 1 { kv_heads } else { attention::reduce_parts(heads, head_dim) }
    }

    /// On the scores.
    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Of keys and values of so many positions in a layer.
    fn cache_bytes(&self, positions: u32) -> u64 {
        let element_bytes = if self.heads.kv_f16 { 2 } else { 4 };
        u64::from(2 * self.heads.kv_heads * self.heads.head_dim * element_bytes)
            * u64::from(positions)
    }
}
