//! `AdamW` over a range of a flat buffer: see `shaders/adamw.wgsl`.

use std::ops::Range;

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Elements that one workgroup of an optimiser takes.
pub(super) const RUN: u32 = 1024;

/// What stays the same from step to step; the semantics and the defaults are those of
/// `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// A part of each weight, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 }
    }
}

params! {
    /// What a dispatch says.
    pub struct AdamWParams {
        /// First element.
        pub offset: u32,
        /// Elements.
        pub len: u32,
        /// Where in `norm` the gradients' norm is.
        pub slot: u32,
        /// Gradients are scaled down to this norm; [`super::grad_norm::NO_CLIP`] leaves them.
        pub max_norm: f32,
        /// `1 - lr weight_decay`.
        pub decay: f32,
        /// `lr / (1 - beta1^step)`.
        pub step_size: f32,
        /// See [`AdamW`].
        pub beta1: f32,
        /// `1 - beta1`.
        pub gain1: f32,
        /// See [`AdamW`].
        pub beta2: f32,
        /// `1 - beta2`.
        pub gain2: f32,
        /// `1 / sqrt(1 - beta2^step)`.
        pub correction: f32,
        /// See [`AdamW`].
        pub eps: f32,
    }
}

impl AdamW {
    /// Parameters of the elements in `range`, which share the learning rate `lr`, for step 1, 2, …;
    /// computed in f64.
    pub fn params(&self, range: Range<u32>, lr: f64, step: u64, max_norm: f32) -> AdamWParams {
        let left = |beta: f64| 1.0 - beta.powf(step as f64);
        AdamWParams {
            offset: range.start,
            len: range.end.saturating_sub(range.start),
            slot: 0,
            max_norm,
            decay: (1.0 - lr * self.weight_decay) as f32,
            step_size: (lr / left(self.beta1)) as f32,
            beta1: self.beta1 as f32,
            gain1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            gain2: (1.0 - self.beta2) as f32,
            correction: (1.0 / left(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// Bindings: `norm`, `grads`, `weights`, `m`, `v`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "adamw",

        bindings: &[Read, Write, Write, Write, Write],
        params: AdamWParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the update of a range, which also zeroes its gradients.
///
/// Where A and B learn at rates of their own (Hayou et al. 2024, arXiv:2402.12354), put all A
/// before all B: two ranges.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &AdamWParams) {
    op.record(commands, params, [params.len.div_ceil(RUN), 1, 1], 0);
}
