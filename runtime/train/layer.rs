//! One decoder layer in training, by the groups of `base/layout`: forward, with what its backward
//! pass needs kept in a slot, and backward.

use crate::base::layout::{Group, SiteKind, Source};
use crate::error::{Error, Result};
use crate::gpu::{Commands, Gpu, Op, Tensor};
use crate::kernels::matvec::Epilogue;
use crate::kernels::rms_norm::{self, RmsNormParams};
use crate::kernels::rms_norm_backward::{self, RmsNormBackwardParams};
use crate::kernels::swiglu::{self, SwiGluParams};
use crate::kernels::swiglu_backward::{self, SwiGluBackwardParams};
use crate::model::linear::{Binding, LinearOp, RowRange, USize};
use crate::model::linear_backward::LinearBackwardOp;
use crate::model::weights::GroupWeights;

use super::attend::AttendOps;
use super::buffers::{Buffers, Slot};
use super::factors::Layout;
use super::graph::Model;
use super::products::{Around, FactorOps, Kernels};

/// A layer's kernels, bound.
pub(crate) struct LayerOps {
    layer: usize,
    sizes: Sizes,
    /// By [`SiteKind`].
    groups: [GroupOps; 4],
    attend: AttendOps,
    swiglu: Op,
    swiglu_backward: Op,
}

/// A group of linears with what is around it.
struct GroupOps {
    group: Group,
    norm_in: Option<NormOps>,
    linear: LinearOp,
    /// dX.
    linear_backward: LinearBackwardOp,
    factors: Vec<FactorOps>,
    norm_out: Option<NormOps>,
}

/// A norm and its gradient.
struct NormOps {
    forward: Op,
    backward: Op,
    eps: f32,
}

/// What a group reads and writes, and their gradients.
struct Streams<'a> {
    x: &'a Tensor,
    y: &'a Tensor,
    dy: &'a Tensor,
    dx: &'a Tensor,
}

#[derive(Clone, Copy)]
struct Sizes {
    layers: usize,
    d: u32,
    f: u32,
}

impl LayerOps {
    /// Binds layer `layer` to its slot.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn new(
        gpu: &Gpu,
        model: Model<'_>,
        buffers: &Buffers,
        layer: usize,
        layout: &Layout,
        kernels: &Kernels,
    ) -> Result<Self> {
        let config = model.config;
        let bind = Bind { gpu, model, buffers, layer, layout, kernels };
        let (gate_up, activation) = (&buffers.slot(layer).gate_up, config.family().activation);
        let [qkv, o_proj, gate, down] = &config.family().groups;
        Ok(Self {
            layer,
            sizes: Sizes {
                layers: config.num_hidden_layers,
                d: config.hidden_size as u32,
                f: config.intermediate_size as u32,
            },
            groups: [bind.group(qkv)?, bind.group(o_proj)?, bind.group(gate)?, bind.group(down)?],
            attend: AttendOps::new(gpu, model, buffers, layer)?,
            swiglu: gpu.op(&swiglu::spec(gpu.caps(), activation, None), &[gate_up, &buffers.h])?,
            swiglu_backward: gpu.op(&swiglu_backward::spec(activation), &[&buffers.dh, gate_up])?,
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
        let slot = buffers.slot(self.layer);
        for ops in &self.groups {
            let last = ops.group.site == SiteKind::DownProj;
            self.make_input(commands, ops, buffers, rows);
            if last && !finish && ops.norm_out.is_none() {
                // Its u is part of what the backward pass needs.
                return ops.factors.iter().try_for_each(|lora| lora.shrink_only(commands, rows));
            }
            let residual = match ops.group.site {
                SiteKind::OProj => Some((buffers.input(self.layer), &slot.x_mid)),
                SiteKind::DownProj if finish => {
                    Some((&slot.x_mid, buffers.output(self.layer, self.sizes.layers)))
                }
                _ => None,
            };
            if let Some((from, to)) = residual {
                commands.copy(from, 0, to, 0, u64::from(rows * self.sizes.d) * 4);
            }
            ops.linear.record(commands, RowRange::first(rows), USize::default())?;
            ops.factors.iter().try_for_each(|lora| lora.forward(commands, rows))?;
            if let Some(norm) = ops.norm_out.as_ref().filter(|_| finish || !last) {
                self.norm(commands, norm, rows);
            }
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
        buffers: &Buffers,
        rows: u32,
        through: bool,
    ) -> Result<()> {
        for ops in self.groups.iter().rev() {
            let through = through || ops.group.site != SiteKind::Qkv;
            if let Some(norm) = &ops.norm_out {
                self.norm_backward(commands, norm, rows);
            }
            // What attention made is kept.
            if ops.group.source != Source::Attention {
                self.make_input(commands, ops, buffers, rows);
            }
            if through {
                ops.linear_backward.record(commands, rows, 0)?;
            }
            ops.factors.iter().try_for_each(|lora| lora.backward(commands, rows, through))?;
            match (ops.group.source, &ops.norm_in) {
                (Source::Norm(_), Some(norm)) if through => {
                    self.norm_backward(commands, norm, rows);
                }
                (Source::Attention, _) => self.attend.backward(commands, rows),
                (Source::Gate, _) => {
                    let params =
                        SwiGluBackwardParams { f4: self.sizes.f / 4, ..Default::default() };
                    swiglu_backward::record(commands, &self.swiglu_backward, params, rows);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Records what makes a group's input.
    fn make_input(
        &self,
        commands: &mut Commands<'_>,
        ops: &GroupOps,
        buffers: &Buffers,
        rows: u32,
    ) {
        match (ops.group.source, &ops.norm_in) {
            (Source::Norm(_), Some(norm)) => self.norm(commands, norm, rows),
            (Source::Attention, _) => {
                self.attend.forward(commands, buffers.slot(self.layer), rows);
            }
            (Source::Gate, _) => {
                let params = SwiGluParams { f: self.sizes.f, ..Default::default() };
                swiglu::record(commands, &self.swiglu, &params, rows);
            }
            _ => {}
        }
    }

    fn norm(&self, commands: &mut Commands<'_>, norm: &NormOps, rows: u32) {
        let params = RmsNormParams { rows, k4: self.sizes.d / 4, eps: norm.eps };
        rms_norm::record(commands, &norm.forward, params);
    }

    fn norm_backward(&self, commands: &mut Commands<'_>, norm: &NormOps, rows: u32) {
        let (k4, eps) = (self.sizes.d / 4, norm.eps);
        let params = RmsNormBackwardParams { rows, k4, eps, ..Default::default() };
        rms_norm_backward::record(commands, &norm.backward, params);
    }
}

/// What binds a layer's groups.
struct Bind<'a> {
    gpu: &'a Gpu,
    model: Model<'a>,
    buffers: &'a Buffers,
    layer: usize,
    layout: &'a Layout,
    kernels: &'a Kernels,
}

impl<'a> Bind<'a> {
    fn group(&self, group: &Group) -> Result<GroupOps> {
        let (gpu, buffers, config) = (self.gpu, self.buffers, self.model.config);
        let weights = self.model.weights.layers[self.layer].group(group.site);
        let GroupWeights { norm_in, linear, norm_out } = weights;
        let streams = self.streams(group.site);
        let Streams { x, y, dy, dx } = streams;
        let (before, after) = self.residual(group.site);
        let added = buffers.slot(self.layer).out(group.site).is_none()
            && matches!(group.site, SiteKind::OProj | SiteKind::DownProj);
        let epilogue = if added { Epilogue::Add } else { Epilogue::Store };
        let binding = Binding { x, norm: None, y, y_stride: linear.n, epilogue, lora: None };
        let norm = |gain, [x, y]: [&Tensor; 2], [dy, dx]: [&Tensor; 2], add, eps| {
            Ok::<_, Error>(NormOps {
                forward: gpu.op(&rms_norm::spec(gpu.caps(), add), &[x, gain, y])?,
                backward: gpu.op(&rms_norm_backward::spec(gpu.caps(), !add), &[x, gain, dy, dx])?,
                eps,
            })
        };
        let norm_in = norm_in
            .as_ref()
            .map(|gain| norm(gain, [before, x], [dx, &buffers.dx], false, config.norm_eps()));
        let norm_out = norm_out
            .as_ref()
            .map(|gain| norm(gain, [y, after], [&buffers.dx, dy], true, config.rms_norm_eps));
        Ok(GroupOps {
            group: *group,
            norm_in: norm_in.transpose()?,
            linear: LinearOp::new(gpu, linear, binding)?,
            linear_backward: LinearBackwardOp::new(gpu, linear, dy, dx, &buffers.exponents)?,
            factors: self.factors(group.site, &streams, linear.n),
            norm_out: norm_out.transpose()?,
        })
    }

    /// The residual stream before a group and after it.
    fn residual(&self, site: SiteKind) -> (&'a Tensor, &'a Tensor) {
        let (buffers, layers) = (self.buffers, self.model.config.num_hidden_layers);
        let x_mid = &buffers.slot(self.layer).x_mid;
        match site {
            SiteKind::Qkv | SiteKind::OProj => (buffers.input(self.layer), x_mid),
            _ => (x_mid, buffers.output(self.layer, layers)),
        }
    }

    /// The gradient of gate and up takes their place.
    fn streams(&self, site: SiteKind) -> Streams<'a> {
        let Buffers { normed, h, dx, d_normed, d_qkv, d_attn, dh, d_out, .. } = self.buffers;
        let slot @ Slot { qkv, attn, gate_up, .. } = self.buffers.slot(self.layer);
        let (_, after) = self.residual(site);
        let (y, dy) = match slot.out(site).zip(d_out.as_ref()) {
            Some((out, d_out)) => (out, d_out),
            None => (after, dx),
        };
        match site {
            SiteKind::Qkv => Streams { x: normed, y: qkv, dy: d_qkv, dx: d_normed },
            SiteKind::OProj => Streams { x: attn, y, dy, dx: d_attn },
            SiteKind::GateUp => Streams { x: normed, y: gate_up, dy: gate_up, dx: d_normed },
            _ => Streams { x: h, y, dy, dx: dh },
        }
    }

    /// A group's factors.
    fn factors(&self, site: SiteKind, streams: &Streams<'_>, n: usize) -> Vec<FactorOps> {
        let shape = self.model.config.base_shape();
        let &Streams { x, y, dy, dx } = streams;
        let slot = self.buffers.slot(self.layer);
        let all = self.layout.layers[self.layer].iter().zip(&slot.u);
        let own = all.filter(|(factor, _)| site.targets().contains(&factor.path.target));
        own.map(|(factor, u)| {
            let before = site.targets().iter().take_while(|target| **target != factor.path.target);
            let y_column = before.map(|&target| shape.shape(target)[0] as u32).sum();
            let at = Around { x, y, dy, dx, u, y_stride: n as u32, y_column };
            FactorOps::new(self.gpu, self.kernels, self.buffers, self.layout, *factor, &at)
        })
        .collect()
    }
}
