//! A linear layer: quantised rows on the device, and the one place where its product is computed.
//!
//! In: weight views of a file. Out: [`Linear`], and [`LinearOp`], a linear bound to its input and
//! output. Models know neither the format of the weights nor which kernel multiplies them.

use std::sync::OnceLock;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::TensorView;
use crate::gpu::{Caps, Class, Commands, Gpu, KernelSpec, Memory, Op, Tensor};
use crate::kernels::lora::Entry;
use crate::kernels::matmul::{self, Tile};
use crate::kernels::matvec::{self, Epilogue, LinearParams, Lora, MAX_COLS, Variant};
use crate::kernels::matvec_coop::{self, Shape, Tiling};
use crate::quant::{self, BLOCK};

/// Rows of the file are repacked and sent in pieces of at most this many bytes.
const PIECE_BYTES: usize = 8 << 20;
/// A piece is a multiple of this many rows, so that every piece is whole `u32`s of scales.
const PIECE_ROWS: usize = 64;

/// Most rows of a chunk: four a workgroup, and adapters' beside them, keep to the 65,535 workgroups
/// of a dispatch.
const CHUNK_ROWS: usize = 1 << 17;

/// The weights `[N, K]` of one or several linears with the same input, row after row.
#[derive(Debug)]
pub struct Linear<T = Tensor> {
    /// N.
    pub n: usize,
    /// K.
    pub k: usize,
    pub(crate) chunks: Vec<Chunk<T>>,
}

/// Rows that share a format and fit one binding.
#[derive(Debug)]
pub(crate) struct Chunk<T = Tensor> {
    pub(crate) dtype: DType,
    pub(crate) row0: usize,
    pub(crate) rows: usize,
    pub(crate) words: T,
    pub(crate) scales: T,
}

impl Chunk {
    fn bytes(&self) -> u64 {
        self.words.bytes() + self.scales.bytes()
    }
}

impl<T> Linear<T> {
    /// Makes room for `views`, each `[N, K]` with the same K.
    ///
    /// Errors: [`Error::InvalidTensor`] when K is no multiple of 32; [`Error::OutOfMemory`].
    pub fn allocate(memory: &impl Memory<Tensor = T>, views: &[TensorView<'_>]) -> Result<Self> {
        let k = views[0].shape[1];
        let mut linear = Self { n: 0, k, chunks: Vec::new() };
        let mut rest = views;
        while let Some(first) = rest.first() {
            if !k.is_multiple_of(BLOCK) {
                let reason = format!("rows of {k} weights; a multiple of {BLOCK} is needed");
                return Err(Error::InvalidTensor { name: first.name.to_string(), reason });
            }
            let whole = |v: &TensorView<'_>| (v.shape[0] * k / BLOCK).is_multiple_of(PIECE_ROWS);
            let mut together = 1;
            while together < rest.len()
                && rest[together].dtype == first.dtype
                && whole(&rest[together - 1])
            {
                together += 1;
            }
            linear.allocate_run(memory, &rest[..together])?;
            rest = &rest[together..];
        }
        Ok(linear)
    }

    /// Views of one format, concatenated; split by rows where a binding would grow too large.
    fn allocate_run(
        &mut self,
        memory: &impl Memory<Tensor = T>,
        views: &[TensorView<'_>],
    ) -> Result<()> {
        let (name, dtype) = (views[0].name, views[0].dtype);
        let format = quant::format(dtype);
        let row_blocks = self.k / BLOCK;
        let fit = memory.caps().max_binding_bytes as usize / row_bytes(format, row_blocks);
        let most = (fit.min(CHUNK_ROWS) / PIECE_ROWS * PIECE_ROWS).max(PIECE_ROWS);
        let rows = views.iter().map(|v| v.shape[0]).sum::<usize>();
        for start in (0..rows).step_by(most) {
            let count = most.min(rows - start);
            let (words, scales) = format.packed_len(count * row_blocks);
            self.chunks.push(Chunk {
                dtype,
                row0: self.n + start,
                rows: count,
                words: memory.words(Class::Weights, name, &[words])?,
                scales: memory.words(Class::Weights, name, &[scales])?,
            });
        }
        self.n += rows;
        Ok(())
    }
}

/// Of the repacked words of a row.
fn row_bytes(format: &dyn quant::BlockFormat, row_blocks: usize) -> usize {
    row_blocks * format.words_per_block() * 4
}

impl Linear {
    /// Repacks the views that it was made for and sends them to the device.
    pub(crate) fn fill(&self, gpu: &Gpu, views: &[TensorView<'_>]) {
        let row_blocks = self.k / BLOCK;
        let (mut row, mut chunks) = (0, self.chunks.iter().peekable());
        for view in views {
            let format = quant::format(view.dtype);
            let row_bytes = row_bytes(format, row_blocks);
            let most = (PIECE_BYTES / row_bytes / PIECE_ROWS * PIECE_ROWS).max(PIECE_ROWS);
            let mut at = 0;
            while at < view.shape[0] {
                while chunks.next_if(|chunk| chunk.row0 + chunk.rows <= row).is_some() {}
                let Some(chunk) = chunks.peek() else { return };
                let count = most.min(view.shape[0] - at).min(chunk.row0 + chunk.rows - row);
                let before = (row - chunk.row0) * row_blocks;
                send(gpu, chunk, format, &view.rows(at, count), before, count * row_blocks);
                at += count;
                row += count;
            }
        }
    }

    /// The kernels that multiply so many rows of x, at most [`MAX_COLS`], as [`LinearOp::record`]
    /// chooses them.
    pub(crate) fn specs_for(
        &self,
        caps: &Caps,
        rows: u32,
        norm: bool,
        epilogue: Epilogue,
    ) -> impl Iterator<Item = KernelSpec> {
        let (lora, k_blocks) = (None, (self.k / BLOCK) as u32);
        self.chunks.iter().map(move |chunk| {
            let on_matrices = on_matrices(caps, chunk.rows * self.k / BLOCK);
            if let Some(on) = on_matrices.filter(|on| rows >= on.rows) {
                let (shape, tiling) = (on.shape, on.tiling(rows, chunk.rows as u32));
                let guard = tiling.guard(k_blocks);
                let variant = matvec_coop::Variant { shape, tiling, guard, norm, epilogue, lora };
                return matvec_coop::spec(chunk.dtype, variant);
            }
            let tiling = matvec::tiling(caps, chunk.rows as u32, k_blocks);
            let cols = matvec::cols(rows);
            matvec::spec(caps, chunk.dtype, Variant { tiling, cols, norm, epilogue, lora })
        })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(Chunk::bytes).sum()
    }
}

/// Repacks `blocks` blocks and writes them after the chunk's first `before`.
fn send(
    gpu: &Gpu,
    chunk: &Chunk,
    format: &dyn quant::BlockFormat,
    bytes: &[u8],
    before: usize,
    blocks: usize,
) {
    let (words_len, scales_len) = format.packed_len(blocks);
    let mut packed = vec![0_u32; words_len + scales_len];
    let (words, scales) = packed.split_at_mut(words_len);
    format.repack(bytes, words, scales);
    let (words_before, scales_before) = format.packed_len(before);
    gpu.write(&chunk.words, words_before as u64 * 4, words);
    gpu.write(&chunk.scales, scales_before as u64 * 4, scales);
    gpu.flush_writes();
}

/// Where a [`LinearOp`] reads and writes.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// `[M, K]`.
    pub x: &'a Tensor,
    /// Gain `[K]` and eps of an RMS norm to fold in; only for at most [`MAX_COLS`] rows.
    pub norm: Option<(&'a Tensor, f32)>,
    /// `[M, y_stride]`.
    pub y: &'a Tensor,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
    /// What happens to the sums.
    pub epilogue: Epilogue,
    /// The rows' adapters; only for at most [`MAX_COLS`] rows.
    pub lora: Option<LoraBinding<'a>>,
}

/// Where a [`LinearOp`] finds adapters.
#[derive(Clone, Copy)]
pub struct LoraBinding<'a> {
    /// Makes u or adds what it expands to.
    pub lora: Lora,
    /// A to make u, B to expand it, with the directory in front.
    pub factors: &'a Tensor,
    /// u to make, or the parts of it to expand.
    pub u: &'a Tensor,
    /// Which group of linears this is.
    pub site: u32,
}

/// How large u is in this pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct USize {
    /// Elements of a row.
    pub width: u32,
    /// Parts that it comes in.
    pub parts: u32,
    /// The rows' only adapter, as [`crate::kernels::lora::Entry`] has it.
    pub alone: Entry,
}

/// Rows of a pass.
#[derive(Clone, Copy, Debug)]
pub struct RowRange {
    /// How many.
    pub count: u32,
    /// The first one of x.
    pub x_row: u32,
    /// The first one of y.
    pub y_row: u32,
}

impl RowRange {
    /// The first `count` rows.
    pub fn first(count: u32) -> Self {
        Self { count, x_row: 0, y_row: 0 }
    }
}

/// From how many rows of x on, few as they are, cooperative matrices multiply them, and how.
struct OnMatrices {
    rows: u32,
    shape: Shape,
    /// Whatever the rows; none: by their number.
    tiling: Option<Tiling>,
    /// For each of [`Shape::tilings`].
    ops: [OnceLock<Op>; Shape::TILINGS],
}

impl OnMatrices {
    fn tiling(&self, m: u32, n: u32) -> Tiling {
        self.tiling.unwrap_or_else(|| self.shape.tiling(m, n))
    }

    fn slot(&self, tiling: Tiling) -> &OnceLock<Op> {
        &self.ops[self.shape.tilings().position(|other| other == tiling).unwrap_or(0)]
    }
}

/// A [`Linear`] bound to its input and output.
pub struct LinearOp {
    chunks: Vec<ChunkOp>,
    k_blocks: u32,
    y_stride: u32,
    pair: u32,
    eps: Option<f32>,
    epilogue: Epilogue,
    site: u32,
    operations: u64,
}

struct ChunkOp {
    group: wgpu::BindGroup,
    dtype: DType,
    row0: u32,
    rows: u32,
    bytes: u64,
    lora: Option<Lora>,
    /// For 1, 2 and 4 rows of x.
    matvec: [OnceLock<Op>; 3],
    on_matrices: Option<OnMatrices>,
    /// For each [`Tile`].
    matmul: [OnceLock<Op>; Tile::ALL.len()],
}

impl LinearOp {
    /// Binds `linear`. Kernels are compiled on first use.
    ///
    /// Errors: [`Error::Unsupported`] for a fused SwiGLU over several chunks.
    pub fn new(gpu: &Gpu, linear: &Linear, binding: Binding<'_>) -> Result<Self> {
        if binding.epilogue.is_gated() && linear.chunks.len() != 1 {
            let hint = "use the separate kernel".to_string();
            return Err(Error::Unsupported {
                what: "SwiGLU folded into a split matrix".into(),
                hint,
            });
        }
        let mut op = Self {
            chunks: Vec::with_capacity(linear.chunks.len()),
            k_blocks: (linear.k / BLOCK) as u32,
            y_stride: binding.y_stride as u32,
            pair: linear.n as u32 / 2,
            eps: binding.norm.map(|(_, eps)| eps),
            epilogue: binding.epilogue,
            site: binding.lora.map_or(0, |lora| lora.site),
            operations: 2 * (linear.n * linear.k) as u64,
        };
        for chunk in &linear.chunks {
            let gain = binding.norm.map_or(binding.x, |(gain, _)| gain);
            let own = [binding.x, gain, &chunk.words, &chunk.scales, binding.y];
            // u is made once, beside the first rows.
            let lora =
                binding.lora.filter(|lora| chunk.row0 == 0 || matches!(lora.lora, Lora::Expand(_)));
            let group = match lora {
                None => gpu.bind(matvec::BINDINGS, &own),
                Some(LoraBinding { lora, factors, u, .. }) => {
                    let [x, gain, words, scales, y] = own;
                    gpu.bind(lora.bindings(), &[x, gain, words, scales, y, factors, u])
                }
            };
            op.chunks.push(ChunkOp {
                group,
                lora: lora.map(|lora| lora.lora),
                dtype: chunk.dtype,
                row0: chunk.row0 as u32,
                rows: chunk.rows as u32,
                bytes: chunk.bytes(),
                matvec: Default::default(),
                on_matrices: on_matrices(gpu.caps(), chunk.rows * linear.k / BLOCK),
                matmul: Default::default(),
            });
        }
        Ok(op)
    }

    /// Few rows of x, however few, are multiplied on cooperative matrices, in this way.
    pub(crate) fn on_matrices(mut self, shape: Shape, tiling: Tiling) -> Self {
        for chunk in &mut self.chunks {
            let (tiling, ops) = (Some(tiling), Default::default());
            chunk.on_matrices = Some(OnMatrices { rows: 1, shape, tiling, ops });
        }
        self
    }

    /// Records y for `rows` of x; `u` is the size of the adapters' u, if any are bound.
    ///
    /// Errors: as [`Gpu::kernel`] on the first use of a variant; as [`Commands::bound`].
    pub fn record(&self, commands: &mut Commands<'_>, rows: RowRange, u: USize) -> Result<()> {
        let caps = commands.caps();
        for chunk in &self.chunks {
            let params = LinearParams {
                m: rows.count,
                n: chunk.rows,
                k_blocks: self.k_blocks,
                x_row: rows.x_row,
                y_stride: self.y_stride,
                y_offset: rows.y_row * self.y_stride + chunk.row0,
                pair: self.pair,
                eps: self.eps.unwrap_or(0.0),
                row0: chunk.row0,
                site: self.site,
                u_width: u.width,
                parts: u.parts,
                alone: u.alone,
                ..Default::default()
            };
            if rows.count <= MAX_COLS || row_by_row(caps) {
                self.record_narrow(commands, chunk, &params)?;
            } else {
                self.record_wide(commands, chunk, &params)?;
            }
        }
        commands.bound(u64::from(rows.count) * self.operations)
    }

    fn record_narrow(
        &self,
        commands: &mut Commands<'_>,
        chunk: &ChunkOp,
        params: &LinearParams,
    ) -> Result<()> {
        let gpu = commands.gpu();
        let caps = gpu.caps();
        let (norm, epilogue, lora) = (self.eps.is_some(), self.epilogue, chunk.lora);
        if let Some(on) = chunk.on_matrices.as_ref().filter(|on| params.m >= on.rows) {
            return self.record_on_matrices(commands, chunk, on, params);
        }
        let cols = matvec::cols(params.m);
        let tiling = matvec::tiling(caps, chunk.rows, self.k_blocks);
        let tiling = if cols > 1 && lora.is_some() { tiling.beside_adapters(caps) } else { tiling };
        let variant = Variant { tiling, cols, norm, epilogue, lora };
        let slot = &chunk.matvec[cols.ilog2() as usize];
        let op = gpu.op_once(slot, &chunk.group, || matvec::spec(caps, chunk.dtype, variant))?;
        matvec::record(commands, op, variant, params, chunk.bytes);
        Ok(())
    }

    fn record_on_matrices(
        &self,
        commands: &mut Commands<'_>,
        chunk: &ChunkOp,
        on: &OnMatrices,
        params: &LinearParams,
    ) -> Result<()> {
        let (shape, tiling) = (on.shape, on.tiling(params.m, params.n));
        let (norm, epilogue, lora) = (self.eps.is_some(), self.epilogue, chunk.lora);
        let guard = tiling.guard(self.k_blocks);
        let variant = matvec_coop::Variant { shape, tiling, guard, norm, epilogue, lora };
        let spec = || matvec_coop::spec(chunk.dtype, variant);
        let op = commands.gpu().op_once(on.slot(tiling), &chunk.group, spec)?;
        matvec_coop::record(commands, op, variant, params, chunk.bytes);
        Ok(())
    }

    fn record_wide(
        &self,
        commands: &mut Commands<'_>,
        chunk: &ChunkOp,
        params: &LinearParams,
    ) -> Result<()> {
        debug_assert!(self.eps.is_none() && !self.epilogue.is_gated(), "only narrow passes fold");
        let gpu = commands.gpu();
        let caps = gpu.caps();
        if let Some(on) = chunk.on_matrices.as_ref().filter(|_| params.m <= matvec_coop::MAX_ROWS) {
            return self.record_on_matrices(commands, chunk, on, params);
        }
        let tile = Tile::choose(caps, params.m, params.n);
        let spec = || matmul::spec(caps, chunk.dtype, self.epilogue, tile);
        let op = gpu.op_once(&chunk.matmul[tile as usize], &chunk.group, spec)?;
        matmul::record(commands, op, tile, params, chunk.bytes);
        Ok(())
    }
}

/// Whether any number of rows of x goes through [`matvec`].
fn row_by_row(caps: &Caps) -> bool {
    caps.software && caps.cooperative_matrix.is_none()
}

/// Blocks of W from which on cooperative matrices are faster than more than one pass of [`matvec`].
const MANY_BLOCKS: usize = 1 << 17;

fn on_matrices(caps: &Caps, blocks: usize) -> Option<OnMatrices> {
    let shape = Shape::of(caps)?;
    // On a software GPU always, so that the tests of whole models see them.
    let early = caps.software || blocks >= MANY_BLOCKS;
    let rows = if early { matvec::COLS + 1 } else { MAX_COLS + 1 };
    Some(OnMatrices { rows, shape, tiling: None, ops: Default::default() })
}
