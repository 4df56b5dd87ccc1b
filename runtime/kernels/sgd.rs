//! Stochastic gradient descent over a range of a flat buffer, with momentum or without: see
//! `shaders/sgd.wgsl`.
//!
//! The semantics are those of `torch.optim.SGD` with dampening 0 and without Nesterov's; weight
//! decay is coupled.

use super::adamw::RUN;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct SgdParams {
        /// First element.
        pub offset: u32,
        /// Elements.
        pub len: u32,
        /// Where in `norm` the gradients' norm is.
        pub slot: u32,
        /// Gradients are scaled down to this norm; [`super::grad_norm::NO_CLIP`] leaves them.
        pub max_norm: f32,
        /// Learning rate.
        pub lr: f32,
        /// What stays of the buffer.
        pub momentum: f32,
        /// A part of each weight, added to its gradient.
        pub weight_decay: f32,
    }
}

/// Bindings: `norm`, `grads`, `weights`, `buffer`, which begins as zeros; without momentum any
/// buffer of its own.
pub fn spec(momentum: bool) -> KernelSpec {
    KernelSpec {
        name: "sgd",
        consts: vec![("MOMENTUM", u32::from(momentum))],
        bindings: &[Read, Write, Write, Write],
        params: SgdParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the update of a range, which also zeroes its gradients.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &SgdParams) {
    op.record(commands, params, [params.len.div_ceil(RUN), 1, 1], 0);
}
