//! The global norm of gradients: see `shaders/grad_norm_{partial,final}.wgsl`.
//!
//! First a sum for each run of each flat buffer, then one of all of them: the order is the same on
//! every tier.

use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Lanes of a workgroup.
pub const LANES: u32 = 256;
/// Elements that one workgroup of the first stage sums.
pub const RUN: u32 = 16 * 1024;
/// A largest norm that clips nothing.
pub const NO_CLIP: f32 = f32::MAX;

params! {
    /// What a dispatch of `grad_norm_partial` says.
    pub struct PartialParams {
        /// First gradient.
        pub offset: u32,
        /// Gradients.
        pub len: u32,
        /// First of the partial sums that this makes.
        pub partial0: u32,
    }
}

params! {
    /// What a dispatch of `grad_norm_final` says.
    pub struct FinalParams {
        /// Partial sums.
        pub count: u32,
        /// Where in `norm` the result goes.
        pub slot: u32,
    }
}

/// Bindings: `grads`, `partials`.
pub fn partial_spec() -> KernelSpec {
    KernelSpec {
        name: "grad_norm_partial",
        consts: vec![("WG", LANES), ("L", LANES), ("RUN", RUN)],
        bindings: &[Read, Write],
        params: PartialParams::LAYOUT,
        ..Default::default()
    }
}

/// Bindings: `partials`, `norm`.
pub fn final_spec() -> KernelSpec {
    KernelSpec {
        name: "grad_norm_final",
        consts: vec![("WG", LANES), ("L", LANES)],
        bindings: &[Read, Write],
        params: FinalParams::LAYOUT,
        ..Default::default()
    }
}

/// Partial sums of `len` gradients.
pub fn partials(len: u32) -> u32 {
    len.div_ceil(RUN)
}

/// Records the partial sums of one buffer.
pub fn record_partial(commands: &mut Commands<'_>, op: &Op, params: PartialParams) {
    op.record(commands, &params, [partials(params.len), 1, 1], 0);
}

/// Records the norm of all of them.
pub fn record_final(commands: &mut Commands<'_>, op: &Op, params: FinalParams) {
    op.record(commands, &params, [1, 1, 1], 0);
}
