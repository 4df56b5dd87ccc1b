//! The host side of each kernel: its parameters, variants, grid and recording. One stem with
//! `shaders/` and `tests/kernels/`.

pub mod adamw;
pub mod attention;
pub mod attention_backward;
pub mod attention_train;
pub mod bandwidth;
pub mod cross_entropy;
pub mod embedding;
pub mod gather_rows;
pub mod grad_norm;
pub mod heads_backward;
pub mod lora;
pub mod matmul;
pub mod matmul_backward;
pub mod matmul_dense;
pub mod matvec;
pub mod matvec_coop;
pub mod proximal;
pub mod rms_norm;
pub mod rms_norm_backward;
pub mod rope;
pub mod rope_train;
pub mod row_exponents;
pub mod sample;
pub mod sample_mask;
pub mod sgd;
pub mod swiglu;
pub mod swiglu_backward;

use crate::base::layout::Activation;
use crate::gpu::Caps;

/// Workgroups that keep a large GPU busy.
const ENOUGH_GROUPS: u32 = 128;

/// The file that reduces over lanes.
pub(crate) fn reduce(caps: &Caps) -> &'static str {
    match caps.subgroup_size {
        Some(_) => "shared/reduce_subgroup",
        None => "shared/reduce_workgroup",
    }
}

/// The file of what gate goes through.
pub(crate) fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "activation/silu",
        Activation::GeluTanh => "activation/gelu_tanh",
    }
}

/// The most lanes that [`reduce`] reduces over.
pub(crate) fn lanes(caps: &Caps) -> u32 {
    caps.subgroup_size.map_or(32, |size| size.min(32))
}

/// The element type of the KV cache: f16, or f32 where there is no f16.
pub(crate) fn kv(f16: bool) -> &'static str {
    if f16 { "shared/kv_f16" } else { "shared/kv_f32" }
}
