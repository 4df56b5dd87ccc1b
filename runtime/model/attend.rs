//! From q, k and v of a layer to its attention: rotation, the cache, and the kernels for short and
//! long runs of rows.

use crate::base::ModelConfig;
use crate::base::layout::{Family, LayerAttention};
use crate::error::Result;
use crate::gpu::{Caps, Commands, Gpu, KernelSpec, Op, Tensor};
use crate::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use crate::kernels::lora::{Directory, Entry};
use crate::kernels::matvec::MAX_COLS;
use crate::kernels::rope::{self, HeadInput, RopeParams};
use crate::model::activations::{Activations, Limits};
use crate::model::pages::PAGE_LEN;
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
    layer: LayerAttention,
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

/// A layer's part of what attention is bound to.
#[derive(Clone, Copy)]
pub(crate) struct OfLayer<'a> {
    pub(crate) attention: LayerAttention,
    pub(crate) cache: &'a (Tensor, Tensor),
    /// What lies beside q, k and v, if anything.
    pub(crate) beside: Option<&'a Tensor>,
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
        attend: &Attend,
        OfLayer { attention: layer, cache: (keys, values), beside }: OfLayer<'_>,
        act: &Activations,
        adapted: Option<Adapted<'_>>,
    ) -> Result<Self> {
        let (rows, qkv) = (&act.rows, &act.qkv);
        let pages = act.window_pages.as_ref().filter(|_| layer.window.is_some());
        let pages = pages.unwrap_or(&act.pages);
        let directory = adapted.map(|adapted| adapted.factors.directory);
        let mut for_rope = vec![rows, pages, &act.rotations[layer.rotary], qkv, keys, values];
        for_rope.extend(beside);
        let whole = [rows, pages, qkv, keys, values, &act.attn];
        let split = [rows, pages, qkv, keys, values, &act.parts, &act.stats];
        let mut for_attention = whole.to_vec();
        if let Some(Adapted { factors: Factors { a, b, .. }, u, parts }) = adapted {
            // Else it has been added before.
            if attend.input.is_plain() {
                for_rope.extend([b, u]);
            }
            for_attention.extend([a, parts]);
        }
        let [rope, attention, attention_split, attention_prefill] =
            Self::specs(gpu.caps(), attend, directory);
        Ok(Self {
            layer,
            rope: gpu.op(&rope, &for_rope)?,
            attention: gpu.op(&attention, &for_attention)?,
            attention_split: gpu.op(&attention_split, &split)?,
            attention_prefill: gpu.op(&attention_prefill, &whole)?,
        })
    }

    /// Positions that a row sees; 0 for all.
    fn window(&self) -> u32 {
        self.layer.window.map_or(0, |tokens| tokens as u32)
    }

    /// Its kernels, in the order of its fields.
    pub(crate) fn specs(
        caps: &Caps,
        &Attend { heads, input, .. }: &Attend,
        adapted: Option<Directory>,
    ) -> [KernelSpec; 4] {
        let Heads { head_dim, page_len, kv_f16, .. } = heads;
        let rope = if input.is_plain() {
            rope::spec(head_dim, page_len, true, kv_f16, adapted)
        } else {
            rope::beside_spec(head_dim, page_len, kv_f16, input)
        };
        [
            rope,
            attention::spec(caps, heads, adapted.map_or(Leaves::Whole, Leaves::WholeAndU)),
            attention::spec(caps, heads, Leaves::Split),
            attention::prefill_spec(caps, heads),
        ]
    }
}

/// What a family's q, k and v go through before they are rotated.
pub(crate) fn head_input(family: &Family) -> HeadInput {
    HeadInput { bias: family.groups[0].bias, norm: family.qk_norms.is_some() }
}

/// How a pass attends.
#[derive(Clone, Copy)]
pub(crate) struct Attend {
    pub(crate) heads: Heads,
    /// What is done to q, k and v before they are rotated.
    pub(crate) input: HeadInput,
    /// Added to the mean squares of their heads.
    eps: f32,
    /// On the scores.
    scale: f32,
    /// Dimensions of a head that are rotated.
    rotary_dim: u32,
    /// Rows that there is room for in parts.
    pub(crate) part_rows: u32,
    /// Length of a page table.
    pub(crate) max_pages: u32,
}

impl Attend {
    /// That of a model; the limits are those of its passes.
    pub(crate) fn new(config: &ModelConfig, limits: &Limits) -> Self {
        let family = config.family();
        Self {
            heads: Heads {
                heads: config.num_attention_heads as u32,
                kv_heads: config.num_key_value_heads as u32,
                head_dim: config.head_dim as u32,
                page_len: PAGE_LEN as u32,
                kv_f16: limits.kv_f16,
            },
            input: head_input(family),
            eps: config.rms_norm_eps,
            scale: config.attention_scale(),
            rotary_dim: config.rotary_dim() as u32,
            part_rows: limits.part_rows() as u32,
            max_pages: limits.max_pages() as u32,
        }
    }

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
        let (eps, rotary_dim, pad) = (self.eps, self.rotary_dim, 0);
        let params =
            RopeParams { heads, kv_heads, max_pages, site, u_width, eps, rotary_dim, pad, alone };
        rope::record_beside(commands, &kernels.cache.rope, (head_dim, self.input), params, rows);
        let window = kernels.cache.window();
        let software = commands.caps().software;
        let tiled = |run: &Run| run.count > MAX_COLS && !software;
        for run in runs.iter().filter(|run| tiled(run)) {
            let (row0, count, scale) = (run.row0, run.count, self.scale);
            let params = PrefillParams { heads, kv_heads, max_pages, row0, count, scale, window };
            attention::record_prefill(
                commands,
                &kernels.cache.attention_prefill,
                self.heads,
                &params,
                self.cache_bytes(run.positions, window),
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
        let (max_pages, scale, window) = (self.max_pages, self.scale, ops.window());
        let positions = group.iter().map(|run| run.positions).max().unwrap_or(1);
        let splits = attention::window_splits(positions, window);
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
                window,
                pad: [0; 3],
            };
            let bytes = self.cache_bytes(positions, window) * u64::from(count);
            if splits == 1 {
                attention::record(commands, &ops.attention, &params, count, bytes);
            } else {
                attention::record(commands, &ops.attention_split, &params, count, bytes);
                let params =
                    ReduceParams { heads, splits, row0, site, u_width, window, pad: [0; 2], alone };
                attention::record_reduce(commands, reduce, head_dim, &params, count);
            }
        }
        if splits == 1 { kv_heads } else { attention::reduce_parts(heads, head_dim) }
    }

    /// Of keys and values of so many positions in a layer, or of its window.
    fn cache_bytes(&self, positions: u32, window: u32) -> u64 {
        let seen = if window == 0 { positions } else { positions.min(window) };
        let element_bytes = if self.heads.kv_f16 { 2 } else { 4 };
        u64::from(2 * self.heads.kv_heads * self.heads.head_dim * element_bytes) * u64::from(seen)
    }
}
