//! One decoder layer in training: forward with what its backward pass needs kept in a slot, and
//! backward.

use crate::adapter::Target;
use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::attention_backward::{self as backward, dkv_spec, dq_spec};
use crate::kernels::attention_train::{self, AttentionTrainParams};
use crate::kernels::matvec::Epilogue;
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rms_norm_backward::{self, RmsNormBackwardParams};
use crate::kernels::rope_train::{self, RopeTrainParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::kernels::swiglu_backward::{self, SwiGluBackwardParams};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::linear_backward::LinearBackwardOp;
use crate::model::weights::LayerWeights;

use super::buffers::{Buffers, Slot};
use super::factors::Layout;
use super::graph::Model;
use super::products::{Around, FactorOps, Kernels};

/// A layer's kernels, bound.
pub(crate) struct LayerOps {
    layer: usize,
    sizes: Sizes,
    norms: [Op; 2],
    norms_backward: [Op; 2],
    qkv: LinearOp,
    o_proj: LinearOp,
    gate_up: LinearOp,
    down_proj: LinearOp,
    /// dX through qkv, o, gate and up, down.
    linears_backward: [LinearBackwardOp; 4],
    rope: Op,
    rope_backward: Op,
    attention: Op,
    delta: Op,
    dq: Op,
    dkv: Op,
    swiglu: Op,
    swiglu_backward: Op,
    /// By the linear they sit beside: qkv, o, gate and up, down.
    factors: [Vec<FactorOps>; 4],
}

#[derive(Clone, Copy)]
struct Sizes {
    layers: usize,
    d: u32,
    f: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    eps: f32,
}

impl Sizes {
    fn new(config: &ModelConfig) -> Self {
        Self {
            layers: config.num_hidden_layers,
            d: config.hidden_size as u32,
            f: config.intermediate_size as u32,
            heads: config.num_attention_heads as u32,
            kv_heads: config.num_key_value_heads as u32,
            head_dim: config.head_dim as u32,
            eps: config.rms_norm_eps,
        }
    }

    fn attention(&self, rows: u32) -> AttentionTrainParams {
        AttentionTrainParams {
            rows,
            heads: self.heads,
            kv_heads: self.kv_heads,
            row0: 0,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        }
    }

    fn qkv(&self) -> u32 {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

impl LayerOps {
    /// Binds layer `layer` to its slot.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn new(
        gpu: &Gpu,
        Model { config, weights }: Model<'_>,
        buffers: &Buffers,
        layer: usize,
        layout: &Layout,
        kernels: &Kernels,
    ) -> Result<Self> {
        let (weights, sizes) = (&weights.layers[layer], Sizes::new(config));
        let Buffers { normed, h, dx, d_normed, d_qkv, d_attn, dh, delta, rows, .. } = buffers;
        let Slot { qkv, attn, lse, x_mid, gate_up, .. } = buffers.slot(layer);
        let (x, out, e) =
            (buffers.input(layer), buffers.output(layer, sizes.layers), sizes.head_dim);
        let gains = [&weights.input_layernorm, &weights.post_attention_layernorm];
        let norm =
            |x: &Tensor, gain: &Tensor| gpu.op(&rms_norm::spec(gpu.caps()), &[x, gain, normed]);
        let norm_backward = |x: &Tensor, gain: &Tensor| {
            gpu.op(&rms_norm_backward::spec(gpu.caps(), true), &[x, gain, d_normed, dx])
        };
        let add = |x, y| Binding { epilogue: Epilogue::Add, ..store(x, y, sizes.d) };
        let rope = |x| gpu.op(&rope_train::spec(e), &[rows, &buffers.rotations, x]);
        let attention_inputs = [rows, qkv, lse, d_attn, delta, d_qkv];
        Ok(Self {
            layer,
            sizes,
            norms: [norm(x, gains[0])?, norm(x_mid, gains[1])?],
            norms_backward: [norm_backward(x, gains[0])?, norm_backward(x_mid, gains[1])?],
            qkv: LinearOp::new(gpu, &weights.qkv, store(normed, qkv, sizes.qkv()))?,
            o_proj: LinearOp::new(gpu, &weights.o_proj, add(attn, x_mid))?,
            gate_up: LinearOp::new(gpu, &weights.gate_up, store(normed, gate_up, 2 * sizes.f))?,
            down_proj: LinearOp::new(gpu, &weights.down_proj, add(h, out))?,
            linears_backward: linears_backward(gpu, buffers, weights, gate_up)?,
            rope: rope(qkv)?,
            rope_backward: rope(d_qkv)?,
            attention: gpu.op(&attention_train::spec(e), &[rows, qkv, attn, lse])?,
            delta: gpu.op(&backward::delta_spec(e), &[attn, d_attn, delta])?,
            dq: gpu.op(&dq_spec(e), &attention_inputs)?,
            dkv: gpu.op(&dkv_spec(e), &attention_inputs)?,
            swiglu: gpu.op(&swiglu::spec(gpu.caps(), None), &[gate_up, h])?,
            swiglu_backward: gpu.op(&swiglu_backward::spec(), &[dh, gate_up])?,
            factors: factors(gpu, buffers, layer, layout, kernels, sizes),
        })
    }

    /// Records the layer's output from its input; without `finish` only what the backward pass
    /// needs.
    ///
    /// Errors: as [`Commands::bound`].
    pub(crate) fn forward(
        &self,
        commands: &mut Commands<'_>,
        buffers: &Buffers,
        rows: u32,
        finish: bool,
    ) -> Result<()> {
        let (sizes, range) = (self.sizes, RowRange::first(rows));
        let none = USize::default();
        let bytes = u64::from(rows * sizes.d) * 4;
        let (input, x_mid) = (buffers.input(self.layer), &buffers.slot(self.layer).x_mid);
        let output = buffers.output(self.layer, sizes.layers);
        self.norm(commands, 0, rows);
        self.qkv.record(commands, range, none)?;
        self.adapt(commands, 0, rows)?;
        let rope = |direction| RopeTrainParams {
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            row0: 0,
            direction,
        };
        rope_train::record(commands, &self.rope, sizes.head_dim, rope(rope_train::FORWARD), rows);
        attention_train::record(commands, &self.attention, &sizes.attention(rows));
        commands.copy(input, 0, x_mid, 0, bytes);
        self.o_proj.record(commands, range, none)?;
        self.adapt(commands, 1, rows)?;
        self.norm(commands, 1, rows);
        self.gate_up.record(commands, range, none)?;
        self.adapt(commands, 2, rows)?;
        self.swiglu(commands, rows);
        if finish {
            commands.copy(x_mid, 0, output, 0, bytes);
            self.down_proj.record(commands, range, none)?;
            self.adapt(commands, 3, rows)?;
        } else {
            // Its u is part of what the backward pass needs.
            self.factors[3].iter().try_for_each(|lora| lora.shrink_only(commands, rows))?;
        }
        Ok(())
    }

    /// Records gradients: `dx` becomes that of the layer's input, except where nothing below is
    /// trained (not `through`).
    ///
    /// Errors: as [`Commands::bound`].
    pub(crate) fn backward(
        &self,
        commands: &mut Commands<'_>,
        rows: u32,
        through: bool,
    ) -> Result<()> {
        let sizes = self.sizes;
        self.swiglu(commands, rows);
        self.linear_backward(commands, 3, rows, true)?;
        let params = SwiGluBackwardParams { f4: sizes.f / 4, ..Default::default() };
        swiglu_backward::record(commands, &self.swiglu_backward, params, rows);
        self.norm(commands, 1, rows);
        self.linear_backward(commands, 2, rows, true)?;
        self.norm_backward(commands, 1, rows);
        self.linear_backward(commands, 1, rows, true)?;
        let params = sizes.attention(rows);
        backward::record_delta(commands, &self.delta, &params);
        backward::record_dq(commands, &self.dq, &params);
        backward::record_dkv(commands, &self.dkv, &params);
        let (heads, kv_heads, direction) = (sizes.heads, sizes.kv_heads, rope_train::BACKWARD);
        let rope = RopeTrainParams { heads, kv_heads, row0: 0, direction };
        rope_train::record(commands, &self.rope_backward, sizes.head_dim, rope, rows);
        self.norm(commands, 0, rows);
        self.linear_backward(commands, 0, rows, through)?;
        if through {
            self.norm_backward(commands, 0, rows);
        }
        Ok(())
    }

    fn linear_backward(
        &self,
        commands: &mut Commands<'_>,
        which: usize,
        rows: u32,
        through: bool,
    ) -> Result<()> {
        if through {
            self.linears_backward[which].record(commands, rows, 0)?;
        }
        self.factors[which].iter().try_for_each(|lora| lora.backward(commands, rows, through))
    }

    fn adapt(&self, commands: &mut Commands<'_>, which: usize, rows: u32) -> Result<()> {
        self.factors[which].iter().try_for_each(|lora| lora.forward(commands, rows))
    }

    fn norm(&self, commands: &mut Commands<'_>, which: usize, rows: u32) {
        let params = RmsNormParams { rows, k4: self.sizes.d / 4, eps: self.sizes.eps };
        rms_norm::record(commands, &self.norms[which], params);
    }

    fn norm_backward(&self, commands: &mut Commands<'_>, which: usize, rows: u32) {
        let params = RmsNormBackwardParams {
            rows,
            k4: self.sizes.d / 4,
            eps: self.sizes.eps,
            ..Default::default()
        };
        rms_norm_backward::record(commands, &self.norms_backward[which], params);
    }

    fn swiglu(&self, commands: &mut Commands<'_>, rows: u32) {
        let params = SwiGluParams { f: self.sizes.f, ..Default::default() };
        swiglu::record(commands, &self.swiglu, &params, rows);
    }
}

/// A linear from x to y, `width` elements a row.
fn store<'a>(x: &'a Tensor, y: &'a Tensor, width: u32) -> Binding<'a> {
    Binding { x, norm: None, y, y_stride: width as usize, epilogue: Epilogue::Store, lora: None }
}

/// dX through qkv, o, gate and up, down; the gradient of gate and up is in their place, `gate_up`.
fn linears_backward(
    gpu: &Gpu,
    buffers: &Buffers,
    weights: &LayerWeights,
    gate_up: &Tensor,
) -> Result<[LinearBackwardOp; 4]> {
    let Buffers { dx, d_normed, d_qkv, d_attn, dh, .. } = buffers;
    let back = |linear, dy, dx| LinearBackwardOp::new(gpu, linear, dy, dx, &buffers.exponents);
    Ok([
        back(&weights.qkv, d_qkv, d_normed)?,
        back(&weights.o_proj, dx, d_attn)?,
        back(&weights.gate_up, gate_up, d_normed)?,
        back(&weights.down_proj, dx, dh)?,
    ])
}

/// The layer's factors by the linear they sit beside.
fn factors(
    gpu: &Gpu,
    buffers: &Buffers,
    layer: usize,
    layout: &Layout,
    kernels: &Kernels,
    sizes: Sizes,
) -> [Vec<FactorOps>; 4] {
    let Buffers { normed, h, dx: d_out, d_normed, d_qkv, d_attn, dh, .. } = buffers;
    let Slot { qkv, attn, x_mid, gate_up, .. } = buffers.slot(layer);
    let out = buffers.output(layer, sizes.layers);
    let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let mut all: [Vec<FactorOps>; 4] = Default::default();
    for (factor, u) in layout.layers[layer].iter().zip(&buffers.slot(layer).u) {
        let (which, y_column) = match factor.path.target {
            Target::QProj => (0, 0),
            Target::KProj => (0, q),
            Target::VProj => (0, q + kv),
            Target::OProj => (1, 0),
            Target::GateProj => (2, 0),
            Target::UpProj => (2, sizes.f),
            _ => (3, 0),
        };
        let (x, y, dy, dx, y_stride) = match which {
            0 => (normed, qkv, d_qkv, d_normed, sizes.qkv()),
            1 => (attn, x_mid, d_out, d_attn, sizes.d),
            // The gradient of gate and up takes their place.
            2 => (normed, gate_up, gate_up, d_normed, 2 * sizes.f),
            _ => (h, out, d_out, dh, sizes.d),
        };
        let at = Around { x, y, dy, dx, u, y_stride, y_column };
        all[which].push(FactorOps::new(gpu, kernels, buffers, layout, *factor, &at));
    }
    all
}
