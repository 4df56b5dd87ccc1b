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
pub mod lora;
pub mod matmul;
pub mod matmul_backward;
pub mod matmul_dense;
pub mod matvec;
pub mod matvec_coop;
pub mod rms_norm;
pub mod rms_norm_backward;
pub mod rope;
pub mod rope_train;
pub mod row_exponents;
pub mod sample;
pub mod sgd;
pub mod swiglu;
pub mod swiglu_backward;

use crate::gpu::Caps;

/// Workgroups that keep a large GPU busy.
const ENOUGH_GROUPS: u32 = 128;

/// The joined file that reduces over lanes, and the most lanes it can reduce over.
pub(crate) fn reduction(caps: &Caps) -> (&'static str, u32) {
    match caps.subgroup_size {
        Some(size) => ("shared/reduce_subgroup", size.min(32)),
        None => ("shared/reduce_workgroup", 32),
    }
}

/// The element type of the KV cache: f16, or f32 where there is no f16.
pub(crate) fn kv_type(f16: bool) -> String {
    if f16 { "f16".into() } else { "f32".into() }
}
