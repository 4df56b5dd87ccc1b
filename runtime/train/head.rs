//! From the last layer's output to the loss and back: rows that have a weight, a chunk of logits at
//! a time.

use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op};
use crate::kernels::cross_entropy::{self, CrossEntropyParams};
use crate::kernels::gather_rows::{self, GatherRowsParams};
use crate::kernels::matvec::Epilogue;
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rms_norm_backward::{self, RmsNormBackwardParams};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::linear_backward::LinearBackwardOp;

use super::buffers::{Buffers, Head};
use super::graph::Model;

/// The head's kernels, bound.
pub(crate) struct HeadOps {
    gather: Op,
    norm: Op,
    logits: LinearOp,
    cross_entropy: Op,
    logits_backward: LinearBackwardOp,
    norm_backward: Op,
    scatter: Op,
    k4: u32,
    eps: f32,
    vocab: u32,
    chunk: u32,
}

impl HeadOps {
    /// `chunk` rows of logits at a time.
    pub(crate) fn new(
        gpu: &Gpu,
        model: Model<'_>,
        buffers: &Buffers,
        chunk: usize,
    ) -> Result<Self> {
        let (config, gain) = (model.config, &model.weights.norm);
        let Buffers { normed, d_normed, x_out, dx, exponents, head, .. } = buffers;
        let Head { x, logits, rows, places, targets, weights, losses } = head;
        let vocab = config.vocab_size;
        let binding = Binding {
            x: normed,
            norm: None,
            y: logits,
            y_stride: vocab,
            epilogue: Epilogue::Store,
            lora: None,
        };
        Ok(Self {
            gather: gpu.op(&gather_rows::spec(), &[rows, x_out, x])?,
            norm: gpu.op(&rms_norm::spec(gpu.caps(), false), &[x, gain, normed])?,
            logits: LinearOp::new(gpu, model.weights.head(), binding)?,
            cross_entropy: gpu.op(&cross_entropy::spec(), &[targets, weights, logits, losses])?,
            logits_backward: LinearBackwardOp::new(
                gpu,
                model.weights.head(),
                logits,
                d_normed,
                exponents,
            )?,
            norm_backward: gpu
                .op(&rms_norm_backward::spec(gpu.caps(), false), &[x, gain, d_normed, normed])?,
            scatter: gpu.op(&gather_rows::spec(), &[places, normed, dx])?,
            k4: config.hidden_size as u32 / 4,
            eps: config.norm_eps(),
            vocab: vocab as u32,
            chunk: chunk as u32,
        })
    }

    /// Records the losses of the `scored` rows, and with `train` the gradient of all `rows` rows of
    /// the layers' output.
    pub(crate) fn record(
        &self,
        commands: &mut Commands<'_>,
        scored: u32,
        rows: u32,
        train: bool,
    ) -> Result<()> {
        let (k4, eps) = (self.k4, self.eps);
        let gather = GatherRowsParams { k4, ..Default::default() };
        gather_rows::record(commands, &self.gather, gather, scored);
        rms_norm::record(commands, &self.norm, RmsNormParams { rows: scored, k4, eps });
        for row0 in (0..scored).step_by(self.chunk as usize) {
            let count = self.chunk.min(scored - row0);
            let range = RowRange { count, x_row: row0, y_row: 0 };
            self.logits.record(commands, range, USize::default())?;
            let params =
                CrossEntropyParams { vocab: self.vocab, stride: self.vocab, row0, loss0: row0 };
            cross_entropy::record(commands, &self.cross_entropy, params, count);
            if train {
                self.logits_backward.record(commands, count, row0)?;
            }
        }
        if train {
            let params = RmsNormBackwardParams { rows: scored, k4, eps, ..Default::default() };
            rms_norm_backward::record(commands, &self.norm_backward, params);
            gather_rows::record(commands, &self.scatter, gather, rows);
        }
        Ok(())
    }
}
