//! The global norm of gradients: see `shaders/grad_norm_{partial,final}.wgsl`.
//!
//! First a sum for each run of each flat buffer, then one of all of them: the order is the same on
//! every tier.

use bytemuck::{Pod, Zeroable};

use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Commands, KernelSpec, Op};

/// Lanes of a workgroup.
pub const LANES: u32 = 256;
/// Elements that one workgroup of the first stage sums.
pub const RUN: u32 = 16 * 1024;
/// A largest norm that clips nothing.
pub const NO_CLIP: f32 = f32::MAX;

/// Mirror of `Params` in `grad_norm_partial.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct PartialParams {
    /// First gradient.
    pub offset: u32,
    /// Gradients.
    pub len: u32,
    /// First of the partial sums that this makes.
    pub partial0: u32,
    /// Unused.
    pub pad: u32,
}

/// Mirror of `Params` in `grad_norm_final.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct FinalParams {
    /// Partial sums.
    pub count: u32,
    /// Where in `norm` the result goes.
    pub slot: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// Bindings: `grads`, `partials`.
pub fn partial_spec() -> KernelSpec {
    kernel(
        "grad_norm_partial",
        vec![("WG", LANES), ("L", LANES), ("RUN", RUN)],
        size_of::<PartialParams>(),
    )
}

/// Bindings: `partials`, `norm`.
pub fn final_spec() -> KernelSpec {
    kernel("grad_norm_final", vec![("WG", LANES), ("L", LANES)], size_of::<FinalParams>())
}

fn kernel(name: &'static str, consts: Vec<(&'static str, u32)>, params_bytes: usize) -> KernelSpec {
    const BINDINGS: &[Access] = &[Read, Write];
    KernelSpec {
        source: Source {
            name,
            consts,
            imports: vec!["shared/reduce_workgroup"],
            ..Default::default()
        },
        bindings: BINDINGS,
        params_bytes: params_bytes as u32,
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
