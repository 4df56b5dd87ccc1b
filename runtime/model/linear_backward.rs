//! Backward through a [`Linear`]: `dX = dY W` from the one copy of the weights. They are frozen and
//! get no gradient.

use std::sync::OnceLock;

use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::matmul::Tile;
use crate::kernels::matmul_backward::{self, MatmulBackwardParams, Way};
use crate::kernels::row_exponents;
use crate::quant::BLOCK;

use super::linear::Linear;

/// A [`Linear`] bound to the gradients of its output and input.
pub struct LinearBackwardOp {
    chunks: Vec<ChunkOp>,
    /// Where the product is made on cooperative matrices.
    exponents: Option<Op>,
    k_blocks: u32,
    dy_stride: u32,
    operations: u64,
}

struct ChunkOp {
    group: wgpu::BindGroup,
    dtype: DType,
    /// For each [`Tile`].
    ops: [OnceLock<Op>; Tile::ALL.len()],
    row0: u32,
    rows: u32,
    bytes: u64,
}

impl LinearBackwardOp {
    /// Binds `dy [M, N]`, `dx [M, K]` and room for the exponents of M rows.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub fn new(
        gpu: &Gpu,
        linear: &Linear,
        dy: &Tensor,
        dx: &Tensor,
        exponents: &Tensor,
    ) -> Result<Self> {
        let mut chunks = Vec::with_capacity(linear.chunks.len());
        for chunk in &linear.chunks {
            let mut tensors = vec![dy, &chunk.words, &chunk.scales, dx];
            tensors.extend(matmul_backward::reads_exponents(gpu.caps()).then_some(exponents));
            chunks.push(ChunkOp {
                group: gpu.bind(matmul_backward::bindings(gpu.caps()), &tensors),
                dtype: chunk.dtype,
                ops: Default::default(),
                row0: chunk.row0 as u32,
                rows: chunk.rows as u32,
                bytes: chunk.words.bytes() + chunk.scales.bytes(),
            });
        }
        let operations = 2 * (linear.n * linear.k) as u64;
        let exponents = matmul_backward::reads_exponents(gpu.caps())
            .then(|| gpu.op(&row_exponents::spec(), &[dy, exponents]))
            .transpose()?;
        Ok(Self {
            chunks,
            exponents,
            k_blocks: (linear.k / BLOCK) as u32,
            dy_stride: linear.n as u32,
            operations,
        })
    }

    /// Records `rows` rows of dy from the first, into dx from row `dx_row` on.
    ///
    /// Errors: as [`Gpu::kernel`] on the first use of a variant; as [`Commands::bound`].
    pub fn record(&self, commands: &mut Commands<'_>, rows: u32, dx_row: u32) -> Result<()> {
        let caps = commands.caps();
        for (i, chunk) in self.chunks.iter().enumerate() {
            let params = MatmulBackwardParams {
                m: rows,
                n: chunk.rows,
                k_blocks: self.k_blocks,
                dy_row: 0,
                dy_stride: self.dy_stride,
                dy_offset: chunk.row0,
                dx_row,
                add: u32::from(i > 0),
            };
            if let Some(op) = &self.exponents {
                row_exponents::record(commands, op, (&params).into(), rows);
            }
            let fours =
                [self.dy_stride, chunk.row0, chunk.rows].iter().all(|n| n.is_multiple_of(4));
            let way = Way::choose(caps, [rows, 32 * self.k_blocks], fours);
            let spec = || matmul_backward::spec(caps, chunk.dtype, way);
            let slot = &chunk.ops[way.tile as usize];
            let op = commands.gpu().op_once(slot, &chunk.group, spec)?;
            matmul_backward::record(commands, op, caps, way, &params, chunk.bytes);
        }
        commands.bound(u64::from(rows) * self.operations)
    }
}
