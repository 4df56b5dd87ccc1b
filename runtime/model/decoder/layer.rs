//! A layer's groups, bound: where each takes its input, and what becomes of its output.

use crate::base::ModelConfig;
use crate::base::layout::{Follows, Group, Source};
use crate::error::Result;
use crate::gpu::{Gpu, Op, Tensor};
use crate::kernels::matvec::Epilogue;
use crate::kernels::rms_norm;
use crate::model::activations::Activations;
use crate::model::attend::{Attend, CacheOps, OfLayer};
use crate::model::kv_cache::KvCache;
use crate::model::linear::{Binding, Linear, LinearOp};
use crate::model::site::SiteKind;
use crate::model::weights::{GroupWeights, Weights};

pub(super) struct Layer {
    /// By [`SiteKind`].
    pub(super) groups: [GroupOps; 4],
    pub(super) cache: CacheOps,
}

pub(super) struct GroupOps {
    /// From the input that was made for it.
    pub(super) product: LinearOp,
    /// For few rows, with the norm of the input folded in, and the gate of what follows; none where
    /// neither is or can be.
    pub(super) folded: Option<LinearOp>,
    pub(super) norm_in: Option<Op>,
    pub(super) norm_out: Option<Op>,
}

impl Layer {
    pub(super) fn group(&self, kind: SiteKind) -> &GroupOps {
        &self.groups[kind as usize % self.groups.len()]
    }
}

/// What every layer has its part of.
#[derive(Clone, Copy)]
pub(crate) struct OfModel<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) cache: &'a KvCache,
}

impl<'a> OfModel<'a> {
    /// What the attention of a layer is bound to.
    pub(crate) fn layer(self, config: &ModelConfig, i: usize) -> OfLayer<'a> {
        OfLayer {
            attention: config.attention(i),
            cache: &self.cache.layers[i],
            beside: self.weights.layers[i].beside_qkv.as_ref(),
        }
    }
}

impl Layer {
    pub(super) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        attend: &Attend,
        model: OfModel<'_>,
        i: usize,
        a: &Activations,
    ) -> Result<Self> {
        let weights = &model.weights.layers[i];
        let group = |row: &Group| GroupOps::new(gpu, config, weights.group(row.site), row, a);
        let [qkv, o_proj, gate_up, down_proj] = &config.family().groups;
        Ok(Self {
            groups: [group(qkv)?, group(o_proj)?, group(gate_up)?, group(down_proj)?],
            cache: CacheOps::new(gpu, attend, model.layer(config, i), a, None)?,
        })
    }
}

impl GroupOps {
    fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        weights: &GroupWeights,
        group: &Group,
        a: &Activations,
    ) -> Result<Self> {
        let linear = &weights.linear;
        let product = binding(a, group, linear);
        let norm = weights.norm_in.as_ref().map(|gain| (gain, config.norm_eps()));
        let gate = gate_of(config, group, linear);
        let folded = match gate {
            Some(epilogue) => Some(Binding {
                x: &a.x,
                norm,
                y: &a.h,
                y_stride: linear.n / 2,
                epilogue,
                ..product
            }),
            None if group.site == SiteKind::Qkv => Some(Binding { x: &a.x, norm, ..product }),
            None => None,
        };
        let norm = |x: &Tensor, gain: &Option<Tensor>, y: &Tensor, add| {
            let op = |gain| gpu.op(&rms_norm::spec(gpu.caps(), add), &[x, gain, y]);
            gain.as_ref().map(op).transpose()
        };
        Ok(Self {
            folded: folded.map(|binding| LinearOp::new(gpu, linear, binding)).transpose()?,
            product: LinearOp::new(gpu, linear, product)?,
            norm_in: norm(&a.x, &weights.norm_in, &a.normed, false)?,
            norm_out: norm(&a.normed, &weights.norm_out, &a.x, true)?,
        })
    }
}

/// A group's product: from the input that was made for it to what follows.
pub(crate) fn binding<'a>(a: &'a Activations, group: &Group, linear: &Linear) -> Binding<'a> {
    let x = match group.source {
        Source::Norm(_) => &a.normed,
        Source::Attention => &a.attn,
        Source::Gate => &a.h,
    };
    let y = match (group.follows, group.site) {
        (Follows::Store, SiteKind::Qkv) => &a.qkv,
        (Follows::Store, _) => &a.gate_up,
        (Follows::Add, _) => &a.x,
        (Follows::AddNormed(_), _) => &a.normed,
    };
    Binding { x, norm: None, y, y_stride: linear.n, epilogue: after(group), lora: None }
}

pub(super) fn after(group: &Group) -> Epilogue {
    if group.follows == Follows::Add { Epilogue::Add } else { Epilogue::Store }
}

/// The gate that is folded into a group, where gate and up share a format and a binding.
pub(super) fn gate_of(config: &ModelConfig, group: &Group, linear: &Linear) -> Option<Epilogue> {
    let can = group.site == SiteKind::GateUp && linear.chunks.len() == 1;
    can.then(|| Epilogue::of(config.family().activation))
}
