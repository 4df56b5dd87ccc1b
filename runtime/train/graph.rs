//! A micro-batch through the model and back: what is recorded, in which order, on buffers bound
//! once.
//!
//! In: tokens, targets and weights. Out: losses, and gradients added to the flat buffer of the
//! factors. Layers go in segments; of each the input is kept, and what else its backward pass needs
//! is computed again (see [`super::buffers`]).

use std::sync::Arc;

use crate::base::{ModelConfig, Rotary};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::embedding::{self, EmbeddingParams};
use crate::kernels::rope;
use crate::model::weights::Weights;
use crate::quant::BLOCK;

use super::buffers::{Buffers, TrainShape};
use super::data::MicroBatch;
use super::factors::Layout;
use super::head::HeadOps;
use super::layer::LayerOps;
use super::products::Kernels;

/// What is trained on.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
}

/// See the module's documentation.
pub(crate) struct Graph {
    pub(crate) buffers: Buffers,
    pub(crate) layout: Layout,
    segment: usize,
    embed: Vec<(Op, EmbeddingParams)>,
    layers: Vec<LayerOps>,
    head: HeadOps,
}

impl Graph {
    /// Allocates what `shape` needs beside `state` and binds every kernel.
    ///
    /// Errors: [`crate::Error::OutOfMemory`]; as [`Gpu::kernel`].
    pub(crate) fn new(
        gpu: &Gpu,
        model: Model<'_>,
        shape: &TrainShape,
        layout: Layout,
        state: Arc<Vec<Tensor>>,
    ) -> Result<Self> {
        let buffers = Buffers::around(gpu, model.config, shape, state)?;
        let rotaries = model.config.rotaries(shape.seq_len);
        for (rotations, rotary) in buffers.rotations.iter().zip(rotaries) {
            let Rotary { frequencies, scale } = rotary;
            gpu.write(rotations, 0, &rope::rotations(&frequencies, scale, shape.seq_len));
        }
        let kernels = Kernels::new(gpu)?;
        let layer = |layer| LayerOps::new(gpu, model, &buffers, layer, &layout, &kernels);
        let layers = (0..layout.layers.len()).map(layer).collect::<Result<_>>()?;
        let table = &model.weights.embed_tokens;
        let mut embed = Vec::with_capacity(table.chunks.len());
        for chunk in &table.chunks {
            let (row0, rows) = (chunk.row0 as u32, chunk.rows as u32);
            let (k_blocks, scale) = ((table.k / BLOCK) as u32, model.config.input_scale());
            let params = EmbeddingParams { k_blocks, row0, rows, scale };
            let tensors = [&buffers.token_ids, &chunk.words, &chunk.scales, buffers.input(0)];
            embed.push((gpu.op(&embedding::spec(chunk.dtype), &tensors)?, params));
        }
        let head = HeadOps::new(gpu, model, &buffers, shape.logit_rows(gpu.caps()))?;
        let segment = shape.segment(model.config);
        Ok(Self { buffers, layout, segment, embed, layers, head })
    }

    /// Adds the gradients of a micro-batch, each token's loss divided by `total_weight`; gives
    /// their sum.
    ///
    /// Errors: [`crate::Error::Cancelled`]; as [`Gpu::check`]. The gradients are then of no use.
    pub(crate) fn backward(
        &self,
        gpu: &Gpu,
        batch: &MicroBatch,
        total_weight: f64,
        cancel: &CancelToken,
    ) -> Result<f64> {
        self.run(gpu, batch, total_weight, cancel, true)
    }

    /// The loss of a micro-batch alone.
    ///
    /// Errors: as [`Graph::backward`].
    pub(crate) fn loss(
        &self,
        gpu: &Gpu,
        batch: &MicroBatch,
        total_weight: f64,
        cancel: &CancelToken,
    ) -> Result<f64> {
        self.run(gpu, batch, total_weight, cancel, false)
    }

    fn run(
        &self,
        gpu: &Gpu,
        batch: &MicroBatch,
        total_weight: f64,
        cancel: &CancelToken,
        train: bool,
    ) -> Result<f64> {
        let rows = batch.len() as u32;
        let scored = self.upload(gpu, batch, total_weight)?;
        if scored == 0 {
            return Ok(0.0);
        }
        let mut commands = Commands::new(gpu)?;
        commands.cancel_on(cancel);
        for (op, params) in &self.embed {
            embedding::record(&mut commands, op, *params, rows);
        }
        for layer in &self.layers {
            layer.forward(&mut commands, &self.buffers, rows, true)?;
        }
        self.head.record(&mut commands, scored, rows, train)?;
        if train {
            self.backward_layers(&mut commands, rows)?;
        }
        commands.submit();
        let losses: Vec<f32> = gpu.read(&self.buffers.head.losses, 0, scored as usize)?;
        gpu.check()?;
        Ok(losses.iter().map(|&loss| f64::from(loss)).sum())
    }

    fn backward_layers(&self, commands: &mut Commands<'_>, rows: u32) -> Result<()> {
        let last = (self.layers.len() - 1) / self.segment;
        for segment in (0..=last).rev() {
            let start = segment * self.segment;
            let layers = &self.layers[start..self.layers.len().min(start + self.segment)];
            if segment != last {
                // The slots hold a later segment's layers: make this one's again. The last output
                // is not needed.
                for (i, layer) in layers.iter().enumerate() {
                    layer.forward(commands, &self.buffers, rows, i + 1 < layers.len())?;
                }
            }
            for (i, layer) in layers.iter().enumerate().rev() {
                layer.backward(commands, &self.buffers, rows, start + i > 0)?;
            }
        }
        Ok(())
    }

    /// Sends a micro-batch; gives the rows that have a loss.
    fn upload(&self, gpu: &Gpu, batch: &MicroBatch, total_weight: f64) -> Result<u32> {
        let scored: Vec<u32> =
            (0..).zip(&batch.weights).filter(|(_, w)| **w > 0.0).map(|(row, _)| row).collect();
        let of = |row: &u32| *row as usize;
        let targets: Vec<u32> = scored.iter().map(|row| batch.targets[of(row)]).collect();
        let weights: Vec<f32> = scored
            .iter()
            .map(|row| (f64::from(batch.weights[of(row)]) / total_weight) as f32)
            .collect();
        let places = crate::kernels::gather_rows::inverse(&scored, batch.len())?;
        let Buffers { token_ids, rows, head, .. } = &self.buffers;
        gpu.write(token_ids, 0, &batch.ids);
        gpu.write(rows, 0, &batch.rows);
        gpu.write(&head.rows, 0, &scored);
        gpu.write(&head.places, 0, &places);
        gpu.write(&head.targets, 0, &targets);
        gpu.write(&head.weights, 0, &weights);
        Ok(scored.len() as u32)
    }
}
