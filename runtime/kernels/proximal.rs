//! The gradient of a proximal term, over a flat buffer: see `shaders/proximal.wgsl`.

use super::adamw::RUN;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct ProximalParams {
        /// Elements.
        pub len: u32,
        /// How much of the distance is added.
        pub mu: f32,
    }
}

/// Bindings: `weights`, `start`, `grads`.
pub fn spec() -> KernelSpec {
    KernelSpec {
        name: "proximal",
        bindings: &[Read, Read, Write],
        params: ProximalParams::LAYOUT,
        ..Default::default()
    }
}

/// Records the sum.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &ProximalParams) {
    op.record(commands, params, [params.len.div_ceil(RUN), 1, 1], 0);
}
