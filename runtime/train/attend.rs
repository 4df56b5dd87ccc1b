//! From q, k and v of a layer to its attention in training, and back.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::attention_backward::{self as backward, dkv_spec, dq_spec};
use crate::kernels::attention_train::{self, AttentionTrainParams};
use crate::kernels::heads_backward::{self, HeadsBackwardParams};
use crate::kernels::rope::HeadInput;
use crate::kernels::rope_train::{self, RopeTrainParams};
use crate::model::attend::head_input;

use super::buffers::{Buffers, Slot};
use super::graph::Model;

/// A layer's kernels of attention, bound.
pub(crate) struct AttendOps {
    config: ModelConfig,
    window: u32,
    input: HeadInput,
    rope: Op,
    rope_backward: Op,
    /// Through the norms of heads.
    heads_backward: Option<Op>,
    attention: Op,
    delta: Op,
    dq: Op,
    dkv: Op,
}

impl AttendOps {
    /// Binds those of layer `layer` to its slot.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn new(
        gpu: &Gpu,
        Model { config, weights }: Model<'_>,
        buffers: &Buffers,
        layer: usize,
    ) -> Result<Self> {
        let beside = weights.layers[layer].beside_qkv.as_ref();
        let Buffers { d_qkv, d_attn, delta, rows, .. } = buffers;
        let Slot { qkv, attn, lse, raw_qkv, .. } = buffers.slot(layer);
        let (e, of_layer) = (config.head_dim as u32, config.attention(layer));
        let input = head_input(config.family());
        let rotations = &buffers.rotations[of_layer.rotary];
        let rope = match beside {
            Some(beside) => {
                gpu.op(&rope_train::beside_spec(e, input), &[rows, rotations, qkv, beside])?
            }
            None => gpu.op(&rope_train::spec(e), &[rows, rotations, qkv])?,
        };
        let through_norms = |(raw, beside): (&Tensor, &Tensor)| {
            gpu.op(&heads_backward::spec(e, input.bias), &[raw, beside, d_qkv])
        };
        let attention_inputs = [rows, qkv, lse, d_attn, delta, d_qkv];
        Ok(Self {
            config: config.clone(),
            window: of_layer.window.map_or(0, |tokens| tokens as u32),
            input,
            rope,
            rope_backward: gpu.op(&rope_train::spec(e), &[rows, rotations, d_qkv])?,
            heads_backward: raw_qkv.as_ref().zip(beside).map(through_norms).transpose()?,
            attention: gpu.op(&attention_train::spec(e), &[rows, qkv, attn, lse])?,
            delta: gpu.op(&backward::delta_spec(e), &[attn, d_attn, delta])?,
            dq: gpu.op(&dq_spec(e), &attention_inputs)?,
            dkv: gpu.op(&dkv_spec(e), &attention_inputs)?,
        })
    }

    /// Records attention over q, k and v, which it rotates.
    pub(crate) fn forward(&self, commands: &mut Commands<'_>, slot: &Slot, rows: u32) {
        let (e, params) = (self.config.head_dim as u32, self.rope(rope_train::FORWARD));
        if let Some(raw) = &slot.raw_qkv {
            let width = self.config.num_attention_heads + 2 * self.config.num_key_value_heads;
            let bytes = u64::from(rows) * (width * self.config.head_dim * 4) as u64;
            commands.copy(&slot.qkv, 0, raw, 0, bytes);
        }
        if self.input.is_plain() {
            rope_train::record(commands, &self.rope, e, params, rows);
        } else {
            rope_train::record_beside(commands, &self.rope, (e, self.input), params, rows);
        }
        attention_train::record(commands, &self.attention, &self.params(rows));
    }

    /// Records the gradient by q, k and v.
    pub(crate) fn backward(&self, commands: &mut Commands<'_>, rows: u32) {
        let params = self.params(rows);
        backward::record_delta(commands, &self.delta, &params);
        backward::record_dq(commands, &self.dq, &params);
        backward::record_dkv(commands, &self.dkv, &params);
        let (e, rope) = (self.config.head_dim as u32, self.rope(rope_train::BACKWARD));
        rope_train::record(commands, &self.rope_backward, e, rope, rows);
        if let Some(op) = &self.heads_backward {
            let RopeTrainParams { heads, kv_heads, row0, eps, .. } = rope;
            let params = HeadsBackwardParams { heads, kv_heads, row0, eps };
            heads_backward::record(commands, op, params, rows);
        }
    }

    fn rope(&self, direction: f32) -> RopeTrainParams {
        RopeTrainParams {
            heads: self.config.num_attention_heads as u32,
            kv_heads: self.config.num_key_value_heads as u32,
            row0: 0,
            direction,
            eps: self.config.rms_norm_eps,
            rotary_dim: self.config.rotary_dim() as u32,
        }
    }

    fn params(&self, rows: u32) -> AttentionTrainParams {
        AttentionTrainParams {
            rows,
            heads: self.config.num_attention_heads as u32,
            kv_heads: self.config.num_key_value_heads as u32,
            row0: 0,
            scale: self.config.attention_scale(),
            window: self.window,
        }
    }
}
